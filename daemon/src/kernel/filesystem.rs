//! ext4 and XFS: made on what is blank, found by their superblocks, grown while they are mounted, held still
//! for a snapshot.
//!
//! Called by pools. Formats nothing that it has not found blank itself (R1), and takes no tool's word for
//! what it did: the superblock is read afterwards. Growing and freezing are system calls and no tools: what
//! resize2fs and xfs_growfs do to a mounted file system is one ioctl.
#![allow(unsafe_code)]

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::io::Errno;
use rustix::ioctl::{Getter, Opcode, Setter, ioctl, opcode};

use super::Deadline;
use super::exec::{ExecError, Tool};

/// FIFREEZE and FITHAW of linux/fs.h. Declared with a number as their argument, which is not read.
const FIFREEZE: Opcode = opcode::read_write::<i32>(b'X', 119);
const FITHAW: Opcode = opcode::read_write::<i32>(b'X', 120);

/// EXT4_IOC_RESIZE_FS of linux/ext4.h: the new number of blocks.
const EXT4_IOC_RESIZE_FS: Opcode = opcode::write::<u64>(b'f', 16);

/// XFS_IOC_FSGEOMETRY_V1 and XFS_IOC_FSGROWFSDATA of xfs_fs.h.
const XFS_IOC_FSGEOMETRY_V1: Opcode = opcode::read::<Geometry>(b'X', 100);
const XFS_IOC_FSGROWFSDATA: Opcode = opcode::write::<Grow>(b'X', 110);

/// The block of both, always: they mount on disks with sectors of 512 and of 4096 bytes alike, so a copy can go
/// to any pool.
const BLOCK: u64 = 4096;

/// How much of either end must be zero before anything is made. The superblocks of all that is known are in
/// there, and a new backing has nothing but zeros.
const END: u64 = 1 << 20;

/// `struct xfs_fsop_geom_v1`, in so far as it is used.
#[repr(C)]
#[derive(Clone, Copy)]
struct Geometry {
    block_size: u32,
    rt_extent_size: u32,
    ag_blocks: u32,
    ag_count: u32,
    log_blocks: u32,
    sector_size: u32,
    inode_size: u32,
    max_inode_percent: u32,
    data_blocks: u64,
    rest: [u64; 9],
}

/// `struct xfs_growfs_data`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Grow {
    blocks: u64,
    max_inode_percent: u32,
    padding: u32,
}

const _: () = assert!(size_of::<Geometry>() == 112 && size_of::<Grow>() == 16);

/// The file systems that are made here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
}

impl Kind {
    /// As mount(2) takes it.
    pub const fn fstype(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }

    /// The smallest that its tool makes, with room for something in it.
    pub const fn least(self) -> u64 {
        match self {
            Self::Ext4 => 16 << 20,
            // mkfs.xfs makes none below 300 MiB.
            Self::Xfs => 300 << 20,
        }
    }

    /// How much of the end of its device it may leave alone: a last group that is too small to be worth its
    /// own metadata.
    const fn unused(self) -> u64 {
        match self {
            Self::Ext4 => 8 << 20,
            Self::Xfs => 1 << 20,
        }
    }

    /// Mount options of its own. Two XFS with one UUID are not mounted otherwise, and a clone has that of its
    /// source. An ext4 that finds itself damaged goes on without writing, as XFS does.
    pub const fn options(self) -> &'static str {
        match self {
            Self::Ext4 => "errors=remount-ro",
            Self::Xfs => "nouuid",
        }
    }
}

/// A file system that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Which one.
    pub kind: Kind,
    /// How large it says that it is.
    pub size: u64,
}

/// Why there is no file system now.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// There is something there already. Nothing was changed.
    #[error("it is not blank: {0}")]
    NotBlank(&'static str),
    /// It could not be read.
    #[error("it could not be read")]
    Io(#[from] io::Error),
    /// The tool failed.
    #[error(transparent)]
    Tool(#[from] ExecError),
    /// The tool said that all is well, and it is not.
    #[error("{tool} ended well, and {found} is there")]
    Unverified {
        /// Which.
        tool: &'static str,
        /// What is there instead.
        found: String,
    },
}

/// The tool that makes one.
pub fn tool(kind: Kind) -> Result<Tool, ExecError> {
    Tool::locate(match kind {
        Kind::Ext4 => "mkfs.ext4",
        Kind::Xfs => "mkfs.xfs",
    })
}

/// What a file system is made on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ground {
    /// It reads as zeros, and is found to.
    Zeros,
    /// It reads as anything: what deciphers it was laid just now over what [`check_blank`] has looked at.
    Deciphered,
}

/// Makes a file system on a device or in a file that is blank, as large as that is. It is durable when this
/// returns. `uuid`: what it is known by.
pub fn make(
    kind: Kind,
    path: &Path,
    ground: Ground,
    uuid: &str,
    deadline: &Deadline,
) -> Result<(), MakeError> {
    let file = File::options().read(true).write(true).open(path)?;
    let size = super::block::size(&file)?;
    match ground {
        Ground::Zeros => blank(&file, size)?,
        // What is found there must not look like anything, to the tool or to whoever looks for it later.
        Ground::Deciphered => {
            let zeros = vec![0u8; usize::try_from(END.min(size)).unwrap_or_default()];
            for offset in [0, size - END.min(size)] {
                file.write_all_at(&zeros, offset)?;
            }
            file.sync_all()?;
        }
    }
    // Neither is told to force anything: mkfs.xfs looks for signatures itself, which is a second pair of eyes.
    // Neither discards: there is nothing to discard, and a thick volume would lose what is reserved.
    let (name, args): (&'static str, Vec<String>) = match kind {
        Kind::Ext4 => {
            let uuid = ["-U", uuid].map(String::from);
            // All zeros already: the kernel need not write them into tables behind the answer, which would
            // take space of a thin volume. Nothing is kept back for root: its users are elsewhere.
            let zeroed = match ground {
                Ground::Zeros => ["-E", "nodiscard,assume_storage_prezeroed=1"].map(String::from),
                Ground::Deciphered => ["-E", "nodiscard"].map(String::from),
            };
            let rest = ["-q", "-b", "4096", "-m", "0"].map(String::from);
            ("mkfs.ext4", [&rest[..], &uuid, &zeroed].concat())
        }
        Kind::Xfs => {
            let uuid = ["-m".to_string(), format!("uuid={uuid},reflink=1")];
            let rest = ["-q", "-K", "-b", "size=4096", "-s", "size=4096"].map(String::from);
            ("mkfs.xfs", [&rest[..], &uuid].concat())
        }
    };
    let mut args: Vec<OsString> = args.into_iter().map(Into::into).collect();
    args.push(path.into());
    tool(kind)?.run(&args, deadline)?.success()?;
    file.sync_all()?;
    // What the medium has, not what this machine remembers having written.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    let unverified = |found| Err(MakeError::Unverified { tool: name, found });
    match find(&file)? {
        Some(found) if found.kind == kind && whole(found, size) => Ok(()),
        Some(found) => unverified(format!("{} of {} bytes", found.kind.fstype(), found.size)),
        None => unverified("no file system".into()),
    }
}

/// [`make`]'s own look at what it is given, for what is laid between the two.
pub fn check_blank(path: &Path) -> Result<(), MakeError> {
    let file = File::open(path)?;
    let size = super::block::size(&file)?;
    blank(&file, size)
}

/// Refuses what has anything at its ends. Where nothing was written a file is not read.
fn blank(file: &File, size: u64) -> Result<(), MakeError> {
    let len = END.min(size);
    let mut end = vec![0u8; usize::try_from(len).unwrap_or_default()];
    for (offset, which) in [(0, "its start holds data"), (size - len, "its end holds data")] {
        file.read_exact_at(&mut end, offset)?;
        if end.iter().any(|b| *b != 0) {
            return Err(MakeError::NotBlank(which));
        }
    }
    Ok(())
}

/// Whether a file system takes all of its device that it can.
pub fn whole(found: Found, device: u64) -> bool {
    found.size <= device && device - found.size <= found.kind.unused()
}

/// Reads the superblock of a device or a file. `None`: neither of the two is there.
pub fn find(file: &File) -> io::Result<Option<Found>> {
    let mut bytes = [0u8; 4096];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => Ok(superblock(&bytes)),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(e) => Err(e),
    }
}

fn superblock(bytes: &[u8; 4096]) -> Option<Found> {
    let le = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes).map(u64::from);
    let be = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes).map(u64::from);
    // xfs_dsb: sb_magicnum at 0, sb_blocksize at 4, sb_dblocks (64 bits) at 8.
    if bytes.starts_with(b"XFSB") {
        let blocks = be(8)? << 32 | be(12)?;
        return Some(Found { kind: Kind::Xfs, size: blocks.checked_mul(be(4)?)? });
    }
    // ext4_super_block at 1024: s_blocks_count_lo at 4, s_log_block_size at 24, s_magic at 56,
    // s_feature_incompat at 96, s_blocks_count_hi at 0x150, which counts with the feature 64bit.
    const AT: usize = 1024;
    if bytes.get(AT + 56..AT + 58)? != [0x53, 0xef] {
        return None;
    }
    let high = if le(AT + 96)? & 0x80 != 0 { le(AT + 0x150)? } else { 0 };
    let block = 1024u64.checked_shl(u32::try_from(le(AT + 24)?).ok()?)?;
    Some(Found { kind: Kind::Ext4, size: (high << 32 | le(AT + 4)?).checked_mul(block)? })
}

/// How large a mounted file system is. `root`: any directory of it, opened; `device`: what it is on.
pub fn mounted_size(kind: Kind, root: &File, device: &File) -> io::Result<u64> {
    match kind {
        Kind::Xfs => {
            let geometry = geometry(root)?;
            Ok(geometry.data_blocks.saturating_mul(u64::from(geometry.block_size)))
        }
        // Its superblock is in the page cache of its device while it is mounted, and is always true there.
        Kind::Ext4 => match find(device)? {
            Some(found) if found.kind == Kind::Ext4 => Ok(found.size),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "its superblock can't be read")),
        },
    }
}

fn geometry(root: &File) -> io::Result<Geometry> {
    // SAFETY: fills a `xfs_fsop_geom_v1`, and any value of it is valid.
    Ok(unsafe { ioctl(root, Getter::<XFS_IOC_FSGEOMETRY_V1, Geometry>::new()) }?)
}

/// Makes a mounted file system as large as its device, which has `to` bytes. Gives back how large it was.
pub fn grow(kind: Kind, root: &File, device: &File, to: u64) -> io::Result<u64> {
    let was = mounted_size(kind, root, device)?;
    if was / BLOCK >= to / BLOCK {
        return Ok(was);
    }
    let grown = match kind {
        // SAFETY: EXT4_IOC_RESIZE_FS reads a 64-bit number.
        Kind::Ext4 => unsafe { ioctl(root, Setter::<EXT4_IOC_RESIZE_FS, u64>::new(to / BLOCK)) },
        Kind::Xfs => {
            let percent = geometry(root)?.max_inode_percent;
            let ask = Grow { blocks: to / BLOCK, max_inode_percent: percent, padding: 0 };
            // SAFETY: XFS_IOC_FSGROWFSDATA reads a `xfs_growfs_data`.
            unsafe { ioctl(root, Setter::<XFS_IOC_FSGROWFSDATA, Grow>::new(ask)) }
        }
    };
    let is = mounted_size(kind, root, device)?;
    // What counts is what there is: either refuses to add less than it can use.
    match grown {
        _ if whole(Found { kind, size: is }, to) => Ok(was),
        Err(e) => Err(e.into()),
        Ok(()) => Err(io::Error::other(format!("it has {is} bytes after it was grown to {to}"))),
    }
}

/// A mounted file system that is held still: all that was written is on its device, and whoever writes waits.
/// It goes on when this goes, whatever happens.
#[derive(Debug)]
pub struct Frozen {
    root: Option<File>,
}

impl Frozen {
    /// Holds it. Waits for writes that are under way.
    pub fn hold(root: File) -> io::Result<Self> {
        // SAFETY: the argument is not read.
        unsafe { ioctl(&root, Setter::<FIFREEZE, i32>::new(0)) }?;
        Ok(Self { root: Some(root) })
    }

    /// Lets it go on.
    pub fn release(mut self) -> io::Result<()> {
        self.root.take().map_or(Ok(()), |root| thaw(&root).map(drop))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.root.take().map(|root| thaw(&root)) {
            tracing::error!(%error, "a file system that was held for a snapshot does not go on");
        }
    }
}

/// Lets a file system go on that may be held by a daemon that was killed. Whether it was.
pub fn thaw(root: &File) -> io::Result<bool> {
    // SAFETY: the argument is not read.
    match unsafe { ioctl(root, Setter::<FITHAW, i32>::new(0)) } {
        Ok(()) => Ok(true),
        // Not held; or of a kind that can't be.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(60))
    }

    fn file(mib: u64) -> tempfile::NamedTempFile {
        let t = tempfile::NamedTempFile::new().unwrap();
        t.as_file().set_len(mib << 20).unwrap();
        t
    }

    const UUID: &str = "0190c0de-1234-7abc-8def-0123456789ab";

    #[test]
    fn both_are_made_in_files_and_found() {
        for (kind, mib) in [(Kind::Ext4, 16), (Kind::Ext4, 200), (Kind::Xfs, 300), (Kind::Xfs, 1024)] {
            let t = file(mib);
            make(kind, t.path(), Ground::Zeros, UUID, &soon()).unwrap();
            let found = find(t.as_file()).unwrap().unwrap();
            assert_eq!(found.kind, kind);
            assert!(whole(found, mib << 20), "{kind:?} {mib}: {}", found.size);
            assert_eq!(super::super::block::size(t.as_file()).unwrap(), mib << 20, "{kind:?}");
            // No second time: there is data now.
            assert!(matches!(
                make(kind, t.path(), Ground::Zeros, UUID, &soon()),
                Err(MakeError::NotBlank(_))
            ));
        }
    }

    #[test]
    fn both_are_made_over_what_reads_as_anything() {
        for (kind, mib) in [(Kind::Ext4, 16), (Kind::Xfs, 300)] {
            let t = file(mib);
            assert!(check_blank(t.path()).is_ok());
            t.as_file().write_all_at(&[0xa5; 4 << 20], 0).unwrap();
            t.as_file().write_all_at(&[0xa5; 1 << 20], (mib - 1) << 20).unwrap();
            assert!(matches!(check_blank(t.path()), Err(MakeError::NotBlank(_))));
            make(kind, t.path(), Ground::Deciphered, UUID, &soon()).unwrap();
            let found = find(t.as_file()).unwrap().unwrap();
            assert!(found.kind == kind && whole(found, mib << 20), "{found:?}");
        }
    }

    #[test]
    fn what_holds_data_is_never_formatted() {
        for (kind, at) in [(Kind::Ext4, 0), (Kind::Xfs, 4096), (Kind::Ext4, (400 << 20) - 1)] {
            let t = file(400);
            t.as_file().write_all_at(b"x", at).unwrap();
            let refused = make(kind, t.path(), Ground::Zeros, UUID, &soon());
            assert!(matches!(refused, Err(MakeError::NotBlank(_))), "{refused:?}");
            let mut byte = [0];
            t.as_file().read_exact_at(&mut byte, at).unwrap();
            assert_eq!(&byte, b"x");
            assert_eq!(find(t.as_file()).unwrap(), None);
        }
    }

    #[test]
    fn superblocks_of_any_size_are_read_and_others_are_not() {
        let mut xfs = [0u8; 4096];
        xfs[..4].copy_from_slice(b"XFSB");
        xfs[4..8].copy_from_slice(&4096u32.to_be_bytes());
        xfs[8..16].copy_from_slice(&(5u64 << 33).to_be_bytes());
        assert_eq!(superblock(&xfs), Some(Found { kind: Kind::Xfs, size: (5 << 33) * 4096 }));
        xfs[8..16].fill(0xff);
        assert_eq!(superblock(&xfs), None, "a size that can't be");
        let mut ext4 = [0u8; 4096];
        ext4[1024 + 4..][..4].copy_from_slice(&7u32.to_le_bytes());
        ext4[1024 + 24] = 2;
        ext4[1024 + 56..][..2].copy_from_slice(&[0x53, 0xef]);
        ext4[1024 + 0x150] = 1;
        assert_eq!(superblock(&ext4), Some(Found { kind: Kind::Ext4, size: 7 * 4096 }));
        ext4[1024 + 96] = 0x80;
        assert_eq!(superblock(&ext4), Some(Found { kind: Kind::Ext4, size: ((1 << 32) + 7) * 4096 }));
        ext4[1024 + 24] = 200;
        assert_eq!(superblock(&ext4), None);
        assert_eq!(superblock(&[0; 4096]), None);
    }

    #[test]
    fn what_is_not_held_is_let_go_quietly() {
        let dir = tempfile::tempdir().unwrap();
        let root = File::open(dir.path()).unwrap();
        match thaw(&root) {
            Ok(held) => assert!(!held),
            // Only root may ask.
            Err(e) => assert_eq!(e.kind(), io::ErrorKind::PermissionDenied),
        }
    }
}
