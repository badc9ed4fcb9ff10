//! Orphans: listed, removed, adopted; and crashes in between.

use super::*;
use crate::engine::Error;
use crate::engine::intent::Intent;
use crate::model::{Label, SnapshotKey};

async fn list(rig: &Rig) -> Orphans {
    rig.engine().orphans(LONG).await.unwrap()
}

async fn one(rig: &Rig, name: &str) -> Orphan {
    let all = list(rig).await;
    all.items.into_iter().find(|o| o.name == name).unwrap_or_else(|| panic!("no {name}"))
}

fn adopt(id: &OrphanId, name: &str) -> Action {
    Action::AdoptOrphan(id.clone(), OrphanAdopt { name: name.parse().unwrap() })
}

fn remove(id: &OrphanId) -> Action {
    Action::RemoveOrphan(id.clone())
}

async fn adopted(rig: &Rig, id: &OrphanId, name: &str) -> (Volume, bool) {
    match rig.ok(adopt(id, name)).await {
        Outcome::Volume { volume, changed } => (volume, changed),
        other => panic!("{other:?}"),
    }
}

fn label(name: &str) -> Label {
    Label::new(VolumeId::mint(), Tenant::default(), &ask(name))
}

const MIB: u64 = 1 << 20;

#[tokio::test]
async fn a_quiet_appliance_has_no_orphans_and_work_under_way_is_none() {
    let rig = Rig::new().await;
    let id = rig.create("data").await;
    assert_eq!(list(&rig).await, Orphans::default());
    for (name, action) in [("slow", Action::CreateVolume(ask("slow"))), ("data", delete(id))] {
        rig.platter.faults(|f| f.hang.extend([name.to_string()]));
        let engine = rig.engine().clone();
        let work = tokio::spawn(async move { engine.submit(who(), action, LONG).await });
        for _ in 0..20 {
            assert_eq!(list(&rig).await, Orphans::default());
        }
        rig.platter.faults(|f| f.hang.clear());
        while !work.is_finished() {
            assert_eq!(list(&rig).await, Orphans::default());
        }
        work.await.unwrap().unwrap();
    }
    assert_eq!(list(&rig).await, Orphans::default());
    assert_eq!(rig.engine().core.locks.len(), 0);
}

#[tokio::test]
async fn ids_stay_and_pools_that_are_away_are_told() {
    let mut rig = Rig::new().await;
    rig.platter.leave_stray("vm", MIB);
    let found = one(&rig, "vm").await;
    assert_eq!((found.kind, found.size), (OrphanKind::Foreign, Some(ByteSize::MIB)));
    assert_eq!(found.actions, [OrphanAction::Adopt, OrphanAction::Ignore]);
    assert_eq!(one(&rig, "vm").await, found);
    rig.restart().await;
    assert_eq!(one(&rig, "vm").await, found);
    assert!(rig.engine().view().alarms().iter().any(|a| a.subject == "pool/tank"));

    // It can't be told whether it is there, or it is not there: both hide nothing but itself.
    rig.platter.set_away(true);
    rig.restart().await;
    let all = list(&rig).await;
    assert_eq!((all.items.len(), all.unanswered.len()), (1, 0));
    assert_eq!((all.items[0].kind, &all.items[0].pool), (OrphanKind::Record, &Some("tank".parse().unwrap())));
    assert_eq!(rig.fails(adopt(&found.id, "x")).await.kind, ErrorKind::NotFound);
    assert_eq!(rig.fails(adopt(&all.items[0].id, "x")).await.kind, ErrorKind::Precondition);
    rig.platter.faults(|f| f.fail_open = true);
    let all = list(&rig).await;
    assert_eq!((all.items.len(), all.unanswered.len()), (0, 1));
    assert_eq!(rig.fails(adopt(&found.id, "x")).await.kind, ErrorKind::Unavailable);
}

#[tokio::test]
async fn what_others_made_is_never_removed() {
    let rig = Rig::new().await;
    rig.platter.leave_stray("vm", MIB);
    let found = one(&rig, "vm").await;
    assert_eq!(rig.fails(remove(&found.id)).await.kind, ErrorKind::Precondition);
    let none = OrphanId::new(7, Some(&"tank".parse().unwrap()));
    assert_eq!(rig.fails(remove(&none)).await.kind, ErrorKind::NotFound);
    assert_eq!(rig.fails(remove(&OrphanId::new(7, None))).await.kind, ErrorKind::NotFound);
    assert_eq!(rig.platter.strays(), ["vm"]);
}

#[tokio::test]
async fn leftovers_are_removed_and_volumes_are_not() {
    let mut rig = Rig::new().await;
    let id = VolumeId::mint();
    let key = SnapshotKey { volume: id, id: SnapshotId::mint() };
    rig.platter.leave_partial(id);
    rig.platter.leave_partial_snapshot(key);
    rig.platter.faults(|f| f.fail_destroy = true);
    rig.restart().await;
    let found = one(&rig, &id.to_string()).await;
    assert_eq!(found.kind, OrphanKind::Leftover);
    assert_eq!(rig.fails(remove(&found.id)).await.kind, ErrorKind::Internal);
    rig.platter.faults(|f| f.fail_destroy = false);
    for name in [id.to_string(), key.to_string()] {
        rig.ok(remove(&one(&rig, &name).await.id)).await;
    }
    assert_eq!((rig.platter.backings(), rig.platter.snapshots()), (0, 0));
    assert!(rig.engine().view().alarms().is_empty(), "{:?}", rig.engine().view().alarms());
    assert_eq!(rig.fails(remove(&found.id)).await.kind, ErrorKind::NotFound);

    let stranger = label("late");
    rig.platter.leave_volume(stranger.clone());
    let found = one(&rig, &stranger.id.to_string()).await;
    assert_eq!(found.kind, OrphanKind::Volume);
    assert_eq!(rig.fails(remove(&found.id)).await.kind, ErrorKind::Precondition);
    assert_eq!(rig.platter.backings(), 1);
}

#[tokio::test]
async fn what_failed_and_is_being_put_right_is_not_for_others_to_remove() {
    let rig = Rig::new().await;
    rig.platter.faults(|f| (f.fail_create, f.fail_destroy) = (true, true));
    rig.fails(Action::CreateVolume(ask("data"))).await;
    let all = list(&rig).await.items;
    assert_eq!((all.len(), all[0].kind), (1, OrphanKind::Leftover));
    assert_eq!(all[0].actions, [OrphanAction::Ignore]);
    assert!(all[0].reason.contains("create_volume"), "{}", all[0].reason);
    assert_eq!(rig.fails(remove(&all[0].id)).await.kind, ErrorKind::Precondition);
    rig.platter.faults(|f| (f.fail_create, f.fail_destroy) = (false, false));
    rig.settled().await;
    assert_eq!(list(&rig).await, Orphans::default());
}

#[tokio::test]
async fn records_without_a_backing_are_removed() {
    let mut rig = Rig::new().await;
    let id = rig.create("data").await;
    rig.host("one").await;
    rig.ok(attach(id, "one")).await;
    rig.platter.power_cycle();
    rig.target.power_cycle();
    rig.platter.lose(id);
    // While its pool is away it may be there.
    rig.platter.set_away(true);
    rig.restart().await;
    let all = list(&rig).await.items;
    let attachment = all.iter().find(|o| o.pool.is_none()).unwrap();
    assert_eq!(attachment.actions, [OrphanAction::Ignore]);
    assert_eq!(rig.fails(remove(&attachment.id)).await.kind, ErrorKind::Precondition);
    rig.platter.set_away(false);
    rig.restart().await;
    assert_eq!(one(&rig, &attachment.name).await.id, attachment.id);
    assert!(!rig.engine().view().alarms().is_empty());
    rig.ok(remove(&attachment.id)).await;
    assert_eq!(list(&rig).await, Orphans::default());
    assert!(rig.engine().view().alarms().is_empty(), "{:?}", rig.engine().view().alarms());

    rig.platter.set_away(true);
    rig.restart().await;
    let pool = list(&rig).await.items.remove(0);
    rig.platter.set_away(false);
    assert_eq!(rig.fails(remove(&pool.id)).await.kind, ErrorKind::Unavailable);
    rig.platter.set_away(true);
    rig.restart().await;
    rig.ok(remove(&pool.id)).await;
    rig.restart().await;
    assert_eq!(rig.engine().view().counts(), (0, 0, 1, 0));
    assert_eq!(list(&rig).await, Orphans::default());
}

#[tokio::test]
async fn a_stray_becomes_a_volume_once() {
    let mut rig = Rig::new().await;
    rig.platter.leave_stray("vm", 3 * MIB);
    rig.platter.leave_stray("odd", MIB + 1);
    let vm = one(&rig, "vm").await;
    let (volume, changed) = adopted(&rig, &vm.id, "data").await;
    assert_eq!((volume.size, changed, volume.state), (ByteSize(3 * MIB), true, VolumeState::Ready));
    assert_eq!(adopted(&rig, &vm.id, "data").await, (volume.clone(), false));
    assert_eq!(rig.fails(adopt(&vm.id, "other")).await.kind, ErrorKind::NotFound);
    let odd = one(&rig, "odd").await;
    assert_eq!(odd.actions, [OrphanAction::Ignore]);
    assert_eq!(rig.fails(adopt(&odd.id, "odd")).await.kind, ErrorKind::Precondition);
    // Another one of that name is another one.
    rig.platter.leave_stray("vm", MIB);
    let p = rig.fails(adopt(&vm.id, "data")).await;
    assert_eq!((p.kind, p.field.as_deref()), (ErrorKind::Conflict, Some("name")));
    let (second, _) = adopted(&rig, &vm.id, "DATA").await;
    assert_ne!(second.id, volume.id);
    assert_eq!(rig.platter.strays(), ["odd"]);

    rig.restart().await;
    assert_eq!(rig.engine().view().volume(volume.id), Some(volume.clone()));
    assert_eq!(adopted(&rig, &vm.id, "data").await, (volume.clone(), false));
    rig.host("one").await;
    rig.ok(attach(volume.id, "one")).await;
    rig.ok(detach(volume.id, "one")).await;
    rig.ok(delete(volume.id)).await;
    assert_eq!(rig.fails(adopt(&vm.id, "data")).await.kind, ErrorKind::NotFound);
}

#[tokio::test]
async fn one_stray_and_many_who_want_it() {
    let rig = Rig::new().await;
    rig.platter.leave_stray("vm", MIB);
    let vm = one(&rig, "vm").await;
    let tasks: Vec<_> = (0..20)
        .map(|n| {
            let (engine, action) = (rig.engine().clone(), adopt(&vm.id, &format!("v{}", n % 4)));
            tokio::spawn(async move { engine.submit(who(), action, LONG).await })
        })
        .collect();
    let mut ids = std::collections::BTreeSet::new();
    let mut made = 0;
    for t in tasks {
        match t.await.unwrap() {
            Ok(Outcome::Volume { volume, changed }) => {
                ids.insert(volume.id);
                made += u32::from(changed);
            }
            Err(Error::NotFound(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((ids.len(), made, rig.platter.backings()), (1, 1, 1));
    assert_eq!(rig.engine().core.locks.len(), 0);
}

#[tokio::test]
async fn an_adoption_that_fails_changes_nothing() {
    let mut rig = Rig::new().await;
    rig.platter.leave_stray("vm", MIB);
    let vm = one(&rig, "vm").await;
    rig.platter.faults(|f| f.fail_adopt = true);
    assert_eq!(rig.fails(adopt(&vm.id, "data")).await.kind, ErrorKind::Internal);
    assert_eq!((rig.platter.strays(), rig.platter.backings()), (vec!["vm".to_string()], 0));
    rig.platter.faults(|f| (f.fail_adopt, f.short) = (false, true));
    assert_eq!(rig.fails(adopt(&vm.id, "data")).await.kind, ErrorKind::Internal);
    assert_eq!((rig.platter.strays(), rig.platter.backings()), (vec!["vm".to_string()], 0));
    assert_eq!(one(&rig, "vm").await, vm);

    // Nor when putting it back fails at first.
    rig.platter.faults(|f| (f.short, f.fail_adopt, f.fail_destroy) = (false, true, true));
    rig.fails(adopt(&vm.id, "data")).await;
    assert_eq!(rig.fails(adopt(&vm.id, "data")).await.kind, ErrorKind::Busy);
    rig.platter.faults(|f| (f.fail_adopt, f.fail_destroy) = (false, false));
    rig.settled().await;
    assert_eq!(rig.platter.strays(), ["vm"]);
    rig.restart().await;
    assert!(adopted(&rig, &vm.id, "data").await.1);
}

/// What a crash leaves in the journal and in the pool at each stage of an adoption.
#[tokio::test]
async fn a_crash_in_an_adoption_is_settled() {
    for stage in ["intent", "labelled", "acted"] {
        let mut rig = Rig::new().await;
        rig.platter.leave_stray("vm", MIB);
        let vm = one(&rig, "vm").await;
        let label = Label { adopted: Some(vm.id.clone()), ..label("data") };
        let intent = Intent::AdoptVolume {
            pool: "tank".parse().unwrap(),
            stray: Some("vm".into()),
            label: label.clone(),
        };
        rig.engine().core.begin(intent, Default::default(), Default::default()).await.unwrap();
        match stage {
            "labelled" => rig.platter.half_adopt(label.id),
            "acted" => rig.platter.whole_adopt("vm", label.clone()),
            _ => {}
        }
        rig.restart().await;
        rig.settled().await;
        let there = rig.engine().view().volume(label.id);
        if stage == "acted" {
            assert_eq!(there.map(|v| v.name.to_string()), Some("data".into()), "{stage}");
            assert!(rig.platter.strays().is_empty());
        } else {
            assert_eq!(there, None, "{stage}");
            assert_eq!(rig.platter.strays(), ["vm"], "{stage}");
        }
        // The caller, who never heard, asks again.
        let (volume, changed) = adopted(&rig, &vm.id, "data").await;
        assert_eq!((volume.id == label.id, changed), (stage == "acted", stage != "acted"), "{stage}");
        assert_eq!(list(&rig).await, Orphans::default(), "{stage}");
    }
}

#[tokio::test]
async fn a_volume_that_shares_its_name_gets_another() {
    let mut rig = Rig::new().await;
    let first = rig.create("data").await;
    let double = label("data");
    rig.platter.leave_volume(double.clone());
    // Not shown at all, and after a restart by its id alone.
    let found = one(&rig, &double.id.to_string()).await;
    assert!(found.reason.contains("not shown"), "{}", found.reason);
    rig.restart().await;
    let found = one(&rig, &double.id.to_string()).await;
    assert!(found.reason.contains(&first.to_string()), "{}", found.reason);
    assert_eq!((found.kind, list(&rig).await.items.len()), (OrphanKind::Volume, 1));
    assert_eq!(rig.fails(adopt(&found.id, "data")).await.kind, ErrorKind::Conflict);
    let (volume, changed) = adopted(&rig, &found.id, "data-2").await;
    assert_eq!((volume.id, volume.name.as_str(), changed), (double.id, "data-2", true));
    assert_eq!(adopted(&rig, &found.id, "data-2").await, (volume.clone(), false));
    rig.restart().await;
    let by_name = |name: &str| rig.engine().view().resolve(&who(), &name.parse().unwrap());
    assert_eq!((by_name("data-2"), by_name("data")), (Some(double.id), Some(first)));
    assert_eq!(list(&rig).await, Orphans::default());
}

#[tokio::test]
async fn a_volume_that_came_later_is_taken_in_and_served() {
    let mut rig = Rig::new().await;
    let id = rig.create("data").await;
    let nqn = rig.host("one").await;
    rig.ok(attach(id, "one")).await;
    rig.engine().core.write_labels().await;
    let label = rig.platter.labels().remove(0);
    rig.platter.power_cycle();
    rig.target.power_cycle();
    rig.platter.lose(id);
    rig.restart().await;
    assert_eq!(rig.target.exports(), 0);
    rig.platter.leave_volume(label);
    let found = one(&rig, &id.to_string()).await;
    let (volume, _) = adopted(&rig, &found.id, "data").await;
    assert_eq!(volume.id, id);
    rig.until("it to be served", |r| r.target.exports() == 1).await;
    assert_eq!(rig.target.hosts(id), [nqn].into());
    assert_eq!(list(&rig).await, Orphans::default());
}
