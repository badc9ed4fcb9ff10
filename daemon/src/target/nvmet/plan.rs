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
use std::net::SocketAddr;

use orlop_api::{Nqn, Transport, VolumeId};

use super::portal::{self, NvmetPortal};
use super::state::{Change, NSID, Observed, Port, PortChange, ReadOnlyDevice, Step, Subsystem};
use super::{IO_QUEUES, NvmetConfig};
use crate::model::Audience;
use crate::target::portal::{device, shared_devices};
use crate::target::{Desired, Export, Scope};

/// The first of the port ids that are ours, and how many there are.
pub const FIRST_PORT: u16 = 28416;
/// See [`FIRST_PORT`].
pub const PORT_COUNT: u16 = 64;

/// What initiators read as the model of every volume.
pub(super) const MODEL: &str = "Orlop";

/// What the names of referrals of ours begin with.
pub(super) const REFERRAL: &str = "orlop-";

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
        volumes.extend(seen.subsystems.keys().map(|(volume, _)| volume));
        volumes.extend(seen.read_only.keys());
        volumes.extend(seen.stale_keys.keys());
    }
    if let Some(only) = scope.volume() {
        volumes.retain(|v| *v == only);
    }
    // nvmet opens without exclusion, so it would not mind.
    let double = shared_devices(&volumes, desired);
    let (mut closing, mut building) = (Vec::new(), Vec::new());
    // Of volumes that are left as they are, too.
    for (volume, identities) in
        seen.stale_keys.iter().filter(|(v, _)| !volumes.contains(v) && scope.volume().is_none())
    {
        let nqn = config.prefix.subsystem(*volume);
        let step = |identity: &String| Step::Volume {
            volume: *volume,
            nqn: nqn.clone(),
            change: Change::RemoveKey { identity: identity.clone() },
        };
        closing.extend(identities.iter().map(step));
    }
    let misplaced = misplaced_ports(config, seen);
    for volume in volumes {
        let export = desired.get(&volume);
        let mut parts = Audience::ALL.map(|of| Part::of(config, seen, &misplaced, volume, export, of));
        let [writers, _] = &mut parts;
        writers.take_keys();
        let refuse = export.and_then(|export| in_the_way(config, export, &double, seen));
        if let Some(refuse) = &refuse {
            building.push(writers.step_of(refuse.clone()));
        }
        for mut part in parts {
            let rebuilt = part.close();
            closing.append(&mut part.steps);
            if let (Some(export), None) = (part.want, &refuse) {
                part.build(export, rebuilt);
                building.append(&mut part.steps);
            }
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
    let (none, mut steps) = (BTreeSet::new(), Vec::new());
    let mut blind = Audience::ALL
        .map(|of| Part::of(config, seen, &none, volume, desired.get(&volume), of))
        .into_iter()
        // The plan itself sees every controller of the others.
        .filter(|part| part.is.is_some_and(|is| !can_drop(is)))
        .peekable();
    if let Some(first) = blind.peek_mut() {
        first.take_keys();
    }
    for mut part in blind {
        let Some(is) = part.is else { continue };
        if is.any_host {
            part.step(Change::Close);
        }
        part.tear_down(is);
        steps.append(&mut part.steps);
    }
    steps
}

/// Whether controllers can be dropped one subsystem at a time and be seen to go.
fn can_drop(is: &Subsystem) -> bool {
    is.controllers.is_some() && is.qid_max.is_some()
}

fn in_the_way(
    config: &NvmetConfig,
    export: &Export,
    double: &BTreeSet<String>,
    seen: &Observed,
) -> Option<Change> {
    if config.portals_of(export).next().is_none() {
        return Some(Change::NoPortal { tls: export.tls() });
    }
    let device = device(export);
    let detail = match seen.foreign_devices.get(&device) {
        Some(nqn) => format!("subsystem {nqn} serves it as well"),
        None if double.contains(&device) => "it is the backing of more than one volume".into(),
        None => return None,
    };
    Some(Change::Refuse { object: device, detail })
}

/// What is done about one of a volume's subsystems.
struct Part<'a> {
    config: &'a NvmetConfig,
    seen: &'a Observed,
    volume: VolumeId,
    audience: Audience,
    nqn: Nqn,
    is: Option<&'a Subsystem>,
    /// The volume, if anybody of those is to be let in that this is for.
    want: Option<&'a Export>,
    misplaced: &'a BTreeSet<String>,
    steps: Vec<Step>,
}

impl<'a> Part<'a> {
    fn of(
        config: &'a NvmetConfig,
        seen: &'a Observed,
        misplaced: &'a BTreeSet<String>,
        volume: VolumeId,
        export: Option<&'a Export>,
        audience: Audience,
    ) -> Self {
        let nqn = config.prefix.subsystem_for(volume, audience);
        let is = seen.subsystems.get(&(volume, audience));
        let want = export.filter(|e| e.audience(audience).next().is_some());
        Self { config, seen, volume, audience, nqn, is, want, misplaced, steps: Vec::new() }
    }

    fn step_of(&self, change: Change) -> Step {
        Step::Volume { volume: self.volume, nqn: self.nqn.clone(), change }
    }

    fn step(&mut self, change: Change) {
        let step = self.step_of(change);
        self.steps.push(step);
    }

    /// The hosts that are let in here.
    fn hosts(&self, want: &'a Export) -> impl Iterator<Item = &'a Nqn> + use<'a> {
        want.audience(self.audience)
    }

    /// The device for readers, if there is one and this is for them.
    fn read_only(&self) -> Option<&'a ReadOnlyDevice> {
        self.seen.read_only.get(&self.volume).filter(|_| self.audience == Audience::Readers)
    }

    /// The volume's keys go before the hosts that had them: these say which keys there may be.
    fn take_keys(&mut self) {
        for identity in self.seen.stale_keys.get(&self.volume).into_iter().flatten() {
            self.step(Change::RemoveKey { identity: identity.clone() });
        }
    }

    /// Closing steps. True if nothing of the subsystem is left after them.
    fn close(&mut self) -> bool {
        let gone = self.close_subsystem();
        // Nothing has it open then.
        if gone && self.read_only().is_some_and(|device| self.want.is_none() || !device.is_right) {
            self.step(Change::RemoveReadOnly);
        }
        gone
    }

    fn close_subsystem(&mut self) -> bool {
        let Some(is) = self.is else { return true };
        if is.any_host {
            self.step(Change::Close);
        }
        let Some(want) = self.want.filter(|w| self.keeps(is, w)) else {
            self.tear_down(is);
            return true;
        };
        let keep: BTreeSet<String> = self.hosts(want).map(ToString::to_string).collect();
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
            let (rest, other) = self.config.qid_max();
            let qid_max = if is.qid_max == Some(rest) { other } else { rest };
            self.step(Change::DropControllers { keep, qid_max });
        }
        for host in left {
            self.step(Change::RemoveHost { host });
        }
        // Not where it should not be: without TLS, a host is believed its name.
        let ports = self.config.ports_of(want, &self.seen.ports);
        let elsewhere = |port: &str| match our_port(port) {
            Some(id) => !ports.contains_key(&id),
            // A port of somebody else is left as it is, but not our link to it.
            None => want.tls(),
        };
        for (port, entry) in &is.links {
            if self.misplaced.contains(port) || elsewhere(port) {
                self.step(Change::Unlink { port: port.clone(), entry: entry.clone() });
            }
        }
        false
    }

    /// Whether the subsystem can stay and be completed, or must be made anew.
    fn keeps(&self, is: &Subsystem, want: &'a Export) -> bool {
        let identity = &want.identity;
        let same = is.serial == identity.serial
            && is.model.as_deref().is_none_or(|m| m == MODEL)
            && is.namespaces.len() == 1
            && is.namespaces.get(NSID).is_some_and(|n| {
                self.device(want).as_ref() == Some(&n.device)
                    && n.uuid == identity.uuid.hyphenated().to_string()
                    && n.nguid == identity.nguid_hyphenated()
            });
        if !same || can_drop(is) {
            return same;
        }
        // Controllers can't be seen. All the access that there was must be in the links, and all of it
        // must be desired.
        let known = is.allowed();
        let wanted = known.iter().all(|h| self.hosts(want).any(|w| w.as_str() == *h));
        // Nobody allowed: half built by us, or it was open to all and we were stopped after closing it.
        // Which of the two can't be told.
        let unknown = is.any_host || known.is_empty();
        wanted && !unknown
    }

    /// The device that the namespace should be of. `None`: it is not there yet.
    fn device(&self, want: &Export) -> Option<String> {
        match self.audience {
            Audience::Writers => Some(device(want)),
            Audience::Readers => self.read_only().filter(|d| d.is_right).map(|d| d.device.clone()),
        }
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
            if !self.want.is_some_and(|w| self.hosts(w).any(|h| h.as_str() == host)) {
                self.step(Change::RemoveHost { host: host.to_string() });
            }
        }
    }

    fn build(&mut self, want: &'a Export, rebuilt: bool) {
        let is = self.is.filter(|_| !rebuilt);
        let readers = self.audience == Audience::Readers;
        if readers && self.device(want).is_none() {
            self.step(Change::MakeReadOnly { on: device(want) });
        }
        if is.is_none() {
            self.step(Change::MakeSubsystem);
            // 0 is what a new subsystem has; written all the same, before anything that matters.
            self.step(Change::Set { attribute: "attr_allow_any_host", value: "0".into() });
            self.step(Change::Set { attribute: "attr_serial", value: want.identity.serial.clone() });
            self.step(Change::Set { attribute: "attr_model", value: MODEL.into() });
            self.step(Change::MakeNamespace);
            // A fence must not lose the reservations of hosts that stay, as making all anew would.
            if self.seen.lists_controllers {
                self.step(Change::SetNamespace { attribute: "resv_enable", value: "1".into() });
            }
            match readers {
                true => self.step(Change::SetReadOnly),
                false => {
                    self.step(Change::SetNamespace { attribute: "device_path", value: device(want) });
                }
            }
            for (attribute, value) in [
                ("device_uuid", want.identity.uuid.hyphenated().to_string()),
                ("device_nguid", want.identity.nguid_hyphenated()),
            ] {
                self.step(Change::SetNamespace { attribute, value });
            }
        }
        let (rest, other) = self.config.qid_max();
        // Only what differs: writing it drops the controllers.
        let limited = is.map_or(Some(IO_QUEUES), |s| s.qid_max);
        if limited.is_some_and(|is| is != rest && is != other) {
            self.step(Change::Set { attribute: "attr_qid_max", value: rest.to_string() });
        }
        if !is.is_some_and(|s| s.namespaces.values().all(|n| n.enabled)) {
            self.step(Change::Enable);
        }
        let known = is.map(Subsystem::allowed).unwrap_or_default();
        for host in self.hosts(want).map(Nqn::as_str) {
            if known.contains(host) && self.seen.unproven.contains(host) {
                self.step(Change::Authenticate { host: host.to_string() });
            }
        }
        for host in self.hosts(want).map(Nqn::as_str) {
            if self.seen.keyless.contains(&(self.volume, host.to_string())) {
                self.step(Change::PutKeys { host: host.to_string() });
            }
        }
        for host in self.hosts(want).map(Nqn::as_str).filter(|h| !known.contains(h)) {
            // In the scope of all, an earlier volume's step may have made it: that is not an error.
            if !self.seen.hosts.contains(host) {
                self.step(Change::MakeHost { host: host.to_string() });
            }
            self.step(Change::Allow { host: host.to_string() });
        }
        for (id, portal) in self.config.ports_of(want, &self.seen.ports) {
            let name = id.to_string();
            let linked = is.is_some_and(|s| s.links.iter().any(|(p, _)| *p == name));
            if !linked || self.misplaced.contains(&name) {
                self.step(Change::Link { port: id, portal: portal.to_string() });
            }
        }
    }
}

/// Ports of ours that serve another address than the configured one, or otherwise, or none that is configured.
fn misplaced_ports(config: &NvmetConfig, seen: &Observed) -> BTreeSet<String> {
    let wanted = config.ports(&seen.ports);
    let wrong = seen.ports.iter().filter(|(id, port)| match wanted.get(id) {
        Some(wanted) => !portal::misconfigured(config, wanted, port).is_empty(),
        None => true,
    });
    wrong.map(|(id, _)| id.to_string()).collect()
}

fn plan_ports(
    config: &NvmetConfig,
    scope: Scope,
    seen: &Observed,
    misplaced: &BTreeSet<String>,
    steps: &mut Vec<Step>,
) {
    let wanted = config.ports(&seen.ports);
    if scope == Scope::All {
        for (id, port) in &seen.ports {
            // What somebody else has linked there stays there.
            if !wanted.contains_key(id) && !port.foreign_links && misplaced.contains(&id.to_string()) {
                let portal = format!("of port {id}");
                for name in port.referrals.keys().cloned() {
                    let change = PortChange::Unrefer { name };
                    steps.push(Step::Port { port: *id, portal: portal.clone(), change });
                }
                steps.push(Step::Port { port: *id, portal, change: PortChange::Remove });
            }
        }
    }
    for (id, wanted) in wanted {
        let mut push = |change| steps.push(Step::Port { port: id, portal: wanted.to_string(), change });
        let none = Port::default();
        let port = seen.ports.get(&id).unwrap_or_else(|| {
            push(PortChange::Make);
            &none
        });
        let fixed = portal::misconfigured(config, wanted, port);
        for (attribute, value) in fixed.into_iter().chain(portal::out_of_date(wanted, port)) {
            push(PortChange::Set { attribute, value });
        }
        // One volume's steps look at no referrals, but for those of a port that they make.
        if scope.volume().is_none() || !seen.ports.contains_key(&id) {
            plan_referrals(config, wanted, port, &mut push);
        }
    }
}

fn plan_referrals(
    config: &NvmetConfig,
    portal: &NvmetPortal,
    port: &Port,
    push: &mut impl FnMut(PortChange),
) {
    let wanted: BTreeMap<String, SocketAddr> =
        config.referrals_of(portal).into_iter().map(|to| (format!("{REFERRAL}{to}"), to)).collect();
    for (name, enabled) in &port.referrals {
        if !enabled || !wanted.contains_key(name) {
            push(PortChange::Unrefer { name: name.clone() });
        }
    }
    for (name, to) in wanted {
        if port.referrals.get(&name) != Some(&true) {
            push(PortChange::Refer { name, to });
        }
    }
}

impl NvmetConfig {
    /// The configured portals with the ids of their ports. One that a port of ours has already stays there: who is
    /// connected by it must not notice that another was added before it, or taken away.
    pub(super) fn ports(&self, seen: &BTreeMap<u16, Port>) -> BTreeMap<u16, &NvmetPortal> {
        let (mut placed, mut left) = (BTreeMap::new(), Vec::new());
        for wanted in self.portals.iter().take(PORT_COUNT.into()) {
            let is_there = |(_, port): &(&u16, &Port)| portal::is_at(wanted, port);
            match seen.iter().filter(|(id, _)| !placed.contains_key(*id)).find(is_there) {
                Some((id, _)) => drop(placed.insert(*id, wanted)),
                None => left.push(wanted),
            }
        }
        for wanted in left {
            let free = (FIRST_PORT..FIRST_PORT + PORT_COUNT).find(|id| !placed.contains_key(id));
            placed.extend(free.map(|id| (id, wanted)));
        }
        placed
    }

    /// Those portals at which a volume is served.
    pub(super) fn portals_of(&self, export: &Export) -> impl Iterator<Item = &NvmetPortal> {
        let tls = export.tls();
        self.portals.iter().filter(move |p| p.tls == tls)
    }

    /// The same with the ids of their ports.
    fn ports_of(&self, export: &Export, seen: &BTreeMap<u16, Port>) -> BTreeMap<u16, &NvmetPortal> {
        let mut ports = self.ports(seen);
        ports.retain(|_, p| p.tls == export.tls());
        ports
    }

    /// `attr_qid_max` rests at the first of these, or at the other: writing the one that it is not drops the controllers.
    /// (Since 6.x any write does; before, only another value.)
    fn qid_max(&self) -> (u16, u16) {
        (self.io_queues, if self.io_queues > 1 { self.io_queues - 1 } else { 2 })
    }

    /// Where discovery at a portal refers hosts to: to what is configured, and to the other portals of this machine, so
    /// that who knows one finds all. By TCP alone, and none where it begins with TLS: nobody has a key for discovery.
    fn referrals_of(&self, portal: &NvmetPortal) -> Vec<SocketAddr> {
        let plain = |p: &NvmetPortal| !p.tls && p.transport == Transport::Tcp;
        if !plain(portal) {
            return Vec::new();
        }
        let other = |p: &&NvmetPortal| plain(p) && p.at != portal.at && !p.at.address.is_unspecified();
        let own = self.portals.iter().filter(other);
        let own = own.map(|p| SocketAddr::new(p.at.address, p.at.port));
        own.chain(self.referrals.iter().copied()).collect()
    }
}
