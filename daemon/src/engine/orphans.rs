//! Orphans: what is on the appliance and nobody claims. Listed by asking the pools, removed where it is
//! ours, adopted where it can become a volume.
//!
//! Four things come together here: what pools tell beside their volumes ([`Stray`]), what is left of work
//! that failed ([`Leftover`]), volumes that the view does not show or not under their name, and records of
//! the journal that nothing stands behind.

mod adopt;
mod remove;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use orlop_api::{
    AlarmSeverity, HostName, Orphan, OrphanAction, OrphanId, OrphanKind, Orphans, PoolName, PoolState,
    Unanswered, VolumeId,
};
use tokio::time::Instant;

use super::core::{Core, Failure, On, OpenPool, Outcome as CoreOutcome, run};
use super::error::{Error, Result};
use super::intent::Intent;
use super::locks::{Key, Mode};
use super::view::View;
use crate::model::{Label, PoolSpec};
use crate::pool::{Leftover, Listing, PoolError, Stored, Stray};

/// How long a pool may take to answer, however much time its caller has: the others are waiting to be told.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many strays an alarm names.
const LISTED: usize = 10;

/// One orphan, and what there is to know of it to do something with it.
#[derive(Debug, Clone)]
struct Found {
    shown: Orphan,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    /// What a pool has beside volumes and snapshots.
    Stray(Stray),
    /// Half made or half removed, and nobody is at work on it.
    Leftover(Leftover),
    /// A whole volume that the view does not show, or shows under its id only.
    Volume(Box<Stored>),
    /// A whole volume whose id another one has, which is shown.
    Double,
    /// An attachment to a volume that no pool has.
    Attachment(VolumeId, HostName),
    /// A pool that is not there.
    Pool(Box<PoolSpec>),
}

impl Core {
    /// All of them. Pools are asked at once; one that can't answer does not hide what is in the others.
    pub(super) async fn orphans(self: &Arc<Self>, until: Instant) -> Orphans {
        let (found, unanswered) = self.find_orphans(None, until).await;
        Orphans { items: found.into_iter().map(|f| f.shown).collect(), unanswered }
    }

    /// Those of one pool, or all of them.
    async fn find_orphans(
        self: &Arc<Self>,
        pool: Option<&PoolName>,
        until: Instant,
    ) -> (Vec<Found>, Vec<Unanswered>) {
        let until = until.min(Instant::now() + PATIENCE);
        let names: Vec<PoolName> = {
            let view = self.view.read();
            let all = view.pool_entries().map(|p| p.spec.name.clone());
            all.filter(|n| pool.is_none_or(|p| p == n)).collect()
        };
        let asked = names.into_iter().map(|name| async move {
            let found = self.orphans_in(&name, until).await;
            (name, found)
        });
        let (mut found, mut unanswered) = (Vec::new(), Vec::new());
        for (pool, answer) in futures_util::future::join_all(asked).await {
            match answer {
                Ok(some) => found.extend(some),
                Err(f) => unanswered.push(Unanswered { pool, reason: f.error.chain() }),
            }
        }
        if pool.is_none() {
            found.extend(attachments(&self.view.read()));
        }
        found.sort_by(|a, b| {
            let key = |f: &Found| (f.shown.pool.clone(), f.shown.kind, f.shown.name.clone());
            key(a).cmp(&key(b))
        });
        (found, unanswered)
    }

    /// Asks one pool.
    async fn orphans_in(self: &Arc<Self>, name: &PoolName, until: Instant) -> CoreOutcome<Vec<Found>> {
        let Ok(open) = self.open_pool(name) else { return self.missing_pool(name, until).await };
        let ask = |p: &dyn crate::pool::Pool, d: &crate::kernel::Deadline| Ok((p.list(d)?, p.elsewhere(d)?));
        let (listing, elsewhere) = self.on_pool(&open, On::Make, until, ask).await?;
        self.note_strays(name, &listing.strays);
        let mut found = self.unclaimed(name, &listing);
        if !found.is_empty() {
            // Something may have been made or removed between the pool's answer and the look at the view:
            // what is an orphan is one still.
            let again = self.on_pool(&open, On::Make, until, |p, d| p.list(d)).await?;
            let again: BTreeSet<_> = self.unclaimed(name, &again).into_iter().map(|f| f.shown.id).collect();
            found.retain(|f| again.contains(&f.shown.id));
        }
        found.extend(listing.strays.into_iter().chain(elsewhere).map(|s| stray(name, s)));
        Ok(found)
    }

    /// What is ours in a pool and nobody claims: leftovers, and volumes that are not shown.
    fn unclaimed(&self, pool: &PoolName, listing: &Listing) -> Vec<Found> {
        let mut found = Vec::new();
        for leftover in listing.leftovers() {
            let of = |intent: &Intent| match leftover {
                Leftover::Volume(id) => intent.touches(id),
                Leftover::Snapshot(key) => intent.touches_snapshot(key.id),
            };
            let stuck = self.check_settled(of).err().map(|e| e.chain());
            // Looked at before the view: what is made holds its lock until it is shown.
            if stuck.is_none() && self.at_work_on(leftover) {
                continue;
            }
            if self.shows(leftover) {
                continue;
            }
            let actions = if stuck.is_some() { vec![] } else { vec![OrphanAction::Remove] };
            let reason = stuck.unwrap_or_else(|| "is half made or half removed".into());
            let kind = OrphanKind::Leftover;
            let shown = orphan(Some(pool), kind, leftover.to_string(), None, reason, actions);
            found.push(Found { shown, what: What::Leftover(leftover) });
        }
        for stored in &listing.volumes {
            let id = stored.label.id;
            let busy = self.locks.is_held(&Key::Backing(id));
            let (reason, what) = match self.claim(pool, &stored.label) {
                Claim::Shown => continue,
                Claim::None if busy => continue,
                Claim::None => (
                    "is whole and not shown: it was not there when the pool was opened".to_string(),
                    What::Volume(Box::new(stored.clone())),
                ),
                Claim::NameOf(other) => (
                    format!(
                        "has the name of volume {other} too ({}), and is reached by its id only",
                        stored.label.name
                    ),
                    What::Volume(Box::new(stored.clone())),
                ),
                Claim::Double(other) => {
                    (format!("has the id of a volume in pool {other}, which is shown"), What::Double)
                }
            };
            let actions = if matches!(what, What::Double) { vec![] } else { vec![OrphanAction::Adopt] };
            let (kind, size) = (OrphanKind::Volume, Some(stored.size));
            let shown = orphan(Some(pool), kind, id.to_string(), size, reason, actions);
            found.push(Found { shown, what });
        }
        found
    }

    fn at_work_on(&self, leftover: Leftover) -> bool {
        match leftover {
            Leftover::Volume(id) => self.locks.is_held(&Key::Backing(id)),
            // It is taken under the lock of its volume.
            Leftover::Snapshot(key) => {
                self.locks.is_held(&Key::Backing(key.volume)) || self.locks.is_held(&Key::Snapshot(key.id))
            }
        }
    }

    fn shows(&self, leftover: Leftover) -> bool {
        let view = self.view.read();
        match leftover {
            Leftover::Volume(id) => view.entry(id).is_some(),
            Leftover::Snapshot(key) => view.snapshot_entry(key.id).is_some(),
        }
    }

    fn claim(&self, pool: &PoolName, label: &Label) -> Claim {
        let view = self.view.read();
        let Some(entry) = view.entry(label.id) else { return Claim::None };
        if entry.pool != *pool {
            return Claim::Double(entry.pool.clone());
        }
        let label = &entry.label;
        match view.named(&label.tenant, &label.name) {
            Some(other) if other != label.id && !label.deleted => Claim::NameOf(other),
            _ => Claim::Shown,
        }
    }

    /// A pool that is not open: it is a record without a pool if it is known not to be there.
    async fn missing_pool(self: &Arc<Self>, name: &PoolName, until: Instant) -> CoreOutcome<Vec<Found>> {
        // Not while it is being opened: a disk would be mounted twice.
        let wants = vec![(Key::Pool(name.clone()), Mode::Exclusive)];
        let _guards = self.locks.acquire(wants, until).await?;
        let Some(spec) = self.view.read().pool_entry(name).map(|p| p.spec.clone()) else {
            return Ok(Vec::new());
        };
        if !self.is_gone(&spec, until).await? {
            return Err(Error::Unavailable("it is back, and is being opened".into()).into());
        }
        let reason = "is not there: if it is to come back, leave it; removing this forgets where it was";
        let actions = vec![OrphanAction::Remove];
        let shown = orphan(Some(name), OrphanKind::Record, spec.to_string(), None, reason.into(), actions);
        Ok(vec![Found { shown, what: What::Pool(Box::new(spec)) }])
    }

    /// Whether there is nothing of a pool where it should be. An error if that can't be told.
    async fn is_gone(&self, spec: &PoolSpec, until: Instant) -> CoreOutcome<bool> {
        let (pools, ask) = (self.settings.pools.clone(), spec.clone());
        match run(&self.setup_lane, until, move |d| pools.open(&ask, d).map(drop)).await {
            Ok(()) => Ok(false),
            Err(Failure { error: Error::Pool(PoolError::NotFound { .. }), .. }) => Ok(true),
            Err(failure) => Err(failure),
        }
    }

    /// The alarm about what is in a pool and is left alone.
    pub(super) fn note_strays(&self, name: &PoolName, strays: &[Stray]) {
        let mut view = self.view.write();
        // A pool that is not open has another alarm there.
        if view.pool_entry(name).is_none_or(|p| p.state != PoolState::Online) {
            return;
        }
        let subject = format!("pool/{name}");
        if strays.is_empty() {
            return view.clear(&subject);
        }
        let few: Vec<_> = strays.iter().take(LISTED).map(|s| format!("{} {}", s.name, s.what)).collect();
        let text =
            format!("{} things in it are left alone (orlop orphan list): {}", strays.len(), few.join("; "));
        // They are in nobody's way.
        view.raise_as(AlarmSeverity::Warning, subject, text);
    }

    /// Attachments to volumes that no open pool has stay in the journal and stay closed.
    pub(super) fn note_lost_attachments(&self) {
        let mut view = self.view.write();
        for id in view.attached_volumes().into_iter().filter(|id| view.is_orphaned(*id)).collect::<Vec<_>>() {
            let hosts: Vec<_> = view.hosts_of(id).map(ToString::to_string).collect();
            let text = format!("attached to {} and in no open pool: nothing is served", hosts.join(", "));
            view.raise(format!("volume/{id}"), text);
        }
    }

    /// Removes what is left of a volume or a snapshot, and nothing that is whole.
    pub(super) async fn destroy_leftover(
        &self,
        open: &Arc<OpenPool>,
        leftover: Leftover,
        until: Instant,
    ) -> CoreOutcome<()> {
        let whole = self
            .on_pool(open, On::Make, until, move |p, d| match leftover {
                Leftover::Volume(id) if p.get(id, d)?.is_some() => Ok(true),
                Leftover::Volume(id) => p.destroy(id, d).map(|_| false),
                Leftover::Snapshot(key) if p.get_snapshot(key, d)?.is_some() => Ok(true),
                Leftover::Snapshot(key) => p.destroy_snapshot(key, d).map(|_| false),
            })
            .await?;
        if whole {
            return Err(Error::Busy(format!("{leftover}: it is whole by now")).into());
        }
        self.view.write().clear(&alarm_of(leftover));
        Ok(())
    }

    async fn find_orphan(self: &Arc<Self>, id: &OrphanId, until: Instant) -> Result<Option<Found>> {
        let pool = id.pool();
        let (found, unanswered) = match &pool {
            Some(pool) => self.find_orphans(Some(pool), until).await,
            None => (attachments(&self.view.read()), Vec::new()),
        };
        match (found.into_iter().find(|f| f.shown.id == *id), unanswered.into_iter().next()) {
            (None, Some(u)) => {
                Err(Error::Unavailable(format!("pool {} does not answer: {}", u.pool, u.reason)))
            }
            (found, _) => Ok(found),
        }
    }
}

/// Who has a volume's name and id.
enum Claim {
    /// It has both.
    Shown,
    /// Nobody has its id.
    None,
    /// Another volume has its name.
    NameOf(VolumeId),
    /// Another backing has its id, in that pool.
    Double(PoolName),
}

fn not_found(id: &OrphanId) -> Error {
    Error::NotFound(format!("orphan {id}"))
}

/// The alarm about a leftover that start-up could not remove.
pub(super) fn alarm_of(leftover: Leftover) -> String {
    match leftover {
        Leftover::Volume(id) => format!("leftover/volume/{id}"),
        Leftover::Snapshot(key) => format!("leftover/snapshot/{key}"),
    }
}

fn stray(pool: &PoolName, stray: Stray) -> Found {
    let kind = if stray.labelled { OrphanKind::Volume } else { OrphanKind::Foreign };
    let (reason, actions) = match &stray.adoptable {
        Ok(_) => (stray.what.clone(), vec![OrphanAction::Adopt]),
        Err(why) => (format!("{}; {why}", stray.what), vec![]),
    };
    let shown = orphan(Some(pool), kind, stray.name.clone(), stray.size, reason, actions);
    Found { shown, what: What::Stray(stray) }
}

/// Attachments to volumes that no pool has.
fn attachments(view: &View) -> Vec<Found> {
    let missing: Vec<_> = view.pool_entries().filter(|p| p.state == PoolState::Missing).collect();
    let lost = view.attached_volumes().into_iter().filter(|id| view.is_orphaned(*id));
    let mut found = Vec::new();
    for id in lost {
        for host in view.hosts_of(id) {
            let (reason, actions) = match missing.first() {
                // To forget it now could be to lose it for a volume that comes back.
                Some(p) => {
                    (format!("is of a volume that may be in pool {}, which is missing", p.spec.name), vec![])
                }
                None => ("is of a volume that no pool has".to_string(), vec![OrphanAction::Remove]),
            };
            let name = format!("attachment of volume {id} to host {host}");
            let shown = orphan(None, OrphanKind::Record, name, None, reason, actions);
            found.push(Found { shown, what: What::Attachment(id, host.clone()) });
        }
    }
    found
}

/// An orphan as it is shown. Whatever it is, it can stay.
fn orphan(
    pool: Option<&PoolName>,
    kind: OrphanKind,
    name: String,
    size: Option<orlop_api::ByteSize>,
    reason: String,
    mut actions: Vec<OrphanAction>,
) -> Orphan {
    actions.push(OrphanAction::Ignore);
    // Nothing that changes while it is there: a damaged label may become none at all.
    let space = if kind == OrphanKind::Record { "record" } else { "backing" };
    let digest = ring::digest::digest(&ring::digest::SHA256, format!("{space}\0{name}").as_bytes());
    let bits = digest.as_ref().iter().take(8).fold(0u64, |bits, b| bits << 8 | u64::from(*b));
    Orphan { id: OrphanId::new(bits, pool), pool: pool.cloned(), kind, name, size, reason, actions }
}
