//! From nothing to a connected volume, and back to nothing.

use std::time::Duration;

use anyhow::{Result, ensure};
use orlop_api::{ByteSize, VolumeRef, VolumeUpdate};
use orlop_tests::{nvme, wait_for};

use crate::world::{BTRFS, World, XFS, ZFS};

pub fn volumes_reach_the_initiator(w: &mut World) -> Result<()> {
    for (name, pool) in [("first-zvol", ZFS), ("first-xfs", XFS), ("first-btrfs", BTRFS)] {
        let volume = w.volume(name, pool, 256)?;
        let a = w.attach(&volume, 1)?;
        let access = nvme(&a)?;
        ensure!(access.uuid == volume.id.uuid() && Some(&access.nqn) == volume.nqn.as_ref(), "{a:?}");
        let path = w.lab.initiator.connect(&a, 1, 1)?;
        ensure!(w.lab.initiator.size(&path)? == volume.size.bytes());
        let block = path.device.trim_start_matches("/dev/").to_string();
        let serial = w.lab.initiator.run(&format!(
            "cat /sys/block/{block}/device/serial || cat /sys/block/{block}/device/nvme*/serial | head -1"
        ))?;
        ensure!(serial.trim() == access.serial, "serial {serial:?}, promised {:?}", access.serial);
        let sum = w.lab.initiator.write_random(&path, 4)?;
        ensure!(w.lab.initiator.checksum(&path, 4)? == sum, "{name} does not read its own bytes back");
        w.lab.initiator.disconnect(&a)?;
    }
    Ok(())
}

pub fn nothing_unattached_is_exported(w: &mut World) -> Result<()> {
    let idle = w.volume("idle", ZFS, 64)?;
    let tree = w.lab.target_tree()?;
    ensure!(!tree.contains(&idle.id.to_string()), "a volume that nobody attached is exported");
    ensure!(!tree.contains("attr_allow_any_host:1"), "somebody lets everybody in:\n{tree}");
    w.remove(&idle)
}

pub fn second_convergence_is_empty(w: &mut World) -> Result<()> {
    let before = w.kernel()?;
    w.lab.on_appliance("systemctl restart orlopd")?;
    w.lab.wait_api()?;
    ensure!(w.kernel()? == before, "a restart changed the kernel's configuration");
    let log = w.lab.on_appliance("journalctl -u orlopd -I --no-pager -o cat")?;
    ensure!(!log.contains("the target was restored"), "a restart had something to do:\n{log}");
    Ok(())
}

pub fn grows_while_connected(w: &mut World) -> Result<()> {
    for (name, pool) in [("grow-zvol", ZFS), ("grow-xfs", XFS)] {
        let volume = w.volume(name, pool, 64)?;
        let a = w.attach(&volume, 1)?;
        let path = w.lab.initiator.connect(&a, 1, 1)?;
        let sum = w.lab.initiator.write_random(&path, 4)?;
        let want = 192 << 20;
        let grown = w.api(
            w.lab.api.update_volume(&VolumeRef::Id(volume.id), &VolumeUpdate::to_size(ByteSize(want))),
        )?;
        ensure!(grown.size.bytes() == want);
        let initiator = &mut w.lab.initiator;
        wait_for("the initiator to see the new size", Duration::from_secs(20), || {
            Ok(initiator.size(&path)? == want)
        })?;
        ensure!(initiator.checksum(&path, 4)? == sum, "growing {name} changed its data");
        initiator.run(&format!(
            "dd if=/dev/urandom of={} bs=1M seek=191 count=1 oflag=direct conv=nocreat,fsync status=none",
            path.device
        ))?;
        initiator.disconnect(&a)?;
        w.remove(&volume)?;
    }
    Ok(())
}

pub fn two_paths(w: &mut World) -> Result<()> {
    let volume = w.volume("two-paths", ZFS, 64)?;
    let a = w.attach(&volume, 1)?;
    let path = w.lab.initiator.connect(&a, 1, 2)?;
    let live = "nvme list-subsys | grep -c ' live'";
    ensure!(w.lab.initiator.run(live)?.trim() == "2", "not two live paths");
    w.lab.initiator.start_stream("paths", &path, 0, 100_000)?;
    w.lab.appliance.set_link("storage1", false)?;
    let before = w.lab.initiator.acknowledged("paths")?;
    let initiator = &mut w.lab.initiator;
    wait_for("writes over the second path", Duration::from_secs(60), || {
        Ok(initiator.acknowledged("paths")? > before + 20)
    })?;
    w.lab.appliance.set_link("storage1", true)?;
    ensure!(w.lab.initiator.stream_state("paths")? == "running", "a lost path was an error");
    w.lab.initiator.stop_stream("paths")?;
    w.lab.initiator.verify_stream("paths", &path, 0)?;
    w.lab.initiator.disconnect(&a)?;
    w.remove(&volume)
}

pub fn everything_goes_away(w: &mut World) -> Result<()> {
    for volume in w.api(w.lab.api.all_volumes(Default::default()))? {
        w.remove(&volume)?;
    }
    for host in w.api(w.lab.api.all_hosts())? {
        w.api(w.lab.api.delete_host(&host.name))?;
    }
    for pool in w.api(w.lab.api.pools())? {
        w.api(w.lab.api.delete_pool(&pool.name))?;
    }
    let tree = w.lab.on_appliance(
        "find /sys/kernel/config/nvmet/subsystems /sys/kernel/config/nvmet/hosts -mindepth 1",
    )?;
    ensure!(tree.is_empty(), "left in the kernel:\n{tree}");
    ensure!(
        w.lab.on_appliance("zpool list -H -o name; losetup -nO NAME; ls /var/lib/orlop/pools")?.is_empty(),
        "left behind"
    );
    Ok(())
}
