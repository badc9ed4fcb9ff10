//! Claims of Kubernetes, from the provisioner to a pod's directory and back.

pub mod backup;
pub mod inline;
pub mod labels;
pub mod paths;
pub mod secrets;
pub mod slow;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use orlop_csi::csi::volume_capability::AccessType;
use orlop_csi::csi::volume_capability::access_mode::Mode;
use orlop_csi::csi::*;
use orlop_tests::cluster::{Claim, Cluster, KUBELET, Kubelet, SIZE, initiator, named};
use orlop_tests::csi::{block, mount};
use orlop_tests::wait_for;
use tonic::{Code, Status};

use crate::world::{BTRFS, World, XFS, ZFS};

/// The call was refused so.
fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code) -> Result<String> {
    match result {
        Err(status) if status.code() == code => Ok(status.message().to_string()),
        other => bail!("{other:?} where {code:?} was due"),
    }
}

/// Every protocol and kind of file system: bound, written, snapshotted, restored beside, grown, and gone without a trace.
pub fn claims_reach_a_pod(w: &mut World) -> Result<()> {
    let cluster = Cluster::start(&w.lab)?;
    let node = Kubelet::start(&mut w.lab, 0)?;
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
        let claim = cluster.claim(&w.lab, name, &parameters, capability.clone(), None)?;
        let created = begin.elapsed();
        let [attached, staged, published] =
            cluster.mount(&mut w.lab, &claim, &node).with_context(|| name.to_string())?;
        let total = node.total(&w.lab, &claim)?;
        ensure!(total > SIZE / 2 && total <= claim.volume.capacity_bytes, "{name}: {total}");
        if !claim.is_block() {
            a_group_may_write(w, &claim).with_context(|| format!("{name}: a pod's group"))?;
        }
        let written = node.write(&mut w.lab, &claim)?;
        // Beside its source: what has one file system's UUID is there twice then.
        let snapshot = cluster.snapshot(&w.lab, &claim, &format!("{name}-snapshot"))?;
        let restored =
            cluster.claim(&w.lab, &format!("{name}-restored"), &parameters, capability, Some(&snapshot))?;
        cluster.mount(&mut w.lab, &restored, &node).with_context(|| format!("{name}, restored"))?;
        ensure!(node.sum(&mut w.lab, &restored)? == written, "{name}: other bytes");
        node.write(&mut w.lab, &restored)?;
        cluster.grow(&mut w.lab, &restored, &node, 2 * SIZE).with_context(|| format!("{name} grows"))?;
        let grown = node.total(&w.lab, &restored)?;
        ensure!(grown > total + SIZE / 2, "{name}: {grown} after {total}");
        // Somebody still has it when the staging is to go.
        if name != "nfs" {
            let message = refused(node.unstage(&w.lab, &restored), Code::FailedPrecondition)?;
            ensure!(message.contains("in use"), "{name}: {message}");
        }
        cluster.unmount(&mut w.lab, &restored, &node).with_context(|| format!("{name}, restored, goes"))?;
        ensure!(node.sum(&mut w.lab, &claim)? == written, "{name}: its source has other bytes");
        cluster.unmount(&mut w.lab, &claim, &node).with_context(|| format!("{name} goes"))?;
        node.has_nothing(&mut w.lab).with_context(|| name.to_string())?;
        cluster.delete(&w.lab, restored)?;
        let ask = DeleteSnapshotRequest { snapshot_id: snapshot.snapshot_id, ..Default::default() };
        w.api(cluster.controller.clone().delete_snapshot(ask))?;
        cluster.delete(&w.lab, claim)?;
        println!(
            "     {name}: created {created:.2?}, attached {attached:.2?}, staged {staged:.2?}, published {published:.2?}"
        );
    }
    bad_input(w, &cluster, &node)?;
    node.stop(&mut w.lab)
}

/// A pod with an fsGroup: kubelet gives it the directory, and a process that is nobody else writes there.
fn a_group_may_write(w: &mut World, claim: &Claim) -> Result<()> {
    let at = claim.target();
    let owner = w.lab.initiator.run(&format!(
        "set -e; chgrp 4242 {at}; chmod 2775 {at}; \
         setpriv --reuid=1000 --regid=4242 --clear-groups sh -c 'echo x >{at}/of-the-group'; \
         stat -c %u:%g {at}/of-the-group; rm {at}/of-the-group"
    ))?;
    ensure!(owner.trim() == "1000:4242", "{owner}");
    Ok(())
}

/// What kubelet would never ask, and somebody might: refused, with nothing connected and nothing mounted.
fn bad_input(w: &mut World, cluster: &Cluster, node: &Kubelet) -> Result<()> {
    let claim =
        cluster.claim(&w.lab, "bad-input", &[("pool", ZFS)], mount("ext4", Mode::SingleNodeWriter), None)?;
    let context = cluster.attach(&w.lab, &claim, node)?;
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
        refused(node.stage_as(&w.lab, &ask), code).with_context(|| what.to_string())?;
    }
    w.lab
        .initiator
        .run(&format!("umount {KUBELET}/else; rm -r {KUBELET}/else {KUBELET}/file {KUBELET}/link"))?;
    refused(node.publish(&mut w.lab, &claim, &context), Code::FailedPrecondition)?;
    // What never was is gone already, and goes once more.
    node.unpublish(&w.lab, &claim)?;
    node.unstage(&w.lab, &claim)?;
    node.has_nothing(&mut w.lab)?;
    // Something is on it that is no ext4: it stays as it is.
    let raw = Claim {
        name: "bad-input".into(),
        volume: claim.volume.clone(),
        capability: block(Mode::SingleNodeWriter),
        secrets: HashMap::new(),
    };
    node.stage(&mut w.lab, &raw, &context)?;
    node.publish(&mut w.lab, &raw, &context)?;
    let written = node.write(&mut w.lab, &raw)?;
    node.unpublish(&w.lab, &raw)?;
    let message = refused(node.stage(&mut w.lab, &claim, &context), Code::FailedPrecondition)?;
    ensure!(message.contains("is not blank"), "{message}");
    node.publish(&mut w.lab, &raw, &context)?;
    ensure!(node.sum(&mut w.lab, &raw)? == written, "its bytes are others");
    cluster.unmount(&mut w.lab, &raw, node)?;
    node.has_nothing(&mut w.lab)?;
    cluster.delete(&w.lab, claim)
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
    let cluster = Cluster::start(&w.lab)?;
    let (first, second) = (Kubelet::start(&mut w.lab, 0)?, Kubelet::start(&mut w.lab, 1)?);
    for (name, parameters, fs_type) in [
        ("moves-nvme", vec![("pool", ZFS)], "ext4"),
        ("moves-iscsi", vec![("pool", ZFS), ("protocol", "iscsi")], "xfs"),
    ] {
        let capability = mount(fs_type, Mode::SingleNodeWriter);
        let claim = cluster.claim(&w.lab, name, &parameters, capability, None)?;
        cluster.mount(&mut w.lab, &claim, &first)?;
        start_writer(w, &claim)?;
        let message = refused(cluster.attach(&w.lab, &claim, &second), Code::FailedPrecondition)?;
        ensure!(message.contains(&named(0)), "{message}");
        cluster.detach(&w.lab, &claim, &first)?;
        cluster.mount(&mut w.lab, &claim, &second).with_context(|| format!("{name}: on the second node"))?;
        let log = format!("{}/log", claim.target());
        let read = |w: &mut World| -> Result<u64> {
            let lines = initiator(&mut w.lab, 1)?.run(&format!("cat {log} | wc -l"))?;
            Ok(lines.trim().parse()?)
        };
        let there = read(w)?;
        let told = acknowledged(w)? + 1;
        ensure!(there >= told, "{name}: {told} lines were acknowledged, and {there} are there");
        second.write(&mut w.lab, &claim)?;
        ensure!(read(w)? == there, "{name}: the first node still writes");
        // The first lets go of what it can't reach any more.
        w.lab.initiator.run("systemctl kill -s KILL pod; systemctl stop pod; rm -f /run/acknowledged")?;
        let begin = Instant::now();
        first.unpublish(&w.lab, &claim)?;
        first.unstage(&w.lab, &claim)?;
        println!("     {name}: let go without the appliance in {:.1} s", begin.elapsed().as_secs_f64());
        first.has_nothing(&mut w.lab)?;
        let context = cluster.attach(&w.lab, &claim, &second)?;
        let message = refused(first.stage(&mut w.lab, &claim, &context), Code::InvalidArgument)?;
        ensure!(message.contains(&named(1)), "{message}");
        cluster.unmount(&mut w.lab, &claim, &second)?;
        second.has_nothing(&mut w.lab)?;
        cluster.delete(&w.lab, claim)?;
    }
    first.stop(&mut w.lab)?;
    second.stop(&mut w.lab)
}

/// The driver is killed between all steps and in the middle of them, its state lost, the appliance's power cut, and the
/// appliance gone when the claim is to go.
pub fn a_claim_survives(w: &mut World) -> Result<()> {
    let cluster = Cluster::start(&w.lab)?;
    let node = Kubelet::start(&mut w.lab, 0)?;
    let capability = mount("ext4", Mode::SingleNodeWriter);
    let claim = cluster.claim(&w.lab, "survives", &[("pool", ZFS)], capability.clone(), None)?;
    let mut written = None;
    for round in 0..4u64 {
        let forget = round % 2 == 1;
        let context = cluster.attach(&w.lab, &claim, &node)?;
        // A call that nobody waits for, and the end of the driver in its middle.
        kill_within(w, &node, &claim, &context, 60 * round)?;
        node.kill(&mut w.lab, forget)?;
        node.stage(&mut w.lab, &claim, &context)?;
        node.kill(&mut w.lab, forget)?;
        node.publish(&mut w.lab, &claim, &context)?;
        node.kill(&mut w.lab, forget)?;
        if let Some(written) = &written {
            ensure!(node.sum(&mut w.lab, &claim)? == *written, "round {round}: other bytes");
        }
        written = Some(node.write(&mut w.lab, &claim)?);
        node.unpublish(&w.lab, &claim)?;
        node.kill(&mut w.lab, forget)?;
        node.unstage(&w.lab, &claim)?;
        node.has_nothing(&mut w.lab)?;
        cluster.detach(&w.lab, &claim, &node)?;
    }
    // A raw block device that is still published, and nothing is known of it any more: it is not taken away.
    let raw = cluster.claim(&w.lab, "survives-raw", &[("pool", ZFS)], block(Mode::SingleNodeWriter), None)?;
    cluster.mount(&mut w.lab, &raw, &node)?;
    node.kill(&mut w.lab, true)?;
    refused(node.unstage(&w.lab, &raw), Code::FailedPrecondition)?;
    node.write(&mut w.lab, &raw)?;
    cluster.unmount(&mut w.lab, &raw, &node)?;
    cluster.delete(&w.lab, raw)?;

    cluster.mount(&mut w.lab, &claim, &node)?;
    start_writer(w, &claim)?;
    w.lab.power_cycle(|_| {})?;
    let before = acknowledged(w)?;
    wait_for("the pod to write on", Duration::from_secs(120), || Ok(acknowledged(w)? > before + 3))?;
    w.lab.initiator.run("systemctl stop pod; rm -f /run/acknowledged")?;
    ensure!(node.sum(&mut w.lab, &claim)? == written.unwrap_or_default(), "other bytes after the power cut");
    // What was not flushed can't be, and must not keep the pod from going.
    w.lab.initiator.run(&format!("echo dirty >{}/dirty", claim.target()))?;
    w.lab.appliance.power_cut()?;
    let begin = Instant::now();
    node.unpublish(&w.lab, &claim)?;
    node.unstage(&w.lab, &claim)?;
    println!("     let go with the appliance off in {:.1} s", begin.elapsed().as_secs_f64());
    node.has_nothing(&mut w.lab)?;
    w.lab.appliance.power_on()?;
    w.lab.wait_boot(|_| {})?;
    w.lab.wait_api()?;
    cluster.detach(&w.lab, &claim, &node)?;
    cluster.delete(&w.lab, claim)?;
    node.stop(&mut w.lab)
}

/// Has a claim staged, and kills the driver while it is at it.
fn kill_within(
    w: &mut World,
    node: &Kubelet,
    claim: &Claim,
    context: &HashMap<String, String>,
    after: u64,
) -> Result<()> {
    initiator(&mut w.lab, node.n)?.run(&format!("mkdir -p {}", claim.staging()))?;
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
    node.kill(&mut w.lab, false)
}
