//! What `ctld` and the kernel have of others. `ctladm` lists all LUNs or none, so this costs what a look at one volume does.

use std::collections::{BTreeMap, BTreeSet};

use orlop_api::ForeignKind;

use super::observe::Found;
use super::{Ctl, Kind};
use crate::kernel::Deadline;
use crate::target::Result;
use crate::target::foreign::Others;

impl Ctl {
    pub(super) fn others(&self, deadline: &Deadline) -> Result<Others> {
        let config = &self.file.config;
        let kernel = self.file.kernel(deadline)?;
        let (own, served) = match self.kind {
            Kind::Iscsi => (ForeignKind::Target, ",lun,"),
            Kind::Nvme => (ForeignKind::Subsystem, ",nsid,"),
        };
        let mut found: BTreeMap<(ForeignKind, String), BTreeSet<String>> = BTreeMap::new();
        if let Found::Ours(conf, _) = self.file.read()? {
            for (name, devices) in conf.foreign_targets(config, self.kind) {
                found.entry((own, name)).or_default().extend(devices);
            }
        }
        let other = |name: &str| [",lun,", ",nsid,"].iter().any(|w| *w != served && name.contains(w));
        for (name, lun) in &kernel.luns {
            // Each protocol tells of its own; of what nobody has configured both do.
            let key = match name.split_once(served) {
                Some((target, _)) if config.volume(self.kind, target).is_some() => continue,
                Some((target, _)) => (own, target.to_string()),
                None if other(name) => continue,
                None => (ForeignKind::Backstore, name.clone()),
            };
            let devices = found.entry(key).or_default();
            devices.extend(Some(lun.path.clone()).filter(|path| !path.is_empty()));
        }
        let names = found.keys().cloned().collect();
        Others::list(names, deadline, |kind, name| {
            Ok(found.get(&(kind, name.to_string())).cloned().unwrap_or_default())
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::target::Target as _;
    use crate::target::ctl::fake::Fake;
    use crate::target::ctl::{CtlConfig, CtlFile, Ctld as _};

    #[test]
    fn what_others_have_configured_and_made_is_listed_and_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ctl.conf");
        let ours = "2026-11.dev.orlop:0190c0de-0000-7000-8000-000000000000";
        let lun = |path: &str| json!({"path": path, "size": 1_048_576});
        let conf = json!({
            "lun": {"named": lun("/dev/named")},
            "target": {
                "iqn.2020-01.com.example:theirs": {"lun": {"0": lun("/dev/theirs"), "1": "named"}},
                format!("iqn.{ours}"): {"lun": {"0": lun("/dev/ours")}},
            },
            "controller": {"nqn.2020-01.com.example:theirs": {"namespace": {"1": lun("/dev/nvme")}}},
        });
        std::fs::write(&path, conf.to_string()).unwrap();
        let ctld = Arc::new(Fake::new(&path));
        ctld.create("/dev/by-hand");
        let config = CtlConfig { file: path.clone(), ..CtlConfig::default() };
        let file = Arc::new(CtlFile::over(config, ctld.clone()));
        let soon = Deadline::after(Duration::from_secs(20));
        let list = |kind| {
            let others = Ctl::of(file.clone(), kind).foreign(&soon).unwrap();
            assert_eq!(others.more, 0);
            let words = |f: &orlop_api::Foreign| format!("{} {}", f.name, f.devices.join(" "));
            others.listed.iter().map(words).collect::<Vec<_>>()
        };
        let by_hand = "LUN 1 /dev/by-hand";
        let target = "iqn.2020-01.com.example:theirs /dev/named /dev/theirs";
        assert_eq!(list(Kind::Iscsi), [target, by_hand]);
        assert_eq!(list(Kind::Nvme), ["nqn.2020-01.com.example:theirs /dev/nvme", by_hand]);
        assert_eq!(std::fs::read(&path).unwrap(), conf.to_string().as_bytes());
        // A file that is somebody else's hides what the kernel has of it no more than the rest.
        std::fs::write(&path, "target iqn.2020-01.com.example:theirs { }").unwrap();
        assert_eq!(list(Kind::Iscsi), [by_hand]);
        assert!(ctld.list(crate::target::ctl::List::Luns, &soon).is_ok());
    }
}
