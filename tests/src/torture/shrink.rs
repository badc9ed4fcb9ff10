//! The shortest history that still shows what a long one has shown: rounds, clients and operations are left out one after
//! another, and what is left is tried again from the beginning.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::plan::Round;
use super::{Machine, Torture};

/// Chance plays a part in when a process dies: so often is one history tried before it is believed to show nothing.
const TRIES: u32 = 3;

/// What is left of `rounds` after `within`. The second: whether even the whole of it did not show it again.
pub fn shrink(
    machine: &mut dyn Machine,
    rounds: &[Round],
    clients: u8,
    within: Duration,
    mut tell: impl FnMut(&str),
) -> Result<(Vec<Round>, bool)> {
    let until = Instant::now() + within;
    let mut shortest = rounds.to_vec();
    let mut again = false;
    // The last rounds alone, more and more of them.
    let mut last = 1;
    while last < shortest.len() && Instant::now() < until {
        let tail = shortest[shortest.len() - last..].to_vec();
        if shows(machine, &tail, clients, until)? {
            (shortest, again) = (tail, true);
            break;
        }
        last *= 2;
    }
    if !again {
        again = shows(machine, &shortest, clients, until)?;
        if !again {
            return Ok((shortest, false));
        }
    }
    // One of anything left out, the largest first, until nothing can be.
    let mut shorter = true;
    while shorter && Instant::now() < until {
        shorter = false;
        tell(&format!("{} rounds, {} operations still show it", shortest.len(), operations(&shortest)));
        for part in parts(&shortest) {
            if Instant::now() >= until {
                break;
            }
            let Some(less) = without(&shortest, part) else { continue };
            if shows(machine, &less, clients, until)? {
                (shortest, shorter) = (less, true);
                break;
            }
        }
    }
    Ok((shortest, true))
}

/// A part of a history: a round, a client's work in it, an operation in that.
type Part = (usize, Option<(usize, Option<usize>)>);

fn parts(rounds: &[Round]) -> Vec<Part> {
    let whole = (0..rounds.len()).map(|r| (r, None));
    let clients = rounds.iter().enumerate().flat_map(|(r, round)| {
        let busy = round.work.iter().enumerate().filter(|(_, ops)| !ops.is_empty());
        busy.map(move |(c, _)| (r, Some((c, None))))
    });
    let ops = rounds.iter().enumerate().flat_map(|(r, round)| {
        let of_client = |(c, ops): (usize, &Vec<_>)| (0..ops.len()).map(move |o| (r, Some((c, Some(o)))));
        round.work.iter().enumerate().flat_map(of_client).collect::<Vec<_>>()
    });
    whole.chain(clients).chain(ops).collect()
}

fn without(rounds: &[Round], (r, part): Part) -> Option<Vec<Round>> {
    let mut less = rounds.to_vec();
    match part {
        None if rounds.len() == 1 => return None,
        None => drop(less.remove(r)),
        Some((c, None)) => less[r].work[c].clear(),
        Some((c, Some(o))) => drop(less[r].work[c].remove(o)),
    }
    Some(less)
}

fn operations(rounds: &[Round]) -> usize {
    rounds.iter().flat_map(|r| &r.work).map(Vec::len).sum()
}

fn shows(machine: &mut dyn Machine, rounds: &[Round], clients: u8, until: Instant) -> Result<bool> {
    for _ in 0..TRIES {
        machine.renew()?;
        let mut torture = Torture::new(machine, clients)?;
        for round in rounds {
            if torture.round(round)?.is_some() {
                return Ok(true);
            }
            if Instant::now() >= until {
                return Ok(false);
            }
        }
    }
    Ok(false)
}
