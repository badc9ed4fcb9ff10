//! The benchmark. Figures of the simulated daemon are taken on this machine, those of the appliance in a
//! guest, beside the same work typed as a bare shell loop in the same run. Machines are noisy: ratios are
//! medians over pairs, with their spread.
//!
//! Writes `target/bench/results.json` and prints a table. A part is run alone by its name: `sim`, `files`, `guest`,
//! `targets` (or one of its own parts: `targets-throughput`, `targets-attach`, `targets-thousand`), and `listing`, which is in
//! no other run.

#![allow(clippy::print_stdout, clippy::disallowed_methods)]
mod by_hand;
mod daemon;
mod files;
mod guest;
mod results;
mod sim;
mod targets;
mod throughput;

use std::path::Path;

use anyhow::Result;
use results::Results;

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target").canonicalize()?;
    let only = std::env::args().nth(1);
    let wanted = |part: &str| only.as_deref().is_none_or(|o| o == part);
    let mut results = Results::default();
    if wanted("sim") {
        println!("simulated daemon, load from this machine:");
        sim::run(&root, &mut results)?;
    }
    if wanted("files") {
        println!("file pool on XFS, on this machine:");
        files::run(&root, &mut results)?;
    }
    if wanted("guest") {
        println!("appliance in a guest:");
        guest::run(&root, &mut results)?;
    }
    if wanted("targets") || targets::PARTS.iter().any(|part| wanted(part)) {
        println!("targets in a guest:");
        targets::run(&root, |part| wanted("targets") || wanted(part), &mut results)?;
    }
    if only.as_deref() == Some("listing") {
        println!("ten thousand volumes in a guest:");
        guest::long_listing(&root, &mut results)?;
    }
    results.write(&root.join("bench"))
}
