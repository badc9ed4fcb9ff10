//! The nvmet target against a real kernel: what the tests assert of the simulated one, in a machine
//! that has configfs.
//!
//! Run by hand or by the whole-system tests, as root, in a guest that has nothing else to serve. Not
//! part of any package.
//!
//! ```text
//! nvmet-contract check <device> <device>         one line a check, then "N passed, N failed"
//! nvmet-contract serve <device> <id> <nqn>...    converges one volume to these hosts
//! nvmet-contract fence <device> <id> <nqn>...    the same, and ends older accesses; no host: gone
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use orlop_api::{ByteSize, VolumeId};
use orlopd::kernel::Deadline;
use orlopd::kernel::configfs::ConfigFs;
use orlopd::model::{Audience, Identity, NqnPrefix};
use orlopd::target::nvmet::{CONFIG_ROOT, FIRST_PORT, Nvmet, NvmetConfig, NvmetPortal};
use orlopd::target::{Desired, Export, HostId, PortalConfig, Rights, Scope, Target, TargetError};

const FOREIGN: &str = "nqn.2020-01.com.example:theirs";
const FOREIGN_PORT: &str = "ports/7";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match *words {
        ["check", first, second] => return check(first, second),
        ["serve", device, id, ref hosts @ ..] => once(Scope::Volume, device, id, hosts),
        ["fence", device, id, ref hosts @ ..] => once(Scope::Fence, device, id, hosts),
        _ => Err(anyhow::anyhow!("see the top of the source for what to say")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e:#}");
            ExitCode::FAILURE
        }
    }
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(30))
}

fn export(id: VolumeId, device: &str, hosts: &[&str]) -> Result<Export> {
    let hosts: std::result::Result<_, _> =
        hosts.iter().map(|h| h.parse().map(|nqn| (HostId::Nqn(nqn), Rights::default()))).collect();
    Ok(Export {
        identity: Identity::of(id, &NqnPrefix::default()),
        backing: device.into(),
        size: ByteSize(0),
        hosts: hosts?,
    })
}

fn once(scope: fn(VolumeId) -> Scope, device: &str, id: &str, hosts: &[&str]) -> Result<()> {
    let id: VolumeId = id.parse()?;
    let mut desired = Desired::new();
    if !hosts.is_empty() {
        desired.insert(id, export(id, device, hosts)?);
    }
    let begin = Instant::now();
    let report = Nvmet::kernel(NvmetConfig::default()).converge(scope(id), &desired, &soon())?;
    println!("{} steps in {:?}: {}", report.steps.len(), begin.elapsed(), report.steps.join("; "));
    ensure!(report.is_complete(), "portals are down: {:?}", report.portals_down);
    Ok(())
}

/// One machine with two volumes of ours and a subsystem of somebody else.
struct Bench {
    target: Nvmet,
    tree: ConfigFs,
    devices: [String; 2],
    volumes: [VolumeId; 2],
}

/// What it shows, and how.
type Check = (&'static str, fn(&mut Bench) -> Result<()>);

const HOSTS: [&str; 3] = [
    "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-00000000000a",
    "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-00000000000b",
    "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-00000000000c",
];

fn config(ports: &[u16]) -> NvmetConfig {
    let at = |port: u16| PortalConfig { address: Ipv4Addr::LOCALHOST.into(), port };
    let portal = |port: &u16| NvmetPortal::tcp(at(*port));
    NvmetConfig { portals: ports.iter().map(portal).collect(), ..NvmetConfig::default() }
}

fn check(first: &str, second: &str) -> ExitCode {
    let mut bench = Bench {
        target: Nvmet::kernel(config(&[4430, 4431])),
        tree: ConfigFs::at(CONFIG_ROOT),
        devices: [first.into(), second.into()],
        volumes: [VolumeId::mint(), VolumeId::mint()],
    };
    let checks: [Check; 14] = [
        ("a foreign subsystem and port can be made", Bench::foreign),
        ("two volumes are built", Bench::builds),
        ("a second convergence changes nothing", Bench::settled),
        ("identity is as written", Bench::identity),
        ("a grow is announced", Bench::announces),
        ("a host is added without touching the rest", Bench::adds_host),
        ("a fence removes one host", Bench::fences),
        ("who may only read has a device that can't be written", Bench::reads),
        ("wrong identity is made anew", Bench::repairs),
        ("open to all is closed", Bench::closes),
        ("a missing device fails one volume", Bench::one_fails),
        ("a foreign user of a device is refused", Bench::refuses_double),
        ("a portal without address is reported", Bench::portal_down),
        ("teardown leaves nothing of ours", Bench::tears_down),
    ];
    let (mut passed, mut failed) = (0, 0);
    let mut foreign: Option<BTreeMap<PathBuf, String>> = None;
    for (name, run) in checks {
        let begin = Instant::now();
        let result = run(&mut bench).and_then(|()| {
            let now = bench.snapshot()?;
            let same = foreign.as_ref().is_none_or(|f| *f == now);
            foreign = Some(now);
            if same { Ok(()) } else { bail!("something foreign was changed") }
        });
        match result {
            Ok(()) => {
                passed += 1;
                println!("ok    {name} ({:?})", begin.elapsed());
            }
            Err(e) => {
                failed += 1;
                println!("FAIL  {name}: {e:#}");
            }
        }
    }
    bench.clean();
    println!("{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Bench {
    fn desired(&self, hosts: [&[usize]; 2]) -> Result<Desired> {
        let mut all = Desired::new();
        for (n, hosts) in hosts.into_iter().enumerate() {
            if !hosts.is_empty() {
                let hosts: Vec<&str> = hosts.iter().map(|h| HOSTS[*h]).collect();
                all.insert(self.volumes[n], export(self.volumes[n], &self.devices[n], &hosts)?);
            }
        }
        Ok(all)
    }

    fn converge(&self, scope: Scope, desired: &Desired) -> Result<Vec<String>> {
        let report = self.target.converge(scope, desired, &soon())?;
        ensure!(report.is_complete(), "{report:?}");
        Ok(report.steps)
    }

    fn at(&self, n: usize, what: &str) -> String {
        format!("subsystems/{}/{what}", NqnPrefix::default().subsystem(self.volumes[n]))
    }

    fn foreign(&mut self) -> Result<()> {
        let t = &self.tree;
        t.make_dir(&format!("subsystems/{FOREIGN}"))?;
        t.make_dir(&format!("hosts/{FOREIGN}-host"))?;
        t.link(
            &format!("hosts/{FOREIGN}-host"),
            &format!("subsystems/{FOREIGN}/allowed_hosts/{FOREIGN}-host"),
        )?;
        t.make_dir(FOREIGN_PORT)?;
        for (name, value) in
            [("trtype", "tcp"), ("adrfam", "ipv4"), ("traddr", "127.0.0.1"), ("trsvcid", "4499")]
        {
            t.write(&format!("{FOREIGN_PORT}/addr_{name}"), value)?;
        }
        t.link(&format!("subsystems/{FOREIGN}"), &format!("{FOREIGN_PORT}/subsystems/{FOREIGN}"))
            .context("link")
    }

    fn builds(&mut self) -> Result<()> {
        let steps = self.converge(Scope::All, &self.desired([&[0], &[0, 1]])?)?;
        ensure!(!steps.is_empty());
        for (n, hosts) in [(0, &HOSTS[..1]), (1, &HOSTS[..2])] {
            ensure!(self.tree.read(&self.at(n, "attr_allow_any_host"))? == "0");
            ensure!(self.tree.read(&self.at(n, "namespaces/1/enable"))? == "1");
            ensure!(self.tree.list(&self.at(n, "allowed_hosts"))? == hosts);
        }
        Ok(())
    }

    fn settled(&mut self) -> Result<()> {
        let desired = self.desired([&[0], &[0, 1]])?;
        for scope in [Scope::All, Scope::Volume(self.volumes[0])] {
            let steps = self.converge(scope, &desired)?;
            ensure!(steps.is_empty(), "{steps:?}");
        }
        Ok(())
    }

    fn identity(&mut self) -> Result<()> {
        let identity = Identity::of(self.volumes[0], &NqnPrefix::default());
        for (what, value) in [
            ("attr_serial", identity.serial.clone()),
            ("attr_model", "Orlop".into()),
            ("namespaces/1/device_uuid", identity.uuid.to_string()),
            ("namespaces/1/device_nguid", identity.nguid_hyphenated()),
            ("namespaces/1/device_path", self.devices[0].clone()),
        ] {
            let read = self.tree.read(&self.at(0, what))?;
            ensure!(read == value, "{what} is {read}, not {value}");
        }
        Ok(())
    }

    fn announces(&mut self) -> Result<()> {
        let desired = self.desired([&[0], &[]])?;
        for export in desired.values() {
            self.target.announce_size(export, &soon())?;
        }
        Ok(())
    }

    fn adds_host(&mut self) -> Result<()> {
        let steps = self.converge(Scope::Volume(self.volumes[0]), &self.desired([&[0, 2], &[]])?)?;
        ensure!(steps.len() == 2, "{steps:?}");
        Ok(())
    }

    fn fences(&mut self) -> Result<()> {
        let desired = self.desired([&[2], &[]])?;
        let steps = self.converge(Scope::Fence(self.volumes[0]), &desired)?;
        ensure!(!steps.is_empty());
        ensure!(self.tree.list(&self.at(0, "allowed_hosts"))? == HOSTS[2..]);
        // Host 0 is still allowed at the other volume.
        let hosts = self.tree.list("hosts")?;
        ensure!(HOSTS.iter().all(|h| hosts.iter().any(|e| e == h)), "{hosts:?}");
        let again = self.converge(Scope::Volume(self.volumes[0]), &desired)?;
        ensure!(again.is_empty(), "{again:?}");
        self.identity()
    }

    fn reads(&mut self) -> Result<()> {
        let mut desired = self.desired([&[2], &[]])?;
        for export in desired.values_mut() {
            export
                .hosts
                .insert(HostId::Nqn(HOSTS[0].parse()?), Rights { read_only: true, ..Rights::default() });
        }
        self.converge(Scope::Volume(self.volumes[0]), &desired)?;
        let nqn = NqnPrefix::default().subsystem_for(self.volumes[0], Audience::Readers);
        ensure!(self.tree.list(&format!("subsystems/{nqn}/allowed_hosts"))? == HOSTS[..1]);
        ensure!(self.tree.list(&self.at(0, "allowed_hosts"))? == HOSTS[2..]);
        let device = self.tree.read(&format!("subsystems/{nqn}/namespaces/1/device_path"))?;
        // What is written to it is an error, and does not arrive.
        let mut before = vec![0; 1 << 20];
        fs::File::open(&self.devices[0])?.read_exact(&mut before)?;
        let file = fs::File::options().write(true).open(&device)?;
        let wrote = file.write_at(&[7; 4096], 0).and_then(|_| file.sync_all());
        // Who has it open keeps it.
        drop(file);
        ensure!(wrote.is_err(), "it was written");
        let mut after = vec![0; 1 << 20];
        fs::File::open(&self.devices[0])?.read_exact(&mut after)?;
        ensure!(before == after, "what was written has arrived");
        let again = self.converge(Scope::Volume(self.volumes[0]), &desired)?;
        ensure!(again.is_empty(), "{again:?}");
        for export in desired.values() {
            self.target.announce_size(export, &soon())?;
        }
        self.converge(Scope::Fence(self.volumes[0]), &self.desired([&[2], &[]])?)?;
        ensure!(!Path::new(&device).exists(), "{device} is left");
        Ok(())
    }

    fn repairs(&mut self) -> Result<()> {
        self.tree.write(&self.at(0, "namespaces/1/enable"), "0")?;
        self.tree.write(&self.at(0, "namespaces/1/device_uuid"), "11111111-1111-4111-8111-111111111111")?;
        self.converge(Scope::Volume(self.volumes[0]), &self.desired([&[2], &[]])?)?;
        self.identity()
    }

    fn closes(&mut self) -> Result<()> {
        self.tree.unlink(&self.at(0, &format!("allowed_hosts/{}", HOSTS[2])))?;
        self.tree.write(&self.at(0, "attr_allow_any_host"), "1")?;
        let steps = self.converge(Scope::Volume(self.volumes[0]), &self.desired([&[2], &[]])?)?;
        ensure!(steps.first().is_some_and(|s| s.starts_with("close")), "{steps:?}");
        ensure!(self.tree.read(&self.at(0, "attr_allow_any_host"))? == "0");
        ensure!(self.tree.list(&self.at(0, "allowed_hosts"))? == HOSTS[2..]);
        Ok(())
    }

    fn one_fails(&mut self) -> Result<()> {
        let mut desired = self.desired([&[2], &[0]])?;
        if let Some(e) = desired.get_mut(&self.volumes[1]) {
            e.backing = "/dev/no-such-device".into();
        }
        let report = self.target.converge(Scope::All, &desired, &soon())?;
        ensure!(report.failed.len() == 1 && report.result_for(self.volumes[0]).is_ok(), "{report:?}");
        self.converge(Scope::All, &self.desired([&[2], &[0]])?)?;
        Ok(())
    }

    fn refuses_double(&mut self) -> Result<()> {
        let namespace = format!("subsystems/{FOREIGN}/namespaces/1");
        self.tree.make_dir(&namespace)?;
        self.tree.write(&format!("{namespace}/device_path"), &self.devices[1])?;
        let report = self.target.converge(Scope::All, &self.desired([&[2], &[0]])?, &soon());
        self.tree.remove_dir(&namespace)?;
        let report = report?;
        let refused = report.failed.get(&self.volumes[1]);
        ensure!(matches!(refused, Some(TargetError::Foreign { .. })), "{report:?}");
        Ok(())
    }

    fn portal_down(&mut self) -> Result<()> {
        let mut with = config(&[4430, 4431]);
        let elsewhere = PortalConfig { address: IpAddr::from([192, 0, 2, 1]), port: 4432 };
        with.portals.push(NvmetPortal::tcp(elsewhere));
        let target = Nvmet::kernel(with);
        let report = target.converge(Scope::All, &self.desired([&[2], &[0]])?, &soon())?;
        ensure!(report.failed.is_empty() && report.portals_down.len() == 1, "{report:?}");
        Ok(())
    }

    fn tears_down(&mut self) -> Result<()> {
        let nothing = Nvmet::kernel(config(&[]));
        nothing.converge(Scope::All, &Desired::new(), &soon())?;
        ensure!(self.tree.list("subsystems")? == [FOREIGN]);
        ensure!(self.tree.list("hosts")? == [format!("{FOREIGN}-host")]);
        let ports = self.tree.list("ports")?;
        ensure!(!ports.iter().any(|p| p.parse().is_ok_and(|p: u16| p >= FIRST_PORT)), "{ports:?}");
        Ok(())
    }

    /// All that is foreign, byte for byte.
    fn snapshot(&self) -> Result<BTreeMap<PathBuf, String>> {
        let mut all = BTreeMap::new();
        for top in [format!("subsystems/{FOREIGN}"), format!("hosts/{FOREIGN}-host"), FOREIGN_PORT.into()] {
            walk(&self.tree.root().join(top), &mut all)?;
        }
        Ok(all)
    }

    fn clean(&self) {
        let _ = self.tree.unlink(&format!("{FOREIGN_PORT}/subsystems/{FOREIGN}"));
        let _ = self.tree.remove_dir(FOREIGN_PORT);
        let _ = self.tree.unlink(&format!("subsystems/{FOREIGN}/allowed_hosts/{FOREIGN}-host"));
        let _ = self.tree.remove_dir(&format!("subsystems/{FOREIGN}"));
        let _ = self.tree.remove_dir(&format!("hosts/{FOREIGN}-host"));
    }
}

fn walk(at: &Path, all: &mut BTreeMap<PathBuf, String>) -> Result<()> {
    for entry in fs::read_dir(at).with_context(|| at.display().to_string())? {
        let path = entry?.path();
        let kind = fs::symlink_metadata(&path)?;
        if kind.is_symlink() {
            all.insert(path.clone(), fs::read_link(&path)?.display().to_string());
        } else if kind.is_dir() {
            all.insert(path.clone(), String::new());
            walk(&path, all)?;
        } else {
            // Some attributes can only be written.
            all.insert(path.clone(), fs::read_to_string(&path).unwrap_or_default());
        }
    }
    Ok(())
}
