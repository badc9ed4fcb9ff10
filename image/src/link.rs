//! A storage network of two guests: one cable, no switch.

use anyhow::{Context, Result, ensure};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A cable between two guests. Frames travel as datagrams between a pair of
/// unix sockets, so it needs no privileges. We keep both, and a QEMU inherits
/// its own: the cable stays while one of the two guests is powered off.
///
/// A pair, not two sockets with names: to a name that nobody reads from, a guest
/// that boots, QEMU sends again and again without waiting, with all of a
/// processor. A socket of a pair says when it can be written to.
#[derive(Debug)]
pub struct Link;

/// One end of a cable, to be given to [`GuestBuilder::link`](crate::GuestBuilder::link).
#[derive(Debug, Clone)]
pub struct LinkEnd {
    number: u8,
    side: u8,
    socket: Arc<OwnedFd>,
}

impl Link {
    /// A cable with a number of its own among all of a test, 1 to 250. The ends
    /// have the addresses 10.77.NUMBER.1 and 10.77.NUMBER.2, and the MAC
    /// addresses follow from them. By convention the appliance gets the first.
    pub fn pair(number: u8) -> Result<(LinkEnd, LinkEnd)> {
        ensure!((1..=250).contains(&number), "a link's number is 1 to 250, not {number}");
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (first, second) =
            socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None).context("making a cable")?;
        let end = |side, socket| LinkEnd { number, side, socket: Arc::new(socket) };
        Ok((end(1, first), end(2, second)))
    }
}

impl LinkEnd {
    /// The IPv4 address of this end; the network is a /24.
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.number, self.side)
    }

    /// The IPv4 address of the other end.
    pub fn peer(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.number, 3 - self.side)
    }

    /// The name of the network device in QEMU, for [`Guest::set_link`](crate::Guest::set_link).
    pub fn name(&self) -> String {
        format!("storage{}", self.number)
    }

    pub(crate) fn mac(&self) -> String {
        format!("52:54:00:77:{:02x}:{:02x}", self.number, self.side)
    }

    /// What QEMU is given, under the number that it has here.
    pub(crate) fn socket(&self) -> &Arc<OwnedFd> {
        &self.socket
    }

    /// Forgets what was sent to a guest that was off.
    pub(crate) fn drain(&self) {
        let mut frame = [0; 1];
        while recv(&*self.socket, &mut frame, RecvFlags::DONTWAIT).is_ok() {}
    }

    /// The credential by which systemd-networkd configures this end.
    pub(crate) fn credential(&self) -> (String, Vec<u8>) {
        let text = format!(
            "[Match]\nMACAddress={}\n[Network]\nAddress={}/24\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
            self.mac(),
            self.address()
        );
        (format!("network.network.10-{}", self.name()), text.into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    #[test]
    fn the_ends_of_a_link_meet() {
        let (a, b) = Link::pair(3).unwrap();
        assert_eq!(a.address(), b.peer());
        assert_ne!(a.mac(), b.mac());
        let (name, text) = b.credential();
        assert_eq!(name, "network.network.10-storage3");
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("MACAddress=52:54:00:77:03:02\n"), "{text}");
        assert!(text.contains("Address=10.77.3.2/24\n"), "{text}");
    }

    #[test]
    fn what_was_sent_to_a_guest_that_was_off_is_forgotten() {
        let (a, b) = Link::pair(3).unwrap();
        let received = |frame: &mut [u8]| recv(&**b.socket(), frame, RecvFlags::DONTWAIT).map(|(n, _)| n);
        let mut frame = [0; 64];
        let send = || rustix::net::send(&**a.socket(), b"a frame", rustix::net::SendFlags::DONTWAIT);
        send().unwrap();
        assert_eq!(received(&mut frame).unwrap(), 7);
        // Full, and then it says so to who asks when to go on: it must not be tried again and again.
        let can_be_written = || {
            let mut asked = [PollFd::new(&**a.socket(), PollFlags::OUT)];
            poll(&mut asked, Some(&Timespec::default())).unwrap();
            asked[0].revents().contains(PollFlags::OUT)
        };
        assert!(can_be_written());
        while send().is_ok() {}
        assert!(!can_be_written());
        b.drain();
        assert!(received(&mut frame).is_err() && can_be_written());
        assert_eq!(send().unwrap(), 7);
    }

    #[test]
    fn link_numbers_are_checked() {
        assert!(Link::pair(0).is_err());
        assert!(Link::pair(251).is_err());
    }
}
