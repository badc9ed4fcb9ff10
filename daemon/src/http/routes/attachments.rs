//! Attachments: which host may use which volume.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use orlop_api::{Attachment, HostName, Page, Problem, VolumeRef};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{resolve, submit};
use crate::engine::{Action, Attach, Outcome};
use crate::http::Api;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{At, At2, Caller, Params};

/// The attachments of a volume, by host.
#[utoipa::path(get, path = "/v1/volumes/{volume}/attachments", tag = "attachments",
    params(("volume" = String, Path)), responses(
    (status = 200, body = Page<Attachment>),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn list(
    State(api): State<Api>,
    Caller(who): Caller,
    At(volume): At<VolumeRef>,
) -> ApiResult<Json<Page<Attachment>>> {
    let id = resolve(&api, &who, &volume)?;
    let hosts: Vec<HostName> = api.engine.view().hosts_of(id).cloned().collect();
    let items = hosts.iter().filter_map(|h| api.engine.attachment(id, h)).collect();
    Ok(Json(Page { items, next: None }))
}

/// One attachment: all that the initiator needs.
#[utoipa::path(get, path = "/v1/volumes/{volume}/attachments/{host}", tag = "attachments",
    params(("volume" = String, Path), ("host" = String, Path)), responses(
    (status = 200, body = Attachment),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn get(
    State(api): State<Api>,
    Caller(who): Caller,
    At2(volume, host): At2<VolumeRef, HostName>,
) -> ApiResult<Json<Attachment>> {
    let id = resolve(&api, &who, &volume)?;
    let found = api.engine.attachment(id, &host);
    let missing = || ApiError::not_found(format_args!("an attachment of volume {volume} to host {host}"));
    found.map(Json).ok_or_else(missing)
}

/// How to attach.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AttachQuery {
    /// Cut off all other hosts of the volume first.
    #[serde(default)]
    exclusive: bool,
    /// The host can't write. By NVMe it comes by a subsystem of its own then.
    #[serde(default)]
    read_only: bool,
}

/// Lets a host, or a zone, use a volume. Done when the kernel serves it.
#[utoipa::path(put, path = "/v1/volumes/{volume}/attachments/{host}", tag = "attachments",
    params(("volume" = String, Path), ("host" = String, Path), AttachQuery), responses(
    (status = 201, body = Attachment, description = "Attached now"),
    (status = 200, body = Attachment, description = "Attached already"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn put(
    State(api): State<Api>,
    Caller(who): Caller,
    At2(volume, host): At2<VolumeRef, HostName>,
    Params(how): Params<AttachQuery>,
) -> ApiResult<(StatusCode, Json<Attachment>)> {
    let how = Attach { alone: how.exclusive, read_only: how.read_only };
    match submit(&api, who, Action::Attach(volume, host, how)).await? {
        Outcome::Attachment { attachment, changed: true } => Ok((StatusCode::CREATED, Json(attachment))),
        Outcome::Attachment { attachment, changed: false } => Ok((StatusCode::OK, Json(attachment))),
        _ => Err(ApiError::unexpected()),
    }
}

/// Cuts a host off from a volume. Done when it can't do I/O any more.
#[utoipa::path(delete, path = "/v1/volumes/{volume}/attachments/{host}", tag = "attachments",
    params(("volume" = String, Path), ("host" = String, Path)), responses(
    (status = 204, description = "Cut off"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn delete(
    State(api): State<Api>,
    Caller(who): Caller,
    At2(volume, host): At2<VolumeRef, HostName>,
) -> ApiResult<StatusCode> {
    submit(&api, who, Action::Detach(volume, host)).await?;
    Ok(StatusCode::NO_CONTENT)
}
