//! Tokens over the network: who gets in, what it may read, and what it is answered elsewhere.

use std::sync::Arc;

use orlop_api::client::{Client, HostFilter, SnapshotFilter, VolumeFilter};
use orlop_api::{ErrorKind, HostPut, TokenPut, Verb, VolumeCreate, VolumeRef};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, HandshakeKind, SupportedProtocolVersion};

use super::daemon::Daemon;
use super::network::{tls_client, tls_request, tls_request_as};
use super::raw;

fn scope(tenant: &str, verbs: &[Verb]) -> TokenPut {
    TokenPut { tenant: tenant.parse().unwrap(), pools: Vec::new(), verbs: verbs.to_vec(), certificate: None }
}

/// A client that comes by a token that is made for it, and the token.
async fn client(d: &Daemon, name: &str, tenant: &str, verbs: &[Verb]) -> (Client, String) {
    let made = d.client().put_token(&name.parse().unwrap(), &scope(tenant, verbs)).await.unwrap();
    let secret = made.secret.unwrap().expose().to_string();
    (Client::tls(&d.url(), secret.clone().into(), Some(&d.ca())).unwrap(), secret)
}

fn ask(name: &str) -> VolumeCreate {
    VolumeCreate::new(name.parse().unwrap(), "tank".parse().unwrap(), orlop_api::ByteSize(1 << 20))
}

#[tokio::test]
async fn a_tenant_sees_its_own() {
    let d = Daemon::start_tls();
    d.pool("tank").await;
    let (red, secret) = client(&d, "red", "red", Verb::CSI).await;
    let (blue, _) = client(&d, "blue", "blue", Verb::CSI).await;
    let theirs = red.create_volume(&ask("data")).await.unwrap();
    let nqn = "nqn.2014-08.org.nvmexpress:red-1".parse().unwrap();
    red.put_host(&"red-1".parse().unwrap(), &HostPut::nvme(nqn)).await.unwrap();
    red.attach(&VolumeRef::Id(theirs.id), &"red-1".parse().unwrap()).await.unwrap();

    assert!(blue.volumes(&VolumeFilter::default()).await.unwrap().items.is_empty());
    assert!(blue.snapshots(&SnapshotFilter::default()).await.unwrap().items.is_empty());
    assert!(blue.hosts(&HostFilter::default()).await.unwrap().items.is_empty());
    let system = blue.system().await.unwrap();
    assert_eq!((system.pools, system.volumes, system.hosts, system.attachments), (1, 0, 0, 0));
    let by = VolumeRef::Id(theirs.id);
    for refused in [
        blue.volume(&by).await.unwrap_err(),
        blue.attachments(&by).await.unwrap_err(),
        blue.attachment(&by, &"red-1".parse().unwrap()).await.unwrap_err(),
        blue.delete_volume(&by).await.unwrap_err(),
    ] {
        // It has the id from somebody, and is not told that the volume is gone.
        assert_eq!(refused.kind, ErrorKind::Forbidden, "{refused}");
    }
    for refused in [
        blue.host(&"red-1".parse().unwrap()).await.unwrap_err(),
        blue.volume(&"data".parse().unwrap()).await.unwrap_err(),
        blue.delete_volume(&"data".parse().unwrap()).await.unwrap_err(),
    ] {
        assert_eq!(refused.kind, ErrorKind::NotFound, "{refused}");
    }
    assert_eq!(d.client().volume(&by).await.unwrap().tenant.as_str(), "red");
    assert_eq!(red.volumes(&VolumeFilter::default()).await.unwrap().items.len(), 1);

    // What it does is audited by its name; itself it is in no answer and no file.
    let tokens = serde_json::to_string(&d.client().tokens().await.unwrap()).unwrap();
    assert!(tokens.contains("\"red\"") && !tokens.contains(&secret));
    d.client().delete_token(&"red".parse().unwrap()).await.unwrap();
    assert_eq!(red.system().await.unwrap_err().kind, ErrorKind::Unauthenticated);
}

/// Every route that only reads is either named among those for all or closed.
#[tokio::test]
async fn what_is_the_administrators_is_closed() {
    let d = Daemon::start_tls();
    d.pool("tank").await;
    let (_, secret) = client(&d, "all", "default", Verb::ALL).await;
    let document = raw::call(&d.socket(), "GET", "/v1/openapi.json", b"").json();
    let mut open = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        if !item.as_object().unwrap().contains_key("get") {
            continue;
        }
        let asked = path.replace("{pool}", "tank").replace(['{', '}'], "x");
        for method in ["GET", "HEAD"] {
            let head = format!("{method} {asked} HTTP/1.1\r\nAuthorization: Bearer {secret}");
            let reply = tls_request(&d, &head).await;
            if reply.status != 403 && method == "GET" {
                open.push(path.clone());
            }
            let closed = open.last() != Some(path);
            assert_eq!(reply.status == 403, closed, "{method} {path}: {}", reply.status);
        }
    }
    open.sort();
    let want = [
        "/healthz",
        "/readyz",
        "/v1/hosts",
        "/v1/hosts/{host}",
        "/v1/openapi.json",
        "/v1/pools",
        "/v1/pools/{pool}",
        "/v1/snapshot-groups/{group}",
        "/v1/snapshots",
        "/v1/snapshots/{snapshot}",
        "/v1/snapshots/{snapshot}/blocks",
        "/v1/system",
        "/v1/volumes",
        "/v1/volumes/{volume}",
        "/v1/volumes/{volume}/attachments",
        "/v1/volumes/{volume}/attachments/{host}",
        "/v1/volumes/{volume}/key",
        "/v1/zones",
        "/v1/zones/{zone}",
    ];
    assert_eq!(open, want);
}

#[tokio::test]
async fn bad_input_makes_no_token() {
    let d = Daemon::start();
    d.pool("tank").await;
    let put = |name: &str, body: &str| {
        raw::call(&d.socket(), "PUT", &format!("/v1/tokens/{name}"), body.as_bytes())
    };
    for (name, body, kind, field) in [
        ("x", r#"{"verbs":["create_pool"]}"#, "invalid", Some("verbs[0]")),
        ("x", r#"{"verbs":"all"}"#, "invalid", Some("verbs")),
        ("x", r#"{"tenant":"a/b"}"#, "invalid", Some("tenant")),
        ("x", r#"{"pools":["nosuch"]}"#, "not_found", None),
        ("x", r#"{"pools":[]}"#, "invalid", Some("pools")),
        ("x", r#"{"pool":["tank"]}"#, "invalid", Some("pool")),
        ("admin", "{}", "invalid", Some("token")),
        ("..", "{}", "invalid", Some("token")),
    ] {
        let reply = put(name, body);
        assert_eq!(reply.kind(), kind, "{body}: {reply:?}");
        assert_eq!(reply.json()["field"].as_str(), field, "{body}: {}", reply.json());
    }
    let names: Vec<_> = d.client().tokens().await.unwrap().into_iter().map(|t| t.name.to_string()).collect();
    assert_eq!(names, ["admin"]);
    assert_eq!(raw::call(&d.socket(), "DELETE", "/v1/tokens/x", b"").kind(), "not_found");
    assert_eq!(raw::call(&d.socket(), "DELETE", "/v1/tokens/admin", b"").kind(), "invalid");
}

/// A certificate and its key, both PEM, as somebody makes them by hand.
fn certificate(name: &str) -> (String, String) {
    let pair = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    // Long over: what it says of itself does not count.
    params.not_before = rcgen::date_time_ymd(2001, 1, 1);
    params.not_after = rcgen::date_time_ymd(2002, 1, 1);
    (params.self_signed(&pair).unwrap().pem(), pair.serialize_pem())
}

#[tokio::test]
async fn a_certificate_is_a_token() {
    let d = Daemon::start_tls();
    d.pool("tank").await;
    let ((cert, key), (other, other_key)) = (certificate("red"), certificate("red"));
    let by = |cert: &str, key: &str| {
        Client::mutual_tls(&d.url(), cert.as_bytes(), key.as_bytes(), Some(&d.ca())).unwrap()
    };
    let refused = async |client: &Client| client.system().await.unwrap_err().kind;
    assert_eq!(refused(&by(&cert, &key)).await, ErrorKind::Unauthenticated, "nobody knows it");

    let name = "red".parse().unwrap();
    let put = |cert: &str| TokenPut { certificate: cert.parse().ok(), ..scope("red", Verb::CSI) };
    let made = d.client().put_token(&name, &put(&cert)).await.unwrap();
    assert!(made.secret.is_none());
    let fingerprint = made.token.fingerprint.unwrap();
    assert_eq!((fingerprint.len(), made.token.scope.unwrap().certificate), (95, None));
    let red = by(&cert, &key);
    red.create_volume(&ask("data")).await.unwrap();
    assert_eq!(red.system().await.unwrap().volumes, 1);
    assert_eq!(
        refused(&by(&other, &other_key)).await,
        ErrorKind::Unauthenticated,
        "the same name is nothing"
    );
    // A certificate is public: its hash is no token.
    for text in [fingerprint.as_str(), &fingerprint.replace(':', "").to_lowercase(), cert.trim()] {
        let client = Client::tls(&d.url(), text.replace('\n', "").into(), Some(&d.ca())).unwrap();
        assert_eq!(refused(&client).await, ErrorKind::Unauthenticated);
    }
    // A pair that is none is said to be that, before anybody is asked.
    for ca in [Some(d.ca()), None] {
        let none = Client::mutual_tls(&d.url(), cert.as_bytes(), other_key.as_bytes(), ca.as_deref());
        assert_eq!(none.unwrap_err().kind, ErrorKind::Invalid);
    }

    // Another one takes its place; what is one's is nobody else's.
    d.client().put_token(&name, &put(&other)).await.unwrap();
    assert_eq!(by(&other, &other_key).system().await.unwrap().volumes, 1);
    assert_eq!(refused(&red).await, ErrorKind::Unauthenticated, "on a connection that is open, too");
    client(&d, "blue", "blue", &[]).await;
    for (token, ask) in
        [("green", put(&other)), ("blue", TokenPut { tenant: "blue".parse().unwrap(), ..put(&cert) })]
    {
        let p = d.client().put_token(&token.parse().unwrap(), &ask).await.unwrap_err();
        assert_eq!((p.kind, p.field.as_deref()), (ErrorKind::Conflict, Some("certificate")), "{token}");
    }
    // What it may do is changed without it, and it stays.
    let looks = d.client().put_token(&name, &scope("red", &[])).await.unwrap().token;
    assert!(looks.fingerprint.is_some_and(|now| now != fingerprint));
    let may_look = by(&other, &other_key);
    assert_eq!(may_look.system().await.unwrap().volumes, 1);
    assert_eq!(may_look.create_volume(&ask("more")).await.unwrap_err().kind, ErrorKind::Forbidden);
    let bad = r#"{"certificate":"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"}"#;
    let reply = raw::call(&d.socket(), "PUT", "/v1/tokens/bad", bad.as_bytes());
    assert_eq!((reply.kind(), reply.json()["field"].as_str()), ("invalid".into(), Some("certificate")));
    d.client().delete_token(&name).await.unwrap();
    assert_eq!(refused(&by(&other, &other_key)).await, ErrorKind::Unauthenticated);
}

/// A client that shows a certificate and signs with a key, whether they belong together or not.
fn shows(
    d: &Daemon,
    version: &'static SupportedProtocolVersion,
    (certificate, key): (&str, &str),
) -> Arc<ClientConfig> {
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
    let pair = SingleCertAndKey::from(CertifiedKey::new(vec![certificate], key));
    Arc::new(tls_client(d, &[version]).with_client_cert_resolver(Arc::new(pair)))
}

#[tokio::test]
async fn a_certificate_counts_by_its_key_alone() {
    let d = Daemon::start_tls();
    let ((cert, key), (_, other_key)) = (certificate("red"), certificate("red"));
    let name = "red".parse().unwrap();
    let put = TokenPut { certificate: cert.parse().ok(), ..scope("red", &[]) };
    d.client().put_token(&name, &put).await.unwrap();
    let (_, blue) = client(&d, "blue", "blue", &[]).await;
    let red_only = "GET /v1/tokens HTTP/1.1";
    let mut known = Vec::new();
    for version in [&TLS12, &TLS13] {
        let impostor = shows(&d, version, (&cert, &other_key));
        let answer = tls_request_as(&d, &impostor, "GET /v1/system HTTP/1.1").await;
        assert!(answer.is_none(), "{version:?}: without the key: {answer:?}");
        let red = shows(&d, version, (&cert, &key));
        let (reply, kind) = tls_request_as(&d, &red, "GET /v1/system HTTP/1.1").await.unwrap();
        assert_eq!((reply.status, kind), (200, HandshakeKind::Full), "{version:?}");
        // A session that is taken up again is still its.
        let (reply, kind) = tls_request_as(&d, &red, "GET /v1/system HTTP/1.1").await.unwrap();
        assert_eq!((reply.status, kind), (200, HandshakeKind::Resumed), "{version:?}");
        known.push(red);
    }
    let red = &known[1];
    assert_eq!(tls_request_as(&d, red, red_only).await.unwrap().0.kind(), "forbidden");
    // Who says that he comes by a token comes by nothing else.
    let volumes = "/v1/volumes?limit=1";
    for (header, status) in [
        (format!("Authorization: Bearer {blue}"), 200),
        ("Authorization: Bearer 0123456789abcdef0123456789abcdef".into(), 401),
        ("Authorization: Basic cmVkOnJlZA==".into(), 401),
        ("Authorization:".into(), 401),
    ] {
        let head = format!("GET {volumes} HTTP/1.1\r\n{header}");
        let (reply, _) = tls_request_as(&d, red, &head).await.unwrap();
        assert_eq!(reply.status, status, "{header}");
    }
    // Larger than any that can be given: nothing of it is kept.
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, "x".repeat(20 << 10));
    let pair = rcgen::KeyPair::generate().unwrap();
    let large = (params.self_signed(&pair).unwrap().pem(), pair.serialize_pem());
    let answer = tls_request_as(&d, &shows(&d, &TLS13, (&large.0, &large.1)), red_only).await;
    assert!(answer.is_none(), "{answer:?}");

    d.client().delete_token(&name).await.unwrap();
    for red in known {
        let (reply, kind) = tls_request_as(&d, &red, "GET /v1/system HTTP/1.1").await.unwrap();
        assert_eq!((reply.status, kind), (401, HandshakeKind::Resumed));
    }
}
