//! sled 0.34.7 as the journal's store, with the guards that it needs:
//! its `flush` does not sync the file on Linux, so a descriptor of our own does; snapshots that a crash
//! left half made would keep it from opening, so they are deleted first; values stay under 64 KiB, where
//! it would start to write separate blob files that our sync does not cover.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::path::Path;

use super::{Batch, Store, Table};

/// sled's limit is in its segment size (512 KiB) and blobs start well above this.
const LARGEST_VALUE: usize = 60 * 1024;
/// The journal is read once; its page cache only serves writes of a few small, hot records.
const CACHE: u64 = 4 << 20;

/// By how much sled's threads may oversleep while they wait for work, in nanoseconds. What work there is wakes them at once.
const OVERSLEEP: u64 = 60_000_000_000;

/// While it lives, threads that are begun by this one are woken late by their timers: a thread has its slack (prctl(2),
/// `PR_SET_TIMERSLACK`) from the one that began it. sled keeps seven for its I/O that look for work once a second each, and begins
/// them when it first needs one.
struct LazyThreads {
    before: Option<NonZeroU64>,
}

impl LazyThreads {
    fn begin() -> Self {
        let before = rustix::thread::current_timer_slack().ok().and_then(NonZeroU64::new);
        if before.is_some() {
            // Without it an idle machine is woken more often, and no more than that.
            let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(OVERSLEEP));
        }
        Self { before }
    }
}

impl Drop for LazyThreads {
    fn drop(&mut self) {
        if self.before.is_some() {
            let _ = rustix::thread::set_current_timer_slack(self.before);
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct SledStore {
    db: sled::Db,
    file: File,
}

impl SledStore {
    /// Opens or makes it. Fails if another process has it open.
    pub fn open(dir: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("snap.") && name.ends_with(".generating") {
                std::fs::remove_file(entry.path())?;
            }
        }
        if let Ok(file) = File::open(dir.join("db")) {
            // After a failed sync the kernel may show bytes that are not on the disk: they are read anew.
            let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        }
        let lazy = LazyThreads::begin();
        let db = sled::Config::default()
            .path(dir)
            .cache_capacity(CACHE)
            // The committer flushes; a timer would only wake an idle machine.
            .flush_every_ms(None)
            .open()
            .map_err(to_io)?;
        drop(lazy);
        let file = File::options().read(true).write(true).open(dir.join("db"))?;
        // The directory's entries and its own, once: sled made them without syncing.
        for dir in [Some(dir), dir.parent().filter(|p| !p.as_os_str().is_empty())].into_iter().flatten() {
            File::open(dir)?.sync_all()?;
        }
        Ok(Self { db, file })
    }
}

impl SledStore {
    fn rows(&self, table: Table) -> impl Iterator<Item = io::Result<(String, Vec<u8>)>> {
        self.db.scan_prefix([table as u8]).map(|row| {
            let (key, value) = row.map_err(to_io)?;
            let key = std::str::from_utf8(&key[1..]).map_err(io::Error::other)?.to_string();
            Ok((key, value.to_vec()))
        })
    }

    /// A table's records up to the first that can't be read.
    pub(super) fn scan_what_can_be_read(&self, table: Table) -> Vec<(String, Vec<u8>)> {
        self.rows(table).map_while(Result::ok).collect()
    }
}

impl Store for SledStore {
    fn scan(&self, table: Table) -> io::Result<Vec<(String, Vec<u8>)>> {
        self.rows(table).collect()
    }

    fn apply(&mut self, batch: &Batch) -> io::Result<()> {
        let mut sled_batch = sled::Batch::default();
        for (key, value) in &batch.changes {
            match value {
                Some(v) if v.len() > LARGEST_VALUE => {
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, "a record is over 60 KiB"));
                }
                Some(v) => sled_batch.insert(key.as_slice(), v.as_slice()),
                None => sled_batch.remove(key.as_slice()),
            }
        }
        let _lazy = LazyThreads::begin();
        self.db.apply_batch(sled_batch).map_err(to_io)
    }

    fn sync(&mut self) -> io::Result<()> {
        let lazy = LazyThreads::begin();
        self.db.flush().map_err(to_io)?;
        drop(lazy);
        self.file.sync_data()
    }
}

/// Whether an error is the system's, and not of what is in the files: those that wrong offsets and lengths lead to are the
/// files'.
pub(super) fn is_of_the_system(e: &io::Error) -> bool {
    use rustix::io::Errno;
    let of_files =
        [Errno::INVAL, Errno::FBIG, Errno::OVERFLOW, Errno::NOENT, Errno::ISDIR, Errno::NOTDIR, Errno::LOOP];
    e.raw_os_error().is_some_and(|n| !of_files.iter().any(|errno| errno.raw_os_error() == n))
}

fn to_io(e: sled::Error) -> io::Error {
    match e {
        sled::Error::Io(e) => e,
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn its_threads_may_oversleep_and_nobody_elses() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = SledStore::open(&dir.path().join("journal")).unwrap();
        let mut batch = Batch::default();
        batch.changes.push((b"hkey".to_vec(), Some(b"value".to_vec())));
        store.apply(&batch).unwrap();
        store.sync().unwrap();
        let mut seen = 0;
        for task in std::fs::read_dir("/proc/self/task").unwrap() {
            let task = task.unwrap();
            // Others of this process come and go.
            let Ok(name) = std::fs::read_to_string(task.path().join("comm")) else { continue };
            let slack = Path::new("/proc").join(task.file_name()).join("timerslack_ns");
            let Ok(slack) = std::fs::read_to_string(slack) else { continue };
            let lazy = slack.trim() == OVERSLEEP.to_string();
            if name.starts_with("sled-io") {
                assert!(lazy, "{name}: {slack}");
                seen += 1;
            }
        }
        assert!(seen >= 7, "{seen}");
        assert_ne!(rustix::thread::current_timer_slack().unwrap(), OVERSLEEP);
    }
}
