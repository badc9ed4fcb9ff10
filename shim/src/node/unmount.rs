//! Taking mounts away, and knowing when a disk is in use no more.
//!
//! umount(2) takes a mount out of sight first, and then writes back what was not flushed: for minutes, where that is much and the
//! network slow. Who went by mounts alone would let go of the disk meanwhile, and all of that would be lost without a word. So a
//! place is free when the call has ended, whoever made it, and a disk when the kernel lets somebody else have it for himself.
//!
//! What is not flushed is given up in one case: no path has led to the volume for a while. It never comes back, as far as anybody
//! can tell, and the pod must not wait for ever.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use orlop_api::{Access, VolumeId};
use rustix::mount::UnmountFlags;
use tonic::Status;

use super::staging::{blocking, failed, of_connect};
use super::{Node, blank, mounts};
use crate::deadline::Deadline;
use crate::status::Result;

/// For how long no path must have led to a volume before what was not flushed is given up.
const LOST: Duration = Duration::from_secs(30);
/// How long a node must be cut off before its disk is taken from who still waits for it.
const CERTAIN: Duration = Duration::from_secs(20);
/// Between two looks at what has no news of its own.
const LOOK: Duration = Duration::from_millis(500);
/// How long the kernel may take to say whether a disk is free.
const OPEN: Duration = Duration::from_secs(5);
/// How long an NFS server may take to answer at all.
const ANSWER: Duration = Duration::from_secs(2);
/// NFS's port.
const NFS: u16 = 2049;

/// What leads to a volume.
enum Way {
    /// Its disk, connected by this node.
    Disk(VolumeId),
    /// Servers of its file system.
    Servers(Vec<(String, u16)>),
    /// Nobody knows.
    Unknown,
}

/// Since when nothing leads to a volume.
#[derive(Debug, Default)]
pub(super) struct Lost(Option<Instant>);

impl Lost {
    /// Whether that is so for good, as far as can be told.
    fn is_over(&mut self, leads: bool) -> bool {
        match leads {
            true => self.0 = None,
            false => drop(self.0.get_or_insert_with(Instant::now)),
        }
        self.0.is_some_and(|since| since.elapsed() >= LOST)
    }
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

/// The devices that the kernel has made of a disk.
fn holders(disk: &Path) -> io::Result<Vec<OsString>> {
    let name = disk.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    match std::fs::read_dir(Path::new("/sys/class/block").join(name).join("holders")) {
        Ok(all) => all.map(|entry| entry.map(|e| e.file_name())).collect(),
        // It has gone.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// Whether one of a volume's own disks: multipathd makes one of several.
fn is_own(name: &OsString, own: &[PathBuf]) -> bool {
    own.iter().any(|disk| disk.file_name() == Some(name))
}

/// Who uses a volume's disk in a way that can be seen: a mount, or a device above it that is none of its own.
pub(super) fn in_use(disk: &Path, own: &[PathBuf]) -> io::Result<Option<String>> {
    // By the kernel's own word: a container that does not see the host's /dev must not take every disk for one that has gone.
    let name = disk.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let number = match std::fs::read_to_string(Path::new("/sys/class/block").join(name).join("dev")) {
        Ok(text) => mounts::number(text.trim()).ok_or(io::ErrorKind::InvalidData)?,
        // It went meanwhile.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let all = mounts::all()?;
    if let Some(mount) = all.iter().find(|m| m.device == number) {
        return Ok(Some(format!("mounted at {}", mount.at.display())));
    }
    if let Some(holder) = holders(disk)?.iter().find(|name| !is_own(name, own)) {
        return Ok(Some(format!("{} is above it", holder.display())));
    }
    // A raw block device that is still published: its node is mounted onto a file.
    let shown = all.into_iter().find(|m| {
        m.kind == "devtmpfs" && disk.file_name() == m.root.file_name() && m.at != Path::new("/dev")
    });
    Ok(shown.map(|m| format!("published at {}", m.at.display())))
}

/// Whether the kernel would let somebody have a disk for himself: not while a file system on it is mounted, wherever that can be
/// seen, or still being written back.
fn is_free(disk: &Path) -> io::Result<bool> {
    use rustix::io::Errno;
    let gone = |e: &io::Error| {
        [Errno::NXIO, Errno::NODEV, Errno::IO]
            .iter()
            .any(|errno| e.raw_os_error() == Some(errno.raw_os_error()))
    };
    match blank::open_unused(disk) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => Ok(false),
        Err(e) if gone(&e) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let name = disk.file_name().ok_or(io::ErrorKind::InvalidInput)?;
            match Path::new("/sys/class/block").join(name).exists() {
                false => Ok(true),
                true => Err(io::Error::new(e.kind(), "its node is not in this container's /dev")),
            }
        }
        Err(e) => Err(e),
    }
}

/// The server in `address:/path`, or `[address]:/path`.
fn server_of(source: &str) -> Option<String> {
    let (address, _) = source.rsplit_once(":/")?;
    Some(address.trim_start_matches('[').trim_end_matches(']').to_owned())
}

impl Node {
    /// Takes away what is mounted. What keeps it waits for a disk that this node has been cut off from: then the disk goes
    /// first, because it never comes back.
    pub(super) async fn unmount(
        &self,
        volume: VolumeId,
        at: &Path,
        lost: &mut Lost,
        deadline: Deadline,
    ) -> Result<()> {
        let since = Instant::now();
        let mut cut_off = false;
        loop {
            let busy = match self.try_unmount(Some(volume), at, lost, deadline).await? {
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
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Takes away what is mounted at a place, and waits until the kernel has done so: also where an earlier call began it.
    pub(super) async fn try_unmount(
        &self,
        volume: Option<VolumeId>,
        at: &Path,
        lost: &mut Lost,
        deadline: Deadline,
    ) -> Result<io::Result<()>> {
        let way = self.way_to(volume, at)?;
        let place = at.to_owned();
        let (from, attempt) = (place.clone(), self.unmounts.begin(place.clone()));
        let unmounting = async {
            let done = blocking(move || {
                let done = unmount_all(&from, UnmountFlags::empty());
                drop(attempt);
                done
            });
            let done = done.await;
            self.unmounts.none(&place).await;
            done
        };
        tokio::pin!(unmounting);
        loop {
            if let Ok(done) = tokio::time::timeout(LOOK.min(deadline.left()), &mut unmounting).await {
                return done;
            }
            if lost.is_over(self.leads(&way).await?) {
                break;
            }
            if deadline.left().is_zero() {
                return Err(Status::unavailable(format!(
                    "{}: what was written to it is still being written back",
                    at.display()
                )));
            }
        }
        tracing::warn!(at = %at.display(), "no path leads to it: the mount is taken away, what was not flushed is lost");
        let place = at.to_owned();
        let taking = blocking(move || unmount_all(&place, UnmountFlags::DETACH));
        match tokio::time::timeout(OPEN, taking).await {
            Ok(done) => done,
            Err(_) => Err(Status::unavailable(format!("{} can't be taken away", at.display()))),
        }
    }

    /// Waits until what was written to a volume's disks is there. The caller has seen that nothing is mounted from them.
    pub(super) async fn written_back(
        &self,
        volume: VolumeId,
        disks: &[PathBuf],
        lost: &mut Lost,
        deadline: Deadline,
    ) -> Result<()> {
        for disk in disks {
            // multipathd has it, for the disk that it has made of it.
            if holders(disk).map_err(failed(disk.display()))?.iter().any(|name| is_own(name, disks)) {
                continue;
            }
            loop {
                let one = disk.clone();
                // One that does not say is not free.
                if let Ok(free) = tokio::time::timeout(OPEN, blocking(move || is_free(&one))).await
                    && free?.map_err(failed(disk.display()))?
                {
                    break;
                }
                let leads = self.connector.has_path(volume).map_err(failed("looking for paths"))?;
                if lost.is_over(leads) {
                    tracing::warn!(%volume, "no path leads to its disk: what was not flushed is lost");
                    return Ok(());
                }
                if deadline.left().is_zero() {
                    return Err(Status::unavailable(format!(
                        "{} is still being written back, or mounted where it can't be seen from here",
                        disk.display()
                    )));
                }
                tokio::time::sleep(LOOK.min(deadline.left())).await;
            }
        }
        Ok(())
    }

    /// What leads to what is mounted at a place, or was.
    fn way_to(&self, volume: Option<VolumeId>, at: &Path) -> Result<Way> {
        let mounted = mounts::at(at).map_err(failed("reading mounts"))?;
        if let Some(mount) = mounted.last().filter(|mount| mount.kind.starts_with("nfs")) {
            return Ok(
                server_of(&mount.source).map_or(Way::Unknown, |server| Way::Servers(vec![(server, NFS)]))
            );
        }
        let Some(volume) = volume else { return Ok(Way::Unknown) };
        Ok(match self.state.get(volume).map(|staged| staged.attachment.access) {
            Some(Access::Nfs(access)) => {
                Way::Servers(access.portals.into_iter().map(|portal| (portal.address, portal.port)).collect())
            }
            _ => Way::Disk(volume),
        })
    }

    /// Whether it leads there now.
    async fn leads(&self, way: &Way) -> Result<bool> {
        match way {
            Way::Disk(volume) => self.connector.has_path(*volume).map_err(failed("looking for paths")),
            Way::Servers(all) => {
                let answers = all.iter().map(|(address, port)| async move {
                    let connecting = tokio::net::TcpStream::connect((address.as_str(), *port));
                    matches!(tokio::time::timeout(ANSWER, connecting).await, Ok(Ok(_)))
                });
                Ok(futures_util::future::join_all(answers).await.contains(&true))
            }
            Way::Unknown => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_servers_address_is_told_from_its_path() {
        for (source, server) in [
            ("10.0.0.1:/volumes/x", Some("10.0.0.1")),
            ("[fd00::1]:/volumes/x", Some("fd00::1")),
            ("fd00::1:/volumes/x", Some("fd00::1")),
            ("/dev/nvme0n1", None),
        ] {
            assert_eq!(server_of(source).as_deref(), server, "{source}");
        }
    }

    #[test]
    fn it_is_lost_when_nothing_leads_there_for_long() {
        let mut lost = Lost::default();
        assert!(!lost.is_over(false));
        lost.0 = lost.0.map(|since| since - LOST);
        assert!(lost.is_over(false));
        // Something did, for a moment.
        assert!(!lost.is_over(true));
        assert!(!lost.is_over(false));
    }

    #[tokio::test]
    async fn a_place_is_free_when_the_kernel_says_so_whoever_asked() {
        use super::super::attempts::Attempts;
        let unmounts = Attempts::<PathBuf>::default();
        let place = PathBuf::from("/mnt");
        let first = unmounts.begin(place.clone());
        let second = tokio::spawn({
            let (unmounts, place) = (unmounts.clone(), place.clone());
            async move { unmounts.none(&place).await }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!second.is_finished());
        assert!(unmounts.begin_alone(place.clone()).is_none());
        drop(first);
        second.await.unwrap();
        assert!(unmounts.begin_alone(place).is_some());
    }
}
