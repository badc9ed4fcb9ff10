//! The calls of kubelet.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_api::Attachment;
use tonic::{Request, Response, Status};

use super::Node;
use super::connect::{Credentials, size_of};
use super::inline::{is_inline, name_of};
use super::mounts;
use super::staging::Use;
use super::state;
use crate::controller::ATTACHMENT;
use crate::csi::node_service_capability::{Rpc, Type, rpc};
use crate::csi::volume_capability::AccessType;
use crate::csi::volume_usage::Unit;
use crate::csi::*;
use crate::deadline::open;
use crate::handle::VolumeHandle;
use crate::status::{self, Answer, Result, invalid, missing};

/// How long a file system may take to say how full it is.
const LOOK: Duration = Duration::from_secs(10);

/// What is announced, and no more.
const CAPABILITIES: [rpc::Type; 4] = [
    rpc::Type::StageUnstageVolume,
    rpc::Type::GetVolumeStats,
    rpc::Type::ExpandVolume,
    rpc::Type::SingleNodeMultiWriter,
];

fn handle(id: &str) -> Result<VolumeHandle> {
    if id.is_empty() {
        return Err(missing("volume_id"));
    }
    VolumeHandle::parse(id).ok_or_else(|| Status::not_found(format!("volume_id: there is no {id:?}")))
}

fn path(text: &str, field: &str) -> Result<PathBuf> {
    if text.is_empty() { Err(missing(field)) } else { Ok(text.into()) }
}

fn how(capability: Option<&VolumeCapability>) -> Result<Use> {
    let capability = capability.ok_or_else(|| missing("volume_capability"))?;
    crate::controller::mode(capability)?;
    match capability.access_type.as_ref().ok_or_else(|| missing("access_type"))? {
        AccessType::Block(_) => Ok(Use::Block),
        AccessType::Mount(mount) => {
            Ok(Use::Mount { fs_type: mount.fs_type.clone(), options: mount.mount_flags.clone() })
        }
    }
}

/// What the controller said when it let this node in.
fn attachment(context: &HashMap<String, String>, of: &VolumeHandle) -> Result<Attachment> {
    let text = context.get(ATTACHMENT).ok_or_else(|| missing("publish_context: attachment"))?;
    let attachment = state::attachment(text).map_err(|e| invalid(format!("publish_context: {e}")))?;
    if attachment.volume != of.id {
        return Err(invalid(format!(
            "publish_context: it is of volume {}, and this is {of}",
            attachment.volume
        )));
    }
    Ok(attachment)
}

#[tonic::async_trait]
impl node_server::Node for Node {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Answer<NodeStageVolumeResponse> {
        let (ask, deadline) = open(request);
        let of = handle(&ask.volume_id)?;
        let staging = path(&ask.staging_target_path, "staging_target_path")?;
        let how = how(ask.volume_capability.as_ref())?;
        let attachment = attachment(&ask.publish_context, &of)?;
        let _lock = self.locks.take(format!("volume {of}"))?;
        let with = Credentials { context: ask.volume_context, secrets: ask.secrets };
        self.stage(attachment, &staging, how, with, deadline).await?;
        Ok(Response::new(NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Answer<NodeUnstageVolumeResponse> {
        let (ask, deadline) = open(request);
        let of = handle(&ask.volume_id)?;
        let staging = path(&ask.staging_target_path, "staging_target_path")?;
        let _lock = self.locks.take(format!("volume {of}"))?;
        self.unstage(of.id, &staging, deadline).await?;
        Ok(Response::new(NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Answer<NodePublishVolumeResponse> {
        let (ask, deadline) = open(request);
        if let Some(name) = name_of(&ask.volume_id).filter(|_| is_inline(&ask.volume_context)) {
            let target = path(&ask.target_path, "target_path")?;
            let how = how(ask.volume_capability.as_ref())?;
            let _lock = self.locks.take(format!("volume {name}"))?;
            let with = (ask.volume_context, ask.secrets);
            self.publish_inline(&name, &target, how, ask.readonly, with, deadline).await?;
            return Ok(Response::new(NodePublishVolumeResponse {}));
        }
        let of = handle(&ask.volume_id)?;
        let target = path(&ask.target_path, "target_path")?;
        if ask.staging_target_path.is_empty() {
            return Err(Status::failed_precondition("staging_target_path: it must be staged first"));
        }
        let staging = PathBuf::from(&ask.staging_target_path);
        let how = how(ask.volume_capability.as_ref())?;
        let attachment = attachment(&ask.publish_context, &of)?;
        let _lock = self.locks.take(format!("volume {of}"))?;
        self.publish(&attachment, &staging, &target, &how, ask.readonly, deadline).await?;
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Answer<NodeUnpublishVolumeResponse> {
        let (ask, deadline) = open(request);
        if let Some(name) = name_of(&ask.volume_id) {
            let target = path(&ask.target_path, "target_path")?;
            let _lock = self.locks.take(format!("volume {name}"))?;
            self.unpublish_inline(&name, &target, deadline).await?;
            return Ok(Response::new(NodeUnpublishVolumeResponse {}));
        }
        let of = handle(&ask.volume_id)?;
        let target = path(&ask.target_path, "target_path")?;
        let _lock = self.locks.take(format!("volume {of}"))?;
        self.unpublish(of.id, &target, deadline).await?;
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Answer<NodeGetVolumeStatsResponse> {
        let (ask, deadline) = open(request);
        if !name_of(&ask.volume_id).is_some_and(|name| self.has_inline(&name)) {
            handle(&ask.volume_id)?;
        }
        let at = path(&ask.volume_path, "volume_path")?;
        // One that does not answer keeps one thread waiting, however often it is asked about.
        let late = || Status::unavailable(format!("volume_path: {} does not answer", ask.volume_path));
        let look = self.looks.begin_alone(at.clone()).ok_or_else(late)?;
        let looking = tokio::task::spawn_blocking(move || {
            let usage = usage(&at);
            drop(look);
            usage
        });
        let looked = tokio::time::timeout(LOOK.min(deadline.left()), looking).await.map_err(|_| late())?;
        let usage = looked.map_err(|e| Status::internal(e.to_string()))??;
        Ok(Response::new(NodeGetVolumeStatsResponse { usage, volume_condition: None }))
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Answer<NodeExpandVolumeResponse> {
        let (ask, deadline) = open(request);
        let of = handle(&ask.volume_id)?;
        let at = path(&ask.volume_path, "volume_path")?;
        let required = ask.capacity_range.as_ref().map_or(0, |r| r.required_bytes);
        let least =
            u64::try_from(required).map_err(|_| Status::out_of_range("capacity_range: it is negative"))?;
        let _lock = self.locks.take(format!("volume {of}"))?;
        let size = self.grow(&at, least, deadline).await?;
        let capacity_bytes = i64::try_from(size).unwrap_or(i64::MAX);
        Ok(Response::new(NodeExpandVolumeResponse { capacity_bytes }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Answer<NodeGetCapabilitiesResponse> {
        let of = |rpc: &rpc::Type| NodeServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: (*rpc).into() })),
        };
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities: CAPABILITIES.iter().map(of).collect() }))
    }

    async fn node_get_info(&self, _: Request<NodeGetInfoRequest>) -> Answer<NodeGetInfoResponse> {
        let segments: HashMap<_, _> = self.segments.clone().into_iter().collect();
        Ok(Response::new(NodeGetInfoResponse {
            node_id: self.id().to_string(),
            max_volumes_per_node: 0,
            accessible_topology: (!segments.is_empty()).then_some(Topology { segments }),
        }))
    }
}

/// How full it is.
fn usage(at: &Path) -> std::result::Result<Vec<VolumeUsage>, Status> {
    let gone = |e: &dyn std::fmt::Display| Status::not_found(format!("volume_path: {}: {e}", at.display()));
    let metadata = std::fs::metadata(at).map_err(|e| gone(&e))?;
    let as_i64 = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    if std::os::unix::fs::FileTypeExt::is_block_device(&metadata.file_type()) {
        let total = as_i64(size_of(at).map_err(|e| gone(&e))?);
        return Ok(vec![VolumeUsage { total, unit: Unit::Bytes.into(), ..VolumeUsage::default() }]);
    }
    let mounted = mounts::at(at).map_err(|e| status::of_io(&e))?;
    if mounted.is_empty() {
        return Err(gone(&"nothing is mounted there"));
    }
    let stats = rustix::fs::statvfs(at).map_err(|e| gone(&e))?;
    let bytes = |blocks: u64| as_i64(blocks.saturating_mul(stats.f_frsize));
    let used = stats.f_blocks.saturating_sub(stats.f_bfree);
    Ok(vec![
        VolumeUsage {
            available: bytes(stats.f_bavail),
            total: bytes(stats.f_blocks),
            used: bytes(used),
            unit: Unit::Bytes.into(),
        },
        VolumeUsage {
            available: as_i64(stats.f_favail),
            total: as_i64(stats.f_files),
            used: as_i64(stats.f_files.saturating_sub(stats.f_ffree)),
            unit: Unit::Inodes.into(),
        },
    ])
}
