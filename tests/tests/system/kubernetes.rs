//! Claims of Kubernetes, from the provisioner to a pod's directory and back: the driver's controller against the appliance, and
//! its node's part as a service of the initiators, both over real gRPC.

pub mod inline;
pub mod secrets;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use orlop_api::client::HostFilter;
use orlop_api::{HostName, HostPut};
use orlop_csi::config::{ApplianceConfig, Config};
use orlop_csi::csi::node_client::NodeClient;
use orlop_csi::csi::volume_capability::AccessType;
use orlop_csi::csi::volume_capability::access_mode::Mode;
use orlop_csi::csi::volume_content_source::{SnapshotSource, Type};
use orlop_csi::csi::*;
use orlop_tests::csi::{Driver, block, map, mount, node_at, sized};
use orlop_tests::{Initiator, wait_for};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::world::{BTRFS, World, XFS, ZFS};

/// The port of a node's driver in its guest.
pub const PORT: u16 = 10000;
/// Where kubelet would have its directories.
const KUBELET: &str = "/run/kubelet";
const STATE: &str = "/run/orlop-csi/staged";
const MIB: i64 = 1 << 20;
/// Where the host's root is for a driver in a container.
const HOST_ROOT: &str = "/run/host";
/// XFS is not made any smaller than 300 MiB.
const SIZE: i64 = 320 * MIB;
/// On each storage network that a node has.
const ADDRESSES: [&str; 2] = ["10.77.1.2", "10.77.3.2"];

/// A node: an initiator with the driver on it.
struct Kubelet {
    /// 0 is the first initiator, 1 the second.
    n: usize,
    id: String,
    node: NodeClient<Channel>,
}

fn initiator(w: &mut World, n: usize) -> Result<&mut Initiator> {
    match n {
        0 => Ok(&mut w.lab.initiator),
        _ => w.lab.others.first_mut().context("a second initiator"),
    }
}

/// What the appliance's clients are told by.
fn environment(w: &World, key: &str) -> Result<String> {
    let found = w.lab.environment().into_iter().find(|(k, _)| *k == key);
    found.map(|(_, value)| value).with_context(|| key.to_string())
}

/// The driver's controller, in front of the appliance.
fn driver(w: &World) -> Result<Driver> {
    let of = |key: &str| environment(w, key);
    let appliance = ApplianceConfig {
        name: "a".parse().map_err(anyhow::Error::msg)?,
        url: of("ORLOP_URL")?,
        token_file: Some(of("ORLOP_TOKEN_FILE")?.into()),
        certificate_file: None,
        key_file: None,
        ca_file: Some(of("ORLOP_CA")?.into()),
        segments: Default::default(),
    };
    w.api(Driver::start(Config { appliances: vec![appliance] }))
}

impl Kubelet {
    /// Starts the driver on a node.
    fn start(w: &mut World, n: usize) -> Result<Self> {
        let host = 31 + u8::try_from(n)?;
        let (nqn, iqn, address) = (Initiator::nqn(host)?, crate::iscsi::iqn(host), ADDRESSES[n]);
        let uuid = nqn.as_str().rsplit(':').next().unwrap_or_default();
        // Scenarios before this one have played hosts with this address.
        for other in w.api(w.lab.api.hosts(&HostFilter::default()))?.items {
            if other.addresses.iter().any(|a| a.to_string() == address) && other.name.as_str() != named(n) {
                w.api(w.lab.api.put_host(&other.name, &HostPut::nvme(Initiator::nqn(40 + host)?)))?;
            }
        }
        // The second one as in a container, which has the host's root at another place: what is unmounted there
        // stays mounted here.
        let (root, host_root) = match n {
            0 => ("/", String::new()),
            _ => (
                HOST_ROOT,
                format!(
                    "mkdir -p {HOST_ROOT}; mountpoint -q {HOST_ROOT} || mount --rbind --make-rslave / {HOST_ROOT};"
                ),
            ),
        };
        let on = initiator(w, n)?;
        let payload = on.guest.mount_payload()?.to_string();
        // What a packaged nvme-cli and open-iscsi leave on a machine when they are installed.
        on.run(&format!(
            "systemctl stop orlop-csi-port.socket orlop-csi-port orlop-csi 2>/dev/null; systemctl reset-failed 2>/dev/null; \
             hostname {name}; mkdir -p /etc/nvme /etc/iscsi {KUBELET} /run/orlop-csi; echo {nqn} >/etc/nvme/hostnqn; \
             echo {uuid} >/etc/nvme/hostid; echo InitiatorName={iqn} >/etc/iscsi/initiatorname.iscsi; \
             systemctl try-restart iscsid; {host_root} \
             systemd-run --quiet --unit=orlop-csi -p Restart=always -p RestartSec=0 -p KillMode=process -p StartLimitIntervalSec=0 \
               -p StandardError=journal -E ORLOP_CSI_LOG=debug \
               {payload}/orlop-csi --mode node --node {name} --address {address} \
               --endpoint unix:///run/orlop-csi/csi.sock --state {STATE} --host-root {root}; \
             systemd-run --quiet --unit=orlop-csi-port --socket-property=ListenStream=0.0.0.0:{PORT} \
               /usr/lib/systemd/systemd-socket-proxyd /run/orlop-csi/csi.sock",
            name = named(n),
        ))?;
        let port = on.guest.port(PORT).context("the node's port")?;
        let mut kubelet = Self { n, id: String::new(), node: w.api(async { node_at(port) })? };
        wait_for("the node's driver", Duration::from_secs(60), || {
            match w.api(kubelet.node.node_get_info(NodeGetInfoRequest {})) {
                Ok(info) => kubelet.id = info.into_inner().node_id,
                Err(_) => return Ok(false),
            }
            Ok(true)
        })?;
        ensure!(kubelet.id.starts_with(&format!("{} uuid:{uuid} {iqn} ", named(n))), "{}", kubelet.id);
        Ok(kubelet)
    }

    fn stop(self, w: &mut World) -> Result<()> {
        initiator(w, self.n)?.run(
            "systemctl stop orlop-csi-port.socket orlop-csi-port.service orlop-csi; \
             if mountpoint -q /run/host; then umount -R -l /run/host || exit 1; fi; rm -rf /run/orlop-csi /run/kubelet; \
             for own in /proc /sys /sys/kernel/config /dev; do mountpoint -q $own || { echo $own is gone; exit 1; }; done",
        )?;
        let name: HostName = named(self.n).parse()?;
        Ok(w.api(w.lab.api.delete_host(&name))?)
    }

    /// As after an upgrade of the driver, or its crash: at any moment.
    fn kill(&self, w: &mut World, forget: bool) -> Result<()> {
        let forget = if forget { format!("; rm -rf {STATE}") } else { String::new() };
        let kill = format!("systemctl kill -s KILL orlop-csi.service{forget}");
        initiator(w, self.n)?.run(&kill).map(drop)
    }

    /// A call, as often as kubelet would make it while nobody answers or somebody else is at it.
    fn call<T, F>(&self, w: &World, call: impl Fn(NodeClient<Channel>) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        for _ in 0..60 {
            match w.api(call(self.node.clone())) {
                Err(s) if matches!(s.code(), Code::Unavailable | Code::Aborted | Code::Unknown) => {
                    println!("     node {}: {:?} {}", self.n, s.code(), s.message());
                    std::thread::sleep(Duration::from_millis(500));
                }
                done => return done.map(tonic::Response::into_inner),
            }
        }
        Err(Status::unavailable("the node's driver never did it"))
    }
}

fn named(n: usize) -> String {
    format!("node-{n}")
}

/// A claim that is bound: the volume and how it is used.
struct Claim {
    name: String,
    volume: Volume,
    capability: VolumeCapability,
    /// What is in the secret that its class names for staging.
    secrets: HashMap<String, String>,
}

impl Claim {
    fn staging(&self) -> String {
        format!("{KUBELET}/plugins/csi.orlop.dev/{}/globalmount", self.name)
    }

    fn target(&self) -> String {
        format!("{KUBELET}/pods/{}/mount", self.name)
    }

    fn is_block(&self) -> bool {
        matches!(self.capability.access_type, Some(AccessType::Block(_)))
    }

    fn staging_ask(&self, context: &HashMap<String, String>) -> NodeStageVolumeRequest {
        NodeStageVolumeRequest {
            volume_id: self.volume.volume_id.clone(),
            publish_context: context.clone(),
            staging_target_path: self.staging(),
            volume_capability: Some(self.capability.clone()),
            volume_context: self.volume.volume_context.clone(),
            secrets: self.secrets.clone(),
        }
    }

    /// Something whose bytes can be compared: a file, or the device itself.
    fn content(&self) -> String {
        if self.is_block() { self.target() } else { format!("{}/content", self.target()) }
    }
}

struct Cluster {
    driver: Driver,
}

impl Cluster {
    /// What the provisioner does.
    fn claim(
        &self,
        w: &World,
        name: &str,
        parameters: &[(&str, &str)],
        capability: VolumeCapability,
        source: Option<&Snapshot>,
    ) -> Result<Claim> {
        let source = source.map(|s| VolumeContentSource {
            r#type: Some(Type::Snapshot(SnapshotSource { snapshot_id: s.snapshot_id.clone() })),
        });
        let ask = CreateVolumeRequest {
            name: name.into(),
            capacity_range: sized(SIZE, 0),
            volume_capabilities: vec![capability.clone()],
            parameters: map(parameters),
            volume_content_source: source,
            ..Default::default()
        };
        let made = w.api(self.driver.controller.clone().create_volume(ask))?.into_inner();
        let (name, volume) = (name.into(), made.volume.context("no volume")?);
        Ok(Claim { name, volume, capability, secrets: HashMap::new() })
    }

    fn delete(&self, w: &World, claim: Claim) -> Result<()> {
        let ask = DeleteVolumeRequest { volume_id: claim.volume.volume_id, ..Default::default() };
        w.api(self.driver.controller.clone().delete_volume(ask))?;
        Ok(())
    }

    /// What the attacher does.
    fn attach(&self, w: &World, claim: &Claim, to: &Kubelet) -> Result<HashMap<String, String>, Status> {
        let ask = ControllerPublishVolumeRequest {
            volume_id: claim.volume.volume_id.clone(),
            node_id: to.id.clone(),
            volume_capability: Some(claim.capability.clone()),
            volume_context: claim.volume.volume_context.clone(),
            ..Default::default()
        };
        let answer = w.api(self.driver.controller.clone().controller_publish_volume(ask))?;
        Ok(answer.into_inner().publish_context)
    }

    fn detach(&self, w: &World, claim: &Claim, from: &Kubelet) -> Result<(), Status> {
        let ask = ControllerUnpublishVolumeRequest {
            volume_id: claim.volume.volume_id.clone(),
            node_id: from.id.clone(),
            ..Default::default()
        };
        w.api(self.driver.controller.clone().controller_unpublish_volume(ask)).map(drop)
    }

    fn snapshot(&self, w: &World, claim: &Claim, name: &str) -> Result<Snapshot> {
        let ask = CreateSnapshotRequest {
            source_volume_id: claim.volume.volume_id.clone(),
            name: name.into(),
            ..Default::default()
        };
        let made = w.api(self.driver.controller.clone().create_snapshot(ask))?.into_inner();
        made.snapshot.context("no snapshot")
    }

    /// Attaches, and has it staged and published. Each step twice, as kubelet may. How long each took at first.
    fn mount(&self, w: &mut World, claim: &Claim, on: &Kubelet) -> Result<[Duration; 3]> {
        let mut took = [Duration::ZERO; 3];
        let begin = Instant::now();
        let context = self.attach(w, claim, on)?;
        took[0] = begin.elapsed();
        for again in [false, true] {
            let begin = Instant::now();
            on.stage(w, claim, &context)?;
            took[1] = if again { took[1] } else { begin.elapsed() };
        }
        for again in [false, true] {
            let begin = Instant::now();
            on.publish(w, claim, &context)?;
            took[2] = if again { took[2] } else { begin.elapsed() };
        }
        Ok(took)
    }

    fn unmount(&self, w: &mut World, claim: &Claim, from: &Kubelet) -> Result<()> {
        for _ in 0..2 {
            from.unpublish(w, claim)?;
        }
        for _ in 0..2 {
            from.unstage(w, claim)?;
        }
        Ok(self.detach(w, claim, from)?)
    }

    /// What the resizer does, and kubelet after it.
    fn grow(&self, w: &mut World, claim: &Claim, on: &Kubelet, to: i64) -> Result<()> {
        let ask = ControllerExpandVolumeRequest {
            volume_id: claim.volume.volume_id.clone(),
            capacity_range: sized(to, 0),
            volume_capability: Some(claim.capability.clone()),
            ..Default::default()
        };
        let grown = w.api(self.driver.controller.clone().controller_expand_volume(ask))?.into_inner();
        ensure!(grown.capacity_bytes >= to, "{grown:?}");
        let ask = NodeExpandVolumeRequest {
            volume_id: claim.volume.volume_id.clone(),
            volume_path: claim.target(),
            staging_target_path: claim.staging(),
            capacity_range: sized(to, 0),
            volume_capability: Some(claim.capability.clone()),
            ..Default::default()
        };
        let ask = |mut node: NodeClient<Channel>| {
            let ask = ask.clone();
            async move { node.node_expand_volume(ask).await }
        };
        let grown = on.call(w, ask)?;
        ensure!(grown.capacity_bytes >= to, "{grown:?}");
        Ok(())
    }
}

impl Kubelet {
    fn stage(&self, w: &mut World, claim: &Claim, context: &HashMap<String, String>) -> Result<(), Status> {
        let made = initiator(w, self.n).and_then(|on| on.run(&format!("mkdir -p {}", claim.staging())));
        made.map_err(|e| Status::internal(format!("{e:#}")))?;
        self.stage_as(w, &claim.staging_ask(context))
    }

    /// As kubelet would try it once.
    fn stage_once(
        &self,
        w: &mut World,
        claim: &Claim,
        context: &HashMap<String, String>,
    ) -> Result<(), Status> {
        let made = initiator(w, self.n).and_then(|on| on.run(&format!("mkdir -p {}", claim.staging())));
        made.map_err(|e| Status::internal(format!("{e:#}")))?;
        w.api(self.node.clone().node_stage_volume(claim.staging_ask(context))).map(drop)
    }

    fn stage_as(&self, w: &World, ask: &NodeStageVolumeRequest) -> Result<(), Status> {
        self.call(w, |mut node| {
            let ask = ask.clone();
            async move { node.node_stage_volume(ask).await }
        })
        .map(drop)
    }

    fn publish(&self, w: &mut World, claim: &Claim, context: &HashMap<String, String>) -> Result<(), Status> {
        let parent = format!("mkdir -p $(dirname {})", claim.target());
        let made = initiator(w, self.n).and_then(|on| on.run(&parent));
        made.map_err(|e| Status::internal(format!("{e:#}")))?;
        let ask = NodePublishVolumeRequest {
            volume_id: claim.volume.volume_id.clone(),
            publish_context: context.clone(),
            staging_target_path: claim.staging(),
            target_path: claim.target(),
            volume_capability: Some(claim.capability.clone()),
            volume_context: claim.volume.volume_context.clone(),
            ..Default::default()
        };
        self.call(w, |mut node| {
            let ask = ask.clone();
            async move { node.node_publish_volume(ask).await }
        })
        .map(drop)
    }

    fn unpublish(&self, w: &World, claim: &Claim) -> Result<(), Status> {
        let ask = NodeUnpublishVolumeRequest {
            volume_id: claim.volume.volume_id.clone(),
            target_path: claim.target(),
        };
        self.call(w, |mut node| {
            let ask = ask.clone();
            async move { node.node_unpublish_volume(ask).await }
        })
        .map(drop)
    }

    fn unstage(&self, w: &World, claim: &Claim) -> Result<(), Status> {
        let ask = NodeUnstageVolumeRequest {
            volume_id: claim.volume.volume_id.clone(),
            staging_target_path: claim.staging(),
        };
        self.call(w, |mut node| {
            let ask = ask.clone();
            async move { node.node_unstage_volume(ask).await }
        })
        .map(drop)
    }

    /// Total bytes as kubelet shows them.
    fn total(&self, w: &World, claim: &Claim) -> Result<i64> {
        let ask = NodeGetVolumeStatsRequest {
            volume_id: claim.volume.volume_id.clone(),
            volume_path: claim.target(),
            staging_target_path: claim.staging(),
        };
        let stats = self.call(w, |mut node| {
            let ask = ask.clone();
            async move { node.node_get_volume_stats(ask).await }
        })?;
        let bytes = stats.usage.iter().find(|u| u.unit() == volume_usage::Unit::Bytes);
        Ok(bytes.context("no bytes")?.total)
    }

    /// Writes to the claim, and says what it wrote.
    fn write(&self, w: &mut World, claim: &Claim) -> Result<String> {
        let file = claim.content();
        let written = format!(
            "dd if=/dev/urandom of={file} bs=1M count=4 conv=fsync,notrunc status=none && head -c 4M {file} | sha256sum"
        );
        initiator(w, self.n)?.run(&written)
    }

    fn sum(&self, w: &mut World, claim: &Claim) -> Result<String> {
        let read = format!("echo 3 >/proc/sys/vm/drop_caches; head -c 4M {} | sha256sum", claim.content());
        initiator(w, self.n)?.run(&read)
    }

    /// Nothing is mounted, connected or kept.
    fn has_nothing(&self, w: &mut World) -> Result<()> {
        let left = initiator(w, self.n)?.run(&format!(
            "grep -h {KUBELET} /proc/self/mountinfo; ls -d /sys/class/nvme/nvme* /sys/class/iscsi_session/* 2>/dev/null; \
             ls {STATE} 2>/dev/null; iscsiadm -m node 2>/dev/null | grep orlop; true"
        ))?;
        ensure!(left.trim().is_empty(), "node {} still has:\n{left}", self.n);
        Ok(())
    }
}

/// The call was refused so.
fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code) -> Result<String> {
    match result {
        Err(status) if status.code() == code => Ok(status.message().to_string()),
        other => bail!("{other:?} where {code:?} was due"),
    }
}

/// Every protocol and kind of file system: bound, written, snapshotted, restored beside, grown, and gone without a trace.
pub fn claims_reach_a_pod(w: &mut World) -> Result<()> {
    let cluster = Cluster { driver: driver(w)? };
    let node = Kubelet::start(w, 0)?;
    let single = Mode::SingleNodeWriter;
    for (name, parameters, capability) in [
        ("nvme-ext4", vec![("pool", ZFS), ("protocol", "nvme")], mount("ext4", single)),
        ("nvme-xfs", vec![("pool", BTRFS)], mount("xfs", single)),
        ("nvme-block", vec![("pool", ZFS), ("ioQueues", "1"), ("queueDepth", "32")], block(single)),
        ("iscsi-ext4", vec![("pool", XFS), ("protocol", "iscsi")], mount("ext4", single)),
        ("iscsi-block", vec![("pool", ZFS), ("protocol", "iscsi")], block(single)),
        ("nfs", vec![("pool", ZFS), ("protocol", "nfs")], mount("", Mode::MultiNodeMultiWriter)),
    ] {
        let begin = Instant::now();
        let claim = cluster.claim(w, name, &parameters, capability.clone(), None)?;
        let created = begin.elapsed();
        let [attached, staged, published] =
            cluster.mount(w, &claim, &node).with_context(|| name.to_string())?;
        let total = node.total(w, &claim)?;
        ensure!(total > SIZE / 2 && total <= claim.volume.capacity_bytes, "{name}: {total}");
        let written = node.write(w, &claim)?;
        // Beside its source: what has one file system's UUID is there twice then.
        let snapshot = cluster.snapshot(w, &claim, &format!("{name}-snapshot"))?;
        let restored =
            cluster.claim(w, &format!("{name}-restored"), &parameters, capability, Some(&snapshot))?;
        cluster.mount(w, &restored, &node).with_context(|| format!("{name}, restored"))?;
        ensure!(node.sum(w, &restored)? == written, "{name}: other bytes");
        node.write(w, &restored)?;
        cluster.grow(w, &restored, &node, 2 * SIZE).with_context(|| format!("{name} grows"))?;
        let grown = node.total(w, &restored)?;
        ensure!(grown > total + SIZE / 2, "{name}: {grown} after {total}");
        // Somebody still has it when the staging is to go.
        if name != "nfs" {
            let message = refused(node.unstage(w, &restored), Code::FailedPrecondition)?;
            ensure!(message.contains("in use"), "{name}: {message}");
        }
        cluster.unmount(w, &restored, &node).with_context(|| format!("{name}, restored, goes"))?;
        ensure!(node.sum(w, &claim)? == written, "{name}: its source has other bytes");
        cluster.unmount(w, &claim, &node).with_context(|| format!("{name} goes"))?;
        node.has_nothing(w).with_context(|| name.to_string())?;
        cluster.delete(w, restored)?;
        let ask = DeleteSnapshotRequest { snapshot_id: snapshot.snapshot_id, ..Default::default() };
        w.api(cluster.driver.controller.clone().delete_snapshot(ask))?;
        cluster.delete(w, claim)?;
        println!(
            "     {name}: created {created:.2?}, attached {attached:.2?}, staged {staged:.2?}, published {published:.2?}"
        );
    }
    bad_input(w, &cluster, &node)?;
    node.stop(w)
}

/// What kubelet would never ask, and somebody might: refused, with nothing connected and nothing mounted.
fn bad_input(w: &mut World, cluster: &Cluster, node: &Kubelet) -> Result<()> {
    let claim =
        cluster.claim(w, "bad-input", &[("pool", ZFS)], mount("ext4", Mode::SingleNodeWriter), None)?;
    let context = cluster.attach(w, &claim, node)?;
    let good = claim.staging_ask(&context);
    let staging = claim.staging();
    let with = |change: &dyn Fn(&mut NodeStageVolumeRequest)| {
        let mut ask = good.clone();
        change(&mut ask);
        ask
    };
    w.lab.initiator.run(&format!(
        "mkdir -p {staging} {KUBELET}/else; touch {KUBELET}/file; ln -s {staging} {KUBELET}/link; \
         mount -t tmpfs none {KUBELET}/else"
    ))?;
    let other = "a/0190c0de-0000-7000-8000-ffffffffffff";
    let mounted_as = |fs_type: &str, flag: &str| {
        let mut capability = mount(fs_type, Mode::SingleNodeWriter);
        if let Some(AccessType::Mount(mount)) = &mut capability.access_type {
            mount.mount_flags = vec![flag.into()];
        }
        Some(capability)
    };
    for (what, ask, code) in [
        ("no id", with(&|a| a.volume_id.clear()), Code::InvalidArgument),
        ("no volume", with(&|a| a.volume_id = "x".into()), Code::NotFound),
        ("another volume", with(&|a| a.volume_id = other.into()), Code::InvalidArgument),
        ("no place", with(&|a| a.staging_target_path.clear()), Code::InvalidArgument),
        ("a relative place", with(&|a| a.staging_target_path = "x".into()), Code::InvalidArgument),
        ("no such place", with(&|a| a.staging_target_path = "/nonexistent/x".into()), Code::InvalidArgument),
        ("a file", with(&|a| a.staging_target_path = format!("{KUBELET}/file")), Code::InvalidArgument),
        ("a link", with(&|a| a.staging_target_path = format!("{KUBELET}/link")), Code::InvalidArgument),
        ("taken", with(&|a| a.staging_target_path = format!("{KUBELET}/else")), Code::FailedPrecondition),
        ("not attached", with(&|a| a.publish_context.clear()), Code::InvalidArgument),
        ("no use", with(&|a| a.volume_capability = None), Code::InvalidArgument),
        (
            "another file system",
            with(&|a| a.volume_capability = mounted_as("ntfs", "ro")),
            Code::InvalidArgument,
        ),
        (
            "a flag that is none",
            with(&|a| a.volume_capability = mounted_as("ext4", "bind")),
            Code::InvalidArgument,
        ),
    ] {
        refused(node.stage_as(w, &ask), code).with_context(|| what.to_string())?;
    }
    w.lab
        .initiator
        .run(&format!("umount {KUBELET}/else; rm -r {KUBELET}/else {KUBELET}/file {KUBELET}/link"))?;
    refused(node.publish(w, &claim, &context), Code::FailedPrecondition)?;
    // What never was is gone already, and goes once more.
    node.unpublish(w, &claim)?;
    node.unstage(w, &claim)?;
    node.has_nothing(w)?;
    // Something is on it that is no ext4: it stays as it is.
    let raw = Claim {
        name: "bad-input".into(),
        volume: claim.volume.clone(),
        capability: block(Mode::SingleNodeWriter),
        secrets: HashMap::new(),
    };
    node.stage(w, &raw, &context)?;
    node.publish(w, &raw, &context)?;
    let written = node.write(w, &raw)?;
    node.unpublish(w, &raw)?;
    let message = refused(node.stage(w, &claim, &context), Code::FailedPrecondition)?;
    ensure!(message.contains("is not blank"), "{message}");
    node.publish(w, &raw, &context)?;
    ensure!(node.sum(w, &raw)? == written, "its bytes are others");
    cluster.unmount(w, &raw, node)?;
    node.has_nothing(w)?;
    cluster.delete(w, claim)
}

/// Appends numbers to a file of the claim, each durable before the next, until it can't.
fn start_writer(w: &mut World, claim: &Claim) -> Result<()> {
    let log = format!("{}/log", claim.target());
    w.lab.initiator.run(&format!(
        "systemctl reset-failed pod 2>/dev/null; systemd-run --quiet --unit=pod -p RemainAfterExit=yes \
         sh -c 'n=0; while echo $n | dd of={log} oflag=append,sync conv=notrunc status=none; do echo $n >/run/acknowledged; n=$((n+1)); done; exit 1'"
    ))?;
    wait_for("the first lines", Duration::from_secs(60), || Ok(acknowledged(w)? > 3))
}

fn acknowledged(w: &mut World) -> Result<u64> {
    let last = w.lab.initiator.run("cat /run/acknowledged 2>/dev/null || echo 0")?;
    Ok(last.trim().parse().unwrap_or(0))
}

/// The node that had it goes on writing: it must be cut off before the other has it, and what it was told is there.
pub fn a_claim_moves(w: &mut World) -> Result<()> {
    let cluster = Cluster { driver: driver(w)? };
    let (first, second) = (Kubelet::start(w, 0)?, Kubelet::start(w, 1)?);
    for (name, parameters, fs_type) in [
        ("moves-nvme", vec![("pool", ZFS)], "ext4"),
        ("moves-iscsi", vec![("pool", ZFS), ("protocol", "iscsi")], "xfs"),
    ] {
        let capability = mount(fs_type, Mode::SingleNodeWriter);
        let claim = cluster.claim(w, name, &parameters, capability, None)?;
        cluster.mount(w, &claim, &first)?;
        start_writer(w, &claim)?;
        let message = refused(cluster.attach(w, &claim, &second), Code::FailedPrecondition)?;
        ensure!(message.contains(&named(0)), "{message}");
        cluster.detach(w, &claim, &first)?;
        cluster.mount(w, &claim, &second).with_context(|| format!("{name}: on the second node"))?;
        let log = format!("{}/log", claim.target());
        let read = |w: &mut World| -> Result<u64> {
            let lines = initiator(w, 1)?.run(&format!("cat {log} | wc -l"))?;
            Ok(lines.trim().parse()?)
        };
        let there = read(w)?;
        let told = acknowledged(w)? + 1;
        ensure!(there >= told, "{name}: {told} lines were acknowledged, and {there} are there");
        second.write(w, &claim)?;
        ensure!(read(w)? == there, "{name}: the first node still writes");
        // The first lets go of what it can't reach any more.
        w.lab.initiator.run("systemctl kill -s KILL pod; systemctl stop pod; rm -f /run/acknowledged")?;
        let begin = Instant::now();
        first.unpublish(w, &claim)?;
        first.unstage(w, &claim)?;
        println!("     {name}: let go without the appliance in {:.1} s", begin.elapsed().as_secs_f64());
        first.has_nothing(w)?;
        let context = cluster.attach(w, &claim, &second)?;
        let message = refused(first.stage(w, &claim, &context), Code::InvalidArgument)?;
        ensure!(message.contains(&named(1)), "{message}");
        cluster.unmount(w, &claim, &second)?;
        second.has_nothing(w)?;
        cluster.delete(w, claim)?;
    }
    first.stop(w)?;
    second.stop(w)
}

/// The driver is killed between all steps and in the middle of them, its state lost, the appliance's power cut, and the
/// appliance gone when the claim is to go.
pub fn a_claim_survives(w: &mut World) -> Result<()> {
    let cluster = Cluster { driver: driver(w)? };
    let node = Kubelet::start(w, 0)?;
    let capability = mount("ext4", Mode::SingleNodeWriter);
    let claim = cluster.claim(w, "survives", &[("pool", ZFS)], capability.clone(), None)?;
    let mut written = None;
    for round in 0..4u64 {
        let forget = round % 2 == 1;
        let context = cluster.attach(w, &claim, &node)?;
        // A call that nobody waits for, and the end of the driver in its middle.
        kill_within(w, &node, &claim, &context, 60 * round)?;
        node.kill(w, forget)?;
        node.stage(w, &claim, &context)?;
        node.kill(w, forget)?;
        node.publish(w, &claim, &context)?;
        node.kill(w, forget)?;
        if let Some(written) = &written {
            ensure!(node.sum(w, &claim)? == *written, "round {round}: other bytes");
        }
        written = Some(node.write(w, &claim)?);
        node.unpublish(w, &claim)?;
        node.kill(w, forget)?;
        node.unstage(w, &claim)?;
        node.has_nothing(w)?;
        cluster.detach(w, &claim, &node)?;
    }
    // A raw block device that is still published, and nothing is known of it any more: it is not taken away.
    let raw = cluster.claim(w, "survives-raw", &[("pool", ZFS)], block(Mode::SingleNodeWriter), None)?;
    cluster.mount(w, &raw, &node)?;
    node.kill(w, true)?;
    refused(node.unstage(w, &raw), Code::FailedPrecondition)?;
    node.write(w, &raw)?;
    cluster.unmount(w, &raw, &node)?;
    cluster.delete(w, raw)?;

    cluster.mount(w, &claim, &node)?;
    start_writer(w, &claim)?;
    w.lab.power_cycle(|_| {})?;
    let before = acknowledged(w)?;
    wait_for("the pod to write on", Duration::from_secs(120), || Ok(acknowledged(w)? > before + 3))?;
    w.lab.initiator.run("systemctl stop pod; rm -f /run/acknowledged")?;
    ensure!(node.sum(w, &claim)? == written.unwrap_or_default(), "other bytes after the power cut");
    // What was not flushed can't be, and must not keep the pod from going.
    w.lab.initiator.run(&format!("echo dirty >{}/dirty", claim.target()))?;
    w.lab.appliance.power_cut()?;
    let begin = Instant::now();
    node.unpublish(w, &claim)?;
    node.unstage(w, &claim)?;
    println!("     let go with the appliance off in {:.1} s", begin.elapsed().as_secs_f64());
    node.has_nothing(w)?;
    w.lab.appliance.power_on()?;
    w.lab.wait_boot(|_| {})?;
    w.lab.wait_api()?;
    cluster.detach(w, &claim, &node)?;
    cluster.delete(w, claim)?;
    node.stop(w)
}

/// Has a claim staged, and kills the driver while it is at it.
fn kill_within(
    w: &mut World,
    node: &Kubelet,
    claim: &Claim,
    context: &HashMap<String, String>,
    after: u64,
) -> Result<()> {
    initiator(w, node.n)?.run(&format!("mkdir -p {}", claim.staging()))?;
    let ask = claim.staging_ask(context);
    let mut client = node.node.clone();
    let (sent, begun) = std::sync::mpsc::channel();
    w.api(async {
        tokio::spawn(async move {
            let _ = sent.send(());
            client.node_stage_volume(ask).await
        });
    });
    begun.recv_timeout(Duration::from_secs(10))?;
    std::thread::sleep(Duration::from_millis(after));
    node.kill(w, false)
}
