//! Setting the size of a zvol and removing one take turns, in all zpools of the machine.
//!
//! Called by pools. While ZFS sets a zvol's size it holds that zvol's lock until the change is on disk. Whoever removes
//! a zvol, of whatever zpool, waits for each zvol's lock in turn with the lock of all zvols in its hands, and nothing is
//! opened or found meanwhile. Where a zpool loses its disks in the middle of a growth, that is for ever and for all
//! zpools. So who would wait in ZFS waits here, where it has a deadline and holds up nobody else: a removal for growths in
//! all zpools; and a growth for removals in its own that are about to come to that, and not for others', which may be slow.
//!
//! A daemon may be started again while one hangs in the kernel that an earlier one has begun: it is found by its process.

use std::collections::BTreeSet;
use std::sync::Once;

use orlop_api::PoolName;
use parking_lot::{Condvar, Mutex};

use crate::kernel::{Deadline, exec};

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

#[derive(Debug)]
struct Entry {
    ticket: u64,
    work: Work,
    pool: PoolName,
    /// It has begun; those that have not yet wait.
    at_work: bool,
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
                Work::Growth if failed && other.at_work => return Err(Denied::HeldUpBy(other.pool.clone())),
                // One that waits is refused by its zpool when its turn comes.
                Work::Growth => may &= failed && !other.at_work,
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
        static ADOPTED: Once = Once::new();
        ADOPTED.call_once(|| TURNS.adopt());
        &TURNS
    }

    /// Gives a turn to each growth that an earlier daemon has begun and that is under way still.
    fn adopt(&'static self) {
        let growths = exec::running("zfs", |args| grown(args).is_some());
        let growths =
            growths.inspect_err(|error| tracing::warn!(%error, "what an earlier daemon began is not known"));
        for process in growths.into_iter().flatten() {
            let Some(pool) = grown(&process.args) else { continue };
            tracing::warn!(%pool, "a volume of it grows since before this start");
            process.holding(self.enter(Work::Growth, &pool, true));
        }
    }

    fn enter(&self, work: Work, pool: &PoolName, at_work: bool) -> Turn<'_> {
        let mut state = self.state.lock();
        let ticket = state.next;
        state.next += 1;
        state.entries.push(Entry { ticket, work, pool: pool.clone(), at_work });
        Turn { turns: self, ticket }
    }

    /// Waits for its turn.
    pub fn take(&self, work: Work, pool: &PoolName, deadline: &Deadline) -> Result<Turn<'_>, Denied> {
        let turn = self.enter(work, pool, false);
        let ticket = turn.ticket;
        // The turn goes again however this ends: but not while the state is locked here.
        let mut state = self.state.lock();
        let denied = loop {
            match state.may_begin(ticket, work, pool) {
                Ok(true) => {
                    state.entries.iter_mut().filter(|e| e.ticket == ticket).for_each(|e| e.at_work = true);
                    break None;
                }
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

/// The zpool in which such a command sets a zvol's size (`make`). `None`: it is another command.
fn grown(args: &[String]) -> Option<PoolName> {
    match args {
        [program, verb, size, dataset] if verb == "set" && size.starts_with("volsize=") => {
            let is_zfs = program.rsplit('/').next() == Some("zfs");
            dataset.split('/').next().filter(|_| is_zfs)?.parse().ok()
        }
        _ => None,
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
    fn a_growth_that_waits_holds_up_nobody_when_its_zpool_is_lost() {
        let turns = Turns::new();
        let (bad, good) = (pool("bad"), pool("good"));
        let _hangs = turns.take(Work::Removal, &bad, &soon()).unwrap();
        std::thread::scope(|s| {
            let waits = s.spawn(|| turns.take(Work::Growth, &bad, &long()).map(drop));
            while turns.state.lock().entries.len() < 2 {
                std::thread::yield_now();
            }
            assert_eq!(turns.take(Work::Removal, &good, &soon()).unwrap_err(), Denied::Late);
            turns.set_failed(&bad, true);
            drop(turns.take(Work::Removal, &good, &soon()).unwrap());
            // Its turn has come, for its zpool to refuse it.
            assert_eq!(waits.join().unwrap(), Ok(()));
        });
    }

    #[test]
    fn growths_of_an_earlier_daemon_are_known_by_their_commands() {
        let args = |text: &str| text.split(' ').map(String::from).collect::<Vec<_>>();
        let of = |text: &str| grown(&args(text)).map(|p| p.to_string());
        assert_eq!(of("/usr/sbin/zfs set volsize=1024 tank/orlop/0190").as_deref(), Some("tank"));
        for other in [
            "/usr/sbin/zfs set compression=on tank/orlop/0190",
            "/usr/sbin/zfs get volsize=1024 tank/orlop/0190",
            "/usr/sbin/zpool set volsize=1024 tank/orlop/0190",
            "/usr/sbin/zfs set volsize=1024",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
        let turns: &'static Turns = Box::leak(Box::new(Turns::new()));
        let (bad, good) = (pool("bad"), pool("good"));
        let hangs = turns.enter(Work::Growth, &bad, true);
        turns.set_failed(&bad, true);
        assert_eq!(turns.take(Work::Removal, &good, &soon()).unwrap_err(), Denied::HeldUpBy(bad));
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
