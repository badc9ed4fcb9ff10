//! Volumes that are file systems: asked for, verified by being mounted once, cloned, copied, not attached.

use super::snapshots::{from, shot};
use super::*;
use crate::engine::intent::Intent;
use crate::engine::locks::Guards;
use crate::journal::Batch;
use crate::model::Label;

const SIZE: ByteSize = ByteSize(320 << 20);

pub(super) fn filesystem(name: &str, which: Option<FilesystemKind>) -> VolumeCreate {
    VolumeCreate { kind: Some(VolumeKind::Filesystem), filesystem: which, size: SIZE, ..ask(name) }
}

#[tokio::test]
async fn the_same_file_system_again_is_the_same_volume() {
    let rig = Rig::new().await;
    let id = rig.make(filesystem("data", None)).await;
    let shown = rig.volume(id).unwrap();
    assert_eq!((shown.kind, shown.filesystem), (VolumeKind::Filesystem, Some(FilesystemKind::Ext4)));
    assert_eq!((rig.platter.mounts(), rig.platter.open_backings()), (1, 0), "mounted once, to look at it");
    for again in [None, Some(FilesystemKind::Ext4)] {
        let same = rig.ok(Action::CreateVolume(filesystem("data", again))).await;
        assert!(matches!(same, Outcome::Volume { changed: false, .. }));
    }
    let disk = VolumeCreate { size: SIZE, ..ask("data") };
    let said = VolumeCreate { kind: Some(VolumeKind::Block), ..disk.clone() };
    for (other, field, have, want) in [
        (disk, "kind", "filesystem", "block"),
        (said, "kind", "filesystem", "block"),
        (filesystem("data", Some(FilesystemKind::Xfs)), "filesystem", "ext4", "xfs"),
    ] {
        let p = rig.fails(Action::CreateVolume(other)).await;
        assert_eq!((p.kind, p.field.as_deref()), (ErrorKind::Conflict, Some(field)));
        assert_eq!((p.have.as_deref(), p.want.as_deref()), (Some(have), Some(want)));
    }
    let plain = rig.create("disk").await;
    assert_eq!(rig.volume(plain).unwrap().filesystem, None);
    let p = rig
        .fails(Action::CreateVolume(VolumeCreate { size: ByteSize::MIB, ..filesystem("disk", None) }))
        .await;
    assert_eq!((p.kind, p.field.as_deref()), (ErrorKind::Conflict, Some("kind")));
    assert_eq!(rig.platter.backings(), 2);
}

#[tokio::test]
async fn what_can_not_be_is_refused_with_its_field() {
    let rig = Rig::new().await;
    let named = VolumeCreate { filesystem: Some(FilesystemKind::Xfs), ..ask("x") };
    let block = VolumeCreate { kind: Some(VolumeKind::Block), ..named.clone() };
    let small = VolumeCreate { size: ByteSize(299 << 20), ..filesystem("x", Some(FilesystemKind::Xfs)) };
    for (bad, kind, field) in [
        (named, ErrorKind::Invalid, "filesystem"),
        (block, ErrorKind::Invalid, "filesystem"),
        (small, ErrorKind::Invalid, "size"),
        (filesystem("x", Some(FilesystemKind::Zfs)), ErrorKind::Unsupported, "filesystem"),
    ] {
        let p = rig.fails(Action::CreateVolume(bad)).await;
        assert_eq!((p.kind, p.field.as_deref()), (kind, Some(field)), "{}", p.detail);
    }
    rig.platter.faults(|f| f.plain = true);
    let p = rig.fails(Action::CreateVolume(filesystem("x", None))).await;
    assert_eq!((p.kind, p.field.as_deref()), (ErrorKind::Unsupported, Some("kind")));
    let p = rig.fails(Action::CreateVolume(filesystem("x", Some(FilesystemKind::Ext4)))).await;
    assert_eq!((p.kind, p.field.as_deref()), (ErrorKind::Unsupported, Some("filesystem")));
    assert_eq!(rig.platter.backings(), 0);
}

/// "Made" means that it was mounted.
#[tokio::test]
async fn what_can_not_be_mounted_was_not_made() {
    let rig = Rig::new().await;
    rig.platter.faults(|f| f.fail_mount = true);
    let p = rig.fails(Action::CreateVolume(filesystem("data", None))).await;
    assert_eq!(p.kind, ErrorKind::Internal);
    rig.platter.faults(|f| (f.fail_mount, f.small_filesystem) = (false, true));
    let p = rig.fails(Action::CreateVolume(filesystem("data", None))).await;
    assert!(p.kind == ErrorKind::Internal && p.detail.contains("a file system of"), "{}", p.detail);
    assert_eq!((rig.platter.backings(), rig.platter.open_backings()), (0, 0));
    rig.platter.faults(|f| f.small_filesystem = false);
    rig.make(filesystem("data", None)).await;
}

#[tokio::test]
async fn a_clone_is_what_its_source_is() {
    let mut rig = Rig::new().await;
    let xfs = Some(FilesystemKind::Xfs);
    let id = rig.make(filesystem("data", xfs)).await;
    let Outcome::Snapshot { snapshot, .. } = rig.ok(shot("s", id)).await else { panic!() };
    let of_shot =
        |name: &str| VolumeCreate { size: SIZE, ..from(name, Some(snapshot.id), None, SourceMode::Linked) };
    let clone = rig.make(of_shot("c")).await;
    let larger = VolumeCreate { size: ByteSize(400 << 20), ..from("l", None, Some(id), SourceMode::Linked) };
    let larger = rig.make(VolumeCreate { kind: Some(VolumeKind::Filesystem), ..larger }).await;
    for id in [clone, larger] {
        let shown = rig.volume(id).unwrap();
        assert_eq!((shown.kind, shown.filesystem), (VolumeKind::Filesystem, xfs));
    }
    assert_eq!(rig.platter.mounts(), 3);
    for (bad, field) in [
        (VolumeCreate { kind: Some(VolumeKind::Block), ..of_shot("x") }, "kind"),
        (VolumeCreate { size: SIZE, ..filesystem("x", Some(FilesystemKind::Ext4)) }, "filesystem"),
    ] {
        let bad = VolumeCreate { source: of_shot("x").source, ..bad };
        let p = rig.fails(Action::CreateVolume(bad)).await;
        assert_eq!((p.kind, p.field.as_deref()), (ErrorKind::Invalid, Some(field)), "{}", p.detail);
    }
    let disk = rig.make(VolumeCreate { size: SIZE, ..ask("disk") }).await;
    let of_disk = VolumeCreate {
        source: from("x", None, Some(disk), SourceMode::Linked).source,
        ..filesystem("x", None)
    };
    let p = rig.fails(Action::CreateVolume(of_disk)).await;
    assert_eq!((p.kind, p.field.as_deref()), (ErrorKind::Invalid, Some("kind")), "{}", p.detail);
    // What it is outlives a restart, and the same request is still known.
    rig.restart().await;
    let same = rig.ok(Action::CreateVolume(of_shot("c"))).await;
    assert!(matches!(same, Outcome::Volume { changed: false, volume } if volume.id == clone));
}

#[tokio::test]
async fn a_copy_becomes_as_large_as_it_is_when_it_is_whole() {
    let rig = Rig::new().await;
    let id = rig.make(filesystem("data", None)).await;
    rig.platter.write(id, b"hello");
    let ask = VolumeCreate { size: ByteSize(400 << 20), ..from("c", None, Some(id), SourceMode::Copied) };
    let copy = rig.make(ask).await;
    rig.until("whole", |r| r.volume(copy).unwrap().state == VolumeState::Ready).await;
    assert_eq!(rig.platter.read(copy, 5), b"hello");
    let shown = rig.volume(copy).unwrap();
    assert_eq!((shown.kind, shown.filesystem), (VolumeKind::Filesystem, Some(FilesystemKind::Ext4)));
    assert_eq!((rig.platter.mounts(), rig.platter.open_backings()), (2, 0), "looked at when it was whole");
}

#[tokio::test]
async fn a_crash_in_a_create_ends_in_a_file_system_or_in_nothing() {
    let mut rig = Rig::new().await;
    let pool: PoolName = "tank".parse().unwrap();
    let ask = VolumeCreate { filesystem: Some(FilesystemKind::Ext4), ..filesystem("data", None) };
    let interrupted = |label: &Label| Intent::CreateVolume { pool: pool.clone(), label: label.clone() };
    // Before its end: what is there is half made.
    let half = Label::new(VolumeId::mint(), Tenant::default(), &ask);
    rig.platter.leave_partial(half.id);
    rig.engine().core.begin(interrupted(&half), Guards::default(), Batch::default()).await.unwrap();
    rig.restart().await;
    assert_eq!((rig.platter.backings(), rig.engine().view().counts().1), (0, 0));
    // After it: the same request finds it.
    let whole = Label::new(VolumeId::mint(), Tenant::default(), &ask);
    rig.platter.leave_volume(whole.clone());
    rig.engine().core.begin(interrupted(&whole), Guards::default(), Batch::default()).await.unwrap();
    rig.restart().await;
    let Outcome::Volume { volume, changed } = rig.ok(Action::CreateVolume(ask)).await else { panic!() };
    assert_eq!((volume.id, changed, volume.filesystem), (whole.id, false, Some(FilesystemKind::Ext4)));
    assert!(rig.engine().core.unsettled.lock().is_empty());
}
