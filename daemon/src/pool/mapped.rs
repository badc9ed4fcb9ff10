//! Volumes while they have a device of the device mapper above their medium: one that deciphers them, where they are
//! encrypted, and otherwise one that passes on what it gets. Either can be held, which a loop device can't, nor a
//! logical volume without LVM losing count of its thin pool.
//!
//! Called by `lvm` and `file` pools. Encryption is LUKS2 on the backing, whose header lies before the volume's own
//! bytes. Snapshots and clones have the header of what they are made from, and so its key. A volume is open as long as
//! it has its device here, and while it is, it can be used by a daemon that does not have its key. What is mounted on
//! its medium itself has none: its file system is held (`mounted`).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_api::{ByteSize, Encryption, EncryptionKey, Provisioning, VolumeId, VolumeKind};
use rustix::io::Errno;

use super::context::Context;
use super::{KeyRing, PoolError, Result};
use crate::kernel::dm::Suspended;
use crate::kernel::filesystem::{self, MakeError};
use crate::kernel::luks::{self, HEADER, Opens};
use crate::kernel::{Deadline, block, dm};
use crate::model::Label;

/// How long somebody may look at a device that is to be closed.
const BUSY: Duration = Duration::from_secs(10);

/// The same of one that others may be reading.
const LOOK: Duration = Duration::from_secs(2);

/// How large the backing is of a volume of that size.
pub(super) fn backing(size: ByteSize, encryption: Option<Encryption>) -> u64 {
    size.bytes().saturating_add(header(encryption))
}

/// What a backing of that size has for the volume.
pub(super) fn visible(backing: u64, encryption: Option<Encryption>) -> ByteSize {
    ByteSize(backing.saturating_sub(header(encryption)))
}

/// What lies before a volume's own bytes on its backing.
pub(super) fn header(encryption: Option<Encryption>) -> u64 {
    if encryption.is_some() { HEADER } else { 0 }
}

/// What an open one is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// Reading only, as of a snapshot.
    Read,
    /// A file system that is mounted here, or made.
    Mount(Provisioning),
    /// A disk, for whoever it is attached to.
    Serve(Provisioning),
}

impl Use {
    /// What a volume is for.
    pub fn of(label: &Label) -> Self {
        match label.kind {
            VolumeKind::Filesystem => Self::Mount(label.provisioning),
            VolumeKind::Block => Self::Serve(label.provisioning),
        }
    }

    /// Whether what is discarded goes back to the pool.
    fn discards(self) -> bool {
        matches!(self, Self::Mount(Provisioning::Thin) | Self::Serve(Provisioning::Thin))
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Mappings {
    ctx: Context,
    keys: KeyRing,
}

/// What the names of all of them begin with.
const PREFIX: &str = "orlop-";

/// The name under which the device mapper has an open one.
fn mapped(name: &str) -> String {
    format!("{PREFIX}{name}")
}

/// At a start, before any pool is opened: all that a daemon which was killed held goes on, also what is of a pool that can't
/// be opened now. The kernel serves it all the same.
pub fn let_all_go_on() {
    let resumed = dm::suspended(PREFIX).map(|all| {
        for name in all {
            match dm::resume(&name) {
                Ok(()) => tracing::warn!(name, "a volume was still held, and goes on"),
                Err(error) => tracing::error!(name, %error, "a volume that was held does not go on"),
            }
        }
    });
    if let Err(error) = resumed {
        tracing::error!(%error, "what is held is not known");
    }
}

/// What this machine lacks for encryption. `None`: nothing.
pub(super) fn lacks() -> Option<&'static str> {
    match (dm::is_there(), luks::tool()) {
        (false, _) => Some("it takes the device mapper, which this kernel does not have"),
        (true, Err(_)) => Some("it takes cryptsetup, which is not installed"),
        (true, Ok(_)) => None,
    }
}

impl Mappings {
    pub fn new(ctx: &Context, keys: &KeyRing) -> Self {
        Self { ctx: ctx.clone(), keys: keys.clone() }
    }

    /// The key, from the ring.
    fn key(&self, encryption: Encryption) -> Result<EncryptionKey> {
        let volume = encryption.key_of;
        self.keys.get(volume).ok_or_else(|| PoolError::Locked { pool: self.ctx.pool.clone(), volume })
    }

    /// Refuses before anything is made what there is no key, no tool or no device mapper for.
    pub fn check(&self, encryption: Option<Encryption>) -> Result<()> {
        let Some(encryption) = encryption else { return Ok(()) };
        if let Some(reason) = lacks() {
            let (pool, reason) = (self.ctx.pool.clone(), format!("can't be had here: {reason}"));
            return Err(PoolError::Property { pool, field: "encryption", reason });
        }
        self.key(encryption).map(drop)
    }

    fn opened(&self, opens: Opens, key_of: VolumeId) -> Result<()> {
        match opens {
            Opens::Yes => Ok(()),
            Opens::WrongKey => Err(PoolError::WrongKey { pool: self.ctx.pool.clone(), volume: key_of }),
        }
    }

    /// Puts the header on a backing that was made just now, is found blank, and that nobody takes for whole yet.
    pub fn format(&self, id: VolumeId, encryption: Encryption, on: &Path, deadline: &Deadline) -> Result<()> {
        let (key, uuid) = (self.key(encryption)?, id.uuid().hyphenated().to_string());
        let refuse = |why: String| Err(self.ctx.conflict(on.display().to_string(), why));
        match filesystem::check_blank(on) {
            Ok(()) => {}
            Err(MakeError::Io(e)) => return Err(self.ctx.io(format!("reading {}", on.display()))(e)),
            Err(e) => return refuse(e.to_string()),
        }
        luks::format(on, &uuid, key.expose(), deadline).map_err(|e| self.ctx.exec(e))?;
        // Whatever the command said: what counts is what is there.
        let found =
            luks::header(on).map_err(self.ctx.io(format!("reading the header of {}", on.display())))?;
        if found.as_deref() == Some(uuid.as_str()) {
            return Ok(());
        }
        refuse("it has no header of LUKS after it was given one".into())
    }

    /// The device of one that is open.
    pub fn device(&self, name: &str) -> Result<Option<PathBuf>> {
        let name = mapped(name);
        dm::device(&name).map_err(self.ctx.io(format!("looking at {name}")))
    }

    /// Opens one on its backing's device, or finds it open. What needs no device above that one is used by it.
    pub fn open(
        &self,
        name: &str,
        encryption: Option<Encryption>,
        on: &Path,
        for_use: Use,
        deadline: &Deadline,
    ) -> Result<PathBuf> {
        let served = matches!(for_use, Use::Serve(_)) && dm::is_there();
        if encryption.is_none() && !served {
            return Ok(on.to_owned());
        }
        let device = match self.found(name, on)? {
            Some(device) => device,
            None => {
                let key = encryption.map(|e| Ok((e, self.key(e)?))).transpose()?;
                self.clear(name)?;
                self.ctx.check(deadline, "opening a volume")?;
                match key {
                    Some((encryption, key)) => {
                        self.decipher(name, encryption, &key, on, for_use, deadline)?
                    }
                    None => self.pass_on(name, on)?,
                }
            }
        };
        self.as_large(name, encryption, on, &device, deadline)?;
        Ok(device)
    }

    fn pass_on(&self, name: &str, on: &Path) -> Result<PathBuf> {
        let name_there = mapped(name);
        let made = dm::make(&name_there, dm::Above::All, on);
        // Whatever it said: another may have been quicker.
        if let Some(device) = self.found(name, on)? {
            return Ok(device);
        }
        made.map_err(self.ctx.io(format!("making {name_there} on {}", on.display())))?;
        Err(self.ctx.not_found(format!("the device {name_there}")))
    }

    fn decipher(
        &self,
        name: &str,
        encryption: Encryption,
        key: &EncryptionKey,
        on: &Path,
        for_use: Use,
        deadline: &Deadline,
    ) -> Result<PathBuf> {
        let read_only = for_use == Use::Read;
        let opens = luks::open(on, &mapped(name), key.expose(), for_use.discards(), read_only, deadline);
        // Whatever it said: another reader may have been quicker.
        if let Some(device) = self.found(name, on)? {
            return Ok(device);
        }
        self.opened(opens.map_err(|e| self.ctx.exec(e))?, encryption.key_of)?;
        Err(self.ctx.not_found(format!("the device {}", mapped(name))))
    }

    /// Makes one as large as its backing, where a daemon was stopped between the growth of the two.
    fn as_large(
        &self,
        name: &str,
        encryption: Option<Encryption>,
        on: &Path,
        device: &Path,
        deadline: &Deadline,
    ) -> Result<()> {
        let size = |path: &Path| {
            let size = std::fs::File::open(path).and_then(|f| block::size(&f));
            size.map_err(self.ctx.io(format!("opening {}", path.display())))
        };
        if size(device)? < visible(size(on)?, encryption).bytes() {
            self.grow(name, encryption, deadline)?;
        }
        Ok(())
    }

    /// The device of one that is open on that device, and on no other.
    fn found(&self, name: &str, on: &Path) -> Result<Option<PathBuf>> {
        let Some(device) = self.device(name)? else { return Ok(None) };
        let action = format!("looking at {}", device.display());
        if dm::stands_on(&device, on).map_err(self.ctx.io(action))? {
            return Ok(Some(device));
        }
        let detail = format!("{} is on another device than {}", device.display(), on.display());
        Err(self.ctx.conflict(mapped(name), detail))
    }

    /// Removes what a command left that was ended while it opened one.
    fn clear(&self, name: &str) -> Result<()> {
        let name = mapped(name);
        let action = || format!("removing what is left of {name}");
        match dm::look(&name).map_err(self.ctx.io(action()))? {
            Some(m) if !m.is_live => dm::remove(&name).map_err(self.ctx.io(action())),
            _ => Ok(()),
        }
    }

    /// Refuses what is not open and could not be opened, before anything is brought up for it.
    pub fn check_key(&self, name: &str, encryption: Option<Encryption>) -> Result<()> {
        match encryption {
            Some(encryption) if self.device(name)?.is_none() => self.key(encryption).map(drop),
            _ => Ok(()),
        }
    }

    /// Makes an open one as large as its backing.
    pub fn grow(&self, name: &str, encryption: Option<Encryption>, deadline: &Deadline) -> Result<()> {
        if self.device(name)?.is_none() {
            return Ok(());
        }
        let name = mapped(name);
        match encryption {
            Some(_) => luks::resize(&name, deadline).map_err(|e| self.ctx.exec(e)),
            None => dm::grow(&name, dm::Above::All).map_err(self.ctx.io(format!("growing {name}"))),
        }
    }

    /// Holds one if it is open.
    pub fn hold(&self, name: &str) -> Result<Option<Suspended>> {
        let name = mapped(name);
        Suspended::hold(&name).map_err(self.ctx.io(format!("holding {name} for a snapshot")))
    }

    /// A daemon that was killed in the middle of a snapshot left what it held: its writers wait. `ours`: whether it is
    /// of this pool.
    pub fn recall(&self, ours: impl Fn(&str) -> Result<bool>) -> Result<()> {
        let all = dm::suspended(PREFIX).map_err(self.ctx.io("looking for what is held"))?;
        for name in all.iter().filter_map(|name| name.strip_prefix(PREFIX)) {
            if ours(name)? {
                dm::resume(&mapped(name)).map_err(self.ctx.io(format!("letting {name} go on")))?;
                tracing::warn!(volume = name, "a volume was still held, and goes on");
            }
        }
        Ok(())
    }

    /// Closes one, waiting for those who look at it only for a moment. Fine if it is not open.
    pub fn close(&self, name: &str, deadline: &Deadline) -> Result<()> {
        let patience = deadline.at_most(BUSY);
        let mut pause = Duration::from_millis(20);
        while self.device(name)?.is_some() {
            self.ctx.check(deadline, "closing a volume")?;
            if let Err(error) = dm::remove(&mapped(name))
                && self.device(name)?.is_some()
                && patience.pause(pause).is_err()
            {
                return Err(match error.raw_os_error() {
                    Some(e) if e == Errno::BUSY.raw_os_error() => {
                        self.ctx.precondition(format!("{} is in use", mapped(name)))
                    }
                    _ => self.ctx.io(format!("closing {}", mapped(name)))(error),
                });
            }
            pause = (pause * 2).min(Duration::from_millis(500));
        }
        self.clear(name)
    }

    /// Closes one unless somebody else uses it. Whether it is still open.
    pub fn close_if_unused(&self, name: &str, deadline: &Deadline) -> Result<bool> {
        // Longer than it takes udev to look.
        if let Err(error) = self.close(name, &deadline.at_most(LOOK)) {
            tracing::debug!(name, %error, "an encrypted snapshot stays open");
        }
        Ok(self.device(name)?.is_some())
    }

    /// A key that somebody brought, on the ring if it opens the backing.
    pub fn unlock(
        &self,
        encryption: Encryption,
        on: &Path,
        key: &EncryptionKey,
        deadline: &Deadline,
    ) -> Result<()> {
        let opens = luks::try_key(on, key.expose(), deadline).map_err(|e| self.ctx.exec(e))?;
        self.opened(opens, encryption.key_of)?;
        self.keys.put(encryption.key_of, key.clone());
        Ok(())
    }

    /// Of those, the keys that are not on the ring and that nothing is open with: by volumes' names and how they are
    /// encrypted.
    pub fn locked(&self, all: impl Iterator<Item = (String, Encryption)>) -> Result<BTreeSet<VolumeId>> {
        let (mut closed, mut open) = (BTreeSet::new(), BTreeSet::new());
        for (name, Encryption { key_of, .. }) in all {
            if self.keys.get(key_of).is_some() || self.device(&name)?.is_some() {
                open.insert(key_of);
            } else {
                closed.insert(key_of);
            }
        }
        Ok(&closed - &open)
    }
}
