//! A disk with a volatile write cache, as real ones have: what the guest wrote and did not flush may be lost, in part and in any
//! order, when the power is cut. A file on the host can't show that, because what QEMU has written to it stays.
//!
//! QEMU reaches it by NBD, in the part of the protocol that its client speaks here: fixed newstyle negotiation, simple replies
//! (`doc/proto.md` of the nbd project). One thread a disk; it ends with the last [`VolatileDisk`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is written or lost as a whole: the sector of today's disks, and their promise.
const SECTOR: usize = 4096;
/// Bytes in the cache after which a disk writes the oldest to its medium by itself.
const CACHE: usize = 32 << 20;
/// The largest request that is taken.
const LARGEST: usize = 32 << 20;

type Sector = Box<[u8; SECTOR]>;

/// See the module. Dropping it ends the server.
#[derive(Debug)]
pub struct VolatileDisk {
    medium: Arc<Mutex<Medium>>,
    socket: PathBuf,
    ended: Arc<AtomicBool>,
}

/// What a disk has, and what it may lose.
#[derive(Debug)]
struct Medium {
    file: File,
    size: u64,
    /// What was written to a sector since the last flush, oldest first.
    cached: BTreeMap<u64, Vec<Sector>>,
    bytes: usize,
    random: fastrand::Rng,
    /// Counted for whoever wants to know that something was lost at all.
    lost: u64,
}

impl Medium {
    fn check(&self, offset: u64, len: usize) -> io::Result<()> {
        let end = offset.checked_add(len as u64).filter(|end| *end <= self.size);
        end.map(drop).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// The newest content of a sector. Behind the end of a disk of odd size there are zeros.
    fn sector(&self, number: u64) -> io::Result<Sector> {
        if let Some(newest) = self.cached.get(&number).and_then(|versions| versions.last()) {
            return Ok(newest.clone());
        }
        let mut sector: Sector = Box::new([0; SECTOR]);
        let at = number * SECTOR as u64;
        let len = usize::try_from(self.size.saturating_sub(at)).map_or(SECTOR, |left| left.min(SECTOR));
        self.file.read_exact_at(&mut sector[..len], at)?;
        Ok(sector)
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.check(offset, into.len())?;
        self.file.read_exact_at(into, offset)?;
        if into.is_empty() {
            return Ok(());
        }
        let (first, last) = (offset / SECTOR as u64, (offset + into.len() as u64 - 1) / SECTOR as u64);
        for (number, versions) in self.cached.range(first..=last) {
            let Some(newest) = versions.last() else { continue };
            let start = number * SECTOR as u64;
            // Where the sector and what is asked for meet.
            let from = start.max(offset);
            let to = (start + SECTOR as u64).min(offset + into.len() as u64);
            let (a, b) = ((from - offset) as usize, (to - offset) as usize);
            into[a..b].copy_from_slice(&newest[(from - start) as usize..(to - start) as usize]);
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check(offset, data.len())?;
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let (number, within) = (at / SECTOR as u64, (at % SECTOR as u64) as usize);
            let len = (SECTOR - within).min(data.len() - done);
            let mut sector = self.sector(number)?;
            sector[within..within + len].copy_from_slice(&data[done..done + len]);
            self.cached.entry(number).or_default().push(sector);
            self.bytes += SECTOR;
            done += len;
        }
        if self.bytes > CACHE { self.flush() } else { Ok(()) }
    }

    /// All of it reaches the medium.
    fn flush(&mut self) -> io::Result<()> {
        for (number, versions) in std::mem::take(&mut self.cached) {
            if let Some(newest) = versions.last() {
                put(&self.file, self.size, number, newest)?;
            }
        }
        self.bytes = 0;
        Ok(())
    }

    /// The power is gone: of each sector any of its contents since the last flush is what stays.
    fn cut(&mut self) -> io::Result<()> {
        for (number, versions) in std::mem::take(&mut self.cached) {
            let kept = self.random.usize(0..=versions.len());
            self.lost += (versions.len() - kept) as u64;
            if let Some(survivor) = kept.checked_sub(1).and_then(|n| versions.get(n)) {
                put(&self.file, self.size, number, survivor)?;
            }
        }
        self.bytes = 0;
        Ok(())
    }
}

fn put(file: &File, size: u64, number: u64, sector: &Sector) -> io::Result<()> {
    let at = number * SECTOR as u64;
    let len = usize::try_from(size.saturating_sub(at)).map_or(SECTOR, |left| left.min(SECTOR));
    file.write_all_at(&sector[..len], at)
}

impl VolatileDisk {
    /// Serves the image at `path` on `socket`. What is lost follows from `seed` and from what is written when.
    pub fn serve(path: &Path, socket: &Path, seed: u64) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        let size = file.metadata()?.len();
        let random = fastrand::Rng::with_seed(seed);
        let medium = Medium { file, size, cached: BTreeMap::new(), bytes: 0, random, lost: 0 };
        let (medium, ended) = (Arc::new(Mutex::new(medium)), Arc::new(AtomicBool::new(false)));
        let listener = UnixListener::bind(socket)?;
        let (served, over) = (medium.clone(), ended.clone());
        std::thread::Builder::new().name("disk".into()).spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::Acquire) {
                    return;
                }
                // A connection that breaks is QEMU's end, whichever it was.
                let _ = stream.and_then(|s| session(s, &served, size));
            }
        })?;
        Ok(Self { medium, socket: socket.to_path_buf(), ended })
    }

    /// What QEMU calls it.
    pub fn url(&self) -> PathBuf {
        format!("nbd:unix:{}", self.socket.display()).into()
    }

    /// Cuts its power, after QEMU has ended: some of what was not flushed is lost.
    pub fn cut(&self) -> io::Result<()> {
        self.medium().cut()
    }

    /// How many writes of a sector were lost so far.
    pub fn lost(&self) -> u64 {
        self.medium().lost
    }

    fn medium(&self) -> MutexGuard<'_, Medium> {
        self.medium.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for VolatileDisk {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        // Wakes the thread; if that fails, it ends with the process.
        let _ = UnixStream::connect(&self.socket);
    }
}

const OPTION: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;
/// Has flags, can flush.
const FLAGS: u16 = 1 | 1 << 2;
const EIO: u32 = 5;
const EINVAL: u32 = 22;

/// One connection, until it ends.
fn session(mut stream: UnixStream, medium: &Mutex<Medium>, size: u64) -> io::Result<()> {
    negotiate(&mut stream, size)?;
    let lock = || medium.lock().unwrap_or_else(PoisonError::into_inner);
    let mut data = Vec::new();
    loop {
        let mut head = [0; 28];
        stream.read_exact(&mut head)?;
        let magic = u32_at(&head, 0);
        let kind = u16::from_be_bytes([head[6], head[7]]);
        let (offset, len) = (u64_at(&head, 16), u32_at(&head, 24) as usize);
        if magic != REQUEST || len > LARGEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        data.resize(len, 0);
        let result = match kind {
            0 => lock().read(offset, &mut data),
            1 => {
                stream.read_exact(&mut data)?;
                lock().write(offset, &data)
            }
            2 => return lock().flush(),
            3 => lock().flush(),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        };
        let error = match &result {
            Ok(()) => 0,
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => EINVAL,
            Err(_) => EIO,
        };
        let mut reply = Vec::with_capacity(16 + len);
        reply.extend(REPLY.to_be_bytes());
        reply.extend(error.to_be_bytes());
        reply.extend(&head[8..16]);
        if kind == 0 && error == 0 {
            reply.extend(&data);
        }
        stream.write_all(&reply)?;
    }
}

fn negotiate(stream: &mut UnixStream, size: u64) -> io::Result<()> {
    const FIXED_NEWSTYLE_NO_ZEROES: u16 = 3;
    stream.write_all(b"NBDMAGICIHAVEOPT")?;
    stream.write_all(&FIXED_NEWSTYLE_NO_ZEROES.to_be_bytes())?;
    let mut flags = [0; 4];
    stream.read_exact(&mut flags)?;
    loop {
        let mut head = [0; 16];
        stream.read_exact(&mut head)?;
        let (option, len) = (u32_at(&head, 8), u32_at(&head, 12) as usize);
        if u64_at(&head, 0) != OPTION || len > 64 << 10 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut data = vec![0; len];
        stream.read_exact(&mut data)?;
        let mut answer = |kind: u32, data: &[u8]| {
            let mut reply = Vec::new();
            reply.extend(OPTION_REPLY.to_be_bytes());
            reply.extend(option.to_be_bytes());
            reply.extend(kind.to_be_bytes());
            reply.extend((data.len() as u32).to_be_bytes());
            reply.extend(data);
            stream.write_all(&reply)
        };
        const ACK: u32 = 1;
        const INFO: u32 = 3;
        const UNSUPPORTED: u32 = 1 << 31 | 1;
        match option {
            // Abort.
            2 => return answer(ACK, &[]).and(Err(io::ErrorKind::ConnectionAborted.into())),
            // Info, and go: the export's size and flags, and the sizes of its blocks.
            6 | 7 => {
                let mut export = vec![0, 0];
                export.extend(size.to_be_bytes());
                export.extend(FLAGS.to_be_bytes());
                answer(INFO, &export)?;
                let mut blocks = vec![0, 3];
                for bytes in [512, SECTOR as u32, LARGEST as u32] {
                    blocks.extend(bytes.to_be_bytes());
                }
                answer(INFO, &blocks)?;
                answer(ACK, &[])?;
                if option == 7 {
                    return Ok(());
                }
            }
            _ => answer(UNSUPPORTED, &[])?,
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(&bytes[at..at + 4]);
    u32::from_be_bytes(four)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) << 32 | u64::from(u32_at(bytes, at + 4))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn medium(size: u64) -> Medium {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        let random = fastrand::Rng::with_seed(1);
        Medium { file, size, cached: BTreeMap::new(), bytes: 0, random, lost: 0 }
    }

    fn read(m: &Medium, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0xff; len];
        m.read(offset, &mut data).unwrap();
        data
    }

    #[test]
    fn what_was_written_is_read_wherever_it_lies() {
        let mut m = medium(64 << 10);
        m.write(4000, &[7; 200]).unwrap();
        m.write(4100, &[8; 10]).unwrap();
        let data = read(&m, 3990, 220);
        assert_eq!(
            (data[9], data[10], data[109], data[110], data[119], data[120], data[210]),
            (0, 7, 7, 8, 8, 7, 0)
        );
        m.flush().unwrap();
        assert!(m.cached.is_empty());
        assert_eq!(read(&m, 3990, 220), data);
        assert!(m.write(64 << 10, &[0]).is_err() && m.read(u64::MAX, &mut [0]).is_err());
    }

    #[test]
    fn a_cut_keeps_what_was_flushed_and_loses_some_of_the_rest() {
        let mut m = medium(4 << 20);
        for n in 0..1024_u64 {
            m.write(n * 4096, &[1; 4096]).unwrap();
        }
        m.flush().unwrap();
        for n in 0..512_u64 {
            m.write(n * 4096, &[2; 4096]).unwrap();
            m.write(n * 4096, &[3; 4096]).unwrap();
        }
        m.cut().unwrap();
        let left: Vec<u8> = (0..1024).map(|n| read(&m, n * 4096, 1)[0]).collect();
        for version in 1..=3 {
            let n = left[..512].iter().filter(|b| **b == version).count();
            assert!(n > 100, "{n} of {version}");
        }
        assert!(left[512..].iter().all(|b| *b == 1) && m.lost > 200);
    }
}
