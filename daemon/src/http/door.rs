//! The one middleware: authentication, the refusal of query parameters where none are taken, the
//! whole-request timeout, panics, metrics and the access log. One layer instead of six keeps a read
//! out of memory at some tens of microseconds.
//!
//! Called for every request. Never logs a query or a header.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use orlop_api::ErrorKind;
use tracing::Instrument;

use super::auth::{self, Connection};
use super::error::{ApiError, ApiResult};
use super::extract::{self, Asker};
use super::{Api, routes};
use crate::telemetry::spans;

/// Added to what the engine is given, so that the engine's own words about a deadline come first.
const GRACE: Duration = Duration::from_secs(5);

/// Name of the caller in the access log where nobody needs to say who they are.
const ANYONE: &str = "-";

/// See the module.
pub async fn door(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = known(request.method());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("", MatchedPath::as_str);

    let span = spans::request(method, route, request.headers());

    let (who, response) = match enter(&api, &mut request, route) {
        Err(refused) => (String::new(), refused.into_response()),
        Ok((who, within)) => (who, guarded(within, request, next).instrument(span.clone()).await),
    };

    let took = started.elapsed();
    let status = response.status().as_u16();
    span.record("http.response.status_code", status);
    api.metrics.request(method, route, status, took);
    tracing::debug!(method, route, status, micros = took.as_micros() as u64, principal = who, "request");
    response
}

/// Lets a request in: says who asks, and how long the answer is waited for, and leaves both with the request.
fn enter(api: &Api, request: &mut Request, route: &str) -> ApiResult<(String, Duration)> {
    let most = api.settings.borrow().request;
    let within = extract::within(request.headers(), most)?;
    if routes::OPEN.contains(&route) {
        return Ok((ANYONE.to_owned(), within));
    }
    let connection = request.extensions().get::<Connection>().cloned();
    let connection = connection.ok_or_else(ApiError::unexpected)?;
    let principal = auth::principal(api, &connection, request.headers())?;
    if !connection.ticket.prove() {
        // The gate chose this connection to make room in the very moment it authenticated.
        return Err(ApiError::new(ErrorKind::Unavailable, "too many connections: try again"));
    }
    api.engine.quotas().request(&principal.name)?;
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if reads && !principal.is_admin() && !routes::SCOPED.contains(&route) {
        // What changes something is asked at the engine's door.
        let text = format!("{} may not read this: it is the administrator's", principal.name);
        return Err(ApiError::new(ErrorKind::Forbidden, text));
    }
    let takes_query = routes::WITH_QUERY.contains(&(request.method().as_str(), route));
    if !takes_query && request.uri().query().is_some_and(|q| !q.is_empty()) {
        return Err(ApiError::new(ErrorKind::Invalid, "this request takes no query parameters"));
    }
    let name = principal.name.clone();
    request.extensions_mut().insert(Asker { who: principal, within });
    Ok((name, within))
}

/// Runs the handler. A panic in it ends the request and nothing else.
async fn guarded(within: Duration, request: Request, next: Next) -> Response {
    let work = AssertUnwindSafe(next.run(request)).catch_unwind();
    match tokio::time::timeout(within + GRACE, work).await {
        Ok(Ok(response)) => response,
        Ok(Err(_panic)) => {
            // The hook that main set has logged the panic with its place.
            let e = ApiError::new(ErrorKind::Internal, "a defect in the daemon: see its log");
            e.into_response()
        }
        Err(_) => {
            let e =
                ApiError::new(ErrorKind::Deadline, "the request took too long; it may still be under way");
            let mut response = e.into_response();
            // A body may be half read: the connection can't be used again.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            response
        }
    }
}

/// Methods in metrics: a caller can make up as many as it likes.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::PUT => "PUT",
        Method::POST => "POST",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        _ => "other",
    }
}
