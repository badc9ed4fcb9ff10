//! The little that the target needs of a configfs tree.

use std::io;
use std::path::Path;

use rustix::io::Errno;

use super::{Result, TargetError};
use crate::kernel::configfs::ConfigFs;

/// A tree of directories, attributes and links whose owner reacts to every change. Paths are relative
/// to its root (`/sys/kernel/config/nvmet`, `/sys/kernel/config/target`). The kernel's own is the one real implementor; `sim` has
/// one that behaves like it.
pub trait ConfigTree: Send + Sync {
    /// Creates a directory, and with it what the owner puts inside.
    fn make_dir(&self, path: &str) -> io::Result<()>;
    /// Removes a directory with what the owner put inside; refused while users' items or links remain.
    fn remove_dir(&self, path: &str) -> io::Result<()>;
    /// An attribute's value without line end and padding. `NotFound`: this kernel has no such attribute.
    fn read(&self, path: &str) -> io::Result<String>;
    /// Writes an attribute in one call; never creates it.
    fn write(&self, path: &str, value: &str) -> io::Result<()>;
    /// From now on only the superuser may look into a directory.
    fn restrict(&self, path: &str) -> io::Result<()>;
    /// Makes `path` a link to the directory `target`.
    fn link(&self, target: &str, path: &str) -> io::Result<()>;
    /// Removes a link.
    fn unlink(&self, path: &str) -> io::Result<()>;
    /// The names in a directory, ordered. `""` is the root.
    fn list(&self, path: &str) -> io::Result<Vec<String>>;
    /// The name of the directory that a link points at.
    fn read_link(&self, path: &str) -> io::Result<String>;
}

impl ConfigTree for ConfigFs {
    fn make_dir(&self, path: &str) -> io::Result<()> {
        Self::make_dir(self, path)
    }
    fn remove_dir(&self, path: &str) -> io::Result<()> {
        Self::remove_dir(self, path)
    }
    fn read(&self, path: &str) -> io::Result<String> {
        Self::read(self, path)
    }
    fn write(&self, path: &str, value: &str) -> io::Result<()> {
        Self::write(self, path, value)
    }
    fn restrict(&self, path: &str) -> io::Result<()> {
        Self::restrict(self, path)
    }
    fn link(&self, target: &str, path: &str) -> io::Result<()> {
        Self::link(self, target, path)
    }
    fn unlink(&self, path: &str) -> io::Result<()> {
        Self::unlink(self, path)
    }
    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        Self::list(self, path)
    }
    fn read_link(&self, path: &str) -> io::Result<String> {
        Self::read_link(self, path)
    }
}

/// Whether that is why.
pub(super) fn is(e: &io::Error, errno: Errno) -> bool {
    e.raw_os_error() == Some(errno.raw_os_error())
}

/// The goal of a removal is that it is not there.
pub(super) fn gone(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
}

/// The goal of a creation is that it is there.
pub(super) fn there(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|e| if e.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(e) })
}

/// `None` for what does not exist.
pub(super) fn optional<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(v) => Ok(Some(v)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// What could not be read.
pub(super) fn in_words(path: &str) -> impl Fn(io::Error) -> TargetError {
    move |source| TargetError::Kernel { step: "read".into(), path: Path::new(path).into(), source }
}

/// A directory's names; none where there is no such directory.
pub(super) fn list(tree: &dyn ConfigTree, path: &str) -> Result<Vec<String>> {
    Ok(optional(tree.list(path)).map_err(in_words(path))?.unwrap_or_default())
}

/// An attribute's value, if there is such an attribute.
pub(super) fn attribute(tree: &dyn ConfigTree, path: &str) -> Result<Option<String>> {
    optional(tree.read(path)).map_err(in_words(path))
}

/// The name of what a link points at, if there is such a link.
pub(super) fn target_of(tree: &dyn ConfigTree, path: &str) -> Result<Option<String>> {
    optional(tree.read_link(path)).map_err(in_words(path))
}
