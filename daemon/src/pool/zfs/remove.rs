//! How a zvol, a dataset or a snapshot goes.

use std::time::Duration;

use super::turns::Work;
use super::{BUSY, ZfsPool, dataset};
use crate::kernel::{Deadline, lzc};
use crate::pool::{PoolError, Result};

impl ZfsPool {
    /// Destroys a volume or a snapshot, waiting for those who look at it only for a moment.
    pub(super) fn remove_patiently(&self, name: &str, property: &str, deadline: &Deadline) -> Result<()> {
        let patience = deadline.at_most(BUSY);
        let mut pause = Duration::from_millis(20);
        loop {
            self.check(deadline, "destroying a zvol")?;
            let Err(error) = self.remove_dataset(name, deadline) else { return Ok(()) };
            // Nobody who looks at it for a moment is in the way: trying again would be waiting for a person.
            if matches!(error, PoolError::Failed { .. }) {
                return Err(error);
            }
            if self.row_of(name.to_string(), property, deadline)?.is_none() {
                return Ok(());
            }
            let dependants = dataset::dependants(&self.ctx, &self.zfs, name, deadline)?;
            if !dependants.is_empty() {
                return Err(self.ctx.precondition(format!("{name} has {}", dependants.join(", "))));
            }
            // Nothing depends on it, so someone has it open: udev for a moment, or someone for good.
            // ZFS has nothing to wait on for that.
            if patience.remaining().is_zero() {
                return Err(match error {
                    PoolError::Deadline { .. } => error,
                    _ => self.ctx.precondition(format!("{name} is still in use: {error}")),
                });
            }
            // An end of patience shows in the next round.
            let _ = patience.pause(pause);
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    pub(super) fn remove_dataset(&self, name: &str, deadline: &Deadline) -> Result<()> {
        let _turn = self.turn(Work::Removal, deadline)?;
        self.check(deadline, "destroying a zvol")?;
        match lzc::get() {
            Some(lzc) => lzc.destroy(name).map_err(self.ctx.io(format!("destroying {name}"))),
            None => {
                let done = self.zfs.run(&["destroy", name], deadline).and_then(|o| o.success());
                done.map(drop).map_err(|e| self.ctx.exec(e))
            }
        }
    }
}
