//! Reading the file and the kernel.

use std::collections::BTreeSet;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;

use orlop_api::VolumeId;

use super::conf::{self, Conf, Draft};
use super::kernel::{Kernel, Lun, Session, sessions};
use super::state::{Entry, Observed, Seen};
use super::{Ctl, CtlFile, Kind, List};
use crate::kernel::Deadline;
use crate::kernel::exec::ExecError;
use crate::kernel::fs::Dir;
use crate::target::{Desired, Export, Result, Scope, TargetError};

/// The most that the file may have: 100,000 volumes with some hosts each.
const MAX_FILE: u64 = 256 << 20;

/// The file as it was found.
pub(super) enum Found {
    /// It is ours, or there is none yet.
    Ours(Conf, State),
    /// Somebody else's, and why.
    Foreign(String),
}

/// What the file system says of the file.
#[derive(Clone, Copy)]
pub(super) struct State {
    /// Only its owner may look into it.
    private: bool,
    /// It is as it was written here. If not, it may be right, and yet `ctld` may have read something else under its number.
    pub(super) untouched: bool,
}

impl State {
    fn of(conf: &Conf, file: &Metadata) -> Self {
        Self { private: file.mode() & 0o077 == 0, untouched: file.mtime_nsec() == i64::from(conf.mark()) }
    }
}

/// What went wrong with a command, in a step.
pub(super) fn failed(step: &str, error: ExecError) -> TargetError {
    match error {
        ExecError::Missing(name) => TargetError::Absent(format!("CTL: {name} is not installed")),
        ExecError::Overrun { source, .. } => TargetError::Deadline(step.into(), source),
        error => TargetError::Kernel {
            step: step.into(),
            path: "/dev/cam/ctl".into(),
            source: io::Error::other(error),
        },
    }
}

fn unread(detail: String) -> TargetError {
    TargetError::Kernel {
        step: "read".into(),
        path: "/dev/cam/ctl".into(),
        source: io::Error::new(io::ErrorKind::InvalidData, detail),
    }
}

impl CtlFile {
    /// The directory of the file, and its name there.
    pub(super) fn place(&self) -> io::Result<(Dir, String)> {
        let path = &self.config.file;
        let name = path.file_name().and_then(|n| n.to_str()).ok_or(io::ErrorKind::InvalidInput)?;
        let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        Ok((Dir::open(parent)?, name.to_string()))
    }

    pub(super) fn trouble(&self, step: &str) -> impl Fn(io::Error) -> TargetError {
        let (step, path) = (step.to_string(), self.config.file.clone());
        move |source| TargetError::Kernel { step: step.clone(), path: path.clone(), source }
    }

    /// Reads the file.
    pub(super) fn read(&self) -> Result<Found> {
        let read = || -> io::Result<Option<(Vec<u8>, Metadata)>> {
            let (dir, name) = match self.place() {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                place => place?,
            };
            dir.read_as_is(&name, MAX_FILE)
        };
        match read() {
            Ok(None) => Ok(Found::Ours(Conf::default(), State { private: true, untouched: true })),
            Ok(Some((bytes, file))) => match Conf::parse(&bytes) {
                Ok(conf) => {
                    let state = State::of(&conf, &file);
                    Ok(Found::Ours(conf, state))
                }
                Err(why) => Ok(Found::Foreign(why)),
            },
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Ok(Found::Foreign(e.to_string())),
            Err(e) => Err(self.trouble("read")(e)),
        }
    }

    /// Reads what the kernel has.
    pub(super) fn kernel(&self, deadline: &Deadline) -> Result<Kernel> {
        let list = |what| self.ctld.list(what, deadline).map_err(|e| failed("read", e));
        Kernel::read(&list(List::Luns)?, &list(List::Ports)?).map_err(unread)
    }
}

impl Ctl {
    /// Who is connected. Where the kernel has no port of a protocol its part of CTL may not be there at all.
    pub(super) fn sessions(&self, kernel: &Kernel, deadline: &Deadline) -> Result<Vec<Session>> {
        let what = match self.kind {
            Kind::Iscsi => List::IscsiSessions,
            Kind::Nvme => List::NvmeSessions,
        };
        let any = kernel.ports.keys().any(|n| self.file.config.volume(self.kind, n).is_some());
        match self.file.ctld.list(what, deadline) {
            Ok(text) => sessions(self.kind, &text).map_err(unread),
            Err(ExecError::Failed { .. }) if !any => Ok(Vec::new()),
            Err(e) => Err(failed("read", e)),
        }
    }

    pub(super) fn look(&self, scope: Scope, desired: &Desired, deadline: &Deadline) -> Result<Observed> {
        let config = &self.file.config;
        let kernel = self.file.kernel(deadline)?;
        let connected = self.sessions(&kernel, deadline)?;
        let mut seen = Observed { frame_right: true, ..Observed::default() };
        let conf = match self.file.read()? {
            Found::Foreign(why) => {
                seen.foreign_file = Some(why);
                Conf::default()
            }
            Found::Ours(conf, state) => {
                let any = [Kind::Iscsi, Kind::Nvme].iter().any(|k| !conf.volumes(config, *k).is_empty());
                seen.frame_right = !any || state.private && state.untouched && conf.frame_right(config);
                conf
            }
        };
        let volumes: BTreeSet<VolumeId> = match scope.volume() {
            Some(only) => [only].into(),
            None => {
                let mut all: BTreeSet<VolumeId> = desired.keys().copied().collect();
                if scope != Scope::Desired {
                    all.extend(conf.volumes(config, self.kind));
                    all.extend(self.in_kernel(&kernel));
                }
                all
            }
        };
        for volume in volumes {
            let export = desired.get(&volume);
            seen.volumes.insert(volume, self.seen(&conf, &kernel, &connected, volume, export));
        }
        seen.foreign_devices = conf.foreign_devices(config);
        for (name, lun) in &kernel.luns {
            let target = name.split(',').next().unwrap_or_default();
            let ours = [Kind::Iscsi, Kind::Nvme].iter().any(|k| config.volume(*k, target).is_some());
            if !ours {
                seen.foreign_devices.insert(lun.path.clone(), name.clone());
            }
        }
        Ok(seen)
    }

    /// The volumes of this protocol that the kernel has something of.
    fn in_kernel(&self, kernel: &Kernel) -> BTreeSet<VolumeId> {
        let config = &self.file.config;
        let luns = kernel.luns.keys().filter_map(|n| {
            let target = n.split(',').next()?;
            config.volume(self.kind, target).filter(|_| conf::lun_name(self.kind, target) == *n)
        });
        let ports = kernel.ports.keys().filter_map(|n| config.volume(self.kind, n));
        luns.chain(ports).collect()
    }

    /// The volumes of which there is something, in the file or in the kernel.
    pub(super) fn ours(&self, deadline: &Deadline) -> Result<BTreeSet<VolumeId>> {
        let mut all = self.in_kernel(&self.file.kernel(deadline)?);
        if let Found::Ours(conf, _) = self.file.read()? {
            all.extend(conf.volumes(&self.file.config, self.kind));
        }
        Ok(all)
    }

    /// What there is of a volume.
    pub(super) fn seen(
        &self,
        conf: &Conf,
        kernel: &Kernel,
        connected: &[Session],
        volume: VolumeId,
        export: Option<&Export>,
    ) -> Seen {
        let (config, kind) = (&self.file.config, self.kind);
        let name = config.name(kind, volume);
        let entry = conf.entry(config, kind, volume);
        let draft = export.map(|e| (e, Draft::of(config, kind, e, &self.file.keys)));
        let right = match &draft {
            Some((export, draft)) => conf.is_right(config, kind, volume, export, draft),
            None => entry.is_none(),
        };
        let lun = kernel.luns.get(&conf::lun_name(kind, &name)).cloned();
        let ports = kernel.ports.get(&name).cloned().unwrap_or_default();
        let loaded = match (&entry, &lun) {
            (None, lun) => lun.is_none() && ports.is_empty(),
            (Some(_), None) => false,
            (Some(entry), Some(lun)) => {
                let as_filed = lun.generation == Some(conf.generation())
                    && lun.path == entry.path
                    && lun.read_only == entry.read_only
                    && export.is_none_or(|e| lun.size == conf::visible(e));
                as_filed && is_mapped(&ports, lun)
            }
        };
        let sessions = connected.iter().filter(|s| s.target == name).cloned().collect();
        let admission = draft.map(|(_, d)| d.admission).unwrap_or_default();
        let left = |written: &Conf| conf.is_left(config, kind, volume, written, &admission.hosts);
        let unsettled = conf.unsettled().contains(&volume.to_string())
            || self.file.written.lock().as_ref().is_some_and(left);
        Seen { entry, admission, right, loaded, lun, ports, sessions, unsettled, name }
    }
}

/// Whether hosts reach a LUN, at our portals alone.
fn is_mapped(ports: &[super::KernelPort], lun: &Lun) -> bool {
    match ports {
        [port] => {
            port.online
                && port.group == conf::GROUP
                && port.luns.len() == 1
                && port.luns.values().all(|l| *l == lun.id)
        }
        _ => false,
    }
}

impl Entry {
    /// Whether somebody whom it lets in, or may let in, is not among these.
    pub(super) fn lets_in_others(&self, hosts: &BTreeSet<String>) -> bool {
        self.hosts.as_ref().is_none_or(|h| !h.is_subset(hosts))
    }
}
