//! Events: a ring of the last ones, numbered, and a bell. A reader keeps its own place in the ring, so
//! one that never reads costs nothing, and one that falls behind is told so by a `gap`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use orlop_api::{Event, EventKind, HostName, PoolName, SnapshotId, VolumeId};
use parking_lot::Mutex;
use tokio::sync::watch;

/// How many events are kept for readers that come back.
const KEPT: usize = 4096;

/// See the module. Cheap to clone; clones are one ring.
#[derive(Debug, Clone)]
pub struct Events(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    ring: Mutex<Ring>,
    bell: watch::Sender<u64>,
    gaps: AtomicU64,
}

#[derive(Debug)]
struct Ring {
    first: u64,
    next: u64,
    kept: VecDeque<Event>,
}

/// How much has happened, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EventCounts {
    /// Events since the start.
    pub published: u64,
    /// Those of them that are not kept any more.
    pub dropped: u64,
    /// Gaps that readers were told of.
    pub gaps: u64,
}

/// What an event is about.
#[derive(Debug, Clone, Default)]
pub struct Subject {
    /// The volume.
    pub volume: Option<VolumeId>,
    /// The snapshot.
    pub snapshot: Option<SnapshotId>,
    /// The pool.
    pub pool: Option<PoolName>,
    /// The host.
    pub host: Option<HostName>,
    /// In words.
    pub detail: Option<String>,
}

impl Events {
    /// `generation` counts the daemon's starts, durably: numbers of a later start are always larger.
    pub fn new(generation: u32) -> Self {
        let next = (u64::from(generation) << 32) | 1;
        Self(Arc::new(Inner {
            ring: Mutex::new(Ring { first: next, next, kept: VecDeque::new() }),
            bell: watch::Sender::new(next - 1),
            gaps: AtomicU64::new(0),
        }))
    }

    /// Adds an event and rings the bell.
    pub fn publish(&self, kind: EventKind, about: Subject) {
        let seq = {
            let mut ring = self.0.ring.lock();
            let seq = ring.next;
            ring.next += 1;
            if ring.kept.len() == KEPT {
                ring.kept.pop_front();
            }
            ring.kept.push_back(Event {
                seq,
                time: Timestamp::now(),
                kind,
                volume: about.volume,
                snapshot: about.snapshot,
                pool: about.pool,
                host: about.host,
                detail: about.detail,
            });
            seq
        };
        self.0.bell.send_replace(seq);
    }

    /// The number of the newest event.
    pub fn newest(&self) -> u64 {
        self.0.ring.lock().next - 1
    }

    /// Up to `limit` events after `seq`. Starts with a `gap` if some in between are no longer kept, or
    /// if `seq` is from the future (another journal's).
    pub fn after(&self, seq: u64, limit: usize) -> Vec<Event> {
        let ring = self.0.ring.lock();
        let newest = ring.next - 1;
        let oldest = ring.kept.front().map_or(ring.next, |e| e.seq);
        let mut out = Vec::new();
        let mut from = seq;
        if seq > newest || seq + 1 < oldest {
            // The gap takes the number just before the next event, so that a reader that comes back
            // with it goes on from there.
            from = oldest - 1;
            self.0.gaps.fetch_add(1, Ordering::Relaxed);
            out.push(Event {
                seq: from,
                time: Timestamp::now(),
                kind: EventKind::Gap,
                volume: None,
                snapshot: None,
                pool: None,
                host: None,
                detail: Some("events were missed: list again".into()),
            });
        }
        let skip = ring.kept.partition_point(|e| e.seq <= from);
        out.extend(ring.kept.iter().skip(skip).take(limit).cloned());
        out
    }

    /// A bell that rings with the number of the newest event.
    pub fn bell(&self) -> watch::Receiver<u64> {
        self.0.bell.subscribe()
    }

    /// How much has happened.
    pub fn counts(&self) -> EventCounts {
        let ring = self.0.ring.lock();
        let published = ring.next - ring.first;
        let kept = ring.kept.len() as u64;
        let gaps = self.0.gaps.load(Ordering::Relaxed);
        EventCounts { published, dropped: published.saturating_sub(kept), gaps }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(events: &Events, n: usize) {
        for _ in 0..n {
            events.publish(EventKind::HostPut, Subject::default());
        }
    }

    #[test]
    fn a_reader_goes_on_where_it_stopped() {
        let events = Events::new(1);
        let start = events.newest();
        fill(&events, 3);
        let got = events.after(start, 2);
        assert_eq!(got.iter().map(|e| e.seq - start).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(events.after(got[1].seq, 10).len(), 1);
        assert!(events.after(events.newest(), 10).is_empty());
    }

    #[test]
    fn a_reader_that_fell_behind_is_told_once() {
        let events = Events::new(1);
        let start = events.newest();
        fill(&events, KEPT + 10);
        let got = events.after(start, 5);
        assert_eq!(got[0].kind, EventKind::Gap);
        assert_eq!(got[1].seq, got[0].seq + 1);
        assert_eq!(events.after(got[0].seq, 5)[0].kind, EventKind::HostPut);
        let counts = events.counts();
        assert_eq!((counts.published, counts.dropped, counts.gaps), (KEPT as u64 + 10, 10, 1));
    }

    #[test]
    fn an_earlier_start_or_another_journal_is_a_gap() {
        let events = Events::new(7);
        assert_eq!(events.after(3 << 32, 5)[0].kind, EventKind::Gap);
        assert_eq!(events.after(9 << 32, 5)[0].kind, EventKind::Gap);
        fill(&events, 1);
        assert_eq!(events.after(0, 5).len(), 2);
    }
}
