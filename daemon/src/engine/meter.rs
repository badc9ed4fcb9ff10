//! What a lane measures of itself: how long jobs wait and run, which of them is the oldest, and what it did not end.
//!
//! Owned and filled by its lane, read when somebody scrapes. Its lock is held for a look into a small map, never over work.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use super::lane::LaneError;

/// See the module.
#[derive(Debug)]
pub(super) struct Meter {
    pub(super) wait: Histogram,
    pub(super) run: Histogram,
    jobs: Mutex<Jobs>,
    full: AtomicU64,
    expired: AtomicU64,
    overrun: AtomicU64,
    died: AtomicU64,
}

#[derive(Debug, Default)]
struct Jobs {
    next: u64,
    waiting: BTreeMap<u64, Instant>,
    running: BTreeMap<u64, Instant>,
}

/// 0.1 ms to 105 s.
fn times() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 4.0, 11))
}

impl Meter {
    pub(super) fn new() -> Self {
        Self {
            wait: times(),
            run: times(),
            jobs: Mutex::default(),
            full: AtomicU64::new(0),
            expired: AtomicU64::new(0),
            overrun: AtomicU64::new(0),
            died: AtomicU64::new(0),
        }
    }

    /// A job is about to wait. Its number.
    pub(super) fn waits(&self) -> u64 {
        let mut jobs = self.jobs.lock();
        let number = jobs.next;
        jobs.next += 1;
        jobs.waiting.insert(number, Instant::now());
        number
    }

    /// It never begins.
    pub(super) fn is_gone(&self, job: u64) {
        self.jobs.lock().waiting.remove(&job);
    }

    /// It begins.
    pub(super) fn begins(&self, job: u64) {
        let now = Instant::now();
        let mut jobs = self.jobs.lock();
        let waited = jobs.waiting.remove(&job);
        jobs.running.insert(job, now);
        drop(jobs);
        if let Some(since) = waited {
            self.wait.observe(now.duration_since(since).as_secs_f64());
        }
    }

    /// It has ended, whether or not somebody still waits for it.
    pub(super) fn ends(&self, job: u64) {
        let began = self.jobs.lock().running.remove(&job);
        if let Some(began) = began {
            self.run.observe(began.elapsed().as_secs_f64());
        }
    }

    /// Why a job was not done.
    pub(super) fn failed(&self, error: &LaneError) {
        let count = match error {
            LaneError::Full { .. } => &self.full,
            LaneError::Expired { .. } => &self.expired,
            LaneError::Overrun { .. } => &self.overrun,
            LaneError::Died { .. } => &self.died,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// How often each.
    pub(super) fn failures(&self) -> [(&'static str, u64); 4] {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        [
            ("full", of(&self.full)),
            ("expired", of(&self.expired)),
            ("overrun", of(&self.overrun)),
            ("died", of(&self.died)),
        ]
    }

    /// For how long the oldest has waited, and the oldest has run.
    pub(super) fn oldest(&self) -> (Duration, Duration) {
        let jobs = self.jobs.lock();
        // Numbers are given in the order of coming; the oldest that runs may have any.
        let waiting = jobs.waiting.values().next().map(Instant::elapsed);
        let running = jobs.running.values().min().map(Instant::elapsed);
        (waiting.unwrap_or_default(), running.unwrap_or_default())
    }
}
