//! Ranges of addresses.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::name::ParseError;

/// An IPv4 or IPv6 network, `10.0.0.0/24` or `fd00:1::/64`, or one address of it. Nothing may be set behind the prefix,
/// and a network of everybody (`/0`) has to be spelled as such.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = String))]
pub struct Network(IpNet);

impl Network {
    /// Its first address.
    pub fn address(&self) -> IpAddr {
        self.0.network()
    }

    /// The bits that its addresses have in common.
    pub fn prefix(&self) -> u8 {
        self.0.prefix_len()
    }

    /// Whether it is one address alone.
    pub fn is_single(&self) -> bool {
        self.0.prefix_len() == self.0.max_prefix_len()
    }

    /// Whether an address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }

    /// Whether all of another is in it.
    pub fn covers(&self, other: &Self) -> bool {
        self.0.contains(&other.0)
    }

    /// Whether they have an address in common: then one of them is in the other.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.0.contains(&other.0.network()) || other.0.contains(&self.0.network())
    }
}

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        Self(address.into())
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_single() { self.0.addr().fmt(f) } else { self.0.fmt(f) }
    }
}

impl FromStr for Network {
    type Err = ParseError;
    fn from_str(s: &str) -> Result<Self, ParseError> {
        let wrong = |reason| ParseError::new("network", s, reason);
        if let Ok(address) = s.parse::<IpAddr>() {
            return Self::checked(address.into()).map_err(wrong);
        }
        let net = s.parse::<IpNet>().map_err(|_| wrong("is not an address or address/prefix"))?;
        Self::checked(net).map_err(wrong)
    }
}

impl Network {
    fn checked(net: IpNet) -> Result<Self, &'static str> {
        match net {
            _ if net.addr() != net.network() => Err("has bits set behind its prefix"),
            IpNet::V6(v6) if v6.addr().to_ipv4_mapped().is_some() && v6.prefix_len() >= 96 => {
                Err("is an IPv4 address in IPv6's clothes: write it as IPv4")
            }
            _ if net.addr().is_unspecified() && net.prefix_len() > 0 => Err("is no address of a host"),
            _ if net.addr().is_multicast() => Err("is no address of a host"),
            _ => Ok(Self(net)),
        }
    }
}

impl TryFrom<String> for Network {
    type Error = ParseError;
    fn try_from(s: String) -> Result<Self, ParseError> {
        s.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn networks_are_read_and_written() {
        for (text, shown) in [
            ("10.0.0.0/24", "10.0.0.0/24"),
            ("10.0.0.5", "10.0.0.5"),
            ("10.0.0.5/32", "10.0.0.5"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("FD00:1::/64", "fd00:1::/64"),
            ("fd00:1::1", "fd00:1::1"),
        ] {
            let network: Network = text.parse().unwrap();
            assert_eq!(network.to_string(), shown);
            assert_eq!(network.to_string().parse::<Network>().unwrap(), network);
        }
        for bad in [
            "",
            "10.0.0",
            "10.0.0.1/24",
            "10.0.0.0/33",
            "fd00::1/64",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "::ffff:10.0.0.1",
            "host",
            " 10.0.0.1",
        ] {
            assert!(bad.parse::<Network>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ranges_overlap_where_one_is_in_the_other() {
        let net = |s: &str| s.parse::<Network>().unwrap();
        assert!(
            net("10.0.0.0/8").overlaps(&net("10.2.0.0/16"))
                && net("10.2.0.0/16").overlaps(&net("10.0.0.0/8"))
        );
        assert!(
            !net("10.0.0.0/16").overlaps(&net("10.1.0.0/16")) && !net("0.0.0.0/0").overlaps(&net("::/0"))
        );
        assert!(net("10.0.0.0/8").contains("10.1.2.3".parse().unwrap()));
        assert!(net("10.0.0.7").is_single() && !net("10.0.0.0/31").is_single());
    }
}
