//! Files and directories as pools need them: small files replaced whole, images made whole, space told
//! by the file system itself.
//!
//! Called by pools. Never follows a symbolic link below a directory that it has opened: in a directory
//! that others can reach, a link could lead anywhere.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, IFlags, Mode, OFlags, RenameFlags, fallocate, ioctl_getflags,
    ioctl_setflags, mkdirat, openat, renameat_with, statat, statfs, unlinkat,
};
use rustix::io::Errno;

/// The suffix of a file that is being made.
pub const TMP: &str = ".tmp";

/// File systems that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FsKind {
    /// btrfs.
    Btrfs,
    /// XFS.
    Xfs,
    /// Any other, by the number that statfs gives.
    Other(u64),
}

/// The file system that a path is on (`f_type` of statfs(2); numbers from linux/magic.h).
pub fn kind(path: &Path) -> io::Result<FsKind> {
    // f_type is a signed word, and btrfs's number has the top bit of 32 set.
    let magic = u64::from(statfs(path)?.f_type as u32);
    Ok(match magic {
        0x9123_683e => FsKind::Btrfs,
        0x5846_5342 => FsKind::Xfs,
        other => FsKind::Other(other),
    })
}

/// Space of a file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// All of it.
    pub total: u64,
    /// Not in use.
    pub free: u64,
    /// Not in use, and for us to take.
    pub available: u64,
}

/// What statfs(2) says.
pub fn space(path: &Path) -> io::Result<Space> {
    let s = statfs(path)?;
    let unit = u64::try_from(s.f_bsize).unwrap_or(0);
    let bytes = |blocks: u64| blocks.saturating_mul(unit);
    Ok(Space { total: bytes(s.f_blocks), free: bytes(s.f_bfree), available: bytes(s.f_bavail) })
}

/// What a name in a directory stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Whether it is a regular file, not a link to one.
    pub regular: bool,
    /// Its length.
    pub size: u64,
    /// Bytes that it takes on the medium.
    pub allocated: u64,
    /// How many names it has.
    pub links: u64,
    /// Device and inode.
    pub identity: (u64, u64),
    /// When its bytes were changed last, since the epoch. The kernel's clock for it steps by up to 10 ms.
    pub modified: Duration,
}

/// A directory that is held open.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl Dir {
    /// Opens it. The path itself may be a link: it was given by whoever configures us.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { fd: openat(CWD, path, flags, Mode::empty())?, path: path.to_owned() })
    }

    /// The path by which it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Looks at a name. `None`: there is none.
    pub fn entry(&self, name: &str) -> io::Result<Option<Entry>> {
        match statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(s) => Ok(Some(Entry {
                regular: FileType::from_raw_mode(s.st_mode) == FileType::RegularFile,
                size: u64::try_from(s.st_size).unwrap_or(0),
                allocated: u64::try_from(s.st_blocks).unwrap_or(0) * 512,
                links: s.st_nlink,
                identity: (s.st_dev, s.st_ino),
                modified: Duration::new(
                    u64::try_from(s.st_mtime).unwrap_or(0),
                    u32::try_from(s.st_mtime_nsec).unwrap_or(0),
                ),
            })),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Opens a regular file, for writing too if `write`.
    pub fn file(&self, name: &str, write: bool) -> io::Result<File> {
        let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
        // NONBLOCK: a pipe of that name must be refused below, not waited on here.
        let flags = access | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = File::from(openat(&self.fd, name, flags, Mode::empty())?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "is not a regular file"));
        }
        Ok(file)
    }

    /// Reads a small file whole. `None`: there is none. `InvalidData`: not a regular file, or larger
    /// than `max`.
    pub fn read(&self, name: &str, max: u64) -> io::Result<Option<Vec<u8>>> {
        Ok(self.read_as_is(name, max)?.map(|(bytes, _)| bytes))
    }

    /// The same, with what the file system says of this very file.
    pub fn read_as_is(&self, name: &str, max: u64) -> io::Result<Option<(Vec<u8>, Metadata)>> {
        let file = match self.file(name, false) {
            Ok(f) => f,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            // ELOOP: a symbolic link.
            Err(e) if e.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "is a symbolic link"));
            }
            Err(e) => return Err(e),
        };
        let (metadata, mut bytes) = (file.metadata()?, Vec::new());
        file.take(max + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > max {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "is too large"));
        }
        Ok(Some((bytes, metadata)))
    }

    /// Puts a small file in place whole, over an older one. The caller syncs the directory.
    pub fn replace(&self, name: &str, bytes: &[u8], durable: bool) -> io::Result<()> {
        self.replace_by(name, durable, |mut file| file.write_all(bytes))
    }

    /// The same, made by the caller.
    pub fn replace_by(
        &self,
        name: &str,
        durable: bool,
        fill: impl FnOnce(&File) -> io::Result<()>,
    ) -> io::Result<()> {
        let tmp = format!("{name}{TMP}");
        let file = self.make(&tmp, Mode::from_raw_mode(0o600))?;
        fill(&file)?;
        if durable {
            rustix::fs::fsync(&file)?;
        }
        Ok(rustix::fs::renameat(&self.fd, &tmp, &self.fd, name)?)
    }

    /// Makes a file under a temporary name, lets `prepare` fill it, and shows it under its own name
    /// only when that is done and, if `durable`, on the medium. Never replaces one. A crash leaves the
    /// temporary name at worst; an error leaves nothing. The caller syncs the directory.
    pub fn place(
        &self,
        name: &str,
        durable: bool,
        prepare: impl FnOnce(&File) -> io::Result<()>,
    ) -> io::Result<()> {
        let placed = self.prepare(name, prepare).and_then(|file| self.show(name, &file, durable));
        if placed.is_err() {
            let _ = self.remove(&format!("{name}{TMP}"));
        }
        placed
    }

    /// The first half of `place`: the file is there under its temporary name.
    pub fn prepare(&self, name: &str, fill: impl FnOnce(&File) -> io::Result<()>) -> io::Result<File> {
        let file = self.make(&format!("{name}{TMP}"), Mode::from_raw_mode(0o600))?;
        fill(&file)?;
        Ok(file)
    }

    /// The second half of `place`.
    pub fn show(&self, name: &str, file: &File, durable: bool) -> io::Result<()> {
        let tmp = format!("{name}{TMP}");
        if durable {
            rustix::fs::fsync(file)?;
        }
        self.rename(&tmp, name)
    }

    /// Gives a file another name, never that of another one. The caller syncs the directory.
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        match renameat_with(&self.fd, from, &self.fd, to, RenameFlags::NOREPLACE) {
            // A file system without that flag: the name was free a moment ago, and one thread at a time
            // works on a volume.
            Err(Errno::INVAL) if self.entry(to)?.is_none() => {
                Ok(rustix::fs::renameat(&self.fd, from, &self.fd, to)?)
            }
            r => Ok(r?),
        }
    }

    /// A new empty file; what an earlier attempt left under its name is emptied.
    fn make(&self, name: &str, mode: Mode) -> io::Result<File> {
        // Removed rather than truncated: another's link of that name must not be written through.
        self.remove(name)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(openat(&self.fd, name, flags, mode)?))
    }

    /// Removes a file. Whether there was one.
    pub fn remove(&self, name: &str) -> io::Result<bool> {
        match unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Makes a directory that only root may enter. Whether it is new.
    pub fn make_dir(&self, name: &str) -> io::Result<bool> {
        match mkdirat(&self.fd, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Removes an empty directory. Whether there was one.
    pub fn remove_dir(&self, name: &str) -> io::Result<bool> {
        match unlinkat(&self.fd, name, AtFlags::REMOVEDIR) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// All names but `.` and `..`, in no order.
    pub fn names(&self) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                names.push(OsString::from_vec(name.as_bytes().to_vec()));
            }
        }
        Ok(names)
    }

    /// Makes the names in it durable.
    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.fd)?)
    }
}

/// Reserves a range of a file without changing its length. What is there stays; holes read as zeros.
pub fn reserve(file: &File, offset: u64, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    loop {
        match fallocate(file, FallocateFlags::KEEP_SIZE, offset, len) {
            Err(Errno::INTR) => {}
            r => return Ok(r?),
        }
    }
}

/// Lets a new, empty file on btrfs be overwritten in place (`chattr +C`).
pub fn set_no_cow(file: &File) -> io::Result<()> {
    let flags = ioctl_getflags(file)?;
    Ok(ioctl_setflags(file, flags | IFlags::NOCOW)?)
}

/// Makes every write to a file durable before it is acknowledged (`chattr +S`), direct ones too. An open
/// with O_DSYNC would not do for a loop device: it takes the file's flags from the inode only.
pub fn set_synchronous(file: &File) -> io::Result<()> {
    let flags = ioctl_getflags(file)?;
    if flags.contains(IFlags::SYNC) {
        return Ok(());
    }
    Ok(ioctl_setflags(file, flags | IFlags::SYNC)?)
}

/// Lets a new, empty file be overwritten in place if another one is: on btrfs only files that are alike
/// in this share blocks.
pub fn same_cow(new: &File, other: &File) -> io::Result<()> {
    match ioctl_getflags(other) {
        Ok(flags) if flags.contains(IFlags::NOCOW) => set_no_cow(new),
        // Not every file system has flags, and those share no blocks.
        _ => Ok(()),
    }
}

/// Lets a file share all blocks of another one of the same file system, at one instant (FICLONE of
/// ioctl_ficlone(2)).
pub fn clone(new: &File, source: &File) -> io::Result<()> {
    Ok(rustix::fs::ioctl_ficlone(new, source)?)
}

/// Whether `clone` failed because this file system has no such thing.
pub fn cannot_clone(error: &io::Error) -> bool {
    let numbers = [Errno::OPNOTSUPP, Errno::INVAL, Errno::NOTTY, Errno::XDEV].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|e| numbers.contains(&e))
}

/// Makes reads and writes of an open file direct ones (O_DIRECT of open(2)).
pub fn set_direct(file: &File) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    Ok(rustix::fs::fcntl_setfl(file, flags | OFlags::DIRECT)?)
}

/// Makes a directory and those above it durable where they are new.
pub fn make_dirs(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_dirs(parent)?;
        match mkdirat(CWD, path, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
        Dir::open(parent)?.sync()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn small_files_are_replaced_whole() {
        let t = tempfile::tempdir().unwrap();
        let d = Dir::open(t.path()).unwrap();
        assert!(d.read("a", 10).unwrap().is_none());
        d.replace("a", b"one", true).unwrap();
        d.replace("a", b"two", false).unwrap();
        assert_eq!(d.read("a", 10).unwrap().unwrap(), b"two");
        assert!(d.read("a", 2).is_err());
        assert_eq!(d.names().unwrap(), ["a"]);
    }

    #[test]
    fn links_and_pipes_are_not_files() {
        let t = tempfile::tempdir().unwrap();
        let d = Dir::open(t.path()).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", t.path().join("l")).unwrap();
        assert_eq!(d.read("l", 1 << 20).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(!d.entry("l").unwrap().unwrap().regular);
        // A link left under the temporary name is replaced, not written through.
        std::fs::write(t.path().join("victim"), "v").unwrap();
        std::os::unix::fs::symlink("victim", t.path().join("a.tmp")).unwrap();
        d.replace("a", b"x", false).unwrap();
        assert_eq!(std::fs::read(t.path().join("victim")).unwrap(), b"v");
    }

    #[test]
    fn what_fails_to_be_prepared_leaves_nothing() {
        let t = tempfile::tempdir().unwrap();
        let d = Dir::open(t.path()).unwrap();
        d.place("i", false, |_| Err(io::Error::other("no"))).unwrap_err();
        assert!(d.names().unwrap().is_empty());
        d.place("i", true, |f| f.set_len(4096)).unwrap();
        assert_eq!(d.entry("i").unwrap().unwrap().size, 4096);
        // Never over an existing one.
        assert!(d.place("i", false, |f| f.set_len(1)).is_err());
        assert_eq!(d.entry("i").unwrap().unwrap().size, 4096);
        assert_eq!(d.names().unwrap(), ["i"]);
    }
}
