//! Disks, before and beside pools.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ByteSize;

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
