//! Reading the kernel. What vanishes while it is read counts as not there: the next round sees.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use orlop_api::{Iqn, VolumeId};

use super::state::{Acl, Backstore, Group, MappedLun, Observed, Target};
use super::{ADAPTER, Lio, plan};
use crate::kernel::Deadline;
use crate::target::tree::{attribute, in_words, list, optional, target_of};
use crate::target::{Desired, Result, Scope, TargetError};

/// What the kernel writes before a unit's serial number.
const SERIAL: &str = "T10 VPD Unit Serial Number:";

/// The device in a backstore's `info`. The attribute `udev_path` is no more than a note.
pub(super) fn pointed_at(info: &str) -> Option<String> {
    let device = info.split_once("UDEV PATH: ")?.1;
    let device = device.split_once("  readonly:").map_or(device, |(device, _)| device);
    Some(device.lines().next()?.trim().to_string())
}

impl Lio {
    pub(super) fn look(&self, scope: Scope, desired: &Desired, deadline: &Deadline) -> Result<Observed> {
        // Without the module there is no directory at all: an empty answer would be taken for an empty target.
        let adapters = self.tree.list("core").map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => TargetError::Absent("LIO: is the module loaded?".into()),
            _ => in_words("core")(e),
        })?;
        let mut seen = Observed::default();
        let volumes = match (scope.volume(), scope) {
            (Some(volume), _) => BTreeSet::from([volume]),
            // All the same: what is not desired may hold a device that is.
            (None, _) => self.ours()?.into_iter().chain(desired.keys().copied()).collect(),
        };
        for volume in volumes {
            deadline.check().map_err(|o| TargetError::Deadline("reading the kernel".into(), o))?;
            if let Some(backstore) = self.backstore(volume)? {
                seen.backstores.insert(volume, backstore);
            }
            if let Some(target) = self.target(&self.config.prefix.target(volume))? {
                seen.targets.insert(volume, target);
            }
            if !desired.is_attached(volume) && self.is_remembered(volume) {
                seen.remembered.insert(volume);
            }
        }
        if scope.volume().is_none() {
            self.look_at_foreign(&adapters, &mut seen)?;
        }
        Ok(seen)
    }

    /// The volumes that have a target or a backstore.
    pub(super) fn ours(&self) -> Result<BTreeSet<VolumeId>> {
        let targets = list(&*self.tree, "iscsi")?;
        let mut all: BTreeSet<_> =
            targets.iter().filter_map(|n| self.config.prefix.volume_of_target(n)).collect();
        let backstores = list(&*self.tree, &format!("core/{ADAPTER}"))?;
        all.extend(backstores.iter().filter_map(|n| n.parse::<VolumeId>().ok()));
        Ok(all)
    }

    /// How many sessions our targets have. `None`: this kernel does not count them.
    pub(super) fn live_sessions(&self, deadline: &Deadline) -> Result<Option<usize>> {
        let tree = &*self.tree;
        let mut live = None;
        for name in list(tree, "iscsi")?.iter().filter(|n| self.config.prefix.volume_of_target(n).is_some()) {
            deadline.check().map_err(|o| TargetError::Deadline("counting sessions".into(), o))?;
            let count = attribute(tree, &format!("iscsi/{name}/fabric_statistics/iscsi_instance/sessions"))?;
            if let Some(count) = count.and_then(|c| c.parse::<usize>().ok()) {
                *live.get_or_insert(0) += count;
            }
        }
        Ok(live)
    }

    fn look_at_foreign(&self, adapters: &[String], seen: &mut Observed) -> Result<()> {
        let tree = &*self.tree;
        for adapter in adapters.iter().filter(|a| a.starts_with("iblock_")) {
            for name in list(tree, &format!("core/{adapter}"))? {
                if adapter == ADAPTER && name.parse::<VolumeId>().is_ok() {
                    continue;
                }
                // Anything but a backstore has no such attribute.
                let info = attribute(tree, &format!("core/{adapter}/{name}/info"));
                if let Some(device) = info.ok().flatten().as_deref().and_then(pointed_at) {
                    seen.foreign_devices.insert(device, format!("{adapter}/{name}"));
                }
            }
        }
        Ok(())
    }

    fn backstore(&self, volume: VolumeId) -> Result<Option<Backstore>> {
        let field = |what: &str| attribute(&*self.tree, &format!("core/{ADAPTER}/{volume}/{what}"));
        let Some(enabled) = field("enable")? else { return Ok(None) };
        let serial = field("wwn/vpd_unit_serial")?.unwrap_or_default();
        let serial = serial.strip_prefix(SERIAL).unwrap_or(&serial).trim().to_string();
        let able = field("attrib/max_unmap_block_desc_count")?.is_some_and(|n| n != "0");
        let off = |value: Option<String>| value.is_some_and(|v| v == "0");
        let mut alua = BTreeMap::new();
        for (attribute, _, _) in plan::ALUA {
            if let Some(value) = field(&format!("{}/{attribute}", plan::PORT_GROUP))? {
                alua.insert(attribute, value);
            }
        }
        Ok(Some(Backstore {
            device: field("info")?.as_deref().and_then(pointed_at),
            serial,
            product: field("wwn/product_id")?,
            enabled: enabled != "0",
            alua,
            wasteful: able && (off(field("attrib/emulate_tpu")?) || off(field("attrib/emulate_tpws")?)),
        }))
    }

    fn target(&self, iqn: &Iqn) -> Result<Option<Target>> {
        let names = optional(self.tree.list(&format!("iscsi/{iqn}"))).map_err(in_words("iscsi"))?;
        let Some(names) = names else { return Ok(None) };
        let mut groups = Target::new();
        for name in names.into_iter().filter(|n| n.starts_with("tpgt_")) {
            if let Some(group) = self.group(iqn, &name)? {
                groups.insert(name, group);
            }
        }
        Ok(Some(groups))
    }

    fn group(&self, iqn: &Iqn, name: &str) -> Result<Option<Group>> {
        let tree = &*self.tree;
        let at = |what: &str| format!("iscsi/{iqn}/{name}/{what}");
        let Some(enabled) = attribute(tree, &at("enable"))? else { return Ok(None) };
        let mut group = Group { enabled: enabled != "0", ..Group::default() };
        for (attrib, _) in plan::ATTRIBUTES {
            if let Some(value) = attribute(tree, &at(&format!("attrib/{attrib}")))? {
                group.attributes.insert(attrib, value);
            }
        }
        for lun in list(tree, &at("lun"))? {
            let links = self.links(&at(&format!("lun/{lun}")))?;
            group.luns.insert(lun, links);
        }
        for host in list(tree, &at("acls"))? {
            let acl = self.acl(iqn, name, &host)?;
            group.acls.insert(host, acl);
        }
        group.portals = list(tree, &at("np"))?.into_iter().collect();
        // One a line, and each line ends with a zero too.
        let dynamic = attribute(tree, &at("dynamic_sessions"))?.unwrap_or_default();
        group.dynamic = dynamic.split(['\n', '\0']).filter(|h| !h.is_empty()).map(Into::into).collect();
        Ok(Some(group))
    }

    fn acl(&self, iqn: &Iqn, group: &str, host: &str) -> Result<Acl> {
        let tree = &*self.tree;
        let at = format!("iscsi/{iqn}/{group}/acls/{host}");
        let own_authentication = attribute(tree, &format!("{at}/attrib/authentication"))?.is_some();
        let asks = self.asks_as_it_should(iqn, group, host)?;
        let mut luns = BTreeMap::new();
        for lun in list(tree, &at)?.into_iter().filter(|n| n.starts_with("lun_")) {
            let links = self.links(&format!("{at}/{lun}"))?;
            let write_protect = attribute(tree, &format!("{at}/{lun}/write_protect"))?;
            // Nothing can be read of what has no link.
            luns.insert(lun, MappedLun { links, read_only: write_protect.is_some_and(|v| v == "1") });
        }
        Ok(Acl { own_authentication, asks, luns })
    }

    /// The links in a directory, among attributes and default groups: what they are called and point at.
    fn links(&self, path: &str) -> Result<BTreeMap<String, String>> {
        let mut links = BTreeMap::new();
        for name in list(&*self.tree, path)? {
            match target_of(&*self.tree, &format!("{path}/{name}")) {
                Ok(Some(target)) => drop(links.insert(name, target)),
                Ok(None) => {}
                // Not a link.
                Err(TargetError::Kernel { source, .. }) if source.kind() == io::ErrorKind::InvalidInput => {}
                Err(e) => return Err(e),
            }
        }
        Ok(links)
    }
}
