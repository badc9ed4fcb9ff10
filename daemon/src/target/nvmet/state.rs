//! What was seen of the kernel's target, and the changes that can be made to it. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;

use orlop_api::{Nqn, VolumeId};

use crate::model::Audience;

/// The kernel's configuration, as far as a scope reaches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Subsystems whose name is ours.
    pub subsystems: BTreeMap<(VolumeId, Audience), Subsystem>,
    /// The devices of those that may only read.
    pub read_only: BTreeMap<VolumeId, ReadOnlyDevice>,
    /// Ports in the range that is ours, by id.
    pub ports: BTreeMap<u16, Port>,
    /// Host directories that exist, whoever made them. In the scope of one volume only those that it
    /// has or wants.
    pub hosts: BTreeSet<String>,
    /// Those of them of which the kernel does not ask the secret that it should.
    pub unproven: BTreeSet<String>,
    /// Volumes and hosts that should come to them by TLS, and for which the kernel does not have the keys that it should.
    pub keyless: BTreeSet<(VolumeId, String)>,
    /// The identities of keys that should not be there, by the volume that they are for.
    pub stale_keys: BTreeMap<VolumeId, BTreeSet<String>>,
    /// The kernel lists controllers.
    pub lists_controllers: bool,
    /// Devices that foreign subsystems have configured, and by which. Only in the scope of all: it
    /// costs a look at every foreign subsystem.
    pub foreign_devices: BTreeMap<String, String>,
}

/// A subsystem with a name of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subsystem {
    /// `attr_allow_any_host`. Never so by our doing.
    pub any_host: bool,
    /// `attr_serial`.
    pub serial: String,
    /// `attr_model`; `None` where the kernel has no such attribute.
    pub model: Option<String>,
    /// `attr_qid_max`; `None` where the kernel has no such attribute.
    pub qid_max: Option<u16>,
    /// By the name of their directory.
    pub namespaces: BTreeMap<String, Namespace>,
    /// `allowed_hosts`: the link's name, and the host that it points at.
    pub hosts: BTreeMap<String, String>,
    /// Links to it: the port's directory and the link's name. Foreign ports included.
    pub links: BTreeSet<(String, String)>,
    /// The hosts of all live controllers, one entry for each controller. `None` where the kernel does
    /// not tell (CONFIG_NVME_TARGET_DEBUGFS is not set, or debugfs is not mounted).
    pub controllers: Option<Vec<String>>,
}

impl Subsystem {
    /// The hosts that are let in.
    pub fn allowed(&self) -> BTreeSet<&str> {
        self.hosts.values().map(String::as_str).collect()
    }
}

/// A device that can only be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadOnlyDevice {
    /// As a namespace has it.
    pub device: String,
    /// It is above the device that is wanted.
    pub is_right: bool,
}

/// A namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespace {
    /// `device_path`.
    pub device: String,
    /// `device_uuid`.
    pub uuid: String,
    /// `device_nguid`.
    pub nguid: String,
    /// `enable`.
    pub enabled: bool,
}

/// A port in our range.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Port {
    /// Its attributes, by name. Missing where the kernel has no such attribute.
    pub attributes: BTreeMap<&'static str, String>,
    /// What discovery there refers to under names of ours, and whether it does. Not in the scope of one volume.
    pub referrals: BTreeMap<String, bool>,
    /// Whether anything that is not ours is linked, or referred to. Only in the scope of all.
    pub foreign_links: bool,
}

/// The namespace id of every volume.
pub const NSID: &str = "1";

/// One kernel change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Something about one volume's subsystem.
    Volume {
        /// Whose.
        volume: VolumeId,
        /// The subsystem's name.
        nqn: Nqn,
        /// What.
        change: Change,
    },
    /// Something about a port.
    Port {
        /// The port's id.
        port: u16,
        /// The portal that it serves, in words.
        portal: String,
        /// What.
        change: PortChange,
    },
}

/// A change to a volume's subsystem. Those that close come first, in the order of a teardown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// `attr_allow_any_host=0`.
    Close,
    /// Remove the link from a port: no new connections there, and its controllers are told to go.
    Unlink {
        /// The port's directory.
        port: String,
        /// The link's name.
        entry: String,
    },
    /// Remove a namespace: waits for all I/O in flight.
    RemoveNamespace {
        /// Its directory.
        nsid: String,
    },
    /// Remove a host from those allowed. Leaves its controllers alone.
    Disallow {
        /// The link's name.
        entry: String,
    },
    /// Make all controllers go and wait until those of other hosts than these have gone.
    DropControllers {
        /// Hosts that may come back, and may be back already.
        keep: BTreeSet<String>,
        /// The value of `attr_qid_max` that does it.
        qid_max: u16,
    },
    /// Take a key away by which a host could begin TLS.
    RemoveKey {
        /// Its identity.
        identity: String,
    },
    /// Remove a host's directory if nobody uses it.
    RemoveHost {
        /// Its NQN.
        host: String,
    },
    /// Remove the subsystem.
    RemoveSubsystem,
    /// Not possible: there is no portal for it.
    NoPortal {
        /// Such one is missing.
        tls: bool,
    },
    /// Not possible: says why.
    Refuse {
        /// What is in the way.
        object: String,
        /// Why.
        detail: String,
    },
    /// Remove the device of those that may only read.
    RemoveReadOnly,
    /// Make the device of those that may only read.
    MakeReadOnly {
        /// Above this one.
        on: String,
    },
    /// Create the subsystem.
    MakeSubsystem,
    /// Write an attribute of the subsystem.
    Set {
        /// Its name.
        attribute: &'static str,
        /// The value.
        value: String,
    },
    /// Create the namespace.
    MakeNamespace,
    /// Write an attribute of the namespace.
    SetNamespace {
        /// Its name.
        attribute: &'static str,
        /// The value.
        value: String,
    },
    /// Have the namespace be of the device of those that may only read.
    SetReadOnly,
    /// Enable the namespace.
    Enable,
    /// Create a host's directory.
    MakeHost {
        /// Its NQN.
        host: String,
    },
    /// Have a host that is let in prove what it should when it connects again.
    Authenticate {
        /// Its NQN.
        host: String,
    },
    /// Give the kernel the keys by which a host may begin TLS.
    PutKeys {
        /// Its NQN.
        host: String,
    },
    /// Let a host in, which must prove what it should.
    Allow {
        /// Its NQN.
        host: String,
    },
    /// Serve the subsystem at a port.
    Link {
        /// The port's id.
        port: u16,
        /// The portal that it serves, in words.
        portal: String,
    },
}

/// A change to a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortChange {
    /// Remove it.
    Remove,
    /// Create it.
    Make,
    /// Write one of its attributes.
    Set {
        /// Its name.
        attribute: &'static str,
        /// The value.
        value: String,
    },
    /// Have discovery refer hosts to another one.
    Refer {
        /// The referral's name.
        name: String,
        /// Where that is.
        to: SocketAddr,
    },
    /// Take a referral back.
    Unrefer {
        /// Its name.
        name: String,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume { nqn, change, .. } => match change {
                Change::Close => write!(f, "close {nqn} to unnamed hosts"),
                Change::Unlink { port, .. } => write!(f, "unlink {nqn} from port {port}"),
                Change::RemoveNamespace { nsid } => write!(f, "remove namespace {nsid} of {nqn}"),
                Change::Disallow { entry } => write!(f, "no longer allow {entry} at {nqn}"),
                Change::DropControllers { .. } => write!(f, "drop the controllers of {nqn}"),
                Change::RemoveKey { identity } => write!(f, "remove the TLS key {identity}"),
                Change::RemoveHost { host } => write!(f, "remove host {host}"),
                Change::RemoveSubsystem => write!(f, "remove {nqn}"),
                Change::NoPortal { .. } => write!(f, "find a portal for {nqn}"),
                Change::Refuse { object, .. } => write!(f, "refuse {nqn} because of {object}"),
                Change::RemoveReadOnly => write!(f, "remove the read-only device of {nqn}"),
                Change::MakeReadOnly { on } => write!(f, "make a read-only device of {on} for {nqn}"),
                Change::SetReadOnly => {
                    write!(f, "set device_path of namespace {NSID} of {nqn} to its read-only device")
                }
                Change::MakeSubsystem => write!(f, "create {nqn}"),
                Change::Set { attribute, value } => write!(f, "set {attribute} of {nqn} to {value}"),
                Change::MakeNamespace => write!(f, "create namespace {NSID} of {nqn}"),
                Change::SetNamespace { attribute, value } => {
                    write!(f, "set {attribute} of namespace {NSID} of {nqn} to {value}")
                }
                Change::Enable => write!(f, "enable namespace {NSID} of {nqn}"),
                Change::MakeHost { host } => write!(f, "create host {host}"),
                Change::Authenticate { host } => write!(f, "have {host} authenticated as it should be"),
                Change::PutKeys { host } => write!(f, "add the TLS keys of {host} for {nqn}"),
                Change::Allow { host } => write!(f, "allow {host} at {nqn}"),
                Change::Link { port, .. } => write!(f, "link {nqn} to port {port}"),
            },
            Self::Port { port, portal, change } => match change {
                PortChange::Remove => write!(f, "remove port {port}"),
                PortChange::Make => write!(f, "create port {port} for {portal}"),
                PortChange::Set { attribute, value } => {
                    write!(f, "set {attribute} of port {port} to {value}")
                }
                PortChange::Refer { to, .. } => write!(f, "refer from port {port} to {to}"),
                PortChange::Unrefer { name } => write!(f, "remove the referral {name} of port {port}"),
            },
        }
    }
}
