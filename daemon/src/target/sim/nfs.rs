//! An NFS server in memory that behaves like the kernel's with nfs-utils around it.
//!
//! It has files, a table that is lost when it stops and read from the files when it starts, mounts that are busy while
//! anything is open on them, and clients with calls and locks. Its methods are what hosts and tests do; what the target
//! does goes through [`NfsServer`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use orlop_api::{Flavour, KeytabFile};
use parking_lot::Mutex;
use rustix::io::Errno;

use super::faults::{Fault, Faults};
use crate::kernel::Deadline;
use crate::kernel::mount::Mount;
use crate::kernel::nfsd::{Call, Client};
use crate::target::nfs::{Backing, NfsServer};

/// What a host gets at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Nothing.
    None,
    /// Reading.
    Read,
    /// Writing too.
    Write,
}

#[derive(Debug, Clone)]
struct Work {
    call: Call,
    device: (u32, u32),
    by: Flavour,
    /// How many looks until it ends.
    looks: u8,
}

#[derive(Debug, Default)]
struct State {
    mounts: BTreeMap<PathBuf, (u32, u32)>,
    next_device: u32,
    files: BTreeMap<String, String>,
    /// Path and client to options.
    table: BTreeMap<(String, String), String>,
    settings: Option<String>,
    running: bool,
    broken: bool,
    /// What clients have open: address, version 4 or not, device, and by which flavour.
    open: BTreeSet<(IpAddr, bool, (u32, u32), Flavour)>,
    work: Vec<Work>,
    calls: u32,
    /// The kernel's answers, until they are flushed.
    cached: BTreeMap<(IpAddr, Flavour, PathBuf), Access>,
    keytab: Option<KeytabFile>,
    checks_tickets: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct SimNfs {
    /// Directories count as mounted: nothing is really mounted where volumes are simulated.
    loose: bool,
    state: Mutex<State>,
    faults: Faults,
}

impl SimNfs {
    /// One that believes only in what [`mount`](Self::mount) has mounted.
    pub fn strict() -> Self {
        Self::default()
    }

    /// One for which every directory is a mounted file system.
    pub fn loose() -> Self {
        Self { loose: true, ..Self::default() }
    }

    /// A file system is mounted.
    pub fn mount(&self, point: &str) {
        let mut s = self.state.lock();
        s.next_device += 1;
        let device = (250, s.next_device);
        s.mounts.insert(point.into(), device);
    }

    /// It is unmounted, which fails while anything on it is open, as a bind mount of it does not.
    pub fn unmount(&self, point: &str) {
        self.state.lock().mounts.remove(Path::new(point));
    }

    /// An entry by somebody else.
    pub fn put_entry(&self, path: &str, client: &str, options: &str) {
        self.state.lock().table.insert((path.into(), client.into()), options.into());
    }

    /// A file by somebody else, or by us in another life.
    pub fn put_file(&self, name: &str, text: &str) {
        self.state.lock().files.insert(name.into(), text.into());
    }

    /// Somebody stops the service.
    pub fn stop(&self) {
        let mut s = self.state.lock();
        s.running = false;
        s.checks_tickets = false;
        s.table.clear();
        s.open.clear();
        s.work.clear();
        s.cached.clear();
    }

    /// The service can't be started.
    pub fn break_service(&self, broken: bool) {
        self.state.lock().broken = broken;
    }

    /// After so many more changes, one goes wrong.
    pub fn fault_after(&self, changes: usize, fault: Fault) {
        self.faults.after(changes, fault);
    }

    /// Everything that is not at a path below `root`.
    pub fn foreign(&self, root: &str) -> BTreeMap<(String, String), String> {
        let mut all = self.state.lock().table.clone();
        all.retain(|(path, _), _| !path.starts_with(root));
        all
    }

    /// What a call of a host by `sys` would get now, without any cache.
    pub fn access(&self, host: IpAddr, path: &Path) -> Access {
        self.access_by(host, Flavour::Sys, path)
    }

    /// The same by a flavour of security.
    pub fn access_by(&self, host: IpAddr, by: Flavour, path: &Path) -> Access {
        self.state.lock().access(host, by, path)
    }

    /// Whether calls of a host would be squashed as `option` says.
    pub fn options(&self, host: IpAddr, path: &Path) -> Option<String> {
        self.state.lock().entry(host, None, path)
    }

    /// A host opens and locks a file. Errors: refused.
    pub fn open(&self, host: IpAddr, v4: bool, path: &Path) -> io::Result<()> {
        self.open_by(host, Flavour::Sys, v4, path)
    }

    /// The same by a flavour of security.
    pub fn open_by(&self, host: IpAddr, by: Flavour, v4: bool, path: &Path) -> io::Result<()> {
        let mut s = self.state.lock();
        let device = s.enter(host, by, path, Access::Read)?;
        s.open.insert((host, v4, device, by));
        Ok(())
    }

    /// A host begins a write, which takes so many looks of the target.
    pub fn begin_write(&self, host: IpAddr, path: &Path, looks: u8) -> io::Result<()> {
        self.begin_write_by(host, Flavour::Sys, path, looks)
    }

    /// The same by a flavour of security.
    pub fn begin_write_by(&self, host: IpAddr, by: Flavour, path: &Path, looks: u8) -> io::Result<()> {
        let mut s = self.state.lock();
        let device = s.enter(host, by, path, Access::Write)?;
        s.calls += 1;
        let call = Call { peer: host, id: (700, s.calls, 1) };
        s.work.push(Work { call, device, by, looks });
        Ok(())
    }

    /// Whether a host has a write in work, or anything open, on the file system with that number.
    pub fn is_in(&self, host: IpAddr, device: (u32, u32)) -> bool {
        Flavour::ALL.into_iter().any(|by| self.is_in_by(host, by, device))
    }

    /// The same by a flavour of security.
    pub fn is_in_by(&self, host: IpAddr, by: Flavour, device: (u32, u32)) -> bool {
        let s = self.state.lock();
        s.work.iter().any(|w| (w.call.peer, w.by, w.device) == (host, by, device))
            || s.open.iter().any(|(h, _, d, b)| (*h, *b, *d) == (host, by, device))
    }

    /// The device number of what is mounted at a point.
    pub fn device(&self, point: &str) -> Option<(u32, u32)> {
        self.state.lock().mounts.get(Path::new(point)).copied()
    }

    fn change<T>(&self, f: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        self.faults.check()?;
        f(&mut self.state.lock())
    }
}

impl State {
    /// As mountd does: single addresses first, then ranges, the first that matches. A table has no order that can be
    /// relied on, so here the worst is taken: of several ranges the one that gives most.
    fn entry(&self, host: IpAddr, by: Option<Flavour>, path: &Path) -> Option<String> {
        if !self.running || !self.mounts.contains_key(path) {
            return None;
        }
        let path = path.to_str()?;
        let of = self.table.iter().filter(|((p, _), _)| p == path);
        let mut ranges = Vec::new();
        for ((_, client), options) in of {
            match (client.parse::<IpAddr>(), client.parse::<IpNet>()) {
                (Ok(address), _) if address == host => return Some(options.clone()),
                (_, Ok(range)) if range.contains(&host) => ranges.push(options.clone()),
                _ => {}
            }
        }
        let lets_in = |o: &String| by.is_none_or(|by| takes(o, by));
        ranges.into_iter().max_by_key(|o| (lets_in(o), has(o, "rw")))
    }

    fn access(&self, host: IpAddr, by: Flavour, path: &Path) -> Access {
        match self.entry(host, Some(by), path).filter(|options| takes(options, by)) {
            None => Access::None,
            Some(options) if has(&options, "rw") => Access::Write,
            Some(_) => Access::Read,
        }
    }

    fn enter(&mut self, host: IpAddr, by: Flavour, path: &Path, at_least: Access) -> io::Result<(u32, u32)> {
        if by != Flavour::Sys && !self.checks_tickets {
            return Err(Errno::ACCESS.into());
        }
        let now = self.access(host, by, path);
        // Once asked, the kernel does not ask again.
        let access = *self.cached.entry((host, by, path.into())).or_insert(now);
        let device = self.mounts.get(path).copied();
        device.filter(|_| access >= at_least && self.running).ok_or_else(|| Errno::STALE.into())
    }

    fn start(&mut self) -> io::Result<()> {
        if self.broken {
            return Err(io::ErrorKind::NotConnected.into());
        }
        self.table.clear();
        self.cached.clear();
        for text in self.files.values() {
            for line in text.lines().filter(|l| !l.starts_with('#')) {
                let mut words = line.split_whitespace();
                let path = words.next().unwrap_or_default();
                for (client, options) in words.filter_map(|w| w.strip_suffix(')')?.split_once('(')) {
                    self.table.insert((path.into(), client.into()), options.into());
                }
            }
        }
        self.running = true;
        self.checks_tickets = self.keytab.is_some();
        Ok(())
    }
}

fn has(options: &str, what: &str) -> bool {
    options.split(',').any(|o| o == what)
}

/// Whether an entry lets in by a flavour.
fn takes(options: &str, by: Flavour) -> bool {
    options.split(',').filter_map(|o| o.strip_prefix("sec=")).any(|l| l.split(':').any(|f| f == by.as_str()))
        || (by == Flavour::Sys && !options.contains("sec="))
}

impl NfsServer for SimNfs {
    fn mounts(&self) -> io::Result<Vec<Mount>> {
        let s = self.state.lock();
        let all = s.mounts.iter().map(|(point, device)| Mount {
            device: *device,
            point: point.clone(),
            fstype: "sim".into(),
            source: "sim".into(),
        });
        Ok(all.collect())
    }

    fn look_at(&self, path: &Path) -> io::Result<Backing> {
        if !self.loose {
            return Ok(match path.to_str() {
                Some(p) if p.contains("missing") => Backing::Missing,
                Some(p) if p.starts_with("/dev/") => Backing::NotDirectory,
                _ => Backing::NotMounted,
            });
        }
        Ok(match std::fs::symlink_metadata(path) {
            Ok(m) if m.is_dir() => {
                let point = path.to_string_lossy().into_owned();
                self.mount(&point);
                self.device(&point).map_or(Backing::Missing, Backing::Mounted)
            }
            Ok(_) => Backing::NotDirectory,
            Err(_) => Backing::Missing,
        })
    }

    fn make_root(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn bind(&self, backing: &Path, place: &Path) -> io::Result<()> {
        self.change(|s| {
            let device = s.mounts.get(backing).copied().ok_or(Errno::NOENT)?;
            s.mounts.insert(place.into(), device);
            Ok(())
        })
    }

    fn unbind(&self, place: &Path) -> io::Result<()> {
        self.change(|s| {
            let Some(device) = s.mounts.get(place).copied() else { return Ok(()) };
            s.work
                .iter_mut()
                .filter(|w| w.device == device)
                .for_each(|w| w.looks = w.looks.saturating_sub(1));
            s.work.retain(|w| w.looks > 0);
            let busy =
                s.work.iter().any(|w| w.device == device) || s.open.iter().any(|(_, _, d, _)| *d == device);
            if busy || s.cached.keys().any(|(_, _, p)| p == place) {
                return Err(Errno::BUSY.into());
            }
            s.mounts.remove(place);
            Ok(())
        })
    }

    fn files(&self) -> io::Result<BTreeMap<String, String>> {
        Ok(self.state.lock().files.clone())
    }

    fn file(&self, name: &str) -> io::Result<Option<String>> {
        Ok(self.state.lock().files.get(name).cloned())
    }

    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        self.change(|s| {
            s.files.insert(name.into(), text.into());
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.change(|s| {
            s.files.remove(name);
            Ok(())
        })
    }

    fn table(&self) -> io::Result<String> {
        let s = self.state.lock();
        let lines = s.table.iter().map(|((path, client), options)| format!("{path}\t{client}({options})\n"));
        Ok(lines.collect())
    }

    fn export(&self, path: &str, clients: &BTreeSet<String>, options: &str, _: &Deadline) -> io::Result<()> {
        self.change(|s| {
            for client in clients {
                s.table.insert((path.into(), client.clone()), options.into());
            }
            s.cached.clear();
            Ok(())
        })
    }

    fn withdraw(&self, path: &str, clients: &BTreeSet<String>, _: &Deadline) -> io::Result<()> {
        self.change(|s| {
            s.table.retain(|(p, c), _| p != path || !clients.contains(c));
            s.cached.clear();
            Ok(())
        })
    }

    fn threads(&self) -> io::Result<u32> {
        Ok(if self.state.lock().running { 16 } else { 0 })
    }

    fn versions(&self) -> io::Result<String> {
        Ok("+3 +4 -4.0 +4.1 +4.2\n".into())
    }

    fn settings(&self) -> io::Result<Option<String>> {
        Ok(self.state.lock().settings.clone())
    }

    fn configure(&self, settings: &str) -> io::Result<()> {
        self.change(|s| {
            s.settings.replace(settings.into());
            Ok(())
        })
    }

    fn start(&self, _: &Deadline) -> io::Result<()> {
        self.change(|s| if s.running { Ok(()) } else { s.start() })
    }

    fn restart(&self, _: &Deadline) -> io::Result<()> {
        self.change(State::start)
    }

    fn can_kerberos(&self, _: &Deadline) -> io::Result<()> {
        match self.state.lock().keytab {
            Some(_) => Ok(()),
            None => Err(io::Error::new(io::ErrorKind::Unsupported, "there is no keytab")),
        }
    }

    fn set_keytab(&self, keytab: Option<&KeytabFile>, _: &Deadline) -> io::Result<()> {
        self.change(|s| {
            s.keytab = keytab.cloned();
            s.checks_tickets = s.running && s.keytab.is_some();
            Ok(())
        })
    }

    fn checks_tickets(&self, _: &Deadline) -> io::Result<bool> {
        Ok(self.state.lock().checks_tickets)
    }

    fn check_tickets(&self, d: &Deadline) -> io::Result<()> {
        self.can_kerberos(d)?;
        self.change(|s| {
            s.checks_tickets = true;
            Ok(())
        })
    }

    fn flush(&self) -> io::Result<()> {
        self.state.lock().cached.clear();
        Ok(())
    }

    fn clear(&self) -> io::Result<()> {
        self.flush()
    }

    fn calls(&self) -> io::Result<Option<BTreeSet<Call>>> {
        let mut s = self.state.lock();
        let now = s.work.iter().map(|w| w.call.clone()).collect();
        s.work.iter_mut().for_each(|w| w.looks = w.looks.saturating_sub(1));
        s.work.retain(|w| w.looks > 0);
        Ok(Some(now))
    }

    fn clients(&self) -> io::Result<Vec<Client>> {
        let s = self.state.lock();
        let all: BTreeSet<IpAddr> = s.open.iter().filter(|o| o.1).map(|o| o.0).collect();
        Ok(all.into_iter().map(|address| Client { id: address.to_string(), address }).collect())
    }

    fn holds(&self, client: &Client, device: (u32, u32)) -> io::Result<bool> {
        Ok(self.state.lock().open.iter().any(|o| (o.0, o.1, o.2) == (client.address, true, device)))
    }

    fn expire(&self, client: &Client) -> io::Result<()> {
        self.change(|s| {
            s.open.retain(|(host, v4, ..)| !*v4 || *host != client.address);
            Ok(())
        })
    }

    fn lockers(&self, device: (u32, u32)) -> io::Result<BTreeSet<IpAddr>> {
        let s = self.state.lock();
        let any = s.open.iter().any(|(_, v4, d, _)| !v4 && *d == device);
        Ok(s.open.iter().filter(|o| any && !o.1).map(|o| o.0).collect())
    }

    fn free_locks(&self, host: IpAddr) -> io::Result<()> {
        self.change(|s| {
            s.open.retain(|(h, v4, ..)| *v4 || *h != host);
            Ok(())
        })
    }

    fn revoke(&self, place: &Path) -> io::Result<()> {
        self.change(|s| {
            let device = s.mounts.get(place).copied();
            s.open.retain(|(_, _, d, _)| Some(*d) != device);
            Ok(())
        })
    }
}
