//! Where a file's bytes are on its file system (FIEMAP, Documentation/filesystems/fiemap.rst).
//!
//! Called by pools of files: two files that have a block at the same place share it.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;

use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// `struct fiemap` and `struct fiemap_extent` of linux/fiemap.h.
const HEADER: usize = 32;
const EXTENT: usize = 56;
/// How many are asked for at once.
const COUNT: usize = 512;
const BUFFER: usize = HEADER + COUNT * EXTENT;

/// `FS_IOC_FIEMAP`
const FS_IOC_FIEMAP: Opcode = opcode::read_write::<[u8; HEADER]>(b'f', 11);

/// `FIEMAP_FLAG_SYNC`: what is still in memory is given its place first.
const SYNC: u32 = 1;

/// `FIEMAP_EXTENT_*`: the last one; its place is not known (yet); it is not where it is said to be byte by byte
/// (compressed, say); it lies within other data; it reads as zeros.
const LAST: u32 = 0x1;
const UNKNOWN: u32 = 0x2 | 0x4;
const ENCODED: u32 = 0x8;
const UNALIGNED: u32 = 0x100 | 0x200 | 0x400;
const UNWRITTEN: u32 = 0x800;

/// A run of a file's bytes that is in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// Of its first byte in the file.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
    physical: u64,
    flags: u32,
}

/// The place of a byte. Two bytes that have the same one are one byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Location {
    /// There.
    At(u64),
    /// In what is there, which begins with this byte of the file.
    Within(u64, u64),
}

impl Mapping {
    /// Of the first byte behind it.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    /// Where a byte of it is. `None`: nobody can tell.
    pub fn locate(&self, offset: u64) -> Option<Location> {
        match self.flags {
            flags if flags & (UNKNOWN | UNALIGNED) != 0 => None,
            flags if flags & ENCODED != 0 => Some(Location::Within(self.physical, self.offset)),
            _ => Some(Location::At(self.physical.wrapping_add(offset.wrapping_sub(self.offset)))),
        }
    }
}

/// All of a file's bytes from `from` to `to` that do not read as zeros for sure, in their order.
pub fn mappings(file: &File, from: u64, to: u64) -> io::Result<Vec<Mapping>> {
    let mut found = Vec::new();
    let mut at = from;
    while at < to {
        let mut buffer = Box::new([0u8; BUFFER]);
        buffer[0..8].copy_from_slice(&at.to_ne_bytes());
        buffer[8..16].copy_from_slice(&(to - at).to_ne_bytes());
        buffer[16..20].copy_from_slice(&SYNC.to_ne_bytes());
        buffer[24..28].copy_from_slice(&(COUNT as u32).to_ne_bytes());
        // SAFETY: the kernel reads the header and writes it and at most `COUNT` extents behind it, which there is room
        // for; any bytes are valid in the buffer.
        unsafe { ioctl(file, Updater::<FS_IOC_FIEMAP, [u8; BUFFER]>::new(&mut *buffer)) }?;
        let (extents, last) = taken_apart(&buffer);
        let Some(end) = extents.last().map(Mapping::end) else { break };
        found.extend(extents.iter().filter(|e| e.flags & UNWRITTEN == 0 && e.end() > from && e.offset < to));
        if last || end <= at {
            break;
        }
        at = end;
    }
    Ok(found)
}

/// The extents of an answer, and whether the last one of the file is among them.
fn taken_apart(buffer: &[u8; BUFFER]) -> (Vec<Mapping>, bool) {
    let word = |at: usize| buffer[at..at + 4].try_into().map_or(0, u32::from_ne_bytes);
    let long = |at: usize| buffer[at..at + 8].try_into().map_or(0, u64::from_ne_bytes);
    let count = (word(20) as usize).min(COUNT);
    let extents: Vec<Mapping> = (0..count)
        .map(|n| HEADER + n * EXTENT)
        .map(|at| Mapping {
            offset: long(at),
            physical: long(at + 8),
            length: long(at + 16),
            flags: word(at + 40),
        })
        .collect();
    let last = extents.last().is_none_or(|e| e.flags & LAST != 0);
    (extents, last)
}

#[cfg(test)]
pub(crate) fn mapping(offset: u64, length: u64, physical: u64, flags: u32) -> Mapping {
    Mapping { offset, length, physical, flags }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_answer_is_taken_apart() {
        let mut buffer = [0u8; BUFFER];
        buffer[20..24].copy_from_slice(&2u32.to_ne_bytes());
        for (n, words) in [[4096u64, 1 << 30, 8192], [1 << 20, 5, 4096]].iter().enumerate() {
            let at = HEADER + n * EXTENT;
            for (i, word) in words.iter().enumerate() {
                buffer[at + 8 * i..at + 8 * i + 8].copy_from_slice(&word.to_ne_bytes());
            }
        }
        let (extents, last) = taken_apart(&buffer);
        assert!(!last);
        assert_eq!((extents[0].offset, extents[0].end()), (4096, 12288));
        assert_eq!(extents[0].locate(8192), Some(Location::At((1 << 30) + 4096)));
        buffer[HEADER + EXTENT + 40] = LAST as u8;
        assert!(taken_apart(&buffer).1);
        buffer[HEADER + EXTENT + 40] = (LAST | ENCODED) as u8;
        assert_eq!(taken_apart(&buffer).0[1].locate((1 << 20) + 1), Some(Location::Within(5, 1 << 20)));
        buffer[HEADER + EXTENT + 41] = (UNALIGNED >> 8) as u8;
        assert_eq!(taken_apart(&buffer).0[1].locate(1 << 20), None);
    }

    #[test]
    fn a_file_tells_where_it_has_bytes() {
        use std::os::unix::fs::FileExt;
        let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let file = file.as_file();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(&[1; 8192], 1 << 20).unwrap();
        file.write_all_at(&[1; 4096], 5 << 20).unwrap();
        match mappings(file, 0, 8 << 20) {
            Ok(found) => {
                let runs: Vec<_> = found.iter().map(|m| (m.offset, m.length)).collect();
                assert_eq!(runs, [(1 << 20, 8192), (5 << 20, 4096)]);
                assert_eq!(mappings(file, 2 << 20, 4 << 20).unwrap(), []);
                assert_eq!(mappings(file, (1 << 20) + 4096, 4 << 20).unwrap()[0].end(), (1 << 20) + 8192);
            }
            // A file system that does not tell.
            Err(e) => assert_eq!(e.raw_os_error(), Some(rustix::io::Errno::OPNOTSUPP.raw_os_error()), "{e}"),
        }
    }
}
