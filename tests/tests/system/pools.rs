//! Pools on whole disks.

use anyhow::{Result, ensure};
use orlop_api::{ErrorKind, PoolCreate};

use crate::world::{World, refused};

pub fn made_on_blank_disks_only(w: &mut World) -> Result<()> {
    // Something of somebody's: one sector in the middle of the first MiB would be enough.
    w.lab.on_appliance(
        "printf precious | dd of=/dev/disk/by-id/virtio-used0 bs=1 seek=70000 conv=nocreat,fsync status=none",
    )?;
    let other =
        || PoolCreate { name: "other".parse().unwrap_or(World::zfs_pool().name), ..World::zfs_pool() };
    let on_used = PoolCreate { disks: vec!["/dev/disk/by-id/virtio-used0".into()], ..other() };
    let problem = refused(w.api(w.lab.api.create_pool(&on_used)), ErrorKind::Precondition)?;
    ensure!(problem.detail.contains("used0") || problem.detail.contains("vd"), "which disk? {problem}");
    let on_nothing = PoolCreate { disks: vec!["vdz".into()], ..other() };
    refused(w.api(w.lab.api.create_pool(&on_nothing)), ErrorKind::Precondition)?;
    ensure!(w.api(w.lab.api.pools())?.len() == 3, "a refused pool is listed");
    ensure!(w.lab.on_appliance("head -c 70008 /dev/disk/by-id/virtio-used0 | tail -c 8")? == "precious");

    for ask in [World::zfs_pool(), World::xfs_pool(), World::btrfs_pool()] {
        ensure!(w.api(w.lab.api.create_pool(&ask))?.name == ask.name, "the same request again");
    }
    // A disk that is a pool's is not blank any more.
    let stolen = other();
    ensure!(w.api(w.lab.api.create_pool(&stolen)).is_err(), "a pool was made on another pool's disk");
    let disks = w.api(w.lab.api.disks())?;
    ensure!(disks.len() >= 5, "{disks:?}");
    Ok(())
}
