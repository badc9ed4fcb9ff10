//! What must hold after anything that happens: everything acknowledged is there, nothing else is, nothing is half done, nobody
//! has access who should not have it, and no identity is another.

use std::collections::{BTreeMap, BTreeSet};

use orlop_api::client::{Client, SnapshotFilter, VolumeFilter};
use orlop_api::{Problem, SnapshotId, SnapshotState, VolumeId, VolumeState};

use super::client::{Worker, host_name, target};
use super::record::{Record, Volume};

/// What the API shows.
#[derive(Debug, Default)]
pub struct Shown {
    volumes: BTreeMap<String, orlop_api::Volume>,
    snapshots: BTreeMap<String, orlop_api::Snapshot>,
    /// In words, what is not as it should be whatever the clients know.
    odd: Vec<String>,
}

impl Shown {
    /// Asks for all of it. `ours` are volumes that are not the clients'.
    pub async fn ask(api: &Client, ours: &BTreeSet<String>) -> Result<Self, Problem> {
        let mut shown = Self::default();
        for v in api.all_volumes(VolumeFilter::default()).await? {
            if v.state != VolumeState::Ready {
                shown.odd.push(format!("volume {} is {:?}: {:?}", v.name, v.state, v.reason));
            }
            if !ours.contains(v.name.as_str()) {
                shown.volumes.insert(v.name.to_string(), v);
            }
        }
        for s in api.all_snapshots(SnapshotFilter::default()).await? {
            if !s.ready || s.state != SnapshotState::Ready {
                shown.odd.push(format!("snapshot {} is {:?}: {:?}", s.name, s.state, s.reason));
            }
            shown.snapshots.insert(s.name.to_string(), s);
        }
        for alarm in api.system().await?.alarms {
            // What a fault is an alarm for is not odd, and told by the machine.
            if alarm.subject.starts_with("volume/") || alarm.subject.starts_with("target/") {
                shown.odd.push(format!("alarm {}: {}", alarm.subject, alarm.detail));
            }
        }
        Ok(shown)
    }

    /// The volumes that somebody is attached to, by their targets' names, with those hosts.
    pub fn attached(&self) -> BTreeMap<String, BTreeSet<String>> {
        let attached = self.volumes.values().filter(|v| !v.hosts.is_empty());
        attached.map(|v| (target(v), v.hosts.iter().map(ToString::to_string).collect())).collect()
    }

    /// The ids of all volumes.
    pub fn ids(&self) -> BTreeSet<VolumeId> {
        self.volumes.values().map(|v| v.id).collect()
    }

    /// Compares it with what the clients know, and tells them which of the things that may have come of a lost answer it was.
    /// What is wrong, in words.
    pub fn compare(&self, workers: &mut [Worker]) -> Vec<String> {
        let mut wrong = self.odd.clone();
        let mut known = BTreeSet::new();
        let mut matched = Vec::new();
        for w in workers.iter_mut() {
            let may_be = match w.doubt {
                Some(op) => w.record.outcomes(op),
                None => vec![w.record.clone()],
            };
            let mut differences = Vec::new();
            let found = may_be.into_iter().find_map(|mut record| {
                let found = self.matches(w, &mut record);
                differences.push(found.clone());
                found.is_empty().then_some(record)
            });
            match found {
                Some(record) => matched.push(record),
                None => {
                    let doubt =
                        w.doubt.map(|op| format!(" (its answer to `{op}` was lost)")).unwrap_or_default();
                    let either = differences.iter().map(|d| d.join(", ")).collect::<Vec<_>>().join("; or ");
                    wrong.push(format!("client {}{doubt}: {either}", w.number));
                }
            }
            for slot in 0..w.record.volumes.len() as u8 {
                known.insert(w.volume_name(slot));
                known.extend((0..super::plan::SNAPSHOTS).map(|nth| w.snapshot_name(slot, nth)));
            }
        }
        let strange = self.volumes.keys().chain(self.snapshots.keys()).filter(|name| !known.contains(*name));
        wrong.extend(strange.map(|name| format!("{name} is there, and nobody made it")));
        if wrong.is_empty() {
            // Only what holds for all of them is what came of a lost answer: else it is looked at again.
            for (w, record) in workers.iter_mut().zip(matched) {
                w.record = record;
            }
        }
        wrong
    }

    /// In what a client's record and what is shown differ. Fills in ids that were not known.
    fn matches(&self, w: &Worker, record: &mut Record) -> Vec<String> {
        let mut wrong = Vec::new();
        for (slot, known) in (0..).zip(record.volumes.iter_mut()) {
            let name = w.volume_name(slot);
            match (known, self.volumes.get(&name)) {
                (None, None) => self.no_snapshots_of(w, slot, &mut wrong),
                (None, Some(_)) => wrong.push(format!("{name} is there")),
                (Some(_), None) => wrong.push(format!("{name} is lost")),
                (Some(v), Some(shown)) => {
                    compare_volume(v, shown, &mut wrong);
                    self.compare_snapshots(w, slot, v, &mut wrong);
                }
            }
        }
        wrong
    }

    fn no_snapshots_of(&self, w: &Worker, slot: u8, wrong: &mut Vec<String>) {
        for nth in 0..super::plan::SNAPSHOTS {
            let name = w.snapshot_name(slot, nth);
            if self.snapshots.contains_key(&name) {
                wrong.push(format!("snapshot {name} is there without its volume"));
            }
        }
    }

    fn compare_snapshots(&self, w: &Worker, slot: u8, v: &mut Volume, wrong: &mut Vec<String>) {
        for nth in 0..super::plan::SNAPSHOTS {
            let name = w.snapshot_name(slot, nth);
            match (v.snapshots.get_mut(&nth), self.snapshots.get(&name)) {
                (None, None) => {}
                (None, Some(_)) => wrong.push(format!("snapshot {name} is there")),
                (Some(_), None) => wrong.push(format!("snapshot {name} is lost")),
                (Some(s), Some(shown)) => {
                    let id: SnapshotId = *s.id.get_or_insert(shown.id);
                    differ(&name, "id", &id, &shown.id, wrong);
                    differ(&name, "size", &s.size, &shown.size.bytes(), wrong);
                    if let Some((volume, _)) = &v.identity {
                        differ(&name, "volume", volume, &shown.volume, wrong);
                    }
                }
            }
        }
    }
}

fn compare_volume(v: &mut Volume, shown: &orlop_api::Volume, wrong: &mut Vec<String>) {
    let name = shown.name.as_str();
    let identity = (shown.id, target(shown));
    let known = v.identity.get_or_insert_with(|| identity.clone());
    differ(name, "identity", known, &identity, wrong);
    differ(name, "size", &v.size, &shown.size.bytes(), wrong);
    let hosts: BTreeSet<_> = v.hosts.iter().map(|h| host_name(*h)).collect();
    differ(name, "hosts", &hosts, &shown.hosts.iter().map(ToString::to_string).collect(), wrong);
    differ(name, "origin", &v.origin, &shown.source.as_ref().map(|s| s.snapshot), wrong);
    if let Some(compression) = v.compression {
        let have = shown.properties.compression.as_ref().map(ToString::to_string);
        differ(name, "compression", &Some(compression.to_string()), &have, wrong);
    }
}

fn differ<T: PartialEq + std::fmt::Debug>(of: &str, what: &str, due: &T, have: &T, wrong: &mut Vec<String>) {
    if due != have {
        wrong.push(format!("{of}: {what} is {have:?} and should be {due:?}"));
    }
}
