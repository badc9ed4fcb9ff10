//! Torture: clients do random operations on an appliance, from a seed, and keep their own record of what was acknowledged; the
//! machine is cut off from its power, killed, robbed of disks, journal and network meanwhile; after each of these everything
//! that must hold is looked at.
//!
//! Called by `bin/torture.rs` and, for a short run, by the suites. [`plan`] and [`record`] are pure; what is tortured is a
//! [`Machine`]: a real appliance with an initiator, or a simulated daemon.

mod appliance;
mod check;
mod client;
mod machine;
mod plan;
mod record;
mod shrink;
mod simulated;
mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::runtime::Runtime;

pub use appliance::Appliance;
pub use machine::Machine;
pub use plan::{Fault, PLACES, Planner, Round, Shape};
pub use shrink::shrink;
pub use simulated::Simulated;

use check::Shown;
use client::{Manner, Worker, host_name};
use plan::HOSTS;
use record::Kind;

/// How long what is under way may take to settle, after something that excuses it.
const SETTLES: Duration = Duration::from_secs(90);
/// One look in so many is a deep one.
const DEEP: u64 = 4;

/// What a run has done.
#[derive(Debug, Default, Clone)]
pub struct Summary {
    /// Rounds.
    pub rounds: u64,
    /// Operations that were answered.
    pub operations: u64,
    /// Operations whose answer was lost, and how many of these had been carried out.
    pub lost: (u64, u64),
    /// Faults by name.
    pub faults: BTreeMap<&'static str, u64>,
    /// Writes that disks lost, because they were not flushed before a power cut.
    pub lost_writes: u64,
    /// Failpoints at which the daemon died.
    pub places: BTreeMap<(&'static str, &'static str), u64>,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<_> = self.faults.iter().map(|(name, n)| format!("{name} {n}")).collect();
        let all: usize = PLACES.iter().map(|(_, stages)| stages.len()).sum();
        write!(
            f,
            "{} rounds, {} operations answered, {} answers lost ({} of them carried out); {}; {} of {all} failpoints; \
             {} unflushed writes lost by disks",
            self.rounds,
            self.operations,
            self.lost.0,
            self.lost.1,
            faults.join(", "),
            self.places.len(),
            self.lost_writes
        )
    }
}

/// What does not hold any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// In words.
    pub wrong: Vec<String>,
    /// What the clients asked for in the last round, and heard.
    pub history: Vec<String>,
}

/// A machine and its clients.
pub struct Torture<'m> {
    machine: &'m mut dyn Machine,
    runtime: Runtime,
    workers: Vec<Worker>,
    summary: Summary,
}

impl<'m> Torture<'m> {
    /// Clients for a machine on which nothing has been done yet: client n uses pool n of the machine's, round and round.
    pub fn new(machine: &'m mut dyn Machine, clients: u8) -> Result<Self> {
        let pools = machine.pools();
        let workers = (0..clients).zip(pools.iter().cycle());
        let workers = workers.map(|(n, (pool, kind))| Worker::new(n, pool.clone(), *kind)).collect();
        let torture = Self { machine, runtime: Runtime::new()?, workers, summary: Summary::default() };
        torture.put_hosts()?;
        Ok(torture)
    }

    /// The pools of the clients, as a plan's shape has them.
    pub fn pools(machine: &dyn Machine, clients: u8) -> Vec<Kind> {
        machine.pools().iter().cycle().take(usize::from(clients)).map(|(_, kind)| *kind).collect()
    }

    fn put_hosts(&self) -> Result<()> {
        for number in 0..HOSTS {
            let host = self.machine.host(number)?;
            self.runtime
                .block_on(self.machine.api_past_the_wire().put_host(&host_name(number).parse()?, &host))?;
        }
        Ok(())
    }

    /// Goes through a round. What does not hold after it, or nothing. An error is one of the harness or of the machine's boot.
    pub fn round(&mut self, round: &Round) -> Result<Option<Violation>> {
        let fault = round.fault;
        self.machine.prepare(fault).with_context(|| format!("before {fault}"))?;
        let mut wrong = self.work(round)?;
        let happened = self.machine.mend(fault).with_context(|| format!("after {fault}"))?;
        self.count(fault, happened);
        if fault.loses_the_journal() {
            // Labels know hosts that are attached; the others are put again, as their owner would.
            self.put_hosts().context("after the journal was lost")?;
        }
        wrong.extend(self.check(fault)?);
        if wrong.is_empty() {
            return Ok(None);
        }
        let history = self.workers.iter().flat_map(|w| w.history.clone()).collect();
        Ok(Some(Violation { wrong, history }))
    }

    fn work(&mut self, round: &Round) -> Result<Vec<String>> {
        let fault = round.fault;
        let manner = Manner { may_end: fault.ends_the_round(), excused: fault.excuses() };
        let mut running = Vec::new();
        for (n, mut worker) in std::mem::take(&mut self.workers).into_iter().enumerate() {
            worker.history.clear();
            let ops = round.work.get(n).cloned().unwrap_or_default();
            running.push(self.runtime.spawn(worker.work(self.machine.api(), ops, manner)));
        }
        let started = Instant::now();
        while started.elapsed() < round.after && !running.iter().all(|r| r.is_finished()) {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.machine.strike(fault).with_context(|| format!("{fault}"))?;
        let mut wrong = Vec::new();
        for task in running {
            let (worker, result) = self.runtime.block_on(task).context("a client died")?;
            self.summary.operations += worker.history.len() as u64;
            wrong.extend(result.err().map(|w| w.0));
            self.workers.push(worker);
        }
        Ok(wrong)
    }

    fn count(&mut self, fault: Fault, happened: bool) {
        self.summary.rounds += 1;
        *self.summary.faults.entry(fault.name()).or_default() += 1;
        if let (Fault::KillAt(verb, stage), true) = (fault, happened) {
            *self.summary.places.entry((verb, stage)).or_default() += 1;
        }
    }

    /// Whether the daemon has died there.
    pub fn has_reached(&self, place: (&'static str, &'static str)) -> bool {
        self.summary.places.contains_key(&place)
    }

    fn check(&mut self, fault: Fault) -> Result<Vec<String>> {
        let api = self.machine.api_past_the_wire();
        let ours = self.machine.own_volumes();
        // At once, unless something was done to the machine that takes its time.
        let until = Instant::now() + if fault.excuses() { SETTLES } else { Duration::ZERO };
        let before: Vec<_> = self.workers.iter().map(|w| (w.doubt, w.record.clone())).collect();
        loop {
            let shown = self.runtime.block_on(Shown::ask(&api, &ours))?;
            let wrong = shown.compare(&mut self.workers);
            if wrong.is_empty() {
                break;
            }
            if Instant::now() >= until {
                return Ok(wrong);
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        for (worker, (doubt, record)) in self.workers.iter().zip(before) {
            self.summary.lost.0 += u64::from(doubt.is_some());
            self.summary.lost.1 +=
                u64::from(doubt.is_some() && worker.record.differs_in_more_than_ids(&record));
        }
        // What was in doubt is asked for again, and must lead to what it leads to.
        for worker in &mut self.workers {
            if let Err(wrong) = self.runtime.block_on(worker.settle(&api)) {
                return Ok(vec![wrong.0]);
            }
        }
        let shown = self.runtime.block_on(Shown::ask(&api, &ours))?;
        let mut wrong = shown.compare(&mut self.workers);
        wrong.extend(self.machine.look(&shown, self.summary.rounds.is_multiple_of(DEEP))?);
        Ok(wrong)
    }

    /// What has been done.
    pub fn summary(&self) -> Summary {
        Summary { lost_writes: self.machine.lost_writes(), ..self.summary.clone() }
    }

    /// The end of the machine's log.
    pub fn log(&mut self) -> String {
        self.machine.log()
    }
}
