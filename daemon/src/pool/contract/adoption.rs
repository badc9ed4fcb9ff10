//! What others made in the pool, as volumes.

use std::fs;
use std::process::{Child, Command, Stdio};

use orlop_api::PoolKind;

use super::strange::{lvm, zfs, zfs_parent};
use super::*;
use crate::kernel::{block, loopdev};
use crate::pool::{Change, PoolError, Stray};

pub(super) const ALL: &[(&str, Run)] = &[
    ("what others made is adopted with its content", adopted),
    ("an adoption is put back wherever it stopped", put_back),
    ("what is in use is not adopted", in_use),
    ("what can't be a volume is not adopted", unfit),
];

const MIB: u64 = 1 << 20;

/// What others make in this kind of pool: how, and what the pool calls it.
fn kinds(subject: &Subject) -> Vec<String> {
    match subject.spec.medium {
        PoolMedium::Zfs { .. } => {
            vec![format!("{}/theirs", zfs_parent(subject)), format!("{}/elsewhere", subject.spec.name)]
        }
        PoolMedium::Lvm { .. } => vec!["thin.theirs".into(), "plain.theirs".into()],
        _ => vec!["theirs.raw".into(), format!("{}.img", VolumeId::mint())],
    }
}

/// Makes one, with a pattern at its start.
fn make(subject: &Subject, name: &str, bytes: u64, seed: u8) -> Check {
    let size = bytes.to_string();
    match subject.spec.medium {
        // The smallest block there is, so that there are sizes which ours does not divide.
        PoolMedium::Zfs { .. } => zfs(&["create", "-s", "-b", "4096", "-V", &size, name])?,
        PoolMedium::Lvm { .. } => {
            let (group, size) = (subject.spec.name.as_str(), format!("{bytes}b"));
            if name.starts_with("plain") {
                lvm(&["lvcreate", "-q", "-y", "-L", &size, "-n", name, group])?;
            } else {
                lvm(&["lvcreate", "-q", "-y", "-V", &size, "--thinpool", "thin", "-n", name, group])?;
            }
        }
        _ => ok("making", File::create(path(subject, name)).and_then(|f| f.set_len(bytes)))?,
    }
    let device = device(subject, name)?;
    write(&Opened { place: Place::Device(device), size: ByteSize(bytes) }, 0, &pattern(seed, 4096))
}

/// Where it can be written to. udev makes the links of devices in its own time.
fn device(subject: &Subject, name: &str) -> Result<PathBuf, String> {
    let path = path(subject, name);
    for _ in 0..300 {
        if path.exists() {
            return Ok(path);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Err(format!("{} does not appear", path.display()))
}

fn path(subject: &Subject, name: &str) -> PathBuf {
    match images(subject) {
        Some(dir) => dir.join(name),
        None if matches!(subject.spec.medium, PoolMedium::Lvm { .. }) => {
            Path::new("/dev/mapper").join(format!("{}-{name}", subject.spec.name))
        }
        None => Path::new("/dev/zvol").join(name),
    }
}

/// Removes one, as its owner would.
fn unmake(subject: &Subject, name: &str) -> Check {
    let gone = || match subject.spec.medium {
        PoolMedium::Zfs { .. } => zfs(&["destroy", name]),
        PoolMedium::Lvm { .. } => lvm(&["lvremove", "-q", "-y", &format!("{}/{name}", subject.spec.name)]),
        _ => ok("removing", fs::remove_file(path(subject, name))),
    };
    let mut gone_at_last = gone();
    // udev may still be looking at it.
    for _ in 0..20 {
        if gone_at_last.is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(500));
        gone_at_last = gone();
    }
    gone_at_last
}

/// All that the pool tells of what is not ours.
fn strays(pool: &dyn Pool) -> Result<Vec<Stray>, String> {
    let mut all = ok("list", pool.list(&soon()))?.strays;
    all.extend(ok("elsewhere", pool.elsewhere(&soon()))?);
    Ok(all)
}

/// The only one, which can be adopted, and the label that it will have.
fn the_one(pool: &dyn Pool, name: &str, bytes: u64) -> Result<Label, String> {
    let all = strays(pool)?;
    let [one] = all.as_slice() else { return Err(format!("one stray: {all:?}")) };
    same("its name", one.name.as_str(), name)?;
    same("its size", one.size, Some(ByteSize(bytes)))?;
    match &one.adoptable {
        Ok(provisioning) if !one.labelled => Ok(label(ByteSize(bytes), *provisioning)),
        _ => Err(format!("it can be adopted: {one:?}")),
    }
}

fn adopted(subject: &Subject, pool: &dyn Pool) -> Check {
    for (seed, name) in (1u8..).zip(kinds(subject)) {
        make(subject, &name, 16 * MIB, seed)?;
        let l = the_one(pool, &name, 16 * MIB)?;
        same("adopt", ok("adopt", pool.adopt(&name, &l, &soon()))?, Change::Done)?;
        same("again", ok("adopt", pool.adopt(&name, &l, &soon()))?, Change::Unchanged)?;
        let listed = ok("list", pool.list(&soon()))?;
        same("listed", listed.volumes, vec![whole(&l)])?;
        expect(strays(pool)?.is_empty(), "no stray any more", &name)?;
        // As any other volume, found anew.
        let again = reopen(subject)?;
        same("get", ok("get", again.get(l.id, &soon()))?, Some(whole(&l)))?;
        drop(again);
        let opened = ok("open", pool.open(l.id, &soon()))?;
        same("the device's size", opened.size, l.size)?;
        expect(read(&opened, 0, 4096)? == pattern(seed, 4096), "its content", &name)?;
        write(&opened, 8 * MIB, &pattern(9, 4096))?;
        ok("close", pool.close(l.id, &soon()))?;
        let larger = Label { size: ByteSize(20 * MIB), ..l.clone() };
        same("grow", ok("grow", pool.grow(&larger, &soon()))?, Change::Done)?;
        let opened = ok("open", pool.open(l.id, &soon()))?;
        same("the larger device's size", opened.size, larger.size)?;
        expect(read(&opened, 0, 4096)? == pattern(seed, 4096), "its content, grown", &name)?;
        expect(read(&opened, 8 * MIB, 4096)? == pattern(9, 4096), "what was written", &name)?;
        ok("close", pool.close(l.id, &soon()))?;
        same("destroy", ok("destroy", pool.destroy(l.id, &soon()))?, Change::Done)?;
    }
    Ok(())
}

fn put_back(subject: &Subject, pool: &dyn Pool) -> Check {
    for (seed, name) in (1u8..).zip(kinds(subject)) {
        make(subject, &name, 16 * MIB, seed)?;
        let l = the_one(pool, &name, 16 * MIB)?;
        same("release of nothing", ok("release", pool.release(&name, l.id, &soon()))?, Change::Unchanged)?;
        ok("adopt", pool.adopt(&name, &l, &soon()))?;
        same("release", ok("release", pool.release(&name, l.id, &soon()))?, Change::Done)?;
        same("again", ok("release", pool.release(&name, l.id, &soon()))?, Change::Unchanged)?;
        same("get", ok("get", pool.get(l.id, &soon()))?, None)?;
        the_one(pool, &name, 16 * MIB)?;
        // Stopped in the middle, when the label is there and the name is not: put back, and carried on.
        for carry_on in [false, true] {
            leave_label(subject, &name, &l)?;
            same("not a volume yet", ok("get", pool.get(l.id, &soon()))?, None)?;
            if carry_on {
                same("adopt", ok("adopt", pool.adopt(&name, &l, &soon()))?, Change::Done)?;
                same("get", ok("get", pool.get(l.id, &soon()))?, Some(whole(&l)))?;
            }
            same("release", ok("release", pool.release(&name, l.id, &soon()))?, Change::Done)?;
            the_one(pool, &name, 16 * MIB)?;
        }
        let opened = Opened { place: Place::Device(activated(subject, &name)?), size: l.size };
        expect(read(&opened, 0, 4096)? == pattern(seed, 4096), "its content", &name)?;
        unmake(subject, &name)?;
    }
    Ok(())
}

/// The device again: an adoption takes a logical volume down.
fn activated(subject: &Subject, name: &str) -> Result<PathBuf, String> {
    if let PoolMedium::Lvm { .. } = subject.spec.medium {
        lvm(&["lvchange", "-q", "-ay", "-K", &format!("{}/{name}", subject.spec.name)])?;
    }
    device(subject, name)
}

fn leave_label(subject: &Subject, name: &str, l: &Label) -> Check {
    match subject.spec.medium {
        PoolMedium::Zfs { .. } => zfs(&["set", &format!("dev.orlop:label={}", l.to_json()), name]),
        PoolMedium::Lvm { .. } => {
            ok("tagging", crate::pool::lvm::write_raw_label(&subject.spec, name, &l.to_json(), &soon()))
        }
        _ => ok("writing", fs::write(path(subject, &format!("{}.json", l.id)), l.to_json())),
    }
}

/// Has it open: the kernel for itself, or another process.
enum User {
    Claim(#[allow(dead_code, reason = "held for its Drop")] File),
    Process(Child),
}

impl Drop for User {
    fn drop(&mut self) {
        if let Self::Process(child) = self {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn in_use(subject: &Subject, pool: &dyn Pool) -> Check {
    for name in kinds(subject) {
        make(subject, &name, 16 * MIB, 1)?;
        let l = the_one(pool, &name, 16 * MIB)?;
        let path = activated(subject, &name)?;
        let user = if images(subject).is_some() {
            let input = Stdio::from(ok("opening", File::open(&path))?);
            User::Process(ok("starting", Command::new("sleep").arg("600").stdin(input).spawn())?)
        } else {
            let claimed = (0..100).find_map(|_| {
                let claimed = block::claim(&path).ok().flatten();
                if claimed.is_none() {
                    std::thread::sleep(Duration::from_millis(100));
                }
                claimed
            });
            User::Claim(claimed.ok_or_else(|| format!("{} can't be claimed", path.display()))?)
        };
        let r = pool.adopt(&name, &l, &soon());
        drop(user);
        expect(matches!(r, Err(PoolError::Precondition { .. })), "adopt of one that is in use", &r)?;
        same("get", ok("get", pool.get(l.id, &soon()))?, None)?;
        if pool.kind() == PoolKind::File {
            behind_a_loop_device(pool, &name, &l, &path)?;
        }
        the_one(pool, &name, 16 * MIB)?;
        unmake(subject, &name)?;
    }
    Ok(())
}

/// The kernel has it open, and no process does.
fn behind_a_loop_device(pool: &dyn Pool, name: &str, l: &Label, path: &Path) -> Check {
    let file = ok("opening", File::options().read(true).write(true).open(path))?;
    let identity = ok("looking", loopdev::file_identity(&file))?;
    let key = loopdev::Key { name: "theirs".into(), file: identity };
    let number = ok("attaching", loopdev::attach(&file, &key, &soon()))?;
    drop(file);
    let r = pool.adopt(name, l, &soon());
    ok("detaching", loopdev::detach(number, &key, &soon()))?;
    match &r {
        Err(PoolError::Precondition { detail, .. }) if detail.contains("loop") => Ok(()),
        _ => Err(format!("adopt of one behind a loop device: {r:?}")),
    }
}

fn unfit(subject: &Subject, pool: &dyn Pool) -> Check {
    let l = thin(16);
    let name = kinds(subject).remove(0);
    let r = pool.adopt(&name, &l, &soon());
    expect(matches!(r, Err(PoolError::NotFound { .. })), "adopt of nothing", &r)?;
    // Not of this pool's place, whatever is there.
    for elsewhere in ["../x", "/etc/passwd", "other/x", "-x", ""] {
        let r = pool.adopt(elsewhere, &l, &soon());
        expect(matches!(r, Err(PoolError::NotFound { .. })), format!("adopt of {elsewhere:?}"), &r)?;
    }
    make(subject, &name, 16 * MIB, 1)?;
    let wrong = Label { size: ByteSize(32 * MIB), ..l.clone() };
    let r = pool.adopt(&name, &wrong, &soon());
    expect(matches!(r, Err(PoolError::Conflict { .. })), "adopt as another size", &r)?;
    the_one(pool, &name, 16 * MIB)?;
    unmake(subject, &name)?;
    // A volume is no stray.
    let ours = thin(16);
    ok("create", pool.create(&ours, &soon()))?;
    let its_name = match subject.spec.medium {
        PoolMedium::Zfs { .. } => format!("{}/{}", zfs_parent(subject), ours.id),
        PoolMedium::Lvm { .. } => ours.id.to_string(),
        _ => format!("{}.img", ours.id),
    };
    let r = pool.adopt(&its_name, &l, &soon());
    expect(r.is_err(), "adopt of a volume", &r)?;
    same("it is there", ok("get", pool.get(ours.id, &soon()))?, Some(whole(&ours)))?;
    same("and no other", ok("get", pool.get(l.id, &soon()))?, None)?;
    ok("destroy", pool.destroy(ours.id, &soon()))?;
    // LVM has no size that is not a whole number of its extents, which are ours.
    if matches!(subject.spec.medium, PoolMedium::Lvm { .. }) {
        return Ok(());
    }
    let odd = 16 * MIB + 4096 - if images(subject).is_some() { 1 } else { 0 };
    make(subject, &name, odd, 1)?;
    let told = strays(pool)?;
    expect(told.len() == 1 && told[0].adoptable.is_err(), "an odd size is told", &told)?;
    let r = pool.adopt(&name, &l, &soon());
    expect(matches!(r, Err(PoolError::Precondition { .. })), "adopt of an odd size", &r)?;
    unmake(subject, &name)?;
    let Some(dir) = images(subject) else { return Ok(()) };
    // What has two names can be written by the other, and a link is not what it points at.
    make(subject, &name, 16 * MIB, 1)?;
    ok("linking", fs::hard_link(dir.join(&name), dir.join("second")))?;
    ok("linking", std::os::unix::fs::symlink(dir.join(&name), dir.join("link")))?;
    for told in [name.as_str(), "second", "link"] {
        let r = pool.adopt(told, &l, &soon());
        expect(matches!(r, Err(PoolError::Precondition { .. })), format!("adopt of {told}"), &r)?;
    }
    [name.as_str(), "second", "link"].iter().try_for_each(|n| unmake(subject, n))
}
