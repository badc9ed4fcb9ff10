//! Properties, and thin or thick later: what a pool can do it does and reads back, and what it can't do is
//! refused by name with nothing made or changed.

use orlop_api::{Properties, Property};

use super::snapshots::{linked, shot, take};
use super::space::{SLACK, alone, quiet, settles};
use super::*;
use crate::pool::{Change, PoolError, Result as PoolResult};

pub(super) const ALL: &[(&str, Run)] = &[
    ("properties are set by the create and read back", set_by_create),
    ("properties are changed later, in use or not", changed_later),
    ("every value of every property can be had", every_value),
    ("a property that the pool does not have is refused by its name", refused_by_name),
    ("blocks keep the size that they were made with", block_size_stays),
    ("a linked clone has the blocks of its source", clone_blocks),
    ("thin is made thick and thick thin, or it is refused", reprovisioned),
    ("what does not fit when it is made thick stays thin", no_room_for_thick),
];

fn parsed(text: &str) -> Properties {
    text.split_whitespace().fold(Properties::default(), |all, one| all.with(parse(one)))
}

/// Those of the properties in a text that the pool has.
fn possible(pool: &dyn Pool, text: &str) -> Properties {
    let (mut some, all) = (Properties::default(), parsed(text));
    for one in all.iter().filter(|(p, _)| pool.features().properties.contains(p)) {
        some = some.with(parse(&format!("{}={}", one.0, one.1)));
    }
    some
}

fn has(pool: &dyn Pool, property: Property) -> bool {
    pool.features().properties.contains(&property)
}

/// A refusal of that field, of the kind that callers hear as `unsupported`.
fn refused<T: std::fmt::Debug>(what: &str, field: &str, result: PoolResult<T>) -> Check {
    let named = match &result {
        Err(e @ PoolError::Property { field: named, .. }) => {
            *named == field && e.to_string().contains(field) && e.kind() == orlop_api::ErrorKind::Unsupported
        }
        _ => false,
    };
    expect(named, format!("{what} is refused because of {field}"), &result)
}

fn set_by_create(subject: &Subject, pool: &dyn Pool) -> Check {
    let all = "compression=zstd-9 dedup=verify block_size=64K checksum=sha512 logbias=throughput sync=always";
    let texts = [all, "compression=gzip-6", "block_size=4K", "block_size=128K compression=off"];
    let mut made = Vec::new();
    // Where there are none, one time says it all.
    let times = if pool.features().properties.is_empty() { 1 } else { texts.len() };
    for text in &texts[..times] {
        for l in [thin(16), thick(16)] {
            let l = Label { properties: possible(pool, text), ..l };
            same("create", ok("create", pool.create(&l, &soon()))?, Change::Done)?;
            same("get", ok("get", pool.get(l.id, &soon()))?, Some(whole(&l)))?;
            same("again", ok("create", pool.create(&l, &soon()))?, Change::Unchanged)?;
            let listed = ok("list", pool.list(&soon()))?;
            expect(listed.volumes.contains(&whole(&l)), "the volume in the listing", &listed)?;
            let data = pattern(2, 1 << 20);
            let opened = ok("open", pool.open(l.id, &soon()))?;
            write(&opened, 0, &data)?;
            expect(read(&opened, 0, 1 << 20)? == data, "its bytes", &l.properties)?;
            ok("close", pool.close(l.id, &soon()))?;
            // A size that is a whole number of all blocks there are.
            let larger = Label { size: ByteSize(32 << 20), ..l };
            same("grow", ok("grow", pool.grow(&larger, &soon()))?, Change::Done)?;
            same("get", ok("get", pool.get(larger.id, &soon()))?, Some(whole(&larger)))?;
            made.push(larger);
        }
    }
    let again = reopen(subject)?;
    for l in &made {
        same("get anew", ok("get", again.get(l.id, &soon()))?, Some(whole(l)))?;
    }
    if has(pool, Property::Compression) {
        let l = Label { properties: parsed("compression=lz4"), ..thin(16) };
        ok("create", pool.create(&l, &soon()))?;
        let other = Label { properties: parsed("compression=zstd"), ..l.clone() };
        let r = pool.create(&other, &soon());
        expect(matches!(r, Err(PoolError::Conflict { .. })), "a conflict", &r)?;
        expect(format!("{r:?}").contains("properties.compression"), "its field", &r)?;
    }
    if has(pool, Property::BlockSize) {
        let odd = ByteSize((16 << 20) + pool.granularity().bytes());
        let l = Label { properties: parsed("block_size=128K"), size: odd, ..thin(16) };
        let r = pool.create(&l, &soon());
        expect(matches!(r, Err(PoolError::Precondition { .. })), "a part of a block", &r)?;
        same("get", ok("get", pool.get(l.id, &soon()))?, None)?;
    }
    Ok(())
}

fn changed_later(subject: &Subject, pool: &dyn Pool) -> Check {
    for l in [thin(16), thick(16)] {
        ok("create", pool.create(&l, &soon()))?;
        let data = pattern(5, 1 << 20);
        let opened = ok("open", pool.open(l.id, &soon()))?;
        write(&opened, 0, &data)?;
        same("nothing", ok("set", pool.set(&l, &soon()))?, Change::Unchanged)?;
        // More of them, others, fewer, none.
        for text in [
            "logbias=throughput compression=zstd",
            "logbias=latency compression=lz4 sync=always",
            "checksum=sha256 compression=lz4",
            "",
        ] {
            let next = Label { properties: possible(pool, text), ..l.clone() };
            let change = ok("set", pool.set(&next, &soon()))?;
            let possible = !pool.features().properties.is_empty();
            same("set", change, if possible { Change::Done } else { Change::Unchanged })?;
            same("again", ok("set", pool.set(&next, &soon()))?, Change::Unchanged)?;
            same("get", ok("get", pool.get(l.id, &soon()))?, Some(whole(&next)))?;
        }
        same("its device", ok("open", pool.open(l.id, &soon()))?, opened.clone())?;
        expect(read(&opened, 0, 1 << 20)? == data, "its bytes", &())?;
        ok("close", pool.close(l.id, &soon()))?;
        // What else the label says is written along.
        let properties = possible(pool, "compression=zstd-3");
        let renamed = Label { name: parse("other"), properties, ..l };
        same("set", ok("set", pool.set(&renamed, &soon()))?, Change::Done)?;
        let again = reopen(subject)?;
        same("get anew", ok("get", again.get(renamed.id, &soon()))?, Some(whole(&renamed)))?;
    }
    Ok(())
}

fn every_value(_: &Subject, pool: &dyn Pool) -> Check {
    let l = thin(16);
    ok("create", pool.create(&l, &soon()))?;
    for property in pool.features().properties {
        for text in property.settings() {
            if *property == Property::BlockSize {
                let own = Label { properties: parsed(text), ..thin(16) };
                ok(text, pool.create(&own, &soon()))?;
                same(text, ok("get", pool.get(own.id, &soon()))?, Some(whole(&own)))?;
                continue;
            }
            let next = Label { properties: parsed(text), ..l.clone() };
            ok(text, pool.set(&next, &soon()))?;
            same(text, ok("get", pool.get(l.id, &soon()))?, Some(whole(&next)))?;
        }
    }
    Ok(())
}

fn refused_by_name(_: &Subject, pool: &dyn Pool) -> Check {
    let there = thin(16);
    ok("create", pool.create(&there, &soon()))?;
    for property in Property::ALL.iter().filter(|p| !has(pool, **p)) {
        let properties = parsed(property.settings()[0]);
        for l in [thin(16), thick(16)] {
            let l = Label { properties, ..l };
            refused("a create", property.field(), pool.create(&l, &soon()))?;
            same("get", ok("get", pool.get(l.id, &soon()))?, None)?;
        }
        let other = Label { properties, ..there.clone() };
        refused("a set", property.field(), pool.set(&other, &soon()))?;
    }
    let listed = ok("list", pool.list(&soon()))?;
    same("all there is", listed, crate::pool::Listing { volumes: vec![whole(&there)], ..Default::default() })
}

fn block_size_stays(_: &Subject, pool: &dyn Pool) -> Check {
    for text in ["", "block_size=64K"] {
        let l = Label { properties: possible(pool, text), ..thin(16) };
        ok("create", pool.create(&l, &soon()))?;
        let other = Label { properties: parsed("block_size=8K"), ..l.clone() };
        refused("a set", Property::BlockSize.field(), pool.set(&other, &soon()))?;
        same("get", ok("get", pool.get(l.id, &soon()))?, Some(whole(&l)))?;
    }
    Ok(())
}

fn clone_blocks(_: &Subject, pool: &dyn Pool) -> Check {
    let l = Label { properties: possible(pool, "block_size=64K compression=zstd"), ..thin(16) };
    ok("create", pool.create(&l, &soon()))?;
    let s = shot(&l);
    take(pool, std::slice::from_ref(&s))?;
    if has(pool, Property::BlockSize) {
        for text in ["", "block_size=16K"] {
            let other = Label { properties: parsed(text), ..linked(&s, 16) };
            refused("a clone", Property::BlockSize.field(), pool.create(&other, &soon()))?;
            same("get", ok("get", pool.get(other.id, &soon()))?, None)?;
        }
    }
    // The rest is its own, and counts for what is written to it.
    for text in ["block_size=64K", "block_size=64K compression=lz4 logbias=throughput"] {
        let c = Label { properties: possible(pool, text), ..linked(&s, 32) };
        same("clone", ok("clone", pool.create(&c, &soon()))?, Change::Done)?;
        same("get", ok("get", pool.get(c.id, &soon()))?, Some(whole(&c)))?;
        same("again", ok("clone", pool.create(&c, &soon()))?, Change::Unchanged)?;
    }
    Ok(())
}

fn reprovisioned(subject: &Subject, pool: &dyn Pool) -> Check {
    let l = thin(128);
    ok("create", pool.create(&l, &soon()))?;
    let data = pattern(7, 1 << 20);
    write(&ok("open", pool.open(l.id, &soon()))?, 0, &data)?;
    let before = quiet(pool)?;
    let reserved = Label { provisioning: Provisioning::Thick, ..l.clone() };
    if !pool.features().reprovision {
        refused("thick", "provisioning", pool.set(&reserved, &soon()))?;
        return same("get", ok("get", pool.get(l.id, &soon()))?, Some(whole(&l)));
    }
    // With a property in the same breath.
    let reserved = Label { properties: possible(pool, "logbias=throughput"), ..reserved };
    same("thick", ok("set", pool.set(&reserved, &soon()))?, Change::Done)?;
    same("again", ok("set", pool.set(&reserved, &soon()))?, Change::Unchanged)?;
    same("get", ok("get", pool.get(l.id, &soon()))?, Some(whole(&reserved)))?;
    if alone(subject) {
        let taken = before.saturating_sub(quiet(pool)?);
        expect(taken + SLACK >= l.size.bytes(), "its space is reserved", &taken)?;
    }
    let larger = Label { size: ByteSize(160 << 20), ..reserved };
    same("grow", ok("grow", pool.grow(&larger, &soon()))?, Change::Done)?;
    same("get", ok("get", pool.get(l.id, &soon()))?, Some(whole(&larger)))?;
    let given = Label { provisioning: Provisioning::Thin, ..larger };
    same("thin", ok("set", pool.set(&given, &soon()))?, Change::Done)?;
    same("get", ok("get", pool.get(l.id, &soon()))?, Some(whole(&given)))?;
    if alone(subject) {
        settles(pool, before.saturating_sub(SLACK))?;
    }
    let opened = ok("open", pool.open(l.id, &soon()))?;
    expect(read(&opened, 0, 1 << 20)? == data, "its bytes", &())?;
    ok("close", pool.close(l.id, &soon()))
}

fn no_room_for_thick(_: &Subject, pool: &dyn Pool) -> Check {
    if !pool.features().reprovision {
        return Ok(());
    }
    let other = thick(16);
    ok("create", pool.create(&other, &soon()))?;
    let total = ok("capacity", pool.capacity(&soon()))?.total.bytes();
    let l = Label { size: ByteSize(total >> 20 << 20), ..thin(16) };
    ok("create", pool.create(&l, &soon()))?;
    let properties = possible(pool, "compression=lz4 logbias=throughput");
    let reserved = Label { provisioning: Provisioning::Thick, properties, ..l.clone() };
    let r = pool.set(&reserved, &soon());
    expect(matches!(r, Err(PoolError::Exhausted { .. })), "exhausted", &r)?;
    same("get", ok("get", pool.get(l.id, &soon()))?, Some(whole(&l)))
}
