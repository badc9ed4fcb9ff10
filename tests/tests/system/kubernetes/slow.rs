//! A claim that goes while what was written to it is not yet at the appliance, which takes it slowly.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use orlop_csi::csi::volume_capability::access_mode::Mode;
use orlop_csi::csi::*;
use orlop_tests::cluster::{Cluster, Kubelet, initiator};
use orlop_tests::csi::mount;
use tonic::{Code, Request};

use crate::world::{World, XFS};

/// The node, with one storage network.
const NODE: usize = 1;
/// How long the appliance takes nothing, in seconds. Its paths are live all the time, but for the moment in which the kernel has lost its
/// patience with a request (30 s).
const SLOW: u32 = 45;
/// Longer than anything was ever given to be written back, so that this can fail.
const LONG: Duration = Duration::from_secs(35);
/// How long each call may take: it is made again until it is done.
const CALL: Duration = Duration::from_secs(12);

pub fn claims_are_written_back(w: &mut World) -> Result<()> {
    let cluster = Cluster::start(&w.lab)?;
    let (other, node) = (Kubelet::start(&mut w.lab, 0)?, Kubelet::start(&mut w.lab, NODE)?);
    let capability = mount("ext4", Mode::SingleNodeWriter);
    let claim = cluster.claim(&w.lab, "written-back", &[("pool", XFS)], capability, None)?;
    cluster.mount(&mut w.lab, &claim, &node)?;
    let all = format!("{}/all", claim.target());
    let written = initiator(&mut w.lab, NODE)?
        .run(&format!("dd if=/dev/urandom of={all} bs=1M count=30 status=none && sha256sum <{all}"))?;
    let place = format!("/var/lib/orlop/pools/{XFS}");
    w.lab.on_appliance(&format!(
        "systemd-run --quiet sh -c 'sleep {SLOW}; fsfreeze -u {place}' && fsfreeze -f {place}"
    ))?;
    let begin = Instant::now();
    let late = goes(w, &node, &claim)?;
    let took = begin.elapsed();
    println!("     gone after {took:.1?}, with {late} calls that were too early");
    ensure!(took > LONG && late > 0, "it was written back in {took:.1?}: nothing was tried");
    node.has_nothing(&mut w.lab)?;
    cluster.detach(&w.lab, &claim, &node)?;

    cluster.mount(&mut w.lab, &claim, &other)?;
    let there = w.lab.initiator.run(&format!("sha256sum <{all}"))?;
    ensure!(there == written, "what was written is not there: {there} and not {written}");
    cluster.unmount(&mut w.lab, &claim, &other)?;
    cluster.delete(&w.lab, claim)?;
    other.stop(&mut w.lab)?;
    node.stop(&mut w.lab)
}

/// As kubelet would have it let go, which waits for each call for a while only. How many were not done in time.
fn goes(w: &mut World, node: &Kubelet, claim: &orlop_tests::cluster::Claim) -> Result<usize> {
    node.unpublish(&w.lab, claim)?;
    let mut late = 0;
    for _ in 0..20 {
        let mut ask = Request::new(NodeUnstageVolumeRequest {
            volume_id: claim.volume.volume_id.clone(),
            staging_target_path: claim.staging(),
        });
        ask.set_timeout(CALL);
        match w.api(node.node.clone().node_unstage_volume(ask)) {
            Ok(_) => return Ok(late),
            Err(s) => {
                ensure!(
                    matches!(
                        s.code(),
                        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted
                    ),
                    "{s:?}"
                );
                println!("     {:?} {}", s.code(), s.message());
                late += 1;
            }
        }
    }
    anyhow::bail!("it never went")
}
