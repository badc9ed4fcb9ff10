//! NVMe in-band authentication (DH-HMAC-CHAP, section 8.3.5.5 of the NVMe base specification): the secrets of hosts.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::name::ParseError;
use crate::secret::{Interchange, SecretText};

/// A secret as NVMe writes it: `DHHC-1:01:<base64>:`, as made by `nvme gen-dhchap-key --hmac=1`.
///
/// The two digits say with which hash it is transformed before it is used: `00` none, `01` SHA-256, `02` SHA-384, `03`
/// SHA-512; it has as many bytes as that hash, and 32, 48 or 64 where there is none. They are followed by their CRC-32.
/// It is shown nowhere but where it is meant to go: formatting it for people gives `DhchapKey(..)`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = String, pattern = "^DHHC-1:0[0-3]:[0-9A-Za-z+/=]+:$"))]
pub struct DhchapKey(SecretText);

impl DhchapKey {
    /// Its text.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }
}

impl fmt::Debug for DhchapKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DhchapKey(..)")
    }
}

/// `DHHC-1`.
const FORM: Interchange = Interchange {
    what: "key",
    prefix: "DHHC-1",
    form: "must have the form DHHC-1:01:<base64>: (see nvme gen-dhchap-key)",
    lengths: &[("00", &[32, 48, 64]), ("01", &[32]), ("02", &[48]), ("03", &[64])],
    hashes: "names no hash: 00, 01, 02 or 03 must follow DHHC-1",
};

impl FromStr for DhchapKey {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        FORM.read(text).map(Self)
    }
}

impl TryFrom<String> for DhchapKey {
    type Error = ParseError;
    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl From<DhchapKey> for String {
    fn from(key: DhchapKey) -> String {
        key.expose().to_string()
    }
}

/// The hash of the challenge and its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum DhchapHash {
    /// HMAC of SHA-256.
    #[default]
    Sha256,
    /// HMAC of SHA-384.
    Sha384,
    /// HMAC of SHA-512.
    Sha512,
}

impl DhchapHash {
    /// All of them, the weakest first.
    pub const ALL: [Self; 3] = [Self::Sha256, Self::Sha384, Self::Sha512];

    /// As it is spelled on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }
}

/// The Diffie-Hellman group (RFC 7919) by which a session's key can't be told from the secret alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum DhGroup {
    /// None: challenge and answer alone. Who has heard both can try secrets on them.
    Null,
    /// 2048 bits.
    #[default]
    Ffdhe2048,
    /// 3072 bits.
    Ffdhe3072,
    /// 4096 bits.
    Ffdhe4096,
    /// 6144 bits.
    Ffdhe6144,
    /// 8192 bits.
    Ffdhe8192,
}

impl DhGroup {
    /// All of them, the quickest first.
    pub const ALL: [Self; 6] =
        [Self::Null, Self::Ffdhe2048, Self::Ffdhe3072, Self::Ffdhe4096, Self::Ffdhe6144, Self::Ffdhe8192];

    /// As it is spelled on the wire, and by Linux.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Ffdhe2048 => "ffdhe2048",
            Self::Ffdhe3072 => "ffdhe3072",
            Self::Ffdhe4096 => "ffdhe4096",
            Self::Ffdhe6144 => "ffdhe6144",
            Self::Ffdhe8192 => "ffdhe8192",
        }
    }
}

/// `PUT /v1/hosts/{host}/authentication`: what a host must prove that it knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuthenticationPut {
    /// The host's secret, which it proves to have.
    pub key: DhchapKey,
    /// The appliance's, which it proves to have to a host that asks (mutual authentication). Another one than `key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller_key: Option<DhchapKey>,
    /// The hash to be used.
    #[serde(default)]
    pub hash: DhchapHash,
    /// The group to be used.
    #[serde(default)]
    pub dh_group: DhGroup,
}

/// How a host is authenticated. Its secrets are not shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Authentication {
    /// The host is let in when it has proved that it knows its secret.
    Required {
        /// Whether the appliance has a secret to prove itself with.
        mutual: bool,
        /// The hash.
        hash: DhchapHash,
        /// The group.
        dh_group: DhGroup,
    },
    /// Its secrets were lost with the journal: it is not let in until they are given again.
    Lost,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    fn text(hash: &str, secret: &[u8]) -> String {
        let crc = crc32fast::hash(secret).to_le_bytes();
        format!("DHHC-1:{hash}:{}:", STANDARD.encode([secret, &crc].concat()))
    }

    fn bytes(n: u8) -> Vec<u8> {
        (1..=n).collect()
    }

    #[test]
    fn secrets_are_read_and_not_shown() {
        for (hash, length) in [("00", 32), ("00", 48), ("00", 64), ("01", 32), ("02", 48), ("03", 64)] {
            let text = text(hash, &bytes(length));
            let key: DhchapKey = text.parse().unwrap();
            assert_eq!(key.expose(), text);
            assert_eq!(format!("{key:?}"), "DhchapKey(..)");
            assert_eq!(serde_json::from_str::<DhchapKey>(&format!("\"{text}\"")).unwrap(), key);
        }
    }

    #[test]
    fn what_is_no_secret_is_refused_and_not_repeated() {
        let good = text("01", &bytes(32));
        let mut wrong = vec![
            String::new(),
            "DHHC-1".into(),
            "DHHC-1:01::".into(),
            "DHHC-1:01:!!!!:".into(),
            "DHHC-1:01:AAAA:".into(),
            format!("{good}\n"),
            format!(" {good}"),
            format!("{good}x"),
            good.trim_end_matches(':').into(),
            good.replace("DHHC-1", "DHHC-2"),
            good.replace(":01:", ":04:"),
            good.replace(":01:", ":1:"),
            good.replace(":01:", ":02:"),
            text("01", &bytes(31)),
            text("01", &bytes(64)),
            text("03", &bytes(32)),
            text("00", &bytes(33)),
            text("00", &[7; 32]),
            text("01", &bytes(32)).replace("AQID", "AQIE"),
        ];
        wrong.push("A".repeat(100_000));
        for text in wrong {
            let error = text.parse::<DhchapKey>().unwrap_err().to_string();
            assert!(text.len() < 12 || !error.contains(&text), "{error}");
        }
    }

    #[test]
    fn what_is_asked_has_defaults_and_no_unknown_fields() {
        let key = text("01", &bytes(32));
        let ask: AuthenticationPut = serde_json::from_str(&format!("{{\"key\":\"{key}\"}}")).unwrap();
        assert_eq!((ask.hash, ask.dh_group), (DhchapHash::Sha256, DhGroup::Ffdhe2048));
        assert!(!format!("{ask:?}").contains(&key));
        assert!(
            serde_json::from_str::<AuthenticationPut>(&format!("{{\"key\":\"{key}\",\"x\":1}}")).is_err()
        );
        let shown = Authentication::Required { mutual: true, hash: ask.hash, dh_group: ask.dh_group };
        assert_eq!(
            serde_json::to_string(&shown).unwrap(),
            r#"{"state":"required","mutual":true,"hash":"sha256","dh_group":"ffdhe2048"}"#
        );
        for (name, spelled) in DhGroup::ALL.map(|g| (serde_json::to_value(g).unwrap(), g.as_str())) {
            assert_eq!(name, spelled);
        }
        for (name, spelled) in DhchapHash::ALL.map(|h| (serde_json::to_value(h).unwrap(), h.as_str())) {
            assert_eq!(name, spelled);
        }
    }
}
