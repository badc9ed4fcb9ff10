//! Encryption at rest: keys, and how volumes come by theirs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::VolumeId;
use crate::name::ParseError;

/// Bytes of a key: AES-256.
const LENGTH: usize = 32;

/// A volume's key: 32 bytes, written as 64 hexadecimal digits.
///
/// It is shown nowhere but where it is meant to go: formatting it for people gives `EncryptionKey(..)`, and its
/// memory is cleared when it goes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = String, pattern = "^[0-9a-fA-F]{64}$"))]
pub struct EncryptionKey([u8; LENGTH]);

impl EncryptionKey {
    /// From bytes that nobody can guess.
    pub fn new(bytes: [u8; LENGTH]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Its 64 digits.
    pub fn expose_text(&self) -> String {
        self.0.iter().map(|b| format!("{b:02x}")).collect()
    }
}

impl Drop for EncryptionKey {
    fn drop(&mut self) {
        self.0.fill(0);
        // So that clearing what nobody reads again is not left out.
        std::hint::black_box(&self.0);
    }
}

impl fmt::Debug for EncryptionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EncryptionKey(..)")
    }
}

impl FromStr for EncryptionKey {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        // What was given is not repeated: an error is shown and logged.
        let wrong = || ParseError::new("key", "(not shown)", "must be 64 hexadecimal digits");
        let digits = text.as_bytes();
        if digits.len() != 2 * LENGTH {
            return Err(wrong());
        }
        let mut key = Self([0; LENGTH]);
        for (byte, pair) in key.0.iter_mut().zip(digits.chunks_exact(2)) {
            let value = |digit: u8| (digit as char).to_digit(16).map(|d| d as u8);
            let (Some(high), Some(low)) = (value(pair[0]), value(pair[1])) else { return Err(wrong()) };
            *byte = high << 4 | low;
        }
        if key.0.iter().all(|b| *b == key.0[0]) {
            return Err(ParseError::new("key", "(not shown)", "must not be one byte repeated"));
        }
        Ok(key)
    }
}

impl TryFrom<String> for EncryptionKey {
    type Error = ParseError;
    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl From<EncryptionKey> for String {
    fn from(key: EncryptionKey) -> String {
        key.expose_text()
    }
}

/// Who brings the key when the appliance has started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Unlock {
    /// The appliance, which keeps it in its journal: what is protected are disks that leave the machine without
    /// its state disk.
    #[default]
    Automatic,
    /// A person or a program, with each start: the appliance keeps it in memory alone, and the volume is
    /// `locked` until then.
    Manual,
}

impl Unlock {
    /// As it is spelled on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Automatic => "automatic",
            Self::Manual => "manual",
        }
    }
}

/// `encryption` of a new volume. It can't be added to one that is there, nor taken away.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EncryptionCreate {
    /// By the appliance unless given.
    #[serde(default)]
    pub unlock: Unlock,
    /// The key; made by the appliance unless given. One that is to be brought with each start must be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub key: Option<EncryptionKey>,
}

/// How a volume is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Encryption {
    /// Who brings the key.
    pub unlock: Unlock,
    /// The volume whose key it is: itself, or of a linked clone the one that it descends from. Who unlocks one
    /// of them unlocks all.
    pub key_of: VolumeId,
}

/// `POST /v1/volumes/{volume}/unlock`, and the answer of `GET /v1/volumes/{volume}/key`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VolumeKey {
    /// The key.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub key: EncryptionKey,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TEXT: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1F";

    #[test]
    fn a_key_is_read_and_never_shown() {
        let key: EncryptionKey = TEXT.parse().unwrap();
        assert_eq!(key.expose()[31], 0x1f);
        assert_eq!(key.expose_text(), TEXT.to_lowercase());
        let ask = EncryptionCreate { unlock: Unlock::Manual, key: Some(key) };
        assert!(!format!("{ask:?}").contains("0102"), "{ask:?}");
        let text = serde_json::to_string(&ask).unwrap();
        assert_eq!(serde_json::from_str::<EncryptionCreate>(&text).unwrap(), ask);
    }

    #[test]
    fn what_is_no_key_is_refused_without_being_repeated() {
        let long = format!("{TEXT}00");
        let sign = format!("+{}", &TEXT[1..]);
        let same = "00".repeat(32);
        let wide = "ü".repeat(32);
        for bad in ["", "00", &TEXT[1..], &long, &sign, &same, &wide] {
            let error = bad.parse::<EncryptionKey>().unwrap_err().to_string();
            assert!(bad.len() < 4 || !error.contains(bad), "{error}");
        }
    }
}
