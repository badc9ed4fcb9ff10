//! Snapshots, clones and copies of volumes that a connected host writes to, on every kind of pool.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use orlop_api::{
    ErrorKind, SnapshotCreate, SnapshotGroupCreate, SnapshotRef, SourceMode, Volume, VolumeCreate, VolumeRef,
    VolumeSource, VolumeState, When,
};
use orlop_tests::wait_for;

use crate::world::{BTRFS, LVM, World, XFS, ZFS, ask, nqn, refused};

pub fn from(name: &str, pool: &str, mib: u64, source: &str, mode: SourceMode) -> Result<VolumeCreate> {
    let (snapshot, volume) = match source.strip_prefix('@') {
        Some(snapshot) => (Some(snapshot.parse()?), None),
        None => (None, Some(source.parse()?)),
    };
    Ok(VolumeCreate { source: Some(VolumeSource { snapshot, volume, mode }), ..ask(name, pool, mib) })
}

/// The first 4 MiB of a volume, as a host sees them.
fn checksum(w: &mut World, volume: &Volume) -> Result<String> {
    let a = w.attach(volume, 1)?;
    let path = w.lab.initiator.connect(&a, 1, 1)?;
    ensure!(w.lab.initiator.size(&path)? == volume.size.bytes(), "another size than {}", volume.size);
    let sum = w.lab.initiator.checksum(&path, 4)?;
    w.lab.initiator.disconnect(&a)?;
    w.detach(volume, 1)?;
    Ok(sum)
}

pub fn ready(w: &World, volume: &Volume) -> Result<()> {
    wait_for("the copy to be whole", Duration::from_secs(120), || {
        Ok(w.api(w.lab.api.volume(&VolumeRef::Id(volume.id)))?.state == VolumeState::Ready)
    })
}

fn gone(w: &World, volume: &Volume) -> Result<()> {
    wait_for("the volume to go", Duration::from_secs(60), || {
        Ok(w.api(w.lab.api.volume(&VolumeRef::Id(volume.id))).is_err_and(|e| e.kind == ErrorKind::NotFound))
    })
}

pub fn keep_their_bytes(w: &mut World) -> Result<()> {
    for pool in [ZFS, XFS, BTRFS] {
        keep_on(w, pool).with_context(|| format!("on {pool}"))?;
    }
    // LVM has no disk of its own in this lab: the contract has left this one blank.
    let lvm = w.api(w.lab.api.create_pool(&World::lvm_pool()))?;
    ensure!(w.api(w.lab.api.create_pool(&World::lvm_pool()))?.name == lvm.name, "another pool");
    keep_on(w, LVM).context("on lvm")?;
    group_on(w, LVM).context("a group on lvm")?;
    refused(w.api(w.lab.api.create_pool(&World::lvm_pool_on("used0"))), ErrorKind::Conflict)?;
    Ok(w.api(w.lab.api.delete_pool(&lvm.name))?)
}

fn keep_on(w: &mut World, pool: &str) -> Result<()> {
    let source = w.volume("source", pool, 128)?;
    let a = w.attach(&source, 1)?;
    let path = w.lab.initiator.connect(&a, 1, 1)?;
    let then = w.lab.initiator.write_random(&path, 4)?;
    let take = SnapshotCreate { name: "then".parse()?, volume: VolumeRef::Id(source.id) };
    let snapshot = w.api(w.lab.api.create_snapshot(&take))?;
    let now = w.lab.initiator.write_random(&path, 4)?;
    ensure!(then != now, "the same bytes twice");

    let clone = w.api(w.lab.api.create_volume(&from("clone", pool, 192, "@then", SourceMode::Linked)?))?;
    ensure!(clone.state == VolumeState::Ready, "{clone:?}");
    let copy = w.api(w.lab.api.create_volume(&from("copy", pool, 128, "source", SourceMode::Copied)?))?;
    // The source is written to while it is copied: the copy is of the moment of the request.
    let later = w.lab.initiator.write_random(&path, 4)?;
    ready(w, &copy)?;
    ensure!(checksum(w, &clone)? == then, "the clone has other bytes than the snapshot");
    ensure!(checksum(w, &copy)? == now, "the copy has other bytes than its source had");
    ensure!(w.lab.initiator.checksum(&path, 4)? == later, "the source has other bytes");
    w.lab.initiator.disconnect(&a)?;
    w.detach(&source, 1)?;

    // Deleted from the wrong end: carried out when the last dependant goes, over a restart.
    let by_id = VolumeRef::Id(source.id);
    refused(w.api(w.lab.api.delete_volume(&by_id)), ErrorKind::Precondition)?;
    ensure!(!w.api(w.lab.api.delete_volume_when(&by_id, When::Unused))?, "it is gone already");
    let depends = !snapshot_of(w, &snapshot.id.into())?.is_empty();
    ensure!(depends == (pool == ZFS), "a clone on {pool} depends: {depends}");
    let went = w.api(w.lab.api.delete_snapshot(&snapshot.id.into(), When::Unused))?;
    ensure!(went != depends, "it went: {went}");
    w.lab.on_appliance("systemctl restart orlopd")?;
    w.lab.wait_api()?;
    if depends {
        ensure!(w.api(w.lab.api.volume(&by_id))?.state == VolumeState::Deleting, "it is not waiting");
    }
    ensure!(checksum(w, &clone)? == then, "the clone has other bytes after the restart");
    w.remove(&clone)?;
    gone(w, &source)?;
    ensure!(checksum(w, &copy)? == now, "the copy has other bytes when all else is gone");
    w.remove(&copy)
}

fn snapshot_of(w: &World, snapshot: &SnapshotRef) -> Result<Vec<orlop_api::VolumeId>> {
    Ok(w.api(w.lab.api.snapshot(snapshot))?.dependants)
}

/// The daemon dies in the middle of a copy, twice; the copy goes on, and is the source as it was.
pub fn copy_goes_on_after_a_kill(w: &mut World) -> Result<()> {
    for pool in [ZFS, XFS] {
        let source = w.volume("long", pool, 256)?;
        let a = w.attach(&source, 1)?;
        let path = w.lab.initiator.connect(&a, 1, 1)?;
        let sum = w.lab.initiator.write_random(&path, 4)?;
        // Enough to take a while: on the appliance itself, where that is quick.
        let device = w.lab.on_appliance(&format!(
            "cat /sys/kernel/config/nvmet/subsystems/{}/namespaces/1/device_path",
            nqn(&source)?
        ))?;
        let payload = w.lab.appliance.mount_payload()?.to_string();
        w.lab.on_appliance(&format!("{payload}/stream fill {} {} 192", device.trim(), 32 << 20))?;
        w.lab.initiator.disconnect(&a)?;
        w.detach(&source, 1)?;
        let copy =
            w.api(w.lab.api.create_volume(&from("long-copy", pool, 256, "long", SourceMode::Copied)?))?;
        for _ in 0..2 {
            std::thread::sleep(Duration::from_secs(1));
            w.lab.on_appliance("systemctl kill -s KILL orlopd; sleep 1")?;
            w.lab.wait_api()?;
        }
        ready(w, &copy)?;
        ensure!(checksum(w, &copy)? == sum, "the copy has other bytes");
        let (one, two) = (open_for_reading(w, &source)?, open_for_reading(w, &copy)?);
        w.lab.on_appliance(&format!("cmp {one} {two}")).context("comparing all of it")?;
        for volume in [&source, &copy] {
            w.detach(volume, 1)?;
            w.remove(volume)?;
        }
        wait_for("the copy's snapshot to go", Duration::from_secs(30), || {
            Ok(w.api(w.lab.api.all_snapshots(Default::default()))?.is_empty())
        })?;
    }
    Ok(())
}

/// Attached, and so open on the appliance: its device there.
fn open_for_reading(w: &mut World, volume: &Volume) -> Result<String> {
    w.attach(volume, 1)?;
    let path = format!("/sys/kernel/config/nvmet/subsystems/{}/namespaces/1/device_path", nqn(volume)?);
    Ok(w.lab.on_appliance(&format!("cat {path}"))?.trim().to_string())
}

pub fn group_is_of_one_instant(w: &mut World) -> Result<()> {
    for pool in [ZFS, XFS, BTRFS] {
        group_on(w, pool).with_context(|| format!("on {pool}"))?;
    }
    held_by_a_killed_daemon(w)
}

/// A daemon that is killed in the middle of a group leaves its writers waiting, and the next one lets them go on.
fn held_by_a_killed_daemon(w: &mut World) -> Result<()> {
    let volume = w.volume("waiting", XFS, 64)?;
    let a = w.attach(&volume, 1)?;
    let path = w.lab.initiator.connect(&a, 1, 1)?;
    w.lab.on_appliance(&format!("dmsetup suspend orlop-{}", volume.id))?;
    let write = format!("dd if=/dev/zero of={} bs=4k count=1 oflag=direct status=none", path.device);
    w.lab.initiator.run(&format!("{{ {write}; echo $? >/run/written; }} >/dev/null 2>&1 & sleep 2"))?;
    ensure!(
        w.lab.initiator.run("cat /run/written 2>/dev/null || echo waits")?.trim() == "waits",
        "it went on"
    );
    w.lab.on_appliance("systemctl kill -s KILL orlopd; sleep 1")?;
    w.lab.wait_api()?;
    let written = w
        .lab
        .initiator
        .run("for i in $(seq 100); do cat /run/written 2>/dev/null && exit; sleep .1; done")?;
    ensure!(written.trim() == "0", "the writer: {written:?}");
    w.lab.initiator.run("rm /run/written")?;
    w.lab.initiator.disconnect(&a)?;
    w.remove(&volume)
}

/// Two volumes that a host never ceases to write to: their snapshots are of one instant.
fn group_on(w: &mut World, pool: &str) -> Result<()> {
    let volumes = [w.volume("left", pool, 64)?, w.volume("right", pool, 64)?];
    let mut paths = Vec::new();
    for volume in &volumes {
        let a = w.attach(volume, 1)?;
        paths.push((w.lab.initiator.connect(&a, 1, 1)?, a));
    }
    let [left, right] = [&paths[0].0.device, &paths[1].0.device];
    // A number to the left and then to the right, each durable before the next: at any instant the right
    // one has the left one's number or the one before.
    let writer = format!(
        "n=0; while [ ! -e /run/halt ]; do n=$((n+1)); for d in {left} {right}; do \
         printf %08d $n | dd of=$d bs=8 count=1 conv=notrunc,fsync status=none; done; done"
    );
    w.lab.initiator.run(&format!("rm -f /run/halt; nohup bash -c '{writer}' >/dev/null 2>&1 & sleep 2"))?;
    let group = SnapshotGroupCreate {
        name: "both".parse()?,
        volumes: volumes.iter().map(|v| VolumeRef::Id(v.id)).collect(),
    };
    let taken = w.api(w.lab.api.create_snapshot_group(&group));
    w.lab.initiator.run("touch /run/halt; sleep 2")?;
    let taken = taken?;
    let waited = taken.snapshots.iter().filter_map(|s| s.paused_us).max();
    // ZFS takes them in one transaction; elsewhere the writers waited, and it is told for how long.
    ensure!((pool == ZFS) == waited.is_none(), "writers waited {waited:?}");
    println!("     {pool}: writers waited {:.1} ms", waited.unwrap_or(0) as f64 / 1000.0);
    let mut numbers = Vec::new();
    for (n, snapshot) in taken.snapshots.iter().enumerate() {
        let create =
            from(&format!("half-{n}"), pool, 64, &format!("@{}", snapshot.name), SourceMode::Linked)?;
        let clone = w.api(w.lab.api.create_volume(&create))?;
        let a = w.attach(&clone, 1)?;
        let path = w.lab.initiator.connect(&a, 1, 1)?;
        let text = w.lab.initiator.run(&format!("dd if={} bs=8 count=1 status=none", path.device))?;
        numbers.push(text.trim().parse::<u64>().with_context(|| format!("number {text:?}"))?);
        w.lab.initiator.disconnect(&a)?;
        w.remove(&clone)?;
        w.api(w.lab.api.delete_snapshot(&snapshot.id.into(), When::Now))?;
    }
    ensure!(numbers[0] > 0 && (numbers[0] == numbers[1] || numbers[0] == numbers[1] + 1), "{numbers:?}");
    for ((_, a), volume) in paths.iter().zip(&volumes) {
        w.lab.initiator.disconnect(a)?;
        w.remove(volume)?;
    }
    Ok(())
}
