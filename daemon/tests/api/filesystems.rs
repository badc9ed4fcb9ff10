//! Volumes that are file systems over the API: asked for, refused, shown, not attached.

use orlop_api::{ErrorKind, FilesystemKind, VolumeCreate, VolumeKind, VolumeRef, VolumeUpdate};
use serde_json::json;

use super::daemon::{Daemon, ask};
use super::raw;

const SIZE: u64 = 320 << 20;

fn body(extra: serde_json::Value) -> Vec<u8> {
    let mut body = json!({"name": "a", "pool": "tank", "size": SIZE});
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    body.to_string().into_bytes()
}

#[tokio::test]
async fn bad_file_systems_are_refused_with_their_field() {
    let d = Daemon::start();
    d.pool("tank").await;
    for (bad, field) in [
        (json!({"kind": "directory"}), "kind"),
        (json!({"kind": 1}), "kind"),
        (json!({"kind": "filesystem", "filesystem": "btrfs"}), "filesystem"),
        (json!({"kind": "filesystem", "filesystem": true}), "filesystem"),
        (json!({"kind": "block", "filesystem": "ext4"}), "filesystem"),
        (json!({"filesystem": "ext4"}), "filesystem"),
        (json!({"kind": "filesystem", "size": 4096}), "size"),
        (json!({"kind": "filesystem", "filesystem": "xfs", "size": 200 << 20}), "size"),
    ] {
        let reply = raw::call(&d.socket(), "POST", "/v1/volumes", &body(bad.clone()));
        assert_eq!(reply.kind(), "invalid", "{bad}: {reply:?}");
        assert_eq!(reply.json()["field"], field, "{bad}: {}", reply.json());
    }
    assert_eq!(d.client().system().await.unwrap().volumes, 0);
}

#[tokio::test]
async fn a_file_system_is_made_shown_and_grown() {
    let mut d = Daemon::start();
    let pool = d.pool("tank").await;
    d.host("a").await;
    let client = d.client();
    let size = orlop_api::ByteSize(SIZE);
    let create = VolumeCreate { kind: Some(VolumeKind::Filesystem), size, ..ask(&pool, "data", 1) };
    let made = client.create_volume(&create).await.unwrap();
    assert_eq!((made.kind, made.filesystem), (VolumeKind::Filesystem, Some(FilesystemKind::Ext4)));
    let volume: VolumeRef = made.id.into();
    let xfs = VolumeCreate { filesystem: Some(FilesystemKind::Xfs), ..create.clone() };
    let p = client.create_volume(&xfs).await.unwrap_err();
    assert_eq!((p.kind, p.field.as_deref()), (ErrorKind::Conflict, Some("filesystem")));
    assert_eq!((p.have.as_deref(), p.want.as_deref()), (Some("ext4"), Some("xfs")));
    // It has an NQN alone.
    let p = client.attach(&volume, &"a".parse().unwrap()).await.unwrap_err();
    assert_eq!(p.kind, ErrorKind::Precondition, "{}", p.detail);

    let larger = VolumeUpdate::to_size(orlop_api::ByteSize(SIZE * 2));
    assert_eq!(client.update_volume(&volume, &larger).await.unwrap().size.0, SIZE * 2);
    drop(client);
    d.kill();
    d.again();
    let client = d.client();
    let kept = client.volume(&volume).await.unwrap();
    assert_eq!((kept.kind, kept.filesystem, kept.size.0), (made.kind, made.filesystem, SIZE * 2));
    let disk = client.create_volume(&ask(&pool, "disk", 4)).await.unwrap();
    assert_eq!((disk.kind, disk.filesystem), (VolumeKind::Block, None));
    let shown = raw::call(&d.socket(), "GET", "/v1/volumes/disk", b"").json();
    assert!(shown["kind"] == "block" && shown["filesystem"].is_null(), "{shown}");
    client.delete_volume(&volume).await.unwrap();
}

/// Hosts by their addresses, zones, who may write: over the wire, and over a restart.
#[tokio::test]
async fn hosts_and_zones_are_attached() {
    let mut d = Daemon::start();
    let pool = d.pool("tank").await;
    let client = d.client();
    let size = orlop_api::ByteSize(SIZE);
    let create = VolumeCreate { kind: Some(VolumeKind::Filesystem), size, ..ask(&pool, "data", 1) };
    let volume: VolumeRef = client.create_volume(&create).await.unwrap().id.into();
    let put = |path: &str, body: serde_json::Value| {
        raw::call(&d.socket(), "PUT", path, body.to_string().as_bytes())
    };
    assert_eq!(put("/v1/hosts/one", json!({"addresses": ["10.0.0.5"]})).status, 201);
    let lan = json!({"networks": ["10.1.0.0/16"], "read_only": true});
    assert_eq!(put("/v1/zones/lan", lan.clone()).status, 201);
    assert_eq!(put("/v1/zones/lan", lan).status, 200);
    for (path, body, kind, field) in [
        ("/v1/hosts/two", json!({}), "invalid", "nqn"),
        ("/v1/hosts/two", json!({"addresses": ["10.0.0.0/24"]}), "invalid", "addresses[0]"),
        ("/v1/hosts/two", json!({"addresses": ["::1"]}), "invalid", "addresses"),
        ("/v1/hosts/two", json!({"addresses": ["10.0.0.5"]}), "conflict", "addresses"),
        ("/v1/hosts/two", json!({"iqn": "iqn.2020-01.Com"}), "invalid", "iqn"),
        ("/v1/hosts/lan", json!({"addresses": ["10.0.0.6"]}), "conflict", "name"),
        ("/v1/zones/one", json!({"networks": ["10.0.0.0/8"]}), "conflict", "name"),
        ("/v1/zones/none", json!({"networks": []}), "invalid", "networks"),
        ("/v1/zones/none", json!({"networks": ["10.0.0.1/8"]}), "invalid", "networks[0]"),
        ("/v1/zones/none", json!({"networks": ["10.0.0.0/8"], "squash": "some"}), "invalid", "squash"),
        ("/v1/zones/none", json!({"networks": ["10.0.0.0/8"], "security": []}), "invalid", "security"),
        (
            "/v1/zones/none",
            json!({"networks": ["10.0.0.0/8"], "security": ["krb5p", "krb5p"]}),
            "invalid",
            "security",
        ),
        (
            "/v1/zones/none",
            json!({"networks": ["10.0.0.0/8"], "security": ["none"]}),
            "invalid",
            "security[0]",
        ),
        ("/v1/system/keytab", json!({"keytab": "BQIAAAAA"}), "invalid", "keytab"),
    ] {
        let reply = put(path, body.clone());
        assert_eq!(
            (reply.kind().as_str(), reply.json()["field"].as_str()),
            (kind, Some(field)),
            "{path} {body}"
        );
    }
    // Kerberos takes a keytab, and what it has of it is told to nobody.
    let proved = json!({"networks": ["10.2.0.0/16"], "security": ["krb5p", "krb5i"]});
    let refused = put("/v1/zones/proved", proved.clone());
    assert_eq!((refused.kind().as_str(), refused.status), ("unsupported", 501));
    let refused = put("/v1/zones/proved", json!({"networks": ["10.2.0.0/16"], "versions": ["4.2"]}));
    assert_eq!(refused.kind(), "unsupported");
    let key = "BQIAAAAjAAIAA0EuQgADbmZzAAdzdG9yYWdlAAAAAQAAAAACABIAAQc=";
    let kept = put("/v1/system/keytab", json!({"keytab": key}));
    assert_eq!((kept.status, kept.json()), (200, json!({"principals": ["nfs/storage@A.B"]})));
    let made = put("/v1/zones/proved", proved).json();
    assert_eq!(made["security"], json!(["krb5p", "krb5i"]));
    assert_eq!(client.delete_keytab().await.unwrap_err().kind, ErrorKind::Precondition);
    client.delete_zone(&"proved".parse().unwrap()).await.unwrap();
    client.delete_keytab().await.unwrap();
    let one = client.attach(&volume, &"one".parse().unwrap()).await.unwrap();
    assert!(!one.read_only && one.nfs().is_some_and(|n| n.squash == orlop_api::Squash::None));
    let zone = client.attach(&volume, &"lan".parse().unwrap()).await.unwrap();
    assert!(zone.read_only && zone.nfs().is_some_and(|n| n.squash == orlop_api::Squash::Root));
    let shown = raw::call(&d.socket(), "GET", "/v1/volumes/data/attachments", b"").json();
    assert!(shown["items"][1]["protocol"] == "nfs" && shown["items"][0]["read_only"] == true, "{shown}");
    drop(client);
    d.kill();
    d.again();
    let client = d.client();
    assert_eq!(client.attachment(&volume, &"lan".parse().unwrap()).await.unwrap(), zone);
    assert_eq!(client.all_zones().await.unwrap().len(), 1);
    assert_eq!(client.all_hosts().await.unwrap().len(), 1);
    let p = client.delete_zone(&"lan".parse().unwrap()).await.unwrap_err();
    assert_eq!(p.kind, ErrorKind::Precondition);
    client.detach(&volume, &"lan".parse().unwrap()).await.unwrap();
    client.delete_zone(&"lan".parse().unwrap()).await.unwrap();
}

/// A secret of CHAP is asked for, told by nobody, and refused where it is none.
#[tokio::test]
async fn a_secret_of_chap_is_taken_and_not_told() {
    let d = Daemon::start();
    let put = |path: &str, body: serde_json::Value| {
        raw::call(&d.socket(), "PUT", path, body.to_string().as_bytes())
    };
    let iqn = "iqn.1993-08.org.debian:01:a";
    assert_eq!(put("/v1/hosts/one", json!({"iqn": iqn})).status, 201);
    for length in [0, 11, 17, 300] {
        let secret = "s".repeat(length);
        let reply = put("/v1/hosts/one/chap", json!({"host": {"user": "one", "secret": secret}}));
        assert_eq!(
            (reply.kind().as_str(), reply.json()["field"].as_str()),
            ("invalid", Some("host.secret")),
            "{length}"
        );
        assert!(length == 0 || !String::from_utf8_lossy(&reply.body).contains(&secret));
    }
    let (mine, theirs) = ("secret-of-one", "secret-of-ours");
    let ask = json!({"host": {"user": "one", "secret": mine}, "target": {"user": "orlop", "secret": theirs}});
    let reply = put("/v1/hosts/one/chap", ask);
    let shown = raw::call(&d.socket(), "GET", "/v1/hosts/one", b"");
    for reply in [reply, shown] {
        assert_eq!(reply.json()["chap"], json!({"state": "required", "user": "one", "target_user": "orlop"}));
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        assert!(!text.contains(mine) && !text.contains(theirs), "{text}");
    }
    let same = json!({"host": {"user": "one", "secret": mine}, "target": {"user": "orlop", "secret": mine}});
    assert_eq!(put("/v1/hosts/one/chap", same).json()["field"], "target.secret");
    assert_eq!(raw::call(&d.socket(), "DELETE", "/v1/hosts/one/chap", b"").status, 204);
    assert!(raw::call(&d.socket(), "GET", "/v1/hosts/one", b"").json()["chap"].is_null());
}
