//! The volume group itself: made, recognized, removed; and how LVM's commands are run.
//!
//! Called by the pool. A group is ours if it carries the tag `orlop.pool.<name>`, which is set by the very
//! command that makes it. A group of that name without it is foreign and is never changed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use orlop_api::{ByteSize, Provisioning, VolumeId};
use parking_lot::{Mutex, MutexGuard};
use rustix::io::Errno;

use super::metadata::{self, Section};
use super::report;
use super::tags::NEW;
use crate::kernel::block;
use crate::kernel::dm::ThinMessage;
use crate::kernel::exec::{Output, Tool};
use crate::kernel::{Deadline, disks as kernel_disks, dm};
use crate::model::ThinPool;
use crate::pool::arrays::{self, Arrays};
use crate::pool::context::Context;
use crate::pool::rules::adoptable;
use crate::pool::{Capacity, Change, PoolEnv, PoolError, Result, disks};

/// The thin pool's name. No volume has it: theirs are UUIDs.
pub(super) const THIN: &str = "thin";

/// The unit of all sizes.
pub(super) const EXTENT: ByteSize = ByteSize::MIB;

/// Settings that concern this machine alone, given with every command.
///
/// - No daemon that watches pools is started: this one does.
/// - A full thin pool is an error at once instead of a minute's wait that ends in one.
/// - Disks need not be in a list of LVM's own. But what is in volumes belongs to hosts: a group that one has
///   made in its disk is not this machine's, whatever it is called, and is not even looked at. There are
///   thousands of them. One of the device mapper has the name by which it is known only when udev has looked at it:
///   until then it is left out. Names are accepted for that alone, because each lets in a disk by its other names too.
/// - What is suspended is not waited for: above logical volumes there are devices whose writers may be held just now.
/// - Not every metadata of the last month is kept, which each command would look through. The last one is.
const CONFIG: &str = "activation { monitoring=0 error_when_full=1 } backup { archive=0 } \
     devices { use_devicesfile=0 ignore_suspended_devices=1 \
     global_filter=[\"r|^/dev/zd|\", \"r|^/dev/loop|\", \"r|^/dev/mapper/orlop-|\", \"a|^/dev/mapper/|\", \"r|^/dev/dm-|\"] }";

/// LVM's commands on one volume group, one at a time: they take a lock of the whole group in any case,
/// and one that waits for it in a process of its own costs more than one that waits here.
#[derive(Debug)]
pub(super) struct Group {
    pub ctx: Context,
    lvm: Tool,
    /// With whether a command may have been stopped in the middle: see [`Group::put_right`].
    turn: Mutex<bool>,
    /// Whose turn it is to read the thin pool's metadata: it is held for one reader.
    reading: Mutex<()>,
    /// Its disks, where its metadata is read. Empty: not known yet.
    disks: Mutex<Vec<PathBuf>>,
}

/// One logical volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub lv_name: String,
    /// Bytes.
    pub lv_size: u64,
    pub lv_tags: Vec<String>,
    /// The type of its segments (lvmthin(7)): `thin`, `thin-pool`, `striped`..., or several of them.
    pub lv_type: String,
    /// Whether it may be written to.
    pub writable: bool,
    /// Whether it is one half of a snapshot that is not a thin one.
    pub in_snapshot: bool,
    /// Whether what it has not written itself is read from a volume that is not thin.
    pub external: bool,
}

impl Row {
    pub fn is_thin(&self) -> bool {
        self.lv_type == "thin"
    }

    /// All of its extents are its own, on disks: it stands in no relation to any other.
    pub fn is_plain(&self) -> bool {
        self.lv_type == "striped" && !self.in_snapshot
    }

    /// How its space is reserved, if it can become a volume; otherwise why it can't.
    pub fn adoptable(&self) -> std::result::Result<Provisioning, String> {
        if !self.writable {
            return Err("it is read-only".into());
        }
        if self.external {
            return Err(
                "what it has not written itself is read from another volume (an external origin)".into()
            );
        }
        let provisioning = match (self.is_thin(), self.is_plain()) {
            (true, _) => Provisioning::Thin,
            (_, true) => Provisioning::Thick,
            _ => return Err(format!("it is neither thin nor plain ({})", self.lv_type)),
        };
        adoptable(ByteSize(self.lv_size), EXTENT, provisioning)
    }
}

/// A thin pool's metadata at one instant, for as long as this is there.
#[derive(Debug)]
pub(super) struct HeldMetadata<'g> {
    group: &'g Group,
    pool: String,
    root: u64,
    device: PathBuf,
    is_held: bool,
    _turn: MutexGuard<'g, ()>,
}

impl HeldMetadata<'_> {
    /// The block in which it begins.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// Where it is.
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// Lets it go.
    pub fn release(mut self) -> Result<()> {
        self.is_held = false;
        self.group.release_metadata(&self.pool)
    }
}

impl Drop for HeldMetadata<'_> {
    fn drop(&mut self) {
        if self.is_held
            && let Err(error) = self.group.release_metadata(&self.pool)
        {
            tracing::warn!(pool = self.pool, %error, "metadata stays held, until the pool is opened anew");
        }
    }
}

/// Whose a volume group is.
#[derive(Debug, PartialEq, Eq)]
enum Owner {
    Absent,
    Ours,
    Foreign,
}

impl Group {
    pub fn new(ctx: Context) -> Result<Self> {
        let lvm = Tool::locate("lvm").map_err(|e| ctx.exec(e))?;
        // What activation calls to check a thin pool: without it the pool would not come up again.
        Tool::locate("thin_check").map_err(|e| ctx.exec(e))?;
        Ok(Self { ctx, lvm, turn: Mutex::new(true), reading: Mutex::default(), disks: Mutex::default() })
    }

    pub fn name(&self) -> &str {
        self.ctx.pool.as_str()
    }

    /// The group's or a logical volume's full name.
    pub fn path(&self, lv: &str) -> String {
        format!("{}/{lv}", self.name())
    }

    /// Runs `lvm <command>`. Its status is for the caller to judge.
    pub fn run(&self, command: &str, args: &[&str], deadline: &Deadline) -> Result<Output> {
        let mut unsure = self.turn(deadline)?;
        if !["lvcreate", "lvremove"].contains(&command) {
            return self.execute(command, args, deadline);
        }
        if *unsure {
            self.put_right(deadline)?;
        }
        // Until it is known to have ended well.
        *unsure = true;
        let output = self.execute(command, args, deadline);
        if output.as_ref().is_ok_and(|o| o.code == Some(0)) {
            *unsure = false;
        } else {
            self.let_go()?;
        }
        output
    }

    /// What a command that was stopped in the middle has begun is ended, so that the next one need not do it.
    pub fn make_sure(&self, deadline: &Deadline) -> Result<()> {
        let mut unsure = self.turn(deadline)?;
        if *unsure {
            self.put_right(deadline)?;
            *unsure = false;
        }
        Ok(())
    }

    /// LVM that is killed between suspending an origin and resuming it leaves it so, and its hosts wait for ever.
    pub fn let_go(&self) -> Result<()> {
        let prefix = format!("{}-", escape(self.name()));
        // A longer name of a group has another hyphen there.
        let ours = |name: &String| name.strip_prefix(&prefix).is_some_and(|lv| !lv.starts_with('-'));
        for name in dm::suspended(&prefix)
            .map_err(self.ctx.io("looking for what LVM has left suspended"))?
            .into_iter()
            .filter(ours)
        {
            dm::resume(&name).map_err(self.ctx.io(format!("letting {name} go on")))?;
            tracing::warn!(pool = %self.ctx.pool, name, "a command of LVM that was stopped had left it suspended");
        }
        Ok(())
    }

    /// What a command that was stopped in the middle has begun is ended: by a power cut, or a signal to all there is.
    ///
    /// LVM notes what it has to tell the kernel's thin pool, tells it, and takes the note away. Stopped after the
    /// second, it leaves a note of what is done, by which the next removal thinks that its own message is done too
    /// (read in the source of 2.03.31, and met). The device of that removal then lives on in the pool under a number
    /// that a new volume gets, and with it what was in it. Making a volume has LVM look at its notes first, if the pool
    /// is active. A note of what is not done yet is as it should be: the next command does it too.
    fn put_right(&self, deadline: &Deadline) -> Result<()> {
        self.let_go()?;
        if !self.has_stale_notes(deadline)? {
            return Ok(());
        }
        tracing::warn!(pool = %self.ctx.pool, "a command of LVM was stopped in the middle, and is brought to its end");
        let (thin, scratch) = (self.path(THIN), VolumeId::mint().to_string());
        // It has the name and the tag of what is half made: if it stays, it goes with that. In a full pool it is not
        // made, and what counts is done before that is found out.
        let size = format!("{}b", EXTENT.bytes());
        let make = ["-q", "-y", "--type", "thin", "-an", "-kn", "-V", &size, "-n", &scratch, "--addtag", NEW];
        let made = self.execute("lvcreate", &[&make[..], &["--thinpool", &thin]].concat(), deadline)?;
        if made.code == Some(0) {
            self.execute("lvremove", &["-q", "-y", &self.path(&scratch)], deadline)?;
        }
        if self.has_stale_notes(deadline)? {
            let detail = "still has messages for the kernel of a command that was stopped: look at it with vgcfgbackup";
            return Err(self.ctx.precondition(format!("volume group {} {detail}", self.name())));
        }
        Ok(())
    }

    /// Whether there is a note of what the kernel has been told already.
    fn has_stale_notes(&self, deadline: &Deadline) -> Result<bool> {
        let group = match self.metadata_with(|| self.find_disks_now(deadline)) {
            Ok(group) => group,
            // One that is to be made.
            Err(PoolError::NotFound { .. }) => return Ok(false),
            Err(e) => return Err(e),
        };
        let Some(noted) = noted_transaction(&group) else { return Ok(false) };
        let status = match self.thin_status()? {
            None => {
                let thin = self.path(THIN);
                let up = self.execute("lvchange", &["-q", "-ay", "-K", &thin], deadline)?;
                up.success().map_err(|e| self.ctx.exec(e))?;
                self.thin_status()?
            }
            found => found,
        };
        Ok(status.is_some_and(|s| s.transaction == noted))
    }

    fn thin_status(&self) -> Result<Option<dm::ThinStatus>> {
        Ok(self.thin_device()?.map(|(_, status)| status))
    }

    /// The device of the thin pool, with how it is. `None`: it is not active.
    fn thin_device(&self) -> Result<Option<(String, dm::ThinStatus)>> {
        let device = format!("{}-{THIN}-tpool", escape(self.name()));
        // One in which no volume was ever made has its name without the suffix.
        let plain = device.trim_end_matches("-tpool").to_string();
        for name in [device, plain] {
            let status = dm::thin_status(&name).map_err(self.ctx.io(format!("asking {name}")))?;
            if let Some(status) = status {
                return Ok(Some((name, status)));
            }
        }
        Ok(None)
    }

    /// The number by which the thin pool knows a thin volume, and whether what it does not have itself is read elsewhere.
    pub fn thin_number(&self, lv: &str, deadline: &Deadline) -> Result<(u64, bool)> {
        let metadata = self.metadata(deadline)?;
        let volume = metadata.section("logical_volumes").and_then(|all| all.section(lv));
        let segment =
            volume.and_then(|lv| lv.sections().map(|(_, s)| s).find(|s| s.number("device_id").is_some()));
        segment
            .and_then(|s| Some((s.number("device_id")?, is_external(s))))
            .ok_or_else(|| self.ctx.not_found(format!("thin volume {lv}")))
    }

    /// Has the kernel hold the thin pool's metadata as it is now.
    pub fn hold_metadata(&self, deadline: &Deadline) -> Result<HeldMetadata<'_>> {
        let turn = self.reading.try_lock_for(deadline.remaining());
        let turn = turn
            .ok_or_else(|| self.ctx.late("waiting for the thin pool's metadata", crate::kernel::Overrun))?;
        let absent = || self.ctx.not_found("an active thin pool");
        self.active(deadline)?;
        let (pool, _) = self.thin_device()?.ok_or_else(absent)?;
        let failed = || self.ctx.io(format!("telling {pool} to hold its metadata"));
        let told = match dm::tell_thin(&pool, ThinMessage::Hold) {
            // The turn is ours, so it is what a daemon left behind that was killed, or whose machine lost its power.
            Err(e) if e.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {
                tracing::warn!(%pool, "its metadata was still held: it is let go of");
                self.release_metadata(&pool)?;
                dm::tell_thin(&pool, ThinMessage::Hold)
            }
            told => told,
        };
        told.map_err(failed())?.ok_or_else(absent)?;
        let mut held =
            HeldMetadata { group: self, pool, root: 0, device: PathBuf::new(), is_held: true, _turn: turn };
        let status = self.thin_device()?.and_then(|(_, status)| status.held);
        held.root = status.ok_or_else(|| self.ctx.not_found("metadata that is held"))?;
        let name = self.metadata(deadline)?;
        let name = name
            .section("logical_volumes")
            .and_then(|all| all.section(THIN)?.section("segment1")?.text("metadata"));
        let name = format!("{}-{}", escape(self.name()), escape(name.unwrap_or_default()));
        let device = dm::device(&name).map_err(self.ctx.io(format!("asking {name}")))?;
        held.device = device.ok_or_else(|| self.ctx.not_found(format!("device {name}")))?;
        Ok(held)
    }

    /// What a daemon held that was killed, or whose machine lost its power, is let go of: it is on the disks, and nothing that is
    /// deleted would give back its space. A pool that can't do it now can be read all the same.
    pub fn let_metadata_go(&self) {
        // Somebody reads: it is his.
        let Some(_turn) = self.reading.try_lock() else { return };
        let done = self.thin_device().and_then(|found| match found {
            Some((pool, dm::ThinStatus { held: Some(_), .. })) => {
                tracing::warn!(%pool, "its metadata was still held: it is let go of");
                self.release_metadata(&pool)
            }
            _ => Ok(()),
        });
        if let Err(error) = done {
            tracing::warn!(pool = self.name(), %error, "whether its metadata is held is not known");
        }
    }

    /// The thin pool, active. It is not since the machine started, as long as nothing was opened.
    fn active(&self, deadline: &Deadline) -> Result<Option<dm::ThinStatus>> {
        if let Some(status) = self.thin_status()? {
            return Ok(Some(status));
        }
        self.must("lvchange", &["-q", "-ay", "-K", &self.path(THIN)], deadline)?;
        self.thin_status()
    }

    fn release_metadata(&self, pool: &str) -> Result<()> {
        let told = dm::tell_thin(pool, ThinMessage::LetGo);
        told.map(drop).map_err(self.ctx.io(format!("telling {pool} to hold its metadata no longer")))
    }

    /// The turn to run a command, with whether one may have been stopped in the middle.
    fn turn(&self, deadline: &Deadline) -> Result<MutexGuard<'_, bool>> {
        let turn = self.turn.try_lock_for(deadline.remaining());
        turn.ok_or_else(|| self.ctx.late("waiting for LVM", crate::kernel::Overrun))
    }

    /// Runs a command in the turn that is held.
    fn execute(&self, command: &str, args: &[&str], deadline: &Deadline) -> Result<Output> {
        let args: Vec<&str> = [command, "--config", CONFIG].into_iter().chain(args.iter().copied()).collect();
        self.lvm.run(&args, deadline).map_err(|e| self.ctx.exec(e))
    }

    /// Runs it, and it must succeed.
    pub fn must(&self, command: &str, args: &[&str], deadline: &Deadline) -> Result<Output> {
        self.run(command, args, deadline)?.success().map_err(|e| self.ctx.exec(e))
    }

    /// All logical volumes of the group that are not LVM's own parts of others, by name.
    pub fn rows(&self, deadline: &Deadline) -> Result<Vec<Row>> {
        Ok(rows(&self.metadata(deadline)?))
    }

    /// The newest state of the group's metadata on its disks.
    fn metadata(&self, deadline: &Deadline) -> Result<Section> {
        self.metadata_with(|| self.find_disks(deadline))
    }

    fn metadata_with(&self, find_disks: impl FnOnce() -> Result<Vec<PathBuf>>) -> Result<Section> {
        let known = self.disks.lock().clone();
        if let Some(found) = self.newest(&known)? {
            return Ok(found);
        }
        // Not looked for yet, or the disks have other names now.
        let disks = find_disks()?;
        let found = self.newest(&disks)?;
        *self.disks.lock() = disks;
        found.ok_or_else(|| self.ctx.not_found(format!("volume group {}", self.name())))
    }

    fn find_disks(&self, deadline: &Deadline) -> Result<Vec<PathBuf>> {
        let _turn = self.turn(deadline)?;
        self.find_disks_now(deadline)
    }

    /// Asks LVM for them, in the turn that is held.
    fn find_disks_now(&self, deadline: &Deadline) -> Result<Vec<PathBuf>> {
        let args = ["--reportformat", "json", "-o", "pv_name,vg_name"];
        let output = self.execute("pvs", &args, deadline)?.success().map_err(|e| self.ctx.exec(e))?;
        let devices = report::devices(&self.ctx, &output)?;
        Ok(devices.into_iter().filter(|d| d.vg_name == self.name()).map(|d| d.pv_name.into()).collect())
    }

    fn newest(&self, disks: &[PathBuf]) -> Result<Option<Section>> {
        let (mut newest, mut failed): (Option<Section>, _) = (None, None);
        for disk in disks {
            match metadata::read(disk, self.name()) {
                Ok(Some(found)) => {
                    if newest.as_ref().is_none_or(|n| n.number("seqno") < found.number("seqno")) {
                        newest = Some(found);
                    }
                }
                Ok(None) => {}
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => failed = Some((disk, e)),
            }
        }
        match (newest, failed) {
            (None, Some((disk, e))) => {
                Err(self.ctx.io(format!("reading the metadata on {}", disk.display()))(e))
            }
            (newest, _) => Ok(newest),
        }
    }

    /// Space of the thin pool, as its device tells it.
    pub fn capacity(&self, deadline: &Deadline) -> Result<Capacity> {
        let group = self.metadata(deadline)?;
        let thin = group.section("logical_volumes").and_then(|l| l.section(THIN));
        let chunk = thin.and_then(|t| t.section("segment1")).and_then(|s| s.number("chunk_size"));
        let Some(chunk) = chunk else { return Err(self.ctx.not_found("its thin pool")) };
        let Some(status) = self.active(deadline)? else {
            return Err(self.ctx.not_found("the device of its thin pool"));
        };
        if status.held.is_some() {
            self.let_metadata_go();
        }
        let bytes = |blocks: u64| blocks.saturating_mul(chunk).saturating_mul(512);
        let total = bytes(status.data.1);
        // Rounded up to whole extents, so that what is said to be available is.
        let used = bytes(status.data.0).next_multiple_of(EXTENT.bytes()).min(total);
        let (taken, all) = status.metadata;
        Ok(Capacity {
            total: ByteSize(total),
            used: ByteSize(used),
            available: ByteSize(total - used),
            metadata_percent: (taken.saturating_mul(100).div_ceil(all.max(1))).try_into().ok(),
        })
    }

    fn owner(&self, deadline: &Deadline) -> Result<Owner> {
        // All of them, and looked through here: "no such group" and "failed" have the same status.
        let args = ["--reportformat", "json", "-o", "vg_name,vg_tags"];
        let groups = report::groups(&self.ctx, &self.must("vgs", &args, deadline)?)?;
        Ok(match groups.iter().find(|g| g.vg_name == self.name()) {
            None => Owner::Absent,
            Some(g) if g.vg_tags.split(',').any(|t| t == self.mark()) => Owner::Ours,
            Some(_) => Owner::Foreign,
        })
    }

    fn mark(&self) -> String {
        format!("orlop.pool.{}", self.name())
    }

    fn refuse(&self) -> PoolError {
        self.ctx
            .precondition("there is a volume group of that name that is not ours: it carries no mark of ours")
    }

    /// Finds the group to be ours.
    pub fn find(&self, deadline: &Deadline) -> Result<()> {
        match self.owner(deadline)? {
            Owner::Ours => match self.rows(deadline)?.iter().any(|r| r.lv_name == THIN) {
                true => Ok(()),
                false => Err(self.ctx.precondition("its volume group has no thin pool: make the pool again")),
            },
            Owner::Foreign => Err(self.refuse()),
            Owner::Absent if self.put_metadata_back(deadline)? => match self.owner(deadline)? {
                Owner::Ours => self.find(deadline),
                _ => Err(self.ctx.not_found(format!("volume group {}", self.name()))),
            },
            Owner::Absent => Err(self.ctx.not_found(format!("volume group {}", self.name()))),
        }
    }

    /// What a power cut in the middle of a command has left on the disks so that LVM does not know the group any more. Whether there was
    /// something to put right.
    fn put_metadata_back(&self, deadline: &Deadline) -> Result<bool> {
        let _turn = self.turn(deadline)?;
        let mut put_right = false;
        // LVM itself has no name for a disk whose metadata it can't read.
        for disk in metadata::candidates().map_err(self.ctx.io("looking for disks"))? {
            let done = match metadata::put_back(&disk, self.name(), &self.mark()) {
                Ok(done) => done,
                // It can't be read at all, or is no disk of LVM's that is whole: the pool is missing with it, as it was.
                Err(error) => {
                    tracing::debug!(disk = %disk.display(), %error, "a disk's metadata is not looked at");
                    continue;
                }
            };
            if let Some(metadata::PutBack { seqno }) = done {
                put_right = true;
                tracing::warn!(
                    pool = self.name(),
                    disk = %disk.display(),
                    seqno,
                    "the power went while LVM changed its metadata, and the change did not come onto the disk: it is as if it had \
                     not been begun"
                );
            }
        }
        Ok(put_right)
    }

    /// Makes the group on blank disks with its thin pool, or what a crash left out of that.
    pub fn ensure(
        &self,
        env: &PoolEnv,
        asked: &[String],
        arrays: &Arrays,
        thin: ThinPool,
        deadline: &Deadline,
    ) -> Result<()> {
        let mut owner = self.owner(deadline)?;
        let mut made = false;
        if owner == Owner::Absent && !arrays.is_empty() {
            // It may be on arrays that a crash left, and that are not running.
            made = arrays.ensure(deadline)?;
            owner = self.owner(deadline)?;
        }
        let ensured = self.ensure_on(owner, env, asked, arrays, thin, deadline);
        if ensured.is_err()
            && made
            && let Err(error) = arrays.remove(deadline)
        {
            tracing::warn!(pool = self.name(), %error, "new arrays were not removed");
        }
        ensured
    }

    fn ensure_on(
        &self,
        owner: Owner,
        env: &PoolEnv,
        asked: &[String],
        arrays: &Arrays,
        thin: ThinPool,
        deadline: &Deadline,
    ) -> Result<()> {
        match owner {
            Owner::Ours => {}
            Owner::Foreign => return Err(self.refuse()),
            Owner::Absent => {
                let paths = self.prove_blank(env, asked, &arrays.paths()?, deadline)?;
                let names: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
                let mark = self.mark();
                // Labels are tags, and tags are kept in the group's own metadata: room for many.
                let mut args = vec!["-q", "-y", "--metadatasize", "64m", "-s", "1m", "--addtag", &mark];
                args.extend(["--setautoactivation", "n", self.name()]);
                args.extend(names.iter().map(String::as_str));
                let made = self.must("vgcreate", &args, deadline);
                if made.is_err() && self.owner(deadline)? != Owner::Ours {
                    // Proven blank above: what is on them now is this attempt's.
                    self.clear(&paths, deadline);
                    return made.map(drop);
                }
            }
        }
        if self.rows(deadline)?.iter().any(|r| r.lv_name == THIN) {
            return Ok(());
        }
        let size = thin.size.map(|s| format!("{}b", s.bytes()));
        let metadata = thin.metadata.map(|s| format!("{}b", s.bytes()));
        let mut args = vec!["-q", "-y", "--type", "thin-pool", "-n", THIN, "-Zy", "--discards", "passdown"];
        match &size {
            Some(size) => args.extend(["-L", size]),
            // The rest is for metadata that grows, and for LVM to repair it in.
            None => args.extend(["-l", "95%FREE"]),
        }
        if let Some(metadata) = &metadata {
            args.extend(["--poolmetadatasize", metadata]);
        }
        args.push(self.name());
        let made = self.must("lvcreate", &args, deadline);
        if let Err(error) = made {
            if self.rows(deadline)?.iter().any(|r| r.lv_name == THIN) {
                return Ok(());
            }
            // Nothing is in it: leave the disks as they were.
            if let Err(e) = self.remove(deadline) {
                tracing::warn!(pool = self.name(), error = %e, "a new volume group was not removed");
            }
            return Err(error);
        }
        Ok(())
    }

    fn prove_blank(
        &self,
        env: &PoolEnv,
        asked: &[String],
        arrays: &[PathBuf],
        deadline: &Deadline,
    ) -> Result<Vec<PathBuf>> {
        let blank = disks::prove_blank(&self.ctx, env, asked, deadline)?;
        arrays.iter().try_for_each(|path| arrays::prove_blank(&self.ctx, path, deadline))?;
        Ok(blank.into_iter().map(|d| d.path).chain(arrays.iter().cloned()).collect())
    }

    /// Whether a disk or an array belongs to it.
    pub fn has(&self, path: &Path, deadline: &Deadline) -> Result<bool> {
        Ok(is_among(path, &self.find_disks(deadline)?))
    }

    /// Takes in disks and arrays that it does not have, and gives its thin pool of all that there is as much as a new
    /// one is given.
    pub fn extend(
        &self,
        env: &PoolEnv,
        asked: &[String],
        arrays: &[PathBuf],
        deadline: &Deadline,
    ) -> Result<Change> {
        let have = self.find_disks(deadline)?;
        let has = |path: &PathBuf| is_among(path, &have);
        let mut new = Vec::new();
        for name in asked {
            if !has(&disks::resolve(&self.ctx, env, name)?.path) {
                new.push(name.clone());
            }
        }
        let arrays: Vec<PathBuf> = arrays.iter().filter(|path| !has(path)).cloned().collect();
        let mut change = Change::Unchanged;
        if !new.is_empty() || !arrays.is_empty() {
            let paths = self.prove_blank(env, &new, &arrays, deadline)?;
            let names: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
            let mut args = vec!["-q", "-y", "--metadatasize", "64m", self.name()];
            args.extend(names.iter().map(String::as_str));
            self.must("vgextend", &args, deadline)?;
            self.disks.lock().clear();
            change = Change::Done;
        }
        if let Some(more) = growth(&self.metadata(deadline)?) {
            let path = self.path(THIN);
            // What keeps account of the blocks first: without room there, more blocks are of no use.
            if more.metadata > 0 {
                let by = format!("+{}b", more.metadata);
                self.must("lvextend", &["-q", "-y", "--poolmetadatasize", &by, &path], deadline)?;
            }
            let by = format!("+{}", more.extents);
            self.must("lvextend", &["-q", "-y", "-l", &by, &path], deadline)?;
            change = Change::Done;
        }
        Ok(change)
    }

    /// Removes a group that has nothing in it but its thin pool, and makes its disks blank again.
    pub fn remove(&self, deadline: &Deadline) -> Result<()> {
        match self.owner(deadline)? {
            Owner::Absent => return Ok(()),
            Owner::Foreign => return Err(self.refuse()),
            Owner::Ours => {}
        }
        let others: Vec<String> =
            self.rows(deadline)?.into_iter().map(|r| r.lv_name).filter(|n| n != THIN).collect();
        if let Some(first) = others.first() {
            let count = others.len();
            return Err(self
                .ctx
                .precondition(format!("it still has {count} logical volumes in it: {first}")));
        }
        let paths = self.find_disks(deadline)?;
        self.must("vgremove", &["-q", "-y", self.name()], deadline)?;
        self.disks.lock().clear();
        if self.owner(deadline)? != Owner::Absent {
            return Err(self.ctx.conflict(format!("volume group {}", self.name()), "it is still there"));
        }
        self.clear(&paths, deadline);
        Ok(())
    }

    /// The group is gone already, so a disk that can't be cleared is a warning: it shows as not blank.
    fn clear(&self, paths: &[PathBuf], deadline: &Deadline) {
        let all = kernel_disks::all(true).unwrap_or_default();
        for path in paths {
            let name = path.display().to_string();
            if let Err(error) = self.run("pvremove", &["-q", "-y", &name], deadline) {
                tracing::warn!(pool = self.name(), device = name, %error, "a disk was not wiped");
            }
            // Only whole disks: nothing else is given to a group.
            if let Ok(real) = std::fs::canonicalize(path)
                && all.iter().any(|d| d.path == real)
                && let Err(error) = block::wipe(&real, deadline)
            {
                tracing::warn!(pool = self.name(), device = name, %error, "a disk was not wiped");
            }
        }
    }
}

fn is_among(path: &Path, devices: &[PathBuf]) -> bool {
    let number = block::number(path).ok();
    number.is_some() && devices.iter().any(|d| block::number(d).ok() == number)
}

/// The number of the change that LVM has noted for the kernel's thin pool (`message1` and so on in its segment), if it has
/// noted one.
fn noted_transaction(group: &Section) -> Option<u64> {
    let segment = group.section("logical_volumes")?.section(THIN)?.section("segment1")?;
    let noted = segment.sections().any(|(name, _)| name.starts_with("message"));
    noted.then(|| segment.number("transaction_id"))?
}

/// A name as it is part of a device mapper's name.
pub(super) fn escape(name: &str) -> String {
    name.replace('-', "--")
}

/// What a thin pool is given when its group has got more disks.
#[derive(Debug, PartialEq, Eq)]
struct Growth {
    /// Of the group.
    extents: u64,
    /// Bytes.
    metadata: u64,
}

/// `None`: it has what it should.
fn growth(group: &Section) -> Option<Growth> {
    /// What lvmthin(7) has as the most, less an extent.
    const MOST_METADATA: u64 = 15 << 30;
    let extent = group.number("extent_size")?.saturating_mul(512);
    let extents = |lv: &Section| lv.sections().filter_map(|(_, s)| s.number("extent_count")).sum::<u64>();
    let volumes = group.section("logical_volumes")?;
    let all: u64 =
        group.section("physical_volumes")?.sections().filter_map(|(_, d)| d.number("pe_count")).sum();
    // What has extents on disks: thin ones have theirs in the pool.
    let plain = |lv: &&Section| lv.sections().any(|(_, s)| s.text("type") == Some("striped"));
    let taken: u64 = volumes.sections().map(|(_, lv)| lv).filter(plain).map(extents).sum();
    let thin = volumes.section(THIN)?;
    let metadata = thin.section("segment1")?.text("metadata")?;
    let (have, kept) = (extents(thin), extents(volumes.section(metadata)?));
    let want = all.saturating_mul(95) / 100;
    // The last hundredth is not worth a change.
    if have == 0 || want <= have.saturating_add(all / 100) {
        return None;
    }
    let most = MOST_METADATA / extent.max(1);
    let want_kept =
        u64::try_from(u128::from(kept) * u128::from(want) / u128::from(have)).ok()?.min(most).max(kept);
    // There is a spare of it, which grows with it.
    let free = all.saturating_sub(taken).saturating_sub(2 * (want_kept - kept));
    let more = (want - have).min(free);
    (more > 0).then_some(Growth { extents: more, metadata: (want_kept - kept).saturating_mul(extent) })
}

fn is_external(segment: &Section) -> bool {
    segment.text("external_origin").is_some()
}

fn rows(group: &Section) -> Vec<Row> {
    let extent = group.number("extent_size").unwrap_or(0).saturating_mul(512);
    let volumes: Vec<(&str, &Section)> =
        group.section("logical_volumes").into_iter().flat_map(Section::sections).collect();
    let segments = volumes.iter().flat_map(|(_, lv)| lv.sections());
    let snapshots: Vec<&Section> =
        segments.map(|(_, s)| s).filter(|s| s.text("type") == Some("snapshot")).collect();
    let row = |(name, lv): (&str, &Section)| {
        let segments = || lv.sections().map(|(_, s)| s);
        let extents: u64 = segments().filter_map(|s| s.number("extent_count")).sum();
        let types: BTreeSet<&str> = segments().filter_map(|s| s.text("type")).collect();
        let halves = |s: &&Section| [s.text("origin"), s.text("cow_store")].contains(&Some(name));
        Row {
            lv_name: name.to_string(),
            lv_size: extents.saturating_mul(extent),
            lv_tags: lv.texts("tags").map(str::to_string).collect(),
            lv_type: types.into_iter().collect::<Vec<_>>().join(","),
            writable: lv.texts("status").any(|s| s == "WRITE"),
            in_snapshot: snapshots.iter().any(halves),
            external: segments().any(is_external),
        }
    };
    let visible = volumes.iter().filter(|(_, lv)| lv.texts("status").any(|s| s == "VISIBLE"));
    visible.map(|v| row(*v)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A group with one logical volume `x` of that many extents and these segments, beside those of `more`.
    fn row(extents: u64, types: &[&str], status: &str, more: &str) -> Row {
        let segments: String = types
            .iter()
            .enumerate()
            .map(|(n, t)| format!("segment{} {{ extent_count = {extents} type = \"{t}\" }}\n", n + 1))
            .collect();
        let text = format!(
            "g {{ extent_size = 2048 logical_volumes {{ x {{ status = [{status}] {segments} }} {more} }} }}"
        );
        let all = metadata::parse(&text).unwrap();
        let mut rows = rows(all.section("g").unwrap());
        rows.retain(|r| r.lv_name == "x");
        rows.remove(0)
    }

    #[test]
    fn a_thin_pool_grows_with_its_group() {
        let group = |disks: &str| {
            let text = format!(
                r#"g {{ extent_size = 2048 physical_volumes {{ {disks} }} logical_volumes {{
                    thin {{ segment1 {{ extent_count = 950 type = "thin-pool" metadata = "thin_tmeta" }} }}
                    thin_tdata {{ segment1 {{ extent_count = 950 type = "striped" }} }}
                    thin_tmeta {{ segment1 {{ extent_count = 4 type = "striped" }} }}
                    lvol0_pmspare {{ segment1 {{ extent_count = 4 type = "striped" }} }}
                    x {{ segment1 {{ extent_count = 500 type = "thin" }} }} }} }}"#
            );
            growth(metadata::parse(&text).unwrap().section("g").unwrap())
        };
        assert_eq!(group("pv0 { pe_count = 1000 }"), None);
        let more = group("pv0 { pe_count = 1000 } pv1 { pe_count = 1000 }");
        assert_eq!(more, Some(Growth { extents: 950, metadata: 4 << 20 }));
    }

    #[test]
    fn notes_for_the_kernel_are_seen() {
        let group = |more: &str| {
            let text = format!(
                r#"g {{ extent_size = 2048 logical_volumes {{
                    thin {{ segment1 {{ extent_count = 950 type = "thin-pool" transaction_id = 7 {more} }} }}
                    x {{ segment1 {{ extent_count = 500 type = "thin" device_id = 1 }} }} }} }}"#
            );
            noted_transaction(metadata::parse(&text).unwrap().section("g").unwrap())
        };
        assert_eq!(group(""), None);
        assert_eq!(group("message1 { delete = 3 }"), Some(7));
        assert_eq!(group("message1 { create = \"x\" } message2 { delete = 3 }"), Some(7));
        let none = metadata::parse("g { extent_size = 2048 }").unwrap();
        assert_eq!(noted_transaction(none.section("g").unwrap()), None);
    }

    #[test]
    fn thin_and_plain_ones_can_be_adopted() {
        const RW: &str = r#""READ", "WRITE", "VISIBLE""#;
        let can = |types: &[&str]| row(4, types, RW, "").adoptable();
        assert_eq!(can(&["thin"]), Ok(Provisioning::Thin));
        assert_eq!(can(&["striped", "striped"]), Ok(Provisioning::Thick));
        assert_eq!(row(4, &["striped", "striped"], RW, "").lv_size, 8 << 20);
        for types in [&["thin-pool"] as &[&str], &["raid1"], &["striped", "mirror"], &[]] {
            assert!(can(types).is_err(), "{types:?}");
        }
        // Half of it is another one's.
        let mixed = r#"thin" external_origin = "plain" device_id = 3 other = ""#;
        assert!(row(4, &[mixed], RW, "").external);
        assert!(can(&[mixed]).is_err_and(|why| why.contains("external origin")));
        // Both halves of a snapshot that is not a thin one.
        for half in ["origin", "cow_store"] {
            let other = if half == "origin" { "cow_store" } else { "origin" };
            let more = format!(
                r#"snapshot0 {{ status = ["READ"] segment1 {{ extent_count = 4 type = "snapshot" {half} = "x" {other} = "y" }} }}"#
            );
            assert!(row(4, &["striped"], RW, &more).adoptable().is_err(), "{half}");
        }
        assert!(row(0, &["striped"], RW, "").adoptable().is_err());
        assert!(row(4, &["striped"], r#""READ", "VISIBLE""#, "").adoptable().is_err());
    }
}
