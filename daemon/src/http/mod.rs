//! The HTTP API: routes, authentication, errors, events, OpenAPI, and the listeners that serve them.
//!
//! Called by `main`. Reads the engine's view, and changes things through `Engine::submit` alone. Never
//! touches a pool, a target or the journal, and never serves a network without TLS.
//!
//! One task accepts on each listener, one task serves each connection; an event stream is part of its
//! connection's task and keeps nothing but its place in the engine's ring. The path of a request:
//!
//! ```text
//! listen -> gate (caps) -> tls -> hyper -> door (401, query, timeout, panic, measure) -> route -> engine
//! ```

mod auth;
mod door;
mod error;
mod extract;
mod gate;
mod listen;
mod openapi;
mod routes;
mod serve;
mod tls;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use tokio::sync::{Semaphore, watch};

use crate::engine::Engine;
use crate::telemetry::Metrics;

pub use error::ApiError;
pub use listen::{Listeners, UnixListen};
pub use tls::{Certificate, TlsError};

/// How HTTP behaves.
#[derive(Debug, Clone, Copy)]
pub struct HttpSettings {
    /// Open connections per listener.
    pub connections: usize,
    /// Open connections per peer of a TLS listener.
    pub connections_per_peer: usize,
    /// How long a request may take.
    pub request: Duration,
    /// How long an authenticated connection may be silent.
    pub idle: Duration,
}

/// Why the API is not served.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// A unix socket could not be made.
    #[error("the unix socket {} cannot be made", path.display())]
    Unix {
        /// Its path.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another daemon answers on the socket.
    #[error("another daemon serves {}", .0.display())]
    InUse(std::path::PathBuf),
    /// An address could not be bound.
    #[error("{address} cannot be listened on")]
    Bind {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// TLS could not be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The OpenAPI document could not be written as JSON. A defect.
    #[error("the OpenAPI document cannot be written")]
    OpenApi(#[from] serde_json::Error),
}

/// What every handler sees.
#[derive(Debug, Clone)]
pub(crate) struct Api(Arc<ApiInner>);

pub(crate) struct ApiInner {
    pub engine: Engine,
    pub metrics: Arc<Metrics>,
    /// They may change under a running daemon: never hold them across an await.
    pub settings: watch::Receiver<HttpSettings>,
    /// What is large or slow, and asked for by few: so many at a time.
    pub scrapes: Semaphore,
    pub restores: Semaphore,
    pub openapi: Bytes,
    /// Turns true when the daemon stops: event streams end, connections finish their request.
    pub stop: watch::Receiver<bool>,
}

impl std::fmt::Debug for ApiInner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl std::ops::Deref for Api {
    type Target = ApiInner;

    fn deref(&self) -> &ApiInner {
        &self.0
    }
}

/// Waits for the daemon's stop; a sender that is gone is a stop too.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // Not `wait_for` in the callers' selects: its answer holds a lock.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// The API, ready to be served on listeners.
#[derive(Debug, Clone)]
pub struct Server {
    api: Api,
    router: axum::Router,
}

impl Server {
    /// Puts routes and middleware together. Other `settings` count for what begins after them; `stop` turns true when the daemon stops.
    pub fn new(
        engine: Engine,
        metrics: Arc<Metrics>,
        settings: watch::Receiver<HttpSettings>,
        stop: watch::Receiver<bool>,
    ) -> Result<Self, HttpError> {
        let (router, document) = routes::all();
        let openapi = Bytes::from(serde_json::to_vec(&document)?);
        let (scrapes, restores) = (Semaphore::new(2), Semaphore::new(1));
        let inner = ApiInner { engine, metrics, settings, scrapes, restores, openapi, stop };
        let api = Api(Arc::new(inner));
        let router = router
            .fallback(error::no_such_route)
            .method_not_allowed_fallback(error::no_such_method)
            .layer(axum::middleware::from_fn_with_state(api.clone(), door::door))
            .with_state(api.clone());
        Ok(Self { api, router })
    }
}
