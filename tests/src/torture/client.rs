//! One client at work: asks for operations one after another, compares each answer with what its record expects, and
//! remembers the one whose answer was lost.

#![allow(clippy::result_large_err, reason = "the API's own errors, a few thousand in all")]

use std::time::{Duration, Instant};

use orlop_api::client::{AttachAs, Client};
use orlop_api::{
    ByteSize, ErrorKind, HostName, PoolName, Problem, Properties, Protocol, SnapshotCreate, SnapshotId,
    SnapshotName, SourceMode, VolumeCreate, VolumeId, VolumeName, VolumeRef, VolumeSource, VolumeUpdate,
    When,
};

use super::plan::{Op, UNIT, compression};
use super::record::{Expected, Kind, Record};

/// How long one request may take, and how long an operation is asked for again while the answer is that it may go better later.
const CALL: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(90);

/// See the module.
#[derive(Debug, Clone)]
pub struct Worker {
    /// Its number: part of its volumes' names.
    pub number: u8,
    /// The pool of its volumes.
    pub pool: PoolName,
    /// What it knows.
    pub record: Record,
    /// The operation whose answer was lost.
    pub doubt: Option<Op>,
    /// What it asked for and heard, for a person.
    pub history: Vec<String>,
}

/// How a round of a client goes.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// The daemon may go away: then the round is over.
    pub may_end: bool,
    /// Operations may be refused or take too long, for what is done to the machine.
    pub excused: bool,
}

/// An answer that is none of those that are right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong(pub String);

impl Worker {
    /// A client that has nothing yet.
    pub fn new(number: u8, pool: PoolName, kind: Kind) -> Self {
        Self { number, pool, record: Record::new(kind), doubt: None, history: Vec::new() }
    }

    /// The name of one of its volumes.
    pub fn volume_name(&self, slot: u8) -> String {
        format!("c{}-v{slot}", self.number)
    }

    /// The name of one of its snapshots.
    pub fn snapshot_name(&self, slot: u8, nth: u8) -> String {
        format!("c{}-v{slot}-s{nth}", self.number)
    }

    /// By what protocol one of its volumes is reached.
    pub fn protocol(slot: u8) -> Protocol {
        if slot % 3 == 1 { Protocol::Iscsi } else { Protocol::Nvme }
    }

    /// Does its work. Ends early when an answer is lost and the daemon may be gone.
    pub async fn work(mut self, api: Client, ops: Vec<Op>, manner: Manner) -> (Self, Result<(), Wrong>) {
        let api = api.with_timeout(CALL);
        for op in ops {
            if let Err(wrong) = self.one(&api, op, manner).await {
                return (self, Err(wrong));
            }
            if self.doubt.is_some() {
                break;
            }
        }
        (self, Ok(()))
    }

    async fn one(&mut self, api: &Client, op: Op, manner: Manner) -> Result<(), Wrong> {
        let expected = self.record.expect(op);
        if expected == Expected::Skip {
            return Ok(());
        }
        let started = Instant::now();
        let mut asked = 0;
        loop {
            asked += 1;
            let answer = self.ask(api, op).await;
            let heard = match &answer {
                Ok(_) => "done".to_string(),
                Err(p) => format!("{}: {}", p.kind.as_str(), p.detail),
            };
            self.history.push(format!("client {}: {op} -> {heard}", self.number));
            // An operation that was asked for before may have been done before.
            let gone =
                asked > 1 && matches!(op, Op::Delete { .. } | Op::DropSnapshot { .. } | Op::Detach { .. });
            match (answer, &expected) {
                (Ok(made), Expected::Done(next)) => {
                    self.record = next.clone();
                    self.note(op, made);
                }
                (Ok(_), Expected::Same) => {}
                (Err(p), Expected::Done(next)) if gone && p.kind == ErrorKind::NotFound => {
                    self.record = next.clone()
                }
                (Err(p), Expected::Refused(kinds)) if kinds.contains(&p.kind) => {}
                (Err(p), _) if p.kind.retryable() => {
                    let lost = may_be_under_way(&p);
                    if manner.may_end && lost || manner.excused || started.elapsed() > PATIENCE {
                        self.doubt = Some(op);
                        return match manner.may_end || manner.excused {
                            true => Ok(()),
                            false => Err(Wrong(format!("client {}: {op} is not answered: {p}", self.number))),
                        };
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
                (Err(p), _) if manner.excused && p.kind == ErrorKind::Exhausted => {}
                (answer, _) => {
                    return Err(Wrong(format!(
                        "client {}: {op} was answered {answer:?} where {} was due",
                        self.number,
                        due(&expected)
                    )));
                }
            }
            return Ok(());
        }
    }

    /// What was made is known by its id from its answer on.
    fn note(&mut self, op: Op, made: Made) {
        let at = |slot: u8| usize::from(slot);
        match (op, made) {
            (Op::Create { slot } | Op::Clone { to: slot, .. }, Made::Volume(id, target)) => {
                if let Some(v) = &mut self.record.volumes[at(slot)] {
                    v.identity = Some((id, target));
                }
            }
            (Op::Snapshot { slot, nth }, Made::Snapshot(id)) => {
                let v = self.record.volumes[at(slot)].as_mut();
                if let Some(s) = v.and_then(|v| v.snapshots.get_mut(&nth)) {
                    s.id = Some(id);
                }
            }
            _ => {}
        }
    }

    /// Asks for the operation in doubt until it is answered, so that there is none any more.
    pub async fn settle(&mut self, api: &Client) -> Result<(), Wrong> {
        let Some(op) = self.doubt.take() else { return Ok(()) };
        self.history.push(format!("client {}: asks again to {op}", self.number));
        self.one(&api.clone().with_timeout(CALL), op, Manner { may_end: false, excused: false }).await
    }

    async fn ask(&self, api: &Client, op: Op) -> Result<Made, Problem> {
        let volume = |slot: u8| -> Result<VolumeName, Problem> { name(&self.volume_name(slot)) };
        let by_name = |slot: u8| -> Result<VolumeRef, Problem> { Ok(volume(slot)?.into()) };
        let snapshot =
            |slot: u8, nth: u8| -> Result<SnapshotName, Problem> { name(&self.snapshot_name(slot, nth)) };
        let host = |host: u8| -> Result<HostName, Problem> { name(&host_name(host)) };
        match op {
            Op::Create { slot } => {
                let plain = VolumeCreate::new(volume(slot)?, self.pool.clone(), ByteSize(UNIT));
                let ask = VolumeCreate { protocol: Some(Self::protocol(slot)), ..plain };
                api.create_volume(&ask).await.map(|v| Made::Volume(v.id, target(&v)))
            }
            Op::Clone { slot, nth, to } => {
                let size =
                    self.record.volumes[usize::from(slot)].as_ref().and_then(|v| v.snapshots.get(&nth));
                let size = ByteSize(size.map_or(UNIT, |s| s.size));
                let source = VolumeSource {
                    snapshot: Some(snapshot(slot, nth)?.into()),
                    volume: None,
                    mode: SourceMode::Linked,
                };
                let plain = VolumeCreate::new(volume(to)?, self.pool.clone(), size);
                let ask = VolumeCreate { protocol: Some(Self::protocol(to)), source: Some(source), ..plain };
                api.create_volume(&ask).await.map(|v| Made::Volume(v.id, target(&v)))
            }
            Op::Delete { slot } => api.delete_volume(&by_name(slot)?).await.map(|()| Made::Nothing),
            Op::Grow { slot, units } => {
                let ask = VolumeUpdate::to_size(ByteSize(u64::from(units) * UNIT));
                api.update_volume(&by_name(slot)?, &ask).await.map(|_| Made::Nothing)
            }
            Op::Set { slot, strong } => {
                let properties =
                    Properties { compression: Some(name(compression(strong))?), ..Properties::default() };
                let ask = VolumeUpdate { properties, ..VolumeUpdate::default() };
                api.update_volume(&by_name(slot)?, &ask).await.map(|_| Made::Nothing)
            }
            Op::Snapshot { slot, nth } => {
                let ask = SnapshotCreate { name: snapshot(slot, nth)?, volume: by_name(slot)? };
                api.create_snapshot(&ask).await.map(|s| Made::Snapshot(s.id))
            }
            Op::DropSnapshot { slot, nth } => {
                api.delete_snapshot(&snapshot(slot, nth)?.into(), When::Now).await.map(|_| Made::Nothing)
            }
            Op::Attach { slot, host: to, alone } => {
                let how = AttachAs { exclusive: alone, read_only: false };
                api.attach_as(&by_name(slot)?, &host(to)?, &how).await.map(|_| Made::Nothing)
            }
            Op::Detach { slot, host: from } => {
                api.detach(&by_name(slot)?, &host(from)?).await.map(|()| Made::Nothing)
            }
        }
    }
}

/// What an answer tells of what was made.
#[derive(Debug)]
enum Made {
    Nothing,
    Volume(VolumeId, String),
    Snapshot(SnapshotId),
}

/// The name of a volume's target.
pub fn target(v: &orlop_api::Volume) -> String {
    match (&v.nqn, &v.iqn) {
        (Some(nqn), _) => nqn.to_string(),
        (None, Some(iqn)) => iqn.to_string(),
        (None, None) => String::new(),
    }
}

/// The name of a host that all clients use.
pub fn host_name(number: u8) -> String {
    format!("torture-{number}")
}

/// Whether a request with this answer may have been, or may still be, carried out.
fn may_be_under_way(p: &Problem) -> bool {
    matches!(p.kind, ErrorKind::Unavailable | ErrorKind::Deadline)
}

fn name<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, Problem> {
    text.parse().map_err(|e| Problem::new(ErrorKind::Invalid, format!("{text}: {e}")))
}

fn due(expected: &Expected) -> String {
    match expected {
        Expected::Done(_) => "success".into(),
        Expected::Same => "success without a change".into(),
        Expected::Refused(kinds) => kinds.iter().map(|k| k.as_str()).collect::<Vec<_>>().join(" or "),
        Expected::Skip => "no question".into(),
    }
}
