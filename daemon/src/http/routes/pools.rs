//! Pools.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use orlop_api::{Page, Pool, PoolCreate, PoolExpand, PoolName, PoolReplace, Problem};

use super::submit;
use crate::engine::{Action, Outcome};
use crate::http::Api;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Ask, Asker, At, Caller};
use crate::model::{PoolChange, PoolSpec, check_disk};

/// How old the sizes may be that somebody was shown, before they are read again for the next one.
const FRESH: Duration = Duration::from_secs(5);

/// All pools that the caller may use.
#[utoipa::path(get, path = "/v1/pools", tag = "pools", responses((status = 200, body = Page<Pool>)))]
pub async fn list(State(api): State<Api>, Caller(who): Caller) -> Json<Page<Pool>> {
    api.engine.refresh_capacities(FRESH);
    Json(Page { items: api.engine.view().pools(&who), next: None })
}

/// Makes a pool, or takes in one that exists.
#[utoipa::path(post, path = "/v1/pools", tag = "pools", request_body = PoolCreate, responses(
    (status = 201, body = Pool, description = "Made"),
    (status = 200, body = Pool, description = "There already with the same specification"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn create(
    State(api): State<Api>,
    Caller(who): Caller,
    Ask(ask): Ask<PoolCreate>,
) -> ApiResult<(StatusCode, Json<Pool>)> {
    let (import, force) = (ask.import, ask.force);
    let spec = PoolSpec::try_from(ask).map_err(|e| ApiError::invalid(e.field, e.to_string()))?;
    let action = if import { Action::ImportPool(spec, force) } else { Action::CreatePool(spec) };
    match submit(&api, who, action).await? {
        Outcome::Pool { pool, changed: true } => Ok((StatusCode::CREATED, Json(pool))),
        Outcome::Pool { pool, .. } => Ok((StatusCode::OK, Json(pool))),
        _ => Err(ApiError::unexpected()),
    }
}

/// One pool.
#[utoipa::path(get, path = "/v1/pools/{pool}", tag = "pools", params(("pool" = String, Path)), responses(
    (status = 200, body = Pool),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn get(
    State(api): State<Api>,
    Caller(who): Caller,
    At(name): At<PoolName>,
) -> ApiResult<Json<Pool>> {
    api.engine.refresh_capacities(FRESH);
    let found = api.engine.view().pool(&who, &name);
    found.map(Json).ok_or_else(|| ApiError::not_found(format_args!("pool {name}")))
}

/// Deletes a pool that has no volumes.
#[utoipa::path(delete, path = "/v1/pools/{pool}", tag = "pools", params(("pool" = String, Path)), responses(
    (status = 204, description = "Gone"),
    (status = 412, body = Problem, content_type = "application/problem+json", description = "Has volumes"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn delete(
    State(api): State<Api>,
    Caller(who): Caller,
    At(name): At<PoolName>,
) -> ApiResult<StatusCode> {
    submit(&api, who, Action::DeletePool(name)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lets go of a pool with the volumes in it, so that another appliance may import it, or this one again.
#[utoipa::path(post, path = "/v1/pools/{pool}/export", tag = "pools", params(("pool" = String, Path)), responses(
    (status = 204, description = "It is not here any more, and nothing in it has changed"),
    (status = 412, body = Problem, content_type = "application/problem+json", description = "Hosts are attached"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn export(
    State(api): State<Api>,
    Caller(who): Caller,
    At(name): At<PoolName>,
) -> ApiResult<StatusCode> {
    submit(&api, who, Action::ExportPool(name)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Gives a pool more disks, in its layout.
#[utoipa::path(post, path = "/v1/pools/{pool}/disks", tag = "pools", params(("pool" = String, Path)),
    request_body = PoolExpand, responses(
    (status = 200, body = Pool, description = "It has them"),
    (status = 412, body = Problem, content_type = "application/problem+json", description = "Not blank, or too few"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn expand(
    State(api): State<Api>,
    Caller(who): Caller,
    At(name): At<PoolName>,
    Ask(ask): Ask<PoolExpand>,
) -> ApiResult<Json<Pool>> {
    if ask.disks.is_empty() {
        return Err(ApiError::invalid("disks", "disks must name at least one"));
    }
    for disk in &ask.disks {
        check_disk("disks", disk).map_err(|e| ApiError::invalid(e.field, e.to_string()))?;
    }
    change(&api, who, name, PoolChange::Expand { disks: ask.disks }).await
}

/// Has another disk take the place of one. The pool stays in use; `health.scan` shows how far it is.
#[utoipa::path(post, path = "/v1/pools/{pool}/replace", tag = "pools", params(("pool" = String, Path)),
    request_body = PoolReplace, responses(
    (status = 200, body = Pool, description = "It is being rebuilt"),
    (status = 412, body = Problem, content_type = "application/problem+json", description = "No such disk, or not blank"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn replace(
    State(api): State<Api>,
    Caller(who): Caller,
    At(name): At<PoolName>,
    Ask(ask): Ask<PoolReplace>,
) -> ApiResult<Json<Pool>> {
    for (field, disk) in [("disk", &ask.disk), ("with", &ask.with)] {
        check_disk(field, disk).map_err(|e| ApiError::invalid(e.field, e.to_string()))?;
    }
    change(&api, who, name, PoolChange::Replace { disk: ask.disk, with: ask.with }).await
}

/// Has everything in a pool read and compared with its checksums. `health.scan` shows how far it is.
#[utoipa::path(post, path = "/v1/pools/{pool}/scrub", tag = "pools", params(("pool" = String, Path)), responses(
    (status = 200, body = Pool, description = "It is under way"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn scrub(
    State(api): State<Api>,
    Caller(who): Caller,
    At(name): At<PoolName>,
) -> ApiResult<Json<Pool>> {
    change(&api, who, name, PoolChange::Scrub).await
}

/// Stops that.
#[utoipa::path(delete, path = "/v1/pools/{pool}/scrub", tag = "pools", params(("pool" = String, Path)), responses(
    (status = 204, description = "None is under way"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn stop_scrub(
    State(api): State<Api>,
    Caller(who): Caller,
    At(name): At<PoolName>,
) -> ApiResult<StatusCode> {
    change(&api, who, name, PoolChange::StopScrub).await.map(|_| StatusCode::NO_CONTENT)
}

async fn change(api: &Api, asker: Asker, name: PoolName, change: PoolChange) -> ApiResult<Json<Pool>> {
    match submit(api, asker, Action::ChangePool(name, change)).await? {
        Outcome::Pool { pool, .. } => Ok(Json(pool)),
        _ => Err(ApiError::unexpected()),
    }
}
