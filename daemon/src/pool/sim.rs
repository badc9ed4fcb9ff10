//! `sim` pools: real image files in any directory, and no privileges.
//!
//! Called by the engine through [`Pool`]. A product feature, for trying the API and for tests. It keeps
//! every rule of the trait but one: nothing is synced, so a volume survives the death of the daemon and
//! not that of the machine. Waiting for a disk would buy a simulation nothing.

use std::fs::File;
use std::path::Path;

use orlop_api::{ByteSize, PoolKind, PoolName, VolumeId};

use super::context::Context;
use super::images::{GRANULARITY, Images};
use super::{Capacity, Change, Listing, Opened, Pool, Result, Snapped, Stored, check_properties};
use crate::kernel::{Deadline, block};
use crate::model::{Label, PoolSpec, SnapshotKey, SnapshotLabel};

/// See the module.
#[derive(Debug)]
pub(super) struct SimPool {
    ctx: Context,
    images: Images,
}

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
        let images = Images::new(&ctx, directory, false, false);
        Self { ctx, images }
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
        let (file, _): (File, _) = self.images.file(id)?;
        let size = block::size(&file).map_err(self.ctx.io(format!("measuring the image of {id}")))?;
        Ok(Opened { device: self.images.image(id), size: ByteSize(size) })
    }

    fn close(&self, _: VolumeId, _: &Deadline) -> Result<()> {
        Ok(())
    }

    fn snapshot(&self, labels: &[SnapshotLabel], deadline: &Deadline) -> Result<Snapped> {
        self.images.snapshot(labels, deadline, || self.images.written(labels))
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

    fn fill(&self, id: VolumeId, _: &Deadline) -> Result<File> {
        Ok(self.images.file(id)?.0)
    }

    fn remove(&self, deadline: &Deadline) -> Result<()> {
        self.images.remove(deadline)
    }
}
