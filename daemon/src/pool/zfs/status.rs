//! How a zpool's disks are, and what is done to them.
//!
//! Called by the pool. That all is well is read from a file that the module keeps (`kstat`); details come
//! from `zpool status -j`, whose form zpool-status(8) promises. Nothing is decided by what a command says on
//! stderr.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use orlop_api::{PoolDisk, PoolHealth, PoolHealthState, PoolLayout, PoolScan, PoolScanKind, PoolScanState};
use parking_lot::Mutex;
use serde::{Deserialize, Deserializer};

use super::labels::{self, Left};
use super::spares::{Step, Watch, stand_ins};
use super::turns::Turns;
use crate::kernel::Deadline;
use crate::kernel::disks::{self, DiskInfo, Presence};
use crate::kernel::exec::Tool;
use crate::kernel::lzc;
use crate::model::PoolChange;
use crate::pool::context::Context;
use crate::pool::disks::prove_blank;
use crate::pool::{Change, PoolEnv, Result};

/// How long a zpool that says it is online is believed: one with errors on a disk says so too.
const DETAILS: Duration = Duration::from_secs(300);

/// How long ZFS may take to open a zpool's disks anew.
const REOPEN: Duration = Duration::from_secs(20);

/// What ZFS says of disks that it has lost.
const LOST: [&str; 2] = ["unavail", "removed"];

/// The words for zpools that can't do anything.
const FAILED: [&str; 4] = ["SUSPENDED", "UNAVAIL", "FAULTED", "REMOVED"];

/// What `zpool status -j --json-int` says, as far as it is asked.
#[derive(Debug, Deserialize)]
struct Status {
    pools: HashMap<String, Zpool>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Zpool {
    pub(super) state: String,
    #[serde(default, deserialize_with = "count")]
    pool_guid: u64,
    /// The transaction group in which its configuration was written last.
    #[serde(default, deserialize_with = "count")]
    txg: u64,
    #[serde(default)]
    status: Option<String>,
    #[serde(default)]
    action: Option<String>,
    #[serde(default, deserialize_with = "count")]
    error_count: u64,
    #[serde(default)]
    scan_stats: Option<Scan>,
    #[serde(default)]
    vdevs: HashMap<String, Vdev>,
    #[serde(default)]
    spares: HashMap<String, Vdev>,
}

#[derive(Debug, Deserialize)]
struct Scan {
    function: String,
    state: String,
    #[serde(default, deserialize_with = "count")]
    end_time: u64,
    #[serde(default, deserialize_with = "count")]
    to_examine: u64,
    #[serde(default, deserialize_with = "count")]
    issued: u64,
    #[serde(default, deserialize_with = "count")]
    errors: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Vdev {
    name: String,
    pub(super) vdev_type: String,
    #[serde(deserialize_with = "word")]
    pub(super) state: String,
    #[serde(default)]
    path: Option<String>,
    #[serde(default, deserialize_with = "count")]
    pub(super) guid: u64,
    #[serde(default, deserialize_with = "count")]
    read_errors: u64,
    #[serde(default, deserialize_with = "count")]
    write_errors: u64,
    #[serde(default, deserialize_with = "count")]
    checksum_errors: u64,
    #[serde(default)]
    pub(super) vdevs: HashMap<String, Vdev>,
}

/// The state of a part, in the word that people are told: for programs ZFS names the same by what led to it.
fn word<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<String, D::Error> {
    let state = String::deserialize(from)?;
    Ok(if state == "CANT_OPEN" { "UNAVAIL".into() } else { state })
}

/// A number, or a text that is one: it depends on the version which of them is said.
fn count<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u64),
        Text(String),
    }
    Ok(match Either::deserialize(from)? {
        Either::Number(n) => n,
        Either::Text(t) => t.parse().unwrap_or(0),
    })
}

/// One disk as the zpool knows it.
#[derive(Debug)]
struct Leaf {
    guid: u64,
    /// Of the partition that the zpool made on it.
    path: String,
    /// Where it is being rebuilt, or has a spare in its place: `replacing-0`, `spare-0`.
    replacing: Option<String>,
    shown: PoolDisk,
}

fn ordered(vdevs: &HashMap<String, Vdev>) -> Vec<&Vdev> {
    let mut all: Vec<&Vdev> = vdevs.values().collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

impl Vdev {
    /// Its parts, ordered by name.
    pub(super) fn children(&self) -> Vec<&Vdev> {
        ordered(&self.vdevs)
    }

    /// What `zpool` takes for it: its path, or the name of one that has none.
    pub(super) fn place(&self) -> &str {
        self.path.as_deref().unwrap_or(&self.name)
    }

    pub(super) fn errors(&self) -> u64 {
        self.read_errors.saturating_add(self.write_errors).saturating_add(self.checksum_errors)
    }

    fn leaves(&self, part: Option<&str>, all: &[DiskInfo], found: &mut Vec<Leaf>) {
        if self.vdevs.is_empty() && self.vdev_type != "root" {
            if self.vdev_type != "dspare" {
                found.push(self.leaf(part, all));
            }
            return;
        }
        // `replacing-0` and `spare-0` are inside of the part whose disk is being replaced.
        let inner = if self.vdev_type == "root" || part.is_some() { part } else { Some(self.name.as_str()) };
        let first = found.len();
        for child in self.children() {
            child.leaves(inner, all, found);
        }
        if ["replacing", "spare"].contains(&self.vdev_type.as_str()) {
            let together = found[first..].iter_mut().filter(|l| l.replacing.is_none());
            together.for_each(|l| l.replacing = Some(self.name.clone()));
        }
    }

    fn leaf(&self, part: Option<&str>, all: &[DiskInfo]) -> Leaf {
        let path = self.path.clone().unwrap_or_else(|| self.name.clone());
        let state = self.state.to_lowercase();
        // A path that was another disk's once says nothing of what is there now.
        let there = !["unavail", "removed", "faulted"].contains(&state.as_str());
        let disk = disk_of(&path, all).filter(|_| there);
        let name = match disk {
            Some(d) => d.lasting_path(),
            None if self.guid != 0 => self.guid.to_string(),
            None => path.clone(),
        };
        let shown = PoolDisk {
            name,
            was: disk.is_none().then(|| path.clone()),
            part: part.map(str::to_string),
            state,
            read_errors: self.read_errors,
            write_errors: self.write_errors,
            checksum_errors: self.checksum_errors,
        };
        Leaf { guid: self.guid, path, replacing: None, shown }
    }
}

impl Leaf {
    fn holds_data(&self) -> bool {
        self.shown.part.as_deref() != Some("spares")
    }
}

/// How a zpool is laid out, by the names of its parts: `mirror-0`, `raidz2-0`, `draid1:2d:4c:0s-0`.
fn layout(leaves: &[Leaf]) -> PoolLayout {
    let parts = leaves.iter().filter_map(|l| l.shown.part.as_deref()).filter(|p| *p != "spares");
    let mut found = parts.filter_map(|part| {
        let kind = part.split(['-', ':']).next()?;
        PoolLayout::ALL.into_iter().find(|l| l.as_str() == kind)
    });
    found.next_back().unwrap_or_default()
}

/// The whole disk that a path or a partition's path is on.
fn disk_of<'a>(path: &str, all: &'a [DiskInfo]) -> Option<&'a DiskInfo> {
    let real = std::fs::canonicalize(path).ok()?;
    let name = real.file_name()?.to_str()?;
    all.iter().find(|d| d.name == name || d.partitions.iter().any(|p| p == name))
}

impl Zpool {
    fn leaves(&self, all: &[DiskInfo]) -> Vec<Leaf> {
        let mut found = Vec::new();
        for vdev in self.vdevs.values() {
            vdev.leaves(None, all, &mut found);
        }
        found.extend(self.spares().into_iter().map(|s| s.leaf(Some("spares"), all)));
        found
    }

    /// The paths of its disks that nothing stands in for.
    fn alone(&self) -> Vec<String> {
        let here =
            |l: &Leaf| l.shown.part.is_none() && ["online", "degraded"].contains(&l.shown.state.as_str());
        self.leaves(&[]).into_iter().filter(here).map(|l| l.path).collect()
    }

    /// What it is made of, ordered by name.
    pub(super) fn parts(&self) -> Vec<&Vdev> {
        ordered(&self.vdevs)
    }

    /// Its spares, ordered by name.
    pub(super) fn spares(&self) -> Vec<&Vdev> {
        ordered(&self.spares)
    }

    pub(super) fn is_rebuilding(&self) -> bool {
        let running = |s: PoolScan| s.kind == PoolScanKind::Rebuild && s.state == PoolScanState::Running;
        self.scan().is_some_and(running)
    }

    fn scan(&self) -> Option<PoolScan> {
        let scan = self.scan_stats.as_ref()?;
        let kind = match scan.function.as_str() {
            "SCRUB" => PoolScanKind::Scrub,
            "RESILVER" => PoolScanKind::Rebuild,
            _ => return None,
        };
        let state = match scan.state.as_str() {
            "SCANNING" => PoolScanState::Running,
            "FINISHED" => PoolScanState::Finished,
            _ => PoolScanState::Stopped,
        };
        let running = state == PoolScanState::Running;
        let percent = (u128::from(scan.issued.min(scan.to_examine)) * 100)
            .checked_div(u128::from(scan.to_examine))
            .and_then(|p| u8::try_from(p).ok());
        let ended = i64::try_from(scan.end_time).ok().filter(|t| *t > 0 && !running);
        Some(PoolScan {
            kind,
            state,
            percent: percent.filter(|_| running),
            errors: scan.errors,
            ended: ended.and_then(|t| Timestamp::from_second(t).ok()),
        })
    }

    pub(super) fn health(&self, all: &[DiskInfo]) -> PoolHealth {
        let disks: Vec<PoolDisk> = self.leaves(all).into_iter().map(|l| l.shown).collect();
        let wrong = |d: &PoolDisk| {
            !["online", "avail", "inuse"].contains(&d.state.as_str())
                || d.read_errors + d.write_errors + d.checksum_errors > 0
        };
        let (scan, rebuilding) = (self.scan(), self.is_rebuilding());
        let state = match self.state.as_str() {
            "ONLINE" if self.error_count > 0 => PoolHealthState::Failed,
            // Until it is rebuilt, a disk does not have what it should.
            "ONLINE" if rebuilding || disks.iter().any(wrong) => PoolHealthState::Degraded,
            "ONLINE" => PoolHealthState::Ok,
            "DEGRADED" if self.error_count == 0 => PoolHealthState::Degraded,
            _ => PoolHealthState::Failed,
        };
        let mut bad: Vec<String> = disks.iter().filter(|d| wrong(d)).map(describe).collect();
        for (disk, spare) in stand_ins(self) {
            bad.push(format!("the place of disk {} is taken by spare {}", disk.place(), spare.place()));
        }
        if rebuilding {
            bad.push("a disk is being rebuilt".into());
        }
        let words =
            [(!bad.is_empty()).then(|| bad.join("; ")), one_line(&self.status), one_line(&self.action)];
        let reason = words.into_iter().flatten().collect::<Vec<_>>().join(". ");
        PoolHealth {
            state,
            reason: (state != PoolHealthState::Ok).then_some(reason),
            errors: self.error_count,
            scan,
            disks,
        }
    }
}

fn describe(d: &PoolDisk) -> String {
    let errors = d.read_errors + d.write_errors + d.checksum_errors;
    let was = d.was.as_ref().map(|w| format!(" (was {w})")).unwrap_or_default();
    let with = if errors > 0 { format!(" with {errors} errors") } else { String::new() };
    format!("disk {}{was} is {}{with}", d.name, d.state)
}

fn one_line(text: &Option<String>) -> Option<String> {
    let text = text.as_ref()?.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = text.trim_end_matches('.');
    (!text.is_empty()).then(|| text.to_string())
}

/// How the disks of a zpool are, and how they are changed.
#[derive(Debug)]
pub(super) struct Vdevs {
    ctx: Context,
    env: PoolEnv,
    zpool: Tool,
    /// When details were read last.
    read: Mutex<Option<Instant>>,
    /// Which disks are lost, and since when.
    watch: Mutex<Watch>,
    /// The disks that it has not lost and can't do without, as ZFS has said last, by their paths: `None` until there is
    /// something at the path, because udev makes links in its own time.
    alone: Mutex<HashMap<String, Option<Presence>>>,
    /// The paths of disks that were seen to go and are not well again, whatever ZFS says of them: one that it probed
    /// before its device was gone has had too many errors for it.
    gone: Mutex<HashSet<String>>,
    /// Its last transaction groups, as the module told when it was first seen not to do anything any more. It goes on
    /// to count, and forgets.
    groups: Mutex<Option<String>>,
    /// Why it does not go on although its disks are there.
    held_back: Mutex<Option<String>>,
}

impl Vdevs {
    pub fn new(ctx: &Context, env: &PoolEnv) -> Result<Self> {
        let zpool = Tool::locate("zpool").map_err(|e| ctx.exec(e))?;
        Ok(Self {
            ctx: ctx.clone(),
            env: env.clone(),
            zpool,
            read: Mutex::default(),
            watch: Mutex::default(),
            alone: Mutex::default(),
            gone: Mutex::default(),
            groups: Mutex::default(),
            held_back: Mutex::default(),
        })
    }

    fn disks(&self) -> Result<Vec<DiskInfo>> {
        disks::all(self.env.loops_as_disks).map_err(self.ctx.io("listing disks"))
    }

    fn status(&self, deadline: &Deadline) -> Result<Zpool> {
        let name = self.ctx.pool.as_str();
        let args = ["status", "-j", "--json-int", "-P", "-p", name];
        let output = self.zpool.run(&args, deadline).and_then(|o| o.success());
        let output = output.map_err(|e| self.ctx.exec(e))?;
        let text = output.text().map_err(|e| self.ctx.exec(e))?;
        let mut status: Status =
            serde_json::from_str(text).map_err(|e| self.ctx.exec(output.unparsed(&e)))?;
        let zpool = status.pools.remove(name);
        let zpool = zpool.ok_or_else(|| self.ctx.not_found(format!("zpool {name}")))?;
        let mut alone = self.alone.lock();
        // One that is known already stays what it was: if its path leads elsewhere now, that is to be noticed.
        let known = std::mem::take(&mut *alone);
        let seen = |path: String| (known.get(&path).cloned().flatten(), path);
        *alone = zpool.alone().into_iter().map(seen).map(|(disk, path)| (path, disk)).collect();
        drop(alone);
        Ok(zpool)
    }

    /// What the module keeps of it in a file. `None`: it does not say.
    fn kept(&self, file: &str) -> Option<String> {
        let path = Path::new("/proc/spl/kstat/zfs").join(self.ctx.pool.as_str()).join(file);
        std::fs::read_to_string(path).ok()
    }

    /// Its state in one word. `None`: the module does not say.
    fn word(&self) -> Option<String> {
        Some(self.kept("state")?.trim().to_string())
    }

    /// Those that are gone of the disks that it can't do without, and of which ZFS has not said so yet.
    fn newly_gone(&self) -> Vec<String> {
        let mut gone = Vec::new();
        for (path, disk) in self.alone.lock().iter_mut() {
            if disk.is_none() {
                *disk = Presence::of(Path::new(path)).ok();
            }
            if disk.as_ref().is_some_and(Presence::is_over) {
                gone.push(path.clone());
            }
        }
        gone
    }

    /// Tells ZFS of disks that are gone and that nothing stands in for. By itself it learns of it when it writes to one,
    /// and then tries for ever to write what it has begun: it suspends the zpool only when it is told. Where others
    /// stand in it goes on by itself, and opening them all anew would hold it up.
    pub fn notice_losses(&self) {
        let gone = self.newly_gone();
        if gone.is_empty() {
            return;
        }
        let pool = &self.ctx.pool;
        // One that is suspended already can't be told.
        if self.note_word().is_none() {
            let told = match lzc::get() {
                Some(lzc) => lzc.reopen(pool.as_str()).map_err(|e| e.to_string()),
                None => {
                    let deadline = Deadline::after(REOPEN);
                    self.run(&["reopen", "-n", pool.as_str()], &deadline).map_err(|e| e.to_string())
                }
            };
            if let Err(error) = told {
                tracing::warn!(%pool, error, "ZFS could not be told that a disk is gone");
                return;
            }
        }
        // Once for each loss: those that are left are asked for by the next status.
        self.alone.lock().retain(|path, _| !gone.contains(path));
        self.gone.lock().extend(gone);
        self.note_word();
    }

    /// Whether it can do anything at present: with its word for why not.
    fn note_word(&self) -> Option<String> {
        let failed = self.word().filter(|word| FAILED.contains(&word.as_str()));
        Turns::of_machine().set_failed(&self.ctx.pool, failed.is_some());
        let mut groups = self.groups.lock();
        match &failed {
            None => (*groups, *self.held_back.lock()) = (None, None),
            Some(_) if groups.is_none() => *groups = self.kept("txgs"),
            Some(_) => {}
        }
        failed
    }

    /// An error if it can't do anything at present: what is asked of ZFS then does not end, and may keep what all
    /// other zpools wait for. Costs a look at two files.
    pub fn must_answer(&self) -> Result<()> {
        self.notice_losses();
        match self.note_word() {
            None => Ok(()),
            Some(word) => Err(self.ctx.failed(match &*self.held_back.lock() {
                Some(why) => format!("ZFS can't use its disks ({word}): {why}"),
                None => format!(
                    "ZFS can't use its disks ({word}): put back what is lost, or start the machine again without it"
                ),
            })),
        }
    }

    pub fn health(&self, last: Option<&PoolHealth>, deadline: &Deadline) -> Result<PoolHealth> {
        self.notice_losses();
        if let Some(last) = last
            && last.state == PoolHealthState::Ok
            && last.scan.as_ref().is_none_or(|s| s.state != PoolScanState::Running)
            && self.read.lock().is_some_and(|at| at.elapsed() < DETAILS)
            && self.word().as_deref() == Some("ONLINE")
        {
            return Ok(last.clone());
        }
        let mut health = self.status(deadline)?.health(&self.disks()?);
        self.note_word();
        if let Some(why) = &*self.held_back.lock() {
            health.reason =
                Some(health.reason.map_or_else(|| why.clone(), |reason| format!("{why}. {reason}")));
        }
        *self.read.lock() = Some(Instant::now());
        Ok(health)
    }

    pub fn change(&self, change: &PoolChange, deadline: &Deadline) -> Result<Change> {
        self.must_answer()?;
        match change {
            PoolChange::Expand { disks } => self.expand(disks, deadline),
            PoolChange::Replace { disk, with } => self.replace(disk, with, deadline),
            PoolChange::Scrub => self.scrub(true, deadline),
            PoolChange::StopScrub => self.scrub(false, deadline),
        }
    }

    /// Which of the zpool's disks a name means: as health shows it, or any name of the disk itself.
    fn find<'a>(&self, leaves: &'a [Leaf], all: &[DiskInfo], name: &str) -> Option<&'a Leaf> {
        let exact = |l: &&Leaf| l.shown.name == name || l.path == name || l.guid.to_string() == name;
        leaves.iter().find(exact).or_else(|| {
            let disk = disks::find(all, name).ok().flatten()?;
            leaves
                .iter()
                .find(|l| l.shown.was.is_none() && disk_of(&l.path, all).is_some_and(|d| d.name == disk.name))
        })
    }

    fn run(&self, args: &[&str], deadline: &Deadline) -> Result<()> {
        self.zpool.run(args, deadline).and_then(|o| o.success()).map(drop).map_err(|e| self.ctx.exec(e))
    }

    fn expand(&self, asked: &[String], deadline: &Deadline) -> Result<Change> {
        let all = self.disks()?;
        let leaves = self.status(deadline)?.leaves(&all);
        let layout = layout(&leaves);
        if asked.len() < layout.least() {
            return Err(self.ctx.precondition(format!(
                "its layout is {}: it grows by at least {} disks at a time",
                layout.as_str(),
                layout.least()
            )));
        }
        let there = asked.iter().filter(|name| self.find(&leaves, &all, name).is_some()).count();
        if there == asked.len() {
            return Ok(Change::Unchanged);
        }
        let blank = prove_blank(&self.ctx, &self.env, asked, deadline)?;
        let names: Vec<String> = blank.iter().map(DiskInfo::lasting_path).collect();
        let mut args = vec!["add", self.ctx.pool.as_str()];
        if layout != PoolLayout::Stripe {
            args.push(layout.as_str());
        }
        args.extend(names.iter().map(String::as_str));
        let done = self.run(&args, deadline);
        // What it says is for people; what is in the zpool now is what counts.
        let all = self.disks()?;
        let leaves = self.status(deadline)?.leaves(&all);
        let whole = asked.iter().all(|name| self.find(&leaves, &all, name).is_some());
        if whole { Ok(Change::Done) } else { Err(self.failed(done, "the zpool does not have them")) }
    }

    fn failed(&self, done: Result<()>, otherwise: &str) -> crate::pool::PoolError {
        done.err().unwrap_or_else(|| self.ctx.conflict(format!("zpool {}", self.ctx.pool), otherwise))
    }

    fn replace(&self, old: &str, new: &str, deadline: &Deadline) -> Result<Change> {
        let all = self.disks()?;
        let leaves = self.status(deadline)?.leaves(&all);
        let found = self.find(&leaves, &all, new);
        if let Some(new_leaf) = found.filter(|l| l.shown.part.as_deref() != Some("spares")) {
            return match self.find(&leaves, &all, old) {
                // Both are there while it is rebuilt; only the new one is when that has ended.
                None => Ok(Change::Unchanged),
                Some(l) if l.replacing.is_some() && l.replacing == new_leaf.replacing => {
                    Ok(Change::Unchanged)
                }
                Some(_) => Err(self.ctx.precondition(format!("{new} is a disk of this pool already"))),
            };
        }
        let Some(leaf) = self.find(&leaves, &all, old) else {
            let names: Vec<&str> = leaves.iter().map(|l| l.shown.name.as_str()).collect();
            let detail = format!("it has no disk {old}; it has {}", names.join(", "));
            return Err(self.ctx.precondition(detail));
        };
        // Its own spare is not blank: it says that it is this pool's.
        let path = match found.filter(|l| l.shown.state == "avail") {
            Some(spare) => self.argument(&spare.path, &all),
            None => {
                let blank = prove_blank(&self.ctx, &self.env, &[new.to_string()], deadline)?;
                blank.iter().map(DiskInfo::lasting_path).collect()
            }
        };
        let guid = leaf.guid.to_string();
        let done = self.run(&["replace", self.ctx.pool.as_str(), &guid, &path], deadline);
        let all = self.disks()?;
        let leaves = self.status(deadline)?.leaves(&all);
        match self.find(&leaves, &all, new).filter(|l| l.shown.part.as_deref() != Some("spares")) {
            Some(_) => Ok(Change::Done),
            None => Err(self.failed(done, "the zpool does not have the new disk")),
        }
    }

    /// A disk that is there again under its path is brought online, which rebuilds what it has missed. The
    /// labels on it say whether it is that disk: ZFS reads them. Where the zpool could do nothing without it, what has
    /// waited goes on.
    pub fn take_back(&self, deadline: &Deadline) -> Result<Change> {
        self.take_back_all(|leaf| self.gone.lock().contains(&leaf.path), deadline)
    }

    /// `lost`: which ones are, besides those of which ZFS says so, where it is suspended.
    fn take_back_all(&self, lost: impl Fn(&Leaf) -> bool, deadline: &Deadline) -> Result<Change> {
        let zpool = self.status(deadline)?;
        let leaves = zpool.leaves(&self.disks()?);
        let well = |path: &String| leaves.iter().any(|l| l.path == *path && l.shown.state == "online");
        self.gone.lock().retain(|path| !well(path));
        // Should the module not tell, by what the command has said.
        let said = || FAILED.contains(&zpool.state.as_str()).then(|| zpool.state.clone());
        let failed = self.note_word().or_else(said);
        let is_suspended = failed.as_deref() == Some("SUSPENDED");
        let is_lost = |l: &&Leaf| LOST.contains(&l.shown.state.as_str()) || (is_suspended && lost(l));
        let (back, away): (Vec<_>, Vec<_>) =
            leaves.iter().filter(is_lost).partition(|l| Path::new(&l.path).exists());
        if failed.is_some() {
            // Where none was lost its writes failed: whether to try them again is its operator's to say.
            let all_are_back = back.iter().any(|l| l.holds_data()) && !away.iter().any(|l| l.holds_data());
            if !all_are_back {
                *self.held_back.lock() = None;
                return Ok(Change::Unchanged);
            }
            if !self.are_as_left(&zpool, &leaves, is_suspended) {
                return Ok(Change::Unchanged);
            }
        }
        let mut change = Change::Unchanged;
        let pool = &self.ctx.pool;
        if is_suspended {
            self.run(&["clear", pool.as_str()], deadline)?;
            // The command ends well as well where a disk can't be used after all.
            if self.note_word().is_some() {
                tracing::warn!(%pool, "its disks are there again, and ZFS can't use them");
                return Ok(Change::Unchanged);
            }
            tracing::info!(%pool, "all its disks are there again: what has waited goes on");
            return Ok(Change::Done);
        }
        for leaf in back {
            let guid = leaf.guid.to_string();
            match self.run(&["online", pool.as_str(), &guid], deadline) {
                Ok(()) => {
                    tracing::info!(%pool, disk = leaf.path, "a disk was taken back");
                    change = Change::Done;
                }
                // It stays what it is: degraded, which is told.
                Err(error) => tracing::warn!(%pool, disk = leaf.path, %error, "a disk was not taken back"),
            }
        }
        Ok(change)
    }

    /// Whether the disks of a zpool that could do nothing are as it left them. If not they are not given back to it, and
    /// it says why: what has waited would be written over what is on them, with nothing that stands in for it.
    fn are_as_left(&self, zpool: &Zpool, leaves: &[Leaf], is_suspended: bool) -> bool {
        let groups = self.groups.lock().clone();
        let left = groups.and_then(|txgs| Left::new(zpool.pool_guid, zpool.txg, &txgs, is_suspended));
        let mut disks = Vec::new();
        for leaf in leaves.iter().filter(|l| l.holds_data()) {
            // What can't be read is no use to ZFS either.
            match labels::read(Path::new(&leaf.path)) {
                Ok(found) => disks.extend(found),
                Err(error) => tracing::warn!(disk = leaf.path, %error, "its labels can't be read"),
            }
        }
        let as_left = left.map_or(Err("ZFS does not tell how they were left"), |left| left.check(&disks));
        let why = as_left.err().map(|why| {
            format!(
                "its disks are there, and are not written on, because {why}: start the machine again to use it as it is now"
            )
        });
        let mut held_back = self.held_back.lock();
        if let Some(why) = &why
            && held_back.as_ref() != Some(why)
        {
            tracing::error!(pool = %self.ctx.pool, ?left, ?disks, why, "its disks are not given back to it");
        }
        *held_back = why;
        held_back.is_none()
    }

    /// Has a zpool that is imported already go on, if it can't and its disks are there again; an error if they are not.
    /// Not one of another number than is asked for, which is no business of the pool's.
    pub fn revive(&self, guid: Option<u64>, deadline: &Deadline) -> Result<()> {
        let is_other = guid.zip(self.kept("guid")).is_some_and(|(want, is)| is.trim() != want.to_string());
        if is_other {
            return Ok(());
        }
        if self.note_word().is_some() {
            // What an earlier daemon saw go is not known: what had too many errors may have been.
            self.take_back_all(
                |leaf| ["degraded", "faulted"].contains(&leaf.shown.state.as_str()),
                deadline,
            )?;
        }
        self.must_answer()
    }

    /// What `zpool replace` takes for a spare: the whole disk, as it took it when the spare was added.
    fn argument(&self, place: &str, all: &[DiskInfo]) -> String {
        disk_of(place, all).map_or_else(|| place.to_string(), DiskInfo::lasting_path)
    }

    /// Has a spare take the place of a disk that is lost for good, or step back when that is well again: at most
    /// one of it at a time. What ZFS refuses is told in the log and by the pool's health, which stays as it is.
    pub fn mind_spares(&self, deadline: &Deadline) -> Result<Change> {
        let before = self.status(deadline)?;
        let Some(step) = self.watch.lock().next(&before, Instant::now()) else {
            return Ok(Change::Unchanged);
        };
        let pool = self.ctx.pool.as_str();
        let done = match &step {
            Step::TakePlace { lost, spare, .. } => {
                let argument = self.argument(spare, &self.disks()?);
                self.run(&["replace", pool, &lost.to_string(), &argument], deadline)
            }
            Step::StepBack { spare, .. } => self.run(&["detach", pool, &spare.to_string()], deadline),
        };
        // What it says is for people; how it is now is what counts.
        let after = self.status(deadline)?;
        let taken =
            |guid: u64| stand_ins(&after).iter().any(|(disk, spare)| [disk.guid, spare.guid].contains(&guid));
        let whole = match &step {
            Step::TakePlace { lost, .. } => taken(*lost),
            Step::StepBack { spare, .. } => !taken(*spare),
        };
        if whole {
            match &step {
                Step::TakePlace { was, spare, .. } => {
                    tracing::warn!(pool, disk = was, spare, "a spare takes the place of a lost disk")
                }
                Step::StepBack { path, .. } => tracing::info!(pool, spare = path, "a spare is free again"),
            }
            return Ok(Change::Done);
        }
        let error = self.failed(done, "its disks are as they were");
        tracing::warn!(pool, ?step, %error, "a spare was not moved");
        self.watch.lock().refused(step, Instant::now());
        Ok(Change::Unchanged)
    }

    fn scrub(&self, start: bool, deadline: &Deadline) -> Result<Change> {
        let running = |zpool: &Zpool, kind| {
            zpool.scan().is_some_and(|s| s.state == PoolScanState::Running && s.kind == kind)
        };
        let before = self.status(deadline)?;
        if running(&before, PoolScanKind::Rebuild) {
            return Err(self.ctx.precondition("a disk is being rebuilt: its pass comes first"));
        }
        if running(&before, PoolScanKind::Scrub) == start {
            return Ok(Change::Unchanged);
        }
        let name = self.ctx.pool.as_str();
        let args: &[&str] = if start { &["scrub", name] } else { &["scrub", "-s", name] };
        self.run(args, deadline).map(|()| Change::Done)
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    pub(in crate::pool::zfs) fn zpool(text: &str) -> Zpool {
        let status: Status = serde_json::from_str(text).unwrap();
        status.pools.into_values().next().unwrap()
    }

    #[test]
    fn what_nothing_stands_in_for() {
        let mirror = include_str!("status-mirror.json");
        assert_eq!(zpool(mirror).alone(), Vec::<String>::new());
        let one = |state: &str| {
            let text = r#"{"pools":{"p":{"state":"ONLINE","vdevs":{"p":{"name":"p","vdev_type":"root","state":"ONLINE",
                "vdevs":{"/dev/vdb1":{"name":"/dev/vdb1","vdev_type":"disk","guid":7,"state":"STATE",
                "path":"/dev/disk/by-id/one-part1"}}}},
                "spares":{"/dev/vdc1":{"name":"/dev/vdc1","vdev_type":"disk","guid":8,"state":"AVAIL"}}}}}"#;
            zpool(&text.replace("STATE", state)).alone()
        };
        assert_eq!(one("ONLINE"), ["/dev/disk/by-id/one-part1"]);
        assert_eq!(one("CANT_OPEN"), Vec::<String>::new(), "that is known");
    }

    #[test]
    fn a_healthy_mirror_and_a_degraded_one() {
        let pool = zpool(include_str!("status-mirror.json"));
        let health = pool.health(&[]);
        assert_eq!((health.state, health.reason.as_deref(), health.errors), (PoolHealthState::Ok, None, 0));
        assert_eq!(health.disks.len(), 2);
        assert!(health.disks.iter().all(|d| d.part.as_deref() == Some("mirror-0")), "{health:?}");
        let mut pool = pool;
        pool.state = "DEGRADED".into();
        pool.status = Some("One or more devices is\n\tmissing.".into());
        let root = pool.vdevs.values_mut().next().unwrap();
        let mirror = root.vdevs.values_mut().next().unwrap();
        let one = mirror.vdevs.values_mut().next().unwrap();
        one.state = "REMOVED".into();
        one.write_errors = 3;
        let health = pool.health(&[]);
        assert_eq!(health.state, PoolHealthState::Degraded);
        let reason = health.reason.unwrap();
        assert!(reason.contains("is removed with 3 errors. One or more devices is missing"), "{reason}");
        pool.error_count = 1;
        assert_eq!(pool.health(&[]).state, PoolHealthState::Failed);
        pool.state = "SUSPENDED".into();
        assert_eq!(pool.health(&[]).state, PoolHealthState::Failed);
    }

    #[test]
    fn a_pass_is_read() {
        let mut pool = zpool(include_str!("status-mirror.json"));
        let scan = |function: &str, state: &str| {
            let text = format!(
                r#"{{"function":"{function}","state":"{state}","end_time":1795257600,"to_examine":"300","issued":100,"errors":2}}"#
            );
            Some(serde_json::from_str(&text).unwrap())
        };
        pool.scan_stats = scan("SCRUB", "SCANNING");
        let running = pool.scan().unwrap();
        assert_eq!((running.kind, running.percent, running.ended), (PoolScanKind::Scrub, Some(33), None));
        pool.scan_stats = scan("RESILVER", "FINISHED");
        let ended = pool.scan().unwrap();
        assert_eq!(
            (ended.kind, ended.state, ended.percent),
            (PoolScanKind::Rebuild, PoolScanState::Finished, None)
        );
        assert!(ended.ended.is_some() && ended.errors == 2);
        pool.scan_stats = scan("NONE", "NONE");
        assert_eq!(pool.scan(), None);
    }
}
