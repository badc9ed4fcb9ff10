//! Intents: what is about to be changed, recorded before anything is, so that after a crash at any point
//! it can be carried out or undone by looking at what is there.
//!
//! An operation begins with its intent durable and ends in one of three ways: committed (with its
//! records, in one batch), settled (undone or completed at once after a failure), or left unsettled:
//! then its object is `stuck`, takes no changes, and settling is tried again and again.

use std::sync::Arc;
use std::time::Duration;

use orlop_api::{EventKind, HostName, PoolName, SnapshotId, VolumeId, VolumeState};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::core::{Core, Failure, On, Outcome};
use super::error::{Error, Result};
use super::events::Subject;
use super::locks::Guards;
use super::view::{SnapshotEntry, VolumeEntry};
use crate::failpoint;
use crate::journal::{Batch, Table};
use crate::kernel::Deadline;
use crate::model::{Label, PoolChange, PoolSpec, SnapshotKey, SnapshotLabel};
use crate::pool::{Pool, PoolError};

/// What is about to be changed. Stored; a test holds every form ever written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "intent")]
pub(super) enum Intent {
    /// A pool is being made.
    CreatePool { spec: PoolSpec },
    /// A pool is being deleted.
    DeletePool { name: PoolName },
    /// A pool is being let go of.
    ExportPool { name: PoolName },
    /// A pool's disks are being changed.
    ChangePool { name: PoolName, change: PoolChange },
    /// A backing is being made.
    CreateVolume { pool: PoolName, label: Label },
    /// A stray is being made a volume; without one, a volume that is ours is being given another name.
    AdoptVolume {
        pool: PoolName,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stray: Option<String>,
        label: Label,
    },
    /// A backing is being made larger.
    ResizeVolume { pool: PoolName, label: Label },
    /// A backing is being given other properties, and may be made larger too.
    SetVolume { pool: PoolName, label: Label },
    /// A backing is being destroyed.
    DeleteVolume { pool: PoolName, volume: VolumeId },
    /// Snapshots are being taken at one instant.
    CreateSnapshots { pool: PoolName, labels: Vec<SnapshotLabel> },
    /// A snapshot is being destroyed.
    DeleteSnapshot { pool: PoolName, snapshot: SnapshotKey },
    /// A host is being let in; it is not in the journal yet.
    Attach { volume: VolumeId, host: HostName },
    /// A host is being cut off; it is not in the journal any more.
    Detach { volume: VolumeId, host: HostName },
}

impl Intent {
    /// The name of its failpoints, and what logs call it.
    pub(super) fn verb(&self) -> &'static str {
        match self {
            Self::CreatePool { .. } => "create_pool",
            Self::DeletePool { .. } => "delete_pool",
            Self::ExportPool { .. } => "export_pool",
            Self::ChangePool { .. } => "change_pool",
            Self::CreateVolume { .. } => "create_volume",
            Self::AdoptVolume { .. } => "adopt_volume",
            Self::ResizeVolume { .. } => "resize_volume",
            Self::SetVolume { .. } => "set_volume",
            Self::DeleteVolume { .. } => "delete_volume",
            Self::CreateSnapshots { .. } => "create_snapshot",
            Self::DeleteSnapshot { .. } => "delete_snapshot",
            Self::Attach { .. } => "attach",
            Self::Detach { .. } => "detach",
        }
    }

    /// The volume it is about, if it is about one.
    pub(super) fn volume(&self) -> Option<VolumeId> {
        match self {
            Self::CreatePool { .. }
            | Self::DeletePool { .. }
            | Self::ExportPool { .. }
            | Self::ChangePool { .. }
            | Self::CreateSnapshots { .. }
            | Self::DeleteSnapshot { .. } => None,
            Self::CreateVolume { label, .. }
            | Self::AdoptVolume { label, .. }
            | Self::ResizeVolume { label, .. }
            | Self::SetVolume { label, .. } => Some(label.id),
            Self::DeleteVolume { volume, .. } | Self::Attach { volume, .. } | Self::Detach { volume, .. } => {
                Some(*volume)
            }
        }
    }

    /// Whether it is about a volume: also one that a snapshot is being taken of.
    pub(super) fn touches(&self, id: VolumeId) -> bool {
        match self {
            Self::CreateSnapshots { labels, .. } => labels.iter().any(|l| l.key.volume == id),
            Self::DeleteSnapshot { snapshot, .. } => snapshot.volume == id,
            other => other.volume() == Some(id),
        }
    }

    /// Whether it is about a volume's access or its backing as a whole. A snapshot under way is neither:
    /// hosts come and go meanwhile.
    pub(super) fn touches_access(&self, id: VolumeId) -> bool {
        self.volume() == Some(id)
    }

    /// Whether it is about a snapshot.
    pub(super) fn touches_snapshot(&self, id: SnapshotId) -> bool {
        match self {
            Self::CreateSnapshots { labels, .. } => labels.iter().any(|l| l.key.id == id),
            Self::DeleteSnapshot { snapshot, .. } => snapshot.id == id,
            _ => false,
        }
    }

    /// The pool that is needed to settle it.
    pub(super) fn pool(&self) -> Option<&PoolName> {
        match self {
            Self::CreateVolume { pool, .. }
            | Self::AdoptVolume { pool, .. }
            | Self::ResizeVolume { pool, .. }
            | Self::SetVolume { pool, .. }
            | Self::DeleteVolume { pool, .. }
            | Self::CreateSnapshots { pool, .. }
            | Self::DeleteSnapshot { pool, .. }
            | Self::ChangePool { name: pool, .. } => Some(pool),
            Self::CreatePool { .. }
            | Self::DeletePool { .. }
            | Self::ExportPool { .. }
            | Self::Attach { .. }
            | Self::Detach { .. } => None,
        }
    }
}

/// How much is known of an operation that did not commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// Its caller was told that it failed, so what it made goes away again.
    Failed,
    /// Nobody was told (a crash, or "it may still be under way"), so what is whole stays.
    Unknown,
}

/// An operation under way: its intent is durable.
pub(super) struct Op {
    key: u64,
    pub(super) intent: Intent,
    guards: Guards,
}

impl Core {
    /// Makes a change whose locks are held: this is the door's second half, the same for all of them. The
    /// intent is durable before `act` begins. `act` does the work and reads back what came of it. Then it is
    /// committed. What fails is put right before the caller hears of it, or `stuck` until it is.
    ///
    /// The guards come back, for what the caller does to the view while it still holds them.
    pub(super) async fn carry_out<T>(
        self: &Arc<Self>,
        intent: Intent,
        guards: Guards,
        act: impl Future<Output = Outcome<T>>,
    ) -> Result<(T, Guards)> {
        let act = async { Ok((act.await?, Batch::default())) };
        self.carry_out_with(intent, Batch::default(), guards, act).await
    }

    /// [`carry_out`](Self::carry_out) with records in the journal: `first` become durable with the intent,
    /// those that `act` gives back as the intent goes.
    pub(super) async fn carry_out_with<T>(
        self: &Arc<Self>,
        intent: Intent,
        first: Batch,
        guards: Guards,
        act: impl Future<Output = Outcome<(T, Batch)>>,
    ) -> Result<(T, Guards)> {
        let op = self.begin(intent, guards, first).await?;
        match act.await {
            Ok((done, last)) => Ok((done, self.commit(op, last).await?)),
            Err(failure) => Err(self.fail(op, failure).await),
        }
    }

    /// Records what is about to be done; `records` become durable with it.
    pub(super) async fn begin(&self, intent: Intent, guards: Guards, records: Batch) -> Result<Op> {
        let key = self.new_op();
        let mut batch = records;
        batch.put(Table::Intents, &op_key(key), &intent);
        self.journal.commit(batch).await?;
        failpoint::hit(intent.verb(), "intent");
        Ok(Op { key, intent, guards })
    }

    /// The operation is done and verified: its records become durable and its intent goes, in one batch.
    async fn commit(self: &Arc<Self>, op: Op, records: Batch) -> Result<Guards> {
        failpoint::hit(op.intent.verb(), "acted");
        let mut batch = records;
        batch.remove(Table::Intents, &op_key(op.key));
        match self.journal.commit(batch).await {
            Ok(()) => {
                failpoint::hit(op.intent.verb(), "committed");
                Ok(op.guards)
            }
            Err(e) => {
                let reason = super::error::chain(&e);
                self.leave_unsettled(op.key, op.intent.clone(), &reason);
                // A journal that takes nothing more leaves it to the next start, which settles it by what is there.
                if !e.is_final() {
                    let core = self.clone();
                    self.background(async move { core.settle_until_done(op, Known::Unknown).await });
                }
                Err(e.into())
            }
        }
    }

    /// The operation failed. Puts things right before the caller is answered if that can be done now,
    /// else behind its back, with the object `stuck` until then. Returns the caller's error.
    async fn fail(self: &Arc<Self>, op: Op, failure: Failure) -> Error {
        let Failure { error, late } = failure;
        let reason = error.chain();
        tracing::warn!(op = op.key, verb = op.intent.verb(), error = reason, "an operation failed");
        if let Some(late) = late {
            self.leave_unsettled(op.key, op.intent.clone(), &reason);
            let core = self.clone();
            self.background(async move {
                // The sender goes with the job, however it ends.
                let _ = late.await;
                core.settle_until_done(op, Known::Unknown).await;
            });
        } else if let Err(f) = self.settle(op.key, &op.intent, Known::Failed).await {
            let reason = format!("{reason}; putting it right failed: {}", f.error.chain());
            self.leave_unsettled(op.key, op.intent.clone(), &reason);
            let core = self.clone();
            self.background(async move {
                if let Some(late) = f.late {
                    let _ = late.await;
                }
                core.settle_until_done(op, Known::Failed).await;
            });
        }
        error
    }

    pub(super) fn leave_unsettled(&self, key: u64, intent: Intent, reason: &str) {
        if let Some(id) = intent.volume() {
            self.set_state(id, VolumeState::Stuck, Some(reason.to_string()));
        }
        if let Intent::DeleteSnapshot { snapshot, .. } = &intent
            && self.view.write().set_snapshot_stuck(snapshot.id, Some(reason.to_string()))
        {
            self.events.publish(EventKind::SnapshotState, about_snapshot(*snapshot));
        }
        self.view.write().raise(format!("operation/{key}"), format!("{} is stuck: {reason}", intent.verb()));
        self.unsettled.lock().insert(key, (intent, reason.to_string()));
    }

    /// Tries to settle an operation until it succeeds, holding its locks, less and less often. When only the journal is
    /// in the way, the next start does it: to do the rest again and again would cut off hosts for nothing.
    async fn settle_until_done(self: &Arc<Self>, op: Op, known: Known) {
        let mut pause = Duration::from_secs(1);
        loop {
            match self.settle(op.key, &op.intent, known).await {
                Ok(()) => return,
                Err(Failure { error: Error::Journal(e), .. }) if e.is_final() => return,
                Err(Failure { error, late }) => {
                    tracing::warn!(
                        op = op.key,
                        verb = op.intent.verb(),
                        error = error.chain(),
                        "still stuck"
                    );
                    if let Some(late) = late {
                        let _ = late.await;
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(60));
        }
    }

    /// As `settle_until_done`, for an intent that start-up could not settle.
    pub(super) fn settle_later(self: &Arc<Self>, key: u64, intent: Intent, reason: &str) {
        self.leave_unsettled(key, intent.clone(), reason);
        let core = self.clone();
        self.background(async move {
            core.settle_until_done(Op { key, intent, guards: Guards::default() }, Known::Unknown).await;
        });
    }

    /// Carries out or undoes an intent by what is there, then forgets it. Idempotent.
    pub(super) async fn settle(self: &Arc<Self>, key: u64, intent: &Intent, known: Known) -> Outcome<()> {
        let until = Instant::now() + self.settings.settle_deadline;
        let mut batch = Batch::default();
        match intent {
            Intent::CreateVolume { pool, label } => {
                let open = self.open_pool(pool)?;
                let id = label.id;
                // What has not come to have its label is no volume, and `unmake` knows whether it was to be this one.
                let get = move |p: &dyn Pool, d: &Deadline| match p.get(id, d) {
                    Err(PoolError::Conflict { .. }) => Ok(None),
                    found => found,
                };
                let found = self.on_pool(&open, On::Make, until, get).await?;
                match found {
                    Some(stored) if known == Known::Unknown && stored.is_whole() => {
                        self.show_volume(pool.clone(), stored.label, EventKind::VolumeCreated);
                        self.start_copy(id);
                    }
                    _ => {
                        self.on_pool(&open, On::Make, until, move |p, d| p.unmake(id, d)).await?;
                        self.view.write().remove_volume(id);
                        // The key that was made for it, not that of its source.
                        let own = label.encryption.map(|e| e.key_of).filter(|of| *of == id);
                        batch.append(self.forget_key(own));
                    }
                }
                // A snapshot that was taken for it goes if it did not come to be.
                self.spent_bell.notify_one();
                self.capacity_changed(pool);
            }
            Intent::AdoptVolume { pool, stray, label } => {
                self.settle_adopt(pool, stray.clone(), label, known, until).await?;
            }
            Intent::ResizeVolume { pool, label } | Intent::SetVolume { pool, label } => {
                let open = self.open_pool(pool)?;
                let sets = matches!(intent, Intent::SetVolume { .. });
                if let Some(label) = self.settle_change(&open, label.clone(), sets, until).await? {
                    let id = label.id;
                    let kind = if sets { EventKind::VolumeChanged } else { EventKind::VolumeResized };
                    self.show_volume(pool.clone(), label, kind);
                    self.refresh_export(id, &open, until).await?;
                }
                self.capacity_changed(pool);
            }
            Intent::DeleteVolume { pool, volume } => {
                let open = self.open_pool(pool)?;
                let id = *volume;
                self.on_pool(&open, On::Open, until, move |p, d| p.close(id, d)).await?;
                self.on_pool(&open, On::Make, until, move |p, d| p.destroy(id, d)).await?;
                // What is not shown any more can only have had a key of its own.
                let had =
                    self.view.read().entry(id).and_then(|v| v.label.encryption).map_or(id, |e| e.key_of);
                batch.append(self.forget_key(self.spent_key(had, id)));
                self.view.write().remove_volume(id);
                self.events.publish(EventKind::VolumeDeleted, about_volume(id));
                self.spent_bell.notify_one();
                self.capacity_changed(pool);
            }
            Intent::CreateSnapshots { pool, labels } => {
                let open = self.open_pool(pool)?;
                let wanted = labels.clone();
                // All of them or none: those that are there alone are of no use to anyone.
                let whole = self
                    .on_pool(&open, On::Make, until, move |p, d| {
                        let mut whole = known == Known::Unknown;
                        for label in &wanted {
                            whole = whole && p.get_snapshot(label.key, d)?.is_some();
                        }
                        for label in wanted.iter().filter(|_| !whole) {
                            p.destroy_snapshot(label.key, d)?;
                        }
                        Ok(whole)
                    })
                    .await?;
                for label in labels {
                    if whole {
                        self.show_snapshot(pool.clone(), label.clone(), None, EventKind::SnapshotCreated);
                    } else {
                        self.view.write().remove_snapshot(label.key.id);
                    }
                }
                self.capacity_changed(pool);
            }
            Intent::DeleteSnapshot { pool, snapshot } => {
                let open = self.open_pool(pool)?;
                let key = *snapshot;
                self.on_pool(&open, On::Make, until, move |p, d| p.destroy_snapshot(key, d)).await?;
                self.snapshot_gone(key);
                self.capacity_changed(pool);
            }
            Intent::Attach { volume, .. } | Intent::Detach { volume, .. } => {
                let (_, is_served) = self.converge_open(*volume, None, true).await?;
                if !is_served {
                    self.close_whatever_is_open(*volume).await?;
                }
            }
            Intent::ChangePool { name, change } => self.settle_change_pool(name, change, known).await?,
            Intent::CreatePool { spec } => self.settle_create_pool(spec, known).await?,
            // Nobody was told that it is gone, and it can still be opened: it stays.
            Intent::ExportPool { name } => self.settle_delete_pool(name).await?,
            Intent::DeletePool { name } => self.settle_delete_pool(name).await?,
        }
        batch.remove(Table::Intents, &op_key(key));
        self.journal.commit(batch).await?;
        self.unsettled.lock().remove(&key);
        self.view.write().clear(&format!("operation/{key}"));
        if let Some(id) = intent.volume() {
            self.set_state(id, VolumeState::Ready, None);
        }
        if let Intent::Detach { volume, host } = intent {
            self.events.publish(EventKind::Detached, super::attachments::about(*volume, host));
        }
        Ok(())
    }

    /// An object whose last operation is not settled takes no changes.
    pub(super) fn check_settled(&self, touches: impl Fn(&Intent) -> bool) -> Result<()> {
        match self.unsettled.lock().values().find(|(intent, _)| touches(intent)) {
            None => Ok(()),
            Some((intent, reason)) => {
                Err(Error::Busy(format!("it ({} is stuck and being put right: {reason})", intent.verb())))
            }
        }
    }

    /// Puts a volume into the view as its label says, and tells.
    pub(super) fn show_volume(&self, pool: PoolName, label: Label, kind: EventKind) {
        let id = label.id;
        let mut view = self.view.write();
        view.put_volume(VolumeEntry { label, pool, state: VolumeState::Ready, reason: None });
        drop(view);
        self.events.publish(kind, about_volume(id));
    }

    /// Puts a snapshot into the view as its label says, and tells.
    pub(super) fn show_snapshot(
        &self,
        pool: PoolName,
        label: SnapshotLabel,
        paused: Option<Duration>,
        kind: EventKind,
    ) {
        let key = label.key;
        // One that serves to make a volume from concerns nobody.
        let told = !label.deleted || kind != EventKind::SnapshotCreated;
        self.view.write().put_snapshot(SnapshotEntry { label, pool, stuck: None, paused });
        if told {
            self.events.publish(kind, about_snapshot(key));
        }
    }

    /// Takes a snapshot that was destroyed out of the view, and tells.
    pub(super) fn snapshot_gone(&self, key: SnapshotKey) {
        self.view.write().remove_snapshot(key.id);
        self.events.publish(EventKind::SnapshotDeleted, about_snapshot(key));
        // The volume may have been waiting for this.
        self.spent_bell.notify_one();
    }

    /// Changes a volume's state, and tells if that is news.
    pub(super) fn set_state(&self, id: VolumeId, state: VolumeState, reason: Option<String>) {
        let detail = reason.clone();
        if self.view.write().set_volume_state(id, state, reason) {
            self.events
                .publish(EventKind::VolumeState, Subject { volume: Some(id), detail, ..Subject::default() });
        }
    }
}

/// Keys sort as their numbers do.
pub(super) fn op_key(key: u64) -> String {
    format!("{key:020}")
}

pub(super) fn about_snapshot(key: SnapshotKey) -> Subject {
    Subject { snapshot: Some(key.id), volume: Some(key.volume), ..Subject::default() }
}

pub(super) fn about_volume(id: VolumeId) -> Subject {
    Subject { volume: Some(id), ..Subject::default() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LABEL: &str = r#"{"v":1,"id":"0190c0de-1234-7abc-8def-0123456789ab","name":"data","tenant":"default","kind":"block","size":1048576,"provisioning":"thin","protocol":"nvme","created":"2026-11-20T12:00:00Z"}"#;

    #[test]
    fn stored_intents_stay_readable() {
        let forms = [
            r#"{"intent":"create_pool","spec":{"v":1,"name":"tank","medium":{"kind":"zfs","disks":["vdb"]}}}"#.to_string(),
            r#"{"intent":"delete_pool","name":"tank"}"#.to_string(),
            format!(r#"{{"intent":"create_volume","pool":"tank","label":{LABEL}}}"#),
            format!(r#"{{"intent":"adopt_volume","pool":"tank","stray":"tank/vm","label":{LABEL}}}"#),
            format!(r#"{{"intent":"adopt_volume","pool":"tank","label":{LABEL}}}"#),
            format!(r#"{{"intent":"resize_volume","pool":"tank","label":{LABEL}}}"#),
            format!(r#"{{"intent":"set_volume","pool":"tank","label":{LABEL}}}"#),
            r#"{"intent":"delete_volume","pool":"tank","volume":"0190c0de-1234-7abc-8def-0123456789ab"}"#.to_string(),
            r#"{"intent":"create_snapshots","pool":"tank","labels":[{"v":1,"volume":"0190c0de-1234-7abc-8def-0123456789ab","id":"0190c0de-1234-7abc-8def-000000000002","name":"s","tenant":"default","size":1048576,"created":"2026-11-20T12:00:00Z"}]}"#.to_string(),
            r#"{"intent":"delete_snapshot","pool":"tank","snapshot":{"volume":"0190c0de-1234-7abc-8def-0123456789ab","id":"0190c0de-1234-7abc-8def-000000000002"}}"#.to_string(),
            r#"{"intent":"attach","volume":"0190c0de-1234-7abc-8def-0123456789ab","host":"worker-1"}"#.to_string(),
            r#"{"intent":"detach","volume":"0190c0de-1234-7abc-8def-0123456789ab","host":"worker-1"}"#.to_string(),
        ];
        for form in forms {
            let intent: Intent = serde_json::from_str(&form).unwrap();
            assert_eq!(serde_json::to_string(&intent).unwrap(), form);
        }
    }
}
