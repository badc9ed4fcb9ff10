//! Snapshots, clones and copies: what was there at the instant is there, whatever happens afterwards.

use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

use orlop_api::{SnapshotId, SourceMode};

use super::*;
use crate::kernel::dm;
use crate::model::{Document, LabelSource, SnapshotKey, SnapshotLabel};
use crate::pool::{Change, PoolError, copy};

pub(super) const ALL: &[(&str, Run)] = &[
    ("a snapshot keeps what was there, whatever is written later", keeps),
    ("snapshots are listed, read back, relabelled and destroyed", lifecycle),
    ("a snapshot of an open volume is taken, and the volume goes on", of_an_open_volume),
    ("a clone can be larger, and is its own", larger_clone),
    ("a clone of a clone has both their pasts", clone_of_clone),
    ("what a clone lives on stays while it lives", dependence),
    ("a volume with snapshots is kept, or they outlive it", volume_with_snapshots),
    ("snapshot and clone of nothing are not found", of_nothing),
    ("a snapshot of another size than its volume is a conflict", wrong_size),
    ("a group is of one instant", group),
    ("a group under writes is of one instant or refused", group_under_writes),
    ("what a killed daemon held for a snapshot goes on", held),
    ("a copy is whole, shares nothing and stays thin", copied),
    ("a copy that was stopped goes on", copy_in_parts),
    ("what a crash in a snapshot leaves is partial, and can be finished or destroyed", crash_in_snapshot),
    ("an overrun deadline takes no snapshot", overrun),
    ("many snapshots of one volume", many),
];

const MIB: usize = 1 << 20;

pub(super) fn shot(of: &Label) -> SnapshotLabel {
    let id = SnapshotId::mint();
    SnapshotLabel::new(of, id, parse(&format!("s-{id}")), None)
}

fn from(snapshot: &SnapshotLabel, mode: SourceMode, mib: u64) -> Label {
    let source = Some(LabelSource { snapshot: snapshot.key, mode });
    let copied = (mode == SourceMode::Copied).then_some(ByteSize(0));
    Label { source, copied, ..thin(mib) }
}

pub(super) fn linked(snapshot: &SnapshotLabel, mib: u64) -> Label {
    from(snapshot, SourceMode::Linked, mib)
}

pub(super) fn take(pool: &dyn Pool, labels: &[SnapshotLabel]) -> Check {
    let snapped = ok("snapshot", pool.snapshot(labels, &soon()))?;
    same("snapshot", snapped.change, Change::Done)
}

/// Writes through the device of a volume that is opened for that, and closed.
pub(super) fn put(pool: &dyn Pool, id: VolumeId, offset: u64, bytes: &[u8]) -> Check {
    write(&ok("open", pool.open(id, &soon()))?, offset, bytes)?;
    ok("close", pool.close(id, &soon()))
}

pub(super) fn holds(pool: &dyn Pool, id: VolumeId, offset: u64, bytes: &[u8], what: &str) -> Check {
    let found = read(&ok("open", pool.open(id, &soon()))?, offset, bytes.len())?;
    ok("close", pool.close(id, &soon()))?;
    expect(found == bytes, what, &id)
}

fn keeps(_: &Subject, pool: &dyn Pool) -> Check {
    for l in [thin(16), thick(16)] {
        ok("create", pool.create(&l, &soon()))?;
        let (old, new) = (pattern(3, MIB), pattern(4, MIB));
        put(pool, l.id, 5 << 20, &old)?;
        let s = shot(&l);
        take(pool, std::slice::from_ref(&s))?;
        put(pool, l.id, 5 << 20, &new)?;
        let c = linked(&s, 16);
        same("clone", ok("clone", pool.create(&c, &soon()))?, Change::Done)?;
        same("get", ok("get", pool.get(c.id, &soon()))?, Some(whole(&c)))?;
        same("again", ok("clone", pool.create(&c, &soon()))?, Change::Unchanged)?;
        holds(pool, c.id, 5 << 20, &old, "the clone's bytes are the snapshot's")?;
        holds(pool, c.id, 0, &vec![0; MIB], "zeros where nothing was written")?;
        holds(pool, l.id, 5 << 20, &new, "the volume's bytes are its own")?;
        put(pool, c.id, 5 << 20, &pattern(9, MIB))?;
        holds(pool, l.id, 5 << 20, &new, "the volume's bytes, after the clone was written")?;
        let other = linked(&s, 16);
        ok("another clone", pool.create(&other, &soon()))?;
        holds(pool, other.id, 5 << 20, &old, "the snapshot's bytes, after a clone was written")?;
    }
    Ok(())
}

fn lifecycle(subject: &Subject, pool: &dyn Pool) -> Check {
    let l = thin(16);
    ok("create", pool.create(&l, &soon()))?;
    let (a, b) = (shot(&l), shot(&l));
    take(pool, std::slice::from_ref(&a))?;
    let again = ok("again", pool.snapshot(std::slice::from_ref(&a), &soon()))?;
    same("again", again.change, Change::Unchanged)?;
    let other = SnapshotLabel { name: parse("other"), ..a.clone() };
    let r = pool.snapshot(&[other], &soon());
    expect(matches!(r, Err(PoolError::Conflict { .. })), "another label under an id", &r)?;
    take(pool, std::slice::from_ref(&b))?;
    same("get", ok("get", pool.get_snapshot(a.key, &soon()))?, Some(a.clone()))?;
    let listed = ok("list", ok("reopen", reopen(subject).map_err(Told))?.list(&soon()))?;
    same("listed", listed.snapshots, vec![a.clone(), b.clone()])?;
    same("volumes", listed.volumes, vec![whole(&l)])?;
    expect(listed.strays.is_empty() && listed.partial_snapshots.is_empty(), "nothing else", &listed.strays)?;
    let doomed = SnapshotLabel { deleted: true, ..a.clone() };
    ok("relabel", pool.relabel_snapshot(&doomed, &soon()))?;
    same("get", ok("get", pool.get_snapshot(a.key, &soon()))?, Some(doomed))?;
    same("destroy", ok("destroy", pool.destroy_snapshot(a.key, &soon()))?, Change::Done)?;
    same("again", ok("destroy", pool.destroy_snapshot(a.key, &soon()))?, Change::Unchanged)?;
    same("get", ok("get", pool.get_snapshot(a.key, &soon()))?, None)?;
    same("its neighbour", ok("list", pool.list(&soon()))?.snapshots, vec![b])?;
    let r = pool.relabel_snapshot(&a, &soon());
    expect(matches!(r, Err(PoolError::NotFound { .. })), "relabel of a destroyed one", &r)
}

/// A text as an error.
#[derive(Debug)]
struct Told(String);
impl Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for Told {}

fn of_an_open_volume(_: &Subject, pool: &dyn Pool) -> Check {
    let l = thin(16);
    ok("create", pool.create(&l, &soon()))?;
    let opened = ok("open", pool.open(l.id, &soon()))?;
    let (old, new) = (pattern(5, MIB), pattern(6, MIB));
    write(&opened, 0, &old)?;
    let s = shot(&l);
    take(pool, std::slice::from_ref(&s))?;
    write(&opened, 0, &new)?;
    let larger = Label { size: ByteSize(32 << 20), ..l.clone() };
    ok("grow", pool.grow(&larger, &soon()))?;
    same(
        "its device",
        ok("open", pool.open(l.id, &soon()))?,
        Opened { size: larger.size, ..opened.clone() },
    )?;
    expect(read(&opened, 0, MIB)? == new, "the volume's new bytes", &())?;
    let c = linked(&s, 16);
    ok("clone", pool.create(&c, &soon()))?;
    holds(pool, c.id, 0, &old, "the clone has the size and the bytes of then")?;
    ok("close", pool.close(l.id, &soon()))
}

fn larger_clone(_: &Subject, pool: &dyn Pool) -> Check {
    let l = thin(16);
    ok("create", pool.create(&l, &soon()))?;
    let data = pattern(7, MIB);
    put(pool, l.id, 15 << 20, &data)?;
    let s = shot(&l);
    take(pool, std::slice::from_ref(&s))?;
    let c = linked(&s, 64);
    ok("clone", pool.create(&c, &soon()))?;
    same("get", ok("get", pool.get(c.id, &soon()))?, Some(whole(&c)))?;
    holds(pool, c.id, 15 << 20, &data, "the bytes at the source's end")?;
    holds(pool, c.id, 16 << 20, &vec![0; 48 * MIB], "zeros behind them")?;
    let larger = Label { size: ByteSize(80 << 20), ..c };
    ok("grow", pool.grow(&larger, &soon()))?;
    same("get", ok("get", pool.get(larger.id, &soon()))?, Some(whole(&larger)))
}

fn clone_of_clone(_: &Subject, pool: &dyn Pool) -> Check {
    let l = thin(16);
    ok("create", pool.create(&l, &soon()))?;
    put(pool, l.id, 0, &pattern(1, MIB))?;
    let first = shot(&l);
    take(pool, std::slice::from_ref(&first))?;
    let c = linked(&first, 16);
    ok("clone", pool.create(&c, &soon()))?;
    put(pool, c.id, 1 << 20, &pattern(2, MIB))?;
    let second = shot(&c);
    take(pool, std::slice::from_ref(&second))?;
    put(pool, c.id, 0, &pattern(3, 2 * MIB))?;
    let d = linked(&second, 16);
    ok("clone of the clone", pool.create(&d, &soon()))?;
    holds(pool, d.id, 0, &pattern(1, MIB), "the first volume's bytes")?;
    holds(pool, d.id, 1 << 20, &pattern(2, MIB), "the clone's bytes")
}

fn dependence(_: &Subject, pool: &dyn Pool) -> Check {
    let l = thin(16);
    ok("create", pool.create(&l, &soon()))?;
    let data = pattern(8, MIB);
    put(pool, l.id, 0, &data)?;
    let s = shot(&l);
    take(pool, std::slice::from_ref(&s))?;
    let c = linked(&s, 16);
    ok("clone", pool.create(&c, &soon()))?;
    let r = pool.destroy_snapshot(s.key, &soon());
    if pool.features().clones_depend {
        expect(matches!(r, Err(PoolError::Precondition { .. })), "a snapshot with a clone stays", &r)?;
        same("get", ok("get", pool.get_snapshot(s.key, &soon()))?, Some(s.clone()))?;
    } else {
        same("destroy", ok("destroy", r)?, Change::Done)?;
    }
    holds(pool, c.id, 0, &data, "the clone's bytes")?;
    ok("destroy of the clone", pool.destroy(c.id, &soon()))?;
    ok("destroy of the snapshot", pool.destroy_snapshot(s.key, &soon()))?;
    holds(pool, l.id, 0, &data, "the volume's bytes")
}

fn volume_with_snapshots(_: &Subject, pool: &dyn Pool) -> Check {
    let l = thin(16);
    ok("create", pool.create(&l, &soon()))?;
    let data = pattern(2, MIB);
    put(pool, l.id, 0, &data)?;
    let s = shot(&l);
    take(pool, std::slice::from_ref(&s))?;
    match pool.destroy(l.id, &soon()) {
        Err(PoolError::Precondition { .. }) => holds(pool, l.id, 0, &data, "the volume's bytes"),
        Ok(_) => {
            let c = linked(&s, 16);
            ok("clone", pool.create(&c, &soon()))?;
            holds(pool, c.id, 0, &data, "the snapshot's bytes")
        }
        r => Err(format!("destroy: {r:?}")),
    }
}

fn of_nothing(_: &Subject, pool: &dyn Pool) -> Check {
    let l = thin(16);
    let s = shot(&l);
    let r = pool.snapshot(std::slice::from_ref(&s), &soon());
    expect(matches!(r, Err(PoolError::NotFound { .. })), "snapshot", &r)?;
    let c = linked(&s, 16);
    let r = pool.create(&c, &soon());
    expect(matches!(r, Err(PoolError::NotFound { .. })), "clone", &r)?;
    same("get", ok("get", pool.get(c.id, &soon()))?, None)?;
    let r = pool.read(s.key, &soon()).map(drop);
    expect(matches!(r, Err(PoolError::NotFound { .. })), "read", &r)?;
    ok("done reading", pool.done_reading(s.key, &soon()))?;
    same("list", ok("list", pool.list(&soon()))?, Default::default())
}

fn wrong_size(_: &Subject, pool: &dyn Pool) -> Check {
    let l = thin(16);
    ok("create", pool.create(&l, &soon()))?;
    let s = SnapshotLabel { size: ByteSize(8 << 20), ..shot(&l) };
    let r = pool.snapshot(&[s], &soon());
    expect(matches!(r, Err(PoolError::Conflict { .. })), "snapshot", &r)?;
    expect(ok("list", pool.list(&soon()))?.snapshots.is_empty(), "nothing", &())
}

fn group(_: &Subject, pool: &dyn Pool) -> Check {
    let volumes = [thin(16), thick(16), thin(8)];
    for (i, l) in volumes.iter().enumerate() {
        ok("create", pool.create(l, &soon()))?;
        put(pool, l.id, 0, &pattern(i as u8, MIB))?;
    }
    let shots: Vec<SnapshotLabel> =
        volumes.iter().map(|l| SnapshotLabel { group: Some(parse("g")), ..shot(l) }).collect();
    take(pool, &shots)?;
    let mut wanted = shots.clone();
    wanted.sort_by_key(|s| s.key);
    same("listed", ok("list", pool.list(&soon()))?.snapshots, wanted)?;
    let again = ok("again", pool.snapshot(&shots, &soon()))?;
    same("again", again.change, Change::Unchanged)?;
    for (i, (l, s)) in volumes.iter().zip(&shots).enumerate() {
        let c = linked(s, l.size.bytes() >> 20);
        ok("clone", pool.create(&c, &soon()))?;
        holds(pool, c.id, 0, &pattern(i as u8, MIB), "its bytes")?;
    }
    // One that can't be taken: none is.
    let mut bad: Vec<SnapshotLabel> = volumes.iter().map(shot).collect();
    bad.push(shot(&thin(16)));
    let r = pool.snapshot(&bad, &soon());
    expect(matches!(r, Err(PoolError::NotFound { .. })), "a group with a volume that is not there", &r)?;
    same("listed", ok("list", pool.list(&soon()))?.snapshots.len(), 3)
}

/// A writer writes a number to one volume and then to the other, for ever: at any instant the second
/// has the first's number, or one less.
fn group_under_writes(_: &Subject, pool: &dyn Pool) -> Check {
    let (a, b) = (thin(16), thin(16));
    let mut devices = Vec::new();
    for l in [&a, &b] {
        ok("create", pool.create(l, &soon()))?;
        let device = ok("open", pool.open(l.id, &soon()))?.path().to_owned();
        let sync = rustix::fs::OFlags::DSYNC.bits() as i32;
        devices.push(ok("open", File::options().write(true).custom_flags(sync).open(device))?);
    }
    // Longer each time, so that one is longer than a try to find an instant takes, however slow the machine.
    let mut rest = Duration::from_millis(50);
    // Goes on from one to the next: else the end of one would be mixed with the beginning of the other.
    let mut n = 0u64;
    for rests in [false, true] {
        let stop = AtomicBool::new(false);
        let result = std::thread::scope(|scope| {
            let writer = scope.spawn(|| -> Check {
                while !stop.load(Ordering::Acquire) {
                    n += 1;
                    for device in &devices {
                        ok("writing", device.write_all_at(&n.to_le_bytes(), 4096))?;
                    }
                    if rests && n.is_multiple_of(4) {
                        std::thread::sleep(rest);
                        rest = (rest * 2).min(Duration::from_secs(16));
                    }
                }
                Ok(())
            });
            let pair = [shot(&a), shot(&b)];
            let taken = pool.snapshot(&pair, &soon());
            stop.store(true, Ordering::Release);
            writer.join().unwrap_or_else(|_| Err("the writer panicked".into()))?;
            match taken {
                Ok(_) => {}
                // It never rests, and this pool can neither see to one instant by itself nor hold it.
                Err(PoolError::Precondition { .. }) if !rests && !pool.features().groups_under_writes => {
                    let listed = ok("list", pool.list(&soon()))?;
                    return expect(
                        listed.snapshots.is_empty() && listed.partial_snapshots.is_empty(),
                        "nothing is left of a group that was refused",
                        &listed.snapshots,
                    );
                }
                Err(e) => return Err(format!("snapshot: {}", chain(&e))),
            }
            let mut numbers = Vec::new();
            for s in &pair {
                let c = linked(s, 16);
                ok("clone", pool.create(&c, &soon()))?;
                let bytes = read(&ok("open", pool.open(c.id, &soon()))?, 4096, 8)?;
                ok("close", pool.close(c.id, &soon()))?;
                numbers.push(u64::from_le_bytes(bytes.try_into().unwrap_or_default()));
                ok("destroy", pool.destroy(c.id, &soon()))?;
                ok("destroy", pool.destroy_snapshot(s.key, &soon()))?;
            }
            let (first, second) = (numbers[0], numbers[1]);
            expect(first == second || first == second + 1, "two numbers of one instant", &(first, second))
        });
        result?;
    }
    drop(devices);
    ok("close", pool.close(a.id, &soon()))?;
    ok("close", pool.close(b.id, &soon()))
}

/// The daemon is gone in the middle of a group's snapshots, and what it held is not.
fn held(subject: &Subject, pool: &dyn Pool) -> Check {
    let (l, other) = (thin(16), thin(16));
    for l in [&l, &other] {
        ok("create", pool.create(l, &soon()))?;
    }
    let opened = ok("open", pool.open(l.id, &soon()))?;
    let name = format!("orlop-{}", l.id);
    // Where there is none, nothing is held.
    if let Some(device) = ok("looking", dm::device(&name))? {
        same("what is used", opened.path(), device.as_path())?;
        // Neither is another pool's.
        let foreign = format!("orlop-{}", VolumeId::mint());
        ok("making another", dm::make(&foreign, dm::Above::All, &device))?;
        std::mem::forget(ok("hold", dm::Suspended::hold(&foreign))?);
        std::mem::forget(ok("hold", dm::Suspended::hold(&name))?);
        let again = reopen(subject);
        let left = ok("what is held", dm::suspended("orlop-"))?;
        ok("letting go on", dm::resume(&name).and_then(|()| dm::resume(&foreign)))?;
        again?;
        // udev may look at it only now.
        let patience = Deadline::after(Duration::from_secs(20));
        while let Err(error) = dm::remove(&foreign) {
            patience.pause(Duration::from_millis(50)).map_err(|_| format!("removing {foreign}: {error}"))?;
        }
        same("what is held", left, vec![foreign])?;
        write(&opened, 0, &pattern(1, MIB))?;
        let pair = [shot(&l), shot(&other)];
        let snapped = ok("snapshot", pool.snapshot(&pair, &soon()))?;
        expect(snapped.paused.is_some_and(|p| p > Duration::ZERO), "a pause was measured", &snapped)?;
    }
    ok("close", pool.close(l.id, &soon()))?;
    same("its device", ok("looking", dm::look(&name))?, None)
}

fn copy_all(pool: &dyn Pool, s: &SnapshotLabel, l: &Label, parts: &[u64]) -> Check {
    let source = ok("read", pool.read(s.key, &soon()))?;
    let target = ok("fill", pool.fill(l.id, &soon()))?;
    let watch = copy::Watch::default();
    let mut at = 0;
    for end in parts.iter().copied().chain([s.size.bytes()]) {
        let long = Duration::from_secs(600);
        at = ok("copy", copy::copy(&source, &target, at, end, &watch, long))?;
        ok("relabel", pool.relabel(&Label { copied: Some(ByteSize(at)), ..l.clone() }, &soon()))?;
    }
    drop((source, target));
    ok("done reading", pool.done_reading(s.key, &soon()))?;
    ok("relabel", pool.relabel(&Label { copied: None, ..l.clone() }, &soon()))
}

fn copied(_: &Subject, pool: &dyn Pool) -> Check {
    let l = thin(64);
    ok("create", pool.create(&l, &soon()))?;
    let data = pattern(6, MIB);
    put(pool, l.id, 0, &data)?;
    put(pool, l.id, (64 << 20) - 4096, &data[..4096])?;
    let s = shot(&l);
    take(pool, std::slice::from_ref(&s))?;
    put(pool, l.id, 0, &pattern(1, MIB))?;
    let c = from(&s, SourceMode::Copied, 128);
    same("create", ok("create", pool.create(&c, &soon()))?, Change::Done)?;
    same("get", ok("get", pool.get(c.id, &soon()))?, Some(whole(&c)))?;
    copy_all(pool, &s, &c, &[])?;
    let done = Label { copied: None, ..c.clone() };
    same("get", ok("get", pool.get(c.id, &soon()))?, Some(whole(&done)))?;
    // It depends on nothing.
    ok("destroy of the snapshot", pool.destroy_snapshot(s.key, &soon()))?;
    ok("destroy of the source", pool.destroy(l.id, &soon()))?;
    holds(pool, c.id, 0, &data, "the bytes of then")?;
    holds(pool, c.id, 1 << 20, &vec![0; 62 * MIB], "zeros in the middle")?;
    holds(pool, c.id, (64 << 20) - 4096, &data[..4096], "the last bytes")?;
    holds(pool, c.id, 64 << 20, &vec![0; 64 * MIB], "zeros behind them")
}

fn copy_in_parts(_: &Subject, pool: &dyn Pool) -> Check {
    let l = thin(16);
    ok("create", pool.create(&l, &soon()))?;
    let data = pattern(5, 16 * MIB);
    put(pool, l.id, 0, &data)?;
    let s = shot(&l);
    take(pool, std::slice::from_ref(&s))?;
    let c = from(&s, SourceMode::Copied, 16);
    ok("create", pool.create(&c, &soon()))?;
    copy_all(pool, &s, &c, &[3 << 20, (7 << 20) + 4096])?;
    // A second reader of the same volume's snapshots, and a first one that goes before it.
    let other = shot(&l);
    take(pool, std::slice::from_ref(&other))?;
    let first = ok("read", pool.read(s.key, &soon()))?;
    let second = ok("read", pool.read(other.key, &soon()))?;
    drop(first);
    ok("done reading", pool.done_reading(s.key, &soon()))?;
    let third = ok("read again", pool.read(other.key, &soon()))?;
    drop((second, third));
    ok("done reading", pool.done_reading(other.key, &soon()))?;
    ok("done reading", pool.done_reading(other.key, &soon()))?;
    holds(pool, c.id, 0, &data, "all of it")
}

fn crash_in_snapshot(subject: &Subject, pool: &dyn Pool) -> Check {
    // In ZFS the label is part of the snapshot: there is nothing in between.
    let Some(volumes) = images(subject) else { return Ok(()) };
    let dir = volumes.with_file_name("snapshots");
    let l = thin(16);
    ok("create", pool.create(&l, &soon()))?;
    for stage in 0..3 {
        let leave = |s: &SnapshotLabel| -> Check {
            let file = |suffix: &str| dir.join(format!("{}{suffix}", s.key));
            if stage == 0 {
                return ok("writing", std::fs::write(file(".json.tmp"), "{\"v\""));
            }
            ok("writing", std::fs::write(file(".json"), s.to_json()))?;
            if stage == 2 { ok("writing", std::fs::write(file(".img.tmp"), "half")) } else { Ok(()) }
        };
        let s = shot(&l);
        leave(&s)?;
        let listed = ok("list", pool.list(&soon()))?;
        same(format!("partial, stage {stage}"), listed.partial_snapshots, vec![s.key])?;
        expect(listed.snapshots.is_empty() && listed.strays.is_empty(), "nothing else", &stage)?;
        same("get", ok("get", pool.get_snapshot(s.key, &soon()))?, None)?;
        take(pool, std::slice::from_ref(&s))?;
        same("destroy", ok("destroy", pool.destroy_snapshot(s.key, &soon()))?, Change::Done)?;
        let s = shot(&l);
        leave(&s)?;
        same("destroy", ok("destroy", pool.destroy_snapshot(s.key, &soon()))?, Change::Done)?;
        same("again", ok("destroy", pool.destroy_snapshot(s.key, &soon()))?, Change::Unchanged)?;
    }
    let s = shot(&l);
    take(pool, std::slice::from_ref(&s))?;
    let label = dir.join(format!("{}.json", s.key));
    ok("writing", std::fs::write(&label, "{}"))?;
    let strays = ok("list", pool.list(&soon()))?.strays;
    expect(strays.len() == 1 && strays[0].labelled, "a damaged label is listed", &strays)?;
    let r = pool.destroy_snapshot(s.key, &soon());
    expect(matches!(r, Err(PoolError::Conflict { .. })), "and left alone", &r)?;
    ok("writing", std::fs::write(&label, s.to_json()))
}

fn overrun(_: &Subject, pool: &dyn Pool) -> Check {
    let l = thin(16);
    ok("create", pool.create(&l, &soon()))?;
    let late = Deadline::after(Duration::ZERO);
    let s = shot(&l);
    let r = pool.snapshot(std::slice::from_ref(&s), &late);
    expect(matches!(r, Err(PoolError::Deadline { .. })), "snapshot", &r)?;
    same("get", ok("get", pool.get_snapshot(s.key, &soon()))?, None)?;
    take(pool, std::slice::from_ref(&s))?;
    let r = pool.destroy_snapshot(s.key, &late);
    expect(matches!(r, Err(PoolError::Deadline { .. })), "destroy", &r)?;
    same("destroy", ok("destroy", pool.destroy_snapshot(s.key, &soon()))?, Change::Done)
}

fn many(_: &Subject, pool: &dyn Pool) -> Check {
    let l = thin(16);
    ok("create", pool.create(&l, &soon()))?;
    // A thousand where one takes no time; in an emulated guest each waits for a transaction group.
    let count = match pool.kind() {
        orlop_api::PoolKind::Zfs => 50,
        orlop_api::PoolKind::Lvm => 20,
        _ => 1000,
    };
    let mut keys: Vec<SnapshotKey> = Vec::new();
    for some in 0..count / 10 {
        for i in 0..10u8 {
            let s = shot(&l);
            if i == 0 {
                put(pool, l.id, 0, &pattern(some as u8, 4096))?;
            }
            take(pool, std::slice::from_ref(&s))?;
            keys.push(s.key);
        }
    }
    let listed = ok("list", pool.list(&soon()))?.snapshots;
    expect(listed.iter().map(|s| s.key).eq(keys.iter().copied()), "all of them in order", &listed.len())?;
    for (some, at) in [(0, 0), (count / 10 - 1, count - 1)] {
        let c = linked(&listed[at], 16);
        ok("clone", pool.create(&c, &soon()))?;
        holds(pool, c.id, 0, &pattern(some as u8, 4096), "the bytes of its time")?;
        ok("destroy", pool.destroy(c.id, &soon()))?;
    }
    for key in keys {
        ok("destroy", pool.destroy_snapshot(key, &soon()))?;
    }
    Ok(())
}
