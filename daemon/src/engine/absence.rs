//! What is not found: gone, or perhaps in a pool that is missing.
//!
//! Called wherever the engine and HTTP look something up by what a caller has said.

use orlop_api::{PoolState, SnapshotRef, VolumeRef};

use super::View;
use super::action::Principal;
use super::error::Error;

/// How many names an error lists.
const LISTED: usize = 10;

impl View {
    /// Why a volume is not found.
    pub fn no_volume(&self, who: &Principal, volume: &VolumeRef) -> Error {
        let is_there = matches!(volume, VolumeRef::Id(id) if self.entry(*id).is_some());
        self.not_theirs(who, is_there, format!("volume {volume}"))
    }

    /// Why a snapshot is not found.
    pub fn no_snapshot(&self, who: &Principal, snapshot: &SnapshotRef) -> Error {
        let is_there = matches!(snapshot, SnapshotRef::Id(id) if self.snapshot_entry(*id).is_some());
        self.not_theirs(who, is_there, format!("snapshot {snapshot}"))
    }

    fn not_theirs(&self, who: &Principal, is_there: bool, object: String) -> Error {
        match is_there && !who.is_admin() {
            true => Error::NotTheirs { principal: who.name.clone(), object },
            false => self.absence(who, object),
        }
    }

    /// Why something is not found: there is none, or what is in pools that are missing is not known. Who is told that
    /// there is no such volume takes it for deleted, so that is only said when it is certain.
    pub fn absence(&self, who: &Principal, what: impl std::fmt::Display) -> Error {
        let missing = self.pool_entries().filter(|p| p.state == PoolState::Missing && who.uses(&p.spec.name));
        let mut missing: Vec<_> = missing.map(|p| p.spec.name.as_str()).collect();
        if missing.is_empty() && !self.pools_unknown {
            return Error::NotFound(what.to_string());
        }
        let more = missing.len().saturating_sub(LISTED);
        missing.truncate(LISTED);
        Error::Unavailable(match &*missing {
            [] => format!("whether there is a {what} is not known: the list of pools could not be read"),
            names => {
                let and = if more > 0 { format!(" and {more} more") } else { String::new() };
                format!(
                    "{what} is in none of the pools that are here; {}{and} may have it and can't be opened: bring the \
                     disks back, or let go of what is lost for good (orlop orphan list)",
                    names.join(", ")
                )
            }
        })
    }

    /// That what was looked for by its name, and not found, is certainly not there.
    pub fn check_complete(&self, who: &Principal, found: bool, what: &str) -> Result<(), Error> {
        if found {
            return Ok(());
        }
        match self.absence(who, what) {
            Error::NotFound(_) => Ok(()),
            unknown => Err(unknown),
        }
    }
}
