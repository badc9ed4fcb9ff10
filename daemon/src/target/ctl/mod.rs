//! iSCSI and NVMe over TCP by FreeBSD's CTL: one target or controller a volume, in the one configuration file of `ctld`.
//!
//! Driven by the convergence loop of [`super`], on a target's lane. Protocols converge by themselves, but `ctld` has one
//! file: so there is one [`CtlFile`], which alone reads and writes it, under a lock, and a [`Ctl`] for each protocol,
//! which changes in it what is its own: targets `iqn.<prefix>:<volume id>`, controllers `nqn.<prefix>:<volume id>`, their
//! authentication groups `orlop-…`, and the groups of portals called `orlop`. Whatever else is in the file is carried
//! over as it is, and what the kernel has that `ctld` did not make is left alone. The file is JSON, which is UCL too:
//! so it is read back by the same rules by which it was written. What is not JSON is not ours and is not overwritten.
//!
//! Truths about `ctld` that the parts rely on:
//!
//! - SIGHUP has it apply the difference; a file that it can't read leaves all as it was. That a LUN could not be made is
//!   only logged. SIGTERM takes every port away, so it is never restarted from here.
//! - What changes in an authentication group is not to be seen in the kernel. But each reload hands every LUN its options
//!   anew, and the kernel shows them: so each file has a number, and each LUN carries it. When the LUN shows the number of
//!   the file, `ctld` has read it: if nobody else has written the file since. The time of the file carries its number, too,
//!   which an editor does not keep; and a file without it gets another number and is read again, however right it is.
//! - A change of who may log in ends no session, and a login that began before a reload is judged by the old file: its
//!   process was forked with it. So a fence waits for the logins that are under way (`timeout` bounds them), and then ends
//!   sessions.
//! - A CHAP user is not tied to a name: who has a secret of a target may call himself like any host of it. So when a host
//!   leaves, all sessions of that target are ended, and those who stay log in again.
//! - An authentication group without names lets everybody in: none is ever written.
//! - Who connects by NVMe is checked by nobody, neither by `ctld` nor by the kernel (FreeBSD 15): see [`NvmeAccess`].

mod apply;
mod conf;
mod foreign;
mod kernel;
mod observe;
mod plan;
mod state;
mod tools;
pub(crate) mod ucl;
mod xml;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use orlop_api::{Portal, TargetKind, VolumeId};
use parking_lot::Mutex;

pub use kernel::{KernelPort, Lun, Session};
pub use state::{Admission, Entry, Observed, Refusal, Seen, Step};
pub use tools::CtlTools;

use super::foreign::Others;
use super::keys::HostKeys;
use super::{Desired, Export, HostId, PortalConfig, Protocol, Result, Scope, portal};
use crate::kernel::Deadline;
use crate::kernel::exec::ExecError;
use crate::model::{Audience, NqnPrefix};

/// What can be listed, in the XML that the kernel makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum List {
    /// `ctladm devlist -x`: LUNs.
    Luns,
    /// `ctladm portlist -x`: targets and controllers, a port for each at each group of portals.
    Ports,
    /// `ctladm islist -x`: iSCSI sessions.
    IscsiSessions,
    /// `ctladm nvlist -x`: NVMe associations.
    NvmeSessions,
}

/// `ctld` and `ctladm`. The commands are the one real implementor; tests have one that behaves like them.
pub trait Ctld: Send + Sync {
    /// Whether `ctld` could use a file. Says no more: what it complains of may hold what is in the file.
    fn accepts(&self, file: &Path, deadline: &Deadline) -> std::result::Result<bool, ExecError>;
    /// Tells the `ctld` that holds this pidfile to read its configuration again. `false`: there is none.
    fn reload(&self, pidfile: &Path, deadline: &Deadline) -> std::result::Result<bool, ExecError>;
    /// Its processes that are busy with a login at this moment.
    fn logins(&self, pidfile: &Path, deadline: &Deadline) -> std::result::Result<BTreeSet<u32>, ExecError>;
    /// A list.
    fn list(&self, what: List, deadline: &Deadline) -> std::result::Result<String, ExecError>;
    /// Tells the kernel to end an iSCSI session. It may be there for a moment longer, or may be gone already.
    fn terminate(&self, session: u64, deadline: &Deadline) -> std::result::Result<(), ExecError>;
}

/// A protocol of `ctld`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// iSCSI.
    Iscsi,
    /// NVMe over TCP, from FreeBSD 15.
    Nvme,
}

/// Who may use a volume by NVMe, where `ctld` does not ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NvmeAccess {
    /// Nobody: no controller is made, and every export is `Unsupported`.
    #[default]
    Refused,
    /// Everybody who reaches a portal. The network must see to it that these are the hosts that are meant: the list of
    /// hosts in the file only hides controllers from the discovery of others. A host that leaves is cut off, and is back
    /// if it tries. A host that must prove a secret makes its volume `Unsupported`.
    ByNetwork,
}

impl NvmeAccess {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Refused, Self::ByNetwork];

    /// As it is spelled in settings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::ByNetwork => "by-network",
        }
    }
}

/// How volumes are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CtlConfig {
    /// The names that are ours.
    pub prefix: NqnPrefix,
    /// The file that `ctld` was told to read (`ctld_flags="-u -f <this>"`). Not `/etc/ctl.conf`, which is somebody's.
    pub file: PathBuf,
    /// Where `ctld` writes the number of its process.
    pub pidfile: PathBuf,
    /// Where to listen for iSCSI.
    pub iscsi: Vec<PortalConfig>,
    /// Where to listen for NVMe.
    pub nvme: Vec<PortalConfig>,
    /// Who may use volumes by NVMe.
    pub nvme_access: NvmeAccess,
}

impl Default for CtlConfig {
    fn default() -> Self {
        let portal = |port| vec![PortalConfig { address: Ipv4Addr::UNSPECIFIED.into(), port }];
        Self {
            prefix: NqnPrefix::default(),
            file: "/var/db/orlop/ctl.conf".into(),
            pidfile: "/var/run/ctld.pid".into(),
            iscsi: portal(3260),
            nvme: portal(4420),
            nvme_access: NvmeAccess::default(),
        }
    }
}

impl CtlConfig {
    fn portals(&self, kind: Kind) -> &[PortalConfig] {
        match kind {
            Kind::Iscsi => &self.iscsi,
            Kind::Nvme => &self.nvme,
        }
    }

    /// What a volume's target or controller is called.
    fn name(&self, kind: Kind, volume: VolumeId) -> String {
        match kind {
            Kind::Iscsi => self.prefix.target(volume).to_string(),
            Kind::Nvme => self.prefix.subsystem(volume).to_string(),
        }
    }

    /// The volume that a target or controller belongs to; `None` for a foreign one.
    fn volume(&self, kind: Kind, name: &str) -> Option<VolumeId> {
        match kind {
            Kind::Iscsi => self.prefix.volume_of_target(name),
            Kind::Nvme => match self.prefix.audience(name)? {
                (volume, Audience::Writers) => Some(volume),
                (_, Audience::Readers) => None,
            },
        }
    }
}

/// The file of `ctld`, and what may change it. Both protocols share one.
pub struct CtlFile {
    config: CtlConfig,
    ctld: Arc<dyn Ctld>,
    keys: HostKeys,
    /// Between two looks at what `ctld` and the kernel complete later.
    poll: Duration,
    /// How long they may take.
    patience: Duration,
    /// One change of the file at a time.
    writing: Mutex<()>,
    /// The number of the file that `ctld` was told to read when it was written, and when.
    told: Mutex<Option<(u64, Instant)>>,
    /// What was written last, by which what somebody else has changed since is told.
    written: Mutex<Option<conf::Conf>>,
}

impl CtlFile {
    /// Over the installed commands. Where there are none all that is asked of it is [`super::TargetError::Absent`].
    pub fn system(config: CtlConfig) -> Self {
        Self::over(config, Arc::new(CtlTools))
    }

    /// Over anything that behaves so.
    pub fn over(config: CtlConfig, ctld: Arc<dyn Ctld>) -> Self {
        let (poll, patience) = (Duration::from_millis(50), Duration::from_secs(15));
        let (keys, told, written) = (HostKeys::default(), Mutex::new(None), Mutex::new(None));
        Self { config, ctld, keys, poll, patience, writing: Mutex::new(()), told, written }
    }

    /// What hosts must prove.
    #[must_use]
    pub fn with_keys(self, keys: HostKeys) -> Self {
        Self { keys, ..self }
    }

    /// How long to wait between two looks at what completes later, and how long it may take in all.
    #[must_use]
    pub fn with_poll(self, poll: Duration, patience: Duration) -> Self {
        Self { poll, patience, ..self }
    }
}

/// One protocol of the file. See the module.
pub struct Ctl {
    file: Arc<CtlFile>,
    kind: Kind,
}

impl Ctl {
    /// What of a file is served by a protocol.
    pub fn of(file: Arc<CtlFile>, kind: Kind) -> Self {
        Self { file, kind }
    }
}

impl Protocol for Ctl {
    type Observed = Observed;
    type Step = Step;

    fn observe(&self, scope: Scope, desired: &Desired, deadline: &Deadline) -> Result<Observed> {
        self.look(scope, desired, deadline)
    }

    fn plan(&self, scope: Scope, desired: &Desired, observed: &Observed) -> Vec<Step> {
        plan::plan(self.kind, scope, desired, observed)
    }

    fn sever(&self, volume: VolumeId, _desired: &Desired, observed: &Observed) -> Vec<Step> {
        plan::sever(self.kind, volume, observed)
    }

    fn apply(&self, step: &Step, deadline: &Deadline) -> Result<()> {
        self.make(step, deadline)
    }

    fn subject(&self, step: &Step) -> Option<VolumeId> {
        step.volume()
    }

    /// None: `ctld` opens portals by itself, and nothing shows whether it could.
    fn portal(&self, _step: &Step) -> Option<String> {
        None
    }

    fn portal_names(&self, _export: &Export) -> Vec<String> {
        self.file.config.portals(self.kind).iter().map(ToString::to_string).collect()
    }

    fn listens(&self) -> Vec<(String, Portal)> {
        self.file.config.portals(self.kind).iter().map(|p| (p.to_string(), p.shown())).collect()
    }

    fn announce_size(&self, export: &Export, deadline: &Deadline) -> Result<()> {
        self.announce(export, deadline)
    }

    fn prove(&self, host: &HostId, deadline: &Deadline) -> Result<()> {
        self.have_proved(host, deadline)
    }

    /// Who may write a volume by NVMe is everybody there or nobody.
    fn has_readers(&self) -> bool {
        self.kind == Kind::Iscsi
    }

    fn served(&self, deadline: &Deadline) -> Result<BTreeSet<VolumeId>> {
        self.ours(deadline)
    }

    fn kind(&self) -> TargetKind {
        TargetKind::Ctl
    }

    fn foreign(&self, deadline: &Deadline) -> Result<Others> {
        self.others(deadline)
    }

    fn portals(&self) -> Vec<Portal> {
        portal::reachable(self.file.config.portals(self.kind).iter())
    }
}
