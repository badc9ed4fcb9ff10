//! Ephemeral inline volumes: made when a pod comes, deleted when it goes. No controller is asked for them, so the node's part
//! calls an appliance itself, with what the pod brings in a secret of its own namespace: where it is, and a token of the pod's
//! tenant. For as long as the pod is there both are kept in a file, because nothing comes with the call that takes it away.
//!
//! What can't be deleted because the appliance does not answer is deleted later: the pod does not wait for it.

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_api::client::Client;
use orlop_api::{Attachment, ByteSize, VolumeCreate, VolumeName, VolumeRef};
use serde::{Deserialize, Serialize};
use tonic::Status;

use super::Node;
use super::connect::Credentials;
use super::staging::Use;
use crate::deadline::Deadline;
use crate::parameters::Parameters;
use crate::status::{self, Result, invalid, missing};

/// What kubelet says of one.
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";
/// How large it is: an attribute beside those of a StorageClass.
const SIZE: &str = "size";
/// What is in the secret.
const URL: &str = "url";
const TOKEN: &str = "token";
const CA: &str = "ca";
/// What it is called, here and there: Kubernetes calls it `csi-` and a hash.
const LONGEST: usize = 128;
/// How often is tried again what could not be deleted.
const AGAIN: Duration = Duration::from_secs(60);
/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(20);

/// Whether a call is about one.
pub(super) fn is_inline(context: &HashMap<String, String>) -> bool {
    context.get(EPHEMERAL).is_some_and(|value| value == "true")
}

/// The name of one, if it can be one's.
pub(super) fn name_of(volume_id: &str) -> Option<VolumeName> {
    // A handle has a slash, which no name has.
    let name =
        volume_id.strip_prefix("csi-").is_some_and(|rest| !rest.is_empty()) && volume_id.len() <= LONGEST;
    name.then(|| volume_id.parse().ok()).flatten()
}

/// What must be known to take it away.
#[derive(Clone, Serialize, Deserialize)]
struct Kept {
    url: String,
    token: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ca: Option<String>,
    /// What it was attached as, once it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    attachment: Option<Attachment>,
    /// It is in use no more, and is to be deleted.
    #[serde(default)]
    over: bool,
}

impl Kept {
    /// Of a secret.
    fn of(secrets: &HashMap<String, String>) -> Result<Self> {
        let get = |key: &str| {
            let value = secrets.get(key).map(|value| value.trim()).filter(|value| !value.is_empty());
            value.ok_or_else(|| missing(&format!("secrets: {key} (the pod's nodePublishSecretRef)")))
        };
        let (url, token) = (get(URL)?.to_string(), get(TOKEN)?.to_string());
        Ok(Self { url, token, ca: secrets.get(CA).cloned(), attachment: None, over: false })
    }

    fn client(&self, deadline: Deadline) -> Result<Client> {
        let client = Client::tls(&self.url, self.token.clone().into(), self.ca.as_deref().map(str::as_bytes));
        // It is the pod's, so what is wrong with it is the call's fault.
        let client = client.map_err(|p| invalid(format!("secrets: {}", p.detail)))?;
        Ok(client.with_timeout(deadline.left()))
    }
}

/// Where these files are: readable by nobody else, as they hold tokens.
#[derive(Debug, Clone)]
pub(super) struct Inline(PathBuf);

impl Inline {
    pub fn at(state: &Path) -> Self {
        Self(state.join("inline"))
    }

    fn file(&self, name: &VolumeName) -> PathBuf {
        self.0.join(format!("{name}.json"))
    }

    /// Where it is mounted for the pod's place to be bound to.
    fn staging(&self, name: &VolumeName) -> PathBuf {
        self.0.join(format!("{name}.mount"))
    }

    fn put(&self, name: &VolumeName, kept: &Kept) -> io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        let partial = self.file(name).with_extension("partial");
        let _ = std::fs::remove_file(&partial);
        let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&partial)?;
        file.write_all(&serde_json::to_vec(kept)?)?;
        file.sync_all()?;
        std::fs::rename(partial, self.file(name))
    }

    fn get(&self, name: &VolumeName) -> io::Result<Option<Kept>> {
        match std::fs::read(self.file(name)) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn remove(&self, name: &VolumeName) -> io::Result<()> {
        match std::fs::remove_file(self.file(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        // With the last one; else it stays.
        let _ = std::fs::remove_dir(&self.0);
        Ok(())
    }

    fn all(&self) -> Vec<VolumeName> {
        let entries = std::fs::read_dir(&self.0).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            name.strip_suffix(".json")?.parse().ok()
        });
        names.collect()
    }
}

fn kept(e: io::Error) -> Status {
    Status::internal(format!("what is kept of inline volumes: {e}"))
}

/// What the pod's attributes ask for.
fn wanted(name: &VolumeName, context: &HashMap<String, String>) -> Result<(Parameters, VolumeCreate)> {
    let mut attributes = context.clone();
    let size = attributes.remove(SIZE).ok_or_else(|| missing("volumeAttributes: size"))?;
    let size: ByteSize = size.parse().map_err(status::malformed("volumeAttributes: size"))?;
    let parameters = Parameters::parse(&attributes)?;
    let odd = [
        (parameters.appliance.is_some(), "appliance: the secret says where it is"),
        (parameters.zone.is_some(), "zone: it is this node's alone"),
    ];
    if let Some((_, why)) = odd.iter().find(|(given, _)| *given) {
        return Err(invalid(format!("volumeAttributes: {why}")));
    }
    let pool = parameters.pool.clone().ok_or_else(|| missing("volumeAttributes: pool"))?;
    let ask = VolumeCreate {
        kind: Some(parameters.protocol().kind()),
        filesystem: parameters.filesystem,
        provisioning: parameters.provisioning,
        protocol: Some(parameters.protocol()),
        properties: parameters.properties,
        encryption: parameters.encryption(),
        ..VolumeCreate::new(name.clone(), pool, size)
    };
    Ok((parameters, ask))
}

impl Node {
    /// Makes it, attaches it to this node, and mounts it for the pod.
    pub(super) async fn publish_inline(
        &self,
        name: &VolumeName,
        target: &Path,
        how: Use,
        read_only: bool,
        (context, secrets): (HashMap<String, String>, HashMap<String, String>),
        deadline: Deadline,
    ) -> Result<()> {
        let (parameters, mut ask) = wanted(name, &context)?;
        if matches!(how, Use::Block) {
            return Err(invalid("volume_capability: an inline volume is mounted"));
        }
        let mut kept_of = Kept::of(&secrets)?;
        if let Some(before) = self.inline.get(name).map_err(kept)? {
            kept_of.attachment = before.attachment;
        }
        let client = kept_of.client(deadline)?;
        let pool = client.pool(&ask.pool).await.map_err(status::of)?;
        ask.size = rounded(ask.size, pool.granularity)?;
        // Before anything is made, so that what may have been made is known; and not before the appliance has taken the token,
        // because what can't be made need not be deleted.
        self.inline.put(name, &kept_of).map_err(kept)?;
        let made = client.create_volume(&ask).await.map_err(status::of)?;
        client.put_host(&self.id.name, &self.id.known_by).await.map_err(status::of)?;
        let attached = client.attach(&VolumeRef::Id(made.id), &self.id.name).await.map_err(status::of)?;
        kept_of.attachment = Some(attached.clone());
        self.inline.put(name, &kept_of).map_err(kept)?;
        let staging = self.inline.staging(name);
        std::fs::create_dir_all(&staging).map_err(kept)?;
        let with = Credentials { context: parameters.context(), secrets };
        self.stage(attached.clone(), &staging, how.clone(), with, deadline).await?;
        self.publish(&attached, &staging, target, &how, read_only).await
    }

    /// Takes it away from the pod and from this node, and deletes it: now, or when the appliance answers.
    pub(super) async fn unpublish_inline(
        &self,
        name: &VolumeName,
        target: &Path,
        deadline: Deadline,
    ) -> Result<()> {
        let Some(mut kept_of) = self.inline.get(name).map_err(kept)? else {
            // Nothing is known of it: nobody can say what to delete, and the pod's place is freed.
            return self.free(target, deadline).await;
        };
        if let Some(attachment) = &kept_of.attachment {
            self.unpublish(attachment.volume, target, deadline).await?;
            let staging = self.inline.staging(name);
            self.unstage(attachment.volume, &staging, deadline).await?;
            match std::fs::remove_dir(&staging) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(kept(e)),
                _ => {}
            }
        } else {
            self.free(target, deadline).await?;
        }
        kept_of.over = true;
        self.inline.put(name, &kept_of).map_err(kept)?;
        if let Err(status) = self.delete_inline(name, &kept_of, deadline).await {
            tracing::warn!(volume = %name, error = status.message(), "an inline volume is deleted later");
        }
        Ok(())
    }

    async fn delete_inline(&self, name: &VolumeName, kept_of: &Kept, deadline: Deadline) -> Result<()> {
        let client = kept_of.client(deadline)?;
        // By its name: it may have been made by a call whose answer was lost.
        let by = VolumeRef::Name(name.clone());
        status::gone(client.detach(&by, &self.id.name).await)?;
        status::gone(client.delete_volume(&by).await)?;
        self.inline.remove(name).map_err(kept)
    }

    /// Deletes what could not be deleted when its pod went, for as long as this runs.
    pub async fn delete_later(self) {
        loop {
            for name in self.inline.all() {
                // A pod that has just come with it has its lock.
                let Ok(_lock) = self.locks.take(format!("volume {name}")) else { continue };
                let Ok(Some(kept_of)) = self.inline.get(&name) else { continue };
                if !kept_of.over {
                    continue;
                }
                if let Err(status) = self.delete_inline(&name, &kept_of, Deadline::after(ATTEMPT)).await {
                    tracing::warn!(volume = %name, error = status.message(), "an inline volume is still to be deleted");
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Whether this node has it.
    pub(super) fn has_inline(&self, name: &VolumeName) -> bool {
        self.inline.get(name).is_ok_and(|kept| kept.is_some())
    }
}

/// Up to what the pool gives out.
fn rounded(size: ByteSize, unit: ByteSize) -> Result<ByteSize> {
    let whole = size.bytes().max(1).checked_next_multiple_of(unit.bytes().max(1));
    whole.map(ByteSize).ok_or_else(|| Status::out_of_range("volumeAttributes: size"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use orlop_api::Protocol;

    use super::*;

    const ID: &str = "csi-6e3f0a4ec2a0c6b1d1e7c0f9a1b2c3d4e5f60718293a4b5c6d7e8f9001122334";

    fn map(all: &[(&str, &str)]) -> HashMap<String, String> {
        all.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    #[test]
    fn names_are_kubernetes_own() {
        assert_eq!(name_of(ID).unwrap().as_str(), ID);
        for bad in ["", "csi-", "a/0190c0de-0000-7000-8000-000000000001", "csi-a/b", "csi-..", "other"] {
            assert_eq!(name_of(bad), None, "{bad}");
        }
        assert!(is_inline(&map(&[(EPHEMERAL, "true")])));
        assert!(!is_inline(&map(&[(EPHEMERAL, "false")])) && !is_inline(&map(&[])));
    }

    #[test]
    fn attributes_say_what_is_made() {
        let name = name_of(ID).unwrap();
        let good = map(&[("size", "1Gi"), ("pool", "tank"), ("compression", "lz4"), (EPHEMERAL, "true")]);
        let (parameters, ask) = wanted(&name, &good).unwrap();
        assert_eq!((ask.size, ask.pool.as_str(), ask.name), (ByteSize(1 << 30), "tank", name.clone()));
        assert_eq!(parameters.protocol(), Protocol::Nvme);
        for (key, value) in [
            ("size", ""),
            ("size", "x"),
            ("appliance", "a"),
            ("zone", "z"),
            ("colour", "blue"),
            ("protocol", "smb"),
        ] {
            let mut bad = good.clone();
            bad.insert(key.into(), value.into());
            assert_eq!(wanted(&name, &bad).unwrap_err().code(), tonic::Code::InvalidArgument, "{key}");
        }
        for key in ["size", "pool"] {
            let mut bad = good.clone();
            bad.remove(key);
            assert_eq!(wanted(&name, &bad).unwrap_err().code(), tonic::Code::InvalidArgument, "{key}");
        }
        assert_eq!(rounded(ByteSize(1), ByteSize::MIB).unwrap(), ByteSize::MIB);
        rounded(ByteSize(u64::MAX), ByteSize::MIB).unwrap_err();
    }

    #[test]
    fn what_is_kept_is_for_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let (inline, name) = (Inline::at(dir.path()), name_of(ID).unwrap());
        let secrets = map(&[("url", "https://a:8443"), ("token", "t\n")]);
        assert!(inline.get(&name).unwrap().is_none() && inline.all().is_empty());
        let mut kept_of = Kept::of(&secrets).unwrap();
        for over in [false, true] {
            kept_of.over = over;
            inline.put(&name, &kept_of).unwrap();
            let found = inline.get(&name).unwrap().unwrap();
            assert_eq!((found.url.as_str(), found.token.as_str(), found.over), ("https://a:8443", "t", over));
        }
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&inline.0), mode(&inline.file(&name))), (0o700, 0o600));
        assert_eq!(inline.all(), std::slice::from_ref(&name));
        inline.remove(&name).unwrap();
        inline.remove(&name).unwrap();
        for missing in ["url", "token"] {
            let mut bad = secrets.clone();
            bad.remove(missing);
            assert!(Kept::of(&bad).is_err_and(|s| s.message().contains(missing)));
        }
    }
}
