//! How long a blocking operation may take, and whether anyone still waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Handed down with every blocking call. An operation of several kernel changes calls
/// [`Deadline::check`] between them: one that has overrun makes no further change, because by then
/// another thread may be at work in its place.
#[derive(Debug, Clone)]
pub struct Deadline {
    at: Instant,
    abandoned: Arc<AtomicBool>,
}

/// The operation took too long and stopped between two changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the deadline passed")]
pub struct Overrun;

impl Deadline {
    /// That long from now.
    pub fn after(d: Duration) -> Self {
        Self { at: Instant::now() + d, abandoned: Arc::default() }
    }

    /// When it ends.
    pub fn at(&self) -> Instant {
        self.at
    }

    /// What is left; zero when it has passed or nobody waits any more.
    pub fn remaining(&self) -> Duration {
        if self.abandoned.load(Ordering::Acquire) {
            return Duration::ZERO;
        }
        self.at.saturating_duration_since(Instant::now())
    }

    /// Stops the operation at its next check.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
    }

    /// An error once nothing is left.
    pub fn check(&self) -> Result<(), Overrun> {
        if self.remaining().is_zero() { Err(Overrun) } else { Ok(()) }
    }

    /// Sleeps for `d`, or for what is left if that is less. For the few things that the kernel gives
    /// nobody a way to wait for; whoever calls it says which.
    #[allow(clippy::disallowed_methods, reason = "the one place")]
    pub fn pause(&self, d: Duration) -> Result<(), Overrun> {
        self.check()?;
        std::thread::sleep(d.min(self.remaining()));
        Ok(())
    }

    /// This one, or `d` from now if that is sooner. Abandoned together.
    pub fn at_most(&self, d: Duration) -> Self {
        Self { at: self.at.min(Instant::now() + d), abandoned: self.abandoned.clone() }
    }
}
