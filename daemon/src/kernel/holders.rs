//! Who has a file open.
//!
//! Called by pools before they take over a file that somebody else made. It tells what is so at one
//! moment; nothing keeps a file from being opened in the next.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;

use super::loopdev;

unsafe extern "C" {
    fn fcntl(fd: c_int, command: c_int, ...) -> c_int;
}

// linux/fcntl.h and asm-generic/fcntl.h.
const F_SETSIG: c_int = 10;
const F_SETLEASE: c_int = 1024;
const F_WRLCK: c_int = 1;
const F_UNLCK: c_int = 2;

/// Who uses a file beside this one opening of it for writing, in words. `None`: nobody.
pub fn holder(file: &File) -> io::Result<Option<String>> {
    let told = match is_alone(file) {
        Ok(true) => return Ok(None),
        Ok(false) => true,
        // A file system without leases, or a file of others' and no privilege: what can be seen is told.
        Err(Errno::INVAL | Errno::ACCESS) => false,
        Err(e) => return Err(e.into()),
    };
    let m = file.metadata()?;
    let identity = (m.dev(), m.ino());
    if let Some(number) = loopdev::on(identity)? {
        return Ok(Some(format!("it is behind loop{number}")));
    }
    if let Some((id, name)) = process(identity)? {
        return Ok(Some(format!("it is open in {name} (process {id})")));
    }
    Ok((told || is_locked(file)).then(|| "somebody has it open".into()))
}

/// Whether nobody else has a file open, be it a process or the kernel itself: only then there is a lease
/// for writing (fcntl(2), F_SETLEASE). It is given back at once.
fn is_alone(file: &File) -> Result<bool, Errno> {
    let ask = |command, value: c_int| {
        // SAFETY: these commands take a number and touch no memory of ours; the descriptor is open.
        match unsafe { fcntl(file.as_raw_fd(), command, value) } {
            -1 => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)),
            _ => Ok(()),
        }
    };
    // Who opens it just now has the kernel tell us: by a signal that does nothing, not by the one that ends
    // a program.
    ask(F_SETSIG, rustix::process::Signal::URG.as_raw())?;
    match ask(F_SETLEASE, F_WRLCK) {
        Ok(()) => ask(F_SETLEASE, F_UNLCK).map(|()| true),
        Err(Errno::AGAIN | Errno::BUSY) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Emulators lock what they use as a disk.
fn is_locked(file: &File) -> bool {
    match fcntl_lock(file, FlockOperation::NonBlockingLockExclusive) {
        // What unlocking could not do, closing the file does.
        Ok(()) => drop(fcntl_lock(file, FlockOperation::NonBlockingUnlock)),
        Err(Errno::AGAIN | Errno::ACCESS) => return true,
        // A file system without locks.
        Err(_) => {}
    }
    false
}

/// A process other than this one that has the file open, as far as they can be seen.
fn process(identity: (u64, u64)) -> io::Result<Option<(u32, String)>> {
    let me = std::process::id();
    for entry in std::fs::read_dir("/proc")? {
        let Some(id) = entry?.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        if id == me {
            continue;
        }
        // Gone since, or not for us to look at.
        let Ok(open) = std::fs::read_dir(format!("/proc/{id}/fd")) else { continue };
        let same = |m: std::fs::Metadata| (m.dev(), m.ino()) == identity;
        if open.flatten().any(|fd| std::fs::metadata(fd.path()).is_ok_and(same)) {
            let name = std::fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
            return Ok(Some((id, name.trim_end().to_string())));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    #![allow(clippy::disallowed_methods, reason = "a test starts commands")]
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_file_that_another_process_has_open_is_held() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(holder(file.as_file()).unwrap(), None);
        let input = Stdio::from(File::open(file.path()).unwrap());
        let mut other = Command::new("sleep").arg("60").stdin(input).spawn().unwrap();
        let held = holder(file.as_file()).unwrap();
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(held.unwrap().starts_with("it is open in sleep (process "));
        assert_eq!(holder(file.as_file()).unwrap(), None);
    }

    #[test]
    fn whoever_cannot_be_named_is_told_of_all_the_same() {
        let file = tempfile::NamedTempFile::new().unwrap();
        // Ourselves, by another opening.
        for write in [false, true] {
            let other = File::options().read(true).write(write).open(file.path()).unwrap();
            assert_eq!(holder(file.as_file()).unwrap().as_deref(), Some("somebody has it open"));
            drop(other);
        }
        assert_eq!(holder(file.as_file()).unwrap(), None);
    }
}
