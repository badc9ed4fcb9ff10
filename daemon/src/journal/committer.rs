//! One thread that makes batches durable. While one sync is under way, the batches that arrive wait and
//! then share the next one: group commit.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::book::Book;
use super::{Batch, Contents, JournalError, Measure, Refusal};

/// Batches that may wait. Each belongs to an action whose task waits for it, so this bounds tasks too.
const QUEUE: usize = 4096;
/// Batches that share one sync at most, so that the first of them does not wait for an endless row.
const GROUP: usize = 512;

type Answer<T> = oneshot::Sender<Result<T, JournalError>>;

enum Work {
    Write(Batch, Answer<()>),
    Read(Answer<Contents>),
    /// The disk does not answer until the other end is gone.
    #[cfg(test)]
    Hang(Receiver<()>),
}

/// The handle to the thread.
#[derive(Debug)]
pub(super) struct Committer {
    queue: Sender<Work>,
    state: Arc<State>,
    measure: Measure,
}

#[derive(Debug, Default)]
struct State {
    /// Why nothing is written any more.
    refusal: Mutex<Option<Refusal>>,
    /// When the write that is under way began.
    since: Mutex<Option<Instant>>,
    /// Rings when one begins, and when nothing is written any more.
    stirs: Notify,
}

impl State {
    fn begins(&self, now: Instant) {
        *self.since.lock() = Some(now);
        self.stirs.notify_one();
    }

    fn closed(&self) -> JournalError {
        let refusal = self.refusal.lock();
        JournalError::Closed(refusal.as_ref().map(|r| r.why.clone()).unwrap_or_default())
    }
}

impl Committer {
    pub(super) fn start(book: Book) -> io::Result<Self> {
        let (queue, work) = bounded(QUEUE);
        let state = Arc::new(State::default());
        let measure = Measure::new();
        let (thread_state, measured) = (state.clone(), measure.clone());
        std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || run(book, &work, &thread_state, &measured))?;
        Ok(Self { queue, state, measure })
    }

    /// One that takes nothing, from the start.
    pub(super) fn closed(refusal: Refusal) -> Self {
        let (queue, _) = bounded(0);
        let state = State { refusal: Mutex::new(Some(refusal)), ..State::default() };
        Self { queue, state: Arc::new(state), measure: Measure::new() }
    }

    pub(super) async fn commit(&self, batch: Batch) -> Result<(), JournalError> {
        self.ask(|answer| Work::Write(batch, answer)).await
    }

    /// All records, as they are between two batches.
    pub(super) async fn read(&self) -> Result<Contents, JournalError> {
        self.ask(Work::Read).await
    }

    async fn ask<T>(&self, work: impl FnOnce(Answer<T>) -> Work) -> Result<T, JournalError> {
        let (answer, answered) = oneshot::channel();
        match self.queue.try_send(work(answer)) {
            Ok(()) => answered.await.unwrap_or_else(|_| Err(self.state.closed())),
            Err(TrySendError::Full(_)) => Err(JournalError::Full),
            Err(TrySendError::Disconnected(_)) => Err(self.state.closed()),
        }
    }

    #[cfg(test)]
    pub(super) fn hang(&self) -> Sender<()> {
        let (held, until) = bounded(0);
        let _ = self.queue.try_send(Work::Hang(until));
        held
    }

    /// What it has measured.
    pub(super) fn measure(&self) -> &Measure {
        &self.measure
    }

    /// Batches that wait.
    pub(super) fn depth(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn refusal(&self) -> Option<Refusal> {
        self.state.refusal.lock().clone()
    }

    /// Waits until a write begins, or until nothing is written any more. For one who waits.
    pub(super) async fn stirs(&self) {
        self.state.stirs.notified().await;
    }

    /// For how long the write that is under way has been.
    pub(super) fn writes_for(&self) -> Option<Duration> {
        self.state.since.lock().map(|since| since.elapsed())
    }
}

/// Ends when the last handle is dropped. After the first failure it writes nothing more: a store that
/// could not sync may have lost what it had accepted before (a failed fsync drops dirty pages), so
/// nothing that it says later can be believed. It goes on to answer, though: a batch that was queued at
/// the very moment of the failure would otherwise lie in a channel that nobody reads, and its caller
/// would wait for ever.
fn run(book: Book, work: &Receiver<Work>, state: &State, measure: &Measure) {
    write_until_failure(book, work, state, measure);
    for work in work {
        match work {
            Work::Write(_, answer) => drop(answer.send(Err(state.closed()))),
            Work::Read(answer) => drop(answer.send(Err(state.closed()))),
            #[cfg(test)]
            Work::Hang(_) => {}
        }
    }
}

fn write_until_failure(mut book: Book, queue: &Receiver<Work>, state: &State, measure: &Measure) {
    while let Ok(first) = queue.recv() {
        let (mut group, mut answers, mut readers) = (Batch::default(), Vec::new(), Vec::new());
        for work in std::iter::once(first).chain(queue.try_iter().take(GROUP - 1)) {
            match work {
                Work::Write(batch, answer) => {
                    group.append(batch);
                    answers.push(answer);
                }
                Work::Read(answer) => readers.push(answer),
                #[cfg(test)]
                Work::Hang(until) => {
                    state.begins(Instant::now());
                    let _ = until.recv();
                }
            }
        }
        let (began, changes) = (Instant::now(), group.changes.len());
        state.begins(began);
        // A panic in the store is a failure like any other.
        let written = catch_unwind(AssertUnwindSafe(|| match answers.is_empty() {
            true => Ok(()),
            false => book.write(group),
        }));
        *state.since.lock() = None;
        match written.unwrap_or_else(|_| Err(io::Error::other("the store panicked"))) {
            Ok(()) => {
                if !answers.is_empty() {
                    measure.synced(answers.len(), changes, began.elapsed());
                }
                for answer in answers {
                    // The caller may be gone; its batch is durable all the same.
                    let _ = answer.send(Ok(()));
                }
            }
            Err(e) => {
                tracing::error!(error = %e, "the journal could not be written: no further change is taken");
                let why = format!("the journal could not be written ({e}): no change is taken until it can");
                *state.refusal.lock() = Some(Refusal { why, passes: true });
                state.stirs.notify_one();
                for answer in answers {
                    let copy = io::Error::new(e.kind(), e.to_string());
                    let _ = answer.send(Err(JournalError::Write(copy)));
                }
                for answer in readers {
                    let _ = answer.send(Err(state.closed()));
                }
                return;
            }
        }
        for answer in readers {
            let read = catch_unwind(AssertUnwindSafe(|| Contents::scan(&*book.store)));
            let read = read.unwrap_or_else(|_| Err(io::Error::other("the store panicked")));
            let _ = answer.send(read.map_err(JournalError::Read));
        }
    }
}
