//! Pre-shared keys of TLS: what a host and a volume's subsystem derive from the host's key, and the keyring in which the
//! kernel looks for it when a host connects to a portal with TLS (NVMe TCP transport specification, 3.6.1).
//!
//! There is a key for each host and subsystem, so who has been cut off from a volume has none for it any more. But the
//! kernel asks of a connection only that it was made with *some* key of the ring, and not that it is the key of the host
//! that it then says to be. A host with a key of its own is kept from being another by DH-HMAC-CHAP alone.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use orlop_api::{Nqn, TlsPut, VolumeId};
use ring::{hkdf, hmac};

use super::state::Observed;
use super::{Nvmet, NvmetConfig};
use crate::kernel::Deadline;
use crate::kernel::keyring::KernelKeyring;
use crate::model::Audience;
use crate::target::tree::{self, in_words};
use crate::target::{Desired, Result, Scope, TargetError};

/// The name of the kernel's keyring.
pub const KEYRING: &str = ".nvme";

/// Where the kernel looks for keys. Its own keyring is the one real implementor; [`SimKeyring`] behaves like it.
pub trait TlsKeyring: Send + Sync {
    /// A key, if it is there. `NotFound`: the kernel has no such keyring.
    fn get(&self, identity: &str) -> io::Result<Option<Vec<u8>>>;
    /// Adds a key, or replaces one.
    fn put(&self, identity: &str, key: &[u8]) -> io::Result<()>;
    /// Takes a key away, if it is there.
    fn remove(&self, identity: &str) -> io::Result<()>;
    /// All that are there.
    fn identities(&self) -> io::Result<Vec<String>>;
}

impl TlsKeyring for KernelKeyring {
    fn get(&self, identity: &str) -> io::Result<Option<Vec<u8>>> {
        Self::get(self, identity)
    }
    fn put(&self, identity: &str, key: &[u8]) -> io::Result<()> {
        Self::put(self, identity, key)
    }
    fn remove(&self, identity: &str) -> io::Result<()> {
        Self::remove(self, identity)
    }
    fn identities(&self) -> io::Result<Vec<String>> {
        Self::identities(self)
    }
}

/// Keys in memory.
#[derive(Debug, Default)]
pub struct SimKeyring(parking_lot::Mutex<BTreeMap<String, Vec<u8>>>);

impl TlsKeyring for SimKeyring {
    fn get(&self, identity: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.lock().get(identity).cloned())
    }
    fn put(&self, identity: &str, key: &[u8]) -> io::Result<()> {
        self.0.lock().insert(identity.into(), key.to_vec());
        Ok(())
    }
    fn remove(&self, identity: &str) -> io::Result<()> {
        self.0.lock().remove(identity);
        Ok(())
    }
    fn identities(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().keys().cloned().collect())
    }
}

/// How HKDF's label is put together: as RFC 8446 has it, or as libnvme did before 1.16.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expansion {
    Rfc8446,
    Compat,
}

/// What is in a [`orlop_api::TlsKey`].
struct Configured {
    secret: Vec<u8>,
    /// By which hash it is retained, if by any.
    retained_by: Option<hkdf::Algorithm>,
    /// As the identity has it: 1 is SHA-256, 2 is SHA-384.
    hash: u8,
}

impl Configured {
    fn of(put: &TlsPut) -> Option<Self> {
        let mut parts = put.key.expose().split(':').skip(1);
        let (retained, secret) = (parts.next()?, STANDARD.decode(parts.next()?).ok()?);
        let secret = secret.split_last_chunk::<4>()?.0.to_vec();
        let hash = if secret.len() == 32 { 1 } else { 2 };
        Some(Self { secret, retained_by: (retained != "00").then(|| algorithm(hash)), hash })
    }
}

fn algorithm(hash: u8) -> hkdf::Algorithm {
    if hash == 1 { hkdf::HKDF_SHA256 } else { hkdf::HKDF_SHA384 }
}

/// HKDF-Extract without salt and HKDF-Expand-Label. `None` where the label has no room for the context.
fn derive(
    algorithm: hkdf::Algorithm,
    expansion: Expansion,
    key: &[u8],
    label: &str,
    context: &[u8],
) -> Option<Vec<u8>> {
    struct Length(usize);
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    let length = u16::try_from(key.len()).ok()?;
    let mut info = Vec::new();
    match expansion {
        Expansion::Rfc8446 => {
            info.extend(length.to_be_bytes());
            info.push(u8::try_from("tls13 ".len() + label.len()).ok()?);
            info.extend(b"tls13 ");
            info.extend(label.as_bytes());
            info.push(u8::try_from(context.len()).ok()?);
        }
        Expansion::Compat => {
            info.extend(length.to_le_bytes());
            info.extend(b"tls13 ");
            info.extend(label.as_bytes());
        }
    }
    info.extend(context);
    let mut out = vec![0; key.len()];
    let prk = hkdf::Salt::new(algorithm, &[]).extract(key);
    prk.expand(&[&info], Length(key.len())).ok()?.fill(&mut out).ok()?;
    Some(out)
}

/// The keys by which a host may begin TLS with a subsystem, by their identities. Hosts have one of them, which one
/// depends on their tools: an identity of version 0 or 1, and what was derived before libnvme 1.16 or since.
pub fn keys_of(put: &TlsPut, host: &str, subsystem: &Nqn) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    let Some(configured) = Configured::of(put) else { return all };
    // Where both have one identity the last one stays.
    let order = match put.compat {
        true => [Expansion::Rfc8446, Expansion::Compat],
        false => [Expansion::Compat, Expansion::Rfc8446],
    };
    let Configured { secret, retained_by, hash } = configured;
    for expansion in order {
        let retained = match retained_by {
            Some(by) => derive(by, expansion, &secret, "HostNQN", host.as_bytes()),
            None => Some(secret.clone()),
        };
        let Some(retained) = retained else { continue };
        let by = if hash == 1 { hmac::HMAC_SHA256 } else { hmac::HMAC_SHA384 };
        let text = format!("{host} {subsystem} NVMe-over-Fabrics");
        let digest = STANDARD.encode(hmac::sign(&hmac::Key::new(by, &retained), text.as_bytes()));
        let version_0 = format!("NVMe0R{hash:02} {host} {subsystem}");
        let version_1 = format!("NVMe1R{hash:02} {host} {subsystem} {digest}");
        let contexts = [(version_0.clone(), version_0), (version_1, format!("{hash:02} {digest}"))];
        for (identity, context) in contexts {
            let key = derive(algorithm(hash), expansion, &retained, "nvme-tls-psk", context.as_bytes());
            all.extend(key.map(|key| (identity, key)));
        }
    }
    all
}

/// What the identity of a key says that it is for.
struct About<'a> {
    host: &'a str,
    /// One of ours.
    subsystem: Nqn,
    volume: VolumeId,
}

/// `None`: it is for somebody else's subsystem, or no key of NVMe's.
fn about<'a>(config: &NvmetConfig, identity: &'a str) -> Option<About<'a>> {
    let mut words = identity.split(' ');
    let kind = words.next()?;
    if !kind.starts_with("NVMe0R") && !kind.starts_with("NVMe1R") {
        return None;
    }
    let (host, subsystem) = (words.next()?, words.next()?);
    let volume = config.prefix.volume(subsystem)?;
    Some(About { host, subsystem: subsystem.parse().ok()?, volume })
}

/// The identities of ours that are in the ring, by volume: as they were last listed, and what was put there and taken
/// away since. The kernel finds a key by looking at one after another, and has no list of one volume's.
#[derive(Debug, Default)]
pub(super) struct Known(parking_lot::Mutex<Option<BTreeMap<VolumeId, BTreeSet<String>>>>);

impl Known {
    fn put(&self, volume: VolumeId, identity: &str) {
        if let Some(all) = &mut *self.0.lock() {
            all.entry(volume).or_default().insert(identity.into());
        }
    }

    fn remove(&self, volume: VolumeId, identity: &str) {
        if let Some(of) = self.0.lock().as_mut().and_then(|all| all.get_mut(&volume)) {
            of.remove(identity);
        }
    }
}

impl Nvmet {
    /// Which keys are missing, and which should not be there. That the ring can't be read is the trouble of those volumes
    /// alone that need it.
    pub(super) fn look_at_keys(&self, scope: Scope, desired: &Desired, seen: &mut Observed) {
        let mut wanted: BTreeSet<String> = BTreeSet::new();
        for (volume, export) in desired.iter().filter(|(v, _)| scope.volume().is_none_or(|only| only == **v))
        {
            for (host, rights) in export.nqns().filter(|(_, rights)| rights.tls) {
                let nqn = self.config.prefix.subsystem_for(*volume, Audience::of(rights.read_only));
                let host = host.to_string();
                let keys = self.keys.tls(&host).map(|put| keys_of(&put, &host, &nqn)).unwrap_or_default();
                let is = |(identity, key): (&String, &Vec<u8>)| {
                    self.tls.get(identity).is_ok_and(|found| found.as_ref() == Some(key))
                };
                if keys.is_empty() || !keys.iter().all(is) {
                    seen.keyless.insert((*volume, host));
                }
                wanted.extend(keys.into_keys());
            }
        }
        // Where no host has a key there is none to look for; what is left of before is found when all is looked at.
        let unlisted = self.known.0.lock().is_none();
        if scope.volume().is_none() || (unlisted && self.keys.has_tls()) {
            self.list_keys();
        }
        let known = self.known.0.lock();
        let Some(known) = &*known else { return };
        for (volume, identities) in
            known.iter().filter(|(v, _)| scope.volume().is_none_or(|only| only == **v))
        {
            let stale = identities.iter().filter(|i| !wanted.contains(*i));
            // Of a volume of which it is not known how it should be served, what is surely none of its host's keys.
            let surely = |identity: &&String| {
                scope != Scope::Desired || desired.contains_key(volume) || !self.may_be(identity)
            };
            let stale: BTreeSet<String> = stale.filter(surely).cloned().collect();
            if !stale.is_empty() {
                seen.stale_keys.insert(*volume, stale);
            }
        }
    }

    /// Whether a key that is in the ring could be its host's, as far as that is known.
    fn may_be(&self, identity: &str) -> bool {
        let about = about(&self.config, identity);
        let known = about.and_then(|about| Some((self.keys.tls(about.host)?, about)));
        let Some((put, about)) = known else { return true };
        let keys = keys_of(&put, about.host, &about.subsystem);
        keys.get(identity)
            .is_some_and(|key| self.tls.get(identity).is_ok_and(|found| found.as_ref() == Some(key)))
    }

    /// Lists what is in the ring.
    fn list_keys(&self) {
        let identities = match absent(self.tls.identities()) {
            Ok(identities) => identities.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(%error, "the keys of TLS can't be listed: what should not be there may be");
                return;
            }
        };
        let mut all: BTreeMap<VolumeId, BTreeSet<String>> = BTreeMap::new();
        for identity in identities {
            if let Some(volume) = about(&self.config, &identity).map(|about| about.volume) {
                all.entry(volume).or_default().insert(identity);
            }
        }
        *self.known.0.lock() = Some(all);
    }

    /// Gives the kernel the keys by which a host may begin TLS with a subsystem of a volume's.
    pub(super) fn put_keys(&self, host: &str, volume: VolumeId, nqn: &Nqn) -> Result<()> {
        let Some(put) = self.keys.tls(host) else {
            let detail = "is to come by TLS, and its key is not known".into();
            return Err(TargetError::Unfit { object: format!("host {host}"), detail });
        };
        if self.known.0.lock().is_none() {
            self.list_keys();
        }
        for (identity, key) in keys_of(&put, host, nqn) {
            // Before it is there: what is known to be there may be taken away whether it is or not.
            self.known.put(volume, &identity);
            self.tls.put(&identity, &key).map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => TargetError::Unsupported(
                    "TLS for NVMe over TCP (CONFIG_NVME_TARGET_TCP_TLS): its keyring is not there".into(),
                ),
                _ => TargetError::Kernel {
                    step: format!("give the kernel {host}'s key for {nqn}"),
                    path: KEYRING.into(),
                    source,
                },
            })?;
        }
        Ok(())
    }

    /// Has a host that may be let in already use its key of now, at each volume that lets it in. What is not its key any
    /// more goes first, whatever else can be had.
    pub(super) fn have_new_key(&self, host: &str, deadline: &Deadline) -> Result<()> {
        let step = || format!("changing the TLS key of {host}");
        let now = self.keys.tls(host);
        let has = |identity: &String| about(&self.config, identity).is_some_and(|about| about.host == host);
        let had = self.known.0.lock().as_ref().is_some_and(|all| all.values().flatten().any(has));
        if now.is_none() && !had {
            // What it proves otherwise has nothing to do with a ring that can't be read.
            return Ok(());
        }
        let mut lets_in = BTreeMap::new();
        for identity in absent(self.tls.identities()).map_err(in_words(KEYRING))?.unwrap_or_default() {
            let Some(About { subsystem: nqn, volume, .. }) =
                about(&self.config, &identity).filter(|about| about.host == host)
            else {
                continue;
            };
            deadline.check().map_err(|o| TargetError::Deadline(step(), o))?;
            if now.is_none() || !self.may_be(&identity) {
                self.remove_key(volume, &identity)?;
            }
            if tree::list(&*self.tree, &format!("subsystems/{nqn}/allowed_hosts"))?.iter().any(|h| h == host)
            {
                lets_in.insert(nqn, volume);
            }
        }
        for (nqn, volume) in lets_in.into_iter().filter(|_| now.is_some()) {
            deadline.check().map_err(|o| TargetError::Deadline(step(), o))?;
            self.put_keys(host, volume, &nqn)?;
        }
        Ok(())
    }

    /// Takes a key from the kernel.
    pub(super) fn remove_key(&self, volume: VolumeId, identity: &str) -> Result<()> {
        absent(self.tls.remove(identity)).map_err(in_words(KEYRING))?;
        self.known.remove(volume, identity);
        Ok(())
    }
}

/// A kernel without the keyring has no keys.
fn absent<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    tree::optional(result)
}
