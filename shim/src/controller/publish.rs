//! Letting a node use a volume, and cutting it off.

use std::collections::HashMap;

use orlop_api::client::AttachAs;
use orlop_api::{Attachment, ErrorKind, HostName, Problem, Protocol, VolumeRef};
use tonic::{Code, Status};

use super::{Controller, capability, volume};
use crate::appliances::Appliance;
use crate::csi::{
    ControllerPublishVolumeRequest, ControllerPublishVolumeResponse, ControllerUnpublishVolumeRequest,
    ControllerUnpublishVolumeResponse,
};
use crate::deadline::Deadline;
use crate::handle::VolumeHandle;
use crate::node_id::{NodeId, has_secret};
use crate::parameters::key;
use crate::status::{self, Result, invalid, missing};

/// Where the node's part finds all that it needs: the attachment, in JSON, as the appliance says it.
pub const ATTACHMENT: &str = "attachment";

impl Controller {
    pub(super) async fn publish(
        &self,
        ask: ControllerPublishVolumeRequest,
        deadline: Deadline,
    ) -> Result<ControllerPublishVolumeResponse> {
        if ask.volume_id.is_empty() {
            return Err(missing("volume_id"));
        }
        if ask.node_id.is_empty() {
            return Err(missing("node_id"));
        }
        let capability = ask.volume_capability.as_ref().ok_or_else(|| missing("volume_capability"))?;
        let mode = capability::mode(capability)?;
        let (handle, appliance) = self.volume_of(&ask.volume_id)?;
        let node: NodeId = ask
            .node_id
            .parse()
            .map_err(|e| Status::not_found(format!("node_id: there is no {:?}: {e}", ask.node_id)))?;
        let _lock = self.locks.take(format!("volume {handle}"))?;
        let found = volume(appliance, handle.id, deadline).await?;
        if let Some(why) = capability::objection(capability, found.protocol)? {
            return Err(invalid(why));
        }
        let how = AttachAs { exclusive: false, read_only: ask.readonly || capability::is_read_only(mode) };
        if let Some(zone) = ask.volume_context.get(key::ZONE) {
            let zone = zone.parse().map_err(status::malformed("volume_context: zone"))?;
            let attached = attach(appliance, &handle, &zone, how, deadline).await.map_err(status::of)?;
            return answer(&attached);
        }
        let others: Vec<_> = found.hosts.iter().filter(|host| **host != node.name).collect();
        if capability::is_for_one_node(mode) && !others.is_empty() {
            // They are cut off when they are unpublished, and not before.
            let others: Vec<_> = others.into_iter().map(HostName::as_str).collect();
            let text =
                format!("volume {handle} is published at {}, and may be at one node only", others.join(", "));
            return Err(Status::failed_precondition(text));
        }
        let asks_for_proof = ask.volume_context.get(key::AUTHENTICATION).is_some_and(|v| v == "required");
        self.introduce(appliance, &node, asks_for_proof.then_some(found.protocol), deadline).await?;
        let attached = match attach(appliance, &handle, &node.name, how, deadline).await {
            // It was known, and somebody has deleted it since, or changed what it is known by.
            Err(p) if matches!(p.kind, ErrorKind::NotFound | ErrorKind::Precondition) => {
                self.forget(appliance, &node);
                self.introduce(appliance, &node, None, deadline).await?;
                attach(appliance, &handle, &node.name, how, deadline).await
            }
            attached => attached,
        };
        answer(&attached.map_err(status::of)?)
    }

    /// Sees to it that the appliance knows a node by all that it is known by now.
    async fn introduce(
        &self,
        appliance: &Appliance,
        node: &NodeId,
        must_prove: Option<Protocol>,
        deadline: Deadline,
    ) -> Result<()> {
        let entry = (appliance.name().clone(), node.to_string());
        if must_prove.is_none() && self.known.lock().contains(&entry) {
            return Ok(());
        }
        let put = appliance
            .call(deadline, |client| async move { client.put_host(&node.name, &node.known_by).await });
        let host = put.await.map_err(status::of)?;
        if let Some(protocol) = must_prove {
            has_secret(&host, protocol, appliance.name())?;
        }
        self.known.lock().insert(entry);
        Ok(())
    }

    fn forget(&self, appliance: &Appliance, node: &NodeId) {
        self.known.lock().remove(&(appliance.name().clone(), node.to_string()));
    }

    /// Done when the node can't write any more.
    pub(super) async fn unpublish(
        &self,
        ask: ControllerUnpublishVolumeRequest,
        deadline: Deadline,
    ) -> Result<ControllerUnpublishVolumeResponse> {
        if ask.volume_id.is_empty() {
            return Err(missing("volume_id"));
        }
        let done = ControllerUnpublishVolumeResponse {};
        let Some(handle) = VolumeHandle::parse(&ask.volume_id) else { return Ok(done) };
        let appliance = self.appliance(&handle)?;
        let _lock = self.locks.take(format!("volume {handle}"))?;
        let hosts = if ask.node_id.is_empty() {
            // From all nodes.
            match volume(appliance, handle.id, deadline).await {
                Ok(volume) => volume.hosts,
                Err(s) if s.code() == Code::NotFound => return Ok(done),
                Err(s) => return Err(s),
            }
        } else {
            // By its name alone: whatever it was known by, that is who was let in.
            let name = ask.node_id.split(' ').next().unwrap_or_default();
            match name.parse() {
                Ok(name) => vec![name],
                Err(_) => return Ok(done),
            }
        };
        let by = &VolumeRef::Id(handle.id);
        for host in &hosts {
            let detached = appliance.call(deadline, |client| async move { client.detach(by, host).await });
            status::gone(detached.await)?;
        }
        Ok(done)
    }
}

#[allow(clippy::result_large_err)]
async fn attach(
    appliance: &Appliance,
    handle: &VolumeHandle,
    host: &HostName,
    how: AttachAs,
    deadline: Deadline,
) -> std::result::Result<Attachment, Problem> {
    let by = &VolumeRef::Id(handle.id);
    let attached = appliance.call(deadline, |client| async move { client.attach_as(by, host, &how).await });
    attached.await
}

fn answer(attached: &Attachment) -> Result<ControllerPublishVolumeResponse> {
    let text = serde_json::to_string(attached).map_err(|e| Status::internal(e.to_string()))?;
    Ok(ControllerPublishVolumeResponse { publish_context: HashMap::from([(ATTACHMENT.into(), text)]) })
}
