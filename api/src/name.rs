//! Identifiers, each parsed once at the edge; inside, none of them is a bare string.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a value is not a valid identifier or size. Names the type, never echoes more than 64 characters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?}: {reason}")]
pub struct ParseError {
    /// What was parsed, in the words of the API: "volume name", "NQN".
    pub what: &'static str,
    /// What was given, shortened.
    pub value: String,
    /// The rule that it breaks.
    pub reason: &'static str,
}

impl ParseError {
    pub(crate) fn new(what: &'static str, value: &str, reason: &'static str) -> Self {
        Self { what, value: value.chars().take(64).collect(), reason }
    }
}

/// Declares a string newtype whose only way in is its rule.
macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = String))]
        pub struct $name(Box<str>);

        impl $name {
            /// The text as it was given.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::ParseError;
            fn from_str(s: &str) -> Result<Self, $crate::ParseError> {
                let rule: fn(&str) -> Result<(), &'static str> = $rule;
                rule(s).map_err(|reason| $crate::ParseError::new($what, s, reason))?;
                Ok(Self(s.into()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = $crate::ParseError;
            fn try_from(s: String) -> Result<Self, $crate::ParseError> {
                s.parse()
            }
        }

        impl From<$name> for String {
            fn from(n: $name) -> String {
                n.0.into()
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}
pub(crate) use name_type;

name_type!(
    /// The caller's name for a volume and the idempotency key of its creation; unique within a tenant.
    /// 1 to 128 of `A-Z a-z 0-9 . _ : -`, starting with a letter or digit, without `..`.
    VolumeName, "volume name", |s| plain_name(s, 128, b"._:-")
);
name_type!(
    /// The caller's name for a snapshot or a group of them, and the idempotency key of its creation;
    /// unique within a tenant. The rules of volume names.
    SnapshotName, "snapshot name", |s| plain_name(s, 128, b"._:-")
);
name_type!(
    /// A host (initiator) as its owner calls it, usually the Kubernetes node name.
    /// 1 to 253 (a DNS name's limit) of `A-Z a-z 0-9 . _ -`, starting with a letter or digit, without `..`.
    HostName, "host name", |s| plain_name(s, 253, b"._-")
);
name_type!(
    /// Who owns a volume. 1 to 63 of `A-Z a-z 0-9 . _ -`, starting with a letter or digit, without `..`.
    Tenant, "tenant", |s| plain_name(s, 63, b"._-")
);
impl Default for Tenant {
    /// Whose everything is that the administrator makes.
    fn default() -> Self {
        Self("default".into())
    }
}

name_type!(
    /// A pool. Also a zpool's name, so its rules are those of zpool(8) made stricter:
    /// 1 to 32 of `a-z 0-9 _ -`, starting with a letter, and none of zpool's reserved words.
    PoolName, "pool name", pool_name
);
name_type!(
    /// The kernel's name for a disk, as the inventory lists it: `sdb`, `nvme0n1`. 1 to 32 of `A-Z a-z 0-9 _ -`,
    /// starting with a letter or digit.
    DiskName, "disk name", |s| plain_name(s, 32, b"_-")
);
name_type!(
    /// An NVMe qualified name (NVMe base specification 2.0, 4.7): `nqn.yyyy-mm.reverse.domain:unique`,
    /// at most 223 bytes. Stricter than the standard in one way: no `/`, white space or control
    /// characters, because the kernel makes a directory of that name.
    Nqn, "NQN", nqn
);
name_type!(
    /// An iSCSI initiator's or target's name (RFC 7143, 4.2.7): `iqn.yyyy-mm.reverse.domain[:unique]`, at most 223
    /// bytes of `a-z 0-9 . : -`; or `eui.` and 16, or `naa.` and 16 or 32 hexadecimal digits.
    Iqn, "iSCSI name", iqn
);

name_type!(
    /// What an alarm is about: `pool/tank/health`, `volume/<id>`. 1 to 255 printable ASCII characters without
    /// white space.
    AlarmSubject, "alarm's subject", alarm_subject
);

name_type!(
    /// What an orphan is called as long as it is there: 16 hexadecimal digits, and after a dot the pool
    /// that it is in, if it is in one.
    OrphanId, "orphan id", orphan_id
);

impl OrphanId {
    /// The one with these bits.
    pub fn new(bits: u64, pool: Option<&PoolName>) -> Self {
        let pool = pool.map(|p| format!(".{p}")).unwrap_or_default();
        Self(format!("{bits:016x}{pool}").into())
    }

    /// The pool that it is in.
    pub fn pool(&self) -> Option<PoolName> {
        // Checked when it was parsed.
        self.0.split_once('.').and_then(|(_, pool)| pool.parse().ok())
    }
}

fn alarm_subject(s: &str) -> Result<(), &'static str> {
    if s.is_empty() {
        return Err("must not be empty");
    }
    if s.len() > 255 {
        return Err("is longer than 255 bytes");
    }
    if !s.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("has a character that is not allowed");
    }
    Ok(())
}

fn orphan_id(s: &str) -> Result<(), &'static str> {
    const RULE: &str = "is not 16 lower-case hexadecimal digits, with a dot and a pool's name or without";
    let (bits, pool) = s.split_once('.').map_or((s, None), |(bits, pool)| (bits, Some(pool)));
    let hex = bits.len() == 16 && bits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if hex && pool.is_none_or(|p| pool_name(p).is_ok()) { Ok(()) } else { Err(RULE) }
}

pub(crate) fn plain_name(s: &str, max: usize, extra: &[u8]) -> Result<(), &'static str> {
    if s.is_empty() {
        return Err("must not be empty");
    }
    if s.len() > max {
        return Err("is too long");
    }
    if !s.bytes().all(|b| b.is_ascii_alphanumeric() || extra.contains(&b)) {
        return Err("has a character that is not allowed");
    }
    if !s.as_bytes()[0].is_ascii_alphanumeric() {
        return Err("must start with a letter or a digit");
    }
    if s.contains("..") {
        return Err("must not contain '..'");
    }
    Ok(())
}

fn pool_name(s: &str) -> Result<(), &'static str> {
    const RESERVED: [&str; 7] = ["mirror", "raidz", "draid", "spare", "log", "special", "dedup"];
    plain_name(s, 32, b"_-")?;
    if s.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("must be in lower case");
    }
    if !s.as_bytes()[0].is_ascii_lowercase() {
        return Err("must start with a letter");
    }
    if RESERVED.iter().any(|r| s.starts_with(r)) {
        return Err("starts with a word that zpool keeps for itself");
    }
    Ok(())
}

fn nqn(s: &str) -> Result<(), &'static str> {
    if s.len() > 223 {
        return Err("is longer than 223 bytes");
    }
    if !s.bytes().all(|b| b.is_ascii_graphic() && b != b'/') {
        return Err("has a character that is not allowed");
    }
    let rest = s.strip_prefix("nqn.").ok_or("must start with 'nqn.'")?;
    let domain = after_date(rest).ok_or("must carry a date 'yyyy-mm.' after 'nqn.'")?;
    let (domain, unique) = domain.split_once(':').ok_or("must have ':' after the domain")?;
    if domain.is_empty() || unique.is_empty() {
        return Err("has an empty domain or an empty unique part");
    }
    Ok(())
}

fn iqn(s: &str) -> Result<(), &'static str> {
    if s.len() > 223 {
        return Err("is longer than 223 bytes");
    }
    if s.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("must be in lower case");
    }
    if !s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".:-".contains(&b)) {
        return Err("has a character that is not allowed");
    }
    let hex = |digits: &str, lengths: &[usize]| {
        let all = digits.bytes().all(|b| b.is_ascii_hexdigit());
        if all && lengths.contains(&digits.len()) {
            Ok(())
        } else {
            Err("has not as many hexadecimal digits as it must")
        }
    };
    if let Some(digits) = s.strip_prefix("eui.") {
        return hex(digits, &[16]);
    }
    if let Some(digits) = s.strip_prefix("naa.") {
        return hex(digits, &[16, 32]);
    }
    let rest = s.strip_prefix("iqn.").ok_or("must start with 'iqn.', 'eui.' or 'naa.'")?;
    let domain = after_date(rest).ok_or("must carry a date 'yyyy-mm.' after 'iqn.'")?;
    let (domain, unique) = domain.split_once(':').map_or((domain, None), |(d, u)| (d, Some(u)));
    if domain.is_empty() || unique == Some("") {
        return Err("has an empty domain or an empty unique part");
    }
    Ok(())
}

/// What follows `yyyy-mm.`, of a month that there is.
fn after_date(s: &str) -> Option<&str> {
    let b = s.as_bytes();
    let digits = |r: std::ops::Range<usize>| b.get(r).is_some_and(|d| d.iter().all(u8::is_ascii_digit));
    let date = digits(0..4) && b.get(4) == Some(&b'-') && digits(5..7) && b.get(7) == Some(&b'.');
    let month: u8 = s.get(5..7).filter(|_| date)?.parse().ok()?;
    (1..=12).contains(&month).then(|| &s[8..])
}

/// Declares an identity: a UUIDv7 minted by the daemon, never used twice.
macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = uuid::Uuid))]
        pub struct $name(uuid::Uuid);

        impl $name {
            /// A new identity. Ordered by creation time.
            pub fn mint() -> Self {
                Self(uuid::Uuid::now_v7())
            }

            /// The UUID itself.
            pub fn uuid(&self) -> uuid::Uuid {
                self.0
            }
        }

        impl FromStr for $name {
            type Err = ParseError;
            fn from_str(s: &str) -> Result<Self, ParseError> {
                // Only the hyphenated lower-case form: one identity has one spelling, on disk and in URLs.
                match uuid::Uuid::try_parse(s) {
                    Ok(u) if u.hyphenated().to_string() == s => Ok(Self(u)),
                    _ => Err(ParseError::new($what, s, "is not a hyphenated lower-case UUID")),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }
    };
}

id_type!(
    /// A volume's identity. Also its NVMe UUID.
    VolumeId, "volume id"
);
id_type!(
    /// A snapshot's identity.
    SnapshotId, "snapshot id"
);

/// Declares how a caller points at an object: by id, or by name within its own tenant.
macro_rules! ref_type {
    ($(#[$doc:meta])* $name:ident, $id:ident, $by_name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub enum $name {
            /// By identity.
            Id($id),
            /// By the caller's name.
            Name($by_name),
        }

        impl FromStr for $name {
            type Err = ParseError;
            fn from_str(s: &str) -> Result<Self, ParseError> {
                s.parse().map(Self::Id).or_else(|_| s.parse().map(Self::Name))
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseError;
            fn try_from(s: String) -> Result<Self, ParseError> {
                s.parse()
            }
        }

        impl From<$name> for String {
            fn from(r: $name) -> String {
                r.to_string()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    Self::Id(id) => id.fmt(f),
                    Self::Name(n) => n.fmt(f),
                }
            }
        }

        impl From<$id> for $name {
            fn from(id: $id) -> Self {
                Self::Id(id)
            }
        }

        impl From<$by_name> for $name {
            fn from(name: $by_name) -> Self {
                Self::Name(name)
            }
        }
    };
}

ref_type!(
    /// A volume, by id or by name.
    VolumeRef, VolumeId, VolumeName
);
ref_type!(
    /// A snapshot, by id or by name.
    SnapshotRef, SnapshotId, SnapshotName
);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn volume_names_have_edges() {
        for ok in ["a", "pvc-0190", "A.b_c:d-e", &"x".repeat(128)] {
            assert!(ok.parse::<VolumeName>().is_ok(), "{ok}");
        }
        for bad in ["", &"x".repeat(129), "a/b", "a@b", "a\0b", "..", "a..b", "é", "-a", ".a", "a b", "a\n"]
        {
            assert!(bad.parse::<VolumeName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn nqns_follow_the_standard() {
        for ok in [
            "nqn.2014-08.org.nvmexpress:uuid:0190c0de-0000-7000-8000-000000000001",
            "nqn.2026-11.dev.orlop:x",
        ] {
            assert!(ok.parse::<Nqn>().is_ok(), "{ok}");
        }
        let long = format!("nqn.2014-08.org:{}", "x".repeat(223));
        for bad in [
            "",
            "nqn",
            "nqn.",
            "iqn.2014-08.org:x",
            "nqn.2014-13.org:x",
            "nqn.2014-08.org",
            "nqn.2014-08.:x",
            "nqn.2014-08.org:",
            "nqn.2014-08.org:a/b",
            "nqn.2014-08.org:a b",
            "nqn.20é4-08.org:x",
            &long,
        ] {
            assert!(bad.parse::<Nqn>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn iscsi_names() {
        for ok in [
            "iqn.1993-08.org.debian:01:5cc1ae5fd1a4",
            "iqn.2026-11.dev.orlop:0190c0de-1234-7abc-8def-0123456789ab",
            "iqn.2001-04.com.example",
            "eui.02004567a425678d",
            "naa.52004567ba64678d",
            "naa.62004567ba64678d0123456789abcdef",
        ] {
            assert!(ok.parse::<Iqn>().is_ok(), "{ok}");
        }
        let long = format!("iqn.2014-08.org:{}", "x".repeat(223));
        for bad in [
            "",
            "iqn",
            "iqn.",
            "nqn.2014-08.org:x",
            "iqn.2014-13.org:x",
            "iqn.2014-08.org:",
            "iqn.2014-08.:x",
            "iqn.2014-08.org:a/b",
            "iqn.2014-08.org:a b",
            "iqn.2014-08.Org:x",
            "iqn.20é4-08.org:x",
            "eui.0200",
            "naa.52004567ba64678g",
            &long,
        ] {
            assert!(bad.parse::<Iqn>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn pool_names_avoid_zpool_words() {
        assert!("tank".parse::<PoolName>().is_ok());
        for bad in ["Tank", "1tank", "mirror0", "raidz", "a/b", "log", &"t".repeat(33)] {
            assert!(bad.parse::<PoolName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn orphan_ids_say_where() {
        let tank: PoolName = "tank".parse().unwrap();
        let id = OrphanId::new(0xabc, Some(&tank));
        assert_eq!(id.as_str(), "0000000000000abc.tank");
        assert_eq!((id.as_str().parse::<OrphanId>().unwrap(), id.pool()), (id.clone(), Some(tank)));
        assert_eq!(OrphanId::new(1, None).pool(), None);
        for bad in [
            "",
            "abc",
            "0000000000000ABC",
            "0000000000000abc.",
            "0000000000000abc.a.b",
            "0000000000000abc./x",
        ] {
            assert!(bad.parse::<OrphanId>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn parsers_never_panic_and_round_trip(s in ".{0,300}") {
            if let Ok(n) = s.parse::<VolumeName>() { prop_assert_eq!(n.as_str(), &s); }
            if let Ok(n) = s.parse::<Nqn>() { prop_assert_eq!(n.as_str(), &s); }
            if let Ok(n) = s.parse::<Iqn>() { prop_assert_eq!(n.as_str(), &s); }
            if let Ok(n) = s.parse::<PoolName>() { prop_assert_eq!(n.as_str(), &s); }
            if let Ok(n) = s.parse::<VolumeId>() { prop_assert_eq!(n.to_string(), s.clone()); }
            let _ = s.parse::<crate::ByteSize>();
        }
    }
}
