//! From hosts and their rights to entries of an export table, and back. Pure.
//!
//! Two ranges of which one is in the other make two entries that match the same host. mountd takes single addresses
//! before ranges, and of two ranges the one that comes first in its table, whose order depends on which was added
//! when. So no two ranges are ever written that have an address in common: the wider one is written as what is left
//! of it. Then there is no order to keep, and one entry can be changed without the others.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use orlop_api::{Network, Squash, VolumeId};

use crate::target::{Export, HostId, Rights};

/// What each option that matters is the opposite of. An option that the table has is wrong if what is wanted is
/// its opposite.
const OPPOSITES: [(&str, &str); 11] = [
    ("rw", "ro"),
    ("sync", "async"),
    ("hide", "nohide"),
    ("nocrossmnt", "crossmnt"),
    ("secure", "insecure"),
    ("root_squash", "no_root_squash"),
    ("all_squash", "no_all_squash"),
    ("no_subtree_check", "subtree_check"),
    ("secure_locks", "insecure_locks"),
    ("acl", "no_acl"),
    ("no_pnfs", "pnfs"),
];

/// A network as a range of addresses.
pub(super) fn range(network: &Network) -> IpNet {
    // The prefix of a network is in range.
    IpNet::new(network.address(), network.prefix()).unwrap_or_else(|_| network.address().into())
}

/// Whether a range is one address alone.
pub(super) fn is_single(range: &IpNet) -> bool {
    range.prefix_len() == range.max_prefix_len()
}

/// A range as a table has it.
pub(super) fn client(range: &IpNet) -> String {
    if is_single(range) { range.addr().to_string() } else { range.to_string() }
}

/// A client of a table as a range. `None`: a name, or something else that was not written by us.
pub(super) fn parse(client: &str) -> Option<IpNet> {
    client.parse::<IpNet>().ok().or_else(|| client.parse::<std::net::IpAddr>().ok().map(IpNet::from))
}

/// A client as the arguments of exportfs have it: what of it is an IPv6 address is in brackets.
pub(super) fn argument(client: &str, path: &str) -> String {
    match client.split_once('/') {
        _ if !client.contains(':') => format!("{client}:{path}"),
        Some((address, prefix)) => format!("[{address}]/{prefix}:{path}"),
        None => format!("[{client}]:{path}"),
    }
}

/// The hosts of an export.
pub(super) fn wanted(export: &Export) -> BTreeMap<IpNet, Rights> {
    let networks = export.hosts.iter().filter_map(|(host, rights)| match host {
        HostId::Network(network) => Some((range(network), *rights)),
        _ => None,
    });
    networks.collect()
}

/// The same rights for the same addresses, the most specific first, without two ranges that overlap. A single address
/// in a range stays: it comes before ranges by itself.
pub(super) fn disjoint(hosts: &BTreeMap<IpNet, Rights>) -> BTreeMap<IpNet, Rights> {
    let mut wide_first: Vec<(&IpNet, &Rights)> = hosts.iter().collect();
    wide_first.sort_by_key(|(range, _)| range.prefix_len());
    let mut kept: Vec<(IpNet, Rights)> = Vec::new();
    for (range, rights) in wide_first {
        // The last that it is in is the narrowest.
        let around = kept.iter().rfind(|(k, _)| k.contains(range));
        if around.is_none_or(|(_, r)| r != rights) {
            kept.push((*range, *rights));
        }
    }
    let mut all = BTreeMap::new();
    for (range, rights) in &kept {
        let mut left = vec![*range];
        for (hole, _) in kept.iter().filter(|(k, _)| k != range && range.contains(k) && !is_single(k)) {
            left = left.into_iter().flat_map(|piece| without(piece, hole)).collect();
        }
        all.extend(left.into_iter().map(|piece| (piece, *rights)));
    }
    all
}

/// What is left of a range without another one.
fn without(range: IpNet, hole: &IpNet) -> Vec<IpNet> {
    if hole.contains(&range) {
        return Vec::new();
    }
    if !range.contains(hole) {
        return vec![range];
    }
    match range.subnets(range.prefix_len() + 1) {
        Ok(halves) => halves.flat_map(|half| without(half, hole)).collect(),
        Err(_) => Vec::new(), // One address alone has no hole.
    }
}

/// The options of an entry, every one that matters spelled out: what the tools take for granted has changed before.
pub(super) fn options(volume: VolumeId, rights: Rights) -> String {
    let access = if rights.read_only { "ro" } else { "rw" };
    let (root, all) = match rights.squash {
        Squash::None => ("no_root_squash", "no_all_squash"),
        Squash::Root => ("root_squash", "no_all_squash"),
        Squash::All => ("root_squash", "all_squash"),
    };
    // fsid: what file handles begin with. By the volume's id they are the same after any reboot and on any machine.
    // mountpoint: an unmounted directory belongs to the appliance, and is not served.
    format!(
        "{access},sync,wdelay,hide,nocrossmnt,secure,{root},{all},no_subtree_check,secure_locks,acl,no_pnfs,\
         mountpoint,fsid={},sec=sys",
        volume.uuid().hyphenated()
    )
}

/// Whether an entry of the table is what `options` asks for. The table says more than it was told, and some of it
/// twice, once for each flavor of security.
pub(super) fn is_as_asked(entry: &str, options: &str) -> bool {
    let has: BTreeSet<&str> = entry.split(',').collect();
    let unwanted = |o: &&str| {
        let flavors = o.starts_with("sec=") && *o != "sec=sys";
        let opposite = OPPOSITES.iter().any(|(a, b)| {
            (o == a && options.split(',').any(|w| w == *b)) || (o == b && options.split(',').any(|w| w == *a))
        });
        flavors || opposite || o.starts_with("refer=") || o.starts_with("replicas=")
    };
    options.split(',').all(|want| has.contains(want)) && !has.iter().any(unwanted)
}

/// The file of a volume: what to export, and of whom it is not yet known that they have ended (see
/// [`super::plan`]).
pub(super) fn file(path: &str, entries: &BTreeMap<IpNet, String>, leaving: &BTreeSet<String>) -> String {
    let mut text = String::from("# Written by orlopd.\n");
    for client in leaving {
        text.push_str(&format!("{LEAVING}{client}\n"));
    }
    for (range, options) in entries {
        text.push_str(&format!("{path} {}({options})\n", client(range)));
    }
    text
}

const LEAVING: &str = "# leaving ";

/// The clients that a file says are leaving.
pub(super) fn leaving(file: &str) -> BTreeSet<String> {
    file.lines().filter_map(|l| l.strip_prefix(LEAVING)).map(str::to_owned).collect()
}

/// The clients that a file exports to.
pub(super) fn exported(file: &str) -> BTreeSet<String> {
    let words = file.lines().filter(|l| !l.starts_with('#')).flat_map(|l| l.split_whitespace().skip(1));
    words.map(|w| w.split('(').next().unwrap_or(w).to_owned()).collect()
}

/// The entries of a table: path, client, options.
pub(super) fn table(text: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    text.lines().filter_map(|line| {
        let (path, rest) = line.split_once('\t')?;
        let (client, options) = rest.split_once('(')?;
        Some((path, client, options.strip_suffix(')')?))
    })
}
