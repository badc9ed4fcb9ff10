//! Drives the NFS target on the machine's own NFS server, for tests in a guest.
//!
//! `nfs-contract SCOPE [ID=BACKING:NETWORK=RIGHTS,...]...` converges once, and again to see that nothing is left to do.
//! SCOPE is `all`, `desired`, `volume:ID` or `fence:ID`; RIGHTS are `rw` or `ro`, then `none`, `root` or `all` for
//! whose names are squashed: `rw-none`. It prints the steps, and how long they took.
//!
//! `nfs-contract check BACKING BACKING` runs the checks that need no host, in two directories where file systems are
//! mounted.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use orlop_api::{ByteSize, ErrorKind, Network, Squash, VolumeId};
use orlopd::kernel::Deadline;
use orlopd::model::{Identity, NqnPrefix};
use orlopd::target::nfs::{Nfs, NfsConfig};
use orlopd::target::{Desired, Export, HostId, Rights, Scope, Target};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.split_first() {
        Some((first, rest)) if first == "check" && rest.len() == 2 => check(&rest[0], &rest[1]),
        Some((scope, rest)) => converge(scope, rest),
        None => Err(anyhow::anyhow!("usage: see the source")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            println!("FAIL  {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

fn rights(text: &str) -> Result<Rights> {
    let (access, squash) = text.split_once('-').context("rights")?;
    let squash = match squash {
        "none" => Squash::None,
        "root" => Squash::Root,
        "all" => Squash::All,
        _ => bail!("no such squash: {squash}"),
    };
    Ok(Rights { read_only: access == "ro", squash, ..Rights::default() })
}

fn export(volume: VolumeId, backing: &str, hosts: &[(&str, &str)]) -> Result<Export> {
    let mut all = BTreeMap::new();
    for (network, r) in hosts {
        all.insert(HostId::Network(network.parse::<Network>()?), rights(r)?);
    }
    let identity = Identity::of(volume, &NqnPrefix::default());
    Ok(Export { identity, backing: backing.into(), size: ByteSize(1 << 30), hosts: all })
}

fn one(text: &str) -> Result<(VolumeId, Export)> {
    let (id, rest) = text.split_once('=').context("ID=")?;
    let (backing, hosts) = rest.split_once(":").context("BACKING:")?;
    let hosts: Vec<(&str, &str)> = hosts.split(',').filter_map(|h| h.split_once('=')).collect();
    let id = id.parse()?;
    Ok((id, export(id, backing, &hosts)?))
}

fn converge(scope: &str, volumes: &[String]) -> Result<()> {
    let scope = match scope.split_once(':') {
        None if scope == "all" => Scope::All,
        None if scope == "desired" => Scope::Desired,
        Some(("volume", id)) => Scope::Volume(id.parse()?),
        Some(("fence", id)) => Scope::Fence(id.parse()?),
        _ => bail!("no such scope: {scope}"),
    };
    let desired: Desired = volumes.iter().map(|v| one(v)).collect::<Result<_>>()?;
    let target = Nfs::kernel(NfsConfig::default());
    let begin = Instant::now();
    let report = target.converge(scope, &desired, &soon())?;
    let took = begin.elapsed();
    for step in &report.steps {
        println!("      {step}");
    }
    println!("took  {took:?}");
    ensure!(report.is_complete(), "{report:?}");
    let again = scope.volume().map_or(scope, Scope::Volume);
    let report = target.converge(again, &desired, &soon())?;
    ensure!(report.steps.is_empty(), "a second convergence did {:?}", report.steps);
    println!("ok    {:?} {:?}", target.portals(), target.served(&soon())?);
    Ok(())
}

struct Bench {
    target: Nfs,
    volumes: [VolumeId; 2],
    backings: [String; 2],
}

type Check = (&'static str, fn(&Bench) -> Result<()>);

fn check(first: &str, second: &str) -> Result<()> {
    let bench = Bench {
        target: Nfs::kernel(NfsConfig::default()),
        volumes: [VolumeId::mint(), VolumeId::mint()],
        backings: [first.into(), second.into()],
    };
    let foreign = foreign_lines()?;
    let checks: [Check; 8] = [
        ("two volumes are exported", Bench::exports),
        ("a second convergence changes nothing", Bench::settled),
        ("ranges do not overlap", Bench::ranges),
        ("what is in the table by hand is put right", Bench::repairs),
        ("a restart of the service serves the same", Bench::restarts),
        ("what is not mounted is refused, and the other served", Bench::refuses),
        ("a fence of all releases the file system", Bench::releases),
        ("teardown leaves nothing of ours", Bench::tears_down),
    ];
    let mut failed = 0;
    for (name, run) in checks {
        let begin = Instant::now();
        let result = run(&bench).and_then(|()| {
            ensure!(foreign_lines()? == foreign, "something foreign was changed");
            Ok(())
        });
        match result {
            Ok(()) => println!("ok    {name} ({:?})", begin.elapsed()),
            Err(e) => {
                failed += 1;
                println!("FAIL  {name}: {e:#}");
            }
        }
    }
    // The last line of a suite says how it ended.
    println!("{} passed, {failed} failed", checks.len() - failed);
    ensure!(failed == 0, "{failed} failed");
    Ok(())
}

fn table() -> Result<Vec<String>> {
    Ok(std::fs::read_to_string("/var/lib/nfs/etab")?.lines().map(str::to_owned).collect())
}

fn foreign_lines() -> Result<Vec<String>> {
    let mut all = table()?;
    all.retain(|l| !l.starts_with("/volumes/"));
    all.sort();
    Ok(all)
}

fn systemctl(args: &[&str]) -> Result<()> {
    let tool = orlopd::kernel::exec::Tool::locate("systemctl")?;
    tool.run(args, &soon())?.success()?;
    Ok(())
}

impl Bench {
    fn desired(&self, hosts: [&[(&str, &str)]; 2]) -> Result<Desired> {
        let mut all = Desired::new();
        for (n, hosts) in hosts.into_iter().enumerate().filter(|(_, h)| !h.is_empty()) {
            all.insert(self.volumes[n], export(self.volumes[n], &self.backings[n], hosts)?);
        }
        Ok(all)
    }

    fn usual(&self) -> Result<Desired> {
        self.desired([&[("10.99.0.5", "rw-none")], &[("10.99.0.0/24", "ro-root"), ("fd00:9::/64", "rw-all")]])
    }

    fn converge(&self, scope: Scope, desired: &Desired) -> Result<Vec<String>> {
        let report = self.target.converge(scope, desired, &soon())?;
        ensure!(report.is_complete(), "{report:?}");
        Ok(report.steps)
    }

    fn ours(&self, n: usize) -> Result<Vec<String>> {
        let path = self.target.path(self.volumes[n]);
        let mut all = table()?;
        all.retain(|l| l.starts_with(&*path.to_string_lossy()));
        Ok(all)
    }

    fn exports(&self) -> Result<()> {
        self.converge(Scope::All, &self.usual()?)?;
        ensure!(self.ours(0)?.len() == 1 && self.ours(1)?.len() == 2, "{:?}", table()?);
        ensure!(std::fs::read_to_string("/proc/fs/nfsd/threads")?.trim() != "0");
        ensure!(std::fs::read_to_string("/proc/fs/nfsd/nfsv4leasetime")?.trim() == "45");
        Ok(())
    }

    fn settled(&self) -> Result<()> {
        let desired = self.usual()?;
        for scope in [Scope::All, Scope::Desired, Scope::Volume(self.volumes[0])] {
            let steps = self.converge(scope, &desired)?;
            ensure!(steps.is_empty(), "{steps:?}");
        }
        Ok(())
    }

    fn ranges(&self) -> Result<()> {
        let hosts: &[(&str, &str)] =
            &[("10.99.0.0/24", "ro-root"), ("10.99.0.128/25", "rw-none"), ("10.99.0.5", "rw-none")];
        let desired = self.desired([hosts, &[]])?;
        self.converge(Scope::Volume(self.volumes[0]), &desired)?;
        let table = self.ours(0)?.join("\n");
        ensure!(!table.contains("10.99.0.0/24") && table.contains("10.99.0.0/25(ro"), "{table}");
        ensure!(table.contains("10.99.0.128/25(rw") && table.contains("10.99.0.5(rw"), "{table}");
        self.converge(Scope::Volume(self.volumes[0]), &self.usual()?)?;
        Ok(())
    }

    fn repairs(&self) -> Result<()> {
        let path = self.target.path(self.volumes[0]).display().to_string();
        let tool = orlopd::kernel::exec::Tool::locate("exportfs")?;
        for args in
            [vec!["-i", "-o", "rw,no_root_squash,crossmnt,fsid=7"], vec!["-i", "-o", "rw,no_root_squash"]]
                .into_iter()
                .zip(["10.99.0.5", "10.98.0.0/16"])
                .map(|(a, client)| {
                    let mut a: Vec<String> = a.into_iter().map(str::to_owned).collect();
                    a.push(format!("{client}:{path}"));
                    a
                })
        {
            tool.run(&args, &soon())?;
        }
        ensure!(self.ours(0)?.len() == 2);
        let desired = self.usual()?;
        let steps = self.converge(Scope::Volume(self.volumes[0]), &desired)?;
        ensure!(!steps.is_empty() && self.ours(0)?.len() == 1, "{:?}", table()?);
        ensure!(!self.ours(0)?[0].contains(",crossmnt"));
        Ok(())
    }

    fn restarts(&self) -> Result<()> {
        let (before, desired) = (table()?, self.usual()?);
        systemctl(&["restart", "nfs-server"])?;
        let sorted = |mut all: Vec<String>| {
            all.sort();
            all
        };
        let clients = |all: Vec<String>| {
            sorted(all.iter().filter_map(|l| l.split('(').next()).map(str::to_owned).collect())
        };
        ensure!(clients(before) == clients(table()?), "{:?}", table()?);
        let steps = self.converge(Scope::All, &desired)?;
        ensure!(steps.is_empty(), "{steps:?}");
        systemctl(&["stop", "nfs-server"])?;
        self.converge(Scope::Volume(self.volumes[0]), &desired)?;
        ensure!(self.ours(0)?.len() == 1 && self.ours(1)?.len() == 2, "{:?}", table()?);
        Ok(())
    }

    fn refuses(&self) -> Result<()> {
        for (backing, kind) in [
            ("/dev/vda", ErrorKind::Precondition),
            ("/run", ErrorKind::Precondition),
            ("/no/such/place", ErrorKind::Precondition),
        ] {
            let mut desired = self.usual()?;
            if let Some(e) = desired.get_mut(&self.volumes[1]) {
                e.backing = if backing == "/run" { "/run/systemd".into() } else { backing.into() };
            }
            let report = self.target.converge(Scope::All, &desired, &soon())?;
            ensure!(report.failed.len() == 1 && report.result_for(self.volumes[0]).is_ok(), "{report:?}");
            let got = report.failed.get(&self.volumes[1]).map(|e| e.kind());
            ensure!(got == Some(kind), "{backing}: {report:?}");
        }
        ensure!(self.ours(1)?.is_empty());
        self.converge(Scope::All, &self.usual()?)?;
        Ok(())
    }

    fn releases(&self) -> Result<()> {
        let desired = self.desired([&[("10.99.0.5", "rw-none")], &[]])?;
        self.converge(Scope::Fence(self.volumes[1]), &desired)?;
        ensure!(self.ours(1)?.is_empty() && !self.target.path(self.volumes[1]).exists());
        orlopd::kernel::mount::at(Path::new(&self.backings[1]))?.context("the backing went")?;
        Ok(())
    }

    fn tears_down(&self) -> Result<()> {
        self.converge(Scope::All, &Desired::new())?;
        ensure!(self.target.served(&soon())?.is_empty());
        ensure!(std::fs::read_dir("/etc/exports.d")?.count() == 0);
        Ok(())
    }
}
