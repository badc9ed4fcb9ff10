//! The secrets that hosts must prove to know, while the daemon runs.
//!
//! The engine puts them in: from the journal, or as they are given. A target takes them out when it lets a host in, and
//! when it compares what the kernel has: so they are in no plan, no step and no report. Nothing is written from here.

use std::collections::BTreeMap;
use std::sync::Arc;

use orlop_api::{AuthenticationPut, ChapPut, Nqn, TlsPut};
use parking_lot::Mutex;

use super::HostId;

/// What a host must prove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// NVMe: that it knows this.
    Secret(Box<AuthenticationPut>),
    /// iSCSI: that it knows this.
    Chap(Box<ChapPut>),
    /// Nothing, and no longer what it had to before.
    Nothing,
}

/// See the module. Clones are the same ring. A host that is not on it is left as it is: it never had a secret of
/// ours, and if there is one in the kernel, somebody else has put it there.
#[derive(Debug, Clone, Default)]
pub struct HostKeys(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    proofs: BTreeMap<String, Proof>,
    tls: BTreeMap<String, TlsPut>,
}

impl HostKeys {
    /// What a host must prove.
    pub fn get(&self, host: &str) -> Option<Proof> {
        self.0.lock().proofs.get(host).cloned()
    }

    /// It must prove that from now on.
    pub fn put(&self, host: &HostId, proof: Proof) {
        self.0.lock().proofs.insert(host.to_string(), proof);
    }

    /// The key by which what an NVMe host says is encrypted.
    pub fn tls(&self, host: &str) -> Option<TlsPut> {
        self.0.lock().tls.get(host).cloned()
    }

    /// Whether any host has one.
    pub fn has_tls(&self) -> bool {
        !self.0.lock().tls.is_empty()
    }

    /// This is the key from now on, or there is none.
    pub fn put_tls(&self, host: &Nqn, key: Option<TlsPut>) {
        let mut held = self.0.lock();
        match key {
            Some(key) => drop(held.tls.insert(host.to_string(), key)),
            None => drop(held.tls.remove(host.as_str())),
        }
    }

    /// It is no host of ours any more.
    pub fn remove(&self, host: &HostId) {
        let mut held = self.0.lock();
        held.proofs.remove(&host.to_string());
        held.tls.remove(&host.to_string());
    }
}
