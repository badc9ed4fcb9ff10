//! `orlop-image boot`: starts the appliance and says how to reach it.

#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "the rules are for the daemon; this waits for a guest")]

use anyhow::{Context, Result};
use base64::Engine as _;
use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use orlop_image::{Artifacts, Guest, GuestBuilder, Role};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Boots the Orlop images in QEMU.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the appliance; Ctrl-C powers it off. Disks are kept for next time.
    Boot(Boot),
}

#[derive(Debug, Args)]
struct Boot {
    /// Memory in MiB
    #[arg(long, default_value_t = 2048)]
    memory: u32,
    /// Virtual processors
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// Number of data disks
    #[arg(long, default_value_t = 2)]
    disks: u32,
    /// Size of each data disk in GiB; they are sparse
    #[arg(long, default_value_t = 4)]
    disk_size: u64,
    /// Port of 127.0.0.1 for the API; a free one by default
    #[arg(long)]
    port: Option<u16>,
    /// Where disks, token and console log are
    #[arg(long, default_value = "target/boot")]
    dir: PathBuf,
    /// Throw away the disks of earlier boots first
    #[arg(long)]
    fresh: bool,
    /// Seconds to wait until the appliance is ready
    #[arg(long, default_value_t = 180)]
    timeout: u64,
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Boot(options) => boot(&options),
    }
}

fn boot(options: &Boot) -> Result<()> {
    let artifacts = Artifacts::locate()?;
    let dir = &options.dir;
    if options.fresh && dir.exists() {
        std::fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let token_file = dir.join("token");
    let token = token(&token_file)?;
    let mut builder = GuestBuilder::new(Role::Appliance, "appliance", dir)
        .memory(options.memory)
        .cpus(options.cpus)
        .credential("orlop.token", token.as_bytes());
    builder = match options.port {
        Some(port) => builder.forward_on(port, 8443),
        None => builder.forward(8443),
    };
    for number in 0..options.disks {
        builder = builder.data_disk(&format!("data{number}"), options.disk_size << 30);
    }
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The second one ends us at once, and QEMU with us.
        signal_hook::flag::register_conditional_shutdown(signal, 130, stop.clone())?;
        signal_hook::flag::register(signal, stop.clone())?;
    }
    let bar = ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{spinner} {msg}")?);
    let mut guest = builder.start(&artifacts)?;
    let took = guest.wait_ready_with(Duration::from_secs(options.timeout), |elapsed| {
        bar.set_message(format!("booting, {:.1} s", elapsed.as_secs_f64()));
        bar.tick();
    });
    bar.finish_and_clear();
    describe(&guest, took?, &token_file);
    while guest.is_on() && !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(100));
    }
    if guest.is_on() {
        println!("powering off (Ctrl-C again to cut the power)");
        guest.shutdown(Duration::from_secs(90))?;
    }
    Ok(())
}

fn describe(guest: &Guest, took: Duration, token_file: &Path) {
    println!("ready after {:.1} s", took.as_secs_f64());
    if let Some(port) = guest.port(8443) {
        println!("  API      https://127.0.0.1:{port}");
    }
    println!("  token    {}", token_file.display());
    println!("  console  {}", guest.console_log().display());
    println!("Ctrl-C powers it off.");
}

/// The administrator's token: made once, readable by its owner alone. Kept over
/// boots, because the appliance remembers it on its state disk.
fn token(file: &Path) -> Result<String> {
    if let Ok(token) = std::fs::read_to_string(file) {
        return Ok(token.trim().to_string());
    }
    let mut random = [0u8; 32];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut random))
        .context("reading /dev/urandom")?;
    let token = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(random);
    let mut out = std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .with_context(|| format!("making {}", file.display()))?;
    writeln!(out, "{token}").with_context(|| format!("writing {}", file.display()))?;
    Ok(token)
}
