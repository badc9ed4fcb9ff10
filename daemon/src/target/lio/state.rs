//! What was seen of the kernel's target, and the changes that can be made to it. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use orlop_api::{Iqn, VolumeId};

/// The kernel's configuration, as far as a scope reaches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Targets whose name is ours.
    pub targets: BTreeMap<VolumeId, Target>,
    /// Backstores in our adapter whose name is a volume's id.
    pub backstores: BTreeMap<VolumeId, Backstore>,
    /// Volumes that nobody is attached to, and whose registrations the kernel has written down.
    pub remembered: BTreeSet<VolumeId>,
    /// Devices of foreign backstores, and which. Only in the scope of all: it costs a look at every one. The kernel
    /// refuses such a device in any case.
    pub foreign_devices: BTreeMap<String, String>,
}

/// A backstore.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backstore {
    /// The device that it was pointed at.
    pub device: Option<String>,
    /// `wwn/vpd_unit_serial`.
    pub serial: String,
    /// `wwn/product_id`; `None` where the kernel has no such attribute.
    pub product: Option<String>,
    /// `enable`. Once so, for good.
    pub enabled: bool,
    /// It could free blocks that hosts give up, and does not.
    pub wasteful: bool,
    /// Attributes of the group of target ports that every LUN is in ([`super::plan::ALUA`]), as they read. Missing where the
    /// kernel has no such attribute.
    pub alua: BTreeMap<&'static str, String>,
}

/// A target with a name of ours: its portal groups by the names of their directories.
pub type Target = BTreeMap<String, Group>;

/// A portal group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    /// `enable`.
    pub enabled: bool,
    /// `attrib/*` that are ours to decide. Missing where the kernel has no such attribute.
    pub attributes: BTreeMap<&'static str, String>,
    /// `lun/*`: by directory, what its links are called and point at.
    pub luns: BTreeMap<String, BTreeMap<String, String>>,
    /// `acls/*`, by the host's name.
    pub acls: BTreeMap<String, Acl>,
    /// `np/*`.
    pub portals: BTreeSet<String>,
    /// Hosts with a session and no directory.
    pub dynamic: BTreeSet<String>,
}

/// A node ACL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Acl {
    /// The kernel can ask this host for a proof and another one for none.
    pub own_authentication: bool,
    /// It asks this host for what it should.
    pub asks: bool,
    /// By directory.
    pub luns: BTreeMap<String, MappedLun>,
}

/// A LUN as one host has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MappedLun {
    /// What its links are called and point at.
    pub links: BTreeMap<String, String>,
    /// `write_protect`.
    pub read_only: bool,
}

/// The portal group of every target.
pub const GROUP: &str = "tpgt_1";
/// The LUN of every volume.
pub const LUN: &str = "lun_0";

/// One kernel change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Whose.
    pub volume: VolumeId,
    /// The target's name.
    pub iqn: Iqn,
    /// What.
    pub change: Change,
}

/// A change to a volume's target or backstore. Those that close come first, in the order of a teardown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Disable a portal group: ends its sessions, and nobody can log in.
    Disable {
        /// Its directory.
        group: String,
    },
    /// Listen no longer. Ends no session.
    Unlisten {
        /// The portal group.
        group: String,
        /// Its directory.
        portal: String,
    },
    /// Give a directory to a node ACL that has none.
    Adopt {
        /// The portal group.
        group: String,
        /// The host.
        host: String,
    },
    /// A host no longer reaches a LUN.
    Unmap {
        /// The portal group.
        group: String,
        /// The host.
        host: String,
        /// The mapped LUN's directory.
        lun: String,
        /// The link's name.
        entry: String,
    },
    /// Remove a mapped LUN.
    RemoveMapped {
        /// The portal group.
        group: String,
        /// The host.
        host: String,
        /// The mapped LUN's directory.
        lun: String,
    },
    /// Remove a host: ends its sessions, and waits for them.
    RemoveAcl {
        /// The portal group.
        group: String,
        /// The host.
        host: String,
    },
    /// Take the backstore from a LUN: waits for all I/O.
    Unlink {
        /// The portal group.
        group: String,
        /// The LUN's directory.
        lun: String,
        /// The link's name.
        entry: String,
    },
    /// Remove a LUN.
    RemoveLun {
        /// The portal group.
        group: String,
        /// The LUN's directory.
        lun: String,
    },
    /// Remove a portal group.
    RemoveGroup {
        /// Its directory.
        group: String,
    },
    /// Remove the target.
    RemoveTarget,
    /// Forget who had registered and reserved: nobody is attached to the volume any more.
    Forget,
    /// Remove the backstore.
    RemoveBackstore,
    /// Not possible: says why.
    Refuse {
        /// What is in the way.
        object: String,
        /// Why.
        detail: String,
    },
    /// Create the backstore.
    MakeBackstore,
    /// Write what initiators know it by.
    Identify {
        /// The attribute.
        attribute: &'static str,
        /// The value.
        value: String,
    },
    /// Point the backstore at its device.
    Point {
        /// The device.
        device: String,
    },
    /// Open the device.
    EnableBackstore,
    /// Free blocks that hosts give up, if the device can.
    Discard,
    /// Write an attribute of the group of target ports.
    Alua {
        /// Its name.
        attribute: &'static str,
        /// The value.
        value: &'static str,
    },
    /// Give back the registrations of these hosts that were to outlive a restart.
    Restore {
        /// Who may use the volume.
        hosts: BTreeSet<String>,
    },
    /// Create the target.
    MakeTarget,
    /// Create the portal group.
    MakeGroup,
    /// Write an attribute of the portal group.
    Set {
        /// Its name.
        attribute: &'static str,
        /// The value.
        value: &'static str,
    },
    /// Make the backstore a LUN.
    MakeLun,
    /// Create a host's node ACL, which lets nobody in yet.
    MakeAcl {
        /// The host.
        host: String,
    },
    /// A host reaches the LUN, to read.
    Map {
        /// The host.
        host: String,
    },
    /// A host can write, or no longer.
    Protect {
        /// The host.
        host: String,
        /// It can't.
        read_only: bool,
    },
    /// Have a host asked for what it should prove; if that is nothing, it is let in by this.
    Authenticate {
        /// The host.
        host: String,
    },
    /// Listen.
    Listen {
        /// The portal.
        portal: String,
    },
    /// Enable the portal group: hosts can log in.
    Enable,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { volume, iqn, change } = self;
        match change {
            Change::Disable { group } => write!(f, "disable {group} of {iqn}"),
            Change::Unlisten { portal, .. } => write!(f, "stop {iqn} listening at {portal}"),
            Change::Adopt { host, .. } => write!(f, "take over the unnamed access of {host} to {iqn}"),
            Change::Unmap { host, lun, .. } => write!(f, "unmap {lun} of {iqn} from {host}"),
            Change::RemoveMapped { host, lun, .. } => write!(f, "remove {lun} of {host} at {iqn}"),
            Change::RemoveAcl { host, .. } => write!(f, "no longer allow {host} at {iqn}"),
            Change::Unlink { lun, .. } => write!(f, "take the backstore from {lun} of {iqn}"),
            Change::RemoveLun { lun, .. } => write!(f, "remove {lun} of {iqn}"),
            Change::RemoveGroup { group } => write!(f, "remove {group} of {iqn}"),
            Change::RemoveTarget => write!(f, "remove {iqn}"),
            Change::Forget => write!(f, "forget reservations of {volume}"),
            Change::RemoveBackstore => write!(f, "remove backstore {volume}"),
            Change::Refuse { object, .. } => write!(f, "refuse {iqn} because of {object}"),
            Change::MakeBackstore => write!(f, "create backstore {volume}"),
            Change::Identify { attribute, value } => {
                write!(f, "set {attribute} of backstore {volume} to {value}")
            }
            Change::Point { device } => write!(f, "point backstore {volume} at {device}"),
            Change::EnableBackstore => write!(f, "enable backstore {volume}"),
            Change::Discard => write!(f, "free blocks that are given up in backstore {volume}"),
            Change::Alua { attribute, value } => {
                write!(f, "set {attribute} of backstore {volume} to {value}")
            }
            Change::Restore { .. } => write!(f, "give back reservations of {volume}"),
            Change::MakeTarget => write!(f, "create {iqn}"),
            Change::MakeGroup => write!(f, "create {GROUP} of {iqn}"),
            Change::Set { attribute, value } => write!(f, "set {attribute} of {iqn} to {value}"),
            Change::MakeLun => write!(f, "create {LUN} of {iqn}"),
            Change::MakeAcl { host } => write!(f, "create host {host} at {iqn}"),
            Change::Map { host } => write!(f, "map {LUN} of {iqn} to {host}"),
            Change::Protect { host, read_only: true } => write!(f, "let {host} at {iqn} no longer write"),
            Change::Protect { host, read_only: false } => write!(f, "let {host} at {iqn} write"),
            Change::Authenticate { host } => {
                write!(f, "have {host} authenticated as it should be at {iqn}")
            }
            Change::Listen { portal } => write!(f, "have {iqn} listen at {portal}"),
            Change::Enable => write!(f, "enable {iqn}"),
        }
    }
}
