//! The daemon is restarted, killed, stopped; the appliance loses its power. Hosts notice nothing, or wait.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use orlop_api::{
    Attachment, ByteSize, EncryptionCreate, EncryptionKey, ErrorKind, Nqn, OrphanAdopt, Properties,
    SnapshotCreate, Unlock, Volume, VolumeCreate, VolumeKey, VolumeName, VolumeRef, VolumeState,
    VolumeUpdate, When,
};
use orlop_tests::wait_for;

use crate::world::{BTRFS, World, XFS, ZFS, ask, nqn, refused};
use crate::{iscsi, shares};

/// Both are the same text, or an error with the lines that differ.
pub fn same(before: &str, after: &str) -> Result<()> {
    let gone: Vec<_> = before.lines().filter(|l| !after.lines().any(|a| a == *l)).collect();
    let new: Vec<_> = after.lines().filter(|l| !before.lines().any(|b| b == *l)).collect();
    ensure!(gone.is_empty() && new.is_empty(), "it is another one: gone {gone:#?}, new {new:#?}");
    Ok(())
}

pub fn restart_is_not_noticed(w: &mut World) -> Result<()> {
    with_writer(w, "restart", |w| w.lab.on_appliance("systemctl restart orlopd").map(drop))
}

pub fn kill_is_not_noticed(w: &mut World) -> Result<()> {
    with_writer(w, "kill", |w| w.lab.on_appliance("systemctl kill -s KILL orlopd; sleep 1").map(drop))
}

pub fn stop_leaves_targets_serving(w: &mut World) -> Result<()> {
    with_writer(w, "stop", |w| {
        w.lab.on_appliance("systemctl stop orlopd")?;
        let result = w.lab.on_appliance("systemctl show orlopd -p Result,ExecMainStatus")?;
        ensure!(result.contains("Result=success") && result.contains("ExecMainStatus=0"), "{result}");
        let before = w.lab.initiator.acknowledged("stop")?;
        let initiator = &mut w.lab.initiator;
        wait_for("writes without a daemon", Duration::from_secs(30), || {
            Ok(initiator.acknowledged("stop")? > before + 20)
        })?;
        w.lab.on_appliance("systemctl start orlopd").map(drop)
    })
}

/// Something happens to the daemon while a connected host writes: no write may fail or stall.
fn with_writer(w: &mut World, name: &str, happens: impl FnOnce(&mut World) -> Result<()>) -> Result<()> {
    let volume = w.volume(name, ZFS, 512)?;
    let a = w.attach(&volume, 1)?;
    let path = w.lab.initiator.connect(&a, 1, 1)?;
    w.lab.initiator.start_stream(name, &path, 0, 100_000)?;
    w.lab.initiator.run("dmesg -C")?;
    happens(w)?;
    w.lab.wait_api()?;
    let before = w.lab.initiator.acknowledged(name)?;
    let initiator = &mut w.lab.initiator;
    wait_for("the writer to go on", Duration::from_secs(30), || {
        Ok(initiator.acknowledged(name)? > before + 20)
    })?;
    ensure!(initiator.stream_state(name)? == "running", "the writer had an error");
    let resets = initiator.run("dmesg | grep -cE 'nvme.*(reconnect|I/O error|timeout)' || true")?;
    initiator.stop_stream(name)?;
    initiator.verify_stream(name, &path, 0)?;
    ensure!(resets.trim() == "0", "the initiator noticed: {resets} lines");
    initiator.disconnect(&a)?;
    w.remove(&volume)
}

const VERBS: [&str; 9] = [
    "create_volume",
    "create_snapshot",
    "adopt_volume",
    "resize_volume",
    "set_volume",
    "attach",
    "delete_snapshot",
    "detach",
    "delete_volume",
];
const STAGES: [&str; 3] = ["intent", "acted", "committed"];

/// Each verb is killed after its intent is durable, after its work is done, and after its commit. The next
/// place is armed before the daemon is killed at this one, so every kill costs one start; neighbours have
/// different verbs, so what follows a kill does not run into the next one.
pub fn kill_at_every_failpoint(w: &mut World) -> Result<()> {
    let payload = w.lab.appliance.mount_payload()?.to_string();
    let before = leftovers(w)?;
    // Every place on ZFS. On images, encrypted ones, those where something of theirs is half done: before the work
    // nothing is, and after the commit nothing has to be put right, whatever the pool.
    let all = STAGES.into_iter().flat_map(|stage| VERBS.into_iter().map(move |verb| (ZFS, verb, stage)));
    // Images have no properties, and none of somebody else's lies there that would be encrypted.
    let images = VERBS.into_iter().filter(|verb| !["set_volume", "adopt_volume"].contains(verb));
    let places: Vec<_> = all.chain(images.map(|verb| (XFS, verb, "acted"))).collect();
    let host = w.host(1)?;
    for &(pool, verb, stage) in &places {
        if verb == "adopt_volume" {
            w.lab.on_appliance(&format!("zfs create -s -V 64M {}", theirs(stage)))?;
        } else if verb != "create_volume" {
            let volume = w.api(w.lab.api.create_volume(&asked(pool, verb, stage)))?;
            if verb == "delete_snapshot" {
                w.api(w.lab.api.create_snapshot(&shot(&volume.name)?))?;
            }
            if verb == "detach" {
                w.api(w.lab.api.attach(&VolumeRef::Id(volume.id), &host))?;
            }
        }
    }
    w.lab.on_appliance(&format!(
        "mkdir -p /run/systemd/system/orlopd.service.d && cat >/run/systemd/system/orlopd.service.d/failpoint.conf <<EOF\n\
         [Service]\nExecStart=\nExecStart={payload}/orlopd\nEnvironmentFile=-/run/failpoint\nRestartSec=100ms\nEOF\n\
         systemctl daemon-reload && echo ORLOP_FAILPOINT={}.{} >/run/failpoint && systemctl restart orlopd",
        places[0].1, places[0].2
    ))?;
    w.lab.wait_api()?;
    for (n, &(pool, verb, stage)) in places.iter().enumerate() {
        let next = places.get(n + 1).map_or("none".to_string(), |(_, verb, stage)| format!("{verb}.{stage}"));
        kill_at(w, pool, verb, stage, &next).with_context(|| format!("{verb}.{stage} on {pool}"))?;
    }
    w.lab.on_appliance(
        "rm -rf /run/systemd/system/orlopd.service.d && systemctl daemon-reload && systemctl restart orlopd",
    )?;
    w.lab.wait_api()?;
    for &(pool, verb, stage) in &places {
        match w.api(w.lab.api.volume(&VolumeRef::Name(name(pool, verb, stage).parse()?))) {
            Ok(volume) => {
                if verb == "create_snapshot" {
                    w.api(w.lab.api.delete_snapshot(&shot(&volume.name)?.name.into(), When::Now))?;
                }
                w.remove(&volume)?
            }
            Err(e) => {
                ensure!(verb == "delete_volume" && e.kind == ErrorKind::NotFound, "{verb}.{stage}: {e}")
            }
        }
    }
    let after = leftovers(w)?;
    ensure!(after == before, "left behind:\n{after}\nthere was:\n{before}");
    Ok(())
}

fn name(pool: &str, verb: &str, stage: &str) -> String {
    format!("{pool}-{verb}-{stage}")
}

/// A zvol that somebody else has made.
fn theirs(stage: &str) -> String {
    format!("{ZFS}/theirs-{stage}")
}

fn asked(pool: &str, verb: &str, stage: &str) -> VolumeCreate {
    let encryption = (pool == XFS).then(EncryptionCreate::default);
    VolumeCreate { encryption, ..ask(&name(pool, verb, stage), pool, 64) }
}

/// The snapshot of a volume that has the same name.
pub fn shot(volume: &VolumeName) -> Result<SnapshotCreate> {
    Ok(SnapshotCreate { name: volume.as_str().parse()?, volume: volume.clone().into() })
}

fn compressed() -> VolumeUpdate {
    let properties = Properties { compression: "zstd".parse().ok(), ..Properties::default() };
    VolumeUpdate { properties, ..VolumeUpdate::default() }
}

/// Zvols, loop devices, what decrypts, files of the file pool, subsystems.
fn leftovers(w: &mut World) -> Result<String> {
    w.lab.on_appliance(&format!(
        "zfs list -H -o name -t volume,snapshot -r {ZFS}; losetup -nO BACK-FILE; ls /dev/mapper; \
         ls /var/lib/orlop/pools/{XFS}/volumes /var/lib/orlop/pools/{XFS}/snapshots; \
         ls /sys/kernel/config/nvmet/subsystems"
    ))
}

/// Kills the daemon at this place, with the next one armed in the daemon that follows.
fn kill_at(w: &mut World, pool: &str, verb: &str, stage: &str, next: &str) -> Result<()> {
    const GROWN: ByteSize = ByteSize(128 << 20);
    let host = w.host(1)?;
    let name = name(pool, verb, stage);
    let name_of: VolumeName = name.parse()?;
    let by_name = VolumeRef::Name(name_of.clone());
    let snapshot = shot(&name.parse()?)?;
    let orphan = match verb {
        "adopt_volume" => {
            let found = w.api(w.lab.api.orphans())?.items;
            let found = found.into_iter().find(|o| o.name == theirs(stage)).context("no such orphan")?;
            Some(found.id)
        }
        _ => None,
    };
    let restarts = "systemctl show orlopd -p NRestarts --value";
    let started = w.lab.on_appliance(&format!("echo ORLOP_FAILPOINT={next} >/run/failpoint; {restarts}"))?;
    #[allow(clippy::result_large_err, reason = "a test's")]
    let act = |w: &World| match verb {
        "set_volume" => w.api(w.lab.api.update_volume(&by_name, &compressed())).map(drop),
        "adopt_volume" => {
            let Some(orphan) = &orphan else { return Ok(()) };
            w.api(w.lab.api.adopt_orphan(orphan, &OrphanAdopt { name: name_of.clone() })).map(drop)
        }
        "create_volume" => w.api(w.lab.api.create_volume(&asked(pool, verb, stage))).map(drop),
        "resize_volume" => w.api(w.lab.api.update_volume(&by_name, &VolumeUpdate::to_size(GROWN))).map(drop),
        "attach" => w.api(w.lab.api.attach(&by_name, &host)).map(drop),
        "detach" => w.api(w.lab.api.detach(&by_name, &host)),
        "create_snapshot" => w.api(w.lab.api.create_snapshot(&snapshot)).map(drop),
        "delete_snapshot" => {
            w.api(w.lab.api.delete_snapshot(&snapshot.name.clone().into(), When::Now)).map(drop)
        }
        _ => w.api(w.lab.api.delete_volume(&by_name)),
    };
    ensure!(act(w).is_err(), "it was answered, so it was not killed");
    w.lab.wait_api()?;
    let now = w.lab.on_appliance(&format!("{restarts}; ls /sys/kernel/config/nvmet/subsystems"))?;
    let (restarted, served) = now.split_once('\n').context("no answer")?;
    ensure!(restarted != started.trim(), "it was not killed");

    // What was in flight has been carried out or undone, whole: journal, pool and kernel agree.
    if let Ok(volume) = w.api(w.lab.api.volume(&by_name)) {
        ensure!(volume.state == VolumeState::Ready, "{volume:?}");
        let exported = served.lines().any(|nqn| Some(nqn) == volume.nqn.as_ref().map(Nqn::as_str));
        ensure!(exported != volume.hosts.is_empty(), "exported: {exported}, hosts: {:?}", volume.hosts);
    }
    // The same request again ends as if nothing had happened.
    match act(w) {
        Ok(()) => {}
        Err(e)
            if e.kind == ErrorKind::NotFound
                && ["detach", "delete_volume", "delete_snapshot"].contains(&verb) => {}
        Err(e) => return Err(e.into()),
    }
    match (verb, w.api(w.lab.api.volume(&by_name))) {
        ("delete_volume", Err(e)) => ensure!(e.kind == ErrorKind::NotFound, "{e}"),
        ("delete_volume", Ok(volume)) => anyhow::bail!("still there: {volume:?}"),
        ("resize_volume", volume) => ensure!(volume?.size == GROWN, "it did not grow"),
        ("create_snapshot" | "delete_snapshot", _) => {
            let found = w.api(w.lab.api.snapshot(&snapshot.name.into()));
            match (verb, found) {
                ("create_snapshot", found) => ensure!(found?.ready, "not ready"),
                (_, Err(e)) => ensure!(e.kind == ErrorKind::NotFound, "{e}"),
                (_, Ok(found)) => anyhow::bail!("still there: {found:?}"),
            }
        }
        ("set_volume", volume) => ensure!(
            volume?.properties.compression == compressed().properties.compression,
            "another compression"
        ),
        ("adopt_volume", volume) => ensure!(volume?.size == ByteSize(64 << 20), "another volume"),
        ("attach", volume) => ensure!(volume?.hosts == [host], "not attached"),
        ("detach", volume) => ensure!(volume?.hosts.is_empty(), "still attached"),
        (_, volume) => drop(volume?),
    }
    Ok(())
}

pub fn lost_journal_is_rebuilt(w: &mut World) -> Result<()> {
    let volume = w.volume("orphan", ZFS, 64)?;
    let a = w.attach(&volume, 1)?;
    // Labels are written behind.
    let label = format!("zfs get -H -o value dev.orlop:label tank/orlop/{}", volume.id);
    wait_for("the label to know its host", Duration::from_secs(20), || {
        Ok(w.lab.on_appliance(&label)?.contains("worker-1"))
    })?;
    let before = w.kernel()?;
    w.lab.on_appliance("systemctl stop orlopd && rm -rf /var/lib/orlop/journal && systemctl start orlopd")?;
    w.lab.wait_api()?;
    same(&before, &w.kernel()?)?;
    let after = w.api(w.lab.api.volume(&VolumeRef::Id(volume.id)))?;
    ensure!(
        (&after.name, &after.hosts, &after.nqn) == (&volume.name, &vec![a.host.clone()], &volume.nqn),
        "{after:?}"
    );
    let system = w.api(w.lab.api.system())?;
    ensure!(system.alarms.iter().any(|alarm| alarm.subject == "journal"), "{:?}", system.alarms);
    w.remove(&volume)
}

pub fn power_cut_loses_nothing(w: &mut World) -> Result<()> {
    let mut connected = Vec::new();
    // A flush that is under way at the cut is sent again after it, and succeeds: so it must not have been
    // needed. Hence unflushed writes, on every kind of pool.
    let kept = Some(EncryptionCreate::default());
    for (name, pool, encryption) in [
        ("cut-zvol", ZFS, None),
        ("cut-xfs", XFS, None),
        ("cut-btrfs", BTRFS, None),
        ("cut-kept", ZFS, kept.clone()),
        ("cut-luks", XFS, kept),
    ] {
        let volume = w.api(w.lab.api.create_volume(&VolumeCreate { encryption, ..ask(name, pool, 512) }))?;
        let a = w.attach(&volume, 1)?;
        let path = w.lab.initiator.connect(&a, 1, 1)?;
        let sum = w.lab.initiator.write_random(&path, 4)?;
        connected.push((name, volume, a, path, sum));
    }
    let before = w.kernel()?;
    let (brought, its_key) = connect_sealed(w)?;
    let (by_iscsi, by_nfs) = (iscsi::writer_before_the_cut(w)?, shares::lock_before_the_cut(w)?);
    for (name, _, _, path, _) in &connected {
        w.lab.initiator.start_unflushed_stream(name, path, 64 << 20, 100_000)?;
    }
    w.lab.power_cycle(|_| {})?;
    println!("     ready {:.1} s after the power came back", w.lab.boot.as_secs_f64());
    // Before its grace is over.
    shares::lock_after_the_cut(w, by_nfs)?;
    iscsi::writer_after_the_cut(w, by_iscsi)?;
    unlock_sealed(w, &brought, &its_key)?;
    // Device numbers are the one thing that may differ after a boot.
    let stable =
        |tree: &str| tree.lines().filter(|l| !l.contains("device_path:")).collect::<Vec<_>>().join("\n");
    same(&stable(&before), &stable(&w.kernel()?))?;
    for (name, volume, a, path, sum) in &connected {
        let acked = w.lab.initiator.acknowledged(name)?;
        let initiator = &mut w.lab.initiator;
        let what = format!("{name}'s writer to reconnect and go on");
        wait_for(&what, Duration::from_secs(90), || {
            let goes_on = initiator.acknowledged(name)? > acked + 20;
            ensure!(initiator.stream_state(name)? == "running", "{name}: the writer had an error");
            Ok(goes_on)
        })?;
        initiator.stop_stream(name)?;
        let records = initiator.verify_stream(name, path, 64 << 20)?;
        ensure!(initiator.checksum(path, 4)? == *sum, "{name}: fsynced bytes are lost");
        println!("     {name}: {acked} records before the cut, {records} in the end, all there");
        let again = w.attach(volume, 1)?;
        ensure!(again == *a, "{name}: another identity: {again:?} was {a:?}");
        w.lab.initiator.disconnect(a)?;
        w.remove(volume)?;
    }
    Ok(())
}

/// A volume whose key the appliance does not keep, and what a connected host wrote to it.
struct Sealed {
    volume: Volume,
    attachment: Attachment,
    sum: String,
}

fn connect_sealed(w: &mut World) -> Result<(Sealed, EncryptionKey)> {
    let key: EncryptionKey = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0".parse()?;
    let encryption = Some(EncryptionCreate { unlock: Unlock::Manual, key: Some(key.clone()) });
    let volume =
        w.api(w.lab.api.create_volume(&VolumeCreate { encryption, ..ask("cut-brought", ZFS, 64) }))?;
    let attachment = w.attach(&volume, 1)?;
    let path = w.lab.initiator.connect(&attachment, 1, 1)?;
    let sum = w.lab.initiator.write_random(&path, 4)?;
    Ok((Sealed { volume, attachment, sum }, key))
}

/// After the machine was started again nobody can read it, and with its key its host finds what it wrote.
fn unlock_sealed(w: &mut World, sealed: &Sealed, key: &EncryptionKey) -> Result<()> {
    let by_id = VolumeRef::Id(sealed.volume.id);
    let now = w.api(w.lab.api.volume(&by_id))?;
    ensure!(now.state == VolumeState::Locked && now.reason.is_some(), "{now:?}");
    let served = format!("subsystems/{}", nqn(&sealed.volume)?);
    ensure!(!w.lab.target_tree()?.contains(&served), "a locked volume is served");
    let host = w.host(2)?;
    refused(w.api(w.lab.api.attach(&by_id, &host)), ErrorKind::Precondition)?;
    refused(w.api(w.lab.api.volume_key(&by_id)), ErrorKind::Precondition)?;
    let other =
        VolumeKey { key: "ff1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0".parse()? };
    refused(w.api(w.lab.api.unlock_volume(&by_id, &other)), ErrorKind::Invalid)?;
    let opened = w.api(w.lab.api.unlock_volume(&by_id, &VolumeKey { key: key.clone() }))?;
    ensure!(opened.state == VolumeState::Ready, "{opened:?}");
    wait_for("it to be served again", Duration::from_secs(30), || {
        Ok(w.lab.target_tree()?.contains(&served))
    })?;
    // Its host has given up: it was told that there is no such volume.
    w.lab.initiator.forget(&sealed.attachment)?;
    let path = w.lab.initiator.connect(&sealed.attachment, 1, 1)?;
    ensure!(w.lab.initiator.checksum(&path, 4)? == sealed.sum, "other bytes after it was unlocked");
    // The journal has the key that is kept, and only that; the log has none.
    let kept = w.api(w.lab.api.volume_key(&VolumeRef::Name("cut-kept".parse()?)))?.key.expose_text();
    // All of the log, and that it is: what was just done is in it.
    w.lab.on_appliance("journalctl --no-pager >/run/all.log && grep -q unlock_volume /run/all.log")?;
    for (key, is_there) in [(key.expose_text(), false), (kept, true)] {
        let journal =
            w.lab.on_appliance(&format!("grep -rqs {key} /var/lib/orlop/journal && echo yes || echo no"))?;
        ensure!(journal.trim() == if is_there { "yes" } else { "no" }, "in the journal: {}", journal.trim());
        // The shell's own commands are not logged. 1: it was read, and has no such line.
        w.lab
            .on_appliance(&format!("grep -q '{key}' /run/all.log; [ $? = 1 ]"))
            .context("a key is in the log")?;
    }
    w.lab.initiator.disconnect(&sealed.attachment)?;
    w.remove(&sealed.volume)
}
