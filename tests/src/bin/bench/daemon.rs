//! A daemon of its own on this machine, without privileges, and connections to it that cost little.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// A daemon in a directory of its own, ended when dropped.
pub struct Daemon {
    child: Child,
    root: PathBuf,
    port: u16,
    /// Its directory, for pools too.
    pub dir: tempfile::TempDir,
}

impl Daemon {
    /// Starts one and waits until it is ready.
    pub fn start(root: &Path) -> Result<Self> {
        let dir = tempfile::tempdir_in(root)?;
        // Free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let child = spawn(root, &dir, port)?;
        let mut daemon = Self { child, root: root.to_path_buf(), port, dir };
        daemon.wait_ready()?;
        Ok(daemon)
    }

    /// Waits until it takes changes: looks every millisecond, because a start is measured by it.
    fn wait_ready(&mut self) -> Result<()> {
        let (socket, end) = (self.socket(), Instant::now() + Duration::from_secs(60));
        loop {
            let answer = Connection::open(&socket).and_then(|mut c| c.call("GET", "/readyz", ""));
            if answer.is_ok_and(|(status, _)| status == 200) {
                return Ok(());
            }
            ensure!(Instant::now() < end, "the daemon is not ready");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Kills it and starts it again: seconds until it is ready.
    pub fn restart(&mut self) -> Result<f64> {
        self.child.kill()?;
        self.child.wait()?;
        let started = Instant::now();
        self.child = spawn(&self.root, &self.dir, self.port)?;
        self.wait_ready()?;
        Ok(started.elapsed().as_secs_f64())
    }

    /// A connection over TLS, with a token.
    pub fn tls(&self) -> Result<Connection> {
        let state = self.dir.path().join("state");
        let config = orlop_api::client::tls_config(Some(&std::fs::read(state.join("tls/cert.pem"))?), None)?;
        let session = rustls::ClientConnection::new(std::sync::Arc::new(config), "localhost".try_into()?)?;
        let stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let token = std::fs::read_to_string(state.join("admin.token"))?;
        Ok(Connection {
            stream: BufReader::new(Box::new(rustls::StreamOwned::new(session, stream))),
            headers: format!("authorization: Bearer {}\r\n", token.trim()),
        })
    }

    /// How often its threads were woken, and what it has written to disks, so far.
    pub fn activity(&self) -> Result<(u64, u64)> {
        let field = |text: &str, name: &str| -> Result<u64> {
            let line =
                text.lines().find_map(|l| l.strip_prefix(name)).with_context(|| format!("no {name}"))?;
            Ok(line.trim().parse()?)
        };
        let process = PathBuf::from(format!("/proc/{}", self.child.id()));
        let mut woken = 0;
        for thread in std::fs::read_dir(process.join("task"))? {
            let status = std::fs::read_to_string(thread?.path().join("status"))?;
            woken += field(&status, "voluntary_ctxt_switches:")?;
        }
        Ok((woken, field(&std::fs::read_to_string(process.join("io"))?, "write_bytes:")?))
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
        memory(self.child.id(), what)
    }

    /// Where it is spoken to over TLS.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }
}

fn memory(process: u32, what: &str) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find(|l| l.starts_with(what)).with_context(|| format!("no {what}"))?;
    let kib: f64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kib * 1024.0 / 1e6)
}

/// A process's resident memory in MB (10^6 bytes).
pub fn resident(process: u32) -> Result<f64> {
    memory(process, "VmRSS:")
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
    stream: BufReader<Box<dyn Stream>>,
    headers: String,
}

/// A unix socket, or TLS.
trait Stream: Read + Write + Send {}

impl<T: Read + Write + Send> Stream for T {}

fn spawn(root: &Path, dir: &tempfile::TempDir, port: u16) -> Result<Child> {
    Command::new(root.join("release/orlopd"))
        .args(["--sim", "--listen", &format!("127.0.0.1:{port}"), "--state"])
        .arg(dir.path().join("state"))
        .stderr(Stdio::null())
        .spawn()
        .context("target/release/orlopd is not built: `just bench` builds it")
}

impl Connection {
    /// Connects.
    pub fn open(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Self { stream: BufReader::new(Box::new(stream)), headers: String::new() })
    }

    /// Status and body of the answer.
    pub fn call(&mut self, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\n{}content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.headers,
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
    load_over(&|| Connection::open(socket), clients, calls, call)
}

/// The same over connections of any kind.
pub fn load_over(
    connect: &(dyn Fn() -> Result<Connection> + Sync),
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
                    let mut connection = connect()?;
                    (client..calls).step_by(clients).try_for_each(|n| call(&mut connection, n))
                })
            })
            .collect();
        threads.into_iter().try_for_each(|t| t.join().map_err(|_| anyhow::anyhow!("a client died"))?)
    })?;
    Ok(calls as f64 / started.elapsed().as_secs_f64())
}
