//! A pool and a target that behave, and that fail and hang when told to.

mod target;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use orlop_api::{
    ByteSize, Disk, DiskHealth, DiskName, DiskUsage, DiskWipe, EncryptionKey, FilesystemKind, PoolHealth,
    PoolKind, PoolName, Property, Provisioning, VolumeId, VolumeKind,
};
use parking_lot::{Condvar, Mutex};
pub use target::FakeTarget;

use crate::engine::Pools;
use crate::kernel::Deadline;
use crate::kernel::disks::DiskInfo;
use crate::model::{Label, PoolChange, PoolSpec, SnapshotKey, SnapshotLabel};
use crate::pool::disks::WipeError;
use crate::pool::{
    Capacity, Change, Extents, Features, KeyRing, Listing, More, Opened, Place, Pool, PoolError, Result,
    Snapped, Stored, Stray,
};

/// The disk under a fake pool: survives a restart of the engine.
#[derive(Default)]
pub struct Platter {
    state: Mutex<State>,
    bell: Condvar,
}

#[derive(Default)]
struct State {
    made: bool,
    away: bool,
    volumes: BTreeMap<VolumeId, Stored>,
    partial: BTreeSet<VolumeId>,
    strays: BTreeMap<String, Stray>,
    /// Labelled, and not under their new name yet.
    half_adopted: BTreeSet<VolumeId>,
    snapshots: BTreeMap<SnapshotKey, SnapshotLabel>,
    partial_snapshots: BTreeSet<SnapshotKey>,
    /// The first bytes of a volume or a snapshot, and where a copy goes.
    content: BTreeMap<String, Arc<File>>,
    readers: usize,
    open: BTreeSet<VolumeId>,
    /// How often a file system was mounted.
    mounts: usize,
    relabels: u64,
    /// Much, unless a test says otherwise.
    capacity: Option<Capacity>,
    health: Option<PoolHealth>,
    /// What it becomes when a spare is moved.
    health_with_spare: Option<PoolHealth>,
    spares_minded: u64,
    changes: Vec<PoolChange>,
    /// The machine's disks, and what each says of itself; `None`: it sleeps.
    disks: BTreeMap<String, (DiskInfo, Option<DiskHealth>)>,
    /// Those that were asked, in order.
    asked: Vec<String>,
    wiped: Vec<(DiskName, DiskWipe)>,
    /// What volumes are encrypted with, and those whose key the machine has in memory.
    keys: BTreeMap<VolumeId, EncryptionKey>,
    loaded: BTreeSet<VolumeId>,
    /// The ring of the daemon that runs.
    ring: KeyRing,
    faults: Faults,
}

/// What goes wrong next.
#[derive(Default, Clone)]
pub struct Faults {
    /// Creates fail half way and leave something.
    pub fail_create: bool,
    /// So does taking it back.
    pub fail_destroy: bool,
    /// Labels can't be written.
    pub fail_relabel: bool,
    /// Creates, destroys and new labels of these names hang until let go; `capacity` is the question for that.
    pub hang: BTreeSet<String>,
    /// The second snapshot of a request fails, with the first one taken.
    pub fail_snapshot: bool,
    /// Disks can't be changed.
    pub fail_change: bool,
    /// The pool can't be asked.
    pub fail_open: bool,
    /// Adoptions stop half way.
    pub fail_adopt: bool,
    /// Copies can't be written.
    pub fail_fill: bool,
    /// The backing is made smaller than asked.
    pub short: bool,
    /// Sets fail half way: the pool has new properties, and the label is the old one.
    pub fail_set: bool,
    /// Sets write the label and leave the pool as it is.
    pub deaf: bool,
    /// The pool has no properties and no file systems at all.
    pub plain: bool,
    /// Backings can't be closed.
    pub fail_close: bool,
    /// What is a file system can't be mounted.
    pub fail_mount: bool,
    /// A file system is smaller than its backing.
    pub small_filesystem: bool,
}

impl Platter {
    /// The ring of a daemon that starts.
    pub fn new_ring(&self) -> KeyRing {
        let ring = KeyRing::default();
        self.state.lock().ring = ring.clone();
        ring
    }

    pub fn faults(&self, f: impl FnOnce(&mut Faults)) {
        f(&mut self.state.lock().faults);
        self.bell.notify_all();
    }

    /// So many of a hundred GiB are used.
    pub fn set_used(&self, gib: u64) {
        let of = |gib: u64| ByteSize(gib << 30);
        let capacity =
            Capacity { total: of(100), used: of(gib), available: of(100 - gib), metadata_percent: None };
        self.state.lock().capacity = Some(capacity);
    }

    pub fn set_health(&self, health: PoolHealth) {
        self.state.lock().health = Some(health);
    }

    /// A spare will be moved when the pool is asked to mind them.
    pub fn move_spare(&self, then: PoolHealth) {
        self.state.lock().health_with_spare = Some(then);
    }

    pub fn spares_minded(&self) -> u64 {
        self.state.lock().spares_minded
    }

    /// What was done to its disks.
    pub fn changes(&self) -> Vec<PoolChange> {
        self.state.lock().changes.clone()
    }

    /// A disk is there, with what it says of itself.
    pub fn set_disk(&self, name: &str, serial: &str, health: Option<DiskHealth>) {
        let disk = DiskInfo {
            name: name.into(),
            path: format!("/dev/{name}").into(),
            size: 1 << 30,
            rotational: false,
            model: Some("Model".into()),
            serial: Some(serial.into()),
            by_id: None,
            partitions: Vec::new(),
            holders: Vec::new(),
        };
        self.state.lock().disks.insert(name.into(), (disk, health));
    }

    pub fn pull_disk(&self, name: &str) {
        self.state.lock().disks.remove(name);
    }

    /// Which disks were asked since this was called last.
    pub fn asked(&self) -> Vec<String> {
        let mut asked = std::mem::take(&mut self.state.lock().asked);
        asked.sort();
        asked
    }

    pub fn wiped(&self) -> Vec<(DiskName, DiskWipe)> {
        self.state.lock().wiped.clone()
    }

    pub fn set_away(&self, away: bool) {
        self.state.lock().away = away;
    }

    pub fn backings(&self) -> usize {
        let s = self.state.lock();
        s.volumes.len() + s.partial.len()
    }

    pub fn open_backings(&self) -> usize {
        self.state.lock().open.len()
    }

    pub fn mounts(&self) -> usize {
        self.state.lock().mounts
    }

    pub fn labels(&self) -> Vec<Label> {
        self.state.lock().volumes.values().map(|s| s.label.clone()).collect()
    }

    pub fn snapshots(&self) -> usize {
        let s = self.state.lock();
        s.snapshots.len() + s.partial_snapshots.len()
    }

    pub fn readers(&self) -> usize {
        self.state.lock().readers
    }

    pub fn leave_partial_snapshot(&self, key: SnapshotKey) {
        self.state.lock().partial_snapshots.insert(key);
    }

    pub fn write(&self, id: impl ToString, text: &[u8]) {
        content(&mut self.state.lock(), id).write_all_at(text, 4096).unwrap();
    }

    pub fn read(&self, id: impl ToString, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        content(&mut self.state.lock(), id).read_exact_at(&mut bytes, 4096).unwrap();
        bytes
    }

    pub fn leave_partial(&self, id: VolumeId) {
        self.state.lock().partial.insert(id);
    }

    pub fn leave_stray(&self, name: &str, size: u64) {
        self.state.lock().strays.insert(name.into(), foreign(name, ByteSize(size)));
    }

    /// Those that were not adopted, not even half.
    pub fn strays(&self) -> Vec<String> {
        let s = self.state.lock();
        assert!(s.half_adopted.is_empty(), "half adopted");
        s.strays.keys().cloned().collect()
    }

    /// As a crash leaves it in the middle of an adoption, and at its end.
    pub fn half_adopt(&self, id: VolumeId) {
        self.state.lock().half_adopted.insert(id);
    }

    pub fn whole_adopt(&self, stray: &str, label: Label) {
        self.state.lock().strays.remove(stray);
        self.leave_volume(label);
    }

    /// A backing is gone, by other ways than ours.
    pub fn lose(&self, id: VolumeId) {
        self.state.lock().volumes.remove(&id);
    }

    /// A backing with a label on it that came by other ways than ours.
    pub fn leave_volume(&self, label: Label) {
        let size = label.size;
        self.state.lock().volumes.insert(label.id, Stored::of(label, size));
    }

    /// A restart of the machine: nothing is open.
    pub fn power_cycle(&self) {
        self.state.lock().loaded.clear();
        self.state.lock().open.clear();
    }

    fn wait_while_hung(&self, name: &str) {
        let mut s = self.state.lock();
        while s.faults.hang.contains(name) {
            self.bell.wait_for(&mut s, Duration::from_secs(30));
        }
    }
}

fn foreign(name: &str, size: ByteSize) -> Stray {
    let rule = size.is_multiple_of(ByteSize(4096));
    Stray {
        name: name.into(),
        labelled: false,
        what: "is not ours".into(),
        size: Some(size),
        adoptable: if rule { Ok(Provisioning::Thin) } else { Err("it has an odd size".into()) },
    }
}

fn content(s: &mut State, id: impl ToString) -> Arc<File> {
    let new = || {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4 << 20).unwrap();
        Arc::new(file)
    };
    s.content.entry(id.to_string()).or_insert_with(new).clone()
}

fn same_content(s: &mut State, from: impl ToString, to: impl ToString) {
    let mut bytes = vec![0; 4 << 20];
    content(s, from).read_exact_at(&mut bytes, 0).unwrap();
    content(s, to).write_all_at(&bytes, 0).unwrap();
}

#[derive(Clone, Default)]
pub struct FakePools(pub Arc<Platter>);

impl Pools for FakePools {
    fn let_all_go_on(&self) {}

    fn create(&self, spec: &PoolSpec, _: &Deadline) -> Result<Box<dyn Pool>> {
        self.0.state.lock().made = true;
        Ok(Box::new(FakePool { spec: spec.clone(), platter: self.0.clone() }))
    }

    fn open(&self, spec: &PoolSpec, _: &Deadline) -> Result<Box<dyn Pool>> {
        let s = self.0.state.lock();
        if s.faults.fail_open {
            return Err(FakePool { spec: spec.clone(), platter: self.0.clone() }.broken("opening"));
        }
        if !s.made || s.away {
            return Err(PoolError::NotFound { pool: spec.name.clone(), object: "the platter".into() });
        }
        Ok(Box::new(FakePool { spec: spec.clone(), platter: self.0.clone() }))
    }

    fn clear(&self, _: &PoolSpec, _: &Deadline) -> Result<()> {
        Ok(())
    }

    fn recognize(&self, spec: &PoolSpec, _: &Deadline) -> Result<PoolSpec> {
        Ok(spec.clone())
    }

    fn import(&self, spec: &PoolSpec, _: bool, deadline: &Deadline) -> Result<Box<dyn Pool>> {
        self.open(spec, deadline)
    }

    fn disks(&self, _: &Deadline) -> std::io::Result<Vec<Disk>> {
        let shown = |d: &DiskInfo| Disk {
            name: d.name.clone(),
            by_id: None,
            size: ByteSize(d.size),
            rotational: d.rotational,
            model: d.model.clone(),
            serial: d.serial.clone(),
            usage: DiskUsage::Blank,
            health: DiskHealth::default(),
        };
        Ok(self.0.state.lock().disks.values().map(|(d, _)| shown(d)).collect())
    }

    fn present(&self) -> std::io::Result<Vec<DiskInfo>> {
        Ok(self.0.state.lock().disks.values().map(|(d, _)| d.clone()).collect())
    }

    fn wipe_disk(
        &self,
        name: &DiskName,
        ask: &DiskWipe,
        ours: &[(PoolName, Vec<String>)],
        deadline: &Deadline,
    ) -> std::result::Result<Disk, WipeError> {
        self.0.wait_while_hung(name.as_str());
        if ours.iter().any(|(_, media)| media.iter().any(|m| m == name.as_str())) {
            return Err(WipeError::Used { disk: name.clone(), by: "a pool".into() });
        }
        self.0.state.lock().wiped.push((name.clone(), ask.clone()));
        let all = self.disks(deadline).unwrap().into_iter();
        all.into_iter().find(|d| d.name == name.as_str()).ok_or_else(|| WipeError::NotFound(name.clone()))
    }

    fn disk_health(&self, disk: &DiskInfo, _: &Deadline) -> Option<DiskHealth> {
        self.0.state.lock().asked.push(disk.name.clone());
        self.0.wait_while_hung(&disk.name);
        self.0.state.lock().disks.get(&disk.name)?.1.clone()
    }
}

struct FakePool {
    spec: PoolSpec,
    platter: Arc<Platter>,
}

/// Its key is in memory, or comes from the ring now.
fn unlocked(s: &mut State, pool: &PoolName, label: &Label) -> Result<()> {
    let Some(e) = label.encryption else { return Ok(()) };
    if s.loaded.contains(&e.key_of) {
        return Ok(());
    }
    let volume = e.key_of;
    match s.ring.get(e.key_of) {
        None => Err(PoolError::Locked { pool: pool.clone(), volume }),
        Some(key) if s.keys.get(&e.key_of) != Some(&key) => {
            Err(PoolError::WrongKey { pool: pool.clone(), volume })
        }
        Some(_) => {
            s.loaded.insert(e.key_of);
            Ok(())
        }
    }
}

impl FakePool {
    fn broken(&self, action: &str) -> PoolError {
        let source = std::io::Error::other("as the test asked");
        PoolError::Io { pool: self.spec.name.clone(), action: action.into(), source }
    }
}

impl Pool for FakePool {
    fn kind(&self) -> PoolKind {
        PoolKind::Sim
    }

    fn name(&self) -> &PoolName {
        &self.spec.name
    }

    fn granularity(&self) -> ByteSize {
        ByteSize(4096)
    }

    fn features(&self) -> Features {
        let plain = self.platter.state.lock().faults.plain;
        Features {
            encryption: true,
            encrypted_zeros: true,
            clones_depend: true,
            groups_under_writes: true,
            minds_disks: true,
            expands: true,
            thick_with_snapshots: true,
            reprovision: !plain,
            properties: if plain { &[] } else { Property::ALL },
            filesystems: if plain { &[] } else { &[FilesystemKind::Ext4, FilesystemKind::Xfs] },
        }
    }

    fn capacity(&self, _: &Deadline) -> Result<Capacity> {
        self.platter.wait_while_hung("capacity");
        let much = Capacity {
            total: ByteSize(1 << 40),
            used: ByteSize(0),
            available: ByteSize(1 << 40),
            metadata_percent: None,
        };
        Ok(self.platter.state.lock().capacity.unwrap_or(much))
    }

    fn create(&self, label: &Label, deadline: &Deadline) -> Result<Change> {
        self.platter.wait_while_hung(label.name.as_str());
        let hung = deadline.check().is_err();
        let mut s = self.platter.state.lock();
        if s.faults.fail_create && !hung {
            s.partial.insert(label.id);
            return Err(self.broken("making a backing"));
        }
        let size = if s.faults.short { ByteSize(label.size.0 / 2) } else { label.size };
        if let Some(source) = label.source {
            assert!(s.snapshots.contains_key(&source.snapshot), "made from nothing");
            if label.copied.is_none() {
                same_content(&mut s, source.snapshot, label.id);
            }
        }
        if let Some(e) = label.encryption.filter(|e| e.key_of == label.id) {
            let (pool, volume) = (self.spec.name.clone(), e.key_of);
            let key = s.ring.get(e.key_of).ok_or(PoolError::Locked { pool, volume })?;
            s.keys.insert(e.key_of, key);
            s.loaded.insert(e.key_of);
        }
        unlocked(&mut s, &self.spec.name, label)?;
        s.volumes.insert(label.id, Stored::of(label.clone(), size));
        Ok(Change::Done)
    }

    fn grow(&self, label: &Label, _: &Deadline) -> Result<Change> {
        let mut s = self.platter.state.lock();
        let old = s.volumes.remove(&label.id).unwrap();
        s.volumes.insert(label.id, Stored { label: label.clone(), size: label.size, ..old });
        Ok(Change::Done)
    }

    fn set(&self, label: &Label, _: &Deadline) -> Result<Change> {
        let mut s = self.platter.state.lock();
        let faults = s.faults.clone();
        let Some(stored) = s.volumes.get_mut(&label.id) else { return Err(self.broken("finding it")) };
        assert_eq!(stored.size, label.size, "a set with another size than the backing's");
        if !faults.deaf {
            (stored.provisioning, stored.properties) = (label.provisioning, label.properties);
        }
        if faults.fail_set {
            return Err(self.broken("setting properties"));
        }
        stored.label = label.clone();
        Ok(Change::Done)
    }

    fn relabel(&self, label: &Label, _: &Deadline) -> Result<()> {
        self.platter.wait_while_hung(label.name.as_str());
        let mut s = self.platter.state.lock();
        if s.faults.fail_relabel {
            return Err(self.broken("writing a label"));
        }
        s.relabels += 1;
        match s.volumes.get_mut(&label.id) {
            Some(stored) => stored.label = label.clone(),
            None => return Err(self.broken("writing a label")),
        }
        Ok(())
    }

    fn destroy(&self, id: VolumeId, _: &Deadline) -> Result<Change> {
        let name = self.platter.state.lock().volumes.get(&id).map(|s| s.label.name.to_string());
        self.platter.wait_while_hung(&name.unwrap_or_default());
        let mut s = self.platter.state.lock();
        if s.faults.fail_destroy {
            return Err(self.broken("destroying a backing"));
        }
        assert!(!s.open.contains(&id), "destroyed while open");
        assert!(!s.snapshots.keys().any(|k| k.volume == id), "destroyed with snapshots");
        s.keys.remove(&id);
        s.loaded.remove(&id);
        let done = s.volumes.remove(&id).is_some() | s.partial.remove(&id);
        Ok(if done { Change::Done } else { Change::Unchanged })
    }

    fn get(&self, id: VolumeId, _: &Deadline) -> Result<Option<Stored>> {
        Ok(self.platter.state.lock().volumes.get(&id).cloned())
    }

    fn list(&self, _: &Deadline) -> Result<Listing> {
        let s = self.platter.state.lock();
        Ok(Listing {
            volumes: s.volumes.values().cloned().collect(),
            snapshots: s.snapshots.values().cloned().collect(),
            partial: s.partial.iter().copied().collect(),
            partial_snapshots: s.partial_snapshots.iter().copied().collect(),
            strays: s.strays.values().cloned().collect(),
            locked: s.keys.keys().filter(|id| !s.loaded.contains(id)).copied().collect(),
        })
    }

    fn unlock(&self, id: VolumeId, key: &EncryptionKey, _: &Deadline) -> Result<()> {
        let mut s = self.platter.state.lock();
        let Some(e) = s.volumes.get(&id).and_then(|v| v.label.encryption) else { return Ok(()) };
        if s.keys.get(&e.key_of) != Some(key) {
            return Err(PoolError::WrongKey { pool: self.spec.name.clone(), volume: e.key_of });
        }
        s.loaded.insert(e.key_of);
        Ok(())
    }

    fn adopt(&self, stray: &str, label: &Label, _: &Deadline) -> Result<Change> {
        self.platter.wait_while_hung(label.name.as_str());
        let mut s = self.platter.state.lock();
        if s.volumes.contains_key(&label.id) {
            return Ok(Change::Unchanged);
        }
        if !s.strays.contains_key(stray) {
            return Err(PoolError::NotFound { pool: self.spec.name.clone(), object: stray.into() });
        }
        s.half_adopted.insert(label.id);
        if s.faults.fail_adopt {
            return Err(self.broken("adopting"));
        }
        s.half_adopted.remove(&label.id);
        s.strays.remove(stray);
        let size = if s.faults.short { ByteSize(label.size.0 / 2) } else { label.size };
        s.volumes.insert(label.id, Stored::of(label.clone(), size));
        Ok(Change::Done)
    }

    fn release(&self, stray: &str, id: VolumeId, _: &Deadline) -> Result<Change> {
        let mut s = self.platter.state.lock();
        if s.faults.fail_destroy {
            return Err(self.broken("releasing"));
        }
        let half = s.half_adopted.remove(&id);
        let Some(stored) = s.volumes.remove(&id) else {
            return Ok(if half { Change::Done } else { Change::Unchanged });
        };
        s.strays.insert(stray.into(), foreign(stray, stored.label.size));
        Ok(Change::Done)
    }

    fn open(&self, id: VolumeId, _: &Deadline) -> Result<Opened> {
        let mut s = self.platter.state.lock();
        let Some((size, kind)) = s.volumes.get(&id).map(|v| (v.size, v.label.kind)) else {
            return Err(PoolError::NotFound { pool: self.spec.name.clone(), object: id.to_string() });
        };
        let label = s.volumes[&id].label.clone();
        unlocked(&mut s, &self.spec.name, &label)?;
        if kind == VolumeKind::Block {
            s.open.insert(id);
            return Ok(Opened { place: Place::Device(PathBuf::from(format!("/dev/fake/{id}"))), size });
        }
        if s.faults.fail_mount {
            return Err(self.broken("mounting"));
        }
        s.open.insert(id);
        s.mounts += 1;
        let size = if s.faults.small_filesystem { ByteSize(size.0 / 2) } else { size };
        Ok(Opened { place: Place::Directory(PathBuf::from(format!("/fake/{id}"))), size })
    }

    fn close(&self, id: VolumeId, _: &Deadline) -> Result<()> {
        let mut s = self.platter.state.lock();
        if s.faults.fail_close {
            return Err(self.broken("closing it"));
        }
        s.open.remove(&id);
        Ok(())
    }

    fn snapshot(&self, labels: &[SnapshotLabel], _: &Deadline) -> Result<Snapped> {
        let mut s = self.platter.state.lock();
        for (i, label) in labels.iter().enumerate() {
            assert!(s.volumes.contains_key(&label.key.volume), "a snapshot of nothing");
            if i == 1 && s.faults.fail_snapshot {
                s.partial_snapshots.insert(label.key);
                return Err(self.broken("taking a snapshot"));
            }
            s.snapshots.insert(label.key, label.clone());
            same_content(&mut s, label.key.volume, label.key);
        }
        Ok(Snapped { change: Change::Done, paused: Some(Duration::from_micros(7)) })
    }

    fn get_snapshot(&self, key: SnapshotKey, _: &Deadline) -> Result<Option<SnapshotLabel>> {
        Ok(self.platter.state.lock().snapshots.get(&key).cloned())
    }

    fn relabel_snapshot(&self, label: &SnapshotLabel, _: &Deadline) -> Result<()> {
        let old = self.platter.state.lock().snapshots.insert(label.key, label.clone());
        old.map(drop).ok_or_else(|| self.broken("writing a label"))
    }

    fn destroy_snapshot(&self, key: SnapshotKey, _: &Deadline) -> Result<Change> {
        let mut s = self.platter.state.lock();
        if s.faults.fail_destroy {
            return Err(self.broken("destroying a snapshot"));
        }
        let clone = |v: &Stored| v.label.source.is_some_and(|s| s.snapshot == key);
        let needs = |v: &Stored| {
            v.label.copied.is_some()
                || v.label.source.is_some_and(|s| s.mode == orlop_api::SourceMode::Linked)
        };
        assert!(!s.volumes.values().any(|v| clone(v) && needs(v)), "destroyed under a clone");
        let done = s.snapshots.remove(&key).is_some() | s.partial_snapshots.remove(&key);
        Ok(if done { Change::Done } else { Change::Unchanged })
    }

    fn read(&self, key: SnapshotKey, _: &Deadline) -> Result<File> {
        let mut s = self.platter.state.lock();
        assert!(s.snapshots.contains_key(&key), "read of nothing");
        s.readers += 1;
        Ok(content(&mut s, key).try_clone().unwrap())
    }

    fn done_reading(&self, _: SnapshotKey, _: &Deadline) -> Result<()> {
        self.platter.state.lock().readers -= 1;
        Ok(())
    }

    fn blocks(
        &self,
        key: SnapshotKey,
        base: Option<SnapshotKey>,
        found: &mut Extents,
        deadline: &Deadline,
    ) -> Result<()> {
        let piece = |key: SnapshotKey, at: u64| {
            let mut bytes = vec![0; 4096];
            let _ = content(&mut self.platter.state.lock(), key).read_at(&mut bytes, at);
            bytes
        };
        let mut at = found.at();
        while at < found.end() && deadline.check().is_ok() {
            let old = base.map_or_else(|| vec![0; 4096], |base| piece(base, at));
            if piece(key, at) != old && found.add(at, 4096) == More::Enough {
                return Ok(());
            }
            at += 4096;
        }
        found.finish();
        Ok(())
    }

    fn fill(&self, id: VolumeId, _: &Deadline) -> Result<File> {
        let mut s = self.platter.state.lock();
        if s.faults.fail_fill {
            return Err(self.broken("opening for a copy"));
        }
        Ok(content(&mut s, id).try_clone().unwrap())
    }

    fn health(&self, _: Option<&PoolHealth>, _: &Deadline) -> Result<Option<PoolHealth>> {
        Ok(self.platter.state.lock().health.clone())
    }

    fn mind_spares(&self, _: &Deadline) -> Result<Change> {
        let mut s = self.platter.state.lock();
        s.spares_minded += 1;
        match s.health_with_spare.take() {
            None => Ok(Change::Unchanged),
            Some(health) => {
                s.health = Some(health);
                Ok(Change::Done)
            }
        }
    }

    fn change(&self, change: &PoolChange, _: &Deadline) -> Result<Change> {
        let mut s = self.platter.state.lock();
        if s.faults.fail_change {
            return Err(self.broken("changing disks"));
        }
        if s.changes.contains(change) {
            return Ok(Change::Unchanged);
        }
        s.changes.push(change.clone());
        Ok(Change::Done)
    }

    fn export(&self, _: &Deadline) -> Result<()> {
        let s = self.platter.state.lock();
        assert!(s.open.is_empty(), "exported while open");
        if s.faults.fail_change { Err(self.broken("letting go")) } else { Ok(()) }
    }

    fn remove(&self, _: &Deadline) -> Result<()> {
        self.platter.state.lock().made = false;
        Ok(())
    }
}
