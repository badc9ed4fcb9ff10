//! What was seen of the server, and the changes that can be made to it. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use orlop_api::VolumeId;

/// The server, as far as a scope reaches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Whether it runs.
    pub running: bool,
    /// Whether it runs with the settings that it should have. Of one that does not run: true.
    pub as_set: bool,
    /// Whether its settings are written down as they should be.
    pub written: bool,
    /// Whether somebody checks tickets of Kerberos for it, with the keys that there are. Where nobody is asked for one it is
    /// not looked at: true.
    pub checks_tickets: bool,
    /// Volumes of which there is something.
    pub volumes: BTreeMap<VolumeId, Volume>,
    /// What the desired backings are.
    pub backings: BTreeMap<VolumeId, Backing>,
}

/// What there is of a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Volume {
    /// Its file.
    pub file: Option<String>,
    /// Its entries in the server's table: client and options.
    pub table: BTreeMap<String, String>,
    /// The device number of what is mounted in its place.
    pub bound: Option<(u32, u32)>,
}

/// What is at the path of a backing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// Nothing.
    Missing,
    /// Something else than a directory.
    NotDirectory,
    /// A directory in which nothing is mounted: what is below it belongs to the appliance.
    NotMounted,
    /// A directory in which this device is mounted.
    Mounted((u32, u32)),
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Something about one volume.
    Volume {
        /// Whose.
        volume: VolumeId,
        /// Where hosts mount it.
        path: PathBuf,
        /// What.
        change: Change,
    },
    /// Write the server's settings.
    Configure,
    /// Start the server. It serves what the files say.
    Start,
    /// Start it anew, with other settings. Hosts reclaim what they had.
    Restart,
}

/// A change to a volume. Those that close come first, in the order of a teardown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Write the file that says what to export.
    Write {
        /// All of it.
        text: String,
    },
    /// Withdraw entries from the server's table.
    Withdraw {
        /// Whose: as the table has them.
        clients: BTreeSet<String>,
    },
    /// End what those do that are not let in any more, and take from them what they have open and locked.
    Settle {
        /// Those that are let in.
        keep: BTreeSet<IpNet>,
        /// Those of whom a call that is in work must end first, let in or not: they may do less now.
        lowered: BTreeSet<IpNet>,
        /// Those that are let in, but perhaps not by the flavour that they came by: the server does not tell by which of
        /// them a client has opened a file, so all that these have open and locked is taken.
        turned_away: BTreeSet<IpNet>,
        /// The same of everybody who is not let in: who they were can't be told. The server's list does not say what
        /// file system a call is about, so this may wait for another volume's disk.
        all: bool,
        /// The device number of the file system.
        device: (u32, u32),
    },
    /// Take from all hosts what they have open and locked, and take the volume out of its place.
    Release,
    /// Remove the file.
    Remove,
    /// Not possible: says why.
    Refuse {
        /// What can't be served.
        backing: PathBuf,
        /// Why.
        detail: &'static str,
    },
    /// Show the backing in the volume's place.
    Bind {
        /// The backing.
        backing: PathBuf,
        /// What must be mounted there.
        device: (u32, u32),
    },
    /// Put an entry for each of these in the server's table, over older ones.
    Export {
        /// The clients.
        clients: BTreeSet<String>,
        /// With what options.
        options: String,
    },
    /// Have the tickets of those checked who come by Kerberos. Until then they wait, and are refused in the end.
    CheckTickets,
}

fn list(clients: &BTreeSet<String>) -> String {
    let all: Vec<&str> = clients.iter().map(String::as_str).collect();
    all.join(", ")
}

fn shown(path: &Path) -> std::path::Display<'_> {
    path.display()
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume { path, change, .. } => match change {
                Change::Write { .. } => write!(f, "write the exports of {}", shown(path)),
                Change::Withdraw { clients } => {
                    write!(f, "no longer export {} to {}", shown(path), list(clients))
                }
                Change::Settle { .. } => write!(f, "end what others do at {}", shown(path)),
                Change::Release => write!(f, "release {}", shown(path)),
                Change::Remove => write!(f, "remove the exports of {}", shown(path)),
                Change::Refuse { backing, .. } => write!(f, "refuse {}", shown(backing)),
                Change::Bind { backing, .. } => write!(f, "show {} at {}", shown(backing), shown(path)),
                Change::Export { clients, .. } => write!(f, "export {} to {}", shown(path), list(clients)),
                Change::CheckTickets => write!(f, "have Kerberos tickets for {} checked", shown(path)),
            },
            Self::Configure => write!(f, "write the settings of the NFS server"),
            Self::Start => write!(f, "start the NFS server"),
            Self::Restart => write!(f, "restart the NFS server"),
        }
    }
}
