//! The appliance, its API, and the guests around it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use orlop_api::client::Client;
use orlop_image::{Artifacts, Guest, GuestBuilder, Link, Role};
use tokio::runtime::Runtime;

use crate::Initiator;

/// How long a boot may take here before it is a failure of the test, not of the goal.
const BOOT: Duration = Duration::from_secs(180);
/// How long a command in a guest may take: what takes longer than this on a busy machine hangs.
pub(crate) const SHELL: Duration = Duration::from_secs(240);

/// What a lab is made of.
#[derive(Debug, Clone)]
pub struct LabOptions {
    /// Where disks and console logs are. Emptied first.
    pub dir: PathBuf,
    /// Serial numbers and sizes of the appliance's data disks.
    pub disks: Vec<(String, u64)>,
    /// Whether the appliance has the initiator's root as a disk, `virtio-tools`: for programs that it does not have itself.
    pub tools: bool,
    /// How many storage networks join the two guests.
    pub links: u8,
    /// How many initiators there are. The first has all the storage networks, others one of their own.
    pub initiators: u8,
    /// More words on the kernel's command line of all initiators but the first.
    pub second: Vec<String>,
    /// A port of the initiators that can be reached from this machine.
    pub forward: Option<u16>,
    /// Programs for the guests: copied onto a read-only disk.
    pub payload: Vec<PathBuf>,
    /// Processors and MiB of memory of the appliance.
    pub cpus: u32,
    /// MiB of memory of the appliance.
    pub memory: u32,
    /// Whether the appliance's disks lose at a power cut what was not flushed, and where their chance begins.
    pub volatile: Option<u64>,
    /// The appliance's configuration, on top of what its image has.
    pub config: String,
}

impl LabOptions {
    /// Four disks of 4 GiB, two storage networks.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        let disks = (0..4).map(|n| (format!("data{n}"), 4u64 << 30)).collect();
        Self {
            dir: dir.into(),
            disks,
            tools: false,
            links: 2,
            initiators: 1,
            second: Vec::new(),
            forward: None,
            payload: Vec::new(),
            cpus: 2,
            memory: 2048,
            volatile: None,
            config: String::new(),
        }
    }
}

/// See the module.
pub struct Lab {
    /// The appliance.
    pub appliance: Guest,
    /// The initiator.
    pub initiator: Initiator,
    /// More of them: one machine can't play two hosts, because its kernel takes what has one name for one
    /// disk.
    pub others: Vec<Initiator>,
    /// The typed client, pinned to the appliance's certificate.
    pub api: Client,
    /// How long the last boot took from power on to ready.
    pub boot: Duration,
    token: String,
    token_file: PathBuf,
    ca_file: PathBuf,
    runtime: Runtime,
}

impl Lab {
    /// Boots both guests, at the same time, and waits until the appliance is ready. `progress` hears what
    /// is waited for.
    pub fn start(options: &LabOptions, mut progress: impl FnMut(&str)) -> Result<Self> {
        let artifacts = Artifacts::locate()?;
        let dir = &options.dir;
        if dir.exists() {
            std::fs::remove_dir_all(dir).with_context(|| format!("emptying {}", dir.display()))?;
        }
        std::fs::create_dir_all(dir)?;
        let payload = dir.join("payload");
        std::fs::create_dir_all(&payload)?;
        for program in &options.payload {
            let name = program.file_name().context("a payload without a name")?;
            std::fs::copy(program, payload.join(name))
                .with_context(|| format!("copying {}", program.display()))?;
        }

        let token = new_token()?;
        let mut appliance = GuestBuilder::new(Role::Appliance, "appliance", dir)
            .cpus(options.cpus)
            .memory(options.memory)
            .credential("orlop.token", token.as_bytes())
            .credential("orlop.config", options.config.as_bytes())
            .payload(&payload)
            .forward(8443);
        for (serial, size) in &options.disks {
            appliance = appliance.data_disk(serial, *size);
        }
        if let Some(seed) = options.volatile {
            appliance = appliance.volatile_disks(seed);
        }
        if options.tools {
            appliance = appliance.read_only_disk("tools", &artifacts.root(Role::Initiator));
        }
        let mut builders = Vec::new();
        let mut number = 0;
        for n in 0..options.initiators {
            let name = if n == 0 { "initiator".to_string() } else { format!("initiator{}", n + 1) };
            // One processor: it has little to do, and the appliance is what is measured.
            let mut builder =
                GuestBuilder::new(Role::Initiator, &name, dir).payload(&payload).memory(768).cpus(1);
            if let Some(port) = options.forward {
                builder = builder.forward(port);
            }
            for word in options.second.iter().filter(|_| n > 0) {
                builder = builder.kernel_arg(word);
            }
            let mut addresses = Vec::new();
            for _ in 0..if n == 0 { options.links } else { 1 } {
                number += 1;
                let (near, far) = Link::pair(number)?;
                addresses.push(near.address());
                appliance = appliance.link(near);
                builder = builder.link(far);
            }
            builders.push((builder, addresses));
        }
        let mut appliance = appliance.start(&artifacts)?;
        let mut initiators = Vec::new();
        for (builder, addresses) in builders {
            initiators.push(Initiator::new(builder.start(&artifacts)?, addresses));
        }
        let boot = appliance
            .wait_ready_with(BOOT, |t| progress(&format!("appliance boots, {:.1} s", t.as_secs_f64())))?;
        for initiator in &mut initiators {
            let tell = |t: Duration| progress(&format!("initiator boots, {:.1} s", t.as_secs_f64()));
            initiator.guest.wait_ready_with(BOOT, tell)?;
        }
        let initiator = initiators.remove(0);

        let ca = appliance.shell_ok("cat /var/lib/orlop/tls/cert.pem", SHELL)?;
        let token_file = dir.join("token");
        let ca_file = dir.join("cert.pem");
        std::fs::write(&token_file, &token)?;
        std::fs::write(&ca_file, &ca)?;
        let runtime = Runtime::new()?;
        let port = appliance.port(8443).context("the API has no port")?;
        let url = format!("https://localhost:{port}");
        let api = Client::tls(&url, token.clone().into(), Some(ca.as_bytes()))?;
        Ok(Self { appliance, initiator, others: initiators, api, boot, token, token_file, ca_file, runtime })
    }

    /// Waits for the answer to a call of the client.
    pub fn wait<T>(&self, call: impl Future<Output = T>) -> T {
        self.runtime.block_on(call)
    }

    /// The administrator's token.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// How a person reaches this appliance with the command line.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let port = self.appliance.port(8443).unwrap_or_default();
        vec![
            ("ORLOP_URL", format!("https://localhost:{port}")),
            ("ORLOP_TOKEN_FILE", self.token_file.display().to_string()),
            ("ORLOP_CA", self.ca_file.display().to_string()),
        ]
    }

    /// Runs a command in the appliance.
    pub fn on_appliance(&mut self, command: &str) -> Result<String> {
        self.appliance.shell_ok(command, SHELL)
    }

    /// Cuts the appliance's power and boots it again.
    pub fn power_cycle(&mut self, mut progress: impl FnMut(&str)) -> Result<()> {
        self.appliance.power_cut()?;
        self.appliance.power_on()?;
        self.wait_boot(&mut progress)
    }

    /// Waits until an appliance whose power came back is ready.
    pub fn wait_boot(&mut self, mut progress: impl FnMut(&str)) -> Result<()> {
        self.boot = self
            .appliance
            .wait_ready_with(BOOT, |t| progress(&format!("appliance boots, {:.1} s", t.as_secs_f64())))?;
        Ok(())
    }

    /// The typed client as [`api`](Self::api), by another port of this machine.
    pub fn client_at(&self, port: u16) -> Result<Client> {
        let ca = std::fs::read(&self.ca_file)?;
        Ok(Client::tls(&format!("https://localhost:{port}"), self.token.clone().into(), Some(&ca))?)
    }

    /// Waits until the API takes changes, after the daemon was restarted.
    pub fn wait_api(&self) -> Result<()> {
        wait_for("the API to be ready", Duration::from_secs(60), || Ok(self.wait(self.api.ready()).is_ok()))
    }

    /// Everything that the kernel's target is made of, as text: for comparing before and after.
    pub fn target_tree(&mut self) -> Result<String> {
        let command = "cd /sys/kernel/config/nvmet && find . | sort && \
             grep -rs . subsystems ports hosts --include=device_* --include=attr_* --include=addr_* --include=enable | sort";
        // A start mark that the busy console damaged makes an answer look empty. This one never is, and
        // asking again changes nothing.
        for _ in 0..3 {
            let tree = self.on_appliance(command)?;
            if tree.contains("./subsystems") {
                return Ok(tree);
            }
        }
        bail!("the appliance does not show the kernel's target")
    }
}

/// A program of this workspace, built with `cargo build` for tests: with failpoints, and with the checks
/// that run inside guests.
pub fn instrumented(name: &str) -> Result<PathBuf> {
    let me = std::env::current_exe()?;
    // target/debug/deps/system-0123 or target/debug/demo.
    let found = me.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|p| Path::is_file(p));
    found.with_context(|| format!("{name} is not built: `just test` builds it first"))
}

/// Waits until `ready` says so; an error of its own ends the wait.
pub fn wait_for(what: &str, limit: Duration, mut ready: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + limit;
    while !ready()? {
        if Instant::now() > end {
            bail!("waited {limit:?} for {what}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn new_token() -> Result<String> {
    use std::io::Read;
    let mut random = [0u8; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(random))
}
