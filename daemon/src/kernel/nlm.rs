//! Freeing the locks that a host of NFSv3 holds, as if it had been rebooted.
//!
//! Called by the NFS target. The kernel frees such locks for a whole file system, or when it hears from statd that a
//! host has come back. There is nothing for one host that stays away: so it is told here what statd would tell it.
//! What statd says to lockd is an RPC over loopback from a reserved port, with the cookie that lockd gave it for that
//! host, which statd keeps in its directory.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where statd keeps the hosts that hold locks.
const MONITORED: &str = "/var/lib/nfs/sm";
const LOCKD: u32 = 100_021;
const PORTMAPPER: u32 = 100_000;
/// On loopback, from the kernel.
const LIMIT: Duration = Duration::from_secs(2);

/// A host that lockd has statd watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Monitored {
    /// Its address, which is also its name there.
    pub address: IpAddr,
    cookie: [u8; 16],
    version: u32,
    procedure: u32,
}

/// The hosts that hold locks, or did.
pub fn monitored() -> io::Result<Vec<Monitored>> {
    let entries = match fs::read_dir(Path::new(MONITORED)) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut all = Vec::new();
    for entry in entries {
        if let Ok(text) = fs::read_to_string(entry?.path()) {
            all.extend(text.lines().filter_map(parse));
        }
    }
    Ok(all)
}

/// `0100007f 000186b5 00000003 00000010 <cookie> 10.77.1.2 appliance`: whom to tell, program, version, procedure, what to
/// tell, of whom, as whom. In hexadecimal.
fn parse(line: &str) -> Option<Monitored> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |at: usize| words.get(at).and_then(|w| u32::from_str_radix(w, 16).ok());
    if number(1)? != LOCKD {
        return None;
    }
    let hex = words.get(4).filter(|h| h.len() == 32 && h.is_ascii())?;
    let mut cookie = [0u8; 16];
    for (at, byte) in cookie.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    let address: IpAddr = words.get(5)?.parse().ok()?;
    Some(Monitored { address: address.to_canonical(), cookie, version: number(2)?, procedure: number(3)? })
}

/// Has lockd free all locks of a host.
pub fn forget(host: &Monitored) -> io::Result<()> {
    let socket = reserved()?;
    socket.set_read_timeout(Some(LIMIT))?;
    let mut mapping = Vec::new();
    for word in [LOCKD, host.version, 17, 0] {
        mapping.extend(u32::to_be_bytes(word));
    }
    let answer = call(&socket, 111, [PORTMAPPER, 2, 3], &mapping)?;
    let port = answer.get(..4).map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
    let port = u16::try_from(port).ok().filter(|p| *p != 0).ok_or(io::ErrorKind::NotConnected)?;
    let name = host.address.to_string();
    let mut reboot = Vec::new();
    reboot.extend(u32::try_from(name.len()).unwrap_or_default().to_be_bytes());
    reboot.extend(name.as_bytes());
    reboot.resize(reboot.len().next_multiple_of(4), 0);
    // The state is any number that it did not have last: a host counts its reboots here.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    reboot.extend((since.as_millis() as u32 | 1).to_be_bytes());
    reboot.extend(host.cookie);
    call(&socket, port, [LOCKD, host.version, host.procedure], &reboot).map(drop)
}

/// A socket on loopback whose port only root can have: lockd hears nobody else.
fn reserved() -> io::Result<UdpSocket> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for port in (665..1023).rev() {
        match UdpSocket::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(socket) => return Ok(socket),
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// One remote procedure call (RFC 5531), without credentials.
fn call(
    socket: &UdpSocket,
    port: u16,
    [program, version, procedure]: [u32; 3],
    args: &[u8],
) -> io::Result<Vec<u8>> {
    let xid = std::process::id() ^ procedure;
    let mut message = Vec::new();
    for word in [xid, 0, 2, program, version, procedure, 0, 0, 0, 0] {
        message.extend(word.to_be_bytes());
    }
    message.extend(args);
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    socket.send_to(&message, to)?;
    let mut answer = [0u8; 1024];
    loop {
        let (n, from) = socket.recv_from(&mut answer)?;
        let bytes = answer.get(..n).unwrap_or_default();
        let word =
            |at: usize| bytes.get(4 * at..4 * at + 4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
        if from != to || word(0) != Some(xid) {
            continue;
        }
        // A reply, accepted, without a verifier, and done.
        return match (1..6).map(word).collect::<Option<Vec<u32>>>().as_deref() {
            Some([1, 0, _, 0, 0]) => Ok(bytes.get(24..).unwrap_or_default().to_vec()),
            _ => Err(io::Error::new(io::ErrorKind::PermissionDenied, "the call was not accepted")),
        };
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn reads_what_statd_keeps() {
        let line = "0100007f 000186b5 00000003 00000010 ad43acf06c00000000c45ec63f8dffff 10.77.1.2 appliance";
        let m = parse(line).unwrap();
        assert_eq!((m.address.to_string().as_str(), m.version, m.procedure), ("10.77.1.2", 3, 16));
        assert_eq!((m.cookie[0], m.cookie[15]), (0xad, 0xff));
        for bad in ["", "0100007f 000186a3 3 10 ad43acf06c00000000c45ec63f8dffff 10.77.1.2 a", "x y z"] {
            assert_eq!(parse(bad), None);
        }
    }
}
