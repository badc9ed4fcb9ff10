//! What every action stands on: the journal, the view, pools with their lanes, the target with its lane.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use orlop_api::{Disk, DiskHealth, DiskName, DiskWipe, PoolName, Protocol, SystemState, VolumeId};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::copies::Copies;
use super::disks::DiskReadings;
use super::error::{Error, Result};
use super::events::Events;
use super::gate::Gate;
use super::intent::Intent;
use super::labels::DirtyLabels;
use super::lane::{Lane, LaneError, Late};
use super::locks::Locks;
use super::quotas::{Limits, Quotas};
use super::reload::Configuration;
use super::space::FillLimits;
use super::targets::{Server, Targets};
use super::tokens::Tokens;
use super::view::View;
use crate::journal::Journal;
use crate::kernel::Deadline;
use crate::kernel::disks::DiskInfo;
use crate::model::{Identity, NqnPrefix, PoolSpec};
use crate::pool::disks::WipeError;
use crate::pool::{KeyRing, Opened, Pool, PoolEnv, PoolError};
use crate::target::keys::HostKeys;
use crate::telemetry::Metrics;

/// Where pools come from: the real kinds, or in tests some that fail and hang on request. All of it
/// blocks.
pub trait Pools: Send + Sync {
    /// Lets go on what a daemon that was killed held, before anything is opened.
    fn let_all_go_on(&self);
    /// Makes a pool, or adopts a directory that holds it already.
    fn create(&self, spec: &PoolSpec, deadline: &Deadline) -> crate::pool::Result<Box<dyn Pool>>;
    /// Opens a pool that was made before: imports or mounts it.
    fn open(&self, spec: &PoolSpec, deadline: &Deadline) -> crate::pool::Result<Box<dyn Pool>>;
    /// A pool that is to be imported, with what only its medium can tell.
    fn recognize(&self, spec: &PoolSpec, deadline: &Deadline) -> crate::pool::Result<PoolSpec>;
    /// Opens a pool that another machine may have had.
    fn import(&self, spec: &PoolSpec, force: bool, deadline: &Deadline)
    -> crate::pool::Result<Box<dyn Pool>>;
    /// Makes what a crash left of a pool that was being removed blank.
    fn clear(&self, spec: &PoolSpec, deadline: &Deadline) -> crate::pool::Result<()>;
    /// The machine's disks.
    fn disks(&self, deadline: &Deadline) -> std::io::Result<Vec<Disk>>;
    /// The same by what the kernel has in memory: no disk is touched.
    fn present(&self) -> std::io::Result<Vec<DiskInfo>>;
    /// What a disk says of itself. `None`: it sleeps, and is not woken.
    fn disk_health(&self, disk: &DiskInfo, deadline: &Deadline) -> Option<DiskHealth>;
    /// Makes a disk blank; `ours` are the pools that there are, with what they stand on.
    fn wipe_disk(
        &self,
        disk: &DiskName,
        ask: &DiskWipe,
        ours: &[(PoolName, Vec<String>)],
        deadline: &Deadline,
    ) -> std::result::Result<Disk, WipeError>;
}

impl Pools for PoolEnv {
    fn let_all_go_on(&self) {
        if !self.simulated {
            crate::pool::let_all_go_on();
        }
    }

    fn create(&self, spec: &PoolSpec, deadline: &Deadline) -> crate::pool::Result<Box<dyn Pool>> {
        crate::pool::create(spec, self, deadline)
    }

    fn open(&self, spec: &PoolSpec, deadline: &Deadline) -> crate::pool::Result<Box<dyn Pool>> {
        crate::pool::open(spec, self, deadline)
    }

    fn clear(&self, spec: &PoolSpec, deadline: &Deadline) -> crate::pool::Result<()> {
        crate::pool::clear(spec, self, deadline)
    }

    fn recognize(&self, spec: &PoolSpec, deadline: &Deadline) -> crate::pool::Result<PoolSpec> {
        crate::pool::recognize(spec, self, deadline)
    }

    fn import(
        &self,
        spec: &PoolSpec,
        force: bool,
        deadline: &Deadline,
    ) -> crate::pool::Result<Box<dyn Pool>> {
        crate::pool::import(spec, self, force, deadline)
    }

    fn disks(&self, deadline: &Deadline) -> std::io::Result<Vec<Disk>> {
        crate::pool::disks::inventory(self, deadline)
    }

    fn present(&self) -> std::io::Result<Vec<DiskInfo>> {
        crate::kernel::disks::all(self.loops_as_disks)
    }

    fn disk_health(&self, disk: &DiskInfo, deadline: &Deadline) -> Option<DiskHealth> {
        crate::pool::disks::health(self, disk, deadline)
    }

    fn wipe_disk(
        &self,
        disk: &DiskName,
        ask: &DiskWipe,
        ours: &[(PoolName, Vec<String>)],
        deadline: &Deadline,
    ) -> std::result::Result<Disk, WipeError> {
        crate::pool::disks::wipe(self, disk, ask, ours, deadline)
    }
}

/// What the engine is told at start.
pub struct EngineSettings {
    /// Where the journal and the daemon's own files are.
    pub state_dir: PathBuf,
    /// Whether pools and target are simulated: shown to callers.
    pub sim: bool,
    /// The part of subsystem names before the volume's id.
    pub prefix: NqnPrefix,
    /// The kernel's targets, or simulated ones.
    pub targets: Targets,
    /// Where pools come from.
    pub pools: Arc<dyn Pools>,
    /// The keys of encrypted volumes, which pools take from there.
    pub keys: KeyRing,
    /// What hosts must prove, which the target takes from there.
    pub host_keys: HostKeys,
    /// Threads of a pool's lane where backings are made and destroyed. Concurrent ZFS requests share a
    /// transaction group, so several are much faster than one.
    pub pool_threads: usize,
    /// How full pools may be, at first.
    pub fill: FillLimits,
    /// Jobs that may wait in one lane before callers hear `unavailable`.
    pub lane_depth: usize,
    /// How long the kernel target may take for one volume.
    pub target_deadline: Duration,
    /// How long putting things right after a failure, or at start, may take for one object.
    pub settle_deadline: Duration,
    /// What one principal may take, at first.
    pub quotas: Limits,
    /// Where the configuration is read anew.
    pub configuration: Arc<dyn Configuration>,
    /// Where actions are counted.
    pub metrics: Arc<Metrics>,
}

/// A pool that is open, with its lanes. Making and opening are apart, so that an attach never queues
/// behind a create (R6).
pub(super) struct OpenPool {
    pub(super) name: PoolName,
    pub(super) pool: Arc<dyn Pool>,
    pub(super) make: Lane,
    pub(super) open: Lane,
}

/// Which of a pool's lanes.
#[derive(Debug, Clone, Copy)]
pub(super) enum On {
    Make,
    Open,
}

/// An error, and where a job is still under way, the news of its end.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Error,
    pub(super) late: Option<Late>,
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { error: error.into(), late: None }
    }
}

pub(super) type Outcome<T> = std::result::Result<T, Failure>;

pub(super) struct Core {
    pub(super) settings: EngineSettings,
    pub(super) id: uuid::Uuid,
    pub(super) started: Timestamp,
    pub(super) journal: Journal,
    pub(super) view: RwLock<View>,
    pub(super) events: Events,
    pub(super) locks: Locks,
    pub(super) gate: Gate,
    pub(super) quotas: Quotas,
    pub(super) state: RwLock<SystemState>,
    pub(super) pools: RwLock<BTreeMap<PoolName, Arc<OpenPool>>>,
    /// Backings that are open, so that access can be taken away without asking a pool that may hang.
    pub(super) opened: Mutex<BTreeMap<VolumeId, Opened>>,
    pub(super) targets: BTreeMap<Protocol, Server>,
    pub(super) setup_lane: Lane,
    /// Where disks are asked how they are.
    pub(super) disk_lane: Lane,
    /// Where the kernel's counters are read.
    pub(super) count_lane: Lane,
    /// Whose turn it is to have blocks of snapshots looked for.
    pub(super) block_readers: tokio::sync::Semaphore,
    pub(super) disk_readings: DiskReadings,
    pub(super) tokens: RwLock<Tokens>,
    /// Intents that are neither carried out nor undone yet: their objects take no changes.
    pub(super) unsettled: Mutex<BTreeMap<u64, (Intent, String)>>,
    pub(super) next_op: AtomicU64,
    pub(super) dirty: Arc<DirtyLabels>,
    /// Copies under way.
    pub(super) copies: Copies,
    /// Rings when something that was deleted may have lost its last dependant.
    pub(super) spent_bell: Notify,
    /// Rings when disks came or went.
    pub(super) disks_bell: Notify,
    /// Pools whose capacity has changed since it was read.
    pub(super) stale: Mutex<std::collections::BTreeSet<PoolName>>,
    pub(super) stale_bell: Notify,
    /// Pools whose capacity is being read.
    pub(super) reading: Mutex<std::collections::BTreeSet<PoolName>>,
    /// Pools whose health is being read, and whether it is to be read again then.
    pub(super) looking: Mutex<BTreeMap<PoolName, bool>>,
    /// Held while the configuration is read anew.
    pub(super) reloading: tokio::sync::Mutex<()>,
    /// What goes on behind answers: labels, capacities, settling. Ends with the engine.
    pub(super) tasks: Mutex<JoinSet<()>>,
    /// Pools whose labels have not been looked at since the journal was begun anew: they are missing.
    pub(super) unread: Mutex<std::collections::BTreeSet<PoolName>>,
    /// Rings when the daemon should be started anew.
    pub(super) anew: Notify,
    /// Volumes that could not be served, while they are tried again.
    pub(super) retried: Mutex<std::collections::BTreeSet<VolumeId>>,
}

/// Threads that open and close backings in one pool.
const OPENERS: usize = 2;

/// After what time another thread stands in for one that opens a backing, or that changes how a volume is served: what
/// they wait for then is a disk that does not answer. Longer than either takes where disks do.
pub(super) const SLOW: Duration = Duration::from_secs(1);

impl Core {
    /// Gives an opened pool its lanes.
    pub(super) fn start_lanes(&self, name: PoolName, pool: Box<dyn Pool>) -> Result<Arc<OpenPool>> {
        let s = &self.settings;
        let none = |e| Error::Unavailable(format!("no threads for pool {name}: {e}"));
        // Attaching is what a host waits for: hundreds of creates that are queued must not take the processors from it.
        let make =
            Lane::start_yielding(&format!("make {name}"), s.pool_threads, s.lane_depth).map_err(none)?;
        let open = Lane::start(&format!("open {name}"), OPENERS, s.lane_depth, Some(SLOW)).map_err(none)?;
        Ok(Arc::new(OpenPool { name, pool: pool.into(), make, open }))
    }

    /// The pool, if it is open.
    pub(super) fn open_pool(&self, name: &PoolName) -> Result<Arc<OpenPool>> {
        match self.pools.read().get(name) {
            Some(pool) => Ok(pool.clone()),
            None => Err(match self.view.read().pool_entry(name) {
                None => Error::NotFound(format!("pool {name}")),
                Some(p) => Error::Unavailable(format!(
                    "pool {name} is missing: {}",
                    p.reason.as_deref().unwrap_or("it has not been opened yet")
                )),
            }),
        }
    }

    /// Runs a pool's method on one of its lanes.
    pub(super) async fn on_pool<T: Send + 'static>(
        &self,
        pool: &Arc<OpenPool>,
        on: On,
        until: Instant,
        f: impl FnOnce(&dyn Pool, &Deadline) -> crate::pool::Result<T> + Send + 'static,
    ) -> Outcome<T> {
        let lane = match on {
            On::Make => &pool.make,
            On::Open => &pool.open,
        };
        let inner = pool.pool.clone();
        run(lane, until, move |deadline| f(&*inner, deadline)).await
    }

    pub(super) fn identity(&self, id: VolumeId) -> Identity {
        Identity::of(id, &self.settings.prefix)
    }

    /// Opens a volume's backing on the pool's opening lane and remembers where it is.
    pub(super) async fn open_backing(
        &self,
        pool: &Arc<OpenPool>,
        id: VolumeId,
        until: Instant,
    ) -> Outcome<Opened> {
        let label = self.view.read().entry(id).map(|v| v.label.clone());
        let open = move |p: &dyn Pool, d: &Deadline| match label {
            Some(label) => p.open_known(&label, d),
            None => p.open(id, d),
        };
        let opened = self.on_pool(pool, On::Open, until, open).await;
        if let Err(Failure { error: Error::Pool(PoolError::Locked { volume, .. }), .. }) = &opened {
            // Its key was taken away by hand, or it came into the pool in other ways than ours.
            self.view.write().set_locked(*volume, true);
        }
        let opened = opened?;
        self.opened.lock().insert(id, opened.clone());
        Ok(opened)
    }

    /// Closes what is known to be open. One that can't be closed stays known: it is tried again.
    pub(super) async fn close_backing(&self, id: VolumeId) -> Outcome<()> {
        if !self.opened.lock().contains_key(&id) {
            return Ok(());
        }
        self.close_whatever_is_open(id).await
    }

    /// The same where that is not known: an open that failed half way, or ended after it was given up.
    pub(super) async fn close_whatever_is_open(&self, id: VolumeId) -> Outcome<()> {
        let pool = self.view.read().entry(id).map(|v| v.pool.clone());
        // A volume or pool that is gone has nothing open.
        if let Some(pool) = pool.and_then(|name| self.pools.read().get(&name).cloned()) {
            let until = Instant::now() + self.settings.settle_deadline;
            self.on_pool(&pool, On::Open, until, move |p, d| p.close(id, d)).await?;
        }
        self.opened.lock().remove(&id);
        Ok(())
    }

    /// Starts something that goes on behind the answers.
    pub(super) fn background(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock();
        // Those that have ended are let go, so that the set does not grow.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    pub(super) fn new_op(&self) -> u64 {
        self.next_op.fetch_add(1, Ordering::Relaxed)
    }
}

/// Runs a fallible job on a lane until an instant.
pub(super) async fn run<T: Send + 'static, E: Into<Error> + Send + 'static>(
    lane: &Lane,
    until: Instant,
    f: impl FnOnce(&Deadline) -> std::result::Result<T, E> + Send + 'static,
) -> Outcome<T> {
    answer(lane.run(until.saturating_duration_since(Instant::now()), f).await)
}

pub(super) fn answer<T, E: Into<Error>>(
    result: std::result::Result<std::result::Result<T, E>, (LaneError, Option<Late>)>,
) -> Outcome<T> {
    match result {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(e.into().into()),
        Err((error, late)) => Err(Failure { error: error.into(), late }),
    }
}
