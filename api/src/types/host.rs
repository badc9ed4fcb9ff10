//! Hosts, and what they may use.

use serde::{Deserialize, Serialize};

use crate::{Authentication, ByteSize, HostName, Nqn, Protocol, VolumeId};

/// `PUT /v1/hosts/{host}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostPut {
    /// The initiator's NQN: `/etc/nvme/hostnqn`. One host has one, and no two hosts share one.
    pub nqn: Nqn,
}

/// An initiator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Host {
    /// Its name.
    pub name: HostName,
    /// Its NQN.
    pub nqn: Nqn,
    /// How it is authenticated. Not given: whoever has its NQN and can reach a portal is let in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authentication: Option<Authentication>,
    /// The volumes that it may use.
    pub volumes: Vec<VolumeId>,
}

/// NFS: by what names the users of a host go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Squash {
    /// By their own, root too: what a host that mounts a volume for others needs.
    #[default]
    None,
    /// By their own, but root is nobody.
    Root,
    /// All are nobody.
    All,
}

impl Squash {
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
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Portal {
    /// IPv4 or IPv6 address.
    pub address: String,
    /// TCP port.
    pub port: u16,
}

/// `PUT /v1/volumes/{volume}/attachments/{host}`: all that the initiator needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Attachment {
    /// The volume.
    pub volume: VolumeId,
    /// The host.
    pub host: HostName,
    /// How it is reached.
    pub protocol: Protocol,
    /// The subsystem to connect to.
    pub nqn: Nqn,
    /// The only NQN that is let in by this attachment.
    pub host_nqn: Nqn,
    /// How the host is authenticated, if it is: it needs its secret to connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authentication: Option<Authentication>,
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
    /// The size that the device must have.
    pub size: ByteSize,
}
