//! Snapshots, and groups of them.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use orlop_api::{
    ByteSize, Page, Problem, Snapshot, SnapshotBlocks, SnapshotCreate, SnapshotGroup, SnapshotGroupCreate,
    SnapshotName, SnapshotRef, VolumeRef,
};
use serde::Deserialize;

use super::{WhenQuery, deleted, limit, optional, resolve, submit};
use crate::engine::{Action, BlocksOf, Outcome};
use crate::http::Api;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Ask, At, Caller, Params};

/// Which snapshots.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct SnapshotQuery {
    /// `next` of the page before.
    cursor: Option<String>,
    /// How many items, 1 to 1000; 100 unless given.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<u16>,
    /// Those of this volume, by its id or name.
    volume: Option<String>,
    /// The one with this name, or none.
    name: Option<String>,
}

/// A page of the caller's snapshots, oldest first.
#[utoipa::path(get, path = "/v1/snapshots", tag = "snapshots", params(SnapshotQuery), responses(
    (status = 200, body = Page<Snapshot>),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn list(
    State(api): State<Api>,
    Caller(who): Caller,
    Params(query): Params<SnapshotQuery>,
) -> ApiResult<Json<Page<Snapshot>>> {
    let limit = limit(query.limit)?;
    let cursor = optional("cursor", query.cursor.as_ref())?;
    let volume: Option<VolumeRef> = optional("volume", query.volume.as_ref())?;
    let name: Option<SnapshotName> = optional("name", query.name.as_ref())?;
    let volume = volume.map(|v| resolve(&api, &who, &v)).transpose()?;
    let view = api.engine.view();
    let Some(name) = name else {
        return Ok(Json(view.snapshots_page(&who, volume, cursor, limit)));
    };
    let found = view.resolve_snapshot(&who, &SnapshotRef::Name(name)).and_then(|id| view.snapshot(id));
    view.check_complete(&who, found.is_some(), "a snapshot of that name")?;
    let found = found.filter(|s| volume.is_none_or(|v| v == s.volume) && cursor.is_none_or(|c| s.id > c));
    Ok(Json(Page { items: found.into_iter().collect(), next: None }))
}

/// Which blocks.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct BlockQuery {
    /// An older snapshot of the same volume, by its id or name: those that are not as in that one. Without it those that have
    /// data.
    base: Option<String>,
    /// From this byte on: `next` of the page before.
    #[serde(default)]
    from: u64,
    /// How many ranges, 1 to 10000; 1000 unless given.
    #[param(minimum = 1, maximum = 10000, default = 1000)]
    limit: Option<u16>,
}

/// How many ranges a page has, unless asked for, and at most.
const RANGES: u16 = 1000;
const MOST_RANGES: u16 = 10_000;

/// Where a snapshot has data, or where it is not as in an older one: what a backup has to read. What is listed may read the same;
/// what is not does, for sure. No key of an encrypted volume is needed.
#[utoipa::path(get, path = "/v1/snapshots/{snapshot}/blocks", tag = "snapshots",
    params(("snapshot" = String, Path), BlockQuery), responses(
    (status = 200, body = SnapshotBlocks),
    (status = 501, body = Problem, content_type = "application/problem+json", description = "It is a ZFS file system, which has no bytes in a row"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn blocks(
    State(api): State<Api>,
    Caller(who): Caller,
    At(snapshot): At<SnapshotRef>,
    Params(query): Params<BlockQuery>,
) -> ApiResult<Json<SnapshotBlocks>> {
    let most = match query.limit.unwrap_or(RANGES) {
        n @ 1..=MOST_RANGES => n.into(),
        _ => return Err(ApiError::invalid("limit", format!("limit must be 1 to {MOST_RANGES}"))),
    };
    let base: Option<SnapshotRef> = optional("base", query.base.as_ref())?;
    let ask = BlocksOf { snapshot, base, from: ByteSize(query.from), most };
    Ok(Json(api.engine.blocks(&who, ask, who.within).await?))
}

/// Takes a snapshot of a volume, attached or not. The same request again gives the same snapshot.
#[utoipa::path(post, path = "/v1/snapshots", tag = "snapshots", request_body = SnapshotCreate, responses(
    (status = 201, body = Snapshot, description = "Taken"),
    (status = 200, body = Snapshot, description = "There already, of this volume"),
    (status = 409, body = Problem, content_type = "application/problem+json", description = "There, of another"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn create(
    State(api): State<Api>,
    Caller(who): Caller,
    Ask(ask): Ask<SnapshotCreate>,
) -> ApiResult<(StatusCode, Json<Snapshot>)> {
    match submit(&api, who, Action::CreateSnapshot(ask)).await? {
        Outcome::Snapshot { snapshot, changed: true } => Ok((StatusCode::CREATED, Json(snapshot))),
        Outcome::Snapshot { snapshot, changed: false } => Ok((StatusCode::OK, Json(snapshot))),
        _ => Err(ApiError::unexpected()),
    }
}

/// One snapshot, by id or by name.
#[utoipa::path(get, path = "/v1/snapshots/{snapshot}", tag = "snapshots", params(("snapshot" = String, Path)),
    responses(
    (status = 200, body = Snapshot),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn get(
    State(api): State<Api>,
    Caller(who): Caller,
    At(snapshot): At<SnapshotRef>,
) -> ApiResult<Json<Snapshot>> {
    let view = api.engine.view();
    let found = view.resolve_snapshot(&who, &snapshot).and_then(|id| view.snapshot(id));
    found.map(Json).ok_or_else(|| view.no_snapshot(&who, &snapshot).into())
}

/// Deletes a snapshot.
///
/// With `when=unused` one that clones live on can't be used any more, and goes when the last of them
/// does.
#[utoipa::path(delete, path = "/v1/snapshots/{snapshot}", tag = "snapshots",
    params(("snapshot" = String, Path), WhenQuery), responses(
    (status = 204, description = "Gone"),
    (status = 202, description = "Goes when nothing depends on it any more"),
    (status = 412, body = Problem, content_type = "application/problem+json",
        description = "Is depended on: by what is listed"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn delete(
    State(api): State<Api>,
    Caller(who): Caller,
    At(snapshot): At<SnapshotRef>,
    Params(query): Params<WhenQuery>,
) -> ApiResult<StatusCode> {
    deleted(submit(&api, who, Action::DeleteSnapshot(snapshot, query.when)).await?)
}

/// Takes snapshots of several volumes of one pool, all at one instant. The same request again gives the
/// same group.
#[utoipa::path(post, path = "/v1/snapshot-groups", tag = "snapshots", request_body = SnapshotGroupCreate,
    responses(
    (status = 201, body = SnapshotGroup, description = "Taken"),
    (status = 200, body = SnapshotGroup, description = "There already, of these volumes"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn create_group(
    State(api): State<Api>,
    Caller(who): Caller,
    Ask(ask): Ask<SnapshotGroupCreate>,
) -> ApiResult<(StatusCode, Json<SnapshotGroup>)> {
    match submit(&api, who, Action::CreateSnapshotGroup(ask)).await? {
        Outcome::SnapshotGroup { group, changed: true } => Ok((StatusCode::CREATED, Json(group))),
        Outcome::SnapshotGroup { group, changed: false } => Ok((StatusCode::OK, Json(group))),
        _ => Err(ApiError::unexpected()),
    }
}

/// One group: those of its snapshots that are there.
#[utoipa::path(get, path = "/v1/snapshot-groups/{group}", tag = "snapshots", params(("group" = String, Path)),
    responses(
    (status = 200, body = SnapshotGroup),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn get_group(
    State(api): State<Api>,
    Caller(who): Caller,
    At(group): At<SnapshotName>,
) -> ApiResult<Json<SnapshotGroup>> {
    let view = api.engine.view();
    let found = view.group(&who, &group);
    found.map(Json).ok_or_else(|| view.absence(&who, format_args!("snapshot group {group}")).into())
}
