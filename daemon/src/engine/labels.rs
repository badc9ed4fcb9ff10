//! Labels written behind: after an attach or detach the hosts on a volume's label are brought up to date,
//! a moment later and many changes at once. The journal has decided already; the label is what rebuilds
//! access rules should the journal be lost.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use orlop_api::VolumeId;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::core::{Core, On, Outcome};
use super::locks::{Key, Mode};

/// How long changes gather before they are written.
const GATHER: Duration = Duration::from_millis(500);
/// Labels written at a time.
const PARALLEL: usize = 8;

/// Volumes whose label is older than the view.
#[derive(Debug, Default)]
pub(super) struct DirtyLabels {
    ids: Mutex<BTreeSet<VolumeId>>,
    bell: Notify,
}

impl DirtyLabels {
    pub(super) fn mark(&self, id: VolumeId) {
        if self.ids.lock().insert(id) {
            self.bell.notify_one();
        }
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        self.ids.lock().len()
    }

    fn take(&self) -> BTreeSet<VolumeId> {
        std::mem::take(&mut *self.ids.lock())
    }
}

impl Core {
    /// Writes labels for as long as the daemon runs.
    pub(super) async fn write_labels_behind(self: Arc<Self>) {
        loop {
            self.dirty.bell.notified().await;
            tokio::time::sleep(GATHER).await;
            self.write_labels().await;
        }
    }

    /// Has labels written that say something else than the journal: volumes come back with what they said when they went.
    pub(super) fn mark_outdated_labels(&self) {
        let outdated = self.view.read().outdated_labels();
        for id in outdated {
            self.dirty.mark(id);
        }
    }

    /// Writes those that are due now.
    pub(super) async fn write_labels(self: &Arc<Self>) {
        let due = self.dirty.take();
        futures_util::stream::iter(due)
            .for_each_concurrent(PARALLEL, |id| async move {
                if let Err(f) = self.write_label(id).await {
                    tracing::warn!(volume = %id, error = f.error.chain(), "a label could not be written");
                    let core = self.clone();
                    self.background(async move {
                        tokio::time::sleep(Duration::from_secs(10)).await;
                        core.dirty.mark(id);
                    });
                }
            })
            .await;
    }

    async fn write_label(&self, id: VolumeId) -> Outcome<()> {
        let until = Instant::now() + self.settings.settle_deadline;
        // Growing and deleting hold this lock too, so the label read here is the one to build on.
        let _guards = self.locks.acquire(vec![(Key::Backing(id), Mode::Exclusive)], until).await?;
        let (pool, mut label, hosts) = {
            let view = self.view.read();
            let Some(v) = view.entry(id) else { return Ok(()) };
            (v.pool.clone(), v.label.clone(), view.label_hosts(id))
        };
        if label.hosts == hosts {
            return Ok(());
        }
        label.hosts = hosts.clone();
        let open = self.open_pool(&pool)?;
        self.on_pool(&open, On::Make, until, move |p, d| p.relabel(&label, d)).await?;
        self.view.write().set_label_hosts(id, hosts);
        Ok(())
    }
}
