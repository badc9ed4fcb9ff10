//! A few rounds of `just torture`, in guests of their own.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use orlop_tests::torture::{Appliance, Fault, Planner, Shape, Torture};

use crate::world::World;

const CLIENTS: u8 = 3;
const SEED: u64 = 1;

/// Each of these happens once; the order and the rest follow from the seed.
const FAULTS: [Fault; 3] = [Fault::PowerCut, Fault::KillAt("", ""), Fault::LostJournalAndKilled("settled")];

/// No scenario behind it needs the others' guests, which would take the processors from its own.
pub fn short(w: &mut World) -> Result<()> {
    w.lab.appliance.power_cut()?;
    for initiator in std::iter::once(&mut w.lab.initiator).chain(&mut w.lab.others) {
        initiator.guest.power_cut()?;
    }
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/system/torture");
    let mut machine = Appliance::start(&dir, SEED, |_| {})?;
    let pools = Torture::pools(&machine, CLIENTS);
    let mut torture = Torture::new(&mut machine, CLIENTS)?;
    let shape = |fault| Shape {
        clients: CLIENTS,
        ops: 6,
        longest: Duration::from_millis(2000),
        faults: vec![fault],
        pools: pools.clone(),
    };
    for (n, fault) in (0..).zip(FAULTS) {
        let round = Planner::new(SEED + n, shape(fault)).round();
        if let Some(v) = torture.round(&round)? {
            bail!("{}\n{}\n{round}\n{}", v.wrong.join("\n"), v.history.join("\n"), torture.log());
        }
    }
    println!("     {}", torture.summary());
    Ok(())
}
