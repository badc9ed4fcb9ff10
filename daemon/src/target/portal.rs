//! Where a target listens, and where hosts find it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use orlop_api::{Portal, VolumeId};

use super::{Desired, Export};
use crate::kernel::net;

/// An address to listen at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortalConfig {
    /// The address; unspecified for all of them.
    pub address: IpAddr,
    /// TCP port.
    pub port: u16,
}

impl PortalConfig {
    /// As it is configured, by TCP.
    pub(super) fn shown(&self) -> Portal {
        Portal::tcp(self.address.to_string(), self.port)
    }
}

impl fmt::Display for PortalConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.address, self.port).fmt(f)
    }
}

/// Where hosts can reach these, wildcard addresses resolved to the machine's own.
pub(super) fn reachable<'a>(portals: impl Iterator<Item = &'a PortalConfig>) -> Vec<Portal> {
    resolved(portals.map(|p| (p, Portal::default())))
}

/// The same of such that are not all alike: each is as the one that is given with it, but for address and port.
pub(super) fn resolved<'a>(portals: impl Iterator<Item = (&'a PortalConfig, Portal)>) -> Vec<Portal> {
    let mut found = Vec::new();
    let own = net::own_addresses().unwrap_or_default();
    for (config, like) in portals {
        let mut push = |a: &IpAddr| {
            let portal = Portal { address: a.to_string(), port: config.port, ..like.clone() };
            if !found.contains(&portal) {
                found.push(portal);
            }
        };
        if !config.address.is_unspecified() {
            push(&config.address);
            continue;
        }
        own.iter().filter(|a| a.is_ipv4() == config.address.is_ipv4()).for_each(&mut push);
    }
    found
}

/// The device of an export, as the kernel is told.
pub(super) fn device(export: &Export) -> String {
    export.backing.to_string_lossy().into_owned()
}

/// Devices that more than one volume is to be made of.
pub(super) fn shared_devices(volumes: &BTreeSet<VolumeId>, desired: &Desired) -> BTreeSet<String> {
    let mut users: BTreeMap<String, usize> = BTreeMap::new();
    for export in volumes.iter().filter_map(|v| desired.get(v)) {
        *users.entry(device(export)).or_default() += 1;
    }
    users.into_iter().filter(|(_, n)| *n > 1).map(|(d, _)| d).collect()
}
