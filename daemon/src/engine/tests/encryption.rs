//! Encrypted volumes: whose key is kept, brought, lost, shared and forgotten.

use super::snapshots::from;
use super::*;
use crate::journal::Table;

const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
const OTHER: &str = "f00102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

fn encrypted(name: &str, unlock: Unlock, key: Option<&str>) -> VolumeCreate {
    let key = key.map(|k| k.parse().unwrap());
    VolumeCreate { encryption: Some(EncryptionCreate { unlock, key }), ..ask(name) }
}

fn unlock(id: VolumeId, key: &str) -> Action {
    Action::UnlockVolume(by(id), key.parse().unwrap())
}

impl Rig {
    fn state(&self, id: VolumeId) -> VolumeState {
        self.volume(id).unwrap().state
    }

    async fn unchanged(&self, ask: VolumeCreate) {
        let same = self.ok(Action::CreateVolume(ask)).await;
        assert!(matches!(same, Outcome::Volume { changed: false, .. }), "{same:?}");
    }

    async fn key(&self, id: VolumeId) -> String {
        match self.ok(Action::ShowKey(by(id))).await {
            Outcome::Key(key) => key.key.expose_text(),
            other => panic!("{other:?}"),
        }
    }

    async fn power_cut(&mut self) {
        self.engine().core.tasks.lock().abort_all();
        self.engine = None;
        self.platter.power_cycle();
        self.target.power_cycle();
        self.start().await;
    }

    /// How many keys the next daemon would find in the journal.
    async fn kept_keys(&mut self) -> usize {
        self.engine().core.tasks.lock().abort_all();
        self.engine = None;
        let dir = self.dir.path().join("journal");
        let kept = loop {
            match Journal::open(&dir, |contents| Ok(contents.clone())) {
                Ok((_, contents)) => {
                    break contents.records::<VolumeKey>(Table::Keys).unwrap().len();
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        self.start().await;
        kept
    }
}

#[tokio::test]
async fn a_key_that_is_kept_unlocks_by_itself() {
    let mut rig = Rig::new().await;
    let id = rig.make(encrypted("data", Unlock::Automatic, None)).await;
    let shown = rig.volume(id).unwrap();
    assert_eq!(shown.encryption, Some(Encryption { unlock: Unlock::Automatic, key_of: id }));
    let key = rig.key(id).await;
    assert!(key.len() == 64 && key != rig.key(rig.make(encrypted("b", Unlock::Automatic, None)).await).await);
    let nqn = rig.host("one").await;
    rig.ok(attach(id, "one")).await;
    rig.power_cut().await;
    assert_eq!(rig.state(id), VolumeState::Ready);
    assert_eq!(rig.target.hosts(id), [nqn].into(), "it is not served again");
    assert_eq!(rig.key(id).await, key);
}

#[tokio::test]
async fn a_key_that_is_not_kept_has_to_be_brought() {
    let mut rig = Rig::new().await;
    let p = rig.fails(Action::CreateVolume(encrypted("data", Unlock::Manual, None))).await;
    assert_eq!((p.kind, p.field.as_deref()), (ErrorKind::Invalid, Some("encryption.key")));
    let id = rig.make(encrypted("data", Unlock::Manual, Some(KEY))).await;
    assert_eq!(rig.fails(Action::ShowKey(by(id))).await.kind, ErrorKind::Precondition);
    let nqn = rig.host("one").await;
    rig.ok(attach(id, "one")).await;
    // A daemon that is started again finds it as it was.
    rig.restart().await;
    assert_eq!(rig.state(id), VolumeState::Ready);
    rig.power_cut().await;
    assert_eq!(rig.state(id), VolumeState::Locked);
    assert!(rig.volume(id).unwrap().reason.is_some());
    assert!(rig.target.hosts(id).is_empty());
    for refused in [attach(id, "one"), Action::CreateVolume(from("c", None, Some(id), SourceMode::Linked))] {
        let p = rig.fails(refused).await;
        assert!(p.kind == ErrorKind::Precondition && p.detail.contains("locked"), "{p}");
    }
    let p = rig.fails(unlock(id, OTHER)).await;
    assert_eq!((p.kind, p.field.as_deref()), (ErrorKind::Invalid, Some("key")));
    assert_eq!(rig.state(id), VolumeState::Locked);
    rig.ok(unlock(id, KEY)).await;
    assert_eq!(rig.state(id), VolumeState::Ready);
    rig.served(id).await;
    assert_eq!(rig.target.hosts(id), [nqn].into(), "its host is not served again");
    // Again, and with another key all the same not.
    rig.ok(unlock(id, KEY)).await;
    assert_eq!(rig.fails(unlock(id, OTHER)).await.kind, ErrorKind::Invalid);
    assert_eq!(rig.kept_keys().await, 0);
}

#[tokio::test]
async fn a_linked_clone_has_its_sources_key_and_a_copy_its_own() {
    let mut rig = Rig::new().await;
    let id = rig.make(encrypted("data", Unlock::Automatic, Some(KEY))).await;
    let own = VolumeCreate {
        encryption: Some(EncryptionCreate::default()),
        ..from("clone", None, Some(id), SourceMode::Linked)
    };
    let p = rig.fails(Action::CreateVolume(own)).await;
    assert_eq!((p.kind, p.field.as_deref()), (ErrorKind::Invalid, Some("encryption")));
    let clone = rig.make(from("clone", None, Some(id), SourceMode::Linked)).await;
    assert_eq!(rig.volume(clone).unwrap().encryption.unwrap().key_of, id);
    rig.unchanged(from("clone", None, Some(id), SourceMode::Linked)).await;
    assert_eq!(rig.key(clone).await, KEY);
    assert_eq!(rig.kept_keys().await, 1);
    // The source goes when its clone does, and the key with the last of them.
    rig.ok(Action::DeleteVolume(by(id), When::Unused)).await;
    assert_eq!(rig.key(clone).await, KEY);
    rig.ok(delete(clone)).await;
    // Not just its backing: what is forgotten of it is forgotten afterwards.
    rig.until("the last of them to go", |r| r.volume(id).is_none()).await;
    assert_eq!((rig.platter.backings(), rig.kept_keys().await), (0, 0));
}

#[tokio::test]
async fn a_key_that_was_lost_with_the_journal_is_brought_and_kept_again() {
    let mut rig = Rig::new().await;
    let id = rig.make(encrypted("data", Unlock::Automatic, Some(KEY))).await;
    rig.engine().core.write_labels().await;
    rig.engine().core.tasks.lock().abort_all();
    rig.engine = None;
    std::fs::remove_dir_all(rig.dir.path().join("journal")).unwrap();
    rig.platter.power_cycle();
    rig.target.power_cycle();
    rig.start().await;
    assert_eq!(rig.state(id), VolumeState::Locked);
    assert_eq!(rig.fails(Action::ShowKey(by(id))).await.kind, ErrorKind::Precondition);
    rig.ok(unlock(id, KEY)).await;
    rig.power_cut().await;
    assert_eq!((rig.state(id), rig.key(id).await.as_str()), (VolumeState::Ready, KEY));
}

#[tokio::test]
async fn the_same_request_has_the_same_key() {
    let mut rig = Rig::new().await;
    rig.make(encrypted("data", Unlock::Automatic, Some(KEY))).await;
    for same in [Some(KEY), None] {
        rig.unchanged(encrypted("data", Unlock::Automatic, same)).await;
    }
    let other = encrypted("data", Unlock::Automatic, Some(OTHER));
    let manual = encrypted("data", Unlock::Manual, Some(KEY));
    for (ask, field) in [(other, "encryption.key"), (manual, "encryption"), (ask("data"), "encryption")] {
        let p = rig.fails(Action::CreateVolume(ask)).await;
        assert_eq!((p.kind, p.field.as_deref()), (ErrorKind::Conflict, Some(field)), "{p}");
        let text = serde_json::to_string(&p).unwrap();
        assert!(!text.contains(&KEY[2..]), "{text}");
    }
    // What was not made leaves no key.
    rig.platter.faults(|f| f.fail_create = true);
    rig.fails(Action::CreateVolume(encrypted("fails", Unlock::Automatic, None))).await;
    rig.platter.faults(|f| f.fail_create = false);
    rig.settled().await;
    assert_eq!(rig.kept_keys().await, 1);
    let plain = rig.create("plain").await;
    assert_eq!(rig.fails(unlock(plain, KEY)).await.kind, ErrorKind::Precondition);
    assert_eq!(rig.fails(Action::ShowKey(by(plain))).await.kind, ErrorKind::Precondition);
}

impl Rig {
    fn key_alarm(&self, id: VolumeId) -> bool {
        let subject = format!("volume/{id}/key");
        self.engine().system().alarms.iter().any(|a| a.subject == subject)
    }

    async fn served(&self, id: VolumeId) {
        self.until("it to be served", |r| !r.target.hosts(id).is_empty()).await;
    }
}

/// The kernel has the key still, so all looks well: until the machine is started again.
#[tokio::test]
async fn a_lost_key_is_an_alarm_while_it_can_still_be_brought() {
    let mut rig = Rig::new().await;
    let id = rig.make(encrypted("data", Unlock::Automatic, Some(KEY))).await;
    assert!(!rig.key_alarm(id));
    rig.lose_journal(|_| ()).await;
    assert_eq!((rig.state(id), rig.key_alarm(id)), (VolumeState::Ready, true));
    assert_eq!(rig.fails(Action::ShowKey(by(id))).await.kind, ErrorKind::Precondition);
    rig.ok(unlock(id, KEY)).await;
    assert!(!rig.key_alarm(id));
    rig.power_cut().await;
    assert_eq!((rig.state(id), rig.key_alarm(id)), (VolumeState::Ready, false));
}

#[tokio::test]
async fn who_unlocks_a_deleted_source_unlocks_its_clone() {
    let mut rig = Rig::new().await;
    let source = rig.make(encrypted("data", Unlock::Manual, Some(KEY))).await;
    let clone = rig.make(from("clone", None, Some(source), SourceMode::Linked)).await;
    rig.host("one").await;
    rig.ok(attach(clone, "one")).await;
    rig.ok(Action::DeleteVolume(by(source), When::Unused)).await;
    rig.power_cut().await;
    assert_eq!((rig.state(source), rig.state(clone)), (VolumeState::Deleting, VolumeState::Locked));
    rig.ok(unlock(source, KEY)).await;
    rig.served(clone).await;
    assert_eq!(rig.state(clone), VolumeState::Ready);
}

#[tokio::test]
async fn a_locked_source_is_not_copied_and_a_copy_waits_for_its_key() {
    let mut rig = Rig::new().await;
    let source = rig.make(encrypted("data", Unlock::Manual, Some(KEY))).await;
    let snapshot =
        rig.ok(Action::CreateSnapshot(SnapshotCreate { name: "s".parse().unwrap(), volume: by(source) }));
    let Outcome::Snapshot { snapshot, .. } = snapshot.await else { panic!() };
    rig.platter.faults(|f| f.fail_fill = true);
    let copy = rig.make(from("copy", Some(snapshot.id), None, SourceMode::Copied)).await;
    rig.power_cut().await;
    rig.platter.faults(|f| f.fail_fill = false);
    for mode in [SourceMode::Copied, SourceMode::Linked] {
        let p = rig.fails(Action::CreateVolume(from("x", Some(snapshot.id), None, mode))).await;
        assert!(p.kind == ErrorKind::Precondition && p.detail.contains("locked"), "{p}");
    }
    rig.ok(unlock(source, KEY)).await;
    rig.until("the copy to be whole", |r| r.state(copy) == VolumeState::Ready).await;
}

#[tokio::test]
async fn a_deletion_that_was_interrupted_forgets_the_key_too() {
    let mut rig = Rig::new().await;
    let id = rig.make(encrypted("data", Unlock::Automatic, None)).await;
    rig.platter.faults(|f| f.fail_destroy = true);
    rig.submit(delete(id), LONG).await.unwrap_err();
    assert_eq!(rig.kept_keys().await, 1, "it is there still");
    rig.platter.faults(|f| f.fail_destroy = false);
    rig.restart().await;
    rig.settled().await;
    assert_eq!((rig.platter.backings(), rig.kept_keys().await), (0, 0));
}
