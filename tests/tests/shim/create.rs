//! Making volumes: once, however often it is asked for.

use orlop_csi::csi::volume_capability::access_mode::Mode;
use orlop_csi::csi::*;
use tonic::Code;

use crate::rig::*;

#[tokio::test]
async fn what_is_asked_for_again_is_the_same() {
    let mut rig = Rig::new().await;
    let first = rig.create(claim("pvc-1")).await.unwrap();
    assert_eq!(first.capacity_bytes, GIB);
    assert!(first.volume_id.starts_with("a/") && first.volume_context == map(&[("protocol", "nvme")]));
    assert!(first.accessible_topology.is_empty());
    assert_eq!(rig.create(claim("pvc-1")).await.unwrap(), first);
    // Any size that it has is as good, and what it has not is another volume.
    let bigger = CreateVolumeRequest { capacity_range: sized(GIB / 2, 2 * GIB), ..claim("pvc-1") };
    assert_eq!(rig.create(bigger).await.unwrap().volume_id, first.volume_id);
    let too_big = CreateVolumeRequest { capacity_range: sized(2 * GIB, 0), ..claim("pvc-1") };
    refused(rig.create(too_big).await, Code::AlreadyExists);
    let too_small = CreateVolumeRequest { capacity_range: sized(0, GIB / 2), ..claim("pvc-1") };
    refused(rig.create(too_small).await, Code::AlreadyExists);
    let other = CreateVolumeRequest {
        parameters: map(&[("pool", POOL), ("provisioning", "thick")]),
        ..claim("pvc-1")
    };
    refused(rig.create(other).await, Code::AlreadyExists);
    assert_eq!(rig.api().all_volumes(Default::default()).await.unwrap().len(), 1);
    rig.delete(&first.volume_id).await.unwrap();
    rig.delete(&first.volume_id).await.unwrap();
    assert_ne!(rig.create(claim("pvc-1")).await.unwrap().volume_id, first.volume_id);
}

#[tokio::test]
async fn a_size_is_what_the_pool_can_have_and_the_claim_allows() {
    let mut rig = Rig::new().await;
    let unit = i64::try_from(rig.api().pools().await.unwrap()[0].granularity.0).unwrap();
    for (n, (required, limit, size)) in
        [(0, 0, GIB), (1, 0, unit), (unit + 1, 0, 2 * unit), (0, unit, unit), (unit, unit, unit)]
            .into_iter()
            .enumerate()
    {
        let ask = CreateVolumeRequest { capacity_range: sized(required, limit), ..claim(&format!("v{n}")) };
        assert_eq!(rig.create(ask).await.unwrap().capacity_bytes, size, "{required} to {limit}");
    }
    for (required, limit) in [(-1, 0), (0, -1), (2 * unit, unit), (1, unit - 1)] {
        let ask = CreateVolumeRequest { capacity_range: sized(required, limit), ..claim("odd") };
        refused(rig.create(ask).await, Code::OutOfRange);
    }
    let huge = CreateVolumeRequest { capacity_range: sized(i64::MAX, 0), ..claim("huge") };
    let status = rig.create(huge).await.unwrap_err();
    assert!([Code::OutOfRange, Code::ResourceExhausted].contains(&status.code()), "{status}");
    assert_eq!(rig.api().all_volumes(Default::default()).await.unwrap().len(), 5);
}

#[tokio::test]
async fn a_name_may_have_nearly_every_character() {
    let mut rig = Rig::new().await;
    let mut ids = std::collections::BTreeSet::new();
    let names = ["ü", "name with spaces", "名前", "a/b", "..", "-", "x".repeat(128).as_str(), "x"]
        .map(str::to_string);
    for name in &names {
        let made = rig.create(claim(name)).await.unwrap();
        assert_eq!(rig.create(claim(name)).await.unwrap(), made, "{name}");
        ids.insert(made.volume_id);
    }
    assert_eq!(ids.len(), names.len());
    refused(rig.create(claim("")).await, Code::InvalidArgument);
    refused(rig.create(claim(&"x".repeat(129))).await, Code::InvalidArgument);
}

#[tokio::test]
async fn what_can_not_be_is_refused_and_makes_nothing() {
    let mut rig = Rig::new().await;
    let with =
        |parameters: &[(&str, &str)]| CreateVolumeRequest { parameters: map(parameters), ..claim("v") };
    let used = |all: Vec<VolumeCapability>| CreateVolumeRequest { volume_capabilities: all, ..claim("v") };
    let from = |of: volume_content_source::Type| CreateVolumeRequest {
        volume_content_source: Some(VolumeContentSource { r#type: Some(of) }),
        ..claim("v")
    };
    let snapshot = |id: &str| {
        from(volume_content_source::Type::Snapshot(volume_content_source::SnapshotSource {
            snapshot_id: id.into(),
        }))
    };
    let volume = |id: &str| {
        from(volume_content_source::Type::Volume(volume_content_source::VolumeSource {
            volume_id: id.into(),
        }))
    };
    for (ask, code) in [
        (with(&[]), Code::InvalidArgument),
        (with(&[("pool", "nowhere")]), Code::InvalidArgument),
        (with(&[("pool", POOL), ("colour", "blue")]), Code::InvalidArgument),
        (with(&[("pool", POOL), ("protocol", "fc")]), Code::InvalidArgument),
        (with(&[("pool", POOL), ("appliance", "b")]), Code::InvalidArgument),
        (with(&[("pool", POOL), ("sync", "disabled")]), Code::InvalidArgument),
        (used(Vec::new()), Code::InvalidArgument),
        (used(vec![VolumeCapability::default()]), Code::InvalidArgument),
        (used(vec![mount("btrfs", Mode::SingleNodeWriter)]), Code::InvalidArgument),
        (used(vec![mount("ext4", Mode::MultiNodeMultiWriter)]), Code::InvalidArgument),
        (used(vec![mount("ext4", Mode::Unknown)]), Code::InvalidArgument),
        (
            used(vec![block(Mode::MultiNodeMultiWriter), mount("xfs", Mode::MultiNodeMultiWriter)]),
            Code::InvalidArgument,
        ),
        (
            CreateVolumeRequest { mutable_parameters: map(&[("pool", POOL)]), ..claim("v") },
            Code::InvalidArgument,
        ),
        (
            CreateVolumeRequest { volume_content_source: Some(Default::default()), ..claim("v") },
            Code::InvalidArgument,
        ),
        (snapshot(""), Code::InvalidArgument),
        (snapshot("nothing"), Code::NotFound),
        (snapshot(UNKNOWN), Code::NotFound),
        (volume(UNKNOWN), Code::NotFound),
        (volume("b/0190c0de-0000-7000-8000-000000000001"), Code::ResourceExhausted),
    ] {
        let text = format!("{ask:?}");
        let status = rig.create(ask).await.expect_err(&text);
        assert_eq!(status.code(), code, "{text}: {}", status.message());
    }
    assert_eq!(rig.api().all_volumes(Default::default()).await.unwrap(), []);
}

#[tokio::test]
async fn each_protocol_makes_its_kind() {
    let mut rig = Rig::new().await;
    for (protocol, capability) in [
        ("nvme", block(Mode::MultiNodeMultiWriter)),
        ("iscsi", mount("xfs", Mode::SingleNodeSingleWriter)),
        ("nfs", mount("", Mode::MultiNodeMultiWriter)),
    ] {
        let ask = CreateVolumeRequest {
            parameters: map(&[("pool", POOL), ("protocol", protocol)]),
            volume_capabilities: vec![capability],
            ..claim(protocol)
        };
        let made = rig.create(ask).await;
        // A simulated pool has no file systems.
        if protocol == "nfs" && made.as_ref().is_err_and(|s| s.code() == Code::Unimplemented) {
            continue;
        }
        let id = made.unwrap().volume_id;
        let shown = rig.api().volume(&id[2..].parse().unwrap()).await.unwrap();
        assert_eq!(shown.protocol.as_str(), protocol);
    }
}
