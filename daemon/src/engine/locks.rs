//! Locks on objects: fair, asynchronous, with a deadline. There is no global lock (R6): the table of
//! locks is held for as long as it takes to look one up.

use std::collections::HashMap;
use std::sync::Arc;

use orlop_api::{
    HostName, OrphanId, PoolName, SnapshotId, SnapshotName, Tenant, TokenName, VolumeId, VolumeName,
};
use parking_lot::Mutex;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use tokio::time::Instant;

use super::error::{Error, Result};
use crate::target::HostId;

/// What can be locked. The order of variants and values is the order of locking, so that two actions
/// never wait for each other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// Disks that nobody has: shared by what takes some, exclusive for wiping one, which must not come between
    /// the proof that it is blank and its being taken. Rare enough for one key.
    FreeDisks,
    /// An orphan that is being adopted or removed.
    Orphan(OrphanId),
    /// A pool: shared by what makes something in it, exclusive for making and deleting the pool.
    Pool(PoolName),
    /// A pool's disks, while they are changed: what is in it goes on meanwhile.
    Disks(PoolName),
    /// The name of a volume that is being made or deleted.
    Name(Tenant, VolumeName),
    /// The name of a snapshot, or of a group of them, that is being made or deleted.
    SnapshotName(Tenant, SnapshotName),
    /// A host: shared by attachments, exclusive for changing it.
    Host(HostName),
    /// What a host is known by, while it is given to one.
    HostId(HostId),
    /// A volume: its access and its size.
    Volume(VolumeId),
    /// A volume's backing, where its label is written. Apart from the volume, so that a label written
    /// behind never delays an attach.
    Backing(VolumeId),
    /// A snapshot: shared by what is made from it, exclusive for deleting it.
    Snapshot(SnapshotId),
    /// A token that is being made, changed or deleted.
    Token(TokenName),
    /// Whose client certificates are whose, while one is given to a token.
    Certificates,
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::FreeDisks => f.write_str("the disks that are not in use"),
            Self::Orphan(id) => write!(f, "orphan {id}"),
            Self::Pool(name) => write!(f, "pool {name}"),
            Self::Disks(name) => write!(f, "the disks of pool {name}"),
            Self::Name(_, name) => write!(f, "volume {name}"),
            Self::SnapshotName(_, name) => write!(f, "snapshot {name}"),
            Self::Snapshot(id) => write!(f, "snapshot {id}"),
            Self::Host(name) => write!(f, "host {name}"),
            Self::Token(name) => write!(f, "token {name}"),
            Self::Certificates => f.write_str("the certificates of tokens"),
            Self::HostId(id) => id.fmt(f),
            Self::Volume(id) | Self::Backing(id) => write!(f, "volume {id}"),
        }
    }
}

/// How a lock is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Together with other shared holders.
    Shared,
    /// Alone.
    Exclusive,
    /// Alone, now or not at all: for a key whose shared holders can be slow. Waiting would make those
    /// that come later wait behind us.
    ExclusiveNow,
}

/// The table of locks that somebody holds or waits for.
#[derive(Debug, Clone, Default)]
pub struct Locks(Arc<Mutex<HashMap<Key, Arc<RwLock<()>>>>>);

/// Held locks, let go in reverse order when dropped.
#[derive(Debug, Default)]
pub struct Guards(Vec<Guard>);

#[derive(Debug)]
struct Guard {
    held: Option<Held>,
    key: Key,
    locks: Locks,
}

#[derive(Debug)]
#[allow(dead_code, reason = "held for their Drop")]
enum Held {
    Shared(OwnedRwLockReadGuard<()>),
    Exclusive(OwnedRwLockWriteGuard<()>),
}

impl Locks {
    /// Takes all of `wants`, in the one order, by `deadline`; else none of them, and `Busy`.
    pub async fn acquire(&self, mut wants: Vec<(Key, Mode)>, deadline: Instant) -> Result<Guards> {
        wants.sort_by(|a, b| a.0.cmp(&b.0));
        let mut guards = Guards::default();
        for (key, mode) in wants {
            let mut guard = Guard { held: None, key: key.clone(), locks: self.clone() };
            let lock = self.0.lock().entry(key).or_default().clone();
            let held = match mode {
                Mode::ExclusiveNow => lock.try_write_owned().ok().map(Held::Exclusive),
                Mode::Shared => {
                    tokio::time::timeout_at(deadline, lock.read_owned()).await.ok().map(Held::Shared)
                }
                Mode::Exclusive => {
                    tokio::time::timeout_at(deadline, lock.write_owned()).await.ok().map(Held::Exclusive)
                }
            };
            guard.held = held;
            let busy = guard.held.is_none().then(|| guard.key.to_string());
            // Pushed even when not held: its Drop takes the unused entry out of the table again.
            guards.0.push(guard);
            if let Some(what) = busy {
                return Err(Error::Busy(what));
            }
        }
        Ok(guards)
    }

    /// Whether anyone holds a key, or waits for it.
    pub fn is_held(&self, key: &Key) -> bool {
        self.0.lock().contains_key(key)
    }

    /// How many keys are held or waited for.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.lock().len()
    }
}

impl Guards {
    /// Holds others too: of keys that come after all of these in the one order, or that nobody else can know
    /// of yet.
    pub fn join(&mut self, mut others: Guards) {
        self.0.append(&mut others.0);
    }
}

impl Drop for Guards {
    fn drop(&mut self) {
        while self.0.pop().is_some() {}
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.held = None;
        let mut table = self.locks.0.lock();
        // The table's own reference is the last one: nobody holds it or waits for it.
        if table.get(&self.key).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            table.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::time::Duration;

    fn host(name: &str) -> Key {
        Key::Host(name.parse().unwrap())
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(30)
    }

    #[tokio::test]
    async fn exclusive_excludes_and_leaves_nothing_behind() {
        let locks = Locks::default();
        let held = locks.acquire(vec![(host("a"), Mode::Exclusive)], soon()).await.unwrap();
        assert!(matches!(locks.acquire(vec![(host("a"), Mode::Shared)], soon()).await, Err(Error::Busy(_))));
        assert!(locks.acquire(vec![(host("b"), Mode::Exclusive)], soon()).await.is_ok());
        drop(held);
        assert!(locks.acquire(vec![(host("a"), Mode::Exclusive)], soon()).await.is_ok());
        assert_eq!(locks.len(), 0);
    }

    #[tokio::test]
    async fn shared_is_shared_and_now_means_now() {
        let locks = Locks::default();
        let a = locks.acquire(vec![(host("a"), Mode::Shared)], soon()).await.unwrap();
        let b = locks.acquire(vec![(host("a"), Mode::Shared)], soon()).await.unwrap();
        let before = Instant::now();
        let far = before + Duration::from_secs(60);
        assert!(locks.acquire(vec![(host("a"), Mode::ExclusiveNow)], far).await.is_err());
        assert!(before.elapsed() < Duration::from_secs(1));
        drop((a, b));
        assert!(locks.acquire(vec![(host("a"), Mode::ExclusiveNow)], far).await.is_ok());
    }

    #[tokio::test]
    async fn many_waiters_in_any_order_never_deadlock() {
        let locks = Locks::default();
        let tasks: Vec<_> = (0..200)
            .map(|i| {
                let locks = locks.clone();
                tokio::spawn(async move {
                    let mut wants = vec![(host("a"), Mode::Exclusive), (host("b"), Mode::Exclusive)];
                    if i % 2 == 0 {
                        wants.reverse();
                    }
                    let held = locks.acquire(wants, Instant::now() + Duration::from_secs(20)).await;
                    tokio::task::yield_now().await;
                    held.is_ok()
                })
            })
            .collect();
        for t in tasks {
            assert!(t.await.unwrap());
        }
        assert_eq!(locks.len(), 0);
    }
}
