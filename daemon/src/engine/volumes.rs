//! Volumes: create, from nothing or from a source; delete, now or when nothing depends on them. What is
//! changed in between is in `update`.

use std::sync::Arc;

use orlop_api::{
    BlockSize, ByteSize, Encryption, EventKind, FilesystemKind, PoolName, Properties, Property, Protocol,
    Provisioning, SnapshotId, SourceMode, Tenant, VolumeCreate, VolumeId, VolumeKind, VolumeOrigin,
    VolumeRef, VolumeSource, VolumeState, When,
};
use tokio::time::Instant;

use super::action::{Outcome, Principal};
use super::core::{Core, On, OpenPool, Outcome as CoreOutcome};
use super::error::{Error, Result};
use super::intent::{Intent, about_volume};
use super::locks::{Key, Mode};
use crate::journal::Batch;
use crate::kernel::Deadline;
use crate::model::{Label, LabelSource, SnapshotKey, SnapshotLabel};
use crate::pool::{self, Opened, Pool, Stored};

impl Core {
    pub(super) async fn create_volume(
        self: &Arc<Self>,
        who: &Principal,
        ask: VolumeCreate,
        until: Instant,
    ) -> Result<Outcome> {
        self.check_size(&ask.pool, ask.size, &ask.properties)?;
        check_source(&ask)?;
        // What is made of what a tenant has is that tenant's, with the same key perhaps.
        let who = &self.tenant_of_source(who, &ask).map_or_else(|| who.clone(), |tenant| who.within(&tenant));
        let by_name = |intent: &Intent| match intent {
            Intent::CreateVolume { label, .. } | Intent::AdoptVolume { label, .. } => {
                label.tenant == who.tenant && label.name == ask.name
            }
            _ => false,
        };
        self.check_settled(by_name)?;
        let mut wants = vec![
            (Key::Pool(ask.pool.clone()), Mode::Shared),
            (Key::Name(who.tenant.clone(), ask.name.clone()), Mode::Exclusive),
        ];
        // A source that is gone is no error yet: the volume may have been made from it before.
        let source = ask.source.as_ref().and_then(|s| self.find_source(who, s).ok());
        if let Some(source) = &source {
            wants.push(match &source.of {
                SourceOf::Snapshot(key) => (Key::Snapshot(key.id), Mode::Shared),
                SourceOf::Volume(label) => (Key::Backing(label.id), Mode::Exclusive),
            });
            if source.pool != ask.pool {
                wants.push((Key::Pool(source.pool.clone()), Mode::Shared));
            }
        }
        let mut guards = self.locks.acquire(wants, until).await?;
        self.check_settled(by_name)?;
        // Also where it is not to be known of: a name is one volume's.
        let there = self.view.read().named(&who.tenant, &ask.name);
        if let Some(id) = there {
            return self.same_volume(who, id, &ask);
        }
        let pool = self.open_pool(&ask.pool)?;
        let kind = self.view.read().pool_entry(&ask.pool).map(|p| p.spec.kind());
        kind.map_or(Ok(()), |kind| self.check_room_on(kind))?;
        let mut label = Label::new(VolumeId::mint(), who.tenant.clone(), &ask);
        (label.kind, label.filesystem) = match ask.source {
            None => (label.kind, a_filesystem(&pool, &ask)),
            // What its source is, as soon as that is known.
            Some(_) => (VolumeKind::Block, None),
        };
        if ask.source.is_none() {
            self.check_protocol(ask.protocol, label.kind)?;
        }
        let mut key = self.new_key(&ask, label.id)?;
        label.encryption = key.as_ref().map(|(encryption, _)| *encryption);
        pool::check_properties(&pool.name, pool.pool.features(), None, &label)?;
        check_least(&label)?;
        // What is being made is not taken for an orphan.
        guards.join(self.locks.acquire(vec![(Key::Backing(label.id), Mode::Exclusive)], until).await?);
        let mut taken = None;
        if let Some(wanted) = &ask.source {
            // Again, now that nobody can take it away.
            let source = self.find_source(who, wanted)?;
            self.check_fits(&ask, wanted.mode, &source)?;
            check_kind(&ask, source.filesystem)?;
            if wanted.mode == SourceMode::Linked {
                // It shares them, so it has its source's, and a size that is a whole number of them.
                label.properties.block_size = source.block_size;
                if key.take().is_some() {
                    let reason = "is that of its source, with the source's key: a copy can have its own";
                    return Err(Error::Invalid { field: "encryption", reason: reason.into() });
                }
                label.encryption = source.encryption;
                self.check_size(&ask.pool, label.size, &label.properties)?;
            }
            let snapshot = match source.of {
                SourceOf::Snapshot(key) => key,
                SourceOf::Volume(of) => {
                    let snapshot = snapshot_for(&of, &label)?;
                    let key = snapshot.key;
                    taken = Some((self.open_pool(&source.pool)?, snapshot));
                    key
                }
            };
            label.source = Some(LabelSource { snapshot, mode: wanted.mode });
            label.copied = (wanted.mode == SourceMode::Copied).then_some(ByteSize(0));
            label.filesystem = source.filesystem;
            label.kind = if source.filesystem.is_some() { VolumeKind::Filesystem } else { VolumeKind::Block };
            self.check_protocol(ask.protocol, label.kind)?;
            label.protocol = ask.protocol.unwrap_or(Protocol::of(label.kind));
            // Where a copy goes may not have it.
            pool::check_properties(&pool.name, pool.pool.features(), None, &label)?;
        }
        if let Some((_, snapshot)) = &taken {
            // It is deleted from the start, and nothing is seen to need it before the volume is there.
            let wants = vec![(Key::Snapshot(snapshot.key.id), Mode::Exclusive)];
            guards.join(self.locks.acquire(wants, until).await?);
        }
        let thick = if ask.provisioning == Provisioning::Thick { ask.size } else { ByteSize(0) };
        self.check_space(&pool, thick, until).await?;
        if let Some((from, _)) = &taken
            && from.name != pool.name
        {
            self.check_space(from, ByteSize(0), until).await?;
        }

        let intent = Intent::CreateVolume { pool: ask.pool.clone(), label: label.clone() };
        // Durable before there is anything that is of no use without it.
        let first = key.map(|key| self.keep_key(label.id, key)).unwrap_or_default();
        let act = async {
            if let Some((from, snapshot)) = taken {
                self.take_for_copy(&from, snapshot, until).await?;
            }
            Ok((self.make(&pool, label, until).await?, Batch::default()))
        };
        let made = self.carry_out_with(intent, first, guards, act).await;
        // Also of what failed: it may have taken room for a while.
        self.capacity_changed(&ask.pool);
        let (label, guards) = made?;
        let id = label.id;
        self.show_volume(ask.pool.clone(), label, EventKind::VolumeCreated);
        let shown = self.shown(id, true);
        // What rings below looks at what these hold.
        drop(guards);
        self.start_copy(id);
        self.spent_bell.notify_one();
        shown
    }

    /// Refuses what can't be served so, before it is made. What was not asked for need not be.
    fn check_protocol(&self, ask: Option<Protocol>, kind: VolumeKind) -> Result<()> {
        let Some(protocol) = ask else { return Ok(()) };
        if protocol.kind() != kind {
            let reason =
                format!("is {}, which serves no volume of kind {}", protocol.as_str(), kind.as_str());
            return Err(Error::Invalid { field: "protocol", reason });
        }
        self.check_served(protocol)
    }

    /// What a source is, if volumes can be made from it now.
    fn find_source(&self, who: &Principal, ask: &VolumeSource) -> Result<Source> {
        let view = self.view.read();
        match (&ask.snapshot, &ask.volume) {
            (Some(snapshot), _) => {
                let id = view.resolve_snapshot(who, snapshot);
                let entry = id.and_then(|id| view.snapshot_entry(id)).filter(|s| !s.label.deleted);
                let entry = entry.ok_or_else(|| view.no_snapshot(who, snapshot))?;
                if let Some(reason) = &entry.stuck {
                    return Err(Error::Busy(format!("snapshot {snapshot} ({reason})")));
                }
                let of = SourceOf::Snapshot(entry.label.key);
                let volume = view.entry(entry.label.key.volume);
                let encryption = entry.label.encryption.or(volume.and_then(|v| v.label.encryption));
                if view.is_locked_key(encryption) {
                    return Err(Error::Precondition {
                        object: format!("the volume of snapshot {snapshot}"),
                        reason: "is locked: bring its key first".into(),
                        dependants: Vec::new(),
                    });
                }
                Ok(Source {
                    pool: entry.pool.clone(),
                    size: entry.label.size,
                    filesystem: entry.label.filesystem,
                    block_size: volume.and_then(|v| v.label.properties.block_size),
                    encryption,
                    of,
                })
            }
            (None, Some(volume)) => {
                let id = view.resolve(who, volume).ok_or_else(|| view.no_volume(who, volume))?;
                let entry = view.entry(id).ok_or_else(|| view.no_volume(who, volume))?.clone();
                drop(view);
                self.check_usable(id)?;
                Ok(Source {
                    pool: entry.pool,
                    size: entry.label.size,
                    filesystem: entry.label.filesystem,
                    block_size: entry.label.properties.block_size,
                    encryption: entry.label.encryption,
                    of: SourceOf::Volume(Box::new(entry.label)),
                })
            }
            (None, None) => Err(Error::Invalid { field: "source", reason: "must name one".into() }),
        }
    }

    fn check_fits(&self, ask: &VolumeCreate, mode: SourceMode, source: &Source) -> Result<()> {
        if ask.size < source.size {
            let reason = format!("is {}, less than its source's {}", ask.size.0, source.size.0);
            return Err(Error::Invalid { field: "size", reason });
        }
        if mode == SourceMode::Linked && source.pool != ask.pool {
            let reason = format!("is in pool {}: a linked clone can't leave it, a copy can", source.pool);
            return Err(Error::Invalid { field: "source", reason });
        }
        Ok(())
    }

    /// Takes the snapshot that a volume is made from when a volume was asked for as the source. It is
    /// deleted from the start, so it goes when nothing depends on it.
    async fn take_for_copy(
        &self,
        pool: &Arc<OpenPool>,
        label: SnapshotLabel,
        until: Instant,
    ) -> CoreOutcome<()> {
        let ask = label.clone();
        let snapped = self.on_pool(pool, On::Make, until, move |p, d| p.snapshot(&[ask], d)).await?;
        self.show_snapshot(pool.name.clone(), label, snapped.paused, EventKind::SnapshotCreated);
        Ok(())
    }

    /// Makes a backing and reads it back from the pool (R5).
    async fn make(&self, pool: &Arc<OpenPool>, label: Label, until: Instant) -> CoreOutcome<Label> {
        let want = label.clone();
        let (stored, opened) = self
            .on_pool(pool, On::Make, until, move |p, d| {
                p.create(&label, d)?;
                let opened = open_once(p, &label, d)?;
                Ok::<_, pool::PoolError>((p.get(label.id, d)?, opened))
            })
            .await?;
        verify(&want, stored)?;
        verify_opened(&want, opened)?;
        Ok(want)
    }

    /// The same request again gives the same answer; another specification is a conflict.
    fn same_volume(&self, who: &Principal, id: VolumeId, ask: &VolumeCreate) -> Result<Outcome> {
        let view = self.view.read();
        let volume = view.volume(id).ok_or_else(|| Error::NotFound(format!("volume {id}")))?;
        if !who.uses(&volume.pool) {
            return Err(Error::Conflict {
                object: format!("volume {}", ask.name),
                field: "pool",
                have: format!("one that {} may not use", who.name),
                want: ask.pool.to_string(),
            });
        }
        let have = volume.source.as_ref();
        // A linked clone has the block size of its source without having asked for it.
        let linked = have.is_some_and(|o| o.mode == SourceMode::Linked);
        let properties = Property::ALL.iter().filter(|p| !linked || **p != Property::BlockSize).map(|p| {
            let shown = |of: &Properties| of.get(*p).unwrap_or_else(|| "the pool's default".into());
            (p.field(), shown(&volume.properties), shown(&ask.properties))
        });
        // What was not said is as the source had it.
        let kind = ask.kind.or_else(|| ask.source.is_none().then(VolumeKind::default));
        let system = |f: Option<FilesystemKind>| f.map(|f| word(&f)).unwrap_or_else(|| "none".into());
        let unlock = |u: Option<orlop_api::Unlock>| u.map_or("none", orlop_api::Unlock::as_str).to_string();
        let have_unlock = unlock(volume.encryption.map(|e| e.unlock));
        // A linked clone was not asked.
        let want_unlock = match &ask.encryption {
            None if linked => have_unlock.clone(),
            asked => unlock(asked.as_ref().map(|e| e.unlock)),
        };
        let differs = [
            ("kind", word(&volume.kind), word(&kind.unwrap_or(volume.kind))),
            ("filesystem", system(volume.filesystem), system(ask.filesystem.or(volume.filesystem))),
            ("pool", volume.pool.to_string(), ask.pool.to_string()),
            ("size", volume.size.0.to_string(), ask.size.0.to_string()),
            ("provisioning", word(&volume.provisioning), word(&ask.provisioning)),
            ("protocol", word(&volume.protocol), word(&ask.protocol.unwrap_or(volume.protocol))),
            ("encryption", have_unlock, want_unlock),
            ("source", shown_origin(have), view.shown_source(who, ask.source.as_ref(), have)),
        ];
        match differs.into_iter().chain(properties).find(|(_, have, want)| have != want) {
            None => self.check_same_key(ask, id).map(|()| Outcome::Volume { volume, changed: false }),
            Some((field, have, want)) => {
                Err(Error::Conflict { object: format!("volume {}", ask.name), field, have, want })
            }
        }
    }

    pub(super) async fn delete_volume(
        self: &Arc<Self>,
        who: &Principal,
        volume: VolumeRef,
        when: When,
        until: Instant,
    ) -> Result<Outcome> {
        let id = self.find(who, &volume)?;
        self.check_settled(|intent| intent.touches(id))?;
        // Before the locks: a copy needs one of them to end.
        self.stop_copy(id, until).await?;
        let deleted = self.delete_stopped(who, &volume, id, when, until).await;
        if deleted.is_err() {
            self.start_copy(id);
        }
        deleted
    }

    /// Deletes a volume that nothing is being copied into.
    pub(super) async fn delete_stopped(
        self: &Arc<Self>,
        who: &Principal,
        volume: &VolumeRef,
        id: VolumeId,
        when: When,
        until: Instant,
    ) -> Result<Outcome> {
        let (tenant, name) = {
            let view = self.view.read();
            let label = &view.entry(id).ok_or_else(|| view.no_volume(who, volume))?.label;
            (label.tenant.clone(), label.name.clone())
        };
        let wants = vec![
            (Key::Name(tenant, name), Mode::Exclusive),
            (Key::Volume(id), Mode::Exclusive),
            (Key::Backing(id), Mode::Exclusive),
        ];
        let guards = self.locks.acquire(wants, until).await?;
        self.check_settled(|intent| intent.touches(id))?;
        let (entry, hosts, dependants) = {
            let view = self.view.read();
            let entry = view.entry(id).ok_or_else(|| view.no_volume(who, volume))?.clone();
            let hosts: Vec<_> = view.hosts_of(id).map(ToString::to_string).collect();
            (entry, hosts, view.dependants_of_volume(id))
        };
        let pool = entry.pool.clone();
        if !hosts.is_empty() {
            return Err(Error::Precondition {
                object: format!("volume {volume}"),
                reason: "is attached: detach these hosts first".into(),
                dependants: hosts,
            });
        }
        let open = self.open_pool(&pool)?;
        if !dependants.is_empty() {
            if when == When::Now {
                return Err(Error::Precondition {
                    object: format!("volume {volume}"),
                    reason: "is needed: delete these first, or it when it is unused".into(),
                    dependants,
                });
            }
            if !entry.label.deleted {
                let label = Label { deleted: true, ..entry.label };
                let ask = label.clone();
                let marked = self.on_pool(&open, On::Make, until, move |p, d| p.relabel(&ask, d)).await;
                marked.map_err(|f| f.error)?;
                self.show_volume(pool, label, EventKind::VolumeState);
            }
            return Ok(Outcome::Doomed);
        }
        let spent = self.view.read().spent_snapshots_of(id);
        for key in spent {
            self.destroy_snapshot(key, until).await?;
        }

        let key = entry.label.encryption.and_then(|e| self.spent_key(e.key_of, id));
        let intent = Intent::DeleteVolume { pool: pool.clone(), volume: id };
        let destroy = self.on_pool(&open, On::Make, until, move |p, d| {
            p.destroy(id, d)?;
            p.get(id, d)
        });
        let act = async {
            verify_gone(&format!("volume {id}"), destroy.await?.is_none())?;
            Ok(((), self.forget_key(key)))
        };
        let ((), _guards) = self.carry_out_with(intent, Batch::default(), guards, act).await?;
        self.view.write().remove_volume(id);
        self.events.publish(EventKind::VolumeDeleted, about_volume(id));
        self.spent_bell.notify_one();
        self.capacity_changed(&pool);
        Ok(Outcome::Gone)
    }

    /// The id behind a reference, as the principal may know of it.
    pub(super) fn find(&self, who: &Principal, volume: &VolumeRef) -> Result<VolumeId> {
        let view = self.view.read();
        view.resolve(who, volume).ok_or_else(|| view.no_volume(who, volume))
    }

    /// Whose that is from which a volume is to be made.
    fn tenant_of_source(&self, who: &Principal, ask: &VolumeCreate) -> Option<Tenant> {
        let view = self.view.read();
        let source = ask.source.as_ref()?;
        let snapshot = source.snapshot.as_ref().and_then(|s| view.resolve_snapshot(who, s));
        let snapshot = snapshot.and_then(|id| view.snapshot_entry(id)).map(|s| s.label.tenant.clone());
        let volume =
            || source.volume.as_ref().and_then(|v| view.resolve(who, v)).and_then(|id| view.entry(id));
        snapshot.or_else(|| volume().map(|v| v.label.tenant.clone()))
    }

    /// Whose a volume is.
    pub(super) fn tenant_of(&self, who: &Principal, id: VolumeId) -> Result<Tenant> {
        let view = self.view.read();
        let entry = view.entry(id).ok_or_else(|| view.no_volume(who, &VolumeRef::Id(id)))?;
        Ok(entry.label.tenant.clone())
    }

    /// Refuses what a backing can't do that is missing, not whole yet, or on its way out.
    pub(super) fn check_usable(&self, id: VolumeId) -> Result<()> {
        let view = self.view.read();
        let Some(v) = view.entry(id) else { return Ok(()) };
        match view.state_of(v) {
            VolumeState::Missing => Err(Error::Unavailable(format!(
                "volume {id} is missing: {}",
                v.reason.as_deref().unwrap_or("its pool does not have it")
            ))),
            VolumeState::Locked => Err(Error::Precondition {
                object: format!("volume {id}"),
                reason: "is locked: bring its key first".into(),
                dependants: Vec::new(),
            }),
            VolumeState::Deleting => Err(Error::Precondition {
                object: format!("volume {id}"),
                reason: "was deleted, and goes when nothing depends on it any more".into(),
                dependants: view.dependants_of_volume(id),
            }),
            _ if v.label.copied.is_some() => {
                let progress = view.volume(id).and_then(|v| v.progress);
                let far = progress.map(|p| format!(" ({} of {})", p.done, p.total)).unwrap_or_default();
                Err(Error::Busy(format!("volume {id}: its content is being copied{far}")))
            }
            _ => Ok(()),
        }
    }

    /// A size is a whole number of the pool's granularity and of the volume's blocks.
    pub(super) fn check_size(&self, pool: &PoolName, size: ByteSize, properties: &Properties) -> Result<()> {
        let granularity = self.view.read().pool_entry(pool).map(|p| p.granularity);
        let granularity = granularity.ok_or_else(|| Error::NotFound(format!("pool {pool}")))?;
        let unit = pool::size_unit(properties, granularity);
        let wrong = |reason| Err(Error::Invalid { field: "size", reason });
        if size.0 == 0 {
            return wrong("must not be 0".into());
        }
        if !size.is_multiple_of(unit) {
            let whose = if unit == granularity { "the pool's granularity" } else { "its block size" };
            return wrong(format!("is {}, not a multiple of {whose} of {}", size.0, unit.0));
        }
        Ok(())
    }

    pub(super) fn shown(&self, id: VolumeId, changed: bool) -> Result<Outcome> {
        let volume = self.view.read().volume(id);
        volume
            .map(|volume| Outcome::Volume { volume, changed })
            .ok_or_else(|| Error::NotFound(format!("volume {id}")))
    }
}

/// What a volume is to be made from.
struct Source {
    pool: PoolName,
    size: ByteSize,
    /// What it is, if it is not a disk.
    filesystem: Option<FilesystemKind>,
    /// Of its blocks, if that is not the pool's default.
    block_size: Option<BlockSize>,
    encryption: Option<Encryption>,
    of: SourceOf,
}

enum SourceOf {
    Snapshot(SnapshotKey),
    Volume(Box<Label>),
}

fn check_source(ask: &VolumeCreate) -> Result<()> {
    if ask.filesystem.is_some() && ask.kind != Some(VolumeKind::Filesystem) {
        let reason = "is for volumes of kind filesystem".into();
        return Err(Error::Invalid { field: "filesystem", reason });
    }
    let Some(source) = &ask.source else { return Ok(()) };
    let wrong = |field, reason: &str| Err(Error::Invalid { field, reason: reason.into() });
    if source.snapshot.is_some() == source.volume.is_some() {
        return wrong("source", "must be one snapshot or one volume");
    }
    if source.mode == SourceMode::Linked && ask.provisioning == Provisioning::Thick {
        return wrong("provisioning", THICK_CLONE);
    }
    if source.mode == SourceMode::Linked && ask.properties.block_size.is_some() {
        let reason = "is that of its source in a linked clone, which shares its blocks: copy instead";
        return wrong(Property::BlockSize.field(), reason);
    }
    Ok(())
}

/// The file system of a new volume that is one: the pool's own unless another is asked for. Whether the pool has
/// it is for its rules to say.
fn a_filesystem(pool: &OpenPool, ask: &VolumeCreate) -> Option<FilesystemKind> {
    let wanted = ask.kind == Some(VolumeKind::Filesystem);
    let own = || pool.pool.features().filesystems.first().copied();
    ask.filesystem.or_else(own).filter(|_| wanted)
}

/// A volume that begins with the content of another is what that is.
fn check_kind(ask: &VolumeCreate, source: Option<FilesystemKind>) -> Result<()> {
    let is = source.map_or(VolumeKind::Block, |_| VolumeKind::Filesystem);
    if let Some(kind) = ask.kind.filter(|k| *k != is) {
        let reason = format!("is {}, and its source is of kind {}", kind.as_str(), is.as_str());
        return Err(Error::Invalid { field: "kind", reason });
    }
    match (ask.filesystem, source) {
        (Some(wanted), Some(has)) if wanted != has => {
            let reason = format!("is {}, and its source has {}", wanted.as_str(), has.as_str());
            Err(Error::Invalid { field: "filesystem", reason })
        }
        _ => Ok(()),
    }
}

/// Refuses a file system that is smaller than its kind can be.
fn check_least(label: &Label) -> Result<()> {
    let Some(filesystem) = label.filesystem else { return Ok(()) };
    let least = pool::least_size(filesystem);
    if label.size >= least {
        return Ok(());
    }
    let reason = format!("is {}, and {} takes at least {}", label.size.0, filesystem.as_str(), least.0);
    Err(Error::Invalid { field: "size", reason })
}

/// Opens a new file system once and closes it: what can't be mounted was not made. One that is still to be
/// copied is looked at when it is whole. Nothing of a disk: its host does that.
pub(super) fn open_once(p: &dyn Pool, label: &Label, d: &Deadline) -> pool::Result<Option<Opened>> {
    if label.kind == VolumeKind::Block || label.copied.is_some() {
        return Ok(None);
    }
    let opened = p.open(label.id, d);
    // Also what could not be opened to the end.
    let closed = p.close(label.id, d);
    let opened = opened?;
    closed.map(|()| Some(opened))
}

/// What was opened is a directory, and as large as the volume.
pub(super) fn verify_opened(want: &Label, opened: Option<Opened>) -> Result<()> {
    let found = match opened {
        Some(o) if o.device().is_some() => "a device and no directory".into(),
        Some(o) if o.size != want.size => format!("a file system of {} bytes", o.size.0),
        _ => return Ok(()),
    };
    Err(Error::Unverified { object: format!("volume {}", want.id), found })
}

/// Why a clone is thin, and stays so.
pub(super) const THICK_CLONE: &str = "is thick, and a linked clone shares its blocks: copy instead";

/// The label of a snapshot that serves only to make one volume from another.
fn snapshot_for(of: &Label, new: &Label) -> Result<SnapshotLabel> {
    let name = format!("for-{}", new.id).parse().map_err(|_| Error::Died)?;
    Ok(SnapshotLabel { deleted: true, ..SnapshotLabel::new(of, SnapshotId::mint(), name, None) })
}

/// A volume's origin in words, to be compared.
pub(super) fn shown_origin(origin: Option<&VolumeOrigin>) -> String {
    match origin {
        None => "zeros".into(),
        Some(o) => format!("{} from snapshot {} of volume {}", word(&o.mode), o.snapshot, o.volume),
    }
}

/// What was read back is what was asked for.
pub(super) fn verify(want: &Label, stored: Option<Stored>) -> Result<()> {
    let found = match stored {
        None => "nothing".into(),
        Some(s) if s.label != *want => "another label".into(),
        Some(s) if s.size != want.size => format!("{} bytes", s.size.0),
        Some(s) if s.filesystem != want.filesystem => "another file system".into(),
        Some(s) if s.provisioning != want.provisioning => format!("a {} volume", word(&s.provisioning)),
        Some(s) if s.properties != want.properties => {
            format!("the properties {:?}", s.properties.to_string())
        }
        Some(_) => return Ok(()),
    };
    Err(Error::Unverified { object: format!("volume {}", want.id), found })
}

/// What was destroyed is not there any more (R8).
pub(super) fn verify_gone(object: &str, gone: bool) -> CoreOutcome<()> {
    if gone {
        return Ok(());
    }
    Err(Error::Unverified { object: object.into(), found: "it is still there".into() }.into())
}

/// A wire enum's spelling.
pub(super) fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}
