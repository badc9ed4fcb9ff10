//! Removing orphans that are ours.

use std::sync::Arc;

use orlop_api::{OrphanAction, OrphanId, OrphanKind, PoolName, PoolState, VolumeRef};
use tokio::time::Instant;

use super::{What, not_found};
use crate::engine::action::{Outcome, Principal};
use crate::engine::core::Core;
use crate::engine::error::{Error, Result};
use crate::engine::locks::{Key, Mode};
use crate::engine::view::PoolEntry;
use crate::journal::{Batch, Journal, Table};
use crate::model::PoolSpec;
use crate::pool::Leftover;

impl Core {
    /// Removes an orphan that is ours.
    pub(in crate::engine) async fn remove_orphan(
        self: &Arc<Self>,
        who: &Principal,
        id: OrphanId,
        until: Instant,
    ) -> Result<Outcome> {
        let _orphan = self.locks.acquire(vec![(Key::Orphan(id.clone()), Mode::Exclusive)], until).await?;
        let found = self.find_orphan(&id, until).await?.ok_or_else(|| not_found(&id))?;
        let refused = |reason: &str| {
            let object = format!("orphan {id} ({})", found.shown.name);
            Err(Error::Precondition { object, reason: reason.into(), dependants: Vec::new() })
        };
        if !found.shown.actions.contains(&OrphanAction::Remove) {
            return match found.shown.kind {
                OrphanKind::Foreign => refused("was not made by this daemon, which never removes it"),
                OrphanKind::Volume => {
                    refused("carries the label of a volume: it is not removed as an orphan")
                }
                OrphanKind::Record | OrphanKind::Leftover => refused(&found.shown.reason),
            };
        }
        match found.what {
            What::Leftover(leftover) => self.remove_leftover(found.shown.pool, leftover, until).await,
            What::Attachment(volume, host) => {
                let gone = self.detach(who, VolumeRef::Id(volume), host, until).await?;
                let mut view = self.view.write();
                if !view.is_orphaned(volume) {
                    view.clear(&format!("volume/{volume}"));
                }
                Ok(gone)
            }
            What::Pool(spec) => self.forget_lost_pool(*spec, until).await,
            What::Stray(_) | What::Volume(_) | What::Double => refused("is not removed"),
        }
    }

    /// Without an intent: what a crash leaves of it is a leftover as before.
    async fn remove_leftover(
        self: &Arc<Self>,
        pool: Option<PoolName>,
        leftover: Leftover,
        until: Instant,
    ) -> Result<Outcome> {
        let name = pool.ok_or(Error::Died)?;
        let mut wants = vec![(Key::Pool(name.clone()), Mode::Shared)];
        match leftover {
            Leftover::Volume(id) => wants.push((Key::Backing(id), Mode::Exclusive)),
            Leftover::Snapshot(key) => wants.extend([
                (Key::Backing(key.volume), Mode::Exclusive),
                (Key::Snapshot(key.id), Mode::Exclusive),
            ]),
        }
        let _guards = self.locks.acquire(wants, until).await?;
        self.check_settled(|intent| match leftover {
            Leftover::Volume(id) => intent.touches(id),
            Leftover::Snapshot(key) => intent.touches_snapshot(key.id),
        })?;
        if self.shows(leftover) {
            return Err(Error::Busy(leftover.to_string()));
        }
        let open = self.open_pool(&name)?;
        self.destroy_leftover(&open, leftover, until).await.map_err(|f| f.error)?;
        self.capacity_changed(&name);
        Ok(Outcome::Gone)
    }

    /// Forgets a pool that is not there. One batch of the journal: there is nothing in between.
    async fn forget_lost_pool(self: &Arc<Self>, spec: PoolSpec, until: Instant) -> Result<Outcome> {
        let name = spec.name.clone();
        let _guards = self.locks.acquire(vec![(Key::Pool(name.clone()), Mode::Exclusive)], until).await?;
        let missing = |p: &PoolEntry| p.state == PoolState::Missing;
        if !self.view.read().pool_entry(&name).is_some_and(missing)
            || !self.is_gone(&spec, until).await.map_err(|f| f.error)?
        {
            return Err(Error::Busy(format!("pool {name}: it is back")));
        }
        let mut batch = Batch::default();
        batch.remove(Table::Pools, name.as_str());
        Journal::note_pool_rebuilt(&mut batch, name.as_str());
        self.journal.commit(batch).await?;
        self.forget_pool(&name);
        self.copy_pool_list().await;
        Ok(Outcome::Gone)
    }
}
