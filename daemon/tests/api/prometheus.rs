//! A real Prometheus, of Debian's package, against the daemon: over TLS, with a token and the appliance's certificate. The
//! alert rules and the dashboard that are shipped ask it, and must get answers.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::daemon::Daemon;

/// What a simulation has nothing to say of: it has no disks and no devices, and refuses nobody.
const NOT_SIMULATED: [&str; 24] = [
    "orlop_http_refusals_total",
    "orlop_nfs_bad_calls_total",
    "orlop_nfs_calls_total",
    "orlop_nfs_read_bytes_total",
    "orlop_nfs_volume_read_bytes_total",
    "orlop_nfs_volume_written_bytes_total",
    "orlop_nfs_written_bytes_total",
    "orlop_pool_data_errors",
    "orlop_pool_disk_errors",
    "orlop_pool_disks",
    "orlop_pool_health",
    "orlop_pool_metadata_ratio",
    "orlop_pool_scan_ended_timestamp_seconds",
    "orlop_pool_scan_errors",
    "orlop_pool_scan_ratio",
    "orlop_pool_scan_running",
    "orlop_volume_busy_seconds_total",
    "orlop_volume_in_flight",
    "orlop_volume_read_bytes_total",
    "orlop_volume_read_seconds_total",
    "orlop_volume_reads_total",
    "orlop_volume_write_seconds_total",
    "orlop_volume_writes_total",
    "orlop_volume_written_bytes_total",
];

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

const RULES: &str = "dist/usr/share/orlop/prometheus/orlop.rules.yml";

/// Where `prometheus` and `promtool` are.
fn programs() -> PathBuf {
    let out = Command::new(file("tests/observability/prometheus.sh")).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    PathBuf::from(String::from_utf8(out.stdout).unwrap().trim())
}

fn promtool(args: &[&Path]) -> Output {
    Command::new(programs().join("promtool")).args(args).output().unwrap()
}

#[test]
fn the_alert_rules_fire_when_they_should_and_only_then() {
    for (what, path) in [("check", RULES), ("test", "tests/observability/alerts.test.yml")] {
        let out = promtool(&[Path::new(what), Path::new("rules"), &file(path)]);
        assert!(
            out.status.success(),
            "{path}: {}{}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
    }
}

/// A Prometheus that scrapes one daemon each second.
struct Prometheus {
    child: Child,
    port: u16,
}

impl Prometheus {
    fn start(d: &Daemon) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = d.dir.path();
        let token = dir.join("token");
        std::fs::write(&token, d.token()).unwrap();
        // The part of the configuration that is shipped, with what differs here in its place.
        let shipped =
            std::fs::read_to_string(file("dist/usr/share/orlop/prometheus/orlop.scrape.yml")).unwrap();
        let scrape = shipped
            .replace("/etc/prometheus/orlop.token", &token.display().to_string())
            .replace("/etc/prometheus/orlop.pem", &d.state().join("tls/cert.pem").display().to_string())
            .replace("appliance:8443", &d.address.unwrap().to_string())
            .replace("15s", "1s");
        let config = format!(
            "global: {{ evaluation_interval: 1s }}\nrule_files: [{}]\nscrape_configs:\n{scrape}",
            file(RULES).display()
        );
        let path = dir.join("prometheus.yml");
        std::fs::write(&path, config).unwrap();
        let out = promtool(&[Path::new("check"), Path::new("config"), &path]);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let log = std::fs::File::create(dir.join("prometheus.log")).unwrap();
        let child = Command::new(programs().join("prometheus"))
            .arg(format!("--config.file={}", path.display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("tsdb").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, port }
    }

    /// An answer of its API, once there is one.
    fn get(&self, path: &str) -> Option<Value> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // 1.0, so that the answer comes in one piece.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: x\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        serde_json::from_str(text.split_once("\r\n\r\n")?.1).ok()
    }

    /// The series that an expression gives now.
    fn ask(&self, expr: &str) -> Vec<Value> {
        let query: String = expr.bytes().map(|b| format!("%{b:02x}")).collect();
        let answer = self.get(&format!("/api/v1/query?query={query}")).unwrap();
        assert_eq!(answer["status"], "success", "{expr}: {answer}");
        answer["data"]["result"].as_array().unwrap().clone()
    }

    fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(30);
        while !done(self) {
            assert!(Instant::now() < end, "{what}: not after 30 s");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The metrics that an expression names.
fn names(expr: &str) -> BTreeSet<String> {
    let words = expr.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|w| w.starts_with("orlop_")).map(str::to_owned).collect()
}

/// Every expression of the dashboard, with its variables filled in.
fn of_dashboard() -> Vec<String> {
    let text = std::fs::read_to_string(file("dist/usr/share/orlop/grafana/orlop.json")).unwrap();
    let board: Value = serde_json::from_str(&text).unwrap();
    let mut found = Vec::new();
    fn collect(v: &Value, found: &mut Vec<String>) {
        match v {
            Value::Object(o) => {
                found.extend(o.get("expr").and_then(Value::as_str).map(str::to_owned));
                // Where it comes from is for who imports it to say.
                if let Some(source) = o.get("datasource").filter(|d| d.is_object()) {
                    assert_eq!(source["uid"], "${datasource}");
                }
                o.values().for_each(|v| collect(v, found));
            }
            Value::Array(a) => a.iter().for_each(|v| collect(v, found)),
            _ => {}
        }
    }
    collect(&board, &mut found);
    let filled: Vec<String> =
        found.iter().map(|e| e.replace("$instance", ".*").replace("$__rate_interval", "1m")).collect();
    assert!(filled.iter().all(|e| !e.contains('$')) && filled.len() > 60, "{}", filled.len());
    filled
}

/// Some life, and a pool that is missing.
async fn lived_in() -> Daemon {
    let mut d = Daemon::start_tls();
    let pool = d.pool("tank").await;
    d.pool("lost").await;
    for name in ["one", "two"] {
        let volume = d.volume(&pool, name).await;
        let host = d.host(name).await;
        d.client().attach(&volume.name.as_str().parse().unwrap(), &host.name).await.unwrap();
    }
    d.client().detach(&"two".parse().unwrap(), &"two".parse().unwrap()).await.unwrap();
    d.client().volume(&"nothing".parse().unwrap()).await.unwrap_err();
    assert!(d.stop().success());
    std::fs::rename(d.dir.path().join("pool-lost"), d.dir.path().join("elsewhere")).unwrap();
    d.again();
    // Once more after the start: counters begin anew.
    let nothing = d.client().delete_volume(&"one".parse().unwrap()).await.unwrap_err();
    assert_eq!(nothing.kind.as_str(), "precondition");
    d.volume(&pool, "three").await;
    d.client().attach(&"three".parse().unwrap(), &"one".parse().unwrap()).await.unwrap();
    d
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_scrapes_and_every_expression_that_is_shipped_is_answered() {
    let d = lived_in().await;
    let p = Prometheus::start(&d);
    p.until("a first scrape", |p| p.get("/-/ready").is_some() || p.get("/api/v1/targets").is_some());
    p.until("some scrapes", |p| {
        let seen = p.ask("count_over_time(up{job=\"orlop\"}[1m]) > 3 and up == 1");
        !seen.is_empty()
    });
    // A change between two scrapes: what only grows has grown.
    d.client().detach(&"three".parse().unwrap(), &"one".parse().unwrap()).await.unwrap();
    p.until("the change to be seen", |p| {
        !p.ask("increase(orlop_actions_total{verb=\"detach\"}[1m]) >= 0").is_empty()
    });

    // What is exported is what is documented; all of it, save for what can't be simulated.
    let exported: BTreeSet<String> = {
        let text = d.client().metrics().await.unwrap();
        let types = text.lines().filter_map(|l| l.strip_prefix("# TYPE "));
        let named = types.filter_map(|t| t.split_once(' ')).map(|(name, kind)| match kind {
            "counter" => format!("{name}_total"),
            "info" => format!("{name}_info"),
            _ => name.to_owned(),
        });
        named.collect()
    };
    let documented: BTreeSet<String> = std::fs::read_to_string(file("../docs/observability.md"))
        .unwrap()
        .lines()
        .filter_map(|l| l.strip_prefix("| `orlop_")?.split_once('`'))
        .map(|(name, _)| format!("orlop_{name}"))
        .collect();
    let possible: BTreeSet<String> =
        documented.iter().filter(|name| !NOT_SIMULATED.contains(&name.as_str())).cloned().collect();
    assert_eq!(exported.difference(&documented).collect::<Vec<_>>(), Vec::<&String>::new());
    assert_eq!(possible.difference(&exported).collect::<Vec<_>>(), Vec::<&String>::new());

    let rules = p.get("/api/v1/rules").unwrap();
    let rules: Vec<&Value> = rules["data"]["groups"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap())
        .collect();
    assert!(rules.len() > 20, "{}", rules.len());
    for rule in &rules {
        assert_eq!(rule["health"], "ok", "{rule}");
        assert!(rule["annotations"]["runbook"].as_str().is_some_and(|r| r.len() > 40), "{rule}");
    }
    let known = |name: &str| {
        let bare = ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s)).unwrap_or(name);
        documented.contains(name) || documented.contains(bare)
    };
    for expr in rules.iter().map(|r| r["query"].as_str().unwrap()) {
        for name in names(expr) {
            assert!(known(&name), "{expr} names {name}, which is not exported");
            let simulated = !NOT_SIMULATED.contains(&name.as_str());
            assert!(!simulated || !p.ask(&name).is_empty(), "{name} has no series");
        }
        p.ask(expr);
    }
    for expr in of_dashboard() {
        let asked = names(&expr);
        assert!(asked.iter().all(|name| known(name)), "{expr} names what is not exported");
        let series = p.ask(&expr);
        let simulated = asked.iter().all(|name| !NOT_SIMULATED.contains(&name.as_str()));
        // Some show nothing where all is well.
        let filters = expr.contains(" > 0") && !expr.contains(" / ") || expr.contains("== 1");
        assert!(!simulated || filters || !series.is_empty(), "{expr} gives nothing");
    }
    // What is wrong here is found.
    for name in ["OrlopPoolMissing", "OrlopAlarmCritical"] {
        p.until(name, |p| !p.ask(&format!("ALERTS{{alertname=\"{name}\"}}")).is_empty());
    }
    let firing = p.ask("ALERTS{alertstate=\"firing\"}");
    assert!(firing.is_empty(), "nothing has lasted long enough: {firing:?}");
}
