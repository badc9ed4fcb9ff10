//! A guest from power on to its end.

use crate::accel::Accel;
use crate::args::{Machine, PAYLOAD_SERIAL};
use crate::link::LinkEnd;
use crate::process::Process;
use crate::qmp::Qmp;
use crate::shell::{Output, Shell};
use crate::volatile::VolatileDisk;
use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The line that the images write on the console when they are ready.
const READY: &str = "orlop: ready";
const SHELL_LIMIT: Duration = Duration::from_secs(90);

/// What a kernel writes whose second processor no longer gets timer interrupts. QEMU 10.0 loses one of them
/// in about a hundred emulated boots on a busy host, long before there is a first process.
const LOST_TIMER: &str = "timer wakeup didn't happen";

/// abort(3): an assertion that failed.
const SIGABRT: i32 = 6;

/// A guest, on or off. Dropping it cuts its power.
#[derive(Debug)]
pub struct Guest {
    name: String,
    machine: Machine,
    process: Option<Process>,
    shell: Option<Shell>,
    powered_on: Instant,
    /// Where in the console log this boot starts.
    console_from: u64,
    qemu_log: PathBuf,
    /// Disks that lose at a power cut what was not flushed.
    volatile: Vec<VolatileDisk>,
    _run: tempfile::TempDir,
}

impl Guest {
    pub(crate) fn off(
        name: String,
        machine: Machine,
        qemu_log: PathBuf,
        volatile: Vec<VolatileDisk>,
        run: tempfile::TempDir,
    ) -> Self {
        Guest {
            name,
            machine,
            process: None,
            shell: None,
            powered_on: Instant::now(),
            console_from: 0,
            qemu_log,
            volatile,
            _run: run,
        }
    }

    /// The name it was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The id of the QEMU process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Everything the guest ever wrote on its serial console, over all boots.
    pub fn console_log(&self) -> &Path {
        &self.machine.console_log
    }

    /// The port on 127.0.0.1 that leads to a forwarded port of the guest.
    pub fn port(&self, guest_port: u16) -> Option<u16> {
        self.machine.forwards.iter().find(|(_, guest)| *guest == guest_port).map(|(host, _)| *host)
    }

    /// Powers on, with the disks as they are. An error if it is on already.
    pub fn power_on(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "guest {} is on already", self.name);
        self.console_from = std::fs::metadata(self.console_log()).map_or(0, |meta| meta.len());
        let dir = self.console_log().parent().map(Path::to_path_buf).unwrap_or_default();
        std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        self.machine.links.iter().for_each(LinkEnd::drain);
        let sockets = self.machine.links.iter().map(LinkEnd::socket).cloned().collect();
        self.powered_on = Instant::now();
        let args = self.machine.args();
        self.process = Some(Process::start(&self.machine.emulator, &args, sockets, &self.qemu_log)?);
        Ok(())
    }

    /// The power cut: QEMU ends at once, what the guest did not flush is lost.
    pub fn power_cut(&mut self) -> Result<()> {
        self.shell = None;
        match self.process.take() {
            Some(mut process) => process.kill()?,
            None => bail!("guest {} is off already", self.name),
        }
        for disk in &self.volatile {
            disk.cut().with_context(|| format!("cutting the power of a disk of guest {}", self.name))?;
        }
        Ok(())
    }

    /// How many writes of 4 KiB its disks have lost, all power cuts together.
    pub fn lost_writes(&self) -> u64 {
        self.volatile.iter().map(VolatileDisk::lost).sum()
    }

    /// An orderly shutdown by systemd; an error if it takes longer than `limit`.
    pub fn shutdown(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        self.shell_until(deadline)?.send("systemctl --no-block poweroff")?;
        let process = self.process.as_mut().context("the guest is off")?;
        process.wait(deadline).with_context(|| format!("shutting down guest {}", self.name))?;
        self.process = None;
        self.shell = None;
        Ok(())
    }

    /// An orderly reboot by systemd, until the guest is ready again. Returns the
    /// time that took.
    pub fn reboot(&mut self, limit: Duration) -> Result<Duration> {
        let started = Instant::now();
        self.shell_until(started + limit)?.send("systemctl --no-block reboot")?;
        // The next boot gets a shell of its own, and its lines come after these.
        self.shell = None;
        self.console_from = std::fs::metadata(self.console_log()).map_or(0, |meta| meta.len());
        self.powered_on = started;
        self.wait_ready(limit)?;
        Ok(started.elapsed())
    }

    /// True while QEMU runs.
    pub fn is_on(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| matches!(process.ended(), Ok(None)))
    }

    /// Waits until the guest says that it is ready: on the appliance, until
    /// `orlopd` is. Returns the time since power on.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<Duration> {
        self.wait_ready_with(limit, |_| {})
    }

    /// [`wait_ready`](Self::wait_ready), which calls `progress` some times a
    /// second with the time since power on.
    pub fn wait_ready_with(
        &mut self,
        limit: Duration,
        mut progress: impl FnMut(Duration),
    ) -> Result<Duration> {
        let started = Instant::now();
        let mut waited = self.wait_console(READY, limit, &mut progress);
        if waited.is_err()
            && let Some(what) = self.emulator_failed()?
        {
            // Not the guest's fault, nor what is tested: once more, and no secret. To its disks it is a power cut.
            eprintln!("guest {}: the emulator {what} while it booted: powered on again", self.name);
            self.power_cut()?;
            self.power_on()?;
            waited = self.wait_console(READY, limit.saturating_sub(started.elapsed()), &mut progress);
        }
        waited.with_context(|| format!("waiting until guest {} is ready", self.name))
    }

    /// What the emulator, and not the guest, did wrong in this boot.
    fn emulator_failed(&mut self) -> Result<Option<&'static str>> {
        if self.lost_its_timer()? {
            return Ok(Some("lost a timer interrupt"));
        }
        let ended = self.process.as_mut().map(Process::ended).transpose()?.flatten();
        // QEMU 10.0's own assertions about its tables of memory, once in some hundred boots with two emulated processors.
        let aborted = ended.is_some_and(|status| status.signal() == Some(SIGABRT));
        Ok((self.machine.accel == Accel::Tcg && aborted).then_some("failed an assertion of its own"))
    }

    /// Whether this boot ended where an emulated processor stopped (see [`LOST_TIMER`]).
    fn lost_its_timer(&self) -> Result<bool> {
        let console = self.console()?;
        Ok(self.machine.accel == Accel::Tcg && console.contains(LOST_TIMER) && !console.contains(READY))
    }

    /// Waits for a text on the console since power on. The error has the last
    /// 30 lines.
    fn wait_console(
        &mut self,
        text: &str,
        limit: Duration,
        progress: &mut dyn FnMut(Duration),
    ) -> Result<Duration> {
        let deadline = Instant::now() + limit;
        loop {
            if self.console()?.contains(text) {
                return Ok(self.powered_on.elapsed());
            }
            self.alive()?;
            if Instant::now() >= deadline || self.lost_its_timer()? {
                bail!("no {text:?} on the console within {limit:?}; it ends with\n{}", self.console_tail());
            }
            progress(self.powered_on.elapsed());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// What the guest wrote on its serial console since power on.
    pub fn console(&self) -> Result<String> {
        use std::io::{Read as _, Seek as _, SeekFrom};
        let mut file = match std::fs::File::open(self.console_log()) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
            Err(error) => return Err(error).context("opening the console log"),
        };
        file.seek(SeekFrom::Start(self.console_from))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).context("reading the console log")?;
        Ok(String::from_utf8_lossy(&bytes).replace('\r', ""))
    }

    fn console_tail(&self) -> String {
        let text = self.console().unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// An error that explains itself if QEMU has ended.
    fn alive(&mut self) -> Result<()> {
        let Some(process) = self.process.as_mut() else { bail!("guest {} is off", self.name) };
        if let Some(status) = process.ended()? {
            let messages = std::fs::read_to_string(&self.qemu_log).unwrap_or_default();
            let last = messages.lines().last().unwrap_or("no message");
            bail!(
                "QEMU of guest {} ended ({status}): {last}; the console ends with\n{}",
                self.name,
                self.console_tail()
            );
        }
        Ok(())
    }

    /// Runs a bash command as root in the guest and returns what it wrote, with
    /// its exit status. The command is ended after `limit`, which is an error.
    /// What shall go on longer belongs in `systemd-run`.
    pub fn shell(&mut self, command: &str, limit: Duration) -> Result<Output> {
        self.alive()?;
        let result = self.shell_until(Instant::now() + SHELL_LIMIT)?.run(command, limit);
        result.with_context(|| format!("in guest {}", self.name))
    }

    /// [`shell`](Self::shell), where any exit status but 0 is an error that
    /// shows the output. Returns the output.
    pub fn shell_ok(&mut self, command: &str, limit: Duration) -> Result<String> {
        let output = self.shell(command, limit)?;
        if output.status != 0 {
            bail!("guest {}: exit status {} of: {command}\n{}", self.name, output.status, output.stdout);
        }
        Ok(output.stdout)
    }

    fn shell_until(&mut self, deadline: Instant) -> Result<&mut Shell> {
        if self.shell.is_none() {
            let socket = self.machine.shell_socket.clone();
            let shell = Shell::connect(&socket, deadline, || self.alive()).with_context(|| {
                format!("guest {}: the console ends with\n{}", self.name, self.console_tail())
            })?;
            self.shell = Some(shell);
        }
        self.shell.as_mut().context("no shell")
    }

    /// Mounts the payload read-only and returns where.
    pub fn mount_payload(&mut self) -> Result<&'static str> {
        let command = format!(
            "mkdir -p /run/payload && {{ mountpoint -q /run/payload || \
             mount -t erofs -o ro /dev/disk/by-id/virtio-{PAYLOAD_SERIAL} /run/payload; }}"
        );
        self.shell_ok(&command, Duration::from_secs(20))?;
        Ok("/run/payload")
    }

    /// Plugs a cable in (`true`) or out. `name` is [`LinkEnd::name`](crate::LinkEnd::name), or `mgmt`
    /// for the management network.
    pub fn set_link(&mut self, name: &str, up: bool) -> Result<()> {
        self.qmp()?.execute("set_link", json!({ "name": name, "up": up }))?;
        Ok(())
    }

    /// Limits a data disk to so many operations a second, 0 for no limit. At 1,
    /// to whatever has a deadline, the disk hangs.
    pub fn throttle_disk(&mut self, serial: &str, operations_per_second: u64) -> Result<()> {
        let limits = json!({
            "device": serial, "bps": 0, "bps_rd": 0, "bps_wr": 0,
            "iops": operations_per_second, "iops_rd": 0, "iops_wr": 0,
        });
        self.qmp()?.execute("block_set_io_throttle", limits)?;
        Ok(())
    }

    /// Stops all processors of the guest, as a hung machine would; time in the
    /// guest stands still.
    pub fn pause(&mut self) -> Result<()> {
        self.qmp()?.execute("stop", json!({}))?;
        Ok(())
    }

    /// Lets a paused guest go on.
    pub fn resume(&mut self) -> Result<()> {
        self.qmp()?.execute("cont", json!({}))?;
        Ok(())
    }

    fn qmp(&mut self) -> Result<Qmp> {
        self.alive()?;
        Qmp::connect(&self.machine.qmp_socket).with_context(|| format!("guest {}", self.name))
    }
}
