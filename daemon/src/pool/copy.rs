//! Copying the content of a snapshot into a new backing, block by block.
//!
//! Called by the engine, on a thread of its own: a copy takes as long as it takes and must not hold a
//! lane. It knows two open files and nothing of pools.
//!
//! What has no bytes in a row (a ZFS dataset) its pools send and receive themselves; here the stream is carried
//! from one to the other.
//!
//! Direct I/O, so that a copy does not push out of memory what others use. Blocks of zeros are not
//! written: the new backing reads as zeros there already, and stays thin. Holes of a file are not even
//! read. Where the backing reads as anything, all is written.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::{PoolError, Result};

/// What is read and written at a time: large enough that the cost of a request does not count.
const BLOCK: usize = 1 << 20;

/// What is carried from one pipe to another at a time: what a pipe holds.
const PIECE: usize = 64 << 10;

/// The start of a buffer for direct I/O: no device has larger logical blocks.
const ALIGN: usize = 4096;

/// How far a copy is, and whether it should stop: shared with whoever looks on.
#[derive(Debug, Default)]
pub struct Watch {
    /// Bytes from the start that are copied.
    pub done: AtomicU64,
    /// Set to end the copy at its next block.
    pub stop: AtomicBool,
    /// Zeros are written too: the target does not read as zeros where nothing was written.
    pub write_zeros: AtomicBool,
}

/// What is not written. Compared as a whole, which is several times faster than looking at bytes.
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// A buffer that starts at a multiple of `ALIGN`.
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    fn new() -> Self {
        let bytes = vec![0; BLOCK + ALIGN];
        let start = bytes.as_ptr().align_offset(ALIGN);
        Self { bytes, start }
    }

    fn first(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + len]
    }
}

/// Copies `from..to` bytes, and gives back where it stopped: `to`, or before that if `watch` said so or
/// `pause` has passed. What it wrote is durable then. Blocks of zeros are left out, unless `watch` says otherwise.
pub fn copy(
    source: &File,
    target: &File,
    from: u64,
    to: u64,
    watch: &Watch,
    pause: Duration,
) -> io::Result<u64> {
    let at = blocks(source, target, from, to, watch, Some(Instant::now() + pause))?;
    target.sync_all()?;
    watch.done.store(at, Ordering::Release);
    Ok(at)
}

/// [`copy`] without the last word: nothing is synced.
pub(super) fn blocks(
    source: &File,
    target: &File,
    from: u64,
    to: u64,
    watch: &Watch,
    end: Option<Instant>,
) -> io::Result<u64> {
    let mut buffer = Buffer::new();
    let mut at = from;
    let all = watch.write_zeros.load(Ordering::Acquire);
    while at < to {
        if watch.stop.load(Ordering::Acquire) || end.is_some_and(|end| Instant::now() >= end) {
            break;
        }
        match if all { Some(at) } else { next_data(source, at)? } {
            Some(data) if data >= to => at = to,
            // Down to the grid, which the data's start need not be on.
            Some(data) => at = at.max(data / BLOCK as u64 * BLOCK as u64),
            None => at = to,
        }
        if at >= to {
            break;
        }
        let len = usize::try_from(to - at).map_or(BLOCK, |left| left.min(BLOCK));
        let block = buffer.first(len);
        source.read_exact_at(block, at)?;
        if all || block.chunks(ZEROS.len()).any(|part| *part != ZEROS[..part.len()]) {
            target.write_all_at(block, at)?;
        }
        at += len as u64;
        watch.done.store(at, Ordering::Release);
    }
    Ok(at)
}

/// Carries a stream from what writes it to what reads it, all of it or until `watch` says so: then both meet the end
/// of their pipe. An error of the one that caused the other's is given back.
pub fn pour(
    send: impl FnOnce(File) -> Result<()> + Send,
    receive: impl FnOnce(File) -> Result<()> + Send,
    watch: &Watch,
) -> Result<()> {
    let broken = |source: io::Error| PoolError::Stream { source };
    let file = |end: OwnedFd| File::from(end);
    let pipe = || io::pipe().map(|(r, w)| (file(r.into()), file(w.into()))).map_err(broken);
    let ((out, sent), (received, into)) = (pipe()?, pipe()?);
    watch.done.store(0, Ordering::Release);
    std::thread::scope(|threads| {
        let sender = threads.spawn(|| send(sent));
        let receiver = threads.spawn(|| receive(received));
        let carried = carry(out, into, watch);
        let died = || Err(broken(io::Error::other("a thread of the copy died")));
        let sent = sender.join().unwrap_or_else(|_| died());
        let received = receiver.join().unwrap_or_else(|_| died());
        // Who stops writing before the end ends the other; who stops reading breaks the other's pipe.
        match (sent, received, carried) {
            (Ok(()), Ok(()), carried) => carried.map(drop).map_err(broken),
            (Ok(()), Err(e), _) => Err(e),
            (Err(e), Ok(()), _) => Err(e),
            (Err(s), Err(r), carried) => Err(if carried.is_ok() { s } else { r }),
        }
    })
}

/// Until the end of the one, or until the other is closed. Closes both.
fn carry(mut from: File, mut to: File, watch: &Watch) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    while !watch.stop.load(Ordering::Acquire) {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            n => {
                to.write_all(&buffer[..n])?;
                watch.done.fetch_add(n as u64, Ordering::AcqRel);
            }
        }
    }
    Err(io::ErrorKind::Interrupted.into())
}

/// Where data is, at or after `at`. `None`: nowhere. A device has it everywhere.
pub(super) fn next_data(file: &File, at: u64) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(data) => Ok(Some(data)),
        Err(Errno::NXIO) => Ok(None),
        // Block devices of kernels before 6.12 don't seek for data.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(at)),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::MetadataExt;

    const LONG: Duration = Duration::from_secs(60);

    fn file(len: u64) -> File {
        let f = tempfile::tempfile().unwrap();
        f.set_len(len).unwrap();
        f
    }

    #[test]
    fn what_is_there_is_copied_and_holes_stay_holes() {
        let len = (40 << 20) + 4096;
        let (a, b) = (file(len), file(len));
        for at in [0, (7 << 20) - 3, len - 5] {
            a.write_all_at(b"hello", at).unwrap();
        }
        a.write_all_at(&[0; 4 << 20], 20 << 20).unwrap();
        let watch = Watch::default();
        assert_eq!(copy(&a, &b, 0, len, &watch, LONG).unwrap(), len);
        assert_eq!(watch.done.load(Ordering::Acquire), len);
        let read = |f: &File| {
            let mut bytes = vec![0; usize::try_from(len).unwrap()];
            f.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        assert!(read(&a) == read(&b));
        assert!(b.metadata().unwrap().blocks() * 512 <= 5 << 20);
    }

    fn fails(why: &str) -> Result<()> {
        Err(PoolError::Stream { source: io::Error::other(why.to_string()) })
    }

    fn all_of(mut from: File) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).map_err(|source| PoolError::Stream { source })?;
        Ok(bytes)
    }

    #[test]
    fn a_stream_is_carried_whole() {
        let (watch, mut got) = (Watch::default(), Vec::new());
        let sent: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
        let send = |mut into: File| into.write_all(&sent).map_err(|source| PoolError::Stream { source });
        let receive = |from: File| all_of(from).map(|bytes| got = bytes);
        pour(send, receive, &watch).unwrap();
        assert!(got == sent);
        assert_eq!(watch.done.load(Ordering::Acquire), 1_000_000);
    }

    #[test]
    fn who_fails_first_is_told_and_nobody_waits_for_ever() {
        let endless = |mut into: File| loop {
            into.write_all(&[1; 4096]).map_err(|source| PoolError::Stream { source })?;
        };
        let watch = Watch::default();
        let chain = |r: Result<()>| crate::engine::error::chain(&r.unwrap_err());
        let error = chain(pour(endless, |_| fails("no room"), &watch));
        assert!(error.contains("no room"), "{error}");
        let short = |from: File| all_of(from).and_then(|_| fails("cut short"));
        let error = chain(pour(|_| fails("unreadable"), short, &watch));
        assert!(error.contains("unreadable"), "{error}");
        watch.stop.store(true, Ordering::Release);
        assert!(pour(endless, short, &watch).is_err());
    }

    #[test]
    fn zeros_are_written_where_nothing_reads_as_zeros() {
        let (a, b) = (file(3 << 20), file(3 << 20));
        a.write_all_at(&[7; 4096], 2 << 20).unwrap();
        b.write_all_at(&[9; 3 << 20], 0).unwrap();
        let watch = Watch::default();
        watch.write_zeros.store(true, Ordering::Release);
        assert_eq!(copy(&a, &b, 0, 3 << 20, &watch, LONG).unwrap(), 3 << 20);
        let mut bytes = vec![1; 3 << 20];
        b.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes[..2 << 20].iter().all(|b| *b == 0) && bytes[2 << 20..(2 << 20) + 4096] == [7; 4096]);
        assert!(bytes[(2 << 20) + 4096..].iter().all(|b| *b == 0));
    }

    #[test]
    fn it_stops_when_told_and_goes_on_from_there() {
        let (a, b) = (file(8 << 20), file(8 << 20));
        a.write_all_at(&[7; 8 << 20], 0).unwrap();
        let watch = Watch::default();
        assert_eq!(copy(&a, &b, 0, 8 << 20, &watch, Duration::ZERO).unwrap(), 0);
        watch.stop.store(true, Ordering::Release);
        assert_eq!(copy(&a, &b, 3 << 20, 8 << 20, &watch, LONG).unwrap(), 3 << 20);
        watch.stop.store(false, Ordering::Release);
        assert_eq!(copy(&a, &b, 3 << 20, 8 << 20, &watch, LONG).unwrap(), 8 << 20);
        let mut bytes = [1; 2];
        b.read_exact_at(&mut bytes, (3 << 20) - 1).unwrap();
        assert_eq!(bytes, [0, 7], "nothing before where it began");
    }
}
