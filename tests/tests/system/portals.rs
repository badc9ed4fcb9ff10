//! Portals that the machine does not have, that are in use, and that go while hosts are connected by them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use orlop_tests::wait_for;

use crate::iscsi::{Brings, attach, devices, disk, log_in, log_out};
use crate::world::{World, ZFS};

/// Starts the daemon again with these portals, each an address and what is behind its port's first digits.
fn configure(w: &mut World, portals: &[&str]) -> Result<()> {
    let list = |port: u16| {
        let all = portals
            .iter()
            .map(|p| if p.contains(':') { format!("\"{p}\"") } else { format!("\"{p}:{port}\"") });
        all.collect::<Vec<_>>().join(", ")
    };
    w.reconfigure(&format!("[nvmet]\nportals = [{}]\n[lio]\nportals = [{}]\n", list(4420), list(3260)))
}

/// What is said of portals, by protocol.
fn alarms(w: &World) -> Result<Vec<(String, String)>> {
    let alarms = w.api(w.lab.api.system())?.alarms;
    Ok(alarms
        .into_iter()
        .filter(|a| a.subject.starts_with("portals/"))
        .map(|a| (a.subject, a.detail))
        .collect())
}

/// The appliance's ends of connections by NVMe and iSCSI.
fn connections(w: &mut World) -> Result<String> {
    w.lab.on_appliance(
        "ss -Htn state established '( sport = :4420 or sport = :3260 )' | tr -s ' ' | cut -d' ' -f3",
    )
}

pub fn portals_go_while_hosts_are_connected(w: &mut World) -> Result<()> {
    let (nvme, scsi) = (w.volume("port-nvme", ZFS, 256)?, disk(w, "port-scsi", ZFS, 256)?);
    // One that the machine does not have, and one that the API has.
    configure(w, &["10.77.1.1", "10.77.2.1", "10.77.3.1", "10.77.9.9", "10.77.1.1:8443"])?;
    let (a, b, c) = (w.attach(&nvme, 1)?, w.attach(&nvme, 2)?, attach(w, &scsi, 1)?);
    let told = alarms(w)?;
    for (protocol, port) in [("portals/nvme", 4420), ("portals/iscsi", 3260)] {
        let text = told.iter().find(|(subject, _)| subject == protocol).map(|(_, text)| text.as_str());
        let text = text.with_context(|| format!("nothing is told of {protocol}: {told:?}"))?;
        for portal in [format!("10.77.9.9:{port}"), "10.77.1.1:8443".into()] {
            ensure!(text.contains(&portal), "{protocol} does not name {portal}: {text}");
        }
        ensure!(!text.contains("10.77.2.1"), "{text}");
    }
    // One host by two portals, of which one goes; another by a third. By iSCSI the same two.
    let path = w.lab.initiator.connect(&a, 1, 2)?;
    w.lab.initiator.start_stream("port-nvme", &path, 0, 100_000)?;
    let second = w.lab.others.first_mut().context("a second initiator")?;
    let theirs = second.connect(&b, 2, 1)?;
    second.start_stream("port-other", &theirs, 128 << 20, 100_000)?;
    log_in(&mut w.lab.initiator, &["10.77.1.1", "10.77.2.1"], &c, 1, Brings::default())?;
    devices(&mut w.lab.initiator, &c, 2)?;
    let stays = w.lab.initiator.run(
        "for s in /sys/class/iscsi_session/session*; do \
           grep -q 10.77.2.1 $s/device/connection*/iscsi_connection/*/persistent_address && \
           basename $(ls -d $s/device/target*/*/block/*); done",
    )?;
    let stays = orlop_tests::Path { device: format!("/dev/{}", stays.trim()) };
    w.lab.initiator.start_stream("port-scsi", &stays, 0, 100_000)?;
    for end in ["10.77.1.1:4420", "10.77.2.1:4420", "10.77.3.1:4420", "10.77.1.1:3260", "10.77.2.1:3260"] {
        ensure!(connections(w)?.contains(end), "nobody came by {end}");
    }

    configure(w, &["10.77.2.1", "10.77.3.1"])?;
    let left = connections(w)?;
    ensure!(!left.contains("10.77.1.1:"), "connected by a portal that is gone: {left}");
    ensure!(left.contains("10.77.2.1:4420") && left.contains("10.77.3.1:4420"), "{left}");
    ensure!(alarms(w)?.is_empty(), "{:?}", alarms(w)?);
    let so_far = |w: &mut World| -> Result<[u64; 3]> {
        let second = w.lab.others.first_mut().context("a second initiator")?.acknowledged("port-other")?;
        let first = &mut w.lab.initiator;
        Ok([first.acknowledged("port-nvme")?, second, first.acknowledged("port-scsi")?])
    };
    let then = so_far(w)?;
    wait_for("all three to go on by the others", Duration::from_secs(90), || {
        Ok(so_far(w)?.iter().zip(then).all(|(now, then)| *now > then + 20))
    })?;
    let left = connections(w)?;
    ensure!(!left.contains("10.77.1.1:"), "somebody came back by a portal that is gone: {left}");
    let second = w.lab.others.first_mut().context("a second initiator")?;
    ensure!(second.stream_state("port-other")? == "running", "a host of another portal had an error");
    for name in ["port-nvme", "port-scsi"] {
        ensure!(w.lab.initiator.stream_state(name)? == "running", "{name} had an error");
    }

    // As it was; nobody has an error of that either.
    w.configure_as_before()?;
    let then = so_far(w)?;
    wait_for("all three to go on by the wildcard", Duration::from_secs(90), || {
        Ok(so_far(w)?.iter().zip(then).all(|(now, then)| *now > then + 20))
    })?;
    for (name, path, offset) in [("port-nvme", &path, 0), ("port-scsi", &stays, 0)] {
        ensure!(w.lab.initiator.stream_state(name)? == "running", "{name} had an error");
        w.lab.initiator.stop_stream(name)?;
        w.lab.initiator.verify_stream(name, path, offset)?;
    }
    let second = w.lab.others.first_mut().context("a second initiator")?;
    ensure!(second.stream_state("port-other")? == "running", "the other host had an error");
    second.stop_stream("port-other")?;
    second.verify_stream("port-other", &theirs, 128 << 20)?;
    second.disconnect(&b)?;
    w.lab.initiator.disconnect(&a)?;
    log_out(&mut w.lab.initiator, &c)?;
    w.remove(&nvme)?;
    w.remove(&scsi)
}
