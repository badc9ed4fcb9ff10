//! Appliances that are simulated, the controller in front of them, and a client as the sidecars have one.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use orlop_api::client::Client;
use orlop_api::{PoolCreate, PoolKind};
use orlop_csi::appliances::Appliances;
use orlop_csi::config::{ApplianceConfig, Config};
use orlop_csi::controller::Controller;
use orlop_csi::csi::controller_client::ControllerClient;
use orlop_csi::csi::group_controller_client::GroupControllerClient;
use orlop_csi::csi::identity_client::IdentityClient;
use orlop_csi::csi::volume_capability::access_mode::Mode;
use orlop_csi::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use orlop_csi::csi::*;
use orlop_csi::{identity, serve};
use orlop_tests::instrumented;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

pub const POOL: &str = "tank";
pub const GIB: i64 = 1 << 30;

/// A daemon with a simulated pool, reached over TLS.
pub struct Appliance {
    pub dir: tempfile::TempDir,
    address: SocketAddr,
    child: Option<Child>,
}

impl Appliance {
    pub async fn start() -> Self {
        // Free a moment ago; nothing else on this machine asks for numbers in between.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut appliance = Self { dir: tempfile::tempdir().unwrap(), address, child: None };
        appliance.again().await;
        let directory = appliance.dir.path().join("pool");
        std::fs::create_dir_all(&directory).unwrap();
        let plain = PoolCreate::new(POOL.parse().unwrap(), PoolKind::Sim);
        let ask = PoolCreate { directory: Some(directory.display().to_string()), ..plain };
        appliance.api().create_pool(&ask).await.unwrap();
        appliance
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Starts it, for the first time or after a stop.
    pub async fn again(&mut self) {
        #[allow(clippy::disallowed_methods, reason = "a test's")]
        let child = Command::new(instrumented("orlopd").unwrap())
            .args(["--sim", "--listen", &self.address.to_string(), "--socket"])
            .arg(self.dir.path().join("orlopd.sock"))
            .arg("--state")
            .arg(self.state())
            .env_remove("NOTIFY_SOCKET")
            .env_remove("CREDENTIALS_DIRECTORY")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        for _ in 0..600 {
            if self.api().ready().await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the daemon is not ready after 30 s");
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn api(&self) -> Client {
        Client::unix(self.dir.path().join("orlopd.sock")).unwrap().with_timeout(Duration::from_secs(30))
    }

    fn config(&self, name: &str, zone: Option<&str>) -> ApplianceConfig {
        ApplianceConfig {
            name: name.parse().unwrap(),
            url: format!("https://{}", self.address),
            token_file: self.state().join("admin.token"),
            ca_file: Some(self.state().join("tls/cert.pem")),
            segments: zone.map(|zone| ("zone".to_string(), zone.to_string())).into_iter().collect(),
        }
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        self.kill();
    }
}

pub struct Rig {
    pub appliances: Vec<Appliance>,
    pub controller: ControllerClient<Channel>,
    pub groups: GroupControllerClient<Channel>,
    pub identity: IdentityClient<Channel>,
    _dir: tempfile::TempDir,
    _stop: oneshot::Sender<()>,
}

async fn connect(path: &Path) -> Channel {
    let path = path.to_owned();
    let endpoint = Endpoint::from_static("http://csi.sock");
    for _ in 0..100 {
        let path = path.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        if let Ok(channel) = endpoint.connect_with_connector(connector).await {
            return channel;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the controller does not answer");
}

impl Rig {
    /// One appliance, called `a`.
    pub async fn new() -> Self {
        Self::with(&[("a", None)]).await
    }

    /// These, by name and where they are.
    pub async fn with(all: &[(&str, Option<&str>)]) -> Self {
        let mut appliances = Vec::new();
        for _ in all {
            appliances.push(Appliance::start().await);
        }
        let configs = appliances.iter().zip(all).map(|(a, (name, zone))| a.config(name, *zone)).collect();
        let known = Arc::new(Appliances::new(Config { appliances: configs }));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("csi.sock");
        let (stop, stopped) = oneshot::channel();
        let identity = identity::Identity { controller: true, topology: known.have_topology() };
        let served = path.clone();
        tokio::spawn(async move {
            let stop = async move { drop(stopped.await) };
            serve::serve(&served, identity, Some(Controller::new(known)), None, stop).await.unwrap();
        });
        let channel = connect(&path).await;
        Self {
            appliances,
            controller: ControllerClient::new(channel.clone()),
            groups: GroupControllerClient::new(channel.clone()),
            identity: IdentityClient::new(channel),
            _dir: dir,
            _stop: stop,
        }
    }

    pub fn api(&self) -> Client {
        self.appliances[0].api()
    }

    pub async fn create(&mut self, ask: CreateVolumeRequest) -> Result<Volume, Status> {
        Ok(self.controller.create_volume(ask).await?.into_inner().volume.unwrap())
    }

    /// A volume of 1 GiB, as a claim asks for one.
    pub async fn volume(&mut self, name: &str) -> String {
        self.create(claim(name)).await.unwrap().volume_id
    }

    pub async fn delete(&mut self, volume_id: &str) -> Result<(), Status> {
        let ask = DeleteVolumeRequest { volume_id: volume_id.into(), ..Default::default() };
        self.controller.delete_volume(ask).await.map(drop)
    }

    pub async fn publish(&mut self, volume: &str, node: &str) -> Result<orlop_api::Attachment, Status> {
        self.publish_as(publication(volume, node)).await
    }

    pub async fn publish_as(
        &mut self,
        ask: ControllerPublishVolumeRequest,
    ) -> Result<orlop_api::Attachment, Status> {
        let answer = self.controller.controller_publish_volume(ask).await?.into_inner();
        Ok(serde_json::from_str(&answer.publish_context["attachment"]).unwrap())
    }

    pub async fn unpublish(&mut self, volume: &str, node: &str) -> Result<(), Status> {
        let ask = ControllerUnpublishVolumeRequest {
            volume_id: volume.into(),
            node_id: node.into(),
            ..Default::default()
        };
        self.controller.controller_unpublish_volume(ask).await.map(drop)
    }

    pub async fn snap(&mut self, volume: &str, name: &str) -> Result<Snapshot, Status> {
        let ask = CreateSnapshotRequest {
            source_volume_id: volume.into(),
            name: name.into(),
            ..Default::default()
        };
        Ok(self.controller.create_snapshot(ask).await?.into_inner().snapshot.unwrap())
    }

    pub async fn drop_snapshot(&mut self, id: &str) -> Result<(), Status> {
        let ask = DeleteSnapshotRequest { snapshot_id: id.into(), ..Default::default() };
        self.controller.delete_snapshot(ask).await.map(drop)
    }
}

pub fn map(all: &[(&str, &str)]) -> HashMap<String, String> {
    all.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
}

pub fn block(mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_type: Some(AccessType::Block(BlockVolume {})),
        access_mode: Some(AccessMode { mode: mode.into() }),
    }
}

pub fn mount(fs_type: &str, mode: Mode) -> VolumeCapability {
    let mount = MountVolume { fs_type: fs_type.into(), ..MountVolume::default() };
    VolumeCapability {
        access_type: Some(AccessType::Mount(mount)),
        access_mode: Some(AccessMode { mode: mode.into() }),
    }
}

pub fn sized(required_bytes: i64, limit_bytes: i64) -> Option<CapacityRange> {
    Some(CapacityRange { required_bytes, limit_bytes })
}

/// What the provisioner asks for, of a claim of 1 GiB.
pub fn claim(name: &str) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.into(),
        capacity_range: sized(GIB, 0),
        volume_capabilities: vec![mount("ext4", Mode::SingleNodeWriter)],
        parameters: map(&[("pool", POOL)]),
        ..Default::default()
    }
}

/// A node, as its driver calls it.
pub fn node(number: u8) -> String {
    format!(
        "worker-{number} uuid:0190c0de-0000-7000-8000-0000000000{number:02} iqn.1993-08.org.debian:01:{number}"
    )
}

pub fn publication(volume_id: &str, node_id: &str) -> ControllerPublishVolumeRequest {
    ControllerPublishVolumeRequest {
        volume_id: volume_id.into(),
        node_id: node_id.into(),
        volume_capability: Some(mount("ext4", Mode::SingleNodeWriter)),
        ..Default::default()
    }
}

/// The call failed so, and said why.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code) -> String {
    let status = result.expect_err("it was not refused");
    assert_eq!(status.code(), code, "{}", status.message());
    assert!(!status.message().is_empty());
    status.message().to_string()
}

pub const UNKNOWN: &str = "a/0190c0de-0000-7000-8000-ffffffffffff";
