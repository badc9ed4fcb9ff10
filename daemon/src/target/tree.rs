//! The little that the target needs of a configfs tree.

use std::io;

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
