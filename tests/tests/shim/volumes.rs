//! Growing, changing, validating and looking at volumes; and what is announced.

use orlop_csi::csi::volume_capability::access_mode::Mode;
use orlop_csi::csi::*;
use tonic::{Code, Status};

use crate::rig::*;

async fn expand(
    rig: &mut Rig,
    id: &str,
    range: Option<CapacityRange>,
    capability: Option<VolumeCapability>,
) -> Result<ControllerExpandVolumeResponse, Status> {
    let ask = ControllerExpandVolumeRequest {
        volume_id: id.into(),
        capacity_range: range,
        volume_capability: capability,
        ..Default::default()
    };
    Ok(rig.controller.controller_expand_volume(ask).await?.into_inner())
}

#[tokio::test]
async fn a_volume_grows_and_never_shrinks() {
    let mut rig = Rig::new().await;
    let id = rig.volume("v").await;
    let mounted = Some(mount("ext4", Mode::SingleNodeWriter));
    for _ in 0..2 {
        let grown = expand(&mut rig, &id, sized(2 * GIB, 0), mounted.clone()).await.unwrap();
        assert_eq!((grown.capacity_bytes, grown.node_expansion_required), (2 * GIB, true));
    }
    // It has more than that already.
    let same = expand(&mut rig, &id, sized(GIB, 0), Some(block(Mode::SingleNodeWriter))).await.unwrap();
    assert_eq!((same.capacity_bytes, same.node_expansion_required), (2 * GIB, false));
    refused(expand(&mut rig, &id, sized(GIB, GIB), None).await, Code::OutOfRange);
    refused(expand(&mut rig, &id, sized(3 * GIB, 2 * GIB), None).await, Code::OutOfRange);
    refused(expand(&mut rig, &id, sized(-1, 0), None).await, Code::OutOfRange);
    refused(expand(&mut rig, &id, None, None).await, Code::InvalidArgument);
    refused(expand(&mut rig, "", sized(GIB, 0), None).await, Code::InvalidArgument);
    refused(expand(&mut rig, "x", sized(GIB, 0), None).await, Code::NotFound);
    refused(expand(&mut rig, UNKNOWN, sized(GIB, 0), None).await, Code::NotFound);
    assert_eq!(rig.api().volume(&id[2..].parse().unwrap()).await.unwrap().size.0, 2 << 30);
}

#[tokio::test]
async fn a_class_changes_what_can_be_changed() {
    let mut rig = Rig::new().await;
    let id = rig.volume("v").await;
    let modify = |id: &str, all: &[(&str, &str)]| ControllerModifyVolumeRequest {
        volume_id: id.into(),
        mutable_parameters: map(all),
        ..Default::default()
    };
    rig.controller.controller_modify_volume(modify(&id, &[])).await.unwrap();
    for (id, all, code) in [
        ("", &[][..], Code::InvalidArgument),
        (UNKNOWN, &[], Code::NotFound),
        (UNKNOWN, &[("provisioning", "thick")], Code::NotFound),
        (&id, &[("pool", "other")], Code::InvalidArgument),
        (&id, &[("compression", "best")], Code::InvalidArgument),
    ] {
        refused(rig.controller.controller_modify_volume(modify(id, all)).await, code);
    }
}

#[tokio::test]
async fn what_a_volume_can_not_be_used_for_is_not_confirmed() {
    let mut rig = Rig::new().await;
    let made = rig.create(claim("v")).await.unwrap();
    let ask = |capabilities: Vec<VolumeCapability>, parameters: &[(&str, &str)]| {
        ValidateVolumeCapabilitiesRequest {
            volume_id: made.volume_id.clone(),
            volume_context: made.volume_context.clone(),
            volume_capabilities: capabilities,
            parameters: map(parameters),
            ..Default::default()
        }
    };
    let good = vec![mount("xfs", Mode::SingleNodeWriter), block(Mode::MultiNodeMultiWriter)];
    for (ask, confirmed) in [
        (ask(good.clone(), &[]), true),
        (ask(good.clone(), &[("pool", POOL)]), true),
        (ask(good.clone(), &[("pool", "other")]), false),
        (ask(good.clone(), &[("pool", POOL), ("protocol", "iscsi")]), false),
        (ask(good.clone(), &[("colour", "blue")]), false),
        (ask(vec![mount("btrfs", Mode::SingleNodeWriter)], &[]), false),
        (ask(vec![mount("ext4", Mode::MultiNodeMultiWriter)], &[]), false),
    ] {
        let answer = rig.controller.validate_volume_capabilities(ask.clone()).await.unwrap().into_inner();
        assert_eq!(answer.confirmed.is_some(), confirmed, "{ask:?}: {}", answer.message);
        assert_eq!(answer.message.is_empty(), confirmed);
    }
    refused(rig.controller.validate_volume_capabilities(ask(Vec::new(), &[])).await, Code::InvalidArgument);
    let nowhere = ValidateVolumeCapabilitiesRequest { volume_id: UNKNOWN.into(), ..ask(good, &[]) };
    refused(rig.controller.validate_volume_capabilities(nowhere).await, Code::NotFound);
}

#[tokio::test]
async fn a_volume_is_shown_with_its_nodes_and_how_it_is() {
    let mut rig = Rig::new().await;
    let id = rig.volume("v").await;
    rig.publish(&id, &node(1)).await.unwrap();
    let get = |id: &str| ControllerGetVolumeRequest { volume_id: id.into() };
    let shown = rig.controller.controller_get_volume(get(&id)).await.unwrap().into_inner();
    assert_eq!(shown.volume.unwrap().capacity_bytes, GIB);
    let status = shown.status.unwrap();
    assert_eq!(status.published_node_ids, [node(1)]);
    assert!(!status.volume_condition.unwrap().abnormal);
    refused(rig.controller.controller_get_volume(get("")).await, Code::InvalidArgument);
    refused(rig.controller.controller_get_volume(get(UNKNOWN)).await, Code::NotFound);
}

/// Each of these has a test here, and there is nothing else.
#[tokio::test]
async fn what_is_announced_is_what_there_is() {
    use controller_service_capability::rpc::Type;
    let mut rig = Rig::new().await;
    let all = rig.controller.controller_get_capabilities(ControllerGetCapabilitiesRequest {}).await.unwrap();
    let mut names: Vec<_> = all
        .into_inner()
        .capabilities
        .into_iter()
        .map(|c| match c.r#type.unwrap() {
            controller_service_capability::Type::Rpc(rpc) => {
                Type::try_from(rpc.r#type).unwrap().as_str_name()
            }
        })
        .collect();
    names.sort_unstable();
    let wanted = [
        "CLONE_VOLUME",
        "CREATE_DELETE_SNAPSHOT",
        "CREATE_DELETE_VOLUME",
        "EXPAND_VOLUME",
        "GET_CAPACITY",
        "GET_SNAPSHOT",
        "GET_VOLUME",
        "LIST_SNAPSHOTS",
        "LIST_VOLUMES",
        "LIST_VOLUMES_PUBLISHED_NODES",
        "MODIFY_VOLUME",
        "PUBLISH_READONLY",
        "PUBLISH_UNPUBLISH_VOLUME",
        "SINGLE_NODE_MULTI_WRITER",
        "VOLUME_CONDITION",
    ];
    assert_eq!(names, wanted);
    let info = rig.identity.get_plugin_info(GetPluginInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.name, "csi.orlop.dev");
    assert_eq!(rig.identity.probe(ProbeRequest {}).await.unwrap().into_inner().ready, Some(true));
    let plugin = rig.identity.get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await.unwrap();
    assert_eq!(
        plugin.into_inner().capabilities.len(),
        4,
        "controller, groups, snapshot metadata and expansion; no topology here"
    );
}
