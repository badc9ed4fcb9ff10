//! Thin and thick, and what happens when there is no room.

use orlop_api::ByteSize;

use super::*;
use crate::pool::PoolError;

pub(super) const ALL: &[(&str, Run)] = &[
    ("a thin volume takes little, a thick one all of it", reserves),
    ("space comes back when a volume is destroyed", comes_back),
    ("more than the pool is exhausted, thin or thick", larger_than_pool),
    ("a thick volume that does not fit leaves nothing", no_room),
    ("a grow that does not fit leaves the volume as it was", no_room_to_grow),
];

/// What a pool's numbers may be off by: metadata of file systems, and others who write to them.
pub(super) const SLACK: u64 = 24 << 20;

/// What may stay away after space was freed: btrfs keeps a chunk (two of 32 MiB) that it has given to
/// metadata in the meantime.
const KEPT: u64 = 96 << 20;

/// Whether nobody else writes to what the pool is on. A simulation may be in anyone's directory.
pub(super) fn alone(subject: &Subject) -> bool {
    !matches!(subject.spec.medium, PoolMedium::Sim { .. })
}

fn available(pool: &dyn Pool) -> Result<u64, String> {
    Ok(ok("capacity", pool.capacity(&soon()))?.available.bytes())
}

/// Available once all that was taken and freed has been counted: btrfs and ZFS do that when they commit.
pub(super) fn quiet(pool: &dyn Pool) -> Result<u64, String> {
    rustix::fs::sync();
    available(pool)
}

/// Waits until space has come back: file systems and ZFS free it a moment after.
pub(super) fn settles(pool: &dyn Pool, least: u64) -> Check {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let now = available(pool)?;
        if now >= least {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(format!("{now} bytes are available, and should be at least {least}"));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn reserves(subject: &Subject, pool: &dyn Pool) -> Check {
    if !alone(subject) {
        return Ok(());
    }
    let before = quiet(pool)?;
    let l = thin(128);
    ok("create thin", pool.create(&l, &soon()))?;
    let after_thin = quiet(pool)?;
    expect(before.saturating_sub(after_thin) < SLACK, "little taken by a thin one", &(before, after_thin))?;
    let l = thick(128);
    ok("create thick", pool.create(&l, &soon()))?;
    let after = quiet(pool)?;
    let taken = after_thin.saturating_sub(after);
    expect(taken >= (128 << 20) - SLACK, "all of a thick one reserved", &taken)?;
    // Larger by half: so is the reservation.
    ok("grow", pool.grow(&Label { size: ByteSize(192 << 20), ..l }, &soon()))?;
    let taken = after_thin.saturating_sub(quiet(pool)?);
    expect(taken >= (192 << 20) - SLACK, "the grown part reserved", &taken)
}

fn comes_back(subject: &Subject, pool: &dyn Pool) -> Check {
    if !alone(subject) {
        return Ok(());
    }
    let before = quiet(pool)?;
    let l = thick(128);
    ok("create", pool.create(&l, &soon()))?;
    ok("destroy", pool.destroy(l.id, &soon()))?;
    settles(pool, before - KEPT)
}

fn larger_than_pool(_: &Subject, pool: &dyn Pool) -> Check {
    let total = ok("capacity", pool.capacity(&soon()))?.total.bytes();
    let size = ByteSize((total / pool.granularity().bytes() + 1) * pool.granularity().bytes());
    for provisioning in [Provisioning::Thin, Provisioning::Thick] {
        let l = label(size, provisioning);
        let r = pool.create(&l, &soon());
        expect(matches!(r, Err(PoolError::Exhausted { .. })), format!("{provisioning:?}"), &r)?;
    }
    same("list", ok("list", pool.list(&soon()))?, Default::default())
}

/// A size that the pool's numbers allow and its medium may not, and one that they do not allow.
fn tight(pool: &dyn Pool) -> Result<[ByteSize; 2], String> {
    let g = pool.granularity().bytes();
    let free = available(pool)?;
    Ok([free / g * g, (free / g + 64) * g].map(ByteSize))
}

fn no_room(subject: &Subject, pool: &dyn Pool) -> Check {
    if !alone(subject) {
        return Ok(());
    }
    let before = quiet(pool)?;
    for size in tight(pool)? {
        let l = label(size, Provisioning::Thick);
        match pool.create(&l, &soon()) {
            // All of what was said to be available was.
            Ok(_) => drop(ok("destroy", pool.destroy(l.id, &soon()))?),
            Err(PoolError::Exhausted { .. }) => {}
            Err(e) => return Err(format!("{size}: {}", chain(&e))),
        }
        same("list", ok("list", pool.list(&soon()))?, Default::default())?;
        settles(pool, before - KEPT)?;
    }
    let l = label(ByteSize(tight(pool)?[1].bytes()), Provisioning::Thick);
    let r = pool.create(&l, &soon());
    expect(matches!(r, Err(PoolError::Exhausted { .. })), "more than is available", &r)
}

fn no_room_to_grow(subject: &Subject, pool: &dyn Pool) -> Check {
    if !alone(subject) {
        return Ok(());
    }
    let l = thick(64);
    ok("create", pool.create(&l, &soon()))?;
    let data = pattern(2, 1 << 20);
    write(&ok("open", pool.open(l.id, &soon()))?, 0, &data)?;
    let before = quiet(pool)?;
    for size in tight(pool)?.map(|s| ByteSize(s.bytes() + l.size.bytes())) {
        let larger = Label { size, ..l.clone() };
        let r = pool.grow(&larger, &soon());
        match r {
            Ok(_) => return ok("destroy", pool.destroy(l.id, &soon())).map(drop),
            Err(PoolError::Exhausted { .. }) => {}
            Err(e) => return Err(format!("{size}: {}", chain(&e))),
        }
        same("get", ok("get", pool.get(l.id, &soon()))?, Some(whole(&l)))?;
        settles(pool, before - KEPT)?;
    }
    let opened = ok("open", pool.open(l.id, &soon()))?;
    same("its size", opened.size, l.size)?;
    expect(read(&opened, 0, 1 << 20)? == data, "its bytes", &())?;
    ok("close", pool.close(l.id, &soon()))
}
