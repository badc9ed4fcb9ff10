//! File systems by NFS: hosts by their addresses, zones, who may write; and protocols that do not fit.

use super::filesystems::filesystem;
use super::*;

impl Rig {
    async fn addressed(&self, name: &str, addresses: &[&str]) {
        let addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
        self.ok(Action::PutHost(name.parse().unwrap(), HostPut { addresses, ..HostPut::default() })).await;
    }
}

fn zone(name: &str, networks: &[&str], read_only: bool, squash: Squash) -> Action {
    let networks = networks.iter().map(|n| n.parse().unwrap()).collect();
    Action::PutZone(name.parse().unwrap(), ZonePut { networks, read_only, squash, ..ZonePut::default() })
}

fn secured(name: &str, network: &str, security: &str) -> Action {
    let (networks, security) = (vec![network.parse().unwrap()], security.parse().unwrap());
    Action::PutZone(name.parse().unwrap(), ZonePut { networks, security, ..ZonePut::default() })
}

/// A keytab with one key, of nfs/storage@A.B.
fn keytab() -> orlop_api::KeytabFile {
    let text = "BQIAAAAjAAIAA0EuQgADbmZzAAdzdG9yYWdlAAAAAQAAAAACABIAAQc=";
    text.to_string().try_into().unwrap()
}

const READ_ONLY: Attach = Attach { alone: false, read_only: true };

#[tokio::test]
async fn hosts_and_zones_use_a_file_system_as_they_may() {
    let mut rig = Rig::new().await;
    let id = rig.make(filesystem("share", None)).await;
    assert_eq!(rig.volume(id).unwrap().protocol, Protocol::Nfs);
    rig.addressed("one", &["10.0.0.5", "fd00::5"]).await;
    rig.ok(zone("lan", &["10.1.0.0/16"], false, Squash::Root)).await;
    rig.ok(zone("all", &["10.2.0.0/16"], true, Squash::All)).await;
    let Outcome::Attachment { attachment, changed: true } = rig.ok(attach(id, "one")).await else { panic!() };
    let nfs = attachment.nfs().unwrap();
    assert!(nfs.path.ends_with(&id.to_string()) && nfs.networks.len() == 2 && !attachment.read_only);
    rig.ok(attach_as(id, "lan", READ_ONLY)).await;
    rig.ok(attach(id, "all")).await;
    let all = ["10.0.0.5 rw none", "10.1.0.0/16 ro root", "10.2.0.0/16 ro all", "fd00::5 rw none"];
    assert_eq!(rig.nfs.rights(id), all);
    assert_eq!(rig.target.exports(), 0, "it is served as a disk");
    // Another access under the same attachment is another one.
    let p = rig.fails(attach(id, "lan")).await;
    assert_eq!((p.kind, p.field.as_deref()), (ErrorKind::Conflict, Some("read_only")));
    // All of it comes back: after a restart, after a power cut, and without the journal.
    rig.restart().await;
    assert_eq!(rig.nfs.rights(id), all);
    rig.engine().core.write_labels().await;
    rig.engine().core.tasks.lock().abort_all();
    rig.engine = None;
    std::fs::remove_dir_all(rig.dir.path().join("journal")).unwrap();
    rig.platter.power_cycle();
    rig.nfs.power_cycle();
    rig.start().await;
    assert_eq!(rig.nfs.rights(id), all);
    assert!(rig.engine().view().zone(&who(), &"all".parse().unwrap()).is_some_and(|z| z.read_only));
    assert!(rig.engine().view().host(&who(), &"all".parse().unwrap()).is_none());
    rig.ok(Action::Detach(by(id), "lan".parse().unwrap())).await;
    assert_eq!(rig.nfs.rights(id).len(), 3);
    let p = rig.fails(delete(id)).await;
    assert_eq!(p.kind, ErrorKind::Precondition, "{p}");
}

#[tokio::test]
async fn a_zone_that_is_changed_is_changed_where_it_is_attached() {
    let rig = Rig::new().await;
    let (a, b) = (rig.make(filesystem("a", None)).await, rig.make(filesystem("b", None)).await);
    rig.ok(zone("lan", &["10.1.0.0/16", "10.9.0.1"], false, Squash::Root)).await;
    rig.ok(attach(a, "lan")).await;
    let Outcome::Zone { zone: shown, made: false } =
        rig.ok(zone("lan", &["10.2.0.0/16"], true, Squash::Root)).await
    else {
        panic!()
    };
    assert_eq!(shown.volumes, [a]);
    assert_eq!(rig.nfs.rights(a), ["10.2.0.0/16 ro root"]);
    let changes = rig.nfs.changes();
    rig.ok(zone("lan", &["10.2.0.0/16"], true, Squash::Root)).await;
    assert_eq!((rig.nfs.changes(), rig.nfs.rights(b).len()), (changes, 0));
    // One that can't be changed in the kernel is what it was asked to be as soon as it can.
    *rig.nfs.fail.lock() = true;
    rig.fails(zone("lan", &["10.3.0.0/16"], false, Squash::None)).await;
    assert_eq!(rig.volume(a).unwrap().state, VolumeState::Stuck);
    *rig.nfs.fail.lock() = false;
    rig.until("the zone", |r| r.nfs.rights(a) == ["10.3.0.0/16 rw none"]).await;
    let p = rig.fails(Action::DeleteZone("lan".parse().unwrap())).await;
    assert_eq!((p.kind, p.dependants), (ErrorKind::Precondition, vec![a.to_string()]));
    rig.until("it to be ready", |r| r.volume(a).unwrap().state == VolumeState::Ready).await;
    rig.ok(Action::Detach(by(a), "lan".parse().unwrap())).await;
    assert_eq!((rig.nfs.exports(), rig.platter.open_backings()), (0, 0));
    rig.ok(Action::DeleteZone("lan".parse().unwrap())).await;
}

#[tokio::test]
async fn what_can_not_be_is_refused_and_changes_nothing() {
    let rig = Rig::new().await;
    let (disk, share) = (rig.create("disk").await, rig.make(filesystem("share", None)).await);
    rig.host("nvme").await;
    rig.addressed("nfs", &["10.0.0.5"]).await;
    rig.ok(zone("lan", &["10.0.0.0/24"], false, Squash::Root)).await;
    for (action, kind) in [
        (attach(share, "nvme"), ErrorKind::Precondition),
        (attach(disk, "nfs"), ErrorKind::Precondition),
        (attach(disk, "lan"), ErrorKind::Unsupported),
        (zone("nfs", &["10.0.0.0/24"], false, Squash::Root), ErrorKind::Conflict),
        (zone("none", &[], false, Squash::Root), ErrorKind::Invalid),
        (zone("twice", &["10.0.0.0/8", "10.1.0.0/16"], false, Squash::Root), ErrorKind::Invalid),
        (Action::DeleteHost("lan".parse().unwrap()), ErrorKind::NotFound),
        (Action::DeleteZone("nfs".parse().unwrap()), ErrorKind::NotFound),
        (Action::TrustHost("lan".parse().unwrap()), ErrorKind::NotFound),
        (Action::ChapHost("nvme".parse().unwrap(), None), ErrorKind::Precondition),
        (
            Action::PutHost(
                "lan".parse().unwrap(),
                HostPut { addresses: vec!["10.0.0.9".parse().unwrap()], ..HostPut::default() },
            ),
            ErrorKind::Conflict,
        ),
        (Action::PutHost("new".parse().unwrap(), HostPut::default()), ErrorKind::Invalid),
        (
            Action::PutHost(
                "new".parse().unwrap(),
                HostPut { addresses: vec!["127.0.0.1".parse().unwrap()], ..HostPut::default() },
            ),
            ErrorKind::Invalid,
        ),
        (
            Action::PutHost(
                "new".parse().unwrap(),
                HostPut { addresses: vec!["10.0.0.5".parse().unwrap()], ..HostPut::default() },
            ),
            ErrorKind::Conflict,
        ),
        (
            Action::CreateVolume(VolumeCreate { protocol: Some(Protocol::Nfs), ..ask("x") }),
            ErrorKind::Invalid,
        ),
        (
            Action::CreateVolume(VolumeCreate { protocol: Some(Protocol::Iscsi), ..ask("x") }),
            ErrorKind::Unsupported,
        ),
        (
            Action::CreateVolume(VolumeCreate { protocol: Some(Protocol::Nvme), ..filesystem("x", None) }),
            ErrorKind::Invalid,
        ),
    ] {
        let text = format!("{action:?}");
        let p = rig.fails(action).await;
        assert_eq!(p.kind, kind, "{text}: {p}");
    }
    assert_eq!((rig.target.exports(), rig.nfs.exports(), rig.platter.open_backings()), (0, 0, 0));
    assert!(rig.engine().core.unsettled.lock().is_empty());
    // Known by more than one protocol; what is in use is not changed.
    let both = |address: &str| {
        let nqn = Some("nqn.2014-08.org.nvmexpress:both".parse().unwrap());
        let ask = HostPut { nqn, addresses: vec![address.parse().unwrap()], iqn: None };
        Action::PutHost("both".parse().unwrap(), ask)
    };
    rig.ok(both("10.0.0.7")).await;
    rig.ok(attach(disk, "both")).await;
    rig.ok(both("10.0.0.8")).await;
    rig.ok(attach(share, "both")).await;
    let p = rig.fails(both("10.0.0.7")).await;
    assert_eq!((p.kind, p.dependants), (ErrorKind::Precondition, vec![share.to_string()]));
    assert_eq!(rig.nfs.rights(share), ["10.0.0.8 rw none"]);
}

#[tokio::test]
async fn a_zone_proves_itself_by_kerberos_or_is_not_made() {
    let mut rig = Rig::new().await;
    let id = rig.make(filesystem("share", None)).await;
    let p = rig.fails(secured("lan", "10.1.0.0/16", "krb5p")).await;
    assert_eq!(p.kind, ErrorKind::Unsupported);
    assert!(p.detail.contains("no keytab"), "{p}");
    assert!(rig.engine().view().zone(&who(), &"lan".parse().unwrap()).is_none());
    let versions = Some(vec!["4.2".to_string()]);
    let ask = ZonePut { networks: vec!["10.1.0.0/16".parse().unwrap()], versions, ..ZonePut::default() };
    let p = rig.fails(Action::PutZone("lan".parse().unwrap(), ask)).await;
    assert_eq!(p.kind, ErrorKind::Unsupported);
    assert!(p.detail.contains("[nfs] versions"), "{p}");

    let Outcome::Keytab(shown) = rig.ok(Action::PutKeytab(keytab())).await else { panic!() };
    assert_eq!(shown.principals, ["nfs/storage@A.B"]);
    rig.ok(secured("lan", "10.1.0.0/16", "krb5p:krb5i")).await;
    let Outcome::Attachment { attachment, .. } = rig.ok(attach(id, "lan")).await else { panic!() };
    assert_eq!(attachment.nfs().unwrap().security.to_string(), "krb5p:krb5i");
    assert_eq!(rig.nfs.rights(id), ["10.1.0.0/16 rw root krb5p:krb5i"]);
    // Two zones of one network: both are heard.
    rig.ok(secured("weak", "10.1.0.0/16", "sys:krb5p")).await;
    rig.ok(attach(id, "weak")).await;
    assert_eq!(rig.nfs.rights(id), ["10.1.0.0/16 rw root krb5p:krb5i"]);
    rig.ok(Action::Detach(by(id), "weak".parse().unwrap())).await;
    let p = rig.fails(Action::DeleteKeytab).await;
    assert_eq!(
        (p.kind, p.dependants),
        (ErrorKind::Precondition, vec!["lan".to_string(), "weak".to_string()])
    );
    // Without keys it can still be made smaller, and sys can be had, but not another flavour.
    *rig.nfs.keytab.lock() = None;
    rig.ok(secured("lan", "10.1.2.0/24", "krb5p:krb5i")).await;
    assert_eq!(rig.nfs.rights(id), ["10.1.2.0/24 rw root krb5p:krb5i"]);
    let p = rig.fails(secured("lan", "10.1.2.0/24", "krb5")).await;
    assert_eq!(p.kind, ErrorKind::Unsupported, "{p}");
    rig.restart().await;
    assert_eq!(rig.nfs.rights(id), ["10.1.2.0/24 rw root krb5p:krb5i"]);
}

/// Labels are written behind, but not what they would give away.
#[tokio::test]
async fn a_lost_journal_does_not_bring_a_weaker_flavour_back() {
    let mut rig = Rig::new().await;
    let (a, b) = (rig.make(filesystem("a", None)).await, rig.make(filesystem("b", None)).await);
    *rig.nfs.keytab.lock() = Some(keytab());
    rig.ok(secured("lan", "10.1.0.0/16", "sys:krb5p")).await;
    rig.ok(attach(a, "lan")).await;
    rig.ok(attach(b, "lan")).await;
    rig.engine().core.write_labels().await;
    rig.ok(secured("lan", "10.1.0.0/16", "krb5p")).await;
    // Nothing that is written behind is written any more.
    rig.engine().core.tasks.lock().abort_all();
    rig.engine = None;
    std::fs::remove_dir_all(rig.dir.path().join("journal")).unwrap();
    rig.platter.power_cycle();
    rig.nfs.power_cycle();
    rig.start().await;
    for id in [a, b] {
        assert_eq!(rig.nfs.rights(id), ["10.1.0.0/16 rw root krb5p"]);
    }
}
