//! Tokens: kept as hashes. A token is 32 random bytes, so a plain hash is as good as a slow one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use orlop_api::{ClientCertificate, MadeToken, PoolName, Tenant, Token, TokenName, TokenPut, TokenSecret};
use ring::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::action::{Outcome, Principal, Role};
use super::core::Core;
use super::error::{Error, Result};
use super::locks::{Key, Mode};
use crate::fingerprint::Fingerprint;
use crate::journal::{Batch, Table};

/// A token that is shorter could be guessed.
const SHORTEST: usize = 32;

/// What the first token is called. It is brought at every start, or made at the first, and is the administrator's.
pub const FIRST: &str = "admin";

type Hash = [u8; 32];

/// A token as the journal keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TokenRecord {
    v: u32,
    /// Of an administrator's. For others it is zeros, which is the hash of nothing that anybody knows: an older daemon,
    /// which knows of no others, lets nobody in by it.
    sha256: Hash,
    /// Of one that may do less, and of one that lets nobody in any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limited: Option<Limited>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Limited {
    Scoped {
        sha256: Hash,
        scope: ScopeRecord,
        created: Timestamp,
        /// Of what the hash is.
        #[serde(default, skip_serializing_if = "By::is_secret")]
        by: By,
    },
    /// Remembered, so that a backup does not bring it back.
    Revoked,
}

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum By {
    /// A text that nobody else knows.
    #[default]
    Secret,
    /// A certificate whose key nobody else has.
    Certificate,
}

impl By {
    fn is_secret(&self) -> bool {
        *self == Self::Secret
    }
}

/// By what somebody comes. A certificate is no secret: its hash and that of a text are never taken for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Proof {
    Secret(Hash),
    Certificate(Hash),
}

/// What a token may do, as the journal keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ScopeRecord {
    tenant: Tenant,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pools: Vec<PoolName>,
    /// What a newer daemon has given, and this one does not know, it may not do.
    verbs: Vec<String>,
    /// How a newer daemon has narrowed it. This one can't, and lets nobody in by it.
    #[serde(flatten)]
    more: BTreeMap<String, serde_json::Value>,
}

impl From<TokenPut> for ScopeRecord {
    fn from(scope: TokenPut) -> Self {
        let verbs = scope.verbs.iter().map(ToString::to_string).collect();
        Self { tenant: scope.tenant, pools: scope.pools, verbs, more: BTreeMap::new() }
    }
}

impl ScopeRecord {
    fn scope(&self) -> TokenPut {
        let verbs = self.verbs.iter().filter_map(|verb| verb.parse().ok()).collect();
        TokenPut { tenant: self.tenant.clone(), pools: self.pools.clone(), verbs, certificate: None }
    }
}

/// Who is let in.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    records: BTreeMap<String, TokenRecord>,
    principals: HashMap<Proof, Principal>,
}

impl TokenRecord {
    fn admin(sha256: Hash) -> Self {
        Self { v: 1, sha256, limited: None }
    }

    fn limited(limited: Limited) -> Self {
        Self { v: 2, sha256: [0; 32], limited: Some(limited) }
    }

    /// Who comes by it, and what he brings.
    fn principal(&self, name: &str) -> Option<(Proof, Principal)> {
        let name = format!("token:{name}");
        match &self.limited {
            // What an older daemon has left of one that may do less.
            None if self.sha256 == [0; 32] => None,
            None => Some((Proof::Secret(self.sha256), Principal::admin(name))),
            Some(Limited::Scoped { sha256, scope, by, .. }) if scope.more.is_empty() => {
                let (tenant, role) = (scope.tenant.clone(), Role::Scoped(Arc::new(scope.scope())));
                let proof = match by {
                    By::Secret => Proof::Secret(*sha256),
                    By::Certificate => Proof::Certificate(*sha256),
                };
                Some((proof, Principal { name, tenant, role }))
            }
            Some(Limited::Scoped { .. } | Limited::Revoked) => None,
        }
    }

    /// As it is shown, if it lets anybody in.
    fn shown(&self, name: &str) -> Option<Token> {
        self.principal(name)?;
        let name = name.parse().ok()?;
        Some(match &self.limited {
            Some(Limited::Scoped { scope, created, sha256, by }) => {
                let fingerprint = (*by == By::Certificate).then(|| Fingerprint(*sha256).to_string());
                Token { name, scope: Some(scope.scope()), fingerprint, created: Some(*created) }
            }
            _ => Token { name, scope: None, fingerprint: None, created: None },
        })
    }
}

impl Tokens {
    fn put(&mut self, name: &str, record: TokenRecord) {
        self.extend([(name.to_owned(), record)]);
    }

    fn extend(&mut self, more: impl IntoIterator<Item = (String, TokenRecord)>) {
        self.records.extend(more);
        self.principals.clear();
        let mut twice = Vec::new();
        for (name, record) in &self.records {
            let Some((proof, principal)) = record.principal(name) else { continue };
            if self.principals.insert(proof, principal).is_some() {
                twice.push(proof);
            }
        }
        // Who comes by what is two tokens' could be either. A restore can bring that about.
        for proof in twice {
            if let Some(principal) = self.principals.remove(&proof) {
                tracing::warn!(
                    token = principal.name,
                    "its certificate is another token's too: it lets nobody in"
                );
            }
        }
    }

    /// The token whose certificate is that of another one, or would be.
    fn shared(&self, name: &str, proof: Proof) -> Option<&str> {
        let mut others = self.records.iter().filter(|(other, _)| *other != name);
        let has_it = |(other, record): &(&String, &TokenRecord)| {
            record.principal(other).is_some_and(|(theirs, _)| theirs == proof)
        };
        others.find(has_it).map(|(other, _)| other.as_str())
    }
}

fn hash(token: &str) -> Hash {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    out
}

fn checked(token: &SecretString) -> Result<Hash> {
    let token = token.expose_secret();
    if token.len() < SHORTEST || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Error::Invalid {
            field: "token",
            reason: format!("must be at least {SHORTEST} printable ASCII characters"),
        });
    }
    Ok(hash(token))
}

/// 32 random bytes as base64url.
pub fn new_token() -> std::io::Result<SecretString> {
    let mut bytes = [0u8; 32];
    crate::kernel::random(&mut bytes)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes).into())
}

impl Core {
    pub(super) fn load_tokens(&self, tokens: Vec<(String, TokenRecord)>) {
        self.tokens.write().extend(tokens);
    }

    /// Which token has the certificate that a token to be restored has, under another name.
    pub(super) fn shares_certificate(&self, name: &str, record: &TokenRecord) -> Option<String> {
        let (proof, _) = record.principal(name)?;
        self.tokens.read().shared(name, proof).map(str::to_owned)
    }

    /// Who a token belongs to. Looked up by its hash, so the time it takes tells nothing of the token.
    pub(super) fn authenticate(&self, token: &str) -> Option<Principal> {
        self.tokens.read().principals.get(&Proof::Secret(hash(token))).cloned()
    }

    /// Who a certificate belongs to. That he has its key was proved before.
    pub(super) fn authenticate_certificate(&self, Fingerprint(sha256): Fingerprint) -> Option<Principal> {
        self.tokens.read().principals.get(&Proof::Certificate(sha256)).cloned()
    }

    /// Whether a name is a token's, also one's that lets nobody in any more.
    pub(super) fn has_token(&self, name: &str) -> bool {
        self.tokens.read().records.contains_key(name)
    }

    pub(super) fn shown_tokens(&self) -> Vec<Token> {
        self.tokens.read().records.iter().filter_map(|(name, record)| record.shown(name)).collect()
    }

    pub(super) fn trust_token(&self, name: &str, token: &SecretString) -> Result<()> {
        self.tokens.write().put(name, TokenRecord::admin(checked(token)?));
        Ok(())
    }

    /// Makes or replaces an administrator's.
    pub(super) async fn put_token(&self, name: &str, token: &SecretString) -> Result<()> {
        self.keep_token(name, TokenRecord::admin(checked(token)?)).await
    }

    async fn keep_token(&self, name: &str, record: TokenRecord) -> Result<()> {
        let mut batch = Batch::default();
        batch.put(Table::Tokens, name, &record);
        self.journal.commit(batch).await?;
        self.tokens.write().put(name, record);
        Ok(())
    }

    /// Makes one that may do less, or changes what it may do: it stays the same token then.
    pub(super) async fn put_scoped_token(
        self: &Arc<Self>,
        name: TokenName,
        mut scope: TokenPut,
        until: Instant,
    ) -> Result<Outcome> {
        not_the_first(&name)?;
        scope.pools.sort();
        scope.pools.dedup();
        scope.verbs.sort();
        scope.verbs.dedup();
        let certificate = scope.certificate.take().map(|pem| fingerprint(&pem)).transpose()?;
        let mut keys = vec![(Key::Token(name.clone()), Mode::Exclusive)];
        // One must not become two tokens'.
        keys.extend(certificate.map(|_| (Key::Certificates, Mode::Exclusive)));
        let _guards = self.locks.acquire(keys, until).await?;
        // One that is misspelt would be found out when it is too late.
        if let Some(pool) = scope.pools.iter().find(|pool| self.view.read().pool_entry(pool).is_none()) {
            return Err(Error::NotFound(format!("pool {pool}")));
        }
        let old = self.tokens.read().records.get(name.as_str()).and_then(|record| record.limited.clone());
        let differs = |field, have: &str, want: &str| {
            let want = format!("{want}: delete it, and make another");
            Error::Conflict { object: format!("token {name}"), field, have: have.into(), want }
        };
        let (secret, by, sha256, created) = match old {
            Some(Limited::Scoped { sha256, scope: had, created, by }) if had.more.is_empty() => {
                if had.tenant != scope.tenant {
                    return Err(differs("tenant", had.tenant.as_str(), scope.tenant.as_str()));
                }
                match (by, certificate) {
                    // It stays what it is, and may do something else.
                    (by, None) => (None, by, sha256, created),
                    // Another certificate takes the place of the one before.
                    (By::Certificate, Some(new)) => (None, By::Certificate, new, created),
                    (By::Secret, Some(_)) => return Err(differs("certificate", "a secret", "a certificate")),
                }
            }
            _ => match certificate {
                Some(certificate) => (None, By::Certificate, certificate, Timestamp::now()),
                None => {
                    let secret = new_token()?;
                    let sha256 = checked(&secret)?;
                    (Some(secret), By::Secret, sha256, Timestamp::now())
                }
            },
        };
        if let Some(new) = certificate
            && let Some(other) = self.tokens.read().shared(name.as_str(), Proof::Certificate(new))
        {
            return Err(Error::Conflict {
                object: format!("token {name}"),
                field: "certificate",
                have: format!("that of token {other}"),
                want: "one of its own".into(),
            });
        }
        let record = TokenRecord::limited(Limited::Scoped { sha256, scope: scope.into(), created, by });
        let token = record.shown(name.as_str()).ok_or_else(|| Error::NotFound(format!("token {name}")))?;
        self.keep_token(name.as_str(), record).await?;
        let secret = secret.map(|s| s.expose_secret().parse::<TokenSecret>());
        let secret =
            secret.transpose().map_err(|e| Error::Invalid { field: "token", reason: e.to_string() })?;
        Ok(Outcome::Token(MadeToken { token, secret }))
    }

    /// Who comes by it is refused from now on; what he was answered stays.
    pub(super) async fn delete_token(self: &Arc<Self>, name: &TokenName, until: Instant) -> Result<Outcome> {
        not_the_first(name)?;
        let _guards = self.locks.acquire(vec![(Key::Token(name.clone()), Mode::Exclusive)], until).await?;
        let lets_in = |r: &TokenRecord| r.shown(name.as_str()).is_some();
        if !self.tokens.read().records.get(name.as_str()).is_some_and(lets_in) {
            return Err(Error::NotFound(format!("token {name}")));
        }
        self.keep_token(name.as_str(), TokenRecord::limited(Limited::Revoked)).await?;
        Ok(Outcome::Gone)
    }
}

/// One that may do less.
#[cfg(test)]
pub(super) fn tests_record() -> TokenRecord {
    let scope =
        TokenPut { tenant: Default::default(), pools: Vec::new(), verbs: Vec::new(), certificate: None };
    let created = Timestamp::now();
    TokenRecord::limited(Limited::Scoped { sha256: [7; 32], scope: scope.into(), created, by: By::Secret })
}

/// What tells a certificate from all others.
fn fingerprint(pem: &ClientCertificate) -> Result<Hash> {
    let wrong = |e: &dyn std::fmt::Display| Error::Invalid { field: "certificate", reason: e.to_string() };
    let der = CertificateDer::from_pem_slice(pem.as_str().as_bytes()).map_err(|e| wrong(&e))?;
    // Who shows it in a handshake shows one that can be read.
    rustls::server::ParsedCertificate::try_from(&der).map_err(|e| wrong(&e))?;
    Ok(Fingerprint::of(&der).0)
}

fn not_the_first(name: &TokenName) -> Result<()> {
    if name.as_str() != FIRST {
        return Ok(());
    }
    let reason = format!(
        "{FIRST} is the administrator's, and is changed where it comes from: the credential orlop.token, or the appliance's \
         first start"
    );
    Err(Error::Invalid { field: "token", reason })
}
