//! Snapshots of several volumes at one instant.

use std::collections::BTreeSet;

use orlop_api::{ErrorKind, SnapshotGroup, SnapshotGroupCreate, SnapshotName, VolumeRef};
use tonic::{Request, Response, Status};

use super::Controller;
use super::snapshots::{delete, name, shown};
use crate::appliances::Appliance;
use crate::csi::group_controller_service_capability::{Rpc, Type, rpc};
use crate::csi::{
    CreateVolumeGroupSnapshotRequest, CreateVolumeGroupSnapshotResponse, DeleteVolumeGroupSnapshotRequest,
    DeleteVolumeGroupSnapshotResponse, GetVolumeGroupSnapshotRequest, GetVolumeGroupSnapshotResponse,
    GroupControllerGetCapabilitiesRequest, GroupControllerGetCapabilitiesResponse,
    GroupControllerServiceCapability, VolumeGroupSnapshot, group_controller_server,
};
use crate::deadline::{Deadline, open};
use crate::handle::{GroupHandle, SnapshotHandle, VolumeHandle};
use crate::parameters;
use crate::status::{self, Answer, Result, invalid, missing};

/// The most volumes of one group, as the API has it.
const MOST: usize = 64;

impl Controller {
    async fn snap_group(
        &self,
        ask: CreateVolumeGroupSnapshotRequest,
        deadline: Deadline,
    ) -> Result<CreateVolumeGroupSnapshotResponse> {
        let group = name(&ask.name)?;
        parameters::none(&ask.parameters)?;
        if ask.source_volume_ids.is_empty() {
            return Err(missing("source_volume_ids"));
        }
        if ask.source_volume_ids.len() > MOST {
            return Err(invalid(format!("source_volume_ids: there are more than {MOST}")));
        }
        let sources: Result<Vec<VolumeHandle>> =
            ask.source_volume_ids.iter().map(|id| self.handle_of(id, "source_volume_ids")).collect();
        let sources = sources?;
        let appliances: BTreeSet<_> = sources.iter().map(|s| &s.appliance).collect();
        let (Some(first), 1) = (sources.first(), appliances.len()) else {
            return Err(Status::failed_precondition(
                "source_volume_ids: they are on more than one appliance",
            ));
        };
        let appliance = self.appliance(first)?;
        let _lock = self.locks.take(format!("the group {:?}", ask.name))?;
        let volumes = sources.iter().map(|s| VolumeRef::Id(s.id)).collect();
        let wanted = &SnapshotGroupCreate { name: group, volumes };
        let made =
            appliance.call(deadline, |client| async move { client.create_snapshot_group(wanted).await });
        let made = made.await.map_err(status::of)?;
        Ok(CreateVolumeGroupSnapshotResponse { group_snapshot: Some(shown_group(appliance, made)) })
    }

    async fn drop_group(
        &self,
        ask: DeleteVolumeGroupSnapshotRequest,
        deadline: Deadline,
    ) -> Result<DeleteVolumeGroupSnapshotResponse> {
        if ask.group_snapshot_id.is_empty() {
            return Err(missing("group_snapshot_id"));
        }
        let done = DeleteVolumeGroupSnapshotResponse {};
        let Some(handle) = GroupHandle::parse(&ask.group_snapshot_id) else { return Ok(done) };
        let appliance = self.appliance(&handle)?;
        let _lock = self.locks.take(format!("group {handle}"))?;
        let found = match group(appliance, &handle.id, deadline).await {
            Err(s) if s.code() == tonic::Code::NotFound => return Ok(done),
            found => found?,
        };
        let found = shown_group(appliance, found);
        check(&found, &ask.snapshot_ids)?;
        for id in found.snapshots.iter().filter_map(|s| SnapshotHandle::parse(&s.snapshot_id)) {
            delete(appliance, &id, deadline).await?;
        }
        Ok(done)
    }

    async fn group(
        &self,
        ask: GetVolumeGroupSnapshotRequest,
        deadline: Deadline,
    ) -> Result<GetVolumeGroupSnapshotResponse> {
        let handle: GroupHandle = self.handle_of(&ask.group_snapshot_id, "group_snapshot_id")?;
        let appliance = self.appliance(&handle)?;
        let found = shown_group(appliance, group(appliance, &handle.id, deadline).await?);
        check(&found, &ask.snapshot_ids)?;
        Ok(GetVolumeGroupSnapshotResponse { group_snapshot: Some(found) })
    }
}

async fn group(appliance: &Appliance, name: &SnapshotName, deadline: Deadline) -> Result<SnapshotGroup> {
    let found = appliance.call(deadline, |client| async move { client.snapshot_group(name).await }).await;
    match found {
        // The last of them has gone, and with it the group.
        Ok(group) if group.snapshots.is_empty() => Err(Status::not_found(format!("group {name}"))),
        Err(p) if p.kind == ErrorKind::NotFound => Err(Status::not_found(p.detail)),
        found => found.map_err(status::of),
    }
}

/// Those that are named must be its own. One that has gone may still be named.
fn check(group: &VolumeGroupSnapshot, named: &[String]) -> Result<()> {
    let unnamed = group.snapshots.iter().find(|s| !named.is_empty() && !named.contains(&s.snapshot_id));
    match unnamed {
        Some(s) => Err(invalid(format!("snapshot_ids: {} is of the group, and is not named", s.snapshot_id))),
        None => Ok(()),
    }
}

fn shown_group(appliance: &Appliance, group: SnapshotGroup) -> VolumeGroupSnapshot {
    let handle = GroupHandle { appliance: appliance.name().clone(), id: group.name };
    let snapshots: Vec<_> = group.snapshots.into_iter().map(|s| shown(appliance, s)).collect();
    VolumeGroupSnapshot {
        group_snapshot_id: handle.to_string(),
        creation_time: snapshots.iter().filter_map(|s| s.creation_time).min_by_key(|t| (t.seconds, t.nanos)),
        ready_to_use: snapshots.iter().all(|s| s.ready_to_use),
        snapshots,
    }
}

#[tonic::async_trait]
impl group_controller_server::GroupController for Controller {
    async fn group_controller_get_capabilities(
        &self,
        _: Request<GroupControllerGetCapabilitiesRequest>,
    ) -> Answer<GroupControllerGetCapabilitiesResponse> {
        let of = rpc::Type::CreateDeleteGetVolumeGroupSnapshot.into();
        let capability = GroupControllerServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: of })) };
        Ok(Response::new(GroupControllerGetCapabilitiesResponse { capabilities: vec![capability] }))
    }

    async fn create_volume_group_snapshot(
        &self,
        request: Request<CreateVolumeGroupSnapshotRequest>,
    ) -> Answer<CreateVolumeGroupSnapshotResponse> {
        let (ask, deadline) = open(request);
        self.snap_group(ask, deadline).await.map(Response::new)
    }

    async fn delete_volume_group_snapshot(
        &self,
        request: Request<DeleteVolumeGroupSnapshotRequest>,
    ) -> Answer<DeleteVolumeGroupSnapshotResponse> {
        let (ask, deadline) = open(request);
        self.drop_group(ask, deadline).await.map(Response::new)
    }

    async fn get_volume_group_snapshot(
        &self,
        request: Request<GetVolumeGroupSnapshotRequest>,
    ) -> Answer<GetVolumeGroupSnapshotResponse> {
        let (ask, deadline) = open(request);
        self.group(ask, deadline).await.map(Response::new)
    }
}
