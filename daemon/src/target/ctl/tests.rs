//! The target over the simulated `ctld`: golden files, by example, and from any state to any other.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use orlop_api::{ByteSize, ChapPut, ErrorKind, VolumeId};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::fake::{Fake, Fault, ucl};
use super::*;
use crate::model::Identity;
use crate::target::keys::Proof;
use crate::target::{HostId, Report, Rights, Target, TargetError};

const HOSTS: [&str; 4] = [
    "iqn.1993-08.org.debian:01:a",
    "iqn.1993-08.org.debian:01:b",
    "iqn.1993-08.org.debian:01:c",
    "iqn.1993-08.org.debian:01:stranger",
];
const NQNS: [&str; 2] = ["nqn.2014-08.org.nvmexpress:uuid:a", "nqn.2014-08.org.nvmexpress:uuid:b"];
const FOREIGN: &str = "iqn.2020-01.com.example:theirs";
const SECRETS: [&str; 4] = ["a$$secret\"12}", "b\\${CURDIR}#;", "c-secret-345678", "d-secret-345678"];

fn volume(n: usize) -> VolumeId {
    format!("0190c0de-0000-7000-8000-00000000000{n}").parse().unwrap()
}

fn iqn(n: usize) -> String {
    NqnPrefix::default().target(volume(n)).to_string()
}

fn nqn(n: usize) -> String {
    NqnPrefix::default().subsystem(volume(n)).to_string()
}

fn host(h: usize) -> HostId {
    HostId::Iqn(HOSTS[h].parse().unwrap())
}

const READS: Rights = Rights {
    read_only: true,
    squash: orlop_api::Squash::Root,
    security: orlop_api::Security::SYS,
    tls: false,
};

fn export(n: usize, device: &str, hosts: impl IntoIterator<Item = (HostId, Rights)>) -> Export {
    Export {
        identity: Identity::of(volume(n), &NqnPrefix::default()),
        backing: device.into(),
        size: ByteSize(1 << 30),
        hosts: hosts.into_iter().collect(),
    }
}

fn desired(all: &[(usize, &[usize])]) -> Desired {
    let one = |(n, hosts): &(usize, &[usize])| {
        let hosts = hosts.iter().map(|h| (host(*h), Rights::default()));
        (volume(*n), export(*n, &format!("/dev/zvol/tank/d{n}"), hosts))
    };
    all.iter().map(one).collect()
}

fn by_nvme(all: &[(usize, &[usize])]) -> Desired {
    let one = |(n, hosts): &(usize, &[usize])| {
        let hosts = hosts.iter().map(|h| (HostId::Nqn(NQNS[*h].parse().unwrap()), Rights::default()));
        (volume(*n), export(*n, &format!("/dev/zvol/tank/d{n}"), hosts))
    };
    all.iter().map(one).collect()
}

fn chap(h: usize, mutual: bool) -> Proof {
    let credentials = |user: &str, secret: &str| json!({"user": user, "secret": secret});
    let mut put = json!({"host": credentials(HOSTS[h], SECRETS[h])});
    if mutual {
        put["target"] = credentials("appliance", "m-secret-$$${X}");
    }
    Proof::Chap(Box::new(serde_json::from_value::<ChapPut>(put).unwrap()))
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

struct Stand {
    dir: tempfile::TempDir,
    ctld: Arc<Fake>,
    keys: HostKeys,
    iscsi: Ctl,
    nvme: Ctl,
}

impl Stand {
    fn new() -> Self {
        Self::with(NvmeAccess::Refused)
    }

    fn with(nvme_access: NvmeAccess) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let portal = |a: &str, port| PortalConfig { address: a.parse().unwrap(), port };
        let config = CtlConfig {
            file: dir.path().join("ctl.conf"),
            iscsi: vec![portal("10.0.0.1", 3260), portal("fd00::1", 3260)],
            nvme: vec![portal("10.0.0.1", 4420), portal("fd00::1", 4420)],
            nvme_access,
            ..CtlConfig::default()
        };
        let (ctld, keys) = (Arc::new(Fake::new(&config.file)), HostKeys::default());
        let file = CtlFile::over(config, ctld.clone())
            .with_keys(keys.clone())
            .with_poll(Duration::from_millis(1), Duration::from_millis(60));
        let file = Arc::new(file);
        let (iscsi, nvme) = (Ctl::of(file.clone(), Kind::Iscsi), Ctl::of(file, Kind::Nvme));
        Self { dir, ctld, keys, iscsi, nvme }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("ctl.conf")
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.path()).unwrap()
    }

    fn conf(&self) -> Value {
        ucl::parse(&self.text()).unwrap()
    }

    fn edit(&self, change: impl FnOnce(&mut Value)) {
        let mut conf: Value = serde_json::from_str(&self.text()).unwrap();
        change(&mut conf);
        std::fs::write(self.path(), super::ucl::render(&conf)).unwrap();
    }

    fn edit_names(&self, n: usize, hosts: &[usize]) {
        let names: Vec<&str> = hosts.iter().map(|h| HOSTS[*h]).collect();
        self.edit(|c| c["auth-group"][format!("orlop-iscsi-{}", volume(n))]["initiator-name"] = json!(names));
    }

    fn converge(&self, scope: Scope, desired: &Desired) -> Result<Report> {
        self.iscsi.converge(scope, desired, &soon())
    }

    /// What a host proves itself with, if it has something.
    fn user(&self, h: usize) -> Option<(String, String)> {
        match self.keys.get(HOSTS[h]) {
            Some(Proof::Chap(put)) => Some((put.host.user.to_string(), put.host.secret.expose().to_string())),
            _ => None,
        }
    }

    fn log_in(&self, n: usize, h: usize) -> Option<u64> {
        self.ctld.log_in(&iqn(n), HOSTS[h], HOSTS[h], self.user(h))
    }

    fn may(&self, n: usize) -> BTreeSet<usize> {
        (0..HOSTS.len()).filter(|h| self.ctld.may(&iqn(n), HOSTS[*h], self.user(*h))).collect()
    }

    /// Those who must prove something and get in without.
    fn unproved(&self, n: usize) -> BTreeSet<usize> {
        let all = (0..HOSTS.len()).filter(|h| self.user(*h).is_some());
        all.filter(|h| self.ctld.may(&iqn(n), HOSTS[*h], None)).collect()
    }

    /// Who is connected in truth.
    fn connected(&self, n: usize) -> BTreeSet<usize> {
        let all = self.ctld.sessions().into_iter().filter(|s| s.target == iqn(n));
        all.map(|s| HOSTS.iter().position(|h| *h == s.truly).unwrap()).collect()
    }

    fn golden(&self, name: &str) {
        let path = format!("{}/src/target/ctl/golden/{name}.conf", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("ORLOP_BLESS").is_some() {
            std::fs::write(&path, self.text()).unwrap();
        }
        assert_eq!(self.text(), std::fs::read_to_string(&path).unwrap(), "{name}");
    }
}

fn wanted(desired: &Desired, n: usize) -> BTreeSet<usize> {
    let hosts = desired.get(&volume(n)).map(|e| e.hosts.clone()).unwrap_or_default();
    (0..HOSTS.len()).filter(|h| hosts.contains_key(&host(*h))).collect()
}

const NONE: [&str; 0] = [];

#[test]
fn golden_files() {
    let s = Stand::new();
    s.converge(Scope::All, &desired(&[(0, &[0, 1]), (1, &[1])])).unwrap();
    s.golden("iscsi");

    let s = Stand::new();
    (0..2).for_each(|h| s.keys.put(&host(h), chap(h, false)));
    s.converge(Scope::All, &desired(&[(0, &[0, 1])])).unwrap();
    s.golden("iscsi-chap");

    let s = Stand::new();
    (0..2).for_each(|h| s.keys.put(&host(h), chap(h, true)));
    let want = [(volume(0), export(0, "/dev/zvol/tank/d0", (0..2).map(|h| (host(h), READS))))].into();
    s.converge(Scope::All, &want).unwrap();
    s.golden("iscsi-mutual-read-only");

    let s = Stand::with(NvmeAccess::ByNetwork);
    s.nvme.converge(Scope::All, &by_nvme(&[(0, &[0, 1])]), &soon()).unwrap();
    s.golden("nvme");

    // Both, and what somebody else has put there.
    let s = Stand::with(NvmeAccess::ByNetwork);
    std::fs::write(s.path(), foreign_conf()).unwrap();
    s.nvme.converge(Scope::All, &by_nvme(&[(0, &[0])]), &soon()).unwrap();
    s.converge(Scope::All, &desired(&[(1, &[0])])).unwrap();
    s.golden("both-and-foreign");
    assert!(s.ctld.targets().is_superset(&[iqn(1), nqn(0), FOREIGN.to_string()].into()));
}

fn foreign_conf() -> String {
    let lun = json!({"path": "/dev/zvol/tank/theirs", "size": 1048576});
    json!({
        "maxproc": 100,
        "auth-group": {"theirs": {"chap": [{"user": "u", "secret": "their-secret-1"}]}},
        "portal-group": {"theirs": {"listen": "10.0.0.1:3261", "discovery-auth-group": "no-access"}},
        "target": {FOREIGN: {"auth-group": "theirs", "portal-group": "theirs", "lun": {"0": lun}}},
    })
    .to_string()
}

#[test]
fn builds_serves_and_leaves_nothing() {
    let s = Stand::new();
    let want = desired(&[(0, &[0, 1])]);
    assert!(s.converge(Scope::Volume(volume(0)), &want).unwrap().is_complete());
    assert_eq!(std::fs::metadata(s.path()).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(s.ctld.luns(), [("/dev/zvol/tank/d0".to_string(), (false, 1 << 30))].into());
    assert!(s.log_in(0, 0).is_some() && s.log_in(0, 1).is_some() && s.log_in(0, 2).is_none());
    for scope in [Scope::Volume(volume(0)), Scope::All, Scope::Desired] {
        assert_eq!(s.converge(scope, &want).unwrap().steps, NONE);
    }
    assert_eq!(Target::served(&s.iscsi, &soon()).unwrap(), [volume(0)].into());
    assert_eq!(s.ctld.sessions().len(), 2);
    // Others are left as they are where not all is known.
    s.converge(Scope::Desired, &desired(&[(1, &[2])])).unwrap();
    assert_eq!(s.ctld.sessions().len(), 2);
    s.converge(Scope::All, &desired(&[(1, &[2])])).unwrap();
    assert_eq!(s.ctld.sessions().len(), 0);
    s.converge(Scope::Volume(volume(1)), &Desired::new()).unwrap();
    assert!(s.ctld.luns().is_empty() && s.ctld.targets().is_empty());
    assert!(Target::served(&s.iscsi, &soon()).unwrap().is_empty());
    assert_eq!(s.converge(Scope::All, &Desired::new()).unwrap().steps, NONE);
    // Nothing but the file is left in its directory.
    assert_eq!(std::fs::read_dir(s.dir.path()).unwrap().count(), 1);
}

#[test]
fn one_write_and_one_reload_for_all_volumes() {
    let s = Stand::new();
    let want = desired(&[(0, &[0]), (1, &[1]), (2, &[0]), (3, &[1])]);
    let report = s.converge(Scope::All, &want).unwrap();
    assert_eq!((report.steps.len(), s.ctld.reloads()), (5, 1), "{report:?}");
}

#[test]
fn detach_cuts_a_host_off_whatever_it_calls_itself() {
    let s = Stand::new();
    (0..2).for_each(|h| s.keys.put(&host(h), chap(h, false)));
    s.converge(Scope::All, &desired(&[(0, &[0, 1]), (1, &[0])])).unwrap();
    s.log_in(0, 1).unwrap();
    let other = s.log_in(1, 0).unwrap();
    // With its own secret it may take the name of the host that stays.
    s.ctld.log_in(&iqn(0), HOSTS[1], HOSTS[0], s.user(0)).unwrap();
    // And a login that began before the reload is judged by the old file.
    s.ctld.begin(&iqn(0), HOSTS[0], s.user(0), 3);
    s.converge(Scope::Fence(volume(0)), &desired(&[(0, &[1])])).unwrap();
    assert_eq!(s.connected(0), [].into());
    assert!(s.ctld.sessions().iter().any(|x| x.id == other), "another volume's host was disturbed");
    assert!(s.log_in(0, 0).is_none() && s.log_in(0, 1).is_some());
    let again = desired(&[(0, &[1])]);
    assert_eq!(s.converge(Scope::Volume(volume(0)), &again).unwrap().steps, NONE);
    assert_eq!(s.connected(0), [1].into());
}

#[test]
fn a_fence_ends_what_can_not_be_told_apart() {
    let s = Stand::new();
    let want = desired(&[(0, &[1])]);
    s.converge(Scope::All, &want).unwrap();
    s.ctld.log_in(&iqn(0), HOSTS[1], HOSTS[3], None).unwrap();
    assert_eq!(s.converge(Scope::Volume(volume(0)), &want).unwrap().steps, NONE);
    s.converge(Scope::Fence(volume(0)), &want).unwrap();
    assert_eq!(s.connected(0), [].into());
}

#[test]
fn sessions_that_do_not_end_are_an_error_and_stay_noted() {
    let s = Stand::new();
    s.converge(Scope::All, &desired(&[(0, &[0, 1])])).unwrap();
    s.log_in(0, 0).unwrap();
    s.ctld.fault(Fault::Sticky);
    let want = desired(&[(0, &[1])]);
    assert!(s.converge(Scope::Fence(volume(0)), &want).is_err());
    assert_eq!(s.may(0), [1].into());
    s.ctld.heal();
    s.converge(Scope::Volume(volume(0)), &want).unwrap();
    assert_eq!(s.connected(0), [].into());
    assert_eq!(s.conf()["orlop"].get("unsettled"), None);
}

#[test]
fn foreign_content_is_carried_over_and_foreign_files_are_left() {
    let s = Stand::new();
    std::fs::write(s.path(), foreign_conf()).unwrap();
    s.ctld.create("/dev/zvol/tank/by-hand");
    s.converge(Scope::All, &desired(&[(0, &[0])])).unwrap();
    s.converge(Scope::All, &Desired::new()).unwrap();
    let (before, after) = (ucl::parse(&foreign_conf()).unwrap(), s.conf());
    for key in ["maxproc", "auth-group", "portal-group", "target"] {
        assert_eq!(before[key], after[key]);
    }
    assert!(s.ctld.luns().contains_key("/dev/zvol/tank/by-hand"));

    let s = Stand::new();
    for theirs in ["# mine\ntarget iqn.x { lun 0 { path /dev/da0 } }\n", "[1]", "{\"target\": []}"] {
        std::fs::write(s.path(), theirs).unwrap();
        let error = s.converge(Scope::Volume(volume(0)), &desired(&[(0, &[0])])).unwrap_err();
        assert!(matches!(error, TargetError::Foreign { .. }), "{error}");
        assert_eq!(s.text(), theirs);
        assert_eq!(s.ctld.reloads(), 0);
    }
}

#[test]
fn a_device_is_served_once() {
    let s = Stand::new();
    std::fs::write(s.path(), foreign_conf()).unwrap();
    s.ctld.create("/dev/zvol/tank/by-hand");
    let mut want = desired(&[(2, &[0])]);
    for (n, path) in [(0, "/dev/zvol/tank/theirs"), (1, "/dev/zvol/tank/by-hand")] {
        want.insert(volume(n), export(n, path, [(host(0), Rights::default())]));
    }
    let report = s.converge(Scope::All, &want).unwrap();
    assert!((0..2).all(|n| matches!(report.failed[&volume(n)], TargetError::Foreign { .. })), "{report:?}");
    assert!(report.result_for(volume(2)).is_ok() && s.log_in(2, 0).is_some() && s.log_in(0, 0).is_none());
    // The one that was served is served on; the other is not.
    let mut want = desired(&[(2, &[0])]);
    want.insert(volume(3), export(3, "/dev/zvol/tank/d2", [(host(1), Rights::default())]));
    let report = s.converge(Scope::All, &want).unwrap();
    assert_eq!(report.failed.len(), 2);
    assert!(s.log_in(2, 0).is_some() && s.log_in(3, 1).is_none());
}

#[test]
fn what_ctld_does_not_accept_changes_nothing() {
    let s = Stand::new();
    s.keys.put(&host(0), chap(0, true));
    let old = desired(&[(0, &[0])]);
    s.converge(Scope::All, &old).unwrap();
    let (text, reloads) = (s.text(), s.ctld.reloads());
    s.ctld.fault(Fault::Picky);
    let error = s.converge(Scope::Volume(volume(0)), &desired(&[(0, &[0, 1])])).unwrap_err();
    assert_eq!((s.text(), s.ctld.reloads()), (text, reloads));
    let report = s.converge(Scope::All, &desired(&[(0, &[0]), (1, &[1])])).unwrap();
    assert!(report.result_for(volume(0)).is_ok() && report.result_for(volume(1)).is_err(), "{report:?}");
    assert!(s.log_in(0, 0).is_some());
    assert_eq!(std::fs::read_dir(s.dir.path()).unwrap().count(), 1, "a file with secrets was left");
    // No secret is told.
    let observed = Protocol::observe(&s.iscsi, Scope::All, &old, &soon()).unwrap();
    let steps = Protocol::plan(&s.iscsi, Scope::All, &desired(&[(1, &[0])]), &observed);
    let told = format!("{error:?} {error} {report:?} {observed:?} {steps:?}");
    assert!(!told.contains("secret\"12") && !told.contains("m-secret"), "{told}");
}

#[test]
fn a_volume_that_ctld_can_not_open_is_the_only_one_that_fails() {
    let s = Stand::new();
    let want = desired(&[(0, &[0]), (1, &[1])]);
    s.ctld.break_device("/dev/zvol/tank/d0");
    let report = s.converge(Scope::All, &want).unwrap();
    assert_eq!(report.result_for(volume(0)).unwrap_err().kind(), ErrorKind::Internal);
    assert!(report.result_for(volume(1)).is_ok() && report.portals_down.is_empty(), "{report:?}");
    assert!(s.converge(Scope::Volume(volume(0)), &want).is_err());
    s.ctld.heal();
    assert!(s.converge(Scope::All, &want).unwrap().is_complete());
}

#[test]
fn a_daemon_that_is_dead_or_deaf_and_commands_that_hang_or_lie() {
    let want = desired(&[(0, &[0])]);
    let kind = |fault, scope| {
        let s = Stand::new();
        s.ctld.fault(fault);
        let result = s.converge(scope, &want);
        assert!(s.ctld.targets().is_empty());
        let failed = match result {
            Ok(report) => report.failed.get(&volume(0)).map(TargetError::kind).unwrap(),
            Err(error) => error.kind(),
        };
        // The file is there already, or nothing is: either way it is made good.
        s.ctld.heal();
        assert!(s.converge(scope, &want).unwrap().is_complete());
        assert!(s.log_in(0, 0).is_some());
        failed
    };
    for scope in [Scope::Volume(volume(0)), Scope::All] {
        assert!(matches!(kind(Fault::Dead, scope), ErrorKind::Unsupported | ErrorKind::Internal));
        assert_eq!(kind(Fault::Deaf, scope), ErrorKind::Internal);
        assert_eq!(kind(Fault::Hang, scope), ErrorKind::Deadline);
        assert_eq!(kind(Fault::Garbage, scope), ErrorKind::Internal);
    }
    // Who should be cut off is not said to be, when ctld did not hear of it.
    let s = Stand::new();
    s.converge(Scope::All, &desired(&[(0, &[0, 1])])).unwrap();
    s.log_in(0, 1).unwrap();
    s.ctld.fault(Fault::Deaf);
    assert!(s.converge(Scope::Fence(volume(0)), &want).is_err());
    s.ctld.heal();
    s.converge(Scope::Volume(volume(0)), &want).unwrap();
    assert_eq!((s.may(0), s.connected(0)), ([0].into(), [].into()));
}

#[test]
fn what_ctld_does_not_have_is_said_and_nobody_gets_more() {
    // Rights of one host.
    let s = Stand::new();
    let want = [(volume(0), export(0, "/dev/d0", [(host(0), Rights::default()), (host(1), READS)]))].into();
    let error = s.converge(Scope::Volume(volume(0)), &want).unwrap_err();
    assert!(matches!(&error, TargetError::Unsupported(e) if e.contains(HOSTS[1])), "{error}");
    assert_eq!(s.may(0), [0].into());
    // To all of them: the LUN is made anew, since what it was made with stays.
    let all: Desired = [(volume(0), export(0, "/dev/d0", [(host(0), READS), (host(1), READS)]))].into();
    s.log_in(0, 0).unwrap();
    s.converge(Scope::Volume(volume(0)), &all).unwrap();
    assert!(s.ctld.luns()["/dev/d0"].0 && s.connected(0).is_empty());
    assert_eq!(s.may(0), [0, 1].into());

    // Ways to prove oneself: the strictest is kept to.
    let s = Stand::new();
    s.keys.put(&host(0), chap(0, false));
    s.keys.put(&host(1), chap(1, true));
    let want = desired(&[(0, &[0, 1, 2]), (1, &[0]), (2, &[2])]);
    let report = s.converge(Scope::All, &want).unwrap();
    let error = report.result_for(volume(0)).unwrap_err().to_string();
    assert!(error.contains(HOSTS[0]) && error.contains(HOSTS[2]) && !error.contains(HOSTS[1]), "{error}");
    assert_eq!((s.may(0), s.may(1), s.may(2)), ([1].into(), [0].into(), [2].into()));

    // Two hosts of one user with different secrets, which ctld would find the whole file bad for.
    let s = Stand::new();
    s.keys.put(&host(0), chap(0, false));
    let Proof::Chap(mut other) = chap(1, false) else { panic!() };
    other.host.user = HOSTS[0].parse().unwrap();
    s.keys.put(&host(1), Proof::Chap(other));
    let report = s.converge(Scope::All, &desired(&[(0, &[0, 1]), (1, &[1])])).unwrap();
    assert!(report.result_for(volume(0)).is_err() && report.result_for(volume(1)).is_ok());
    assert_eq!((s.may(0), s.may(1)), ([0].into(), [1].into()));
}

#[test]
fn nvme_is_refused_unless_the_network_is_trusted() {
    let want = by_nvme(&[(0, &[0])]);
    let s = Stand::new();
    let error = s.nvme.converge(Scope::Volume(volume(0)), &want, &soon()).unwrap_err();
    assert!(matches!(error, TargetError::Unsupported(_)), "{error}");
    assert!(s.ctld.targets().is_empty() && !s.path().exists());

    let s = Stand::with(NvmeAccess::ByNetwork);
    s.nvme.converge(Scope::All, &want, &soon()).unwrap();
    assert_eq!(s.ctld.targets(), [nqn(0)].into());
    s.ctld.log_in(&nqn(0), NQNS[0], NQNS[0], None).unwrap();
    assert_eq!(s.nvme.converge(Scope::All, &want, &soon()).unwrap().steps, NONE);
    // A fence makes it anew: nothing of the old one is left.
    s.nvme.converge(Scope::Fence(volume(0)), &want, &soon()).unwrap();
    assert!(s.ctld.sessions().is_empty() && s.ctld.targets() == [nqn(0)].into());
    // So does a host that leaves.
    s.nvme.converge(Scope::All, &by_nvme(&[(0, &[0, 1])]), &soon()).unwrap();
    s.ctld.log_in(&nqn(0), NQNS[0], NQNS[0], None).unwrap();
    s.nvme.converge(Scope::All, &by_nvme(&[(0, &[1])]), &soon()).unwrap();
    assert!(s.ctld.sessions().is_empty());
    // One that must prove a secret takes the volume from all: it would be let in without.
    let proof = s.keys.clone();
    proof.put(&HostId::Nqn(NQNS[0].parse().unwrap()), chap(0, false));
    let report = s.nvme.converge(Scope::All, &by_nvme(&[(0, &[0, 1]), (1, &[1])]), &soon()).unwrap();
    assert!(matches!(report.failed[&volume(0)], TargetError::Unsupported(_)));
    assert_eq!(s.ctld.targets(), [nqn(1)].into());
}

#[test]
fn two_protocols_share_a_file_and_leave_each_other_alone() {
    let s = Stand::with(NvmeAccess::ByNetwork);
    let (a, b) = (desired(&[(0, &[0])]), by_nvme(&[(1, &[0])]));
    s.converge(Scope::All, &a).unwrap();
    s.nvme.converge(Scope::All, &b, &soon()).unwrap();
    assert_eq!(s.converge(Scope::All, &a).unwrap().steps, NONE);
    assert_eq!(s.nvme.converge(Scope::All, &b, &soon()).unwrap().steps, NONE);
    assert_eq!(s.ctld.targets(), [iqn(0), nqn(1)].into());
    s.nvme.converge(Scope::All, &Desired::new(), &soon()).unwrap();
    assert_eq!(s.ctld.targets(), [iqn(0)].into());
    std::thread::scope(|t| {
        for n in 0..4 {
            let (s, want) = (&s, desired(&[(n, &[0, 1])]));
            t.spawn(move || s.converge(Scope::Volume(volume(n)), &want).unwrap());
        }
    });
    assert_eq!(s.ctld.targets(), (0..4).map(iqn).collect());
}

#[test]
fn drift_is_found_and_put_back() {
    let s = Stand::new();
    let want = desired(&[(0, &[0]), (1, &[1])]);
    s.converge(Scope::All, &want).unwrap();
    let put_back = |what: &str| {
        let steps = s.converge(Scope::All, &want).unwrap().steps;
        assert!(!steps.is_empty(), "{what}");
        assert_eq!((s.may(0), s.may(1)), ([0].into(), [1].into()), "{what}");
        assert_eq!(s.converge(Scope::All, &want).unwrap().steps, NONE, "{what}");
    };
    // The file.
    s.edit(|c| c["target"][iqn(0)]["auth-group"] = "no-authentication".into());
    put_back("an open target");
    s.edit(|c| c["auth-group"][format!("orlop-iscsi-{}", volume(0))]["initiator-name"] = json!([]));
    put_back("a group without names");
    s.edit(|c| drop(c["target"].as_object_mut().unwrap().remove(&iqn(1))));
    put_back("a target less");
    s.edit(|c| c["timeout"] = 600.into());
    put_back("another timeout");
    s.edit(|c| c["portal-group"]["orlop"]["listen"] = json!(["0.0.0.0:3260"]));
    put_back("another portal");
    std::fs::set_permissions(s.path(), std::fs::Permissions::from_mode(0o644)).unwrap();
    put_back("a file for all to read");
    std::fs::remove_file(s.path()).unwrap();
    put_back("no file");
    // The same, read by ctld, and with somebody connected by it.
    s.edit(|c| c["target"][iqn(0)]["auth-group"] = "no-authentication".into());
    Ctld::reload(&*s.ctld, std::path::Path::new("/var/run/ctld.pid"), &soon()).unwrap();
    s.log_in(0, 3).unwrap();
    put_back("an open target that was used");
    assert_eq!(s.connected(0), [].into());
    // The kernel.
    s.ctld.remove(&format!("{},lun,0", iqn(0)));
    put_back("a LUN less");
}

/// A file that is right is not one that ctld has read.
#[test]
fn what_somebody_else_wrote_is_read_even_if_it_is_right() {
    let s = Stand::new();
    s.converge(Scope::All, &desired(&[(0, &[0])])).unwrap();
    s.log_in(0, 0).unwrap();
    let names = |h: usize| s.edit_names(0, &[h]);
    let reload = || Ctld::reload(&*s.ctld, std::path::Path::new("/var/run/ctld.pid"), &soon()).unwrap();
    let want = desired(&[(0, &[1])]);
    for scope in [Scope::All, Scope::Volume(volume(0)), Scope::Fence(volume(0))] {
        // Put there before it was asked for.
        names(1);
        s.converge(scope, &want).unwrap();
        assert_eq!((s.may(0), s.connected(0)), ([1].into(), [].into()));
        // Put back, after ctld has read something else.
        names(2);
        assert!(reload());
        s.log_in(0, 2).unwrap();
        names(1);
        s.converge(scope, &want).unwrap();
        assert_eq!((s.may(0), s.connected(0)), ([1].into(), [].into()));
        assert_eq!(s.converge(Scope::All, &want).unwrap().steps, NONE);
        // And ctld has still the other one.
        names(0);
        assert!(reload());
    }
    // The sessions of those who were let in are ended at once, even if a host can't be let in as it should be.
    let s = Stand::new();
    s.converge(Scope::All, &desired(&[(0, &[0])])).unwrap();
    s.log_in(0, 0).unwrap();
    for (found, wanted) in [
        (1, [(host(0), READS), (host(1), Rights::default())]),
        (0, [(host(0), Rights::default()), (host(1), READS)]),
    ] {
        s.edit_names(0, &[found]);
        let want = [(volume(0), export(0, "/dev/zvol/tank/d0", wanted))].into();
        let error = s.converge(Scope::Volume(volume(0)), &want).unwrap_err();
        assert!(matches!(error, TargetError::Unsupported(_)), "{error}");
        assert_eq!((s.may(0), s.connected(0)), ([found].into(), [].into()));
        let report = s.converge(Scope::All, &want).unwrap();
        assert_eq!((report.steps, report.failed.len()), (Vec::new(), 1));
        s.log_in(0, found).unwrap();
    }
}

/// What ctld reads for one volume it reads for all.
#[test]
fn a_reload_for_one_volume_lets_nobody_in_at_another() {
    let s = Stand::new();
    let want = desired(&[(0, &[0]), (1, &[1])]);
    s.converge(Scope::All, &want).unwrap();
    let group = format!("orlop-iscsi-{}", volume(1));
    let open = |c: &mut Value| c["target"][iqn(1)]["auth-group"] = "no-authentication".into();
    let name = |c: &mut Value| c["auth-group"][&group]["initiator-name"] = json!([HOSTS[1], HOSTS[3]]);
    for (n, edit) in [&open as &dyn Fn(&mut Value), &name].into_iter().enumerate() {
        s.edit(edit);
        s.converge(Scope::Volume(volume(0)), &desired(&[(0, &[n, 2])])).unwrap();
        assert_eq!(s.may(1), [1].into());
        // Not by a write either, but because the kernel differs.
        s.edit(edit);
        s.ctld.remove(&format!("{},lun,0", iqn(0)));
        s.converge(Scope::Volume(volume(0)), &desired(&[(0, &[n, 2])])).unwrap();
        assert_eq!(s.may(1), [1].into());
    }
}

#[test]
fn an_initiator_can_not_hide_in_the_list() {
    let s = Stand::new();
    s.converge(Scope::All, &desired(&[(0, &[0, 1])])).unwrap();
    let session = s.log_in(0, 0).unwrap();
    let short = format!(
        "x</initiator_alias><target>iqn.x</target></connection><connection id=\"9\"><initiator>{}",
        HOSTS[1]
    );
    assert!(short.len() < 128);
    for alias in [
        short.as_str(),
        "<target>iqn.x</target>",
        "</initiator_alias><target>iqn.x</target><initiator_alias>",
    ] {
        s.ctld.set_alias(session, alias);
        assert!(s.converge(Scope::Volume(volume(0)), &desired(&[(0, &[1])])).is_err(), "{alias}");
    }
    s.ctld.set_alias(session, "");
    s.converge(Scope::Volume(volume(0)), &desired(&[(0, &[1])])).unwrap();
    assert_eq!(s.connected(0), [].into());
}

#[test]
fn size_is_announced() {
    let s = Stand::new();
    let mut want = desired(&[(0, &[0])]);
    assert!(Target::announce_size(&s.iscsi, &want[&volume(0)], &soon()).is_err());
    s.converge(Scope::All, &want).unwrap();
    s.log_in(0, 0).unwrap();
    want.get_mut(&volume(0)).unwrap().size = ByteSize((2 << 30) + 100);
    Target::announce_size(&s.iscsi, &want[&volume(0)], &soon()).unwrap();
    assert_eq!(s.ctld.luns()["/dev/zvol/tank/d0"].1, 2 << 30);
    assert_eq!(s.connected(0), [0].into());
    assert_eq!(s.converge(Scope::All, &want).unwrap().steps, NONE);
}

#[test]
fn a_secret_is_asked_for_from_the_next_login_on() {
    let s = Stand::new();
    let want = desired(&[(0, &[0]), (1, &[0, 1])]);
    Target::prove(&s.iscsi, &host(0), &soon()).unwrap();
    assert!(!s.path().exists());
    s.converge(Scope::All, &want).unwrap();
    s.log_in(0, 0).unwrap();
    s.keys.put(&host(0), chap(0, false));
    assert_eq!(s.unproved(0), [0].into());
    // The other volume has a host that proves nothing, and ctld one way for all.
    let error = Target::prove(&s.iscsi, &host(0), &soon()).unwrap_err();
    assert!(matches!(&error, TargetError::Unsupported(e) if e.contains(HOSTS[1])), "{error}");
    assert_eq!((s.unproved(0), s.unproved(1)), ([].into(), [].into()));
    assert_eq!((s.may(0), s.connected(0)), ([0].into(), [0].into()));
    s.keys.put(&host(1), chap(1, false));
    assert!(s.converge(Scope::All, &want).unwrap().is_complete());
    assert_eq!(s.may(1), [0, 1].into());
    // It is not asked for before ctld has heard of it, and then by asking again.
    s.keys.put(&host(1), chap(1, true));
    s.keys.put(&host(0), chap(0, true));
    s.ctld.fault(Fault::Dead);
    Target::prove(&s.iscsi, &host(0), &soon()).unwrap_err();
    Target::prove(&s.iscsi, &host(0), &soon()).unwrap_err();
    s.ctld.heal();
    let reloads = s.ctld.reloads();
    Target::prove(&s.iscsi, &host(0), &soon()).unwrap();
    Target::prove(&s.iscsi, &host(0), &soon()).unwrap();
    assert_eq!(s.ctld.reloads(), reloads + 1);
    // Another one, and none.
    s.keys.put(&host(0), Proof::Nothing);
    Target::prove(&s.iscsi, &host(0), &soon()).unwrap_err();
    assert_eq!(s.may(1), [1].into());
}

/// Every place to stop, for every change of hosts: the last trace of an access goes after the access.
#[test]
fn a_stop_at_any_change_hides_nobody() {
    let sets: [&[usize]; 5] = [&[], &[0], &[1], &[0, 1], &[1, 2]];
    let of = |set: &[usize]| if set.is_empty() { Desired::new() } else { desired(&[(0, set)]) };
    for (first, after) in sets.iter().flat_map(|f| (0..9).map(move |n| (f, n))) {
        for then in sets {
            let s = Stand::new();
            s.keys.put(&host(1), chap(1, false));
            s.keys.put(&host(0), chap(0, false));
            s.keys.put(&host(2), chap(2, false));
            s.converge(Scope::All, &desired(&[(0, &[0, 1])])).unwrap();
            s.log_in(0, 1).unwrap();
            // Under the other's name.
            s.ctld.log_in(&iqn(0), HOSTS[1], HOSTS[0], s.user(0)).unwrap();
            s.ctld.fault_after(after);
            let _ = s.converge(Scope::Volume(volume(0)), &of(first));
            let bound: BTreeSet<usize> = s.may(0);
            let known: BTreeSet<usize> = first.iter().chain(&[0, 1]).copied().collect();
            assert!(bound.is_subset(&known), "{first:?} {after}: {bound:?}");
            s.ctld.heal();
            let want = of(then);
            s.converge(Scope::Volume(volume(0)), &want).unwrap();
            let connected = s.connected(0);
            assert!(
                connected.is_subset(&wanted(&want, 0)),
                "{first:?}, stopped after {after}, {then:?}: {connected:?}"
            );
            assert_eq!(s.may(0), wanted(&want, 0));
            assert_eq!(s.converge(Scope::All, &want).unwrap().steps, NONE);
        }
    }
}

#[test]
fn an_overrun_stops_between_two_steps() {
    let s = Stand::new();
    let deadline = soon();
    deadline.abandon();
    let error = s.iscsi.converge(Scope::Volume(volume(0)), &desired(&[(0, &[0])]), &deadline).unwrap_err();
    assert!(matches!(error, TargetError::Deadline(..)), "{error}");
    assert!(!s.path().exists());
}

/// The commands themselves, as scripts.
#[test]
fn commands_are_called_as_their_manuals_say() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let script = |name: &str, body: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\necho {name} \"$@\" >> {}\n{body}\n", log.display()))
            .unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    script("ctld", "echo 'secret \"x\"' >&2; exit ${bad:-1}");
    script(
        "ctladm",
        "case $1 in islist) echo '<ctlislist></ctlislist>';; nvlist) exit 1;; *) echo ok;; esac",
    );
    script("pgrep", "case \"$*\" in *-P*) echo 12; echo 13;; *) echo 11;; esac");
    script("pkill", "exit 3");
    crate::kernel::exec::find_in(Some(dir.path().into()));
    let tools = CtlTools;
    let pidfile = std::path::Path::new("/var/run/ctld.pid");
    assert!(!tools.accepts(std::path::Path::new("/f.new"), &soon()).unwrap());
    assert!(!tools.reload(pidfile, &soon()).unwrap());
    assert_eq!(tools.logins(pidfile, &soon()).unwrap(), [12, 13].into());
    assert_eq!(tools.list(List::IscsiSessions, &soon()).unwrap(), "<ctlislist></ctlislist>\n");
    assert!(tools.list(List::NvmeSessions, &soon()).is_err());
    tools.terminate(7, &soon()).unwrap();
    script("ctladm", "sleep 30");
    let late = Deadline::after(Duration::from_millis(200));
    assert!(matches!(tools.list(List::Luns, &late), Err(ExecError::Overrun { .. })));
    crate::kernel::exec::find_in(None);
    let said = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], "ctld -u -t -f /f.new");
    assert_eq!(lines[1], "pkill -HUP -L -x -F /var/run/ctld.pid ctld");
    assert_eq!(lines[2], "pgrep -L -x -F /var/run/ctld.pid ctld");
    assert_eq!(lines[3], "pgrep -P 11 -x ctld");
    assert_eq!(
        lines[4..],
        ["ctladm islist -x", "ctladm nvlist -x", "ctladm isterminate -c 7", "ctladm devlist -x"]
    );
}

/// Something that somebody did before.
#[derive(Debug, Clone)]
enum Deed {
    Open(usize),
    Names(usize, Vec<usize>),
    Remove(usize),
    Lun(usize, Value),
    Stray(String, Value),
    Reload,
    LogIn(usize, usize, usize),
    Create(String),
    RemoveLun(usize),
    Mode,
}

fn any_deed() -> impl Strategy<Value = Deed> {
    let n = || 0usize..2;
    prop_oneof![
        1 => n().prop_map(Deed::Open),
        1 => (n(), proptest::collection::vec(0usize..4, 0..3)).prop_map(|(n, h)| Deed::Names(n, h)),
        1 => n().prop_map(Deed::Remove),
        1 => (n(), prop_oneof![Just(json!("/dev/other")), Just(json!("/dev/zvol/tank/d0"))])
            .prop_map(|(n, v)| Deed::Lun(n, v)),
        1 => ("[a-z]{1,4}", prop_oneof![Just(json!(1)), Just(json!({"x": "y"}))])
            .prop_map(|(k, v)| Deed::Stray(format!("their-{k}"), v)),
        2 => Just(Deed::Reload),
        6 => (n(), 0usize..4, 0usize..4).prop_map(|(n, claims, truly)| Deed::LogIn(n, claims, truly)),
        1 => prop_oneof![Just("/dev/by-hand".to_string()), Just("/dev/zvol/tank/d1".into())].prop_map(Deed::Create),
        1 => n().prop_map(Deed::RemoveLun),
        1 => Just(Deed::Mode),
    ]
}

fn do_deed(s: &Stand, deed: &Deed) {
    let target = |c: &mut Value, n: usize| c.get("target").is_some_and(|t| t.get(iqn(n)).is_some());
    match deed {
        Deed::Open(n) => s.edit(|c| {
            if target(c, *n) {
                c["target"][iqn(*n)]["auth-group"] = "no-authentication".into();
            }
        }),
        Deed::Names(n, hosts) => s.edit(|c| {
            if target(c, *n) {
                let names: Vec<&str> = hosts.iter().map(|h| HOSTS[*h]).collect();
                c["auth-group"][format!("orlop-iscsi-{}", volume(*n))]["initiator-name"] = json!(names);
            }
        }),
        Deed::Remove(n) => s.edit(|c| {
            if let Some(Value::Object(t)) = c.get_mut("target") {
                t.remove(&iqn(*n));
            }
        }),
        Deed::Lun(n, path) => s.edit(|c| {
            if target(c, *n) {
                c["target"][iqn(*n)]["lun"]["0"]["path"] = path.clone();
            }
        }),
        Deed::Stray(key, value) => s.edit(|c| c[key] = value.clone()),
        Deed::Reload => drop(Ctld::reload(&*s.ctld, std::path::Path::new("/var/run/ctld.pid"), &soon())),
        Deed::LogIn(n, claims, truly) => {
            s.ctld.log_in(&iqn(*n), HOSTS[*claims], HOSTS[*truly], s.user(*truly));
        }
        Deed::Create(path) => s.ctld.create(path),
        Deed::RemoveLun(n) => s.ctld.remove(&format!("{},lun,0", iqn(*n))),
        Deed::Mode => {
            let _ = std::fs::set_permissions(s.path(), std::fs::Permissions::from_mode(0o640));
        }
    }
}

fn any_desired() -> impl Strategy<Value = Desired> {
    let hosts = proptest::collection::btree_map(0usize..3, proptest::bool::weighted(0.2), 1..4);
    let one = move |n| {
        let device = prop_oneof![9 => Just(n), 1 => Just(0)];
        proptest::option::weighted(0.75, (hosts.clone(), device)).prop_map(move |e| {
            e.map(|(hosts, d)| {
                let hosts =
                    hosts.into_iter().map(|(h, r)| (host(h), Rights { read_only: r, ..Rights::default() }));
                (volume(n), export(n, &format!("/dev/zvol/tank/d{d}"), hosts))
            })
        })
    };
    (one(0), one(1)).prop_map(|(a, b)| a.into_iter().chain(b).collect())
}

fn any_keys() -> impl Strategy<Value = [u8; 3]> {
    [0u8..3, 0u8..3, 0u8..3]
}

fn stand(keys: [u8; 3], built: &Desired, deeds: &[Deed]) -> Stand {
    let s = Stand::new();
    std::fs::write(s.path(), foreign_conf()).unwrap();
    for (h, key) in keys.into_iter().enumerate().filter(|(_, k)| *k > 0) {
        s.keys.put(&host(h), chap(h, key == 2));
    }
    s.converge(Scope::All, built).unwrap();
    for (n, h) in (0..2).flat_map(|n| (0..4).map(move |h| (n, h))) {
        s.log_in(n, h);
    }
    deeds.iter().for_each(|d| do_deed(&s, d));
    s
}

/// What must not change.
fn foreign(s: &Stand) -> BTreeMap<String, Value> {
    let conf = s.conf();
    let mut kept: BTreeMap<String, Value> = BTreeMap::new();
    for (key, value) in conf.as_object().unwrap() {
        if key.starts_with("their-") || key == "maxproc" {
            kept.insert(key.clone(), value.clone());
        }
        for (name, inner) in value.as_object().into_iter().flatten() {
            if name == FOREIGN || name == "theirs" {
                kept.insert(format!("{key}/{name}"), inner.clone());
            }
        }
    }
    if s.ctld.luns().contains_key("/dev/by-hand") {
        kept.insert("by-hand".into(), true.into());
    }
    kept
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_state_converges_to_any_other(
        keys in any_keys(),
        built in any_desired(),
        deeds in proptest::collection::vec(any_deed(), 0..12),
        want in any_desired(),
        narrow in any::<bool>(),
        stop in proptest::option::of(0usize..10),
    ) {
        let s = stand(keys, &built, &deeds);
        let before = foreign(&s);
        let bounds: Vec<BTreeSet<usize>> = (0..2).map(|n| &(&s.may(n) | &wanted(&want, n)) | &wanted(&built, n)).collect();
        let unproved: Vec<BTreeSet<usize>> = (0..2).map(|n| s.unproved(n)).collect();
        let scopes = if narrow { vec![Scope::Volume(volume(0)), Scope::Volume(volume(1))] } else { vec![Scope::All] };
        if let Some(after) = stop {
            s.ctld.fault_after(after);
            for scope in &scopes {
                let _ = s.converge(*scope, &want);
            }
            for n in 0..2 {
                prop_assert!(s.may(n).is_subset(&bounds[n]), "{:?} beyond {:?}", s.may(n), bounds[n]);
                prop_assert!(s.unproved(n).is_subset(&unproved[n]));
            }
            s.ctld.heal();
        }
        let mut failed: BTreeMap<VolumeId, TargetError> = BTreeMap::new();
        for scope in &scopes {
            match s.converge(*scope, &want) {
                Ok(report) => {
                    prop_assert!(report.portals_down.is_empty(), "{:?}", report);
                    failed.extend(report.failed);
                }
                Err(e) => drop(failed.insert(scope.volume().unwrap(), e)),
            }
        }
        for e in failed.values() {
            prop_assert!(matches!(e, TargetError::Foreign { .. } | TargetError::Unsupported(_)), "{} / {:?}", e, e);
        }
        prop_assert_eq!(foreign(&s), before);
        for n in 0..2 {
            let wanted = wanted(&want, n);
            prop_assert!(s.may(n).is_subset(&wanted));
            prop_assert_eq!(s.unproved(n), BTreeSet::new());
            if !failed.contains_key(&volume(n)) {
                prop_assert_eq!(s.may(n), wanted.clone());
            }
            // Names prove nothing: who claims to be a host that stays is ended by a fence.
            let strangers: Vec<_> = s.ctld.sessions().into_iter().filter(|x| x.target == iqn(n))
                .filter(|x| !wanted.iter().any(|h| HOSTS[*h] == x.claims)).collect();
            prop_assert!(strangers.is_empty(), "{:?}", strangers);
        }
        let text = s.text();
        for scope in &scopes {
            if let Ok(report) = s.converge(*scope, &want) {
                prop_assert_eq!(&report.steps, &Vec::<String>::new());
            }
        }
        prop_assert_eq!(s.text(), text);
    }
}
