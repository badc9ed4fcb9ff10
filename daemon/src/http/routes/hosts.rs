//! Hosts.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use orlop_api::{AuthenticationPut, ChapPut, Host, HostName, HostPut, Page, Problem, TlsPut};

use super::{PageQuery, limit, optional, submit};
use crate::engine::{Action, Outcome};
use crate::http::Api;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Ask, At, Caller, Params};

/// A page of the caller's hosts, by name.
#[utoipa::path(get, path = "/v1/hosts", tag = "hosts", params(PageQuery), responses(
    (status = 200, body = Page<Host>),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn list(
    State(api): State<Api>,
    Caller(who): Caller,
    Params(query): Params<PageQuery>,
) -> ApiResult<Json<Page<Host>>> {
    let limit = limit(query.limit)?;
    let cursor: Option<HostName> = optional("cursor", query.cursor.as_ref())?;
    Ok(Json(api.engine.view().hosts_page(&who, cursor.as_ref(), limit)))
}

/// One host.
#[utoipa::path(get, path = "/v1/hosts/{host}", tag = "hosts", params(("host" = String, Path)), responses(
    (status = 200, body = Host),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn get(
    State(api): State<Api>,
    Caller(who): Caller,
    At(name): At<HostName>,
) -> ApiResult<Json<Host>> {
    let found = api.engine.view().host(&who, &name);
    found.map(Json).ok_or_else(|| ApiError::not_found(format_args!("host {name}")))
}

/// Makes a host, or changes what it is known by, while it has no attachment by that.
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

/// Has a host prove that it knows a secret (DH-HMAC-CHAP) each time it connects, and proves one to it if it asks. What
/// is connected stays so: to have a host that is connected prove it, detach and attach it.
#[utoipa::path(put, path = "/v1/hosts/{host}/authentication", tag = "hosts", params(("host" = String, Path)),
    request_body = AuthenticationPut, responses(
    (status = 200, body = Host, description = "Done, or so already"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn authenticate(
    State(api): State<Api>,
    Caller(who): Caller,
    At(name): At<HostName>,
    Ask(ask): Ask<AuthenticationPut>,
) -> ApiResult<Json<Host>> {
    match submit(&api, who, Action::AuthenticateHost(name, ask)).await? {
        Outcome::Host { host, .. } => Ok(Json(host)),
        _ => Err(ApiError::unexpected()),
    }
}

/// Lets a host in without a proof again: whoever has its NQN and can reach a portal.
#[utoipa::path(delete, path = "/v1/hosts/{host}/authentication", tag = "hosts", params(("host" = String, Path)),
    responses(
    (status = 204, description = "Done, or so already"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn trust(
    State(api): State<Api>,
    Caller(who): Caller,
    At(name): At<HostName>,
) -> ApiResult<StatusCode> {
    submit(&api, who, Action::TrustHost(name)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Has a host prove that it knows a secret (CHAP) each time it logs in by iSCSI, and proves one to it if it asks. What is
/// logged in stays so.
#[utoipa::path(put, path = "/v1/hosts/{host}/chap", tag = "hosts", params(("host" = String, Path)),
    request_body = ChapPut, responses(
    (status = 200, body = Host, description = "Done, or so already"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn chap(
    State(api): State<Api>,
    Caller(who): Caller,
    At(name): At<HostName>,
    Ask(ask): Ask<ChapPut>,
) -> ApiResult<Json<Host>> {
    match submit(&api, who, Action::ChapHost(name, Some(ask))).await? {
        Outcome::Host { host, .. } => Ok(Json(host)),
        _ => Err(ApiError::unexpected()),
    }
}

/// Lets a host log in without a proof again: whoever has its name and can reach a portal.
#[utoipa::path(delete, path = "/v1/hosts/{host}/chap", tag = "hosts", params(("host" = String, Path)), responses(
    (status = 204, description = "Done, or so already"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn no_chap(
    State(api): State<Api>,
    Caller(who): Caller,
    At(name): At<HostName>,
) -> ApiResult<StatusCode> {
    submit(&api, who, Action::ChapHost(name, None)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Has what a host says by NVMe encrypted, with a key that it has too: its volumes are served at portals with TLS and at no
/// other. A host that has one can be given another at any time, and what is connected stays so.
#[utoipa::path(put, path = "/v1/hosts/{host}/tls", tag = "hosts", params(("host" = String, Path)),
    request_body = TlsPut, responses(
    (status = 200, body = Host, description = "Done, or so already"),
    (status = 412, body = Problem, content_type = "application/problem+json", description = "Has none, and is attached"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn tls(
    State(api): State<Api>,
    Caller(who): Caller,
    At(name): At<HostName>,
    Ask(ask): Ask<TlsPut>,
) -> ApiResult<Json<Host>> {
    match submit(&api, who, Action::TlsHost(name, Some(ask))).await? {
        Outcome::Host { host, .. } => Ok(Json(host)),
        _ => Err(ApiError::unexpected()),
    }
}

/// Takes a host's key away: its volumes are served without TLS again.
#[utoipa::path(delete, path = "/v1/hosts/{host}/tls", tag = "hosts", params(("host" = String, Path)), responses(
    (status = 204, description = "Done, or so already"),
    (status = 412, body = Problem, content_type = "application/problem+json", description = "Has one, and is attached"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn no_tls(
    State(api): State<Api>,
    Caller(who): Caller,
    At(name): At<HostName>,
) -> ApiResult<StatusCode> {
    submit(&api, who, Action::TlsHost(name, None)).await?;
    Ok(StatusCode::NO_CONTENT)
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
