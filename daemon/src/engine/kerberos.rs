//! Kerberos for NFS: the keys by which it knows the appliance, and whether it can be had.
//!
//! The keys are the target's to keep, in a file that what checks tickets reads; they are in no journal, label or answer.

use std::sync::Arc;

use orlop_api::{Keytab, KeytabFile, Protocol};
use tokio::time::Instant;

use super::action::Outcome;
use super::core::{Core, run};
use super::error::{Error, Result};
use crate::target::{Target, TargetError};

impl Core {
    /// Refuses what takes Kerberos where that can't be had, and says what is missing.
    pub(super) async fn check_kerberos(&self, until: Instant) -> Result<()> {
        self.at_nfs(until, |target, deadline| target.can_kerberos(deadline)).await
    }

    /// Keeps keys in place of those before.
    pub(super) async fn put_keytab(&self, keytab: KeytabFile, until: Instant) -> Result<Outcome> {
        let principals = keytab.principals().to_vec();
        self.at_nfs(until, move |target, deadline| target.set_keytab(Some(&keytab), deadline)).await?;
        Ok(Outcome::Keytab(Keytab { principals }))
    }

    /// Forgets them, unless somebody comes by them.
    pub(super) async fn delete_keytab(&self, until: Instant) -> Result<Outcome> {
        let dependants: Vec<String> = {
            let view = self.view.read();
            let by_it = view.host_records().filter(|(_, r)| r.zone.is_some_and(|z| z.security.is_kerberos()));
            by_it.map(|(name, _)| name.to_string()).collect()
        };
        if !dependants.is_empty() {
            let reason = "is what these zones prove themselves by: give them 'sys' first, or delete them";
            return Err(Error::Precondition {
                object: "the keytab".into(),
                reason: reason.into(),
                dependants,
            });
        }
        self.at_nfs(until, |target, deadline| target.set_keytab(None, deadline)).await?;
        Ok(Outcome::Gone)
    }

    async fn at_nfs(
        &self,
        until: Instant,
        ask: impl FnOnce(&dyn Target, &crate::kernel::Deadline) -> std::result::Result<(), TargetError>
        + Send
        + 'static,
    ) -> Result<()> {
        let server = self.server(Protocol::Nfs)?;
        let target: Arc<dyn Target> = server.target.clone();
        run(&server.lane, until, move |deadline| ask(&*target, deadline)).await.map_err(|f| f.error)
    }
}
