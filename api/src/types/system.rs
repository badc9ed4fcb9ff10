//! The appliance as a whole: its state, its events; and pages of anything.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Alarm, HostName, PoolName, SnapshotId, VolumeId};

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

/// The answer to `PUT /v1/system/restore`: what was missing and came from the backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Restored {
    /// When the backup was made: secrets and tokens are as they were then.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub made: Timestamp,
    /// Pools.
    pub pools: Vec<PoolName>,
    /// Hosts and zones that were not there, or whose secret was lost.
    pub hosts: Vec<HostName>,
    /// Volumes whose key was not there.
    pub keys: Vec<VolumeId>,
    /// Tokens, by their names.
    pub tokens: Vec<String>,
    /// How many attachments: those that the volumes' labels know too.
    pub attachments: u64,
    /// What stays closed, and why.
    pub closed: Vec<String>,
}

/// The answer to `POST /v1/system/reload`: what differs between the configuration that runs and the one that was read. Both
/// lists are empty if nothing does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Reloaded {
    /// What was applied.
    pub applied: Vec<SettingChange>,
    /// What applies when the daemon is started again.
    pub after_restart: Vec<SettingChange>,
}

/// A setting that differs. Its values are written as in the configuration, in TOML.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SettingChange {
    /// The key with its section, like `log.level`.
    pub key: String,
    /// What ran, or runs until the restart. Absent where nothing is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// What the configuration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
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
    /// What a person should look at: the alarms that are not cleared.
    pub alarms: Vec<Alarm>,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum EventKind {
    /// The daemon takes changes.
    SystemReady,
    /// The configuration was read anew: `detail` says which settings were applied, and which wait for a restart.
    ConfigurationReloaded,
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
    /// The kernel did not serve a volume as it should, mostly because somebody changed that by hand, and it was put back:
    /// `detail` says by what steps.
    Drift,
    /// There is an alarm that a person should look at: `detail` says which and why.
    AlarmRaised,
    /// Somebody takes care of an alarm: `detail` says of which, and who.
    AlarmAcknowledged,
    /// What an alarm was about is over: `detail` says which.
    AlarmCleared,
}

impl EventKind {
    /// As it is spelled on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SystemReady => "system_ready",
            Self::ConfigurationReloaded => "configuration_reloaded",
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
            Self::Drift => "drift",
            Self::AlarmRaised => "alarm_raised",
            Self::AlarmAcknowledged => "alarm_acknowledged",
            Self::AlarmCleared => "alarm_cleared",
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
