//! How pools' disks are: read, told, and made an alarm of.
//!
//! A pool that has lost a disk goes on working, and that is the moment to tell somebody.

use std::collections::btree_map::Entry;
use std::sync::Arc;

use orlop_api::{
    AlarmSeverity, EventKind, PoolDisk, PoolHealth, PoolHealthState, PoolName, PoolScan, PoolScanKind,
    PoolScanState, SystemState,
};
use tokio::time::Instant;

use super::core::{Core, On, OpenPool, Outcome};
use super::events::Subject;
use super::lane::Late;
use super::locks::{Key, Mode};
use crate::journal::{Batch, Table};
use crate::kernel::Deadline;
use crate::model::PoolSpec;
use crate::pool::{Change, Pool};

/// The alarm's subject, apart from the pool's own, which tells whether it is there at all.
pub(super) fn alarm_of(name: &PoolName) -> String {
    format!("pool/{name}/health")
}

/// How it is, in words. News when they differ, so not how far a pass is.
fn words(health: &PoolHealth) -> String {
    let scan = health.scan.as_ref().map(|s| format!("; {}", pass(s))).unwrap_or_default();
    state(health) + &scan
}

/// The same without the passes over it: that one begins or ends is not another trouble.
fn state(health: &PoolHealth) -> String {
    let state = match health.state {
        PoolHealthState::Ok => "all its disks are well",
        PoolHealthState::Degraded => "it is degraded",
        PoolHealthState::Failed => "it has failed",
    };
    let reason = health.reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default();
    format!("{state}{reason}")
}

fn pass(scan: &PoolScan) -> String {
    let kind = match scan.kind {
        PoolScanKind::Scrub => "a scrub",
        PoolScanKind::Rebuild => "a rebuild",
    };
    let state = match scan.state {
        PoolScanState::Running => "is under way",
        PoolScanState::Finished => "has ended",
        PoolScanState::Stopped => "was stopped",
    };
    match scan.errors {
        0 => format!("{kind} {state}"),
        n => format!("{kind} {state} with {n} errors"),
    }
}

/// Whether a spare may have to take a place, or could step back.
fn spares_matter(health: &PoolHealth) -> bool {
    let is_spare = |d: &PoolDisk| d.part.as_deref() == Some("spares");
    let lost = |d: &PoolDisk| !is_spare(d) && ["unavail", "removed", "faulted"].contains(&d.state.as_str());
    let spare = |state: &str| health.disks.iter().any(|d| is_spare(d) && d.state == state);
    spare("inuse") || (spare("avail") && health.disks.iter().any(lost))
}

impl Core {
    /// Has it looked at behind the answers how a pool's disks are. Apart from how full it is: one that can't tell that any
    /// more is the one to hear of.
    pub(super) fn look_behind(self: &Arc<Self>, pool: Arc<OpenPool>) {
        match self.looking.lock().entry(pool.name.clone()) {
            Entry::Occupied(mut again) => {
                again.insert(true);
                return;
            }
            Entry::Vacant(none) => none.insert(false),
        };
        let core = self.clone();
        self.background(async move {
            loop {
                let until = Instant::now() + core.settings.settle_deadline;
                if let Some(late) = core.look_at_health(&pool, On::Open, until).await {
                    let _ = late.await;
                }
                let mut looking = core.looking.lock();
                match looking.get_mut(&pool.name) {
                    Some(again) if *again => *again = false,
                    _ => {
                        looking.remove(&pool.name);
                        return;
                    }
                }
            }
        });
    }

    /// Reads how a pool's disks are, if that may have changed since, and tells if it is news. The late end
    /// of a read that hangs.
    pub(super) async fn look_at_health(&self, pool: &Arc<OpenPool>, on: On, until: Instant) -> Option<Late> {
        let health = || self.view.read().pool_entry(&pool.name).and_then(|p| p.health.clone());
        let late = self.read_health(pool, health(), on, until).await;
        if late.is_some() {
            return late;
        }
        if let Err(f) = self.remember_disks(pool, on, until).await {
            tracing::warn!(pool = %pool.name, error = f.error.chain(), "which of its disks are whole is not remembered");
            return f.late;
        }
        if !health().is_some_and(|h| spares_matter(&h)) {
            return None;
        }
        match self.mind_spares(pool, until).await {
            Ok(Change::Unchanged) => None,
            Ok(Change::Done) => self.read_health(pool, None, on, until).await,
            Err(f) => {
                tracing::warn!(pool = %pool.name, error = f.error.chain(), "its spares were not minded");
                f.late
            }
        }
    }

    /// Keeps what is to be known of a pool's disks when it is opened again, in the journal and beside it: a disk that
    /// was lost is not to be believed when it is the only one that comes up after a power cut.
    async fn remember_disks(&self, pool: &Arc<OpenPool>, on: On, until: Instant) -> Outcome<()> {
        let name = &pool.name;
        let spec = || self.view.read().pool_entry(name).map(|p| p.spec.clone());
        let news = async || -> Outcome<Option<PoolSpec>> {
            let Some(spec) = spec() else { return Ok(None) };
            self.on_pool(pool, on, until, move |p, _| p.to_remember(&spec)).await
        };
        if news().await?.is_none() {
            return Ok(());
        }
        let wants =
            vec![(Key::Pool(name.clone()), Mode::Shared), (Key::Disks(name.clone()), Mode::ExclusiveNow)];
        // Whoever changes the pool's disks keeps what they are then.
        let Ok(_guards) = self.locks.acquire(wants, until).await else { return Ok(()) };
        if self.check_settled(|intent| super::pools::concerns_disks_of(intent, name)).is_err() {
            return Ok(());
        }
        let Some(now) = news().await? else { return Ok(()) };
        let mut batch = Batch::default();
        batch.put(Table::Pools, name.as_str(), &now);
        self.journal.commit(batch).await?;
        self.view.write().set_spec(now);
        self.copy_pool_list().await;
        Ok(())
    }

    /// Nobody asked for it, so it yields to whoever changes the pool's disks: the next look comes.
    async fn mind_spares(&self, pool: &Arc<OpenPool>, until: Instant) -> Outcome<Change> {
        let name = &pool.name;
        let Some(_pass) = self.gate.enter().filter(|_| *self.state.read() == SystemState::Ready) else {
            return Ok(Change::Unchanged);
        };
        let wants =
            vec![(Key::Pool(name.clone()), Mode::Shared), (Key::Disks(name.clone()), Mode::ExclusiveNow)];
        let Ok(_guards) = self.locks.acquire(wants, until).await else { return Ok(Change::Unchanged) };
        if self.check_settled(|intent| super::pools::concerns_disks_of(intent, name)).is_err() {
            return Ok(Change::Unchanged);
        }
        // Where disks are replaced: that takes a while, and an attach must not wait for it (R6).
        let change = self.on_pool(pool, On::Make, until, |p, d| p.mind_spares(d)).await?;
        if change == Change::Done {
            let subject = format!("pool/{name}");
            tracing::info!(target: "audit", principal = "daemon", verb = "use_spare", subject, outcome = "ok");
        }
        Ok(change)
    }

    /// The same, with what is known to be so unless something happened by itself; `None` after a change.
    pub(super) async fn read_health(
        &self,
        pool: &Arc<OpenPool>,
        last: Option<PoolHealth>,
        on: On,
        until: Instant,
    ) -> Option<Late> {
        if !pool.pool.features().minds_disks {
            return None;
        }
        let read = move |p: &dyn Pool, d: &Deadline| {
            if last.as_ref().is_some_and(|h| h.state != PoolHealthState::Ok)
                && let Err(error) = p.take_back(d)
            {
                // How they are is to be known all the more.
                tracing::warn!(pool = %p.name(), %error, "disks were not taken back");
            }
            p.health(last.as_ref(), d)
        };
        match self.on_pool(pool, on, until, read).await {
            Ok(Some(health)) => {
                self.note_health(&pool.name, health);
                None
            }
            Ok(None) => None,
            Err(f) => {
                let error = f.error.chain();
                tracing::warn!(pool = %pool.name, error, "how its disks are can't be read");
                // Not known is not well.
                let text = format!("how its disks are can't be read: {error}");
                let mut view = self.view.write();
                // Nor is it better than it was.
                let was = view.alarms.severity(&alarm_of(&pool.name)).unwrap_or(AlarmSeverity::Warning);
                view.raise_as(was.max(AlarmSeverity::Warning), alarm_of(&pool.name), text);
                f.late
            }
        }
    }

    fn note_health(&self, name: &PoolName, health: PoolHealth) {
        let said = words(&health);
        let mut view = self.view.write();
        match health.state {
            PoolHealthState::Ok => view.clear(&alarm_of(name)),
            PoolHealthState::Degraded => {
                view.raise_as(AlarmSeverity::Warning, alarm_of(name), state(&health));
            }
            PoolHealthState::Failed => {
                view.raise_as(AlarmSeverity::Critical, alarm_of(name), state(&health));
            }
        }
        let well = health.state == PoolHealthState::Ok;
        let Some(was) = view.set_health(name, health) else { return };
        drop(view);
        // At the start only what is wrong is news.
        if was.as_ref().map_or(well, |old| words(old) == said) {
            return;
        }
        tracing::info!(pool = %name, "a pool's health changed: {said}");
        let about = Subject { pool: Some(name.clone()), detail: Some(said), ..Subject::default() };
        self.events.publish(EventKind::PoolHealth, about);
    }
}
