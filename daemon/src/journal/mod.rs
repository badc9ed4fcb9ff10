//! The journal: what is in flight, who may attach, hosts, tokens. The acknowledgement point: an answer
//! goes out after its batch is on stable storage.
//!
//! Called by the engine alone. It knows tables, keys and records, not their meaning. All of it is read
//! once, at start; afterwards it is only written.
//!
//! A start never fails for what is in it. One that is damaged is set aside and a new one is begun; one that a
//! newer daemon wrote, or that can't be written, stays as it is, and nothing is written until it can be.

mod aside;
pub mod backup;
mod batch;
mod book;
mod committer;
mod measure;
mod opening;
mod seal;
mod sled_store;
mod witness;

#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_api::ErrorKind;
use serde::de::DeserializeOwned;
use tracing::{Instrument, info_span};
use uuid::Uuid;

use crate::telemetry::spans;
pub use aside::those_of as set_aside_of;
pub use batch::{Batch, Table};
use committer::Committer;
pub use measure::Measure;
pub use opening::probe;
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
    #[error("record {key:?} of the journal's table {table:?} can't be read: {why}")]
    Record {
        /// Its table.
        table: Table,
        /// Its key.
        key: String,
        /// What is wrong with it. Never what is in it, which may be a secret.
        why: String,
    },
    /// It could not be read again.
    #[error("the journal could not be read")]
    Read(#[source] io::Error),
    /// A batch could not be made durable. No further batch is taken.
    #[error("the journal could not be written")]
    Write(#[source] io::Error),
    /// Too many batches wait already; this one was not taken.
    #[error("too many changes wait for the journal: try again later")]
    Full,
    /// It takes nothing, since a failure or from the start.
    #[error("{0}")]
    Closed(String),
}

impl JournalError {
    /// The kind that a caller hears.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Open { .. } | Self::Record { .. } | Self::Read(_) => ErrorKind::Internal,
            Self::Write(_) | Self::Full | Self::Closed(_) => ErrorKind::Unavailable,
        }
    }

    /// Whether the journal takes nothing more, so that trying again is of no use.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Write(_) | Self::Closed(_) => true,
            Self::Open { .. } | Self::Record { .. } | Self::Read(_) | Self::Full => false,
        }
    }
}

/// Why no batch is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// In words for whoever asks for a change.
    pub why: String,
    /// Whether it is over as soon as the disk can be written, and the daemon is started anew.
    pub passes: bool,
}

/// How the journal was found at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// All of it.
    Whole,
    /// There was none, and never was.
    New,
    /// There was one, and it is gone.
    Lost,
    /// What was there can't be believed.
    SetAside {
        /// What is wrong with it.
        why: String,
        /// Where it is now.
        at: PathBuf,
    },
    /// What is there stays as it is, and is not read.
    Unread {
        /// Why.
        why: String,
    },
}

/// Version of the tables' layout. One of a newer daemon is left alone; an older one is migrated at start.
/// 2 has a seal, and a witness beside the journal.
const VERSION: u32 = 2;

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    committer: Committer,
    id: Uuid,
    generation: u32,
    found: Found,
}

/// All records at one instant.
#[derive(Debug, Clone, Default)]
pub struct Contents {
    tables: std::collections::BTreeMap<Table, Vec<(String, Vec<u8>)>>,
}

impl Contents {
    /// The records of a table, ordered by key. A record that can't be read is an error: to go on without
    /// it could let in or cut off the wrong host.
    pub fn records<T: DeserializeOwned>(&self, table: Table) -> Result<Vec<(String, T)>, JournalError> {
        self.rows(table)
            .iter()
            .map(|(key, bytes)| match serde_json::from_slice(bytes) {
                Ok(record) => Ok((key.clone(), record)),
                Err(e) => {
                    // serde's own words quote what it found.
                    let why = format!("{:?} error at byte {}", e.classify(), e.column());
                    Err(JournalError::Record { table, key: key.clone(), why })
                }
            })
            .collect()
    }

    /// Pools whose labels have not been looked at since the journal was begun anew: they were missing.
    pub fn not_rebuilt(&self) -> impl Iterator<Item = &str> {
        self.rows(Table::Meta).iter().filter_map(|(key, _)| key.strip_prefix(opening::NOT_REBUILT))
    }

    /// With those keys of volumes that only `older` has; with its identity if this has none.
    fn with_keys_of(mut self, older: Self) -> Self {
        for (table, rows) in
            older.tables.into_iter().filter(|(t, _)| matches!(t, Table::Keys | Table::System))
        {
            let have = self.tables.entry(table).or_default();
            let new: Vec<_> =
                rows.into_iter().filter(|(key, _)| have.iter().all(|(k, _)| k != key)).collect();
            have.extend(new);
            have.sort();
        }
        self
    }

    /// Those records alone that `read` takes: what was salvaged may be anything.
    fn readable<T>(mut self, read: &impl Fn(&Self) -> Result<T, JournalError>) -> Self {
        for (table, rows) in &mut self.tables {
            rows.retain(|row| read(&Self { tables: [(*table, vec![row.clone()])].into() }).is_ok());
        }
        self
    }

    fn rows(&self, table: Table) -> &[(String, Vec<u8>)] {
        self.tables.get(&table).map(Vec::as_slice).unwrap_or_default()
    }

    fn scan(store: &dyn Store) -> io::Result<Self> {
        let mut contents = Self::default();
        for table in Table::ALL {
            contents.tables.insert(table, store.scan(table)?);
        }
        Ok(contents)
    }
}

impl Journal {
    /// Opens the journal in a directory, or begins one, and counts this start, durably. `read` makes of its
    /// records what the caller needs of them; what it can't read is not used. Blocks.
    ///
    /// Fails only where another process has it, or `read` does not take an empty one.
    pub fn open<T>(
        dir: &Path,
        read: impl Fn(&Contents) -> Result<T, JournalError>,
    ) -> Result<(Self, T), JournalError> {
        opening::open(dir, read)
    }

    /// The appliance's identity: it is the journal's.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// How many times this journal has been opened.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// How it was found.
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// Whether it holds nothing of what was: there was none, or it could not be used.
    pub fn is_fresh(&self) -> bool {
        self.found != Found::Whole
    }

    /// Notes in a batch that what labels know is in the journal, or is with this batch: the next start does not look at
    /// them, but for those of pools that were `missing`, see [`Contents::not_rebuilt`].
    pub fn note_rebuilt<'a>(batch: &mut Batch, missing: impl IntoIterator<Item = &'a str>) {
        batch.remove(Table::Meta, opening::REBUILDING);
        missing.into_iter().for_each(|pool| Self::note_pool_not_rebuilt(batch, pool));
    }

    /// Notes that the labels of a pool are to be looked at when it is here.
    pub fn note_pool_not_rebuilt(batch: &mut Batch, pool: &str) {
        batch.put(Table::Meta, &format!("{}{pool}", opening::NOT_REBUILT), &1);
    }

    /// Notes that what the labels of such a pool know is with this batch.
    pub fn note_pool_rebuilt(batch: &mut Batch, pool: &str) {
        batch.remove(Table::Meta, &format!("{}{pool}", opening::NOT_REBUILT));
    }

    /// Makes a batch durable, together with those of other callers. After an error the batch may or may
    /// not be there, and the journal takes no more.
    pub async fn commit(&self, batch: Batch) -> Result<(), JournalError> {
        let given = std::time::Instant::now();
        self.committer.commit(batch).instrument(info_span!(target: spans::TARGET, "commit")).await?;
        self.measure().commit.observe(given.elapsed().as_secs_f64());
        Ok(())
    }

    /// What it has measured.
    pub fn measure(&self) -> &Measure {
        self.committer.measure()
    }

    /// Batches that wait.
    pub fn depth(&self) -> usize {
        self.committer.depth()
    }

    /// All records, as they are between two batches.
    pub async fn read(&self) -> Result<Contents, JournalError> {
        self.committer.read().await
    }

    /// Why it takes no batches, if it takes none.
    pub fn refusal(&self) -> Option<Refusal> {
        self.committer.refusal()
    }

    /// Whether it takes batches.
    pub fn is_open(&self) -> bool {
        self.refusal().is_none()
    }

    /// Its disk does not answer until what is returned is dropped.
    #[cfg(test)]
    pub(crate) fn hang(&self) -> crossbeam_channel::Sender<()> {
        self.committer.hang()
    }

    /// Waits until a write begins, or until nothing is written any more. For one who waits.
    pub async fn stirs(&self) {
        self.committer.stirs().await;
    }

    /// For how long the write that is under way has been.
    pub fn writes_for(&self) -> Option<Duration> {
        self.committer.writes_for()
    }
}
