//! Volumes whose writers wait until the snapshots of all of them are taken.
//!
//! Called by `lvm` and `file` pools. Whatever becomes of the commands in between, they wait for [`LONGEST`] at most: a
//! thread that does nothing else lets them go on then, and what was taken counts for nothing. Only one whose own disk does
//! not answer waits for that, as it would anyway. What a daemon that is killed meanwhile held goes on at the next start,
//! before any pool is opened.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use orlop_api::VolumeId;
use parking_lot::Mutex;

use super::context::Context;
use super::mapped::Mappings;
use super::mounted::Mounts;
use super::{PoolError, Result};
use crate::kernel::dm::Suspended;
use crate::kernel::filesystem::Frozen;
use crate::kernel::{Deadline, Overrun};

/// How long writers wait at most. Hosts take a disk for gone after thirty seconds without an answer (`io_timeout` of
/// Linux's nvme_core, the default of its SCSI disks), and a fence of one of them is given up after fifteen.
const LONGEST: Duration = Duration::from_secs(10);

/// A volume that is held, and goes on when this goes.
#[derive(Debug)]
enum One {
    /// Its file system.
    Mounted(Frozen),
    /// Its device.
    Mapped(Suspended),
    /// Says whether it goes on.
    #[cfg(test)]
    Told(Arc<std::sync::atomic::AtomicBool>),
}

impl One {
    fn release(self) -> io::Result<()> {
        match self {
            Self::Mounted(frozen) => frozen.release(),
            Self::Mapped(suspended) => suspended.release(),
            #[cfg(test)]
            Self::Told(goes_on) => {
                goes_on.store(true, std::sync::atomic::Ordering::Release);
                Ok(())
            }
        }
    }
}

/// Those that are held. `None`: it has been too long.
type Holding = Arc<Mutex<Option<Vec<One>>>>;

/// See the module.
#[derive(Debug)]
pub(super) struct Held {
    ctx: Context,
    holding: Holding,
    /// When the first was held.
    since: Option<Instant>,
    /// Those of which nobody could write, because they were not open.
    closed: Vec<String>,
    deadline: Deadline,
    until: Deadline,
    /// Ends the thread that watches, when it goes.
    _watched: Option<Sender<()>>,
}

impl Held {
    /// Holds those of these volumes that are mounted, and of the others those that have a device in `mappings`.
    pub fn hold(
        ctx: &Context,
        ids: impl Iterator<Item = VolumeId>,
        mounts: &Mounts,
        mappings: Option<&Mappings>,
        deadline: &Deadline,
    ) -> Result<Self> {
        let mut held = Self::none(ctx, deadline, LONGEST);
        for id in ids {
            let name = id.to_string();
            let is_held = held.one(|| match (mounts.hold(id)?, mappings) {
                (Some(frozen), _) => Ok(Some(One::Mounted(frozen))),
                (None, Some(mappings)) => Ok(mappings.hold(&name)?.map(One::Mapped)),
                (None, None) => Ok(None),
            })?;
            if !is_held && mappings.is_some() {
                held.closed.push(name);
            }
        }
        Ok(held)
    }

    fn none(ctx: &Context, deadline: &Deadline, longest: Duration) -> Self {
        let holding = Holding::new(Mutex::new(Some(Vec::new())));
        let (deadline, until) = (deadline.clone(), deadline.at_most(longest));
        Self { ctx: ctx.clone(), holding, since: None, closed: Vec::new(), deadline, until, _watched: None }
    }

    /// Holds one more, if there is one to hold. Whether there is.
    fn one(&mut self, hold: impl FnOnce() -> Result<Option<One>>) -> Result<bool> {
        let before = Instant::now();
        let Some(one) = hold()? else { return Ok(false) };
        if self.since.is_none() {
            self.since = Some(before);
            self._watched = Some(watch(&self.ctx, &self.holding, self.until.remaining())?);
        }
        match self.holding.lock().as_mut() {
            Some(all) => all.push(one),
            // It goes on here, as the others did.
            None => return Err(self.too_long()),
        }
        Ok(true)
    }

    /// By when all must be done: soon, if anybody waits.
    pub fn until(&self) -> &Deadline {
        if self.since.is_some() { &self.until } else { &self.deadline }
    }

    /// Refuses what is not of one instant: a device that somebody took away or let go on meanwhile, or that was not there
    /// and is now.
    fn check(&self, mappings: Option<&Mappings>) -> Result<()> {
        let others = || {
            let detail =
                "a volume of the group was attached or detached while its snapshots were taken: try again";
            Err(self.ctx.precondition(detail))
        };
        if let Some(all) = self.holding.lock().as_ref() {
            for one in all {
                let One::Mapped(suspended) = one else { continue };
                if !suspended.is_held().map_err(self.ctx.io("looking at what is held"))? {
                    return others();
                }
            }
        }
        for name in &self.closed {
            if mappings.map(|m| m.device(name)).transpose()?.flatten().is_some() {
                return others();
            }
        }
        Ok(())
    }

    /// Lets all go on, and says how long they waited at most. `None`: none was held. An error if they went on
    /// before this.
    pub fn release(self, mappings: Option<&Mappings>) -> Result<Option<Duration>> {
        let checked = self.check(mappings);
        let Some(all) = self.holding.lock().take() else { return Err(self.too_long()) };
        let released = release(all);
        checked?;
        released.map_err(self.ctx.io("letting volumes go on after a snapshot"))?;
        Ok(self.since.map(|since| since.elapsed()))
    }

    fn too_long(&self) -> PoolError {
        self.ctx
            .late("taking snapshots while writers wait: fewer volumes at a time, or a quicker pool", Overrun)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.holding.lock().take().map(release) {
            tracing::error!(pool = %self.ctx.pool, %error, "a volume that was held for a snapshot does not go on");
        }
    }
}

/// All of them, whatever becomes of one. Devices first: a file system may wait for a disk when it goes on.
fn release(all: Vec<One>) -> io::Result<()> {
    let (mounted, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|one| matches!(one, One::Mounted(_)));
    let mut released = Ok(());
    for one in others.into_iter().chain(mounted) {
        let this = one.release();
        released = released.and(this);
    }
    released
}

/// A thread that lets them go on after that time, unless what it gives is dropped before.
fn watch(ctx: &Context, holding: &Holding, longest: Duration) -> Result<Sender<()>> {
    let (ended, end) = channel();
    let (holding, pool) = (holding.clone(), ctx.pool.clone());
    let watch = move || {
        if end.recv_timeout(longest) != Err(RecvTimeoutError::Timeout) {
            return;
        }
        let Some(all) = holding.lock().take() else { return };
        tracing::warn!(%pool, "writers waited too long for a snapshot, and go on");
        if let Err(error) = release(all) {
            tracing::error!(%pool, %error, "a volume that was held for a snapshot does not go on");
        }
    };
    let started = std::thread::Builder::new().name("orlop-held".into()).spawn(watch);
    started.map(|_| ended).map_err(ctx.io("starting a thread"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods)]
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn holding(limit: Duration) -> (Held, [Arc<AtomicBool>; 2]) {
        let ctx = Context::new(&"tank".parse().unwrap());
        let mut held = Held::none(&ctx, &Deadline::after(limit), limit);
        let told: [Arc<AtomicBool>; 2] = Default::default();
        for one in &told {
            assert!(held.one(|| Ok(Some(One::Told(one.clone())))).unwrap());
        }
        assert!(!held.one(|| Ok(None)).unwrap());
        (held, told)
    }

    fn going(told: &[Arc<AtomicBool>]) -> usize {
        told.iter().filter(|t| t.load(Ordering::Acquire)).count()
    }

    #[test]
    fn they_go_on_when_they_are_released() {
        let (held, told) = holding(Duration::from_secs(60));
        assert_eq!(going(&told), 0);
        assert!(held.release(None).unwrap().is_some());
        assert_eq!(going(&told), 2);
        let ctx = Context::new(&"tank".parse().unwrap());
        assert_eq!(Held::none(&ctx, &Deadline::after(LONGEST), LONGEST).release(None).unwrap(), None);
    }

    #[test]
    fn they_go_on_when_an_error_comes_first() {
        let (held, told) = holding(Duration::from_secs(60));
        drop(held);
        assert_eq!(going(&told), 2);
    }

    #[test]
    fn they_go_on_by_themselves_and_what_was_taken_counts_for_nothing() {
        let (mut held, told) = holding(Duration::from_millis(50));
        let patience = Instant::now() + Duration::from_secs(20);
        while going(&told) < 2 {
            assert!(Instant::now() < patience, "they still wait");
            std::thread::sleep(Duration::from_millis(5));
        }
        // One that could be held only now is not.
        let late = Arc::new(AtomicBool::new(false));
        let one = One::Told(late.clone());
        assert!(matches!(held.one(|| Ok(Some(one))), Err(PoolError::Deadline { .. })));
        assert!(matches!(held.release(None), Err(PoolError::Deadline { .. })));
        assert_eq!(Arc::strong_count(&late), 1, "it is still held");
    }
}
