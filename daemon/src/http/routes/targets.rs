//! The kernel's targets, by which volumes are served.

use axum::Json;
use axum::extract::State;
use orlop_api::{Page, Problem, Target};

use crate::http::Api;
use crate::http::error::ApiResult;
use crate::http::extract::Caller;

/// The targets, by protocol: how each is, where it listens, and what is in it of others, read just now. One that does not
/// answer is `unreadable` and hides no other.
#[utoipa::path(get, path = "/v1/targets", tag = "system", responses(
    (status = 200, body = Page<Target>),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn list(State(api): State<Api>, Caller(asker): Caller) -> ApiResult<Json<Page<Target>>> {
    Ok(Json(Page { items: api.engine.targets(asker.within).await, next: None }))
}
