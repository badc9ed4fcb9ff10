//! The target over the simulated server: by example, and from any state to any other.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use orlop_api::{ByteSize, ErrorKind, Flavour, Security, Squash};
use parking_lot::Mutex;
use proptest::prelude::*;
use rustix::io::Errno;

use super::*;
use crate::kernel::mount::Mount;
use crate::kernel::nfsd::{Call, Client};
use crate::model::{Identity, NqnPrefix};
use crate::target::sim::Fault;
use crate::target::sim::nfs::{Access, SimNfs};
use crate::target::{Report, Rights, Target};

const RW: Rights = Rights { read_only: false, squash: Squash::None, security: Security::SYS, tls: false };
const RO: Rights = Rights { read_only: true, squash: Squash::Root, security: Security::SYS, tls: false };
/// By which hosts come.
const FLAVOURS: [Flavour; 2] = [Flavour::Sys, Flavour::Krb5p];
const FOREIGN: &str = "/srv/theirs";
/// One in each part of the networks below, and one in none.
const HOSTS: [&str; 5] = ["10.0.0.5", "10.0.0.6", "10.0.1.7", "10.0.200.8", "192.168.0.9"];
const NETWORKS: [&str; 5] = ["10.0.0.5", "10.0.0.6", "10.0.0.0/24", "10.0.0.0/23", "10.0.0.0/16"];

fn volume(n: usize) -> VolumeId {
    format!("0190c0de-0000-7000-8000-00000000000{n}").parse().unwrap()
}

fn place(n: usize) -> PathBuf {
    NfsConfig::default().place(volume(n))
}

fn backing(n: usize) -> String {
    format!("/mnt/{n}")
}

fn host(h: usize) -> IpAddr {
    HOSTS[h].parse().unwrap()
}

fn export(n: usize, hosts: &[(&str, Rights)]) -> Export {
    Export {
        identity: Identity::of(volume(n), &NqnPrefix::default()),
        backing: backing(n).into(),
        size: ByteSize(1 << 30),
        hosts: hosts.iter().map(|(h, r)| (HostId::Network(h.parse().unwrap()), *r)).collect(),
    }
}

fn desired(all: &[(usize, &[(&str, Rights)])]) -> Desired {
    all.iter().map(|(n, hosts)| (volume(*n), export(*n, hosts))).collect()
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

/// The same rights by other flavours.
fn by(security: &str, rights: Rights) -> Rights {
    Rights { security: security.parse().unwrap(), ..rights }
}

/// A keytab with one key.
fn keytab() -> KeytabFile {
    let counted = |text: &str| [&(text.len() as u16).to_be_bytes(), text.as_bytes()].concat();
    let names = [counted("A.B"), counted("nfs"), counted("storage")].concat();
    let entry = [&[0, 2][..], &names, &[0, 0, 0, 1, 0, 0, 0, 0, 2, 0, 18, 0, 1, 7]].concat();
    KeytabFile::new([&[5, 2][..], &(entry.len() as u32).to_be_bytes(), &entry].concat()).unwrap()
}

/// What the most specific network says of who comes by a flavour.
fn due(desired: &Desired, n: usize, host: IpAddr, by: Flavour) -> Access {
    let Some(export) = desired.get(&volume(n)) else { return Access::None };
    let nets = entries::wanted(export);
    let best = nets.iter().filter(|(r, _)| r.contains(&host)).max_by_key(|(r, _)| r.prefix_len());
    match best {
        None => Access::None,
        Some((_, rights)) if !rights.security.lets_in(by) => Access::None,
        Some((_, rights)) if rights.read_only => Access::Read,
        Some(_) => Access::Write,
    }
}

/// A server that is looked at after every change.
struct Watched {
    sim: Arc<SimNfs>,
    /// The most that each host may have at each volume, by each flavour.
    most: Mutex<BTreeMap<(usize, usize, Flavour), Access>>,
    /// The least.
    least: Mutex<BTreeMap<(usize, usize, Flavour), Access>>,
    violations: Mutex<Vec<String>>,
}

impl Watched {
    fn after<T>(&self, what: &str, result: io::Result<T>) -> io::Result<T> {
        for ((n, h, by), most) in &*self.most.lock() {
            let now = self.sim.access_by(host(*h), *by, &place(*n));
            if now > *most {
                self.violations
                    .lock()
                    .push(format!("after {what}: {} has {now:?} at {n} by {by}", HOSTS[*h]));
            }
        }
        for ((n, h, by), least) in &*self.least.lock() {
            let now = self.sim.access_by(host(*h), *by, &place(*n));
            if now < *least {
                let why = format!("after {what}: {} has but {now:?} at {n} by {by}", HOSTS[*h]);
                self.violations.lock().push(why);
            }
        }
        result
    }
}

impl NfsServer for Watched {
    fn mounts(&self) -> io::Result<Vec<Mount>> {
        self.sim.mounts()
    }
    fn look_at(&self, path: &Path) -> io::Result<Backing> {
        self.sim.look_at(path)
    }
    fn make_root(&self, root: &Path) -> io::Result<()> {
        self.sim.make_root(root)
    }
    fn bind(&self, backing: &Path, place: &Path) -> io::Result<()> {
        self.after("bind", self.sim.bind(backing, place))
    }
    fn unbind(&self, place: &Path) -> io::Result<()> {
        self.after("unbind", self.sim.unbind(place))
    }
    fn files(&self) -> io::Result<BTreeMap<String, String>> {
        self.sim.files()
    }
    fn file(&self, name: &str) -> io::Result<Option<String>> {
        self.sim.file(name)
    }
    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        self.after("write", self.sim.write(name, text))
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.after("remove", self.sim.remove(name))
    }
    fn table(&self) -> io::Result<String> {
        self.sim.table()
    }
    fn export(&self, p: &str, clients: &BTreeSet<String>, o: &str, d: &Deadline) -> io::Result<()> {
        self.after(&format!("export {clients:?} {o}"), self.sim.export(p, clients, o, d))
    }
    fn withdraw(&self, p: &str, clients: &BTreeSet<String>, d: &Deadline) -> io::Result<()> {
        self.after(&format!("withdraw {clients:?}"), self.sim.withdraw(p, clients, d))
    }
    fn threads(&self) -> io::Result<u32> {
        self.sim.threads()
    }
    fn versions(&self) -> io::Result<String> {
        self.sim.versions()
    }
    fn settings(&self) -> io::Result<Option<String>> {
        self.sim.settings()
    }
    fn configure(&self, settings: &str) -> io::Result<()> {
        self.sim.configure(settings)
    }
    fn start(&self, d: &Deadline) -> io::Result<()> {
        self.after("start", self.sim.start(d))
    }
    fn restart(&self, d: &Deadline) -> io::Result<()> {
        self.after("restart", self.sim.restart(d))
    }
    fn can_kerberos(&self, d: &Deadline) -> io::Result<()> {
        self.sim.can_kerberos(d)
    }
    fn set_keytab(&self, keytab: Option<&KeytabFile>, d: &Deadline) -> io::Result<()> {
        self.sim.set_keytab(keytab, d)
    }
    fn checks_tickets(&self, d: &Deadline) -> io::Result<bool> {
        self.sim.checks_tickets(d)
    }
    fn check_tickets(&self, d: &Deadline) -> io::Result<()> {
        self.after("check tickets", self.sim.check_tickets(d))
    }
    fn flush(&self) -> io::Result<()> {
        self.sim.flush()
    }
    fn clear(&self) -> io::Result<()> {
        self.sim.clear()
    }
    fn calls(&self) -> io::Result<Option<BTreeSet<Call>>> {
        self.sim.calls()
    }
    fn clients(&self) -> io::Result<Vec<Client>> {
        self.sim.clients()
    }
    fn holds(&self, client: &Client, device: (u32, u32)) -> io::Result<bool> {
        self.sim.holds(client, device)
    }
    fn expire(&self, client: &Client) -> io::Result<()> {
        self.sim.expire(client)
    }
    fn lockers(&self, device: (u32, u32)) -> io::Result<BTreeSet<IpAddr>> {
        self.sim.lockers(device)
    }
    fn free_locks(&self, host: IpAddr) -> io::Result<()> {
        self.sim.free_locks(host)
    }
    fn revoke(&self, place: &Path) -> io::Result<()> {
        self.sim.revoke(place)
    }
}

struct Stand {
    sim: Arc<SimNfs>,
    watched: Arc<Watched>,
    target: Nfs,
    /// What was desired last: what the files say, of which a service that is started serves all.
    last: Mutex<Desired>,
}

impl Stand {
    fn new() -> Self {
        let sim = Arc::new(SimNfs::strict());
        sim.mount("/");
        sim.mount(&backing(0));
        sim.mount(&backing(1));
        let watched = Arc::new(Watched {
            sim: sim.clone(),
            most: Mutex::default(),
            least: Mutex::default(),
            violations: Mutex::default(),
        });
        let target = Nfs::over(NfsConfig::default(), watched.clone()).with_poll(Duration::ZERO);
        sim.put_entry(FOREIGN, "10.0.0.0/16", "rw");
        sim.set_keytab(Some(&keytab()), &soon()).unwrap();
        Self { sim, watched, target, last: Mutex::default() }
    }

    /// With bounds: nobody may ever have more than before or after, nor less than both.
    fn converge(&self, scope: Scope, desired: &Desired) -> Result<Report> {
        for n in 0..2 {
            for (h, by) in (0..HOSTS.len()).flat_map(|h| FLAVOURS.map(|by| (h, by))) {
                let now = self.sim.access_by(host(h), by, &place(n));
                let then = due(desired, n, host(h), by);
                let before = due(&self.last.lock(), n, host(h), by);
                self.watched.most.lock().insert((n, h, by), now.max(then).max(before));
                let in_scope = scope.volume().is_none_or(|v| v == volume(n));
                let least = if in_scope { now.min(then) } else { now };
                self.watched.least.lock().insert((n, h, by), least);
            }
        }
        let result = self.target.converge(scope, desired, &soon());
        for (n, v) in (0..2).map(|n| (n, volume(n))).filter(|(_, v)| scope.volume().is_none_or(|s| s == *v)) {
            self.last.lock().remove(&v);
            self.last.lock().extend(desired.get(&volume(n)).map(|e| (v, e.clone())));
        }
        self.watched.most.lock().clear();
        self.watched.least.lock().clear();
        result
    }

    fn ok(&self, scope: Scope, desired: &Desired) -> Vec<String> {
        let report = self.converge(scope, desired).unwrap();
        assert!(report.is_complete(), "{report:?}");
        report.steps
    }

    /// Every host opens and writes what it may, by every flavour.
    fn use_all(&self) {
        for (h, n) in (0..HOSTS.len()).flat_map(|h| [(h, 0), (h, 1)]) {
            for by in FLAVOURS {
                let _ = self.sim.open_by(host(h), by, h % 2 == 0, &place(n));
                let _ = self.sim.begin_write_by(host(h), by, &place(n), 3);
            }
        }
    }

    /// Who is not let in has nothing any more.
    fn check_ends(&self, desired: &Desired) {
        for (h, n) in (0..HOSTS.len()).flat_map(|h| [(h, 0), (h, 1)]) {
            let device = self.sim.device(&backing(n)).unwrap();
            for by in FLAVOURS.into_iter().filter(|by| due(desired, n, host(h), *by) == Access::None) {
                assert!(!self.sim.is_in_by(host(h), by, device), "{} is at {n} by {by}", HOSTS[h]);
            }
        }
    }

    /// All is as desired: for whom, and for how long.
    fn check(&self, desired: &Desired) {
        for n in 0..2 {
            for (h, name) in HOSTS.iter().enumerate() {
                for by in FLAVOURS {
                    let is = self.sim.access_by(host(h), by, &place(n));
                    let due = due(desired, n, host(h), by);
                    assert_eq!(is, due, "{name} at {n} by {by}: {:?}", self.sim.table());
                }
            }
        }
        let again = self.target.converge(Scope::All, desired, &soon()).unwrap();
        assert!(again.steps.is_empty(), "{:?}", again.steps);
        assert_eq!(*self.watched.violations.lock(), Vec::<String>::new());
    }
}

#[test]
fn exports_and_nothing_is_left_to_do() {
    let s = Stand::new();
    let all = desired(&[(0, &[("10.0.0.5", RW)]), (1, &[("10.0.0.0/24", RO), ("10.0.0.6", RW)])]);
    let steps = s.ok(Scope::All, &all);
    assert_eq!(steps.last().map(String::as_str), Some("start the NFS server"));
    s.check(&all);
    for scope in [Scope::Desired, Scope::Volume(volume(0))] {
        assert!(s.ok(scope, &all).is_empty());
    }
    let text = s.sim.options(host(0), &place(1)).unwrap();
    for option in ["ro", "root_squash", "no_all_squash", "sync", "mountpoint", "sec=sys", "nocrossmnt"] {
        assert!(text.split(',').any(|o| o == option), "{option} in {text}");
    }
    assert!(text.contains(&format!("fsid={}", volume(1))));
    assert_eq!(Target::served(&s.target, &soon()).unwrap().len(), 2);
    // A volume more, while the server runs: nothing of the other one is touched.
    assert!(s.ok(Scope::All, &desired(&[])).len() > 4);
    s.check(&desired(&[]));
    assert!(Target::served(&s.target, &soon()).unwrap().is_empty());
}

#[test]
fn a_restart_of_the_service_serves_the_same() {
    let s = Stand::new();
    let all = desired(&[(0, &[("10.0.0.0/24", RO), ("10.0.0.0/16", RW)])]);
    s.ok(Scope::All, &all);
    s.sim.stop();
    s.sim.restart(&soon()).unwrap();
    s.check(&all);
    s.sim.stop();
    assert_eq!(s.ok(Scope::Volume(volume(0)), &all), ["start the NFS server"]);
    s.check(&all);
}

#[test]
fn a_fence_takes_what_a_host_has_and_nothing_of_others() {
    for fenced_has_other in [false, true] {
        let s = Stand::new();
        let before = desired(&[(0, &[("10.0.0.5", RW), ("10.0.0.6", RW)]), (1, &[("10.0.0.5", RW)])]);
        s.ok(Scope::All, &before);
        for (h, v4) in [(0, true), (0, false), (1, true), (1, false)] {
            s.sim.open(host(h), v4, &place(0)).unwrap();
        }
        if fenced_has_other {
            s.sim.open(host(0), false, &place(1)).unwrap();
        }
        s.sim.begin_write(host(0), &place(0), 5).unwrap();
        s.sim.begin_write(host(1), &place(0), 200).unwrap();
        let after = desired(&[(0, &[("10.0.0.6", RW)]), (1, &[("10.0.0.5", RW)])]);
        s.ok(Scope::Fence(volume(0)), &after);
        let device = s.sim.device(&backing(0)).unwrap();
        assert!(!s.sim.is_in(host(0), device));
        assert!(s.sim.is_in(host(1), device), "who stays is left alone");
        assert!(s.sim.begin_write(host(0), &place(0), 1).is_err());
        s.sim.begin_write(host(0), &place(1), 1).unwrap();
        s.check(&after);
    }
}

#[test]
fn a_fence_finds_what_has_no_entry_any_more() {
    let s = Stand::new();
    let before = desired(&[(0, &[("10.0.0.5", RW), ("10.0.0.6", RW)])]);
    s.ok(Scope::All, &before);
    s.sim.open(host(0), true, &place(0)).unwrap();
    s.sim.begin_write(host(0), &place(0), 5).unwrap();
    // Somebody else withdraws it, and the file is as it should be.
    let after = desired(&[(0, &[("10.0.0.6", RW)])]);
    s.sim.withdraw(&place(0).to_string_lossy(), &["10.0.0.5".to_string()].into(), &soon()).unwrap();
    let now = s.target.plan(Scope::All, &after, &s.target.look(Scope::All, &after, &soon()).unwrap());
    s.target.apply(&now[0], &soon()).unwrap();
    s.ok(Scope::Fence(volume(0)), &after);
    assert!(!s.sim.is_in(host(0), s.sim.device(&backing(0)).unwrap()));
}

#[test]
fn who_comes_by_a_flavour_that_is_taken_away_has_nothing_left() {
    let s = Stand::new();
    s.ok(Scope::All, &desired(&[(0, &[("10.0.0.0/24", by("sys:krb5p", RW)), ("10.0.0.6", RW)])]));
    s.sim.open_by(host(0), Flavour::Krb5p, true, &place(0)).unwrap();
    s.sim.open(host(0), true, &place(0)).unwrap();
    s.sim.open(host(0), false, &place(0)).unwrap();
    s.sim.begin_write(host(0), &place(0), 5).unwrap();
    s.sim.open(host(1), true, &place(0)).unwrap();
    let device = s.sim.device(&backing(0)).unwrap();
    // Read only and squashed: nobody is turned away, and all keep what they have open.
    let less = desired(&[(0, &[("10.0.0.0/24", by("krb5p:sys", RO)), ("10.0.0.6", RW)])]);
    s.ok(Scope::Volume(volume(0)), &less);
    assert!(s.sim.is_in(host(0), device));
    let after = desired(&[(0, &[("10.0.0.0/24", by("krb5p", RW)), ("10.0.0.6", RW)])]);
    s.ok(Scope::Fence(volume(0)), &after);
    assert!(!s.sim.is_in_by(host(0), Flavour::Sys, device));
    assert!(s.sim.is_in(host(1), device), "who may come as before is left alone");
    assert!(s.sim.open(host(0), true, &place(0)).is_err());
    s.sim.open_by(host(0), Flavour::Krb5p, true, &place(0)).unwrap();
    s.check(&after);
    let text = s.sim.options(host(0), &place(0)).unwrap();
    assert!(text.split(',').any(|o| o == "sec=krb5p"), "{text}");
    // Somebody weakens it by hand.
    s.sim.put_entry(&place(0).to_string_lossy(), "10.0.0.0/24", &text.replace("krb5p", "krb5p:sys"));
    assert!(!s.ok(Scope::All, &after).is_empty());
    s.check(&after);
}

#[test]
fn a_volume_whose_tickets_nobody_checks_says_so_and_serves_the_others() {
    let s = Stand::new();
    let all = desired(&[(0, &[("10.0.0.5", RW), ("10.0.0.6", by("krb5p", RW))]), (1, &[("10.0.0.5", RW)])]);
    s.ok(Scope::All, &all);
    Target::set_keytab(&s.target, None, &soon()).unwrap();
    assert!(Target::can_kerberos(&s.target, &soon()).unwrap_err().to_string().contains("no keytab"));
    assert!(s.sim.open_by(host(1), Flavour::Krb5p, true, &place(0)).is_err());
    let report = s.converge(Scope::All, &all).unwrap();
    assert_eq!(report.failed.get(&volume(0)).map(TargetError::kind), Some(ErrorKind::Unsupported));
    assert_eq!((report.failed.len(), s.sim.access(host(0), &place(0))), (1, Access::Write));
    Target::set_keytab(&s.target, Some(&keytab()), &soon()).unwrap();
    s.sim.open_by(host(1), Flavour::Krb5p, true, &place(0)).unwrap();
    s.check(&all);
}

#[test]
fn the_last_one_leaves_an_idle_file_system() {
    let s = Stand::new();
    s.ok(Scope::All, &desired(&[(0, &[("10.0.0.0/24", RW)])]));
    s.sim.open(host(0), true, &place(0)).unwrap();
    s.sim.open(host(1), false, &place(0)).unwrap();
    s.sim.begin_write(host(1), &place(0), 7).unwrap();
    let device = s.sim.device(&backing(0)).unwrap();
    s.ok(Scope::Fence(volume(0)), &desired(&[]));
    assert!(!s.sim.is_in(host(0), device) && !s.sim.is_in(host(1), device));
    assert_eq!(s.sim.device(&place(0).to_string_lossy()), None);
    s.check(&desired(&[]));
}

#[test]
fn what_can_not_be_served_is_refused_and_others_are_served() {
    for (path, detail) in [("/dev/d0", "no directory"), ("/mnt/empty", "mounted"), ("/missing", "not there")]
    {
        let s = Stand::new();
        let mut all = desired(&[(0, &[("10.0.0.5", RW)]), (1, &[("10.0.0.5", RW)])]);
        all.get_mut(&volume(0)).unwrap().backing = path.into();
        let report = s.converge(Scope::All, &all).unwrap();
        let error = report.failed.get(&volume(0)).unwrap();
        assert_eq!(error.kind(), ErrorKind::Precondition);
        assert!(error.to_string().contains(detail), "{error}");
        assert_eq!(s.sim.access(host(0), &place(1)), Access::Write);
        assert_eq!(s.sim.access(host(0), &place(0)), Access::None);
        assert!(s.converge(Scope::Volume(volume(0)), &all).is_err());
    }
    let s = Stand::new();
    let mut all = desired(&[(0, &[("10.0.0.5", RW)]), (1, &[("10.0.0.5", RW)])]);
    all.get_mut(&volume(0)).unwrap().backing = backing(1).into();
    assert_eq!(s.converge(Scope::All, &all).unwrap().failed.len(), 2, "one file system for two volumes");
}

#[test]
fn what_is_unmounted_is_no_longer_exported() {
    let s = Stand::new();
    let all = desired(&[(0, &[("10.0.0.5", RW)])]);
    s.ok(Scope::All, &all);
    s.sim.unmount(&backing(0));
    assert!(s.target.converge(Scope::Volume(volume(0)), &all, &soon()).is_err());
    assert_eq!(s.sim.device(&place(0).to_string_lossy()), None);
    assert!(Target::served(&s.target, &soon()).unwrap().is_empty());
}

#[test]
fn a_service_that_does_not_start_fails_its_volumes() {
    let s = Stand::new();
    s.sim.break_service(true);
    let all = desired(&[(0, &[("10.0.0.5", RW)])]);
    let report = s.converge(Scope::All, &all).unwrap();
    assert_eq!(report.failed.get(&volume(0)).map(TargetError::kind), Some(ErrorKind::Unavailable));
    assert_eq!(report.portals_down.len(), 1);
    s.sim.break_service(false);
    s.ok(Scope::All, &all);
    s.check(&all);
}

#[test]
fn an_entry_that_was_changed_by_hand_is_put_right() {
    let s = Stand::new();
    let all = desired(&[(0, &[("10.0.0.0/24", RO)])]);
    s.ok(Scope::All, &all);
    let place = place(0).to_string_lossy().into_owned();
    for (client, options) in
        [("10.0.0.0/24", "rw,sync"), ("host.example", "rw"), ("*", "rw"), ("10.0.0.9", "ro")]
    {
        s.sim.put_entry(&place, client, options);
        assert!(!s.target.converge(Scope::All, &all, &soon()).unwrap().steps.is_empty(), "{client}");
        s.check(&all);
    }
    assert_eq!(s.sim.foreign("/volumes").len(), 0, "the start of the service read the files alone");
    s.sim.put_entry(FOREIGN, "*", "rw");
    s.ok(Scope::All, &desired(&[]));
    assert_eq!(s.sim.foreign("/volumes").len(), 1);
}

#[test]
fn simulated_volumes_are_plain_directories() {
    let dir = tempfile::tempdir().unwrap();
    let (target, sim) = crate::target::sim::nfs_target(NfsConfig::default());
    let mut all = desired(&[(0, &[("10.0.0.5", RW)])]);
    all.get_mut(&volume(0)).unwrap().backing = dir.path().into();
    assert!(target.converge(Scope::All, &all, &soon()).unwrap().is_complete());
    assert!(target.converge(Scope::All, &all, &soon()).unwrap().steps.is_empty());
    assert_eq!(sim.access(host(0), &place(0)), Access::Write);
}

#[test]
fn arguments_are_as_exportfs_has_them() {
    for (client, argument) in [
        ("10.0.0.5", "10.0.0.5:/v"),
        ("10.0.0.0/24", "10.0.0.0/24:/v"),
        ("fd00::5", "[fd00::5]:/v"),
        ("fd00::/64", "[fd00::]/64:/v"),
    ] {
        assert_eq!(entries::argument(client, "/v"), argument);
        assert_eq!(entries::client(&entries::parse(client).unwrap()), client);
    }
    let table = "/v\t10.0.0.5(rw,sync,wdelay,hide,nocrossmnt,secure,no_root_squash,no_all_squash,no_subtree_check,\
                 secure_locks,acl,no_pnfs,fsid=0190c0de-0000-7000-8000-000000000000,mountpoint,anonuid=65534,\
                 anongid=65534,sec=sys,rw,no_root_squash,no_all_squash)\n";
    let entry = entries::table(table).next().unwrap().2;
    assert!(entries::is_as_asked(entry, &entries::options(volume(0), RW)));
    assert!(!entries::is_as_asked(entry, &entries::options(volume(0), RO)));
    assert!(!entries::is_as_asked(entry, &entries::options(volume(1), RW)));
    assert!(!entries::is_as_asked(&format!("{entry},crossmnt"), &entries::options(volume(0), RW)));
    assert!(!entries::is_as_asked(&format!("{entry},sec=none"), &entries::options(volume(0), RW)));
    assert!(!entries::is_as_asked(entry, &entries::options(volume(0), by("krb5p", RW))));
    let two = entry.replace("sec=sys", "sec=krb5p:krb5i");
    assert!(entries::is_as_asked(&two, &entries::options(volume(0), by("krb5p:krb5i", RW))));
    for other in ["krb5p", "krb5i:krb5p", "krb5p:krb5i:sys", "sys"] {
        assert!(!entries::is_as_asked(&two, &entries::options(volume(0), by(other, RW))), "{other}");
    }
    assert_eq!(entries::flavours(&two).into_iter().collect::<Vec<_>>(), ["krb5i", "krb5p"]);
    assert_eq!(entries::flavours("rw,sync").into_iter().collect::<Vec<_>>(), ["sys"]);
}

#[test]
fn a_file_tells_who_is_leaving_and_by_what_he_came() {
    let by = |list: &str| entries::flavours(&format!("sec={list}"));
    let leaving = [("10.0.0.5".to_string(), by("sys")), ("10.0.0.0/24".to_string(), by("krb5p:sys"))].into();
    let text = entries::file("/v", &BTreeMap::new(), &leaving);
    assert_eq!(entries::leaving(&text), leaving);
    // As an older daemon left it.
    assert_eq!(entries::leaving("# leaving 10.0.0.5\n"), [("10.0.0.5".to_string(), by("sys"))].into());
}

#[test]
fn settings_are_spelled_out() {
    let config = NfsConfig { addresses: vec!["10.0.0.1".parse().unwrap()], ..NfsConfig::default() };
    let text = config.settings();
    for line in ["host=10.0.0.1", "vers3=y", "vers4.0=n", "vers4.2=y", "lease-time=45", "manage-gids=n"] {
        assert!(text.lines().any(|l| l == line), "{line} in {text}");
    }
    assert!(config.is_served("+3 +4 +4.1 +4.2") && !config.is_served("-3 +4 +4.1 +4.2"));
    let only = NfsConfig { versions: [NfsVersion::V4_2].into(), ..config };
    assert!(only.is_served("-2 -3 +4 -4.0 -4.1 +4.2") && !only.is_served("+3 +4 +4.1 +4.2"));
    assert_eq!(only.portals(), [Portal::tcp("10.0.0.1", 2049)]);
}

impl NfsConfig {
    fn portals(&self) -> Vec<Portal> {
        portal::reachable(self.portal_configs().iter())
    }
}

fn some_rights() -> impl Strategy<Value = Rights> {
    let security = prop_oneof![Just("sys"), Just("krb5p"), Just("krb5p:sys")];
    (prop_oneof![Just(RW), Just(RO)], security).prop_map(|(rights, security)| by(security, rights))
}

fn some_desired() -> impl Strategy<Value = Desired> {
    let hosts = || proptest::collection::btree_map(0..NETWORKS.len(), some_rights(), 0..4);
    (hosts(), hosts()).prop_map(|(a, b)| {
        let mut all = Desired::new();
        for (n, hosts) in [a, b].into_iter().enumerate().filter(|(_, h)| !h.is_empty()) {
            let hosts: Vec<(&str, Rights)> = hosts.into_iter().map(|(h, r)| (NETWORKS[h], r)).collect();
            all.insert(volume(n), export(n, &hosts));
        }
        all
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// The most specific network decides, whatever the order.
    #[test]
    fn disjoint_ranges_mean_the_same(nets in proptest::collection::btree_map(0..NETWORKS.len(), some_rights(), 0..5)) {
        let hosts: BTreeMap<IpNet, Rights> =
            nets.into_iter().map(|(n, r)| (entries::parse(NETWORKS[n]).unwrap(), r)).collect();
        let made = entries::disjoint(&hosts);
        let ranges: Vec<&IpNet> = made.keys().filter(|r| !entries::is_single(r)).collect();
        for (at, a) in ranges.iter().enumerate() {
            for b in &ranges[at + 1..] {
                prop_assert!(!a.contains(*b) && !b.contains(*a));
            }
        }
        for h in 0..HOSTS.len() {
            let best = |all: &BTreeMap<IpNet, Rights>| {
                all.iter().filter(|(r, _)| r.contains(&host(h))).max_by_key(|(r, _)| r.prefix_len()).map(|(_, r)| *r)
            };
            prop_assert_eq!(best(&made), best(&hosts));
        }
    }

    /// From any state to any other, through states in which nobody has more than in the older and the newer, nor less.
    #[test]
    fn converges_from_any_state(old in some_desired(), new in some_desired(), stopped: bool, fence: bool) {
        let s = Stand::new();
        s.ok(Scope::All, &old);
        s.use_all();
        if stopped {
            s.sim.stop();
        }
        if fence {
            for n in 0..2 {
                s.ok(Scope::Fence(volume(n)), &new);
            }
        } else {
            s.ok(Scope::All, &new);
        }
        s.check(&new);
        s.check_ends(&new);
        s.sim.stop();
        s.sim.restart(&soon()).unwrap();
        s.check(&new);
    }

    /// A crash at any change, then a daemon that knows what should be: nobody who is not let in has anything left.
    #[test]
    fn converges_after_a_crash(old in some_desired(), new in some_desired(), at in 0usize..14) {
        let s = Stand::new();
        s.ok(Scope::All, &old);
        s.use_all();
        s.sim.fault_after(at, Fault::Fail(Errno::IO));
        // The step fails, the volume's later ones are left out: what a crash would leave of it.
        let _ = s.converge(Scope::All, &new);
        s.sim.fault_after(1_000_000, Fault::Fail(Errno::IO));
        s.ok(Scope::All, &new);
        s.check(&new);
        s.check_ends(&new);
    }
}
