//! `sim` pools: real image files in any directory, and no privileges.
//!
//! Called by the engine through [`Pool`]. A product feature, for trying the API and for tests. It keeps
//! every rule of the trait but one: nothing is synced, so a volume survives the death of the daemon and
//! not that of the machine. Waiting for a disk would buy a simulation nothing.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use orlop_api::{ByteSize, PoolKind, PoolName, VolumeId, VolumeKind};

use super::context::Context;
use super::images::{GRANULARITY, Images};
use super::{
    Capacity, Change, Extents, KeyRing, Listing, Opened, Place, Pool, Result, Snapped, Stored,
    check_properties,
};
use crate::kernel::{Deadline, block};
use crate::model::{Label, PoolSpec, SnapshotKey, SnapshotLabel};

/// See the module.
#[derive(Debug)]
pub(super) struct SimPool {
    ctx: Context,
    images: Images,
    directory: PathBuf,
}

/// Below it is a directory for each volume that is a file system and was opened.
const FILESYSTEMS: &str = "filesystems";

impl SimPool {
    pub fn create(spec: &PoolSpec, directory: &Path) -> Result<Self> {
        let pool = Self::at(spec, directory);
        pool.images.adopt()?;
        Ok(pool)
    }

    pub fn open(spec: &PoolSpec, directory: &Path) -> Result<Self> {
        let pool = Self::at(spec, directory);
        pool.images.open()?;
        Ok(pool)
    }

    fn at(spec: &PoolSpec, directory: &Path) -> Self {
        let ctx = Context::new(&spec.name);
        let images = Images::new(&ctx, directory, false, false, &KeyRing::default());
        Self { ctx, images, directory: directory.to_owned() }
    }
}

impl Pool for SimPool {
    fn kind(&self) -> PoolKind {
        PoolKind::Sim
    }

    fn name(&self) -> &PoolName {
        &self.ctx.pool
    }

    fn granularity(&self) -> ByteSize {
        GRANULARITY
    }

    fn capacity(&self, _: &Deadline) -> Result<Capacity> {
        self.images.capacity()
    }

    fn create(&self, label: &Label, deadline: &Deadline) -> Result<Change> {
        check_properties(&self.ctx.pool, self.features(), None, label)?;
        self.images.create(label, deadline)
    }

    fn grow(&self, label: &Label, deadline: &Deadline) -> Result<Change> {
        self.images.grow(label, deadline)
    }

    fn set(&self, label: &Label, deadline: &Deadline) -> Result<Change> {
        let have = self.images.get(label.id)?.map(|s| s.label);
        check_properties(&self.ctx.pool, self.features(), have.as_ref(), label)?;
        self.images.set(label, deadline)
    }

    fn relabel(&self, label: &Label, _: &Deadline) -> Result<()> {
        self.images.relabel(label)
    }

    fn destroy(&self, id: VolumeId, deadline: &Deadline) -> Result<Change> {
        let path = self.directory.join(FILESYSTEMS).join(id.to_string());
        match std::fs::remove_dir_all(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(self.ctx.io(format!("removing {}", path.display()))(e));
            }
            _ => {}
        }
        self.images.destroy(id, deadline)
    }

    fn get(&self, id: VolumeId, _: &Deadline) -> Result<Option<Stored>> {
        self.images.get(id)
    }

    fn list(&self, deadline: &Deadline) -> Result<Listing> {
        self.images.list(deadline)
    }

    fn adopt(&self, stray: &str, label: &Label, deadline: &Deadline) -> Result<Change> {
        self.images.adopt_stray(stray, label, deadline)
    }

    fn release(&self, stray: &str, id: VolumeId, deadline: &Deadline) -> Result<Change> {
        self.images.release(stray, id, deadline)
    }

    fn open(&self, id: VolumeId, _: &Deadline) -> Result<Opened> {
        let (file, label) = self.images.file(id)?;
        let size = block::size(&file).map_err(self.ctx.io(format!("measuring the image of {id}")))?;
        if label.kind == VolumeKind::Block {
            return Ok(Opened { place: Place::Device(self.images.image(id)), size: ByteSize(size) });
        }
        // There, so that whoever is told of it finds it. Nothing is mounted, and it stays until the volume goes.
        let path = self.directory.join(FILESYSTEMS).join(id.to_string());
        std::fs::create_dir_all(&path).map_err(self.ctx.io(format!("making {}", path.display())))?;
        Ok(Opened { place: Place::Directory(path), size: ByteSize(size) })
    }

    fn close(&self, _: VolumeId, _: &Deadline) -> Result<()> {
        Ok(())
    }

    fn snapshot(&self, labels: &[SnapshotLabel], deadline: &Deadline) -> Result<Snapped> {
        self.images.snapshot(labels, deadline, || self.images.written(labels), || Ok(None))
    }

    fn get_snapshot(&self, key: SnapshotKey, _: &Deadline) -> Result<Option<SnapshotLabel>> {
        self.images.get_snapshot(key)
    }

    fn relabel_snapshot(&self, label: &SnapshotLabel, _: &Deadline) -> Result<()> {
        self.images.relabel_snapshot(label)
    }

    fn destroy_snapshot(&self, key: SnapshotKey, deadline: &Deadline) -> Result<Change> {
        self.images.destroy_snapshot(key, deadline)
    }

    fn read(&self, key: SnapshotKey, _: &Deadline) -> Result<File> {
        self.images.snapshot_file(key)
    }

    fn done_reading(&self, _: SnapshotKey, _: &Deadline) -> Result<()> {
        Ok(())
    }

    fn blocks(
        &self,
        key: SnapshotKey,
        base: Option<SnapshotKey>,
        found: &mut Extents,
        deadline: &Deadline,
    ) -> Result<()> {
        // In any directory, so also where snapshots are copies.
        self.images.blocks_by_content(key, base, found, deadline)
    }

    fn fill(&self, id: VolumeId, _: &Deadline) -> Result<File> {
        Ok(self.images.file(id)?.0)
    }

    fn remove(&self, deadline: &Deadline) -> Result<()> {
        self.images.remove(deadline)?;
        let _ = std::fs::remove_dir(self.directory.join(FILESYSTEMS));
        Ok(())
    }
}
