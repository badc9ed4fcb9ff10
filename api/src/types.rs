//! The shapes that travel. Separate types for what is asked (`...Create`, `...Update`) and what is shown.
//! What is asked refuses unknown fields; what is shown may grow fields, so clients ignore unknown ones.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    ByteSize, HostName, Nqn, OrphanId, PoolName, Properties, SnapshotId, SnapshotName, SnapshotRef, Tenant,
    VolumeId, VolumeName, VolumeRef,
};

/// How a volume's space is reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Provisioning {
    /// Space is taken from the pool when it is written.
    #[default]
    Thin,
    /// All of it is reserved when the volume is made.
    Thick,
}

/// How a volume is reached over the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Protocol {
    /// NVMe over TCP.
    #[default]
    Nvme,
}

/// The kinds of pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum PoolKind {
    /// ZFS: a volume is a zvol.
    Zfs,
    /// LVM: a volume is a thin logical volume.
    Lvm,
    /// Image files on btrfs or XFS behind loop devices.
    File,
    /// Image files in any directory, reached by nobody: for trying the API without privileges.
    Sim,
}

impl PoolKind {
    /// As it is spelled on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Zfs => "zfs",
            Self::Lvm => "lvm",
            Self::File => "file",
            Self::Sim => "sim",
        }
    }
}

/// File systems that a `file` pool is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Filesystem {
    /// XFS with reflinks.
    Xfs,
    /// btrfs.
    Btrfs,
}

/// What a volume is to its user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum VolumeKind {
    /// A disk: what is on it is its host's affair.
    #[default]
    Block,
    /// A file system that the appliance makes, grows and mounts.
    Filesystem,
}

impl VolumeKind {
    /// As it is spelled on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Filesystem => "filesystem",
        }
    }
}

/// File systems that a volume can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum FilesystemKind {
    /// A ZFS dataset.
    Zfs,
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
}

impl FilesystemKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Zfs, Self::Ext4, Self::Xfs];

    /// As it is spelled on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Zfs => "zfs",
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

/// How a `zfs` pool is laid out on its disks: what it survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum PoolLayout {
    /// No disk may fail.
    #[default]
    Stripe,
    /// All disks hold the same: all but one may fail.
    Mirror,
    /// One disk may fail. At least three.
    Raidz1,
    /// Two disks may fail. At least four.
    Raidz2,
    /// Three disks may fail. At least five.
    Raidz3,
    /// One disk may fail; spare space on all disks makes rebuilding fast. At least three.
    Draid1,
    /// Two disks may fail, likewise. At least four.
    Draid2,
    /// Three disks may fail, likewise. At least five.
    Draid3,
}

impl PoolLayout {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Stripe,
        Self::Mirror,
        Self::Raidz1,
        Self::Raidz2,
        Self::Raidz3,
        Self::Draid1,
        Self::Draid2,
        Self::Draid3,
    ];

    /// As it is spelled on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stripe => "stripe",
            Self::Mirror => "mirror",
            Self::Raidz1 => "raidz1",
            Self::Raidz2 => "raidz2",
            Self::Raidz3 => "raidz3",
            Self::Draid1 => "draid1",
            Self::Draid2 => "draid2",
            Self::Draid3 => "draid3",
        }
    }

    /// How many disks it takes at least.
    pub const fn least(self) -> usize {
        match self {
            Self::Stripe => 1,
            Self::Mirror => 2,
            Self::Raidz1 | Self::Draid1 => 3,
            Self::Raidz2 | Self::Draid2 => 4,
            Self::Raidz3 | Self::Draid3 => 5,
        }
    }
}

/// `POST /v1/pools`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PoolCreate {
    /// The pool's name; for `zfs` also the zpool's, for `lvm` the volume group's.
    pub name: PoolName,
    /// What to make.
    pub kind: PoolKind,
    /// Whole disks, by kernel name (`vdb`) or by path (`/dev/disk/by-id/...`). They must be blank.
    /// Several disks of a `zfs` pool are striped, of an `lvm` pool strung together. A `file` pool takes one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<String>,
    /// An existing directory, for `file` and `sim` pools: absolute, empty or an Orlop pool's already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// What a `file` pool formats its disk with. XFS unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filesystem: Option<Filesystem>,
    /// How large the thin pool of an `lvm` pool is: a whole number of MiB; nearly all of its disks unless
    /// given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thin_size: Option<ByteSize>,
    /// How large its metadata are: 2 MiB to 15 GiB; LVM decides unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thin_metadata_size: Option<ByteSize>,
    /// How a `zfs` pool is laid out on its disks; striped unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<PoolLayout>,
    /// Blank disks that are kept with a `zfs` pool for when one of its own fails.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spares: Vec<String>,
    /// Takes in a pool of this name that exists, with the volumes in it, and makes nothing: one that another
    /// appliance exported. A `zfs` or `lvm` pool is found on whatever disks are there; a `file` pool needs its
    /// disk or directory. Volumes keep their ids and names; hosts that the other appliance let in are not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub import: bool,
    /// Imports a `zfs` pool that was not exported. Only when the machine that had it is off for sure: two
    /// that write to one pool destroy it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
    /// Which zpool of this name is imported, where there are disks of several: its number, in digits, as the
    /// refusal and `zpool import` show it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guid: Option<String>,
}

/// `POST /v1/pools/{pool}/disks`: the pool gets larger, and keeps its layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PoolExpand {
    /// Blank disks: as many as the pool's layout takes. What is in the pool stays where it is.
    pub disks: Vec<String>,
}

/// `POST /v1/pools/{pool}/replace`: a disk's place is taken by another one, while the pool is in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PoolReplace {
    /// The disk that goes, as `health.disks` names it; it need not be there any more.
    pub disk: String,
    /// A blank disk, not smaller.
    pub with: String,
}

/// Whether a pool can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum PoolState {
    /// Usable.
    Online,
    /// It could not be opened: see the reason. Its volumes are not exported.
    Missing,
}

/// How full a pool is, by its thresholds. A level is left one percentage point below where it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum PoolFill {
    /// There is room.
    Ok,
    /// At `warn_percent`: an alarm says so.
    Warning,
    /// At `stop_percent`: nothing new is made in it (`exhausted`); deleting, attaching and detaching go on.
    Full,
}

/// What a pool's disks are worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum PoolHealthState {
    /// All is as it should be.
    Ok,
    /// It works, with less redundancy than it should have, or with errors on a disk.
    Degraded,
    /// Data can't be read, or nothing can be written.
    Failed,
}

/// A pass over all that a pool holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PoolScan {
    /// What it does.
    pub kind: PoolScanKind,
    /// How it is.
    pub state: PoolScanState,
    /// How far it is, in percent, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
    /// How many errors it found that could not be repaired.
    pub errors: u64,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
    pub ended: Option<Timestamp>,
}

/// What a pass over a pool does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum PoolScanKind {
    /// Reads everything and compares it with its checksums.
    Scrub,
    /// Writes to a new disk what it should hold.
    Rebuild,
}

/// How a pass over a pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum PoolScanState {
    /// Under way.
    Running,
    /// It came to its end.
    Finished,
    /// It was stopped.
    Stopped,
}

/// One disk of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PoolDisk {
    /// What `replace` takes: its path by id where it is there, else the pool's own number for it.
    pub name: String,
    /// Where it was last, if it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub was: Option<String>,
    /// The part of the pool that it belongs to, like `mirror-0`, or `spares`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
    /// In the pool's own word: `online`, `degraded`, `faulted`, `offline`, `removed`, `unavail`, `avail`,
    /// `inuse`.
    pub state: String,
    /// Reads that failed.
    pub read_errors: u64,
    /// Writes that failed.
    pub write_errors: u64,
    /// Blocks that did not have their checksum.
    pub checksum_errors: u64,
}

/// How a pool's disks are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PoolHealth {
    /// In one word.
    pub state: PoolHealthState,
    /// What is wrong and what to do, where something is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How many errors in data there are that can't be repaired.
    pub errors: u64,
    /// The last pass over it, or the one under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scan: Option<PoolScan>,
    /// Its disks.
    pub disks: Vec<PoolDisk>,
}

/// A pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Pool {
    /// Its name.
    pub name: PoolName,
    /// Its kind.
    pub kind: PoolKind,
    /// Whether it can be used.
    pub state: PoolState,
    /// Why it can't, where it can't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Sizes of volumes must be a multiple of this.
    pub granularity: ByteSize,
    /// Bytes of user data that it could hold when empty.
    pub total: ByteSize,
    /// Bytes taken, including reservations.
    pub used: ByteSize,
    /// Bytes that can still be written or reserved.
    pub available: ByteSize,
    /// How full its own metadata are, in percent, where they have room of their own (`lvm`): they count for
    /// `fill` as data do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata_percent: Option<u8>,
    /// The sum of the sizes of its volumes.
    pub provisioned: ByteSize,
    /// The largest thin volume that can be made now.
    pub largest_thin: ByteSize,
    /// The largest thick volume that can be made now: what is above `stop_percent` is kept back.
    pub largest_thick: ByteSize,
    /// How full it is.
    pub fill: PoolFill,
    /// The percentage of `total` used from which on it is `warning`.
    pub warn_percent: u8,
    /// The percentage of `total` used from which on it is `full`.
    pub stop_percent: u8,
    /// How many volumes it has.
    pub volumes: u64,
    /// How its disks are, where this kind of pool knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<PoolHealth>,
    /// When the sizes were read from the pool.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub observed: Timestamp,
}

/// `POST /v1/volumes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VolumeCreate {
    /// The idempotency key: the same request again gives the same volume.
    pub name: VolumeName,
    /// Where to make it.
    pub pool: PoolName,
    /// Its size: at least one and a whole number of the pool's `granularity`.
    pub size: ByteSize,
    /// What it is. Unless given a disk, or what its source is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<VolumeKind>,
    /// Of kind `filesystem`, which one. Unless given what its source has, else the pool's own: `zfs` in a `zfs`
    /// pool, `ext4` elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filesystem: Option<FilesystemKind>,
    /// Thin unless given.
    #[serde(default)]
    pub provisioning: Provisioning,
    /// NVMe over TCP unless given.
    #[serde(default)]
    pub protocol: Protocol,
    /// What it holds at first; zeros unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<VolumeSource>,
    /// What its pool does with its data; the pool's defaults unless given.
    #[serde(
        default,
        skip_serializing_if = "Properties::is_empty",
        deserialize_with = "crate::properties::asked"
    )]
    pub properties: Properties,
}

/// How a new volume gets the content of its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum SourceMode {
    /// It shares the source's blocks until they are written: made at once, thin, in the same pool.
    #[default]
    Linked,
    /// It shares nothing, and may be in another pool: the content is copied behind the answer, and the
    /// volume is `copying` until that is done.
    Copied,
}

/// Where a new volume's content comes from: exactly one of `snapshot` and `volume`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VolumeSource {
    /// A snapshot, by id or name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub snapshot: Option<SnapshotRef>,
    /// A volume, by id or name: as it is in the moment of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub volume: Option<VolumeRef>,
    /// Linked unless given.
    #[serde(default)]
    pub mode: SourceMode,
}

/// Where a volume's first content came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VolumeOrigin {
    /// The volume. It may be gone.
    pub volume: VolumeId,
    /// The snapshot of it. It may be gone; where a volume was asked for, it is one that was taken for
    /// this purpose and goes by itself.
    pub snapshot: SnapshotId,
    /// Linked or copied.
    pub mode: SourceMode,
}

/// How far a copy has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Progress {
    /// Bytes done.
    pub done: ByteSize,
    /// Bytes in all.
    pub total: ByteSize,
}

/// `?when=` of a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum When {
    /// Now; `precondition` with a list while something depends on it.
    #[default]
    Now,
    /// As soon as nothing depends on it, be that now or later: it can't be used any more, its name is
    /// free, and it goes by itself.
    Unused,
}

impl When {
    /// As it is spelled on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Now => "now",
            Self::Unused => "unused",
        }
    }
}

/// `POST /v1/snapshots`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SnapshotCreate {
    /// The idempotency key: the same request again gives the same snapshot.
    pub name: SnapshotName,
    /// Of what.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub volume: VolumeRef,
}

/// `POST /v1/snapshot-groups`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SnapshotGroupCreate {
    /// The idempotency key. The snapshots are called `<name>-1`, `<name>-2` and so on.
    pub name: SnapshotName,
    /// Of what: 1 to 64 volumes of one pool, no two the same.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub volumes: Vec<VolumeRef>,
}

/// How a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum SnapshotState {
    /// As it should be.
    Ready,
    /// An operation on it did not end in time or could not be undone; see the reason. Retried.
    Stuck,
    /// It was deleted while something depended on it, and goes when that does.
    Deleting,
}

/// A snapshot: a volume as it was at one instant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Snapshot {
    /// Its identity, for ever.
    pub id: SnapshotId,
    /// The caller's name.
    pub name: SnapshotName,
    /// Who owns it.
    pub tenant: Tenant,
    /// Of what.
    pub volume: VolumeId,
    /// Where it is.
    pub pool: PoolName,
    /// The volume's size at that instant: what a volume made from it must have at least.
    pub size: ByteSize,
    /// The group that it was taken with, all at one instant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<SnapshotName>,
    /// Whether volumes can be made from it.
    pub ready: bool,
    /// How it is.
    pub state: SnapshotState,
    /// Why it isn't `ready`, where it isn't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Volumes that depend on it.
    pub dependants: Vec<VolumeId>,
    /// For how long writers of the volume had to wait, in microseconds, where that was measured: known
    /// until the daemon is started anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_us: Option<u64>,
    /// When it was made.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub created: Timestamp,
}

/// Snapshots of several volumes at one instant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SnapshotGroup {
    /// The caller's name.
    pub name: SnapshotName,
    /// Those that are still there, in the order of the request.
    pub snapshots: Vec<Snapshot>,
}

/// `PATCH /v1/volumes/{volume}`. What is not given stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VolumeUpdate {
    /// The new size; not smaller than the present one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
    /// Thin or thick from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provisioning: Option<Provisioning>,
    /// Properties that are to have another value. They count for what is written from now on.
    #[serde(
        default,
        skip_serializing_if = "Properties::is_empty",
        deserialize_with = "crate::properties::asked"
    )]
    pub properties: Properties,
}

impl VolumeUpdate {
    /// A new size and nothing else.
    pub fn to_size(size: ByteSize) -> Self {
        Self { size: Some(size), ..Self::default() }
    }
}

/// How a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum VolumeState {
    /// As it should be.
    Ready,
    /// An operation on it did not end in time or could not be undone; see the reason. Retried.
    Stuck,
    /// Its pool is not there, or the pool no longer has it.
    Missing,
    /// Its content is still being copied from its source: see the progress. It can be deleted, which
    /// ends the copy, and not yet be attached.
    Copying,
    /// It was deleted while something depended on it, and goes when that does.
    Deleting,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Volume {
    /// Its identity, for ever.
    pub id: VolumeId,
    /// The caller's name.
    pub name: VolumeName,
    /// Who owns it.
    pub tenant: Tenant,
    /// Where it is.
    pub pool: PoolName,
    /// Its size.
    pub size: ByteSize,
    /// What it is.
    #[serde(default)]
    pub kind: VolumeKind,
    /// Which file system, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filesystem: Option<FilesystemKind>,
    /// How its space is reserved.
    pub provisioning: Provisioning,
    /// How it is reached.
    pub protocol: Protocol,
    /// The name that initiators know it by; the same after any reboot.
    pub nqn: Nqn,
    /// How it is.
    pub state: VolumeState,
    /// Why it isn't `ready`, where it isn't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The hosts that may use it.
    pub hosts: Vec<HostName>,
    /// Where its first content came from, unless it began as zeros.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<VolumeOrigin>,
    /// While it is `copying`: how far that has come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// The properties that were set. The others are as its pool's default has them.
    #[serde(default)]
    pub properties: Properties,
    /// When it was made.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub created: Timestamp,
}

/// `PUT /v1/hosts/{host}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostPut {
    /// The initiator's NQN: `/etc/nvme/hostnqn`. One host has one, and no two hosts share one.
    pub nqn: Nqn,
}

/// An initiator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Host {
    /// Its name.
    pub name: HostName,
    /// Its NQN.
    pub nqn: Nqn,
    /// The volumes that it may use.
    pub volumes: Vec<VolumeId>,
}

/// Where a target listens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Portal {
    /// IPv4 or IPv6 address.
    pub address: String,
    /// TCP port.
    pub port: u16,
}

/// `PUT /v1/volumes/{volume}/attachments/{host}`: all that the initiator needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Attachment {
    /// The volume.
    pub volume: VolumeId,
    /// The host.
    pub host: HostName,
    /// How it is reached.
    pub protocol: Protocol,
    /// The subsystem to connect to.
    pub nqn: Nqn,
    /// The only NQN that is let in by this attachment.
    pub host_nqn: Nqn,
    /// Every address at which the subsystem is served.
    pub portals: Vec<Portal>,
    /// Namespace id within the subsystem.
    pub nsid: u32,
    /// What `/sys/block/nvme*/uuid` shows on the initiator.
    pub uuid: uuid::Uuid,
    /// What `/sys/block/nvme*/nguid` shows: 32 hexadecimal digits.
    pub nguid: String,
    /// The controller's serial number.
    pub serial: String,
    /// The size that the device must have.
    pub size: ByteSize,
}

/// A disk of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Disk {
    /// Kernel name: `vdb`.
    pub name: String,
    /// A name that stays the same: `/dev/disk/by-id/...`, where udev made one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_id: Option<String>,
    /// Its size.
    pub size: ByteSize,
    /// Whether it has moving parts.
    pub rotational: bool,
    /// Model, where it tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Serial number, where it tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Whether a pool may be made on it.
    pub usage: DiskUsage,
    /// What it says of itself.
    #[serde(default)]
    pub health: DiskHealth,
}

/// Whether a disk says that it is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum DiskHealthState {
    /// It says so.
    Passed,
    /// It says that it is failing: replace it.
    Failed,
    /// It was not asked yet, does not tell, or could not be asked.
    #[default]
    Unknown,
}

impl DiskHealthState {
    /// As it is spelled on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

/// What a disk says of itself (SMART), as it was last read. A number is absent where it does not tell it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DiskHealth {
    /// In one word.
    pub state: DiskHealthState,
    /// What is wrong, or why nothing is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// In degrees Celsius.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<i16>,
    /// How much of the writes that it was made for it has had, in percent; may be more than 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_percent: Option<u8>,
    /// Hours that it has been powered on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_on_hours: Option<u64>,
    /// Reads or writes that it could not correct.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_errors: Option<u64>,
    /// Sectors that it has replaced by spare ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reallocated_sectors: Option<u64>,
    /// When all this was read. A disk that sleeps is not woken for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
    pub observed: Option<Timestamp>,
}

/// What a disk is used for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state", content = "by")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum DiskUsage {
    /// Provably blank: a pool may be made on it.
    Blank,
    /// Held by something: a mount, a partition, a pool.
    Used(String),
    /// Nobody holds it, but it is not blank: what was found.
    Data(String),
    /// It could not be read, which is not "blank": why.
    Unreadable(String),
}

/// `POST /v1/disks/{disk}/wipe`: everything on the disk is lost. The kernel's names change hands when disks come
/// and go, so the request says which disk is meant, and all that it says must be so.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DiskWipe {
    /// Its serial number. This or `by_id` must be given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Its name below `/dev/disk/by-id`, with or without that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_id: Option<String>,
    /// Its size. Must be given of a disk that has neither of those.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
    /// The pool, volume group or array that is lost, where the disk says that it belongs to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
}

/// What sort of thing an orphan is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum OrphanKind {
    /// The backing of a volume or of a snapshot that carries our label and is not, or not fully, taken
    /// in: its label is damaged or another's, its name or id is taken, it appeared after the pool was
    /// opened.
    Volume,
    /// An entry of the journal that nothing stands behind: an attachment to a volume that no pool has, a
    /// pool that is not there.
    Record,
    /// A dataset, logical volume or file that carries no label of ours. It is never removed.
    Foreign,
    /// What is left of work that failed: ours, half made or half removed.
    Leftover,
}

/// What may be done with an orphan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum OrphanAction {
    /// `POST /v1/orphans/{orphan}/adopt`: it becomes a volume, with what is in it.
    Adopt,
    /// `DELETE /v1/orphans/{orphan}`.
    Remove,
    /// It can stay as it is: the daemon leaves it alone.
    Ignore,
}

/// Something on the appliance that nobody claims.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Orphan {
    /// The same in every listing for as long as it is there under that name.
    pub id: OrphanId,
    /// Where it is. Not known of an attachment's record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
    /// What sort of thing it is.
    pub kind: OrphanKind,
    /// What the pool calls it: a dataset, a logical volume, a file; of a record, what it is about.
    pub name: String,
    /// Its size, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
    /// What is wrong with it, and why something can't be done with it that one might expect.
    pub reason: String,
    /// What may be done with it.
    pub actions: Vec<OrphanAction>,
}

/// A pool that could not be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Unanswered {
    /// The pool.
    pub pool: PoolName,
    /// Why.
    pub reason: String,
}

/// `GET /v1/orphans`: all of them, read from the pools just now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Orphans {
    /// Ordered by pool, kind and name.
    pub items: Vec<Orphan>,
    /// Pools that did not answer: what is in them is not listed.
    pub unanswered: Vec<Unanswered>,
}

/// `POST /v1/orphans/{orphan}/adopt`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OrphanAdopt {
    /// The volume's name. The same request again gives the same volume.
    pub name: VolumeName,
}

/// How the daemon is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum SystemState {
    /// Importing pools and restoring exports; reads work, changes are `unavailable`.
    Starting,
    /// Takes changes.
    Ready,
    /// Stopping: changes are `unavailable`, what runs is being finished, targets go on serving.
    Draining,
}

/// Something that a person should look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Alarm {
    /// What it is about: `pool/tank`, `volume/<id>`.
    pub subject: String,
    /// What is wrong and what to do.
    pub detail: String,
    /// Since when.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub since: Timestamp,
}

/// `GET /v1/system`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct System {
    /// The appliance's identity: made at first start, kept in the journal.
    pub id: uuid::Uuid,
    /// The machine's host name.
    pub hostname: String,
    /// Version of the daemon.
    pub version: String,
    /// Release of the running kernel.
    pub kernel: String,
    /// How the daemon is.
    pub state: SystemState,
    /// Whether targets and pools are simulated.
    pub sim: bool,
    /// When the daemon started.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub started: Timestamp,
    /// How many pools.
    pub pools: u64,
    /// How many volumes.
    pub volumes: u64,
    /// How many hosts.
    pub hosts: u64,
    /// How many attachments.
    pub attachments: u64,
    /// What a person should look at.
    pub alarms: Vec<Alarm>,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum EventKind {
    /// The daemon takes changes.
    SystemReady,
    /// Events between the one asked for and the next one are no longer kept: list again.
    Gap,
    /// A disk came: `detail` is its name.
    DiskAdded,
    /// A disk went: `detail` is the name it had.
    DiskRemoved,
    /// A disk says that it is failing, or no longer: `detail` says which and how.
    DiskHealth,
    /// A disk was wiped: `detail` says which.
    DiskWiped,
    /// A pool was made.
    PoolCreated,
    /// A pool was deleted.
    PoolDeleted,
    /// A pool's fill level changed: `detail` says how full it is.
    PoolSpace,
    /// A pool's disks got worse or better, or a pass over them began or ended: `detail` says what is.
    PoolHealth,
    /// A volume was made.
    VolumeCreated,
    /// Something that was there already became a volume.
    VolumeAdopted,
    /// A volume has a new size.
    VolumeResized,
    /// A volume has other properties or is provisioned otherwise.
    VolumeChanged,
    /// A volume's state changed.
    VolumeState,
    /// A volume is gone.
    VolumeDeleted,
    /// A copy has come further: `detail` says how far.
    VolumeProgress,
    /// A snapshot was made.
    SnapshotCreated,
    /// A snapshot's state changed.
    SnapshotState,
    /// A snapshot is gone.
    SnapshotDeleted,
    /// A host was made or changed.
    HostPut,
    /// A host is gone.
    HostDeleted,
    /// A host may use a volume.
    Attached,
    /// A host can no longer use a volume.
    Detached,
}

impl EventKind {
    /// As it is spelled on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SystemReady => "system_ready",
            Self::Gap => "gap",
            Self::DiskAdded => "disk_added",
            Self::DiskRemoved => "disk_removed",
            Self::DiskHealth => "disk_health",
            Self::DiskWiped => "disk_wiped",
            Self::PoolCreated => "pool_created",
            Self::PoolDeleted => "pool_deleted",
            Self::PoolSpace => "pool_space",
            Self::PoolHealth => "pool_health",
            Self::VolumeCreated => "volume_created",
            Self::VolumeAdopted => "volume_adopted",
            Self::VolumeResized => "volume_resized",
            Self::VolumeChanged => "volume_changed",
            Self::VolumeState => "volume_state",
            Self::VolumeDeleted => "volume_deleted",
            Self::VolumeProgress => "volume_progress",
            Self::SnapshotCreated => "snapshot_created",
            Self::SnapshotState => "snapshot_state",
            Self::SnapshotDeleted => "snapshot_deleted",
            Self::HostPut => "host_put",
            Self::HostDeleted => "host_deleted",
            Self::Attached => "attached",
            Self::Detached => "detached",
        }
    }
}

/// One event of `GET /v1/events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Event {
    /// Grows with each event, over restarts too.
    pub seq: u64,
    /// When.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub time: Timestamp,
    /// What.
    pub kind: EventKind,
    /// The volume it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeId>,
    /// The snapshot it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotId>,
    /// The pool it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
    /// The host it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostName>,
    /// In words, where there is more to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Page<T> {
    /// The items, in an order that does not change.
    pub items: Vec<T>,
    /// Where the next page starts: give it as `?cursor=`. Absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}
