//! Copies: filling a new volume with the content of a snapshot, behind the answer, for as long as that
//! takes.
//!
//! A copy runs on threads of its own, so it holds up no lane. It is durable up to what the volume's label
//! says, and goes on from there after a stop, a crash or a failure. Deleting the volume ends it.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use orlop_api::{ByteSize, EventKind, Provisioning, SourceMode, VolumeId, VolumeKind, VolumeState};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::Instant;

use super::core::{Core, On, OpenPool, Outcome};
use super::error::{Error, Result};
use super::events::Subject;
use super::locks::{Key, Mode};
use super::volumes::{open_once, verify_opened};
use crate::kernel::Deadline;
use crate::model::{Label, SnapshotKey};
use crate::pool::copy::{self, Watch};

/// How long a copy goes on before what it has done is written on the label.
const CHECKPOINT: Duration = Duration::from_secs(10);

/// How often its progress is shown.
const SHOWN: Duration = Duration::from_secs(1);

/// How many run at a time. More would only make disks seek; they take turns.
const PARALLEL: usize = 2;

/// The copies under way.
#[derive(Debug)]
pub(super) struct Copies {
    running: Mutex<BTreeMap<VolumeId, Running>>,
    places: Arc<Semaphore>,
}

impl Default for Copies {
    fn default() -> Self {
        Self { running: Mutex::default(), places: Arc::new(Semaphore::new(PARALLEL)) }
    }
}

#[derive(Debug, Clone)]
struct Running {
    watch: Arc<Watch>,
    /// Rings when it should stop.
    stop: Arc<tokio::sync::Notify>,
    /// Closed when it has ended.
    ended: watch::Receiver<()>,
}

/// How an attempt ended.
enum End {
    Whole,
    Stopped,
}

impl Core {
    /// Starts the copy that a volume waits for, if it waits for one.
    pub(super) fn start_copy(self: &Arc<Self>, id: VolumeId) {
        let wanted = |v: &super::view::VolumeEntry| v.label.copied.is_some() && !v.label.deleted;
        if !self.view.read().entry(id).is_some_and(wanted) {
            return;
        }
        let (alive, ended) = watch::channel(());
        let running = Running { watch: Arc::default(), stop: Arc::default(), ended };
        {
            let mut all = self.copies.running.lock();
            if all.contains_key(&id) {
                return;
            }
            all.insert(id, running.clone());
        }
        let core = self.clone();
        self.background(async move {
            core.copy_until_whole(id, &running).await;
            core.copies.running.lock().remove(&id);
            drop(alive);
        });
    }

    /// Starts all that are not under way.
    pub(super) fn resume_copies(self: &Arc<Self>) {
        let ids = self.view.read().copying();
        for id in ids {
            self.start_copy(id);
        }
    }

    /// Ends a volume's copy where it is. Fine if there is none.
    pub(super) async fn stop_copy(&self, id: VolumeId, until: Instant) -> Result<()> {
        let Some(mut running) = self.copies.running.lock().get(&id).cloned() else { return Ok(()) };
        running.watch.stop.store(true, Ordering::Release);
        running.stop.notify_one();
        // An error is what is waited for: the other end is gone.
        match tokio::time::timeout_at(until, running.ended.changed()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Busy(format!("volume {id}: its copy does not stop"))),
        }
    }

    /// Ends all copies where they are: they go on at the next start.
    pub(super) async fn stop_copies(&self) {
        let ids: Vec<_> = self.copies.running.lock().keys().copied().collect();
        let until = Instant::now() + self.settings.settle_deadline;
        for id in ids {
            if let Err(error) = self.stop_copy(id, until).await {
                tracing::warn!(volume = %id, error = error.chain(), "a copy was left behind");
            }
        }
    }

    async fn copy_until_whole(self: &Arc<Self>, id: VolumeId, running: &Running) {
        let mut pause = Duration::from_secs(2);
        loop {
            let place = tokio::select! {
                place = self.copies.places.clone().acquire_owned() => place,
                () = running.stop.notified() => return,
            };
            let end = self.copy_on(id, running).await;
            drop(place);
            match end {
                Ok(End::Stopped) => return,
                Ok(End::Whole) => {
                    tracing::info!(volume = %id, "a copy is whole");
                    self.spent_bell.notify_one();
                    return;
                }
                // It goes on when somebody brings the key, of the source's or its own.
                Err(f) if f.error.is_locked() => {
                    let reason = format!("its copy waits: {}", f.error.chain());
                    return self.set_state(id, VolumeState::Stuck, Some(reason));
                }
                Err(f) => {
                    let reason = f.error.chain();
                    tracing::error!(volume = %id, error = reason, "a copy can't go on and is tried again");
                    self.set_state(id, VolumeState::Stuck, Some(format!("its copy can't go on: {reason}")));
                    self.view.write().raise(
                        format!("volume/{id}"),
                        format!("its copy can't go on and is tried again: {reason}; delete it to give up"),
                    );
                    if let Some(late) = f.late {
                        let _ = late.await;
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = running.stop.notified() => return self.copy_moves(id),
            }
            pause = (pause * 2).min(Duration::from_secs(60));
        }
    }

    /// A copy that could not go on is no longer a cause for alarm.
    fn copy_moves(&self, id: VolumeId) {
        self.view.write().clear(&format!("volume/{id}"));
        self.set_state(id, VolumeState::Ready, None);
    }

    /// Copies from where the label says until all is there, or until it should stop.
    async fn copy_on(self: &Arc<Self>, id: VolumeId, running: &Running) -> Outcome<End> {
        let entry = self.view.read().entry(id).cloned();
        let Some(entry) = entry else { return Ok(End::Stopped) };
        let Some(source) = entry.label.source.filter(|s| s.mode == SourceMode::Copied) else {
            return Ok(End::Stopped);
        };
        let (from, size) = {
            let view = self.view.read();
            let snapshot = view.snapshot_entry(source.snapshot.id);
            let snapshot =
                snapshot.ok_or_else(|| Error::NotFound(format!("snapshot {}", source.snapshot)))?;
            (self.open_pool(&snapshot.pool)?, snapshot.label.size.bytes())
        };
        let to = self.open_pool(&entry.pool)?;
        let until = Instant::now() + self.settings.settle_deadline;
        let key = source.snapshot;
        let streamed = |f| from.pool.is_streamed(f) && to.pool.is_streamed(f);
        if entry.label.filesystem.is_some_and(streamed) {
            return self.pour(id, &from, key, &to, size, running).await;
        }
        let file = self.on_pool(&from, On::Open, until, move |p, d| p.read(key, d)).await?;
        let copied = self.fill(id, &to, Arc::new(file), size, running).await;
        // The file is closed by now, whatever came of it, unless a thread hangs in it.
        self.done_reading(&from, key).await;
        copied
    }

    async fn done_reading(&self, from: &Arc<OpenPool>, key: SnapshotKey) {
        let until = Instant::now() + self.settings.settle_deadline;
        if let Err(f) = self.on_pool(from, On::Open, until, move |p, d| p.done_reading(key, d)).await {
            tracing::warn!(snapshot = %key, error = f.error.chain(), "a snapshot is still open");
        }
    }

    async fn fill(
        self: &Arc<Self>,
        id: VolumeId,
        to: &Arc<OpenPool>,
        source: Arc<File>,
        size: u64,
        running: &Running,
    ) -> Outcome<End> {
        let until = Instant::now() + self.settings.settle_deadline;
        let target = Arc::new(self.on_pool(to, On::Open, until, move |p, d| p.fill(id, d)).await?);
        let entry = self.view.read().entry(id).cloned();
        let copied = entry.as_ref().and_then(|v| v.label.copied);
        let Some(mut at) = copied.map(ByteSize::bytes) else { return Ok(End::Stopped) };
        let thin = entry.as_ref().is_some_and(|v| v.label.provisioning == Provisioning::Thin);
        let encrypted = entry.is_some_and(|v| v.label.encryption.is_some());
        let anything = encrypted && !to.pool.features().encrypted_zeros;
        running.watch.write_zeros.store(anything, Ordering::Release);
        running.watch.done.store(at, Ordering::Release);
        while at < size {
            if running.watch.stop.load(Ordering::Acquire) {
                return Ok(End::Stopped);
            }
            // The last room is for volumes that are in use. What a thick one needs is reserved already.
            if thin {
                let until = Instant::now() + self.settings.settle_deadline;
                self.check_space(to, ByteSize(0), until).await?;
            }
            at = self.slice(id, source.clone(), target.clone(), at, size, running).await?;
            // Also of the last: should what follows fail, nothing is copied over it again. A file system has
            // been mounted by then, and is not its source any more.
            self.write_copied(id, to, Some(ByteSize(at))).await?;
            self.copy_moves(id);
        }
        drop(target);
        self.is_whole(id, to).await
    }

    async fn is_whole(self: &Arc<Self>, id: VolumeId, to: &Arc<OpenPool>) -> Outcome<End> {
        self.write_copied(id, to, None).await?;
        self.set_state(id, VolumeState::Ready, None);
        self.events.publish(EventKind::VolumeState, super::intent::about_volume(id));
        self.capacity_changed(&to.name);
        Ok(End::Whole)
    }

    /// Copies what can't be read byte by byte: all of it at once, from the beginning each time.
    async fn pour(
        self: &Arc<Self>,
        id: VolumeId,
        from: &Arc<OpenPool>,
        key: SnapshotKey,
        to: &Arc<OpenPool>,
        size: u64,
        running: &Running,
    ) -> Outcome<End> {
        let until = Instant::now() + self.settings.settle_deadline;
        self.check_space(to, ByteSize(0), until).await?;
        let (answer, mut ended) = oneshot::channel();
        let (source, target, watch) = (from.pool.clone(), to.pool.clone(), running.watch.clone());
        // For what each does beside the stream.
        let within = self.settings.settle_deadline;
        std::thread::Builder::new().name("copy".into()).spawn(move || {
            let poured = copy::pour(
                |into| source.send(key, into, &Deadline::after(within)),
                |from| target.receive(id, from, &Deadline::after(within)),
                &watch,
            );
            drop((source, target));
            let _ = answer.send(poured);
        })?;
        let mut ticks = tokio::time::interval(SHOWN);
        ticks.tick().await;
        let mut seen = 0;
        let end = loop {
            tokio::select! {
                end = &mut ended => break end.map_err(|_| Error::Died)?,
                _ = ticks.tick() => {
                    // A stream tells more than the bytes of files.
                    let done = running.watch.done.load(Ordering::Acquire).min(size);
                    if done != seen {
                        seen = done;
                        self.show_progress(id, done, size);
                    }
                }
            }
        };
        if running.watch.stop.load(Ordering::Acquire) {
            return Ok(End::Stopped);
        }
        end?;
        self.copy_moves(id);
        self.is_whole(id, to).await
    }

    /// Copies for a while, on a thread of its own, and shows how far it is.
    async fn slice(
        &self,
        id: VolumeId,
        source: Arc<File>,
        target: Arc<File>,
        at: u64,
        size: u64,
        running: &Running,
    ) -> Outcome<u64> {
        let (answer, mut answered) = oneshot::channel();
        let watch = running.watch.clone();
        std::thread::Builder::new().name("copy".into()).spawn(move || {
            let copied = copy::copy(&source, &target, at, size, &watch, CHECKPOINT);
            // Closed before the answer: whoever hears it may take away what they are open on.
            drop((source, target));
            let _ = answer.send(copied);
        })?;
        let mut ticks = tokio::time::interval(SHOWN);
        ticks.tick().await;
        let mut seen = at;
        loop {
            tokio::select! {
                copied = &mut answered => {
                    let at = copied.map_err(|_| Error::Died)?.map_err(|e| copy_error(id, e))?;
                    self.show_progress(id, at, size);
                    return Ok(at);
                }
                _ = ticks.tick() => {
                    let done = running.watch.done.load(Ordering::Acquire);
                    if done != seen {
                        seen = done;
                        self.show_progress(id, done, size);
                    }
                }
            }
        }
    }

    fn show_progress(&self, id: VolumeId, done: u64, size: u64) {
        self.view.write().set_progress(id, done);
        let detail = Some(format!("{} of {}", ByteSize(done), ByteSize(size)));
        let about = Subject { volume: Some(id), detail, ..Subject::default() };
        self.events.publish(EventKind::VolumeProgress, about);
    }

    /// Writes on the label how far a copy is; `None`: it is whole.
    async fn write_copied(&self, id: VolumeId, to: &Arc<OpenPool>, copied: Option<ByteSize>) -> Outcome<()> {
        let until = Instant::now() + self.settings.settle_deadline;
        let _guards = self.locks.acquire(vec![(Key::Backing(id), Mode::Exclusive)], until).await?;
        let entry = self.view.read().entry(id).cloned();
        let Some(mut entry) = entry else { return Err(Error::NotFound(format!("volume {id}")).into()) };
        entry.label = Label { copied, ..entry.label };
        let label = entry.label.clone();
        let (is_filesystem, whole) = (label.kind == VolumeKind::Filesystem, copied.is_none());
        if is_filesystem && whole {
            // A copy may be larger than its source: its file system becomes so when it is mounted, and is
            // seen to be whole before the label says it.
            let ask = label.clone();
            let opened = self.on_pool(to, On::Make, until, move |p, d| open_once(p, &ask, d)).await?;
            verify_opened(&label, opened)?;
        } else if whole {
            // It was open to be written, and is read by nobody before it is attached.
            self.on_pool(to, On::Open, until, move |p, d| p.close(id, d)).await?;
        }
        self.on_pool(to, On::Make, until, move |p, d| p.relabel(&label, d)).await?;
        self.view.write().put_volume(entry);
        Ok(())
    }
}

/// Space is told apart from the rest by the system's number for it.
fn copy_error(id: VolumeId, error: std::io::Error) -> Error {
    let full = [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT].map(rustix::io::Errno::raw_os_error);
    if error.raw_os_error().is_some_and(|e| full.contains(&e)) {
        return Error::Exhausted { object: format!("the pool of volume {id}"), detail: error.to_string() };
    }
    Error::System(error)
}
