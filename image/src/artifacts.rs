//! Where the results of `image/build.sh` are.

use anyhow::{Result, ensure};
use std::path::{Path, PathBuf};

/// What a guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The product: read-only root, state on a disk, `orlopd`.
    Appliance,
    /// A machine that uses volumes: nvme-cli, open-iscsi, NFS client, fio. Stateless.
    Initiator,
}

impl Role {
    /// The name of the role's root image, without extension.
    pub fn name(self) -> &'static str {
        match self {
            Role::Appliance => "appliance",
            Role::Initiator => "initiator",
        }
    }
}

/// Paths of what `just image` made.
#[derive(Debug, Clone)]
pub struct Artifacts {
    dir: PathBuf,
}

impl Artifacts {
    /// Finds the artifacts in `$ORLOP_OUT`, or in `target/image` of the checkout.
    pub fn locate() -> Result<Self> {
        let dir = match std::env::var_os("ORLOP_OUT") {
            Some(dir) => PathBuf::from(dir),
            None => checkout().join("target/image"),
        };
        Self::at(&dir)
    }

    /// The artifacts in `dir`, after checking that they are complete.
    pub fn at(dir: &Path) -> Result<Self> {
        let artifacts = Artifacts { dir: dir.to_path_buf() };
        for path in [
            artifacts.kernel(),
            artifacts.initrd(),
            artifacts.root(Role::Appliance),
            artifacts.root(Role::Initiator),
            artifacts.emulator(),
        ] {
            ensure!(path.is_file(), "{} is missing: run `just image` first", path.display());
        }
        Ok(artifacts)
    }

    /// The kernel, as QEMU's `-kernel` wants it.
    pub fn kernel(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// The initrd, the same for both roles.
    pub fn initrd(&self) -> PathBuf {
        self.dir.join("initrd")
    }

    /// QEMU, of one version wherever this is built.
    pub fn emulator(&self) -> PathBuf {
        self.dir.join("emulator/qemu-system-x86_64")
    }

    /// The EROFS root image of a role.
    pub fn root(&self, role: Role) -> PathBuf {
        self.dir.join(format!("{}.erofs", role.name()))
    }
}

/// The top of the checkout this crate was built in.
pub(crate) fn checkout() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incomplete_set_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("vmlinuz"), "").unwrap();
        let error = Artifacts::at(dir.path()).unwrap_err().to_string();
        assert!(error.contains("initrd is missing: run `just image`"), "{error}");
    }
}
