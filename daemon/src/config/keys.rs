//! Settings key by key: how each is written, which of them a running daemon takes on, and what differs between two.
//!
//! Called when settings are shown, and when they are read anew. Nothing here uses `..`: a new setting does not compile before it
//! has its key, and before somebody has decided whether it applies under a running daemon.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;

use orlop_api::SettingChange;

use super::settings::{
    ApiSettings, CtlSettings, Limits, LioSettings, LogSettings, NfsSettings, NvmetSettings, PoolsSettings,
    Settings, TracesSettings, nvmet_portal,
};

/// One setting, as it stands in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    /// With its section: `api.socket`.
    name: &'static str,
    /// As TOML. `None`: it is not given, and has no value that could be.
    value: Option<String>,
}

impl Settings {
    /// What a daemon that runs these settings runs with when `read` is applied to it: what it can take on is as it was read,
    /// all else stays as it was until the next start.
    pub fn reloaded(&self, read: &Self) -> Self {
        let (stays, new) = (self.clone(), read.clone());
        Settings {
            state_dir: stays.state_dir,
            // Listeners are bound once, and the token was shown.
            api: ApiSettings {
                socket: stays.api.socket,
                socket_group: stays.api.socket_group,
                listen: stays.api.listen,
                token_console: stays.api.token_console,
            },
            // Targets are told at start what they serve; a restart disturbs no host, and restores all of it.
            nvmet: NvmetSettings {
                portals: stays.nvmet.portals,
                referrals: stays.nvmet.referrals,
                io_queues: stays.nvmet.io_queues,
                queue_size: stays.nvmet.queue_size,
                nqn_prefix: stays.nvmet.nqn_prefix,
                nqn_prefix_text: stays.nvmet.nqn_prefix_text,
            },
            lio: LioSettings { portals: stays.lio.portals },
            ctl: CtlSettings {
                iscsi_portals: stays.ctl.iscsi_portals,
                nvme_portals: stays.ctl.nvme_portals,
                nvme_access: stays.ctl.nvme_access,
                file: stays.ctl.file,
                pidfile: stays.ctl.pidfile,
            },
            nfs: NfsSettings {
                listen: stays.nfs.listen,
                versions: stays.nfs.versions,
                threads: stays.nfs.threads,
            },
            log: LogSettings { level: new.log.level, format: stays.log.format },
            // The exporter is made once.
            traces: TracesSettings {
                collector: stays.traces.collector,
                sample_percent: stays.traces.sample_percent,
            },
            pools: PoolsSettings {
                warn_percent: new.pools.warn_percent,
                stop_percent: new.pools.stop_percent,
            },
            limits: Limits {
                connections: new.limits.connections,
                connections_per_peer: new.limits.connections_per_peer,
                changes_per_principal: new.limits.changes_per_principal,
                requests_per_second: new.limits.requests_per_second,
                request: new.limits.request,
                idle: new.limits.idle,
                drain: new.limits.drain,
                // Lanes start their threads when their pool is opened.
                pool_threads: stays.limits.pool_threads,
            },
        }
    }

    /// The keys that differ, in the order of the file.
    pub fn changes(&self, to: &Self) -> Vec<SettingChange> {
        let pairs = self.keys().into_iter().zip(to.keys());
        let differ = pairs.filter(|(from, to)| from.value != to.value);
        differ.map(|(f, t)| SettingChange { key: f.name.into(), from: f.value, to: t.value }).collect()
    }

    /// Every key with its value, always the same keys in the same order.
    fn keys(&self) -> Vec<Key> {
        let Settings { state_dir, api, nvmet, lio, ctl, nfs, log, traces, pools, limits } = self;
        let ApiSettings { socket, socket_group, listen, token_console } = api;
        let NvmetSettings { portals, referrals, io_queues, queue_size, nqn_prefix: _, nqn_prefix_text } =
            nvmet;
        let LioSettings { portals: lio_portals } = lio;
        let CtlSettings { iscsi_portals, nvme_portals, nvme_access, file, pidfile } = ctl;
        let NfsSettings { listen: nfs_listen, versions, threads } = nfs;
        let LogSettings { level, format } = log;
        let TracesSettings { collector, sample_percent } = traces;
        let PoolsSettings { warn_percent, stop_percent } = pools;
        let Limits {
            connections,
            connections_per_peer,
            changes_per_principal,
            requests_per_second,
            request,
            idle,
            drain,
            pool_threads,
        } = limits;
        let key = |name, value: String| Key { name, value: Some(value) };
        let optional = |name, value: Option<String>| Key { name, value };
        vec![
            key("state_dir", path(state_dir)),
            key("api.socket", path(socket)),
            key("api.socket_group", text(socket_group)),
            key("api.listen", addresses(listen)),
            key("api.token_console", token_console.as_deref().map_or_else(|| text("none"), path)),
            key("nvmet.portals", list(portals.iter().map(nvmet_portal))),
            key("nvmet.referrals", addresses(referrals)),
            key("nvmet.io_queues", io_queues.to_string()),
            optional("nvmet.queue_size", queue_size.map(|n| n.to_string())),
            key("nvmet.nqn_prefix", text(nqn_prefix_text)),
            key("lio.portals", addresses(lio_portals)),
            key("ctl.iscsi_portals", addresses(iscsi_portals)),
            key("ctl.nvme_portals", addresses(nvme_portals)),
            key("ctl.nvme_access", text(nvme_access.as_str())),
            key("ctl.file", path(file)),
            key("ctl.pidfile", path(pidfile)),
            key("nfs.listen", list(nfs_listen.iter().map(|a| text(&a.to_string())))),
            key("nfs.versions", list(versions.iter().map(|v| text(v.as_str())))),
            key("nfs.threads", threads.to_string()),
            key("log.level", text(level)),
            key("log.format", text(format.as_str())),
            optional("traces.collector", collector.map(|a| text(&a.to_string()))),
            key("traces.sample_percent", sample_percent.to_string()),
            key("pools.warn_percent", warn_percent.to_string()),
            key("pools.stop_percent", stop_percent.to_string()),
            key("limits.connections", connections.to_string()),
            key("limits.connections_per_peer", connections_per_peer.to_string()),
            key("limits.changes_per_principal", changes_per_principal.to_string()),
            optional("limits.requests_per_second", requests_per_second.map(|n| n.to_string())),
            key("limits.request_seconds", request.as_secs().to_string()),
            key("limits.idle_seconds", idle.as_secs().to_string()),
            key("limits.drain_seconds", drain.as_secs().to_string()),
            key("limits.pool_threads", pool_threads.to_string()),
        ]
    }
}

fn text(s: &str) -> String {
    toml::Value::from(s).to_string()
}

fn path(p: &Path) -> String {
    text(&p.to_string_lossy())
}

fn list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}

fn addresses(all: &[SocketAddr]) -> String {
    list(all.iter().map(|a| text(&a.to_string())))
}

impl fmt::Display for Settings {
    /// As TOML that reads back to the same settings.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = "";
        for Key { name, value } in self.keys() {
            let (section, name) = name.split_once('.').unwrap_or(("", name));
            if section != shown {
                writeln!(f, "\n[{section}]")?;
                shown = section;
            }
            if let Some(value) = value {
                writeln!(f, "{name} = {value}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::load;

    /// Every key with a value that is not its default.
    const OTHER: &str = r#"
state_dir = "/srv/orlop"
[api]
socket = "/run/other.sock"
socket_group = "wheel"
listen = ["127.0.0.1:9443"]
token_console = "none"
[nvmet]
portals = ["10.0.0.1:4420"]
referrals = ["10.0.0.2:4420"]
io_queues = 4
queue_size = 64
nqn_prefix = "nqn.2026-01.org.example"
[lio]
portals = ["10.0.0.1:3260"]
[nfs]
listen = ["10.0.0.1"]
versions = ["4.2"]
threads = 8
[log]
level = "debug"
format = "json"
[traces]
sample_percent = 10
#collector = "127.0.0.1:4318"
[pools]
warn_percent = 70
stop_percent = 90
[limits]
connections = 100
connections_per_peer = 10
changes_per_principal = 5
requests_per_second = 500
request_seconds = 30
idle_seconds = 20
drain_seconds = 10
pool_threads = 2
"#;
    /// What can't be given beside `[nvmet]` and `[lio]`.
    const CTL: &str = r#"
[ctl]
iscsi_portals = ["10.0.0.1:3260"]
nvme_portals = ["10.0.0.1:4420"]
nvme_access = "by-network"
file = "/etc/orlop-ctl.conf"
pidfile = "/run/ctld.pid"
"#;
    const LIVE: [&str; 10] = [
        "log.level",
        "pools.warn_percent",
        "pools.stop_percent",
        "limits.connections",
        "limits.connections_per_peer",
        "limits.changes_per_principal",
        "limits.requests_per_second",
        "limits.request_seconds",
        "limits.idle_seconds",
        "limits.drain_seconds",
    ];

    fn read(text: &str) -> Settings {
        // What only a build with OTLP takes.
        let text = if cfg!(feature = "otlp") { text.replace("#collector", "collector") } else { text.into() };
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("o.toml"), text).unwrap();
        load(&dir.path().join("o.toml"), None).unwrap()
    }

    fn names(changes: &[SettingChange]) -> Vec<&str> {
        changes.iter().map(|c| c.key.as_str()).collect()
    }

    #[test]
    fn every_key_applies_now_or_after_a_restart() {
        let runs = Settings::default();
        let (mut applied, mut waiting) = (Vec::new(), Vec::new());
        for read in [read(OTHER), read(CTL)] {
            let after = runs.reloaded(&read);
            applied.extend(runs.changes(&after));
            waiting.extend(after.changes(&read));
        }
        assert_eq!(names(&applied), LIVE);
        let mut all: Vec<_> = names(&applied).into_iter().chain(names(&waiting)).collect();
        all.sort_unstable();
        all.dedup();
        let mut keys: Vec<_> = runs.keys().iter().map(|k| k.name).collect();
        keys.sort_unstable();
        keys.retain(|key| cfg!(feature = "otlp") || *key != "traces.collector");
        assert_eq!(all, keys, "a key is not among those that this test changes");
    }

    #[test]
    fn the_page_for_administrators_names_what_applies_at_once() {
        let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
        let page = std::fs::read_to_string(page).unwrap();
        let section = page.split("\n## ").find(|s| s.starts_with("Changing the configuration")).unwrap();
        let rows = section.lines().filter_map(|l| l.strip_prefix("| `")?.split_once('`'));
        assert_eq!(rows.map(|(key, _)| key).collect::<Vec<_>>(), LIVE);
    }

    #[test]
    fn keys_are_those_of_the_packaged_file() {
        let packaged = include_str!("../../dist/etc/orlop/orlopd.toml");
        let bare = packaged.lines().map(|l| l.trim_start_matches(['#', ':', ' ']));
        let mut section = String::new();
        let mut found = Vec::new();
        for line in bare {
            if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
                section = format!("{name}.");
            } else if let Some((name, _)) = line.split_once(" = ")
                && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
            {
                found.push(format!("{section}{name}"));
            }
        }
        assert_eq!(found, Settings::default().keys().iter().map(|k| k.name).collect::<Vec<_>>());
    }

    #[test]
    fn what_waits_is_compared_with_what_runs() {
        let runs = Settings::default();
        let other = read("[nvmet]\nportals = [\"10.0.0.1:4420\"]\n[log]\nlevel = \"debug\"\n");
        let after = runs.reloaded(&other);
        let applied = runs.changes(&after);
        let (from, to) = (Some("\"info\"".to_owned()), Some("\"debug\"".to_owned()));
        assert_eq!(applied, [SettingChange { key: "log.level".into(), from, to }]);
        // Again: nothing is applied, and what waits still does.
        let again = after.reloaded(&other);
        assert_eq!((again.changes(&after), names(&again.changes(&other))), (vec![], vec!["nvmet.portals"]));
        // Back to what runs: nothing waits any more.
        let back = again.reloaded(&runs);
        assert_eq!((names(&again.changes(&back)), back.changes(&runs)), (vec!["log.level"], vec![]));
        let rate = runs.changes(&read("[limits]\nrequests_per_second = 7\n"));
        assert_eq!((rate[0].from.as_deref(), rate[0].to.as_deref()), (None, Some("7")));
    }
}
