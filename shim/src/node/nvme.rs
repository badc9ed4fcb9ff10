//! NVMe over TCP: connecting by the kernel's `/dev/nvme-fabrics`, as nvme-cli does, and finding what came of it in sysfs.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_api::{NvmeAccess, Portal, Transport};

/// Where the kernel takes connections.
const FABRICS: &str = "/dev/nvme-fabrics";

/// How a connection behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// Between two attempts to come back.
    pub reconnect: Duration,
    /// How long a path may be lost before its I/O fails. An appliance that is started anew is back well before.
    pub loss: Duration,
    /// How often it is asked whether it is there.
    pub keep_alive: Duration,
}

impl Default for Times {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { reconnect: seconds(2), loss: seconds(600), keep_alive: seconds(5) }
    }
}

/// What a node brings to connect.
#[derive(Debug, Clone, Default)]
pub struct Brings<'a> {
    /// The identifier of this host, a UUID: the same for all connections of one host NQN.
    pub host_id: &'a str,
    /// The secrets of DH-HMAC-CHAP: its own, and the appliance's.
    pub secret: Option<&'a str>,
    /// See above.
    pub controller_secret: Option<&'a str>,
    /// How many I/O queues, and how many commands each.
    pub io_queues: Option<u16>,
    /// See above.
    pub queue_depth: Option<u16>,
}

/// The text that makes the kernel connect to a volume at one portal. It may hold secrets.
pub fn options(access: &NvmeAccess, portal: &Portal, brings: &Brings<'_>, times: Times) -> String {
    let transport = match portal.transport {
        Transport::Tcp => "tcp",
        Transport::Rdma => "rdma",
    };
    let mut text = format!(
        "transport={transport},traddr={},trsvcid={},nqn={},hostnqn={},hostid={},reconnect_delay={},ctrl_loss_tmo={},\
         keep_alive_tmo={}",
        portal.address,
        portal.port,
        access.nqn,
        access.host_nqn,
        brings.host_id,
        times.reconnect.as_secs(),
        times.loss.as_secs(),
        times.keep_alive.as_secs(),
    );
    let mut add = |key: &str, value: &dyn std::fmt::Display| {
        // To a string it can't fail.
        let _ = write!(text, ",{key}={value}");
    };
    if let Some(n) = brings.io_queues {
        add("nr_io_queues", &n);
    }
    if let Some(n) = brings.queue_depth {
        add("queue_size", &n);
    }
    if let Some(secret) = brings.secret {
        add("dhchap_secret", &secret);
    }
    if let Some(secret) = brings.controller_secret {
        add("dhchap_ctrl_secret", &secret);
    }
    if portal.tls {
        text.push_str(",tls");
    }
    text
}

/// Connects. Waits for the kernel, which waits for the appliance. Fine if it is connected there already.
pub fn connect(options: &str) -> io::Result<()> {
    let mut fabrics = File::options().read(true).write(true).open(FABRICS)?;
    match fabrics.write_all(options.as_bytes()) {
        Ok(()) => {
            // `instance=N,cntlid=M`; without it there is no controller.
            let mut answer = [0; 64];
            fabrics.read(&mut answer).map(drop)
        }
        Err(e)
            if e.kind() == io::ErrorKind::AlreadyExists
                || e.raw_os_error() == Some(rustix::io::Errno::ALREADY.raw_os_error()) =>
        {
            Ok(())
        }
        Err(e) => Err(e),
    }
}

/// A path to a subsystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controller {
    /// Its directory in sysfs.
    pub dir: PathBuf,
    /// `live`, `connecting`, `deleting`.
    pub state: String,
    /// `traddr=10.0.0.1,trsvcid=4420,...`.
    pub address: String,
}

impl Controller {
    /// Whether it is a path by this portal.
    pub fn is_at(&self, portal: &Portal) -> bool {
        let has = |key: &str, value: &str| {
            self.address.split(',').any(|part| part.split_once('=') == Some((key, value)))
        };
        has("traddr", &portal.address) && has("trsvcid", &portal.port.to_string())
    }
}

/// sysfs, or what looks like it.
#[derive(Debug, Clone)]
pub struct Sysfs(pub(super) PathBuf);

impl Default for Sysfs {
    fn default() -> Self {
        Self("/sys".into())
    }
}

pub(super) fn attribute(path: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(path)?.trim().to_string())
}

pub(super) fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Ok(all) => all.map(|entry| entry.map(|e| e.path())).collect(),
        // The module is not loaded, it went meanwhile, or it is an attribute beside directories.
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        Err(e) => Err(e),
    }
}

impl Sysfs {
    /// Another one.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self(root.into())
    }

    /// The paths to a subsystem.
    pub fn controllers(&self, nqn: &str) -> io::Result<Vec<Controller>> {
        let mut found = Vec::new();
        for dir in entries(&self.0.join("class/nvme"))? {
            // One that goes meanwhile is none.
            let read = |name: &str| attribute(&dir.join(name)).ok();
            if read("subsysnqn").as_deref() != Some(nqn) {
                continue;
            }
            if let (Some(state), Some(address)) = (read("state"), read("address")) {
                found.push(Controller { dir, state, address });
            }
        }
        found.sort_by(|a, b| a.dir.cmp(&b.dir));
        Ok(found)
    }

    /// The subsystems whose names end so, of whatever appliance.
    pub fn subsystems(&self, ends: &str) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        for dir in entries(&self.0.join("class/nvme-subsystem"))? {
            if let Ok(nqn) = attribute(&dir.join("subsysnqn"))
                && nqn.ends_with(ends)
            {
                found.push(nqn);
            }
        }
        found.sort();
        Ok(found)
    }

    /// The disks by NVMe and the subsystems that they are of. Hidden ones of single paths have no node, and are none.
    fn namespaces(&self) -> io::Result<Vec<(PathBuf, String, String)>> {
        let mut found = Vec::new();
        for dir in entries(&self.0.join("block"))? {
            let Some(name) = dir.file_name().map(|n| n.to_string_lossy().into_owned()) else { continue };
            if name.starts_with("nvme") && !name.contains('c') {
                let nqn = attribute(&dir.join("device/subsysnqn")).unwrap_or_default();
                found.push((dir, name, nqn));
            }
        }
        Ok(found)
    }

    /// The disks of subsystems whose names end so: `nvme0n1`.
    pub fn nvme_disks(&self, ends: &str) -> io::Result<Vec<String>> {
        let all = self.namespaces()?.into_iter();
        Ok(all.filter(|(_, _, nqn)| nqn.ends_with(ends)).map(|(_, name, _)| name).collect())
    }

    /// The disk with this identity, and no other: by its name, `nvme0n1`.
    pub fn disk(&self, access: &NvmeAccess) -> io::Result<Option<String>> {
        let is_it = |dir: &Path| {
            let nguid = attribute(&dir.join("nguid")).unwrap_or_default().replace('-', "");
            let uuid = attribute(&dir.join("uuid")).unwrap_or_default();
            nguid == access.nguid && uuid == access.uuid.hyphenated().to_string()
        };
        let mut ours = self.namespaces()?;
        ours.retain(|(dir, _, nqn)| nqn == access.nqn.as_str() && is_it(dir));
        match &ours[..] {
            [] => Ok(None),
            [(_, one, _)] => Ok(Some(one.clone())),
            several => {
                let mut names: Vec<_> = several.iter().map(|(_, name, _)| name.as_str()).collect();
                names.sort_unstable();
                let text = format!("{} have the same identity", names.join(" and "));
                Err(io::Error::new(io::ErrorKind::InvalidData, text))
            }
        }
    }
}

/// Ends a path. Its I/O fails, or goes another way.
pub fn disconnect(controller: &Controller) -> io::Result<()> {
    match fs::write(controller.dir.join("delete_controller"), "1") {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn access() -> NvmeAccess {
        serde_json::from_value(serde_json::json!({
            "nqn": "nqn.2026-11.dev.orlop:0190c0de-0000-7000-8000-000000000001",
            "host_nqn": "nqn.2014-08.org.nvmexpress:uuid:a",
            "portals": [{"address": "10.0.0.1", "port": 4420}, {"address": "fd00::1", "port": 4421, "tls": true}],
            "nsid": 1,
            "uuid": "0190c0de-0000-7000-8000-000000000001",
            "nguid": "0190c0de000070008000000000000001",
            "serial": "x",
        }))
        .unwrap()
    }

    #[test]
    fn the_kernel_is_told_all_of_it() {
        let access = access();
        let plain = Brings { host_id: "h", ..Brings::default() };
        assert_eq!(
            options(&access, &access.portals[0], &plain, Times::default()),
            "transport=tcp,traddr=10.0.0.1,trsvcid=4420,\
             nqn=nqn.2026-11.dev.orlop:0190c0de-0000-7000-8000-000000000001,\
             hostnqn=nqn.2014-08.org.nvmexpress:uuid:a,hostid=h,reconnect_delay=2,ctrl_loss_tmo=600,keep_alive_tmo=5"
        );
        let all = Brings {
            secret: Some("S"),
            controller_secret: Some("C"),
            io_queues: Some(4),
            queue_depth: Some(64),
            ..plain
        };
        let text = options(&access, &access.portals[1], &all, Times::default());
        assert!(text.contains("traddr=fd00::1,trsvcid=4421,"), "{text}");
        assert!(
            text.ends_with(",nr_io_queues=4,queue_size=64,dhchap_secret=S,dhchap_ctrl_secret=C,tls"),
            "{text}"
        );
    }

    fn put(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }

    #[test]
    fn a_disk_is_found_by_what_it_is_and_not_by_its_place() {
        let (dir, access) = (tempfile::tempdir().unwrap(), access());
        let (root, sysfs) = (dir.path(), Sysfs::at(dir.path()));
        assert_eq!(sysfs.disk(&access).unwrap(), None);
        let disk = |name: &str, uuid: &str, nguid: &str, nqn: &str| {
            put(root, &format!("block/{name}/uuid"), uuid);
            put(root, &format!("block/{name}/nguid"), nguid);
            put(root, &format!("block/{name}/device/subsysnqn"), nqn);
        };
        let (uuid, nqn) = ("0190c0de-0000-7000-8000-000000000001", access.nqn.as_str());
        // Another one, half of the identity, the hidden one of a path, and a reader's of the same volume.
        disk("nvme0n1", "0190c0de-0000-7000-8000-000000000002", "0190c0de-0000-7000-8000-000000000002", nqn);
        disk("nvme1n1", uuid, "0190c0de-0000-7000-8000-000000000002", nqn);
        disk("nvme2c0n1", uuid, uuid, nqn);
        disk("nvme4n1", uuid, uuid, &format!("{nqn}:ro"));
        put(root, "block/sda/uuid", uuid);
        assert_eq!(sysfs.disk(&access).unwrap(), None);
        disk("nvme2n1", uuid, uuid, nqn);
        assert_eq!(sysfs.disk(&access).unwrap().as_deref(), Some("nvme2n1"));
        // Two that say to be it are one too many.
        disk("nvme3n1", uuid, uuid, nqn);
        sysfs.disk(&access).unwrap_err();
    }

    #[test]
    fn paths_are_told_by_their_subsystem_and_portal() {
        let (dir, access) = (tempfile::tempdir().unwrap(), access());
        let (root, sysfs) = (dir.path(), Sysfs::at(dir.path()));
        for (name, nqn, address) in [
            ("nvme0", access.nqn.as_str(), "traddr=10.0.0.1,trsvcid=4420,src_addr=10.0.0.9"),
            ("nvme1", access.nqn.as_str(), "traddr=10.0.0.11,trsvcid=4420"),
            ("nvme2", "nqn.2020-01.com.example:x", "traddr=10.0.0.1,trsvcid=4420"),
        ] {
            put(root, &format!("class/nvme/{name}/subsysnqn"), nqn);
            put(root, &format!("class/nvme/{name}/address"), address);
            put(root, &format!("class/nvme/{name}/state"), "live");
        }
        let found = sysfs.controllers(access.nqn.as_str()).unwrap();
        assert_eq!(found.iter().map(|c| c.is_at(&access.portals[0])).collect::<Vec<_>>(), [true, false]);
        put(root, "class/nvme-subsystem/nvme-subsys0/subsysnqn", access.nqn.as_str());
        let ends = ":0190c0de-0000-7000-8000-000000000001";
        assert_eq!(sysfs.subsystems(ends).unwrap(), [access.nqn.to_string()]);
        disconnect(&found[0]).unwrap();
    }
}
