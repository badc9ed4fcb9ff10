//! From what should be and what is to the changes in between. Pure.
//!
//! Closing comes first, for all volumes; then ports; then building. Two orders carry the security:
//!
//! - *Teardown*: unlink from ports, remove the namespace, and only then remove the allowed
//!   hosts and the subsystem. The links say who may have a controller, so they go last: whoever finds a
//!   half torn down subsystem after a crash can tell who had access.
//! - *Build*: subsystem, closed; identity; namespace; hosts; ports. Nobody gets in before all is there.
//!
//! A portal opens with the first link to its port, and a host that comes back then and does not find its
//! subsystem linked is told so for good: it drops its device. So when all is restored after a power cut, the
//! links of all volumes come last, one right after another. What is left of that moment is a system call a volume.
//!
//! How a host is cut off depends on what the kernel tells. Where it lists its controllers, the host's
//! link is removed, all controllers of the subsystem are dropped, and the drop is done when the list
//! holds none of a host that is not desired; the subsystem stays linked, so the others reconnect at
//! once. Where it does not, nothing that is done to the living subsystem is provable: dropping shuts a
//! controller's sockets down but does not wait, and commands that had arrived by then may be executed
//! after a namespace was disabled and enabled again. So the subsystem is torn down and made anew: the
//! old one, which is all that an old controller can reach, has no namespace any more, and removing that
//! waited for what was in flight. The others reconnect too; one that tries in the milliseconds in
//! between is refused and may give up (DNR), which is why this is the second choice.

use std::collections::{BTreeMap, BTreeSet};

use orlop_api::{Nqn, VolumeId};

use super::NvmetConfig;
use super::state::{Change, NSID, Observed, Port, PortChange, Step, Subsystem};
use crate::target::portal::{PortalConfig, device, shared_devices};
use crate::target::{Desired, Export, Scope};

/// The first of the port ids that are ours, and how many there are.
pub const FIRST_PORT: u16 = 28416;
/// See [`FIRST_PORT`].
pub const PORT_COUNT: u16 = 64;

/// The attributes of a port that are ours to decide, in the order in which they are written.
pub(super) const PORT_ATTRIBUTES: [&str; 4] = ["addr_trtype", "addr_adrfam", "addr_traddr", "addr_trsvcid"];

/// What initiators read as the model of every volume.
pub(super) const MODEL: &str = "Orlop";

/// `attr_qid_max` rests at one of these. Writing the other one drops the controllers; 128 is the
/// kernel's own value and its maximum. (Since 6.x any write does; before, only another value.)
const QID_MAX: (u16, u16) = (128, 127);

/// The id in a port directory's name, if it is one of ours.
pub(super) fn our_port(name: &str) -> Option<u16> {
    // Only our own spelling: the kernel would take "0x6f00" as well.
    let id: u16 = name.parse().ok()?;
    let ours = (FIRST_PORT..FIRST_PORT + PORT_COUNT).contains(&id) && id.to_string() == name;
    ours.then_some(id)
}

/// See the module.
pub(super) fn plan(config: &NvmetConfig, scope: Scope, desired: &Desired, seen: &Observed) -> Vec<Step> {
    let mut volumes: BTreeSet<VolumeId> = desired.keys().copied().collect();
    if scope != Scope::Desired {
        volumes.extend(seen.subsystems.keys());
    }
    if let Some(only) = scope.volume() {
        volumes.retain(|v| *v == only);
    }
    // nvmet opens without exclusion, so it would not mind.
    let double = shared_devices(&volumes, desired);
    let (mut closing, mut building) = (Vec::new(), Vec::new());
    let misplaced = misplaced_ports(config, seen);
    for volume in volumes {
        let mut v = Volume {
            config,
            seen,
            volume,
            nqn: config.prefix.subsystem(volume),
            is: seen.subsystems.get(&volume),
            want: desired.get(&volume),
            misplaced: &misplaced,
            steps: Vec::new(),
        };
        let rebuilt = v.close();
        closing.append(&mut v.steps);
        if let Some(export) = v.want {
            match in_the_way(export, &double, seen) {
                Some(refuse) => v.step(refuse),
                None => v.build(export, rebuilt),
            }
            building.append(&mut v.steps);
        }
    }
    // Closing to everybody comes before all else, whatever volume it is on.
    closing.sort_by_key(|s| !matches!(s, Step::Volume { change: Change::Close, .. }));
    plan_ports(config, scope, seen, &misplaced, &mut closing);
    let port_of = |step: &Step| match step {
        Step::Volume { change: Change::Link { port, .. }, .. } => Some(*port),
        _ => None,
    };
    let (mut links, mut built): (Vec<_>, Vec<_>) = building.into_iter().partition(|s| port_of(s).is_some());
    links.sort_by_key(port_of);
    closing.append(&mut built);
    closing.append(&mut links);
    closing
}

/// Steps that end every access older than now, of hosts that can't be seen too.
pub(super) fn sever(config: &NvmetConfig, volume: VolumeId, desired: &Desired, seen: &Observed) -> Vec<Step> {
    let Some(is) = seen.subsystems.get(&volume) else { return Vec::new() };
    if can_drop(is) {
        return Vec::new(); // The plan itself sees every controller.
    }
    let mut v = Volume {
        config,
        seen,
        volume,
        nqn: config.prefix.subsystem(volume),
        is: Some(is),
        want: desired.get(&volume),
        misplaced: &BTreeSet::new(),
        steps: Vec::new(),
    };
    if is.any_host {
        v.step(Change::Close);
    }
    v.tear_down(is);
    v.steps
}

/// Whether controllers can be dropped one subsystem at a time and be seen to go.
fn can_drop(is: &Subsystem) -> bool {
    is.controllers.is_some() && is.qid_max.is_some()
}

fn in_the_way(export: &Export, double: &BTreeSet<String>, seen: &Observed) -> Option<Change> {
    let device = device(export);
    let detail = match seen.foreign_devices.get(&device) {
        Some(nqn) => format!("subsystem {nqn} serves it as well"),
        None if double.contains(&device) => "it is the backing of more than one volume".into(),
        None => return None,
    };
    Some(Change::Refuse { object: device, detail })
}

/// What is done about one volume.
struct Volume<'a> {
    config: &'a NvmetConfig,
    seen: &'a Observed,
    volume: VolumeId,
    nqn: Nqn,
    is: Option<&'a Subsystem>,
    want: Option<&'a Export>,
    misplaced: &'a BTreeSet<String>,
    steps: Vec<Step>,
}

impl Volume<'_> {
    fn step(&mut self, change: Change) {
        self.steps.push(Step::Volume { volume: self.volume, nqn: self.nqn.clone(), change });
    }

    /// Closing steps. True if nothing of the subsystem is left after them.
    fn close(&mut self) -> bool {
        let Some(is) = self.is else { return true };
        if is.any_host {
            self.step(Change::Close);
        }
        let Some(want) = self.want.filter(|w| self.keeps(is, w)) else {
            self.tear_down(is);
            return true;
        };
        let keep: BTreeSet<String> = want.nqns().map(ToString::to_string).collect();
        let mut left = Vec::new();
        for (entry, host) in &is.hosts {
            if !keep.contains(host) {
                self.step(Change::Disallow { entry: entry.clone() });
                left.push(host.clone());
            }
        }
        let strangers = is.controllers.iter().flatten().any(|c| !keep.contains(c));
        // A host that has just been disallowed may be connecting at this moment and not be listed yet.
        if strangers || !left.is_empty() || is.any_host {
            let qid_max = if is.qid_max == Some(QID_MAX.0) { QID_MAX.1 } else { QID_MAX.0 };
            self.step(Change::DropControllers { keep, qid_max });
        }
        for host in left {
            self.step(Change::RemoveHost { host });
        }
        for (port, entry) in &is.links {
            if self.misplaced.contains(port) {
                self.step(Change::Unlink { port: port.clone(), entry: entry.clone() });
            }
        }
        false
    }

    /// Whether the subsystem can stay and be completed, or must be made anew.
    fn keeps(&self, is: &Subsystem, want: &Export) -> bool {
        let identity = &want.identity;
        let same = is.serial == identity.serial
            && is.model.as_deref().is_none_or(|m| m == MODEL)
            && is.namespaces.len() == 1
            && is.namespaces.get(NSID).is_some_and(|n| {
                n.device == device(want)
                    && n.uuid == identity.uuid.hyphenated().to_string()
                    && n.nguid == identity.nguid_hyphenated()
            });
        if !same || can_drop(is) {
            return same;
        }
        // Controllers can't be seen. All the access that there was must be in the links, and all of it
        // must be desired.
        let known = is.allowed();
        let wanted = known.iter().all(|h| want.nqns().any(|w| w.as_str() == *h));
        // Nobody allowed: half built by us, or it was open to all and we were stopped after closing it.
        // Which of the two can't be told.
        let unknown = is.any_host || known.is_empty();
        wanted && !unknown
    }

    fn tear_down(&mut self, is: &Subsystem) {
        for (port, entry) in &is.links {
            self.step(Change::Unlink { port: port.clone(), entry: entry.clone() });
        }
        // Not disabled first: that waits for what is in flight as well, but under the lock of the whole module, and a disk
        // that does not answer would keep every host from connecting to anything.
        for nsid in is.namespaces.keys() {
            self.step(Change::RemoveNamespace { nsid: nsid.clone() });
        }
        for entry in is.hosts.keys() {
            self.step(Change::Disallow { entry: entry.clone() });
        }
        self.step(Change::RemoveSubsystem);
        for host in is.allowed() {
            if !self.want.is_some_and(|w| w.nqns().any(|h| h.as_str() == host)) {
                self.step(Change::RemoveHost { host: host.to_string() });
            }
        }
    }

    fn build(&mut self, want: &Export, rebuilt: bool) {
        let is = self.is.filter(|_| !rebuilt);
        if is.is_none() {
            self.step(Change::MakeSubsystem);
            // 0 is what a new subsystem has; written all the same, before anything that matters.
            self.step(Change::Set { attribute: "attr_allow_any_host", value: "0".into() });
            self.step(Change::Set { attribute: "attr_serial", value: want.identity.serial.clone() });
            self.step(Change::Set { attribute: "attr_model", value: MODEL.into() });
            self.step(Change::MakeNamespace);
            for (attribute, value) in [
                ("device_path", device(want)),
                ("device_uuid", want.identity.uuid.hyphenated().to_string()),
                ("device_nguid", want.identity.nguid_hyphenated()),
            ] {
                self.step(Change::SetNamespace { attribute, value });
            }
        }
        if !is.is_some_and(|s| s.namespaces.values().all(|n| n.enabled)) {
            self.step(Change::Enable);
        }
        let known = is.map(Subsystem::allowed).unwrap_or_default();
        for host in want.nqns().map(Nqn::as_str) {
            if known.contains(host) && self.seen.unproven.contains(host) {
                self.step(Change::Authenticate { host: host.to_string() });
            }
        }
        for host in want.nqns().map(Nqn::as_str).filter(|h| !known.contains(h)) {
            // In the scope of all, an earlier volume's step may have made it: that is not an error.
            if !self.seen.hosts.contains(host) {
                self.step(Change::MakeHost { host: host.to_string() });
            }
            self.step(Change::Allow { host: host.to_string() });
        }
        for (id, portal) in self.config.ports() {
            let name = id.to_string();
            let linked = is.is_some_and(|s| s.links.iter().any(|(p, _)| *p == name));
            if !linked || self.misplaced.contains(&name) {
                self.step(Change::Link { port: id, portal: portal.to_string() });
            }
        }
    }
}

/// Ports of ours that serve another address than the configured one, or none that is configured.
fn misplaced_ports(config: &NvmetConfig, seen: &Observed) -> BTreeSet<String> {
    let wanted: BTreeMap<u16, &PortalConfig> = config.ports().collect();
    let wrong = seen.ports.iter().filter(|(id, port)| match wanted.get(id) {
        Some(portal) => !wrong_attributes(portal, port).is_empty(),
        None => true,
    });
    wrong.map(|(id, _)| id.to_string()).collect()
}

fn wrong_attributes(portal: &PortalConfig, port: &Port) -> Vec<(&'static str, String)> {
    let family = if portal.address.is_ipv4() { "ipv4" } else { "ipv6" };
    let values = ["tcp".to_string(), family.into(), portal.address.to_string(), portal.port.to_string()];
    let wanted = PORT_ATTRIBUTES.into_iter().zip(values);
    wanted.filter(|(name, value)| port.attributes.get(name) != Some(value)).collect()
}

fn plan_ports(
    config: &NvmetConfig,
    scope: Scope,
    seen: &Observed,
    misplaced: &BTreeSet<String>,
    steps: &mut Vec<Step>,
) {
    if scope == Scope::All {
        let wanted: BTreeSet<u16> = config.ports().map(|(id, _)| id).collect();
        for (id, port) in &seen.ports {
            // What somebody else has linked there stays there.
            if !wanted.contains(id) && !port.foreign_links && misplaced.contains(&id.to_string()) {
                let portal = format!("of port {id}");
                steps.push(Step::Port { port: *id, portal, change: PortChange::Remove });
            }
        }
    }
    for (id, portal) in config.ports() {
        let mut push = |change| steps.push(Step::Port { port: id, portal: portal.to_string(), change });
        let none = Port::default();
        let port = seen.ports.get(&id).unwrap_or_else(|| {
            push(PortChange::Make);
            &none
        });
        for (attribute, value) in wrong_attributes(portal, port) {
            push(PortChange::Set { attribute, value });
        }
    }
}

impl NvmetConfig {
    /// The configured portals with the ids of their ports.
    pub(super) fn ports(&self) -> impl Iterator<Item = (u16, &PortalConfig)> {
        (FIRST_PORT..FIRST_PORT + PORT_COUNT).zip(&self.portals)
    }
}
