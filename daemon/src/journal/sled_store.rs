//! sled 0.34.7 as the journal's store, with the guards that it needs:
//! its `flush` does not sync the file on Linux, so a descriptor of our own does; snapshots that a crash
//! left half made would keep it from opening, so they are deleted first; values stay under 64 KiB, where
//! it would start to write separate blob files that our sync does not cover.

use std::fs::File;
use std::io;
use std::path::Path;

use super::{Batch, Store, Table};

/// sled's limit is in its segment size (512 KiB) and blobs start well above this.
const LARGEST_VALUE: usize = 60 * 1024;
/// The journal is read once; its page cache only serves writes of a few small, hot records.
const CACHE: u64 = 4 << 20;

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
        let db = sled::Config::default()
            .path(dir)
            .cache_capacity(CACHE)
            // The committer flushes; a timer would only wake an idle machine.
            .flush_every_ms(None)
            .open()
            .map_err(to_io)?;
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
        self.db.apply_batch(sled_batch).map_err(to_io)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.db.flush().map_err(to_io)?;
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
