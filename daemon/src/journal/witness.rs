//! The witness: a small file beside the journal that remembers what it was last. A journal that was cut
//! short, put back from an older copy or brought from another appliance can be whole in itself; the witness
//! tells.
//!
//! It is written after each batch and never before, and left to the kernel to bring to the disk: after a power
//! cut it may be older than the journal, and is never newer. So it costs no sync and raises no false alarm.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::kernel::fs::Dir;

/// Its length: less than a sector, so that it is overwritten whole.
const LENGTH: usize = 256;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Witness {
    /// The journal's version.
    pub(super) v: u32,
    /// The appliance's identity.
    pub(super) id: Uuid,
    /// How many times it was opened.
    pub(super) generation: u32,
    /// As in the seal.
    pub(super) sequence: u64,
}

impl Witness {
    /// What it says. `None`: there is none, or nothing that can be believed.
    pub(super) fn read(journal: &Path) -> Option<Self> {
        let path = path_of(journal);
        let read = || -> io::Result<Option<Self>> {
            let dir = Dir::open(path.parent().unwrap_or(Path::new("/")))?;
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            dir.read(name, LENGTH as u64)?.map(|text| Self::parse(&text)).transpose()
        };
        read().unwrap_or_else(|error| {
            tracing::warn!(%error, path = %path.display(), "what the journal was last is not known");
            None
        })
    }

    fn parse(text: &[u8]) -> io::Result<Self> {
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "its checksum is wrong");
        let (body, sum) = text.split_at_checked(LENGTH - 9).ok_or_else(wrong)?;
        if sum != format!("{:08x}\n", crc32fast::hash(body)).as_bytes() {
            return Err(wrong());
        }
        serde_json::from_slice(body).map_err(io::Error::other)
    }

    fn text(&self) -> io::Result<Vec<u8>> {
        let mut text = serde_json::to_vec(self).map_err(io::Error::other)?;
        text.resize(LENGTH - 9, b' ');
        let sum = crc32fast::hash(&text);
        text.extend_from_slice(format!("{sum:08x}\n").as_bytes());
        Ok(text)
    }
}

/// The file, open.
#[derive(Debug)]
pub(super) struct WitnessFile {
    file: File,
    witness: Witness,
    failed: bool,
}

impl WitnessFile {
    /// Puts it in place, durably.
    pub(super) fn create(journal: &Path, witness: Witness) -> io::Result<Self> {
        let path = path_of(journal);
        let dir = Dir::open(path.parent().unwrap_or(Path::new("/")))?;
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        dir.replace(name, &witness.text()?, true)?;
        dir.sync()?;
        Ok(Self { file: dir.file(name, true)?, witness, failed: false })
    }

    /// The journal has taken so many batches, durably. Not worth a failure: an older witness raises no alarm.
    pub(super) fn note(&mut self, sequence: u64) {
        self.witness.sequence = sequence;
        let written = self.witness.text().and_then(|text| self.file.write_all_at(&text, 0));
        if let Err(error) = &written
            && !self.failed
        {
            tracing::warn!(%error, "what the journal is last is not remembered beside it");
        }
        self.failed = written.is_err();
    }
}

/// Its place, from the journal's.
pub(super) fn path_of(journal: &Path) -> PathBuf {
    super::aside::beside(journal, ".seen")
}
