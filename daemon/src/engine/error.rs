//! The error of the door. Families below keep their own enums; here they meet the kinds, once.

use orlop_api::{ErrorKind, Problem};

use super::lane::LaneError;
use crate::journal::JournalError;
use crate::pool::PoolError;
use crate::pool::disks::WipeError;
use crate::target::TargetError;

/// Why an action was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field of the request breaks a rule.
    #[error("{field} {reason}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// The rule, with the value where it helps.
        reason: String,
    },
    /// The principal may not do this.
    #[error("{principal} may not {verb}")]
    Forbidden {
        /// Who.
        principal: String,
        /// What.
        verb: &'static str,
    },
    /// The object is there, and is not one that the principal may know of. Said of what is asked for by its id, which nobody
    /// guesses: who is told that it is gone would take it for deleted.
    #[error("{object} is none that {principal} may use")]
    NotTheirs {
        /// Who.
        principal: String,
        /// What.
        object: String,
    },
    /// The object does not exist.
    #[error("{0} does not exist")]
    NotFound(String),
    /// It exists with another specification.
    #[error("{object} exists with another {field}: it has {have}, not {want}")]
    Conflict {
        /// Which object.
        object: String,
        /// The field that differs.
        field: &'static str,
        /// What is there.
        have: String,
        /// What was asked.
        want: String,
    },
    /// Another operation holds the object.
    #[error("another operation is at work on {0}: try again")]
    Busy(String),
    /// Something has to be done first.
    #[error("{object} {reason}")]
    Precondition {
        /// Which object.
        object: String,
        /// What is in the way, and what to do.
        reason: String,
        /// What depends on it.
        dependants: Vec<String>,
    },
    /// The configuration was to be read anew, and this is wrong with it.
    #[error("the configuration is wrong, and nothing was changed: {}", .0.join("; "))]
    Configuration(Vec<String>),
    /// Out of space.
    #[error("{object} has no room: {detail}")]
    Exhausted {
        /// Which object.
        object: String,
        /// What was needed and what there is.
        detail: String,
    },
    /// Can't be done here.
    #[error("{0}")]
    Unsupported(String),
    /// Can't be done now.
    #[error("{0}")]
    Unavailable(String),
    /// The request took too long.
    #[error("{0} took too long; it may still be under way")]
    Deadline(String),
    /// What was read back differs from what was made.
    #[error("{object} was made, but reading it back shows {found}")]
    Unverified {
        /// Which object.
        object: String,
        /// What was read.
        found: String,
    },
    /// A pool failed.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// A disk was not wiped.
    #[error(transparent)]
    Wipe(#[from] WipeError),
    /// A target failed.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The journal failed.
    #[error("the journal could not be written: the change was not made")]
    Journal(#[from] JournalError),
    /// The system refused what is neither a pool's nor a target's: a file of the daemon's own, the list
    /// of disks.
    #[error("the system refused")]
    System(#[from] std::io::Error),
    /// A lane failed.
    #[error(transparent)]
    Lane(#[from] LaneError),
    /// The task of an action died. A defect.
    #[error("the action ended without an answer")]
    Died,
}

/// Result of an action.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The kind that a caller hears.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid { .. } => ErrorKind::Invalid,
            Self::Forbidden { .. } | Self::NotTheirs { .. } => ErrorKind::Forbidden,
            Self::NotFound(_) => ErrorKind::NotFound,
            Self::Conflict { .. } => ErrorKind::Conflict,
            Self::Busy(_) => ErrorKind::Busy,
            // The request is right; the file has to be put right first.
            Self::Precondition { .. } | Self::Configuration(_) => ErrorKind::Precondition,
            Self::Exhausted { .. } => ErrorKind::Exhausted,
            Self::Unsupported(_) => ErrorKind::Unsupported,
            Self::Unavailable(_) => ErrorKind::Unavailable,
            Self::Deadline(_) => ErrorKind::Deadline,
            Self::Unverified { .. } | Self::System(_) | Self::Died => ErrorKind::Internal,
            Self::Pool(e) => e.kind(),
            Self::Wipe(e) => e.kind(),
            Self::Target(e) => e.kind(),
            Self::Journal(e) => e.kind(),
            Self::Lane(e) => e.kind(),
        }
    }

    /// Whether all that is missing is the key of an encrypted volume.
    pub fn is_locked(&self) -> bool {
        matches!(self, Self::Pool(PoolError::Locked { .. }))
    }

    /// The whole chain in one line, for logs and for people.
    pub fn chain(&self) -> String {
        chain(self)
    }

    /// As it travels.
    pub fn to_problem(&self) -> Problem {
        let mut p = Problem::new(self.kind(), self.chain());
        match self {
            Self::Invalid { field, .. } => p.field = Some((*field).to_string()),
            Self::Conflict { field, have, want, .. } => {
                p.field = Some((*field).to_string());
                p.have = Some(have.clone());
                p.want = Some(want.clone());
            }
            Self::Wipe(WipeError::Unnamed { field, .. }) => p.field = Some((*field).to_string()),
            Self::Wipe(WipeError::Another { field, have, want, .. }) => {
                p.field = Some((*field).to_string());
                p.have = Some(have.clone());
                p.want = Some(want.clone());
            }
            Self::Precondition { dependants, .. } => p.dependants.clone_from(dependants),
            Self::Pool(PoolError::Property { field, .. }) => p.field = Some((*field).to_string()),
            Self::Pool(PoolError::WrongKey { .. }) => p.field = Some("key".into()),
            _ => {}
        }
        p
    }
}

/// An error and its sources, joined by colons.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(e) = next {
        text.push_str(": ");
        text.push_str(&e.to_string());
        next = e.source();
    }
    text
}
