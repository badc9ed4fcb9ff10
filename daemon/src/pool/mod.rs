//! Pools: where backings are made. One trait, a folder for each kind, and one contract suite
//! (`contract`) that is the trait's specification and runs against every kind.
//!
//! Called by the engine, from the pool's own lane. A pool never decides what should exist: it makes,
//! lists and destroys what it is told, and it never touches what carries no label of ours (R14).

mod arrays;
mod blocks;
mod context;
#[cfg(any(test, feature = "contract"))]
pub mod contract;
pub mod copy;
pub mod disks;
mod features;
mod file;
mod file_disk;
mod held;
mod images;
mod keys;
mod lvm;
mod mapped;
mod mounted;
mod rules;
mod sim;
mod zfs;

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_api::{
    ByteSize, EncryptionKey, ErrorKind, FilesystemKind, PoolHealth, PoolKind, PoolName, Properties,
    Provisioning, VolumeId,
};

pub use blocks::{Extent, Extents, More};
pub use features::{Features, features};
pub use keys::KeyRing;
pub use mapped::let_all_go_on;
pub use rules::{check_properties, least_size, size_unit};

use crate::kernel::{Deadline, Overrun};
use crate::model::{Label, PoolChange, PoolMedium, PoolSpec, SnapshotKey, SnapshotLabel};

/// What `create`, `grow` and `destroy` found to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It was done now.
    Done,
    /// It was so already.
    Unchanged,
}

/// Space, as the pool tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capacity {
    /// User data that it could hold when empty.
    pub total: ByteSize,
    /// Taken, reservations included.
    pub used: ByteSize,
    /// Can still be written or reserved.
    pub available: ByteSize,
    /// How full what it keeps of its own is, in percent, where that has room of its own: of a thin pool, the
    /// metadata, which are as deadly to run out of as the data.
    pub metadata_percent: Option<u8>,
}

/// A backing as it was read back from the pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// What is written on it.
    pub label: Label,
    /// How large the backing is. `label.size` after a completed create or grow.
    pub size: ByteSize,
    /// The file system that it is made for, as far as the pool knows without opening it: `label.filesystem`.
    pub filesystem: Option<FilesystemKind>,
    /// Whether its space is reserved. `label.provisioning` after a completed create or set.
    pub provisioning: Provisioning,
    /// What those properties are that the label sets, in so far as they have a value that it could set.
    /// `label.properties` after a completed create or set.
    pub properties: Properties,
}

impl Stored {
    /// A backing whose label is all there is to know, but for its size.
    pub fn of(label: Label, size: ByteSize) -> Self {
        let Label { provisioning, properties, filesystem, .. } = label;
        Self { size, filesystem, provisioning, properties, label }
    }

    /// The label that says what the backing is.
    pub fn as_it_is(self) -> Label {
        // A label of another file system is no label of this backing: pools say so before it comes to this.
        let Self { label, size, filesystem: _, provisioning, properties } = self;
        Label { size, provisioning, properties, ..label }
    }

    /// Whether the backing is what its label says.
    pub fn is_whole(&self) -> bool {
        let Self { label, size, filesystem, provisioning, properties } = self;
        *size == label.size
            && *filesystem == label.filesystem
            && *provisioning == label.provisioning
            && *properties == label.properties
    }
}

/// Everything in a pool that is ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// Whole backings, ordered by id.
    pub volumes: Vec<Stored>,
    /// Whole snapshots, ordered by volume and id.
    pub snapshots: Vec<SnapshotLabel>,
    /// What a crash left of a create or destroy: carries our name, has no whole backing. `destroy`
    /// removes it.
    pub partial: Vec<VolumeId>,
    /// The same of snapshots, for `destroy_snapshot`.
    pub partial_snapshots: Vec<SnapshotKey>,
    /// What is there besides and is left alone, ordered by name.
    pub strays: Vec<Stray>,
    /// The encrypted volumes whose key is not loaded. One whose key is on the ring is among them until it is
    /// opened.
    pub locked: BTreeSet<VolumeId>,
}

impl Listing {
    /// What a crash left, of volumes and of snapshots.
    pub fn leftovers(&self) -> impl Iterator<Item = Leftover> {
        let volumes = self.partial.iter().copied().map(Leftover::Volume);
        volumes.chain(self.partial_snapshots.iter().copied().map(Leftover::Snapshot))
    }
}

/// What a crash left of a volume or of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leftover {
    /// For `destroy`.
    Volume(VolumeId),
    /// For `destroy_snapshot`.
    Snapshot(SnapshotKey),
}

impl std::fmt::Display for Leftover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Volume(id) => id.fmt(f),
            Self::Snapshot(key) => key.fmt(f),
        }
    }
}

/// Something in a pool that is not a volume or a snapshot of ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stray {
    /// What the pool calls it, and what `adopt` takes: a dataset's whole name, a logical volume's, a
    /// file's.
    pub name: String,
    /// Whether it carries a label of ours: one that is damaged, or is another volume's.
    pub labelled: bool,
    /// What it is, or what is wrong with it.
    pub what: String,
    /// How large it is, where it has a size.
    pub size: Option<ByteSize>,
    /// How its space is reserved, if it can become a volume; otherwise why it can't.
    pub adoptable: std::result::Result<Provisioning, String>,
}

impl Stray {
    /// Something that carries our label and is left for a person to look at.
    fn labelled(name: impl Into<String>, what: impl Into<String>, size: Option<ByteSize>) -> Self {
        let adoptable = Err("it carries our label: put that right first".into());
        Self { name: name.into(), labelled: true, what: what.into(), size, adoptable }
    }

    /// Something without a label of ours.
    fn foreign(
        name: impl Into<String>,
        what: impl Into<String>,
        size: Option<ByteSize>,
        adoptable: std::result::Result<Provisioning, String>,
    ) -> Self {
        Self { name: name.into(), labelled: false, what: what.into(), size, adoptable }
    }
}

/// What taking snapshots came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapped {
    /// Whether anything was done.
    pub change: Change,
    /// How long writers had to wait at most, where that was measured.
    pub paused: Option<Duration>,
}

/// Where a backing is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A block device (a plain file in a `sim` pool).
    Device(PathBuf),
    /// The root of a mounted file system (an empty directory in a `sim` pool).
    Directory(PathBuf),
}

/// A backing that is ready to be given to a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Where it is.
    pub place: Place,
    /// Its size as the device tells it; of a file system the volume's, or its own where that is less.
    pub size: ByteSize,
}

impl Opened {
    /// Its path, whatever is there.
    pub fn path(&self) -> &Path {
        match &self.place {
            Place::Device(path) | Place::Directory(path) => path,
        }
    }

    /// The block device, if it is one.
    pub fn device(&self) -> Option<&Path> {
        match &self.place {
            Place::Device(path) => Some(path),
            Place::Directory(_) => None,
        }
    }
}

/// Why a pool could not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// The pool or the backing is not there.
    #[error("{object} does not exist in pool {pool}")]
    NotFound {
        /// The pool.
        pool: PoolName,
        /// What was looked for.
        object: String,
    },
    /// Space or a limit ran out; nothing was made.
    #[error("pool {pool} has no room: {detail}")]
    Exhausted {
        /// The pool.
        pool: PoolName,
        /// What was needed and what there is.
        detail: String,
    },
    /// Something of that name is there and is not what was asked for, or is not ours.
    #[error("{object} in pool {pool}: {detail}")]
    Conflict {
        /// The pool.
        pool: PoolName,
        /// What is in the way.
        object: String,
        /// How it differs.
        detail: String,
    },
    /// Something must be done by a person first; nothing was changed.
    #[error("pool {pool}: {detail}")]
    Precondition {
        /// The pool.
        pool: PoolName,
        /// What.
        detail: String,
    },
    /// This kind of pool, or this machine, can't do it.
    #[error("pool {pool}: {detail}")]
    Unsupported {
        /// The pool.
        pool: PoolName,
        /// What is missing.
        detail: String,
    },
    /// This kind of pool can't give a volume this, or not any more; nothing was made or changed.
    #[error("pool {pool}: {field} {reason}")]
    Property {
        /// The pool.
        pool: PoolName,
        /// The field of the request.
        field: &'static str,
        /// Why not.
        reason: String,
    },
    /// It is encrypted, and the key is not here; nothing was changed.
    #[error("volume {volume} in pool {pool} is locked: bring its key")]
    Locked {
        /// The pool.
        pool: PoolName,
        /// The volume whose key it takes.
        volume: VolumeId,
    },
    /// The key that was brought is another's; nothing was changed.
    #[error("this is not the key of volume {volume} in pool {pool}")]
    WrongKey {
        /// The pool.
        pool: PoolName,
        /// The volume whose key it takes.
        volume: VolumeId,
    },
    /// Its disks are gone, or another pool's are that everything has to wait for; nothing more was changed.
    #[error("pool {pool}: {detail}")]
    Failed {
        /// The pool.
        pool: PoolName,
        /// What is gone, and what to do.
        detail: String,
    },
    /// A system call failed.
    #[error("pool {pool}: {action}")]
    Io {
        /// The pool.
        pool: PoolName,
        /// What was being done, with the path.
        action: String,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A command failed.
    #[error("pool {pool}: {command} failed: {detail}")]
    Command {
        /// The pool.
        pool: PoolName,
        /// The command without its arguments' secrets.
        command: String,
        /// The last lines of what it said, for people: nothing is decided by them.
        detail: String,
    },
    /// A stream between two pools broke.
    #[error("the stream of the copy broke")]
    Stream {
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// It took too long.
    #[error("pool {pool}: {action} took too long")]
    Deadline {
        /// The pool.
        pool: PoolName,
        /// What was being done.
        action: String,
        /// The marker.
        #[source]
        source: Overrun,
    },
}

impl PoolError {
    /// The kind that a caller hears.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Exhausted { .. } => ErrorKind::Exhausted,
            Self::Conflict { .. } => ErrorKind::Conflict,
            Self::Precondition { .. } | Self::Locked { .. } => ErrorKind::Precondition,
            Self::WrongKey { .. } => ErrorKind::Invalid,
            Self::Unsupported { .. } | Self::Property { .. } => ErrorKind::Unsupported,
            Self::Io { .. } | Self::Command { .. } | Self::Stream { .. } => ErrorKind::Internal,
            Self::Failed { .. } => ErrorKind::Unavailable,
            Self::Deadline { .. } => ErrorKind::Deadline,
        }
    }
}

/// Result of a pool operation.
pub type Result<T> = std::result::Result<T, PoolError>;

/// A pool that has been opened (imported, mounted).
///
/// Every method blocks, may be called from several threads at once for different volumes, and is
/// idempotent by id: doing it again after a crash at any point ends in the same state. The caller
/// never runs two methods for one volume at the same time.
pub trait Pool: Send + Sync {
    /// Its kind.
    fn kind(&self) -> PoolKind;

    /// Its name.
    fn name(&self) -> &PoolName;

    /// Sizes are whole numbers of this.
    fn granularity(&self) -> ByteSize;

    /// What it can do.
    fn features(&self) -> Features {
        features(self.kind())
    }

    /// The arrays of disks below it, where it is a kind that stands on some.
    fn arrays(&self) -> Option<&arrays::Arrays> {
        None
    }

    /// What it was made from, with what is known only now that it is there. Kept, and given to [`open`].
    fn known_as(&self, spec: &PoolSpec, deadline: &Deadline) -> Result<PoolSpec> {
        let _ = deadline;
        self.arrays().map_or_else(|| Ok(spec.clone()), |arrays| Ok(spec.with_arrays(arrays.known()?)))
    }

    /// The same while it is in use, if what is to be known when it is opened again is not what `spec` says any more:
    /// which of its disks can be trusted with its data.
    fn to_remember(&self, spec: &PoolSpec) -> Result<Option<PoolSpec>> {
        let Some(arrays) = self.arrays() else { return Ok(None) };
        Ok(Some(spec.with_arrays(arrays.known()?)).filter(|now| now != spec))
    }

    /// Space as it is now.
    fn capacity(&self, deadline: &Deadline) -> Result<Capacity>;

    /// Makes a backing of `label.size` with `label` written on it in the same operation. It exists
    /// when this returns: it survives a power cut. On error nothing is left but, at worst, what `list`
    /// shows as `partial`.
    ///
    /// Its properties are those that `label` sets, and the pool's defaults: `Property` if the pool can't
    /// give them. A linked clone has the block size of its source, and `label` must say so if that was set; and
    /// its encryption, of which the same is true.
    ///
    /// One that is encrypted takes its key from the ring: `Locked` if it is not there.
    ///
    /// A new backing reads as zeros, or, with a linked `source`, as that snapshot and zeros behind it.
    /// With a copied one it also reads as zeros: its content is written into `fill`. One that is encrypted only with
    /// `encrypted_zeros`.
    ///
    /// A file system is made on a new backing before anything takes that for whole, and on nothing else, ever:
    /// a crash before its end leaves a `partial` one. A clone has its source's, and a copy gets that with its
    /// content.
    fn create(&self, label: &Label, deadline: &Deadline) -> Result<Change>;

    /// Makes a backing as large as `label.size`, and writes `label` on it. Never makes it smaller:
    /// that is `Conflict`. A file system is made as large as its backing, mounted or not, and also where the
    /// backing has its size already.
    fn grow(&self, label: &Label, deadline: &Deadline) -> Result<Change>;

    /// Gives a backing the provisioning and the properties of `label`, and writes `label` on it. A
    /// property that it does not set goes back to the pool's default. On error everything is as it was but,
    /// at worst, a part of what was asked for, which shows in `get`. Its size stays: `label` has the
    /// backing's own.
    ///
    /// `Property` if the pool can't do it, or can't do it any more (`block_size`). Nothing is changed then.
    fn set(&self, label: &Label, deadline: &Deadline) -> Result<Change>;

    /// Writes `label` on an existing backing, replacing the old one atomically. What it says of the
    /// backing is true already.
    fn relabel(&self, label: &Label, deadline: &Deadline) -> Result<()>;

    /// Removes a backing or what is left of one. It is gone when this returns, for ever.
    fn destroy(&self, id: VolumeId, deadline: &Deadline) -> Result<Change>;

    /// Removes what a `create` that was stopped may have left, with a label or without one. The caller knows from its
    /// journal that the id was minted for it, and that nobody has ever used it.
    fn unmake(&self, id: VolumeId, deadline: &Deadline) -> Result<Change> {
        self.destroy(id, deadline)
    }

    /// Reads one backing back from the pool, not from memory. `None` also for a partial one.
    fn get(&self, id: VolumeId, deadline: &Deadline) -> Result<Option<Stored>>;

    /// Reads all of them back, in a number of calls that does not grow with their number where the
    /// pool's tools allow that.
    fn list(&self, deadline: &Deadline) -> Result<Listing>;

    /// What lies in the same pool outside our own place in it and could be adopted: strays that `list` does
    /// not look for, because nobody but a person who asks wants to know of them.
    fn elsewhere(&self, _: &Deadline) -> Result<Vec<Stray>> {
        Ok(Vec::new())
    }

    /// Makes a stray of this pool that carries no label a volume, as it is: with `label` on it, under the
    /// name that `label.id` gives it, and without touching its content. `label.size` is its size and
    /// `label.provisioning` what the stray said, else `Conflict`. `Precondition` while anyone uses it. On
    /// error it is as it was but, at worst, for what `release` undoes.
    fn adopt(&self, stray: &str, label: &Label, deadline: &Deadline) -> Result<Change>;

    /// Undoes an `adopt` wherever it stopped: the stray has its old name and no label of that id. Never
    /// touches its content. Fine if nothing was done.
    fn release(&self, stray: &str, id: VolumeId, deadline: &Deadline) -> Result<Change>;

    /// Brings a backing to where a target can use it (a loop device; a device node that has appeared; the
    /// directory where a file system is mounted, which is made as large as its backing where it is not)
    /// and opens it once, so that a device that hangs does so here and not under the kernel target's
    /// lock (R12). Opening an open one gives the same device.
    fn open(&self, id: VolumeId, deadline: &Deadline) -> Result<Opened>;

    /// The same where the caller knows the label: a pool that would have to wait for its own changes to read it need not.
    /// The size is that of the label, or what `open` finds.
    fn open_known(&self, label: &Label, deadline: &Deadline) -> Result<Opened> {
        self.open(label.id, deadline)
    }

    /// Brings a volume's key: from now on, until the machine is started again, it can be opened, and with it all
    /// that have the same. Also where that was so before: `WrongKey` if it is another's. Fine, and without
    /// any use, for one that is not encrypted.
    fn unlock(&self, id: VolumeId, key: &EncryptionKey, deadline: &Deadline) -> Result<()> {
        let _ = (id, key, deadline);
        Ok(())
    }

    /// Undoes `open`. The target no longer uses the device. Fine if it is not open or does not exist.
    fn close(&self, id: VolumeId, deadline: &Deadline) -> Result<()>;

    /// Takes a snapshot of each label's volume, all at one instant, open and written to or not, with
    /// the label on each in the same operation. A file system that is mounted is whole in it. They exist when this returns. On error none is left
    /// but, at worst, what `list` shows as partial. Unchanged if all are there already. The caller sees
    /// to it that nothing else is done to these volumes meanwhile.
    fn snapshot(&self, labels: &[SnapshotLabel], deadline: &Deadline) -> Result<Snapped>;

    /// Reads one snapshot back from the pool. `None` also for a partial one.
    fn get_snapshot(&self, key: SnapshotKey, deadline: &Deadline) -> Result<Option<SnapshotLabel>>;

    /// Writes `label` on an existing snapshot, replacing the old one atomically.
    fn relabel_snapshot(&self, label: &SnapshotLabel, deadline: &Deadline) -> Result<()>;

    /// Removes a snapshot or what is left of one. `Precondition` while a clone depends on it.
    fn destroy_snapshot(&self, key: SnapshotKey, deadline: &Deadline) -> Result<Change>;

    /// Opens a snapshot's content for reading with direct I/O. `done_reading` follows.
    fn read(&self, key: SnapshotKey, deadline: &Deadline) -> Result<File>;

    /// Undoes `read`, after the file was closed. Fine if nothing was open or the snapshot is gone.
    fn done_reading(&self, key: SnapshotKey, deadline: &Deadline) -> Result<()>;

    /// Tells where a snapshot may read as something else than `base`, an older one of the same volume, or than zeros
    /// without one: from where `found` is, in the order of the bytes, until that has enough. What it leaves out is the
    /// same, for sure. Nothing is opened, and no key is needed.
    fn blocks(
        &self,
        key: SnapshotKey,
        base: Option<SnapshotKey>,
        found: &mut Extents,
        deadline: &Deadline,
    ) -> Result<()>;

    /// Opens a backing that no target uses, for writing its content with direct I/O. What was written
    /// is durable after an fsync of the file. The caller closes it.
    fn fill(&self, id: VolumeId, deadline: &Deadline) -> Result<File>;

    /// Whether such a file system has no bytes in a row, so that it is copied by `send` and `receive` instead of `read`
    /// and `fill`.
    fn is_streamed(&self, filesystem: FilesystemKind) -> bool {
        let _ = filesystem;
        false
    }

    /// Writes the content of a snapshot into a pipe, in a form that `receive` of a pool of the same kind reads. Ends
    /// when all is written, or with an error when the other end is closed.
    fn send(&self, key: SnapshotKey, into: File, deadline: &Deadline) -> Result<()> {
        let _ = (into, deadline);
        let detail = format!("snapshot {key} has bytes in a row: they are read");
        Err(PoolError::Unsupported { pool: self.name().clone(), detail })
    }

    /// Puts what `send` writes in the place of what a volume holds that is being copied into: all of it, or nothing
    /// when the pipe ends before its time.
    fn receive(&self, id: VolumeId, from: File, deadline: &Deadline) -> Result<()> {
        let _ = (from, deadline);
        let detail = format!("volume {id} has bytes in a row: they are written");
        Err(PoolError::Unsupported { pool: self.name().clone(), detail })
    }

    /// How its disks are. `None`: this kind of pool can't tell. Where all is well it costs a file that is
    /// read; where something is not, or was not when `last` was read, it may start a process.
    fn health(&self, last: Option<&PoolHealth>, deadline: &Deadline) -> Result<Option<PoolHealth>> {
        let _ = (last, deadline);
        self.arrays().map_or(Ok(None), |arrays| arrays.health())
    }

    /// Disks of its own that were lost and are there again are taken back.
    fn take_back(&self, deadline: &Deadline) -> Result<Change> {
        self.arrays().map_or(Ok(Change::Unchanged), |arrays| arrays.take_back(deadline))
    }

    /// A spare takes the place of a disk that has been lost for a while, or steps back from one that is well again:
    /// one of it at a time. The caller sees to it that nobody changes its disks meanwhile, and asks again and again:
    /// how long a disk has been lost counts from the first time.
    fn mind_spares(&self, deadline: &Deadline) -> Result<Change> {
        let _ = deadline;
        Ok(Change::Unchanged)
    }

    /// Changes its disks while it is in use, or starts or stops a pass over them. Unchanged if it is so
    /// already; on error the pool is as it was.
    fn change(&self, change: &PoolChange, deadline: &Deadline) -> Result<Change> {
        if let Some(arrays) = self.arrays() {
            return arrays.change(change, deadline);
        }
        let (pool, kind) = (self.name().clone(), self.kind().as_str());
        Err(PoolError::Unsupported { pool, detail: format!("{change}: a {kind} pool has no such thing") })
    }

    /// Lets go of the pool, with all that is in it, so that another machine may open it. None of its volumes
    /// is open. What was let go of is opened again as any pool is.
    fn export(&self, deadline: &Deadline) -> Result<()> {
        let _ = deadline;
        Ok(())
    }

    /// Removes the pool itself, which has no volumes: the engine holds it exclusively and has looked.
    /// `Precondition` if there is anything in it that is not ours. What was there before the pool (a
    /// directory, disks) stays.
    fn remove(&self, deadline: &Deadline) -> Result<()>;
}

/// What pools need to know of the machine.
#[derive(Debug, Clone)]
pub struct PoolEnv {
    /// The directory below which disks of `file` pools are mounted.
    pub mounts: PathBuf,
    /// The directory below which volumes are mounted that are file systems. Not one that is cleared away while
    /// they are: it has what is in them.
    pub volumes: PathBuf,
    /// Whether loop devices count as disks: for tests on a machine that has no disk to spare.
    pub loops_as_disks: bool,
    /// Whether this is a simulation, which asks no disk anything and changes none.
    pub simulated: bool,
    /// The keys of encrypted volumes.
    pub keys: KeyRing,
}

impl Default for PoolEnv {
    fn default() -> Self {
        let (mounts, volumes) = ("/var/lib/orlop/pools".into(), "/var/lib/orlop/volumes".into());
        Self { mounts, volumes, loops_as_disks: false, simulated: false, keys: KeyRing::default() }
    }
}

/// Makes a pool, or adopts what is this pool already: doing it again after a crash at any point ends in
/// the same state. Disks are proven blank first, a directory must be empty: otherwise `Precondition`,
/// with what was found. Blocking: from a lane.
pub fn create(spec: &PoolSpec, env: &PoolEnv, deadline: &Deadline) -> Result<Box<dyn Pool>> {
    Ok(match &spec.medium {
        PoolMedium::Sim { directory } => Box::new(sim::SimPool::create(spec, directory)?),
        PoolMedium::FileDirectory { directory } => Box::new(file::FilePool::create(spec, env, directory)?),
        PoolMedium::FileDisk { disk, filesystem, uuid } => {
            let on = file_disk::Stand::Disk(disk);
            let own = file_disk::OwnDisk::create(spec, env, on, *filesystem, *uuid, deadline)?;
            Box::new(file::FilePool::create_on(spec, env, own)?)
        }
        PoolMedium::FileArray { filesystem, uuid, .. } => {
            Box::new(file::FilePool::create_on_array(spec, env, *filesystem, *uuid, deadline)?)
        }
        PoolMedium::Zfs { disks, layout, spares, .. } => {
            let on = zfs::Disks { disks, layout: *layout, spares };
            Box::new(zfs::ZfsPool::create(spec, env, on, deadline)?)
        }
        PoolMedium::Lvm { disks, thin, .. } => {
            Box::new(lvm::LvmPool::create(spec, env, disks, *thin, deadline)?)
        }
    })
}

/// The one zfs(8) command with which a ZFS pool lists all that is in it, for measuring beside it.
#[cfg(any(test, feature = "contract"))]
pub fn zfs_listing(pool: &PoolName) -> Vec<String> {
    zfs::listing_command(pool)
}

/// Opens a pool that exists: imports or mounts it where that has not been done since the machine
/// started. `NotFound` if it is not there. Makes nothing. Blocking: from a lane.
pub fn open(spec: &PoolSpec, env: &PoolEnv, deadline: &Deadline) -> Result<Box<dyn Pool>> {
    Ok(match &spec.medium {
        PoolMedium::Sim { directory } => Box::new(sim::SimPool::open(spec, directory)?),
        PoolMedium::FileDirectory { directory } => Box::new(file::FilePool::open(spec, env, directory)?),
        PoolMedium::FileDisk { uuid, .. } => {
            let own = file_disk::OwnDisk::open(spec, env, *uuid, None, deadline)?;
            Box::new(file::FilePool::open_on(spec, env, own)?)
        }
        PoolMedium::FileArray { uuid, .. } => {
            Box::new(file::FilePool::open_on_array(spec, env, *uuid, deadline)?)
        }
        PoolMedium::Zfs { .. } => Box::new(zfs::ZfsPool::open(spec, env, deadline)?),
        PoolMedium::Lvm { .. } => Box::new(lvm::LvmPool::open(spec, env, deadline)?),
    })
}

/// A pool that is to be imported, with what only its medium can tell. Reads. Blocking: from a lane.
pub fn recognize(spec: &PoolSpec, env: &PoolEnv, deadline: &Deadline) -> Result<PoolSpec> {
    let mut found = spec.clone();
    if let Some(number) = spec.guid() {
        zfs::check_number(spec, number, deadline)?;
    }
    match &mut found.medium {
        PoolMedium::FileDisk { disk, filesystem, uuid } => {
            let ctx = context::Context::new(&spec.name);
            match arrays::of_disk(&ctx, env, disk)? {
                None => (*filesystem, *uuid) = file_disk::recognize(spec, env, disk)?,
                Some(array) => {
                    let (filesystem, uuid) = file_disk::recognize_array(spec, env, &array, deadline)?;
                    found.medium = PoolMedium::FileArray { array, filesystem, uuid };
                }
            }
        }
        PoolMedium::Lvm { arrays, .. } => {
            *arrays = arrays::recognize(&context::Context::new(&spec.name), env)?
        }
        _ => {}
    }
    Ok(found)
}

/// Opens a pool that another machine may have had. `force`: even if that one did not let go of it, which its
/// owner has been asked about. Blocking: from a lane.
pub fn import(spec: &PoolSpec, env: &PoolEnv, force: bool, deadline: &Deadline) -> Result<Box<dyn Pool>> {
    match &spec.medium {
        PoolMedium::Zfs { .. } if force => Ok(Box::new(zfs::ZfsPool::take(spec, env, deadline)?)),
        // Another pool's, by its marker: that is known only when it is mounted.
        PoolMedium::FileDisk { .. } | PoolMedium::FileArray { .. } | PoolMedium::Lvm { .. } => open(
            spec, env, deadline,
        )
        .inspect_err(|_| {
            if let Err(error) = let_go(spec, env, deadline) {
                tracing::warn!(pool = %spec.name, %error, "disks that were not taken in are still in use");
            }
        }),
        _ => open(spec, env, deadline),
    }
}

/// Makes the disks blank of a pool whose removal was under way, and that is not there any more: what a crash left below
/// it. Blocking: from a lane.
pub fn clear(spec: &PoolSpec, env: &PoolEnv, deadline: &Deadline) -> Result<()> {
    arrays::Arrays::new(&context::Context::new(&spec.name), env, spec.arrays()).remove(deadline)
}

/// Leaves alone again what was looked at to see whether it is a pool.
fn let_go(spec: &PoolSpec, env: &PoolEnv, deadline: &Deadline) -> Result<()> {
    let arrays = arrays::Arrays::new(&context::Context::new(&spec.name), env, spec.arrays());
    if let PoolMedium::FileDisk { uuid, .. } | PoolMedium::FileArray { uuid, .. } = &spec.medium {
        let device = arrays.paths()?.pop();
        file_disk::OwnDisk::open(spec, env, *uuid, device, deadline)?.unmount()?;
    }
    arrays.export(deadline)
}
