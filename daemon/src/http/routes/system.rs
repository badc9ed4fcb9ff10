//! The daemon itself: how it is, its metrics and its document.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use orlop_api::{ErrorKind, Keytab, KeytabPut, Problem, Reloaded, Restored, System, SystemState};
use serde::Deserialize;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::submit;
use crate::engine::{Action, Outcome};
use crate::http::Api;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Ask, Caller, Params};
use crate::journal::backup::Text;

/// The largest backup that is read: 100,000 hosts and attachments have a third of it.
const LARGEST_BACKUP: usize = 64 << 20;

/// Whether the process is alive. Needs no credential.
#[utoipa::path(get, path = "/healthz", tag = "system", security(()), responses((status = 200, body = String)))]
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether the daemon takes changes. Needs no credential.
#[utoipa::path(get, path = "/readyz", tag = "system", security(()), responses(
    (status = 200, body = String),
    (status = 503, body = Problem, content_type = "application/problem+json"),
))]
pub async fn readyz(State(api): State<Api>) -> ApiResult<&'static str> {
    match api.engine.state() {
        SystemState::Ready => match api.engine.refusal() {
            None => Ok("ready\n"),
            // Without a credential one does not hear why.
            Some(_) => Err(ApiError::new(ErrorKind::Unavailable, "changes are not taken: see the alarms")),
        },
        SystemState::Starting => Err(ApiError::new(ErrorKind::Unavailable, "starting: reads work")),
        SystemState::Draining => Err(ApiError::new(ErrorKind::Unavailable, "stopping: reads work")),
    }
}

/// How long somebody waits until others have had their turn.
const TURN: Duration = Duration::from_secs(5);

async fn turn<'a>(turns: &'a Semaphore, what: &str) -> ApiResult<SemaphorePermit<'a>> {
    match tokio::time::timeout(TURN, turns.acquire()).await {
        Ok(Ok(turn)) => Ok(turn),
        _ => {
            Err(ApiError::new(ErrorKind::Unavailable, format!("other {what} are under way: try again later")))
        }
    }
}

/// Metrics in the OpenMetrics text format.
#[utoipa::path(get, path = "/metrics", tag = "system", responses(
    (status = 200, body = String, content_type = "application/openmetrics-text"),
))]
pub async fn metrics(State(api): State<Api>) -> ApiResult<Response> {
    let _turn = turn(&api.scrapes, "scrapes").await?;
    let text = api.metrics.render(api.engine.scrape().await);
    let text = text.map_err(|_| ApiError::new(ErrorKind::Internal, "the metrics could not be written"))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

/// How the appliance is. Who is not an administrator sees how much of it is his, and no alarms.
#[utoipa::path(get, path = "/v1/system", tag = "system", responses((status = 200, body = System)))]
pub async fn system(State(api): State<Api>, Caller(who): Caller) -> Json<System> {
    let mut system = api.engine.system();
    (system.pools, system.volumes, system.hosts, system.attachments) = api.engine.view().counts_of(&who);
    if !who.is_admin() {
        system.alarms.clear();
    }
    Json(system)
}

/// What the journal alone knows: hosts with their secrets, keys of volumes, tokens, pools. Lines of JSON, consistent at
/// one instant. Who has it can read volumes and connect: keep it as a key.
#[utoipa::path(get, path = "/v1/system/backup", tag = "system", responses(
    (status = 200, body = String, content_type = "application/x-ndjson"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn backup(State(api): State<Api>, Caller(who): Caller) -> ApiResult<Response> {
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-store")];
    match submit(&api, who, Action::Backup).await? {
        Outcome::Backup(text) => Ok((headers, text.0).into_response()),
        _ => Err(ApiError::unexpected()),
    }
}

/// Whose backup is taken.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RestoreQuery {
    /// Also another appliance's.
    #[serde(default)]
    force: bool,
}

/// Fills in what is missing here from a backup. Nothing that is here is changed by it: that is newer.
#[utoipa::path(put, path = "/v1/system/restore", tag = "system", params(RestoreQuery),
    request_body(content = String, content_type = "application/x-ndjson"), responses(
    (status = 200, body = Restored, description = "What was missing"),
    (status = 400, body = Problem, content_type = "application/problem+json", description = "It is damaged, or no backup"),
    (status = 412, body = Problem, content_type = "application/problem+json", description = "It is another appliance's"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn restore(
    State(api): State<Api>,
    Caller(who): Caller,
    Params(query): Params<RestoreQuery>,
    body: Body,
) -> ApiResult<Json<Restored>> {
    // Who may not do it holds up nobody who may, and has nothing of his read.
    if !who.is_admin() {
        return Err(crate::engine::Error::Forbidden { principal: who.name.clone(), verb: "restore" }.into());
    }
    // Only one that is as large is held in memory.
    let _turn = turn(&api.restores, "restores").await?;
    let text = axum::body::to_bytes(body, LARGEST_BACKUP).await;
    let text =
        text.map_err(|e| ApiError::new(ErrorKind::Invalid, format!("the backup can't be read: {e}")))?;
    match submit(&api, who, Action::Restore(Text(text.into()), query.force)).await? {
        Outcome::Restored(restored) => Ok(Json(restored)),
        _ => Err(ApiError::unexpected()),
    }
}

/// Reads the configuration anew, and applies what can be applied under a running daemon: all of it, or nothing if anything in it
/// is wrong. The answer says what was applied, and what waits for a restart.
#[utoipa::path(post, path = "/v1/system/reload", tag = "system", responses(
    (status = 200, body = Reloaded),
    (status = 412, body = Problem, content_type = "application/problem+json",
        description = "The configuration is wrong: every mistake is told, and nothing was changed"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn reload(State(api): State<Api>, Caller(who): Caller) -> ApiResult<Json<Reloaded>> {
    match submit(&api, who, Action::Reload).await? {
        Outcome::Reloaded(reloaded) => Ok(Json(reloaded)),
        _ => Err(ApiError::unexpected()),
    }
}

/// Keeps the keys by which the appliance proves to NFS hosts who it is, in place of those before. They are never shown;
/// the answer says whose they are.
#[utoipa::path(put, path = "/v1/system/keytab", tag = "system", request_body = KeytabPut, responses(
    (status = 200, body = Keytab, description = "They are kept, and what checks tickets has them"),
    (status = 400, body = Problem, content_type = "application/problem+json", description = "It is no keytab, or has no key for nfs/NAME@REALM"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn put_keytab(
    State(api): State<Api>,
    Caller(who): Caller,
    Ask(ask): Ask<KeytabPut>,
) -> ApiResult<Json<Keytab>> {
    match submit(&api, who, Action::PutKeytab(ask.keytab)).await? {
        Outcome::Keytab(keytab) => Ok(Json(keytab)),
        _ => Err(ApiError::unexpected()),
    }
}

/// Forgets these keys.
#[utoipa::path(delete, path = "/v1/system/keytab", tag = "system", responses(
    (status = 204, description = "They are gone"),
    (status = 412, body = Problem, content_type = "application/problem+json", description = "Zones take Kerberos: see `dependants`"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn delete_keytab(State(api): State<Api>, Caller(who): Caller) -> ApiResult<StatusCode> {
    submit(&api, who, Action::DeleteKeytab).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "system", responses(
    (status = 200, content_type = "application/json"),
))]
pub async fn document(State(api): State<Api>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], api.openapi.clone()).into_response()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::http::routes;
    use std::collections::BTreeSet;

    #[test]
    fn the_document_has_every_route() {
        let (_, document) = routes::all();
        let json = serde_json::to_value(&document).unwrap();
        let mut got = BTreeSet::new();
        for (path, item) in json["paths"].as_object().unwrap() {
            got.extend(item.as_object().unwrap().keys().map(|m| format!("{m} {path}")));
        }
        let want = "get /healthz|get /readyz|get /metrics|get /v1/system|get /v1/system/backup|put /v1/system/restore|post /v1/system/reload|put /v1/system/keytab|delete /v1/system/keytab|get /v1/alarms|post /v1/alarms/acknowledge|get /v1/targets|get /v1/disks|post /v1/disks/{disk}/wipe|get /v1/openapi.json|\
            get /v1/pools|post /v1/pools|get /v1/pools/{pool}|delete /v1/pools/{pool}|\
            post /v1/pools/{pool}/export|post /v1/pools/{pool}/disks|post /v1/pools/{pool}/replace|post /v1/pools/{pool}/scrub|\
            delete /v1/pools/{pool}/scrub|get /v1/volumes|\
            post /v1/volumes|get /v1/volumes/{volume}|patch /v1/volumes/{volume}|\
            delete /v1/volumes/{volume}|post /v1/volumes/{volume}/unlock|get /v1/volumes/{volume}/key|get /v1/snapshots|post /v1/snapshots|\
            get /v1/snapshots/{snapshot}|delete /v1/snapshots/{snapshot}|get /v1/snapshots/{snapshot}/blocks|post /v1/snapshot-groups|\
            get /v1/snapshot-groups/{group}|get /v1/orphans|post /v1/orphans/{orphan}/adopt|\
            delete /v1/orphans/{orphan}|get /v1/hosts|get /v1/hosts/{host}|put /v1/hosts/{host}|\
            delete /v1/hosts/{host}|get /v1/tokens|put /v1/tokens/{token}|delete /v1/tokens/{token}|put /v1/hosts/{host}/authentication|delete /v1/hosts/{host}/authentication|\
            put /v1/hosts/{host}/chap|delete /v1/hosts/{host}/chap|\
            put /v1/hosts/{host}/tls|delete /v1/hosts/{host}/tls|get /v1/zones|get /v1/zones/{zone}|\
            put /v1/zones/{zone}|delete /v1/zones/{zone}|\
            get /v1/volumes/{volume}/attachments|\
            get /v1/volumes/{volume}/attachments/{host}|put /v1/volumes/{volume}/attachments/{host}|\
            delete /v1/volumes/{volume}/attachments/{host}|get /v1/events";
        assert_eq!(got, want.split('|').map(str::to_owned).collect());
        // No other way in: every route is added by `routes!`.
        let source = include_str!("mod.rs");
        let added: usize = source.matches(".routes(routes!(").count();
        assert!(added == 44 && !source.contains(".route("), "{added}");
        let read = routes::OPEN.iter().chain(&routes::SCOPED).map(|path| ("GET", *path));
        for (method, path) in routes::WITH_QUERY.into_iter().chain(read) {
            assert!(json["paths"][path][method.to_lowercase()].is_object(), "{method} {path}");
        }
    }

    #[test]
    fn every_schema_that_is_referred_to_is_there() {
        let (_, document) = routes::all();
        let json = serde_json::to_value(&document).unwrap();
        let text = json.to_string();
        for part in text.split("\"#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(json["components"]["schemas"][name].is_object(), "{name}");
        }
    }
}
