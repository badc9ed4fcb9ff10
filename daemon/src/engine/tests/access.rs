//! Who may use a volume, whatever somebody does to the kernel, and how one host gets it alone.

use std::collections::BTreeSet;

use super::*;

fn alone(id: VolumeId, host: &str) -> Action {
    attach_as(id, host, Attach { alone: true, read_only: false })
}

#[tokio::test]
async fn an_exclusive_attach_cuts_all_others_off_first() {
    let mut rig = Rig::new().await;
    let id = rig.create("data").await;
    for host in ["one", "two", "three"] {
        rig.host(host).await;
        rig.ok(attach(id, host)).await;
    }
    let four = rig.host("four").await;
    let Outcome::Attachment { changed: true, .. } = rig.ok(alone(id, "four")).await else { panic!() };
    assert_eq!(rig.target.hosts(id), BTreeSet::from([four.clone()]));
    assert_eq!(rig.engine().view().volume(id).unwrap().hosts.len(), 1);
    // Again it finds nothing to do, and one that comes later comes beside it.
    let changes = rig.target.changes();
    let Outcome::Attachment { changed: false, .. } = rig.ok(alone(id, "four")).await else { panic!() };
    assert_eq!(rig.target.changes(), changes);
    rig.ok(attach(id, "one")).await;
    let Outcome::Attachment { changed: false, .. } = rig.ok(alone(id, "four")).await else { panic!() };
    rig.restart().await;
    assert_eq!(rig.target.hosts(id), BTreeSet::from([four]));
}

#[tokio::test]
async fn an_exclusive_attach_that_can_not_be_cuts_nobody_off() {
    let rig = Rig::new().await;
    let id = rig.create("data").await;
    let one = rig.host("one").await;
    rig.ok(attach(id, "one")).await;
    assert_eq!(rig.fails(alone(id, "nobody")).await.kind, ErrorKind::NotFound);
    assert_eq!(rig.target.hosts(id), BTreeSet::from([one]));
    // Where others can't be cut off it is not attached either.
    rig.host("two").await;
    *rig.target.fail.lock() = true;
    rig.fails(alone(id, "two")).await;
    *rig.target.fail.lock() = false;
    rig.settled().await;
    assert!(!rig.engine().view().is_attached(id, &"two".parse().unwrap()));
    assert!(rig.target.hosts(id).is_empty(), "who was to go is gone: that was durable");
}

#[tokio::test]
async fn what_somebody_did_to_the_kernel_is_put_back_and_told() {
    let rig = Rig::new().await;
    let (id, other, idle) = (rig.create("data").await, rig.create("log").await, rig.create("idle").await);
    let (one, stranger) = (rig.host("one").await, rig.host("stranger").await);
    rig.ok(attach(id, "one")).await;
    rig.ok(attach(other, "one")).await;
    let core = rig.engine().core.clone();
    let changes = rig.target.changes();
    core.look_for_drift_once().await;
    assert_eq!(rig.target.changes(), changes, "nothing was to be done");

    rig.target.let_in(id, &stranger);
    let taken = rig.target.take(other).unwrap();
    rig.target.put(idle, taken);
    let before = rig.engine().events().newest();
    core.look_for_drift_once().await;
    assert_eq!(rig.target.hosts(id), BTreeSet::from([one.clone()]));
    assert_eq!(rig.target.hosts(other), BTreeSet::from([one]));
    assert!(rig.target.hosts(idle).is_empty());
    let events = rig.engine().events().after(before, 100);
    let told: BTreeSet<_> =
        events.iter().filter(|e| e.kind == EventKind::Drift).map(|e| e.volume.unwrap()).collect();
    assert_eq!(told, BTreeSet::from([id, other, idle]));

    // One that can't be put back says so, and is tried again.
    rig.target.let_in(id, &stranger);
    *rig.target.fail.lock() = true;
    core.look_for_drift_once().await;
    assert_eq!(rig.engine().view().volume(id).unwrap().state, VolumeState::Stuck);
    *rig.target.fail.lock() = false;
}
