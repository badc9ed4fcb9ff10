//! How snapshots are taken: each of its origin, and those of a group while the writers of all of them wait.

use std::time::Duration;

use super::tags::NEW;
use super::{LvmPool, Named};
use crate::kernel::Deadline;
use crate::model::SnapshotLabel;
use crate::pool::Result;
use crate::pool::held::Held;

impl LvmPool {
    /// Takes snapshots, those of several volumes at one instant. How long writers waited at most, where some did.
    ///
    /// It is the devices above the logical volumes that are held. LVM (2.03.31) that finds an origin itself suspended
    /// counts up the pool's transaction without sending the kernel its message, and takes no more from that pool
    /// afterwards until a person repairs it.
    pub(super) fn take(&self, labels: &[SnapshotLabel], deadline: &Deadline) -> Result<Option<Duration>> {
        let group = labels.len() > 1;
        // One alone is of one instant by itself: LVM sees to that.
        let mappings = group.then_some(&self.mappings);
        let ids = labels.iter().map(|l| l.key.volume);
        // Nobody is to wait for what can be done before.
        self.group.make_sure(deadline)?;
        let held = Held::hold(&self.ctx, ids, &self.mounts, mappings, deadline)?;
        for label in labels {
            self.ctx.check(held.until(), "taking snapshots")?;
            let mut spelled = self.spell(label, 1)?;
            if group {
                spelled.push(NEW.into());
            }
            // Not to be ended when writers have waited too long: LVM that is killed leaves the origin suspended.
            self.thin_snapshot(&label.key.volume.lv(), &label.key.lv(), &spelled, deadline)?;
        }
        let waited = held.release(mappings)?;
        for label in labels.iter().filter(|_| group) {
            let path = self.group.path(&label.key.lv());
            self.group.must("lvchange", &["-q", "--deltag", NEW, &path], deadline)?;
        }
        Ok(waited)
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
