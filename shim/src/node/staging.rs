//! A volume's way onto a node and off it again: connected, formatted if it must be, mounted; and all of that backwards.
//!
//! Every step looks first at what is there, so a call that is made again, after a crash at any place or by another container,
//! goes on from where the last one was. What is mounted is asked of the kernel, never remembered.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

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

/// How long a file system may take to be unmounted while its disk has no path: what was not flushed is lost then.
const UNMOUNT: Duration = Duration::from_secs(30);

/// How long a node must be cut off before its disk is taken from who still waits for it.
const CERTAIN: Duration = Duration::from_secs(20);

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

fn failed(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> Status {
    move |e| Status::internal(format!("{what}: {e}"))
}

fn of_connect(e: ConnectError) -> Status {
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
async fn blocking<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(what).await.map_err(|e| Status::internal(e.to_string()))
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

/// Takes away all that is mounted at a place, however often.
fn unmount_all(at: &Path, flags: UnmountFlags) -> io::Result<()> {
    // More than anybody has stacked: what does not end is an error.
    for _ in 0..64 {
        if mounts::at(at)?.is_empty() {
            return Ok(());
        }
        match rustix::mount::unmount(at, flags) {
            // It went meanwhile.
            Err(rustix::io::Errno::INVAL) | Ok(()) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Err(io::Error::other("it is mounted again and again"))
}

/// Who uses a volume's disk: a mount, or a device above it that is none of its own.
fn in_use(disk: &Path, own: &[PathBuf]) -> io::Result<Option<String>> {
    // By the kernel's own word: a container that does not see the host's /dev must not take every disk for one that has gone.
    let name = disk.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let (major, minor) = match std::fs::read_to_string(Path::new("/sys/class/block").join(name).join("dev")) {
        Ok(text) => mounts::number(text.trim()).ok_or(io::ErrorKind::InvalidData)?,
        // It went meanwhile.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let all = mounts::all()?;
    if let Some(mount) = all.iter().find(|m| m.device == (major, minor)) {
        return Ok(Some(format!("mounted at {}", mount.at.display())));
    }
    let holders = match std::fs::read_dir(format!("/sys/dev/block/{major}:{minor}/holders")) {
        Ok(all) => all.map(|entry| entry.map(|e| e.file_name())).collect::<io::Result<Vec<_>>>()?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(e),
    };
    let is_own = |name: &std::ffi::OsString| own.iter().any(|disk| disk.file_name() == Some(name));
    if let Some(holder) = holders.iter().find(|name| !is_own(name)) {
        return Ok(Some(format!("{} is above it", holder.display())));
    }
    // A raw block device that is still published: its node is mounted onto a file.
    let shown = all.into_iter().find(|m| {
        m.kind == "devtmpfs" && disk.file_name() == m.root.file_name() && m.at != Path::new("/dev")
    });
    Ok(shown.map(|m| format!("published at {}", m.at.display())))
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
        directory(staging, "staging_target_path")?;
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
        blocking(move || mount_new(&source, &at, kind.as_str(), &options))
            .await?
            .map_err(failed(format!("mounting {} at {}", device.display(), staging.display())))?;
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
        self.unmount(volume, staging, deadline).await?;
        // The last to go lets go of the disk.
        let disks = self.connector.disks(volume).map_err(failed("looking for its disk"))?;
        for disk in &disks {
            if let Some(in_use) = in_use(disk, &disks).map_err(failed("looking who uses the disk"))? {
                return Err(Status::failed_precondition(format!("its disk is still in use: {in_use}")));
            }
        }
        self.connector.disconnect(volume, deadline).await.map_err(of_connect)?;
        self.state.remove(volume).map_err(failed("forgetting it"))
    }

    /// Takes away what is mounted. What keeps it waits for a disk that this node has been cut off from: then the disk goes
    /// first, because it never comes back.
    async fn unmount(&self, volume: VolumeId, at: &Path, deadline: Deadline) -> Result<()> {
        let since = Instant::now();
        let mut cut_off = false;
        loop {
            let busy = match self.try_unmount(at, deadline).await? {
                Ok(()) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {
                    failed(format!("unmounting {}", at.display()))(e)
                }
                Err(e) => return Err(failed(format!("unmounting {}", at.display()))(e)),
            };
            if deadline.left().is_zero() {
                return Err(busy);
            }
            let asks = !cut_off || since.elapsed() >= CERTAIN;
            if asks && !self.connector.is_cut_off(volume).await.map_err(of_connect)? {
                return Err(busy);
            }
            // An appliance that has just started shows what it has one after the other: it is asked twice.
            if cut_off && since.elapsed() >= CERTAIN {
                tracing::warn!(%volume, "this node has been cut off from it: what was not flushed is lost");
                self.connector.disconnect(volume, deadline).await.map_err(of_connect)?;
            }
            cut_off = true;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    async fn try_unmount(&self, at: &Path, deadline: Deadline) -> Result<io::Result<()>> {
        let place = at.to_owned();
        let unmounting = blocking(move || unmount_all(&place, UnmountFlags::empty()));
        match tokio::time::timeout(UNMOUNT.min(deadline.left()), unmounting).await {
            Ok(done) => done,
            Err(_) => {
                // Its disk does not answer. Who wrote was told what is durable; the rest goes with the path.
                tracing::warn!(at = %at.display(), "unmounting takes too long: the mount is taken away, what was not flushed is lost");
                let place = at.to_owned();
                blocking(move || unmount_all(&place, UnmountFlags::DETACH)).await
            }
        }
    }

    pub(super) async fn publish(
        &self,
        attachment: &Attachment,
        staging: &Path,
        target: &Path,
        how: &Use,
        read_only: bool,
    ) -> Result<()> {
        if !target.is_absolute() {
            return Err(invalid("target_path: it is not absolute"));
        }
        let read_only = read_only || attachment.read_only;
        let (from, wanted) = match how {
            Use::Mount { .. } => {
                let staged = mounts::at(staging).map_err(failed("reading mounts"))?;
                let staged = staged.last().ok_or_else(|| {
                    Status::failed_precondition(format!("nothing is staged at {}", staging.display()))
                })?;
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
        match (how, std::fs::symlink_metadata(target)) {
            (Use::Mount { .. }, Ok(m)) if m.is_dir() => {}
            (Use::Block, Ok(m)) if m.is_file() || m.file_type().is_block_device() => {}
            (_, Ok(_)) => {
                return Err(invalid(format!(
                    "target_path: {} is there, and is something else",
                    target.display()
                )));
            }
            (Use::Mount { .. }, Err(e)) if e.kind() == io::ErrorKind::NotFound => {
                std::fs::create_dir(target).map_err(failed(target.display()))?;
            }
            (Use::Block, Err(e)) if e.kind() == io::ErrorKind::NotFound => {
                std::fs::File::create_new(target).map(drop).map_err(failed(target.display()))?;
            }
            (_, Err(e)) => return Err(failed(target.display())(e)),
        }
        let there = mounts::at(target).map_err(failed("reading mounts"))?;
        if let Some(mount) = there.last() {
            let same = match how {
                Use::Mount { .. } => mount.device == wanted,
                Use::Block => {
                    std::fs::metadata(target).map(|m| m.rdev()).ok()
                        == std::fs::metadata(&from).map(|m| m.rdev()).ok()
                }
            };
            return match same && mount.is_read_only() == read_only {
                true => Ok(()),
                false => Err(taken(target, mount)),
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
        self.unmount(volume, target, deadline).await?;
        remove_place(target)
    }

    /// The same where it is not known which volume it was.
    pub(super) async fn free(&self, target: &Path, deadline: Deadline) -> Result<()> {
        if !target.is_absolute() {
            return Err(invalid("target_path: it is not absolute"));
        }
        let unmounted = self.try_unmount(target, deadline).await?;
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

/// Whether what is staged is what should be.
fn is_it(mount: &Mount, device: (u32, u32), kind: Kind, read_only: bool, at: &Path) -> Result<()> {
    let same = mount.device == device && mount.kind == kind.as_str() && mount.is_read_only() == read_only;
    if same { Ok(()) } else { Err(taken(at, mount)) }
}
