//! What a backup does, again and again: a snapshot of a claim that a pod writes to, a claim of it, another node that reads it, and
//! nothing left of any of them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use orlop_api::client::{SnapshotFilter, VolumeFilter};
use orlop_csi::csi::volume_capability::access_mode::Mode;
use orlop_csi::csi::*;
use orlop_tests::cluster::{Cluster, Kubelet, initiator};
use orlop_tests::csi::mount;

use super::{acknowledged, start_writer};
use crate::world::{World, ZFS};

/// Connections of clients come and go.
const CONNECTIONS: u64 = 8;

/// What is told by each change.
pub fn backups_leave_nothing(w: &mut World) -> Result<()> {
    again(w, 4)
}

/// What takes an hour and more.
pub fn five_hundred_backups(w: &mut World) -> Result<()> {
    again(w, 500)
}

fn again(w: &mut World, times: usize) -> Result<()> {
    let cluster = Cluster::start(&w.lab)?;
    let (writes, reads) = (Kubelet::start(&mut w.lab, 0)?, Kubelet::start(&mut w.lab, 1)?);
    let capability = mount("ext4", Mode::SingleNodeWriter);
    let claim = cluster.claim(&w.lab, "backed-up", &[("pool", ZFS)], capability.clone(), None)?;
    cluster.mount(&mut w.lab, &claim, &writes)?;
    start_writer(w, &claim)?;
    let (mut before, mut took) = (None, Vec::new());
    for n in 0..times {
        let begin = Instant::now();
        let protocol = if n % 2 == 0 { "nvme" } else { "iscsi" };
        backup(w, &cluster, &reads, &claim, n, protocol).with_context(|| format!("backup {n}"))?;
        took.push(begin.elapsed());
        // One by each protocol has been there: what is kept for the next one is kept by now.
        if n == 1 {
            before = Some(left(w)?);
        }
        if (n + 1) % 50 == 0 {
            println!("     {} backups", n + 1);
        }
    }
    took.sort();
    println!("     {times} backups: a median of {:.2?}, at most {:.2?}", took[times / 2], took[times - 1]);
    let after = left(w)?;
    let before = before.context("fewer than two")?;
    ensure!(before.things == after.things, "before:\n{}\nafter:\n{}", before.things, after.things);
    for (who, was, is) in [
        ("the daemon", before.descriptors[0], after.descriptors[0]),
        ("the driver", before.descriptors[1], after.descriptors[1]),
    ] {
        ensure!(is < was + CONNECTIONS, "{who} has {is} descriptors open after {was}");
    }
    let volumes = w.api(w.lab.api.volumes(&VolumeFilter::default()))?.items;
    ensure!(volumes.iter().filter(|v| v.name.as_str().contains("backup")).count() == 0, "{volumes:?}");
    let snapshots = w.api(w.lab.api.snapshots(&SnapshotFilter::default()))?.items;
    ensure!(snapshots.iter().all(|s| !s.name.as_str().contains("backup")), "{snapshots:?}");
    reads.has_nothing(&mut w.lab)?;
    w.lab.initiator.run("systemctl kill -s KILL pod; systemctl stop pod; rm -f /run/acknowledged")?;
    cluster.unmount(&mut w.lab, &claim, &writes)?;
    writes.has_nothing(&mut w.lab)?;
    cluster.delete(&w.lab, claim)?;
    reads.stop(&mut w.lab)?;
    writes.stop(&mut w.lab)
}

fn backup(
    w: &mut World,
    cluster: &Cluster,
    reads: &Kubelet,
    of: &orlop_tests::cluster::Claim,
    n: usize,
    protocol: &str,
) -> Result<()> {
    let told = acknowledged(w)? + 1;
    let snapshot = cluster.snapshot(&w.lab, of, &format!("backup-{n}"))?;
    let until = acknowledged(w)? + 2;
    let parameters = [("pool", ZFS), ("protocol", protocol)];
    let capability = of.capability.clone();
    let copy = cluster.claim(&w.lab, &format!("backup-{n}"), &parameters, capability, Some(&snapshot))?;
    cluster.mount(&mut w.lab, &copy, reads)?;
    // All that the pod was told is durable, and nothing from after the snapshot.
    let lines = initiator(&mut w.lab, reads.n)?.run(&format!("cat {}/log | wc -l", copy.target()))?;
    let lines: u64 = lines.trim().parse()?;
    ensure!((told..=until).contains(&lines), "{lines} lines of {told} to {until}");
    cluster.unmount(&mut w.lab, &copy, reads)?;
    cluster.delete(&w.lab, copy)?;
    let ask = DeleteSnapshotRequest { snapshot_id: snapshot.snapshot_id, ..Default::default() };
    w.api(cluster.controller.clone().delete_snapshot(ask))?;
    Ok(())
}

/// What could be left of one.
struct Left {
    /// On the appliance datasets, devices and targets; on the node disks, sessions and records of them.
    things: String,
    /// How many the daemon has open, and the node's driver.
    descriptors: [u64; 2],
}

fn left(w: &mut World) -> Result<Left> {
    let mut things = w.kernel()?;
    // The pool removes what was destroyed by itself, a moment later.
    let began = Instant::now();
    let (mut seen, mut times) = (String::new(), 0);
    while times < 4 && began.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(500));
        let now = w.lab.on_appliance(
            "zfs list -H -t all -o name | sort; ls /dev/zvol/*/* /dev/mapper; losetup -nO NAME; true",
        )?;
        times = if now == seen { times + 1 } else { 0 };
        seen = now;
    }
    things.push_str(&seen);
    let node = initiator(&mut w.lab, 1)?;
    things.push_str(&node.run(
        "ls /sys/block /sys/class/nvme /sys/class/iscsi_session /etc/iscsi/nodes /var/lib/iscsi/nodes 2>/dev/null; true",
    )?);
    let open = |unit: &str| format!("ls /proc/$(systemctl show {unit} -p MainPID --value)/fd | wc -l");
    let driver = node.run(&open("orlop-csi"))?.trim().parse()?;
    let daemon = w.lab.on_appliance(&open("orlopd"))?.trim().parse()?;
    Ok(Left { things, descriptors: [daemon, driver] })
}
