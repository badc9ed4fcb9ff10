//! How the disks of arrays are, and what is done about it without being asked.

use std::time::Duration;

use orlop_api::{PoolDisk, PoolHealth, PoolHealthState, PoolLayout, PoolScan, PoolScanKind, PoolScanState};
use uuid::Uuid;

use super::{Arrays, Claimant, is_called};
use crate::kernel::Deadline;
use crate::kernel::disks::DiskInfo;
use crate::kernel::md::{self, Member};
use crate::model::Array;
use crate::pool::{Change, Result};

/// For how long a disk that is back is offered to its array as what it was, and how often.
const BUSY: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_secs(1);

impl Arrays {
    /// How they are. `None`: there are none. An array learns here which of its disks are gone: md itself notices
    /// when it writes to one, and until then has no spare take its place.
    pub fn health(&self) -> Result<Option<PoolHealth>> {
        let list = self.list();
        if list.is_empty() {
            return Ok(None);
        }
        let all = self.disks()?;
        let mut health =
            PoolHealth { state: PoolHealthState::Ok, reason: None, errors: 0, scan: None, disks: Vec::new() };
        let mut reasons = Vec::new();
        for (n, array) in list.iter().enumerate() {
            let part = format!("{}-{n}", array.layout.as_str());
            let now = self.tell_gone(self.find(array.uuid)?)?;
            let ids = now.as_ref().map(ids).unwrap_or_default();
            let (state, reason) = self.look(array, &part, now.as_ref(), &ids, &all, &mut health);
            reasons.extend(reason);
            health.state = worse(health.state, state);
        }
        health.reason = (health.state != PoolHealthState::Ok).then(|| reasons.join("; "));
        Ok(Some(health))
    }

    fn tell_gone(&self, now: Option<md::Array>) -> Result<Option<md::Array>> {
        let Some(now) = now else { return Ok(None) };
        let gone: Vec<&Member> = now.members.iter().filter(|m| !m.present).collect();
        for member in &gone {
            // It takes a moment until nothing is under way to it: it is forgotten now, or at the next look.
            if !member.faulty
                && let Err(error) = now.fail(member)
            {
                tracing::warn!(pool = %self.ctx.pool, disk = member.name, %error, "md was not told that it is gone");
            }
            if let Err(error) = now.remove(member) {
                tracing::debug!(pool = %self.ctx.pool, disk = member.name, %error, "md still has a disk that is gone");
            }
        }
        if gone.is_empty() {
            Ok(Some(now))
        } else {
            md::again(&now.name).map_err(self.ctx.io("looking at an array"))
        }
    }

    fn look(
        &self,
        array: &Array,
        part: &str,
        now: Option<&md::Array>,
        ids: &[(String, Uuid)],
        all: &[DiskInfo],
        health: &mut PoolHealth,
    ) -> (PoolHealthState, Option<String>) {
        let members = now.map(|n| n.members.as_slice()).unwrap_or_default();
        let mut bad = Vec::new();
        for member in members {
            let disk = all.iter().find(|d| d.name == member.name);
            let state = state_of(member);
            let name = disk.map_or_else(|| member.name.clone(), DiskInfo::lasting_path);
            if !["online", "avail"].contains(&state) {
                bad.push(format!("disk {name} is {state}"));
            }
            let part = if state == "avail" { "spares" } else { part };
            health.disks.push(PoolDisk {
                name,
                was: None,
                part: Some(part.into()),
                state: state.into(),
                read_errors: member.errors,
                write_errors: 0,
                checksum_errors: 0,
            });
        }
        // Those that it should have and md does not know of.
        for disk in &array.disks {
            let here = match disk.id {
                Some(id) => ids.iter().any(|(_, i)| *i == id),
                None => members
                    .iter()
                    .any(|m| all.iter().any(|d| d.name == m.name && is_called(d, all, &disk.name))),
            };
            if here {
                continue;
            }
            bad.push(format!("disk {} is removed", disk.name));
            health.disks.push(PoolDisk {
                name: disk.name.clone(),
                was: Some(disk.name.clone()),
                part: Some(part.into()),
                state: "removed".into(),
                read_errors: 0,
                write_errors: 0,
                checksum_errors: 0,
            });
        }
        let Some(now) = now.filter(|n| n.active) else {
            return (PoolHealthState::Failed, Some(format!("array {part} is not running")));
        };
        let scan = self.scan(now);
        let rebuilding =
            scan.as_ref().is_some_and(|s| s.kind == PoolScanKind::Rebuild) && now.action == "recover";
        if rebuilding {
            bad.push("a disk is being rebuilt".into());
        }
        // Of several, the one under way is told.
        let running = |s: &Option<PoolScan>| s.as_ref().is_some_and(|s| s.state == PoolScanState::Running);
        if !running(&health.scan) && scan.is_some() {
            health.scan = scan;
        }
        if !can_be_read(array, now) {
            let count = now.members.iter().filter(|m| m.in_sync && !m.faulty).count();
            bad.insert(
                0,
                format!(
                    "array {part} has {count} of {} disks: bring lost ones back, and start the machine again",
                    now.disks
                ),
            );
            return (PoolHealthState::Failed, Some(bad.join("; ")));
        }
        if now.is_degraded() {
            bad.push(format!(
                "array {part} lacks {} of {} disks: replace what is lost",
                now.degraded, now.disks
            ));
        }
        let state = if bad.is_empty() { PoolHealthState::Ok } else { PoolHealthState::Degraded };
        (state, (!bad.is_empty()).then(|| bad.join("; ")))
    }

    fn scan(&self, now: &md::Array) -> Option<PoolScan> {
        let kind = |action: &str| match action {
            "check" => Some(PoolScanKind::Scrub),
            "resync" | "recover" | "repair" | "reshape" => Some(PoolScanKind::Rebuild),
            _ => None,
        };
        if let Some(kind) = kind(&now.action) {
            let percent = now.progress.and_then(|(done, all)| done.saturating_mul(100).checked_div(all));
            let percent = percent.and_then(|p| u8::try_from(p).ok());
            // What a pass has found until now is told when it is through.
            return Some(PoolScan { kind, state: PoolScanState::Running, percent, errors: 0, ended: None });
        }
        let kind = kind(now.last_action.as_deref()?)?;
        let stopped = kind == PoolScanKind::Scrub && *self.stopped.lock();
        let state = if stopped { PoolScanState::Stopped } else { PoolScanState::Finished };
        let errors = if kind == PoolScanKind::Scrub { now.mismatches } else { 0 };
        Some(PoolScan { kind, state, percent: None, errors, ended: None })
    }

    /// Takes back disks of theirs that are there again, and lets go of those that were replaced.
    pub fn take_back(&self, deadline: &Deadline) -> Result<Change> {
        // Whoever changes them knows better.
        let Some(_turn) = self.turn.try_lock() else { return Ok(Change::Unchanged) };
        let mut change = Change::Unchanged;
        for array in self.list() {
            let Some(now) = self.find(array.uuid)?.filter(|n| n.active) else { continue };
            for member in now.members.iter().filter(|m| m.faulty && m.present) {
                if self.is_replaced(&array, member) && self.let_go(&now, member, deadline) {
                    change = Change::Done;
                }
            }
            // Of an array that has lost too many each disk may be the last that knows something.
            if !can_be_read(&array, &now) {
                continue;
            }
            // Those that somebody has are not asked: one of another pool may hang.
            for back in self.claimants(|d| d.holders.is_empty(), |s| s.array == array.uuid)? {
                let ours = array.disks.iter().any(|d| d.id == Some(back.says.device));
                if !ours || now.members.iter().any(|m| m.name == back.disk.name) {
                    continue;
                }
                match self.add_back(&array, &now, &back, deadline) {
                    Ok(()) => change = Change::Done,
                    // It stays what it is: degraded, which is told.
                    Err(error) => {
                        let disk = back.disk.name;
                        tracing::warn!(pool = %self.ctx.pool, disk, %error, "a disk was not taken back");
                    }
                }
            }
        }
        Ok(change)
    }

    /// A failed disk stays, so that it can be seen, until it is replaced: then it is not among the pool's disks.
    fn is_replaced(&self, array: &Array, member: &Member) -> bool {
        let says = md::superblock(&member.path()).ok().flatten();
        says.is_some_and(|s| s.array == array.uuid && is_no_more(array, s.device))
    }

    /// Forgets a disk and makes it blank, so that it is not taken back.
    pub(super) fn let_go(&self, now: &md::Array, member: &Member, deadline: &Deadline) -> bool {
        let path = member.path();
        let gone = || -> Result<()> {
            let says = md::superblock(&path).map_err(self.ctx.io(format!("reading {}", member.name)))?;
            now.remove(member).map_err(self.ctx.io(format!("taking {} out", member.name)))?;
            says.map_or(Ok(()), |says| self.clear(&path, &says, deadline))
        };
        match gone() {
            Ok(()) => {
                tracing::info!(pool = %self.ctx.pool, disk = member.name, "a disk that was replaced is let go");
                true
            }
            Err(error) => {
                tracing::warn!(pool = %self.ctx.pool, disk = member.name, %error, "a disk that was replaced stays");
                false
            }
        }
    }

    fn add_back(&self, array: &Array, now: &md::Array, back: &Claimant, deadline: &Deadline) -> Result<()> {
        let (device, path) = (now.path().display().to_string(), back.disk.path.display().to_string());
        // It believes a disk to be lost that has everything: it has been in use without it, and what the array knows
        // of which regions differ does not hold for it.
        let slots: Vec<usize> = now.members.iter().filter(|m| m.in_sync).filter_map(|m| m.slot).collect();
        let apart = slots.iter().any(|slot| back.says.filled.get(*slot) == Some(&false));
        let free = back.says.slot.is_some_and(|slot| !now.members.iter().any(|m| m.slot == Some(slot)));
        let has = || -> Result<bool> {
            let now = md::again(&now.name).map_err(self.ctx.io("looking at an array"))?;
            Ok(now.is_some_and(|n| n.members.iter().any(|m| m.name == back.disk.name && !m.faulty)))
        };
        // What RAID 5 keeps tells nothing of which regions differ.
        if free && !apart && array.layout != PoolLayout::Raid5 {
            // Whoever looks whether it is blank has it for a moment, and to fill it anew would cost its copy.
            let patience = deadline.at_most(BUSY);
            loop {
                self.mdadm(&[&device, "--re-add", &path], deadline)?;
                if has()? {
                    tracing::info!(pool = %self.ctx.pool, disk = back.disk.name, "a disk was taken back");
                    return Ok(());
                }
                if patience.pause(AGAIN).is_err() {
                    break;
                }
            }
        }
        // From the beginning, then.
        self.clear(&back.disk.path, &back.says, deadline)?;
        let output = self.mdadm(&[&device, "--add", &path], deadline)?;
        if !has()? {
            return Err(self.ctx.exec(output.failure()));
        }
        let new = md::superblock(&back.disk.path);
        let new = new.map_err(self.ctx.io(format!("reading {path}")))?.map(|s| s.device);
        let mut list = self.list.lock();
        for disk in list.iter_mut().flat_map(|a| &mut a.disks).filter(|d| d.id == Some(back.says.device)) {
            (disk.id, disk.whole) = (new, false);
        }
        tracing::info!(pool = %self.ctx.pool, disk = back.disk.name, "a disk was taken back, and is filled anew");
        Ok(())
    }
}

/// Whether a disk is not an array's any more. Where it is not known yet who one of its disks is, that may be this one:
/// nothing is done to what can't be told.
fn is_no_more(array: &Array, id: Uuid) -> bool {
    array.disks.iter().all(|d| d.id.is_some_and(|known| known != id))
}

/// Who is who, of those that say it.
pub(super) fn ids(now: &md::Array) -> Vec<(String, Uuid)> {
    let says = |m: &Member| Some((m.name.clone(), md::superblock(&m.path()).ok()??.device));
    now.members.iter().filter(|m| m.present).filter_map(says).collect()
}

fn state_of(member: &Member) -> &'static str {
    match member {
        m if !m.present => "removed",
        m if m.faulty => "faulted",
        m if m.leaving => "replacing",
        m if m.in_sync => "online",
        m if m.slot.is_some() => "rebuilding",
        _ => "avail",
    }
}

fn worse(a: PoolHealthState, b: PoolHealthState) -> PoolHealthState {
    use PoolHealthState::{Degraded, Failed, Ok};
    match (a, b) {
        (Failed, _) | (_, Failed) => Failed,
        (Degraded, _) | (_, Degraded) => Degraded,
        (Ok, Ok) => Ok,
    }
}

/// Whether each block is on a disk that is there.
pub(super) fn can_be_read(array: &Array, now: &md::Array) -> bool {
    let there =
        |slot: usize| now.members.iter().any(|m| m.slot == Some(slot) && m.in_sync && !m.faulty && m.present);
    let count = (0..now.disks).filter(|n| there(*n)).count();
    match array.layout {
        PoolLayout::Raid5 => count + 1 >= now.disks,
        // Of each pair one: they lie beside each other.
        PoolLayout::Raid10 => (0..now.disks).step_by(2).all(|n| there(n) || there(n + 1)),
        _ => count > 0,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::model::ArrayDisk;

    fn member(slot: usize) -> Member {
        Member {
            name: format!("vd{slot}"),
            present: true,
            slot: Some(slot),
            in_sync: true,
            faulty: false,
            leaving: false,
            replacement: false,
            errors: 0,
        }
    }

    fn running(disks: usize, there: &[usize]) -> md::Array {
        md::Array {
            name: "md127".into(),
            active: true,
            disks,
            degraded: disks - there.len(),
            action: "idle".into(),
            progress: None,
            last_action: None,
            mismatches: 0,
            members: there.iter().map(|n| member(*n)).collect(),
        }
    }

    #[test]
    fn what_an_array_survives() {
        let of = |layout, disks, there: &[usize]| {
            let array = Array { uuid: Uuid::nil(), layout, active: disks, disks: Vec::new() };
            can_be_read(&array, &running(disks, there))
        };
        use PoolLayout::{Mirror, Raid5, Raid10};
        assert!(of(Mirror, 3, &[2]) && !of(Mirror, 2, &[]));
        assert!(of(Raid5, 3, &[0, 2]) && !of(Raid5, 3, &[1]));
        assert!(of(Raid10, 4, &[0, 3]) && of(Raid10, 4, &[1, 2]) && !of(Raid10, 4, &[0, 1]));
    }

    /// What is let go of is wiped.
    #[test]
    fn a_disk_that_may_be_the_pools_is_not_let_go() {
        let disk = |id| ArrayDisk { name: "vdb".into(), id, whole: false };
        let of = |ids: &[Option<Uuid>]| Array {
            uuid: Uuid::nil(),
            layout: PoolLayout::Mirror,
            active: 2,
            disks: ids.iter().copied().map(disk).collect(),
        };
        let [a, b, c] = [1, 2, 3].map(|n| Uuid::from_bytes([n; 16]));
        assert!(is_no_more(&of(&[Some(a), Some(b)]), c));
        assert!(!is_no_more(&of(&[Some(a), Some(b)]), b));
        assert!(!is_no_more(&of(&[Some(a), None]), c));
    }

    #[test]
    fn a_disk_that_is_being_filled_does_not_count() {
        let array = Array { uuid: Uuid::nil(), layout: PoolLayout::Raid5, active: 3, disks: Vec::new() };
        let mut now = running(3, &[0, 1, 2]);
        now.members[1].in_sync = false;
        assert!(can_be_read(&array, &now));
        now.members[2].faulty = true;
        assert!(!can_be_read(&array, &now));
        assert_eq!(now.members.iter().map(state_of).collect::<Vec<_>>(), ["online", "rebuilding", "faulted"]);
    }
}
