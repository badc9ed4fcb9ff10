//! Mounting, and what is mounted.
//!
//! Called by file pools on disks of their own, for volumes that are file systems, and by the inventory of disks. Mounts what it is told,
//! where it is told; never decides.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};

/// One line of /proc/self/mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Major and minor number of the file system: the device's own, or an anonymous one (btrfs).
    pub device: (u32, u32),
    /// Where.
    pub point: PathBuf,
    /// `xfs`.
    pub fstype: String,
    /// What was mounted, as it was named: often a path of a device.
    pub source: PathBuf,
}

/// All mounts of this mount namespace; of several at one point the last is on top.
pub fn mounts() -> io::Result<Vec<Mount>> {
    parse(&std::fs::read("/proc/self/mountinfo")?)
}

fn parse(text: &[u8]) -> io::Result<Vec<Mount>> {
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "an unknown form of mountinfo");
    let mut all = Vec::new();
    for line in text.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
        // 36 35 98:0 /root /point options [optional...] - type source options (proc_pid_mountinfo(5))
        let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
        let dash = fields.iter().position(|f| *f == b"-").ok_or_else(bad)?;
        let (Some(device), Some(point), Some(fstype), Some(source)) =
            (fields.get(2), fields.get(4), fields.get(dash + 1), fields.get(dash + 2))
        else {
            return Err(bad());
        };
        let device = std::str::from_utf8(device).ok().and_then(|d| d.split_once(':')).ok_or_else(bad)?;
        all.push(Mount {
            device: (device.0.parse().map_err(|_| bad())?, device.1.parse().map_err(|_| bad())?),
            point: unescape(point),
            fstype: String::from_utf8_lossy(fstype).into_owned(),
            source: unescape(source),
        });
    }
    Ok(all)
}

/// Spaces, tabs, newlines and backslashes are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|d| *first == b'\\' && d.iter().all(|c| (b'0'..=b'7').contains(c)));
        match octal {
            Some(d) => {
                bytes.push(d.iter().fold(0u8, |n, c| n.wrapping_mul(8).wrapping_add(c - b'0')));
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsStr::from_bytes(&bytes))
}

/// What is mounted at a point.
pub fn at(point: &Path) -> io::Result<Option<Mount>> {
    Ok(mounts()?.into_iter().rfind(|m| m.point == point))
}

/// Mounts the file system on a device, or what else `fstype` mounts; `options` are its own. No access times: reading a volume must not write. Nothing on it
/// is run, is a device, or changes who one is.
pub fn mount(device: &Path, point: &Path, fstype: &str, options: &str) -> io::Result<()> {
    let flags = MountFlags::NOATIME | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    let text = |s: &str| CString::new(s).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e));
    let (fstype, options) = (text(fstype)?, text(options)?);
    Ok(rustix::mount::mount(device, point, fstype.as_c_str(), flags, Some(options.as_c_str()))?)
}

/// Shows what is mounted at one point at another one as well, with the same restrictions.
pub fn bind(from: &Path, to: &Path) -> io::Result<()> {
    Ok(rustix::mount::mount_bind(from, to)?)
}

/// Unmounts; fails while anything is open there.
pub fn unmount(point: &Path) -> io::Result<()> {
    Ok(rustix::mount::unmount(point, UnmountFlags::NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn reads_mountinfo() {
        let text = b"36 35 98:0 /m /mnt/a\\040b rw,noatime master:1 shared:2 - xfs /dev/vdb rw\n\
                     37 35 0:45 / /mnt/c rw - btrfs /dev/vdc rw,x=-\n";
        let m = parse(text).unwrap();
        assert_eq!(m[0].point, Path::new("/mnt/a b"));
        assert_eq!((m[0].device, m[0].fstype.as_str()), ((98, 0), "xfs"));
        assert_eq!((m[1].device, m[1].source.as_path()), ((0, 45), Path::new("/dev/vdc")));
        assert!(parse(b"36 35 98:0 / /x rw xfs /dev/vdb rw\n").is_err());
        assert!(at(Path::new("/proc")).unwrap().is_some());
        assert!(at(Path::new("/proc/self")).unwrap().is_none());
    }
}
