//! NFS by the kernel's `knfsd`: one export a volume, to single hosts and to ranges of addresses.
//!
//! Driven by the convergence loop of [`super`], on the target's lane. Ours are the files `orlop-<id>.exports` in
//! /etc/exports.d, the entries of the server's table for paths `<root>/<id>`, and what is mounted there. It never touches
//! another file or entry, never exports a directory in which nothing is mounted, and never sends data.
//!
//! Kernel truths that the parts rely on: whether a host is let in is asked anew for every call, by an answer that is
//! cached and can be flushed; a call that has its answer goes on. What is open hangs on the mount that was exported, and
//! that one can't be unmounted meanwhile. A server that stops forgets all of its table (`exportfs -au`), and one that
//! starts reads it from the files alone (`exportfs -r`). File handles begin with the `fsid`.

mod apply;
mod entries;
mod foreign;
mod observe;
mod plan;
mod server;
mod state;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use orlop_api::{KeytabFile, Portal, TargetKind, VolumeId};
use parking_lot::Mutex;

pub use server::{Knfsd, NfsServer};
pub use state::{Backing, Change, Observed, Step, Volume};

use super::foreign::Others;
use super::tree::in_words;
use super::{Desired, Export, HostId, PortalConfig, Protocol, Result, Scope, TargetError, portal};
use crate::kernel::{Deadline, Overrun};

/// A version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NfsVersion {
    /// NFSv3, with the services for mounting and locking that it needs beside it.
    V3,
    /// NFSv4.1.
    V4_1,
    /// NFSv4.2.
    V4_2,
}

impl NfsVersion {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::V3, Self::V4_1, Self::V4_2];

    /// As it is spelled in settings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V3 => "3",
            Self::V4_1 => "4.1",
            Self::V4_2 => "4.2",
        }
    }
}

/// How volumes are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NfsConfig {
    /// The directory that hosts find volumes in, by their ids: `/volumes`. It is mounted in memory if it is not there.
    /// A path that needs no quoting in an export table: without spaces and the like.
    pub root: PathBuf,
    /// The versions that are served.
    pub versions: BTreeSet<NfsVersion>,
    /// How many calls are worked on at the same time.
    pub threads: u32,
    /// The addresses to listen at; none for all of them.
    pub addresses: Vec<IpAddr>,
    /// TCP port.
    pub port: u16,
    /// How long a client may be silent, and what it had is kept for it after a reboot. Whole seconds, 10 at least.
    pub lease: Duration,
}

/// Where the services beside NFSv3 listen: fixed, for the sake of firewalls. The kernel's lockd has a port of its own choice.
const MOUNTD_PORT: u16 = 20048;
const STATD_PORT: u16 = 32765;

impl Default for NfsConfig {
    fn default() -> Self {
        Self {
            root: "/volumes".into(),
            versions: NfsVersion::ALL.into(),
            threads: 64,
            addresses: Vec::new(),
            port: 2049,
            // Half of the usual: what a host that does not come back had locked is free that much sooner.
            lease: Duration::from_secs(45),
        }
    }
}

impl NfsConfig {
    /// Where hosts mount a volume from.
    pub fn place(&self, volume: VolumeId) -> PathBuf {
        self.root.join(volume.to_string())
    }

    /// The volume whose place that is. Only our own spelling.
    fn volume(&self, place: &Path) -> Option<VolumeId> {
        let name = place.strip_prefix(&self.root).ok()?.to_str()?;
        name.parse().ok().filter(|v: &VolumeId| v.to_string() == name)
    }

    /// The drop-in for nfs.conf(5).
    fn settings(&self) -> String {
        let yes = |v: NfsVersion| if self.versions.contains(&v) { "y" } else { "n" };
        let v4 = if self.versions.iter().any(|v| *v != NfsVersion::V3) { "y" } else { "n" };
        let (v3, v41, v42) = (yes(NfsVersion::V3), yes(NfsVersion::V4_1), yes(NfsVersion::V4_2));
        let (threads, port, lease) = (self.threads.max(1), self.port, self.lease.as_secs().max(10));
        let hosts: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
        let host = if hosts.is_empty() { String::new() } else { format!("host={}\n", hosts.join(",")) };
        // manage-gids: Debian has it on, and then a user's groups are those that this machine knows, which are none.
        // No [lockd]: where the kernel can't be told these over netlink (before 6.15), nfsdctl gives up over them.
        format!(
            "# Written by orlopd.\n\
             [nfsd]\nthreads={threads}\nport={port}\n{host}udp=n\ntcp=y\nvers3={v3}\nvers4={v4}\nvers4.0=n\n\
             vers4.1={v41}\nvers4.2={v42}\nlease-time={lease}\ngrace-time={lease}\n\
             [mountd]\nport={MOUNTD_PORT}\nmanage-gids=n\nreverse-lookup=n\n\
             [statd]\nport={STATD_PORT}\n"
        )
    }

    /// Whether these are the versions to serve, in the kernel's words: `-2 +3 +4 -4.0 +4.1 +4.2`.
    fn is_served(&self, versions: &str) -> bool {
        let on = |name: &str| versions.split_whitespace().any(|w| w.strip_prefix('+') == Some(name));
        [("3", NfsVersion::V3), ("4.1", NfsVersion::V4_1), ("4.2", NfsVersion::V4_2)]
            .iter()
            .all(|(name, v)| on(name) == self.versions.contains(v))
    }

    fn portal_configs(&self) -> Vec<PortalConfig> {
        let any = [IpAddr::from([0u8; 4]), IpAddr::from([0u16; 8])];
        let addresses = if self.addresses.is_empty() { &any[..] } else { &self.addresses };
        addresses.iter().map(|address| PortalConfig { address: *address, port: self.port }).collect()
    }

    /// All portals as one: a server listens at all of them or does not start.
    fn portal_name(&self) -> String {
        let all: Vec<String> = self.portal_configs().iter().map(ToString::to_string).collect();
        all.join(", ")
    }
}

/// The target.
pub struct Nfs {
    config: NfsConfig,
    server: Arc<dyn NfsServer>,
    /// Between two looks at what the server completes later.
    poll: Duration,
    /// When the server was last given other settings.
    restarted: Mutex<Option<Instant>>,
}

impl fmt::Debug for Nfs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nfs").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Nfs {
    /// Over the kernel's server.
    pub fn kernel(config: NfsConfig) -> Self {
        Self::over(config, Arc::new(Knfsd::default()))
    }

    /// Over any server that behaves so.
    pub fn over(config: NfsConfig, server: Arc<dyn NfsServer>) -> Self {
        Self { config, server, poll: Duration::from_millis(5), restarted: Mutex::default() }
    }

    /// How long to wait between two looks at what the server completes later.
    #[must_use]
    pub fn with_poll(self, poll: Duration) -> Self {
        Self { poll, ..self }
    }

    /// Where hosts mount a volume from.
    pub fn path(&self, volume: VolumeId) -> PathBuf {
        self.config.place(volume)
    }
}

impl Protocol for Nfs {
    type Observed = Observed;
    type Step = Step;

    fn observe(&self, scope: Scope, desired: &Desired, deadline: &Deadline) -> Result<Observed> {
        self.look(scope, desired, deadline)
    }

    fn plan(&self, scope: Scope, desired: &Desired, observed: &Observed) -> Vec<Step> {
        plan::plan(&self.config, scope, desired, observed)
    }

    fn sever(&self, volume: VolumeId, desired: &Desired, observed: &Observed) -> Vec<Step> {
        plan::sever(&self.config, volume, desired, observed)
    }

    fn apply(&self, step: &Step, deadline: &Deadline) -> Result<()> {
        self.make(step, deadline)
    }

    fn subject(&self, step: &Step) -> Option<VolumeId> {
        match step {
            Step::Volume { volume, .. } => Some(*volume),
            Step::Configure | Step::Start | Step::Restart => None,
        }
    }

    fn portal(&self, step: &Step) -> Option<String> {
        match step {
            Step::Volume { .. } => None,
            Step::Configure | Step::Start | Step::Restart => Some(self.config.portal_name()),
        }
    }

    fn portal_names(&self, _export: &Export) -> Vec<String> {
        vec![self.config.portal_name()]
    }

    /// All by one name: the server has all or none of them.
    fn listens(&self) -> Vec<(String, Portal)> {
        let name = self.config.portal_name();
        self.config.portal_configs().iter().map(|p| (name.clone(), p.shown())).collect()
    }

    /// Hosts ask for the size whenever they want to know it.
    fn announce_size(&self, _export: &Export, _deadline: &Deadline) -> Result<()> {
        Ok(())
    }

    /// A host is known by its address, which is no secret. Who its users are may have to be proved to Kerberos, which asks
    /// for nothing here.
    fn prove(&self, _host: &HostId, _deadline: &Deadline) -> Result<()> {
        Ok(())
    }

    fn can_kerberos(&self, deadline: &Deadline) -> Result<()> {
        self.server.can_kerberos(deadline).map_err(no_kerberos)
    }

    fn set_keytab(&self, keytab: Option<&KeytabFile>, deadline: &Deadline) -> Result<()> {
        self.server.set_keytab(keytab, deadline).map_err(no_kerberos)
    }

    fn served(&self, deadline: &Deadline) -> Result<BTreeSet<VolumeId>> {
        self.ours(deadline)
    }

    fn kind(&self) -> TargetKind {
        TargetKind::Knfsd
    }

    fn sessions(&self, _deadline: &Deadline) -> Result<Option<usize>> {
        let clients = self.server.clients();
        Ok(Some(clients.map_err(in_words("clients"))?.len()))
    }

    fn foreign(&self, deadline: &Deadline) -> Result<Others> {
        self.others(deadline)
    }

    fn portals(&self) -> Vec<Portal> {
        portal::reachable(self.config.portal_configs().iter())
    }
}

fn failed(step: impl Into<String>, path: impl AsRef<Path>, source: io::Error) -> TargetError {
    match source.kind() {
        io::ErrorKind::Unsupported => {
            TargetError::Unsupported(format!("{source}: is nfs-kernel-server installed?"))
        }
        io::ErrorKind::TimedOut => TargetError::Deadline(step.into(), Overrun),
        _ => TargetError::Kernel { step: step.into(), path: path.as_ref().into(), source },
    }
}

fn no_kerberos(source: io::Error) -> TargetError {
    match source.kind() {
        io::ErrorKind::Unsupported => TargetError::NoKerberos(source.to_string()),
        _ => failed("check tickets of Kerberos", "rpc-svcgssd.service", source),
    }
}
