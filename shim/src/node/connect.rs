//! From an attachment to a disk of this machine, and back.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_api::{Access, Attachment, IscsiAccess, NvmeAccess, Portal, VolumeId};

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

/// How long one portal may take: a path that is down must not keep the others from being tried.
const PORTAL: Duration = Duration::from_secs(15);

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
            Access::Nvme(access) => self.connect_nvme(access, with, deadline).await?,
            Access::Iscsi(access) => self.log_in(access, with, deadline).await?,
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
        let mut refused = Vec::new();
        let mut paths = 0;
        for portal in &access.portals {
            if known.iter().any(|c| c.is_at(portal)) {
                paths += 1;
                continue;
            }
            let options = nvme::options(access, portal, &brings, self.times);
            let connecting = blocking(move || nvme::connect(&options));
            match tokio::time::timeout(PORTAL.min(deadline.left()), connecting).await {
                Ok(done) => match done? {
                    Ok(()) => paths += 1,
                    Err(e) => refused.push(format!("{}: {e}", shown(portal))),
                },
                Err(_) => refused.push(format!("{}: no answer", shown(portal))),
            }
        }
        if paths == 0 {
            return Err(ConnectError::NoPath(refused.join("; ")));
        }
        if !refused.is_empty() {
            tracing::warn!(nqn = %access.nqn, missing = refused.join("; "), "not all paths are there");
        }
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

    async fn log_in(&self, access: &IscsiAccess, with: &Credentials, deadline: Deadline) -> Result<PathBuf> {
        if access.chap.is_some() && !with.secrets.contains_key("chapSecret") {
            let text = "the appliance asks for a secret: give the StorageClass a node-stage secret with chapUser and chapSecret";
            return Err(ConnectError::Lacks(text.into()));
        }
        let (mut refused, mut paths) = (Vec::new(), 0);
        for portal in &access.portals {
            match self.log_in_at(access, portal, with, PORTAL.min(deadline.left())).await {
                Ok(()) => paths += 1,
                Err(e) => refused.push(format!("{}: {e}", shown(portal))),
            }
        }
        if paths == 0 {
            return Err(ConnectError::NoPath(refused.join("; ")));
        }
        let by_id = Path::new("/dev/disk/by-id");
        // multipathd's own name of it, where it is there; else the first path.
        let names = [format!("dm-uuid-mpath-3{}", access.wwn), format!("wwn-0x{}", access.wwn)];
        loop {
            if let Some(link) = names.iter().map(|name| by_id.join(name)).find(|link| link.exists()) {
                return std::fs::canonicalize(&link)
                    .map_err(|e| ConnectError::Io(link.display().to_string(), e));
            }
            if deadline.left().is_zero() {
                return Err(ConnectError::NoDisk(access.wwn.clone()));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn log_in_at(
        &self,
        access: &IscsiAccess,
        portal: &Portal,
        with: &Credentials,
        limit: Duration,
    ) -> std::result::Result<(), ToolError> {
        let at = shown(portal);
        let node = ["-m", "node", "-T", access.iqn.as_str(), "-p", &at];
        let with_node = |more: &[&'static str]| -> Vec<String> {
            node.iter().copied().chain(more.iter().copied()).map(str::to_owned).collect()
        };
        let run = |args: Vec<String>| async move {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            self.tools.run("iscsiadm", &args, limit).await
        };
        self.must_iscsiadm(run(with_node(&["-o", "new"])).await?, &[])?;
        let settings = [
            ("node.session.auth.username", "chapUser"),
            ("node.session.auth.password", "chapSecret"),
            ("node.session.auth.username_in", "chapTargetUser"),
            ("node.session.auth.password_in", "chapTargetSecret"),
        ];
        if with.secrets.contains_key("chapSecret") {
            let mut set = vec![("node.session.auth.authmethod".to_string(), "CHAP".to_string())];
            set.extend(
                settings
                    .iter()
                    .filter_map(|(name, key)| Some((name.to_string(), with.secrets.get(*key)?.clone()))),
            );
            for (name, value) in set {
                let mut args = with_node(&["-o", "update", "-n"]);
                args.extend([name, "-v".into(), value]);
                self.must_iscsiadm(run(args).await?, &[])?;
            }
        }
        // 15: it is logged in already.
        self.must_iscsiadm(run(with_node(&["--login"])).await?, &[15])
    }

    fn must_iscsiadm(
        &self,
        output: std::process::Output,
        fine: &[i32],
    ) -> std::result::Result<(), ToolError> {
        match output.status.code() {
            Some(0) => Ok(()),
            Some(code) if fine.contains(&code) => Ok(()),
            _ => Err(super::tools::failed("iscsiadm", &output)),
        }
    }

    /// Ends all connections to a volume. The caller has made sure that nothing uses its disk.
    pub async fn disconnect(
        &self,
        volume: VolumeId,
        access: Option<&Access>,
        deadline: Deadline,
    ) -> Result<()> {
        if let Some(Access::Iscsi(access)) = access {
            let args = ["-m", "node", "-T", access.iqn.as_str(), "-u"];
            // 21: there is no such session.
            self.must_iscsiadm(self.tools.run("iscsiadm", &args, deadline.left()).await?, &[21])?;
            let args = ["-m", "node", "-T", access.iqn.as_str(), "-o", "delete"];
            return Ok(self.must_iscsiadm(self.tools.run("iscsiadm", &args, deadline.left()).await?, &[21])?);
        }
        // Also where nothing is kept of how it was attached: both of its subsystems, of whatever prefix.
        let sysfs = self.sysfs.clone();
        let ended = blocking(move || {
            for ends in [format!(":{volume}"), format!(":{volume}:ro")] {
                for nqn in sysfs.subsystems(&ends)? {
                    for controller in sysfs.controllers(&nqn)? {
                        nvme::disconnect(&controller)?;
                    }
                }
            }
            Ok(())
        });
        ended.await?.map_err(|e| ConnectError::Io("disconnecting".into(), e))
    }
}

/// A portal as open-iscsi and people write it.
fn shown(portal: &Portal) -> String {
    match portal.address.contains(':') {
        true => format!("[{}]:{}", portal.address, portal.port),
        false => format!("{}:{}", portal.address, portal.port),
    }
}

/// How large a disk is.
pub fn size_of(device: &Path) -> std::io::Result<u64> {
    use std::io::{Seek, SeekFrom};
    std::fs::File::open(device)?.seek(SeekFrom::End(0))
}
