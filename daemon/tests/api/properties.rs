//! Properties of volumes over the API: given, refused, shown, changed, kept over a kill.

use orlop_api::client::Client;
use orlop_api::{ErrorKind, Properties, Provisioning, VolumeCreate, VolumeRef, VolumeUpdate};
use serde_json::{Value, json};

use super::daemon::{Daemon, ask};
use super::raw;

fn properties(value: Value) -> Properties {
    serde_json::from_value(value).unwrap()
}

async fn changed(client: &Client, volume: &VolumeRef, value: Value) -> Properties {
    let ask = VolumeUpdate { properties: properties(value), ..VolumeUpdate::default() };
    client.update_volume(volume, &ask).await.unwrap().properties
}

#[tokio::test]
async fn bad_properties_are_refused_with_their_field() {
    let d = Daemon::start();
    let pool = d.pool("tank").await;
    d.volume(&pool, "there").await;
    let table = [
        (json!({"compression": "lz5"}), "properties.compression", "zstd-19"),
        (json!({"compression": "zstd-20"}), "properties.compression", "zstd-19"),
        (json!({"compression": "gzip-0"}), "properties.compression", "gzip-9"),
        (json!({"compression": null}), "properties.compression", "null"),
        (json!({"compression": 1}), "properties.compression", "string"),
        (json!({"dedup": "yes"}), "properties.dedup", "verify"),
        (json!({"block_size": 5000}), "properties.block_size", "power of two"),
        (json!({"block_size": 2048}), "properties.block_size", "power of two"),
        (json!({"block_size": 1 << 20}), "properties.block_size", "power of two"),
        (json!({"block_size": "16K"}), "properties.block_size", "u64"),
        (json!({"checksum": "off"}), "properties.checksum", "can rot unseen"),
        (json!({"checksum": "noparity"}), "properties.checksum", "can rot unseen"),
        (json!({"logbias": "both"}), "properties.logbias", "throughput"),
        (json!({"sync": "standard"}), "properties.sync", "acknowledged when it is durable"),
        (json!({"sync": "disabled"}), "properties.sync", "acknowledged when it is durable"),
        (json!({"recordsize": 4096}), "recordsize", "unknown"),
        (json!("compression=lz4"), "properties", "Properties"),
    ];
    for (bad, field, why) in table {
        let create = json!({"name": "a", "pool": "tank", "size": pool.granularity.0 * 64, "properties": bad});
        let update = json!({"properties": bad});
        for (method, path, body) in [("POST", "/v1/volumes", create), ("PATCH", "/v1/volumes/there", update)]
        {
            let reply = raw::call(&d.socket(), method, path, body.to_string().as_bytes());
            assert_eq!(reply.kind(), "invalid", "{body}: {reply:?}");
            assert_eq!(reply.json()["field"], field, "{body}: {}", reply.json());
            assert!(reply.json()["detail"].as_str().unwrap().contains(why), "{body}: {}", reply.json());
        }
    }
    for nothing in ["{}", "[]", r#"{"properties":{}}"#, r#"{"size":null}"#] {
        let reply = raw::call(&d.socket(), "PATCH", "/v1/volumes/there", nothing.as_bytes());
        assert_eq!(reply.kind(), "invalid", "{nothing}: {reply:?}");
    }
    assert_eq!(d.client().system().await.unwrap().volumes, 1);
}

#[tokio::test]
async fn properties_are_given_changed_and_kept() {
    let mut d = Daemon::start();
    let pool = d.pool("tank").await;
    let given = properties(json!({"compression": "zstd-9", "block_size": 65536}));
    let create = VolumeCreate { properties: given, ..ask(&pool, "data", 64) };
    let client = d.client();
    let made = client.create_volume(&create).await.unwrap();
    assert_eq!(made.properties, given);
    assert_eq!(client.create_volume(&create).await.unwrap().id, made.id);
    let other = VolumeCreate { properties: properties(json!({"block_size": 65536})), ..create.clone() };
    let p = client.create_volume(&other).await.unwrap_err();
    assert_eq!((p.kind, p.field.as_deref()), (ErrorKind::Conflict, Some("properties.compression")));
    assert_eq!((p.have.as_deref(), p.want.as_deref()), (Some("zstd-9"), Some("the pool's default")));

    let volume: VolumeRef = made.id.into();
    let now = changed(&client, &volume, json!({"logbias": "throughput", "sync": "always"})).await;
    assert_eq!(
        serde_json::to_value(now).unwrap(),
        json!({"compression": "zstd-9", "block_size": 65536, "logbias": "throughput", "sync": "always"})
    );
    let thick = VolumeUpdate { provisioning: Some(Provisioning::Thick), ..VolumeUpdate::default() };
    assert_eq!(client.update_volume(&volume, &thick).await.unwrap().provisioning, Provisioning::Thick);
    let reply =
        raw::call(&d.socket(), "PATCH", "/v1/volumes/data", br#"{"properties":{"block_size":16384}}"#);
    assert_eq!((reply.status, reply.kind().as_str()), (501, "unsupported"));
    assert_eq!(reply.json()["field"], "properties.block_size");
    // A clone has the blocks of its source and nothing else of it.
    let clone = json!({"name": "clone", "pool": "tank", "size": made.size, "source": {"volume": "data"}});
    let reply = raw::call(&d.socket(), "POST", "/v1/volumes", clone.to_string().as_bytes());
    assert_eq!((reply.status, &reply.json()["properties"]), (201, &json!({"block_size": 65536})));

    let before = client.volume(&volume).await.unwrap();
    d.kill();
    d.again();
    assert_eq!(d.client().volume(&volume).await.unwrap(), before);
    let bare = d.volume(&pool, "bare").await;
    let reply = raw::call(&d.socket(), "GET", &format!("/v1/volumes/{}", bare.id), b"");
    assert_eq!(reply.json()["properties"], json!({}), "those of the pool's default are not said");
}
