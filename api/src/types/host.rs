//! Hosts, and what they may use.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{
    Authentication, ByteSize, Chap, HostName, Iqn, Network, Nqn, Protocol, Security, Tenant, Tls, VolumeId,
};

/// `PUT /v1/hosts/{host}`: what it is known by. At least one; what is not given it does not have (any more).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostPut {
    /// The NVMe initiator's NQN: `/etc/nvme/hostnqn`. No two hosts share one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nqn: Option<Nqn>,
    /// The iSCSI initiator's name: `/etc/iscsi/initiatorname.iscsi`. No two hosts share one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iqn: Option<Iqn>,
    /// The addresses that its NFS client calls from, at most 16. No two hosts share one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub addresses: Vec<IpAddr>,
}

impl HostPut {
    /// One that is known by its NQN.
    pub fn nvme(nqn: Nqn) -> Self {
        Self { nqn: Some(nqn), ..Self::default() }
    }
}

/// An initiator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Host {
    /// Its name.
    pub name: HostName,
    /// What NVMe knows it by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nqn: Option<Nqn>,
    /// What iSCSI knows it by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iqn: Option<Iqn>,
    /// What NFS knows it by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub addresses: Vec<IpAddr>,
    /// How it is authenticated by NVMe. Not given: whoever has its NQN and can reach a portal is let in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authentication: Option<Authentication>,
    /// How it is authenticated by iSCSI. Not given: whoever has its name and can reach a portal is let in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chap: Option<Chap>,
    /// How its NVMe connections are encrypted. Not given: they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// The volumes that it may use.
    pub volumes: Vec<VolumeId>,
    /// Whose it is: it uses volumes of this tenant alone.
    #[serde(default)]
    pub tenant: Tenant,
}

/// `PUT /v1/zones/{zone}`: a part of the network, whose hosts may use file systems by NFS.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ZonePut {
    /// Where its hosts call from: 1 to 64 networks.
    pub networks: Vec<Network>,
    /// Its hosts can't write, whatever an attachment says.
    #[serde(default)]
    pub read_only: bool,
    /// Whose names their users go by.
    #[serde(default)]
    pub squash: Squash,
    /// By what they must prove who they are, the one to take first; `sys` unless given. Who uses the zone by one that is
    /// taken out of the list is cut off.
    #[serde(default)]
    pub security: Security,
    /// Refused as `unsupported`: versions are the server's, `[nfs] versions` in its configuration. What a host gets by one
    /// version it could use by any other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub versions: Option<Vec<String>>,
    /// Whose it is, for good: it uses volumes of this tenant alone.
    #[serde(default, skip_serializing_if = "is_default")]
    #[cfg_attr(feature = "openapi", schema(default = "default"))]
    pub tenant: Tenant,
}

fn is_default(tenant: &Tenant) -> bool {
    *tenant == Tenant::default()
}

/// A part of the network. It is attached to volumes like a host, and shares the names of hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Zone {
    /// Its name.
    pub name: HostName,
    /// Where its hosts call from.
    pub networks: Vec<Network>,
    /// Whether its hosts can't write, whatever an attachment says.
    pub read_only: bool,
    /// Whose names their users go by.
    pub squash: Squash,
    /// By what they must prove who they are, the one to take first.
    #[serde(default)]
    pub security: Security,
    /// The volumes that they may use.
    pub volumes: Vec<VolumeId>,
    /// Whose it is: it uses volumes of this tenant alone.
    #[serde(default)]
    pub tenant: Tenant,
}

/// NFS: by what names the users of a host go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Squash {
    /// By their own, root too: what a host that mounts a volume for others needs.
    None,
    /// By their own, but root is nobody.
    #[default]
    Root,
    /// All are nobody.
    All,
}

impl Squash {
    /// All of them, the one that lets in most first.
    pub const ALL: [Self; 3] = [Self::None, Self::Root, Self::All];

    /// As it is spelled on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Root => "root",
            Self::All => "all",
        }
    }
}

/// Where a target listens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Portal {
    /// IPv4 or IPv6 address.
    pub address: String,
    /// TCP port, or RDMA's of the same number space.
    pub port: u16,
    /// By what it is reached. Not given: TCP.
    #[serde(default, skip_serializing_if = "Transport::is_tcp")]
    pub transport: Transport,
    /// Connections are encrypted: who does not begin with TLS is refused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tls: bool,
}

impl Portal {
    /// One of TCP, without TLS.
    pub fn tcp(address: impl Into<String>, port: u16) -> Self {
        Self { address: address.into(), port, ..Self::default() }
    }
}

/// By what a portal is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Transport {
    /// TCP.
    #[default]
    Tcp,
    /// RDMA: NVMe alone, where machine and network have it.
    Rdma,
}

impl Transport {
    /// As it is spelled on the wire, by Linux and by `nvme connect`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Rdma => "rdma",
        }
    }

    // Serde asks so.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    fn is_tcp(&self) -> bool {
        *self == Self::Tcp
    }
}

/// `PUT /v1/volumes/{volume}/attachments/{host}`: all that the initiator needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Attachment {
    /// The volume.
    pub volume: VolumeId,
    /// The host, or the zone.
    pub host: HostName,
    /// Whether it can't write.
    #[serde(default)]
    pub read_only: bool,
    /// The size that the device, or the file system, must have.
    pub size: ByteSize,
    /// How it is reached.
    #[serde(flatten)]
    pub access: Access,
}

impl Attachment {
    /// What NVMe takes, of a volume that is reached by it.
    pub fn nvme(&self) -> Option<&NvmeAccess> {
        if let Access::Nvme(access) = &self.access { Some(access) } else { None }
    }

    /// What iSCSI takes, of a volume that is reached by it.
    pub fn iscsi(&self) -> Option<&IscsiAccess> {
        if let Access::Iscsi(access) = &self.access { Some(access) } else { None }
    }

    /// What NFS takes, of a volume that is reached by it.
    pub fn nfs(&self) -> Option<&NfsAccess> {
        if let Access::Nfs(access) = &self.access { Some(access) } else { None }
    }
}

/// How a volume is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "protocol")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Access {
    /// By NVMe over TCP.
    Nvme(NvmeAccess),
    /// By iSCSI.
    Iscsi(IscsiAccess),
    /// By NFS.
    Nfs(NfsAccess),
}

impl Access {
    /// By what protocol.
    pub const fn protocol(&self) -> Protocol {
        match self {
            Self::Nvme(_) => Protocol::Nvme,
            Self::Iscsi(_) => Protocol::Iscsi,
            Self::Nfs(_) => Protocol::Nfs,
        }
    }
}

/// A volume as an NVMe namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NvmeAccess {
    /// The subsystem to connect to.
    pub nqn: Nqn,
    /// The only NQN that is let in by this attachment.
    pub host_nqn: Nqn,
    /// How the host is authenticated, if it is: it needs its secret to connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authentication: Option<Authentication>,
    /// How its connections are encrypted, if they are: it needs its key to connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// Every address at which the subsystem is served.
    pub portals: Vec<Portal>,
    /// Namespace id within the subsystem.
    pub nsid: u32,
    /// What `/sys/block/nvme*/uuid` shows on the initiator.
    pub uuid: uuid::Uuid,
    /// What `/sys/block/nvme*/nguid` shows: 32 hexadecimal digits.
    pub nguid: String,
    /// The controller's serial number.
    pub serial: String,
}

/// A volume as a SCSI logical unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct IscsiAccess {
    /// The target to log in to.
    pub iqn: Iqn,
    /// The only initiator name that is let in by this attachment.
    pub host_iqn: Iqn,
    /// How the host is authenticated, if it is: it needs its secret to log in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chap: Option<Chap>,
    /// Every address at which the target is served.
    pub portals: Vec<Portal>,
    /// The logical unit within the target.
    pub lun: u32,
    /// The unit's world wide name, 32 hexadecimal digits: `/dev/disk/by-id/wwn-0x<this>` on the initiator.
    pub wwn: String,
    /// The unit's serial number, 32 hexadecimal digits.
    pub serial: String,
}

/// A volume as an NFS export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NfsAccess {
    /// The addresses at which it is served.
    pub portals: Vec<Portal>,
    /// What to mount: `ADDRESS:<this>`. The same for ever.
    pub path: String,
    /// Who may mount it: the host's addresses, or the zone's networks.
    pub networks: Vec<Network>,
    /// Whose names the users go by.
    pub squash: Squash,
    /// What to mount with: `sec=` one of these, the first if it can be had. With Kerberos the appliance is called by the name
    /// that its keytab has.
    #[serde(default)]
    pub security: Security,
}
