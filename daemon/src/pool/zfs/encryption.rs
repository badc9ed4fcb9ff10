//! Encrypted volumes: ZFS's own encryption (zfs-load-key(8)), each volume with a raw key of its own.
//!
//! Called by the pool. A key goes to the kernel through the library, or to the command through a pipe: it is in
//! no list of processes and in no file. Linked clones are encrypted with the key of the volume that they descend
//! from, their encryption root, and are locked and unlocked with it.

use std::collections::BTreeSet;
use std::io;

use orlop_api::{Encryption, EncryptionKey, VolumeId};
use rustix::io::Errno;

use super::ZfsPool;
use crate::kernel::exec::Output;
use crate::kernel::{Deadline, lzc};
use crate::model::Label;
use crate::pool::{PoolError, Result};

/// How a dataset is made that has a key of its own.
pub(super) const SETTINGS: [&str; 3] = ["encryption=aes-256-gcm", "keyformat=raw", "keylocation=prompt"];

impl ZfsPool {
    /// The key, from the ring.
    pub(super) fn key(&self, encryption: Encryption) -> Result<EncryptionKey> {
        self.keys.get(encryption.key_of).ok_or_else(|| self.is_locked(encryption.key_of))
    }

    fn is_locked(&self, volume: VolumeId) -> PoolError {
        PoolError::Locked { pool: self.ctx.pool.clone(), volume }
    }

    /// Its key is loaded, or is loaded now from the ring.
    pub(super) fn ensure_unlocked(&self, label: &Label, deadline: &Deadline) -> Result<()> {
        let Some(encryption) = label.encryption else { return Ok(()) };
        match self.keys.get(encryption.key_of) {
            Some(key) => self.load_key(encryption.key_of, &key, false, deadline),
            // One that was brought before the daemon was started again.
            None if !self.without_key(Some(encryption.key_of), deadline)?.contains(&encryption.key_of) => {
                Ok(())
            }
            None => Err(self.is_locked(encryption.key_of)),
        }
    }

    /// Loads the key of an encryption root. Fine if one is loaded; with `check` only if it is this one.
    pub(super) fn load_key(
        &self,
        root: VolumeId,
        key: &EncryptionKey,
        check: bool,
        deadline: &Deadline,
    ) -> Result<()> {
        let name = self.dataset(root);
        self.check(deadline, "loading a key")?;
        let Some(lzc) = lzc::get() else { return self.load_key_by_command(root, key, check, deadline) };
        let errno = |e: &io::Error, is: Errno| e.raw_os_error() == Some(is.raw_os_error());
        let loaded = match check {
            true => lzc.load_key(&name, true, key.expose()),
            false => Ok(()),
        };
        match loaded.and_then(|()| lzc.load_key(&name, false, key.expose())) {
            Err(e) if errno(&e, Errno::EXIST) => Ok(()),
            Err(e) if errno(&e, Errno::ACCESS) => {
                Err(PoolError::WrongKey { pool: self.ctx.pool.clone(), volume: root })
            }
            done => done.map_err(self.ctx.io(format!("loading the key of {name}"))),
        }
    }

    /// The same, where there is no library.
    fn load_key_by_command(
        &self,
        root: VolumeId,
        key: &EncryptionKey,
        check: bool,
        deadline: &Deadline,
    ) -> Result<()> {
        let name = self.dataset(root);
        let run = |args: &[&str]| {
            self.zfs.run_with(args, Some(key.expose()), deadline).map_err(|e| self.ctx.exec(e))
        };
        let locked = self.without_key(Some(root), deadline)?.contains(&root);
        if check && run(&["load-key", "-n", "-L", "prompt", &name])?.code != Some(0) {
            // What it says is for people; that it is there was seen just now.
            return Err(PoolError::WrongKey { pool: self.ctx.pool.clone(), volume: root });
        }
        if !locked {
            return Ok(());
        }
        let done = run(&["load-key", "-L", "prompt", &name])?;
        done.success().map(drop).map_err(|e| self.ctx.exec(e))
    }

    /// The volumes whose key is not loaded: of all of them, or of one, in one command.
    pub(super) fn without_key(
        &self,
        one: Option<VolumeId>,
        deadline: &Deadline,
    ) -> Result<BTreeSet<VolumeId>> {
        let parent = self.parent();
        let one = one.map(|id| self.dataset(id));
        let mut args = vec!["list", "-H", "-t", "filesystem,volume", "-o", "name,keystatus"];
        match &one {
            Some(name) => args.extend(["-d", "0", &parent, name]),
            None => args.extend(["-r", &parent]),
        }
        let output = self.zfs.run(&args, deadline).and_then(Output::success).map_err(|e| self.ctx.exec(e))?;
        let text = output.text().map_err(|e| self.ctx.exec(e))?;
        // The parent itself is proof that the question was answered.
        if !text.lines().any(|l| l.split('\t').next() == Some(&parent)) {
            return Err(self.ctx.exec(output.unparsed(&"its parent is not there")));
        }
        Ok(locked(text, &parent))
    }
}

/// Makes ZFS give a device to a clone of a clone: when a key is loaded it does so for the volume whose key that is, and
/// for its own clones, but not for theirs.
pub(super) const GIVE_DEVICE: &str = "volmode=dev";

fn locked(text: &str, parent: &str) -> BTreeSet<VolumeId> {
    text.lines()
        .filter_map(|line| {
            let (name, status) = line.split_once('\t')?;
            let id = name.strip_prefix(parent)?.strip_prefix('/')?.parse().ok()?;
            (status.trim_end() == "unavailable").then_some(id)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_has_no_key_is_locked() {
        let ids = ["0190c0de-1234-7abc-8def-0123456789ab", "0190c0de-1234-7abc-8def-0123456789ac"];
        let text = format!(
            "tank/orlop\t-\ntank/orlop/{}\tunavailable\ntank/orlop/{}\tavailable\ntank/orlop/vm\tunavailable\n",
            ids[0], ids[1]
        );
        assert_eq!(locked(&text, "tank/orlop"), BTreeSet::from([ids[0].parse().unwrap()]));
        assert!(locked("", "tank/orlop").is_empty());
    }
}
