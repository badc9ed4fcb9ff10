//! Which disks are never formatted: a corpus of disks that hold something, made by the programs that make such things, and
//! what comes of asking for a file system on each. Nothing on them may change.
//!
//! `format-contract DIRECTORY`, as root, where there is space for sparse files, on a machine with LVM, md, LUKS and ZFS. A line a
//! case; the last one says how it ended.

use std::collections::hash_map::DefaultHasher;
use std::fs::File;
use std::hash::{Hash as _, Hasher as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use orlop_csi::node::filesystem::{self, Kind, Unfit};
use orlop_csi::node::tools::Tools;

/// Large enough for XFS.
const SIZE: u64 = 320 << 20;
const LIMIT: Duration = Duration::from_secs(120);

/// What a disk must come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    /// It is left, whatever is asked for.
    Left,
    /// It has this already, and is left otherwise.
    Has(Kind),
}

/// What makes a disk what it is, by a script with `$d` for the disk and `$f` for the file behind it; and what it comes to.
struct Case(&'static str, &'static str, Due);

const CASES: &[Case] = &[
    Case("ext4", "mkfs.ext4 -q $d", Due::Has(Kind::Ext4)),
    Case("ext4, whose superblock is lost", "mkfs.ext4 -q $d; zero 0 8", Due::Left),
    Case("ext4, whose first MiB is lost", "mkfs.ext4 -q $d; zero 0 2048", Due::Left),
    Case("ext2", "mkfs.ext2 -q $d", Due::Left),
    Case("XFS", "mkfs.xfs -q $d", Due::Has(Kind::Xfs)),
    Case("XFS, whose superblock is lost", "mkfs.xfs -q $d; zero 0 1", Due::Left),
    Case("XFS, whose first MiB is lost", "mkfs.xfs -q $d; zero 0 2048", Due::Left),
    Case("ext4 in large blocks, whose first MiB is lost", "mkfs.ext4 -q -b 4096 $d; zero 0 2048", Due::Left),
    Case("btrfs", "mkfs.btrfs -q $d", Due::Left),
    Case("btrfs, whose first superblock is lost", "mkfs.btrfs -q $d; zero 0 2048", Due::Left),
    Case("swap", "mkswap -q $d", Due::Left),
    Case("LUKS 1", "luks 1", Due::Left),
    Case("LUKS 2", "luks 2", Due::Left),
    Case("LUKS 2, whose first header is lost", "luks 2; zero 0 32", Due::Left),
    Case("LVM", "volume", Due::Left),
    Case("md 1.2", "raid 1.2", Due::Left),
    Case("md 1.0, at its end", "raid 1.0", Due::Left),
    Case("md 0.90, at its end", "raid 0.90", Due::Left),
    Case("ZFS", "pool", Due::Left),
    Case("ZFS, whose first labels are lost", "pool; zero 0 2048", Due::Left),
    Case(
        "a partition table of PCs",
        r"bytes '\0\0\0\0\203\0\0\0\0\010\0\0\0\010\0\0' 446; bytes '\125\252' 510",
        Due::Left,
    ),
    Case("a damaged GPT", "bytes 'EFI PART' 512", Due::Left),
    Case("the second half of a GPT", "bytes 'EFI PART' $((SIZE - 512))", Due::Left),
    Case("one byte in the first sector", r"bytes '\001' 17", Due::Left),
    Case("one byte in the last sector", r"bytes '\001' $((SIZE - 1))", Due::Left),
    Case("two things at once", "mkfs.ext4 -q $d; mkswap -q -f $d", Due::Left),
];

/// Short words for what several cases do.
const WORDS: &str = r#"
set -e
zero() { dd if=/dev/zero of=$d bs=512 seek=$1 count=$2 conv=fsync,notrunc status=none; }
bytes() { printf "$1" | dd of=$d bs=1 seek=$2 conv=fsync,notrunc status=none; }
luks() { printf secret | cryptsetup luksFormat -q --type luks$1 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 $d -; }
raid() {
    mdadm --create /dev/md99 --config=none --quiet --run --force --level=1 --raid-devices=1 --metadata=$1 $d
    udevadm settle
    mdadm --stop --config=none --quiet /dev/md99
}
volume() { pvcreate --config 'devices { use_devicesfile=0 global_filter=["a|^'$d'$|", "r|.*|"] }' -q -q -y $d; }
pool() { zpool create -f -m none formatpool $d; zpool export formatpool; }
exec >/dev/null
"#;

#[allow(
    clippy::disallowed_methods,
    reason = "a contract's: it makes disks by the programs that make such things"
)]
fn shell(script: &str, disk: &str) -> Result<()> {
    let output = Command::new("bash")
        .args(["-c", &format!("SIZE={SIZE}; d={disk}\n{WORDS}\n{script}")])
        .output()
        .context("starting a shell")?;
    ensure!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// A sparse file behind a loop device; both go with it.
struct Disk {
    file: PathBuf,
    device: String,
}

impl Disk {
    fn new(dir: &Path) -> Result<Self> {
        let file = dir.join("disk.img");
        File::create(&file)?.set_len(SIZE)?;
        #[allow(clippy::disallowed_methods, reason = "as above")]
        let output = Command::new("losetup").args(["-f", "--show"]).arg(&file).output()?;
        ensure!(output.status.success(), "losetup: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(Self { file, device: String::from_utf8(output.stdout)?.trim().to_string() })
    }

    /// What is in it, holes left out.
    fn sum(&self) -> Result<u64> {
        use rustix::fs::{SeekFrom, seek};
        let file = File::open(&self.file)?;
        // What the kernel holds of the device is on its way to the file.
        File::open(&self.device)?.sync_all()?;
        let (mut at, mut sum, mut buffer) = (0, DefaultHasher::new(), vec![0; 1 << 20]);
        loop {
            let begin = match seek(&file, SeekFrom::Data(at)) {
                Ok(begin) => begin,
                Err(rustix::io::Errno::NXIO) => return Ok(sum.finish()),
                Err(e) => return Err(e.into()),
            };
            let end = seek(&file, SeekFrom::Hole(begin))?;
            at = begin;
            while at < end {
                let want = usize::try_from(end - at)?.min(buffer.len());
                file.read_exact_at(&mut buffer[..want], at)?;
                // A hole that was filled with zeros is none of our business.
                if buffer[..want].iter().any(|b| *b != 0) {
                    (at, &buffer[..want]).hash(&mut sum);
                }
                at += want as u64;
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(e) = shell("losetup -d $d", &self.device) {
            println!("# {e:#}");
        }
    }
}

async fn ask(device: &str, kind: Kind, may_write: bool) -> Result<(), Unfit> {
    filesystem::ensure(&Tools::at("/"), Path::new(device), SIZE, kind, may_write, LIMIT).await
}

async fn case(dir: &Path, Case(_, script, due): &Case) -> Result<()> {
    let disk = Disk::new(dir)?;
    shell(script, &disk.device)?;
    shell("udevadm settle", &disk.device)?;
    let before = disk.sum()?;
    for kind in Kind::ALL {
        let came = ask(&disk.device, kind, true).await;
        match (&came, *due == Due::Has(kind)) {
            (Ok(()), true) | (Err(Unfit::Other { .. }), false) => {}
            _ => bail!("{kind:?}: {came:?}"),
        }
        ensure!(disk.sum()? == before, "{kind:?}: the disk has other bytes");
    }
    Ok(())
}

/// A blank disk is formatted, and one that is read only is not: without this the others would say nothing.
async fn blank(dir: &Path) -> Result<()> {
    for kind in Kind::ALL {
        let disk = Disk::new(dir)?;
        let before = disk.sum()?;
        let came = ask(&disk.device, kind, false).await;
        ensure!(matches!(came, Err(Unfit::Blank(_))), "{came:?}");
        ensure!(disk.sum()? == before, "it was written");
        ask(&disk.device, kind, true).await?;
        let made = disk.sum()?;
        ensure!(made != before, "nothing was made");
        ask(&disk.device, kind, true).await?;
        ensure!(disk.sum()? == made, "it was made again");
    }
    Ok(())
}

/// Disks of which a part can't be read, at each place where something could be.
async fn unreadable(dir: &Path) -> Result<()> {
    let sectors = SIZE / 512;
    for bad in [0, 2, 128, (4 << 20) / 512, (64 << 20) / 512, sectors - 1] {
        let disk = Disk::new(dir)?;
        let mut table = String::new();
        if bad > 0 {
            table += &format!("0 {bad} linear $d 0\n");
        }
        table += &format!("{bad} 1 error\n");
        if bad + 1 < sectors {
            table += &format!("{} {} linear $d {}\n", bad + 1, sectors - bad - 1, bad + 1);
        }
        shell(
            &format!("echo \"{}\" | dmsetup create formatbad; udevadm settle", table.trim()),
            &disk.device,
        )?;
        let before = disk.sum()?;
        let came = ask("/dev/mapper/formatbad", Kind::Ext4, true).await;
        shell("udevadm settle; dmsetup remove --retry formatbad", &disk.device)?;
        ensure!(matches!(came, Err(Unfit::Other { .. })), "sector {bad}: {came:?}");
        ensure!(disk.sum()? == before, "sector {bad}: it was written");
    }
    Ok(())
}

/// Blank disks that somebody has.
async fn in_use(dir: &Path) -> Result<()> {
    use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
    let disk = Disk::new(dir)?;
    let locked = File::open(&disk.device)?;
    flock(&locked, FlockOperation::LockExclusive)?;
    let came = ask(&disk.device, Kind::Ext4, true).await;
    ensure!(matches!(came, Err(Unfit::Busy { .. })), "locked: {came:?}");
    drop(locked);
    let held = open(&disk.device, OFlags::RDONLY | OFlags::EXCL, Mode::empty())?;
    let came = ask(&disk.device, Kind::Ext4, true).await;
    ensure!(matches!(came, Err(Unfit::Other { .. })), "held: {came:?}");
    drop(held);
    shell(&format!("echo 0 {} linear $d 0 | dmsetup create formatheld", SIZE / 512), &disk.device)?;
    let came = ask(&disk.device, Kind::Ext4, true).await;
    shell("udevadm settle; dmsetup remove --retry formatheld", &disk.device)?;
    ensure!(matches!(came, Err(Unfit::Other { .. })), "under a device mapper's: {came:?}");
    Ok(())
}

async fn all(dir: &Path) -> (usize, usize) {
    let (mut passed, mut failed) = (0, 0);
    let mut note = |name: &str, result: Result<()>| match result {
        Ok(()) => {
            passed += 1;
            println!("ok    {name}");
        }
        Err(e) => {
            failed += 1;
            println!("FAIL  {name}: {e:#}");
        }
    };
    note("blank", blank(dir).await);
    for one in CASES {
        note(one.0, case(dir, one).await);
    }
    note("unreadable", unreadable(dir).await);
    note("in use", in_use(dir).await);
    (passed, failed)
}

fn main() -> ExitCode {
    let Some(dir) = std::env::args().nth(1).map(PathBuf::from) else {
        println!("usage: see the source");
        return ExitCode::FAILURE;
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            println!("FAIL  {e}");
            return ExitCode::FAILURE;
        }
    };
    let (passed, failed) = runtime.block_on(all(&dir));
    println!("{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
