//! Reading the kernel. What vanishes while it is read counts as not there: the next round sees.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;

use orlop_api::{Nqn, VolumeId};

use super::readers::ReadOnly;
use super::state::{Namespace, Observed, Port, ReadOnlyDevice, Subsystem};
use super::{Nvmet, plan, portal};
use crate::kernel::Deadline;
use crate::model::Audience;
use crate::target::tree::{attribute, in_words, list, optional, target_of};
use crate::target::{Desired, Result, Scope, TargetError};

impl Nvmet {
    pub(super) fn look(&self, scope: Scope, desired: &Desired, deadline: &Deadline) -> Result<Observed> {
        let tree = &*self.tree;
        // Without the module there is no directory at all: an empty answer would be taken for an empty
        // target.
        let ports = tree.list("ports").map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => TargetError::Unsupported("nvmet: is the module loaded?".into()),
            _ => in_words("ports")(e),
        })?;
        let mut seen = match scope.volume() {
            Some(volume) => self.look_at_one(volume, desired, &ports)?,
            None => self.look_at_all(desired, &ports, deadline)?,
        };
        seen.lists_controllers = self.debug.as_deref().is_some_and(|debug| debug.list("").is_ok());
        self.look_at_keys(scope, desired, &mut seen);
        Ok(seen)
    }

    /// The subsystems whose name is ours.
    pub(super) fn our_subsystems(&self) -> Result<BTreeMap<String, VolumeId>> {
        let names = list(&*self.tree, "subsystems")?.into_iter();
        Ok(names.filter_map(|name| self.config.prefix.volume(&name).map(|volume| (name, volume))).collect())
    }

    /// The volumes that have one, or a device that was made for one.
    pub(super) fn ours(&self) -> Result<BTreeSet<VolumeId>> {
        let mut volumes: BTreeSet<VolumeId> = self.our_subsystems()?.into_values().collect();
        volumes.extend(self.readers.volumes().map_err(in_words("read-only devices"))?);
        Ok(volumes)
    }

    /// The device of a volume's readers, which stands where it should or not.
    fn read_only(&self, volume: VolumeId, desired: &Desired) -> Result<Option<ReadOnlyDevice>> {
        let found = self.readers.get(volume).map_err(in_words("read-only devices"))?;
        let is_right = |on: Option<PathBuf>| {
            let wanted = desired.get(&volume).map(|export| &export.backing);
            on.zip(wanted).is_some_and(|(on, wanted)| {
                // By the kernel's own name of it: it may be wanted by a link.
                on == *wanted || std::fs::canonicalize(wanted).is_ok_and(|wanted| on == wanted)
            })
        };
        let shown = |ReadOnly { device, on }| ReadOnlyDevice {
            device: device.to_string_lossy().into_owned(),
            is_right: is_right(on),
        };
        Ok(found.map(shown))
    }

    /// Only what belongs to one volume: the number of others makes no difference.
    fn look_at_one(&self, volume: VolumeId, desired: &Desired, ports: &[String]) -> Result<Observed> {
        let tree = &*self.tree;
        let mut seen = Observed::default();
        let mut hosts: BTreeSet<String> = BTreeSet::new();
        for audience in Audience::ALL {
            let nqn = self.config.prefix.subsystem_for(volume, audience);
            let Some(mut subsystem) = self.subsystem(&nqn)? else { continue };
            for port in ports {
                if target_of(tree, &format!("ports/{port}/subsystems/{nqn}"))?.is_some() {
                    subsystem.links.insert((port.clone(), nqn.to_string()));
                }
            }
            hosts.extend(subsystem.hosts.values().cloned());
            seen.subsystems.insert((volume, audience), subsystem);
        }
        seen.read_only.extend(self.read_only(volume, desired)?.map(|device| (volume, device)));
        if let Some(export) = desired.get(&volume) {
            hosts.extend(export.nqns().map(|(nqn, _)| nqn.to_string()));
        }
        for host in hosts {
            if optional(tree.list(&format!("hosts/{host}"))).map_err(in_words("hosts"))?.is_some() {
                if !self.asks_as_it_should(&host)? {
                    seen.unproven.insert(host.clone());
                }
                seen.hosts.insert(host);
            }
        }
        for id in ports.iter().filter_map(|p| plan::our_port(p)) {
            // All of ours: which of them is whose is told by what they are.
            seen.ports.insert(id, self.port(id)?);
        }
        Ok(seen)
    }

    fn look_at_all(&self, desired: &Desired, ports: &[String], deadline: &Deadline) -> Result<Observed> {
        let tree = &*self.tree;
        let mut seen = Observed { hosts: list(tree, "hosts")?.into_iter().collect(), ..Default::default() };
        for host in &seen.hosts {
            if !self.asks_as_it_should(host)? {
                seen.unproven.insert(host.clone());
            }
        }
        for name in list(tree, "subsystems")? {
            deadline.check().map_err(|o| TargetError::Deadline("reading the kernel".into(), o))?;
            match (self.config.prefix.audience(&name), name.parse::<Nqn>()) {
                (Some(of), Ok(nqn)) => {
                    if let Some(subsystem) = self.subsystem(&nqn)? {
                        seen.subsystems.insert(of, subsystem);
                    }
                }
                _ => {
                    for nsid in list(tree, &format!("subsystems/{name}/namespaces"))? {
                        let path = format!("subsystems/{name}/namespaces/{nsid}/device_path");
                        if let Some(device) = attribute(tree, &path)? {
                            seen.foreign_devices.insert(device, name.clone());
                        }
                    }
                }
            }
        }
        for volume in self.readers.volumes().map_err(in_words("read-only devices"))? {
            seen.read_only.extend(self.read_only(volume, desired)?.map(|device| (volume, device)));
        }
        for port in ports {
            let ours = plan::our_port(port);
            let mut foreign = false;
            for entry in list(tree, &format!("ports/{port}/subsystems"))? {
                let Some(target) = target_of(tree, &format!("ports/{port}/subsystems/{entry}"))? else {
                    continue;
                };
                let of = self.config.prefix.audience(&target);
                match of.and_then(|of| seen.subsystems.get_mut(&of)) {
                    Some(subsystem) => drop(subsystem.links.insert((port.clone(), entry))),
                    None => foreign = true,
                }
            }
            if let Some(id) = ours {
                let mut port = Port { foreign_links: foreign, ..self.port(id)? };
                for name in list(tree, &format!("ports/{id}/referrals"))? {
                    if !name.starts_with(plan::REFERRAL) {
                        port.foreign_links = true;
                    } else {
                        let enabled = attribute(tree, &format!("ports/{id}/referrals/{name}/enable"))?;
                        port.referrals.insert(name, enabled.is_some_and(|v| v != "0"));
                    }
                }
                seen.ports.insert(id, port);
            }
        }
        Ok(seen)
    }

    fn port(&self, id: u16) -> Result<Port> {
        let mut attributes = BTreeMap::new();
        for name in portal::ATTRIBUTES {
            if let Some(value) = attribute(&*self.tree, &format!("ports/{id}/{name}"))? {
                attributes.insert(name, value);
            }
        }
        Ok(Port { attributes, ..Port::default() })
    }

    fn subsystem(&self, nqn: &Nqn) -> Result<Option<Subsystem>> {
        let tree = &*self.tree;
        let at = |what: &str| format!("subsystems/{nqn}/{what}");
        let Some(any_host) = attribute(tree, &at("attr_allow_any_host"))? else { return Ok(None) };
        let mut s = Subsystem {
            any_host: any_host != "0",
            serial: attribute(tree, &at("attr_serial"))?.unwrap_or_default(),
            model: attribute(tree, &at("attr_model"))?,
            qid_max: attribute(tree, &at("attr_qid_max"))?.and_then(|v| v.parse().ok()),
            controllers: self.controllers(nqn)?,
            ..Default::default()
        };
        for nsid in list(tree, &at("namespaces"))? {
            let field = |what: &str| attribute(tree, &at(&format!("namespaces/{nsid}/{what}")));
            let namespace = Namespace {
                device: field("device_path")?.unwrap_or_default(),
                uuid: field("device_uuid")?.unwrap_or_default(),
                nguid: field("device_nguid")?.unwrap_or_default(),
                enabled: field("enable")?.is_some_and(|v| v != "0"),
            };
            s.namespaces.insert(nsid, namespace);
        }
        for entry in list(tree, &at("allowed_hosts"))? {
            if let Some(host) = target_of(tree, &at(&format!("allowed_hosts/{entry}")))? {
                s.hosts.insert(entry, host);
            }
        }
        Ok(Some(s))
    }

    /// How many controllers our subsystems have. `None`: this kernel does not list them.
    pub(super) fn live_controllers(&self, deadline: &Deadline) -> Result<Option<usize>> {
        let Some(debug) = self.debug.as_deref().filter(|debug| debug.list("").is_ok()) else {
            return Ok(None);
        };
        let mut live = 0;
        for nqn in self.our_subsystems()?.keys() {
            deadline.check().map_err(|o| TargetError::Deadline("counting controllers".into(), o))?;
            let entries = optional(debug.list(nqn)).map_err(in_words("controllers"))?;
            live += entries.iter().flatten().filter(|e| e.starts_with("ctrl")).count();
        }
        Ok(Some(live))
    }

    /// The hosts of the subsystem's live controllers. A controller leaves debugfs only when it is
    /// freed, and it is freed only when each of its queues has waited for its requests: what is not
    /// listed has no I/O in flight.
    pub(super) fn controllers(&self, nqn: &Nqn) -> Result<Option<Vec<String>>> {
        let Some(debug) = self.debug.as_deref() else { return Ok(None) };
        // Any failure here (no debugfs, no such directory, locked down) means: can't know.
        let Ok(entries) = debug.list(nqn.as_str()) else { return Ok(None) };
        let mut hosts = Vec::new();
        for entry in entries.iter().filter(|e| e.starts_with("ctrl")) {
            match optional(debug.read(&format!("{nqn}/{entry}/hostnqn"))) {
                Ok(Some(host)) => hosts.push(host),
                Ok(None) => {} // Gone between list and read.
                Err(_) => return Ok(None),
            }
        }
        hosts.sort_unstable();
        Ok(Some(hosts))
    }
}
