//! Bad input, and what each of it is answered with.

use orlop_api::client::Client;
use serde_json::json;

use super::daemon::{Daemon, ask};
use super::raw;

#[tokio::test]
async fn bad_volumes_are_refused() {
    let d = Daemon::start();
    let pool = d.pool("tank").await;
    let g = pool.granularity.0;
    let body = |name: &str, size: serde_json::Value| json!({"name": name, "pool": "tank", "size": size});
    let long = "x".repeat(129);
    let table: Vec<(serde_json::Value, &[&str], Option<&str>)> = vec![
        (json!({"name": "a", "pool": "tank", "size": g, "sise": g}), &["invalid"], Some("sise")),
        (json!({"name": "a", "pool": "tank"}), &["invalid"], Some("size")),
        (json!({"name": "a", "size": g}), &["invalid"], Some("pool")),
        (json!({"name": "a", "pool": "tank", "size": g, "protocol": "nfs"}), &["invalid"], Some("protocol")),
        (json!([]), &["invalid"], None),
        (json!("x"), &["invalid"], None),
        (body("a", json!(0)), &["invalid"], Some("size")),
        (body("a", json!(-1)), &["invalid"], Some("size")),
        (body("a", json!(g + 1)), &["invalid"], Some("size")),
        (body("a", json!(1.5)), &["invalid"], Some("size")),
        (body("a", json!("10G")), &["invalid"], Some("size")),
        (body("a", json!(18446744073709551616.0)), &["invalid"], Some("size")),
        (body("", json!(g)), &["invalid"], Some("name")),
        (body(&long, json!(g)), &["invalid"], Some("name")),
        (body("a/b", json!(g)), &["invalid"], Some("name")),
        (body("a@b", json!(g)), &["invalid"], Some("name")),
        (body("a\0b", json!(g)), &["invalid"], Some("name")),
        (body("..", json!(g)), &["invalid"], Some("name")),
        (body("a..b", json!(g)), &["invalid"], Some("name")),
        (body("\u{e9}", json!(g)), &["invalid"], Some("name")),
        (json!({"name": "a", "pool": "none", "size": g}), &["not_found", "invalid"], None),
        (
            json!({"name": "a", "pool": "tank", "size": (u64::MAX / g) * g, "provisioning": "thick"}),
            &["exhausted", "invalid"],
            None,
        ),
    ];
    for (body, kinds, field) in table {
        let reply = raw::call(&d.socket(), "POST", "/v1/volumes", body.to_string().as_bytes());
        assert!(kinds.contains(&reply.kind().as_str()), "{body}: {reply:?}");
        if let Some(field) = field {
            assert_eq!(reply.json()["field"], field, "{body}: {}", reply.json());
        }
    }
    for body in ["", "{", "nope", "{\"name\":\"a\"}{", "\u{0}"] {
        let reply = raw::call(&d.socket(), "POST", "/v1/volumes", body.as_bytes());
        assert_eq!(reply.kind(), "invalid", "{body:?}");
    }
    assert_eq!(d.client().system().await.unwrap().volumes, 0);

    for name in ["a", &"x".repeat(128)] {
        let reply =
            raw::call(&d.socket(), "POST", "/v1/volumes", body(name, json!(g)).to_string().as_bytes());
        assert_eq!(reply.status, 201, "{reply:?}");
    }
}

#[tokio::test]
async fn the_same_again_and_something_else() {
    let d = Daemon::start();
    let pool = d.pool("tank").await;
    let request = json!(ask(&pool, "data", 4)).to_string();
    let first = raw::call(&d.socket(), "POST", "/v1/volumes", request.as_bytes());
    let again = raw::call(&d.socket(), "POST", "/v1/volumes", request.as_bytes());
    assert_eq!((first.status, again.status), (201, 200));
    assert_eq!(first.json()["id"], again.json()["id"]);

    let other =
        raw::call(&d.socket(), "POST", "/v1/volumes", json!(ask(&pool, "data", 8)).to_string().as_bytes());
    assert_eq!((other.status, other.kind().as_str()), (409, "conflict"));
    let p = other.json();
    assert_eq!(p["field"], "size", "{p}");
    assert!(p["have"].is_string() && p["want"].is_string(), "{p}");

    let nqn = json!({"nqn": "nqn.2014-08.org:h"}).to_string();
    let put = || raw::call(&d.socket(), "PUT", "/v1/hosts/h", nqn.as_bytes()).status;
    assert_eq!((put(), put()), (201, 200));
    let attach = || raw::call(&d.socket(), "PUT", "/v1/volumes/data/attachments/h", b"").status;
    assert_eq!((attach(), attach()), (201, 200));
    let taken = raw::call(&d.socket(), "PUT", "/v1/hosts/other", nqn.as_bytes());
    assert_eq!(taken.kind(), "conflict", "two hosts with one NQN");

    let shrink = json!({"size": pool.granularity.0}).to_string();
    let shrink = raw::call(&d.socket(), "PATCH", "/v1/volumes/data", shrink.as_bytes());
    assert!(shrink.status >= 400 && !shrink.json()["retryable"].as_bool().unwrap(), "{shrink:?}");
}

#[tokio::test]
async fn what_is_not_there() {
    let d = Daemon::start();
    let pool = d.pool("tank").await;
    d.volume(&pool, "data").await;
    d.host("h").await;
    let call = |method, path: &str| raw::call(&d.socket(), method, path, b"");
    for (method, path, kind) in [
        ("GET", "/v1/volumes/none", "not_found"),
        ("GET", "/v1/volumes/0190c0de-1234-7abc-8def-0123456789ab", "not_found"),
        ("DELETE", "/v1/volumes/none", "not_found"),
        ("GET", "/v1/pools/none", "not_found"),
        ("DELETE", "/v1/pools/none", "not_found"),
        ("GET", "/v1/hosts/none", "not_found"),
        ("DELETE", "/v1/hosts/none", "not_found"),
        ("PUT", "/v1/volumes/none/attachments/h", "not_found"),
        ("PUT", "/v1/volumes/data/attachments/none", "not_found"),
        ("GET", "/v1/volumes/data/attachments/h", "not_found"),
        ("DELETE", "/v1/volumes/data/attachments/h", "not_found"),
        ("GET", "/v1/volumes/a%2Fb", "invalid"),
        ("GET", "/v1/volumes/%ff", "invalid"),
        ("GET", "/v1/volumes/%00", "invalid"),
        ("GET", "/v1/hosts/..", "invalid"),
        ("GET", "/v1/pools/UPPER", "invalid"),
        ("GET", "/v1/volumes?limit=0", "invalid"),
        ("GET", "/v1/volumes?limit=1001", "invalid"),
        ("GET", "/v1/volumes?limit=x", "invalid"),
        ("GET", "/v1/volumes?cursor=x", "invalid"),
        ("GET", "/v1/volumes?nope=1", "invalid"),
        ("GET", "/v1/system?nope=1", "invalid"),
        ("GET", "/v1/events?after=x", "invalid"),
        ("GET", "/nope", "not_found"),
        ("GET", "/v1", "not_found"),
        ("GET", "/v1/volumes/", "not_found"),
    ] {
        let reply = call(method, path);
        assert_eq!(reply.kind(), kind, "{method} {path}: {reply:?}");
    }
    let not_allowed = call("POST", "/v1/hosts/h");
    assert_eq!((not_allowed.status, not_allowed.kind().as_str()), (405, "invalid"));
    assert!(not_allowed.head.contains("allow: "), "{not_allowed:?}");

    assert_eq!(call("PUT", "/v1/volumes/data/attachments/h").status, 201);
    assert_eq!(call("DELETE", "/v1/volumes/data/attachments/h").status, 204);
    assert_eq!(call("DELETE", "/v1/volumes/data/attachments/h").kind(), "not_found", "detached twice");
}

#[tokio::test]
async fn malformed_hosts_and_pools_are_refused() {
    let d = Daemon::start();
    for nqn in
        ["", "nqn", "iqn.2014-08.org:x", "nqn.2014-13.org:x", "nqn.2014-08.org:a/b", "nqn.2014-08.org:"]
    {
        let reply = raw::call(&d.socket(), "PUT", "/v1/hosts/h", json!({"nqn": nqn}).to_string().as_bytes());
        assert_eq!(
            (reply.kind().as_str(), reply.json()["field"].as_str()),
            ("invalid", Some("nqn")),
            "{nqn}"
        );
    }
    for (body, field) in [
        (json!({"name": "raidz", "kind": "sim", "directory": "/x"}), "name"),
        (json!({"name": "p", "kind": "sim", "directory": "x"}), "directory"),
        (json!({"name": "p", "kind": "sim", "directory": "/x/../y"}), "directory"),
        (json!({"name": "p", "kind": "zfs"}), "disks"),
        (json!({"name": "p", "kind": "file", "disks": ["vdb", "vdc"]}), "disks"),
        (json!({"name": "p", "kind": "file", "disks": ["../etc"]}), "disks"),
        (json!({"name": "p", "kind": "tape"}), "kind"),
    ] {
        let reply = raw::call(&d.socket(), "POST", "/v1/pools", body.to_string().as_bytes());
        assert_eq!(reply.kind(), "invalid", "{body}: {reply:?}");
        assert_eq!(reply.json()["field"], field, "{body}: {reply:?}");
    }
}

#[tokio::test]
async fn odd_bodies_do_no_harm() {
    let d = Daemon::start();
    d.pool("tank").await;
    let before = d.resident_kib();
    let large = vec![b'x'; 10 << 20];
    let reply = raw::call(&d.socket(), "POST", "/v1/volumes", &large);
    assert_eq!(reply.kind(), "invalid");
    assert!(reply.json()["detail"].as_str().unwrap().contains("64 KiB"), "{reply:?}");
    // Where no body is read at all.
    let reply = raw::call(&d.socket(), "GET", "/v1/system", &large);
    assert_eq!(reply.status, 200);
    let deep = "[".repeat(60_000);
    assert_eq!(raw::call(&d.socket(), "POST", "/v1/volumes", deep.as_bytes()).kind(), "invalid");
    assert!(d.resident_kib() < before + (32 << 10), "{} to {} KiB", before, d.resident_kib());

    let no_type = b"POST /v1/volumes HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}";
    assert_eq!(raw::send(&d.socket(), no_type).unwrap().kind(), "invalid");
    let huge_head = format!("GET /v1/system HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "y".repeat(100_000));
    if let Some(reply) = raw::send(&d.socket(), huge_head.as_bytes()) {
        assert_eq!(reply.status, 431);
    }
    let _ = raw::send(&d.socket(), b"\x16\x03\x01\x02\x00\x01\x00");
    let smuggled =
        b"POST /v1/volumes HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    if let Some(reply) = raw::send(&d.socket(), smuggled) {
        assert_eq!(reply.status, 400, "{reply:?}");
    }
    assert_eq!(d.client().system().await.unwrap().volumes, 0);
}

#[tokio::test]
async fn tokens_count_in_their_header_alone() {
    let d = Daemon::start_tls();
    let kind = |c: Client| async move { c.system().await.map(|_| "ok").unwrap_or_else(|p| p.kind.as_str()) };
    assert_eq!(kind(d.tls_client()).await, "ok");
    let wrong = Client::tls(&d.url(), "x".repeat(43).into(), Some(&d.ca())).unwrap();
    assert_eq!(kind(wrong).await, "unauthenticated");
    let almost = d.token()[1..].to_owned();
    let almost = Client::tls(&d.url(), almost.into(), Some(&d.ca())).unwrap();
    assert_eq!(kind(almost).await, "unauthenticated");

    let token = d.token();
    for (request, status) in [
        ("GET /v1/system HTTP/1.1".to_owned(), 401),
        (format!("GET /v1/system?token={token} HTTP/1.1"), 401),
        (format!("GET /v1/system?access_token={token} HTTP/1.1"), 401),
        ("GET /nope HTTP/1.1".to_owned(), 401),
        ("GET /metrics HTTP/1.1".to_owned(), 401),
        ("GET /v1/openapi.json HTTP/1.1".to_owned(), 401),
        ("GET /healthz HTTP/1.1".to_owned(), 200),
        ("GET /readyz HTTP/1.1".to_owned(), 200),
        (format!("GET /v1/system?access_token={token} HTTP/1.1\r\nAuthorization: Bearer {token}"), 400),
        (
            format!(
                "GET /v1/system HTTP/1.1\r\nAuthorization: Bearer {token}\r\nAuthorization: Bearer {token}"
            ),
            401,
        ),
        (format!("GET /v1/system HTTP/1.1\r\nAuthorization: Basic {token}"), 401),
        (format!("GET /v1/system HTTP/1.1\r\nauthorization: bearer {token}"), 200),
    ] {
        let reply = super::network::tls_request(&d, &request).await;
        assert_eq!(reply.status, status, "{}: {reply:?}", request.replace(&token, "TOKEN"));
        assert!(!String::from_utf8_lossy(&reply.body).contains(&token));
        if status == 401 {
            assert_eq!(reply.kind(), "unauthenticated");
            assert!(reply.head.contains("www-authenticate: bearer"), "{reply:?}");
        }
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(d.state().join("admin.token")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn bad_secrets_are_refused_and_not_repeated() {
    const SECRET: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh";
    let d = Daemon::start();
    let nqn = "nqn.2014-08.org.nvmexpress:uuid:0190c0de-0000-7000-8000-000000000001";
    let put = |path: &str, body: serde_json::Value| {
        raw::call(&d.socket(), "PUT", path, body.to_string().as_bytes())
    };
    let good = format!("DHHC-1:01:{SECRET}+KfiaR:");
    let path = "/v1/hosts/worker-1/authentication";
    assert_eq!(put(path, json!({"key": good})).kind(), "not_found");
    put("/v1/hosts/worker-1", json!({"nqn": nqn}));
    let table = [
        (json!({}), "key"),
        (json!({"key": ""}), "key"),
        (json!({"key": SECRET}), "key"),
        (json!({"key": good.replace("AAEC", "AAED")}), "key"),
        (json!({"key": good.replace(":01:", ":03:")}), "key"),
        (json!({"key": good.replace(":01:", ":17:")}), "key"),
        (json!({"key": good.repeat(8)}), "key"),
        (json!({"key": "x".repeat(300)}), "key"),
        (json!({"key": good, "controller_key": "DHHC-1:00:AAAA:"}), "controller_key"),
        (json!({"key": good, "controller_key": good}), "controller_key"),
        (json!({"key": good, "hash": "md5"}), "hash"),
        (json!({"key": good, "dh_group": "modp1024"}), "dh_group"),
        (json!({"key": good, "secret": "x"}), "secret"),
    ];
    for (body, field) in table {
        let reply = put(path, body.clone());
        assert_eq!(reply.kind(), "invalid", "{body}: {reply:?}");
        assert_eq!(reply.json()["field"], field, "{body}: {}", reply.json());
        assert!(!reply.json().to_string().contains(&SECRET[..20]), "{}", reply.json());
    }
    assert!(d.client().host(&"worker-1".parse().unwrap()).await.unwrap().authentication.is_none());
    let reply = put(path, json!({"key": good}));
    assert_eq!(reply.json()["authentication"]["state"], "required", "{reply:?}");
    assert!(!reply.json().to_string().contains(&SECRET[..20]), "{}", reply.json());
    let reply = put("/v1/volumes/x/attachments/worker-1?exclusive=perhaps", json!({}));
    assert_eq!(reply.kind(), "invalid", "{reply:?}");
}

#[tokio::test]
async fn bad_tls_keys_are_refused_and_not_repeated() {
    const SECRET: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh";
    let d = Daemon::start();
    let put = |path: &str, body: serde_json::Value| {
        raw::call(&d.socket(), "PUT", path, body.to_string().as_bytes())
    };
    let good = "NVMeTLSkey-1:01:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:";
    let path = "/v1/hosts/worker-1/tls";
    assert_eq!(put(path, json!({"key": good})).kind(), "not_found");
    put("/v1/hosts/worker-1", json!({"iqn": "iqn.1993-08.org.debian:01:a"}));
    assert_eq!(put(path, json!({"key": good})).kind(), "precondition");
    put(
        "/v1/hosts/worker-1",
        json!({"nqn": "nqn.2014-08.org.nvmexpress:uuid:0190c0de-0000-7000-8000-000000000001"}),
    );
    let table = [
        (json!({}), "key"),
        (json!({"key": ""}), "key"),
        (json!({"key": SECRET}), "key"),
        (json!({"key": good.replace("AAEC", "AAED")}), "key"),
        (json!({"key": good.replace(":01:", ":02:")}), "key"),
        (json!({"key": good.replace(":01:", ":03:")}), "key"),
        (json!({"key": good.replace("NVMeTLSkey-1", "DHHC-1")}), "key"),
        (json!({"key": "x".repeat(300)}), "key"),
        (json!({"key": good, "compat": "perhaps"}), "compat"),
        (json!({"key": good, "secret": "x"}), "secret"),
    ];
    for (body, field) in table {
        let reply = put(path, body.clone());
        assert_eq!(reply.kind(), "invalid", "{body}: {reply:?}");
        assert_eq!(reply.json()["field"], field, "{body}: {}", reply.json());
        assert!(!reply.json().to_string().contains(&SECRET[..20]), "{}", reply.json());
    }
    assert!(d.client().host(&"worker-1".parse().unwrap()).await.unwrap().tls.is_none());
    let reply = put(path, json!({"key": good}));
    assert_eq!(reply.json()["tls"]["state"], "required", "{reply:?}");
    assert!(!reply.json().to_string().contains(&SECRET[..20]), "{}", reply.json());
    // The default configuration has no portal with TLS, and serves such a host at no other.
    let pool = d.pool("tank").await;
    d.volume(&pool, "data").await;
    let refused = put("/v1/volumes/data/attachments/worker-1", json!({}));
    assert_eq!(refused.kind(), "unsupported", "{refused:?}");
    // Nobody is cut off for a host that can't come.
    put(
        "/v1/hosts/worker-2",
        json!({"nqn": "nqn.2014-08.org.nvmexpress:uuid:0190c0de-0000-7000-8000-000000000002"}),
    );
    put("/v1/volumes/data/attachments/worker-2", json!({}));
    let refused = put("/v1/volumes/data/attachments/worker-1?exclusive=true", json!({}));
    assert_eq!(refused.kind(), "unsupported", "{refused:?}");
    let hosts = d.client().volume(&"data".parse().unwrap()).await.unwrap().hosts;
    assert_eq!(hosts, ["worker-2".parse().unwrap()]);
}
