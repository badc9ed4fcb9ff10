//! What is mounted where, as the kernel says it.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Major and minor number of the file system's device.
    pub device: (u32, u32),
    /// What of the file system is mounted: `/`, or what a bind mount shows.
    pub root: PathBuf,
    /// Where.
    pub at: PathBuf,
    /// The mount's own options: `ro`, `nosuid`.
    pub options: Vec<String>,
    /// The kind of file system.
    pub kind: String,
    /// What it was mounted from: a device, `address:/path`.
    pub source: String,
}

impl Mount {
    /// Whether nothing can be written by it.
    pub fn is_read_only(&self) -> bool {
        self.options.iter().any(|o| o == "ro")
    }
}

/// All mounts, in the order in which they were made: of those at one place the last one is seen.
pub fn all() -> io::Result<Vec<Mount>> {
    let text = std::fs::read("/proc/self/mountinfo")?;
    text.split(|b| *b == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            parse(line).ok_or_else(|| {
                let line = String::from_utf8_lossy(line).into_owned();
                io::Error::new(io::ErrorKind::InvalidData, format!("mountinfo: {line:?} is not understood"))
            })
        })
        .collect()
}

/// Those at a place, the one that is seen last.
pub fn at(place: &Path) -> io::Result<Vec<Mount>> {
    Ok(all()?.into_iter().filter(|m| m.at == place).collect())
}

/// Those of a device's file system, wherever they are.
pub fn of(device: (u32, u32)) -> io::Result<Vec<Mount>> {
    Ok(all()?.into_iter().filter(|m| m.device == device).collect())
}

/// `MAJOR:MINOR`, as the kernel writes a device's number.
pub fn number(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn parse(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|b| *b == b' ');
    // Its own number and its parent's.
    words.next()?;
    words.next()?;
    let device = number(std::str::from_utf8(words.next()?).ok()?)?;
    let (root, at) = (path(words.next()?), path(words.next()?));
    let options = std::str::from_utf8(words.next()?).ok()?.split(',').map(str::to_owned).collect();
    // Any number of further fields, up to one that is a dash.
    words.by_ref().find(|word| *word == b"-")?;
    let kind = String::from_utf8_lossy(words.next()?).into_owned();
    let source = path(words.next()?).to_string_lossy().into_owned();
    Some(Mount { device, root, at, options, kind, source })
}

/// Space, tab, newline and backslash are written as three octal digits after a backslash.
fn path(word: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|d| byte == b'\\' && d.iter().all(|b| (b'0'..=b'7').contains(b)));
        match octal
            .map(|d| d.iter().fold(0u32, |n, b| n * 8 + u32::from(b - b'0')))
            .and_then(|n| u8::try_from(n).ok())
        {
            Some(escaped) => {
                out.push(escaped);
                rest = &after[3..];
            }
            None => {
                out.push(byte);
                rest = after;
            }
        }
    }
    OsString::from_vec(out).into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_line_is_read() {
        let line = br"36 35 259:1 /sub\040dir /var/lib/kubelet/a\134b\012c ro,nosuid shared:7 master:1 - ext4 /dev/nvme1n1 rw,stripe=4";
        let mount = parse(line).unwrap();
        assert_eq!(
            (mount.device, mount.kind.as_str(), mount.source.as_str()),
            ((259, 1), "ext4", "/dev/nvme1n1")
        );
        assert_eq!((mount.root, mount.at), ("/sub dir".into(), "/var/lib/kubelet/a\\b\nc".into()));
        assert!(mount.options == ["ro", "nosuid"]);
        let plain = parse(b"1 0 0:5 / /mnt rw - nfs4 10.0.0.1:/volumes/x rw,vers=4.2").unwrap();
        assert!(!plain.is_read_only() && plain.source == "10.0.0.1:/volumes/x");
        for bad in [&b""[..], b"1 0 x / / rw - a b", b"1 0 0:5 / /mnt rw", b"1 0 0:5 / /mnt rw - a"] {
            assert_eq!(parse(bad), None);
        }
        // What only looks like an escape is none.
        assert_eq!(path(br"a\9b\1"), Path::new(r"a\9b\1"));
    }

    #[test]
    fn this_machines_own_are_read() {
        assert!(all().unwrap().iter().any(|m| m.at == Path::new("/proc")));
        assert!(at("/nonexistent".as_ref()).unwrap().is_empty());
    }
}
