//! The daemon as a process: what /proc/self says of it (proc(5)).
//!
//! Called when someone scrapes. These files are made from the kernel's memory: no disk is asked.

use std::fs;

use super::catalogue as m;
use super::scraped::Scraped;

/// USER_HZ: times in /proc are in these parts of a second, whatever the kernel's own clock is.
const TICKS: f64 = 100.0;

/// Adds what is known.
pub(super) fn add(out: &mut Scraped) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let of = |key: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(key))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    // In KiB.
    out.add(&m::PROCESS_RESIDENT, [], of("VmRSS:").unwrap_or(0) << 10);
    out.add(&m::PROCESS_THREADS, [], of("Threads:").unwrap_or(0));
    out.add(&m::PROCESS_FDS, [], open_fds());
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    if let Some(limit) = limit {
        out.add(&m::PROCESS_MAX_FDS, [], limit);
    }
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    if let Some((cpu, started)) = times(&stat) {
        out.add(&m::PROCESS_CPU, [], cpu as f64 / TICKS);
        let booted = fs::read_to_string("/proc/stat").unwrap_or_default();
        let booted = booted.lines().find_map(|l| l.strip_prefix("btime ")?.trim().parse::<u64>().ok());
        if let Some(booted) = booted {
            out.add(&m::PROCESS_START, [], booted as f64 + started as f64 / TICKS);
        }
    }
}

fn open_fds() -> u64 {
    // Less the one that counts.
    fs::read_dir("/proc/self/fd").map_or(0, |d| (d.count() as u64).saturating_sub(1))
}

/// utime and stime together, and starttime, in ticks: fields 14, 15 and 22. Counted from behind the name, which may have
/// spaces and parentheses.
fn times(stat: &str) -> Option<(u64, u64)> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |n: usize| fields.get(n - 3)?.parse::<u64>().ok();
    Some((field(14)? + field(15)?, field(22)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_does_not_confuse() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 12 30 0 0 20 0 9 0 5500 1000 200";
        assert_eq!(times(stat), Some((42, 5500)));
        assert_eq!(times("7 (a"), None);
    }
}
