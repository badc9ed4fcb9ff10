//! Pools and what they are made of.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{ByteSize, PoolName};

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

/// How a pool is laid out on its disks: what it survives. `raidz` and `draid` are for `zfs` pools, `raid5` and
/// `raid10` for `lvm` and `file` pools, whose disks the kernel's md holds together.
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
    /// One disk may fail. At least three.
    Raid5,
    /// Striped over pairs of disks that hold the same: one of each may fail. At least four, and an even number.
    Raid10,
}

impl PoolLayout {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Stripe,
        Self::Mirror,
        Self::Raidz1,
        Self::Raidz2,
        Self::Raidz3,
        Self::Draid1,
        Self::Draid2,
        Self::Draid3,
        Self::Raid5,
        Self::Raid10,
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
            Self::Raid5 => "raid5",
            Self::Raid10 => "raid10",
        }
    }

    /// How many disks it takes at least.
    pub const fn least(self) -> usize {
        match self {
            Self::Stripe => 1,
            Self::Mirror => 2,
            Self::Raidz1 | Self::Draid1 | Self::Raid5 => 3,
            Self::Raidz2 | Self::Draid2 | Self::Raid10 => 4,
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
    /// Without a layout several disks of a `zfs` pool are striped, of an `lvm` pool strung together, and a `file`
    /// pool takes one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<String>,
    /// An existing directory, for `file` and `sim` pools: absolute, empty or an Orlop pool's already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// What a `file` pool formats its disk or array with. XFS unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filesystem: Option<Filesystem>,
    /// How large the thin pool of an `lvm` pool is: a whole number of MiB; nearly all of its disks unless
    /// given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thin_size: Option<ByteSize>,
    /// How large its metadata are: 2 MiB to 15 GiB; LVM decides unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thin_metadata_size: Option<ByteSize>,
    /// How the pool is laid out on its disks; without redundancy unless given. Not every kind has every layout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<PoolLayout>,
    /// Blank disks that are kept with a pool with redundancy for when one of its own fails.
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

impl PoolCreate {
    /// Asks for nothing beyond what every pool has.
    pub fn new(name: PoolName, kind: PoolKind) -> Self {
        Self {
            name,
            kind,
            disks: Vec::new(),
            directory: None,
            filesystem: None,
            thin_size: None,
            thin_metadata_size: None,
            layout: None,
            spares: Vec::new(),
            import: false,
            force: false,
            guid: None,
        }
    }
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
    /// What `replace` takes: its path by id where it is there, else the pool's own number for it, or what it was
    /// called when it was given to the pool.
    pub name: String,
    /// Where it was last, if it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub was: Option<String>,
    /// The part of the pool that it belongs to, like `mirror-0`, or `spares`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
    /// In the pool's own word: `online`, `degraded`, `faulted`, `offline`, `removed`, `unavail`, `avail`,
    /// `inuse`, `rebuilding`.
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
