//! Snapshots of several volumes at one instant.

use orlop_csi::csi::*;
use tonic::{Code, Status};

use crate::rig::*;

async fn snap(rig: &mut Rig, name: &str, of: &[&str]) -> Result<VolumeGroupSnapshot, Status> {
    let ask = CreateVolumeGroupSnapshotRequest {
        name: name.into(),
        source_volume_ids: of.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    Ok(rig.groups.create_volume_group_snapshot(ask).await?.into_inner().group_snapshot.unwrap())
}

#[tokio::test]
async fn a_group_is_taken_once_shown_and_deleted() {
    let mut rig = Rig::new().await;
    let (a, b) = (rig.volume("a").await, rig.volume("b").await);
    let group = snap(&mut rig, "g", &[&a, &b]).await.unwrap();
    assert!(group.ready_to_use && group.snapshots.len() == 2);
    let of: Vec<_> = group.snapshots.iter().map(|s| s.source_volume_id.clone()).collect();
    assert_eq!(of, [a.clone(), b.clone()]);
    assert!(group.snapshots.iter().all(|s| s.group_snapshot_id == group.group_snapshot_id));
    assert_eq!(snap(&mut rig, "g", &[&a, &b]).await.unwrap(), group);
    refused(snap(&mut rig, "g", &[&a]).await, Code::AlreadyExists);
    for (name, of, code) in [
        ("", &[a.as_str()][..], Code::InvalidArgument),
        ("h", &[], Code::InvalidArgument),
        ("h", &[a.as_str(), ""], Code::InvalidArgument),
        ("h", &[a.as_str(), UNKNOWN], Code::NotFound),
        ("h", &[a.as_str(), "b/0190c0de-0000-7000-8000-000000000001"], Code::FailedPrecondition),
    ] {
        refused(snap(&mut rig, name, of).await, code);
    }

    let ids: Vec<_> = group.snapshots.iter().map(|s| s.snapshot_id.clone()).collect();
    let get = |id: &str, snapshot_ids: &[String]| GetVolumeGroupSnapshotRequest {
        group_snapshot_id: id.into(),
        snapshot_ids: snapshot_ids.to_vec(),
        ..Default::default()
    };
    let id = group.group_snapshot_id.clone();
    for named in [&ids[..], &[]] {
        let got = rig.groups.get_volume_group_snapshot(get(&id, named)).await.unwrap().into_inner();
        assert_eq!(got.group_snapshot, Some(group.clone()));
    }
    refused(rig.groups.get_volume_group_snapshot(get(&id, &ids[..1])).await, Code::InvalidArgument);
    refused(rig.groups.get_volume_group_snapshot(get("", &[])).await, Code::InvalidArgument);
    refused(rig.groups.get_volume_group_snapshot(get("a/nothing", &[])).await, Code::NotFound);

    let delete = |id: &str, snapshot_ids: &[String]| DeleteVolumeGroupSnapshotRequest {
        group_snapshot_id: id.into(),
        snapshot_ids: snapshot_ids.to_vec(),
        ..Default::default()
    };
    refused(rig.groups.delete_volume_group_snapshot(delete("", &[])).await, Code::InvalidArgument);
    refused(rig.groups.delete_volume_group_snapshot(delete(&id, &ids[1..])).await, Code::InvalidArgument);
    for _ in 0..2 {
        rig.groups.delete_volume_group_snapshot(delete(&id, &ids)).await.unwrap();
    }
    rig.groups.delete_volume_group_snapshot(delete("nothing", &[])).await.unwrap();
    assert_eq!(rig.api().all_snapshots(Default::default()).await.unwrap(), []);
}

#[tokio::test]
async fn groups_are_all_that_is_announced() {
    use group_controller_service_capability::{Type, rpc};
    let mut rig = Rig::new().await;
    let ask = GroupControllerGetCapabilitiesRequest {};
    let all = rig.groups.group_controller_get_capabilities(ask).await.unwrap().into_inner().capabilities;
    let Some(Type::Rpc(only)) = &all[0].r#type else { panic!("{all:?}") };
    let wanted = rpc::Type::CreateDeleteGetVolumeGroupSnapshot;
    assert_eq!((all.len(), only.r#type), (1, wanted.into()));
}
