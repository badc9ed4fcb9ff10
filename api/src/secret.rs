//! Texts that are shown to nobody.

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
