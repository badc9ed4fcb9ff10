//! File systems on disks: made once, on what is provably blank; checked, mounted, and grown with their disk.

use std::path::Path;
use std::time::{Duration, Instant};

use super::blank::{self, NotBlank};
use super::tools::{ToolError, Tools, failed};

/// The kinds that are made here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Ext4, Self::Xfs];

    /// As a claim has it; ext4 unless it says.
    pub fn parse(fs_type: &str) -> Option<Self> {
        if fs_type.is_empty() {
            return Some(Self::Ext4);
        }
        Self::ALL.into_iter().find(|kind| kind.as_str() == fs_type)
    }

    /// As mount(8) and blkid(8) have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

impl Kind {
    /// The option by which it is mounted without what its journal would put right.
    pub const fn no_recovery(self) -> &'static str {
        match self {
            Self::Ext4 => "noload",
            Self::Xfs => "norecovery",
        }
    }
}

/// Why a disk can't be used as it should be.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// It holds something else. Nothing was changed.
    #[error("{device} is not blank, and has no {wanted}: {why}. It is left as it is")]
    Other {
        /// Which disk.
        device: String,
        /// What was wanted.
        wanted: &'static str,
        /// What is there.
        why: NotBlank,
    },
    /// It is blank, and may only be read.
    #[error("{0} is blank, and may only be read here: it must be written elsewhere first")]
    Blank(String),
    /// Somebody uses it.
    #[error("{device} is in use here: {source}")]
    Busy {
        /// Which disk.
        device: String,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// A program failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
}

/// How long looking at a disk may take.
const LOOK: Duration = Duration::from_secs(30);
/// How long somebody else may have a disk.
const LOCK: Duration = Duration::from_secs(5);

/// What a disk holds, by its signature. `None`: it is provably blank.
pub async fn found(tools: &Tools, device: &Path, size: u64) -> Result<Option<String>, NotBlank> {
    let name = device.display().to_string();
    // Straight from the disk, and not from what blkid remembers.
    let args = ["-p", "-o", "export", "--", &name];
    let output = tools.run("blkid", &args, LOOK).await.map_err(|e| NotBlank::Unknown(e.to_string()))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let signature = blank::judge(output.status.code(), &text(&output.stdout), &text(&output.stderr))?;
    if signature.is_some() {
        return Ok(signature);
    }
    let path = device.to_owned();
    let looked = tokio::task::spawn_blocking(move || {
        let disk = blank::open_unused(&path).map_err(|e| NotBlank::Unknown(e.to_string()))?;
        blank::look(&disk, size)
    });
    looked.await.map_err(|e| NotBlank::Unknown(e.to_string()))??;
    Ok(None)
}

/// Sees to it that a disk has a file system of a kind, and makes one if the disk is provably blank and may be written.
/// Under the lock of udev's convention on the disk itself: whoever else formats by it waits, and udev does not probe.
pub async fn ensure(
    tools: &Tools,
    device: &Path,
    size: u64,
    kind: Kind,
    may_write: bool,
    limit: Duration,
) -> Result<(), Unfit> {
    let name = device.display().to_string();
    let lock = lock(device).await.map_err(|source| Unfit::Busy { device: name.clone(), source })?;
    let other = |why| Unfit::Other { device: name.clone(), wanted: kind.as_str(), why };
    match found(tools, device, size).await.map_err(other)? {
        Some(is) if is == kind.as_str() => Ok(()),
        Some(is) => Err(other(NotBlank::Signature(is))),
        None if !may_write => Err(Unfit::Blank(name)),
        None => {
            tracing::info!(device = name, kind = kind.as_str(), "making a file system on a blank disk");
            // Neither is told to overwrite what it finds: a third look.
            let (program, args) = match kind {
                Kind::Ext4 => ("mkfs.ext4", vec!["-q", "-m", "0", "-E", "nodiscard", name.as_str()]),
                Kind::Xfs => ("mkfs.xfs", vec!["-q", "-K", name.as_str()]),
            };
            tools.must(program, &args, limit).await?;
            drop(lock);
            Ok(())
        }
    }
}

/// udev has the lock while it looks at a disk that has just come.
async fn lock(device: &Path) -> std::io::Result<std::fs::File> {
    use rustix::fs::{FlockOperation, flock};
    use rustix::io::Errno;
    let disk = std::fs::File::open(device)?;
    let since = Instant::now();
    loop {
        match flock(&disk, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(disk),
            Err(Errno::WOULDBLOCK) if since.elapsed() < LOCK => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(e) => return Err(e.into()),
        }
    }
}

/// Repairs what a crash left, where that is safe without being asked. XFS does it when it is mounted.
pub async fn check(tools: &Tools, device: &Path, kind: Kind, limit: Duration) -> Result<(), ToolError> {
    if kind == Kind::Xfs {
        return Ok(());
    }
    let name = device.display().to_string();
    let output = tools.run("e2fsck", &["-p", &name], limit).await?;
    match output.status.code() {
        // 1: it was repaired.
        Some(0 | 1) => Ok(()),
        _ => Err(failed("e2fsck", &output)),
    }
}

/// Makes a mounted file system as large as its disk. Fine if it is.
pub async fn grow(
    tools: &Tools,
    device: &Path,
    mounted_at: &Path,
    kind: Kind,
    limit: Duration,
) -> Result<(), ToolError> {
    let (device, place) = (device.display().to_string(), mounted_at.display().to_string());
    match kind {
        Kind::Ext4 => tools.must("resize2fs", &[&device], limit).await.map(drop),
        Kind::Xfs => tools.must("xfs_growfs", &[&place], limit).await.map(drop),
    }
}
