//! A real appliance in QEMU, with a ZFS mirror, XFS and LVM pools, and an initiator that writes to a volume of each pool all the
//! while: what it wrote and was told is durable must be there after whatever happened.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use orlop_api::client::Client;
use orlop_api::{
    Attachment, ByteSize, Filesystem, HostPut, PoolCreate, PoolHealthState, PoolKind, PoolLayout, PoolName,
    Provisioning, VolumeCreate, VolumeRef,
};
use tokio::runtime::Runtime;

use super::check::Shown;
use super::client::host_name;
use super::machine::Machine;
use super::plan::{Fault, HOSTS};
use super::record::Kind;
use super::wire::Wire;
use crate::{Initiator, Lab, LabOptions, instrumented, wait_for};

const ZFS: &str = "tank";
const XFS: &str = "files";
const LVM: &str = "thin";
const PLAIN: Kind = Kind { clones_depend: false, properties: false };
const POOLS: [(&str, Kind); 3] =
    [(ZFS, Kind { clones_depend: true, properties: true }), (XFS, PLAIN), (LVM, PLAIN)];

/// The host that writes. Clients' hosts have higher numbers.
const WRITER: u8 = 1;
const FIRST_HOST: u8 = 20;
const MIB: u64 = 1 << 20;
/// A written volume: bytes with a sum at its start, then the stream of records.
const SUMMED: u32 = 4;
const STREAM_AT: u64 = 16 * MIB;
const WRITTEN: u64 = 128 * MIB;
/// Records of 4 KiB that there is room for.
const RECORDS: u64 = (WRITTEN - STREAM_AT) / 4096;
/// How long the initiator may take to come back.
const RECONNECTS: Duration = Duration::from_secs(120);

/// Where systemd is told more about the daemon's unit, until the next boot.
const DROP_IN: &str = "/run/systemd/system/orlopd.service.d";

/// See the module.
pub struct Appliance {
    dir: PathBuf,
    seed: u64,
    runtime: Runtime,
    wire: Wire,
    near: Client,
    lab: Lab,
    written: Vec<Written>,
    descriptors: Option<u64>,
    /// Whether the daemon is the one with failpoints: until the next boot.
    armed: bool,
}

/// A volume that the initiator writes to.
struct Written {
    name: String,
    attachment: Attachment,
    path: crate::Path,
    sum: String,
    /// Whether what was acknowledged is durable, flushed or not. Else what was flushed is.
    durable: bool,
    /// Records that were under way at a power cut: where a flush behind a write is answered after the cut by a target that has
    /// nothing to flush any more, the write may be lost. See docs/adr/0006-acknowledged-is-durable.md.
    under_way: Vec<u64>,
    /// How many records were looked at.
    verified: u64,
}

impl Appliance {
    /// Boots the guests and makes pools, volumes and writers. Disks and logs are in `dir`. What disks lose at a power cut
    /// follows from `seed`.
    pub fn start(dir: &Path, seed: u64, progress: impl FnMut(&str)) -> Result<Self> {
        let lab = boot(dir, seed, progress)?;
        let runtime = Runtime::new()?;
        let (wire, near) = Wire::tcp(&runtime, lab.appliance.port(8443).context("the API has no port")?)?;
        let near = lab.client_at(near)?;
        let mut appliance = Self {
            dir: dir.to_path_buf(),
            seed,
            runtime,
            wire,
            near,
            lab,
            written: Vec::new(),
            descriptors: None,
            armed: false,
        };
        appliance.begin()?;
        Ok(appliance)
    }

    fn begin(&mut self) -> Result<()> {
        let disk = |n: &str| format!("/dev/disk/by-id/virtio-{n}");
        let plain = |name: &str, kind| -> Result<PoolCreate> { Ok(PoolCreate::new(name.parse()?, kind)) };
        let pools = [
            PoolCreate {
                disks: vec![disk("tank0"), disk("tank1")],
                layout: Some(PoolLayout::Mirror),
                ..plain(ZFS, PoolKind::Zfs)?
            },
            PoolCreate {
                disks: vec![disk("files0")],
                filesystem: Some(Filesystem::Xfs),
                ..plain(XFS, PoolKind::File)?
            },
            PoolCreate { disks: vec![disk("thin0")], ..plain(LVM, PoolKind::Lvm)? },
        ];
        for ask in &pools {
            self.lab.wait(self.lab.api.create_pool(ask))?;
        }
        let host = host_name(WRITER + FIRST_HOST - 1).parse()?;
        self.lab.wait(self.lab.api.put_host(&host, &HostPut::nvme(Initiator::nqn(WRITER)?)))?;
        for (pool, _) in POOLS {
            let name = format!("written-{pool}");
            // With its space taken, so that a full pool is no trouble of this volume.
            let provisioning = if pool == XFS { Provisioning::Thick } else { Provisioning::Thin };
            let plain = VolumeCreate::new(name.parse()?, pool.parse()?, ByteSize(WRITTEN));
            let volume =
                self.lab.wait(self.lab.api.create_volume(&VolumeCreate { provisioning, ..plain }))?;
            let attachment = self.lab.wait(self.lab.api.attach(&VolumeRef::Id(volume.id), &host))?;
            let path = self.lab.initiator.connect(&attachment, WRITER, 1)?;
            let sum = self.lab.initiator.write_random(&path, SUMMED)?;
            let durable = pool != LVM;
            start_writer(&mut self.lab.initiator, &name, &path, durable)?;
            let (under_way, verified) = (Vec::new(), 0);
            self.written.push(Written { name, attachment, path, sum, durable, under_way, verified });
        }
        Ok(())
    }

    fn shell(&mut self, command: &str) -> Result<String> {
        self.lab.on_appliance(command)
    }

    /// The daemon with failpoints takes the place of the image's, to die where it is told. Told again, it is only started anew.
    fn arm(&mut self, place: &str) -> Result<()> {
        let payload = self.lab.appliance.mount_payload()?;
        let unit = match self.armed {
            true => String::new(),
            false => format!(
                "mkdir -p {DROP_IN} && printf '%s\\n' '[Service]' ExecStart= ExecStart={payload}/orlopd \
                 EnvironmentFile=-/run/failpoint RestartSec=100ms >{DROP_IN}/failpoint.conf && \
                 systemctl daemon-reload && "
            ),
        };
        self.armed = true;
        self.shell(&format!("{unit}echo ORLOP_FAILPOINT={place} >/run/failpoint")).map(drop)
    }

    /// Waits until systemd has started the daemon `deaths` times, the last time with the failpoint taken away.
    fn die_at_start(&mut self, deaths: u64) -> Result<()> {
        wait_for("the daemon to die at its start", Duration::from_secs(60), || {
            Ok(self.restarts()? >= deaths)
        })?;
        self.shell("echo ORLOP_FAILPOINT=none >/run/failpoint")?;
        self.lab.wait_api()?;
        self.shell("systemctl reset-failed orlopd").map(drop)
    }

    fn restarts(&mut self) -> Result<u64> {
        Ok(self.shell("systemctl show orlopd -p NRestarts --value")?.trim().parse()?)
    }

    /// The writers went on by themselves, and all that was acknowledged is there.
    fn look_at_the_written(&mut self, deep: bool, wrong: &mut Vec<String>) -> Result<()> {
        for w in &mut self.written {
            let initiator = &mut self.lab.initiator;
            if initiator.stream_state(&w.name)? == "done" {
                // It has filled its volume: from the start again, after a look at all of it.
                verify(initiator, w, true, wrong)?;
                initiator.stop_stream(&w.name)?;
                start_writer(initiator, &w.name, &w.path, w.durable)?;
                (w.under_way, w.verified) = (Vec::new(), 0);
                continue;
            }
            let before = initiator.acknowledged(&w.name)?;
            let goes_on = wait_for("the initiator to write on", RECONNECTS, || {
                let state = initiator.stream_state(&w.name)?;
                ensure!(state != "failed", "a write failed");
                Ok(state == "done" || initiator.acknowledged(&w.name)? > before)
            });
            if let Err(e) = goes_on {
                wrong.push(format!("{}: {e:#}", w.name));
                continue;
            }
            verify(initiator, w, deep, wrong)?;
            if deep && initiator.checksum(&w.path, SUMMED)? != w.sum {
                wrong.push(format!("{}: the bytes written first are others now", w.name));
            }
        }
        Ok(())
    }

    /// What the kernel serves, to whom.
    fn look_at_the_kernel(&mut self, shown: &Shown, wrong: &mut Vec<String>) -> Result<()> {
        let out = self.shell(
            "cd /sys/kernel/config; for s in nvmet/subsystems/*; do [ -d $s ] && \
               echo served ${s##*/} $(ls $s/allowed_hosts) any=$(cat $s/attr_allow_any_host); done; \
             for t in target/iscsi/iqn*; do [ -d $t ] && \
               echo served ${t##*/} $(ls $t/tpgt_1/acls) any=$(cat $t/tpgt_1/attrib/generate_node_acls); done; \
             losetup -nO BACK-FILE | sed 's/^/loop /'; \
             zfs list -H -o name -t volume -r tank | sed 's/^/backing /'; \
             ls /var/lib/orlop/pools/files/volumes | sed 's/^/backing /'; \
             lvs --noheadings -o lv_name | sed 's/^/backing /'; \
             echo descriptors $(ls /proc/$(systemctl show orlopd -p MainPID --value)/fd | wc -l); \
             journalctl -q -b -u orlopd --no-pager -o cat | grep -aE '^panic( |$)' | sort -u | sed 's/^/panic /'; \
             systemctl --failed --no-legend | sed 's/^/failed /'",
        )?;
        let lines = |word: &str| -> Vec<String> {
            let of = |l: &str| l.strip_prefix(word).map(|rest| rest.trim().to_string());
            out.lines().filter_map(of).collect()
        };
        self.compare_served(shown, &lines("served "), wrong)?;
        let mut ids: BTreeSet<String> = shown.ids().iter().map(ToString::to_string).collect();
        ids.extend(self.written.iter().map(|w| w.attachment.volume.to_string()));
        let backings = lines("backing ");
        for id in ids.iter().filter(|id| !backings.iter().any(|b| b.contains(*id))) {
            wrong.push(format!("volume {id} has no backing"));
        }
        let named = |text: &str| ids.iter().any(|id| text.contains(id));
        // What is not named by an id is a pool's own: its thin pool, its directory.
        for backing in backings.iter().filter(|b| is_of_a_volume(b) && !named(b)) {
            wrong.push(format!("backing {backing} belongs to no volume"));
        }
        for file in lines("loop ").iter().filter(|f| !named(f)) {
            wrong.push(format!("loop device over {file}, which belongs to no volume"));
        }
        wrong.extend(lines("failed ").iter().map(|unit| format!("a unit has failed: {unit}")));
        wrong.extend(lines("panic ").iter().map(|line| format!("the daemon: {line}")));
        let open: u64 = lines("descriptors ").first().context("no descriptors")?.parse()?;
        let first = *self.descriptors.get_or_insert(open);
        if open > first + 24 {
            wrong.push(format!("the daemon has {open} descriptors open, {first} after the first round"));
        }
        Ok(())
    }

    fn compare_served(&self, shown: &Shown, lines: &[String], wrong: &mut Vec<String>) -> Result<()> {
        let mut names = BTreeMap::new();
        for number in 0..HOSTS {
            let host = self.host(number)?;
            let both = [host.nqn.map(|n| n.to_string()), host.iqn.map(|n| n.to_string())];
            names.insert(host_name(number), both);
        }
        let mut due: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (target, hosts) in shown.attached() {
            let iscsi = usize::from(target.starts_with("iqn."));
            let of = |host: &String| names.get(host).and_then(|n| n[iscsi].clone()).unwrap_or_default();
            due.insert(target, hosts.iter().map(of).collect());
        }
        for w in &self.written {
            let nqn = crate::nvme(&w.attachment)?.nqn.to_string();
            due.insert(nqn, [Initiator::nqn(WRITER)?.to_string()].into());
        }
        let mut have = BTreeMap::new();
        for line in lines {
            let mut words = line.split_whitespace().map(str::to_string);
            let target = words.next().context("a target without a name")?;
            let (any, hosts): (BTreeSet<_>, BTreeSet<_>) = words.partition(|w| w.starts_with("any="));
            if !any.contains("any=0") {
                wrong.push(format!("{target} lets anybody in: {any:?}"));
            }
            have.insert(target, hosts);
        }
        for (target, hosts) in &due {
            match have.get(target) {
                None => wrong.push(format!("{target} is not served")),
                Some(h) if h != hosts => wrong.push(format!("{target} lets in {h:?} and should {hosts:?}")),
                Some(_) => {}
            }
        }
        for (target, hosts) in have.iter().filter(|(t, _)| !due.contains_key(*t)) {
            wrong.push(format!("{target} is served, to {hosts:?}, and nobody is attached"));
        }
        Ok(())
    }

    /// A start has nothing to do where everything is as it should be.
    fn look_at_a_second_convergence(&mut self, wrong: &mut Vec<String>) -> Result<()> {
        self.shell("echo ORLOP_FAILPOINT=none >/run/failpoint; systemctl restart orlopd")?;
        self.lab.wait_api()?;
        let log = self.shell("journalctl _SYSTEMD_INVOCATION_ID=$(systemctl show orlopd -p InvocationID --value) --no-pager -o cat")?;
        if let Some(line) = log.lines().find(|l| l.contains("the target was restored")) {
            wrong.push(format!("a second start had something to do: {line}"));
        }
        Ok(())
    }
}

/// Writes that are not flushed where each must be durable; else each is flushed.
fn start_writer(initiator: &mut Initiator, name: &str, path: &crate::Path, durable: bool) -> Result<()> {
    match durable {
        true => initiator.start_slow_unflushed_stream(name, path, STREAM_AT, RECORDS),
        false => initiator.start_stream(name, path, STREAM_AT, RECORDS),
    }
}

/// Reads back the records that a writer's device acknowledged: `all`, or those since the last look.
fn verify(initiator: &mut Initiator, w: &mut Written, all: bool, wrong: &mut Vec<String>) -> Result<()> {
    let from = if all { 0 } else { w.verified };
    match initiator.verify_records(&w.name, &w.path, STREAM_AT, from, &w.under_way) {
        // The last ones before a cut are looked at again after it.
        Ok(count) => w.verified = (from + count).saturating_sub(64),
        Err(e) => wrong.push(format!("{}: an acknowledged record is lost: {e:#}", w.name)),
    }
    Ok(())
}

/// Whether a name has a UUID in it.
fn is_of_a_volume(name: &str) -> bool {
    let bytes = name.as_bytes();
    bytes.windows(36).any(|w| {
        w.iter()
            .enumerate()
            .all(|(n, b)| if [8, 13, 18, 23].contains(&n) { *b == b'-' } else { b.is_ascii_hexdigit() })
    })
}

fn boot(dir: &Path, seed: u64, progress: impl FnMut(&str)) -> Result<Lab> {
    let mut options = LabOptions::new(dir);
    options.disks = ["tank0", "tank1", "files0", "thin0"].map(|s| (s.into(), 4 << 30)).into();
    options.links = 1;
    options.volatile = Some(seed);
    for name in ["orlopd", "stream"] {
        options.payload.push(instrumented(name)?);
    }
    Lab::start(&options, progress)
}

impl Machine for Appliance {
    fn faults(&self) -> Vec<Fault> {
        use Fault::*;
        vec![
            PowerCut,
            PowerCut,
            PowerCut,
            KillAt("", ""),
            KillAt("", ""),
            Kill,
            Restart,
            CutConnections,
            LostJournal,
            LostJournalAndKilled("settled"),
            PulledDisk,
            FullPool,
            SuspendedDevice,
            Clock(90),
            Clock(-90),
            StorageNetwork,
            Nothing,
        ]
    }

    fn pools(&self) -> Vec<(PoolName, Kind)> {
        // Literals that follow the rule.
        #[allow(clippy::expect_used)]
        POOLS.map(|(name, kind)| (name.parse().expect("a literal"), kind)).into()
    }

    fn host(&self, number: u8) -> Result<HostPut> {
        let iqn = format!("iqn.2026-01.com.example:torture-{number}").parse()?;
        Ok(HostPut { nqn: Some(Initiator::nqn(FIRST_HOST + number)?), iqn: Some(iqn), addresses: Vec::new() })
    }

    fn api(&self) -> Client {
        self.near.clone()
    }

    fn api_past_the_wire(&self) -> Client {
        self.lab.api.clone()
    }

    fn prepare(&mut self, fault: Fault) -> Result<()> {
        if let Fault::KillAt(verb, stage) = fault
            && verb != "recover"
        {
            self.arm(&format!("{verb}.{stage}"))?;
            self.shell("systemctl restart orlopd")?;
            self.lab.wait_api()?;
            // Who starts after its death is not to die there too.
            self.shell("echo ORLOP_FAILPOINT=none >/run/failpoint; systemctl reset-failed orlopd")?;
        }
        Ok(())
    }

    fn strike(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::PowerCut => {
                self.armed = false;
                self.descriptors = None;
                self.lab.appliance.power_cut()?;
                for w in self.written.iter_mut().filter(|w| !w.durable) {
                    // The one whose acknowledgement is not there yet, or is on its way, and the one behind it.
                    let next = self.lab.initiator.acknowledged(&w.name)?;
                    w.under_way.extend([next, next + 1]);
                }
                Ok(())
            }
            Fault::Kill => self.shell("systemctl kill -s KILL orlopd").map(drop),
            Fault::KillAt("recover", stage) => {
                self.arm(&format!("recover.{stage}"))?;
                self.shell("systemctl reset-failed orlopd; systemctl kill -s KILL orlopd").map(drop)
            }
            Fault::Restart => self.shell("systemctl stop orlopd").map(drop),
            Fault::CutConnections => {
                self.wire.cut(true);
                Ok(())
            }
            Fault::PulledDisk => self
                .shell(
                    "d=$(basename $(readlink -f /dev/disk/by-id/virtio-tank1)) && \
                     echo 1 >$(readlink -f /sys/block/$d/device/..)/remove",
                )
                .map(drop),
            Fault::FullPool => self
                .shell(
                    "p=/var/lib/orlop/pools/files; \
                     fallocate -l $(( ($(stat -f -c '%a*%S' $p)) - (8 << 20) )) $p/full",
                )
                .map(drop),
            Fault::SuspendedDevice => {
                let spared = &self.written[2].attachment.volume.to_string();
                self.shell(&format!(
                    "d=$(dmsetup ls | awk '/^orlop-/ {{ print $1 }}' | grep -v {spared} | head -n 1); \
                     [ -z \"$d\" ] || dmsetup suspend --noflush --nolockfs $d"
                ))
                .map(drop)
            }
            Fault::Clock(minutes) => {
                self.shell(&format!("date -s @$(($(date +%s) + {minutes} * 60)) >/dev/null")).map(drop)
            }
            Fault::StorageNetwork => self.lab.appliance.set_link("storage1", false),
            Fault::Nothing | Fault::KillAt(..) | Fault::LostJournal | Fault::LostJournalAndKilled(_) => {
                Ok(())
            }
        }
    }

    fn mend(&mut self, fault: Fault) -> Result<bool> {
        self.wire.cut(false);
        let mut happened = true;
        match fault {
            Fault::PowerCut => {
                self.lab.appliance.power_on()?;
                self.lab.wait_boot(|_| {})?;
            }
            Fault::Restart => drop(self.shell("systemctl start orlopd")?),
            Fault::KillAt("recover", _) => {
                // One death by our hand, one at the failpoint.
                self.die_at_start(2)?;
            }
            Fault::KillAt(..) => {
                // systemd needs a moment to notice a death.
                std::thread::sleep(Duration::from_millis(500));
                happened = self.restarts()? > 0;
                if !happened {
                    // The one that is still armed is not to die in a later round.
                    self.shell("systemctl restart orlopd")?;
                }
            }
            Fault::LostJournal | Fault::LostJournalAndKilled(_) => {
                self.shell("systemctl stop orlopd && rm -rf /var/lib/orlop/journal")?;
                match fault {
                    Fault::LostJournalAndKilled(stage) => {
                        self.arm(&format!("recover.{stage}"))?;
                        self.shell("systemctl start --no-block orlopd")?;
                        self.die_at_start(1)?;
                    }
                    _ => drop(self.shell("systemctl start orlopd")?),
                }
            }
            Fault::PulledDisk => {
                self.shell("echo 1 >/sys/bus/pci/rescan; udevadm settle")?;
                let (lab, pool) = (&self.lab, ZFS.parse()?);
                wait_for("the mirror to be whole again", Duration::from_secs(120), || {
                    let health = lab.wait(lab.api.pool(&pool))?.health;
                    Ok(health.is_some_and(|h| h.state == PoolHealthState::Ok))
                })?;
            }
            Fault::FullPool => drop(self.shell("rm -f /var/lib/orlop/pools/files/full")?),
            Fault::SuspendedDevice => {
                self.shell(
                    "for d in $(dmsetup ls | awk '/^orlop-/ { print $1 }'); do dmsetup resume $d; done",
                )?;
            }
            Fault::Clock(minutes) => {
                self.shell(&format!("date -s @$(($(date +%s) - {minutes} * 60)) >/dev/null"))?;
            }
            Fault::StorageNetwork => self.lab.appliance.set_link("storage1", true)?,
            Fault::Kill | Fault::CutConnections | Fault::Nothing => {}
        }
        self.lab.wait_api()?;
        Ok(happened)
    }

    fn own_volumes(&self) -> BTreeSet<String> {
        self.written.iter().map(|w| w.name.clone()).collect()
    }

    fn look(&mut self, shown: &Shown, deep: bool) -> Result<Vec<String>> {
        let mut wrong = Vec::new();
        if deep {
            self.look_at_a_second_convergence(&mut wrong)?;
        }
        self.look_at_the_kernel(shown, &mut wrong)?;
        self.look_at_the_written(deep, &mut wrong)?;
        Ok(wrong)
    }

    fn renew(&mut self) -> Result<()> {
        self.written.clear();
        self.descriptors = None;
        self.armed = false;
        self.lab.appliance.power_cut()?;
        self.lab.initiator.guest.power_cut()?;
        // Another directory: this one is what a person looks at after a failure.
        let dir = self.dir.join("again");
        self.lab = boot(&dir, self.seed, |_| {})?;
        let Some(port) = self.lab.appliance.port(8443) else { bail!("the API has no port") };
        let (wire, near) = Wire::tcp(&self.runtime, port)?;
        (self.wire, self.near) = (wire, self.lab.client_at(near)?);
        self.begin()
    }

    fn lost_writes(&self) -> u64 {
        self.lab.appliance.lost_writes()
    }

    fn log(&mut self) -> String {
        self.shell("journalctl -u orlopd -n 40 --no-pager -o cat").unwrap_or_else(|e| format!("{e:#}"))
    }
}
