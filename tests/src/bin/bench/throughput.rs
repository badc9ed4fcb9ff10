//! What an initiator gets through our exports and through some that were made by hand, of devices in memory.
//!
//! One device can't be in both, so there are two, and both exports are connected at the same time: pairs of runs are a
//! second or two apart. Which processor serves a connection may depend on the order of logins; so in a second half the
//! devices and the order change places, and a sample is the geometric mean of a pair of each half.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use orlop_tests::Lab;

use crate::by_hand::{self, Place, Protocol};
use crate::results::Results;
use crate::targets::{IQN, table};

/// Of each device.
pub const SIZE: u64 = 64 << 20;
const DEVICES: [&str; 2] = ["/dev/ram2000", "/dev/ram2001"];
const ADDRESS: &str = "10.77.1.1";
/// Pairs in a half, of each kind of work.
const PAIRS: usize = 15;
/// Seconds that each run takes: short, because the machine becomes slower and faster from second to second.
const SECONDS: f64 = 0.6;

/// Its name, what fio is told, and whether it writes.
const WORK: [(&str, &str, bool); 4] = [
    ("4 KiB random reads", "rw=randread\nbs=4k\niodepth=16\n", false),
    ("4 KiB random writes", "rw=randwrite\nbs=4k\niodepth=16\n", true),
    ("1 MiB reads", "rw=read\nbs=1m\niodepth=4\n", false),
    ("1 MiB writes", "rw=write\nbs=1m\niodepth=4\n", true),
];

/// Our export beside one that was made by hand; with `control` two by hand, which shows how far the machine can tell.
pub fn measure(lab: &mut Lab, protocol: Protocol, control: bool, results: &mut Results) -> Result<()> {
    let mut halves = Vec::new();
    for ours_first in [true, false] {
        let ours = Export::new(!control, "first", protocol, DEVICES[usize::from(!ours_first)]);
        let theirs = Export::new(false, "second", protocol, DEVICES[usize::from(ours_first)]);
        for export in [&ours, &theirs] {
            export.make(lab)?;
        }
        let (first, second) = if ours_first { (&ours, &theirs) } else { (&theirs, &ours) };
        let mut disks = [first.connect(lab)?, second.connect(lab)?];
        if !ours_first {
            disks.reverse();
        }
        halves.push(fio(lab, &disks)?);
        for export in [&ours, &theirs] {
            export.disconnect(lab)?;
            export.remove(lab)?;
        }
    }
    let (one, other) = (&halves[0], &halves[1]);
    for (n, (name, _, _)) in WORK.iter().enumerate() {
        let (mut rate, mut ratio) = (Vec::new(), Vec::new());
        for pair in 0..PAIRS {
            let at = |half: &Rates, whose: usize| {
                half.get(&(n, pair, whose)).copied().context("a run of fio is missing")
            };
            let (a, b) = (at(one, 0)? / at(one, 1)?, at(other, 0)? / at(other, 1)?);
            ratio.push((a * b).sqrt());
            rate.extend([at(one, 1)?, at(other, 1)?].map(|kib| kib * 1024.0 / 1e6));
        }
        let word = protocol.word();
        if control {
            let name = format!("targets: {word}: {name}, by hand / by hand");
            results.add(&name, &ratio, "ratio", false, None);
            continue;
        }
        results.add(&format!("targets: {word}: {name}, by hand"), &rate, "MB/s", false, None);
        results.add(&format!("targets: {word}: {name}, ours / by hand"), &ratio, "ratio", false, Some(0.97));
    }
    Ok(())
}

/// KiB a second by work, pair and whose: ours 0, by hand 1.
type Rates = BTreeMap<(usize, usize, usize), f64>;

/// One run of fio for all, so that it is started once: a job after another.
fn fio(lab: &mut Lab, disks: &[String; 2]) -> Result<Rates> {
    let mut jobs = format!(
        "[global]\nioengine=libaio\ndirect=1\ntime_based\nruntime={}ms\nthread\nstonewall\n",
        SECONDS * 1e3
    );
    for pair in 0..PAIRS {
        for (n, (_, work, _)) in WORK.iter().enumerate() {
            // Who is first changes, so that a machine that becomes slower or faster favours nobody.
            for whose in if pair % 2 == 0 { [0, 1] } else { [1, 0] } {
                write!(jobs, "[{n}-{pair}-{whose}]\nfilename={}\n{work}", disks[whose])?;
            }
        }
    }
    let limit = Duration::from_secs(600);
    let out = lab.initiator.guest.shell_ok(
        &format!(
            "cat >/run/jobs.fio <<'END'\n{jobs}END\n\
             fio --minimal /run/jobs.fio 2>/run/fio.err | cut -d';' -f3,5,7,48; cat /run/fio.err"
        ),
        limit,
    )?;
    let mut rates = Rates::new();
    for line in out.lines() {
        let [job, error, read, write] = line.split(';').collect::<Vec<_>>()[..] else { continue };
        let [n, pair, whose] = job.split('-').collect::<Vec<_>>()[..] else { continue };
        let (n, pair, whose): (usize, usize, usize) = (n.parse()?, pair.parse()?, whose.parse()?);
        ensure!(error == "0", "fio: {line}");
        let (_, _, writes) = WORK.get(n).context("no such work")?;
        let rate: f64 = if *writes { write } else { read }.parse()?;
        ensure!(rate > 0.0, "fio: {line}");
        rates.insert((n, pair, whose), rate);
    }
    ensure!(rates.len() == 2 * PAIRS * WORK.len(), "not understood: {out}");
    Ok(rates)
}

/// A device of the appliance's that is served, by our code or by the shell.
struct Export {
    ours: bool,
    protocol: Protocol,
    device: &'static str,
    table: String,
}

impl Export {
    fn new(ours: bool, name: &str, protocol: Protocol, device: &'static str) -> Self {
        let table = format!("/run/{}-{name}.table", protocol.word());
        Self { ours, protocol, device, table }
    }

    fn make(&self, lab: &mut Lab) -> Result<()> {
        let (word, file) = (self.protocol.word(), &self.table);
        table(lab, self.protocol, self.ours, self.device, file)?;
        // All of its memory is there.
        lab.on_appliance(&format!("dd if=/dev/zero of={} bs=1M count={} 2>&1", self.device, SIZE >> 20))?;
        if self.ours {
            lab.on_appliance(&format!("/run/payload/target-bench serve {word} {file} 2>&1")).map(drop)
        } else {
            by_hand::shell(lab, self.protocol, "make", file, Place::theirs(self.protocol)).map(drop)
        }
    }

    fn remove(&self, lab: &mut Lab) -> Result<()> {
        if self.ours {
            let word = self.protocol.word();
            lab.on_appliance(&format!("/run/payload/target-bench remove {word} 2>&1")).map(drop)
        } else {
            by_hand::shell(lab, self.protocol, "remove", &self.table, Place::theirs(self.protocol)).map(drop)
        }
    }

    /// Name, UUID and serial number.
    fn names(&self, lab: &mut Lab) -> Result<[String; 3]> {
        let out = lab.on_appliance(&format!("cat {}", self.table))?;
        let [name, _, serial, uuid, ..] = out.split(' ').collect::<Vec<_>>()[..] else {
            anyhow::bail!("not understood: {out}");
        };
        Ok([name, uuid, serial].map(String::from))
    }

    /// The initiator's device.
    fn connect(&self, lab: &mut Lab) -> Result<String> {
        let [name, uuid, serial] = self.names(lab)?;
        let limit = Duration::from_secs(20);
        if self.protocol == Protocol::Nvme {
            let port = if self.ours { Place::ours(self.protocol) } else { Place::theirs(self.protocol) }.port;
            lab.initiator.connect_to(&name, ADDRESS, port, 1)?;
            return lab.initiator.device(uuid.parse()?, limit);
        }
        // The kernel makes the WWN of its own company's number and as much of the serial number as there is room for.
        let wwn = format!("naa.6001405{}", &serial[..25]);
        let node = format!("iscsiadm -m node -T {name} -p {ADDRESS}:3260 -I bench");
        let out = lab.initiator.run(&format!(
            "{{ iscsiadm -m iface -I bench || {{ iscsiadm -m iface -I bench -o new && \
             iscsiadm -m iface -I bench -o update -n iface.transport_name -v tcp && \
             iscsiadm -m iface -I bench -o update -n iface.initiatorname -v {IQN}; }}; \
             {node} -o new && timeout 60 {node} -l; }} >/run/login.log 2>&1 || {{ cat /run/login.log; exit 1; }}; \
             for i in $(seq {}); do \
               found=$(grep -l {wwn} /sys/block/sd*/device/wwid 2>/dev/null | cut -d/ -f4); \
               [ -n \"$found\" ] && echo $found && exit; sleep 0.1; \
             done; echo no disk with the name {wwn}; exit 1",
            limit.as_millis() / 100
        ))?;
        Ok(format!("/dev/{}", out.trim()))
    }

    fn disconnect(&self, lab: &mut Lab) -> Result<()> {
        let [name, ..] = self.names(lab)?;
        let command = match self.protocol {
            Protocol::Nvme => format!("nvme disconnect -n {name}"),
            Protocol::Iscsi => format!(
                "iscsiadm -m node -T {name} -u >/dev/null && iscsiadm -m node -T {name} -o delete >/dev/null"
            ),
        };
        lab.initiator.run(&command).map(drop)
    }
}
