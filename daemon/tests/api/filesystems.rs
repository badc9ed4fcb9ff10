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
async fn a_file_system_is_made_shown_grown_and_not_attached() {
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
    let p = client.attach(&volume, &"a".parse().unwrap()).await.unwrap_err();
    assert_eq!(p.kind, ErrorKind::Unsupported, "{}", p.detail);

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
