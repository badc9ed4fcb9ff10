//! The daemon's own vocabulary: what is stored, and the rules between the words of `orlop-api`.
//!
//! Called by everything above. Pure: no I/O, no async, no logging.

mod identity;
mod label;
mod pool_spec;

pub use identity::{Identity, NqnPrefix};
pub use label::{Document, Label, LabelError, LabelHost, LabelSource, SnapshotKey, SnapshotLabel};
pub use pool_spec::{
    Array, ArrayDisk, PoolChange, PoolMedium, PoolSpec, PoolSpecError, ThinPool, check_disk,
};

use orlop_api::{Authentication, AuthenticationPut};
pub use orlop_api::{
    ByteSize, HostName, Nqn, PoolName, Provisioning, Tenant, VolumeId, VolumeName, VolumeRef,
};

/// What is known of an initiator.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct HostRecord {
    /// Its NQN.
    pub nqn: Nqn,
    /// What it must prove to know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets: Option<HostSecrets>,
}

/// What a host that is authenticated must prove to know.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostSecrets {
    /// This.
    Known(AuthenticationPut),
    /// A label says that there were some, and the journal that had them is lost. The host is not let in.
    Lost,
}

impl HostRecord {
    /// Whether it may be let in.
    pub fn is_admissible(&self) -> bool {
        self.secrets != Some(HostSecrets::Lost)
    }

    /// How it is authenticated, without the secrets.
    pub fn authentication(&self) -> Option<Authentication> {
        self.secrets.as_ref().map(|secrets| match secrets {
            HostSecrets::Known(ask) => Authentication::Required {
                mutual: ask.controller_key.is_some(),
                hash: ask.hash,
                dh_group: ask.dh_group,
            },
            HostSecrets::Lost => Authentication::Lost,
        })
    }
}
