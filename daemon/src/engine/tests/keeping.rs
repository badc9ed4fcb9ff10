//! A journal that is damaged, too new or slow: what is served, and what is refused.

use super::*;
use crate::journal::{Batch, SledStore, Store, Table};

impl Rig {
    async fn end(&mut self) {
        self.engine().core.write_labels().await;
        self.engine().core.tasks.lock().abort_all();
        self.engine = None;
    }

    /// Changes the journal under the daemon that is not there.
    async fn tamper(&mut self, change: impl FnOnce(&mut Batch)) {
        self.end().await;
        let mut store = loop {
            match SledStore::open(&self.dir.path().join("journal")) {
                Ok(store) => break store,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let mut batch = Batch::default();
        change(&mut batch);
        store.apply(&batch).unwrap();
        store.sync().unwrap();
    }

    fn alarm(&self, subject: &str) -> Option<String> {
        self.engine().view().alarms().into_iter().find(|a| a.subject == subject).map(|a| a.detail)
    }
}

#[tokio::test]
async fn a_journal_that_was_changed_lets_nobody_in() {
    let mut rig = Rig::new().await;
    let id = rig.create("data").await;
    let (one, _) = (rig.host("one").await, rig.host("two").await);
    rig.ok(attach(id, "one")).await;
    // As a store would that keeps what was removed.
    rig.tamper(|b| b.put(Table::Attachments, &format!("{id}/two"), &serde_json::json!({}))).await;
    rig.target.power_cycle();
    rig.start().await;
    assert_eq!(rig.target.hosts(id), [one].into(), "as the label says");
    let said = rig.alarm("journal").unwrap();
    assert!(said.contains("journal.damaged-") && said.contains("orlop system restore"), "{said}");
    rig.host("three").await;
    // It stays known until somebody has looked.
    rig.restart().await;
    assert!(rig.alarm("journal").is_none() && rig.alarm("journal/set-aside").is_some());
}

#[tokio::test]
async fn a_newer_journal_is_served_by_labels_and_not_touched() {
    let mut rig = Rig::new().await;
    let id = rig.create("data").await;
    let one = rig.host("one").await;
    rig.ok(attach(id, "one")).await;
    rig.tamper(|b| b.put(Table::Meta, "version", &99)).await;
    rig.target.power_cycle();
    rig.start().await;
    assert_eq!(rig.target.hosts(id), [one].into());
    assert!(rig.alarm("journal").unwrap().contains("newer daemon"));
    let refused = rig.fails(Action::CreateVolume(ask("more"))).await;
    assert_eq!(refused.kind, ErrorKind::Unavailable);
    assert!(refused.detail.contains("version 99"));
    rig.end().await;
    assert!(!std::fs::exists(rig.dir.path().join("journal.seen.new")).unwrap());
    let there = crate::journal::set_aside_of(&rig.dir.path().join("journal")).unwrap();
    assert!(there.is_empty(), "{there:?}");
}

/// Who asks is answered, and what comes late is carried out.
#[tokio::test]
async fn a_slow_journal_keeps_nobody_for_ever() {
    let rig = Rig::new().await;
    let id = rig.create("data").await;
    rig.host("one").await;
    rig.ok(attach(id, "one")).await;
    let disk = rig.engine().core.journal.hang();
    let detach = Action::Detach(by(id), "one".parse().unwrap());
    let asked = Instant::now();
    let refused = rig.submit(detach, SHORT).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Deadline);
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    // Reads go on, and the volume waits with its journal.
    assert!(rig.engine().view().volume(id).is_some());
    let refused = rig.submit(attach(id, "one"), SHORT).await.unwrap_err();
    assert!(matches!(refused.kind(), ErrorKind::Busy | ErrorKind::Deadline), "{refused:?}");
    drop(disk);
    for _ in 0..500 {
        if rig.target.hosts(id).is_empty() && !rig.engine().view().is_attached(id, &"one".parse().unwrap()) {
            rig.ok(attach(id, "one")).await;
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the host is not cut off");
}
