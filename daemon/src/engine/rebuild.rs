//! What labels know of hosts and attachments, taken over into a journal that was begun anew: of all pools at that start, and
//! of one that was missing then when it is back. What the journal knows already wins over a label.
//!
//! Called by recovery, and where a missing pool is found. Lets nobody in of whom two labels, or a label and the journal, don't
//! agree who it is and what it must prove.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use orlop_api::{HostName, PoolName, PoolState, VolumeId};
use tokio::time::Instant;

use super::attachments::attachment_key;
use super::core::Core;
use super::error::{Error, chain};
use super::locks::{Guards, Key, Mode};
use super::recovery::note_lost_secret;
use super::restore::is_the_same;
use crate::journal::{Batch, Journal, JournalError, Table};
use crate::model::{Grant, HostRecord, Label};
use crate::target::HostId;

/// Between two attempts at a journal whose queue is full.
const AGAIN: Duration = Duration::from_millis(50);

/// What came of labels.
#[derive(Default)]
struct Taken {
    /// New to the journal. `None`: it is not known who that is.
    hosts: BTreeMap<HostName, Option<HostRecord>>,
    attachments: Vec<(VolumeId, HostName, Grant)>,
    /// Whose label is not to be believed: see [`super::labels`].
    closed: BTreeSet<VolumeId>,
}

impl Core {
    /// From the labels of all pools that are open; the others come when they are back.
    pub(super) async fn rebuild_all(self: &Arc<Self>) {
        let missing: BTreeSet<PoolName> = {
            let view = self.view.read();
            let gone = view.pool_entries().filter(|p| p.state == PoolState::Missing);
            gone.map(|p| p.spec.name.clone()).collect()
        };
        let mut batch = Batch::default();
        if !self.view.read().pools_unknown {
            Journal::note_rebuilt(&mut batch, missing.iter().map(PoolName::as_str));
        }
        for p in self.view.read().pool_entries() {
            batch.put(Table::Pools, p.spec.name.as_str(), &p.spec);
        }
        *self.unread.lock() = missing;
        let labels = self.view.read().labels().cloned().collect();
        let taken = self.taken_from(labels);
        self.take_over(taken, batch).await;
    }

    /// From the labels of those that were missing at that start and are here at this one.
    pub(super) async fn rebuild_those_back(self: &Arc<Self>, not_rebuilt: Vec<PoolName>) {
        self.unread.lock().extend(not_rebuilt.iter().cloned());
        for pool in not_rebuilt {
            if self.view.read().pool_entry(&pool).is_some_and(|p| p.state != PoolState::Missing) {
                let labels = self.view.read().volumes_in(&pool, usize::MAX).into_iter().cloned().collect();
                self.rebuild_pool(&pool, labels).await;
            }
        }
    }

    /// From the labels of a pool that is open, if they have not been looked at since the journal was begun anew.
    pub(super) async fn rebuild_pool(self: &Arc<Self>, pool: &PoolName, labels: Vec<Label>) {
        if !self.unread.lock().contains(pool) {
            return;
        }
        // Who is being changed just now is what he becomes.
        let _guards = self.lock_hosts_of(&labels).await;
        let mut batch = Batch::default();
        Journal::note_pool_rebuilt(&mut batch, pool.as_str());
        let taken = self.taken_from(labels);
        self.take_over(taken, batch).await;
        self.unread.lock().remove(pool);
    }

    /// Waits until nobody changes any of them. Whoever does has a deadline, so that ends.
    async fn lock_hosts_of(&self, labels: &[Label]) -> Guards {
        let hosts =
            || labels.iter().flat_map(|label| label.hosts.iter().map(move |host| (host, &label.tenant)));
        let names = hosts().map(|(host, _)| (Key::Host(host.name.clone()), Mode::Exclusive));
        let ids = hosts().flat_map(|(host, tenant)| super::hosts::ids_of(&host.record(tenant)));
        let ids = ids.map(|(_, id)| (Key::HostId(id), Mode::Exclusive));
        let wants: BTreeMap<Key, Mode> = names.chain(ids).collect();
        loop {
            let until = Instant::now() + self.settings.settle_deadline;
            match self.locks.acquire(wants.clone().into_iter().collect(), until).await {
                Ok(guards) => return guards,
                Err(error) => tracing::warn!(error = error.chain(), "what labels say is not taken over yet"),
            }
        }
    }

    /// A queue that is full is emptied in a moment.
    async fn commit_rebuilt(&self, batch: Batch) -> Result<(), JournalError> {
        let until = Instant::now() + self.settings.settle_deadline;
        loop {
            match self.journal.commit(batch.clone()).await {
                Err(JournalError::Full) if Instant::now() < until => tokio::time::sleep(AGAIN).await,
                done => return done,
            }
        }
    }

    fn taken_from(&self, labels: Vec<Label>) -> Taken {
        let view = self.view.read();
        let mut taken = Taken::default();
        let mut others = BTreeSet::new();
        for label in &labels {
            if self.dirty.is_behind(label.id) {
                if !label.hosts.is_empty() {
                    taken.closed.insert(label.id);
                }
                continue;
            }
            for host in &label.hosts {
                match view.host_record(&host.name) {
                    Some(record) if is_the_same(host, record, label) => {}
                    Some(_) => {
                        others.insert(host.name.clone());
                        continue;
                    }
                    None => {
                        let record = host.record(&label.tenant);
                        let known =
                            taken.hosts.entry(host.name.clone()).or_insert_with(|| Some(record.clone()));
                        *known = known.take().and_then(|known| together(known, record));
                    }
                }
                taken.attachments.push((label.id, host.name.clone(), host.grant));
            }
        }
        let here: Vec<_> = view
            .host_records()
            .flat_map(|(name, r)| super::hosts::ids_of(r).into_iter().map(|(_, id)| (id, name.clone())))
            .collect();
        forget_doubles(&mut taken.hosts, here);
        let hosts = &taken.hosts;
        taken.attachments.retain(|(_, host, _)| hosts.get(host).is_none_or(Option::is_some));
        taken.hosts.extend(others.into_iter().map(|name| (name, None)));
        taken
    }

    async fn take_over(self: &Arc<Self>, taken: Taken, mut batch: Batch) {
        for (name, record) in taken.hosts.iter().filter_map(|(name, record)| Some((name, record.as_ref()?))) {
            batch.put(Table::Hosts, name.as_str(), record);
        }
        for (id, host, grant) in &taken.attachments {
            batch.put(Table::Attachments, &attachment_key(*id, host), grant);
        }
        if self.journal.is_open()
            && let Err(e) = self.commit_rebuilt(batch).await
        {
            // It takes nothing from now on, and the next start comes here again.
            tracing::error!(error = chain(&Error::from(e)), "what labels say could not be kept");
        }
        let mut view = self.view.write();
        for (name, record) in taken.hosts {
            match record {
                Some(record) => {
                    note_lost_secret(&mut view, &name, &record);
                    view.put_host(name, record);
                }
                None => view.raise(
                    format!("host/{name}"),
                    "labels know it under other names, or another host under the same, or that it must prove more: it stays \
                     cut off where it is not attached until it is put again, and given its secret if it had one"
                        .into(),
                ),
            }
        }
        for (id, host, grant) in &taken.attachments {
            view.attach(*id, host, *grant);
        }
        for id in taken.closed {
            view.raise(
                super::attachments::closed_alarm(id),
                "its label was behind, or that is not known, when the journal was lost: who may use it is not known, and \
                 nobody is let in; attach it to whom it belongs"
                    .into(),
            );
        }
    }
}

/// Two hosts that labels know by the same: it is not known which of them has it now, so neither is let in.
fn forget_doubles(hosts: &mut BTreeMap<HostName, Option<HostRecord>>, here: Vec<(HostId, HostName)>) {
    let mut seen: BTreeMap<HostId, Vec<HostName>> = BTreeMap::new();
    for (id, name) in here {
        seen.entry(id).or_default().push(name);
    }
    for (name, record) in hosts.iter() {
        for (_, id) in record.iter().flat_map(super::hosts::ids_of) {
            seen.entry(id).or_default().push(name.clone());
        }
    }
    for name in seen.into_values().filter(|names| names.len() > 1).flatten() {
        // Who is in the journal is let be.
        if let Some(host) = hosts.get_mut(&name) {
            *host = None;
        }
    }
}

/// What two labels know of a host. One label may be a moment older than another: who had a secret on one of them needs
/// it, and what one does not know yet the other does. `None`: they don't agree who it is.
fn together(a: HostRecord, b: HostRecord) -> Option<HostRecord> {
    fn one<T: PartialEq>(a: Option<T>, b: Option<T>) -> Option<Option<T>> {
        match (a, b) {
            (Some(a), Some(b)) if a != b => None,
            (a, b) => Some(a.or(b)),
        }
    }
    if a.zone.is_some() != b.zone.is_some() || a.tenant != b.tenant {
        return None;
    }
    let known = |r: &HostRecord| (!r.networks.is_empty()).then(|| r.networks.clone());
    Some(HostRecord {
        networks: one(known(&a), known(&b))?.unwrap_or_default(),
        nqn: one(a.nqn, b.nqn)?,
        iqn: one(a.iqn, b.iqn)?,
        zone: one(a.zone, b.zone)?,
        secrets: a.secrets.or(b.secrets),
        chap: a.chap.or(b.chap),
        tls: a.tls.or(b.tls),
        tenant: a.tenant,
    })
}
