//! Disks: wiping one, and what they say of themselves: read behind the answers, kept, and made an alarm of.
//!
//! A disk is asked when it comes and then every ten minutes, on a lane of its own: one that is failing may
//! take long to say so, and that must delay nothing else. One that hangs is not asked again before it has
//! answered. Readers get what is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use jiff::Timestamp;
use orlop_api::{Disk, DiskHealth, DiskHealthState, DiskName, DiskWipe, EventKind, PoolState};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::action::Outcome;
use super::core::Core;
use super::error::{Error, Result};
use super::events::Subject;
use super::intent::Intent;
use super::locks::{Key, Mode};
use super::view::PoolEntry;
use crate::kernel::disks::DiskInfo;
use crate::kernel::uevent::DiskEvent;

/// How many disks are asked at a time.
pub(super) const ASKED_AT_ONCE: usize = 4;

/// How long a reading stands.
const FRESH: Duration = Duration::from_secs(600);

/// How often it is looked which readings are too old.
const LOOK: Duration = Duration::from_secs(60);

/// How long one disk may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is known of disks, by the kernel's names for them.
#[derive(Debug, Default)]
pub(super) struct DiskReadings {
    known: Mutex<BTreeMap<String, Reading>>,
    /// Being asked, or hanging.
    asked: Mutex<BTreeSet<String>>,
    bell: Notify,
}

#[derive(Debug, Clone)]
struct Reading {
    /// Which disk had that name.
    identity: Identity,
    health: DiskHealth,
    /// It said last that it is failing. That it says nothing any more does not take this back.
    failing: bool,
    at: Instant,
}

#[cfg(test)]
impl DiskReadings {
    pub(super) fn make_old(&self, name: &str) {
        if let Some(r) = self.known.lock().get_mut(name) {
            r.at = r.at.checked_sub(FRESH).unwrap_or(r.at);
        }
    }

    pub(super) fn passed(&self) -> usize {
        self.known.lock().values().filter(|r| r.health.state == DiskHealthState::Passed).count()
    }
}

/// What tells a disk from another one that gets its name later.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Identity {
    by_id: Option<String>,
    serial: Option<String>,
    size: u64,
}

impl Identity {
    fn of(disk: &DiskInfo) -> Self {
        let by_id = disk.by_id.as_ref().map(|p| p.display().to_string());
        Self { by_id, serial: disk.serial.clone(), size: disk.size }
    }

    fn shown(disk: &Disk) -> Self {
        Self { by_id: disk.by_id.clone(), serial: disk.serial.clone(), size: disk.size.bytes() }
    }
}

/// The alarm's subject.
fn alarm_of(name: &str) -> String {
    format!("disk/{name}/health")
}

fn unknown(reason: impl Into<String>) -> DiskHealth {
    DiskHealth { reason: Some(reason.into()), ..DiskHealth::default() }
}

/// In words, with what a person finds the disk by.
fn words(disk: &DiskInfo, health: &DiskHealth) -> String {
    let serial = disk.serial.as_ref().map(|s| format!(", serial number {s}")).unwrap_or_default();
    let model = disk.model.as_deref().unwrap_or("a disk");
    let who = format!("{} ({model}{serial})", disk.name);
    match health.state {
        DiskHealthState::Failed => {
            let why = health.reason.as_deref().unwrap_or("its own check fails");
            format!("{who} says that it is failing: {why}; replace it")
        }
        DiskHealthState::Passed | DiskHealthState::Unknown => format!("{who} says that it is well"),
    }
}

impl Core {
    /// Makes a disk blank that nobody uses. There is no intent: a crash in the middle leaves a disk that is blank
    /// or is not, and the same request again ends it.
    pub(super) async fn wipe_disk(
        self: &Arc<Self>,
        name: DiskName,
        ask: DiskWipe,
        until: Instant,
    ) -> Result<Outcome> {
        let takes = |intent: &Intent| matches!(intent, Intent::CreatePool { .. } | Intent::ChangePool { .. });
        let _guards = self.locks.acquire(vec![(Key::FreeDisks, Mode::ExclusiveNow)], until).await?;
        // What is being made of disks, and is stuck, may hold any.
        self.check_settled(takes)?;
        let ours: Vec<_> = {
            let view = self.view.read();
            // Not known to be lost, only not to be here: its other disks may come back.
            let asked = ask.pool.as_deref().and_then(|p| p.parse().ok());
            let missing = asked.and_then(|p| view.pool_entry(&p)).filter(|p| p.state == PoolState::Missing);
            if let Some(pool) = missing {
                return Err(Error::Precondition {
                    object: format!("disk {name}"),
                    reason: format!(
                        "belongs to pool {}, which is one of this appliance and is missing: remove its record \
                         first, as an orphan",
                        pool.spec.name
                    ),
                    dependants: Vec::new(),
                });
            }
            let media = |p: &PoolEntry| p.spec.media().into_iter().map(str::to_string).collect();
            view.pool_entries().map(|p| (p.spec.name.clone(), media(p))).collect()
        };
        let pools = self.settings.pools.clone();
        let disk = name.clone();
        let wiped =
            super::core::run(&self.setup_lane, until, move |d| pools.wipe_disk(&disk, &ask, &ours, d)).await;
        let disk = wiped.map_err(|f| f.error)?;
        let serial = disk.serial.as_ref().map(|s| format!(", serial number {s}")).unwrap_or_default();
        let about = Subject { detail: Some(format!("{name}{serial}")), ..Subject::default() };
        self.events.publish(EventKind::DiskWiped, about);
        let shown = self.with_health(vec![disk]).pop();
        shown.map(Outcome::Disk).ok_or(Error::Died)
    }

    /// Fills in what is known of each.
    pub(super) fn with_health(&self, mut disks: Vec<Disk>) -> Vec<Disk> {
        let known = self.disk_readings.known.lock();
        for disk in &mut disks {
            let reading = known.get(&disk.name).filter(|r| r.identity == Identity::shown(disk));
            disk.health = reading.map_or_else(|| unknown("it has not been asked yet"), |r| r.health.clone());
        }
        disks
    }

    /// What went is forgotten, and what came is asked.
    pub(super) fn disks_came_or_went(&self, events: &[DiskEvent]) {
        for event in events {
            self.forget_reading(&event.name);
        }
        self.disk_readings.bell.notify_one();
    }

    fn forget_reading(&self, name: &str) {
        if self.disk_readings.known.lock().remove(name).is_some() {
            self.view.write().clear(&alarm_of(name));
        }
    }

    /// For as long as the daemon runs.
    pub(super) async fn look_at_disks(self: Arc<Self>) {
        loop {
            if let Err(error) = self.read_disks().await {
                tracing::debug!(error = error.chain(), "disks were not asked how they are");
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = self.disk_readings.bell.notified() => {}
            }
        }
    }

    /// Asks those of which nothing is known that still holds.
    pub(super) async fn read_disks(self: &Arc<Self>) -> Result<()> {
        let pools = self.settings.pools.clone();
        let until = Instant::now() + PATIENCE;
        let here = super::core::run(&self.setup_lane, until, move |_| pools.present()).await;
        let here = here.map_err(|f| f.error)?;
        let names: BTreeSet<_> = here.iter().map(|d| d.name.clone()).collect();
        let gone: Vec<_> = {
            let known = self.disk_readings.known.lock();
            known.keys().filter(|name| !names.contains(*name)).cloned().collect()
        };
        for name in gone {
            self.forget_reading(&name);
        }
        let due: Vec<_> = here.into_iter().filter(|d| self.is_due(d)).collect();
        let asking = due.into_iter().map(|disk| self.clone().ask_disk(disk));
        futures_util::stream::iter(asking).buffer_unordered(ASKED_AT_ONCE).collect::<()>().await;
        Ok(())
    }

    fn is_due(&self, disk: &DiskInfo) -> bool {
        let identity = Identity::of(disk);
        let known = self.disk_readings.known.lock();
        known.get(&disk.name).is_none_or(|r| r.identity != identity || r.at.elapsed() >= FRESH)
    }

    async fn ask_disk(self: Arc<Self>, disk: DiskInfo) {
        if !self.disk_readings.asked.lock().insert(disk.name.clone()) {
            return;
        }
        // Another pass may have asked it since this one looked.
        if !self.is_due(&disk) {
            self.disk_readings.asked.lock().remove(&disk.name);
            return;
        }
        let pools = self.settings.pools.clone();
        let ask = disk.clone();
        let told = self.disk_lane.run(PATIENCE, move |d| pools.disk_health(&ask, d)).await;
        let late = match told {
            Ok(health) => {
                self.note_disk(&disk, health);
                None
            }
            Err((error, late)) => {
                self.note_disk(&disk, Some(unknown(error.to_string())));
                late
            }
        };
        let done = move |core: &Core| {
            core.disk_readings.asked.lock().remove(&disk.name);
        };
        match late {
            None => done(&self),
            Some(late) => {
                let core = self.clone();
                self.background(async move {
                    let _ = late.await;
                    done(&core);
                });
            }
        }
    }

    /// Keeps a reading; `None`: the disk sleeps. Tells what is news.
    fn note_disk(&self, disk: &DiskInfo, health: Option<DiskHealth>) {
        let identity = Identity::of(disk);
        let mut known = self.disk_readings.known.lock();
        let old = known.get(&disk.name).filter(|r| r.identity == identity).cloned();
        let health = match (health, &old) {
            (Some(health), _) => {
                let told = health.state != DiskHealthState::Unknown;
                DiskHealth { observed: told.then(Timestamp::now), ..health }
            }
            // What it said before it went to sleep is still what is known.
            (None, Some(old)) => old.health.clone(),
            (None, None) => unknown("it sleeps, and is not woken to be asked"),
        };
        let was = old.as_ref().is_some_and(|r| r.failing);
        let failing = match health.state {
            DiskHealthState::Failed => true,
            DiskHealthState::Passed => false,
            DiskHealthState::Unknown => was,
        };
        if old.as_ref().is_none_or(|r| r.health.reason != health.reason)
            && health.state == DiskHealthState::Unknown
        {
            // Virtual disks tell nothing, and never will: not worth a line each time.
            tracing::debug!(disk = disk.name, reason = health.reason, "a disk tells nothing of its health");
        }
        let said = words(disk, &health);
        let reading = Reading { identity, health, failing, at: Instant::now() };
        let state = reading.health.state;
        known.insert(disk.name.clone(), reading);
        drop(known);
        match state {
            DiskHealthState::Failed => self.view.write().raise(alarm_of(&disk.name), said.clone()),
            DiskHealthState::Passed => self.view.write().clear(&alarm_of(&disk.name)),
            DiskHealthState::Unknown => {}
        }
        if was != failing {
            tracing::warn!(disk = disk.name, failing, "a disk's health changed: {said}");
            let about = Subject { detail: Some(said), ..Subject::default() };
            self.events.publish(EventKind::DiskHealth, about);
        }
    }
}
