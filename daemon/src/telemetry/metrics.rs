//! Metrics in the OpenMetrics text format. Counters and histograms are kept here, or with what they measure; gauges
//! are read from the engine when someone scrapes, so that they can't drift from what is.
//!
//! Called by the engine ([`Metrics::action`] and other deeds of its own) and by HTTP (everything else).

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use orlop_api::Protocol;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric as Encodable, Registry};

use super::catalogue::{self as m, Metric};
use super::scraped::Scraped;
use super::{Dropped, process};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ActionLabels {
    verb: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ListenerLabels {
    listener: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    listener: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProtocolLabels {
    protocol: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConvergeLabels {
    protocol: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabels {
    phase: &'static str,
}

type Seconds<L> = Family<L, Histogram, fn() -> Histogram>;

/// See the module.
pub struct Metrics {
    registry: Registry,
    actions: Family<ActionLabels, Counter>,
    action_seconds: Seconds<ActionLabels>,
    requests: Family<RequestLabels, Counter>,
    request_seconds: Histogram,
    connections: Family<ListenerLabels, Gauge>,
    refusals: Family<RefusalLabels, Counter>,
    converges: Family<ConvergeLabels, Counter>,
    converge_seconds: Seconds<ProtocolLabels>,
    drift: Family<OutcomeLabels, Counter>,
    recovery_seconds: Family<PhaseLabels, Gauge<f64, AtomicU64>>,
    recovery_volumes: Family<OutcomeLabels, Gauge>,
    recovery_intents: Gauge,
    dropped: Dropped,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// What a start did, and how long it took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Recovered {
    /// Opening pools and reading what is in them.
    pub pools: Duration,
    /// Settling what was interrupted.
    pub intents: Duration,
    /// Opening attached volumes and restoring the targets.
    pub exports: Duration,
    /// Operations that were interrupted.
    pub interrupted: usize,
    /// Attached volumes that are served.
    pub restored: usize,
    /// Attached volumes that are not, and are tried again.
    pub retried: usize,
}

/// 1 ms to 65 s, doubling: from a read out of memory to an attach at its deadline.
fn action_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 17))
}

fn register(registry: &mut Registry, metric: &Metric, place: impl Encodable) {
    registry.register(metric.name, metric.help, place);
}

impl Metrics {
    /// `dropped` counts log lines that were dropped.
    pub fn new(dropped: Dropped) -> Self {
        let mut registry = Registry::with_prefix("orlop");
        let r = &mut registry;
        register(r, &m::BUILD, Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        let actions = Family::default();
        register(r, &m::ACTIONS, actions.clone());
        let action_seconds: Seconds<ActionLabels> = Family::new_with_constructor(action_buckets);
        register(r, &m::ACTION_SECONDS, action_seconds.clone());
        let requests = Family::default();
        register(r, &m::HTTP_REQUESTS, requests.clone());
        // 50 us to 26 s.
        let request_seconds = Histogram::new(exponential_buckets(0.00005, 2.0, 20));
        register(r, &m::HTTP_REQUEST_SECONDS, request_seconds.clone());
        let connections = Family::default();
        register(r, &m::HTTP_CONNECTIONS, connections.clone());
        let refusals = Family::default();
        register(r, &m::HTTP_REFUSALS, refusals.clone());
        // There from the start, so that the first one is a rise.
        let converges = Family::<ConvergeLabels, Counter>::default();
        for protocol in Protocol::ALL.map(Protocol::as_str) {
            for outcome in ["ok", "failed"] {
                let _ = converges.get_or_create(&ConvergeLabels { protocol, outcome });
            }
        }
        register(r, &m::TARGET_CONVERGED, converges.clone());
        let converge_seconds: Seconds<ProtocolLabels> = Family::new_with_constructor(action_buckets);
        register(r, &m::TARGET_CONVERGE_SECONDS, converge_seconds.clone());
        let drift = Family::<OutcomeLabels, Counter>::default();
        for outcome in ["put_back", "failed"] {
            let _ = drift.get_or_create(&OutcomeLabels { outcome });
        }
        register(r, &m::DRIFT, drift.clone());
        let recovery_seconds = Family::default();
        register(r, &m::RECOVERY_SECONDS, recovery_seconds.clone());
        let recovery_volumes = Family::default();
        register(r, &m::RECOVERY_VOLUMES, recovery_volumes.clone());
        let recovery_intents = Gauge::default();
        register(r, &m::RECOVERY_INTENTS, recovery_intents.clone());
        Self {
            registry,
            actions,
            action_seconds,
            requests,
            request_seconds,
            connections,
            refusals,
            converges,
            converge_seconds,
            drift,
            recovery_seconds,
            recovery_volumes,
            recovery_intents,
            dropped,
        }
    }

    /// Counts a change: its verb, and `ok`, `unchanged` or the kind of error.
    pub fn action(&self, verb: &'static str, outcome: &'static str, took: Duration) {
        let labels = ActionLabels { verb, outcome };
        self.actions.get_or_create(&labels).inc();
        self.action_seconds.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Counts a request. `route` is the pattern, never the path that was asked for: its number of
    /// values must not be in a caller's hands.
    pub fn request(&self, method: &'static str, route: &str, status: u16, took: Duration) {
        let labels = RequestLabels { method, route: route.to_owned(), status };
        self.requests.get_or_create(&labels).inc();
        self.request_seconds.observe(took.as_secs_f64());
    }

    /// The number of open connections of a listener.
    pub fn connections(&self, listener: &'static str, open: usize) {
        let open = i64::try_from(open).unwrap_or(i64::MAX);
        self.connections.get_or_create(&ListenerLabels { listener }).set(open);
    }

    /// Counts a connection that was refused or cut off.
    pub fn refusal(&self, listener: &'static str, reason: &'static str) {
        self.refusals.get_or_create(&RefusalLabels { listener, reason }).inc();
    }

    /// Counts a convergence of a target.
    pub fn converged(&self, protocol: &'static str, ok: bool, took: Duration) {
        let outcome = if ok { "ok" } else { "failed" };
        self.converges.get_or_create(&ConvergeLabels { protocol, outcome }).inc();
        self.converge_seconds.get_or_create(&ProtocolLabels { protocol }).observe(took.as_secs_f64());
    }

    /// Counts a volume that the kernel did not serve as it should.
    pub fn drift(&self, put_back: bool) {
        let outcome = if put_back { "put_back" } else { "failed" };
        self.drift.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    /// Notes what the start did.
    pub fn recovered(&self, did: Recovered) {
        let phases = [("pools", did.pools), ("intents", did.intents), ("exports", did.exports)];
        for (phase, took) in phases {
            self.recovery_seconds.get_or_create(&PhaseLabels { phase }).set(took.as_secs_f64());
        }
        let whole = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        for (outcome, n) in [("restored", did.restored), ("retried", did.retried)] {
            self.recovery_volumes.get_or_create(&OutcomeLabels { outcome }).set(whole(n));
        }
        self.recovery_intents.set(whole(did.interrupted));
    }

    /// All of it as text, with what was read for it.
    pub fn render(&self, mut scraped: Scraped) -> Result<String, fmt::Error> {
        scraped.add(&m::LOG_DROPPED, [], self.dropped.get());
        process::add(&mut scraped);
        let mut read = Registry::with_prefix("orlop");
        read.register_collector(Box::new(scraped));
        let mut out = String::with_capacity(64 << 10);
        text::encode_registry(&mut out, &self.registry)?;
        text::encode_registry(&mut out, &read)?;
        text::encode_eof(&mut out)?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn all_families_are_rendered_once() {
        let metrics = Metrics::new(Dropped::default());
        metrics.action("attach", "ok", Duration::from_millis(3));
        metrics.request("GET", "/v1/volumes/{volume}", 200, Duration::from_micros(80));
        metrics.connections("unix", 2);
        metrics.refusal("tls", "per_peer");
        metrics.converged("nvme", false, Duration::from_millis(7));
        metrics.drift(true);
        metrics.recovered(Recovered {
            pools: Duration::from_millis(1500),
            restored: 3,
            ..Default::default()
        });
        let mut scraped = Scraped::default();
        scraped.add(&m::VOLUMES, [], 3_u64);
        scraped.add(&m::STATE, ["ready"], true);
        scraped.add(&m::POOL_FILL_RATIO, ["tank"], 0.4);
        scraped.add(&m::DISK_ERRORS, ["tank", "a\"b\\c\nd", "read"], 1_u64);
        scraped.add(&m::VOLUME_READ_SECONDS, ["id", "data", "tank", "nvme"], 1.5);
        let waits = Histogram::new([0.1, 1.0]);
        waits.observe(0.5);
        scraped.add(&m::LANE_WAIT, ["make tank"], &waits);
        scraped.add(&m::JOURNAL_SYNC, [], &waits);
        let text = metrics.render(scraped).unwrap();
        for line in [
            "orlop_actions_total{verb=\"attach\",outcome=\"ok\"} 1",
            "orlop_http_requests_total{method=\"GET\",route=\"/v1/volumes/{volume}\",status=\"200\"} 1",
            "orlop_volumes 3",
            "orlop_state{state=\"ready\"} 1",
            "orlop_pool_fill_ratio{pool=\"tank\"} 0.4",
            "orlop_pool_disk_errors{pool=\"tank\",disk=\"a\\\"b\\\\c\\nd\",kind=\"read\"} 1",
            "orlop_http_refusals_total{listener=\"tls\",reason=\"per_peer\"} 1",
            "orlop_target_converges_total{protocol=\"nvme\",outcome=\"failed\"} 1",
            "orlop_drift_total{outcome=\"put_back\"} 1",
            "orlop_drift_total{outcome=\"failed\"} 0",
            "orlop_recovery_seconds{phase=\"pools\"} 1.5",
            "orlop_volume_read_seconds_total{volume=\"id\",name=\"data\",pool=\"tank\",protocol=\"nvme\"} 1.5",
            "orlop_lane_wait_seconds_bucket{le=\"1.0\",lane=\"make tank\"} 1",
            "orlop_journal_sync_seconds_count 1",
            "orlop_log_dropped_lines_total 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        assert_eq!(text.matches("# TYPE orlop_volumes ").count(), 1);
        let value = |name: &str| {
            let line = text.lines().find_map(|l| l.strip_prefix(name)).unwrap();
            line.trim().parse::<f64>().unwrap()
        };
        assert!(value("orlop_process_resident_bytes ") > f64::from(1 << 20));
        assert!(value("orlop_process_open_fds ") > 0.0 && value("orlop_process_threads ") >= 1.0);
        assert!(value("orlop_process_start_time_seconds ") > 1.7e9);
    }
}
