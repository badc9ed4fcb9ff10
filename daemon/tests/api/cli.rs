//! The command line against the daemon.

use std::process::{Command, Output};

use serde_json::Value;

use super::daemon::Daemon;

fn orlop(d: &Daemon, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_orlop"))
        .args(line.split_whitespace())
        .env("ORLOP_SOCKET", d.socket())
        .env_remove("ORLOP_URL")
        .output()
        .unwrap()
}

fn good(d: &Daemon, line: &str) -> String {
    let out = orlop(d, line);
    assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn json(d: &Daemon, line: &str) -> Value {
    let text = good(d, &format!("{line} -o json"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{line}: {e}: {text}"))
}

fn bad(d: &Daemon, line: &str) -> (i32, String) {
    let out = orlop(d, line);
    assert!(out.stdout.is_empty(), "{line}");
    (out.status.code().unwrap(), String::from_utf8(out.stderr).unwrap())
}

/// What a simulated pool can't do is said by name, and no key is said at all.
#[tokio::test(flavor = "multi_thread")]
async fn keys_are_read_from_files_and_not_repeated() {
    let d = Daemon::start();
    d.pool("tank").await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key");
    let key = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    std::fs::write(&file, format!("{key}\n")).unwrap();
    let file = file.display();
    let (code, text) = bad(&d, &format!("volume create x --pool tank --size 1M --encrypt --key-file {file}"));
    assert!(code == 11 && text.contains("field: encryption"), "{text}");
    good(&d, "volume create plain --pool tank --size 1M");
    let (code, text) = bad(&d, &format!("volume unlock plain --key-file {file}"));
    assert!(code == 9 && text.contains("is not encrypted") && !text.contains(&key[2..]), "{text}");
    assert_eq!(bad(&d, "volume key plain").0, 9);
    for unfit in [&key[1..], "no key", "", &"0".repeat(64)] {
        let other = dir.path().join("other");
        std::fs::write(&other, unfit).unwrap();
        let (code, text) = bad(&d, &format!("volume unlock plain --key-file {}", other.display()));
        assert!(code == 3 && (unfit.len() < 8 || !text.contains(unfit)), "{text}");
    }
    assert_eq!(bad(&d, "volume unlock plain --key-file /nowhere/at/all").0, 3);
    // A key that is not kept must be given, and one that is given is for an encrypted volume.
    assert_eq!(bad(&d, "volume create x --pool tank --size 1M --encrypt --manual-unlock").0, 2);
    assert_eq!(bad(&d, &format!("volume create x --pool tank --size 1M --key-file {file}")).0, 2);
    assert_eq!(json(&d, "volume list")["items"].as_array().map(Vec::len), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_from_making_to_deleting() {
    let d = Daemon::start();
    let directory = d.dir.path().join("pool");
    std::fs::create_dir(&directory).unwrap();
    good(&d, &format!("pool create tank --kind sim --directory {}", directory.display()));
    assert_eq!(json(&d, "pool list")["items"][0]["name"], "tank");
    let made = json(&d, "volume create data --pool tank --size 64M");
    assert_eq!(made["size"], 64 << 20);
    assert_eq!(json(&d, "volume create data --pool tank --size 64M")["id"], made["id"]);
    let listed = good(&d, "volume list");
    assert!(listed.contains("64 MiB") && listed.contains("data") && listed.starts_with("NAME"), "{listed}");
    assert_eq!(json(&d, "volume grow data --size 128M")["size"], 128 << 20);

    good(&d, "host put worker-1 --nqn nqn.2014-08.org.nvmexpress:w1");
    let attached = good(&d, "attach data worker-1");
    assert!(attached.contains("nvme connect -t tcp -a "), "{attached}");
    assert!(attached.contains("-q nqn.2014-08.org.nvmexpress:w1"), "{attached}");
    assert_eq!(json(&d, "volume get data")["hosts"][0], "worker-1");

    let (code, text) = bad(&d, "volume delete data");
    assert_eq!(code, 9);
    assert!(text.starts_with("orlop: ") && text.contains("dependant: "), "{text}");
    let (code, text) = bad(&d, "volume create data --pool tank --size 256M");
    assert_eq!(code, 7);
    for line in ["field: size", "have: ", "want: "] {
        assert!(text.contains(line), "{text}");
    }
    assert_eq!(bad(&d, "volume get none").0, 6);
    assert_eq!(bad(&d, "volume create x --pool tank --size 10X").0, 2);
    assert_eq!(bad(&d, "volume create x --pool tank --size 1").0, 3);
    assert_eq!(bad(&d, "nonsense").0, 2);

    // Snapshots and what is made from them.
    let taken = json(&d, "snapshot create before --volume data");
    assert_eq!(taken["volume"], made["id"]);
    assert!(good(&d, "snapshot list --volume data").contains("before"));
    assert_eq!(json(&d, "volume create clone --from-snapshot before")["size"], 128 << 20);
    let copied = json(&d, "volume create copy --from-volume data --size 256M --copy");
    assert_eq!((&copied["state"], &copied["size"]), (&"ready".into(), &(256 << 20).into()));
    assert!(good(&d, "volume get copy").contains("copied from snapshot"));
    assert_eq!(json(&d, "snapshot create both --volume data --volume clone")["items"][1]["name"], "both-2");
    assert_eq!(bad(&d, "snapshot create x").0, 2);
    assert_eq!(bad(&d, "volume create x --pool tank").0, 2);
    assert_eq!(bad(&d, "volume create x --from-snapshot before --from-volume data").0, 2);
    assert_eq!(bad(&d, "volume create x --from-snapshot none").0, 6);
    good(&d, "detach data worker-1");
    let (code, text) = bad(&d, "volume delete data");
    assert!(code == 9 && text.contains("dependant: snapshot before"), "{code} {text}");
    assert!(good(&d, "volume delete data --when-unused").contains("goes when nothing depends on it"));
    for name in ["before", "both-1", "both-2"] {
        good(&d, &format!("snapshot delete {name}"));
    }
    good(&d, "volume delete clone");
    good(&d, "volume delete copy");
    for _ in 0..500 {
        if good(&d, "volume list").lines().count() == 1 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    json(&d, "volume create data --pool tank --size 64M");
    good(&d, "attach data worker-1");

    good(&d, "detach data worker-1");
    assert_eq!(bad(&d, "detach data worker-1").0, 6);
    good(&d, "host delete worker-1");
    good(&d, "volume delete data");
    good(&d, "pool delete tank");
    assert!(good(&d, "system").contains("simulated"));
    assert!(good(&d, "completions bash").contains("_orlop"));
    assert_eq!(good(&d, "volume list").lines().count(), 1);
    assert!(good(&d, "disk list").lines().next().unwrap().contains("HEALTH"));
    let targets = good(&d, "target list");
    assert!(
        targets.lines().any(|l| l.starts_with("iscsi     lio     available  0.0.0.0:3260 ")),
        "{targets}"
    );
    assert_eq!(json(&d, "target list")["items"].as_array().unwrap().len(), 3);
    assert_eq!(bad(&d, "pool import other --kind lvm --guid 12").0, 3);
    assert_eq!(bad(&d, "pool import other --kind zfs --guid twelve").0, 3);
    assert_eq!(bad(&d, "disk wipe nosuchdisk").0, 2);
    assert_eq!(bad(&d, "disk wipe nosuchdisk --pool tank").0, 2);
    assert_eq!(bad(&d, "disk wipe ../x --yes-destroy-serial S").0, 2);
    assert_eq!(bad(&d, "disk wipe nosuchdisk --yes-destroy-serial S").0, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_configuration() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("orlopd.toml"), "").unwrap();
    let d = Daemon::start_in(dir);
    assert_eq!(good(&d, "system reload"), "nothing changed\n");
    d.configure("[limits]\nrequests_per_second = 5000\npool_threads = 2\n");
    let text = good(&d, "system reload");
    let rows: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["KEY", "FROM", "TO", "APPLIES"]);
    assert_eq!(rows[1], ["limits.requests_per_second", "-", "5000", "now"]);
    assert_eq!(rows[2], ["limits.pool_threads", "8", "2", "after", "a", "restart"]);
    assert_eq!(json(&d, "system reload")["after_restart"][0]["key"], "limits.pool_threads");
    d.configure("[limits]\npool_threads = 0\n");
    let (code, text) = bad(&d, "system reload");
    assert!(code == 9 && text.contains("orlopd.toml:2: limits.pool_threads must be 1 to 64"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn properties_of_volumes() {
    let d = Daemon::start();
    d.pool("tank").await;
    let create =
        "volume create db --pool tank --size 64M --property compression=zstd --property block_size=16K";
    let made = json(&d, create);
    assert_eq!(made["properties"], serde_json::json!({"compression": "zstd", "block_size": 16384}));
    assert_eq!(json(&d, create)["id"], made["id"]);
    let (code, text) = bad(&d, "volume create db --pool tank --size 64M --property compression=lz4");
    assert!(code == 7 && text.contains("field: properties.compression"), "{code} {text}");

    let set = json(&d, "volume set db --property logbias=throughput --property compression=off --thick");
    assert_eq!((&set["properties"]["compression"], &set["provisioning"]), (&"off".into(), &"thick".into()));
    assert_eq!(json(&d, "volume set db --thin")["provisioning"], "thin");
    let shown = good(&d, "volume get db");
    for line in ["compression: off", "block_size:  16K", "logbias:     throughput"] {
        assert!(shown.lines().any(|l| l == line), "{line}: {shown}");
    }
    assert!(shown.ends_with("default:     dedup, checksum, sync\n"), "{shown}");

    for (line, why) in [
        ("volume set db --property compression", "NAME=VALUE"),
        ("volume set db --property compression=lz5", "zstd-19"),
        ("volume set db --property sync=disabled", "durable"),
        ("volume set db --property recordsize=1M", "block_size"),
        ("volume set db", "--property"),
        ("volume set db --thick --thin", "--thin"),
        ("volume create x --pool tank --size 1M --property block_size=3K", "power of two"),
    ] {
        let (code, text) = bad(&d, line);
        assert!(code == 2 && text.contains(why), "{line}: {code} {text}");
    }
    let (code, text) = bad(&d, "volume set db --property block_size=8K");
    assert!(code == 11 && text.contains("field: properties.block_size"), "{code} {text}");
    assert!(good(&d, "completions bash").contains("compression=zstd"));
}

#[tokio::test(flavor = "multi_thread")]
async fn orphans_from_listing_to_removing() {
    let d = Daemon::start();
    d.pool("tank").await;
    assert_eq!(good(&d, "orphan list").lines().count(), 1);
    let images = d.dir.path().join("pool-tank/volumes");
    std::fs::write(images.join("vm.raw"), vec![1; 8192]).unwrap();
    std::fs::write(images.join("0190c0de-1234-7abc-8def-0123456789ab.json.tmp"), "").unwrap();
    let text = good(&d, "orphan list");
    assert!(text.starts_with("ID ") && text.lines().count() == 3, "{text}");
    let all = json(&d, "orphan list")["items"].clone();
    let (foreign, leftover) = (all[0]["id"].as_str().unwrap(), all[1]["id"].as_str().unwrap());
    assert_eq!((&all[0]["kind"], &all[1]["kind"]), (&"foreign".into(), &"leftover".into()));
    assert_eq!(bad(&d, &format!("orphan remove {foreign}")).0, 9);
    assert!(good(&d, &format!("orphan remove {leftover}")).contains("is removed"));
    assert_eq!(bad(&d, &format!("orphan remove {leftover}")).0, 6);
    assert_eq!(json(&d, &format!("orphan adopt {foreign} --name data"))["size"], 8192);
    assert!(good(&d, "volume list").contains("data"));
    assert_eq!(good(&d, "orphan list").lines().count(), 1);
    assert!(good(&d, "completions bash").contains("orlop__subcmd__orphan"));
}

#[tokio::test(flavor = "multi_thread")]
async fn over_the_network_with_a_token_file() {
    let d = Daemon::start_tls();
    let call = |token: &std::path::Path| {
        Command::new(env!("CARGO_BIN_EXE_orlop"))
            .args(["system", "-o", "json"])
            .env("ORLOP_URL", d.url())
            .env("ORLOP_CA", d.state().join("tls/cert.pem"))
            .env("ORLOP_TOKEN_FILE", token)
            .output()
            .unwrap()
    };
    assert!(call(&d.state().join("admin.token")).status.success());
    let wrong = d.dir.path().join("wrong");
    std::fs::write(&wrong, "x".repeat(43)).unwrap();
    let refused = call(&wrong);
    assert_eq!(refused.status.code(), Some(4), "{}", String::from_utf8_lossy(&refused.stderr));
}

#[test]
fn no_daemon_is_unavailable() {
    let out = Command::new(env!("CARGO_BIN_EXE_orlop"))
        .args(["--socket", "/nonexistent/orlopd.sock", "system"])
        .env_remove("ORLOP_URL")
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(12));
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(text.starts_with("orlop: the daemon cannot be reached"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_is_asked_for_by_name_or_not() {
    let d = Daemon::start();
    d.pool("tank").await;
    let made = json(&d, "volume create data --pool tank --size 320M --filesystem");
    assert_eq!((made["kind"].as_str(), made["filesystem"].as_str()), (Some("filesystem"), Some("ext4")));
    let xfs = json(&d, "volume create more --pool tank --size 320M --filesystem xfs");
    assert_eq!(xfs["filesystem"], "xfs");
    let first = json(&d, "volume create --filesystem=zfs --pool tank --size 320M first");
    assert_eq!(first["filesystem"], "zfs");
    assert_eq!(json(&d, "volume create clone --from-volume more")["filesystem"], "xfs");
    let (code, text) = bad(&d, "volume create data --pool tank --size 320M --filesystem xfs");
    assert!(code == 7 && text.contains("field: filesystem") && text.contains("have: ext4"), "{text}");
    assert_eq!(json(&d, "volume create copy --from-volume first --copy")["filesystem"], "zfs");
    assert_eq!(bad(&d, "volume create x --pool tank --size 320M --filesystem btrfs").0, 2);
    assert_eq!(bad(&d, "volume create x --pool tank --size 1M --filesystem xfs").0, 3);
    let listed = good(&d, "volume list");
    assert!(listed.contains(" KIND ") && listed.contains(" xfs ") && listed.contains(" ext4 "), "{listed}");
    let one = good(&d, "volume get more");
    assert!(one.lines().any(|l| l == "kind:        xfs"), "{one}");
    good(&d, "host put worker-1 --nqn nqn.2014-08.org.nvmexpress:w1");
    let (code, text) = bad(&d, "attach data worker-1");
    assert!(code == 9 && text.contains("has not an address"), "{text}");
    good(&d, "host put worker-1 --nqn nqn.2014-08.org.nvmexpress:w1 --address 10.0.0.5");
    let text = good(&d, "attach data worker-1 --read-only");
    assert!(text.contains("mount -t nfs4 -o ro ") && text.contains(":/volumes/"), "{text}");
    assert_eq!(bad(&d, "host put worker-2").0, 2);
    assert_eq!(bad(&d, "zone put lan --network 10.0.0.1/24").0, 2);
    good(&d, "zone put lan --network 10.1.0.0/16 --network fd00:1::/64 --squash all");
    assert_eq!(json(&d, "attach more lan")["squash"], "all");
    let zones = good(&d, "zone list");
    assert!(zones.contains("10.1.0.0/16, fd00:1::/64") && zones.contains("SQUASH"), "{zones}");
    let (code, text) = bad(&d, "zone put safe --network 10.2.0.0/16 --security krb5p:krb5i");
    assert!(code == 11 && text.contains("no keytab"), "{code} {text}");
    assert_eq!(bad(&d, "zone put safe --network 10.2.0.0/16 --security krb6").0, 2);
    let key = [
        &b"\x05\x02\0\0\0\x23\0\x02\0\x03A.B\0\x03nfs\0\x07storage"[..],
        b"\0\0\0\x01\0\0\0\0\x02\0\x12\0\x01\x07",
    ];
    let file = d.dir.path().join("storage.keytab");
    std::fs::write(&file, key.concat()).unwrap();
    let kept = good(&d, &format!("system keytab --file {}", file.display()));
    assert!(kept.contains("nfs/storage@A.B"), "{kept}");
    good(&d, "zone put safe --network 10.2.0.0/16 --security krb5p:krb5i");
    let text = good(&d, "attach more safe");
    assert!(text.contains("mount -t nfs4 -o sec=krb5p <") && text.contains("krb5p:krb5i"), "{text}");
    good(&d, "detach more safe");
    good(&d, "zone delete safe");
    good(&d, "system keytab --none");
    let scsi = json(&d, "volume create scsi --pool tank --size 1M --protocol iscsi");
    assert!(scsi["iqn"].as_str().is_some_and(|n| n.starts_with("iqn.")) && scsi["nqn"].is_null(), "{scsi}");
}
