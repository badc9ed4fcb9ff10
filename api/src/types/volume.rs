//! Volumes, and how they come to be.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    ByteSize, Encryption, EncryptionCreate, HostName, Iqn, Nqn, PoolName, Properties, SnapshotId,
    SnapshotRef, Tenant, VolumeId, VolumeName, VolumeRef,
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
    /// NVMe over TCP: a disk.
    #[default]
    Nvme,
    /// iSCSI: a disk.
    Iscsi,
    /// NFS, version 4.2 or 3: a file system.
    Nfs,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Nvme, Self::Iscsi, Self::Nfs];

    /// What a volume of a kind is reached by unless something else was asked for.
    pub const fn of(kind: VolumeKind) -> Self {
        match kind {
            VolumeKind::Block => Self::Nvme,
            VolumeKind::Filesystem => Self::Nfs,
        }
    }

    /// The kind of volume that it reaches.
    pub const fn kind(self) -> VolumeKind {
        match self {
            Self::Nvme | Self::Iscsi => VolumeKind::Block,
            Self::Nfs => VolumeKind::Filesystem,
        }
    }

    /// As it is spelled on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nvme => "nvme",
            Self::Iscsi => "iscsi",
            Self::Nfs => "nfs",
        }
    }
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
    /// How it is reached. Unless given a disk by NVMe over TCP, a file system by NFS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
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
    /// Encrypts it at rest. A linked clone is as its source is, with its source's key, and must not say this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<EncryptionCreate>,
}

impl VolumeCreate {
    /// Asks for a disk of zeros, thin, as the pool makes them.
    pub fn new(name: VolumeName, pool: PoolName, size: ByteSize) -> Self {
        Self {
            name,
            pool,
            size,
            kind: None,
            filesystem: None,
            provisioning: Provisioning::default(),
            protocol: None,
            source: None,
            properties: Properties::default(),
            encryption: None,
        }
    }
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
    /// It is encrypted, and its key has not been brought since the appliance has started.
    Locked,
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
    /// The name that NVMe initiators know it by; the same after any reboot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nqn: Option<Nqn>,
    /// The name that iSCSI initiators know it by; the same after any reboot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iqn: Option<Iqn>,
    /// How it is.
    pub state: VolumeState,
    /// Why it isn't `ready`, where it isn't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The hosts and zones that may use it.
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
    /// How it is encrypted, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
    /// When it was made.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub created: Timestamp,
}
