//! Tokens: kept as hashes. A token is 32 random bytes, so a plain hash is as good as a slow one.

use ring::digest::{SHA256, digest};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::action::{Principal, Role};
use super::core::Core;
use super::error::{Error, Result};
use crate::journal::{Batch, Table};

/// A token that is shorter could be guessed.
const SHORTEST: usize = 32;

/// A token as the journal keeps it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct TokenRecord {
    v: u32,
    sha256: [u8; 32],
}

fn hash(token: &str) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    out
}

fn checked(token: &SecretString) -> Result<[u8; 32]> {
    let token = token.expose_secret();
    if token.len() < SHORTEST || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Error::Invalid {
            field: "token",
            reason: format!("must be at least {SHORTEST} printable ASCII characters"),
        });
    }
    Ok(hash(token))
}

impl Core {
    pub(super) fn load_tokens(&self, tokens: Vec<(String, TokenRecord)>) {
        for (name, record) in tokens {
            self.remember_token(&name, record.sha256);
        }
    }

    fn remember_token(&self, name: &str, sha256: [u8; 32]) {
        let principal =
            Principal { name: format!("token:{name}"), tenant: super::default_tenant(), role: Role::Admin };
        let mut tokens = self.tokens.write();
        if let Some(old) = self.token_names.write().insert(name.to_string(), sha256) {
            tokens.remove(&old);
        }
        tokens.insert(sha256, principal);
    }

    /// Who a token belongs to. Looked up by its hash, so the time it takes tells nothing of the token.
    pub(super) fn authenticate(&self, token: &str) -> Option<Principal> {
        self.tokens.read().get(&hash(token)).cloned()
    }

    pub(super) fn has_token(&self, name: &str) -> bool {
        self.token_names.read().contains_key(name)
    }

    pub(super) fn trust_token(&self, name: &str, token: &SecretString) -> Result<()> {
        self.remember_token(name, checked(token)?);
        Ok(())
    }

    pub(super) async fn put_token(&self, name: &str, token: &SecretString) -> Result<()> {
        let sha256 = checked(token)?;
        let mut batch = Batch::default();
        batch.put(Table::Tokens, name, &TokenRecord { v: 1, sha256 });
        self.journal.commit(batch).await?;
        self.remember_token(name, sha256);
        Ok(())
    }
}
