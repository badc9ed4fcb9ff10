//! Opening a journal: is what is there whole, this appliance's, the newest, and ours to read? What to begin
//! with where it is not.

use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, openat};
use rustix::io::Errno;
use uuid::Uuid;

use super::batch::stored_key;
use super::book::Book;
use super::committer::Committer;
use super::seal::{self, Ledger, Seal};
use super::witness::{Witness, WitnessFile};
use super::{Batch, Contents, Found, Journal, JournalError, Refusal, SledStore, Store, Table, VERSION};
use super::{aside, sled_store};

/// The identity's key.
const ID: &str = "id";
/// There while what labels know has not been written into a journal that was begun anew. A start that dies before that must
/// not be the last one that looks at labels.
pub(super) const REBUILDING: &str = "rebuilding";
/// Likewise for a pool that was missing then; its name follows.
pub(super) const NOT_REBUILT: &str = "rebuilding/";

const PANICKED: &str = "the store can't read it";

/// Room that a new segment of the store and its neighbours may need.
const PROBE: usize = 2 << 20;

/// Why what is there is not used.
enum Trouble {
    /// It is whole, and this daemon can't read it: it stays as it is.
    Newer(String),
    /// It can't be believed.
    Damaged(String),
    /// The system refused: it says nothing of the journal.
    Refused(io::Error),
}

/// A journal that can be believed.
struct Taken<T> {
    book: Book,
    id: Option<Uuid>,
    generation: u32,
    /// Nothing is in it at all.
    empty: bool,
    /// Nothing was in it, or it was begun and what labels know is not in it yet.
    bare: bool,
    read: T,
}

pub(super) fn open<T>(
    dir: &Path,
    read: impl Fn(&Contents) -> Result<T, JournalError>,
) -> Result<(Journal, T), JournalError> {
    let in_use = |source| JournalError::Open { path: dir.to_path_buf(), source };
    // No state directory and none to be had: what follows says why.
    let _ = dir.parent().map(std::fs::create_dir_all);
    let lock = lock(dir).map_err(in_use)?;
    let seen = Witness::read(dir);
    let first = Origin { found: if seen.is_some() { Found::Lost } else { Found::New }, seen, dir };
    if let Some(have) = first.seen.as_ref().map(|w| w.v).filter(|v| *v > VERSION) {
        return first.left_alone(newer(have), false, &read);
    }
    aside::remove_stale_copies();
    if !std::fs::exists(dir.join("db")).unwrap_or(true) {
        // What the store may have left without it is not to be mixed with a new one.
        let remains = std::fs::read_dir(dir).is_ok_and(|mut d| d.next().is_some());
        let cleared = if remains { aside::set_aside(dir).map(drop) } else { Ok(()) };
        return match cleared.map_err(Trouble::Refused).and_then(|()| salvage_older(dir, first.seen.as_ref()))
        {
            Ok(kept) => first.begin(lock, kept, &read),
            Err(trouble) => first.left_alone(words(trouble), true, &read),
        };
    }
    match attempt(dir, first.seen.as_ref(), &read) {
        // Begun by a start that died before it had written anything.
        Ok(taken) if taken.empty => {
            drop(taken);
            match salvage_older(dir, first.seen.as_ref()) {
                Ok(kept) => first.begin(lock, kept, &read),
                Err(trouble) => first.left_alone(words(trouble), true, &read),
            }
        }
        Ok(taken) => first.go_on(lock, taken),
        Err(Trouble::Newer(why)) => first.left_alone(why, false, &read),
        Err(Trouble::Refused(e)) => first.by_copy(&e, &read),
        Err(Trouble::Damaged(why)) => {
            tracing::error!(why, "the journal can't be used");
            // Before it has another name: a start that dies in between finds all of it here again, or beside.
            let kept = match salvage(dir, first.seen.as_ref()) {
                // What is missing in it may be in one from before: it may have been begun in the place of a damaged one by a
                // start that died before it had written anything.
                Ok(kept) => salvage_older(dir, first.seen.as_ref()).map(|older| kept.with_keys_of(older)),
                Err(trouble) => Err(trouble),
            };
            let kept = match kept {
                Ok(kept) => kept,
                Err(trouble) => return first.left_alone(format!("{why}; {}", words(trouble)), true, &read),
            };
            match aside::set_aside(dir) {
                Ok(at) => Origin { found: Found::SetAside { why, at }, ..first }.begin(lock, kept, &read),
                Err(e) => first.left_alone(format!("{why}, and it can't be set aside ({e})"), true, &read),
            }
        }
    }
}

/// A journal over any store, without a directory.
#[cfg(test)]
pub(super) fn with_store<T>(
    store: impl Store + 'static,
    read: impl Fn(&Contents) -> Result<T, JournalError>,
) -> Result<(Journal, T), String> {
    let taken = take(store, None, &read).map_err(|trouble| match trouble {
        Trouble::Newer(why) | Trouble::Damaged(why) => why,
        Trouble::Refused(e) => e.to_string(),
    })?;
    let origin = Origin { found: Found::New, seen: None, dir: Path::new("") };
    origin.go_on(None, taken).map_err(|e| e.to_string())
}

/// Whether the journal can be read, and the state directory be written, durably, with some room.
pub fn probe(journal: &Path) -> io::Result<()> {
    use std::io::Write;
    if std::fs::exists(journal)? {
        read_through(journal)?;
    }
    let path = aside::beside(journal, ".probe");
    let tried = std::fs::File::create(&path).and_then(|mut file| {
        file.write_all(&vec![0x5a; PROBE])?;
        file.sync_all()
    });
    let removed = std::fs::remove_file(&path);
    tried.and(removed)
}

/// What is known before anything is opened.
struct Origin<'a> {
    found: Found,
    seen: Option<Witness>,
    dir: &'a Path,
}

impl Origin<'_> {
    fn id(&self) -> Uuid {
        self.seen.as_ref().map_or_else(Uuid::now_v7, |w| w.id)
    }

    fn generation(&self) -> u32 {
        self.seen.as_ref().map_or(0, |w| w.generation).saturating_add(1)
    }

    /// A new journal, with what could be kept of an old one.
    fn begin<T>(
        self,
        lock: Option<OwnedFd>,
        kept: Contents,
        read: &impl Fn(&Contents) -> Result<T, JournalError>,
    ) -> Result<(Journal, T), JournalError> {
        let kept = kept.readable(read);
        let read = read(&kept)?;
        let id = kept.records::<Uuid>(Table::System).ok().and_then(|rows| rows.into_iter().next());
        let store = match guarded(|| SledStore::open(self.dir)) {
            Ok(store) => store,
            Err(trouble) => return Ok((self.closed(&words(trouble), true), read)),
        };
        let sequence = self.seen.as_ref().map_or(0, |w| w.sequence);
        let mut batch = Batch::default();
        for (key, value) in kept.rows(Table::Keys) {
            batch.put_raw(Table::Keys, key, value.clone());
        }
        let book = Book {
            store: Box::new(store),
            // Later than all that there was: an old one that is put back is known by that.
            ledger: Ledger::of(std::iter::empty(), sequence),
            witness: None,
            lock,
        };
        // What the witness says is proved by its sum; what was salvaged, by nothing.
        let id = self.seen.as_ref().map(|w| w.id).or(id.map(|(_, id)| id)).unwrap_or_else(|| self.id());
        let generation = self.generation();
        Ok((self.count(book, batch, id, generation), read))
    }

    /// The journal as it is.
    fn go_on<T>(self, lock: Option<OwnedFd>, taken: Taken<T>) -> Result<(Journal, T), JournalError> {
        let Taken { mut book, id, generation, bare, read, .. } = taken;
        book.lock = lock;
        let id = id.unwrap_or_else(|| self.id());
        let found = if bare { self.found.clone() } else { Found::Whole };
        let generation = generation.saturating_add(1);
        Ok((Origin { found, ..self }.count(book, Batch::default(), id, generation), read))
    }

    /// Counts this start. If that can't be written, nothing else is either.
    fn count(self, mut book: Book, mut batch: Batch, id: Uuid, generation: u32) -> Journal {
        batch.put(Table::Meta, "version", &VERSION);
        batch.put(Table::Meta, "generation", &generation);
        batch.put(Table::System, ID, &id);
        if self.found != Found::Whole {
            batch.put(Table::Meta, REBUILDING, &1);
        }
        let written = catch_unwind(AssertUnwindSafe(|| {
            book.write(batch)?;
            if !self.dir.as_os_str().is_empty() {
                let sequence = book.ledger.seal().sequence;
                let witness = Witness { v: VERSION, id, generation, sequence };
                book.witness = Some(WitnessFile::create(self.dir, witness)?);
            }
            Committer::start(book)
        }));
        match written.unwrap_or_else(|_| Err(io::Error::other("the store panicked"))) {
            Ok(committer) => Journal { committer, id, generation, found: self.found },
            Err(e) => Journal { id, generation, ..self.closed(&unwritable(&e), true) },
        }
    }

    /// The journal can't be written where it is: what it says is read from a copy.
    fn by_copy<T>(
        self,
        refused: &io::Error,
        read: &impl Fn(&Contents) -> Result<T, JournalError>,
    ) -> Result<(Journal, T), JournalError> {
        tracing::error!(error = %refused, "the journal can't be opened where it is: a copy is read");
        let copy = aside::Copy::of(self.dir).map_err(Trouble::Refused);
        let taken = copy.and_then(|copy| attempt(copy.path(), self.seen.as_ref(), read));
        match taken {
            Ok(Taken { id, generation, read, bare, .. }) => {
                let found = if bare { self.found.clone() } else { Found::Whole };
                let journal = Origin { found, ..self }.closed(&unwritable(refused), true);
                Ok((Journal { id: id.unwrap_or(journal.id), generation, ..journal }, read))
            }
            Err(Trouble::Newer(why)) => self.left_alone(why, false, read),
            Err(trouble) => {
                let why = format!("{}; its disk refuses too ({refused})", words(trouble));
                self.left_alone(why, true, read)
            }
        }
    }

    fn left_alone<T>(
        self,
        why: String,
        passes: bool,
        read: &impl Fn(&Contents) -> Result<T, JournalError>,
    ) -> Result<(Journal, T), JournalError> {
        let read = read(&Contents::default())?;
        tracing::error!(why, "the journal is left as it is: no change is taken");
        let refusal = format!("the journal is left as it is, and no change is taken: {why}");
        Ok((Origin { found: Found::Unread { why }, ..self }.closed(&refusal, passes), read))
    }

    fn closed(self, why: &str, passes: bool) -> Journal {
        let refusal = Refusal { why: why.to_owned(), passes };
        let (id, generation) = (self.id(), self.generation());
        Journal { committer: Committer::closed(refusal), id, generation, found: self.found }
    }
}

/// Opens what is there and proves it. What the store does when it lets go of it may fail too.
fn attempt<T>(
    dir: &Path,
    seen: Option<&Witness>,
    read: &impl Fn(&Contents) -> Result<T, JournalError>,
) -> Result<Taken<T>, Trouble> {
    // The store takes bytes that can't be read for the end of what there is, and writes there.
    read_through(dir).map_err(Trouble::Refused)?;
    let tried = || guarded(|| SledStore::open(dir)).and_then(|store| take(store, seen, read));
    catch_unwind(AssertUnwindSafe(tried)).unwrap_or_else(|_| Err(Trouble::Damaged(PANICKED.into())))
}

/// Reads all there is and proves it.
fn take<T>(
    store: impl Store + 'static,
    seen: Option<&Witness>,
    read: &impl Fn(&Contents) -> Result<T, JournalError>,
) -> Result<Taken<T>, Trouble> {
    let (contents, seals) = guarded(|| Ok((Contents::scan(&store)?, store.scan(Table::Seal)?)))?;
    let damaged = |e: JournalError| Trouble::Damaged(crate::engine::error::chain(&e));
    let meta = contents.records::<u32>(Table::Meta).map_err(damaged)?;
    let value = |key: &str| meta.iter().find(|(k, _)| k == key).map(|(_, v)| *v);
    let bare = seals.is_empty() && Table::ALL.iter().all(|table| contents.rows(*table).is_empty());
    let version = match value("version") {
        Some(have) if have > VERSION => return Err(Trouble::Newer(newer(have))),
        Some(have) => have,
        None if bare && seen.is_none() => VERSION,
        None => return Err(Trouble::Damaged("its version is missing".into())),
    };
    let rows = Table::ALL.into_iter().flat_map(|table| {
        contents.rows(table).iter().map(move |(key, value)| (stored_key(table, key), value.as_slice()))
    });
    let sealed = seals.iter().find(|(key, _)| key == seal::KEY).map(|(_, text)| text);
    let sealed = sealed.map(|text| serde_json::from_slice::<Seal>(text));
    let ledger = match sealed {
        Some(Ok(seal)) => {
            let ledger = Ledger::of(rows, seal.sequence);
            if ledger.seal() != seal {
                let have = ledger.seal().records;
                let text =
                    format!("{have} records are there that are not the {} it was closed with", seal.records);
                return Err(Trouble::Damaged(text));
            }
            ledger
        }
        Some(Err(e)) => return Err(Trouble::Damaged(format!("its seal can't be read: {e}"))),
        // Before there were seals there was no witness either.
        None if seen.is_none() && (version < 2 || bare) => Ledger::of(rows, 0),
        None => return Err(Trouble::Damaged("its seal is missing".into())),
    };
    let id = contents.records::<Uuid>(Table::System).map_err(damaged)?;
    let id = id.into_iter().find(|(key, _)| key == ID).map(|(_, id)| id);
    if let Some(seen) = seen {
        if id != Some(seen.id) {
            let whose = id.map_or("nobody's".to_owned(), |id| format!("that of appliance {id}"));
            return Err(Trouble::Damaged(format!("it is {whose}, and this is {}", seen.id)));
        }
        let (have, want) = (ledger.seal().sequence, seen.sequence);
        if have < want {
            let text = format!("it is older than it was: it has {have} changes, and {want} were made");
            return Err(Trouble::Damaged(text));
        }
    }
    let generation = value("generation").unwrap_or(0);
    let (empty, bare) = (bare, bare || value(REBUILDING).is_some());
    match read(&contents) {
        Ok(read) => {
            let book = Book { store: Box::new(store), ledger, witness: None, lock: None };
            Ok(Taken { book, id, generation, empty, bare, read })
        }
        // All is as a daemon wrote it: it is another one's that knows more.
        Err(e) if version == VERSION => Err(Trouble::Newer(format!(
            "{}: another version of the daemon wrote it",
            crate::engine::error::chain(&e)
        ))),
        Err(e) => Err(damaged(e)),
    }
}

/// What the journals that were set aside can give together, the newest first.
fn salvage_older(dir: &Path, seen: Option<&Witness>) -> Result<Contents, Trouble> {
    let mut all = Contents::default();
    for at in aside::those_of(dir).map_err(Trouble::Refused)?.iter().rev() {
        all = all.with_keys_of(salvage(at, seen)?);
    }
    Ok(all)
}

/// What a journal that is not believed can still give without harm: keys of volumes, each of which proves itself when it
/// is used, and the appliance's identity. Who may use what is not among it, and nothing is of another appliance's. An error
/// is the system's: a copy could not be made.
fn salvage(at: &Path, seen: Option<&Witness>) -> Result<Contents, Trouble> {
    let mut kept = Contents::default();
    let copy = aside::Copy::of(at).map_err(Trouble::Refused)?;
    let mut read = || -> Result<(), Trouble> {
        let store = guarded(|| SledStore::open(copy.path()))?;
        for table in [Table::System, Table::Keys] {
            let rows = guarded(|| Ok(store.scan_what_can_be_read(table)))?;
            let sound = |value: &[u8]| serde_json::from_slice::<serde::de::IgnoredAny>(value).is_ok();
            kept.tables.insert(table, rows.into_iter().filter(|(_, value)| sound(value)).collect());
        }
        Ok(())
    };
    if let Err(trouble) = read() {
        tracing::error!(why = words(trouble), "no keys of volumes could be read in the damaged journal");
    }
    let id = kept.records::<Uuid>(Table::System).ok().and_then(|rows| rows.into_iter().next());
    if seen.zip(id).is_some_and(|(seen, (_, id))| seen.id != id) {
        kept = Contents::default();
    }
    Ok(kept)
}

/// Reads all files of a journal from its disk, once, as plain bytes.
fn read_through(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            let mut file = std::fs::File::open(entry.path())?;
            // After a failed sync the kernel may show bytes that are not on the disk.
            let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
            io::copy(&mut file, &mut io::sink())?;
        }
    }
    Ok(())
}

fn newer(have: u32) -> String {
    format!("it has version {have}, and this daemon knows {VERSION}: a newer daemon wrote it")
}

fn unwritable(e: &io::Error) -> String {
    format!("the state partition can't be written ({e}): no change is taken until it can")
}

fn words(trouble: Trouble) -> String {
    match trouble {
        Trouble::Newer(why) | Trouble::Damaged(why) => why,
        Trouble::Refused(e) => unwritable(&e),
    }
}

/// Runs the store's code on bytes that it may not expect.
fn guarded<T>(f: impl FnOnce() -> io::Result<T>) -> Result<T, Trouble> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(e)) if sled_store::is_of_the_system(&e) => Err(Trouble::Refused(e)),
        Ok(Err(e)) => Err(Trouble::Damaged(format!("the store can't read it ({e})"))),
        Err(_) => Err(Trouble::Damaged(PANICKED.into())),
    }
}

/// Keeps other daemons away from the state directory. `None`: there is no such directory.
fn lock(dir: &Path) -> io::Result<Option<OwnedFd>> {
    let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = match openat(CWD, parent, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    // An older daemon locks the store alone; sled would only say that something is wrong.
    let store = openat(CWD, dir.join("db"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    for fd in store.iter().chain([&fd]) {
        match flock(fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(io::Error::other("another process has it")),
            // A file system without locks.
            Err(error) => tracing::warn!(%error, "the state directory can't be locked"),
        }
    }
    Ok(Some(fd))
}
