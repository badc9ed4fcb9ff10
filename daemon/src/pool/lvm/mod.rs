//! `lvm` pools: a volume is a thin logical volume `<pool>/<id>` in one thin pool, with its label in tags
//! that are set by the command that creates it. A snapshot is another thin volume, `<volume>.<id>`.
//!
//! Called by the engine through [`Pool`]. Thin snapshots share blocks that dm-thin counts: nothing depends
//! on anything. A thick volume is a thin one all of whose blocks were written with zeros when it was made. One that is
//! encrypted is larger by the header of LUKS, and used through a device above its own.
//! What is not whole yet (a thick volume that is being written, one that is being formatted or encrypted, the snapshots of
//! a group that are not known to be of one instant) carries the tag `orlop.new`.
//!
//! Nothing is decided by what a command says on stderr: state is read before and after.

mod adopt;
mod blocks;
mod devices;
mod group;
mod metadata;
mod report;
mod snapshots;
mod tags;
mod thin;

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use orlop_api::{
    ByteSize, EncryptionKey, PoolKind, PoolName, Provisioning, SourceMode, VolumeId, VolumeKind,
};

use super::arrays::Arrays;
use super::context::Context;
use super::mapped::{Mappings, Use, backing, visible};
use super::mounted::{self, Mounts};
use super::rules::{check_clone_key, check_filled, check_properties, check_room, check_same, check_size};

use super::{
    Capacity, Change, Extents, Listing, Opened, Place, Pool, PoolEnv, Result, Snapped, Stored, Stray,
};
use crate::kernel::{Deadline, block, fs};
use crate::model::{Document, Label, PoolChange, PoolSpec, SnapshotKey, SnapshotLabel, ThinPool};
use group::{EXTENT, Group, Row, THIN, escape};
use tags::{NEW, Told};

/// How long someone else may hold a volume that is to be destroyed: udev probes every new one, and lags
/// behind on a slow machine.
const BUSY: Duration = Duration::from_secs(30);

/// The name of the volume group that a disk belongs to, as the disk itself has it.
pub(super) fn group_of(device: &std::path::Path) -> std::io::Result<Option<String>> {
    metadata::group_of(device)
}

/// See the module.
#[derive(Debug)]
pub(super) struct LvmPool {
    ctx: Context,
    env: PoolEnv,
    group: Group,
    /// What it stands on, where it has redundancy.
    arrays: Arrays,
    mounts: Mounts,
    mappings: Mappings,
}

/// The name of a logical volume. `@` is no character of one, and `_` begins names that LVM keeps.
trait Named: Copy {
    fn lv(self) -> String;
}

impl Named for VolumeId {
    fn lv(self) -> String {
        self.to_string()
    }
}

impl Named for SnapshotKey {
    fn lv(self) -> String {
        format!("{}.{}", self.volume, self.id)
    }
}

/// What the name of a logical volume says that it is.
enum Name {
    Volume(VolumeId),
    Snapshot(SnapshotKey),
}

fn name_of(lv: &str) -> Option<Name> {
    match lv.split_once('.') {
        None => Some(Name::Volume(lv.parse().ok()?)),
        Some((volume, id)) => {
            Some(Name::Snapshot(SnapshotKey { volume: volume.parse().ok()?, id: id.parse().ok()? }))
        }
    }
}

/// What is there of one volume or snapshot.
enum Found<L> {
    Nothing,
    Partial,
    Whole { label: L, size: ByteSize, told: Told },
}

/// The label of a row, if it is the one of that key.
fn found<L: Document>(row: &Row, key: L::Key) -> std::result::Result<Found<L>, String> {
    if !row.is_thin() && !row.is_plain() {
        return Err("is neither a thin nor a plain volume".into());
    }
    let told = tags::read(&row.lv_tags);
    match told.label.as_deref().map(L::from_json) {
        // It has our tag, so it is ours, and half made.
        _ if told.new => Ok(Found::Partial),
        None => Err("has no label".into()),
        Some(Ok(label)) if label.key() == key => {
            let size = visible(row.lv_size, label.encryption());
            Ok(Found::Whole { label, size, told })
        }
        Some(Ok(label)) => Err(format!("has the label of {}", label.key())),
        Some(Err(e)) => Err(format!("has a label that {e}")),
    }
}

/// One that is not a volume or a snapshot of ours.
fn stray(row: Row, what: String) -> Stray {
    let size = Some(ByteSize(row.lv_size));
    if tags::read(&row.lv_tags).is_ours() {
        return Stray::labelled(row.lv_name, what, size);
    }
    let can = row.adoptable();
    Stray::foreign(row.lv_name, what, size, can)
}

impl LvmPool {
    pub fn create(
        spec: &PoolSpec,
        env: &PoolEnv,
        disks: &[String],
        thin: ThinPool,
        deadline: &Deadline,
    ) -> Result<Self> {
        let pool = Self::at(spec, env)?;
        pool.group.ensure(env, disks, &pool.arrays, thin, deadline)?;
        pool.recall(deadline)?;
        Ok(pool)
    }

    pub fn open(spec: &PoolSpec, env: &PoolEnv, deadline: &Deadline) -> Result<Self> {
        let pool = Self::at(spec, env)?;
        pool.arrays.start(deadline)?;
        pool.group.find(deadline).inspect_err(|error| pool.arrays.put_away(error, deadline))?;
        pool.recall(deadline)?;
        Ok(pool)
    }

    fn at(spec: &PoolSpec, env: &PoolEnv) -> Result<Self> {
        let ctx = Context::new(&spec.name);
        let (mounts, mappings) = (Mounts::new(&ctx, env), Mappings::new(&ctx, &env.keys));
        let arrays = Arrays::new(&ctx, env, spec.arrays());
        Ok(Self { group: Group::new(ctx.clone())?, env: env.clone(), arrays, mounts, mappings, ctx })
    }

    /// What a daemon that was killed held for a snapshot goes on.
    fn recall(&self, deadline: &Deadline) -> Result<()> {
        let mounted = self.mounts.recall();
        let origins = self.group.let_go();
        self.group.let_metadata_go();
        let mapped =
            self.mappings.recall(|lv| Ok(self.group.rows(deadline)?.iter().any(|r| r.lv_name == lv)));
        mounted.and(origins).and(mapped)
    }

    /// More disks, or another array of them: what is in the pool stays where it is.
    fn expand(&self, asked: &[String], deadline: &Deadline) -> Result<Change> {
        if self.arrays.is_empty() {
            return self.group.extend(&self.env, asked, &[], deadline);
        }
        let added = self.arrays.expand(asked, deadline)?;
        let paths = self.arrays.paths()?;
        let extended = self.group.extend(&self.env, &[], &paths, deadline);
        // Only what is not in the group yet can be taken apart again: else the next attempt ends it.
        if extended.is_err()
            && added == Change::Done
            && let Some(new) = paths.last()
            && !self.group.has(new, deadline)?
            && let Err(error) = self.arrays.shrink(asked, deadline)
        {
            tracing::warn!(pool = %self.ctx.pool, %error, "a new array was not removed");
        }
        extended
    }

    fn look<L: Document>(&self, key: L::Key, deadline: &Deadline) -> Result<Found<L>>
    where
        L::Key: Named,
    {
        self.ctx.check(deadline, "reading a label")?;
        self.look_in::<L>(&self.group.rows(deadline)?, key)
    }

    fn look_in<L: Document>(&self, rows: &[Row], key: L::Key) -> Result<Found<L>>
    where
        L::Key: Named,
    {
        let lv = key.lv();
        match rows.iter().find(|r| r.lv_name == lv) {
            None => Ok(Found::Nothing),
            Some(row) => {
                found(row, key).map_err(|what| self.ctx.conflict(lv, format!("{what}; it is left alone")))
            }
        }
    }

    fn existing<L: Document>(&self, key: L::Key, deadline: &Deadline) -> Result<(L, ByteSize, Told)>
    where
        L::Key: Named,
    {
        match self.look::<L>(key, deadline)? {
            Found::Whole { label, size, told } => Ok((label, size, told)),
            Found::Nothing | Found::Partial => Err(self.ctx.not_found(format!("volume or snapshot {key}"))),
        }
    }

    fn spell<L: Document>(&self, label: &L, set: u32) -> Result<Vec<String>> {
        tags::spell(&label.to_json(), set)
            .ok_or_else(|| self.ctx.exhausted(format!("the label of {} is too long for tags", label.key())))
    }

    /// Replaces the label by another, in one change of the group's metadata.
    fn set_label<L: Document>(&self, label: &L, told: &Told, deadline: &Deadline) -> Result<()>
    where
        L::Key: Named,
    {
        self.set_label_on(&label.key().lv(), label, told, deadline)
    }

    fn set_label_on<L: Document>(&self, lv: &str, label: &L, told: &Told, deadline: &Deadline) -> Result<()> {
        let spelled = self.spell(label, told.set.wrapping_add(1))?;
        let mut args = vec!["-q"];
        for tag in &spelled {
            args.extend(["--addtag", tag]);
        }
        for tag in &told.parts {
            args.extend(["--deltag", tag]);
        }
        let path = self.group.path(lv);
        args.push(&path);
        self.group.must("lvchange", &args, deadline).map(drop)
    }

    /// A thin snapshot of a volume or a snapshot. lvm2 suspends an origin that is active meanwhile.
    fn thin_snapshot(&self, of: &str, new: &str, tags: &[String], deadline: &Deadline) -> Result<()> {
        let origin = self.group.path(of);
        // -kn: no flag that keeps it from being activated.
        let mut args = vec!["-q", "-y", "-s", "-kn", "-an", "-n", new];
        for tag in tags {
            args.extend(["--addtag", tag]);
        }
        args.push(&origin);
        self.group.must("lvcreate", &args, deadline).map(drop)
    }

    /// Writes zeros to what a thick volume is to have for sure.
    fn provision(&self, lv: &str, from: u64, to: u64, deadline: &Deadline) -> Result<()> {
        let device = self.activate(lv, deadline)?;
        let action = format!("writing zeros to {}", device.display());
        let file = File::options().write(true).open(&device).map_err(self.ctx.io(action.clone()))?;
        let mut at = from;
        while at < to {
            self.ctx.check(deadline, "writing zeros to a thick volume")?;
            let len = (to - at).min(64 << 20);
            block::write_zeros(&file, at, len).map_err(self.ctx.io(action.clone()))?;
            at += len;
        }
        file.sync_all().map_err(self.ctx.io(action))?;
        drop(file);
        self.deactivate(lv, deadline)
    }

    fn make(&self, label: &Label, deadline: &Deadline) -> Result<()> {
        let lv = label.id.lv();
        let mut spelled = self.spell(label, 1)?;
        let bytes = backing(label.size, label.encryption);
        let size = format!("{bytes}b");
        if let Some(source) = label.source.filter(|s| s.mode == SourceMode::Linked) {
            self.thin_snapshot(&source.snapshot.lv(), &lv, &spelled, deadline)?;
            return self.lengthen(label, deadline);
        }
        let thick = label.provisioning == Provisioning::Thick;
        let format = mounted::to_format(label);
        let later = thick || format.is_some() || label.encryption.is_some();
        if later {
            spelled.push(NEW.into());
        }
        let pool = self.group.path(THIN);
        let mut args = vec!["-q", "-y", "--type", "thin", "-an", "-kn", "-V", &size, "-n", &lv];
        for tag in &spelled {
            args.extend(["--addtag", tag]);
        }
        args.extend(["--thinpool", &pool]);
        self.group.must("lvcreate", &args, deadline)?;
        if thick {
            self.provision(&lv, 0, bytes, deadline)?;
        }
        // This very call has made it, and until the tag goes it is no volume.
        if let Some(encryption) = label.encryption {
            let device = self.activate(&lv, deadline)?;
            self.mappings.format(label.id, encryption, &device, deadline)?;
        }
        if let Some(kind) = format {
            let device = self.usable(&lv, label.encryption, Use::of(label), deadline)?;
            mounted::format(&self.ctx, kind, label, &device, deadline)?;
        }
        if label.encryption.is_some() || format.is_some() {
            self.deactivate(&lv, deadline)?;
        }
        if later {
            self.group.must("lvchange", &["-q", "--deltag", NEW, &self.group.path(&lv)], deadline)?;
        }
        Ok(())
    }

    /// A clone has its snapshot's size at first, and the label of the size that it is to have.
    fn lengthen(&self, label: &Label, deadline: &Deadline) -> Result<()> {
        let (_, have, _) = self.existing::<Label>(label.id, deadline)?;
        if have < label.size {
            self.resize(label, deadline)?;
        }
        Ok(())
    }

    fn resize(&self, label: &Label, deadline: &Deadline) -> Result<()> {
        let size = format!("{}b", backing(label.size, label.encryption));
        let path = self.group.path(&label.id.lv());
        self.group.must("lvextend", &["-q", "-y", "-L", &size, &path], deadline).map(drop)
    }

    /// Makes a file system as large as its backing, which has its size.
    fn grow_filesystem(&self, label: &Label, deadline: &Deadline) -> Result<()> {
        if label.kind != VolumeKind::Filesystem {
            return Ok(());
        }
        // It grows while it is mounted.
        let mounted = self.mounts.at(label.id)?.is_some();
        let grown = self.open(label.id, deadline).and_then(|o| self.mounts.check_grown(label, &o));
        if !mounted {
            self.close(label.id, deadline)?;
        }
        grown
    }

    fn known(&self, have: &Label, size: ByteSize, label: &Label, deadline: &Deadline) -> Result<Change> {
        check_same(&self.ctx, have, label)?;
        if size < label.size && label.source.is_some() {
            return self.lengthen(label, deadline).map(|()| Change::Unchanged);
        }
        if size != label.size {
            let detail = format!("the logical volume has {size}, not {}", label.size);
            return Err(self.ctx.conflict(label.id.to_string(), detail));
        }
        Ok(Change::Unchanged)
    }
}

/// Replaces the label of a logical volume by any text, as the contract does to damage it.
#[cfg(any(test, feature = "contract"))]
pub(super) fn write_raw_label(spec: &PoolSpec, lv: &str, text: &str, deadline: &Deadline) -> Result<()> {
    let pool = LvmPool::at(spec, &PoolEnv::default())?;
    let rows = pool.group.rows(deadline)?;
    let row = rows.iter().find(|r| r.lv_name == lv);
    let told = row.map(|r| tags::read(&r.lv_tags)).unwrap_or_default();
    let new = tags::spell(text, told.set.wrapping_add(1)).unwrap_or_default();
    let path = pool.group.path(lv);
    let mut args = vec!["-q"];
    for tag in &new {
        args.extend(["--addtag", tag]);
    }
    for tag in &told.parts {
        args.extend(["--deltag", tag]);
    }
    args.push(&path);
    pool.group.must("lvchange", &args, deadline).map(drop)
}

impl Pool for LvmPool {
    fn kind(&self) -> PoolKind {
        PoolKind::Lvm
    }

    fn name(&self) -> &PoolName {
        &self.ctx.pool
    }

    fn granularity(&self) -> ByteSize {
        EXTENT
    }

    fn capacity(&self, deadline: &Deadline) -> Result<Capacity> {
        self.group.capacity(deadline)
    }

    fn create(&self, label: &Label, deadline: &Deadline) -> Result<Change> {
        check_size(&self.ctx, label, EXTENT)?;
        check_properties(&self.ctx.pool, self.features(), None, label)?;
        self.ctx.check(deadline, "reading a label")?;
        let rows = self.group.rows(deadline)?;
        match self.look_in::<Label>(&rows, label.id)? {
            Found::Whole { label: have, size, .. } => return self.known(&have, size, label, deadline),
            // Ids are never used twice, so it was left by this very request.
            Found::Partial => self.erase(&label.id.lv(), deadline)?,
            Found::Nothing => {}
        }
        let more = backing(label.size, label.encryption);
        check_room(&self.ctx, label, more, self.capacity(deadline)?)?;
        mounted::check_tool(&self.ctx, label)?;
        if let Some(source) = label.source.filter(|s| s.mode == SourceMode::Linked) {
            match self.look_in::<SnapshotLabel>(&rows, source.snapshot)? {
                Found::Whole { label: of, .. } => check_clone_key(&self.ctx, of.encryption, label)?,
                _ => return Err(self.ctx.not_found(format!("snapshot {}", source.snapshot))),
            }
        }
        self.mappings.check(label.encryption)?;
        match self.make(label, deadline) {
            Ok(()) => Ok(Change::Done),
            Err(error) => match self.look::<Label>(label.id, deadline) {
                Ok(Found::Whole { label: have, size, .. }) => self.known(&have, size, label, deadline),
                _ => {
                    self.tidy(std::iter::once(label.id.lv()), deadline);
                    Err(error)
                }
            },
        }
    }

    fn grow(&self, label: &Label, deadline: &Deadline) -> Result<Change> {
        check_size(&self.ctx, label, EXTENT)?;
        let (old, have, told) = self.existing::<Label>(label.id, deadline)?;
        if label.size < have {
            return Err(self.ctx.conflict(
                label.id.to_string(),
                format!("it has {have} and can't be made smaller ({})", label.size),
            ));
        }
        if label.size == have {
            if old != *label {
                self.set_label(label, &told, deadline)?;
            }
            // An earlier attempt may have been stopped just before this.
            self.mappings.grow(&label.id.lv(), label.encryption, deadline)?;
            self.grow_filesystem(label, deadline)?;
            return Ok(Change::Unchanged);
        }
        let more = label.size.bytes() - have.bytes();
        let rows = self.group.rows(deadline)?;
        // A plain one grows into what the thin pool does not have, and there lvextend says if there is room.
        if rows.iter().any(|r| r.lv_name == label.id.lv() && r.is_thin()) {
            check_room(&self.ctx, label, more, self.capacity(deadline)?)?;
        }
        // The label first: a crash leaves a volume smaller than its label says, a grow that has not ended.
        self.set_label(label, &told, deadline)?;
        if let Err(error) = self.resize(label, deadline) {
            let (_, now, told) = self.existing::<Label>(label.id, deadline)?;
            if now != label.size {
                self.set_label(&old, &told, deadline)?;
                return Err(error);
            }
        }
        if label.provisioning == Provisioning::Thick {
            let open = self.device(&label.id.lv())?.is_some();
            let lv = label.id.lv();
            let device = self.activate(&lv, deadline)?;
            let action = format!("writing zeros to {}", device.display());
            let file = File::options().write(true).open(&device).map_err(self.ctx.io(action.clone()))?;
            let from = backing(have, label.encryption);
            block::write_zeros(&file, from, more).map_err(self.ctx.io(action))?;
            drop(file);
            if !open {
                self.deactivate(&lv, deadline)?;
            }
        }
        self.mappings.grow(&label.id.lv(), label.encryption, deadline)?;
        self.grow_filesystem(label, deadline)?;
        Ok(Change::Done)
    }

    fn set(&self, label: &Label, deadline: &Deadline) -> Result<Change> {
        let (old, _, told) = self.existing::<Label>(label.id, deadline)?;
        check_properties(&self.ctx.pool, self.features(), Some(&old), label)?;
        if old == *label {
            return Ok(Change::Unchanged);
        }
        self.set_label(label, &told, deadline).map(|()| Change::Done)
    }

    fn relabel(&self, label: &Label, deadline: &Deadline) -> Result<()> {
        let (_, _, told) = self.existing::<Label>(label.id, deadline)?;
        self.set_label(label, &told, deadline)
    }

    fn destroy(&self, id: VolumeId, deadline: &Deadline) -> Result<Change> {
        self.mounts.unmount(id, deadline)?;
        match self.look::<Label>(id, deadline)? {
            Found::Nothing => Ok(Change::Unchanged),
            Found::Partial | Found::Whole { .. } => self.erase(&id.lv(), deadline).map(|()| Change::Done),
        }
    }

    fn get(&self, id: VolumeId, deadline: &Deadline) -> Result<Option<Stored>> {
        Ok(match self.look::<Label>(id, deadline)? {
            Found::Whole { label, size, .. } => Some(Stored::of(label, size)),
            Found::Nothing | Found::Partial => None,
        })
    }

    fn list(&self, deadline: &Deadline) -> Result<Listing> {
        self.ctx.check(deadline, "reading labels")?;
        let mut listing = Listing::default();
        for row in self.group.rows(deadline)?.into_iter().filter(|r| r.lv_name != THIN) {
            let damaged = match name_of(&row.lv_name) {
                None => Err("does not have the name of a volume".to_string()),
                Some(Name::Volume(id)) => found::<Label>(&row, id).map(|f| match f {
                    Found::Whole { label, size, .. } => listing.volumes.push(Stored::of(label, size)),
                    Found::Partial => listing.partial.push(id),
                    Found::Nothing => {}
                }),
                Some(Name::Snapshot(key)) => found::<SnapshotLabel>(&row, key).map(|f| match f {
                    Found::Whole { label, .. } => listing.snapshots.push(label),
                    Found::Partial => listing.partial_snapshots.push(key),
                    Found::Nothing => {}
                }),
            };
            if let Err(what) = damaged {
                listing.strays.push(stray(row, what));
            }
        }
        let encrypted = listing.volumes.iter().filter_map(|v| Some((v.label.id.lv(), v.label.encryption?)));
        listing.locked = self.mappings.locked(encrypted)?;
        listing.volumes.sort_by_key(|s| s.label.id);
        listing.snapshots.sort_by_key(|s| s.key);
        listing.partial.sort();
        listing.partial_snapshots.sort();
        listing.strays.sort();
        Ok(listing)
    }

    fn adopt(&self, stray: &str, label: &Label, deadline: &Deadline) -> Result<Change> {
        self.adopt_lv(stray, label, deadline)
    }

    fn release(&self, stray: &str, id: VolumeId, deadline: &Deadline) -> Result<Change> {
        self.release_lv(stray, id, deadline)
    }

    fn open(&self, id: VolumeId, deadline: &Deadline) -> Result<Opened> {
        let (label, stored, _) = self.existing::<Label>(id, deadline)?;
        check_filled(&self.ctx, &label)?;
        self.mappings.check_key(&id.lv(), label.encryption)?;
        let device = self.activate(&id.lv(), deadline)?;
        let action = format!("opening {}", device.display());
        if label.provisioning == Provisioning::Thick {
            let name = device.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            block::forbid_discard(name).map_err(self.ctx.io(action.clone()))?;
        }
        let measure = |device: &Path| {
            let size = File::open(device).and_then(|f| block::size(&f));
            size.map_err(self.ctx.io(format!("opening {}", device.display())))
        };
        let wrong = |device: &Path, has: u64, says: u64| {
            let detail = format!("it has {} where LVM says {}", ByteSize(has), ByteSize(says));
            Err(self.ctx.conflict(device.display().to_string(), detail))
        };
        let (has, says) = (measure(&device)?, backing(stored, label.encryption));
        if has != says {
            return wrong(&device, has, says);
        }
        let device = self.usable(&id.lv(), label.encryption, Use::of(&label), deadline)?;
        let size = measure(&device)?;
        if size != stored.bytes() {
            return wrong(&device, size, stored.bytes());
        }
        match label.kind {
            VolumeKind::Block => Ok(Opened { place: Place::Device(device), size: ByteSize(size) }),
            VolumeKind::Filesystem => self.mounts.open(&label, &device, ByteSize(size), deadline),
        }
    }

    fn unlock(&self, id: VolumeId, key: &EncryptionKey, deadline: &Deadline) -> Result<()> {
        let (label, ..) = self.existing::<Label>(id, deadline)?;
        let Some(encryption) = label.encryption else { return Ok(()) };
        let lv = id.lv();
        let open = self.device(&lv)?.is_some();
        let device = self.activate(&lv, deadline)?;
        let unlocked = self.mappings.unlock(encryption, &device, key, deadline);
        // Whatever becomes of that: the key was brought, or was not.
        if !open && let Err(error) = self.deactivate(&lv, deadline) {
            tracing::warn!(lv, %error, "it stays active");
        }
        unlocked
    }

    fn close(&self, id: VolumeId, deadline: &Deadline) -> Result<()> {
        self.mounts.unmount(id, deadline)?;
        self.deactivate(&id.lv(), deadline)
    }

    fn snapshot(&self, labels: &[SnapshotLabel], deadline: &Deadline) -> Result<Snapped> {
        let mut there = 0;
        for label in labels {
            match self.look::<SnapshotLabel>(label.key, deadline)? {
                Found::Whole { label: have, .. } if have == *label => there += 1,
                Found::Whole { .. } => {
                    return Err(self.ctx.conflict(label.key.to_string(), "it exists with another label"));
                }
                Found::Partial => self.erase(&label.key.lv(), deadline)?,
                Found::Nothing => {}
            }
        }
        if there == labels.len() {
            return Ok(Snapped { change: Change::Unchanged, paused: None });
        }
        if there > 0 {
            return Err(self.ctx.conflict(labels[0].key.to_string(), "a part of its group exists already"));
        }
        let rows = self.group.rows(deadline)?;
        for label in labels {
            let volume = label.key.volume;
            let Found::Whole { size, .. } = self.look_in::<Label>(&rows, volume)? else {
                return Err(self.ctx.not_found(format!("volume {volume}")));
            };
            if size != label.size {
                let detail = format!("its volume has {size}, not {}", label.size);
                return Err(self.ctx.conflict(label.key.to_string(), detail));
            }
            if rows.iter().any(|r| r.lv_name == volume.lv() && !r.is_thin()) {
                return Err(self.ctx.unsupported(format!(
                    "volume {volume} was adopted and is no thin volume, and LVM takes snapshots of thin ones"
                )));
            }
        }
        match self.take(labels, deadline) {
            Ok(paused) => Ok(Snapped { change: Change::Done, paused }),
            Err(error) => {
                self.tidy(labels.iter().map(|l| l.key.lv()), deadline);
                Err(error)
            }
        }
    }

    fn get_snapshot(&self, key: SnapshotKey, deadline: &Deadline) -> Result<Option<SnapshotLabel>> {
        Ok(match self.look::<SnapshotLabel>(key, deadline)? {
            Found::Whole { label, .. } => Some(label),
            Found::Nothing | Found::Partial => None,
        })
    }

    fn relabel_snapshot(&self, label: &SnapshotLabel, deadline: &Deadline) -> Result<()> {
        let (_, _, told) = self.existing::<SnapshotLabel>(label.key, deadline)?;
        self.set_label(label, &told, deadline)
    }

    fn destroy_snapshot(&self, key: SnapshotKey, deadline: &Deadline) -> Result<Change> {
        match self.look::<SnapshotLabel>(key, deadline)? {
            Found::Nothing => Ok(Change::Unchanged),
            Found::Partial | Found::Whole { .. } => self.erase(&key.lv(), deadline).map(|()| Change::Done),
        }
    }

    fn read(&self, key: SnapshotKey, deadline: &Deadline) -> Result<File> {
        let (label, ..) = self.existing::<SnapshotLabel>(key, deadline)?;
        let device = self.usable(&key.lv(), label.encryption, Use::Read, deadline)?;
        let opened = File::open(&device).and_then(|f| fs::set_direct(&f).map(|()| f));
        opened.map_err(self.ctx.io(format!("opening {}", device.display()))).inspect_err(|_| {
            if let Err(error) = self.done_reading(key, deadline) {
                tracing::warn!(snapshot = %key, %error, "its device stays");
            }
        })
    }

    fn done_reading(&self, key: SnapshotKey, deadline: &Deadline) -> Result<()> {
        if self.device(&key.lv())?.is_some() {
            // Fails while another reader has it open, and that is as it should be: the last one takes it
            // down.
            if self.mappings.close_if_unused(&key.lv(), deadline)? {
                return Ok(());
            }
            self.group.run("lvchange", &["-q", "-an", &self.group.path(&key.lv())], deadline)?;
        }
        Ok(())
    }

    fn blocks(
        &self,
        key: SnapshotKey,
        base: Option<SnapshotKey>,
        found: &mut Extents,
        deadline: &Deadline,
    ) -> Result<()> {
        self.blocks_of(key, base, found, deadline)
    }

    fn fill(&self, id: VolumeId, deadline: &Deadline) -> Result<File> {
        let (label, ..) = self.existing::<Label>(id, deadline)?;
        let device = self.usable(&id.lv(), label.encryption, Use::of(&label), deadline)?;
        let opened = File::options().read(true).write(true).open(&device);
        let opened = opened.and_then(|f| fs::set_direct(&f).map(|()| f));
        opened.map_err(self.ctx.io(format!("opening {}", device.display())))
    }

    fn arrays(&self) -> Option<&Arrays> {
        Some(&self.arrays)
    }

    fn change(&self, change: &PoolChange, deadline: &Deadline) -> Result<Change> {
        match change {
            PoolChange::Expand { disks } => self.expand(disks, deadline),
            other => self.arrays.change(other, deadline),
        }
    }

    fn export(&self, deadline: &Deadline) -> Result<()> {
        // None is in use; a daemon that was killed may have left one mounted that it was looking at.
        self.mounts.mounted()?.into_iter().try_for_each(|id| self.close(id, deadline))?;
        self.mounts.forget();
        for row in self.group.rows(deadline)? {
            self.mappings.close(&row.lv_name, deadline)?;
        }
        self.group.must("vgchange", &["-q", "-an", self.group.name()], deadline)?;
        self.arrays.export(deadline)
    }

    fn remove(&self, deadline: &Deadline) -> Result<()> {
        self.group.remove(deadline)?;
        self.mounts.forget();
        self.arrays.remove(deadline)
    }
}
