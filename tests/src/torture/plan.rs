//! What will be done to an appliance, from a seed: rounds of operations by several clients at once, and what happens to the
//! machine meanwhile. Pure: the same seed gives the same plan, and any part of a plan is one, so that a failure can be
//! reduced to what it takes.

use std::fmt;
use std::time::Duration;

use super::record::{Expected, Kind, Record};

/// What volumes are multiples of.
pub const UNIT: u64 = 64 << 20;
/// Volumes of one client.
pub const SLOTS: u8 = 3;
/// Snapshots of one volume.
pub const SNAPSHOTS: u8 = 2;
/// Hosts that volumes are attached to, by all clients.
pub const HOSTS: u8 = 3;
/// The largest volume, in units.
const LARGEST: u8 = 4;

/// One operation of one client, on its own volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are a volume, a snapshot of it, a host, and a size in units")]
pub enum Op {
    Create { slot: u8 },
    Delete { slot: u8 },
    Grow { slot: u8, units: u8 },
    Set { slot: u8, strong: bool },
    Snapshot { slot: u8, nth: u8 },
    DropSnapshot { slot: u8, nth: u8 },
    Clone { slot: u8, nth: u8, to: u8 },
    Attach { slot: u8, host: u8, alone: bool },
    Detach { slot: u8, host: u8 },
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { slot } => write!(f, "create v{slot}"),
            Self::Delete { slot } => write!(f, "delete v{slot}"),
            Self::Grow { slot, units } => {
                write!(f, "grow v{slot} to {} MiB", u64::from(*units) * (UNIT >> 20))
            }
            Self::Set { slot, strong } => write!(f, "compress v{slot} by {}", compression(*strong)),
            Self::Snapshot { slot, nth } => write!(f, "snapshot v{slot} as s{nth}"),
            Self::DropSnapshot { slot, nth } => write!(f, "delete snapshot s{nth} of v{slot}"),
            Self::Clone { slot, nth, to } => write!(f, "clone snapshot s{nth} of v{slot} to v{to}"),
            Self::Attach { slot, host, alone: false } => write!(f, "attach v{slot} to host {host}"),
            Self::Attach { slot, host, alone: true } => write!(f, "attach v{slot} to host {host} alone"),
            Self::Detach { slot, host } => write!(f, "detach v{slot} from host {host}"),
        }
    }
}

impl Op {
    /// The failpoints' name for it.
    pub fn verb(self) -> &'static str {
        match self {
            Self::Create { .. } | Self::Clone { .. } => "create_volume",
            Self::Delete { .. } => "delete_volume",
            Self::Grow { .. } => "resize_volume",
            Self::Set { .. } => "set_volume",
            Self::Snapshot { .. } => "create_snapshot",
            Self::DropSnapshot { .. } => "delete_snapshot",
            Self::Attach { .. } => "attach",
            Self::Detach { .. } => "detach",
        }
    }
}

/// The two settings of `compression` that a volume is switched between.
pub fn compression(strong: bool) -> &'static str {
    if strong { "zstd" } else { "lz4" }
}

/// Where the daemon can be told to die: at each stage of each operation, and of its start.
pub const PLACES: [(&str, [&str; 3]); 9] = [
    ("create_volume", STAGES),
    ("delete_volume", STAGES),
    ("resize_volume", STAGES),
    ("set_volume", STAGES),
    ("create_snapshot", STAGES),
    ("delete_snapshot", STAGES),
    ("attach", STAGES),
    ("detach", STAGES),
    ("recover", ["opened", "settled", "served"]),
];
const STAGES: [&str; 3] = ["intent", "acted", "committed"];

/// What happens to the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    Nothing,
    /// The daemon is stopped and started.
    Restart,
    /// The daemon is killed.
    Kill,
    /// The daemon dies at a failpoint.
    KillAt(&'static str, &'static str),
    /// The machine loses its power.
    PowerCut,
    /// The journal is gone after the daemon has stopped.
    LostJournal,
    /// The journal is gone, and the daemon dies at this stage of the start that makes it anew.
    LostJournalAndKilled(&'static str),
    /// Connections of clients break off, with requests and answers on their way.
    CutConnections,
    /// Half of a mirror is pulled, and comes back.
    PulledDisk,
    /// A pool has no space left.
    FullPool,
    /// A volume's device takes no I/O.
    SuspendedDevice,
    /// The clock jumps, by so many minutes.
    Clock(i32),
    /// The storage network is down for a moment.
    StorageNetwork,
}

impl Fault {
    /// Whether clients lose the daemon by it, and end their round there.
    pub fn ends_the_round(self) -> bool {
        matches!(self, Self::Restart | Self::Kill | Self::KillAt(..) | Self::PowerCut)
    }

    /// Whether what only the journal knew is gone.
    pub fn loses_the_journal(self) -> bool {
        matches!(self, Self::LostJournal | Self::LostJournalAndKilled(_))
    }

    /// Whether operations may be refused, or take longer than they are given, because of it.
    pub fn excuses(self) -> bool {
        matches!(self, Self::FullPool | Self::SuspendedDevice)
    }

    /// One word, for counting.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Restart => "restart",
            Self::Kill => "kill",
            Self::KillAt(..) => "failpoint",
            Self::PowerCut => "power-cut",
            Self::LostJournal => "lost-journal",
            Self::LostJournalAndKilled(_) => "lost-journal-and-kill",
            Self::CutConnections => "cut-connections",
            Self::PulledDisk => "pulled-disk",
            Self::FullPool => "full-pool",
            Self::SuspendedDevice => "suspended-device",
            Self::Clock(_) => "clock",
            Self::StorageNetwork => "storage-network",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KillAt(verb, stage) => write!(f, "the daemon dies at {verb}.{stage}"),
            Self::Clock(minutes) => write!(f, "the clock jumps by {minutes} minutes"),
            Self::Nothing => write!(f, "nothing happens"),
            Self::Restart => write!(f, "the daemon is restarted"),
            Self::Kill => write!(f, "the daemon is killed"),
            Self::PowerCut => write!(f, "the power is cut"),
            Self::LostJournal => write!(f, "the journal is lost"),
            Self::LostJournalAndKilled(stage) => {
                write!(f, "the journal is lost, and the daemon dies at recover.{stage} of its next start")
            }
            Self::CutConnections => write!(f, "connections break off"),
            Self::PulledDisk => write!(f, "a disk is pulled"),
            Self::FullPool => write!(f, "a pool is full"),
            Self::SuspendedDevice => write!(f, "a device hangs"),
            Self::StorageNetwork => write!(f, "the storage network is down"),
        }
    }
}

/// Operations of each client, and a fault some time after they began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Round {
    /// By client.
    pub work: Vec<Vec<Op>>,
    /// What happens.
    pub fault: Fault,
    /// How long after the start of the round.
    pub after: Duration,
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (client, ops) in self.work.iter().enumerate().filter(|(_, ops)| !ops.is_empty()) {
            let ops: Vec<_> = ops.iter().map(Op::to_string).collect();
            writeln!(f, "  client {client}: {}", ops.join("; "))?;
        }
        write!(f, "  after {} ms {}", self.after.as_millis(), self.fault)
    }
}

/// Makes rounds from a seed.
#[derive(Debug)]
pub struct Planner {
    random: fastrand::Rng,
    /// What the clients will have if all goes well: so that most of what is planned can be done.
    hoped: Vec<Record>,
    shape: Shape,
    /// Failpoints that are still to be tried.
    places: Vec<(&'static str, &'static str)>,
}

/// How large a plan is.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Clients at once.
    pub clients: u8,
    /// Operations of a client in a round, at most.
    pub ops: u8,
    /// How long a round goes on at most before its fault.
    pub longest: Duration,
    /// What may happen. One that is there twice happens twice as often.
    pub faults: Vec<Fault>,
    /// The kind of each client's pool.
    pub pools: Vec<Kind>,
}

impl Planner {
    /// See the type.
    pub fn new(seed: u64, shape: Shape) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let stages = |(verb, stages): &(&'static str, [&'static str; 3])| stages.map(|stage| (*verb, stage));
        let mut places: Vec<_> = PLACES.iter().flat_map(stages).collect();
        random.shuffle(&mut places);
        let hoped = shape.pools.iter().map(|kind| Record::new(*kind)).collect();
        Self { random, hoped, shape, places }
    }

    /// The next round.
    pub fn round(&mut self) -> Round {
        let work: Vec<Vec<Op>> =
            (0..self.shape.clients).map(|client| self.work_of(usize::from(client))).collect();
        let mut fault = self.shape.faults[self.random.usize(..self.shape.faults.len())];
        if matches!(fault, Fault::KillAt(..)) {
            // One that what is planned comes to, unless a start comes to it anyway.
            let comes = |verb: &str| verb == "recover" || work.iter().flatten().any(|op| op.verb() == verb);
            let n = self.places.iter().position(|(verb, _)| comes(verb));
            let place = n.map(|n| self.places.remove(n)).or_else(|| {
                let any = work.iter().flatten().next()?;
                Some((any.verb(), STAGES[self.random.usize(..STAGES.len())]))
            });
            fault = place.map_or(Fault::Kill, |(verb, stage)| Fault::KillAt(verb, stage));
        }
        let longest = u64::try_from(self.shape.longest.as_millis()).unwrap_or(u64::MAX);
        let after = Duration::from_millis(self.random.u64(0..=longest));
        Round { work, fault, after }
    }

    /// A place that nothing came to is tried again.
    pub fn not_reached(&mut self, verb: &'static str, stage: &'static str) {
        self.places.push((verb, stage));
    }

    /// Failpoints that no round has been planned for.
    pub fn places_left(&self) -> usize {
        self.places.len()
    }

    fn work_of(&mut self, client: usize) -> Vec<Op> {
        let count = self.random.u8(1..=self.shape.ops);
        let mut ops = Vec::new();
        for _ in 0..count {
            // Most that can't be done is thrown away, and some is tried.
            let mut op = self.any();
            for _ in 0..6 {
                match self.hoped[client].expect(op) {
                    Expected::Done(_) => break,
                    _ if self.random.u8(..10) == 0 => break,
                    _ => op = self.any(),
                }
            }
            if let Expected::Done(next) = self.hoped[client].expect(op) {
                self.hoped[client] = next;
            }
            ops.push(op);
        }
        ops
    }

    fn any(&mut self) -> Op {
        let r = &mut self.random;
        let slot = r.u8(..SLOTS);
        let nth = r.u8(..SNAPSHOTS);
        let host = r.u8(..HOSTS);
        match r.u8(..16) {
            0..=2 => Op::Create { slot },
            3 | 4 => Op::Delete { slot },
            5 => Op::Grow { slot, units: r.u8(1..=LARGEST) },
            6 => Op::Set { slot, strong: r.bool() },
            7 | 8 => Op::Snapshot { slot, nth },
            9 => Op::DropSnapshot { slot, nth },
            10 => Op::Clone { slot, nth, to: (slot + r.u8(1..SLOTS)) % SLOTS },
            11..=13 => Op::Attach { slot, host, alone: r.u8(..4) == 0 },
            _ => Op::Detach { slot, host },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape {
            clients: 3,
            ops: 8,
            longest: Duration::from_millis(500),
            faults: vec![Fault::Kill, Fault::KillAt("", "")],
            pools: vec![Kind { clones_depend: true, properties: true }; 3],
        }
    }

    #[test]
    fn a_seed_is_a_plan() {
        let rounds = |seed| {
            let mut planner = Planner::new(seed, shape());
            (0..20).map(|_| planner.round()).collect::<Vec<_>>()
        };
        assert_eq!(rounds(7), rounds(7));
        assert_ne!(rounds(7), rounds(8));
    }

    #[test]
    fn every_place_and_every_operation_is_planned() {
        let mut planner = Planner::new(1, shape());
        let rounds: Vec<_> = (0..400).map(|_| planner.round()).collect();
        assert_eq!(planner.places_left(), 0);
        for (verb, stages) in PLACES {
            for stage in stages {
                assert!(rounds.iter().any(|r| r.fault == Fault::KillAt(verb, stage)), "{verb}.{stage}");
            }
            let planned = rounds.iter().flat_map(|r| r.work.iter().flatten()).any(|op| op.verb() == verb);
            assert!(planned || verb == "recover", "{verb}");
        }
    }
}
