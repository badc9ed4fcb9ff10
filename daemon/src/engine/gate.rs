//! The gate before the door: counts the actions that run, and refuses new ones when the daemon stops.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

#[derive(Debug, Clone)]
pub(super) struct Gate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    closed: Mutex<bool>,
    running: watch::Sender<usize>,
}

/// Held while an action runs.
#[derive(Debug)]
pub(super) struct Pass(Arc<Inner>);

impl Gate {
    pub(super) fn new() -> Self {
        Self(Arc::new(Inner { closed: Mutex::new(false), running: watch::Sender::new(0) }))
    }

    /// A pass, unless the gate is closed.
    pub(super) fn enter(&self) -> Option<Pass> {
        let closed = self.0.closed.lock();
        if *closed {
            return None;
        }
        self.0.running.send_modify(|n| *n += 1);
        Some(Pass(self.0.clone()))
    }

    /// Closes the gate and waits for those inside. How many were still there in the end.
    pub(super) async fn close(&self, within: Duration) -> usize {
        *self.0.closed.lock() = true;
        let mut running = self.0.running.subscribe();
        let _ = tokio::time::timeout(within, running.wait_for(|n| *n == 0)).await;
        *self.0.running.borrow()
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.running.send_modify(|n| *n -= 1);
    }
}
