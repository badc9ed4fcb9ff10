//! A file pool on a real XFS on this machine: a linked clone of a large image beside the bare system call, a
//! copy beside `dd`. The daemon simulates its target only; the pool is real.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::daemon::{Connection, Daemon};
use crate::results::Results;

/// Of the image that is cloned.
const LARGE: u64 = 100 << 30;
/// So many pieces are written in it: what a clone costs follows them, not its size.
const PIECES: u64 = 2000;
/// Of the image that is copied.
const COPIED: u64 = 2 << 30;
const CLONES: usize = 9;
const COPIES: usize = 3;

/// An XFS on a loop device; taken apart when dropped.
struct Disk {
    device: String,
    point: PathBuf,
}

impl Disk {
    fn new(dir: &Path) -> Result<Self> {
        let (image, point) = (dir.join("disk"), dir.join("mounted"));
        // Sparse: what is used is a few GiB.
        File::create(&image)?.set_len(200 << 30)?;
        std::fs::create_dir(&point)?;
        let device = sh(Command::new("losetup").args(["--find", "--show"]).arg(&image))?.trim().to_owned();
        let disk = Self { device, point };
        sh(Command::new("mkfs.xfs").args(["-q", &disk.device]))?;
        sh(Command::new("mount").arg(&disk.device).arg(&disk.point))?;
        Ok(disk)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Only what this made; what is left of it is said by the commands themselves.
        let _ = Command::new("umount").arg(&self.point).status();
        let _ = Command::new("losetup").args(["--detach", &self.device]).status();
    }
}

fn sh(command: &mut Command) -> Result<String> {
    let out = command.output().with_context(|| format!("starting {command:?}"))?;
    ensure!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(String::from_utf8(out.stdout)?)
}

pub fn run(root: &Path, results: &mut Results) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        println!("  left out: mounting needs root");
        return Ok(());
    }
    let dir = tempfile::tempdir_in(root)?;
    let disk = Disk::new(dir.path())?;
    let daemon = Daemon::start(root)?;
    let measured = measure(&disk, &daemon, results);
    // Before the disk is unmounted.
    drop(daemon);
    measured
}

fn measure(disk: &Disk, daemon: &Daemon, results: &mut Results) -> Result<()> {
    let mut c = Connection::open(&daemon.socket())?;
    let pool = disk.point.join("pool");
    std::fs::create_dir(&pool)?;
    post(&mut c, "pools", &serde_json::json!({ "name": "tank", "kind": "file", "directory": pool }))?;
    clones(&mut c, &pool, &disk.point, results)?;
    copies(&mut c, &pool, &disk.point, results)?;
    // The most that it ever was, so copies are in it.
    results.add("file: daemon's peak memory over copies", &[daemon.peak()?], "MB", true, Some(64.0));
    Ok(())
}

fn post(c: &mut Connection, what: &str, ask: &serde_json::Value) -> Result<serde_json::Value> {
    let (status, body) = c.call("POST", &format!("/v1/{what}"), &ask.to_string())?;
    ensure!(status == 201, "{status}: {body}");
    Ok(serde_json::from_str(&body)?)
}

fn shown(c: &mut Connection, volume: &str) -> Result<serde_json::Value> {
    let (status, body) = c.call("GET", &format!("/v1/volumes/{volume}"), "")?;
    ensure!(status == 200, "{status}: {body}");
    Ok(serde_json::from_str(&body)?)
}

/// Makes a volume with data in it and a snapshot of it; the path of the snapshot's image.
fn source(
    c: &mut Connection,
    pool: &Path,
    name: &str,
    size: u64,
    pieces: u64,
    piece: usize,
) -> Result<PathBuf> {
    let volume = post(c, "volumes", &serde_json::json!({ "name": name, "pool": "tank", "size": size }))?;
    let id = volume["id"].as_str().context("no id")?;
    let image = File::options().write(true).open(pool.join(format!("volumes/{id}.img")))?;
    let bytes = vec![0x5a; piece];
    for n in 0..pieces {
        image.write_all_at(&bytes, n * (size / pieces))?;
    }
    image.sync_all()?;
    let snapshot = post(c, "snapshots", &serde_json::json!({ "name": name, "volume": name }))?;
    let snapshot = snapshot["id"].as_str().context("no id")?;
    Ok(pool.join(format!("snapshots/{id}@{snapshot}.img")))
}

fn clones(c: &mut Connection, pool: &Path, point: &Path, results: &mut Results) -> Result<()> {
    let image = source(c, pool, "large", LARGE, PIECES, 4096)?;
    let (mut bare, mut more) = (Vec::new(), Vec::new());
    for n in 0..CLONES {
        let started = Instant::now();
        let clone = File::create(point.join(format!("bare{n}")))?;
        rustix::fs::ioctl_ficlone(&clone, File::open(&image)?)?;
        let took = started.elapsed();
        let ask = serde_json::json!({
            "name": format!("clone{n}"), "pool": "tank", "size": LARGE, "source": { "snapshot": "large" },
        });
        let started = Instant::now();
        post(c, "volumes", &ask)?;
        let ours = started.elapsed();
        bare.push(took.as_secs_f64() * 1e3);
        more.push((ours.as_secs_f64() - took.as_secs_f64()) * 1e3);
    }
    results.add("file: bare FICLONE of 100 GiB", &bare, "ms", true, None);
    results.add("file: linked clone of 100 GiB, beyond that", &more, "ms", true, Some(50.0));
    Ok(())
}

fn copies(c: &mut Connection, pool: &Path, point: &Path, results: &mut Results) -> Result<()> {
    let image = source(c, pool, "full", COPIED, COPIED >> 20, 1 << 20)?;
    let (mut bare, mut ratio) = (Vec::new(), Vec::new());
    for n in 0..COPIES {
        let to = point.join("dd");
        let started = Instant::now();
        sh(Command::new("dd")
            .arg(format!("if={}", image.display()))
            .arg(format!("of={}", to.display()))
            .args(["bs=1M", "iflag=direct", "oflag=direct", "conv=fsync"]))?;
        let dd = started.elapsed().as_secs_f64();
        std::fs::remove_file(&to)?;
        let name = format!("copy{n}");
        let ask = serde_json::json!({
            "name": name, "pool": "tank", "size": COPIED, "source": { "snapshot": "full", "mode": "copied" },
        });
        let started = Instant::now();
        post(c, "volumes", &ask)?;
        // More often than `wait_for` looks: a tenth of a second would be a part of what is measured.
        while shown(c, &name)?["state"] != "ready" {
            ensure!(
                started.elapsed() < Duration::from_secs(300),
                "{name} is not whole: {}",
                shown(c, &name)?
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        ratio.push(dd / started.elapsed().as_secs_f64());
        bare.push(COPIED as f64 / 1e6 / dd);
        let (status, body) = c.call("DELETE", &format!("/v1/volumes/{name}"), "")?;
        ensure!(status == 204, "{status}: {body}");
    }
    results.add("file: dd with direct I/O", &bare, "MB/s", false, None);
    results.add("file: speed of a copy / dd", &ratio, "ratio", false, Some(0.9));
    Ok(())
}
