//! The validated settings, their defaults, and the rule of each.
//!
//! Called by [`super::load`]; read by `main`, which hands each part to whom it concerns.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use orlop_api::Transport;

use super::inputs::{At, Inputs};
use super::{ConfigError, fragment};
use crate::model::NqnPrefix;
use crate::target::PortalConfig;
use crate::target::ctl::NvmeAccess;
use crate::target::nfs::NfsVersion;
use crate::target::nvmet::{AnaState, IO_QUEUES, NvmetConfig, NvmetPortal, PORT_COUNT};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `state_dir`: journal, TLS certificate and key, first token. On ext4 or XFS.
    pub state_dir: PathBuf,
    /// `[api]`
    pub api: ApiSettings,
    /// `[nvmet]`
    pub nvmet: NvmetSettings,
    /// `[lio]`
    pub lio: LioSettings,
    /// `[ctl]`
    pub ctl: CtlSettings,
    /// `[nfs]`
    pub nfs: NfsSettings,
    /// `[log]`
    pub log: LogSettings,
    /// `[traces]`
    pub traces: TracesSettings,
    /// `[pools]`
    pub pools: PoolsSettings,
    /// `[limits]`
    pub limits: Limits,
}

/// `[api]`: where the API is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiSettings {
    /// `socket`: the unix socket, mode 0660. Whoever may open it is an administrator.
    pub socket: PathBuf,
    /// `socket_group`: the group that owns the socket, if the machine has it.
    pub socket_group: String,
    /// `listen`: addresses for TLS. Empty: none.
    pub listen: Vec<SocketAddr>,
    /// `token_console`: where the first token is shown once; `"none"` for nowhere.
    pub token_console: Option<PathBuf>,
}

/// `[nvmet]`: the NVMe target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NvmetSettings {
    /// `portals`: addresses and ports at which subsystems are served. Each is an address, or a table:
    /// `{ listen = "ADDRESS:PORT", transport = "rdma", tls = true, ana = "non-optimized" }`.
    pub portals: Vec<NvmetPortal>,
    /// `referrals`: addresses and ports of other discovery services, another appliance's say.
    pub referrals: Vec<SocketAddr>,
    /// `io_queues`: the most I/O queues of a host's connection to a volume, 1 to 128.
    pub io_queues: u16,
    /// `queue_size`: the most commands in one of them, 16 to 1024. Not given: the kernel's own limit.
    pub queue_size: Option<u16>,
    /// `nqn_prefix`: what subsystem names start with. Changing it renames every volume's target.
    pub nqn_prefix: NqnPrefix,
    /// The same, as it is written.
    pub nqn_prefix_text: String,
}

/// `[lio]`: the iSCSI target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LioSettings {
    /// `portals`: addresses and ports at which targets are served. Empty: iSCSI is not served.
    pub portals: Vec<SocketAddr>,
}

/// `[ctl]`: the target of FreeBSD. What has portals here is not served by `[lio]` or `[nvmet]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CtlSettings {
    /// `iscsi_portals`: addresses and ports at which targets are served. Empty: not by CTL.
    pub iscsi_portals: Vec<SocketAddr>,
    /// `nvme_portals`: the same for controllers.
    pub nvme_portals: Vec<SocketAddr>,
    /// `nvme_access`: who may use volumes by NVMe, where nobody is asked who he is.
    pub nvme_access: NvmeAccess,
    /// `file`: what `ctld` was told to read.
    pub file: PathBuf,
    /// `pidfile`: where `ctld` writes the number of its process.
    pub pidfile: PathBuf,
}

/// `[nfs]`: the NFS server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NfsSettings {
    /// `listen`: addresses at which file systems are served. Empty: NFS is not served.
    pub listen: Vec<IpAddr>,
    /// `versions`: of `3`, `4.1` and `4.2`.
    pub versions: Vec<NfsVersion>,
    /// `threads`: calls that are worked on at the same time.
    pub threads: u32,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// `level`: `info`, or by target: `info,orlopd::http=debug`.
    pub level: String,
    /// `format`
    pub format: LogFormat,
}

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// The journal under systemd, text otherwise.
    Auto,
    /// systemd's journal, with fields.
    Journald,
    /// Lines for people, on standard error.
    Text,
    /// A JSON object a line, on standard error.
    Json,
}

/// `[traces]`: how requests are traced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TracesSettings {
    /// `collector`: where they are sent to, by OTLP over HTTP (`http://ADDRESS:PORT/v1/traces`). `None`: nowhere.
    pub collector: Option<SocketAddr>,
    /// `sample_percent`: how many of the requests that are not traced by their caller.
    pub sample_percent: u8,
}

/// `[pools]`: how full pools may be, in percent of their total.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolsSettings {
    /// `warn_percent`: from here on a pool is an alarm.
    pub warn_percent: u8,
    /// `stop_percent`: from here on nothing new is made in it. Not below `warn_percent`.
    pub stop_percent: u8,
}

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// `connections`: open connections per listener.
    pub connections: usize,
    /// `connections_per_peer`: open connections per address (per /64 for IPv6) of one TLS listener.
    pub connections_per_peer: usize,
    /// `changes_per_principal`: changes that one principal may have under way, or waiting, at a time.
    pub changes_per_principal: usize,
    /// `requests_per_second`: how often one principal may ask in a second. Not given: as often as it likes.
    pub requests_per_second: Option<u32>,
    /// `request_seconds`: how long a request may take, unless it asks for less.
    pub request: Duration,
    /// `idle_seconds`: how long an authenticated connection may be silent.
    pub idle: Duration,
    /// `drain_seconds`: how long a stop waits for changes under way.
    pub drain: Duration,
    /// `pool_threads`: threads of each pool's lane.
    pub pool_threads: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/orlop".into(),
            api: ApiSettings {
                socket: "/run/orlop/orlopd.sock".into(),
                socket_group: "orlop".into(),
                listen: vec![SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 8443)],
                token_console: Some("/dev/console".into()),
            },
            nvmet: NvmetSettings {
                portals: NvmetConfig::default().portals,
                referrals: Vec::new(),
                io_queues: IO_QUEUES,
                queue_size: None,
                nqn_prefix: NqnPrefix::default(),
                nqn_prefix_text: "nqn.2026-11.dev.orlop".into(),
            },
            lio: LioSettings { portals: vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 3260)] },
            ctl: CtlSettings {
                iscsi_portals: Vec::new(),
                nvme_portals: Vec::new(),
                nvme_access: NvmeAccess::default(),
                file: "/var/db/orlop/ctl.conf".into(),
                pidfile: "/var/run/ctld.pid".into(),
            },
            nfs: NfsSettings {
                listen: vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
                versions: NfsVersion::ALL.to_vec(),
                threads: 64,
            },
            log: LogSettings { level: "info".into(), format: LogFormat::Auto },
            traces: TracesSettings { collector: None, sample_percent: 100 },
            pools: PoolsSettings { warn_percent: 80, stop_percent: 95 },
            limits: Limits {
                connections: 1024,
                connections_per_peer: 128,
                changes_per_principal: 1024,
                requests_per_second: None,
                request: Duration::from_secs(60),
                idle: Duration::from_secs(60),
                drain: Duration::from_secs(30),
                pool_threads: 8,
            },
        }
    }
}

impl LogFormat {
    const ALL: [(&'static str, LogFormat); 4] =
        [("auto", Self::Auto), ("journald", Self::Journald), ("text", Self::Text), ("json", Self::Json)];

    pub(super) fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(_, f)| *f == self).map_or("auto", |(name, _)| name)
    }
}

/// Collects what is wrong while values are checked one by one.
#[derive(Default)]
struct Wrong(Vec<ConfigError>);

impl Wrong {
    /// Puts the checked value of `key` into `slot`, if one is given.
    fn set<T, U>(
        &mut self,
        slot: &mut U,
        key: &str,
        given: Option<At<T>>,
        check: impl FnOnce(T) -> Result<U, String>,
    ) {
        let Some(At { value, file, line }) = given else { return };
        match check(value) {
            Ok(value) => *slot = value,
            Err(rule) => self.0.push(ConfigError::Wrong { file, line, rule: format!("{key} {rule}") }),
        }
    }
}

/// Checks every value against its rule; what is not given is the default.
pub fn validate(i: Inputs) -> Result<Settings, Vec<ConfigError>> {
    let mut s = Settings::default();
    let mut wrong = Wrong::default();
    wrong.set(&mut s.state_dir, "state_dir", i.state_dir, absolute);
    wrong.set(&mut s.api.socket, "api.socket", i.socket, socket);
    wrong.set(&mut s.api.socket_group, "api.socket_group", i.socket_group, group);
    wrong.set(&mut s.api.listen, "api.listen", i.listen, addresses);
    wrong.set(&mut s.api.token_console, "api.token_console", i.token_console, |v| {
        if v == "none" { Ok(None) } else { absolute(v).map(Some) }
    });
    wrong.set(&mut s.nvmet.referrals, "nvmet.referrals", i.referrals, addresses);
    let number = |n: u64| u16::try_from(n).unwrap_or(u16::MAX);
    wrong.set(&mut s.nvmet.io_queues, "nvmet.io_queues", i.io_queues, |v| {
        within(v, 1, IO_QUEUES.into()).map(number)
    });
    wrong.set(&mut s.nvmet.queue_size, "nvmet.queue_size", i.queue_size, |v| {
        within(v, 16, 1024).map(number).map(Some)
    });
    wrong.set(&mut s.ctl.iscsi_portals, "ctl.iscsi_portals", i.ctl_iscsi_portals, addresses);
    wrong.set(&mut s.ctl.nvme_portals, "ctl.nvme_portals", i.ctl_nvme_portals, addresses);
    wrong.set(&mut s.ctl.nvme_access, "ctl.nvme_access", i.ctl_nvme_access, |v| {
        let found = NvmeAccess::ALL.into_iter().find(|a| a.as_str() == v);
        found.ok_or_else(|| format!("must be refused or by-network, not {v:?}"))
    });
    wrong.set(&mut s.ctl.file, "ctl.file", i.ctl_file, absolute);
    wrong.set(&mut s.ctl.pidfile, "ctl.pidfile", i.ctl_pidfile, absolute);
    let (by_nvmet, by_lio) = (place(i.portals.as_ref()), place(i.lio_portals.as_ref()));
    let nvme_by_ctl = !s.ctl.nvme_portals.is_empty();
    wrong.set(&mut s.nvmet.portals, "nvmet.portals", i.portals, |v| match nvmet_portals(v) {
        Ok(list) if list.is_empty() && !nvme_by_ctl => Err("must name at least one address".into()),
        other => other,
    });
    wrong.set(&mut s.lio.portals, "lio.portals", i.lio_portals, addresses);
    let iscsi_by_ctl = !s.ctl.iscsi_portals.is_empty();
    // What stands nowhere gives way.
    if iscsi_by_ctl {
        s.lio.portals.clear();
        wrong.set(&mut (), "lio.portals", by_lio, |()| Err(twice("ctl.iscsi_portals", "iSCSI", "lio")));
    }
    if nvme_by_ctl {
        s.nvmet.portals.clear();
        wrong.set(&mut (), "nvmet.portals", by_nvmet, |()| Err(twice("ctl.nvme_portals", "NVMe", "nvmet")));
    }
    wrong.set(&mut s.nfs.listen, "nfs.listen", i.nfs_listen, |v| {
        distinct(v, |text| text.parse().map_err(|_| format!("must be numeric addresses, not {text:?}")))
    });
    wrong.set(&mut s.nfs.versions, "nfs.versions", i.nfs_versions, |v| {
        let version = |text: &str| {
            let found = NfsVersion::ALL.into_iter().find(|v| v.as_str() == text);
            found.ok_or_else(|| format!("must be of 3, 4.1 and 4.2, not {text:?}"))
        };
        match distinct(v, version) {
            Ok(list) if list.is_empty() => Err("must name at least one version".into()),
            other => other,
        }
    });
    wrong.set(&mut s.nfs.threads, "nfs.threads", i.nfs_threads, |v| {
        within(v, 1, 4_096).map(|n| u32::try_from(n).unwrap_or(u32::MAX))
    });
    let mut prefix = (s.nvmet.nqn_prefix.clone(), s.nvmet.nqn_prefix_text.clone());
    wrong.set(&mut prefix, "nvmet.nqn_prefix", i.nqn_prefix, |v| {
        v.parse::<NqnPrefix>().map(|p| (p, v)).map_err(|e| e.reason.to_string())
    });
    (s.nvmet.nqn_prefix, s.nvmet.nqn_prefix_text) = prefix;
    wrong.set(&mut s.log.level, "log.level", i.level, level);
    wrong.set(&mut s.log.format, "log.format", i.format, |v| {
        let found = LogFormat::ALL.iter().find(|(name, _)| *name == v);
        found.map(|(_, f)| *f).ok_or_else(|| "must be auto, journald, text or json".into())
    });
    wrong.set(&mut s.traces.collector, "traces.collector", i.collector, |v| {
        // To leave it out silently would be found out when a trace is missed.
        if cfg!(feature = "otlp") {
            address(&v).map(Some)
        } else {
            Err("needs a daemon that was built with OTLP (cargo build --features otlp)".into())
        }
    });
    wrong.set(&mut s.traces.sample_percent, "traces.sample_percent", i.sample_percent, percent);
    let (warn, stop) = (i.warn_percent.clone(), i.stop_percent.clone());
    let right = wrong.0.len();
    wrong.set(&mut s.pools.warn_percent, "pools.warn_percent", i.warn_percent, percent);
    wrong.set(&mut s.pools.stop_percent, "pools.stop_percent", i.stop_percent, percent);
    // The other may be a default, and stand nowhere.
    if wrong.0.len() == right && s.pools.warn_percent > s.pools.stop_percent {
        wrong.set(&mut (), "pools.warn_percent", warn.or(stop), |_| {
            let (warn, stop) = (s.pools.warn_percent, s.pools.stop_percent);
            Err(format!("must not be above pools.stop_percent: it is {warn}, above {stop}"))
        });
    }
    let l = &mut s.limits;
    let count = |low, high| move |v| within(v, low, high).map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    let seconds = |low, high| move |v| within(v, low, high).map(Duration::from_secs);
    wrong.set(&mut l.connections, "limits.connections", i.connections, count(1, 65_536));
    let per_peer = i.connections_per_peer;
    wrong.set(&mut l.connections_per_peer, "limits.connections_per_peer", per_peer, count(1, 65_536));
    let changes = i.changes_per_principal;
    wrong.set(&mut l.changes_per_principal, "limits.changes_per_principal", changes, count(1, 65_536));
    let rate = |v| within(v, 1, 1_000_000).map(|n| u32::try_from(n).ok());
    wrong.set(&mut l.requests_per_second, "limits.requests_per_second", i.requests_per_second, rate);
    wrong.set(&mut l.request, "limits.request_seconds", i.request_seconds, seconds(1, 3_600));
    wrong.set(&mut l.idle, "limits.idle_seconds", i.idle_seconds, seconds(1, 86_400));
    wrong.set(&mut l.drain, "limits.drain_seconds", i.drain_seconds, seconds(0, 3_600));
    wrong.set(&mut l.pool_threads, "limits.pool_threads", i.pool_threads, count(1, 64));
    if wrong.0.is_empty() { Ok(s) } else { Err(wrong.0) }
}

/// Where a list that is not empty is given.
fn place<T>(given: Option<&At<Vec<T>>>) -> Option<At<()>> {
    let at = given.filter(|at| !at.value.is_empty())?;
    Some(At { value: (), file: at.file.clone(), line: at.line })
}

fn twice(other: &str, protocol: &str, section: &str) -> String {
    format!(
        "and {other} would both serve {protocol}, which one target serves: set one of them to [], in [{section}] or \
         in [ctl]"
    )
}

fn within(n: u64, low: u64, high: u64) -> Result<u64, String> {
    if (low..=high).contains(&n) { Ok(n) } else { Err(format!("must be {low} to {high}, not {n}")) }
}

fn percent(n: u64) -> Result<u8, String> {
    within(n, 1, 100).map(|n| u8::try_from(n).unwrap_or(100))
}

fn absolute(text: String) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("must be an absolute path".into()) }
}

/// The kernel keeps a socket's path in 108 bytes, the closing NUL included (unix(7)); 4 more are left
/// for the name that it has before it is renamed into place.
fn socket(text: String) -> Result<PathBuf, String> {
    if text.len() > 103 {
        return Err("is longer than 103 bytes".into());
    }
    absolute(text)
}

fn group(text: String) -> Result<String, String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-.".contains(&b);
    if !text.is_empty() && text.bytes().all(plain) { Ok(text) } else { Err("must be a group's name".into()) }
}

/// Stricter than tracing's own parser, which takes a misspelt level for a target.
fn level(text: String) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let good = text.split(',').all(|part| {
        let level = part.split_once('=').map_or(part, |(_, level)| level);
        LEVELS.contains(&level) && !part.starts_with('=')
    });
    if good && text.parse::<tracing_subscriber::filter::Targets>().is_ok() {
        Ok(text)
    } else {
        Err("must be error, warn, info, debug or trace, or a list like info,orlopd::http=debug".into())
    }
}

fn addresses(list: Vec<String>) -> Result<Vec<SocketAddr>, String> {
    distinct(list, address)
}

fn address(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() == 0 => Err("must have a port other than 0".into()),
        Ok(address) => Ok(address),
        Err(_) => {
            Err(format!("must be ADDRESS:PORT or [ADDRESS]:PORT, with a numeric address, not {text:?}"))
        }
    }
}

fn nvmet_portals(list: Vec<fragment::NvmetPortal>) -> Result<Vec<NvmetPortal>, String> {
    let given = list.iter().map(|p| p.listen.clone()).collect();
    let addresses = addresses(given)?;
    if addresses.len() > usize::from(PORT_COUNT) {
        return Err(format!("must name at most {PORT_COUNT} addresses"));
    }
    let each = addresses.into_iter().zip(list).map(|(listen, given)| {
        let transport = match given.transport.as_deref() {
            None | Some("tcp") => Transport::Tcp,
            Some("rdma") => Transport::Rdma,
            Some(other) => return Err(format!("must have tcp or rdma as transport, not {other:?}")),
        };
        if given.tls && transport != Transport::Tcp {
            return Err("can have TLS with tcp alone".into());
        }
        let ana = match given.ana {
            None => AnaState::default(),
            Some(text) => AnaState::ALL.into_iter().find(|a| a.as_str() == text).ok_or_else(|| {
                format!("must have optimized, non-optimized or inaccessible as ana, not {text:?}")
            })?,
        };
        let at = PortalConfig { address: listen.ip(), port: listen.port() };
        Ok(NvmetPortal { at, transport, tls: given.tls, ana })
    });
    each.collect()
}

/// As it is written.
pub(super) fn nvmet_portal(p: &NvmetPortal) -> String {
    let text = |s: &str| toml::Value::from(s).to_string();
    let listen = text(&p.at.to_string());
    if *p == NvmetPortal::tcp(p.at) {
        return listen;
    }
    let (transport, ana) = (text(p.transport.as_str()), text(p.ana.as_str()));
    format!("{{ listen = {listen}, transport = {transport}, tls = {}, ana = {ana} }}", p.tls)
}

/// Reads each, and none twice.
fn distinct<T: PartialEq>(
    list: Vec<String>,
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, String> {
    let mut out = Vec::with_capacity(list.len());
    for text in list {
        let item = read(&text)?;
        if out.contains(&item) {
            return Err(format!("has {text} twice"));
        }
        out.push(item);
    }
    Ok(out)
}
