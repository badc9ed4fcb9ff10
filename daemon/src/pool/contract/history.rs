//! Histories: steps in any order, each done to the pool and to a model of it that is a few maps. After each
//! the pool lists what the model has; what a step has changed is read, and at the end everything is.
//!
//! `daemon/tests/pool_model.rs` makes many of a `sim` pool and shortens those that fail; the suite makes some
//! of every kind, the same ones at every run.

use std::collections::BTreeMap;

use orlop_api::Properties;

use super::snapshots::{holds, linked, put};
use super::*;
use crate::model::{Grant, HostRecord, LabelHost};
use crate::pool::{Listing, PoolError};

/// What can be done. Numbers are taken modulo what there is; a step that finds nothing to be done to is left
/// out. Sizes are MiB.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "they say it themselves")]
pub enum Step {
    Create { mib: u8, thick: bool },
    CreateAgain { volume: u8 },
    Write { volume: u8, piece: u8, seed: u8 },
    Grow { volume: u8, mib: u8 },
    Shrink { volume: u8 },
    Set { volume: u8, property: u8, thick: bool },
    Relabel { volume: u8, hosts: u8 },
    Snapshot { volume: u8, and: Option<u8> },
    Clone { snapshot: u8, mib: u8 },
    Destroy { volume: u8 },
    DestroySnapshot { snapshot: u8 },
    Reopen,
}

/// The most volumes that a history has at a time, and the most snapshots: small pools hold them.
const MOST: usize = 5;
/// What is written and read of each MiB.
const PIECE: usize = 64 << 10;
/// What a set gives a volume; the first is nothing, and takes away what it had.
const SETTINGS: [&str; 4] = ["", "compression=zstd-3", "logbias=throughput", "checksum=sha256"];

/// What a volume or a snapshot holds: the seed of each MiB's pattern, 0 for zeros.
type Content = Vec<u8>;

#[derive(Default)]
struct Model {
    volumes: BTreeMap<VolumeId, (Label, Content)>,
    snapshots: BTreeMap<SnapshotKey, (crate::model::SnapshotLabel, Content)>,
}

impl Model {
    fn volume(&self, n: u8) -> Option<(Label, Content)> {
        self.volumes.values().nth(usize::from(n) % self.volumes.len().max(1)).cloned()
    }

    fn snapshot(&self, n: u8) -> Option<(crate::model::SnapshotLabel, Content)> {
        self.snapshots.values().nth(usize::from(n) % self.snapshots.len().max(1)).cloned()
    }

    fn listing(&self) -> Listing {
        Listing {
            volumes: self.volumes.values().map(|(label, _)| whole(label)).collect(),
            snapshots: self.snapshots.values().map(|(label, _)| label.clone()).collect(),
            ..Listing::default()
        }
    }

    fn clones_of(&self, key: SnapshotKey) -> bool {
        self.volumes.values().any(|(label, _)| label.source.is_some_and(|s| s.snapshot == key))
    }
}

/// Goes through a history in a pool that has nothing in it.
pub fn replay(subject: &Subject, steps: &[Step]) -> Check {
    let mut pool = reopen(subject)?;
    let mut model = Model::default();
    for (n, step) in steps.iter().enumerate() {
        let done = match step {
            Step::Reopen => {
                drop(pool);
                pool = reopen(subject)?;
                Ok(())
            }
            step => carry_out(pool.as_ref(), &mut model, *step),
        };
        let listed = done.and_then(|()| {
            let listed = ok("list", pool.list(&soon()))?;
            same("what is listed", listed, model.listing())
        });
        listed.map_err(|why| format!("step {n}, {step:?}: {why}; all were {steps:?}"))?;
    }
    let all = model.volumes.values().try_for_each(|(l, content)| reads(pool.as_ref(), l.id, content));
    all.map_err(|why| format!("in the end: {why}; all were {steps:?}"))
}

/// The whole of a volume is what it should be.
fn reads(pool: &dyn Pool, id: VolumeId, content: &[u8]) -> Check {
    let opened = ok("open", pool.open(id, &soon()))?;
    same("its size", opened.size.bytes(), (content.len() as u64) << 20)?;
    for (n, seed) in content.iter().enumerate() {
        let found = read(&opened, (n as u64) << 20, PIECE)?;
        expect(found == bytes(*seed), format_args!("MiB {n} is that of seed {seed}"), &found[..16].to_vec())?;
    }
    ok("close", pool.close(id, &soon()))
}

fn bytes(seed: u8) -> Vec<u8> {
    if seed == 0 { vec![0; PIECE] } else { pattern(seed, PIECE) }
}

fn sized(label: &Label, mib: u64) -> Label {
    Label { size: ByteSize(mib << 20), ..label.clone() }
}

fn carry_out(pool: &dyn Pool, model: &mut Model, step: Step) -> Check {
    match step {
        Step::Create { mib, thick } if model.volumes.len() < MOST => {
            let mib = u64::from(mib % 3) + 1;
            let l = label(ByteSize(mib << 20), if thick { Provisioning::Thick } else { Provisioning::Thin });
            same("create", ok("create", pool.create(&l, &soon()))?, Change::Done)?;
            let content = vec![0; mib as usize];
            reads(pool, l.id, &content)?;
            model.volumes.insert(l.id, (l, content));
        }
        Step::Clone { snapshot, mib } if model.volumes.len() < MOST => {
            let Some((s, mut content)) = model.snapshot(snapshot) else { return Ok(()) };
            content.resize(content.len() + usize::from(mib % 3), 0);
            let c = linked(&s, content.len() as u64);
            same("clone", ok("clone", pool.create(&c, &soon()))?, Change::Done)?;
            reads(pool, c.id, &content)?;
            model.volumes.insert(c.id, (c, content));
        }
        Step::Snapshot { volume, and } if model.snapshots.len() < MOST => {
            let mut group: Vec<_> =
                [Some(volume), and].into_iter().flatten().filter_map(|n| model.volume(n)).collect();
            group.dedup_by_key(|(label, _)| label.id);
            if group.is_empty() {
                return Ok(());
            }
            let labels: Vec<_> = group.iter().map(|(label, _)| snapshots::shot(label)).collect();
            snapshots::take(pool, &labels)?;
            let taken = labels.into_iter().zip(group).map(|(s, (_, content))| (s.key, (s, content)));
            model.snapshots.extend(taken);
        }
        Step::DestroySnapshot { snapshot } => {
            let Some((s, _)) = model.snapshot(snapshot) else { return Ok(()) };
            let destroyed = pool.destroy_snapshot(s.key, &soon());
            if pool.features().clones_depend && model.clones_of(s.key) {
                let refused = matches!(destroyed, Err(PoolError::Precondition { .. }));
                return expect(refused, "a snapshot with a clone stays", &destroyed);
            }
            same("destroy", ok("destroy", destroyed)?, Change::Done)?;
            model.snapshots.remove(&s.key);
        }
        Step::CreateAgain { volume } => {
            let Some((l, _)) = model.volume(volume) else { return Ok(()) };
            same("create again", ok("create", pool.create(&l, &soon()))?, Change::Unchanged)?;
        }
        Step::Write { volume, piece, seed } => {
            let Some((l, mut content)) = model.volume(volume) else { return Ok(()) };
            let at = usize::from(piece) % content.len();
            put(pool, l.id, (at as u64) << 20, &bytes(seed))?;
            content[at] = seed;
            holds(pool, l.id, (at as u64) << 20, &bytes(seed), "what was written")?;
            model.volumes.insert(l.id, (l, content));
        }
        Step::Grow { volume, mib } => {
            let Some((l, mut content)) = model.volume(volume) else { return Ok(()) };
            let more = usize::from(mib % 3);
            content.resize(content.len() + more, 0);
            let larger = sized(&l, content.len() as u64);
            let change = if more == 0 { Change::Unchanged } else { Change::Done };
            same("grow", ok("grow", pool.grow(&larger, &soon()))?, change)?;
            reads(pool, l.id, &content)?;
            model.volumes.insert(l.id, (larger, content));
        }
        Step::Shrink { volume } => {
            let Some((l, content)) = model.volume(volume).filter(|(_, c)| c.len() > 1) else { return Ok(()) };
            let shrunk = pool.grow(&sized(&l, content.len() as u64 - 1), &soon());
            expect(matches!(shrunk, Err(PoolError::Conflict { .. })), "a shrink is a conflict", &shrunk)?;
        }
        Step::Set { volume, property, thick } => {
            let Some((have, content)) = model.volume(volume) else { return Ok(()) };
            let features = pool.features();
            let settings = SETTINGS[usize::from(property) % SETTINGS.len()];
            let properties: Properties = settings.parse().unwrap_or_default();
            let provisioning = match thick {
                true if features.reprovision && have.source.is_none() => Provisioning::Thick,
                false if features.reprovision => Provisioning::Thin,
                _ => have.provisioning,
            };
            let want = Label { properties, provisioning, ..have.clone() };
            if features.properties.is_empty() {
                return Ok(());
            }
            let change = if want == have { Change::Unchanged } else { Change::Done };
            same("set", ok("set", pool.set(&want, &soon()))?, change)?;
            model.volumes.insert(want.id, (want, content));
        }
        Step::Relabel { volume, hosts } => {
            let Some((l, content)) = model.volume(volume) else { return Ok(()) };
            let host = |n: u8| LabelHost {
                name: parse(&format!("host-{n}")),
                nqn: Some(parse(&format!("nqn.2026-11.dev.orlop:host-{n}"))),
                authenticated: n.is_multiple_of(2),
                ..LabelHost::of(
                    &parse("any"),
                    &HostRecord::default(),
                    Grant { read_only: n == 3 },
                    orlop_api::Protocol::Nvme,
                )
            };
            let l = Label { hosts: (0..hosts % 4).map(host).collect(), ..l };
            ok("relabel", pool.relabel(&l, &soon()))?;
            model.volumes.insert(l.id, (l, content));
        }
        Step::Destroy { volume } => {
            let Some((l, content)) = model.volume(volume) else { return Ok(()) };
            let needed = model.snapshots.keys().any(|key| key.volume == l.id);
            match pool.destroy(l.id, &soon()) {
                // Where snapshots live on their volume.
                Err(PoolError::Precondition { .. }) if needed => reads(pool, l.id, &content)?,
                destroyed => {
                    same("destroy", ok("destroy", destroyed)?, Change::Done)?;
                    model.volumes.remove(&l.id);
                }
            }
        }
        Step::Create { .. } | Step::Clone { .. } | Step::Snapshot { .. } | Step::Reopen => {}
    }
    Ok(())
}

/// Numbers that look random and are the same at every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u8 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 24) as u8
    }
}

fn step(dice: &mut Dice) -> Step {
    let (volume, other, flag) = (dice.roll(), dice.roll(), dice.roll().is_multiple_of(2));
    match dice.roll() % 20 {
        0..3 => Step::Create { mib: other, thick: flag },
        3 => Step::CreateAgain { volume },
        4..8 => Step::Write { volume, piece: dice.roll(), seed: dice.roll() },
        8 => Step::Grow { volume, mib: other },
        9 => Step::Shrink { volume },
        10 => Step::Set { volume, property: other, thick: flag },
        11 => Step::Relabel { volume, hosts: other },
        12..15 => Step::Snapshot { volume, and: flag.then_some(other) },
        15..17 => Step::Clone { snapshot: volume, mib: other },
        17 => Step::Destroy { volume },
        18 => Step::DestroySnapshot { snapshot: volume },
        _ => Step::Reopen,
    }
}

pub(super) const ALL: &[(&str, Run)] = &[("histories are those of a model", histories)];

fn histories(subject: &Subject, pool: &dyn Pool) -> Check {
    // How many and how long: what takes no time, and what waits for transaction groups or processes in an
    // emulated guest.
    let (histories, steps) = match pool.kind() {
        PoolKind::Lvm => (1, 30),
        PoolKind::Zfs => (1, 40),
        PoolKind::File | PoolKind::Sim => (10, 60),
    };
    for seed in 1..=histories {
        let mut dice = Dice(0x9E37_79B9_7F4A_7C15u64.wrapping_mul(seed));
        let steps: Vec<Step> = (0..steps).map(|_| step(&mut dice)).collect();
        replay(subject, &steps)?;
        tidy(pool)?;
    }
    Ok(())
}
