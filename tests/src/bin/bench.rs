//! The benchmark. Figures of the simulated daemon are taken on this machine, those of the appliance in a
//! guest, beside the same work typed as a bare shell loop in the same run. Machines are noisy: ratios are
//! medians over pairs, with their spread.
//!
//! Writes `target/bench/results.json` and prints a table.

#![allow(clippy::print_stdout, clippy::disallowed_methods)]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use orlop_api::{HostPut, PoolCreate, PoolKind};
use orlop_tests::{Initiator, Lab, LabOptions, wait_for};
use serde::Serialize;

/// One line of the results.
#[derive(Debug, Serialize)]
struct Figure {
    name: &'static str,
    value: f64,
    unit: &'static str,
    lower_is_better: bool,
    goal: Option<f64>,
    /// Smallest and largest of what the median was taken from.
    spread: Option<(f64, f64)>,
}

impl Figure {
    fn met(&self) -> Option<bool> {
        self.goal.map(|g| if self.lower_is_better { self.value <= g } else { self.value >= g })
    }
}

#[derive(Default)]
struct Results(Vec<Figure>);

impl Results {
    fn add(
        &mut self,
        name: &'static str,
        samples: &[f64],
        unit: &'static str,
        lower_is_better: bool,
        goal: Option<f64>,
    ) {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (Some(low), Some(high)) = (sorted.first(), sorted.last()) else { return };
        let spread = (sorted.len() > 1).then_some((*low, *high));
        self.0.push(Figure { name, value: sorted[sorted.len() / 2], unit, lower_is_better, goal, spread });
        println!("  {}", row(&self.0[self.0.len() - 1]));
    }

    fn write(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir)?;
        let file = dir.join("results.json");
        std::fs::write(&file, serde_json::to_vec_pretty(&self.0)?)?;
        println!("\n{:<44} {:>12} {:<8} {:>12}  spread", "figure", "median", "unit", "goal");
        for f in &self.0 {
            println!("{}", row(f));
        }
        println!("\nwritten to {}", file.display());
        Ok(())
    }
}

fn row(f: &Figure) -> String {
    let bound = if f.lower_is_better { "<=" } else { ">=" };
    let goal = f.goal.map_or(String::new(), |g| format!("{bound} {g}"));
    let spread = f.spread.map_or(String::new(), |(a, b)| format!("{a:.2} to {b:.2}"));
    let word = match f.met() {
        None | Some(true) => "",
        Some(false) => "  MISSED",
    };
    format!("{:<44} {:>12.2} {:<8} {goal:>12}  {spread}{word}", f.name, f.value, f.unit)
}

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target").canonicalize()?;
    let only = std::env::args().nth(1);
    let wanted = |part: &str| only.as_deref().is_none_or(|o| o == part);
    let mut results = Results::default();
    if wanted("sim") {
        println!("simulated daemon, load from this machine:");
        sim(&root, &mut results)?;
    }
    if wanted("guest") {
        println!("appliance in a guest:");
        guest(&root, &mut results)?;
    }
    results.write(&root.join("bench"))
}

// ---- the simulated daemon

/// A daemon in a directory of its own, ended when dropped.
struct Daemon {
    child: Child,
    dir: tempfile::TempDir,
}

impl Daemon {
    fn start(root: &Path) -> Result<Self> {
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

    fn socket(&self) -> PathBuf {
        self.dir.path().join("state/orlopd.sock")
    }

    /// Resident memory in MB (10^6 bytes).
    fn resident(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).context("no VmRSS")?;
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
struct Connection {
    stream: BufReader<UnixStream>,
}

impl Connection {
    fn open(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    fn call(&mut self, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
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
fn load(
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

fn sim(root: &Path, results: &mut Results) -> Result<()> {
    const VOLUMES: usize = 10_000;
    let daemon = Daemon::start(root)?;
    let socket = daemon.socket();
    let pool_dir = daemon.dir.path().join("pool");
    std::fs::create_dir(&pool_dir)?;
    let mut c = Connection::open(&socket)?;
    let idle = daemon.resident()?;
    let ask = format!(r#"{{"name":"tank","kind":"sim","directory":"{}"}}"#, pool_dir.display());
    let (status, body) = c.call("POST", "/v1/pools", &ask)?;
    ensure!(status == 201, "{body}");

    let create = |c: &mut Connection, n: usize| {
        let ask = format!(r#"{{"name":"v{n}","pool":"tank","size":1073741824}}"#);
        let (status, body) = c.call("POST", "/v1/volumes", &ask)?;
        ensure!(status == 201, "{body}");
        Ok(())
    };
    // In five parts: the median and its spread also show whether it slows down as volumes grow in number.
    let mut rates = Vec::new();
    for part in 0..5 {
        let from = part * VOLUMES / 5;
        rates.push(load(&socket, 16, VOLUMES / 5, |c, n| create(c, from + n))?);
    }
    results.add("sim: creates", &rates, "/s", false, Some(1000.0));
    results.add("sim: resident with 10,000 volumes", &[daemon.resident()?], "MB", true, Some(40.0));

    let (_, page) = c.call("GET", "/v1/volumes?limit=1", "")?;
    let page: serde_json::Value = serde_json::from_str(&page)?;
    let id = page["items"][0]["id"].as_str().context("no volume")?.to_owned();
    let path = format!("/v1/volumes/{id}");
    let mut rates = Vec::new();
    for _ in 0..5 {
        rates.push(load(&socket, 4, 40_000, |c, _| {
            let (status, body) = c.call("GET", &path, "")?;
            ensure!(status == 200, "{body}");
            Ok(())
        })?);
    }
    results.add("sim: reads of one volume", &rates, "/s", false, Some(20_000.0));
    results.add("sim: resident, no volumes", &[idle], "MB", true, None);
    Ok(())
}

// ---- the appliance

/// How many volumes a round makes and attaches.
const ROUND: usize = 8;
const ROUNDS: usize = 5;

fn guest(root: &Path, results: &mut Results) -> Result<()> {
    let mut options = LabOptions::new(root.join("bench/guests"));
    options.disks = vec![("disk0".into(), 8 << 30)];
    options.links = 1;
    let mut lab = Lab::start(&options, |_| {})?;
    let mut boots = vec![lab.boot.as_secs_f64()];
    // Pages that the host has to read for the first time are not the appliance's doing; the first boot is
    // kept in the spread all the same.
    for _ in 0..2 {
        lab.power_cycle(|_| {})?;
        boots.push(lab.boot.as_secs_f64());
    }
    results.add("guest: QEMU start to ready", &boots, "s", true, Some(25.0));

    let pool = PoolCreate {
        thin_size: None,
        thin_metadata_size: None,
        layout: None,
        spares: Vec::new(),
        import: false,
        force: false,
        name: "tank".parse()?,
        kind: PoolKind::Zfs,
        disks: vec!["/dev/disk/by-id/virtio-disk0".into()],
        directory: None,
        filesystem: None,
    };
    lab.wait(lab.api.create_pool(&pool))?;
    lab.wait(lab.api.put_host(&"worker-1".parse()?, &HostPut { nqn: Initiator::nqn(1)? }))?;
    lab.on_appliance("zfs create -o volmode=dev tank/bare && mkdir /sys/kernel/config/nvmet/ports/1 && cd /sys/kernel/config/nvmet/ports/1 && \
        echo tcp >addr_trtype && echo ipv4 >addr_adrfam && echo 10.77.1.1 >addr_traddr && echo 4500 >addr_trsvcid")?;

    let (mut one, mut many, mut bare) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let shell = bare_loop(&mut lab, round)?;
        let single = ours(&mut lab, &format!("s{round}"), 1)?;
        let parallel = ours(&mut lab, &format!("p{round}"), ROUND)?;
        bare.push(shell / ROUND as f64);
        one.push(single / shell);
        many.push(parallel / shell);
    }
    results.add("guest: bare shell loop, a volume", &bare, "s", true, None);
    results.add("guest: POST to attached / bare, in turn", &one, "ratio", true, Some(1.3));
    results.add("guest: POST to attached / bare, 8 at once", &many, "ratio", true, Some(0.7));
    pool_verbs(&mut lab, results)?;
    lab.appliance.shutdown(Duration::from_secs(60))
}

/// What is done to volumes in a pool, in the order in which it can be done.
const VERBS: [[&str; 2]; 4] = [
    ["guest: zvol create / zfs, in turn", "guest: zvol create / zfs, 8 at once"],
    ["guest: zvol snapshot / zfs, in turn", "guest: zvol snapshot / zfs, 8 at once"],
    ["guest: zvol clone / zfs, in turn", "guest: zvol clone / zfs, 8 at once"],
    ["guest: zvol delete / zfs, in turn", "guest: zvol delete / zfs, 8 at once"],
];

/// Each verb beside the zfs command that does the same: one after another, and eight at once.
fn pool_verbs(lab: &mut Lab, results: &mut Results) -> Result<()> {
    let (mut one, mut many) = (vec![Vec::new(); 4], vec![Vec::new(); 4]);
    for round in 0..3 {
        let bare = bare_verbs(lab, round)?;
        for (at_once, into) in [(1, &mut one), (ROUND, &mut many)] {
            for (verb, bare) in bare.iter().enumerate() {
                into[verb].push(our_verb(lab, verb, &format!("v{round}-{at_once}"), at_once)? / bare);
            }
            // What is left of the round, unmeasured.
            clear(lab, &format!("v{round}-{at_once}"))?;
        }
    }
    for (verb, [in_turn, at_once]) in VERBS.into_iter().enumerate() {
        results.add(in_turn, &one[verb], "ratio", true, Some(1.2));
        results.add(at_once, &many[verb], "ratio", true, Some(0.6));
    }
    Ok(())
}

/// Seconds that the commands take for a round of each verb, timed in the guest.
fn bare_verbs(lab: &mut Lab, round: usize) -> Result<Vec<f64>> {
    let out = lab.on_appliance(&format!(
        r#"cat >/run/verbs.sh <<'END'
set -e
d=tank/bare/v{round}
zfs create $d
phase() {{
    start=$(date +%s.%N)
    for n in $(seq {ROUND}); do eval "$1"; done
    echo "$start $(date +%s.%N)"
}}
phase 'zfs create -s -V 1G $d/$n'
phase 'zfs snapshot $d/$n@s'
phase 'zfs clone $d/$n@s $d/c$n'
phase 'until zfs destroy $d/c$n 2>/dev/null; do sleep 0.05; done'
until zfs destroy -r $d 2>/dev/null; do sleep 0.2; done
END
bash /run/verbs.sh"#
    ))?;
    out.lines()
        .map(|line| {
            let mut times = line.split_whitespace().map(str::parse::<f64>);
            let (start, end) = (times.next().context("no start")??, times.next().context("no end")??);
            Ok(end - start)
        })
        .collect()
}

/// The same asked of the daemon: seconds for a round.
fn our_verb(lab: &mut Lab, verb: usize, name: &str, at_once: usize) -> Result<f64> {
    let started = Instant::now();
    let calls = (0..ROUND).map(|n| {
        let (api, name) = (lab.api.clone(), format!("{name}-{n}"));
        async move {
            let volume = |name: &str, source: Option<serde_json::Value>| {
                let mut ask = serde_json::json!({ "name": name, "pool": "tank", "size": 1u64 << 30 });
                if let Some(source) = source {
                    ask["source"] = source;
                }
                serde_json::from_value(ask)
            };
            match verb {
                0 => drop(api.create_volume(&volume(&name, None)?).await?),
                1 => {
                    let ask = serde_json::json!({ "name": name, "volume": name });
                    drop(api.create_snapshot(&serde_json::from_value(ask)?).await?);
                }
                2 => {
                    let source = serde_json::json!({ "snapshot": name });
                    drop(api.create_volume(&volume(&format!("c-{name}"), Some(source))?).await?);
                }
                _ => api.delete_volume(&format!("c-{name}").parse()?).await?,
            }
            anyhow::Ok(())
        }
    });
    lab.wait(async {
        use futures_util::{StreamExt, TryStreamExt};
        futures_util::stream::iter(calls).buffer_unordered(at_once).try_collect::<Vec<()>>().await
    })?;
    Ok(started.elapsed().as_secs_f64())
}

fn clear(lab: &mut Lab, name: &str) -> Result<()> {
    for n in 0..ROUND {
        let api = lab.api.clone();
        let name = format!("{name}-{n}");
        lab.wait(async move {
            api.delete_snapshot(&name.parse()?, orlop_api::When::Now).await?;
            api.delete_volume(&name.parse()?).await?;
            anyhow::Ok(())
        })?;
    }
    Ok(())
}

/// The same work typed as a shell loop: seconds for a round. Timed in the guest, so that the console's own
/// delays don't count against it.
fn bare_loop(lab: &mut Lab, round: usize) -> Result<f64> {
    let script = format!(
        r#"cat >/run/bare.sh <<'END'
set -e
cd /sys/kernel/config/nvmet
host=nqn.2014-08.org.nvmexpress:uuid:0190c0de-0000-7000-8000-00000000ffff
mkdir -p hosts/$host
start=$(date +%s.%N)
for n in $(seq {ROUND}); do
    id=r{round}n$n
    zfs create -s -V 1G tank/bare/$id
    until [ -e /dev/zvol/tank/bare/$id ]; do sleep 0.01; done
    s=subsystems/nqn.2020-01.com.example:$id
    mkdir $s
    echo 0 >$s/attr_allow_any_host
    mkdir $s/namespaces/1
    echo /dev/zvol/tank/bare/$id >$s/namespaces/1/device_path
    echo 1 >$s/namespaces/1/enable
    ln -s $PWD/hosts/$host $s/allowed_hosts/$host
    ln -s $PWD/$s ports/1/subsystems/
done
end=$(date +%s.%N)
echo "$start $end"
END
bash /run/bare.sh"#
    );
    let out = lab.on_appliance(&script)?;
    let mut times = out.split_whitespace().map(str::parse::<f64>);
    let (start, end) = (times.next().context("no start")??, times.next().context("no end")??);
    Ok(end - start)
}

/// The same work asked of the daemon over TLS, `at_once` requests at a time: seconds for a round.
fn ours(lab: &mut Lab, name: &str, at_once: usize) -> Result<f64> {
    let host = "worker-1".parse()?;
    let started = Instant::now();
    let asks = (0..ROUND).map(|n| {
        let api = lab.api.clone();
        let host = &host;
        let ask = format!("{name}-{n}");
        async move {
            let ask = serde_json::from_value(
                serde_json::json!({ "name": ask, "pool": "tank", "size": 1u64 << 30 }),
            )?;
            let volume = api.create_volume(&ask).await?;
            api.attach(&orlop_api::VolumeRef::Id(volume.id), host).await?;
            anyhow::Ok(())
        }
    });
    lab.wait(async {
        use futures_util::{StreamExt, TryStreamExt};
        futures_util::stream::iter(asks).buffer_unordered(at_once).try_collect::<Vec<()>>().await
    })?;
    Ok(started.elapsed().as_secs_f64())
}
