//! What initiators know a volume by, derived from its id and nothing else.

use std::str::FromStr;

use orlop_api::{Nqn, ParseError, VolumeId};
use uuid::Uuid;

/// The part of an NQN before the volume's id; `nqn.2026-11.dev.orlop` unless configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NqnPrefix(Box<str>);

impl NqnPrefix {
    /// The subsystem NQN of a volume.
    pub fn subsystem(&self, id: VolumeId) -> Nqn {
        // A prefix is checked with an id of the same length when it is parsed, so this can't fail;
        // the fallback keeps that a type-level fact instead of a panic.
        format!("{}:{id}", self.0).parse().unwrap_or_else(|_| Self::default().subsystem(id))
    }

    /// The volume that a subsystem NQN belongs to; `None` for a foreign one.
    pub fn volume(&self, nqn: &str) -> Option<VolumeId> {
        nqn.strip_prefix(&*self.0)?.strip_prefix(':')?.parse().ok()
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
        format!("{s}:{}", Uuid::nil()).parse::<Nqn>()?;
        Ok(Self(s.into()))
    }
}

/// What the target says of a volume to its initiators. The same after any reboot, on any appliance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Subsystem name.
    pub nqn: Nqn,
    /// Namespace UUID: the volume's id.
    pub uuid: Uuid,
    /// Namespace globally unique id: 16 bytes, never all zero.
    pub nguid: [u8; 16],
    /// Controller serial number: 20 ASCII characters, the most that Identify Controller holds.
    pub serial: String,
}

impl Identity {
    /// Derives all of it.
    pub fn of(id: VolumeId, prefix: &NqnPrefix) -> Self {
        let simple = id.uuid().simple().to_string();
        // The last 20 digits hold all 74 random bits; the time before them would not tell apart two
        // volumes made in one millisecond.
        let serial = simple[12..].to_string();
        Self { nqn: prefix.subsystem(id), uuid: id.uuid(), nguid: *id.uuid().as_bytes(), serial }
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
        assert_eq!(NqnPrefix::default().volume(i.nqn.as_str()), Some(id));
        assert_eq!(NqnPrefix::default().volume("nqn.2026-11.dev.orlop:x"), None);
        assert_eq!(
            NqnPrefix::default().volume("nqn.2026-11.dev.orlops:0190c0de-1234-7abc-8def-0123456789ab"),
            None
        );
    }

    #[test]
    fn prefixes_are_checked_whole() {
        assert!("nqn.2020-01.com.example".parse::<NqnPrefix>().is_ok());
        assert!("nqn.2020-01".parse::<NqnPrefix>().is_err());
        assert!(format!("nqn.2020-01.{}", "x".repeat(190)).parse::<NqnPrefix>().is_err());
    }
}
