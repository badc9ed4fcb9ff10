//! The devices of logical volumes: active, deciphered where they are encrypted, and away again.

use std::path::PathBuf;
use std::time::Duration;

use orlop_api::Encryption;

use super::{BUSY, LvmPool, escape};
use crate::kernel::{Deadline, dm};
use crate::pool::Result;
use crate::pool::mapped::Use;

impl LvmPool {
    /// The device of an active volume: the kernel's name, not a link to it. `None`: it is not active.
    pub(super) fn device(&self, lv: &str) -> Result<Option<PathBuf>> {
        let name = format!("{}-{}", escape(self.group.name()), escape(lv));
        dm::device(&name).map_err(self.ctx.io(format!("looking at {name}")))
    }

    pub(super) fn activate(&self, lv: &str, deadline: &Deadline) -> Result<PathBuf> {
        if let Some(device) = self.device(lv)? {
            return Ok(device);
        }
        self.group.must("lvchange", &["-q", "-ay", "-K", &self.group.path(lv)], deadline)?;
        self.device(lv)?.ok_or_else(|| self.ctx.not_found(format!("the device of {lv}")))
    }

    /// The device through which a volume or a snapshot is used: its own, or one above that (`mapped`).
    pub(super) fn usable(
        &self,
        lv: &str,
        encryption: Option<Encryption>,
        for_use: Use,
        deadline: &Deadline,
    ) -> Result<PathBuf> {
        self.mappings.check_key(lv, encryption)?;
        let active = self.device(lv)?.is_some();
        let device = self.activate(lv, deadline)?;
        self.mappings.open(lv, encryption, &device, for_use, deadline).inspect_err(|_| {
            if !active && let Err(error) = self.deactivate(lv, deadline) {
                tracing::warn!(lv, %error, "it stays active");
            }
        })
    }

    pub(super) fn deactivate(&self, lv: &str, deadline: &Deadline) -> Result<()> {
        self.mappings.close(lv, deadline)?;
        let patience = deadline.at_most(BUSY);
        let mut pause = Duration::from_millis(20);
        loop {
            if self.device(lv)?.is_none() {
                return Ok(());
            }
            let Err(error) = self.group.must("lvchange", &["-q", "-an", &self.group.path(lv)], deadline)
            else {
                return Ok(());
            };
            // Open: by udev for a moment, or by someone for good. LVM has nothing to wait on for that.
            if patience.pause(pause).is_err() {
                return Err(error);
            }
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    pub(super) fn erase(&self, lv: &str, deadline: &Deadline) -> Result<()> {
        self.deactivate(lv, deadline)?;
        self.group.must("lvremove", &["-q", "-y", &self.group.path(lv)], deadline).map(drop)
    }
}
