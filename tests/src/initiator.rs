//! The initiator: a Linux machine with nvme-cli, as any worker node is.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use orlop_api::{Attachment, Nqn, NvmeAccess};
use orlop_image::Guest;
use uuid::Uuid;

use crate::lab::SHELL;

/// What NVMe takes to reach a volume.
pub fn nvme(a: &Attachment) -> Result<&NvmeAccess> {
    a.nvme().with_context(|| format!("volume {} is not reached by NVMe: {a:?}", a.volume))
}

/// A guest that connects to targets. It can play several hosts: each connection names its own.
pub struct Initiator {
    /// The guest.
    pub guest: Guest,
    addresses: Vec<Ipv4Addr>,
}

/// A connected volume.
#[derive(Debug, Clone)]
pub struct Path {
    /// `/dev/nvme0n1`.
    pub device: String,
}

impl Initiator {
    /// `addresses`: the appliance's, on the storage networks.
    pub fn new(guest: Guest, addresses: Vec<Ipv4Addr>) -> Self {
        Self { guest, addresses }
    }

    /// The NQN of a host that this guest plays. Each has a host id of its own, as the standard asks.
    pub fn nqn(host: u8) -> Result<Nqn> {
        Ok(format!("nqn.2014-08.org.nvmexpress:uuid:{}", Self::host_id(host)).parse()?)
    }

    /// The IQN of a host that this guest plays.
    pub fn iqn(host: u8) -> String {
        format!("iqn.1993-08.org.debian:01:{host:012}")
    }

    fn host_id(host: u8) -> Uuid {
        Uuid::from_u128(0x0190_c0de_0000_7000_8000_0000_0000_0000 | u128::from(host))
    }

    /// Runs a command.
    pub fn run(&mut self, command: &str) -> Result<String> {
        self.guest.shell_ok(command, SHELL)
    }

    /// Connects to a volume over the first `paths` storage networks, as a host, and finds its device by
    /// the identity that the attachment promises.
    pub fn connect(&mut self, a: &Attachment, host: u8, paths: usize) -> Result<Path> {
        for address in self.addresses.clone().into_iter().take(paths) {
            let served = nvme(a)?.portals.iter().find(|p| p.address == address.to_string());
            let portal =
                served.with_context(|| format!("{address} is not among the portals of {a:?}"))?.clone();
            self.connect_to(nvme(a)?.nqn.as_str(), &portal.address, portal.port, host)?;
        }
        let device = self.device(nvme(a)?.uuid, Duration::from_secs(20))?;
        let nguid = self.run(&format!("tr -d - </sys/block/{}/nguid", device.trim_start_matches("/dev/")))?;
        ensure!(
            nguid.trim() == nvme(a)?.nguid,
            "the device has NGUID {nguid:?}, the attachment says {}",
            nvme(a)?.nguid
        );
        Ok(Path { device })
    }

    /// `nvme connect` with short times: a test does not wait as long as a datacentre does.
    pub fn connect_to(&mut self, nqn: &str, address: &str, port: u16, host: u8) -> Result<String> {
        self.connect_with(nqn, address, port, host, "")
    }

    /// The same with more options.
    pub fn connect_with(
        &mut self,
        nqn: &str,
        address: &str,
        port: u16,
        host: u8,
        more: &str,
    ) -> Result<String> {
        let (hostnqn, hostid) = (Self::nqn(host)?, Self::host_id(host));
        self.run(&format!(
            "nvme connect -t tcp -a {address} -s {port} -n {nqn} --hostnqn={hostnqn} --hostid={hostid} \
             --reconnect-delay=1 --ctrl-loss-tmo=600 --keep-alive-tmo=5{more}"
        ))
    }

    /// Disconnects from a volume.
    pub fn disconnect(&mut self, a: &Attachment) -> Result<()> {
        self.run(&format!("nvme disconnect -n {}", nvme(a)?.nqn)).map(drop)
    }

    /// The device with a namespace UUID, once it is there. Not the hidden ones of single paths, which have
    /// a `c` in their name and no node.
    pub fn device(&mut self, uuid: Uuid, limit: Duration) -> Result<String> {
        let name = self.run(&format!(
            "for i in $(seq {}); do \
               for d in /sys/block/nvme*; do case ${{d##*/}} in *c*) continue;; esac; [ \"$(cat $d/uuid 2>/dev/null)\" = {uuid} ] && basename $d && exit; done; \
               sleep 0.1; \
             done; echo no device with UUID {uuid}; exit 1",
            limit.as_millis() / 100
        ))?;
        Ok(format!("/dev/{}", name.trim()))
    }

    /// Size of a device in bytes, as the initiator sees it.
    pub fn size(&mut self, path: &Path) -> Result<u64> {
        Ok(self.run(&format!("blockdev --getsize64 {}", path.device))?.trim().parse()?)
    }

    /// Writes `mib` MiB of new bytes at the start and returns their sum. Durable when this returns.
    pub fn write_random(&mut self, path: &Path, mib: u32) -> Result<String> {
        self.stream(&format!("fill {} 0 {mib}", path.device))
    }

    /// The sum of the first `mib` MiB as they are on the target, past the page cache.
    pub fn checksum(&mut self, path: &Path, mib: u32) -> Result<String> {
        self.stream(&format!("sum {} 0 {mib}", path.device))
    }

    /// Runs `bin/stream.rs` to its end.
    fn stream(&mut self, arguments: &str) -> Result<String> {
        let payload = self.guest.mount_payload()?.to_string();
        Ok(self.run(&format!("{payload}/stream {arguments}"))?.trim().to_string())
    }

    /// Starts the acknowledged stream of writes behind the first `offset` bytes of a device; see
    /// `bin/stream.rs`. It runs until it has written everything or fails.
    pub fn start_stream(&mut self, name: &str, path: &Path, offset: u64, records: u64) -> Result<()> {
        self.start(name, path, offset, records, "")
    }

    /// As `start_stream`, but no record is flushed: each must be durable once it is acknowledged.
    pub fn start_unflushed_stream(
        &mut self,
        name: &str,
        path: &Path,
        offset: u64,
        records: u64,
    ) -> Result<()> {
        self.start(name, path, offset, records, " unflushed")
    }

    /// As `start_unflushed_stream`, but no faster than `start_stream`.
    pub fn start_slow_unflushed_stream(
        &mut self,
        name: &str,
        path: &Path,
        offset: u64,
        records: u64,
    ) -> Result<()> {
        self.start(name, path, offset, records, " unflushed paused")
    }

    fn start(&mut self, name: &str, path: &Path, offset: u64, records: u64, how: &str) -> Result<()> {
        let payload = self.guest.mount_payload()?;
        self.run(&format!(
            "systemctl reset-failed stream-{name} 2>/dev/null; rm -f /run/{name}.acks; \
             systemd-run --quiet --unit=stream-{name} -p RemainAfterExit=yes \
             {payload}/stream write {} /run/{name}.acks {offset} {records}{how}",
            path.device
        ))?;
        crate::wait_for("the stream's first writes", Duration::from_secs(20), || {
            Ok(self.acknowledged(name)? > 0)
        })
    }

    /// How many records are acknowledged so far.
    pub fn acknowledged(&mut self, name: &str) -> Result<u64> {
        Ok(self.run(&format!("wc -l 2>/dev/null </run/{name}.acks || echo 0"))?.trim().parse()?)
    }

    /// `running`, `done` or `failed`.
    pub fn stream_state(&mut self, name: &str) -> Result<&'static str> {
        let show = self.run(&format!("systemctl show stream-{name} -p ActiveState,SubState,Result"))?;
        Ok(match () {
            () if show.contains("ActiveState=failed") || !show.contains("Result=success") => "failed",
            () if show.contains("SubState=exited") => "done",
            () => "running",
        })
    }

    /// The acknowledgements themselves, for another initiator to verify.
    pub fn acks(&mut self, name: &str) -> Result<String> {
        self.run(&format!("cat /run/{name}.acks"))
    }

    /// Takes over another initiator's acknowledgements.
    pub fn put_acks(&mut self, name: &str, acks: &str) -> Result<()> {
        let count = acks.lines().count();
        // They are the numbers from 0 on; sending each over a console would take longer than the test.
        ensure!(acks.lines().enumerate().all(|(n, line)| line == n.to_string()), "not the numbers in order");
        self.run(&format!("seq 0 {} >/run/{name}.acks", count.saturating_sub(1))).map(drop)
    }

    /// Ends what is left of connections to a volume that this host was cut off from.
    pub fn forget(&mut self, a: &Attachment) -> Result<()> {
        self.run(&format!("nvme disconnect -n {} || true", nvme(a)?.nqn)).map(drop)
    }

    /// Ends the stream where it is.
    pub fn stop_stream(&mut self, name: &str) -> Result<()> {
        self.run(&format!(
            "systemctl stop stream-{name} 2>/dev/null; systemctl reset-failed stream-{name} 2>/dev/null; true"
        ))
        .map(drop)
    }

    /// Reads back every acknowledged record. How many there were.
    pub fn verify_stream(&mut self, name: &str, path: &Path, offset: u64) -> Result<u64> {
        self.verify_records(name, path, offset, 0, &[])
    }

    /// The same for the records from number `from` on, but for some.
    pub fn verify_records(
        &mut self,
        name: &str,
        path: &Path,
        offset: u64,
        from: u64,
        except: &[u64],
    ) -> Result<u64> {
        let except: String = except.iter().map(|n| format!(" {n}")).collect();
        Ok(self
            .stream(&format!("verify {} /run/{name}.acks {offset} {from}{except}", path.device))?
            .parse()?)
    }
}
