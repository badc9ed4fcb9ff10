//! The kinds of error. One table maps a kind to HTTP, to gRPC and to an exit code.

use serde::{Deserialize, Serialize};

/// What went wrong, in the only distinction that a caller may act upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ErrorKind {
    /// The request itself is wrong; the same one will always fail.
    Invalid,
    /// No credential, or one that is not known.
    Unauthenticated,
    /// The credential does not allow this.
    Forbidden,
    /// The object does not exist.
    NotFound,
    /// It exists with another specification.
    Conflict,
    /// Another operation holds the object; try again.
    Busy,
    /// Something has to be done first: what depends on the object is listed.
    Precondition,
    /// Out of space or out of a limit.
    Exhausted,
    /// The pool, target or kernel can't do this.
    Unsupported,
    /// The daemon can't take the request now: starting, stopping, overloaded, or a pool is away.
    Unavailable,
    /// It took too long. The operation may still be under way; ask again for the object.
    Deadline,
    /// A fault in the daemon or in what it stands on.
    Internal,
}

impl ErrorKind {
    /// All kinds, in the order of their exit codes.
    pub const ALL: [ErrorKind; 12] = [
        Self::Internal,
        Self::Invalid,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::NotFound,
        Self::Conflict,
        Self::Busy,
        Self::Precondition,
        Self::Exhausted,
        Self::Unsupported,
        Self::Unavailable,
        Self::Deadline,
    ];

    /// The table: name, HTTP status, gRPC status (by its number), exit code, whether trying the same
    /// request again can help.
    fn row(self) -> (&'static str, u16, i32, u8, bool) {
        match self {
            Self::Internal => ("internal", 500, 13, 1, false),
            Self::Invalid => ("invalid", 400, 3, 3, false),
            Self::Unauthenticated => ("unauthenticated", 401, 16, 4, false),
            Self::Forbidden => ("forbidden", 403, 7, 5, false),
            Self::NotFound => ("not_found", 404, 5, 6, false),
            Self::Conflict => ("conflict", 409, 6, 7, false),
            Self::Busy => ("busy", 423, 10, 8, true),
            Self::Precondition => ("precondition", 412, 9, 9, false),
            Self::Exhausted => ("exhausted", 507, 8, 10, false),
            Self::Unsupported => ("unsupported", 501, 12, 11, false),
            Self::Unavailable => ("unavailable", 503, 14, 12, true),
            Self::Deadline => ("deadline", 504, 4, 13, true),
        }
    }

    /// As it is spelled on the wire.
    pub fn as_str(self) -> &'static str {
        self.row().0
    }

    /// HTTP status.
    pub fn http_status(self) -> u16 {
        self.row().1
    }

    /// gRPC status code.
    pub fn grpc_code(self) -> i32 {
        self.row().2
    }

    /// Exit code of the command line. 2 is left to usage errors.
    pub fn exit_code(self) -> u8 {
        self.row().3
    }

    /// Whether the same request may succeed later without anyone changing anything.
    pub fn retryable(self) -> bool {
        self.row().4
    }
}

/// An error as it travels: `application/problem+json` (RFC 9457) with our extension members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{detail}")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Problem {
    /// `urn:orlop:error:<kind>`.
    pub r#type: String,
    /// The kind in words.
    pub title: String,
    /// The HTTP status again.
    pub status: u16,
    /// What happened to what, and what to do about it.
    pub detail: String,
    /// The kind.
    pub kind: ErrorKind,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// The field of the request that is at fault, where one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// For `conflict`: what is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub have: Option<String>,
    /// For `conflict`: what was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub want: Option<String>,
    /// For `precondition`: what depends on the object.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dependants: Vec<String>,
}

impl Problem {
    /// A problem of `kind` that says `detail`.
    pub fn new(kind: ErrorKind, detail: impl Into<String>) -> Self {
        Self {
            r#type: format!("urn:orlop:error:{}", kind.as_str()),
            title: kind.as_str().replace('_', " "),
            status: kind.http_status(),
            detail: detail.into(),
            kind,
            retryable: kind.retryable(),
            field: None,
            have: None,
            want: None,
            dependants: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_table_is_one_to_one() {
        let distinct =
            |f: fn(ErrorKind) -> i64| ErrorKind::ALL.iter().map(|k| f(*k)).collect::<BTreeSet<_>>().len();
        assert_eq!(distinct(|k| k.http_status().into()), 12);
        assert_eq!(distinct(|k| k.grpc_code().into()), 12);
        assert_eq!(distinct(|k| k.exit_code().into()), 12);
        assert!(ErrorKind::ALL.iter().all(|k| k.exit_code() != 0 && k.exit_code() != 2));
    }

    #[test]
    fn names_are_those_of_serde() {
        for k in ErrorKind::ALL {
            assert_eq!(serde_json::json!(k), serde_json::json!(k.as_str()));
        }
    }
}
