//! Subsystems and ports of others.

use std::collections::BTreeSet;
use std::io;

use orlop_api::ForeignKind;

use super::{Nvmet, plan};
use crate::kernel::Deadline;
use crate::target::foreign::Others;
use crate::target::tree::{attribute, in_words, list};
use crate::target::{Result, TargetError};

impl Nvmet {
    pub(super) fn others(&self, deadline: &Deadline) -> Result<Others> {
        let tree = &*self.tree;
        let ports = tree.list("ports").map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => TargetError::Absent("nvmet: is the module loaded?".into()),
            _ => in_words("ports")(e),
        })?;
        let mut names = BTreeSet::new();
        for name in list(tree, "subsystems")? {
            if self.config.prefix.volume(&name).is_none() {
                names.insert((ForeignKind::Subsystem, name));
            }
        }
        for port in ports.into_iter().filter(|p| plan::our_port(p).is_none()) {
            names.insert((ForeignKind::Port, port));
        }
        let mut others = Others::list(names, deadline, |kind, name| match kind {
            ForeignKind::Subsystem => self.devices_of(name),
            _ => Ok(BTreeSet::new()),
        })?;
        // A port's number says little: where it is does.
        for port in others.listed.iter_mut().filter(|o| o.kind == ForeignKind::Port) {
            let of = |what: &str| attribute(tree, &format!("ports/{}/addr_{what}", port.name));
            if let (Ok(Some(transport)), Ok(Some(address)), Ok(Some(service))) =
                (of("trtype"), of("traddr"), of("trsvcid"))
            {
                port.name = format!("{} ({transport} {address} {service})", port.name);
            }
        }
        Ok(others)
    }

    fn devices_of(&self, subsystem: &str) -> Result<BTreeSet<String>> {
        let tree = &*self.tree;
        let mut devices = BTreeSet::new();
        for nsid in list(tree, &format!("subsystems/{subsystem}/namespaces"))? {
            let path = format!("subsystems/{subsystem}/namespaces/{nsid}/device_path");
            devices.extend(attribute(tree, &path)?.filter(|device| !device.is_empty()));
        }
        Ok(devices)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use crate::target::sim;
    use crate::target::{ConfigTree, Target as _, TargetError};

    use super::*;

    #[test]
    fn subsystems_and_ports_of_others_are_listed_and_left() {
        let (target, tree) = sim::target(Default::default(), Default::default(), Default::default());
        let soon = Deadline::after(Duration::from_secs(20));
        assert_eq!(target.foreign(&soon).unwrap(), Others::default());
        let (theirs, ours) = ("nqn.2020-01.com.example:theirs", "0190c0de-0000-7000-8000-000000000000");
        tree.make_dir(&format!("subsystems/{theirs}")).unwrap();
        for nsid in [1, 2] {
            let namespace = format!("subsystems/{theirs}/namespaces/{nsid}");
            tree.make_dir(&namespace).unwrap();
            tree.write(&format!("{namespace}/device_path"), &format!("/dev/their{nsid}")).unwrap();
        }
        tree.make_dir("subsystems/nqn.2020-01.com.example:empty").unwrap();
        tree.make_dir(&format!("subsystems/nqn.2026-11.dev.orlop:{ours}")).unwrap();
        tree.make_dir("ports/1").unwrap();
        for (name, value) in [("trtype", "tcp"), ("traddr", "10.0.0.9"), ("trsvcid", "4420")] {
            tree.write(&format!("ports/1/addr_{name}"), value).unwrap();
        }
        let before = tree.dump();
        let others = target.foreign(&soon).unwrap();
        assert_eq!(tree.dump(), before);
        let found: Vec<_> = others.listed.iter().map(|f| (f.kind, &*f.name, f.devices.join(" "))).collect();
        let wanted = [
            (ForeignKind::Subsystem, "nqn.2020-01.com.example:empty", String::new()),
            (ForeignKind::Subsystem, theirs, "/dev/their1 /dev/their2".into()),
            (ForeignKind::Port, "1 (tcp 10.0.0.9 4420)", String::new()),
        ];
        assert_eq!((&found[..], others.more), (&wanted[..], 0));
        assert_eq!(target.served(&soon).unwrap().len(), 1);
    }

    #[test]
    fn without_the_module_it_is_absent() {
        let dir = tempfile::tempdir().unwrap();
        let tree = std::sync::Arc::new(crate::kernel::configfs::ConfigFs::at(dir.path()));
        let keys = std::sync::Arc::new(crate::target::nvmet::tls::SimKeyring::default());
        let target = Nvmet::over(Default::default(), tree, None, keys);
        let error = target.foreign(&Deadline::after(Duration::from_secs(20))).unwrap_err();
        assert!(matches!(error, TargetError::Absent(_)), "{error}");
    }
}
