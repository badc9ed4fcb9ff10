//! File systems by NFS, with the kernel's own client: hosts and zones, both versions, growing, fencing, locks.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use orlop_api::{
    Attachment, ErrorKind, HostName, HostPut, NfsAccess, Squash, Volume, VolumeCreate, VolumeKind, VolumeRef,
    VolumeUpdate, ZonePut,
};
use orlop_tests::{Initiator, wait_for};

use crate::world::{LVM, World, XFS, ZFS, ask, refused};

/// The appliance on the first initiator's first network and on the second one's, and they themselves.
const APPLIANCE: [&str; 2] = ["10.77.1.1", "10.77.3.1"];
const HOSTS: [&str; 2] = ["10.77.1.2", "10.77.3.2"];

fn nfs(a: &Attachment) -> Result<&NfsAccess> {
    a.nfs().with_context(|| format!("volume {} is not reached by NFS: {a:?}", a.volume))
}

/// The first initiator, or the second.
fn initiator(w: &mut World, n: usize) -> Result<&mut Initiator> {
    match n {
        0 => Ok(&mut w.lab.initiator),
        _ => w.lab.others.first_mut().context("a second initiator"),
    }
}

fn share(w: &World, name: &str, pool: &str, mib: u64) -> Result<Volume> {
    let ask = VolumeCreate { kind: Some(VolumeKind::Filesystem), ..ask(name, pool, mib) };
    Ok(w.api(w.lab.api.create_volume(&ask))?)
}

/// A host that is an initiator as NFS knows it.
fn host(w: &World, n: usize) -> Result<HostName> {
    let name: HostName = format!("share-{n}").parse()?;
    let ask = HostPut { addresses: vec![HOSTS[n].parse()?], ..HostPut::default() };
    w.api(w.lab.api.put_host(&name, &ask))?;
    Ok(name)
}

fn attach(w: &World, volume: &Volume, n: usize) -> Result<Attachment> {
    let host = host(w, n)?;
    Ok(w.api(w.lab.api.attach(&VolumeRef::Id(volume.id), &host))?)
}

/// Mounts a volume below /mnt, and says where.
fn mount(w: &mut World, volume: &Volume, n: usize, how: &str) -> Result<String> {
    let place = format!("/run/mnt-{}", volume.name);
    let from = format!("{}:/volumes/{}", APPLIANCE[n], volume.id);
    // To NFSv4 hosts of one name are one host, and these were made from one image.
    initiator(w, n)?.run(&format!(
        "hostname share-{n} && mkdir -p {place} && timeout 60 mount -t nfs -o {how} {from} {place}"
    ))?;
    Ok(place)
}

/// Soft, so that one that was cut off can be let go of; no attribute is believed for longer than it is asked for.
const V4: &str = "vers=4.2,soft,timeo=50,retrans=2,noac";
const V3: &str = "vers=3,soft,timeo=50,retrans=2,noac";

fn unmount(w: &mut World, place: &str, n: usize) -> Result<()> {
    initiator(w, n)?.run(&format!("umount {place} 2>/dev/null || umount -f -l {place}")).map(drop)
}

/// A writer that appends a line a time, each durable before the next: it ends with the first error.
fn start_writer(w: &mut World, place: &str) -> Result<()> {
    w.lab.initiator.run(&format!(
        "systemctl reset-failed share-writer 2>/dev/null; systemd-run --quiet --unit=share-writer -p RemainAfterExit=yes \
         sh -c 'n=0; while echo $n | dd of={place}/log oflag=append,sync conv=notrunc status=none; do n=$((n+1)); sleep 0.02; done; exit 1'"
    ))?;
    wait_for("the first lines", Duration::from_secs(60), || {
        let lines = w.lab.initiator.run(&format!("cat {place}/log 2>/dev/null | wc -l"))?;
        Ok(lines.trim().parse::<u64>()? > 3)
    })
}

fn writer_state(w: &mut World) -> Result<String> {
    w.lab.initiator.run("systemctl show share-writer -p ActiveState --value").map(|s| s.trim().to_string())
}

pub fn hosts_and_zones_share_file_systems(w: &mut World) -> Result<()> {
    for (name, pool) in [("share-zfs", ZFS), ("share-xfs", XFS), ("share-lvm", LVM)] {
        if pool == LVM && w.api(w.lab.api.pool(&LVM.parse()?)).is_err() {
            continue;
        }
        let volume = share(w, name, pool, 128)?;
        let a = attach(w, &volume, 0)?;
        ensure!(nfs(&a)?.portals.iter().any(|p| p.address == APPLIANCE[0] && p.port == 2049), "{a:?}");
        ensure!(nfs(&a)?.path == format!("/volumes/{}", volume.id), "{a:?}");
        let place = mount(w, &volume, 0, V4)?;
        let sum = w.lab.initiator.run(&format!(
            "dd if=/dev/urandom of={place}/data bs=1M count=8 conv=fsync status=none && chown 1000 {place}/data && \
             sha256sum <{place}/data && stat -c %u {place}/data"
        ))?;
        ensure!(sum.lines().nth(1) == Some("1000"), "root is squashed: {sum}");
        // The same by version 3.
        unmount(w, &place, 0)?;
        let place = mount(w, &volume, 0, V3)?;
        let again = w.lab.initiator.run(&format!("sha256sum <{place}/data && stat -c %u {place}/data"))?;
        ensure!(sum == again, "{name}: other bytes by version 3");
        unmount(w, &place, 0)?;
        // It grows while it is mounted.
        let place = mount(w, &volume, 0, V4)?;
        let size = |w: &mut World| -> Result<u64> {
            Ok(w.lab.initiator.run(&format!("df --output=size -B1M {place} | tail -1"))?.trim().parse()?)
        };
        let before = size(w)?;
        let update = VolumeUpdate { size: Some(orlop_api::ByteSize(256 << 20)), ..VolumeUpdate::default() };
        w.api(w.lab.api.update_volume(&VolumeRef::Id(volume.id), &update))?;
        let after = size(w)?;
        ensure!(after > before + 80, "{name} has {after} MiB after a grow, {before} before");
        // A stranger is refused.
        let theirs = mount(w, &volume, 1, V4);
        ensure!(theirs.is_err(), "{name}: a stranger could mount it");
        unmount(w, &place, 0)?;
        // A zone that the other is in may read it. Who may write goes on.
        let place = mount(w, &volume, 0, V4)?;
        let zone: HostName = "second".parse()?;
        let network: orlop_api::Network = "10.77.3.0/24".parse()?;
        let zone_of =
            |read_only, squash| ZonePut { networks: vec![network], read_only, squash, ..ZonePut::default() };
        w.api(w.lab.api.put_zone(&zone, &zone_of(true, Squash::Root)))?;
        w.api(w.lab.api.attach(&VolumeRef::Id(volume.id), &zone))?;
        let theirs = mount(w, &volume, 1, V4)?;
        let read =
            initiator(w, 1)?.run(&format!("sha256sum <{theirs}/data; touch {theirs}/x 2>&1 || true"))?;
        ensure!(read.lines().next() == sum.lines().next(), "{name}: a zone reads other bytes: {read}");
        ensure!(read.contains("Read-only file system"), "{name}: a zone that may only read wrote: {read}");
        w.lab.initiator.run(&format!("echo still >{place}/still && sync -f {place}/still"))?;
        // It may write now, and root is nobody.
        w.lab.initiator.run(&format!("mkdir -m 777 {place}/open"))?;
        w.api(w.lab.api.put_zone(&zone, &zone_of(false, Squash::Root)))?;
        let wrote = initiator(w, 1)?.run(&format!(
            "umount {theirs} && timeout 60 mount -t nfs -o {V4} {}:/volumes/{} {theirs} && \
             echo theirs >{theirs}/open/file && stat -c %u {theirs}/open/file",
            APPLIANCE[1], volume.id
        ))?;
        ensure!(wrote.trim() == "65534", "{name}: root of a zone is {wrote}");
        w.api(w.lab.api.detach(&VolumeRef::Id(volume.id), &zone))?;
        let out = initiator(w, 1)?
            .run(&format!("timeout 60 cat {theirs}/data >/dev/null 2>&1 && echo in || echo out"))?;
        ensure!(out.trim() == "out", "{name}: a zone that was detached reads");
        unmount(w, &theirs, 1)?;
        unmount(w, &place, 0)?;
        w.remove(&volume)?;
        w.api(w.lab.api.delete_zone(&zone))?;
    }
    // What is no file system is attached to no zone; a share is no disk.
    let (disk, volume) = (w.volume("no-share", ZFS, 64)?, share(w, "no-disk", ZFS, 64)?);
    let (addressed, named) = (host(w, 0)?, w.host(1)?);
    refused(w.api(w.lab.api.attach(&VolumeRef::Id(disk.id), &addressed)), ErrorKind::Precondition)?;
    refused(w.api(w.lab.api.attach(&VolumeRef::Id(volume.id), &named)), ErrorKind::Precondition)?;
    w.remove(&disk)?;
    w.remove(&volume)
}

pub fn a_fenced_nfs_writer_is_cut_off(w: &mut World) -> Result<()> {
    let (volume, beside) = (share(w, "share-fence", XFS, 128)?, share(w, "share-beside", ZFS, 128)?);
    attach(w, &volume, 0)?;
    attach(w, &beside, 1)?;
    let place = mount(w, &volume, 0, V4)?;
    // A neighbour, who must not notice.
    let theirs = mount(w, &beside, 1, V4)?;
    initiator(w, 1)?.run(&format!(
        "systemd-run --quiet --unit=neighbour -p RemainAfterExit=yes \
         sh -c 'while echo x | dd of={theirs}/log oflag=append,sync conv=notrunc status=none; do sleep 0.05; done; exit 1'"
    ))?;
    w.lab.initiator.run(&format!(
        "touch {place}/lock && systemd-run --quiet --unit=share-lock flock {place}/lock sleep 600"
    ))?;
    start_writer(w, &place)?;
    let before = Instant::now();
    let next = host(w, 1)?;
    let alone = orlop_api::client::AttachAs { exclusive: true, ..Default::default() };
    w.api(w.lab.api.attach_as(&VolumeRef::Id(volume.id), &next, &alone))?;
    println!("     the fence and the attach took {:.2} s", before.elapsed().as_secs_f64());
    let mine = mount(w, &volume, 1, V4)?;
    let sum = |w: &mut World| initiator(w, 1)?.run(&format!("sha256sum <{mine}/log"));
    let first = sum(w)?;
    // What the one that was cut off had locked is free: at once, not when its lease ends.
    let locked = Instant::now();
    initiator(w, 1)?.run(&format!("timeout 20 flock {mine}/lock true"))?;
    println!("     its lock was free after {:.2} s", locked.elapsed().as_secs_f64());
    wait_for("the writer to fail", Duration::from_secs(120), || Ok(writer_state(w)? == "failed"))?;
    initiator(w, 1)?.run("sleep 3")?;
    ensure!(sum(w)? == first, "a write arrived after the fence");
    let neighbour = initiator(w, 1)?.run("systemctl show neighbour -p ActiveState --value")?;
    ensure!(neighbour.trim() == "active", "the neighbour is {neighbour}");
    // A host that comes back with its old paths gets nothing.
    let back = w.lab.initiator.run(&format!("timeout 30 ls {place} 2>&1 && echo in || echo out"))?;
    ensure!(back.trim().ends_with("out"), "it is let in again: {back}");
    w.lab.initiator.run(
        "systemctl stop share-lock share-writer 2>/dev/null; systemctl reset-failed 2>/dev/null; true",
    )?;
    unmount(w, &place, 0)?;
    initiator(w, 1)?.run("systemctl stop neighbour; true")?;
    unmount(w, &mine, 1)?;
    unmount(w, &theirs, 1)?;
    w.remove(&volume)?;
    w.remove(&beside)
}

/// What is held over a power cut.
pub struct Held {
    volume: Volume,
    place: String,
}

/// A lock is taken, hard, as a database's would be.
pub fn lock_before_the_cut(w: &mut World) -> Result<Held> {
    let volume = share(w, "share-cut", XFS, 128)?;
    attach(w, &volume, 0)?;
    attach(w, &volume, 1)?;
    let place = mount(w, &volume, 0, "vers=4.2,hard")?;
    w.lab.initiator.run(&format!(
        "echo before >{place}/lock && sync -f {place}/lock && \
         systemd-run --quiet --unit=cut-lock flock {place}/lock sleep 900 && sleep 1 && \
         ! flock -n {place}/lock true"
    ))?;
    Ok(Held { volume, place })
}

/// The host has its lock still, and the other does not get it.
pub fn lock_after_the_cut(w: &mut World, held: Held) -> Result<()> {
    let Held { volume, place } = held;
    let mine = mount(w, &volume, 1, "vers=4.2,soft,timeo=600")?;
    let waited = Instant::now();
    let told = initiator(w, 1)?.run(&format!(
        "cat {mine}/lock; timeout 150 flock -n {mine}/lock true && echo taken || echo refused"
    ))?;
    println!("     the lock was asked for over {:.1} s of grace", waited.elapsed().as_secs_f64());
    ensure!(told.contains("before") && told.contains("refused"), "the other host: {told}");
    w.lab.initiator.run(&format!(
        "echo after >>{place}/lock && systemctl is-active cut-lock && systemctl stop cut-lock"
    ))?;
    initiator(w, 1)?.run(&format!("timeout 60 flock {mine}/lock true"))?;
    unmount(w, &mine, 1)?;
    unmount(w, &place, 0)?;
    w.remove(&volume)
}
