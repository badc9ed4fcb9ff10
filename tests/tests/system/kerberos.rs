//! File systems by NFS for hosts that prove by Kerberos who they are, with a KDC on the initiator.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use orlop_api::{
    ErrorKind, HostName, KeytabPut, Security, Squash, VolumeCreate, VolumeKind, VolumeRef, ZonePut,
};
use orlop_tests::{realm, wait_for};

use crate::world::{World, XFS, ask, refused};

/// Where the host has the volume by either flavour.
const BY_SYS: &str = "/run/mnt-sys";
const BY_KERBEROS: &str = "/run/mnt-krb5p";

/// A zone of the initiator's first network.
fn zone(security: &str) -> Result<ZonePut> {
    let (networks, security): (_, Security) = (vec!["10.77.1.0/24".parse()?], security.parse()?);
    Ok(ZonePut { networks, squash: Squash::None, security, ..ZonePut::default() })
}

fn put(w: &World, name: &HostName, ask: &ZonePut) -> Result<()> {
    w.api(w.lab.api.put_zone(name, ask)).map(drop).map_err(Into::into)
}

/// Mounts, or says why not.
fn mount(w: &mut World, place: &str, volume: orlop_api::VolumeId, how: &str) -> Result<String> {
    w.lab.initiator.run(&format!(
        "mkdir -p {place} && timeout 60 mount -t nfs -o {how} storage.example.com:/volumes/{volume} {place} 2>&1"
    ))
}

/// As a user of the host with a ticket of its own, or without one.
fn as_user(uid: u32, ticket: Option<&str>, command: &str) -> String {
    let take = ticket.map(|name| format!("echo secret | kinit {name} >/dev/null && ")).unwrap_or_default();
    format!("timeout 90 setpriv --reuid={uid} --regid={uid} --clear-groups sh -c '{take}{command}' 2>&1")
}

pub fn who_comes_by_kerberos(w: &mut World) -> Result<()> {
    let name: HostName = "proved".parse()?;
    // Without a key nothing can be proved to anybody.
    let p = refused(w.api(w.lab.api.put_zone(&name, &zone("krb5p")?)), ErrorKind::Unsupported)?;
    ensure!(p.to_string().contains("orlop system keytab"), "{p}");
    let versions = ZonePut { versions: Some(vec!["4.2".into()]), ..zone("sys")? };
    refused(w.api(w.lab.api.put_zone(&name, &versions)), ErrorKind::Unsupported)?;

    w.lab.initiator.run(&format!("mkdir -p /run/realm && cd /run/realm\n{}", realm::SET_UP))?;
    let keytab = w.lab.initiator.run("cat /run/realm/storage.key")?;
    let keytab = keytab.trim().to_string().try_into().context("the KDC's keytab")?;
    let kept = w.api(w.lab.api.put_keytab(&KeytabPut { keytab }))?;
    ensure!(kept.principals == ["nfs/storage.example.com@EXAMPLE.COM"], "{kept:?}");
    let mode = w.lab.on_appliance("stat -L -c '%a %U' /etc/krb5.keytab")?;
    ensure!(mode.trim() == "600 root", "{mode}");

    let create = VolumeCreate { kind: Some(VolumeKind::Filesystem), ..ask("share-krb", XFS, 128) };
    let volume = w.api(w.lab.api.create_volume(&create))?;
    let reference = VolumeRef::Id(volume.id);
    put(w, &name, &zone("sys")?)?;
    w.api(w.lab.api.attach(&reference, &name))?;
    mount(w, BY_SYS, volume.id, "vers=4.2,sec=sys,soft,timeo=50,retrans=2,noac")?;
    w.lab.initiator.run(&format!(
        "mkdir -m 1777 {BY_SYS}/open && touch {BY_SYS}/lock && \
         systemd-run --quiet --unit=sys-lock flock {BY_SYS}/lock sleep 600 && \
         systemd-run --quiet --unit=sys-writer -p RemainAfterExit=yes \
         sh -c 'n=0; while echo $n | dd of={BY_SYS}/log oflag=append,sync conv=notrunc status=none; do n=$((n+1)); sleep 0.02; done; exit 1'"
    ))?;
    wait_for("the first lines", Duration::from_secs(60), || {
        Ok(w.lab.initiator.run(&format!("cat {BY_SYS}/log 2>/dev/null | wc -l"))?.trim().parse::<u64>()? > 3)
    })?;

    // From here on who says nothing but his name is out: he that is in as well.
    put(w, &name, &zone("krb5p")?)?;
    mount(w, BY_KERBEROS, volume.id, "vers=4.2,sec=krb5p,soft,timeo=50,retrans=2,noac")?;
    let shown = w.api(w.lab.api.attachment(&reference, &name))?;
    ensure!(shown.nfs().is_some_and(|n| n.security.to_string() == "krb5p"), "{shown:?}");
    let lines = |w: &mut World| w.lab.initiator.run(&format!("wc -l <{BY_KERBEROS}/log"));
    let first = lines(w)?;
    // What he had locked is free.
    w.lab.initiator.run(&format!("timeout 20 flock {BY_KERBEROS}/lock true"))?;
    wait_for("the writer to fail", Duration::from_secs(120), || {
        let state = w.lab.initiator.run("systemctl show sys-writer -p ActiveState --value")?;
        Ok(state.trim() == "failed")
    })?;
    w.lab.initiator.run("sleep 3")?;
    ensure!(lines(w)? == first, "a write by sys arrived after the change");
    let out = w
        .lab
        .initiator
        .run(&format!("timeout 60 cat {BY_SYS}/log >/dev/null 2>&1 && echo in || echo out"))?;
    ensure!(out.trim() == "out", "who is mounted by sys reads");
    w.lab.initiator.run(&format!(
        "systemctl stop sys-lock sys-writer 2>/dev/null; systemctl reset-failed 2>/dev/null; \
         umount {BY_SYS} 2>/dev/null || umount -f -l {BY_SYS}"
    ))?;
    ensure!(mount(w, BY_SYS, volume.id, "vers=4.2,sec=sys").is_err(), "a mount by sys succeeded");
    ensure!(mount(w, BY_SYS, volume.id, "vers=3,sec=sys").is_err(), "a mount by sys and version 3 succeeded");

    // Root's ticket is root's; the users that the appliance does not know are nobody; without a ticket nobody is in.
    let sum = w.lab.initiator.run(&format!(
        "grep -q ' {BY_KERBEROS} .*sec=krb5p' /proc/mounts && \
         dd if=/dev/urandom of={BY_KERBEROS}/data bs=1M count=4 conv=fsync status=none && sha256sum <{BY_KERBEROS}/data"
    ))?;
    let command = format!("echo mine >{BY_KERBEROS}/open/alice && cat {BY_KERBEROS}/open/alice");
    let alice = w.lab.initiator.run(&as_user(1000, Some("alice"), &command))?;
    ensure!(alice.trim() == "mine", "alice: {alice}");
    let command = format!("cat {BY_KERBEROS}/open/alice || echo out");
    let stranger = w.lab.initiator.run(&as_user(1001, None, &command))?;
    ensure!(stranger.trim().ends_with("out"), "a user without a ticket: {stranger}");
    let owners =
        w.lab.on_appliance(&format!("stat -c %u /volumes/{0}/data /volumes/{0}/open/alice", volume.id))?;
    ensure!(owners.split_whitespace().eq(["0", "65534"]), "the owners are {owners}");

    // All of it is there after a power cut, and no less is asked.
    w.lab.initiator.run(&format!("umount {BY_KERBEROS}"))?;
    w.lab.power_cycle(|_| {})?;
    w.lab.wait_api()?;
    mount(w, BY_KERBEROS, volume.id, "vers=4.2,sec=krb5p")?;
    let again = w.lab.initiator.run(&format!("sha256sum <{BY_KERBEROS}/data"))?;
    ensure!(again == sum, "other bytes after the power cut");
    ensure!(mount(w, BY_SYS, volume.id, "vers=4.2,sec=sys").is_err(), "a mount by sys succeeded after it");
    w.lab.initiator.run(&format!("umount {BY_KERBEROS}"))?;

    refused(w.api(w.lab.api.delete_keytab()), ErrorKind::Precondition)?;
    w.remove(&volume)?;
    w.api(w.lab.api.delete_zone(&name))?;
    w.api(w.lab.api.delete_keytab())?;
    let left =
        w.lab.on_appliance("ls /var/lib/orlop/krb5.keytab 2>&1; systemctl is-active rpc-svcgssd; true")?;
    ensure!(left.contains("No such file") && left.contains("inactive"), "{left}");
    w.lab
        .initiator
        .run("systemctl stop rpc-gssd krb5-kdc && rm -f /etc/krb5.keytab /etc/nfs.conf.d/gssd.conf")?;
    Ok(())
}
