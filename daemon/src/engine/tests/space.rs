//! Pools that fill up: who is told, what is refused, and what goes on.

use super::snapshots::{drop_shot, from, group, shot};
use super::*;

const SUBJECT: &str = "pool/tank/space";

fn grow(id: VolumeId, mib: u64) -> Action {
    Action::UpdateVolume(by(id), VolumeUpdate::to_size(ByteSize(mib << 20)))
}

fn thick(name: &str, size: ByteSize) -> VolumeCreate {
    VolumeCreate { provisioning: Provisioning::Thick, size, ..ask(name) }
}

impl Rig {
    fn tank(&self) -> Pool {
        self.engine().view().pool(&who(), &"tank".parse().unwrap()).unwrap()
    }

    fn space_alarm(&self) -> Option<Alarm> {
        self.engine().view().alarms().into_iter().find(|a| a.subject == SUBJECT)
    }

    /// Hosts have written: nobody has told the daemon.
    pub(super) async fn fills_to(&self, gib: u64, fill: PoolFill) {
        self.platter.set_used(gib);
        self.engine().core.look_once();
        self.until("the pool's level", |rig| {
            let pool = rig.tank();
            (pool.used, pool.fill) == (ByteSize(gib << 30), fill)
        })
        .await;
    }
}

#[tokio::test]
async fn a_filling_pool_is_an_alarm_and_an_event_until_it_is_not() {
    let rig = Rig::new().await;
    rig.create("a").await;
    let start = rig.engine().events().newest();
    rig.fills_to(79, PoolFill::Ok).await;
    assert!(rig.space_alarm().is_none());
    rig.fills_to(83, PoolFill::Warning).await;
    let alarm = rig.space_alarm().unwrap();
    assert!(alarm.detail.starts_with("it is 83% full: 17 GiB of 100 GiB are left; "), "{}", alarm.detail);
    let pool = rig.tank();
    assert_eq!((pool.largest_thin, pool.largest_thick), (ByteSize(100 << 30), ByteSize(12 << 30)));
    assert_eq!((pool.warn_percent, pool.stop_percent), (80, 95));
    // All goes on.
    rig.create("b").await;
    rig.fills_to(96, PoolFill::Full).await;
    let full = rig.space_alarm().unwrap();
    assert!(full.detail.contains("no volume or snapshot is made"), "{}", full.detail);
    assert_eq!(full.since, alarm.since);
    assert_eq!((rig.tank().largest_thin, rig.tank().largest_thick), (ByteSize(0), ByteSize(0)));
    // The edge itself is no news.
    rig.fills_to(94, PoolFill::Full).await;
    rig.fills_to(93, PoolFill::Warning).await;
    rig.fills_to(79, PoolFill::Warning).await;
    rig.fills_to(78, PoolFill::Ok).await;
    assert!(rig.space_alarm().is_none());
    let told = rig.engine().events().after(start, 100);
    let told: Vec<_> = told.iter().filter(|e| e.kind == EventKind::PoolSpace).collect();
    assert_eq!(told.len(), 4, "{told:?}");
    assert!(told.iter().all(|e| e.pool.as_ref().is_some_and(|p| p.as_str() == "tank")));
    assert!(told[0].detail.as_ref().is_some_and(|d| d.contains("83%")), "{told:?}");
}

#[tokio::test]
async fn a_full_pool_takes_nothing_new_and_gives_back() {
    let rig = Rig::new().await;
    let (a, b) = (rig.create("a").await, rig.create("b").await);
    let s = rig.shot("s", a).await;
    let one = rig.host("one").await;
    rig.fills_to(95, PoolFill::Full).await;
    let journal_idle = |rig: &Rig| rig.engine().core.unsettled.lock().is_empty();
    for action in [
        Action::CreateVolume(ask("x")),
        Action::CreateVolume(thick("x", ByteSize::MIB)),
        Action::CreateVolume(from("x", Some(s), None, SourceMode::Linked)),
        Action::CreateVolume(from("x", Some(s), None, SourceMode::Copied)),
        Action::CreateVolume(from("x", None, Some(a), SourceMode::Linked)),
        Action::CreateVolume(from("x", None, Some(a), SourceMode::Copied)),
        grow(a, 2),
        shot("t", a),
        group("g", &[a, b]),
    ] {
        let what = format!("{action:?}");
        let p = rig.fails(action).await;
        assert_eq!(p.kind, ErrorKind::Exhausted, "{what}: {p:?}");
        assert!(p.detail.starts_with("pool tank has no room: it is 95% full"), "{}", p.detail);
        assert_eq!((rig.platter.backings(), rig.platter.snapshots()), (2, 1), "{what}");
        assert!(journal_idle(&rig), "{what}");
    }
    // What is there already is no change.
    assert_eq!(rig.create("a").await, a);
    rig.ok(grow(a, 1)).await;
    rig.ok(shot("s", a)).await;
    // Access, and all that makes room.
    rig.ok(attach(b, "one")).await;
    assert_eq!(rig.target.hosts(b), [one].into());
    rig.ok(detach(b, "one")).await;
    rig.ok(drop_shot(s, When::Now)).await;
    rig.ok(delete(a)).await;
    assert_eq!((rig.platter.backings(), rig.platter.snapshots()), (1, 0));
    // Nobody waits for the next look.
    rig.platter.set_used(50);
    rig.create("x").await;
    assert_eq!(rig.tank().fill, PoolFill::Ok);
    assert!(rig.space_alarm().is_none());
}

#[tokio::test]
async fn thick_volumes_leave_what_is_kept_back() {
    let rig = Rig::new().await;
    rig.platter.set_used(10);
    rig.create("a").await;
    rig.fills_to(10, PoolFill::Ok).await;
    let most = rig.tank().largest_thick;
    assert_eq!(most, ByteSize(85 << 30));
    let p = rig.fails(Action::CreateVolume(thick("t", ByteSize(most.0 + 4096)))).await;
    assert_eq!(p.kind, ErrorKind::Exhausted);
    assert!(p.detail.contains("85 GiB can be: 5% of the pool are kept back"), "{}", p.detail);
    assert_eq!(rig.platter.backings(), 1);
    let t = rig.make(thick("t", ByteSize(2 << 30))).await;
    assert_eq!(rig.fails(grow(t, (2 << 10) + most.0 / (1 << 20) + 1)).await.kind, ErrorKind::Exhausted);
    rig.ok(grow(t, 3 << 10)).await;
    rig.make(VolumeCreate { size: ByteSize(100 << 30), ..ask("thin") }).await;
}

#[tokio::test]
async fn a_copy_waits_while_its_pool_is_full() {
    let rig = Rig::new().await;
    let a = rig.create("a").await;
    rig.platter.write(a, b"data");
    rig.platter.faults(|f| f.fail_fill = true);
    let c = rig.make(from("c", None, Some(a), SourceMode::Copied)).await;
    let t =
        VolumeCreate { provisioning: Provisioning::Thick, ..from("t", None, Some(a), SourceMode::Copied) };
    let t = rig.make(t).await;
    rig.until("they are stuck", |rig| [c, t].iter().all(|id| rig.volume(*id).unwrap().reason.is_some()))
        .await;
    rig.fills_to(97, PoolFill::Full).await;
    rig.platter.faults(|f| f.fail_fill = false);
    let reason = |rig: &Rig| rig.volume(c).unwrap().reason.unwrap_or_default();
    rig.until("it has no room", |rig| reason(rig).contains("pool tank has no room: it is 97% full")).await;
    // What a thick one needs was reserved when it was made.
    rig.until("the thick one is whole", |rig| rig.volume(t).unwrap().state == VolumeState::Ready).await;
    assert_eq!(rig.platter.read(c, 4), [0; 4]);
    rig.fills_to(50, PoolFill::Ok).await;
    rig.until("it is whole", |rig| rig.volume(c).unwrap().state == VolumeState::Ready).await;
    assert_eq!(rig.platter.read(c, 4), b"data");
    assert!(rig.engine().view().alarms().is_empty());
}

#[tokio::test]
async fn a_full_pool_is_known_after_a_restart_and_forgotten_with_the_pool() {
    let mut rig = Rig::new().await;
    let a = rig.create("a").await;
    rig.fills_to(99, PoolFill::Full).await;
    rig.restart().await;
    assert_eq!(rig.fails(Action::CreateVolume(ask("x"))).await.kind, ErrorKind::Exhausted);
    rig.until("the alarm", |rig| rig.space_alarm().is_some()).await;
    rig.ok(delete(a)).await;
    // Freed behind the answer: an empty pool that is still full is looked at too.
    rig.fills_to(98, PoolFill::Full).await;
    rig.ok(Action::DeletePool("tank".parse().unwrap())).await;
    assert!(rig.engine().view().alarms().is_empty());
}
