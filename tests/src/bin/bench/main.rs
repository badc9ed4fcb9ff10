//! The benchmark. Figures of the simulated daemon are taken on this machine, those of the appliance in a
//! guest, beside the same work typed as a bare shell loop in the same run. Machines are noisy: ratios are
//! medians over pairs, with their spread.
//!
//! Writes `target/bench/results.json` and prints a table (`report` runs nothing); with `--docs` it brings docs/performance.md up to date with it. A part is run alone by its name: `sim`, `scale`, `files`, `guest`,
//! `targets` (or one of its own parts: `targets-throughput`, `targets-attach`, `targets-thousand`), `engine` (or
//! `engine-restarts`, `engine-queue`, `engine-starts`), `shim`, and `listing`, which is in no other run.

#![allow(clippy::print_stdout, clippy::disallowed_methods)]
mod by_hand;
mod daemon;
mod engine;
mod files;
mod guest;
mod report;
mod results;
mod scale;
mod shim;
mod sim;
mod targets;
mod throughput;

use std::path::Path;

use anyhow::Result;
use results::Results;

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target").canonicalize()?;
    let (flags, names): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|a| a.starts_with("--"));
    anyhow::ensure!(flags.iter().all(|f| f == "--docs") && names.len() < 2, "usage: bench [PART] [--docs]");
    let only = names.into_iter().next();
    let wanted = |part: &str| only.as_deref().is_none_or(|o| o == part);
    let mut results = Results::default();
    if wanted("sim") {
        println!("simulated daemon, load from this machine:");
        results.begin("sim");
        sim::run(&root, &mut results)?;
    }
    if wanted("scale") {
        println!("simulated daemon, as volumes grow in number:");
        results.begin("scale");
        scale::run(&root, &mut results)?;
    }
    if wanted("files") {
        println!("file pool on XFS, on this machine:");
        results.begin("files");
        files::run(&root, &mut results)?;
    }
    if wanted("guest") {
        println!("appliance in a guest:");
        results.begin("guest");
        guest::run(&root, &mut results)?;
    }
    if wanted("targets") || targets::PARTS.iter().any(|part| wanted(part)) {
        println!("targets in a guest:");
        targets::run(&root, |part| wanted("targets") || wanted(part), &mut results)?;
    }
    if wanted("engine") || engine::PARTS.iter().any(|part| wanted(part)) {
        println!("the engine in a guest:");
        results.begin("engine");
        engine::run(&root, |part| wanted("engine") || wanted(part), &mut results)?;
    }
    if wanted("shim") {
        println!("the driver of Kubernetes:");
        results.begin("shim");
        shim::run(&root, &mut results)?;
    }
    if only.as_deref() == Some("listing") {
        println!("ten thousand volumes in a guest:");
        results.begin("listing");
        guest::long_listing(&root, &mut results)?;
    }
    results.write(&root.join("bench"))?;
    match flags.is_empty() {
        true => Ok(()),
        false => report::write(&root.join("../docs"), results.figures()),
    }
}
