//! The driver of Kubernetes: what its controller adds to the calls of the API that it makes, and how much memory it takes.
//! Once against the simulated daemon, where all that is measured is overhead, and once against an appliance.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use orlop_api::client::Client;
use orlop_api::{ByteSize, HostPut, Nqn, PoolCreate, PoolKind, VolumeCreate, VolumeRef};
use orlop_csi::csi::controller_client::ControllerClient;
use orlop_csi::csi::volume_capability::access_mode::Mode;
use orlop_csi::csi::*;
use orlop_tests::csi::{controller_at, map, mount, sized};
use orlop_tests::{Initiator, Lab, LabOptions};
use tonic::transport::Channel;

use crate::daemon::{Daemon, resident};
use crate::results::Results;

/// Pairs of batches, and how many calls a batch has.
const PAIRS: usize = 7;
const CALLS: usize = 20;
const SIZE: u64 = 64 << 20;

/// The driver as it is installed, ended when dropped.
struct Shim {
    child: Child,
    controller: ControllerClient<Channel>,
    _dir: tempfile::TempDir,
}

impl Shim {
    async fn start(root: &Path, url: &str, token: &Path, ca: &Path) -> Result<Self> {
        let dir = tempfile::tempdir_in(root)?;
        let (config, socket) = (dir.path().join("config.toml"), dir.path().join("csi.sock"));
        let text = format!(
            "[[appliances]]\nname = \"a\"\nurl = {url:?}\ntoken_file = {token:?}\nca_file = {ca:?}\n"
        );
        std::fs::write(&config, text)?;
        let child = Command::new(root.join("release/orlop-csi"))
            .args(["--mode", "controller", "--endpoint"])
            .arg(&socket)
            .arg("--config")
            .arg(&config)
            .stderr(Stdio::null())
            .spawn()
            .context("target/release/orlop-csi is not built: `just bench` builds it")?;
        let mut shim = Self { child, controller: controller_at(&socket).await?, _dir: dir };
        let ask = ControllerGetCapabilitiesRequest {};
        shim.controller.controller_get_capabilities(ask).await?;
        Ok(shim)
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn nqn() -> Result<Nqn> {
    Initiator::nqn(1)
}

/// Makes, publishes and removes volumes both ways, one batch after the other.
async fn compare(
    name: &str,
    shim: &mut Shim,
    api: &Client,
    goal: Option<f64>,
    results: &mut Results,
) -> Result<()> {
    let host = "worker-1".parse()?;
    api.put_host(&host, &HostPut::nvme(nqn()?)).await?;
    let node_id = format!("worker-1 {}", nqn()?);
    let capability = mount("ext4", Mode::SingleNodeWriter);
    let (mut creates, mut publishes) = (Vec::new(), Vec::new());
    // The first pair warms up what is warm on a machine that has been running for a while.
    for pair in 0..=PAIRS {
        let mut direct = Vec::new();
        let begin = Instant::now();
        for n in 0..CALLS {
            let ask = VolumeCreate::new(format!("d{pair}-{n}").parse()?, "tank".parse()?, ByteSize(SIZE));
            direct.push(VolumeRef::Id(api.create_volume(&ask).await?.id));
        }
        let created = begin.elapsed();
        let begin = Instant::now();
        for volume in &direct {
            api.attach(volume, &host).await?;
        }
        let attached = begin.elapsed();

        let mut through = Vec::new();
        let begin = Instant::now();
        for n in 0..CALLS {
            let ask = CreateVolumeRequest {
                name: format!("pvc-{pair}-{n}"),
                capacity_range: sized(i64::try_from(SIZE)?, 0),
                volume_capabilities: vec![capability.clone()],
                parameters: map(&[("pool", "tank")]),
                ..Default::default()
            };
            let made = shim.controller.create_volume(ask).await?.into_inner();
            through.push(made.volume.context("no volume")?);
        }
        let created_through = begin.elapsed();
        let begin = Instant::now();
        for volume in &through {
            let ask = ControllerPublishVolumeRequest {
                volume_id: volume.volume_id.clone(),
                node_id: node_id.clone(),
                volume_capability: Some(capability.clone()),
                volume_context: volume.volume_context.clone(),
                ..Default::default()
            };
            let answer = shim.controller.controller_publish_volume(ask).await?.into_inner();
            ensure!(answer.publish_context.contains_key("attachment"), "{answer:?}");
        }
        let published = begin.elapsed();
        if pair > 0 {
            creates.push(created_through.as_secs_f64() / created.as_secs_f64());
            publishes.push(published.as_secs_f64() / attached.as_secs_f64());
        }
        for volume in direct {
            api.detach(&volume, &host).await?;
            api.delete_volume(&volume).await?;
        }
        for volume in through {
            let gone = ControllerUnpublishVolumeRequest {
                volume_id: volume.volume_id.clone(),
                node_id: node_id.clone(),
                ..Default::default()
            };
            shim.controller.controller_unpublish_volume(gone).await?;
            let gone = DeleteVolumeRequest { volume_id: volume.volume_id, ..Default::default() };
            shim.controller.delete_volume(gone).await?;
        }
    }
    results.add(&format!("{name}: CreateVolume / the same call of the API"), &creates, "ratio", true, goal);
    results.add(&format!("{name}: ControllerPublishVolume / attach"), &publishes, "ratio", true, goal);
    Ok(())
}

pub fn run(root: &Path, results: &mut Results) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let daemon = Daemon::start(root)?;
    let state = daemon.dir.path().join("state");
    let directory = daemon.dir.path().join("pool");
    std::fs::create_dir(&directory)?;
    let (token, ca) = (state.join("admin.token"), state.join("tls/cert.pem"));
    let text = std::fs::read_to_string(&token)?;
    let api = Client::tls(&daemon.url(), text.trim().to_string().into(), Some(&std::fs::read(&ca)?))?;
    runtime.block_on(async {
        let plain = PoolCreate::new("tank".parse()?, PoolKind::Sim);
        api.create_pool(&PoolCreate { directory: Some(directory.display().to_string()), ..plain }).await?;
        let mut shim = Shim::start(root, &daemon.url(), &token, &ca).await?;
        results.add("shim: controller, resident, idle", &[resident(shim.child.id())?], "MB", true, None);
        compare("shim, simulated", &mut shim, &api, None, results).await?;
        results.add("shim: controller, resident", &[resident(shim.child.id())?], "MB", true, Some(25.0));
        anyhow::Ok(())
    })?;
    drop(daemon);

    let mut options = LabOptions::new(root.join("bench/shim"));
    options.disks = vec![("disk0".into(), 16 << 30)];
    let lab = Lab::start(&options, |_| {})?;
    let plain = PoolCreate::new("tank".parse()?, PoolKind::Zfs);
    lab.wait(
        lab.api.create_pool(&PoolCreate { disks: vec!["/dev/disk/by-id/virtio-disk0".into()], ..plain }),
    )?;
    let said: std::collections::HashMap<_, _> = lab.environment().into_iter().collect();
    lab.wait(async {
        let (token, ca) = (Path::new(&said["ORLOP_TOKEN_FILE"]), Path::new(&said["ORLOP_CA"]));
        let mut shim = Shim::start(root, &said["ORLOP_URL"], token, ca).await?;
        compare("shim, in a guest", &mut shim, &lab.api, Some(1.15), results).await
    })
}
