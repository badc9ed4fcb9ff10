//! Backup and restore of what the journal alone knows.
//!
//! A restore fills in what is missing, and takes nothing back: what the appliance knows now is newer than any backup. A
//! host that was detached, a secret that was changed, a token that was replaced since then stay as they are. Who may
//! use a volume of a pool that only the backup knows is let in where the volume's own label says the same; all others
//! stay closed until somebody attaches them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use orlop_api::{EventKind, HostName, PoolName, Restored, VolumeId};
use tokio::time::Instant;

use super::action::Outcome;
use super::attachments::attachment_key;
use super::core::{Core, OpenPool};
use super::error::{Error, Result, chain};
use super::events::Subject;
use super::hosts::ids_of;
use super::locks::{Key, Mode};
use super::recovery::Recorded;
use super::view::View;
use crate::journal::{Batch, Journal, Table, backup};
use crate::model::{Grant, HostRecord, Label, LabelHost, PoolSpec, Secret};
use crate::pool::Listing;

type Brought = (PoolSpec, std::result::Result<(Arc<OpenPool>, Listing), Error>);

impl Core {
    /// All that the journal knows, as it is at one instant.
    pub(super) async fn backup(&self) -> Result<Outcome> {
        let contents = self.journal.read().await?;
        let text = backup::write(&contents, self.id, Timestamp::now());
        text.map(|text| Outcome::Backup(backup::Text(text))).map_err(|e| Error::Unavailable(chain(&e)))
    }

    /// See the module. `force`: also another appliance's.
    pub(super) async fn restore(
        self: &Arc<Self>,
        text: &[u8],
        force: bool,
        until: Instant,
    ) -> Result<Outcome> {
        let invalid = |reason: String| Error::Invalid { field: "backup", reason };
        let (head, contents) = backup::read(text).map_err(|e| invalid(chain(&e)))?;
        let mut recorded = Recorded::read(&contents).map_err(|e| invalid(chain(&e)))?;
        if head.appliance != self.id && !force {
            return Err(Error::Precondition {
                object: "the backup".into(),
                reason: format!(
                    "is of appliance {}, and this is {}: say so (force) if it is to be taken all the same",
                    head.appliance, self.id
                ),
                dependants: Vec::new(),
            });
        }
        let (tokens, keys) = (recorded.take_tokens(), recorded.take_keys());
        let Recorded { pools, hosts, attachments, .. } = recorded;
        let mut closed = Vec::new();
        let mut pools: Vec<_> =
            pools.into_iter().filter(|p| self.view.read().pool_entry(&p.name).is_none()).collect();
        if self.view.read().pool_entries().next().is_some() {
            // This appliance knows its pools: one that is not among them was let go of since, may have come to another
            // machine, and what was copied out of it must not be served from there again.
            let left = |p: &PoolSpec| {
                format!("pool {}: it was let go of since; take it in by orlop pool import", p.name)
            };
            closed.extend(pools.drain(..).map(|p| left(&p)));
        }
        let names = hosts.iter().map(|(name, _)| (Key::Host(name.clone()), Mode::Exclusive));
        let ids = hosts.iter().flat_map(|(_, r)| ids_of(r)).map(|(_, id)| (Key::HostId(id), Mode::Exclusive));
        let new = pools.iter().map(|p| (Key::Pool(p.name.clone()), Mode::ExclusiveNow));
        // Nobody makes or revokes one of that name meanwhile.
        let known_by = tokens.iter().filter_map(|(name, _)| name.parse().ok());
        let known_by = known_by.map(|name| (Key::Token(name), Mode::Exclusive));
        let rare = [(Key::FreeDisks, Mode::Shared), (Key::Certificates, Mode::Exclusive)];
        let wants = names.chain(ids).chain(new).chain(known_by).chain(rare);
        let wants: Vec<_> = wants.collect();
        let _guards = self.locks.acquire(wants, until).await?;

        let hosts = hosts_to_put(&self.view.read(), hosts, &mut closed);
        let keys: Vec<_> = keys.into_iter().filter(|(of, _)| self.settings.keys.get(*of).is_none()).collect();
        let tokens: Vec<_> = tokens.into_iter().filter(|(name, _)| !self.has_token(name)).collect();
        let mut brought: Vec<Brought> = Vec::new();
        for spec in pools {
            // What a pool takes to open is not the caller's to bound.
            let until = until.max(Instant::now() + self.settings.settle_deadline);
            let opened = self.bring_up(&spec, until).await.map_err(|f| f.error);
            if let Err(e) = &opened {
                closed.push(format!(
                    "pool {}: it is not here ({}); its hosts come back with it by its labels",
                    spec.name,
                    e.chain()
                ));
            }
            brought.push((spec, opened));
        }
        let known = attachments.into_iter().map(|(id, host, grant)| ((id, host), grant)).collect();
        let let_in = {
            let view = self.view.read();
            let record = |name: &HostName| {
                hosts.iter().find(|(n, _)| n == name).map(|(_, r)| r).or_else(|| view.host_record(name))
            };
            let labels = brought.iter().filter_map(|(_, opened)| opened.as_ref().ok());
            let labels = labels.flat_map(|(_, listing)| listing.volumes.iter().map(|v| &v.label));
            agreed(labels, &known, record, &mut closed)
        };

        for (name, record) in &tokens {
            if let Some(other) = self.shares_certificate(name, record) {
                closed.push(format!(
                    "tokens {name} and {other}: they have the same certificate; nobody comes in by it until one of them is deleted"
                ));
            }
        }

        let mut batch = Batch::default();
        for (name, record) in &hosts {
            batch.put(Table::Hosts, name.as_str(), record);
        }
        for (of, key) in &keys {
            batch.put(Table::Keys, &of.to_string(), key);
        }
        for (name, record) in &tokens {
            batch.put(Table::Tokens, name, record);
        }
        for (spec, opened) in &brought {
            batch.put(Table::Pools, spec.name.as_str(), spec);
            if opened.is_err() {
                Journal::note_pool_not_rebuilt(&mut batch, spec.name.as_str());
            }
        }
        for (id, host, grant) in &let_in {
            batch.put(Table::Attachments, &attachment_key(*id, host), grant);
        }
        self.journal.commit(batch).await?;

        let restored = Restored {
            made: head.made,
            pools: brought.iter().map(|(spec, _)| spec.name.clone()).collect(),
            hosts: hosts.iter().map(|(name, _)| name.clone()).collect(),
            keys: keys.iter().map(|(of, _)| *of).collect(),
            tokens: tokens.iter().map(|(name, _)| name.clone()).collect(),
            attachments: let_in.len() as u64,
            closed,
        };
        let mut again = self.know_keys(keys);
        self.load_tokens(tokens);
        for (name, record) in hosts {
            again.extend(self.know_host(name, record));
        }
        self.show_brought(brought, &let_in).await;
        for id in again {
            let core = self.clone();
            self.background(async move { core.serve_again(id).await });
        }
        Ok(Outcome::Restored(restored))
    }

    /// Volumes that may be served with these keys.
    fn know_keys(&self, keys: Vec<(VolumeId, orlop_api::VolumeKey)>) -> BTreeSet<VolumeId> {
        let ids: Vec<_> = keys.iter().map(|(of, _)| *of).collect();
        self.load_keys(keys);
        let mut view = self.view.write();
        let mut again = BTreeSet::new();
        for of in ids {
            view.set_locked(of, false);
            view.clear(&super::encryption::alarm_of(of));
            again.extend(view.with_key(of));
        }
        again
    }

    /// Volumes that may be served to it now.
    fn know_host(&self, name: HostName, record: HostRecord) -> Vec<VolumeId> {
        self.ask_for(&record);
        let mut view = self.view.write();
        if !record.has_lost_a_secret() {
            view.clear(&super::hosts::alarm_of(&name));
        }
        view.put_host(name.clone(), record);
        let volumes: Vec<_> = view.volumes_of(&name).collect();
        drop(view);
        for id in &volumes {
            self.dirty.mark(*id);
        }
        self.events.publish(EventKind::HostPut, Subject { host: Some(name), ..Subject::default() });
        volumes
    }

    async fn show_brought(self: &Arc<Self>, brought: Vec<Brought>, let_in: &[(VolumeId, HostName, Grant)]) {
        if brought.is_empty() {
            return;
        }
        let mut open = Vec::new();
        for (spec, opened) in brought {
            match opened {
                Ok((pool, listing)) => {
                    self.show_pool(pool.clone(), &spec, listing);
                    open.push(pool);
                }
                Err(e) => {
                    self.unread.lock().insert(spec.name.clone());
                    self.show_missing(&spec, &e.chain());
                    self.background(self.clone().find_missing(spec.clone()));
                }
            }
            let pool: PoolName = spec.name;
            self.events.publish(EventKind::PoolCreated, Subject { pool: Some(pool), ..Subject::default() });
        }
        for (id, host, grant) in let_in {
            self.view.write().attach(*id, host, *grant);
        }
        self.mark_outdated_labels();
        for pool in open {
            self.restore_exports_of(&pool).await;
        }
        self.copy_pool_list().await;
    }
}

/// Hosts that are not there, and those whose secret was lost and is known again.
fn hosts_to_put(
    view: &View,
    hosts: Vec<(HostName, HostRecord)>,
    closed: &mut Vec<String>,
) -> Vec<(HostName, HostRecord)> {
    let theirs =
        view.host_records().flat_map(|(name, r)| ids_of(r).into_iter().map(|(_, id)| (id, name.clone())));
    let mut taken: BTreeMap<_, HostName> = theirs.collect();
    let mut put = Vec::new();
    for (name, old) in hosts {
        if let Some(now) = view.host_record(&name) {
            let mut filled = now.clone();
            let lost = |secret: bool, same: bool| {
                secret && same && now.tenant == old.tenant && now.zone.is_none() && old.zone.is_none()
            };
            if lost(now.secrets == Some(Secret::Lost), now.nqn == old.nqn) && old.secrets.is_some() {
                filled.secrets.clone_from(&old.secrets);
            }
            if lost(now.tls == Some(Secret::Lost), now.nqn == old.nqn) && old.tls.is_some() {
                filled.tls.clone_from(&old.tls);
            }
            if lost(now.chap == Some(Secret::Lost), now.iqn == old.iqn) && old.chap.is_some() {
                filled.chap.clone_from(&old.chap);
            }
            if filled != *now {
                put.push((name, filled));
            }
            continue;
        }
        let ids = ids_of(&old);
        match ids.iter().find_map(|(_, id)| taken.get(id).map(|other| (id, other))) {
            Some((id, other)) => closed.push(format!("host {name}: {id} is host {other} now")),
            None => {
                taken.extend(ids.into_iter().map(|(_, id)| (id, name.clone())));
                put.push((name, old));
            }
        }
    }
    put
}

/// Who is let in: those of whom a label and the backup say the same.
fn agreed<'a, 'r>(
    labels: impl Iterator<Item = &'a Label>,
    known: &BTreeMap<(VolumeId, HostName), Grant>,
    record: impl Fn(&HostName) -> Option<&'r HostRecord>,
    closed: &mut Vec<String>,
) -> Vec<(VolumeId, HostName, Grant)> {
    let mut let_in = Vec::new();
    for label in labels {
        for host in &label.hosts {
            let is_known = known.get(&(label.id, host.name.clone())) == Some(&host.grant);
            if is_known && record(&host.name).is_some_and(|r| is_the_same(host, r, label)) {
                let_in.push((label.id, host.name.clone(), host.grant));
            } else {
                closed.push(format!("host {} of volume {}: attach it again", host.name, label.name));
            }
        }
    }
    let_in
}

/// Whether it is the host that a label means, and must prove no less.
pub(super) fn is_the_same(host: &LabelHost, record: &HostRecord, label: &Label) -> bool {
    let proven = record.proven();
    record.tenant == label.tenant
        && record.is_same_to(label.protocol(), &host.record(&label.tenant))
        && (!host.authenticated || proven.nvme)
        && (!host.chap || proven.iscsi)
        && (!host.tls || proven.tls)
}
