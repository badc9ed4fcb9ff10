//! Snapshots, and volumes made of them.

use orlop_csi::csi::volume_content_source::{SnapshotSource, Type, VolumeSource};
use orlop_csi::csi::*;
use tonic::Code;

use crate::rig::*;

fn of_snapshot(name: &str, id: &str) -> CreateVolumeRequest {
    let source = Type::Snapshot(SnapshotSource { snapshot_id: id.into() });
    CreateVolumeRequest {
        volume_content_source: Some(VolumeContentSource { r#type: Some(source) }),
        ..claim(name)
    }
}

fn of_volume(name: &str, id: &str) -> CreateVolumeRequest {
    let source = Type::Volume(VolumeSource { volume_id: id.into() });
    CreateVolumeRequest {
        volume_content_source: Some(VolumeContentSource { r#type: Some(source) }),
        ..claim(name)
    }
}

#[tokio::test]
async fn a_snapshot_is_taken_once_and_listed() {
    let mut rig = Rig::new().await;
    let (v, other) = (rig.volume("v").await, rig.volume("other").await);
    let first = rig.snap(&v, "s").await.unwrap();
    assert!(first.ready_to_use && first.size_bytes == GIB && first.source_volume_id == v);
    assert!(first.creation_time.unwrap().seconds > 1_700_000_000);
    assert_eq!(rig.snap(&v, "s").await.unwrap(), first);
    refused(rig.snap(&other, "s").await, Code::AlreadyExists);
    refused(rig.snap(&v, "").await, Code::InvalidArgument);
    refused(rig.snap("", "t").await, Code::InvalidArgument);
    refused(rig.snap(UNKNOWN, "t").await, Code::NotFound);
    let odd = CreateSnapshotRequest {
        source_volume_id: v.clone(),
        name: "t".into(),
        parameters: map(&[("colour", "blue")]),
        ..Default::default()
    };
    refused(rig.controller.create_snapshot(odd).await, Code::InvalidArgument);

    for n in 0..4 {
        rig.snap(&other, &format!("o{n}")).await.unwrap();
    }
    let list = |max_entries, token: &str, volume: &str, id: &str| ListSnapshotsRequest {
        max_entries,
        starting_token: token.into(),
        source_volume_id: volume.into(),
        snapshot_id: id.into(),
        ..Default::default()
    };
    for (ask, found) in [
        (list(0, "", "", ""), 5),
        (list(0, "", &other, ""), 4),
        (list(0, "", "", &first.snapshot_id), 1),
        (list(0, "", &v, &first.snapshot_id), 1),
        (list(0, "", &other, &first.snapshot_id), 0),
        (list(0, "", "", "nothing"), 0),
        (list(0, "", "nothing", ""), 0),
        (list(0, "", UNKNOWN, ""), 0),
        (list(0, "", "", UNKNOWN), 0),
    ] {
        let answer = rig.controller.list_snapshots(ask.clone()).await.unwrap().into_inner();
        assert_eq!((answer.entries.len(), answer.next_token.as_str()), (found, ""), "{ask:?}");
    }
    // A page at a time.
    let (mut token, mut all) = (String::new(), Vec::new());
    loop {
        let page = rig.controller.list_snapshots(list(2, &token, "", "")).await.unwrap().into_inner();
        assert!(page.entries.len() <= 2);
        all.extend(page.entries);
        token = page.next_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(all.len(), 5);
    refused(rig.controller.list_snapshots(list(-1, "", "", "")).await, Code::InvalidArgument);
    refused(rig.controller.list_snapshots(list(1, "x", "", "")).await, Code::Aborted);
    let get = |id: &str| GetSnapshotRequest { snapshot_id: id.into(), ..Default::default() };
    let got = rig.controller.get_snapshot(get(&first.snapshot_id)).await.unwrap().into_inner();
    assert_eq!(got.snapshot, Some(first.clone()));
    refused(rig.controller.get_snapshot(get(UNKNOWN)).await, Code::NotFound);
    refused(rig.controller.get_snapshot(get("")).await, Code::InvalidArgument);

    rig.drop_snapshot(&first.snapshot_id).await.unwrap();
    rig.drop_snapshot(&first.snapshot_id).await.unwrap();
    rig.drop_snapshot("nothing").await.unwrap();
    refused(rig.drop_snapshot("").await, Code::InvalidArgument);
    assert_eq!(rig.api().all_snapshots(Default::default()).await.unwrap().len(), 4);
}

#[tokio::test]
async fn volumes_are_made_of_snapshots_and_of_volumes() {
    let mut rig = Rig::new().await;
    let v = rig.volume("v").await;
    let s = rig.snap(&v, "s").await.unwrap().snapshot_id;
    let restored = rig.create(of_snapshot("r", &s)).await.unwrap();
    assert_eq!(restored.content_source, of_snapshot("r", &s).volume_content_source);
    assert_eq!(rig.create(of_snapshot("r", &s)).await.unwrap(), restored);
    refused(rig.create(claim("r")).await, Code::AlreadyExists);
    let cloned = rig.create(of_volume("c", &v)).await.unwrap();
    assert_ne!(cloned.volume_id, restored.volume_id);
    // Not smaller than what it is made of, and as large unless it is said.
    let small = CreateVolumeRequest { capacity_range: sized(0, GIB / 2), ..of_snapshot("small", &s) };
    refused(rig.create(small).await, Code::OutOfRange);
    let plain = CreateVolumeRequest { capacity_range: None, ..of_snapshot("plain", &s) };
    assert_eq!(rig.create(plain).await.unwrap().capacity_bytes, GIB);
    // In the pool of its source, where the class says none.
    let anywhere = CreateVolumeRequest { parameters: map(&[]), ..of_snapshot("anywhere", &s) };
    rig.create(anywhere).await.unwrap();
    // A copy is there when its content is.
    let copied = CreateVolumeRequest {
        parameters: map(&[("pool", POOL), ("cloneMode", "copied")]),
        ..of_snapshot("copied", &s)
    };
    let mut attempts = 0;
    let made = loop {
        match rig.create(copied.clone()).await {
            Ok(made) => break made,
            Err(status) => assert_eq!(status.code(), Code::Aborted, "{status}"),
        }
        attempts += 1;
        assert!(attempts < 600, "it is never done");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    assert_eq!(made.capacity_bytes, GIB);
}

/// The sidecar did not hear that it was made, and the snapshot has gone since.
#[tokio::test]
async fn a_volume_is_what_it_was_made_of_when_that_has_gone() {
    let mut rig = Rig::new().await;
    let v = rig.volume("v").await;
    let s = rig.snap(&v, "s").await.unwrap().snapshot_id;
    let (r, c) =
        (rig.create(of_snapshot("r", &s)).await.unwrap(), rig.create(of_volume("c", &v)).await.unwrap());
    rig.drop_snapshot(&s).await.unwrap();
    rig.delete(&v).await.unwrap();
    assert_eq!(rig.create(of_snapshot("r", &s)).await.unwrap(), r);
    assert_eq!(rig.create(of_volume("c", &v)).await.unwrap(), c);
    refused(rig.create(of_snapshot("new", &s)).await, Code::NotFound);
    refused(rig.create(of_volume("new", &v)).await, Code::NotFound);
    // Nobody sees what waits for others to go.
    let listed =
        rig.controller.list_volumes(ListVolumesRequest::default()).await.unwrap().into_inner().entries;
    assert_eq!(listed.len(), 2);
    assert!(
        rig.controller
            .list_snapshots(ListSnapshotsRequest::default())
            .await
            .unwrap()
            .into_inner()
            .entries
            .is_empty()
    );
    refused(rig.publish(&v, &node(1)).await, Code::NotFound);
}

/// What backup tools do, a few times: nothing is left over.
#[tokio::test]
async fn a_backup_leaves_nothing() {
    let mut rig = Rig::new().await;
    let v = rig.volume("v").await;
    for n in 0..20 {
        let s = rig.snap(&v, &format!("backup-{n}")).await.unwrap().snapshot_id;
        let temporary = rig.create(of_snapshot(&format!("temporary-{n}"), &s)).await.unwrap().volume_id;
        rig.publish(&temporary, &node(1)).await.unwrap();
        // Either may go first.
        if n % 2 == 0 {
            rig.drop_snapshot(&s).await.unwrap();
        }
        rig.unpublish(&temporary, &node(1)).await.unwrap();
        rig.delete(&temporary).await.unwrap();
        rig.drop_snapshot(&s).await.unwrap();
    }
    // What went later goes by itself.
    for _ in 0..200 {
        let left = (
            rig.api().all_snapshots(Default::default()).await.unwrap().len(),
            rig.api().all_volumes(Default::default()).await.unwrap().len(),
        );
        if left == (0, 1) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("something is left over");
}
