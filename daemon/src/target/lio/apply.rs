//! Making one change.

use std::io;
use std::path::Path;

use rustix::io::Errno;

use super::state::{Change, GROUP, LUN, Step};
use super::{ADAPTER, Lio};
use crate::kernel::Deadline;
use crate::target::tree::{gone, is, there};
use crate::target::{Result, TargetError};

impl Lio {
    pub(super) fn make(&self, step: &Step, deadline: &Deadline) -> Result<()> {
        let (iqn, volume) = (&step.iqn, step.volume);
        let (path, result) = match &step.change {
            Change::Refuse { object, detail } => return Err(foreign(object, detail)),
            Change::Authenticate { host } => return self.ask_as_it_should(iqn, GROUP, host, deadline),
            Change::Forget => return self.forget(step),
            Change::Restore { hosts } => return self.restore(step, hosts, deadline),
            Change::Listen { portal } => {
                let path = format!("iscsi/{iqn}/{GROUP}/np/{portal}");
                match there(self.tree.make_dir(&path)) {
                    // The target has gone: that is not about the portal.
                    Err(e) if e.kind() != io::ErrorKind::NotFound => {
                        return Err(TargetError::Portal { portal: portal.clone(), source: e });
                    }
                    result => (path, result),
                }
            }
            Change::MakeTarget => return self.make_target(step),
            Change::Discard => return self.discard(step),
            Change::EnableBackstore => {
                let path = format!("core/{ADAPTER}/{volume}/enable");
                match self.tree.write(&path, "1") {
                    Err(e) if is(&e, Errno::BUSY) => {
                        let detail = "something else in the kernel holds its device";
                        return Err(foreign(&format!("backstore {volume}"), detail));
                    }
                    result => (path, result),
                }
            }
            Change::RemoveBackstore => {
                let path = format!("core/{ADAPTER}/{volume}");
                match gone(self.tree.remove_dir(&path)) {
                    Err(e) if is(&e, Errno::BUSY) => {
                        return Err(foreign(&format!("backstore {volume}"), "another target serves it"));
                    }
                    result => (path, result),
                }
            }
            change => self.change(step, change),
        };
        result.map_err(|e| failed(step, path, e))
    }

    fn change(&self, step: &Step, change: &Change) -> (String, io::Result<()>) {
        let tree = &*self.tree;
        let (iqn, volume) = (&step.iqn, step.volume);
        let at = |group: &str, what: String| format!("iscsi/{iqn}/{group}/{what}");
        let backstore = |what: &str| format!("core/{ADAPTER}/{volume}/{what}");
        let acl = |host: &str| at(GROUP, format!("acls/{host}"));
        match change {
            Change::Disable { group } => {
                let path = at(group, "enable".into());
                let result = gone(tree.write(&path, "0"));
                (path, result)
            }
            Change::Unlisten { group, portal } => {
                let path = at(group, format!("np/{portal}"));
                let result = gone(tree.remove_dir(&path));
                (path, result)
            }
            Change::Adopt { group, host } => {
                let path = at(group, format!("acls/{host}"));
                let result = there(tree.make_dir(&path));
                (path, result)
            }
            Change::Unmap { group, host, lun, entry } => {
                let path = at(group, format!("acls/{host}/{lun}/{entry}"));
                let result = gone(tree.unlink(&path));
                (path, result)
            }
            Change::RemoveMapped { group, host, lun } => {
                let path = at(group, format!("acls/{host}/{lun}"));
                let result = gone(tree.remove_dir(&path));
                (path, result)
            }
            Change::RemoveAcl { group, host } => {
                let path = at(group, format!("acls/{host}"));
                let result = gone(tree.remove_dir(&path));
                (path, result)
            }
            Change::Unlink { group, lun, entry } => {
                let path = at(group, format!("lun/{lun}/{entry}"));
                let result = gone(tree.unlink(&path));
                (path, result)
            }
            Change::RemoveLun { group, lun } => {
                let path = at(group, format!("lun/{lun}"));
                let result = gone(tree.remove_dir(&path));
                (path, result)
            }
            Change::RemoveGroup { group } => {
                let path = format!("iscsi/{iqn}/{group}");
                let result = gone(tree.remove_dir(&path));
                (path, result)
            }
            Change::RemoveTarget => {
                let path = format!("iscsi/{iqn}");
                let result = gone(tree.remove_dir(&path));
                (path, result)
            }
            Change::MakeBackstore => {
                let adapter = format!("core/{ADAPTER}");
                if let Err(e) = there(tree.make_dir(&adapter)) {
                    return (adapter, Err(e));
                }
                let path = format!("{adapter}/{volume}");
                let result = tree.make_dir(&path);
                (path, result)
            }
            Change::Identify { attribute, value } => {
                let path = backstore(&format!("wwn/{attribute}"));
                let result = tree.write(&path, value);
                // A kernel without it shows its own model; the identity is in the serial number.
                (path, if *attribute == "product_id" { gone(result) } else { result })
            }
            Change::Point { device } => {
                // A note, which other tools show.
                let note = backstore("udev_path");
                if let Err(e) = tree.write(&note, device) {
                    return (note, Err(e));
                }
                let path = backstore("control");
                let result = tree.write(&path, &format!("udev_path={device}"));
                (path, result)
            }
            Change::Alua { attribute, value } => {
                let path = backstore(&format!("{}/{attribute}", super::plan::PORT_GROUP));
                let result = gone(tree.write(&path, value));
                (path, result)
            }
            Change::MakeGroup => {
                let path = format!("iscsi/{iqn}/{GROUP}");
                let result = there(tree.make_dir(&path));
                (path, result)
            }
            Change::Set { attribute, value } => {
                let path = at(GROUP, format!("attrib/{attribute}"));
                let result = gone(tree.write(&path, value));
                (path, result)
            }
            Change::MakeLun => {
                let lun = at(GROUP, format!("lun/{LUN}"));
                if let Err(e) = there(tree.make_dir(&lun)) {
                    return (lun, Err(e));
                }
                let path = format!("{lun}/{volume}");
                let result = there(tree.link(&format!("core/{ADAPTER}/{volume}"), &path));
                (path, result)
            }
            Change::MakeAcl { host } => {
                let path = acl(host);
                let result = there(tree.make_dir(&path));
                (path, result)
            }
            Change::Map { host } => {
                let mapped = format!("{}/{LUN}", acl(host));
                if let Err(e) = there(tree.make_dir(&mapped)) {
                    return (mapped, Err(e));
                }
                let path = format!("{mapped}/{volume}");
                let result = there(tree.link(&at(GROUP, format!("lun/{LUN}")), &path));
                (path, result)
            }
            Change::Protect { host, read_only } => {
                let path = format!("{}/{LUN}/write_protect", acl(host));
                let result = tree.write(&path, if *read_only { "1" } else { "0" });
                (path, result)
            }
            Change::Enable => {
                let path = at(GROUP, "enable".into());
                let result = tree.write(&path, "1");
                (path, result)
            }
            // Handled by the caller.
            Change::Refuse { .. }
            | Change::Authenticate { .. }
            | Change::Forget
            | Change::Restore { .. }
            | Change::Listen { .. }
            | Change::MakeTarget
            | Change::Discard
            | Change::EnableBackstore
            | Change::RemoveBackstore => (String::new(), Ok(())),
        }
    }

    /// The directory of the protocol is there once somebody has made it, which loads the module.
    fn make_target(&self, step: &Step) -> Result<()> {
        there(self.tree.make_dir("iscsi"))
            .map_err(|_| TargetError::Unsupported("iSCSI (iscsi_target_mod)".into()))?;
        let path = format!("iscsi/{}", step.iqn);
        there(self.tree.make_dir(&path)).map_err(|e| failed(step, path, e))
    }

    /// Only now does the kernel know whether the device can. It says ENOSYS of one that can't.
    fn discard(&self, step: &Step) -> Result<()> {
        for attribute in ["emulate_tpu", "emulate_tpws"] {
            let path = format!("core/{ADAPTER}/{}/attrib/{attribute}", step.volume);
            match gone(self.tree.write(&path, "1")) {
                Err(e) if !is(&e, Errno::NOSYS) => return Err(failed(step, path, e)),
                _ => {}
            }
        }
        Ok(())
    }
}

fn foreign(object: &str, detail: &str) -> TargetError {
    TargetError::Foreign { object: object.into(), detail: detail.into() }
}

pub(super) fn failed(step: &Step, path: String, source: io::Error) -> TargetError {
    TargetError::Kernel { step: step.to_string(), path: Path::new(&path).into(), source }
}
