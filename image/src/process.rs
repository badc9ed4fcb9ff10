//! The QEMU process: start, watch, kill.

use anyhow::{Context, Result, anyhow, bail};
use rustix::io::{FdFlags, fcntl_setfd};
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// A running QEMU. Killed when dropped, and by the kernel when our process ends.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
}

/// A program, what it inherits, and who waits for it.
type Request = (Command, Vec<Arc<OwnedFd>>, Sender<std::io::Result<Child>>);

/// The thread that starts every QEMU.
///
/// The kernel kills a child with its "parent", and by that it means the thread
/// that started it. Test threads come and go while a guest is still in use, so
/// one thread that never ends starts them all.
fn starter() -> &'static Mutex<Sender<Request>> {
    static STARTER: OnceLock<Mutex<Sender<Request>>> = OnceLock::new();
    STARTER.get_or_init(|| {
        let (sender, receiver): (_, Receiver<Request>) = channel();
        std::thread::spawn(move || {
            for (command, inherits, answer) in receiver {
                // A requester that gave up leaves a child nobody knows: end it.
                if let Err(unclaimed) = answer.send(spawn(command, &inherits))
                    && let Ok(mut child) = unclaimed.0
                {
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
        });
        Mutex::new(sender)
    })
}

/// Starts a program with open files that keep their numbers. What another thread starts at this moment inherits them too,
/// which keeps them open a little longer and does nothing else.
fn spawn(mut command: Command, inherits: &[Arc<OwnedFd>]) -> std::io::Result<Child> {
    for file in inherits {
        fcntl_setfd(file, FdFlags::empty())?;
    }
    let child = command.spawn();
    for file in inherits {
        fcntl_setfd(file, FdFlags::CLOEXEC)?;
    }
    child
}

impl Process {
    /// Starts QEMU, found at `emulator`, with open files that its arguments name by number, and its messages appended to `log`.
    pub fn start(
        emulator: &Path,
        args: &[OsString],
        inherits: Vec<Arc<OwnedFd>>,
        log: &Path,
    ) -> Result<Self> {
        let out = std::fs::File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("opening {}", log.display()))?;
        // setpriv asks the kernel to kill QEMU with us, which can't be done from
        // here without unsafe code. It replaces itself: same process, same id.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(emulator)
            .args(args)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out);
        // A process group of its own: Ctrl-C at a terminal is for us to handle.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let (answer, answered) = channel();
        starter()
            .lock()
            .map_err(|_| anyhow!("the thread that starts QEMU panicked"))?
            .send((command, inherits, answer))
            .context("the thread that starts QEMU ended")?;
        let child = answered.recv_timeout(Duration::from_secs(10)).context("starting QEMU took too long")?;
        Ok(Process { child: child.context("starting QEMU by setpriv (util-linux)")? })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The exit status, if QEMU has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context("asking for QEMU's state")
    }

    /// Waits until QEMU ends by itself.
    pub fn wait(&mut self, deadline: Instant) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("QEMU (pid {}) did not end in time", self.pid());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The power cut: SIGKILL, at this very moment.
    pub fn kill(&mut self) -> Result<()> {
        if self.ended()?.is_none() {
            self.child.kill().context("killing QEMU")?;
        }
        self.child.wait().context("waiting for QEMU's end")?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_arguments_end_it_and_leave_a_message() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let args = ["-c".into(), "echo no such option >&2; exit 1".into()];
        let mut process = Process::start(Path::new("sh"), &args, Vec::new(), log.path()).unwrap();
        let status = process.wait(Instant::now() + Duration::from_secs(20)).unwrap();
        assert!(!status.success());
        assert!(std::fs::read_to_string(log.path()).unwrap().contains("no such option"));
    }

    #[test]
    fn survives_the_thread_that_asked_for_it_and_dies_by_kill() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let path = log.path().to_path_buf();
        let args = ["60".into()];
        let started =
            std::thread::spawn(move || Process::start(Path::new("sleep"), &args, Vec::new(), &path).unwrap());
        let mut process = started.join().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        assert!(process.ended().unwrap().is_none());
        process.kill().unwrap();
        assert!(process.ended().unwrap().is_some());
    }
}
