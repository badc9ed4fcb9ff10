//! Labels written behind: after an attach or detach the hosts on a volume's label are brought up to date,
//! a moment later and many changes at once. The journal has decided already; the label is what rebuilds
//! access rules should the journal be lost.
//!
//! A label that can't be written (its pool is missing, or fails) still lets in who was detached, should the journal be lost
//! just then. So such volumes are named in a file beside the journal, and nobody is let in by their labels: see
//! [`super::rebuild`]. That file is only there while there is something in it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use orlop_api::{PoolState, VolumeId};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::core::{Core, On, Outcome};
use super::error::{Error, chain};
use super::locks::{Key, Mode};
use crate::kernel::fs::Dir;

/// How long changes gather before they are written.
const GATHER: Duration = Duration::from_millis(500);
/// Labels written at a time.
const PARALLEL: usize = 8;
/// When those that are being written count as behind.
const LATE: Duration = Duration::from_secs(2);
/// Between two attempts at one that is behind.
const AGAIN: Duration = Duration::from_secs(10);
/// The file that names volumes whose label is behind, and the most that is read of it: a million of them.
const FILE: &str = "labels.behind";
const FILE_MAX: u64 = 40 << 20;
/// Its last line: without it the file is not all that was written.
const LAST: &str = "end\n";
/// The alarm about them.
const ALARM: &str = "labels";

/// Volumes whose label is older than the view.
#[derive(Debug, Default)]
pub(super) struct DirtyLabels {
    ids: Mutex<BTreeSet<VolumeId>>,
    /// Those that should have been written by now, with what is in the way; none: it only takes long.
    behind: Mutex<BTreeMap<VolumeId, Option<String>>>,
    /// Which were so when the daemon ended is not known: any may be.
    unknown: AtomicBool,
    /// Those that are being written. One that is marked meanwhile is due once more when that has ended.
    under_way: tokio::sync::watch::Sender<BTreeSet<VolumeId>>,
    /// Held by who writes their names, with what was written last. `None`: that is not known.
    kept: tokio::sync::Mutex<Option<Vec<VolumeId>>>,
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

    /// Whether the label of a volume may say less than was acknowledged.
    pub(super) fn is_behind(&self, id: VolumeId) -> bool {
        self.unknown.load(Ordering::Acquire) || self.behind.lock().contains_key(&id)
    }

    /// Those `among` these, or all, that are due and not being written: they are from now on.
    fn take(self: &Arc<Self>, among: Option<&BTreeSet<VolumeId>>) -> Taken {
        let mut ids = self.ids.lock();
        let mut taken = BTreeSet::new();
        self.under_way.send_if_modified(|under_way| {
            let wanted = |id: &VolumeId| among.is_none_or(|among| among.contains(id));
            taken = ids.difference(under_way).copied().filter(wanted).collect();
            ids.retain(|id| !taken.contains(id));
            under_way.extend(&taken);
            !taken.is_empty()
        });
        Taken { ids: taken, dirty: self.clone() }
    }

    /// One has been written, or could not be.
    fn ended(&self, id: VolumeId) {
        self.under_way.send_if_modified(|under_way| under_way.remove(&id));
        if self.ids.lock().contains(&id) {
            self.bell.notify_one();
        }
    }
}

/// Those that are to be written by whoever has this.
struct Taken {
    ids: BTreeSet<VolumeId>,
    dirty: Arc<DirtyLabels>,
}

impl Drop for Taken {
    /// Also where the task ends in the middle of it.
    fn drop(&mut self) {
        self.ids.iter().for_each(|id| self.dirty.ended(*id));
    }
}

/// What the file says.
fn read_file(state_dir: &Path) -> io::Result<BTreeSet<VolumeId>> {
    let wrong = |_| io::Error::new(io::ErrorKind::InvalidData, "has a line that is no volume's id");
    let Some(text) = Dir::open(state_dir)?.read(FILE, FILE_MAX)? else { return Ok(BTreeSet::new()) };
    let text = String::from_utf8(text).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    let all = text.strip_suffix(LAST).ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
    all.lines().map(|line| line.parse().map_err(wrong)).collect()
}

/// Writes it; one without volumes is none.
fn write_file(state_dir: &Path, ids: &[VolumeId]) -> io::Result<()> {
    let dir = Dir::open(state_dir)?;
    if ids.is_empty() {
        dir.remove(FILE)?;
    } else {
        let text: String = ids.iter().map(|id| format!("{id}\n")).chain([LAST.into()]).collect();
        dir.replace(FILE, text.as_bytes(), true)?;
    }
    dir.sync()
}

impl Core {
    /// Writes labels for as long as the daemon runs.
    pub(super) async fn write_labels_behind(self: Arc<Self>) {
        loop {
            let some = !self.dirty.behind.lock().is_empty();
            tokio::select! {
                () = self.dirty.bell.notified() => {}
                () = tokio::time::sleep(AGAIN), if some => self.mark_behind(),
            }
            tokio::time::sleep(GATHER).await;
            // Not waited for: a pool that hangs would keep others' labels from being written, and from being known to be behind.
            for taken in self.due(None) {
                let core = self.clone();
                self.background(async move { core.write_labels_of(taken).await });
            }
        }
    }

    /// What is due, pool by pool.
    fn due(&self, among: Option<&BTreeSet<VolumeId>>) -> Vec<Taken> {
        let mut all = self.dirty.take(among);
        let view = self.view.read();
        let mut by_pool: BTreeMap<_, BTreeSet<VolumeId>> = BTreeMap::new();
        for id in std::mem::take(&mut all.ids) {
            by_pool.entry(view.entry(id).map(|v| v.pool.clone())).or_default().insert(id);
        }
        by_pool.into_values().map(|ids| Taken { ids, dirty: self.dirty.clone() }).collect()
    }

    /// Has labels written that say something else than the journal: volumes come back with what they said when they went.
    pub(super) fn mark_outdated_labels(&self) {
        let outdated = self.view.read().outdated_labels();
        for id in outdated {
            self.dirty.mark(id);
        }
    }

    /// Writes those that are due now. In the end all that were due when it was asked were tried, whoever does it.
    pub(super) async fn write_labels(&self) {
        self.write_labels_among(None).await;
    }

    /// The same for these alone.
    pub(super) async fn write_labels_among(&self, among: Option<&BTreeSet<VolumeId>>) {
        // What was marked while it was being written is due once more after that.
        for _ in 0..2 {
            let mut others = self.dirty.under_way.borrow().clone();
            others.retain(|id| among.is_none_or(|among| among.contains(id)));
            let due = self.due(among).into_iter().map(|taken| self.write_labels_of(taken));
            futures_util::future::join_all(due).await;
            let mut under_way = self.dirty.under_way.subscribe();
            // The sender lives as long as this.
            let _ = under_way.wait_for(|now| now.is_disjoint(&others)).await;
        }
    }

    /// Writes these, and waits for no other.
    async fn write_labels_of(&self, taken: Taken) {
        let (ids, left) = (taken.ids.clone(), Mutex::new(taken));
        if ids.is_empty() {
            return;
        }
        let writing = futures_util::stream::iter(ids).for_each_concurrent(PARALLEL, async |id| {
            let written = self.write_label(id).await;
            {
                // Marked meanwhile: what was written may be older than that.
                let again = self.dirty.ids.lock().contains(&id);
                let mut behind = self.dirty.behind.lock();
                match written {
                    Ok(()) if again => {}
                    Ok(()) => drop(behind.remove(&id)),
                    Err(f) => {
                        let reason = f.error.chain();
                        tracing::warn!(volume = %id, error = reason, "a label could not be written");
                        behind.insert(id, Some(reason));
                    }
                }
            }
            left.lock().ids.remove(&id);
            self.dirty.ended(id);
        });
        tokio::pin!(writing);
        if tokio::time::timeout(LATE, &mut writing).await.is_err() {
            for id in &left.lock().ids {
                self.dirty.behind.lock().entry(*id).or_default();
            }
            self.keep_behind().await;
            writing.await;
        }
        self.keep_behind().await;
    }

    async fn write_label(&self, id: VolumeId) -> Outcome<()> {
        let until = Instant::now() + self.settings.settle_deadline;
        // Growing and deleting hold this lock too, so the label read here is the one to build on.
        let _guards = self.locks.acquire(vec![(Key::Backing(id), Mode::Exclusive)], until).await?;
        let (pool, mut label, hosts) = {
            let view = self.view.read();
            let Some(v) = view.entry(id) else {
                let some_missing = view.pool_entries().any(|p| p.state == PoolState::Missing);
                let away = || Error::Unavailable("the pool that has it is missing".into()).into();
                return if some_missing { Err(away()) } else { Ok(()) };
            };
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

    /// Has those tried again that are behind, where that can be of use: a pool that comes back does so by itself.
    fn mark_behind(&self) {
        let view = self.view.read();
        let none_missing = view.pool_entries().all(|p| p.state != PoolState::Missing);
        let open = self.pools.read();
        for id in self.dirty.behind.lock().keys() {
            if view.entry(*id).map_or(none_missing, |v| open.contains_key(&v.pool)) {
                self.dirty.mark(*id);
            }
        }
    }

    /// Reads whose labels were behind when the daemon ended. They still are.
    pub(super) fn know_labels_behind(&self) {
        match read_file(&self.settings.state_dir) {
            Ok(ids) => {
                let before = || Some("it could not be written before the daemon ended".to_owned());
                self.dirty.behind.lock().extend(ids.into_iter().map(|id| (id, before())));
                self.note_behind(None);
            }
            Err(error) => {
                tracing::error!(%error, file = FILE, "which labels are behind is not known");
                self.dirty.unknown.store(true, Ordering::Release);
            }
        }
    }

    /// Keeps their names for a start without the journal, and tells of them.
    async fn keep_behind(&self) {
        // A file that can't be read speaks for labels that nobody has looked at yet.
        if self.dirty.unknown.load(Ordering::Acquire) && !self.unread.lock().is_empty() {
            return self.note_behind(None);
        }
        // Two batches may end at the same time, and the later one knows more.
        let mut last = self.dirty.kept.lock().await;
        let ids: Vec<VolumeId> = self.dirty.behind.lock().keys().copied().collect();
        if last.as_ref() == Some(&ids) {
            return self.note_behind(None);
        }
        let (state_dir, keeps) = (self.settings.state_dir.clone(), ids.clone());
        let kept = match tokio::task::spawn_blocking(move || write_file(&state_dir, &keeps)).await {
            Ok(kept) => kept.map_err(|e| chain(&e)),
            Err(_) => Err("the thread that writes it ended by a panic".into()),
        };
        *last = kept.is_ok().then_some(ids);
        if let Err(error) = &kept {
            tracing::error!(error, "which labels are behind can't be kept");
        }
        self.note_behind(kept.err());
    }

    /// `unkept`: why their names can't be kept.
    fn note_behind(&self, unkept: Option<String>) {
        let behind = self.dirty.behind.lock();
        let mut failed = behind.iter().filter_map(|(id, why)| Some((id, why.as_ref()?)));
        let first = failed.next().map(|(id, why)| (1 + failed.count(), format!("volume {id}: {why}")));
        drop(behind);
        let mut view = self.view.write();
        let Some((many, first)) = first else { return view.clear(ALARM) };
        let of = if many == 1 { "1 label does".into() } else { format!("{many} labels do") };
        let else_ = match unkept {
            None => {
                "If the state disk is lost before, who was detached is let in again when the pool is back."
                    .into()
            }
            Some(why) => format!(
                "That is not remembered on the state disk either ({why}): if the journal is lost before, who was detached \
                 is let in again."
            ),
        };
        view.raise(
            ALARM.into(),
            format!("{of} not say yet who may use its volume ({first}); tried again. {else_}"),
        );
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_file_that_is_not_whole_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let id = VolumeId::mint();
        assert_eq!(read_file(dir.path()).unwrap(), BTreeSet::new());
        write_file(dir.path(), &[id]).unwrap();
        assert_eq!(read_file(dir.path()).unwrap(), [id].into());
        write_file(dir.path(), &[]).unwrap();
        assert!(!path.exists());
        for (text, whole) in [
            (format!("{id}\nend\n"), true),
            ("end\n".into(), true),
            (format!("{id}\n"), false),
            (format!("{}\nend\n", &id.to_string()[1..]), false),
            (String::new(), false),
        ] {
            std::fs::write(&path, &text).unwrap();
            assert_eq!(read_file(dir.path()).is_ok(), whole, "{text:?}");
        }
        std::fs::write(&path, [0xff]).unwrap();
        assert!(read_file(dir.path()).is_err());
    }
}
