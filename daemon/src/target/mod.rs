//! Targets: the kernel side of a protocol. Derived state only: what the kernel has is observed,
//! compared with what should be, and changed step by step until there is nothing left to change.
//!
//! Called by the engine, from the target's own lane: one thread, so one writer (R4). A target never
//! touches what does not carry a name of ours, and never passes through a state that lets in a host
//! that is in neither the old nor the new desired state.

mod converge;
pub mod ctl;
mod desired;
pub mod foreign;
pub mod keys;
pub mod lio;
pub mod nfs;
pub mod nvmet;
mod portal;
pub mod sim;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use foreign::Others;
use orlop_api::{
    ByteSize, ErrorKind, Iqn, KeytabFile, Network, Nqn, Portal, Security, Squash, TargetKind, VolumeId,
};
use rustix::io::Errno;

use crate::kernel::{Deadline, Overrun};
use crate::model::{Audience, Identity};

pub use desired::Desired;
pub use portal::PortalConfig;
pub use tree::ConfigTree;

/// One volume as it should be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// What initiators know it by.
    pub identity: Identity,
    /// The opened backing: a block device, or the directory where a file system is mounted.
    pub backing: PathBuf,
    /// Its size; what a grow announces.
    pub size: ByteSize,
    /// The hosts that are let in, and what they may do. Never empty: a volume that nobody attached is not exported.
    pub hosts: BTreeMap<HostId, Rights>,
}

impl Export {
    /// Its hosts by their NQNs, with what they may do.
    pub fn nqns(&self) -> impl Iterator<Item = (&Nqn, Rights)> {
        self.hosts
            .iter()
            .filter_map(|(h, rights)| if let HostId::Nqn(nqn) = h { Some((nqn, *rights)) } else { None })
    }

    /// Those of them that belong to an audience.
    pub fn audience(&self, of: Audience) -> impl Iterator<Item = &Nqn> {
        self.nqns().filter(move |(_, rights)| Audience::of(rights.read_only) == of).map(|(nqn, _)| nqn)
    }

    /// Whether it is served with TLS alone: one of its hosts must come so, and at a portal without, whoever knows that
    /// host's name would be let in as it.
    pub fn tls(&self) -> bool {
        self.hosts.values().any(|rights| rights.tls)
    }
}

/// A host as a protocol knows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostId {
    /// NVMe.
    Nqn(Nqn),
    /// iSCSI.
    Iqn(Iqn),
    /// NFS: where it, or any of many, calls from.
    Network(Network),
}

impl HostId {
    /// The protocol that knows it so.
    pub fn protocol(&self) -> orlop_api::Protocol {
        match self {
            Self::Nqn(_) => orlop_api::Protocol::Nvme,
            Self::Iqn(_) => orlop_api::Protocol::Iscsi,
            Self::Network(_) => orlop_api::Protocol::Nfs,
        }
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nqn(nqn) => nqn.fmt(f),
            Self::Iqn(iqn) => iqn.fmt(f),
            Self::Network(network) => network.fmt(f),
        }
    }
}

/// What a host may do with a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Rights {
    /// It can't write.
    pub read_only: bool,
    /// NFS: whose names its users go by.
    pub squash: Squash,
    /// NFS: by what they must prove who they are.
    pub security: Security,
    /// NVMe: what it says is encrypted, with a key that it has.
    pub tls: bool,
}

/// How much of the kernel's configuration a convergence looks at and may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// One volume. Its cost does not depend on how many others there are.
    Volume(VolumeId),
    /// One volume, and besides: ends every access that began before the call by a host that is not
    /// desired, accesses that the kernel does not show included (somebody else may have removed a
    /// host's link and left its controllers). For a detach, and to settle the intent of one after a
    /// crash. Where the kernel does not list controllers this interrupts the hosts that stay for as
    /// long as they take to reconnect (10 s by default), so it is not for a host that was cut off before.
    Fence(VolumeId),
    /// Those that are desired, with the portals. What else carries our names is left as it is: for a start at which
    /// not all is known that should be served.
    Desired,
    /// Everything that carries our names, portals included.
    All,
}

impl Scope {
    /// The one volume that it is about.
    pub fn volume(self) -> Option<VolumeId> {
        match self {
            Self::Volume(v) | Self::Fence(v) => Some(v),
            Self::Desired | Self::All => None,
        }
    }
}

/// What a convergence did, and what it could not do.
#[derive(Debug, Default)]
pub struct Report {
    /// The steps that were applied, in order, in words. Empty: the kernel was as it should be.
    pub steps: Vec<String>,
    /// The volumes that are not as they should be. The others are. Always empty in the scope of one
    /// volume: there it is the call's error.
    pub failed: BTreeMap<VolumeId, TargetError>,
    /// Portals that could not be opened, by the names that [`Protocol::portal_names`] has of them, while others could: hosts
    /// have fewer paths than they should.
    pub portals_down: BTreeMap<String, TargetError>,
}

impl Report {
    /// Whether a volume is as it should be.
    pub fn result_for(&self, volume: VolumeId) -> std::result::Result<(), &TargetError> {
        self.failed.get(&volume).map_or(Ok(()), Err)
    }

    /// Whether all is as it should be.
    pub fn is_complete(&self) -> bool {
        self.failed.is_empty() && self.portals_down.is_empty()
    }
}

/// Why the kernel is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The kernel refused a change.
    #[error("{step}: {path}")]
    Kernel {
        /// The step, in words.
        step: String,
        /// The configfs path.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// All steps were applied and the kernel still differs: what is left to do.
    #[error("the kernel did not settle; still to do: {0}")]
    Unsettled(String),
    /// A name of ours is held by something that is not ours.
    #[error("{object} is in the way: {detail}")]
    Foreign {
        /// What.
        object: String,
        /// Why it can't be ours.
        detail: String,
    },
    /// A backing can't be served by this protocol, or not as it is.
    #[error("{object} can't be served: {detail}")]
    Unfit {
        /// What.
        object: String,
        /// Why.
        detail: String,
    },
    /// No portal is configured at which it could be served.
    #[error("{object} needs a portal {}, and none is configured", if *.tls { "with TLS" } else { "without TLS" })]
    NoPortal {
        /// What.
        object: String,
        /// Which kind is missing.
        tls: bool,
    },
    /// The kernel lacks what is needed.
    #[error("the kernel lacks {0}")]
    Unsupported(String),
    /// Something is missing without which Kerberos can't tell who a host is.
    #[error("Kerberos can't be had: {0}")]
    NoKerberos(String),
    /// The kernel has no such target at all, so it serves nothing by it.
    #[error("the kernel lacks {0}")]
    Absent(String),
    /// A portal could not be opened: an address that the machine does not have, a port in use.
    #[error("portal {portal}")]
    Portal {
        /// Which.
        portal: String,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// It took too long and stopped between two steps.
    #[error("{0} took too long")]
    Deadline(String, #[source] Overrun),
}

impl TargetError {
    /// The kind that a caller hears.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Kernel { .. } | Self::Unsettled(_) => ErrorKind::Internal,
            Self::Foreign { .. } => ErrorKind::Conflict,
            Self::Unfit { .. } => ErrorKind::Precondition,
            Self::Unsupported(_) | Self::NoKerberos(_) | Self::Absent(_) | Self::NoPortal { .. } => {
                ErrorKind::Unsupported
            }
            // There is no such transport, or no device for it.
            Self::Portal { source, .. }
                if tree::is(source, Errno::INVAL) || tree::is(source, Errno::NODEV) =>
            {
                ErrorKind::Unsupported
            }
            Self::Portal { .. } => ErrorKind::Unavailable,
            Self::Deadline(..) => ErrorKind::Deadline,
        }
    }
}

/// Result of a target operation.
pub type Result<T> = std::result::Result<T, TargetError>;

/// A protocol, in its three parts.
pub trait Protocol: Send + Sync {
    /// What the kernel has, within a scope.
    type Observed;
    /// One kernel change. Its Display goes into reports and logs.
    type Step: fmt::Display;

    /// Reads the kernel. `desired` tells what else to look for in the scope of one volume. The loop
    /// resolves [`Scope::Fence`]: neither this nor `plan` is called with it.
    fn observe(&self, scope: Scope, desired: &Desired, deadline: &Deadline) -> Result<Self::Observed>;

    /// Pure. What to change, in order: first what closes (unlink, disable, delete), then what builds
    /// (create, identity, enable, allow, link). Empty when nothing is to change.
    fn plan(&self, scope: Scope, desired: &Desired, observed: &Self::Observed) -> Vec<Self::Step>;

    /// Pure. What ends accesses to a volume that `observed` can't show; empty where it shows them all.
    /// A plan follows.
    fn sever(&self, volume: VolumeId, desired: &Desired, observed: &Self::Observed) -> Vec<Self::Step>;

    /// Makes one change.
    fn apply(&self, step: &Self::Step, deadline: &Deadline) -> Result<()>;

    /// The volume that a step is about. When one of its steps fails, its later ones are left out and
    /// other volumes go on.
    fn subject(&self, step: &Self::Step) -> Option<VolumeId>;

    /// The portal that a step needs or sets up, as [`Protocol::portal_names`] has it. When it can't be
    /// opened, later steps for it are left out and those for other portals go on.
    fn portal(&self, step: &Self::Step) -> Option<String>;

    /// All portals at which a volume should be served. When none of them can be opened, it can't be.
    fn portal_names(&self, export: &Export) -> Vec<String>;

    /// Where it should listen, as it is configured, by those names.
    fn listens(&self) -> Vec<(String, Portal)>;

    /// Portals that the kernel took though nobody can reach them: told of, and no reason not to serve a volume.
    fn portals_without_address(&self) -> Vec<(String, TargetError)> {
        Vec::new()
    }

    /// Tells connected hosts that a volume has grown.
    fn announce_size(&self, export: &Export, deadline: &Deadline) -> Result<()>;

    /// Has a host that may be let in already prove what it should from its next connection on. Where that can't be had,
    /// it is let in nowhere any more, which is an error.
    fn prove(&self, host: &HostId, deadline: &Deadline) -> Result<()>;

    /// Whether hosts can be let in that may only read.
    fn has_readers(&self) -> bool {
        true
    }

    /// Whether hosts can be made to prove by Kerberos who they are; the error says what is missing.
    fn can_kerberos(&self, _deadline: &Deadline) -> Result<()> {
        Err(TargetError::NoKerberos("it is NFS's".into()))
    }

    /// Keeps the keys by which Kerberos knows the server, or forgets them.
    fn set_keytab(&self, _keytab: Option<&KeytabFile>, deadline: &Deadline) -> Result<()> {
        self.can_kerberos(deadline)
    }

    /// The volumes that the kernel has something of, served or half built.
    fn served(&self, deadline: &Deadline) -> Result<BTreeSet<VolumeId>>;

    /// Which of the kernel's targets it is.
    fn kind(&self) -> TargetKind;

    /// How many connections of hosts there are to what is ours, in the protocol's own count: controllers, sessions,
    /// clients. `None`: the kernel does not tell.
    fn sessions(&self, _deadline: &Deadline) -> Result<Option<usize>> {
        Ok(None)
    }

    /// What there is in it of others. Changes nothing.
    fn foreign(&self, deadline: &Deadline) -> Result<Others>;

    /// Where hosts can reach what is served, wildcard addresses resolved to the machine's own.
    fn portals(&self) -> Vec<Portal>;
}

/// A protocol as the engine sees it.
pub trait Target: Send + Sync {
    /// Observes, plans, applies, and observes again until the plan is empty. Afterwards the kernel is
    /// as desired within the scope, verified by reading it, but for what the report names.
    ///
    /// A host that is not desired has no way in and, if its access was there to be seen when this
    /// began, no controller left and no I/O in flight. That holds across crashes of ours: no step
    /// removes the last trace of an access before the access itself.
    ///
    /// In the scope of one volume, that it is not as desired is an error. In a larger scope it is an entry
    /// in the report, and only failing to read the kernel or running out of time is an error. A portal that can't be
    /// opened fails a volume only if there is no other.
    fn converge(&self, scope: Scope, desired: &Desired, deadline: &Deadline) -> Result<Report>;

    /// The volumes of which all that carries our names is not as desired. Changes nothing, and may be called beside
    /// everything else: what is being changed meanwhile may be among them.
    fn drifted(&self, desired: &Desired, deadline: &Deadline) -> Result<BTreeSet<VolumeId>>;

    /// Tells connected hosts that a volume has grown. The backing has grown already.
    fn announce_size(&self, export: &Export, deadline: &Deadline) -> Result<()>;

    /// Has a host that may be let in already prove what it should from its next connection on. Where that can't be had,
    /// it is let in nowhere any more, which is an error.
    fn prove(&self, host: &HostId, deadline: &Deadline) -> Result<()>;

    /// Whether hosts can be let in that may only read.
    fn has_readers(&self) -> bool {
        true
    }

    /// Whether hosts can be made to prove by Kerberos who they are; the error says what is missing.
    fn can_kerberos(&self, deadline: &Deadline) -> Result<()>;

    /// Keeps the keys by which Kerberos knows the server, in place of those before, or forgets them. They are there after
    /// any reboot.
    fn set_keytab(&self, keytab: Option<&KeytabFile>, deadline: &Deadline) -> Result<()>;

    /// The volumes that the kernel has something of, under our names.
    fn served(&self, deadline: &Deadline) -> Result<BTreeSet<VolumeId>>;

    /// Which of the kernel's targets it is.
    fn kind(&self) -> TargetKind;

    /// How many connections of hosts there are, for metrics. `None`: the kernel does not tell. Changes nothing, and may be
    /// called beside everything else.
    fn sessions(&self, _deadline: &Deadline) -> Result<Option<usize>> {
        Ok(None)
    }

    /// What there is in it of others. Changes nothing.
    fn foreign(&self, deadline: &Deadline) -> Result<Others>;

    /// Where it should listen, as it is configured, by the names of portals in reports.
    fn listens(&self) -> Vec<(String, Portal)>;

    /// Where hosts can reach what is served.
    fn portals(&self) -> Vec<Portal>;
}
