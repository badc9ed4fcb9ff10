//! A short torture of a simulated daemon: clients at random work while it is killed, dies at failpoints, loses its journal and
//! its connections. `just torture` goes on for as long as one likes, on an appliance.

use std::time::{Duration, Instant};

use orlop_tests::torture::{Fault, Machine, Planner, Shape, Simulated, Torture};

const CLIENTS: u8 = 4;

#[test]
fn a_simulated_daemon_keeps_what_it_acknowledged() -> anyhow::Result<()> {
    // Another one each day, so that in time all of it is tried; told, so that it can be tried again.
    let days = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs() / 86_400;
    for seed in [1, days] {
        let mut machine = Simulated::start()?;
        let shape = Shape {
            clients: CLIENTS,
            ops: 8,
            longest: Duration::from_millis(100),
            faults: machine.faults(),
            pools: Torture::pools(&machine, CLIENTS),
        };
        let mut planner = Planner::new(seed, shape);
        let mut torture = Torture::new(&mut machine, CLIENTS)?;
        let until = Instant::now() + Duration::from_secs(15);
        while Instant::now() < until {
            let round = planner.round();
            if let Some(v) = torture.round(&round)? {
                panic!(
                    "seed {seed}, `just torture --sim --clients {CLIENTS} --seed {seed}` finds the shortest history:\n{}\n{}\n{round}",
                    v.wrong.join("\n"),
                    v.history.join("\n")
                );
            }
            if let Fault::KillAt(verb, stage) = round.fault
                && !torture.has_reached((verb, stage))
            {
                planner.not_reached(verb, stage);
            }
        }
        let summary = torture.summary();
        println!("seed {seed}: {summary}");
        assert!(summary.operations > 50 && summary.faults.len() > 3, "hardly anything was done: {summary}");
    }
    Ok(())
}
