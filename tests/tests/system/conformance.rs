//! iSCSI under libiscsi's own test tool. What passes, fails and is skipped is written down in docs/iscsi-test-cu.md, and a
//! change of it fails the test: a part of the tool's tests in each run of the suite, all of them where the scenario is
//! named, then also against a target made by hand of the same kind of device, which tells what is ours from what is the
//! kernel's.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use orlop_api::VolumeRef;
use orlop_tests::Initiator;
use orlop_tests::conformance::{Verdict, Verdicts, judge, parse, record};

use crate::iscsi::{attach, disk};
use crate::world::{World, ZFS};

/// All that does not take its time by reading and writing blocks one by one, as most of the tool's run of four minutes does.
const PART: [&str; 8] = [
    "iSCSI",
    "SCSI.[EGINOSTU]*",
    "SCSI.M[ao]*",
    "SCSI.Pr*",
    "SCSI.Read[CDO]*",
    "SCSI.Rec*",
    "SCSI.Rep*",
    "SCSI.Res*",
];

/// The appliance, on both networks of the first initiator.
const ADDRESSES: [&str; 2] = ["10.77.1.1", "10.77.2.1"];
/// The hosts that the tool plays: two, because reservations are about the other one.
const HOSTS: [u8; 2] = [11, 12];

/// Runs tests against a target, over one address or two, and returns what they came to.
fn run(w: &mut World, name: &str, target: &str, tests: &str, paths: usize, limit: u32) -> Result<Verdicts> {
    let urls: Vec<_> = ADDRESSES[..paths].iter().map(|a| format!("iscsi://{a}:3260/{target}/0")).collect();
    let command = format!(
        "stdbuf -oL timeout {limit} iscsi-test-cu --dataloss -i {} -I {} -t '{tests}' {} 2>&1; \
         echo; echo status $?",
        Initiator::iqn(HOSTS[0]),
        Initiator::iqn(HOSTS[1]),
        urls.join(" ")
    );
    let begin = Instant::now();
    let log = w.lab.initiator.guest.shell_ok(&command, Duration::from_secs(u64::from(limit) + 60))?;
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/system");
    std::fs::write(place.join(format!("iscsi-test-cu-{name}.log")), &log)?;
    let found = parse(&log);
    ensure!(
        !found.is_empty(),
        "the tool ran nothing: {}",
        log.lines().rev().take(5).collect::<Vec<_>>().join("\n")
    );
    let count = |verdict| found.values().filter(|v| **v == verdict).count();
    println!(
        "     {name}: {} passed, {} failed, {} skipped in {:.0} s",
        count(Verdict::Passed),
        count(Verdict::Failed),
        count(Verdict::Skipped),
        begin.elapsed().as_secs_f64()
    );
    Ok(found)
}

/// Where `Reserve6.Logout` failed by its chance (the record says which), what it had reserved is in the way of the next
/// test, which is asked again by itself then.
fn run_again(w: &mut World, name: &str, target: &str, found: &mut Verdicts) -> Result<()> {
    let failed = |test: &str| found.get(test) == Some(&Verdict::Failed);
    if failed("Reserve6.Logout") && failed("Reserve6.ITNexusLoss") {
        found.extend(run(w, &format!("{name}-again"), target, "SCSI.Reserve6.ITNexusLoss", 1, 60)?);
    }
    Ok(())
}

/// The tests that need a second path to the disk are run over two; without one they are skipped.
const OVER_TWO: &str = "SCSI.MultipathIO";

pub fn a_part(w: &mut World) -> Result<()> {
    let volume = disk(w, "scsi-tool", ZFS, 64)?;
    let mut target = String::new();
    for host in HOSTS {
        target = attach(w, &volume, host)?.iscsi().context("no iSCSI")?.iqn.to_string();
    }
    let mut found = run(w, "part", &target, &PART.join(","), 1, 200)?;
    run_again(w, "part", &target, &mut found)?;
    let ran = |suite: &str| found.keys().any(|n| n.starts_with(suite));
    for suite in ["PrinReadKeys.", "ProutRegister.", "ProutReserve.", "ProutPreempt.", "Unmap.", "iSCSITMF."]
    {
        ensure!(ran(suite), "{suite} was not run");
    }
    w.remove(&volume)?;
    judge("this part", &found)
}

const BY_HAND: &str = "iqn.2003-01.org.linux-iscsi.hand:x";

/// A target as a person makes one: all defaults, but for the hosts, a serial number, and that blocks that are given up are
/// freed. Its device is one like the volume's.
fn by_hand(w: &mut World, like: &str) -> Result<()> {
    let core = "/sys/kernel/config/target/core/iblock_0/hand";
    let group = format!("/sys/kernel/config/target/iscsi/{BY_HAND}/tpgt_1");
    let mut script = format!(
        "zfs create -s -V 64M -o volblocksize=$(zfs get -H -o value volblocksize {like}) {ZFS}/hand && udevadm settle && \
         mkdir -p {core} && echo udev_path=/dev/zvol/{ZFS}/hand >{core}/control && \
         echo 7a3a6b66-6c0e-4a42-9b5e-6a1b7e3f0d11 >{core}/wwn/vpd_unit_serial && echo 1 >{core}/enable && \
         echo 1 >{core}/attrib/emulate_tpu && echo 1 >{core}/attrib/emulate_tpws && \
         mkdir -p {group}/lun/lun_0 && ln -s {core} {group}/lun/lun_0/hand && \
         echo 0 >{group}/attrib/authentication && mkdir {group}/np/0.0.0.0:3260 && "
    );
    for host in HOSTS.map(Initiator::iqn) {
        let acl = format!("{group}/acls/{host}/lun_0");
        script += &format!("mkdir -p {acl} && ln -s {group}/lun/lun_0 {acl}/hand && ");
    }
    w.lab.on_appliance(&(script + &format!("echo 1 >{group}/enable"))).map(drop)
}

fn take_away(w: &mut World) -> Result<()> {
    let (core, target) = ("core/iblock_0/hand", format!("iscsi/{BY_HAND}"));
    w.lab.on_appliance(&format!(
        "cd /sys/kernel/config/target && echo 0 >{target}/tpgt_1/enable && rmdir {target}/tpgt_1/np/* && \
         rm {target}/tpgt_1/acls/*/lun_0/hand && rmdir {target}/tpgt_1/acls/*/lun_0 && rmdir {target}/tpgt_1/acls/* && \
         rm {target}/tpgt_1/lun/lun_0/hand && rmdir {target}/tpgt_1/lun/lun_0 {target}/tpgt_1 {target} {core} && \
         zfs destroy {ZFS}/hand"
    ))
    .map(drop)
}

pub fn all_of_it(w: &mut World) -> Result<()> {
    let volume = disk(w, "scsi-whole", ZFS, 64)?;
    let mut target = String::new();
    for host in HOSTS {
        target = attach(w, &volume, host)?.iscsi().context("no iSCSI")?.iqn.to_string();
    }
    by_hand(w, &format!("{ZFS}/orlop/{}", volume.id))?;
    let mut ends = Vec::new();
    for (name, target) in [("ours", target.as_str()), ("by-hand", BY_HAND)] {
        let mut found = run(w, name, target, "iSCSI,SCSI", 1, 1500)?;
        run_again(w, name, target, &mut found)?;
        found.extend(run(w, &format!("{name}-two-paths"), target, OVER_TWO, 2, 300)?);
        ends.push((name, found));
    }
    take_away(w)?;
    let shown = w.api(w.lab.api.volume(&VolumeRef::Id(volume.id)))?;
    ensure!(shown.hosts.len() == HOSTS.len(), "{shown:?}");
    w.remove(&volume)?;
    let was = record()?;
    for (name, found) in &ends {
        judge(name, found)?;
        ensure!(was.keys().eq(found.keys()), "{name} did not run all of the record");
    }
    Ok(())
}
