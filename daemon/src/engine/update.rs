//! What is changed of a volume that is there: its size, how its space is reserved, its properties.

use std::sync::Arc;

use orlop_api::{ByteSize, EventKind, Provisioning, SourceMode, VolumeId, VolumeRef, VolumeUpdate};
use tokio::time::Instant;

use super::action::{Outcome, Principal};
use super::core::{Core, On, OpenPool, Outcome as CoreOutcome};
use super::error::{Error, Result};
use super::intent::{Intent, about_volume};
use super::locks::{Key, Mode};
use super::volumes::{THICK_CLONE, verify};
use crate::kernel::Deadline;
use crate::model::Label;
use crate::pool::{self, Pool};

impl Core {
    pub(super) async fn update_volume(
        self: &Arc<Self>,
        who: &Principal,
        volume: VolumeRef,
        ask: VolumeUpdate,
        until: Instant,
    ) -> Result<Outcome> {
        if ask == VolumeUpdate::default() {
            let reason = "or provisioning or properties must be given: this changes nothing";
            return Err(Error::Invalid { field: "size", reason: reason.into() });
        }
        let id = self.find(who, &volume)?;
        self.check_settled(|intent| intent.touches(id))?;
        let wants = vec![(Key::Volume(id), Mode::Exclusive), (Key::Backing(id), Mode::Exclusive)];
        let guards = self.locks.acquire(wants, until).await?;
        self.check_settled(|intent| intent.touches(id))?;
        let entry = {
            let view = self.view.read();
            view.entry(id).cloned().ok_or_else(|| view.no_volume(who, &volume))?
        };
        self.check_usable(id)?;
        let pool = self.open_pool(&entry.pool)?;
        let have = entry.label;
        let label = Label {
            size: ask.size.unwrap_or(have.size),
            provisioning: ask.provisioning.unwrap_or(have.provisioning),
            properties: have.properties.with(ask.properties),
            ..have.clone()
        };
        self.check_size(&entry.pool, label.size, &label.properties)?;
        if label.size < have.size {
            let (is, present) = (label.size.0, have.size.0);
            let reason = format!("is {is}, less than the present {present}: volumes do not shrink");
            return Err(Error::Invalid { field: "size", reason });
        }
        if label == have {
            return self.shown(id, false);
        }
        pool::check_properties(&pool.name, pool.pool.features(), Some(&have), &label)?;
        self.check_reservation(&pool, &have, &label, until).await?;

        let (grows, sets) = (label.size != have.size, Label { size: have.size, ..label.clone() } != have);
        let (name, want) = (entry.pool, label.clone());
        let intent = match sets {
            true => Intent::SetVolume { pool: name.clone(), label },
            false => Intent::ResizeVolume { pool: name.clone(), label },
        };
        let changed = self.carry_out(intent, guards, self.change(&pool, want, sets, until)).await;
        // Also of what failed: a part of it may be so.
        self.capacity_changed(&name);
        let (label, _guards) = changed?;
        let kind = if grows { EventKind::VolumeResized } else { EventKind::VolumeChanged };
        self.show_volume(name, label, kind);
        if grows && sets {
            self.events.publish(EventKind::VolumeChanged, about_volume(id));
        }
        self.shown(id, true)
    }

    /// Refuses what there is no room for. Properties alone need none, and can be changed in a full pool.
    async fn check_reservation(
        &self,
        pool: &Arc<OpenPool>,
        have: &Label,
        want: &Label,
        until: Instant,
    ) -> Result<()> {
        let becomes_thick =
            (have.provisioning, want.provisioning) == (Provisioning::Thin, Provisioning::Thick);
        if becomes_thick && have.source.is_some_and(|s| s.mode == SourceMode::Linked) {
            return Err(Error::Invalid { field: "provisioning", reason: THICK_CLONE.into() });
        }
        if want.size == have.size && !becomes_thick {
            return Ok(());
        }
        let more = match (becomes_thick, want.provisioning) {
            // What has been written already counts too: how much that is only the pool knows.
            (true, _) => want.size,
            (false, Provisioning::Thick) => ByteSize(want.size.bytes() - have.size.bytes()),
            (false, Provisioning::Thin) => ByteSize(0),
        };
        self.check_space(pool, more, until).await
    }

    /// Changes a backing and reads it back from the pool (R5).
    async fn change(
        &self,
        pool: &Arc<OpenPool>,
        want: Label,
        sets: bool,
        until: Instant,
    ) -> CoreOutcome<Label> {
        let label = want.clone();
        let stored = self
            .on_pool(pool, On::Make, until, move |p, d| {
                change_backing(p, &label, sets, d)?;
                p.get(label.id, d)
            })
            .await?;
        verify(&want, stored)?;
        self.refresh_export(want.id, pool, until).await?;
        Ok(want)
    }

    /// Carries an interrupted change out, or makes the label say what there is instead. What was changed
    /// further than its caller was told stays: there may be data behind the old end by now. `None`: the
    /// volume is gone.
    pub(super) async fn settle_change(
        &self,
        pool: &Arc<OpenPool>,
        want: Label,
        sets: bool,
        until: Instant,
    ) -> CoreOutcome<Option<Label>> {
        self.on_pool(pool, On::Make, until, move |p, d| {
            let changed = change_backing(p, &want, sets, d);
            let Some(stored) = p.get(want.id, d)? else { return Ok(None) };
            if stored.label == want && stored.is_whole() {
                return Ok(Some(want));
            }
            let error = changed.err().map(|e| super::error::chain(&e));
            tracing::warn!(volume = %want.id, error, "a change was not carried out");
            let label = stored.as_it_is();
            p.relabel(&label, d)?;
            Ok(Some(label))
        })
        .await
    }

    /// After a grow: where the volume is exported, its hosts are told, and the device is as large as it
    /// should be.
    pub(super) async fn refresh_export(
        &self,
        id: VolumeId,
        pool: &Arc<OpenPool>,
        until: Instant,
    ) -> CoreOutcome<()> {
        if self.opened.lock().contains_key(&id) {
            self.open_backing(pool, id, until).await?;
            self.announce_size(id, until).await?;
        }
        Ok(())
    }
}

/// What can be refused comes first: properties, then the size, which never goes back.
fn change_backing(p: &dyn Pool, want: &Label, sets: bool, d: &Deadline) -> pool::Result<()> {
    if sets {
        let size = p.get(want.id, d)?.map_or(want.size, |s| s.size);
        p.set(&Label { size, ..want.clone() }, d)?;
    }
    p.grow(want, d).map(drop)
}
