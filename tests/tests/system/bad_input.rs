//! What a booted appliance refuses. The API's own suite has the whole table; here it is shown that the
//! kernel and the pools see nothing of it.

use anyhow::{Result, ensure};
use orlop_api::{ByteSize, ErrorKind, Provisioning, VolumeCreate, VolumeRef, VolumeUpdate};

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
