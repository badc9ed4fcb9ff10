//! `zfs` pools: a volume is a zvol `<pool>/orlop/<id>` with its label in the user property
//! `dev.orlop:label`, which is set by the ioctl that creates it, a transaction group later: what a power cut leaves
//! between the two has our name and no label, and only the journal can tell that it is ours (`unmake`). A
//! snapshot is `<pool>/orlop/<volume>@<id>` with its label in `dev.orlop:snapshot`, set in the same
//! transaction group.
//!
//! One that is a file system is a dataset of that name with its size as `refquota`, which counts what its files
//! take and not what snapshots keep: a user's space does not shrink because there are snapshots. So `quota`,
//! which counts both, is not set; what snapshots take is the pool's to watch.
//!
//! Called by the engine through [`Pool`]. Nothing is decided by what a command says on stderr: state is
//! read before and after. What is done often (thin creates, destroys) goes through libzfs_core, because
//! starting a process costs more than the work; the commands do the same where it is absent.

mod adopt;
mod blocks;
mod dataset;
mod device;
mod encryption;
mod labels;
mod make;
mod remove;
mod spares;
mod status;
mod stream;
mod turns;
mod zpool;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use orlop_api::{
    ByteSize, EncryptionKey, FilesystemKind, PoolHealth, PoolKind, PoolName, Provisioning, SourceMode,
    VolumeId,
};
use parking_lot::Mutex;

use super::context::Context;
use super::mounted::Mounts;
use super::rules::{check_clone, check_filled, check_properties, check_room, check_same, check_size};
use super::{
    Capacity, Change, Extents, KeyRing, Listing, Opened, Place, Pool, PoolEnv, Result, Snapped, Stored, Stray,
};
use crate::kernel::exec::Tool;
use crate::kernel::lzc::Dataset;
use crate::kernel::mount::Mount;
use crate::kernel::{Deadline, fs, lzc};
use crate::model::{Document, Label, PoolChange, PoolMedium, PoolSpec, SnapshotKey, SnapshotLabel};
use dataset::{LABEL, Row, SNAPSHOT};
use device::Devices;
use status::Vdevs;
use turns::{Denied, Turn, Turns, Work};
pub(super) use zpool::Disks;

/// The block size of zvols unless another is given, and so the unit of their sizes. It is what OpenZFS
/// 2.2 and later choose; set all the same, because a pool's granularity must not change with a version.
const VOLBLOCKSIZE: u64 = 16 << 10;

/// The longest value of a user property (ZAP_MAXVALUELEN of OpenZFS, less the final zero).
const MAX_LABEL: usize = 8191;

/// How long someone else may hold a zvol that is to be destroyed: udev probes every new one, and lags
/// behind where many are made at once on a slow machine.
const BUSY: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug)]
pub(super) struct ZfsPool {
    ctx: Context,
    zfs: Tool,
    vdevs: Vdevs,
    devices: Devices,
    /// All of its space in bytes, when it was last asked; 0 before that.
    total: AtomicU64,
    /// Volumes whose snapshots have devices at present, and for how many readers.
    readers: Mutex<BTreeMap<VolumeId, usize>>,
    mounts: Mounts,
    keys: KeyRing,
}

/// Whether the zpool of a number that a person gave has the pool's name. Reads.
pub(super) fn check_number(spec: &PoolSpec, number: u64, deadline: &Deadline) -> Result<()> {
    zpool::check_number(&Context::new(&spec.name), number, deadline)
}

impl ZfsPool {
    pub fn create(spec: &PoolSpec, env: &PoolEnv, on: Disks<'_>, deadline: &Deadline) -> Result<Self> {
        let ctx = Context::new(&spec.name);
        zpool::ensure(&ctx, env, on, deadline)?;
        Self::opened(ctx, env)
    }

    pub fn open(spec: &PoolSpec, env: &PoolEnv, deadline: &Deadline) -> Result<Self> {
        Self::import(spec, env, false, deadline)
    }

    /// As `open`, from a machine that did not let go of it.
    pub fn take(spec: &PoolSpec, env: &PoolEnv, deadline: &Deadline) -> Result<Self> {
        Self::import(spec, env, true, deadline)
    }

    fn import(spec: &PoolSpec, env: &PoolEnv, force: bool, deadline: &Deadline) -> Result<Self> {
        let ctx = Context::new(&spec.name);
        // Where only the daemon was started again it is here already, and may have lost its disks meanwhile.
        Vdevs::new(&ctx, env)?.revive(spec.guid(), deadline)?;
        zpool::import(&ctx, spec.guid(), force, deadline)?;
        Self::opened(ctx, env)
    }

    fn opened(ctx: Context, env: &PoolEnv) -> Result<Self> {
        let zfs = Tool::locate("zfs").map_err(|e| ctx.exec(e))?;
        Ok(Self {
            vdevs: Vdevs::new(&ctx, env)?,
            mounts: Mounts::new(&ctx, env),
            keys: env.keys.clone(),
            ctx,
            zfs,
            devices: Devices::default(),
            total: AtomicU64::new(0),
            readers: Mutex::default(),
        })
    }

    fn parent(&self) -> String {
        parent(&self.ctx.pool)
    }

    /// An error once the deadline has passed, or where ZFS would not answer: asked before each thing that is asked of it.
    fn check(&self, deadline: &Deadline, action: &str) -> Result<()> {
        self.ctx.check(deadline, action)?;
        self.vdevs.must_answer()
    }

    /// Waits until it may be done.
    fn turn(&self, work: Work, deadline: &Deadline) -> Result<Turn<'static>> {
        Turns::of_machine().take(work, &self.ctx.pool, deadline).map_err(|denied| match denied {
            Denied::Late => self.ctx.late("waiting for other zvols", crate::kernel::Overrun),
            Denied::HeldUpBy(other) => self.ctx.failed(format!(
                "zpool {other} lost disks while a volume in it grew, and until that has ended ZFS can remove nothing from \
                 any zpool: put them back, or start the machine again without them"
            )),
        })
    }

    /// The name of a volume or a snapshot.
    fn dataset(&self, key: impl std::fmt::Display) -> String {
        format!("{}/{key}", self.parent())
    }

    /// Rows straight from ZFS, each with one of the two labels, all of one instant where the library can answer.
    /// `None`: there is no dataset of that name.
    fn rows(&self, asked: &[(String, &str)], deadline: &Deadline) -> Result<Vec<Option<Row>>> {
        self.read(asked, &dataset::natives(), &dataset::natives_of_filesystems(), deadline)
    }

    /// The same with the label alone: all else in a row may be missing.
    fn labels(&self, asked: &[(String, &str)], deadline: &Deadline) -> Result<Vec<Option<Row>>> {
        self.read(asked, &[], &[], deadline)
    }

    fn read(
        &self,
        asked: &[(String, &str)],
        natives: &[&str],
        of_filesystems: &[&str],
        deadline: &Deadline,
    ) -> Result<Vec<Option<Row>>> {
        self.check(deadline, "reading a label")?;
        if let Some(lzc) = lzc::get() {
            // Where the library can't answer, the command still may.
            let words = dataset::words();
            match lzc.read(self.ctx.pool.as_str(), asked, natives, of_filesystems, &words) {
                Ok(found) => {
                    let row = |((name, property), found): (&(String, &str), Option<Dataset>)| {
                        found.map(|d| Row::read(name, *property == LABEL, d))
                    };
                    return Ok(asked.iter().zip(found).map(row).collect());
                }
                Err(error) => tracing::debug!(?asked, %error, "reading through libzfs_core failed"),
            }
        }
        let one = |name| dataset::one(&self.ctx, &self.zfs, &self.parent(), name, deadline);
        asked.iter().map(|(name, _)| one(name)).collect()
    }

    /// One row, with one of the two labels.
    fn row_of(&self, name: String, property: &str, deadline: &Deadline) -> Result<Option<Row>> {
        Ok(self.rows(&[(name, property)], deadline)?.pop().flatten())
    }

    /// The snapshot that a row is; an error if it is not ours.
    fn as_snapshot(&self, row: Option<Row>, key: SnapshotKey) -> Result<Option<SnapshotLabel>> {
        let Some(row) = row else { return Ok(None) };
        match dataset::snapshot_label(row.snapshot.as_deref(), key) {
            Ok(label) => Ok(Some(label)),
            Err(what) => Err(self.ctx.conflict(row.name, format!("{what}; it is left alone"))),
        }
    }

    /// The volume that a row is; an error if it is not ours.
    fn as_volume(&self, row: Option<Row>, id: VolumeId) -> Result<Option<Stored>> {
        let Some(row) = row else { return Ok(None) };
        match row.stored(id) {
            Ok(stored) => Ok(Some(stored)),
            Err(what) => Err(self.ctx.conflict(row.name, format!("{what}; it is left alone"))),
        }
    }

    /// The snapshot of that key; an error if there is one of its name that is not ours.
    fn look_snapshot(&self, key: SnapshotKey, deadline: &Deadline) -> Result<Option<SnapshotLabel>> {
        self.as_snapshot(self.row_of(self.dataset(key), SNAPSHOT, deadline)?, key)
    }

    /// The volume of that id; `None` if there is no dataset; an error if there is one that is not ours.
    fn look(&self, id: VolumeId, deadline: &Deadline) -> Result<Option<Stored>> {
        self.as_volume(self.row_of(self.dataset(id), LABEL, deadline)?, id)
    }

    fn existing(&self, id: VolumeId, deadline: &Deadline) -> Result<Stored> {
        self.look(id, deadline)?.ok_or_else(|| self.ctx.not_found(format!("volume {id}")))
    }

    fn label_text<L: Document>(&self, label: &L) -> Result<String> {
        let text = label.to_json();
        if text.len() > MAX_LABEL {
            // Too many hosts on one volume, most likely.
            return Err(self.ctx.exhausted(format!(
                "the label of {} would have {} bytes, and ZFS keeps {MAX_LABEL}",
                label.key(),
                text.len()
            )));
        }
        Ok(text)
    }

    fn zfs<S: AsRef<OsStr>>(&self, args: &[S], deadline: &Deadline) -> Result<()> {
        self.check(deadline, "running zfs")?;
        self.zfs.run(args, deadline).and_then(|o| o.success()).map(drop).map_err(|e| self.ctx.exec(e))
    }

    fn set_label<L: Document>(&self, label: &L, property: &str, deadline: &Deadline) -> Result<()> {
        self.set_label_on(&self.dataset(label.key()), label, property, deadline)
    }

    fn set_label_on<L: Document>(
        &self,
        name: &str,
        label: &L,
        property: &str,
        deadline: &Deadline,
    ) -> Result<()> {
        let text = self.label_text(label)?;
        self.check(deadline, "writing a label")?;
        if let Some(lzc) = lzc::get() {
            match lzc.set_text(self.ctx.pool.as_str(), name, property, &text) {
                Ok(()) => return Ok(()),
                Err(error) => tracing::debug!(name, %error, "writing through libzfs_core failed"),
            }
        }
        self.zfs(&["set", &format!("{property}={text}"), name], deadline)
    }

    /// A dataset has no bytes in a row that could be copied.
    fn no_bytes(&self, what: String) -> super::PoolError {
        self.ctx.unsupported(format!("{what} is a ZFS dataset: it is copied as a stream"))
    }
}

/// The dataset that all volumes are below.
fn parent(pool: &PoolName) -> String {
    format!("{pool}/orlop")
}

/// What `list` asks zfs(8).
#[cfg(any(test, feature = "contract"))]
pub(super) fn listing_command(pool: &PoolName) -> Vec<String> {
    dataset::list_args(&parent(pool)).to_vec()
}

impl Pool for ZfsPool {
    fn kind(&self) -> PoolKind {
        PoolKind::Zfs
    }

    fn name(&self) -> &PoolName {
        &self.ctx.pool
    }

    fn granularity(&self) -> ByteSize {
        ByteSize(VOLBLOCKSIZE)
    }

    fn known_as(&self, spec: &PoolSpec, deadline: &Deadline) -> Result<PoolSpec> {
        let mut known = spec.clone();
        if let PoolMedium::Zfs { guid, .. } = &mut known.medium {
            *guid = Some(zpool::guid(&self.ctx, deadline)?);
        }
        Ok(known)
    }

    fn capacity(&self, deadline: &Deadline) -> Result<Capacity> {
        self.check(deadline, "reading the capacity")?;
        let capacity = dataset::capacity(&self.ctx, &self.zfs, deadline)?;
        self.total.store(capacity.total.bytes(), Ordering::Relaxed);
        Ok(capacity)
    }

    fn create(&self, label: &Label, deadline: &Deadline) -> Result<Change> {
        check_size(&self.ctx, label, self.granularity())?;
        check_properties(&self.ctx.pool, self.features(), None, label)?;
        let text = self.label_text(label)?;
        let known = |have: &Stored| -> Result<Change> {
            check_same(&self.ctx, &have.label, label)?;
            if have.size < label.size && label.source.is_some() {
                // What made it was stopped before it had its size: its label says which.
                return self.set_size(label, deadline).map(|()| Change::Unchanged);
            }
            if have.size != label.size {
                let detail = format!("the dataset has {}, not {}", have.size, label.size);
                return Err(self.ctx.conflict(label.id.to_string(), detail));
            }
            Ok(Change::Unchanged)
        };
        // A thin one is made at once: that fails where it is there. Others are asked for first, because room is.
        let thick = label.provisioning == Provisioning::Thick;
        if thick && let Some(have) = self.look(label.id, deadline)? {
            return known(&have);
        }
        let mut from = None;
        if let Some(of) = label.source.filter(|s| s.mode == SourceMode::Linked).map(|s| s.snapshot) {
            let asked = [(self.dataset(of), SNAPSHOT), (self.dataset(of.volume), LABEL)];
            let mut rows = self.labels(&asked, deadline)?.into_iter();
            let snapshot = self.as_snapshot(rows.next().flatten(), of)?;
            from = Some(snapshot.ok_or_else(|| self.ctx.not_found(format!("snapshot {of}")))?);
            let row = rows.next().flatten();
            let row = row.ok_or_else(|| self.ctx.not_found(format!("volume {}", of.volume)))?;
            let said = row.volume_label(of.volume);
            let said = said.map_err(|what| self.ctx.conflict(row.name.clone(), what))?;
            check_clone(&self.ctx, &said, label)?;
        }
        // For a thin one only the total matters, and that changes when disks are added: asked again
        // only if the one that was seen last would not do.
        let seen = Capacity { total: ByteSize(self.total.load(Ordering::Relaxed)), ..Capacity::default() };
        if thick || label.size > seen.total {
            check_room(&self.ctx, label, label.size.bytes(), self.capacity(deadline)?)?;
        }
        match self.make(label, from.as_ref(), &text, deadline) {
            Ok(()) => Ok(Change::Done),
            Err(error) => match self.look(label.id, deadline)? {
                // It failed because it was there.
                Some(have) => known(&have),
                None => Err(self.blame_space(error, label.size.bytes(), deadline)),
            },
        }
    }

    fn grow(&self, label: &Label, deadline: &Deadline) -> Result<Change> {
        check_size(&self.ctx, label, self.granularity())?;
        let old = self.existing(label.id, deadline)?;
        if label.size < old.size {
            return Err(self.ctx.conflict(
                label.id.to_string(),
                format!("it has {} and can't be made smaller ({})", old.size, label.size),
            ));
        }
        if label.size == old.size {
            if old.label != *label {
                self.set_label(label, LABEL, deadline)?;
            }
            return Ok(Change::Unchanged);
        }
        self.ensure_unlocked(&old.label, deadline)?;
        let more = label.size.bytes() - old.size.bytes();
        check_room(&self.ctx, label, more, self.capacity(deadline)?)?;
        // The label first: a crash leaves a zvol smaller than its label says, a grow that has not ended.
        self.set_label(label, LABEL, deadline)?;
        // libzfs raises the reservation of a thick one along with it.
        if let Err(error) = self.set_size(label, deadline) {
            if self.existing(label.id, deadline)?.size == label.size {
                return Ok(Change::Done);
            }
            self.set_label(&old.label, LABEL, deadline)?;
            return Err(self.blame_space(error, more, deadline));
        }
        Ok(Change::Done)
    }

    fn set(&self, label: &Label, deadline: &Deadline) -> Result<Change> {
        let old = self.existing(label.id, deadline)?;
        check_properties(&self.ctx.pool, self.features(), Some(&old.label), label)?;
        let done = |now: &Stored| now.label == *label && now.is_whole();
        if done(&old) {
            return Ok(Change::Unchanged);
        }
        let Err(error) = self.apply(&old, &old.label.properties, label, deadline) else {
            return Ok(Change::Done);
        };
        let now = self.existing(label.id, deadline)?;
        if done(&now) {
            return Ok(Change::Done);
        }
        // Where ZFS refuses one property it sets the others all the same.
        if let Err(error) = self.apply(&now, &label.properties, &old.label, deadline) {
            tracing::warn!(volume = %label.id, %error, "a part of a change could not be put back");
        }
        Err(self.blame_space(error, label.size.bytes(), deadline))
    }

    fn relabel(&self, label: &Label, deadline: &Deadline) -> Result<()> {
        self.existing(label.id, deadline)?;
        self.set_label(label, LABEL, deadline)
    }

    fn destroy(&self, id: VolumeId, deadline: &Deadline) -> Result<Change> {
        if self.look(id, deadline)?.is_none() {
            return Ok(Change::Unchanged);
        }
        let name = self.dataset(id);
        self.mounts.unmount(id, deadline)?;
        self.devices.close(&name);
        self.remove_patiently(&name, LABEL, deadline)?;
        self.devices.forget(&name);
        Ok(Change::Done)
    }

    fn unmake(&self, id: VolumeId, deadline: &Deadline) -> Result<Change> {
        let name = self.dataset(id);
        match self.row_of(name.clone(), LABEL, deadline)? {
            Some(Row { label: None, .. }) => {
                self.devices.close(&name);
                self.remove_patiently(&name, LABEL, deadline)?;
                self.devices.forget(&name);
                Ok(Change::Done)
            }
            _ => self.destroy(id, deadline),
        }
    }

    fn get(&self, id: VolumeId, deadline: &Deadline) -> Result<Option<Stored>> {
        self.look(id, deadline)
    }

    fn list(&self, deadline: &Deadline) -> Result<Listing> {
        self.check(deadline, "listing volumes")?;
        let mut listing = dataset::list(&self.ctx, &self.zfs, &self.parent(), deadline)?;
        if listing.volumes.iter().any(|v| v.label.encryption.is_some()) {
            listing.locked = self.without_key(None, deadline)?;
        }
        Ok(listing)
    }

    fn elsewhere(&self, deadline: &Deadline) -> Result<Vec<Stray>> {
        self.check(deadline, "looking for volumes")?;
        dataset::elsewhere(&self.ctx, &self.zfs, &self.parent(), deadline)
    }

    fn adopt(&self, stray: &str, label: &Label, deadline: &Deadline) -> Result<Change> {
        self.adopt_zvol(stray, label, deadline)
    }

    fn release(&self, stray: &str, id: VolumeId, deadline: &Deadline) -> Result<Change> {
        self.release_zvol(stray, id, deadline)
    }

    fn open(&self, id: VolumeId, deadline: &Deadline) -> Result<Opened> {
        let stored = self.existing(id, deadline)?;
        self.ensure_unlocked(&stored.label, deadline)?;
        check_filled(&self.ctx, &stored.label)?;
        if stored.filesystem.is_some() {
            let name = self.dataset(id);
            let is_it = |m: &Mount| m.source.to_str() == Some(&name);
            let point = self.mounts.mount(id, Path::new(&name), "zfs", "", is_it, deadline)?;
            return Ok(Opened { place: Place::Directory(point), size: stored.size });
        }
        let name = self.dataset(id);
        if stored.label.encryption.is_some_and(|e| e.key_of != id) && !self.devices.is_there(&name) {
            self.zfs(&["set", encryption::GIVE_DEVICE, &name], deadline)?;
        }
        self.check(deadline, "opening a device")?;
        let opened = self.devices.open(&self.ctx, &name, deadline)?;
        if opened.size != stored.size {
            return Err(self.ctx.conflict(
                opened.path().display().to_string(),
                format!("it has {} where ZFS says {}", opened.size, stored.size),
            ));
        }
        Ok(opened)
    }

    /// Reading a label waits for each change that ZFS is making; the device tells which volume it is, and how large.
    fn open_known(&self, label: &Label, deadline: &Deadline) -> Result<Opened> {
        if label.filesystem.is_none() && label.encryption.is_none() {
            check_filled(&self.ctx, label)?;
            self.check(deadline, "opening a device")?;
            match self.devices.open_named(&self.dataset(label.id)) {
                Some(opened) if opened.size == label.size => return Ok(opened),
                _ => {}
            }
        }
        self.open(label.id, deadline)
    }

    fn unlock(&self, id: VolumeId, key: &EncryptionKey, deadline: &Deadline) -> Result<()> {
        match self.existing(id, deadline)?.label.encryption {
            Some(encryption) => self.load_key(encryption.key_of, key, true, deadline),
            None => Ok(()),
        }
    }

    fn close(&self, id: VolumeId, deadline: &Deadline) -> Result<()> {
        if self.vdevs.must_answer().is_err() {
            // The last close writes what there still is, and so does an unmount: neither would end. Its hosts have been
            // cut off before. It stays open until it is served and let go of again, destroyed, or the pool exported.
            return Ok(());
        }
        self.mounts.unmount(id, deadline)?;
        self.devices.close(&self.dataset(id));
        Ok(())
    }

    fn snapshot(&self, labels: &[SnapshotLabel], deadline: &Deadline) -> Result<Snapped> {
        let mut there = 0;
        let mut wanted = Vec::with_capacity(labels.len());
        // Each snapshot that there may be and its volume: in one question.
        let asked: Vec<_> = labels
            .iter()
            .flat_map(|l| [(self.dataset(l.key), SNAPSHOT), (self.dataset(l.key.volume), LABEL)])
            .collect();
        let mut rows = self.rows(&asked, deadline)?.into_iter();
        for label in labels {
            match self.as_snapshot(rows.next().flatten(), label.key)? {
                Some(have) if have == *label => there += 1,
                Some(_) => {
                    return Err(self.ctx.conflict(label.key.to_string(), "it exists with another label"));
                }
                None => {}
            }
            let id = label.key.volume;
            let volume = self.as_volume(rows.next().flatten(), id)?;
            let volume = volume.ok_or_else(|| self.ctx.not_found(format!("volume {id}")))?;
            if there == 0 && volume.size != label.size {
                let detail = format!("its volume has {}, not {}", volume.size, label.size);
                return Err(self.ctx.conflict(label.key.to_string(), detail));
            }
            wanted.push((self.dataset(label.key), self.label_text(label)?));
        }
        if there == labels.len() {
            return Ok(Snapped { change: Change::Unchanged, paused: None });
        }
        if there > 0 {
            return Err(self.ctx.conflict(labels[0].key.to_string(), "a part of its group exists already"));
        }
        self.check(deadline, "taking snapshots")?;
        match (lzc::get(), wanted.as_slice()) {
            (Some(lzc), _) => lzc
                .snapshot(self.ctx.pool.as_str(), SNAPSHOT, &wanted)
                .map_err(self.ctx.io("taking snapshots"))?,
            (None, [(name, text)]) => {
                self.zfs(&["snapshot", "-o", &format!("{SNAPSHOT}={text}"), name], deadline)?;
            }
            // The command sets one value for all of them.
            (None, _) => return Err(self.ctx.unsupported("snapshots of a group need libzfs_core")),
        }
        Ok(Snapped { change: Change::Done, paused: None })
    }

    fn get_snapshot(&self, key: SnapshotKey, deadline: &Deadline) -> Result<Option<SnapshotLabel>> {
        self.look_snapshot(key, deadline)
    }

    fn relabel_snapshot(&self, label: &SnapshotLabel, deadline: &Deadline) -> Result<()> {
        match self.look_snapshot(label.key, deadline)? {
            Some(_) => self.set_label(label, SNAPSHOT, deadline),
            None => Err(self.ctx.not_found(format!("snapshot {}", label.key))),
        }
    }

    fn destroy_snapshot(&self, key: SnapshotKey, deadline: &Deadline) -> Result<Change> {
        if self.look_snapshot(key, deadline)?.is_none() {
            return Ok(Change::Unchanged);
        }
        let name = self.dataset(key);
        self.devices.close(&name);
        self.remove_patiently(&name, SNAPSHOT, deadline)?;
        self.devices.forget(&name);
        Ok(Change::Done)
    }

    fn read(&self, key: SnapshotKey, deadline: &Deadline) -> Result<File> {
        if self.look_snapshot(key, deadline)?.is_none() {
            return Err(self.ctx.not_found(format!("snapshot {key}")));
        }
        let volume = self.existing(key.volume, deadline)?;
        if volume.filesystem.is_some() {
            return Err(self.no_bytes(format!("snapshot {key}")));
        }
        self.ensure_unlocked(&volume.label, deadline)?;
        // Devices of snapshots exist only while somebody reads one: a volume may have a thousand.
        *self.readers.lock().entry(key.volume).or_default() += 1;
        let open = || {
            self.zfs(&["set", "snapdev=visible", &self.dataset(key.volume)], deadline)?;
            let name = self.dataset(key);
            let opened = self.devices.open(&self.ctx, &name, deadline)?;
            let device = opened.path();
            let opened = File::open(device).and_then(|f| fs::set_direct(&f).map(|()| f));
            self.devices.close(&name);
            opened.map_err(self.ctx.io(format!("opening {}", device.display())))
        };
        open().inspect_err(|_| {
            if let Err(error) = self.done_reading(key, deadline) {
                tracing::warn!(snapshot = %key, %error, "its device stays");
            }
        })
    }

    fn done_reading(&self, key: SnapshotKey, deadline: &Deadline) -> Result<()> {
        let last = {
            let mut readers = self.readers.lock();
            match readers.get_mut(&key.volume) {
                Some(n) if *n > 1 => {
                    *n -= 1;
                    false
                }
                _ => {
                    readers.remove(&key.volume);
                    true
                }
            }
        };
        if last && self.look(key.volume, deadline)?.is_some() {
            let _turn = self.turn(Work::Removal, deadline)?;
            self.zfs(&["inherit", "snapdev", &self.dataset(key.volume)], deadline)?;
        }
        self.devices.forget(&self.dataset(key));
        Ok(())
    }

    fn blocks(
        &self,
        key: SnapshotKey,
        base: Option<SnapshotKey>,
        found: &mut Extents,
        deadline: &Deadline,
    ) -> Result<()> {
        self.blocks_of(key, base, found, deadline)
    }

    fn fill(&self, id: VolumeId, deadline: &Deadline) -> Result<File> {
        if self.existing(id, deadline)?.filesystem.is_some() {
            return Err(self.no_bytes(format!("volume {id}")));
        }
        let opened = self.open(id, deadline)?;
        let device = opened.path();
        self.devices.close(&self.dataset(id));
        let opened = File::options().read(true).write(true).open(device);
        let opened = opened.and_then(|f| fs::set_direct(&f).map(|()| f));
        opened.map_err(self.ctx.io(format!("opening {}", device.display())))
    }

    fn is_streamed(&self, filesystem: FilesystemKind) -> bool {
        filesystem == FilesystemKind::Zfs
    }

    fn send(&self, key: SnapshotKey, into: File, deadline: &Deadline) -> Result<()> {
        self.send_stream(key, &into, deadline)
    }

    fn receive(&self, id: VolumeId, from: File, deadline: &Deadline) -> Result<()> {
        self.receive_stream(id, &from, deadline)
    }

    fn health(&self, last: Option<&PoolHealth>, deadline: &Deadline) -> Result<Option<PoolHealth>> {
        self.vdevs.health(last, deadline).map(Some)
    }

    fn take_back(&self, deadline: &Deadline) -> Result<Change> {
        self.vdevs.take_back(deadline)
    }

    fn mind_spares(&self, deadline: &Deadline) -> Result<Change> {
        self.vdevs.mind_spares(deadline)
    }

    fn change(&self, change: &PoolChange, deadline: &Deadline) -> Result<Change> {
        self.vdevs.change(change, deadline)
    }

    fn export(&self, deadline: &Deadline) -> Result<()> {
        let _turn = self.turn(Work::Removal, deadline)?;
        self.check(deadline, "exporting the zpool")?;
        // None is in use; one may have been left open or mounted: by a daemon that was killed while it looked at it, or
        // while the disks were gone.
        self.devices.close_all();
        self.mounts.mounted()?.into_iter().try_for_each(|id| self.close(id, deadline))?;
        self.mounts.forget();
        zpool::export(&self.ctx, deadline)
    }

    fn remove(&self, deadline: &Deadline) -> Result<()> {
        let _turn = self.turn(Work::Removal, deadline)?;
        self.check(deadline, "removing the zpool")?;
        self.devices.close_all();
        zpool::remove(&self.ctx, deadline)?;
        self.mounts.forget();
        Ok(())
    }
}
