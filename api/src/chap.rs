//! CHAP (RFC 7143, 12.1.3): the secrets of iSCSI hosts.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::name::ParseError;
use crate::secret::SecretText;

/// A CHAP secret: 12 to 16 characters of printable ASCII without blanks. Fewer can be guessed from what is heard on the
/// network; more are not taken by all initiators and targets (Windows, FreeBSD).
///
/// It is shown nowhere but where it is meant to go: formatting it for people gives `ChapSecret(..)`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = String, min_length = 12, max_length = 16))]
pub struct ChapSecret(SecretText);

impl ChapSecret {
    /// Its text.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }
}

impl fmt::Debug for ChapSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChapSecret(..)")
    }
}

impl FromStr for ChapSecret {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        // What was given is not repeated: an error is shown and logged.
        let wrong = |reason| Err(ParseError::new("CHAP secret", "(not shown)", reason));
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return wrong("has a character that is not printable ASCII, or a blank");
        }
        if text.len() < 12 {
            return wrong("has fewer than 12 characters");
        }
        if text.len() > 16 {
            return wrong("has more than 16 characters");
        }
        // open-iscsi and LIO would take it for binary.
        if text.starts_with("0x") || text.starts_with("0X") {
            return wrong("must not start with 0x");
        }
        // What LIO takes for none.
        if text.starts_with("NULL") {
            return wrong("must not start with NULL");
        }
        Ok(Self(SecretText::new(text)))
    }
}

impl TryFrom<String> for ChapSecret {
    type Error = ParseError;
    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl From<ChapSecret> for String {
    fn from(secret: ChapSecret) -> Self {
        secret.expose().to_string()
    }
}

/// A name and the secret that proves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ChapCredentials {
    /// The name: 1 to 223 of `A-Z a-z 0-9 . _ : -`.
    pub user: ChapUser,
    /// The secret.
    pub secret: ChapSecret,
}

crate::name::name_type!(
    /// The name in a CHAP exchange: 1 to 223 of `A-Z a-z 0-9 . _ : -`, starting with a letter or digit, without `..`.
    /// An iSCSI name is one.
    ChapUser, "CHAP user", |s| match s.starts_with("NULL") {
        // What LIO takes for none.
        true => Err("must not start with NULL"),
        false => crate::name::plain_name(s, 223, b"._:-"),
    }
);

/// `PUT /v1/hosts/{host}/chap`: what a host must prove that it knows before it is let in by iSCSI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ChapPut {
    /// The host's, which it proves to have.
    pub host: ChapCredentials,
    /// The appliance's, which it proves to have to a host that asks (mutual CHAP). Another secret than the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<ChapCredentials>,
}

/// How a host is authenticated by CHAP. Its secrets are not shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Chap {
    /// The host is let in when it has proved that it knows its secret.
    Required {
        /// The name that it goes by.
        user: ChapUser,
        /// The name that the appliance goes by, if it has a secret to prove itself with.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target_user: Option<ChapUser>,
    },
    /// Its secrets were lost with the journal: it is not let in until they are given again.
    Lost,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn secrets_have_a_length_and_are_not_shown() {
        for good in ["abcdefghijkl", "ABCDefgh1234!?#&"] {
            let secret: ChapSecret = good.parse().unwrap();
            assert_eq!((secret.expose(), format!("{secret:?}").as_str()), (good, "ChapSecret(..)"));
        }
        let long = "x".repeat(300);
        for bad in [
            "",
            "abcdefghijk",
            "ABCDefgh1234!?#&x",
            &long,
            "abc defghijkl",
            "abcdefghijk\n",
            "0x0123456789ab",
            "NULL12345678",
            "äöüäöüäöü",
        ] {
            let error = bad.parse::<ChapSecret>().unwrap_err().to_string();
            assert!(bad.len() < 4 || !error.contains(bad), "{error}");
        }
    }

    #[test]
    fn what_is_asked_is_whole() {
        let ask: ChapPut = serde_json::from_str(
            r#"{"host":{"user":"iqn.1993-08.org.debian:01:a","secret":"abcdefghijkl"}}"#,
        )
        .unwrap();
        assert!(ask.target.is_none() && !format!("{ask:?}").contains("abcdefghijkl"));
        for bad in [r#"{}"#, r#"{"host":{"user":"a"}}"#, r#"{"host":{"user":"a b","secret":"abcdefghijkl"}}"#]
        {
            assert!(serde_json::from_str::<ChapPut>(bad).is_err());
        }
    }
}
