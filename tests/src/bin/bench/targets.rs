//! Targets in a guest: attaching and detaching beside what people type for the same, a thousand volumes, and what the
//! exports carry beside some that were made by hand.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use orlop_api::{HostPut, PoolCreate, PoolKind};
use orlop_tests::{Initiator, Lab, LabOptions, instrumented};

use crate::by_hand::{self, Place, Protocol};
use crate::results::Results;
use crate::throughput;

/// How many volumes a round attaches.
const ROUND: usize = 8;
const ROUNDS: usize = 7;
/// How many others there are.
const MANY: usize = 1000;
/// How often one is attached beside them.
const AMONG: usize = 15;
/// The names of what is made by hand.
const THEIRS: &str = "nqn.2020-01.com.example";
/// The host's name for iSCSI.
pub const IQN: &str = "iqn.1993-08.org.debian:01:0123456789ab";

/// The parts of it, by the names that they are run by alone; each starts from a boot of its own.
pub const PARTS: [&str; 3] = ["targets-throughput", "targets-attach", "targets-thousand"];

/// Runs those parts that are wanted.
pub fn run(root: &Path, wanted: impl Fn(&str) -> bool, results: &mut Results) -> Result<()> {
    let mut options = LabOptions::new(root.join("bench/targets"));
    options.disks = vec![("disk0".into(), 8 << 30)];
    options.payload.push(instrumented("target-bench")?);
    options.links = 1;
    options.tools = true;
    options.memory = 3072;
    let mut lab = Lab::start(&options, |_| {})?;
    let [throughput, attach, thousand] = PARTS.map(wanted);
    by_hand::prepare(&mut lab)?;
    results.begin(PARTS[0]);
    if throughput {
        alone(&mut lab)?;
        for protocol in [Protocol::Nvme, Protocol::Iscsi] {
            throughput::measure(&mut lab, protocol, false, results)?;
            throughput::measure(&mut lab, protocol, true, results)?;
        }
        lab.power_cycle(|_| {})?;
        by_hand::prepare(&mut lab)?;
    }
    results.begin(PARTS[1]);
    if attach {
        attachments(&mut lab, results)?;
    }
    results.begin(PARTS[2]);
    if thousand {
        many(&mut lab, results)?;
    }
    lab.appliance.shutdown(Duration::from_secs(90))
}

/// The host that everything is attached to, as a protocol knows it.
pub fn host(protocol: Protocol) -> Result<String> {
    Ok(match protocol {
        Protocol::Nvme => Initiator::nqn(1)?.to_string(),
        Protocol::Iscsi => IQN.into(),
    })
}

/// Makes a table of volumes over devices, which the guest's shell expands.
pub fn table(lab: &mut Lab, protocol: Protocol, ours: bool, devices: &str, file: &str) -> Result<()> {
    let (word, host) = (protocol.word(), host(protocol)?);
    let prefix = if ours { "ours" } else { THEIRS };
    lab.on_appliance(&format!("/run/payload/target-bench table {word} {prefix} {host} {devices} >{file}"))
        .map(drop)
}

/// Attaches and detaches through the daemon, beside the shell and targetcli.
fn attachments(lab: &mut Lab, results: &mut Results) -> Result<()> {
    let plain = PoolCreate::new("tank".parse()?, PoolKind::Zfs);
    let pool = PoolCreate { disks: vec!["/dev/disk/by-id/virtio-disk0".into()], ..plain };
    lab.wait(lab.api.create_pool(&pool))?;
    let both = HostPut { iqn: Some(IQN.parse()?), ..HostPut::nvme(Initiator::nqn(1)?) };
    lab.wait(lab.api.put_host(&"worker-1".parse()?, &both))?;
    lab.on_appliance(&format!(
        "zfs create -o volmode=dev tank/bare && for n in {{1..{ROUND}}}; do zfs create -s -V 1G tank/bare/$n; done && \
         for n in {{1..{ROUND}}}; do until [ -e /dev/zvol/tank/bare/$n ]; do sleep 0.05; done; done"
    ))?;
    for protocol in [Protocol::Nvme, Protocol::Iscsi] {
        let word = protocol.word();
        let mut volumes = Vec::new();
        for n in 0..=ROUND {
            let ask = serde_json::json!({
                "name": format!("{word}-{n}"), "pool": "tank", "size": 1u64 << 30, "protocol": word,
            });
            volumes.push(lab.wait(lab.api.create_volume(&serde_json::from_value(ask)?))?.id.to_string());
        }
        // One stays attached: the portal is open, for the others and for what is made by hand. And a kernel that has a
        // volume can't be told by targetcli to keep its reservations where only targetcli can write.
        let stays = volumes.remove(0);
        each(lab, "attach", std::slice::from_ref(&stays))?;
        let file = format!("/run/{word}.table");
        table(lab, protocol, false, &format!("/dev/zvol/tank/bare/{{1..{ROUND}}}"), &file)?;

        let mut place = Place::theirs(protocol);
        if protocol == Protocol::Nvme {
            // At the port that is open.
            place = Place::ours(protocol);
        }
        let (mut bare, mut ratio, mut ours, mut gone) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let shell = by_hand::shell(lab, protocol, "make", &file, place)?;
            by_hand::shell(lab, protocol, "remove", &file, place)?;
            let attached = each(lab, "attach", &volumes)?;
            gone.push(each(lab, "detach", &volumes)? / ROUND as f64 * 1e3);
            bare.push(shell / ROUND as f64 * 1e3);
            ours.push(attached / ROUND as f64 * 1e3);
            ratio.push(attached / shell);
        }
        results.add(&format!("targets: {word}: bare shell loop, a volume"), &bare, "ms", true, None);
        results.add(&format!("targets: {word}: attach, a volume"), &ours, "ms", true, None);
        results.add(&format!("targets: {word}: attach / bare"), &ratio, "ratio", true, Some(1.2));
        results.add(&format!("targets: {word}: detach, a volume"), &gone, "ms", true, None);
        if protocol == Protocol::Iscsi {
            by_hand::prepare_targetcli(lab)?;
            targetcli(lab, &file, [&ours, &gone], results)?;
        }
        // It must not come back with the next boot.
        each(lab, "detach", &[stays])?;
    }
    Ok(())
}

/// Seconds that the daemon takes for these, one after another, asked in the guest by one connection.
fn each(lab: &mut Lab, verb: &str, volumes: &[String]) -> Result<f64> {
    let volumes = volumes.join(" ");
    let out = lab.on_appliance(&format!("/run/payload/target-bench {verb} worker-1 {volumes} 2>&1"))?;
    out.trim().parse().with_context(|| format!("not understood: {out}"))
}

/// `ours`: milliseconds for attaching and for detaching one.
fn targetcli(lab: &mut Lab, file: &str, ours: [&[f64]; 2], results: &mut Results) -> Result<()> {
    lab.on_appliance(&format!("head -n 4 {file} >{file}.few; head -n 1 {file} >{file}.one"))?;
    for (how, lines, words) in
        [("once", "few", "one process a volume"), ("each", "one", "one process a command")]
    {
        for (verb, ours, name) in [("make", ours[0], "attach"), ("remove", ours[1], "detach")] {
            let took = by_hand::targetcli(lab, verb, &format!("{file}.{lines}"), how)?;
            results.add(&format!("targets: targetcli {name}, {words}"), &took, "s", true, None);
            if how == "once" {
                // Each of its samples against each of ours would hide that ours are the fewer milliseconds of noise.
                let ratio: Vec<f64> = took.iter().zip(ours).map(|(cli, ours)| cli * 1e3 / ours).collect();
                results.add(&format!("targets: targetcli {name} / ours"), &ratio, "times", false, Some(10.0));
            }
        }
    }
    Ok(())
}

/// Boots to a kernel that has nothing of ours.
fn empty(lab: &mut Lab) -> Result<()> {
    lab.on_appliance("sync")?;
    lab.power_cycle(|_| {})?;
    by_hand::prepare(lab)?;
    alone(lab)
}

/// Leaves the kernel's targets to `target-bench`. Devices in memory, two for each volume and some more; udev does not look
/// at each.
fn alone(lab: &mut Lab) -> Result<()> {
    lab.on_appliance(&format!(
        "systemctl stop orlopd.service systemd-udevd.service systemd-udevd-control.socket \
           systemd-udevd-kernel.socket 2>&1 && \
         for p in nvme iscsi; do /run/payload/target-bench remove $p || exit; done && \
         rmdir /sys/kernel/config/nvmet/ports/* && \
         modprobe brd rd_nr={} rd_size={} && ls /dev/ram{}",
        2 * MANY + 2,
        throughput::SIZE >> 10,
        2 * MANY + 1,
    ))
    .map(drop)
}

/// A thousand volumes: from an empty kernel, beside the same writes, and one more among them. Three boots, because making
/// a kernel empty by removing all of it takes longer than a boot does.
fn many(lab: &mut Lab, results: &mut Results) -> Result<()> {
    const PROTOCOLS: [(Protocol, usize); 2] = [(Protocol::Nvme, 0), (Protocol::Iscsi, MANY)];
    let limit = Duration::from_secs(600);
    let file = |protocol: Protocol| format!("/var/lib/bench/{}", protocol.word());
    empty(lab)?;
    lab.on_appliance("mkdir -p /var/lib/bench")?;
    let mut ours = Vec::new();
    for (protocol, from) in PROTOCOLS {
        let (word, file) = (protocol.word(), file(protocol));
        table(lab, protocol, true, &format!("/dev/ram{{{from}..{}}}", from + MANY - 1), &file)?;
        let out = lab.appliance.shell_ok(
            &format!(
                "/run/payload/target-bench many {word} {file} /dev/ram{} {AMONG} {file}.changes 2>&1",
                2 * MANY
            ),
            limit,
        )?;
        let of = |what: &str| numbers(&out, what);
        let ratios: Vec<f64> =
            of("alone")?.iter().zip(of("among")?).map(|(alone, among)| among / alone).collect();
        let name = |what: &str| format!("targets: {word}: {what}");
        results.add(&name("attach among 1,000 / alone"), &ratios, "ratio", true, Some(1.5));
        ours.push(of("built")?[0]);
    }
    empty(lab)?;
    let mut shell = Vec::new();
    for (protocol, _) in PROTOCOLS {
        let (word, file) = (protocol.word(), file(protocol));
        shell.push(by_hand::shell(lab, protocol, "make", &file, Place::ours(protocol))?);
        lab.on_appliance(&format!("/run/payload/target-bench settled {word} {file} 2>&1"))?;
    }
    empty(lab)?;
    for (n, (protocol, _)) in PROTOCOLS.into_iter().enumerate() {
        let (word, file) = (protocol.word(), file(protocol));
        let command = format!("/run/payload/target-bench bare {word} {file}.changes 2>&1");
        let bare = numbers(&lab.appliance.shell_ok(&command, limit)?, "bare")?[0];
        lab.on_appliance(&format!("/run/payload/target-bench settled {word} {file} 2>&1"))?;
        let name = |what: &str| format!("targets: {word}: 1,000 {what}");
        results.add(&name("by the shell loop"), &[shell[n]], "s", true, None);
        results.add(&name("by bare system calls"), &[bare], "s", true, None);
        results.add(&name("converged"), &[ours[n]], "s", true, None);
        results.add(&name("converged / shell loop"), &[ours[n] / shell[n]], "ratio", true, Some(1.3));
        results.add(&name("converged / bare system calls"), &[ours[n] / bare], "ratio", true, None);
    }
    Ok(())
}

/// The numbers after a word, a line each.
pub fn numbers(out: &str, word: &str) -> Result<Vec<f64>> {
    let values = out.lines().filter_map(|l| l.strip_prefix(word)?.strip_prefix(' '));
    let values = values.map(|v| Ok(v.trim().parse::<f64>()?)).collect::<Result<Vec<_>>>()?;
    ensure!(!values.is_empty(), "no {word} in {out}");
    Ok(values)
}
