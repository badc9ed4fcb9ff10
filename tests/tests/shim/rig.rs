//! Appliances that are simulated, the controller in front of them, and a client as the sidecars have one.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use orlop_api::client::Client;
use orlop_api::{PoolCreate, PoolKind, TokenPut, Verb};
use orlop_csi::config::{ApplianceConfig, Config};
use orlop_csi::csi::volume_capability::access_mode::Mode;
use orlop_csi::csi::*;
use orlop_tests::csi::Driver;
pub use orlop_tests::csi::{block, map, mount, sized};
use orlop_tests::instrumented;
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
        Self::start_in(&std::env::temp_dir()).await
    }

    /// With what it has on the file system of that directory.
    pub async fn start_in(parent: &Path) -> Self {
        // Free a moment ago; nothing else on this machine asks for numbers in between.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut appliance = Self { dir: tempfile::tempdir_in(parent).unwrap(), address, child: None };
        appliance.again().await;
        let directory = appliance.dir.path().join("pool");
        std::fs::create_dir_all(&directory).unwrap();
        let plain = PoolCreate::new(POOL.parse().unwrap(), PoolKind::Sim);
        let ask = PoolCreate { directory: Some(directory.display().to_string()), ..plain };
        appliance.api().create_pool(&ask).await.unwrap();
        // What the driver may do is what its documents say that it needs, and no more.
        let scope = TokenPut {
            tenant: "kubernetes".parse().unwrap(),
            pools: Vec::new(),
            verbs: Verb::CSI.to_vec(),
            certificate: None,
        };
        let made = appliance.api().put_token(&"kubernetes".parse().unwrap(), &scope).await.unwrap();
        std::fs::write(appliance.token(), made.secret.unwrap().expose()).unwrap();
        appliance
    }

    /// The file with the driver's token.
    pub fn token(&self) -> PathBuf {
        self.dir.path().join("kubernetes.token")
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

    pub fn config(&self, name: &str, zone: Option<&str>) -> ApplianceConfig {
        ApplianceConfig {
            name: name.parse().unwrap(),
            url: format!("https://{}", self.address),
            token_file: Some(self.token()),
            certificate_file: None,
            key_file: None,
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
    driver: Driver,
}

/// Its clients are the rig's.
impl std::ops::Deref for Rig {
    type Target = Driver;
    fn deref(&self) -> &Driver {
        &self.driver
    }
}

impl std::ops::DerefMut for Rig {
    fn deref_mut(&mut self) -> &mut Driver {
        &mut self.driver
    }
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
        Self::of(appliances, all).await
    }

    /// These that run.
    pub async fn of(appliances: Vec<Appliance>, all: &[(&str, Option<&str>)]) -> Self {
        let configs = appliances.iter().zip(all).map(|(a, (name, zone))| a.config(name, *zone)).collect();
        let driver = Driver::start(Config { appliances: configs }).await.unwrap();
        Self { appliances, driver }
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
