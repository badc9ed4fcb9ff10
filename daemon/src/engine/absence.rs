//! What is not found: gone, or perhaps in a pool that is missing.
//!
//! Called wherever the engine and HTTP look something up by what a caller has said.

use orlop_api::PoolState;

use super::View;
use super::error::Error;

/// How many names an error lists.
const LISTED: usize = 10;

impl View {
    /// Why something is not found: there is none, or what is in pools that are missing is not known. Who is told that
    /// there is no such volume takes it for deleted, so that is only said when it is certain.
    pub fn absence(&self, what: impl std::fmt::Display) -> Error {
        let missing = self.pool_entries().filter(|p| p.state == PoolState::Missing);
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
    pub fn check_complete(&self, found: bool, what: &str) -> Result<(), Error> {
        match self.absence(what) {
            Error::NotFound(_) => Ok(()),
            _ if found => Ok(()),
            unknown => Err(unknown),
        }
    }
}
