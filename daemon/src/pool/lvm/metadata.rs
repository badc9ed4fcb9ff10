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
use std::path::{Path, PathBuf};

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

/// What a power cut did to a disk's metadata, and what it was put back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PutBack {
    /// The number of the state that is committed now.
    pub seqno: u64,
}

/// Puts a disk's metadata back to the state before, where what is committed is not whole. Nothing where there is nothing to put right, or
/// nothing to put it back to. `mark`: the tag of groups that are ours.
///
/// LVM writes a text, and then the sector that points to it, and does not have the disk flush its cache in between. When the power
/// goes just then, the sector may be on the disk and the text not, or not all of it: then LVM does not know the group any more. The
/// text before that is still there, whole, since LVM never writes over the one that is committed; and nothing was flushed to the
/// disk after that sector, or the text would have been as well. So all that is on the disk is of the state before: it is
/// as if the command had not been begun, and nobody was told that it was done.
pub(super) fn put_back(device: &Path, name: &str, mark: &str) -> io::Result<Option<PutBack>> {
    let file = File::open(device)?;
    fs::set_direct(&file)?;
    let Some((at, header, found)) = state_before(&file, name, mark)? else { return Ok(None) };
    // Opened to be written only now: udev looks at each disk that was.
    let file = File::options().read(true).write(true).open(device)?;
    fs::set_direct(&file)?;
    overwrite(&file, at, &header)?;
    file.sync_all()?;
    Ok(Some(found))
}

/// Whole disks, partitions and arrays: whatever LVM may have as a disk, and nothing that is a volume of somebody's.
pub(super) fn candidates() -> io::Result<Vec<PathBuf>> {
    const VOLUMES: [&str; 6] = ["zd", "dm-", "loop", "ram", "sr", "fd"];
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/class/block")? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // Of an array, and not its members: both may show the same.
        let is_member = std::fs::read_dir(entry.path().join("holders")).is_ok_and(|holders| {
            holders.flatten().any(|holder| holder.file_name().to_string_lossy().starts_with("md"))
        });
        if !is_member && !VOLUMES.iter().any(|prefix| name.starts_with(prefix)) {
            found.push(Path::new("/dev").join(name));
        }
    }
    found.sort();
    Ok(found)
}

/// The header that commits the state before, and where it belongs.
fn state_before(file: &File, name: &str, mark: &str) -> io::Result<Option<(u64, Vec<u8>, PutBack)>> {
    let head = bytes(file, 0, 4 * SECTOR)?;
    let Some(area) = area(&head) else { return Ok(None) };
    let header = bytes(file, area.0, SECTOR)?;
    let Some(place) = Place::of(&header, area)? else { return Ok(None) };
    if crc(&place.text(file)?) == place.crc {
        return Ok(None);
    }
    let Some((before, seqno)) = one_before(file, &place, name, mark)? else { return Ok(None) };
    let mut header = header;
    header[40..48].copy_from_slice(&before.offset.to_le_bytes());
    header[48..56].copy_from_slice(&before.len.to_le_bytes());
    header[56..60].copy_from_slice(&before.crc.to_le_bytes());
    // Nothing is half committed either.
    header[60..88].fill(0);
    let sum = crc(&header[4..]);
    header[..4].copy_from_slice(&sum.to_le_bytes());
    Ok(Some((area.0, header, PutBack { seqno })))
}

/// Where the text behind this one begins (`_next_rlocn_offset` of LVM).
fn behind(place: &Place) -> u64 {
    let (first, size) = (SECTOR as u64, place.area.1);
    let end = place.offset + place.len;
    let end = if end > size { end - size + first } else { end };
    let next = end.next_multiple_of(first);
    if size - (end - 1) < first || next > size - first { first } else { next }
}

/// The text that was committed before this one, if it is whole: the one that ends where this begins.
fn one_before(file: &File, this: &Place, name: &str, mark: &str) -> io::Result<Option<(Place, u64)>> {
    let (area, first) = (this.area, SECTOR as u64);
    let ring = bytes(file, area.0 + first, usize::try_from(area.1 - first).map_err(io::Error::other)?)?;
    let begins = format!("{name} {{\n");
    for at in (0..ring.len()).step_by(SECTOR).filter(|at| ring[*at..].starts_with(begins.as_bytes())) {
        // It goes on at the ring's beginning, up to a zero, which belongs to it.
        let around = ring[at..].iter().chain(&ring[..at]).copied();
        let mut text: Vec<u8> = around.take_while(|b| *b != 0).collect();
        let whole = std::str::from_utf8(&text).ok().and_then(|text| parse(text).ok()).filter(is_whole);
        text.push(0);
        let place = Place { area, offset: at as u64 + first, len: text.len() as u64, crc: crc(&text) };
        let fits = place.len <= MAX_TEXT.min(area.1 - first);
        if !fits || place.offset == this.offset || behind(&place) != this.offset {
            continue;
        }
        let group = whole.as_ref().and_then(|whole| whole.section(name));
        let ours = group.filter(|group| group.texts("tags").any(|tag| tag == mark));
        if let Some(seqno) = ours.and_then(|group| group.number("seqno")) {
            return Ok(Some((place, seqno)));
        }
    }
    Ok(None)
}

/// Whether a text has what LVM writes last.
fn is_whole(text: &Section) -> bool {
    text.text("contents") == Some("Text Format Volume Group") && text.number("creation_time").is_some()
}

/// Writes one sector, around the page cache, and nothing beside it where the disk can do that.
fn overwrite(file: &File, offset: u64, sector: &[u8]) -> io::Result<()> {
    let unit = match rustix::fs::ioctl_blksszget(file) {
        Ok(unit) => u64::from(unit).clamp(SECTOR as u64, ALIGN as u64),
        // A file, in tests.
        Err(_) => SECTOR as u64,
    };
    let before = usize::try_from(offset % unit).unwrap_or(0);
    let whole = (before + sector.len()).next_multiple_of(usize::try_from(unit).unwrap_or(ALIGN));
    let mut room = vec![0u8; whole + ALIGN];
    let skip = room.as_ptr().align_offset(ALIGN);
    let there = bytes(file, offset - before as u64, whole)?;
    room[skip..skip + whole].copy_from_slice(&there);
    room[skip + before..skip + before + sector.len()].copy_from_slice(sector);
    file.write_all_at(&room[skip..skip + whole], offset - before as u64)
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
    const MARK: &str = "orlop.pool.contract";

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

    fn put_back_on(file: &File, name: &str, mark: &str) -> io::Result<Option<PutBack>> {
        let Some((at, header, found)) = state_before(file, name, mark)? else { return Ok(None) };
        overwrite(file, at, &header)?;
        Ok(Some(found))
    }

    /// As LVM would write it: a zero at the end, and the next one in a sector of its own.
    fn text_of_number(n: u64) -> String {
        format!("{}\0", TEXT.replace("seqno = 9", &format!("seqno = {n}")))
    }

    #[test]
    fn a_text_that_did_not_come_to_the_disk_is_as_if_it_had_not_been_written() {
        let (older, old, new) = (text_of_number(7), text_of_number(8), text_of_number(9));
        let sectors = |text: &str| (text.len() as u64).next_multiple_of(SECTOR as u64);
        let end = 64 << 10;
        // In the middle of the ring, and with the old one around its end.
        for at in [512 + sectors(&older), end - 512] {
            let next =
                if at + sectors(&old) < end { at + sectors(&old) } else { at + sectors(&old) - end + 512 };
            let (file, area) = disk(&new, next);
            let put = |text: &str, offset: u64| {
                let first = text.len().min(usize::try_from(area.1 - offset).unwrap());
                file.write_all_at(&text.as_bytes()[..first], area.0 + offset).unwrap();
                file.write_all_at(&text.as_bytes()[first..], area.0 + SECTOR as u64).unwrap();
            };
            put(&old, at);
            if at < end - 512 {
                put(&older, 512);
            }
            assert_eq!(put_back_on(&file, "contract", MARK).unwrap(), None, "it is whole");
            // One sector of it is lost.
            file.write_all_at(&[0; SECTOR], area.0 + next + 512).unwrap();
            assert!(read_from(&file, "contract").is_err());
            assert_eq!(put_back_on(&file, "other", MARK).unwrap(), None, "another group's");
            assert_eq!(put_back_on(&file, "contract", "orlop.pool.x").unwrap(), None, "another's");
            assert_eq!(put_back_on(&file, "contract", MARK).unwrap(), Some(PutBack { seqno: 8 }));
            let group = read_from(&file, "contract").unwrap().unwrap();
            assert_eq!(group.number("seqno"), Some(8));
            assert_eq!(put_back_on(&file, "contract", MARK).unwrap(), None, "once");
        }
        // There is none before it: all is left as it is.
        let (file, area) = disk(&new, 512);
        file.write_all_at(&[0; SECTOR], area.0 + 1024).unwrap();
        assert_eq!(put_back_on(&file, "contract", MARK).unwrap(), None);
        assert!(read_from(&file, "contract").is_err());
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
