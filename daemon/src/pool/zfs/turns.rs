//! Setting the size of a zvol and removing one take turns, in all zpools of the machine.
//!
//! Called by pools. While ZFS sets a zvol's size it holds that zvol's lock until the change is on disk. Whoever removes
//! a zvol, of whatever zpool, waits for each zvol's lock in turn with the lock of all zvols in its hands, and nothing is
//! opened or found meanwhile. Where a zpool loses its disks in the middle of a growth, that is for ever and for all
//! zpools. So who would wait in ZFS waits here, where it has a deadline and holds up nobody else: a removal for growths in
//! all zpools; and a growth for removals in its own that are about to come to that, and not for others', which may be slow.

use std::collections::BTreeSet;

use orlop_api::PoolName;
use parking_lot::{Condvar, Mutex};

use crate::kernel::{Deadline, Overrun};

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// Its size is set.
    Growth,
    /// A zvol or a snapshot goes, or gets another name.
    Removal,
}

/// Why it can't be done now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Denied {
    /// The disks of this zpool went in the middle of a growth, which ends when they are back.
    HeldUpBy(PoolName),
    /// Others took too long.
    Late,
}

impl From<Overrun> for Denied {
    fn from(_: Overrun) -> Self {
        Self::Late
    }
}

#[derive(Debug)]
struct Entry {
    ticket: u64,
    work: Work,
    pool: PoolName,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// Those at work and those that wait, as they came.
    entries: Vec<Entry>,
    /// Zpools that can't do anything at present.
    failed: BTreeSet<PoolName>,
}

/// One for each ZFS, and so one for the machine: [`Turns::of_machine`].
#[derive(Debug)]
pub(super) struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

/// A place among those at work, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    ticket: u64,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.state.lock().entries.retain(|e| e.ticket != self.ticket);
        self.turns.changed.notify_all();
    }
}

impl State {
    /// Whether whoever has this ticket may begin, by those that came before and are still here.
    fn may_begin(&self, ticket: u64, work: Work, pool: &PoolName) -> Result<bool, Denied> {
        let mut may = true;
        for other in self.entries.iter().take_while(|e| e.ticket != ticket).filter(|e| e.work != work) {
            let failed = self.failed.contains(&other.pool);
            match other.work {
                Work::Growth if failed => return Err(Denied::HeldUpBy(other.pool.clone())),
                Work::Growth => may = false,
                Work::Removal => may &= failed || other.pool != *pool,
            }
        }
        Ok(may)
    }
}

impl Turns {
    const fn new() -> Self {
        let state = State { next: 0, entries: Vec::new(), failed: BTreeSet::new() };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// The machine's.
    pub fn of_machine() -> &'static Self {
        static TURNS: Turns = Turns::new();
        &TURNS
    }

    /// Waits for its turn.
    pub fn take(&self, work: Work, pool: &PoolName, deadline: &Deadline) -> Result<Turn<'_>, Denied> {
        let mut state = self.state.lock();
        let ticket = state.next;
        state.next += 1;
        state.entries.push(Entry { ticket, work, pool: pool.clone() });
        // From here on it goes again, however this ends: but not while the state is locked here.
        let turn = Turn { turns: self, ticket };
        let denied = loop {
            match state.may_begin(ticket, work, pool) {
                Ok(true) => break None,
                Ok(false) => {}
                Err(denied) => break Some(denied),
            }
            if deadline.check().is_err() {
                break Some(Denied::Late);
            }
            let _ = self.changed.wait_until(&mut state, deadline.at());
        };
        drop(state);
        match denied {
            None => Ok(turn),
            Some(denied) => Err(denied),
        }
    }

    /// The zpools that can't do anything at present.
    pub fn failed(&self) -> BTreeSet<PoolName> {
        self.state.lock().failed.clone()
    }

    /// A zpool's disks are gone, or it is well again.
    pub fn set_failed(&self, pool: &PoolName, failed: bool) {
        let mut state = self.state.lock();
        let news = match failed {
            true => state.failed.insert(pool.clone()),
            false => state.failed.remove(pool),
        };
        if news {
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    use super::*;

    fn pool(name: &str) -> PoolName {
        name.parse().unwrap()
    }

    fn soon() -> Deadline {
        Deadline::after(Duration::from_millis(50))
    }

    fn long() -> Deadline {
        Deadline::after(Duration::from_secs(20))
    }

    #[test]
    fn those_of_one_kind_go_together_and_others_wait() {
        let turns = Turns::new();
        let (a, b) = (pool("a"), pool("b"));
        let one = turns.take(Work::Removal, &a, &soon()).unwrap();
        let two = turns.take(Work::Removal, &a, &soon()).unwrap();
        assert_eq!(turns.take(Work::Growth, &a, &soon()).unwrap_err(), Denied::Late);
        drop(one);
        assert_eq!(turns.take(Work::Growth, &a, &soon()).unwrap_err(), Denied::Late);
        // Another zpool's removal is nothing to it. A growth is to each removal.
        let growth = turns.take(Work::Growth, &b, &soon()).unwrap();
        assert_eq!(turns.take(Work::Removal, &a, &soon()).unwrap_err(), Denied::Late);
        drop(growth);
        drop(two);
        drop(turns.take(Work::Growth, &a, &soon()).unwrap());
        assert!(turns.state.lock().entries.is_empty());
    }

    #[test]
    fn nobody_is_passed_by_for_ever() {
        let turns = Turns::new();
        let a = pool("a");
        let first = turns.take(Work::Removal, &a, &soon()).unwrap();
        std::thread::scope(|s| {
            let (told, order) = mpsc::channel();
            let growth = told.clone();
            s.spawn({
                let (turns, a) = (&turns, &a);
                move || {
                    let _turn = turns.take(Work::Growth, a, &long()).unwrap();
                    growth.send("growth").unwrap();
                }
            });
            while turns.state.lock().entries.len() < 2 {
                std::thread::yield_now();
            }
            // It would fit beside the first one, and comes after the growth all the same.
            s.spawn({
                let (turns, a) = (&turns, &a);
                move || {
                    let _turn = turns.take(Work::Removal, a, &long()).unwrap();
                    told.send("removal").unwrap();
                }
            });
            while turns.state.lock().entries.len() < 3 {
                std::thread::yield_now();
            }
            drop(first);
            assert_eq!(order.iter().collect::<Vec<_>>(), ["growth", "removal"]);
        });
    }

    #[test]
    fn a_growth_that_hangs_is_told_at_once() {
        let turns = Turns::new();
        let (bad, good) = (pool("bad"), pool("good"));
        let hangs = turns.take(Work::Growth, &bad, &soon()).unwrap();
        std::thread::scope(|s| {
            let waits = s.spawn(|| {
                let started = Instant::now();
                let denied = turns.take(Work::Removal, &good, &long()).unwrap_err();
                (denied, started.elapsed())
            });
            while turns.state.lock().entries.len() < 2 {
                std::thread::yield_now();
            }
            turns.set_failed(&bad, true);
            let (denied, took) = waits.join().unwrap();
            assert_eq!(denied, Denied::HeldUpBy(bad.clone()));
            assert!(took < Duration::from_secs(10));
        });
        // Others grow.
        drop(turns.take(Work::Growth, &good, &soon()).unwrap());
        // With its disks again it ends, and so does the wait.
        turns.set_failed(&bad, false);
        assert_eq!(turns.take(Work::Removal, &good, &soon()).unwrap_err(), Denied::Late);
        drop(hangs);
        drop(turns.take(Work::Removal, &good, &soon()).unwrap());
    }

    #[test]
    fn a_growth_behind_a_removal_that_hangs_learns_of_it() {
        let turns = Turns::new();
        let bad = pool("bad");
        let _hangs = turns.take(Work::Removal, &bad, &soon()).unwrap();
        assert_eq!(turns.take(Work::Growth, &bad, &soon()).unwrap_err(), Denied::Late);
        turns.set_failed(&bad, true);
        // Its zpool refuses it then.
        drop(turns.take(Work::Growth, &bad, &soon()).unwrap());
    }
}
