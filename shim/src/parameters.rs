//! What a StorageClass and a VolumeAttributesClass may say. What is not known is refused: a word that is misspelled must not
//! become a volume that is not as it was meant.

use std::collections::HashMap;

use orlop_api::{
    EncryptionCreate, FilesystemKind, HostName, PoolName, Properties, Property, Protocol, Provisioning,
    SourceMode, Unlock, VolumeUpdate,
};

use crate::handle::ApplianceName;
use crate::status::{Result, invalid, malformed};

/// The parameters of a StorageClass.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parameters {
    /// On which appliance. Unless given, the one that fits best.
    pub appliance: Option<ApplianceName>,
    /// In which pool.
    pub pool: Option<PoolName>,
    /// How it is reached; NVMe unless given.
    pub protocol: Option<Protocol>,
    /// How it gets the content of its source.
    pub clone_mode: SourceMode,
    /// How its space is reserved.
    pub provisioning: Provisioning,
    /// By NFS: which file system the appliance makes.
    pub filesystem: Option<FilesystemKind>,
    /// By NFS: the zone whose hosts may use it, instead of each node by itself.
    pub zone: Option<HostName>,
    /// Encrypted at rest, with a key that the appliance keeps.
    pub encrypted: bool,
    /// Nodes must prove a secret before they are let in (DH-HMAC-CHAP, CHAP).
    pub authentication: bool,
    /// How many I/O queues a node connects with, 1 to 128.
    pub io_queues: Option<u16>,
    /// How many commands a queue takes, 16 to 1024.
    pub queue_depth: Option<u16>,
    /// What the pool does with its data.
    pub properties: Properties,
}

/// What the sidecars add, and this driver has no use for.
const OF_SIDECARS: &str = "csi.storage.k8s.io/";

/// The keys, as they are written.
pub mod key {
    #![allow(missing_docs)]
    pub const APPLIANCE: &str = "appliance";
    pub const POOL: &str = "pool";
    pub const PROTOCOL: &str = "protocol";
    pub const CLONE_MODE: &str = "cloneMode";
    pub const PROVISIONING: &str = "provisioning";
    pub const FILESYSTEM: &str = "filesystem";
    pub const ZONE: &str = "zone";
    pub const ENCRYPTED: &str = "encrypted";
    pub const AUTHENTICATION: &str = "authentication";
    pub const IO_QUEUES: &str = "ioQueues";
    pub const QUEUE_DEPTH: &str = "queueDepth";
}

/// One of a few words.
fn word<T>(key: &str, value: &str, words: &[(&str, T)]) -> Result<T>
where
    T: Copy,
{
    let found = words.iter().find(|(word, _)| *word == value).map(|(_, value)| *value);
    found.ok_or_else(|| {
        let all: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        invalid(format!("{key}: {value:?} is none of {}", all.join(", ")))
    })
}

const YES_OR_NO: [(&str, bool); 2] = [("true", true), ("false", false)];
const PROVISIONINGS: [(&str, Provisioning); 2] =
    [("thin", Provisioning::Thin), ("thick", Provisioning::Thick)];

fn number(key: &str, value: &str, least: u16, most: u16) -> Result<u16> {
    let number = value.parse().ok().filter(|n| (least..=most).contains(n));
    number.ok_or_else(|| invalid(format!("{key}: {value:?} is no number from {least} to {most}")))
}

fn property(properties: &mut Properties, key: &str, value: &str) -> Result<bool> {
    let Some(property) = Property::ALL.iter().find(|p| p.as_str() == key) else { return Ok(false) };
    properties.set(*property, value).map_err(malformed(key))?;
    Ok(true)
}

fn unknown(key: &str) -> tonic::Status {
    invalid(format!("{key:?} is no parameter of this driver"))
}

impl Parameters {
    /// Reads them.
    pub fn parse(given: &HashMap<String, String>) -> Result<Self> {
        let mut all = Self::default();
        for (key, value) in given.iter().filter(|(key, _)| !key.starts_with(OF_SIDECARS)) {
            match key.as_str() {
                key::APPLIANCE => {
                    all.appliance = Some(value.parse().map_err(|e| invalid(format!("{key}: {e}")))?)
                }
                key::POOL => all.pool = Some(value.parse().map_err(malformed(key))?),
                key::PROTOCOL => {
                    let words = Protocol::ALL.map(|p| (p.as_str(), p));
                    all.protocol = Some(word(key, value, &words)?);
                }
                key::CLONE_MODE => {
                    let words = [("linked", SourceMode::Linked), ("copied", SourceMode::Copied)];
                    all.clone_mode = word(key, value, &words)?;
                }
                key::PROVISIONING => all.provisioning = word(key, value, &PROVISIONINGS)?,
                key::FILESYSTEM => {
                    let words = FilesystemKind::ALL.map(|f| (f.as_str(), f));
                    all.filesystem = Some(word(key, value, &words)?);
                }
                key::ZONE => all.zone = Some(value.parse().map_err(malformed(key))?),
                key::ENCRYPTED => all.encrypted = word(key, value, &YES_OR_NO)?,
                key::AUTHENTICATION => {
                    all.authentication = word(key, value, &[("required", true), ("none", false)])?;
                }
                key::IO_QUEUES => all.io_queues = Some(number(key, value, 1, 128)?),
                key::QUEUE_DEPTH => all.queue_depth = Some(number(key, value, 16, 1024)?),
                _ if property(&mut all.properties, key, value)? => {}
                _ => return Err(unknown(key)),
            }
        }
        all.check()?;
        Ok(all)
    }

    fn check(&self) -> Result<()> {
        let protocol = self.protocol();
        let by_nfs = [(self.filesystem.is_some(), key::FILESYSTEM), (self.zone.is_some(), key::ZONE)];
        let by_nvme =
            [(self.io_queues.is_some(), key::IO_QUEUES), (self.queue_depth.is_some(), key::QUEUE_DEPTH)];
        for (given, key, only) in (by_nfs.into_iter().map(|(g, k)| (g, k, Protocol::Nfs)))
            .chain(by_nvme.into_iter().map(|(g, k)| (g, k, Protocol::Nvme)))
        {
            if given && protocol != only {
                let (only, is) = (only.as_str(), protocol.as_str());
                return Err(invalid(format!("{key} is for protocol {only}, and this is {is}")));
            }
        }
        if self.authentication && protocol == Protocol::Nfs {
            return Err(invalid("authentication: by NFS it is a zone's (`orlop zone put --security`)"));
        }
        Ok(())
    }

    /// How it is reached.
    pub fn protocol(&self) -> Protocol {
        self.protocol.unwrap_or_default()
    }

    /// How it is encrypted.
    pub fn encryption(&self) -> Option<EncryptionCreate> {
        self.encrypted.then(|| EncryptionCreate { unlock: Unlock::Automatic, key: None })
    }

    /// What the node's part and a later publication must know of it. It is a volume's for ever.
    pub fn context(&self) -> HashMap<String, String> {
        let mut context = HashMap::from([(key::PROTOCOL.to_string(), self.protocol().as_str().to_string())]);
        let mut put = |key: &str, value: Option<String>| {
            context.extend(value.map(|value| (key.to_string(), value)));
        };
        put(key::ZONE, self.zone.as_ref().map(ToString::to_string));
        put(key::AUTHENTICATION, self.authentication.then(|| "required".into()));
        put(key::IO_QUEUES, self.io_queues.map(|n| n.to_string()));
        put(key::QUEUE_DEPTH, self.queue_depth.map(|n| n.to_string()));
        context
    }
}

/// What a VolumeAttributesClass may change.
pub fn mutable(given: &HashMap<String, String>) -> Result<VolumeUpdate> {
    let mut update = VolumeUpdate::default();
    for (key, value) in given {
        match key.as_str() {
            key::PROVISIONING => update.provisioning = Some(word(key, value, &PROVISIONINGS)?),
            _ if property(&mut update.properties, key, value)? => {}
            _ => return Err(unknown(key)),
        }
    }
    Ok(update)
}

/// Refuses parameters where there are none.
pub fn none(given: &HashMap<String, String>) -> Result<()> {
    given.keys().find(|key| !key.starts_with(OF_SIDECARS)).map_or(Ok(()), |key| Err(unknown(key)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn map(all: &[(&str, &str)]) -> HashMap<String, String> {
        all.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    #[test]
    fn what_a_class_says_is_read() {
        let all = Parameters::parse(&map(&[
            ("pool", "tank"),
            ("protocol", "nvme"),
            ("cloneMode", "copied"),
            ("provisioning", "thick"),
            ("compression", "zstd"),
            ("block_size", "16K"),
            ("encrypted", "true"),
            ("ioQueues", "4"),
            ("csi.storage.k8s.io/pvc/name", "data"),
        ]))
        .unwrap();
        assert_eq!((all.clone_mode, all.provisioning), (SourceMode::Copied, Provisioning::Thick));
        assert_eq!(all.properties.to_string(), "compression=zstd block_size=16K");
        assert!(all.encryption().is_some());
        assert_eq!(all.context(), map(&[("protocol", "nvme"), ("ioQueues", "4")]));
        assert_eq!(Parameters::parse(&map(&[])).unwrap(), Parameters::default());
    }

    #[test]
    fn what_can_not_be_is_refused_by_its_name() {
        for (key, value) in [
            ("Pool", "tank"),
            ("pool", "Tank"),
            ("protocol", "fc"),
            ("cloneMode", ""),
            ("provisioning", "fat"),
            ("filesystem", "ext4"),
            ("zone", "lan"),
            ("encrypted", "yes"),
            ("authentication", "maybe"),
            ("ioQueues", "0"),
            ("queueDepth", "x"),
            ("compression", "best"),
            ("sync", "disabled"),
            ("appliance", ""),
        ] {
            let status = Parameters::parse(&map(&[(key, value)])).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            assert!(status.message().contains(key), "{key}: {}", status.message());
        }
        Parameters::parse(&map(&[("protocol", "nfs"), ("authentication", "required")])).unwrap_err();
        Parameters::parse(&map(&[("protocol", "nfs"), ("ioQueues", "4")])).unwrap_err();
        Parameters::parse(&map(&[("protocol", "nfs"), ("zone", "lan"), ("filesystem", "xfs")])).unwrap();
        mutable(&map(&[("pool", "other")])).unwrap_err();
        assert!(
            mutable(&map(&[("provisioning", "thick"), ("compression", "lz4")]))
                .unwrap()
                .provisioning
                .is_some()
        );
        none(&map(&[("x", "y")])).unwrap_err();
        none(&map(&[("csi.storage.k8s.io/volumesnapshot/name", "y")])).unwrap();
    }
}
