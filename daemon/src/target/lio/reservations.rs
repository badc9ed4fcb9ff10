//! Registrations and reservations (SPC-3 persistent reservations) that hosts want to outlive a restart.
//!
//! The kernel writes them to a file a unit, whenever a host that asked for it (APTPL) changes one, and never reads it. It
//! takes them back by `pr/res_aptpl_metadata`, as long as nobody is served the unit; each comes into force when the host
//! that it is of is given its LUN. The file is written without a sync and not replaced as a whole, so after a power
//! cut it may be cut off: what is not whole in it is left out.
//!
//! A host that is detached loses its registrations in the kernel. In the file they stay until another one changes:
//! only those of hosts that are attached are given back. The file goes when nobody is attached any more: not while the
//! volume is served to nobody because its backing is not open, or because nobody who is attached can be let in. A host that
//! waits outside while others are served gets its own back with the backstore's next making, if no other one has changed
//! its registration meanwhile: the kernel writes only those that are in force.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use orlop_api::VolumeId;

use super::apply::failed;
use super::state::Step;
use super::{ADAPTER, Lio};
use crate::kernel::Deadline;
use crate::model::Identity;
use crate::target::{Result, TargetError};

/// The files that the kernel writes. Paths are absolute.
pub trait Reservations: Send + Sync {
    /// Makes the directory, without which the kernel fails what hosts ask.
    fn prepare(&self, directory: &Path) -> io::Result<()>;
    /// A file's text; `NotFound` where there is none.
    fn read(&self, file: &Path) -> io::Result<String>;
    /// Whether there is such a file.
    fn exists(&self, file: &Path) -> io::Result<bool>;
    /// Removes a file.
    fn remove(&self, file: &Path) -> io::Result<()>;
}

/// Where the kernel has them.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReservationsOnDisk;

impl Reservations for ReservationsOnDisk {
    fn prepare(&self, directory: &Path) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
    }

    fn read(&self, file: &Path) -> io::Result<String> {
        std::fs::read_to_string(file)
    }

    fn exists(&self, file: &Path) -> io::Result<bool> {
        file.try_exists()
    }

    fn remove(&self, file: &Path) -> io::Result<()> {
        std::fs::remove_file(file)
    }
}

/// Where the kernel's directory is, if it does not say.
const ROOT: &str = "/var/target";

/// The registrations of these hosts in a file of the kernel's, each as it is given back.
pub(super) fn registrations(text: &str, hosts: &BTreeSet<String>) -> Vec<String> {
    let mut whole = Vec::new();
    let mut open: Option<Vec<&str>> = None;
    for line in text.lines().map(str::trim) {
        if line.starts_with("PR_REG_START:") {
            open = Some(Vec::new());
        } else if line.starts_with("PR_REG_END:") {
            let fields = open.take().unwrap_or_default();
            let host = fields.iter().find_map(|f| f.strip_prefix("initiator_node="));
            if host.is_some_and(|h| hosts.contains(h)) {
                whole.push(fields.join(","));
            }
        } else if let Some(fields) = &mut open
            && !line.is_empty()
        {
            fields.push(line);
        }
    }
    whole
}

impl Lio {
    fn directory(&self) -> PathBuf {
        let root = self.tree.read("dbroot").unwrap_or_else(|_| ROOT.into());
        Path::new(&root).join("pr")
    }

    /// The kernel names the file by the unit's serial number: by the one that the volume has, whatever somebody has written
    /// to its backstore.
    fn file(&self, volume: VolumeId) -> PathBuf {
        let serial = Identity::of(volume, &self.config.prefix).scsi_serial;
        self.directory().join(format!("aptpl_{serial}"))
    }

    /// Whether the kernel has written anything down of a volume's hosts. Where that can't be told it may have: so what is
    /// wrong is told by the step that forgets it, when all are cut off.
    pub(super) fn is_remembered(&self, volume: VolumeId) -> bool {
        self.reservations.exists(&self.file(volume)).unwrap_or(true)
    }

    pub(super) fn restore(&self, step: &Step, hosts: &BTreeSet<String>, deadline: &Deadline) -> Result<()> {
        let on_disk = |path: &Path| {
            let path = path.display().to_string();
            move |e| failed(step, path, e)
        };
        let directory = self.directory();
        self.reservations.prepare(&directory).map_err(on_disk(&directory))?;
        let file = self.file(step.volume);
        let text = match self.reservations.read(&file) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(on_disk(&file)(e)),
        };
        for registration in registrations(&text, hosts) {
            deadline.check().map_err(|o| TargetError::Deadline(step.to_string(), o))?;
            let path = format!("core/{ADAPTER}/{}/pr/res_aptpl_metadata", step.volume);
            match self.tree.write(&path, &registration) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
                    tracing::warn!(volume = %step.volume, file = %file.display(), "a registration is not taken back");
                }
                Err(e) => return Err(failed(step, path, e)),
            }
        }
        Ok(())
    }

    pub(super) fn forget(&self, step: &Step) -> Result<()> {
        let file = self.file(step.volume);
        match self.reservations.remove(&file) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(step, file.display().to_string(), e)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_ones_of_those_who_may() {
        let one = |host: &str| {
            format!(
                "PR_REG_START: 0\ninitiator_fabric=iSCSI\ninitiator_node={host}\nsa_res_key=7\nPR_REG_END: 0\n"
            )
        };
        let text = format!("{}{}PR_REG_START: 2\ninitiator_node=iqn.2020-01.a:c\nsa_re", one("a"), one("b"));
        let hosts = ["b", "iqn.2020-01.a:c"].map(String::from).into();
        assert_eq!(registrations(&text, &hosts), ["initiator_fabric=iSCSI,initiator_node=b,sa_res_key=7"]);
        assert!(registrations("", &hosts).is_empty());
    }
}
