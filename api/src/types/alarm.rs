//! Alarms: what a person should look at, until it is over.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::AlarmSubject;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum AlarmSeverity {
    /// All data can be reached. Something is worse than it should be, and may become critical.
    Warning,
    /// Somebody can't reach or write data, or data are at risk.
    Critical,
}

impl AlarmSeverity {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Warning, Self::Critical];

    /// As it is spelled on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// Where it is between its begin and its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum AlarmState {
    /// Nobody has said that they take care of it.
    Raised,
    /// Somebody has.
    Acknowledged,
    /// It is over.
    Cleared,
}

impl AlarmState {
    /// As it is spelled on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raised => "raised",
            Self::Acknowledged => "acknowledged",
            Self::Cleared => "cleared",
        }
    }
}

/// Something that a person should look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Alarm {
    /// What it is about: `pool/tank`, `volume/<id>`.
    pub subject: String,
    /// How bad it is.
    pub severity: AlarmSeverity,
    /// Where it is between its begin and its end.
    pub state: AlarmState,
    /// What is wrong and what to do.
    pub detail: String,
    /// Since when.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub since: Timestamp,
    /// Who takes care of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acknowledged: Option<AlarmAcknowledged>,
    /// Since when it is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
    pub cleared: Option<Timestamp>,
}

/// Who takes care of an alarm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AlarmAcknowledged {
    /// Who: `uid:0`, `token:admin`.
    pub by: String,
    /// Since when.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub at: Timestamp,
}

/// `POST /v1/alarms/acknowledge`. In the body and not in the path, because subjects have slashes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AlarmAcknowledge {
    /// The alarm's subject, as it is listed.
    pub subject: AlarmSubject,
}
