//! Disks that fail under a pool that survives it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use orlop_api::{
    ByteSize, ErrorKind, PoolCreate, PoolExpand, PoolHealth, PoolHealthState, PoolLayout, PoolName,
    PoolReplace, PoolScanKind, PoolScanState, PoolState, SnapshotRef, SourceMode, VolumeRef, VolumeState,
    VolumeUpdate, When,
};
use orlop_tests::wait_for;

use crate::crashes::shot;
use crate::snapshots::{from, ready};
use crate::world::{World, ask, refused};

const POOL: &str = "safe";

pub fn disk(n: u8) -> String {
    format!("/dev/disk/by-id/virtio-safe{n}")
}

fn name() -> Result<PoolName> {
    Ok(POOL.parse()?)
}

fn health(w: &World) -> Result<PoolHealth> {
    // After a start they are read behind the answers.
    let mut found = None;
    wait_for("the pool to tell of its disks", Duration::from_secs(60), || {
        found = w.api(w.lab.api.pool(&name()?))?.health;
        Ok(found.is_some())
    })?;
    found.context("it tells nothing of its disks")
}

fn wait_health(w: &World, what: &str, holds: impl Fn(&PoolHealth) -> bool) -> Result<PoolHealth> {
    let mut last = health(w)?;
    let waited = wait_for(what, Duration::from_secs(100), || {
        last = health(w)?;
        Ok(holds(&last))
    });
    waited.with_context(|| format!("{last:#?}"))?;
    Ok(last)
}

fn alarmed(w: &World) -> Result<bool> {
    let alarms = w.api(w.lab.api.system())?.alarms;
    Ok(alarms.iter().any(|a| a.subject == format!("pool/{POOL}/health")))
}

/// Takes a disk off its bus, as if it was pulled.
pub fn pull(w: &mut World, n: u8) -> Result<()> {
    let disk = disk(n);
    w.lab.on_appliance(&format!(
        "d=$(basename $(readlink -f {disk})) && sync && echo 1 >$(readlink -f /sys/block/$d/device/..)/remove"
    ))?;
    Ok(())
}

/// A disk is pulled while everything is done that can be done in the pool. The other half of the mirror is there, so
/// all of it succeeds, and leaves what it should.
fn pulled_under_everything(w: &mut World) -> Result<()> {
    // Of one's own each, so that nothing waits for another.
    for name in ["snapped", "cloned", "copied", "grown", "attached"] {
        w.volume(name, POOL, 64)?;
    }
    let host = w.host(1)?;
    w.api(w.lab.api.create_snapshot(&shot(&"cloned".parse()?)?))?;
    let node = format!("$(readlink -f /sys/block/$(basename $(readlink -f {}))/device/..)", disk(1));
    // In a second, when all are under way.
    w.lab.on_appliance(&format!(
        "n={node}; test -e $n/remove; (sleep 1; echo 1 >$n/remove) >/dev/null 2>&1 &"
    ))?;
    let until = Instant::now() + Duration::from_secs(4);
    let api = &w.lab.api;
    let by_name = |name: &str| -> Result<VolumeRef> { Ok(VolumeRef::Name(name.parse()?)) };
    let created = async {
        let name = by_name("created")?;
        while Instant::now() < until {
            api.create_volume(&ask("created", POOL, 64)).await.context("create")?;
            api.delete_volume(&name).await.context("delete")?;
        }
        anyhow::Ok(())
    };
    let snapped = async {
        while Instant::now() < until {
            let taken = api.create_snapshot(&shot(&"snapped".parse()?)?).await.context("snapshot")?;
            api.delete_snapshot(&taken.id.into(), When::Now).await.context("delete of a snapshot")?;
        }
        anyhow::Ok(())
    };
    let cloned = async {
        let ask = from("clone", POOL, 64, "@cloned", SourceMode::Linked)?;
        while Instant::now() < until {
            api.create_volume(&ask).await.context("clone")?;
            api.delete_volume(&by_name("clone")?).await.context("delete of a clone")?;
        }
        anyhow::Ok(())
    };
    let copied = async {
        let ask = from("copy", POOL, 64, "copied", SourceMode::Copied)?;
        api.create_volume(&ask).await.context("copy")?;
        anyhow::Ok(())
    };
    let mut size = ByteSize(64 << 20);
    let grown = async {
        while Instant::now() < until {
            size = ByteSize(size.0 + (64 << 20));
            api.update_volume(&by_name("grown")?, &VolumeUpdate::to_size(size)).await.context("grow")?;
        }
        anyhow::Ok(())
    };
    let attached = async {
        while Instant::now() < until {
            api.attach(&by_name("attached")?, &host).await.context("attach")?;
            api.detach(&by_name("attached")?, &host).await.context("detach")?;
        }
        anyhow::Ok(())
    };
    let all = async { tokio::try_join!(created, snapped, cloned, copied, grown, attached).map(drop) };
    w.api(all).context("while a disk was pulled")?;

    let copy = w.api(w.lab.api.volume(&by_name("copy")?))?;
    ready(w, &copy)?;
    let grown = w.api(w.lab.api.volume(&by_name("grown")?))?;
    ensure!((grown.size, grown.state) == (size, VolumeState::Ready), "{grown:?}");
    for gone in ["created", "clone"] {
        refused(w.api(w.lab.api.volume(&by_name(gone)?)), ErrorKind::NotFound)?;
    }
    w.api(w.lab.api.delete_snapshot(&SnapshotRef::Name("cloned".parse()?), When::Now))?;
    for name in ["snapped", "cloned", "copied", "copy", "grown", "attached"] {
        let volume = w.api(w.lab.api.volume(&by_name(name)?))?;
        ensure!(volume.state == VolumeState::Ready && volume.hosts.is_empty(), "{volume:?}");
        w.remove(&volume)?;
    }
    let made = "zfs list -H -o name -t volume,snapshot -r safe | wc -l";
    let left = w.lab.on_appliance(made)?;
    ensure!(left.trim() == "1", "left behind in the pool: {left}");
    Ok(())
}

pub fn put_back(w: &mut World) -> Result<()> {
    w.lab.on_appliance("echo 1 >/sys/bus/pci/rescan; udevadm settle").map(drop)
}

pub fn pool_survives_lost_disks(w: &mut World) -> Result<()> {
    let ask = PoolCreate {
        name: name()?,
        disks: vec![disk(0), disk(1)],
        layout: Some(PoolLayout::Mirror),
        ..World::zfs_pool()
    };
    let too_few = PoolCreate { disks: vec![disk(0)], ..ask.clone() };
    refused(w.api(w.lab.api.create_pool(&too_few)), ErrorKind::Invalid)?;
    let pool = w.api(w.lab.api.create_pool(&ask))?;
    ensure!(pool.total < ByteSize(3 << 29), "a mirror has the space of one disk: {}", pool.total);
    let h = wait_health(w, "its health", |h| h.disks.len() == 2)?;
    ensure!(h.state == PoolHealthState::Ok && h.disks.iter().all(|d| d.name.contains("safe")), "{h:#?}");

    let volume = w.volume("kept", POOL, 256)?;
    let a = w.attach(&volume, 1)?;
    let path = w.lab.initiator.connect(&a, 1, 1)?;
    w.lab.initiator.start_stream("kept", &path, 0, 100_000)?;

    // Pulled and put back: it is noticed at once, and the disk catches up by itself.
    pulled_under_everything(w)?;
    let h = wait_health(w, "a pulled disk to be noticed", |h| h.state == PoolHealthState::Degraded)?;
    ensure!(alarmed(w)?, "no alarm for {h:#?}");
    ensure!(h.reason.as_ref().is_some_and(|r| r.contains("safe1")), "it does not say which: {h:#?}");
    w.volume("made-while-degraded", POOL, 64)?;
    put_back(w)?;
    let h = wait_health(w, "the disk to be taken back", |h| h.state == PoolHealthState::Ok)?;
    ensure!(!alarmed(w)?, "still an alarm: {h:#?}");
    println!("     pulled and put back: {}", scan(&h));

    // Pulled for good: another one takes its place, and what can't is refused.
    pull(w, 0)?;
    let h = wait_health(w, "a pulled disk to be noticed", |h| h.state == PoolHealthState::Degraded)?;
    let lost = h.disks.iter().find(|d| d.was.is_some()).context("none is lost")?.name.clone();
    let replace = |disk: &str, with: &str| PoolReplace { disk: disk.into(), with: with.into() };
    let pool = name()?;
    let no = |w: &World, ask: &PoolReplace, kind| refused(w.api(w.lab.api.replace_disk(&pool, ask)), kind);
    no(w, &replace(&lost, "/dev/disk/by-id/virtio-used0"), ErrorKind::Precondition)?;
    no(w, &replace(&lost, &disk(1)), ErrorKind::Precondition)?;
    no(w, &replace("1234", &disk(2)), ErrorKind::Precondition)?;
    no(w, &replace(&lost, "../etc"), ErrorKind::Invalid)?;
    w.api(w.lab.api.replace_disk(&pool, &replace(&lost, &disk(2))))?;
    let h = wait_health(w, "the rebuild", |h| h.state == PoolHealthState::Ok)?;
    ensure!(h.disks.iter().any(|d| d.name == disk(2)) && h.disks.len() == 2, "{h:#?}");
    println!("     replaced: {}", scan(&h));
    w.api(w.lab.api.replace_disk(&pool, &replace(&lost, &disk(2)))).context("the same again")?;

    w.api(w.lab.api.scrub_pool(&pool))?;
    let h = wait_health(w, "a scrub to end", |h| {
        h.scan.as_ref().is_some_and(|s| s.kind == PoolScanKind::Scrub && s.state == PoolScanState::Finished)
    })?;
    ensure!(h.scan.as_ref().is_some_and(|s| s.errors == 0), "{h:#?}");
    w.api(w.lab.api.stop_scrub(&pool)).context("a stop of nothing")?;

    let before = w.api(w.lab.api.pool(&pool))?.total;
    let expand = |disks: Vec<String>| PoolExpand { disks };
    refused(w.api(w.lab.api.expand_pool(&pool, &expand(vec![disk(3)]))), ErrorKind::Precondition)?;
    refused(w.api(w.lab.api.expand_pool(&pool, &expand(vec![disk(3), disk(1)]))), ErrorKind::Precondition)?;
    w.api(w.lab.api.expand_pool(&pool, &expand(vec![disk(3), disk(4)])))?;
    wait_for("the new space", Duration::from_secs(30), || {
        Ok(w.api(w.lab.api.pool(&pool))?.total > ByteSize(before.0 / 2 * 3))
    })?;
    w.api(w.lab.api.expand_pool(&pool, &expand(vec![disk(3), disk(4)]))).context("the same again")?;

    // Whatever happened below it, the host has seen none of it.
    ensure!(w.lab.initiator.stream_state("kept")? == "running", "the writer had an error");
    w.lab.initiator.stop_stream("kept")?;
    w.lab.initiator.verify_stream("kept", &path, 0)?;
    ensure!(w.api(w.lab.api.volume(&volume.id.into()))?.state == VolumeState::Ready);
    w.lab.initiator.disconnect(&a)?;
    w.remove(&volume)?;
    let other = w.volume("made-while-degraded", POOL, 64)?;
    w.remove(&other)?;
    w.api(w.lab.api.delete_pool(&pool))?;
    put_back(w)?;

    // What was pulled is on that disk still. It is no blank disk, and its old half of the pool is not taken
    // for the pool that is asked for.
    let problem = refused(w.api(w.lab.api.create_pool(&ask)), ErrorKind::Precondition)?;
    ensure!(problem.detail.contains("safe0"), "{problem}");

    // To another appliance and back: the same volumes, and nobody is let in.
    let ask = PoolCreate { disks: vec![disk(1), disk(2)], ..ask };
    w.api(w.lab.api.create_pool(&ask))?;
    let volume = w.volume("travels", POOL, 64)?;
    let a = w.attach(&volume, 1)?;
    let path = w.lab.initiator.connect(&a, 1, 1)?;
    let sum = w.lab.initiator.write_random(&path, 4)?;
    // A pool that is known is found by its number, whatever else has its name.
    w.lab.initiator.disconnect(&a)?;
    w.detach(&volume, 1)?;
    w.lab.on_appliance(&format!("systemctl stop orlopd && zpool export {POOL} && systemctl start orlopd"))?;
    w.lab.wait_api()?;
    let state = w.api(w.lab.api.pool(&pool))?;
    ensure!(state.state == PoolState::Online, "{state:?}");
    let a = w.attach(&volume, 1)?;
    let path = w.lab.initiator.connect(&a, 1, 1)?;
    ensure!(w.lab.initiator.checksum(&path, 4)? == sum, "other bytes after the daemon came back");
    refused(w.api(w.lab.api.export_pool(&pool)), ErrorKind::Precondition)?;
    w.lab.initiator.disconnect(&a)?;
    w.detach(&volume, 1)?;
    let guid = w.lab.on_appliance(&format!("zpool get -H -p -o value guid {POOL}"))?.trim().to_string();
    w.api(w.lab.api.export_pool(&pool))?;
    ensure!(!w.lab.on_appliance("zpool list -H -o name")?.lines().any(|l| l == POOL), "it is still imported");
    refused(w.api(w.lab.api.volume(&volume.id.into())), ErrorKind::NotFound)?;
    let import = PoolCreate { disks: Vec::new(), layout: None, import: true, ..ask.clone() };
    // The disk that was pulled belongs to a pool of the same name: which of the two is meant?
    let problem = refused(w.api(w.lab.api.create_pool(&import)), ErrorKind::Precondition)?;
    ensure!(problem.detail.contains("several zpools"), "{problem}");
    // By its number; what no such zpool has is not guessed.
    let number = |guid: &str| PoolCreate { guid: Some(guid.into()), ..import.clone() };
    ensure!(problem.detail.contains(&guid), "{problem}");
    refused(w.api(w.lab.api.create_pool(&number("12345"))), ErrorKind::Precondition)?;
    w.api(w.lab.api.create_pool(&number(&guid)))?;
    refused(w.api(w.lab.api.create_pool(&number("12345"))), ErrorKind::Conflict)?;
    w.api(w.lab.api.export_pool(&pool))?;
    w.lab.on_appliance(&format!("zpool labelclear -f {}-part1", disk(0)))?;
    w.api(w.lab.api.create_pool(&import))?;
    w.api(w.lab.api.create_pool(&import)).context("the same again")?;
    let back = w.api(w.lab.api.volume(&volume.id.into()))?;
    ensure!((&back.nqn, &back.name, back.hosts.len()) == (&volume.nqn, &volume.name, 0), "{back:?}");
    let a = w.attach(&volume, 1)?;
    let path = w.lab.initiator.connect(&a, 1, 1)?;
    ensure!(w.lab.initiator.checksum(&path, 4)? == sum, "other bytes came back");
    w.lab.initiator.disconnect(&a)?;
    w.remove(&volume)?;
    w.api(w.lab.api.delete_pool(&pool))?;
    refused(w.api(w.lab.api.create_pool(&import)), ErrorKind::NotFound)?;

    // Other layouts, with a spare.
    for (layout, disks) in [(PoolLayout::Raidz1, 3), (PoolLayout::Draid1, 4)] {
        let disks = (1..=disks).map(disk).collect();
        let spares = if layout == PoolLayout::Raidz1 { vec![disk(4)] } else { Vec::new() };
        let ask = PoolCreate { disks, spares, layout: Some(layout), ..ask.clone() };
        w.api(w.lab.api.create_pool(&ask)).with_context(|| format!("{layout:?}"))?;
        let h = wait_health(w, "its health", |h| h.disks.len() == 4)?;
        ensure!(h.state == PoolHealthState::Ok, "{layout:?}: {h:#?}");
        w.api(w.lab.api.delete_pool(&pool))?;
    }
    Ok(())
}

/// Whether the spare of the pool is in that state.
fn spare_is(h: &PoolHealth, state: &str) -> bool {
    h.disks.iter().any(|d| d.part.as_deref() == Some("spares") && d.state == state)
}

/// A disk is pulled that a spare can stand in for. That takes half a minute, in which other scenarios go on.
pub fn lost_disk_has_a_spare(w: &mut World) -> Result<()> {
    let ask = PoolCreate {
        name: name()?,
        disks: vec![disk(1), disk(2)],
        spares: vec![disk(4)],
        layout: Some(PoolLayout::Mirror),
        ..World::zfs_pool()
    };
    w.api(w.lab.api.create_pool(&ask))?;
    w.volume("spared", POOL, 64)?;
    wait_health(w, "its health", |h| h.state == PoolHealthState::Ok && spare_is(h, "avail"))?;
    pull(w, 1)?;
    let h = wait_health(w, "a pulled disk to be noticed", |h| h.state == PoolHealthState::Degraded)?;
    ensure!(alarmed(w)?, "no alarm for {h:#?}");
    Ok(())
}

/// Nobody asked for it: the spare takes the place by itself.
pub fn spare_takes_the_place(w: &mut World) -> Result<()> {
    let h = wait_health(w, "the spare to take the place", |h| spare_is(h, "inuse"))?;
    ensure!(h.reason.as_ref().is_some_and(|r| r.contains("is taken by spare")), "it does not say so: {h:#?}");
    ensure!(alarmed(w)?, "no alarm for {h:#?}");
    put_back(w)
}

/// And steps back, half a minute after the disk is there again.
pub fn spare_steps_back(w: &mut World) -> Result<()> {
    let h = wait_health(w, "the spare to be free again", |h| {
        h.state == PoolHealthState::Ok && spare_is(h, "avail")
    })?;
    ensure!(h.disks.len() == 3 && !alarmed(w)?, "{h:#?}");
    println!("     a spare stepped in and back: {}", scan(&h));
    let volume = w.api(w.lab.api.volume(&VolumeRef::Name("spared".parse()?)))?;
    w.remove(&volume)?;
    Ok(w.api(w.lab.api.delete_pool(&name()?))?)
}

fn scan(h: &PoolHealth) -> String {
    h.scan
        .as_ref()
        .map_or_else(|| "no pass".into(), |s| format!("{:?} {:?}, {} errors", s.kind, s.state, s.errors))
}
