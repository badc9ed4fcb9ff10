//! How snapshots are taken: each of its origin, and those of a group in a moment in which nobody writes.

use std::time::Duration;

use super::tags::NEW;
use super::{LvmPool, Named, QUIET};
use crate::kernel::{Deadline, block};
use crate::model::SnapshotLabel;
use crate::pool::Result;

impl LvmPool {
    /// How many writes each volume has ended; `None` while one is under way.
    pub(super) fn writes(&self, labels: &[SnapshotLabel]) -> Result<Option<Vec<u64>>> {
        let mut all = Vec::new();
        for label in labels {
            let Some(device) = self.device(&label.key.volume.lv())? else { continue };
            let name = device.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            let action = format!("reading the statistics of {name}");
            match block::writes(name).map_err(self.ctx.io(action))? {
                Some(writes) => all.push(writes),
                None => return Ok(None),
            }
        }
        Ok(Some(all))
    }

    /// Takes snapshots: those of several volumes again and again until nothing was written to any of them
    /// between the first and the last.
    ///
    /// Suspending all origins beforehand would hold the writers instead. But LVM (2.03.31) that finds an
    /// origin suspended counts up the pool's transaction without sending the kernel its message, and takes no
    /// more from that pool afterwards until a person repairs it.
    pub(super) fn take(&self, labels: &[SnapshotLabel], deadline: &Deadline) -> Result<Option<Duration>> {
        let patience = deadline.at_most(QUIET);
        let mut pause = Duration::from_millis(5);
        let mut paused = None;
        loop {
            // LVM holds what is mounted on an origin while it takes one snapshot; this holds all of them until
            // the last of this try is taken.
            let held = self.mounts.hold(labels.iter().map(|l| l.key.volume))?;
            let before = self.writes(labels)?;
            for label in labels {
                self.ctx.check(deadline, "taking snapshots")?;
                let mut spelled = self.spell(label, 1)?;
                if labels.len() > 1 {
                    spelled.push(NEW.into());
                }
                self.thin_snapshot(&label.key.volume.lv(), &label.key.lv(), &spelled, deadline)?;
            }
            let one_instant = labels.len() == 1 || (before.is_some() && self.writes(labels)? == before);
            paused = paused.max(held.release(&self.ctx)?);
            if one_instant {
                break;
            }
            for label in labels {
                self.erase(&label.key.lv(), deadline)?;
            }
            if patience.pause(pause).is_err() {
                return Err(self.ctx.precondition(
                    "its volumes are written to all the time, so that no instant was found for all of \
                     them: let their writers rest for a moment",
                ));
            }
            pause = (pause * 2).min(Duration::from_millis(200));
        }
        for label in labels.iter().filter(|_| labels.len() > 1) {
            let path = self.group.path(&label.key.lv());
            self.group.must("lvchange", &["-q", "--deltag", NEW, &path], deadline)?;
        }
        Ok(paused)
    }

    /// What an attempt left, after an error that its caller hears.
    pub(super) fn tidy(&self, lvs: impl Iterator<Item = String>, deadline: &Deadline) {
        if deadline.remaining().is_zero() {
            return;
        }
        for lv in lvs {
            let there = self.group.rows(deadline).map(|rows| rows.iter().any(|r| r.lv_name == lv));
            if there.unwrap_or(false)
                && let Err(error) = self.erase(&lv, deadline)
            {
                tracing::warn!(pool = %self.ctx.pool, lv, %error, "half made, and still there");
            }
        }
    }
}
