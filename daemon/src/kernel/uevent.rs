//! The kernel's announcements of devices that come, change and go.
//!
//! Called where something must be waited for that the kernel does in its own time: the minor of a zvol,
//! the unbinding of a loop device. Open it before the operation, wait after it: then nothing is missed.
//! Never says what happened: it says when to look again. [`DiskWatch`] tells of disks for as long as the
//! daemon runs.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, netlink, recv, socket_with};

use super::Deadline;
use super::exec::timespec;

/// How long to trust that an event will come. A network namespace other than the first gets none, and
/// an event queue can overflow: after this it is looked at again without one.
const DOUBT: Duration = Duration::from_millis(250);

/// An open socket: events since its opening wait in it.
#[derive(Debug)]
pub struct Uevents {
    socket: OwnedFd,
}

impl Uevents {
    /// Starts listening.
    pub fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(netlink::KOBJECT_UEVENT))?;
        // Group 1 is the kernel's own; group 2 is udev's and comes later.
        bind(&socket, &netlink::SocketAddrNetlink::new(0, 1))?;
        Ok(Self { socket })
    }

    /// Asks `look` now and after every burst of events of block devices, until it answers or the
    /// deadline passes: then `None`.
    pub fn wait<T>(
        &mut self,
        deadline: &Deadline,
        mut look: impl FnMut() -> Option<T>,
    ) -> io::Result<Option<T>> {
        loop {
            if let Some(found) = look() {
                return Ok(Some(found));
            }
            let doubt = deadline.at_most(DOUBT);
            // Until an event of a block device, or doubt.
            while !self.take()? {
                let left = doubt.remaining();
                if left.is_zero() {
                    break;
                }
                match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&timespec(left))) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            if deadline.remaining().is_zero() {
                return Ok(look());
            }
        }
    }

    /// Empties the socket. Whether there was an event of a block device, or events were lost.
    fn take(&mut self) -> io::Result<bool> {
        let mut seen = false;
        let mut message = [0u8; 8192];
        loop {
            match recv(&self.socket, &mut message[..], RecvFlags::empty()) {
                Ok((n, _)) => seen |= is_block(&message[..n.min(8192)]),
                Err(Errno::AGAIN) => return Ok(seen),
                Err(Errno::INTR) => {}
                Err(Errno::NOBUFS) => seen = true,
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// One disk that came or went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskEvent {
    /// The kernel's name.
    pub name: String,
    /// Whether it came.
    pub added: bool,
}

/// How long to gather what belongs together: a disk and its partitions, a shelf of disks.
const GATHER: Duration = Duration::from_millis(300);

/// How much later to tell again: links to a new disk are made by udev, behind the kernel's event.
const LINKS: Duration = Duration::from_secs(3);

const SOCKET: Token = Token(0);
const END: Token = Token(1);
const ARRAYS: Token = Token(2);

/// Where md tells that anything has happened to any array (md(4)). It is there once the module is.
const MDSTAT: &str = "/proc/mdstat";

/// Tells of disks that come and go, and of arrays that have lost one or filled one, on a thread of its own, until it is
/// dropped.
#[derive(Debug)]
pub struct DiskWatch {
    end: Waker,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl DiskWatch {
    /// Starts. `tell` hears what came and went; of nothing when there may have been more than the socket
    /// could hold, when an array has changed, and once more a moment later, when links to new disks are there: look
    /// at everything then.
    pub fn start(tell: impl FnMut(&[DiskEvent]) + Send + 'static) -> io::Result<Self> {
        let uevents = Uevents::open()?;
        let poll = Poll::new()?;
        poll.registry().register(&mut SourceFd(&uevents.socket.as_raw_fd()), SOCKET, Interest::READABLE)?;
        let end = Waker::new(poll.registry(), END)?;
        let run = move || watch(poll, &uevents, tell);
        let thread = std::thread::Builder::new().name("disks".into()).spawn(run)?;
        Ok(Self { end, thread: Some(thread) })
    }
}

impl Drop for DiskWatch {
    fn drop(&mut self) {
        if self.end.wake().is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

fn watch(mut poll: Poll, uevents: &Uevents, mut tell: impl FnMut(&[DiskEvent])) {
    let mut ready = Events::with_capacity(4);
    let mut gathered: Option<Vec<DiskEvent>> = None;
    let mut again: Option<Instant> = None;
    let mut arrays = None;
    loop {
        if arrays.is_none() {
            arrays = watch_arrays(&poll);
        }
        let wait = match (&gathered, again) {
            (Some(_), _) => Some(GATHER),
            (None, Some(at)) => Some(at.saturating_duration_since(Instant::now())),
            (None, None) => None,
        };
        match poll.poll(&mut ready, wait) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                tracing::error!(%error, "disks that come and go are not noticed any more");
                return;
            }
            Ok(()) => {}
        }
        if ready.iter().any(|e| e.token() == END) {
            return;
        }
        if ready.is_empty() {
            match gathered.take() {
                Some(events) => {
                    tell(&events);
                    again = Some(Instant::now() + LINKS);
                }
                None if again.is_some_and(|at| at <= Instant::now()) => {
                    again = None;
                    tell(&[]);
                }
                None => {}
            }
            continue;
        }
        if ready.iter().any(|e| e.token() == ARRAYS) {
            if let Some(file) = &arrays {
                // Reading it is what makes the next change tell.
                if let Err(error) = io::copy(&mut &*file, &mut io::sink()).and_then(|_| rewind(file)) {
                    tracing::warn!(%error, "changes of arrays are not noticed any more");
                }
            }
            gathered.get_or_insert_default();
        }
        match uevents.disks() {
            Ok(None) => {}
            Ok(Some(events)) => gathered.get_or_insert_default().extend(events),
            Err(error) => {
                tracing::error!(%error, "disks that come and go are not noticed any more");
                return;
            }
        }
    }
}

/// The file that tells of arrays, watched. `None`: there are none on this machine until now.
fn watch_arrays(poll: &Poll) -> Option<File> {
    let file = File::open(MDSTAT).ok()?;
    let watched = io::copy(&mut &file, &mut io::sink()).and_then(|_| rewind(&file)).and_then(|()| {
        poll.registry().register(&mut SourceFd(&file.as_raw_fd()), ARRAYS, Interest::PRIORITY)
    });
    if let Err(error) = watched {
        tracing::warn!(%error, "changes of arrays are not noticed");
    }
    Some(file)
}

fn rewind(mut file: &File) -> io::Result<()> {
    file.seek(SeekFrom::Start(0)).map(drop)
}

impl Uevents {
    /// Empties the socket. `None`: nothing about disks.
    fn disks(&self) -> io::Result<Option<Vec<DiskEvent>>> {
        let mut found: Option<Vec<DiskEvent>> = None;
        let mut message = [0u8; 8192];
        loop {
            match recv(&self.socket, &mut message[..], RecvFlags::empty()) {
                Ok((n, _)) => {
                    if let Some(event) = disk_event(&message[..n.min(8192)]) {
                        found.get_or_insert_default().push(event);
                    }
                }
                Err(Errno::AGAIN) => return Ok(found),
                Err(Errno::INTR) => {}
                Err(Errno::NOBUFS) => drop(found.get_or_insert_default()),
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// Whether a message is about a whole disk that came or went.
fn disk_event(message: &[u8]) -> Option<DiskEvent> {
    let field = |key: &str| {
        let found = message.split(|b| *b == 0).find_map(|f| f.strip_prefix(key.as_bytes()));
        found.and_then(|f| std::str::from_utf8(f).ok())
    };
    if field("SUBSYSTEM=") != Some("block") || field("DEVTYPE=") != Some("disk") {
        return None;
    }
    let added = match field("ACTION=")? {
        "add" => true,
        "remove" => false,
        _ => return None,
    };
    let name = field("DEVNAME=")?.to_string();
    super::disks::may_be_disk(&name).then_some(DiskEvent { name, added })
}

/// `ACTION@DEVPATH`, then `KEY=value`s, each ended by a zero byte.
fn is_block(message: &[u8]) -> bool {
    message.split(|b| *b == 0).any(|field| field == b"SUBSYSTEM=block")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn reads_the_subsystem() {
        assert!(is_block(
            b"add@/devices/virtual/block/zd0\0ACTION=add\0DEVPATH=/x\0SUBSYSTEM=block\0MAJOR=230\0"
        ));
        assert!(!is_block(b"add@/devices/x\0ACTION=add\0SUBSYSTEM=net\0"));
        assert!(!is_block(b""));
    }

    #[test]
    fn disks_are_told_from_what_is_made_of_them() {
        let message = |action: &str, kind: &str, name: &str| {
            let text =
                format!("{action}@/d\0ACTION={action}\0SUBSYSTEM=block\0DEVNAME={name}\0DEVTYPE={kind}\0");
            disk_event(text.as_bytes())
        };
        let event = |name: &str, added| Some(DiskEvent { name: name.into(), added });
        assert_eq!(message("add", "disk", "vdb"), event("vdb", true));
        assert_eq!(message("remove", "disk", "nvme0n1"), event("nvme0n1", false));
        for (action, kind, name) in [
            ("change", "disk", "vdb"),
            ("add", "partition", "vdb1"),
            ("add", "disk", "zd0"),
            ("add", "disk", "loop3"),
        ] {
            assert_eq!(message(action, kind, name), None, "{action} {kind} {name}");
        }
    }

    #[test]
    fn a_watch_ends_when_it_is_dropped() {
        let watch = DiskWatch::start(|_| {}).unwrap();
        drop(watch);
    }

    #[test]
    fn ends_at_the_deadline_and_at_an_answer() {
        let mut u = Uevents::open().unwrap();
        let start = Instant::now();
        let d = Deadline::after(Duration::from_millis(100));
        assert_eq!(u.wait(&d, || None::<()>).unwrap(), None);
        assert!(start.elapsed() < Duration::from_secs(2));
        let mut n = 0;
        let d = Deadline::after(Duration::from_secs(5));
        let got = u.wait(&d, || {
            n += 1;
            (n == 3).then_some(n)
        });
        assert_eq!(got.unwrap(), Some(3));
    }
}
