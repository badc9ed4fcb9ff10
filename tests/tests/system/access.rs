//! Who gets in, and how it is thrown out (R2).

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use orlop_api::client::AttachAs;
use orlop_api::{VolumeRef, VolumeState};
use orlop_tests::{nvme, wait_for};

use crate::world::{World, XFS, ZFS, nqn};

pub fn stranger_is_refused(w: &mut World) -> Result<()> {
    let volume = w.volume("private", ZFS, 64)?;
    let a = w.attach(&volume, 1)?;
    let portal = nvme(&a)?.portals.iter().find(|p| p.address.starts_with("10.77.")).cloned();
    let portal = portal.ok_or_else(|| anyhow::anyhow!("no storage portal in {a:?}"))?;
    let stranger = w.lab.initiator.connect_to(nvme(&a)?.nqn.as_str(), &portal.address, portal.port, 9);
    ensure!(stranger.is_err(), "a host that is not attached was let in");
    // Nor does it see that the volume exists, where the host that is attached sees it by the same command.
    let mut discover = |host| -> Result<String> {
        let hostnqn = orlop_tests::Initiator::nqn(host)?;
        w.lab.initiator.run(&format!(
            "nvme discover -t tcp -a {} -s {} --hostnqn={hostnqn} 2>&1 || true",
            portal.address, portal.port
        ))
    };
    let (seen, stranger) = (discover(1)?, discover(9)?);
    ensure!(seen.contains(nvme(&a)?.nqn.as_str()), "its own host does not see the volume:\n{seen}");
    ensure!(!stranger.contains(nvme(&a)?.nqn.as_str()), "a stranger sees the volume:\n{stranger}");
    w.lab.initiator.connect(&a, 1, 1)?;
    w.lab.initiator.disconnect(&a)?;
    w.remove(&volume)
}

pub fn fenced_writer_is_cut_off(w: &mut World) -> Result<()> {
    for (name, pool) in [("fence-zvol", ZFS), ("fence-xfs", XFS)] {
        let volume = w.volume(name, pool, 64)?;
        let a = w.attach(&volume, 1)?;
        let path = w.lab.initiator.connect(&a, 1, 1)?;
        w.lab.initiator.start_stream(name, &path, 0, 10_000)?;
        // By a detach, and by another host that wants the volume for itself.
        let next = w.host(2)?;
        let before = Instant::now();
        let other = if pool == ZFS {
            w.detach(&volume, 1)?;
            None
        } else {
            Some(w.api(w.lab.api.attach_as(
                &VolumeRef::Id(volume.id),
                &next,
                &AttachAs { exclusive: true, ..AttachAs::default() },
            ))?)
        };
        let took = before.elapsed();
        // From here on nothing of the old host may arrive. Another host reads what there is now, and
        // again after the old one had time to try everything.
        let other = other.map_or_else(|| w.attach(&volume, 2), Ok)?;
        println!("     the fence of {name} took {:.2} s", took.as_secs_f64());
        let second = w.lab.others.first_mut().context("a second initiator")?;
        let theirs = second.connect(&other, 2, 1)?;
        let first = second.checksum(&theirs, 8)?;
        let stopped = w.lab.initiator.acknowledged(name)?;
        second.run("sleep 5")?;
        ensure!(second.checksum(&theirs, 8)? == first, "{name}: a write arrived after the fence");
        ensure!(
            w.lab.initiator.acknowledged(name)? == stopped,
            "{name}: a write was acknowledged after the fence"
        );
        // What the old host was told is durable is there: the fence loses nothing that it acknowledged.
        let acks = w.lab.initiator.acks(name)?;
        second.put_acks(name, &acks)?;
        second.verify_stream(name, &theirs, 0)?;
        second.disconnect(&other)?;
        w.lab.initiator.stop_stream(name)?;
        w.lab.initiator.forget(&a)?;
        w.remove(&volume)?;
    }
    Ok(())
}

pub fn fence_spares_the_other_host(w: &mut World) -> Result<()> {
    let volume = w.volume("shared", ZFS, 256)?;
    let first = w.attach(&volume, 1)?;
    let second = w.attach(&volume, 2)?;
    let one = w.lab.initiator.connect(&first, 1, 1)?;
    let other = w.lab.others.first_mut().context("a second initiator")?;
    let two = other.connect(&second, 2, 1)?;
    w.lab.initiator.start_stream("one", &one, 0, 20_000)?;
    other.start_stream("two", &two, 128 << 20, 20_000)?;
    w.detach(&volume, 1)?;
    let stopped = w.lab.initiator.acknowledged("one")?;
    let other = w.lab.others.first_mut().context("a second initiator")?;
    let after = other.acknowledged("two")?;
    wait_for("the host that stays to go on", Duration::from_secs(60), || {
        Ok(other.acknowledged("two")? > after + 20)
    })?;
    ensure!(other.stream_state("two")? == "running", "the host that stays had an error");
    ensure!(w.lab.initiator.acknowledged("one")? == stopped, "the fenced host goes on writing");
    other.stop_stream("two")?;
    other.verify_stream("two", &two, 128 << 20)?;
    let acks = w.lab.initiator.acks("one")?;
    other.put_acks("one", &acks)?;
    other.verify_stream("one", &two, 0)?;
    other.disconnect(&second)?;
    w.lab.initiator.stop_stream("one")?;
    w.lab.initiator.forget(&first)?;
    w.remove(&volume)
}

/// A host that may only read, beside one that writes; whatever it tries, nothing of it arrives.
pub fn reader_can_not_write(w: &mut World) -> Result<()> {
    for (name, pool) in [("read-zvol", ZFS), ("read-xfs", XFS)] {
        let volume = w.volume(name, pool, 64)?;
        let a = w.attach(&volume, 1)?;
        let path = w.lab.initiator.connect(&a, 1, 1)?;
        let sum = w.lab.initiator.write_random(&path, 4)?;
        let reader = w.host(2)?;
        let how = AttachAs { read_only: true, ..AttachAs::default() };
        let b = w.api(w.lab.api.attach_as(&VolumeRef::Id(volume.id), &reader, &how))?;
        ensure!(b.read_only && nvme(&b)?.nqn != nvme(&a)?.nqn, "{b:?}");
        let second = w.lab.others.first_mut().context("a second initiator")?;
        let as_writer = second.connect(&a, 2, 1);
        ensure!(as_writer.is_err(), "{name}: the reader is let in where it can write");
        let theirs = second.connect(&b, 2, 1)?;
        ensure!(second.checksum(&theirs, 4)? == sum, "{name}: the reader sees other bytes");
        // Data, zeroes, blocks that are given up, and the write protection that any host may take off.
        let device = &theirs.device;
        for write in [
            format!("dd if=/dev/urandom of={device} bs=4k count=1 oflag=direct"),
            format!("blkdiscard -z -l 1M {device}"),
            format!("blkdiscard -f -l 1M {device}"),
            format!(
                "nvme set-feature {device} -n 1 -f 0x84 -V 0; dd if=/dev/zero of={device} bs=1M count=1 oflag=direct"
            ),
        ] {
            let said = second
                .run(&format!("if {{ {write}; }} >/dev/null 2>&1; then echo wrote; else echo refused; fi"))?;
            // Giving blocks up is a hint, which an answer says nothing about: what is there afterwards does.
            let is_hint = write.contains("blkdiscard -f");
            ensure!(is_hint || said.trim() == "refused", "{name}: the reader could {write}");
        }
        ensure!(second.checksum(&theirs, 4)? == sum, "{name}: the reader has changed what is there");
        // Told, because a file system that is mounted read-only may send one.
        let flush = format!("dd if=/dev/null of={device} conv=notrunc,fsync");
        let said =
            second.run(&format!("if {flush} >/dev/null 2>&1; then echo taken; else echo refused; fi"))?;
        println!("     {name}: a reader's flush is {}", said.trim());
        ensure!(w.lab.initiator.checksum(&path, 4)? == sum, "{name}: the writer reads other bytes");
        // It sees what is written, and the disk grow.
        let sum = w.lab.initiator.write_random(&path, 4)?;
        let size = orlop_api::ByteSize(96 << 20);
        w.api(w.lab.api.update_volume(&VolumeRef::Id(volume.id), &orlop_api::VolumeUpdate::to_size(size)))?;
        let second = w.lab.others.first_mut().context("a second initiator")?;
        ensure!(second.checksum(&theirs, 4)? == sum, "{name}: the reader sees other bytes than are written");
        wait_for("the reader to see the disk grow", Duration::from_secs(20), || {
            Ok(second.size(&theirs)? == 96 << 20)
        })?;
        // A second convergence is empty, and so is the one after a restart of the daemon.
        let before = w.kernel()?;
        w.lab.on_appliance("systemctl restart orlopd")?;
        w.lab.wait_api()?;
        crate::crashes::same(&before, &w.kernel()?)?;
        // Cut off, it reads no more, and nothing is left of its device.
        w.api(w.lab.api.detach(&VolumeRef::Id(volume.id), &reader))?;
        let second = w.lab.others.first_mut().context("a second initiator")?;
        ensure!(second.checksum(&theirs, 1).is_err(), "{name}: the reader still reads");
        second.forget(&b)?;
        let left = w.lab.on_appliance("ls /dev/mapper")?;
        ensure!(!left.contains("orlop-ro-"), "{name}: left behind: {left}");
        ensure!(w.lab.initiator.checksum(&path, 4)? == sum, "{name}: the writer has noticed");
        w.lab.initiator.disconnect(&a)?;
        w.remove(&volume)?;
    }
    Ok(())
}

const THEIRS: &str = "nqn.2020-01.com.example:theirs";
const STRANGER: &str = "nqn.2014-08.org.nvmexpress:uuid:0190c0de-0000-7000-8000-000000000009";

/// A stranger is let in to one volume, and another volume is taken from its hosts; a target of somebody else's appears.
/// What comes of that is looked at in [`put_back_by_itself`].
pub fn changed_by_hand(w: &mut World) -> Result<()> {
    let (one, two) = (w.volume("hand-one", XFS, 64)?, w.volume("hand-two", ZFS, 64)?);
    w.attach(&one, 1)?;
    w.attach(&two, 1)?;
    w.lab.on_appliance(&format!(
        "cd /sys/kernel/config/nvmet && mkdir hosts/{STRANGER} && \
         ln -s /sys/kernel/config/nvmet/hosts/{STRANGER} subsystems/{}/allowed_hosts/ && \
         rm ports/*/subsystems/{} && mkdir subsystems/{THEIRS}",
        nqn(&one)?,
        nqn(&two)?
    ))?;
    Ok(())
}

pub fn put_back_by_itself(w: &mut World) -> Result<()> {
    let (one, two) = (w.volume("hand-one", XFS, 64)?, w.volume("hand-two", ZFS, 64)?);
    let root = "/sys/kernel/config/nvmet";
    let state = format!(
        "ls {root}/subsystems/{}/allowed_hosts {root}/hosts {root}/ports/*/subsystems {root}/subsystems",
        nqn(&one)?
    );
    let other = nqn(&two)?;
    wait_for("the kernel to be as it should be", Duration::from_secs(90), || {
        let state = w.lab.on_appliance(&state)?;
        Ok(!state.contains(STRANGER) && state.matches(other.as_str()).count() > 1)
    })?;
    ensure!(w.lab.on_appliance(&state)?.contains(THEIRS), "what is not ours is gone");
    let log = w.lab.on_appliance("journalctl -u orlopd -b --no-pager -o cat")?;
    let told = log.matches("the target was not as it should be, and is put back").count();
    ensure!(told == 2, "told {told} times");
    w.lab.on_appliance(&format!("rmdir {root}/subsystems/{THEIRS}"))?;
    let a = w.attach(&two, 1)?;
    w.lab.initiator.connect(&a, 1, 1)?;
    w.lab.initiator.disconnect(&a)?;
    w.remove(&one)?;
    w.remove(&two)
}

/// Writers and fences of a volume whose device hangs wait for it, and nobody else does.
pub fn hung_volume_stalls_itself_alone(w: &mut World) -> Result<()> {
    let (hung, other) = (w.volume("hung", XFS, 64)?, w.volume("beside", ZFS, 64)?);
    let a = w.attach(&hung, 1)?;
    let path = w.lab.initiator.connect(&a, 1, 1)?;
    w.lab.initiator.start_stream("hung", &path, 0, 10_000)?;
    let around = |w: &mut World| -> Result<Duration> {
        let before = Instant::now();
        w.attach(&other, 2)?;
        w.detach(&other, 2)?;
        Ok(before.elapsed())
    };
    around(w)?;
    let usual = around(w)?;
    w.lab.on_appliance(&format!("dmsetup suspend --noflush --nolockfs orlop-{}", hung.id))?;
    // Not by this test's own client, which would wait for its answer.
    let host = w.host(1)?;
    w.lab.on_appliance(&format!(
        "systemd-run --quiet --unit=hung-detach -p RemainAfterExit=yes orlop detach {} {host}; sleep 2",
        hung.id
    ))?;
    let mut longest = Duration::ZERO;
    for _ in 0..4 {
        longest = longest.max(around(w)?);
    }
    let theirs = w.attach(&other, 2)?;
    let second = w.lab.others.first_mut().context("a second initiator")?;
    let before = Instant::now();
    second.connect(&theirs, 2, 1)?;
    let connected = before.elapsed();
    second.disconnect(&theirs)?;
    w.detach(&other, 2)?;
    println!(
        "     beside it attach and detach took {:.2} s at most, {:.2} s before; a connect {:.2} s",
        longest.as_secs_f64(),
        usual.as_secs_f64(),
        connected.as_secs_f64()
    );
    let still = w.lab.on_appliance("systemctl show hung-detach -p SubState --value")?;
    ensure!(still.trim() == "running", "the fence of a hung volume was answered: {still}");
    // A first attach may find the lane busy for as long as a slow job is waited for.
    ensure!(longest < usual * 4 + Duration::from_secs(2), "others waited {longest:?}, {usual:?} before");
    wait_for("the fence to be given up", Duration::from_secs(60), || {
        Ok(w.api(w.lab.api.volume(&VolumeRef::Id(hung.id)))?.state == VolumeState::Stuck)
    })?;
    // Its state is told before its caller is.
    wait_for("its caller to hear of it", Duration::from_secs(30), || {
        Ok(w.lab.on_appliance("journalctl -u hung-detach --no-pager -o cat")?.contains("orlop:"))
    })?;
    w.lab.on_appliance("systemctl stop hung-detach; true")?;

    // When the device answers again, the fence is carried out.
    w.lab.on_appliance(&format!("dmsetup resume orlop-{}", hung.id))?;
    wait_for("the fence to be carried out", Duration::from_secs(60), || {
        let volume = w.api(w.lab.api.volume(&VolumeRef::Id(hung.id)))?;
        Ok(volume.state == VolumeState::Ready && volume.hosts.is_empty())
    })?;
    let stopped = w.lab.initiator.acknowledged("hung")?;
    w.lab.initiator.run("sleep 3")?;
    ensure!(w.lab.initiator.acknowledged("hung")? == stopped, "the fenced host goes on writing");
    w.lab.initiator.stop_stream("hung")?;
    w.lab.initiator.forget(&a)?;
    w.remove(&hung)?;
    w.remove(&other)
}
