//! Backup and restore, by the command line and the client.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use orlop_api::{ErrorKind, HostPut};

use super::daemon::Daemon;

const KEY: &str = "DHHC-1:00:AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyAl7OaH:";

fn orlop(d: &Daemon, args: &[&str]) -> (bool, String) {
    let run = Command::new(env!("CARGO_BIN_EXE_orlop"))
        .arg("--socket")
        .arg(d.socket())
        .args(args)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
    (run.status.success(), text)
}

fn lose(d: &Daemon, names: &[&str]) {
    for name in names {
        let path = d.state().join(name);
        let _ = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    }
}

fn backup(d: &Daemon, file: &Path) {
    let (done, said) = orlop(d, &["system", "backup", file.to_str().unwrap()]);
    assert!(done && said.contains("secrets"), "{said}");
    assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_new_state_disk_gets_back_what_labels_agree_with() {
    let mut d = Daemon::start();
    let pool = d.pool("tank").await;
    let volume = d.volume(&pool, "data").await;
    let (one, two) = (d.host("one").await, d.host("two").await);
    for host in [&one, &two] {
        d.client().attach(&volume.id.into(), &host.name).await.unwrap();
    }
    let file = d.dir.path().join("backup");
    backup(&d, &file);
    let (again, said) = orlop(&d, &["system", "backup", file.to_str().unwrap()]);
    assert!(!again && said.contains("exists"), "a file that is there is not replaced: {said}");
    // Since then one was cut off, and one was let in.
    d.client().detach(&volume.id.into(), &two.name).await.unwrap();
    let three = d.host("three").await;
    d.client().attach(&volume.id.into(), &three.name).await.unwrap();
    assert!(d.stop().success());
    lose(&d, &["journal", "journal.seen", "pools.json"]);
    d.again();
    assert!(d.client().pools().await.unwrap().is_empty());

    let text = std::fs::read(&file).unwrap();
    let refused = d.client().restore(text.clone(), false).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Precondition, "{refused:?}");
    let mut bad = text.clone();
    bad[200] ^= 1;
    let refused = d.client().restore(bad, true).await.unwrap_err();
    assert!(refused.kind == ErrorKind::Invalid && refused.detail.contains("damaged"), "{refused:?}");
    let restored = d.client().restore(text.clone(), true).await.unwrap();
    assert_eq!((restored.pools.len(), restored.hosts.len(), restored.attachments), (1, 2, 1), "{restored:?}");
    assert!(restored.closed.len() == 1 && restored.closed[0].contains("three"), "{restored:?}");
    let served = d.client().attachments(&volume.id.into()).await.unwrap();
    assert_eq!(served.iter().map(|a| &a.host).collect::<Vec<_>>(), [&one.name]);
    // The same again has nothing to do.
    let restored = d.client().restore(text, true).await.unwrap();
    assert_eq!((restored.pools.len(), restored.hosts.len(), restored.attachments), (0, 0, 0), "{restored:?}");
    assert!(d.stop().success());
    d.again();
    assert_eq!(d.client().attachments(&volume.id.into()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_lost_secret_comes_back_and_a_new_one_stays() {
    let mut d = Daemon::start();
    let pool = d.pool("tank").await;
    let volume = d.volume(&pool, "data").await;
    let host = d.host("one").await;
    let ask = serde_json::from_value(serde_json::json!({ "key": KEY })).unwrap();
    d.client().authenticate_host(&host.name, &ask).await.unwrap();
    d.client().attach(&volume.id.into(), &host.name).await.unwrap();
    let text = d.client().backup().await.unwrap();
    assert!(d.stop().success());
    lose(&d, &["journal"]);
    d.again();
    let lost = |alarms: &[orlop_api::Alarm]| alarms.iter().any(|a| a.subject == "host/one/secret");
    assert!(lost(&d.client().system().await.unwrap().alarms));
    let file = d.dir.path().join("backup");
    std::fs::write(&file, &text).unwrap();
    let (done, said) = orlop(&d, &["system", "restore", file.to_str().unwrap()]);
    assert!(done && said.contains("one"), "{said}");
    assert!(!lost(&d.client().system().await.unwrap().alarms));

    // What is here is newer: another NQN, and who trusts without a secret.
    d.client().detach(&volume.id.into(), &host.name).await.unwrap();
    d.client().trust_host(&host.name).await.unwrap();
    let nqn: orlop_api::Nqn = "nqn.2014-08.org.nvmexpress:other".parse().unwrap();
    d.client().put_host(&host.name, &HostPut::nvme(nqn.clone())).await.unwrap();
    let restored = d.client().restore(text, false).await.unwrap();
    assert!(restored.hosts.is_empty(), "{restored:?}");
    let now = d.client().host(&host.name).await.unwrap();
    assert!(now.nqn == Some(nqn) && now.authentication.is_none(), "{now:?}");
}

/// A backup is of one instant: hosts that are put one after another are in it up to one of them.
#[tokio::test]
async fn a_backup_is_of_one_instant() {
    let d = Daemon::start();
    let client = d.client();
    let writer = tokio::spawn(async move {
        for n in 0..300 {
            let nqn = format!("nqn.2014-08.org.nvmexpress:{n}").parse().unwrap();
            client.put_host(&format!("h-{n:03}").parse().unwrap(), &HostPut::nvme(nqn)).await.unwrap();
        }
    });
    let mut last = 0;
    while last < 300 {
        let text = String::from_utf8(d.client().backup().await.unwrap()).unwrap();
        let there = (0..300).filter(|n| text.contains(&format!("\"key\":\"h-{n:03}\""))).collect::<Vec<_>>();
        assert_eq!(there, (0..there.len()).collect::<Vec<_>>());
        assert!(there.len() >= last);
        last = there.len();
    }
    writer.await.unwrap();
}

/// One backup is read at a time: it is large, and all of it is held.
#[tokio::test]
async fn one_backup_is_read_at_a_time() {
    let d = Daemon::start();
    let mut slow = UnixStream::connect(d.socket()).unwrap();
    slow.write_all(b"PUT /v1/system/restore HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{").unwrap();
    let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let refused = loop {
        // Until the other has its turn.
        let refused = d.client().restore(b"nonsense".to_vec(), false).await.unwrap_err();
        if refused.kind == ErrorKind::Unavailable || std::time::Instant::now() > until {
            break refused;
        }
    };
    assert_eq!(refused.kind, ErrorKind::Unavailable, "{refused}");
    drop(slow);
    let refused = d.client().restore(b"nonsense".to_vec(), false).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Invalid, "{refused}");
}
