//! Disks that fail under pools that the kernel's md holds together: LVM on mirrors, files on RAID 5.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use orlop_api::{
    ByteSize, DiskUsage, ErrorKind, Filesystem, PoolCreate, PoolExpand, PoolHealth, PoolHealthState,
    PoolKind, PoolLayout, PoolName, PoolReplace, PoolScanKind, PoolScanState, PoolState, VolumeRef,
    VolumeState,
};
use orlop_tests::wait_for;

use crate::disks::{disk, pull, put_back};
use crate::world::{World, refused};

fn wait_health(
    w: &World,
    pool: &PoolName,
    what: &str,
    holds: impl Fn(&PoolHealth) -> bool,
) -> Result<PoolHealth> {
    let mut last = None;
    let waited = wait_for(what, Duration::from_secs(120), || {
        // Of one that has just come up it is not known yet.
        last = w.api(w.lab.api.pool(pool))?.health;
        Ok(last.as_ref().is_some_and(&holds))
    });
    waited.with_context(|| format!("{last:#?}"))?;
    last.context("it was never read")
}

fn is_ok(h: &PoolHealth) -> bool {
    h.state == PoolHealthState::Ok
}

fn is_degraded(h: &PoolHealth) -> bool {
    h.state == PoolHealthState::Degraded
}

fn alarmed(w: &World, pool: &PoolName) -> Result<bool> {
    let alarms = w.api(w.lab.api.system())?.alarms;
    Ok(alarms.iter().any(|a| a.subject == format!("pool/{pool}/health")))
}

fn is_blank(w: &World, n: u8) -> Result<bool> {
    let disks = w.api(w.lab.api.disks())?;
    let found = disks.iter().find(|d| d.by_id.as_deref() == Some(&disk(n))).context("no such disk")?;
    Ok(found.usage == DiskUsage::Blank)
}

/// The kernel takes a stopped array away when nobody has its device open any more.
fn no_array_is_left(w: &mut World) -> Result<()> {
    wait_for("arrays to be gone", Duration::from_secs(10), || {
        Ok(w.lab.on_appliance("ls /sys/block")?.lines().all(|l| !l.starts_with("md")))
    })
}

/// What makes no array is refused, and no disk is touched for it.
fn bad_layouts(w: &World, ask: &PoolCreate) -> Result<()> {
    let no = |ask: PoolCreate, kind| refused(w.api(w.lab.api.create_pool(&ask)), kind);
    for (layout, disks) in [
        (PoolLayout::Mirror, vec![1]),
        (PoolLayout::Raid5, vec![1, 2]),
        (PoolLayout::Raid10, vec![1, 2, 3]),
        (PoolLayout::Raidz1, vec![1, 2, 3]),
    ] {
        let disks = disks.into_iter().map(disk).collect();
        no(PoolCreate { layout: Some(layout), disks, ..ask.clone() }, ErrorKind::Invalid)?;
    }
    let used = vec![disk(1), "/dev/disk/by-id/virtio-used0".to_string()];
    no(PoolCreate { disks: used, ..ask.clone() }, ErrorKind::Precondition)?;
    ensure!(is_blank(w, 1)?, "a refused pool has left something on a disk");
    Ok(())
}

pub fn lvm_survives_lost_disks(w: &mut World) -> Result<()> {
    let pool: PoolName = "pairs".parse()?;
    let ask = PoolCreate {
        disks: vec![disk(1), disk(2)],
        layout: Some(PoolLayout::Mirror),
        ..PoolCreate::new(pool.clone(), PoolKind::Lvm)
    };
    bad_layouts(w, &ask)?;
    let made = w.api(w.lab.api.create_pool(&ask))?;
    ensure!(made.total < ByteSize(1 << 30), "a mirror has the space of one disk: {}", made.total);
    w.api(w.lab.api.create_pool(&ask)).context("the same again")?;
    let h = wait_health(w, &pool, "its health", |h| is_ok(h) && h.disks.len() == 2)?;
    ensure!(h.disks.iter().all(|d| d.name.contains("safe") && d.state == "online"), "{h:#?}");

    let volume = w.volume("kept-in-pairs", "pairs", 256)?;
    let a = w.attach(&volume, 1)?;
    let path = w.lab.initiator.connect(&a, 1, 1)?;
    w.lab.initiator.start_stream("pairs", &path, 0, 100_000)?;

    // Pulled and put back: it is noticed at once, and the disk catches up by itself.
    pull(w, 2)?;
    let h = wait_health(w, &pool, "a pulled disk to be noticed", is_degraded)?;
    ensure!(alarmed(w, &pool)?, "no alarm for {h:#?}");
    ensure!(h.reason.as_ref().is_some_and(|r| r.contains("safe2")), "it does not say which: {h:#?}");
    w.volume("made-meanwhile", "pairs", 64)?;
    put_back(w)?;
    let h = wait_health(w, &pool, "the disk to be taken back", is_ok)?;
    ensure!(!alarmed(w, &pool)? && h.disks.len() == 2, "{h:#?}");

    // Another one in the place of one that is there, and in the place of one that is not. What is being filled yet
    // comes first.
    wait_health(w, &pool, "the first pass", |h| {
        is_ok(h) && h.scan.as_ref().is_none_or(|s| s.state != PoolScanState::Running)
    })?;
    let replace = |disk: &str, with: &str| PoolReplace { disk: disk.into(), with: with.into() };
    let no = |w: &World, ask: &PoolReplace, kind| refused(w.api(w.lab.api.replace_disk(&pool, ask)), kind);
    no(w, &replace(&disk(1), "/dev/disk/by-id/virtio-used0"), ErrorKind::Precondition)?;
    no(w, &replace(&disk(1), &disk(2)), ErrorKind::Precondition)?;
    no(w, &replace("1234", &disk(3)), ErrorKind::Precondition)?;
    w.api(w.lab.api.replace_disk(&pool, &replace(&disk(1), &disk(3))))?;
    let h = wait_health(w, &pool, "the exchange", |h| is_ok(h) && h.disks.len() == 2)?;
    ensure!(h.disks.iter().any(|d| d.name == disk(3)), "{h:#?}");
    w.api(w.lab.api.replace_disk(&pool, &replace(&disk(1), &disk(3)))).context("the same again")?;
    ensure!(is_blank(w, 1)?, "a disk that was exchanged is free again");
    pull(w, 2)?;
    wait_health(w, &pool, "a pulled disk to be noticed", is_degraded)?;
    w.api(w.lab.api.replace_disk(&pool, &replace(&disk(2), &disk(1))))?;
    let h = wait_health(w, &pool, "the rebuild", is_ok)?;
    ensure!(h.disks.len() == 2, "{h:#?}");

    w.api(w.lab.api.scrub_pool(&pool))?;
    let h = wait_health(w, &pool, "a scrub to end", |h| {
        h.scan.as_ref().is_some_and(|s| s.kind == PoolScanKind::Scrub && s.state == PoolScanState::Finished)
    })?;
    ensure!(h.scan.as_ref().is_some_and(|s| s.errors == 0), "{h:#?}");
    w.api(w.lab.api.stop_scrub(&pool)).context("a stop of nothing")?;

    // What was pulled comes back, and is not this pool's any more, nor blank.
    put_back(w)?;
    ensure!(!is_blank(w, 2)?, "a disk that was a member does not say so");
    let expand = |disks: &[u8]| PoolExpand { disks: disks.iter().map(|n| disk(*n)).collect() };
    refused(w.api(w.lab.api.expand_pool(&pool, &expand(&[4]))), ErrorKind::Precondition)?;
    refused(w.api(w.lab.api.expand_pool(&pool, &expand(&[4, 2]))), ErrorKind::Precondition)?;
    refused(w.api(w.lab.api.expand_pool(&pool, &expand(&[4, 1]))), ErrorKind::Precondition)?;
    w.lab.on_appliance(&format!("wipefs -q -a {0} && dd if=/dev/zero of={0} bs=1M count=1 2>&1", disk(2)))?;
    let before = w.api(w.lab.api.pool(&pool))?.total;
    w.api(w.lab.api.expand_pool(&pool, &expand(&[4, 2])))?;
    wait_for("the new space", Duration::from_secs(30), || {
        Ok(w.api(w.lab.api.pool(&pool))?.total > ByteSize(before.0 / 2 * 3))
    })?;
    w.api(w.lab.api.expand_pool(&pool, &expand(&[4, 2]))).context("the same again")?;
    let h = wait_health(w, &pool, "four disks", |h| h.disks.len() == 4)?;
    ensure!(is_ok(&h), "{h:#?}");

    // Whatever happened below it, the host has seen none of it.
    ensure!(w.lab.initiator.stream_state("pairs")? == "running", "the writer had an error");
    w.lab.initiator.stop_stream("pairs")?;
    w.lab.initiator.verify_stream("pairs", &path, 0)?;
    w.lab.initiator.disconnect(&a)?;
    w.detach(&volume, 1)?;
    stale_half_is_not_believed(w, &pool)?;

    let a = w.attach(&volume, 1)?;
    let path = w.lab.initiator.connect(&a, 1, 1)?;
    w.lab.initiator.verify_stream("pairs", &path, 0)?;
    w.lab.initiator.disconnect(&a)?;
    let other = w.volume("made-meanwhile", "pairs", 64)?;
    w.remove(&other)?;
    w.remove(&volume)?;
    w.api(w.lab.api.delete_pool(&pool))?;
    no_array_is_left(w)?;
    for n in 1..=4 {
        ensure!(is_blank(w, n)?, "disk {n} is not blank");
    }
    Ok(())
}

/// A disk that was lost, and that is all of its mirror that comes up, says of itself that it is whole. The pool that
/// would come of it is the one of an hour ago.
fn stale_half_is_not_believed(w: &mut World, pool: &PoolName) -> Result<()> {
    pull(w, 1)?;
    wait_health(w, pool, "a pulled disk to be noticed", is_degraded)?;
    let marker = w.volume("after-the-loss", "pairs", 64)?;
    let a = w.attach(&marker, 1)?;
    let path = w.lab.initiator.connect(&a, 1, 1)?;
    let sum = w.lab.initiator.write_random(&path, 4)?;
    w.lab.initiator.disconnect(&a)?;
    w.detach(&marker, 1)?;
    // As after a power cut in which the other half is lost.
    w.lab.on_appliance(
        "systemctl stop orlopd && vgchange -q -an pairs && \
         for m in /sys/block/md*; do mdadm --stop /dev/$(basename $m) || exit 1; done",
    )?;
    put_back(w)?;
    pull(w, 3)?;
    w.lab.on_appliance("systemctl start orlopd")?;
    w.lab.wait_api()?;
    let missing = w.api(w.lab.api.pool(pool))?;
    ensure!(missing.state == PoolState::Missing, "{missing:?}");
    let reason = missing.reason.unwrap_or_default();
    ensure!(reason.contains("lost before the others") && reason.contains("safe3"), "{reason}");
    put_back(w)?;
    wait_for("the pool to be back", Duration::from_secs(100), || {
        Ok(w.api(w.lab.api.pool(pool))?.state == PoolState::Online)
    })?;
    wait_health(w, pool, "the stale half to catch up", is_ok)?;
    let a = w.attach(&marker, 1)?;
    let path = w.lab.initiator.connect(&a, 1, 1)?;
    ensure!(w.lab.initiator.checksum(&path, 4)? == sum, "what was written after the loss is gone");
    w.lab.initiator.disconnect(&a)?;
    w.remove(&marker)
}

pub fn files_survive_lost_disks(w: &mut World) -> Result<()> {
    let pool: PoolName = "striped".parse()?;
    let ask = PoolCreate {
        disks: vec![disk(1), disk(2), disk(3)],
        spares: vec![disk(4)],
        layout: Some(PoolLayout::Raid5),
        filesystem: Some(Filesystem::Xfs),
        ..PoolCreate::new(pool.clone(), PoolKind::File)
    };
    let made = w.api(w.lab.api.create_pool(&ask))?;
    ensure!(made.total > ByteSize(3 << 29), "three disks hold what two do: {}", made.total);
    let volume = w.volume("kept-in-stripes", "striped", 256)?;
    let a = w.attach(&volume, 1)?;
    let path = w.lab.initiator.connect(&a, 1, 1)?;
    w.lab.initiator.start_stream("striped", &path, 0, 100_000)?;
    wait_health(w, &pool, "the array to be built", |h| is_ok(h) && h.disks.len() == 4)?;
    refused(
        w.api(w.lab.api.expand_pool(&pool, &PoolExpand { disks: vec![disk(0)] })),
        ErrorKind::Unsupported,
    )?;

    // The spare takes the place at once, and the disk that comes back is the spare.
    pull(w, 2)?;
    let h = wait_health(w, &pool, "the spare to take the place", |h| {
        h.disks.iter().any(|d| d.name == disk(4) && d.state == "online")
    })?;
    ensure!(is_degraded(&h) && alarmed(w, &pool)?, "a lost disk is no alarm: {h:#?}");
    put_back(w)?;
    let spare =
        |h: &PoolHealth| h.disks.iter().any(|d| d.name == disk(2) && d.part.as_deref() == Some("spares"));
    wait_health(w, &pool, "the disk to be the spare", |h| is_ok(h) && spare(h))?;

    ensure!(w.lab.initiator.stream_state("striped")? == "running", "the writer had an error");
    w.lab.initiator.stop_stream("striped")?;
    w.lab.initiator.verify_stream("striped", &path, 0)?;
    w.lab.initiator.disconnect(&a)?;
    w.detach(&volume, 1)?;

    // To another appliance and back, by any of its disks.
    w.api(w.lab.api.export_pool(&pool))?;
    no_array_is_left(w)?;
    let import =
        PoolCreate { disks: vec![disk(3)], import: true, ..PoolCreate::new(pool.clone(), PoolKind::File) };
    w.api(w.lab.api.create_pool(&import))?;
    let back = w.api(w.lab.api.volume(&VolumeRef::Id(volume.id)))?;
    ensure!(back.state == VolumeState::Ready && back.nqn == volume.nqn, "{back:?}");
    let h = wait_health(w, &pool, "its health", |h| h.disks.len() == 4)?;
    ensure!(is_ok(&h), "{h:#?}");
    let a = w.attach(&volume, 1)?;
    let path = w.lab.initiator.connect(&a, 1, 1)?;
    w.lab.initiator.verify_stream("striped", &path, 0)?;
    w.lab.initiator.disconnect(&a)?;
    w.remove(&volume)?;
    w.api(w.lab.api.delete_pool(&pool))?;

    // Two pairs, for its life and its end alone.
    let ask = PoolCreate {
        disks: (1..=4).map(disk).collect(),
        layout: Some(PoolLayout::Raid10),
        ..PoolCreate::new(pool.clone(), PoolKind::File)
    };
    w.api(w.lab.api.create_pool(&ask))?;
    let h = wait_health(w, &pool, "its health", |h| h.disks.len() == 4)?;
    ensure!(is_ok(&h) && h.disks.iter().all(|d| d.part.as_deref() == Some("raid10-0")), "{h:#?}");
    w.api(w.lab.api.delete_pool(&pool))?;
    for n in 1..=4 {
        ensure!(is_blank(w, n)?, "disk {n} is not blank");
    }
    Ok(())
}
