//! How costs grow with what there is, on the simulated daemon: what takes a pool or a kernel its time is not in it, so what is
//! seen is the daemon's own. And what it takes at ten thousand volumes: memory, reads, and itself when nobody asks.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::daemon::{Connection, Daemon, load_over};
use crate::results::Results;

const SIZES: [usize; 5] = [1, 10, 100, 1_000, 10_000];
const ATTACHED: usize = 1_000;
const HOSTS: usize = 100;
/// Samples of what is quick.
const SAMPLES: usize = 31;

pub fn run(root: &Path, results: &mut Results) -> Result<()> {
    let mut daemon = Daemon::start(root)?;
    let socket = daemon.socket();
    let pool = daemon.dir.path().join("pool");
    std::fs::create_dir(&pool)?;
    let mut c = Connection::open(&socket)?;
    expect(
        &mut c,
        "POST",
        "/v1/pools",
        &format!(r#"{{"name":"tank","kind":"sim","directory":"{}"}}"#, pool.display()),
    )?;
    for n in 0..HOSTS {
        let ask = format!(r#"{{"nqn":"nqn.2014-08.org.nvmexpress:host-{n}"}}"#);
        expect(&mut c, "PUT", &format!("/v1/hosts/host-{n}"), &ask)?;
    }
    // Of each: seconds at each size.
    let mut grown: Vec<(&str, Vec<f64>)> =
        ["create", "attach", "list of 100", "start"].map(|name| (name, Vec::new())).into();
    let (mut made, mut attached) = (0, 0);
    for size in SIZES {
        while made < size {
            let n = made;
            expect(
                &mut c,
                "POST",
                "/v1/volumes",
                &format!(r#"{{"name":"v{n}","pool":"tank","size":1073741824}}"#),
            )?;
            made += 1;
        }
        // A tenth of them is attached, as far as a thousand.
        while attached < size.div_ceil(10).min(ATTACHED) {
            expect(
                &mut c,
                "PUT",
                &format!("/v1/volumes/v{attached}/attachments/host-{}", attached % HOSTS),
                "{}",
            )?;
            attached += 1;
        }
        let mut create = Vec::new();
        let mut attach = Vec::new();
        let mut list = Vec::new();
        for n in 0..SAMPLES {
            let one = format!(r#"{{"name":"more-{n}","pool":"tank","size":1073741824}}"#);
            create.push(timed(|| expect(&mut c, "POST", "/v1/volumes", &one))?);
            let at = format!("/v1/volumes/more-{n}/attachments/host-0");
            attach.push(timed(|| expect(&mut c, "PUT", &at, "{}"))?);
            list.push(timed(|| expect(&mut c, "GET", "/v1/volumes?limit=100", ""))?);
            expect(&mut c, "DELETE", &at, "")?;
            expect(&mut c, "DELETE", &format!("/v1/volumes/more-{n}"), "")?;
        }
        let start: Vec<f64> = (0..3).map(|_| daemon.restart()).collect::<Result<_>>()?;
        c = Connection::open(&socket)?;
        for ((name, medians), samples) in grown.iter_mut().zip([create, attach, list, start]) {
            let ms: Vec<f64> = samples.iter().map(|s| s * 1e3).collect();
            results.add(&format!("scale: {name} at {size} volumes"), &ms, "ms", true, None);
            medians.push(median(&samples));
        }
        results.add(&format!("scale: resident at {size} volumes"), &[daemon.resident()?], "MB", true, None);
    }
    for (name, medians) in &grown {
        results.add(
            &format!("scale: exponent of {name}, 100 to 10,000"),
            &[exponent(&medians[2..])],
            "",
            true,
            None,
        );
    }
    let what = format!("scale: resident with 10,000 volumes, {attached} attachments");
    results.add(&what, &[daemon.resident()?], "MB", true, Some(48.0));
    reads(&daemon, results)?;
    attach_beside_creates(&daemon, results)?;
    idle(&daemon, results)
}

/// Reads over TLS with a token, from this machine's processors too.
fn reads(daemon: &Daemon, results: &mut Results) -> Result<()> {
    let (mut rates, mut pages) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        rates.push(load_over(&|| daemon.tls(), 4, 20_000, |c, n| {
            expect(c, "GET", &format!("/v1/volumes/v{}", n % 10_000), "").map(drop)
        })?);
    }
    let mut c = daemon.tls()?;
    for _ in 0..SAMPLES {
        pages.push(1e3 * timed(|| expect(&mut c, "GET", "/v1/volumes?limit=1000", ""))?);
    }
    results.add("scale: reads of one volume over TLS, 4 clients", &rates, "/s", false, Some(20_000.0));
    results.add("scale: a page of 1,000 volumes over TLS", &pages, "ms", true, Some(5.0));
    Ok(())
}

/// Attaches while there are always some five hundred creates under way.
fn attach_beside_creates(daemon: &Daemon, results: &mut Results) -> Result<()> {
    const CREATES: usize = 500;
    let socket = daemon.socket();
    let mut c = Connection::open(&socket)?;
    let mut one = |n: usize| -> Result<f64> {
        let at = format!("/v1/volumes/v{}/attachments/host-99", 5_000 + n % 1_000);
        let took = timed(|| expect(&mut c, "PUT", &at, "{}"))?;
        expect(&mut c, "DELETE", &at, "")?;
        Ok(took * 1e3)
    };
    let alone: Vec<f64> = (0..200).map(&mut one).collect::<Result<_>>()?;
    let over = std::sync::atomic::AtomicBool::new(false);
    let mut beside: Vec<f64> = std::thread::scope(|scope| -> Result<_> {
        let (over, socket) = (&over, &socket);
        let creators: Vec<_> = (0..CREATES)
            .map(|n| {
                std::thread::Builder::new().stack_size(128 << 10).spawn_scoped(
                    scope,
                    move || -> Result<()> {
                        let mut c = Connection::open(socket)?;
                        for round in 0.. {
                            if over.load(std::sync::atomic::Ordering::Acquire) {
                                break;
                            }
                            let name = format!("q{n}-{round}");
                            let ask = format!(r#"{{"name":"{name}","pool":"tank","size":1073741824}}"#);
                            expect(&mut c, "POST", "/v1/volumes", &ask)?;
                            expect(&mut c, "DELETE", &format!("/v1/volumes/{name}"), "")?;
                        }
                        Ok(())
                    },
                )
            })
            .collect::<std::io::Result<_>>()?;
        std::thread::sleep(Duration::from_millis(500));
        let beside = (0..200).map(&mut one).collect::<Result<Vec<f64>>>();
        over.store(true, std::sync::atomic::Ordering::Release);
        for creator in creators {
            creator.join().map_err(|_| anyhow::anyhow!("a client died"))??;
        }
        beside
    })?;
    beside.sort_by(f64::total_cmp);
    let p99 = beside[beside.len() * 99 / 100];
    results.add("scale: attach, alone", &alone, "ms", true, None);
    results.add("scale: attach beside 500 creates", &beside, "ms", true, None);
    results.add(
        "scale: attach beside 500 creates, 99th percentile / median alone",
        &[p99 / median(&alone)],
        "ratio",
        true,
        Some(2.0),
    );
    Ok(())
}

/// What it does while nobody asks.
fn idle(daemon: &Daemon, results: &mut Results) -> Result<()> {
    const WATCHED: Duration = Duration::from_secs(20);
    // What was written behind is written, what was slow is over.
    std::thread::sleep(Duration::from_secs(10));
    let (woken, written) = daemon.activity()?;
    std::thread::sleep(WATCHED);
    let (woken, written) = (daemon.activity()?.0 - woken, daemon.activity()?.1 - written);
    let each = woken as f64 / WATCHED.as_secs_f64();
    results.add("scale: wake-ups a second, idle", &[each], "/s", true, Some(5.0));
    results.add("scale: bytes written to disks in 20 s, idle", &[written as f64], "B", true, Some(0.0));
    Ok(())
}

fn expect(c: &mut Connection, method: &str, path: &str, body: &str) -> Result<String> {
    let (status, answer) = c.call(method, path, body)?;
    ensure!((200..300).contains(&status), "{method} {path}: {status} {answer}");
    Ok(answer)
}

fn timed<T>(f: impl FnOnce() -> Result<T>) -> Result<f64> {
    let started = Instant::now();
    f()?;
    Ok(started.elapsed().as_secs_f64())
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// By which power of the size something grows from size to size, each ten times the one before: the slope of the line that is
/// nearest to the logarithms.
fn exponent(medians: &[f64]) -> f64 {
    let points: Vec<(f64, f64)> = medians.iter().enumerate().map(|(n, m)| (n as f64, m.log10())).collect();
    let n = points.len() as f64;
    let (x, y) = points.iter().fold((0.0, 0.0), |(x, y), p| (x + p.0 / n, y + p.1 / n));
    let (up, across) = points
        .iter()
        .fold((0.0, 0.0), |(up, across), p| (up + (p.0 - x) * (p.1 - y), across + (p.0 - x) * (p.0 - x)));
    up / across
}
