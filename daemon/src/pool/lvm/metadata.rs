//! A volume group's metadata, read from its disks.
//!
//! Called by the group, for every reading: LVM's own report costs a process, and says the same. The text
//! is replaced whole by LVM (ring buffer, then one sector that points into it), so what the sector points to
//! is one committed state; its checksum tells a text that was overwritten while it was read. On disk:
//! `label_header` and `pv_header` in one of the first four sectors, `mda_header` where that says
//! (lvm2, lib/format_text/layout.h). LVM writes around the page cache, so this reads around it as well.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::kernel::fs;

/// Where LVM's checksums begin.
const SEED: u32 = 0xf597_a6cf;
const SECTOR: usize = 512;
/// What direct I/O is aligned to here: no disk asks for more.
const ALIGN: usize = 4096;
/// The largest text: it has a ring of 64 MiB, and two must fit.
const MAX_TEXT: u64 = 32 << 20;
/// How deep sections are in each other: five levels are in use.
const DEPTH: usize = 12;

/// A value of the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Number(u64),
    Text(String),
    List(Vec<Value>),
    Section(Section),
}

/// Names with values, as `name = value` or `name { ... }` gives them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Section(BTreeMap<String, Value>);

impl Section {
    pub fn section(&self, name: &str) -> Option<&Section> {
        match self.0.get(name)? {
            Value::Section(s) => Some(s),
            _ => None,
        }
    }

    pub fn number(&self, name: &str) -> Option<u64> {
        match self.0.get(name)? {
            Value::Number(n) => Some(*n),
            _ => None,
        }
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        match self.0.get(name)? {
            Value::Text(t) => Some(t),
            _ => None,
        }
    }

    /// The texts of a list. None of them where there is no such list.
    pub fn texts(&self, name: &str) -> impl Iterator<Item = &str> {
        let list = match self.0.get(name) {
            Some(Value::List(list)) => list.as_slice(),
            _ => &[],
        };
        list.iter().filter_map(|v| match v {
            Value::Text(t) => Some(t.as_str()),
            _ => None,
        })
    }

    pub fn sections(&self) -> impl Iterator<Item = (&str, &Section)> {
        self.0.iter().filter_map(|(name, v)| match v {
            Value::Section(s) => Some((name.as_str(), s)),
            _ => None,
        })
    }
}

fn bad(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// The committed state of the group `name` as one of its disks has it. `None`: the disk keeps no metadata,
/// or another group's.
pub(super) fn read(device: &Path, name: &str) -> io::Result<Option<Section>> {
    let file = File::open(device)?;
    fs::set_direct(&file)?;
    read_from(&file, name)
}

/// The name of the group that a disk belongs to, as the disk itself has it.
pub(super) fn group_of(device: &Path) -> io::Result<Option<String>> {
    let file = File::open(device)?;
    fs::set_direct(&file)?;
    let Some(whole) = text_of(&file)? else { return Ok(None) };
    Ok(whole.sections().next().map(|(name, _)| name.to_string()))
}

fn read_from(file: &File, name: &str) -> io::Result<Option<Section>> {
    let Some(mut whole) = text_of(file)? else { return Ok(None) };
    Ok(match whole.0.remove(name) {
        Some(Value::Section(group)) => Some(group),
        _ => None,
    })
}

/// The committed text: a section with the group's name, and what LVM says of the text itself.
fn text_of(file: &File) -> io::Result<Option<Section>> {
    let head = bytes(file, 0, 4 * SECTOR)?;
    let Some(area) = area(&head) else { return Ok(None) };
    // A text can be overwritten while it is read, by two changes in a row.
    for _ in 0..3 {
        let header = bytes(file, area.0, SECTOR)?;
        let Some(place) = Place::of(&header, area)? else { return Ok(None) };
        let text = place.text(file)?;
        if crc(&text) != place.crc {
            continue;
        }
        let text = String::from_utf8(text).map_err(|_| bad("its metadata is no text"))?;
        return parse(text.trim_end_matches('\0')).map(Some).map_err(bad);
    }
    Err(bad("its metadata does not have its checksum"))
}

/// Reads around the page cache.
fn bytes(file: &File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let before = usize::try_from(offset % ALIGN as u64).unwrap_or(0);
    let whole = (before + len).next_multiple_of(ALIGN);
    let mut room = vec![0u8; whole + ALIGN];
    let skip = room.as_ptr().align_offset(ALIGN);
    file.read_exact_at(&mut room[skip..skip + whole], offset - before as u64)?;
    Ok(room[skip + before..skip + before + len].to_vec())
}

fn crc(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(!SEED);
    hasher.update(bytes);
    !hasher.finalize()
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// Where the first metadata area is and how long, by the label in one of the first sectors.
fn area(head: &[u8]) -> Option<(u64, u64)> {
    let sector = head.chunks(SECTOR).find(|s| s.starts_with(b"LABELONE") && &s[24..32] == b"LVM2 001")?;
    if crc(&sector[20..]) != word(sector, 16) {
        return None;
    }
    // After the UUID and the size: areas of data, then areas of metadata, each list with a zero at its end.
    let mut at = word(sector, 20) as usize + 40;
    while at + 16 <= SECTOR && long(sector, at) != 0 {
        at += 16;
    }
    at += 16;
    let area = (long(sector, at), long(sector, at + 8));
    (area.0 != 0 && area.1 > SECTOR as u64).then_some(area)
}

/// Where the text is.
struct Place {
    area: (u64, u64),
    offset: u64,
    len: u64,
    crc: u32,
}

impl Place {
    /// `None`: nothing was committed, or LVM keeps nothing in this area.
    fn of(header: &[u8], area: (u64, u64)) -> io::Result<Option<Self>> {
        if crc(&header[4..]) != word(header, 0) || &header[4..20] != b" LVM2 x[5A%r0N*>" {
            return Err(bad("its metadata's header is damaged"));
        }
        let place = Self { area, offset: long(header, 40), len: long(header, 48), crc: word(header, 56) };
        let ignored = word(header, 60) & 1 != 0;
        if place.offset == 0 || ignored {
            return Ok(None);
        }
        let inside = (SECTOR as u64..area.1).contains(&place.offset);
        if !inside || place.len > MAX_TEXT.min(area.1 - SECTOR as u64) {
            return Err(bad("its metadata's header points out of its area"));
        }
        Ok(Some(place))
    }

    /// The ring begins behind the header.
    fn text(&self, file: &File) -> io::Result<Vec<u8>> {
        let first = self.len.min(self.area.1 - self.offset);
        let size = |n: u64| usize::try_from(n).map_err(|_| bad("its metadata is too long"));
        let mut text = bytes(file, self.area.0 + self.offset, size(first)?)?;
        if first < self.len {
            text.extend(bytes(file, self.area.0 + SECTOR as u64, size(self.len - first)?)?);
        }
        Ok(text)
    }
}

/// Reads a text of LVM's configuration language.
pub(super) fn parse(text: &str) -> Result<Section, String> {
    let mut parser = Parser { rest: text };
    let section = parser.body(0)?;
    match parser.rest.is_empty() {
        true => Ok(section),
        false => Err(parser.unexpected()),
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn unexpected(&self) -> String {
        format!("its metadata is not understood at {:?}", self.rest.chars().take(20).collect::<String>())
    }

    fn space(&mut self) {
        loop {
            self.rest = self.rest.trim_start();
            if !self.rest.starts_with('#') {
                return;
            }
            self.rest = self.rest.split_once('\n').map_or("", |(_, rest)| rest);
        }
    }

    fn take(&mut self, c: char) -> bool {
        self.space();
        let rest = self.rest.strip_prefix(c);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn word(&mut self) -> Result<&str, String> {
        self.space();
        let part = |c: char| c.is_ascii_alphanumeric() || "_.+-".contains(c);
        let end = self.rest.find(|c| !part(c)).unwrap_or(self.rest.len());
        if end == 0 {
            return Err(self.unexpected());
        }
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok(word)
    }

    fn body(&mut self, depth: usize) -> Result<Section, String> {
        let mut section = Section::default();
        loop {
            self.space();
            if self.rest.is_empty() || self.rest.starts_with('}') {
                return Ok(section);
            }
            let name = self.word()?.to_string();
            let value = if self.take('{') {
                if depth == DEPTH {
                    return Err(self.unexpected());
                }
                let body = self.body(depth + 1)?;
                if !self.take('}') {
                    return Err(self.unexpected());
                }
                Value::Section(body)
            } else if self.take('=') {
                self.value(depth)?
            } else {
                return Err(self.unexpected());
            };
            section.0.insert(name, value);
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, String> {
        if self.take('"') {
            return self.quoted().map(Value::Text);
        }
        if !self.take('[') {
            let unknown = self.unexpected();
            return self.word()?.parse().map(Value::Number).map_err(|_| unknown);
        }
        if depth == DEPTH {
            return Err(self.unexpected());
        }
        let mut list = Vec::new();
        while !self.take(']') {
            if !list.is_empty() && !self.take(',') {
                return Err(self.unexpected());
            }
            list.push(self.value(depth + 1)?);
        }
        Ok(Value::List(list))
    }

    fn quoted(&mut self) -> Result<String, String> {
        let mut text = String::new();
        let mut chars = self.rest.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    return Ok(text);
                }
                '\\' => text.extend(chars.next().map(|(_, c)| c)),
                c => text.push(c),
            }
        }
        Err(self.unexpected())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = include_str!("metadata.txt");

    #[test]
    fn a_group_is_read() {
        let whole = parse(TEXT).unwrap();
        let group = whole.section("contract").unwrap();
        assert_eq!(group.number("extent_size"), Some(2048));
        assert_eq!(group.texts("tags").collect::<Vec<_>>(), ["orlop.pool.contract"]);
        let thin = group.section("logical_volumes").and_then(|l| l.section("thin")).unwrap();
        assert_eq!(thin.section("segment1").and_then(|s| s.text("type")), Some("thin-pool"));
        assert_eq!(group.texts("nothing").count(), 0);
    }

    /// What a disk has, with the text at `offset` of its area.
    fn disk(text: &str, offset: u64) -> (File, (u64, u64)) {
        let area = (4096u64, 64 << 10);
        let mut label = [0u8; SECTOR];
        label[..8].copy_from_slice(b"LABELONE");
        label[20..24].copy_from_slice(&32u32.to_le_bytes());
        label[24..32].copy_from_slice(b"LVM2 001");
        for (at, n) in [(72, 1u64 << 20), (104, area.0), (112, area.1)] {
            label[at..at + 8].copy_from_slice(&n.to_le_bytes());
        }
        let sum = crc(&label[20..]);
        label[16..20].copy_from_slice(&sum.to_le_bytes());
        let mut header = [0u8; SECTOR];
        header[4..20].copy_from_slice(b" LVM2 x[5A%r0N*>");
        header[40..48].copy_from_slice(&offset.to_le_bytes());
        header[48..56].copy_from_slice(&(text.len() as u64).to_le_bytes());
        header[56..60].copy_from_slice(&crc(text.as_bytes()).to_le_bytes());
        let sum = crc(&header[4..]);
        header[..4].copy_from_slice(&sum.to_le_bytes());
        let f = tempfile::tempfile().unwrap();
        f.set_len(1 << 20).unwrap();
        f.write_all_at(&label, SECTOR as u64).unwrap();
        f.write_all_at(&header, area.0).unwrap();
        let first = text.len().min(usize::try_from(area.1 - offset).unwrap());
        f.write_all_at(&text.as_bytes()[..first], area.0 + offset).unwrap();
        f.write_all_at(&text.as_bytes()[first..], area.0 + SECTOR as u64).unwrap();
        (f, area)
    }

    #[test]
    fn a_disk_is_read_and_damage_is_seen() {
        for offset in [512, 3584, (64 << 10) - 512] {
            let (file, area) = disk(TEXT, offset);
            let group = read_from(&file, "contract").unwrap().unwrap();
            assert_eq!(group.number("seqno"), Some(9));
            assert_eq!(read_from(&file, "other").unwrap(), None);
            let byte = area.0 + offset + 7;
            file.write_all_at(b"\xff", byte).unwrap();
            assert!(read_from(&file, "contract").unwrap_err().to_string().contains("checksum"));
        }
        let (file, area) = disk(TEXT, 512);
        file.write_all_at(&[9; 8], area.0 + 40).unwrap();
        assert!(read_from(&file, "contract").unwrap_err().to_string().contains("header"));
        file.write_all_at(&[0; 2048], 0).unwrap();
        assert_eq!(read_from(&file, "contract").unwrap(), None, "no label: no disk of LVM's");
    }

    proptest! {
        #[test]
        fn any_text_is_an_answer(text in "[a-c{}\\[\\]=\"#\\\\,0-9 \n]{0,80}") {
            let _ = parse(&text);
        }

        #[test]
        fn texts_come_back(value in "[ -~]{0,40}") {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            let parsed = parse(&format!("a = [\"{quoted}\", 7]")).unwrap();
            prop_assert_eq!(parsed.texts("a").collect::<Vec<_>>(), [value.as_str()]);
        }
    }
}
