//! Real journals that are damaged in many places: each must open, and give all of what was acknowledged or
//! say that it does not.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::*;

const BATCHES: u32 = 400;

type Hosts = BTreeMap<String, String>;

fn hosts(contents: &Contents) -> Result<Hosts, JournalError> {
    Ok(contents.records::<String>(Table::Hosts)?.into_iter().collect())
}

/// Opens one whose last holder may be closing it still.
fn open(path: &Path) -> (Journal, Hosts) {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        match Journal::open(path, hosts) {
            Ok(opened) => return opened,
            Err(e) if Instant::now() > end => panic!("{e:?}"),
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

async fn put(journal: &Journal, key: &str, value: &str) {
    let mut batch = Batch::default();
    batch.put(Table::Hosts, key, &value);
    journal.commit(batch).await.unwrap();
}

/// A journal of many batches with keys of volumes in it, as it is after a power cut: nobody closed it. Also what it
/// was half way.
async fn made(dir: &Path) -> (Hosts, PathBuf) {
    let path = dir.join("journal");
    let mut want = Hosts::new();
    let half = dir.join("half");
    let (journal, _) = open(&path);
    let mut batch = Batch::default();
    Journal::note_rebuilt(&mut batch, []);
    batch.put(Table::Keys, "some-volume", &"its key");
    journal.commit(batch).await.unwrap();
    for n in 0..BATCHES {
        let key = format!("host-{:02}", n % 60);
        let mut batch = Batch::default();
        if n % 7 == 3 {
            batch.remove(Table::Hosts, &key);
            want.remove(&key);
        } else {
            let value = format!("{n}-{}", "x".repeat(n as usize % 500));
            batch.put(Table::Hosts, &key, &value);
            want.insert(key, value);
        }
        journal.commit(batch).await.unwrap();
        if n == BATCHES / 2 {
            copy(&path, &half.join("journal"));
        }
    }
    // As it is on the disk while it is open: what closing it writes is not there yet.
    copy(&path, &dir.join("cut").join("journal"));
    std::fs::copy(witness::path_of(&path), dir.join("cut").join("journal.seen")).unwrap();
    (want, dir.join("cut"))
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// A copy of the made one, to be damaged.
fn another(of: &Path) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    copy(&of.join("journal"), &path);
    std::fs::copy(of.join("journal.seen"), dir.path().join("journal.seen")).unwrap();
    (dir, path)
}

/// Small and the same everywhere (Numerical Recipes).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

/// What came of it: nothing, or it was noticed.
fn judge(dir: &Path, path: &Path, want: &Hosts, what: &str) -> Found {
    let begun = Instant::now();
    let (journal, got) = open(path);
    assert!(begun.elapsed() < Duration::from_secs(20), "{what}: it took {:?}", begun.elapsed());
    assert!(journal.is_open(), "{what}: {:?}", journal.refusal());
    match journal.found() {
        Found::Whole => assert_eq!(got, *want, "{what}: silently another one"),
        Found::SetAside { at, .. } => {
            assert!(got.is_empty(), "{what}");
            assert!(at.join("db").exists() && at.starts_with(dir), "{what}");
        }
        other => panic!("{what}: {other:?}"),
    }
    journal.found().clone()
}

#[tokio::test]
async fn damage_anywhere_is_noticed_or_harmless() {
    let base = tempfile::tempdir().unwrap();
    let (want, cut) = made(base.path()).await;
    let (dir, path) = another(&cut);
    assert_eq!(judge(dir.path(), &path, &want, "as it was"), Found::Whole);
    let mut random = Random(0x0120);
    let (mut noticed, mut harmless) = (0, 0);
    let files = ["db", "conf"].map(|f| cut.join("journal").join(f)).map(|p| std::fs::read(p).unwrap());
    // Where there is something: most of a database is zeros that nobody reads.
    let used: Vec<u64> = (0..files[0].len() as u64).filter(|n| files[0][*n as usize] != 0).collect();
    for round in 0..240 {
        let (dir, path) = another(&cut);
        let name = if round % 12 == 0 { "conf" } else { "db" };
        let bytes = if name == "db" { &files[0] } else { &files[1] };
        let file = std::fs::File::options().read(true).write(true).open(path.join(name)).unwrap();
        let at = match round % 3 {
            0 => random.below(bytes.len() as u64),
            _ if name == "db" => used[random.below(used.len() as u64) as usize],
            _ => random.below(bytes.len() as u64),
        };
        let what = match round % 6 {
            // A page of zeros, one of noise, a file that is cut short, single bits.
            1 => {
                let page = at / 4096 * 4096;
                let n = 4096.min(bytes.len() as u64 - page) as usize;
                file.write_all_at(&vec![0; n], page).unwrap();
                format!("{name}: zeros at {page}")
            }
            2 => {
                let page = at / 512 * 512;
                let n = 512.min(bytes.len() as u64 - page);
                let noise: Vec<u8> = (0..n).map(|_| random.below(256) as u8).collect();
                file.write_all_at(&noise, page).unwrap();
                format!("{name}: noise at {page}")
            }
            4 => {
                file.set_len(at).unwrap();
                format!("{name}: cut at {at}")
            }
            _ => {
                let bit = random.below(8);
                file.write_all_at(&[bytes[at as usize] ^ (1 << bit)], at).unwrap();
                format!("{name}: bit {bit} of {at}")
            }
        };
        match judge(dir.path(), &path, &want, &what) {
            Found::Whole => harmless += 1,
            _ => noticed += 1,
        }
    }
    assert!(noticed > 40, "{noticed} noticed, {harmless} harmless");
}

/// What is whole in itself, and is not what was last.
#[tokio::test]
async fn an_older_or_another_journal_is_noticed() {
    let base = tempfile::tempdir().unwrap();
    let (want, cut) = made(base.path()).await;

    let (dir, path) = another(&cut);
    std::fs::remove_dir_all(&path).unwrap();
    copy(&base.path().join("half").join("journal"), &path);
    let found = judge(dir.path(), &path, &want, "half");
    assert!(matches!(&found, Found::SetAside { why, .. } if why.contains("older")), "{found:?}");

    let (dir, path) = another(&cut);
    let other = tempfile::tempdir().unwrap();
    drop(open(&other.path().join("journal")));
    std::fs::remove_dir_all(&path).unwrap();
    copy(&other.path().join("journal"), &path);
    let found = judge(dir.path(), &path, &want, "another's");
    assert!(matches!(&found, Found::SetAside { why, .. } if why.contains("appliance")), "{found:?}");

    // It is gone: known as that, and the appliance stays what it was.
    let (_dir, path) = another(&cut);
    let (whole, _) = open(&path);
    let id = whole.id();
    drop(whole);
    std::thread::sleep(Duration::from_millis(200));
    std::fs::remove_dir_all(&path).unwrap();
    let (journal, got) = open(&path);
    assert_eq!((journal.found(), journal.id(), got.len()), (&Found::Lost, id, 0));
}

#[tokio::test]
async fn keys_and_identity_outlive_damage() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("journal");
    let (journal, _) = open(&path);
    let id = journal.id();
    let mut batch = Batch::default();
    batch.put(Table::Keys, "some-volume", &"its key");
    journal.commit(batch).await.unwrap();
    drop(journal);
    // One record is changed under the seal.
    let store = loop {
        match SledStore::open(&path) {
            Ok(store) => break store,
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let mut batch = Batch::default();
    batch.put(Table::Hosts, "h", &"another's");
    {
        let mut store = store;
        store.apply(&batch).unwrap();
        store.sync().unwrap();
    }
    let read = |c: &Contents| Ok((c.records::<String>(Table::Keys)?, hosts(c)?));
    let (journal, (keys, got)) = Journal::open(&path, read).unwrap();
    assert!(matches!(journal.found(), Found::SetAside { .. }));
    assert_eq!((journal.id(), keys, got.len()), (id, vec![("some-volume".into(), "its key".into())], 0));
    put(&journal, "h", "new").await;
    let mut batch = Batch::default();
    Journal::note_rebuilt(&mut batch, []);
    journal.commit(batch).await.unwrap();
    drop(journal);
    let (journal, got) = open(&path);
    assert_eq!((journal.found(), got.len()), (&Found::Whole, 1));
    assert_eq!(set_aside_of(&path).unwrap().len(), 1);
}

/// One of a newer daemon is not touched, byte for byte.
#[tokio::test]
async fn a_newer_journal_is_left_alone() {
    let base = tempfile::tempdir().unwrap();
    let (_, cut) = made(base.path()).await;
    let (dir, path) = another(&cut);
    let mut seen = witness::Witness::read(&path).unwrap();
    seen.v = VERSION + 1;
    witness::WitnessFile::create(&path, seen).unwrap();
    let before = std::fs::read(path.join("db")).unwrap();
    let (journal, got) = open(&path);
    assert!(
        matches!(journal.found(), Found::Unread { why } if why.contains("newer")),
        "{:?}",
        journal.found()
    );
    assert!(got.is_empty() && !journal.refusal().unwrap().passes);
    assert!(matches!(journal.commit(Batch::default()).await, Err(JournalError::Closed(_))));
    drop(journal);
    assert!(before == std::fs::read(path.join("db")).unwrap());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);

    // A record of a form that is not known here, in a journal that is whole.
    let (_dir, path) = another(&cut);
    let strange = |c: &Contents| match c.records::<u32>(Table::Hosts) {
        Ok(rows) => Ok(rows.len()),
        Err(e) => Err(e),
    };
    let (journal, rows) = Journal::open(&path, strange).unwrap();
    assert!(matches!(journal.found(), Found::Unread { .. }) && rows == 0);
}

/// The oldest has what later ones never had.
#[test]
fn the_first_and_the_newest_are_kept() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("journal");
    let mut names = Vec::new();
    for _ in 0..8 {
        std::fs::create_dir(&path).unwrap();
        names.push(aside::set_aside(&path).unwrap());
    }
    let kept = [&names[0], &names[5], &names[6], &names[7]];
    assert_eq!(set_aside_of(&path).unwrap().iter().collect::<Vec<_>>(), kept);
}
