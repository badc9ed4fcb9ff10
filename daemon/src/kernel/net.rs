//! The machine's own addresses.
//!
//! Called by targets, to say where a portal can be reached. Never changes the network.

use std::net::IpAddr;

/// Addresses at which other machines can reach this one, ordered: all but loopback and link-local
/// ones (the latter mean nothing without the other side's interface). Only if there are none of these,
/// the loopback ones: a laptop without a network is still served.
pub fn own_addresses() -> std::io::Result<Vec<IpAddr>> {
    Ok(reachable(if_addrs::get_if_addrs()?.into_iter().map(|i| i.ip())))
}

/// All addresses of this machine, as they are.
pub fn all_addresses() -> std::io::Result<Vec<IpAddr>> {
    Ok(if_addrs::get_if_addrs()?.into_iter().map(|i| i.ip()).collect())
}

fn reachable(all: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let (mut loopback, mut global): (Vec<_>, Vec<_>) =
        all.filter(|a| !link_local(a)).partition(|a| a.is_loopback());
    let found = if global.is_empty() { &mut loopback } else { &mut global };
    found.sort_unstable();
    found.dedup();
    std::mem::take(found)
}

fn link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn of(all: &[&str]) -> Vec<String> {
        reachable(all.iter().map(|a| a.parse().unwrap())).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn global_before_loopback_and_never_link_local() {
        assert_eq!(
            of(&["127.0.0.1", "fe80::1", "10.0.0.2", "10.0.0.2", "2001:db8::1", "169.254.1.1"]),
            ["10.0.0.2", "2001:db8::1"]
        );
        assert_eq!(of(&["::1", "127.0.0.1", "fe80::1"]), ["127.0.0.1", "::1"]);
        assert!(!own_addresses().unwrap().is_empty());
    }
}
