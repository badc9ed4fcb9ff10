//! What crashes, people and other programs leave in a pool.

use std::fs;

use super::snapshots::{holds, put};
use super::*;
use crate::kernel::exec::Tool;
use crate::pool::{Change, PoolError};

pub(super) const ALL: &[(&str, Run)] = &[
    ("what a crash in a create leaves is partial, and can be finished or destroyed", crash_in_create),
    ("what a crash in a grow leaves can be finished", crash_in_grow),
    ("a damaged label is listed and left alone", damaged),
    ("what is not ours is listed and left alone", foreign),
    ("links are not followed", links),
    ("a removal of LVM that is killed leaks nothing", killed_removal),
    ("a pool is adopted by its own name only", adoption),
];

/// LVM was stopped after it had told the kernel's thin pool something, and before it took its note of that away. What
/// is written to a volume takes space in the pool until the kernel has removed its device: so that tells at the end.
fn killed_removal(subject: &Subject, pool: &dyn Pool) -> Check {
    if pool.kind() != PoolKind::Lvm {
        return Ok(());
    }
    let used = || Ok::<_, String>(ok("capacity", pool.capacity(&soon()))?.used);
    let (before, one, two) = (used()?, thin(16), thin(16));
    ok("create", pool.create(&one, &soon()))?;
    put(pool, one.id, 0, &pattern(1, 4 << 20))?;
    let lvm = |command: &str, args: &[&str]| -> Check {
        let tool = ok("lvm", Tool::locate("lvm"))?;
        let done = tool.run(&[&[command], args].concat(), &soon()).and_then(|o| o.success());
        ok(command, done).map(drop)
    };
    let file = format!("/run/{}.metadata", pool.name());
    let noted = |message: &str| -> Check {
        lvm("vgcfgbackup", &["-f", &file, pool.name().as_str()])?;
        let text = ok("reading", fs::read_to_string(&file))?;
        let at = "zero_new_blocks = 1";
        expect(text.matches(at).count() == 1, "one thin pool", &text.len())?;
        let text = text.replace(at, &format!("{at}\n{message}"));
        ok("writing", fs::write(&file, text))?;
        lvm("vgcfgrestore", &["-q", "-y", "--force", "-f", &file, pool.name().as_str()])
    };
    noted("message1 {\ndelete = 4711\n}")?;
    // As at a start after that.
    let again = reopen(subject)?;
    ok("destroy", again.destroy(one.id, &soon()))?;
    same("what is in use", used()?, before)?;
    // And where the next thing is a volume.
    noted("message1 {\ndelete = 4711\n}")?;
    let again = reopen(subject)?;
    ok("create", again.create(&two, &soon()))?;
    holds(again.as_ref(), two.id, 0, &vec![0; 4 << 20], "a new volume reads as zeros")?;
    ok("destroy", again.destroy(two.id, &soon()))?;
    same("what is in use", used()?, before)?;
    ok("removing", fs::remove_file(&file))
}

/// A zvol that has no label yet. Whoever only finds it leaves it alone; whoever knows that it made it does not.
fn crash_before_label(subject: &Subject, pool: &dyn Pool) -> Check {
    let l = thin(16);
    let name = format!("{}/{}", zfs_parent(subject), l.id);
    zfs(&["create", "-s", "-V", "16M", &name])?;
    expect(pool.get(l.id, &soon()).is_err(), "no volume", &name)?;
    expect(pool.destroy(l.id, &soon()).is_err(), "it is left alone", &name)?;
    same("unmake", ok("unmake", pool.unmake(l.id, &soon()))?, Change::Done)?;
    same("again", ok("unmake", pool.unmake(l.id, &soon()))?, Change::Unchanged)?;
    same("get", ok("get", pool.get(l.id, &soon()))?, None)?;
    // With the label of another it is nobody's leftover.
    zfs(&["create", "-s", "-V", "16M", &name])?;
    write_label(subject, l.id, &thin(16).to_json())?;
    let r = pool.unmake(l.id, &soon());
    expect(matches!(r, Err(PoolError::Conflict { .. })), "a conflict", &r)?;
    zfs(&["destroy", &name])
}

fn crash_in_create(subject: &Subject, pool: &dyn Pool) -> Check {
    if let PoolMedium::Zfs { .. } = subject.spec.medium {
        return crash_before_label(subject, pool);
    }
    let Some(dir) = images(subject) else { return Ok(()) };
    let leave = |l: &Label, stage: usize| -> Check {
        let file = |suffix: &str| dir.join(format!("{}{suffix}", l.id));
        match stage {
            0 => ok("writing", fs::write(file(".json.tmp"), "{\"v\"")),
            1 => ok("writing", fs::write(file(".json"), l.to_json())),
            _ => {
                ok("writing", fs::write(file(".json"), l.to_json()))?;
                ok("writing", fs::write(file(".img.tmp"), "half"))
            }
        }
    };
    for stage in 0..3 {
        let l = thin(16);
        leave(&l, stage)?;
        let listed = ok("list", pool.list(&soon()))?;
        same(format!("partial, stage {stage}"), listed.partial, vec![l.id])?;
        expect(listed.volumes.len() == stage && listed.strays.is_empty(), "nothing else", &stage)?;
        same("get", ok("get", pool.get(l.id, &soon()))?, None)?;
        same("create", ok("create", pool.create(&l, &soon()))?, Change::Done)?;
        same("get", ok("get", pool.get(l.id, &soon()))?, Some(whole(&l)))?;
        let l = thin(16);
        leave(&l, stage)?;
        same("destroy", ok("destroy", pool.destroy(l.id, &soon()))?, Change::Done)?;
        same("again", ok("destroy", pool.destroy(l.id, &soon()))?, Change::Unchanged)?;
    }
    let names = ok("reading", fs::read_dir(&dir))?.count();
    same("files of the three that were finished", names, 6)?;
    // In the middle of a destroy: the image has gone, the label not yet.
    let l = thin(16);
    ok("create", pool.create(&l, &soon()))?;
    ok("removing", fs::remove_file(dir.join(format!("{}.img", l.id))))?;
    same("partial", ok("list", pool.list(&soon()))?.partial, vec![l.id])?;
    same("destroy", ok("destroy", pool.destroy(l.id, &soon()))?, Change::Done)
}

fn crash_in_grow(_: &Subject, pool: &dyn Pool) -> Check {
    for l in [thin(16), thick(16)] {
        ok("create", pool.create(&l, &soon()))?;
        let larger = Label { size: ByteSize(32 << 20), ..l.clone() };
        // The label is written first.
        ok("relabel", pool.relabel(&larger, &soon()))?;
        let seen = ok("get", pool.get(l.id, &soon()))?;
        same("in the middle", seen, Some(Stored::of(larger.clone(), l.size)))?;
        same("grow", ok("grow", pool.grow(&larger, &soon()))?, Change::Done)?;
        same("get", ok("get", pool.get(l.id, &soon()))?, Some(whole(&larger)))?;
    }
    Ok(())
}

pub(super) fn zfs(args: &[&str]) -> Check {
    let tool = ok("zfs", Tool::locate("zfs"))?;
    ok("zfs", tool.run(args, &soon()).and_then(|o| o.success())).map(drop)
}

pub(super) fn zfs_parent(subject: &Subject) -> String {
    format!("{}/orlop", subject.spec.name)
}

pub(super) fn lvm(args: &[&str]) -> Check {
    let tool = ok("lvm", Tool::locate("lvm"))?;
    ok("lvm", tool.run(args, &soon()).and_then(|o| o.success())).map(drop)
}

/// Puts a text where a volume's label is, by other means than the pool's.
fn write_label(subject: &Subject, id: VolumeId, text: &str) -> Check {
    if let Some(dir) = images(subject) {
        return ok("writing", fs::write(dir.join(format!("{id}.json")), text));
    }
    match subject.spec.medium {
        PoolMedium::Lvm { .. } => {
            ok("lvm", crate::pool::lvm::write_raw_label(&subject.spec, &id.to_string(), text, &soon()))
        }
        _ => zfs(&["set", &format!("dev.orlop:label={text}"), &format!("{}/{id}", zfs_parent(subject))]),
    }
}

/// Everything refuses to touch a volume whose label can't be read.
fn left_alone(pool: &dyn Pool, l: &Label) -> Check {
    let larger = Label { size: ByteSize(l.size.bytes() * 2), ..l.clone() };
    let refused: [(&str, Result<(), PoolError>); 7] = [
        ("create", pool.create(l, &soon()).map(drop)),
        ("grow", pool.grow(&larger, &soon()).map(drop)),
        ("set", pool.set(l, &soon()).map(drop)),
        ("relabel", pool.relabel(l, &soon())),
        ("destroy", pool.destroy(l.id, &soon()).map(drop)),
        ("get", pool.get(l.id, &soon()).map(drop)),
        ("open", pool.open(l.id, &soon()).map(drop)),
    ];
    for (what, result) in refused {
        expect(matches!(result, Err(PoolError::Conflict { .. })), what, &result)?;
    }
    Ok(())
}

fn damaged(subject: &Subject, pool: &dyn Pool) -> Check {
    let l = thin(16);
    ok("create", pool.create(&l, &soon()))?;
    let newer = l.to_json().replace("\"v\":1", "\"v\":99");
    let other = Label { id: VolumeId::mint(), ..l.clone() }.to_json();
    for text in ["", "{", "null", newer.as_str(), other.as_str()] {
        write_label(subject, l.id, text)?;
        let listed = ok("list", pool.list(&soon()))?;
        expect(
            listed.volumes.is_empty() && listed.partial.is_empty() && listed.strays.len() == 1,
            format!("damaged by {text:?}"),
            &listed,
        )?;
        expect(listed.strays[0].name.contains(&l.id.to_string()), "by its name", &listed.strays)?;
        left_alone(pool, &l)?;
    }
    // Put right by a person, it is a volume again.
    write_label(subject, l.id, &l.to_json())?;
    same("get", ok("get", pool.get(l.id, &soon()))?, Some(whole(&l)))
}

fn foreign(subject: &Subject, pool: &dyn Pool) -> Check {
    let l = thin(1);
    ok("create", pool.create(&l, &soon()))?;
    let unlabelled = VolumeId::mint();
    let (names, clean): (Vec<String>, Box<dyn Fn() -> Check>) = match images(subject) {
        Some(dir) => {
            let names = vec!["notes.txt".to_string(), format!("{unlabelled}.img"), "x.json".into()];
            for n in &names {
                ok("writing", fs::write(dir.join(n), "mine"))?;
            }
            let all = names.clone();
            (
                names,
                Box::new(move || all.iter().try_for_each(|n| ok("removing", fs::remove_file(dir.join(n))))),
            )
        }
        None if matches!(subject.spec.medium, PoolMedium::Lvm { .. }) => {
            let group = subject.spec.name.to_string();
            let names = vec!["mine".to_string(), unlabelled.to_string(), format!("{unlabelled}x")];
            for n in &names {
                lvm(&["lvcreate", "-q", "-y", "-V", "1m", "--thinpool", "thin", "-n", n, &group])?;
            }
            let all: Vec<String> = names.iter().map(|n| format!("{group}/{n}")).collect();
            (names, Box::new(move || all.iter().try_for_each(|n| lvm(&["lvremove", "-q", "-y", n]))))
        }
        None => {
            let parent = zfs_parent(subject);
            let names =
                vec![format!("{parent}/fs"), format!("{parent}/{unlabelled}"), format!("{parent}/vol")];
            zfs(&["create", "-u", "-o", "mountpoint=none", &names[0]])?;
            zfs(&["create", "-s", "-V", "1M", &names[1]])?;
            zfs(&["create", "-s", "-V", "1M", &names[2]])?;
            let all = names.clone();
            (
                names,
                Box::new(move || {
                    all.iter().try_for_each(|n| {
                        // udev may still be looking at a new device.
                        (0..20)
                            .find(|_| {
                                let gone = zfs(&["destroy", n]).is_ok();
                                if !gone {
                                    std::thread::sleep(Duration::from_millis(500));
                                }
                                gone
                            })
                            .map(drop)
                            .ok_or_else(|| format!("{n} can't be destroyed"))
                    })
                }),
            )
        }
    };
    let check = || -> Check {
        let listed = ok("list", pool.list(&soon()))?;
        same("ours", listed.volumes.clone(), vec![whole(&l)])?;
        let mut strays: Vec<String> = listed.strays.iter().map(|s| s.name.clone()).collect();
        strays.sort();
        expect(listed.strays.iter().all(|s| !s.labelled), "without a label of ours", &listed.strays)?;
        let mut wanted = names.clone();
        wanted.sort();
        same("the others", strays, wanted)?;
        let r = pool.destroy(unlabelled, &soon());
        expect(matches!(r, Err(PoolError::Conflict { .. })), "destroy of an unlabelled one", &r)?;
        let r = pool.create(&Label { id: unlabelled, ..l.clone() }, &soon());
        expect(matches!(r, Err(PoolError::Conflict { .. })), "create over an unlabelled one", &r)?;
        ok("destroy of ours", pool.destroy(l.id, &soon()))?;
        let r = pool.remove(&soon());
        expect(matches!(r, Err(PoolError::Precondition { .. })), "remove of the pool", &r)?;
        same("the others are still there", ok("list", pool.list(&soon()))?.strays.len(), names.len())
    };
    check().and(clean())
}

fn links(subject: &Subject, pool: &dyn Pool) -> Check {
    let Some(dir) = images(subject) else { return Ok(()) };
    let (l, victim) = (thin(1), dir.join("victim"));
    ok("writing", fs::write(&victim, "v"))?;
    // A link where the image should be, and one where the label should be.
    ok("writing", fs::write(dir.join(format!("{}.json", l.id)), l.to_json()))?;
    ok("linking", std::os::unix::fs::symlink(&victim, dir.join(format!("{}.img", l.id))))?;
    let checked = left_alone(pool, &l);
    let m = thin(1);
    ok("linking", std::os::unix::fs::symlink(&victim, dir.join(format!("{}.json", m.id))))?;
    let checked = checked.and(left_alone(pool, &m));
    let checked = checked.and(same("the victim", ok("reading", fs::read(&victim))?, b"v".to_vec()));
    for name in [format!("{}.json", l.id), format!("{}.img", l.id), format!("{}.json", m.id), "victim".into()]
    {
        ok("removing", fs::remove_file(dir.join(name)))?;
    }
    checked
}

fn adoption(subject: &Subject, pool: &dyn Pool) -> Check {
    let l = thin(1);
    ok("create", pool.create(&l, &soon()))?;
    // The same pool again: adopted with all that is in it.
    let again = ok("create", crate::pool::create(&subject.spec, &subject.env, &soon()))?;
    same("get", ok("get", again.get(l.id, &soon()))?, Some(whole(&l)))?;
    drop(again);
    // Another name: refused. The disk of a pool that goes by a UUID is opened by whoever knows it, and
    // is refused by the mark on it.
    let other = PoolSpec { name: parse("other"), ..subject.spec.clone() };
    if !matches!(subject.spec.medium, PoolMedium::FileDisk { .. }) {
        let made = crate::pool::create(&other, &subject.env, &soon()).map(drop);
        expect(matches!(made, Err(PoolError::Precondition { .. })), "create under another name", &made)?;
        let opened = crate::pool::open(&other, &subject.env, &soon()).map(drop);
        expect(opened.is_err(), "open under another name", &opened)?;
    }
    same("get", ok("get", pool.get(l.id, &soon()))?, Some(whole(&l)))
}
