//! The power goes while LVM changes a volume group's metadata, and of what it wrote the sector that counts is on the disk and the text
//! is not: LVM does not flush a disk between the two.

use std::time::Duration;

use anyhow::{Result, ensure};
use orlop_api::{PoolState, VolumeRef};
use orlop_tests::wait_for;

use crate::world::{LVM, World};

const DISK: &str = "/dev/disk/by-id/virtio-lvm0";

pub fn a_torn_change_is_as_if_not_begun(w: &mut World) -> Result<()> {
    let name = LVM.parse()?;
    let own = w.api(w.lab.api.pool(&name)).is_err();
    if own {
        w.api(w.lab.api.create_pool(&World::lvm_pool()))?;
    }
    let volume = w.volume("torn", LVM, 64)?;
    let id = volume.id;
    w.lab.on_appliance("systemctl stop orlopd")?;
    let seqno = |w: &mut World| w.lab.on_appliance(&format!("vgs --noheadings -o vg_seqno {LVM}"));
    let before = seqno(w)?;
    // One sector of the text that is committed, as if it had been in the disk's cache.
    w.lab.on_appliance(&format!(
        "set -e; lvchange -q --addtag torn {LVM}/{id}; \
         at=$(lvm pvck --dump headers {DISK} | awk '/mda_header_1.raw_locn\\[0\\].offset/ {{print $2; exit}}'); \
         dd if=/dev/zero of={DISK} bs=512 seek=$(((4096 + at) / 512 + 1)) count=1 conv=notrunc oflag=direct status=none; \
         if vgs {LVM} 2>/dev/null; then echo it can still be read; exit 1; fi"
    ))?;
    w.lab.on_appliance("systemctl start orlopd")?;
    w.lab.wait_api()?;
    wait_for("the pool", Duration::from_secs(90), || {
        Ok(w.api(w.lab.api.pool(&name))?.state == PoolState::Online)
    })?;
    ensure!(w.api(w.lab.api.volume(&VolumeRef::Id(id)))?.id == id, "the volume is another one");
    let after = seqno(w)?;
    ensure!(after == before, "its state is {after}, and was {before} before the change");
    let tags = w.lab.on_appliance(&format!("vgck {LVM}; lvs --noheadings -o lv_tags {LVM}/{id}"))?;
    ensure!(!tags.contains("torn"), "the change is there: {tags}");
    // And LVM goes on from there.
    let more = w.volume("torn-more", LVM, 64)?;
    w.remove(&more)?;
    w.remove(&volume)?;
    if own {
        w.api(w.lab.api.delete_pool(&name))?;
    }
    Ok(())
}
