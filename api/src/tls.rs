//! TLS for NVMe over TCP (NVMe TCP transport specification, 3.6.1): the pre-shared keys of hosts.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::name::ParseError;
use crate::secret::{Interchange, SecretText};

/// A configured key as NVMe writes it: `NVMeTLSkey-1:01:<base64>:`, as made by `nvme gen-tls-key`.
///
/// The two digits say by which hash it is retained: `01` SHA-256 with 32 bytes, `02` SHA-384 with 48, `00` as it is, with
/// 32 or 48. It is followed by its CRC-32.
///
/// It is shown nowhere but where it is meant to go: formatting it for people gives `TlsKey(..)`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = String, example = "NVMeTLSkey-1:01:<base64>:"))]
pub struct TlsKey(SecretText);

impl TlsKey {
    /// Its text.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }
}

impl fmt::Debug for TlsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsKey(..)")
    }
}

/// `NVMeTLSkey-1`.
const FORM: Interchange = Interchange {
    what: "TLS key",
    prefix: "NVMeTLSkey-1",
    form: "must have the form NVMeTLSkey-1:01:<base64>: (see nvme gen-tls-key)",
    lengths: &[("00", &[32, 48]), ("01", &[32]), ("02", &[48])],
    hashes: "names no hash: 00, 01 or 02 must follow NVMeTLSkey-1",
};

impl FromStr for TlsKey {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        FORM.read(text).map(Self)
    }
}

impl TryFrom<String> for TlsKey {
    type Error = ParseError;
    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl From<TlsKey> for String {
    fn from(key: TlsKey) -> Self {
        key.expose().to_string()
    }
}

/// `PUT /v1/hosts/{host}/tls`: the key by which a host's NVMe connections are encrypted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TlsPut {
    /// The key, which the host has too.
    pub key: TlsKey,
    /// The host derives what TLS uses as libnvme did before 1.16, which is not as the specification has it: for a host
    /// whose identity has version 0, or whose key is retained as it is. With an identity of version 1 either is known.
    #[serde(default)]
    pub compat: bool,
}

/// How a host's NVMe connections are encrypted. Its key is not shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Tls {
    /// The host is served at portals with TLS, and at no other.
    Required {
        /// Whether keys are derived as libnvme did before 1.16.
        compat: bool,
    },
    /// Its key was lost with the journal: it is not let in until it is given again.
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
        format!("NVMeTLSkey-1:{hash}:{}:", STANDARD.encode([secret, &crc].concat()))
    }

    fn bytes(n: u8) -> Vec<u8> {
        (1..=n).collect()
    }

    #[test]
    fn keys_are_read_and_not_shown() {
        for (hash, length) in [("00", 32), ("00", 48), ("01", 32), ("02", 48)] {
            let text = text(hash, &bytes(length));
            let key: TlsKey = text.parse().unwrap();
            assert_eq!((key.expose(), format!("{key:?}").as_str()), (text.as_str(), "TlsKey(..)"));
            let ask: TlsPut = serde_json::from_str(&format!("{{\"key\":\"{text}\"}}")).unwrap();
            assert!(!ask.compat && !format!("{ask:?}").contains(&text));
        }
    }

    #[test]
    fn what_is_no_key_is_refused_and_not_repeated() {
        let good = text("01", &bytes(32));
        for wrong in [
            String::new(),
            "NVMeTLSkey-1:01::".into(),
            "NVMeTLSkey-1:01:!!!!:".into(),
            format!("{good}x"),
            good.trim_end_matches(':').into(),
            good.replace("key-1", "key-2"),
            good.replace(":01:", ":03:"),
            good.replace(":01:", ":02:"),
            good.replace("NVMeTLSkey-1", "DHHC-1"),
            text("01", &bytes(31)),
            text("02", &bytes(32)),
            text("00", &bytes(64)),
            text("01", &[7; 32]),
            good.replace("AQID", "AQIE"),
            "A".repeat(100_000),
        ] {
            let error = wrong.parse::<TlsKey>().unwrap_err().to_string();
            assert!(wrong.len() < 12 || !error.contains(&wrong), "{error}");
        }
        assert!(serde_json::from_str::<TlsPut>(&format!("{{\"key\":\"{good}\",\"x\":1}}")).is_err());
    }
}
