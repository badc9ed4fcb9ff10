//! What hosts are known by and what they must prove: bad input, and what each of it is answered with. None of it changes
//! anything.

use serde_json::{Value, json};

use super::daemon::Daemon;
use super::raw::{self, Reply};

fn put(d: &Daemon, path: &str, body: &Value) -> Reply {
    raw::call(&d.socket(), "PUT", path, body.to_string().as_bytes())
}

fn post(d: &Daemon, body: &Value) -> Reply {
    raw::call(&d.socket(), "POST", "/v1/volumes", body.to_string().as_bytes())
}

/// All that a caller can see of hosts, volumes and who is attached.
fn seen(d: &Daemon) -> Vec<Vec<u8>> {
    let paths = ["/v1/hosts", "/v1/zones", "/v1/volumes", "/v1/system"];
    paths.map(|path| raw::call(&d.socket(), "GET", path, b"").body).into()
}

/// It is refused with this kind, and with the field that is at fault if one is.
fn refused(reply: &Reply, kind: &str, field: Option<&str>, what: &Value) {
    assert_eq!(reply.kind(), kind, "{what}: {reply:?}");
    assert_eq!(reply.json()["field"].as_str(), field, "{what}: {}", reply.json());
}

#[tokio::test]
async fn malformed_names_are_refused() {
    let d = Daemon::start();
    let long = |start: &str| format!("{start}.2014-08.org:{}", "x".repeat(224));
    let before = seen(&d);
    for (field, names) in [
        (
            "nqn",
            [
                "",
                "nqn",
                "nqn.",
                "iqn.2014-08.org:x",
                "nqn.2014-13.org:x",
                "nqn.2014-08.org",
                "nqn.2014-08.:x",
                "nqn.2014-08.org:",
                "nqn.2014-08.org:a/b",
                "nqn.2014-08.org:a b",
                "nqn.2014-08.org:\u{e9}",
                "nqn.2014-08.org:x\n",
                "nqn.2014-08.org:x\u{0}",
                " nqn.2014-08.org:x",
                &long("nqn"),
            ],
        ),
        (
            "iqn",
            [
                "",
                "iqn",
                "iqn.",
                "nqn.2014-08.org:x",
                "iqn.2014-13.org:x",
                "iqn.2014-8.org:x",
                "iqn.2014-08.:x",
                "iqn.2014-08.org:",
                "iqn.2014-08.org:a/b",
                "iqn.2014-08.Org:x",
                "iqn.2014-08.org:\u{e9}",
                "iqn.2014-08.org:x\n",
                "eui.0200",
                "naa.52004567ba64678g",
                &long("iqn"),
            ],
        ),
    ] {
        for name in names {
            let body = json!({ field: name });
            refused(&put(&d, "/v1/hosts/h", &body), "invalid", Some(field), &body);
        }
    }
    for (addresses, field) in [
        (json!(["10.0.0"]), "addresses[0]"),
        (json!(["host"]), "addresses[0]"),
        (json!(["10.0.0.0/24"]), "addresses[0]"),
        (json!(["0.0.0.0"]), "addresses"),
        (json!(["224.0.0.1"]), "addresses"),
        (json!(["127.0.0.1"]), "addresses"),
        (json!(["::ffff:10.0.0.1"]), "addresses"),
        (json!(["10.0.0.5", "10.0.0.5"]), "addresses"),
        (json!((0..17).map(|n| format!("10.0.0.{n}")).collect::<Vec<_>>()), "addresses"),
    ] {
        let body = json!({ "addresses": addresses });
        refused(&put(&d, "/v1/hosts/h", &body), "invalid", Some(field), &body);
    }
    refused(&put(&d, "/v1/hosts/h", &json!({})), "invalid", Some("nqn"), &json!({}));
    for networks in [
        json!([]),
        json!(["10.0.0.1/24"]),
        json!(["10.0.0.0/33"]),
        json!(["fd00::1/64"]),
        json!(["10.0.0.0/8", "10.1.0.0/16"]),
        json!(["10.0.0.0/8", "10.0.0.0/8"]),
    ] {
        let body = json!({ "networks": networks });
        let reply = put(&d, "/v1/zones/z", &body);
        assert_eq!(reply.kind(), "invalid", "{body}: {reply:?}");
        assert!(reply.json()["field"].as_str().unwrap().starts_with("networks"), "{body}: {}", reply.json());
    }
    assert_eq!(seen(&d), before, "something was changed");
}

#[tokio::test]
async fn what_is_one_hosts_is_no_other_hosts() {
    let d = Daemon::start();
    let nqn = "nqn.2014-08.org:one";
    let iqn = "iqn.2014-08.org:one";
    let one = json!({"nqn": nqn, "iqn": iqn, "addresses": ["10.0.0.5", "fd00::5"]});
    assert_eq!(put(&d, "/v1/hosts/one", &one).status, 201);
    assert_eq!(put(&d, "/v1/zones/lan", &json!({"networks": ["10.0.0.0/24"]})).status, 201);
    let before = seen(&d);
    for (body, field) in [
        (json!({"nqn": nqn}), "nqn"),
        (json!({"iqn": iqn}), "iqn"),
        (json!({"nqn": "nqn.2014-08.org:two", "iqn": iqn}), "iqn"),
        (json!({"addresses": ["10.0.0.5"]}), "addresses"),
        (json!({"addresses": ["10.0.0.6", "fd00:0::5"]}), "addresses"),
    ] {
        let reply = put(&d, "/v1/hosts/two", &body);
        refused(&reply, "conflict", Some(field), &body);
        let problem = reply.json();
        assert!(problem["detail"].as_str().unwrap().contains("host one"), "{problem}");
        assert!(problem["have"].is_string() && problem["want"].is_string(), "{problem}");
    }
    // A name is a host's or a zone's.
    refused(
        &put(&d, "/v1/zones/one", &json!({"networks": ["10.2.0.0/24"]})),
        "conflict",
        Some("name"),
        &json!("one"),
    );
    refused(
        &put(&d, "/v1/hosts/lan", &json!({"nqn": "nqn.2014-08.org:l"})),
        "conflict",
        Some("name"),
        &json!("lan"),
    );
    assert_eq!(seen(&d), before, "something was changed");
    // A host in a zone's network is one more host; the zone is about the others.
    assert_eq!(put(&d, "/v1/hosts/two", &json!({"addresses": ["10.0.0.6"]})).status, 201);
}

#[tokio::test]
async fn chap_secrets_that_not_all_take_are_refused_and_not_repeated() {
    const GOOD: &str = "a-good-secret";
    let d = Daemon::start();
    let path = "/v1/hosts/h/chap";
    let ask = |secret: &str| json!({"host": {"user": "h", "secret": secret}});
    assert_eq!(put(&d, path, &ask(GOOD)).kind(), "not_found");
    put(&d, "/v1/hosts/nvme", &json!({"nqn": "nqn.2014-08.org:nvme"}));
    let reply = put(&d, "/v1/hosts/nvme/chap", &ask(GOOD));
    assert_eq!(reply.kind(), "precondition", "a host without an iSCSI name: {reply:?}");
    put(&d, "/v1/hosts/h", &json!({"iqn": "iqn.2014-08.org:h"}));
    let before = seen(&d);
    let lengths = [0, 1, 11, 17, 300].map(|n| "kH7-".repeat(75)[..n].to_string());
    let odd =
        ["gehe1mnis-\u{e4}\u{f6}", "\u{1f511}\u{1f511}\u{1f511}\u{1f511}", "with blanks 12", "with\ttabs-12"];
    let odd = odd.map(String::from).into_iter().chain(["0x0123456789ab", "NULL-12345678"].map(String::from));
    for secret in lengths.into_iter().chain(odd) {
        let target =
            json!({"host": {"user": "h", "secret": GOOD}, "target": {"user": "t", "secret": secret}});
        for (body, field) in [(ask(&secret), "host.secret"), (target, "target.secret")] {
            let reply = put(&d, path, &body);
            refused(&reply, "invalid", Some(field), &body);
            let told = reply.json().to_string();
            assert!(secret.len() < 8 || !told.contains(&secret), "a secret is repeated: {told}");
            assert!(!told.contains(GOOD), "a secret is repeated: {told}");
        }
    }
    let user = |user: &str| json!({"host": {"user": user, "secret": GOOD}});
    for (body, field) in [
        (user(""), "host.user"),
        (user(&"u".repeat(224)), "host.user"),
        (user("a b"), "host.user"),
        (user("NULL"), "host.user"),
        (
            json!({"host": {"user": "h", "secret": GOOD}, "target": {"user": "t", "secret": GOOD}}),
            "target.secret",
        ),
        (json!({}), "host"),
    ] {
        refused(&put(&d, path, &body), "invalid", Some(field), &body);
    }
    assert_eq!(seen(&d), before, "something was changed");
    for length in [12, 16] {
        let reply = put(&d, path, &ask(&"kH7-".repeat(4)[..length]));
        assert_eq!(reply.json()["chap"]["state"], "required", "{length}: {reply:?}");
    }
}

#[tokio::test]
async fn a_protocol_that_does_not_fit_is_refused() {
    let d = Daemon::start();
    d.pool("tank").await;
    let size = 320u64 << 20;
    let all = json!({"nqn": "nqn.2014-08.org:all", "iqn": "iqn.2014-08.org:all", "addresses": ["10.0.0.5"]});
    put(&d, "/v1/hosts/all", &all);
    put(&d, "/v1/hosts/nvme", &json!({"nqn": "nqn.2014-08.org:nvme"}));
    put(&d, "/v1/hosts/iscsi", &json!({"iqn": "iqn.2014-08.org:iscsi"}));
    put(&d, "/v1/hosts/nfs", &json!({"addresses": ["10.0.0.6"]}));
    put(&d, "/v1/zones/lan", &json!({"networks": ["10.1.0.0/24"]}));
    for body in [
        json!({"name": "nvme", "pool": "tank", "size": size}),
        json!({"name": "iscsi", "pool": "tank", "size": size, "protocol": "iscsi"}),
        json!({"name": "nfs", "pool": "tank", "size": size, "kind": "filesystem"}),
    ] {
        assert_eq!(post(&d, &body).status, 201, "{body}");
    }
    let before = seen(&d);
    for (kind, protocol) in
        [("block", "nfs"), ("filesystem", "iscsi"), ("filesystem", "nvme"), ("block", "ftp")]
    {
        let body = json!({"name": "x", "pool": "tank", "size": size, "kind": kind, "protocol": protocol});
        refused(&post(&d, &body), "invalid", Some("protocol"), &body);
    }
    // It is for ever what it was made as.
    let other = json!({"name": "nvme", "pool": "tank", "size": size, "protocol": "iscsi"});
    refused(&post(&d, &other), "conflict", Some("protocol"), &other);
    let other = json!({"protocol": "iscsi"}).to_string();
    let reply = raw::call(&d.socket(), "PATCH", "/v1/volumes/nvme", other.as_bytes());
    refused(&reply, "invalid", Some("protocol"), &json!(other));
    let attach =
        |volume: &str, host: &str| put(&d, &format!("/v1/volumes/{volume}/attachments/{host}"), &json!({}));
    for volume in ["nvme", "iscsi", "nfs"] {
        for host in ["nvme", "iscsi", "nfs"].into_iter().filter(|host| *host != volume) {
            refused(&attach(volume, host), "precondition", None, &json!([volume, host]));
        }
        if volume != "nfs" {
            refused(&attach(volume, "lan"), "unsupported", None, &json!([volume, "lan"]));
        }
    }
    assert_eq!(seen(&d), before, "something was changed");
    for volume in ["nvme", "iscsi", "nfs"] {
        assert_eq!(attach(volume, "all").status, 201, "{volume}");
    }
    // Attached by all three, it can't be forgotten, nor known by something else.
    let before = seen(&d);
    let gone = raw::call(&d.socket(), "DELETE", "/v1/hosts/all", b"");
    assert_eq!(gone.kind(), "precondition", "{gone:?}");
    assert_eq!(gone.json()["dependants"].as_array().unwrap().len(), 3, "{}", gone.json());
    for (changed, value) in [
        ("nqn", json!("nqn.2014-08.org:new")),
        ("iqn", json!("iqn.2014-08.org:new")),
        ("addresses", json!(["10.0.0.9"])),
    ] {
        let mut body = all.clone();
        body[changed] = value;
        let reply = put(&d, "/v1/hosts/all", &body);
        assert_eq!(reply.kind(), "precondition", "{changed}: {reply:?}");
        assert_eq!(reply.json()["dependants"].as_array().unwrap().len(), 1, "{}", reply.json());
    }
    assert_eq!(seen(&d), before, "something was changed");
}
