//! Random histories of a `sim` pool against a model that is a map: after every step both list the same.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use orlop_api::{ByteSize, Properties, Provisioning, VolumeCreate, VolumeId};
use orlopd::kernel::Deadline;
use orlopd::model::{Label, LabelHost, PoolMedium, PoolSpec};
use orlopd::pool::{Change, Listing, PoolEnv, PoolError, Stored};
use proptest::prelude::*;

/// What a set gives a volume; the first is nothing, and takes away what it had.
const SETTINGS: [&str; 4] = ["", "compression=zstd-3", "logbias=throughput", "dedup=verify"];

#[derive(Debug, Clone)]
enum Step {
    Create { volume: usize, pages: u64 },
    Grow { volume: usize, pages: u64 },
    Set { volume: usize, property: usize, thick: bool },
    Relabel { volume: usize, hosts: usize },
    Destroy { volume: usize },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let volume = 0..6usize;
    prop_oneof![
        4 => (volume.clone(), 1..5u64).prop_map(|(volume, pages)| Step::Create { volume, pages }),
        3 => (volume.clone(), 1..8u64).prop_map(|(volume, pages)| Step::Grow { volume, pages }),
        2 => (volume.clone(), 0..SETTINGS.len(), any::<bool>())
            .prop_map(|(volume, property, thick)| Step::Set { volume, property, thick }),
        2 => (volume.clone(), 0..4usize).prop_map(|(volume, hosts)| Step::Relabel { volume, hosts }),
        3 => volume.prop_map(|volume| Step::Destroy { volume }),
        1 => Just(Step::Reopen),
    ]
}

fn label(id: VolumeId, pages: u64) -> Label {
    let ask = VolumeCreate {
        name: format!("v{id}").parse().unwrap(),
        pool: "p".parse().unwrap(),
        size: ByteSize(pages * 4096),
        provisioning: Provisioning::Thin,
        protocol: Default::default(),
        source: None,
        properties: Default::default(),
    };
    let mut l = Label::new(id, "t".parse().unwrap(), &ask);
    l.created = "2026-11-20T12:00:00Z".parse().unwrap();
    l
}

fn host(i: usize) -> LabelHost {
    LabelHost {
        name: format!("h{i}").parse().unwrap(),
        nqn: format!("nqn.2026-11.dev.orlop:host-{i}").parse().unwrap(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn pool_histories_match_the_model(steps in prop::collection::vec(step(), 1..60)) {
        let deadline = Deadline::after(Duration::from_secs(60));
        let dir = tempfile::tempdir().unwrap();
        let spec = PoolSpec {
            v: 1,
            name: "p".parse().unwrap(),
            medium: PoolMedium::Sim { directory: dir.path().to_owned() },
        };
        let env = PoolEnv::default();
        let mut pool = orlopd::pool::create(&spec, &env, &deadline).unwrap();
        let ids: Vec<VolumeId> = (0..6).map(|_| VolumeId::mint()).collect();
        let mut model: BTreeMap<VolumeId, Label> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Create { volume, pages } => {
                    let l = label(ids[volume], pages);
                    match (model.get(&l.id), pool.create(&l, &deadline)) {
                        (None, r) => {
                            prop_assert_eq!(r.unwrap(), Change::Done);
                            model.insert(l.id, l);
                        }
                        (Some(have), r) if *have == (Label { hosts: have.hosts.clone(), ..l.clone() }) => {
                            prop_assert_eq!(r.unwrap(), Change::Unchanged);
                        }
                        (Some(_), r) => {
                            let conflict = matches!(r, Err(PoolError::Conflict { .. }));
                            prop_assert!(conflict);
                        }
                    }
                }
                Step::Grow { volume, pages } => {
                    let id = ids[volume];
                    let want = Label { hosts: model.get(&id).map_or(vec![], |l| l.hosts.clone()), ..label(id, pages) };
                    let r = pool.grow(&want, &deadline);
                    match model.get_mut(&id) {
                        None => {
                            let missing = matches!(r, Err(PoolError::NotFound { .. }));
                            prop_assert!(missing);
                        }
                        Some(have) if want.size < have.size => {
                            let conflict = matches!(r, Err(PoolError::Conflict { .. }));
                            prop_assert!(conflict);
                        }
                        Some(have) => {
                            let change = if want.size == have.size { Change::Unchanged } else { Change::Done };
                            prop_assert_eq!(r.unwrap(), change);
                            *have = want;
                        }
                    }
                }
                Step::Set { volume, property, thick } => {
                    let id = ids[volume];
                    let have = model.get(&id).cloned().unwrap_or_else(|| label(id, 1));
                    let want = Label {
                        properties: SETTINGS[property].parse().unwrap_or(Properties::default()),
                        provisioning: if thick { Provisioning::Thick } else { Provisioning::Thin },
                        ..have.clone()
                    };
                    match (model.get_mut(&id), pool.set(&want, &deadline)) {
                        (None, r) => {
                            let missing = matches!(r, Err(PoolError::NotFound { .. }));
                            prop_assert!(missing);
                        }
                        (Some(entry), r) => {
                            let change = if want == have { Change::Unchanged } else { Change::Done };
                            prop_assert_eq!(r.unwrap(), change);
                            *entry = want;
                        }
                    }
                }
                Step::Relabel { volume, hosts } => {
                    let id = ids[volume];
                    let hosts: Vec<LabelHost> = (0..hosts).map(host).collect();
                    match model.get_mut(&id) {
                        None => {
                            let r = pool.relabel(&label(id, 1), &deadline);
                            let missing = matches!(r, Err(PoolError::NotFound { .. }));
                            prop_assert!(missing);
                        }
                        Some(have) => {
                            have.hosts = hosts;
                            pool.relabel(have, &deadline).unwrap();
                        }
                    }
                }
                Step::Destroy { volume } => {
                    let id = ids[volume];
                    let wanted = if model.remove(&id).is_some() { Change::Done } else { Change::Unchanged };
                    prop_assert_eq!(pool.destroy(id, &deadline).unwrap(), wanted);
                }
                Step::Reopen => pool = orlopd::pool::open(&spec, &env, &deadline).unwrap(),
            }
            let volumes: Vec<Stored> =
                model.values().map(|l| Stored::of(l.clone(), l.size)).collect();
            let wanted = Listing { volumes, ..Listing::default() };
            prop_assert_eq!(pool.list(&deadline).unwrap(), wanted);
        }
    }
}
