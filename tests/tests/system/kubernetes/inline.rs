//! Inline volumes: made by the node's part with what a pod brings, and deleted with the pod.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use orlop_api::client::VolumeFilter;
use orlop_api::{TokenName, TokenPut, Verb};
use orlop_csi::csi::volume_capability::access_mode::Mode;
use orlop_csi::csi::{
    NodeGetVolumeStatsRequest, NodePublishVolumeRequest, NodeUnpublishVolumeRequest, VolumeCapability,
};
use orlop_tests::cluster::{KUBELET, Kubelet, STATE, initiator};
use orlop_tests::csi::{block, map, mount};
use orlop_tests::wait_for;
use tonic::{Code, Status};

use super::refused;
use crate::world::{World, ZFS};

/// As Kubernetes makes one.
const ID: &str = "csi-0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0";
const TENANT: &str = "pods";

/// A pod with an inline volume.
struct Pod {
    id: String,
    secrets: HashMap<String, String>,
    attributes: HashMap<String, String>,
    capability: VolumeCapability,
}

impl Pod {
    fn target(&self) -> String {
        format!("{KUBELET}/pods/{}/mount", self.id)
    }

    fn ask(&self) -> NodePublishVolumeRequest {
        let mut context = self.attributes.clone();
        context.extend(map(&[
            ("csi.storage.k8s.io/ephemeral", "true"),
            ("csi.storage.k8s.io/pod.name", "pod-0"),
            ("csi.storage.k8s.io/pod.namespace", "team"),
        ]));
        NodePublishVolumeRequest {
            volume_id: self.id.clone(),
            target_path: self.target(),
            volume_capability: Some(self.capability.clone()),
            volume_context: context,
            secrets: self.secrets.clone(),
            ..Default::default()
        }
    }

    fn publish_once(&self, w: &mut World, node: &Kubelet) -> Result<(), Status> {
        let parent = format!("mkdir -p $(dirname {})", self.target());
        let made = initiator(&mut w.lab, node.n).and_then(|on| on.run(&parent));
        made.map_err(|e| Status::internal(format!("{e:#}")))?;
        let (mut client, ask) = (node.node.clone(), self.ask());
        w.api(async move { client.node_publish_volume(ask).await }).map(drop)
    }

    fn publish(&self, w: &mut World, node: &Kubelet) -> Result<(), Status> {
        let ask = self.ask();
        node.call(&w.lab, |mut client| {
            let ask = ask.clone();
            async move { client.node_publish_volume(ask).await }
        })
        .map(drop)
    }

    fn unpublish(&self, w: &World, node: &Kubelet) -> Result<(), Status> {
        let ask = NodeUnpublishVolumeRequest { volume_id: self.id.clone(), target_path: self.target() };
        node.call(&w.lab, |mut client| {
            let ask = ask.clone();
            async move { client.node_unpublish_volume(ask).await }
        })
        .map(drop)
    }
}

/// The sizes of the tenant's volumes.
fn volumes(w: &World) -> Result<Vec<u64>> {
    let all = w.api(w.lab.api.all_volumes(VolumeFilter::default()))?;
    Ok(all.iter().filter(|v| v.tenant.as_str() == TENANT).map(|v| v.size.bytes()).collect())
}

/// Nothing is mounted, connected or kept on the node.
fn nothing_is_left(w: &mut World, node: &Kubelet) -> Result<()> {
    let left = initiator(&mut w.lab, node.n)?.run(&format!(
        "grep -h -e {KUBELET} -e {STATE} /proc/self/mountinfo; ls -d /sys/class/nvme/nvme* 2>/dev/null; \
         ls {STATE}/inline {STATE}/*.json 2>/dev/null; true"
    ))?;
    ensure!(left.trim().is_empty(), "there is still:\n{left}");
    Ok(())
}

pub fn inline_volumes(w: &mut World) -> Result<()> {
    let node = Kubelet::start(&mut w.lab, 0)?;
    let name: TokenName = "inline".parse()?;
    let verbs = vec![Verb::CreateVolume, Verb::DeleteVolume, Verb::PutHost, Verb::Attach, Verb::Detach];
    let scope = TokenPut { tenant: TENANT.parse()?, pools: vec![ZFS.parse()?], verbs, certificate: None };
    let made = w.api(w.lab.api.put_token(&name, &scope))?;
    let token = made.secret.context("a new token")?.expose().to_string();
    let mut pod = Pod {
        id: ID.into(),
        secrets: map(&[("token", &token)]),
        attributes: map(&[("pool", ZFS), ("size", "100Mi")]),
        capability: mount("ext4", Mode::SingleNodeWriter),
    };

    // What a pod has got wrong it hears, and nothing comes of it.
    for (key, value, code) in [
        ("token", "", Code::InvalidArgument),
        ("token", "0123456789012345678901234567890123456789", Code::Unavailable),
    ] {
        let before = pod.secrets.insert(key.into(), value.into());
        let message =
            refused(pod.publish_once(w, &node), code).with_context(|| format!("{key} {value:?}"))?;
        println!("     {key}: {message}");
        ensure!(!message.contains(&token), "the token is in an error");
        pod.unpublish(w, &node)?;
        pod.secrets.extend(before.map(|before| (key.to_string(), before)));
    }
    for (key, value) in [("pool", "nosuch"), ("size", "much"), ("colour", "blue"), ("appliance", "b")] {
        let before = pod.attributes.insert(key.into(), value.into());
        let tried = pod.publish_once(w, &node);
        ensure!(tried.is_err(), "{key} {value} was taken");
        pod.unpublish(w, &node)?;
        match before {
            Some(before) => drop(pod.attributes.insert(key.into(), before)),
            None => drop(pod.attributes.remove(key)),
        }
    }
    let disk = Pod {
        capability: block(Mode::SingleNodeWriter),
        id: pod.id.clone(),
        secrets: pod.secrets.clone(),
        attributes: pod.attributes.clone(),
    };
    refused(disk.publish_once(w, &node), Code::InvalidArgument)?;
    ensure!(volumes(w)?.is_empty(), "something was made");

    let began = Instant::now();
    pod.publish(w, &node)?;
    println!("     an inline volume, made and mounted: {:?}", began.elapsed());
    pod.publish(w, &node)?;
    ensure!(volumes(w)? == [100 << 20], "{:?}", volumes(w)?);
    let target = pod.target();
    initiator(&mut w.lab, 0)?.run(&format!("mountpoint -q {target} && echo kept >{target}/file && sync"))?;
    node.kill(&mut w.lab, false)?;
    pod.publish(w, &node)?;
    let kept =
        initiator(&mut w.lab, 0)?.run(&format!("cat {target}/file; stat -c %a {STATE}/inline/{ID}.json"))?;
    ensure!(kept.split_whitespace().collect::<Vec<_>>() == ["kept", "600"], "{kept}");
    let ask =
        NodeGetVolumeStatsRequest { volume_id: ID.into(), volume_path: target.clone(), ..Default::default() };
    let stats = node.call(&w.lab, |mut client| {
        let ask = ask.clone();
        async move { client.node_get_volume_stats(ask).await }
    })?;
    ensure!(stats.usage.iter().any(|u| u.total > 50 << 20), "{stats:?}");
    pod.unpublish(w, &node)?;
    ensure!(volumes(w)?.is_empty(), "it is still there");
    nothing_is_left(w, &node)?;
    pod.unpublish(w, &node)?;

    // Its secret has another token by the time that it goes, and the first one lets nobody in any more.
    pod.publish(w, &node)?;
    let second: TokenName = "inline-2".parse()?;
    let made = w.api(w.lab.api.put_token(&second, &scope))?;
    let other = made.secret.context("a second token")?.expose().to_string();
    pod.secrets.insert("token".into(), other.clone());
    pod.publish(w, &node)?;
    w.api(w.lab.api.delete_token(&name))?;
    pod.unpublish(w, &node)?;
    ensure!(volumes(w)?.is_empty(), "what was made by the first token is still there");
    nothing_is_left(w, &node)?;

    // The pod goes while nobody answers: it does not wait, and what it had goes later.
    pod.publish(w, &node)?;
    w.lab.on_appliance("systemctl stop orlopd")?;
    pod.publish_once(w, &node).context("asked again while the appliance is away")?;
    let began = Instant::now();
    pod.unpublish(w, &node)?;
    println!("     taken away without its appliance's daemon: {:?}", began.elapsed());
    let left = initiator(&mut w.lab, 0)?
        .run(&format!("grep -c {KUBELET} /proc/self/mountinfo; ls /sys/class/nvme; true"))?;
    ensure!(left.trim() == "0", "{left}");
    // Forgetting its memory is no matter: it is on disk.
    node.kill(&mut w.lab, false)?;
    w.lab.on_appliance("systemctl start orlopd")?;
    w.lab.wait_api()?;
    ensure!(volumes(w)?.len() == 1, "it was deleted while the daemon was stopped");
    wait_for("what is left to be deleted", Duration::from_secs(150), || Ok(volumes(w)?.is_empty()))?;
    nothing_is_left(w, &node)?;
    let journal = initiator(&mut w.lab, 0)?
        .run(&format!("journalctl -b --no-pager -o cat | grep -cF -e '{token}' -e '{other}'; true"))?;
    ensure!(journal.trim() == "0", "a token is in the log");
    w.api(w.lab.api.delete_token(&second))?;
    node.stop(&mut w.lab)
}
