//! Making, reading back, growing, relabelling, destroying, opening and closing.

use std::sync::atomic::{AtomicUsize, Ordering};

use orlop_api::{ByteSize, PoolKind};

use super::*;
use crate::model::{Grant, HostRecord, LabelHost};
use crate::pool::{Change, PoolError};

pub(super) const ALL: &[(&str, Run)] = &[
    ("an empty pool lists nothing", empty),
    ("create makes what get and list read back", create),
    ("create again changes nothing", create_again),
    ("create of another volume under an id is a conflict", create_conflict),
    ("a size that is no whole number of blocks is refused", odd_size),
    ("a new volume reads as zeros", zeros),
    ("what was written is there after close and open", persists),
    ("what was written is there after the pool was opened anew", persists_reopened),
    ("open twice gives one device", open_twice),
    ("close twice, and close of nothing, are fine", close_twice),
    ("open of nothing is not found", open_nothing),
    ("grow keeps data and reads zeros behind it", grow),
    ("grow of an open volume is seen by its device", grow_open),
    ("grow again changes nothing", grow_again),
    ("a volume is never made smaller", shrink),
    ("relabel replaces the label whole", relabel),
    ("destroy removes it, and again is fine", destroy),
    ("a destroyed volume's neighbours stay", neighbours),
    ("many volumes are listed in order", many),
    ("eight threads make and destroy at once", threads),
    ("an overrun deadline makes nothing", overrun),
    ("where all is well nothing is done to disks", disks_stay),
];

/// The daemon asks for these by itself, again and again.
fn disks_stay(subject: &Subject, pool: &dyn Pool) -> Check {
    // Where it has no redundancy only ZFS knows anything of them.
    let knows = pool.kind() == orlop_api::PoolKind::Zfs || !subject.spec.arrays().is_empty();
    let minds = pool.features().minds_disks && knows;
    let health = ok("health", pool.health(None, &soon()))?;
    same("whether it tells of its disks", health.is_some(), minds)?;
    for _ in 0..2 {
        same("take back", ok("take back", pool.take_back(&soon()))?, Change::Unchanged)?;
        same("mind spares", ok("mind spares", pool.mind_spares(&soon()))?, Change::Unchanged)?;
    }
    let disks = |h: Option<orlop_api::PoolHealth>| h.map(|h| h.disks);
    let after = ok("health", pool.health(None, &soon()))?;
    same("its disks", disks(after), disks(health))
}

fn empty(_: &Subject, pool: &dyn Pool) -> Check {
    let l = ok("list", pool.list(&soon()))?;
    expect(l == Default::default(), "an empty listing", &l)?;
    let c = ok("capacity", pool.capacity(&soon()))?;
    expect(c.total.bytes() > 0 && c.available <= c.total && c.used <= c.total, "a capacity", &c)
}

fn create(_: &Subject, pool: &dyn Pool) -> Check {
    for l in [thin(16), thick(16)] {
        same("create", ok("create", pool.create(&l, &soon()))?, Change::Done)?;
        same("get", ok("get", pool.get(l.id, &soon()))?, Some(whole(&l)))?;
        let listed = ok("list", pool.list(&soon()))?;
        expect(listed.volumes.contains(&whole(&l)), "the volume in the listing", &listed)?;
        expect(listed.partial.is_empty() && listed.strays.is_empty(), "nothing else", &listed)?;
    }
    Ok(())
}

fn create_again(_: &Subject, pool: &dyn Pool) -> Check {
    for l in [thin(16), thick(16)] {
        same("create", ok("create", pool.create(&l, &soon()))?, Change::Done)?;
        same("again", ok("create", pool.create(&l, &soon()))?, Change::Unchanged)?;
        same("get", ok("get", pool.get(l.id, &soon()))?, Some(whole(&l)))?;
    }
    Ok(())
}

fn create_conflict(_: &Subject, pool: &dyn Pool) -> Check {
    let l = thin(16);
    ok("create", pool.create(&l, &soon()))?;
    let larger = Label { size: ByteSize(32 << 20), ..l.clone() };
    let thick = Label { provisioning: Provisioning::Thick, ..l.clone() };
    let renamed = Label { name: parse("other"), ..l.clone() };
    let given = Label { tenant: parse("other"), ..l.clone() };
    for other in [larger, thick, renamed, given] {
        let r = pool.create(&other, &soon());
        expect(matches!(r, Err(PoolError::Conflict { .. })), "a conflict", &r)?;
    }
    same("get", ok("get", pool.get(l.id, &soon()))?, Some(whole(&l)))
}

fn odd_size(_: &Subject, pool: &dyn Pool) -> Check {
    let g = pool.granularity().bytes();
    for size in [0, g - 1, g + 1, (16 << 20) + 512] {
        let l = label(ByteSize(size), Provisioning::Thin);
        let r = pool.create(&l, &soon());
        expect(matches!(r, Err(PoolError::Precondition { .. })), format!("size {size}"), &r)?;
        same("get", ok("get", pool.get(l.id, &soon()))?, None)?;
    }
    let l = label(ByteSize(g * 3), Provisioning::Thin);
    ok("three blocks", pool.create(&l, &soon()))?;
    let opened = ok("open", pool.open(l.id, &soon()))?;
    same("its size", opened.size, l.size)?;
    ok("close", pool.close(l.id, &soon()))
}

fn zeros(_: &Subject, pool: &dyn Pool) -> Check {
    for l in [thin(16), thick(16)] {
        ok("create", pool.create(&l, &soon()))?;
        let opened = ok("open", pool.open(l.id, &soon()))?;
        same("its size", opened.size, l.size)?;
        let bytes = read(&opened, 0, 16 << 20)?;
        expect(bytes.iter().all(|b| *b == 0), "zeros", &())?;
        ok("close", pool.close(l.id, &soon()))?;
    }
    Ok(())
}

fn persists(_: &Subject, pool: &dyn Pool) -> Check {
    let l = thin(16);
    ok("create", pool.create(&l, &soon()))?;
    let data = pattern(3, 1 << 20);
    let opened = ok("open", pool.open(l.id, &soon()))?;
    write(&opened, 0, &data)?;
    // The very last block as well, and one of 512 bytes: initiators may write so.
    write(&opened, (16 << 20) - 4096, &data[..4096])?;
    write(&opened, (8 << 20) + 512, &data[..512])?;
    ok("close", pool.close(l.id, &soon()))?;
    let opened = ok("open", pool.open(l.id, &soon()))?;
    expect(read(&opened, 0, 1 << 20)? == data, "the bytes at the start", &())?;
    expect(read(&opened, (16 << 20) - 4096, 4096)? == data[..4096], "the bytes at the end", &())?;
    expect(read(&opened, (8 << 20) + 512, 512)? == data[..512], "the small write", &())?;
    ok("close", pool.close(l.id, &soon()))
}

fn persists_reopened(subject: &Subject, pool: &dyn Pool) -> Check {
    let l = thin(16);
    ok("create", pool.create(&l, &soon()))?;
    let data = pattern(9, 64 << 10);
    let opened = ok("open", pool.open(l.id, &soon()))?;
    write(&opened, 4096, &data)?;
    // A second daemon's view: as after a restart with the volume still in use.
    let again = reopen(subject)?;
    same("get", ok("get", again.get(l.id, &soon()))?, Some(whole(&l)))?;
    same("its device", ok("open", again.open(l.id, &soon()))?, opened.clone())?;
    expect(read(&opened, 4096, 64 << 10)? == data, "the bytes", &())?;
    ok("close", again.close(l.id, &soon()))?;
    let opened = ok("open", pool.open(l.id, &soon()))?;
    expect(read(&opened, 4096, 64 << 10)? == data, "the bytes after close", &())?;
    ok("close", pool.close(l.id, &soon()))
}

fn open_twice(_: &Subject, pool: &dyn Pool) -> Check {
    let (a, b) = (thin(16), thin(16));
    ok("create", pool.create(&a, &soon()))?;
    ok("create", pool.create(&b, &soon()))?;
    let first = ok("open", pool.open(a.id, &soon()))?;
    same("the second time", ok("open", pool.open(a.id, &soon()))?, first.clone())?;
    same("by its label", ok("open", pool.open_known(&a, &soon()))?, first.clone())?;
    let old = Label { size: ByteSize(8 << 20), ..a.clone() };
    same("by an old label", ok("open", pool.open_known(&old, &soon()))?, first.clone())?;
    let other = ok("open", pool.open(b.id, &soon()))?;
    expect(other.path() != first.path(), "another volume, another device", &other)?;
    expect(!is_link(first.path()), "a device and not a link to one", &first)?;
    ok("close", pool.close(a.id, &soon()))?;
    ok("close", pool.close(b.id, &soon()))
}

fn close_twice(_: &Subject, pool: &dyn Pool) -> Check {
    let l = thin(16);
    ok("close of nothing", pool.close(l.id, &soon()))?;
    ok("create", pool.create(&l, &soon()))?;
    ok("close of a closed one", pool.close(l.id, &soon()))?;
    ok("open", pool.open(l.id, &soon()))?;
    ok("close", pool.close(l.id, &soon()))?;
    ok("close again", pool.close(l.id, &soon()))
}

fn open_nothing(_: &Subject, pool: &dyn Pool) -> Check {
    let l = thin(16);
    let r = pool.open(l.id, &soon());
    expect(matches!(r, Err(PoolError::NotFound { .. })), "open", &r)?;
    let r = pool.open_known(&l, &soon());
    expect(matches!(r, Err(PoolError::NotFound { .. })), "open by its label", &r)?;
    let r = pool.grow(&l, &soon());
    expect(matches!(r, Err(PoolError::NotFound { .. })), "grow", &r)?;
    let r = pool.set(&l, &soon());
    expect(matches!(r, Err(PoolError::NotFound { .. })), "set", &r)?;
    let r = pool.relabel(&l, &soon());
    expect(matches!(r, Err(PoolError::NotFound { .. })), "relabel", &r)?;
    same("get", ok("get", pool.get(l.id, &soon()))?, None)
}

fn grow(_: &Subject, pool: &dyn Pool) -> Check {
    for l in [thin(16), thick(16)] {
        ok("create", pool.create(&l, &soon()))?;
        // At both ends: where a grow could begin too early, or put something else.
        let (first, last) = (pattern(5, 1 << 20), pattern(6, 1 << 20));
        let opened = ok("open", pool.open(l.id, &soon()))?;
        write(&opened, 0, &first)?;
        write(&opened, 15 << 20, &last)?;
        ok("close", pool.close(l.id, &soon()))?;
        let larger = Label { size: ByteSize(24 << 20), ..l };
        same("grow", ok("grow", pool.grow(&larger, &soon()))?, Change::Done)?;
        same("get", ok("get", pool.get(larger.id, &soon()))?, Some(whole(&larger)))?;
        let opened = ok("open", pool.open(larger.id, &soon()))?;
        same("its size", opened.size, larger.size)?;
        expect(read(&opened, 0, 1 << 20)? == first, "the first bytes", &())?;
        expect(read(&opened, 15 << 20, 1 << 20)? == last, "the last bytes", &())?;
        expect(read(&opened, 16 << 20, 8 << 20)?.iter().all(|b| *b == 0), "zeros behind them", &())?;
        ok("close", pool.close(larger.id, &soon()))?;
    }
    Ok(())
}

fn grow_open(_: &Subject, pool: &dyn Pool) -> Check {
    let l = thin(16);
    ok("create", pool.create(&l, &soon()))?;
    let before = ok("open", pool.open(l.id, &soon()))?;
    // Held open throughout, as a target does.
    let held = ok("holding the device", File::open(before.path()))?;
    let larger = Label { size: ByteSize(32 << 20), ..l };
    same("grow", ok("grow", pool.grow(&larger, &soon()))?, Change::Done)?;
    let seen = ok("measuring", crate::kernel::block::size(&held))?;
    same("the size of the open device", seen, 32 << 20)?;
    let after = ok("open", pool.open(larger.id, &soon()))?;
    same("its device", after, Opened { size: larger.size, ..before })?;
    drop(held);
    ok("close", pool.close(larger.id, &soon()))
}

fn grow_again(_: &Subject, pool: &dyn Pool) -> Check {
    let l = thin(16);
    ok("create", pool.create(&l, &soon()))?;
    same("to its own size", ok("grow", pool.grow(&l, &soon()))?, Change::Unchanged)?;
    let larger = Label { size: ByteSize(32 << 20), ..l };
    same("grow", ok("grow", pool.grow(&larger, &soon()))?, Change::Done)?;
    same("again", ok("grow", pool.grow(&larger, &soon()))?, Change::Unchanged)?;
    same("get", ok("get", pool.get(larger.id, &soon()))?, Some(whole(&larger)))
}

fn shrink(_: &Subject, pool: &dyn Pool) -> Check {
    let l = thin(32);
    ok("create", pool.create(&l, &soon()))?;
    let smaller = Label { size: ByteSize(16 << 20), ..l.clone() };
    let r = pool.grow(&smaller, &soon());
    expect(matches!(r, Err(PoolError::Conflict { .. })), "a conflict", &r)?;
    same("get", ok("get", pool.get(l.id, &soon()))?, Some(whole(&l)))
}

fn relabel(_: &Subject, pool: &dyn Pool) -> Check {
    let l = thin(16);
    ok("create", pool.create(&l, &soon()))?;
    let host = |i: usize| LabelHost {
        name: parse(&format!("worker-{i}")),
        nqn: Some(parse(&format!("nqn.2014-08.org.nvmexpress:uuid:0190c0de-0000-7000-8000-{i:012}"))),
        authenticated: i.is_multiple_of(2),
        ..LabelHost::of(
            &parse("any"),
            &HostRecord::default(),
            Grant { read_only: i == 3 },
            orlop_api::Protocol::Nvme,
        )
    };
    // Longer, then shorter: nothing of the longer one may be left.
    for hosts in [40, 1, 0] {
        let next = Label { hosts: (0..hosts).map(host).collect(), ..l.clone() };
        ok("relabel", pool.relabel(&next, &soon()))?;
        same("get", ok("get", pool.get(l.id, &soon()))?, Some(whole(&next)))?;
    }
    // A replayed request does not know the hosts, and does not take them away.
    let hosts = Label { hosts: vec![host(7)], ..l.clone() };
    ok("relabel", pool.relabel(&hosts, &soon()))?;
    same("create again", ok("create", pool.create(&l, &soon()))?, Change::Unchanged)?;
    same("get", ok("get", pool.get(l.id, &soon()))?, Some(whole(&hosts)))
}

fn destroy(_: &Subject, pool: &dyn Pool) -> Check {
    let l = thin(16);
    same("of nothing", ok("destroy", pool.destroy(l.id, &soon()))?, Change::Unchanged)?;
    ok("create", pool.create(&l, &soon()))?;
    write(&ok("open", pool.open(l.id, &soon()))?, 0, &pattern(1, 1 << 20))?;
    ok("close", pool.close(l.id, &soon()))?;
    same("destroy", ok("destroy", pool.destroy(l.id, &soon()))?, Change::Done)?;
    same("get", ok("get", pool.get(l.id, &soon()))?, None)?;
    same("list", ok("list", pool.list(&soon()))?, Default::default())?;
    same("again", ok("destroy", pool.destroy(l.id, &soon()))?, Change::Unchanged)?;
    for r in [pool.open(l.id, &soon()), pool.open_known(&l, &soon())] {
        expect(matches!(r, Err(PoolError::NotFound { .. })), "open of a destroyed one", &r)?;
    }
    Ok(())
}

fn neighbours(_: &Subject, pool: &dyn Pool) -> Check {
    let (a, b) = (thin(16), thin(16));
    ok("create", pool.create(&a, &soon()))?;
    ok("create", pool.create(&b, &soon()))?;
    let data = pattern(7, 1 << 20);
    let opened = ok("open", pool.open(b.id, &soon()))?;
    write(&opened, 0, &data)?;
    ok("destroy", pool.destroy(a.id, &soon()))?;
    same("get", ok("get", pool.get(b.id, &soon()))?, Some(whole(&b)))?;
    expect(read(&opened, 0, 1 << 20)? == data, "the neighbour's bytes", &())?;
    ok("close", pool.close(b.id, &soon()))
}

/// Runs `work` for each of `n` numbers on eight threads, and gives back the first failure.
fn parallel(n: usize, work: impl Fn(usize) -> Check + Sync) -> Check {
    let next = AtomicUsize::new(0);
    let results: Vec<Check> = std::thread::scope(|s| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                s.spawn(|| {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        if i >= n {
                            return Ok(());
                        }
                        work(i)?;
                    }
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err("a thread panicked".into()))).collect()
    });
    results.into_iter().collect()
}

fn many(_: &Subject, pool: &dyn Pool) -> Check {
    // Where each waits for a transaction group or starts processes, in an emulated guest, fewer.
    let count = match pool.kind() {
        PoolKind::Zfs => 40,
        PoolKind::Lvm => 12,
        _ => 100,
    };
    let labels: Vec<Label> = (0..count).map(|_| thin(1)).collect();
    parallel(count, |i| ok("create", pool.create(&labels[i], &soon())).map(drop))?;
    let listed = ok("list", pool.list(&soon()))?;
    let mut wanted: Vec<Stored> = labels.iter().map(whole).collect();
    wanted.sort_by_key(|s| s.label.id);
    expect(listed.volumes == wanted, "all of them in order", &listed.volumes.len())?;
    parallel(count, |i| ok("destroy", pool.destroy(labels[i].id, &soon())).map(drop))
}

fn threads(_: &Subject, pool: &dyn Pool) -> Check {
    let rounds = match pool.kind() {
        PoolKind::Zfs => 24,
        PoolKind::Lvm => 6,
        _ => 64,
    };
    parallel(rounds, |i| {
        let l = if i % 3 == 0 { thick(2) } else { thin(2) };
        same("create", ok("create", pool.create(&l, &soon()))?, Change::Done)?;
        let data = pattern(i as u8, 64 << 10);
        let opened = ok("open", pool.open(l.id, &soon()))?;
        same("its size", opened.size, l.size)?;
        expect(read(&opened, 0, 64 << 10)?.iter().all(|b| *b == 0), "zeros", &opened)?;
        write(&opened, 0, &data)?;
        expect(read(&opened, 0, 64 << 10)? == data, "its own bytes", &opened)?;
        ok("close", pool.close(l.id, &soon()))?;
        same("destroy", ok("destroy", pool.destroy(l.id, &soon()))?, Change::Done)?;
        same("get", ok("get", pool.get(l.id, &soon()))?, None)
    })
}

fn overrun(_: &Subject, pool: &dyn Pool) -> Check {
    let l = thin(16);
    let late = Deadline::after(Duration::ZERO);
    let r = pool.create(&l, &late);
    expect(matches!(r, Err(PoolError::Deadline { .. })), "create", &r)?;
    same("get", ok("get", pool.get(l.id, &soon()))?, None)?;
    // And by the next attempt it is made as if nothing had been.
    same("create", ok("create", pool.create(&l, &soon()))?, Change::Done)?;
    let r = pool.destroy(l.id, &late);
    expect(matches!(r, Err(PoolError::Deadline { .. })), "destroy", &r)?;
    same("destroy", ok("destroy", pool.destroy(l.id, &soon()))?, Change::Done)
}
