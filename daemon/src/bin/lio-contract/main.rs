//! The target over the real kernel: what the tests over the simulated one take for granted, checked.
//!
//! Run by hand or by the whole-system tests, as root, in a guest that has nothing else to serve. Not
//! part of any package.
//!
//! ```text
//! lio-contract check <device> <device>         one line a check, then "N passed, N failed"
//! lio-contract many <device>...                builds and removes a volume a device, timed
//! lio-contract serve <device> <id> <host>...   converges one volume to these hosts
//! lio-contract fence <device> <id> <host>...   the same, as a fence; no host: gone
//! ```
//!
//! A host is `<iqn>`, `<iqn>,ro`, `<iqn>,chap=<user>/<secret>` or, with the target's own, `...,mutual=<user>/<secret>`.

mod login;

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use login::{Answer, ended, login};
use orlop_api::{ByteSize, ChapCredentials, ChapPut, VolumeId};
use orlopd::kernel::Deadline;
use orlopd::kernel::configfs::ConfigFs;
use orlopd::model::{Identity, NqnPrefix};
use orlopd::target::keys::{HostKeys, Proof};
use orlopd::target::lio::{ADAPTER, CONFIG_ROOT, Lio, LioConfig};
use orlopd::target::{Desired, Export, HostId, PortalConfig, Rights, Scope, Target, TargetError};

const FOREIGN: &str = "iscsi/iqn.2020-01.com.example:theirs";
const FOREIGN_STORE: &str = "core/iblock_0/theirs";
const PORTS: [u16; 2] = [3261, 3262];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match *words {
        ["check", first, second] => return check(first, second),
        ["many", ref devices @ ..] => many(devices),
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
    Deadline::after(Duration::from_secs(60))
}

fn credentials(text: &str) -> Result<ChapCredentials> {
    let (user, secret) = text.split_once('/').context("a name and a secret: name/secret")?;
    Ok(ChapCredentials { user: user.parse()?, secret: secret.parse()? })
}

fn export(id: VolumeId, device: &str, hosts: &[&str], keys: &HostKeys) -> Result<Export> {
    let mut all = BTreeMap::new();
    for host in hosts {
        let mut words = host.split(',');
        let host = HostId::Iqn(words.next().unwrap_or_default().parse()?);
        let mut rights = Rights::default();
        let mut chap: Option<ChapPut> = None;
        for word in words {
            match (word.split_once('='), &mut chap) {
                (None, _) if word == "ro" => rights.read_only = true,
                (Some(("chap", text)), _) => chap = Some(ChapPut { host: credentials(text)?, target: None }),
                (Some(("mutual", text)), Some(chap)) => chap.target = Some(credentials(text)?),
                _ => bail!("what is {word}?"),
            }
        }
        keys.put(&host, chap.map_or(Proof::Nothing, |chap| Proof::Chap(Box::new(chap))));
        all.insert(host, rights);
    }
    let identity = Identity::of(id, &NqnPrefix::default());
    Ok(Export { identity, backing: device.into(), size: ByteSize(0), hosts: all })
}

fn once(scope: fn(VolumeId) -> Scope, device: &str, id: &str, hosts: &[&str]) -> Result<()> {
    let id: VolumeId = id.parse()?;
    let keys = HostKeys::default();
    let mut desired = Desired::new();
    if !hosts.is_empty() {
        desired.insert(id, export(id, device, hosts, &keys)?);
    }
    let begin = Instant::now();
    let target = Lio::kernel(LioConfig::default()).with_keys(keys);
    let report = target.converge(scope(id), &desired, &soon())?;
    println!("{} steps in {:?}: {}", report.steps.len(), begin.elapsed(), report.steps.join("; "));
    ensure!(report.is_complete(), "portals are down: {:?}", report.portals_down);
    Ok(())
}

fn many(devices: &[&str]) -> Result<()> {
    let (target, keys) = (Lio::kernel(config(&PORTS)), HostKeys::default());
    let mut desired = Desired::new();
    for device in devices {
        let id = VolumeId::mint();
        desired.insert(id, export(id, device, &HOSTS[..2], &keys)?);
    }
    for (what, desired) in [("built", &desired), ("looked at", &desired), ("removed", &Desired::new())] {
        let begin = Instant::now();
        let report = target.converge(Scope::All, desired, &soon())?;
        ensure!(report.is_complete(), "{report:?}");
        println!("{} volumes {what} in {:?}, {} steps", devices.len(), begin.elapsed(), report.steps.len());
    }
    Ok(())
}

/// One machine with two volumes of ours and a target of somebody else.
struct Bench {
    target: Lio,
    keys: HostKeys,
    tree: ConfigFs,
    devices: [String; 2],
    volumes: [VolumeId; 2],
    sessions: Vec<TcpStream>,
}

/// What it shows, and how.
type Check = (&'static str, fn(&mut Bench) -> Result<()>);

const HOSTS: [&str; 3] =
    ["iqn.2014-08.com.example:a", "iqn.2014-08.com.example:b", "iqn.2014-08.com.example:c"];
const STRANGER: &str = "iqn.2014-08.com.example:stranger";

fn config(ports: &[u16]) -> LioConfig {
    let portal = |port: &u16| PortalConfig { address: Ipv4Addr::LOCALHOST.into(), port: *port };
    LioConfig { portals: ports.iter().map(portal).collect(), ..LioConfig::default() }
}

fn check(first: &str, second: &str) -> ExitCode {
    let keys = HostKeys::default();
    let mut bench = Bench {
        target: Lio::kernel(config(&PORTS)).with_keys(keys.clone()),
        keys,
        tree: ConfigFs::at(CONFIG_ROOT),
        devices: [first.into(), second.into()],
        volumes: [VolumeId::mint(), VolumeId::mint()],
        sessions: Vec::new(),
    };
    let checks: [Check; 19] = [
        ("a foreign target and backstore can be made", Bench::foreign),
        ("two volumes are built", Bench::builds),
        ("a second convergence changes nothing", Bench::settled),
        ("identity is as written", Bench::identity),
        ("hosts log in by either portal, strangers don't", Bench::logs_in),
        ("a host is added without touching the rest", Bench::adds_host),
        ("a host that may only read has it so", Bench::protects),
        ("a secret is asked for, and sessions stay", Bench::asks),
        ("a secret is taken away again", Bench::asks_no_more),
        ("a fence ends one host's sessions alone", Bench::fences),
        ("who was let in by another hand goes alone", Bench::adopts),
        ("open to all is made anew", Bench::closes),
        ("drift is put right", Bench::drift),
        ("paths are equal, and it is put right", Bench::paths),
        ("wrong identity is made anew", Bench::repairs),
        ("a missing device fails one volume", Bench::one_fails),
        ("a foreign user of a device is refused", Bench::refuses_double),
        ("a portal that is taken is reported", Bench::portal_down),
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
    fn desired(&self, hosts: [&[&str]; 2]) -> Result<Desired> {
        let mut all = Desired::new();
        for (n, hosts) in hosts.into_iter().enumerate() {
            if !hosts.is_empty() {
                let export = export(self.volumes[n], &self.devices[n], hosts, &self.keys)?;
                all.insert(self.volumes[n], export);
            }
        }
        Ok(all)
    }

    fn converge(&self, scope: Scope, desired: &Desired) -> Result<Vec<String>> {
        let report = self.target.converge(scope, desired, &soon())?;
        ensure!(report.is_complete(), "{report:?}");
        Ok(report.steps)
    }

    fn iqn(&self, n: usize) -> String {
        NqnPrefix::default().target(self.volumes[n]).to_string()
    }

    fn at(&self, n: usize, what: &str) -> String {
        format!("iscsi/{}/tpgt_1/{what}", self.iqn(n))
    }

    fn store(&self, n: usize, what: &str) -> String {
        format!("core/{ADAPTER}/{}/{what}", self.volumes[n])
    }

    /// A host logs in to the first volume, without a secret.
    fn enter(&self, host: &str) -> Result<TcpStream> {
        match login(PORTS[0], host, &self.iqn(0))? {
            Answer::In(session) => Ok(session),
            Answer::Refused(class, detail) => bail!("{host} is refused: {class:#04x}{detail:02x}"),
            Answer::Closed => bail!("{host} is not answered"),
        }
    }

    fn is_refused(&self, host: &str) -> Result<()> {
        match login(PORTS[0], host, &self.iqn(0))? {
            Answer::In(_) => bail!("{host} is let in"),
            Answer::Refused(0x02, 0x01 | 0x02) => Ok(()),
            Answer::Refused(class, detail) => bail!("{host} is refused with {class:#04x}{detail:02x}"),
            Answer::Closed => bail!("{host} is not answered"),
        }
    }

    fn foreign(&mut self) -> Result<()> {
        let t = &self.tree;
        let group = format!("{FOREIGN}/tpgt_1");
        let _ = t.make_dir("iscsi");
        for dir in ["core/iblock_0", FOREIGN_STORE, FOREIGN, &group, &format!("{group}/acls/{}", HOSTS[0])] {
            t.make_dir(dir).with_context(|| dir.to_string())?;
        }
        t.make_dir(&format!("{group}/np/127.0.0.1:{}", PORTS[0])).context("portal")?;
        t.write(&format!("{group}/enable"), "1").context("enable")
    }

    fn builds(&mut self) -> Result<()> {
        let steps = self.converge(Scope::All, &self.desired([&HOSTS[..1], &HOSTS[..2]])?)?;
        ensure!(!steps.is_empty());
        for (n, hosts) in [(0, &HOSTS[..1]), (1, &HOSTS[..2])] {
            ensure!(self.tree.read(&self.at(n, "attrib/generate_node_acls"))? == "0");
            ensure!(self.tree.read(&self.at(n, "attrib/authentication"))? == "1");
            ensure!(self.tree.read(&self.at(n, "enable"))? == "1");
            ensure!(self.tree.list(&self.at(n, "acls"))? == hosts);
        }
        Ok(())
    }

    fn settled(&mut self) -> Result<()> {
        let desired = self.desired([&HOSTS[..1], &HOSTS[..2]])?;
        for scope in [Scope::All, Scope::Volume(self.volumes[0]), Scope::Fence(self.volumes[1])] {
            let steps = self.converge(scope, &desired)?;
            ensure!(steps.is_empty(), "{steps:?}");
        }
        Ok(())
    }

    fn identity(&mut self) -> Result<()> {
        let identity = Identity::of(self.volumes[0], &NqnPrefix::default());
        for (what, value) in [
            ("wwn/vpd_unit_serial", identity.scsi_serial.as_str()),
            ("wwn/product_id", "Orlop"),
            ("udev_path", &self.devices[0]),
        ] {
            let read = self.tree.read(&self.store(0, what))?;
            ensure!(read.ends_with(value), "{what} is {read}, not {value}");
        }
        Ok(())
    }

    fn logs_in(&mut self) -> Result<()> {
        self.sessions.push(self.enter(HOSTS[0])?);
        let Answer::In(other) = login(PORTS[1], HOSTS[0], &self.iqn(1))? else { bail!("not by the other") };
        ensure!(!ended(&other)?);
        self.is_refused(HOSTS[1])?;
        self.is_refused(STRANGER)
    }

    fn adds_host(&mut self) -> Result<()> {
        let want = self.desired([&[HOSTS[0], HOSTS[2]], &HOSTS[..2]])?;
        let steps = self.converge(Scope::Volume(self.volumes[0]), &want)?;
        ensure!(steps.len() == 4, "{steps:?}");
        self.sessions.push(self.enter(HOSTS[2])?);
        self.all_stay()
    }

    fn all_stay(&self) -> Result<()> {
        for session in &self.sessions {
            ensure!(!ended(session)?, "a session ended that should not");
        }
        Ok(())
    }

    fn protects(&mut self) -> Result<()> {
        let reader = format!("{},ro", HOSTS[2]);
        let want = self.desired([&[HOSTS[0], &reader], &[]])?;
        self.converge(Scope::Volume(self.volumes[0]), &want)?;
        let path = self.at(0, &format!("acls/{}/lun_0/write_protect", HOSTS[2]));
        ensure!(self.tree.read(&path)? == "1");
        // A new one is never writable, not for a moment: that is what this attribute is for.
        ensure!(self.tree.read(&self.at(0, "attrib/prod_mode_write_protect"))? == "1");
        let want = self.desired([&[HOSTS[0], HOSTS[2]], &[]])?;
        self.converge(Scope::Volume(self.volumes[0]), &want)?;
        ensure!(self.tree.read(&path)? == "0");
        self.all_stay()
    }

    fn asks(&mut self) -> Result<()> {
        let with = |secret: &str| format!("{},chap=user/{secret},mutual=orlop/the-other-one", HOSTS[2]);
        let want = self.desired([&[HOSTS[0], &with("first-secret")], &[]])?;
        let host = HostId::Iqn(HOSTS[2].parse()?);
        self.target.prove(&host, &soon())?;
        self.is_refused(HOSTS[2])?;
        self.all_stay()?;
        ensure!(self.converge(Scope::Volume(self.volumes[0]), &want)?.is_empty());
        let want = self.desired([&[HOSTS[0], &with("second-secret")], &[]])?;
        let steps = self.converge(Scope::Volume(self.volumes[0]), &want)?;
        ensure!(steps.len() == 1 && !steps[0].contains("secret"), "{steps:?}");
        let auth = self.at(0, &format!("acls/{}/auth", HOSTS[2]));
        ensure!(self.tree.read(&format!("{auth}/password"))? == "second-secret");
        ensure!(self.tree.read(&format!("{auth}/authenticate_target"))? == "1");
        use std::os::unix::fs::PermissionsExt as _;
        let mode = fs::metadata(self.tree.root().join(&auth))?.permissions().mode();
        ensure!(mode & 0o77 == 0, "others may look into auth: {mode:o}");
        // Host 0 has none, beside one that has.
        drop(self.enter(HOSTS[0])?);
        self.all_stay()
    }

    fn asks_no_more(&mut self) -> Result<()> {
        let want = self.desired([&[HOSTS[0], HOSTS[2]], &[]])?;
        self.target.prove(&HostId::Iqn(HOSTS[2].parse()?), &soon())?;
        ensure!(self.converge(Scope::Volume(self.volumes[0]), &want)?.is_empty());
        drop(self.enter(HOSTS[2])?);
        self.all_stay()
    }

    fn fences(&mut self) -> Result<()> {
        let want = self.desired([&HOSTS[2..], &[]])?;
        let begin = Instant::now();
        self.converge(Scope::Fence(self.volumes[0]), &want)?;
        println!("      fenced in {:?}", begin.elapsed());
        ensure!(self.tree.list(&self.at(0, "acls"))? == HOSTS[2..]);
        ensure!(self.sessions.len() == 2, "there is nobody to fence");
        ensure!(ended(&self.sessions.remove(0))?, "the fenced host is still there");
        self.is_refused(HOSTS[0])?;
        self.all_stay()
    }

    fn adopts(&mut self) -> Result<()> {
        self.tree.write(&self.at(0, "attrib/authentication"), "0")?;
        self.tree.write(&self.at(0, "attrib/generate_node_acls"), "1")?;
        let stranger = self.enter(STRANGER)?;
        self.tree.write(&self.at(0, "attrib/generate_node_acls"), "0")?;
        // The kernel has set it along with the other.
        ensure!(self.tree.read(&self.at(0, "attrib/cache_dynamic_acls"))? == "1");
        self.tree.write(&self.at(0, "attrib/cache_dynamic_acls"), "0")?;
        // The kernel answers a login before it lists its session.
        self.is_listed(STRANGER)?;
        let want = self.desired([&HOSTS[2..], &[]])?;
        self.converge(Scope::Fence(self.volumes[0]), &want)?;
        ensure!(ended(&stranger)?, "the stranger is still there");
        ensure!(self.tree.read(&self.at(0, "attrib/authentication"))? == "1");
        self.all_stay()
    }

    fn is_listed(&self, host: &str) -> Result<()> {
        let begin = Instant::now();
        while !self.tree.read(&self.at(0, "dynamic_sessions"))?.contains(host) {
            ensure!(begin.elapsed() < Duration::from_secs(5), "the kernel does not list {host}");
            // An attribute of configfs rings for nobody.
            #[allow(clippy::disallowed_methods)]
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn closes(&mut self) -> Result<()> {
        self.tree.write(&self.at(0, "attrib/authentication"), "0")?;
        self.tree.write(&self.at(0, "attrib/cache_dynamic_acls"), "1")?;
        self.tree.write(&self.at(0, "attrib/generate_node_acls"), "1")?;
        drop(self.enter(STRANGER)?);
        let steps = self.converge(Scope::Volume(self.volumes[0]), &self.desired([&HOSTS[2..], &[]])?)?;
        ensure!(steps.first().is_some_and(|s| s.starts_with("disable")), "{steps:?}");
        self.is_refused(STRANGER)?;
        self.sessions = vec![self.enter(HOSTS[2])?];
        Ok(())
    }

    fn drift(&mut self) -> Result<()> {
        self.tree.write(&self.at(0, "attrib/prod_mode_write_protect"), "0")?;
        self.tree.write(&self.at(0, &format!("acls/{}/lun_0/write_protect", HOSTS[2])), "1")?;
        self.tree.remove_dir(&self.at(0, &format!("np/127.0.0.1:{}", PORTS[1])))?;
        self.tree.make_dir(&self.at(0, &format!("acls/{STRANGER}")))?;
        let steps = self.converge(Scope::Volume(self.volumes[0]), &self.desired([&HOSTS[2..], &[]])?)?;
        ensure!(steps.len() == 4, "{steps:?}");
        self.all_stay()?;
        self.tree.write(&self.at(0, "enable"), "0")?;
        let steps = self.converge(Scope::Volume(self.volumes[0]), &self.desired([&HOSTS[2..], &[]])?)?;
        ensure!(steps.len() == 1, "{steps:?}");
        self.sessions = vec![self.enter(HOSTS[2])?];
        Ok(())
    }

    fn paths(&mut self) -> Result<()> {
        let group = self.store(0, "alua/default_tg_pt_gp");
        let best = |bench: &Self| -> Result<()> {
            let of = |name: &str| bench.tree.read(&format!("{group}/{name}"));
            let (kind, state) = (of("alua_access_type")?, of("alua_access_state")?);
            ensure!((&*kind, &*state) == ("Implicit", "0"), "{kind} {state}");
            Ok(())
        };
        best(self)?;
        self.tree.write(&format!("{group}/alua_access_state"), "2")?;
        self.tree.write(&format!("{group}/alua_access_type"), "3")?;
        let steps = self.converge(Scope::Volume(self.volumes[0]), &self.desired([&HOSTS[2..], &[]])?)?;
        ensure!(steps.len() == 2, "{steps:?}");
        best(self)?;
        self.all_stay()
    }

    fn repairs(&mut self) -> Result<()> {
        let link = self.at(0, &format!("lun/lun_0/{}", self.volumes[0]));
        self.tree.unlink(&link)?;
        self.tree.write(&self.store(0, "wwn/vpd_unit_serial"), "0123")?;
        self.converge(Scope::Volume(self.volumes[0]), &self.desired([&HOSTS[2..], &[]])?)?;
        self.sessions = vec![self.enter(HOSTS[2])?];
        self.identity()
    }

    fn one_fails(&mut self) -> Result<()> {
        let mut desired = self.desired([&HOSTS[2..], &HOSTS[..1]])?;
        if let Some(e) = desired.get_mut(&self.volumes[1]) {
            e.backing = "/dev/no-such-device".into();
        }
        let report = self.target.converge(Scope::All, &desired, &soon())?;
        ensure!(report.failed.len() == 1 && report.result_for(self.volumes[0]).is_ok(), "{report:?}");
        println!("      {:?}", report.failed);
        self.converge(Scope::All, &self.desired([&HOSTS[2..], &HOSTS[..1]])?)?;
        self.all_stay()
    }

    fn refuses_double(&mut self) -> Result<()> {
        let only = self.desired([&HOSTS[2..], &[]])?;
        self.converge(Scope::All, &only)?;
        let other = "core/iblock_0/other";
        self.tree.make_dir(other)?;
        self.tree.write(&format!("{other}/control"), &format!("udev_path={}", self.devices[1]))?;
        self.tree.write(&format!("{other}/enable"), "1")?;
        let want = self.desired([&HOSTS[2..], &HOSTS[..1]])?;
        let all = self.target.converge(Scope::All, &want, &soon());
        let one = self.target.converge(Scope::Volume(self.volumes[1]), &want, &soon());
        self.tree.remove_dir(other)?;
        let all = all?;
        let refused = all.failed.get(&self.volumes[1]);
        ensure!(matches!(refused, Some(TargetError::Foreign { .. })), "{all:?}");
        ensure!(matches!(one, Err(TargetError::Foreign { .. })), "{one:?}");
        self.converge(Scope::All, &want)?;
        self.all_stay()
    }

    fn portal_down(&mut self) -> Result<()> {
        let taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 3263))?;
        let target = Lio::kernel(config(&[PORTS[0], PORTS[1], 3263])).with_keys(self.keys.clone());
        let report = target.converge(Scope::All, &self.desired([&HOSTS[2..], &HOSTS[..1]])?, &soon())?;
        ensure!(report.failed.is_empty() && report.portals_down.len() == 1, "{report:?}");
        println!("      {:?}", report.portals_down);
        drop(taken);
        self.all_stay()
    }

    fn tears_down(&mut self) -> Result<()> {
        self.converge(Scope::All, &Desired::new())?;
        for session in &self.sessions {
            ensure!(ended(session)?, "a session is still there");
        }
        let targets = self.tree.list("iscsi")?;
        ensure!(!targets.iter().any(|t| t.contains("orlop")), "{targets:?}");
        let backstores = self.tree.list(&format!("core/{ADAPTER}"))?;
        ensure!(!backstores.iter().any(|b| b.parse::<VolumeId>().is_ok()), "{backstores:?}");
        Ok(())
    }

    /// All that is foreign, byte for byte.
    fn snapshot(&self) -> Result<BTreeMap<PathBuf, String>> {
        let mut all = BTreeMap::new();
        for top in [FOREIGN_STORE, &format!("{FOREIGN}/tpgt_1")] {
            walk(&self.tree.root().join(top), &mut all)?;
        }
        Ok(all)
    }

    fn clean(&self) {
        let group = format!("{FOREIGN}/tpgt_1");
        let _ = self.tree.write(&format!("{group}/enable"), "0");
        let portal = format!("{group}/np/127.0.0.1:{}", PORTS[0]);
        for dir in [&portal, &format!("{group}/acls/{}", HOSTS[0]), &group, FOREIGN, FOREIGN_STORE] {
            let _ = self.tree.remove_dir(dir);
        }
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
