//! Tools that are not there, fail, hang, and answer nonsense. Whatever they do: an error of a kind that can be
//! acted on, nothing half made, no panic, no memory without bound, no wait without an end. The tools are scripts
//! in a directory that the thread of each test looks in; disks are loop devices, so this needs root, and fails
//! without: a suite that is skipped proves nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::disallowed_methods, reason = "a test starts commands")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use orlop_api::{
    ByteSize, DiskHealthState, DiskUsage, DiskWipe, ErrorKind, Filesystem, PoolLayout, Provisioning,
};
use orlopd::kernel::exec::find_in;
use orlopd::kernel::{Deadline, disks};
use orlopd::model::{PoolChange, PoolMedium, PoolSpec, ThinPool};
use orlopd::pool::{self, PoolEnv, contract};

/// What a tool does, and the kind of error where it does nothing but that. `None`: it depends on what it was
/// asked, but it is one.
const WAYS: [(&str, &str, Option<ErrorKind>); 11] = [
    ("missing", "", Some(ErrorKind::Unsupported)),
    ("empty", "exit 0", None),
    ("fails", "echo 'no such thing' >&2; exit 1", None),
    ("garbage", "echo 'usage: what? {[(' ; echo '\\t\\t,,;;' ; exit 0", None),
    ("cut", "printf '{\"report\":[{\"vg\":[{\"vg_name\":\"hostile\",\"vg_ta'; exit 0", None),
    ("other json", "echo '{\"report\":[],\"pools\":{},\"output_version\":7}'; exit 0", None),
    ("no text", "printf '\\377\\376\\000\\201hostile\\n'; exit 0", None),
    ("dies", "kill -9 $$", None),
    ("endless", "exec /usr/bin/yes 'hostile\tlocal'", Some(ErrorKind::Internal)),
    ("endless complaint", "exec /usr/bin/yes complaint >&2", Some(ErrorKind::Internal)),
    ("hangs", "exec /usr/bin/sleep 600", Some(ErrorKind::Deadline)),
];

/// The most that the whole test may ever have in memory: twice what one tool may say, and a growing vector.
const MOST_KIB: u64 = 1 << 20;

/// How long one operation may take whose tools hang.
const SHORT: Duration = Duration::from_secs(3);

/// How long one may take whose tools end, or say so much that they are ended: on a machine that has more to do.
const LONG: Duration = Duration::from_secs(60);

/// Held by whoever has tools that say too much: what is kept of it is looked at for the whole process.
static LOUD: Mutex<()> = Mutex::new(());

/// What tools do, one way after the other.
fn ways() -> impl Iterator<Item = (Way, Option<MutexGuard<'static, ()>>)> {
    WAYS.into_iter().map(|(name, script, kind)| {
        let way = Way { name, script, kind };
        let loud = name.starts_with("endless").then(|| LOUD.lock().unwrap_or_else(PoisonError::into_inner));
        (way, loud)
    })
}

/// See [`WAYS`].
#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    script: &'static str,
    kind: Option<ErrorKind>,
}

impl Way {
    fn limit(&self) -> Duration {
        if self.name == "hangs" { SHORT } else { LONG }
    }

    fn deadline(&self) -> Deadline {
        Deadline::after(self.limit())
    }
}

struct Tools(tempfile::TempDir);

impl Tools {
    /// With the real blkid, by which disks are proven blank.
    fn new() -> Self {
        let tools = Self(tempfile::tempdir().unwrap());
        tools.real("blkid");
        find_in(Some(tools.0.path().to_owned()));
        tools
    }

    fn real(&self, name: &str) {
        let found =
            ["/usr/sbin", "/usr/bin", "/sbin"].iter().map(|d| Path::new(d).join(name)).find(|p| p.exists());
        let _ = std::fs::remove_file(self.0.path().join(name));
        std::os::unix::fs::symlink(found.unwrap(), self.0.path().join(name)).unwrap();
    }

    fn set(&self, name: &str, script: &str) {
        let path = self.0.path().join(name);
        let _ = std::fs::remove_file(&path);
        if !script.is_empty() {
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
}

impl Drop for Tools {
    fn drop(&mut self) {
        find_in(None);
    }
}

struct LoopDisk {
    device: String,
    file: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

impl LoopDisk {
    fn new(mib: u64) -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test makes loop devices: run it as root");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk");
        std::fs::File::create(&file).unwrap().set_len(mib << 20).unwrap();
        let out = Command::new("losetup").args(["--find", "--show"]).arg(&file).output().unwrap();
        assert!(out.status.success(), "{out:?}");
        Self { device: String::from_utf8(out.stdout).unwrap().trim().to_string(), file, _dir: dir }
    }

    /// Whether no block of it was ever written with anything.
    fn is_zero(&self) -> bool {
        let mut cmp = Command::new("cmp");
        cmp.args(["-s", "-n", "67108864"]).arg(&self.file).arg("/dev/zero");
        cmp.status().unwrap().success()
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.device]).status();
    }
}

fn spec(medium: PoolMedium) -> PoolSpec {
    PoolSpec { v: 1, name: "hostile".parse().unwrap(), medium }
}

fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Runs it, and looks at its time, its memory and its error.
fn bad<T>(what: &str, way: &Way, want: Option<ErrorKind>, f: impl FnOnce(&Deadline) -> pool::Result<T>) {
    let begin = Instant::now();
    let result = f(&way.deadline()).map(drop);
    let took = begin.elapsed();
    let Err(error) = result else { panic!("{what}: it says that it was done") };
    assert!(
        want.is_none_or(|kind| error.kind() == kind),
        "{what}: {:?}, not {want:?}: {error}",
        error.kind()
    );
    assert!(error.to_string().len() < 4096, "{what}: an error of {} bytes", error.to_string().len());
    assert!(took < way.limit() * 3, "{what} took {took:?}");
    assert!(peak_kib() < MOST_KIB, "{what}: {} KiB at its peak", peak_kib());
}

fn env(dir: &Path) -> PoolEnv {
    PoolEnv { mounts: dir.join("mounts"), loops_as_disks: true, ..PoolEnv::default() }
}

#[test]
fn pools_on_disks_are_not_made_by_tools_that_lie() {
    let dir = tempfile::tempdir().unwrap();
    let env = env(dir.path());
    let tools = Tools::new();
    let disk = LoopDisk::new(512);
    let disks = vec![disk.device.clone()];
    let zfs = spec(PoolMedium::Zfs {
        disks: disks.clone(),
        layout: PoolLayout::Stripe,
        spares: Vec::new(),
        guid: None,
    });
    let numbered = spec(PoolMedium::Zfs {
        disks: disks.clone(),
        layout: PoolLayout::Stripe,
        spares: Vec::new(),
        guid: Some(12345),
    });
    let lvm = spec(PoolMedium::Lvm { disks, arrays: Vec::new(), thin: ThinPool::default() });
    // It is only looked for.
    tools.set("thin_check", "exit 0");
    for (way, _loud) in ways() {
        let Way { name: how, script, kind } = way;
        for tool in ["zpool", "zfs", "lvm"] {
            tools.set(tool, script);
        }
        for (name, spec) in [("zfs", &zfs), ("zfs by number", &numbered), ("lvm", &lvm)] {
            let what = |verb: &str| format!("{name}: {verb} with tools: {how}");
            bad(&what("create"), &way, kind, |soon| pool::create(spec, &env, soon));
            bad(&what("open"), &way, kind, |soon| pool::open(spec, &env, soon));
            bad(&what("import"), &way, kind, |soon| pool::import(spec, &env, true, soon));
        }
        bad(&format!("recognize with tools: {how}"), &way, kind, |soon| {
            pool::recognize(&numbered, &env, soon)
        });
        assert!(disk.is_zero(), "{how}: something was written");
    }
}

#[test]
fn a_disk_is_not_a_pool_because_mkfs_xfs_says_so() {
    mkfs_lies(Filesystem::Xfs, "mkfs.xfs");
}

#[test]
fn a_disk_is_not_a_pool_because_mkfs_btrfs_says_so() {
    mkfs_lies(Filesystem::Btrfs, "mkfs.btrfs");
}

fn mkfs_lies(filesystem: Filesystem, tool: &str) {
    let dir = tempfile::tempdir().unwrap();
    let env = env(dir.path());
    let tools = Tools::new();
    let disk = LoopDisk::new(512);
    for (way, _loud) in ways() {
        let Way { name: how, script, kind } = way;
        tools.set(tool, script);
        let medium =
            PoolMedium::FileDisk { disk: disk.device.clone(), filesystem, uuid: uuid::Uuid::now_v7() };
        let what = format!("{filesystem:?} with tools: {how}");
        // What fails is tried again for a while: udev may have had the disk.
        let kind = kind.filter(|k| *k != ErrorKind::Internal);
        bad(&what, &way, kind, |soon| pool::create(&spec(medium), &env, soon));
        assert!(disk.is_zero(), "{what}: something was written");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(dir.path().to_str().unwrap()), "{what}: something is mounted");
    }
}

#[test]
fn a_disk_that_can_not_be_probed_is_not_blank() {
    let dir = tempfile::tempdir().unwrap();
    let env = env(dir.path());
    let tools = Tools::new();
    let disk = LoopDisk::new(64);
    let name = disk.device.trim_start_matches("/dev/").to_string();
    let ask = DiskWipe { size: Some(ByteSize(64 << 20)), ..DiskWipe::default() };
    let file = std::fs::File::options().write(true).open(&disk.device).unwrap();
    let usage = |within| {
        let all = pool::disks::inventory(&env, &Deadline::after(within)).unwrap();
        all.into_iter().find(|d| d.name == name).unwrap().usage
    };
    for (way, _loud) in ways() {
        let Way { name: how, script, .. } = way;
        tools.set("blkid", script);
        // What it says is taken for a signature, if it ends well; never for the proof that there is none.
        let found = usage(way.limit());
        assert!(matches!(found, DiskUsage::Unreadable(_) | DiskUsage::Data(_)), "{how}: {found:?}");
        let medium = PoolMedium::FileDisk {
            disk: disk.device.clone(),
            filesystem: Filesystem::Xfs,
            uuid: uuid::Uuid::now_v7(),
        };
        let kind = if how == "hangs" { ErrorKind::Deadline } else { ErrorKind::Precondition };
        bad(&format!("blkid {how}"), &way, Some(kind), |soon| pool::create(&spec(medium), &env, soon));
        assert!(disk.is_zero(), "{how}: something was written");
        // With data on it: it may be a pool's, so it is not wiped on a guess.
        std::os::unix::fs::FileExt::write_all_at(&file, b"something", 4096).unwrap();
        file.sync_all().unwrap();
        let begin = Instant::now();
        let wiped = pool::disks::wipe(&env, &name.parse().unwrap(), &ask, &[], &way.deadline());
        let error = wiped.map(drop).expect_err(how);
        assert!(begin.elapsed() < way.limit() * 3 && error.to_string().len() < 4096, "{how}: {error}");
        assert!(!disk.is_zero(), "{how}: it was wiped");
        std::os::unix::fs::FileExt::write_all_at(&file, &[0; 512], 4096).unwrap();
        file.sync_all().unwrap();
    }
}

#[test]
fn a_disk_that_can_not_be_asked_is_unknown() {
    let tools = Tools::new();
    let env = PoolEnv::default();
    let all = disks::all(true).unwrap();
    let disk = all.first().expect("a machine with any disk");
    for (way, _loud) in ways() {
        let Way { name: how, script, .. } = way;
        tools.set("smartctl", script);
        let begin = Instant::now();
        let health = pool::disks::health(&env, disk, &way.deadline()).unwrap();
        assert_eq!(health.state, DiskHealthState::Unknown, "{how}: {health:?}");
        assert!(health.reason.as_ref().is_some_and(|r| r.len() < 1024), "{how}: {health:?}");
        assert!(begin.elapsed() < way.limit() * 2, "{how}");
    }
    tools.set("smartctl", "exit 3");
    assert_eq!(pool::disks::health(&env, disk, &Deadline::after(LONG)), None, "it sleeps");
    // Its own words, which are no error whatever the bits of the past say.
    let words = concat!(env!("CARGO_MANIFEST_DIR"), "/src/kernel/smart/nvme.json");
    tools.set("smartctl", &format!("/usr/bin/cat {words}; exit 64"));
    let health = pool::disks::health(&env, disk, &Deadline::after(LONG)).unwrap();
    assert_eq!((health.state, health.used_percent), (DiskHealthState::Passed, Some(7)));
}

/// Just enough of a zpool for the daemon to open it: it is imported, ours, and has the dataset for volumes.
const ZPOOL: &str = r#"case "$1" in
list) echo hostile; exit 0;;
esac
"#;
const ZFS: &str = r#"case "$*" in
"get -H -p -o value,source dev.orlop:pool hostile") printf '{"v":1,"pool":"hostile"}\tlocal\n'; exit 0;;
"list -H -t filesystem -o name -r -d 1 hostile") printf 'hostile\nhostile/orlop\n'; exit 0;;
esac
"#;

#[test]
fn an_open_zpool_whose_tools_lie_makes_and_shows_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let env = env(dir.path());
    let tools = Tools::new();
    let medium =
        PoolMedium::Zfs { disks: Vec::new(), layout: PoolLayout::Stripe, spares: Vec::new(), guid: None };
    for (way, _loud) in ways() {
        let Way { name: how, script, kind } = way;
        tools.set("zpool", ZPOOL);
        tools.set("zfs", ZFS);
        let pool = pool::open(&spec(medium.clone()), &env, &way.deadline()).unwrap();
        // Found when it was opened, and gone since.
        let (zpool, zfs) = if script.is_empty() {
            (String::new(), String::new())
        } else {
            (format!("{ZPOOL}{script}"), format!("{ZFS}{script}"))
        };
        // It is known where the tool was: that it can't be started is the system's answer.
        let kind = if script.is_empty() { Some(ErrorKind::Internal) } else { kind };
        tools.set("zpool", &zpool);
        tools.set("zfs", &zfs);
        let what = |verb: &str| format!("{verb} with tools: {how}");
        let label = contract::label(ByteSize(1 << 20), Provisioning::Thin);
        let thick = contract::label(ByteSize(1 << 20), Provisioning::Thick);
        bad(&what("create"), &way, kind, |soon| pool.create(&label, soon));
        bad(&what("create, thick"), &way, kind, |soon| pool.create(&thick, soon));
        bad(&what("open"), &way, None, |soon| pool.open(label.id, soon));
        bad(&what("health"), &way, kind, |soon| pool.health(None, soon));
        bad(&what("spares"), &way, kind, |soon| pool.mind_spares(soon));
        bad(&what("scrub"), &way, kind, |soon| pool.change(&PoolChange::Scrub, soon));
        bad(&what("replace"), &way, kind, |soon| {
            pool.change(&PoolChange::Replace { disk: "a".into(), with: "b".into() }, soon)
        });
        bad(&what("capacity"), &way, kind, |soon| pool.capacity(soon));
        // That nothing is there is an answer of a pool; that nothing was said is one too, of an empty one.
        match pool.list(&way.deadline()) {
            Ok(listing) => {
                assert!(listing.volumes.is_empty() && listing.partial.is_empty(), "{how}: {listing:?}")
            }
            Err(e) => assert!(kind.is_none_or(|k| e.kind() == k), "{how}: {e}"),
        }
        assert!(
            !matches!(pool.get(label.id, &way.deadline()), Ok(Some(_))),
            "{how}: a volume out of nothing"
        );
    }
}
