//! What the kernel has, from its lists. Pure.

use std::collections::BTreeMap;

use super::Kind;
use super::xml::{Record, records};

/// The option of a LUN that says which file it was made from.
pub(super) const GENERATION: &str = "orlop_generation";

/// A LUN that `ctld` made, or somebody else.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lun {
    /// CTL's number of it.
    pub id: u64,
    /// The device or file.
    pub path: String,
    /// In bytes.
    pub size: u64,
    /// Nobody may write.
    pub read_only: bool,
    /// The number of the file that it was last read from, if it is of ours.
    pub generation: Option<u64>,
}

/// A target or controller at a group of portals.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelPort {
    /// It accepts hosts.
    pub online: bool,
    /// The group of portals.
    pub group: String,
    /// Number at the port, and CTL's.
    pub luns: BTreeMap<u64, u64>,
}

/// Somebody who is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// For [`super::Ctld::terminate`]; not unique for NVMe.
    pub id: u64,
    /// What the host calls itself.
    pub host: String,
    /// The target or controller.
    pub target: String,
}

/// LUNs and ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Kernel {
    /// By the name that `ctld` gave; those that it did not make are under `LUN <id>`.
    pub luns: BTreeMap<String, Lun>,
    /// By target or controller.
    pub ports: BTreeMap<String, Vec<KernelPort>>,
}

/// The fields that the kernel writes for each session, besides the newer ones.
const SESSION_FIELDS: [&str; 10] = [
    "initiator",
    "initiator_addr",
    "initiator_alias",
    "target",
    "target_alias",
    "header_digest",
    "data_digest",
    "immediate_data",
    "iser",
    "offload",
];

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text:.20} is no number"))
}

fn lun(record: &Record) -> Result<(String, Lun), String> {
    let name = match record.get("ctld_name")? {
        Some(name) => name.to_string(),
        None => format!("LUN {}", record.id),
    };
    let path = match record.get("file")? {
        Some(path) => Some(path),
        None => record.get("dev")?,
    };
    let size = number(record.need("size")?)?.saturating_mul(number(record.need("blocksize")?)?);
    let lun = Lun {
        id: record.id,
        path: path.unwrap_or_default().to_string(),
        size,
        read_only: record.get("readonly")? == Some("on"),
        generation: record.get(GENERATION)?.and_then(|g| g.parse().ok()),
    };
    Ok((name, lun))
}

fn port(record: &Record) -> Result<Option<(String, KernelPort)>, String> {
    let names = ["cfiscsi_target", "subnqn", "nqn"];
    let mut target = None;
    for name in names {
        target = target.or(record.get(name)?);
    }
    let Some(target) = target else { return Ok(None) };
    let group = match record.get("ctld_portal_group_name")? {
        Some(group) => Some(group),
        None => record.get("ctld_transport_group_name")?,
    };
    let mut luns = BTreeMap::new();
    for (_, id, text) in record.fields.iter().filter(|(name, _, _)| name == "lun") {
        luns.insert(id.ok_or("a LUN without number")?, number(text)?);
    }
    let port = KernelPort {
        online: record.need("online")? == "YES",
        group: group.unwrap_or_default().to_string(),
        luns,
    };
    Ok(Some((target.to_string(), port)))
}

impl Kernel {
    /// From `devlist -x` and `portlist -x`.
    pub(super) fn read(luns: &str, ports: &str) -> Result<Self, String> {
        let mut found = Self::default();
        for record in records(luns, "ctllunlist", "lun")? {
            let (name, lun) = lun(&record)?;
            found.luns.insert(name, lun);
        }
        for record in records(ports, "ctlportlist", "targ_port")? {
            if let Some((target, port)) = port(&record)? {
                found.ports.entry(target).or_default().push(port);
            }
        }
        Ok(found)
    }
}

/// From `islist -x` or `nvlist -x`.
pub(super) fn sessions(kind: Kind, text: &str) -> Result<Vec<Session>, String> {
    let (list, host, target) = match kind {
        Kind::Iscsi => ("ctlislist", "initiator", "target"),
        Kind::Nvme => ("ctlnvmflist", "hostnqn", "subnqn"),
    };
    let mut found = Vec::new();
    for record in records(text, list, "connection")? {
        if kind == Kind::Iscsi {
            for field in SESSION_FIELDS {
                record.need(field)?;
            }
        }
        let field = |name| record.need(name).map(str::to_string);
        found.push(Session { id: record.id, host: field(host)?, target: field(target)? });
    }
    Ok(found)
}
