//! The machine's disks: the inventory that the API shows, and the proof that a disk may be formatted.
//!
//! Called by the engine for reads, and by pools that are made of whole disks. Never writes.

use std::time::Duration;

use orlop_api::{ByteSize, Disk, DiskHealth, DiskHealthState, DiskUsage};

use super::context::Context;
use super::{PoolEnv, Result};
use crate::kernel::Deadline;
use crate::kernel::block::{self, Content};
use crate::kernel::disks::{self, DiskInfo};
use crate::kernel::smart::{self, Smart};

/// How long someone else may look at a disk.
const LOOKED_AT: Duration = Duration::from_secs(1);

/// All disks, and whether a pool may be made on each. Probes every disk that nobody holds: not for a
/// path that is taken often.
pub fn inventory(env: &PoolEnv, deadline: &Deadline) -> std::io::Result<Vec<Disk>> {
    Ok(disks::all(env.loops_as_disks)?
        .into_iter()
        .map(|d| Disk {
            usage: usage(&d, deadline),
            name: d.name,
            by_id: d.by_id.map(|p| p.display().to_string()),
            size: ByteSize(d.size),
            rotational: d.rotational,
            model: d.model,
            serial: d.serial,
            health: DiskHealth::default(),
        })
        .collect())
}

/// What a disk says of itself. `None`: it sleeps. That it can't be asked is no error: most virtual disks
/// can't.
pub fn health(env: &PoolEnv, disk: &DiskInfo, deadline: &Deadline) -> Option<DiskHealth> {
    let unknown = |reason| Some(DiskHealth { reason: Some(reason), ..DiskHealth::default() });
    if env.simulated {
        return unknown("this is a simulation".into());
    }
    let told = match smart::read(&disk.path, deadline) {
        Ok(Smart::Told(told)) => told,
        Ok(Smart::Silent(why)) => return unknown(why),
        Ok(Smart::Asleep) => return None,
        Err(e) => return unknown(chain(&e)),
    };
    let state = if told.failing.is_some() { DiskHealthState::Failed } else { DiskHealthState::Passed };
    Some(DiskHealth {
        state,
        reason: told.failing,
        temperature: told.temperature,
        used_percent: told.used_percent,
        power_on_hours: told.power_on_hours,
        media_errors: told.media_errors,
        reallocated_sectors: told.reallocated_sectors,
        observed: None,
    })
}

/// Whether a pool may be made on it.
fn usage(disk: &DiskInfo, deadline: &Deadline) -> DiskUsage {
    if !disk.holders.is_empty() {
        return DiskUsage::Used(disk.holders.join(", "));
    }
    match block::content(&disk.path, deadline) {
        Ok(Content::Held) => DiskUsage::Used("something in the kernel (a pool, swap)".into()),
        Ok(Content::Found(what)) => DiskUsage::Data(what),
        // A table that the probe no longer finds may still have partitions in the kernel.
        Ok(Content::Blank) if !disk.partitions.is_empty() => {
            DiskUsage::Data(format!("partitions: {}", disk.partitions.join(", ")))
        }
        Ok(Content::Blank) => DiskUsage::Blank,
        Err(e) => DiskUsage::Unreadable(chain(&e)),
    }
}

/// An error with its sources. (The engine has the same; a pool may not know the engine.)
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(e) = next {
        text = format!("{text}: {e}");
        next = e.source();
    }
    text
}

/// Finds a disk by the name that was asked for.
pub(super) fn resolve(ctx: &Context, env: &PoolEnv, asked: &str) -> Result<DiskInfo> {
    let all = disks::all(env.loops_as_disks).map_err(ctx.io("listing disks"))?;
    disks::find(&all, asked)
        .map_err(ctx.io(format!("looking at disk {asked}")))?
        .cloned()
        .ok_or_else(|| ctx.precondition(format!("there is no whole disk called {asked}")))
}

/// The disks of these names, all of them proven blank. Otherwise says of every one what was found (R1).
pub(super) fn prove_blank(
    ctx: &Context,
    env: &PoolEnv,
    asked: &[String],
    deadline: &Deadline,
) -> Result<Vec<DiskInfo>> {
    let mut disks: Vec<DiskInfo> = Vec::new();
    let mut not = Vec::new();
    for name in asked {
        let disk = resolve(ctx, env, name)?;
        // An inventory that runs at the same time has each disk for itself for a moment.
        let patience = deadline.at_most(LOOKED_AT);
        let mut found = usage(&disk, deadline);
        while matches!(found, DiskUsage::Used(_)) && disk.holders.is_empty() {
            if patience.pause(Duration::from_millis(100)).is_err() {
                break;
            }
            found = usage(&disk, deadline);
        }
        match found {
            DiskUsage::Blank => {}
            DiskUsage::Used(by) => not.push(format!("{name} is used by {by}")),
            DiskUsage::Data(what) => not.push(format!("{name} is not blank: {what}")),
            DiskUsage::Unreadable(why) => not.push(format!("{name} can't be proven blank: {why}")),
        }
        if disks.iter().any(|d| d.path == disk.path) {
            not.push(format!("{name} is named twice"));
        }
        disks.push(disk);
    }
    ctx.check(deadline, "probing disks")?;
    if not.is_empty() { Ok(disks) } else { Err(ctx.precondition(not.join("; "))) }
}
