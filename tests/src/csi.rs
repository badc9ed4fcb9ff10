//! The driver as Kubernetes' sidecars and kubelet see it: the controller in this process, against appliances that are real or
//! simulated, and clients that call it over real gRPC.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use orlop_csi::appliances::Appliances;
use orlop_csi::config::Config;
use orlop_csi::controller::Controller;
use orlop_csi::csi::controller_client::ControllerClient;
use orlop_csi::csi::group_controller_client::GroupControllerClient;
use orlop_csi::csi::identity_client::IdentityClient;
use orlop_csi::csi::node_client::NodeClient;
use orlop_csi::csi::snapshot_metadata_client::SnapshotMetadataClient;
use orlop_csi::csi::volume_capability::access_mode::Mode;
use orlop_csi::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use orlop_csi::csi::{CapacityRange, VolumeCapability};
use orlop_csi::telemetry::Telemetry;
use orlop_csi::{identity, serve};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tonic::transport::{Channel, Endpoint, Uri};

/// A controller and its clients. It is served until this is dropped.
pub struct Driver {
    /// CSI's own name for it.
    pub controller: ControllerClient<Channel>,
    /// Groups of snapshots.
    pub groups: GroupControllerClient<Channel>,
    /// Blocks of snapshots.
    pub metadata: SnapshotMetadataClient<Channel>,
    /// What it can do.
    pub identity: IdentityClient<Channel>,
    _dir: tempfile::TempDir,
    _stop: oneshot::Sender<()>,
}

impl Driver {
    /// In front of these appliances.
    pub async fn start(config: Config) -> Result<Self> {
        let known = Arc::new(Appliances::new(config));
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("csi.sock");
        let (stop, stopped) = oneshot::channel();
        let identity = identity::Identity { controller: true, topology: known.have_topology() };
        let served = path.clone();
        tokio::spawn(async move {
            let stop = async move { drop(stopped.await) };
            let controller = Some(Controller::new(known));
            serve::serve(&served, identity, controller, None, Telemetry::default(), stop).await
        });
        let channel = at_socket(&path).await?;
        Ok(Self {
            controller: ControllerClient::new(channel.clone()),
            groups: GroupControllerClient::new(channel.clone()),
            metadata: SnapshotMetadataClient::new(channel.clone()),
            identity: IdentityClient::new(channel),
            _dir: dir,
            _stop: stop,
        })
    }
}

async fn at_socket(path: &Path) -> Result<Channel> {
    let endpoint = Endpoint::from_static("http://csi.sock");
    let mut tries = 0;
    loop {
        let path = path.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        match endpoint.connect_with_connector(connector).await {
            Ok(channel) => return Ok(channel),
            Err(e) if tries == 100 => return Err(e).context("the controller does not answer"),
            Err(_) => tries += 1,
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A controller that runs as a process of its own, by its socket.
pub async fn controller_at(socket: &Path) -> Result<ControllerClient<Channel>> {
    Ok(ControllerClient::new(at_socket(socket).await?))
}

/// A node's part, behind a port of this machine that leads to its socket. Each call opens a connection if there is none.
pub fn node_at(port: u16) -> Result<NodeClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}"))?;
    Ok(NodeClient::new(endpoint.connect_lazy()))
}

/// Parameters of a class.
pub fn map(all: &[(&str, &str)]) -> HashMap<String, String> {
    all.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
}

fn used_as(access_type: AccessType, mode: Mode) -> VolumeCapability {
    VolumeCapability { access_type: Some(access_type), access_mode: Some(AccessMode { mode: mode.into() }) }
}

/// A raw block device.
pub fn block(mode: Mode) -> VolumeCapability {
    used_as(AccessType::Block(BlockVolume {}), mode)
}

/// A file system.
pub fn mount(fs_type: &str, mode: Mode) -> VolumeCapability {
    let mount = MountVolume { fs_type: fs_type.into(), ..MountVolume::default() };
    used_as(AccessType::Mount(mount), mode)
}

/// How large; 0 leaves it open.
pub fn sized(required_bytes: i64, limit_bytes: i64) -> Option<CapacityRange> {
    Some(CapacityRange { required_bytes, limit_bytes })
}
