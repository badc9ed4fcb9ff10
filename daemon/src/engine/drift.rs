//! What somebody changed in the kernel by hand, under our names: found, put back and told.
//!
//! The kernel's configuration can't be watched (configfs tells nobody of a change), so it is looked at: all of a protocol at
//! once, beside whatever goes on, and then what looks wrong once more, one volume after another, under its lock, and none of
//! which somebody is changing the access just now.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use orlop_api::{EventKind, Protocol, SystemState, VolumeId};
use tokio::time::{Instant, MissedTickBehavior};

use super::core::Core;
use super::events::Subject;
use super::locks::{Key, Mode};

/// How often it is looked at.
const LOOK: Duration = Duration::from_secs(60);

impl Core {
    /// Looks for as long as the daemon runs.
    pub(super) async fn look_for_drift(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first one is at once, and start-up has just converged everything.
        ticks.tick().await;
        loop {
            ticks.tick().await;
            if *self.state.read() == SystemState::Ready {
                self.look_for_drift_once().await;
            }
        }
    }

    /// Looks at all that should be served, and at all that is served under our names: once a protocol, whatever there is of it.
    pub(super) async fn look_for_drift_once(self: &Arc<Self>) {
        let mut drifted: BTreeMap<VolumeId, Vec<Protocol>> = BTreeMap::new();
        for (protocol, id) in self.drifted().await {
            drifted.entry(id).or_default().push(protocol);
        }
        // Whether portals can be reached is found out when a volume is converged: one of each protocol is, in any case.
        for id in self.one_of_each() {
            drifted.entry(id).or_default();
        }
        for (id, by) in drifted {
            self.put_back(id, &by).await;
        }
    }

    /// A volume that is served by each protocol that serves any.
    fn one_of_each(&self) -> Vec<VolumeId> {
        let opened: Vec<VolumeId> = self.opened.lock().keys().copied().collect();
        let view = self.view.read();
        let by = |id: VolumeId| Some((view.entry(id)?.label.protocol(), id));
        opened.into_iter().filter_map(by).collect::<BTreeMap<_, _>>().into_values().collect()
    }

    /// Under its lock, where it can't be mistaken for what somebody is changing. `by`: the protocols that serve it otherwise
    /// than they should.
    async fn put_back(self: &Arc<Self>, id: VolumeId, by: &[Protocol]) {
        // Whoever has it converges it.
        let wants = vec![(Key::Volume(id), Mode::ExclusiveNow)];
        let Ok(guards) = self.locks.acquire(wants, Instant::now()).await else { return };
        // The label that says who may use it has not been read since the journal was lost: nobody has said that they may not.
        if self.view.read().entry(id).is_none() && !self.unread.lock().is_empty() {
            return;
        }
        let attached = self.view.read().hosts_of(id).next().is_some();
        // Its operation is being settled, or it is tried again to serve it.
        if self.check_settled(|intent| intent.touches_access(id)).is_err()
            || self.retried.lock().contains(&id)
            || (attached && !self.opened.lock().contains_key(&id))
        {
            return;
        }
        let mut steps = Vec::new();
        for protocol in by {
            match self.converge_away(*protocol, id).await {
                Ok(more) => steps.extend(more),
                Err(f) => {
                    tracing::warn!(volume = %id, error = f.error.chain(), "what should not be served is")
                }
            }
        }
        let converged = self.converge_volume(id, None, false).await;
        match converged.map(|more| steps.into_iter().chain(more).collect::<Vec<_>>()) {
            Ok(steps) if steps.is_empty() => {}
            Ok(steps) => {
                tracing::warn!(volume = %id, "the target was not as it should be, and is put back");
                let detail = Some(steps.join("; "));
                let subject = Subject { volume: Some(id), detail, ..Subject::default() };
                self.events.publish(EventKind::Drift, subject);
                self.settings.metrics.drift(true);
            }
            Err(failure) => {
                let reason = failure.error.chain();
                tracing::warn!(volume = %id, error = reason, "the target is not as it should be");
                self.settings.metrics.drift(false);
                let core = self.clone();
                self.background(async move {
                    // Nobody else changes it before what is under way has ended.
                    if let Some(late) = failure.late {
                        let _ = late.await;
                    }
                    drop(guards);
                    // What nobody is attached to is looked at again with the next round.
                    if attached {
                        core.retry_export(id, reason);
                    }
                });
            }
        }
    }
}
