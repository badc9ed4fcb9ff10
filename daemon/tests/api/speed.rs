//! How many reads a second. Not part of a normal run: `cargo test --release --test api -- --ignored
//! --nocapture reads`.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::daemon::Daemon;

/// The load generator runs on the same processors: threads that write a request and read its answer.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn reads_per_second_of_one_volume() {
    const CONNECTIONS: usize = 16;
    const SECONDS: u64 = 5;
    let d = Daemon::start();
    let pool = d.pool("tank").await;
    let mut id = d.volume(&pool, "data").await.id;
    for n in 0..1000 {
        id = d.volume(&pool, &format!("v{n}")).await.id;
    }
    let request = Arc::new(format!("GET /v1/volumes/{id} HTTP/1.1\r\nHost: x\r\n\r\n"));
    let (done, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let started = Instant::now();
    let threads: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let (request, done, stop) = (Arc::clone(&request), Arc::clone(&done), Arc::clone(&stop));
            let mut stream = UnixStream::connect(d.socket()).unwrap();
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                let mut slowest = Duration::ZERO;
                while !stop.load(Ordering::Relaxed) {
                    let asked = Instant::now();
                    stream.write_all(request.as_bytes()).unwrap();
                    let n = stream.read(&mut buffer).unwrap();
                    assert!(buffer[..n].starts_with(b"HTTP/1.1 200") && buffer[..n].ends_with(b"}"));
                    slowest = slowest.max(asked.elapsed());
                    done.fetch_add(1, Ordering::Relaxed);
                }
                slowest
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(SECONDS)).await;
    stop.store(true, Ordering::Relaxed);
    let slowest = threads.into_iter().map(|t| t.join().unwrap()).max().unwrap();
    let rate = done.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64();
    println!("{rate:.0} reads/s over {CONNECTIONS} connections, slowest {slowest:?}");
    assert!(rate > 1_000.0, "{rate:.0} reads/s");
}
