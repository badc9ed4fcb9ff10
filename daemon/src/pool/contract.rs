//! The contract suite: what every kind of pool must do, as programs. It is the specification of
//! [`Pool`] in a form that can fail.
//!
//! Called by tests on the host (`sim`, and `file` on real loop devices) and by the program
//! `pool-contract` in a guest that has ZFS and disks. It makes and destroys volumes in the pool that it
//! is given, which must be empty, and leaves it empty.

#![allow(clippy::disallowed_methods, reason = "a test may sleep and start commands")]

mod adoption;
mod blocks;
mod checks;
mod encryption;
mod filesystems;
pub mod history;
mod properties;
pub mod reboot;
pub mod scale;
mod snapshots;
mod space;
mod strange;

use std::fmt::Display;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use orlop_api::{ByteSize, PoolKind, Provisioning, VolumeCreate, VolumeId};

use super::{Change, Opened, Place, Pool, PoolEnv, Stored};
use crate::kernel::Deadline;
use crate::model::{Document, Label, PoolMedium, PoolSpec, SnapshotKey};

/// What a check ends with: the text says what was expected and what was found.
pub type Check = Result<(), String>;

/// A pool that the suite runs against.
#[derive(Debug, Clone)]
pub struct Subject {
    /// What it is made of.
    pub spec: PoolSpec,
    /// Where.
    pub env: PoolEnv,
}

/// One finished check.
#[derive(Debug)]
pub struct Report {
    /// Its name.
    pub name: &'static str,
    /// How it ended.
    pub result: Check,
    /// How long it took.
    pub took: Duration,
}

type Run = fn(&Subject, &dyn Pool) -> Check;

/// Makes the pool, runs every check, removes the pool. `say` hears of each as it ends. Gives back how
/// many passed and how many failed.
pub fn run(subject: &Subject, say: &mut dyn FnMut(&Report)) -> (usize, usize) {
    run_some(subject, &|_| true, say)
}

/// [`run`] with the checks whose name is `wanted`.
pub fn run_some(
    subject: &Subject,
    wanted: &dyn Fn(&str) -> bool,
    say: &mut dyn FnMut(&Report),
) -> (usize, usize) {
    let mut counts = (0, 0);
    let mut note = |name: &'static str, start: Instant, result: Check| {
        if result.is_ok() {
            counts.0 += 1
        } else {
            counts.1 += 1
        }
        say(&Report { name, result, took: start.elapsed() });
    };
    let start = Instant::now();
    let pool = match super::create(&subject.spec, &subject.env, &soon()) {
        Ok(p) => p,
        Err(e) => {
            note("the pool is made", start, Err(chain(&e)));
            return counts;
        }
    };
    note("the pool is made", start, Ok(()));
    let all = checks::ALL.iter().chain(space::ALL).chain(snapshots::ALL).chain(strange::ALL);
    let all = all.chain(adoption::ALL).chain(properties::ALL).chain(filesystems::ALL);
    let all = all.chain(encryption::ALL).chain(history::ALL).chain(blocks::ALL);
    for (name, check) in all.filter(|(name, _)| wanted(name)) {
        let start = Instant::now();
        let result = check(subject, pool.as_ref());
        // Whatever came of it, the next one gets an empty pool.
        let left = tidy(pool.as_ref());
        note(name, start, result.and(left));
    }
    let start = Instant::now();
    note("the pool is removed", start, removal(subject, pool));
    counts
}

fn removal(subject: &Subject, pool: Box<dyn Pool>) -> Check {
    let l = label(ByteSize(1 << 20), Provisioning::Thin);
    ok("create", pool.create(&l, &soon()))?;
    let refused = pool.remove(&soon());
    expect(
        matches!(refused, Err(super::PoolError::Precondition { .. })),
        "remove of a pool in use",
        &refused,
    )?;
    ok("destroy", pool.destroy(l.id, &soon()))?;
    ok("remove", pool.remove(&soon()))?;
    drop(pool);
    let gone = super::open(&subject.spec, &subject.env, &soon());
    expect(gone.is_err(), "open of a removed pool", &gone.is_ok())?;
    // What it stood on is as it was: it can be made again, and removed again.
    let again = ok("create of the pool again", super::create(&subject.spec, &subject.env, &soon()))?;
    ok("remove again", again.remove(&soon()))
}

/// Destroys all that is ours; a check that left something has failed.
fn tidy(pool: &dyn Pool) -> Check {
    let listing = ok("list", pool.list(&soon()))?;
    let mut failed = Ok(());
    for id in listing.partial {
        failed = failed.and(ok("destroy", pool.destroy(id, &soon())).map(drop));
    }
    // The newest first: what depends on something is newer than that, and ids sort by their time.
    let volumes = listing.volumes.iter().map(|v| (v.label.id.uuid(), Err(v.label.id)));
    let snapshots = listing.snapshots.iter().map(|s| s.key);
    let snapshots = snapshots.chain(listing.partial_snapshots).map(|k| (k.id.uuid(), Ok(k)));
    let mut all: Vec<(_, Result<SnapshotKey, VolumeId>)> = volumes.chain(snapshots).collect();
    all.sort_by_key(|(id, _)| std::cmp::Reverse(*id));
    for (_, object) in all {
        let gone = match object {
            Ok(key) => ok("destroy", pool.destroy_snapshot(key, &soon())).map(drop),
            Err(id) => {
                ok("close", pool.close(id, &soon())).and(ok("destroy", pool.destroy(id, &soon())).map(drop))
            }
        };
        failed = failed.and(gone);
    }
    if !listing.strays.is_empty() {
        failed = failed.and(Err(format!("left behind: {:?}", listing.strays)));
    }
    failed
}

/// Long enough for anything in an emulated guest.
fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(300))
}

/// A new volume's label.
pub fn label(size: ByteSize, provisioning: Provisioning) -> Label {
    let id = VolumeId::mint();
    let plain = VolumeCreate::new(parse(&format!("v-{id}")), parse("contract"), size);
    let ask = VolumeCreate { provisioning, ..plain };
    Label::new(id, parse("default"), &ask)
}

/// Parses what is right by construction.
#[allow(clippy::panic)]
fn parse<T: std::str::FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| panic!("{text} does not parse"))
}

fn thin(mib: u64) -> Label {
    label(ByteSize(mib << 20), Provisioning::Thin)
}

fn thick(mib: u64) -> Label {
    label(ByteSize(mib << 20), Provisioning::Thick)
}

fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut next = e.source();
    while let Some(e) = next {
        text = format!("{text}: {e}");
        next = e.source();
    }
    text
}

fn ok<T, E: std::error::Error>(what: impl Display, result: Result<T, E>) -> Result<T, String> {
    result.map_err(|e| format!("{what}: {}", chain(&e)))
}

fn expect(holds: bool, what: impl Display, found: &dyn std::fmt::Debug) -> Check {
    if holds { Ok(()) } else { Err(format!("{what}: {found:?}")) }
}

fn same<T: PartialEq + std::fmt::Debug>(what: impl Display, found: T, wanted: T) -> Check {
    if found == wanted { Ok(()) } else { Err(format!("{what}: found {found:?}, wanted {wanted:?}")) }
}

/// What a pool must say of a volume that has this label and is whole.
fn whole(l: &Label) -> Stored {
    Stored::of(l.clone(), l.size)
}

fn write(opened: &Opened, offset: u64, bytes: &[u8]) -> Check {
    let file = ok("opening for writing", File::options().write(true).open(opened.path()))?;
    ok("writing", file.write_all_at(bytes, offset))?;
    ok("syncing", file.sync_all())
}

fn read(opened: &Opened, offset: u64, len: usize) -> Result<Vec<u8>, String> {
    let file = ok("opening for reading", File::open(opened.path()))?;
    // What the medium has, not what this machine remembers having written.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    let mut bytes = vec![0; len];
    ok("reading", file.read_exact_at(&mut bytes, offset))?;
    Ok(bytes)
}

/// Bytes that differ from block to block and from volume to volume.
fn pattern(seed: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for (n, block) in bytes.chunks_mut(512).enumerate() {
        block.fill(seed.wrapping_add(n as u8).wrapping_mul(31) | 1);
    }
    bytes
}

/// Where a pool of images keeps them; `None` for ZFS.
fn images(subject: &Subject) -> Option<PathBuf> {
    match &subject.spec.medium {
        PoolMedium::Zfs { .. } | PoolMedium::Lvm { .. } => None,
        PoolMedium::FileDirectory { directory } | PoolMedium::Sim { directory } => {
            Some(directory.join("volumes"))
        }
        PoolMedium::FileDisk { .. } | PoolMedium::FileArray { .. } => {
            Some(subject.env.mounts.join(subject.spec.name.as_str()).join("volumes"))
        }
    }
}

fn reopen(subject: &Subject) -> Result<Box<dyn Pool>, String> {
    ok("opening the pool a second time", super::open(&subject.spec, &subject.env, &soon()))
}

fn is_link(device: &Path) -> bool {
    std::fs::symlink_metadata(device).is_ok_and(|m| m.file_type().is_symlink())
}
