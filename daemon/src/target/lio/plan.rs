//! From what should be and what is to the changes in between. Pure.
//!
//! Closing comes first, for all volumes; then building. Two orders carry the security:
//!
//! - *Teardown*: disable the portal group, which ends its sessions; then portals, node ACLs, LUN, target, backstore. A
//!   node ACL says who may have a session, and its removal returns when that has ended: so it goes in one step with
//!   the access, and whoever finds a half torn down target after a crash can tell who is left.
//! - *Build*: backstore with its identity and reservations; target, closed; LUN; node ACLs, each with its LUN, its rights
//!   and last its proof; portals; and last the portal group is enabled. Nobody gets in before all is there. Until it is
//!   given what it needs, a new node ACL lets nobody in and a new mapped LUN is read-only.
//!
//! Who loses access loses it by the removal of the node ACL; the others keep their sessions. A host that got in by
//! another hand (`generate_node_acls`) is in `dynamic_sessions`: its node ACL gets a directory, and is removed like any
//! other. Where that or `cache_dynamic_acls` is still on, the target is made anew: what was cached is listed nowhere.
//! Where another hand has set them back, what is cached can't pass `authentication`, for it has no name and no secret;
//! before Linux 6.2, where that is 0 as long as no host has a secret, it can, and is found and ended by the next look.
//!
//! A portal that there should be no more takes with it who came by it. The kernel does not end sessions by portal, so the
//! portal group is disabled, and enabled again when the portal is gone: the hosts of other portals come back by themselves.
//!
//! A target enabled and its portals open one right after another: a host that comes back in between is told that the
//! service is not available yet, and tries again.

use std::collections::BTreeSet;

use orlop_api::{Iqn, VolumeId};

use super::LioConfig;
use super::state::{Acl, Backstore, Change, GROUP, Group, LUN, Observed, Step, Target};
use crate::target::portal::{device, shared_devices};
use crate::target::{Desired, Export, HostId, Rights, Scope};

/// The attributes of a portal group that are ours to decide, and what they should be, in the order in which they are
/// written. A kernel without one of them behaves as if it were so.
pub(super) const ATTRIBUTES: [(&str, &str); 6] = [
    ("generate_node_acls", "0"),
    ("cache_dynamic_acls", "0"),
    ("demo_mode_write_protect", "1"),
    // Who has no node ACL does not learn of the target by discovery.
    ("demo_mode_discovery", "0"),
    // What a mapped LUN has at first.
    ("prod_mode_write_protect", "1"),
    (AUTHENTICATION, "1"),
];
const AUTHENTICATION: &str = "authentication";

/// How hosts are told of the paths to a LUN (ALUA): the attributes of the group of target ports that the kernel puts every
/// LUN into, how each reads when it is right, and what is written for that, in the order in which they are written. All
/// portals are of one machine and as good as each other, so there is one group, active and optimized. It is for the
/// appliance alone to say so: with explicit ALUA, which the kernel begins with, any host could send the paths of all hosts of
/// a volume to standby.
pub(super) const ALUA: [(&str, &str, &str); 3] = [
    ("alua_support_active_optimized", "1", "1"),
    (ACCESS_TYPE, "Implicit", "1"),
    // The kernel takes it only where ALUA is implicit.
    ("alua_access_state", "0", "0"),
];
const ACCESS_TYPE: &str = "alua_access_type";

/// The group's directory in a backstore.
pub(super) const PORT_GROUP: &str = "alua/default_tg_pt_gp";

/// What initiators read as the model of every volume.
pub(super) const PRODUCT: &str = "Orlop";

/// See the module.
pub(super) fn plan(config: &LioConfig, scope: Scope, desired: &Desired, seen: &Observed) -> Vec<Step> {
    let mut volumes: BTreeSet<VolumeId> = desired.keys().copied().collect();
    if scope != Scope::Desired {
        volumes.extend(seen.targets.keys().chain(seen.backstores.keys()).chain(&seen.remembered));
    }
    if let Some(only) = scope.volume() {
        volumes.retain(|v| *v == only);
    }
    let double = shared_devices(&volumes, desired);
    let (mut closing, mut building) = (Vec::new(), Vec::new());
    for volume in volumes {
        let mut v = Volume {
            config,
            volume,
            iqn: config.prefix.target(volume),
            target: seen.targets.get(&volume),
            backstore: seen.backstores.get(&volume),
            want: desired.get(&volume),
            waiting: desired.waiting(volume).collect(),
            remembered: seen.remembered.contains(&volume),
            disabled: false,
            steps: Vec::new(),
        };
        let left = v.close();
        closing.append(&mut v.steps);
        if let Some(export) = v.want {
            match in_the_way(export, &double, seen) {
                Some(refuse) => v.step(refuse),
                None => v.build(export, left),
            }
            building.append(&mut v.steps);
        }
    }
    closing.sort_by_key(closing_order);
    // One portal after another, and then all targets at once.
    building.sort_by(|a, b| opening(a).cmp(&opening(b)));
    closing.append(&mut building);
    closing
}

/// Where a closing step comes, all volumes together: what disables and what closes to unnamed hosts before all else, and
/// backstores, which another volume's target may have been given by another hand, last.
fn closing_order(step: &Step) -> u8 {
    match step.change {
        Change::Disable { .. } | Change::Set { .. } => 0,
        Change::Forget | Change::RemoveBackstore => 2,
        _ => 1,
    }
}

/// Where a building step comes, all volumes together.
fn opening(step: &Step) -> (u8, &str) {
    match &step.change {
        Change::Listen { portal } => (1, portal),
        Change::Enable => (2, ""),
        _ => (0, ""),
    }
}

fn in_the_way(export: &Export, double: &BTreeSet<String>, seen: &Observed) -> Option<Change> {
    let device = device(export);
    let detail = match seen.foreign_devices.get(&device) {
        Some(name) => format!("backstore {name} holds it"),
        None if double.contains(&device) => "it is the backing of more than one volume".into(),
        None => return None,
    };
    Some(Change::Refuse { object: device, detail })
}

/// Hosts by their IQNs.
fn names<'a>(hosts: impl Iterator<Item = &'a HostId>) -> impl Iterator<Item = &'a str> {
    hosts.filter_map(|host| if let HostId::Iqn(iqn) = host { Some(iqn.as_str()) } else { None })
}

/// Its hosts by their IQNs.
fn hosts(export: &Export) -> impl Iterator<Item = (&str, Rights)> {
    export.hosts.iter().filter_map(|(host, rights)| match host {
        HostId::Iqn(iqn) => Some((iqn.as_str(), *rights)),
        _ => None,
    })
}

/// What is done about one volume.
struct Volume<'a> {
    config: &'a LioConfig,
    volume: VolumeId,
    iqn: Iqn,
    target: Option<&'a Target>,
    backstore: Option<&'a Backstore>,
    want: Option<&'a Export>,
    /// Hosts that are attached and not let in for the moment.
    waiting: Vec<&'a HostId>,
    /// Nobody is attached, and it is still written down what hosts had registered.
    remembered: bool,
    /// A portal group that stays is disabled for a moment.
    disabled: bool,
    steps: Vec<Step>,
}

impl<'a> Volume<'a> {
    fn step(&mut self, change: Change) {
        self.steps.push(Step { volume: self.volume, iqn: self.iqn.clone(), change });
    }

    /// Closing steps. What is left after them to build on: nothing, or the backstore and the portal group, whole.
    fn close(&mut self) -> Option<&'a Group> {
        let kept = self.want.and_then(|want| Some((want, self.kept(want)?)));
        let Some((want, group)) = kept else {
            self.tear_down();
            return None;
        };
        self.set(want, group);
        let gone = |portal: &&String| !self.config.portals.iter().any(|p| p.to_string() == **portal);
        let gone: Vec<_> = group.portals.iter().filter(gone).cloned().collect();
        if group.enabled && !gone.is_empty() {
            // Who came by it has a session still, and who came by another comes back.
            self.step(Change::Disable { group: GROUP.into() });
            self.disabled = true;
        }
        for portal in gone {
            self.step(Change::Unlisten { group: GROUP.into(), portal });
        }
        for host in &group.dynamic {
            self.step(Change::Adopt { group: GROUP.into(), host: host.clone() });
            self.step(Change::RemoveAcl { group: GROUP.into(), host: host.clone() });
        }
        for (host, acl) in &group.acls {
            let rights = hosts(want).find(|(name, _)| name == host).map(|(_, rights)| rights);
            let Some(rights) = rights else {
                self.remove_acl(GROUP, host, acl);
                continue;
            };
            for (lun, mapped) in acl.luns.iter().filter(|(name, _)| *name != LUN) {
                self.unmap(GROUP, host, lun, mapped.links.keys());
            }
            if let Some(mapped) = acl.luns.get(LUN) {
                let wrong = mapped.links.iter().filter(|(_, lun)| *lun != LUN);
                for (entry, _) in wrong {
                    let (group, host, lun) = (GROUP.into(), host.clone(), LUN.into());
                    self.step(Change::Unmap { group, host, lun, entry: entry.clone() });
                }
                if rights.read_only && !mapped.read_only && !mapped.links.is_empty() {
                    self.step(Change::Protect { host: host.clone(), read_only: true });
                }
            }
        }
        Some(group)
    }

    /// The portal group, if it, its LUN and the backstore can stay and be completed.
    fn kept(&self, want: &Export) -> Option<&'a Group> {
        let (target, backstore) = (self.target?, self.backstore?);
        let group = target.get(GROUP).filter(|_| target.len() == 1)?;
        let same = backstore.enabled
            && backstore.device.as_deref() == Some(&*device(want))
            && backstore.serial == want.identity.scsi_serial
            && backstore.product.as_deref().is_none_or(|p| p == PRODUCT);
        let lun = group.luns.get(LUN).filter(|_| group.luns.len() == 1)?;
        // Without it the backstore may not have been given its reservations, and that can be done only before.
        let linked = lun.len() == 1 && lun.values().all(|b| *b == self.volume.to_string());
        let open = ["generate_node_acls", "cache_dynamic_acls"].iter().any(|a| {
            let value = group.attributes.get(a);
            value.is_some_and(|v| v != "0")
        });
        (same && linked && !open).then_some(group)
    }

    /// What is wrong with the portal group's attributes. All of them close.
    fn set(&mut self, want: &Export, group: &Group) {
        // Where the kernel asks all hosts or none, what is right depends on the hosts: each of them says so. A new one
        // is made behind a closed door all the same.
        let all_or_none = group.acls.values().any(|a| !a.own_authentication)
            && hosts(want).all(|(host, _)| group.acls.contains_key(host));
        for (attribute, value) in ATTRIBUTES {
            let is = group.attributes.get(attribute);
            if is.is_some_and(|is| is != value) && !(attribute == AUTHENTICATION && all_or_none) {
                self.step(Change::Set { attribute, value });
            }
        }
    }

    fn tear_down(&mut self) {
        for (name, group) in self.target.into_iter().flatten() {
            if group.enabled {
                self.step(Change::Disable { group: name.clone() });
            }
            for portal in &group.portals {
                self.step(Change::Unlisten { group: name.clone(), portal: portal.clone() });
            }
            for (host, acl) in &group.acls {
                self.remove_acl(name, host, acl);
            }
            for (lun, links) in &group.luns {
                for entry in links.keys() {
                    let (group, lun) = (name.clone(), lun.clone());
                    self.step(Change::Unlink { group, lun, entry: entry.clone() });
                }
                self.step(Change::RemoveLun { group: name.clone(), lun: lun.clone() });
            }
            self.step(Change::RemoveGroup { group: name.clone() });
        }
        if self.target.is_some() {
            self.step(Change::RemoveTarget);
        }
        if self.remembered {
            self.step(Change::Forget);
        }
        if self.backstore.is_some() {
            self.step(Change::RemoveBackstore);
        }
    }

    fn remove_acl(&mut self, group: &str, host: &str, acl: &Acl) {
        for (lun, mapped) in &acl.luns {
            self.unmap(group, host, lun, mapped.links.keys());
        }
        self.step(Change::RemoveAcl { group: group.into(), host: host.into() });
    }

    fn unmap<'b>(&mut self, group: &str, host: &str, lun: &str, links: impl Iterator<Item = &'b String>) {
        for entry in links {
            let (group, host, lun) = (group.into(), host.into(), lun.into());
            self.step(Change::Unmap { group, host, lun, entry: entry.clone() });
        }
        self.step(Change::RemoveMapped { group: group.into(), host: host.into(), lun: lun.into() });
    }

    fn build(&mut self, want: &Export, left: Option<&Group>) {
        if left.is_none() {
            self.step(Change::MakeBackstore);
            let serial = want.identity.scsi_serial.clone();
            self.step(Change::Identify { attribute: "vpd_unit_serial", value: serial });
            self.step(Change::Identify { attribute: "product_id", value: PRODUCT.into() });
            self.step(Change::Point { device: device(want) });
            self.step(Change::EnableBackstore);
            self.step(Change::Discard);
            // All else of it is so in a new one.
            self.step(Change::Alua { attribute: ACCESS_TYPE, value: "1" });
            // Who waits too: he gets his back when he is let in, and not if the backstore has been given none of it.
            let hosts = names(want.hosts.keys().chain(self.waiting.iter().copied()));
            let hosts = hosts.map(str::to_string).collect();
            self.step(Change::Restore { hosts });
            self.step(Change::MakeTarget);
            self.step(Change::MakeGroup);
            for (attribute, value) in ATTRIBUTES {
                self.step(Change::Set { attribute, value });
            }
            self.step(Change::MakeLun);
        } else if let Some(backstore) = self.backstore {
            if backstore.wasteful {
                self.step(Change::Discard);
            }
            for (attribute, right, value) in ALUA {
                if backstore.alua.get(attribute).is_some_and(|is| is != right) {
                    self.step(Change::Alua { attribute, value });
                }
            }
        }
        for (host, rights) in hosts(want) {
            self.allow(host, rights, left.and_then(|g| g.acls.get(host)));
        }
        // When all are there: some kernels ask all or none of them, and a new one must find the door closed.
        for (host, _) in hosts(want) {
            if !left.and_then(|g| g.acls.get(host)).is_some_and(|a| a.asks) {
                self.step(Change::Authenticate { host: host.to_string() });
            }
        }
        for portal in &self.config.portals {
            let portal = portal.to_string();
            if !left.is_some_and(|g| g.portals.contains(&portal)) {
                self.step(Change::Listen { portal });
            }
        }
        if self.disabled || !left.is_some_and(|g| g.enabled) {
            self.step(Change::Enable);
        }
    }

    fn allow(&mut self, host: &str, rights: Rights, acl: Option<&Acl>) {
        let name = || host.to_string();
        if acl.is_none() {
            self.step(Change::MakeAcl { host: name() });
        }
        let mapped = acl.and_then(|a| a.luns.get(LUN));
        let reaches = mapped.is_some_and(|m| m.links.values().any(|lun| lun == LUN));
        if !reaches {
            self.step(Change::Map { host: name() });
        }
        // What is read-only has become so in closing, or is so from the beginning.
        let read_only = !reaches || mapped.is_some_and(|m| m.read_only);
        if !rights.read_only && read_only {
            self.step(Change::Protect { host: name(), read_only: false });
        }
    }
}
