//! Adopting orphans: they become volumes, with what is in them.

use std::sync::Arc;

use orlop_api::{EventKind, OrphanAction, OrphanAdopt, OrphanId, PoolName, VolumeCreate, VolumeId};
use tokio::time::Instant;

use super::{Found, What, not_found};
use crate::engine::action::{Outcome, Principal};
use crate::engine::core::{Core, On, Outcome as CoreOutcome};
use crate::engine::error::{Error, Result};
use crate::engine::intent::{Intent, Known, about_volume};
use crate::engine::locks::{Key, Mode};
use crate::engine::view::VolumeEntry;
use crate::engine::volumes::verify;
use crate::model::Label;
use crate::pool::{Stored, Stray};

impl Core {
    /// Makes an orphan a volume of the caller's, with what is in it.
    pub(in crate::engine) async fn adopt_orphan(
        self: &Arc<Self>,
        who: &Principal,
        id: OrphanId,
        ask: OrphanAdopt,
        until: Instant,
    ) -> Result<Outcome> {
        let by_name = |intent: &Intent| match intent {
            Intent::CreateVolume { label, .. } | Intent::AdoptVolume { label, .. } => {
                label.tenant == who.tenant && label.name == ask.name
            }
            _ => false,
        };
        self.check_settled(by_name)?;
        let mut wants = vec![
            (Key::Orphan(id.clone()), Mode::Exclusive),
            (Key::Name(who.tenant.clone(), ask.name.clone()), Mode::Exclusive),
        ];
        wants.extend(id.pool().map(|pool| (Key::Pool(pool), Mode::Shared)));
        // The id of what becomes a volume now, or already has been one.
        let volume = match self.find_orphan(&id, until).await? {
            Some(found) if !found.shown.actions.contains(&OrphanAction::Adopt) => {
                return refuse_adoption(&found);
            }
            Some(Found { what: What::Volume(stored), .. }) => {
                wants.push((Key::Volume(stored.label.id), Mode::Exclusive));
                stored.label.id
            }
            Some(_) => VolumeId::mint(),
            // What was adopted is in a pool that is open.
            None if id.pool().is_none_or(|pool| self.open_pool(&pool).is_err()) => {
                return Err(not_found(&id));
            }
            None => VolumeId::mint(),
        };
        let mut guards = self.locks.acquire(wants, until).await?;
        self.check_settled(|intent| by_name(intent) || intent.touches(volume))?;

        // Again, now that nobody else can do anything with it; and only then the last lock, the mark of work
        // under way, which would hide it.
        let found = self.find_orphan(&id, until).await?;
        guards.join(self.locks.acquire(vec![(Key::Backing(volume), Mode::Exclusive)], until).await?);
        let there = self.view.read().named(&who.tenant, &ask.name);
        let Some(found) = found else {
            // The same request again.
            let adopted = |v: &VolumeEntry| v.label.adopted.as_ref() == Some(&id);
            return match there {
                Some(volume) if self.view.read().entry(volume).is_some_and(adopted) => {
                    self.shown(volume, false)
                }
                _ => Err(not_found(&id)),
            };
        };
        if let Some(other) = there {
            return Err(Error::Conflict {
                object: format!("volume {}", ask.name),
                field: "name",
                have: format!("the id {other} already"),
                want: format!("to be orphan {id}"),
            });
        }
        let Some(pool) = found.shown.pool.clone() else { return refuse_adoption(&found) };
        let (stray, label) = match &found.what {
            What::Stray(stray) => {
                (Some(stray.name.clone()), label_for(who, &id, &ask, volume, stray, &found)?)
            }
            What::Volume(stored) if stored.label.id != volume => {
                return Err(Error::Busy(format!("orphan {id}: it has just changed")));
            }
            What::Volume(stored) => (None, self.renamed(who, &id, &ask, stored, &found)?),
            _ => return refuse_adoption(&found),
        };
        let open = self.open_pool(&pool)?;
        let intent = Intent::AdoptVolume { pool: pool.clone(), stray: stray.clone(), label: label.clone() };
        let want = label.clone();
        let adopt = self.on_pool(&open, On::Make, until, move |p, d| {
            match &stray {
                Some(stray) => drop(p.adopt(stray, &want, d)?),
                None => p.relabel(&want, d)?,
            }
            p.get(volume, d)
        });
        let act = async { Ok(verify(&label, adopt.await?)?) };
        let ((), _guards) = Box::pin(self.carry_out(intent, guards, act)).await?;
        self.show_adopted(pool, label);
        self.shown(volume, true)
    }

    /// What an adoption has to be followed by.
    pub(in crate::engine) fn show_adopted(self: &Arc<Self>, pool: PoolName, label: Label) {
        let id = label.id;
        let entry = self.view.read().entry(id).cloned();
        match entry {
            // It was shown already, and has another name now.
            Some(entry) => {
                self.view.write().put_volume(VolumeEntry { label, ..entry });
                self.events.publish(EventKind::VolumeAdopted, about_volume(id));
            }
            None => self.show_volume(pool.clone(), label, EventKind::VolumeAdopted),
        }
        self.start_copy(id);
        self.capacity_changed(&pool);
        let core = self.clone();
        // Attachments that waited for it are served again.
        self.background(async move { core.serve_again(id).await });
        self.strays_changed(pool);
    }

    /// What the alarm says of a pool's strays is so no longer: asks again, behind the answer.
    fn strays_changed(self: &Arc<Self>, pool: PoolName) {
        let core = self.clone();
        self.background(async move {
            let until = Instant::now() + core.settings.settle_deadline;
            if let Err(f) = core.orphans_in(&pool, until).await {
                tracing::debug!(%pool, error = f.error.chain(), "it was not listed again");
            }
        });
    }

    /// An adoption that was under way: what is whole stays, unless its caller was told otherwise; anything
    /// less is put back. Nothing in it touches the content.
    pub(in crate::engine) async fn settle_adopt(
        self: &Arc<Self>,
        pool: &PoolName,
        stray: Option<String>,
        label: &Label,
        known: Known,
        until: Instant,
    ) -> CoreOutcome<()> {
        let open = self.open_pool(pool)?;
        let (id, want, was_stray) = (label.id, label.clone(), stray.is_some());
        let kept = self
            .on_pool(&open, On::Make, until, move |p, d| {
                let found = p.get(id, d)?;
                match (stray, found) {
                    // Its label says which name it has.
                    (None, found) => Ok(found.filter(|s| s.label == want)),
                    (Some(stray), Some(_)) if known == Known::Unknown => {
                        p.adopt(&stray, &want, d)?;
                        p.get(id, d)
                    }
                    (Some(stray), _) => p.release(&stray, id, d).map(|_| None),
                }
            })
            .await?;
        match kept {
            Some(stored) => self.show_adopted(pool.clone(), stored.label),
            None if was_stray => {
                self.view.write().remove_volume(id);
                self.strays_changed(pool.clone());
            }
            None => {}
        }
        Ok(())
    }

    /// The new label of a volume that is ours already.
    fn renamed(
        &self,
        who: &Principal,
        id: &OrphanId,
        ask: &OrphanAdopt,
        stored: &Stored,
        found: &Found,
    ) -> Result<Label> {
        // The view's, where it has one: the hosts on the backing may be older.
        let shown = self.view.read().entry(stored.label.id).map(|v| v.label.clone());
        let label = shown.unwrap_or_else(|| stored.label.clone());
        if label.tenant != who.tenant {
            return refuse(found, format!("belongs to tenant {}", label.tenant));
        }
        Ok(Label {
            name: ask.name.clone(),
            // A grow may have been stopped in the middle.
            size: stored.size,
            adopted: Some(id.clone()),
            deleted: false,
            ..label
        })
    }
}

/// The label of a stray that becomes a volume.
fn label_for(
    who: &Principal,
    id: &OrphanId,
    ask: &OrphanAdopt,
    volume: VolumeId,
    stray: &Stray,
    found: &Found,
) -> Result<Label> {
    match (&stray.adoptable, stray.size) {
        (Ok(provisioning), Some(size)) => {
            let pool = found.shown.pool.clone().ok_or(Error::Died)?;
            let plain = VolumeCreate::new(ask.name.clone(), pool, size);
            let shape = VolumeCreate { provisioning: *provisioning, ..plain };
            Ok(Label { adopted: Some(id.clone()), ..Label::new(volume, who.tenant.clone(), &shape) })
        }
        _ => refuse_adoption(found),
    }
}

fn refuse<T>(found: &Found, reason: String) -> Result<T> {
    let object = format!("orphan {} ({})", found.shown.id, found.shown.name);
    Err(Error::Precondition { object, reason, dependants: Vec::new() })
}

fn refuse_adoption<T>(found: &Found) -> Result<T> {
    refuse(found, format!("can't become a volume: it {}", found.shown.reason))
}
