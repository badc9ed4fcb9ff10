//! A daemon that simulates pools and targets, in a directory of this machine: thousands of operations a second, and death at any
//! instant. What it simulates loses its targets with it, as a machine does.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use orlop_api::client::Client;
use orlop_api::{HostPut, PoolCreate, PoolKind, PoolName};
use tokio::runtime::Runtime;

use super::check::Shown;
use super::machine::Machine;
use super::plan::Fault;
use super::record::Kind;
use super::wire::Wire;
use crate::{instrumented, wait_for};

const POOLS: [&str; 2] = ["one", "two"];

/// See the module.
pub struct Simulated {
    runtime: Runtime,
    dir: tempfile::TempDir,
    root: PathBuf,
    wire: Wire,
    daemon: Option<Child>,
    descriptors: Option<usize>,
}

impl Simulated {
    /// Starts one, with its pools.
    pub fn start() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target").canonicalize()?;
        let runtime = Runtime::new()?;
        let dir = tempfile::tempdir_in(&root)?;
        let mut machine = Self { runtime, dir, root, wire: Wire::default(), daemon: None, descriptors: None };
        machine.begin()?;
        Ok(machine)
    }

    fn begin(&mut self) -> Result<()> {
        let dir = self.dir.path();
        std::fs::create_dir_all(dir.join("state"))?;
        self.wire = Wire::unix(&self.runtime, &dir.join("wire"), dir.join("state/orlopd.sock"))?;
        self.descriptors = None;
        self.spawn(None)?;
        self.wait_ready()?;
        for name in POOLS {
            let directory = self.dir.path().join(format!("pool-{name}"));
            std::fs::create_dir_all(&directory)?;
            let ask = PoolCreate {
                directory: Some(directory.display().to_string()),
                ..PoolCreate::new(name.parse()?, PoolKind::Sim)
            };
            self.runtime.block_on(self.api_past_the_wire().create_pool(&ask))?;
        }
        Ok(())
    }

    fn spawn(&mut self, failpoint: Option<(&str, &str)>) -> Result<()> {
        let log = std::fs::File::options().create(true).append(true).open(self.dir.path().join("log"))?;
        let mut command = Command::new(instrumented("orlopd")?);
        command.args(["--sim", "--listen", "none", "--state"]).arg(self.dir.path().join("state"));
        if let Some((verb, stage)) = failpoint {
            command.env("ORLOP_FAILPOINT", format!("{verb}.{stage}"));
        }
        self.daemon = Some(command.stdout(Stdio::null()).stderr(log).spawn()?);
        Ok(())
    }

    fn wait_ready(&mut self) -> Result<()> {
        let api = self.api_past_the_wire();
        let (runtime, daemon) = (&self.runtime, &mut self.daemon);
        wait_for("the daemon to be ready", Duration::from_secs(30), || {
            let ended = daemon.as_mut().and_then(|d| d.try_wait().transpose()).transpose()?;
            ensure!(ended.is_none(), "it ended instead: {ended:?}");
            Ok(runtime.block_on(api.ready()).is_ok())
        })
    }

    fn kill(&mut self) -> Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill()?;
            daemon.wait()?;
        }
        Ok(())
    }

    fn die_at_start(&mut self, stage: &str) -> Result<()> {
        self.spawn(Some(("recover", stage)))?;
        wait_for("the daemon to die at its start", Duration::from_secs(30), || self.died())?;
        self.kill()
    }

    fn stop(&mut self) -> Result<()> {
        let Some(mut daemon) = self.daemon.take() else { return Ok(()) };
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&daemon),
            rustix::process::Signal::TERM,
        )?;
        let ended = daemon.wait()?;
        ensure!(ended.success(), "the daemon stopped with {ended}");
        Ok(())
    }

    /// Whether the daemon has died by itself.
    fn died(&mut self) -> Result<bool> {
        Ok(self.daemon.as_mut().map(Child::try_wait).transpose()?.flatten().is_some())
    }

    fn client(&self, socket: &str) -> Client {
        // A path and no TLS: nothing that could fail.
        #[allow(clippy::expect_used)]
        Client::unix(self.dir.path().join(socket)).expect("a client for a unix socket")
    }

    /// What the pools' directories hold: the ids in the names of their files.
    fn backings(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for pool in POOLS {
            let volumes = self.dir.path().join(format!("pool-{pool}/volumes"));
            for entry in std::fs::read_dir(&volumes).with_context(|| volumes.display().to_string())? {
                found.push(entry?.file_name().to_string_lossy().into_owned());
            }
        }
        Ok(found)
    }
}

impl Machine for Simulated {
    fn faults(&self) -> Vec<Fault> {
        use Fault::*;
        vec![
            Nothing,
            Restart,
            Kill,
            Kill,
            Kill,
            KillAt("", ""),
            KillAt("", ""),
            LostJournal,
            LostJournalAndKilled("opened"),
            LostJournalAndKilled("settled"),
            LostJournalAndKilled("served"),
            CutConnections,
        ]
    }

    fn pools(&self) -> Vec<(PoolName, Kind)> {
        // Literals that follow the rule.
        #[allow(clippy::expect_used)]
        POOLS
            .map(|name| (name.parse().expect("a literal"), Kind { clones_depend: false, properties: true }))
            .into()
    }

    fn host(&self, number: u8) -> Result<HostPut> {
        Ok(HostPut {
            nqn: Some(format!("nqn.2014-08.org.nvmexpress:torture-{number}").parse()?),
            iqn: Some(format!("iqn.2026-01.com.example:torture-{number}").parse()?),
            addresses: Vec::new(),
        })
    }

    fn api(&self) -> Client {
        self.client("wire")
    }

    fn api_past_the_wire(&self) -> Client {
        self.client("state/orlopd.sock")
    }

    fn prepare(&mut self, fault: Fault) -> Result<()> {
        if let Fault::KillAt(verb, stage) = fault
            && verb != "recover"
        {
            self.stop()?;
            self.spawn(Some((verb, stage)))?;
            self.wait_ready()?;
        }
        Ok(())
    }

    fn strike(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Restart => self.stop(),
            Fault::Kill | Fault::PowerCut | Fault::KillAt("recover", _) => self.kill(),
            Fault::CutConnections => {
                self.wire.cut(true);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn mend(&mut self, fault: Fault) -> Result<bool> {
        self.wire.cut(false);
        let mut happened = true;
        match fault {
            Fault::KillAt("recover", stage) => self.die_at_start(stage)?,
            Fault::KillAt(..) => {
                happened = self.died()?;
                self.kill()?;
            }
            Fault::LostJournal | Fault::LostJournalAndKilled(_) => {
                self.stop()?;
                std::fs::remove_dir_all(self.dir.path().join("state/journal"))?;
                if let Fault::LostJournalAndKilled(stage) = fault {
                    self.die_at_start(stage)?;
                }
            }
            _ => {}
        }
        if self.daemon.is_none() {
            self.spawn(None)?;
        }
        self.wait_ready()?;
        Ok(happened)
    }

    fn own_volumes(&self) -> BTreeSet<String> {
        BTreeSet::new()
    }

    fn look(&mut self, shown: &Shown, _: bool) -> Result<Vec<String>> {
        let mut wrong = Vec::new();
        let (backings, ids) = (self.backings()?, shown.ids());
        for id in &ids {
            if !backings.iter().any(|name| name.contains(&id.to_string())) {
                wrong.push(format!("volume {id} has no backing"));
            }
        }
        for name in &backings {
            if !ids.iter().any(|id| name.contains(&id.to_string())) {
                wrong.push(format!("backing {name} belongs to no volume"));
            }
        }
        // Connections of clients that end late count too, so the least of some looks.
        let pid = self.daemon.as_ref().map(Child::id).context("no daemon")?;
        let least = (0..20).map(|n| {
            std::thread::sleep(Duration::from_millis(if n == 0 { 0 } else { 10 }));
            Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
        });
        let open = least.collect::<Result<Vec<_>>>()?.into_iter().min().unwrap_or_default();
        let first = *self.descriptors.get_or_insert(open);
        if open > first + 8 {
            wrong.push(format!("the daemon has {open} descriptors open, {first} after the first round"));
        }
        Ok(wrong)
    }

    fn renew(&mut self) -> Result<()> {
        self.kill()?;
        self.dir = tempfile::tempdir_in(&self.root)?;
        self.begin()
    }

    fn log(&mut self) -> String {
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let last = &lines[lines.len().saturating_sub(20)..];
        last.iter().map(|l| l.chars().take(240).collect::<String>() + "\n").collect()
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}
