//! Connections that the kernel is making. Nobody can end one before it is made or refused, its caller may be gone long
//! since, and until then it belongs to no subsystem: who lets go of a volume waits for its own, or a path would come after
//! that and stay.

use std::sync::Arc;

use orlop_api::VolumeId;
use tokio::sync::watch;

use crate::deadline::Deadline;

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Attempts(Arc<watch::Sender<Vec<VolumeId>>>);

impl Default for Attempts {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Vec::new())))
    }
}

/// Held for as long as the kernel is at it.
#[derive(Debug)]
pub(super) struct Attempt {
    all: Attempts,
    volume: VolumeId,
}

impl Attempts {
    pub(super) fn begin(&self, volume: VolumeId) -> Attempt {
        self.0.send_modify(|all| all.push(volume));
        Attempt { all: self.clone(), volume }
    }

    /// Waits until there is none to a volume. `false`: there still is.
    pub(super) async fn end(&self, volume: VolumeId, deadline: Deadline) -> bool {
        let mut all = self.0.subscribe();
        // The sender lives as long as this.
        let none = all.wait_for(|all| !all.contains(&volume));
        tokio::time::timeout(deadline.left(), none).await.is_ok()
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.all.0.send_modify(|all| {
            if let Some(at) = all.iter().position(|volume| *volume == self.volume) {
                all.swap_remove(at);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn who_lets_go_waits_for_the_last_attempt() {
        let attempts = Attempts::default();
        let [volume, other] = [VolumeId::mint(), VolumeId::mint()];
        let soon = || Deadline::after(Duration::from_millis(50));
        let _elsewhere = attempts.begin(other);
        assert!(attempts.end(volume, soon()).await, "another volume's");
        let (first, second) = (attempts.begin(volume), attempts.begin(volume));
        assert!(!attempts.end(volume, soon()).await);
        drop(first);
        assert!(!attempts.end(volume, soon()).await, "one of two");
        let waiting = tokio::spawn({
            let attempts = attempts.clone();
            async move { attempts.end(volume, Deadline::default()).await }
        });
        tokio::task::yield_now().await;
        drop(second);
        assert!(waiting.await.unwrap_or_default());
    }
}
