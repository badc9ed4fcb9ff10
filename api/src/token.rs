//! Tokens: who may call over the network, and what it may do.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::name::{ParseError, name_type, plain_name};
use crate::secret::SecretText;
use crate::{PoolName, Tenant};

name_type!(
    /// A token as its owner calls it; what it does is audited under this name.
    /// 1 to 63 of `A-Z a-z 0-9 . _ -`, starting with a letter or digit, without `..`.
    TokenName, "token name", |s| plain_name(s, 63, b"._-")
);

/// Declares what a token may be given, in the words of the audit log.
macro_rules! verbs {
    ($($(#[$doc:meta])* $verb:ident = $text:literal,)*) => {
        /// A change that a token can be allowed. What is not here is the administrator's alone: pools, disks, zones,
        /// backups, the configuration, what nobody claims, and tokens.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        pub enum Verb {
            $($(#[$doc])* $verb,)*
        }

        impl Verb {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$verb),*];

            /// As it is written.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$verb => $text,)*
                }
            }
        }
    };
}

verbs! {
    /// Make volumes, also of snapshots and other volumes.
    CreateVolume = "create_volume",
    /// Make volumes larger, and change their properties.
    UpdateVolume = "update_volume",
    /// Delete volumes that no host is attached to.
    DeleteVolume = "delete_volume",
    /// Bring the keys of encrypted volumes.
    UnlockVolume = "unlock_volume",
    /// See the keys of encrypted volumes.
    ShowKey = "show_key",
    /// Take snapshots.
    CreateSnapshot = "create_snapshot",
    /// Take snapshots of several volumes at one instant.
    CreateSnapshotGroup = "create_snapshot_group",
    /// Delete snapshots.
    DeleteSnapshot = "delete_snapshot",
    /// Make hosts, and change what they are known by.
    PutHost = "put_host",
    /// Have hosts prove a secret by NVMe.
    AuthenticateHost = "authenticate_host",
    /// Let hosts in by NVMe without a proof again.
    TrustHost = "trust_host",
    /// Have hosts prove a secret by iSCSI, or nothing any more.
    ChapHost = "chap_host",
    /// Have hosts come by TLS, or not any more.
    TlsHost = "tls_host",
    /// Forget hosts that no volume is attached to.
    DeleteHost = "delete_host",
    /// Let hosts use volumes.
    Attach = "attach",
    /// Cut hosts off from volumes.
    Detach = "detach",
}

impl Verb {
    /// What the driver of Kubernetes needs.
    pub const CSI: &'static [Self] = &[
        Self::CreateVolume,
        Self::UpdateVolume,
        Self::DeleteVolume,
        Self::CreateSnapshot,
        Self::CreateSnapshotGroup,
        Self::DeleteSnapshot,
        Self::PutHost,
        Self::Attach,
        Self::Detach,
    ];
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Verb {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let found = Self::ALL.iter().find(|verb| verb.as_str() == text).copied();
        found.ok_or_else(|| ParseError::new("verb", text, "is not one that a token can be given"))
    }
}

/// What a token may do.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TokenPut {
    /// Whose volumes, snapshots and hosts it sees, makes and changes. `default` is whose everything is that the
    /// administrator makes.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(default = "default"))]
    pub tenant: Tenant,
    /// In which pools, one at least; in all unless given.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "some")]
    #[cfg_attr(feature = "openapi", schema(min_items = 1))]
    pub pools: Vec<PoolName>,
    /// What it may change there. None: it may look.
    #[serde(default)]
    pub verbs: Vec<Verb>,
    /// Who comes by it shows no secret but has the key of this certificate (mutual TLS). Not shown again: its fingerprint is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<ClientCertificate>,
}

/// A client's certificate, in PEM. It is believed because it is known, whoever made it and until whenever: its issuer and its end
/// do not count.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = String))]
pub struct ClientCertificate(String);

impl ClientCertificate {
    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ClientCertificate {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let text = text.trim();
        let has_one = text.starts_with("-----BEGIN CERTIFICATE-----")
            && text.ends_with("-----END CERTIFICATE-----")
            && text.matches("-----BEGIN ").count() == 1;
        match has_one && text.len() <= 16 << 10 {
            true => Ok(Self(text.to_owned())),
            // A file with a key in it would be shown here.
            false => Err(ParseError::new(
                "certificate",
                "(not shown)",
                "must be one certificate in PEM, and nothing else",
            )),
        }
    }
}

impl TryFrom<String> for ClientCertificate {
    type Error = ParseError;
    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl From<ClientCertificate> for String {
    fn from(certificate: ClientCertificate) -> Self {
        certificate.0
    }
}

/// None would mean all: who takes away the last one means something else.
fn some<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<PoolName>, D::Error> {
    let pools = Vec::deserialize(from)?;
    match pools.is_empty() {
        true => Err(serde::de::Error::custom("must have one at least, or be left out for all")),
        false => Ok(pools),
    }
}

/// A token as it is shown: never itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Token {
    /// Its name.
    pub name: TokenName,
    /// What it may do. None: everything, as the administrator's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<TokenPut>,
    /// Of the certificate that it is, if it is no secret: SHA-256, as `openssl x509 -fingerprint -sha256` shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// When it was made. None: before this was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
    pub created: Option<Timestamp>,
}

/// What a token that was just made is, or what one that was there may do now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MadeToken {
    /// As it is shown from now on.
    pub token: Token,
    /// Itself, this once: the appliance keeps a hash of it. Nothing if the token was there already, or is a certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<TokenSecret>,
}

/// A token itself. It is shown nowhere but where it is meant to go: formatting it for people gives `TokenSecret(..)`, and
/// its memory is cleared when it goes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = String))]
pub struct TokenSecret(SecretText);

impl TokenSecret {
    /// As it is sent in `Authorization: Bearer`.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }
}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret(..)")
    }
}

impl FromStr for TokenSecret {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        // What was given is not repeated: an error is shown and logged.
        if (32..=4096).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()) {
            Ok(Self(SecretText::new(text)))
        } else {
            Err(ParseError::new(
                "token",
                "(not shown)",
                "must be 32 to 4096 printable ASCII characters without spaces",
            ))
        }
    }
}

impl TryFrom<String> for TokenSecret {
    type Error = ParseError;
    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl From<TokenSecret> for String {
    fn from(secret: TokenSecret) -> Self {
        secret.expose().to_string()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn verbs_are_written_as_they_are_audited() {
        for verb in Verb::ALL {
            assert_eq!(serde_json::to_value(verb).unwrap(), verb.as_str());
            assert_eq!(verb.as_str().parse::<Verb>().unwrap(), *verb);
        }
        assert!("create_pool".parse::<Verb>().is_err() && "".parse::<Verb>().is_err());
    }

    #[test]
    fn a_scope_says_what_it_does_not_know() {
        let all: TokenPut = serde_json::from_str("{}").unwrap();
        assert!(all.tenant == Tenant::default() && all.pools.is_empty() && all.verbs.is_empty());
        for bad in [
            r#"{"verb":[]}"#,
            r#"{"pools":[]}"#,
            r#"{"verbs":["create_pool"]}"#,
            r#"{"pools":["A"]}"#,
            r#"{"tenant":""}"#,
        ] {
            assert!(serde_json::from_str::<TokenPut>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_certificate_is_one_and_has_no_key_with_it() {
        let one = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
        assert_eq!(one.parse::<ClientCertificate>().unwrap().as_str(), one.trim());
        let key = "-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----\n";
        for bad in ["", "x", &format!("{one}{one}"), &format!("{one}{key}{one}"), &format!("{key}{one}")] {
            let error = bad.parse::<ClientCertificate>().unwrap_err();
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_secret_is_shown_to_nobody() {
        let text = "0123456789abcdefghijklmnopqrstuvwxyz";
        let made = MadeToken {
            token: Token { name: "x".parse().unwrap(), scope: None, fingerprint: None, created: None },
            secret: Some(text.parse().unwrap()),
        };
        assert!(!format!("{made:?}").contains("0123"));
        let error = "0123 456789abcdefghijklmnopqrstuvwxyz".parse::<TokenSecret>().unwrap_err();
        assert!(!error.to_string().contains("0123"));
    }
}
