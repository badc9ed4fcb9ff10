//! The kernel's targets, by which volumes are served, and what they serve for others.

use serde::{Deserialize, Serialize};

use crate::{Portal, Protocol};

/// Which of the kernel's targets it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum TargetKind {
    /// Linux's NVMe target.
    Nvmet,
    /// Linux's SCSI target.
    Lio,
    /// Linux's NFS server.
    Knfsd,
    /// FreeBSD's target, by `ctld`.
    Ctl,
}

/// How a target is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum TargetState {
    /// Volumes can be served by it.
    Available,
    /// The configuration leaves it out: nothing is served by it.
    LeftOut,
    /// The kernel lacks it.
    Absent,
    /// It could not be asked just now: what it serves is not known.
    Unreadable,
}

/// Where a target listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TargetPortal {
    /// Where, as it is configured: `0.0.0.0` and `::` are all of the machine's addresses.
    #[serde(flatten)]
    pub at: Portal,
    /// Why it is not served, as of the last change or look; missing if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down: Option<String>,
}

/// What sort of thing of others it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ForeignKind {
    /// NVMe: a subsystem, or a controller of `ctld`.
    Subsystem,
    /// NVMe: where subsystems are served.
    Port,
    /// SCSI: a target, of iSCSI or of another transport.
    Target,
    /// SCSI: what a LUN is made of; on FreeBSD a LUN that nobody configured.
    Backstore,
    /// NFS: a directory.
    Export,
}

/// Something in a target that does not carry our names. It is never changed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Foreign {
    /// What sort of thing it is.
    pub kind: ForeignKind,
    /// What the target calls it.
    pub name: String,
    /// The devices or files that it serves, as far as the target tells; at most 16.
    pub devices: Vec<String>,
    /// How many more there are.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_devices: u64,
}

/// A target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Target {
    /// What it serves by.
    pub protocol: Protocol,
    /// Which one it is.
    pub kind: TargetKind,
    /// How it is.
    pub state: TargetState,
    /// Why it is not available.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Where it listens.
    pub portals: Vec<TargetPortal>,
    /// How many volumes it has something of, read from the kernel just now.
    pub volumes: u64,
    /// What is in it of others, by kind and name; at most 100.
    pub foreign: Vec<Foreign>,
    /// How many more there are.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_foreign: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}
