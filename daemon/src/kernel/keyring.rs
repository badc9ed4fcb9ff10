//! Keys in the kernel's own keyrings, by system calls.
//!
//! Called by the NVMe target, for what TLS looks up when a host connects. Keys are root's: who else asks does not see
//! what is in them.

use std::io;

use keyutils::{Key, KeyType, Keyring, KeyringSerial, SpecialKeyring};
use parking_lot::Mutex;

/// Keys of TLS sessions to be, by their identity: `nvme_keyring` registers the type.
struct Psk;

impl KeyType for Psk {
    type Description = str;
    type Payload = [u8];
    fn name() -> &'static str {
        "psk"
    }
}

/// A keyring that the kernel has made, by its name.
pub struct KernelKeyring {
    name: &'static str,
    /// Its number, when it was looked up. It is the same for as long as the module that made it is loaded.
    serial: Mutex<Option<KeyringSerial>>,
}

impl KernelKeyring {
    /// Nothing is looked up yet.
    pub fn named(name: &'static str) -> Self {
        Self { name, serial: Mutex::new(None) }
    }

    /// A key's bytes, if there is such a key.
    pub fn get(&self, identity: &str) -> io::Result<Option<Vec<u8>>> {
        let Some(key) = self.find(identity)? else { return Ok(None) };
        match key.read().map_err(io::Error::from) {
            // Another thread may have other keyrings of its own, if the process was started with none.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                *self.serial.lock() = None;
                self.ring()?;
                Ok(Some(key.read()?))
            }
            read => read.map(Some),
        }
    }

    /// Adds a key, or gives one that is there other bytes.
    pub fn put(&self, identity: &str, bytes: &[u8]) -> io::Result<()> {
        self.ring()?.add_key::<Psk, _, _>(identity, bytes)?;
        Ok(())
    }

    /// Takes a key away, if it is there.
    pub fn remove(&self, identity: &str) -> io::Result<()> {
        if let Some(key) = self.find(identity)? {
            self.ring()?.unlink_key(&key)?;
        }
        Ok(())
    }

    /// The identities of all keys.
    pub fn identities(&self) -> io::Result<Vec<String>> {
        let (keys, _) = self.ring()?.read()?;
        let mut all = Vec::with_capacity(keys.len());
        for key in keys {
            // One that went meanwhile has none.
            if let Ok(about) = key.description() {
                all.push(about.description);
            }
        }
        Ok(all)
    }

    /// The kernel's search is content with a key whose identity only begins so.
    fn find(&self, identity: &str) -> io::Result<Option<Key>> {
        let exactly = |key: &Key| key.description().is_ok_and(|about| about.description == identity);
        match self.ring()?.search_for_key::<Psk, _, _>(identity, None) {
            Ok(key) if exactly(&key) => Ok(Some(key)),
            Ok(_) => Ok(self.ring()?.read()?.0.into_iter().find(exactly)),
            Err(e) => match io::Error::from(e) {
                e if e.raw_os_error() == Some(rustix::io::Errno::NOKEY.raw_os_error()) => Ok(None),
                e => Err(e),
            },
        }
    }

    /// `NotFound`: the kernel has no such keyring.
    fn ring(&self) -> io::Result<Keyring> {
        let mut serial = self.serial.lock();
        if let Some(known) = *serial {
            return Ok(keyring(known));
        }
        let found = look_up(&std::fs::read_to_string("/proc/keys")?, self.name);
        let found = found.ok_or(io::ErrorKind::NotFound)?;
        // What is in it can be read by who has it among its own.
        Keyring::attach_or_create(SpecialKeyring::Session)?.link_keyring(&keyring(found))?;
        *serial = Some(found);
        Ok(keyring(found))
    }
}

/// A line of `/proc/keys`: number, flags, uses, expiry, permissions, uid, gid, type, and description with a summary.
fn look_up(keys: &str, name: &str) -> Option<KeyringSerial> {
    keys.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let serial = fields.next()?;
        let (kind, description) = (fields.nth(6)?, fields.next()?);
        let ours = kind == "keyring" && description.trim_end_matches(':') == name;
        let number = u32::from_str_radix(serial, 16).ok().filter(|_| ours)?;
        KeyringSerial::new(i32::try_from(number).ok()?)
    })
}

/// What is said of it is asked of the kernel each time, which refuses a number that is no keyring.
#[allow(unsafe_code)]
fn keyring(serial: KeyringSerial) -> Keyring {
    // SAFETY: the number was read from the kernel's list of keyrings.
    unsafe { Keyring::new(serial) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_keyring_is_found_by_its_name() {
        let keys = "\
02f1a1c3 I--Q---     1 perm 3f030000     0     0 user      .nvme: 32
0a1b2c3d I------     1 perm 1f0b0000     0     0 keyring   .nvme-other: empty
1c2d3e4f I------     2 perm 1f0b0000     0     0 keyring   .nvme: 3
";
        assert_eq!(look_up(keys, ".nvme").map(|s| s.get()), Some(0x1c2d_3e4f));
        assert_eq!(look_up(keys, ".nfs"), None);
        assert_eq!(look_up("garbage\n\n", ".nvme"), None);
    }
}
