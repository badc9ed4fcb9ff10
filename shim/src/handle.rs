//! What Kubernetes calls volumes, snapshots and groups of them: `<appliance>/<what the appliance calls it>`.

use std::fmt;
use std::str::FromStr;

use orlop_api::{SnapshotId, SnapshotName, VolumeId};
use uuid::Uuid;

/// The name of an appliance, in handles and in the configuration: it is for ever. 1 to 48 of `a-z 0-9 -`, a letter first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ApplianceName(Box<str>);

impl ApplianceName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ApplianceName {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let first = s.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
        let rest = s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if first && rest && s.len() <= 48 {
            return Ok(Self(s.into()));
        }
        Err(format!("{s:?} is no appliance's name: 1 to 48 of a-z, 0-9 and -, a letter first"))
    }
}

impl TryFrom<String> for ApplianceName {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

impl From<ApplianceName> for String {
    fn from(name: ApplianceName) -> Self {
        name.0.into()
    }
}

impl fmt::Display for ApplianceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Something of an appliance's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle<T> {
    /// Whose.
    pub appliance: ApplianceName,
    /// What.
    pub id: T,
}

/// A volume's handle.
pub type VolumeHandle = Handle<VolumeId>;
/// A snapshot's.
pub type SnapshotHandle = Handle<SnapshotId>;
/// Of a group of snapshots.
pub type GroupHandle = Handle<SnapshotName>;

impl<T: FromStr> Handle<T> {
    /// `None`: it is none of this driver's, so there is no such thing.
    pub fn parse(text: &str) -> Option<Self> {
        let (appliance, id) = text.split_once('/')?;
        Some(Self { appliance: appliance.parse().ok()?, id: id.parse().ok()? })
    }
}

impl<T: fmt::Display> fmt::Display for Handle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.appliance, self.id)
    }
}

/// The longest name of a volume, a snapshot or a group that CSI has.
pub const LONGEST_NAME: usize = 128;
/// The longest that is kept as it is: a group's must fit into its handle, and has a number added for each snapshot.
const LONGEST_KEPT: usize = 72;
/// What names begin with that stand for others.
const STANDS_FOR: &str = "csi-u5-";

/// What the appliance calls something that has this name in CSI, where nearly every character may be in a name: the
/// same if it can, else one that stands for it and for no other.
pub fn name_for<T: FromStr>(name: &str) -> Option<T> {
    let kept = name.len() <= LONGEST_KEPT && !name.starts_with(STANDS_FOR);
    if let Some(name) = kept.then(|| name.parse().ok()).flatten() {
        return Some(name);
    }
    let space = Uuid::new_v5(&Uuid::NAMESPACE_DNS, crate::DRIVER.as_bytes());
    format!("{STANDS_FOR}{}", Uuid::new_v5(&space, name.as_bytes()).simple()).parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use orlop_api::VolumeName;

    const ID: &str = "0190c0de-1234-7abc-8def-0123456789ab";

    #[test]
    fn a_handle_is_read_as_it_is_written() {
        let text = format!("attic-2/{ID}");
        let handle = VolumeHandle::parse(&text).unwrap();
        assert_eq!((handle.appliance.as_str(), handle.id.to_string()), ("attic-2", ID.to_string()));
        assert_eq!(handle.to_string(), text);
        for none in [
            "",
            "/",
            ID,
            "attic/",
            &format!("/{ID}"),
            &format!("Attic/{ID}"),
            &format!("a/b/{ID}"),
            "attic/x",
        ] {
            assert_eq!(VolumeHandle::parse(none), None, "{none}");
        }
        let longest = format!("{}/{}", "a".repeat(48), "g".repeat(LONGEST_KEPT));
        assert!(GroupHandle::parse(&longest).unwrap().to_string().len() <= 128);
    }

    #[test]
    fn every_name_has_one_that_the_appliance_can_have() {
        let of = |name: &str| name_for::<VolumeName>(name).unwrap().as_str().to_string();
        assert_eq!(
            of("pvc-0190c0de-1234-7abc-8def-0123456789ab"),
            "pvc-0190c0de-1234-7abc-8def-0123456789ab"
        );
        let odd = ["ü", "a b", "..", "-x", &"x".repeat(128), "a/b", "a\\b", "名前", "csi-u5-x"];
        let mut all: Vec<_> = odd.iter().map(|name| of(name)).collect();
        assert!(all.iter().all(|n| n.starts_with(STANDS_FOR)), "{all:?}");
        // Nothing that stands for another can be had by its own name.
        let stood_for = all[0].clone();
        all.push(of(&stood_for));
        all.sort();
        all.dedup();
        assert_eq!(all.len(), odd.len() + 1);
    }
}
