//! Whether a disk is blank: the one question before it is formatted. Whatever can't be read, is not understood or is in
//! use, is not blank.
//!
//! Two looks, of which either is enough for a no: blkid's low-level probe, which knows signatures, and our own at the places
//! where they are, which must hold nothing but zeros. So what blkid does not know, or has forgotten to look for, is
//! found as well.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Why a disk is not blank.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotBlank {
    /// It has a signature.
    #[error("it has {0}")]
    Signature(String),
    /// There is something where signatures are.
    #[error("there is something at byte {0}")]
    Bytes(u64),
    /// It could not be looked at.
    #[error("it can't be told: {0}")]
    Unknown(String),
}

/// How much of both ends must be zeros.
const ENDS: u64 = 1 << 20;
/// How much from a place on where something could be.
const PLACE: u64 = 64 << 10;
/// Where superblocks, their copies and secondary headers are beyond the ends: VMFS has them at 1 and 2 MiB, LUKS 2 up to 4 MiB,
/// ext4 at 8 MiB (and 1 KiB), 32 MiB, 128 MiB and 384 MiB by the size of its blocks, btrfs at 64 MiB, 256 GiB and 1 PiB.
const PLACES: [u64; 12] = [
    1 << 20,
    2 << 20,
    3 << 20,
    4 << 20,
    (4 << 20) - PLACE,
    8 << 20,
    32 << 20,
    64 << 20,
    128 << 20,
    384 << 20,
    256 << 30,
    1 << 50,
];
/// In how many parts of one size the disk is looked into besides, at the beginning of each: the groups of XFS begin there, and
/// what has lost all that it is known by is seldom empty at all of them.
const PARTS: u64 = 64;
/// Places are read from a whole page on.
const ALIGNED: u64 = 4096;
/// How much is read at once.
const CHUNK: usize = 128 << 10;

/// Looks at what must be zeros. `size` is the whole disk's.
pub fn look(disk: &File, size: u64) -> Result<(), NotBlank> {
    let places = PLACES.into_iter().map(|at| (at, PLACE));
    let ends = [(0, ENDS), (size.saturating_sub(ENDS), ENDS)];
    let mut buffer = vec![0; CHUNK];
    let parts = (1..PARTS).map(|n| (size / PARTS * n / ALIGNED * ALIGNED, PLACE));
    for (begin, length) in ends.into_iter().chain(places).chain(parts).filter(|(begin, _)| *begin < size) {
        let end = (begin + length).min(size);
        let mut at = begin;
        while at < end {
            let want = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            let part = &mut buffer[..want];
            disk.read_exact_at(part, at)
                .map_err(|e| NotBlank::Unknown(format!("reading at byte {at}: {e}")))?;
            if let Some(found) = part.iter().position(|b| *b != 0) {
                return Err(NotBlank::Bytes(at + found as u64));
            }
            at += want as u64;
        }
    }
    Ok(())
}

/// The signature that `blkid -p` found, by its status and what it said. 2 is that it found nothing; 8 that it found
/// several things, and anything else that it failed.
pub fn judge(status: Option<i32>, output: &str, complaint: &str) -> Result<Option<String>, NotBlank> {
    match status {
        Some(2) if output.trim().is_empty() => Ok(None),
        Some(0) if !output.trim().is_empty() => {
            let value = |key: &str| {
                output.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=').map(str::to_owned))
            };
            let found = value("TYPE").or_else(|| value("PTTYPE").map(|kind| format!("partitions ({kind})")));
            Ok(Some(found.unwrap_or_else(|| "a signature".into())))
        }
        // What tells them apart is not for us to say.
        Some(8) => Err(NotBlank::Signature("more than one signature".into())),
        status => {
            let status = status.map_or("a signal".into(), |s| s.to_string());
            Err(NotBlank::Unknown(format!("blkid ended with {status}: {}", complaint.trim())))
        }
    }
}

/// Opens a disk that nobody uses: mounted, part of something larger, or held by another program, it can't be.
pub fn open_unused(disk: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
    Ok(rustix::fs::open(disk, flags, Mode::empty())?.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A sparse disk with one byte somewhere.
    fn disk(size: u64, at: Option<u64>) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        if let Some(at) = at {
            file.write_all_at(&[1], at).unwrap();
        }
        file
    }

    #[test]
    fn one_byte_where_something_could_be_is_enough() {
        const SIZE: u64 = 300 << 30;
        look(&disk(SIZE, None), SIZE).unwrap();
        for at in [
            0,
            510,
            1024,
            4096,
            32 << 10,
            64 << 10,
            ENDS - 1,
            4 << 20,
            (8 << 20) + 1024,
            64 << 20,
            128 << 20,
            SIZE / 4,
            SIZE / 64 * 63,
            256 << 30,
            SIZE - ENDS,
            SIZE - 512,
            SIZE - 1,
        ] {
            assert_eq!(look(&disk(SIZE, Some(at)), SIZE), Err(NotBlank::Bytes(at)));
        }
        // What a file system has in its middle says nothing: an image of nothing but data is no file system.
        look(&disk(SIZE, Some(1 << 30)), SIZE).unwrap();
        for small in [512, 4096, ENDS, ENDS + 512, 3 << 20] {
            look(&disk(small, None), small).unwrap();
            assert_eq!(look(&disk(small, Some(small - 1)), small), Err(NotBlank::Bytes(small - 1)));
        }
    }

    #[test]
    fn what_can_not_be_read_is_not_blank() {
        // It is smaller than it says.
        let wrong = look(&disk(1 << 20, None), 2 << 20);
        assert!(matches!(wrong, Err(NotBlank::Unknown(_))), "{wrong:?}");
    }

    #[test]
    fn only_a_clear_no_of_blkid_is_one() {
        assert_eq!(judge(Some(2), "", ""), Ok(None));
        assert_eq!(judge(Some(0), "DEVNAME=/dev/x\nTYPE=ext4\n", ""), Ok(Some("ext4".into())));
        assert_eq!(judge(Some(0), "PTTYPE=gpt\n", ""), Ok(Some("partitions (gpt)".into())));
        assert_eq!(judge(Some(0), "X=y\n", ""), Ok(Some("a signature".into())));
        assert!(matches!(judge(Some(8), "", "ambivalent"), Err(NotBlank::Signature(_))));
        for (status, output) in
            [(Some(0), ""), (Some(2), "TYPE=ext4"), (Some(4), ""), (Some(127), ""), (None, "")]
        {
            assert!(matches!(judge(status, output, "?"), Err(NotBlank::Unknown(_))), "{status:?} {output}");
        }
    }
}
