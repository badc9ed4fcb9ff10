//! The machine's disks, as sysfs tells of them.
//!
//! Called by the inventory that the API shows and by pools that take whole disks. Reads only.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use super::{block, mount};

/// One disk: a whole device, not a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskInfo {
    /// `vdb`.
    pub name: String,
    /// `/dev/vdb`.
    pub path: PathBuf,
    /// In bytes.
    pub size: u64,
    /// Whether it has moving parts.
    pub rotational: bool,
    /// Model, where it tells.
    pub model: Option<String>,
    /// Serial number, where it tells.
    pub serial: Option<String>,
    /// The best of its names below /dev/disk/by-id.
    pub by_id: Option<PathBuf>,
    /// Its partitions' names.
    pub partitions: Vec<String>,
    /// Who holds it or a partition of it: mount points, and devices made on top.
    pub holders: Vec<String>,
}

impl DiskInfo {
    /// A path that is the same after the machine was started again, where there is one.
    pub fn lasting_path(&self) -> String {
        self.by_id.as_ref().unwrap_or(&self.path).display().to_string()
    }
}

/// Devices that are never disks to make a pool on: those made of files, memory or other disks (of a
/// zvol or a mapped device we would be making a pool on a pool), and drives for removable media.
const NOT_DISKS: [&str; 9] = ["loop", "zd", "dm-", "ram", "zram", "sr", "md", "nbd", "fd"];

/// Whether something of that name may be a disk.
pub(super) fn may_be_disk(name: &str) -> bool {
    !NOT_DISKS.iter().any(|n| name.starts_with(n))
}

/// All of them, ordered by name. With `loops`, bound loop devices count as disks: for tests.
pub fn all(loops: bool) -> io::Result<Vec<DiskInfo>> {
    let sys = Path::new("/sys/block");
    let mounts = mount::mounts()?;
    let by_id = by_id();
    let swaps = swaps();
    let mut disks = Vec::new();
    for entry in std::fs::read_dir(sys)? {
        let Ok(name) = entry?.file_name().into_string() else { continue };
        let is_loop = name.starts_with("loop");
        if !(may_be_disk(&name) || (is_loop && loops)) {
            continue;
        }
        let dir = sys.join(&name);
        // In sectors of 512 bytes, whatever the disk's own are.
        let Some(size) = number(&dir.join("size")).map(|s| s.saturating_mul(512)) else { continue };
        // An empty drive, or a path of a multipath namespace that has no node of its own.
        if size == 0 || attribute(&dir.join("hidden")).as_deref() == Some("1") {
            continue;
        }
        let partitions = partitions(&dir, &name);
        let mut holders = Vec::new();
        for part in std::iter::once(None).chain(partitions.iter().map(Some)) {
            let (dir, name) = part.map_or((dir.clone(), &name), |p| (dir.join(p), p));
            holders.extend(names(&dir.join("holders")));
            let device = attribute(&dir.join("dev"));
            let node = Path::new("/dev").join(name);
            holders.extend(
                mounts
                    .iter()
                    .filter(|m| {
                        device.as_deref() == Some(&format!("{}:{}", m.device.0, m.device.1))
                            || m.source == node
                    })
                    .map(|m| m.point.display().to_string()),
            );
            holders.extend(swaps.iter().filter(|s| **s == node).map(|s| format!("swap on {}", s.display())));
        }
        holders.dedup();
        disks.push(DiskInfo {
            path: Path::new("/dev").join(&name),
            size,
            rotational: number(&dir.join("queue/rotational")) == Some(1),
            model: attribute(&dir.join("device/model")),
            serial: attribute(&dir.join("device/serial")).or_else(|| attribute(&dir.join("serial"))),
            by_id: by_id.get(&name).cloned(),
            partitions,
            holders,
            name,
        });
    }
    disks.sort_by(|a, b| natural(&a.name).cmp(&natural(&b.name)));
    Ok(disks)
}

/// What is swapped to (proc_swaps(5)).
fn swaps() -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    text.lines().skip(1).filter_map(|l| l.split_whitespace().next()).map(PathBuf::from).collect()
}

/// Where a disk's partitions begin and how long they are, in bytes.
pub fn extents(disk: &DiskInfo) -> Vec<(u64, u64)> {
    let dir = Path::new("/sys/block").join(&disk.name);
    let of = |part: &String| {
        let bytes = |attribute: &str| number(&dir.join(part).join(attribute))?.checked_mul(512);
        Some((bytes("start")?, bytes("size")?))
    };
    disk.partitions.iter().filter_map(of).collect()
}

/// The kernel's names of the disks below what is mounted at or above a path, whatever is in between.
pub fn under(path: &Path) -> io::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mounts = mount::mounts()?;
    // Of several at one point the last is on top.
    let best = mounts.iter().enumerate().filter(|(_, m)| path.starts_with(&m.point));
    let Some((_, mount)) = best.max_by_key(|(n, m)| (m.point.components().count(), *n)) else {
        return Ok(found);
    };
    // btrfs has a device number of its own, and its device is the source.
    let (major, minor) = block::number(&mount.source).unwrap_or(mount.device);
    if let Ok(dir) = std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")) {
        below(&dir, 0, &mut found);
    }
    Ok(found)
}

/// How deep devices are stacked at most: what is deeper is a loop.
const STACKED: usize = 16;

fn below(dir: &Path, depth: usize, found: &mut BTreeSet<String>) {
    let slaves = names(&dir.join("slaves"));
    if depth < STACKED && !slaves.is_empty() {
        for slave in slaves {
            if let Ok(dir) = std::fs::canonicalize(dir.join("slaves").join(slave)) {
                below(&dir, depth + 1, found);
            }
        }
        return;
    }
    let disk = if dir.join("partition").exists() { dir.parent() } else { Some(dir) };
    found.extend(disk.and_then(|d| d.file_name()).and_then(|n| n.to_str()).map(str::to_string));
}

/// Shorter names first: `vdz` comes before `vdaa`.
fn natural(name: &str) -> (usize, &str) {
    (name.len(), name)
}

fn attribute(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_string())
}

fn number(path: &Path) -> Option<u64> {
    attribute(path)?.parse().ok()
}

fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut all: Vec<String> = entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    all.sort();
    all
}

fn partitions(dir: &Path, name: &str) -> Vec<String> {
    let mut all = names(dir);
    all.retain(|p| p.starts_with(name) && dir.join(p).join("partition").exists());
    all
}

/// Kernel name of a disk to the name that identifies it best: an NVMe or SCSI identifier that the disk
/// carries in itself (`wwn-`, `nvme-eui.`) before one made of model and serial number.
fn by_id() -> BTreeMap<String, PathBuf> {
    let dir = Path::new("/dev/disk/by-id");
    let mut best: BTreeMap<String, (u8, PathBuf)> = BTreeMap::new();
    for link in names(dir) {
        let path = dir.join(&link);
        let Ok(device) = std::fs::canonicalize(&path) else { continue };
        let Some(device) = device.file_name().and_then(|d| d.to_str()) else { continue };
        let rank = match &link {
            l if l.starts_with("wwn-") || l.starts_with("nvme-eui.") || l.starts_with("nvme-uuid.") => 0,
            l if l.starts_with("lvm-") || l.starts_with("dm-") || l.starts_with("md-") => 2,
            _ => 1,
        };
        match best.get(device) {
            Some((have, _)) if *have <= rank => {}
            _ => {
                best.insert(device.to_string(), (rank, path));
            }
        }
    }
    best.into_iter().map(|(device, (_, path))| (device, path)).collect()
}

/// The disk that a name or path stands for. `None`: there is no such disk, or it is only a part of one.
pub fn find<'a>(disks: &'a [DiskInfo], name: &str) -> io::Result<Option<&'a DiskInfo>> {
    let path = Path::new("/dev").join(name);
    let wanted = match block::number(&path) {
        Ok(n) => n,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    // By device number: a link, a node under another name and the kernel's name are all the same disk.
    Ok(disks.iter().find(|d| block::number(&d.path).is_ok_and(|n| n == wanted)))
}

/// A device as long as it is there: what comes under its names later is another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presence {
    /// Its directory in sysfs, without links.
    directory: PathBuf,
    /// The kernel's number for this appearance of the disk, where it gives one (since 5.15).
    sequence: Option<String>,
}

impl Presence {
    /// Of the device that a path leads to now.
    pub fn of(path: &Path) -> io::Result<Self> {
        let device = std::fs::canonicalize(path)?;
        let name = device.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let directory = std::fs::canonicalize(Path::new("/sys/class/block").join(name))?;
        Ok(Self { sequence: sequence(&directory), directory })
    }

    /// Whether it has gone.
    pub fn is_over(&self) -> bool {
        !self.directory.exists() || sequence(&self.directory) != self.sequence
    }
}

/// Of a disk, or of the disk that a partition is of.
fn sequence(directory: &Path) -> Option<String> {
    let is_part = directory.join("partition").exists();
    let disk = if is_part { directory.parent()? } else { directory };
    std::fs::read_to_string(disk.join("diskseq")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_there_until_it_is_another() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let (disk, part) = (dir.path().join("vdb"), dir.path().join("vdb/vdb1"));
        std::fs::create_dir_all(&part)?;
        std::fs::write(part.join("partition"), "1\n")?;
        std::fs::write(disk.join("diskseq"), "7\n")?;
        let seen = |directory: &Path| Presence { directory: directory.into(), sequence: sequence(directory) };
        let (whole, one) = (seen(&disk), seen(&part));
        assert_eq!((whole.sequence.as_deref(), one.sequence.as_deref()), (Some("7\n"), Some("7\n")));
        assert!(!whole.is_over() && !one.is_over());
        // Pulled and put back.
        std::fs::write(disk.join("diskseq"), "8\n")?;
        assert!(whole.is_over() && one.is_over());
        let one = seen(&part);
        std::fs::remove_dir_all(&part)?;
        assert!(one.is_over());
        // What is no device has no presence.
        assert!(Presence::of(&dir.path().join("vdb/diskseq")).is_err());
        Ok(())
    }
}
