//! Pools' disks: who is told of one that is lost, and what comes of changing them.

use super::*;
use crate::engine::locks::{Key, Mode};
use crate::journal::{Batch, Table};
use crate::model::{Grant, HostRecord, LabelHost};
use crate::model::{PoolChange, PoolMedium, PoolSpec};

const SUBJECT: &str = "pool/tank/health";

fn tank() -> PoolName {
    "tank".parse().unwrap()
}

fn health(state: PoolHealthState, reason: Option<&str>) -> PoolHealth {
    PoolHealth { state, reason: reason.map(str::to_string), errors: 0, scan: None, disks: Vec::new() }
}

impl Rig {
    fn health_alarm(&self) -> Option<String> {
        let alarms = self.engine().view().alarms();
        alarms.into_iter().find(|a| a.subject == SUBJECT).map(|a| a.detail)
    }

    async fn becomes(&self, now: PoolHealth) {
        self.platter.set_health(now.clone());
        self.engine().disks_changed(&[]);
        self.until("the pool's health", |rig| {
            rig.engine().view().pool(&who(), &tank()).unwrap().health.as_ref() == Some(&now)
        })
        .await;
    }

    /// As a pool that stands on disks: the fake one does not look at what it is made of.
    pub(super) async fn on_disks(&self, disks: &[&str]) {
        let disks = disks.iter().map(ToString::to_string).collect();
        let medium = PoolMedium::Zfs { disks, layout: PoolLayout::Mirror, spares: Vec::new(), guid: None };
        self.engine().core.view.write().set_spec(PoolSpec { v: 1, name: tank(), medium });
    }

    fn media(&self) -> Vec<String> {
        let view = self.engine().view();
        view.pool_entry(&tank()).unwrap().spec.media().into_iter().map(str::to_string).collect()
    }
}

#[tokio::test]
async fn a_lost_disk_is_an_alarm_and_an_event_until_it_is_replaced() {
    let rig = Rig::new().await;
    let start = rig.engine().events().newest();
    rig.becomes(health(PoolHealthState::Ok, None)).await;
    assert_eq!(rig.health_alarm(), None);
    rig.becomes(health(PoolHealthState::Degraded, Some("disk x is removed"))).await;
    assert_eq!(rig.health_alarm().unwrap(), "it is degraded: disk x is removed");
    // It goes on.
    rig.create("a").await;
    rig.becomes(health(PoolHealthState::Failed, Some("disks x, y are removed"))).await;
    assert!(rig.health_alarm().unwrap().starts_with("it has failed"));
    let scan = PoolScan {
        kind: PoolScanKind::Rebuild,
        state: PoolScanState::Running,
        percent: Some(1),
        errors: 0,
        ended: None,
    };
    let rebuilt = |percent| PoolHealth {
        scan: Some(PoolScan { percent: Some(percent), ..scan.clone() }),
        ..health(PoolHealthState::Degraded, Some("disk x is removed"))
    };
    // How far it is, is no news.
    for percent in [1, 50, 99] {
        rig.becomes(rebuilt(percent)).await;
    }
    rig.becomes(health(PoolHealthState::Ok, None)).await;
    assert_eq!(rig.health_alarm(), None);
    let told = rig.engine().events().after(start, 100);
    let told: Vec<_> = told.into_iter().filter(|e| e.kind == EventKind::PoolHealth).collect();
    let texts: Vec<_> = told.iter().filter_map(|e| e.detail.as_deref()).collect();
    assert_eq!(
        texts,
        [
            "it is degraded: disk x is removed",
            "it has failed: disks x, y are removed",
            "it is degraded: disk x is removed; a rebuild is under way",
            "all its disks are well",
        ]
    );
}

#[tokio::test]
async fn what_comes_and_goes_is_an_event() {
    let rig = Rig::new().await;
    let start = rig.engine().events().newest();
    let event = |name: &str, added| DiskEvent { name: name.into(), added };
    rig.engine().disks_changed(&[event("vdb", false), event("vdc", true)]);
    let told = rig.engine().events().after(start, 100);
    let told: Vec<_> = told.iter().map(|e| (e.kind, e.detail.as_deref().unwrap_or_default())).collect();
    assert_eq!(told, [(EventKind::DiskRemoved, "vdb"), (EventKind::DiskAdded, "vdc")]);
}

#[tokio::test]
async fn a_missing_pool_is_looked_for_when_a_disk_comes() {
    let mut rig = Rig::new().await;
    rig.platter.set_away(true);
    rig.restart().await;
    let state = |rig: &Rig| rig.engine().view().pool(&who(), &tank()).unwrap().state;
    assert_eq!(state(&rig), PoolState::Missing);
    rig.platter.set_away(false);
    // Long before it would be tried again by itself.
    let begin = std::time::Instant::now();
    while state(&rig) == PoolState::Missing && begin.elapsed() < Duration::from_millis(1500) {
        rig.engine().disks_changed(&[]);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(state(&rig), PoolState::Online);
}

fn import() -> Action {
    let plain = PoolCreate::new(tank(), PoolKind::Sim);
    let ask = PoolCreate { directory: Some("/fake".into()), import: true, ..plain };
    Action::ImportPool(ask.try_into().unwrap(), false)
}

#[tokio::test]
async fn a_pool_goes_and_comes_back_with_its_volumes_and_without_its_hosts() {
    let mut rig = Rig::new().await;
    let (a, b) = (rig.create("a").await, rig.create("b").await);
    let one = rig.host("one").await;
    rig.ok(attach(a, "one")).await;
    let refused = rig.fails(Action::ExportPool(tank())).await;
    assert_eq!((refused.kind, refused.dependants), (ErrorKind::Precondition, vec!["a".to_string()]));
    rig.engine().core.write_labels().await;
    rig.ok(detach(a, "one")).await;

    // One that can't be let go of is what it was.
    rig.platter.faults(|f| f.fail_change = true);
    assert_eq!(rig.fails(Action::ExportPool(tank())).await.kind, ErrorKind::Internal);
    rig.platter.faults(|f| f.fail_change = false);
    rig.settled().await;
    assert!(rig.engine().view().volume(a).is_some());

    let start = rig.engine().events().newest();
    rig.ok(Action::ExportPool(tank())).await;
    let view = || rig.engine().view().counts();
    assert_eq!((view().0, view().1), (0, 0));
    assert_eq!(rig.fails(Action::ExportPool(tank())).await.kind, ErrorKind::NotFound);
    assert_eq!(rig.fails(Action::CreateVolume(ask("c"))).await.kind, ErrorKind::NotFound);
    let told = rig.engine().events().after(start, 10);
    assert!(told.iter().any(|e| e.kind == EventKind::PoolDeleted), "{told:?}");
    rig.restart().await;
    assert_eq!(rig.engine().view().counts().0, 0);

    // On another appliance its hosts mean nothing, even if their names do.
    let mut labels = rig.platter.labels();
    labels[0].hosts = vec![LabelHost::of(
        &"one".parse().unwrap(),
        &HostRecord::host(HostPut::nvme(one)),
        Grant::default(),
        Protocol::Nvme,
    )];
    rig.platter.leave_volume(labels.remove(0));
    rig.ok(import()).await;
    assert_eq!(rig.engine().view().counts().1, 2);
    for id in [a, b] {
        assert!(rig.engine().view().volume(id).unwrap().hosts.is_empty());
    }
    assert!(rig.platter.labels().iter().all(|l| l.hosts.is_empty()));
    assert!(matches!(rig.ok(import()).await, Outcome::Pool { changed: false, .. }));
    rig.ok(attach(b, "one")).await;

    // An export that was begun when the daemon died: it stays.
    rig.ok(detach(b, "one")).await;
    let mut batch = Batch::default();
    let intent = super::super::intent::Intent::ExportPool { name: tank() };
    batch.put(Table::Intents, &format!("{:020}", 7_000_000), &intent);
    rig.engine().core.journal.commit(batch).await.unwrap();
    rig.restart().await;
    rig.settled().await;
    assert_eq!(rig.engine().view().counts().1, 2);

    // What is not there can't be imported, and nothing is left of that.
    rig.ok(Action::ExportPool(tank())).await;
    rig.platter.set_away(true);
    assert_eq!(rig.fails(import()).await.kind, ErrorKind::NotFound);
    assert_eq!(rig.engine().view().counts().0, 0);
    assert!(rig.engine().core.unsettled.lock().is_empty());
}

/// A pool was lost with a host attached, and forgotten. Where it was in between nobody knows: who brings it says anew who is
/// let in.
#[tokio::test]
async fn a_forgotten_pool_comes_back_without_its_hosts() {
    for killed in [false, true] {
        let mut rig = Rig::new().await;
        let id = rig.create("a").await;
        rig.host("one").await;
        rig.ok(attach(id, "one")).await;
        rig.engine().core.write_labels().await;
        rig.platter.set_away(true);
        rig.target.power_cycle();
        rig.restart().await;
        let orphans = rig.engine().orphans(LONG).await.unwrap().items;
        let record = orphans.iter().find(|o| o.pool == Some(tank())).unwrap();
        rig.ok(Action::RemoveOrphan(record.id.clone())).await;
        assert_eq!(rig.engine().view().counts(), (0, 0, 1, 1));
        rig.platter.set_away(false);
        if killed {
            let plain = PoolCreate::new(tank(), PoolKind::Sim);
            let spec = PoolCreate { directory: Some("/fake".into()), ..plain }.try_into().unwrap();
            let mut batch = Batch::default();
            let intent = super::super::intent::Intent::CreatePool { spec };
            batch.put(Table::Intents, &format!("{:020}", 7_000_000), &intent);
            rig.engine().core.journal.commit(batch).await.unwrap();
            rig.restart().await;
            rig.settled().await;
        } else {
            rig.ok(import()).await;
        }
        for _ in 0..2 {
            assert_eq!(rig.engine().view().counts(), (1, 1, 1, 0), "killed: {killed}");
            assert_eq!(rig.target.exports(), 0);
            rig.restart().await;
        }
    }
}

#[tokio::test]
async fn another_zpool_of_the_same_name_is_a_conflict() {
    let rig = Rig::new().await;
    let spec = |guid| {
        let medium =
            PoolMedium::Zfs { disks: Vec::new(), layout: PoolLayout::Stripe, spares: Vec::new(), guid };
        PoolSpec { v: 1, name: tank(), medium }
    };
    rig.engine().core.view.write().set_spec(spec(Some(u64::MAX)));
    for guid in [None, Some(u64::MAX)] {
        assert!(matches!(
            rig.ok(Action::ImportPool(spec(guid), false)).await,
            Outcome::Pool { changed: false, .. }
        ));
    }
    let p = rig.fails(Action::ImportPool(spec(Some(5)), false)).await;
    assert_eq!((p.kind, p.field.as_deref()), (ErrorKind::Conflict, Some("guid")));
    assert_eq!((p.have.as_deref(), p.want.as_deref()), (Some("18446744073709551615"), Some("5")));
}

#[tokio::test]
async fn changes_of_disks_are_remembered() {
    let mut rig = Rig::new().await;
    rig.on_disks(&["a", "b"]).await;
    let disks = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    let expand = PoolChange::Expand { disks: disks(&["c", "d"]) };
    let replace = PoolChange::Replace { disk: "b".into(), with: "e".into() };
    for change in [expand.clone(), replace.clone(), PoolChange::Scrub, PoolChange::StopScrub] {
        rig.ok(Action::ChangePool(tank(), change)).await;
    }
    assert_eq!(rig.media(), ["a", "e", "c", "d"]);
    // Again, the same.
    rig.ok(Action::ChangePool(tank(), expand.clone())).await;
    assert_eq!(rig.media(), ["a", "e", "c", "d"]);
    assert_eq!(rig.platter.changes().len(), 4);
    rig.restart().await;
    assert_eq!(rig.media(), ["a", "e", "c", "d"]);

    // One that fails is forgotten, and nothing is stuck.
    rig.platter.faults(|f| f.fail_change = true);
    let more = PoolChange::Expand { disks: disks(&["f", "g"]) };
    assert_eq!(rig.fails(Action::ChangePool(tank(), more.clone())).await.kind, ErrorKind::Internal);
    assert_eq!(rig.media(), ["a", "e", "c", "d"]);
    assert!(rig.engine().core.unsettled.lock().is_empty());
    rig.platter.faults(|f| f.fail_change = false);
    let nowhere = Action::ChangePool("other".parse().unwrap(), PoolChange::Scrub);
    assert_eq!(rig.fails(nowhere).await.kind, ErrorKind::NotFound);

    // One that was begun when the daemon died is carried out: nobody was told that it failed.
    let mut batch = Batch::default();
    let intent = super::super::intent::Intent::ChangePool { name: tank(), change: more };
    batch.put(Table::Intents, &format!("{:020}", 7_000_000), &intent);
    rig.engine().core.journal.commit(batch).await.unwrap();
    rig.restart().await;
    rig.settled().await;
    assert_eq!(rig.media(), ["a", "e", "c", "d", "f", "g"]);
    rig.restart().await;
    assert_eq!(rig.media(), ["a", "e", "c", "d", "f", "g"]);
}

fn pool_disk(name: &str, part: &str, state: &str) -> PoolDisk {
    PoolDisk {
        name: name.into(),
        was: None,
        part: Some(part.into()),
        state: state.into(),
        read_errors: 0,
        write_errors: 0,
        checksum_errors: 0,
    }
}

#[tokio::test]
async fn a_pool_that_can_not_say_how_full_it_is_still_says_why() {
    let rig = Rig::new().await;
    rig.becomes(health(PoolHealthState::Ok, None)).await;
    rig.platter.faults(|f| f.hang = ["capacity".to_string()].into());
    rig.engine().disks_changed(&[]);
    rig.until("the question", |rig| rig.engine().core.reading.lock().contains(&tank())).await;
    rig.becomes(health(PoolHealthState::Failed, Some("its disk is gone"))).await;
    assert!(rig.health_alarm().unwrap().contains("its disk is gone"));
    assert!(rig.engine().core.reading.lock().contains(&tank()), "it hangs");
    rig.platter.faults(|f| f.hang.clear());
    rig.becomes(health(PoolHealthState::Ok, None)).await;
    assert_eq!(rig.health_alarm(), None);
}

#[tokio::test]
async fn spares_are_minded_where_there_is_a_reason_and_nobody_else_is_at_it() {
    let rig = Rig::new().await;
    let start = rig.engine().events().newest();
    let with = |state, reason, one: &str, spare: &str| PoolHealth {
        disks: vec![pool_disk("a", "mirror-0", one), pool_disk("s", "spares", spare)],
        ..health(state, reason)
    };
    rig.becomes(with(PoolHealthState::Ok, None, "online", "avail")).await;
    let nothing = with(PoolHealthState::Degraded, Some("no spare left"), "removed", "unavail");
    rig.becomes(nothing).await;
    assert_eq!(rig.platter.spares_minded(), 0);

    // While an operator changes its disks it is not the daemon's turn.
    let lost = with(PoolHealthState::Degraded, Some("disk a is removed"), "removed", "avail");
    let held = vec![(Key::Disks(tank()), Mode::Exclusive)];
    let guards = rig.engine().core.locks.acquire(held, Instant::now() + LONG).await.unwrap();
    rig.becomes(lost).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(rig.platter.spares_minded(), 0);
    drop(guards);

    let taken = with(PoolHealthState::Degraded, Some("its place is taken by spare s"), "removed", "inuse");
    rig.platter.move_spare(taken.clone());
    rig.engine().disks_changed(&[]);
    rig.until("the spare", |rig| {
        rig.engine().view().pool(&who(), &tank()).unwrap().health.as_ref() == Some(&taken)
    })
    .await;
    assert!(rig.health_alarm().unwrap().contains("taken by spare s"));
    // The disk is back: all is well, and the spare steps back all the same.
    let free = with(PoolHealthState::Ok, None, "online", "avail");
    rig.platter.move_spare(free.clone());
    rig.platter.set_health(with(PoolHealthState::Ok, None, "online", "inuse"));
    rig.engine().disks_changed(&[]);
    rig.until("it to step back", |rig| {
        rig.engine().view().pool(&who(), &tank()).unwrap().health.as_ref() == Some(&free)
    })
    .await;
    assert_eq!(rig.health_alarm(), None);
    let told = rig.engine().events().after(start, 100);
    let told: Vec<_> =
        told.into_iter().filter(|e| e.kind == EventKind::PoolHealth).filter_map(|e| e.detail).collect();
    assert!(told.iter().any(|t| t.contains("taken by spare s")), "{told:?}");
}
