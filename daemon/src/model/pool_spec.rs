//! What a pool is made of: checked form of `PoolCreate`, and what the journal keeps to open it again.

use std::path::PathBuf;

use orlop_api::{ByteSize, Filesystem, PoolCreate, PoolKind, PoolLayout, PoolName};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A pool's kind and what it stands on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum PoolMedium {
    /// A zpool on whole disks. Opened by its name, so the disks matter at creation only.
    Zfs {
        /// As they were asked for, and changed since.
        disks: Vec<String>,
        /// How it is laid out on them.
        #[serde(default, skip_serializing_if = "is_striped")]
        layout: PoolLayout,
        /// Disks that are kept for the place of one that fails.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        spares: Vec<String>,
        /// The zpool's own number, once it is there: a disk that was pulled out of an older zpool of the
        /// same name may come back any time.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        guid: Option<u64>,
    },
    /// A volume group on whole disks or arrays of them, with one thin pool. Opened by its name.
    Lvm {
        /// As they were asked for.
        disks: Vec<String>,
        /// The arrays, where it has redundancy. Assembled before it is looked for.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        arrays: Vec<Array>,
        /// The thin pool in it.
        thin: ThinPool,
    },
    /// A directory on btrfs or XFS that someone else mounts.
    FileDirectory {
        /// Absolute.
        directory: PathBuf,
    },
    /// A whole disk that the daemon formats and mounts.
    FileDisk {
        /// As it was asked for.
        disk: String,
        /// What it is formatted with.
        filesystem: Filesystem,
        /// The file system's UUID, by which the disk is found again. Minted before it is formatted, so
        /// that after a crash in between the disk is still known to be this pool's.
        uuid: Uuid,
    },
    /// An array of disks, formatted and mounted likewise.
    FileArray {
        /// The array.
        array: Array,
        /// What it is formatted with.
        filesystem: Filesystem,
        /// The file system's UUID.
        uuid: Uuid,
    },
    /// A directory, simulated.
    Sim {
        /// Absolute.
        directory: PathBuf,
    },
}

/// Disks that the kernel's md holds together as one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Array {
    /// By which it is found again. Minted before it is made, so that after a crash in between it is known to be this
    /// pool's.
    pub uuid: Uuid,
    /// How it is laid out.
    pub layout: PoolLayout,
    /// How many disks are in use when it is whole; the others are spares.
    pub active: usize,
    /// Its disks, first those that were in use when it was made.
    pub disks: Vec<ArrayDisk>,
}

/// One disk of an array.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArrayDisk {
    /// As it was asked for.
    pub name: String,
    /// What it says of itself, once that is known: names change hands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
    /// Whether it had all that it should when it was last looked at. An array from which disks are missing is started
    /// on none that is not known to: it may have been lost long before the others.
    #[serde(default)]
    pub whole: bool,
}

impl Array {
    fn new(uuid: Uuid, layout: PoolLayout, disks: Vec<String>, spares: Vec<String>) -> Self {
        let active = disks.len();
        let disk = |name| ArrayDisk { name, id: None, whole: false };
        Self { uuid, layout, active, disks: disks.into_iter().chain(spares).map(disk).collect() }
    }

    /// Another one of the same layout. Of the same disks always the same, so that what was begun is found again.
    pub fn another(&self, disks: &[String]) -> Self {
        let uuid = Uuid::new_v5(&self.uuid, disks.join("\n").as_bytes());
        Self::new(uuid, self.layout, disks.to_vec(), Vec::new())
    }

    /// What its disks were called.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.disks.iter().map(|d| d.name.as_str())
    }

    fn same_request(&self, other: &Self) -> bool {
        self.layout == other.layout && self.active == other.active && self.names().eq(other.names())
    }
}

fn is_striped(layout: &PoolLayout) -> bool {
    *layout == PoolLayout::Stripe
}

/// What is done to the disks of a pool that is in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "change")]
pub enum PoolChange {
    /// More disks, in the pool's layout.
    Expand {
        /// As they are asked for.
        disks: Vec<String>,
    },
    /// Another disk in the place of one.
    Replace {
        /// As the pool's health names it.
        disk: String,
        /// As it is asked for.
        with: String,
    },
    /// Everything is read and compared with its checksums.
    Scrub,
    /// No longer.
    StopScrub,
}

impl std::fmt::Display for PoolChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Expand { disks } => write!(f, "expand by {}", disks.join(", ")),
            Self::Replace { disk, with } => write!(f, "replace {disk} by {with}"),
            Self::Scrub => f.write_str("scrub"),
            Self::StopScrub => f.write_str("stop of a scrub"),
        }
    }
}

/// How large an LVM pool's thin pool is made; what is not given, LVM decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ThinPool {
    /// Its data; nearly all of the disks unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
    /// Its metadata.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<ByteSize>,
}

/// A pool as the journal keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolSpec {
    /// Version of this shape: 1.
    pub v: u32,
    /// Its name.
    pub name: PoolName,
    /// What it stands on.
    pub medium: PoolMedium,
}

/// Which field of a `PoolCreate` is wrong, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {reason}")]
pub struct PoolSpecError {
    /// The field.
    pub field: &'static str,
    /// The rule that it breaks.
    pub reason: &'static str,
}

impl PoolSpec {
    /// Its kind, as the API names it.
    pub fn kind(&self) -> PoolKind {
        match self.medium {
            PoolMedium::Zfs { .. } => PoolKind::Zfs,
            PoolMedium::Lvm { .. } => PoolKind::Lvm,
            PoolMedium::FileDirectory { .. } | PoolMedium::FileDisk { .. } | PoolMedium::FileArray { .. } => {
                PoolKind::File
            }
            PoolMedium::Sim { .. } => PoolKind::Sim,
        }
    }

    /// The zpool's own number, where it is known.
    pub fn guid(&self) -> Option<u64> {
        match &self.medium {
            PoolMedium::Zfs { guid, .. } => *guid,
            _ => None,
        }
    }

    /// Whether both ask for the same pool. What was minted for one of them does not count.
    pub fn same_request(&self, other: &PoolSpec) -> bool {
        let medium = match (&self.medium, &other.medium) {
            (
                PoolMedium::FileDisk { disk, filesystem, uuid: _ },
                PoolMedium::FileDisk { disk: d, filesystem: f, uuid: _ },
            ) => disk == d && filesystem == f,
            (
                PoolMedium::Zfs { disks, layout, spares, guid: _ },
                PoolMedium::Zfs { disks: d, layout: l, spares: s, guid: _ },
            ) => disks == d && layout == l && spares == s,
            (PoolMedium::Lvm { disks, arrays, thin }, PoolMedium::Lvm { disks: d, arrays: a, thin: t }) => {
                let alike = arrays.iter().zip(a).all(|(mine, theirs)| mine.same_request(theirs));
                disks == d && thin == t && arrays.len() == a.len() && alike
            }
            (
                PoolMedium::FileArray { array, filesystem, uuid: _ },
                PoolMedium::FileArray { array: a, filesystem: f, uuid: _ },
            ) => array.same_request(a) && filesystem == f,
            (mine, theirs) => mine == theirs,
        };
        self.name == other.name && medium
    }

    /// What it is when a change of its disks has been made.
    pub fn after(&self, change: &PoolChange) -> Self {
        let mut spec = self.clone();
        if let PoolMedium::Zfs { disks, spares, .. } = &mut spec.medium {
            match change {
                PoolChange::Expand { disks: more } => {
                    disks.extend(more.iter().filter(|d| !self.media().contains(&d.as_str())).cloned());
                }
                PoolChange::Replace { disk, with } => {
                    let place = disks.iter_mut().chain(spares.iter_mut()).find(|d| *d == disk);
                    match place {
                        Some(place) => with.clone_into(place),
                        // It is known by a number of the pool's own, or by another path.
                        None if !self.media().contains(&with.as_str()) => disks.push(with.clone()),
                        None => {}
                    }
                }
                PoolChange::Scrub | PoolChange::StopScrub => {}
            }
        }
        if let PoolMedium::Lvm { disks, arrays, .. } = &mut spec.medium
            && let PoolChange::Expand { disks: more } = change
        {
            match arrays.first().map(|first| first.another(more)) {
                Some(another) if arrays.iter().any(|a| a.uuid == another.uuid) => {}
                Some(another) => arrays.push(another),
                None => disks.extend(more.iter().filter(|d| !self.media().contains(&d.as_str())).cloned()),
            }
        }
        if let PoolChange::Replace { disk, with } = change {
            for array in spec.arrays_mut() {
                array.disks.iter_mut().filter(|d| d.name == *disk).for_each(|d| {
                    *d = ArrayDisk { name: with.clone(), id: None, whole: false };
                });
            }
        }
        spec
    }

    /// The arrays that it stands on.
    pub fn arrays(&self) -> &[Array] {
        match &self.medium {
            PoolMedium::Lvm { arrays, .. } => arrays,
            PoolMedium::FileArray { array, .. } => std::slice::from_ref(array),
            _ => &[],
        }
    }

    fn arrays_mut(&mut self) -> &mut [Array] {
        match &mut self.medium {
            PoolMedium::Lvm { arrays, .. } => arrays,
            PoolMedium::FileArray { array, .. } => std::slice::from_mut(array),
            _ => &mut [],
        }
    }

    /// The same with its arrays as they are now.
    pub fn with_arrays(&self, now: Vec<Array>) -> Self {
        let mut spec = self.clone();
        match &mut spec.medium {
            PoolMedium::Lvm { arrays, .. } => *arrays = now,
            PoolMedium::FileArray { array, .. } => now.into_iter().for_each(|a| *array = a),
            _ => {}
        }
        spec
    }

    /// The directory or disks that no other pool may stand on.
    pub fn media(&self) -> Vec<&str> {
        match &self.medium {
            PoolMedium::Zfs { disks, spares, .. } => disks.iter().chain(spares).map(String::as_str).collect(),
            PoolMedium::Lvm { disks, arrays, .. } => {
                disks.iter().map(String::as_str).chain(arrays.iter().flat_map(Array::names)).collect()
            }
            PoolMedium::FileDisk { disk, .. } => vec![disk],
            PoolMedium::FileArray { array, .. } => array.names().collect(),
            PoolMedium::FileDirectory { directory } | PoolMedium::Sim { directory } => {
                directory.to_str().into_iter().collect()
            }
        }
    }
}

impl std::fmt::Display for PoolSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.medium {
            PoolMedium::Zfs { disks, layout, .. } if is_striped(layout) => {
                write!(f, "zfs on {}", disks.join(", "))
            }
            PoolMedium::Zfs { disks, layout, .. } => {
                write!(f, "zfs, {}, on {}", layout.as_str(), disks.join(", "))
            }
            PoolMedium::Lvm { arrays, .. } if !arrays.is_empty() => {
                write!(f, "lvm, {}, on {}", arrays[0].layout.as_str(), self.media().join(", "))
            }
            PoolMedium::Lvm { disks, .. } => write!(f, "lvm on {}", disks.join(", ")),
            PoolMedium::FileArray { array, .. } => {
                write!(f, "file, {}, on {}", array.layout.as_str(), self.media().join(", "))
            }
            PoolMedium::FileDisk { disk, .. } => write!(f, "file on {disk}"),
            PoolMedium::FileDirectory { directory } => write!(f, "file in {}", directory.display()),
            PoolMedium::Sim { directory } => write!(f, "sim in {}", directory.display()),
        }
    }
}

/// Whether a text can name a disk; `field` is where it stands.
pub fn check_disk(field: &'static str, disk: &str) -> Result<(), PoolSpecError> {
    let name = disk.strip_prefix("/dev/").unwrap_or(disk);
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._:+-/".contains(&b);
    let plain = !name.is_empty()
        && name.bytes().all(allowed)
        && !name.starts_with('-')
        && !name.split('/').any(|p| p.is_empty() || p == "..")
        && (disk.starts_with("/dev/") || !name.contains('/'));
    let reason = "must be kernel names or paths below /dev";
    if plain { Ok(()) } else { Err(PoolSpecError { field, reason }) }
}

impl TryFrom<PoolCreate> for PoolSpec {
    type Error = PoolSpecError;

    fn try_from(ask: PoolCreate) -> Result<Self, PoolSpecError> {
        let err = |field, reason| Err(PoolSpecError { field, reason });
        let directory = match ask.directory {
            None => None,
            Some(d) => {
                let d = PathBuf::from(d);
                let plain = d
                    .components()
                    .all(|c| matches!(c, std::path::Component::RootDir | std::path::Component::Normal(_)));
                if !d.is_absolute() || !plain || d.as_os_str().as_encoded_bytes().contains(&0) {
                    return err("directory", "must be an absolute path without '..'");
                }
                Some(d)
            }
        };
        for disk in &ask.disks {
            check_disk("disks", disk)?;
        }
        for disk in &ask.spares {
            check_disk("spares", disk)?;
        }
        let layout = ask.layout.unwrap_or_default();
        use PoolLayout::{Mirror, Raid5, Raid10, Stripe};
        match (ask.kind, layout) {
            (PoolKind::Zfs, Raid5 | Raid10) => {
                return err("layout", "of a zfs pool is stripe, mirror, raidz1 to 3 or draid1 to 3");
            }
            (PoolKind::Zfs, _) | (PoolKind::Lvm | PoolKind::File, Stripe | Mirror | Raid5 | Raid10) => {}
            (PoolKind::Lvm | PoolKind::File, _) => {
                return err("layout", "of an lvm or file pool is stripe, mirror, raid5 or raid10");
            }
            (PoolKind::Sim, _) if ask.layout.is_some() => return err("layout", "is not for sim pools"),
            (PoolKind::Sim, _) => {}
        }
        if ask.layout.is_some() && directory.is_some() {
            return err("layout", "is for disks, not for a directory");
        }
        if !ask.disks.is_empty() && ask.disks.len() < layout.least() && !ask.import {
            return err(
                "disks",
                "must be at least two for a mirror, four for raid10, and three, four, five for raid5 and raidz or \
                 draid 1, 2, 3",
            );
        }
        if layout == Raid10 && !ask.disks.len().is_multiple_of(2) {
            return err("disks", "must be an even number for raid10");
        }
        if is_striped(&layout) && !ask.spares.is_empty() {
            return err("spares", "need a layout that survives the loss of a disk");
        }
        if ask
            .disks
            .iter()
            .chain(&ask.spares)
            .enumerate()
            .any(|(n, d)| ask.disks.iter().chain(&ask.spares).take(n).any(|other| other == d))
        {
            return err("disks", "must not name one twice");
        }
        if ask.filesystem.is_some() && (ask.kind != PoolKind::File || ask.disks.is_empty()) {
            return err("filesystem", "is for file pools on a disk only");
        }
        for (field, size) in [("thin_size", ask.thin_size), ("thin_metadata_size", ask.thin_metadata_size)] {
            let Some(size) = size else { continue };
            if ask.kind != PoolKind::Lvm {
                return err(field, "is for lvm pools only");
            }
            if size.bytes() == 0 || !size.is_multiple_of(ByteSize::MIB) {
                return err(field, "must be a whole number of MiB");
            }
        }
        // What dm-thin can address and lvm2 accepts (lvmthin(7)).
        if ask.thin_metadata_size.is_some_and(|s| s.bytes() < 2 << 20 || s.bytes() > 15 << 30) {
            return err("thin_metadata_size", "must be 2 MiB to 15 GiB");
        }
        if ask.force && (!ask.import || ask.kind != PoolKind::Zfs) {
            return err("force", "is for importing a zfs pool only");
        }
        let guid = match &ask.guid {
            None => None,
            Some(_) if !ask.import || ask.kind != PoolKind::Zfs => {
                return err("guid", "is for importing a zfs pool only");
            }
            Some(text) => {
                // `u64` would take a sign.
                let digits = text.bytes().all(|b| b.is_ascii_digit());
                match text.parse::<u64>() {
                    Ok(n) if digits && n > 0 => Some(n),
                    _ => return err("guid", "must be a zpool's number, in digits"),
                }
            }
        };
        if ask.import && (ask.layout.is_some() || ask.thin_size.is_some() || ask.thin_metadata_size.is_some())
        {
            return err("import", "takes a pool as it is: leave out how it is to be made");
        }
        let thin = ThinPool { size: ask.thin_size, metadata: ask.thin_metadata_size };
        let medium = match (ask.kind, directory, ask.disks.len()) {
            // Found by its name, wherever its disks are.
            (PoolKind::Zfs, None, _) if ask.import => {
                PoolMedium::Zfs { disks: ask.disks, layout, spares: ask.spares, guid }
            }
            (PoolKind::Lvm, None, _) if ask.import => {
                PoolMedium::Lvm { disks: ask.disks, arrays: Vec::new(), thin }
            }
            (PoolKind::Zfs, None, 1..) => {
                PoolMedium::Zfs { disks: ask.disks, layout, spares: ask.spares, guid: None }
            }
            (PoolKind::Zfs, Some(_), _) => return err("directory", "does not go with a zfs pool"),
            (PoolKind::Zfs, None, 0) => return err("disks", "must name at least one disk"),
            (PoolKind::Lvm, None, 1..) if is_striped(&layout) => {
                PoolMedium::Lvm { disks: ask.disks, arrays: Vec::new(), thin }
            }
            (PoolKind::Lvm, None, 1..) => {
                let array = Array::new(Uuid::now_v7(), layout, ask.disks, ask.spares);
                PoolMedium::Lvm { disks: Vec::new(), arrays: vec![array], thin }
            }
            (PoolKind::Lvm, Some(_), _) => return err("directory", "does not go with an lvm pool"),
            (PoolKind::Lvm, None, 0) => return err("disks", "must name at least one disk"),
            (PoolKind::File, Some(directory), 0) => PoolMedium::FileDirectory { directory },
            (PoolKind::File, None, 1) => PoolMedium::FileDisk {
                disk: ask.disks.into_iter().next().unwrap_or_default(),
                filesystem: ask.filesystem.unwrap_or(Filesystem::Xfs),
                uuid: Uuid::now_v7(),
            },
            (PoolKind::File, None, 2..) if !is_striped(&layout) => PoolMedium::FileArray {
                array: Array::new(Uuid::now_v7(), layout, ask.disks, ask.spares),
                filesystem: ask.filesystem.unwrap_or(Filesystem::Xfs),
                uuid: Uuid::now_v7(),
            },
            (PoolKind::File, ..) => {
                return err(
                    "disks",
                    "must be one disk, or several with a layout, or give a directory instead",
                );
            }
            (PoolKind::Sim, Some(directory), 0) => PoolMedium::Sim { directory },
            (PoolKind::Sim, ..) => return err("directory", "must be given, and no disks, for a sim pool"),
        };
        Ok(Self { v: 1, name: ask.name, medium })
    }
}
