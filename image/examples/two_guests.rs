//! An appliance and an initiator on one cable: a zvol behind nvmet, written,
//! read back, and read again after a power cut. By hand, without `orlopd`'s
//! help: it shows that images and harness work, and how the harness is used.

use anyhow::{Result, ensure};
use orlop_image::{Artifacts, GuestBuilder, Link, Role};
use std::time::{Duration, Instant};

const NQN: &str = "nqn.2026-11.dev.orlop:two-guests";
const SECONDS: fn(u64) -> Duration = Duration::from_secs;

/// Loads the pool if there is one, makes it if not, and exports its volume.
const EXPORT: &str = r#"
zpool list tank >/dev/null 2>&1 || zpool import -d /dev/disk/by-id -o cachefile=none tank 2>/dev/null ||
    zpool create -o cachefile=none -O mountpoint=none tank /dev/disk/by-id/virtio-data0
zfs list tank/v >/dev/null 2>&1 || zfs create -s -V 256M -o volmode=dev tank/v
# The node appears before it can be opened (ENXIO).
for i in $(seq 100); do head -c 1 /dev/zd0 >/dev/null 2>&1 && break; sleep 0.1; done
cd /sys/kernel/config/nvmet
mkdir subsystems/$NQN subsystems/$NQN/namespaces/1 ports/1
# Both are random by default, and an initiator that finds another identity
# behind a reconnect drops the device.
echo orlop-two-guests > subsystems/$NQN/attr_serial
echo 0197a5c0-0000-7000-8000-000000000001 > subsystems/$NQN/namespaces/1/device_uuid
echo 1 > subsystems/$NQN/attr_allow_any_host
echo -n /dev/zd0 > subsystems/$NQN/namespaces/1/device_path
echo 1 > subsystems/$NQN/namespaces/1/enable
echo ipv4 > ports/1/addr_adrfam; echo tcp > ports/1/addr_trtype
echo $ADDRESS > ports/1/addr_traddr; echo 4420 > ports/1/addr_trsvcid
ln -s /sys/kernel/config/nvmet/subsystems/$NQN ports/1/subsystems/$NQN
"#;

fn main() -> Result<()> {
    let artifacts = Artifacts::locate()?;
    let dir = tempfile::tempdir()?;
    let payload = dir.path().join("payload");
    std::fs::create_dir(&payload)?;
    std::fs::write(payload.join("hello"), "from the host\n")?;
    let (near, far) = Link::pair(1)?;
    let address = near.address();
    let cable = near.name();
    let mut appliance = GuestBuilder::new(Role::Appliance, "appliance", dir.path())
        .data_disk("data0", 4 << 30)
        .forward(8443)
        .link(near)
        .payload(&payload)
        .start(&artifacts)?;
    let mut initiator =
        GuestBuilder::new(Role::Initiator, "initiator", dir.path()).link(far).start(&artifacts)?;
    println!("appliance ready after {:.1?}", appliance.wait_ready(SECONDS(120))?);
    println!("initiator ready after {:.1?}", initiator.wait_ready(SECONDS(120))?);

    let mounted = appliance.mount_payload()?;
    ensure!(appliance.shell_ok(&format!("cat {mounted}/hello"), SECONDS(10))? == "from the host\n");
    let machine_id = appliance.shell_ok("cat /etc/machine-id; hostid", SECONDS(10))?;

    let export = format!("set -e; NQN={NQN} ADDRESS={address}\n{EXPORT}");
    let started = Instant::now();
    // Addresses come when udev has seen the network device; a port needs them.
    let wait =
        format!("for i in $(seq 300); do ip -4 -br a | grep -q {address} && exit; sleep 0.1; done; exit 1");
    appliance.shell_ok(&wait, SECONDS(60))?;
    println!("storage address present {:.1?} later", started.elapsed());
    appliance.shell_ok(&export, SECONDS(60))?;
    let connect = format!("nvme connect -t tcp -a {address} -s 4420 -n {NQN} && udevadm settle -t 10");
    initiator.shell_ok(&connect, SECONDS(30))?;
    let write =
        "head -c 8M /dev/urandom >/tmp/w; dd if=/tmp/w of=/dev/nvme0n1 bs=1M oflag=direct conv=nocreat,fsync";
    initiator.shell_ok(write, SECONDS(30))?;
    initiator.shell_ok("cmp -n 8388608 /tmp/w /dev/nvme0n1", SECONDS(30))?;
    println!("written over NVMe/TCP and read back");

    appliance.set_link(&cable, false)?;
    appliance.set_link(&cable, true)?;
    appliance.power_cut()?;
    appliance.power_on()?;
    println!("after the power cut ready after {:.1?}", appliance.wait_ready(SECONDS(120))?);
    ensure!(
        appliance.shell_ok("cat /etc/machine-id; hostid", SECONDS(10))? == machine_id,
        "another identity"
    );
    appliance.shell_ok(&wait, SECONDS(60))?;
    appliance.shell_ok(&export, SECONDS(60))?;
    let back =
        "for i in $(seq 60); do [ $(cat /sys/class/nvme/nvme0/state) = live ] && break; sleep 0.5; done
        dd if=/dev/nvme0n1 bs=1M count=8 iflag=direct status=none | cmp - /tmp/w";
    if let Err(error) = initiator.shell_ok(back, SECONDS(60)) {
        let show =
            "dmesg | tail -n 30; ip -br a; ip neigh; ping -c 2 -W 2 10.77.1.1; cat /sys/class/nvme/*/state";
        println!("{}", initiator.shell(show, SECONDS(20))?.stdout);
        println!("{}", appliance.shell("dmesg | tail -n 20; ip -br a; ss -tan", SECONDS(20))?.stdout);
        return Err(error);
    }
    println!("the initiator reconnected and reads its bytes");
    let started = Instant::now();
    initiator.shutdown(SECONDS(60))?;
    appliance.shutdown(SECONDS(60))?;
    println!("both shut down in {:.1?}", started.elapsed());
    Ok(())
}
