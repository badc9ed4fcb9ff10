//! The zpool itself: made, imported, recognized, removed.
//!
//! Called by the pool. The zpool is ours if its root dataset carries the user property `dev.orlop:pool`
//! with our pool's name: it is set by the very command that makes the zpool. A zpool of that name
//! without it is foreign and is never changed.

use std::path::PathBuf;

use orlop_api::PoolLayout;
use serde::{Deserialize, Serialize};

use super::parent;
use crate::kernel::block;
use crate::kernel::disks::DiskInfo;
use crate::kernel::exec::{Output, Tool};
use crate::kernel::{Deadline, disks as kernel_disks};
use crate::pool::context::Context;
use crate::pool::{PoolEnv, PoolError, Result, disks};

/// Where disks have names that stay.
const BY_ID: &str = "/dev/disk/by-id";

/// The user property that marks a zpool as an Orlop pool.
const MARKER: &str = "dev.orlop:pool";

/// What it holds. Versioned.
#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    v: u32,
    pool: String,
}

/// Whose a zpool is.
#[derive(Debug, PartialEq, Eq)]
enum Owner {
    /// Not imported, or not there at all.
    Absent,
    /// Ours.
    Ours,
    /// Somebody else's: why.
    Foreign(String),
}

struct Tools<'a> {
    ctx: &'a Context,
    zpool: Tool,
    zfs: Tool,
}

impl<'a> Tools<'a> {
    fn new(ctx: &'a Context) -> Result<Self> {
        let locate = |name| Tool::locate(name).map_err(|e| ctx.exec(e));
        Ok(Self { ctx, zpool: locate("zpool")?, zfs: locate("zfs")? })
    }

    fn run(&self, tool: &Tool, args: &[&str], deadline: &Deadline) -> Result<Output> {
        tool.run(args, deadline).map_err(|e| self.ctx.exec(e))
    }

    fn must(&self, tool: &Tool, args: &[&str], deadline: &Deadline) -> Result<String> {
        let output = self.run(tool, args, deadline)?.success().map_err(|e| self.ctx.exec(e))?;
        Ok(output.text().map_err(|e| self.ctx.exec(e))?.to_string())
    }

    fn name(&self) -> &'a str {
        self.ctx.pool.as_str()
    }

    fn owner(&self, deadline: &Deadline) -> Result<Owner> {
        // All of them, and looked through here: "no such pool" and "failed" have the same status.
        let all = self.must(&self.zpool, &["list", "-H", "-o", "name"], deadline)?;
        if !all.lines().any(|l| l == self.name()) {
            return Ok(Owner::Absent);
        }
        let args = ["get", "-H", "-p", "-o", "value,source", MARKER, self.name()];
        let text = self.must(&self.zfs, &args, deadline)?;
        let Some(("local", value)) = text.trim_end().rsplit_once('\t').map(|(v, s)| (s, v)) else {
            return Ok(Owner::Foreign("it carries no mark of ours".into()));
        };
        match serde_json::from_str::<Marker>(value) {
            Ok(m) if m.v > 1 => Err(self.ctx.unsupported(format!(
                "its zpool has version {}, and this daemon knows 1: update the daemon",
                m.v
            ))),
            Ok(m) if m.pool == self.name() => Ok(Owner::Ours),
            Ok(m) => Ok(Owner::Foreign(format!("it is marked as pool {}", m.pool))),
            Err(_) => Ok(Owner::Foreign("its mark can't be read".into())),
        }
    }

    fn refuse(&self, why: &str) -> PoolError {
        self.ctx.precondition(format!("there is a zpool of that name that is not ours: {why}"))
    }

    /// The numbers of zpools of that name that are on disks and not imported: for after an import that
    /// failed. The list has no form for programs; it names each zpool on a line and its number on the next.
    fn on_disks(&self, deadline: &Deadline) -> Result<Vec<String>> {
        let output = self.run(&self.zpool, &["import", "-d", BY_ID, "-d", "/dev"], deadline)?;
        Ok(numbers(&String::from_utf8_lossy(&output.stdout), self.name()))
    }

    /// Imports it, if it can be found, and says whose it is. A foreign one is let go again.
    fn import(&self, guid: Option<u64>, force: bool, deadline: &Deadline) -> Result<(Owner, Output)> {
        // -N: nothing is mounted. No cache file: what is imported, and when, the daemon decides. Forced only
        // where a person says so: a zpool that another machine has imported would be destroyed by two writers.
        let mut args = vec!["import", "-N", "-o", "cachefile=none", "-d", BY_ID, "-d", "/dev"];
        if force {
            args.push("-f");
        }
        // By its number where that is known: there may be disks of another one that had the name.
        let number = guid.map(|g| g.to_string());
        args.push(number.as_deref().unwrap_or(self.name()));
        let output = self.run(&self.zpool, &args, deadline)?;
        let owner = self.owner(deadline)?;
        if matches!(owner, Owner::Foreign(_)) && output.code == Some(0) {
            self.must(&self.zpool, &["export", self.name()], deadline)?;
        }
        // What has the number may have another name: then it is not the one that is meant.
        if let (Owner::Absent, Some(0), Some(number)) = (&owner, output.code, &number) {
            let all = self.must(&self.zpool, &["list", "-H", "-p", "-o", "name,guid"], deadline)?;
            let other = all.lines().filter_map(|l| l.split_once('\t')).find(|(_, n)| n == number);
            if let Some((other, _)) = other {
                self.must(&self.zpool, &["export", other], deadline)?;
            }
        }
        Ok((owner, output))
    }

    /// The dataset that volumes are below; made if a crash came before it.
    fn ensure_parent(&self, deadline: &Deadline) -> Result<()> {
        let parent = parent(&self.ctx.pool);
        let has = |deadline: &Deadline| -> Result<bool> {
            let args = ["list", "-H", "-t", "filesystem", "-o", "name", "-r", "-d", "1", self.name()];
            Ok(self.must(&self.zfs, &args, deadline)?.lines().any(|l| l == parent))
        };
        if has(deadline)? {
            return Ok(());
        }
        // volmode=dev: a device and no partitions of it, whatever an initiator writes there.
        let args = ["create", "-u", "-o", "mountpoint=none", "-o", "canmount=off", "-o", "volmode=dev"];
        // sync=always: what is acknowledged is durable without a flush; see docs/adr/0006.
        let more = ["-o", "sync=always", "-o", "snapdev=hidden", parent.as_str()];
        let args: Vec<&str> = args.into_iter().chain(more).collect();
        let output = self.run(&self.zfs, &args, deadline)?;
        if has(deadline)? { Ok(()) } else { Err(self.ctx.exec(output.failure())) }
    }
}

/// Opens the zpool: imports it if it is not imported.
pub(super) fn import(ctx: &Context, guid: Option<u64>, force: bool, deadline: &Deadline) -> Result<()> {
    let tools = Tools::new(ctx)?;
    let owner = match tools.owner(deadline)? {
        Owner::Absent => match tools.import(guid, force, deadline)? {
            (Owner::Absent, output) => {
                let mut found = tools.on_disks(deadline)?;
                if let Some(guid) = guid {
                    found.retain(|n| *n == guid.to_string());
                }
                return Err(match found.as_slice() {
                    [] => ctx.not_found(format!("zpool {}", ctx.pool)),
                    [_] => ctx.exec(output.failure()),
                    several => ctx.precondition(ambiguous(ctx, several)),
                });
            }
            (owner, _) => owner,
        },
        owner => owner,
    };
    match owner {
        Owner::Ours => {
            if let Some(want) = guid {
                check_imported(ctx, want, deadline)?;
            }
            tools.ensure_parent(deadline)
        }
        Owner::Foreign(why) => Err(tools.refuse(&why)),
        Owner::Absent => Err(ctx.not_found(format!("zpool {}", ctx.pool))),
    }
}

/// What to say, and what to do, where a name is not enough.
fn ambiguous(ctx: &Context, numbers: &[String]) -> String {
    format!(
        "there are several zpools of that name on disks, with the numbers {}: say which by its number (`guid`; \
         orlop pool import {} --kind zfs --guid NUMBER), or take the disks of the others away",
        numbers.join(" and "),
        ctx.pool
    )
}

/// Several zpools may have one name, but only one of them is imported at a time.
fn check_imported(ctx: &Context, want: u64, deadline: &Deadline) -> Result<()> {
    match guid(ctx, deadline)? {
        have if have == want => Ok(()),
        have => Err(ctx.precondition(format!(
            "the zpool of that name that is imported has the number {have}, not {want}: export it first"
        ))),
    }
}

/// Whether the zpool of a number that a person gave has the pool's name.
pub(super) fn check_number(ctx: &Context, number: u64, deadline: &Deadline) -> Result<()> {
    let tools = Tools::new(ctx)?;
    if tools.owner(deadline)? != Owner::Absent {
        return check_imported(ctx, number, deadline);
    }
    wrong_number(ctx, number, &tools.on_disks(deadline)?).map_or(Ok(()), Err)
}

fn wrong_number(ctx: &Context, number: u64, found: &[String]) -> Option<PoolError> {
    if found.contains(&number.to_string()) {
        return None;
    }
    Some(match found {
        [] => ctx.not_found(format!("zpool {} with the number {number}", ctx.pool)),
        others => ctx.precondition(format!(
            "no zpool of that name has the number {number}; on disks there is {}",
            others.join(" and ")
        )),
    })
}

/// Whether each of these disks is there and part of the zpool, which is imported.
fn stands_on(tools: &Tools<'_>, env: &PoolEnv, asked: &[String], deadline: &Deadline) -> Result<bool> {
    let parts = tools.must(&tools.zpool, &["list", "-v", "-H", "-P", tools.name()], deadline)?;
    let names: Vec<String> = devices(&parts)
        .iter()
        .filter_map(|p| Some(std::fs::canonicalize(p).ok()?.file_name()?.to_str()?.to_string()))
        .collect();
    for name in asked {
        let disk = disks::resolve(tools.ctx, env, name)?;
        if !names.iter().any(|n| *n == disk.name || disk.partitions.contains(n)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The number of the zpool, which is imported.
pub(super) fn guid(ctx: &Context, deadline: &Deadline) -> Result<u64> {
    let tools = Tools::new(ctx)?;
    let text =
        tools.must(&tools.zpool, &["get", "-H", "-p", "-o", "value", "guid", tools.name()], deadline)?;
    let number = text.trim().parse();
    number.map_err(|_| ctx.conflict(format!("zpool {}", ctx.pool), "its number can't be read"))
}

/// The numbers of zpools of a name in what `zpool import` lists.
fn numbers(text: &str, name: &str) -> Vec<String> {
    let fields = text.lines().filter_map(|l| l.trim().split_once(": "));
    let mut ours = false;
    let mut found = Vec::new();
    for (field, value) in fields {
        match field {
            "pool" => ours = value.trim() == name,
            "id" if ours => found.push(value.trim().to_string()),
            _ => {}
        }
    }
    found
}

/// What a zpool is made on.
#[derive(Debug, Clone, Copy)]
pub(in crate::pool) struct Disks<'a> {
    /// As they were asked for.
    pub disks: &'a [String],
    /// How it is laid out on them.
    pub layout: PoolLayout,
    /// What takes the place of one that fails.
    pub spares: &'a [String],
}

/// Makes the zpool on blank disks, or takes ours.
pub(super) fn ensure(ctx: &Context, env: &PoolEnv, on: Disks<'_>, deadline: &Deadline) -> Result<()> {
    let tools = Tools::new(ctx)?;
    match tools.owner(deadline)? {
        Owner::Ours => return tools.ensure_parent(deadline),
        Owner::Foreign(why) => return Err(tools.refuse(&why)),
        Owner::Absent => {}
    }
    let asked = [on.disks, on.spares].concat();
    let blank = match disks::prove_blank(ctx, env, &asked, deadline) {
        Ok(blank) => blank,
        // The machine may have gone down after an earlier attempt had made it.
        Err(not_blank @ PoolError::Precondition { .. }) => {
            return match tools.import(None, false, deadline)? {
                (Owner::Ours, _) if stands_on(&tools, env, &asked, deadline)? => {
                    tools.ensure_parent(deadline)
                }
                // An older one of that name, which a disk of it was pulled out of.
                (Owner::Ours, _) => {
                    tools.must(&tools.zpool, &["export", tools.name()], deadline)?;
                    Err(not_blank)
                }
                _ => Err(not_blank),
            };
        }
        Err(e) => return Err(e),
    };
    let marker = serde_json::to_string(&Marker { v: 1, pool: tools.name().into() })
        .map_err(|e| ctx.io("writing the mark of the zpool")(e.into()))?;
    let marker = format!("{MARKER}={marker}");
    let mut args = vec!["create", "-o", "ashift=12", "-o", "cachefile=none", "-m", "none"];
    args.extend(["-O", "canmount=off", "-O", "compression=lz4", "-O", "atime=off"]);
    args.extend(["-O", &marker, tools.name()]);
    if on.layout != PoolLayout::Stripe {
        args.push(on.layout.as_str());
    }
    let names: Vec<String> = blank.iter().map(DiskInfo::lasting_path).collect();
    let (disks, spares) = names.split_at(on.disks.len());
    args.extend(disks.iter().map(String::as_str));
    if !spares.is_empty() {
        args.push("spare");
        args.extend(spares.iter().map(String::as_str));
    }
    for last in [false, false, true] {
        let output = tools.run(&tools.zpool, &args, deadline)?;
        if tools.owner(deadline)? == Owner::Ours {
            return tools.ensure_parent(deadline);
        }
        // It partitions the disks first, and fails where udev is late with the partitions. They were
        // proven blank above, so what is on them now is that attempt's: away with it.
        for disk in &blank {
            block::wipe(&disk.path, deadline).map_err(ctx.io(format!("wiping {}", disk.name)))?;
        }
        if last || output.code == Some(0) {
            return Err(ctx.exec(output.failure()));
        }
        tracing::warn!(pool = tools.name(), error = %output.failure(), "zpool create failed; once more");
    }
    Err(ctx.not_found(format!("zpool {}", ctx.pool)))
}

/// Exports a zpool that is ours, if it is imported.
pub(super) fn export(ctx: &Context, deadline: &Deadline) -> Result<()> {
    let tools = Tools::new(ctx)?;
    match tools.owner(deadline)? {
        Owner::Absent => Ok(()),
        Owner::Foreign(why) => Err(tools.refuse(&why)),
        Owner::Ours => tools.must(&tools.zpool, &["export", tools.name()], deadline).map(drop),
    }
}

/// Destroys a zpool that is ours and has nothing in it, and makes its disks blank again.
pub(super) fn remove(ctx: &Context, deadline: &Deadline) -> Result<()> {
    let tools = Tools::new(ctx)?;
    match tools.owner(deadline)? {
        Owner::Absent => return Ok(()),
        Owner::Foreign(why) => return Err(tools.refuse(&why)),
        Owner::Ours => {}
    }
    let all =
        tools.must(&tools.zfs, &["list", "-H", "-t", "all", "-o", "name", "-r", tools.name()], deadline)?;
    let parent = parent(&ctx.pool);
    let others: Vec<&str> = all.lines().filter(|l| *l != tools.name() && *l != parent).collect();
    if let Some(first) = others.first() {
        return Err(ctx.precondition(format!("it still has {} datasets in it: {first}", others.len())));
    }
    let parts = tools.must(&tools.zpool, &["list", "-v", "-H", "-P", tools.name()], deadline)?;
    let parts: Vec<PathBuf> = devices(&parts);
    tools.must(&tools.zpool, &["destroy", tools.name()], deadline)?;
    if tools.owner(deadline)? != Owner::Absent {
        return Err(ctx.conflict(format!("zpool {}", ctx.pool), "it is still there"));
    }
    wipe(&tools, &parts, deadline);
    Ok(())
}

/// The devices in `zpool list -v -H -P`: fields by tabs, paths whole.
fn devices(text: &str) -> Vec<PathBuf> {
    text.split(['\t', '\n', ' ']).filter(|f| f.starts_with("/dev/")).map(PathBuf::from).collect()
}

/// Clears the labels of the destroyed zpool from its devices, and then the partition table that zpool
/// made. The pool is gone already, so a disk that can't be cleared is a warning: it shows as not blank.
fn wipe(tools: &Tools<'_>, parts: &[PathBuf], deadline: &Deadline) {
    let all = match kernel_disks::all(true) {
        Ok(all) => all,
        Err(error) => {
            tracing::warn!(pool = tools.name(), %error, "the disks of a removed pool were not wiped");
            return;
        }
    };
    for part in parts {
        let name = part.to_string_lossy();
        // Refuses a device that is part of an active zpool, so it clears no label but that one.
        let cleared = tools.must(&tools.zpool, &["labelclear", "-f", &name], deadline);
        let real = std::fs::canonicalize(part).unwrap_or_else(|_| part.clone());
        let file = real.file_name().and_then(|f| f.to_str()).unwrap_or_default();
        // Only a disk that the zpool had whole: its one partition and the small one that zpool adds.
        let disk = all
            .iter()
            .find(|d| d.name == file || (d.partitions.len() <= 2 && d.partitions.iter().any(|p| p == file)));
        let wiped = match (cleared, disk) {
            (Ok(_), Some(d)) => block::wipe(&d.path, deadline).map_err(|e| e.to_string()),
            (Ok(_), None) => Err("its disk was not found".into()),
            (Err(e), _) => Err(e.to_string()),
        };
        if let Err(reason) = wiped {
            tracing::warn!(pool = tools.name(), device = %name, reason, "a disk was not wiped");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn tells_zpools_of_one_name_apart() {
        let text = "   pool: safe\n     id: 123\n  state: ONLINE\n config:\n\n\tsafe  ONLINE\n\n   \
                    pool: other\n     id: 5\n   pool: safe\n     id: 77\n  state: UNAVAIL\n";
        assert_eq!(numbers(text, "safe"), ["123", "77"]);
        assert_eq!(numbers(text, "other"), ["5"]);
        assert!(numbers("no pools available to import\n", "safe").is_empty());
    }

    #[test]
    fn which_of_several_is_said_by_its_number() {
        let ctx = Context::new(&"safe".parse().unwrap());
        let found = ["123".to_string(), "77".to_string()];
        let text = ambiguous(&ctx, &found);
        assert!(
            text.contains("several zpools") && text.contains("123 and 77") && text.contains("--guid"),
            "{text}"
        );
        assert!(wrong_number(&ctx, 77, &found).is_none());
        let other = wrong_number(&ctx, 7, &found).unwrap();
        assert!(
            matches!(&other, PoolError::Precondition { detail, .. } if detail.contains("123 and 77")),
            "{other}"
        );
        assert!(matches!(wrong_number(&ctx, 7, &[]), Some(PoolError::NotFound { .. })));
    }

    #[test]
    fn reads_the_devices_of_a_listing() {
        let text = "tank\t960M\t100K\t960M\t-\t-\t0%\t0%\t1.00x\tONLINE\t-\n\
                    \t/dev/vdb1\t1023M\t100K\t960M\t-\t-\t0%\t0.00%\t-\tONLINE\n\
                    \t/dev/disk/by-id/x-part1\t1G\t-\t-\t-\t-\t-\t-\t-\tONLINE\n";
        let found = devices(text);
        assert_eq!(found, [PathBuf::from("/dev/vdb1"), PathBuf::from("/dev/disk/by-id/x-part1")]);
    }
}
