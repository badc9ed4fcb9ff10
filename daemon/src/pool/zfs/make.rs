//! How a volume is made, and made what its label says: the commands and calls, and what they are given.
//!
//! Called by the pool, which looks before and after.

use orlop_api::{ByteSize, EncryptionKey, Properties, Provisioning, VolumeKind};

use super::turns::Work;
use super::{LABEL, VOLBLOCKSIZE, ZfsPool, dataset, encryption};
use crate::kernel::{Deadline, lzc};
use crate::model::{Label, SnapshotLabel};
use crate::pool::{Pool, PoolError, Result, Stored};

/// What the dataset of every file system volume says, besides what it inherits: that nobody mounts it but the
/// daemon, and that its files can have what those of ext4 and XFS can.
const FILESYSTEM: [&str; 6] =
    ["mountpoint=legacy", "canmount=noauto", "devices=off", "setuid=off", "xattr=sa", "acltype=posix"];

/// How large a file system volume is, and what of it is reserved.
fn sizes(label: &Label) -> Vec<String> {
    let size = label.size.bytes();
    let reserved = (label.provisioning == Provisioning::Thick).then(|| format!("refreservation={size}"));
    reserved.into_iter().chain(std::iter::once(format!("refquota={size}"))).collect()
}

impl ZfsPool {
    pub(super) fn set_size(&self, label: &Label, deadline: &Deadline) -> Result<()> {
        let name = self.dataset(label.id);
        if label.kind == VolumeKind::Filesystem {
            return self.zfs(&[vec!["set".into()], sizes(label), vec![name]].concat(), deadline);
        }
        let turn = self.turn(Work::Growth, deadline)?;
        self.check(deadline, "setting a size")?;
        let size = format!("volsize={}", label.size.bytes());
        let done = self.zfs.run_holding(&["set", &size, &name], turn, deadline);
        done.and_then(|o| o.success()).map(drop).map_err(|e| self.ctx.exec(e))
    }

    /// The creation itself, of a linked clone `from` its snapshot. What came of it is read back by the caller.
    pub(super) fn make(
        &self,
        label: &Label,
        from: Option<&SnapshotLabel>,
        text: &str,
        deadline: &Deadline,
    ) -> Result<()> {
        let name = self.dataset(label.id);
        // The kernel knows the values of these by numbers of its own, and libzfs has the table: volumes
        // that set any take the command.
        let mut settings: Vec<String> = dataset::settings(&label.properties).collect();
        let filesystem = label.kind == VolumeKind::Filesystem;
        if filesystem {
            settings.extend(FILESYSTEM.map(String::from));
            settings.extend(dataset::record_size(&label.properties));
            settings.extend(sizes(label));
        }
        // A clone is encrypted as its origin is, and takes no key of its own.
        let key = match label.encryption.filter(|_| from.is_none()) {
            Some(encryption) => {
                settings.extend(encryption::SETTINGS.map(String::from));
                Some(self.key(encryption)?)
            }
            None => None,
        };
        let fast = if settings.is_empty() { lzc::get() } else { None };
        let mut options = Vec::new();
        for setting in settings.into_iter().chain([format!("{LABEL}={text}")]) {
            options.extend(["-o".into(), setting]);
        }
        let run = |args: Vec<String>| {
            self.check(deadline, "running zfs")?;
            let done = self.zfs.run_with(&args, key.as_ref().map(EncryptionKey::expose), deadline);
            done.and_then(|o| o.success()).map(drop).map_err(|e| self.ctx.exec(e))
        };
        if let Some(from) = from {
            let snapshot = self.dataset(from.key);
            self.ensure_unlocked(label, deadline)?;
            self.check(deadline, "cloning a snapshot")?;
            match fast {
                Some(lzc) => lzc
                    .clone_snapshot(&snapshot, &name, &[(LABEL, text)])
                    .map_err(self.ctx.io(format!("cloning {snapshot}")))?,
                None => run([vec!["clone".into()], options, vec![snapshot, name]].concat())?,
            }
            // It has its snapshot's size at first.
            return if from.size < label.size { self.set_size(label, deadline) } else { Ok(()) };
        }
        if filesystem {
            // -u: where it is mounted, and when, the daemon decides.
            return run([vec!["create".into(), "-u".into()], options, vec![name]].concat());
        }
        let thin = label.provisioning == Provisioning::Thin;
        let block_size = label.properties.block_size.map_or(VOLBLOCKSIZE, |b| b.bytes());
        // A reservation is computed by libzfs from the pool's layout, so thick ones take the command too.
        if thin && let Some(lzc) = fast {
            self.check(deadline, "creating a zvol")?;
            let numbers = [("volsize", label.size.bytes()), ("volblocksize", block_size)];
            return lzc
                .create_zvol(&name, &numbers, &[(LABEL, text)])
                .map_err(self.ctx.io(format!("creating {name}")));
        }
        let mut args: Vec<String> = vec!["create".into()];
        if thin {
            args.push("-s".into());
        }
        args.extend(["-b".into(), block_size.to_string()]);
        args.extend(["-V".into(), label.size.bytes().to_string()]);
        run([args, options, vec![name]].concat())
    }

    /// Makes a zvol what `label` says. It was read as `old`, and may have any of `local` set on it.
    ///
    /// All properties and the label change in one transaction group, but for two things. A reservation is
    /// a change of its own: it comes first where it can be refused. And what goes back to the default takes
    /// another command: it goes before the label, which says until then that it is to be done.
    pub(super) fn apply(
        &self,
        old: &Stored,
        local: &Properties,
        label: &Label,
        deadline: &Deadline,
    ) -> Result<()> {
        let name = self.dataset(label.id);
        let text = self.label_text(label)?;
        self.check(deadline, "setting properties")?;
        let (was, is) = (old.provisioning, label.provisioning);
        if (was, is) == (Provisioning::Thin, Provisioning::Thick) {
            let reserved = match label.kind {
                VolumeKind::Block => "refreservation=auto".to_string(),
                // All that its files may take. ZFS computes nothing more for a file system.
                VolumeKind::Filesystem => format!("refreservation={}", label.size.bytes()),
            };
            self.zfs(&["set", &reserved, &name], deadline)?;
        }
        for property in dataset::unset(local, &label.properties) {
            self.zfs(&["inherit", property, &name], deadline)?;
        }
        let mut settings: Vec<String> = dataset::settings(&label.properties).collect();
        if (was, is) == (Provisioning::Thick, Provisioning::Thin) {
            settings.push("refreservation=none".into());
        }
        settings.push(format!("{LABEL}={text}"));
        let mut args = vec!["set"];
        args.extend(settings.iter().map(String::as_str));
        args.push(&name);
        self.zfs(&args, deadline)
    }

    /// After a failed reservation: says so if space is what was missing, judged by the space there is.
    pub(super) fn blame_space(&self, error: PoolError, more: u64, deadline: &Deadline) -> PoolError {
        let PoolError::Command { .. } = error else { return error };
        match self.capacity(deadline) {
            // A reservation is a little larger than the volume: it covers the metadata as well.
            Ok(have) if have.available.bytes() < more.saturating_add(more / 16).saturating_add(8 << 20) => {
                self.ctx.exhausted(format!(
                    "{} with its metadata is needed, {} is free",
                    ByteSize(more),
                    have.available
                ))
            }
            _ => error,
        }
    }
}
