//! Snapshots: of one volume, or of several at one instant; deletion, now or when nothing depends on them;
//! and the removal of what was deleted once its last dependant has gone.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use orlop_api::{
    ByteSize, EventKind, PoolState, SnapshotCreate, SnapshotGroupCreate, SnapshotId, SnapshotName,
    SnapshotRef, VolumeId, VolumeRef, When,
};
use tokio::time::Instant;

use super::action::{Outcome, Principal};
use super::core::{Core, On, OpenPool, Outcome as CoreOutcome};
use super::error::{Error, Result};
use super::intent::Intent;
use super::locks::{Key, Mode};
use super::volumes::verify_gone;
use crate::model::{SnapshotKey, SnapshotLabel};
use crate::pool::Snapped;

/// The most volumes of one group: their labels travel in one request to the pool.
const LARGEST_GROUP: usize = 64;

/// How long to wait before something is tried again that could not be removed.
const AGAIN: Duration = Duration::from_secs(10);

impl Core {
    pub(super) async fn create_snapshot(
        self: &Arc<Self>,
        who: &Principal,
        ask: SnapshotCreate,
        until: Instant,
    ) -> Result<Outcome> {
        let volume = self.find(who, &ask.volume)?;
        let who = &who.within(&self.tenant_of(who, volume)?);
        let made = self.take_snapshots(who, None, vec![(ask.name.clone(), volume)], until).await?;
        let view = self.view.read();
        let id = view.resolve_snapshot(who, &SnapshotRef::Name(ask.name.clone()));
        let snapshot = id.and_then(|id| view.snapshot(id)).ok_or_else(|| gone(&ask.name))?;
        Ok(Outcome::Snapshot { snapshot, changed: made })
    }

    pub(super) async fn create_snapshot_group(
        self: &Arc<Self>,
        who: &Principal,
        ask: SnapshotGroupCreate,
        until: Instant,
    ) -> Result<Outcome> {
        let wrong = |reason: String| Error::Invalid { field: "volumes", reason };
        if ask.volumes.is_empty() || ask.volumes.len() > LARGEST_GROUP {
            return Err(wrong(format!("must be 1 to {LARGEST_GROUP}")));
        }
        let mut members = Vec::with_capacity(ask.volumes.len());
        let (mut distinct, mut tenant) = (BTreeSet::new(), None);
        for (i, volume) in ask.volumes.iter().enumerate() {
            let name = format!("{}-{}", ask.name, i + 1);
            let name = name.parse().map_err(|_| Error::Invalid {
                field: "name",
                reason: "leaves no room for a number".into(),
            })?;
            let id = self.find(who, volume)?;
            if self.tenant_of(who, id)? != *tenant.get_or_insert(self.tenant_of(who, id)?) {
                return Err(wrong("are of several tenants".into()));
            }
            if !distinct.insert(id) {
                return Err(wrong(format!("has {volume} twice")));
            }
            members.push((name, id));
        }
        let who = &tenant.map_or_else(|| who.clone(), |tenant| who.within(&tenant));
        let made = self.take_snapshots(who, Some(ask.name.clone()), members, until).await?;
        let group = self.view.read().group(who, &ask.name).ok_or_else(|| gone(&ask.name))?;
        Ok(Outcome::SnapshotGroup { group, changed: made })
    }

    /// Takes one snapshot, or those of a group. Whether anything was done: the same request again is
    /// fine.
    async fn take_snapshots(
        self: &Arc<Self>,
        who: &Principal,
        group: Option<SnapshotName>,
        members: Vec<(SnapshotName, VolumeId)>,
        until: Instant,
    ) -> Result<bool> {
        let ours = |intent: &Intent| match intent {
            Intent::CreateSnapshots { labels, .. } => {
                labels.iter().any(|l| l.tenant == who.tenant && members.iter().any(|(n, _)| *n == l.name))
            }
            other => members.iter().any(|(_, id)| other.volume() == Some(*id)),
        };
        self.check_settled(ours)?;
        let pool = {
            let view = self.view.read();
            let mut pools = members.iter().filter_map(|(_, id)| view.entry(*id)).map(|v| &v.pool);
            let first = pools.next().cloned().ok_or_else(|| Error::NotFound("volume".into()))?;
            if let Some(other) = pools.find(|p| **p != first) {
                let reason = format!("are in pools {first} and {other}: there is no instant for both");
                return Err(Error::Invalid { field: "volumes", reason });
            }
            first
        };
        let mut wants = vec![(Key::Pool(pool.clone()), Mode::Shared)];
        let names = members.iter().map(|(name, _)| name).chain(&group);
        wants.extend(names.map(|n| (Key::SnapshotName(who.tenant.clone(), n.clone()), Mode::Exclusive)));
        wants.extend(members.iter().map(|(_, id)| (Key::Backing(*id), Mode::Exclusive)));
        let guards = self.locks.acquire(wants, until).await?;
        self.check_settled(ours)?;
        if self.same_snapshots(who, group.as_ref(), &members)? {
            return Ok(false);
        }
        let open = self.open_pool(&pool)?;
        let mut labels = Vec::with_capacity(members.len());
        for (name, id) in &members {
            self.check_usable(*id)?;
            let view = self.view.read();
            let entry = view.entry(*id).ok_or_else(|| view.no_volume(who, &VolumeRef::Id(*id)))?;
            labels.push(SnapshotLabel::new(&entry.label, SnapshotId::mint(), name.clone(), group.clone()));
        }
        self.check_space(&open, ByteSize(0), until).await?;

        let intent = Intent::CreateSnapshots { pool: pool.clone(), labels: labels.clone() };
        let (snapped, _guards) = self.carry_out(intent, guards, self.take(&open, &labels, until)).await?;
        for label in labels {
            self.show_snapshot(pool.clone(), label, snapped.paused, EventKind::SnapshotCreated);
        }
        self.capacity_changed(&pool);
        Ok(true)
    }

    /// Takes snapshots and reads them back from the pool (R5).
    async fn take(
        &self,
        pool: &Arc<OpenPool>,
        labels: &[SnapshotLabel],
        until: Instant,
    ) -> CoreOutcome<Snapped> {
        let ask = labels.to_vec();
        let (snapped, found) = self
            .on_pool(pool, On::Make, until, move |p, d| {
                let snapped = p.snapshot(&ask, d)?;
                let found =
                    ask.iter().map(|l| p.get_snapshot(l.key, d)).collect::<crate::pool::Result<Vec<_>>>()?;
                Ok((snapped, found))
            })
            .await?;
        match labels.iter().zip(&found).find(|(label, found)| found.as_ref() != Some(*label)) {
            None => Ok(snapped),
            Some((label, found)) => {
                let found = if found.is_some() { "another label" } else { "nothing" };
                Err(Error::Unverified { object: format!("snapshot {}", label.name), found: found.into() }
                    .into())
            }
        }
    }

    /// Whether these snapshots are there already; a conflict if some of them are, or others of the name.
    fn same_snapshots(
        &self,
        who: &Principal,
        group: Option<&SnapshotName>,
        members: &[(SnapshotName, VolumeId)],
    ) -> Result<bool> {
        let view = self.view.read();
        let mut there = 0;
        for (name, volume) in members {
            let id = view.named_snapshot(&who.tenant, name);
            let Some(entry) = id.and_then(|id| view.snapshot_entry(id)) else { continue };
            there += 1;
            if !who.sees(&entry.label.tenant, &entry.pool) {
                return Err(Error::Conflict {
                    object: format!("snapshot {name}"),
                    field: "volume",
                    have: format!("one that {} may not use", who.name),
                    want: volume.to_string(),
                });
            }
            let differs = [
                ("volume", entry.label.key.volume.to_string(), volume.to_string()),
                ("group", shown(entry.label.group.as_ref()), shown(group)),
            ];
            if let Some((field, have, want)) = differs.into_iter().find(|(_, have, want)| have != want) {
                return Err(Error::Conflict { object: format!("snapshot {name}"), field, have, want });
            }
        }
        let Some(group) = group else { return Ok(there == 1) };
        let known = view.members(&who.tenant, group);
        match (there, known) {
            (0, 0) => Ok(false),
            (there, known) if there == members.len() && known == members.len() => Ok(true),
            _ => Err(Error::Conflict {
                object: format!("snapshot group {group}"),
                field: "volumes",
                have: format!("{known} snapshots"),
                want: format!("{} snapshots, {there} of which are there", members.len()),
            }),
        }
    }

    pub(super) async fn delete_snapshot(
        self: &Arc<Self>,
        who: &Principal,
        snapshot: SnapshotRef,
        when: When,
        until: Instant,
    ) -> Result<Outcome> {
        let (id, name, tenant) = {
            let view = self.view.read();
            let id = view.resolve_snapshot(who, &snapshot);
            let entry =
                id.and_then(|id| view.snapshot_entry(id)).ok_or_else(|| view.no_snapshot(who, &snapshot))?;
            (entry.label.key.id, entry.label.name.clone(), entry.label.tenant.clone())
        };
        self.check_settled(|intent| intent.touches_snapshot(id))?;
        let wants =
            vec![(Key::SnapshotName(tenant, name), Mode::Exclusive), (Key::Snapshot(id), Mode::Exclusive)];
        let guards = self.locks.acquire(wants, until).await?;
        self.check_settled(|intent| intent.touches_snapshot(id))?;
        let (entry, dependants) = {
            let view = self.view.read();
            let entry = view.snapshot_entry(id).ok_or_else(|| view.no_snapshot(who, &snapshot))?.clone();
            let volumes = view.dependants_of(id).filter_map(|v| view.entry(v));
            (entry, volumes.map(|v| format!("volume {}", v.label.name)).collect::<Vec<_>>())
        };
        if dependants.is_empty() {
            drop(guards);
            self.destroy_snapshot(entry.label.key, until).await?;
            return Ok(Outcome::Gone);
        }
        if when == When::Now {
            return Err(Error::Precondition {
                object: format!("snapshot {snapshot}"),
                reason: "is needed: delete these first, or it when it is unused".into(),
                dependants,
            });
        }
        if !entry.label.deleted {
            let open = self.open_pool(&entry.pool)?;
            let label = SnapshotLabel { deleted: true, ..entry.label };
            let ask = label.clone();
            let marked = self.on_pool(&open, On::Make, until, move |p, d| p.relabel_snapshot(&ask, d)).await;
            marked.map_err(|f| f.error)?;
            self.show_snapshot(entry.pool, label, entry.paused, EventKind::SnapshotState);
        }
        Ok(Outcome::Doomed)
    }

    /// Destroys a snapshot that nothing depends on.
    pub(super) async fn destroy_snapshot(self: &Arc<Self>, key: SnapshotKey, until: Instant) -> Result<()> {
        let guards = self.locks.acquire(vec![(Key::Snapshot(key.id), Mode::Exclusive)], until).await?;
        self.check_settled(|intent| intent.touches_snapshot(key.id))?;
        let pool = {
            let view = self.view.read();
            let Some(entry) = view.snapshot_entry(key.id) else { return Ok(()) };
            // A clone may have been made before the lock was had.
            let dependants: Vec<_> = view.dependants_of(key.id).map(|v| format!("volume {v}")).collect();
            if !dependants.is_empty() {
                let object = format!("snapshot {}", entry.label.name);
                return Err(Error::Precondition { object, reason: "is needed".into(), dependants });
            }
            entry.pool.clone()
        };
        let open = self.open_pool(&pool)?;
        let intent = Intent::DeleteSnapshot { pool: pool.clone(), snapshot: key };
        let destroy = self.on_pool(&open, On::Make, until, move |p, d| {
            p.destroy_snapshot(key, d)?;
            p.get_snapshot(key, d)
        });
        let act = async { verify_gone(&format!("snapshot {key}"), destroy.await?.is_none()) };
        let ((), _guards) = self.carry_out(intent, guards, act).await?;
        self.snapshot_gone(key);
        self.capacity_changed(&pool);
        Ok(())
    }

    /// Removes what was deleted and has lost its last dependant, for as long as the daemon runs.
    pub(super) async fn remove_spent(self: Arc<Self>) {
        loop {
            self.spent_bell.notified().await;
            if !self.remove_spent_once().await {
                let core = self.clone();
                self.background(async move {
                    tokio::time::sleep(AGAIN).await;
                    core.spent_bell.notify_one();
                });
            }
        }
    }

    /// Removes all that can be. Whether that was all that should be.
    async fn remove_spent_once(self: &Arc<Self>) -> bool {
        let daemon = Principal::admin("daemon");
        let mut whole = true;
        let mut tried = BTreeSet::new();
        loop {
            let (snapshots, volumes) = {
                let view = self.view.read();
                // A pool that is away may hold what depends on something in another.
                if view.pool_entries().any(|p| p.state == PoolState::Missing) {
                    return true;
                }
                view.spent()
            };
            let until = Instant::now() + self.settings.settle_deadline;
            let mut progress = false;
            for id in snapshots {
                // One that a volume is just being made from has its turn later.
                if self.locks.is_held(&Key::Snapshot(id)) {
                    whole = false;
                    continue;
                }
                let key = self.view.read().snapshot_entry(id).map(|s| s.label.key);
                let Some(key) = key.filter(|k| tried.insert(k.id.uuid())) else { continue };
                progress = true;
                if let Err(error) = self.destroy_snapshot(key, until).await {
                    tracing::warn!(snapshot = %key, error = error.chain(), "a deleted snapshot is still there");
                    whole = false;
                }
            }
            for id in volumes.into_iter().filter(|id| tried.insert(id.uuid())).collect::<Vec<_>>() {
                progress = true;
                if let Err(error) =
                    self.delete_stopped(&daemon, &VolumeRef::Id(id), id, When::Now, until).await
                {
                    tracing::warn!(volume = %id, error = error.chain(), "a deleted volume is still there");
                    whole = false;
                }
            }
            if !progress {
                return whole;
            }
        }
    }
}

fn gone(name: &SnapshotName) -> Error {
    Error::NotFound(format!("snapshot {name}"))
}

fn shown(group: Option<&SnapshotName>) -> String {
    group.map_or_else(|| "none".into(), ToString::to_string)
}
