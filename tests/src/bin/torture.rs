//! `just torture`: clients do random operations on an appliance, from a seed, while its power, its daemon, its disks, its journal
//! and its network fail; after each of these everything that must hold is looked at. The first thing that does not hold ends it,
//! with the seed and the shortest history that shows it.

#![allow(clippy::print_stdout, clippy::disallowed_methods)]

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use orlop_tests::torture::{Appliance, Fault, Machine, Planner, Round, Shape, Simulated, Torture, shrink};

/// Random operations while things fail
#[derive(Debug, Parser)]
#[command(name = "torture", max_term_width = 110)]
struct Args {
    /// A simulated daemon on this machine instead of an appliance in QEMU
    #[arg(long)]
    sim: bool,
    /// Where randomness begins [default: the time]
    #[arg(long)]
    seed: Option<u64>,
    /// How long it goes on
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// Rounds after which it ends, even before that
    #[arg(long)]
    rounds: Option<u64>,
    /// Power cuts after which it ends, even after that
    #[arg(long, conflicts_with = "sim")]
    cuts: Option<u64>,
    /// Goes on until the daemon has died at each of its failpoints, even after that
    #[arg(long)]
    every_failpoint: bool,
    /// Clients at a time
    #[arg(long, default_value_t = 3)]
    clients: u8,
    /// Operations of each in a round, at most
    #[arg(long, default_value_t = 8)]
    ops: u8,
    /// Faults to choose from, by their names in the summary [default: all]
    #[arg(long, value_delimiter = ',')]
    faults: Vec<String>,
    /// Minutes for finding the shortest history of a failure
    #[arg(long, default_value_t = 5.0)]
    shrink: f64,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let seed = args.seed.unwrap_or(now.as_secs());
    println!("torture: seed {seed}, {} clients", args.clients);
    let mut machine: Box<dyn Machine> = if args.sim {
        Box::new(Simulated::start()?)
    } else {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/torture");
        Box::new(Appliance::start(&dir, seed, |_| {})?)
    };
    let known = machine.faults();
    let wanted = |f: &Fault| args.faults.is_empty() || args.faults.iter().any(|name| name == f.name());
    let shape = Shape {
        clients: args.clients,
        ops: args.ops,
        longest: if args.sim { Duration::from_millis(120) } else { Duration::from_millis(2500) },
        faults: known.iter().copied().filter(wanted).collect(),
        pools: Torture::pools(&*machine, args.clients),
    };
    if shape.faults.is_empty() {
        let names: std::collections::BTreeSet<_> = known.iter().map(|f| f.name()).collect();
        anyhow::bail!("--faults: none of {}", names.into_iter().collect::<Vec<_>>().join(", "));
    }
    let mut rounds = Vec::new();
    let Some(violation) = run(&args, seed, shape, &mut *machine, &mut rounds)? else {
        return Ok(ExitCode::SUCCESS);
    };
    println!("\nWhat does not hold:");
    violation.wrong.iter().for_each(|w| println!("  {w}"));
    println!("The last round, as the clients heard it:");
    violation.history.iter().for_each(|line| println!("  {line}"));
    println!("The end of the log:\n{}", machine.log());
    let within = Duration::from_secs_f64(args.shrink * 60.0);
    println!("looking for the shortest history that shows it, for at most {:.0} s", within.as_secs_f64());
    let (shortest, again) =
        shrink(&mut *machine, &rounds, args.clients, within, |what| println!("  {what}"))?;
    match again {
        true => println!("\nSeed {seed}. The shortest history that shows it:"),
        false => println!("\nSeed {seed}. It was not seen again; the whole history:"),
    }
    let from = if again { 0 } else { shortest.len().saturating_sub(8) };
    for (n, round) in shortest.iter().enumerate().skip(from) {
        println!("round {}:\n{round}", n + 1);
    }
    Ok(ExitCode::FAILURE)
}

/// Until time is up or something does not hold any more. `rounds`: what was gone through.
fn run(
    args: &Args,
    seed: u64,
    shape: Shape,
    machine: &mut dyn Machine,
    rounds: &mut Vec<Round>,
) -> Result<Option<orlop_tests::torture::Violation>> {
    let started = Instant::now();
    let until = Duration::from_secs_f64(args.minutes * 60.0);
    let mut planner = Planner::new(seed, shape);
    let mut torture = Torture::new(machine, args.clients)?;
    let mut told = Instant::now();
    loop {
        let enough = match args.cuts {
            Some(cuts) => torture.summary().faults.get(Fault::PowerCut.name()).is_some_and(|n| *n >= cuts),
            None => started.elapsed() >= until,
        };
        let enough = enough && (!args.every_failpoint || planner.places_left() == 0);
        if enough || args.rounds.is_some_and(|most| torture.summary().rounds >= most) {
            println!(
                "torture: all of it held. {:.0} s: {}",
                started.elapsed().as_secs_f64(),
                torture.summary()
            );
            return Ok(None);
        }
        let round = planner.round();
        rounds.push(round.clone());
        let began = Instant::now();
        let result = torture.round(&round);
        if let Err(e) = &result {
            println!("torture: seed {seed}, round {}: {e:#}\n{round}\n{}", rounds.len(), torture.log());
        }
        let violation = result?;
        if let Fault::KillAt(verb, stage) = round.fault
            && !torture.has_reached((verb, stage))
        {
            planner.not_reached(verb, stage);
        }
        if violation.is_some() {
            println!(
                "torture: seed {seed}, round {} ({}): BROKEN. {}",
                rounds.len(),
                round.fault,
                torture.summary()
            );
            return Ok(violation);
        }
        // Each round of an appliance, and now and then of a simulation, which has hundreds a minute.
        if !args.sim || told.elapsed() > Duration::from_secs(5) {
            told = Instant::now();
            println!(
                "torture: {:6.0} s, round {:4}: held, {:.1} s, {}",
                started.elapsed().as_secs_f64(),
                rounds.len(),
                began.elapsed().as_secs_f64(),
                round.fault
            );
        }
    }
}
