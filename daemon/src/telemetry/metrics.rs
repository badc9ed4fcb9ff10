//! Metrics in the OpenMetrics text format. Counters and histograms are kept here; gauges are read from
//! the engine's view when someone scrapes, so that they can't drift from what is.
//!
//! Called by the engine ([`Metrics::action`]) and by HTTP (everything else).

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use orlop_api::SystemState;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::Dropped;

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
struct PoolLabels {
    pool: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
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
    dropped: Dropped,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// What is read at scrape time. Sizes in bytes.
#[derive(Debug, Clone)]
pub struct Gauges {
    /// How the daemon is.
    pub state: SystemState,
    /// How many volumes.
    pub volumes: u64,
    /// How many hosts.
    pub hosts: u64,
    /// How many attachments.
    pub attachments: u64,
    /// How many alarms.
    pub alarms: u64,
    /// Each pool.
    pub pools: Vec<PoolGauges>,
}

/// A pool's part of [`Gauges`].
#[derive(Debug, Clone)]
pub struct PoolGauges {
    /// Its name.
    pub name: String,
    /// Whether it can be used.
    pub online: bool,
    /// Bytes it could hold.
    pub total: u64,
    /// Bytes taken.
    pub used: u64,
    /// Bytes left.
    pub available: u64,
    /// The sum of its volumes' sizes, in bytes.
    pub provisioned: u64,
}

/// 1 ms to 65 s, doubling: from a read out of memory to an attach at its deadline.
fn action_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 17))
}

impl Metrics {
    /// `dropped` counts log lines that were dropped.
    pub fn new(dropped: Dropped) -> Self {
        let mut registry = Registry::with_prefix("orlop");
        let actions = Family::default();
        registry.register("actions", "Changes by verb and outcome", actions.clone());
        let action_seconds: Seconds<ActionLabels> = Family::new_with_constructor(action_buckets);
        registry.register("action_seconds", "How long changes took", action_seconds.clone());
        let requests = Family::default();
        registry.register("http_requests", "Requests by method, route and status", requests.clone());
        // 50 us to 26 s.
        let request_seconds = Histogram::new(exponential_buckets(0.00005, 2.0, 20));
        registry.register("http_request_seconds", "How long requests took", request_seconds.clone());
        let connections = Family::default();
        registry.register("http_connections", "Open connections", connections.clone());
        let refusals = Family::default();
        registry.register("http_refusals", "Connections refused or cut off by the caps", refusals.clone());
        let build: Info<[(&str, &str); 1]> = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "Build of the daemon", build);
        Self { registry, actions, action_seconds, requests, request_seconds, connections, refusals, dropped }
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

    /// All of it as text.
    pub fn render(&self, gauges: &Gauges) -> Result<String, fmt::Error> {
        let mut out = String::with_capacity(16 << 10);
        text::encode_registry(&mut out, &self.registry)?;
        text::encode_registry(&mut out, &self.scraped(gauges))?;
        text::encode_eof(&mut out)?;
        Ok(out)
    }

    fn scraped(&self, g: &Gauges) -> Registry {
        let mut r = Registry::with_prefix("orlop");
        let mut one = |name: &str, help: &str, value: u64| {
            let gauge = Gauge::<i64>::default();
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
            r.register(name, help, gauge);
        };
        one("volumes", "Volumes", g.volumes);
        one("hosts", "Hosts", g.hosts);
        one("attachments", "Attachments", g.attachments);
        one("alarms", "Alarms that a person should look at", g.alarms);
        one("pools", "Pools", g.pools.len() as u64);
        one("log_dropped_lines", "Log lines dropped since the start", self.dropped.get());
        one("process_resident_bytes", "Memory of the daemon", resident_bytes());
        one("process_open_fds", "Open file descriptors", open_fds());
        let state = Family::<StateLabels, Gauge>::default();
        for (name, which) in [
            ("starting", SystemState::Starting),
            ("ready", SystemState::Ready),
            ("draining", SystemState::Draining),
        ] {
            state.get_or_create(&StateLabels { state: name }).set((g.state == which).into());
        }
        r.register("state", "1 for the state that the daemon is in", state);
        type Read = fn(&PoolGauges) -> u64;
        let of_pools: [(&str, &str, Read); 5] = [
            ("pool_online", "Whether a pool can be used", |p| p.online.into()),
            ("pool_total_bytes", "What a pool could hold", |p| p.total),
            ("pool_used_bytes", "What is taken", |p| p.used),
            ("pool_available_bytes", "What is left", |p| p.available),
            ("pool_provisioned_bytes", "The sum of the sizes of its volumes", |p| p.provisioned),
        ];
        for (name, help, read) in of_pools {
            let family = Family::<PoolLabels, Gauge>::default();
            for p in &g.pools {
                let value = i64::try_from(read(p)).unwrap_or(i64::MAX);
                family.get_or_create(&PoolLabels { pool: p.name.clone() }).set(value);
            }
            r.register(name, help, family);
        }
        let fill = Family::<PoolLabels, Gauge<f64, AtomicU64>>::default();
        for p in g.pools.iter().filter(|p| p.total > 0) {
            let labels = PoolLabels { pool: p.name.clone() };
            fill.get_or_create(&labels).set(p.used as f64 / p.total as f64);
        }
        r.register("pool_fill_ratio", "What is taken, of what a pool could hold: 0 to 1", fill);
        r
    }
}

/// `VmRSS` of /proc/self/status (proc(5)), which is in KiB.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib: u64 = line.and_then(|l| l.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0);
    kib << 10
}

fn open_fds() -> u64 {
    // Less the one that counts.
    std::fs::read_dir("/proc/self/fd").map_or(0, |d| (d.count() as u64).saturating_sub(1))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn all_families_are_rendered_once() {
        let m = Metrics::new(Dropped::default());
        m.action("attach", "ok", Duration::from_millis(3));
        m.request("GET", "/v1/volumes/{volume}", 200, Duration::from_micros(80));
        m.connections("unix", 2);
        m.refusal("tls", "per_peer");
        let pool = PoolGauges {
            name: "tank".into(),
            online: true,
            total: 10,
            used: 4,
            available: 6,
            provisioned: 20,
        };
        let g = Gauges {
            state: SystemState::Ready,
            volumes: 3,
            hosts: 2,
            attachments: 1,
            alarms: 0,
            pools: vec![pool],
        };
        let text = m.render(&g).unwrap();
        for line in [
            "orlop_actions_total{verb=\"attach\",outcome=\"ok\"} 1",
            "orlop_http_requests_total{method=\"GET\",route=\"/v1/volumes/{volume}\",status=\"200\"} 1",
            "orlop_volumes 3",
            "orlop_state{state=\"ready\"} 1",
            "orlop_state{state=\"draining\"} 0",
            "orlop_pool_available_bytes{pool=\"tank\"} 6",
            "orlop_pool_fill_ratio{pool=\"tank\"} 0.4",
            "orlop_http_refusals_total{listener=\"tls\",reason=\"per_peer\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        assert_eq!(text.matches("# TYPE orlop_volumes ").count(), 1);
        assert!(resident_bytes() > 1 << 20 && open_fds() > 0);
    }
}
