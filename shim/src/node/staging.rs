//! A volume's way onto a node and off it again: connected, formatted if it must be, mounted; and all of that backwards.
//!
//! Every step looks first at what is there, so a call that is made again, after a crash at any place or by another container,
//! goes on from where the last one was. What is mounted is asked of the kernel, never remembered.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_api::{Access, Attachment, NfsAccess, Portal, VolumeId};
use rustix::mount::{MountFlags, UnmountFlags};
use tonic::Status;

use super::Node;
use super::connect::{ConnectError, Credentials, size_of};
use super::filesystem::{self, Kind, Unfit};
use super::mounts::{self, Mount};
use super::options::Options;
use super::state::{Staged, is_same};
use super::tools::ToolError;
use super::unmount::{Lost, in_use};
use crate::deadline::Deadline;
use crate::status::{Result, invalid};

/// What is to be done with a volume on a node.
#[derive(Debug, Clone)]
pub(super) enum Use {
    /// Its disk itself.
    Block,
    /// A file system: of this kind, with these options.
    Mount { fs_type: String, options: Vec<String> },
}

/// How long a place may take to say what it is.
const ANSWER: Duration = Duration::from_secs(10);

/// How long one portal of NFS may take, and how long it may take to answer at all.
const NFS_MOUNT: Duration = Duration::from_secs(30);
const NFS_ANSWER: Duration = Duration::from_secs(2);

/// Those that answer before those that do not: mount.nfs would try one that is dead for minutes.
async fn answering_first(portals: &[Portal]) -> Vec<&Portal> {
    let answers = portals.iter().map(|portal| async move {
        let connecting = tokio::net::TcpStream::connect((portal.address.as_str(), portal.port));
        matches!(tokio::time::timeout(NFS_ANSWER, connecting).await, Ok(Ok(_)))
    });
    let answers = futures_util::future::join_all(answers).await;
    let mut all: Vec<_> = portals.iter().zip(answers).collect();
    all.sort_by_key(|(_, answers)| !answers);
    all.into_iter().map(|(portal, _)| portal).collect()
}

pub(super) fn failed(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> Status {
    move |e| Status::internal(format!("{what}: {e}"))
}

pub(super) fn of_connect(e: ConnectError) -> Status {
    match e {
        ConnectError::Lacks(_) => Status::failed_precondition(e.to_string()),
        ConnectError::NoPath(_) | ConnectError::NoDisk(_) | ConnectError::UnderWay => {
            Status::unavailable(e.to_string())
        }
        ConnectError::Tool(ToolError::Missing(_)) => Status::failed_precondition(e.to_string()),
        ConnectError::Size { .. } | ConnectError::Io(..) | ConnectError::Tool(_) => {
            Status::internal(e.to_string())
        }
    }
}

fn of_tool(e: ToolError) -> Status {
    match e {
        ToolError::Missing(_) => Status::failed_precondition(e.to_string()),
        ToolError::Late(..) => Status::deadline_exceeded(e.to_string()),
        e => Status::internal(e.to_string()),
    }
}

fn of_unfit(e: Unfit) -> Status {
    match e {
        Unfit::Tool(e) => of_tool(e),
        Unfit::Busy { .. } => Status::aborted(e.to_string()),
        e => Status::failed_precondition(e.to_string()),
    }
}

/// Runs what may wait for a disk, where it holds up nothing else.
pub(super) async fn blocking<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(what).await.map_err(|e| Status::internal(e.to_string()))
}

/// Runs what may wait for a file system that is mounted there and does not answer.
async fn answered<T: Send + 'static>(
    at: &Path,
    deadline: Deadline,
    what: impl FnOnce(&Path) -> Result<T> + Send + 'static,
) -> Result<T> {
    let place = at.to_owned();
    let looking = blocking(move || what(&place));
    match tokio::time::timeout(ANSWER.min(deadline.left()), looking).await {
        Ok(done) => done?,
        Err(_) => Err(Status::unavailable(format!("{} does not answer", at.display()))),
    }
}

/// Refuses a place that is not what it should be: a link could lead anywhere.
fn directory(path: &Path, field: &str) -> Result<()> {
    if !path.is_absolute() {
        return Err(invalid(format!("{field}: {} is not absolute", path.display())));
    }
    match std::fs::symlink_metadata(path) {
        Ok(m) if m.is_dir() => Ok(()),
        Ok(_) => Err(invalid(format!("{field}: {} is no directory", path.display()))),
        Err(e) => Err(invalid(format!("{field}: {}: {e}", path.display()))),
    }
}

fn number(device: &Path) -> io::Result<(u32, u32)> {
    let m = std::fs::metadata(device)?;
    if !m.file_type().is_block_device() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} is no disk", device.display())));
    }
    Ok((rustix::fs::major(m.rdev()), rustix::fs::minor(m.rdev())))
}

/// The kernel's node of a disk.
fn node_of((major, minor): (u32, u32)) -> io::Result<PathBuf> {
    let link = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}"))?;
    let name = link.file_name().ok_or(io::ErrorKind::NotFound)?;
    Ok(Path::new("/dev").join(name))
}

fn mount_new(source: &str, at: &Path, kind: &str, options: &Options) -> io::Result<()> {
    let data = std::ffi::CString::new(options.data.as_str()).map_err(io::Error::other)?;
    Ok(rustix::mount::mount(source, at, kind, options.flags, Some(data.as_c_str()))?)
}

/// Shows something at another place, where it may be less.
fn bind(from: &Path, at: &Path, read_only: bool) -> io::Result<()> {
    rustix::mount::mount_bind(from, at)?;
    if read_only {
        // A bind mount takes options only when it is mounted again.
        let flags = MountFlags::BIND | MountFlags::RDONLY;
        if let Err(e) = rustix::mount::mount_remount(at, flags, "") {
            let _ = rustix::mount::unmount(at, UnmountFlags::empty());
            return Err(e.into());
        }
    }
    Ok(())
}

impl Node {
    pub(super) async fn stage(
        &self,
        attachment: Attachment,
        staging: &Path,
        how: Use,
        with: Credentials,
        deadline: Deadline,
    ) -> Result<()> {
        answered(staging, deadline, |at| directory(at, "staging_target_path")).await?;
        if attachment.host != self.id.name {
            let (other, this) = (&attachment.host, &self.id.name);
            return Err(invalid(format!("publish_context: it is {other}'s, and this is {this}")));
        }
        if let Some(was) =
            self.state.get(attachment.volume).filter(|was| !is_same(&was.attachment, &attachment))
        {
            // It was attached otherwise, and nobody has unstaged it: what is mounted may be the old way's.
            if !mounts::at(&was.staging).map_err(failed("reading mounts"))?.is_empty() {
                let text = format!("it is staged otherwise at {}: unstage it first", was.staging.display());
                return Err(Status::failed_precondition(text));
            }
        }
        let staged = Staged { attachment: attachment.clone(), staging: staging.to_owned() };
        self.state.put(&staged).map_err(failed(self.state.dir().display()))?;
        match (&attachment.access, how) {
            (Access::Nfs(_), Use::Block) => Err(invalid("volume_capability: a file system is no disk")),
            (Access::Nfs(access), Use::Mount { options, .. }) => {
                self.mount_nfs(access, staging, &options, attachment.read_only, deadline).await
            }
            (_, Use::Block) => {
                self.connector.connect(&attachment, &with, deadline).await.map(drop).map_err(of_connect)
            }
            (_, Use::Mount { fs_type, options }) => {
                let kind = Kind::parse(&fs_type)
                    .ok_or_else(|| invalid(format!("fs_type: {fs_type:?} is not made here")))?;
                let read_only = attachment.read_only;
                let options =
                    Options::parse(options.iter().map(String::as_str), read_only).map_err(invalid)?;
                let device =
                    self.connector.connect(&attachment, &with, deadline).await.map_err(of_connect)?;
                self.mount_disk(&device, staging, kind, options, deadline).await
            }
        }
    }

    async fn mount_disk(
        &self,
        device: &Path,
        staging: &Path,
        kind: Kind,
        mut options: Options,
        deadline: Deadline,
    ) -> Result<()> {
        let device_number = number(device).map_err(failed(device.display()))?;
        let read_only = options.flags.contains(MountFlags::RDONLY);
        let there = mounts::at(staging).map_err(failed("reading mounts"))?;
        if let Some(mount) = there.last() {
            return is_it(mount, device_number, kind, read_only, staging);
        }
        // Mounted somewhere else it is known to be what it is; else it is looked at.
        let elsewhere = mounts::of(device_number).map_err(failed("reading mounts"))?;
        match elsewhere.first() {
            Some(mount) if mount.kind != kind.as_str() => {
                return Err(Status::failed_precondition(format!("{} has {}", device.display(), mount.kind)));
            }
            Some(_) => {}
            None => {
                let size = size_of(device).map_err(failed(device.display()))?;
                let made = filesystem::ensure(&self.tools, device, size, kind, !read_only, deadline.left());
                made.await.map_err(of_unfit)?;
                if !read_only {
                    filesystem::check(&self.tools, device, kind, deadline.left()).await.map_err(of_tool)?;
                }
            }
        }
        if kind == Kind::Xfs {
            // A clone has its source's UUID, and both may be here.
            options = options.with("nouuid");
        }
        let (source, at) = (device.display().to_string(), staging.to_owned());
        let mounted = blocking(move || mount_new(&source, &at, kind.as_str(), &options)).await?;
        mounted.map_err(|e| match e.kind() {
            // Its journal has something that only writing would put right.
            io::ErrorKind::ReadOnlyFilesystem if read_only => Status::failed_precondition(format!(
                "{} was not unmounted, or is a snapshot of one that was in use: it must be mounted to be written once before \
                 it can be only read (or with the class's mountOptions {:?}, which shows it as if nothing had been under way)",
                device.display(),
                kind.no_recovery(),
            )),
            _ => failed(format!("mounting {} at {}", device.display(), staging.display()))(e),
        })?;
        if !read_only {
            // A volume that was made of a smaller one.
            filesystem::grow(&self.tools, device, staging, kind, deadline.left()).await.map_err(of_tool)?;
        }
        Ok(())
    }

    async fn mount_nfs(
        &self,
        access: &NfsAccess,
        staging: &Path,
        options: &[String],
        read_only: bool,
        deadline: Deadline,
    ) -> Result<()> {
        let there = mounts::at(staging).map_err(failed("reading mounts"))?;
        if let Some(mount) = there.last() {
            let ours = mount.kind.starts_with("nfs") && mount.source.ends_with(&format!(":{}", access.path));
            return match ours {
                true => Ok(()),
                false => Err(taken(staging, mount)),
            };
        }
        let mut words: Vec<String> = options.to_vec();
        if read_only {
            words.push("ro".into());
        }
        // mount.nfs knows more than the system call does: versions, names, Kerberos.
        let mut refused = Vec::new();
        for portal in answering_first(&access.portals).await {
            let address = match portal.address.contains(':') {
                true => format!("[{}]", portal.address),
                false => portal.address.clone(),
            };
            let (source, place) = (format!("{address}:{}", access.path), staging.display().to_string());
            let joined = words.join(",");
            let mut args = vec!["-t", "nfs", source.as_str(), place.as_str()];
            if !joined.is_empty() {
                args.extend(["-o", &joined]);
            }
            match self.tools.must("mount", &args, NFS_MOUNT.min(deadline.left())).await {
                Ok(_) => return Ok(()),
                Err(e) => refused.push(format!("{source}: {e}")),
            }
        }
        Err(Status::unavailable(refused.join("; ")))
    }

    /// Works whatever is left: of the mount, of the disk, of the appliance, of what was kept.
    pub(super) async fn unstage(&self, volume: VolumeId, staging: &Path, deadline: Deadline) -> Result<()> {
        if !staging.is_absolute() {
            return Err(invalid("staging_target_path: it is not absolute"));
        }
        let mut lost = Lost::default();
        self.unmount(volume, staging, &mut lost, deadline).await?;
        // The last to go lets go of the disk.
        let disks = self.connector.disks(volume).map_err(failed("looking for its disk"))?;
        for disk in &disks {
            if let Some(in_use) = in_use(disk, &disks).map_err(failed("looking who uses the disk"))? {
                return Err(Status::failed_precondition(format!("its disk is still in use: {in_use}")));
            }
        }
        self.written_back(volume, &disks, &mut lost, deadline).await?;
        self.connector.disconnect(volume, deadline).await.map_err(of_connect)?;
        self.state.remove(volume).map_err(failed("forgetting it"))
    }

    pub(super) async fn publish(
        &self,
        attachment: &Attachment,
        staging: &Path,
        target: &Path,
        how: &Use,
        read_only: bool,
        deadline: Deadline,
    ) -> Result<()> {
        if !target.is_absolute() {
            return Err(invalid("target_path: it is not absolute"));
        }
        let mut read_only = read_only || attachment.read_only;
        let (from, wanted) = match how {
            Use::Mount { .. } => {
                let staged = mounts::at(staging).map_err(failed("reading mounts"))?;
                let staged = staged.last().ok_or_else(|| {
                    Status::failed_precondition(format!("nothing is staged at {}", staging.display()))
                })?;
                // The class's own options may say so too, and what shows it elsewhere is the same then.
                read_only |= staged.is_read_only();
                (staging.to_owned(), staged.device)
            }
            Use::Block => {
                let found =
                    self.connector.found(&attachment.access).map_err(failed("looking for the disk"))?;
                let device = found.ok_or_else(|| {
                    Status::failed_precondition("its disk is not connected: it is not staged here")
                })?;
                (device, (0, 0))
            }
        };
        let of_block = matches!(how, Use::Block);
        answered(target, deadline, move |at| make_place(at, of_block)).await?;
        let there = mounts::at(target).map_err(failed("reading mounts"))?;
        if let Some(mount) = there.last() {
            let same = match how {
                Use::Mount { .. } => mount.device == wanted,
                Use::Block => {
                    std::fs::metadata(target).map(|m| m.rdev()).ok()
                        == std::fs::metadata(&from).map(|m| m.rdev()).ok()
                }
            };
            return match (same, mount.is_read_only() == read_only) {
                (true, true) => Ok(()),
                (true, false) => Err(otherwise(target, mount)),
                (false, _) => Err(taken(target, mount)),
            };
        }
        let at = target.to_owned();
        blocking(move || bind(&from, &at, read_only))
            .await?
            .map_err(failed(format!("publishing at {}", target.display())))
    }

    pub(super) async fn unpublish(&self, volume: VolumeId, target: &Path, deadline: Deadline) -> Result<()> {
        if !target.is_absolute() {
            return Err(invalid("target_path: it is not absolute"));
        }
        self.unmount(volume, target, &mut Lost::default(), deadline).await?;
        remove_place(target)
    }

    /// The same where it is not known which volume it was.
    pub(super) async fn free(&self, target: &Path, deadline: Deadline) -> Result<()> {
        if !target.is_absolute() {
            return Err(invalid("target_path: it is not absolute"));
        }
        let unmounted = self.try_unmount(None, target, &mut Lost::default(), deadline).await?;
        unmounted.map_err(failed(format!("unmounting {}", target.display())))?;
        remove_place(target)
    }

    /// Makes a file system as large as its disk, which has grown. The size that it has then.
    pub(super) async fn grow(&self, at: &Path, least: u64, deadline: Deadline) -> Result<u64> {
        let mounted = mounts::at(at).map_err(failed("reading mounts"))?;
        let gone = |e| Status::not_found(format!("volume_path: {}: {e}", at.display()));
        let mount = mounted.last().filter(|mount| mount.kind != "devtmpfs");
        let (device, kind) = match mount {
            Some(mount) if mount.kind.starts_with("nfs") => return Ok(least),
            Some(mount) => {
                let kind = Kind::parse(&mount.kind)
                    .ok_or_else(|| Status::internal(format!("{} is not grown here", mount.kind)))?;
                (node_of(mount.device).map_err(failed("finding the disk"))?, Some(kind))
            }
            // A raw block device.
            None => (node_of(number(at).map_err(gone)?).map_err(gone)?, None),
        };
        self.connector.rescan(&device, deadline).await.map_err(of_connect)?;
        // What the kernel hears of comes a moment later.
        let size = loop {
            let size = size_of(&device).map_err(failed(device.display()))?;
            if size >= least {
                break size;
            }
            if deadline.left().is_zero() {
                return Err(Status::unavailable(format!(
                    "{} has {size} bytes, and should have {least}",
                    device.display()
                )));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        if let Some(kind) = kind {
            filesystem::grow(&self.tools, &device, at, kind, deadline.left()).await.map_err(of_tool)?;
        }
        Ok(size)
    }
}

/// Sees to it that there is something for a volume to be shown at: a directory, or a file for a raw block device.
fn make_place(target: &Path, of_block: bool) -> Result<()> {
    let made = match std::fs::symlink_metadata(target) {
        Ok(m) if !of_block && m.is_dir() => return Ok(()),
        Ok(m) if of_block && (m.is_file() || m.file_type().is_block_device()) => return Ok(()),
        Ok(_) => {
            let text = format!("target_path: {} is there, and is something else", target.display());
            return Err(invalid(text));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound && of_block => {
            std::fs::File::create_new(target).map(drop)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => std::fs::create_dir(target),
        Err(e) => Err(e),
    };
    made.map_err(failed(target.display()))
}

fn remove_place(target: &Path) -> Result<()> {
    let removed = match std::fs::symlink_metadata(target) {
        // What is in it is somebody's.
        Ok(m) if m.is_dir() => std::fs::remove_dir(target),
        Ok(_) => std::fs::remove_file(target),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    };
    removed.map_err(failed(format!("removing {}", target.display())))
}

fn taken(at: &Path, by: &Mount) -> Status {
    Status::failed_precondition(format!(
        "{} is mounted at {}, and is something else",
        by.source,
        at.display()
    ))
}

/// It is what should be there, and used in another way than is asked now.
fn otherwise(at: &Path, mount: &Mount) -> Status {
    let how = if mount.is_read_only() { "only to be read" } else { "to be written" };
    Status::already_exists(format!("{} is there already, as {}, {how}", at.display(), mount.kind))
}

/// Whether what is staged is what should be.
fn is_it(mount: &Mount, device: (u32, u32), kind: Kind, read_only: bool, at: &Path) -> Result<()> {
    if mount.device != device {
        return Err(taken(at, mount));
    }
    let same = mount.kind == kind.as_str() && mount.is_read_only() == read_only;
    if same { Ok(()) } else { Err(otherwise(at, mount)) }
}
