//! Calls at random, each made once or several times: what is asked for again is done once, and in the end there is what was
//! asked for and nothing else.

use std::collections::BTreeMap;
use std::fmt::Debug;

use orlop_csi::csi::*;
use tonic::{Code, Status};

use crate::rig::*;

#[derive(Debug, Clone, PartialEq)]
struct Known {
    id: String,
    size: i64,
    node: Option<u8>,
}

/// What the sidecars know to be there.
#[derive(Debug, Default)]
struct Model {
    volumes: BTreeMap<String, Known>,
    /// By name: its id, and its volume's.
    snapshots: BTreeMap<String, (String, String)>,
}

/// The same answer as before, or the same refusal.
fn same<T: PartialEq + Debug>(what: &str, first: &Result<T, Status>, again: &Result<T, Status>) {
    match (first, again) {
        (Ok(a), Ok(b)) => assert_eq!(a, b, "{what}"),
        (Err(a), Err(b)) => assert_eq!(a.code(), b.code(), "{what}"),
        other => panic!("{what}: {other:?}"),
    }
}

fn code<T>(result: &Result<T, Status>) -> Code {
    result.as_ref().err().map_or(Code::Ok, Status::code)
}

#[tokio::test]
async fn what_is_asked_for_several_times_is_done_once() {
    // Another one each day; told, so that it can be tried again.
    let days = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() / 86_400;
    for seed in [1, days] {
        println!("seed {seed}");
        let (mut rig, mut model) = (Rig::new().await, Model::default());
        let mut random = fastrand::Rng::with_seed(seed);
        for step in 0..200 {
            let times = 1 + random.usize(0..3);
            one(&mut rig, &mut model, &mut random, times, step).await;
        }
        let listed = rig.controller.list_volumes(ListVolumesRequest::default()).await.unwrap().into_inner();
        let mut is: Vec<_> = (listed.entries.into_iter())
            .map(|e| (e.volume.unwrap(), e.status.unwrap().published_node_ids))
            .map(|(v, nodes)| (v.volume_id, v.capacity_bytes, nodes))
            .collect();
        let mut should: Vec<_> = (model.volumes.values())
            .map(|v| (v.id.clone(), v.size, v.node.map(node).into_iter().collect::<Vec<_>>()))
            .collect();
        is.sort();
        should.sort();
        assert_eq!(is, should, "seed {seed}");
        let listed =
            rig.controller.list_snapshots(ListSnapshotsRequest::default()).await.unwrap().into_inner();
        let mut is: Vec<_> = listed.entries.into_iter().map(|e| e.snapshot.unwrap().snapshot_id).collect();
        let mut should: Vec<_> = model.snapshots.values().map(|(id, _)| id.clone()).collect();
        is.sort();
        should.sort();
        assert_eq!(is, should, "seed {seed}");
    }
}

async fn one(rig: &mut Rig, model: &mut Model, random: &mut fastrand::Rng, times: usize, step: usize) {
    let name = format!("v{}", random.u8(0..4));
    let known = model.volumes.get(&name).cloned();
    let id = known.as_ref().map_or_else(|| UNKNOWN.to_string(), |k| k.id.clone());
    let (size, on) = (i64::from(random.u8(1..4)) * GIB, random.u8(1..4));
    let shot = format!("s{}", random.u8(0..3));
    match random.u8(0..7) {
        0 | 1 => {
            let ask = CreateVolumeRequest { capacity_range: sized(size, size), ..claim(&name) };
            let first = rig.create(ask.clone()).await;
            for _ in 1..times {
                same(&format!("{step}: create {name}"), &first, &rig.create(ask.clone()).await);
            }
            let want =
                if known.as_ref().is_some_and(|k| k.size != size) { Code::AlreadyExists } else { Code::Ok };
            assert_eq!(code(&first), want, "{step}: create {name} with {size}, {known:?}");
            if let Ok(made) = first {
                assert!(known.is_none_or(|k| k.id == made.volume_id));
                let node = model.volumes.get(&name).and_then(|k| k.node);
                model.volumes.insert(name, Known { id: made.volume_id, size, node });
            }
        }
        2 => {
            let first = rig.delete(&id).await;
            for _ in 1..times {
                same(&format!("{step}: delete {name}"), &first, &rig.delete(&id).await);
            }
            let is_published = known.is_some_and(|k| k.node.is_some());
            assert_eq!(
                code(&first),
                if is_published { Code::FailedPrecondition } else { Code::Ok },
                "{step}"
            );
            if first.is_ok() {
                model.volumes.remove(&name);
            }
        }
        3 => {
            let first = rig.publish(&id, &node(on)).await;
            for _ in 1..times {
                same(&format!("{step}: publish {name}"), &first, &rig.publish(&id, &node(on)).await);
            }
            let want = match known {
                None => Code::NotFound,
                Some(Known { node: Some(other), .. }) if other != on => Code::FailedPrecondition,
                Some(_) => Code::Ok,
            };
            assert_eq!(code(&first), want, "{step}: publish {name} at {on}");
            if first.is_ok() {
                model.volumes.entry(name).and_modify(|k| k.node = Some(on));
            }
        }
        4 => {
            for _ in 0..times {
                rig.unpublish(&id, &node(on)).await.unwrap();
            }
            model.volumes.entry(name).and_modify(|k| k.node = k.node.filter(|n| *n != on));
        }
        5 => {
            let first = rig.snap(&id, &shot).await;
            for _ in 1..times {
                same(&format!("{step}: snapshot {shot}"), &first, &rig.snap(&id, &shot).await);
            }
            let want = match (known, model.snapshots.get(&shot)) {
                (None, _) => Code::NotFound,
                (Some(k), Some((_, of))) if *of != k.id => Code::AlreadyExists,
                (Some(_), _) => Code::Ok,
            };
            assert_eq!(code(&first), want, "{step}: snapshot {shot} of {name}");
            if let Ok(taken) = first {
                model.snapshots.insert(shot, (taken.snapshot_id, id));
            }
        }
        _ => {
            let taken = model.snapshots.remove(&shot).map_or_else(|| UNKNOWN.to_string(), |(id, _)| id);
            for _ in 0..times {
                rig.drop_snapshot(&taken).await.unwrap();
            }
        }
    }
}
