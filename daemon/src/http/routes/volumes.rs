//! Volumes.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use orlop_api::{
    Page, PoolName, Problem, Volume, VolumeCreate, VolumeKey, VolumeName, VolumeRef, VolumeUpdate,
};
use serde::Deserialize;

use super::{WhenQuery, deleted, limit, optional, submit};
use crate::engine::{Action, Outcome};
use crate::http::Api;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Ask, At, Caller, Params};

/// Which volumes.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct VolumeQuery {
    /// `next` of the page before.
    cursor: Option<String>,
    /// How many items, 1 to 1000; 100 unless given.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<u16>,
    /// Those of this pool.
    pool: Option<String>,
    /// The one with this name, or none.
    name: Option<String>,
}

/// A page of the caller's volumes, oldest first.
#[utoipa::path(get, path = "/v1/volumes", tag = "volumes", params(VolumeQuery), responses(
    (status = 200, body = Page<Volume>),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn list(
    State(api): State<Api>,
    Caller(who): Caller,
    Params(query): Params<VolumeQuery>,
) -> ApiResult<Json<Page<Volume>>> {
    let limit = limit(query.limit)?;
    let cursor = optional("cursor", query.cursor.as_ref())?;
    let pool: Option<PoolName> = optional("pool", query.pool.as_ref())?;
    let name: Option<VolumeName> = optional("name", query.name.as_ref())?;
    let view = api.engine.view();
    let Some(name) = name else {
        return Ok(Json(view.volumes_page(&who, pool.as_ref(), cursor, limit)));
    };
    let found = view.resolve(&who, &VolumeRef::Name(name)).and_then(|id| view.volume(id));
    view.check_complete(&who, found.is_some(), "a volume of that name")?;
    let found = found.filter(|v| pool.is_none_or(|p| p == v.pool) && cursor.is_none_or(|c| v.id > c));
    Ok(Json(Page { items: found.into_iter().collect(), next: None }))
}

/// Makes a volume. The same request again gives the same volume.
#[utoipa::path(post, path = "/v1/volumes", tag = "volumes", request_body = VolumeCreate, responses(
    (status = 201, body = Volume, description = "Made"),
    (status = 200, body = Volume, description = "There already, with this specification"),
    (status = 409, body = Problem, content_type = "application/problem+json", description = "There with another"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn create(
    State(api): State<Api>,
    Caller(who): Caller,
    Ask(ask): Ask<VolumeCreate>,
) -> ApiResult<(StatusCode, Json<Volume>)> {
    match submit(&api, who, Action::CreateVolume(ask)).await? {
        Outcome::Volume { volume, changed: true } => Ok((StatusCode::CREATED, Json(volume))),
        Outcome::Volume { volume, changed: false } => Ok((StatusCode::OK, Json(volume))),
        _ => Err(ApiError::unexpected()),
    }
}

/// One volume, by id or by name.
#[utoipa::path(get, path = "/v1/volumes/{volume}", tag = "volumes", params(("volume" = String, Path)), responses(
    (status = 200, body = Volume),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn get(
    State(api): State<Api>,
    Caller(who): Caller,
    At(volume): At<VolumeRef>,
) -> ApiResult<Json<Volume>> {
    // One look at the view: between two of them the volume could go.
    let view = api.engine.view();
    let found = view.resolve(&who, &volume).and_then(|id| view.volume(id));
    found.map(Json).ok_or_else(|| view.no_volume(&who, &volume).into())
}

/// Makes a volume larger, or gives it other properties, attached or not. What is given is changed.
#[utoipa::path(patch, path = "/v1/volumes/{volume}", tag = "volumes", params(("volume" = String, Path)),
    request_body = VolumeUpdate, responses(
    (status = 200, body = Volume),
    (status = 501, body = Problem, content_type = "application/problem+json",
        description = "Its pool can't do that, or not any more: see the field"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn update(
    State(api): State<Api>,
    Caller(who): Caller,
    At(volume): At<VolumeRef>,
    Ask(ask): Ask<VolumeUpdate>,
) -> ApiResult<Json<Volume>> {
    match submit(&api, who, Action::UpdateVolume(volume, ask)).await? {
        Outcome::Volume { volume, .. } => Ok(Json(volume)),
        _ => Err(ApiError::unexpected()),
    }
}

/// Brings the key of an encrypted volume, which stays in memory until the machine is started again. Linked clones
/// are unlocked with it, and hosts that are attached are served again.
#[utoipa::path(post, path = "/v1/volumes/{volume}/unlock", tag = "volumes", params(("volume" = String, Path)),
    request_body = VolumeKey, responses(
    (status = 200, body = Volume, description = "Unlocked, also if it was"),
    (status = 400, body = Problem, content_type = "application/problem+json", description = "This is not its key"),
    (status = 412, body = Problem, content_type = "application/problem+json", description = "It is not encrypted"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn unlock(
    State(api): State<Api>,
    Caller(who): Caller,
    At(volume): At<VolumeRef>,
    Ask(ask): Ask<VolumeKey>,
) -> ApiResult<Json<Volume>> {
    match submit(&api, who, Action::UnlockVolume(volume, ask.key)).await? {
        Outcome::Volume { volume, .. } => Ok(Json(volume)),
        _ => Err(ApiError::unexpected()),
    }
}

/// The key of an encrypted volume, if the appliance keeps it: for a safe place elsewhere. Who has it and the disks
/// can read the volume.
#[utoipa::path(get, path = "/v1/volumes/{volume}/key", tag = "volumes", params(("volume" = String, Path)), responses(
    (status = 200, body = VolumeKey),
    (status = 412, body = Problem, content_type = "application/problem+json",
        description = "It is not encrypted, or its key is not kept here"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn key(
    State(api): State<Api>,
    Caller(who): Caller,
    At(volume): At<VolumeRef>,
) -> ApiResult<([(header::HeaderName, &'static str); 1], Json<VolumeKey>)> {
    match submit(&api, who, Action::ShowKey(volume)).await? {
        Outcome::Key(key) => Ok(([(header::CACHE_CONTROL, "no-store")], Json(key))),
        _ => Err(ApiError::unexpected()),
    }
}

/// Deletes a volume that no host is attached to.
///
/// With `when=unused` one that others depend on can't be used any more, and goes when the last of them
/// does. A copy into it ends.
#[utoipa::path(delete, path = "/v1/volumes/{volume}", tag = "volumes", params(("volume" = String, Path), WhenQuery),
    responses(
    (status = 204, description = "Gone"),
    (status = 202, description = "Goes when nothing depends on it any more"),
    (status = 412, body = Problem, content_type = "application/problem+json",
        description = "Is attached, or is depended on: by what is listed"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn delete(
    State(api): State<Api>,
    Caller(who): Caller,
    At(volume): At<VolumeRef>,
    Params(query): Params<WhenQuery>,
) -> ApiResult<StatusCode> {
    deleted(submit(&api, who, Action::DeleteVolume(volume, query.when)).await?)
}
