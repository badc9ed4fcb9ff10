//! What initiators know a volume by, derived from its id and nothing else.

use std::str::FromStr;

use orlop_api::{Iqn, Nqn, ParseError, VolumeId};
use uuid::Uuid;

/// Whom one of a volume's two NVMe subsystems is for. The kernel's target lets every host of a subsystem write that it
/// lets in, so those that may only read have one of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Audience {
    /// Those that may write.
    Writers,
    /// Those that may only read.
    Readers,
}

impl Audience {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Writers, Self::Readers];

    /// Where who has this right belongs.
    pub fn of(read_only: bool) -> Self {
        if read_only { Self::Readers } else { Self::Writers }
    }

    /// What follows the volume's id in the subsystem's name.
    fn suffix(self) -> &'static str {
        match self {
            Self::Writers => "",
            Self::Readers => ":ro",
        }
    }
}

/// The part of an NQN before the volume's id; `nqn.2026-11.dev.orlop` unless configured. iSCSI targets have the same
/// with `iqn` in the place of `nqn`, so it keeps to what both may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NqnPrefix(Box<str>);

impl NqnPrefix {
    /// The subsystem NQN of a volume.
    pub fn subsystem(&self, id: VolumeId) -> Nqn {
        self.subsystem_for(id, Audience::Writers)
    }

    /// The same of the one that is for them.
    pub fn subsystem_for(&self, id: VolumeId, audience: Audience) -> Nqn {
        // A prefix is checked with the longest of what may follow when it is parsed, so this can't fail;
        // the fallback keeps that a type-level fact instead of a panic.
        let name = format!("{}:{id}{}", self.0, audience.suffix());
        name.parse().unwrap_or_else(|_| Self::default().subsystem_for(id, audience))
    }

    /// The volume that a subsystem NQN belongs to; `None` for a foreign one.
    pub fn volume(&self, nqn: &str) -> Option<VolumeId> {
        Some(self.audience(nqn)?.0)
    }

    /// The same, and whom it is for.
    pub fn audience(&self, nqn: &str) -> Option<(VolumeId, Audience)> {
        let of = nqn.strip_prefix(&*self.0)?.strip_prefix(':')?;
        match of.strip_suffix(Audience::Readers.suffix()) {
            Some(id) => Some((id.parse().ok()?, Audience::Readers)),
            None => Some((of.parse().ok()?, Audience::Writers)),
        }
    }

    /// The iSCSI target name of a volume.
    pub fn target(&self, id: VolumeId) -> Iqn {
        // As above.
        format!("iqn.{}:{id}", self.domain()).parse().unwrap_or_else(|_| Self::default().target(id))
    }

    /// The volume that an iSCSI target name belongs to; `None` for a foreign one.
    pub fn volume_of_target(&self, iqn: &str) -> Option<VolumeId> {
        iqn.strip_prefix("iqn.")?.strip_prefix(self.domain())?.strip_prefix(':')?.parse().ok()
    }

    fn domain(&self) -> &str {
        self.0.strip_prefix("nqn.").unwrap_or(&self.0)
    }
}

impl Default for NqnPrefix {
    fn default() -> Self {
        Self("nqn.2026-11.dev.orlop".into())
    }
}

impl FromStr for NqnPrefix {
    type Err = ParseError;
    fn from_str(s: &str) -> Result<Self, ParseError> {
        let id = Uuid::nil();
        format!("{s}:{id}{}", Audience::Readers.suffix()).parse::<Nqn>()?;
        let domain = s.strip_prefix("nqn.").unwrap_or(s);
        format!("iqn.{domain}:{id}").parse::<Iqn>()?;
        Ok(Self(s.into()))
    }
}

/// What the target says of a volume to its initiators. The same after any reboot, on any appliance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Subsystem name.
    pub nqn: Nqn,
    /// The same for those that may only read.
    pub readers_nqn: Nqn,
    /// Namespace UUID: the volume's id.
    pub uuid: Uuid,
    /// Namespace globally unique id: 16 bytes, never all zero.
    pub nguid: [u8; 16],
    /// Controller serial number: 20 ASCII characters, the most that Identify Controller holds.
    pub serial: String,
    /// iSCSI target name.
    pub iqn: Iqn,
    /// SCSI unit serial number: 32 hexadecimal digits.
    pub scsi_serial: String,
}

impl Identity {
    /// Derives all of it.
    pub fn of(id: VolumeId, prefix: &NqnPrefix) -> Self {
        let simple = id.uuid().simple().to_string();
        // The last 20 digits hold all 74 random bits; the time before them would not tell apart two
        // volumes made in one millisecond.
        let (time, random) = simple.split_at(12);
        Self {
            nqn: prefix.subsystem(id),
            readers_nqn: prefix.subsystem_for(id, Audience::Readers),
            uuid: id.uuid(),
            nguid: *id.uuid().as_bytes(),
            serial: random.to_string(),
            iqn: prefix.target(id),
            // The WWN has its first 25 digits.
            scsi_serial: format!("{random}{time}"),
        }
    }

    /// The subsystem by which they come.
    pub fn nqn_for(&self, audience: Audience) -> &Nqn {
        match audience {
            Audience::Writers => &self.nqn,
            Audience::Readers => &self.readers_nqn,
        }
    }

    /// What NFS hosts mount.
    pub fn export_path(&self) -> String {
        format!("/volumes/{}", self.uuid)
    }

    /// The SCSI world wide name, as `/dev/disk/by-id/wwn-0x<this>` has it: LIO makes it of its own company's number
    /// (`001405`) and the serial number.
    pub fn wwn(&self) -> String {
        format!("6001405{}", &self.scsi_serial[..25])
    }

    /// The NGUID as configfs and sysfs spell it: hyphenated like a UUID.
    pub fn nguid_hyphenated(&self) -> String {
        Uuid::from_bytes(self.nguid).hyphenated().to_string()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn identity_is_a_function_of_the_id() {
        let id: VolumeId = "0190c0de-1234-7abc-8def-0123456789ab".parse().unwrap();
        let i = Identity::of(id, &NqnPrefix::default());
        assert_eq!(i.nqn.as_str(), "nqn.2026-11.dev.orlop:0190c0de-1234-7abc-8def-0123456789ab");
        assert_eq!(i.nguid_hyphenated(), id.to_string());
        assert_eq!(i.serial, "7abc8def0123456789ab");
        assert_eq!(i.iqn.as_str(), "iqn.2026-11.dev.orlop:0190c0de-1234-7abc-8def-0123456789ab");
        assert_eq!(i.scsi_serial, "7abc8def0123456789ab0190c0de1234");
        assert_eq!(i.wwn(), "60014057abc8def0123456789ab0190c");
        assert_eq!(NqnPrefix::default().volume_of_target(i.iqn.as_str()), Some(id));
        assert_eq!(NqnPrefix::default().volume_of_target(i.nqn.as_str()), None);
        assert_eq!(NqnPrefix::default().volume(i.nqn.as_str()), Some(id));
        let prefix = NqnPrefix::default();
        assert_eq!(i.readers_nqn.as_str(), "nqn.2026-11.dev.orlop:0190c0de-1234-7abc-8def-0123456789ab:ro");
        for audience in Audience::ALL {
            assert_eq!(prefix.audience(i.nqn_for(audience).as_str()), Some((id, audience)));
        }
        for foreign in [
            "x",
            ":ro",
            "0190c0de-1234-7abc-8def-0123456789ab:rw",
            "0190c0de-1234-7abc-8def-0123456789ab:ro:ro",
        ] {
            assert_eq!(prefix.volume(&format!("nqn.2026-11.dev.orlop:{foreign}")), None);
        }
        assert_eq!(
            NqnPrefix::default().volume("nqn.2026-11.dev.orlops:0190c0de-1234-7abc-8def-0123456789ab"),
            None
        );
    }

    #[test]
    fn prefixes_are_checked_whole() {
        assert!("nqn.2020-01.com.example".parse::<NqnPrefix>().is_ok());
        assert!("nqn.2020-01".parse::<NqnPrefix>().is_err());
        assert!("nqn.2020-01.com.Example".parse::<NqnPrefix>().is_err());
        assert!(format!("nqn.2020-01.{}", "x".repeat(190)).parse::<NqnPrefix>().is_err());
    }
}
