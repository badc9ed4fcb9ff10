//! Which blocks of a zvol's snapshot have data, and which are not as in an older one: ZFS says so in the records of a stream
//! of it (`dmu_replay_record` of sys/zfs_ioctl.h). What the records carry is read and thrown away; their order is that of
//! the bytes, and a stream can begin anywhere.
//!
//! Called by the pool.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;

use super::ZfsPool;
use crate::kernel::Deadline;
use crate::kernel::lzc::{self, Lzc};
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
        let lzc = lzc::get().ok_or_else(|| self.ctx.unsupported(STREAMS))?;
        let raw = volume.label.encryption.is_some();
        let of = |key, since: Option<SnapshotKey>| {
            let base = since.map(|base| self.dataset(base));
            Stream { lzc, snapshot: self.dataset(key), base, raw }
        };
        let stream = of(key, base);
        let told = match base {
            Some(base) => {
                let before = of(base, None);
                let mut had = Had::new(|from| before.send(from));
                stream.tell(found, deadline, |start, end, found| had.within(start, end, found))
            }
            // What is freed has no data.
            None => stream.tell(found, deadline, |_, end, found| Ok(found.pass(end))),
        };
        told.map_err(self.ctx.io(format!("reading the stream of {}", stream.snapshot)))?;
        self.check(deadline, "telling blocks of a zvol")
    }
}

/// What is sent.
struct Stream {
    lzc: &'static Lzc,
    snapshot: String,
    base: Option<String>,
    /// As it is encrypted.
    raw: bool,
}

/// What records say, one after another.
type Next = Box<dyn FnMut() -> io::Result<Said>>;

impl Stream {
    /// Has ZFS send from a byte on, for as long as somebody reads.
    fn send(&self, from: u64) -> io::Result<Next> {
        let (out, into) = io::pipe()?;
        let (lzc, snapshot, base, raw) = (self.lzc, self.snapshot.clone(), self.base.clone(), self.raw);
        let sender = std::thread::Builder::new()
            .name("blocks".into())
            .spawn(move || lzc.send_blocks(&snapshot, base.as_deref(), into.as_fd(), raw, from))?;
        let out = BufReader::with_capacity(PIECE, File::from(OwnedFd::from(out)));
        let mut sending = Sending { records: Some(Records::of(out)), sender: Some(sender) };
        Ok(Box::new(move || sending.next()))
    }

    /// Finds blocks from where is looked next. `freed` adds what is of interest of a range without data.
    fn tell(
        &self,
        found: &mut Extents,
        deadline: &Deadline,
        freed: impl FnMut(u64, u64, &mut Extents) -> io::Result<More>,
    ) -> io::Result<()> {
        // Where the zvol's last block ends is said once, where a stream begins: not to one that goes on.
        let tail = match self.base.is_some() && found.at() > 0 {
            true => tail(self.send(0)?)?,
            false => None,
        };
        tell(self.send(found.at())?, tail, found, deadline, freed)
    }
}

/// A stream that is being sent. It ends when nobody reads it any more.
struct Sending {
    records: Option<Records<BufReader<File>>>,
    sender: Option<JoinHandle<io::Result<()>>>,
}

impl Sending {
    fn next(&mut self) -> io::Result<Said> {
        let Some(records) = &mut self.records else { return Ok(Said::End) };
        match records.next() {
            // Why it was cut short is what the sender says.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(self.end().err().unwrap_or(e)),
            said => said,
        }
    }

    /// Nothing holds the snapshot afterwards.
    fn end(&mut self) -> io::Result<()> {
        self.records = None;
        let Some(sender) = self.sender.take() else { return Ok(()) };
        sender.join().unwrap_or_else(|_| Err(io::Error::other("its thread died")))
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        // Its pipe is broken: what it says of that is not an error.
        let _ = self.end();
    }
}

/// How much of the older snapshot is read to come to what is wanted next, before it is sent anew from there.
const NEAR: u64 = 16 << 20;

/// What an older snapshot has. A stream since then frees all holes, also those that were there before: who reads only that
/// takes a volume that is mostly empty for changed.
struct Had<F> {
    from: F,
    /// The stream that is read, and what it said last: from where to where.
    now: Option<(Next, (u64, u64))>,
}

impl<F: FnMut(u64) -> io::Result<Next>> Had<F> {
    fn new(from: F) -> Self {
        Self { from, now: None }
    }

    /// Adds what it has of a range. Ranges come in order.
    fn within(&mut self, start: u64, end: u64, found: &mut Extents) -> io::Result<More> {
        let (start, end) = (start.max(found.at()), end.min(found.end()));
        if start >= end {
            return Ok(found.pass(end));
        }
        let near = self.now.take().filter(|(_, (at, _))| at.saturating_add(NEAR) >= start);
        let (mut next, mut last) = match near {
            Some(now) => now,
            None => ((self.from)(start)?, (start, start)),
        };
        while last.0 < end {
            let length = last.1.min(end).saturating_sub(start.max(last.0));
            if found.add(start.max(last.0), length) == More::Enough {
                return Ok(More::Enough);
            }
            if last.1 >= end {
                break;
            }
            let before = last.0;
            last = loop {
                match next()? {
                    Said::Written(offset, length) => break (offset, offset.saturating_add(length)),
                    Said::Freed(..) | Said::Nothing => {}
                    Said::End => break (u64::MAX, u64::MAX),
                }
            };
            in_order(before, last.0)?;
        }
        self.now = Some((next, last));
        Ok(found.pass(end))
    }
}

/// What lies before the last one would be taken for told.
fn in_order(last: u64, offset: u64) -> io::Result<()> {
    match offset < last {
        true => Err(io::Error::new(io::ErrorKind::InvalidData, "its blocks are not in order")),
        false => Ok(()),
    }
}

/// From where on a zvol has nothing at all, as its stream says before its blocks.
fn tail(mut next: Next) -> io::Result<Option<u64>> {
    loop {
        match next()? {
            Said::Freed(offset, u64::MAX) => return Ok(Some(offset)),
            Said::Written(..) | Said::Freed(..) | Said::End => return Ok(None),
            Said::Nothing => {}
        }
    }
}

/// Reads records until it is enough.
fn tell(
    mut next: Next,
    mut tail: Option<u64>,
    found: &mut Extents,
    deadline: &Deadline,
    mut freed: impl FnMut(u64, u64, &mut Extents) -> io::Result<More>,
) -> io::Result<()> {
    let mut last = 0;
    while deadline.check().is_ok() {
        let (offset, more) = match next()? {
            // The one record that is out of order: it comes before the blocks, and is behind all of them.
            Said::Freed(offset, u64::MAX) => {
                tail = Some(offset);
                continue;
            }
            Said::Nothing => continue,
            Said::Freed(offset, length) => {
                in_order(last, offset)?;
                (offset, freed(offset, offset.saturating_add(length), found)?)
            }
            Said::Written(offset, length) => {
                in_order(last, offset)?;
                (offset, found.add(offset, length))
            }
            Said::End => {
                let more = match tail {
                    Some(offset) => freed(offset, u64::MAX, found)?,
                    None => More::Wanted,
                };
                if more == More::Wanted {
                    found.finish();
                }
                return Ok(());
            }
        };
        if more == More::Enough {
            return Ok(());
        }
        last = offset;
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
struct Records<R> {
    stream: R,
    begun: bool,
    /// What the last one carries.
    carries: u64,
}

impl<R: Read> Records<R> {
    fn of(stream: R) -> Self {
        Self { stream, begun: false, carries: 0 }
    }

    fn next(&mut self) -> io::Result<Said> {
        let bad = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        self.skip()?;
        let mut record = [0u8; RECORD];
        self.stream.read_exact(&mut record)?;
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

    fn skip(&mut self) -> io::Result<()> {
        let carries = std::mem::take(&mut self.carries);
        match io::copy(&mut (&mut self.stream).take(carries), &mut io::sink())? {
            n if n == carries => Ok(()),
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

    fn next(stream: Vec<u8>) -> Next {
        let mut records = Records::of(io::Cursor::new(stream));
        Box::new(move || records.next())
    }

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(60))
    }

    type Told = (io::Result<()>, Vec<(u64, u64)>, Option<u64>);

    fn pairs(result: io::Result<()>, found: Extents) -> Told {
        let (found, next) = found.into_parts();
        (result, found.into_iter().map(|e| (e.offset, e.length)).collect(), next)
    }

    /// `had`: whether what is freed was something before.
    fn told(stream: &[u8], had: bool, most: usize) -> Told {
        let mut found = Extents::new(0, 2 << 20, most, Duration::from_secs(60));
        let freed = |start: u64, end, found: &mut Extents| match had {
            true => Ok(found.add(start, end - start)),
            false => Ok(found.pass(end)),
        };
        let result = tell(next(stream.to_vec()), None, &mut found, &soon(), freed);
        pairs(result, found)
    }

    #[test]
    fn records_say_what_was_written_and_freed() {
        let (result, found, next) = told(&stream(), true, 100);
        result.unwrap();
        assert_eq!(found, [(0, 16384), (65536, 8192), (131_072, 8192), (1 << 20, 1 << 20)]);
        assert_eq!(next, None);
        let (result, found, next) = told(&stream(), false, 100);
        result.unwrap();
        assert_eq!((found, next), (vec![(0, 16384), (131_072, 8192)], None));
    }

    fn written(blocks: &[u64]) -> Vec<u8> {
        let block = |at: &u64| record(3, &[(0, 1), (16, *at), (24, 8192)], &[], &[], 8192);
        let blocks = blocks.iter().flat_map(block).collect();
        [begin(0), blocks, record(5, &[], &[], &[], 0)].concat()
    }

    #[test]
    fn of_what_is_freed_only_what_was_there_is_told() {
        let far = 40 << 20;
        let free = |at: u64, length: u64| record(4, &[(0, 1), (8, at), (16, length)], &[], &[], 0);
        let since = [
            begin(0),
            free(far + (1 << 20), u64::MAX),
            free(0, 8192),
            free(16384, 65536),
            record(3, &[(0, 1), (16, 131_072), (24, 8192)], &[], &[], 8192),
            free(262_144, 8192),
            free(far, 8192),
            record(5, &[], &[], &[], 0),
        ]
        .concat();
        // In a hole, across the end of one, where it is written now, in none, and behind the last of the new one.
        let all = [8192, 24576, 32768, 81920, 131_072, 196_608, far + 4096, far + (1 << 20), far + (3 << 20)];
        let (mut found, mut asked) = (Extents::new(0, 64 << 20, 100, Duration::from_secs(60)), Vec::new());
        let mut had = Had::new(|from| {
            asked.push(from);
            let rest: Vec<u64> = all.iter().copied().filter(|at| at + 8192 > from).collect();
            Ok(next(written(&rest)))
        });
        let result = tell(next(since.clone()), None, &mut found, &soon(), |a, b, f| had.within(a, b, f));
        let (result, found, after) = pairs(result, found);
        result.unwrap();
        let want = [
            (24576, 16384),
            (131_072, 8192),
            (far + 4096, 4096),
            (far + (1 << 20), 8192),
            (far + (3 << 20), 8192),
        ];
        assert_eq!((&found[..], after), (&want[..], None));
        // What is far is not read up to: but what was said last lies there already.
        assert_eq!(asked, [0]);

        // In pages, each of which begins new streams.
        for most in [1, 2, 3] {
            let (mut at, mut pages) = (Some(0), Vec::new());
            while let Some(from) = at {
                let mut found = Extents::new(from, 64 << 20, most, Duration::from_secs(60));
                let mut had = Had::new(|from| {
                    Ok(next(written(&all.iter().copied().filter(|at| at + 8192 > from).collect::<Vec<_>>())))
                });
                let tail = tail(next(since.clone())).unwrap();
                tell(next(since.clone()), tail, &mut found, &soon(), |a, b, f| had.within(a, b, f)).unwrap();
                let (_, page, after) = pairs(Ok(()), found);
                pages.extend(page);
                at = after;
            }
            assert_eq!(pages, want, "{most}");
        }
    }

    #[test]
    fn an_older_snapshot_is_read_from_near_or_anew() {
        let mut asked = Vec::new();
        let mut had = Had::new(|from| {
            asked.push(from);
            let every = (0..).map(|n| n << 20).skip_while(|at| *at < from).take_while(|at| *at < 100 << 20);
            Ok(next(written(&every.collect::<Vec<_>>())))
        });
        let mut found = Extents::new(0, 100 << 20, 100, Duration::from_secs(60));
        for at in [0, 3 << 20, 10 << 20, 60 << 20, 61 << 20] {
            assert_eq!(had.within(at, at + 16384, &mut found).unwrap(), More::Wanted);
        }
        let found = pairs(Ok(()), found).1;
        assert_eq!(found, [0, 3, 10, 60, 61].map(|mib| (mib << 20, 8192)));
        assert_eq!(asked, [0, 60 << 20]);
    }

    #[test]
    fn an_older_snapshot_that_can_not_be_read_is_an_error() {
        let mut found = Extents::new(0, 2 << 20, 100, Duration::from_secs(60));
        let mut had = Had::new(|_| Err(io::ErrorKind::NotFound.into()));
        had.within(0, 8192, &mut found).unwrap_err();
        let cut = written(&[0, 8192]);
        let mut had = Had::new(|_| Ok(next(cut[..cut.len() - RECORD].to_vec())));
        had.within(0, 1 << 20, &mut found).unwrap_err();
        let mut had = Had::new(|_| Ok(next(written(&[65536, 0]))));
        had.within(32768, 1 << 20, &mut found).unwrap_err();
        // What could not be told is looked at again.
        assert_eq!(pairs(Ok(()), found).2, Some(73728));
    }

    #[test]
    fn where_a_zvol_ends_is_known_to_who_goes_on() {
        assert_eq!(tail(next(stream())).unwrap(), Some(1 << 20));
        let rest = [begin(0), record(3, &[(0, 1), (16, 131_072), (24, 8192)], &[], &[], 8192)].concat();
        assert_eq!(tail(next(rest.clone())).unwrap(), None);
        let whole = [rest, record(5, &[], &[], &[], 0)].concat();
        let mut found = Extents::new(65536, 2 << 20, 100, Duration::from_secs(60));
        let freed = |start: u64, end, found: &mut Extents| Ok(found.add(start, end - start));
        let result = tell(next(whole), Some(1 << 20), &mut found, &soon(), freed);
        let (result, found, next) = pairs(result, found);
        result.unwrap();
        assert_eq!((found, next), (vec![(131_072, 8192), (1 << 20, 1 << 20)], None));
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
