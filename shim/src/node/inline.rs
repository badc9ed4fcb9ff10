//! Ephemeral inline volumes: made when a pod comes, deleted when it goes. No controller is asked for them, so the node's part
//! calls an appliance itself, with the token of a tenant that the pod brings in a secret of its own namespace. For as long as the
//! pod is there it is kept in a file, because nothing comes with the call that takes the volume away.
//!
//! Which appliances there are is this node's own configuration, and no word of a pod: what an appliance says is attached here
//! is connected to and mounted, and one that lies could have it be somebody else's volume.
//!
//! What can't be deleted because the appliance does not answer is deleted later: the pod does not wait for it.

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use orlop_api::client::Client;
use orlop_api::{Attachment, ByteSize, ErrorKind, VolumeCreate, VolumeName, VolumeRef};
use serde::{Deserialize, Serialize};
use tonic::{Code, Status};

use super::connect::Credentials;
use super::staging::Use;
use super::{Node, mounts};
use crate::config::{InlineAppliance, InlineConfig};
use crate::deadline::Deadline;
use crate::handle::ApplianceName;
use crate::node_id::has_secret;
use crate::parameters::Parameters;
use crate::status::{self, Result, invalid, missing};

/// What kubelet says of one.
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";
/// How large it is: an attribute beside those of a StorageClass.
const SIZE: &str = "size";
/// What is in the secret.
const TOKEN: &str = "token";
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
    appliance: ApplianceName,
    /// Where that was by this node's own configuration, for when it is not in it any more.
    url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ca: Option<String>,
    token: String,
    /// What is in the secret by now, if that is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    also: Option<String>,
    /// What it was attached as, once it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    attachment: Option<Attachment>,
    /// It is in use no more, and is to be deleted.
    #[serde(default)]
    over: bool,
}

/// The token in a pod's secret.
fn token_of(secrets: &HashMap<String, String>) -> Result<String> {
    let token = secrets.get(TOKEN).map(|token| token.trim()).filter(|token| !token.is_empty());
    let missing = || missing(&format!("secrets: {TOKEN} (the pod's nodePublishSecretRef)"));
    token.map(str::to_owned).ok_or_else(missing)
}

impl Kept {
    /// Of one that is to be made.
    fn new(appliance: &InlineAppliance, token: String) -> Result<Self> {
        let (name, url, ca) = (appliance.name.clone(), appliance.url.clone(), ca_of(appliance)?);
        Ok(Self { appliance: name, url, ca, token, also: None, attachment: None, over: false })
    }
}

fn ca_of(appliance: &InlineAppliance) -> Result<Option<String>> {
    let ca = appliance.ca_file.as_ref().map(std::fs::read_to_string).transpose();
    ca.map_err(|e| Status::unavailable(format!("the certificate of appliance {}: {e}", appliance.name)))
}

/// A client of an appliance, with a pod's token.
fn client_of(appliance: &InlineAppliance, token: &str, deadline: Deadline) -> Result<Client> {
    let ca = ca_of(appliance)?;
    client_at((&appliance.url, ca.as_deref()), &appliance.name, token, deadline)
}

fn client_at(
    (url, ca): (&str, Option<&str>),
    name: &ApplianceName,
    token: &str,
    deadline: Deadline,
) -> Result<Client> {
    let client = Client::tls(url, token.into(), ca.map(str::as_bytes));
    let client = client.map_err(|p| Status::unavailable(format!("appliance {name}: {}", p.detail)))?;
    Ok(client.with_timeout(deadline.left()))
}

/// Of a pod for which something may have been made: by any other code kubelet would take it that nothing was, and never ask for it
/// to be taken away.
fn not_final(status: Status) -> Status {
    match status.code() {
        Code::Cancelled | Code::DeadlineExceeded | Code::Unavailable | Code::Aborted => status,
        _ => Status::unavailable(status.message()),
    }
}

/// On which appliances they may be, and where these files are: readable by nobody else, as they hold tokens.
#[derive(Debug, Clone)]
pub(super) struct Inline {
    dir: PathBuf,
    config: Arc<InlineConfig>,
}

impl Inline {
    pub fn at(state: &Path, config: InlineConfig) -> Self {
        Self { dir: state.join("inline"), config: Arc::new(config) }
    }

    /// The appliance of that name, or the only one.
    fn appliance(&self, name: Option<&ApplianceName>) -> Result<&InlineAppliance> {
        let all = &self.config.appliances;
        match (name, &all[..]) {
            (_, []) => {
                Err(Status::failed_precondition("inline volumes are not enabled on this node (--inline)"))
            }
            (None, [only]) => Ok(only),
            (None, _) => Err(missing("volumeAttributes: appliance")),
            (Some(name), _) => all.iter().find(|a| a.name == *name).ok_or_else(|| {
                Status::failed_precondition(format!("inline volumes are not on appliance {name}"))
            }),
        }
    }

    fn file(&self, name: &VolumeName) -> PathBuf {
        self.dir.join(format!("{name}.json"))
    }

    /// Where it is mounted for the pod's place to be bound to.
    fn staging(&self, name: &VolumeName) -> PathBuf {
        self.dir.join(format!("{name}.mount"))
    }

    fn put(&self, name: &VolumeName, kept: &Kept) -> io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let partial = self.file(name).with_extension("partial");
        let _ = std::fs::remove_file(&partial);
        let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&partial)?;
        file.write_all(&serde_json::to_vec(kept)?)?;
        file.sync_all()?;
        std::fs::rename(partial, self.file(name))?;
        std::fs::File::open(&self.dir)?.sync_all()
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
        let _ = std::fs::remove_dir(&self.dir);
        Ok(())
    }

    fn all(&self) -> Vec<VolumeName> {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
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
    if parameters.zone.is_some() {
        return Err(invalid("volumeAttributes: zone: it is this node's alone"));
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
        with: (HashMap<String, String>, HashMap<String, String>),
        deadline: Deadline,
    ) -> Result<()> {
        let done = self.try_inline(name, target, how, read_only, with, deadline).await;
        done.map_err(|status| if self.has_inline(name) { not_final(status) } else { status })
    }

    async fn try_inline(
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
        let staging = self.inline.staging(name);
        let before = self.inline.get(name).map_err(kept)?;
        if let Some(before) = &before
            && let Some(attached) = &before.attachment
            && is_mounted(&staging)?
            && is_mounted(target)?
        {
            // kubelet asks again when it is started anew: the appliance may be away then.
            if let Ok(brought) = token_of(&secrets)
                && brought != before.token
                && before.also.as_ref() != Some(&brought)
            {
                self.inline.put(name, &Kept { also: Some(brought), ..before.clone() }).map_err(kept)?;
            }
            return self.publish(attached, &staging, target, &how, read_only, deadline).await;
        }
        let appliance = match &before {
            Some(before) => Some(&before.appliance),
            None => parameters.appliance.as_ref(),
        };
        let appliance = self.inline.appliance(appliance)?;
        let brought = token_of(&secrets)?;
        let mut kept_of = match before {
            Some(before) => Kept { over: false, ..before },
            None => Kept::new(appliance, brought.clone())?,
        };
        let mut client = client_of(appliance, &kept_of.token, deadline)?;
        let mut pool = client.pool(&ask.pool).await;
        if kept_of.token != brought && pool.as_ref().is_err_and(|p| p.kind == ErrorKind::Unauthenticated) {
            // Its secret has another one since.
            client = client_of(appliance, &brought, deadline)?;
            pool = client.pool(&ask.pool).await;
            kept_of.token = brought;
        }
        ask.size = rounded(ask.size, pool.map_err(status::of)?.granularity)?;
        let volume = match &kept_of.attachment {
            // That one and no other, whosever token it is by now.
            Some(had) => client.volume(&VolumeRef::Id(had.volume)).await.map_err(status::of)?.id,
            None => {
                // Before anything is made, so that what may have been made is known; and not before the appliance has taken the
                // token, because what can't be made need not be deleted.
                self.inline.put(name, &kept_of).map_err(kept)?;
                client.create_volume(&ask).await.map_err(status::of)?.id
            }
        };
        let host = match client.put_host(&self.id.name, &self.id.known_by).await {
            // It may only use a node that is known there.
            Err(p) if p.kind == ErrorKind::Forbidden => client.host(&self.id.name).await,
            host => host,
        };
        let host = host.map_err(status::of)?;
        if parameters.authentication {
            has_secret(&host, parameters.protocol(), &appliance.name)?;
        }
        let attached = client.attach(&VolumeRef::Id(volume), &self.id.name).await.map_err(status::of)?;
        if attached.volume != volume || attached.host != self.id.name {
            return Err(Status::internal(format!("appliance {} attached something else", appliance.name)));
        }
        kept_of.attachment = Some(attached.clone());
        self.inline.put(name, &kept_of).map_err(kept)?;
        std::fs::create_dir_all(&staging).map_err(kept)?;
        let with = Credentials { context: parameters.context(), secrets };
        self.stage(attached.clone(), &staging, how.clone(), with, deadline).await?;
        self.publish(&attached, &staging, target, &how, read_only, deadline).await
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
        // The pod does not wait for an appliance that does not answer.
        let soon = Deadline::after(ATTEMPT.min(deadline.left()));
        if let Err(status) = self.delete_inline(name, &kept_of, soon).await {
            tracing::warn!(volume = %name, error = status.message(), "an inline volume is deleted later");
        }
        Ok(())
    }

    async fn delete_inline(&self, name: &VolumeName, kept_of: &Kept, deadline: Deadline) -> Result<()> {
        let client = |token: &str| match self.inline.appliance(Some(&kept_of.appliance)) {
            Ok(appliance) => client_of(appliance, token, deadline),
            // It is no longer for new ones.
            Err(_) => client_at((&kept_of.url, kept_of.ca.as_deref()), &kept_of.appliance, token, deadline),
        };
        let mut client_of_it = client(&kept_of.token)?;
        // By its name where it may have been made by a call whose answer was lost.
        let by = match &kept_of.attachment {
            Some(attached) => VolumeRef::Id(attached.volume),
            None => VolumeRef::Name(name.clone()),
        };
        let mut detached = client_of_it.detach(&by, &self.id.name).await;
        if let (Err(p), Some(also)) = (&detached, &kept_of.also)
            && p.kind == ErrorKind::Unauthenticated
        {
            client_of_it = client(also)?;
            detached = client_of_it.detach(&by, &self.id.name).await;
        }
        status::gone(detached)?;
        status::gone(client_of_it.delete_volume(&by).await)?;
        self.inline.remove(name).map_err(kept)
    }

    /// Deletes what could not be deleted when its pod went, for as long as this runs.
    pub async fn delete_later(self) {
        loop {
            for name in self.inline.all() {
                // A pod that has just come with it has its lock.
                let Ok(_lock) = self.locks.take(format!("volume {name}")) else { continue };
                let kept_of = match self.inline.get(&name) {
                    Ok(Some(kept_of)) => kept_of,
                    Ok(None) => continue,
                    Err(error) => {
                        tracing::warn!(volume = %name, %error, "what is kept of an inline volume can't be read");
                        continue;
                    }
                };
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

    /// Whether this node has it, or may have it.
    pub(super) fn has_inline(&self, name: &VolumeName) -> bool {
        !matches!(self.inline.get(name), Ok(None))
    }
}

fn is_mounted(at: &Path) -> Result<bool> {
    mounts::at(at).map(|there| !there.is_empty()).map_err(kept)
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
            ("appliance", "A"),
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

    fn appliances(names: &[&str]) -> InlineConfig {
        let one = |name: &&str| InlineAppliance {
            name: name.parse().unwrap(),
            url: format!("https://{name}:8443"),
            ca_file: None,
        };
        InlineConfig { appliances: names.iter().map(one).collect() }
    }

    #[test]
    fn appliances_are_the_nodes_own() {
        let (a, b, c) = ("a".parse().unwrap(), "b".parse().unwrap(), "c".parse().unwrap());
        let found = |names: &[&str], name: Option<&ApplianceName>| {
            let inline = Inline::at(Path::new("/"), appliances(names));
            inline.appliance(name).map(|a| a.name.to_string()).map_err(|s| s.code())
        };
        assert_eq!(found(&[], None), Err(Code::FailedPrecondition));
        assert_eq!(found(&[], Some(&a)), Err(Code::FailedPrecondition));
        assert_eq!(found(&["a"], None).as_deref(), Ok("a"));
        assert_eq!(found(&["a", "b"], None), Err(Code::InvalidArgument));
        assert_eq!(found(&["a", "b"], Some(&b)).as_deref(), Ok("b"));
        assert_eq!(found(&["a", "b"], Some(&c)), Err(Code::FailedPrecondition));
        // Where an appliance is is no matter of the secret.
        assert!(token_of(&map(&[("url", "https://evil:8443"), ("ca", "x")])).is_err());
    }

    #[test]
    fn what_may_have_been_made_is_never_said_not_to_be() {
        for code in [Code::Internal, Code::FailedPrecondition, Code::InvalidArgument, Code::NotFound] {
            assert_eq!(not_final(Status::new(code, "x")).code(), Code::Unavailable);
        }
        for code in [Code::Aborted, Code::DeadlineExceeded, Code::Unavailable] {
            assert_eq!(not_final(Status::new(code, "x")).code(), code);
        }
    }

    #[test]
    fn what_is_kept_is_for_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let (inline, name) = (Inline::at(dir.path(), appliances(&["a"])), name_of(ID).unwrap());
        assert!(inline.get(&name).unwrap().is_none() && inline.all().is_empty());
        let token = token_of(&map(&[("token", "t\n")])).unwrap();
        let mut kept_of = Kept::new(inline.appliance(None).unwrap(), token).unwrap();
        for over in [false, true] {
            kept_of.over = over;
            inline.put(&name, &kept_of).unwrap();
            let found = inline.get(&name).unwrap().unwrap();
            assert_eq!((found.appliance.as_str(), found.token.as_str(), found.over), ("a", "t", over));
        }
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&inline.dir), mode(&inline.file(&name))), (0o700, 0o600));
        assert_eq!(inline.all(), std::slice::from_ref(&name));
        inline.remove(&name).unwrap();
        inline.remove(&name).unwrap();
        for secrets in [map(&[]), map(&[("token", " \n")])] {
            assert!(token_of(&secrets).is_err_and(|s| s.message().contains("token")));
        }
    }
}
