//! Image files with a label beside each: what `file` and `sim` pools share.
//!
//! ```text
//! <directory>/.orlop-pool.json          the marker: this directory is that pool
//! <directory>/volumes/<id>.json         the label (sidecar)
//! <directory>/volumes/<id>.img          the image
//! <directory>/volumes/<id>.*.tmp        one of the two, being made
//! <directory>/snapshots/<volume>@<id>.* the same of a snapshot
//! ```
//!
//! The label comes first and goes last. So a crash leaves one of: nothing; a label without an image
//! (`partial`); both. The image appears under its name only when it is whole: full length, all reserved
//! if it is thick, formatted if it is a file system, and synced. The two renames happen in one directory in that order, and btrfs and XFS
//! both recover one directory's changes in order, so one sync of the directory covers both.
//!
//! Called by `file` and `sim`. Never touches a name that it can't read as its own.

mod blocks;
mod snapshots;
mod strays;

use std::collections::BTreeSet;
use std::fmt::Display;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_api::{ByteSize, PoolName, Provisioning, SourceMode, VolumeId};
use serde::{Deserialize, Serialize};

use super::context::Context;
use super::mapped::{Mappings, Use, backing, visible};
use super::mounted;
use super::rules::{check_clone, check_clone_key, check_room, check_same, check_size};
use super::{Capacity, Change, KeyRing, Listing, Result, Stored, Stray};
use crate::kernel::filesystem::Kind;
use crate::kernel::fs::{self, Dir, Entry, TMP};
use crate::kernel::{Deadline, loopdev};
use crate::model::{Document, Label, LabelError, SnapshotLabel};
use strays::{NOT_OURS, stray};

/// The marker's name.
pub(super) const MARKER: &str = ".orlop-pool.json";
/// The directory of volumes' labels and images.
pub(super) const VOLUMES: &str = "volumes";
/// The directory of snapshots' labels and images.
pub(super) const SNAPSHOTS: &str = "snapshots";

/// How long a moment is looked for in which no volume of a group is written to.
const QUIET: Duration = Duration::from_secs(5);

/// Twice the coarsest step of the clock that a file's times are taken from.
const CLOCK_STEP: Duration = Duration::from_millis(20);

/// The largest label that is read. With 100 hosts one has 50 KiB at the very most.
const MAX_LABEL: u64 = 1 << 20;

/// One page, and the block of btrfs and XFS: direct I/O on the image's last block must not cross its end.
pub(super) const GRANULARITY: ByteSize = ByteSize(4096);

/// What says that a directory is a pool. Versioned.
#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    v: u32,
    pool: PoolName,
}

/// The directory of one pool.
#[derive(Debug)]
pub(super) struct Images {
    ctx: Context,
    directory: PathBuf,
    /// Whether changes are synced. Not in a simulation: it survives the daemon's death, because the
    /// kernel has what was written, and does not promise to survive a power cut.
    durable: bool,
    /// Thick images are made to be overwritten in place. Without that, btrfs writes every overwrite to
    /// a new place, and a reservation holds only until each block has been written once.
    no_cow: bool,
    mappings: Mappings,
}

fn label_name(key: impl Display) -> String {
    format!("{key}.json")
}

/// The name of the image of a volume or a snapshot.
pub(super) fn image_name(key: impl Display) -> String {
    format!("{key}.img")
}

/// What is there of one volume or snapshot.
enum Found<L> {
    Nothing,
    /// A label, or a file that was being made; no image.
    Partial,
    Whole(L, Entry),
    /// Has the id as its name and can't be read as ours.
    Damaged(Stray),
}

impl Images {
    pub fn new(ctx: &Context, directory: &Path, durable: bool, no_cow: bool, keys: &KeyRing) -> Self {
        let mappings = Mappings::new(ctx, keys);
        Self { ctx: ctx.clone(), directory: directory.to_owned(), durable, no_cow, mappings }
    }

    /// The devices that its volumes have above their loop devices.
    pub fn mappings(&self) -> &Mappings {
        &self.mappings
    }

    fn io(&self, action: &str, name: &str) -> impl FnOnce(io::Error) -> super::PoolError + use<> {
        self.ctx.io(format!("{action} {}", self.directory.join(name).display()))
    }

    fn root(&self) -> Result<Dir> {
        match Dir::open(&self.directory) {
            Ok(d) => Ok(d),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(self.ctx.not_found(format!("directory {}", self.directory.display())))
            }
            Err(e) => Err(self.io("opening", "")(e)),
        }
    }

    /// Opened for each operation: one that is held would keep the file system from being unmounted, and
    /// would go on working in a directory that is no longer the pool's.
    fn volumes(&self) -> Result<Dir> {
        Dir::open(&self.directory.join(VOLUMES)).map_err(self.io("opening", VOLUMES))
    }

    fn snapshots(&self) -> Result<Dir> {
        Dir::open(&self.directory.join(SNAPSHOTS)).map_err(self.io("opening", SNAPSHOTS))
    }

    /// The path of an image.
    pub fn image(&self, id: VolumeId) -> PathBuf {
        self.directory.join(VOLUMES).join(image_name(id))
    }

    /// Makes an empty directory a pool, or takes one that is this pool already. Leaves nothing behind
    /// when it fails.
    pub fn adopt(&self) -> Result<()> {
        let root = match self.root() {
            Err(super::PoolError::NotFound { .. }) => {
                return Err(self
                    .ctx
                    .precondition(format!("directory {} does not exist", self.directory.display())));
            }
            r => r?,
        };
        if self.marker(&root)? {
            return self.ready(&root);
        }
        let names = root.names().map_err(self.io("reading", ""))?;
        // What mkfs leaves in an empty ext4, and what a crash in this very function leaves.
        let ignored = ["lost+found".to_string(), format!("{MARKER}{TMP}")];
        if let Some(other) = names.iter().find(|n| !ignored.iter().any(|i| n.to_str() == Some(i))) {
            return Err(self.ctx.precondition(format!(
                "directory {} is not empty: there is {}",
                self.directory.display(),
                other.display()
            )));
        }
        let marker = Marker { v: 1, pool: self.ctx.pool.clone() };
        let text = serde_json::to_vec(&marker).map_err(|e| self.io("writing", MARKER)(e.into()))?;
        let made = root
            .replace(MARKER, &text, self.durable)
            .map_err(self.io("writing", MARKER))
            .and_then(|()| self.ready(&root));
        if made.is_err() {
            let _ = root.remove(&format!("{MARKER}{TMP}"));
            let _ = root.remove(MARKER);
            let _ = root.remove_dir(VOLUMES);
            let _ = root.remove_dir(SNAPSHOTS);
        }
        made
    }

    /// Finds the directory to be this pool.
    pub fn open(&self) -> Result<()> {
        let root = self.root()?;
        if !self.marker(&root)? {
            return Err(self.ctx.not_found(format!("a pool in {}", self.directory.display())));
        }
        self.ready(&root)
    }

    /// Whether the directory is marked as this pool. An error if it is marked otherwise.
    fn marker(&self, root: &Dir) -> Result<bool> {
        let shown = self.directory.join(MARKER);
        let bytes = match root.read(MARKER, MAX_LABEL) {
            Ok(None) => return Ok(false),
            Ok(Some(bytes)) => bytes,
            Err(e) => return Err(self.io("reading", MARKER)(e)),
        };
        #[derive(Deserialize)]
        struct Version {
            v: u32,
        }
        let damaged = |_| self.ctx.precondition(format!("{} is damaged", shown.display()));
        let Version { v } = serde_json::from_slice(&bytes).map_err(damaged)?;
        if v > 1 {
            return Err(self.ctx.unsupported(format!(
                "{} has version {v}, and this daemon knows 1: update the daemon",
                shown.display()
            )));
        }
        let marker: Marker = serde_json::from_slice(&bytes).map_err(damaged)?;
        if marker.pool != self.ctx.pool {
            return Err(self.ctx.precondition(format!(
                "directory {} belongs to pool {}",
                self.directory.display(),
                marker.pool
            )));
        }
        Ok(true)
    }

    fn ready(&self, root: &Dir) -> Result<()> {
        for (name, open) in
            [(VOLUMES, Self::volumes as fn(&Self) -> Result<Dir>), (SNAPSHOTS, Self::snapshots)]
        {
            let new = root.make_dir(name).map_err(self.io("making", name))?;
            if new {
                self.sync(&open(self)?)?;
            }
        }
        // Even if not new: what made it may have been stopped before this.
        self.sync(root)
    }

    fn sync(&self, dir: &Dir) -> Result<()> {
        if self.durable {
            dir.sync().map_err(self.ctx.io(format!("syncing {}", dir.path().display())))?;
        }
        Ok(())
    }

    /// What statfs says. btrfs counts what was reserved or freed when it commits, up to half a minute
    /// later; a thick image that does not fit then fails in the kernel, which is as well.
    pub fn capacity(&self) -> Result<Capacity> {
        // Of the volumes' directory: of the pool's own it would be another file system's where that has
        // been unmounted.
        let s = fs::space(&self.directory.join(VOLUMES)).map_err(self.io("asking the space of", VOLUMES))?;
        Ok(Capacity {
            total: ByteSize(s.total),
            used: ByteSize(s.total.saturating_sub(s.free)),
            available: ByteSize(s.available),
            metadata_percent: None,
        })
    }

    fn look<L: Document>(&self, dir: &Dir, key: L::Key) -> Result<Found<L>> {
        let (label, image) = (label_name(key), image_name(key));
        let entry = dir.entry(&image).map_err(self.io("looking at", &image))?;
        let size = entry.map(|e| ByteSize(e.size));
        let labelled = |name, what: String| Ok(Found::Damaged(Stray::labelled(name, what, size)));
        let bytes = match dir.read(&label, MAX_LABEL) {
            Ok(Some(bytes)) => bytes,
            Ok(None) if entry.is_some() => {
                return Ok(Found::Damaged(stray(dir, image, "is an image without a label", entry)));
            }
            Ok(None) => {
                for name in [label, image] {
                    let tmp = format!("{name}{TMP}");
                    if dir.entry(&tmp).map_err(self.io("looking at", &tmp))?.is_some() {
                        return Ok(Found::Partial);
                    }
                }
                return Ok(Found::Nothing);
            }
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                return labelled(label, e.to_string());
            }
            Err(e) => return Err(self.io("reading", &label)(e)),
        };
        let parsed = match std::str::from_utf8(&bytes).map(L::from_json) {
            Ok(Ok(l)) if l.key() == key => l,
            Ok(Ok(l)) => return labelled(label, format!("is the label of {}", l.key())),
            Ok(Err(e @ LabelError::TooNew(_))) => return labelled(label, e.to_string()),
            Ok(Err(LabelError::Malformed(e))) => return labelled(label, format!("is not a label: {e}")),
            Err(_) => return labelled(label, "is not text".into()),
        };
        Ok(match entry {
            None => Found::Partial,
            Some(e) if e.regular => Found::Whole(parsed, e),
            Some(_) => return labelled(image, "is not a regular file".into()),
        })
    }

    fn damaged(&self, stray: Stray) -> super::PoolError {
        self.ctx.conflict(stray.name, format!("{}; it is left alone", stray.what))
    }

    fn write_label<L: Document>(&self, dir: &Dir, label: &L) -> Result<()> {
        let name = label_name(label.key());
        dir.replace(&name, label.to_json().as_bytes(), self.durable).map_err(|e| {
            let _ = dir.remove(&format!("{name}{TMP}"));
            self.io("writing", &name)(e)
        })
    }

    pub fn create(&self, label: &Label, deadline: &Deadline) -> Result<Change> {
        check_size(&self.ctx, label, GRANULARITY)?;
        let dir = self.volumes()?;
        match self.look::<Label>(&dir, label.id)? {
            Found::Whole(have, entry) => {
                check_same(&self.ctx, &have, label)?;
                if entry.size != backing(label.size, label.encryption) {
                    let has = visible(entry.size, label.encryption).bytes();
                    let detail = format!("its image has {has} bytes, not {}", label.size.bytes());
                    return Err(self.ctx.conflict(label.id.to_string(), detail));
                }
                // What made it may have been stopped before it was durable.
                self.sync(&dir)?;
                return Ok(Change::Unchanged);
            }
            Found::Damaged(stray) => return Err(self.damaged(stray)),
            // Ids are never used twice, so what is there was left by this very request.
            Found::Nothing | Found::Partial => {}
        }
        let bytes = backing(label.size, label.encryption);
        check_room(&self.ctx, label, bytes, self.capacity()?)?;
        if self.durable {
            mounted::check_tool(&self.ctx, label)?;
        }
        let linked = match label.source.filter(|s| s.mode == SourceMode::Linked) {
            Some(source) => {
                // A snapshot may outlive its volume here; nothing is known of its blocks then.
                if let Found::Whole(of, _) = self.look::<Label>(&dir, source.snapshot.volume)? {
                    check_clone(&self.ctx, &of, label)?;
                }
                let (of, _) = self.whole::<SnapshotLabel>(&self.snapshots()?, source.snapshot)?;
                check_clone_key(&self.ctx, of.encryption, label)?;
                Some(self.snapshot_file(source.snapshot)?)
            }
            None => None,
        };
        self.mappings.check(label.encryption)?;
        let image = image_name(label.id);
        let thick = label.provisioning == Provisioning::Thick;
        let late = "making an image";
        // A simulation has no file systems, it only says so.
        let format = if self.durable { mounted::to_format(label) } else { None };
        let mut failed = None;
        let mut placed = false;
        let made = self
            .write_label(&dir, label)
            .and_then(|()| self.ctx.check(deadline, late))
            .and_then(|()| {
                dir.place(&image, self.durable, |file| {
                    if thick && self.no_cow {
                        fs::set_no_cow(file)?;
                    }
                    if let Some(source) = &linked {
                        self.clone_image(file, source)?;
                    }
                    file.set_len(bytes)?;
                    if thick {
                        fs::reserve(file, 0, bytes)?;
                    }
                    if linked.is_some() {
                        return Ok(());
                    }
                    // It has no name of a volume yet: this very call has made it.
                    let path = dir.path().join(format!("{image}{TMP}"));
                    self.format(label, format, &path, deadline).map_err(|e| {
                        failed = Some(e);
                        io::Error::other("it could not be formatted")
                    })
                })
                .map_err(|e| failed.take().unwrap_or_else(|| self.io("making", &image)(e)))
            })
            .and_then(|()| {
                placed = true;
                self.sync(&dir)
            });
        if let Err(error) = made {
            // Not after an overrun: another thread may be at work on it by now.
            if !deadline.remaining().is_zero() {
                // What stood in its place, if anything did, is not ours.
                if placed {
                    let _ = dir.remove(&image);
                }
                let _ = dir.remove(&label_name(label.id));
                let _ = self.sync(&dir);
            }
            return Err(error);
        }
        Ok(Change::Done)
    }

    /// Gives a new image what lies below its content: the header of one that is encrypted, and a file system.
    fn format(&self, label: &Label, kind: Option<Kind>, image: &Path, deadline: &Deadline) -> Result<()> {
        let Some(encryption) = label.encryption else {
            return kind.map_or(Ok(()), |kind| mounted::format(&self.ctx, kind, label, image, deadline));
        };
        self.mappings.format(label.id, encryption, image, deadline)?;
        let Some(kind) = kind else { return Ok(()) };
        let name = label.id.to_string();
        // One that a daemon which was killed had open here is on a file that is gone.
        self.mappings.close(&name, deadline)?;
        let opened = File::options().read(true).write(true).open(image);
        let file = opened.map_err(self.ctx.io(format!("opening {}", image.display())))?;
        let (number, key) = self.on_loop(&file, &name, deadline)?;
        let on = loopdev::device(number);
        let made = self
            .mappings
            .open(&name, Some(encryption), &on, Use::Mount(Provisioning::Thick), deadline)
            // The file has no name yet by which it would be found again after a crash.
            .and_then(|device| {
                loopdev::let_go(number, &key).map_err(self.ctx.loop_device(name.clone()))?;
                Ok(device)
            })
            .and_then(|device| mounted::format(&self.ctx, kind, label, &device, deadline));
        let closed = self.mappings.close(&name, deadline);
        let off = loopdev::detach(number, &key, deadline).map_err(self.ctx.loop_device(name));
        made.and(closed).and(off)
    }

    /// Puts an image that has none behind a loop device.
    pub fn on_loop(&self, file: &File, name: &str, deadline: &Deadline) -> Result<(u32, loopdev::Key)> {
        let action = || format!("the image of {name}");
        let identity = loopdev::file_identity(file).map_err(self.ctx.io(action()))?;
        let key = loopdev::Key { name: format!("orlop:{name}"), file: identity };
        let number = loopdev::attach(file, &key, deadline).map_err(self.ctx.loop_device(action()))?;
        Ok((number, key))
    }

    pub fn grow(&self, label: &Label, deadline: &Deadline) -> Result<Change> {
        check_size(&self.ctx, label, GRANULARITY)?;
        let dir = self.volumes()?;
        let (old, entry) = self.whole::<Label>(&dir, label.id)?;
        let (have, want) = (entry.size, backing(label.size, label.encryption));
        if want < have {
            let has = visible(have, label.encryption);
            return Err(self.ctx.conflict(
                label.id.to_string(),
                format!("it has {has} and can't be made smaller ({})", label.size),
            ));
        }
        if want == have {
            if old == *label {
                return Ok(Change::Unchanged);
            }
            self.write_label(&dir, label)?;
            self.sync(&dir)?;
            return Ok(Change::Unchanged);
        }
        check_room(&self.ctx, label, want - have, self.capacity()?)?;
        let image = image_name(label.id);
        let file = dir.file(&image, true).map_err(self.io("opening", &image))?;
        // Reserved beyond the end, then the label, then the length. A crash leaves a label of the new
        // size on an image of the old one at worst: a grow that has not ended.
        let grown = if label.provisioning == Provisioning::Thick {
            fs::reserve(&file, have, want - have).map_err(self.io("reserving the space of", &image))
        } else {
            Ok(())
        };
        let grown = grown
            .and_then(|()| self.ctx.check(deadline, "growing an image"))
            .and_then(|()| self.write_label(&dir, label))
            .and_then(|()| self.sync(&dir))
            .and_then(|()| file.set_len(want).map_err(self.io("growing", &image)));
        if let Err(error) = grown {
            if !deadline.remaining().is_zero() {
                // Its own length again: frees what was reserved beyond it.
                let _ = file.set_len(have);
                let _ = self.write_label(&dir, &old);
                let _ = self.sync(&dir);
            }
            return Err(error);
        }
        if self.durable {
            file.sync_all().map_err(self.io("syncing", &image))?;
        }
        Ok(Change::Done)
    }

    /// The label is all that there is of properties. Space that is no longer to be reserved stays with
    /// the image: only a simulation asks for that, and nothing else is at stake in it.
    pub fn set(&self, label: &Label, deadline: &Deadline) -> Result<Change> {
        let dir = self.volumes()?;
        let (old, entry) = self.whole::<Label>(&dir, label.id)?;
        if old == *label {
            return Ok(Change::Unchanged);
        }
        if label.provisioning == Provisioning::Thick && old.provisioning == Provisioning::Thin {
            check_room(&self.ctx, label, entry.size, self.capacity()?)?;
            self.ctx.check(deadline, "reserving the space of an image")?;
            let image = image_name(label.id);
            let file = dir.file(&image, true).map_err(self.io("opening", &image))?;
            fs::reserve(&file, 0, entry.size).map_err(self.io("reserving the space of", &image))?;
        }
        self.ctx.check(deadline, "writing a label")?;
        self.write_label(&dir, label)?;
        self.sync(&dir)?;
        Ok(Change::Done)
    }

    pub fn relabel(&self, label: &Label) -> Result<()> {
        self.rewrite(&self.volumes()?, label)
    }

    fn rewrite<L: Document>(&self, dir: &Dir, label: &L) -> Result<()> {
        self.whole::<L>(dir, label.key())?;
        self.write_label(dir, label)?;
        self.sync(dir)
    }

    pub fn destroy(&self, id: VolumeId, deadline: &Deadline) -> Result<Change> {
        self.erase::<Label>(&self.volumes()?, id, deadline)
    }

    fn erase<L: Document>(&self, dir: &Dir, key: L::Key, deadline: &Deadline) -> Result<Change> {
        match self.look::<L>(dir, key)? {
            Found::Nothing => {
                // What removed it may have been stopped before that was durable.
                self.sync(dir)?;
                return Ok(Change::Unchanged);
            }
            Found::Damaged(stray) => return Err(self.damaged(stray)),
            Found::Partial | Found::Whole(..) => {}
        }
        let (label, image) = (label_name(key), image_name(key));
        for name in [&image, &format!("{image}{TMP}"), &format!("{label}{TMP}"), &label] {
            self.ctx.check(deadline, "removing an image")?;
            dir.remove(name).map_err(self.io("removing", name))?;
        }
        self.sync(dir)?;
        Ok(Change::Done)
    }

    // ---- snapshots

    /// One file shares the blocks of another, or in a simulation has a copy of them where the file
    /// system can't share.
    fn clone_image(&self, new: &File, source: &File) -> io::Result<()> {
        fs::same_cow(new, source)?;
        match fs::clone(new, source) {
            Err(e) if !self.durable && fs::cannot_clone(&e) => {
                let len = source.metadata()?.len();
                new.set_len(len)?;
                super::copy::blocks(source, new, 0, len, &Default::default(), None).map(drop)
            }
            r => r,
        }
    }

    fn whole<L: Document>(&self, dir: &Dir, key: L::Key) -> Result<(L, Entry)> {
        match self.look::<L>(dir, key)? {
            Found::Whole(label, entry) => Ok((label, entry)),
            Found::Damaged(stray) => Err(self.damaged(stray)),
            Found::Nothing | Found::Partial => {
                let what = if dir.path().ends_with(SNAPSHOTS) { "snapshot" } else { "volume" };
                Err(self.ctx.not_found(format!("{what} {key}")))
            }
        }
    }

    pub fn get(&self, id: VolumeId) -> Result<Option<Stored>> {
        match self.look::<Label>(&self.volumes()?, id)? {
            Found::Whole(label, entry) => Ok(Some(stored(label, entry))),
            Found::Damaged(stray) => Err(self.damaged(stray)),
            Found::Nothing | Found::Partial => Ok(None),
        }
    }

    /// The image of a whole volume, opened for writing, with its label.
    pub fn file(&self, id: VolumeId) -> Result<(File, Label)> {
        let dir = self.volumes()?;
        let (label, _) = self.whole::<Label>(&dir, id)?;
        let image = image_name(id);
        Ok((dir.file(&image, true).map_err(self.io("opening", &image))?, label))
    }

    /// What a loop device on this volume's image is known by. `None`: there is no image.
    pub fn key(&self, id: VolumeId) -> Result<Option<loopdev::Key>> {
        let image = image_name(id);
        let entry = self.volumes()?.entry(&image).map_err(self.io("looking at", &image))?;
        Ok(entry.map(|e| loopdev::Key { name: format!("orlop:{id}"), file: e.identity }))
    }

    pub fn list(&self, deadline: &Deadline) -> Result<Listing> {
        let mut listing = Listing::default();
        let (volumes, partial) = self.all::<Label>(&self.volumes()?, &mut listing.strays, deadline)?;
        let encrypted =
            volumes.iter().filter_map(|(label, _)| Some((label.id.to_string(), label.encryption?)));
        listing.locked = self.mappings.locked(encrypted)?;
        listing.volumes = volumes.into_iter().map(|(label, e)| stored(label, e)).collect();
        listing.partial = partial;
        let (snapshots, partial) = self.all(&self.snapshots()?, &mut listing.strays, deadline)?;
        listing.snapshots = snapshots.into_iter().map(|(label, _)| label).collect();
        listing.partial_snapshots = partial;
        listing.strays.sort();
        Ok(listing)
    }

    /// The whole and the partial ones of a directory, in order.
    #[allow(clippy::type_complexity, reason = "taken apart at once by its only caller")]
    fn all<L: Document>(
        &self,
        dir: &Dir,
        strays: &mut Vec<Stray>,
        deadline: &Deadline,
    ) -> Result<(Vec<(L, Entry)>, Vec<L::Key>)> {
        let shown = dir.path().display().to_string();
        let mut keys = BTreeSet::new();
        for name in dir.names().map_err(self.ctx.io(format!("reading {shown}")))? {
            match name.to_str().and_then(key_of::<L::Key>) {
                Some(key) => {
                    keys.insert(key);
                }
                None => {
                    let shown = name.to_string_lossy().into_owned();
                    let entry = match name.to_str() {
                        Some(name) => dir.entry(name).map_err(self.io("looking at", name))?,
                        None => None,
                    };
                    strays.push(stray(dir, shown, NOT_OURS, entry));
                }
            }
        }
        let (mut whole, mut partial) = (Vec::new(), Vec::new());
        for key in keys {
            self.ctx.check(deadline, "reading labels")?;
            match self.look::<L>(dir, key)? {
                Found::Whole(label, e) => whole.push((label, e)),
                Found::Partial => partial.push(key),
                Found::Damaged(stray) => strays.push(stray),
                // Removed since the directory was read.
                Found::Nothing => {}
            }
        }
        Ok((whole, partial))
    }

    /// Removes marker and directory of an empty pool.
    pub fn remove(&self, deadline: &Deadline) -> Result<()> {
        let root = self.root()?;
        if !self.marker(&root)? {
            return Ok(());
        }
        let Listing { volumes, snapshots, partial, partial_snapshots, strays, locked: _ } =
            self.list(deadline)?;
        let volumes = volumes.iter().map(|v| v.label.id.to_string());
        let snapshots = snapshots.iter().map(|s| s.key.to_string());
        let partial = partial.iter().map(ToString::to_string);
        let partial_snapshots = partial_snapshots.iter().map(ToString::to_string);
        let strays = strays.into_iter().map(|s| s.name);
        let mut left = volumes.chain(snapshots).chain(partial).chain(partial_snapshots).chain(strays);
        if let Some(first) = left.next() {
            let count = left.count() + 1;
            return Err(self.ctx.precondition(format!("it still has {count} things in it: {first}")));
        }
        for name in [VOLUMES, SNAPSHOTS] {
            root.remove_dir(name).map_err(self.io("removing", name))?;
        }
        root.remove(MARKER).map_err(self.io("removing", MARKER))?;
        self.sync(&root)
    }
}

fn stored(label: Label, image: Entry) -> Stored {
    let size = visible(image.size, label.encryption);
    Stored::of(label, size)
}

/// The key in a name of ours.
fn key_of<K: std::str::FromStr>(name: &str) -> Option<K> {
    let name = name.strip_suffix(TMP).unwrap_or(name);
    name.strip_suffix(".json").or_else(|| name.strip_suffix(".img"))?.parse().ok()
}
