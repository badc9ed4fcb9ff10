//! Zones: parts of the network, whose hosts use file systems by NFS.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use orlop_api::{HostName, Page, Problem, Zone, ZonePut};

use super::{PageQuery, limit, optional, submit};
use crate::engine::{Action, Outcome};
use crate::http::Api;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Ask, At, Caller, Params};

/// A page of zones, by name.
#[utoipa::path(get, path = "/v1/zones", tag = "zones", params(PageQuery), responses(
    (status = 200, body = Page<Zone>),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn list(
    State(api): State<Api>,
    Caller(who): Caller,
    Params(query): Params<PageQuery>,
) -> ApiResult<Json<Page<Zone>>> {
    let limit = limit(query.limit)?;
    let cursor: Option<HostName> = optional("cursor", query.cursor.as_ref())?;
    Ok(Json(api.engine.view().zones_page(&who, cursor.as_ref(), limit)))
}

/// One zone.
#[utoipa::path(get, path = "/v1/zones/{zone}", tag = "zones", params(("zone" = String, Path)), responses(
    (status = 200, body = Zone),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn get(
    State(api): State<Api>,
    Caller(who): Caller,
    At(name): At<HostName>,
) -> ApiResult<Json<Zone>> {
    let found = api.engine.view().zone(&who, &name);
    found.map(Json).ok_or_else(|| ApiError::not_found(format_args!("zone {name}")))
}

/// Makes a zone, or changes it. It is attached to volumes like a host; where it is attached, who is no longer in it is cut
/// off before the answer.
#[utoipa::path(put, path = "/v1/zones/{zone}", tag = "zones", params(("zone" = String, Path)),
    request_body = ZonePut, responses(
    (status = 201, body = Zone, description = "Made"),
    (status = 200, body = Zone, description = "Changed, or there already"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn put(
    State(api): State<Api>,
    Caller(who): Caller,
    At(name): At<HostName>,
    Ask(ask): Ask<ZonePut>,
) -> ApiResult<(StatusCode, Json<Zone>)> {
    match submit(&api, who, Action::PutZone(name, ask)).await? {
        Outcome::Zone { zone, made: true } => Ok((StatusCode::CREATED, Json(zone))),
        Outcome::Zone { zone, .. } => Ok((StatusCode::OK, Json(zone))),
        _ => Err(ApiError::unexpected()),
    }
}

/// Forgets a zone that has no attachment.
#[utoipa::path(delete, path = "/v1/zones/{zone}", tag = "zones", params(("zone" = String, Path)), responses(
    (status = 204, description = "Gone"),
    (status = 412, body = Problem, content_type = "application/problem+json", description = "Has attachments"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn delete(
    State(api): State<Api>,
    Caller(who): Caller,
    At(name): At<HostName>,
) -> ApiResult<StatusCode> {
    submit(&api, who, Action::DeleteZone(name)).await?;
    Ok(StatusCode::NO_CONTENT)
}
