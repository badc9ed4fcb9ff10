//! Connections that say nothing, say it slowly, or are too many.

use std::io::Read;
use std::net::TcpStream as StdTcp;
use std::os::unix::net::UnixStream as StdUnix;
use std::sync::Arc;
use std::time::{Duration, Instant};

use orlop_api::client::Client;
use rustls::client::WantsClientCert;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ConfigBuilder, HandshakeKind, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::daemon::Daemon;
use super::raw::Reply;

/// A request line with further headers, over a TLS connection of its own.
pub async fn tls_request(d: &Daemon, head: &str) -> Reply {
    let config = tls_client(d, &[&TLS12, &TLS13]).with_no_client_auth();
    tls_request_as(d, &Arc::new(config), head).await.unwrap().0
}

/// A client that believes the daemon by name and authority, unlike the typed one, which pins: so the certificate's names are
/// right.
pub fn tls_client(
    d: &Daemon,
    versions: &[&'static SupportedProtocolVersion],
) -> ConfigBuilder<ClientConfig, WantsClientCert> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&d.ca()).unwrap()).unwrap();
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
}

/// What is answered to such a client, and whether it came by a session that it had before. None: it was not let in so far.
pub async fn tls_request_as(
    d: &Daemon,
    config: &Arc<ClientConfig>,
    head: &str,
) -> Option<(Reply, HandshakeKind)> {
    let stream = TcpStream::connect(d.address.unwrap()).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut tls = TlsConnector::from(config.clone()).connect(name, stream).await.ok()?;
    let request = format!("{head}\r\nHost: x\r\nConnection: close\r\n\r\n");
    tls.write_all(request.as_bytes()).await.ok()?;
    let mut bytes = Vec::new();
    let _ = tls.read_to_end(&mut bytes).await;
    let kind = tls.get_ref().1.handshake_kind()?;
    (!bytes.is_empty()).then(|| (Reply::parse(&bytes).unwrap(), kind))
}

#[tokio::test]
async fn a_network_is_never_served_in_the_clear() {
    let d = Daemon::start_tls();
    let mut plain = StdTcp::connect(d.address.unwrap()).unwrap();
    std::io::Write::write_all(&mut plain, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    plain.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut bytes = Vec::new();
    let _ = plain.read_to_end(&mut bytes);
    assert!(!bytes.starts_with(b"HTTP"), "{bytes:?}");
}

#[tokio::test]
async fn another_certificate_is_not_believed() {
    let d = Daemon::start_tls();
    let other = Daemon::start_tls();
    let client = Client::tls(&d.url(), d.token().into(), Some(&other.ca())).unwrap();
    let refused = client.system().await.unwrap_err();
    assert_eq!(refused.kind.as_str(), "unavailable", "{refused:?}");
    assert!(Client::tls("http://127.0.0.1:1", d.token().into(), None).is_err());
}

fn seconds_until_closed(mut stream: impl Read) -> f32 {
    let started = Instant::now();
    let _ = stream.read(&mut [0; 16]);
    started.elapsed().as_secs_f32()
}

#[tokio::test]
async fn the_silent_are_sent_away() {
    let d = Daemon::start_tls();
    let address = d.address.unwrap();
    let socket = d.socket();
    let hello = std::thread::spawn(move || {
        let stream = StdTcp::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        seconds_until_closed(stream)
    });
    let head = std::thread::spawn(move || {
        let mut stream = StdUnix::connect(socket).unwrap();
        std::io::Write::write_all(&mut stream, b"GET /v1/system HTTP/1.1\r\nHost:").unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        seconds_until_closed(stream)
    });
    let (hello, head) = (hello.join().unwrap(), head.join().unwrap());
    assert!((4.0..8.0).contains(&hello), "no client hello: closed after {hello} s");
    assert!((9.0..13.0).contains(&head), "half a head: closed after {head} s");
}

#[tokio::test]
async fn thousands_of_silent_connections_keep_nobody_out() {
    let many = 2_000;
    let nofile = rustix::process::Resource::Nofile;
    let limit = rustix::process::getrlimit(nofile);
    rustix::process::setrlimit(nofile, rustix::process::Rlimit { current: limit.maximum, ..limit }).unwrap();

    let d = Daemon::start_tls();
    d.client().system().await.unwrap();
    d.tls_client().system().await.unwrap();
    let (fds, memory) = (d.open_fds(), d.resident_kib());
    let proven = d.tls_client();
    proven.system().await.unwrap();

    let tcp: Vec<_> = (0..many).map(|_| StdTcp::connect(d.address.unwrap())).collect();
    let unix: Vec<_> = (0..many)
        .map(|_| {
            let s = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
            s.connect_timeout(&socket2::SockAddr::unix(d.socket()).unwrap(), Duration::from_secs(5))
                .map(|()| s)
        })
        .collect();
    let connected = (tcp.iter().flatten().count(), unix.iter().flatten().count());
    assert!(connected.0 > many / 2 && connected.1 > many / 2, "{connected:?}");

    // Newcomers and old acquaintances are served meanwhile, from the very address that floods.
    let started = Instant::now();
    for _ in 0..10 {
        d.tls_client().system().await.unwrap();
        d.client().system().await.unwrap();
    }
    proven.system().await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    let (fds_now, memory_now) = (d.open_fds(), d.resident_kib());
    assert!(fds_now < fds + 1024 + 128 + 64, "{fds} to {fds_now} descriptors");
    assert!(memory_now < memory + (64 << 10), "{memory} to {memory_now} KiB");

    drop((tcp, unix, proven));
    let end = Instant::now() + Duration::from_secs(20);
    while d.open_fds() > fds + 8 {
        assert!(Instant::now() < end, "{fds} descriptors before, {} after", d.open_fds());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let metrics = d.client().metrics().await.unwrap();
    assert!(metrics.contains("orlop_http_refusals_total{listener=\"tls\",reason=\"per_peer\"}"), "{metrics}");
}
