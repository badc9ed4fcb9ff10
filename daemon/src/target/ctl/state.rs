//! What was seen of the file and the kernel, and the changes that can be made. Pure. No secret is in any of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use orlop_api::VolumeId;

use super::kernel::{KernelPort, Lun, Session};
use crate::target::Export;

/// The file and the kernel, as far as a scope reaches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Why the file can't be changed: it is not ours.
    pub foreign_file: Option<String>,
    /// What does not belong to one volume is as it should be: groups of portals, limits, who may read the file,
    /// and that it is as it was written.
    pub frame_right: bool,
    /// By volume.
    pub volumes: BTreeMap<VolumeId, Seen>,
    /// Devices that others have configured, and who.
    pub foreign_devices: BTreeMap<String, String>,
}

/// A volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// What its target or controller is called.
    pub name: String,
    /// What the file has of it.
    pub entry: Option<Entry>,
    /// Who is to be let in.
    pub admission: Admission,
    /// The file has what it should of it, secrets included, given that it is to be served.
    pub right: bool,
    /// The kernel has what the file has of it, read from this very file.
    pub loaded: bool,
    /// The kernel's LUN.
    pub lun: Option<Lun>,
    /// The kernel's ports.
    pub ports: Vec<KernelPort>,
    /// Who is connected.
    pub sessions: Vec<Session>,
    /// A host left it, and its sessions have not been ended since.
    pub unsettled: bool,
}

/// What the file has of a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// Who is let in. `None`: nobody can tell.
    pub hosts: Option<BTreeSet<String>>,
    /// Nobody may write.
    pub read_only: bool,
    /// Its device or file.
    pub path: String,
}

/// Who of the hosts of a volume can be let in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Admission {
    /// Those that are.
    pub hosts: BTreeSet<String>,
    /// Those that can't be, and why.
    pub left_out: BTreeMap<String, &'static str>,
    /// Nobody may write.
    pub read_only: bool,
}

/// Why a volume is not served as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// `ctld` has no such thing.
    Unsupported(String),
    /// Something of others is in the way.
    Foreign {
        /// What.
        object: String,
        /// Why.
        detail: String,
    },
}

/// One change. What hosts must prove is looked up when it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Write the file and have it read.
    Write {
        /// The volume, in the scope of one.
        subject: Option<VolumeId>,
        /// The volumes that are to be in it as they are here.
        set: BTreeMap<VolumeId, Export>,
        /// Those of them of which the kernel must have nothing before: they stay out as long as it has.
        fresh: BTreeSet<VolumeId>,
        /// The volumes that are to be in it no more.
        drop: BTreeMap<VolumeId, String>,
    },
    /// See to it that the kernel has what the file has.
    Load {
        /// Whose.
        volume: VolumeId,
        /// The target's name.
        name: String,
        /// What it should be; `None`: nothing.
        export: Option<Box<Export>>,
    },
    /// Wait for the logins under way, end sessions, and wait until they are gone.
    End {
        /// Whose.
        volume: VolumeId,
        /// The target's name.
        name: String,
        /// Hosts whose sessions stay; `None`: none.
        keep: Option<BTreeSet<String>>,
    },
    /// Note that the sessions of hosts that left have been ended.
    Settle {
        /// Whose.
        volume: VolumeId,
        /// The target's name.
        name: String,
    },
    /// Not possible: says why.
    Refuse {
        /// Whose.
        volume: VolumeId,
        /// The target's name.
        name: String,
        /// Why.
        refusal: Refusal,
    },
}

impl Step {
    /// The one volume that it is about.
    pub(super) fn volume(&self) -> Option<VolumeId> {
        match self {
            Self::Write { subject, .. } => *subject,
            Self::Load { volume, .. }
            | Self::End { volume, .. }
            | Self::Settle { volume, .. }
            | Self::Refuse { volume, .. } => Some(*volume),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { set, drop, .. } => {
                write!(f, "write the configuration of ctld")?;
                let words =
                    |f: &mut fmt::Formatter<'_>, verb: &str, mut ids: Box<dyn Iterator<Item = String>>| {
                        match ids.next() {
                            None => Ok(()),
                            Some(first) => match ids.count() {
                                0 => write!(f, ", {verb} {first}"),
                                more => write!(f, ", {verb} {first} and {more} more"),
                            },
                        }
                    };
                words(f, "without", Box::new(drop.keys().map(ToString::to_string)))?;
                words(f, "with", Box::new(set.keys().map(ToString::to_string)))
            }
            Self::Load { name, export: Some(_), .. } => write!(f, "have {name} served"),
            Self::Load { name, export: None, .. } => write!(f, "have {name} removed"),
            Self::End { name, keep: None, .. } => write!(f, "end all sessions of {name}"),
            Self::End { name, .. } => write!(f, "end sessions of {name} of other hosts"),
            Self::Settle { name, .. } => write!(f, "note that the sessions of {name} were ended"),
            Self::Refuse { name, refusal: Refusal::Foreign { object, .. }, .. } => {
                write!(f, "refuse {name} because of {object}")
            }
            Self::Refuse { name, .. } => write!(f, "refuse a part of {name}"),
        }
    }
}
