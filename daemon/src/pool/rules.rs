//! The rules about labels and sizes that every kind of pool has. Pure.

use std::time::Duration;

use orlop_api::{
    ByteSize, Encryption, FilesystemKind, PoolName, Properties, Property, Provisioning, VolumeKind,
};

use super::context::Context;
use super::mounted::on_device;
use super::{Capacity, Features, PoolError, Result};
use crate::kernel::filesystem::Kind;
use crate::model::Label;

/// Refuses a size that no caller should have let through.
pub(super) fn check_size(ctx: &Context, label: &Label, granularity: ByteSize) -> Result<()> {
    let unit = size_unit(&label.properties, granularity);
    if label.size.bytes() == 0 || !label.size.is_multiple_of(unit) {
        return Err(ctx.precondition(format!(
            "a size of {} bytes is not a whole number of {unit}",
            label.size.bytes()
        )));
    }
    match label.filesystem {
        Some(filesystem) if label.size < least_size(filesystem) => Err(ctx.precondition(format!(
            "{} is less than the {} that {} takes at least",
            label.size,
            least_size(filesystem),
            filesystem.as_str()
        ))),
        _ => Ok(()),
    }
}

/// The smallest volume that can be such a file system.
pub fn least_size(filesystem: FilesystemKind) -> ByteSize {
    // A dataset has no smallest size, only one below which nothing fits.
    ByteSize(on_device(filesystem).map_or(16 << 20, Kind::least))
}

/// What a volume's size is a whole number of: both are powers of two, so the larger one will do.
pub fn size_unit(properties: &Properties, granularity: ByteSize) -> ByteSize {
    granularity.max(ByteSize(properties.block_size.map_or(0, |b| b.bytes())))
}

/// Refuses what a pool can't give a volume that is to be made, or to one that was made as `have`. Asked
/// by the engine before anything is recorded, and by every pool before anything is changed.
pub fn check_properties(
    pool: &PoolName,
    features: Features,
    have: Option<&Label>,
    want: &Label,
) -> Result<()> {
    let refuse =
        |field, reason: &str| Err(PoolError::Property { pool: pool.clone(), field, reason: reason.into() });
    match (want.kind, want.filesystem) {
        (VolumeKind::Block, None) => {}
        (VolumeKind::Block, Some(_)) => return refuse("filesystem", "is no part of a disk"),
        (VolumeKind::Filesystem, None) => {
            return refuse("kind", "can't be filesystem: this kind of pool has none");
        }
        (VolumeKind::Filesystem, Some(f)) if !features.filesystems.contains(&f) => {
            return refuse("filesystem", &format!("can't be {} in this kind of pool", f.as_str()));
        }
        // ZFS receives no stream over what is encrypted.
        (VolumeKind::Filesystem, Some(FilesystemKind::Zfs))
            if want.copied.is_some() && want.encryption.is_some() =>
        {
            return refuse("encryption", "can't be given to a copy of a ZFS file system");
        }
        (VolumeKind::Filesystem, Some(_)) => {}
    }
    for (property, value) in want.properties.iter() {
        if !features.properties.contains(&property) {
            return refuse(
                property.field(),
                &format!("can't be set ({value}): this kind of pool has no such property"),
            );
        }
    }
    if want.encryption.is_some() && !features.encryption {
        return refuse("encryption", "can't be had: this kind of pool does not encrypt");
    }
    let Some(have) = have else { return Ok(()) };
    if have.encryption != want.encryption {
        return refuse("encryption", "can't be changed any more");
    }
    if have.properties.block_size != want.properties.block_size {
        let reason = "can't be changed any more: blocks keep the size that the volume was made with";
        return refuse(Property::BlockSize.field(), reason);
    }
    if have.provisioning != want.provisioning && !features.reprovision {
        return refuse("provisioning", "can't be changed any more in this kind of pool");
    }
    Ok(())
}

/// How long something that is to be adopted may be open before it is said to be in use: udev looks at
/// what was just closed.
pub(super) const IN_USE: Duration = Duration::from_secs(10);

/// Why a stray of that size can't become a volume; otherwise that it can, reserved in that way.
pub(super) fn adoptable(
    size: ByteSize,
    granularity: ByteSize,
    provisioning: Provisioning,
) -> std::result::Result<Provisioning, String> {
    if size.bytes() == 0 || !size.is_multiple_of(granularity) {
        return Err(format!("its size of {} bytes is not a whole number of {granularity}", size.bytes()));
    }
    Ok(provisioning)
}

/// Refuses to adopt what is not as large as it is said to be.
pub(super) fn check_stray_size(ctx: &Context, stray: &str, have: ByteSize, label: &Label) -> Result<()> {
    if have == label.size {
        return Ok(());
    }
    Err(ctx.conflict(stray, format!("it has {} bytes, not {}", have.bytes(), label.size.bytes())))
}

/// Refuses what can't fit: more than the pool could ever hold, thin or not, and a thick volume of which
/// `more` bytes are still to be reserved.
pub(super) fn check_room(ctx: &Context, label: &Label, more: u64, have: Capacity) -> Result<()> {
    if label.size.bytes().max(more) > have.total.bytes() {
        return Err(ctx.exhausted(format!("{} is more than all of its {}", label.size, have.total)));
    }
    if label.provisioning == Provisioning::Thick && more > have.available.bytes() {
        return Err(ctx.exhausted(format!("{} is needed, {} is free", ByteSize(more), have.available)));
    }
    Ok(())
}

/// Refuses to mount a file system that is not all there yet.
pub(super) fn check_filled(ctx: &Context, label: &Label) -> Result<()> {
    if label.kind == VolumeKind::Filesystem && label.copied.is_some() {
        return Err(ctx.precondition(format!("volume {}: its content is still being copied", label.id)));
    }
    Ok(())
}

/// Refuses a linked clone with other blocks than those that it shares with its source, or with another key.
pub(super) fn check_clone(ctx: &Context, source: &Label, clone: &Label) -> Result<()> {
    if source.properties.block_size != clone.properties.block_size {
        return Err(differs_from_source(ctx, Property::BlockSize.field()));
    }
    check_clone_key(ctx, source.encryption, clone)
}

/// The half of [`check_clone`] that needs no volume: a snapshot outlives it in some pools.
pub(super) fn check_clone_key(ctx: &Context, source: Option<Encryption>, clone: &Label) -> Result<()> {
    if source == clone.encryption { Ok(()) } else { Err(differs_from_source(ctx, "encryption")) }
}

fn differs_from_source(ctx: &Context, field: &'static str) -> PoolError {
    PoolError::Property {
        pool: ctx.pool.clone(),
        field,
        reason: "can't differ from that of the source, whose blocks a linked clone shares".into(),
    }
}

/// Refuses to take a backing for the one that is asked for when it is another. Hosts, time of
/// birth and how far a copy is may differ: a request that is replayed need not know them.
pub(super) fn check_same(ctx: &Context, have: &Label, want: &Label) -> Result<()> {
    let differs = |field: &str, have: String, wanted: String| {
        Err(ctx.conflict(
            want.id.to_string(),
            format!("it exists with another {field}: it has {have}, not {wanted}"),
        ))
    };
    let Label { v: _, id, name, tenant, kind, filesystem, size, provisioning, .. } = have;
    let Label { source, properties, encryption, .. } = have;
    if *id != want.id {
        return differs("id", id.to_string(), want.id.to_string());
    }
    if *name != want.name {
        return differs("name", name.to_string(), want.name.to_string());
    }
    if *tenant != want.tenant {
        return differs("tenant", tenant.to_string(), want.tenant.to_string());
    }
    if *kind != want.kind {
        return differs("kind", format!("{kind:?}"), format!("{:?}", want.kind));
    }
    if *filesystem != want.filesystem {
        let shown = |f: Option<FilesystemKind>| f.map_or("none", FilesystemKind::as_str).to_string();
        return differs("filesystem", shown(*filesystem), shown(want.filesystem));
    }
    if *size != want.size {
        return differs("size", size.to_string(), want.size.to_string());
    }
    if *provisioning != want.provisioning {
        return differs("provisioning", format!("{provisioning:?}"), format!("{:?}", want.provisioning));
    }
    if have.protocol() != want.protocol() {
        return differs("protocol", have.protocol().as_str().into(), want.protocol().as_str().into());
    }
    if *source != want.source {
        return differs("source", format!("{source:?}"), format!("{:?}", want.source));
    }
    if *encryption != want.encryption {
        return differs("encryption", format!("{encryption:?}"), format!("{:?}", want.encryption));
    }
    for property in Property::ALL {
        let shown = |p: &Properties| p.get(*property).unwrap_or_else(|| "the pool's default".into());
        if properties.get(*property) != want.properties.get(*property) {
            return differs(property.field(), shown(properties), shown(&want.properties));
        }
    }
    Ok(())
}
