//! Contract suites that need the appliance's kernel: run from the payload in an appliance of their own,
//! beside the scenarios. They take half of a suite's time, and wait for disks and processes most of it.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use orlop_image::{Artifacts, Guest, GuestBuilder, Role};
use orlop_tests::instrumented;

use crate::world::World;

const DISK: &str = "/dev/disk/by-id/virtio";

/// What each suite printed.
#[derive(Debug, Clone, Default)]
struct Logs {
    zfs: String,
    lvm: String,
    nvmet: String,
    lio: String,
    nfs: String,
    files: String,
    format: String,
    /// What the kernel complained of, and how full its disks were in the end.
    kernel: String,
}

/// The suites, while they run and after that.
#[derive(Default)]
pub struct Contracts {
    running: Option<JoinHandle<Result<Logs>>>,
    /// What came of them, for each scenario that asks; or why they could not be run.
    ended: Option<std::result::Result<Logs, String>>,
}

impl Contracts {
    /// Boots the appliance and starts the suites, on a thread of its own.
    pub fn start(dir: PathBuf) -> Self {
        Self { running: Some(std::thread::spawn(move || run(&dir))), ended: None }
    }

    fn wait(&mut self) -> Result<Logs> {
        if let Some(thread) = self.running.take() {
            let result = thread.join().unwrap_or_else(|_| bail!("the thread panicked"));
            self.ended = Some(result.map_err(|e| format!("{e:#}")));
        }
        match &self.ended {
            Some(Ok(logs)) => Ok(logs.clone()),
            Some(Err(why)) => bail!("{why}"),
            None => bail!("they were not started"),
        }
    }
}

fn run(dir: &Path) -> Result<Logs> {
    let artifacts = Artifacts::locate()?;
    let payload = dir.join("payload");
    std::fs::create_dir_all(&payload)?;
    for name in ["pool-contract", "nvmet-contract", "lio-contract", "nfs-contract", "format-contract"] {
        std::fs::copy(instrumented(name)?, payload.join(name)).with_context(|| format!("copying {name}"))?;
    }
    let mut guest =
        GuestBuilder::new(Role::Appliance, "contracts", dir).cpus(2).memory(2048).payload(&payload);
    for serial in ["zfs0", "lvm0", "file0", "target0", "target1"] {
        guest = guest.data_disk(serial, 3 << 30);
    }
    let mut guest = guest.start(&artifacts)?;
    guest.wait_ready(Duration::from_secs(240))?;
    let payload = guest.mount_payload()?.to_string();
    // The suites take the daemon's place: there is one writer to the kernel's configuration.
    shell(&mut guest, "systemctl stop orlopd", 60)?;
    // All at a time, on disks of their own: one waits for transaction groups, the others for processes.
    // Whom the kernel keeps waiting is noted, should something fail.
    let command = format!(
        "cd /run; while sleep 20; do for t in /proc/[0-9]*; do read -r l <$t/stat && case \"$l\" in *') D '*) \
         date +%T; tr '\\0' ' ' <$t/cmdline; echo; cat $t/stack; esac; done; done >stuck.log 2>/dev/null & watch=$!; \
         {payload}/pool-contract lvm {DISK}-lvm0 >lvm.log 2>&1 & lvm=$!; \
         {{ {payload}/nvmet-contract check {DISK}-target0 {DISK}-target1 >nvmet.log 2>&1; \
         {payload}/lio-contract check {DISK}-target0 {DISK}-target1 >lio.log 2>&1; \
         {{ mkdir nfs0 nfs1 && mkfs.ext4 -q {DISK}-target0 && mkfs.xfs -q -f {DISK}-target1 && \
         mount {DISK}-target0 nfs0 && mount {DISK}-target1 nfs1 && \
         {payload}/nfs-contract check /run/nfs0 /run/nfs1; }} >nfs.log 2>&1; \
         {payload}/pool-contract --only encrypt,group,held file-disk xfs {DISK}-file0 >files.log 2>&1; \
         {payload}/format-contract /run >format.log 2>&1; }} & others=$!; \
         {payload}/pool-contract zfs {DISK}-zfs0 >zfs.log 2>&1; wait $lvm $others; kill $watch"
    );
    // Far longer than it takes: beside all other guests on a slow machine.
    shell(&mut guest, &command, 2400)?;
    let kernel =
        "{ dmesg | grep -iE 'error|warn|hung|blocked'; df -m; tail -n 200 stuck.log; } >kernel.log; true";
    shell(&mut guest, &format!("cd /run; {kernel}"), 60)?;
    let mut log = |name: &str| -> Result<String> {
        let text = shell(&mut guest, &format!("cat /run/{name}.log"), 60)?;
        std::fs::write(dir.join(format!("{name}.log")), &text)?;
        Ok(text)
    };
    Ok(Logs {
        kernel: log("kernel")?,
        zfs: log("zfs")?,
        lvm: log("lvm")?,
        files: log("files")?,
        format: log("format")?,
        nvmet: log("nvmet")?,
        lio: log("lio")?,
        nfs: log("nfs")?,
    })
}

fn shell(guest: &mut Guest, command: &str, seconds: u64) -> Result<String> {
    guest.shell_ok(command, Duration::from_secs(seconds))
}

/// The last line of a suite says how it ended.
fn all_passed(name: &str, log: &str) -> Result<()> {
    let summary = log.lines().last().unwrap_or_default();
    let failed = log.lines().filter(|l| !l.starts_with("ok ")).collect::<Vec<_>>().join("\n");
    ensure!(summary.ends_with(" passed, 0 failed"), "{name}:\n{failed}");
    println!("     {name}: {summary}");
    Ok(())
}

pub fn pool_contracts(w: &mut World) -> Result<()> {
    let logs = w.contracts.wait()?;
    // All that takes the device mapper: the rest of what files do is tested on the host.
    let files = all_passed("files with the device mapper", &logs.files);
    let all = all_passed("zfs", &logs.zfs).and(all_passed("lvm", &logs.lvm)).and(files);
    if all.is_err() {
        println!("---- the contracts' kernel:\n{}", logs.kernel);
    }
    all
}

pub fn target_contracts(w: &mut World) -> Result<()> {
    let logs = w.contracts.wait()?;
    let nfs = all_passed("nfs", &logs.nfs);
    all_passed("nvmet", &logs.nvmet).and(all_passed("lio", &logs.lio)).and(nfs)
}

pub fn nothing_is_formatted(w: &mut World) -> Result<()> {
    let logs = w.contracts.wait()?;
    all_passed("what is never formatted", &logs.format)
}
