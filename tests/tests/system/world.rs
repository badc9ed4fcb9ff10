//! The two guests and what scenarios know of them.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use orlop_api::{
    Attachment, ByteSize, ErrorKind, Filesystem, HostName, HostPut, Nqn, PoolCreate, PoolKind, Problem,
    Volume, VolumeCreate, VolumeRef,
};
use orlop_tests::{Initiator, Lab, LabOptions, instrumented};

use crate::guests::Contracts;

/// The name of the ZFS pool and of the file pools.
pub const ZFS: &str = "tank";
pub const XFS: &str = "xfs";
pub const BTRFS: &str = "btrfs";
pub const LVM: &str = "lvm";

/// The default portal, and one with TLS beside it.
const CONFIG: &str = "[nvmet]\nportals = [\"0.0.0.0:4420\", { listen = \"0.0.0.0:4421\", tls = true }]\n";

/// Where systemd is told more about the daemon's unit, until the next boot.
const DROP_IN: &str = "/run/systemd/system/orlopd.service.d";

pub struct World {
    pub lab: Lab,
    pub contracts: Contracts,
}

/// The subsystem of a volume.
pub fn nqn(volume: &Volume) -> Result<&Nqn> {
    volume.nqn.as_ref().with_context(|| format!("volume {} is not reached by NVMe", volume.name))
}

impl World {
    /// Boots the guests, and starts the contract suites in theirs if they are wanted.
    pub fn start(contracts: bool) -> Result<Self> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/system");
        let mut options = LabOptions::new(&dir);
        // Pools of each kind, and one that is not blank.
        options.disks = ["tank0", "xfs0", "btrfs0", "lvm0", "used0"].map(|s| (s.into(), 3 << 30)).into();
        options.disks.extend((0..5).map(|n| (format!("safe{n}"), 1 << 30)));
        options.initiators = 2;
        // In the place of what the image has: with SELinux, which knows no labels before a scenario brings them.
        options.second = vec!["lsm=lockdown,yama,landlock,selinux".into()];
        options.config = CONFIG.into();
        options.forward = Some(orlop_tests::cluster::PORT);
        for name in ["orlopd", "stream", "orlop-csi"] {
            options.payload.push(instrumented(name)?);
        }
        let lab = Lab::start(&options, |_| {})?;
        let contracts =
            if contracts { Contracts::start(dir.join("contracts")) } else { Contracts::default() };
        for ask in [Self::zfs_pool(), Self::xfs_pool(), Self::btrfs_pool()] {
            lab.wait(lab.api.create_pool(&ask))?;
        }
        Ok(Self { lab, contracts })
    }

    pub fn api<T>(&self, call: impl Future<Output = T>) -> T {
        self.lab.wait(call)
    }

    pub fn zfs_pool() -> PoolCreate {
        pool(ZFS, PoolKind::Zfs, "tank0", None)
    }

    pub fn xfs_pool() -> PoolCreate {
        pool(XFS, PoolKind::File, "xfs0", Some(Filesystem::Xfs))
    }

    pub fn btrfs_pool() -> PoolCreate {
        pool(BTRFS, PoolKind::File, "btrfs0", Some(Filesystem::Btrfs))
    }

    pub fn lvm_pool() -> PoolCreate {
        Self::lvm_pool_on("lvm0")
    }

    pub fn lvm_pool_on(disk: &str) -> PoolCreate {
        pool(LVM, PoolKind::Lvm, disk, None)
    }

    /// Makes a volume, or finds it.
    pub fn volume(&self, name: &str, pool: &str, mib: u64) -> Result<Volume> {
        Ok(self.api(self.lab.api.create_volume(&ask(name, pool, mib)))?)
    }

    /// Makes a host that the initiator can play, or finds it.
    pub fn host(&self, number: u8) -> Result<HostName> {
        let name: HostName = format!("worker-{number}").parse()?;
        self.api(self.lab.api.put_host(&name, &HostPut::nvme(Initiator::nqn(number)?)))?;
        Ok(name)
    }

    pub fn attach(&self, volume: &Volume, host: u8) -> Result<Attachment> {
        let host = self.host(host)?;
        Ok(self.api(self.lab.api.attach(&VolumeRef::Id(volume.id), &host))?)
    }

    /// The same attachment as it is shown now.
    pub fn attach_again(&self, a: &Attachment) -> Result<Attachment> {
        Ok(self.api(self.lab.api.attach(&VolumeRef::Id(a.volume), &a.host))?)
    }

    pub fn detach(&self, volume: &Volume, host: u8) -> Result<()> {
        let host = self.host(host)?;
        Ok(self.api(self.lab.api.detach(&VolumeRef::Id(volume.id), &host))?)
    }

    /// Detaches from everybody and deletes.
    pub fn remove(&self, volume: &Volume) -> Result<()> {
        let id = VolumeRef::Id(volume.id);
        for host in self.api(self.lab.api.volume(&id))?.hosts {
            self.api(self.lab.api.detach(&id, &host))?;
        }
        Ok(self.api(self.lab.api.delete_volume(&id))?)
    }

    /// Starts the daemon again with another configuration than the lab's.
    pub fn reconfigure(&mut self, config: &str) -> Result<()> {
        self.restart(&format!(
            "mkdir -p {DROP_IN} && cat >/run/other.toml <<'END'\n{config}END\n\
             printf '[Service]\\nLoadCredential=orlop.config:/run/other.toml\\n' >{DROP_IN}/90-other.conf"
        ))
    }

    /// Starts it again with the lab's.
    pub fn configure_as_before(&mut self) -> Result<()> {
        self.restart(&format!("rm -f {DROP_IN}/90-other.conf"))
    }

    fn restart(&mut self, first: &str) -> Result<()> {
        self.lab.on_appliance(&format!("{first}\nsystemctl daemon-reload && systemctl restart orlopd"))?;
        self.lab.wait_api()
    }

    /// What the kernel's targets look like and what is exported, and which loop devices there are.
    pub fn kernel(&mut self) -> Result<String> {
        let tree = self.lab.target_tree()?;
        let others = self.lab.on_appliance(
            "losetup -nO BACK-FILE | sort; cd /sys/kernel/config/target && \
             find core iscsi -name '*statistics' -prune -o -print 2>/dev/null | sort; \
             grep -rs . iscsi --include=enable --include=write_protect --include=userid* --include=password* | sort; \
             cat /etc/exports.d/*.exports 2>/dev/null; sort /var/lib/nfs/etab 2>/dev/null; true",
        )?;
        Ok(tree + &others)
    }

    /// Prints what a person would look at first.
    pub fn explain(&mut self) {
        let log =
            self.lab.appliance.shell("journalctl -u orlopd -n 25 --no-pager -o cat", Duration::from_secs(30));
        if let Ok(log) = log {
            println!("---- orlopd:\n{}", log.stdout);
        }
        let nfs = "cd /proc/fs/nfsd; for c in clients/*; do grep -h . $c/info $c/states; done; cat filecache; \
                   cat /proc/net/rpc/nfsd.export/content /proc/net/rpc/nfsd.fh/content /proc/locks; exportfs -v; \
                   grep -l /volumes/ /proc/*/mountinfo | wc -l; ls -l /proc/*/fd /proc/*/cwd /proc/*/root 2>/dev/null | grep /volumes; \
                   grep volumes /proc/self/mountinfo; head -c 2000 /var/lib/nfs/etab";
        if let Ok(log) = self.lab.appliance.shell(nfs, Duration::from_secs(30)) {
            println!("---- nfs:\n{}", log.stdout);
        }
        let disks = "dmesg | grep -iE 'error|btrfs|xfs|loop|device-mapper|read-only|hung|blocked' | tail -n 25; \
                     df -m; losetup -l";
        if let Ok(log) = self.lab.appliance.shell(disks, Duration::from_secs(30)) {
            println!("---- appliance's disks:\n{}", log.stdout);
        }
        // Where the kernel waits for ever: each such thread, and what it waits in.
        let stuck = "for t in /proc/[0-9]*/task/[0-9]*; do \
                       grep -q '^State:.D' $t/status 2>/dev/null || continue; \
                       echo \"$(cat $t/comm): $(awk '{print $2}' $t/stack | head -n 12 | tr '\\n' ' ')\"; \
                     done | head -n 60";
        if let Ok(log) = self.lab.appliance.shell(stuck, Duration::from_secs(30)) {
            println!("---- appliance's threads that can't be ended:\n{}", log.stdout);
        }
        let node = "journalctl -u orlop-csi -n 20 --no-pager -o cat; dmesg | tail -n 15";
        for initiator in std::iter::once(&mut self.lab.initiator).chain(&mut self.lab.others) {
            if let Ok(log) = initiator.guest.shell(node, Duration::from_secs(30)) {
                println!("---- {}:\n{}", initiator.guest.name(), log.stdout);
            }
        }
    }

    /// Ends what a scenario that failed left connected or stopped: later ones would fail with it.
    pub fn let_go(&mut self) {
        // First: a device that hangs holds up everything else.
        let resume = "for d in /sys/block/dm-*/dm; do \
                        [ \"$(cat $d/suspended)\" = 1 ] && dmsetup resume \"$(cat $d/name)\"; \
                      done; systemctl stop hung-detach; true";
        let end = "systemctl stop 'stream-*'; systemctl reset-failed 'stream-*'; nvme disconnect-all; \
                   iscsiadm -m node -u; umount -a -f -l -t nfs,nfs4";
        let limit = Duration::from_secs(120);
        let mut said = vec![self.lab.appliance.shell(resume, limit)];
        said.push(self.lab.initiator.guest.shell(end, limit));
        said.extend(self.lab.others.iter_mut().map(|other| other.guest.shell(end, limit)));
        for e in said.into_iter().filter_map(Result::err) {
            println!("a guest could not let go: {e:#}");
        }
    }
}

fn pool(name: &str, kind: PoolKind, disk: &str, filesystem: Option<Filesystem>) -> PoolCreate {
    #[allow(clippy::expect_used)]
    let plain = PoolCreate::new(name.parse().expect("a literal"), kind);
    PoolCreate { disks: vec![format!("/dev/disk/by-id/virtio-{disk}")], filesystem, ..plain }
}

pub fn ask(name: &str, pool: &str, mib: u64) -> VolumeCreate {
    #[allow(clippy::expect_used)]
    let (name, pool) = (name.parse().expect("a literal"), pool.parse().expect("a literal"));
    VolumeCreate::new(name, pool, ByteSize(mib << 20))
}

/// The call failed with this kind of error.
pub fn refused<T: std::fmt::Debug>(result: Result<T, Problem>, kind: ErrorKind) -> Result<Problem> {
    match result {
        Err(problem) => {
            ensure!(problem.kind == kind, "{:?} where {kind:?} was due: {problem}", problem.kind);
            Ok(problem)
        }
        Ok(value) => anyhow::bail!("{value:?} where {kind:?} was due"),
    }
}
