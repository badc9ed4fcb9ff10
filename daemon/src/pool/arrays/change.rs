//! What an operator does to the disks of arrays.

use parking_lot::MutexGuard;

use super::health::ids;
use super::{Arrays, is_called};
use crate::kernel::disks::{self as kernel_disks, DiskInfo};
use crate::kernel::md::{self, Member};
use crate::kernel::{Deadline, Overrun};
use crate::model::{Array, ArrayDisk, PoolChange};
use crate::pool::{Change, Result, disks};

impl Arrays {
    /// Does what concerns the disks that they have.
    pub fn change(&self, change: &PoolChange, deadline: &Deadline) -> Result<Change> {
        if self.is_empty() {
            return Err(self.ctx.unsupported(format!("{change}: it was made without redundancy")));
        }
        match change {
            PoolChange::Scrub => self.scrub(true),
            PoolChange::StopScrub => self.scrub(false),
            PoolChange::Replace { disk, with } => self.replace(disk, with, deadline),
            PoolChange::Expand { .. } => {
                Err(self.ctx.unsupported(format!("{change}: it has one array, which has its size")))
            }
        }
    }

    fn my_turn(&self, deadline: &Deadline) -> Result<MutexGuard<'_, ()>> {
        let turn = self.turn.try_lock_for(deadline.remaining());
        turn.ok_or_else(|| self.ctx.late("waiting for another change of its disks", Overrun))
    }

    /// One more of the same layout, on other disks. It is there when this returns; whether it was before.
    pub fn expand(&self, asked: &[String], deadline: &Deadline) -> Result<Change> {
        let _turn = self.my_turn(deadline)?;
        let Some(first) = self.list().into_iter().next() else { return Ok(Change::Unchanged) };
        let another = first.another(asked);
        if self.list().iter().any(|a| a.uuid == another.uuid) {
            return Ok(Change::Unchanged);
        }
        if another.active != first.active {
            return Err(self.ctx.precondition(format!(
                "its arrays are of {} disks each: name as many, not {}",
                first.active, another.active
            )));
        }
        self.ensure_one(&another, deadline)?;
        self.list.lock().push(another);
        Ok(Change::Done)
    }

    /// Undoes that, where what stands on them could not be given the new one.
    pub fn shrink(&self, asked: &[String], deadline: &Deadline) -> Result<()> {
        let _turn = self.my_turn(deadline)?;
        let Some(another) = self.list().first().map(|first| first.another(asked)) else { return Ok(()) };
        self.remove_one(&another, deadline)?;
        self.list.lock().retain(|a| a.uuid != another.uuid);
        Ok(())
    }

    /// A pass that compares what should be the same; or its end.
    fn scrub(&self, start: bool) -> Result<Change> {
        let mut change = Change::Unchanged;
        for array in self.list() {
            let Some(now) = self.find(array.uuid)? else { continue };
            match (now.action.as_str(), start) {
                ("idle", true) | ("check", false) => {
                    let action = if start { "check" } else { "idle" };
                    now.act(action).map_err(self.ctx.io(format!("{action} of {}", now.name)))?;
                    change = Change::Done;
                }
                ("check", true) | (_, false) => {}
                (_, true) => {
                    return Err(self.ctx.precondition("a disk is being rebuilt: its pass comes first"));
                }
            }
        }
        if change == Change::Done {
            *self.stopped.lock() = !start;
        }
        Ok(change)
    }

    /// Another disk in the place of one: while that is there it is read until the new one has everything.
    fn replace(&self, old: &str, new: &str, deadline: &Deadline) -> Result<Change> {
        let _turn = self.my_turn(deadline)?;
        let all = self.disks()?;
        let list = self.list();
        let target = kernel_disks::find(&all, new).map_err(self.ctx.io(format!("looking at disk {new}")))?;
        let mut names = Vec::new();
        let mut found = None;
        for array in &list {
            let Some(now) = self.find(array.uuid)?.filter(|n| n.active) else { continue };
            let known = ids(&now);
            for (n, disk) in array.disks.iter().enumerate() {
                let member = member_of(disk, &now, &known, &all);
                names.push(disk.name.clone());
                // By the name that it was given, as long as that is not another's by now, or by what it has now.
                let is_it = match &member {
                    Some(m) => all.iter().any(|d| d.name == m.name && is_called(d, &all, old)),
                    None => disk.name == old,
                };
                if is_it {
                    found = Some((array.clone(), n, now.clone(), member));
                }
            }
        }
        let has = |m: &Member| target.is_some_and(|t| t.name == m.name);
        let Some((array, n, now, member)) = found else {
            // Done before, and not known to be.
            for array in &list {
                let there =
                    self.find(array.uuid)?.is_some_and(|now| now.members.iter().any(|m| has(m) && !m.faulty));
                if there {
                    return Ok(Change::Unchanged);
                }
            }
            let names = names.join(", ");
            return Err(self.ctx.precondition(format!("it has no disk {old}; it has {names}")));
        };
        let spare = now.members.iter().find(|m| has(m));
        if let Some(there) = spare.filter(|m| m.slot.is_some() || m.faulty) {
            // A stopped attempt had come that far.
            let fills = there.replacement && member.as_ref().is_some_and(|m| m.slot == there.slot);
            if fills || member.as_ref().is_none_or(|m| m.faulty || !m.in_sync) {
                self.put_in_place(&array, n, new, &all);
                return Ok(Change::Unchanged);
            }
            return Err(self.ctx.precondition(format!("{new} is a disk of this pool already")));
        }
        if member.as_ref().is_some_and(|m| m.in_sync && !m.faulty) {
            match now.action.as_str() {
                "idle" => {}
                // It can be asked for again.
                "check" => now.act("idle").map_err(self.ctx.io(format!("ending a scrub of {}", now.name)))?,
                _ => {
                    return Err(self.ctx.precondition("a pass over its disks is under way: it comes first"));
                }
            }
        }
        let device = now.path().display().to_string();
        let path = match (spare, target) {
            (Some(spare), _) => spare.path().display().to_string(),
            (None, _) => {
                let blank = disks::prove_blank(&self.ctx, &self.env, &[new.to_string()], deadline)?;
                let Some(disk) = blank.into_iter().next() else {
                    return Err(self.ctx.precondition("names no disk"));
                };
                self.check_room(&now, &disk)?;
                let path = disk.path.display().to_string();
                let added = self.mdadm(&[&device, "--add-spare", &path], deadline)?;
                let now = md::again(&now.name).map_err(self.ctx.io("looking at an array"))?;
                if !now.is_some_and(|n| n.members.iter().any(|m| m.name == disk.name)) {
                    return Err(self.ctx.exec(added.failure()));
                }
                path
            }
        };
        // From here on the new one is the pool's, whatever becomes of the old one.
        self.put_in_place(&array, n, new, &all);
        match member {
            // Nothing, or nothing that is of use: md has the new one take the free place by itself.
            None => {}
            // What can't be let go of now is at the next look: it is no disk of the pool's any more.
            Some(m) if m.faulty => drop(self.let_go(&now, &m, deadline)),
            Some(m) if m.in_sync => {
                let old = m.path().display().to_string();
                let output = self.mdadm(&[&device, "--replace", &old, "--with", &path], deadline)?;
                if output.code != Some(0) {
                    return Err(self.ctx.exec(output.failure()));
                }
            }
            Some(m) => {
                now.fail(&m).map_err(self.ctx.io(format!("taking {} out", m.name)))?;
            }
        }
        Ok(Change::Done)
    }

    /// A disk must hold as much as those that are there.
    fn check_room(&self, now: &md::Array, disk: &DiskInfo) -> Result<()> {
        let says = now.members.iter().filter_map(|m| md::superblock(&m.path()).ok().flatten()).next();
        match says {
            Some(says) if disk.size < says.extent => Err(self.ctx.precondition(format!(
                "{} is too small: it has {}, and the others use {}",
                disk.name,
                orlop_api::ByteSize(disk.size),
                orlop_api::ByteSize(says.extent)
            ))),
            _ => Ok(()),
        }
    }

    fn put_in_place(&self, array: &Array, n: usize, new: &str, all: &[DiskInfo]) {
        let mut list = self.list.lock();
        let Some(array) = list.iter_mut().find(|a| a.uuid == array.uuid) else { return };
        let target = kernel_disks::find(all, new).ok().flatten();
        let is_new = |d: &ArrayDisk| target.map_or(d.name == new, |t| is_called(t, all, &d.name));
        // A spare that takes the place is among them already.
        match array.disks.iter().position(is_new) {
            Some(spare) if spare != n => drop(array.disks.remove(n)),
            _ => {
                if let Some(disk) = array.disks.get_mut(n) {
                    *disk = ArrayDisk { name: new.to_string(), id: None, whole: false };
                }
            }
        }
    }
}

/// The member that a disk of the specification is.
fn member_of(
    disk: &ArrayDisk,
    now: &md::Array,
    known: &[(String, uuid::Uuid)],
    all: &[DiskInfo],
) -> Option<Member> {
    let name = match disk.id {
        Some(id) => known.iter().find(|(_, i)| *i == id).map(|(name, _)| name.clone()),
        None => all.iter().find(|d| is_called(d, all, &disk.name)).map(|d| d.name.clone()),
    }?;
    now.members.iter().find(|m| m.name == name).cloned()
}
