//! Block devices: their size, what they are, and whether they are provably blank.
//!
//! Called by pools and by the inventory of disks. Reads; the one thing that it writes are zeros: [`wipe`], for a
//! disk whose pool has been removed, and [`wipe_all`], for one that a person gave up. A read that fails is never
//! "blank" (R1).
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::ioctl::{Getter, NoArg, Opcode, Setter, ioctl, opcode};

use super::Deadline;
use super::exec::{ExecError, Tool};
use super::uevent::Uevents;

/// BLKRRPART of linux/fs.h: read the partition table again.
const BLKRRPART: Opcode = opcode::none(0x12, 95);

/// BLKZNAME of OpenZFS, sys/fs/zfs.h: the dataset behind a zvol, `char[ZFS_MAX_DATASET_NAME_LEN]`.
const BLKZNAME: Opcode = opcode::read::<[u8; 256]>(0x12, 125);

/// How much of either end of a disk must be zero, and is zeroed by [`wipe`].
const END: u64 = 1 << 20;

/// How much of either end [`wipe_all`] zeroes: tables, labels and headers with their copies are within it.
const WIDE_END: u64 = 16 << 20;

/// The same of each partition.
const PART_END: u64 = 4 << 20;

/// What is written at a time, at an address that direct I/O takes.
const CHUNK: usize = 1 << 20;
const ALIGN: usize = 4096;

/// How long the partitions of a wiped disk may be held open by others.
const PARTITIONS: Duration = Duration::from_secs(10);

/// The size of a block device, or of a file.
pub fn size(mut file: &File) -> io::Result<u64> {
    // A seek, because BLKGETSIZE64 says the same and a file has only this.
    file.seek(SeekFrom::End(0))
}

/// The dataset behind a zvol. `None`: it is not a zvol.
pub fn zvol_name(device: impl AsFd) -> io::Result<Option<String>> {
    // SAFETY: BLKZNAME fills 256 bytes, and any value of them is valid.
    match unsafe { ioctl(device, Getter::<BLKZNAME, [u8; 256]>::new()) } {
        Ok(name) => {
            let name = name.split(|b| *b == 0).next().unwrap_or_default();
            Ok(std::str::from_utf8(name).ok().map(str::to_string))
        }
        Err(Errno::NOTTY | Errno::INVAL) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Major and minor number of a device node.
pub fn number(path: &Path) -> io::Result<(u32, u32)> {
    let m = std::fs::metadata(path)?;
    if !m.file_type().is_block_device() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "is not a block device"));
    }
    Ok((rustix::fs::major(m.rdev()), rustix::fs::minor(m.rdev())))
}

/// Writes an attribute of sysfs: one write call, never creating or truncating.
pub fn write_attribute(path: &Path, value: &str) -> io::Result<()> {
    File::options().write(true).open(path)?.write_all(value.as_bytes())
}

/// Opens a device for reading and claims it: nothing can be mounted from it while the file is open.
/// `None`: something in the kernel claims it or a part of it already.
pub fn claim(path: &Path) -> io::Result<Option<File>> {
    alone(path, File::options().read(true), OFlags::empty())
}

fn alone(path: &Path, options: &mut OpenOptions, flags: OFlags) -> io::Result<Option<File>> {
    // O_EXCL on a block device, without O_CREAT: open(2).
    match options.custom_flags((OFlags::EXCL | flags).bits() as i32).open(path) {
        Ok(f) => Ok(Some(f)),
        Err(e) if e.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => Ok(None),
        Err(e) => Err(e),
    }
}

/// What is on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Nothing, provably.
    Blank,
    /// The kernel holds it: a mount, a pool, swap.
    Held,
    /// Something: what.
    Found(String),
}

/// Looks for anything at all on a device: its ends must read as zeros, and low-level probing must find
/// no signature anywhere that it knows of.
pub fn content(path: &Path, deadline: &Deadline) -> Result<Content, ProbeError> {
    let read = |source| ProbeError::Read { path: path.to_owned(), source };
    // Claimed for no longer than it takes to see that it can be: meanwhile nobody else can mount or format it.
    if claim(path).map_err(read)?.is_none() {
        return Ok(Content::Held);
    }
    let mut file = File::open(path).map_err(read)?;
    let size = size(&file).map_err(read)?;
    if size < 2 * END {
        return Ok(Content::Found(format!("it has only {size} bytes")));
    }
    // What the page cache has is not evidence of what the disk has.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    for (offset, which) in [(0, "first"), (size - END, "last")] {
        deadline.check().map_err(|source| {
            ProbeError::Probe(ExecError::Overrun { command: "reading the disk".into(), source })
        })?;
        let mut end = vec![0u8; END as usize];
        file.seek(SeekFrom::Start(offset)).map_err(read)?;
        file.read_exact(&mut end).map_err(read)?;
        if end.iter().any(|b| *b != 0) {
            let what = probe(path, deadline)?;
            return Ok(Content::Found(
                what.unwrap_or_else(|| format!("its {which} MiB holds data of an unknown kind")),
            ));
        }
    }
    Ok(probe(path, deadline)?.map_or(Content::Blank, Content::Found))
}

/// Why it is not known what is on a disk.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// It can't be read.
    #[error("{} can't be read", path.display())]
    Read {
        /// The device.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The prober failed.
    #[error("the disk can't be probed")]
    Probe(#[from] ExecError),
}

/// What says what is on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// `zfs_member`, `xfs`; nothing where it is not known.
    pub kind: Option<String>,
    /// It is a partition table, and nothing else was found.
    pub table: bool,
    /// The label in it: of a member of a pool that is the pool's name.
    pub label: Option<String>,
    /// Its UUID, or the pool's number.
    pub uuid: Option<String>,
    /// In words.
    pub words: String,
}

/// In words.
fn probe(path: &Path, deadline: &Deadline) -> Result<Option<String>, ProbeError> {
    Ok(signature(path, deadline)?.map(|s| s.words))
}

/// What blkid(8) finds by looking at the device itself: not at its cache, not at udev's.
pub fn signature(path: &Path, deadline: &Deadline) -> Result<Option<Signature>, ProbeError> {
    let mut args: Vec<std::ffi::OsString> = ["-p", "-o", "export"].map(Into::into).to_vec();
    args.push(path.into());
    let out = Tool::locate("blkid")?.at_most(1 << 20).run(&args, deadline)?;
    let unknown =
        |words: &str| Signature { kind: None, table: false, label: None, uuid: None, words: words.into() };
    match out.code {
        // Its manual: 2 if the device can't be identified.
        Some(2) if out.stdout.is_empty() => Ok(None),
        Some(0) => {
            let text = String::from_utf8_lossy(&out.stdout);
            let of = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('='));
            let what = match (of("TYPE"), of("PTTYPE")) {
                (Some(t), _) => match of("LABEL") {
                    Some(label) => format!("{t} called {label}"),
                    None => t.to_string(),
                },
                (None, Some(t)) => format!("a partition table ({t})"),
                (None, None) => "a signature".to_string(),
            };
            let own = |key| of(key).map(str::to_string);
            let (kind, table) = (own("TYPE"), of("TYPE").is_none() && of("PTTYPE").is_some());
            Ok(Some(Signature { kind, table, label: own("LABEL"), uuid: own("UUID"), words: what }))
        }
        // 8: several signatures that contradict each other.
        Some(8) => Ok(Some(unknown("several contradicting signatures"))),
        _ => Err(out.failure().into()),
    }
}

/// A file system that is found by its superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// `xfs` or `btrfs`, as mount(2) takes it.
    pub fstype: &'static str,
    /// Its UUID.
    pub uuid: [u8; 16],
}

/// Reads the superblock of XFS or btrfs. `None`: neither is there.
pub fn superblock(path: &Path) -> io::Result<Option<Superblock>> {
    let mut file = File::open(path)?;
    let mut at = |offset: u64| -> io::Result<Option<[u8; 80]>> {
        let mut bytes = [0u8; 80];
        file.seek(SeekFrom::Start(offset))?;
        match file.read_exact(&mut bytes) {
            Ok(()) => Ok(Some(bytes)),
            // A disk that is too small to have one there.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(e) => Err(e),
        }
    };
    let uuid = |bytes: &[u8]| <[u8; 16]>::try_from(bytes).ok();
    // xfs_dsb: sb_magicnum at 0, sb_uuid at 32.
    if let Some(b) = at(0)?
        && &b[..4] == b"XFSB"
    {
        return Ok(uuid(&b[32..48]).map(|uuid| Superblock { fstype: "xfs", uuid }));
    }
    // btrfs_super_block at 64 KiB: fsid at 32, magic at 64.
    if let Some(b) = at(64 << 10)?
        && &b[64..72] == b"_BHRfS_M"
    {
        return Ok(uuid(&b[32..48]).map(|uuid| Superblock { fstype: "btrfs", uuid }));
    }
    Ok(None)
}

/// How many writes and discards a device has ended; `None` while one is under way. Two equal numbers:
/// nothing was written in between (columns of Documentation/block/stat.rst).
pub fn writes(name: &str) -> io::Result<Option<u64>> {
    let text = std::fs::read_to_string(format!("/sys/block/{name}/stat"))?;
    let column = |n: usize| text.split_whitespace().nth(n).and_then(|c| c.parse::<u64>().ok());
    match (column(4), column(8), column(11)) {
        (Some(writes), Some(in_flight), Some(discards)) => {
            Ok((in_flight == 0).then_some(writes.wrapping_add(discards)))
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("{text:?} is not understood"))),
    }
}

/// Has a device refuse to give space back: what is reserved stays so.
pub fn forbid_discard(name: &str) -> io::Result<()> {
    let queue = |attribute: &str| PathBuf::from(format!("/sys/block/{name}/queue/{attribute}"));
    write_attribute(&queue("discard_max_bytes"), "0")?;
    match write_attribute(&queue("write_zeroes_unmap_max_bytes"), "0") {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        r => r,
    }
}

/// Makes a range of a device read as zeros and be allocated (BLKZEROOUT of linux/fs.h).
pub fn write_zeros(device: &File, from: u64, len: u64) -> io::Result<()> {
    const BLKZEROOUT: Opcode = 0x127f;
    let range = [from, len];
    // SAFETY: BLKZEROOUT reads two 64-bit numbers.
    Ok(unsafe { ioctl(device, Setter::<BLKZEROOUT, [u64; 2]>::new(range)) }?)
}

/// Makes a disk blank again whose pool has been removed: zeroes both ends and btrfs's further
/// superblocks, so that nothing finds the old pool there. Fails while anything holds the disk.
pub fn wipe(path: &Path, deadline: &Deadline) -> io::Result<()> {
    let flags = OFlags::EXCL.bits() as i32;
    let mut file = File::options().read(true).write(true).custom_flags(flags).open(path)?;
    let size = size(&file)?;
    let zeros = vec![0u8; END as usize];
    let mut clear = |offset: u64| -> io::Result<()> {
        if offset.checked_add(END).is_none_or(|end| end > size) {
            return Ok(());
        }
        file.seek(SeekFrom::Start(offset))?;
        file.write_all(&zeros)
    };
    // btrfs keeps copies at 64 MiB and 256 GiB.
    clear(64 << 20)?;
    clear(256 << 30)?;
    clear(size.saturating_sub(END))?;
    clear(0)?;
    file.sync_all()?;
    forget_partitions(&file, deadline)
}

/// A disk that nobody else can take.
#[derive(Debug)]
pub struct Claimed(File);

/// Takes a disk for writing, for this process alone and for as long as the answer is kept. `None`: somebody has
/// it.
pub fn take(path: &Path) -> io::Result<Option<Claimed>> {
    Ok(alone(path, File::options().read(true).write(true), OFlags::DIRECT)?.map(Claimed))
}

impl Claimed {
    /// For reading.
    pub(super) fn file(&self) -> &File {
        &self.0
    }

    /// Whether the disk that has this path now is the one that was claimed.
    pub fn is_at(&self, path: &Path) -> io::Result<bool> {
        Ok(self.0.metadata()?.rdev() == std::fs::metadata(path)?.rdev())
    }
}

/// Takes away all by which anything is found on a disk: its ends, the ends of its partitions, which are given by
/// where they begin and how long they are, and btrfs's further superblocks.
pub fn wipe_all(disk: &Claimed, partitions: &[(u64, u64)], deadline: &Deadline) -> io::Result<()> {
    let file = &disk.0;
    let whole = (0, size(file)?);
    // The first MiB goes last: as long as it is there, what is only half wiped is seen not to be blank.
    for (from, len) in partitions.iter().filter(|(_, len)| *len > 0) {
        zero_ends(file, (*from, *len), whole.1, PART_END, deadline)?;
    }
    zero_ends(file, whole, whole.1, WIDE_END, deadline)?;
    file.sync_all()?;
    forget_partitions(file, deadline)
}

/// Zeroes the ends of a part of a disk that has `size` bytes, last the first.
fn zero_ends(
    file: &File,
    (from, len): (u64, u64),
    size: u64,
    end: u64,
    deadline: &Deadline,
) -> io::Result<()> {
    let to = from.saturating_add(len).min(size);
    let room = vec![0u8; CHUNK + ALIGN];
    let start = room.as_ptr().align_offset(ALIGN);
    let zeros = &room[start..start + CHUNK];
    let zero = |at: u64, until: u64| -> io::Result<()> {
        let mut at = at;
        while at < until.min(to) {
            deadline.check().map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
            let left = usize::try_from(until.min(to) - at).unwrap_or(CHUNK).min(CHUNK);
            file.write_all_at(&zeros[..left], at)?;
            at += left as u64;
        }
        Ok(())
    };
    // btrfs keeps copies at 64 MiB and 256 GiB.
    for copy in [64 << 20, 256 << 30] {
        let copy = from.saturating_add(copy);
        zero(copy, copy.saturating_add(CHUNK as u64))?;
    }
    zero(to.saturating_sub(end).max(from), to)?;
    zero(from.saturating_add(CHUNK as u64), from.saturating_add(end))?;
    zero(from, from.saturating_add(CHUNK as u64))
}

/// Has the kernel read the partition table again, which is gone.
fn forget_partitions(file: &File, deadline: &Deadline) -> io::Result<()> {
    // While anything has one of its partitions open (udev does for a moment, after each write) the
    // kernel keeps them all.
    let mut events = Uevents::open()?;
    let reread = || {
        // SAFETY: BLKRRPART takes no argument.
        match unsafe { ioctl(file, NoArg::<BLKRRPART>::new()) } {
            Err(Errno::BUSY) => None,
            // INVAL: a device that has no partitions at all (a loop device).
            Ok(()) | Err(Errno::INVAL) => Some(Ok(())),
            Err(e) => Some(Err(e.into())),
        }
    };
    match events.wait(&deadline.at_most(PARTITIONS), reread)? {
        Some(done) => done,
        None => Err(Errno::BUSY.into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn superblocks_are_read_from_any_file() {
        let t = tempfile::NamedTempFile::new().unwrap();
        t.as_file().set_len(1 << 20).unwrap();
        assert_eq!(superblock(t.path()).unwrap(), None);
        let mut f = t.as_file();
        f.seek(SeekFrom::Start((64 << 10) + 32)).unwrap();
        f.write_all(&[7; 16]).unwrap();
        f.seek(SeekFrom::Start((64 << 10) + 64)).unwrap();
        f.write_all(b"_BHRfS_M").unwrap();
        let found = superblock(t.path()).unwrap();
        assert_eq!(found, Some(Superblock { fstype: "btrfs", uuid: [7; 16] }));
        t.as_file().set_len(10).unwrap();
        assert_eq!(superblock(t.path()).unwrap(), None);
    }

    #[test]
    fn a_file_is_no_zvol_and_no_device() {
        let t = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(zvol_name(t.as_file()).unwrap(), None);
        assert!(number(t.path()).is_err());
    }
}
