//! The journal and its disk: what was found at start, whether changes can be kept, and what to do when they
//! can't. Told as alarms.
//!
//! Without its journal the daemon takes no change and goes on with everything else: reads, events, targets. A
//! write that failed may have lost what the store had accepted before, so nothing that the store says later is
//! believed: when the disk can be written again the daemon is started anew, and reads all of it from the disk.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::action::Action;
use super::core::{Core, run};
use super::error::{Error, Result};
use crate::journal::{self, Found};

/// How often it is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// A write that takes longer is an alarm, and those who have waited to the end of their time are answered.
const SLOW: Duration = Duration::from_secs(5);
/// How soon the disk is tried after a failure, and how seldom after many.
const SOON: Duration = Duration::from_secs(5);
const SELDOM: Duration = Duration::from_secs(60);

/// The alarm about the disk.
const DISK: &str = "state";
/// The alarm about the journal as it was found.
pub(super) const JOURNAL: &str = "journal";
/// The alarm about journals that were set aside before.
const OLD: &str = "journal/set-aside";

impl Core {
    /// Refuses a change that could not be kept.
    pub(super) fn check_kept(&self, action: &Action) -> Result<()> {
        match self.journal.refusal() {
            Some(refusal) if action.changes() => Err(Error::Unavailable(refusal.why)),
            _ => Ok(()),
        }
    }

    /// Returns when a caller has waited until then and what it waits for is the journal, of which nobody
    /// knows when it answers.
    pub(super) async fn waits_for_journal(&self, until: Instant) {
        tokio::time::sleep_until(until).await;
        while self.journal.writes_for().is_none_or(|since| since < LOOK) {
            tokio::time::sleep(LOOK / 4).await;
        }
    }

    /// Tells how the journal was found, and what to do.
    pub(super) fn note_how_found(&self, had_pools: bool) {
        let restored =
            "pools, hosts and attachments were restored from their copies: check them, and make new tokens";
        let text = match self.journal.found() {
            Found::New if !had_pools => None,
            Found::Whole => None,
            Found::New | Found::Lost => Some(format!("the journal was lost; {restored}")),
            Found::SetAside { why, at } => Some(format!(
                "the journal can't be believed ({why}) and is kept as {}; {restored}; bring what it alone had \
                 (orlop system restore), then remove it",
                at.display()
            )),
            Found::Unread { why } => Some(format!(
                "the journal is left as it is ({why}); who may attach is known from labels, and no change is taken: \
                 put the daemon back that wrote it, or move the journal away and start anew without it"
            )),
        };
        if let Some(text) = text {
            self.view.write().raise(JOURNAL.into(), text);
        } else if let Ok(old) = journal::set_aside_of(&self.journal_dir())
            && let Some(newest) = old.last()
        {
            let text = format!(
                "{} of them: the newest is {}; bring back what is missing since then (orlop system restore), and \
                 remove what is not needed any more",
                old.len(),
                newest.display()
            );
            self.view.write().raise(OLD.into(), text);
        }
    }

    /// Looks for as long as the daemon runs. Ends when it should be started anew.
    pub(super) async fn mind_journal(self: Arc<Self>) {
        let mut tried = (Instant::now(), SOON);
        let mut slow = false;
        loop {
            // Between two writes there is nothing to see.
            if !slow && self.journal.is_open() && self.journal.writes_for().is_none() {
                self.journal.stirs().await;
            }
            tokio::time::sleep(LOOK).await;
            let Some(refusal) = self.journal.refusal() else {
                slow = self.note_slow(slow);
                tried.0 = Instant::now();
                continue;
            };
            let what = if refusal.passes {
                "volumes are served and can be read of; make room on the state partition, or bring its disk back: the \
                 daemon then starts anew by itself"
            } else {
                "volumes are served as their labels say"
            };
            self.view.write().raise(DISK.into(), format!("{}; {what}", refusal.why));
            if !refusal.passes || tried.0.elapsed() < tried.1 {
                continue;
            }
            match self.try_disk().await {
                Ok(()) => {
                    tracing::info!("the state partition can be written again: the daemon starts anew");
                    return self.anew.notify_one();
                }
                Err(error) => {
                    tracing::warn!(error = error.chain(), "the state partition still can't be written");
                    tried = (Instant::now(), (tried.1 * 2).min(SELDOM));
                }
            }
        }
    }

    fn note_slow(&self, was: bool) -> bool {
        let slow = self.journal.writes_for().filter(|since| *since > SLOW);
        match slow {
            Some(since) => {
                let text = format!(
                    "a write to the journal has taken {} s and is not done: changes wait for it; look at the state disk",
                    since.as_secs()
                );
                self.view.write().raise(DISK.into(), text);
            }
            None if was => self.view.write().clear(DISK),
            None => {}
        }
        slow.is_some()
    }

    async fn try_disk(&self) -> Result<()> {
        let dir = self.journal_dir();
        let until = Instant::now() + self.settings.settle_deadline;
        let tried = run(&self.setup_lane, until, move |_| journal::probe(&dir)).await;
        match tried {
            Ok(()) => Ok(()),
            Err(f) => {
                if let Some(late) = f.late {
                    let _ = late.await;
                }
                Err(f.error)
            }
        }
    }

    pub(super) fn journal_dir(&self) -> std::path::PathBuf {
        self.settings.state_dir.join("journal")
    }
}
