//! Snapshots of one volume.

use orlop_api::client::SnapshotFilter;
use orlop_api::{
    ErrorKind, Page, Snapshot as ApiSnapshot, SnapshotCreate, SnapshotName, SnapshotRef, SnapshotState,
    VolumeRef, When,
};
use tonic::{Code, Status};

use super::list::stale;
use super::{Controller, bytes};
use crate::appliances::Appliance;
use crate::csi::{
    CreateSnapshotRequest, CreateSnapshotResponse, DeleteSnapshotRequest, DeleteSnapshotResponse,
    GetSnapshotRequest, GetSnapshotResponse, ListSnapshotsRequest, ListSnapshotsResponse, Snapshot,
    list_snapshots_response,
};
use crate::deadline::Deadline;
use crate::handle::{GroupHandle, LONGEST_NAME, SnapshotHandle, VolumeHandle, name_for};
use crate::parameters;
use crate::status::{self, Result, invalid, missing};

/// The name of a snapshot or a group, as the appliance can have it.
pub(super) fn name(name: &str) -> Result<SnapshotName> {
    if name.is_empty() {
        return Err(missing("name"));
    }
    if name.len() > LONGEST_NAME {
        return Err(invalid(format!("name: it is longer than {LONGEST_NAME} bytes")));
    }
    name_for(name).ok_or_else(|| invalid("name: no snapshot can be called so"))
}

impl Controller {
    pub(super) async fn snap(
        &self,
        ask: CreateSnapshotRequest,
        deadline: Deadline,
    ) -> Result<CreateSnapshotResponse> {
        let name = name(&ask.name)?;
        parameters::none(&ask.parameters)?;
        let (handle, appliance) = self.named(&ask.source_volume_id)?;
        let _lock = self.locks.take(format!("the snapshot {:?}", ask.name))?;
        let wanted = &SnapshotCreate { name, volume: VolumeRef::Id(handle.id) };
        let made = appliance.call(deadline, |client| async move { client.create_snapshot(wanted).await });
        let made = made.await.map_err(status::of)?;
        Ok(CreateSnapshotResponse { snapshot: Some(shown(appliance, made)) })
    }

    /// The volume of a snapshot that is to be taken.
    fn named(&self, source: &str) -> Result<(VolumeHandle, &std::sync::Arc<Appliance>)> {
        let handle = self.handle_of(source, "source_volume_id")?;
        let appliance = self.appliance(&handle)?;
        Ok((handle, appliance))
    }

    /// What depends on it keeps it until that goes.
    pub(super) async fn drop_snapshot(
        &self,
        ask: DeleteSnapshotRequest,
        deadline: Deadline,
    ) -> Result<DeleteSnapshotResponse> {
        if ask.snapshot_id.is_empty() {
            return Err(missing("snapshot_id"));
        }
        let Some(handle) = SnapshotHandle::parse(&ask.snapshot_id) else {
            return Ok(DeleteSnapshotResponse {});
        };
        let appliance = self.appliance(&handle)?;
        let _lock = self.locks.take(format!("snapshot {handle}"))?;
        delete(appliance, &handle, deadline).await?;
        Ok(DeleteSnapshotResponse {})
    }

    pub(super) async fn snapshot(
        &self,
        ask: GetSnapshotRequest,
        deadline: Deadline,
    ) -> Result<GetSnapshotResponse> {
        let handle: SnapshotHandle = self.handle_of(&ask.snapshot_id, "snapshot_id")?;
        let appliance = self.appliance(&handle)?;
        let found = find(appliance, &handle, deadline).await?;
        Ok(GetSnapshotResponse { snapshot: Some(shown(appliance, found)) })
    }

    pub(super) async fn snapshots(
        &self,
        ask: ListSnapshotsRequest,
        deadline: Deadline,
    ) -> Result<ListSnapshotsResponse> {
        if !ask.snapshot_id.is_empty() {
            return self.one_snapshot(&ask, deadline).await;
        }
        let of = match ask.source_volume_id.as_str() {
            "" => None,
            // What is none of ours has no snapshots.
            id => match VolumeHandle::parse(id) {
                Some(handle) => Some(handle),
                None => return Ok(ListSnapshotsResponse::default()),
            },
        };
        if let Some(handle) = &of {
            self.appliance(handle)?;
        }
        let of = of.as_ref();
        let (max, token) = (ask.max_entries, &ask.starting_token);
        let (entries, next_token) = self
            .pages(
                max,
                token,
                |appliance, cursor, limit| {
                    let elsewhere = of.is_some_and(|of| of.appliance != *appliance.name());
                    let volume = of.map(|of| VolumeRef::Id(of.id));
                    let filter = SnapshotFilter { cursor, limit: Some(limit), volume, name: None };
                    async move {
                        if elsewhere {
                            return Ok(Page { items: Vec::new(), next: None });
                        }
                        let filter = &filter;
                        let listed =
                            appliance.call(deadline, |client| async move { client.snapshots(filter).await });
                        match listed.await {
                            Err(p) if p.kind == ErrorKind::NotFound => {
                                Ok(Page { items: Vec::new(), next: None })
                            }
                            listed => listed.map_err(stale).map(|mut page: Page<ApiSnapshot>| {
                                page.items.retain(|s| s.state != SnapshotState::Deleting);
                                page
                            }),
                        }
                    }
                },
                |appliance, snapshot| async move { Ok(listed(appliance, snapshot)) },
            )
            .await?;
        Ok(ListSnapshotsResponse { entries, next_token })
    }

    async fn one_snapshot(
        &self,
        ask: &ListSnapshotsRequest,
        deadline: Deadline,
    ) -> Result<ListSnapshotsResponse> {
        let none = ListSnapshotsResponse::default();
        let Some(handle) = SnapshotHandle::parse(&ask.snapshot_id) else { return Ok(none) };
        let appliance = self.appliance(&handle)?;
        let found = match find(appliance, &handle, deadline).await {
            Ok(found) => found,
            Err(s) if s.code() == Code::NotFound => return Ok(none),
            Err(s) => return Err(s),
        };
        let entry = listed(appliance, found);
        let of = entry.snapshot.as_ref().map(|s| s.source_volume_id.as_str());
        if !ask.source_volume_id.is_empty() && of != Some(&ask.source_volume_id) {
            return Ok(none);
        }
        Ok(ListSnapshotsResponse { entries: vec![entry], next_token: String::new() })
    }
}

/// Deletes one, now or when nothing depends on it. Fine if it is not there.
pub(super) async fn delete(appliance: &Appliance, handle: &SnapshotHandle, deadline: Deadline) -> Result<()> {
    let by = &SnapshotRef::Id(handle.id);
    let deleted =
        appliance.call(deadline, |client| async move { client.delete_snapshot(by, When::Unused).await });
    status::gone(deleted.await).map(drop)
}

/// One that is there: one that was deleted, and goes later, is gone to its user.
pub(super) async fn find(
    appliance: &Appliance,
    handle: &SnapshotHandle,
    deadline: Deadline,
) -> std::result::Result<ApiSnapshot, Status> {
    let by = &SnapshotRef::Id(handle.id);
    let found = appliance.call(deadline, |client| async move { client.snapshot(by).await });
    let found = found.await.map_err(status::of)?;
    if found.state == SnapshotState::Deleting {
        return Err(Status::not_found(format!("snapshot {handle} is deleted")));
    }
    Ok(found)
}

fn listed(appliance: &Appliance, snapshot: ApiSnapshot) -> list_snapshots_response::Entry {
    list_snapshots_response::Entry { snapshot: Some(shown(appliance, snapshot)) }
}

/// As CSI shows it.
pub(super) fn shown(appliance: &Appliance, snapshot: ApiSnapshot) -> Snapshot {
    let name = appliance.name().clone();
    let created = snapshot.created;
    Snapshot {
        size_bytes: bytes(snapshot.size.bytes()),
        snapshot_id: SnapshotHandle { appliance: name.clone(), id: snapshot.id }.to_string(),
        source_volume_id: VolumeHandle { appliance: name.clone(), id: snapshot.volume }.to_string(),
        creation_time: Some(prost_types::Timestamp {
            seconds: created.as_second(),
            nanos: created.subsec_nanosecond(),
        }),
        ready_to_use: snapshot.ready,
        group_snapshot_id: snapshot
            .group
            .map_or_else(String::new, |id| GroupHandle { appliance: name, id }.to_string()),
    }
}
