//! iSCSI by the kernel's LIO: one target a volume, one portal group in it, one LUN, and a node ACL a host.
//!
//! Driven by the convergence loop of [`super`], on the target's lane. Ours are the targets named `<prefix>:<volume id>`
//! and, in the adapter [`ADAPTER`], the backstores named by a volume's id. It never touches another target or
//! backstore, never lets in unnamed hosts, and never sends data.
//!
//! Kernel truths that the parts rely on, each seen on Linux 6.12:
//!
//! - Removing a node ACL ends its sessions and returns when they, and their I/O, have ended. So does disabling a portal
//!   group, with all of its sessions. Removing a portal, the last one too, ends none.
//! - A new node ACL inherits `authentication` of its portal group, 1 unless somebody changes it; without a name and a
//!   secret in it nobody passes then. A new mapped LUN is read-only if `prod_mode_write_protect` is 1. So all that is
//!   new is closed until it is opened.
//! - A host that logged in where `generate_node_acls` was 1 has a node ACL that has no directory; `dynamic_sessions`
//!   names it. With `cache_dynamic_acls`, which goes to 1 by itself with the other and not back to 0, that outlives the
//!   session, and lets in later without being listed anywhere. Making a directory of that name takes it over, session
//!   and all.
//! - iblock opens the device for itself alone, and follows its size, its write cache and its discard by itself.
//! - The group of target ports that a LUN is put into lets hosts change the state of paths by themselves (explicit ALUA).
//! - What listens is shared by all targets that name the same portal. An address that the machine does not have is no
//!   error: hosts reach it from when the machine has it.

mod apply;
mod foreign;
mod observe;
mod plan;
mod reservations;
mod secrets;
mod state;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use orlop_api::{Portal, TargetKind, VolumeId};
use rustix::io::Errno;

pub use reservations::{Reservations, ReservationsOnDisk};
pub use state::{Acl, Backstore, Change, Group, MappedLun, Observed, Step, Target};

use super::foreign::Others;
use super::keys::HostKeys;
use super::{
    ConfigTree, Desired, Export, HostId, PortalConfig, Protocol, Result, Scope, TargetError, portal,
};
use crate::kernel::Deadline;
use crate::kernel::configfs::ConfigFs;
use crate::kernel::net;
use crate::model::NqnPrefix;

/// Where the kernel has its configuration.
pub const CONFIG_ROOT: &str = "/sys/kernel/config/target";

/// The adapter that our backstores are in. Any number would do; others count from 0.
pub const ADAPTER: &str = "iblock_28416";

/// How volumes are served.
///
/// The default portal is `0.0.0.0:3260`, all IPv4 addresses. For both families name `[::]:3260` alone, which takes IPv4
/// as well unless `net.ipv6.bindv6only` is set; beside `0.0.0.0` it is "in use" and is reported as a portal that is
/// down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LioConfig {
    /// The names that are ours, as NQNs: an IQN has `iqn` in the place of `nqn`.
    pub prefix: NqnPrefix,
    /// Where to listen.
    pub portals: Vec<PortalConfig>,
}

impl Default for LioConfig {
    fn default() -> Self {
        let portal = PortalConfig { address: Ipv4Addr::UNSPECIFIED.into(), port: 3260 };
        Self { prefix: NqnPrefix::default(), portals: vec![portal] }
    }
}

/// The target.
pub struct Lio {
    config: LioConfig,
    tree: Arc<dyn ConfigTree>,
    reservations: Arc<dyn Reservations>,
    keys: HostKeys,
    addresses: fn() -> io::Result<Vec<IpAddr>>,
}

impl Lio {
    /// Over the running kernel.
    pub fn kernel(config: LioConfig) -> Self {
        Self::over(config, Arc::new(ConfigFs::at(CONFIG_ROOT)), Arc::new(ReservationsOnDisk))
            .with_addresses(net::all_addresses)
    }

    /// Over any tree that behaves so, and what it has written of reservations.
    pub fn over(config: LioConfig, tree: Arc<dyn ConfigTree>, reservations: Arc<dyn Reservations>) -> Self {
        // Unless they are told, a machine's addresses are not known.
        let addresses = || Err(io::ErrorKind::Unsupported.into());
        Self { config, tree, reservations, keys: HostKeys::default(), addresses }
    }

    /// Which addresses the machine has, so that portals at others are told of.
    #[must_use]
    pub fn with_addresses(self, addresses: fn() -> io::Result<Vec<IpAddr>>) -> Self {
        Self { addresses, ..self }
    }

    /// What hosts must prove.
    #[must_use]
    pub fn with_keys(self, keys: HostKeys) -> Self {
        Self { keys, ..self }
    }
}

impl Protocol for Lio {
    type Observed = Observed;
    type Step = Step;

    fn observe(&self, scope: Scope, desired: &Desired, deadline: &Deadline) -> Result<Observed> {
        self.look(scope, desired, deadline)
    }

    fn plan(&self, scope: Scope, desired: &Desired, observed: &Observed) -> Vec<Step> {
        plan::plan(&self.config, scope, desired, observed)
    }

    /// Nothing: sessions are those of node ACLs, whose directories the plan sees, and those without a directory, which
    /// the kernel lists. What has neither can't log in: see [`plan`].
    fn sever(&self, _volume: VolumeId, _desired: &Desired, _observed: &Observed) -> Vec<Step> {
        Vec::new()
    }

    fn apply(&self, step: &Step, deadline: &Deadline) -> Result<()> {
        self.make(step, deadline)
    }

    fn subject(&self, step: &Step) -> Option<VolumeId> {
        Some(step.volume)
    }

    fn portal(&self, step: &Step) -> Option<String> {
        match &step.change {
            Change::Listen { portal } => Some(portal.clone()),
            _ => None,
        }
    }

    fn portal_names(&self, _export: &Export) -> Vec<String> {
        self.config.portals.iter().map(ToString::to_string).collect()
    }

    fn listens(&self) -> Vec<(String, Portal)> {
        self.config.portals.iter().map(|p| (p.to_string(), p.shown())).collect()
    }

    fn portals_without_address(&self) -> Vec<(String, TargetError)> {
        let Ok(own) = (self.addresses)() else { return Vec::new() };
        let missing = |p: &&PortalConfig| {
            let address = p.address;
            !address.is_unspecified() && !address.is_loopback() && !own.contains(&address)
        };
        let missing = self.config.portals.iter().filter(missing);
        let source = || io::Error::from_raw_os_error(Errno::ADDRNOTAVAIL.raw_os_error());
        let told = |p: &PortalConfig| {
            let portal = p.to_string();
            (portal.clone(), TargetError::Portal { portal, source: source() })
        };
        missing.map(told).collect()
    }

    /// Nothing: LIO asks the device for its size whenever a host asks, and has no way to tell hosts to ask. They rescan
    /// (`iscsiadm -m session --rescan`).
    fn announce_size(&self, _export: &Export, _deadline: &Deadline) -> Result<()> {
        Ok(())
    }

    fn prove(&self, host: &HostId, deadline: &Deadline) -> Result<()> {
        match host {
            HostId::Iqn(iqn) => self.have_proved(iqn.as_str(), deadline),
            _ => Ok(()),
        }
    }

    fn served(&self, _deadline: &Deadline) -> Result<BTreeSet<VolumeId>> {
        self.ours()
    }

    fn kind(&self) -> TargetKind {
        TargetKind::Lio
    }

    fn sessions(&self, deadline: &Deadline) -> Result<Option<usize>> {
        self.live_sessions(deadline)
    }

    fn foreign(&self, deadline: &Deadline) -> Result<Others> {
        self.others(deadline)
    }

    fn portals(&self) -> Vec<Portal> {
        portal::reachable(self.config.portals.iter())
    }
}
