//! Events, as server-sent events. A stream keeps its place in the engine's ring and nothing else: who
//! reads slowly, or not at all, costs no memory and is told of a gap when it comes back to it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{self, KeepAlive, Sse};
use futures_util::future::ready;
use futures_util::stream::{once, unfold};
use futures_util::{Stream, StreamExt};
use orlop_api::{Event, Problem};
use serde::Deserialize;
use tokio::sync::watch;

use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::Params;
use crate::http::{Api, stopped};

/// How many events are taken from the ring at once.
const BATCH: usize = 64;

/// How often a silent stream says that it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Where to start.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventQuery {
    /// Events after this sequence number; those that are published from now on unless given.
    /// `Last-Event-ID` comes before it.
    after: Option<u64>,
}

/// What happens, as it happens. A reader that comes back gives `Last-Event-ID`; if events in between
/// are no longer kept, the first one is a `gap`.
#[utoipa::path(get, path = "/v1/events", tag = "events",
    params(EventQuery, ("Last-Event-ID" = Option<u64>, Header)), responses(
    (status = 200, body = Event, content_type = "text/event-stream", description = "One event each"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn events(
    State(api): State<Api>,
    headers: HeaderMap,
    Params(query): Params<EventQuery>,
) -> ApiResult<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>> {
    // A browser's EventSource reconnects with the URL that it was given, so the header is the newer.
    let after = match headers.get("last-event-id") {
        None => query.after,
        Some(id) => {
            let id = id.to_str().ok().and_then(|s| s.parse().ok());
            Some(id.ok_or_else(|| ApiError::invalid("Last-Event-ID", "Last-Event-ID is not a number"))?)
        }
    };
    let after = after.unwrap_or_else(|| api.engine.events().newest());
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    Ok(Sse::new(stream(api, after)).keep_alive(keep_alive))
}

struct Reader {
    bell: watch::Receiver<u64>,
    stop: watch::Receiver<bool>,
    after: u64,
    batch: VecDeque<Event>,
    api: Api,
}

fn stream(api: Api, after: u64) -> impl Stream<Item = Result<sse::Event, Infallible>> {
    let (bell, stop) = (api.engine.events().bell(), api.stop.clone());
    // An id without data moves a reader's place and is no event: one that started at the newest and
    // loses its connection before anything happened can go on without a hole.
    let place = sse::Event::default().comment("from here").id(after.to_string());
    let reader = Reader { bell, stop, after, batch: VecDeque::new(), api };
    let events = unfold(reader, async |mut r| {
        let event = r.next().await?;
        Some((Ok(show(&event)), r))
    });
    once(ready(Ok(place))).chain(events)
}

impl Reader {
    /// `None` when the daemon stops.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if *self.stop.borrow() {
                return None;
            }
            if let Some(event) = self.batch.pop_front() {
                return Some(event);
            }
            // Seen before the ring is read: what is published in between rings again.
            self.bell.borrow_and_update();
            self.batch = self.api.engine.events().after(self.after, BATCH).into();
            if let Some(last) = self.batch.back() {
                self.after = last.seq;
                continue;
            }
            tokio::select! {
                rung = self.bell.changed() => rung.ok()?,
                () = stopped(&mut self.stop) => return None,
            }
        }
    }
}

fn show(event: &Event) -> sse::Event {
    // An event is numbers, names and times: writing it as JSON can't fail.
    let data = serde_json::to_string(event).unwrap_or_default();
    sse::Event::default().id(event.seq.to_string()).event(event.kind.as_str()).data(data)
}
