//! A backup: the journal's records in one file of lines of JSON, with a checksum at its end. Intents are not in
//! it: what was in flight then is over.

use jiff::Timestamp;
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::{Contents, Table};

/// Version of the format.
const VERSION: u32 = 1;

/// The tables that are in it, by the names they have there.
const TABLES: [(Table, &str); 6] = [
    (Table::System, "system"),
    (Table::Pools, "pools"),
    (Table::Hosts, "hosts"),
    (Table::Attachments, "attachments"),
    (Table::Tokens, "tokens"),
    (Table::Keys, "keys"),
];

/// The first line: what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    orlop_backup: u32,
    /// The appliance that made it.
    pub appliance: Uuid,
    /// When.
    pub made: Timestamp,
    /// How many records follow.
    records: usize,
}

#[derive(Serialize, Deserialize)]
struct Line {
    table: String,
    key: String,
    record: Value,
}

#[derive(Serialize, Deserialize)]
struct Last {
    sha256: String,
}

/// Why a file is not a backup that can be used.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Something else.
    #[error("it is not a backup of an appliance")]
    Another,
    /// Of a newer daemon.
    #[error("it has version {0}, and this daemon knows {VERSION}: update the daemon")]
    TooNew(u32),
    /// Cut short or changed.
    #[error("it is damaged: its checksum is wrong")]
    Damaged,
    /// It can't be read or written as JSON.
    #[error("its line {line} can't be read")]
    Line {
        /// Which.
        line: usize,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// There is a table that is not known.
    #[error("it has a table {0:?}, which this daemon does not know: update the daemon")]
    Table(String),
}

/// What a backup's file holds. Not shown by mistake: there are secrets in it.
#[derive(Clone, PartialEq, Eq)]
pub struct Text(pub Vec<u8>);

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a backup of {} bytes", self.0.len())
    }
}

/// Writes the file.
pub fn write(contents: &Contents, appliance: Uuid, made: Timestamp) -> Result<Vec<u8>, BackupError> {
    let records = TABLES.iter().map(|(table, _)| contents.rows(*table).len()).sum();
    let mut text = Vec::new();
    let mut line = 0;
    let mut add = |value: &dyn Fn() -> serde_json::Result<Vec<u8>>, text: &mut Vec<u8>| {
        line += 1;
        text.extend(value().map_err(|source| BackupError::Line { line, source })?);
        text.push(b'\n');
        Ok(())
    };
    let head = Head { orlop_backup: VERSION, appliance, made, records };
    add(&|| serde_json::to_vec(&head), &mut text)?;
    for (table, name) in TABLES {
        for (key, value) in contents.rows(table) {
            let record = || {
                let record = serde_json::from_slice(value)?;
                serde_json::to_vec(&Line { table: name.into(), key: key.clone(), record })
            };
            add(&record, &mut text)?;
        }
    }
    let last = Last { sha256: sha256(&text) };
    add(&|| serde_json::to_vec(&last), &mut text)?;
    Ok(text)
}

/// Reads one and proves it.
pub fn read(text: &[u8]) -> Result<(Head, Contents), BackupError> {
    #[derive(Deserialize)]
    struct Version {
        orlop_backup: u32,
    }
    let mut lines = text.split_inclusive(|b| *b == b'\n');
    let first = lines.next().unwrap_or_default();
    // The version first: a newer one need not look like today's.
    let version: Version = serde_json::from_slice(first).map_err(|_| BackupError::Another)?;
    if version.orlop_backup > VERSION {
        return Err(BackupError::TooNew(version.orlop_backup));
    }
    let last = text.split_inclusive(|b| *b == b'\n').next_back().unwrap_or_default();
    let body = &text[..text.len() - last.len()];
    let sum: Last = serde_json::from_slice(last).map_err(|_| BackupError::Damaged)?;
    if sum.sha256 != sha256(body) {
        return Err(BackupError::Damaged);
    }
    let head: Head = serde_json::from_slice(first).map_err(|source| BackupError::Line { line: 1, source })?;
    let mut contents = Contents::default();
    let mut records = 0;
    for (n, line) in body.split_inclusive(|b| *b == b'\n').enumerate().skip(1) {
        let line: Line =
            serde_json::from_slice(line).map_err(|source| BackupError::Line { line: n + 1, source })?;
        let known = TABLES.iter().find(|(_, name)| *name == line.table);
        let (table, _) = known.ok_or_else(|| BackupError::Table(line.table.clone()))?;
        let record =
            serde_json::to_vec(&line.record).map_err(|source| BackupError::Line { line: n + 1, source })?;
        contents.tables.entry(*table).or_default().push((line.key, record));
        records += 1;
    }
    match records == head.records {
        true => Ok((head, contents)),
        false => Err(BackupError::Damaged),
    }
}

fn sha256(text: &[u8]) -> String {
    digest(&SHA256, text).as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_backup_reads_as_it_was_written_and_no_other_way() {
        let mut contents = Contents::default();
        contents.tables.insert(Table::Hosts, vec![("h".into(), br#"{"nqn":"nqn.x"}"#.to_vec())]);
        contents.tables.insert(Table::Intents, vec![("1".into(), b"{}".to_vec())]);
        let id = "0190c0de-1234-7abc-8def-0123456789ab".parse().unwrap();
        let text = write(&contents, id, Timestamp::UNIX_EPOCH).unwrap();
        let golden = concat!(
            r#"{"orlop_backup":1,"appliance":"0190c0de-1234-7abc-8def-0123456789ab","made":"1970-01-01T00:00:00Z","records":1}"#,
            "\n",
            r#"{"table":"hosts","key":"h","record":{"nqn":"nqn.x"}}"#,
            "\n"
        );
        assert!(String::from_utf8(text.clone()).unwrap().starts_with(golden));
        let (head, back) = read(&text).unwrap();
        assert_eq!((head.appliance, back.rows(Table::Hosts)), (id, contents.rows(Table::Hosts)));
        assert!(back.rows(Table::Intents).is_empty());
        for n in 0..text.len() {
            let mut bad = text.clone();
            bad[n] ^= 1;
            assert!(read(&bad).is_err(), "byte {n}");
            assert!(n + 1 == text.len() || read(&text[..n]).is_err(), "cut at {n}");
        }
        let newer = golden.replace(r#""orlop_backup":1"#, r#""orlop_backup":2"#);
        assert!(matches!(read(newer.as_bytes()), Err(BackupError::TooNew(2))));
        assert!(matches!(read(b"PK"), Err(BackupError::Another)));
    }
}
