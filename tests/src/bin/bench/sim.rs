//! The simulated daemon under load from this machine.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::daemon::{Connection, Daemon, load};
use crate::results::Results;

pub fn run(root: &Path, results: &mut Results) -> Result<()> {
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
