//! Zvols that others made, as volumes: labelled where they are, then renamed to where volumes are.
//!
//! Called by the pool. The rename is the one step by which a zvol becomes a volume, so what a crash leaves
//! before it carries our label under its old name. It takes the zvol's snapshots along; they carry no label
//! of ours and stay what they are.

use std::time::Duration;

use orlop_api::VolumeId;

use super::ZfsPool;
use super::dataset::{self, LABEL, Row};
use super::turns::Work;
use crate::kernel::Deadline;
use crate::model::Label;
use crate::pool::rules::{IN_USE, check_same, check_size, check_stray_size};
use crate::pool::{Change, Pool, Result};

/// What our parent dataset says of all volumes, and a zvol of another's may say otherwise of itself: that
/// what is acknowledged is durable, that only the whole device is shown, that snapshots have none.
const INHERITED: [&str; 3] = ["sync", "volmode", "snapdev"];

impl ZfsPool {
    /// A zvol of this zpool by its whole name.
    fn stray(&self, name: &str, deadline: &Deadline) -> Result<Option<Row>> {
        self.check(deadline, "looking at a zvol")?;
        if !name.starts_with(&format!("{}/", self.ctx.pool)) || name.contains('@') {
            return Ok(None);
        }
        Ok(dataset::one(&self.ctx, &self.zfs, &self.parent(), name, deadline)?.filter(|r| r.volume))
    }

    pub(super) fn adopt_zvol(&self, stray: &str, label: &Label, deadline: &Deadline) -> Result<Change> {
        check_size(&self.ctx, label, self.granularity())?;
        let name = self.dataset(label.id);
        if let Some(have) = self.look(label.id, deadline)? {
            check_same(&self.ctx, &have.label, label)?;
            check_stray_size(&self.ctx, stray, have.size, label)?;
            // What adopted it may have been stopped after the rename.
            self.inherit(&name, deadline)?;
            return Ok(Change::Unchanged);
        }
        let row = self.stray(stray, deadline)?.ok_or_else(|| self.ctx.not_found(stray))?;
        if row.label.is_some() && row.stored(label.id).is_err() {
            return Err(self.ctx.conflict(stray, "it carries a label of ours"));
        }
        if let Err(why) = row.adoptable() {
            return Err(self.ctx.precondition(format!("{stray} can't become a volume: {why}")));
        }
        check_stray_size(&self.ctx, stray, orlop_api::ByteSize(row.volsize.unwrap_or(0)), label)?;
        self.prove_unused(stray, deadline)?;
        let moved = self
            .set_label_on(stray, label, LABEL, deadline)
            .and_then(|()| self.turn(Work::Removal, deadline))
            .and_then(|_turn| self.zfs(&["rename", stray, &name], deadline));
        // Whatever it said: what counts is what is there.
        if self.look(label.id, deadline)?.is_none() {
            let error = moved.err().unwrap_or_else(|| self.ctx.not_found(&name));
            if !deadline.remaining().is_zero() {
                self.unlabel(stray, label.id, deadline)?;
            }
            return Err(error);
        }
        self.devices.forget(stray);
        self.inherit(&name, deadline)?;
        Ok(Change::Done)
    }

    pub(super) fn release_zvol(&self, stray: &str, id: VolumeId, deadline: &Deadline) -> Result<Change> {
        let name = self.dataset(id);
        let there = self.look(id, deadline)?.is_some();
        if there {
            self.devices.close(&name);
            let _turn = self.turn(Work::Removal, deadline)?;
            self.zfs(&["rename", &name, stray], deadline)?;
            self.devices.forget(&name);
        }
        let unlabelled = self.unlabel(stray, id, deadline)?;
        Ok(if there || unlabelled { Change::Done } else { Change::Unchanged })
    }

    /// Takes the label of that volume, and no other, off a zvol that is not in its place.
    fn unlabel(&self, stray: &str, id: VolumeId, deadline: &Deadline) -> Result<bool> {
        match self.stray(stray, deadline)? {
            Some(row) if row.stored(id).is_ok() => {
                self.zfs(&["inherit", LABEL, stray], deadline).map(|()| true)
            }
            _ => Ok(false),
        }
    }

    fn inherit(&self, name: &str, deadline: &Deadline) -> Result<()> {
        INHERITED.iter().try_for_each(|p| self.zfs(&["inherit", p, name], deadline))
    }

    /// Opens its device alone: not while it or a partition of it is mounted, swapped to or part of
    /// anything. udev may be looking at one that has just come, so it is tried for a while.
    fn prove_unused(&self, name: &str, deadline: &Deadline) -> Result<()> {
        let patience = deadline.at_most(IN_USE);
        let opened = self.devices.open(&self.ctx, name, &patience);
        self.devices.close(name);
        let device = match opened {
            Ok(opened) => opened.path().to_owned(),
            // It is hidden (volmode=none), or its key is not loaded.
            Err(crate::pool::PoolError::Deadline { .. }) if deadline.check().is_ok() => {
                return Err(self.ctx.precondition(format!("{name} has no device")));
            }
            Err(error) => return Err(error),
        };
        let mut pause = Duration::from_millis(50);
        loop {
            let opening = || format!("opening {}", device.display());
            match crate::kernel::block::claim(&device).map_err(self.ctx.io(opening()))? {
                Some(_claimed) => return Ok(()),
                None if patience.pause(pause).is_ok() => pause = (pause * 2).min(Duration::from_secs(1)),
                None => {
                    self.check(deadline, "waiting for a zvol")?;
                    return Err(self.ctx.precondition(format!("{name} is in use: {}", device.display())));
                }
            }
        }
    }
}
