//! The store with its seal: how anything is written into it.

use std::io;
use std::os::fd::OwnedFd;

use super::seal::Ledger;
use super::witness::WitnessFile;
use super::{Batch, Store};

/// See the module.
pub(super) struct Book {
    pub(super) store: Box<dyn Store>,
    pub(super) ledger: Ledger,
    /// None in tests, which have no directory.
    pub(super) witness: Option<WitnessFile>,
    /// Keeps another daemon away for as long as this one may write.
    pub(super) lock: Option<OwnedFd>,
}

impl Book {
    /// Makes a batch durable. After an error nothing more may be written: what is there is not known.
    pub(super) fn write(&mut self, mut batch: Batch) -> io::Result<()> {
        let seal = self.ledger.close(&mut batch);
        self.store.apply(&batch)?;
        self.store.sync()?;
        if let Some(witness) = &mut self.witness {
            witness.note(seal.sequence);
        }
        Ok(())
    }
}
