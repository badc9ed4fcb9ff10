//! From what should be and what is to the changes in between. Pure.
//!
//! Each volume has a place of its own, `<root>/<id>`, where its backing is shown by a bind mount. That gives hosts one
//! path that does not tell of pools, keeps the directories of the daemon out of NFSv4's pseudo file system, and proves
//! the end: everything that the server has open, or is doing, hangs on that mount, and it can't be unmounted before the
//! last of it has ended.
//!
//! Three orders carry the security:
//!
//! - *The file before the table*: a server that is started anew serves what the files say. So a file loses a host
//!   before the table does, and has it before.
//! - *The access before its trace*: who loses something is written into the file as leaving, and the line goes last,
//!   when all that it had has ended. Whoever finds the file after a crash can tell whom to look for. For a whole
//!   volume the bind mount says the same.
//! - *Strangers before all*: those with whom nobody that stays shares an entry are withdrawn first. Entries that
//!   replace others come before those are withdrawn, so that nobody who stays is without one in between: a host that is
//!   refused once fails its programs with ESTALE. The entry of a single host in a range is put before that of the range,
//!   and withdrawn with it or after it: without its own it would have what the range has.
//!
//! A flavour of security that is taken out of an entry is asked for in each call, so whoever comes by it is refused from
//! then on; what he has open and locked is taken as from one who is not let in at all. The server does not tell who of an
//! address came by which flavour, so all of it is taken there: those who may come back do, without their locks.
//!
//! How a host is cut off depends on who stays. When nobody does, all state of the file system is revoked and it is
//! unmounted. Else the server lists the calls that it is working on, and those of hosts that may do less must end;
//! then clients of NFSv4 that are not let in and have anything open or locked on this file system are expired, which
//! takes from them what they have elsewhere as well: they come back there, only locks are lost. One that has nothing
//! here, because it unmounted first as it should, is left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use orlop_api::VolumeId;

use super::NfsConfig;
use super::entries::{self, Leaving};
use super::state::{Backing, Change, Observed, Step, Volume};
use crate::target::{Desired, Export, Scope};

/// See the module.
pub(super) fn plan(config: &NfsConfig, scope: Scope, desired: &Desired, seen: &Observed) -> Vec<Step> {
    let mut volumes: BTreeSet<VolumeId> = desired.keys().copied().collect();
    if scope != Scope::Desired {
        volumes.extend(seen.volumes.keys());
    }
    if let Some(only) = scope.volume() {
        volumes.retain(|v| *v == only);
    }
    let double = shared_devices(&volumes, desired, seen);
    let (mut closing, mut building) = (Vec::new(), Vec::new());
    let mut served = false;
    for volume in volumes {
        let mut one = One::new(config, volume, desired, seen);
        if one.want.is_some_and(|_| one.device.is_some_and(|d| double.contains(&d))) {
            one.device = None;
            one.refusal = Some("it is the backing of more than one volume");
        }
        let open = one.close();
        closing.append(&mut one.steps);
        one.build(open);
        served |= one.want.is_some() && one.device.is_some();
        building.append(&mut one.steps);
    }
    // The settings come before the start, and both only for somebody to serve.
    if served && !seen.written {
        closing.push(Step::Configure);
    }
    closing.append(&mut building);
    match (served, seen.running) {
        (true, false) => closing.push(Step::Start),
        (true, true) if !seen.as_set || !seen.written => closing.push(Step::Restart),
        _ => {}
    }
    closing
}

/// Steps that end every access older than now, of hosts that have no entry any more too: somebody else may have
/// removed it.
pub(super) fn sever(config: &NfsConfig, volume: VolumeId, desired: &Desired, seen: &Observed) -> Vec<Step> {
    let ends =
        |step: &Step| matches!(step, Step::Volume { change: Change::Settle { .. } | Change::Release, .. });
    if plan(config, Scope::Volume(volume), desired, seen).iter().any(ends) {
        return Vec::new(); // After it has withdrawn the entries, which is when it means something.
    }
    let mut one = One::new(config, volume, desired, seen);
    if let (true, Some(device)) = (seen.running, one.is.bound) {
        one.settle(device, (BTreeSet::new(), BTreeSet::new()), true);
    }
    one.steps
}

/// Devices that more than one volume is to be made of.
fn shared_devices(volumes: &BTreeSet<VolumeId>, desired: &Desired, seen: &Observed) -> BTreeSet<(u32, u32)> {
    let mut users: BTreeMap<(u32, u32), usize> = BTreeMap::new();
    for volume in volumes.iter().filter(|v| desired.contains_key(v)) {
        if let Some(Backing::Mounted(device)) = seen.backings.get(volume) {
            *users.entry(*device).or_default() += 1;
        }
    }
    users.into_iter().filter(|(_, n)| *n > 1).map(|(d, _)| d).collect()
}

/// What is done about one volume.
struct One<'a> {
    volume: VolumeId,
    path: PathBuf,
    running: bool,
    checks_tickets: bool,
    is: Volume,
    want: Option<&'a Export>,
    /// The device of the backing, if that can be served.
    device: Option<(u32, u32)>,
    refusal: Option<&'static str>,
    /// Who gets what.
    entries: BTreeMap<IpNet, String>,
    steps: Vec<Step>,
}

impl<'a> One<'a> {
    fn new(config: &NfsConfig, volume: VolumeId, desired: &'a Desired, seen: &Observed) -> Self {
        let want = desired.get(&volume);
        let (device, refusal) = match want.and_then(|_| seen.backings.get(&volume)) {
            Some(Backing::Mounted(device)) => (Some(*device), None),
            Some(Backing::NotMounted) => (None, Some("nothing is mounted there")),
            Some(Backing::NotDirectory) => (None, Some("it is no directory")),
            Some(Backing::Missing) | None => (None, Some("it is not there")),
        };
        let entries = want.map(|export| {
            let rights = entries::disjoint(&entries::wanted(export));
            rights.into_iter().map(|(range, r)| (range, entries::options(volume, r))).collect()
        });
        Self {
            volume,
            path: config.place(volume),
            running: seen.running,
            checks_tickets: seen.checks_tickets,
            is: seen.volumes.get(&volume).cloned().unwrap_or_default(),
            want,
            device,
            refusal,
            entries: entries.unwrap_or_default(),
            steps: Vec::new(),
        }
    }

    fn step(&mut self, change: Change) {
        self.steps.push(Step::Volume { volume: self.volume, path: self.path.clone(), change });
    }

    /// Writes the file, unless that is what it says.
    fn write(&mut self, entries: &BTreeMap<IpNet, String>, leaving: &Leaving) {
        let text = entries::file(&shown(&self.path), entries, leaving);
        if self.is.file.as_ref() != Some(&text) {
            self.is.file = Some(text.clone());
            self.step(Change::Write { text });
        }
    }

    fn settle(
        &mut self,
        device: (u32, u32),
        (lowered, turned_away): (BTreeSet<IpNet>, BTreeSet<IpNet>),
        all: bool,
    ) {
        let keep = self.want.map(|w| entries::wanted(w).into_keys().collect()).unwrap_or_default();
        self.step(Change::Settle { keep, lowered, turned_away, all, device });
    }

    /// All who have, or had, access by file, table or trace.
    fn traces(&self) -> Leaving {
        let file = self.is.file.as_deref().unwrap_or_default();
        let mut all = entries::leaving(file);
        entries::add(&mut all, entries::exported(file).iter().map(|(c, by)| (c, by.clone())));
        entries::add(&mut all, self.is.table.iter().map(|(c, o)| (c, entries::flavours(o))));
        all
    }

    /// Closing steps. True if the volume is in its place after them.
    fn close(&mut self) -> bool {
        let keeps = self.is.bound.is_some() && self.is.bound == self.device && self.want.is_some();
        if !keeps {
            self.tear_down();
            return false;
        }
        let Some(device) = self.device else { return false };
        let mut leaving = entries::leaving(self.is.file.as_deref().unwrap_or_default());
        let asked = |client: &str, options: &str| {
            entries::parse(client)
                .and_then(|range| self.entries.get(&range))
                .is_some_and(|want| entries::is_as_asked(options, want))
        };
        let wrong = self.is.table.iter().filter(|(c, o)| !asked(c, o));
        entries::add(&mut leaving, wrong.map(|(c, o)| (c, entries::flavours(o))));
        let narrowed = entries::narrowed(&self.entries, &self.is.table);
        entries::add(&mut leaving, narrowed.iter().map(|(c, by)| (c, by.clone())));
        // In the file alone: of a server that does not run, and serves nobody.
        if leaving.is_empty() {
            return true;
        }
        let entries = self.entries.clone();
        self.write(&entries, &leaving);
        let gone: BTreeSet<String> = self.is.table.keys().filter(|c| !self.is_wanted(c)).cloned().collect();
        let (replaced, strangers): (BTreeSet<_>, BTreeSet<_>) =
            gone.into_iter().partition(|c| self.overlaps(c) || self.is_exception(c));
        if !strangers.is_empty() {
            self.step(Change::Withdraw { clients: strangers });
        }
        self.export();
        if !replaced.is_empty() {
            self.step(Change::Withdraw { clients: replaced });
        }
        if self.running {
            let lowered = leaving.keys().filter_map(|c| entries::parse(c)).collect();
            let turned_away = entries::turned_away(&entries, &leaving);
            // A name may be anybody's.
            let all = leaving.keys().any(|c| entries::parse(c).is_none());
            self.settle(device, (lowered, turned_away), all);
        }
        self.write(&entries, &Leaving::new());
        true
    }

    fn is_wanted(&self, client: &str) -> bool {
        entries::parse(client).is_some_and(|range| self.entries.contains_key(&range))
    }

    /// Whether somebody who stays may be let in by an entry now.
    fn overlaps(&self, client: &str) -> bool {
        // A name may be anybody's.
        entries::parse(client).is_none_or(|c| self.entries.keys().any(|e| e.contains(&c) || c.contains(e)))
    }

    /// Whether there is a wider entry that goes later, or stays: without this one its host would have the rights of
    /// that, which may be more than it had and more than it should have.
    fn is_exception(&self, client: &str) -> bool {
        let Some(range) = entries::parse(client) else { return false };
        let around = |c: &&String| entries::parse(c).is_some_and(|r| r != range && r.contains(&range));
        self.is.table.keys().filter(around).any(|c| self.overlaps(c))
    }

    fn tear_down(&mut self) {
        let leaving = self.traces();
        if self.is.file.is_some() || !self.is.table.is_empty() {
            self.write(&BTreeMap::new(), &leaving);
        }
        if !self.is.table.is_empty() {
            self.step(Change::Withdraw { clients: self.is.table.keys().cloned().collect() });
        }
        if self.is.bound.is_some() {
            self.step(Change::Release);
        }
        if self.is.file.take().is_some() {
            self.step(Change::Remove);
        }
        self.is = Volume::default();
    }

    fn build(&mut self, in_place: bool) {
        let Some(want) = self.want else { return };
        let backing = want.backing.clone();
        if let Some(detail) = self.refusal {
            self.step(Change::Refuse { backing, detail });
            return;
        }
        if let (false, Some(device)) = (in_place, self.device) {
            self.step(Change::Bind { backing, device });
        }
        let entries = self.entries.clone();
        self.write(&entries, &Leaving::new());
        self.export();
        // The last of all: without it the others are served.
        if entries::is_kerberos(want) && !self.checks_tickets {
            self.step(Change::CheckTickets);
        }
    }

    /// Entries that the table lacks, or has with other options. A server that does not run takes all of them from the
    /// files when it starts.
    fn export(&mut self) {
        if !self.running {
            return;
        }
        // Single addresses first: one in a range must not have the rights of that in between.
        let mut by_options: BTreeMap<(bool, String), BTreeSet<String>> = BTreeMap::new();
        for (range, options) in &self.entries {
            let client = entries::client(range);
            if !self.is.table.get(&client).is_some_and(|has| entries::is_as_asked(has, options)) {
                self.is.table.insert(client.clone(), options.clone());
                let key = (!entries::is_single(range), options.clone());
                by_options.entry(key).or_default().insert(client);
            }
        }
        for ((_, options), clients) in by_options {
            self.step(Change::Export { clients, options });
        }
    }
}

/// A path as the files have it. Ours need no quoting: see [`NfsConfig::root`].
pub(super) fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
