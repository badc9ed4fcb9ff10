//! Reload: the configuration is read anew under a running daemon. What can be applied is applied, all of it or nothing; what can't
//! waits for a restart and is told by its key.
//!
//! Reading blocks and changes nothing, so it is done in a lane and may be given up; applying neither waits nor fails half-way.

use orlop_api::{EventKind, Reloaded, SettingChange};
use tokio::time::Instant;

use super::core::{Core, run};
use super::error::{Error, Result};
use super::events::Subject;
use super::quotas::Limits;
use super::space::FillLimits;

/// The alarm about a configuration that can't be read.
const ALARM: &str = "configuration";

/// Where the configuration comes from; in tests one that says what a test wants.
pub trait Configuration: Send + Sync {
    /// Reads it anew, or tells all that is wrong with it. Blocks, and changes nothing.
    fn read(&self) -> std::result::Result<Reread, Vec<String>>;
}

/// What was read anew and is right.
pub struct Reread {
    /// How full pools may be.
    pub fill: FillLimits,
    /// What one principal may take.
    pub quotas: Limits,
    /// Applies what is not the engine's, and tells what differs from what ran. Called at most once, by one at a time; when it
    /// fails it has done nothing.
    pub apply: Box<dyn FnOnce() -> std::result::Result<Reloaded, Vec<String>> + Send>,
}

impl Core {
    pub(super) async fn reload(&self, until: Instant) -> Result<Reloaded> {
        // What an earlier one has read must not be applied over what a later one has.
        let one = tokio::time::timeout_at(until, self.reloading.lock()).await;
        let _one = one.map_err(|_| Error::Busy("the configuration".into()))?;
        let configuration = self.settings.configuration.clone();
        let read = run(&self.setup_lane, until, move |_| configuration.read().map_err(Error::Configuration));
        let done = read.await.map_err(|f| f.error).and_then(|reread| {
            let done = (reread.apply)().map_err(Error::Configuration)?;
            self.quotas.set(reread.quotas);
            self.limit_fill(reread.fill);
            Ok(done)
        });
        match &done {
            Ok(done) => {
                let words = words(done);
                self.view.write().clear(ALARM);
                tracing::info!(
                    applied = all(&done.applied),
                    after_restart = all(&done.after_restart),
                    "the configuration was read anew: {words}"
                );
                let about = Subject { detail: Some(words), ..Subject::default() };
                self.events.publish(EventKind::ConfigurationReloaded, about);
            }
            Err(Error::Configuration(wrong)) => {
                for wrong in wrong {
                    tracing::warn!(wrong, "the configuration is wrong: what was running goes on");
                }
                let detail = format!(
                    "it is wrong, and a restart would fail; what was running goes on: {}",
                    wrong.join("; ")
                );
                self.view.write().raise(ALARM.into(), detail);
            }
            // Its deadline, or a lane without room: nothing is known of it.
            Err(_) => {}
        }
        done
    }
}

/// What came of it, in one line.
fn words(done: &Reloaded) -> String {
    let keys = |all: &[SettingChange]| all.iter().map(|c| c.key.clone()).collect::<Vec<_>>().join(", ");
    match (done.applied.as_slice(), done.after_restart.as_slice()) {
        ([], []) => "nothing changed".into(),
        ([], waits) => format!("nothing was applied; after a restart: {}", keys(waits)),
        (applied, []) => format!("applied: {}", keys(applied)),
        (applied, waits) => format!("applied: {}; after a restart: {}", keys(applied), keys(waits)),
    }
}

/// `log.level = "debug", was "info"`, for the log.
fn all(changes: &[SettingChange]) -> String {
    let or_not = |value: &Option<String>| value.clone().unwrap_or_else(|| "not set".into());
    let each = changes.iter().map(|c| format!("{} = {}, was {}", c.key, or_not(&c.to), or_not(&c.from)));
    each.collect::<Vec<_>>().join("; ")
}
