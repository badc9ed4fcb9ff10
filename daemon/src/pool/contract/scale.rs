//! How long a listing of many volumes takes, beside the command that lists the same. Not a check: for `just bench`.

use std::process::{Command, Stdio};

use super::*;

/// How many are made at a time: those of one moment share a transaction group.
const AT_ONCE: usize = 16;

/// Makes the pool with that many labelled zvols and lists them in turns: seconds of the pool's listing, and of one
/// `zfs list` with the same columns. Leaves the pool as it is.
pub fn listing(subject: &Subject, count: usize, rounds: usize) -> Result<Vec<(f64, f64)>, String> {
    let pool = ok("create", super::super::create(&subject.spec, &subject.env, &soon()))?;
    let command = crate::pool::zfs_listing(pool.name());
    // What is measured is the reading; ten thousand device nodes are another matter.
    let parent = command.last().map(String::as_str).unwrap_or_default();
    zfs(&["set".into(), "volmode=none".into(), parent.into()])?;
    let made: Result<Vec<()>, String> = std::thread::scope(|s| {
        let make = |n: usize| {
            let pool = pool.as_ref();
            s.spawn(move || {
                (n..count)
                    .step_by(AT_ONCE)
                    .try_for_each(|_| ok("create", pool.create(&thin(16), &soon())).map(drop))
            })
        };
        let threads: Vec<_> = (0..AT_ONCE).map(make).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err("a thread panicked".into()))).collect()
    });
    made?;
    let mut samples = Vec::new();
    for _ in 0..rounds {
        let start = Instant::now();
        zfs(&command)?;
        let bare = start.elapsed();
        let start = Instant::now();
        let listing = ok("list", pool.list(&soon()))?;
        let ours = start.elapsed();
        same("volumes in the listing", (listing.volumes.len(), listing.strays.len()), (count, 0))?;
        samples.push((ours.as_secs_f64(), bare.as_secs_f64()));
    }
    Ok(samples)
}

/// To its end, with its output read and thrown away by a program that does nothing else.
fn zfs(args: &[String]) -> Check {
    let mut child = ok("zfs", Command::new("zfs").args(args).stdout(Stdio::piped()).spawn())?;
    let read = child.stdout.take().map_or(Ok(0), |mut out| std::io::copy(&mut out, &mut std::io::sink()));
    ok("reading", read)?;
    let status = ok("zfs", child.wait())?;
    expect(status.success(), "zfs", &status)
}
