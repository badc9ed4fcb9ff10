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

/// Whether any of them comes by Kerberos.
pub(super) fn is_kerberos(export: &Export) -> bool {
    export.hosts.values().any(|rights| rights.security.is_kerberos())
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
         mountpoint,fsid={},sec={}",
        volume.uuid().hyphenated(),
        rights.security
    )
}

/// The flavours of security by which the options of an entry let in. Those of an entry of others may be any word.
pub(super) fn flavours(options: &str) -> BTreeSet<String> {
    let lists = options.split(',').filter_map(|o| o.strip_prefix("sec="));
    let all: BTreeSet<String> = lists.flat_map(|l| l.split(':')).map(str::to_owned).collect();
    // What an entry lets in that says nothing of it.
    if all.is_empty() { BTreeSet::from(["sys".to_owned()]) } else { all }
}

/// Of those who are leaving, the ones who stay and may have come by a flavour that is not let in now: their addresses.
/// One that has an entry of its own and is not leaving has it as before, whatever becomes of the range around it.
pub(super) fn turned_away(entries: &BTreeMap<IpNet, String>, leaving: &Leaving) -> BTreeSet<IpNet> {
    let mut all = BTreeSet::new();
    for (range, came_by) in leaving.iter().filter_map(|(c, by)| Some((parse(c)?, by))) {
        let spared = |entry: &IpNet, options: &str| {
            let own = is_single(entry) && *entry != range && !leaving.contains_key(&client(entry));
            own || flavours(options).is_superset(came_by)
        };
        for (entry, _) in entries.iter().filter(|(e, o)| !spared(e, o)) {
            let both = match (range.contains(entry), entry.contains(&range)) {
                (true, _) => *entry,
                (false, true) => range,
                (false, false) => continue,
            };
            let mut left = vec![both];
            for (hole, _) in entries.iter().filter(|(e, o)| **e != both && both.contains(*e) && spared(e, o))
            {
                left = left.into_iter().flat_map(|piece| without(piece, hole)).collect();
            }
            all.extend(left);
        }
    }
    all
}

/// Those who have come by an entry of the table for a range around them, get one of their own, and by fewer flavours: they
/// lose something though no entry goes.
pub(super) fn narrowed(entries: &BTreeMap<IpNet, String>, table: &BTreeMap<String, String>) -> Leaving {
    let mut all = Leaving::new();
    let new = entries.iter().filter(|(range, _)| !table.contains_key(&client(range)));
    for (range, options) in new {
        let around = table.iter().filter(|(c, _)| parse(c).is_some_and(|r| r != *range && r.contains(range)));
        for came_by in around.map(|(_, o)| flavours(o)).filter(|by| !flavours(options).is_superset(by)) {
            all.entry(client(range)).or_default().extend(came_by);
        }
    }
    all
}

/// Whether an entry of the table is what `options` asks for. The table says more than it was told, and some of it
/// twice, once for each list of flavours that have the same options.
pub(super) fn is_as_asked(entry: &str, options: &str) -> bool {
    let has: BTreeSet<&str> = entry.split(',').collect();
    let unwanted = |o: &&str| {
        let flavours = o.starts_with("sec=") && !options.split(',').any(|w| w == *o);
        let opposite = OPPOSITES.iter().any(|(a, b)| {
            (o == a && options.split(',').any(|w| w == *b)) || (o == b && options.split(',').any(|w| w == *a))
        });
        flavours || opposite || o.starts_with("refer=") || o.starts_with("replicas=")
    };
    options.split(',').all(|want| has.contains(want)) && !has.iter().any(unwanted)
}

/// Clients who lose something, and the flavours that they may have come by.
pub(super) type Leaving = BTreeMap<String, BTreeSet<String>>;

/// The file of a volume: what to export, and of whom it is not yet known that they have ended (see
/// [`super::plan`]).
pub(super) fn file(path: &str, entries: &BTreeMap<IpNet, String>, leaving: &Leaving) -> String {
    let mut text = String::from("# Written by orlopd.\n");
    for (client, came_by) in leaving {
        let came_by: Vec<&str> = came_by.iter().map(String::as_str).collect();
        text.push_str(&format!("{LEAVING}{client} sec={}\n", came_by.join(":")));
    }
    for (range, options) in entries {
        text.push_str(&format!("{path} {}({options})\n", client(range)));
    }
    text
}

const LEAVING: &str = "# leaving ";

/// The clients that a file says are leaving. Where a line says no flavour it means `sys`.
pub(super) fn leaving(file: &str) -> Leaving {
    let lines = file.lines().filter_map(|l| l.strip_prefix(LEAVING));
    lines.map(|l| l.split_once(' ').unwrap_or((l, ""))).map(|(c, by)| (c.to_owned(), flavours(by))).collect()
}

/// The clients that a file exports to.
pub(super) fn exported(file: &str) -> Leaving {
    let words = file.lines().filter(|l| !l.starts_with('#')).flat_map(|l| l.split_whitespace().skip(1));
    let each = words.map(|w| w.trim_end_matches(')').split_once('(').unwrap_or((w, "")));
    each.map(|(client, options)| (client.to_owned(), flavours(options))).collect()
}

/// Adds clients to others.
pub(super) fn add<'a>(to: &mut Leaving, clients: impl IntoIterator<Item = (&'a String, BTreeSet<String>)>) {
    for (client, came_by) in clients {
        to.entry(client.clone()).or_default().extend(came_by);
    }
}

/// The entries of a table: path, client, options.
pub(super) fn table(text: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    text.lines().filter_map(|line| {
        let (path, rest) = line.split_once('\t')?;
        let (client, options) = rest.split_once('(')?;
        Some((path, client, options.strip_suffix(')')?))
    })
}
