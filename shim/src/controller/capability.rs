//! How a volume may be used, by its protocol. Pure.

use orlop_api::{Protocol, VolumeKind};

use crate::csi::VolumeCapability;
use crate::csi::volume_capability::AccessType;
use crate::csi::volume_capability::access_mode::Mode;
use crate::node::filesystem::Kind;
use crate::status::{Result, invalid, missing};

/// The access mode of a capability, which must say one that there is.
pub fn mode(capability: &VolumeCapability) -> Result<Mode> {
    let mode = capability.access_mode.as_ref().ok_or_else(|| missing("access_mode"))?.mode;
    match Mode::try_from(mode) {
        Ok(Mode::Unknown) | Err(_) => Err(invalid(format!("access_mode: {mode} is none"))),
        Ok(mode) => Ok(mode),
    }
}

/// Whether only one node at a time may have it.
pub fn is_for_one_node(mode: Mode) -> bool {
    matches!(
        mode,
        Mode::SingleNodeWriter
            | Mode::SingleNodeReaderOnly
            | Mode::SingleNodeSingleWriter
            | Mode::SingleNodeMultiWriter
    )
}

/// Whether nobody may write.
pub fn is_read_only(mode: Mode) -> bool {
    matches!(mode, Mode::SingleNodeReaderOnly | Mode::MultiNodeReaderOnly)
}

/// Whether the capability is of a raw block device.
pub fn is_block(capability: &VolumeCapability) -> bool {
    matches!(capability.access_type, Some(AccessType::Block(_)))
}

/// Why a volume that is reached so can't be used so. `Ok(None)`: it can. An error: the capability itself is wrong.
pub fn objection(capability: &VolumeCapability, protocol: Protocol) -> Result<Option<String>> {
    let mode = mode(capability)?;
    let access = capability.access_type.as_ref().ok_or_else(|| missing("access_type"))?;
    let by = protocol.as_str();
    if mode == Mode::MultiNodeSingleWriter {
        return Ok(Some(
            "access_mode: nothing here sees to it that of several nodes one alone writes".into(),
        ));
    }
    Ok(match (protocol.kind(), access) {
        (VolumeKind::Filesystem, AccessType::Block(_)) => Some(format!("by {by} there is no block device")),
        (VolumeKind::Filesystem, AccessType::Mount(mount)) => {
            let fits = mount.fs_type.is_empty() || mount.fs_type == "nfs";
            (!fits).then(|| format!("fs_type: by {by} it is nfs, and not {:?}", mount.fs_type))
        }
        (VolumeKind::Block, AccessType::Block(_)) => None,
        (VolumeKind::Block, AccessType::Mount(mount)) => {
            let fits = Kind::parse(&mount.fs_type).is_some();
            match mode {
                _ if !fits => Some(format!(
                    "fs_type: {:?} is none of {}",
                    mount.fs_type,
                    Kind::ALL.map(Kind::as_str).join(", ")
                )),
                Mode::MultiNodeMultiWriter => Some(format!(
                    "access_mode: a file system on a disk is written by one node; by {by} several can share a raw block \
                     device, and by nfs a file system"
                )),
                _ => None,
            }
        }
    })
}

/// Refuses what a volume that is reached so can't be used for.
pub fn check(capabilities: &[VolumeCapability], protocol: Protocol) -> Result<()> {
    if capabilities.is_empty() {
        return Err(missing("volume_capabilities"));
    }
    for capability in capabilities {
        if let Some(why) = objection(capability, protocol)? {
            return Err(invalid(why));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::csi::volume_capability::{AccessMode, BlockVolume, MountVolume};

    fn capability(fs_type: Option<&str>, mode: Mode) -> VolumeCapability {
        let access_type = match fs_type {
            None => AccessType::Block(BlockVolume {}),
            Some(fs_type) => {
                AccessType::Mount(MountVolume { fs_type: fs_type.into(), ..MountVolume::default() })
            }
        };
        VolumeCapability {
            access_type: Some(access_type),
            access_mode: Some(AccessMode { mode: mode.into() }),
        }
    }

    #[test]
    fn each_protocol_has_its_uses() {
        for (protocol, fs_type, mode, fits) in [
            (Protocol::Nvme, Some("ext4"), Mode::SingleNodeWriter, true),
            (Protocol::Nvme, Some(""), Mode::SingleNodeMultiWriter, true),
            (Protocol::Iscsi, Some("xfs"), Mode::MultiNodeReaderOnly, true),
            (Protocol::Nvme, Some("btrfs"), Mode::SingleNodeWriter, false),
            (Protocol::Nvme, Some("ext4"), Mode::MultiNodeMultiWriter, false),
            (Protocol::Nvme, Some("ext4"), Mode::MultiNodeSingleWriter, false),
            (Protocol::Nvme, None, Mode::MultiNodeMultiWriter, true),
            (Protocol::Nvme, None, Mode::MultiNodeSingleWriter, false),
            (Protocol::Nfs, Some(""), Mode::MultiNodeSingleWriter, false),
            (Protocol::Nfs, Some(""), Mode::MultiNodeMultiWriter, true),
            (Protocol::Nfs, Some("nfs"), Mode::SingleNodeWriter, true),
            (Protocol::Nfs, Some("ext4"), Mode::SingleNodeWriter, false),
            (Protocol::Nfs, None, Mode::SingleNodeWriter, false),
        ] {
            let capability = capability(fs_type, mode);
            let objection = objection(&capability, protocol).unwrap();
            assert_eq!(objection.is_none(), fits, "{protocol:?} {fs_type:?} {mode:?}: {objection:?}");
            assert_eq!(check(&[capability], protocol).is_ok(), fits);
        }
    }

    #[test]
    fn what_says_nothing_is_refused() {
        check(&[], Protocol::Nvme).unwrap_err();
        let whole = capability(None, Mode::SingleNodeWriter);
        for half in [
            VolumeCapability { access_type: None, ..whole.clone() },
            VolumeCapability { access_mode: None, ..whole.clone() },
            VolumeCapability { access_mode: Some(AccessMode { mode: 0 }), ..whole.clone() },
            VolumeCapability { access_mode: Some(AccessMode { mode: 99 }), ..whole },
        ] {
            check(&[half], Protocol::Nvme).unwrap_err();
        }
    }
}
