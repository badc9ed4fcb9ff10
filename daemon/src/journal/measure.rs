//! What the journal measures of itself. Filled by the journal and its committer, read when somebody scrapes.

use std::time::Duration;

use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

/// See the module. Clones count together.
#[derive(Debug, Clone)]
pub struct Measure {
    /// Seconds from when a batch is given until it is durable.
    pub commit: Histogram,
    /// Seconds for writing and syncing what is written together.
    pub sync: Histogram,
    /// Records written together.
    pub changes: Histogram,
    /// Batches that shared a sync.
    pub callers: Histogram,
}

impl Measure {
    pub(super) fn new() -> Self {
        // 50 us to 26 s; 1 to 4096.
        let times = || Histogram::new(exponential_buckets(0.00005, 2.0, 20));
        let sizes = || Histogram::new(exponential_buckets(1.0, 2.0, 13));
        Self { commit: times(), sync: times(), changes: sizes(), callers: sizes() }
    }

    /// So many batches with so many changes were made durable together.
    pub(super) fn synced(&self, callers: usize, changes: usize, took: Duration) {
        self.sync.observe(took.as_secs_f64());
        self.changes.observe(changes as f64);
        self.callers.observe(callers as f64);
    }
}
