//! The machine's disks: the inventory that the API shows, the proof that a disk may be formatted, and wiping one
//! that a person gave up.
//!
//! Called by the engine, and by pools that are made of whole disks. Writes nothing but the zeros of [`wipe`].

use std::time::Duration;

use orlop_api::{
    ByteSize, Disk, DiskHealth, DiskHealthState, DiskName, DiskUsage, DiskWipe, ErrorKind, PoolName,
};

use super::context::Context;
use super::{PoolEnv, Result};
use crate::kernel::Deadline;
use crate::kernel::block::{self, Content};
use crate::kernel::block::{ProbeError, Signature};
use crate::kernel::disks::{self, DiskInfo};
use crate::kernel::exec::ExecError;
use crate::kernel::smart::{self, Smart};

/// How long someone else may look at a disk.
const LOOKED_AT: Duration = Duration::from_secs(1);

/// All disks, and whether a pool may be made on each. Probes every disk that nobody holds: not for a
/// path that is taken often.
pub fn inventory(env: &PoolEnv, deadline: &Deadline) -> std::io::Result<Vec<Disk>> {
    Ok(disks::all(env.loops_as_disks)?
        .into_iter()
        .map(|d| {
            let usage = usage(&d, deadline);
            shown(d, usage)
        })
        .collect())
}

fn shown(d: DiskInfo, usage: DiskUsage) -> Disk {
    Disk {
        usage,
        name: d.name,
        by_id: d.by_id.map(|p| p.display().to_string()),
        size: ByteSize(d.size),
        rotational: d.rotational,
        model: d.model,
        serial: d.serial,
        health: DiskHealth::default(),
    }
}

/// What a disk says of itself. `None`: it sleeps. That it can't be asked is no error: most virtual disks
/// can't.
pub fn health(env: &PoolEnv, disk: &DiskInfo, deadline: &Deadline) -> Option<DiskHealth> {
    let unknown = |reason| Some(DiskHealth { reason: Some(reason), ..DiskHealth::default() });
    if env.simulated {
        return unknown("this is a simulation".into());
    }
    let told = match smart::read(&disk.path, deadline) {
        Ok(Smart::Told(told)) => told,
        Ok(Smart::Silent(why)) => return unknown(why),
        Ok(Smart::Asleep) => return None,
        Err(e) => return unknown(chain(&e)),
    };
    let state = if told.failing.is_some() { DiskHealthState::Failed } else { DiskHealthState::Passed };
    Some(DiskHealth {
        state,
        reason: told.failing,
        temperature: told.temperature,
        used_percent: told.used_percent,
        power_on_hours: told.power_on_hours,
        media_errors: told.media_errors,
        reallocated_sectors: told.reallocated_sectors,
        observed: None,
    })
}

/// Whether a pool may be made on it.
fn usage(disk: &DiskInfo, deadline: &Deadline) -> DiskUsage {
    if !disk.holders.is_empty() {
        return DiskUsage::Used(disk.holders.join(", "));
    }
    match block::content(&disk.path, deadline) {
        Ok(Content::Held) => DiskUsage::Used("something in the kernel (a pool, swap)".into()),
        Ok(Content::Found(what)) => DiskUsage::Data(what),
        // A table that the probe no longer finds may still have partitions in the kernel.
        Ok(Content::Blank) if !disk.partitions.is_empty() => {
            DiskUsage::Data(format!("partitions: {}", disk.partitions.join(", ")))
        }
        Ok(Content::Blank) => DiskUsage::Blank,
        Err(e) => DiskUsage::Unreadable(chain(&e)),
    }
}

/// The same; an inventory that runs at the same time has each disk for itself for a moment.
fn patient_usage(disk: &DiskInfo, deadline: &Deadline) -> DiskUsage {
    let patience = deadline.at_most(LOOKED_AT);
    let mut found = usage(disk, deadline);
    while matches!(found, DiskUsage::Used(_)) && disk.holders.is_empty() {
        if patience.pause(Duration::from_millis(100)).is_err() {
            break;
        }
        found = usage(disk, deadline);
    }
    found
}

/// An error with its sources. (The engine has the same; a pool may not know the engine.)
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(e) = next {
        text = format!("{text}: {e}");
        next = e.source();
    }
    text
}

/// Finds a disk by the name that was asked for.
pub(super) fn resolve(ctx: &Context, env: &PoolEnv, asked: &str) -> Result<DiskInfo> {
    let all = disks::all(env.loops_as_disks).map_err(ctx.io("listing disks"))?;
    disks::find(&all, asked)
        .map_err(ctx.io(format!("looking at disk {asked}")))?
        .cloned()
        .ok_or_else(|| ctx.precondition(format!("there is no whole disk called {asked}")))
}

/// The disks of these names, all of them proven blank. Otherwise says of every one what was found (R1).
pub(super) fn prove_blank(
    ctx: &Context,
    env: &PoolEnv,
    asked: &[String],
    deadline: &Deadline,
) -> Result<Vec<DiskInfo>> {
    let mut disks: Vec<DiskInfo> = Vec::new();
    let mut not = Vec::new();
    for name in asked {
        let disk = resolve(ctx, env, name)?;
        match patient_usage(&disk, deadline) {
            DiskUsage::Blank => {}
            DiskUsage::Used(by) => not.push(format!("{name} is used by {by}")),
            DiskUsage::Data(what) => not.push(format!("{name} is not blank: {what}")),
            DiskUsage::Unreadable(why) => not.push(format!("{name} can't be proven blank: {why}")),
        }
        if disks.iter().any(|d| d.path == disk.path) {
            not.push(format!("{name} is named twice"));
        }
        disks.push(disk);
    }
    ctx.check(deadline, "probing disks")?;
    if not.is_empty() { Ok(disks) } else { Err(ctx.precondition(not.join("; "))) }
}

/// Why a disk was not wiped.
#[derive(Debug, thiserror::Error)]
pub enum WipeError {
    /// No whole disk has that name.
    #[error("disk {0} does not exist")]
    NotFound(DiskName),
    /// What must be said of it to name it was not.
    #[error("{field} must be given: it tells disk {disk} from others")]
    Unnamed {
        /// The disk.
        disk: DiskName,
        /// The field of the request.
        field: &'static str,
    },
    /// It is another disk.
    #[error("disk {disk} has {field} {have}, not {want}: it is not the disk that is meant")]
    Another {
        /// The disk.
        disk: DiskName,
        /// The field of the request.
        field: &'static str,
        /// What it has.
        have: String,
        /// What was asked.
        want: String,
    },
    /// Something stands on it.
    #[error("disk {disk} is used by {by}: nothing was changed")]
    Used {
        /// The disk.
        disk: DiskName,
        /// Who.
        by: String,
    },
    /// It says that it belongs to a pool that was not named.
    #[error(
        "disk {disk} belongs to {of}: name that as the pool to be lost, if that is meant; nothing was changed"
    )]
    Member {
        /// The disk.
        disk: DiskName,
        /// What it says.
        of: String,
    },
    /// In a simulation nothing of the machine is touched.
    #[error("this is a simulation: disks are shown, and never changed")]
    Simulated,
    /// It could not be looked at.
    #[error("it is not known what is on disk {disk}")]
    Unknown {
        /// The disk.
        disk: DiskName,
        /// Why.
        #[source]
        source: ProbeError,
    },
    /// A system call failed.
    #[error("{action}")]
    Io {
        /// What was being done.
        action: String,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// It was wiped, and something is there all the same.
    #[error("disk {disk} was wiped, and is not blank: {found}")]
    NotBlank {
        /// The disk.
        disk: DiskName,
        /// What was found.
        found: String,
    },
}

impl WipeError {
    /// The kind that a caller hears.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound(_) => ErrorKind::NotFound,
            Self::Unnamed { .. } => ErrorKind::Invalid,
            Self::Another { .. } => ErrorKind::Conflict,
            Self::Used { .. } | Self::Member { .. } => ErrorKind::Precondition,
            Self::Simulated => ErrorKind::Unsupported,
            Self::Unknown { source: ProbeError::Probe(ExecError::Missing(_)), .. } => ErrorKind::Unsupported,
            Self::Unknown { source: ProbeError::Probe(ExecError::Overrun { .. }), .. } => ErrorKind::Deadline,
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::TimedOut => ErrorKind::Deadline,
            Self::Unknown { .. } | Self::Io { .. } | Self::NotBlank { .. } => ErrorKind::Internal,
        }
    }
}

/// Makes a disk blank, whatever is on it, if it is the one that is meant, nobody uses it, and it belongs to no
/// pool that was not named. `ours` are the pools of this appliance with what they stand on. One that is blank
/// already stays as it is.
pub fn wipe(
    env: &PoolEnv,
    name: &DiskName,
    ask: &DiskWipe,
    ours: &[(PoolName, Vec<String>)],
    deadline: &Deadline,
) -> std::result::Result<Disk, WipeError> {
    let io = |action: String| move |source| WipeError::Io { action, source };
    let all = disks::all(env.loops_as_disks).map_err(io("listing disks".into()))?;
    let disk =
        all.iter().find(|d| d.name == name.as_str()).ok_or_else(|| WipeError::NotFound(name.clone()))?;
    check_identity(name, disk, ask)?;
    if env.simulated {
        return Err(WipeError::Simulated);
    }
    let used = |by: String| WipeError::Used { disk: name.clone(), by };
    for (path, what) in
        [(std::path::Path::new("/"), "the system"), (env.mounts.as_path(), "the daemon's state")]
    {
        let under = disks::under(path).map_err(io(format!("looking at what is below {}", path.display())))?;
        if under.contains(&disk.name) {
            return Err(used(what.into()));
        }
    }
    for (pool, media) in ours {
        for medium in media.iter().filter(|m| !std::path::Path::new(m).is_dir()) {
            // One that is not there any more is no disk; one that can't be looked at may be this one.
            let found =
                disks::find(&all, medium).map_err(io(format!("looking at {medium} of pool {pool}")))?;
            if found.is_some_and(|d| d.name == disk.name) {
                return Err(used(format!("pool {pool}")));
            }
        }
    }
    match patient_usage(disk, deadline) {
        DiskUsage::Blank => return Ok(shown(disk.clone(), DiskUsage::Blank)),
        DiskUsage::Used(by) => return Err(used(by)),
        DiskUsage::Data(_) | DiskUsage::Unreadable(_) => {}
    }
    let wiping = || io(format!("wiping disk {name}"));
    let Some(claimed) = block::take(&disk.path).map_err(wiping())? else {
        return Err(used("something in the kernel".into()));
    };
    // Looked at once more now that nobody else can take it: names of disks change hands, and what was found
    // until here took a while.
    let all = disks::all(env.loops_as_disks).map_err(io("listing disks".into()))?;
    let disk =
        all.iter().find(|d| d.name == name.as_str()).ok_or_else(|| WipeError::NotFound(name.clone()))?;
    if !claimed.is_at(&disk.path).map_err(wiping())? {
        return Err(WipeError::NotFound(name.clone()));
    }
    check_identity(name, disk, ask)?;
    check_member(name, disk, ask.pool.as_deref(), deadline)?;
    tracing::warn!(disk = disk.name, serial = disk.serial, "wiping a disk, as was asked");
    block::wipe_all(&claimed, &disks::extents(disk), deadline).map_err(wiping())?;
    drop(claimed);
    // By the proof that a pool will ask for, of the disk as it is now: its partitions are gone.
    let all = disks::all(env.loops_as_disks).map_err(io("listing disks".into()))?;
    let disk =
        all.into_iter().find(|d| d.name == name.as_str()).ok_or_else(|| WipeError::NotFound(name.clone()))?;
    match patient_usage(&disk, deadline) {
        DiskUsage::Blank => Ok(shown(disk, DiskUsage::Blank)),
        DiskUsage::Used(found) | DiskUsage::Data(found) | DiskUsage::Unreadable(found) => {
            Err(WipeError::NotBlank { disk: name.clone(), found })
        }
    }
}

/// Whether all that was said of the disk is so, and enough was said.
fn check_identity(name: &DiskName, disk: &DiskInfo, ask: &DiskWipe) -> std::result::Result<(), WipeError> {
    const BY_ID: &str = "/dev/disk/by-id/";
    let by_id = disk.by_id.as_ref().map(|p| p.display().to_string());
    let short = |text: &str| text.strip_prefix(BY_ID).unwrap_or(text).to_string();
    let size = disk.size.to_string();
    let said = [
        ("serial", ask.serial.clone(), disk.serial.clone()),
        ("by_id", ask.by_id.as_deref().map(short), by_id.as_deref().map(short)),
        ("size", ask.size.map(|s| s.bytes().to_string()), Some(size)),
    ];
    for (field, want, have) in &said {
        let Some(want) = want else { continue };
        if have.as_ref() != Some(want) {
            let have = have.clone().unwrap_or_else(|| "none".into());
            return Err(WipeError::Another { disk: name.clone(), field, have, want: want.clone() });
        }
    }
    let field = match (&disk.serial, &by_id) {
        _ if ask.serial.is_some() || ask.by_id.is_some() => return Ok(()),
        (Some(_), _) => "serial",
        (None, Some(_)) => "by_id",
        (None, None) if ask.size.is_some() => return Ok(()),
        (None, None) => "size",
    };
    Err(WipeError::Unnamed { disk: name.clone(), field })
}

/// Whether the disk or a partition of it says that it belongs to a pool, a group or an array that is not `lost`.
fn check_member(
    name: &DiskName,
    disk: &DiskInfo,
    lost: Option<&str>,
    deadline: &Deadline,
) -> std::result::Result<(), WipeError> {
    let parts = disk.partitions.iter().map(|p| std::path::Path::new("/dev").join(p));
    for path in std::iter::once(disk.path.clone()).chain(parts) {
        let found = block::signature(&path, deadline);
        let found = found.map_err(|source| WipeError::Unknown { disk: name.clone(), source })?;
        let Some(found) = found else { continue };
        // Where LVM's own text can't be read, it goes by its UUID.
        let group = || super::lvm::group_of(&path).ok().flatten();
        let group = (found.kind.as_deref() == Some("LVM2_member")).then(group).flatten();
        if let Some(of) = member_of(&found, group.as_deref(), lost) {
            return Err(WipeError::Member { disk: name.clone(), of });
        }
    }
    Ok(())
}

/// What a signature belongs to beside its own disk, in words, unless that is what is to be `lost`. There is
/// always a name to say: at the least, the kind. What can't be told apart may belong to anything: that is for a
/// person with other tools.
fn member_of(found: &Signature, group: Option<&str>, lost: Option<&str>) -> Option<String> {
    let Some(kind) = found.kind.as_deref() else {
        return (!found.table).then(|| format!("nobody knows what ({})", found.words));
    };
    let label = found.label.as_deref();
    // File systems of our own making are named after their pool. XFS has room for 12 letters: one that fills
    // them may be any of several, and goes by its UUID.
    let ours = label.filter(|l| ["xfs", "btrfs"].contains(&kind) && l.starts_with("orlop-"));
    if let Some(label) = ours {
        let uuid = found.uuid.as_deref();
        let cut = kind == "xfs" && label.len() >= 12;
        let meant = lost.is_some_and(|lost| Some(lost) == uuid || (!cut && label == format!("orlop-{lost}")));
        return (!meant).then(|| format!("a pool ({label}, {})", uuid.unwrap_or("without a UUID")));
    }
    if !kind.ends_with("_member") {
        return None;
    }
    // An array of our own making has its pool's name, with ours before it.
    let label = label.map(|l| if kind == "linux_raid_member" { super::arrays::pool_of(l) } else { l });
    let what = group.or(label).or(found.uuid.as_deref()).unwrap_or(kind);
    let meant = lost.is_some_and(|lost| lost == what || Some(lost) == found.uuid.as_deref());
    (!meant).then(|| format!("{what} ({kind})"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn disk(serial: Option<&str>, by_id: Option<&str>) -> DiskInfo {
        DiskInfo {
            name: "sdb".into(),
            path: "/dev/sdb".into(),
            size: 1000,
            rotational: true,
            model: None,
            serial: serial.map(str::to_string),
            by_id: by_id.map(Into::into),
            partitions: Vec::new(),
            holders: Vec::new(),
        }
    }

    fn check(disk: &DiskInfo, ask: &DiskWipe) -> std::result::Result<(), (ErrorKind, &'static str)> {
        check_identity(&"sdb".parse().unwrap(), disk, ask).map_err(|e| match e {
            WipeError::Unnamed { field, .. } | WipeError::Another { field, .. } => (e.kind(), field),
            other => panic!("{other}"),
        })
    }

    #[test]
    fn a_disk_is_named_by_what_it_is_and_not_by_its_place() {
        use ErrorKind::{Conflict, Invalid};
        let whole = disk(Some("S1"), Some("/dev/disk/by-id/wwn-1"));
        let none = DiskWipe::default();
        let serial = |s: &str| DiskWipe { serial: Some(s.into()), ..DiskWipe::default() };
        let by_id = |s: &str| DiskWipe { by_id: Some(s.into()), ..DiskWipe::default() };
        let size = |n| DiskWipe { size: Some(ByteSize(n)), ..DiskWipe::default() };
        assert_eq!(check(&whole, &none), Err((Invalid, "serial")));
        assert_eq!(check(&whole, &size(1000)), Err((Invalid, "serial")));
        assert_eq!(check(&whole, &serial("S1")), Ok(()));
        assert_eq!(check(&whole, &serial("s1")), Err((Conflict, "serial")));
        assert_eq!(check(&whole, &serial("")), Err((Conflict, "serial")));
        assert_eq!(check(&whole, &by_id("wwn-1")), Ok(()));
        assert_eq!(check(&whole, &by_id("/dev/disk/by-id/wwn-1")), Ok(()));
        assert_eq!(check(&whole, &by_id("wwn-2")), Err((Conflict, "by_id")));
        // One that is right does not make up for one that is wrong.
        let both = DiskWipe { size: Some(ByteSize(999)), ..serial("S1") };
        assert_eq!(check(&whole, &both), Err((Conflict, "size")));
        assert_eq!(
            check(&whole, &DiskWipe { by_id: Some("wwn-2".into()), ..serial("S1") }),
            Err((Conflict, "by_id"))
        );
        let linked = disk(None, Some("/dev/disk/by-id/virtio-x"));
        assert_eq!(check(&linked, &size(1000)), Err((Invalid, "by_id")));
        assert_eq!(check(&linked, &serial("S1")), Err((Conflict, "serial")));
        let bare = disk(None, None);
        assert_eq!(check(&bare, &none), Err((Invalid, "size")));
        assert_eq!(check(&bare, &size(1000)), Ok(()));
        assert_eq!(check(&bare, &size(1001)), Err((Conflict, "size")));
    }

    #[test]
    fn a_member_of_a_pool_is_lost_by_name_only() {
        let found = |kind: &str, label: Option<&str>, uuid: Option<&str>| Signature {
            kind: Some(kind.into()),
            table: false,
            label: label.map(str::to_string),
            uuid: uuid.map(str::to_string),
            words: String::new(),
        };
        let zfs = found("zfs_member", Some("tank"), Some("123"));
        assert_eq!(member_of(&zfs, None, None).as_deref(), Some("tank (zfs_member)"));
        assert!(member_of(&zfs, None, Some("tan")).is_some());
        assert!(member_of(&zfs, None, Some("")).is_some());
        assert_eq!(member_of(&zfs, None, Some("tank")), None);
        assert_eq!(member_of(&zfs, None, Some("123")), None);
        let lvm = found("LVM2_member", None, Some("abc-def"));
        assert_eq!(member_of(&lvm, Some("vg"), None).as_deref(), Some("vg (LVM2_member)"));
        assert_eq!(member_of(&lvm, Some("vg"), Some("vg")), None);
        assert_eq!(member_of(&lvm, None, None).as_deref(), Some("abc-def (LVM2_member)"));
        let array = found("linux_raid_member", None, None);
        assert_eq!(member_of(&array, None, Some("linux_raid_member")), None);
        assert!(member_of(&array, None, Some("md0")).is_some());
        for (kind, label, by_name) in [
            ("xfs", "orlop-tape", "tape"),
            ("xfs", "orlop-archiv", "u"),
            ("btrfs", "orlop-archive", "archive"),
        ] {
            let ours = found(kind, Some(label), Some("u"));
            assert!(member_of(&ours, None, None).is_some());
            assert!(member_of(&ours, None, Some("arch")).is_some());
            assert_eq!(member_of(&ours, None, Some(by_name)), None);
            assert_eq!(member_of(&ours, None, Some("u")), None);
        }
        // Cut off: it may be that of archive1 or of archive2.
        let cut = found("xfs", Some("orlop-archiv"), Some("u"));
        assert!(member_of(&cut, None, Some("archive1")).is_some());
        // Whoever names the disk itself means what is on it alone.
        for kind in ["xfs", "ext4", "swap", "crypto_LUKS"] {
            assert_eq!(member_of(&found(kind, Some("data"), None), None, None), None);
        }
        let unknown = Signature { kind: None, ..zfs };
        assert!(member_of(&unknown, None, Some("tank")).is_some(), "it may be anybody's");
        assert_eq!(member_of(&Signature { table: true, ..unknown }, None, None), None);
    }
}
