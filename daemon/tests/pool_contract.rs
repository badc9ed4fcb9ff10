//! The contract suite against what this machine can have for real: `sim`, and `file` pools on btrfs and
//! XFS on loop devices. Needs root and /dev/loop-control, and fails without: a suite that is skipped
//! proves nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::disallowed_methods, reason = "a test starts commands")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use orlop_api::{ByteSize, DiskName, DiskWipe, ErrorKind, Filesystem, PoolCreate, Provisioning};
use orlopd::kernel::Deadline;
use orlopd::model::{PoolMedium, PoolSpec};
use orlopd::pool::contract::{self, Subject};
use orlopd::pool::{self, PoolEnv, PoolError};

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(120))
}

/// Runs a test in a process of its own, and says whether that has been done: then there is no more to do. A
/// process that one of them starts has, for a moment, all files that others in its process have open: enough to
/// be in the way of what may be done only to what nobody has open.
fn in_own_process(test: &str) -> bool {
    const HERE: &str = "ORLOP_TEST_HERE";
    if std::env::var_os(HERE).is_some() {
        return false;
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    let out = child.args(["--exact", test, "--nocapture"]).env(HERE, "1").output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && said.contains("1 passed"), "{said}");
    true
}

fn need_root() {
    assert!(
        rustix::process::geteuid().is_root() && Path::new("/dev/loop-control").exists(),
        "this test makes loop devices and mounts: run it as root on a machine that has /dev/loop-control"
    );
}

fn sh(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output().unwrap();
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().trim().to_string()
}

/// MiB of a disk, of which little is written. On 1 GiB btrfs now and then runs out of room for its own
/// metadata under a thousand snapshots, and becomes read-only.
const DISK: u64 = 3072;

/// A sparse file as a disk; detached at the end.
struct LoopDisk {
    device: String,
    _dir: tempfile::TempDir,
}

impl LoopDisk {
    fn new(mib: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk");
        std::fs::File::create(&file).unwrap().set_len(mib << 20).unwrap();
        let device = sh("losetup", &["--find", "--show", file.to_str().unwrap()]);
        Self { device, _dir: dir }
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.device]).status();
    }
}

/// A disk, formatted and mounted; unmounted at the end.
struct Mounted {
    point: tempfile::TempDir,
    _disk: LoopDisk,
}

impl Mounted {
    fn new(mkfs: &[&str]) -> Self {
        let disk = LoopDisk::new(DISK);
        sh(mkfs[0], &[&mkfs[1..], &[&disk.device]].concat());
        let point = tempfile::tempdir().unwrap();
        sh("mount", &[&disk.device, point.path().to_str().unwrap()]);
        Self { point, _disk: disk }
    }

    fn dir(&self) -> PathBuf {
        let d = self.point.path().join("pool");
        std::fs::create_dir_all(&d).unwrap();
        d
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let pool = self.point.path().join("pool/volumes");
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let all = Command::new("losetup").args(["-l", "-n", "-O", "NAME,BACK-FILE"]).output().unwrap();
        for line in String::from_utf8_lossy(&all.stdout).lines() {
            let Some((device, file)) = line.trim().split_once(' ') else { continue };
            if Path::new(file.trim()).starts_with(&pool)
                && let Some(mount) = mounts.lines().find(|l| l.split(' ').next() == Some(device))
            {
                let _ = Command::new("umount").args(mount.split(' ').nth(1)).status();
            }
        }
        // What a test that has failed left attached keeps the rest from going.
        let all = Command::new("losetup").args(["-l", "-n", "-O", "NAME,BACK-FILE"]).output().unwrap();
        for line in String::from_utf8_lossy(&all.stdout).lines() {
            if let Some((device, file)) = line.trim().split_once(' ')
                && Path::new(file.trim()).starts_with(self.point.path())
            {
                let _ = Command::new("losetup").args(["--detach", device]).status();
            }
        }
        let _ = Command::new("umount").arg(self.point.path()).status();
    }
}

fn spec(medium: PoolMedium) -> PoolSpec {
    PoolSpec { v: 1, name: "contract".parse().unwrap(), medium }
}

fn suite(subject: &Subject) {
    let mut failures = Vec::new();
    let (passed, failed) = contract::run(subject, &mut |r| match &r.result {
        Ok(()) => println!("ok     {} ({:.2?})", r.name, r.took),
        Err(why) => failures.push(format!("{}: {why}", r.name)),
    });
    assert!(failed == 0, "{passed} passed, {failed} failed:\n{}", failures.join("\n"));
}

#[test]
fn pool_sim_keeps_the_contract() {
    if in_own_process("pool_sim_keeps_the_contract") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let directory = dir.path().to_owned();
    suite(&Subject { spec: spec(PoolMedium::Sim { directory }), env: PoolEnv::default() });
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left in the directory");
}

fn on_directory(mkfs: &[&str]) {
    need_root();
    let m = Mounted::new(mkfs);
    let directory = m.dir();
    let volumes = tempfile::tempdir().unwrap();
    suite(&Subject {
        spec: spec(PoolMedium::FileDirectory { directory: directory.clone() }),
        env: PoolEnv { volumes: volumes.path().to_owned(), ..PoolEnv::default() },
    });
    assert_eq!(std::fs::read_dir(directory).unwrap().count(), 0, "nothing is left in the directory");
}

#[test]
fn pool_file_on_xfs_keeps_the_contract() {
    if in_own_process("pool_file_on_xfs_keeps_the_contract") {
        return;
    }
    on_directory(&["mkfs.xfs", "-q"]);
}

#[test]
fn pool_file_on_btrfs_keeps_the_contract() {
    if in_own_process("pool_file_on_btrfs_keeps_the_contract") {
        return;
    }
    on_directory(&["mkfs.btrfs", "-q"]);
}

#[test]
fn pool_file_gives_space_back_when_thin_and_keeps_it_when_thick() {
    if in_own_process("pool_file_gives_space_back_when_thin_and_keeps_it_when_thick") {
        return;
    }
    need_root();
    let m = Mounted::new(&["mkfs.xfs", "-q"]);
    let subject =
        Subject { spec: spec(PoolMedium::FileDirectory { directory: m.dir() }), env: PoolEnv::default() };
    let pool = orlopd::pool::create(&subject.spec, &subject.env, &soon()).unwrap();
    let allocated = |id: orlop_api::VolumeId| {
        let image = m.dir().join("volumes").join(format!("{id}.img"));
        std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(image).unwrap()) * 512
    };
    // Thick first and detached again: the next device has its number, and must not have its limits.
    for provisioning in [orlop_api::Provisioning::Thick, orlop_api::Provisioning::Thin] {
        let l = contract::label(orlop_api::ByteSize(64 << 20), provisioning);
        pool.create(&l, &soon()).unwrap();
        let device = pool.open(l.id, &soon()).unwrap().path().to_owned();
        let file = std::fs::File::options().write(true).open(&device).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[1; 16 << 20], 0).unwrap();
        file.sync_all().unwrap();
        let discarded = Command::new("blkdiscard").arg(&device).output().unwrap().status.success();
        let thin = provisioning == orlop_api::Provisioning::Thin;
        assert_eq!(discarded, thin, "{provisioning:?}");
        let left = allocated(l.id);
        assert!(if thin { left < 1 << 20 } else { left >= 64 << 20 }, "{provisioning:?}: {left}");
        drop(file);
        pool.close(l.id, &soon()).unwrap();
        pool.destroy(l.id, &soon()).unwrap();
    }
    pool.remove(&soon()).unwrap();
}

fn on_disk(filesystem: Filesystem) {
    need_root();
    let disk = LoopDisk::new(DISK);
    let mounts = tempfile::tempdir().unwrap();
    let (mounts_at, volumes) = (mounts.path().join("pools"), mounts.path().join("volumes"));
    let env = PoolEnv { mounts: mounts_at, volumes, loops_as_disks: true, ..PoolEnv::default() };
    let medium = PoolMedium::FileDisk { disk: disk.device.clone(), filesystem, uuid: uuid::Uuid::now_v7() };
    let subject = Subject { spec: spec(medium), env: env.clone() };
    suite(&subject);
    // As after a reboot: made, unmounted by the machine's end, found by its UUID and mounted.
    drop(orlopd::pool::create(&subject.spec, &env, &soon()).unwrap());
    let point = env.mounts.join("contract");
    sh("umount", &[point.to_str().unwrap()]);
    let pool = orlopd::pool::open(&subject.spec, &env, &soon()).unwrap();
    // Not blank any more, so no other pool may have it, whatever it claims.
    let other = PoolSpec {
        name: "other".parse().unwrap(),
        medium: PoolMedium::FileDisk { disk: disk.device.clone(), filesystem, uuid: uuid::Uuid::now_v7() },
        ..subject.spec.clone()
    };
    let refused = orlopd::pool::create(&other, &env, &soon()).map(drop);
    assert!(matches!(refused, Err(PoolError::Precondition { .. })), "{refused:?}");
    pool.remove(&soon()).unwrap();
    assert!(!point.exists());
}

#[test]
fn pool_file_on_an_xfs_disk_keeps_the_contract() {
    if in_own_process("pool_file_on_an_xfs_disk_keeps_the_contract") {
        return;
    }
    on_disk(Filesystem::Xfs);
}

/// A disk goes to another machine: it is let go of, recognized there, and has what it had.
#[test]
fn pool_disks_are_exported_and_recognized() {
    if in_own_process("pool_disks_are_exported_and_recognized") {
        return;
    }
    need_root();
    for filesystem in ["xfs", "btrfs"] {
        let disk = LoopDisk::new(DISK);
        let dir = tempfile::tempdir().unwrap();
        let env = PoolEnv { mounts: dir.path().join("mounts"), loops_as_disks: true, ..PoolEnv::default() };
        let ask = |name: &str| -> PoolSpec {
            let ask = serde_json::json!({
                "name": name, "kind": "file", "disks": [disk.device], "filesystem": filesystem
            });
            PoolSpec::try_from(serde_json::from_value::<PoolCreate>(ask).unwrap()).unwrap()
        };
        let long = Deadline::after(Duration::from_secs(60));
        let spec = ask("travels");
        let made = pool::create(&spec, &env, &long).unwrap();
        let label = contract::label(ByteSize(8 << 20), Provisioning::Thin);
        made.create(&label, &long).unwrap();
        made.export(&long).unwrap();
        assert!(made.list(&long).is_err(), "{filesystem}: it is mounted still");
        drop(made);

        let elsewhere = PoolEnv { mounts: dir.path().join("other"), ..env.clone() };
        let found = pool::recognize(&ask("travels"), &elsewhere, &soon()).unwrap();
        assert_eq!(found.medium, spec.medium, "what was minted is read from the disk");
        let other = ask("another");
        let other = pool::recognize(&other, &elsewhere, &soon()).unwrap();
        assert!(pool::import(&other, &elsewhere, false, &long).is_err(), "{filesystem}: by another name");
        assert!(!elsewhere.mounts.join("another").exists(), "{filesystem}: it is still mounted");
        let back = pool::import(&found, &elsewhere, false, &long).unwrap();
        assert_eq!(back.get(label.id, &long).unwrap().unwrap().label, label);
        back.destroy(label.id, &long).unwrap();
        back.remove(&long).unwrap();
        assert!(
            pool::recognize(&found, &elsewhere, &soon()).is_err(),
            "{filesystem}: a blank disk is no pool"
        );
    }
}

#[test]
fn pool_file_on_a_btrfs_disk_keeps_the_contract() {
    if in_own_process("pool_file_on_a_btrfs_disk_keeps_the_contract") {
        return;
    }
    on_disk(Filesystem::Btrfs);
}

#[test]
fn pool_disks_are_not_taken_while_they_hold_anything() {
    if in_own_process("pool_disks_are_not_taken_while_they_hold_anything") {
        return;
    }
    need_root();
    let mounts = tempfile::tempdir().unwrap();
    let env = PoolEnv { mounts: mounts.path().to_owned(), loops_as_disks: true, ..PoolEnv::default() };
    let make = |disk: &LoopDisk| {
        let medium = PoolMedium::FileDisk {
            disk: disk.device.clone(),
            filesystem: Filesystem::Xfs,
            uuid: uuid::Uuid::now_v7(),
        };
        match orlopd::pool::create(&spec(medium), &env, &soon()).map(drop) {
            Err(PoolError::Precondition { detail, .. }) => detail,
            other => panic!("{other:?}"),
        }
    };
    let formatted = LoopDisk::new(400);
    sh("mkfs.ext4", &["-q", &formatted.device]);
    assert!(make(&formatted).contains("ext4"));

    // Nothing that any prober knows, one byte in the last MiB.
    let unknown = LoopDisk::new(400);
    let file = std::fs::File::options().write(true).open(&unknown.device).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"x", (400 << 20) - 5).unwrap();
    file.sync_all().unwrap();
    drop(file);
    assert!(make(&unknown).contains("last MiB"));

    // In use.
    let mounted = Mounted::new(&["mkfs.xfs", "-q"]);
    let why = make(&mounted._disk);
    assert!(why.contains(mounted.point.path().to_str().unwrap()), "{why}");

    let shown = orlopd::pool::disks::inventory(&env, &soon()).unwrap();
    let of = |d: &LoopDisk| shown.iter().find(|s| format!("/dev/{}", s.name) == d.device).unwrap();
    assert!(matches!(of(&formatted).usage, orlop_api::DiskUsage::Data(_)));
    assert!(matches!(of(&mounted._disk).usage, orlop_api::DiskUsage::Used(_)));
    let real = orlopd::pool::disks::inventory(&PoolEnv::default(), &soon()).unwrap();
    assert!(real.iter().all(|d| !d.name.starts_with("loop") && !d.name.starts_with("zram")));
}

#[test]
fn pool_directories_must_be_empty_and_of_the_right_kind() {
    if in_own_process("pool_directories_must_be_empty_and_of_the_right_kind") {
        return;
    }
    need_root();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("x"), "mine").unwrap();
    let sim = spec(PoolMedium::Sim { directory: dir.path().to_owned() });
    let r = orlopd::pool::create(&sim, &PoolEnv::default(), &soon()).map(drop);
    assert!(matches!(r, Err(PoolError::Precondition { .. })), "{r:?}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);

    let proc = spec(PoolMedium::FileDirectory { directory: "/proc".into() });
    let r = orlopd::pool::create(&proc, &PoolEnv::default(), &soon()).map(drop);
    assert!(matches!(r, Err(PoolError::Unsupported { .. })), "{r:?}");

    let none = dir.path().join("none");
    for medium in [PoolMedium::Sim { directory: none.clone() }, PoolMedium::FileDirectory { directory: none }]
    {
        let none = spec(medium);
        let r = orlopd::pool::create(&none, &PoolEnv::default(), &soon()).map(drop);
        assert!(matches!(r, Err(PoolError::Precondition { .. })), "{r:?}");
        let r = orlopd::pool::open(&none, &PoolEnv::default(), &soon()).map(drop);
        assert!(matches!(r, Err(PoolError::NotFound { .. })), "{r:?}");
    }
}

/// What is asked to wipe a loop device: it has no serial number, and no name that stays.
fn by_size(mib: u64) -> DiskWipe {
    DiskWipe { size: Some(ByteSize(mib << 20)), ..DiskWipe::default() }
}

fn disk_name(disk: &LoopDisk) -> DiskName {
    disk.device.trim_start_matches("/dev/").parse().unwrap()
}

/// Nothing that anyone knows of is left: wipefs(8) looks for all it knows.
fn bare(disk: &LoopDisk) -> bool {
    sh("wipefs", &["--no-act", "--parsable", &disk.device]).lines().all(|l| l.starts_with('#'))
}

#[test]
fn a_disk_is_blank_when_it_was_wiped_whatever_was_on_it() {
    need_root();
    let mounts = tempfile::tempdir().unwrap();
    let env = PoolEnv { mounts: mounts.path().to_owned(), loops_as_disks: true, ..PoolEnv::default() };
    for what in ["btrfs", "xfs", "ext4", "swap", "gpt", "unknown", "ends"] {
        let disk = LoopDisk::new(400);
        let name = disk_name(&disk);
        let device = disk.device.as_str();
        match what {
            "btrfs" => drop(sh("mkfs.btrfs", &["-q", device])),
            "xfs" => drop(sh("mkfs.xfs", &["-q", device])),
            "ext4" => drop(sh("mkfs.ext4", &["-q", device])),
            "swap" => drop(sh("mkswap", &[device])),
            "gpt" => {
                let script = format!("printf 'label: gpt\\n,100M\\n,\\n' | sfdisk -q {device}");
                sh("sh", &["-c", &script]);
            }
            _ => {
                let file = std::fs::File::options().write(true).open(device).unwrap();
                let at = if what == "ends" { (400 << 20) - 512 } else { 8192 };
                std::os::unix::fs::FileExt::write_all_at(&file, b"something", at).unwrap();
                file.sync_all().unwrap();
            }
        }
        let not_blank = |found: &orlop_api::Disk| matches!(found.usage, orlop_api::DiskUsage::Data(_));
        let shown = || {
            let all = pool::disks::inventory(&env, &soon()).unwrap();
            all.into_iter().find(|d| d.name == name.as_str()).unwrap()
        };
        assert!(not_blank(&shown()), "{what}: {:?}", shown());
        // Not the one that is meant, or too little was said: nothing is changed.
        for (ask, kind) in [
            (by_size(399), ErrorKind::Conflict),
            (DiskWipe { serial: Some("S".into()), ..by_size(400) }, ErrorKind::Conflict),
            (DiskWipe::default(), ErrorKind::Invalid),
        ] {
            let refused = pool::disks::wipe(&env, &name, &ask, &[], &soon()).unwrap_err();
            assert_eq!(refused.kind(), kind, "{what}: {refused}");
        }
        // A pool of ours stands on it, by whatever name.
        let ours = vec![("tank".parse().unwrap(), vec!["/nonexistent".into(), device.to_string()])];
        let refused = pool::disks::wipe(&env, &name, &by_size(400), &ours, &soon()).unwrap_err();
        assert!(refused.to_string().contains("pool tank"), "{what}: {refused}");
        // Someone has it.
        {
            let _held = orlopd::kernel::block::claim(Path::new(device)).unwrap().unwrap();
            let refused = pool::disks::wipe(&env, &name, &by_size(400), &[], &soon()).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Precondition, "{what}: {refused}");
        }
        if ["btrfs", "xfs", "ext4"].contains(&what) {
            let point = tempfile::tempdir().unwrap();
            sh("mount", &[device, point.path().to_str().unwrap()]);
            let refused = pool::disks::wipe(&env, &name, &by_size(400), &[], &soon());
            sh("umount", &[point.path().to_str().unwrap()]);
            let refused = refused.unwrap_err();
            let at = point.path().display().to_string();
            assert!(
                refused.kind() == ErrorKind::Precondition && refused.to_string().contains(&at),
                "{refused}"
            );
        }
        assert!(not_blank(&shown()), "{what} was changed");
        let blank = pool::disks::wipe(&env, &name, &by_size(400), &[], &soon()).unwrap();
        assert_eq!(blank.usage, orlop_api::DiskUsage::Blank, "{what}");
        assert!(bare(&disk), "{what}");
        // Again: it is so already.
        pool::disks::wipe(&env, &name, &by_size(400), &[], &soon()).unwrap();
        // A pool can be made of it now.
        let uuid = uuid::Uuid::now_v7();
        let medium = PoolMedium::FileDisk { disk: device.to_string(), filesystem: Filesystem::Xfs, uuid };
        let made = pool::create(&spec(medium), &env, &soon()).unwrap();
        made.export(&soon()).unwrap();
        drop(made);
        // It says whose it is, and is lost by that name only: by its UUID, because XFS has no room for all of
        // this name, and it might be another's.
        let refused = pool::disks::wipe(&env, &name, &by_size(400), &[], &soon()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Precondition, "{what}: {refused}");
        for other in ["other", "contract"] {
            let other = DiskWipe { pool: Some(other.into()), ..by_size(400) };
            assert!(pool::disks::wipe(&env, &name, &other, &[], &soon()).is_err());
        }
        let named = DiskWipe { pool: Some(uuid.to_string()), ..by_size(400) };
        pool::disks::wipe(&env, &name, &named, &[], &soon()).unwrap();
        assert!(bare(&disk), "{what}");
        let gone = "nosuchdisk".parse().unwrap();
        let refused = pool::disks::wipe(&env, &gone, &named, &[], &soon()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NotFound);
    }
}
