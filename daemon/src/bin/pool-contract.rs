//! Runs the contract suite of pools against one pool, where that pool can be had: in a guest with ZFS,
//! on spare disks. Prints a line for each check, then `N passed, N failed`.
//!
//! ```text
//! pool-contract zfs|lvm <disk>...
//! pool-contract file <directory on btrfs or XFS>
//! pool-contract file-disk xfs|btrfs <disk>
//! pool-contract sim <directory>
//! ```
//!
//! `--only <text>,...` before that runs only the checks that have one of the texts in their name. `--leave <file>`
//! leaves volumes behind, and the specification in a file; after a power cut `--find <file>` alone looks
//! for them and removes all. `--listing <count> <rounds>` makes that many volumes in a `zfs` pool and prints, for each
//! round, the seconds that a listing takes and those of one `zfs list` of the same.

use std::process::ExitCode;

use orlopd::model::{PoolMedium, PoolSpec};
use orlopd::pool::PoolEnv;
use orlopd::pool::contract::{self, Subject};

const USAGE: &str =
    "usage: pool-contract zfs|lvm <disk>... | file <directory> | file-disk xfs|btrfs <disk> | sim <directory>
       pool-contract --find <file> | --listing <count> <rounds> zfs <disk>...
What it is given must be empty, or blank disks: all that is made there is destroyed again.";

fn subject(args: &[&str]) -> Option<Subject> {
    let create = match args {
        ["zfs", disks @ ..] if !disks.is_empty() => serde_json::json!({"kind": "zfs", "disks": disks}),
        // Small: thick volumes are written in full, and some fill the pool.
        ["lvm", disks @ ..] if !disks.is_empty() => {
            serde_json::json!({"kind": "lvm", "disks": disks, "thin_size": 640 << 20})
        }
        ["file", directory] => serde_json::json!({"kind": "file", "directory": directory}),
        ["sim", directory] => serde_json::json!({"kind": "sim", "directory": directory}),
        ["file-disk", filesystem, disk] => {
            serde_json::json!({"kind": "file", "disks": [disk], "filesystem": filesystem})
        }
        _ => return None,
    };
    let mut create = create;
    create["name"] = "contract".into();
    let ask: orlop_api::PoolCreate = serde_json::from_value(create).ok()?;
    let spec = PoolSpec::try_from(ask).ok()?;
    Some(Subject { env: env(&spec), spec })
}

fn env(spec: &PoolSpec) -> PoolEnv {
    let loops_as_disks = matches!(&spec.medium, PoolMedium::FileDisk { disk, .. } if disk.contains("loop"));
    // Several of these may run on one machine, each with a pool of the same name: an export of one must not unmount
    // the volumes of another.
    let volumes = format!("/var/lib/orlop/volumes/of-{}", spec.kind().as_str()).into();
    PoolEnv { loops_as_disks, volumes, ..PoolEnv::default() }
}

/// Leaves volumes, and the specification by which they are found, durably.
fn leave(subject: &Subject, file: &str) -> Result<(), String> {
    let json = serde_json::to_string(&subject.spec).map_err(|e| e.to_string())?;
    std::fs::write(file, json).map_err(|e| e.to_string())?;
    std::fs::File::open(file).and_then(|f| f.sync_all()).map_err(|e| e.to_string())?;
    contract::reboot::leave(subject)
}

fn find(file: &str) -> Result<(), String> {
    let json = std::fs::read_to_string(file).map_err(|e| e.to_string())?;
    let spec: PoolSpec = serde_json::from_str(&json).map_err(|e| e.to_string())?;
    contract::reboot::find(&Subject { env: env(&spec), spec })
}

fn listing(count: &str, rounds: &str, args: &[&str]) -> Result<(), String> {
    let number = |text: &str| text.parse().map_err(|e| format!("{text}: {e}"));
    let (count, rounds) = (number(count)?, number(rounds)?);
    let subject = subject(args).filter(|_| args.first() == Some(&"zfs")).ok_or(USAGE)?;
    for (ours, bare) in contract::scale::listing(&subject, count, rounds)? {
        println!("{ours:.3} {bare:.3}");
    }
    Ok(())
}

fn finish(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => {
            println!("1 passed, 0 failed");
            ExitCode::SUCCESS
        }
        Err(why) => {
            println!("FAILED {why}\n0 passed, 1 failed");
            ExitCode::FAILURE
        }
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["--find", file] => return finish(find(file)),
        ["--listing", count, rounds, rest @ ..] => {
            return match listing(count, rounds, rest) {
                Ok(()) => ExitCode::SUCCESS,
                Err(why) => {
                    eprintln!("{why}");
                    ExitCode::FAILURE
                }
            };
        }
        ["--leave", file, rest @ ..] => {
            let Some(subject) = subject(rest) else {
                eprintln!("{USAGE}");
                return ExitCode::from(2);
            };
            return finish(leave(&subject, file));
        }
        _ => {}
    }
    let (only, args) = match args.as_slice() {
        ["--only", only, rest @ ..] => (*only, rest),
        all => ("", all),
    };
    let Some(subject) = subject(args) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let (passed, failed) =
        contract::run_some(&subject, &|name| only.split(',').any(|o| name.contains(o)), &mut |r| match &r
            .result
        {
            Ok(()) => println!("ok     {} ({:.2?})", r.name, r.took),
            Err(why) => println!("FAILED {} ({:.2?}): {why}", r.name, r.took),
        });
    println!("{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
