//! The driver of Kubernetes: what its controller adds to the calls of the API that it makes, once against the simulated daemon,
//! where all that is measured is overhead, and once against an appliance; how long a claim takes to be mounted, and many claims
//! at once, beside what a person would type; and how much memory it takes.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt};
use orlop_api::client::Client;
use orlop_api::{ByteSize, HostPut, Nqn, PoolCreate, PoolKind, VolumeCreate, VolumeRef};
use orlop_csi::csi::controller_client::ControllerClient;
use orlop_csi::csi::volume_capability::access_mode::Mode;
use orlop_csi::csi::*;
use orlop_tests::cluster::{Cluster, Kubelet, PORT};
use orlop_tests::csi::{controller_at, map, mount, sized};
use orlop_tests::{Initiator, Lab, LabOptions, nvme};
use tonic::transport::Channel;

use crate::daemon::{Daemon, resident};
use crate::guest::{bare_loop, prepare_bare_loop};
use crate::results::Results;

/// Pairs of batches, and how many calls a batch has.
const PAIRS: usize = 7;
const CALLS: usize = 20;
const SIZE: u64 = 64 << 20;
/// How many claims are mounted, one after the other, beside as many by hand.
const MOUNTS: usize = 7;
/// Claims that are there at once, how many are made at a time, and how many volumes of the shell loop they stand beside.
const CLAIMS: usize = 200;
const WORKERS: usize = 16;
const BARE: usize = 24;

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

fn node_id() -> Result<String> {
    Ok(format!("worker-1 {}", nqn()?))
}

async fn create(controller: &ControllerClient<Channel>, name: String) -> Result<Volume> {
    let ask = CreateVolumeRequest {
        name,
        capacity_range: sized(i64::try_from(SIZE)?, 0),
        volume_capabilities: vec![mount("ext4", Mode::SingleNodeWriter)],
        parameters: map(&[("pool", "tank")]),
        ..Default::default()
    };
    controller.clone().create_volume(ask).await?.into_inner().volume.context("no volume")
}

async fn publish(controller: &ControllerClient<Channel>, volume: &Volume) -> Result<()> {
    let ask = ControllerPublishVolumeRequest {
        volume_id: volume.volume_id.clone(),
        node_id: node_id()?,
        volume_capability: Some(mount("ext4", Mode::SingleNodeWriter)),
        volume_context: volume.volume_context.clone(),
        ..Default::default()
    };
    let answer = controller.clone().controller_publish_volume(ask).await?.into_inner();
    ensure!(answer.publish_context.contains_key("attachment"), "{answer:?}");
    Ok(())
}

async fn remove(controller: &ControllerClient<Channel>, volume: Volume) -> Result<()> {
    let gone = ControllerUnpublishVolumeRequest {
        volume_id: volume.volume_id.clone(),
        node_id: node_id()?,
        ..Default::default()
    };
    controller.clone().controller_unpublish_volume(gone).await?;
    let gone = DeleteVolumeRequest { volume_id: volume.volume_id, ..Default::default() };
    controller.clone().delete_volume(gone).await?;
    Ok(())
}

/// Makes, publishes and removes volumes both ways, one batch after the other.
async fn compare(
    name: &str,
    shim: &Shim,
    api: &Client,
    goal: Option<f64>,
    results: &mut Results,
) -> Result<()> {
    let host = "worker-1".parse()?;
    api.put_host(&host, &HostPut::nvme(nqn()?)).await?;
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
            through.push(create(&shim.controller, format!("pvc-{pair}-{n}")).await?);
        }
        let created_through = begin.elapsed();
        let begin = Instant::now();
        for volume in &through {
            publish(&shim.controller, volume).await?;
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
            remove(&shim.controller, volume).await?;
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
        let shim = Shim::start(root, &daemon.url(), &token, &ca).await?;
        results.add("shim: controller, resident, idle", &[resident(shim.child.id())?], "MB", true, None);
        compare("shim, simulated", &shim, &api, None, results).await?;
        results.add("shim: controller, resident", &[resident(shim.child.id())?], "MB", true, Some(25.0));
        anyhow::Ok(())
    })?;
    drop(daemon);

    let mut options = LabOptions::new(root.join("bench/shim"));
    options.disks = vec![("disk0".into(), 16 << 30)];
    options.forward = Some(PORT);
    options.payload.push(root.join("release/orlop-csi"));
    let mut lab = Lab::start(&options, |_| {})?;
    let plain = PoolCreate::new("tank".parse()?, PoolKind::Zfs);
    lab.wait(
        lab.api.create_pool(&PoolCreate { disks: vec!["/dev/disk/by-id/virtio-disk0".into()], ..plain }),
    )?;
    let said: std::collections::HashMap<_, _> = lab.environment().into_iter().collect();
    let (token, ca) = (Path::new(&said["ORLOP_TOKEN_FILE"]), Path::new(&said["ORLOP_CA"]));
    let shim = lab.wait(Shim::start(root, &said["ORLOP_URL"], token, ca))?;
    lab.wait(compare("shim, in a guest", &shim, &lab.api, Some(1.15), results))?;
    mounts(&mut lab, &shim, results)?;
    many(&mut lab, &shim, results)?;
    lab.appliance.shutdown(std::time::Duration::from_secs(60))
}

/// Claims from nothing to mounted, by step, each beside the same work by hand: a volume of the API, `nvme connect`, `mkfs.ext4` and
/// `mount`.
fn mounts(lab: &mut Lab, shim: &Shim, results: &mut Results) -> Result<()> {
    let cluster = Cluster::of(shim.controller.clone());
    let node = Kubelet::start(lab, 0)?;
    let capability = mount("ext4", Mode::SingleNodeWriter);
    let (mut all, mut ratios, mut steps) = (Vec::new(), Vec::new(), [(); 4].map(|()| Vec::new()));
    for n in 0..=MOUNTS {
        let bare = by_hand(lab, &format!("by-hand-{n}"))?;
        let begin = Instant::now();
        let claim =
            cluster.claim(lab, &format!("mounted-{n}"), &[("pool", "tank")], capability.clone(), None)?;
        let created = begin.elapsed();
        let [attached, staged, published] = cluster.mount(lab, &claim, &node)?;
        let took = [created, attached, staged, published].map(|step| step.as_secs_f64());
        let sum: f64 = took.iter().sum();
        // The first warms up what is warm on a machine that has been running for a while.
        if n > 0 {
            all.push(sum);
            ratios.push(sum / bare);
            steps.iter_mut().zip(took).for_each(|(step, took)| step.push(100.0 * took / sum));
        }
        cluster.unmount(lab, &claim, &node)?;
        cluster.delete(lab, claim)?;
    }
    results.add("shim, in a guest: claim to mounted, NVMe and ext4", &all, "s", true, None);
    for (name, share) in ["CreateVolume", "ControllerPublish", "NodeStage", "NodePublish"].iter().zip(&steps)
    {
        results.add(&format!("shim, in a guest: {name}'s share of it"), share, "%", true, None);
    }
    results.add("shim, in a guest: claim to mounted / by hand", &ratios, "ratio", true, None);
    let pid = "/proc/$(systemctl show -P MainPID orlop-csi)/status";
    let kib: f64 = lab.initiator.run(&format!("awk '/^VmRSS/ {{print $2}}' {pid}"))?.trim().parse()?;
    results.add("shim: node, resident", &[kib * 1024.0 / 1e6], "MB", true, Some(20.0));
    node.stop(lab)
}

/// Seconds that it takes without the driver, of which those in the initiator are timed there.
fn by_hand(lab: &mut Lab, name: &str) -> Result<f64> {
    let host = "by-hand".parse()?;
    let begin = Instant::now();
    lab.wait(lab.api.put_host(&host, &HostPut::nvme(Initiator::nqn(2)?)))?;
    let volume = VolumeCreate::new(name.parse()?, "tank".parse()?, ByteSize(320 << 20));
    let volume = VolumeRef::Id(lab.wait(lab.api.create_volume(&volume))?.id);
    let attachment = lab.wait(lab.api.attach(&volume, &host))?;
    let attached = begin.elapsed().as_secs_f64();
    let access = nvme(&attachment)?;
    let (hostnqn, uuid) = (Initiator::nqn(2)?, access.uuid);
    let hostid = hostnqn.as_str().rsplit(':').next().unwrap_or_default();
    let mut script = String::from("set -e; mkdir -p /run/by-hand; start=$(date +%s.%N); ");
    for portal in access.portals.iter().filter(|p| p.address.starts_with("10.77.")) {
        script += &format!(
            "nvme connect -t tcp -a {} -s {} -n {} --hostnqn={hostnqn} --hostid={hostid} >/dev/null; ",
            portal.address, portal.port, access.nqn
        );
    }
    script += &format!(
        "until found=$(grep -lx {uuid} /sys/block/nvme*/uuid 2>/dev/null | grep -v nvme.*c | head -1) && [ -n \"$found\" ]; \
         do sleep 0.02; done; found=${{found%/uuid}}; disk=/dev/${{found##*/}}; until [ -e $disk ]; do sleep 0.02; done; \
         mkfs.ext4 -q $disk; mount $disk /run/by-hand; end=$(date +%s.%N); umount /run/by-hand; \
         nvme disconnect -n {} >/dev/null; echo $start $end",
        access.nqn
    );
    let said = lab.initiator.run(&script)?;
    let mut times = said.split_whitespace().map(str::parse::<f64>);
    let (start, end) = (times.next().context("no start")??, times.next().context("no end")??);
    lab.wait(lab.api.detach(&volume, &host))?;
    lab.wait(lab.api.delete_volume(&volume))?;
    Ok(attached + end - start)
}

/// Many claims made and published at once, beside the shell loop that makes a volume and exports it, before and after.
fn many(lab: &mut Lab, shim: &Shim, results: &mut Results) -> Result<()> {
    prepare_bare_loop(lab)?;
    let before = bare_loop(lab, 0, BARE)?;
    let begin = Instant::now();
    let made: Vec<Volume> = lab.wait(async {
        let one = move |n: usize| async move {
            let volume = create(&shim.controller, format!("many-{n}")).await?;
            publish(&shim.controller, &volume).await?;
            anyhow::Ok(volume)
        };
        futures_util::stream::iter((0..CLAIMS).map(one)).buffer_unordered(WORKERS).try_collect().await
    })?;
    let took = begin.elapsed().as_secs_f64() / CLAIMS as f64;
    let after = bare_loop(lab, 1, BARE)?;
    let bare = [before, after].map(|all| all / BARE as f64);
    results.add("shim, in a guest: bare shell loop, a volume", &bare, "s", true, None);
    let name = format!("shim, in a guest: a claim of {CLAIMS} by {WORKERS} workers / bare");
    results.add(&name, &bare.map(|bare| took / bare), "ratio", true, None);
    let name = format!("shim: controller, resident, after {CLAIMS} claims");
    results.add(&name, &[resident(shim.child.id())?], "MB", true, Some(25.0));
    lab.wait(async {
        let each = made.into_iter().map(|volume| remove(&shim.controller, volume));
        futures_util::stream::iter(each).buffer_unordered(WORKERS).try_collect::<Vec<()>>().await
    })?;
    let left = lab.wait(lab.api.all_volumes(Default::default()))?;
    ensure!(left.is_empty(), "{} volumes are left", left.len());
    Ok(())
}
