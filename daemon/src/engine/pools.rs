//! Pools: make, delete, and bring one up with all that is in it.

use std::sync::Arc;
use std::time::Duration;

use orlop_api::{ByteSize, EventKind, HostName, PoolName, PoolState, VolumeId};
use tokio::time::Instant;

use super::action::{Outcome, Principal};
use super::attachments::attachment_key;
use super::core::{Core, Failure, On, OpenPool, Outcome as CoreOutcome, run};
use super::error::{Error, Result, chain};
use super::events::Subject;
use super::intent::{Intent, Known};
use super::locks::{Guards, Key, Mode};
use super::view::{PoolEntry, SnapshotEntry, VolumeEntry};
use crate::journal::{Batch, Journal, Table};
use crate::model::{PoolChange, PoolSpec};
use crate::pool::{Change, Listing, Pool, PoolError};

/// The copy's name in the state directory.
const POOL_LIST: &str = "pools.json";

/// Far above thousands of pools; a larger file is not ours.
const LARGEST_POOL_LIST: u64 = 4 << 20;

/// How many names an error lists.
const LISTED: usize = 10;

impl Core {
    pub(super) async fn create_pool(self: &Arc<Self>, spec: PoolSpec, until: Instant) -> Result<Outcome> {
        self.check_settled(|intent| pool_of(intent) == Some(&spec.name))?;
        let wants = vec![(Key::FreeDisks, Mode::Shared), (Key::Pool(spec.name.clone()), Mode::ExclusiveNow)];
        let guards = self.locks.acquire(wants, until).await?;
        {
            let view = self.view.read();
            if let Some(there) = view.pool_entry(&spec.name) {
                return if there.spec.same_request(&spec) {
                    self.shown_pool(&view, &spec.name, false)
                } else {
                    Err(Error::Conflict {
                        object: format!("pool {}", spec.name),
                        field: "kind",
                        have: there.spec.to_string(),
                        want: spec.to_string(),
                    })
                };
            }
        }
        self.check_media(&spec)?;
        let (pools, ask) = (self.settings.pools.clone(), spec.clone());
        let made = async {
            let pool = run(&self.setup_lane, until, move |d| pools.create(&ask, d)).await?;
            self.list_new_pool(spec.name.clone(), pool, until).await
        };
        self.add_pool(&spec, guards, made, until).await
    }

    /// Keeps a copy of the pools beside the journal: where pools are is the one thing that labels can't
    /// tell, because one must know it to read them. Read when the journal was lost.
    pub(super) async fn copy_pool_list(&self) {
        let specs: Vec<_> = self.view.read().pool_entries().map(|p| p.spec.clone()).collect();
        let dir = self.settings.state_dir.clone();
        let until = Instant::now() + self.settings.settle_deadline;
        let written: CoreOutcome<()> = run(&self.setup_lane, until, move |_| {
            let text = serde_json::to_vec_pretty(&specs).map_err(std::io::Error::other)?;
            let dir = crate::kernel::fs::Dir::open(&dir)?;
            dir.replace(POOL_LIST, &text, true)?;
            dir.sync()
        })
        .await;
        if let Err(f) = written {
            tracing::warn!(error = f.error.chain(), "the copy of the list of pools is out of date");
        }
    }

    /// The copy where the journal has no list. One that can't be read is no reason not to start: somebody is told, and
    /// brings the pools.
    pub(super) async fn pools_of_the_copy(&self) -> Vec<PoolSpec> {
        match self.read_pool_list().await {
            Ok(specs) => specs,
            Err(f) => {
                let reason = f.error.chain();
                tracing::error!(error = reason, "the copy of the list of pools can't be read");
                // What is nonsense is set aside; what only could not be read now stays, and is read at the next start.
                let nonsense = matches!(&f.error, Error::System(e) if e.raw_os_error().is_none());
                let aside = match nonsense && self.journal.is_open() {
                    true => self.set_pool_list_aside().await,
                    false => None,
                };
                self.view.write().pools_unknown = aside.is_none();
                let kept = aside.unwrap_or_else(|| POOL_LIST.into());
                let text = format!(
                    "the copy of the list of pools can't be read ({reason}), and the journal has none: bring the pools \
                     (orlop pool import); it is kept as {kept}"
                );
                self.view.write().raise(POOL_LIST.into(), text);
                Vec::new()
            }
        }
    }

    /// What can't be read is not written over. What it is called now, if it could be renamed.
    async fn set_pool_list_aside(&self) -> Option<String> {
        let aside = format!("{POOL_LIST}.unreadable");
        let (from, to) = (self.settings.state_dir.join(POOL_LIST), self.settings.state_dir.join(&aside));
        let until = Instant::now() + self.settings.settle_deadline;
        let moved: CoreOutcome<()> = run(&self.setup_lane, until, move |_| std::fs::rename(from, to)).await;
        moved.is_ok().then_some(aside)
    }

    /// Somebody may have removed the copy: it is there again before the journal can be lost.
    pub(super) async fn keep_pool_list(self: Arc<Self>) {
        let specs: Vec<_> = self.view.read().pool_entries().map(|p| p.spec.clone()).collect();
        let known = self.view.read().alarms().iter().all(|a| a.subject != POOL_LIST);
        match self.read_pool_list().await {
            Ok(copy) if copy == specs => {}
            // Pools are taken off the list one by one, each in its own change: a start has no reason to.
            Ok(copy) if specs.is_empty() && !copy.is_empty() => {
                let names: Vec<_> = copy.iter().map(|p| p.name.as_str()).collect();
                let text = format!(
                    "the journal knows no pool, and the copy of the list has {}: bring them (orlop pool import), or remove \
                     {POOL_LIST} from the state directory if there are none",
                    names.join(", ")
                );
                self.view.write().raise(POOL_LIST.into(), text);
            }
            _ if known => self.copy_pool_list().await,
            _ => {}
        }
    }

    /// The copy, if there is one.
    pub(super) async fn read_pool_list(&self) -> CoreOutcome<Vec<PoolSpec>> {
        let dir = self.settings.state_dir.clone();
        let until = Instant::now() + self.settings.settle_deadline;
        run(&self.setup_lane, until, move |_| {
            match crate::kernel::fs::Dir::open(&dir)?.read(POOL_LIST, LARGEST_POOL_LIST)? {
                Some(text) => serde_json::from_slice(&text).map_err(std::io::Error::other),
                None => Ok(Vec::new()),
            }
        })
        .await
    }

    /// Takes in a pool that was made or opened, and what is in it: one that was there already may have
    /// volumes.
    async fn add_pool(
        self: &Arc<Self>,
        spec: &PoolSpec,
        guards: Guards,
        open: impl Future<Output = CoreOutcome<(Arc<OpenPool>, Listing)>>,
        until: Instant,
    ) -> Result<Outcome> {
        let act = async {
            let (pool, listing) = open.await?;
            let (pool, listing) = self.take_in(pool, listing, until).await?;
            let known = self.known_as(&pool, spec, until).await?;
            let mut batch = Batch::default();
            batch.put(Table::Pools, known.name.as_str(), &known);
            // Who may use its volumes is said anew: an earlier one of that name is of no concern, nor who was attached
            // when it was lost.
            Journal::note_pool_rebuilt(&mut batch, known.name.as_str());
            let former = self.remove_former(&listing, &mut batch);
            Ok(((pool, listing, known, former), batch))
        };
        let intent = Intent::CreatePool { spec: spec.clone() };
        let added = self.carry_out_with(intent, Batch::default(), guards, act).await?;
        let ((pool, listing, spec, former), _guards) = added;
        self.forget_former(&former);
        let until = Instant::now() + self.settings.settle_deadline;
        self.show_pool(pool.clone(), &spec, listing);
        self.read_capacity(&pool, On::Open, until).await;
        self.read_health(&pool, None, On::Open, until).await;
        self.events.publish(EventKind::PoolCreated, about(&spec.name));
        self.copy_pool_list().await;
        self.shown_pool(&self.view.read(), &spec.name, true)
    }

    /// Those to whom the volumes of a pool that is taken in were attached, when it was lost: not any more.
    fn remove_former(&self, listing: &Listing, batch: &mut Batch) -> Vec<(VolumeId, HostName)> {
        let view = self.view.read();
        let hosts_of = |id| view.hosts_of(id).map(move |host| (id, host.clone()));
        let former: Vec<_> = listing.volumes.iter().flat_map(|stored| hosts_of(stored.label.id)).collect();
        for (id, host) in &former {
            batch.remove(Table::Attachments, &attachment_key(*id, host));
        }
        former
    }

    fn forget_former(&self, former: &[(VolumeId, HostName)]) {
        let mut view = self.view.write();
        former.iter().for_each(|(id, host)| view.detach(*id, host));
    }

    /// Takes in a pool that exists. Its volumes keep what they are; who may use them is said anew here.
    pub(super) async fn import_pool(
        self: &Arc<Self>,
        asked: PoolSpec,
        force: bool,
        until: Instant,
    ) -> Result<Outcome> {
        self.check_settled(|intent| pool_of(intent) == Some(&asked.name))?;
        let wants = vec![(Key::FreeDisks, Mode::Shared), (Key::Pool(asked.name.clone()), Mode::ExclusiveNow)];
        let guards = self.locks.acquire(wants, until).await?;
        {
            let view = self.view.read();
            if let Some(there) = view.pool_entry(&asked.name) {
                if let (Some(have), Some(want)) = (there.spec.guid(), asked.guid())
                    && have != want
                {
                    return Err(Error::Conflict {
                        object: format!("pool {}", asked.name),
                        field: "guid",
                        have: have.to_string(),
                        want: want.to_string(),
                    });
                }
                if there.spec.kind() == asked.kind() {
                    return self.shown_pool(&view, &asked.name, false);
                }
                return Err(Error::Conflict {
                    object: format!("pool {}", asked.name),
                    field: "kind",
                    have: there.spec.to_string(),
                    want: asked.to_string(),
                });
            }
        }
        self.check_media(&asked)?;
        let pools = self.settings.pools.clone();
        let ask = asked.clone();
        let spec =
            run(&self.setup_lane, until, move |d| pools.recognize(&ask, d)).await.map_err(|f| f.error)?;
        let (pools, ask) = (self.settings.pools.clone(), spec.clone());
        let opened = async {
            let pool = run(&self.setup_lane, until, move |d| pools.import(&ask, force, d)).await?;
            self.list_pool(spec.name.clone(), pool, until).await
        };
        self.add_pool(&spec, guards, opened, until).await
    }

    /// What is in a pool that was not this journal's is made ours, or the pool is let go of again.
    async fn take_in(
        &self,
        pool: Arc<OpenPool>,
        listing: Listing,
        until: Instant,
    ) -> CoreOutcome<(Arc<OpenPool>, Listing)> {
        let taken = match self.check_new(&pool.name, &listing) {
            Ok(()) => self.forget_hosts(&pool, listing, until).await,
            Err(error) => Err(error.into()),
        };
        if taken.is_err()
            && let Err(f) = self.on_pool(&pool, On::Make, until, |p, d| p.export(d)).await
        {
            let error = f.error.chain();
            tracing::warn!(pool = %pool.name, error, "it was not taken in, and not let go of");
        }
        Ok((pool, taken?))
    }

    /// No volume that is to come is here already: of two with one id one is a copy of the other, and hosts
    /// would be given now this and now that.
    fn check_new(&self, name: &PoolName, listing: &Listing) -> Result<()> {
        let view = self.view.read();
        let known = listing.volumes.iter().filter_map(|s| Some((&s.label, view.entry(s.label.id)?)));
        let known = known.filter(|(_, here)| here.pool != *name);
        let twice: Vec<_> = known
            .map(|(label, here)| format!("{} ({} in pool {})", label.name, label.id, here.pool))
            .collect();
        if twice.is_empty() {
            return Ok(());
        }
        Err(Error::Precondition {
            object: format!("pool {name}"),
            reason: "has volumes that are here already: one pool is a copy of the other".into(),
            dependants: twice.into_iter().take(LISTED).collect(),
        })
    }

    /// The hosts that labels know are those of another journal. Should ours be lost they would be let in by
    /// what the labels say, so that goes first.
    async fn forget_hosts(
        &self,
        pool: &Arc<OpenPool>,
        mut listing: Listing,
        until: Instant,
    ) -> CoreOutcome<Listing> {
        for stored in listing.volumes.iter_mut().filter(|s| !s.label.hosts.is_empty()) {
            stored.label.hosts.clear();
            let label = stored.label.clone();
            self.on_pool(pool, On::Make, until, move |p, d| p.relabel(&label, d)).await?;
        }
        Ok(listing)
    }

    /// Lets go of a pool, so that another appliance may import it.
    pub(super) async fn export_pool(self: &Arc<Self>, name: PoolName, until: Instant) -> Result<Outcome> {
        self.check_settled(|intent| pool_of(intent) == Some(&name))?;
        // What labels say is all that goes with it.
        let its = self.view.read().volumes_in(&name, usize::MAX).iter().map(|label| label.id).collect();
        let written = tokio::time::timeout_at(until, self.write_labels_among(Some(&its))).await;
        written.map_err(|_| Error::Deadline("writing what its labels say".into()))?;
        let guards = self.locks.acquire(vec![(Key::Pool(name.clone()), Mode::ExclusiveNow)], until).await?;
        self.check_settled(|intent| pool_of(intent) == Some(&name))?;
        let pool = self.open_pool(&name)?;
        let busy = self.view.read().busy_volumes_in(&name, LISTED);
        if !busy.is_empty() {
            return Err(Error::Precondition {
                object: format!("pool {name}"),
                reason: "is in use: detach the hosts of these volumes, or end their copies, first".into(),
                dependants: busy,
            });
        }
        let export = self.on_pool(&pool, On::Make, until, |p, d| p.export(d));
        self.drop_pool(Intent::ExportPool { name: name.clone() }, &name, guards, export).await
    }

    /// Carries out what takes a pool away from here.
    async fn drop_pool(
        self: &Arc<Self>,
        intent: Intent,
        name: &PoolName,
        guards: Guards,
        away: impl Future<Output = CoreOutcome<()>>,
    ) -> Result<Outcome> {
        let act = async {
            away.await?;
            let mut batch = Batch::default();
            batch.remove(Table::Pools, name.as_str());
            Journal::note_pool_rebuilt(&mut batch, name.as_str());
            Ok(((), batch))
        };
        let ((), _guards) = self.carry_out_with(intent, Batch::default(), guards, act).await?;
        self.forget_pool(name);
        self.copy_pool_list().await;
        Ok(Outcome::Gone)
    }

    async fn known_as(&self, pool: &Arc<OpenPool>, spec: &PoolSpec, until: Instant) -> CoreOutcome<PoolSpec> {
        let ask = spec.clone();
        self.on_pool(pool, On::Make, until, move |p, d| p.known_as(&ask, d)).await
    }

    pub(super) async fn delete_pool(self: &Arc<Self>, name: PoolName, until: Instant) -> Result<Outcome> {
        self.check_settled(|intent| pool_of(intent) == Some(&name))?;
        let guards = self.locks.acquire(vec![(Key::Pool(name.clone()), Mode::ExclusiveNow)], until).await?;
        let pool = self.open_pool(&name)?;
        {
            let view = self.view.read();
            let volumes: Vec<_> =
                view.volumes_in(&name, LISTED).into_iter().map(|l| l.name.to_string()).collect();
            if !volumes.is_empty() {
                return Err(Error::Precondition {
                    object: format!("pool {name}"),
                    reason: "has volumes: delete them first".into(),
                    dependants: volumes,
                });
            }
        }
        let remove = self.on_pool(&pool, On::Make, until, |p, d| p.remove(d));
        self.drop_pool(Intent::DeletePool { name: name.clone() }, &name, guards, remove).await
    }

    /// Changes a pool's disks while it is in use: volumes go on being served and made.
    pub(super) async fn change_pool(
        self: &Arc<Self>,
        name: PoolName,
        change: PoolChange,
        until: Instant,
    ) -> Result<Outcome> {
        self.check_settled(|intent| concerns_disks_of(intent, &name))?;
        let mut wants =
            vec![(Key::Pool(name.clone()), Mode::Shared), (Key::Disks(name.clone()), Mode::Exclusive)];
        if matches!(change, PoolChange::Expand { .. } | PoolChange::Replace { .. }) {
            wants.push((Key::FreeDisks, Mode::Shared));
        }
        let guards = self.locks.acquire(wants, until).await?;
        self.check_settled(|intent| concerns_disks_of(intent, &name))?;
        let pool = self.open_pool(&name)?;
        let spec = self.view.read().pool_entry(&name).map(|p| p.spec.clone());
        let spec = spec.ok_or_else(|| Error::NotFound(format!("pool {name}")))?;
        let after = spec.after(&change);
        self.check_media(&after)?;
        let intent = Intent::ChangePool { name: name.clone(), change: change.clone() };
        let act = async {
            let changed = self.on_pool(&pool, On::Make, until, move |p, d| p.change(&change, d)).await?;
            let after = self.known_as(&pool, &after, until).await?;
            let mut batch = Batch::default();
            batch.put(Table::Pools, name.as_str(), &after);
            Ok(((changed, after), batch))
        };
        let ((changed, after), _guards) = self.carry_out_with(intent, Batch::default(), guards, act).await?;
        self.show_changed(&pool, after, until).await;
        self.shown_pool(&self.view.read(), &name, changed == Change::Done)
    }

    async fn show_changed(&self, pool: &Arc<OpenPool>, spec: PoolSpec, until: Instant) {
        let name = spec.name.clone();
        self.view.write().set_spec(spec);
        self.copy_pool_list().await;
        self.read_health(pool, None, On::Make, until).await;
        self.capacity_changed(&name);
    }

    /// Nobody was told whether it was done, so it is: done again it changes nothing.
    pub(super) async fn settle_change_pool(
        self: &Arc<Self>,
        name: &PoolName,
        change: &PoolChange,
        known: Known,
    ) -> CoreOutcome<()> {
        let Some(spec) = self.view.read().pool_entry(name).map(|p| p.spec.clone()) else { return Ok(()) };
        if known == Known::Failed {
            return Ok(());
        }
        let pool = self.open_pool(name)?;
        let until = Instant::now() + self.settings.settle_deadline;
        let ask = change.clone();
        match self.on_pool(&pool, On::Make, until, move |p, d| p.change(&ask, d)).await {
            Ok(_) => {
                let after = self.known_as(&pool, &spec.after(change), until).await?;
                let mut batch = Batch::default();
                batch.put(Table::Pools, name.as_str(), &after);
                self.journal.commit(batch).await?;
                self.show_changed(&pool, after, until).await;
                Ok(())
            }
            Err(Failure { error: Error::Pool(e), late: None }) => {
                tracing::warn!(pool = %name, %change, error = chain(&e), "a change of disks was not carried out");
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }

    /// No other pool stands on what this one does.
    fn check_media(&self, spec: &PoolSpec) -> Result<()> {
        let view = self.view.read();
        let stands = |p: &&PoolEntry| {
            p.spec.name != spec.name && p.spec.media().iter().any(|m| spec.media().contains(m))
        };
        match view.pool_entries().find(stands) {
            None => Ok(()),
            Some(other) => Err(Error::Conflict {
                object: format!("pool {}", other.spec.name),
                field: "directory or disk",
                have: other.spec.to_string(),
                want: format!("it for pool {} too", spec.name),
            }),
        }
    }

    pub(super) fn forget_pool(&self, name: &PoolName) {
        self.pools.write().remove(name);
        self.unread.lock().remove(name);
        let mut view = self.view.write();
        view.remove_pool(name);
        view.clear(&format!("pool/{name}"));
        view.clear(&super::space::alarm_of(name));
        view.clear(&super::health::alarm_of(name));
        drop(view);
        self.events.publish(EventKind::PoolDeleted, about(name));
    }

    /// A pool that was being made: after a crash it stays if it is whole; after an error that the caller
    /// has heard, the pool's own code has cleaned up what it made.
    pub(super) async fn settle_create_pool(
        self: &Arc<Self>,
        spec: &PoolSpec,
        known: Known,
    ) -> CoreOutcome<()> {
        if known == Known::Failed {
            return Ok(());
        }
        let until = Instant::now() + self.settings.settle_deadline;
        match self.bring_up(spec, until).await {
            Ok((pool, listing)) => {
                let (pool, listing) = match self.take_in(pool, listing, until).await {
                    // A copy of a pool that is here, and let go of again: nobody was told that it is ours.
                    Err(Failure { error: error @ Error::Precondition { .. }, .. }) => {
                        tracing::warn!(pool = %spec.name, error = error.chain(), "a pool was not taken in");
                        return Ok(());
                    }
                    taken => taken?,
                };
                let spec = &self.known_as(&pool, spec, until).await?;
                let mut batch = Batch::default();
                batch.put(Table::Pools, spec.name.as_str(), spec);
                let former = self.remove_former(&listing, &mut batch);
                self.journal.commit(batch).await?;
                self.forget_former(&former);
                self.show_pool(pool, spec, listing);
                self.events.publish(EventKind::PoolCreated, about(&spec.name));
                self.copy_pool_list().await;
                Ok(())
            }
            Err(Failure { error: Error::Pool(e), .. }) => {
                tracing::info!(pool = %spec.name, error = chain(&e), "a pool that was being made is not there");
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }

    /// A pool that was being deleted: if it is still there it is a pool as before.
    pub(super) async fn settle_delete_pool(self: &Arc<Self>, name: &PoolName) -> CoreOutcome<()> {
        let Some(spec) = self.view.read().pool_entry(name).map(|p| p.spec.clone()) else { return Ok(()) };
        let until = Instant::now() + self.settings.settle_deadline;
        let there = match self.bring_up(&spec, until).await {
            Ok(_) => true,
            Err(Failure { error: Error::Pool(PoolError::NotFound { .. }), .. }) => false,
            Err(failure) => return Err(failure),
        };
        if !there {
            let pools = self.settings.pools.clone();
            run(&self.setup_lane, until, move |d| pools.clear(&spec, d)).await?;
            let mut batch = Batch::default();
            batch.remove(Table::Pools, name.as_str());
            Journal::note_pool_rebuilt(&mut batch, name.as_str());
            self.journal.commit(batch).await?;
            self.forget_pool(name);
            self.copy_pool_list().await;
        }
        Ok(())
    }

    /// Opens a pool and lists what is in it.
    pub(super) async fn bring_up(
        &self,
        spec: &PoolSpec,
        until: Instant,
    ) -> CoreOutcome<(Arc<OpenPool>, Listing)> {
        let pools = self.settings.pools.clone();
        let ask = spec.clone();
        let pool = run(&self.setup_lane, until, move |d| pools.open(&ask, d)).await?;
        self.list_pool(spec.name.clone(), pool, until).await
    }

    async fn list_pool(
        &self,
        name: PoolName,
        pool: Box<dyn Pool>,
        until: Instant,
    ) -> CoreOutcome<(Arc<OpenPool>, Listing)> {
        let open = self.start_lanes(name, pool)?;
        let listing = self.on_pool(&open, On::Make, until, |p, d| p.list(d)).await?;
        Ok((open, listing))
    }

    /// As `list_pool`; a new pool that can't be listed is removed again, unless there is something in it.
    async fn list_new_pool(
        &self,
        name: PoolName,
        pool: Box<dyn Pool>,
        until: Instant,
    ) -> CoreOutcome<(Arc<OpenPool>, Listing)> {
        let open = self.start_lanes(name, pool)?;
        match self.on_pool(&open, On::Make, until, |p, d| p.list(d)).await {
            Ok(listing) => Ok((open, listing)),
            Err(failure) => {
                if let Err(f) = self.on_pool(&open, On::Make, until, |p, d| p.remove(d)).await {
                    tracing::warn!(pool = %open.name, error = f.error.chain(), "a new pool that can't be listed stays");
                }
                Err(failure)
            }
        }
    }

    /// Puts a pool and its volumes into the view.
    pub(super) fn show_pool(&self, open: Arc<OpenPool>, spec: &PoolSpec, listing: Listing) {
        let name = spec.name.clone();
        let (granularity, features) = (open.pool.granularity(), open.pool.features());
        self.pools.write().insert(name.clone(), open);
        self.note_lost_keys(listing.volumes.iter().map(|v| &v.label));
        let mut view = self.view.write();
        let mut entry = PoolEntry::new(spec.clone(), PoolState::Online, None, granularity);
        entry.features = Some(features);
        view.put_pool(entry);
        for stored in listing.volumes {
            let label = stored.label;
            view.put_volume(VolumeEntry {
                label,
                pool: name.clone(),
                state: orlop_api::VolumeState::Ready,
                reason: None,
            });
        }
        for id in listing.locked {
            // Where the key is here it is loaded when the volume is opened.
            view.set_locked(id, self.settings.keys.get(id).is_none());
        }
        for label in listing.snapshots {
            view.put_snapshot(SnapshotEntry { label, pool: name.clone(), stuck: None, paused: None });
        }
        drop(view);
        self.note_strays(&name, &listing.strays);
        self.capacity_changed(&name);
    }

    /// Shows a pool that could not be opened.
    pub(super) fn show_missing(&self, spec: &PoolSpec, reason: &str) {
        let mut view = self.view.write();
        let entry = PoolEntry::new(spec.clone(), PoolState::Missing, Some(reason.to_string()), ByteSize::MIB);
        view.put_pool(entry);
        view.raise(format!("pool/{}", spec.name), format!("it can't be opened and is tried again: {reason}"));
    }

    /// Tries to open a missing pool until it succeeds or is gone, less and less often.
    pub(super) async fn find_missing(self: Arc<Self>, spec: PoolSpec) {
        let mut pause = Duration::from_secs(2);
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.disks_bell.notified() => {}
            }
            pause = (pause * 2).min(Duration::from_secs(60));
            let until = Instant::now() + self.settings.settle_deadline;
            let Ok(_guards) =
                self.locks.acquire(vec![(Key::Pool(spec.name.clone()), Mode::Exclusive)], until).await
            else {
                continue;
            };
            if self.view.read().pool_entry(&spec.name).is_none_or(|p| p.state == PoolState::Online) {
                return;
            }
            match self.bring_up(&spec, until).await {
                Ok((open, listing)) => {
                    tracing::info!(pool = %spec.name, "a missing pool is back");
                    // Before anybody can attach: an exclusive attachment is to cut off those whom labels know, too.
                    self.rebuild_pool(&spec.name, listing.volumes.iter().map(|v| v.label.clone()).collect())
                        .await;
                    self.show_pool(open.clone(), &spec, listing);
                    self.mark_outdated_labels();
                    if let Err(error) = self.settle_tenants().await {
                        tracing::warn!(error = error.chain(), "whose hosts are could not be written down");
                    }
                    drop(_guards);
                    self.restore_exports_of(&open).await;
                    self.resume_copies();
                    return;
                }
                Err(f) => {
                    let reason = f.error.chain();
                    tracing::warn!(pool = %spec.name, error = reason, "a pool is still missing");
                    self.show_missing(&spec, &reason);
                    if let Some(late) = f.late {
                        let _ = late.await;
                    }
                }
            }
        }
    }

    fn shown_pool(&self, view: &super::View, name: &PoolName, changed: bool) -> Result<Outcome> {
        // Pools are the administrator's to make and to change.
        let pool = view
            .pool(&Principal::admin("daemon"), name)
            .ok_or_else(|| Error::NotFound(format!("pool {name}")))?;
        Ok(Outcome::Pool { pool, changed })
    }
}

fn pool_of(intent: &Intent) -> Option<&PoolName> {
    match intent {
        Intent::CreatePool { spec } => Some(&spec.name),
        Intent::DeletePool { name } | Intent::ExportPool { name } => Some(name),
        other => other.pool(),
    }
}

pub(super) fn concerns_disks_of(intent: &Intent, pool: &PoolName) -> bool {
    match intent {
        Intent::CreatePool { spec } => spec.name == *pool,
        Intent::DeletePool { name } | Intent::ExportPool { name } | Intent::ChangePool { name, .. } => {
            name == pool
        }
        _ => false,
    }
}

fn about(name: &PoolName) -> Subject {
    Subject { pool: Some(name.clone()), ..Subject::default() }
}
