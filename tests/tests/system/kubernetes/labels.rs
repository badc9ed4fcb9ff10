//! A claim on a node with SELinux: kubelet says which label a pod's files have, and it is the mount's
//! (`seLinuxMount` of the CSIDriver), so nothing is relabelled.

use anyhow::{Context, Result, ensure};
use orlop_csi::csi::volume_capability::AccessType;
use orlop_csi::csi::volume_capability::access_mode::Mode;
use orlop_tests::cluster::{Claim, Cluster, Kubelet, initiator};
use orlop_tests::csi::mount;

use crate::world::{World, XFS, ZFS};

/// The node whose kernel was started with SELinux.
const NODE: usize = 1;
const POLICY: &str = include_str!("labels.cil");

/// A pod's label: with a comma in it, as those of two pods differ by their categories.
fn label(categories: &str) -> String {
    format!("system_u:object_r:container_file_t:s0:{categories}")
}

/// As kubelet asks for it, in both calls.
fn labelled(claim: Claim, label: &str) -> Claim {
    let mut claim = claim;
    if let Some(AccessType::Mount(mount)) = &mut claim.capability.access_type {
        mount.mount_flags = vec!["noatime".into(), format!("context=\"{label}\"")];
    }
    claim
}

pub fn claims_have_their_pods_labels(w: &mut World) -> Result<()> {
    // Without a policy SELinux knows no label. It only notes what is not allowed, and everything is: labels are what is tried.
    initiator(&mut w.lab, NODE)?.run(&format!(
        "cat >/run/labels.cil <<'END'\n{POLICY}\nEND\n\
         cd /run && secilc -c $(cat /sys/fs/selinux/policyvers) -o labels.policy -f /dev/null labels.cil && \
         dd if=labels.policy of=/sys/fs/selinux/load bs=1M status=none && [ \"$(cat /sys/fs/selinux/enforce)\" = 0 ]"
    ))?;
    let cluster = Cluster::start(&w.lab)?;
    let node = Kubelet::start(&mut w.lab, NODE)?;
    for (name, parameters, capability) in [
        ("labels-nvme", vec![("pool", ZFS)], mount("ext4", Mode::SingleNodeSingleWriter)),
        (
            "labels-iscsi",
            vec![("pool", XFS), ("protocol", "iscsi")],
            mount("xfs", Mode::SingleNodeSingleWriter),
        ),
    ] {
        let claim = cluster.claim(&w.lab, name, &parameters, capability, None)?;
        let (first, next) = (label("c1,c2"), label("c2,c3"));
        let mut claim = labelled(claim, &first);
        cluster.mount(&mut w.lab, &claim, &node).with_context(|| format!("{name}: {first}"))?;
        let written = node.write(&mut w.lab, &claim)?;
        has(w, &claim, &first).with_context(|| name.to_string())?;
        cluster.unmount(&mut w.lab, &claim, &node)?;
        // The next pod has another one, and what was written before has it too, at once.
        claim = labelled(claim, &next);
        cluster.mount(&mut w.lab, &claim, &node).with_context(|| format!("{name}: {next}"))?;
        ensure!(node.sum(&mut w.lab, &claim)? == written, "{name}: other bytes");
        has(w, &claim, &next).with_context(|| name.to_string())?;
        cluster.unmount(&mut w.lab, &claim, &node)?;
        // A label that the node's policy does not know: nothing is mounted.
        claim = labelled(claim, "system_u:object_r:nonesuch_t:s0");
        let context = cluster.attach(&w.lab, &claim, &node)?;
        ensure!(node.stage_once(&mut w.lab, &claim, &context).is_err(), "{name}: any label will do");
        node.unstage(&w.lab, &claim)?;
        cluster.detach(&w.lab, &claim, &node)?;
        node.has_nothing(&mut w.lab)?;
        cluster.delete(&w.lab, claim)?;
    }
    node.stop(&mut w.lab)
}

/// The place itself, a file that is there and one that is made have this label.
fn has(w: &mut World, claim: &Claim, label: &str) -> Result<()> {
    let at = claim.target();
    let seen = initiator(&mut w.lab, NODE)?
        .run(&format!("touch {at}/new && stat -c %C {at} {at}/content {at}/new && rm {at}/new"))?;
    ensure!(seen.lines().count() == 3 && seen.lines().all(|line| line == label), "{label}: {seen}");
    Ok(())
}
