//! Volumes that are there: deleting, growing, changing and looking at them.

use orlop_api::{HostName, Protocol, VolumeRef, VolumeUpdate, When};
use tonic::{Code, Status};

use super::create::{Range, differs};
use super::{Controller, bytes, capability, condition, volume};
use crate::appliances::Appliance;
use crate::csi::validate_volume_capabilities_response::Confirmed;
use crate::csi::{
    ControllerExpandVolumeRequest, ControllerExpandVolumeResponse, ControllerGetVolumeRequest,
    ControllerGetVolumeResponse, ControllerModifyVolumeRequest, ControllerModifyVolumeResponse,
    DeleteVolumeRequest, DeleteVolumeResponse, ValidateVolumeCapabilitiesRequest,
    ValidateVolumeCapabilitiesResponse, Volume, controller_get_volume_response,
};
use crate::deadline::Deadline;
use crate::handle::VolumeHandle;
use crate::parameters::{self, Parameters};
use crate::status::{self, Result, missing};

impl Controller {
    /// What depends on it keeps it until that goes: it can't be used any more, and its name is free.
    pub(super) async fn delete(
        &self,
        ask: DeleteVolumeRequest,
        deadline: Deadline,
    ) -> Result<DeleteVolumeResponse> {
        if ask.volume_id.is_empty() {
            return Err(missing("volume_id"));
        }
        // It is none of ours, so it is not there.
        let Some(handle) = VolumeHandle::parse(&ask.volume_id) else { return Ok(DeleteVolumeResponse {}) };
        let appliance = self.appliance(&handle)?;
        let _lock = self.locks.take(format!("volume {handle}"))?;
        let by = &VolumeRef::Id(handle.id);
        let delete = || {
            appliance
                .call(deadline, |client| async move { client.delete_volume_when(by, When::Unused).await })
        };
        let deleted = match delete().await {
            // Zones are attached for as long as there is the volume: no node is.
            Err(p) if p.kind == orlop_api::ErrorKind::Precondition => {
                match self.detach_zones(appliance, &handle, deadline).await? {
                    true => delete().await,
                    false => Err(p),
                }
            }
            deleted => deleted,
        };
        status::gone(deleted)?;
        Ok(DeleteVolumeResponse {})
    }

    /// Whether it was attached to zones, and to nothing else.
    async fn detach_zones(
        &self,
        appliance: &Appliance,
        handle: &VolumeHandle,
        deadline: Deadline,
    ) -> Result<bool> {
        let attached = match volume(appliance, handle.id, deadline).await {
            Ok(volume) => volume.hosts,
            Err(s) if s.code() == Code::NotFound => return Ok(false),
            Err(s) => return Err(s),
        };
        let zones = appliance.call(deadline, |client| async move { client.all_zones().await }).await;
        let zones: Vec<HostName> = zones.map_err(status::of)?.into_iter().map(|zone| zone.name).collect();
        if attached.is_empty() || !attached.iter().all(|host| zones.contains(host)) {
            return Ok(false);
        }
        let by = &VolumeRef::Id(handle.id);
        for zone in &attached {
            let detached = appliance.call(deadline, |client| async move { client.detach(by, zone).await });
            status::gone(detached.await)?;
        }
        Ok(true)
    }

    pub(super) async fn expand(
        &self,
        ask: ControllerExpandVolumeRequest,
        deadline: Deadline,
    ) -> Result<ControllerExpandVolumeResponse> {
        let (handle, appliance) = self.volume_of(&ask.volume_id)?;
        if ask.capacity_range.is_none() {
            return Err(missing("capacity_range"));
        }
        let _lock = self.locks.take(format!("volume {handle}"))?;
        let is = volume(appliance, handle.id, deadline).await?;
        let range = Range::of(ask.capacity_range.as_ref(), is.size.bytes())?;
        let size = match range.has(is.size) {
            true => is.size,
            false => {
                let granularity = appliance.granularity(&is.pool, deadline).await.map_err(status::of)?;
                let size = range.size(granularity)?;
                if size < is.size {
                    let text = format!(
                        "capacity_range: it has {} bytes already, and does not shrink",
                        is.size.bytes()
                    );
                    return Err(Status::out_of_range(text));
                }
                self.update(appliance, &handle, VolumeUpdate::to_size(size), deadline).await?;
                size
            }
        };
        Ok(grown(&ask, is.protocol, size.bytes()))
    }

    async fn update(
        &self,
        appliance: &Appliance,
        handle: &VolumeHandle,
        update: VolumeUpdate,
        deadline: Deadline,
    ) -> Result<orlop_api::Volume> {
        let (by, update) = (&VolumeRef::Id(handle.id), &update);
        let updated =
            appliance.call(deadline, |client| async move { client.update_volume(by, update).await });
        updated.await.map_err(status::of)
    }

    pub(super) async fn modify(
        &self,
        ask: ControllerModifyVolumeRequest,
        deadline: Deadline,
    ) -> Result<ControllerModifyVolumeResponse> {
        let (handle, appliance) = self.volume_of(&ask.volume_id)?;
        let update = parameters::mutable(&ask.mutable_parameters)?;
        let _lock = self.locks.take(format!("volume {handle}"))?;
        if update == VolumeUpdate::default() {
            volume(appliance, handle.id, deadline).await?;
        } else {
            self.update(appliance, &handle, update, deadline).await?;
        }
        Ok(ControllerModifyVolumeResponse {})
    }

    pub(super) async fn get(
        &self,
        ask: ControllerGetVolumeRequest,
        deadline: Deadline,
    ) -> Result<ControllerGetVolumeResponse> {
        let (handle, appliance) = self.volume_of(&ask.volume_id)?;
        let found = volume(appliance, handle.id, deadline).await?;
        let hosts = self.node_ids(appliance, deadline).await?;
        let published = found.hosts.iter().filter_map(|host| hosts.get(host).cloned()).collect();
        let status = controller_get_volume_response::VolumeStatus {
            published_node_ids: published,
            volume_condition: Some(condition(&found)),
        };
        Ok(ControllerGetVolumeResponse { volume: Some(shown(appliance, &found)), status: Some(status) })
    }

    pub(super) async fn validate(
        &self,
        ask: ValidateVolumeCapabilitiesRequest,
        deadline: Deadline,
    ) -> Result<ValidateVolumeCapabilitiesResponse> {
        let (handle, appliance) = self.volume_of(&ask.volume_id)?;
        if ask.volume_capabilities.is_empty() {
            return Err(missing("volume_capabilities"));
        }
        let found = volume(appliance, handle.id, deadline).await?;
        let no = |message: String| ValidateVolumeCapabilitiesResponse { confirmed: None, message };
        for capability in &ask.volume_capabilities {
            if let Some(why) = capability::objection(capability, found.protocol)? {
                return Ok(no(why));
            }
        }
        let asked = (Parameters::parse(&ask.parameters), parameters::mutable(&ask.mutable_parameters));
        let (parameters, changes) = match asked {
            (Ok(parameters), Ok(changes)) => (parameters, changes),
            (Err(s), _) | (_, Err(s)) => return Ok(no(s.message().into())),
        };
        let said = !ask.parameters.is_empty() || !ask.mutable_parameters.is_empty();
        let properties = parameters.properties.with(changes.properties);
        if let Some(why) = said.then(|| differs(&found, &parameters, properties)).flatten() {
            return Ok(no(why));
        }
        let confirmed = Confirmed {
            volume_context: ask.volume_context,
            volume_capabilities: ask.volume_capabilities,
            parameters: ask.parameters,
            mutable_parameters: ask.mutable_parameters,
        };
        Ok(ValidateVolumeCapabilitiesResponse { confirmed: Some(confirmed), message: String::new() })
    }
}

/// What the node has still to do: a file system on a disk grows there, and a SCSI disk must be asked again.
fn grown(
    ask: &ControllerExpandVolumeRequest,
    protocol: Protocol,
    size: u64,
) -> ControllerExpandVolumeResponse {
    let is_block = ask.volume_capability.as_ref().is_some_and(capability::is_block);
    let node_expansion_required = match protocol {
        Protocol::Nfs => false,
        Protocol::Iscsi => true,
        Protocol::Nvme => !is_block,
    };
    ControllerExpandVolumeResponse { capacity_bytes: bytes(size), node_expansion_required }
}

/// A volume as it is listed. Its context is known to who made it alone.
pub(super) fn shown(appliance: &Appliance, volume: &orlop_api::Volume) -> Volume {
    Volume {
        capacity_bytes: bytes(volume.size.bytes()),
        volume_id: VolumeHandle { appliance: appliance.name().clone(), id: volume.id }.to_string(),
        accessible_topology: appliance.topology().into_iter().collect(),
        ..Volume::default()
    }
}
