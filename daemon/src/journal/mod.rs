//! The journal: what is in flight, who may attach, hosts, tokens. The acknowledgement point: an answer
//! goes out after its batch is on stable storage.
//!
//! Called by the engine alone. It knows tables, keys and records, not their meaning. All of it is read
//! once, at start; afterwards it is only written.

mod batch;
mod committer;
mod measure;
mod sled_store;

#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};

use orlop_api::ErrorKind;
use serde::de::DeserializeOwned;

pub use batch::{Batch, Table};
use committer::Committer;
pub use measure::Measure;
pub use sled_store::SledStore;

/// Where batches go. One real implementor; the tests' own loses what was not synced, like a disk.
pub trait Store: Send {
    /// Every record of a table, ordered by key.
    fn scan(&self, table: Table) -> io::Result<Vec<(String, Vec<u8>)>>;
    /// Applies a batch, all or nothing, also across a crash.
    fn apply(&mut self, batch: &Batch) -> io::Result<()>;
    /// Everything applied so far is on stable storage when this returns.
    fn sync(&mut self) -> io::Result<()>;
}

/// Why the journal can't be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// It could not be opened.
    #[error("the journal at {path} could not be opened")]
    Open {
        /// Its directory.
        path: PathBuf,
        /// The system's or the store's answer.
        #[source]
        source: io::Error,
    },
    /// A record could not be read.
    #[error("record {key:?} of the journal's table {table:?} can't be read")]
    Record {
        /// Its table.
        table: Table,
        /// Its key.
        key: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// Written by a newer daemon.
    #[error("the journal has version {have}, and this daemon knows {known}: update the daemon")]
    TooNew {
        /// The journal's.
        have: u32,
        /// The daemon's.
        known: u32,
    },
    /// A batch could not be made durable. No further batch is taken.
    #[error("the journal could not be written")]
    Write(#[source] io::Error),
    /// Too many batches wait already; this one was not taken.
    #[error("too many changes wait for the journal: try again later")]
    Full,
    /// The committer has stopped after an earlier failure.
    #[error("the journal is closed after an earlier failure: restart the daemon when its disk is well")]
    Closed,
}

impl JournalError {
    /// The kind that a caller hears.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Open { .. } | Self::Record { .. } | Self::TooNew { .. } => ErrorKind::Internal,
            Self::Write(_) | Self::Full | Self::Closed => ErrorKind::Unavailable,
        }
    }
}

/// Version of the tables' layout. A newer one is refused; an older one is migrated in `open`.
const VERSION: u32 = 1;

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    committer: Committer,
    measure: Measure,
    contents: parking_lot::Mutex<Option<Contents>>,
    generation: u32,
    fresh: bool,
}

/// Everything the journal held when it was opened.
#[derive(Debug, Default)]
pub struct Contents {
    tables: std::collections::BTreeMap<Table, Vec<(String, Vec<u8>)>>,
}

impl Contents {
    /// The records of a table, ordered by key. A record that can't be read is an error: to go on without
    /// it could let in or cut off the wrong host.
    pub fn records<T: DeserializeOwned>(&self, table: Table) -> Result<Vec<(String, T)>, JournalError> {
        let rows = self.tables.get(&table).map(Vec::as_slice).unwrap_or_default();
        rows.iter()
            .map(|(key, bytes)| match serde_json::from_slice(bytes) {
                Ok(record) => Ok((key.clone(), record)),
                Err(source) => Err(JournalError::Record { table, key: key.clone(), source }),
            })
            .collect()
    }
}

impl Journal {
    /// Opens the journal in a directory, or makes it. Blocks.
    pub fn open(dir: &Path) -> Result<Self, JournalError> {
        let at = |source| JournalError::Open { path: dir.to_path_buf(), source };
        Self::with_store(SledStore::open(dir).map_err(at)?, dir)
    }

    /// Opens a journal over any store, and counts this start, durably.
    pub fn with_store(mut store: impl Store + 'static, dir: &Path) -> Result<Self, JournalError> {
        let at = |source| JournalError::Open { path: dir.to_path_buf(), source };
        let mut contents = Contents::default();
        for table in Table::ALL {
            contents.tables.insert(table, store.scan(table).map_err(at)?);
        }
        let meta = contents.records::<u32>(Table::Meta)?;
        let value = |key: &str| meta.iter().find(|(k, _)| k == key).map(|(_, v)| *v);
        let version = value("version");
        if let Some(have) = version.filter(|v| *v > VERSION) {
            return Err(JournalError::TooNew { have, known: VERSION });
        }
        let generation = value("generation").unwrap_or(0).saturating_add(1);
        let mut batch = Batch::default();
        batch.put(Table::Meta, "version", &VERSION);
        batch.put(Table::Meta, "generation", &generation);
        store.apply(&batch).and_then(|()| store.sync()).map_err(at)?;
        let measure = Measure::new();
        Ok(Self {
            committer: Committer::start(Box::new(store), measure.clone()).map_err(at)?,
            measure,
            contents: parking_lot::Mutex::new(Some(contents)),
            generation,
            fresh: version.is_none(),
        })
    }

    /// What it held when it was opened. Given out once: afterwards the view knows better.
    pub fn take_contents(&self) -> Contents {
        self.contents.lock().take().unwrap_or_default()
    }

    /// How many times this journal has been opened.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Whether it was made just now: there was none, or it was lost.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Makes a batch durable, together with those of other callers. After an error the batch may or may
    /// not be there, and the journal takes no more.
    pub async fn commit(&self, batch: Batch) -> Result<(), JournalError> {
        let given = std::time::Instant::now();
        self.committer.commit(batch).await?;
        self.measure.commit.observe(given.elapsed().as_secs_f64());
        Ok(())
    }

    /// What it has measured.
    pub fn measure(&self) -> &Measure {
        &self.measure
    }

    /// Batches that wait.
    pub fn depth(&self) -> usize {
        self.committer.depth()
    }

    /// Whether it still takes batches.
    pub fn is_open(&self) -> bool {
        self.committer.is_open()
    }
}
