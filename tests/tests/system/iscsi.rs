//! Disks by iSCSI, with open-iscsi: identity, growing, two paths, read-only, CHAP, fencing.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use orlop_api::client::AttachAs;
use orlop_api::{
    Attachment, Chap, ChapCredentials, ChapPut, ErrorKind, HostName, HostPut, IscsiAccess, Protocol, Volume,
    VolumeCreate, VolumeRef, VolumeUpdate,
};
use orlop_tests::{Initiator, Path, wait_for};

use crate::world::{World, XFS, ZFS, ask, refused};

fn iscsi(a: &Attachment) -> Result<&IscsiAccess> {
    a.iscsi().with_context(|| format!("volume {} is not reached by iSCSI: {a:?}", a.volume))
}

pub fn disk(w: &World, name: &str, pool: &str, mib: u64) -> Result<Volume> {
    let ask = VolumeCreate { protocol: Some(Protocol::Iscsi), ..ask(name, pool, mib) };
    Ok(w.api(w.lab.api.create_volume(&ask))?)
}

pub fn host(w: &World, number: u8) -> Result<HostName> {
    let name: HostName = format!("scsi-{number}").parse()?;
    let ask = HostPut { iqn: Some(Initiator::iqn(number).parse()?), ..HostPut::default() };
    w.api(w.lab.api.put_host(&name, &ask))?;
    Ok(name)
}

pub fn attach(w: &World, volume: &Volume, number: u8) -> Result<Attachment> {
    let host = host(w, number)?;
    Ok(w.api(w.lab.api.attach(&VolumeRef::Id(volume.id), &host))?)
}

/// What a host brings: its name and secret, and those that it wants of the appliance.
#[derive(Clone, Copy, Default)]
pub struct Brings<'a> {
    host: Option<(&'a str, &'a str)>,
    target: Option<(&'a str, &'a str)>,
}

/// Logs in as a host over the first `paths` storage networks.
pub fn log_in(
    on: &mut Initiator,
    addresses: &[&str],
    a: &Attachment,
    number: u8,
    brings: Brings<'_>,
) -> Result<()> {
    let (target, own) = (&iscsi(a)?.iqn, Initiator::iqn(number));
    let mut script = format!(
        "iscsiadm -m iface -I h{number} -o new >/dev/null 2>&1; \
         iscsiadm -m iface -I h{number} -o update -n iface.transport_name -v tcp >/dev/null; \
         iscsiadm -m iface -I h{number} -o update -n iface.initiatorname -v {own} >/dev/null; "
    );
    for address in addresses {
        let node = format!("iscsiadm -m node -T {target} -p {address}:3260 -I h{number}");
        script += &format!("{node} -o delete >/dev/null 2>&1; {node} -o new >/dev/null && ");
        let mut set =
            |name: &str, value: &str| script += &format!("{node} -o update -n {name} -v {value} && ");
        set("node.session.timeo.replacement_timeout", "600");
        set("node.conn[0].timeo.login_timeout", "10");
        set("node.session.initial_login_retry_max", "1");
        if let Some((user, secret)) = brings.host {
            set("node.session.auth.authmethod", "CHAP");
            set("node.session.auth.username", user);
            set("node.session.auth.password", secret);
        }
        if let Some((user, secret)) = brings.target {
            set("node.session.auth.username_in", user);
            set("node.session.auth.password_in", secret);
        }
        script += &format!("timeout 60 {node} -l >/dev/null 2>&1 && ");
    }
    on.run(&(script + "true")).map(drop)
}

pub fn log_out(on: &mut Initiator, a: &Attachment) -> Result<()> {
    let target = &iscsi(a)?.iqn;
    on.run(&format!(
        "iscsiadm -m node -T {target} -u >/dev/null 2>&1; iscsiadm -m node -T {target} -o delete >/dev/null 2>&1; true"
    ))
    .map(drop)
}

/// The disks with the volume's world wide name, one a path.
pub fn devices(on: &mut Initiator, a: &Attachment, paths: usize) -> Result<Vec<Path>> {
    let wwn = &iscsi(a)?.wwn;
    let found = on.run(&format!(
        "for i in $(seq 200); do \
           found=$(grep -l naa.{wwn} /sys/block/sd*/device/wwid 2>/dev/null | cut -d/ -f4); \
           [ $(echo $found | wc -w) -ge {paths} ] && echo $found && exit; sleep 0.1; \
         done; echo no {paths} disks with the name {wwn}; cat /sys/block/sd*/device/wwid; exit 1"
    ))?;
    Ok(found.split_whitespace().map(|name| Path { device: format!("/dev/{name}") }).collect())
}

const ADDRESSES: [&str; 2] = ["10.77.1.1", "10.77.2.1"];
const SECOND: [&str; 1] = ["10.77.3.1"];

pub fn disks_by_iscsi(w: &mut World) -> Result<()> {
    for (name, pool) in [("scsi-zvol", ZFS), ("scsi-xfs", XFS)] {
        let volume = disk(w, name, pool, 64)?;
        let a = attach(w, &volume, 1)?;
        ensure!(volume.iqn.as_ref() == Some(&iscsi(&a)?.iqn) && volume.nqn.is_none(), "{volume:?}");
        log_in(&mut w.lab.initiator, &ADDRESSES[..1], &a, 1, Brings::default())?;
        let path = devices(&mut w.lab.initiator, &a, 1)?.remove(0);
        let sum = w.lab.initiator.write_random(&path, 4)?;
        // It grows while it is connected; the host asks again.
        let update = VolumeUpdate { size: Some(orlop_api::ByteSize(128 << 20)), ..VolumeUpdate::default() };
        w.api(w.lab.api.update_volume(&VolumeRef::Id(volume.id), &update))?;
        w.lab.initiator.run(&format!("iscsiadm -m node -T {} -R >/dev/null", iscsi(&a)?.iqn))?;
        wait_for("the new size", Duration::from_secs(20), || Ok(w.lab.initiator.size(&path)? == 128 << 20))?;
        ensure!(w.lab.initiator.checksum(&path, 4)? == sum, "{name}: other bytes");
        // A stranger is refused, and one that has another's volume too.
        let second = w.lab.others.first_mut().context("a second initiator")?;
        ensure!(log_in(second, &SECOND, &a, 9, Brings::default()).is_err(), "a stranger is let in");
        log_out(second, &a)?;
        // Another host may read it.
        let reader = host(w, 2)?;
        let how = AttachAs { read_only: true, ..AttachAs::default() };
        let b = w.api(w.lab.api.attach_as(&VolumeRef::Id(volume.id), &reader, &how))?;
        let second = w.lab.others.first_mut().context("a second initiator")?;
        log_in(second, &SECOND, &b, 2, Brings::default())?;
        let theirs = devices(second, &b, 1)?.remove(0);
        ensure!(second.checksum(&theirs, 4)? == sum, "{name}: the reader sees other bytes");
        let wrote = second
            .run(&format!("dd if=/dev/zero of={} bs=4k count=1 oflag=direct 2>&1 || true", theirs.device))?;
        ensure!(
            wrote.contains("rror") || wrote.contains("denied") || wrote.contains("Read-only"),
            "the reader wrote: {wrote}"
        );
        log_out(second, &b)?;
        w.api(w.lab.api.detach(&VolumeRef::Id(volume.id), &reader))?;
        // Two paths, one of which is lost and comes back.
        log_out(&mut w.lab.initiator, &a)?;
        log_in(&mut w.lab.initiator, &ADDRESSES, &a, 1, Brings::default())?;
        let both = devices(&mut w.lab.initiator, &a, 2)?;
        for path in &both {
            ensure!(w.lab.initiator.checksum(path, 4)? == sum, "{name}: a path has other bytes");
        }
        log_out(&mut w.lab.initiator, &a)?;
        w.remove(&volume)?;
    }
    Ok(())
}

pub fn an_iscsi_host_proves_its_secret(w: &mut World) -> Result<()> {
    let (volume, beside) = (disk(w, "scsi-secret", ZFS, 64)?, disk(w, "scsi-beside", ZFS, 64)?);
    let name = host(w, 3)?;
    let credentials = |user: &str, secret: &str| -> Result<ChapCredentials> {
        Ok(ChapCredentials { user: user.parse()?, secret: secret.parse()? })
    };
    let (good, other, theirs) = ("a-good-secret", "another-one-99", "the-appliances");
    let one_way = ChapPut { host: credentials("worker", good)?, target: None };
    let shown = w.api(w.lab.api.chap_host(&name, &one_way))?;
    ensure!(matches!(shown.chap, Some(Chap::Required { target_user: None, .. })), "{shown:?}");
    let a = attach(w, &volume, 3)?;
    let on = |w: &mut World, brings: Brings<'_>| -> Result<bool> {
        let came = log_in(&mut w.lab.initiator, &ADDRESSES[..1], &a, 3, brings).is_ok();
        if came {
            let path = devices(&mut w.lab.initiator, &a, 1)?.remove(0);
            w.lab.initiator.checksum(&path, 1)?;
        }
        log_out(&mut w.lab.initiator, &a)?;
        Ok(came)
    };
    let bring = |user, secret| Brings { host: Some((user, secret)), target: None };
    ensure!(on(w, bring("worker", good))?, "its secret is refused");
    for (brings, what) in [
        (Brings::default(), "without a secret"),
        (bring("worker", other), "with another secret"),
        (bring("somebody", good), "under another name"),
    ] {
        ensure!(!on(w, brings)?, "it is let in {what}");
    }
    // Both ways; the appliance proves its own, or is not trusted.
    let mutual = ChapPut { host: credentials("worker", good)?, target: Some(credentials("orlop", theirs)?) };
    w.api(w.lab.api.chap_host(&name, &mutual))?;
    let both = |secret| Brings { target: Some(("orlop", secret)), ..bring("worker", good) };
    ensure!(on(w, both(theirs))?, "mutual CHAP does not work");
    ensure!(!on(w, both(other))?, "the host trusts an appliance with another secret");
    let same = ChapPut { target: Some(credentials("orlop", good)?), ..mutual.clone() };
    refused(w.api(w.lab.api.chap_host(&name, &same)), ErrorKind::Invalid)?;
    // It is changed while another is connected and writes.
    let b = attach(w, &beside, 1)?;
    log_in(&mut w.lab.initiator, &ADDRESSES[..1], &b, 1, Brings::default())?;
    let path = devices(&mut w.lab.initiator, &b, 1)?.remove(0);
    w.lab.initiator.start_stream("scsi-beside", &path, 0, 10_000)?;
    w.api(w.lab.api.chap_host(&name, &ChapPut { host: credentials("worker", other)?, target: None }))?;
    ensure!(!on(w, bring("worker", good))? && on(w, bring("worker", other))?, "the change did not take");
    // A restart of the daemon under load keeps it, without one error.
    w.lab.on_appliance("systemctl restart orlopd")?;
    w.lab.wait_api()?;
    ensure!(!on(w, Brings::default())? && on(w, bring("worker", other))?, "forgotten over a restart");
    ensure!(w.lab.initiator.stream_state("scsi-beside")? == "running", "a writer noticed");
    w.lab.initiator.stop_stream("scsi-beside")?;
    log_out(&mut w.lab.initiator, &b)?;
    // It is in nothing that others may read.
    let told = w.lab.on_appliance(&format!(
        "journalctl -b --no-pager -o cat | grep -c -e {good} -e {other} -e {theirs}; \
         zfs get -H -o value all tank/orlop/{} | grep -c -e {good} -e {other}; \
         setpriv --reuid=65534 --regid=65534 --clear-groups grep -rs -e {other} /sys/kernel/config/target/iscsi | wc -l; true",
        volume.id
    ))?;
    ensure!(told.split_whitespace().all(|n| n == "0"), "a secret is told: {told}");
    w.api(w.lab.api.no_chap_host(&name))?;
    ensure!(on(w, Brings::default())?, "a secret that was taken back is asked for");
    w.remove(&volume)?;
    w.remove(&beside)
}

pub fn a_fenced_iscsi_writer_is_cut_off(w: &mut World) -> Result<()> {
    let volume = disk(w, "scsi-fence", ZFS, 64)?;
    let a = attach(w, &volume, 1)?;
    log_in(&mut w.lab.initiator, &ADDRESSES[..1], &a, 1, Brings::default())?;
    // A stream that waits for a session to come back for ten minutes would: the test has no time for that.
    w.lab.initiator.run(&format!(
        "for s in /sys/class/iscsi_session/session*; do [ $(cat $s/targetname) = {} ] && echo 5 >$s/recovery_tmo; done; true",
        iscsi(&a)?.iqn
    ))?;
    let path = devices(&mut w.lab.initiator, &a, 1)?.remove(0);
    w.lab.initiator.start_stream("scsi-fence", &path, 0, 10_000)?;
    let next = host(w, 2)?;
    let before = std::time::Instant::now();
    let alone = AttachAs { exclusive: true, ..AttachAs::default() };
    let b = w.api(w.lab.api.attach_as(&VolumeRef::Id(volume.id), &next, &alone))?;
    println!("     the fence and the attach took {:.2} s", before.elapsed().as_secs_f64());
    let second = w.lab.others.first_mut().context("a second initiator")?;
    log_in(second, &SECOND, &b, 2, Brings::default())?;
    let theirs = devices(second, &b, 1)?.remove(0);
    let first = second.checksum(&theirs, 8)?;
    wait_for("the writer to fail", Duration::from_secs(60), || {
        Ok(w.lab.initiator.stream_state("scsi-fence")? == "failed")
    })?;
    let acks = w.lab.initiator.acks("scsi-fence")?;
    let second = w.lab.others.first_mut().context("a second initiator")?;
    ensure!(second.checksum(&theirs, 8)? == first, "a write arrived after the fence");
    // What was acknowledged before is there.
    second.put_acks("scsi-fence", &acks)?;
    let read = second.verify_stream("scsi-fence", &theirs, 0)?;
    println!("     {read} records were acknowledged, and are there");
    let back = log_in(&mut w.lab.initiator, &ADDRESSES[..1], &a, 1, Brings::default());
    ensure!(back.is_err(), "a host that comes back is let in");
    w.lab.initiator.stop_stream("scsi-fence")?;
    log_out(&mut w.lab.initiator, &a)?;
    let second = w.lab.others.first_mut().context("a second initiator")?;
    log_out(second, &b)?;
    w.remove(&volume)
}

/// What is connected over a power cut.
pub struct Held {
    volume: Volume,
    a: Attachment,
    path: Path,
}

pub fn writer_before_the_cut(w: &mut World) -> Result<Held> {
    let volume = disk(w, "scsi-cut", XFS, 512)?;
    let a = attach(w, &volume, 1)?;
    log_in(&mut w.lab.initiator, &ADDRESSES[..1], &a, 1, Brings::default())?;
    let path = devices(&mut w.lab.initiator, &a, 1)?.remove(0);
    w.lab.initiator.start_stream("scsi-cut", &path, 0, 100_000)?;
    Ok(Held { volume, a, path })
}

/// Without one error, and nothing that was acknowledged is lost.
pub fn writer_after_the_cut(w: &mut World, held: Held) -> Result<()> {
    let Held { volume, a, path } = held;
    let then = w.lab.initiator.acknowledged("scsi-cut")?;
    wait_for("writes by iSCSI to go on", Duration::from_secs(120), || {
        Ok(w.lab.initiator.acknowledged("scsi-cut")? > then)
    })?;
    ensure!(w.lab.initiator.stream_state("scsi-cut")? == "running", "the writer had an error");
    w.lab.initiator.stop_stream("scsi-cut")?;
    let read = w.lab.initiator.verify_stream("scsi-cut", &path, 0)?;
    println!("     by iSCSI {read} records were acknowledged before and after, and are there");
    log_out(&mut w.lab.initiator, &a)?;
    w.remove(&volume)
}
