//! What a booted appliance refuses. The API's own suite has the whole table; here it is shown that the
//! kernel and the pools see nothing of it.

use anyhow::{Result, ensure};
use orlop_api::{
    ByteSize, ErrorKind, HostName, HostPut, Protocol, Provisioning, VolumeCreate, VolumeKind, VolumeRef,
    VolumeUpdate,
};

use crate::iscsi;
use crate::world::{World, XFS, ZFS, ask, refused};

pub fn changes_nothing(w: &mut World) -> Result<()> {
    let volume = w.volume("kept", ZFS, 64)?;
    let before = (w.kernel()?, datasets(w)?);
    let api = &w.lab.api;
    let id = VolumeRef::Id(volume.id);
    for size in [0, 1, 4096, (64 << 20) + 512] {
        let create = VolumeCreate { size: ByteSize(size), ..ask("bad", ZFS, 0) };
        refused(w.api(api.create_volume(&create)), ErrorKind::Invalid)?;
    }
    refused(w.api(api.create_volume(&ask("kept", ZFS, 128))), ErrorKind::Conflict)?;
    refused(w.api(api.create_volume(&ask("kept", XFS, 64))), ErrorKind::Conflict)?;
    refused(w.api(api.create_volume(&ask("x", "nowhere", 64))), ErrorKind::NotFound)?;
    refused(w.api(api.update_volume(&id, &VolumeUpdate::to_size(ByteSize(32 << 20)))), ErrorKind::Invalid)?;
    refused(w.api(api.attach(&id, &"nobody".parse()?)), ErrorKind::NotFound)?;
    refused(w.api(api.attach(&VolumeRef::Name("nothing".parse()?), &w.host(1)?)), ErrorKind::NotFound)?;
    refused(w.api(api.detach(&id, &w.host(1)?)), ErrorKind::NotFound)?;
    refused(w.api(api.delete_pool(&ZFS.parse()?)), ErrorKind::Precondition)?;
    ensure!((w.kernel()?, datasets(w)?) == before, "refused requests left something behind");
    w.remove(&volume)
}

/// Hosts that are attached by each protocol; whatever is asked of them and of others, the kernel's targets and exports stay.
pub fn for_targets_changes_nothing(w: &mut World) -> Result<()> {
    let (nvme, scsi) = (w.volume("kept-nvme", ZFS, 64)?, iscsi::disk(w, "kept-scsi", ZFS, 64)?);
    let share = VolumeCreate { kind: Some(VolumeKind::Filesystem), ..ask("kept-nfs", ZFS, 64) };
    let share = w.api(w.lab.api.create_volume(&share))?;
    let addressed: HostName = "kept-addressed".parse()?;
    let known = HostPut { addresses: vec!["10.88.0.5".parse()?], ..HostPut::default() };
    w.api(w.lab.api.put_host(&addressed, &known))?;
    w.attach(&nvme, 1)?;
    iscsi::attach(w, &scsi, 1)?;
    w.api(w.lab.api.attach(&VolumeRef::Id(share.id), &addressed))?;
    let (by_nqn, by_iqn) = (w.host(1)?, iscsi::host(w, 1)?);
    let secret = "/run/kept.secret";
    w.lab.on_appliance(&format!(
        "orlop host chap {by_iqn} --none; orlop host authenticate {by_nqn} --none; true"
    ))?;
    let before = w.kernel()?;
    ensure!(
        [nvme.id, scsi.id, share.id].iter().all(|id| before.contains(&id.to_string())),
        "not all are served: {before}"
    );

    let new: HostName = "kept-new".parse()?;
    let (nqn, iqn) = (w.api(w.lab.api.host(&by_nqn))?.nqn, w.api(w.lab.api.host(&by_iqn))?.iqn);
    for (ask, field) in [
        (HostPut { nqn, ..HostPut::default() }, "nqn"),
        (HostPut { iqn, ..HostPut::default() }, "iqn"),
        (HostPut { addresses: vec!["10.88.0.5".parse()?], ..HostPut::default() }, "addresses"),
    ] {
        let problem = refused(w.api(w.lab.api.put_host(&new, &ask)), ErrorKind::Conflict)?;
        ensure!(problem.field.as_deref() == Some(field), "{problem:?}");
    }
    refused(w.api(w.lab.api.host(&new)), ErrorKind::NotFound)?;
    // Attached hosts are neither forgotten nor known by something else.
    for host in [&by_nqn, &by_iqn, &addressed] {
        let problem = refused(w.api(w.lab.api.delete_host(host)), ErrorKind::Precondition)?;
        ensure!(!problem.dependants.is_empty(), "{problem:?}");
        let other = HostPut { addresses: vec!["10.88.0.9".parse()?], ..HostPut::default() };
        refused(w.api(w.lab.api.put_host(host, &other)), ErrorKind::Precondition)?;
    }
    // A disk by NFS, a file system by iSCSI and NVMe: neither made nor attached.
    for (kind, protocol) in [
        (VolumeKind::Block, Protocol::Nfs),
        (VolumeKind::Filesystem, Protocol::Iscsi),
        (VolumeKind::Filesystem, Protocol::Nvme),
    ] {
        let create = VolumeCreate { kind: Some(kind), protocol: Some(protocol), ..ask("kept-x", ZFS, 64) };
        refused(w.api(w.lab.api.create_volume(&create)), ErrorKind::Invalid)?;
    }
    for (volume, host) in [
        (&nvme, &addressed),
        (&scsi, &addressed),
        (&share, &by_nqn),
        (&share, &by_iqn),
        (&scsi, &by_nqn),
        (&nvme, &by_iqn),
    ] {
        refused(w.api(w.lab.api.attach(&VolumeRef::Id(volume.id), host)), ErrorKind::Precondition)?;
    }
    // Secrets that are none, by the command line: 3 is "invalid".
    let good = "DHHC-1:01:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:";
    let keys = [
        good.replace("AAEC", "AAED"),
        good.replace(":01:", ":03:"),
        good.replace(":01:", ":17:"),
        String::new(),
    ];
    let chaps = ["", "elevenchars", "seventeen-letters", &"x".repeat(300), "gehe1mnis-\u{e4}\u{f6}"];
    let asks =
        keys.iter().map(|k| (format!("orlop host authenticate {by_nqn} --key-file {secret}"), k.as_str()));
    let chap = |c| (format!("orlop host chap {by_iqn} --user kept --secret-file {secret}"), c);
    for (command, text) in asks.chain(chaps.map(chap)) {
        let told =
            w.lab.on_appliance(&format!("printf '%s' '{text}' >{secret}; {command} 2>&1; echo status $?"))?;
        ensure!(told.trim_end().ends_with("status 3"), "{command} with {text:?}: {told}");
        ensure!(text.len() < 8 || !told.contains(text), "a secret is repeated: {told}");
    }
    ensure!(w.kernel()? == before, "refused requests changed the kernel's targets");
    let (one, two) = (w.api(w.lab.api.host(&by_nqn))?, w.api(w.lab.api.host(&by_iqn))?);
    ensure!(one.authentication.is_none() && two.chap.is_none(), "{one:?} {two:?}");
    w.remove(&nvme)?;
    w.remove(&scsi)?;
    w.remove(&share)?;
    Ok(w.api(w.lab.api.delete_host(&addressed))?)
}

pub fn full_pool_is_exhausted(w: &mut World) -> Result<()> {
    for pool in [ZFS, XFS] {
        let before = datasets(w)?;
        let total = w.api(w.lab.api.pool(&pool.parse()?))?.total.bytes() >> 20;
        refused(w.api(w.lab.api.create_volume(&ask("huge", pool, total + 1024))), ErrorKind::Exhausted)?;
        let thick = |name, mib| VolumeCreate { provisioning: Provisioning::Thick, ..ask(name, pool, mib) };
        let most = w.api(w.lab.api.create_volume(&thick("most", total * 6 / 10)))?;
        refused(w.api(w.lab.api.create_volume(&thick("more", total * 6 / 10))), ErrorKind::Exhausted)?;
        w.remove(&most)?;
        ensure!(datasets(w)? == before, "something is left of a refused volume");
    }
    Ok(())
}

fn datasets(w: &mut World) -> Result<String> {
    w.lab.on_appliance("zfs list -H -o name; ls -R /var/lib/orlop/pools/*/volumes")
}
