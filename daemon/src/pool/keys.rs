//! The keys of encrypted volumes, while the daemon runs.
//!
//! The engine puts them in: from the journal, or as they are brought. Pools take them out when they make or
//! open a volume. Nothing is written from here.

use std::collections::BTreeMap;
use std::sync::Arc;

use orlop_api::{EncryptionKey, VolumeId};
use parking_lot::Mutex;

/// See the module. Clones are the same ring.
#[derive(Debug, Clone, Default)]
pub struct KeyRing(Arc<Mutex<BTreeMap<VolumeId, EncryptionKey>>>);

impl KeyRing {
    /// The key of a volume that has one of its own.
    pub fn get(&self, of: VolumeId) -> Option<EncryptionKey> {
        self.0.lock().get(&of).cloned()
    }

    /// Keeps a key until the daemon ends.
    pub fn put(&self, of: VolumeId, key: EncryptionKey) {
        self.0.lock().insert(of, key);
    }

    /// Forgets a key.
    pub fn remove(&self, of: VolumeId) {
        self.0.lock().remove(&of);
    }
}
