//! Journals that can't be used: set aside as they are, and read from a copy where that can still tell something.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use jiff::Timestamp;

/// How many are kept: the first, which has what later ones never had, and the newest.
const KEPT: usize = 4;

/// A copy is made in memory, and a journal is far smaller.
const LARGEST: u64 = 1 << 30;

/// A name in the journal's directory that begins with its own.
pub(super) fn beside(journal: &Path, suffix: &str) -> PathBuf {
    let mut name = journal.file_name().unwrap_or_default().to_os_string();
    name.push(suffix);
    journal.with_file_name(name)
}

/// Gives the journal's directory another name, where nobody writes to it again.
pub(super) fn set_aside(journal: &Path) -> io::Result<PathBuf> {
    let newest = those_of(journal)?.pop();
    let mut millisecond = Timestamp::now().as_millisecond();
    let to = loop {
        let at = Timestamp::from_millisecond(millisecond).map_err(io::Error::other)?;
        let at = at.strftime("%Y%m%dT%H%M%S.%3fZ");
        let to = beside(journal, &format!("{DAMAGED}{at}"));
        // In order, also when the clock is wrong for a while.
        if newest.as_ref().is_none_or(|newest| *newest < to) {
            break to;
        }
        millisecond += 1;
    };
    std::fs::rename(journal, &to)?;
    if let Some(dir) = journal.parent() {
        std::fs::File::open(dir)?.sync_all()?;
    }
    // They are only taking room now; what matters is that the new one begins.
    if let Err(error) = thin_out(journal) {
        tracing::warn!(%error, "journals that were set aside take more and more room");
    }
    Ok(to)
}

const DAMAGED: &str = ".damaged-";

/// Those that were set aside, the oldest first.
pub fn those_of(journal: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(dir), Some(start)) =
        (journal.parent(), beside(journal, DAMAGED).file_name().map(ToOwned::to_owned))
    else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(start.as_encoded_bytes()) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

fn thin_out(journal: &Path) -> io::Result<()> {
    let there = those_of(journal)?;
    let spare = there.len().saturating_sub(KEPT);
    for path in there.iter().skip(1).take(spare) {
        std::fs::remove_dir_all(path)?;
    }
    Ok(())
}

/// A copy of a journal, in memory where that can be had: it has secrets. Gone when it is dropped.
#[derive(Debug)]
pub(super) struct Copy(PathBuf);

/// Removes copies that daemons left which were killed: they have secrets in them.
pub(super) fn remove_stale_copies() {
    for place in places() {
        for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let pid =
                name.to_str().and_then(|n| n.strip_prefix(COPY)?.split('-').next()?.parse::<u32>().ok());
            if pid.is_some_and(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists())
                && let Err(error) = std::fs::remove_dir_all(entry.path())
            {
                tracing::warn!(%error, path = %entry.path().display(), "an old copy of the journal is left");
            }
        }
    }
}

/// What copies' names begin with; the daemon's process id follows.
const COPY: &str = "orlop-journal-";

fn places() -> [PathBuf; 4] {
    ["/run/orlop".into(), "/run".into(), "/dev/shm".into(), std::env::temp_dir()]
}

impl Copy {
    /// Copies the files; reads them, and changes nothing of them.
    pub(super) fn of(journal: &Path) -> io::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{COPY}{}-{number}", std::process::id());
        let mut refused = io::Error::other("there is no place for a copy");
        for place in places() {
            let copy = Self(place.join(&name));
            match std::fs::DirBuilder::new().mode(0o700).create(&copy.0) {
                Ok(()) => {
                    copy.fill(journal)?;
                    return Ok(copy);
                }
                Err(e) => {
                    refused = e;
                    // Not ours to remove.
                    std::mem::forget(copy);
                }
            }
        }
        Err(refused)
    }

    fn fill(&self, journal: &Path) -> io::Result<()> {
        let mut left = LARGEST;
        for entry in std::fs::read_dir(journal)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            let to = self.0.join(entry.file_name());
            if kind.is_dir() {
                // sled's directory of blobs, which we never write: records are smaller.
                std::fs::create_dir(to)?;
            } else if kind.is_file() {
                let size = entry.metadata()?.len();
                left =
                    left.checked_sub(size).ok_or_else(|| io::Error::other("it is too large for a copy"))?;
                std::fs::copy(entry.path(), to)?;
            }
        }
        Ok(())
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "a copy of the journal is left, with secrets in it");
        }
    }
}
