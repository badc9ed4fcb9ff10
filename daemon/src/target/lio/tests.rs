//! The target over the simulated kernel: by example, and from any state to any other.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod deeds;
mod paths;
mod reservations;
mod sessions;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use orlop_api::{ByteSize, ChapCredentials, ChapPut, VolumeId};
use parking_lot::Mutex;
use proptest::prelude::*;
use rustix::io::Errno;

use deeds::{Deed, any_deed, any_desired, any_kernel};

use super::*;
use crate::model::Identity;
use crate::target::keys::Proof;
use crate::target::sim::Fault;
use crate::target::sim::lio::{SessionHandle, SimLio, SimLioKernel, SimReservations};
use crate::target::{Report, Rights, Target as _, TargetError};

mod portals;

const HOSTS: [&str; 5] = [
    "iqn.1993-08.org.debian:01:a",
    "iqn.1993-08.org.debian:01:b",
    "iqn.1993-08.org.debian:01:c",
    "iqn.1993-08.org.debian:01:d",
    "iqn.1993-08.org.debian:01:stranger",
];
const FOREIGN: &str = "iqn.2020-01.com.example:theirs";
const FOREIGN_STORE: &str = "core/iblock_0/theirs";
const PORTALS: [&str; 2] = ["10.0.0.1:3260", "[fd00::1]:3260"];
/// The paths to a volume: equal, and no host's to change.
const BEST: [&str; 2] = ["Implicit", "0"];
const OLD: SimLioKernel =
    SimLioKernel { own_authentication: false, product: false, discard: false, devices: false };

fn volume(n: usize) -> VolumeId {
    format!("0190c0de-0000-7000-8000-00000000000{n}").parse().unwrap()
}

fn host(h: usize) -> HostId {
    HostId::Iqn(HOSTS[h].parse().unwrap())
}

fn iqn(n: usize) -> String {
    NqnPrefix::default().target(volume(n)).to_string()
}

fn group(n: usize) -> String {
    format!("iscsi/{}/tpgt_1", iqn(n))
}

fn acl(n: usize, h: usize) -> String {
    format!("{}/acls/{}", group(n), HOSTS[h])
}

fn store(n: usize) -> String {
    format!("core/{ADAPTER}/{}", volume(n))
}

const RW: bool = false;
const RO: bool = true;

fn export(n: usize, device: &str, hosts: &[(usize, bool)]) -> Export {
    let rights = |read_only| Rights { read_only, ..Rights::default() };
    Export {
        identity: Identity::of(volume(n), &NqnPrefix::default()),
        backing: device.into(),
        size: ByteSize(1 << 30),
        hosts: hosts.iter().map(|(h, read_only)| (host(*h), rights(*read_only))).collect(),
    }
}

fn desired(all: &[(usize, &[usize])]) -> Desired {
    let with = |hosts: &[usize]| hosts.iter().map(|h| (*h, RW)).collect::<Vec<_>>();
    all.iter().map(|(n, hosts)| (volume(*n), export(*n, &format!("/dev/d{n}"), &with(hosts)))).collect()
}

fn one(n: usize, hosts: &[(usize, bool)]) -> Desired {
    [(volume(n), export(n, &format!("/dev/d{n}"), hosts))].into()
}

fn secret(n: usize) -> Proof {
    let pair = |user: &str, secret: String| ChapCredentials {
        user: user.parse().unwrap(),
        secret: secret.parse().unwrap(),
    };
    let target = (n % 2 == 1).then(|| pair("target", format!("mutual-{n:06}")));
    Proof::Chap(Box::new(ChapPut { host: pair(&format!("user{n}"), format!("secret-{n:06}")), target }))
}

fn known(n: usize) -> (String, String) {
    (format!("user{n}"), format!("secret-{n:06}"))
}

fn config() -> LioConfig {
    let portal = |text: &str| {
        let at: std::net::SocketAddr = text.parse().unwrap();
        PortalConfig { address: at.ip(), port: at.port() }
    };
    LioConfig { portals: PORTALS.map(portal).to_vec(), ..LioConfig::default() }
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

/// What may be true of a volume at most while it is converged.
#[derive(Debug, Default)]
struct Bound {
    login: BTreeSet<&'static str>,
    unproved: BTreeSet<&'static str>,
    write: BTreeSet<&'static str>,
}

/// A tree that is looked at after every change.
struct Watched {
    tree: Arc<SimLio>,
    bounds: Mutex<BTreeMap<usize, Bound>>,
    keys: HostKeys,
    violations: Mutex<Vec<String>>,
}

impl Watched {
    fn must_prove(&self, host: &str) -> bool {
        matches!(self.keys.get(host), Some(Proof::Chap(_)))
    }

    fn now(&self, n: usize) -> Bound {
        let unproved = self.tree.may_login_unproved(&iqn(n), &HOSTS);
        Bound {
            login: self.tree.may_login(&iqn(n), &HOSTS),
            unproved: unproved.into_iter().filter(|h| self.must_prove(h)).collect(),
            write: self.tree.may_write(&iqn(n), &HOSTS),
        }
    }

    fn after<T>(&self, what: String, result: io::Result<T>) -> io::Result<T> {
        for (n, bound) in &*self.bounds.lock() {
            let now = self.now(*n);
            let fine = now.login.is_subset(&bound.login)
                && now.unproved.is_subset(&bound.unproved)
                && now.write.is_subset(&bound.write);
            if !fine {
                self.violations
                    .lock()
                    .push(format!("after {what}: volume {n}: {now:?} of at most {bound:?}"));
            }
        }
        if what.contains(FOREIGN) || what.contains(FOREIGN_STORE) {
            self.violations.lock().push(format!("touched what is foreign: {what}"));
        }
        result
    }
}

impl ConfigTree for Watched {
    fn make_dir(&self, p: &str) -> io::Result<()> {
        self.after(format!("mkdir {p}"), self.tree.make_dir(p))
    }
    fn remove_dir(&self, p: &str) -> io::Result<()> {
        self.after(format!("rmdir {p}"), self.tree.remove_dir(p))
    }
    fn read(&self, p: &str) -> io::Result<String> {
        self.tree.read(p)
    }
    fn write(&self, p: &str, v: &str) -> io::Result<()> {
        self.after(format!("write {p} {v}"), self.tree.write(p, v))
    }
    fn restrict(&self, p: &str) -> io::Result<()> {
        self.tree.restrict(p)
    }
    fn link(&self, t: &str, p: &str) -> io::Result<()> {
        self.after(format!("link {p}"), self.tree.link(t, p))
    }
    fn unlink(&self, p: &str) -> io::Result<()> {
        self.after(format!("unlink {p}"), self.tree.unlink(p))
    }
    fn list(&self, p: &str) -> io::Result<Vec<String>> {
        self.tree.list(p)
    }
    fn read_link(&self, p: &str) -> io::Result<String> {
        self.tree.read_link(p)
    }
}

struct Stand {
    tree: Arc<SimLio>,
    watched: Arc<Watched>,
    target: Lio,
    keys: HostKeys,
    /// Every session that ever was: volume number, host.
    sessions: Vec<(usize, &'static str, SessionHandle)>,
}

impl Stand {
    fn new(kernel: SimLioKernel) -> Self {
        let tree = Arc::new(SimLio::new(kernel));
        let keys = HostKeys::default();
        let watched = Arc::new(Watched {
            tree: tree.clone(),
            bounds: Mutex::default(),
            keys: keys.clone(),
            violations: Mutex::default(),
        });
        let files = Arc::new(SimReservations(tree.clone()));
        let target = Lio::over(config(), watched.clone(), files).with_keys(keys.clone());
        Self { tree, watched, target, keys, sessions: Vec::new() }
    }

    fn converge(&self, scope: Scope, desired: &Desired) -> Result<Report> {
        for n in 0..2 {
            let mut bound = self.watched.now(n);
            bound.login.extend(wanted(desired, n));
            bound.write.extend(writers(desired, n));
            self.watched.bounds.lock().insert(n, bound);
        }
        let result = self.target.converge(scope, desired, &soon());
        self.watched.bounds.lock().clear();
        result
    }

    fn prove(&self, h: usize) -> Result<()> {
        Protocol::prove(&self.target, &host(h), &soon())
    }

    /// A host logs in, which knows whatever is asked of it.
    fn login(&mut self, n: usize, h: usize) -> io::Result<SessionHandle> {
        let known = self.tree.credentials(&iqn(n), HOSTS[h]);
        let known = known.as_ref().map(|(u, s)| (u.as_str(), s.as_str()));
        let handle = self.tree.login(HOSTS[h], &iqn(n), known)?;
        self.sessions.push((n, HOSTS[h], handle));
        Ok(handle)
    }

    fn login_all(&mut self) {
        for n in 0..2 {
            for h in 0..HOSTS.len() {
                let _ = self.login(n, h);
            }
        }
    }

    /// What hosts are told of the paths to a volume.
    fn paths(&self, n: usize) -> [String; 2] {
        ["alua_access_type", "alua_access_state"]
            .map(|name| self.tree.read(&format!("{}/alua/default_tg_pt_gp/{name}", store(n))).unwrap())
    }

    /// Nobody who is not desired has a session, and nobody writes who may only read.
    fn strangers(&self, desired: &Desired) -> Vec<String> {
        let mut all = Vec::new();
        for (n, host, session) in &self.sessions {
            if self.tree.is_live(*session) && !wanted(desired, *n).contains(host) {
                all.push(format!("{host} is still at volume {n}"));
            }
            if self.tree.write_disk(*session).is_ok() && !writers(desired, *n).contains(host) {
                all.push(format!("{host} still writes to volume {n}"));
            }
        }
        all
    }

    fn complaints(&self, desired: &Desired) -> Vec<String> {
        let mut all = std::mem::take(&mut *self.watched.violations.lock());
        all.extend(self.strangers(desired));
        all
    }
}

fn rights(desired: &Desired, n: usize, only: impl Fn(&Rights) -> bool) -> BTreeSet<&'static str> {
    let hosts = desired.get(&volume(n)).map(|e| e.hosts.clone()).unwrap_or_default();
    let has = |name: &&str| hosts.iter().any(|(h, r)| h.to_string() == **name && only(r));
    HOSTS.into_iter().filter(has).collect()
}

fn wanted(desired: &Desired, n: usize) -> BTreeSet<&'static str> {
    rights(desired, n, |_| true)
}

fn writers(desired: &Desired, n: usize) -> BTreeSet<&'static str> {
    rights(desired, n, |r| !r.read_only)
}

#[test]
fn builds_serves_and_leaves_nothing() {
    for kernel in [SimLioKernel::default(), OLD] {
        let mut s = Stand::new(kernel);
        let want = one(0, &[(0, RW), (1, RO)]);
        let report = s.converge(Scope::Volume(volume(0)), &want).unwrap();
        assert!(report.is_complete());
        assert_eq!(s.complaints(&want), [""; 0]);
        let serial = s.tree.read(&format!("{}/wwn/vpd_unit_serial", store(0))).unwrap();
        assert!(serial.ends_with(&want[&volume(0)].identity.scsi_serial), "{serial}");
        let tpu = s.tree.read(&format!("{}/attrib/emulate_tpu", store(0))).unwrap();
        assert_eq!(tpu, u8::from(kernel.discard).to_string());
        let writer = s.login(0, 0).unwrap();
        let reader = s.login(0, 1).unwrap();
        assert!(s.login(0, 2).is_err());
        assert!(s.tree.write_disk(writer).is_ok());
        assert!(s.tree.read_disk(reader).is_ok() && s.tree.write_disk(reader).is_err());
        for scope in [Scope::Volume(volume(0)), Scope::All] {
            assert_eq!(s.converge(scope, &want).unwrap().steps, [""; 0]);
        }
        s.converge(Scope::Fence(volume(0)), &one(0, &[(1, RO)])).unwrap();
        assert!(!s.tree.is_live(writer) && s.tree.is_live(reader), "one goes, the other stays");
        s.converge(Scope::Volume(volume(0)), &Desired::new()).unwrap();
        assert_eq!(s.strangers(&Desired::new()), [""; 0]);
        let left: Vec<_> =
            s.tree.dump().into_keys().filter(|k| k.contains("orlop") || k.contains("0190c0de")).collect();
        assert_eq!(left, [""; 0]);
    }
}

#[test]
fn portals_and_then_targets_open_last() {
    let s = Stand::new(SimLioKernel::default());
    let want = desired(&[(0, &[0, 1]), (1, &[1]), (2, &[0])]);
    let steps = s.converge(Scope::Desired, &want).unwrap().steps;
    let last = &steps[steps.len() - 9..];
    assert!(last[..3].iter().all(|s| s.contains(PORTALS[0])), "{last:#?}");
    assert!(last[3..6].iter().all(|s| s.contains(PORTALS[1])), "{last:#?}");
    assert!(last[6..].iter().all(|s| s.starts_with("enable iqn")), "{last:#?}");
}

#[test]
fn rights_change_without_a_new_session() {
    let mut s = Stand::new(SimLioKernel::default());
    s.converge(Scope::All, &one(0, &[(0, RW), (1, RO)])).unwrap();
    let (a, b) = (s.login(0, 0).unwrap(), s.login(0, 1).unwrap());
    let want = one(0, &[(0, RO), (1, RW)]);
    let report = s.converge(Scope::Volume(volume(0)), &want).unwrap();
    assert_eq!(report.steps.len(), 2, "{:?}", report.steps);
    assert_eq!(s.complaints(&want), [""; 0]);
    assert!(s.tree.write_disk(a).is_err() && s.tree.read_disk(a).is_ok());
    assert!(s.tree.write_disk(b).is_ok());
}

#[test]
fn who_was_let_in_by_another_hand_goes() {
    let mut s = Stand::new(SimLioKernel::default());
    let want = desired(&[(0, &[0])]);
    s.converge(Scope::All, &want).unwrap();
    let stays = s.login(0, 0).unwrap();
    let attribute = |name: &str| format!("{}/attrib/{name}", group(0));
    let open = |s: &Stand, on: &str, off: &str| {
        s.tree.write(&attribute("authentication"), off).unwrap();
        s.tree.write(&attribute("generate_node_acls"), on).unwrap();
        s.tree.write(&attribute("cache_dynamic_acls"), "0").unwrap();
    };
    open(&s, "1", "0");
    let stranger = s.login(0, 4).unwrap();
    // He has set it back, so all that is left is the session.
    open(&s, "0", "1");
    s.converge(Scope::Fence(volume(0)), &want).unwrap();
    assert!(!s.tree.is_live(stranger));
    assert!(s.tree.is_live(stays), "a host that stays was disturbed");
    assert_eq!(s.complaints(&want), [""; 0]);
    // It is still open: all is made anew.
    open(&s, "1", "0");
    s.tree.write(&attribute("cache_dynamic_acls"), "1").unwrap();
    let stranger = s.login(0, 4).unwrap();
    s.tree.logout(stranger);
    s.converge(Scope::Volume(volume(0)), &want).unwrap();
    assert_eq!(s.complaints(&want), [""; 0]);
    assert!(s.login(0, 4).is_err() && s.login(0, 0).is_ok());
}

#[test]
fn a_secret_is_asked_for_from_the_first_moment() {
    for kernel in [SimLioKernel::default(), OLD] {
        let mut s = Stand::new(kernel);
        s.keys.put(&host(0), secret(1));
        let want = desired(&[(0, &[0])]);
        s.converge(Scope::All, &want).unwrap();
        assert_eq!(s.complaints(&want), [""; 0]);
        assert!(s.tree.login(HOSTS[0], &iqn(0), None).is_err());
        let (user, text) = known(1);
        assert!(s.tree.login(HOSTS[0], &iqn(0), Some((&user, &text))).is_ok());
        let mutual = s.tree.read(&format!("{}/auth/password_mutual", acl(0, 0))).unwrap();
        assert_eq!(mutual, "mutual-000001");
        // Another one: who is there stays, and the old one is worth nothing.
        let session = s.login(0, 0).unwrap();
        s.keys.put(&host(0), secret(2));
        s.prove(0).unwrap();
        assert!(s.tree.is_live(session));
        assert!(s.tree.login(HOSTS[0], &iqn(0), Some((&user, &text))).is_err());
        let (user, text) = known(2);
        assert!(s.tree.login(HOSTS[0], &iqn(0), Some((&user, &text))).is_ok());
        assert_eq!(s.converge(Scope::All, &want).unwrap().steps, [""; 0]);
        // None any more.
        s.keys.put(&host(0), Proof::Nothing);
        s.prove(0).unwrap();
        assert!(s.tree.is_live(session) && s.tree.login(HOSTS[0], &iqn(0), None).is_ok());
        assert_eq!(s.converge(Scope::All, &want).unwrap().steps, [""; 0]);
        assert!(s.tree.credentials(&iqn(0), HOSTS[0]).is_none());
    }
}

#[test]
fn secrets_are_said_nowhere() {
    let s = Stand::new(SimLioKernel::default());
    s.keys.put(&host(0), secret(1));
    let want = desired(&[(0, &[0])]);
    let mut seen = format!("{:?}", s.converge(Scope::All, &want).unwrap());
    s.keys.put(&host(0), secret(3));
    let observed = s.target.observe(Scope::All, &want, &soon()).unwrap();
    let steps = s.target.plan(Scope::All, &want, &observed);
    assert_eq!(steps.len(), 1, "{steps:?}");
    seen += &format!("{observed:?} {steps:?} {}", steps[0]);
    assert!(!seen.contains("secret-") && !seen.contains("mutual-"), "{seen}");
}

/// Before Linux 6.2 hosts with and without a secret can't be had together.
#[test]
fn where_all_or_none_are_asked_nobody_gets_in_unproved() {
    let mut s = Stand::new(OLD);
    s.converge(Scope::All, &desired(&[(0, &[0])])).unwrap();
    let session = s.login(0, 0).unwrap();
    s.keys.put(&host(1), secret(1));
    let both = desired(&[(0, &[0, 1])]);
    let error = s.converge(Scope::Volume(volume(0)), &both).unwrap_err();
    assert!(matches!(error, TargetError::Unsupported(_)), "{error}");
    assert_eq!(s.complaints(&both), [""; 0]);
    assert!(s.tree.is_live(session), "who is there is not disturbed");
    // Without the one, the other is let in again.
    s.converge(Scope::Volume(volume(0)), &desired(&[(0, &[0])])).unwrap();
    assert!(s.tree.login(HOSTS[0], &iqn(0), None).is_ok());
    // A host that is let in already, and gets a secret that can't be asked for.
    s.converge(Scope::Volume(volume(0)), &desired(&[(0, &[0, 2])])).unwrap();
    s.keys.put(&host(2), secret(3));
    let error = s.prove(2).unwrap_err();
    assert!(matches!(error, TargetError::Unsupported(_)), "{error}");
    assert!(s.login(0, 2).is_err() && s.tree.login(HOSTS[0], &iqn(0), None).is_ok());
}

#[test]
fn secrets_of_others_are_left_alone() {
    let s = Stand::new(SimLioKernel::default());
    let want = desired(&[(0, &[0])]);
    s.converge(Scope::All, &want).unwrap();
    s.tree.write(&format!("{}/auth/password", acl(0, 0)), "somebodys").unwrap();
    s.tree.write(&format!("{}/attrib/authentication", acl(0, 0)), "1").unwrap();
    assert_eq!(s.converge(Scope::All, &want).unwrap().steps, [""; 0]);
}

#[test]
fn one_portal_down_is_a_report_and_all_down_an_error() {
    let mut s = Stand::new(SimLioKernel::default());
    let want = desired(&[(0, &[0]), (1, &[1])]);
    s.tree.refuse_portal(PORTALS[1], Some(Errno::INVAL));
    let report = s.converge(Scope::All, &want).unwrap();
    assert!(report.failed.is_empty());
    assert_eq!(report.portals_down.len(), 1);
    s.login(0, 0).unwrap();
    s.tree.refuse_portal(PORTALS[1], None);
    assert!(s.converge(Scope::All, &want).unwrap().is_complete());

    let s = Stand::new(SimLioKernel::default());
    PORTALS.iter().for_each(|p| s.tree.refuse_portal(p, Some(Errno::INVAL)));
    let report = s.converge(Scope::All, &want).unwrap();
    assert!(matches!(report.failed[&volume(0)], TargetError::Portal { .. }), "{report:?}");
}

#[test]
fn a_device_in_other_hands_is_refused() {
    let s = Stand::new(SimLioKernel::default());
    theirs(&s.tree, "/dev/d0");
    let want = desired(&[(0, &[0]), (1, &[1])]);
    let report = s.converge(Scope::All, &want).unwrap();
    assert!(matches!(report.failed[&volume(0)], TargetError::Foreign { .. }), "{report:?}");
    assert!(report.result_for(volume(1)).is_ok());
    let error = s.converge(Scope::Volume(volume(0)), &want).unwrap_err();
    assert!(matches!(error, TargetError::Foreign { .. }), "{error}");
    assert_eq!(s.complaints(&want), [""; 0]);
    // A backstore of ours that somebody else serves as well can't be removed.
    s.converge(Scope::Volume(volume(1)), &want).unwrap();
    s.tree.make_dir(&format!("iscsi/{FOREIGN}/tpgt_1/lun/lun_5")).unwrap();
    s.tree.link(&store(1), &format!("iscsi/{FOREIGN}/tpgt_1/lun/lun_5/x")).unwrap();
    let error = s.converge(Scope::Volume(volume(1)), &Desired::new()).unwrap_err();
    assert!(matches!(error, TargetError::Foreign { .. }), "{error}");
}

#[test]
fn another_device_is_made_anew() {
    let mut s = Stand::new(SimLioKernel::default());
    s.converge(Scope::All, &desired(&[(0, &[0])])).unwrap();
    s.login(0, 0).unwrap();
    let want: Desired = [(volume(0), export(0, "/dev/d7", &[(0, RW)]))].into();
    s.converge(Scope::Volume(volume(0)), &want).unwrap();
    assert_eq!(s.complaints(&want), [""; 0]);
    assert!(s.tree.read(&format!("{}/info", store(0))).unwrap().contains("/dev/d7"));
}

#[test]
fn without_the_module_it_is_unsupported() {
    let dir = tempfile::tempdir().unwrap();
    let target = Lio::over(config(), Arc::new(ConfigFs::at(dir.path())), Arc::new(ReservationsOnDisk));
    let error = target.converge(Scope::All, &Desired::new(), &soon()).unwrap_err();
    assert!(matches!(error, TargetError::Absent(_)), "{error}");
}

#[test]
fn an_overrun_stops_between_two_steps() {
    let s = Stand::new(SimLioKernel::default());
    let before = s.tree.dump();
    let deadline = soon();
    deadline.abandon();
    let error = s.target.converge(Scope::Volume(volume(0)), &desired(&[(0, &[0])]), &deadline).unwrap_err();
    assert!(matches!(error, TargetError::Deadline(..)), "{error}");
    assert_eq!(s.tree.dump(), before);
}

/// Every place to stop, for every change of hosts.
#[test]
fn a_stop_at_any_step_hides_nobody() {
    let sets: [&[(usize, bool)]; 6] =
        [&[], &[(0, RW)], &[(1, RO)], &[(0, RO), (1, RW)], &[(2, RW)], &[(1, RW), (2, RO)]];
    let all = |hosts: &[(usize, bool)]| if hosts.is_empty() { Desired::new() } else { one(0, hosts) };
    for (first, after) in sets.iter().flat_map(|f| (0..24).map(move |n| (f, n))) {
        for then in sets {
            let mut s = Stand::new(SimLioKernel::default());
            s.keys.put(&host(1), secret(1));
            s.converge(Scope::All, &one(0, &[(0, RW), (1, RW)])).unwrap();
            s.login_all();
            s.tree.fault_after(after, Fault::Fail(Errno::IO));
            let _ = s.converge(Scope::Volume(volume(0)), &all(first));
            s.login_all();
            s.tree.fault_after(usize::MAX, Fault::Fail(Errno::IO));
            let want = all(then);
            s.converge(Scope::Volume(volume(0)), &want).unwrap();
            assert_eq!(s.complaints(&want), [""; 0], "{first:?}, stopped after {after}, then {then:?}");
            assert_eq!(s.tree.may_login(&iqn(0), &HOSTS), wanted(&want, 0));
            assert_eq!(s.tree.may_write(&iqn(0), &HOSTS), writers(&want, 0));
        }
    }
}

/// A target and a backstore of somebody else.
fn theirs(tree: &SimLio, device: &str) {
    for dir in ["core/iblock_0", FOREIGN_STORE, "iscsi"] {
        let _ = tree.make_dir(dir);
    }
    tree.write(&format!("{FOREIGN_STORE}/control"), &format!("udev_path={device}")).unwrap();
    tree.write(&format!("{FOREIGN_STORE}/enable"), "1").unwrap();
    let group = format!("iscsi/{FOREIGN}/tpgt_1");
    for dir in [&format!("iscsi/{FOREIGN}"), &group, &format!("{group}/lun/lun_0")] {
        tree.make_dir(dir).unwrap();
    }
    tree.link(FOREIGN_STORE, &format!("{group}/lun/lun_0/x")).unwrap();
}

/// A state of the kernel: perhaps one that we built, and then what others did.
fn stand(kernel: SimLioKernel, built: Option<&Desired>, deeds: &[Deed]) -> Stand {
    let mut s = Stand::new(kernel);
    theirs(&s.tree, "/dev/theirs");
    s.keys.put(&host(1), secret(1));
    s.keys.put(&host(2), secret(2));
    s.keys.put(&host(3), Proof::Nothing);
    if let Some(built) = built {
        let _ = s.converge(Scope::All, built);
        s.login_all();
    }
    for deed in deeds {
        // Most deeds are refused; those that are not make the state.
        let _ = match deed {
            Deed::Make(p) => s.tree.make_dir(p),
            Deed::Write(p, v) => s.tree.write(p, v),
            Deed::Link(t, p) => s.tree.link(t, p),
            Deed::Unlink(p) => s.tree.unlink(p),
            Deed::Remove(p) => s.tree.remove_dir(p),
            Deed::Login(n, h) => s.login(*n, *h).map(drop),
            Deed::Logout(n) => {
                s.sessions.get(*n).into_iter().for_each(|s_| s.tree.logout(s_.2));
                Ok(())
            }
        };
    }
    s
}

/// What must not change.
fn foreign(s: &Stand) -> BTreeMap<String, String> {
    let theirs = |k: &String| k.contains(FOREIGN) || k.starts_with(FOREIGN_STORE);
    s.tree.dump().into_iter().filter(|(k, _)| theirs(k)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_state_converges_to_any_other(
        kernel in any_kernel(),
        built in proptest::option::of(any_desired()),
        deeds in proptest::collection::vec(any_deed(), 0..60),
        want in any_desired(),
    ) {
        let mut s = stand(kernel, built.as_ref(), &deeds);
        let before = foreign(&s);
        let report = s.converge(Scope::All, &want).expect("the kernel can be read");
        prop_assert_eq!(s.complaints(&want), Vec::<String>::new());
        prop_assert_eq!(&foreign(&s), &before);
        for e in report.failed.values() {
            prop_assert!(matches!(e, TargetError::Foreign { .. }), "{} / {:?}", e, e);
        }
        let state = s.tree.dump();
        let again = s.converge(Scope::All, &want).expect("the kernel can be read");
        prop_assert_eq!(&again.steps, &Vec::<String>::new());
        prop_assert_eq!(s.tree.dump(), state);
        for n in (0..2).filter(|n| want.contains_key(&volume(*n)) && !report.failed.contains_key(&volume(*n))) {
            prop_assert_eq!(s.paths(n), BEST);
        }
        if report.is_complete() {
            for n in 0..2 {
                // Of host 0 nothing is known: somebody else's secret is left to it.
                prop_assert_eq!(&s.tree.may_write(&iqn(n), &HOSTS), &writers(&want, n));
                let wanted = wanted(&want, n);
                for (h, name) in HOSTS.iter().enumerate().skip(1) {
                    prop_assert_eq!(s.login(n, h).is_ok(), wanted.contains(name), "{} at {}", name, n);
                    let free = s.tree.login(name, &iqn(n), None).is_ok();
                    prop_assert_eq!(free, wanted.contains(name) && h == 3, "{} at {} unproved", name, n);
                }
            }
        }
    }

    /// Stopped at any step, and then wanted otherwise: as good as if it had never been stopped.
    #[test]
    fn an_interrupted_convergence_loses_no_trace(
        kernel in any_kernel(),
        built in any_desired(),
        open in any::<bool>(),
        first in any_desired(),
        after in prop_oneof![0usize..12, 0usize..60],
        narrow in any::<bool>(),
        want in any_desired(),
    ) {
        let mut s = stand(kernel, Some(&built), &[]);
        if open {
            let _ = s.tree.write(&format!("{}/attrib/authentication", group(0)), "0");
            let _ = s.tree.write(&format!("{}/attrib/generate_node_acls", group(0)), "1");
            s.login_all();
        }
        let scopes = if narrow { vec![Scope::Volume(volume(0)), Scope::Volume(volume(1))] } else { vec![Scope::All] };
        s.tree.fault_after(after, Fault::Fail(Errno::IO));
        for scope in &scopes {
            let _ = s.converge(*scope, &first);
        }
        s.login_all();
        s.tree.fault_after(usize::MAX, Fault::Fail(Errno::IO));
        let mut complete = true;
        for scope in &scopes {
            complete &= s.converge(*scope, &want).is_ok_and(|r| r.is_complete());
        }
        let devices: BTreeSet<_> = want.values().map(|e| &e.backing).collect();
        if devices.len() == want.len() && !narrow {
            prop_assert!(complete);
        }
        prop_assert_eq!(s.complaints(&want), Vec::<String>::new());
    }

    /// The same where all hosts of a target are asked, or none: what can't be had is refused, and nobody gets in unproved.
    #[test]
    fn nobody_is_unproved_where_all_or_none_are_asked(
        built in any_desired(),
        after in 0usize..60,
        first in any_desired(),
        want in any_desired(),
        later in 0usize..4,
    ) {
        let mut s = stand(OLD, Some(&built), &[]);
        s.tree.fault_after(after, Fault::Fail(Errno::IO));
        let _ = s.converge(Scope::All, &first);
        s.tree.fault_after(usize::MAX, Fault::Fail(Errno::IO));
        s.login_all();
        let report = s.converge(Scope::All, &want).expect("the kernel can be read");
        for e in report.failed.values() {
            let excused = matches!(e, TargetError::Foreign { .. } | TargetError::Unsupported(_));
            prop_assert!(excused, "{} / {:?}", e, e);
        }
        prop_assert_eq!(s.complaints(&want), Vec::<String>::new());
        s.keys.put(&host(later), secret(later));
        let _ = s.prove(later);
        for n in 0..2 {
            let unproved = s.tree.may_login_unproved(&iqn(n), &HOSTS);
            prop_assert!(unproved.iter().all(|h| !s.watched.must_prove(h)), "{:?}", unproved);
        }
    }
}

#[test]
fn a_hanging_step_is_the_only_one_that_is_tried() {
    let s = Stand::new(SimLioKernel::default());
    s.tree.fault_after(5, Fault::Hang);
    let deadline = soon();
    std::thread::scope(|scope| {
        let run =
            scope.spawn(|| s.target.converge(Scope::Volume(volume(0)), &desired(&[(0, &[0])]), &deadline));
        while s.tree.hanging() == 0 {
            std::thread::yield_now();
        }
        // The lane gives up on it: when it comes back, it must not go on.
        deadline.abandon();
        let state = s.tree.dump();
        s.tree.release();
        assert!(run.join().unwrap().is_err());
        assert_eq!(s.tree.dump(), state);
    });
}
