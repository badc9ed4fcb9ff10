//! The kernel's NFS server, as it shows itself: /proc/fs/nfsd, the caches of the export table, and the generic
//! netlink family `nfsd`.
//!
//! Called by the NFS target. Exports nothing and starts nothing: that is what `exportfs` and the service are for.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::SystemTime;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

/// Where the server has its files.
const PROC: &str = "/proc/fs/nfsd";

/// A client that has introduced itself (NFSv4).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Client {
    /// The name of its directory.
    pub id: String,
    /// Where it called from when it introduced itself.
    pub address: IpAddr,
}

/// A call that the server is working on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    /// Who called.
    pub peer: IpAddr,
    /// What tells it from every other: port, transaction, and when the work on it began.
    pub id: (u16, u32, u64),
}

fn read(name: &str) -> io::Result<Option<String>> {
    match fs::read_to_string(Path::new(PROC).join(name)) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// How many threads serve: 0 when the server does not run.
pub fn threads() -> io::Result<u32> {
    Ok(read("threads")?.and_then(|t| t.trim().parse().ok()).unwrap_or_default())
}

/// The versions that are served, as the kernel writes them: `-2 +3 +4 -4.0 +4.1 +4.2`.
pub fn versions() -> io::Result<String> {
    Ok(read("versions")?.unwrap_or_default())
}

/// What the kernel has been told of hosts and exports, in the order of what refers to what.
const CACHES: [&str; 4] = ["auth.unix.ip", "auth.unix.gid", "nfsd.fh", "nfsd.export"];

/// Has the kernel ask again for every host and export at the next use. Flushing `nfsd.fh` also closes the files that the
/// server keeps open for NFSv3.
pub fn flush() -> io::Result<()> {
    CACHES.iter().try_for_each(|cache| flush_one(cache))
}

fn flush_one(cache: &str) -> io::Result<()> {
    // The number is ignored since 4.16; before, entries older than it go.
    match fs::write(format!("/proc/net/rpc/{cache}/flush"), "4294967295\n") {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()), // Nothing was ever exported.
        r => r,
    }
}

/// Frees what is flushed, as far as that can be done now. The kernel keeps the time of the last flush in whole seconds.
/// A second one in the same second is put into the next, where nobody asks for the entries any more, but they are not
/// freed, and hold what was exported, until that has come; and each further one puts it off.
pub fn clear() -> io::Result<()> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    for cache in CACHES {
        let last = match fs::read_to_string(format!("/proc/net/rpc/{cache}/flush")) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            text => text?.trim().parse::<u64>().unwrap_or_default(),
        };
        if last < now {
            flush_one(cache)?;
        }
    }
    Ok(())
}

/// The clients that have introduced themselves.
pub fn clients() -> io::Result<Vec<Client>> {
    let entries = match fs::read_dir(Path::new(PROC).join("clients")) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut all = Vec::new();
    for entry in entries {
        let id = entry?.file_name().to_string_lossy().into_owned();
        // One that goes meanwhile has gone.
        let Ok(Some(info)) = read(&format!("clients/{id}/info")) else { continue };
        let address = address_of(&info).ok_or_else(|| bad("an unknown form of a client's info"))?;
        all.push(Client { id, address });
    }
    Ok(all)
}

fn bad(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// `address: "10.0.0.5:790"` or `address: "[fd00::5]:790"`, the scope of a link-local one included.
fn address_of(info: &str) -> Option<IpAddr> {
    let text = info.lines().find_map(|l| l.strip_prefix("address: "))?.trim().trim_matches('"');
    let host = text.rsplit_once(':')?.0.trim_start_matches('[').trim_end_matches(']');
    let address: IpAddr = host.split('%').next()?.parse().ok()?;
    Some(address.to_canonical())
}

/// Whether a client has anything open or locked on a file system, which is named by its device number.
pub fn holds(client: &Client, device: (u32, u32)) -> io::Result<bool> {
    let text = match read(&format!("clients/{}/states", client.id)) {
        Ok(Some(text)) => text,
        Ok(None) => return Ok(false),
        // It is being expired at this moment.
        Err(e) if e.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => return Ok(false),
        Err(e) => return Err(e),
    };
    Ok(names_device(&text, device))
}

/// `superblock: "fe:20:14"`: major and minor in hexadecimal, then the inode. Names of files stand behind it and are
/// escaped, so that none can pretend to be one.
fn names_device(states: &str, device: (u32, u32)) -> bool {
    let want = format!("superblock: \"{:02x}:{:02x}:", device.0, device.1);
    states.lines().any(|l| l.contains(&want))
}

/// Takes everything from a client: what it has open and locked, and its session. Waits until its calls have ended.
pub fn expire(client: &Client) -> io::Result<()> {
    match fs::write(Path::new(PROC).join("clients").join(&client.id).join("ctl"), "expire\n") {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) if e.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => Ok(()),
        r => r,
    }
}

/// Takes what all clients, of NFSv3 too, have open and locked on the file system that is mounted at a path.
pub fn revoke(path: &Path) -> io::Result<()> {
    let text = format!("{}\n", path.display());
    match fs::write(Path::new(PROC).join("unlock_filesystem"), text) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()), // No server: nobody holds anything.
        // The server does not run: then there is no NFSv4 state, and the locks of NFSv3 have been freed.
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(()),
        r => r,
    }
}

/// Whether lockd holds locks of NFSv3 on a file system, for whomever.
pub fn lockd_holds(device: (u32, u32)) -> io::Result<bool> {
    let text = fs::read_to_string("/proc/locks")?;
    let on = |line: &&str| locks_device(line, device);
    for line in text.lines().filter(on) {
        let pid = line.split_whitespace().nth(if line.contains("->") { 5 } else { 4 });
        let pid: Option<u32> = pid.and_then(|p| p.parse().ok());
        let name = pid.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).ok());
        // One whose owner can't be told counts: better a question too many.
        if name.is_none_or(|n| n.trim() == "lockd") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `4: POSIX  ADVISORY  WRITE 467 fe:20:17 0 EOF`
fn locks_device(line: &str, device: (u32, u32)) -> bool {
    let want = format!("{:02x}:{:02x}:", device.0, device.1);
    line.contains("POSIX") && line.split_whitespace().any(|w| w.starts_with(&want))
}

/// The calls that the server is working on now. `None`: this kernel does not tell (before 6.7).
///
/// A call is listed from when its arguments have been read, which is before it looks for an export, until it has been
/// done. So one that is not listed now has either ended or will not find an export that was withdrawn before.
pub fn calls() -> io::Result<Option<BTreeSet<Call>>> {
    let socket = netlink_socket()?;
    let Some(family) = family(&socket)? else { return Ok(None) };
    let mut all = BTreeSet::new();
    ask(&socket, family, DUMP, RPC_STATUS_GET, &[], |attributes| {
        all.extend(call(attributes));
    })?;
    Ok(Some(all))
}

// linux/netlink.h, linux/genetlink.h and linux/nfsd_netlink.h.
const REQUEST: u16 = 1;
const DUMP: u16 = 0x300;
const ACK: u16 = 4;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const DUMP_INTERRUPTED: u16 = 0x10;
const CONTROLLER: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const RPC_STATUS_GET: u8 = 1;

fn netlink_socket() -> io::Result<OwnedFd> {
    let socket =
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::GENERIC))?;
    rustix::net::bind(&socket, &netlink::SocketAddrNetlink::new(0, 0))?;
    // The kernel answers at once or not at all.
    rustix::net::sockopt::set_socket_timeout(
        &socket,
        rustix::net::sockopt::Timeout::Recv,
        Some(std::time::Duration::from_secs(5)),
    )?;
    Ok(socket)
}

/// The number of the family `nfsd`, which is given when the module is loaded.
fn family(socket: &OwnedFd) -> io::Result<Option<u16>> {
    let mut id = None;
    let name = attribute(FAMILY_NAME, b"nfsd\0");
    let asked = ask(socket, CONTROLLER, ACK, GET_FAMILY, &name, |attributes| {
        for (kind, value) in Attributes(attributes) {
            if kind == FAMILY_ID {
                id = value.get(..2).map(|v| u16::from_ne_bytes([v[0], v[1]]));
            }
        }
    });
    match asked {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        r => r.map(|()| id),
    }
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// One request with all of its answers.
fn ask(
    socket: &OwnedFd,
    family: u16,
    flags: u16,
    command: u8,
    payload: &[u8],
    mut each: impl FnMut(&[u8]),
) -> io::Result<()> {
    let length = u32::try_from(20 + payload.len()).map_err(|_| bad("too long for netlink"))?;
    let mut message = Vec::new();
    message.extend(length.to_ne_bytes());
    message.extend(family.to_ne_bytes());
    message.extend((REQUEST | flags).to_ne_bytes());
    message.extend([0; 8]); // Sequence and port: one request a time, one socket each.
    message.extend([command, 1, 0, 0]);
    message.extend(payload);
    send(socket, &message, SendFlags::empty())?;
    let mut buffer = vec![0u8; 64 << 10];
    loop {
        let n = match recv(socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((n, _)) => n,
            Err(Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        };
        let mut rest = buffer.get(..n).unwrap_or_default();
        while rest.len() >= 16 {
            let word = |at: usize| u32::from_ne_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
            let half = |at: usize| u16::from_ne_bytes([rest[at], rest[at + 1]]);
            let length = usize::try_from(word(0)).unwrap_or(usize::MAX);
            let body = rest.get(16..length).ok_or_else(|| bad("a cut message of netlink"))?;
            if half(6) & DUMP_INTERRUPTED != 0 && flags & DUMP == DUMP {
                return Err(io::ErrorKind::Interrupted.into());
            }
            match half(4) {
                DONE => return Ok(()),
                ERROR => {
                    let code = body.get(..4).map_or(0, |b| i32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
                    return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                }
                _ => each(body.get(4..).unwrap_or_default()),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// Attributes one after another: kind and value.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);
    fn next(&mut self) -> Option<Self::Item> {
        let head = self.0.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        // The two top bits say how the value is built.
        let kind = u16::from_ne_bytes([head[2], head[3]]) & 0x3fff;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

fn call(attributes: &[u8]) -> Option<Call> {
    let (mut xid, mut port, mut began, mut peer) = (0, 0, 0, None);
    for (kind, v) in Attributes(attributes) {
        match (kind, v.len()) {
            (1, 4) => xid = u32::from_be_bytes([v[0], v[1], v[2], v[3]]),
            (6, 8) => began = v.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b)),
            (8, 4) => peer = Some(IpAddr::V4(Ipv4Addr::new(v[0], v[1], v[2], v[3]))),
            (10, 16) => peer = <[u8; 16]>::try_from(v).ok().map(|o| IpAddr::V6(Ipv6Addr::from(o))),
            (12, 2) => port = u16::from_be_bytes([v[0], v[1]]),
            _ => {}
        }
    }
    peer.map(|peer| Call { peer: peer.to_canonical(), id: (port, xid, began) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_client_is_known_by_its_address() {
        let info = |a: &str| format!("clientid: 0x1\naddress: \"{a}\"\nstatus: confirmed\n");
        for (text, address) in [
            ("10.77.1.2:718", "10.77.1.2"),
            ("[fd00::5]:790", "fd00::5"),
            ("[fe80::5%eth0]:790", "fe80::5"),
            ("[::ffff:10.0.0.1]:1", "10.0.0.1"),
        ] {
            assert_eq!(address_of(&info(text)).unwrap().to_string(), address);
        }
        assert_eq!(address_of("clientid: 0x1\n"), None);
    }

    #[test]
    fn state_is_told_by_its_device() {
        let states =
            "- 0x01: { type: open, access: rw, deny: --, superblock: \"fe:20:16\", filename: \"d\" }\n";
        assert!(names_device(states, (254, 32)));
        assert!(!names_device(states, (254, 2)) && !names_device(states, (0xe, 32)));
        let lock = "4: POSIX  ADVISORY  WRITE 467 fe:20:17 0 EOF";
        assert!(locks_device(lock, (254, 32)) && !locks_device(lock, (254, 33)));
        assert!(!locks_device("3: FLOCK  ADVISORY  WRITE 296 fe:20:55 0 EOF", (254, 32)));
    }

    #[test]
    fn calls_are_read() {
        let mut bytes = attribute(1, &7u32.to_be_bytes());
        bytes.extend(attribute(8, &[10, 0, 0, 5]));
        bytes.extend(attribute(12, &790u16.to_be_bytes()));
        bytes.extend(attribute(6, &9u64.to_ne_bytes()));
        let c = call(&bytes).unwrap();
        assert_eq!((c.peer.to_string().as_str(), c.id), ("10.0.0.5", (790, 7, 9)));
        assert_eq!(call(&attribute(1, &[0; 4])), None);
        // A family that every kernel has: the way there and back.
        let socket = netlink_socket().unwrap();
        let _ = family(&socket).unwrap();
    }
}
