//! A portal of NVMe, and what the kernel is told of its port.

use std::fmt;

use orlop_api::{Portal, Transport};

use super::NvmetConfig;
use super::state::Port;
use crate::target::PortalConfig;

/// An address at which subsystems are served, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NvmetPortal {
    /// Where.
    pub at: PortalConfig,
    /// By what.
    pub transport: Transport,
    /// With TLS, and for nobody without.
    pub tls: bool,
    /// What hosts are told of the paths that lead there.
    pub ana: AnaState,
}

impl NvmetPortal {
    /// By TCP, without TLS, as good as any other.
    pub fn tcp(at: PortalConfig) -> Self {
        Self { at, transport: Transport::Tcp, tls: false, ana: AnaState::default() }
    }

    /// For attachments, but for its address.
    pub(super) fn shown(&self) -> Portal {
        Portal { transport: self.transport, tls: self.tls, ..Portal::default() }
    }
}

impl fmt::Display for NvmetPortal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.at.fmt(f)?;
        if self.transport != Transport::Tcp {
            write!(f, " ({})", self.transport.as_str())?;
        }
        if self.tls { write!(f, " (TLS)") } else { Ok(()) }
    }
}

/// Asymmetric namespace access: what hosts do with the paths of a portal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AnaState {
    /// Use them.
    #[default]
    Optimized,
    /// Use them while there is no better one.
    NonOptimized,
    /// Leave them alone, and come back when this changes: for work on a network.
    Inaccessible,
}

impl AnaState {
    /// All of them, the best first.
    pub const ALL: [Self; 3] = [Self::Optimized, Self::NonOptimized, Self::Inaccessible];

    /// As Linux spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Optimized => "optimized",
            Self::NonOptimized => "non-optimized",
            Self::Inaccessible => "inaccessible",
        }
    }
}

/// The attributes that can only be written while nothing is linked, in the order in which they are: the type of transport
/// takes the security back.
const FIXED: [&str; 7] = [
    "addr_trtype",
    "addr_adrfam",
    "addr_traddr",
    "addr_trsvcid",
    "addr_tsas",
    "addr_treq",
    "param_max_queue_size",
];

/// What hosts are told of the group of all namespaces. It can be written at any time.
const ANA: &str = "ana_groups/1/ana_state";

/// The longest queue of an RDMA port: the kernel itself makes a longer one as short.
const RDMA_QUEUE: u16 = 256;

/// All that is looked at.
pub(super) const ATTRIBUTES: [&str; 8] =
    [FIXED[0], FIXED[1], FIXED[2], FIXED[3], FIXED[4], FIXED[5], FIXED[6], ANA];

/// What the fixed ones should be. `None`: left as it is.
fn wanted(config: &NvmetConfig, portal: &NvmetPortal) -> [Option<String>; 7] {
    let family = if portal.at.address.is_ipv4() { "ipv4" } else { "ipv6" };
    let (security, required) = if portal.tls { ("tls1.3", "required") } else { ("none", "not specified") };
    [
        Some(portal.transport.as_str().into()),
        Some(family.into()),
        Some(portal.at.address.to_string()),
        Some(portal.at.port.to_string()),
        (portal.transport == Transport::Tcp).then(|| security.into()),
        Some(required.into()),
        config
            .queue_size
            .map(|n| if portal.transport == Transport::Rdma { n.min(RDMA_QUEUE) } else { n }.to_string()),
    ]
}

/// Whether a port is a portal's, however it is set up otherwise.
pub(super) fn is_at(portal: &NvmetPortal, port: &Port) -> bool {
    let address = &FIXED[..4];
    let values = [
        portal.transport.as_str().into(),
        if portal.at.address.is_ipv4() { "ipv4".into() } else { "ipv6".to_string() },
        portal.at.address.to_string(),
        portal.at.port.to_string(),
    ];
    address.iter().zip(values).all(|(name, value)| port.attributes.get(name) == Some(&value))
}

/// What has to be written while nothing is linked: all of them where one is wrong, because they depend on each other.
pub(super) fn misconfigured(
    config: &NvmetConfig,
    portal: &NvmetPortal,
    port: &Port,
) -> Vec<(&'static str, String)> {
    let wanted: Vec<_> =
        FIXED.into_iter().zip(wanted(config, portal)).filter_map(|(name, v)| Some((name, v?))).collect();
    // A kernel without TLS has not the attribute, and says nothing of what it can't do.
    let implied = |name: &str, value: &str| name == "addr_tsas" && value == "none";
    // Neither does one before 6.9 have a limit for queues.
    let unlimited = |name: &str| name == "param_max_queue_size" && port.attributes.contains_key(FIXED[0]);
    let is = |name: &str, value: &str| match port.attributes.get(name) {
        Some(is) => is == value,
        None => implied(name, value) || unlimited(name),
    };
    if wanted.iter().all(|(name, value)| is(name, value)) {
        return Vec::new();
    }
    wanted
        .into_iter()
        .filter(|(name, value)| !implied(name, value) || port.attributes.contains_key(name))
        .collect()
}

/// What has to be written at any time.
pub(super) fn out_of_date(portal: &NvmetPortal, port: &Port) -> Option<(&'static str, String)> {
    let wanted = portal.ana.as_str();
    // A port that was just made is optimized.
    let is = port.attributes.get(ANA).map_or(AnaState::default().as_str(), String::as_str);
    (is != wanted).then(|| (ANA, wanted.into()))
}
