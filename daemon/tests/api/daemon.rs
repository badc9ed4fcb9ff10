//! A daemon in a directory of its own.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use orlop_api::client::Client;
use orlop_api::{Host, HostPut, Pool, Volume, VolumeCreate};

/// Its configuration, beside its state; read if it is there.
const CONFIG: &str = "orlopd.toml";

pub struct Daemon {
    pub dir: tempfile::TempDir,
    pub address: Option<SocketAddr>,
    child: Child,
}

impl Daemon {
    /// Reachable by its unix socket alone.
    pub fn start() -> Self {
        Self::launch(None)
    }

    /// Reachable over TLS too.
    pub fn start_tls() -> Self {
        // Free a moment ago; nothing else on this machine asks for numbers in between.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Self::launch(Some(address))
    }

    fn launch(address: Option<SocketAddr>) -> Self {
        Self::launch_in(tempfile::tempdir().unwrap(), address)
    }

    /// In a directory in which there may be its state directory.
    pub fn start_in(dir: tempfile::TempDir) -> Self {
        Self::launch_in(dir, None)
    }

    fn launch_in(dir: tempfile::TempDir, address: Option<SocketAddr>) -> Self {
        let child = spawn(dir.path().join("state"), address, None);
        let daemon = Self { dir, address, child };
        daemon.wait_ready();
        daemon
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("orlopd.sock")
    }

    pub fn token(&self) -> String {
        std::fs::read_to_string(self.state().join("admin.token")).unwrap().trim().to_owned()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn client(&self) -> Client {
        Client::unix(self.socket()).unwrap().with_timeout(Duration::from_secs(30))
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address.unwrap())
    }

    pub fn ca(&self) -> Vec<u8> {
        std::fs::read(self.state().join("tls/cert.pem")).unwrap()
    }

    pub fn tls_client(&self) -> Client {
        Client::tls(&self.url(), self.token().into(), Some(&self.ca())).unwrap()
    }

    fn wait_ready(&self) {
        let end = Instant::now() + Duration::from_secs(30);
        while super::raw::get(&self.socket(), "/readyz").is_none_or(|r| r.status != 200) {
            assert!(Instant::now() < end, "the daemon is not ready after 30 s");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// SIGTERM, and its exit code.
    pub fn stop(&mut self) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap()
    }

    /// SIGHUP.
    pub fn hang_up(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// What its next start, or a reload, reads.
    pub fn configure(&self, text: &str) {
        std::fs::write(self.dir.path().join(CONFIG), text).unwrap();
    }

    /// Starts it again, after a stop or a kill.
    pub fn again(&mut self) {
        self.child = spawn(self.state(), self.address, None);
        self.wait_ready();
    }

    /// As `again`, where it can't be ready.
    pub fn again_unready(&mut self) {
        self.child = spawn(self.state(), self.address, None);
    }

    /// As `again`, and it kills itself when it comes to a failpoint.
    pub fn again_until(&mut self, failpoint: &str) {
        self.child = spawn(self.state(), self.address, Some(failpoint));
        self.wait_ready();
    }

    pub fn open_fds(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    pub async fn pool(&self, name: &str) -> Pool {
        let directory = self.dir.path().join(format!("pool-{name}"));
        std::fs::create_dir_all(&directory).unwrap();
        let ask = serde_json::json!({"name": name, "kind": "sim", "directory": directory});
        self.client().create_pool(&serde_json::from_value(ask).unwrap()).await.unwrap()
    }

    pub async fn volume(&self, pool: &Pool, name: &str) -> Volume {
        self.client().create_volume(&ask(pool, name, 4)).await.unwrap()
    }

    pub async fn host(&self, name: &str) -> Host {
        let nqn = format!("nqn.2014-08.org.nvmexpress:{name}").parse().unwrap();
        self.client().put_host(&name.parse().unwrap(), &HostPut::nvme(nqn)).await.unwrap()
    }
}

/// A volume of `n` times the pool's granularity.
pub fn ask(pool: &Pool, name: &str, n: u64) -> VolumeCreate {
    let size = pool.granularity.0 * n;
    serde_json::from_value(serde_json::json!({"name": name, "pool": pool.name, "size": size})).unwrap()
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(state: PathBuf, address: Option<SocketAddr>, failpoint: Option<&str>) -> Child {
    let listen = address.map_or("none".to_owned(), |a| a.to_string());
    // Another build of the daemon may be put to the same tests: a release, a package's.
    let program = std::env::var_os("ORLOP_TEST_DAEMON");
    let config = state.with_file_name(CONFIG);
    let given = config.exists().then_some(["--config".as_ref(), config.as_os_str()]);
    Command::new(program.unwrap_or_else(|| env!("CARGO_BIN_EXE_orlopd").into()))
        .args(given.into_iter().flatten())
        .args(["--sim", "--listen", &listen, "--socket"])
        // Beside its state, where it can be also when nothing can be written there.
        .arg(state.with_file_name("orlopd.sock"))
        .arg("--state")
        .arg(state)
        .envs(failpoint.map(|place| ("ORLOP_FAILPOINT", place)))
        .env_remove("NOTIFY_SOCKET")
        .env_remove("CREDENTIALS_DIRECTORY")
        .stdin(Stdio::null())
        .spawn()
        .unwrap()
}
