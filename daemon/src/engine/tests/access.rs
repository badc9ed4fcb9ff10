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
async fn a_host_that_may_only_read_has_a_subsystem_of_its_own() {
    let mut rig = Rig::new().await;
    let id = rig.create("data").await;
    rig.host("writer").await;
    rig.host("reader").await;
    rig.ok(attach(id, "writer")).await;
    let read_only = Attach { alone: false, read_only: true };
    let Outcome::Attachment { attachment, .. } = rig.ok(attach_as(id, "reader", read_only)).await else {
        panic!()
    };
    let nqn = attachment.nvme().unwrap().nqn.to_string();
    assert!(attachment.read_only && nqn.ends_with(&format!("{id}:ro")), "{nqn}");
    let rights = rig.target.export(id).unwrap().nqns().map(|(_, r)| r.read_only).collect::<Vec<_>>();
    assert_eq!(rights, [true, false]);
    // What it may do is changed by a detach alone, and a restart knows it.
    assert_eq!(rig.fails(attach(id, "reader")).await.kind, ErrorKind::Conflict);
    rig.restart().await;
    let rights = rig.target.export(id).unwrap().nqns().map(|(_, r)| r.read_only).collect::<Vec<_>>();
    assert_eq!(rights, [true, false]);
    // A target that can't keep it from writing does not let it in.
    rig.ok(detach(id, "reader")).await;
    *rig.target.no_readers.lock() = true;
    assert_eq!(rig.fails(attach_as(id, "reader", read_only)).await.kind, ErrorKind::Unsupported);
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

    // That nobody reaches a portal any more is no change of a volume, and is told; and so is its end.
    let alarm = |r: &Rig| r.engine().view().alarms().iter().any(|a| a.subject == "portals/nvme");
    for unreached in [Some("192.0.2.1:4420".to_string()), None] {
        let told = unreached.is_some();
        *rig.target.unreached.lock() = unreached;
        core.look_for_drift_once().await;
        assert_eq!(alarm(&rig), told);
    }

    // One that can't be put back says so, and is tried again.
    rig.target.let_in(id, &stranger);
    *rig.target.fail.lock() = true;
    core.look_for_drift_once().await;
    rig.until("it to be stuck", |r| r.engine().view().volume(id).unwrap().state == VolumeState::Stuck).await;
    *rig.target.fail.lock() = false;
}
