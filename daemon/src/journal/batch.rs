//! What is written together.

use serde::Serialize;

/// The journal's tables. The byte is part of the stored key: never reuse one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Table {
    /// Version and generation.
    Meta = b'm',
    /// The appliance's identity.
    System = b's',
    /// Pool name -> `PoolSpec`.
    Pools = b'p',
    /// Host name -> `HostRecord`.
    Hosts = b'h',
    /// `<volume id>/<host name>` -> `{}`.
    Attachments = b'a',
    /// Token name -> hash and rights.
    Tokens = b't',
    /// Operation number -> `Intent`.
    Intents = b'i',
    /// Volume id -> `VolumeKey`.
    Keys = b'k',
    /// What all of the others are, in sum. The journal's own.
    Seal = b'z',
}

impl Table {
    /// All that the seal covers.
    pub const ALL: [Table; 8] = [
        Self::Meta,
        Self::System,
        Self::Pools,
        Self::Hosts,
        Self::Attachments,
        Self::Tokens,
        Self::Intents,
        Self::Keys,
    ];
}

/// Changes that become durable together or not at all. A later change of a key wins over an earlier.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    pub(super) changes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Batch {
    /// Writes a record.
    pub fn put<T: Serialize>(&mut self, table: Table, key: &str, record: &T) {
        // Records are our own plain structs; serialization to JSON has no failing case for them.
        let value = serde_json::to_vec(record).unwrap_or_default();
        self.changes.push((stored_key(table, key), Some(value)));
    }

    /// Writes a record as it was read.
    pub(super) fn put_raw(&mut self, table: Table, key: &str, value: Vec<u8>) {
        self.changes.push((stored_key(table, key), Some(value)));
    }

    /// Removes a record, if it is there.
    pub fn remove(&mut self, table: Table, key: &str) {
        self.changes.push((stored_key(table, key), None));
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Adds another batch's changes behind these.
    pub fn append(&mut self, other: Batch) {
        self.changes.extend(other.changes);
    }
}

/// As a store keeps it: the table's byte, then the key.
///
/// One sled tree holds all tables, because sled makes a batch atomic within one tree only.
pub(super) fn stored_key(table: Table, key: &str) -> Vec<u8> {
    let mut k = Vec::with_capacity(1 + key.len());
    k.push(table as u8);
    k.extend_from_slice(key.as_bytes());
    k
}
