//! Portals of NVMe: several addresses and families, states of their paths, referrals, limits, and RDMA.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use orlop_api::{Attachment, Transport};
use orlop_tests::{nvme, wait_for};

use crate::world::{World, ZFS};

/// An address of each network, one of the other family on the first, and the first again by RDMA, which the kernels of
/// both guests speak over Ethernet (RoCE).
const CONFIG: &str = r#"[nvmet]
portals = [
    "10.77.1.1:4420",
    { listen = "10.77.2.1:4420", ana = "ANA" },
    "[fd77::1]:4420",
    { listen = "10.77.1.1:4422", transport = "rdma" },
]
referrals = ["10.77.9.9:8009"]
io_queues = 1
queue_size = 32
"#;

/// What finds the interface that has an address.
const INTERFACE: &str = "ip -o -4 address | sed -n 's/^[0-9]*: \\([^ ]*\\) .* ADDRESS\\/.*/\\1/p'";

fn on_interface(address: &str, command: &str) -> String {
    format!("i=$({}) && {command}", INTERFACE.replace("ADDRESS", address))
}

pub fn have_states_and_limits(w: &mut World) -> Result<()> {
    let result = tried(w);
    // Whatever came of it, the others have the portals that they know.
    w.configure_as_before()?;
    result
}

fn tried(w: &mut World) -> Result<()> {
    let theirs = w.lab.initiator.run(&format!("{} ; true", INTERFACE.replace("ADDRESS", "10.77.1.2")))?;
    ensure!(!theirs.trim().is_empty(), "the initiator has no interface with 10.77.1.2");
    w.lab.on_appliance(&on_interface("10.77.1.1", "ip address replace fd77::1/64 dev $i nodad"))?;
    w.lab.initiator.run(&on_interface("10.77.1.2", "ip address replace fd77::2/64 dev $i nodad"))?;
    w.reconfigure(&CONFIG.replace("ANA", "non-optimized"))?;
    let volume = w.volume("portals", ZFS, 128)?;
    let a = w.attach(&volume, 1)?;

    // Without a device for it, RDMA is a portal that is down, and the others serve.
    let alarm = |w: &World| -> Result<String> {
        let alarms = w.api(w.lab.api.system())?.alarms;
        Ok(alarms.into_iter().filter(|a| a.subject == "portals/nvme").map(|a| a.detail).collect())
    };
    ensure!(alarm(w)?.contains("10.77.1.1:4422 (rdma)"), "no alarm: {}", alarm(w)?);

    by_each(w, &a)?;
    w.lab.initiator.run("nvme list-subsys >/dev/null")?;
    by_rdma(w, &a, &alarm)?;
    w.lab.initiator.disconnect(&a)?;
    w.remove(&volume)
}

/// The path by an address: its states are in the kernel's own files.
fn path_state(w: &mut World, address: &str, file: &str) -> Result<String> {
    let command = format!(
        "for c in /sys/class/nvme/nvme*; do grep -q 'traddr={address},' $c/address || continue; \
         cat $c/{file} 2>/dev/null || cat $c/nvme*/{file}; done"
    );
    Ok(w.lab.initiator.run(&command)?.trim().to_string())
}

fn by_each(w: &mut World, a: &Attachment) -> Result<()> {
    let nqn = nvme(a)?.nqn.to_string();
    for address in ["10.77.1.1", "10.77.2.1", "fd77::1"] {
        let listed = nvme(a)?.portals.iter().any(|p| p.address == address && p.transport == Transport::Tcp);
        ensure!(listed, "{address} is not in {a:?}");
        w.lab.initiator.connect_to(&nqn, address, 4420, 1)?;
    }
    let device = w.lab.initiator.device(nvme(a)?.uuid, Duration::from_secs(20))?;
    for (address, state) in
        [("10.77.1.1", "optimized"), ("10.77.2.1", "non-optimized"), ("fd77::1", "optimized")]
    {
        wait_for("the state of a path", Duration::from_secs(20), || {
            Ok(path_state(w, address, "ana_state")? == state)
        })?;
        // The administrator's queue, and the one that is allowed.
        ensure!(
            path_state(w, address, "queue_count")? == "2",
            "{address}: {}",
            path_state(w, address, "queue_count")?
        );
        ensure!(
            path_state(w, address, "sqsize")? == "31",
            "{address}: {}",
            path_state(w, address, "sqsize")?
        );
    }
    // Discovery at one address tells of all.
    let log = w.lab.initiator.run("nvme discover -t tcp -a 10.77.1.1 -s 4420 2>&1")?;
    for address in ["10.77.2.1", "fd77::1", "10.77.9.9"] {
        ensure!(log.contains(address), "discovery does not refer to {address}:\n{log}");
    }
    // A network is taken out of service under writes: its path rests, and nobody has an error.
    let path = orlop_tests::Path { device };
    w.lab.initiator.start_stream("ana", &path, 0, 20_000)?;
    w.reconfigure(&CONFIG.replace("ANA", "inaccessible"))?;
    wait_for("the path to rest", Duration::from_secs(20), || {
        Ok(path_state(w, "10.77.2.1", "ana_state")? == "inaccessible")
    })?;
    ensure!(path_state(w, "10.77.2.1", "state")? == "live", "it was disconnected");
    let before = w.lab.initiator.acknowledged("ana")?;
    let initiator = &mut w.lab.initiator;
    wait_for(
        "writes to go on",
        Duration::from_secs(20),
        || Ok(initiator.acknowledged("ana")? > before + 20),
    )?;
    ensure!(initiator.stream_state("ana")? == "running", "the host had an error");
    initiator.stop_stream("ana")
}

fn by_rdma(w: &mut World, a: &Attachment, alarm: &impl Fn(&World) -> Result<String>) -> Result<()> {
    let soft =
        |interface: &str| format!("modprobe rdma_rxe && rdma link add rxe0 type rxe netdev {interface}");
    w.lab.on_appliance(&on_interface("10.77.1.1", &soft("$i")))?;
    w.lab.initiator.run(&format!("modprobe nvme-rdma && {}", on_interface("10.77.1.2", &soft("$i"))))?;
    // Tried again with everything else that is looked at once a minute; a restart does not wait for that.
    w.lab.on_appliance("systemctl restart orlopd")?;
    w.lab.wait_api()?;
    ensure!(alarm(w)?.is_empty(), "{}", alarm(w)?);
    let shown = w.attach_again(a)?;
    let portal =
        nvme(&shown)?.portals.iter().find(|p| p.transport == Transport::Rdma).context("no RDMA portal")?;
    ensure!((portal.address.as_str(), portal.port) == ("10.77.1.1", 4422), "{shown:?}");
    w.lab.initiator.disconnect(a)?;
    let nqn = nvme(a)?.nqn.clone();
    let hostnqn = nvme(a)?.host_nqn.clone();
    w.lab
        .initiator
        .run(&format!("nvme connect -t rdma -a 10.77.1.1 -s 4422 -n {nqn} --hostnqn={hostnqn}"))?;
    let path = orlop_tests::Path { device: w.lab.initiator.device(nvme(a)?.uuid, Duration::from_secs(30))? };
    let sum = w.lab.initiator.write_random(&path, 4)?;
    ensure!(w.lab.initiator.checksum(&path, 4)? == sum, "other bytes came back");
    Ok(())
}
