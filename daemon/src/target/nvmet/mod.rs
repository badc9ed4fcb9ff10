//! NVMe over TCP by the kernel's `nvmet`: one subsystem a volume, and another one if it has hosts that may only read; one
//! namespace in each, one port a portal.
//!
//! Driven by the convergence loop of [`super`], on the target's lane. Ours are the subsystems named
//! `<prefix>:<volume id>` and `<prefix>:<volume id>:ro`, and the ports 28416 to 28479; host directories are shared with everyone.
//! It never touches another subsystem or port, never lets in unnamed hosts, and never sends data.
//!
//! Kernel truths that the parts rely on: a change to an allowed host list does not disconnect anyone;
//! `device_path` and the ids are fixed while the namespace is enabled, a port's address while anything
//! is linked to it; disabling a namespace waits for its I/O and, like enabling, holds one lock of the
//! whole module, which every connect needs; removing one that is enabled waits too, and without that lock.

mod apply;
mod foreign;
mod observe;
mod plan;
mod portal;
pub mod readers;
mod secrets;
mod state;
pub mod tls;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use orlop_api::{Portal, TargetKind, VolumeId};

pub use plan::{FIRST_PORT, PORT_COUNT};
pub use portal::{AnaState, NvmetPortal};
pub use state::{Change, Namespace, Observed, Port, PortChange, ReadOnlyDevice, Step, Subsystem};

use super::foreign::Others;
use super::keys::HostKeys;
use super::portal::resolved;
use super::{ConfigTree, Desired, Export, HostId, PortalConfig, Protocol, Result, Scope};
use crate::kernel::Deadline;
use crate::kernel::configfs::ConfigFs;
use crate::kernel::keyring::KernelKeyring;
use crate::model::NqnPrefix;

/// Where the kernel has its configuration.
pub const CONFIG_ROOT: &str = "/sys/kernel/config/nvmet";
/// Where it lists controllers, if it was built to (CONFIG_NVME_TARGET_DEBUGFS, from 6.11).
pub const DEBUG_ROOT: &str = "/sys/kernel/debug/nvmet";

/// How volumes are served.
///
/// The default portal is `0.0.0.0:4420`, all IPv4 addresses. `[::]:4420` alone would take IPv4 as well
/// (unless `net.ipv6.bindv6only` is set), but the kernel's discovery log then gives IPv4 hosts an
/// address of the form `::ffff:10.0.0.1` in the IPv6 family, which they can't use. For both families
/// name the addresses, or set `bindv6only=1` and list both wildcards; without it the second of the two
/// fails with "address in use" and is reported as a portal that is down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NvmetConfig {
    /// The names that are ours.
    pub prefix: NqnPrefix,
    /// Where to listen; at most [`PORT_COUNT`]. A portal keeps its port while others come and go.
    pub portals: Vec<NvmetPortal>,
    /// Other discovery services, which discovery here refers hosts to.
    pub referrals: Vec<SocketAddr>,
    /// The most I/O queues of a controller, 1 to 128. A fence may make it one less, and back.
    pub io_queues: u16,
    /// The most commands of a queue, 16 to 1024. Not given: the kernel's own limit.
    pub queue_size: Option<u16>,
}

/// The kernel's own limit, and its default.
pub const IO_QUEUES: u16 = 128;

impl Default for NvmetConfig {
    fn default() -> Self {
        let portal = PortalConfig { address: Ipv4Addr::UNSPECIFIED.into(), port: 4420 };
        Self {
            prefix: NqnPrefix::default(),
            portals: vec![NvmetPortal::tcp(portal)],
            referrals: Vec::new(),
            io_queues: IO_QUEUES,
            queue_size: None,
        }
    }
}

/// The target.
pub struct Nvmet {
    config: NvmetConfig,
    tree: Arc<dyn ConfigTree>,
    debug: Option<Arc<dyn ConfigTree>>,
    keys: HostKeys,
    tls: Arc<dyn tls::TlsKeyring>,
    known: tls::Known,
    readers: Arc<dyn readers::ReadOnlyDevices>,
    /// Between two looks at what the kernel completes later.
    poll: Duration,
}

impl Nvmet {
    /// Over the running kernel.
    pub fn kernel(config: NvmetConfig) -> Self {
        let debug: Arc<dyn ConfigTree> = Arc::new(ConfigFs::at(DEBUG_ROOT));
        let tls = Arc::new(KernelKeyring::named(tls::KEYRING));
        Self::over(config, Arc::new(ConfigFs::at(CONFIG_ROOT)), Some(debug), tls)
            .with_readers(Arc::new(readers::Mapped))
    }

    /// Over any tree that behaves so, where it is known one that lists controllers as
    /// `<subsystem>/ctrl<N>/hostnqn`, and a keyring; with devices in memory for those that may only read.
    pub fn over(
        config: NvmetConfig,
        tree: Arc<dyn ConfigTree>,
        debug: Option<Arc<dyn ConfigTree>>,
        tls: Arc<dyn tls::TlsKeyring>,
    ) -> Self {
        let (keys, known) = Default::default();
        let readers = Arc::new(readers::SimReadOnlyDevices::default());
        Self { config, tree, debug, keys, tls, known, readers, poll: Duration::from_millis(10) }
    }

    /// Where the devices are that can only be read.
    #[must_use]
    pub fn with_readers(self, readers: Arc<dyn readers::ReadOnlyDevices>) -> Self {
        Self { readers, ..self }
    }

    /// What hosts must prove.
    #[must_use]
    pub fn with_keys(self, keys: HostKeys) -> Self {
        Self { keys, ..self }
    }

    /// How long to wait between two looks at what the kernel completes later.
    #[must_use]
    pub fn with_poll(self, poll: Duration) -> Self {
        Self { poll, ..self }
    }
}

impl Protocol for Nvmet {
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
            Step::Port { .. } => None,
        }
    }

    fn portal(&self, step: &Step) -> Option<String> {
        match step {
            Step::Volume { change: Change::Link { portal, .. }, .. } | Step::Port { portal, .. } => {
                Some(portal.clone())
            }
            Step::Volume { .. } => None,
        }
    }

    fn portal_names(&self, export: &Export) -> Vec<String> {
        self.config.portals_of(export).map(ToString::to_string).collect()
    }

    fn listens(&self) -> Vec<(String, Portal)> {
        let at = |p: &NvmetPortal| Portal { address: p.at.address.to_string(), port: p.at.port, ..p.shown() };
        self.config.portals.iter().map(|p| (p.to_string(), at(p))).collect()
    }

    fn announce_size(&self, export: &Export, _deadline: &Deadline) -> Result<()> {
        self.announce(export)
    }

    fn prove(&self, host: &HostId, deadline: &Deadline) -> Result<()> {
        match host {
            HostId::Nqn(nqn) => {
                // What was its key goes, whatever else can be had.
                let key = self.have_new_key(nqn.as_str(), deadline);
                self.have_proved(nqn.as_str(), deadline).and(key)
            }
            _ => Ok(()),
        }
    }

    fn served(&self, _deadline: &Deadline) -> Result<BTreeSet<VolumeId>> {
        self.ours()
    }

    fn kind(&self) -> TargetKind {
        TargetKind::Nvmet
    }

    fn sessions(&self, deadline: &Deadline) -> Result<Option<usize>> {
        self.live_controllers(deadline)
    }

    fn foreign(&self, deadline: &Deadline) -> Result<Others> {
        self.others(deadline)
    }

    fn portals(&self) -> Vec<Portal> {
        resolved(self.config.portals.iter().map(|p| (&p.at, p.shown())))
    }
}
