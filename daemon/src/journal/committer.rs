//! One thread that makes batches durable. While one sync is under way, the batches that arrive wait and
//! then share the next one: group commit.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use tokio::sync::oneshot;

use super::{Batch, JournalError, Measure, Store};

/// Batches that may wait. Each belongs to an action whose task waits for it, so this bounds tasks too.
const QUEUE: usize = 4096;
/// Batches that share one sync at most, so that the first of them does not wait for an endless row.
const GROUP: usize = 512;

type Answer = oneshot::Sender<Result<(), JournalError>>;

/// The handle to the thread.
#[derive(Debug)]
pub(super) struct Committer {
    queue: Sender<(Batch, Answer)>,
    open: Arc<AtomicBool>,
}

impl Committer {
    pub(super) fn start(store: Box<dyn Store>, measure: Measure) -> io::Result<Self> {
        let (queue, batches) = bounded(QUEUE);
        let open = Arc::new(AtomicBool::new(true));
        let thread_open = open.clone();
        std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || run(store, &batches, &thread_open, &measure))?;
        Ok(Self { queue, open })
    }

    pub(super) async fn commit(&self, batch: Batch) -> Result<(), JournalError> {
        let (answer, answered) = oneshot::channel();
        match self.queue.try_send((batch, answer)) {
            Ok(()) => answered.await.unwrap_or(Err(JournalError::Closed)),
            Err(TrySendError::Full(_)) => Err(JournalError::Full),
            Err(TrySendError::Disconnected(_)) => Err(JournalError::Closed),
        }
    }

    /// Batches that wait.
    pub(super) fn depth(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }
}

/// Ends when the last handle is dropped. After the first failure it writes nothing more: a store that
/// could not sync may have lost what it had accepted before (a failed fsync drops dirty pages), so
/// nothing that it says later can be believed. It goes on to answer, though: a batch that was queued at
/// the very moment of the failure would otherwise lie in a channel that nobody reads, and its caller
/// would wait for ever.
fn run(store: Box<dyn Store>, batches: &Receiver<(Batch, Answer)>, open: &AtomicBool, measure: &Measure) {
    write_until_failure(store, batches, open, measure);
    for (_, answer) in batches {
        let _ = answer.send(Err(JournalError::Closed));
    }
}

fn write_until_failure(
    mut store: Box<dyn Store>,
    batches: &Receiver<(Batch, Answer)>,
    open: &AtomicBool,
    measure: &Measure,
) {
    while let Ok((mut group, answer)) = batches.recv() {
        let mut answers = vec![answer];
        for (batch, answer) in batches.try_iter().take(GROUP - 1) {
            group.append(batch);
            answers.push(answer);
        }
        let began = Instant::now();
        // A panic in the store is a failure like any other.
        let written = catch_unwind(AssertUnwindSafe(|| store.apply(&group).and_then(|()| store.sync())))
            .unwrap_or_else(|_| Err(io::Error::other("the store panicked")));
        match written {
            Ok(()) => {
                measure.synced(answers.len(), group.changes.len(), began.elapsed());
                for answer in answers {
                    // The caller may be gone; its batch is durable all the same.
                    let _ = answer.send(Ok(()));
                }
            }
            Err(e) => {
                open.store(false, Ordering::Release);
                tracing::error!(error = %e, "the journal could not be written: no further change is taken");
                for answer in answers {
                    let copy = io::Error::new(e.kind(), e.to_string());
                    let _ = answer.send(Err(JournalError::Write(copy)));
                }
                return;
            }
        }
    }
}
