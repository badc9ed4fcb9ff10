//! Traces: one request through door, engine, lane and kernel.
//!
//! A span is made wherever one of them begins (`info_span!(target: spans::TARGET, ..)`), and costs next to nothing while
//! nobody takes it: logs never do. With the feature `otlp` and a collector in the configuration they are sent there by a
//! thread of their own, from a queue with an end: what it has no room for is left out, and nobody waits. Never a secret.

use axum::http::HeaderMap;
use tracing::Span;

/// What spans are known by, in filters.
pub const TARGET: &str = "orlop_span";

/// The span of a request. It goes on with its caller's trace, if the caller says which (`traceparent` of W3C Trace Context).
pub fn request(method: &'static str, route: &str, headers: &HeaderMap) -> Span {
    let span = tracing::info_span!(
        target: TARGET,
        "request",
        otel.name = format_args!("{method} {route}"),
        otel.kind = "server",
        http.response.status_code = tracing::field::Empty,
    );
    if !span.is_disabled() {
        follow(&span, headers);
    }
    span
}

#[cfg(not(feature = "otlp"))]
fn follow(_: &Span, _: &HeaderMap) {}

#[cfg(feature = "otlp")]
pub use exported::Exporter;
#[cfg(feature = "otlp")]
use exported::follow;

#[cfg(feature = "otlp")]
mod exported {
    use std::time::Duration;

    use axum::http::HeaderMap;
    use opentelemetry::KeyValue;
    use opentelemetry::propagation::{Extractor, TextMapPropagator};
    use opentelemetry::trace::TracerProvider;
    use opentelemetry_otlp::{WithExportConfig, WithHttpConfig};
    use opentelemetry_sdk::Resource;
    use opentelemetry_sdk::propagation::TraceContextPropagator;
    use opentelemetry_sdk::trace::{
        BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider,
    };
    use tracing::{Span, Subscriber};
    use tracing_opentelemetry::OpenTelemetrySpanExt;
    use tracing_subscriber::Layer;
    use tracing_subscriber::filter::{LevelFilter, Targets};
    use tracing_subscriber::registry::LookupSpan;

    use super::TARGET;
    use crate::config::TracesSettings;
    use crate::telemetry::TelemetryError;

    /// Spans that wait for the collector.
    const QUEUE: usize = 4096;
    /// How long they gather.
    const GATHER: Duration = Duration::from_secs(1);
    /// How long the collector may take for some of them.
    const PATIENCE: Duration = Duration::from_secs(5);
    /// How long the last ones may take when the daemon stops.
    const GOODBYE: Duration = Duration::from_secs(2);

    /// What sends spans away. Those that wait are sent when it is dropped.
    #[derive(Debug)]
    pub struct Exporter(SdkTracerProvider);

    impl Exporter {
        /// One that sends to the collector of the configuration, if there is one. Not to be called by a task.
        pub fn new(settings: &TracesSettings) -> Result<Option<Self>, TelemetryError> {
            let Some(collector) = settings.collector else { return Ok(None) };
            let wrong = |e: &dyn std::fmt::Display| TelemetryError::Traces(e.to_string());
            // No TLS is spoken here, but it is set up in any case and must not look for a provider.
            let tls = orlop_api::client::tls_config(None, None).map_err(|p| wrong(&p.detail))?;
            let client =
                reqwest::blocking::Client::builder().tls_backend_preconfigured(tls).timeout(PATIENCE);
            let exporter = opentelemetry_otlp::SpanExporter::builder()
                .with_http()
                .with_http_client(client.build().map_err(|e| wrong(&e))?)
                .with_endpoint(format!("http://{collector}/v1/traces"))
                .build()
                .map_err(|e| wrong(&e))?;
            let batch = BatchConfigBuilder::default().with_max_queue_size(QUEUE).with_scheduled_delay(GATHER);
            let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batch.build()).build();
            let share = f64::from(settings.sample_percent) / 100.0;
            let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
            let provider = SdkTracerProvider::builder()
                .with_span_processor(processor)
                .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(share))))
                .with_resource(
                    Resource::builder().with_service_name("orlopd").with_attribute(version).build(),
                )
                .build();
            Ok(Some(Self(provider)))
        }

        /// What takes spans.
        pub fn layer<S>(&self) -> impl Layer<S> + use<S>
        where
            S: Subscriber + for<'span> LookupSpan<'span>,
        {
            let tracer: SdkTracer = self.0.tracer("orlopd");
            let ours = Targets::new().with_target(TARGET, LevelFilter::TRACE);
            tracing_opentelemetry::layer().with_tracer(tracer).with_location(false).with_filter(ours)
        }
    }

    impl Drop for Exporter {
        fn drop(&mut self) {
            if let Err(error) = self.0.shutdown_with_timeout(GOODBYE) {
                tracing::warn!(%error, "the last spans were not sent");
            }
        }
    }

    struct Headers<'a>(&'a HeaderMap);

    impl Extractor for Headers<'_> {
        fn get(&self, key: &str) -> Option<&str> {
            self.0.get(key)?.to_str().ok()
        }

        fn keys(&self) -> Vec<&str> {
            self.0.keys().map(axum::http::HeaderName::as_str).collect()
        }
    }

    pub(super) fn follow(span: &Span, headers: &HeaderMap) {
        let caller = TraceContextPropagator::new().extract(&Headers(headers));
        if let Err(error) = span.set_parent(caller) {
            tracing::debug!(%error, "the caller's trace is not gone on with");
        }
    }
}
