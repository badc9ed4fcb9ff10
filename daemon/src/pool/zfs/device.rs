//! Which /dev/zdN a zvol is.
//!
//! Called by the pool. The kernel gives minors in its own time after a create or an import, and udev's
//! links in /dev/zvol come later still and at times not at all. So a link is only a hint: a device is a
//! volume's if the device itself says so (BLKZNAME), each time that it is used.
//!
//! A device that is open stays open here until it is closed. The first open of a zvol takes locks of the
//! whole of ZFS and, where it can't have them within a second, fails with a number that is not meant for
//! programs (512, ERESTARTSYS). Here it is tried again; a kernel target, whose open is then not the
//! first, never meets it.
//!
//! Those locks are kept while the first open waits for its zpool, and one whose disks are gone lets it wait for ever:
//! no other zpool of the machine could be changed until it is restarted. So the pool asks before it has one of its own
//! opened here, and none of another's is that can't answer.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use orlop_api::ByteSize;
use parking_lot::Mutex;

use super::turns::Turns;
use crate::kernel::Deadline;
use crate::kernel::block;
use crate::kernel::uevent::Uevents;
use crate::pool::context::Context;
use crate::pool::{Opened, Place, Result};

/// What is known of devices, by the dataset's name. Hints.
#[derive(Debug, Default)]
pub(super) struct Devices {
    known: Mutex<BTreeMap<String, String>>,
    /// What is open.
    held: Mutex<BTreeMap<String, File>>,
}

/// ERESTARTSYS of linux/errno.h: ZFS was busy.
const BUSY: i32 = 512;
struct Busy;

/// What a device tells of itself.
struct Told {
    dataset: String,
    size: u64,
    file: File,
}

/// A device that was found.
struct Found {
    device: PathBuf,
    size: u64,
    file: File,
}

impl Devices {
    /// Finds a zvol's device, waiting for it if the kernel has not made it yet, and opens it.
    pub fn open(&self, ctx: &Context, dataset: &str, deadline: &Deadline) -> Result<Opened> {
        let waiting = || format!("waiting for the device of {dataset}");
        // Before the first look, so that what comes after it is not missed.
        let mut events = Uevents::open().map_err(ctx.io("listening to kernel events"))?;
        let found = events.wait(deadline, || self.find(dataset)).map_err(ctx.io(waiting()))?;
        let found = found.ok_or_else(|| ctx.late(&waiting(), crate::kernel::Overrun))?;
        Ok(self.hold(dataset, found))
    }

    /// Opens a zvol's device if it is where it is expected: no other is asked, and nothing is waited for.
    pub fn open_named(&self, dataset: &str) -> Option<Opened> {
        let found = self.named(dataset).ok().flatten()?;
        Some(self.hold(dataset, found))
    }

    fn hold(&self, dataset: &str, Found { device, size, file }: Found) -> Opened {
        self.held.lock().insert(dataset.to_string(), file);
        Opened { place: Place::Device(device), size: ByteSize(size) }
    }

    /// Whether there is a device now.
    pub fn is_there(&self, dataset: &str) -> bool {
        self.find(dataset).is_some()
    }

    /// Lets a device go.
    pub fn close(&self, dataset: &str) {
        self.held.lock().remove(dataset);
    }

    /// Lets all devices go.
    pub fn close_all(&self) {
        let all = std::mem::take(&mut *self.held.lock());
        drop(all);
    }

    /// A volume has been destroyed.
    pub fn forget(&self, dataset: &str) {
        self.known.lock().remove(dataset);
    }

    fn find(&self, dataset: &str) -> Option<Found> {
        match self.named(dataset) {
            Ok(None) => self.scan(dataset),
            // Asking all the others now would make it busier.
            Err(Busy) => None,
            Ok(found) => found,
        }
    }

    /// By what is remembered, and by udev's link.
    fn named(&self, dataset: &str) -> std::result::Result<Option<Found>, Busy> {
        let hint = self.known.lock().get(dataset).cloned();
        let link = Path::new("/dev/zvol").join(dataset);
        let linked =
            std::fs::canonicalize(link).ok().and_then(|p| Some(p.file_name()?.to_str()?.to_string()));
        for name in [hint, linked].into_iter().flatten() {
            match ask(&name) {
                Ok(Some(told)) if told.dataset == dataset => {
                    self.known.lock().insert(dataset.to_string(), name.clone());
                    return Ok(Some(found(&name, told)));
                }
                Err(e) if e.raw_os_error() == Some(BUSY) => return Err(Busy),
                _ => {}
            }
        }
        Ok(None)
    }

    /// Asks the devices of zvols, those last that another volume is known by: such a number may have
    /// been given anew.
    fn scan(&self, dataset: &str) -> Option<Found> {
        let known: BTreeSet<String> = self.known.lock().values().cloned().collect();
        let mut names: Vec<String> = std::fs::read_dir("/sys/block")
            .ok()?
            .flatten()
            .filter_map(|e| e.file_name().into_string().ok().filter(|n| n.starts_with("zd")))
            .collect();
        let mut silent = BTreeSet::new();
        for zpool in Turns::of_machine().failed() {
            linked_below(&Path::new("/dev/zvol").join(zpool.as_str()), &mut silent);
        }
        names.retain(|n| !silent.contains(n));
        names.sort_by_key(|n| known.contains(n));
        for name in names {
            let Ok(Some(told)) = ask(&name) else { continue };
            let mut all = self.known.lock();
            all.retain(|_, device| *device != name);
            all.insert(told.dataset.clone(), name.clone());
            if told.dataset == dataset {
                return Some(found(&name, told));
            }
        }
        None
    }
}

/// The names of the devices that links in a directory and below it lead to: to be had without opening any.
fn linked_below(directory: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        match std::fs::read_link(&path) {
            Ok(to) => names.extend(to.file_name().and_then(|n| n.to_str()).map(str::to_string)),
            Err(_) => linked_below(&path, names),
        }
    }
}

fn found(name: &str, told: Told) -> Found {
    Found { device: Path::new("/dev").join(name), size: told.size, file: told.file }
}

/// The dataset and the size that a device tells. `None`: it is not a zvol.
fn ask(name: &str) -> io::Result<Option<Told>> {
    let file = File::open(Path::new("/dev").join(name))?;
    match block::zvol_name(&file)? {
        Some(dataset) => Ok(Some(Told { dataset, size: block::size(&file)?, file })),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_say_which_devices_are_of_a_zpool() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let below = dir.path().join("orlop/volumes");
        std::fs::create_dir_all(&below)?;
        std::os::unix::fs::symlink("../../../../zd16", below.join("one"))?;
        std::os::unix::fs::symlink("../../../zd0", dir.path().join("orlop/two"))?;
        let mut names = BTreeSet::new();
        linked_below(dir.path(), &mut names);
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["zd0", "zd16"]);
        linked_below(&dir.path().join("none"), &mut BTreeSet::new());
        Ok(())
    }
}
