#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// A store that behaves like a disk: what was not synced is lost at a crash, all or nothing a batch,
/// and a sync can fail.
#[derive(Clone, Default)]
struct Disk(Arc<Mutex<DiskState>>);

#[derive(Default)]
struct DiskState {
    durable: Map,
    applied: Map,
    syncs: u32,
    fail_at: Option<u32>,
    panics: bool,
}

impl Disk {
    fn crash(&self) {
        let mut d = self.0.lock();
        d.applied = d.durable.clone();
    }
}

impl Store for Disk {
    fn scan(&self, table: Table) -> io::Result<Vec<(String, Vec<u8>)>> {
        let d = self.0.lock();
        let rows = d.applied.iter().filter(|(k, _)| k[0] == table as u8);
        Ok(rows.map(|(k, v)| (String::from_utf8_lossy(&k[1..]).into_owned(), v.clone())).collect())
    }
    fn apply(&mut self, batch: &Batch) -> io::Result<()> {
        let mut d = self.0.lock();
        for (k, v) in &batch.changes {
            match v {
                Some(v) => d.applied.insert(k.clone(), v.clone()),
                None => d.applied.remove(k),
            };
        }
        Ok(())
    }
    fn sync(&mut self) -> io::Result<()> {
        let mut d = self.0.lock();
        d.syncs += 1;
        if d.fail_at == Some(d.syncs) {
            assert!(!d.panics, "on purpose");
            return Err(io::Error::other("no space"));
        }
        d.durable = d.applied.clone();
        Ok(())
    }
}

fn all(contents: &Contents) -> Result<Contents, JournalError> {
    Ok(contents.clone())
}

fn open(disk: &Disk) -> Journal {
    open_all(disk).0
}

fn open_all(disk: &Disk) -> (Journal, Contents) {
    opening::with_store(disk.clone(), all).unwrap()
}

fn put(key: &str, value: u32) -> Batch {
    let mut b = Batch::default();
    b.put(Table::Hosts, key, &value);
    b
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_crash() {
    let disk = Disk::default();
    let journal = open(&disk);
    assert!(journal.is_fresh());
    // A start that ended here would have to look at labels again.
    disk.crash();
    let journal = open(&disk);
    assert!(journal.is_fresh());
    let mut batch = Batch::default();
    Journal::note_rebuilt(&mut batch, []);
    journal.commit(batch).await.unwrap();
    for i in 0..50 {
        journal.commit(put(&format!("{i:02}"), i)).await.unwrap();
    }
    disk.crash();
    let (again, contents) = open_all(&disk);
    assert!(!again.is_fresh());
    assert_eq!(again.generation(), journal.generation() + 1);
    assert_eq!(again.id(), journal.id());
    let hosts = contents.records::<u32>(Table::Hosts).unwrap();
    assert_eq!(hosts.iter().map(|(_, v)| *v).collect::<Vec<_>>(), (0..50).collect::<Vec<_>>());
}

#[tokio::test]
async fn parallel_commits_share_syncs() {
    let disk = Disk::default();
    let journal = Arc::new(open(&disk));
    let tasks: Vec<_> = (0..200)
        .map(|i| {
            let journal = journal.clone();
            tokio::spawn(async move { journal.commit(put(&i.to_string(), i)).await })
        })
        .collect();
    for t in tasks {
        t.await.unwrap().unwrap();
    }
    assert!(disk.0.lock().syncs < 150, "{} syncs for 200 commits", disk.0.lock().syncs);
}

#[tokio::test]
async fn after_a_failed_sync_nothing_is_taken() {
    let disk = Disk::default();
    disk.0.lock().fail_at = Some(3);
    let journal = open(&disk); // Sync 1 counts the start.
    journal.commit(put("a", 1)).await.unwrap();
    assert!(matches!(journal.commit(put("b", 2)).await, Err(JournalError::Write(_))));
    assert!(matches!(journal.commit(put("c", 3)).await, Err(JournalError::Closed(_))));
    assert!(!journal.is_open());
    disk.crash();
    let (_, contents) = open_all(&disk);
    assert_eq!(contents.records::<u32>(Table::Hosts).unwrap(), [("a".to_string(), 1)]);
}

/// Those that commit in the moment of the failure get an answer too: once, one of them waited for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_a_journal_that_failed() {
    for panics in [false, true] {
        for round in 0..50 {
            let disk = Disk::default();
            {
                let mut d = disk.0.lock();
                d.fail_at = Some(2 + round % 5);
                d.panics = panics;
            }
            let journal = Arc::new(open(&disk));
            let tasks: Vec<_> = (0..40)
                .map(|i| {
                    let journal = journal.clone();
                    tokio::spawn(async move {
                        let mut refused = 0;
                        while refused < 3 {
                            refused += u32::from(journal.commit(put(&i.to_string(), i)).await.is_err());
                        }
                    })
                })
                .collect();
            for t in tasks {
                tokio::time::timeout(std::time::Duration::from_secs(20), t).await.unwrap().unwrap();
            }
            assert!(!journal.is_open());
        }
    }
}

#[test]
fn a_newer_journal_is_refused() {
    let disk = Disk::default();
    let mut b = Batch::default();
    b.put(Table::Meta, "version", &(VERSION + 1));
    disk.clone().apply(&b).unwrap();
    let refused = opening::with_store(disk, all).unwrap_err();
    assert!(refused.contains("newer"), "{refused}");
}

/// One before there were seals is taken as it is, and sealed.
#[test]
fn an_older_journal_is_sealed() {
    let disk = Disk::default();
    let mut b = put("a", 1);
    b.put(Table::Meta, "version", &1);
    b.put(Table::Meta, "generation", &7);
    disk.clone().apply(&b).unwrap();
    let (journal, contents) = open_all(&disk);
    assert!(!journal.is_fresh() && journal.generation() == 8);
    assert_eq!(contents.records::<u32>(Table::Hosts).unwrap().len(), 1);
    drop(journal);
    disk.clone().apply(&put("b", 2)).unwrap();
    let why = opening::with_store(disk, all).unwrap_err();
    assert!(why.contains("records are there"), "{why}");
}

proptest! {
    /// Whatever a store loses, keeps, makes up or changes without a word is noticed.
    #[test]
    fn what_the_store_gets_wrong_is_noticed(kept in 1u32..20, which in 0u32..20, how in 0u8..4) {
        let disk = Disk::default();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let journal = open(&disk);
            for n in 0..kept {
                journal.commit(put(&n.to_string(), n)).await.unwrap();
                journal.commit({ let mut b = Batch::default(); b.remove(Table::Hosts, "gone"); b }).await.unwrap();
            }
        });
        let key = batch::stored_key(Table::Hosts, &(which % kept).to_string());
        {
            let mut d = disk.0.lock();
            match how {
                0 => drop(d.applied.remove(&key)),
                1 => drop(d.applied.insert(key, b"1000".to_vec())),
                2 => drop(d.applied.insert(batch::stored_key(Table::Hosts, "gone"), b"1".to_vec())),
                _ => drop(d.applied.remove(&batch::stored_key(Table::Seal, seal::KEY))),
            }
        }
        prop_assert!(opening::with_store(disk, all).is_err());
    }
}

#[tokio::test]
async fn sled_keeps_what_was_committed_and_clears_half_made_snapshots() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    {
        let (journal, _) = Journal::open(&path, all).unwrap();
        journal.commit(put("a", 1)).await.unwrap();
        let mut b = put("b", 2);
        b.remove(Table::Hosts, "a");
        journal.commit(b).await.unwrap();
    }
    // The committer's thread closes sled a moment after the handle is gone.
    for _ in 0..200 {
        std::fs::write(path.join("snap.1234.generating"), b"junk").unwrap();
        match Journal::open(&path, all) {
            Ok((_, contents)) => {
                let hosts = contents.records::<u32>(Table::Hosts).unwrap();
                assert_eq!(hosts, [("b".to_string(), 2)]);
                return;
            }
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(10)),
        }
    }
    panic!("the journal did not open again");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever is committed or not at a crash: acknowledged batches are there in order, whole.
    #[test]
    fn a_crash_keeps_a_whole_prefix(batches in proptest::collection::vec(
        proptest::collection::vec((0u8..6, proptest::option::of(0u32..100)), 1..5), 1..20),
        crash_after in 0usize..20)
    {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let disk = Disk::default();
        let mut model = BTreeMap::new();
        runtime.block_on(async {
            let journal = open(&disk);
            for changes in batches.iter().take(crash_after) {
                let mut b = Batch::default();
                for (key, value) in changes {
                    let key = key.to_string();
                    match value {
                        Some(v) => { b.put(Table::Hosts, &key, v); model.insert(key, *v); }
                        None => { b.remove(Table::Hosts, &key); model.remove(&key); }
                    }
                }
                journal.commit(b).await.unwrap();
            }
        });
        disk.crash();
        let hosts = open_all(&disk).1.records::<u32>(Table::Hosts).unwrap();
        prop_assert_eq!(hosts, model.into_iter().collect::<Vec<_>>());
    }
}
