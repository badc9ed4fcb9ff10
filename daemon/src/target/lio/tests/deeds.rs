//! What others may have done, and what may be wanted: for the tests from any state to any other.

use proptest::prelude::*;

use super::*;

/// Something that somebody did to the target before.
#[derive(Debug, Clone)]
pub(super) enum Deed {
    Make(String),
    Write(String, String),
    Link(String, String),
    Unlink(String),
    Remove(String),
    Login(usize, usize),
    Logout(usize),
}

pub(super) fn any_deed() -> impl Strategy<Value = Deed> {
    let n = 0usize..2;
    let h = 0usize..5;
    let in_group = prop_oneof![
        Just("attrib/generate_node_acls=1"),
        Just("attrib/generate_node_acls=0"),
        Just("attrib/cache_dynamic_acls=1"),
        Just("attrib/authentication=0"),
        Just("attrib/authentication=1"),
        Just("attrib/demo_mode_write_protect=0"),
        Just("attrib/prod_mode_write_protect=0"),
        Just("enable=0"),
        Just("enable=1"),
    ];
    let in_acl = prop_oneof![
        Just("attrib/authentication=0"),
        Just("attrib/authentication=1"),
        Just("attrib/authentication=-1"),
        Just("auth/password=NULL"),
        Just("auth/userid=somebody"),
        Just("lun_0/write_protect=0"),
        Just("lun_0/write_protect=1"),
    ];
    let in_store = prop_oneof![
        Just("wwn/vpd_unit_serial=123"),
        Just("control=udev_path=/dev/d0"),
        Just("control=udev_path=/dev/d1"),
        Just("udev_path=/dev/other"),
        Just("enable=1"),
        Just("attrib/emulate_tpu=0"),
        Just("alua/default_tg_pt_gp/alua_access_type=3"),
        Just("alua/default_tg_pt_gp/alua_access_type=0"),
        Just("alua/default_tg_pt_gp/alua_access_state=2"),
        Just("alua/default_tg_pt_gp/alua_support_active_optimized=0"),
    ];
    let write = |at: String, what: &str| {
        let (name, value) = what.split_once('=').unwrap();
        Deed::Write(format!("{at}/{name}"), value.into())
    };
    let dir = |n: usize| {
        prop_oneof![
            Just(format!("core/{ADAPTER}")),
            Just("iscsi".to_string()),
            Just(store(n)),
            Just(format!("iscsi/{}", iqn(n))),
            Just(group(n)),
            Just(format!("iscsi/{}/tpgt_2", iqn(n))),
            Just(format!("{}/lun/lun_0", group(n))),
            Just(format!("{}/lun/lun_1", group(n))),
            Just(format!("{}/np/{}", group(n), PORTALS[0])),
            Just(format!("{}/np/10.9.9.9:3260", group(n))),
        ]
    };
    let in_hosts = |n: usize, h: usize| {
        prop_oneof![
            3 => Just(acl(n, h)),
            2 => Just(format!("{}/lun_0", acl(n, h))),
            1 => Just(format!("{}/lun_7", acl(n, h))),
        ]
    };
    let mapping = |n: usize, h: usize, from: usize, to: usize| {
        Deed::Link(format!("{}/lun/lun_{from}", group(n)), format!("{}/lun_{to}/x", acl(n, h)))
    };
    prop_oneof![
        6 => n.clone().prop_flat_map(dir).prop_map(Deed::Make),
        5 => (n.clone(), h.clone()).prop_flat_map(move |(n, h)| in_hosts(n, h)).prop_map(Deed::Make),
        6 => (n.clone(), in_group).prop_map(move |(n, w)| write(group(n), w)),
        6 => (n.clone(), h.clone(), in_acl).prop_map(move |(n, h, w)| write(acl(n, h), w)),
        4 => (n.clone(), in_store).prop_map(move |(n, w)| write(store(n), w)),
        3 => (n.clone(), 0usize..2, 0usize..2).prop_map(|(n, m, lun)| {
            Deed::Link(store(m), format!("{}/lun/lun_{lun}/{}", group(n), volume(m)))
        }),
        4 => (n.clone(), h.clone(), 0usize..2, prop_oneof![Just(0usize), Just(7)])
            .prop_map(move |(n, h, from, to)| mapping(n, h, from, to)),
        1 => n.clone().prop_map(|n| Deed::Unlink(format!("{}/lun/lun_0/{}", group(n), volume(n)))),
        1 => (n.clone(), h.clone())
            .prop_map(|(n, h)| Deed::Unlink(format!("{}/lun_0/{}", acl(n, h), volume(n)))),
        1 => n.clone().prop_map(|n| Deed::Remove(format!("{}/np/{}", group(n), PORTALS[0]))),
        1 => (n.clone(), h.clone()).prop_map(|(n, h)| Deed::Remove(acl(n, h))),
        8 => (n, h).prop_map(|(n, h)| Deed::Login(n, h)),
        2 => (0usize..20).prop_map(Deed::Logout),
    ]
}

pub(super) fn any_desired() -> impl Strategy<Value = Desired> {
    let hosts = proptest::collection::btree_map(0usize..4, any::<bool>(), 1..4);
    let one = move |n| {
        let device = prop_oneof![9 => Just(n), 1 => Just(0)];
        proptest::option::weighted(0.75, (hosts.clone(), device)).prop_map(move |e| {
            e.map(|(hosts, d)| {
                let hosts: Vec<(usize, bool)> = hosts.into_iter().collect();
                (volume(n), export(n, &format!("/dev/d{d}"), &hosts))
            })
        })
    };
    (one(0), one(1)).prop_map(|(a, b)| a.into_iter().chain(b).collect())
}

pub(super) fn any_kernel() -> impl Strategy<Value = SimLioKernel> {
    any::<(bool, bool)>().prop_map(|(product, discard)| SimLioKernel {
        product,
        discard,
        ..SimLioKernel::default()
    })
}
