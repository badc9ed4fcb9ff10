//! From an attachment to a disk of this machine, and back.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use orlop_api::{Access, Attachment, IscsiAccess, NvmeAccess, Portal, Transport, VolumeId};

use super::attempts::Attempts;
use super::iscsi;
use super::nvme::{self, Brings, Sysfs, Times};
use super::tools::{ToolError, Tools};
use crate::deadline::Deadline;

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No portal let this node in.
    #[error("no portal could be connected to: {0}")]
    NoPath(String),
    /// It is connected, and the disk did not come in time.
    #[error("connected, and there is no disk with the identity {0} yet")]
    NoDisk(String),
    /// A disk has its identity and another size.
    #[error("{device} has {is} bytes, and the volume {want}: it is not used")]
    Size {
        /// Which.
        device: String,
        /// What it has.
        is: u64,
        /// What it should have at least.
        want: u64,
    },
    /// The kernel has not yet ended an attempt to connect it.
    #[error("it is still being connected")]
    UnderWay,
    /// Something must be there first.
    #[error("{0}")]
    Lacks(String),
    /// The kernel or a program refused.
    #[error("{0}: {1}")]
    Io(String, #[source] std::io::Error),
    /// A program failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
}

type Result<T> = std::result::Result<T, ConnectError>;

/// What a node brings beyond what the attachment says.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// The volume's context: queue budgets.
    pub context: HashMap<String, String>,
    /// `dhchapSecret`, `dhchapControllerSecret`, `chapUser`, `chapSecret` and so on, from a secret of Kubernetes.
    pub secrets: HashMap<String, String>,
}

/// Between two looks at what the kernel makes by itself.
const LOOK: Duration = Duration::from_millis(50);

/// How long one portal may take.
const PORTAL: Duration = Duration::from_secs(15);

/// How long one may take to be there at all. The kernel makes one connection of the machine after the other: one that nobody answers
/// would keep all volumes waiting.
const ANSWER: Duration = Duration::from_secs(5);

/// How long the other portals may take once one is connected.
const OTHERS: Duration = Duration::from_secs(2);

/// How long multipathd may take to take a path for itself. One that it does not want is used as it is.
const MULTIPATHD: Duration = Duration::from_secs(10);

/// What does it.
#[derive(Debug, Clone)]
pub struct Connector {
    /// The host's programs.
    pub tools: Tools,
    /// What the kernel shows.
    pub sysfs: Sysfs,
    /// How NVMe connections behave.
    pub times: Times,
    /// The identifier of this host.
    pub host_id: String,
    /// What the kernel is at.
    pub(super) attempts: Attempts<VolumeId>,
}

async fn blocking<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(what).await.map_err(|e| ConnectError::Lacks(e.to_string()))
}

impl Connector {
    /// Connects a disk by all portals, and finds it by its identity. At least one portal must let this node in.
    pub async fn connect(
        &self,
        attachment: &Attachment,
        with: &Credentials,
        deadline: Deadline,
    ) -> Result<PathBuf> {
        let device = match &attachment.access {
            Access::Nvme(access) => self.connect_nvme(attachment.volume, access, with, deadline).await?,
            Access::Iscsi(access) => self.log_in(attachment.volume, access, with, deadline).await?,
            Access::Nfs(_) => return Err(ConnectError::Lacks("a file system has no disk".into())),
        };
        let size = size_of(&device).map_err(|e| ConnectError::Io(device.display().to_string(), e))?;
        // It may have grown since it was attached.
        if size < attachment.size.bytes() {
            let device = device.display().to_string();
            return Err(ConnectError::Size { device, is: size, want: attachment.size.bytes() });
        }
        Ok(device)
    }

    async fn connect_nvme(
        &self,
        volume: VolumeId,
        access: &NvmeAccess,
        with: &Credentials,
        deadline: Deadline,
    ) -> Result<PathBuf> {
        let secret = |key: &str| with.secrets.get(key).map(String::as_str);
        let number = |key: &str| with.context.get(key).and_then(|n| n.parse().ok());
        let brings = Brings {
            host_id: &self.host_id,
            secret: secret("dhchapSecret"),
            controller_secret: secret("dhchapControllerSecret"),
            io_queues: number(crate::parameters::key::IO_QUEUES),
            queue_depth: number(crate::parameters::key::QUEUE_DEPTH),
        };
        if access.authentication.is_some() && brings.secret.is_none() {
            let text = "the appliance asks for a secret: give the StorageClass a node-stage secret with dhchapSecret";
            return Err(ConnectError::Lacks(text.into()));
        }
        let known = self.sysfs.controllers(access.nqn.as_str());
        let known = known.map_err(|e| ConnectError::Io("looking for connections".into(), e))?;
        let connected = by_all(&access.portals, deadline, async |portal| {
            if known.iter().any(|c| c.is_at(portal)) {
                return Ok(());
            }
            if portal.transport == Transport::Tcp {
                answers(portal).await?;
            }
            let options = nvme::options(access, portal, &brings, self.times);
            let attempt = self.attempts.begin(volume);
            let connecting = blocking(move || {
                let done = nvme::connect(&options);
                drop(attempt);
                done
            });
            match connecting.await {
                Ok(done) => done.map_err(|e| e.to_string()),
                Err(e) => Err(e.to_string()),
            }
        });
        connected.await?;
        loop {
            let found =
                self.sysfs.disk(access).map_err(|e| ConnectError::Io("looking for the disk".into(), e))?;
            // Its node comes a moment after it.
            if let Some(device) = found.map(|name| Path::new("/dev").join(name)).filter(|d| d.exists()) {
                return Ok(device);
            }
            if deadline.left().is_zero() {
                return Err(ConnectError::NoDisk(access.nguid.clone()));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn log_in(
        &self,
        volume: VolumeId,
        access: &IscsiAccess,
        with: &Credentials,
        deadline: Deadline,
    ) -> Result<PathBuf> {
        if access.chap.is_some() && !with.secrets.contains_key("chapSecret") {
            let text = "the appliance asks for a secret: give the StorageClass a node-stage secret with chapUser and chapSecret";
            return Err(ConnectError::Lacks(text.into()));
        }
        let known = self.sysfs.portals(access.iqn.as_str());
        let known = known.map_err(|e| ConnectError::Io("looking for sessions".into(), e))?;
        let connected = by_all(&access.portals, deadline, async |portal| {
            if known.iter().any(|(address, port)| *address == portal.address && *port == portal.port) {
                return Ok(());
            }
            // A task of its own, which ends what it has begun also where nobody waits for it any more: iscsid would go on.
            let (tools, secrets, times) = (self.tools.clone(), with.secrets.clone(), self.times);
            let (target, at, attempt) = (access.iqn.clone(), shown(portal), self.attempts.begin(volume));
            let logging_in = tokio::spawn(async move {
                let done = iscsi::log_in(&tools, target.as_str(), &at, &secrets, times, PORTAL).await;
                drop(attempt);
                done.map_err(|e| e.to_string())
            });
            logging_in.await.unwrap_or_else(|e| Err(e.to_string()))
        });
        connected.await?;
        // Where multipathd runs it takes the paths for itself, a moment after they come.
        let patience = if iscsi::has_multipathd(&self.tools) { MULTIPATHD } else { Duration::ZERO };
        let since = Instant::now();
        loop {
            let found = self.sysfs.scsi_disk(access);
            let found = found.map_err(|e| ConnectError::Io("looking for the disk".into(), e))?;
            let device = found.as_ref().map(|name| Path::new("/dev").join(name)).filter(|d| d.exists());
            let final_one = found.is_some_and(|name| name.starts_with("dm-")) || since.elapsed() >= patience;
            if let (Some(device), true) = (device, final_one) {
                return Ok(device);
            }
            if deadline.left().is_zero() {
                return Err(ConnectError::NoDisk(access.wwn.clone()));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The disk of an attachment, if it is here now.
    pub fn found(&self, access: &Access) -> std::io::Result<Option<PathBuf>> {
        let name = match access {
            Access::Nvme(access) => self.sysfs.disk(access)?,
            Access::Iscsi(access) => self.sysfs.scsi_disk(access)?,
            Access::Nfs(_) => None,
        };
        Ok(name.map(|name| Path::new("/dev").join(name)))
    }

    /// All disks by which this machine has a volume, as the kernel knows it: nothing must have been kept for that.
    pub fn disks(&self, volume: VolumeId) -> std::io::Result<Vec<PathBuf>> {
        let mut names = Vec::new();
        for ends in endings(volume) {
            names.extend(self.sysfs.nvme_disks(&ends)?);
            for session in self.sysfs.sessions(&ends)? {
                names.extend(self.sysfs.scsi_disks(&session)?);
            }
        }
        names.sort();
        names.dedup();
        Ok(names.into_iter().map(|name| Path::new("/dev").join(name)).collect())
    }

    /// Sees to it that a disk's size is asked for again. An NVMe host is told of it.
    pub async fn rescan(&self, device: &Path, deadline: Deadline) -> Result<()> {
        let Some(name) = device.file_name().map(|n| n.to_string_lossy().into_owned()) else { return Ok(()) };
        let sysfs = self.sysfs.clone();
        let of = name.clone();
        let map = blocking(move || sysfs.rescan(&of)).await?;
        if let Some(map) = map.map_err(|e| ConnectError::Io(format!("asking {name} for its size"), e))? {
            self.tools.must("multipathd", &["resize", "map", &map], deadline.left()).await?;
        }
        Ok(())
    }

    /// Whether a path leads to a volume's disk now.
    pub fn has_path(&self, volume: VolumeId) -> std::io::Result<bool> {
        for ends in endings(volume) {
            for nqn in self.sysfs.subsystems(&ends)? {
                if self.sysfs.controllers(&nqn)?.iter().any(|path| path.state == "live") {
                    return Ok(true);
                }
            }
            if self.sysfs.sessions(&ends)?.iter().any(|session| self.sysfs.is_logged_in(session)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether this node has been cut off from a volume by iSCSI: no session is left that can do I/O, and the appliance answers
    /// and shows no such target at any of its portals (one of the addresses may have become another machine's). open-iscsi
    /// goes on trying all the same, and who waits for the disk waits with it; by NVMe the kernel gives up by itself when it
    /// is refused.
    pub async fn is_cut_off(&self, volume: VolumeId) -> Result<bool> {
        let lost = |e| ConnectError::Io("looking for sessions".into(), e);
        let mut answered = false;
        for ends in endings(volume) {
            for session in self.sysfs.sessions(&ends).map_err(lost)? {
                if self.sysfs.is_logged_in(&session) {
                    return Ok(false);
                }
                for (address, port) in self.sysfs.portals(&session.target).map_err(lost)? {
                    let portal = written(&address, port);
                    match iscsi::shows(&self.tools, &session.target, &portal, PORTAL).await {
                        Some(true) => return Ok(false),
                        Some(false) => answered = true,
                        None => {}
                    }
                }
            }
        }
        Ok(answered)
    }

    /// Ends all connections to a volume, whatever is known of how they came to be. The caller has made sure that nothing
    /// uses its disk.
    pub async fn disconnect(&self, volume: VolumeId, deadline: Deadline) -> Result<()> {
        if !self.attempts.end(&volume, deadline).await {
            return Err(ConnectError::UnderWay);
        }
        let sysfs = self.sysfs.clone();
        let ended = blocking(move || {
            let mut sessions = Vec::new();
            for ends in endings(volume) {
                for nqn in sysfs.subsystems(&ends)? {
                    for controller in sysfs.controllers(&nqn)? {
                        nvme::disconnect(&controller)?;
                    }
                }
                sessions.extend(sysfs.sessions(&ends)?);
            }
            let mut maps = Vec::new();
            for session in &sessions {
                maps.extend(sysfs.maps(session)?);
            }
            maps.sort();
            maps.dedup();
            Ok((sessions, maps))
        });
        let (sessions, maps) = ended.await?.map_err(|e| ConnectError::Io("disconnecting".into(), e))?;
        for map in maps {
            self.tools.must("multipath", &["-f", &map], deadline.left()).await?;
        }
        for session in sessions {
            iscsi::log_out(&self.tools, &session, deadline).await?;
        }
        for ends in endings(volume) {
            let records = iscsi::records(&self.tools, &ends);
            for target in records.map_err(|e| ConnectError::Io("looking for records of iSCSI".into(), e))? {
                iscsi::forget(&self.tools, &target, deadline.left()).await?;
            }
        }
        Ok(())
    }
}

/// Connects by all portals at once. One must do; the others are waited for a little longer, and may come later.
async fn by_all<'a, F>(
    portals: &'a [Portal],
    deadline: Deadline,
    connect: impl Fn(&'a Portal) -> F,
) -> Result<()>
where
    F: Future<Output = std::result::Result<(), String>>,
{
    let connect = &connect;
    let mut trying: FuturesUnordered<_> =
        portals.iter().map(|portal| async move { (portal, connect(portal).await) }).collect();
    let mut missing: Vec<&Portal> = portals.iter().collect();
    let (mut refused, mut first) = (Vec::new(), None::<Instant>);
    loop {
        let patience = match first {
            None => PORTAL.min(deadline.left()),
            Some(since) => OTHERS.saturating_sub(since.elapsed()).min(deadline.left()),
        };
        match tokio::time::timeout(patience, trying.next()).await {
            Ok(Some((portal, done))) => {
                missing.retain(|other| *other != portal);
                match done {
                    Ok(()) => drop(first.get_or_insert_with(Instant::now)),
                    Err(e) => refused.push(format!("{}: {e}", shown(portal))),
                }
            }
            Ok(None) => break,
            Err(_) => {
                refused.extend(missing.into_iter().map(|portal| format!("{}: no answer yet", shown(portal))));
                break;
            }
        }
    }
    if first.is_none() {
        return Err(ConnectError::NoPath(refused.join("; ")));
    }
    if !refused.is_empty() {
        tracing::warn!(missing = refused.join("; "), "not all paths are there");
    }
    Ok(())
}

/// Whether somebody is there.
async fn answers(portal: &Portal) -> std::result::Result<(), String> {
    let connecting = tokio::net::TcpStream::connect((portal.address.as_str(), portal.port));
    match tokio::time::timeout(ANSWER, connecting).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err("nobody answers".into()),
    }
}

/// How the names end under which a volume is served: its own, and that of its readers.
fn endings(volume: VolumeId) -> [String; 2] {
    [format!(":{volume}"), format!(":{volume}:ro")]
}

/// A portal as open-iscsi and people write it.
fn shown(portal: &Portal) -> String {
    written(&portal.address, portal.port)
}

fn written(address: &str, port: u16) -> String {
    match address.contains(':') {
        true => format!("[{address}]:{port}"),
        false => format!("{address}:{port}"),
    }
}

/// How large a disk is.
pub fn size_of(device: &Path) -> std::io::Result<u64> {
    use std::io::{Seek, SeekFrom};
    std::fs::File::open(device)?.seek(SeekFrom::End(0))
}
