//! The seal: how many batches the journal has taken, how many records it holds, and a digest of all of
//! them. It is written with every batch, in the same step, so that records which the store loses, keeps or
//! changes without a word are noticed at the next start.

use std::collections::HashMap;

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use super::{Batch, Table};

/// The seal's key in its table.
pub(super) const KEY: &str = "all";

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Seal {
    /// Batches since the appliance's first. Never less than before, also when a journal was lost.
    pub(super) sequence: u64,
    pub(super) records: u64,
    /// The sum of all records' own digests: it doesn't depend on their order, so a batch changes it by its own
    /// records alone.
    pub(super) digest: u64,
}

/// What is needed to make the next seal: the digest of each record there is.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    digests: HashMap<Vec<u8>, u64>,
    seal: Seal,
}

impl Ledger {
    /// The ledger of records that are there, after `sequence` batches.
    pub(super) fn of<'a>(rows: impl Iterator<Item = (Vec<u8>, &'a [u8])>, sequence: u64) -> Self {
        let mut ledger = Self::default();
        for (key, value) in rows {
            ledger.set(key, Some(value));
        }
        ledger.seal.sequence = sequence;
        ledger
    }

    pub(super) fn seal(&self) -> Seal {
        self.seal
    }

    /// Takes a batch in, and puts the seal of what is there after it behind its changes.
    pub(super) fn close(&mut self, batch: &mut Batch) -> Seal {
        for (key, value) in &batch.changes {
            self.set(key.clone(), value.as_deref());
        }
        self.seal.sequence = self.seal.sequence.saturating_add(1);
        batch.put(Table::Seal, KEY, &self.seal);
        self.seal
    }

    fn set(&mut self, key: Vec<u8>, value: Option<&[u8]>) {
        let old = match value {
            Some(value) => {
                let new = digest_of(&key, value);
                self.seal.digest = self.seal.digest.wrapping_add(new);
                self.digests.insert(key, new)
            }
            None => self.digests.remove(&key),
        };
        self.seal.digest = self.seal.digest.wrapping_sub(old.unwrap_or(0));
        self.seal.records = self.digests.len() as u64;
    }
}

fn digest_of(key: &[u8], value: &[u8]) -> u64 {
    let mut text = Vec::with_capacity(8 + key.len() + value.len());
    // Its length first: no other pair makes the same text.
    text.extend_from_slice(&(key.len() as u64).to_le_bytes());
    text.extend_from_slice(key);
    text.extend_from_slice(value);
    let mut first = [0; 8];
    first.copy_from_slice(&digest(&SHA256, &text).as_ref()[..8]);
    u64::from_le_bytes(first)
}
