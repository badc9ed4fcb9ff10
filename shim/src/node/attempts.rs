//! What the kernel is at and nobody can end: making a connection, taking a mount away. Its caller may be gone long since: a call
//! that must come after it waits for the kernel, and not for the call.
//!
//! A connection that is being made belongs to no subsystem, and who lets go of a volume waits for its own, or a path would come
//! after that and stay. A mount that is being taken away is out of sight, and what was written to it is not yet where it belongs.

use std::sync::Arc;

use tokio::sync::watch;

use crate::deadline::Deadline;

/// See the module. Cheap to clone.
#[derive(Debug)]
pub(super) struct Attempts<K>(Arc<watch::Sender<Vec<K>>>);

impl<K> Default for Attempts<K> {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Vec::new())))
    }
}

impl<K> Clone for Attempts<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// Held for as long as the kernel is at it.
#[derive(Debug)]
pub(super) struct Attempt<K: PartialEq> {
    all: Attempts<K>,
    at: K,
}

impl<K: PartialEq + Clone> Attempts<K> {
    pub(super) fn begin(&self, at: K) -> Attempt<K> {
        self.0.send_modify(|all| all.push(at.clone()));
        Attempt { all: self.clone(), at }
    }

    /// The same, where there is none.
    pub(super) fn begin_alone(&self, at: K) -> Option<Attempt<K>> {
        let begun = self.0.send_if_modified(|all| {
            let none = !all.contains(&at);
            if none {
                all.push(at.clone());
            }
            none
        });
        begun.then(|| Attempt { all: self.clone(), at })
    }

    /// Waits until there is none.
    pub(super) async fn none(&self, at: &K) {
        let mut all = self.0.subscribe();
        // The sender lives as long as this.
        let _ = all.wait_for(|all| !all.contains(at)).await;
    }

    /// Waits until there is none. `false`: there still is.
    pub(super) async fn end(&self, at: &K, deadline: Deadline) -> bool {
        tokio::time::timeout(deadline.left(), self.none(at)).await.is_ok()
    }
}

impl<K: PartialEq> Drop for Attempt<K> {
    fn drop(&mut self) {
        self.all.0.send_modify(|all| {
            if let Some(at) = all.iter().position(|other| *other == self.at) {
                all.swap_remove(at);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use orlop_api::VolumeId;

    use super::*;

    #[tokio::test]
    async fn who_lets_go_waits_for_the_last_attempt() {
        let attempts = Attempts::default();
        let [volume, other] = [VolumeId::mint(), VolumeId::mint()];
        let soon = || Deadline::after(Duration::from_millis(50));
        let _elsewhere = attempts.begin(other);
        assert!(attempts.end(&volume, soon()).await, "another volume's");
        let (first, second) = (attempts.begin(volume), attempts.begin(volume));
        assert!(!attempts.end(&volume, soon()).await);
        drop(first);
        assert!(!attempts.end(&volume, soon()).await, "one of two");
        let waiting = tokio::spawn({
            let attempts = attempts.clone();
            async move { attempts.end(&volume, Deadline::default()).await }
        });
        tokio::task::yield_now().await;
        drop(second);
        assert!(waiting.await.unwrap_or_default());
    }
}
