//! The routes: one module an object. A handler parses, asks the engine or its view, and shapes the
//! answer; it decides nothing.
//!
//! Called by [`super::Server`]. Every route is added by `routes!`, which puts it into the OpenAPI
//! document too; there is no other way in.

mod alarms;
mod attachments;
mod disks;
mod events;
mod hosts;
mod orphans;
mod pools;
mod snapshots;
mod system;
mod targets;
mod tokens;
mod volumes;
mod zones;

use axum::http::StatusCode;
use orlop_api::{ParseError, VolumeRef, When};
use serde::Deserialize;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::{ApiResult, unparsable};
use super::extract::Asker;
use super::{Api, openapi};
use crate::engine::{Action, Outcome, Principal};

/// Routes that anyone may ask.
pub const OPEN: [&str; 2] = ["/healthz", "/readyz"];

/// What others than administrators may read, each its own part. All else is closed to them.
pub const SCOPED: [&str; 17] = [
    "/v1/openapi.json",
    "/v1/system",
    "/v1/pools",
    "/v1/pools/{pool}",
    "/v1/volumes",
    "/v1/volumes/{volume}",
    "/v1/volumes/{volume}/key",
    "/v1/volumes/{volume}/attachments",
    "/v1/volumes/{volume}/attachments/{host}",
    "/v1/snapshots",
    "/v1/snapshots/{snapshot}",
    "/v1/snapshots/{snapshot}/blocks",
    "/v1/snapshot-groups/{group}",
    "/v1/hosts",
    "/v1/hosts/{host}",
    "/v1/zones",
    "/v1/zones/{zone}",
];

/// What takes query parameters. Each of them checks its own; all others take none.
pub const WITH_QUERY: [(&str, &str); 10] = [
    ("PUT", "/v1/system/restore"),
    ("GET", "/v1/volumes"),
    ("DELETE", "/v1/volumes/{volume}"),
    ("GET", "/v1/snapshots"),
    ("DELETE", "/v1/snapshots/{snapshot}"),
    ("GET", "/v1/snapshots/{snapshot}/blocks"),
    ("GET", "/v1/hosts"),
    ("GET", "/v1/zones"),
    ("GET", "/v1/events"),
    ("PUT", "/v1/volumes/{volume}/attachments/{host}"),
];

/// All routes, and the document that describes them.
pub fn all() -> (axum::Router<Api>, utoipa::openapi::OpenApi) {
    OpenApiRouter::with_openapi(openapi::Document::openapi())
        .routes(routes!(system::healthz))
        .routes(routes!(system::readyz))
        .routes(routes!(system::metrics))
        .routes(routes!(system::system))
        .routes(routes!(system::document))
        .routes(routes!(alarms::list))
        .routes(routes!(alarms::acknowledge))
        .routes(routes!(targets::list))
        .routes(routes!(disks::list))
        .routes(routes!(disks::wipe))
        .routes(routes!(pools::list, pools::create))
        .routes(routes!(pools::get, pools::delete))
        .routes(routes!(pools::export))
        .routes(routes!(pools::expand))
        .routes(routes!(pools::replace))
        .routes(routes!(pools::scrub, pools::stop_scrub))
        .routes(routes!(volumes::list, volumes::create))
        .routes(routes!(volumes::get, volumes::update, volumes::delete))
        .routes(routes!(volumes::unlock))
        .routes(routes!(volumes::key))
        .routes(routes!(snapshots::list, snapshots::create))
        .routes(routes!(snapshots::get, snapshots::delete))
        .routes(routes!(snapshots::blocks))
        .routes(routes!(snapshots::create_group))
        .routes(routes!(snapshots::get_group))
        .routes(routes!(orphans::list))
        .routes(routes!(orphans::adopt))
        .routes(routes!(orphans::delete))
        .routes(routes!(system::backup))
        .routes(routes!(system::restore))
        .routes(routes!(system::reload))
        .routes(routes!(system::put_keytab, system::delete_keytab))
        .routes(routes!(tokens::list))
        .routes(routes!(tokens::put, tokens::delete))
        .routes(routes!(hosts::list))
        .routes(routes!(hosts::get, hosts::put, hosts::delete))
        .routes(routes!(hosts::authenticate, hosts::trust))
        .routes(routes!(hosts::chap, hosts::no_chap))
        .routes(routes!(hosts::tls, hosts::no_tls))
        .routes(routes!(zones::list))
        .routes(routes!(zones::get, zones::put, zones::delete))
        .routes(routes!(attachments::list))
        .routes(routes!(attachments::get, attachments::put, attachments::delete))
        .routes(routes!(events::events))
        .split_for_parts()
}

/// One page of a list.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// `next` of the page before.
    cursor: Option<String>,
    /// How many items, 1 to 1000; 100 unless given.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<u16>,
}

const DEFAULT_LIMIT: u16 = 100;
const LARGEST_LIMIT: u16 = 1000;

fn limit(asked: Option<u16>) -> ApiResult<usize> {
    match asked.unwrap_or(DEFAULT_LIMIT) {
        n @ 1..=LARGEST_LIMIT => Ok(n.into()),
        _ => Err(super::ApiError::invalid("limit", format!("limit must be 1 to {LARGEST_LIMIT}"))),
    }
}

/// An optional query parameter.
fn optional<T: std::str::FromStr<Err = ParseError>>(
    field: &'static str,
    text: Option<&String>,
) -> ApiResult<Option<T>> {
    text.map(|t| t.parse().map_err(|e| unparsable(field, &e))).transpose()
}

/// When to delete.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WhenQuery {
    /// `now` unless given.
    #[serde(default)]
    when: When,
}

/// The answer to a deletion: gone, or going when nothing depends on it any more.
fn deleted(outcome: Outcome) -> ApiResult<StatusCode> {
    match outcome {
        Outcome::Gone => Ok(StatusCode::NO_CONTENT),
        Outcome::Doomed => Ok(StatusCode::ACCEPTED),
        _ => Err(super::ApiError::unexpected()),
    }
}

/// The volume behind a reference, as the caller may see it.
fn resolve(api: &Api, who: &Principal, volume: &VolumeRef) -> ApiResult<orlop_api::VolumeId> {
    // One look: between two of them its pool could come back.
    let view = api.engine.view();
    view.resolve(who, volume).ok_or_else(|| view.no_volume(who, volume).into())
}

/// Through the one door.
async fn submit(api: &Api, asker: Asker, action: Action) -> ApiResult<Outcome> {
    Ok(api.engine.submit(asker.who, action, asker.within).await?)
}
