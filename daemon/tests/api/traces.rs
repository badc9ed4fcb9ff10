//! Requests traced over OTLP, to a collector that takes whatever it is sent.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use orlop_api::{HostPut, Pool, VolumeRef};
use prost::Message;

use super::daemon::Daemon;
use super::raw;

/// Where it listens, and the bodies that come.
fn collector() -> (String, Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (send, bodies) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, send) = (stream.unwrap(), send.clone());
            std::thread::spawn(move || {
                let mut read = Vec::new();
                let mut some = [0; 8192];
                while let Ok(n @ 1..) = stream.read(&mut some) {
                    read.extend_from_slice(&some[..n]);
                    let Some(end) = read.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
                    let head = String::from_utf8_lossy(&read[..end]).to_lowercase();
                    assert!(head.starts_with("post /v1/traces "), "{head}");
                    let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")).unwrap();
                    let whole = end + 4 + length.trim().parse::<usize>().unwrap();
                    if read.len() < whole {
                        continue;
                    }
                    let _ = send.send(read.drain(..whole).skip(end + 4).collect());
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
                }
            });
        }
    });
    (address, bodies)
}

fn traced(collector: &str, more: &str) -> Daemon {
    let dir = tempfile::tempdir().unwrap();
    let text = format!("[traces]\ncollector = \"{collector}\"\n{more}");
    std::fs::write(dir.path().join("orlopd.toml"), text).unwrap();
    Daemon::start_in(dir)
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn hex(id: &[u8]) -> String {
    id.iter().map(|b| format!("{b:02x}")).collect()
}

/// Waits for the spans of the trace until there are some by all of these names.
fn spans(bodies: &Receiver<Vec<u8>>, names: &[&str]) -> Vec<Span> {
    let end = Instant::now() + Duration::from_secs(30);
    let mut all = Vec::new();
    while !names.iter().all(|n| all.iter().any(|s: &Span| s.name == *n)) {
        let left = end.saturating_duration_since(Instant::now());
        let have = || all.iter().map(|s: &Span| s.name.clone()).collect::<Vec<_>>();
        let body = bodies.recv_timeout(left).unwrap_or_else(|_| panic!("only {:?}", have()));
        let batch = ExportTraceServiceRequest::decode(&*body).unwrap();
        let some = batch.resource_spans.into_iter().flat_map(|r| r.scope_spans).flat_map(|s| s.spans);
        all.extend(some.filter(|s| hex(&s.trace_id) == TRACE));
    }
    all
}

fn attach(d: &Daemon, volume: &str, flags: &str) {
    let request = format!(
        "PUT /v1/volumes/{volume}/attachments/one HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
         traceparent: 00-{TRACE}-00f067aa0ba902b7-{flags}\r\nContent-Length: 0\r\n\r\n"
    );
    assert_eq!(raw::send(&d.socket(), request.as_bytes()).unwrap().status, 201);
}

async fn volume(d: &Daemon, pool: &Pool, name: &str) -> VolumeRef {
    let host = HostPut::nvme("nqn.2014-08.org.nvmexpress:one".parse().unwrap());
    d.client().put_host(&"one".parse().unwrap(), &host).await.unwrap();
    VolumeRef::Id(d.volume(pool, name).await.id)
}

#[tokio::test]
async fn one_request_is_one_trace_through_door_engine_lanes_and_kernel() {
    let (address, bodies) = collector();
    // Only what its caller traces.
    let mut d = traced(&address, "sample_percent = 1\n");
    let pool = d.pool("tank").await;
    let id = volume(&d, &pool, "data").await.to_string();
    attach(&d, &id, "01");
    let route = "PUT /v1/volumes/{volume}/attachments/{host}";
    let all = spans(&bodies, &[route, "action", "commit", "wait", "work", "step"]);
    let by_id: BTreeMap<_, _> = all.iter().map(|s| (s.span_id.clone(), s)).collect();
    let above = |span: &Span| {
        let mut names = Vec::new();
        let mut at = by_id.get(&span.parent_span_id);
        while let Some(span) = at {
            names.push(span.name.as_str());
            at = by_id.get(&span.parent_span_id);
        }
        names
    };
    let of = |name: &str| all.iter().find(|s| s.name == name).unwrap();
    assert_eq!(hex(&of(route).parent_span_id), "00f067aa0ba902b7");
    assert_eq!(above(of("action")), [route]);
    for name in ["commit", "wait", "work"] {
        assert_eq!(above(of(name)), ["action", route], "{name}");
    }
    assert_eq!(above(of("step")), ["work", "action", route]);
    // Two syncs of the journal at least, each by itself.
    assert!(all.iter().filter(|s| s.name == "commit").count() >= 2);
    for span in &all {
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano, "{span:?}");
    }
    let with = |span: &Span, key: &str| span.attributes.iter().any(|a| a.key == key);
    assert!(with(of(route), "http.response.status_code") && with(of("action"), "outcome"));
    assert!(d.stop().success());
}

/// The last spans are sent before the daemon ends; and one that nobody listens to keeps nobody waiting.
#[tokio::test]
async fn a_stop_sends_what_is_left_and_a_collector_that_is_gone_is_nobodys_trouble() {
    let (address, bodies) = collector();
    let mut d = traced(&address, "");
    let pool = d.pool("tank").await;
    let id = volume(&d, &pool, "data").await.to_string();
    attach(&d, &id, "01");
    assert!(d.stop().success());
    spans(&bodies, &["action"]);

    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut d = traced(&nobody, "");
    let pool = d.pool("tank").await;
    for n in 0..50 {
        let started = Instant::now();
        volume(&d, &pool, &format!("v{n}")).await;
        assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    }
    let stopping = Instant::now();
    assert!(d.stop().success());
    assert!(stopping.elapsed() < Duration::from_secs(10), "{:?}", stopping.elapsed());
}
