//! What exists and nobody claims.

use serde::{Deserialize, Serialize};

use crate::{ByteSize, OrphanId, PoolName, VolumeName};

/// What sort of thing an orphan is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum OrphanKind {
    /// The backing of a volume or of a snapshot that carries our label and is not, or not fully, taken
    /// in: its label is damaged or another's, its name or id is taken, it appeared after the pool was
    /// opened.
    Volume,
    /// An entry of the journal that nothing stands behind: an attachment to a volume that no pool has, a
    /// pool that is not there.
    Record,
    /// A dataset, logical volume or file that carries no label of ours. It is never removed.
    Foreign,
    /// What is left of work that failed: ours, half made or half removed.
    Leftover,
}

/// What may be done with an orphan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum OrphanAction {
    /// `POST /v1/orphans/{orphan}/adopt`: it becomes a volume, with what is in it.
    Adopt,
    /// `DELETE /v1/orphans/{orphan}`.
    Remove,
    /// It can stay as it is: the daemon leaves it alone.
    Ignore,
}

/// Something on the appliance that nobody claims.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Orphan {
    /// The same in every listing for as long as it is there under that name.
    pub id: OrphanId,
    /// Where it is. Not known of an attachment's record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
    /// What sort of thing it is.
    pub kind: OrphanKind,
    /// What the pool calls it: a dataset, a logical volume, a file; of a record, what it is about.
    pub name: String,
    /// Its size, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
    /// What is wrong with it, and why something can't be done with it that one might expect.
    pub reason: String,
    /// What may be done with it.
    pub actions: Vec<OrphanAction>,
}

/// A pool that could not be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Unanswered {
    /// The pool.
    pub pool: PoolName,
    /// Why.
    pub reason: String,
}

/// `GET /v1/orphans`: all of them, read from the pools just now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Orphans {
    /// Ordered by pool, kind and name.
    pub items: Vec<Orphan>,
    /// Pools that did not answer: what is in them is not listed.
    pub unanswered: Vec<Unanswered>,
}

/// `POST /v1/orphans/{orphan}/adopt`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OrphanAdopt {
    /// The volume's name. The same request again gives the same volume.
    pub name: VolumeName,
}
