//! Snapshots, clones, copies, and what goes when nothing depends on it any more.

use super::*;

pub(super) fn shot(name: &str, id: VolumeId) -> Action {
    Action::CreateSnapshot(SnapshotCreate { name: name.parse().unwrap(), volume: by(id) })
}

pub(super) fn group(name: &str, ids: &[VolumeId]) -> Action {
    let volumes = ids.iter().map(|id| by(*id)).collect();
    Action::CreateSnapshotGroup(SnapshotGroupCreate { name: name.parse().unwrap(), volumes })
}

pub(super) fn drop_shot(id: SnapshotId, when: When) -> Action {
    Action::DeleteSnapshot(SnapshotRef::Id(id), when)
}

pub(super) fn from(
    name: &str,
    snapshot: Option<SnapshotId>,
    volume: Option<VolumeId>,
    mode: SourceMode,
) -> VolumeCreate {
    let source = VolumeSource { snapshot: snapshot.map(SnapshotRef::Id), volume: volume.map(by), mode };
    VolumeCreate { source: Some(source), ..ask(name) }
}

impl Rig {
    pub(super) async fn shot(&self, name: &str, id: VolumeId) -> SnapshotId {
        match self.ok(shot(name, id)).await {
            Outcome::Snapshot { snapshot, changed: true } => snapshot.id,
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn make(&self, ask: VolumeCreate) -> VolumeId {
        match self.ok(Action::CreateVolume(ask)).await {
            Outcome::Volume { volume, changed: true } => volume.id,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn volume(&self, id: VolumeId) -> Option<Volume> {
        self.engine().view().volume(id)
    }
}

#[tokio::test]
async fn a_snapshot_is_taken_once_and_shown() {
    let rig = Rig::new().await;
    let (a, b) = (rig.create("a").await, rig.create("b").await);
    let id = rig.shot("s", a).await;
    let Outcome::Snapshot { snapshot, changed: false } = rig.ok(shot("s", a)).await else { panic!() };
    assert_eq!((snapshot.id, snapshot.volume, snapshot.ready), (id, a, true));
    assert_eq!(snapshot.paused_us, Some(7));
    let p = rig.fails(shot("s", b)).await;
    assert_eq!((p.kind, p.field.as_deref()), (ErrorKind::Conflict, Some("volume")));
    assert_eq!(rig.platter.snapshots(), 1);
    rig.ok(drop_shot(id, When::Now)).await;
    assert_eq!(rig.platter.snapshots(), 0);
    assert_eq!(rig.fails(drop_shot(id, When::Now)).await.kind, ErrorKind::NotFound);
}

#[tokio::test]
async fn a_group_is_taken_whole_or_not_at_all() {
    let rig = Rig::new().await;
    let (a, b) = (rig.create("a").await, rig.create("b").await);
    rig.platter.faults(|f| f.fail_snapshot = true);
    assert_eq!(rig.fails(group("g", &[a, b])).await.kind, ErrorKind::Internal);
    assert_eq!(rig.platter.snapshots(), 0, "what was taken went again");
    rig.platter.faults(|f| f.fail_snapshot = false);
    let Outcome::SnapshotGroup { group: g, changed: true } = rig.ok(group("g", &[a, b])).await else {
        panic!()
    };
    let names: Vec<_> = g.snapshots.iter().map(|s| s.name.to_string()).collect();
    assert_eq!(names, ["g-1", "g-2"]);
    assert!(matches!(rig.ok(group("g", &[a, b])).await, Outcome::SnapshotGroup { changed: false, .. }));
    assert_eq!(rig.fails(group("g", &[b, a])).await.kind, ErrorKind::Conflict);
    assert_eq!(rig.fails(group("g", &[a])).await.kind, ErrorKind::Conflict);
    assert_eq!(rig.fails(group("h", &[a, a])).await.field.as_deref(), Some("volumes"));
    assert_eq!(rig.fails(group("h", &[])).await.field.as_deref(), Some("volumes"));
    assert_eq!(rig.fails(shot("g-1", a)).await.field.as_deref(), Some("group"));
}

#[tokio::test]
async fn a_linked_clone_keeps_its_snapshot_and_the_volume() {
    let mut rig = Rig::new().await;
    let a = rig.create("a").await;
    rig.platter.write(a, b"old");
    let s = rig.shot("s", a).await;
    rig.platter.write(a, b"new");
    let c = rig.make(from("c", Some(s), None, SourceMode::Linked)).await;
    assert_eq!(rig.platter.read(c, 3), b"old");
    assert_eq!(rig.volume(c).unwrap().source.unwrap().snapshot, s);
    rig.restart().await;

    let p = rig.fails(drop_shot(s, When::Now)).await;
    assert_eq!((p.kind, p.dependants), (ErrorKind::Precondition, vec!["volume c".to_string()]));
    let p = rig.fails(delete(a)).await;
    assert_eq!((p.kind, p.dependants), (ErrorKind::Precondition, vec!["snapshot s".to_string()]));
    assert!(matches!(rig.ok(drop_shot(s, When::Unused)).await, Outcome::Doomed));
    // It is on its way out: nothing more is made from it, and its name is free.
    let p = rig.fails(Action::CreateVolume(from("d", Some(s), None, SourceMode::Linked))).await;
    assert_eq!(p.kind, ErrorKind::NotFound);
    rig.shot("s", a).await;
    let p = rig.fails(delete(a)).await;
    assert_eq!(p.dependants, ["volume c", "snapshot s"]);
    assert!(matches!(rig.ok(Action::DeleteVolume(by(a), When::Unused)).await, Outcome::Doomed));
    assert_eq!(rig.volume(a).unwrap().state, VolumeState::Deleting);
    rig.host("h").await;
    assert_eq!(rig.fails(attach(a, "h")).await.kind, ErrorKind::Precondition);
    assert_eq!(rig.fails(shot("t", a)).await.kind, ErrorKind::Precondition);
    let again = rig.create("a").await;
    assert_ne!(again, a);
    rig.restart().await;
    assert_eq!(rig.volume(a).unwrap().state, VolumeState::Deleting);
    assert_eq!(rig.platter.snapshots(), 2);

    // The clone goes, and with it the first snapshot; the other still keeps the volume.
    rig.ok(delete(c)).await;
    rig.until("the snapshot goes", |rig| rig.platter.snapshots() == 1).await;
    assert!(rig.volume(a).is_some());
    let name = SnapshotRef::Name("s".parse().unwrap());
    rig.ok(Action::DeleteSnapshot(name, When::Now)).await;
    rig.until("the volume goes", |rig| rig.volume(a).is_none()).await;
    assert_eq!((rig.platter.snapshots(), rig.platter.backings()), (0, 1));
}

#[tokio::test]
async fn a_clone_of_a_volume_leaves_nothing_when_it_goes() {
    let rig = Rig::new().await;
    let a = rig.create("a").await;
    rig.platter.write(a, b"data");
    let c = rig.make(from("c", None, Some(a), SourceMode::Linked)).await;
    assert_eq!(rig.platter.read(c, 4), b"data");
    assert_eq!(rig.platter.snapshots(), 1);
    assert!(matches!(
        rig.ok(Action::CreateVolume(from("c", None, Some(a), SourceMode::Linked))).await,
        Outcome::Volume { changed: false, .. }
    ));
    let p = rig.fails(Action::CreateVolume(from("c", None, Some(a), SourceMode::Copied))).await;
    assert_eq!((p.kind, p.field.as_deref()), (ErrorKind::Conflict, Some("source")));
    assert_eq!(rig.fails(Action::CreateVolume(ask("c"))).await.field.as_deref(), Some("source"));
    assert_eq!(rig.fails(delete(a)).await.dependants, ["volume c"]);
    rig.ok(delete(c)).await;
    rig.until("its snapshot goes", |rig| rig.platter.snapshots() == 0).await;
    rig.ok(delete(a)).await;

    // One that can't be made leaves no snapshot either.
    let a = rig.create("a").await;
    rig.platter.faults(|f| f.fail_create = true);
    rig.fails(Action::CreateVolume(from("d", None, Some(a), SourceMode::Linked))).await;
    rig.until("its snapshot goes", |rig| rig.platter.snapshots() == 0).await;
    assert_eq!(rig.platter.backings(), 1);
}

#[tokio::test]
async fn sources_are_checked_before_anything_is_done() {
    let rig = Rig::new().await;
    let a = rig.create("a").await;
    let s = rig.shot("s", a).await;
    let small = VolumeCreate { size: ByteSize(4096), ..from("x", Some(s), None, SourceMode::Linked) };
    let thick =
        VolumeCreate { provisioning: Provisioning::Thick, ..from("x", Some(s), None, SourceMode::Linked) };
    for (ask, kind, field) in [
        (small, ErrorKind::Invalid, Some("size")),
        (thick, ErrorKind::Invalid, Some("provisioning")),
        (from("x", None, None, SourceMode::Linked), ErrorKind::Invalid, Some("source")),
        (from("x", Some(s), Some(a), SourceMode::Linked), ErrorKind::Invalid, Some("source")),
        (from("x", Some(SnapshotId::mint()), None, SourceMode::Linked), ErrorKind::NotFound, None),
        (from("x", None, Some(VolumeId::mint()), SourceMode::Copied), ErrorKind::NotFound, None),
    ] {
        let p = rig.fails(Action::CreateVolume(ask)).await;
        assert_eq!((p.kind, p.field.as_deref()), (kind, field), "{p:?}");
    }
    assert_eq!((rig.platter.backings(), rig.platter.snapshots()), (1, 1));
}

#[tokio::test]
async fn a_copy_fills_behind_the_answer_and_frees_its_source() {
    let rig = Rig::new().await;
    let a = rig.create("a").await;
    rig.platter.write(a, b"data");
    let c = rig.make(from("c", None, Some(a), SourceMode::Copied)).await;
    rig.until("it is whole", |rig| rig.volume(c).unwrap().state == VolumeState::Ready).await;
    assert_eq!(rig.platter.read(c, 4), b"data");
    assert!(rig.volume(c).unwrap().progress.is_none());
    rig.until("its snapshot goes", |rig| rig.platter.snapshots() == 0).await;
    assert_eq!(rig.platter.readers(), 0);
    rig.ok(delete(a)).await;
    rig.host("h").await;
    rig.ok(attach(c, "h")).await;
}

#[tokio::test]
async fn a_copy_that_fails_is_stuck_goes_on_and_can_be_given_up() {
    let mut rig = Rig::new().await;
    let a = rig.create("a").await;
    rig.platter.write(a, b"data");
    rig.platter.faults(|f| f.fail_fill = true);
    let c = rig.make(from("c", None, Some(a), SourceMode::Copied)).await;
    let d = rig.make(from("d", None, Some(a), SourceMode::Copied)).await;
    rig.until("it is stuck", |rig| rig.volume(c).unwrap().state == VolumeState::Stuck).await;
    assert!(rig.engine().system().alarms.iter().any(|alarm| alarm.subject == format!("volume/{c}")));
    rig.host("h").await;
    for action in
        [attach(c, "h"), shot("s", c), Action::UpdateVolume(by(c), VolumeUpdate::to_size(ByteSize(2 << 20)))]
    {
        let p = rig.fails(action).await;
        assert_eq!(p.kind, ErrorKind::Busy, "{p:?}");
    }
    assert_eq!(rig.fails(delete(a)).await.dependants, ["volume c", "volume d"]);
    // Given up, at once, though it waits for its next attempt.
    rig.ok(delete(d)).await;
    rig.restart().await;
    rig.until("it is stuck again", |rig| rig.volume(c).unwrap().state == VolumeState::Stuck).await;
    rig.platter.faults(|f| f.fail_fill = false);
    rig.until("it is whole", |rig| rig.volume(c).unwrap().state == VolumeState::Ready).await;
    assert_eq!(rig.platter.read(c, 4), b"data");
    rig.until("all snapshots go", |rig| rig.platter.snapshots() == 0).await;
    assert!(rig.engine().system().alarms.is_empty());
}

#[tokio::test]
async fn what_a_crash_left_of_snapshots_goes_at_start() {
    let mut rig = Rig::new().await;
    let a = rig.create("a").await;
    let s = rig.shot("s", a).await;
    let key = crate::model::SnapshotKey { volume: a, id: SnapshotId::mint() };
    rig.platter.leave_partial_snapshot(key);
    rig.restart().await;
    assert_eq!(rig.platter.snapshots(), 1);
    assert_eq!(rig.engine().view().snapshot(s).unwrap().name.to_string(), "s");
}

#[tokio::test]
async fn a_deletion_that_fails_is_stuck_and_tried_again() {
    let rig = Rig::new().await;
    let a = rig.create("a").await;
    let s = rig.shot("s", a).await;
    rig.platter.faults(|f| f.fail_destroy = true);
    rig.fails(drop_shot(s, When::Now)).await;
    assert_eq!(rig.engine().view().snapshot(s).unwrap().state, SnapshotState::Stuck);
    assert_eq!(rig.fails(delete(a)).await.kind, ErrorKind::Busy);
    rig.platter.faults(|f| f.fail_destroy = false);
    rig.settled().await;
    assert_eq!(rig.platter.snapshots(), 0);
    rig.ok(delete(a)).await;
}
