//! What one client may take, and how long an answer is waited for.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use orlop_api::ErrorKind;

use crate::daemon::{Daemon, ask};
use crate::raw::{get, send};

fn preferring(d: &Daemon, prefer: &str) -> crate::raw::Reply {
    let text =
        format!("GET /v1/volumes HTTP/1.1\r\nHost: x\r\nConnection: close\r\nPrefer: {prefer}\r\n\r\n");
    send(&d.socket(), text.as_bytes()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn how_long_to_wait_is_a_number_of_seconds() {
    let d = Daemon::start();
    for good in [
        "wait=1",
        "respond-async, wait=10",
        "wait=\"5\"; x=y",
        "handling=lenient",
        "WAIT = 9",
        "wait=999999999",
    ] {
        assert_eq!(preferring(&d, good).status, 200, "{good}");
    }
    for bad in [
        "wait=0",
        "wait=-1",
        "wait=1.5",
        "wait=",
        "wait",
        "wait=99999999999999999999",
        "respond-async, wait=x",
    ] {
        let reply = preferring(&d, bad);
        assert_eq!(
            (reply.kind().as_str(), reply.json()["field"].as_str()),
            ("invalid", Some("Prefer")),
            "{bad}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_creates_of_one_name_make_one_volume() {
    let d = Daemon::start();
    let pool = d.pool("p").await;
    let (api, wanted) = (d.client(), ask(&pool, "same", 4));
    let made: Vec<_> = futures_util::stream::iter(0..1000)
        .map(|_| {
            let (api, wanted) = (api.clone(), wanted.clone());
            tokio::spawn(async move { api.create_volume(&wanted).await })
        })
        .buffer_unordered(1000)
        .collect()
        .await;
    let mut ids = std::collections::BTreeSet::new();
    for answer in made {
        match answer.unwrap() {
            Ok(volume) => drop(ids.insert(volume.id)),
            // More than the listener takes at a time.
            Err(e) => assert_eq!(e.kind, ErrorKind::Unavailable, "{e}"),
        }
    }
    assert_eq!(ids.len(), 1);
    assert_eq!(api.all_volumes(Default::default()).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_too_much_hears_so_and_harms_nobody() {
    let mut d = Daemon::start();
    let pool = d.pool("p").await;
    d.stop();
    d.configure("[limits]\nchanges_per_principal = 2\nrequests_per_second = 400\n");
    d.again();
    // Over this socket all are one principal.
    let api = d.client();
    let asks = (0..64).map(|n| ask(&pool, &format!("v{n}"), 4)).collect::<Vec<_>>();
    let calls = asks.iter().map(|wanted| api.create_volume(wanted));
    let answers = futures_util::future::join_all(calls).await;
    let refused: Vec<_> = answers.iter().filter_map(|a| a.as_ref().err()).collect();
    assert!(!refused.is_empty() && refused.len() < 64, "{} refused", refused.len());
    for e in refused {
        assert!(e.kind == ErrorKind::Unavailable && e.retryable && e.detail.contains("uid:"), "{e}");
    }
    let made = answers.iter().filter(|a| a.is_ok()).count();
    assert_eq!(
        api.all_volumes(Default::default()).await.unwrap().len(),
        made,
        "what was refused changed nothing"
    );

    let replies: Vec<_> = (0..1200).map(|_| get(&d.socket(), "/v1/system").unwrap()).collect();
    let refused: Vec<_> = replies.iter().filter(|r| r.status != 200).collect();
    assert!(!refused.is_empty(), "1,200 requests took longer than two seconds, or were all answered");
    for r in refused {
        assert_eq!(r.kind(), "unavailable");
        assert!(r.head.contains("retry-after: 1"), "{}", r.head);
    }
    // Whether it lives is asked by whoever restarts it.
    assert_eq!(get(&d.socket(), "/healthz").unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_never_reads_costs_nothing() {
    let d = Daemon::start();
    let pool = d.pool("p").await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        use std::io::Write;
        let mut stream = std::os::unix::net::UnixStream::connect(d.socket()).unwrap();
        stream.write_all(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        silent.push(stream);
    }
    let api = d.client();
    let round = async || {
        for n in 0..300 {
            let v = api.create_volume(&ask(&pool, &format!("v{n}"), 4)).await.unwrap();
            api.delete_volume(&v.id.into()).await.unwrap();
        }
    };
    round().await;
    let (before, started) = (d.resident_kib(), Instant::now());
    for _ in 0..5 {
        round().await;
    }
    let grown = d.resident_kib().saturating_sub(before);
    assert!(grown < 8 << 10, "{grown} KiB more for 3,000 events and 50 readers that don't read");
    assert!(started.elapsed() < Duration::from_secs(60));
}
