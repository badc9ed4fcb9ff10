//! The target over the simulated kernel: by example, and from any state to any other.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use orlop_api::{AuthenticationPut, ByteSize, TlsPut, VolumeId};
use parking_lot::Mutex;
use proptest::prelude::*;
use rustix::io::Errno;

use super::readers::{ReadOnlyDevices, SimReadOnlyDevices};
use super::tls::{SimKeyring, TlsKeyring, keys_of};
use super::*;
use crate::model::{Audience, Identity};
use crate::target::keys::Proof;
use crate::target::sim::{ControllerHandle, Fault, SimKernel, SimTree};
use crate::target::{HostId, Report, Rights, Target, TargetError};

mod portals;
mod read_only;
mod sessions;

const HOSTS: [&str; 5] = [
    "nqn.2014-08.org.nvmexpress:uuid:a",
    "nqn.2014-08.org.nvmexpress:uuid:b",
    "nqn.2014-08.org.nvmexpress:uuid:c",
    "nqn.2014-08.org.nvmexpress:uuid:d",
    "nqn.2014-08.org.nvmexpress:uuid:stranger",
];
/// The host that must come by TLS.
const SECURE: usize = 3;
/// The port that begins with it.
const SECURE_PORT: u16 = FIRST_PORT + 2;
const FOREIGN: &str = "nqn.2020-01.com.example:theirs";
/// Added to the number of a host that may only read.
const READS: usize = 10;

fn volume(n: usize) -> VolumeId {
    format!("0190c0de-0000-7000-8000-00000000000{n}").parse().unwrap()
}

/// A host by its number.
fn host(h: usize) -> HostId {
    HostId::Nqn(HOSTS[h % READS].parse().unwrap())
}

fn nqn(n: usize) -> String {
    nqn_for(n, Audience::Writers)
}

fn nqn_for(n: usize, audience: Audience) -> String {
    NqnPrefix::default().subsystem_for(volume(n), audience).to_string()
}

/// Both subsystems of the volumes that are looked at.
fn doors() -> impl Iterator<Item = (usize, Audience)> {
    (0..2).flat_map(|n| Audience::ALL.map(|audience| (n, audience)))
}

fn export(n: usize, device: &str, hosts: &[usize]) -> Export {
    Export {
        identity: Identity::of(volume(n), &NqnPrefix::default()),
        backing: device.into(),
        size: ByteSize(1 << 30),
        hosts: hosts.iter().map(|h| (host(*h), rights(*h))).collect(),
    }
}

fn rights(h: usize) -> Rights {
    Rights { tls: h % READS == SECURE, read_only: h >= READS, ..Rights::default() }
}

fn desired(all: &[(usize, &[usize])]) -> Desired {
    all.iter().map(|(n, hosts)| (volume(*n), export(*n, &format!("/dev/d{n}"), hosts))).collect()
}

fn config() -> NvmetConfig {
    let at = |a: &str, port| PortalConfig { address: a.parse().unwrap(), port };
    let portal = |a: &str| NvmetPortal::tcp(at(a, 4420));
    let secure = NvmetPortal { tls: true, ..NvmetPortal::tcp(at("10.0.0.1", 4430)) };
    NvmetConfig { portals: vec![portal("10.0.0.1"), portal("fd00::1"), secure], ..NvmetConfig::default() }
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

const BLIND: SimKernel = SimKernel {
    debugfs: false,
    qid_max: true,
    model: true,
    revalidate: true,
    authentication: true,
    tls: true,
    reservations: true,
    devices: false,
};

/// A tree that is looked at after every change.
struct Watched {
    tree: Arc<SimTree>,
    /// By volume number and subsystem, who may be able to connect at most.
    bounds: Mutex<BTreeMap<(usize, Audience), BTreeSet<&'static str>>>,
    /// The same of those that must prove a secret, and without a proof.
    unproved: Mutex<BTreeMap<(usize, Audience), BTreeSet<&'static str>>>,
    keys: HostKeys,
    violations: Mutex<Vec<String>>,
}

impl Watched {
    fn after<T>(&self, what: String, result: io::Result<T>) -> io::Result<T> {
        for ((n, audience), bound) in &*self.bounds.lock() {
            let now = self.tree.may_connect(&nqn_for(*n, *audience), &HOSTS);
            if !now.is_subset(bound) {
                self.violations
                    .lock()
                    .push(format!("after {what}: {now:?} may use volume {n} ({audience:?})"));
            }
        }
        for ((n, audience), bound) in &*self.unproved.lock() {
            let now = self.unproved(*n, *audience);
            if !now.is_subset(bound) {
                self.violations
                    .lock()
                    .push(format!("after {what}: {now:?} need no secret at volume {n} ({audience:?})"));
            }
        }
        if what.contains(FOREIGN) || what.contains("ports/1/") && !what.contains("orlop") {
            self.violations.lock().push(format!("touched what is foreign: {what}"));
        }
        result
    }
}

impl Watched {
    /// Who must prove a secret, or come by TLS, and could connect to a volume without.
    fn unproved(&self, n: usize, audience: Audience) -> BTreeSet<&'static str> {
        let nqn = nqn_for(n, audience);
        let must = |h: &&str| matches!(self.keys.get(h), Some(Proof::Secret(_)));
        let without = self.tree.may_connect_unproved(&nqn, &HOSTS).into_iter().filter(must);
        let encrypted = |h: &&str| self.keys.tls(h).is_some();
        without.chain(self.tree.may_connect_in_clear(&nqn, &HOSTS).into_iter().filter(encrypted)).collect()
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
        assert!(!(p.ends_with("allow_any_host") && v != "0"));
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
    tree: Arc<SimTree>,
    watched: Arc<Watched>,
    target: Nvmet,
    keys: HostKeys,
    ring: Arc<SimKeyring>,
    readers: Arc<SimReadOnlyDevices>,
    /// Every connection that was ever made: volume number, host, controller, and to which subsystem.
    connections: Vec<(usize, &'static str, ControllerHandle, Audience)>,
}

impl Stand {
    fn new(kernel: SimKernel) -> Self {
        let tree = Arc::new(SimTree::new(kernel));
        let keys = HostKeys::default();
        let watched = Arc::new(Watched {
            tree: tree.clone(),
            bounds: Mutex::default(),
            unproved: Mutex::default(),
            keys: keys.clone(),
            violations: Mutex::default(),
        });
        let ring = Arc::new(SimKeyring::default());
        let target = Nvmet::over(config(), watched.clone(), Some(Arc::new(tree.debug())), ring.clone());
        let readers = Arc::new(SimReadOnlyDevices::default());
        let target = target.with_keys(keys.clone()).with_readers(readers.clone()).with_poll(Duration::ZERO);
        keys.put_tls(&HOSTS[SECURE].parse().unwrap(), Some(tls_key(1)));
        Self { tree, watched, target, keys, ring, readers, connections: Vec::new() }
    }

    fn converge(&self, scope: Scope, desired: &Desired) -> Result<Report> {
        for (n, audience) in doors() {
            let mut bound = self.tree.may_connect(&nqn_for(n, audience), &HOSTS);
            bound.extend(wanted_by(desired, n, audience));
            self.watched.bounds.lock().insert((n, audience), bound);
            let unproved = self.watched.unproved(n, audience);
            self.watched.unproved.lock().insert((n, audience), unproved);
        }
        let result = self.target.converge(scope, desired, &soon());
        self.watched.bounds.lock().clear();
        self.watched.unproved.lock().clear();
        result
    }

    /// A host connects, which knows whatever secret is asked of it, and has its TLS key if it should have one.
    fn connect(&mut self, n: usize, host: usize, port: u16) -> io::Result<()> {
        self.connect_to(n, Audience::Writers, host, port)
    }

    fn connect_to(&mut self, n: usize, audience: Audience, host: usize, port: u16) -> io::Result<()> {
        let nqn = nqn_for(n, audience);
        if self.tree.read(&format!("ports/{port}/addr_tsas")).is_ok_and(|v| v == "tls1.3") {
            let key = self.keys.tls(HOSTS[host]).ok_or(Errno::KEYREJECTED)?;
            let known = |(identity, key): (String, Vec<u8>)| self.ring.get(&identity).unwrap() == Some(key);
            if !keys_of(&key, HOSTS[host], &nqn.parse().unwrap()).into_iter().any(known) {
                return Err(Errno::KEYREJECTED.into());
            }
        }
        let secret = self.tree.read(&format!("hosts/{}/dhchap_key", HOSTS[host])).unwrap_or_default();
        let handle = self.tree.connect_with(HOSTS[host], &nqn, port, &secret)?;
        self.connections.push((n, HOSTS[host], handle, audience));
        Ok(())
    }

    /// Where the portals are, and which have TLS: another hand may have given one another port.
    fn ports(&self, desired: &Desired) -> Vec<(u16, bool)> {
        let seen = self.target.observe(Scope::All, desired, &soon()).unwrap();
        config().ports(&seen.ports).into_iter().map(|(id, portal)| (id, portal.tls)).collect()
    }

    fn connect_all(&mut self) {
        for (n, audience) in doors() {
            for host in 0..HOSTS.len() {
                for port in [FIRST_PORT, FIRST_PORT + 1, SECURE_PORT] {
                    let _ = self.connect_to(n, audience, host, port);
                }
            }
        }
    }

    /// Nobody who is not desired reaches a disk, not even with what was under way.
    fn strangers(&self, desired: &Desired) -> Vec<String> {
        let through = self.connections.iter().filter(|(_, _, h, _)| self.tree.io(*h).is_ok());
        through
            .filter(|(n, host, _, audience)| !wanted_by(desired, *n, *audience).contains(host))
            .map(|(n, host, _, audience)| format!("{host} still uses volume {n} ({audience:?})"))
            .collect()
    }

    fn complaints(&self, desired: &Desired) -> Vec<String> {
        let mut all = std::mem::take(&mut *self.watched.violations.lock());
        all.extend(self.strangers(desired));
        all
    }
}

fn wanted_by(desired: &Desired, n: usize, audience: Audience) -> BTreeSet<&'static str> {
    let is = |h: &str| desired.get(&volume(n)).is_some_and(|e| e.audience(audience).any(|w| w.as_str() == h));
    HOSTS.into_iter().filter(|h| is(h)).collect()
}

#[test]
fn builds_serves_and_leaves_nothing() {
    for kernel in [SimKernel::default(), BLIND] {
        let mut s = Stand::new(kernel);
        let want = desired(&[(0, &[0, 1])]);
        let report = s.converge(Scope::Volume(volume(0)), &want).unwrap();
        assert!(report.is_complete());
        let dump = s.tree.dump();
        let at = |what: &str| dump.get(&format!("subsystems/{}/{what}", nqn(0))).unwrap().clone();
        assert_eq!(at("attr_serial"), want[&volume(0)].identity.serial);
        assert_eq!(at("attr_model"), "Orlop");
        assert_eq!(at("namespaces/1/device_uuid"), volume(0).to_string());
        assert_eq!(at("namespaces/1/device_nguid"), volume(0).to_string());
        s.connect(0, 0, FIRST_PORT).unwrap();
        s.connect(0, 1, FIRST_PORT + 1).unwrap();
        assert!(s.connect(0, 2, FIRST_PORT).is_err());
        assert!(s.connections.iter().all(|c| s.tree.io(c.2).is_ok()));
        for scope in [Scope::Volume(volume(0)), Scope::All] {
            assert_eq!(s.converge(scope, &want).unwrap().steps, [""; 0]);
        }
        assert!(s.connections.iter().all(|c| s.tree.is_live(c.2)));
        s.converge(Scope::Fence(volume(0)), &desired(&[(0, &[1])])).unwrap();
        assert_eq!(s.tree.list("hosts").unwrap(), [HOSTS[1]]);
        s.converge(Scope::Volume(volume(0)), &Desired::new()).unwrap();
        assert_eq!(s.strangers(&Desired::new()), [""; 0]);
        assert!(s.tree.dump().keys().all(|k| k.starts_with("ports/")), "{:?}", s.tree.dump());
    }
}

/// A portal opens with its first link, and who comes back then must find his own: so nothing else is done in between.
#[test]
fn links_come_last_and_all_at_once() {
    for scope in [Scope::All, Scope::Desired] {
        let s = Stand::new(SimKernel::default());
        let want = desired(&[(0, &[0, 1]), (1, &[1]), (2, &[0])]);
        let steps = s.converge(scope, &want).unwrap().steps;
        let links = steps.iter().skip_while(|s| !s.starts_with("link ")).collect::<Vec<_>>();
        assert_eq!(links.len(), 3 * 2, "{steps:#?}");
        assert!(links.iter().all(|s| s.starts_with("link ")), "{steps:#?}");
        let first = format!("port {FIRST_PORT}");
        assert!(links[..3].iter().all(|s| s.contains(&first)), "one portal after another: {steps:#?}");
    }
}

#[test]
fn what_is_not_desired_is_left_alone_where_not_all_is_known() {
    let mut s = Stand::new(SimKernel::default());
    s.converge(Scope::All, &desired(&[(0, &[0]), (1, &[1])])).unwrap();
    s.connect(1, 1, FIRST_PORT).unwrap();
    let now = desired(&[(0, &[0]), (2, &[0])]);
    s.converge(Scope::Desired, &now).unwrap();
    assert!(s.connections.iter().all(|c| s.tree.is_live(c.2)), "a host of another volume was cut off");
    s.connect(2, 0, FIRST_PORT).unwrap();
    s.converge(Scope::All, &now).unwrap();
    assert!(!s.connections.iter().any(|c| c.0 == 1 && s.tree.is_live(c.2)), "still there");
}

#[test]
fn detach_cuts_one_host_off_and_keeps_the_other() {
    for kernel in [SimKernel::default(), BLIND, SimKernel { qid_max: false, ..SimKernel::default() }] {
        let mut s = Stand::new(kernel);
        s.converge(Scope::All, &desired(&[(0, &[0, 1]), (1, &[0])])).unwrap();
        s.connect_all();
        let other: Vec<_> = s.connections.iter().filter(|c| c.0 == 1).map(|c| c.2).collect();
        let want = desired(&[(0, &[1])]);
        s.converge(Scope::Fence(volume(0)), &want).unwrap();
        assert_eq!(s.complaints(&desired(&[(0, &[1]), (1, &[0])])), [""; 0]);
        assert!(s.connect(0, 0, FIRST_PORT).is_err());
        s.connect(0, 1, FIRST_PORT).unwrap();
        assert!(other.iter().all(|h| s.tree.is_live(*h)), "another volume's host was disturbed");
    }
}

#[test]
fn a_link_removed_by_another_hand_is_not_the_end() {
    // Where controllers are listed, any convergence finds the one that is left.
    let mut s = Stand::new(SimKernel::default());
    let want = desired(&[(0, &[0])]);
    s.converge(Scope::All, &desired(&[(0, &[0, 1])])).unwrap();
    s.connect_all();
    s.tree.unlink(&format!("subsystems/{}/allowed_hosts/{}", nqn(0), HOSTS[1])).unwrap();
    assert_eq!(s.strangers(&want).len(), 2);
    s.converge(Scope::Volume(volume(0)), &want).unwrap();
    assert_eq!(s.complaints(&want), [""; 0]);
    // Where they are not, a fence does.
    let mut s = Stand::new(BLIND);
    s.converge(Scope::All, &desired(&[(0, &[0, 1])])).unwrap();
    s.connect_all();
    s.tree.unlink(&format!("subsystems/{}/allowed_hosts/{}", nqn(0), HOSTS[1])).unwrap();
    s.converge(Scope::Fence(volume(0)), &want).unwrap();
    assert_eq!(s.complaints(&want), [""; 0]);
}

#[test]
fn one_portal_down_is_a_report_and_all_down_an_error() {
    let s = Stand::new(SimKernel::default());
    let want = desired(&[(0, &[0]), (1, &[1])]);
    s.tree.refuse_portal("fd00::1", Some(Errno::ADDRNOTAVAIL));
    let report = s.converge(Scope::All, &want).unwrap();
    assert!(report.failed.is_empty());
    assert_eq!(report.portals_down.len(), 1);
    assert!(s.tree.connect(HOSTS[0], &nqn(0), FIRST_PORT).is_ok());
    // Said again as long as it lasts, and made good when it can be.
    assert_eq!(s.converge(Scope::Volume(volume(0)), &want).unwrap().portals_down.len(), 1);
    s.tree.refuse_portal("fd00::1", None);
    assert!(s.converge(Scope::All, &want).unwrap().is_complete());
    assert!(s.tree.connect(HOSTS[1], &nqn(1), FIRST_PORT + 1).is_ok());

    let s = Stand::new(SimKernel::default());
    s.tree.refuse_portal("fd00::1", Some(Errno::ADDRNOTAVAIL));
    s.tree.refuse_portal("10.0.0.1", Some(Errno::ADDRINUSE));
    let error = s.converge(Scope::Volume(volume(0)), &want).unwrap_err();
    assert!(matches!(error, TargetError::Portal { .. }), "{error}");
    assert_eq!(s.converge(Scope::All, &want).unwrap().failed.len(), 2);
}

#[test]
fn one_failure_does_not_stop_the_others() {
    let s = Stand::new(SimKernel { devices: true, ..SimKernel::default() });
    let mut want = desired(&[(0, &[0])]);
    want.insert(volume(1), export(1, "/dev/null", &[1]));
    let report = s.converge(Scope::All, &want).unwrap();
    assert!(report.result_for(volume(0)).is_err());
    assert!(report.result_for(volume(1)).is_ok());
    assert!(s.tree.connect(HOSTS[1], &nqn(1), FIRST_PORT).is_ok());
    assert!(s.converge(Scope::Volume(volume(0)), &want).is_err());
}

#[test]
fn a_device_is_served_once() {
    let s = Stand::new(SimKernel::default());
    s.tree.make_dir(&format!("subsystems/{FOREIGN}")).unwrap();
    s.tree.make_dir(&format!("subsystems/{FOREIGN}/namespaces/1")).unwrap();
    s.tree.write(&format!("subsystems/{FOREIGN}/namespaces/1/device_path"), "/dev/d0").unwrap();
    let report = s.converge(Scope::All, &desired(&[(0, &[0]), (1, &[0])])).unwrap();
    assert!(matches!(report.failed[&volume(0)], TargetError::Foreign { .. }));
    assert!(report.result_for(volume(1)).is_ok());

    let s = Stand::new(SimKernel::default());
    let mut want = desired(&[(0, &[0])]);
    s.converge(Scope::All, &want).unwrap();
    want.insert(volume(1), export(1, "/dev/d0", &[1]));
    let report = s.converge(Scope::All, &want).unwrap();
    assert_eq!(report.failed.len(), 2);
    // The one that was served is served on; the other is not.
    assert!(s.tree.connect(HOSTS[0], &nqn(0), FIRST_PORT).is_ok());
    assert!(s.tree.connect(HOSTS[1], &nqn(1), FIRST_PORT).is_err());
}

#[test]
fn size_is_announced_or_said_to_be_impossible() {
    let want = desired(&[(0, &[0])]);
    let s = Stand::new(SimKernel::default());
    assert!(Target::announce_size(&s.target, &want[&volume(0)], &soon()).is_err());
    s.converge(Scope::All, &want).unwrap();
    Target::announce_size(&s.target, &want[&volume(0)], &soon()).unwrap();
    assert_eq!(s.tree.announced(&nqn(0)), 1);
    let s = Stand::new(SimKernel { revalidate: false, ..SimKernel::default() });
    s.converge(Scope::All, &want).unwrap();
    let error = Target::announce_size(&s.target, &want[&volume(0)], &soon()).unwrap_err();
    assert!(matches!(error, TargetError::Unsupported(_)));
}

/// A secret of its own for each number.
fn text(n: u8) -> String {
    use base64::Engine;
    let bytes: Vec<u8> = (n..n + 32).collect();
    let crc = crc32fast::hash(&bytes).to_le_bytes();
    let base64 = base64::engine::general_purpose::STANDARD.encode([&bytes[..], &crc].concat());
    format!("DHHC-1:01:{base64}:")
}

fn secret(n: u8, controller: Option<u8>) -> Proof {
    Proof::Secret(Box::new(AuthenticationPut {
        key: text(n).parse().unwrap(),
        controller_key: controller.map(|n| text(n).parse().unwrap()),
        hash: Default::default(),
        dh_group: Default::default(),
    }))
}

#[test]
fn a_host_with_a_secret_is_let_in_with_it_alone() {
    let s = Stand::new(SimKernel::default());
    let (want, at) = (desired(&[(0, &[0, 1]), (1, &[0])]), nqn(0));
    s.keys.put(&host(0), secret(1, Some(9)));
    let steps = s.converge(Scope::All, &want).unwrap().steps.join("\n");
    assert!(!steps.contains("DHHC"), "{steps}");
    let attribute = |a: &str| s.tree.read(&format!("hosts/{}/dhchap_{a}", HOSTS[0])).unwrap();
    assert_eq!(
        ["key", "ctrl_key", "hash", "dhgroup"].map(attribute),
        [text(1), text(9), "hmac(sha256)".into(), "ffdhe2048".into()]
    );
    let connect = |secret: &str| s.tree.connect_with(HOSTS[0], &at, FIRST_PORT, secret);
    assert!(connect("").is_err() && connect(&text(2)).is_err());
    let connected = connect(&text(1)).unwrap();
    s.tree.connect(HOSTS[1], &at, FIRST_PORT).unwrap();
    for scope in [Scope::Volume(volume(0)), Scope::All] {
        assert_eq!(s.converge(scope, &want).unwrap().steps, [""; 0]);
    }

    // Another one, without the appliance's: nobody is dropped for it.
    s.keys.put(&host(0), secret(2, None));
    let steps = s.converge(Scope::Volume(volume(0)), &want).unwrap().steps;
    assert_eq!(steps, [format!("have {} authenticated as it should be", HOSTS[0])]);
    assert!(s.tree.is_live(connected) && s.tree.io(connected).is_ok());
    assert!(connect(&text(1)).is_err() && connect(&text(2)).is_ok());
    assert_eq!(attribute("ctrl_key"), "");

    // By hand it is not taken away for long.
    s.tree.write(&format!("hosts/{}/dhchap_key", HOSTS[0]), "\0").unwrap();
    assert!(connect("").is_ok());
    s.converge(Scope::All, &want).unwrap();
    assert!(connect("").is_err());

    // No longer, and gone with its last volume.
    s.keys.put(&host(0), Proof::Nothing);
    s.converge(Scope::Volume(volume(1)), &want).unwrap();
    assert!(connect("").is_ok());
    s.keys.put(&host(0), secret(3, None));
    s.converge(Scope::All, &want).unwrap();
    s.converge(Scope::All, &Desired::new()).unwrap();
    assert_eq!(s.tree.list("hosts").unwrap(), [""; 0]);
    assert_eq!(s.complaints(&Desired::new()), [""; 0]);
}

#[test]
fn a_directory_that_another_step_removed_is_not_made_without_its_secret() {
    let s = Stand::new(SimKernel::default());
    s.keys.put(&host(0), secret(1, None));
    s.converge(Scope::All, &desired(&[(0, &[0])])).unwrap();
    let want = desired(&[(1, &[0])]);
    s.converge(Scope::All, &want).unwrap();
    assert!(s.tree.connect(HOSTS[0], &nqn(1), FIRST_PORT).is_err());
    assert_eq!(s.complaints(&want), [""; 0]);
}

#[test]
fn a_kernel_that_can_not_authenticate_lets_nobody_in_who_should_be() {
    let s = Stand::new(SimKernel { authentication: false, ..SimKernel::default() });
    let want = desired(&[(0, &[0, 1]), (1, &[1])]);
    s.keys.put(&host(0), secret(1, None));
    let report = s.converge(Scope::All, &want).unwrap();
    assert!(matches!(report.failed[&volume(0)], TargetError::Unsupported(_)), "{report:?}");
    assert!(s.tree.connect(HOSTS[0], &nqn(0), FIRST_PORT).is_err());
    assert!(s.tree.connect(HOSTS[1], &nqn(1), FIRST_PORT).is_ok(), "another volume");
    assert_eq!(s.complaints(&want), [""; 0]);

    // One that was let in before it had a secret comes in nowhere any more, and what it has stays.
    let s = Stand::new(SimKernel { authentication: false, ..SimKernel::default() });
    s.converge(Scope::All, &want).unwrap();
    let connected = s.tree.connect(HOSTS[1], &nqn(1), FIRST_PORT).unwrap();
    let host = host(1);
    s.keys.put(&host, secret(2, None));
    let error = Target::prove(&s.target, &host, &soon()).unwrap_err();
    assert!(matches!(error, TargetError::Unsupported(_)), "{error}");
    for n in 0..2 {
        assert!(s.tree.connect(HOSTS[1], &nqn(n), FIRST_PORT).is_err(), "volume {n}");
    }
    assert!(s.tree.io(connected).is_ok() && s.tree.connect(HOSTS[0], &nqn(0), FIRST_PORT).is_ok());
}

#[test]
fn a_secret_is_asked_for_without_any_volume_being_looked_at() {
    let s = Stand::new(SimKernel::default());
    let host = host(0);
    s.keys.put(&host, secret(1, None));
    Target::prove(&s.target, &host, &soon()).unwrap();
    assert!(s.tree.dump().is_empty(), "nothing is made for a host that is not there");
    s.keys.remove(&host);
    s.converge(Scope::All, &desired(&[(0, &[0])])).unwrap();
    s.keys.put(&host, secret(1, None));
    Target::prove(&s.target, &host, &soon()).unwrap();
    assert!(s.tree.connect(HOSTS[0], &nqn(0), FIRST_PORT).is_err());
    assert!(s.tree.connect_with(HOSTS[0], &nqn(0), FIRST_PORT, &text(1)).is_ok());
}

#[test]
fn keys_of_a_host_outlive_its_last_volume() {
    let s = Stand::new(SimKernel::default());
    s.converge(Scope::All, &desired(&[(0, &[0, 1])])).unwrap();
    s.tree.write(&format!("hosts/{}/dhchap_key", HOSTS[0]), "DHHC-1:00:x:").unwrap();
    s.converge(Scope::All, &Desired::new()).unwrap();
    assert_eq!(s.tree.list("hosts").unwrap(), [HOSTS[0]]);
}

#[test]
fn an_overrun_stops_between_two_steps() {
    let s = Stand::new(SimKernel::default());
    let deadline = soon();
    deadline.abandon();
    let error = s.target.converge(Scope::Volume(volume(0)), &desired(&[(0, &[0])]), &deadline).unwrap_err();
    assert!(matches!(error, TargetError::Deadline(..)), "{error}");
    assert!(s.tree.dump().is_empty());
}

#[test]
fn without_the_module_it_is_unsupported() {
    let dir = tempfile::tempdir().unwrap();
    let target =
        Nvmet::over(config(), Arc::new(ConfigFs::at(dir.path())), None, Arc::new(SimKeyring::default()));
    let error = target.converge(Scope::All, &Desired::new(), &soon()).unwrap_err();
    assert!(matches!(error, TargetError::Unsupported(_)), "{error}");
}

/// It was open to all, and we were stopped after closing it and taking it off its ports: nothing that
/// is left tells of the controllers that are.
#[test]
fn what_was_open_to_all_is_made_anew_even_after_a_crash() {
    let mut s = Stand::new(BLIND);
    let want = desired(&[(0, &[0])]);
    s.converge(Scope::All, &want).unwrap();
    let path = format!("subsystems/{}", nqn(0));
    s.tree.unlink(&format!("{path}/allowed_hosts/{}", HOSTS[0])).unwrap();
    s.tree.write(&format!("{path}/attr_allow_any_host"), "1").unwrap();
    s.connect_all();
    s.tree.fault_after(3, Fault::Fail(Errno::IO));
    assert!(s.converge(Scope::Volume(volume(0)), &Desired::new()).is_err());
    assert!(!s.strangers(&want).is_empty());
    s.converge(Scope::Volume(volume(0)), &want).unwrap();
    assert_eq!(s.complaints(&want), [""; 0]);
}

/// Every place to stop, for every change of hosts: the last trace of an access goes after the access.
#[test]
fn a_stop_at_any_step_hides_nobody() {
    let sets: [&[usize]; 8] = [&[], &[0], &[1], &[0, 1], &[2], &[1, 2], &[READS], &[1, READS]];
    for kernel in [BLIND, SimKernel::default()] {
        for (first, after) in sets.iter().flat_map(|f| (0..24).map(move |n| (f, n))) {
            for then in sets {
                let mut s = Stand::new(kernel);
                s.converge(Scope::All, &desired(&[(0, &[0, 1])])).unwrap();
                s.connect_all();
                s.tree.fault_after(after, Fault::Fail(Errno::IO));
                let first = if first.is_empty() { Desired::new() } else { desired(&[(0, first)]) };
                let _ = s.converge(Scope::Volume(volume(0)), &first);
                s.tree.fault_after(usize::MAX, Fault::Fail(Errno::IO));
                let want = if then.is_empty() { Desired::new() } else { desired(&[(0, then)]) };
                s.converge(Scope::Volume(volume(0)), &want).unwrap();
                assert_eq!(s.complaints(&want), [""; 0], "{first:?}, stopped after {after}");
                for audience in Audience::ALL {
                    let may = s.tree.may_connect(&nqn_for(0, audience), &HOSTS);
                    assert_eq!(may, wanted_by(&want, 0, audience));
                }
            }
        }
    }
}

/// Something that somebody did to the target before.
#[derive(Debug, Clone)]
enum Deed {
    Make(String),
    Write(String, String),
    Link(String, String),
    Unlink(String),
    Remove(String),
    Connect(usize, usize, u16),
}

fn any_deed() -> impl Strategy<Value = Deed> {
    let subsystem = prop_oneof![
        3 => (0usize..2).prop_map(nqn),
        1 => (0usize..2).prop_map(|n| nqn_for(n, Audience::Readers)),
        1 => Just(FOREIGN.to_string()),
    ];
    let host = (0usize..4).prop_map(|h| HOSTS[h].to_string());
    let port = prop_oneof![
        3 => Just(FIRST_PORT), 2 => Just(FIRST_PORT + 1), 2 => Just(SECURE_PORT), 1 => Just(FIRST_PORT + 3), 2 => Just(1u16)
    ];
    let attribute = prop_oneof![
        Just(("attr_allow_any_host", "1")),
        Just(("attr_allow_any_host", "0")),
        Just(("attr_serial", "7000800000000000000")),
        Just(("attr_model", "Orlop")),
        Just(("attr_qid_max", "127")),
        Just(("namespaces/1/device_path", "/dev/d0")),
        Just(("namespaces/1/device_path", "/dev/d1")),
        Just(("namespaces/1/device_path", "/dev/other")),
        Just(("namespaces/1/device_path", "/dev/mapper/orlop-ro-0190c0de-0000-7000-8000-000000000000")),
        Just(("namespaces/1/device_uuid", "0190c0de-0000-7000-8000-000000000000")),
        Just(("namespaces/1/device_nguid", "0190c0de-0000-7000-8000-000000000000")),
        Just(("namespaces/1/enable", "1")),
        Just(("namespaces/1/enable", "0")),
    ];
    let address = prop_oneof![
        Just(("addr_trtype", "tcp")),
        Just(("addr_adrfam", "ipv4")),
        Just(("addr_adrfam", "ipv6")),
        Just(("addr_traddr", "10.0.0.1")),
        Just(("addr_traddr", "fd00::1")),
        Just(("addr_traddr", "10.9.9.9")),
        Just(("addr_trsvcid", "4420")),
        Just(("addr_trsvcid", "4430")),
        Just(("addr_tsas", "tls1.3")),
        Just(("addr_tsas", "none")),
        Just(("addr_treq", "not required")),
        Just(("ana_groups/1/ana_state", "inaccessible")),
        Just(("param_max_queue_size", "64")),
    ];
    prop_oneof![
        4 => subsystem.clone().prop_map(|s| Deed::Make(format!("subsystems/{s}"))),
        3 => (subsystem.clone(), 1u8..3).prop_map(|(s, n)| Deed::Make(format!("subsystems/{s}/namespaces/{n}"))),
        2 => host.clone().prop_map(|h| Deed::Make(format!("hosts/{h}"))),
        2 => port.clone().prop_map(|p| Deed::Make(format!("ports/{p}"))),
        9 => (subsystem.clone(), attribute)
            .prop_map(|(s, (a, v))| Deed::Write(format!("subsystems/{s}/{a}"), v.into())),
        6 => (port.clone(), address).prop_map(|(p, (a, v))| Deed::Write(format!("ports/{p}/{a}"), v.into())),
        4 => (subsystem.clone(), host.clone()).prop_map(|(s, h)| {
            Deed::Link(format!("hosts/{h}"), format!("subsystems/{s}/allowed_hosts/{h}"))
        }),
        1 => (subsystem.clone(), host.clone()).prop_map(|(s, h)| {
            Deed::Link(format!("hosts/{h}"), format!("subsystems/{s}/allowed_hosts/odd-name"))
        }),
        4 => (subsystem.clone(), port.clone()).prop_map(|(s, p)| {
            Deed::Link(format!("subsystems/{s}"), format!("ports/{p}/subsystems/{s}"))
        }),
        1 => (subsystem.clone(), host.clone())
            .prop_map(|(s, h)| Deed::Unlink(format!("subsystems/{s}/allowed_hosts/{h}"))),
        1 => (subsystem.clone(), port.clone())
            .prop_map(|(s, p)| Deed::Unlink(format!("ports/{p}/subsystems/{s}"))),
        1 => subsystem.prop_map(|s| Deed::Remove(format!("subsystems/{s}/namespaces/1"))),
        2 => host.prop_map(|h| Deed::Write(format!("hosts/{h}/dhchap_key"), "DHHC-1:00:theirs:".into())),
        6 => (0usize..2, 0usize..5, port).prop_map(|(n, h, p)| Deed::Connect(n, h, p)),
    ]
}

fn any_desired() -> impl Strategy<Value = Desired> {
    let reads = proptest::bool::weighted(0.3);
    let hosts = proptest::collection::btree_map(0usize..4, reads, 1..4);
    let one = move |n| {
        proptest::option::weighted(0.75, (hosts.clone(), prop_oneof![9 => Just(n), 1 => Just(0)])).prop_map(
            move |e| {
                e.map(|(hosts, d)| {
                    let hosts: Vec<usize> =
                        hosts.into_iter().map(|(h, reads)| if reads { h + READS } else { h }).collect();
                    (volume(n), export(n, &format!("/dev/d{d}"), &hosts))
                })
            },
        )
    };
    (one(0), one(1)).prop_map(|(a, b)| a.into_iter().chain(b).collect())
}

fn any_kernel() -> impl Strategy<Value = SimKernel> {
    any::<(bool, bool, bool)>().prop_map(|(debugfs, qid_max, model)| SimKernel {
        debugfs,
        qid_max: qid_max || !debugfs,
        model,
        ..SimKernel::default()
    })
}

/// The same with fewer hosts: what a lost trace would let in again.
fn thinned(all: &Desired, keep: u8) -> Desired {
    let kept =
        |h: &HostId| HOSTS.iter().position(|n| *n == h.to_string()).is_some_and(|n| keep >> n & 1 == 1);
    let mut thin = all.clone();
    thin.values_mut().for_each(|e| e.hosts.retain(|h, _| kept(h)));
    thin.retain(|_, e| !e.hosts.is_empty());
    thin
}

/// A state of the kernel: perhaps one that we built, and then what others did.
fn stand(kernel: SimKernel, built: Option<&Desired>, deeds: &[Deed]) -> Stand {
    let mut s = Stand::new(kernel);
    s.keys.put(&host(1), secret(1, None));
    s.keys.put(&host(2), secret(2, Some(3)));
    if let Some(built) = built {
        let _ = s.converge(Scope::All, built);
        s.connect_all();
    }
    for deed in deeds {
        // Most deeds are refused; those that are not make the state.
        let _ = match deed {
            Deed::Make(p) => s.tree.make_dir(p),
            Deed::Write(p, v) => s.tree.write(p, v),
            Deed::Link(t, p) => s.tree.link(t, p),
            Deed::Unlink(p) => s.tree.unlink(p),
            Deed::Remove(p) => s.tree.remove_dir(p),
            Deed::Connect(n, h, p) => s.connect(*n, *h, *p),
        };
    }
    s
}

/// What must not change: foreign subsystems and ports, what they have linked, and the hosts that they
/// use or that hold keys.
fn foreign(s: &Stand) -> BTreeMap<String, String> {
    let dump = s.tree.dump();
    let kept: BTreeSet<String> = HOSTS
        .into_iter()
        .filter(|h| {
            let linked = |k: &String| k.contains(FOREIGN) && k.contains("allowed_hosts/");
            dump.iter().any(|(k, v)| linked(k) && v == h)
                || dump.get(&format!("hosts/{h}/dhchap_key")).is_some_and(|v| !v.is_empty())
        })
        // What must be proved by those is ours to say.
        .filter(|h| s.keys.get(h).is_none())
        .map(|h| format!("hosts/{h}"))
        .collect();
    dump.into_iter()
        .filter(|(k, v)| {
            let theirs = k.contains(FOREIGN) || k.starts_with("ports/1/") && !v.contains("orlop");
            theirs || kept.iter().any(|h| k.starts_with(h))
        })
        .collect()
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
        if !(kernel.debugfs && kernel.qid_max) {
            // Deeds of others may have hidden an access.
            for n in 0..2 {
                let _ = s.converge(Scope::Fence(volume(n)), &want);
            }
        }
        let report = s.converge(Scope::All, &want).expect("the kernel can be read");
        prop_assert_eq!(s.complaints(&want), Vec::<String>::new());
        prop_assert_eq!(&foreign(&s), &before);
        for e in report.failed.values() {
            let excused = matches!(e, TargetError::Foreign { .. } | TargetError::Portal { .. });
            prop_assert!(excused, "{} / {:?}", e, e);
        }
        // Who may only read has no other device than one that can only be read, and there is none of nobody's.
        for (n, _) in doors().filter(|(_, audience)| *audience == Audience::Readers) {
            let nqn = nqn_for(n, Audience::Readers);
            let namespace = s.tree.read(&format!("subsystems/{nqn}/namespaces/1/device_path")).ok();
            let device = s.readers.get(volume(n)).unwrap();
            if report.result_for(volume(n)).is_ok() {
                let is_wanted = !wanted_by(&want, n, Audience::Readers).is_empty();
                prop_assert_eq!((device.is_some(), namespace.is_some()), (is_wanted, is_wanted));
                let below = want.get(&volume(n)).map(|e| e.backing.clone());
                prop_assert!(device.iter().all(|d| d.on == below), "{device:?}");
            }
            if !s.tree.may_connect(&nqn, &HOSTS).is_empty() {
                prop_assert_eq!(namespace.map(Into::into), device.map(|d| d.device));
            }
        }
        let state = s.tree.dump();
        let again = s.converge(Scope::All, &want).expect("the kernel can be read");
        prop_assert_eq!(&again.steps, &Vec::<String>::new());
        prop_assert_eq!(s.tree.dump(), state);
        if report.is_complete() {
            for (n, audience) in doors() {
                let wanted = wanted_by(&want, n, audience);
                prop_assert_eq!(&s.tree.may_connect(&nqn_for(n, audience), &HOSTS), &wanted);
                let tls = want.get(&volume(n)).is_some_and(Export::tls);
                for (h, name) in HOSTS.iter().enumerate() {
                    for (port, secure) in s.ports(&want) {
                        let may = wanted.contains(name) && secure == tls && (!tls || h == SECURE);
                        prop_assert_eq!(s.connect_to(n, audience, h, port).is_ok(), may);
                    }
                }
            }
            let new = s.connections.iter().filter(|c| s.tree.is_live(c.2));
            for (_, _, handle, _) in new {
                prop_assert!(s.tree.io(*handle).is_ok());
            }
        }
    }

    /// Stopped at any step, and then wanted otherwise: as good as if it had never been stopped. No
    /// fence is asked for, so without a list of controllers the traces left must tell.
    #[test]
    fn an_interrupted_convergence_loses_no_trace(
        kernel in any_kernel(),
        built in any_desired(),
        open in any::<bool>(),
        first in any_desired(),
        after in prop_oneof![0usize..12, 0usize..40],
        narrow in any::<bool>(),
        want in any_desired(),
        thin in proptest::option::of(any::<u8>()),
    ) {
        let want = thin.map_or(want, |keep| thinned(&built, keep));
        let mut s = stand(kernel, Some(&built), &[]);
        if open {
            let path = format!("subsystems/{}", nqn(0));
            for host in s.tree.list(&format!("{path}/allowed_hosts")).unwrap_or_default() {
                s.tree.unlink(&format!("{path}/allowed_hosts/{host}")).unwrap();
            }
            let _ = s.tree.write(&format!("{path}/attr_allow_any_host"), "1");
            s.connect_all();
        }
        let scopes = if narrow { vec![Scope::Volume(volume(0)), Scope::Volume(volume(1))] } else { vec![Scope::All] };
        s.tree.fault_after(after, Fault::Fail(Errno::IO));
        for scope in &scopes {
            let _ = s.converge(*scope, &first);
        }
        s.connect_all();
        s.tree.fault_after(usize::MAX, Fault::Fail(Errno::IO));
        let mut complete = true;
        for scope in &scopes {
            complete &= s.converge(*scope, &want).is_ok_and(|r| r.is_complete());
        }
        let devices: BTreeSet<_> = want.values().map(|e| &e.backing).collect();
        if devices.len() == want.len() {
            prop_assert!(complete);
        }
        prop_assert_eq!(s.complaints(&want), Vec::<String>::new());
    }
}

fn tls_key(n: u8) -> TlsPut {
    use base64::Engine;
    let secret: Vec<u8> = (0..32).map(|b| b ^ n).collect();
    let text = [&secret[..], &crc32fast::hash(&secret).to_le_bytes()].concat();
    let text = base64::engine::general_purpose::STANDARD.encode(text);
    TlsPut { key: format!("NVMeTLSkey-1:01:{text}:").parse().unwrap(), compat: false }
}

#[test]
fn a_host_with_a_key_comes_by_tls_and_nobody_else_does() {
    for kernel in [SimKernel::default(), BLIND] {
        let mut s = Stand::new(kernel);
        let want = desired(&[(0, &[SECURE]), (1, &[0])]);
        s.converge(Scope::Volume(volume(0)), &want).unwrap();
        s.converge(Scope::Volume(volume(1)), &want).unwrap();
        assert_eq!(s.tree.read(&format!("ports/{SECURE_PORT}/addr_treq")).unwrap(), "required");
        s.connect(0, SECURE, SECURE_PORT).unwrap();
        assert!(s.connect(0, SECURE, FIRST_PORT).is_err() && s.connect(1, 0, SECURE_PORT).is_err());
        s.connect(1, 0, FIRST_PORT).unwrap();
        assert_eq!(s.ring.identities().unwrap().len(), 3, "{:?}", s.ring);
        assert!(
            s.ring.identities().unwrap().iter().all(|i| i.contains(&nqn(0)) && i.contains(HOSTS[SECURE]))
        );

        // Another key: the next connection needs it, and what is connected stays.
        s.keys.put_tls(&HOSTS[SECURE].parse().unwrap(), Some(tls_key(2)));
        let HostId::Nqn(name) = host(SECURE) else { panic!() };
        Target::prove(&s.target, &host(SECURE), &soon()).unwrap();
        let now: BTreeMap<_, _> = keys_of(&tls_key(2), name.as_str(), &nqn(0).parse().unwrap());
        assert_eq!(s.ring.identities().unwrap(), now.keys().cloned().collect::<Vec<_>>());
        assert!(now.iter().all(|(i, k)| s.ring.get(i).unwrap().as_ref() == Some(k)));
        assert!(s.connections.iter().all(|c| s.tree.is_live(c.2)));
        assert!(s.converge(Scope::All, &want).unwrap().steps.is_empty());

        // Detached, it has no key any more.
        s.converge(Scope::Fence(volume(0)), &Desired::new()).unwrap();
        assert_eq!(s.ring.identities().unwrap(), [""; 0]);
        assert_eq!(s.complaints(&desired(&[(1, &[0])])), [""; 0]);
    }
}

#[test]
fn keys_that_nobody_should_have_go_and_those_of_others_stay() {
    let s = Stand::new(SimKernel::default());
    let theirs = format!("NVMe0R01 {} {FOREIGN}", HOSTS[0]);
    let stale = format!("NVMe1R01 {} {} digest", HOSTS[0], nqn(5));
    for identity in [&theirs, &stale, "something else"] {
        s.ring.put(identity, b"k").unwrap();
    }
    s.converge(Scope::All, &desired(&[(0, &[0])])).unwrap();
    assert_eq!(s.ring.identities().unwrap(), [theirs, "something else".into()]);
}

#[test]
fn without_a_portal_or_a_key_nobody_comes_by_tls() {
    let s = Stand::new(SimKernel::default());
    let plain = NvmetConfig { portals: config().portals[..1].to_vec(), ..config() };
    let target = Nvmet::over(plain, s.watched.clone(), None, s.ring.clone()).with_keys(s.keys.clone());
    let want = desired(&[(0, &[SECURE])]);
    let error = target.converge(Scope::Volume(volume(0)), &want, &soon()).unwrap_err();
    assert_eq!(error.kind(), orlop_api::ErrorKind::Unsupported, "{error}");
    s.keys.put_tls(&HOSTS[SECURE].parse().unwrap(), None);
    let error = s.converge(Scope::Volume(volume(0)), &want).unwrap_err();
    assert!(matches!(error, TargetError::Unfit { .. }), "{error}");
    assert!(s.tree.may_connect(&nqn(0), &HOSTS).is_empty());

    // A kernel that can't: the portal is down, and the volume is not served at another.
    let s = Stand::new(SimKernel { tls: false, ..SimKernel::default() });
    let error = s.converge(Scope::Volume(volume(0)), &want).unwrap_err();
    assert!(s.tree.may_connect_in_clear(&nqn(0), &HOSTS).is_empty(), "{error}");
    assert!(s.converge(Scope::Volume(volume(1)), &desired(&[(1, &[0])])).is_ok());
}

/// As a ring of the kernel that can't be read.
struct NoRing;

impl TlsKeyring for NoRing {
    fn get(&self, _: &str) -> io::Result<Option<Vec<u8>>> {
        Err(Errno::ACCESS.into())
    }
    fn put(&self, _: &str, _: &[u8]) -> io::Result<()> {
        Err(Errno::ACCESS.into())
    }
    fn remove(&self, _: &str) -> io::Result<()> {
        Err(Errno::ACCESS.into())
    }
    fn identities(&self) -> io::Result<Vec<String>> {
        Err(Errno::ACCESS.into())
    }
}

#[test]
fn a_ring_that_can_not_be_read_is_the_trouble_of_who_needs_it() {
    let s = Stand::new(SimKernel::default());
    let target = Nvmet::over(config(), s.watched.clone(), None, Arc::new(NoRing)).with_keys(s.keys.clone());
    let report = target.converge(Scope::All, &desired(&[(0, &[SECURE]), (1, &[0])]), &soon()).unwrap();
    assert_eq!(report.failed.keys().collect::<Vec<_>>(), [&volume(0)], "{report:?}");
    assert!(s.tree.may_connect(&nqn(0), &HOSTS).is_empty());
    assert!(s.tree.connect(HOSTS[0], &nqn(1), FIRST_PORT).is_ok());
    // Nor is another secret of a host without a key.
    s.keys.put(&host(0), secret(1, None));
    Target::prove(&target, &host(0), &soon()).unwrap();
    Target::prove(&target, &host(SECURE), &soon()).unwrap_err();
}

/// Whoever is not let in has no key either: the kernel would take it for anybody's.
#[test]
fn keys_of_a_host_that_could_not_be_let_in_go() {
    let s = Stand::new(SimKernel { authentication: false, ..SimKernel::default() });
    s.keys.put(&host(SECURE), secret(1, None));
    let want = desired(&[(0, &[SECURE])]);
    s.converge(Scope::Volume(volume(0)), &want).unwrap_err();
    assert_eq!(s.ring.identities().unwrap().len(), 3);
    s.converge(Scope::Fence(volume(0)), &Desired::new()).unwrap();
    assert_eq!(s.ring.identities().unwrap(), [""; 0]);

    // Nor if somebody else has taken all that said that it was there.
    let s = Stand::new(SimKernel::default());
    s.converge(Scope::Volume(volume(0)), &want).unwrap();
    s.tree.unlink(&format!("ports/{SECURE_PORT}/subsystems/{}", nqn(0))).unwrap();
    s.tree.remove_dir(&format!("subsystems/{}/namespaces/1", nqn(0))).unwrap();
    s.tree.unlink(&format!("subsystems/{}/allowed_hosts/{}", nqn(0), HOSTS[SECURE])).unwrap();
    s.tree.remove_dir(&format!("subsystems/{}", nqn(0))).unwrap();
    s.converge(Scope::Fence(volume(0)), &Desired::new()).unwrap();
    assert_eq!(s.ring.identities().unwrap(), [""; 0]);
}

/// The identity of version 0 is the same for all of a host's keys.
#[test]
fn an_old_key_goes_wherever_it_is() {
    let s = Stand::new(SimKernel::default());
    let old = keys_of(&tls_key(1), HOSTS[SECURE], &nqn(0).parse().unwrap());
    old.iter().for_each(|(identity, key)| s.ring.put(identity, key).unwrap());
    s.keys.put_tls(&HOSTS[SECURE].parse().unwrap(), Some(tls_key(2)));
    Target::prove(&s.target, &host(SECURE), &soon()).unwrap();
    assert_eq!(s.ring.identities().unwrap(), [""; 0], "it is let in nowhere");

    // Also where it is not known yet how the volume should be served, and its own key of now is left there.
    let now = keys_of(&tls_key(2), HOSTS[SECURE], &nqn(1).parse().unwrap());
    for (identity, key) in old.iter().chain(&now) {
        s.ring.put(identity, key).unwrap();
    }
    s.converge(Scope::Desired, &desired(&[(2, &[0])])).unwrap();
    assert_eq!(s.ring.identities().unwrap(), now.into_keys().collect::<Vec<_>>());
}

#[test]
fn a_link_of_ours_at_anothers_port_does_not_stay_with_tls() {
    let s = Stand::new(SimKernel::default());
    let want = desired(&[(0, &[SECURE]), (1, &[0])]);
    s.converge(Scope::All, &want).unwrap();
    s.tree.make_dir("ports/1").unwrap();
    for (name, value) in [("trtype", "tcp"), ("adrfam", "ipv4"), ("traddr", "10.9.9.9"), ("trsvcid", "4420")]
    {
        s.tree.write(&format!("ports/1/addr_{name}"), value).unwrap();
    }
    for n in 0..2 {
        s.tree.link(&format!("subsystems/{}", nqn(n)), &format!("ports/1/subsystems/{}", nqn(n))).unwrap();
    }
    s.converge(Scope::All, &want).unwrap();
    assert_eq!(s.tree.list("ports/1/subsystems").unwrap(), [nqn(1)]);
}

/// Compared with what nvme-cli 2.13 with libnvme 1.13 inserts for the same keys: the way of before 1.16.
#[test]
fn keys_are_derived_as_hosts_do() {
    use base64::Engine;
    let base64 = base64::engine::general_purpose::STANDARD;
    let (host, subsystem) = ("nqn.2014-08.org.nvmexpress:uuid:a", nqn(0).parse().unwrap());
    for (retained, bytes, version, digest, want) in [
        ("00", 32, 0, "", "Th3w3R82t/IBhI2PkPaFrvJF8KhlJ8EK0V5H8FcxRS6AriX7"),
        (
            "00",
            32,
            1,
            " NMRFCD2Osf6i8qH/5oLka/3ZIPu3nbIqpJOtrIPwta0=",
            "Sn6tKL1lY9xUXKVjYGShWkKJdrrTXUwT40F5CpMRSriOA22b",
        ),
        ("01", 32, 0, "", "Fq5NOBYE89OV0zilud877wqJSycyfD6Fg8WWHB6IiFCuhKmf"),
        (
            "01",
            32,
            1,
            " wzfbnX7WqsZXOsoWSTJZ1Vgughw5MslBd1ZUmwWISyA=",
            "0VnhUqt+P+7M9TlzL8ArGREhVj4vsfjv/kUBalVmgEGdOk5+",
        ),
        ("02", 48, 0, "", "tnWAN4EuMVXIWX12zZWuEFTzHR35AKobfYdYUeYtP7gO3vN5RYUOPjDDiD35W8+HxjmK7A=="),
        (
            "02",
            48,
            1,
            " gGBebzDRqKqwquz8RmrEjjerI7coWlDXkoyIC8SVIlmsgBD8/nv0PlyaOK+8O3zY",
            "2LRoQKt+oYhcfVrEnkE6udOiRRmN56le02KG+pZGf5A63YrxYhX4jRkITsV7orHPWE0WbQ==",
        ),
    ] {
        let secret: Vec<u8> = (0..bytes).collect();
        let text = base64.encode([&secret[..], &crc32fast::hash(&secret).to_le_bytes()].concat());
        let key = format!("NVMeTLSkey-1:{retained}:{text}:").parse().unwrap();
        let hash = if bytes == 32 { 1 } else { 2 };
        let identity = format!("NVMe{version}R{hash:02} {host} {subsystem}{digest}");
        // It is shown with a checksum.
        let want = base64.decode(want).unwrap().split_last_chunk::<4>().unwrap().0.to_vec();
        let ask = TlsPut { key, compat: true };
        let keys = keys_of(&ask, host, &subsystem);
        assert_eq!(keys.get(&identity), Some(&want), "{identity}");

        // A host that does as the specification has it has other keys. Where the identity is the same too, there is room
        // for one of them; where it has a digest of what is retained, for both.
        let other = keys_of(&TlsPut { compat: false, ..ask }, host, &subsystem);
        let same = version == 1 && retained != "00";
        assert_eq!(other.get(&identity) == Some(&want), same, "{identity}");
        assert_eq!(other.len(), if retained == "00" { 2 } else { 3 });
    }
}

#[test]
fn portals_have_states_limits_and_referrals() {
    let s = Stand::new(SimKernel::default());
    let mut config = config();
    config.portals[1].ana = AnaState::NonOptimized;
    config.referrals = vec!["10.9.9.9:8009".parse().unwrap()];
    (config.io_queues, config.queue_size) = (8, Some(64));
    let target = |config: &NvmetConfig| {
        Nvmet::over(config.clone(), s.watched.clone(), Some(Arc::new(s.tree.debug())), s.ring.clone())
            .with_poll(Duration::ZERO)
    };
    let want = desired(&[(0, &[0])]);
    target(&config).converge(Scope::All, &want, &soon()).unwrap();
    let read = |path: String| s.tree.read(&path).unwrap();
    let (first, second) = (FIRST_PORT, FIRST_PORT + 1);
    assert_eq!(read(format!("ports/{first}/ana_groups/1/ana_state")), "optimized");
    assert_eq!(read(format!("ports/{second}/ana_groups/1/ana_state")), "non-optimized");
    assert_eq!(read(format!("ports/{first}/param_max_queue_size")), "64");
    assert_eq!(read(format!("subsystems/{}/attr_qid_max", nqn(0))), "8");
    assert_eq!(read(format!("subsystems/{}/namespaces/1/resv_enable", nqn(0))), "1");
    let referrals = |port: u16| s.tree.list(&format!("ports/{port}/referrals")).unwrap();
    assert_eq!(referrals(first), ["orlop-10.9.9.9:8009", "orlop-[fd00::1]:4420"]);
    assert_eq!(referrals(second), ["orlop-10.0.0.1:4420", "orlop-10.9.9.9:8009"]);
    assert_eq!(referrals(SECURE_PORT), [""; 0]);
    let enabled = format!("ports/{first}/referrals/orlop-10.9.9.9:8009/enable");
    assert_eq!(read(enabled.clone()), "1");
    assert_eq!(target(&config).converge(Scope::All, &want, &soon()).unwrap().steps, [""; 0]);

    // A path is taken out of use without a disconnection, and what others have changed is put back.
    let handle = s.tree.connect(HOSTS[0], &nqn(0), first).unwrap();
    config.portals[0].ana = AnaState::Inaccessible;
    s.tree.write(&enabled, "0").unwrap();
    s.tree.make_dir(&format!("ports/{first}/referrals/theirs")).unwrap();
    let steps = target(&config).converge(Scope::All, &want, &soon()).unwrap().steps;
    assert_eq!(steps.len(), 3, "{steps:?}");
    assert!(s.tree.is_live(handle));
    assert_eq!(read(enabled), "1");

    // Another limit reaches who is connected: it comes back with it.
    config.io_queues = 4;
    target(&config).converge(Scope::All, &want, &soon()).unwrap();
    assert_eq!(read(format!("subsystems/{}/attr_qid_max", nqn(0))), "4");

    // A portal that goes takes its referrals along, unless somebody else has one there.
    config.portals.truncate(1);
    target(&config).converge(Scope::All, &want, &soon()).unwrap();
    assert_eq!(s.tree.list("ports").unwrap(), [first.to_string()]);
    assert_eq!(referrals(first), ["orlop-10.9.9.9:8009", "theirs"]);
}

#[test]
fn a_portal_of_a_transport_that_is_not_there_is_unsupported() {
    let s = Stand::new(SimKernel::default());
    let mut config = config();
    config.portals.truncate(1);
    config.portals[0].transport = orlop_api::Transport::Rdma;
    let target = Nvmet::over(config, s.watched.clone(), None, s.ring.clone());
    let error = target.converge(Scope::Volume(volume(0)), &desired(&[(0, &[0])]), &soon()).unwrap_err();
    assert_eq!(error.kind(), orlop_api::ErrorKind::Unsupported, "{error}");
}

#[test]
fn a_hanging_step_is_the_only_one_that_is_tried() {
    let s = Stand::new(SimKernel::default());
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
