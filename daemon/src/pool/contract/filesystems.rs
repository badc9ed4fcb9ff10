//! Volumes that are file systems: made, mounted, full, grown, held still for a snapshot, cloned, copied. Every
//! check is of every file system that the pool says it has.

use std::fs;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use orlop_api::{FilesystemKind, PoolKind, SourceMode, VolumeKind};
use rustix::fs::{FallocateFlags, StatVfsMountFlags, fallocate, statvfs};
use rustix::io::Errno;

use super::snapshots::{linked, shot, take};
use super::space::{SLACK, alone, quiet};
use super::strange::lvm;
use super::*;
use crate::kernel::filesystem::{Frozen, thaw};
use crate::model::{LabelSource, SnapshotLabel};
use crate::pool::{Change, PoolError, copy, least_size};

pub(super) const ALL: &[(&str, Run)] = &[
    ("a file system is made, mounted, and keeps what is written", keeps),
    ("a file system is found mounted by a second daemon", found_mounted),
    ("a file system is full at its size", full),
    ("a file system grows, mounted and not, and keeps its data", grows),
    ("a snapshot of a file system that is written to is whole", written_to),
    ("a group of file systems that are written to is of one instant", group),
    ("a thick file system is reserved", reserved),
    ("a copy of a file system is whole and can be larger, or is refused", copied),
    ("what a crash before the end of formatting leaves is partial", half_made),
    ("data is never formatted", never_formatted),
    ("a disk and a file system, or two kinds of one, are different volumes", another_kind),
    ("a file system that the pool does not have, or that is too small, is refused", refused),
    ("a file system that is in use stays mounted, and is unmounted to be destroyed", in_use),
    ("a file system that a killed daemon held goes on", held),
];

/// Whether anything comes of it: a simulation only says so.
fn real(pool: &dyn Pool) -> bool {
    pool.kind() != PoolKind::Sim
}

fn kinds(pool: &dyn Pool) -> impl Iterator<Item = FilesystemKind> + use<> {
    pool.features().filesystems.iter().copied()
}

/// The size of the volumes here: XFS does not come smaller.
fn mib(kind: FilesystemKind) -> u64 {
    match kind {
        FilesystemKind::Xfs => 304,
        FilesystemKind::Ext4 | FilesystemKind::Zfs => 48,
    }
}

fn of(kind: FilesystemKind, provisioning: Provisioning) -> Label {
    let label = label(ByteSize(mib(kind) << 20), provisioning);
    Label { kind: VolumeKind::Filesystem, filesystem: Some(kind), ..label }
}

fn larger(l: &Label, by_mib: u64) -> Label {
    Label { size: ByteSize(l.size.bytes() + (by_mib << 20)), ..l.clone() }
}

/// Opens it and finds a directory of its size.
pub(super) fn mounted(pool: &dyn Pool, l: &Label) -> Result<PathBuf, String> {
    let opened = ok("open", pool.open(l.id, &soon()))?;
    same("its size", opened.size, l.size)?;
    match opened.place {
        Place::Directory(path) => Ok(path),
        Place::Device(path) => Err(format!("a directory was wanted, not {}", path.display())),
    }
}

/// Text that does not compress.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(len).collect()
}

fn put(path: &Path, bytes: &[u8]) -> Check {
    let file = ok("making a file", File::create(path))?;
    ok("writing a file", (&file).write_all(bytes))?;
    ok("syncing a file", file.sync_all())
}

fn holds(path: &Path, bytes: &[u8]) -> Check {
    let found = ok(format!("reading {}", path.display()), fs::read(path))?;
    expect(found == bytes, "the bytes of a file", &(path, found.len(), bytes.len()))
}

/// How much the file system says that it can hold.
fn total(dir: &Path) -> Result<u64, String> {
    Ok(ok("statfs", crate::kernel::fs::space(dir))?.total)
}

/// Whether this process may make one larger: ext4 wants CAP_SYS_RESOURCE for that, which root of a container
/// need not have. The appliance has it.
fn may_grow(kind: FilesystemKind) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective =
        status.lines().find_map(|l| u64::from_str_radix(l.strip_prefix("CapEff:")?.trim(), 16).ok());
    kind != FilesystemKind::Ext4 || effective.is_none_or(|all| all & (1 << 24) != 0)
}

fn is_mounted(dir: &Path) -> Result<bool, String> {
    Ok(ok("mounts", crate::kernel::mount::at(dir))?.is_some())
}

fn keeps(_: &Subject, pool: &dyn Pool) -> Check {
    for kind in kinds(pool) {
        for provisioning in [Provisioning::Thin, Provisioning::Thick] {
            let l = of(kind, provisioning);
            same("create", ok("create", pool.create(&l, &soon()))?, Change::Done)?;
            same("get", ok("get", pool.get(l.id, &soon()))?, Some(whole(&l)))?;
            same("again", ok("create", pool.create(&l, &soon()))?, Change::Unchanged)?;
            let listed = ok("list", pool.list(&soon()))?;
            expect(listed.volumes.contains(&whole(&l)), "the volume in the listing", &listed)?;
            expect(listed.partial.is_empty() && listed.strays.is_empty(), "nothing else", &listed)?;
            let dir = mounted(pool, &l)?;
            let data = noise(1, 1 << 20);
            put(&dir.join("a"), &data)?;
            same("open twice", mounted(pool, &l)?, dir.clone())?;
            if real(pool) {
                let stat = ok("statvfs", statvfs(&dir))?;
                let safe = StatVfsMountFlags::NODEV | StatVfsMountFlags::NOSUID;
                expect(stat.f_flag.contains(safe), "no devices and no other users", &stat.f_flag)?;
                let (has, size) = (total(&dir)?, l.size.bytes());
                expect(has <= size && has >= size / 3 * 2, format!("{kind:?}: its size"), &(has, size))?;
            }
            ok("close", pool.close(l.id, &soon()))?;
            ok("close twice", pool.close(l.id, &soon()))?;
            expect(!is_mounted(&dir)?, "nothing mounted after close", &dir)?;
            holds(&mounted(pool, &l)?.join("a"), &data)?;
            let set = Label { deleted: true, ..l.clone() };
            ok("relabel", pool.relabel(&set, &soon()))?;
            holds(&dir.join("a"), &data)?;
            ok("close", pool.close(l.id, &soon()))?;
            same("destroy", ok("destroy", pool.destroy(l.id, &soon()))?, Change::Done)?;
            same("get", ok("get", pool.get(l.id, &soon()))?, None)?;
        }
    }
    Ok(())
}

fn found_mounted(subject: &Subject, pool: &dyn Pool) -> Check {
    for kind in kinds(pool) {
        let l = of(kind, Provisioning::Thin);
        ok("create", pool.create(&l, &soon()))?;
        let dir = mounted(pool, &l)?;
        put(&dir.join("a"), b"here")?;
        let again = reopen(subject)?;
        same("get", ok("get", again.get(l.id, &soon()))?, Some(whole(&l)))?;
        same("its directory", mounted(again.as_ref(), &l)?, dir.clone())?;
        holds(&dir.join("a"), b"here")?;
        ok("close", again.close(l.id, &soon()))?;
        expect(!is_mounted(&dir)?, "nothing mounted after close", &dir)?;
        holds(&mounted(pool, &l)?.join("a"), b"here")?;
        ok("close", pool.close(l.id, &soon()))?;
        ok("destroy", pool.destroy(l.id, &soon()))?;
    }
    Ok(())
}

/// No room: by its size, or by a quota.
fn is_full(error: &std::io::Error) -> bool {
    [Errno::NOSPC, Errno::DQUOT].iter().any(|e| error.raw_os_error() == Some(e.raw_os_error()))
}

fn full(_: &Subject, pool: &dyn Pool) -> Check {
    for kind in kinds(pool).filter(|_| real(pool)) {
        let l = of(kind, Provisioning::Thin);
        ok("create", pool.create(&l, &soon()))?;
        let dir = mounted(pool, &l)?;
        let room = ok("statfs", crate::kernel::fs::space(&dir))?.available;
        let file = ok("making a file", File::create(dir.join("fill")))?;
        if kind == FilesystemKind::Xfs {
            // Hundreds of MiB: reserved, not written.
            let ask = |len| fallocate(&file, FallocateFlags::empty(), 0, len).map_err(std::io::Error::from);
            ok("most of it", ask(room / 10 * 9))?;
            let more = ask(l.size.bytes());
            expect(more.as_ref().is_err_and(is_full), "more than there is", &more)?;
        } else {
            let (mut written, block) = (0u64, noise(2, 1 << 20));
            let error = loop {
                if written > l.size.bytes() {
                    return Err(format!("{kind:?}: {written} bytes fit into {}", l.size));
                }
                match (&file).write_all(&block).and_then(|()| file.sync_data()) {
                    Ok(()) => written += block.len() as u64,
                    Err(e) => break e,
                }
            };
            expect(is_full(&error), "no room", &error)?;
            expect(
                written >= room / 10 * 8,
                format!("{kind:?}: most of it was to be had"),
                &(written, room),
            )?;
        }
        drop(file);
        // A full one is closed, opened, emptied and used as any other.
        ok("close", pool.close(l.id, &soon()))?;
        let dir = mounted(pool, &l)?;
        ok("removing", fs::remove_file(dir.join("fill")))?;
        rustix::fs::sync();
        put(&dir.join("a"), b"room again")?;
        ok("close", pool.close(l.id, &soon()))?;
        ok("destroy", pool.destroy(l.id, &soon()))?;
    }
    Ok(())
}

fn grows(_: &Subject, pool: &dyn Pool) -> Check {
    for kind in kinds(pool) {
        for provisioning in [Provisioning::Thin, Provisioning::Thick] {
            let l = of(kind, provisioning);
            ok("create", pool.create(&l, &soon()))?;
            let dir = mounted(pool, &l)?;
            let data = noise(3, 2 << 20);
            put(&dir.join("a"), &data)?;
            let was = total(&dir)?;
            let more = larger(&l, 32);
            if real(pool) && !may_grow(kind) {
                // Its user is told, and has all that was there.
                let r = pool.grow(&more, &soon());
                expect(matches!(r, Err(PoolError::Io { .. })), "a grow that is not allowed", &r)?;
                holds(&dir.join("a"), &data)?;
                ok("close", pool.close(l.id, &soon()))?;
                same("its size", ok("open", pool.open(l.id, &soon()))?.size, l.size)?;
                holds(&dir.join("a"), &data)?;
                ok("close", pool.close(l.id, &soon()))?;
                ok("destroy", pool.destroy(l.id, &soon()))?;
                continue;
            }
            same("grow", ok("grow", pool.grow(&more, &soon()))?, Change::Done)?;
            same("get", ok("get", pool.get(l.id, &soon()))?, Some(whole(&more)))?;
            let is = total(&dir)?;
            expect(!real(pool) || is >= was + (20 << 20), format!("{kind:?} grew mounted"), &(was, is))?;
            holds(&dir.join("a"), &data)?;
            same("its directory", mounted(pool, &more)?, dir.clone())?;
            ok("close", pool.close(l.id, &soon()))?;
            let most = larger(&more, 32);
            same("grow", ok("grow", pool.grow(&most, &soon()))?, Change::Done)?;
            expect(!is_mounted(&dir)?, "closed still", &dir)?;
            same("again", ok("grow", pool.grow(&most, &soon()))?, Change::Unchanged)?;
            let less = pool.grow(&l, &soon());
            expect(matches!(less, Err(PoolError::Conflict { .. })), "no shrinking", &less)?;
            let dir = mounted(pool, &most)?;
            let end = total(&dir)?;
            expect(!real(pool) || end >= is + (20 << 20), format!("{kind:?} grew unmounted"), &(is, end))?;
            holds(&dir.join("a"), &data)?;
            ok("close", pool.close(l.id, &soon()))?;
            ok("destroy", pool.destroy(l.id, &soon()))?;
        }
    }
    Ok(())
}

fn written_to(_: &Subject, pool: &dyn Pool) -> Check {
    for kind in kinds(pool).filter(|_| real(pool)) {
        let l = of(kind, Provisioning::Thin);
        ok("create", pool.create(&l, &soon()))?;
        let dir = mounted(pool, &l)?;
        let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
        let content = |n: usize| noise(n as u64 + 7, 8192);
        let s = shot(&l);
        let (paused, sure) = std::thread::scope(|scope| {
            let writer = scope.spawn(|| -> Check {
                for n in 0..800 {
                    if stop.load(Ordering::Acquire) {
                        return Ok(());
                    }
                    put(&dir.join(format!("{n}")), &content(n))?;
                    done.store(n + 1, Ordering::Release);
                }
                Ok(())
            });
            let end = Instant::now() + Duration::from_secs(60);
            while done.load(Ordering::Acquire) < 10 && Instant::now() < end && !writer.is_finished() {
                std::thread::sleep(Duration::from_millis(5));
            }
            let sure = done.load(Ordering::Acquire);
            let snapped = ok("snapshot", pool.snapshot(std::slice::from_ref(&s), &soon()));
            stop.store(true, Ordering::Release);
            let wrote = writer.join().unwrap_or_else(|_| Err("the writer died".into()));
            Ok::<_, String>((snapped.and_then(|s| wrote.map(|()| s))?.paused, sure))
        })?;
        expect(sure >= 10, "files before the snapshot", &sure)?;
        expect(paused.is_some() || kind == FilesystemKind::Zfs, "for how long writers waited", &paused)?;
        same("its label", ok("get", pool.get_snapshot(s.key, &soon()))?, Some(s.clone()))?;
        // The volume goes on, and its clones are mounted beside it. One is larger.
        put(&dir.join("after"), b"later")?;
        for by in if may_grow(kind) { [0, 32] } else { [0, 0] } {
            let c = Label { kind: l.kind, filesystem: l.filesystem, ..linked(&s, mib(kind) + by) };
            same("clone", ok("clone", pool.create(&c, &soon()))?, Change::Done)?;
            same("get", ok("get", pool.get(c.id, &soon()))?, Some(whole(&c)))?;
            let copy = mounted(pool, &c)?;
            expect(copy != dir, "a directory of its own", &copy)?;
            for n in 0..sure {
                holds(&copy.join(format!("{n}")), &content(n))?;
            }
            expect(!copy.join("after").exists(), "nothing from later", &copy)?;
            if by > 0 {
                let (was, is) = (total(&dir)?, total(&copy)?);
                expect(is >= was + (20 << 20), format!("{kind:?}: the larger clone"), &(was, is))?;
            }
            put(&copy.join("mine"), b"the clone's")?;
            expect(!dir.join("mine").exists(), "the clone is its own", &copy)?;
            ok("close", pool.close(c.id, &soon()))?;
            ok("destroy", pool.destroy(c.id, &soon()))?;
        }
        holds(&dir.join("after"), b"later")?;
        ok("close", pool.close(l.id, &soon()))?;
        ok("destroy", pool.destroy_snapshot(s.key, &soon()))?;
        ok("destroy", pool.destroy(l.id, &soon()))?;
    }
    Ok(())
}

/// A writer makes a file in one and then the same in the other, so the other never has one more.
fn group(_: &Subject, pool: &dyn Pool) -> Check {
    // The smallest there is: two of them and two clones.
    let kind = kinds(pool).filter(|_| real(pool)).min_by_key(|k| mib(*k));
    let Some(kind) = kind else { return Ok(()) };
    let pair = [of(kind, Provisioning::Thin), of(kind, Provisioning::Thin)];
    let mut dirs = Vec::new();
    for l in &pair {
        ok("create", pool.create(l, &soon()))?;
        dirs.push(mounted(pool, l)?);
    }
    let shots = pair.each_ref().map(shot);
    let stop = AtomicBool::new(false);
    let snapped = std::thread::scope(|scope| {
        let writer = scope.spawn(|| -> Check {
            for n in 0..2000 {
                for dir in &dirs {
                    put(&dir.join(format!("{n}")), b"x")?;
                }
                if stop.load(Ordering::Acquire) {
                    break;
                }
            }
            Ok(())
        });
        let end = Instant::now() + Duration::from_secs(60);
        while !dirs[1].join("5").exists() && Instant::now() < end && !writer.is_finished() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let snapped = ok("snapshot", pool.snapshot(&shots, &soon()));
        stop.store(true, Ordering::Release);
        snapped.and(writer.join().unwrap_or_else(|_| Err("the writer died".into())))
    });
    snapped?;
    let mut counts = Vec::new();
    for s in &shots {
        let c = Label { kind: VolumeKind::Filesystem, filesystem: Some(kind), ..linked(s, mib(kind)) };
        ok("clone", pool.create(&c, &soon()))?;
        let dir = mounted(pool, &c)?;
        let names = ok("reading", fs::read_dir(&dir))?.flatten().map(|e| e.file_name());
        counts.push(names.filter(|n| n.to_str().is_some_and(|n| n.parse::<u32>().is_ok())).count());
        ok("close", pool.close(c.id, &soon()))?;
    }
    expect(
        counts[1] >= 5 && (counts[0] == counts[1] || counts[0] == counts[1] + 1),
        "the files in both",
        &counts,
    )
}

fn reserved(subject: &Subject, pool: &dyn Pool) -> Check {
    if !alone(subject) {
        return Ok(());
    }
    // One beside the other: what a destroyed one frees comes back in its own time.
    let (before, mut least) = (quiet(pool)?, 0);
    for kind in kinds(pool) {
        let l = of(kind, Provisioning::Thick);
        ok("create", pool.create(&l, &soon()))?;
        // Mounting, and files that come and go, give nothing back.
        let dir = mounted(pool, &l)?;
        put(&dir.join("a"), &noise(4, 1 << 20))?;
        ok("removing", fs::remove_file(dir.join("a")))?;
        least += l.size.bytes() - SLACK;
        let taken = before.saturating_sub(quiet(pool)?);
        expect(taken >= least, format!("{kind:?}: all of it reserved"), &(taken, least))?;
        ok("close", pool.close(l.id, &soon()))?;
    }
    Ok(())
}

fn copied(_: &Subject, pool: &dyn Pool) -> Check {
    for kind in kinds(pool) {
        let l = of(kind, Provisioning::Thin);
        ok("create", pool.create(&l, &soon()))?;
        let data = noise(5, 1 << 20);
        put(&mounted(pool, &l)?.join("a"), &data)?;
        let s = shot(&l);
        take(pool, std::slice::from_ref(&s))?;
        let source = Some(LabelSource { snapshot: s.key, mode: SourceMode::Copied });
        let new = of(kind, Provisioning::Thin);
        let by = if may_grow(kind) { 32 } else { 0 };
        let c = Label { source, copied: Some(ByteSize(0)), ..larger(&new, by) };
        ok("create", pool.create(&c, &soon()))?;
        if real(pool) {
            let r = pool.open(c.id, &soon());
            expect(matches!(r, Err(PoolError::Precondition { .. })), "open before its end", &r)?;
        }
        if pool.is_streamed(kind) {
            streamed(pool, &s, &c)?;
        } else {
            let from = ok("read", pool.read(s.key, &soon()))?;
            let to = ok("fill", pool.fill(c.id, &soon()))?;
            let long = Duration::from_secs(240);
            ok("copy", copy::copy(&from, &to, 0, s.size.bytes(), &Default::default(), long))?;
            drop((from, to));
            ok("done", pool.done_reading(s.key, &soon()))?;
        }
        let c = Label { copied: None, ..c };
        ok("grow", pool.grow(&c, &soon()))?;
        same("get", ok("get", pool.get(c.id, &soon()))?, Some(whole(&c)))?;
        let dir = mounted(pool, &c)?;
        if real(pool) {
            holds(&dir.join("a"), &data)?;
            let has = total(&dir)?;
            let least = l.size.bytes() / 3 * 2 + (by << 20) / 2;
            expect(has > least, format!("{kind:?}: larger"), &has)?;
        }
        ok("close", pool.close(c.id, &soon()))?;
        ok("destroy", pool.destroy(c.id, &soon()))?;
        ok("close", pool.close(l.id, &soon()))?;
        ok("destroy", pool.destroy_snapshot(s.key, &soon()))?;
        ok("destroy", pool.destroy(l.id, &soon()))?;
    }
    Ok(())
}

/// As the engine does it: stopped once in the middle, which leaves nothing, and then whole, twice.
fn streamed(pool: &dyn Pool, s: &SnapshotLabel, c: &Label) -> Check {
    let go = |watch: &copy::Watch| {
        let send = |into| pool.send(s.key, into, &soon());
        copy::pour(send, |from| pool.receive(c.id, from, &soon()), watch)
    };
    let stopped = copy::Watch::default();
    stopped.stop.store(true, std::sync::atomic::Ordering::Release);
    expect(go(&stopped).is_err(), "a copy that was stopped", &"it is whole")?;
    same("get", ok("get", pool.get(c.id, &soon()))?, Some(Stored::of(c.clone(), c.size)))?;
    let watch = copy::Watch::default();
    ok("copy", go(&watch))?;
    expect(watch.done.load(std::sync::atomic::Ordering::Acquire) > 1 << 20, "what was carried", &watch)?;
    // A daemon that was killed before it had said so does it again.
    ok("copy again", go(&copy::Watch::default()))?;
    let strays = ok("list", pool.list(&soon()))?.strays;
    expect(strays.is_empty(), "nothing is left of it", &strays)?;
    // What is whole is not written over.
    let done = Label { copied: None, ..c.clone() };
    ok("relabel", pool.relabel(&done, &soon()))?;
    expect(go(&copy::Watch::default()).is_err(), "a copy into what is whole", &"it was done")?;
    ok("relabel", pool.relabel(c, &soon()))
}

fn half_made(subject: &Subject, pool: &dyn Pool) -> Check {
    for kind in kinds(pool) {
        let leave = |l: &Label| -> Check {
            if let Some(dir) = images(subject) {
                ok("writing", fs::write(dir.join(format!("{}.json", l.id)), l.to_json()))?;
                return ok("writing", fs::write(dir.join(format!("{}.img.tmp", l.id)), "half a superblock"));
            }
            let (vg, name) = (subject.spec.name.to_string(), l.id.to_string());
            let size = format!("{}b", l.size.bytes());
            let thin = format!("{vg}/thin");
            let args = ["lvcreate", "-q", "-y", "--type", "thin", "-an", "-V", &size, "-n", &name];
            lvm(&[&args[..], &["--addtag", "orlop.new", "--thinpool", &thin]].concat())
        };
        // In ZFS the label is part of the create, and a dataset needs no formatting.
        if pool.kind() == PoolKind::Zfs {
            return Ok(());
        }
        let l = of(kind, Provisioning::Thin);
        leave(&l)?;
        same("partial", ok("list", pool.list(&soon()))?.partial, vec![l.id])?;
        same("get", ok("get", pool.get(l.id, &soon()))?, None)?;
        let r = pool.open(l.id, &soon());
        expect(matches!(r, Err(PoolError::NotFound { .. })), "open of a partial one", &r)?;
        same("create", ok("create", pool.create(&l, &soon()))?, Change::Done)?;
        mounted(pool, &l)?;
        ok("close", pool.close(l.id, &soon()))?;
        ok("destroy", pool.destroy(l.id, &soon()))?;
        leave(&l)?;
        same("destroy", ok("destroy", pool.destroy(l.id, &soon()))?, Change::Done)?;
        expect(ok("list", pool.list(&soon()))? == Default::default(), "nothing is left", &l.id)?;
    }
    Ok(())
}

fn never_formatted(subject: &Subject, pool: &dyn Pool) -> Check {
    let Some(dir) = images(subject) else { return Ok(()) };
    for kind in kinds(pool) {
        let l = of(kind, Provisioning::Thin);
        let path = dir.join(format!("{}.img", l.id));
        let file = ok("making", File::create_new(&path))?;
        ok("sizing", file.set_len(l.size.bytes()))?;
        ok("writing", file.write_all_at(b"someone's", 1 << 20))?;
        let r = pool.create(&l, &soon());
        expect(matches!(r, Err(PoolError::Conflict { .. })), "create where something is", &r)?;
        let there = ok("reading", fs::read(&path))?;
        let written = there.iter().filter(|b| **b != 0).count();
        expect(written == 9 && there[1 << 20..].starts_with(b"someone's"), "as it was", &written)?;
        ok("removing", fs::remove_file(path))?;
    }
    // A disk that was written to does not become a file system by another label.
    let l = thin(48);
    ok("create", pool.create(&l, &soon()))?;
    write(&ok("open", pool.open(l.id, &soon()))?, 4096, b"a disk's")?;
    ok("close", pool.close(l.id, &soon()))?;
    for kind in kinds(pool) {
        let asked = Label { kind: VolumeKind::Filesystem, filesystem: Some(kind), ..l.clone() };
        if l.size >= least_size(kind) {
            let r = pool.create(&asked, &soon());
            expect(matches!(r, Err(PoolError::Conflict { .. })), "create over a disk", &r)?;
        }
        if real(pool) {
            ok("relabel", pool.relabel(&asked, &soon()))?;
            let r = pool.open(l.id, &soon());
            expect(r.is_err(), "open of a disk as a file system", &r)?;
            ok("close", pool.close(l.id, &soon()))?;
            ok("relabel", pool.relabel(&l, &soon()))?;
        }
    }
    expect(read(&ok("open", pool.open(l.id, &soon()))?, 4096, 8)? == b"a disk's", "its bytes", &l.id)?;
    ok("close", pool.close(l.id, &soon()))
}

fn another_kind(_: &Subject, pool: &dyn Pool) -> Check {
    for kind in kinds(pool) {
        let l = of(kind, Provisioning::Thin);
        ok("create", pool.create(&l, &soon()))?;
        let disk = Label { kind: VolumeKind::Block, filesystem: None, ..l.clone() };
        let others = kinds(pool).filter(|k| *k != kind && l.size >= least_size(*k));
        let others = others.map(|k| Label { filesystem: Some(k), ..l.clone() });
        for other in others.chain([disk.clone()]) {
            let r = pool.create(&other, &soon());
            expect(matches!(r, Err(PoolError::Conflict { .. })), "another kind under an id", &r)?;
        }
        same("get", ok("get", pool.get(l.id, &soon()))?, Some(whole(&l)))?;
        let disk = Label { id: VolumeId::mint(), ..disk };
        ok("create", pool.create(&disk, &soon()))?;
        let system = Label { id: disk.id, ..l.clone() };
        let r = pool.create(&system, &soon());
        expect(matches!(r, Err(PoolError::Conflict { .. })), "a file system where a disk is", &r)?;
        for id in [l.id, disk.id] {
            ok("destroy", pool.destroy(id, &soon()))?;
        }
    }
    Ok(())
}

fn refused(_: &Subject, pool: &dyn Pool) -> Check {
    for kind in FilesystemKind::ALL {
        let has = kinds(pool).any(|k| k == kind);
        if !has {
            let r = pool.create(&of(kind, Provisioning::Thin), &soon());
            let field = matches!(r, Err(PoolError::Property { field: "filesystem", .. }));
            expect(field, format!("{kind:?}, which it does not have"), &r)?;
            continue;
        }
        let least = of(kind, Provisioning::Thin);
        let least = Label { size: least_size(kind), ..least };
        let less = ByteSize(least.size.bytes() - pool.granularity().bytes());
        let small = Label { size: less, ..of(kind, Provisioning::Thin) };
        let r = pool.create(&small, &soon());
        expect(matches!(r, Err(PoolError::Precondition { .. })), format!("{kind:?} of {less}"), &r)?;
        ok(format!("{kind:?} of {}", least.size), pool.create(&least, &soon()))?;
        put(&mounted(pool, &least)?.join("a"), b"there is room")?;
        ok("close", pool.close(least.id, &soon()))?;
        ok("destroy", pool.destroy(least.id, &soon()))?;
    }
    let named = Label { filesystem: Some(FilesystemKind::Ext4), ..thin(64) };
    let r = pool.create(&named, &soon());
    expect(matches!(r, Err(PoolError::Property { field: "filesystem", .. })), "a disk with one", &r)?;
    same("list", ok("list", pool.list(&soon()))?, Default::default())
}

fn in_use(_: &Subject, pool: &dyn Pool) -> Check {
    for kind in kinds(pool).filter(|_| real(pool)).take(1) {
        let l = of(kind, Provisioning::Thin);
        ok("create", pool.create(&l, &soon()))?;
        let dir = mounted(pool, &l)?;
        let open = ok("making a file", File::create(dir.join("open")))?;
        for r in [pool.close(l.id, &soon()), pool.destroy(l.id, &soon()).map(drop)] {
            expect(matches!(r, Err(PoolError::Precondition { .. })), "while a file is open", &r)?;
        }
        ok("writing", (&open).write_all(b"still here"))?;
        drop(open);
        holds(&dir.join("open"), b"still here")?;
        ok("destroy", pool.destroy(l.id, &soon()))?;
        expect(!dir.exists(), "no directory is left", &dir)?;
    }
    Ok(())
}

fn held(subject: &Subject, pool: &dyn Pool) -> Check {
    for kind in kinds(pool).filter(|k| real(pool) && *k != FilesystemKind::Zfs) {
        let l = of(kind, Provisioning::Thin);
        ok("create", pool.create(&l, &soon()))?;
        let dir = mounted(pool, &l)?;
        let root = || ok("opening", File::open(&dir));
        // The daemon is gone, and what it held is not.
        let left = ok("hold", Frozen::hold(root()?))?;
        let again = reopen(subject);
        let still = ok("thaw", thaw(&root()?))?;
        again?;
        drop(left);
        expect(!still, format!("{kind:?}: it goes on"), &still)?;
        put(&dir.join("a"), b"written")?;
        ok("close", pool.close(l.id, &soon()))?;
        ok("destroy", pool.destroy(l.id, &soon()))?;
    }
    Ok(())
}
