//! Snapshots, alone and in groups.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{ByteSize, PoolName, SnapshotId, SnapshotName, Tenant, VolumeId, VolumeRef};

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

/// `GET /v1/snapshots/{snapshot}/blocks`: where a snapshot has data, or where it may read as something else than an older one.
/// What is not listed reads as zeros, or as that one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SnapshotBlocks {
    /// The snapshot's size.
    pub size: ByteSize,
    /// In the order of their offsets. No two of a page overlap or touch.
    pub items: Vec<BlockRange>,
    /// Where to go on (`from`), if that is not all. A page may have few or none and still say so: nothing is looked for for
    /// longer than some seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<ByteSize>,
}

/// A run of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BlockRange {
    /// Of its first byte.
    pub offset: ByteSize,
    /// Its bytes.
    pub length: ByteSize,
}
