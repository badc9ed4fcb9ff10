//! The first administrator's token: handed over as a systemd credential, or made at the first start.
//!
//! Called by `main` before the API is served. Never logs a token, and never shows one twice.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};

use crate::engine::{self, Engine, FIRST, new_token};

/// What a token that is handed over must have at least: 32 characters of base64url are 192 bits.
const SHORTEST: usize = 32;

/// Why there is no first token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// A file could not be read or written.
    #[error("{}: cannot be read or written", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The credential is not fit to be a token.
    #[error(
        "the credential orlop.token must be {SHORTEST} to 4096 printable ASCII characters without spaces"
    )]
    Unfit,
    /// The kernel gave no random numbers.
    #[error("no random numbers")]
    Random(#[source] std::io::Error),
    /// The journal could not keep it.
    #[error("the first token could not be kept")]
    Keep(#[from] engine::Error),
}

/// Makes sure that there is a first token. A credential is used as it is, and replaces what was there,
/// so that an owner who lost the token can hand over another one. Otherwise, if there is none, one is
/// made and written to `state_dir/admin.token`, and returned to be shown.
pub async fn ensure_first(
    engine: &Engine,
    state_dir: &Path,
    credential: Option<&Path>,
) -> Result<Option<SecretString>, TokenError> {
    if let Some(path) = credential {
        match std::fs::read_to_string(path) {
            Ok(text) => {
                let token = fit(text.trim_end_matches(['\n', '\r']))?;
                keep(engine, &token).await?;
                return Ok(None);
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(TokenError::File { path: path.into(), source }),
        }
    }
    if engine.has_token(FIRST) {
        return Ok(None);
    }
    if let Some(why) = engine.refusal() {
        // The one that there is may be good again when the journal can be read.
        tracing::warn!(why, "no token is made: only the unix socket lets anybody in");
        return Ok(None);
    }
    let token = new_token().map_err(TokenError::Random)?;
    // The file first: a token that the journal knows and nobody else does would lock everyone out.
    let path = state_dir.join("admin.token");
    if let Err(error) = write(&path, &token) {
        tracing::error!(%error, file = %path.display(), "no token is made: only the unix socket lets anybody in");
        return Ok(None);
    }
    keep(engine, &token).await?;
    tracing::info!(file = %path.display(), "made the first administrator's token");
    Ok(Some(token))
}

/// A journal that fails just now is no reason not to start: the token is in its file, or comes again.
async fn keep(engine: &Engine, token: &SecretString) -> Result<(), TokenError> {
    match engine.put_token(FIRST, token).await {
        Err(engine::Error::Journal(e)) if e.is_final() => Ok(engine.trust_token(FIRST, token)?),
        kept => Ok(kept?),
    }
}

/// Shows a new token on the console, once. Failing to is no reason not to start: it is in its file.
pub fn show(token: &SecretString, console: &Path, state_dir: &Path) {
    let text = format!(
        "\r\nOrlop: the administrator's token, shown this once and kept in {}/admin.token:\r\n\r\n    {}\r\n\r\n",
        state_dir.display(),
        token.expose_secret()
    );
    let shown = std::fs::OpenOptions::new()
        .write(true)
        .custom_flags(libc_flags())
        .open(console)
        .and_then(|mut c| c.write_all(text.as_bytes()));
    if let Err(error) = shown {
        tracing::info!(%error, console = %console.display(), "the token is not shown: see its file");
    }
}

/// Neither make the console our controlling terminal, nor wait for a serial line that nobody reads.
fn libc_flags() -> i32 {
    let flags = rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::NONBLOCK;
    i32::try_from(flags.bits()).unwrap_or(0)
}

fn fit(text: &str) -> Result<SecretString, TokenError> {
    let length = (SHORTEST..=4096).contains(&text.len());
    if length && text.bytes().all(|b| b.is_ascii_graphic()) {
        Ok(text.into())
    } else {
        Err(TokenError::Unfit)
    }
}

fn write(path: &Path, token: &SecretString) -> std::io::Result<()> {
    let beside = path.with_extension("new");
    match std::fs::remove_file(&beside) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    writeln!(file, "{}", token.expose_secret())?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn tokens_are_long_and_plain() {
        assert_eq!(new_token().unwrap().expose_secret().len(), 43);
        assert_ne!(new_token().unwrap().expose_secret(), new_token().unwrap().expose_secret());
        assert!(fit(&"x".repeat(32)).is_ok());
        for bad in ["", "short", &"x".repeat(31), &format!("{} y", "x".repeat(40)), &"é".repeat(32)] {
            assert!(fit(bad).is_err(), "{bad}");
        }
    }
}
