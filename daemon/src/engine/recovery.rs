//! Start-up: import pools, read labels, settle intents, rebuild the view, converge the target. Reads work
//! all the while; changes are taken only afterwards.
//!
//! Its cost follows the number of attached volumes, not of all volumes: one listing a pool, one opening
//! an attached volume, one convergence for all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use orlop_api::{EventKind, HostName, PoolName, SystemState, VolumeId, VolumeKey, VolumeState};
use tokio::time::Instant;

use super::core::{Core, OpenPool, Outcome as CoreOutcome, run};
use super::error::{Error, Result};
use super::events::Subject;
use super::intent::{Intent, Known};
use super::locks::{Key, Mode};
use super::tokens::TokenRecord;
use crate::failpoint;
use crate::journal::{Contents, JournalError, Table};
use crate::kernel::Deadline;
use crate::model::{Grant, HostRecord, PoolSpec};
use crate::pool::Leftover;
use crate::target::Scope;
use crate::telemetry::Recovered;

/// Backings that are opened at a time. The lanes bound it further.
const PARALLEL: usize = 64;

/// What the journal says, in types.
pub(super) struct Recorded {
    pub(super) pools: Vec<PoolSpec>,
    pub(super) hosts: Vec<(HostName, HostRecord)>,
    pub(super) attachments: Vec<(VolumeId, HostName, Grant)>,
    intents: BTreeMap<u64, Intent>,
    /// Pools whose labels have not been looked at since the journal was begun anew.
    not_rebuilt: Vec<PoolName>,
    tokens: Vec<(String, TokenRecord)>,
    keys: Vec<(VolumeId, VolumeKey)>,
}

impl Recorded {
    /// Reads the tables. With a record that can't be understood all of them are not used: to guess could let
    /// in the wrong host.
    pub(super) fn read(contents: &Contents) -> std::result::Result<Self, JournalError> {
        let bad = |table, key: &str, why: &dyn std::fmt::Display| JournalError::Record {
            table,
            key: key.to_string(),
            why: why.to_string(),
        };
        let mut hosts = Vec::new();
        for (key, record) in contents.records::<HostRecord>(Table::Hosts)? {
            hosts.push((key.parse().map_err(|e| bad(Table::Hosts, &key, &e))?, record));
        }
        let mut attachments = Vec::new();
        for (key, grant) in contents.records::<Grant>(Table::Attachments)? {
            let (id, host) =
                key.split_once('/').ok_or_else(|| bad(Table::Attachments, &key, &"has no slash"))?;
            let id = id.parse().map_err(|e| bad(Table::Attachments, &key, &e))?;
            let host = host.parse().map_err(|e| bad(Table::Attachments, &key, &e))?;
            attachments.push((id, host, grant));
        }
        let mut intents = BTreeMap::new();
        for (key, intent) in contents.records::<Intent>(Table::Intents)? {
            intents.insert(key.parse().map_err(|e| bad(Table::Intents, &key, &e))?, intent);
        }
        let pools = contents.records::<PoolSpec>(Table::Pools)?.into_iter().map(|(_, spec)| spec).collect();
        let mut keys = Vec::new();
        for (key, record) in contents.records::<VolumeKey>(Table::Keys)? {
            keys.push((key.parse().map_err(|e| bad(Table::Keys, &key, &e))?, record));
        }
        let tokens = contents.records::<TokenRecord>(Table::Tokens)?;
        let not_rebuilt =
            contents.not_rebuilt().map(|name| name.parse().map_err(|e| bad(Table::Meta, name, &e)));
        let not_rebuilt = not_rebuilt.collect::<std::result::Result<_, _>>()?;
        Ok(Self { pools, hosts, attachments, intents, not_rebuilt, tokens, keys })
    }

    /// Who may ask: needed before anything is restored.
    pub(super) fn take_tokens(&mut self) -> Vec<(String, TokenRecord)> {
        std::mem::take(&mut self.tokens)
    }

    /// What opens volumes: likewise.
    pub(super) fn take_keys(&mut self) -> Vec<(VolumeId, VolumeKey)> {
        std::mem::take(&mut self.keys)
    }

    /// The first number that no intent has.
    pub(super) fn next_op(&self) -> u64 {
        self.intents.keys().next_back().map_or(1, |last| last + 1)
    }
}

impl Core {
    /// See the module.
    pub(super) async fn recover(self: &Arc<Self>, mut recorded: Recorded) -> Result<()> {
        let started = Instant::now();
        if self.journal.is_fresh() {
            recorded.pools = self.pools_of_the_copy().await;
        }
        self.note_how_found(!recorded.pools.is_empty());
        self.know_labels_behind();
        // What is not known to be ours to change stays as it is.
        let kept = self.journal.is_open();
        {
            let mut view = self.view.write();
            for (name, record) in recorded.hosts {
                self.ask_for(&record);
                note_lost_secret(&mut view, &name, &record);
                view.put_host(name, record);
            }
            for (id, host, grant) in &recorded.attachments {
                view.attach(*id, host, *grant);
            }
            for spec in &recorded.pools {
                // Shown at once, so that nothing is "not found" while it is being opened.
                view.put_pool(super::view::PoolEntry::new(
                    spec.clone(),
                    orlop_api::PoolState::Missing,
                    Some("it is being opened".into()),
                    orlop_api::ByteSize::MIB,
                ));
            }
        }
        let pools = self.settings.pools.clone();
        let until = Instant::now() + self.settings.settle_deadline;
        let all = move |_: &Deadline| {
            pools.let_all_go_on();
            Ok::<(), Error>(())
        };
        let let_go = run(&self.setup_lane, until, all).await;
        if let Err(f) = let_go {
            tracing::error!(error = f.error.chain(), "whether something is still held is not known");
        }
        let interrupted = recorded.intents.len();
        let leftovers = self.open_pools(recorded.pools).await;
        let opened = started.elapsed();
        failpoint::hit("recover", "opened");
        self.settle_all(recorded.intents).await;
        if kept {
            self.destroy_leftovers(leftovers).await;
        }
        if self.journal.is_fresh() {
            self.rebuild_all().await;
        } else {
            self.rebuild_those_back(recorded.not_rebuilt).await;
        }
        if kept && let Err(error) = self.settle_tenants().await {
            tracing::warn!(error = error.chain(), "whose hosts are could not be written down");
        }
        self.note_lost_attachments();
        let settled = started.elapsed();
        failpoint::hit("recover", "settled");
        self.restore_exports().await;
        failpoint::hit("recover", "served");
        if kept {
            self.mark_outdated_labels();
            self.background(self.clone().keep_pool_list());
        }
        let retried = self.retried.lock().clone();
        self.settings.metrics.recovered(Recovered {
            pools: opened,
            intents: settled - opened,
            exports: started.elapsed() - settled,
            interrupted,
            restored: self.opened.lock().keys().filter(|id| !retried.contains(id)).count(),
            retried: retried.len(),
        });
        let (pools, volumes, hosts, attachments) = self.view.read().counts();
        tracing::info!(
            pools,
            volumes,
            hosts,
            attachments,
            open_ms = opened.as_millis() as u64,
            settle_ms = (settled - opened).as_millis() as u64,
            converge_ms = (started.elapsed() - settled).as_millis() as u64,
            "recovered"
        );
        *self.state.write() = SystemState::Ready;
        if kept {
            self.resume_copies();
            self.spent_bell.notify_one();
        }
        self.events.publish(EventKind::SystemReady, Subject::default());
        Ok(())
    }

    /// Opens all pools at once. Those that can't be opened are shown as missing and tried again; the rest
    /// works. What a crash left half made comes back.
    async fn open_pools(self: &Arc<Self>, specs: Vec<PoolSpec>) -> Vec<(Arc<OpenPool>, Leftover)> {
        let until = Instant::now() + self.settings.settle_deadline;
        let opened = futures_util::stream::iter(specs)
            .map(|spec| async move { (self.bring_up(&spec, until).await, spec) })
            .buffer_unordered(PARALLEL)
            .collect::<Vec<_>>()
            .await;
        let mut leftovers = Vec::new();
        for (result, spec) in opened {
            match result {
                Ok((open, listing)) => {
                    leftovers.extend(listing.leftovers().map(|leftover| (open.clone(), leftover)));
                    self.show_pool(open, &spec, listing);
                }
                Err(f) => {
                    let reason = f.error.chain();
                    tracing::error!(pool = %spec.name, error = reason, "a pool is missing");
                    self.show_missing(&spec, &reason);
                    self.background(self.clone().find_missing(spec));
                }
            }
        }
        leftovers
    }

    /// Settles what was in flight, each by what is there.
    async fn settle_all(self: &Arc<Self>, intents: BTreeMap<u64, Intent>) {
        for (key, intent) in intents {
            match &intent {
                // Full convergence cuts off everybody who is not in the journal; only the order matters:
                // the intent goes when that is verified.
                Intent::Attach { .. } | Intent::Detach { .. } => {
                    self.unsettled
                        .lock()
                        .insert(key, (intent, "the daemon was stopped in the middle".into()));
                }
                _ if !self.journal.is_open() => {
                    self.leave_unsettled(key, intent, "the journal takes no changes");
                }
                _ => match self.settle(key, &intent, Known::Unknown).await {
                    Ok(()) => {
                        tracing::info!(op = key, verb = intent.verb(), "an interrupted operation was settled")
                    }
                    Err(f) => self.settle_later(key, intent, &f.error.chain()),
                },
            }
        }
    }

    /// What a create or destroy left whose intent is gone, or was lost with the journal. Where the intent is
    /// still there, settling it takes care of that.
    async fn destroy_leftovers(self: &Arc<Self>, leftovers: Vec<(Arc<OpenPool>, Leftover)>) {
        for (open, leftover) in leftovers {
            let until = Instant::now() + self.settings.settle_deadline;
            if let Err(f) = self.destroy_leftover(&open, leftover, until).await {
                let text = format!("half made, and can't be removed: {}", f.error.chain());
                self.view.write().raise(super::orphans::alarm_of(leftover), text);
            }
        }
    }

    /// Opens every attached volume, then converges everything at once.
    async fn restore_exports(self: &Arc<Self>) {
        let ids = self.view.read().attached_volumes();
        let failed = self.open_backings(ids).await;
        let unknown = {
            let view = self.view.read();
            !failed.is_empty()
                || !self.unread.lock().is_empty()
                || view.pools_unknown
                || view.attached_volumes().into_iter().any(|id| view.is_orphaned(id))
        };
        // What the kernel may still serve of those that can't be opened now, to hosts that are attached, goes on: the
        // daemon was only restarted, and its trouble is not theirs. All others are served at one time all the same.
        let scope = if unknown { Scope::Desired } else { Scope::All };
        let mut broken: BTreeSet<VolumeId> = failed.iter().map(|(id, _)| *id).collect();
        if scope == Scope::Desired {
            // Nobody has looked at what is not to be served: an interrupted detach among them is settled by its fence.
            let opened = self.opened.lock();
            let unsettled = self.unsettled.lock();
            let ids = unsettled.values().filter_map(|(i, _)| i.volume().filter(|_| is_access(i)));
            broken.extend(ids.filter(|id| !opened.contains_key(id)));
        }
        for (protocol, converged) in self.converge_all(scope).await {
            let protocol = protocol.as_str();
            match converged {
                Ok(report) => {
                    if !report.steps.is_empty() {
                        tracing::info!(protocol, steps = report.steps.len(), "the target was restored");
                    }
                    for (id, error) in report.failed {
                        self.retry_export(id, super::error::chain(&error));
                        broken.insert(id);
                    }
                }
                Err(f) => {
                    let reason = f.error.chain();
                    tracing::error!(protocol, error = reason, "the target could not be restored");
                    let text = format!("it could not be restored: {reason}");
                    self.view.write().raise(format!("target/{protocol}"), text);
                    let of = |view: &super::View, id: VolumeId| {
                        view.entry(id).is_none_or(|v| v.label.protocol().as_str() == protocol)
                    };
                    let attached: Vec<_> = {
                        let view = self.view.read();
                        view.attached_volumes().into_iter().filter(|id| of(&view, *id)).collect()
                    };
                    // Also what nobody is attached to any more: whether it is still served is not known.
                    let unknown: Vec<_> = {
                        let view = self.view.read();
                        let unsettled = self.unsettled.lock();
                        let ids = unsettled.values().filter_map(|(i, _)| i.volume().filter(|_| is_access(i)));
                        ids.filter(|id| of(&view, *id)).collect()
                    };
                    for id in &attached {
                        self.retry_export(*id, reason.clone());
                    }
                    broken.extend(attached.into_iter().chain(unknown));
                }
            }
        }
        self.forget_access_intents(|id| !broken.contains(&id)).await;
        for (id, reason) in failed {
            self.retry_export(id, reason);
        }
        self.settle_access_later();
    }

    /// Attaches and detaches that convergence has not settled.
    fn settle_access_later(self: &Arc<Self>) {
        let left: Vec<_> = self.unsettled.lock().iter().map(|(k, (i, _))| (*k, i.clone())).collect();
        for (key, intent) in left.into_iter().filter(|(_, i)| is_access(i)) {
            self.settle_later(key, intent, "the target could not be restored");
        }
    }

    /// A pool came back: its attached volumes are served again.
    pub(super) async fn restore_exports_of(self: &Arc<Self>, open: &Arc<OpenPool>) {
        let ids: Vec<_> = {
            let view = self.view.read();
            let here = |id: &VolumeId| view.entry(*id).is_some_and(|v| v.pool == open.name);
            view.attached_volumes().into_iter().filter(here).collect()
        };
        for id in ids {
            // Whoever changes its access just now has its lock.
            self.serve_again(id).await;
        }
    }

    async fn open_backings(self: &Arc<Self>, ids: Vec<VolumeId>) -> Vec<(VolumeId, String)> {
        let until = Instant::now() + self.settings.settle_deadline;
        futures_util::stream::iter(ids)
            .map(|id| async move {
                let pool = self.view.read().entry(id).map(|v| v.pool.clone())?;
                let open = match self.open_pool(&pool) {
                    Ok(open) => open,
                    Err(e) => return Some((id, e.chain())),
                };
                match self.open_backing(&open, id, until).await {
                    Ok(_) => None,
                    // It is served when somebody brings the key, and until then the kernel can't serve it.
                    Err(f) if f.error.is_locked() => None,
                    Err(f) => Some((id, f.error.chain())),
                }
            })
            .buffer_unordered(PARALLEL)
            .filter_map(|failed| async move { failed })
            .collect()
            .await
    }

    /// Serves one volume again until it works, less and less often, with the volume `stuck` until then.
    pub(super) fn retry_export(self: &Arc<Self>, id: VolumeId, reason: String) {
        tracing::error!(volume = %id, error = reason, "a volume is not served");
        self.set_state(id, VolumeState::Stuck, Some(reason));
        if !self.retried.lock().insert(id) {
            return;
        }
        let core = self.clone();
        self.background(async move {
            core.retry_until_served(id).await;
            core.retried.lock().remove(&id);
        });
    }

    async fn retry_until_served(self: &Arc<Self>, id: VolumeId) {
        let mut pause = Duration::from_secs(1);
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(60));
            let until = Instant::now() + self.settings.settle_deadline;
            let lock = self.locks.acquire(vec![(Key::Volume(id), Mode::Exclusive)], until).await;
            let Ok(_guards) = lock else { continue };
            // Whoever had it has been detached meanwhile, or it is gone: that converged it as well.
            if self.view.read().hosts_of(id).next().is_none() {
                self.target_serves(id);
                return self.is_served(id);
            }
            match self.restore_export(id).await {
                Ok(()) => {
                    self.target_serves(id);
                    return self.is_served(id);
                }
                // It is served when somebody brings the key.
                Err(f) if f.error.is_locked() => return self.is_served(id),
                Err(f) => {
                    self.set_state(id, VolumeState::Stuck, Some(f.error.chain()));
                    if let Some(late) = f.late {
                        let _ = late.await;
                    }
                }
            }
        }
    }

    /// A target that could not be restored does again what it should when none of its volumes is left to be tried.
    fn target_serves(&self, id: VolumeId) {
        let mut view = self.view.write();
        let protocol_of = |id: &VolumeId| view.entry(*id).map(|v| v.label.protocol());
        let Some(protocol) = protocol_of(&id) else { return };
        if self.retried.lock().iter().all(|other| *other == id || protocol_of(other) != Some(protocol)) {
            view.clear(&format!("target/{}", protocol.as_str()));
        }
    }

    /// What a volume could not be served for is over; what it is stuck in is not.
    fn is_served(&self, id: VolumeId) {
        if self.check_settled(|intent| intent.touches(id)).is_ok() {
            self.set_state(id, VolumeState::Ready, None);
        }
    }

    /// A volume is back whose attachments are still there.
    pub(super) async fn serve_again(self: &Arc<Self>, id: VolumeId) {
        if self.view.read().hosts_of(id).next().is_none() {
            return;
        }
        let until = Instant::now() + self.settings.settle_deadline;
        let lock = self.locks.acquire(vec![(Key::Volume(id), Mode::Exclusive)], until).await;
        let served = match &lock {
            Ok(_) => match self.restore_export(id).await {
                Err(f) if f.error.is_locked() => return,
                served => served.map_err(|f| f.error.chain()),
            },
            Err(e) => Err(e.chain()),
        };
        match served {
            Ok(()) => {
                self.view.write().clear(&format!("volume/{id}"));
                self.is_served(id);
            }
            Err(reason) => self.retry_export(id, reason),
        }
    }

    async fn restore_export(self: &Arc<Self>, id: VolumeId) -> CoreOutcome<()> {
        let pool = self.view.read().entry(id).map(|v| v.pool.clone());
        let pool = pool.ok_or_else(|| Error::NotFound(format!("volume {id}")))?;
        if self.view.read().hosts_of(id).next().is_some() {
            let open = self.open_pool(&pool)?;
            self.open_backing(&open, id, Instant::now() + self.settings.settle_deadline).await?;
        }
        self.converge_volume(id, None, false).await.map(drop)
    }

    /// Full convergence has verified who has access: interrupted attaches and detaches are settled, and
    /// backings that only they had open are closed.
    async fn forget_access_intents(self: &Arc<Self>, verified: impl Fn(VolumeId) -> bool) {
        if !self.journal.is_open() {
            // It could not be forgotten, and settling it would cut hosts off at each start.
            return;
        }
        let done: Vec<_> = {
            let unsettled = self.unsettled.lock();
            let done =
                unsettled.iter().filter(|(_, (i, _))| is_access(i) && i.volume().is_some_and(&verified));
            done.map(|(key, (intent, _))| (*key, intent.clone())).collect()
        };
        for (key, intent) in done {
            if let Err(f) = self.settle_access(key, &intent).await {
                self.settle_later(key, intent, &f.error.chain());
            }
        }
    }

    async fn settle_access(self: &Arc<Self>, key: u64, intent: &Intent) -> CoreOutcome<()> {
        // Settling converges this volume once more with the fence, which also covers a kernel that does
        // not show its controllers.
        self.settle(key, intent, Known::Unknown).await
    }
}

fn is_access(intent: &Intent) -> bool {
    matches!(intent, Intent::Attach { .. } | Intent::Detach { .. })
}

/// A host that was authenticated and whose secret is lost is kept out, which somebody must hear of.
pub(super) fn note_lost_secret(view: &mut super::View, name: &HostName, record: &HostRecord) {
    if record.has_lost_a_secret() {
        let text = "its secret was lost with the journal: it is kept out until that is given again \
                    (orlop host authenticate, orlop host chap, orlop host tls)";
        view.raise(super::hosts::alarm_of(name), text.into());
    }
}
