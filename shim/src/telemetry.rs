//! What is counted of the calls that are served, and where it is read: HTTP, `/metrics` and `/healthz`.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::Instant;

use anyhow::{Context, Result};
use axum::Router;
use axum::http::{Request, Response, StatusCode, header};
use axum::routing::get;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tonic::{Code, Status};
use tower::{Layer, Service};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    method: String,
    code: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Method {
    method: String,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Telemetry {
    registry: Arc<Registry>,
    calls: Family<Call, Counter>,
    durations: Family<Method, Histogram, fn() -> Histogram>,
    under_way: Gauge,
}

/// From 1 ms to 65 s.
fn durations() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 17))
}

impl Default for Telemetry {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("orlop_csi");
        let calls = Family::<Call, Counter>::default();
        let durations = Family::<Method, Histogram, fn() -> Histogram>::new_with_constructor(durations);
        let under_way = Gauge::default();
        registry.register("calls", "CSI calls that were answered, by method and gRPC code", calls.clone());
        registry.register(
            "call_duration_seconds",
            "How long CSI calls took, from when they came to their answer",
            durations.clone(),
        );
        registry.register("calls_under_way", "CSI calls that are not answered yet", under_way.clone());
        Self { registry: Arc::new(registry), calls, durations, under_way }
    }
}

/// The last part of a gRPC path. What nobody serves is one method, however it was called.
fn method(path: &str, code: Code) -> String {
    match path.rsplit('/').next() {
        Some(name) if code != Code::Unimplemented && !name.is_empty() => name.into(),
        _ => "unknown".into(),
    }
}

impl Telemetry {
    fn answered(&self, path: &str, code: Code, since: Instant) {
        let method = method(path, code);
        let took = since.elapsed();
        tracing::debug!(method, code = ?code, seconds = took.as_secs_f64(), "answered");
        self.durations.get_or_create(&Method { method: method.clone() }).observe(took.as_secs_f64());
        self.calls.get_or_create(&Call { method, code: format!("{code:?}") }).inc();
    }

    /// All of it, as OpenMetrics.
    fn text(&self) -> std::result::Result<String, std::fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }

    /// Serves it, for as long as this is polled.
    pub async fn serve(self, at: SocketAddr) -> Result<()> {
        let listener = TcpListener::bind(at).await.with_context(|| format!("listening at {at}"))?;
        tracing::info!(address = %at, "metrics and health");
        axum::serve(listener, self.router()).await.context("serving metrics")
    }

    fn router(self) -> Router {
        let metrics = move || {
            let text = self.text().map_err(|e| (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()));
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            async move { text.map(|text| ([(header::CONTENT_TYPE, kind)], text)) }
        };
        Router::new().route("/metrics", get(metrics)).route("/healthz", get(|| async { "ok\n" }))
    }
}

/// Counts what a service answers.
impl<S> Layer<S> for Telemetry {
    type Service = Counted<S>;
    fn layer(&self, inner: S) -> Counted<S> {
        Counted { inner, telemetry: self.clone() }
    }
}

/// See [`Telemetry`].
#[derive(Clone)]
pub struct Counted<S> {
    inner: S,
    telemetry: Telemetry,
}

/// Counts down when a call ends, also when nobody waits for it any more.
struct UnderWay(Gauge);

impl UnderWay {
    fn begin(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl<S, B, R> Service<Request<B>> for Counted<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = std::result::Result<Response<R>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> Poll<std::result::Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (telemetry, since) = (self.telemetry.clone(), Instant::now());
        let path = request.uri().path().to_owned();
        let answering = self.inner.call(request);
        Box::pin(async move {
            let _under_way = UnderWay::begin(&telemetry.under_way);
            let answer = answering.await?;
            // A failed call has its code in the head; one that has none there ends well.
            let code = Status::from_header_map(answer.headers()).map_or(Code::Ok, |status| status.code());
            telemetry.answered(&path, code, since);
            Ok(answer)
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tower::ServiceExt as _;

    #[tokio::test]
    async fn calls_are_counted_by_method_and_code() {
        let telemetry = Telemetry::default();
        let served = telemetry.layer(tower::service_fn(|request: Request<()>| async move {
            let mut answer = Response::new(());
            if request.uri().path().ends_with("DeleteVolume") {
                answer = Status::aborted("x").into_http::<()>().map(drop);
            }
            if request.uri().path().contains("nothing") {
                answer = Status::unimplemented("x").into_http::<()>().map(drop);
            }
            Ok::<_, std::convert::Infallible>(answer)
        }));
        for path in
            ["Controller/CreateVolume", "Controller/CreateVolume", "Controller/DeleteVolume", "nothing/1"]
        {
            let request = Request::builder().uri(format!("/csi.v1.{path}")).body(()).unwrap();
            served.clone().oneshot(request).await.unwrap();
        }
        let text = telemetry.text().unwrap();
        for line in [
            r#"orlop_csi_calls_total{method="CreateVolume",code="Ok"} 2"#,
            r#"orlop_csi_calls_total{method="DeleteVolume",code="Aborted"} 1"#,
            r#"orlop_csi_calls_total{method="unknown",code="Unimplemented"} 1"#,
            r#"orlop_csi_call_duration_seconds_count{method="CreateVolume"} 2"#,
            "orlop_csi_calls_under_way 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
