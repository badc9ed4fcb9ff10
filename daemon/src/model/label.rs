//! The label: what is written on the backing itself. It decides that a volume exists, and it is enough
//! to rebuild everything but secrets. Versioned JSON; a test holds every version ever written.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use orlop_api::{
    ByteSize, Encryption, FilesystemKind, HostName, Iqn, Network, Nqn, OrphanId, ParseError, Properties,
    Protocol, Provisioning, SnapshotId, SnapshotName, SourceMode, Tenant, VolumeCreate, VolumeId, VolumeKind,
    VolumeName,
};

use super::host::{Grant, HostRecord, Proven, Secret, ZoneRules};

/// A host as a label remembers it: enough to restore its access without the journal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LabelHost {
    /// Its name.
    pub name: HostName,
    /// Its NQN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nqn: Option<Nqn>,
    /// It must prove to NVMe to know a secret: without that it is not let in, whatever else is lost.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub authenticated: bool,
    /// It must come by TLS, with a key.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tls: bool,
    /// Its iSCSI name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iqn: Option<Iqn>,
    /// The same to iSCSI.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub chap: bool,
    /// Where it calls from by NFS.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<Network>,
    /// It is a zone, with these rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<ZoneRules>,
    /// How it may use the volume.
    #[serde(flatten)]
    pub grant: Grant,
}

impl LabelHost {
    /// What a label is to remember of a host.
    /// By the volume's protocol alone: a label has no room for what it does not need.
    pub fn of(name: &HostName, record: &HostRecord, grant: Grant, protocol: Protocol) -> Self {
        let Proven { nvme, iscsi, tls } = record.proven();
        let (by_nvme, by_iscsi) = (protocol == Protocol::Nvme, protocol == Protocol::Iscsi);
        let by_nfs = protocol == Protocol::Nfs;
        Self {
            name: name.clone(),
            nqn: record.nqn.clone().filter(|_| by_nvme),
            authenticated: nvme && by_nvme,
            tls: tls && by_nvme,
            iqn: record.iqn.clone().filter(|_| by_iscsi),
            chap: iscsi && by_iscsi,
            networks: if by_nfs { record.networks.clone() } else { Vec::new() },
            zone: record.zone,
            grant,
        }
    }

    /// What is known again of the host by it: that it had secrets, not which; and whose it is, because it is attached to
    /// volumes of its tenant alone.
    pub fn record(&self, tenant: &Tenant) -> HostRecord {
        HostRecord {
            tenant: tenant.clone(),
            nqn: self.nqn.clone(),
            iqn: self.iqn.clone(),
            networks: self.networks.clone(),
            zone: self.zone,
            secrets: self.authenticated.then_some(Secret::Lost),
            chap: self.chap.then_some(Secret::Lost),
            tls: self.tls.then_some(Secret::Lost),
        }
    }
}

/// A snapshot and the volume that it is of: enough to find it in any kind of pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SnapshotKey {
    /// Of what.
    pub volume: VolumeId,
    /// Its identity.
    pub id: SnapshotId,
}

impl fmt::Display for SnapshotKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.volume, self.id)
    }
}

impl FromStr for SnapshotKey {
    type Err = ParseError;
    fn from_str(s: &str) -> Result<Self, ParseError> {
        let (volume, id) = s.split_once('@').unwrap_or((s, ""));
        Ok(Self { volume: volume.parse()?, id: id.parse()? })
    }
}

/// Where a volume's first content comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelSource {
    /// The snapshot.
    #[serde(flatten)]
    pub snapshot: SnapshotKey,
    /// Whether blocks are shared.
    pub mode: SourceMode,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// Version of this shape: 1.
    pub v: u32,
    /// Identity.
    pub id: VolumeId,
    /// The caller's name.
    pub name: VolumeName,
    /// Owner.
    pub tenant: Tenant,
    /// A disk or a file system.
    pub kind: VolumeKind,
    /// Which one, of a file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filesystem: Option<FilesystemKind>,
    /// What was asked for last. The backing is this large or, in the middle of a grow, smaller.
    pub size: ByteSize,
    /// Thin or thick.
    pub provisioning: Provisioning,
    /// How it is reached, as it was written: [`protocol`](Label::protocol) knows better.
    pub protocol: Protocol,
    /// When it was made.
    pub created: Timestamp,
    /// Who may use it; written behind the journal, so it can be a moment old.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<LabelHost>,
    /// Where its first content comes from; zeros if nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<LabelSource>,
    /// While that is still being copied: how many bytes from the start are there, durably.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copied: Option<ByteSize>,
    /// It was deleted while something depended on it, and goes when that does.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
    /// What was set of them; the others are as the pool's default has them. A linked clone has the block
    /// size of its source.
    #[serde(default, skip_serializing_if = "Properties::is_empty")]
    pub properties: Properties,
    /// The orphan that it was: by it the same request again is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted: Option<OrphanId>,
    /// How it is encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
}

/// What is written on a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotLabel {
    /// Version of this shape: 1.
    pub v: u32,
    /// Identity, with the volume.
    #[serde(flatten)]
    pub key: SnapshotKey,
    /// The caller's name.
    pub name: SnapshotName,
    /// Owner.
    pub tenant: Tenant,
    /// The volume's size at that instant.
    pub size: ByteSize,
    /// The file system that it is of, which may outlive the volume; none of a disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filesystem: Option<FilesystemKind>,
    /// How the volume is encrypted, which may be gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
    /// The group that it was taken with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<SnapshotName>,
    /// When.
    pub created: Timestamp,
    /// It was deleted while something depended on it, and goes when that does. One that is taken only
    /// to make a volume from is so from the start.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
}

/// Why a text is not a label.
#[derive(Debug, thiserror::Error)]
pub enum LabelError {
    /// Not JSON of the right shape.
    #[error("is not a label")]
    Malformed(#[source] serde_json::Error),
    /// Written by a newer Orlop.
    #[error("has version {0}, and this daemon knows 1: update the daemon")]
    TooNew(u32),
}

impl Label {
    /// A new volume's label.
    pub fn new(id: VolumeId, tenant: Tenant, ask: &VolumeCreate) -> Self {
        let kind = ask.kind.unwrap_or_default();
        Self {
            v: <Self as Document>::VERSION,
            id,
            name: ask.name.clone(),
            tenant,
            kind,
            filesystem: ask.filesystem,
            size: ask.size,
            provisioning: ask.provisioning,
            protocol: ask.protocol.unwrap_or(Protocol::of(kind)),
            created: now(),
            hosts: Vec::new(),
            source: None,
            copied: None,
            deleted: false,
            properties: ask.properties,
            adopted: None,
            encryption: None,
        }
    }
}

impl Label {
    /// How it is reached. File systems that were made before there was NFS are labelled with NVMe.
    pub fn protocol(&self) -> Protocol {
        if self.protocol.kind() == self.kind { self.protocol } else { Protocol::of(self.kind) }
    }
}

impl SnapshotLabel {
    /// A new snapshot's label.
    pub fn new(of: &Label, id: SnapshotId, name: SnapshotName, group: Option<SnapshotName>) -> Self {
        Self {
            v: <Self as Document>::VERSION,
            key: SnapshotKey { volume: of.id, id },
            name,
            tenant: of.tenant.clone(),
            size: of.size,
            filesystem: of.filesystem,
            encryption: of.encryption,
            group,
            created: now(),
            deleted: false,
        }
    }
}

/// Whole milliseconds, as in the ids.
fn now() -> Timestamp {
    Timestamp::from_millisecond(Timestamp::now().as_millisecond()).unwrap_or_default()
}

/// What is written on a backing or on a snapshot, and how.
pub trait Document: Serialize + DeserializeOwned {
    /// Its identity, which also names what it is written on.
    type Key: Copy + Eq + Ord + fmt::Display + FromStr;

    /// The version written today.
    const VERSION: u32;

    /// Whose it is.
    fn key(&self) -> Self::Key;

    /// How what it is written on is encrypted.
    fn encryption(&self) -> Option<Encryption>;

    /// One line of JSON.
    fn to_json(&self) -> String {
        // Strings, integers and a timestamp: serialization of these shapes has no failing case.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads one of any version up to today's.
    fn from_json(text: &str) -> Result<Self, LabelError> {
        #[derive(Deserialize)]
        struct Version {
            v: u32,
        }
        // The version first: a newer shape need not parse as today's, and must say "update", not "damaged".
        let Version { v } = serde_json::from_str(text).map_err(LabelError::Malformed)?;
        if v > Self::VERSION {
            return Err(LabelError::TooNew(v));
        }
        serde_json::from_str(text).map_err(LabelError::Malformed)
    }
}

impl Document for Label {
    type Key = VolumeId;
    const VERSION: u32 = 1;

    fn key(&self) -> VolumeId {
        self.id
    }

    fn encryption(&self) -> Option<Encryption> {
        self.encryption
    }
}

impl Document for SnapshotLabel {
    type Key = SnapshotKey;
    const VERSION: u32 = 1;

    fn key(&self) -> SnapshotKey {
        self.key
    }

    fn encryption(&self) -> Option<Encryption> {
        self.encryption
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const V1: &str = r#"{"v":1,"id":"0190c0de-1234-7abc-8def-0123456789ab","name":"data","tenant":"default","kind":"block","size":1073741824,"provisioning":"thin","protocol":"nvme","created":"2026-11-20T12:00:00Z","hosts":[{"name":"worker-1","nqn":"nqn.2014-08.org.nvmexpress:uuid:0190c0de-0000-7000-8000-000000000001"}]}"#;

    #[test]
    fn version_1_reads_and_writes_the_same() {
        assert_eq!(Label::from_json(V1).unwrap().to_json(), V1);
    }

    #[test]
    fn a_clone_and_a_snapshot_read_and_write_the_same() {
        let clone = V1.replace(
            r#","hosts":["#,
            r#","source":{"volume":"0190c0de-1234-7abc-8def-000000000001","id":"0190c0de-1234-7abc-8def-000000000002","mode":"copied"},"copied":4096,"deleted":true,"adopted":"0123456789abcdef.tank","was":["#,
        );
        let clone = clone.split(r#","was""#).next().unwrap().to_string() + "}";
        assert_eq!(Label::from_json(&clone).unwrap().to_json(), clone);
        let snapshot = r#"{"v":1,"volume":"0190c0de-1234-7abc-8def-000000000001","id":"0190c0de-1234-7abc-8def-000000000002","name":"before","tenant":"default","size":4096,"group":"g","created":"2026-11-20T12:00:00Z"}"#;
        assert_eq!(SnapshotLabel::from_json(snapshot).unwrap().to_json(), snapshot);
        let key = "0190c0de-1234-7abc-8def-000000000001@0190c0de-1234-7abc-8def-000000000002";
        assert_eq!(key.parse::<SnapshotKey>().unwrap().to_string(), key);
        assert!("0190c0de-1234-7abc-8def-000000000001".parse::<SnapshotKey>().is_err());
    }

    #[test]
    fn properties_read_and_write_the_same() {
        let some = r#","properties":{"compression":"zstd-9","dedup":"off","block_size":16384,"checksum":"sha256","logbias":"throughput","sync":"always"}}"#;
        let label = V1.strip_suffix('}').unwrap().to_string() + some;
        assert_eq!(Label::from_json(&label).unwrap().to_json(), label);
        // Those before there were any have none.
        assert!(Label::from_json(V1).unwrap().properties.is_empty());
    }

    #[test]
    fn a_file_system_and_its_snapshot_read_and_write_the_same() {
        let label = V1
            .replace(r#""kind":"block""#, r#""kind":"filesystem","filesystem":"xfs""#)
            .replace(r#""hosts":["#, r#""copied":4096,"was":["#);
        let label = label.split(r#","was""#).next().unwrap().to_string() + "}";
        let read = Label::from_json(&label).unwrap();
        assert_eq!((read.kind, read.filesystem), (VolumeKind::Filesystem, Some(FilesystemKind::Xfs)));
        assert_eq!(read.to_json(), label);
        let id = "0190c0de-1234-7abc-8def-000000000002".parse().unwrap();
        let snapshot = SnapshotLabel::new(&read, id, "s".parse().unwrap(), None).to_json();
        assert!(snapshot.contains(r#""filesystem":"xfs""#), "{snapshot}");
        assert_eq!(SnapshotLabel::from_json(&snapshot).unwrap().to_json(), snapshot);
        assert_eq!(Label::from_json(V1).unwrap().filesystem, None);
    }

    #[test]
    fn a_newer_label_says_update() {
        let newer = V1.replace(r#""v":1"#, r#""v":2"#).replace(r#""kind":"block""#, r#""kind":["x"]"#);
        assert!(matches!(Label::from_json(&newer), Err(LabelError::TooNew(2))));
        assert!(matches!(Label::from_json("{}"), Err(LabelError::Malformed(_))));
    }
}
