//! The secrets that hosts must prove to know, while the daemon runs.
//!
//! The engine puts them in: from the journal, or as they are given. A target takes them out when it lets a host in, and
//! when it compares what the kernel has: so they are in no plan, no step and no report. Nothing is written from here.

use std::collections::BTreeMap;
use std::sync::Arc;

use orlop_api::{AuthenticationPut, ChapPut};
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
pub struct HostKeys(Arc<Mutex<BTreeMap<String, Proof>>>);

impl HostKeys {
    /// What a host must prove.
    pub fn get(&self, host: &str) -> Option<Proof> {
        self.0.lock().get(host).cloned()
    }

    /// It must prove that from now on.
    pub fn put(&self, host: &HostId, proof: Proof) {
        self.0.lock().insert(host.to_string(), proof);
    }

    /// It is no host of ours any more.
    pub fn remove(&self, host: &HostId) {
        self.0.lock().remove(&host.to_string());
    }
}
