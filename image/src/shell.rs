//! Commands over the virtio console.
//!
//! systemd's debug shell is an interactive bash on a terminal. The first thing
//! sent turns it into something a program can talk to: no echo, no line
//! discipline (which would cut lines at 4 KiB), and a second bash that reads
//! from a pipe and so has no prompt, no history and no job control.

use anyhow::{Context, Result, bail};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Starts every marker. It does not occur in text, and what we send contains
/// only its escape sequence, so that an echo is never taken for an answer.
const MARK: char = '\u{1e}';

/// What a command wrote and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The exit status; 128 + n if it was ended by signal n.
    pub status: i32,
    /// Standard output and standard error, as they came.
    pub stdout: String,
}

/// A shell that answers.
#[derive(Debug)]
pub(crate) struct Shell {
    stream: UnixStream,
    received: Vec<u8>,
    serial: u64,
}

impl Shell {
    /// Connects, and waits until the shell in the guest answers. `alive` is
    /// asked between attempts and may end the wait with an error.
    pub fn connect(socket: &Path, deadline: Instant, mut alive: impl FnMut() -> Result<()>) -> Result<Self> {
        let stream = loop {
            alive()?;
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() >= deadline => {
                    return Err(error).context("connecting to the guest's console");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        stream.set_write_timeout(Some(Duration::from_secs(10)))?;
        let mut shell = Shell { stream, received: Vec::new(), serial: 0 };
        // What is sent before the shell runs may get lost, also the first half of it, so it is sent again and again.
        // Each time is harmless: a shell inside the shell. An answer comes only from one without a prompt: the
        // interactive one would mix prompts and notices of jobs into what commands write.
        while Instant::now() < deadline {
            alive()?;
            shell.serial += 1;
            let hello = format!(
                "\nstty raw -echo 2>/dev/null; cat | exec bash --noprofile --norc\n\
                 export HOME=/root LC_ALL=C.UTF-8 TERM=dumb; cd /; [[ $- == *i* ]] || printf '\\036E{}:%d\\n' 0\n",
                shell.serial
            );
            let _ = shell.stream.write_all(hello.as_bytes());
            let next = Instant::now() + Duration::from_secs(2);
            if shell.answer(shell.serial, next.min(deadline))?.is_some() {
                return Ok(shell);
            }
        }
        bail!("no shell answered on the guest's console")
    }

    /// Runs `command` by bash in the guest. After `limit` it is ended, which is an error.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<Output> {
        self.serial += 1;
        let serial = self.serial;
        // In the background, so that a command which can't be killed, because it hangs in the kernel, does not take
        // the shell with it. No program is started for it: that is what takes longest under emulation.
        let line = format!(
            "{{ trap 'printf \"\\036E{serial}:%d\\n\" $?' EXIT; printf '\\036S{serial}\\n'; eval {}; }} </dev/null 2>&1 & J=$!\n",
            quoted(command)
        );
        self.stream.write_all(line.as_bytes()).context("sending a command to the guest")?;
        let Some(output) = self.answer(serial, Instant::now() + limit)? else {
            self.send("kill -KILL $J $(</proc/$J/task/$J/children) 2>/dev/null")?;
            let said = self.said(serial);
            bail!("ended after {limit:?}: {command}\n{said}");
        };
        Ok(output)
    }

    /// What a command that has not ended has written.
    fn said(&self, serial: u64) -> String {
        let mark = format!("{MARK}S{serial}").into_bytes();
        let from = find(&self.received, &mark).map_or(self.received.len(), |at| at + mark.len());
        String::from_utf8_lossy(&self.received[from..]).trim().to_string()
    }

    /// Sends a command and does not wait for anything.
    pub fn send(&mut self, command: &str) -> Result<()> {
        self.stream.write_all(format!("{command}\n").as_bytes()).context("sending a command to the guest")
    }

    /// Reads until the end marker of `serial`; `None` when the deadline passes.
    fn answer(&mut self, serial: u64, deadline: Instant) -> Result<Option<Output>> {
        let mut chunk = [0u8; 16384];
        loop {
            if let Some(output) = take_answer(&mut self.received, serial) {
                return Ok(Some(output));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut chunk) {
                Ok(0) => bail!("the guest's console was closed"),
                Ok(n) => self.received.extend_from_slice(&chunk[..n]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(None),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e).context("reading the guest's console"),
            }
        }
    }
}

/// One word for bash, whatever is in it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Cuts the output of command `serial` out of what was received, if complete.
fn take_answer(received: &mut Vec<u8>, serial: u64) -> Option<Output> {
    let end_mark = format!("{MARK}E{serial}:").into_bytes();
    let start_mark = format!("{MARK}S{serial}\n").into_bytes();
    let end = find(received, &end_mark)?;
    let status_at = end + end_mark.len();
    let status_len = received[status_at..].iter().position(|byte| *byte == b'\n')?;
    let status = String::from_utf8_lossy(&received[status_at..status_at + status_len]).trim().parse().ok()?;
    // A terminal that was reset ends lines with CR LF: then the mark did not match, and output looked empty.
    let crlf_mark = format!("{MARK}S{serial}\r\n").into_bytes();
    let starts = [&start_mark, &crlf_mark].into_iter();
    let start = starts.filter_map(|m| Some(find(received, m)? + m.len())).next().unwrap_or(end);
    let stdout = String::from_utf8_lossy(&received[start.min(end)..end]).replace("\r\n", "\n");
    received.drain(..status_at + status_len + 1);
    Some(Output { status, stdout })
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_cut_out_of_noise() {
        let mut received = b"noise\x1eS7\nline one\nline two\x1eE7:3\nrest".to_vec();
        let output = take_answer(&mut received, 7).unwrap();
        assert_eq!(output, Output { status: 3, stdout: "line one\nline two".into() });
        assert_eq!(received, b"rest");
    }

    #[test]
    fn half_an_answer_is_none() {
        for part in ["\x1eS7\nabc", "\x1eS7\nabc\x1eE7:", "\x1eS7\nabc\x1eE7:0"] {
            let mut received = part.as_bytes().to_vec();
            assert_eq!(take_answer(&mut received, 7), None);
            assert_eq!(received, part.as_bytes());
        }
    }

    #[test]
    fn a_late_answer_of_another_command_is_skipped() {
        let mut received = b"\x1eS6\nold\x1eE6:0\n\x1eS7\nnew\x1eE7:0\n".to_vec();
        assert_eq!(take_answer(&mut received, 7).unwrap().stdout, "new");
        assert!(received.is_empty());
    }

    #[test]
    fn an_echo_is_not_an_answer() {
        let mut received = br"printf '\036S7\n'; true; printf '\036E7:%d\n' $?".to_vec();
        received.push(b'\n');
        assert_eq!(take_answer(&mut received, 7), None);
    }

    #[test]
    fn quoting() {
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }

    /// Connects to a local bash that stands in for the guest's: interactive, and deaf to the first `lost` lines.
    fn connected<R>(lost: usize, test: impl FnOnce(&mut Shell) -> R) -> R {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let bash = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut byte = [0];
            let mut lines = 0;
            while lines < lost {
                stream.read_exact(&mut byte).unwrap();
                lines += usize::from(byte[0] == b'\n');
            }
            let (a, b) = (stream.try_clone().unwrap(), stream);
            std::process::Command::new("bash")
                .args(["--norc", "-i"])
                .stdin(std::os::fd::OwnedFd::from(a))
                .stdout(std::os::fd::OwnedFd::from(b))
                .stderr(std::process::Stdio::null())
                .status()
        });
        let mut shell = Shell::connect(&socket, Instant::now() + LIMIT, || Ok(())).unwrap();
        let result = test(&mut shell);
        drop(shell);
        let _ = bash.join();
        result
    }

    const LIMIT: Duration = Duration::from_secs(20);

    /// Two lines: the empty one, and the one that starts the shell without a prompt.
    #[test]
    fn a_lost_first_half_does_not_leave_the_interactive_shell() {
        let flags = connected(2, |shell| shell.run("echo $-", LIMIT)).unwrap();
        assert!(flags.status == 0 && !flags.stdout.contains('i'), "{flags:?}");
    }

    #[test]
    fn commands_in_order_with_status_and_quotes() {
        connected(0, in_order);
    }

    fn in_order(shell: &mut Shell) {
        let limit = LIMIT;
        let output = shell.run("echo \"it's $((1 + 2))\"; printf 'no newline'; exit 5", limit).unwrap();
        assert_eq!(output, Output { status: 5, stdout: "it's 3\nno newline".into() });
        assert_eq!(shell.run("cat; seq 20000 | tail -n 1", limit).unwrap().stdout, "20000\n");
        let error = shell.run("echo before; sleep 30", Duration::from_millis(300)).unwrap_err().to_string();
        assert!(error.contains("ended after") && error.contains("before"), "{error}");
        assert_eq!(shell.run("echo again", limit).unwrap().stdout, "again\n");
    }
}
