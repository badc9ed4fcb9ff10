//! What the kernel counts: block devices and the NFS server.
//!
//! Called by the engine when somebody scrapes. Only files that the kernel makes from its memory are read; to find the
//! device of a directory its file system is asked, which may hang: hence the deadline.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{major, minor};

/// What a block device has done since it is there (Documentation/block/stat.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Block {
    /// Reads that ended.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// The sum of the times of all reads.
    pub read_time: Duration,
    /// Writes that ended.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// The sum of the times of all writes.
    pub write_time: Duration,
    /// Reads and writes under way.
    pub in_flight: u64,
    /// How long there was something under way.
    pub busy: Duration,
}

/// The counters of the device at a path, or of the one that the file system at it is on. `None`: there is no such
/// device, as with a file, or a file system that several devices bear.
pub fn block(path: &Path) -> io::Result<Option<Block>> {
    let meta = fs::metadata(path)?;
    let device = match meta.file_type() {
        kind if kind.is_dir() => meta.dev(),
        kind if std::os::unix::fs::FileTypeExt::is_block_device(&kind) => meta.rdev(),
        _ => return Ok(None),
    };
    // ZFS, btrfs and the like have no device of their own.
    if major(device) == 0 {
        return Ok(None);
    }
    match fs::read_to_string(format!("/sys/dev/block/{}:{}/stat", major(device), minor(device))) {
        Ok(text) => block_of(&text).map(Some),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn block_of(text: &str) -> io::Result<Block> {
    let columns: Vec<u64> = text.split_whitespace().map_while(|c| c.parse().ok()).collect();
    let [reads, _, sectors_read, read_ms, writes, _, sectors_written, write_ms, in_flight, busy_ms, ..] =
        columns[..]
    else {
        return Err(unknown(text));
    };
    // A sector is 512 bytes here, whatever the device's own are.
    Ok(Block {
        reads,
        read_bytes: sectors_read.saturating_mul(512),
        read_time: Duration::from_millis(read_ms),
        writes,
        written_bytes: sectors_written.saturating_mul(512),
        write_time: Duration::from_millis(write_ms),
        in_flight,
        busy: Duration::from_millis(busy_ms),
    })
}

/// What the NFS server has done since it was started first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Nfs {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Calls.
    pub calls: u64,
    /// Calls that it did not take.
    pub bad_calls: u64,
}

/// The NFS server's counters. `None`: there is no NFS server.
pub fn nfs() -> io::Result<Option<Nfs>> {
    match fs::read_to_string("/proc/net/rpc/nfsd") {
        Ok(text) => nfs_of(&text).map(Some),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn nfs_of(text: &str) -> io::Result<Nfs> {
    let line = |key: &str| -> io::Result<Vec<u64>> {
        let line = text.lines().find_map(|l| l.strip_prefix(key)).ok_or_else(|| unknown(text))?;
        Ok(line.split_whitespace().map_while(|c| c.parse().ok()).collect())
    };
    let (io, rpc) = (line("io ")?, line("rpc ")?);
    match (&io[..], &rpc[..]) {
        ([read_bytes, written_bytes, ..], [calls, bad_calls, ..]) => Ok(Nfs {
            read_bytes: *read_bytes,
            written_bytes: *written_bytes,
            calls: *calls,
            bad_calls: *bad_calls,
        }),
        _ => Err(unknown(text)),
    }
}

/// Bytes read and written by the path of the export, all of its clients together. Empty on a kernel that does not count
/// them, or whose server has not been asked for anything.
pub fn nfs_exports() -> io::Result<BTreeMap<String, (u64, u64)>> {
    match fs::read_to_string("/proc/fs/nfsd/export_stats") {
        Ok(text) => Ok(exports_of(&text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(e) => Err(e),
    }
}

/// A line `path client start`, then lines that begin with a tab: `io_read: N`, `io_write: N`.
fn exports_of(text: &str) -> BTreeMap<String, (u64, u64)> {
    let mut all: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let mut of = None;
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let Some(counter) = line.strip_prefix('\t') else {
            of = line.split_whitespace().next().map(str::to_owned);
            continue;
        };
        let (Some(path), Some((name, n))) = (&of, counter.split_once(": ")) else { continue };
        let Ok(n) = n.trim().parse::<u64>() else { continue };
        let (read, written) = all.entry(path.clone()).or_default();
        match name {
            "io_read" => *read = read.saturating_add(n),
            "io_write" => *written = written.saturating_add(n),
            _ => {}
        }
    }
    all
}

fn unknown(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{text:?} is not understood"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_devices_counters_are_in_base_units() {
        let text = "    2048      12   4096      500     100       0     200     250        3      700      750        0        0        0        0       30       11\n";
        let read = block_of(text).unwrap();
        assert_eq!(
            (read.reads, read.read_bytes, read.read_time),
            (2048, 4096 * 512, Duration::from_millis(500))
        );
        assert_eq!(
            (read.writes, read.written_bytes, read.write_time),
            (100, 200 * 512, Duration::from_millis(250))
        );
        assert_eq!((read.in_flight, read.busy), (3, Duration::from_millis(700)));
        for bad in ["", "1 2 3", "1 2 x 4 5 6 7 8 9 10 11", "-1 2 3 4 5 6 7 8 9 10 11"] {
            assert!(block_of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_has_no_device_and_what_is_not_there_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(block(file.path()).unwrap(), None);
        assert!(block(Path::new("/nonexistent")).is_err());
    }

    #[test]
    fn the_nfs_servers_lines_are_found_by_their_names() {
        let text = "rc 0 0 5\nfh 0 0 0 0 0\nio 1048576 4194304\nth 8 0\nnet 10 0 10 1\nrpc 42 3 1 2 0\nproc4 2 1 41\n";
        assert_eq!(
            nfs_of(text).unwrap(),
            Nfs { read_bytes: 1 << 20, written_bytes: 4 << 20, calls: 42, bad_calls: 3 }
        );
        assert!(nfs_of("io 1\nrpc 1 2\n").is_err() && nfs_of("").is_err());
    }

    #[test]
    fn an_exports_clients_are_counted_together() {
        let text = "# Version 1.1\n# Path Client Start-time\n#\tStats\n/volumes/a\t10.0.0.1\t1700000000\n\tfh_stale: 0\n\tio_read: 10\n\tio_write: 20\n\
                    /volumes/b\t*\t1700000000\n\tfh_stale: 0\n\tio_read: 1\n\tio_write: 2\n/volumes/a\t10.0.0.2\t1700000000\n\tio_read: 5\n\tio_write: x\n";
        let want = [("/volumes/a".to_owned(), (15, 20)), ("/volumes/b".to_owned(), (1, 2))];
        assert_eq!(exports_of(text), want.into());
        assert!(exports_of("").is_empty() && exports_of("\tio_read: 1\n").is_empty());
    }
}
