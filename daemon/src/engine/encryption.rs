//! The keys of encrypted volumes: made or taken with a volume, kept, brought again, told, and forgotten.
//!
//! Called through the door. A key that the appliance keeps is in the journal before the volume is made, and goes
//! with the last volume that has it. One that it does not keep is on the ring in memory only. A key that is in
//! neither, because the journal was lost or the pool came from elsewhere, is brought in the same way.

use std::sync::Arc;

use orlop_api::{Encryption, EncryptionKey, EventKind, Unlock, VolumeCreate, VolumeId, VolumeKey, VolumeRef};
use tokio::time::Instant;

use super::action::{Outcome, Principal};
use super::core::{Core, On};
use super::error::{Error, Result};
use super::intent::about_volume;
use super::locks::{Key, Mode};
use crate::journal::{Batch, Table};
use crate::model::Label;

impl Core {
    /// At start: the keys that the appliance keeps.
    pub(super) fn load_keys(&self, keys: Vec<(VolumeId, VolumeKey)>) {
        for (of, record) in keys {
            self.settings.keys.put(of, record.key);
        }
    }

    /// How a new volume is to be encrypted, and with what.
    pub(super) fn new_key(
        &self,
        ask: &VolumeCreate,
        id: VolumeId,
    ) -> Result<Option<(Encryption, EncryptionKey)>> {
        let Some(asked) = &ask.encryption else { return Ok(None) };
        let encryption = Encryption { unlock: asked.unlock, key_of: id };
        let key = match (&asked.key, asked.unlock) {
            (Some(key), _) => key.clone(),
            (None, Unlock::Automatic) => random_key()?,
            (None, Unlock::Manual) => {
                let reason = "must be given: nobody could unlock the volume with one that is not kept";
                return Err(Error::Invalid { field: "encryption.key", reason: reason.into() });
            }
        };
        Ok(Some((encryption, key)))
    }

    /// Puts a new volume's key where its pool finds it. The records keep it, if it is to be kept.
    pub(super) fn keep_key(&self, id: VolumeId, (encryption, key): (Encryption, EncryptionKey)) -> Batch {
        let batch = record(id, encryption, &key);
        self.settings.keys.put(id, key);
        batch
    }

    /// That key, if nobody has it any more when this volume is gone. Snapshots go before their volumes.
    pub(super) fn spent_key(&self, key_of: VolumeId, gone: VolumeId) -> Option<VolumeId> {
        let with_key = self.view.read().with_key(key_of);
        with_key.iter().all(|id| *id == gone).then_some(key_of)
    }

    /// Forgets a key for ever.
    pub(super) fn forget_key(&self, key_of: Option<VolumeId>) -> Batch {
        let mut batch = Batch::default();
        if let Some(key_of) = key_of {
            self.settings.keys.remove(key_of);
            let mut view = self.view.write();
            view.set_locked(key_of, false);
            view.clear(&alarm_of(key_of));
            batch.remove(Table::Keys, &key_of.to_string());
        }
        batch
    }

    /// The same request again has the same key, as far as that is known.
    pub(super) fn check_same_key(&self, ask: &VolumeCreate, id: VolumeId) -> Result<()> {
        let asked = ask.encryption.as_ref().and_then(|e| e.key.as_ref());
        let (Some(asked), Some(have)) = (asked, self.settings.keys.get(id)) else { return Ok(()) };
        if *asked == have {
            return Ok(());
        }
        let (have, want) = ("another".into(), "(not shown)".into());
        Err(Error::Conflict { object: format!("volume {}", ask.name), field: "encryption.key", have, want })
    }

    /// Brings a volume's key. All that have the same are unlocked, and served again to those who may use them.
    pub(super) async fn unlock_volume(
        self: &Arc<Self>,
        who: &Principal,
        volume: VolumeRef,
        key: EncryptionKey,
        until: Instant,
    ) -> Result<Outcome> {
        let id = self.find(who, &volume)?;
        let guards = self.locks.acquire(vec![(Key::Backing(id), Mode::Exclusive)], until).await?;
        let (encryption, pool) = {
            let view = self.view.read();
            let entry = view.entry(id).ok_or_else(|| view.no_volume(who, &volume))?;
            let Some(encryption) = entry.label.encryption else {
                return Err(Error::Precondition {
                    object: format!("volume {volume}"),
                    reason: "is not encrypted".into(),
                    dependants: Vec::new(),
                });
            };
            (encryption, entry.pool.clone())
        };
        let open = self.open_pool(&pool)?;
        let brought = key.clone();
        let unlocked = self.on_pool(&open, On::Open, until, move |p, d| p.unlock(id, &brought, d)).await;
        unlocked.map_err(|f| f.error)?;
        let key_of = encryption.key_of;
        // One that was lost with the journal is kept again; one that is wrong there is put right.
        if encryption.unlock == Unlock::Automatic && self.settings.keys.get(key_of).as_ref() != Some(&key) {
            self.journal.commit(record(key_of, encryption, &key)).await?;
        }
        self.settings.keys.put(key_of, key);
        let (changed, with_key, copies) = {
            let mut view = self.view.write();
            let changed = view.set_locked(key_of, false);
            view.clear(&alarm_of(key_of));
            let with_key = view.with_key(key_of);
            let waits = |id: &VolumeId| {
                let source = view.entry(*id).and_then(|v| v.label.source);
                with_key.contains(id) || source.is_some_and(|s| with_key.contains(&s.snapshot.volume))
            };
            let copies: Vec<_> = view.copying().into_iter().filter(waits).collect();
            (changed, with_key, copies)
        };
        drop(guards);
        for id in with_key {
            if changed {
                self.events.publish(EventKind::VolumeState, about_volume(id));
            }
            let is_open = self.opened.lock().contains_key(&id);
            if !is_open {
                let core = self.clone();
                self.background(async move { core.serve_again(id).await });
            }
        }
        for id in copies {
            self.start_copy(id);
        }
        self.shown(id, changed)
    }

    /// Looks for volumes whose key should be kept and is not: it is gone for good when the machine is started again,
    /// and until then they can be read all the same.
    pub(super) fn note_lost_keys<'a>(&self, labels: impl Iterator<Item = &'a Label>) {
        for label in labels {
            if let Some(e) = label.encryption.filter(|e| e.unlock == Unlock::Automatic)
                && self.settings.keys.get(e.key_of).is_none()
            {
                let text = "its key is not kept here: bring it (orlop volume unlock) before the machine is started \
                            again, or copy the volume while it can be read";
                self.view.write().raise(alarm_of(e.key_of), text.into());
            }
        }
    }

    /// Tells a key that the appliance keeps, for a safe place elsewhere: with it the volume can be read when this
    /// machine is gone.
    pub(super) fn show_key(&self, who: &Principal, volume: &VolumeRef) -> Result<Outcome> {
        let id = self.find(who, volume)?;
        let encryption = self.view.read().entry(id).and_then(|v| v.label.encryption);
        let reason = match encryption {
            None => "is not encrypted",
            Some(e) if e.unlock == Unlock::Manual => "has a key that is not kept here",
            Some(e) => match self.settings.keys.get(e.key_of) {
                Some(key) => return Ok(Outcome::Key(VolumeKey { key })),
                None => "has no key here: it was lost with the journal, or did not come with its pool",
            },
        };
        Err(Error::Precondition {
            object: format!("volume {volume}"),
            reason: reason.into(),
            dependants: Vec::new(),
        })
    }
}

pub(super) fn alarm_of(key_of: VolumeId) -> String {
    format!("volume/{key_of}/key")
}

fn record(id: VolumeId, encryption: Encryption, key: &EncryptionKey) -> Batch {
    let mut batch = Batch::default();
    if encryption.unlock == Unlock::Automatic {
        batch.put(Table::Keys, &id.to_string(), &VolumeKey { key: key.clone() });
    }
    batch
}

fn random_key() -> Result<EncryptionKey> {
    let mut bytes = [0u8; 32];
    crate::kernel::random(&mut bytes).map_err(|e| Error::Unavailable(format!("no random bytes: {e}")))?;
    Ok(EncryptionKey::new(bytes))
}
