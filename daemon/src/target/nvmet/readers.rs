//! The devices through which the hosts of a volume read that may not write.
//!
//! The kernel's target opens its device for writing, and has no setting by which a namespace can't be written: its write
//! protection is a feature that any host may set and take back. So what readers are served is another device, a volume's
//! own of the device mapper, above the volume's: it lets reads through, and everything else is an error, whatever a host
//! does. It is configuration of the kernel like the subsystem that it is for: looked at, made and removed by the same plan.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_api::VolumeId;
use rustix::io::Errno;

use super::Nvmet;
use super::state::Step;
use crate::kernel::{Deadline, dm};
use crate::target::{Result, TargetError};

/// A device that can only be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadOnly {
    /// The kernel's name of it, as a namespace is told.
    pub device: PathBuf,
    /// The device that it is above. `None`: it can't be used.
    pub on: Option<PathBuf>,
}

/// Where such devices are. The kernel's device mapper is the one real implementor; [`SimReadOnlyDevices`] behaves like it.
pub trait ReadOnlyDevices: Send + Sync {
    /// A volume's.
    fn get(&self, volume: VolumeId) -> io::Result<Option<ReadOnly>>;
    /// Makes a volume's above this device. EINVAL: the kernel has no such devices.
    fn make(&self, volume: VolumeId, on: &Path) -> io::Result<()>;
    /// Makes it as large as the device below.
    fn grow(&self, volume: VolumeId) -> io::Result<()>;
    /// Removes it, if it is there. EBUSY: somebody has it open.
    fn remove(&self, volume: VolumeId) -> io::Result<()>;
    /// The volumes that have one.
    fn volumes(&self) -> io::Result<BTreeSet<VolumeId>>;
}

/// Of the device mapper.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mapped;

/// What the names of all of them begin with. The device mapper shows names to whoever may look at devices.
const PREFIX: &str = "orlop-ro-";

fn name(volume: VolumeId) -> String {
    format!("{PREFIX}{volume}")
}

impl ReadOnlyDevices for Mapped {
    fn get(&self, volume: VolumeId) -> io::Result<Option<ReadOnly>> {
        let Some(mapped) = dm::look(&name(volume))? else { return Ok(None) };
        // What a call left that was ended half way is on nothing.
        let on = if mapped.is_live { dm::stand(&mapped.device)? } else { None };
        Ok(Some(ReadOnly { device: mapped.device, on }))
    }

    fn make(&self, volume: VolumeId, on: &Path) -> io::Result<()> {
        dm::make(&name(volume), dm::Above::Reads, on)
    }

    fn grow(&self, volume: VolumeId) -> io::Result<()> {
        dm::grow(&name(volume), dm::Above::Reads)
    }

    fn remove(&self, volume: VolumeId) -> io::Result<()> {
        dm::remove(&name(volume))
    }

    fn volumes(&self) -> io::Result<BTreeSet<VolumeId>> {
        let named = dm::named(PREFIX)?.into_iter();
        Ok(named.filter_map(|(name, _)| name.strip_prefix(PREFIX)?.parse().ok()).collect())
    }
}

/// Such devices in memory.
#[derive(Debug, Default)]
pub struct SimReadOnlyDevices {
    all: parking_lot::Mutex<BTreeMap<VolumeId, ReadOnly>>,
    lacking: bool,
}

impl SimReadOnlyDevices {
    /// Of a kernel that has none.
    pub fn lacking() -> Self {
        Self { lacking: true, ..Self::default() }
    }
}

impl ReadOnlyDevices for SimReadOnlyDevices {
    fn get(&self, volume: VolumeId) -> io::Result<Option<ReadOnly>> {
        Ok(self.all.lock().get(&volume).cloned())
    }

    fn make(&self, volume: VolumeId, on: &Path) -> io::Result<()> {
        if self.lacking {
            return Err(Errno::INVAL.into());
        }
        let device = format!("/dev/mapper/{}", name(volume)).into();
        self.all.lock().insert(volume, ReadOnly { device, on: Some(on.to_owned()) });
        Ok(())
    }

    fn grow(&self, volume: VolumeId) -> io::Result<()> {
        self.get(volume)?.map(drop).ok_or_else(|| Errno::NXIO.into())
    }

    fn remove(&self, volume: VolumeId) -> io::Result<()> {
        self.all.lock().remove(&volume);
        Ok(())
    }

    fn volumes(&self) -> io::Result<BTreeSet<VolumeId>> {
        Ok(self.all.lock().keys().copied().collect())
    }
}

/// How long one may be in use after its namespace has gone: by udev, which looks at what is new.
const BUSY_LIMIT: Duration = Duration::from_secs(5);
/// Between two attempts.
const BUSY_PAUSE: Duration = Duration::from_millis(20);

fn failed(step: &Step, volume: VolumeId) -> impl FnOnce(io::Error) -> TargetError {
    let (step, path) = (step.to_string(), name(volume).into());
    move |source| TargetError::Kernel { step, path, source }
}

impl Nvmet {
    pub(super) fn make_read_only(&self, step: &Step, volume: VolumeId, on: &Path) -> Result<()> {
        self.readers.make(volume, on).map_err(|e| match e.raw_os_error() {
            Some(e) if e == Errno::INVAL.raw_os_error() => {
                let why = "devices that can only be read (CONFIG_DM_FLAKEY), and NVMe hosts can't be kept from writing without";
                TargetError::Unsupported(why.into())
            }
            _ => failed(step, volume)(e),
        })
    }

    /// Who looks at it for a moment is waited for.
    pub(super) fn remove_read_only(&self, step: &Step, volume: VolumeId, deadline: &Deadline) -> Result<()> {
        let limit = deadline.at_most(BUSY_LIMIT);
        loop {
            match self.readers.remove(volume) {
                Err(e)
                    if e.raw_os_error() == Some(Errno::BUSY.raw_os_error())
                        && limit.pause(BUSY_PAUSE).is_ok() => {}
                result => return result.map_err(failed(step, volume)),
            }
        }
    }

    /// Has the namespace of a volume's readers be of the device that is there for them.
    pub(super) fn device_for_readers(&self, step: &Step, volume: VolumeId) -> Result<String> {
        let found = self.readers.get(volume).map_err(failed(step, volume))?;
        let device = found.map(|d| d.device.to_string_lossy().into_owned());
        device.ok_or_else(|| failed(step, volume)(Errno::NODEV.into()))
    }
}
