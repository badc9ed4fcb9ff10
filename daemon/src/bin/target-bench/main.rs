//! Targets over the real kernel with many volumes, timed: what the benchmark runs in a guest that has nothing else to
//! serve, beside shell loops that make the same from the same table. Not part of any package.
//!
//! ```text
//! target-bench table <protocol> <prefix> <host> <device>...  prints a table: a line a volume, what a loop must know
//! target-bench serve <protocol> <table>                      builds what the table has, and leaves it
//! target-bench settled <protocol> <table>                    fails if the kernel is not as `serve` leaves it
//! target-bench remove <protocol>                             removes all that is ours
//! target-bench many <protocol> <table> <device> <n> <file>   prints words and seconds, see below; leaves all of it
//! target-bench bare <protocol> <file>                        makes what `many` has written to a file, and prints seconds
//! target-bench calls <protocol> <table>                      builds and removes; what each kind of call took
//! target-bench attach <host> <volume>...                     asks the daemon, one after another, and prints seconds
//! target-bench detach <host> <volume>...                     the same
//! target-bench queue <host> <volume> <pool> <name> <n>       prints words and seconds, see below
//! ```
//!
//! A protocol is `nvme` or `iscsi`. What `many` prints is: `alone`, n times, one volume over the device attached beside
//! one other; `built`, all of the table converged from an empty kernel; `among`, n times, one more attached. The file has
//! what was changed in the kernel when all was built; `bare` does that and nothing else. What `queue` prints is: `alone`, the
//! volume attached (and detached again) with nothing else going on; `beside`, the same for as long as any of n creates of
//! volumes, all asked for at once, waits; `created`, all of these.

mod record;

use std::fs;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use orlop_api::client::Client;
use orlop_api::{ByteSize, VolumeCreate, VolumeId, VolumeRef};
use orlopd::kernel::Deadline;
use orlopd::model::{Identity, NqnPrefix};
use orlopd::target::lio::{self, Lio, LioConfig, ReservationsOnDisk};
use orlopd::target::nvmet::tls::SimKeyring;
use orlopd::target::nvmet::{self, Nvmet, NvmetConfig};
use orlopd::target::{ConfigTree, Desired, Export, HostId, Rights, Scope, Target};
use record::{Change, Recorder, replay};

/// Where the daemon is asked.
const SOCKET: &str = "/run/orlop/orlopd.sock";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<()> {
    let (command, protocol, rest) = match words {
        ["attach", host, volumes @ ..] => return ask(true, host, volumes),
        ["detach", host, volumes @ ..] => return ask(false, host, volumes),
        ["queue", host, volume, pool, name, count] => return queue(host, volume, pool, name, count.parse()?),
        [command, "nvme", rest @ ..] => (*command, Protocol::Nvme, rest),
        [command, "iscsi", rest @ ..] => (*command, Protocol::Iscsi, rest),
        _ => bail!("see the top of the source for what to say"),
    };
    match (command, rest) {
        ("table", [prefix, host, devices @ ..]) => table(protocol, prefix, host, devices),
        ("many", [table, device, count, file]) => many(protocol, table, device, count.parse()?, file),
        ("bare", [file]) => bare(protocol, file),
        ("serve", [table]) => {
            let steps = protocol.kernel().steps(Scope::All, &read(protocol, table)?)?;
            ensure!(!steps.is_empty(), "it is there already");
            Ok(())
        }
        ("settled", [table]) => {
            let steps = protocol.kernel().steps(Scope::All, &read(protocol, table)?)?;
            let first: Vec<_> = steps.iter().take(5).map(String::as_str).collect();
            ensure!(
                steps.is_empty(),
                "{} steps were left to do, the first: {}",
                steps.len(),
                first.join("; ")
            );
            Ok(())
        }
        ("remove", []) => protocol.kernel().steps(Scope::All, &Desired::new()).map(drop),
        ("calls", [table]) => {
            let recorder = Recorder::at(protocol.root(), true);
            let bench = protocol.over(recorder.clone());
            bench.steps(Scope::All, &read(protocol, table)?)?;
            bench.steps(Scope::All, &Desired::new())?;
            print!("{}", recorder.calls());
            Ok(())
        }
        _ => bail!("see the top of the source for what to say"),
    }
}

#[derive(Clone, Copy)]
enum Protocol {
    Nvme,
    Iscsi,
}

impl Protocol {
    fn root(self) -> &'static str {
        match self {
            Self::Nvme => nvmet::CONFIG_ROOT,
            Self::Iscsi => lio::CONFIG_ROOT,
        }
    }

    /// Directories that are left when the last volume has gone.
    fn shared(self) -> Vec<String> {
        match self {
            Self::Nvme => vec![format!("ports/{}", nvmet::FIRST_PORT)],
            Self::Iscsi => vec![format!("core/{}", lio::ADAPTER), "iscsi".into()],
        }
    }

    /// As the daemon has it.
    fn kernel(self) -> Bench {
        Bench(match self {
            Self::Nvme => Box::new(Nvmet::kernel(NvmetConfig::default())),
            Self::Iscsi => Box::new(Lio::kernel(LioConfig::default())),
        })
    }

    /// Over a tree that watches.
    fn over(self, tree: Arc<dyn ConfigTree>) -> Bench {
        Bench(match self {
            Self::Nvme => {
                let keys = Arc::new(SimKeyring::default());
                Box::new(Nvmet::over(NvmetConfig::default(), tree, None, keys))
            }
            Self::Iscsi => Box::new(Lio::over(LioConfig::default(), tree, Arc::new(ReservationsOnDisk))),
        })
    }

    fn host(self, name: &str) -> Result<HostId> {
        Ok(match self {
            Self::Nvme => HostId::Nqn(name.parse()?),
            Self::Iscsi => HostId::Iqn(name.parse()?),
        })
    }
}

struct Bench(Box<dyn Target>);

impl Bench {
    fn steps(&self, scope: Scope, desired: &Desired) -> Result<Vec<String>> {
        let report = self.0.converge(scope, desired, &Deadline::after(Duration::from_secs(600)))?;
        ensure!(report.is_complete(), "{:?} {:?}", report.failed, report.portals_down);
        Ok(report.steps)
    }

    /// Seconds that a convergence takes which has something to do.
    fn timed(&self, scope: Scope, desired: &Desired) -> Result<f64> {
        let begin = Instant::now();
        let steps = self.steps(scope, desired)?;
        ensure!(!steps.is_empty(), "nothing was to do");
        Ok(begin.elapsed().as_secs_f64())
    }

    /// Attaches one volume and detaches it again, `count` times.
    fn one(&self, word: &str, device: &str, host: &HostId, count: usize) -> Result<()> {
        for _ in 0..count {
            let (id, export) = export(VolumeId::mint(), device, host.clone());
            let desired = Desired::from([(id, export)]);
            println!("{word} {:.6}", self.timed(Scope::Volume(id), &desired)?);
            self.steps(Scope::Fence(id), &Desired::new())?;
        }
        Ok(())
    }
}

fn export(id: VolumeId, device: &str, host: HostId) -> (VolumeId, Export) {
    let identity = Identity::of(id, &NqnPrefix::default());
    let hosts = [(host, Rights::default())].into();
    (id, Export { identity, backing: device.into(), size: ByteSize(0), hosts })
}

/// A line a volume: name, id, serial number, UUID, NGUID, host, device.
fn table(protocol: Protocol, prefix: &str, host: &str, devices: &[&str]) -> Result<()> {
    let prefix: NqnPrefix = if prefix == "ours" { NqnPrefix::default() } else { prefix.parse()? };
    for device in devices {
        let id = VolumeId::mint();
        let i = Identity::of(id, &prefix);
        let (name, serial) = match protocol {
            Protocol::Nvme => (i.nqn.to_string(), &i.serial),
            Protocol::Iscsi => (i.iqn.to_string(), &i.scsi_serial),
        };
        println!("{name} {id} {serial} {} {} {host} {device}", i.uuid, i.nguid_hyphenated());
    }
    Ok(())
}

fn read(protocol: Protocol, table: &str) -> Result<Desired> {
    let text = fs::read_to_string(table).with_context(|| table.to_string())?;
    let line = |line: &str| {
        let [_, id, _, _, _, host, device] = line.split(' ').collect::<Vec<_>>()[..] else {
            bail!("not a line of a table: {line}");
        };
        Ok(export(id.parse()?, device, protocol.host(host)?))
    };
    text.lines().map(line).collect()
}

fn many(protocol: Protocol, table: &str, device: &str, count: usize, file: &str) -> Result<()> {
    let all = read(protocol, table)?;
    let host = all.values().find_map(|e| e.hosts.keys().next()).context("an empty table")?.clone();
    let kernel = protocol.kernel();
    // Beside the first of them: with none at all each would open the portal as well, and each detach close it.
    let first = all.iter().take(1).map(|(id, export)| (*id, export.clone())).collect();
    kernel.steps(Scope::All, &first)?;
    kernel.one("alone", device, &host, count)?;
    kernel.steps(Scope::All, &Desired::new())?;
    // What volumes share stays when they go, and is to be in the file.
    for dir in protocol.shared() {
        fs::remove_dir(format!("{}/{dir}", protocol.root())).with_context(|| dir.clone())?;
    }
    let recorder = Recorder::at(protocol.root(), false);
    println!("built {:.6}", protocol.over(recorder.clone()).timed(Scope::All, &all)?);
    fs::write(file, serde_json::to_vec(&recorder.changes())?).with_context(|| file.to_string())?;
    kernel.one("among", device, &host, count)
}

fn bare(protocol: Protocol, file: &str) -> Result<()> {
    let changes: Vec<Change> = serde_json::from_slice(&fs::read(file).with_context(|| file.to_string())?)?;
    let begin = Instant::now();
    replay(protocol.root(), &changes).context("making the changes again")?;
    println!("bare {:.6}", begin.elapsed().as_secs_f64());
    Ok(())
}

/// Through the daemon's own socket, over one connection.
fn ask(attach: bool, host: &str, volumes: &[&str]) -> Result<()> {
    let host = host.parse()?;
    let volumes: Vec<VolumeRef> =
        volumes.iter().map(|v| Ok(VolumeRef::Id(v.parse()?))).collect::<Result<_>>()?;
    let client = Client::unix(SOCKET)?;
    one_thread()?.block_on(async {
        client.ready().await?;
        let begin = Instant::now();
        for volume in &volumes {
            if attach {
                client.attach(volume, &host).await?;
            } else {
                client.detach(volume, &host).await?;
            }
        }
        println!("{:.6}", begin.elapsed().as_secs_f64());
        Ok(())
    })
}

/// What attaching takes while creates are queued. Who attaches is a client of its own: it does not wait for what another
/// client does on its own side.
fn queue(host: &str, volume: &str, pool: &str, name: &str, count: usize) -> Result<()> {
    /// How often it is done alone.
    const ALONE: usize = 50;
    let (host, volume) = (host.parse()?, VolumeRef::Id(volume.parse()?));
    let (client, runtime) = (Client::unix(SOCKET)?, one_thread()?);
    let one = |word: &str| -> Result<()> {
        let begin = Instant::now();
        runtime.block_on(client.attach(&volume, &host))?;
        println!("{word} {:.6}", begin.elapsed().as_secs_f64());
        Ok(runtime.block_on(client.detach(&volume, &host))?)
    };
    runtime.block_on(client.ready())?;
    for _ in 0..ALONE {
        one("alone")?;
    }
    let create = |n| Ok(VolumeCreate::new(format!("{name}-{n}").parse()?, pool.parse()?, ByteSize(1 << 30)));
    let asks = (0..count).map(create).collect::<Result<Vec<_>>>()?;
    std::thread::scope(|scope| {
        let creates = scope.spawn(move || {
            let client = Client::unix(SOCKET)?.with_timeout(Duration::from_secs(600));
            let begin = Instant::now();
            let all = futures_util::future::try_join_all(asks.iter().map(|ask| client.create_volume(ask)));
            one_thread()?.block_on(all)?;
            Ok::<_, anyhow::Error>(begin.elapsed())
        });
        while !creates.is_finished() {
            one("beside")?;
        }
        let created = creates.join().map_err(|_| anyhow::anyhow!("who creates died"))??;
        println!("created {:.6}", created.as_secs_f64());
        Ok(())
    })
}

fn one_thread() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}
