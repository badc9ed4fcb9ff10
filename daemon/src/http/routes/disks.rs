//! The machine's disks.

use axum::Json;
use axum::extract::State;
use orlop_api::{Disk, DiskName, DiskWipe, Page, Problem};

use super::submit;
use crate::engine::{Action, Outcome};
use crate::http::Api;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Ask, At, Caller};

/// The machine's disks.
#[utoipa::path(get, path = "/v1/disks", tag = "pools", responses(
    (status = 200, body = Page<Disk>),
    (status = 503, body = Problem, content_type = "application/problem+json"),
))]
pub async fn list(State(api): State<Api>, Caller(asker): Caller) -> ApiResult<Json<Page<Disk>>> {
    Ok(Json(Page { items: api.engine.disks(asker.within).await?, next: None }))
}

/// Makes a disk blank. All that is on it is lost.
#[utoipa::path(post, path = "/v1/disks/{disk}/wipe", tag = "pools", params(("disk" = String, Path)),
    request_body = DiskWipe, responses(
    (status = 200, body = Disk, description = "It is blank"),
    (status = 409, body = Problem, content_type = "application/problem+json", description = "It is not the disk that is meant"),
    (status = 412, body = Problem, content_type = "application/problem+json", description = "It is in use, or belongs to a pool that was not named"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn wipe(
    State(api): State<Api>,
    Caller(who): Caller,
    At(disk): At<DiskName>,
    Ask(ask): Ask<DiskWipe>,
) -> ApiResult<Json<Disk>> {
    match submit(&api, who, Action::WipeDisk(disk, ask)).await? {
        Outcome::Disk(disk) => Ok(Json(disk)),
        _ => Err(ApiError::unexpected()),
    }
}
