//! What is read of the engine when somebody scrapes: from the view and from where each thing is measured.
//!
//! Called by HTTP. It takes no lock across I/O. The kernel's counters are read on a lane of their own within a deadline:
//! where that hangs, their series are missing until it has ended, and the rest is there.
//! Series of single volumes are those of attached ones.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use orlop_api::{
    AlarmSeverity, AlarmState, Pool, PoolFill, PoolHealthState, PoolScanKind, PoolScanState, PoolState,
    Protocol, SystemState, VolumeId, VolumeState,
};
use tokio::time::Instant;

use super::Engine;
use super::action::Principal;
use super::core::{Core, run};
use super::error::{Error, Result};
use super::lane::Lane;
use crate::kernel::Deadline;
use crate::kernel::stats;
use crate::target::Target;
use crate::telemetry::Scraped;
use crate::telemetry::catalogue as m;

/// How long a scrape waits for the kernel's counters.
const READ: Duration = Duration::from_secs(2);

/// Alarms that have a series of their own.
const LISTED: usize = 100;

/// An attached volume whose counters are read.
struct Served {
    id: VolumeId,
    name: String,
    pool: String,
    protocol: Protocol,
    path: PathBuf,
}

/// What the kernel said of a volume: its device's counters, and the bytes that NFS clients have read and written.
struct Reading {
    of: Served,
    block: Option<stats::Block>,
    nfs: Option<(u64, u64)>,
}

/// What the kernel said.
#[derive(Default)]
struct Counted {
    volumes: Vec<Reading>,
    nfs: Option<stats::Nfs>,
    sessions: Vec<(Protocol, usize)>,
}

fn seconds(at: Timestamp) -> f64 {
    at.as_millisecond() as f64 / 1000.0
}

impl Engine {
    /// Everything that is read at scrape time.
    pub async fn scrape(&self) -> Scraped {
        let mut out = Scraped::default();
        self.core.add_kernel(&mut out).await;
        self.core.add_state(&mut out);
        self.core.add_alarms(&mut out);
        self.core.add_lanes(&mut out);
        self.core.add_targets(&mut out);
        for pool in self.view().pools(&Principal::admin("daemon")) {
            add_pool(&mut out, &pool);
        }
        out
    }
}

impl Core {
    fn add_state(&self, out: &mut Scraped) {
        let state = *self.state.read();
        for (name, which) in [
            ("starting", SystemState::Starting),
            ("ready", SystemState::Ready),
            ("draining", SystemState::Draining),
        ] {
            out.add(&m::STATE, [name], state == which);
        }
        let ((pools, volumes, hosts, attachments), states) = {
            let view = self.view.read();
            (view.counts(), view.volume_states())
        };
        out.add(&m::POOLS, [], pools);
        out.add(&m::VOLUMES, [], volumes);
        out.add(&m::HOSTS, [], hosts);
        out.add(&m::ATTACHMENTS, [], attachments);
        for (name, state) in [
            ("ready", VolumeState::Ready),
            ("stuck", VolumeState::Stuck),
            ("missing", VolumeState::Missing),
            ("copying", VolumeState::Copying),
            ("deleting", VolumeState::Deleting),
            ("locked", VolumeState::Locked),
        ] {
            out.add(&m::VOLUME_STATES, [name], states.iter().filter(|s| **s == state).count());
        }
        out.add(&m::LABELS_WAITING, [], self.dirty.len());
        out.add(&m::UNSETTLED, [], self.unsettled.lock().len());
        out.add(&m::RETRIED, [], self.retried.lock().len());
        let events = self.events.counts();
        out.add(&m::EVENTS, [], events.published);
        out.add(&m::EVENTS_DROPPED, [], events.dropped);
        out.add(&m::EVENT_GAPS, [], events.gaps);
        let journal = self.journal.measure();
        out.add(&m::JOURNAL_OPEN, [], self.journal.is_open());
        out.add(&m::JOURNAL_DEPTH, [], self.journal.depth());
        out.add(&m::JOURNAL_COMMIT, [], &journal.commit);
        out.add(&m::JOURNAL_SYNC, [], &journal.sync);
        out.add(&m::JOURNAL_CHANGES, [], &journal.changes);
        out.add(&m::JOURNAL_CALLERS, [], &journal.callers);
    }

    fn add_alarms(&self, out: &mut Scraped) {
        let (alarms, raised) = {
            let view = self.view.read();
            (view.all_alarms(), view.alarms_raised())
        };
        for severity in AlarmSeverity::ALL {
            for state in [AlarmState::Raised, AlarmState::Acknowledged] {
                let n = alarms.iter().filter(|a| a.severity == severity && a.state == state).count();
                out.add(&m::ALARMS, [severity.as_str(), state.as_str()], n);
            }
        }
        for (severity, n) in raised {
            out.add(&m::ALARMS_RAISED, [severity.as_str()], n);
        }
        for a in alarms.iter().filter(|a| a.state != AlarmState::Cleared).take(LISTED) {
            let labels = [a.subject.as_str(), a.severity.as_str(), a.state.as_str()];
            out.add(&m::ALARM_SINCE, labels, seconds(a.since));
        }
    }

    fn add_lanes(&self, out: &mut Scraped) {
        let mut add = |lane: &Lane| {
            let (name, meter) = ([lane.name()], lane.meter());
            let (waiting, running) = meter.oldest();
            out.add(&m::LANE_DEPTH, name, lane.depth());
            out.add(&m::LANE_HUNG, name, lane.hung());
            out.add(&m::LANE_OLDEST_WAITING, name, waiting.as_secs_f64());
            out.add(&m::LANE_OLDEST_RUNNING, name, running.as_secs_f64());
            out.add(&m::LANE_WAIT, name, &meter.wait);
            out.add(&m::LANE_RUN, name, &meter.run);
            for (reason, n) in meter.failures() {
                out.add(&m::LANE_FAILURES, [lane.name(), reason], n);
            }
        };
        add(&self.setup_lane);
        add(&self.disk_lane);
        add(&self.count_lane);
        for server in self.targets.values() {
            add(&server.lane);
        }
        let pools: Vec<_> = self.pools.read().values().cloned().collect();
        for pool in &pools {
            add(&pool.make);
            add(&pool.open);
        }
    }

    fn add_targets(&self, out: &mut Scraped) {
        let mut attached: BTreeMap<Protocol, u64> = self.targets.keys().map(|p| (*p, 0)).collect();
        {
            let view = self.view.read();
            for id in view.attached_volumes() {
                if let Some(v) = view.entry(id) {
                    *attached.entry(v.label.protocol()).or_default() += 1;
                }
            }
        }
        for (protocol, n) in attached {
            out.add(&m::TARGET_VOLUMES, [protocol.as_str()], n);
        }
        for (protocol, server) in &self.targets {
            out.add(&m::TARGET_OFFERED, [protocol.as_str()], server.offered);
            out.add(&m::TARGET_PORTALS_DOWN, [protocol.as_str()], server.down.lock().len());
        }
    }

    async fn add_kernel(&self, out: &mut Scraped) {
        let began = Instant::now();
        let counted = self.count().await;
        out.add(&m::KERNEL_READ, [], counted.is_some());
        out.add(&m::KERNEL_READ_SECONDS, [], began.elapsed().as_secs_f64());
        let Some(counted) = counted else { return };
        for reading in &counted.volumes {
            add_volume(out, reading);
        }
        if let Some(nfs) = counted.nfs {
            out.add(&m::NFS_READ_BYTES, [], nfs.read_bytes);
            out.add(&m::NFS_WRITTEN_BYTES, [], nfs.written_bytes);
            out.add(&m::NFS_CALLS, [], nfs.calls);
            out.add(&m::NFS_BAD_CALLS, [], nfs.bad_calls);
        }
        for (protocol, n) in counted.sessions {
            out.add(&m::TARGET_SESSIONS, [protocol.as_str()], n);
        }
    }

    /// The kernel's counters. `None`: they could not be read in time, or an earlier reading still hangs, and one more
    /// thread would hang with it.
    async fn count(&self) -> Option<Counted> {
        if self.count_lane.hung() > 0 {
            return None;
        }
        let opened = self.opened.lock().clone();
        let served: Vec<Served> = {
            let view = self.view.read();
            let attached = opened.into_iter().filter(|(id, _)| view.hosts_of(*id).next().is_some());
            let served = attached.filter_map(|(id, opened)| {
                let v = view.entry(id)?;
                let (name, pool) = (v.label.name.to_string(), v.pool.to_string());
                Some(Served { id, name, pool, protocol: v.label.protocol(), path: opened.path().into() })
            });
            served.collect()
        };
        let targets: Vec<_> =
            self.targets.iter().filter(|(_, s)| s.offered).map(|(p, s)| (*p, s.target.clone())).collect();
        let sim = self.settings.sim;
        let job = move |deadline: &Deadline| count(served, &targets, sim, deadline);
        match run(&self.count_lane, Instant::now() + READ, job).await {
            Ok(counted) => Some(counted),
            Err(f) => {
                tracing::warn!(error = f.error.chain(), "the kernel's counters can't be read");
                None
            }
        }
    }
}

/// On the lane. What can't be read is left out: its series are missing, and no other. What can't be read in time is all
/// missing, so that sums over volumes are never of some of them.
fn count(
    served: Vec<Served>,
    targets: &[(Protocol, Arc<dyn Target>)],
    sim: bool,
    deadline: &Deadline,
) -> Result<Counted> {
    let mut counted = Counted::default();
    // The machine's own are not those of a simulation.
    if !sim {
        counted.nfs = left_out(stats::nfs(), "the NFS server").flatten();
    }
    let by_nfs = served.iter().any(|v| v.protocol == Protocol::Nfs) && !sim;
    let exports = by_nfs.then(|| left_out(stats::nfs_exports(), "NFS exports")).flatten().unwrap_or_default();
    // A volume's place is called by its id, wherever that is.
    let of_volume = |(path, n): (String, (u64, u64))| Some((path.rsplit('/').next()?.parse().ok()?, n));
    let exports: BTreeMap<VolumeId, (u64, u64)> = exports.into_iter().filter_map(of_volume).collect();
    for volume in served {
        deadline.check().map_err(|_| Error::Deadline("reading the kernel's counters".into()))?;
        let block = left_out(stats::block(&volume.path), "a device").flatten();
        let nfs = exports.get(&volume.id).copied();
        counted.volumes.push(Reading { of: volume, block, nfs });
    }
    for (protocol, target) in targets {
        if let Some(n) = left_out(target.sessions(deadline), "sessions").flatten() {
            counted.sessions.push((*protocol, n));
        }
    }
    Ok(counted)
}

fn left_out<T, E: std::fmt::Display>(read: std::result::Result<T, E>, what: &str) -> Option<T> {
    read.inspect_err(|error| tracing::debug!(%error, what, "counters can't be read")).ok()
}

fn add_volume(out: &mut Scraped, Reading { of: v, block, nfs }: &Reading) {
    let id = v.id.to_string();
    let labels = [id.as_str(), v.name.as_str(), v.pool.as_str(), v.protocol.as_str()];
    if let Some(b) = block {
        out.add(&m::VOLUME_READS, labels, b.reads);
        out.add(&m::VOLUME_WRITES, labels, b.writes);
        out.add(&m::VOLUME_READ_BYTES, labels, b.read_bytes);
        out.add(&m::VOLUME_WRITTEN_BYTES, labels, b.written_bytes);
        out.add(&m::VOLUME_READ_SECONDS, labels, b.read_time.as_secs_f64());
        out.add(&m::VOLUME_WRITE_SECONDS, labels, b.write_time.as_secs_f64());
        out.add(&m::VOLUME_BUSY_SECONDS, labels, b.busy.as_secs_f64());
        out.add(&m::VOLUME_IN_FLIGHT, labels, b.in_flight);
    }
    if let Some((read, written)) = *nfs {
        let labels = [id.as_str(), v.name.as_str(), v.pool.as_str()];
        out.add(&m::NFS_VOLUME_READ_BYTES, labels, read);
        out.add(&m::NFS_VOLUME_WRITTEN_BYTES, labels, written);
    }
}

fn add_pool(out: &mut Scraped, p: &Pool) {
    let pool = p.name.as_str();
    out.add(&m::POOL_ONLINE, [pool], p.state == PoolState::Online);
    out.add(&m::POOL_TOTAL, [pool], p.total.0);
    out.add(&m::POOL_USED, [pool], p.used.0);
    out.add(&m::POOL_AVAILABLE, [pool], p.available.0);
    out.add(&m::POOL_PROVISIONED, [pool], p.provisioned.0);
    out.add(&m::POOL_VOLUMES, [pool], p.volumes);
    out.add(&m::POOL_OBSERVED, [pool], seconds(p.observed));
    if p.total.0 > 0 {
        out.add(&m::POOL_FILL_RATIO, [pool], p.used.0 as f64 / p.total.0 as f64);
    }
    if let Some(percent) = p.metadata_percent {
        out.add(&m::POOL_METADATA_RATIO, [pool], f64::from(percent) / 100.0);
    }
    for (level, which) in [("ok", PoolFill::Ok), ("warning", PoolFill::Warning), ("full", PoolFill::Full)] {
        out.add(&m::POOL_FILL, [pool, level], p.fill == which);
    }
    let Some(health) = &p.health else { return };
    for (name, state) in [
        ("ok", PoolHealthState::Ok),
        ("degraded", PoolHealthState::Degraded),
        ("failed", PoolHealthState::Failed),
    ] {
        out.add(&m::POOL_HEALTH, [pool, name], health.state == state);
    }
    out.add(&m::POOL_ERRORS, [pool], health.errors);
    if let Some(scan) = &health.scan {
        let kind = match scan.kind {
            PoolScanKind::Scrub => "scrub",
            PoolScanKind::Rebuild => "rebuild",
        };
        out.add(&m::POOL_SCAN_RUNNING, [pool, kind], scan.state == PoolScanState::Running);
        out.add(&m::POOL_SCAN_ERRORS, [pool, kind], scan.errors);
        if let Some(percent) = scan.percent {
            out.add(&m::POOL_SCAN_RATIO, [pool, kind], f64::from(percent) / 100.0);
        }
        if let Some(ended) = scan.ended {
            out.add(&m::POOL_SCAN_ENDED, [pool, kind], seconds(ended));
        }
    }
    let mut states: BTreeMap<&str, u64> = BTreeMap::new();
    // Two places of a pool may be called the same by it: their errors are counted together.
    let mut errors: BTreeMap<&str, [u64; 3]> = BTreeMap::new();
    for disk in &health.disks {
        *states.entry(&disk.state).or_default() += 1;
        let sums = errors.entry(&disk.name).or_default();
        for (sum, n) in sums.iter_mut().zip([disk.read_errors, disk.write_errors, disk.checksum_errors]) {
            *sum = sum.saturating_add(n);
        }
    }
    for (state, n) in states {
        out.add(&m::POOL_DISKS, [pool, state], n);
    }
    for (disk, [read, write, checksum]) in errors {
        for (kind, n) in [("read", read), ("write", write), ("checksum", checksum)] {
            out.add(&m::DISK_ERRORS, [pool, disk, kind], n);
        }
    }
}
