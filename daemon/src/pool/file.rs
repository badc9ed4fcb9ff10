//! `file` pools: images on btrfs or XFS, each behind a loop device with direct I/O while it is open.
//!
//! Called by the engine through [`Pool`]. The directory is one that someone else mounts, or is on a
//! disk of its own (`file_disk`). A loop device that an earlier daemon made is found again and used on:
//! a restart does not disturb who is connected.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use orlop_api::{
    ByteSize, EncryptionKey, Filesystem, PoolKind, PoolName, Provisioning, VolumeId, VolumeKind,
};
use parking_lot::Mutex;
use uuid::Uuid;

use super::arrays::Arrays;
use super::context::Context;
use super::file_disk::{OwnDisk, Stand};
use super::held::Held;
use super::images::{GRANULARITY, Images, image_name};
use super::mapped::Use;
use super::mounted::Mounts;
use super::rules::check_filled;
use super::{
    Capacity, Change, Extents, Features, Listing, Opened, Place, Pool, PoolEnv, PoolError, Result, Snapped,
    Stored, check_properties, features,
};
use crate::kernel::fs::{self, FsKind};
use crate::kernel::loopdev::{self, Behind};
use crate::kernel::{Deadline, block, dm};
use crate::model::{Label, PoolSpec, SnapshotKey, SnapshotLabel};

/// See the module.
#[derive(Debug)]
pub(super) struct FilePool {
    ctx: Context,
    images: Images,
    /// Where the pool is on a disk of its own, or an array.
    disk: Option<OwnDisk>,
    arrays: Arrays,
    /// Loop devices by volume: a hint, examined before each use.
    loops: Mutex<BTreeMap<VolumeId, u32>>,
    mounts: Mounts,
}

impl FilePool {
    /// In a directory that someone else mounts.
    pub fn create(spec: &PoolSpec, env: &PoolEnv, directory: &Path) -> Result<Self> {
        let pool = Self::at(spec, env, directory, None).map_err(|e| match e {
            // To make one, its directory must be there first.
            PoolError::NotFound { pool, object } => {
                PoolError::Precondition { pool, detail: format!("{object} does not exist") }
            }
            other => other,
        })?;
        pool.images.adopt()?;
        pool.recall()?;
        Ok(pool)
    }

    /// Opens one.
    pub fn open(spec: &PoolSpec, env: &PoolEnv, directory: &Path) -> Result<Self> {
        let pool = Self::at(spec, env, directory, None)?;
        pool.images.open()?;
        pool.recall()?;
        Ok(pool)
    }

    /// On a disk that has been formatted and mounted.
    pub fn create_on(spec: &PoolSpec, env: &PoolEnv, disk: OwnDisk) -> Result<Self> {
        let point = disk.point().to_owned();
        let pool = Self::at(spec, env, &point, Some(disk))?;
        pool.images.adopt()?;
        pool.recall()?;
        Ok(pool)
    }

    /// Opens one that has been mounted.
    pub fn open_on(spec: &PoolSpec, env: &PoolEnv, disk: OwnDisk) -> Result<Self> {
        let point = disk.point().to_owned();
        let pool = Self::at(spec, env, &point, Some(disk))?;
        pool.images.open()?;
        pool.recall()?;
        Ok(pool)
    }

    /// On an array that is made, formatted and mounted. What was made is taken away again where it can't be.
    pub fn create_on_array(
        spec: &PoolSpec,
        env: &PoolEnv,
        filesystem: Filesystem,
        uuid: Uuid,
        deadline: &Deadline,
    ) -> Result<Self> {
        let arrays = Arrays::new(&Context::new(&spec.name), env, spec.arrays());
        let made = arrays.ensure(deadline)?;
        let own = array_of(spec, &arrays)
            .and_then(|device| OwnDisk::create(spec, env, Stand::Array(&device), filesystem, uuid, deadline));
        let own = own.inspect_err(|_| {
            if made && let Err(error) = arrays.remove(deadline) {
                tracing::warn!(pool = %spec.name, %error, "a new array was not removed");
            }
        });
        Self::create_on(spec, env, own?)
    }

    /// On an array that is started and mounted.
    pub fn open_on_array(spec: &PoolSpec, env: &PoolEnv, uuid: Uuid, deadline: &Deadline) -> Result<Self> {
        let arrays = Arrays::new(&Context::new(&spec.name), env, spec.arrays());
        arrays.start(deadline)?;
        let device = array_of(spec, &arrays)?;
        let own = OwnDisk::open(spec, env, uuid, Some(device), deadline);
        Self::open_on(spec, env, own.inspect_err(|error| arrays.put_away(error, deadline))?)
    }

    fn at(spec: &PoolSpec, env: &PoolEnv, directory: &Path, disk: Option<OwnDisk>) -> Result<Self> {
        let ctx = Context::new(&spec.name);
        let kind = match fs::kind(directory) {
            Ok(k) => k,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(ctx.not_found(format!("directory {}", directory.display())));
            }
            Err(e) => return Err(ctx.io(format!("looking at {}", directory.display()))(e)),
        };
        if let FsKind::Other(magic) = kind {
            return Err(ctx.unsupported(format!(
                "{} is on a file system of another kind (0x{magic:x}) than btrfs or XFS",
                directory.display()
            )));
        }
        let images = Images::new(&ctx, directory, true, kind == FsKind::Btrfs, &env.keys);
        let mounts = Mounts::new(&ctx, env);
        let arrays = Arrays::new(&ctx, env, spec.arrays());
        Ok(Self { ctx, images, disk, arrays, loops: Mutex::default(), mounts })
    }

    /// Fills the hints once, so that opening many volumes after a restart does not look at every loop
    /// device for each. What a daemon that was killed held for a snapshot goes on.
    fn recall(&self) -> Result<()> {
        let mounted = self.mounts.recall();
        let mapped = self.images.mappings().recall(|name| match name.parse() {
            Ok(id) => Ok(self.images.key(id)?.is_some()),
            Err(_) => Ok(false),
        });
        mounted.and(mapped)?;
        let listing = |e| self.ctx.io("listing loop devices")(e);
        let bound = loopdev::scan(&BTreeSet::new(), |f| f.ends_with(".img")).map_err(listing)?;
        let mut loops = self.loops.lock();
        for (number, file) in bound {
            if let Some(id) = file.strip_suffix(".img").and_then(|f| f.parse().ok()) {
                loops.insert(id, number);
            }
        }
        Ok(())
    }

    /// The loop device of a volume that has an image.
    fn attached(&self, id: VolumeId, key: &loopdev::Key) -> Result<Option<u32>> {
        let hint = self.loops.lock().get(&id).copied();
        if let Some(number) = hint {
            match loopdev::behind(number, key).map_err(self.ctx.io(format!("looking at loop{number}")))? {
                Behind::Ours => return Ok(Some(number)),
                Behind::Foreign | Behind::Other | Behind::Nothing => {
                    self.loops.lock().remove(&id);
                }
            }
        }
        // Those that other volumes have need not be looked at again.
        let skip: BTreeSet<u32> = self.loops.lock().values().copied().collect();
        let found = loopdev::find(key, &image_name(id), &skip)
            .map_err(self.ctx.loop_device(format!("the image of {id}")))?;
        if let Some(number) = found {
            self.loops.lock().insert(id, number);
        }
        Ok(found)
    }

    /// Gives an image a device, and another above that where it takes one. The device that is used, and its size.
    fn bring(&self, file: &File, label: &Label, deadline: &Deadline) -> Result<(PathBuf, ByteSize)> {
        let id = label.id;
        self.images.mappings().check_key(&id.to_string(), label.encryption)?;
        // Before anyone writes: see docs/adr/0006.
        fs::set_synchronous(file)
            .map_err(self.ctx.io(format!("making writes to the image of {id} synchronous")))?;
        let file_size = block::size(file).map_err(self.ctx.io(format!("measuring the image of {id}")))?;
        let key = loopdev::Key {
            name: format!("orlop:{id}"),
            file: loopdev::file_identity(file)
                .map_err(self.ctx.io(format!("looking at the image of {id}")))?,
        };
        let attached = self.attached(id, &key)?;
        let was_attached = attached.is_some();
        let number = match attached {
            Some(number) => {
                loopdev::keep(number).map_err(self.ctx.io(format!("keeping loop{number}")))?;
                number
            }
            None => {
                let number = loopdev::attach(file, &key, deadline)
                    .map_err(self.ctx.loop_device(format!("the image of {id}")))?;
                self.loops.lock().insert(id, number);
                number
            }
        };
        if label.provisioning == Provisioning::Thick {
            loopdev::forbid_discard(number)
                .map_err(self.ctx.io(format!("forbidding discards on loop{number}")))?;
        }
        let on = loopdev::device(number);
        let measure = |device: &Path| {
            let size = File::open(device).and_then(|f| block::size(&f));
            size.map_err(self.ctx.io(format!("opening {}", device.display())))
        };
        if measure(&on)? < file_size {
            // The image has grown and the daemon was stopped before it told the device.
            loopdev::refresh_size(number).map_err(self.ctx.io(format!("growing {}", on.display())))?;
        }
        let (mappings, for_use) = (self.images.mappings(), Use::of(label));
        let device =
            mappings.open(&id.to_string(), label.encryption, &on, for_use, deadline).inspect_err(|_| {
                // Nothing stands on it that was not there before.
                if !was_attached && let Err(error) = loopdev::detach(number, &key, deadline) {
                    tracing::warn!(volume = %id, %error, "its loop device stays");
                }
            })?;
        Ok((device.clone(), ByteSize(measure(&device)?)))
    }

    fn detach(&self, id: VolumeId, deadline: &Deadline) -> Result<()> {
        self.mounts.unmount(id, deadline)?;
        self.images.mappings().close(&id.to_string(), deadline)?;
        // A device that is bound to a deleted image is not found here; destroy detaches first.
        let Some(key) = self.images.key(id)? else { return Ok(()) };
        if let Some(number) = self.attached(id, &key)? {
            loopdev::detach(number, &key, deadline)
                .map_err(self.ctx.loop_device(format!("the device of {id}")))?;
        }
        self.loops.lock().remove(&id);
        Ok(())
    }
}

impl FilePool {
    /// The loop device that a snapshot's image is read through.
    fn snapshot_loop(&self, key: SnapshotKey, image: &File) -> Result<Option<u32>> {
        let ours = self.snapshot_key(key, image)?;
        let found = loopdev::find(&ours, &image_name(key), &BTreeSet::new());
        found.map_err(self.ctx.loop_device(format!("the image of {key}")))
    }

    fn snapshot_key(&self, key: SnapshotKey, image: &File) -> Result<loopdev::Key> {
        let identity = loopdev::file_identity(image).map_err(self.ctx.io(format!("looking at {key}")))?;
        Ok(loopdev::Key { name: format!("orlop:{}", key.id), file: identity })
    }

    /// Closes an encrypted snapshot that nobody reads.
    fn take_down(&self, key: SnapshotKey, deadline: &Deadline) -> Result<()> {
        self.images.mappings().close(&mapped_name(key), deadline)?;
        let image = self.images.snapshot_for_device(key)?;
        let Some(number) = self.snapshot_loop(key, &image)? else { return Ok(()) };
        let ours = self.snapshot_key(key, &image)?;
        let off = loopdev::detach(number, &ours, deadline);
        off.map_err(self.ctx.loop_device(format!("the image of {key}")))
    }
}

fn array_of(spec: &PoolSpec, arrays: &Arrays) -> Result<PathBuf> {
    arrays.paths()?.pop().ok_or_else(|| Context::new(&spec.name).not_found("its array"))
}

/// The name of a snapshot that is encrypted, while it is read.
fn mapped_name(key: SnapshotKey) -> String {
    format!("{}.{}", key.volume, key.id)
}

impl Pool for FilePool {
    fn kind(&self) -> PoolKind {
        PoolKind::File
    }

    fn name(&self) -> &PoolName {
        &self.ctx.pool
    }

    fn granularity(&self) -> ByteSize {
        GRANULARITY
    }

    fn features(&self) -> Features {
        Features { groups_under_writes: dm::is_there(), ..features(self.kind()) }
    }

    fn arrays(&self) -> Option<&Arrays> {
        Some(&self.arrays)
    }

    fn capacity(&self, _: &Deadline) -> Result<Capacity> {
        self.images.capacity()
    }

    fn create(&self, label: &Label, deadline: &Deadline) -> Result<Change> {
        check_properties(&self.ctx.pool, self.features(), None, label)?;
        self.images.create(label, deadline)
    }

    fn grow(&self, label: &Label, deadline: &Deadline) -> Result<Change> {
        let change = self.images.grow(label, deadline)?;
        // Also when unchanged: an earlier attempt may have been stopped just before this.
        if let Some(key) = self.images.key(label.id)?
            && let Some(number) = self.attached(label.id, &key)?
        {
            loopdev::refresh_size(number).map_err(self.ctx.io(format!("growing loop{number}")))?;
        }
        self.images.mappings().grow(&label.id.to_string(), label.encryption, deadline)?;
        if label.kind == VolumeKind::Filesystem {
            // A file system grows while it is mounted.
            let mounted = self.mounts.at(label.id)?.is_some();
            let grown = self.open(label.id, deadline).and_then(|o| self.mounts.check_grown(label, &o));
            if !mounted {
                self.detach(label.id, deadline)?;
            }
            grown?;
        }
        Ok(change)
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
        self.detach(id, deadline)?;
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
        self.detach(id, deadline)?;
        self.images.release(stray, id, deadline)
    }

    fn open(&self, id: VolumeId, deadline: &Deadline) -> Result<Opened> {
        let (file, label) = self.images.file(id)?;
        check_filled(&self.ctx, &label)?;
        let (device, size) = self.bring(&file, &label, deadline)?;
        match label.kind {
            VolumeKind::Block => Ok(Opened { place: Place::Device(device), size }),
            VolumeKind::Filesystem => self.mounts.open(&label, &device, size, deadline),
        }
    }

    fn unlock(&self, id: VolumeId, key: &EncryptionKey, deadline: &Deadline) -> Result<()> {
        let (_, label) = self.images.file(id)?;
        match label.encryption {
            Some(encryption) => {
                self.images.mappings().unlock(encryption, &self.images.image(id), key, deadline)
            }
            None => Ok(()),
        }
    }

    fn close(&self, id: VolumeId, deadline: &Deadline) -> Result<()> {
        self.detach(id, deadline)
    }

    fn snapshot(&self, labels: &[SnapshotLabel], deadline: &Deadline) -> Result<Snapped> {
        // What is used by its loop device itself can't be held: a moment is looked for in which it is not written to.
        let mut devices = Vec::new();
        if labels.len() > 1 {
            for id in labels.iter().map(|l| l.key.volume) {
                if self.mounts.at(id)?.is_none()
                    && self.images.mappings().device(&id.to_string())?.is_none()
                    && let Some(key) = self.images.key(id)?
                    && let Some(number) = self.attached(id, &key)?
                {
                    devices.push(number);
                }
            }
        }
        let quiet = || {
            let counters =
                devices.iter().map(|n| block::writes(&format!("loop{n}"))).collect::<io::Result<Vec<_>>>();
            let counters = counters.map_err(self.ctx.io("reading the statistics of loop devices"))?;
            Ok(counters.into_iter().collect::<Option<Vec<u64>>>())
        };
        let mappings = (labels.len() > 1).then_some(self.images.mappings());
        let hold = || {
            let ids = labels.iter().map(|l| l.key.volume);
            Held::hold(&self.ctx, ids, &self.mounts, mappings, deadline).map(Some)
        };
        self.images.snapshot(labels, deadline, quiet, hold)
    }

    fn get_snapshot(&self, key: SnapshotKey, _: &Deadline) -> Result<Option<SnapshotLabel>> {
        self.images.get_snapshot(key)
    }

    fn relabel_snapshot(&self, label: &SnapshotLabel, _: &Deadline) -> Result<()> {
        self.images.relabel_snapshot(label)
    }

    fn destroy_snapshot(&self, key: SnapshotKey, deadline: &Deadline) -> Result<Change> {
        // A daemon that was killed may have been reading it.
        if let Ok(Some(SnapshotLabel { encryption: Some(_), .. })) = self.images.get_snapshot(key) {
            self.take_down(key, deadline)?;
        }
        self.images.destroy_snapshot(key, deadline)
    }

    fn read(&self, key: SnapshotKey, deadline: &Deadline) -> Result<File> {
        let direct = || self.ctx.io(format!("opening the image of {key} for direct I/O"));
        let Some(encryption) = self.images.get_snapshot(key)?.and_then(|label| label.encryption) else {
            let file = self.images.snapshot_file(key)?;
            fs::set_direct(&file).map_err(direct())?;
            return Ok(file);
        };
        let (mappings, name) = (self.images.mappings(), mapped_name(key));
        mappings.check_key(&name, Some(encryption))?;
        // Its table is read-only; the image is opened as loop devices are.
        let image = self.images.snapshot_for_device(key)?;
        let number = match self.snapshot_loop(key, &image)? {
            Some(number) => number,
            None => self.images.on_loop(&image, &key.id.to_string(), deadline)?.0,
        };
        let on = loopdev::device(number);
        let opened = mappings.open(&name, Some(encryption), &on, Use::Read, deadline).and_then(|device| {
            let file = File::open(device).and_then(|f| fs::set_direct(&f).map(|()| f));
            file.map_err(direct())
        });
        opened.inspect_err(|_| {
            if let Err(error) = self.done_reading(key, deadline) {
                tracing::warn!(snapshot = %key, %error, "its device stays");
            }
        })
    }

    fn done_reading(&self, key: SnapshotKey, deadline: &Deadline) -> Result<()> {
        let encrypted = |label: SnapshotLabel| label.encryption.is_some();
        // Another reader keeps it open.
        if !self.images.get_snapshot(key)?.is_some_and(encrypted)
            || self.images.mappings().close_if_unused(&mapped_name(key), deadline)?
        {
            return Ok(());
        }
        self.take_down(key, deadline)
    }

    fn blocks(
        &self,
        key: SnapshotKey,
        base: Option<SnapshotKey>,
        found: &mut Extents,
        deadline: &Deadline,
    ) -> Result<()> {
        self.images.blocks(key, base, found, deadline)
    }

    fn fill(&self, id: VolumeId, deadline: &Deadline) -> Result<File> {
        // The image itself, which is not open through a loop device and whose writes are not
        // synchronous before it was. One that is encrypted takes both.
        let (mut file, label) = self.images.file(id)?;
        if label.encryption.is_some() {
            let (device, _) = self.bring(&file, &label, deadline)?;
            let opened = File::options().read(true).write(true).open(&device);
            file = opened.map_err(self.ctx.io(format!("opening {}", device.display())))?;
        }
        fs::set_direct(&file).map_err(self.ctx.io(format!("opening the image of {id} for direct I/O")))?;
        Ok(file)
    }

    fn export(&self, deadline: &Deadline) -> Result<()> {
        // None is in use; a daemon that was killed may have left one mounted that it was looking at.
        self.mounts.mounted()?.into_iter().try_for_each(|id| self.close(id, deadline))?;
        self.mounts.forget();
        // What it was copying is open; one that is encrypted would be readable without its key.
        let listing = self.images.list(deadline)?;
        for volume in listing.volumes {
            self.detach(volume.label.id, deadline)?;
        }
        for label in listing.snapshots.into_iter().filter(|l| l.encryption.is_some()) {
            self.take_down(label.key, deadline)?;
        }
        self.disk.as_ref().map_or(Ok(()), |disk| disk.unmount())?;
        self.arrays.export(deadline)
    }

    fn remove(&self, deadline: &Deadline) -> Result<()> {
        self.images.remove(deadline)?;
        self.mounts.forget();
        if let Some(disk) = &self.disk {
            disk.release(deadline)?;
        }
        self.arrays.remove(deadline)
    }
}
