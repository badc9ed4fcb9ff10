//! A claim by iSCSI on a node that makes one disk of several paths (multipathd).

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use orlop_csi::csi::volume_capability::access_mode::Mode;
use orlop_tests::cluster::{Cluster, Kubelet, SIZE};
use orlop_tests::csi::mount;
use orlop_tests::wait_for;

use super::{acknowledged, start_writer};
use crate::world::{World, ZFS};

/// Each new path is taken at once. Without any, what is written is an error, as it is for one path alone.
const CONFIG: &str = "defaults {\\n polling_interval 2\\n max_polling_interval 4\\n find_multipaths no\\n user_friendly_names no\\n no_path_retry fail\\n}\\n";

pub fn claims_by_two_paths(w: &mut World) -> Result<()> {
    // As the node's own service: its unit is masked, because the other scenarios go without it.
    w.lab.initiator.run(&format!(
        "modprobe dm-multipath; printf '{CONFIG}' >/etc/multipath.conf; systemd-run --quiet --collect --unit=paths multipathd -d -s"
    ))?;
    let result = by_two_paths(w);
    if result.is_err() {
        let told = w
            .lab
            .initiator
            .run("multipathd show daemon; multipath -ll 2>&1; journalctl --no-pager -n 60 -u paths -u orlop-csi; true");
        println!("{}", told.unwrap_or_default());
    }
    w.lab.appliance.set_link("storage1", true)?;
    w.lab.initiator.run("multipath -F; systemctl stop paths; rm -f /etc/multipath.conf")?;
    result
}

fn by_two_paths(w: &mut World) -> Result<()> {
    wait_for("multipathd", Duration::from_secs(30), || {
        Ok(w.lab.initiator.run("multipathd show daemon 2>&1; true")?.contains("pid"))
    })?;
    let cluster = Cluster::start(&w.lab)?;
    let node = Kubelet::start(&mut w.lab, 0)?;
    let capability = mount("ext4", Mode::SingleNodeWriter);
    let parameters = [("pool", ZFS), ("protocol", "iscsi")];
    let claim = cluster.claim(&w.lab, "two-paths", &parameters, capability, None)?;
    cluster.mount(&mut w.lab, &claim, &node)?;
    let source = w.lab.initiator.run(&format!("findmnt -no SOURCE {} | head -1", claim.target()))?;
    let source = source.trim().to_string();
    ensure!(source.contains("/dm-") || source.starts_with("/dev/mapper/"), "it is mounted from {source}");
    wait_for("two paths", Duration::from_secs(30), || Ok(paths(w)? == 2))?;
    let written = node.write(&mut w.lab, &claim)?;
    start_writer(w, &claim)?;

    w.lab.appliance.set_link("storage1", false)?;
    let begin = Instant::now();
    wait_for("one path", Duration::from_secs(90), || Ok(paths(w)? == 1))?;
    let before = acknowledged(w)?;
    wait_for("the pod to write on", Duration::from_secs(60), || Ok(acknowledged(w)? > before + 3))?;
    println!("     by one path after {:.1} s", begin.elapsed().as_secs_f64());
    w.lab.appliance.set_link("storage1", true)?;
    let begin = Instant::now();
    wait_for("two paths again", Duration::from_secs(120), || Ok(paths(w)? == 2))?;
    println!("     by both again after {:.1} s", begin.elapsed().as_secs_f64());

    let total = node.total(&w.lab, &claim)?;
    cluster.grow(&mut w.lab, &claim, &node, 2 * SIZE).context("grows")?;
    let grown = node.total(&w.lab, &claim)?;
    ensure!(grown > total + SIZE / 2, "{grown} after {total}");
    let before = acknowledged(w)?;
    wait_for("the pod to write on", Duration::from_secs(60), || Ok(acknowledged(w)? > before + 3))?;
    stop_writer(w)?;
    ensure!(node.sum(&mut w.lab, &claim)? == written, "other bytes");
    cluster.unmount(&mut w.lab, &claim, &node).context("goes")?;
    node.has_nothing(&mut w.lab)?;
    has_no_map(w)?;

    // Cut off while it writes: by both paths, and it can let go.
    cluster.mount(&mut w.lab, &claim, &node).context("comes again")?;
    ensure!(node.sum(&mut w.lab, &claim)? == written, "other bytes than before");
    start_writer(w, &claim)?;
    cluster.detach(&w.lab, &claim, &node)?;
    let told = acknowledged(w)?;
    stop_writer(w)?;
    let begin = Instant::now();
    node.unpublish(&w.lab, &claim)?;
    node.unstage(&w.lab, &claim)?;
    println!("     let go after it was cut off in {:.1} s, at line {told}", begin.elapsed().as_secs_f64());
    node.has_nothing(&mut w.lab)?;
    has_no_map(w)?;
    cluster.delete(&w.lab, claim)?;
    node.stop(&mut w.lab)
}

/// How many paths can be used, of all that there are.
fn paths(w: &mut World) -> Result<usize> {
    let shown = w.lab.initiator.run("multipathd show paths format '%d %t %o' 2>&1; true")?;
    Ok(shown.lines().filter(|l| l.contains("active") && l.contains("running")).count())
}

fn stop_writer(w: &mut World) -> Result<()> {
    w.lab.initiator.run("systemctl kill -s KILL pod; systemctl stop pod; rm -f /run/acknowledged").map(drop)
}

fn has_no_map(w: &mut World) -> Result<()> {
    let left =
        w.lab.initiator.run("dmsetup ls --target multipath 2>/dev/null; multipathd show maps 2>&1; true")?;
    ensure!(!left.contains("3600") && !left.contains("dm-"), "left: {left}");
    Ok(())
}
