//! Which blocks of a zvol's snapshot have data, and which are not as in an older one: ZFS says so in the records of a stream
//! of it (`dmu_replay_record` of sys/zfs_ioctl.h). What the records carry is read and thrown away; their order is that of
//! the bytes, and a stream can begin anywhere.
//!
//! Called by the pool.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;

use super::ZfsPool;
use crate::kernel::{Deadline, lzc};
use crate::model::SnapshotKey;
use crate::pool::Result;
use crate::pool::blocks::{Extents, More};

/// `sizeof (dmu_replay_record_t)`, and where what differs from kind to kind begins.
const RECORD: usize = 312;
const BODY: usize = 8;
/// `DMU_BACKUP_MAGIC`: a stream of this machine's byte order.
const MAGIC: u64 = 0x2_F5BA_CBAC;
/// The object of a zvol that its bytes are in (`ZVOL_OBJ`).
const BYTES: u64 = 1;
/// How much is read from the pipe at once.
const PIECE: usize = 256 << 10;

/// What is missing where this can't be told.
const STREAMS: &str = "telling blocks of a zvol needs libzfs_core";

impl ZfsPool {
    pub(super) fn blocks_of(
        &self,
        key: SnapshotKey,
        base: Option<SnapshotKey>,
        found: &mut Extents,
        deadline: &Deadline,
    ) -> Result<()> {
        for key in [Some(key), base].into_iter().flatten() {
            if self.look_snapshot(key, deadline)?.is_none() {
                return Err(self.ctx.not_found(format!("snapshot {key}")));
            }
        }
        let volume = self.existing(key.volume, deadline)?;
        if volume.filesystem.is_some() {
            return Err(self.no_bytes(format!("snapshot {key}")));
        }
        if found.is_enough() {
            return Ok(());
        }
        let raw = volume.label.encryption.is_some();
        let (from, changes) = (found.at(), base.is_some());
        let of = Stream { snapshot: self.dataset(key), base: base.map(|base| self.dataset(base)), raw };
        // Where the zvol's last block ends is said once, where a stream begins: not to one that goes on.
        let tail = match changes && from > 0 {
            true => self.streamed(&of, 0, |stream| tail(stream))?,
            false => None,
        };
        self.streamed(&of, from, |stream| tell(stream, changes, tail, found, deadline))?;
        self.ctx.check(deadline, "telling blocks of a zvol")
    }

    /// Has ZFS send from a byte on, and what it sends read for as long as the reader wants.
    fn streamed<T: Send>(
        &self,
        of: &Stream,
        from: u64,
        read: impl FnOnce(BufReader<File>) -> io::Result<T> + Send,
    ) -> Result<T> {
        let lzc = lzc::get().ok_or_else(|| self.ctx.unsupported(STREAMS))?;
        let (out, into) = io::pipe().map_err(self.ctx.io("making a pipe"))?;
        let name = &of.snapshot;
        let (sent, read) = std::thread::scope(|scope| {
            let sender = std::thread::Builder::new().name("blocks".into()).spawn_scoped(scope, move || {
                lzc.send_blocks(&of.snapshot, of.base.as_deref(), into.as_fd(), of.raw, from)
            });
            let out = BufReader::with_capacity(PIECE, File::from(OwnedFd::from(out)));
            // Who reads no more ends the sender: its pipe is broken.
            let read = sender.as_ref().is_ok().then(|| read(out));
            (sender.map(|s| s.join()), read)
        });
        let sent = sent.map_err(self.ctx.io("starting a thread"))?;
        let sent = sent.unwrap_or_else(|_| Err(io::Error::other("its thread died")));
        let broken = |e: &io::Error| {
            let ends = [Errno::PIPE, Errno::INTR].map(Errno::raw_os_error);
            e.raw_os_error().is_some_and(|e| ends.contains(&e))
        };
        match (sent, read) {
            // All that was wanted was read, whatever the sender says of its pipe.
            (_, Some(Ok(read))) => Ok(read),
            (Err(e), Some(Err(_)) | None) if !broken(&e) => Err(self.ctx.io(format!("sending {name}"))(e)),
            (_, Some(Err(e))) => Err(self.ctx.io(format!("reading the stream of {name}"))(e)),
            (Err(e), None) => Err(self.ctx.io(format!("sending {name}"))(e)),
            (Ok(()), None) => Err(self.ctx.io(format!("sending {name}"))(io::Error::other("nobody read it"))),
        }
    }
}

/// What is sent.
struct Stream {
    snapshot: String,
    base: Option<String>,
    /// As it is encrypted.
    raw: bool,
}

/// From where on a zvol has nothing at all, as its stream says before its blocks.
fn tail(mut stream: impl Read) -> io::Result<Option<u64>> {
    let mut records = Records::default();
    loop {
        match records.next(&mut stream)? {
            Said::Freed(offset, u64::MAX) => return Ok(Some(offset)),
            Said::Written(..) | Said::Freed(..) | Said::End => return Ok(None),
            Said::Nothing => {}
        }
        records.skip(&mut stream)?;
    }
}

/// Reads records until it is enough. `changes`: what was freed counts, because it was something else before.
fn tell(
    mut stream: impl Read,
    changes: bool,
    mut tail: Option<u64>,
    found: &mut Extents,
    deadline: &Deadline,
) -> io::Result<()> {
    let mut records = Records::default();
    let mut last = 0;
    while deadline.check().is_ok() {
        let told = match records.next(&mut stream)? {
            // The one record that is out of order: it comes before the blocks, and is behind all of them.
            Said::Freed(offset, u64::MAX) => {
                tail = Some(offset);
                None
            }
            Said::Freed(offset, length) => changes.then_some((offset, length)),
            Said::Written(offset, length) => Some((offset, length)),
            Said::Nothing => None,
            Said::End => {
                if let Some(offset) = tail.filter(|_| changes) {
                    let _ = found.add(offset, u64::MAX);
                }
                found.finish();
                return Ok(());
            }
        };
        if let Some((offset, length)) = told {
            // What lies before the last one would be taken for told.
            if offset < last {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "its blocks are not in order"));
            }
            last = offset;
            if found.add(offset, length) == More::Enough {
                return Ok(());
            }
        }
        records.skip(&mut stream)?;
    }
    Ok(())
}

/// What a record says of the zvol's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Written(u64, u64),
    Freed(u64, u64),
    Nothing,
    End,
}

/// The records of a stream, one after another.
#[derive(Default)]
struct Records {
    begun: bool,
    /// What the last one carries.
    carries: u64,
}

impl Records {
    /// The next one. What the one before carries has been skipped.
    fn next(&mut self, stream: &mut impl Read) -> io::Result<Said> {
        let bad = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let mut record = [0u8; RECORD];
        stream.read_exact(&mut record)?;
        let r = Record(&record);
        if !self.begun && (r.kind() != 0 || r.long(0) != MAGIC) {
            return Err(bad("it does not begin as a stream does".into()));
        }
        self.begun = true;
        let (said, carries) = match r.kind() {
            0 => (Said::Nothing, u64::from(r.word_of_record(4))),
            1 => (Said::Nothing, if r.word(28) != 0 { u64::from(r.word(28)) } else { round(r.word(20)) }),
            // Objects that are not there any more; a range of them that is encrypted.
            2 | 9 => (Said::Nothing, 0),
            3 => {
                (Said::Written(r.long(16), r.long(24)), if r.byte(42) != 0 { r.long(88) } else { r.long(24) })
            }
            4 => (Said::Freed(r.long(8), r.long(16)), 0),
            5 => (Said::End, 0),
            6 => (Said::Written(r.long(8), r.long(16)), 0),
            7 => (Said::Nothing, if r.byte(25) != 0 { r.long(32) } else { r.long(8) }),
            8 => (Said::Written(r.long(8), r.long(16)), round(r.word(44))),
            other => return Err(bad(format!("it has a record of a kind that is not known ({other})"))),
        };
        self.carries = carries;
        let of_bytes = !matches!(said, Said::Written(..) | Said::Freed(..)) || r.is_bytes();
        Ok(if of_bytes { said } else { Said::Nothing })
    }

    fn skip(&mut self, stream: &mut impl Read) -> io::Result<()> {
        match io::copy(&mut stream.take(self.carries), &mut io::sink())? {
            n if n == self.carries => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// Up to a whole number of words.
fn round(bytes: u32) -> u64 {
    u64::from(bytes).next_multiple_of(8)
}

/// A record, by where in its body something is.
struct Record<'r>(&'r [u8; RECORD]);

impl Record<'_> {
    fn kind(&self) -> u32 {
        self.word_of_record(0)
    }

    fn word_of_record(&self, at: usize) -> u32 {
        self.0[at..at + 4].try_into().map_or(0, u32::from_ne_bytes)
    }

    fn byte(&self, at: usize) -> u8 {
        self.0[BODY + at]
    }

    fn word(&self, at: usize) -> u32 {
        self.word_of_record(BODY + at)
    }

    fn long(&self, at: usize) -> u64 {
        self.0[BODY + at..BODY + at + 8].try_into().map_or(0, u64::from_ne_bytes)
    }

    /// Whether it is about the zvol's bytes.
    fn is_bytes(&self) -> bool {
        self.long(0) == BYTES
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;

    /// A record with words of 8 bytes, words of 4 and single bytes somewhere in its body, and what it carries.
    fn record(
        kind: u32,
        longs: &[(usize, u64)],
        words: &[(usize, u32)],
        bytes: &[(usize, u8)],
        carries: usize,
    ) -> Vec<u8> {
        let mut r = vec![0u8; RECORD];
        r[..4].copy_from_slice(&kind.to_ne_bytes());
        longs.iter().for_each(|(at, v)| r[BODY + at..BODY + at + 8].copy_from_slice(&v.to_ne_bytes()));
        words.iter().for_each(|(at, v)| r[BODY + at..BODY + at + 4].copy_from_slice(&v.to_ne_bytes()));
        bytes.iter().for_each(|(at, v)| r[BODY + at] = *v);
        // Not zeros: they would be taken for a record of the first kind.
        r.extend(std::iter::repeat_n(0xee, carries));
        r
    }

    fn begin(carries: usize) -> Vec<u8> {
        let mut r = record(0, &[(0, MAGIC)], &[], &[], carries);
        r[4..8].copy_from_slice(&(carries as u32).to_ne_bytes());
        r
    }

    fn stream() -> Vec<u8> {
        [
            begin(200),
            record(1, &[(0, 1)], &[(20, 13)], &[], 16),
            // Behind the last block, and before all of them.
            record(4, &[(0, 1), (8, 1 << 20), (16, u64::MAX)], &[], &[], 0),
            record(2, &[], &[], &[], 0),
            record(3, &[(0, 1), (16, 0), (24, 8192)], &[], &[], 8192),
            record(3, &[(0, 1), (16, 8192), (24, 8192), (88, 512)], &[], &[(42, 2)], 512),
            record(4, &[(0, 1), (8, 65536), (16, 8192)], &[], &[], 0),
            // Of another object.
            record(3, &[(0, 2), (16, 0), (24, 512)], &[], &[], 512),
            record(7, &[(0, 2), (8, 512)], &[], &[], 512),
            record(8, &[(0, 1), (8, 131_072), (16, 8192)], &[(44, 20)], &[], 24),
            record(1, &[(0, 2)], &[(20, 13), (28, 320)], &[], 320),
            record(4, &[(0, 2), (8, 0), (16, u64::MAX)], &[], &[], 0),
            record(5, &[], &[], &[], 0),
        ]
        .concat()
    }

    fn told(stream: &[u8], changes: bool, most: usize) -> (io::Result<()>, Vec<(u64, u64)>, Option<u64>) {
        let mut found = Extents::new(0, 2 << 20, most, Duration::from_secs(60));
        let result = tell(stream, changes, None, &mut found, &Deadline::after(Duration::from_secs(60)));
        let (found, next) = found.into_parts();
        (result, found.into_iter().map(|e| (e.offset, e.length)).collect(), next)
    }

    #[test]
    fn records_say_what_was_written_and_freed() {
        let (result, found, next) = told(&stream(), true, 100);
        result.unwrap();
        assert_eq!(found, [(0, 16384), (65536, 8192), (131_072, 8192), (1 << 20, 1 << 20)]);
        assert_eq!(next, None);
        // What is freed has no data.
        assert_eq!(told(&stream(), false, 100).1, [(0, 16384), (131_072, 8192)]);
    }

    #[test]
    fn where_a_zvol_ends_is_known_to_who_goes_on() {
        assert_eq!(tail(&stream()[..]).unwrap(), Some(1 << 20));
        let rest = [begin(0), record(3, &[(0, 1), (16, 131_072), (24, 8192)], &[], &[], 8192)].concat();
        assert_eq!(tail(&rest[..]).unwrap(), None);
        let whole = [rest, record(5, &[], &[], &[], 0)].concat();
        let mut found = Extents::new(65536, 2 << 20, 100, Duration::from_secs(60));
        let soon = Deadline::after(Duration::from_secs(60));
        tell(&whole[..], true, Some(1 << 20), &mut found, &soon).unwrap();
        let (found, next) = found.into_parts();
        assert_eq!(found.iter().map(|e| e.offset).collect::<Vec<_>>(), [131_072, 1 << 20]);
        assert_eq!(next, None);
    }

    #[test]
    fn it_ends_when_it_is_enough() {
        let (result, found, next) = told(&stream(), true, 2);
        result.unwrap();
        assert_eq!((found, next), (vec![(0, 16384), (65536, 8192)], Some(131_072)));
    }

    #[test]
    fn what_is_cut_short_or_strange_is_an_error() {
        let whole = stream();
        for cut in [0, 100, RECORD, RECORD + 100, whole.len() - RECORD] {
            let (result, _, next) = told(&whole[..cut], true, 100);
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "{cut}");
            assert!(next.is_some(), "{cut}");
        }
        let back = |at: u64| record(3, &[(0, 1), (16, at), (24, 8192)], &[], &[], 8192);
        let disordered = [begin(0), back(65536), back(0)].concat();
        assert_eq!(told(&disordered, true, 100).0.unwrap_err().kind(), io::ErrorKind::InvalidData);
        let strange = [begin(0), record(10, &[], &[], &[], 0)].concat();
        assert_eq!(told(&strange, true, 100).0.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(
            told(&record(5, &[], &[], &[], 0), true, 100).0.unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }
}
