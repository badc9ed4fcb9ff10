//! The event stream.

use std::pin::pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use orlop_api::client::Result;
use orlop_api::{Event, EventKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::daemon::Daemon;

async fn next(events: &mut (impl Stream<Item = Result<Event>> + Unpin)) -> Event {
    tokio::time::timeout(Duration::from_secs(20), events.next()).await.unwrap().unwrap().unwrap()
}

#[tokio::test]
async fn a_reader_sees_what_happens_and_goes_on_where_it_stopped() {
    let d = Daemon::start();
    let pool = d.pool("tank").await;
    let before = d.client().system().await.unwrap();
    assert_eq!(before.pools, 1);

    let mut events = d.client().events(None);
    // Connects when first polled, and begins there.
    let first = tokio::time::timeout(Duration::from_millis(500), events.next()).await;
    assert!(first.is_err(), "nothing happened yet: {first:?}");
    let a = d.volume(&pool, "a").await;
    let seen = next(&mut events).await;
    assert_eq!((seen.kind, seen.volume), (EventKind::VolumeCreated, Some(a.id)));
    drop(events);

    let b = d.volume(&pool, "b").await;
    d.client().delete_volume(&a.id.into()).await.unwrap();
    let mut resumed = d.client().events(Some(seen.seq));
    let (e1, e2) = (next(&mut resumed).await, next(&mut resumed).await);
    assert_eq!((e1.kind, e1.volume), (EventKind::VolumeCreated, Some(b.id)));
    assert_eq!((e2.kind, e2.volume), (EventKind::VolumeDeleted, Some(a.id)));
    assert!(seen.seq < e1.seq && e1.seq < e2.seq);
}

#[tokio::test]
async fn a_reader_survives_a_restart_and_is_told_of_the_gap() {
    let mut d = Daemon::start();
    let pool = d.pool("tank").await;
    let mut events = d.client().events(Some(0));
    let first = next(&mut events).await;
    d.kill();
    d.again();
    d.volume(&pool, "after").await;
    let mut last = first.seq;
    let mut kinds = Vec::new();
    loop {
        let e = next(&mut events).await;
        assert!(e.seq >= last, "{} after {last}", e.seq);
        last = e.seq;
        kinds.push(e.kind);
        if e.kind == EventKind::VolumeCreated {
            break;
        }
    }
    assert!(kinds.contains(&EventKind::Gap), "{kinds:?}");
}

#[tokio::test]
async fn raw_streams_have_ids_and_the_header_goes_first() {
    let d = Daemon::start();
    let pool = d.pool("tank").await;
    let mut all = d.client().events(Some(0));
    let mut seq = 0;
    for n in 0..3 {
        let v = d.volume(&pool, &format!("v{n}")).await;
        if n == 0 {
            seq = loop {
                let e = next(&mut all).await;
                if e.volume == Some(v.id) {
                    break e.seq;
                }
            };
        }
    }
    let mut stream = tokio::net::UnixStream::connect(d.socket()).await.unwrap();
    let request = format!("GET /v1/events?after=0 HTTP/1.1\r\nHost: x\r\nLast-Event-ID: {seq}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    let mut read = pin!(async {
        let mut piece = [0; 4096];
        while text.matches("event: volume_created").count() < 2 {
            let n = stream.read(&mut piece).await.unwrap();
            text.push_str(std::str::from_utf8(&piece[..n]).unwrap());
        }
    });
    tokio::time::timeout(Duration::from_secs(10), read.as_mut()).await.unwrap();
    assert!(text.contains("content-type: text/event-stream"), "{text}");
    assert!(text.contains(&format!("id: {}\n", seq + 1)), "{text}");
    assert!(!text.contains("pool_created"), "Last-Event-ID goes before the query: {text}");

    let bad = b"GET /v1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\nLast-Event-ID: x\r\n\r\n";
    assert_eq!(super::raw::send(&d.socket(), bad).unwrap().kind(), "invalid");
}
