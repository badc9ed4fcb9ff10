//! Arrays of disks (md) below `lvm` and `file` pools: what gives them redundancy.
//!
//! Called by those pools, which stand on [`Arrays::paths`] and know no more of it. An array is found by its UUID,
//! which was minted with the pool's specification. What a disk may be trusted with is decided here and not left to
//! what it says of itself: a disk that was lost, and is all that is left of its array after a power cut, says that it
//! is whole. So the pool's specification remembers which disks had everything ([`ArrayDisk::whole`]), and an array of
//! which any disk is missing is started on those alone.

mod change;
mod health;

use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_api::PoolLayout;
use parking_lot::{Mutex, MutexGuard};
use uuid::Uuid;

use super::context::Context;
use super::{PoolEnv, PoolError, Result, disks};
use crate::kernel::block::{self, Content};
use crate::kernel::disks::{self as kernel_disks, DiskInfo};
use crate::kernel::exec::{Output, Tool};
use crate::kernel::md::{self, Superblock};
use crate::kernel::{Deadline, Overrun};
use crate::model::{Array, ArrayDisk};

/// How long somebody else may hold an array that is to be stopped: whoever probes a device has it open for a moment.
const BUSY: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);

/// Arrays get their numbers one at a time.
static NUMBERS: Mutex<()> = Mutex::new(());

/// The arrays of one pool: none, where it stands on plain disks.
#[derive(Debug)]
pub struct Arrays {
    ctx: Context,
    env: PoolEnv,
    list: Mutex<Vec<Array>>,
    /// Whoever changes an array.
    turn: Mutex<()>,
    /// The last pass was stopped by its operator, which md does not tell from one that came to its end.
    stopped: Mutex<bool>,
}

/// A disk that says that it is an array's.
#[derive(Debug)]
struct Claimant {
    disk: DiskInfo,
    says: Superblock,
}

/// What md has before an array's name: there it is meant for the machine that made it.
const HOME: &str = "orlop";

/// How many bytes of a name md keeps.
const LONGEST: usize = 31;

/// What a pool's arrays are called on their disks, for people, and for who imports them.
fn name_of(pool: &str) -> String {
    let whole = format!("{HOME}:{pool}");
    // A name that is too long with it goes without it.
    if whole.len() <= LONGEST { whole } else { pool.chars().take(LONGEST).collect() }
}

/// The pool that a disk of an array was made for, as the label that blkid(8) shows has it.
pub(super) fn pool_of(label: &str) -> &str {
    label.strip_prefix(HOME).and_then(|rest| rest.strip_prefix(':')).unwrap_or(label)
}

fn level(layout: PoolLayout) -> &'static str {
    match layout {
        PoolLayout::Raid5 => "5",
        PoolLayout::Raid10 => "10",
        _ => "1",
    }
}

fn layout_of(level: i32) -> Option<PoolLayout> {
    match level {
        1 => Some(PoolLayout::Mirror),
        5 => Some(PoolLayout::Raid5),
        10 => Some(PoolLayout::Raid10),
        _ => None,
    }
}

impl Arrays {
    pub(super) fn new(ctx: &Context, env: &PoolEnv, list: &[Array]) -> Self {
        Self {
            ctx: ctx.clone(),
            env: env.clone(),
            list: Mutex::new(list.to_vec()),
            turn: Mutex::default(),
            stopped: Mutex::default(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.lock().is_empty()
    }

    fn list(&self) -> Vec<Array> {
        self.list.lock().clone()
    }

    fn mdadm(&self, args: &[&str], deadline: &Deadline) -> Result<Output> {
        let tool = Tool::locate("mdadm").map_err(|e| self.ctx.exec(e))?;
        tool.run(args, deadline).map_err(|e| self.ctx.exec(e))
    }

    fn find(&self, uuid: Uuid) -> Result<Option<md::Array>> {
        md::find(uuid).map_err(self.ctx.io("looking at arrays"))
    }

    fn disks(&self) -> Result<Vec<DiskInfo>> {
        kernel_disks::all(self.env.loops_as_disks).map_err(self.ctx.io("listing disks"))
    }

    /// Makes those that are not there, on disks that are proven blank, and starts the others. Whether any was made.
    pub fn ensure(&self, deadline: &Deadline) -> Result<bool> {
        let mut made = false;
        for array in self.list() {
            made |= self.ensure_one(&array, deadline)?;
        }
        Ok(made)
    }

    fn ensure_one(&self, array: &Array, deadline: &Deadline) -> Result<bool> {
        if self.find(array.uuid)?.is_some()
            || !self.claimants(|_| true, |s| s.array == array.uuid)?.is_empty()
        {
            self.start_one(array, deadline)?;
            return Ok(false);
        }
        let names: Vec<String> = array.names().map(str::to_string).collect();
        let blank = disks::prove_blank(&self.ctx, &self.env, &names, deadline)?;
        let paths: Vec<String> = blank.iter().map(|d| d.path.display().to_string()).collect();
        let (uuid, name) = (format!("--uuid={}", array.uuid), format!("--name={}", self.ctx.pool));
        let home = format!("--homehost={HOME}");
        let level = format!("--level={}", level(array.layout));
        let active = format!("--raid-devices={}", array.active);
        let spares = format!("--spare-devices={}", paths.len().saturating_sub(array.active));
        // Which regions were being written, so that after a crash, or for a disk that comes back, not all is copied.
        // What RAID 5 keeps instead also saves the blocks beside a stripe that was being written when a disk is lost
        // with the power.
        let keeps = match array.layout {
            PoolLayout::Raid5 => "--consistency-policy=ppl",
            _ => "--bitmap=internal",
        };
        let turn = self.number(deadline)?;
        let path = md::unused().map_err(self.ctx.io("numbering an array"))?;
        let device = path.display().to_string();
        let mut args = vec!["--create", &device, "--config=none", "--run", "--metadata=1.2", &home];
        args.extend([name.as_str(), &uuid, &level, &active, keeps]);
        if paths.len() > array.active {
            args.push(&spares);
        }
        args.extend(paths.iter().map(String::as_str));
        let output = self.mdadm(&args, deadline);
        drop(turn);
        let made = match (self.find(array.uuid)?, output) {
            // What its disks held where its data begin is nobody's: they were proven blank.
            (Some(now), _) if now.active => self.blank(&now, deadline),
            (_, Ok(output)) => Err(self.ctx.exec(output.failure())),
            (_, Err(error)) => Err(error),
        };
        made.inspect_err(|_| {
            // What is on them now is this attempt's.
            if let Err(error) = self.undo(array, deadline) {
                tracing::warn!(pool = %self.ctx.pool, %error, "what there is of a new array was not removed");
            }
        })?;
        Ok(true)
    }

    fn number(&self, deadline: &Deadline) -> Result<MutexGuard<'static, ()>> {
        let turn = NUMBERS.try_lock_for(deadline.remaining());
        turn.ok_or_else(|| self.ctx.late("waiting for another array", Overrun))
    }

    /// Starts those that are not running.
    pub fn start(&self, deadline: &Deadline) -> Result<()> {
        self.list().iter().try_for_each(|array| self.start_one(array, deadline))
    }

    fn start_one(&self, array: &Array, deadline: &Deadline) -> Result<()> {
        match self.find(array.uuid)? {
            // A daemon before this one, or the system, has started it.
            Some(now) if now.active => return self.check_trusted(array, &now),
            // Somebody has begun, and waits for more disks.
            Some(begun) => self.stop(&begun, deadline)?,
            None => {}
        }
        let all = self.claimants(|_| true, |s| s.array == array.uuid)?;
        if all.is_empty() {
            return Err(self.ctx.not_found(format!("a disk of array {}", array.uuid)));
        }
        let known = array.disks.iter().any(|d| d.whole);
        let is_whole = |c: &Claimant| array.disks.iter().any(|d| d.whole && d.id == Some(c.says.device));
        // Of those that had everything the one that knows most, and nobody who knows more: that would be one that was
        // in use without them.
        let most = all.iter().filter(|c| !known || is_whole(c)).map(|c| c.says.events).max();
        let Some(most) = most else {
            let here: Vec<&str> = all.iter().map(|c| c.disk.name.as_str()).collect();
            return Err(self.ctx.precondition(format!(
                "of its disks only {} are here, which had been lost before the others: bring {} back",
                here.join(", "),
                missing(array, &all)
            )));
        };
        let believed = all.iter().filter(|c| c.says.events <= most);
        let paths: Vec<String> = believed.map(|c| c.disk.path.display().to_string()).collect();
        // md leaves out those that are behind, and does not start without one that the others expect.
        let first = self.assemble(array, &paths, false, deadline)?;
        if self.is_started(array, deadline)? {
            return Ok(());
        }
        if !known {
            // One that was never seen whole here: nobody knows what is missing.
            return Err(self.ctx.precondition(format!(
                "not all of its disks are here, and which of them can be believed is not known ({}): bring them, or \
                 start the array by hand on those that are (mdadm --assemble --run)",
                first.failure()
            )));
        }
        let output = self.assemble(array, &paths, true, deadline)?;
        if !self.is_started(array, deadline)? {
            return Err(self.ctx.precondition(format!(
                "too few of its disks are here: {} are missing ({})",
                missing(array, &all),
                output.failure()
            )));
        }
        let missing = missing(array, &all);
        tracing::warn!(pool = %self.ctx.pool, missing, "an array is started without all of its disks");
        Ok(())
    }

    /// Whether it runs now; one that was begun and does not is put away again.
    fn is_started(&self, array: &Array, deadline: &Deadline) -> Result<bool> {
        match self.find(array.uuid)? {
            Some(now) if now.active => Ok(true),
            Some(begun) => self.stop(&begun, deadline).map(|()| false),
            None => Ok(false),
        }
    }

    fn assemble(&self, array: &Array, paths: &[String], run: bool, deadline: &Deadline) -> Result<Output> {
        let _turn = self.number(deadline)?;
        let device = md::unused().map_err(self.ctx.io("numbering an array"))?.display().to_string();
        let uuid = format!("--uuid={}", array.uuid);
        let mut args = vec!["--assemble", &device, "--config=none", &uuid];
        if run {
            args.push("--run");
        }
        args.extend(paths.iter().map(String::as_str));
        self.mdadm(&args, deadline)
    }

    /// Whether what runs may be older than what is away: none of its disks was known to have everything.
    fn check_trusted(&self, array: &Array, now: &md::Array) -> Result<()> {
        let known: Vec<&ArrayDisk> = array.disks.iter().filter(|d| d.whole).collect();
        let have = self.whole_in(now)?;
        let knows = |have: &Vec<Uuid>| known.iter().any(|d| d.id.is_some_and(|id| have.contains(&id)));
        if known.is_empty() || have.as_ref().is_some_and(knows) {
            return Ok(());
        }
        let why = if have.is_some() { "had been lost before others" } else { "can't be read" };
        let away: Vec<&str> = known.iter().map(|d| d.name.as_str()).collect();
        Err(self.ctx.precondition(format!(
            "its array {} runs on disks that {why}: stop it (mdadm --stop /dev/{}) and bring {} back",
            now.name,
            now.name,
            away.join(", ")
        )))
    }

    /// Who of an array's disks have everything, as they say themselves. `None`: one of them does not say.
    fn whole_in(&self, now: &md::Array) -> Result<Option<Vec<Uuid>>> {
        let mut have = Vec::new();
        for member in now.members.iter().filter(|m| m.in_sync && m.present) {
            match md::superblock(&member.path()) {
                Ok(Some(says)) => have.push(says.device),
                Ok(None) => return Ok(None),
                Err(error) => {
                    tracing::warn!(pool = %self.ctx.pool, disk = member.name, %error, "a disk can't be read");
                    return Ok(None);
                }
            }
        }
        Ok(Some(have))
    }

    /// Of some disks those that say that they are an array's.
    fn claimants(
        &self,
        among: impl Fn(&DiskInfo) -> bool,
        of: impl Fn(&Superblock) -> bool,
    ) -> Result<Vec<Claimant>> {
        let mut found = Vec::new();
        for disk in self.disks()?.into_iter().filter(among) {
            match md::superblock(&disk.path) {
                Ok(Some(says)) if of(&says) => found.push(Claimant { disk, says }),
                Ok(_) => {}
                // One broken disk must not keep the pools on the others from being opened.
                Err(error) => tracing::warn!(disk = disk.name, %error, "a disk can't be read"),
            }
        }
        Ok(found)
    }

    /// Where they are, in their order.
    pub fn paths(&self) -> Result<Vec<PathBuf>> {
        let path = |array: &Array| match self.find(array.uuid)? {
            Some(now) if now.active => Ok(now.path()),
            _ => Err(self.ctx.not_found(format!("array {}", array.uuid))),
        };
        self.list().iter().map(path).collect()
    }

    fn blank(&self, now: &md::Array, deadline: &Deadline) -> Result<()> {
        let path = now.path();
        block::wipe(&path, deadline).map_err(self.ctx.io(format!("clearing {}", path.display())))
    }

    /// What should be on them is not there: nobody needs them then.
    pub(super) fn put_away(&self, why: &PoolError, deadline: &Deadline) {
        if let PoolError::NotFound { .. } = why
            && let Err(error) = self.export(deadline)
        {
            tracing::warn!(pool = %self.ctx.pool, %error, "arrays that nothing was found on are still running");
        }
    }

    /// Stops them, as they are.
    pub fn export(&self, deadline: &Deadline) -> Result<()> {
        for array in self.list() {
            if let Some(now) = self.find(array.uuid)? {
                self.stop(&now, deadline)?;
            }
        }
        Ok(())
    }

    fn stop(&self, now: &md::Array, deadline: &Deadline) -> Result<()> {
        let device = now.path().display().to_string();
        let patience = deadline.at_most(BUSY);
        loop {
            let output = self.mdadm(&["--stop", &device], deadline)?;
            let there = md::is_there(&now.name).map_err(self.ctx.io("looking at arrays"))?;
            if !there {
                return Ok(());
            }
            if patience.pause(PAUSE).is_err() {
                return Err(self.ctx.exec(output.failure()));
            }
        }
    }

    /// Stops them and makes their disks blank. There is nothing on them any more.
    pub fn remove(&self, deadline: &Deadline) -> Result<()> {
        for array in self.list() {
            self.remove_one(&array, deadline)?;
        }
        self.list.lock().clear();
        Ok(())
    }

    fn remove_one(&self, array: &Array, deadline: &Deadline) -> Result<()> {
        if let Some(now) = self.find(array.uuid)?.filter(|now| now.active) {
            self.blank(&now, deadline)?;
        }
        self.undo(array, deadline)
    }

    /// Takes an array apart on which there is nothing.
    fn undo(&self, array: &Array, deadline: &Deadline) -> Result<()> {
        if let Some(now) = self.find(array.uuid)? {
            self.stop(&now, deadline)?;
        }
        for left in self.claimants(|_| true, |s| s.array == array.uuid)? {
            // What it was made for is gone, so one that can't be cleared is a warning: it shows as not blank.
            if let Err(error) = self.clear(&left.disk.path, &left.says, deadline) {
                tracing::warn!(pool = %self.ctx.pool, device = left.disk.name, %error, "a disk was not wiped");
            }
        }
        Ok(())
    }

    /// Makes a disk blank, if it still says what it said. Names of disks change hands at any moment.
    fn clear(&self, path: &Path, said: &Superblock, deadline: &Deadline) -> Result<()> {
        let shown = path.display();
        let clearing = || self.ctx.io(format!("clearing {shown}"));
        let Some(claimed) = block::take(path).map_err(clearing())? else {
            return Err(self.ctx.precondition(format!("{shown} is used by something in the kernel")));
        };
        let says = md::superblock_of(&claimed).map_err(clearing())?;
        if says.is_none_or(|s| (s.array, s.device) != (said.array, said.device)) {
            return Err(self.ctx.conflict(shown.to_string(), "it is another disk now"));
        }
        block::wipe_all(&claimed, &[], deadline).map_err(clearing())
    }

    /// They as they are now, for the pool's specification: which disks are theirs, and which have everything.
    pub fn known(&self) -> Result<Vec<Array>> {
        let Some(_turn) = self.turn.try_lock() else { return Ok(self.list()) };
        let mut list = self.list();
        if list.is_empty() {
            return Ok(list);
        }
        let all = self.disks()?;
        for array in &mut list {
            let Some(now) = self.find(array.uuid)?.filter(|now| now.active) else { continue };
            // When too many are gone it is what was known before that tells which of them to believe.
            let Some(whole) = self.whole_in(&now)?.filter(|have| !have.is_empty()) else { continue };
            if !health::can_be_read(array, &now) {
                continue;
            }
            let known = array.disks.iter().any(|d| d.whole);
            let mut members = Vec::new();
            // One by one: a member that does not say who it is stays what it was.
            for member in now.members.iter().filter(|m| m.present && !m.faulty && !m.leaving) {
                let Ok(Some(says)) = md::superblock(&member.path()) else { continue };
                note(array, &all, member, says.device);
                members.push(says.device);
            }
            if !known {
                // Of an array from elsewhere, disks that were its long ago are not taken in.
                array.disks.retain(|d| d.id.is_none_or(|id| members.contains(&id)));
            }
            for disk in &mut array.disks {
                disk.whole = disk.id.is_some_and(|id| whole.contains(&id));
            }
        }
        *self.list.lock() = list.clone();
        Ok(list)
    }
}

/// The disks of an array that had everything, and are not here.
fn missing(array: &Array, here: &[Claimant]) -> String {
    let away = |d: &&ArrayDisk| d.whole && !here.iter().any(|c| d.id == Some(c.says.device));
    let names: Vec<&str> = array.disks.iter().filter(away).map(|d| d.name.as_str()).collect();
    if names.is_empty() { "disks".into() } else { names.join(", ") }
}

/// Whether nothing is on an array that was made for a pool.
pub(super) fn prove_blank(ctx: &Context, device: &Path, deadline: &Deadline) -> Result<()> {
    let shown = device.display();
    let found = block::content(device, deadline);
    match found.map_err(|e| ctx.precondition(format!("{shown} can't be proven blank: {e}")))? {
        Content::Blank => Ok(()),
        Content::Held => Err(ctx.precondition(format!("{shown} is used by something in the kernel"))),
        Content::Found(what) => Err(ctx.precondition(format!("{shown} is not blank: {what}"))),
    }
}

/// Notes which of an array's disks a member is.
fn note(array: &mut Array, all: &[DiskInfo], member: &md::Member, id: Uuid) {
    if array.disks.iter().any(|d| d.id == Some(id)) {
        return;
    }
    let Some(disk) = all.iter().find(|d| d.name == member.name) else { return };
    let called = |d: &&mut ArrayDisk| d.id.is_none() && is_called(disk, all, &d.name);
    match array.disks.iter_mut().find(called) {
        Some(known) => known.id = Some(id),
        None => array.disks.push(ArrayDisk { name: disk.lasting_path(), id: Some(id), whole: false }),
    }
}

/// Whether a disk has that name.
fn is_called(disk: &DiskInfo, all: &[DiskInfo], name: &str) -> bool {
    disk.name == name || kernel_disks::find(all, name).ok().flatten().is_some_and(|d| d.name == disk.name)
}

/// The arrays on the disks that are here that were a pool's of that name.
pub(super) fn recognize(ctx: &Context, env: &PoolEnv) -> Result<Vec<Array>> {
    let arrays = Arrays::new(ctx, env, &[]);
    let name = name_of(ctx.pool.as_str());
    Ok(gather(arrays.claimants(|_| true, |s| s.name == name)?))
}

/// The array that a disk belongs to, if it does to one.
pub(super) fn of_disk(ctx: &Context, env: &PoolEnv, asked: &str) -> Result<Option<Array>> {
    let disk = disks::resolve(ctx, env, asked)?;
    let says = md::superblock(&disk.path).map_err(ctx.io(format!("reading {}", disk.path.display())))?;
    let Some(says) = says else { return Ok(None) };
    let arrays = Arrays::new(ctx, env, &[]);
    Ok(gather(arrays.claimants(|_| true, |s| s.array == says.array)?).pop())
}

fn gather(found: Vec<Claimant>) -> Vec<Array> {
    let mut arrays: Vec<Array> = Vec::new();
    for c in found {
        let Some(layout) = layout_of(c.says.level) else { continue };
        let disk = ArrayDisk { name: c.disk.lasting_path(), id: Some(c.says.device), whole: false };
        match arrays.iter_mut().find(|a| a.uuid == c.says.array) {
            Some(array) => array.disks.push(disk),
            None => {
                let (uuid, active) = (c.says.array, c.says.disks);
                arrays.push(Array { uuid, layout, active, disks: vec![disk] });
            }
        }
    }
    arrays
}
