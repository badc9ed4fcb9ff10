//! Which blocks of a snapshot have data, or are not as in an older one: never too few, and not all.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use orlop_api::SnapshotId;
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};

use super::encryption::{KEY, again, encrypted, encrypts};
use super::snapshots::{linked, put, shot, take};
use super::*;
use crate::kernel::exec::Tool;
use crate::model::{SnapshotKey, SnapshotLabel};
use crate::pool::{Extents, KeyRing, PoolError, copy};

pub(super) const ALL: &[(&str, Run)] = &[
    ("blocks that are not told are as they were, and most are not told", told),
    ("blocks are told from anywhere, so many at a time", pages),
    ("blocks of an encrypted volume are told without its key", without_key),
    ("blocks of nothing are not found", of_nothing),
    ("what a machine without power held of a thin pool's metadata is let go of", left_held),
];

const MIB: u64 = 1 << 20;
/// More than any pool gives out at once.
const UNIT: u64 = MIB;

/// All that is told, in pages of `most`.
fn all(
    pool: &dyn Pool,
    of: &SnapshotLabel,
    base: Option<&SnapshotLabel>,
    from: u64,
    most: usize,
) -> Result<Vec<(u64, u64)>, String> {
    let mut found: Vec<(u64, u64)> = Vec::new();
    let mut next = Some(from);
    while let Some(from) = next {
        let mut extents = Extents::new(from, of.size.bytes(), most, Duration::from_secs(60));
        ok("blocks", pool.blocks(of.key, base.map(|b| b.key), &mut extents, &soon()))?;
        let (page, after) = extents.into_parts();
        expect(page.len() <= most, "a page of no more than asked for", &page.len())?;
        for extent in page {
            let good = extent.length > 0 && found.last().is_none_or(|(_, end)| *end <= extent.offset);
            expect(good && extent.end() > from, "one behind another", &(&found, extent))?;
            match found.last_mut() {
                Some((_, end)) if *end == extent.offset => *end = extent.end(),
                _ => found.push((extent.offset, extent.end())),
            }
        }
        expect(after.is_none_or(|after| after > from), "a page that goes on", &(from, after))?;
        next = after;
    }
    Ok(found)
}

/// All bytes of a snapshot.
fn content(pool: &dyn Pool, of: &SnapshotLabel) -> Result<Vec<u8>, String> {
    let size = of.size.bytes();
    let source = ok("read", pool.read(of.key, &soon()))?;
    let target = ok("memory", memfd_create("content", MemfdFlags::CLOEXEC))?;
    let target = File::from(target);
    ok("its size", target.set_len(size))?;
    ok("reading", copy::copy(&source, &target, 0, size, &copy::Watch::default(), Duration::from_secs(600)))?;
    drop(source);
    ok("done reading", pool.done_reading(of.key, &soon()))?;
    let mut bytes = vec![0; size as usize];
    ok("reading back", target.read_exact_at(&mut bytes, 0))?;
    Ok(bytes)
}

/// That who copies what is told, over what was there before, has what is there now.
fn holds_all(before: &[u8], now: &[u8], told: &[(u64, u64)]) -> Check {
    let mut have = before.to_vec();
    have.resize(now.len(), 0);
    for (start, end) in told {
        let range = *start as usize..*end as usize;
        have[range.clone()].copy_from_slice(&now[range]);
    }
    let missed = have.iter().zip(now).position(|(a, b)| a != b);
    expect(missed.is_none(), "a byte that differs and was not told of, at", &missed)
}

fn has(told: &[(u64, u64)], offset: u64) -> bool {
    told.iter().any(|(start, end)| (*start..*end).contains(&offset))
}

fn taken(pool: &dyn Pool, of: &Label) -> Result<SnapshotLabel, String> {
    let s = shot(of);
    take(pool, std::slice::from_ref(&s))?;
    Ok(s)
}

fn told(_: &Subject, pool: &dyn Pool) -> Check {
    let l = thin(64);
    ok("create", pool.create(&l, &soon()))?;
    let empty = taken(pool, &l)?;
    put(pool, l.id, MIB, &pattern(1, 4096))?;
    put(pool, l.id, 33 * MIB + 4096, &pattern(2, MIB as usize))?;
    put(pool, l.id, 50 * MIB, &pattern(3, 2 * MIB as usize))?;
    let first = taken(pool, &l)?;
    let same_again = taken(pool, &l)?;
    put(pool, l.id, 10 * MIB, &pattern(4, 4096))?;
    put(pool, l.id, 33 * MIB + 8192, &pattern(5, 512))?;
    put(pool, l.id, 64 * MIB - 4096, &pattern(6, 4096))?;
    let opened = ok("open", pool.open(l.id, &soon()))?;
    let device = ok("its device", File::options().write(true).open(opened.path()))?;
    // Where that can't be, it is written as it was.
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let discarded = fallocate(&device, flags, 50 * MIB, 2 * MIB).is_ok();
    ok("sync", device.sync_all())?;
    drop(device);
    ok("close", pool.close(l.id, &soon()))?;
    let second = taken(pool, &l)?;
    let larger = Label { size: ByteSize(96 * MIB), ..l.clone() };
    ok("grow", pool.grow(&larger, &soon()))?;
    put(pool, l.id, 90 * MIB, &pattern(7, 4096))?;
    let third = taken(pool, &larger)?;

    let (a, b, c) = (content(pool, &first)?, content(pool, &second)?, content(pool, &third)?);
    same("data of an empty volume", all(pool, &empty, None, 0, 1000)?, Vec::new())?;
    let data = all(pool, &first, None, 0, 1000)?;
    holds_all(&[], &a, &data)?;
    let length: u64 = data.iter().map(|(start, end)| end - start).sum();
    expect(length <= 3 * MIB + 4096 + 6 * UNIT, "not much more than was written", &data)?;
    let since = all(pool, &first, Some(&empty), 0, 1000)?;
    holds_all(&[], &a, &since)?;
    same("changes of an empty volume", since, data)?;
    same("nothing that changed", all(pool, &same_again, Some(&first), 0, 1000)?, Vec::new())?;
    let changed = all(pool, &second, Some(&first), 0, 1000)?;
    holds_all(&a, &b, &changed)?;
    for (offset, is_told) in [(MIB, false), (10 * MIB, true), (33 * MIB + 8192, true), (20 * MIB, false)] {
        expect(has(&changed, offset) == is_told, format!("told of {offset}: {is_told}"), &changed)?;
    }
    expect(has(&changed, 50 * MIB) == discarded, "told of what was discarded", &changed)?;
    same("from another one that is the same", all(pool, &second, Some(&same_again), 0, 1000)?, changed)?;
    let grown = all(pool, &third, Some(&second), 0, 1000)?;
    holds_all(&b, &c, &grown)?;
    expect(has(&grown, 90 * MIB) && !has(&grown, 10 * MIB), "told of what was added", &grown)?;
    holds_all(&a, &c, &all(pool, &third, Some(&first), 0, 1000)?)?;
    holds_all(&[], &c, &all(pool, &third, None, 0, 1000)?)?;
    // A clone has all of its source, and its own.
    let clone = linked(&second, 64);
    ok("clone", pool.create(&clone, &soon()))?;
    put(pool, clone.id, 20 * MIB, &pattern(8, 4096))?;
    let of_clone = taken(pool, &clone)?;
    holds_all(&[], &content(pool, &of_clone)?, &all(pool, &of_clone, None, 0, 1000)?)
}

fn pages(_: &Subject, pool: &dyn Pool) -> Check {
    let l = thin(64);
    ok("create", pool.create(&l, &soon()))?;
    put(pool, l.id, 62 * MIB, &pattern(9, 65536))?;
    let before = taken(pool, &l)?;
    for n in 0..8 {
        put(pool, l.id, (8 * n + 1) * MIB, &pattern(n as u8 + 1, 65536))?;
    }
    let s = taken(pool, &l)?;
    for (base, many) in [(None, 9), (Some(&before), 8)] {
        let whole = all(pool, &s, base, 0, 1000)?;
        same("that many", whole.len(), many)?;
        for most in [1, 3, 8] {
            same(format!("in pages of {most}"), all(pool, &s, base, 0, most)?, whole.clone())?;
        }
        // In the middle of one, right behind one, and at the end.
        for from in [whole[2].0 + 4096, whole[2].1, whole[7].0 + 1, 64 * MIB] {
            let rest: Vec<_> = whole.iter().filter(|(_, end)| *end > from).collect();
            let found = all(pool, &s, base, from, 2)?;
            same(
                format!("from {from}"),
                found.iter().map(|(_, end)| *end).collect(),
                rest.iter().map(|(_, end)| *end).collect::<Vec<_>>(),
            )?;
            let begins = found.first().is_none_or(|(start, _)| *start >= from.min(rest[0].0));
            expect(begins, format!("from {from}"), &found)?;
        }
    }
    Ok(())
}

fn without_key(subject: &Subject, pool: &dyn Pool) -> Check {
    if !encrypts(pool) {
        return Ok(());
    }
    let l = encrypted(thin(64));
    subject.env.keys.put(l.id, parse(KEY));
    ok("create", pool.create(&l, &soon()))?;
    put(pool, l.id, 3 * MIB, &pattern(1, 65536))?;
    let first = taken(pool, &l)?;
    put(pool, l.id, 40 * MIB, &pattern(2, 65536))?;
    let second = taken(pool, &l)?;
    let (a, b) = (content(pool, &first)?, content(pool, &second)?);
    let changed = all(pool, &second, Some(&first), 0, 1000)?;
    holds_all(&a, &b, &changed)?;
    expect(has(&changed, 40 * MIB) && !has(&changed, 3 * MIB), "told of what was written", &changed)?;
    let data = all(pool, &second, None, 0, 1000)?;
    expect(has(&data, 3 * MIB) && has(&data, 40 * MIB) && !has(&data, 20 * MIB), "its data", &data)?;
    let pool = again(subject, pool, &KeyRing::default())?;
    let locked = pool.read(second.key, &soon());
    expect(matches!(locked, Err(PoolError::Locked { .. })), "it is locked", &locked.is_ok())?;
    same("without the key", all(&*pool, &second, Some(&first), 0, 1000)?, changed)?;
    same("all of it", all(&*pool, &second, None, 0, 1000)?, data)
}

/// Has the kernel hold the metadata of the subject's thin pool, as a reader does. Whether it did.
fn hold(subject: &Subject) -> Result<bool, String> {
    let tool = ok("dmsetup", Tool::locate("dmsetup"))?;
    let pool = format!("{}-thin-tpool", subject.spec.name.as_str().replace('-', "--"));
    let told = ok("dmsetup", tool.run(&["message", &pool, "0", "reserve_metadata_snap"], &soon()))?;
    Ok(told.code == Some(0))
}

fn left_held(subject: &Subject, pool: &dyn Pool) -> Check {
    if pool.kind() != PoolKind::Lvm {
        return Ok(());
    }
    let l = thin(16);
    ok("create", pool.create(&l, &soon()))?;
    put(pool, l.id, 3 * MIB, &pattern(1, 65536))?;
    let s = taken(pool, &l)?;
    // The next reader finds it, or who looks how much room there is.
    expect(hold(subject)?, "its metadata is held", &())?;
    expect(has(&all(pool, &s, None, 0, 10)?, 3 * MIB), "what is in it is told", &())?;
    expect(hold(subject)?, "nobody holds it any more", &())?;
    ok("capacity", pool.capacity(&soon()))?;
    expect(hold(subject)?, "nor afterwards", &())?;
    ok("capacity", pool.capacity(&soon())).map(drop)
}

fn of_nothing(_: &Subject, pool: &dyn Pool) -> Check {
    let l = thin(16);
    ok("create", pool.create(&l, &soon()))?;
    let s = taken(pool, &l)?;
    let none = SnapshotKey { volume: l.id, id: SnapshotId::mint() };
    for (of, base) in [(none, None), (s.key, Some(none)), (none, Some(s.key))] {
        let mut found = Extents::new(0, 16 * MIB, 10, Duration::from_secs(60));
        let r = pool.blocks(of, base, &mut found, &soon());
        expect(matches!(r, Err(PoolError::NotFound { .. })), "not found", &r)?;
    }
    Ok(())
}
