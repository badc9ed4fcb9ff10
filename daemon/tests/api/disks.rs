//! What is asked of pools' disks, where it is refused.

use serde_json::{Value, json};

use super::daemon::Daemon;
use super::raw;

#[tokio::test]
async fn layouts_and_disks_have_rules() {
    let d = Daemon::start();
    d.pool("tank").await;
    let zfs = |more: Value| {
        let mut all = json!({"name": "safe", "kind": "zfs", "disks": ["nosuch1", "nosuch2"]});
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    };
    let directory = json!({"name": "safe", "kind": "sim", "directory": "/tmp/x", "layout": "mirror"});
    for (body, field) in [
        (directory, "layout"),
        (json!({"name": "safe", "kind": "lvm", "disks": ["nosuch1"], "spares": ["nosuch2"]}), "spares"),
        (zfs(json!({"layout": "raid5"})), "layout"),
        (zfs(json!({"layout": "raid6"})), "layout"),
        (json!({"name": "safe", "kind": "lvm", "disks": ["a", "b", "c"], "layout": "raidz1"}), "layout"),
        (json!({"name": "safe", "kind": "lvm", "disks": ["a"], "layout": "mirror"}), "disks"),
        (
            json!({"name": "safe", "kind": "lvm", "disks": ["a", "b", "c", "d", "e"], "layout": "raid10"}),
            "disks",
        ),
        (
            json!({"name": "safe", "kind": "lvm", "disks": ["a", "b"], "layout": "mirror", "spares": ["b"]}),
            "disks",
        ),
        (json!({"name": "safe", "kind": "file", "disks": ["a", "b"]}), "disks"),
        (json!({"name": "safe", "kind": "file", "disks": ["a", "b"], "layout": "raid5"}), "disks"),
        (json!({"name": "safe", "kind": "file", "directory": "/x", "layout": "mirror"}), "layout"),
        (zfs(json!({"layout": "mirror", "disks": ["nosuch1"]})), "disks"),
        (zfs(json!({"layout": "raidz1"})), "disks"),
        (zfs(json!({"layout": "draid2", "disks": ["a", "b", "c"]})), "disks"),
        (zfs(json!({"spares": ["nosuch3"]})), "spares"),
        (zfs(json!({"layout": "mirror", "spares": ["nosuch1"]})), "disks"),
        (zfs(json!({"layout": "mirror", "spares": ["../x"]})), "spares"),
        (zfs(json!({"disks": ["-f", "nosuch2"]})), "disks"),
        (zfs(json!({"force": true})), "force"),
        (zfs(json!({"import": true, "layout": "mirror"})), "import"),
        (json!({"name": "safe", "kind": "lvm", "import": true, "force": true}), "force"),
        (zfs(json!({"guid": "123"})), "guid"),
        (zfs(json!({"import": true, "guid": "0"})), "guid"),
        (zfs(json!({"import": true, "guid": "+1"})), "guid"),
        (zfs(json!({"import": true, "guid": "18446744073709551616"})), "guid"),
        (zfs(json!({"import": true, "guid": "0x1f"})), "guid"),
        (zfs(json!({"import": true, "guid": 7})), "guid"),
        (json!({"name": "safe", "kind": "lvm", "import": true, "guid": "1"}), "guid"),
        (json!({"name": "safe", "kind": "file", "import": true}), "disks"),
    ] {
        let reply = raw::call(&d.socket(), "POST", "/v1/pools", body.to_string().as_bytes());
        let problem = reply.json();
        assert_eq!(
            (&problem["kind"], &problem["field"]),
            (&"invalid".into(), &field.into()),
            "{body}: {problem}"
        );
    }
    let refused = |method: &str, path: &str, body: Value| {
        let reply = raw::call(&d.socket(), method, path, body.to_string().as_bytes());
        let problem = reply.json();
        (problem["kind"].as_str().unwrap().to_string(), problem["field"].as_str().map(str::to_string))
    };
    let invalid = |field: &str| ("invalid".to_string(), Some(field.to_string()));
    assert_eq!(refused("POST", "/v1/pools/tank/disks", json!({"disks": []})), invalid("disks"));
    assert_eq!(refused("POST", "/v1/pools/tank/disks", json!({"disks": ["a b"]})), invalid("disks"));
    assert_eq!(
        refused("POST", "/v1/pools/tank/replace", json!({"disk": "", "with": "vdb"})),
        invalid("disk")
    );
    assert_eq!(
        refused("POST", "/v1/pools/tank/replace", json!({"disk": "vdb", "with": "/x"})),
        invalid("with")
    );
    assert_eq!(refused("POST", "/v1/pools/tank/replace", json!({"disk": "vdb"})), invalid("with"));
    // A simulated pool has no disks, and says so.
    for (path, body) in [
        ("disks", json!({"disks": ["vdb"]})),
        ("replace", json!({"disk": "vdb", "with": "vdc"})),
        ("scrub", Value::Null),
    ] {
        let path = format!("/v1/pools/tank/{path}");
        assert_eq!(refused("POST", &path, body.clone()), ("unsupported".to_string(), None), "{path}");
        let nowhere = path.replace("tank", "other");
        assert_eq!(refused("POST", &nowhere, body).0, "not_found", "{nowhere}");
    }
    assert_eq!(refused("DELETE", "/v1/pools/tank/scrub", Value::Null).0, "unsupported");
    // Nothing came of all that.
    let client = d.client();
    let pools = client.pools().await.unwrap();
    assert!(pools.len() == 1 && pools[0].health.is_none(), "{pools:?}");
    assert!(client.system().await.unwrap().alarms.is_empty());
}

#[tokio::test]
async fn wiping_a_disk_has_rules() {
    let d = Daemon::start();
    let ask = |disk: &str, body: &str| {
        let reply = raw::call(&d.socket(), "POST", &format!("/v1/disks/{disk}/wipe"), body.as_bytes());
        let problem = reply.json();
        let field = problem["field"].as_str().unwrap_or_default().to_string();
        (problem["kind"].as_str().unwrap().to_string(), field)
    };
    let is = |kind: &str, field: &str| (kind.to_string(), field.to_string());
    for body in ["", "{", "null", "7"] {
        assert_eq!(ask("sda", body).0, "invalid", "{body}");
    }
    assert_eq!(ask("sda", r#"{"serial":"x","force":true}"#), is("invalid", "force"));
    assert_eq!(ask("sda", r#"{"serial":7}"#), is("invalid", "serial"));
    assert_eq!(ask("sda", r#"{"size":-1}"#), is("invalid", "size"));
    for name in ["..", "sda%2fsdb", "-f", "a%20b", "%00", &"x".repeat(40)] {
        assert_ne!(ask(name, r#"{"serial":"x"}"#).0, "internal", "{name}");
    }
    assert_eq!(ask("nosuchdisk", r#"{"serial":"x"}"#).0, "not_found");
    // A simulation looks at the machine's disks, and would not wipe any of them even if it was the right one.
    for disk in d.client().disks().await.unwrap() {
        let body =
            serde_json::json!({"serial": disk.serial, "by_id": disk.by_id, "size": disk.size}).to_string();
        assert_eq!(ask(&disk.name, &body).0, "unsupported", "{disk:?}");
        let other = ask(&disk.name, r#"{"serial":"no disk has this","size":1}"#);
        assert_eq!(other, is("conflict", "serial"), "{disk:?}");
    }
}
