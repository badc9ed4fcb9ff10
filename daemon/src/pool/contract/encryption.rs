//! Encryption at rest: who has the key opens a volume, and nobody else does, once the pool has been let go of.

use orlop_api::{Encryption, EncryptionKey, Unlock, VolumeKind};

use super::filesystems;
use super::snapshots::{holds, linked, put, shot, take};
use super::*;
use crate::pool::{KeyRing, PoolError, Result as PoolResult, least_size};

pub(super) const ALL: &[(&str, Run)] = &[
    ("encryption that the pool does not have is refused by its name", refused),
    ("an encrypted volume takes its key, and no other", takes_its_key),
    ("an encrypted file system takes its key", filesystem),
];

pub(super) const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
const OTHER: &str = "f00102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

pub(super) fn encrypted(l: Label) -> Label {
    let encryption = Encryption { unlock: Unlock::Manual, key_of: l.id };
    Label { encryption: Some(encryption), ..l }
}

fn is_locked<T: std::fmt::Debug>(what: &str, result: PoolResult<T>) -> Check {
    let locked = matches!(&result, Err(e @ PoolError::Locked { .. }) if e.kind() == orlop_api::ErrorKind::Precondition);
    expect(locked, format!("{what} of a locked volume"), &result)
}

fn is_wrong<T: std::fmt::Debug>(what: &str, result: PoolResult<T>) -> Check {
    let wrong =
        matches!(&result, Err(e @ PoolError::WrongKey { .. }) if e.kind() == orlop_api::ErrorKind::Invalid);
    expect(wrong, format!("{what} with another key"), &result)
}

/// Whether volumes can be encrypted here: what ZFS does not do takes the device mapper and cryptsetup, which not every
/// machine that runs these checks has.
pub(super) fn encrypts(pool: &dyn Pool) -> bool {
    pool.features().encryption && (pool.kind() == PoolKind::Zfs || crate::pool::mapped::lacks().is_none())
}

fn refused(_: &Subject, pool: &dyn Pool) -> Check {
    let l = encrypted(thin(16));
    let made = pool.create(&l, &soon());
    if encrypts(pool) {
        is_locked("create", made)?;
    } else {
        let named = matches!(&made, Err(PoolError::Property { field: "encryption", .. }));
        expect(named, "a refusal by name", &made)?;
    }
    same("get", ok("get", pool.get(l.id, &soon()))?, None)
}

/// The pool as it is after a restart of the machine: nobody has a key in memory.
pub(super) fn again(subject: &Subject, pool: &dyn Pool, ring: &KeyRing) -> Result<Box<dyn Pool>, String> {
    ok("export", pool.export(&soon()))?;
    let env = PoolEnv { keys: ring.clone(), ..subject.env.clone() };
    ok("opening the pool again", super::super::open(&subject.spec, &env, &soon()))
}

fn key(text: &str) -> EncryptionKey {
    parse(text)
}

fn takes_its_key(subject: &Subject, pool: &dyn Pool) -> Check {
    if !encrypts(pool) {
        return Ok(());
    }
    let l = encrypted(thin(16));
    subject.env.keys.put(l.id, key(KEY));
    same("create", ok("create", pool.create(&l, &soon()))?, Change::Done)?;
    same("get", ok("get", pool.get(l.id, &soon()))?, Some(whole(&l)))?;
    put(pool, l.id, 0, &pattern(1, 1 << 20))?;
    let s = shot(&l);
    take(pool, std::slice::from_ref(&s))?;
    put(pool, l.id, 0, &pattern(2, 1 << 20))?;
    is_wrong("unlock", pool.unlock(l.id, &key(OTHER), &soon()))?;
    ok("unlock of an unlocked one", pool.unlock(l.id, &key(KEY), &soon()))?;
    // Another daemon on this machine: what is open stays so.
    ok("open", pool.open(l.id, &soon()))?;
    subject.env.keys.remove(l.id);
    holds(pool, l.id, 0, &pattern(2, 1 << 20), "without a key on the ring")?;
    if pool.kind() != PoolKind::Zfs {
        // Closed, it takes its key. ZFS has that where the kernel is.
        is_locked("open", pool.open(l.id, &soon()))?;
        is_locked("open by its label", pool.open_known(&l, &soon()))?;
        subject.env.keys.put(l.id, key(KEY));
    }
    let other = encrypted(linked(&s, 16));
    let refused = pool.create(&other, &soon());
    let named = matches!(&refused, Err(PoolError::Property { field: "encryption", .. }));
    expect(named, "a clone with a key of its own", &refused)?;
    let clone = Label { encryption: l.encryption, ..linked(&s, 24) };
    ok("clone", pool.create(&clone, &soon()))?;
    holds(pool, clone.id, 0, &pattern(1, 1 << 20), "in the clone")?;
    // And one of that: all have the key of the first.
    let of_clone = shot(&clone);
    take(pool, std::slice::from_ref(&of_clone))?;
    let grandchild = Label { encryption: l.encryption, ..linked(&of_clone, 24) };
    ok("clone", pool.create(&grandchild, &soon()))?;

    let ring = KeyRing::default();
    let reopened = again(subject, pool, &ring)?;
    let listing = ok("list", reopened.list(&soon()))?;
    expect(listing.locked.contains(&l.id), "what is locked", &listing.locked)?;
    let mut labels = vec![whole(&l), whole(&clone), whole(&grandchild)];
    labels.sort_by_key(|v| v.label.id);
    same("volumes", listing.volumes, labels)?;
    for id in [l.id, clone.id, grandchild.id] {
        is_locked("open", reopened.open(id, &soon()))?;
        is_locked("fill", reopened.fill(id, &soon()))?;
    }
    is_locked("read", reopened.read(s.key, &soon()))?;
    let next = Label { encryption: l.encryption, ..linked(&s, 16) };
    is_locked("clone", reopened.create(&next, &soon()))?;
    is_wrong("unlock", reopened.unlock(clone.id, &key(OTHER), &soon()))?;
    ring.put(l.id, key(OTHER));
    is_wrong("open", reopened.open(l.id, &soon()))?;
    ring.remove(l.id);
    // Who brings it for one has brought it for all that have it.
    ok("unlock", reopened.unlock(clone.id, &key(KEY), &soon()))?;
    let locked = ok("list", reopened.list(&soon()))?.locked;
    expect(!locked.contains(&l.id), "what is locked then", &locked)?;
    holds(reopened.as_ref(), l.id, 0, &pattern(2, 1 << 20), "after its key was brought")?;
    for id in [clone.id, grandchild.id] {
        holds(reopened.as_ref(), id, 0, &pattern(1, 1 << 20), "in the clone, then")?;
    }
    let larger = Label { size: ByteSize(32 << 20), ..l.clone() };
    ok("grow", reopened.grow(&larger, &soon()))?;
    holds(reopened.as_ref(), l.id, 0, &pattern(2, 1 << 20), "after it grew")?;

    // By the ring, as a daemon does that keeps it.
    let ring = KeyRing::default();
    let reopened = again(subject, reopened.as_ref(), &ring)?;
    ring.put(l.id, key(KEY));
    let larger = Label { size: ByteSize(48 << 20), ..l.clone() };
    ok("grow of one that was not opened", reopened.grow(&larger, &soon()))?;
    holds(reopened.as_ref(), grandchild.id, 0, &pattern(1, 1 << 20), "with the key on the ring")?;
    // One that nobody can read any more can be destroyed all the same.
    let reopened = again(subject, reopened.as_ref(), &KeyRing::default())?;
    ok("destroy", reopened.destroy(grandchild.id, &soon()))?;
    ok("destroy", reopened.destroy_snapshot(of_clone.key, &soon()))?;
    ok("destroy", reopened.destroy(clone.id, &soon()))?;
    ok("destroy", reopened.destroy_snapshot(s.key, &soon()))?;
    ok("destroy", reopened.destroy(l.id, &soon()))?;
    thick_one(subject, pool)
}

/// One whose space was taken before it was encrypted.
fn thick_one(subject: &Subject, pool: &dyn Pool) -> Check {
    let l = encrypted(thick(16));
    subject.env.keys.put(l.id, key(KEY));
    same("create", ok("create", pool.create(&l, &soon()))?, Change::Done)?;
    same("get", ok("get", pool.get(l.id, &soon()))?, Some(whole(&l)))?;
    put(pool, l.id, 0, &pattern(2, 1 << 20))?;
    let ring = KeyRing::default();
    let reopened = again(subject, pool, &ring)?;
    is_locked("open", reopened.open(l.id, &soon()))?;
    ring.put(l.id, key(KEY));
    let larger = Label { size: ByteSize(32 << 20), ..l.clone() };
    ok("grow", reopened.grow(&larger, &soon()))?;
    holds(reopened.as_ref(), l.id, 0, &pattern(2, 1 << 20), "of a thick one that grew")?;
    ok("destroy", reopened.destroy(l.id, &soon())).map(drop)
}

fn filesystem(subject: &Subject, pool: &dyn Pool) -> Check {
    let Some(filesystem) = pool.features().filesystems.first().copied().filter(|_| encrypts(pool)) else {
        return Ok(());
    };
    let plain = label(least_size(filesystem).max(ByteSize(32 << 20)), Provisioning::Thin);
    let l = encrypted(Label { kind: VolumeKind::Filesystem, filesystem: Some(filesystem), ..plain });
    subject.env.keys.put(l.id, key(KEY));
    ok("create", pool.create(&l, &soon()))?;
    let dir = filesystems::mounted(pool, &l)?;
    ok("writing", std::fs::write(dir.join("file"), pattern(3, 1 << 20)))?;
    ok("close", pool.close(l.id, &soon()))?;
    let reopened = again(subject, pool, &KeyRing::default())?;
    is_locked("open", reopened.open(l.id, &soon()))?;
    ok("unlock", reopened.unlock(l.id, &key(KEY), &soon()))?;
    let dir = filesystems::mounted(reopened.as_ref(), &l)?;
    let found = ok("reading", std::fs::read(dir.join("file")))?;
    expect(found == pattern(3, 1 << 20), "what was written", &found.len())?;
    ok("close", reopened.close(l.id, &soon()))?;
    subject.env.keys.remove(l.id);
    ok("destroy", reopened.destroy(l.id, &soon())).map(drop)
}
