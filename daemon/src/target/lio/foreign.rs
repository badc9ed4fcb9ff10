//! Targets and backstores of others, whatever they are reached by.

use std::collections::BTreeSet;
use std::io;

use orlop_api::{ForeignKind, VolumeId};

use super::observe::pointed_at;
use super::{ADAPTER, Lio};
use crate::kernel::Deadline;
use crate::target::foreign::Others;
use crate::target::tree::{attribute, in_words, list, target_of};
use crate::target::{ConfigTree, Result, TargetError};

/// What the kernel puts beside targets and backstores.
const NOT_MADE: [&str; 6] =
    ["discovery_auth", "fabric_statistics", "lio_version", "version", "hba_info", "hba_mode"];

impl Lio {
    pub(super) fn others(&self, deadline: &Deadline) -> Result<Others> {
        let tree = &*self.tree;
        let adapters = tree.list("core").map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => TargetError::Absent("LIO: is the module loaded?".into()),
            _ => in_words("core")(e),
        })?;
        let mut names = BTreeSet::new();
        for fabric in list(tree, "")?.iter().filter(|f| *f != "core") {
            for name in names_in(tree, fabric)? {
                let ours = fabric == "iscsi" && self.config.prefix.volume_of_target(&name).is_some();
                if !ours && !NOT_MADE.contains(&&*name) {
                    names.insert((ForeignKind::Target, format!("{fabric}/{name}")));
                }
            }
        }
        let adapters: Vec<String> = adapters.into_iter().filter(|a| a != "alua").collect();
        for adapter in &adapters {
            for name in names_in(tree, &format!("core/{adapter}"))? {
                let ours = adapter == ADAPTER && name.parse::<VolumeId>().is_ok();
                if !ours && !NOT_MADE.contains(&&*name) {
                    names.insert((ForeignKind::Backstore, format!("{adapter}/{name}")));
                }
            }
        }
        Others::list(names, deadline, |kind, name| match kind {
            ForeignKind::Target => self.devices_of_target(name, &adapters),
            _ => Ok(self.device_of(name).into_iter().collect()),
        })
    }

    /// The device or file of a backstore: as it was pointed at it, or as whoever made it has noted.
    fn device_of(&self, backstore: &str) -> Option<String> {
        let field = |what: &str| attribute(&*self.tree, &format!("core/{backstore}/{what}")).ok().flatten();
        let noted = || field("udev_path").filter(|path| !path.is_empty());
        field("info").as_deref().and_then(pointed_at).or_else(noted)
    }

    /// A link tells the name of a backstore, and not its adapter's.
    fn devices_of_target(&self, target: &str, adapters: &[String]) -> Result<BTreeSet<String>> {
        let tree = &*self.tree;
        let mut devices = BTreeSet::new();
        for group in list(tree, target)?.iter().filter(|g| g.starts_with("tpgt_")) {
            for lun in list(tree, &format!("{target}/{group}/lun"))? {
                let lun = format!("{target}/{group}/lun/{lun}");
                for entry in list(tree, &lun)? {
                    // What is no link is an attribute.
                    let Ok(Some(name)) = target_of(tree, &format!("{lun}/{entry}")) else { continue };
                    let all = adapters.iter().filter_map(|a| self.device_of(&format!("{a}/{name}")));
                    devices.extend(all);
                }
            }
        }
        Ok(devices)
    }
}

/// The names in a directory; none where it is an attribute, or there no more.
fn names_in(tree: &dyn ConfigTree, path: &str) -> Result<Vec<String>> {
    match tree.list(path) {
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => Ok(Vec::new()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        names => names.map_err(in_words(path)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use crate::target::sim;
    use crate::target::{Desired, Scope, Target as _};

    use super::*;

    #[test]
    fn targets_and_backstores_of_others_are_listed_and_left() {
        let (target, tree) = sim::lio_target(Default::default(), Default::default(), Default::default());
        let soon = Deadline::after(Duration::from_secs(20));
        assert_eq!(target.foreign(&soon).unwrap(), Others::default());
        let (theirs, volume) = ("iqn.2020-01.com.example:theirs", "0190c0de-0000-7000-8000-000000000000");
        for dir in ["core/iblock_0", "core/iblock_0/theirs", "core/iblock_0/loose", "iscsi"] {
            tree.make_dir(dir).unwrap();
        }
        tree.write("core/iblock_0/theirs/control", "udev_path=/dev/theirs").unwrap();
        tree.write("core/iblock_0/theirs/enable", "1").unwrap();
        let group = format!("iscsi/{theirs}/tpgt_1");
        for dir in [&format!("iscsi/{theirs}"), &group, &format!("{group}/lun/lun_0")] {
            tree.make_dir(dir).unwrap();
        }
        tree.link("core/iblock_0/theirs", &format!("{group}/lun/lun_0/x")).unwrap();
        // Ours, as far as it is made.
        for dir in [&format!("core/{ADAPTER}"), &format!("core/{ADAPTER}/{volume}")] {
            tree.make_dir(dir).unwrap();
        }
        tree.make_dir(&format!("iscsi/iqn.2026-11.dev.orlop:{volume}")).unwrap();
        let before = tree.dump();
        let others = target.foreign(&soon).unwrap();
        assert_eq!(tree.dump(), before);
        let found: Vec<_> = others.listed.iter().map(|f| (f.kind, &*f.name, f.devices.join(" "))).collect();
        let name = format!("iscsi/{theirs}");
        let wanted = [
            (ForeignKind::Target, &*name, "/dev/theirs".to_string()),
            (ForeignKind::Backstore, "iblock_0/loose", String::new()),
            (ForeignKind::Backstore, "iblock_0/theirs", "/dev/theirs".to_string()),
        ];
        assert_eq!((&found[..], others.more), (&wanted[..], 0));
        target.converge(Scope::All, &Desired::new(), &soon).unwrap();
        assert_eq!(target.foreign(&soon).unwrap(), others);
    }
}
