//! iSCSI: logging in and out by open-iscsi, and finding what came of it in sysfs.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use orlop_api::IscsiAccess;

use super::nvme::{Sysfs, Times, attribute, entries};
use super::tools::{self, ToolError, Tools};
use crate::deadline::Deadline;

/// open-iscsi's exit status: a session is there already.
const EXISTS: i32 = 15;
/// "Session in invalid state for logout. Try again later": iscsid is logging in.
const LATER: i32 = 9;
/// There is no such session, or no such record.
const NONE: i32 = 21;

/// How long one attempt to log in may take. There is one: who waits for it asks again.
const LOGIN: Duration = Duration::from_secs(10);

/// Where open-iscsi keeps its records, by distribution and release.
const RECORDS: [&str; 2] = ["etc/iscsi/nodes", "var/lib/iscsi/nodes"];

/// What of a secret of Kubernetes is which setting of open-iscsi.
const CHAP: [(&str, &str); 4] = [
    ("node.session.auth.username", "chapUser"),
    ("node.session.auth.password", "chapSecret"),
    ("node.session.auth.username_in", "chapTargetUser"),
    ("node.session.auth.password_in", "chapTargetSecret"),
];

/// A session: one path to a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Its directory in sysfs.
    pub dir: PathBuf,
    /// The target's name.
    pub target: String,
    /// What open-iscsi and the kernel call it.
    pub number: u32,
}

fn fine(program: &str, output: &Output, also: i32) -> Result<(), ToolError> {
    match output.status.code() {
        Some(0) => Ok(()),
        Some(code) if code == also => Ok(()),
        _ => Err(tools::failed(program, output)),
    }
}

/// Logs in to a target by one portal.
pub async fn log_in(
    tools: &Tools,
    target: &str,
    portal: &str,
    secrets: &HashMap<String, String>,
    times: Times,
    limit: Duration,
) -> Result<(), ToolError> {
    let node = ["-m", "node", "-T", target, "-p", portal];
    let iscsiadm = async |more: &[&str], also: i32| {
        let args: Vec<&str> = node.iter().chain(more).copied().collect();
        fine("iscsiadm", &tools.run("iscsiadm", &args, limit).await?, also)
    };
    iscsiadm(&["-o", "new"], 0).await?;
    let (loss, login) = (times.loss.as_secs().to_string(), LOGIN.as_secs().to_string());
    let mut settings = vec![
        ("node.session.timeo.replacement_timeout", loss.as_str()),
        ("node.conn[0].timeo.login_timeout", &login),
        ("node.session.initial_login_retry_max", "1"),
    ];
    if secrets.contains_key("chapSecret") {
        settings.push(("node.session.auth.authmethod", "CHAP"));
        settings.extend(CHAP.iter().filter_map(|(name, key)| Some((*name, secrets.get(*key)?.as_str()))));
    }
    for (name, value) in settings {
        iscsiadm(&["-o", "update", "-n", name, "-v", value], 0).await?;
    }
    let done = iscsiadm(&["--login"], EXISTS).await;
    if done.is_err() {
        // Else iscsid would try it at the next boot, or for ever.
        iscsiadm(&["-o", "delete"], NONE).await?;
    }
    done
}

/// Ends a session. One that is just being made can't be ended: it is tried again until it has come to be or has failed.
pub async fn log_out(tools: &Tools, session: &Session, deadline: Deadline) -> Result<(), ToolError> {
    let number = session.number.to_string();
    loop {
        let output = tools.run("iscsiadm", &["-m", "session", "-r", &number, "-u"], deadline.left()).await?;
        // It may have failed by itself meanwhile.
        if !session.dir.exists() {
            return Ok(());
        }
        if output.status.code() != Some(LATER) || deadline.left().is_zero() {
            return fine("iscsiadm", &output, NONE);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Whether the appliance at a portal shows this node a target; nothing where nobody answers.
pub async fn shows(tools: &Tools, target: &str, portal: &str, limit: Duration) -> Option<bool> {
    let discover = ["-m", "discovery", "-t", "st", "-o", "nonpersistent", "-p", portal];
    let output = tools.run("iscsiadm", &discover, limit).await.ok()?;
    // It shows others, or none at all.
    let answered = matches!(output.status.code(), Some(0 | NONE));
    answered.then(|| String::from_utf8_lossy(&output.stdout).split_whitespace().any(|word| word == target))
}

/// The targets whose names end so that open-iscsi keeps records of: with sessions, and with ones that never came to be.
pub fn records(tools: &Tools, ends: &str) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for dir in RECORDS {
        found.extend(names(&tools.on_host(dir))?.into_iter().filter(|name| name.ends_with(ends)));
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// Forgets how a target is logged in to: its records may hold secrets.
pub async fn forget(tools: &Tools, target: &str, limit: Duration) -> Result<(), ToolError> {
    let delete = ["-m", "node", "-T", target, "-o", "delete"];
    fine("iscsiadm", &tools.run("iscsiadm", &delete, limit).await?, NONE)
}

/// Whether several paths are made one disk on this machine.
pub fn has_multipathd(tools: &Tools) -> bool {
    ["run/multipathd.pid", "run/multipathd.socket"].iter().any(|file| tools.on_host(file).exists())
}

fn names(dir: &Path) -> io::Result<Vec<String>> {
    let found = entries(dir)?.into_iter();
    Ok(found.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect())
}

impl Sysfs {
    /// The sessions with targets whose names end so.
    pub fn sessions(&self, ends: &str) -> io::Result<Vec<Session>> {
        let mut found = Vec::new();
        for dir in entries(&self.0.join("class/iscsi_session"))? {
            let number = dir.file_name().and_then(|n| n.to_str()?.strip_prefix("session")?.parse().ok());
            // One that goes meanwhile is none.
            if let (Some(number), Ok(target)) = (number, attribute(&dir.join("targetname")))
                && target.ends_with(ends)
            {
                found.push(Session { dir, target, number });
            }
        }
        found.sort_by_key(|session| session.number);
        Ok(found)
    }

    /// The portals by which there are sessions with a target.
    pub fn portals(&self, target: &str) -> io::Result<Vec<(String, u16)>> {
        let mut found = Vec::new();
        let connections = entries(&self.0.join("class/iscsi_connection"))?;
        for session in self.sessions(target)?.iter().filter(|session| session.target == target) {
            let prefix = format!("connection{}:", session.number);
            for dir in &connections {
                let name = dir.file_name().map(|n| n.to_string_lossy()).unwrap_or_default();
                let address = attribute(&dir.join("persistent_address"));
                let port = attribute(&dir.join("persistent_port")).ok().and_then(|port| port.parse().ok());
                if let (true, Ok(address), Some(port)) = (name.starts_with(&prefix), address, port) {
                    found.push((address, port));
                }
            }
        }
        Ok(found)
    }

    /// Whether a session can do I/O now.
    pub fn is_logged_in(&self, session: &Session) -> bool {
        attribute(&session.dir.join("state")).is_ok_and(|state| state == "LOGGED_IN")
    }

    /// The disks of a session, and those that multipathd has made of them.
    pub fn scsi_disks(&self, session: &Session) -> io::Result<Vec<String>> {
        let mut found = self.paths(session)?;
        for path in found.clone() {
            found.extend(self.map_of(&path)?);
        }
        Ok(found)
    }

    /// The disks that a session has brought.
    fn paths(&self, session: &Session) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        for target in entries(&session.dir.join("device"))? {
            if !target.file_name().is_some_and(|n| n.to_string_lossy().starts_with("target")) {
                continue;
            }
            for unit in entries(&target)? {
                found.extend(names(&unit.join("block"))?);
            }
        }
        Ok(found)
    }

    /// What multipathd has made of a disk: `dm-0`.
    fn map_of(&self, disk: &str) -> io::Result<Option<String>> {
        let holders = names(&self.0.join("block").join(disk).join("holders"))?;
        Ok(holders.into_iter().find(|holder| {
            let uuid = attribute(&self.0.join("block").join(holder).join("dm/uuid"));
            uuid.is_ok_and(|uuid| uuid.starts_with("mpath-"))
        }))
    }

    /// What multipathd has made of a session's disks, by its own names.
    pub fn maps(&self, session: &Session) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        for path in self.paths(session)? {
            if let Some(map) = self.map_of(&path)? {
                found.push(attribute(&self.0.join("block").join(map).join("dm/name"))?);
            }
        }
        Ok(found)
    }

    /// The disk with this identity, and no other: multipathd's where there is one, else the first path.
    pub fn scsi_disk(&self, access: &IscsiAccess) -> io::Result<Option<String>> {
        let mut first = None;
        for session in self.sessions(access.iqn.as_str())? {
            if session.target != access.iqn.as_str() {
                continue;
            }
            for disk in self.paths(&session)? {
                let wwid = attribute(&self.0.join("block").join(&disk).join("device/wwid"));
                if wwid.is_ok_and(|wwid| wwid == format!("naa.{}", access.wwn)) {
                    if let Some(map) = self.map_of(&disk)? {
                        return Ok(Some(map));
                    }
                    first.get_or_insert(disk);
                }
            }
        }
        Ok(first)
    }

    /// Asks for the size of a disk again, where nobody is told of it. The name of the map that must be grown then.
    pub fn rescan(&self, disk: &str) -> io::Result<Option<String>> {
        let block = self.0.join("block").join(disk);
        let paths = match disk.starts_with("dm-") {
            true => names(&block.join("slaves"))?,
            false => vec![disk.to_string()],
        };
        for path in paths {
            let rescan = self.0.join("block").join(path).join("device/rescan");
            // Of SCSI alone.
            if rescan.exists() {
                fs::write(rescan, "1")?;
            }
        }
        match disk.starts_with("dm-") {
            true => attribute(&block.join("dm/name")).map(Some),
            false => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn put(root: &Path, path: &str, text: &str) {
        let file = root.join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    const IQN: &str = "iqn.2026-11.dev.orlop:0190c0de-0000-7000-8000-000000000001";
    const WWN: &str = "6001405aaaaaaaaaaaaaaaaaaaaaaaaa";

    fn session(root: &Path, number: u32, target: &str, address: &str, disk: &str, wwn: &str) {
        put(root, &format!("class/iscsi_session/session{number}/targetname"), target);
        let connection = format!("class/iscsi_connection/connection{number}:0");
        put(root, &format!("{connection}/persistent_address"), address);
        put(root, &format!("{connection}/persistent_port"), "3260");
        put(
            root,
            &format!("class/iscsi_session/session{number}/device/target2:0:0/2:0:0:0/block/{disk}/size"),
            "8",
        );
        put(root, &format!("block/{disk}/device/wwid"), &format!("naa.{wwn}\n"));
        put(root, &format!("block/{disk}/device/rescan"), "");
    }

    fn access() -> IscsiAccess {
        serde_json::from_value(serde_json::json!({
            "iqn": IQN, "host_iqn": "iqn.1993-08.org.debian:01:a", "lun": 0, "wwn": WWN, "serial": "x",
            "portals": [{"address": "10.0.0.1", "port": 3260}],
        }))
        .unwrap()
    }

    #[test]
    fn a_disk_is_known_by_its_target_and_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let (root, sysfs, access) = (dir.path(), Sysfs::at(dir.path()), access());
        assert_eq!(sysfs.scsi_disk(&access).unwrap(), None);
        // Another's target with the same name of the disk, and its own with another.
        session(root, 1, "iqn.2026-11.dev.other:x", "10.0.0.1", "sda", WWN);
        session(root, 2, IQN, "10.0.0.2", "sdb", "6001405b");
        assert_eq!(sysfs.scsi_disk(&access).unwrap(), None);
        session(root, 10, IQN, "10.0.0.1", "sdc", WWN);
        assert_eq!(sysfs.scsi_disk(&access).unwrap().as_deref(), Some("sdc"));
        // The tenth is not the first.
        let both = [("10.0.0.2".to_string(), 3260), ("10.0.0.1".to_string(), 3260)];
        assert_eq!(sysfs.portals(IQN).unwrap(), both);
        let ends = ":0190c0de-0000-7000-8000-000000000001";
        let found: Vec<_> = sysfs.sessions(ends).unwrap().iter().map(|s| s.number).collect();
        assert_eq!(found, [2, 10]);
        // The kernel has attributes beside the directories.
        put(root, "class/iscsi_session/session10/device/target2:0:0/uevent", "");
        assert_eq!(sysfs.scsi_disk(&access).unwrap().as_deref(), Some("sdc"));
        // And what is made of it goes before it.
        put(root, "block/sdc/holders/dm-3/x", "");
        put(root, "block/dm-3/dm/uuid", "LVM-x");
        assert_eq!(sysfs.scsi_disk(&access).unwrap().as_deref(), Some("sdc"));
        put(root, "block/dm-3/dm/uuid", "mpath-36001405");
        put(root, "block/dm-3/dm/name", "mpatha\n");
        put(root, "block/dm-3/slaves/sdc/x", "");
        assert_eq!(sysfs.scsi_disk(&access).unwrap().as_deref(), Some("dm-3"));
        let session = sysfs.sessions(ends).unwrap().remove(1);
        assert_eq!(sysfs.scsi_disks(&session).unwrap(), ["sdc", "dm-3"]);
        assert_eq!(sysfs.maps(&session).unwrap(), ["mpatha"]);
        assert_eq!(sysfs.rescan("dm-3").unwrap().as_deref(), Some("mpatha"));
        assert_eq!(fs::read_to_string(root.join("block/sdc/device/rescan")).unwrap(), "1");
        assert_eq!(fs::read_to_string(root.join("block/sdb/device/rescan")).unwrap(), "");
    }

    #[test]
    fn records_are_found_wherever_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let tools = Tools::at(dir.path());
        let ends = ":0190c0de-0000-7000-8000-000000000001";
        assert!(records(&tools, ends).unwrap().is_empty());
        put(dir.path(), &format!("etc/iscsi/nodes/{IQN}/10.0.0.1,3260,1/default"), "");
        put(dir.path(), "var/lib/iscsi/nodes/iqn.2020-01.com.example:x/10.0.0.1,3260,1/default", "");
        put(dir.path(), &format!("var/lib/iscsi/nodes/{IQN}/10.0.0.2,3260,1/default"), "");
        assert_eq!(records(&tools, ends).unwrap(), [IQN]);
    }
}
