//! File system volumes while they are mounted: where, with what options, as large as they should be, and held
//! still for a snapshot.
//!
//! Called by every kind of pool that has them. The place of a volume is `<volumes>/<pool>/<id>`. What is mounted
//! there is the kernel's to know: nothing is remembered here, so a daemon that was restarted finds it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_api::{ByteSize, FilesystemKind, Provisioning, VolumeId};
use rustix::io::Errno;

use super::context::Context;
use super::{Opened, Place, PoolEnv, Result};
use crate::kernel::filesystem::{self, Found, Frozen, Ground, Kind, MakeError};
use crate::kernel::mount::{self, Mount};
use crate::kernel::{Deadline, block, fs};
use crate::model::Label;

/// How long someone may still have a file of it open.
const BUSY: Duration = Duration::from_secs(10);

/// What of a block device's file systems the kernel has to make and grow. `None`: ZFS has its own.
pub(super) fn on_device(filesystem: FilesystemKind) -> Option<Kind> {
    match filesystem {
        FilesystemKind::Zfs => None,
        FilesystemKind::Ext4 => Some(Kind::Ext4),
        FilesystemKind::Xfs => Some(Kind::Xfs),
    }
}

/// What a new backing is to be formatted with, if with anything: a clone has its source's file system, and a
/// copy gets that with its content.
pub(super) fn to_format(label: &Label) -> Option<Kind> {
    label.filesystem.and_then(on_device).filter(|_| label.source.is_none())
}

/// Refuses before anything is made what no tool is there for.
pub(super) fn check_tool(ctx: &Context, label: &Label) -> Result<()> {
    match to_format(label) {
        Some(kind) => filesystem::tool(kind).map(drop).map_err(|e| ctx.exec(e)),
        None => Ok(()),
    }
}

/// Makes the file system of a backing that was made just now, and that nobody takes for whole yet.
pub(super) fn format(
    ctx: &Context,
    kind: Kind,
    label: &Label,
    path: &Path,
    deadline: &Deadline,
) -> Result<()> {
    let object = || format!("the backing of {}", label.id);
    // One that is encrypted is formatted above what deciphers it.
    let ground = if label.encryption.is_some() { Ground::Deciphered } else { Ground::Zeros };
    let uuid = label.id.uuid().hyphenated().to_string();
    filesystem::make(kind, path, ground, &uuid, deadline).map_err(|e| match e {
        MakeError::NotBlank(_) | MakeError::Unverified { .. } => ctx.conflict(object(), e.to_string()),
        MakeError::Io(e) => ctx.io(format!("formatting {}", object()))(e),
        MakeError::Tool(e) => ctx.exec(e),
    })
}

/// Where the file system volumes of one pool are mounted.
#[derive(Debug)]
pub(super) struct Mounts {
    ctx: Context,
    root: PathBuf,
}

impl Mounts {
    pub fn new(ctx: &Context, env: &PoolEnv) -> Self {
        Self { ctx: ctx.clone(), root: env.volumes.join(ctx.pool.as_str()) }
    }

    /// Where a volume is, or would be, mounted.
    fn point(&self, id: VolumeId) -> PathBuf {
        self.root.join(id.to_string())
    }

    /// What is mounted in a volume's place.
    pub fn at(&self, id: VolumeId) -> Result<Option<Mount>> {
        let point = self.point(id);
        // Most volumes have no such directory: that is known without reading what all is mounted. Only that
        // there is none says so: one whose file system has shut down answers with an error.
        if std::fs::symlink_metadata(&point).is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
            return Ok(None);
        }
        mount::at(&point).map_err(self.ctx.io("reading what is mounted"))
    }

    /// Mounts what `is_it` recognizes where it is there already.
    pub fn mount(
        &self,
        id: VolumeId,
        source: &Path,
        fstype: &str,
        options: &str,
        is_it: impl Fn(&Mount) -> bool,
        deadline: &Deadline,
    ) -> Result<PathBuf> {
        let point = self.point(id);
        let shown = point.display();
        match self.at(id)? {
            Some(m) if m.fstype == fstype && is_it(&m) => return Ok(point),
            Some(m) => {
                let detail =
                    format!("{} is mounted at {shown}, where volume {id} belongs", m.source.display());
                return Err(self.ctx.precondition(detail));
            }
            None => {}
        }
        fs::make_dirs(&point).map_err(self.ctx.io(format!("making {shown}")))?;
        self.ctx.check(deadline, "mounting a volume")?;
        let action = format!("mounting {} at {shown}", source.display());
        mount::mount(source, &point, fstype, options).map_err(self.ctx.io(action)).inspect_err(|_| {
            let _ = std::fs::remove_dir(&point);
        })?;
        Ok(point)
    }

    /// Unmounts a volume, as often as something is mounted in its place. Fails while anyone has a file of it
    /// open: a mount that was only taken out of sight would go on writing to a backing that is closed.
    pub fn unmount(&self, id: VolumeId, deadline: &Deadline) -> Result<()> {
        let point = self.point(id);
        let patience = deadline.at_most(BUSY);
        let mut pause = Duration::from_millis(20);
        while self.at(id)?.is_some() {
            self.ctx.check(deadline, "unmounting a volume")?;
            match mount::unmount(&point) {
                Ok(()) => {}
                Err(e) if e.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {
                    if patience.pause(pause).is_err() {
                        return Err(self
                            .ctx
                            .precondition(format!("volume {id} is in use at {}", point.display())));
                    }
                    pause = (pause * 2).min(Duration::from_millis(500));
                }
                Err(e) => return Err(self.ctx.io(format!("unmounting {}", point.display()))(e)),
            }
        }
        // Only an empty directory goes.
        let _ = std::fs::remove_dir(&point);
        Ok(())
    }

    /// All volumes of this pool that are mounted.
    pub fn mounted(&self) -> Result<Vec<VolumeId>> {
        let all = mount::mounts().map_err(self.ctx.io("reading what is mounted"))?;
        let id = |m: Mount| m.point.strip_prefix(&self.root).ok()?.to_str()?.parse().ok();
        Ok(all.into_iter().filter_map(id).collect())
    }

    /// A daemon that was killed in the middle of a snapshot left what it held: its writers wait. One that is
    /// damaged says so and keeps no other from being served.
    pub fn recall(&self) -> Result<()> {
        for id in self.mounted()? {
            let thawed = File::open(self.point(id)).and_then(|root| filesystem::thaw(&root));
            match thawed {
                Ok(true) => tracing::warn!(volume = %id, "a file system was still held, and goes on"),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(volume = %id, %error, "whether a file system is held is not known")
                }
            }
        }
        Ok(())
    }

    /// The pool goes: so does the directory, if nothing is mounted in it.
    pub fn forget(&self) {
        let _ = std::fs::remove_dir(&self.root);
    }

    /// Holds a volume if it is mounted, so that what is on its device is whole.
    pub fn hold(&self, id: VolumeId) -> Result<Option<Frozen>> {
        if self.at(id)?.is_none() {
            return Ok(None);
        }
        let action = format!("holding volume {id} for a snapshot");
        Frozen::hold(self.root_of(id)?).map(Some).map_err(self.ctx.io(action))
    }

    fn root_of(&self, id: VolumeId) -> Result<File> {
        let point = self.point(id);
        File::open(&point).map_err(self.ctx.io(format!("opening {}", point.display())))
    }

    /// Mounts the file system on a volume's device, which has `size` bytes, and makes it as large as that. One
    /// that can't be made larger is mounted all the same, and its size told: what is in it is needed more.
    pub fn open(&self, label: &Label, device: &Path, size: ByteSize, deadline: &Deadline) -> Result<Opened> {
        let (kind, point) = self.mount_device(label, device, deadline)?;
        let root = self.root_of(label.id)?;
        let device = File::open(device).map_err(self.ctx.io(format!("opening {}", device.display())))?;
        if let Err(error) = filesystem::grow(kind, &root, &device, size.bytes()) {
            tracing::error!(volume = %label.id, %error, "a file system can't be made as large as its volume");
        }
        let action = format!("asking for the size of volume {}", label.id);
        let is = filesystem::mounted_size(kind, &root, &device).map_err(self.ctx.io(action))?;
        let whole = filesystem::whole(Found { kind, size: is }, size.bytes());
        Ok(Opened { place: Place::Directory(point), size: if whole { size } else { ByteSize(is) } })
    }

    fn mount_device(&self, label: &Label, device: &Path, deadline: &Deadline) -> Result<(Kind, PathBuf)> {
        let kind = label.filesystem.and_then(on_device);
        let kind =
            kind.ok_or_else(|| self.ctx.conflict(label.id.to_string(), "it is no file system on a device"))?;
        let action = format!("looking at {}", device.display());
        let number = block::number(device).map_err(self.ctx.io(action.clone()))?;
        if self.at(label.id)?.is_none() {
            let found = File::open(device).and_then(|f| filesystem::find(&f)).map_err(self.ctx.io(action))?;
            if found.is_none_or(|f| f.kind != kind) {
                let detail = format!("there is no {} on {}", kind.fstype(), device.display());
                return Err(self.ctx.conflict(label.id.to_string(), detail));
            }
        }
        // What files no longer need goes back to the pool: nobody else can discard it. A thick volume keeps it.
        let discard = if label.provisioning == Provisioning::Thin { ",discard" } else { "" };
        let options = format!("{}{discard}", kind.options());
        let point =
            self.mount(label.id, device, kind.fstype(), &options, |m| m.device == number, deadline)?;
        Ok((kind, point))
    }

    /// After `open` of a volume that was made larger: an error if its file system was not, and why.
    pub fn check_grown(&self, label: &Label, opened: &Opened) -> Result<()> {
        if opened.size == label.size {
            return Ok(());
        }
        let action = || format!("growing the file system of volume {}", label.id);
        let short = format!("it has {} and not {}", opened.size, label.size);
        let kind = label.filesystem.and_then(on_device);
        let mounted = self.at(label.id)?;
        // Once more, to hear the reason.
        let grown = match (kind, mounted) {
            (Some(kind), Some(mount)) => {
                let root = self.root_of(label.id)?;
                let device = File::open(&mount.source);
                device.and_then(|d| filesystem::grow(kind, &root, &d, label.size.bytes())).map(drop)
            }
            _ => Err(io::Error::other(short)),
        };
        grown.map_err(self.ctx.io(action()))
    }
}
