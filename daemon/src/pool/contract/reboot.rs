//! A power cut, in two halves: what was answered and synced before it is there after it.

use super::*;

/// Makes the pool with a few volumes, leaves one of them open, and returns at the moment after which
/// the power may go.
pub fn leave(subject: &Subject) -> Check {
    let pool = ok("create", crate::pool::create(&subject.spec, &subject.env, &soon()))?;
    for l in [thin(16), thick(16), thin(32)] {
        ok("create", pool.create(&l, &soon()))?;
        let opened = ok("open", pool.open(l.id, &soon()))?;
        write(&opened, 4096, &pattern(seed(&l), 1 << 20))?;
        let larger = Label { size: ByteSize(48 << 20), ..l };
        ok("grow", pool.grow(&larger, &soon()))?;
    }
    let gone = thin(16);
    ok("create", pool.create(&gone, &soon()))?;
    ok("destroy", pool.destroy(gone.id, &soon()))?;
    Ok(())
}

/// Opens that pool on the machine that has been started again, looks at all of it, and removes it.
pub fn find(subject: &Subject) -> Check {
    let pool = reopen(subject)?;
    let listed = ok("list", pool.list(&soon()))?;
    expect(
        listed.volumes.len() == 3 && listed.partial.is_empty() && listed.strays.is_empty(),
        "the three volumes and no more",
        &listed,
    )?;
    for v in &listed.volumes {
        same("its size", (v.size, v.label.size), (ByteSize(48 << 20), ByteSize(48 << 20)))?;
        let opened = ok("open", pool.open(v.label.id, &soon()))?;
        same("its device's size", opened.size, v.size)?;
        expect(read(&opened, 4096, 1 << 20)? == pattern(seed(&v.label), 1 << 20), "its bytes", &v.label)?;
        expect(read(&opened, 0, 4096)?.iter().all(|b| *b == 0), "zeros before them", &v.label)?;
        ok("close", pool.close(v.label.id, &soon()))?;
        ok("destroy", pool.destroy(v.label.id, &soon()))?;
    }
    ok("remove", pool.remove(&soon()))
}

/// Of the id, so that it can be computed again.
fn seed(l: &Label) -> u8 {
    l.id.uuid().as_bytes()[15]
}
