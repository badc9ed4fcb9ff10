//! Claims as a cluster has them: what its sidecars ask of the driver's controller, and kubelet of the node's part, which runs as
//! a service of the initiators. Both over real gRPC.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use orlop_api::client::HostFilter;
use orlop_api::{HostName, HostPut};
use orlop_csi::config::{ApplianceConfig, Config};
use orlop_csi::csi::controller_client::ControllerClient;
use orlop_csi::csi::node_client::NodeClient;
use orlop_csi::csi::volume_capability::AccessType;
use orlop_csi::csi::volume_content_source::{SnapshotSource, Type};
use orlop_csi::csi::*;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::csi::{Driver, map, node_at, sized};
use crate::{Initiator, Lab, wait_for};

/// The port of a node's driver in its guest.
pub const PORT: u16 = 10000;
/// Where kubelet would have its directories.
pub const KUBELET: &str = "/run/kubelet";
/// Where the driver keeps what it has staged.
pub const STATE: &str = "/run/orlop-csi/staged";
/// Where a node's configuration is, and the appliance's API on the first storage network, for inline volumes.
const CONFIG: &str = "/etc/orlop-csi";
const INLINE: &str = "https://10.77.1.1:8443";
const MIB: i64 = 1 << 20;
/// Where the host's root is for a driver in a container.
const HOST_ROOT: &str = "/run/host";
/// How large a claim is: XFS is not made any smaller than 300 MiB.
pub const SIZE: i64 = 320 * MIB;
/// On each storage network that a node has.
const ADDRESSES: [&str; 2] = ["10.77.1.2", "10.77.3.2"];

/// A node: an initiator with the driver on it.
pub struct Kubelet {
    /// 0 is the first initiator, 1 the second.
    pub n: usize,
    /// As the driver calls it.
    pub id: String,
    /// Calls to its driver.
    pub node: NodeClient<Channel>,
}

/// The guest that a node is.
pub fn initiator(lab: &mut Lab, n: usize) -> Result<&mut Initiator> {
    match n {
        0 => Ok(&mut lab.initiator),
        _ => lab.others.first_mut().context("a second initiator"),
    }
}

/// What the appliance's clients are told by.
pub fn environment(lab: &Lab, key: &str) -> Result<String> {
    let found = lab.environment().into_iter().find(|(k, _)| *k == key);
    found.map(|(_, value)| value).with_context(|| key.to_string())
}

impl Kubelet {
    /// Starts the driver on a node.
    pub fn start(lab: &mut Lab, n: usize) -> Result<Self> {
        let host = 31 + u8::try_from(n)?;
        let (nqn, iqn, address) = (Initiator::nqn(host)?, Initiator::iqn(host), ADDRESSES[n]);
        let uuid = nqn.as_str().rsplit(':').next().unwrap_or_default();
        // Scenarios before this one have played hosts with this address.
        for other in lab.wait(lab.api.hosts(&HostFilter::default()))?.items {
            if other.addresses.iter().any(|a| a.to_string() == address) && other.name.as_str() != named(n) {
                lab.wait(lab.api.put_host(&other.name, &HostPut::nvme(Initiator::nqn(40 + host)?)))?;
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
        let ca = std::fs::read_to_string(environment(lab, "ORLOP_CA")?)?;
        let on = initiator(lab, n)?;
        on.run(&format!(
            "mkdir -p {CONFIG}; cat >{CONFIG}/a.pem <<'END'\n{ca}\nEND\n\
             printf '[[appliances]]\\nname = \"a\"\\nurl = \"{INLINE}\"\\nca_file = \"{CONFIG}/a.pem\"\\n' >{CONFIG}/inline.toml"
        ))?;
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
               --endpoint unix:///run/orlop-csi/csi.sock --state {STATE} --host-root {root} \
               --inline {CONFIG}/inline.toml; \
             systemd-run --quiet --unit=orlop-csi-port --socket-property=ListenStream=0.0.0.0:{PORT} \
               /usr/lib/systemd/systemd-socket-proxyd /run/orlop-csi/csi.sock",
            name = named(n),
        ))?;
        let port = on.guest.port(PORT).context("the node's port")?;
        let mut kubelet = Self { n, id: String::new(), node: lab.wait(async { node_at(port) })? };
        wait_for("the node's driver", Duration::from_secs(60), || {
            match lab.wait(kubelet.node.node_get_info(NodeGetInfoRequest {})) {
                Ok(info) => kubelet.id = info.into_inner().node_id,
                Err(_) => return Ok(false),
            }
            Ok(true)
        })?;
        ensure!(kubelet.id.starts_with(&format!("{} uuid:{uuid} {iqn} ", named(n))), "{}", kubelet.id);
        Ok(kubelet)
    }

    /// Takes the driver off the node, and the node away from the appliance.
    pub fn stop(self, lab: &mut Lab) -> Result<()> {
        initiator(lab, self.n)?.run(
            "systemctl stop orlop-csi-port.socket orlop-csi-port.service orlop-csi; \
             if mountpoint -q /run/host; then umount -R -l /run/host || exit 1; fi; rm -rf /run/orlop-csi /run/kubelet; \
             for own in /proc /sys /sys/kernel/config /dev; do mountpoint -q $own || { echo $own is gone; exit 1; }; done",
        )?;
        let name: HostName = named(self.n).parse()?;
        Ok(lab.wait(lab.api.delete_host(&name))?)
    }

    /// As after an upgrade of the driver, or its crash: at any moment.
    pub fn kill(&self, lab: &mut Lab, forget: bool) -> Result<()> {
        let forget = if forget { format!("; rm -rf {STATE}") } else { String::new() };
        let kill = format!("systemctl kill -s KILL orlop-csi.service{forget}");
        initiator(lab, self.n)?.run(&kill).map(drop)
    }

    /// A call, as often as kubelet would make it while nobody answers or somebody else is at it.
    pub fn call<T, F>(&self, lab: &Lab, call: impl Fn(NodeClient<Channel>) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        for _ in 0..60 {
            match lab.wait(call(self.node.clone())) {
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

/// What a node is called.
pub fn named(n: usize) -> String {
    format!("node-{n}")
}

/// A claim that is bound: the volume and how it is used.
pub struct Claim {
    /// What it is called.
    pub name: String,
    /// The volume that it has got.
    pub volume: Volume,
    /// How it is used.
    pub capability: VolumeCapability,
    /// What is in the secret that its class names for staging.
    pub secrets: HashMap<String, String>,
}

impl Claim {
    /// Where it is staged.
    pub fn staging(&self) -> String {
        format!("{KUBELET}/plugins/csi.orlop.dev/{}/globalmount", self.name)
    }

    /// Where its pod finds it.
    pub fn target(&self) -> String {
        format!("{KUBELET}/pods/{}/mount", self.name)
    }

    /// Whether it is a raw device.
    pub fn is_block(&self) -> bool {
        matches!(self.capability.access_type, Some(AccessType::Block(_)))
    }

    /// What kubelet asks to have it staged.
    pub fn staging_ask(&self, context: &HashMap<String, String>) -> NodeStageVolumeRequest {
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
    pub fn content(&self) -> String {
        if self.is_block() { self.target() } else { format!("{}/content", self.target()) }
    }
}

/// What asks the driver's controller: the sidecars.
pub struct Cluster {
    /// It.
    pub controller: ControllerClient<Channel>,
    /// While it is a part of this process.
    _driver: Option<Driver>,
}

impl Cluster {
    /// With a controller in this process, in front of the appliance.
    pub fn start(lab: &Lab) -> Result<Self> {
        let of = |key: &str| environment(lab, key);
        let appliance = ApplianceConfig {
            name: "a".parse().map_err(anyhow::Error::msg)?,
            url: of("ORLOP_URL")?,
            token_file: Some(of("ORLOP_TOKEN_FILE")?.into()),
            certificate_file: None,
            key_file: None,
            ca_file: Some(of("ORLOP_CA")?.into()),
            segments: Default::default(),
        };
        let driver = lab.wait(Driver::start(Config { appliances: vec![appliance] }))?;
        Ok(Self { controller: driver.controller.clone(), _driver: Some(driver) })
    }

    /// With one that is a process of its own.
    pub fn of(controller: ControllerClient<Channel>) -> Self {
        Self { controller, _driver: None }
    }

    /// What the provisioner does.
    pub fn claim(
        &self,
        lab: &Lab,
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
        let made = lab.wait(self.controller.clone().create_volume(ask))?.into_inner();
        let (name, volume) = (name.into(), made.volume.context("no volume")?);
        Ok(Claim { name, volume, capability, secrets: HashMap::new() })
    }

    /// What the provisioner does in the end.
    pub fn delete(&self, lab: &Lab, claim: Claim) -> Result<()> {
        let ask = DeleteVolumeRequest { volume_id: claim.volume.volume_id, ..Default::default() };
        lab.wait(self.controller.clone().delete_volume(ask))?;
        Ok(())
    }

    /// What the attacher does.
    pub fn attach(&self, lab: &Lab, claim: &Claim, to: &Kubelet) -> Result<HashMap<String, String>, Status> {
        let ask = ControllerPublishVolumeRequest {
            volume_id: claim.volume.volume_id.clone(),
            node_id: to.id.clone(),
            volume_capability: Some(claim.capability.clone()),
            volume_context: claim.volume.volume_context.clone(),
            ..Default::default()
        };
        let answer = lab.wait(self.controller.clone().controller_publish_volume(ask))?;
        Ok(answer.into_inner().publish_context)
    }

    /// What the attacher does in the end.
    pub fn detach(&self, lab: &Lab, claim: &Claim, from: &Kubelet) -> Result<(), Status> {
        let ask = ControllerUnpublishVolumeRequest {
            volume_id: claim.volume.volume_id.clone(),
            node_id: from.id.clone(),
            ..Default::default()
        };
        lab.wait(self.controller.clone().controller_unpublish_volume(ask)).map(drop)
    }

    /// What the snapshotter does.
    pub fn snapshot(&self, lab: &Lab, claim: &Claim, name: &str) -> Result<Snapshot> {
        let ask = CreateSnapshotRequest {
            source_volume_id: claim.volume.volume_id.clone(),
            name: name.into(),
            ..Default::default()
        };
        let made = lab.wait(self.controller.clone().create_snapshot(ask))?.into_inner();
        made.snapshot.context("no snapshot")
    }

    /// Attaches, and has it staged and published. Each step twice, as kubelet may. How long each took at first.
    pub fn mount(&self, lab: &mut Lab, claim: &Claim, on: &Kubelet) -> Result<[Duration; 3]> {
        let begin = Instant::now();
        let context = self.attach(lab, claim, on)?;
        let attached = begin.elapsed();
        let staged = on.stage(lab, claim, &context)?;
        on.stage(lab, claim, &context)?;
        let published = on.publish(lab, claim, &context)?;
        on.publish(lab, claim, &context)?;
        Ok([attached, staged, published])
    }

    /// Has it let go, each step twice, and detaches it.
    pub fn unmount(&self, lab: &mut Lab, claim: &Claim, from: &Kubelet) -> Result<()> {
        for _ in 0..2 {
            from.unpublish(lab, claim)?;
        }
        for _ in 0..2 {
            from.unstage(lab, claim)?;
        }
        Ok(self.detach(lab, claim, from)?)
    }

    /// What the resizer does, and kubelet after it.
    pub fn grow(&self, lab: &mut Lab, claim: &Claim, on: &Kubelet, to: i64) -> Result<()> {
        let ask = ControllerExpandVolumeRequest {
            volume_id: claim.volume.volume_id.clone(),
            capacity_range: sized(to, 0),
            volume_capability: Some(claim.capability.clone()),
            ..Default::default()
        };
        let grown = lab.wait(self.controller.clone().controller_expand_volume(ask))?.into_inner();
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
        let grown = on.call(lab, ask)?;
        ensure!(grown.capacity_bytes >= to, "{grown:?}");
        Ok(())
    }
}

impl Kubelet {
    /// Makes a directory.
    fn make(&self, lab: &mut Lab, place: &str) -> Result<(), Status> {
        let made = initiator(lab, self.n).and_then(|on| on.run(&format!("mkdir -p {place}")));
        made.map(drop).map_err(|e| Status::internal(format!("{e:#}")))
    }

    /// As kubelet has it staged: until it is. How long the driver took.
    pub fn stage(
        &self,
        lab: &mut Lab,
        claim: &Claim,
        context: &HashMap<String, String>,
    ) -> Result<Duration, Status> {
        self.make(lab, &claim.staging())?;
        let begin = Instant::now();
        self.stage_as(lab, &claim.staging_ask(context))?;
        Ok(begin.elapsed())
    }

    /// As kubelet would try it once.
    pub fn stage_once(
        &self,
        lab: &mut Lab,
        claim: &Claim,
        context: &HashMap<String, String>,
    ) -> Result<(), Status> {
        self.make(lab, &claim.staging())?;
        lab.wait(self.node.clone().node_stage_volume(claim.staging_ask(context))).map(drop)
    }

    /// The same with what is asked.
    pub fn stage_as(&self, lab: &Lab, ask: &NodeStageVolumeRequest) -> Result<(), Status> {
        self.call(lab, |mut node| {
            let ask = ask.clone();
            async move { node.node_stage_volume(ask).await }
        })
        .map(drop)
    }

    /// Has it shown to its pod. How long the driver took.
    pub fn publish(
        &self,
        lab: &mut Lab,
        claim: &Claim,
        context: &HashMap<String, String>,
    ) -> Result<Duration, Status> {
        self.make(lab, claim.target().trim_end_matches("/mount"))?;
        let ask = NodePublishVolumeRequest {
            volume_id: claim.volume.volume_id.clone(),
            publish_context: context.clone(),
            staging_target_path: claim.staging(),
            target_path: claim.target(),
            volume_capability: Some(claim.capability.clone()),
            volume_context: claim.volume.volume_context.clone(),
            ..Default::default()
        };
        let begin = Instant::now();
        self.call(lab, |mut node| {
            let ask = ask.clone();
            async move { node.node_publish_volume(ask).await }
        })?;
        Ok(begin.elapsed())
    }

    /// Has it taken away from its pod.
    pub fn unpublish(&self, lab: &Lab, claim: &Claim) -> Result<(), Status> {
        let ask = NodeUnpublishVolumeRequest {
            volume_id: claim.volume.volume_id.clone(),
            target_path: claim.target(),
        };
        self.call(lab, |mut node| {
            let ask = ask.clone();
            async move { node.node_unpublish_volume(ask).await }
        })
        .map(drop)
    }

    /// Has the node let go of it.
    pub fn unstage(&self, lab: &Lab, claim: &Claim) -> Result<(), Status> {
        let ask = NodeUnstageVolumeRequest {
            volume_id: claim.volume.volume_id.clone(),
            staging_target_path: claim.staging(),
        };
        self.call(lab, |mut node| {
            let ask = ask.clone();
            async move { node.node_unstage_volume(ask).await }
        })
        .map(drop)
    }

    /// Total bytes as kubelet shows them.
    pub fn total(&self, lab: &Lab, claim: &Claim) -> Result<i64> {
        let ask = NodeGetVolumeStatsRequest {
            volume_id: claim.volume.volume_id.clone(),
            volume_path: claim.target(),
            staging_target_path: claim.staging(),
        };
        let stats = self.call(lab, |mut node| {
            let ask = ask.clone();
            async move { node.node_get_volume_stats(ask).await }
        })?;
        let bytes = stats.usage.iter().find(|u| u.unit() == volume_usage::Unit::Bytes);
        Ok(bytes.context("no bytes")?.total)
    }

    /// Writes to the claim, and says what it wrote.
    pub fn write(&self, lab: &mut Lab, claim: &Claim) -> Result<String> {
        let file = claim.content();
        let written = format!(
            "dd if=/dev/urandom of={file} bs=1M count=4 conv=fsync,notrunc status=none && head -c 4M {file} | sha256sum"
        );
        initiator(lab, self.n)?.run(&written)
    }

    /// What is in it now.
    pub fn sum(&self, lab: &mut Lab, claim: &Claim) -> Result<String> {
        let read = format!("echo 3 >/proc/sys/vm/drop_caches; head -c 4M {} | sha256sum", claim.content());
        initiator(lab, self.n)?.run(&read)
    }

    /// Nothing is mounted, connected or kept.
    pub fn has_nothing(&self, lab: &mut Lab) -> Result<()> {
        let left = initiator(lab, self.n)?.run(&format!(
            "grep -h {KUBELET} /proc/self/mountinfo; ls -d /sys/class/nvme/nvme* /sys/class/iscsi_session/* 2>/dev/null; \
             ls {STATE} 2>/dev/null; iscsiadm -m node 2>/dev/null | grep orlop; true"
        ))?;
        ensure!(left.trim().is_empty(), "node {} still has:\n{left}", self.n);
        Ok(())
    }
}
