//! Hosts.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use orlop_api::{Host, HostName, HostPut, Page, Problem};

use super::{PageQuery, limit, optional, submit};
use crate::engine::{Action, Outcome};
use crate::http::Api;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Ask, At, Caller, Params};

/// A page of hosts, by name.
#[utoipa::path(get, path = "/v1/hosts", tag = "hosts", params(PageQuery), responses(
    (status = 200, body = Page<Host>),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn list(State(api): State<Api>, Params(query): Params<PageQuery>) -> ApiResult<Json<Page<Host>>> {
    let limit = limit(query.limit)?;
    let cursor: Option<HostName> = optional("cursor", query.cursor.as_ref())?;
    Ok(Json(api.engine.view().hosts_page(cursor.as_ref(), limit)))
}

/// One host.
#[utoipa::path(get, path = "/v1/hosts/{host}", tag = "hosts", params(("host" = String, Path)), responses(
    (status = 200, body = Host),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn get(State(api): State<Api>, At(name): At<HostName>) -> ApiResult<Json<Host>> {
    let found = api.engine.view().host(&name);
    found.map(Json).ok_or_else(|| ApiError::not_found(format_args!("host {name}")))
}

/// Makes a host, or changes its NQN while it has no attachment.
#[utoipa::path(put, path = "/v1/hosts/{host}", tag = "hosts", params(("host" = String, Path)),
    request_body = HostPut, responses(
    (status = 201, body = Host, description = "Made"),
    (status = 200, body = Host, description = "Changed, or there already"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn put(
    State(api): State<Api>,
    Caller(who): Caller,
    At(name): At<HostName>,
    Ask(ask): Ask<HostPut>,
) -> ApiResult<(StatusCode, Json<Host>)> {
    match submit(&api, who, Action::PutHost(name, ask)).await? {
        Outcome::Host { host, made: true } => Ok((StatusCode::CREATED, Json(host))),
        Outcome::Host { host, .. } => Ok((StatusCode::OK, Json(host))),
        _ => Err(ApiError::unexpected()),
    }
}

/// Forgets a host that has no attachment.
#[utoipa::path(delete, path = "/v1/hosts/{host}", tag = "hosts", params(("host" = String, Path)), responses(
    (status = 204, description = "Gone"),
    (status = 412, body = Problem, content_type = "application/problem+json", description = "Has attachments"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn delete(
    State(api): State<Api>,
    Caller(who): Caller,
    At(name): At<HostName>,
) -> ApiResult<StatusCode> {
    submit(&api, who, Action::DeleteHost(name)).await?;
    Ok(StatusCode::NO_CONTENT)
}
