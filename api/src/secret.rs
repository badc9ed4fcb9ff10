//! Texts that are shown to nobody.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::name::ParseError;

/// A text whose memory is cleared when it is no longer needed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SecretText(String);

impl SecretText {
    pub(crate) fn new(text: &str) -> Self {
        Self(text.to_string())
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl Drop for SecretText {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.0).into_bytes();
        bytes.fill(0);
        // So that clearing what nobody reads again is not left out.
        std::hint::black_box(&bytes);
    }
}

/// How NVMe writes a secret for people to carry: `PREFIX:HASH:<base64>:`, followed by its CRC-32.
pub(crate) struct Interchange {
    /// What it is, in messages.
    pub what: &'static str,
    pub prefix: &'static str,
    /// Why something is none.
    pub form: &'static str,
    /// The hashes, and how many bytes a secret may have with each.
    pub lengths: &'static [(&'static str, &'static [usize])],
    /// Why something has no hash of these.
    pub hashes: &'static str,
}

impl Interchange {
    /// What was given is not repeated in an error: that is shown and logged.
    pub(crate) fn read(&self, text: &str) -> Result<SecretText, ParseError> {
        let wrong = |reason| Err(ParseError::new(self.what, "(not shown)", reason));
        let mut parts = text.split(':');
        let (Some(prefix), Some(hash), Some(secret), Some(""), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return wrong(self.form);
        };
        if prefix != self.prefix {
            return wrong(self.form);
        }
        let Some((_, lengths)) = self.lengths.iter().find(|(name, _)| *name == hash) else {
            return wrong(self.hashes);
        };
        let Ok(bytes) = STANDARD.decode(secret) else { return wrong("is not base64") };
        let Some((secret, crc)) = bytes.split_last_chunk::<4>() else { return wrong("is too short") };
        if !lengths.contains(&secret.len()) {
            return wrong("does not have as many bytes as its hash");
        }
        if crc32fast::hash(secret) != u32::from_le_bytes(*crc) {
            return wrong("has a wrong checksum: it was not copied whole");
        }
        if secret.iter().all(|b| *b == secret[0]) {
            return wrong("must not be one byte repeated");
        }
        Ok(SecretText::new(text))
    }
}
