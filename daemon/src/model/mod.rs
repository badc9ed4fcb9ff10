//! The daemon's own vocabulary: what is stored, and the rules between the words of `orlop-api`.
//!
//! Called by everything above. Pure: no I/O, no async, no logging.

mod host;
mod identity;
mod label;
mod pool_spec;

pub use host::{Grant, HostRecord, Proven, Secret, ZoneRules};
pub use identity::{Audience, Identity, NqnPrefix};
pub use label::{Document, Label, LabelError, LabelHost, LabelSource, SnapshotKey, SnapshotLabel};
pub use pool_spec::{
    Array, ArrayDisk, PoolChange, PoolMedium, PoolSpec, PoolSpecError, ThinPool, check_disk,
};

pub use orlop_api::{
    ByteSize, HostName, Nqn, PoolName, Provisioning, Tenant, VolumeId, VolumeName, VolumeRef,
};
