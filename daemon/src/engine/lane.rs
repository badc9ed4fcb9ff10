//! Lanes: named threads where blocking work runs, fed by a bounded channel. One lane a pool for making
//! and one for opening, one lane with one thread a target kind (one writer, R4).
//!
//! Every job has a deadline. One that has not started by then never starts. One that has started and
//! overruns is given up: its thread is replaced at once, so that a hung disk stalls only its own volume
//! (R12), and its late end is handed to whoever wants to clean up behind it. In a lane that is told to, another
//! thread stands in for one that is slow, long before that: what waits behind it goes on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use orlop_api::ErrorKind;
use tokio::sync::oneshot;
use tracing::Span;

use super::meter::Meter;
use crate::kernel::Deadline;
use crate::telemetry::spans;

/// Threads of one lane that may hang at a time before the lane takes no more work: each is a kernel
/// thread's worth of memory that nobody can give back.
const MOST_HUNG: usize = 32;

/// Why a job did not run or did not end.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    /// Too many jobs wait already, or too many hang.
    #[error("{lane} has too much work waiting: try again later")]
    Full {
        /// The lane's name.
        lane: String,
    },
    /// It waited for its turn until its deadline. Nothing was done.
    #[error("{lane} did not get to it in time: nothing was done")]
    Expired {
        /// The lane's name.
        lane: String,
    },
    /// It started and did not end in time. It is still under way.
    #[error("{lane} is still at work on it")]
    Overrun {
        /// The lane's name.
        lane: String,
    },
    /// It panicked. A defect.
    #[error("a job of {lane} died")]
    Died {
        /// The lane's name.
        lane: String,
    },
}

impl LaneError {
    /// The kind that a caller hears.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Full { .. } | Self::Expired { .. } => ErrorKind::Unavailable,
            Self::Overrun { .. } => ErrorKind::Deadline,
            Self::Died { .. } => ErrorKind::Internal,
        }
    }
}

/// The end of a job that overran, whenever that is.
pub type Late = oneshot::Receiver<()>;

const QUEUED: u8 = 0;
const RUNNING: u8 = 1;
const DONE: u8 = 2;
/// Another thread stands in for its own.
const SLOW: u8 = 3;
const GIVEN_UP: u8 = 4;

struct Job {
    number: u64,
    state: Arc<AtomicU8>,
    run: Box<dyn FnOnce() + Send>,
}

struct Shared {
    name: String,
    jobs: Receiver<Job>,
    /// May be below zero for a moment: a job can end before it is counted that it hangs.
    hung: AtomicIsize,
    threads: AtomicUsize,
    wanted: usize,
    /// After what time a job is slow.
    slow: Option<Duration>,
    /// Whether other threads go first.
    yields: bool,
    meter: Meter,
}

/// See the module. Its threads end when it is dropped and its queue is empty.
pub struct Lane {
    queue: Sender<Job>,
    shared: Arc<Shared>,
}

impl Lane {
    /// Starts `threads` threads that share a queue of `depth` jobs. Another thread stands in for one whose job takes
    /// longer than `slow`: such jobs must not mind another beside them.
    pub fn start(name: &str, threads: usize, depth: usize, slow: Option<Duration>) -> std::io::Result<Self> {
        Self::start_as(name, threads, depth, slow, false)
    }

    /// The same for work that lets other threads go first where there are not enough processors for all: no host waits for
    /// it with its I/O.
    pub fn start_yielding(name: &str, threads: usize, depth: usize) -> std::io::Result<Self> {
        Self::start_as(name, threads, depth, None, true)
    }

    fn start_as(
        name: &str,
        threads: usize,
        depth: usize,
        slow: Option<Duration>,
        yields: bool,
    ) -> std::io::Result<Self> {
        let (queue, jobs) = bounded(depth);
        let shared = Arc::new(Shared {
            name: name.to_string(),
            jobs,
            hung: AtomicIsize::new(0),
            threads: AtomicUsize::new(0),
            wanted: threads,
            slow,
            yields,
            meter: Meter::new(),
        });
        for _ in 0..threads {
            spawn_worker(&shared)?;
        }
        Ok(Self { queue, shared })
    }

    /// Runs `f` on a thread of the lane, and waits for it until `within` has passed. With
    /// [`LaneError::Overrun`] comes the news of its late end.
    pub async fn run<T: Send + 'static>(
        &self,
        within: Duration,
        f: impl FnOnce(&Deadline) -> T + Send + 'static,
    ) -> Result<T, (LaneError, Option<Late>)> {
        self.job(within, self.shared.slow, f).await
    }

    /// The same for a job that may take long by its nature: no other thread stands in for it before it overruns.
    pub async fn run_long<T: Send + 'static>(
        &self,
        within: Duration,
        f: impl FnOnce(&Deadline) -> T + Send + 'static,
    ) -> Result<T, (LaneError, Option<Late>)> {
        self.job(within, None, f).await
    }

    async fn job<T: Send + 'static>(
        &self,
        within: Duration,
        slow: Option<Duration>,
        f: impl FnOnce(&Deadline) -> T + Send + 'static,
    ) -> Result<T, (LaneError, Option<Late>)> {
        let done = self.answered(within, slow, f).await;
        if let Err((error, _)) = &done {
            self.shared.meter.failed(error);
        }
        done
    }

    async fn answered<T: Send + 'static>(
        &self,
        within: Duration,
        slow: Option<Duration>,
        f: impl FnOnce(&Deadline) -> T + Send + 'static,
    ) -> Result<T, (LaneError, Option<Late>)> {
        let lane = || self.shared.name.clone();
        if self.hung() >= MOST_HUNG {
            return Err((LaneError::Full { lane: lane() }, None));
        }
        let deadline = Deadline::after(within);
        let state = Arc::new(AtomicU8::new(QUEUED));
        let (answer, mut answered) = oneshot::channel();
        let (ended, late) = oneshot::channel();
        let job_deadline = deadline.clone();
        let (caller, shared) = (Span::current(), self.shared.clone());
        let waits = tracing::info_span!(target: spans::TARGET, "wait", lane = shared.name);
        let run = Box::new(move || {
            drop(waits);
            let works =
                tracing::info_span!(target: spans::TARGET, parent: &caller, "work", lane = shared.name);
            let _works = works.enter();
            // A panic must not take the thread with it; the dropped `answer` tells the caller.
            if let Ok(value) = catch_unwind(AssertUnwindSafe(|| f(&job_deadline))) {
                let _ = answer.send(value);
            }
            let _ = ended.send(());
        });
        let number = self.shared.meter.waits();
        match self.queue.try_send(Job { number, state: state.clone(), run }) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.shared.meter.is_gone(number);
                return Err((LaneError::Full { lane: lane() }, None));
            }
        }
        // A moment more than the job has: one that checks its deadline ends with a better error.
        let patience = Instant::now() + within + Duration::from_millis(200);
        loop {
            let left = patience.saturating_duration_since(Instant::now());
            let next = slow.map_or(left, |slow| slow.min(left));
            match tokio::time::timeout(next, &mut answered).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(_)) => return Err((LaneError::Died { lane: lane() }, None)),
                Err(_) if next == left => break,
                Err(_) => {
                    let slow = state.compare_exchange(RUNNING, SLOW, Ordering::AcqRel, Ordering::Acquire);
                    if slow.is_ok() {
                        self.stand_in();
                    }
                }
            }
        }
        deadline.abandon();
        match state.swap(GIVEN_UP, Ordering::AcqRel) {
            QUEUED => {
                self.shared.meter.is_gone(number);
                Err((LaneError::Expired { lane: lane() }, None))
            }
            RUNNING => {
                self.stand_in();
                Err((LaneError::Overrun { lane: lane() }, Some(late)))
            }
            SLOW => Err((LaneError::Overrun { lane: lane() }, Some(late))),
            // It ended in the very moment.
            _ => answered.try_recv().map_err(|_| (LaneError::Died { lane: lane() }, None)),
        }
    }

    /// Another thread in the place of one that hangs or is slow.
    fn stand_in(&self) {
        self.shared.hung.fetch_add(1, Ordering::AcqRel);
        if let Err(e) = spawn_worker(&self.shared) {
            tracing::error!(lane = %self.shared.name, error = %e, "no thread in place of a hung one");
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// What it has measured.
    pub(super) fn meter(&self) -> &Meter {
        &self.shared.meter
    }

    /// Jobs that wait.
    pub fn depth(&self) -> usize {
        self.queue.len()
    }

    /// Threads that hang, or are so slow that others stand in for them.
    pub fn hung(&self) -> usize {
        usize::try_from(self.shared.hung.load(Ordering::Acquire)).unwrap_or(0)
    }

    /// Whether as many threads take jobs as should.
    pub fn is_alive(&self) -> bool {
        self.shared.threads.load(Ordering::Acquire) >= self.shared.wanted + self.hung()
    }
}

fn spawn_worker(shared: &Arc<Shared>) -> std::io::Result<()> {
    let lane = shared.clone();
    std::thread::Builder::new().name(shared.name.clone()).spawn(move || {
        lane.threads.fetch_add(1, Ordering::AcqRel);
        if lane.yields {
            yield_to_others();
        }
        work(&lane);
        lane.threads.fetch_sub(1, Ordering::AcqRel);
    })?;
    Ok(())
}

/// On Linux a thread has a nice value of its own, which programs that it starts take over.
fn yield_to_others() {
    const NICE: i32 = 10;
    if cfg!(target_os = "linux")
        && let Err(error) = rustix::process::setpriority_process(None, NICE)
    {
        tracing::debug!(%error, "a thread does not yield to others");
    }
}

fn work(lane: &Shared) {
    while let Ok(job) = lane.jobs.recv() {
        if job.state.compare_exchange(QUEUED, RUNNING, Ordering::AcqRel, Ordering::Acquire).is_err() {
            lane.meter.is_gone(job.number);
            continue;
        }
        let started = Instant::now();
        lane.meter.begins(job.number);
        (job.run)();
        lane.meter.ends(job.number);
        let was = job.state.swap(DONE, Ordering::AcqRel);
        if was == GIVEN_UP || was == SLOW {
            lane.hung.fetch_sub(1, Ordering::AcqRel);
            let seconds = started.elapsed().as_secs_f64();
            match was {
                SLOW => tracing::info!(lane = %lane.name, seconds, "a slow job has ended"),
                _ => tracing::warn!(lane = %lane.name, seconds, "a job that was given up has ended"),
            }
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    const SHORT: Duration = Duration::from_millis(30);
    const LONG: Duration = Duration::from_secs(10);

    #[tokio::test]
    #[cfg(target_os = "linux")]
    async fn a_thread_yields_for_itself_alone() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let mine = nice();
        let lane = Lane::start_yielding("later", 1, 16).unwrap();
        assert_eq!((lane.run(LONG, move |_| nice()).await.unwrap(), nice()), (mine.max(10), mine));
        let lane = Lane::start("now", 1, 16, None).unwrap();
        assert_eq!(lane.run(LONG, move |_| nice()).await.unwrap(), mine);
    }

    #[tokio::test]
    async fn jobs_run_in_order_on_one_thread() {
        let lane = Lane::start("one", 1, 16, None).unwrap();
        let a = lane.run(LONG, |_| std::thread::current().id()).await.unwrap();
        let b = lane.run(LONG, |_| std::thread::current().id()).await.unwrap();
        assert_eq!(a, b);
    }

    #[tokio::test]
    async fn a_hung_job_is_replaced_and_its_end_is_told() {
        let lane = Lane::start("hang", 1, 16, None).unwrap();
        let (release, wait) = bounded::<()>(0);
        let hung = lane.run(SHORT, move |d| (wait.recv(), d.check().is_err())).await;
        let Err((LaneError::Overrun { .. }, Some(late))) = hung else { panic!("{hung:?}") };
        assert_eq!(lane.hung(), 1);
        assert_eq!(lane.run(LONG, |_| 7).await.unwrap(), 7);
        assert!(lane.is_alive());
        let (waiting, running) = lane.meter().oldest();
        assert!(waiting.is_zero() && running >= SHORT, "{waiting:?} {running:?}");
        release.send(()).unwrap();
        late.await.unwrap();
        // Its end is told before the thread has noted it.
        for _ in 0..100 {
            if lane.hung() == 0 && lane.meter().oldest().1.is_zero() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(lane.hung(), 0);
        assert!(lane.is_alive());
        assert!(lane.meter().oldest().1.is_zero());
        assert_eq!(lane.meter().failures(), [("full", 0), ("expired", 0), ("overrun", 1), ("died", 0)]);
    }

    #[tokio::test]
    async fn what_waits_behind_a_slow_job_goes_on_and_the_slow_one_is_answered() {
        let lane = Arc::new(Lane::start("slow", 1, 16, Some(SHORT)).unwrap());
        let (release, wait) = bounded::<()>(0);
        let slow = lane.clone();
        let slow = tokio::spawn(async move { slow.run(LONG, move |_| wait.recv().is_ok()).await });
        tokio::time::sleep(SHORT / 3).await;
        assert_eq!(lane.run(LONG, |_| 7).await.unwrap(), 7);
        assert!(lane.is_alive() && lane.hung() == 1);
        release.send(()).unwrap();
        assert!(slow.await.unwrap().unwrap());
        for _ in 0..100 {
            if lane.hung() == 0 && lane.shared.threads.load(Ordering::Acquire) == 1 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!((lane.hung(), lane.shared.threads.load(Ordering::Acquire)), (0, 1));
        // One that is slow and then overruns is given up like any other.
        let (release, wait) = bounded::<()>(0);
        let hung = lane.run(SHORT * 3, move |_| wait.recv().is_ok()).await;
        let Err((LaneError::Overrun { .. }, Some(late))) = hung else { panic!("{hung:?}") };
        assert_eq!((lane.hung(), lane.run(LONG, |_| 7).await.unwrap()), (1, 7));
        release.send(()).unwrap();
        late.await.unwrap();
    }

    #[tokio::test]
    async fn a_job_that_never_got_its_turn_does_nothing() {
        let lane = Arc::new(Lane::start("turn", 1, 16, None).unwrap());
        let (release, wait) = bounded::<()>(0);
        let first = tokio::spawn({
            let lane = lane.clone();
            async move { lane.run(LONG, move |_| wait.recv().is_ok()).await }
        });
        tokio::time::sleep(SHORT).await;
        let second = lane.run(SHORT, |_| panic!("ran after its deadline")).await;
        assert!(matches!(second, Err((LaneError::Expired { .. }, None))));
        assert!(lane.meter().oldest().0.is_zero() && lane.meter().failures()[1] == ("expired", 1));
        release.send(()).unwrap();
        assert!(first.await.unwrap().unwrap());
        assert_eq!(lane.run(LONG, |_| 1).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn a_full_lane_says_so_at_once() {
        let lane = Arc::new(Lane::start("full", 1, 1, None).unwrap());
        let (release, wait) = bounded::<()>(0);
        let first = lane.clone();
        let first = tokio::spawn(async move { first.run(LONG, move |_| wait.recv().is_ok()).await });
        tokio::time::sleep(SHORT).await;
        let second = lane.clone();
        let second = tokio::spawn(async move { second.run(LONG, |_| ()).await });
        tokio::time::sleep(SHORT).await;
        assert!(matches!(lane.run(LONG, |_| ()).await, Err((LaneError::Full { .. }, None))));
        let (waiting, running) = lane.meter().oldest();
        assert!(running > waiting && !waiting.is_zero() && lane.meter().failures()[0] == ("full", 1));
        release.send(()).unwrap();
        assert!(first.await.unwrap().unwrap());
        second.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_the_thread_lives() {
        let lane = Lane::start("panic", 1, 16, None).unwrap();
        assert!(matches!(
            lane.run(LONG, |_| -> () { panic!("on purpose") }).await,
            Err((LaneError::Died { .. }, None))
        ));
        assert_eq!(lane.run(LONG, |_| 1).await.unwrap(), 1);
    }
}
