//! A disk of a `file` pool's own: formatted, mounted, found again by the UUID of its file system.
//!
//! Called by `file` pools. The UUID was minted with the pool's specification, before anything was
//! formatted, so a disk that carries it is this pool's and no other's. Formats nothing that has not
//! been proven blank (R1).

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_api::Filesystem;
use rustix::io::Errno;
use uuid::Uuid;

use super::arrays::{self, Arrays};
use super::context::Context;
use super::{PoolEnv, PoolError, Result, disks};
use crate::kernel::block::{self, Superblock};
use crate::kernel::disks::DiskInfo;
use crate::kernel::exec::Tool;
use crate::kernel::mount::{self, Mount};
use crate::kernel::{Deadline, disks as kernel_disks, fs};
use crate::model::{Array, PoolSpec};

/// How long a disk may be open elsewhere, and how often it is tried meanwhile.
const BUSY: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(200);

/// What a file system is made on.
#[derive(Debug, Clone, Copy)]
pub(super) enum Stand<'a> {
    /// A disk, as it was asked for.
    Disk(&'a str),
    /// An array that runs.
    Array(&'a Path),
}

impl Stand<'_> {
    fn device(&self) -> Option<&Path> {
        match self {
            Self::Disk(_) => None,
            Self::Array(device) => Some(device),
        }
    }
}

/// A mounted disk.
#[derive(Debug)]
pub(super) struct OwnDisk {
    ctx: Context,
    uuid: Uuid,
    point: PathBuf,
    device: PathBuf,
}

impl OwnDisk {
    /// Formats a blank disk and mounts it; mounts one that carries this UUID already.
    pub fn create(
        spec: &PoolSpec,
        env: &PoolEnv,
        on: Stand<'_>,
        filesystem: Filesystem,
        uuid: Uuid,
        deadline: &Deadline,
    ) -> Result<Self> {
        let ctx = Context::new(&spec.name);
        if find(&ctx, env, uuid, on.device())?.is_none() {
            format_blank(&ctx, env, on, filesystem, uuid, deadline)?;
        }
        Self::open(spec, env, uuid, on.device().map(Path::to_owned), deadline)
    }

    /// Finds it by UUID, on that device or on any disk, and mounts it if it is not mounted.
    pub fn open(
        spec: &PoolSpec,
        env: &PoolEnv,
        uuid: Uuid,
        device: Option<PathBuf>,
        deadline: &Deadline,
    ) -> Result<Self> {
        let ctx = Context::new(&spec.name);
        let Some((device, superblock)) = find(&ctx, env, uuid, device.as_deref())? else {
            return Err(ctx.not_found(format!("a disk with file system {uuid}")));
        };
        let point = env.mounts.join(spec.name.as_str());
        let own = Self { ctx, uuid, point, device };
        own.mount(superblock.fstype, deadline)?;
        Ok(own)
    }

    /// Where it is mounted.
    pub fn point(&self) -> &Path {
        &self.point
    }

    fn mounted(&self) -> Result<Option<Mount>> {
        mount::at(&self.point).map_err(self.ctx.io("reading what is mounted"))
    }

    fn mount(&self, fstype: &str, deadline: &Deadline) -> Result<()> {
        let shown = self.point.display();
        match self.mounted()? {
            // XFS is mounted under its device's number, btrfs under one of its own with the device's
            // path as its source.
            Some(m) => {
                let number = block::number(&self.device)
                    .map_err(self.ctx.io(format!("looking at {}", self.device.display())))?;
                if m.device == number || block::number(&m.source).is_ok_and(|n| n == number) {
                    return Ok(());
                }
                Err(self.ctx.precondition(format!(
                    "{} is mounted at {shown}, where this pool's disk belongs",
                    m.source.display()
                )))
            }
            None => {
                fs::make_dirs(&self.point).map_err(self.ctx.io(format!("making {shown}")))?;
                self.ctx.check(deadline, "mounting the pool's disk")?;
                let patience = deadline.at_most(BUSY);
                loop {
                    match mount::mount(&self.device, &self.point, fstype, "") {
                        // Whoever looks whether a disk is blank has it for himself for a moment.
                        Err(e)
                            if e.raw_os_error() == Some(Errno::BUSY.raw_os_error())
                                && patience.pause(PAUSE).is_ok() => {}
                        done => {
                            let action = format!("mounting {} at {shown}", self.device.display());
                            return done.map_err(self.ctx.io(action));
                        }
                    }
                }
            }
        }
    }

    /// Unmounts it. It stays as it is.
    pub fn unmount(&self) -> Result<()> {
        let shown = self.point.display();
        if self.mounted()?.is_some() {
            mount::unmount(&self.point).map_err(self.ctx.io(format!("unmounting {shown}")))?;
        }
        let _ = std::fs::remove_dir(&self.point);
        Ok(())
    }

    /// Unmounts it and makes the disk blank again, as it was before the pool. The pool's own directory
    /// on it has been found empty and removed.
    pub fn release(&self, deadline: &Deadline) -> Result<()> {
        let shown = self.point.display();
        if self.mounted()?.is_some() {
            // `remove` left nothing of ours on it. What else is there is not ours to wipe.
            let dir = fs::Dir::open(&self.point).map_err(self.ctx.io(format!("opening {shown}")))?;
            let names = dir.names().map_err(self.ctx.io(format!("reading {shown}")))?;
            if let Some(other) = names.first() {
                return Err(self.ctx.precondition(format!(
                    "there is something else on its disk: {}",
                    self.point.join(other).display()
                )));
            }
            drop(dir);
            mount::unmount(&self.point).map_err(self.ctx.io(format!("unmounting {shown}")))?;
        }
        let _ = std::fs::remove_dir(&self.point);
        self.ctx.check(deadline, "wiping the pool's disk")?;
        let action = || format!("wiping {}", self.device.display());
        // Looked at again: the name of a disk can have passed to another one.
        match block::superblock(&self.device).map_err(self.ctx.io(action()))? {
            Some(s) if s.uuid == *self.uuid.as_bytes() => {
                block::wipe(&self.device, deadline).map_err(self.ctx.io(action()))
            }
            _ => Ok(()),
        }
    }
}

/// What a disk that was a pool's is formatted with, and its UUID.
pub(super) fn recognize(spec: &PoolSpec, env: &PoolEnv, asked: &str) -> Result<(Filesystem, Uuid)> {
    let ctx = Context::new(&spec.name);
    let disk = disks::resolve(&ctx, env, asked)?;
    recognize_on(&ctx, &disk.path, asked)
}

/// The same of an array that a disk belongs to.
pub(super) fn recognize_array(
    spec: &PoolSpec,
    env: &PoolEnv,
    array: &Array,
    deadline: &Deadline,
) -> Result<(Filesystem, Uuid)> {
    let ctx = Context::new(&spec.name);
    let arrays = Arrays::new(&ctx, env, std::slice::from_ref(array));
    arrays.start(deadline)?;
    let device = arrays.paths()?.pop();
    let found =
        device.ok_or_else(|| ctx.not_found("its array")).and_then(|d| recognize_on(&ctx, &d, "its array"));
    if found.is_err() {
        arrays.export(deadline)?;
    }
    found
}

fn recognize_on(ctx: &Context, device: &Path, asked: &str) -> Result<(Filesystem, Uuid)> {
    let superblock = block::superblock(device).map_err(ctx.io(format!("reading {}", device.display())))?;
    let filesystem = superblock.as_ref().and_then(|s| match s.fstype {
        "xfs" => Some(Filesystem::Xfs),
        "btrfs" => Some(Filesystem::Btrfs),
        _ => None,
    });
    match (filesystem, superblock) {
        (Some(filesystem), Some(s)) => Ok((filesystem, Uuid::from_bytes(s.uuid))),
        _ => Err(ctx.not_found(format!("a pool on {asked}"))),
    }
}

/// The device that carries a file system of that UUID.
fn find(
    ctx: &Context,
    env: &PoolEnv,
    uuid: Uuid,
    device: Option<&Path>,
) -> Result<Option<(PathBuf, Superblock)>> {
    if let Some(device) = device {
        let found = block::superblock(device).map_err(ctx.io(format!("reading {}", device.display())))?;
        return Ok(found.filter(|s| s.uuid == *uuid.as_bytes()).map(|s| (device.to_owned(), s)));
    }
    let all = kernel_disks::all(env.loops_as_disks).map_err(ctx.io("listing disks"))?;
    let mut found: Vec<(DiskInfo, Superblock)> = Vec::new();
    for disk in all {
        match block::superblock(&disk.path) {
            Ok(Some(s)) if s.uuid == *uuid.as_bytes() => found.push((disk, s)),
            Ok(_) => {}
            // One broken disk must not keep the pools on the others from being opened.
            Err(error) => tracing::warn!(disk = disk.name, %error, "a disk can't be read"),
        }
    }
    if found.len() > 1 {
        let names: Vec<&str> = found.iter().map(|(d, _)| d.name.as_str()).collect();
        return Err(ctx.precondition(format!(
            "file system {uuid} is on several disks, one a copy of the other: {}",
            names.join(", ")
        )));
    }
    Ok(found.pop().map(|(disk, superblock)| (disk.path, superblock)))
}

/// Formats a disk that is proven blank. Where the tool fails and the disk is blank still, somebody had it
/// open for a moment: an inventory of disks looks at each alone. So it is tried again.
fn format_blank(
    ctx: &Context,
    env: &PoolEnv,
    on: Stand<'_>,
    filesystem: Filesystem,
    uuid: Uuid,
    deadline: &Deadline,
) -> Result<()> {
    let patience = deadline.at_most(BUSY);
    let mut failed = None;
    loop {
        let proven = match on {
            Stand::Disk(asked) => disks::prove_blank(ctx, env, &[asked.to_string()], deadline)
                .map(|blank| blank.into_iter().next().map(|d| d.path)),
            Stand::Array(device) => {
                arrays::prove_blank(ctx, device, deadline).map(|()| Some(device.to_owned()))
            }
        };
        let path = match proven {
            Ok(path) => path,
            // What is on it now is what the tool left, or its reason to fail.
            Err(not_blank) => return Err(failed.unwrap_or(not_blank)),
        };
        let Some(path) = path else { return Err(ctx.precondition("names no disk")) };
        match format(ctx, &path, filesystem, uuid, deadline) {
            Err(error @ PoolError::Command { .. }) if patience.pause(PAUSE).is_ok() => failed = Some(error),
            result => return result,
        }
    }
}

/// Makes the file system. Neither tool is told to force anything: both look for signatures themselves,
/// which is a second pair of eyes.
fn format(ctx: &Context, path: &Path, filesystem: Filesystem, uuid: Uuid, deadline: &Deadline) -> Result<()> {
    let uuid = uuid.hyphenated().to_string();
    let pool = ctx.pool.as_str();
    let (tool, mut args): (&'static str, Vec<OsString>) = match filesystem {
        Filesystem::Xfs => {
            // XFS has room for 12 bytes: the label is for people, nothing is found by it.
            let label: String = format!("orlop-{pool}").chars().take(12).collect();
            let uuid = format!("uuid={uuid}");
            ("mkfs.xfs", ["-q", "-L", &label, "-m", &uuid, "-m", "reflink=1"].map(Into::into).to_vec())
        }
        Filesystem::Btrfs => {
            let label = format!("orlop-{pool}");
            ("mkfs.btrfs", ["-q", "-L", &label, "-U", &uuid].map(Into::into).to_vec())
        }
    };
    args.push(path.into());
    let tool = Tool::locate(tool).map_err(|e| ctx.exec(e))?;
    tool.run(&args, deadline).and_then(|o| o.success()).map_err(|e| ctx.exec(e))?;
    Ok(())
}
