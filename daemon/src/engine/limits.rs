//! What the kernel can have of a thing at most, where that is fewer than people may come to want, and it breaks instead of
//! refusing: refused here before, and told of before that. docs/operations.md lists them all.

use orlop_api::{HostName, PoolKind, Protocol};

use super::core::Core;
use super::error::{Error, Result};
use super::view::View;

/// Volumes on ZFS that one machine has. Each takes 16 of the 2^20 minor numbers of ZFS's devices, and ZFS does not look whether there
/// is one left.
const ON_ZFS: u64 = 65_000;
/// Volumes by NVMe that one host is attached to. All that it may find are told it in one piece of memory, 1 KiB each, and the kernel
/// has no larger one than 4 MiB.
const BY_NVME: u64 = 4_000;

/// Another one, of so many.
fn room(object: impl FnOnce() -> String, what: &str, has: u64, most: u64) -> Result<()> {
    if has < most {
        return Ok(());
    }
    Err(Error::Exhausted {
        object: object(),
        detail: format!("it has {has} {what}, and the kernel can't have more than {most}"),
    })
}

/// Whether somebody should hear of it.
fn is_near(has: u64, most: u64) -> bool {
    has >= most / 10 * 9
}

fn on_zfs(view: &View) -> u64 {
    view.pool_entries().filter(|p| p.spec.kind() == PoolKind::Zfs).map(|p| p.volumes).sum()
}

/// As it would be with all of them by NVMe: they are looked at one by one only where that could be too many.
fn by_nvme(view: &View, host: &HostName) -> u64 {
    let all = view.volumes_of(host).count() as u64;
    if !is_near(all, BY_NVME) {
        return all;
    }
    let by_nvme = |id: &_| view.entry(*id).is_some_and(|v| v.label.protocol() == Protocol::Nvme);
    view.volumes_of(host).filter(by_nvme).count() as u64
}

impl Core {
    /// Whether the machine can have another volume on a pool of this kind.
    pub(super) fn check_room_on(&self, kind: PoolKind) -> Result<()> {
        match kind {
            PoolKind::Zfs => {
                room(|| "this machine".into(), "volumes on ZFS", on_zfs(&self.view.read()), ON_ZFS)
            }
            _ => Ok(()),
        }
    }

    /// Whether a host can have another volume.
    pub(super) fn check_room_of(&self, host: &HostName, protocol: Protocol) -> Result<()> {
        match protocol {
            Protocol::Nvme => {
                let has = by_nvme(&self.view.read(), host);
                room(|| format!("host {host}"), "volumes by NVMe", has, BY_NVME)
            }
            _ => Ok(()),
        }
    }

    /// Tells of the machine's when they are near.
    pub(super) fn note_limits(&self) {
        let has = on_zfs(&self.view.read());
        self.note("limit/zfs".into(), "volumes on ZFS", has, ON_ZFS);
    }

    /// The same for a host's, after it came or went.
    pub(super) fn note_limits_of(&self, host: &HostName) {
        let has = by_nvme(&self.view.read(), host);
        self.note(format!("limit/nvme/{host}"), &format!("volumes of host {host} by NVMe"), has, BY_NVME);
    }

    fn note(&self, subject: String, what: &str, has: u64, most: u64) {
        let mut view = self.view.write();
        match is_near(has, most) {
            true => view.raise(
                subject,
                format!("there are {has} {what}, and the kernel can't have more than {most}: none is made beyond that"),
            ),
            false => view.clear(&subject),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_last_one_is_let_in_and_the_next_is_not() {
        let room = |has| room(|| "host a".into(), "volumes by NVMe", has, 4_000);
        room(3_999).unwrap();
        let refused = room(4_000).unwrap_err();
        assert_eq!(refused.kind(), orlop_api::ErrorKind::Exhausted);
        assert!(refused.chain().contains("4000 volumes by NVMe"), "{}", refused.chain());
        assert_eq!([3_599, 3_600, 4_000].map(|has| is_near(has, 4_000)), [false, true, true]);
    }
}
