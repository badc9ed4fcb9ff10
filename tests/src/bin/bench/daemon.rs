//! A daemon of its own on this machine, without privileges, and connections to it that cost little.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use orlop_tests::wait_for;

/// A daemon in a directory of its own, ended when dropped.
pub struct Daemon {
    child: Child,
    /// Its directory, for pools too.
    pub dir: tempfile::TempDir,
}

impl Daemon {
    /// Starts one and waits until it is ready.
    pub fn start(root: &Path) -> Result<Self> {
        let dir = tempfile::tempdir_in(root)?;
        let child = Command::new(root.join("release/orlopd"))
            .args(["--sim", "--listen", "none", "--state"])
            .arg(dir.path().join("state"))
            .stderr(Stdio::null())
            .spawn()
            .context("target/release/orlopd is not built: `just bench` builds it")?;
        let daemon = Self { child, dir };
        let socket = daemon.socket();
        wait_for("the daemon", Duration::from_secs(20), || {
            Ok(Connection::open(&socket)
                .and_then(|mut c| c.call("GET", "/readyz", ""))
                .is_ok_and(|(s, _)| s == 200))
        })?;
        Ok(daemon)
    }

    /// Where it is spoken to.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("state/orlopd.sock")
    }

    /// Resident memory in MB (10^6 bytes).
    pub fn resident(&self) -> Result<f64> {
        self.memory("VmRSS:")
    }

    /// The most that it ever had resident.
    pub fn peak(&self) -> Result<f64> {
        self.memory("VmHWM:")
    }

    fn memory(&self, what: &str) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find(|l| l.starts_with(what)).with_context(|| format!("no {what}"))?;
        let kib: f64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
        Ok(kib * 1024.0 / 1e6)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A kept-alive connection that costs as little as possible, because it shares the processors with the
/// daemon that it measures.
pub struct Connection {
    stream: BufReader<UnixStream>,
}

impl Connection {
    /// Connects.
    pub fn open(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Status and body of the answer.
    pub fn call(&mut self, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let status = line.split(' ').nth(1).context("no status")?.parse()?;
        let mut length = 0;
        loop {
            line.clear();
            self.stream.read_line(&mut line)?;
            let header = line.trim_end();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length: ") {
                length = value.parse()?;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok((status, String::from_utf8(body)?))
    }
}

/// Runs `calls` calls from `clients` connections at once; calls a second.
pub fn load(
    socket: &Path,
    clients: usize,
    calls: usize,
    call: impl Fn(&mut Connection, usize) -> Result<()> + Sync,
) -> Result<f64> {
    let started = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients)
            .map(|client| {
                let call = &call;
                scope.spawn(move || -> Result<()> {
                    let mut connection = Connection::open(socket)?;
                    (client..calls).step_by(clients).try_for_each(|n| call(&mut connection, n))
                })
            })
            .collect();
        threads.into_iter().try_for_each(|t| t.join().map_err(|_| anyhow::anyhow!("a client died"))?)
    })?;
    Ok(calls as f64 / started.elapsed().as_secs_f64())
}
