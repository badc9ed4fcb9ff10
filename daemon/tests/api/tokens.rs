//! Tokens over the network: who gets in, what it may read, and what it is answered elsewhere.

use orlop_api::client::{Client, HostFilter, SnapshotFilter, VolumeFilter};
use orlop_api::{ErrorKind, HostPut, TokenPut, Verb, VolumeCreate, VolumeRef};

use super::daemon::Daemon;
use super::network::tls_request;
use super::raw;

fn scope(tenant: &str, verbs: &[Verb]) -> TokenPut {
    TokenPut { tenant: tenant.parse().unwrap(), pools: Vec::new(), verbs: verbs.to_vec() }
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
