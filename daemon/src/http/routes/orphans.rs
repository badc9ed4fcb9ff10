//! Orphans: what nobody claims.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use orlop_api::{OrphanAdopt, OrphanId, Orphans, Problem, Volume};

use super::submit;
use crate::engine::{Action, Outcome};
use crate::http::Api;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Ask, At, Caller};

/// All orphans, read from the pools just now. A pool that does not answer is told and hides no other.
#[utoipa::path(get, path = "/v1/orphans", tag = "orphans", responses(
    (status = 200, body = Orphans),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn list(State(api): State<Api>, Caller(asker): Caller) -> ApiResult<Json<Orphans>> {
    Ok(Json(api.engine.orphans(asker.within).await?))
}

/// Makes an orphan a volume, with what is in it. The same request again gives the same volume.
#[utoipa::path(post, path = "/v1/orphans/{orphan}/adopt", tag = "orphans", params(("orphan" = String, Path)),
    request_body = OrphanAdopt, responses(
    (status = 201, body = Volume, description = "Adopted"),
    (status = 200, body = Volume, description = "Adopted already, under this name"),
    (status = 409, body = Problem, content_type = "application/problem+json",
        description = "Another volume has the name"),
    (status = 412, body = Problem, content_type = "application/problem+json",
        description = "It is in use, or can't become a volume"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn adopt(
    State(api): State<Api>,
    Caller(who): Caller,
    At(orphan): At<OrphanId>,
    Ask(ask): Ask<OrphanAdopt>,
) -> ApiResult<(StatusCode, Json<Volume>)> {
    match submit(&api, who, Action::AdoptOrphan(orphan, ask)).await? {
        Outcome::Volume { volume, changed: true } => Ok((StatusCode::CREATED, Json(volume))),
        Outcome::Volume { volume, changed: false } => Ok((StatusCode::OK, Json(volume))),
        _ => Err(ApiError::unexpected()),
    }
}

/// Removes an orphan that is the daemon's own: a leftover, or a record without a backing.
#[utoipa::path(delete, path = "/v1/orphans/{orphan}", tag = "orphans", params(("orphan" = String, Path)),
    responses(
    (status = 204, description = "Gone"),
    (status = 412, body = Problem, content_type = "application/problem+json",
        description = "It was not made by the daemon, or carries the label of a volume"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn delete(
    State(api): State<Api>,
    Caller(who): Caller,
    At(orphan): At<OrphanId>,
) -> ApiResult<StatusCode> {
    submit(&api, who, Action::RemoveOrphan(orphan)).await?;
    Ok(StatusCode::NO_CONTENT)
}
