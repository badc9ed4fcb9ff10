//! The main job, for people who watch: a volume made by the daemon on a booted appliance, reached over
//! NVMe/TCP, that survives a power cut. Every step prints its time; every claim is checked.
//!
//! `demo [--exit]`: with `--exit` it ends after the last step instead of leaving the appliance running.

#![allow(clippy::print_stdout, clippy::disallowed_methods)]

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use orlop_api::{Attachment, ByteSize, HostPut, PoolCreate, PoolKind, Volume, VolumeCreate, VolumeRef};
use orlop_tests::{Initiator, Lab, LabOptions, instrumented, nvme, wait_for};

/// How much is written with a checksum, and where the second stream of writes starts.
const MIB: u32 = 64;
const STREAM_AT: u64 = 128 << 20;

/// Prints steps with the time since the start and their own.
struct Steps {
    start: Instant,
    line: Option<Instant>,
    terminal: bool,
}

impl Steps {
    fn new() -> Self {
        Self { start: Instant::now(), line: None, terminal: std::io::stdout().is_terminal() }
    }

    /// Runs a step; what it returns is told behind it.
    fn step<T>(&mut self, what: &str, f: impl FnOnce(&mut Self) -> Result<(T, String)>) -> Result<T> {
        print!("[{:6.1} s] {what} ... ", self.start.elapsed().as_secs_f64());
        let _ = std::io::stdout().flush();
        let started = Instant::now();
        self.line = Some(started);
        let result = f(self);
        if self.terminal {
            print!("\r\x1b[K[{:6.1} s] {what} ... ", self.start.elapsed().as_secs_f64());
        }
        let (value, told) = result?;
        let dash = if told.is_empty() { "" } else { " - " };
        println!("{:.2} s{dash}{told}", started.elapsed().as_secs_f64());
        Ok(value)
    }

    /// Shows what a long step waits for, on a terminal.
    fn waiting(&self, what: &str) {
        if self.terminal {
            print!("\r\x1b[K[{:6.1} s] {what}", self.start.elapsed().as_secs_f64());
            let _ = std::io::stdout().flush();
        }
    }
}

struct Connected {
    volume: Volume,
    attachment: Attachment,
    path: orlop_tests::Path,
    sum: String,
}

fn main() -> Result<()> {
    let stay = !std::env::args().any(|a| a == "--exit");
    let mut s = Steps::new();
    let mut options = LabOptions::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/demo"));
    options.disks = [("disk0".to_string(), 4 << 30), ("disk1".to_string(), 4 << 30)].into();
    options.links = 1;
    options.payload = vec![instrumented("stream")?];
    let mut lab = s.step("boot an appliance and an initiator in QEMU", |s| {
        let lab = Lab::start(&options, |what| s.waiting(what))?;
        let told = format!("the appliance was ready {:.1} s after power on", lab.boot.as_secs_f64());
        Ok((lab, told))
    })?;

    let disk = |n: u8| format!("/dev/disk/by-id/virtio-disk{n}");
    let pool = |name: &str, kind, disk| -> Result<PoolCreate> {
        Ok(PoolCreate { disks: vec![disk], ..PoolCreate::new(name.parse()?, kind) })
    };
    s.step("make a ZFS pool `tank` on the first disk", |_| {
        let made = lab.wait(lab.api.create_pool(&pool("tank", PoolKind::Zfs, disk(0))?))?;
        Ok(((), format!("{} available", made.available)))
    })?;
    s.step("make a file pool `files` (XFS) on the second", |_| {
        let made = lab.wait(lab.api.create_pool(&pool("files", PoolKind::File, disk(1))?))?;
        Ok(((), format!("{} available", made.available)))
    })?;
    let host = "worker-1".parse()?;
    s.step("make known the host `worker-1`", |_| {
        lab.wait(lab.api.put_host(&host, &HostPut::nvme(Initiator::nqn(1)?)))?;
        Ok(((), String::new()))
    })?;

    let mut connected = Vec::new();
    for (name, pool) in [("zvol", "tank"), ("image", "files")] {
        let ask = VolumeCreate::new(name.parse()?, pool.parse()?, ByteSize(1 << 30));
        let volume = s.step(&format!("create volume `{name}` in `{pool}`"), |_| {
            let volume = lab.wait(lab.api.create_volume(&ask))?;
            let told = format!("{}, id {}", volume.size, volume.id);
            Ok((volume, told))
        })?;
        let attachment = s.step(&format!("attach `{name}` to `worker-1`, and to nobody else"), |_| {
            Ok((lab.wait(lab.api.attach(&VolumeRef::Id(volume.id), &host))?, String::new()))
        })?;
        let path = s.step("connect from the initiator over NVMe/TCP", |_| {
            let path = lab.initiator.connect(&attachment, 1, 1)?;
            let told = path.device.clone();
            Ok((path, told))
        })?;
        let sum = s.step(&format!("write {MIB} MiB and flush"), |_| {
            let sum = lab.initiator.write_random(&path, MIB)?;
            let told = format!("their sum is {sum}");
            Ok((sum, told))
        })?;
        connected.push(Connected { volume, attachment, path, sum });
    }

    s.step("start a second stream of writes to both, 4 KiB each, flushed one by one", |_| {
        for c in &connected {
            lab.initiator.start_stream(c.volume.name.as_str(), &c.path, STREAM_AT, 100_000)?;
        }
        lab.initiator.run("sleep 2")?;
        Ok(((), String::new()))
    })?;
    s.step("CUT THE APPLIANCE'S POWER and boot it again", |s| {
        lab.power_cycle(|what| s.waiting(what))?;
        Ok(((), format!("ready {:.1} s after the power came back", lab.boot.as_secs_f64())))
    })?;
    for c in &connected {
        let name = c.volume.name.as_str();
        s.step(&format!("`{name}`: the initiator reconnects by itself and writes on"), |_| {
            let before = lab.initiator.acknowledged(name)?;
            let initiator = &mut lab.initiator;
            wait_for("new writes", Duration::from_secs(90), || {
                Ok(initiator.acknowledged(name)? > before + 10)
            })?;
            ensure!(initiator.stream_state(name)? == "running", "a write failed");
            Ok(((), "no write failed".into()))
        })?;
        s.step(&format!("`{name}`: every acknowledged write is there"), |_| {
            lab.initiator.stop_stream(name)?;
            let records = lab.initiator.verify_stream(name, &c.path, STREAM_AT)?;
            ensure!(lab.initiator.checksum(&c.path, MIB)? == c.sum, "the checksum is another one");
            Ok(((), format!("{records} records, and the {MIB} MiB with sum {}", c.sum)))
        })?;
        s.step(&format!("`{name}`: its identity is the same"), |_| {
            let again = lab.wait(lab.api.attachment(&VolumeRef::Id(c.volume.id), &host))?;
            ensure!(again == c.attachment, "{again:?} was {:?}", c.attachment);
            let device = lab.initiator.device(nvme(&c.attachment)?.uuid, Duration::from_secs(10))?;
            Ok(((), format!("NQN, UUID, NGUID, serial; {device}")))
        })?;
    }
    println!("\nAll of it held. {:.0} s in all.", s.start.elapsed().as_secs_f64());
    if stay {
        leave_running(&mut lab)?
    } else {
        lab.appliance.shutdown(Duration::from_secs(60))?
    }
    Ok(())
}

fn leave_running(lab: &mut Lab) -> Result<()> {
    println!("\nThe appliance runs on. In another terminal, from this directory:\n");
    for (name, value) in lab.environment() {
        println!("  export {name}={value}");
    }
    println!("  target/release/orlop volume list");
    println!(
        "  curl --cacert $ORLOP_CA -H \"Authorization: Bearer $(cat $ORLOP_TOKEN_FILE)\" $ORLOP_URL/v1/system"
    );
    println!("\nConsole: {}\nCtrl-C stops both guests.", lab.appliance.console_log().display());
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, stop.clone())?;
        signal_hook::flag::register(signal, stop.clone())?;
    }
    while lab.appliance.is_on() && !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("\nstopping (Ctrl-C again to cut the power)");
    lab.appliance.shutdown(Duration::from_secs(60))
}
