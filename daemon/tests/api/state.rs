//! The state partition: full, read-only, and a journal on it that is damaged. On a file system of its own,
//! which only root may mount: anybody else skips that.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use orlop_api::{ErrorKind, HostName, HostPut, Problem};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

use super::daemon::Daemon;
use super::raw;

/// A small file system in memory.
struct Small(PathBuf);

impl Small {
    fn at(path: &Path) -> Option<Self> {
        std::fs::create_dir_all(path).unwrap();
        match mount("none", path, "tmpfs", MountFlags::empty(), Some(c"size=12m,mode=0700")) {
            Ok(()) => Some(Self(path.to_owned())),
            Err(e) => {
                eprintln!("skipped: a tmpfs can't be mounted here ({e})");
                None
            }
        }
    }

    fn fill(&self) {
        let file = std::fs::File::create(self.0.join("filler")).unwrap();
        let mut at = 0;
        for size in [1 << 20, 4096] {
            while file.write_all_at(&vec![1; size], at).is_ok() {
                at += size as u64;
            }
        }
    }

    fn make_room(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }

    fn read_only(&self, yes: bool) {
        let flags = if yes { MountFlags::RDONLY } else { MountFlags::empty() };
        mount_remount(&self.0, flags, "size=12m,mode=0700").unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

async fn put(d: &Daemon, n: u32) -> Result<HostName, Problem> {
    let name: HostName = format!("many-{n}").parse().unwrap();
    let nqn = format!("nqn.2014-08.org.nvmexpress:{n}-{}", "x".repeat(150)).parse().unwrap();
    d.client().put_host(&name, &HostPut::nvme(nqn)).await.map(|_| name)
}

async fn until_ready(d: &Daemon, within: Duration) {
    let end = Instant::now() + within;
    while raw::get(&d.socket(), "/readyz").is_none_or(|r| r.status != 200) {
        assert!(Instant::now() < end, "not ready after {within:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn until_alarm(d: &Daemon, subject: &str) -> String {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        if let Ok(system) = d.client().system().await
            && let Some(alarm) = system.alarms.into_iter().find(|a| a.subject == subject)
        {
            return alarm.detail;
        }
        assert!(Instant::now() < end, "no alarm {subject}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_full_state_partition_stops_changes_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let Some(small) = Small::at(&dir.path().join("state")) else { return };
    let mut d = Daemon::start_in(dir);
    let pool = d.pool("tank").await;
    let volume = d.volume(&pool, "data").await;
    let host = d.host("worker").await;
    d.client().attach(&volume.id.into(), &host.name).await.unwrap();
    let pid = d.pid();

    small.fill();
    let mut kept = Vec::new();
    let refused = loop {
        match put(&d, kept.len() as u32).await {
            Ok(name) => kept.push(name),
            Err(e) => break e,
        }
        assert!(kept.len() < 50_000, "it is not full");
    };
    assert_eq!(refused.kind, ErrorKind::Unavailable, "{refused:?}");
    let said = until_alarm(&d, "state").await;
    assert!(said.contains("No space left") && said.contains("make room"), "{said}");
    let again = put(&d, 99_999).await.unwrap_err();
    assert!(again.kind == ErrorKind::Unavailable && again.detail.contains("No space left"));
    assert_eq!(raw::get(&d.socket(), "/readyz").unwrap().status, 503);
    assert_eq!(d.client().volume(&volume.id.into()).await.unwrap().name, volume.name);
    assert!(d.client().attachment(&volume.id.into(), &host.name).await.is_ok());

    // A start while it is full: everything is there, and nothing is taken.
    d.kill();
    d.again_unready();
    let said = until_alarm(&d, "state").await;
    assert!(said.contains("No space left"), "{said}");
    assert!(d.client().attachment(&volume.id.into(), &host.name).await.is_ok());
    assert_eq!(put(&d, 99_999).await.unwrap_err().kind, ErrorKind::Unavailable);

    // Room again: the daemon comes back by itself, with all that it had acknowledged.
    small.make_room();
    let before = d.pid();
    until_ready(&d, Duration::from_secs(60)).await;
    assert!(before == d.pid() && before != pid);
    for name in &kept {
        assert!(d.client().host(name).await.is_ok(), "{name} of {}", kept.len());
    }
    put(&d, 99_999).await.unwrap();
    assert!(d.client().system().await.unwrap().alarms.is_empty());
    assert!(d.stop().success());
}

#[tokio::test]
async fn a_read_only_state_partition_is_served_from() {
    let dir = tempfile::tempdir().unwrap();
    let Some(small) = Small::at(&dir.path().join("state")) else { return };
    let mut d = Daemon::start_in(dir);
    let pool = d.pool("tank").await;
    let volume = d.volume(&pool, "data").await;
    let host = d.host("worker").await;
    d.client().attach(&volume.id.into(), &host.name).await.unwrap();
    d.kill();
    small.read_only(true);
    d.again_unready();
    let said = until_alarm(&d, "state").await;
    assert!(said.contains("Read-only"), "{said}");
    assert!(d.client().attachment(&volume.id.into(), &host.name).await.is_ok());
    let refused = put(&d, 1).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unavailable, "{refused:?}");
    small.read_only(false);
    until_ready(&d, Duration::from_secs(60)).await;
    put(&d, 1).await.unwrap();
    assert!(d.client().attachment(&volume.id.into(), &host.name).await.is_ok());
    // Of the copy with secrets in it nothing is left.
    for place in ["/run", "/run/orlop", "/dev/shm", "/tmp"] {
        let left = std::fs::read_dir(place).into_iter().flatten().flatten();
        let ours = format!("orlop-journal-{}-", d.pid());
        assert!(!left.map(|e| e.file_name()).any(|n| n.to_string_lossy().starts_with(&ours)), "{place}");
    }
    assert!(d.stop().success());
}

#[tokio::test]
async fn a_damaged_journal_is_set_aside_and_rebuilt() {
    let mut d = Daemon::start();
    let pool = d.pool("tank").await;
    let volume = d.volume(&pool, "data").await;
    let host = d.host("worker").await;
    d.client().attach(&volume.id.into(), &host.name).await.unwrap();
    let id = d.client().system().await.unwrap().id;
    assert!(d.stop().success());
    // Half of all bytes that are something.
    let path = d.state().join("journal").join("db");
    let mut bytes = std::fs::read(&path).unwrap();
    for byte in bytes.iter_mut().filter(|b| **b != 0).step_by(2) {
        *byte ^= 0x10;
    }
    std::fs::write(&path, &bytes).unwrap();
    d.again();
    let said = until_alarm(&d, "journal").await;
    assert!(said.contains("journal.damaged-"), "{said}");
    let kept = std::fs::read_dir(d.state()).unwrap().flatten();
    let kept: Vec<_> =
        kept.filter(|e| e.file_name().to_string_lossy().starts_with("journal.damaged-")).collect();
    assert_eq!(kept.len(), 1);
    assert_eq!(d.client().system().await.unwrap().id, id, "it is the same appliance");
    assert!(d.client().attachment(&volume.id.into(), &host.name).await.is_ok());
    put(&d, 1).await.unwrap();
    assert!(d.stop().success());
}
