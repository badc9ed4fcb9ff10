//! Arrays of disks, as the kernel's md driver has them and as their members say on themselves.
//!
//! Called by pools that stand on arrays. State is read from sysfs and from superblocks; arrays are made, assembled
//! and given disks by mdadm(8), whose path this does not know. The little that is written to sysfs are its documented
//! words (Documentation/admin-guide/md.rst). Nothing is decided by the name of an array: the kernel numbers them as
//! they come.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::block::{Claimed, write_attribute};
use super::fs::set_direct;

/// Where arrays show, among the other block devices.
const SYS: &str = "/sys/block";

/// Of metadata 1.2: 4 KiB from the beginning.
const SUPERBLOCK: u64 = 4096;

/// `MD_SB_MAGIC` of linux/raid/md_p.h.
const MAGIC: u32 = 0xa92b_4efc;

/// Where `dev_roles` begins in it, and how many there is room for in what is read.
const ROLES: usize = 256;
const READ: usize = 4096;

/// What a member says of itself and its array (`mdp_superblock_1`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// The array's.
    pub array: Uuid,
    /// The member's own.
    pub device: Uuid,
    /// What the array is called.
    pub name: String,
    /// `1` for mirrors, `5`, `10`.
    pub level: i32,
    /// How many disks the array has when it is whole.
    pub disks: usize,
    /// Its own place among them. `None`: it is a spare, or has failed.
    pub slot: Option<usize>,
    /// Which of the places had a disk when this was written.
    pub filled: Vec<bool>,
    /// How often the array had changed when this was written: of two members the one with more knows more.
    pub events: u64,
    /// From where on it holds data, and how much: in bytes. What takes its place needs as much.
    pub extent: u64,
}

/// Reads what a disk says, past the page cache, which md does not use. `None`: it is no member.
pub fn superblock(device: &Path) -> io::Result<Option<Superblock>> {
    let file = File::open(device)?;
    set_direct(&file)?;
    read_superblock(&file)
}

/// The same of a disk that nobody else can take.
pub fn superblock_of(disk: &Claimed) -> io::Result<Option<Superblock>> {
    read_superblock(disk.file())
}

fn read_superblock(file: &File) -> io::Result<Option<Superblock>> {
    let mut room = vec![0u8; 2 * READ];
    let start = room.as_ptr().align_offset(READ);
    let bytes = &mut room[start..start + READ];
    match file.read_exact_at(bytes, SUPERBLOCK) {
        Ok(()) => Ok(parse(bytes)),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(e) => Err(e),
    }
}

fn parse(bytes: &[u8]) -> Option<Superblock> {
    let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let uuid = |at: usize| Some(Uuid::from_bytes(bytes.get(at..at + 16)?.try_into().ok()?));
    if word(0)? != MAGIC || word(4)? != 1 {
        return None;
    }
    let name = bytes.get(32..64)?.split(|b| *b == 0).next()?;
    let most = (READ - ROLES) / 2;
    let disks = usize::try_from(word(92)?).ok().filter(|n| *n <= most)?;
    let roles = usize::try_from(word(220)?).ok()?.min(most);
    let role =
        |n: usize| Some(u16::from_le_bytes(bytes.get(ROLES + 2 * n..ROLES + 2 * n + 2)?.try_into().ok()?));
    // 0xffff and below: a spare, a failed disk, a journal.
    let slot = |n: usize| role(n).map(usize::from).filter(|r| *r < disks);
    let mut filled = vec![false; disks];
    for n in (0..roles).filter_map(slot) {
        filled[n] = true;
    }
    let number = usize::try_from(word(160)?).ok()?;
    Some(Superblock {
        array: uuid(16)?,
        device: uuid(168)?,
        name: String::from_utf8_lossy(name).into_owned(),
        level: i32::from_le_bytes(bytes.get(72..76)?.try_into().ok()?),
        disks,
        slot: (number < roles).then(|| slot(number)).flatten(),
        filled,
        events: long(200)?,
        extent: long(128)?.saturating_add(long(80)?).saturating_mul(512),
    })
}

/// An array that the kernel has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Array {
    /// `md127`.
    pub name: String,
    /// Whether it can be used: it was started.
    pub active: bool,
    /// How many disks it has when it is whole.
    pub disks: usize,
    /// How many of them it lacks, or has not filled yet.
    pub degraded: usize,
    /// What passes over it: `idle`, `resync`, `recover`, `check`, `repair`, `reshape`, `frozen`.
    pub action: String,
    /// How far that is: done, of all.
    pub progress: Option<(u64, u64)>,
    /// What passed over it last.
    pub last_action: Option<String>,
    /// How many sectors the last check found to differ.
    pub mismatches: u64,
    /// Its disks.
    pub members: Vec<Member>,
}

/// One disk of an array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// `vdb`.
    pub name: String,
    /// Whether the device is there still: md keeps one that is gone until it is told, or writes to it.
    pub present: bool,
    /// Its place. `None`: it is a spare, or has failed.
    pub slot: Option<usize>,
    /// It has all that it should.
    pub in_sync: bool,
    /// md does not use it any more.
    pub faulty: bool,
    /// Another one is being filled that takes its place.
    pub leaving: bool,
    /// It is the one that is being filled for that.
    pub replacement: bool,
    /// Reads that failed and were put right from other disks.
    pub errors: u64,
}

impl Member {
    /// The device's path.
    pub fn path(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }
}

impl Array {
    /// Its path.
    pub fn path(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }

    /// Whether it does without a disk that it should have.
    pub fn is_degraded(&self) -> bool {
        self.degraded > 0
    }

    fn attribute(&self, member: &Member, name: &str) -> PathBuf {
        Path::new(SYS).join(&self.name).join("md").join(format!("dev-{}", member.name)).join(name)
    }

    /// Has it do without a disk from now on.
    pub fn fail(&self, member: &Member) -> io::Result<()> {
        write_attribute(&self.attribute(member, "state"), "faulty")
    }

    /// Forgets a disk that it does not use.
    pub fn remove(&self, member: &Member) -> io::Result<()> {
        write_attribute(&self.attribute(member, "state"), "remove")
    }

    /// Starts a pass (`check`), or stops one (`idle`).
    pub fn act(&self, action: &str) -> io::Result<()> {
        write_attribute(&Path::new(SYS).join(&self.name).join("md/sync_action"), action)
    }
}

/// The array of that UUID, if the kernel has it, started or not.
pub fn find(array: Uuid) -> io::Result<Option<Array>> {
    for name in names()? {
        let dir = Path::new(SYS).join(&name);
        if uuid(&dir)? == Some(array) {
            return read(&dir, name);
        }
    }
    Ok(None)
}

/// The same array once more, by the kernel's name.
pub fn again(name: &str) -> io::Result<Option<Array>> {
    read(&Path::new(SYS).join(name), name.to_string())
}

/// Whether the kernel has an array of that name.
pub fn is_there(name: &str) -> io::Result<bool> {
    let state = attribute(&Path::new(SYS).join(name).join("md/array_state"))?;
    Ok(state.is_some_and(|s| s != "clear"))
}

/// The kernel's names of all arrays.
fn names() -> io::Result<Vec<String>> {
    let entries = std::fs::read_dir(SYS)?.collect::<io::Result<Vec<_>>>()?;
    let names = entries.into_iter().filter_map(|e| e.file_name().into_string().ok());
    Ok(names.filter(|n| n.starts_with("md")).collect())
}

/// A path for an array that is to come: arrays are numbered here, because a name would be given to it by udev, in
/// its own time. Whoever calls sees to it that nobody else in this process does at the same time.
pub fn unused() -> io::Result<PathBuf> {
    let taken = names()?;
    // As the kernel does it when it is asked for any.
    let free = (0..512).rev().map(|n| format!("md{n}")).find(|n| !taken.contains(n));
    free.map(|n| Path::new("/dev").join(n)).ok_or_else(|| io::Error::other("there are too many arrays"))
}

/// What the members say, because not every kernel does.
fn uuid(dir: &Path) -> io::Result<Option<Uuid>> {
    if let Some(text) = attribute(&dir.join("md/uuid"))?
        && let Ok(uuid) = text.parse::<Uuid>()
        && !uuid.is_nil()
    {
        return Ok(Some(uuid));
    }
    for member in members(dir)? {
        // One that can't be read says nothing; another one may.
        if let Ok(Some(found)) = superblock(&member.path()) {
            return Ok(Some(found.array));
        }
    }
    Ok(None)
}

/// Reads an attribute. `None`: there is none, or not any more.
fn attribute(path: &Path) -> io::Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_string())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        // What belongs to a member or an array that has just gone.
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(None),
        Err(e) => Err(e),
    }
}

fn read(dir: &Path, name: String) -> io::Result<Option<Array>> {
    let md = dir.join("md");
    let text = |a: &str| attribute(&md.join(a));
    let number = |a: &str| Ok::<_, io::Error>(text(a)?.and_then(|t| t.parse::<u64>().ok()));
    let Some(state) = text("array_state")? else { return Ok(None) };
    let active = !["clear", "inactive"].contains(&state.as_str());
    let progress = text("sync_completed")?.and_then(|t| {
        let (done, all) = t.split_once('/')?;
        Some((done.trim().parse().ok()?, all.trim().parse().ok()?))
    });
    Ok(Some(Array {
        active,
        disks: number("raid_disks")?.and_then(|n| n.try_into().ok()).unwrap_or(0),
        degraded: number("degraded")?.and_then(|n| n.try_into().ok()).unwrap_or(0),
        action: text("sync_action")?.unwrap_or_else(|| "idle".into()),
        progress,
        last_action: text("last_sync_action")?.filter(|a| a != "none"),
        mismatches: number("mismatch_cnt")?.unwrap_or(0),
        members: members(dir)?,
        name,
    }))
}

fn members(dir: &Path) -> io::Result<Vec<Member>> {
    let entries = match std::fs::read_dir(dir.join("md")) {
        Ok(entries) => entries.collect::<io::Result<Vec<_>>>()?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut found = Vec::new();
    for entry in entries {
        let file = entry.file_name();
        let Some(name) = file.to_str().and_then(|n| n.strip_prefix("dev-")) else { continue };
        let path = entry.path();
        let Some(state) = attribute(&path.join("state"))? else { continue };
        let says = |word: &str| state.split(',').any(|w| w.trim() == word);
        found.push(Member {
            // A link to the device's own directory, which goes with it.
            present: path.join("block").exists(),
            slot: attribute(&path.join("slot"))?.and_then(|t| t.parse().ok()),
            in_sync: says("in_sync"),
            faulty: says("faulty"),
            leaving: says("want_replacement"),
            replacement: says("replacement"),
            errors: attribute(&path.join("errors"))?.and_then(|t| t.parse().ok()).unwrap_or(0),
            name: name.to_string(),
        });
    }
    // After a restart of the array it is not said of the one that leaves.
    let taken: Vec<usize> = found.iter().filter(|m: &&Member| m.replacement).filter_map(|m| m.slot).collect();
    for member in found.iter_mut().filter(|m| !m.replacement && m.slot.is_some_and(|s| taken.contains(&s))) {
        member.leaving = true;
    }
    found.sort_by_key(|m| (m.slot.is_none(), m.slot, m.name.clone()));
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// As a mirror of three writes it on its second disk, after it has lost its third.
    fn block() -> Vec<u8> {
        let mut b = vec![0u8; READ];
        let mut put = |at: usize, bytes: &[u8]| b[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC.to_le_bytes());
        put(4, &1u32.to_le_bytes());
        put(16, &[7; 16]);
        put(32, b"orlop-tank");
        put(72, &1i32.to_le_bytes());
        put(80, &2048u64.to_le_bytes());
        put(92, &3u32.to_le_bytes());
        put(128, &2048u64.to_le_bytes());
        put(160, &1u32.to_le_bytes());
        put(168, &[9; 16]);
        put(200, &42u64.to_le_bytes());
        put(220, &3u32.to_le_bytes());
        for (n, role) in [0u16, 1, 0xfffe].into_iter().enumerate() {
            put(ROLES + 2 * n, &role.to_le_bytes());
        }
        b
    }

    #[test]
    fn a_member_says_whose_it_is_and_whom_it_misses() {
        let found = parse(&block()).unwrap();
        assert_eq!((found.array, found.device), (Uuid::from_bytes([7; 16]), Uuid::from_bytes([9; 16])));
        assert_eq!((found.name.as_str(), found.level, found.disks), ("orlop-tank", 1, 3));
        assert_eq!((found.slot, found.filled), (Some(1), vec![true, true, false]));
        assert_eq!((found.extent, found.events), (2 << 20, 42));
    }

    #[test]
    fn what_is_no_superblock_is_none() {
        assert_eq!(parse(&[0; READ]), None);
        assert_eq!(parse(&block()[..100]), None);
        let mut old = block();
        old[4] = 0;
        assert_eq!(parse(&old), None);
        // Numbers that make no sense are not followed.
        let mut wild = block();
        wild[220..224].copy_from_slice(&u32::MAX.to_le_bytes());
        wild[160..164].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(parse(&wild).unwrap().slot, None);
        let mut wide = block();
        wide[92..96].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(parse(&wide), None);
    }

    #[test]
    fn an_array_as_sysfs_shows_it() {
        let t = tempfile::tempdir().unwrap();
        let md = t.path().join("md");
        let put = |name: &str, text: &str| {
            let path = md.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        put("array_state", "clean\n");
        put("raid_disks", "2\n");
        put("degraded", "1\n");
        put("sync_action", "recover\n");
        put("sync_completed", "500 / 2000\n");
        put("last_sync_action", "none\n");
        put("mismatch_cnt", "0\n");
        for (disk, slot, state) in [
            ("vdc", "1", "spare,replacement"),
            ("vdb", "0", "in_sync"),
            ("vdd", "none", "faulty,blocked"),
            ("vde", "1", "in_sync"),
        ] {
            put(&format!("dev-{disk}/state"), state);
            put(&format!("dev-{disk}/slot"), slot);
            put(&format!("dev-{disk}/errors"), "0");
        }
        std::fs::create_dir(md.join("dev-vdb/block")).unwrap();
        let array = read(t.path(), "md127".into()).unwrap().unwrap();
        assert!(array.active && array.is_degraded());
        assert_eq!((array.action.as_str(), array.progress), ("recover", Some((500, 2000))));
        assert_eq!(array.last_action, None);
        let members: Vec<_> =
            array.members.iter().map(|m| (m.name.as_str(), m.slot, m.in_sync, m.faulty, m.present)).collect();
        assert_eq!(
            members,
            [
                ("vdb", Some(0), true, false, true),
                ("vdc", Some(1), false, false, false),
                ("vde", Some(1), true, false, false),
                ("vdd", None, false, true, false)
            ]
        );
        let leaving: Vec<_> = array.members.iter().filter(|m| m.leaving).map(|m| m.name.as_str()).collect();
        assert_eq!(leaving, ["vde"]);
    }
}
