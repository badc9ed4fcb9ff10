//! A storage network of two guests: one cable, no switch.

use anyhow::{Context, Result, ensure};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A cable between two guests. Frames travel as datagrams between two unix
/// sockets, so it needs no privileges, and it works again by itself after one
/// of the two was powered off.
#[derive(Debug)]
pub struct Link;

/// One end of a cable, to be given to [`GuestBuilder::link`](crate::GuestBuilder::link).
#[derive(Debug, Clone)]
pub struct LinkEnd {
    number: u8,
    side: u8,
    // The path of a unix socket is limited to 107 bytes, so both live in a
    // directory with a short name, which goes when both ends have gone.
    sockets: Arc<tempfile::TempDir>,
}

impl Link {
    /// A cable with a number of its own among all of a test, 1 to 250. The ends
    /// have the addresses 10.77.NUMBER.1 and 10.77.NUMBER.2, and the MAC
    /// addresses follow from them. By convention the appliance gets the first.
    pub fn pair(number: u8) -> Result<(LinkEnd, LinkEnd)> {
        ensure!((1..=250).contains(&number), "a link's number is 1 to 250, not {number}");
        let sockets = tempfile::Builder::new().prefix("orlop-link-").tempdir();
        let sockets = Arc::new(sockets.context("making a directory for the link's sockets")?);
        Ok((LinkEnd { number, side: 1, sockets: sockets.clone() }, LinkEnd { number, side: 2, sockets }))
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

    pub(crate) fn local(&self) -> PathBuf {
        self.socket(self.side)
    }

    pub(crate) fn remote(&self) -> PathBuf {
        self.socket(3 - self.side)
    }

    fn socket(&self, side: u8) -> PathBuf {
        Path::new(self.sockets.path()).join(side.to_string())
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

    #[test]
    fn the_ends_of_a_link_meet() {
        let (a, b) = Link::pair(3).unwrap();
        assert_eq!(a.local(), b.remote());
        assert_eq!(a.remote(), b.local());
        assert_eq!(a.address(), b.peer());
        assert_ne!(a.mac(), b.mac());
        assert!(a.local().as_os_str().len() < 108);
        let (name, text) = b.credential();
        assert_eq!(name, "network.network.10-storage3");
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("MACAddress=52:54:00:77:03:02\n"), "{text}");
        assert!(text.contains("Address=10.77.3.2/24\n"), "{text}");
    }

    #[test]
    fn link_numbers_are_checked() {
        assert!(Link::pair(0).is_err());
        assert!(Link::pair(251).is_err());
    }
}
