//! What a client knows: which of its operations were acknowledged, what each must have led to, and what may have come of one
//! whose answer was lost. Pure, and the client's own: nothing of it is read from the appliance but ids.

use std::collections::{BTreeMap, BTreeSet};

use orlop_api::{ErrorKind, SnapshotId, VolumeId};

use super::plan::{Op, SLOTS, UNIT, compression};

/// One client's volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// By slot.
    pub volumes: Vec<Option<Volume>>,
    pool: Kind,
}

/// What the pool of a client can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// A snapshot can't go before its clones.
    pub clones_depend: bool,
    /// Volumes have properties.
    pub properties: bool,
}

/// A volume as it must be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Volume {
    /// Its id and its target's name, once known. Never others after that.
    pub identity: Option<(VolumeId, String)>,
    /// In bytes.
    pub size: u64,
    /// Its compression, if it was set.
    pub compression: Option<&'static str>,
    /// Who is attached.
    pub hosts: BTreeSet<u8>,
    /// Its snapshots.
    pub snapshots: BTreeMap<u8, Snapshot>,
    /// What it is a clone of.
    pub origin: Option<SnapshotId>,
}

/// A snapshot as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Once known.
    pub id: Option<SnapshotId>,
    /// In bytes.
    pub size: u64,
    /// The compression of its volume then.
    pub compression: Option<&'static str>,
}

/// What an operation must lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// It is done.
    Done(Record),
    /// It was so already.
    Same,
    /// It is refused, and nothing changes.
    Refused(&'static [ErrorKind]),
    /// Nothing that a client would ask in earnest.
    Skip,
}

const MISSING: Expected = Expected::Refused(&[ErrorKind::NotFound]);
const DEPENDED_ON: Expected = Expected::Refused(&[ErrorKind::Precondition]);

impl Record {
    /// Nothing yet, in such a pool.
    pub fn new(pool: Kind) -> Self {
        Self { volumes: vec![None; usize::from(SLOTS)], pool }
    }

    /// What an operation must lead to.
    pub fn expect(&self, op: Op) -> Expected {
        let at = |slot: u8| self.volumes[usize::from(slot)].as_ref();
        let with = |slot: u8, volume: Option<Volume>| {
            let mut next = self.clone();
            next.volumes[usize::from(slot)] = volume;
            Expected::Done(next)
        };
        match op {
            Op::Create { slot } => match at(slot) {
                None => with(slot, Some(Volume { size: UNIT, ..Volume::default() })),
                Some(v) if v.origin.is_none() && v.size == UNIT && v.compression.is_none() => Expected::Same,
                Some(_) => Expected::Skip,
            },
            Op::Delete { slot } => match at(slot) {
                None => MISSING,
                Some(v) if !v.hosts.is_empty() || !v.snapshots.is_empty() => DEPENDED_ON,
                Some(_) => with(slot, None),
            },
            Op::Grow { slot, units } => match (at(slot), u64::from(units) * UNIT) {
                (None, _) => MISSING,
                (Some(v), size) if size < v.size => {
                    Expected::Refused(&[ErrorKind::Invalid, ErrorKind::Precondition, ErrorKind::Conflict])
                }
                (Some(v), size) if size == v.size => Expected::Same,
                (Some(v), size) => with(slot, Some(Volume { size, ..v.clone() })),
            },
            Op::Set { slot, strong } => match at(slot) {
                None => MISSING,
                Some(_) if !self.pool.properties => Expected::Refused(&[ErrorKind::Unsupported]),
                Some(v) if v.compression == Some(compression(strong)) => Expected::Same,
                Some(v) => with(slot, Some(Volume { compression: Some(compression(strong)), ..v.clone() })),
            },
            Op::Snapshot { slot, nth } => match at(slot) {
                None => MISSING,
                Some(v) if v.snapshots.contains_key(&nth) => Expected::Same,
                Some(v) => {
                    let mut v = v.clone();
                    let taken = Snapshot { id: None, size: v.size, compression: v.compression };
                    v.snapshots.insert(nth, taken);
                    with(slot, Some(v))
                }
            },
            Op::DropSnapshot { slot, nth } => {
                match at(slot).and_then(|v| Some((v, v.snapshots.get(&nth)?))) {
                    None => MISSING,
                    Some((_, s)) if self.pool.clones_depend && self.lives_on(s.id) => DEPENDED_ON,
                    Some((v, _)) => {
                        let mut v = v.clone();
                        v.snapshots.remove(&nth);
                        with(slot, Some(v))
                    }
                }
            }
            Op::Clone { slot, nth, to } => match (at(slot).and_then(|v| v.snapshots.get(&nth)), at(to)) {
                (_, Some(_)) => Expected::Skip,
                (None, None) => MISSING,
                (Some(s), None) => {
                    let (size, origin) = (s.size, s.id);
                    with(to, Some(Volume { size, origin, ..Volume::default() }))
                }
            },
            Op::Attach { slot, host, alone } => match at(slot) {
                None => MISSING,
                Some(v) if v.hosts.contains(&host) && (!alone || v.hosts.len() == 1) => Expected::Same,
                Some(v) => {
                    let mut v = v.clone();
                    if alone {
                        v.hosts.clear();
                    }
                    v.hosts.insert(host);
                    with(slot, Some(v))
                }
            },
            Op::Detach { slot, host } => match at(slot) {
                None => MISSING,
                Some(v) if !v.hosts.contains(&host) => MISSING,
                Some(v) => {
                    let mut v = v.clone();
                    v.hosts.remove(&host);
                    with(slot, Some(v))
                }
            },
        }
    }

    /// Whether more has changed since `before` than what became known of what was there.
    pub fn differs_in_more_than_ids(&self, before: &Self) -> bool {
        let bare = |r: &Self| {
            let mut r = r.clone();
            for v in r.volumes.iter_mut().flatten() {
                v.identity = None;
                v.snapshots.values_mut().for_each(|s| s.id = None);
            }
            r
        };
        bare(self) != bare(before)
    }

    fn lives_on(&self, snapshot: Option<SnapshotId>) -> bool {
        snapshot.is_some() && self.volumes.iter().flatten().any(|v| v.origin == snapshot)
    }

    /// What there may be when the answer to `op` was lost: what there was, what it leads to, and where it has several steps,
    /// what lies between. Asking again goes on from there.
    pub fn outcomes(&self, op: Op) -> Vec<Record> {
        let mut may_be = vec![self.clone()];
        if let Expected::Done(next) = self.expect(op) {
            may_be.push(next);
        }
        if let Op::Attach { slot, host, alone: true } = op
            && let Some(v) = &self.volumes[usize::from(slot)]
        {
            // The others go first, each for itself.
            let others: Vec<u8> = v.hosts.iter().copied().filter(|h| *h != host).collect();
            for some in 1..1_u32 << others.len() {
                let goes = |h: &u8| others.iter().position(|o| o == h).is_some_and(|n| some & (1 << n) != 0);
                let hosts = v.hosts.iter().copied().filter(|h| !goes(h)).collect();
                let mut cut_off = self.clone();
                cut_off.volumes[usize::from(slot)] = Some(Volume { hosts, ..v.clone() });
                may_be.push(cut_off);
            }
        }
        may_be
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic)]
    use super::*;

    const ZFS: Kind = Kind { clones_depend: true, properties: true };

    fn after(ops: &[Op]) -> Record {
        ops.iter().fold(Record::new(ZFS), |record, op| match record.expect(*op) {
            Expected::Done(next) => next,
            other => panic!("{op}: {other:?}"),
        })
    }

    #[test]
    fn what_depends_on_it_keeps_a_volume() {
        let shot = after(&[Op::Create { slot: 0 }, Op::Snapshot { slot: 0, nth: 1 }]);
        assert_eq!(shot.expect(Op::Delete { slot: 0 }), DEPENDED_ON);
        let attached = after(&[Op::Create { slot: 0 }, Op::Attach { slot: 0, host: 2, alone: false }]);
        assert_eq!(attached.expect(Op::Delete { slot: 0 }), DEPENDED_ON);
        assert_eq!(attached.expect(Op::Detach { slot: 0, host: 1 }), MISSING);
        assert_eq!(attached.expect(Op::Attach { slot: 0, host: 2, alone: true }), Expected::Same);
    }

    #[test]
    fn a_lost_answer_leaves_what_was_or_what_was_asked() {
        let two = [0, 1].map(|host| Op::Attach { slot: 0, host, alone: false });
        let record = after(&[Op::Create { slot: 0 }, two[0], two[1]]);
        let hosts = |r: &Record| r.volumes[0].as_ref().map(|v| v.hosts.iter().copied().collect::<Vec<_>>());
        let may_be: Vec<_> =
            record.outcomes(Op::Attach { slot: 0, host: 2, alone: true }).iter().map(hosts).collect();
        assert_eq!(may_be, [vec![0, 1], vec![2], vec![1], vec![0], vec![]].map(Some));
        assert_eq!(record.outcomes(Op::Delete { slot: 0 }), [record]);
    }
}
