//! The controller: every call becomes one of the API, mostly; what it must know it asks the appliance, and keeps nothing.

mod capability;
mod create;
mod groups;
mod list;
mod metadata;
mod publish;
mod snapshots;
mod volumes;

use std::collections::HashSet;
use std::sync::Arc;

pub use capability::mode;
pub use publish::ATTACHMENT;

use orlop_api::{Volume as ApiVolume, VolumeId, VolumeRef, VolumeState};
use parking_lot::Mutex;
use tonic::{Request, Response, Status};

use crate::appliances::{Appliance, Appliances};
use crate::csi::controller_service_capability::{Rpc, Type, rpc};
use crate::csi::*;
use crate::deadline::{Deadline, open};
use crate::handle::{ApplianceName, Handle, VolumeHandle};
use crate::locks::Locks;
use crate::status::{self, Answer, Result};

/// What is announced, and no more.
const CAPABILITIES: [rpc::Type; 15] = [
    rpc::Type::CreateDeleteVolume,
    rpc::Type::PublishUnpublishVolume,
    rpc::Type::ListVolumes,
    rpc::Type::GetCapacity,
    rpc::Type::CreateDeleteSnapshot,
    rpc::Type::ListSnapshots,
    rpc::Type::CloneVolume,
    rpc::Type::PublishReadonly,
    rpc::Type::ExpandVolume,
    rpc::Type::ListVolumesPublishedNodes,
    rpc::Type::VolumeCondition,
    rpc::Type::GetVolume,
    rpc::Type::SingleNodeMultiWriter,
    rpc::Type::ModifyVolume,
    rpc::Type::GetSnapshot,
];

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Controller {
    appliances: Arc<Appliances>,
    locks: Locks,
    /// Nodes that an appliance knows as they are: they need not be told to it again.
    known: Arc<Mutex<HashSet<(ApplianceName, String)>>>,
}

impl Controller {
    /// Over these appliances.
    pub fn new(appliances: Arc<Appliances>) -> Self {
        Self { appliances, locks: Locks::default(), known: Arc::default() }
    }

    /// Whose a handle is. An appliance that is not in the configuration may be there all the same: nothing is known of
    /// what is on it.
    fn appliance<T: std::fmt::Display>(&self, handle: &Handle<T>) -> Result<&Arc<Appliance>> {
        self.appliances.get(&handle.appliance).ok_or_else(|| {
            let (name, what) = (&handle.appliance, handle);
            Status::unavailable(format!(
                "{what}: appliance {name} is not in the configuration of this driver"
            ))
        })
    }

    /// The volume that a call is about, with its appliance.
    fn volume_of(&self, id: &str) -> Result<(VolumeHandle, &Arc<Appliance>)> {
        let handle = self.handle_of(id, "volume_id")?;
        let appliance = self.appliance(&handle)?;
        Ok((handle, appliance))
    }

    /// A handle that must be one of ours.
    fn handle_of<T: std::str::FromStr>(&self, id: &str, field: &str) -> Result<Handle<T>> {
        if id.is_empty() {
            return Err(status::missing(field));
        }
        Handle::parse(id).ok_or_else(|| Status::not_found(format!("{field}: there is no {id:?}")))
    }
}

/// A volume as an appliance has it.
async fn volume(appliance: &Appliance, id: VolumeId, deadline: Deadline) -> Result<ApiVolume> {
    let by = &VolumeRef::Id(id);
    let found = appliance.call(deadline, |client| async move { client.volume(by).await });
    let found = found.await.map_err(status::of)?;
    // It is deleted, and goes when what depends on it does: to its user it is gone.
    if found.state == VolumeState::Deleting {
        return Err(Status::not_found(format!("volume {id} is deleted")));
    }
    Ok(found)
}

/// Whether a volume is as its user expects, in words.
fn condition(volume: &ApiVolume) -> VolumeCondition {
    let abnormal = !matches!(volume.state, VolumeState::Ready | VolumeState::Copying);
    let why = volume.reason.clone().unwrap_or_else(|| format!("{:?}", volume.state).to_lowercase());
    VolumeCondition { abnormal, message: if abnormal { why } else { "it is as it should be".into() } }
}

/// A size as CSI has it.
fn bytes(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

#[tonic::async_trait]
impl controller_server::Controller for Controller {
    async fn create_volume(&self, request: Request<CreateVolumeRequest>) -> Answer<CreateVolumeResponse> {
        let (ask, deadline) = open(request);
        self.create(ask, deadline).await.map(Response::new)
    }

    async fn delete_volume(&self, request: Request<DeleteVolumeRequest>) -> Answer<DeleteVolumeResponse> {
        let (ask, deadline) = open(request);
        self.delete(ask, deadline).await.map(Response::new)
    }

    async fn controller_publish_volume(
        &self,
        request: Request<ControllerPublishVolumeRequest>,
    ) -> Answer<ControllerPublishVolumeResponse> {
        let (ask, deadline) = open(request);
        self.publish(ask, deadline).await.map(Response::new)
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<ControllerUnpublishVolumeRequest>,
    ) -> Answer<ControllerUnpublishVolumeResponse> {
        let (ask, deadline) = open(request);
        self.unpublish(ask, deadline).await.map(Response::new)
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Answer<ValidateVolumeCapabilitiesResponse> {
        let (ask, deadline) = open(request);
        self.validate(ask, deadline).await.map(Response::new)
    }

    async fn list_volumes(&self, request: Request<ListVolumesRequest>) -> Answer<ListVolumesResponse> {
        let (ask, deadline) = open(request);
        self.volumes(ask, deadline).await.map(Response::new)
    }

    async fn get_capacity(&self, request: Request<GetCapacityRequest>) -> Answer<GetCapacityResponse> {
        let (ask, deadline) = open(request);
        self.capacity(ask, deadline).await.map(Response::new)
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Answer<ControllerGetCapabilitiesResponse> {
        let of = |rpc: &rpc::Type| ControllerServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: i32::from(*rpc) })),
        };
        let capabilities = CAPABILITIES.iter().map(of).collect();
        Ok(Response::new(ControllerGetCapabilitiesResponse { capabilities }))
    }

    async fn create_snapshot(
        &self,
        request: Request<CreateSnapshotRequest>,
    ) -> Answer<CreateSnapshotResponse> {
        let (ask, deadline) = open(request);
        self.snap(ask, deadline).await.map(Response::new)
    }

    async fn delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Answer<DeleteSnapshotResponse> {
        let (ask, deadline) = open(request);
        self.drop_snapshot(ask, deadline).await.map(Response::new)
    }

    async fn list_snapshots(&self, request: Request<ListSnapshotsRequest>) -> Answer<ListSnapshotsResponse> {
        let (ask, deadline) = open(request);
        self.snapshots(ask, deadline).await.map(Response::new)
    }

    async fn get_snapshot(&self, request: Request<GetSnapshotRequest>) -> Answer<GetSnapshotResponse> {
        let (ask, deadline) = open(request);
        self.snapshot(ask, deadline).await.map(Response::new)
    }

    async fn controller_expand_volume(
        &self,
        request: Request<ControllerExpandVolumeRequest>,
    ) -> Answer<ControllerExpandVolumeResponse> {
        let (ask, deadline) = open(request);
        self.expand(ask, deadline).await.map(Response::new)
    }

    async fn controller_get_volume(
        &self,
        request: Request<ControllerGetVolumeRequest>,
    ) -> Answer<ControllerGetVolumeResponse> {
        let (ask, deadline) = open(request);
        self.get(ask, deadline).await.map(Response::new)
    }

    async fn controller_modify_volume(
        &self,
        request: Request<ControllerModifyVolumeRequest>,
    ) -> Answer<ControllerModifyVolumeResponse> {
        let (ask, deadline) = open(request);
        self.modify(ask, deadline).await.map(Response::new)
    }
}
