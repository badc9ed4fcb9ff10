//! Logical volumes that others made, as volumes: tagged under their old name, then renamed.
//!
//! Called by the pool. The rename is the one step by which a logical volume becomes a volume, so what a
//! crash leaves before it carries our label under its old name.

use std::time::Duration;

use orlop_api::{ByteSize, VolumeId};

use super::group::{EXTENT, Row, THIN};
use super::{Found, LvmPool, Named, found, name_of, tags};
use crate::kernel::Deadline;
use crate::model::{Label, SnapshotLabel};
use crate::pool::rules::{IN_USE, check_same, check_size, check_stray_size};
use crate::pool::{Change, PoolError, Result};

impl LvmPool {
    pub(super) fn adopt_lv(&self, stray: &str, label: &Label, deadline: &Deadline) -> Result<Change> {
        check_size(&self.ctx, label, EXTENT)?;
        self.ctx.check(deadline, "looking at a logical volume")?;
        let rows = self.group.rows(deadline)?;
        match self.look_in::<Label>(&rows, label.id)? {
            Found::Whole { label: have, size, .. } => {
                check_same(&self.ctx, &have, label)?;
                check_stray_size(&self.ctx, stray, size, label)?;
                return Ok(Change::Unchanged);
            }
            Found::Partial => return Err(self.ctx.conflict(label.id.lv(), "it is half made")),
            Found::Nothing => {}
        }
        let row = self.stray(&rows, stray).ok_or_else(|| self.ctx.not_found(stray))?;
        let told = tags::read(&row.lv_tags);
        if told.is_ours() && !carries(row, label.id) {
            return Err(self.ctx.conflict(stray, "it carries a label of ours"));
        }
        if let Err(why) = row.adoptable() {
            return Err(self.ctx.precondition(format!("{stray} can't become a volume: {why}")));
        }
        check_stray_size(&self.ctx, stray, ByteSize(row.lv_size), label)?;
        self.prove_unused(stray, deadline)?;
        let moved = self
            .set_label_on(stray, label, &told, deadline)
            .and_then(|()| self.ctx.check(deadline, "adopting a logical volume"))
            .and_then(|()| {
                let args = ["-q", self.group.name(), stray, &label.id.lv()];
                self.group.must("lvrename", &args, deadline)
            });
        // Whatever it said: what counts is what is there.
        match self.look::<Label>(label.id, deadline)? {
            Found::Whole { .. } => Ok(Change::Done),
            Found::Nothing | Found::Partial => {
                let error = moved.err().unwrap_or_else(|| self.ctx.not_found(label.id.lv()));
                if !deadline.remaining().is_zero() {
                    self.unlabel(stray, label.id, deadline)?;
                }
                Err(error)
            }
        }
    }

    /// Takes it down: LVM does that only while nobody has it open, be it mounted or not. Asked of LVM even if
    /// there seems to be no device, which can be udev being late. udev may be looking at it, so it is tried
    /// for a while.
    fn prove_unused(&self, lv: &str, deadline: &Deadline) -> Result<()> {
        let patience = deadline.at_most(IN_USE);
        let mut pause = Duration::from_millis(50);
        loop {
            match self.group.must("lvchange", &["-q", "-an", &self.group.path(lv)], deadline) {
                Ok(_) => return Ok(()),
                Err(PoolError::Command { .. }) if patience.pause(pause).is_ok() => {
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
                Err(PoolError::Command { detail, .. }) => {
                    self.ctx.check(deadline, "waiting for a logical volume")?;
                    return Err(self.ctx.precondition(format!("{lv} is in use: {detail}")));
                }
                Err(other) => return Err(other),
            }
        }
    }

    pub(super) fn release_lv(&self, stray: &str, id: VolumeId, deadline: &Deadline) -> Result<Change> {
        let there = matches!(self.look::<Label>(id, deadline)?, Found::Whole { .. });
        if there {
            self.deactivate(&id.lv(), deadline)?;
            self.group.must("lvrename", &["-q", self.group.name(), &id.lv(), stray], deadline)?;
        }
        let unlabelled = self.unlabel(stray, id, deadline)?;
        Ok(if there || unlabelled { Change::Done } else { Change::Unchanged })
    }

    /// Takes the label of that volume, and no other, off a logical volume that does not have its name.
    fn unlabel(&self, stray: &str, id: VolumeId, deadline: &Deadline) -> Result<bool> {
        let rows = self.group.rows(deadline)?;
        let Some(row) = self.stray(&rows, stray).filter(|r| carries(r, id)) else { return Ok(false) };
        let told = tags::read(&row.lv_tags);
        let path = self.group.path(stray);
        let mut args = vec!["-q"];
        for tag in &told.parts {
            args.extend(["--deltag", tag]);
        }
        args.push(&path);
        self.group.must("lvchange", &args, deadline).map(|_| true)
    }

    /// One that is not a volume or a snapshot of ours.
    fn stray<'a>(&self, rows: &'a [Row], name: &str) -> Option<&'a Row> {
        let row = rows.iter().find(|r| r.lv_name == name && r.lv_name != THIN)?;
        let ours = match name_of(name) {
            Some(super::Name::Volume(id)) => found::<Label>(row, id).is_ok(),
            Some(super::Name::Snapshot(key)) => found::<SnapshotLabel>(row, key).is_ok(),
            None => false,
        };
        (!ours).then_some(row)
    }
}

/// Whether it has the label of that volume, under whatever name.
fn carries(row: &Row, id: VolumeId) -> bool {
    matches!(found::<Label>(row, id), Ok(Found::Whole { .. }))
}
