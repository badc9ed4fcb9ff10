//! Running the few commands that have no system call: zfs, zpool, mkfs, blkid.
//!
//! Called by pools. A tool is an absolute path, found once; no shell, no inherited environment, no
//! input; what it says is captured up to a bound, and it is killed at the deadline. Never decides
//! anything by the text of an error.

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::{Deadline, Overrun};

/// Where tools are looked for. Not `PATH`: what runs as root is not chosen by an environment.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// The most that a tool may say. A listing of 100,000 volumes with a label of 1 KiB fits.
const MAX_OUTPUT: usize = 256 << 20;

/// How long a killed process may take to die before it is left to a thread of its own. One that is stuck
/// in the kernel does not die at all, and nobody should wait for it.
const DEATH: Duration = Duration::from_millis(500);

/// What is let go of when a process has gone.
type Held = Box<dyn Send>;

/// Why a command did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// Not installed.
    #[error("{0} is not installed")]
    Missing(&'static str),
    /// It could not be started or watched.
    #[error("{command} could not be run")]
    Spawn {
        /// What was run.
        command: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// It was killed at the deadline.
    #[error("{command} took too long and was killed")]
    Overrun {
        /// What was run.
        command: String,
        /// The marker.
        #[source]
        source: Overrun,
    },
    /// It said more than can be meant.
    #[error("{0} said too much and was killed")]
    TooMuch(String),
    /// It ended with another status than 0.
    #[error("{command} ended with {status}: {detail}")]
    Failed {
        /// What was run.
        command: String,
        /// `status 1`, `a signal`.
        status: String,
        /// The end of what it said, for people.
        detail: String,
    },
    /// Its output is not what its manual promises.
    #[error("{command} answered in an unknown form: {detail}")]
    Unparsed {
        /// What was run.
        command: String,
        /// What could not be read.
        detail: String,
    },
}

/// A command that is installed.
#[derive(Debug, Clone)]
pub struct Tool {
    name: &'static str,
    path: PathBuf,
    most: usize,
}

/// What a command that ended by itself left.
#[derive(Debug)]
pub struct Output {
    command: String,
    /// Its exit status; `None` when a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: Vec<u8>,
    /// What it complained of: for people only.
    pub stderr: Vec<u8>,
}

#[cfg(any(test, feature = "contract"))]
thread_local! {
    static INSTEAD: std::cell::RefCell<Option<PathBuf>> = const { std::cell::RefCell::new(None) };
}

/// For tests alone: from now on this thread finds tools in this directory and nowhere else; with `None`, where
/// they are.
#[cfg(any(test, feature = "contract"))]
pub fn find_in(directory: Option<PathBuf>) {
    INSTEAD.set(directory);
}

fn directories() -> Vec<PathBuf> {
    #[cfg(any(test, feature = "contract"))]
    if let Some(directory) = INSTEAD.with_borrow(Clone::clone) {
        return vec![directory];
    }
    DIRECTORIES.iter().map(PathBuf::from).collect()
}

impl Tool {
    /// Finds it.
    pub fn locate(name: &'static str) -> Result<Self, ExecError> {
        directories()
            .iter()
            .map(|d| d.join(name))
            .find(|p| p.is_file())
            .map(|path| Self { name, path, most: MAX_OUTPUT })
            .ok_or(ExecError::Missing(name))
    }

    /// With another bound on what it may say: of one whose answer has a known size.
    pub fn at_most(self, bytes: usize) -> Self {
        Self { most: bytes, ..self }
    }

    /// Runs it to its end. An exit status other than 0 is not an error here: see [`Output::success`].
    pub fn run<S: AsRef<OsStr>>(&self, args: &[S], deadline: &Deadline) -> Result<Output, ExecError> {
        self.run_all(args, None, Box::new(()), deadline)
    }

    /// [`run`](Self::run), with something that is dropped when the process has gone: one that the kernel keeps outlives
    /// the deadline, and is not gone then.
    pub fn run_holding<S: AsRef<OsStr>>(
        &self,
        args: &[S],
        held: impl Send + 'static,
        deadline: &Deadline,
    ) -> Result<Output, ExecError> {
        self.run_all(args, None, Box::new(held), deadline)
    }

    /// [`run`](Self::run), with something to read that must be in no list of processes: a key. A page at most,
    /// which a pipe takes without anybody reading.
    pub fn run_with<S: AsRef<OsStr>>(
        &self,
        args: &[S],
        input: Option<&[u8]>,
        deadline: &Deadline,
    ) -> Result<Output, ExecError> {
        self.run_all(args, input, Box::new(()), deadline)
    }

    #[allow(clippy::disallowed_methods, reason = "the one place that starts processes")]
    fn run_all<S: AsRef<OsStr>>(
        &self,
        args: &[S],
        input: Option<&[u8]>,
        held: Held,
        deadline: &Deadline,
    ) -> Result<Output, ExecError> {
        let command = shown(self.name, args);
        let overrun = |source| ExecError::Overrun { command: command.clone(), source };
        deadline.check().map_err(overrun)?;
        let mut child = Command::new(&self.path)
            .args(args.iter().map(AsRef::as_ref))
            .env_clear()
            .env("LC_ALL", "C")
            .env("PATH", DIRECTORIES.join(":"))
            .current_dir("/")
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own: killing it kills what it has started as well.
            .process_group(0)
            .spawn()
            .map_err(|source| ExecError::Spawn { command: command.clone(), source })?;
        // One that ends without reading it fails for a reason of its own, which is the one to tell.
        if let (Some(mut pipe), Some(bytes)) = (child.stdin.take(), input) {
            let _ = pipe.write_all(bytes);
        }
        match watch(&mut child, self.most, deadline) {
            Ok(Watched::Ended { code, stdout, stderr }) => Ok(Output { command, code, stdout, stderr }),
            Ok(Watched::Late) => {
                kill(child, held);
                Err(overrun(Overrun))
            }
            Ok(Watched::TooMuch) => {
                kill(child, held);
                Err(ExecError::TooMuch(command))
            }
            Err(source) => {
                kill(child, held);
                Err(ExecError::Spawn { command, source })
            }
        }
    }
}

impl Output {
    /// Itself if it ended with 0, an error otherwise.
    pub fn success(self) -> Result<Self, ExecError> {
        if self.code == Some(0) { Ok(self) } else { Err(self.failure()) }
    }

    /// The error that it is, where the status says so.
    pub fn failure(&self) -> ExecError {
        ExecError::Failed {
            command: self.command.clone(),
            status: self.code.map_or_else(|| "a signal".into(), |c| format!("status {c}")),
            detail: tail(&self.stderr),
        }
    }

    /// What it printed, as text.
    pub fn text(&self) -> Result<&str, ExecError> {
        std::str::from_utf8(&self.stdout).map_err(|e| self.unparsed(&e))
    }

    /// An error that says what could not be read.
    pub fn unparsed(&self, detail: &dyn fmt::Display) -> ExecError {
        ExecError::Unparsed { command: self.command.clone(), detail: detail.to_string() }
    }
}

/// The command for logs and errors, short enough for a line.
fn shown<S: AsRef<OsStr>>(name: &str, args: &[S]) -> String {
    let mut text = name.to_string();
    for a in args {
        text.push(' ');
        let arg = a.as_ref().to_string_lossy();
        if arg.chars().count() > 80 {
            text.extend(arg.chars().take(77));
            text.push_str("...");
        } else {
            text.push_str(&arg);
        }
    }
    text
}

/// The last lines, at most 400 characters.
fn tail(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim().replace('\n', "; ");
    let skip = text.chars().count().saturating_sub(400);
    text.chars().skip(skip).collect()
}

enum Watched {
    Ended { code: Option<i32>, stdout: Vec<u8>, stderr: Vec<u8> },
    Late,
    TooMuch,
}

/// One pipe of the child, and what came through it.
struct Pipe<R> {
    from: Option<R>,
    bytes: Vec<u8>,
}

impl<R: Read + AsFd> Pipe<R> {
    fn new(from: Option<R>) -> io::Result<Self> {
        if let Some(f) = &from {
            rustix::io::ioctl_fionbio(f, true)?;
        }
        Ok(Self { from, bytes: Vec::new() })
    }

    /// Takes what is there, without waiting.
    fn drain(&mut self, most: usize) -> io::Result<()> {
        let mut chunk = [0u8; 16 << 10];
        while let Some(from) = &mut self.from {
            match from.read(&mut chunk) {
                Ok(0) => self.from = None,
                Ok(n) => self.bytes.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
            if self.bytes.len() > most {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Waits for the end of the process and takes what it says meanwhile. A grandchild that keeps the
/// pipes open is not waited for: the command has ended when its process has.
fn watch(child: &mut Child, most: usize, deadline: &Deadline) -> io::Result<Watched> {
    let pid = Pid::from_child(child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let mut out = Pipe::new(child.stdout.take())?;
    let mut err = Pipe::new(child.stderr.take())?;
    loop {
        let left = deadline.remaining();
        if left.is_zero() {
            return Ok(Watched::Late);
        }
        let ended = {
            let mut fds = vec![PollFd::new(&pidfd, PollFlags::IN)];
            fds.extend(out.from.as_ref().map(|f| PollFd::new(f, PollFlags::IN)));
            fds.extend(err.from.as_ref().map(|f| PollFd::new(f, PollFlags::IN)));
            match poll(&mut fds, Some(&timespec(left))) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            !fds[0].revents().is_empty()
        };
        out.drain(most)?;
        err.drain(most)?;
        if out.bytes.len() > most || err.bytes.len() > most {
            return Ok(Watched::TooMuch);
        }
        if ended {
            let code = child.wait()?.code();
            return Ok(Watched::Ended { code, stdout: out.bytes, stderr: err.bytes });
        }
    }
}

/// Kills a child with its group; reaps it now if it dies at once, when it does if not.
fn kill(mut child: Child, held: Held) {
    let pid = Pid::from_child(&child);
    // It has not been reaped, so the number is still its own. Failing means that it has just ended.
    let _ = kill_process_group(pid, Signal::KILL);
    if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) {
        let _ = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timespec(DEATH)));
    }
    if !matches!(child.try_wait(), Ok(Some(_))) {
        apart(move || {
            let _ = child.wait();
            drop(held);
        });
    }
}

/// Has a thread of its own wait for the end of a process, however long that takes.
fn apart(wait: impl FnOnce() + Send + 'static) {
    // Where there is no thread to be had nothing is let go of: the process may be there for good.
    let wait = ManuallyDrop::new(wait);
    let started =
        std::thread::Builder::new().name("reaper".into()).spawn(move || ManuallyDrop::into_inner(wait)());
    if let Err(error) = started {
        tracing::error!(%error, "nobody waits for the end of a process");
    }
}

/// A process that somebody else has started.
#[derive(Debug)]
pub struct Running {
    /// What it was called with, its own path first.
    pub args: Vec<String>,
    process: OwnedFd,
}

impl Running {
    /// Drops something when it has gone.
    pub fn holding(self, held: impl Send + 'static) {
        apart(move || {
            while matches!(
                poll(&mut [PollFd::new(&self.process, PollFlags::IN)], None),
                Err(rustix::io::Errno::INTR)
            ) {}
            drop(held);
        });
    }
}

/// The processes of that name there are at present that somebody has started with such arguments.
pub fn running(name: &str, is_meant: impl Fn(&[String]) -> bool) -> io::Result<Vec<Running>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let number = entry.file_name().to_str().and_then(|n| n.parse().ok()).and_then(Pid::from_raw);
        let Some(pid) = number else { continue };
        let args = || -> Option<Vec<String>> {
            let text = std::fs::read(entry.path().join("cmdline")).ok()?;
            let args = text.strip_suffix(b"\0")?.split(|b| *b == 0);
            Some(args.map(|a| String::from_utf8_lossy(a).into_owned()).collect())
        };
        // Asking for a name takes no lock of the process, which one that hangs may have.
        let is_named = std::fs::read(entry.path().join("comm"))
            .is_ok_and(|comm| comm.trim_ascii_end() == name.as_bytes());
        if !is_named || args().is_none_or(|args| !is_meant(&args)) {
            continue;
        }
        // Its number may be another's by now: what is asked after it was opened is about this one.
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        found.extend(args().filter(|args| is_meant(args)).map(|args| Running { args, process }));
    }
    Ok(found)
}

/// A duration as the kernel takes it.
pub(super) fn timespec(d: Duration) -> Timespec {
    Timespec { tv_sec: i64::try_from(d.as_secs()).unwrap_or(i64::MAX), tv_nsec: i64::from(d.subsec_nanos()) }
}

/// Starts this very program anew in this process, with the same arguments and environment. Returns only if that
/// fails.
pub fn anew() -> io::Error {
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_else(|| "orlopd".into());
    // By its path where it still is: the kernel names the process after it.
    let path = std::env::current_exe().ok().filter(|path| path.exists());
    // The one program that takes over; `run` is for those that come back.
    #[allow(clippy::disallowed_methods)]
    let mut program = Command::new(path.unwrap_or_else(|| "/proc/self/exe".into()));
    program.arg0(name).args(args).exec()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::time::Instant;

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(10))
    }

    #[test]
    fn captures_output_and_status() {
        let sh = Tool::locate("sh").unwrap();
        let o = sh.run(&["-c", "echo out; echo err >&2; exit 3"], &soon()).unwrap();
        assert_eq!((o.code, &o.stdout[..], &o.stderr[..]), (Some(3), &b"out\n"[..], &b"err\n"[..]));
        let e = o.success().unwrap_err().to_string();
        assert!(e.ends_with("ended with status 3: err"), "{e}");
    }

    #[test]
    fn the_environment_is_ours() {
        let o = Tool::locate("env").unwrap().run::<&str>(&[], &soon()).unwrap();
        let mut lines: Vec<&str> = o.text().unwrap().lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]);
    }

    #[test]
    fn takes_more_than_a_pipe_holds() {
        let o = Tool::locate("head").unwrap().run(&["-c", "3000000", "/dev/zero"], &soon()).unwrap();
        assert_eq!(o.stdout.len(), 3_000_000);
    }

    #[test]
    fn is_killed_at_the_deadline_with_what_it_started() {
        let start = Instant::now();
        let late = Deadline::after(Duration::from_millis(200));
        let sh = Tool::locate("sh").unwrap();
        let e = sh.run(&["-c", "sleep 30 & sleep 30; true"], &late).unwrap_err();
        assert!(matches!(e, ExecError::Overrun { .. }), "{e}");
        assert!(start.elapsed() < Duration::from_secs(5));
        assert!(matches!(sh.run(&["-c", "true"], &late), Err(ExecError::Overrun { .. })));
    }

    #[test]
    fn does_not_wait_for_what_it_left_running() {
        let start = Instant::now();
        let sh = Tool::locate("sh").unwrap();
        let o = sh.run(&["-c", "sleep 20 & echo started"], &soon()).unwrap();
        assert_eq!(o.text().unwrap(), "started\n");
        assert!(start.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn what_is_held_goes_with_the_process() {
        struct Told(std::sync::mpsc::Sender<()>);
        impl Drop for Told {
            fn drop(&mut self) {
                let _ = self.0.send(());
            }
        }
        let (told, gone) = std::sync::mpsc::channel();
        let sh = Tool::locate("sh").unwrap();
        sh.run_holding(&["-c", "true"], Told(told.clone()), &soon()).unwrap();
        gone.recv_timeout(Duration::from_secs(10)).unwrap();
        // Beyond a deadline, when it is dead.
        let late = Deadline::after(Duration::from_millis(100));
        sh.run_holding(&["-c", "sleep 30; true"], Told(told.clone()), &late).unwrap_err();
        gone.recv_timeout(Duration::from_secs(10)).unwrap();
        // Of somebody else's: until it ends, and not before.
        let mark = format!("orlop-test-{}", std::process::id());
        #[allow(clippy::disallowed_methods)]
        let mut other =
            Command::new("/bin/sh").args(["-c", "read line", &mark]).stdin(Stdio::piped()).spawn().unwrap();
        let mut found = Vec::new();
        while found.is_empty() {
            found = running("sh", |args| args.last() == Some(&mark)).unwrap();
        }
        found.pop().unwrap().holding(Told(told));
        gone.recv_timeout(Duration::from_millis(200)).unwrap_err();
        drop(other.stdin.take());
        other.wait().unwrap();
        gone.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(running("sh", |args| args.last() == Some(&mark)).unwrap().is_empty());
    }

    #[test]
    fn a_missing_tool_is_named() {
        assert_eq!(Tool::locate("orlop-none").unwrap_err().to_string(), "orlop-none is not installed");
    }
}
