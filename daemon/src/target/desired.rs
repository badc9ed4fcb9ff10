//! What should be served.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};

use orlop_api::VolumeId;

use super::{Export, HostId};

/// What should be served, within a scope: the exports by volume, and who is attached to a volume and can't be let in for
/// the moment. The latter get nothing. That somebody waits tells a target that a volume without an export is still
/// somebody's: what the kernel has recorded for its hosts, which a restart must not lose, stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    exports: BTreeMap<VolumeId, Export>,
    waiting: BTreeMap<VolumeId, BTreeSet<HostId>>,
}

impl Desired {
    /// Nothing is to be served, and nobody is attached.
    pub fn new() -> Self {
        Self::default()
    }

    /// These are attached to a volume and can't be let in for the moment: its backing is not open, a secret is lost. None:
    /// somebody is attached of whom it is not known what he is called.
    pub fn wait(&mut self, volume: VolumeId, hosts: impl IntoIterator<Item = HostId>) {
        self.waiting.entry(volume).or_default().extend(hosts);
    }

    /// Who waits for a volume.
    pub fn waiting(&self, volume: VolumeId) -> impl Iterator<Item = &HostId> {
        self.waiting.get(&volume).into_iter().flatten()
    }

    /// Whether anybody is attached to a volume, be he let in or not.
    pub fn is_attached(&self, volume: VolumeId) -> bool {
        self.exports.contains_key(&volume) || self.waiting.contains_key(&volume)
    }

    /// Takes what another one has.
    pub fn absorb(&mut self, other: Self) {
        self.exports.extend(other.exports);
        for (volume, hosts) in other.waiting {
            self.wait(volume, hosts);
        }
    }

    /// The same, with nobody let in: all wait.
    #[must_use]
    pub fn kept_out(mut self) -> Self {
        for (volume, export) in std::mem::take(&mut self.exports) {
            self.wait(volume, export.hosts.into_keys());
        }
        self
    }
}

impl Deref for Desired {
    type Target = BTreeMap<VolumeId, Export>;

    fn deref(&self) -> &Self::Target {
        &self.exports
    }
}

impl DerefMut for Desired {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.exports
    }
}

impl FromIterator<(VolumeId, Export)> for Desired {
    fn from_iter<I: IntoIterator<Item = (VolumeId, Export)>>(all: I) -> Self {
        Self { exports: all.into_iter().collect(), ..Self::default() }
    }
}

impl<const N: usize> From<[(VolumeId, Export); N]> for Desired {
    fn from(all: [(VolumeId, Export); N]) -> Self {
        all.into_iter().collect()
    }
}

impl IntoIterator for Desired {
    type Item = (VolumeId, Export);
    type IntoIter = std::collections::btree_map::IntoIter<VolumeId, Export>;

    fn into_iter(self) -> Self::IntoIter {
        self.exports.into_iter()
    }
}
