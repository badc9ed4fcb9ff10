//! Disks that are pulled under pools that have no others, while everything is done that can be done in them.
//!
//! Nobody can serve such a pool. But each request ends, with an error or truly done; the other pools go on; and when
//! the machine is started again with its disks, all that was acknowledged is there and nothing is half made.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use orlop_api::client::{Client, SnapshotFilter, VolumeFilter};
use orlop_api::{
    ByteSize, ErrorKind, Filesystem, HostName, PoolCreate, PoolHealthState, PoolKind, PoolState, Problem,
    SnapshotRef, SourceMode, VolumeRef, VolumeState, VolumeUpdate, When,
};
use orlop_tests::wait_for;

use crate::crashes::shot;
use crate::disks::disk;
use crate::snapshots::from;
use crate::world::{World, ZFS, ask};

const POOLS: [(&str, PoolKind, u8); 3] =
    [("alone-zfs", PoolKind::Zfs, 1), ("alone-lvm", PoolKind::Lvm, 2), ("alone-xfs", PoolKind::File, 3)];

/// How long the verbs go on where nothing ends them.
const LONG: Duration = Duration::from_secs(40);

/// What one verb was told until it was told an error: of each name whether there is such a thing; or nothing, where
/// the request failed and so either may be.
#[derive(Debug, Default)]
struct Told {
    volumes: BTreeMap<String, Option<bool>>,
    snapshots: BTreeMap<String, Option<bool>>,
    /// At least as large.
    size: Option<(String, ByteSize)>,
    error: Option<Problem>,
}

fn by_name(name: &str) -> Result<VolumeRef> {
    Ok(VolumeRef::Name(name.parse()?))
}

/// Makes and deletes until that fails.
async fn made(api: &Client, pool: &str, clone: bool, told: &mut Told) -> Result<()> {
    let verb = if clone { "cloned" } else { "made" };
    let until = Instant::now() + LONG;
    for n in 0.. {
        let name = format!("{pool}-{verb}-{n}");
        let ask = match clone {
            true => from(&name, pool, 64, &format!("@{pool}-kept"), SourceMode::Linked)?,
            false => ask(&name, pool, 64),
        };
        told.volumes.insert(name.clone(), None);
        if let Err(e) = api.create_volume(&ask).await {
            told.error = Some(e);
            return Ok(());
        }
        told.volumes.insert(name.clone(), Some(true));
        if Instant::now() > until {
            return Ok(());
        }
        // Every other one stays.
        if n % 2 == 0 {
            continue;
        }
        told.volumes.insert(name.clone(), None);
        if let Err(e) = api.delete_volume(&by_name(&name)?).await {
            told.error = Some(e);
            return Ok(());
        }
        told.volumes.insert(name, Some(false));
    }
    Ok(())
}

async fn snapped(api: &Client, pool: &str, told: &mut Told) -> Result<()> {
    let until = Instant::now() + LONG;
    for n in 0.. {
        let name = format!("{pool}-snap-{n}");
        let mut ask = shot(&format!("{pool}-snapped").parse()?)?;
        ask.name = name.parse()?;
        told.snapshots.insert(name.clone(), None);
        if let Err(e) = api.create_snapshot(&ask).await {
            told.error = Some(e);
            return Ok(());
        }
        told.snapshots.insert(name.clone(), Some(true));
        if Instant::now() > until {
            return Ok(());
        }
        if n % 2 == 0 {
            continue;
        }
        told.snapshots.insert(name.clone(), None);
        if let Err(e) = api.delete_snapshot(&SnapshotRef::Name(name.parse()?), When::Now).await {
            told.error = Some(e);
            return Ok(());
        }
        told.snapshots.insert(name, Some(false));
    }
    Ok(())
}

async fn grown(api: &Client, pool: &str, told: &mut Told) -> Result<()> {
    let name = format!("{pool}-grown");
    let until = Instant::now() + LONG;
    let mut size = ByteSize(64 << 20);
    while Instant::now() < until {
        told.size = Some((name.clone(), size));
        size = ByteSize(size.0 + (1 << 20));
        if let Err(e) = api.update_volume(&by_name(&name)?, &VolumeUpdate::to_size(size)).await {
            told.error = Some(e);
            return Ok(());
        }
    }
    Ok(())
}

async fn attached(api: &Client, pool: &str, host: &HostName, told: &mut Told) -> Result<()> {
    let name = by_name(&format!("{pool}-attached"))?;
    let until = Instant::now() + LONG;
    while Instant::now() < until {
        let done = match api.attach(&name, host).await {
            Ok(_) => api.detach(&name, host).await,
            Err(e) => Err(e),
        };
        if let Err(e) = done {
            told.error = Some(e);
            return Ok(());
        }
    }
    Ok(())
}

async fn everything(api: &Client, pool: &str, host: &HostName) -> Result<[Told; 5]> {
    let mut told: [Told; 5] = Default::default();
    let [a, b, c, d, e] = &mut told;
    tokio::try_join!(
        made(api, pool, false, a),
        made(api, pool, true, b),
        snapped(api, pool, c),
        grown(api, pool, d),
        attached(api, pool, host, e)
    )?;
    Ok(told)
}

/// What a shell writes 1 to, to pull a disk.
fn puller(n: u8) -> String {
    format!("$(readlink -f /sys/block/$(basename $(readlink -f {}))/device/..)/remove", disk(n))
}

/// For pools whose disks were pulled.
fn put_back(w: &mut World) -> Result<()> {
    w.lab.on_appliance("echo 1 >/sys/bus/pci/rescan").map(drop)
}

pub fn pulled_disks_harm_only_their_pools(w: &mut World) -> Result<()> {
    let host = w.host(1)?;
    let mut sums = Vec::new();
    for (pool, kind, n) in POOLS {
        let filesystem = (kind == PoolKind::File).then_some(Filesystem::Xfs);
        let plain = PoolCreate::new(pool.parse()?, kind);
        w.api(w.lab.api.create_pool(&PoolCreate { disks: vec![disk(n)], filesystem, ..plain }))?;
        let kept = w.volume(&format!("{pool}-kept"), pool, 64)?;
        for name in ["snapped", "grown", "attached"] {
            w.volume(&format!("{pool}-{name}"), pool, 64)?;
        }
        let a = w.attach(&kept, 1)?;
        let path = w.lab.initiator.connect(&a, 1, 1)?;
        sums.push(w.lab.initiator.write_random(&path, 4)?);
        w.lab.initiator.disconnect(&a)?;
        w.detach(&kept, 1)?;
        w.api(w.lab.api.create_snapshot(&shot(&kept.name)?))?;
    }
    let nodes = POOLS.map(|(_, _, n)| puller(n));
    // In two seconds, when all are under way.
    w.lab.on_appliance(&format!(
        "nodes=\"{}\"; for n in $nodes; do test -e $n || exit 1; done; \
         (sleep 2; for n in $nodes; do echo 1 >$n; done) >/dev/null 2>&1 &",
        nodes.join(" ")
    ))?;
    let api = &w.lab.api;
    let started = Instant::now();
    let all = w.api(async {
        tokio::try_join!(
            everything(api, POOLS[0].0, &host),
            everything(api, POOLS[1].0, &host),
            everything(api, POOLS[2].0, &host)
        )
    })?;
    let told: Vec<Told> = [all.0, all.1, all.2].into_iter().flatten().collect();
    let errors: Vec<String> =
        told.iter().filter_map(|t| t.error.as_ref()).map(|e| e.kind.as_str().to_string()).collect();
    println!(
        "     every request ended within {:.1} s: {}",
        started.elapsed().as_secs_f64(),
        errors.join(", ")
    );
    for ((pool, ..), told) in POOLS.iter().zip(told.chunks(5)) {
        ensure!(told.iter().any(|t| t.error.is_some()), "nothing failed on {pool}: its disk was not pulled");
    }

    // A growth that is not answered may hang in ZFS; one that was refused does not.
    let grown = told.iter().take(5).find(|t| t.size.is_some()).and_then(|t| t.error.as_ref());
    let hangs = grown.is_some_and(|e| e.kind == ErrorKind::Deadline);
    let went_on =
        cannot_be_had(w).and_then(|()| others_go_on(w, hangs)).and_then(|()| goes_on_with_its_disk(w));

    if went_on.is_err() {
        let pool = POOLS[0].0;
        let said = format!(
            "journalctl -u orlopd --no-pager | grep {pool} | grep -v 'capacity\\|verb=' | tail -n 30; zpool status -P {pool} | head -n 20; \
             tail -n 20 /proc/spl/kstat/zfs/{pool}/txgs; zdb -lu {} | grep -w 'txg\\|pool_guid' | sort | uniq -c; \
             for t in /proc/[0-9]*/task/*; do grep -q '^State:.D' $t/status && cat $t/comm $t/stack; done; true",
            part(POOLS[0].2)
        );
        println!("---- of {pool}:\n{}", w.lab.on_appliance(&said).unwrap_or_else(|e| format!("{e:#}")));
    }

    // With its disks again; also where something was wrong, so that no later scenario is without them.
    w.lab.power_cycle(|_| {})?;
    w.lab.wait_api()?;
    went_on?;
    for ((pool, ..), sum) in POOLS.into_iter().zip(&sums) {
        comes_back(w, pool, sum).with_context(|| pool.to_string())?;
    }
    for told in &told {
        is_as_told(w, told)?;
    }
    let orphans = w.api(w.lab.api.orphans())?;
    let ours = |pool: &str| POOLS.iter().any(|(p, ..)| *p == pool);
    let left: Vec<_> =
        orphans.items.iter().filter(|o| o.pool.as_ref().is_some_and(|p| ours(p.as_str()))).collect();
    ensure!(left.is_empty(), "left behind: {left:#?}");
    for (pool, ..) in POOLS {
        empty(w, pool).with_context(|| pool.to_string())?;
        w.api(w.lab.api.delete_pool(&pool.parse()?))?;
    }
    Ok(())
}

/// A zpool that can't answer says so at once, and takes nothing with it.
fn cannot_be_had(w: &mut World) -> Result<()> {
    let pool = POOLS[0].0;
    is_alarmed(w, pool)?;
    let state = w.lab.on_appliance(&format!("cat /proc/spl/kstat/zfs/{pool}/state"))?;
    ensure!(state.trim() == "SUSPENDED", "ZFS goes on trying: {state}");
    is_refused(w, &format!("{pool}-kept"))
}

fn is_alarmed(w: &World, pool: &str) -> Result<()> {
    wait_for("an alarm", Duration::from_secs(30), || {
        let health = w.api(w.lab.api.pool(&pool.parse()?))?.health;
        let alarms = w.api(w.lab.api.alarms())?;
        Ok(health.is_some_and(|h| h.state == PoolHealthState::Failed)
            && alarms.iter().any(|a| a.subject == format!("pool/{pool}/health")))
    })
}

fn is_refused(w: &World, volume: &str) -> Result<()> {
    let host = w.host(1)?;
    let started = Instant::now();
    let refused = w.api(w.lab.api.attach(&by_name(volume)?, &host));
    let problem = refused.err().context("a volume without a disk was attached")?;
    ensure!(problem.to_string().contains("can't use its disks"), "{problem}");
    ensure!(started.elapsed() < Duration::from_secs(5), "it took {:?}", started.elapsed());
    Ok(())
}

/// The others go on, in their normal time. But for one thing: where a growth hangs in ZFS, it can remove no zvol.
fn others_go_on(w: &mut World, growth_hangs: bool) -> Result<()> {
    for name in ["goes-on", "goes-on-again"] {
        let started = Instant::now();
        let other = w.volume(name, ZFS, 64)?;
        w.attach(&other, 1)?;
        w.detach(&other, 1)?;
        if let Err(problem) = w.api(w.lab.api.delete_volume(&other.id.into())) {
            let told = problem.to_string();
            ensure!(growth_hangs, "refused where no growth hangs: {told}");
            ensure!(told.contains(&format!("zpool {} lost disks while", POOLS[0].0)), "{told}");
            println!("     a growth hangs: {told}");
        }
        ensure!(started.elapsed() < Duration::from_secs(10), "another pool took {:?}", started.elapsed());
    }
    Ok(())
}

/// The disk of the zpool is put back while all goes on.
fn goes_on_with_its_disk(w: &mut World) -> Result<()> {
    let pool = POOLS[0].0;
    put_back(w)?;
    wait_for("the zpool to go on", Duration::from_secs(60), || {
        let state = w.lab.on_appliance(&format!("cat /proc/spl/kstat/zfs/{pool}/state"))?;
        Ok(state.trim() == "ONLINE")
    })?;
    let kept = w.api(w.lab.api.volume(&by_name(&format!("{pool}-kept"))?))?;
    w.attach(&kept, 1)?;
    w.detach(&kept, 1)?;
    // What could not be removed is.
    wait_for("the rest to be removed", Duration::from_secs(60), || {
        let mut left = w.api(w.lab.api.all_volumes(VolumeFilter::default()))?;
        left.retain(|v| v.name.as_str().starts_with("goes-on"));
        // One that the daemon is removing by itself is in the way of this.
        let _ = left.iter().try_for_each(|v| w.remove(v));
        Ok(left.is_empty())
    })
}

/// A shell's word for the partition that a zpool has made on a disk.
fn part(n: u8) -> String {
    format!("$(readlink -f {})1", disk(n))
}

/// Copies the labels of a zpool's disk, two at its start and two at its end, to files or back. Past the cache: ZFS does
/// not write through it.
fn labels(w: &mut World, n: u8, name: &str, back: bool) -> Result<()> {
    let copy = |file: &str, at: &str| match back {
        false => format!("dd if=$p of=/tmp/{name}.{file} bs=256k count=2 skip={at} iflag=direct status=none"),
        true => format!("dd if=/tmp/{name}.{file} of=$p bs=256k count=2 seek={at} oflag=direct status=none"),
    };
    let script = format!(
        "set -e; udevadm settle; p={}; end=$(( $(blockdev --getsize64 $p) / 262144 - 2 )); {}; {}",
        part(n),
        copy("start", "0"),
        copy("end", "$end")
    );
    w.lab.on_appliance(&script).map(drop)
}

/// A pool that the daemon could not open, and why.
fn is_missing(w: &mut World, pool: &str, why: &str) -> Result<()> {
    w.lab.wait_api()?;
    let now = w.api(w.lab.api.pool(&pool.parse()?))?;
    ensure!(now.state == PoolState::Missing, "{now:?}");
    let reason = now.reason.context("no reason")?;
    ensure!(reason.contains("can't use its disks") && reason.contains(why), "{reason}");
    let state = w.lab.on_appliance(&format!("cat /proc/spl/kstat/zfs/{pool}/state"))?;
    // The second where nothing waited to be written.
    ensure!(["SUSPENDED", "UNAVAIL"].contains(&state.trim()), "it goes on: {state}");
    Ok(())
}

/// A zpool that nobody changes loses its disk. What it gets back is not written on if it is not as it was left; and as
/// it was left, it goes on.
pub fn an_idle_pool_waits_for_its_disk(w: &mut World) -> Result<()> {
    let (pool, n) = (POOLS[0].0, POOLS[0].2);
    let plain = PoolCreate::new(pool.parse()?, PoolKind::Zfs);
    w.api(w.lab.api.create_pool(&PoolCreate { disks: vec![disk(n)], ..plain }))?;
    let kept = w.volume("idle-kept", pool, 64)?;
    w.lab.on_appliance(&format!("zpool sync {pool}"))?;
    labels(w, n, "earlier", false)?;
    let a = w.attach(&kept, 1)?;
    let path = w.lab.initiator.connect(&a, 1, 1)?;
    let sum = w.lab.initiator.write_random(&path, 4)?;
    w.lab.initiator.disconnect(&a)?;
    w.detach(&kept, 1)?;
    w.lab.on_appliance(&format!("zpool sync {pool}; echo 1 >{}", puller(n)))?;
    is_alarmed(w, pool)?;
    is_refused(w, "idle-kept")?;

    // The disk is put back to an earlier state while it is away.
    w.lab.on_appliance("systemctl stop orlopd")?;
    put_back(w)?;
    labels(w, n, "as-left", false)?;
    labels(w, n, "earlier", true)?;
    w.lab.on_appliance("systemctl start orlopd")?;
    is_missing(w, pool, "earlier state")?;
    others_go_on(w, false)?;
    w.lab.on_appliance("systemctl stop orlopd")?;
    labels(w, n, "as-left", true)?;
    w.lab.on_appliance(&format!("echo 1 >{}; systemctl start orlopd", puller(n)))?;
    is_missing(w, pool, "put back what is lost")?;
    others_go_on(w, false)?;

    put_back(w)?;
    wait_for("the pool to be there", Duration::from_secs(90), || {
        Ok(w.api(w.lab.api.pool(&pool.parse()?))?.state == PoolState::Online)
    })?;
    let a = w.attach(&kept, 1)?;
    let path = w.lab.initiator.connect(&a, 1, 1)?;
    ensure!(w.lab.initiator.checksum(&path, 4)? == sum, "other bytes");
    w.lab.initiator.disconnect(&a)?;
    w.remove(&kept)?;
    Ok(w.api(w.lab.api.delete_pool(&pool.parse()?))?)
}

fn comes_back(w: &mut World, pool: &str, sum: &str) -> Result<()> {
    wait_for("the pool to be there", Duration::from_secs(60), || {
        Ok(w.api(w.lab.api.pool(&pool.parse()?))?.state == PoolState::Online)
    })?;
    // What was in flight is settled.
    wait_for("its volumes to be well", Duration::from_secs(60), || {
        let all = w.api(w.lab.api.all_volumes(VolumeFilter::default()))?;
        Ok(all.iter().filter(|v| v.pool.as_str() == pool).all(|v| v.state == VolumeState::Ready))
    })?;
    let kept = w.api(w.lab.api.volume(&by_name(&format!("{pool}-kept"))?))?;
    let a = w.attach(&kept, 1)?;
    let path = w.lab.initiator.connect(&a, 1, 1)?;
    ensure!(w.lab.initiator.checksum(&path, 4)? == sum, "other bytes");
    w.lab.initiator.disconnect(&a)?;
    w.detach(&kept, 1)
}

fn is_as_told(w: &World, told: &Told) -> Result<()> {
    for (name, there) in &told.volumes {
        let found = w.api(w.lab.api.volume(&by_name(name)?));
        match (there, found) {
            (Some(true), found) => drop(found.with_context(|| format!("{name} was acknowledged"))?),
            (Some(false), Ok(volume)) => anyhow::bail!("it was deleted: {volume:?}"),
            (_, Err(e)) => ensure!(e.kind == ErrorKind::NotFound, "{name}: {e}"),
            (None, Ok(_)) => {}
        }
    }
    for (name, there) in &told.snapshots {
        let found = w.api(w.lab.api.snapshot(&SnapshotRef::Name(name.parse()?)));
        match (there, found) {
            (Some(true), found) => drop(found.with_context(|| format!("{name} was acknowledged"))?),
            (Some(false), Ok(snapshot)) => anyhow::bail!("it was deleted: {snapshot:?}"),
            (_, Err(e)) => ensure!(e.kind == ErrorKind::NotFound, "{name}: {e}"),
            (None, Ok(_)) => {}
        }
    }
    if let Some((name, size)) = &told.size {
        let volume = w.api(w.lab.api.volume(&by_name(name)?))?;
        ensure!(volume.size >= *size, "{size} was acknowledged: {volume:?}");
    }
    Ok(())
}

/// Deletes all that is in a pool: clones, snapshots, the rest.
fn empty(w: &World, pool: &str) -> Result<()> {
    let volumes = || -> Result<Vec<_>> {
        let all = w.api(w.lab.api.all_volumes(VolumeFilter::default()))?;
        Ok(all.into_iter().filter(|v| v.pool.as_str() == pool).collect())
    };
    for volume in volumes()?.iter().filter(|v| v.source.is_some()) {
        w.remove(volume)?;
    }
    let snapshots = w.api(w.lab.api.all_snapshots(SnapshotFilter::default()))?;
    for snapshot in snapshots.into_iter().filter(|s| s.name.as_str().starts_with(pool)) {
        w.api(w.lab.api.delete_snapshot(&snapshot.id.into(), When::Now))?;
    }
    volumes()?.iter().try_for_each(|volume| w.remove(volume))
}
