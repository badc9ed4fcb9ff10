//! Snapshots of images: another image that shares blocks, with a label of its own.

use std::fs::File;
use std::time::{Duration, Instant, SystemTime};

use super::{CLOCK_STEP, Found, Images, QUIET, image_name, label_name};
use crate::kernel::Deadline;
use crate::kernel::fs::{Dir, TMP};
use crate::model::{Label, SnapshotKey, SnapshotLabel};
use crate::pool::held::Held;
use crate::pool::{Change, Result, Snapped};

impl Images {
    /// See [`super::Pool::snapshot`]. `hold` has writers wait, as far as it can. `quiet` is asked before the first image
    /// of a group is cloned and after the last one: whether nothing was written in between. Where that may be, it is
    /// tried again for a while.
    pub fn snapshot<Q: PartialEq>(
        &self,
        labels: &[SnapshotLabel],
        deadline: &Deadline,
        quiet: impl Fn() -> Result<Option<Q>>,
        hold: impl Fn() -> Result<Option<Held>>,
    ) -> Result<Snapped> {
        let (volumes, dir) = (self.volumes()?, self.snapshots()?);
        let mut missing = Vec::new();
        for label in labels {
            match self.look::<SnapshotLabel>(&dir, label.key)? {
                Found::Whole(have, _) if have == *label => {}
                Found::Whole(..) => {
                    return Err(self.ctx.conflict(label.key.to_string(), "it exists with another label"));
                }
                Found::Damaged(stray) => return Err(self.damaged(stray)),
                Found::Nothing | Found::Partial => missing.push(label),
            }
        }
        if missing.is_empty() {
            self.sync(&dir)?;
            return Ok(Snapped { change: Change::Unchanged, paused: None });
        }
        // Those of a group that are there already are of another instant.
        if missing.len() != labels.len() {
            return Err(self.ctx.conflict(labels[0].key.to_string(), "a part of its group exists already"));
        }
        let mut sources = Vec::with_capacity(labels.len());
        for label in labels {
            let (have, _) = self.whole::<Label>(&volumes, label.key.volume)?;
            if have.size != label.size {
                let detail = format!("its volume has {}, not {}", have.size, label.size);
                return Err(self.ctx.conflict(label.key.to_string(), detail));
            }
            let image = image_name(label.key.volume);
            sources.push(volumes.file(&image, false).map_err(self.io("opening", &image))?);
        }
        let made = self.snapshot_all(&dir, labels, &sources, deadline, quiet, hold);
        if made.is_err() && !deadline.remaining().is_zero() {
            for label in labels {
                let image = image_name(label.key);
                for name in [&image, &format!("{image}{TMP}"), &label_name(label.key)] {
                    let _ = dir.remove(name);
                }
            }
            let _ = self.sync(&dir);
        }
        Ok(Snapped { change: Change::Done, paused: Some(made?) })
    }

    fn snapshot_all<Q: PartialEq>(
        &self,
        dir: &Dir,
        labels: &[SnapshotLabel],
        sources: &[File],
        deadline: &Deadline,
        quiet: impl Fn() -> Result<Option<Q>>,
        hold: impl Fn() -> Result<Option<Held>>,
    ) -> Result<Duration> {
        for label in labels {
            self.ctx.check(deadline, "taking snapshots")?;
            self.write_label(dir, label)?;
        }
        let mut longest = Duration::ZERO;
        let patience = deadline.at_most(QUIET);
        let mut pause = Duration::from_millis(5);
        let mut paused = None;
        let made = loop {
            // Last before the clones and first after them, each time: writers wait for nothing else.
            let held = hold()?;
            let until = held.as_ref().map_or(deadline, Held::until);
            // One alone is of one instant by itself: the file system sees to that.
            let before = if labels.len() > 1 { Some(quiet()?) } else { None };
            let mut made = Vec::with_capacity(labels.len());
            for (label, source) in labels.iter().zip(sources) {
                self.ctx.check(until, "taking snapshots")?;
                let image = image_name(label.key);
                let start = Instant::now();
                let clone = dir.prepare(&image, |file| self.clone_image(file, source));
                made.push((clone.map_err(self.io("making", &image))?, image));
                longest = longest.max(start.elapsed());
            }
            let one_instant = match before {
                None => true,
                Some(before) => before.is_some() && quiet()? == before,
            };
            paused = paused.max(held.map_or(Ok(None), |held| held.release(Some(&self.mappings)))?);
            if one_instant {
                break made;
            }
            if patience.pause(pause).is_err() {
                return Err(self.ctx.precondition(
                    "its volumes are written to all the time, so that no instant was found for all of \
                     them: let their writers rest for a moment",
                ));
            }
            pause = (pause * 2).min(Duration::from_millis(200));
        };
        longest = paused.unwrap_or(longest);
        // Under their own names only now, when they are known to be of one instant.
        for (file, image) in made {
            self.ctx.check(deadline, "taking snapshots")?;
            dir.show(&image, &file, self.durable).map_err(self.io("making", &image))?;
        }
        self.sync(dir)?;
        Ok(longest)
    }

    /// When each image was written to last, for [`Self::snapshot`]. `None`: one of them only just now, so
    /// that a write after it could have the same time. Where writers don't go through a device that
    /// counts, this is what tells.
    pub fn written(&self, labels: &[SnapshotLabel]) -> Result<Option<Vec<Duration>>> {
        let dir = self.volumes()?;
        let mut times = Vec::with_capacity(labels.len());
        for label in labels {
            let image = image_name(label.key.volume);
            let entry = dir.entry(&image).map_err(self.io("looking at", &image))?;
            let modified = entry.map(|e| e.modified).unwrap_or_default();
            let age = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + modified);
            if age.is_ok_and(|age| age < CLOCK_STEP) {
                return Ok(None);
            }
            times.push(modified);
        }
        Ok(Some(times))
    }

    pub fn get_snapshot(&self, key: SnapshotKey) -> Result<Option<SnapshotLabel>> {
        match self.look(&self.snapshots()?, key)? {
            Found::Whole(label, _) => Ok(Some(label)),
            Found::Damaged(stray) => Err(self.damaged(stray)),
            Found::Nothing | Found::Partial => Ok(None),
        }
    }

    pub fn relabel_snapshot(&self, label: &SnapshotLabel) -> Result<()> {
        self.rewrite(&self.snapshots()?, label)
    }

    pub fn destroy_snapshot(&self, key: SnapshotKey, deadline: &Deadline) -> Result<Change> {
        self.erase::<SnapshotLabel>(&self.snapshots()?, key, deadline)
    }

    /// The image of a whole snapshot, for reading.
    pub fn snapshot_file(&self, key: SnapshotKey) -> Result<File> {
        let dir = self.snapshots()?;
        self.whole::<SnapshotLabel>(&dir, key)?;
        let image = image_name(key);
        dir.file(&image, false).map_err(self.io("opening", &image))
    }

    /// The image of a whole snapshot, for what opens devices for writing.
    pub fn snapshot_for_device(&self, key: SnapshotKey) -> Result<File> {
        let dir = self.snapshots()?;
        self.whole::<SnapshotLabel>(&dir, key)?;
        let image = image_name(key);
        dir.file(&image, true).map_err(self.io("opening", &image))
    }
}
