//! The engine on an appliance: attaching while hundreds of creates are queued, how soon a thousand attached volumes are
//! served after a power cut, and what a host notices of a daemon that is started anew.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use orlop_api::{HostPut, PoolCreate, PoolKind, VolumeRef};
use orlop_tests::{Initiator, Lab, LabOptions, instrumented};

use crate::by_hand::{self, Place, Protocol};
use crate::results::Results;
use crate::targets::{numbers, table};

/// How many volumes are asked for at once; twice that many are attached in the end.
const QUEUED: usize = 500;
/// How many are attached at first.
const FEW: usize = 100;
/// Power cuts with so many and with all of them.
const CUTS: usize = 3;
/// Runs of fio, each once with and once without a restart beside it, and how long one is.
const RUNS: usize = 6;
const SECONDS: u32 = 8;

/// What of it can be run alone.
pub const PARTS: [&str; 3] = ["engine-restarts", "engine-queue", "engine-starts"];

pub fn run(root: &Path, wanted: impl Fn(&str) -> bool, results: &mut Results) -> Result<()> {
    let mut options = LabOptions::new(root.join("bench/engine"));
    options.disks = vec![("disk0".into(), 16 << 30)];
    options.payload.push(instrumented("target-bench")?);
    options.links = 1;
    options.memory = 3072;
    // As many as ask at once, and wait for it.
    options.config = "[limits]\nconnections_per_peer = 1024\nrequest_seconds = 900\n".into();
    let mut lab = Lab::start(&options, |_| {})?;
    by_hand::prepare(&mut lab)?;
    let plain = PoolCreate::new("tank".parse()?, PoolKind::Zfs);
    let pool = PoolCreate { disks: vec!["/dev/disk/by-id/virtio-disk0".into()], ..plain };
    lab.wait(lab.api.create_pool(&pool))?;
    lab.wait(lab.api.put_host(&"worker-1".parse()?, &HostPut::nvme(Initiator::nqn(1)?)))?;

    if wanted("engine-restarts") {
        restarts(&mut lab, results)?;
    }
    // The volumes that are made there are those of the starts.
    if wanted("engine-queue") || wanted("engine-starts") {
        queue(&mut lab, results)?;
    }
    if wanted("engine-starts") {
        starts(&mut lab, results)?;
    }
    lab.appliance.shutdown(Duration::from_secs(90))
}

fn create(lab: &Lab, name: &str) -> Result<VolumeRef> {
    let ask = serde_json::json!({ "name": name, "pool": "tank", "size": 1u64 << 30 });
    Ok(VolumeRef::Id(lab.wait(lab.api.create_volume(&serde_json::from_value(ask)?))?.id))
}

/// The longest that one request of fio took, in milliseconds, with the daemon let be and with it started anew.
fn restarts(lab: &mut Lab, results: &mut Results) -> Result<()> {
    let volume = create(lab, "fio")?;
    let host = "worker-1".parse()?;
    let attachment = lab.wait(lab.api.attach(&volume, &host))?;
    let disk = lab.initiator.connect(&attachment, 1, 1)?;
    let (mut still, mut anew) = (Vec::new(), Vec::new());
    for run in 0..2 * RUNS {
        lab.initiator.run(&format!(
            "rm -f /run/fio.json; (fio --name=w --filename={} --ioengine=libaio --direct=1 --rw=randrw --bs=4k --iodepth=2 \
             --rate_iops=100,100 --time_based --runtime={SECONDS} --size=64M --output-format=json >/run/fio.tmp 2>&1; \
             mv /run/fio.tmp /run/fio.json) >/dev/null 2>&1 &",
            disk.device
        ))?;
        std::thread::sleep(Duration::from_secs(u64::from(SECONDS) / 4));
        match run % 4 {
            1 => drop(lab.on_appliance("systemctl restart orlopd")?),
            3 => drop(lab.on_appliance(
                "systemctl kill -s KILL orlopd; until systemctl is-active -q orlopd; do sleep 0.1; done",
            )?),
            _ => {}
        }
        let wait = format!(
            "for i in {{1..{}}}; do [ -e /run/fio.json ] && break; sleep 0.2; done; cat /run/fio.json",
            SECONDS * 20
        );
        let out = lab.initiator.run(&wait)?;
        let json = out.find('{').map(|at| &out[at..]).context("fio says nothing")?;
        let said: serde_json::Value = serde_json::from_str(json).with_context(|| out.clone())?;
        let job = &said["jobs"][0];
        ensure!(job["error"] == 0, "fio failed: {out}");
        let longest =
            ["read", "write"].map(|way| job[way]["clat_ns"]["max"].as_f64().unwrap_or(f64::MAX) / 1e6);
        let longest = longest[0].max(longest[1]);
        if run % 2 == 0 {
            still.push(longest)
        } else {
            anew.push(longest)
        }
        lab.wait_api()?;
    }
    results.add("engine: longest request of fio, daemon let be", &still, "ms", true, None);
    results.add("engine: longest request of fio, daemon started anew", &anew, "ms", true, Some(100.0));
    // Of all runs: one pause is one too many, and the same of the others says how much of it is the machine's.
    for (name, runs, goal) in [("let be", &still, None), ("started anew", &anew, Some(100.0))] {
        let longest = runs.iter().copied().fold(0.0, f64::max);
        results.add(
            &format!("engine: the longest of all these, daemon {name}"),
            &[longest],
            "ms",
            true,
            goal,
        );
    }
    lab.initiator.disconnect(&attachment)?;
    lab.wait(lab.api.detach(&volume, &host))?;
    lab.wait(lab.api.delete_volume(&volume))?;
    Ok(())
}

/// Attaching while volumes are being made, as fast as they can be.
fn queue(lab: &mut Lab, results: &mut Results) -> Result<()> {
    let volume = create(lab, "among")?;
    for round in 0..2 {
        let out = lab.appliance.shell_ok(
            &format!("/run/payload/target-bench queue worker-1 {volume} tank v{round} {QUEUED} 2>&1"),
            Duration::from_secs(900),
        )?;
        let ms =
            |word| Ok::<_, anyhow::Error>(numbers(&out, word)?.iter().map(|s| s * 1e3).collect::<Vec<_>>());
        let (mut alone, mut beside) = (ms("alone")?, ms("beside")?);
        if round == 0 {
            // The second time there are as many volumes already, and the pool's caches are warm.
            continue;
        }
        results.add(
            &format!("engine: {QUEUED} creates, all asked for at once"),
            &numbers(&out, "created")?,
            "s",
            true,
            None,
        );
        results.add("engine: attach, alone", &alone, "ms", true, None);
        results.add(&format!("engine: attach beside {QUEUED} creates"), &beside, "ms", true, None);
        alone.sort_by(f64::total_cmp);
        beside.sort_by(f64::total_cmp);
        let p99 = beside[beside.len() * 99 / 100];
        let ratio = p99 / alone[alone.len() / 2];
        let name = format!("engine: attach beside {QUEUED} creates, 99th percentile / median alone");
        results.add(&name, &[ratio], "ratio", true, Some(2.0));
    }
    lab.wait(lab.api.delete_volume(&volume))?;
    Ok(())
}

/// From the start of the daemon's process to all volumes served, after power cuts, with a hundred and with a thousand attached volumes;
/// beside the same by hand.
fn starts(lab: &mut Lab, results: &mut Results) -> Result<()> {
    let ids = lab.on_appliance("orlop volume list --output json")?;
    let list: serde_json::Value = serde_json::from_str(&ids)?;
    let items = list.as_array().or_else(|| list["items"].as_array()).context("no list of volumes")?;
    let ids: Vec<&str> = items.iter().filter_map(|v| v["id"].as_str()).collect();
    ensure!(ids.len() == 2 * QUEUED, "{} volumes", ids.len());
    let mut medians = Vec::new();
    for (from, to) in [(0, FEW), (FEW, ids.len())] {
        for some in ids[from..to].chunks(100) {
            lab.on_appliance(&format!("/run/payload/target-bench attach worker-1 {} 2>&1", some.join(" ")))?;
        }
        // What is written behind is not to be done at the start.
        std::thread::sleep(Duration::from_secs(5));
        let mut took = Vec::new();
        for _ in 0..CUTS {
            lab.power_cycle(|_| {})?;
            took.push(start_took(lab, to)?);
        }
        took.sort_by(f64::total_cmp);
        results.add(&format!("engine: served after a power cut, {to} attached"), &took, "s", true, None);
        medians.push(took[took.len() / 2]);
    }
    let growth = (medians[1] / medians[0]).log10() / (ids.len() as f64 / FEW as f64).log10();
    results.add("engine: exponent of that, 100 to 1,000", &[growth], "", true, Some(1.1));

    by_hand::prepare(lab)?;
    // The same devices by hand, from a kernel that has nothing of them.
    let devices = "/run/devices";
    lab.on_appliance(&format!(
        "cat /sys/kernel/config/nvmet/subsystems/*/namespaces/1/device_path >{devices}"
    ))?;
    table(lab, Protocol::Nvme, true, &format!("$(cat {devices})"), "/var/lib/by-hand.table")?;
    lab.on_appliance(&format!("cp {devices} /var/lib/by-hand.devices; systemctl stop orlopd"))?;
    let gone = "/run/payload/target-bench remove nvme && rmdir /sys/kernel/config/nvmet/ports/* && zpool export tank";
    lab.appliance.shell_ok(&format!("{gone} 2>&1"), Duration::from_secs(900))?;
    let out = lab.on_appliance(
        "start=$EPOCHREALTIME; zpool import -d /dev/disk/by-id tank && \
         while read -r d; do until [ -e $d ]; do sleep 0.01; done; done </var/lib/by-hand.devices; echo $start $EPOCHREALTIME",
    )?;
    let import = by_hand::spans(&out)?[0];
    let shell =
        by_hand::shell(lab, Protocol::Nvme, "make", "/var/lib/by-hand.table", Place::ours(Protocol::Nvme))?;
    results.add("engine: zpool import, 1,000 volumes", &[import], "s", true, None);
    results.add("engine: bare shell loop over them", &[shell], "s", true, None);
    let name = "engine: served after a power cut, 1,000 attached / by hand";
    results.add(name, &[medians[1] / (import + shell)], "ratio", true, Some(1.5));
    Ok(())
}

/// Seconds from the start of the daemon's process until so many volumes are served: a pool that takes longer to import than
/// a start waits for comes after the daemon is ready.
fn start_took(lab: &mut Lab, served: usize) -> Result<f64> {
    let out = lab.appliance.shell_ok(
        &format!(
            "cd /sys/kernel/config/nvmet/ports && \
             until [ $(ls */subsystems 2>/dev/null | grep -c orlop) -ge {served} ]; do sleep 0.2; done; \
             cut -d' ' -f1 /proc/uptime; systemctl show orlopd -P ExecMainStartTimestampMonotonic"
        ),
        Duration::from_secs(600),
    )?;
    let times: Vec<f64> = out.lines().filter_map(|l| l.trim().parse().ok()).collect();
    ensure!(times.len() == 2, "not understood: {out}");
    Ok(times[0] - times[1] / 1e6)
}
