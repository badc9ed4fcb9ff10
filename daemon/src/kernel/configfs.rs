//! A configfs tree below one root: directories, attributes and links, with the few rules that the
//! kernel attaches to each.
//!
//! Called by the targets through a trait of their own. The root is a parameter, so that tests can use
//! a plain directory. Knows nothing of what the tree configures, and never creates or truncates a file.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

/// A tree below a root. All paths given to it are relative to the root and can't leave it.
#[derive(Debug, Clone)]
pub struct ConfigFs {
    root: PathBuf,
}

/// An attribute is at most a page.
const PAGE: usize = 4096;

impl ConfigFs {
    /// The tree below `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn full(&self, path: &str) -> io::Result<PathBuf> {
        let inside = Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
        if inside { Ok(self.root.join(path)) } else { Err(ErrorKind::InvalidInput.into()) }
    }

    /// Creates a directory, and with it, in configfs, what the kernel puts inside.
    pub fn make_dir(&self, path: &str) -> io::Result<()> {
        fs::create_dir(self.full(path)?)
    }

    /// Removes a directory. configfs removes the attributes and default groups inside along with it,
    /// and refuses with ENOTEMPTY (items inside) or EBUSY (links to it).
    pub fn remove_dir(&self, path: &str) -> io::Result<()> {
        fs::remove_dir(self.full(path)?)
    }

    /// An attribute's value without the line end and padding.
    pub fn read(&self, path: &str) -> io::Result<String> {
        let mut page = [0; PAGE];
        // An attribute comes whole in one call: to ask whether there is more would be one call of four, and an observation
        // reads some twenty attributes a volume.
        let len = fs::File::open(self.full(path)?)?.read(&mut page)?;
        let text =
            std::str::from_utf8(&page[..len]).map_err(|e| io::Error::new(ErrorKind::InvalidData, e))?;
        Ok(text.trim_end().to_owned())
    }

    /// Writes an attribute in one write call: configfs hands each call to the attribute as a whole new
    /// value, so that a value in two pieces would be two values. Without O_CREAT, so that an attribute
    /// that this kernel lacks is ENOENT, and without O_TRUNC, which means nothing to it.
    pub fn write(&self, path: &str, value: &str) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).open(self.full(path)?)?;
        match file.write(value.as_bytes())? {
            n if n == value.len() => Ok(()),
            _ => Err(ErrorKind::WriteZero.into()),
        }
    }

    /// From now on only the owner, who is the superuser, may look into a directory. For as long as the module is
    /// loaded: configfs keeps modes in memory.
    pub fn restrict(&self, path: &str) -> io::Result<()> {
        fs::set_permissions(self.full(path)?, fs::Permissions::from_mode(0o700))
    }

    /// Makes `path` a link to the directory `target`. The kernel looks the target up at once, from the
    /// working directory, so it is given absolute.
    pub fn link(&self, target: &str, path: &str) -> io::Result<()> {
        std::os::unix::fs::symlink(self.full(target)?, self.full(path)?)
    }

    /// Removes a link.
    pub fn unlink(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.full(path)?)
    }

    /// The names in a directory, ordered. `""` is the root.
    pub fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.full(path)?)? {
            // The kernel makes no name that is not UTF-8 unless a user asked for it: then it is not ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// The name of the directory that a link points at. A link's own name may be another one.
    pub fn read_link(&self, path: &str) -> io::Result<String> {
        let target = fs::read_link(self.full(path)?)?;
        let name = target.file_name().and_then(|n| n.to_str()).map(str::to_owned);
        name.ok_or_else(|| ErrorKind::InvalidData.into())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn writes_in_place_and_never_creates() {
        let dir = tempfile::tempdir().unwrap();
        let tree = ConfigFs::at(dir.path());
        assert_eq!(tree.write("missing", "1").unwrap_err().kind(), ErrorKind::NotFound);
        assert!(!dir.path().join("missing").exists());
        fs::write(dir.path().join("attr"), "0123456789\n").unwrap();
        tree.write("attr", "ab").unwrap();
        // A truncating writer would have left "ab" alone.
        assert_eq!(tree.read("attr").unwrap(), "ab23456789");
    }

    #[test]
    fn links_are_read_by_the_name_of_their_target() {
        let dir = tempfile::tempdir().unwrap();
        let tree = ConfigFs::at(dir.path());
        tree.make_dir("hosts").unwrap();
        tree.make_dir("hosts/nqn.a").unwrap();
        tree.link("hosts/nqn.a", "other").unwrap();
        assert_eq!(tree.read_link("other").unwrap(), "nqn.a");
        assert_eq!(tree.list("").unwrap(), ["hosts", "other"]);
        tree.unlink("other").unwrap();
        tree.remove_dir("hosts/nqn.a").unwrap();
        assert!(tree.list("hosts").unwrap().is_empty());
    }

    #[test]
    fn paths_stay_inside() {
        let tree = ConfigFs::at("/nonexistent");
        for bad in ["/etc", "../x", "a/../b"] {
            assert_eq!(tree.read(bad).unwrap_err().kind(), ErrorKind::InvalidInput, "{bad}");
        }
    }
}
