//! Space: how full pools are, who is told, and what is refused when there is too little.
//!
//! A thin volume that finds no room fails in the middle of a host's write, which no answer of ours can
//! tell. So a pool is an alarm well before it is full, and takes nothing new from a threshold on.

use std::sync::Arc;
use std::time::Duration;

use orlop_api::{AlarmSeverity, ByteSize, EventKind, PoolFill, PoolName, PoolState};
use tokio::time::{Instant, MissedTickBehavior};

use super::core::{Core, On, OpenPool};
use super::error::{Error, Result};
use super::events::Subject;
use super::lane::Late;
use super::view::{PoolEntry, View};
use crate::pool::Capacity;

/// How often pools are looked at that nobody has changed.
const LOOK: Duration = Duration::from_secs(30);

/// What makes room.
const REMEDY: &str = "delete volumes and snapshots that are not needed, or have hosts discard what they no longer use (fstrim)";

/// What a full pool does not do.
const STOPPED: &str = "no volume or snapshot is made in it, and no volume grows";

/// How full a pool may be, in percent of its total.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FillLimits {
    /// From here on it is an alarm.
    pub warn_percent: u8,
    /// From here on nothing new is made in it. Not below `warn_percent`.
    pub stop_percent: u8,
}

impl Default for FillLimits {
    fn default() -> Self {
        Self { warn_percent: 80, stop_percent: 95 }
    }
}

/// Where a level ends that begins at `percent`: one point lower, so that a pool at the edge is not news
/// again and again. Below 1 there is nothing.
fn end_of(percent: u8) -> u8 {
    if percent > 1 { percent - 1 } else { percent }
}

impl FillLimits {
    /// How full a pool is that was `was` before.
    pub(super) fn level(self, was: PoolFill, now: Capacity) -> PoolFill {
        let reached = |percent: u8, held: bool| {
            let from = if held { end_of(percent) } else { percent };
            let (used, total) = (u128::from(now.used.bytes()), u128::from(now.total.bytes()));
            let data = total > 0 && used * 100 >= total * u128::from(from);
            data || now.metadata_percent.is_some_and(|metadata| metadata >= from)
        };
        if reached(self.stop_percent, was == PoolFill::Full) {
            PoolFill::Full
        } else if reached(self.warn_percent, was != PoolFill::Ok) {
            PoolFill::Warning
        } else {
            PoolFill::Ok
        }
    }

    /// The largest thin volume and the largest thick one that can be made now.
    pub(super) fn largest(
        self,
        fill: PoolFill,
        now: Capacity,
        granularity: ByteSize,
    ) -> (ByteSize, ByteSize) {
        if fill == PoolFill::Full {
            return (ByteSize(0), ByteSize(0));
        }
        let whole = |n: u64| ByteSize(n - n.checked_rem(granularity.bytes()).unwrap_or(n));
        let kept = u128::from(now.total.bytes()) * u128::from(100 - self.stop_percent.min(100));
        // A part of the total: it fits.
        let kept = u64::try_from(kept.div_ceil(100)).unwrap_or(u64::MAX);
        (whole(now.total.bytes()), whole(now.available.bytes().saturating_sub(kept)))
    }

    /// How full a pool is, in words, and what to do.
    fn words(self, fill: PoolFill, now: Capacity) -> String {
        let mut is = format!("it is {}% full: {} of {} are left", percent(now), now.available, now.total);
        if let Some(metadata) = now.metadata_percent.filter(|m| *m >= self.warn_percent) {
            is += &format!(", and its metadata are {metadata}% full");
        }
        match fill {
            PoolFill::Ok => is,
            PoolFill::Warning => {
                format!("{is}; {REMEDY}: from {}% on nothing new is made in it", self.stop_percent)
            }
            PoolFill::Full => {
                format!("{is}; {REMEDY}: until it is below {}% {STOPPED}", end_of(self.stop_percent))
            }
        }
    }
}

/// How much of a pool is used, rounded down.
fn percent(now: Capacity) -> u128 {
    (u128::from(now.used.bytes()) * 100).checked_div(u128::from(now.total.bytes())).unwrap_or(0)
}

/// The alarm's subject. Not the pool's own, which tells how the pool itself is.
pub(super) fn alarm_of(name: &PoolName) -> String {
    format!("pool/{name}/space")
}

impl Core {
    /// Refuses what needs space that the pool does not have or keeps back; `thick`: how much is to be
    /// reserved. Before anything is done.
    pub(super) async fn check_space(
        &self,
        pool: &Arc<OpenPool>,
        thick: ByteSize,
        until: Instant,
    ) -> Result<()> {
        let known = self.view.read().pool_entry(&pool.name).is_some_and(|p| p.capacity.total.bytes() > 0);
        if known && self.no_room(&pool.name, thick).is_none() {
            return Ok(());
        }
        // Nobody is refused by numbers from before something was deleted. On the lane where things are
        // made: an attach must not wait for this (R6).
        self.read_capacity(pool, On::Make, until).await;
        match self.no_room(&pool.name, thick) {
            None => Ok(()),
            Some(detail) => Err(Error::Exhausted { object: format!("pool {}", pool.name), detail }),
        }
    }

    /// Why a pool, as it was last read, takes nothing new; or not `thick` more.
    fn no_room(&self, name: &PoolName, thick: ByteSize) -> Option<String> {
        let view = self.view.read();
        let limits = view.limits();
        let p = view.pool_entry(name)?;
        if p.fill == PoolFill::Full {
            return Some(limits.words(p.fill, p.capacity));
        }
        let (_, most) = limits.largest(p.fill, p.capacity, p.granularity);
        (p.capacity.total.bytes() > 0 && thick > most).then(|| {
            let kept = 100 - limits.stop_percent.min(100);
            format!("{thick} is to be reserved, and {most} can be: {kept}% of the pool are kept back")
        })
    }

    /// Has the pool's capacity read again, soon.
    pub(super) fn capacity_changed(&self, pool: &PoolName) {
        if self.stale.lock().insert(pool.clone()) {
            self.stale_bell.notify_one();
        }
    }

    /// Reads a pool's capacity, and tells if that is news. The late end of a read that hangs.
    pub(super) async fn read_capacity(&self, pool: &Arc<OpenPool>, on: On, until: Instant) -> Option<Late> {
        match self.on_pool(pool, on, until, |p, d| p.capacity(d)).await {
            Ok(capacity) => {
                self.note_capacity(&pool.name, capacity);
                None
            }
            Err(f) => {
                tracing::warn!(pool = %pool.name, error = f.error.chain(), "capacity can't be read");
                f.late
            }
        }
    }

    fn note_capacity(&self, name: &PoolName, capacity: Capacity) {
        let mut view = self.view.write();
        let Some((was, fill)) = view.set_capacity(name, capacity) else { return };
        self.tell_fill(&mut view, name, was, fill);
    }

    /// Other limits, for all pools at once.
    pub(super) fn limit_fill(&self, limits: FillLimits) {
        let mut view = self.view.write();
        if view.limits() == limits {
            return;
        }
        for (name, was, fill) in view.set_limits(limits) {
            self.tell_fill(&mut view, &name, was, fill);
        }
    }

    fn tell_fill(&self, view: &mut View, name: &PoolName, was: PoolFill, fill: PoolFill) {
        let Some(capacity) = view.pool_entry(name).map(|p| p.capacity) else { return };
        let words = view.limits().words(fill, capacity);
        match fill {
            PoolFill::Ok => view.clear(&alarm_of(name)),
            PoolFill::Warning => view.raise_as(AlarmSeverity::Warning, alarm_of(name), words.clone()),
            PoolFill::Full => view.raise_as(AlarmSeverity::Critical, alarm_of(name), words.clone()),
        }
        if was != fill {
            tracing::info!(pool = %name, ?was, ?fill, "a pool's fill level changed: {words}");
            let about = Subject { pool: Some(name.clone()), detail: Some(words), ..Subject::default() };
            self.events.publish(EventKind::PoolSpace, about);
        }
    }

    /// Reads the capacity of pools that have changed. At most once a second a pool, whatever happens.
    pub(super) async fn read_capacities(self: Arc<Self>) {
        loop {
            self.stale_bell.notified().await;
            let stale = std::mem::take(&mut *self.stale.lock());
            self.note_limits();
            for name in stale {
                self.read_behind(name);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Each pool for itself: one that hangs holds up no other, and is not asked again before it has
    /// answered, or every look would cost it another thread.
    fn read_behind(self: &Arc<Self>, name: PoolName) {
        let Ok(pool) = self.open_pool(&name) else { return };
        self.look_behind(pool.clone());
        {
            let mut reading = self.reading.lock();
            if !reading.insert(name.clone()) {
                // Read again when it has been read.
                self.stale.lock().insert(name);
                return;
            }
        }
        let core = self.clone();
        self.background(async move {
            let until = Instant::now() + core.settings.settle_deadline;
            if let Some(late) = core.read_capacity(&pool, On::Open, until).await {
                let _ = late.await;
            }
            let mut reading = core.reading.lock();
            reading.remove(&name);
            if core.stale.lock().contains(&name) {
                core.stale_bell.notify_one();
            }
        });
    }

    /// Looks at pools now and then, for as long as the daemon runs. One of the few things that are
    /// polled: initiators fill thin volumes without asking us, and no kind of pool tells when they do.
    pub(super) async fn look_at_pools(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first one is at once, and start-up has just read them.
        ticks.tick().await;
        loop {
            ticks.tick().await;
            self.look_once();
        }
    }

    /// Has the pools read that can change by themselves: those with volumes, those that are not known
    /// to have room, because some kinds free what was deleted behind the answer, and those whose disks may
    /// fail.
    pub(super) fn look_once(&self) {
        let moves = |p: &&PoolEntry| {
            let alone = p.features.is_some_and(|f| f.minds_disks) || p.fill != PoolFill::Ok;
            p.state == PoolState::Online && (p.has_volumes() || alone)
        };
        let names: Vec<_> =
            self.view.read().pool_entries().filter(moves).map(|p| p.spec.name.clone()).collect();
        for name in names {
            self.capacity_changed(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_1000(used: u64) -> Capacity {
        Capacity {
            total: ByteSize(1000),
            used: ByteSize(used),
            available: ByteSize(1000 - used),
            metadata_percent: None,
        }
    }

    #[test]
    fn a_level_is_left_one_point_below_where_it_is_reached() {
        use PoolFill::{Full, Ok, Warning};
        let limits = FillLimits::default();
        for (was, used, now) in [
            (Ok, 0, Ok),
            (Ok, 799, Ok),
            (Ok, 800, Warning),
            (Warning, 790, Warning),
            (Warning, 789, Ok),
            (Warning, 949, Warning),
            (Ok, 950, Full),
            (Full, 940, Full),
            (Full, 939, Warning),
            (Full, 790, Warning),
            (Full, 789, Ok),
            (Warning, 1000, Full),
        ] {
            assert_eq!(limits.level(was, of_1000(used)), now, "{was:?} {used}");
        }
        assert_eq!(limits.level(Full, Capacity::default()), Ok, "nothing is known of it");
        let one = FillLimits { warn_percent: 1, stop_percent: 1 };
        assert_eq!((one.level(Ok, of_1000(10)), one.level(Full, of_1000(9))), (Full, Ok));
        let whole = FillLimits { warn_percent: 100, stop_percent: 100 };
        assert_eq!((whole.level(Ok, of_1000(999)), whole.level(Ok, of_1000(1000))), (Ok, Full));
        let most = Capacity {
            total: ByteSize(u64::MAX),
            used: ByteSize(u64::MAX),
            available: ByteSize(0),
            metadata_percent: None,
        };
        assert_eq!(limits.level(Ok, most), Full);
    }

    #[test]
    fn metadata_that_fill_up_count_as_data_do() {
        let limits = FillLimits::default();
        let now = |metadata| Capacity { metadata_percent: Some(metadata), ..of_1000(10) };
        assert_eq!(limits.level(PoolFill::Ok, now(79)), PoolFill::Ok);
        assert_eq!(limits.level(PoolFill::Ok, now(80)), PoolFill::Warning);
        assert_eq!(limits.level(PoolFill::Warning, now(95)), PoolFill::Full);
        assert_eq!(limits.level(PoolFill::Full, now(93)), PoolFill::Warning);
        assert_eq!(limits.largest(PoolFill::Full, now(95), ByteSize(1)), (ByteSize(0), ByteSize(0)));
        let words = limits.words(PoolFill::Warning, now(85));
        assert!(
            words.starts_with("it is 1% full: 990 B of 1000 B are left, and its metadata are 85% full"),
            "{words}"
        );
        assert!(!limits.words(PoolFill::Warning, now(70)).contains("metadata"));
    }

    #[test]
    fn the_largest_volumes_are_whole_and_leave_what_is_kept_back() {
        let limits = FillLimits::default();
        let largest = |fill, now, g| {
            let (thin, thick) = limits.largest(fill, now, ByteSize(g));
            (thin.bytes(), thick.bytes())
        };
        assert_eq!(largest(PoolFill::Ok, of_1000(0), 1), (1000, 950));
        assert_eq!(largest(PoolFill::Warning, of_1000(900), 16), (992, 48));
        assert_eq!(largest(PoolFill::Full, of_1000(945), 16), (0, 0));
        // What is available is less than what is not used: the file system keeps some for root.
        let reserved = Capacity { available: ByteSize(40), ..of_1000(500) };
        assert_eq!(largest(PoolFill::Ok, reserved, 1), (1000, 0));
        assert_eq!(largest(PoolFill::Ok, Capacity::default(), 4096), (0, 0));
        assert_eq!(largest(PoolFill::Ok, of_1000(0), 0), (0, 0));
    }
}
