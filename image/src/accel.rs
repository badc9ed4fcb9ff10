//! Whether hardware virtualization really works here.

use crate::artifacts::Artifacts;
use crate::process::Process;
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How QEMU runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// On the processor.
    Kvm,
    /// By translation: works everywhere, several times slower.
    Tcg,
}

/// A kernel that runs at all says so within this.
const PROBE_LIMIT: Duration = Duration::from_secs(6);

impl Accel {
    /// KVM if a probe boot proves that it works, otherwise TCG.
    ///
    /// The device node proves nothing: on nested or restricted hosts it exists
    /// and a stock kernel hangs. The answer is remembered in the cache for this
    /// host kernel and this QEMU. `ORLOP_ACCEL=kvm` or `tcg` decides without asking.
    pub fn detect(artifacts: &Artifacts) -> Result<Self> {
        match std::env::var("ORLOP_ACCEL").ok().as_deref() {
            Some("kvm") => return Ok(Accel::Kvm),
            Some("tcg") => return Ok(Accel::Tcg),
            None | Some("") => {}
            Some(other) => bail!("ORLOP_ACCEL is kvm or tcg, not {other:?}"),
        }
        if std::fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
            return Ok(Accel::Tcg);
        }
        let memory = cache_file();
        let host = fingerprint(artifacts)?;
        if let Ok(text) = std::fs::read_to_string(&memory)
            && let Some(answer) = remembered(&text, &host)
        {
            return Ok(answer);
        }
        let answer = if probe(artifacts)? { Accel::Kvm } else { Accel::Tcg };
        // Not remembering costs some seconds next time, nothing else.
        if let Some(dir) = memory.parent() {
            let _ = std::fs::create_dir_all(dir);
        }
        let _ = std::fs::write(&memory, format!("{host}\n{}\n", answer.name()));
        Ok(answer)
    }

    fn name(self) -> &'static str {
        match self {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg",
        }
    }

    pub(crate) fn qemu_accel(self) -> &'static str {
        match self {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg,thread=multi",
        }
    }

    pub(crate) fn qemu_cpu(self) -> &'static str {
        match self {
            Accel::Kvm => "host",
            // Without AVX, which is as old as QEMU 7.2 in this emulation: an initiator once died of a
            // clobbered flags register in the middle of its network stack, and fewer variants of checksum
            // code to measure make ZFS load faster. Without what is fast on a processor and slow here: string
            // instructions byte by byte, a fifth level of page tables, guards around each copy from a process.
            Accel::Tcg => "max,avx=off,avx2=off,f16c=off,fma=off,erms=off,fsrm=off,la57=off,smap=off,pku=off",
        }
    }

    /// What the guest's kernel is told about it.
    pub(crate) fn kernel_args(self) -> Option<&'static str> {
        match self {
            Accel::Kvm => None,
            // Translated code does not run ahead, so nothing is gained by fencing it in; the others are
            // Debian's hardening against those who attack a kernel. A fifth of a boot's time all together.
            Accel::Tcg => {
                Some("mitigations=off init_on_alloc=0 randomize_kstack_offset=off hardened_usercopy=off")
            }
        }
    }
}

fn cache_file() -> PathBuf {
    let base = std::env::var_os("ORLOP_CACHE").map(PathBuf::from).unwrap_or_else(|| {
        PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/tmp".into())).join(".cache/orlop")
    });
    base.join("kvm-probe")
}

/// What the answer depends on: the host's kernel and QEMU.
fn fingerprint(artifacts: &Artifacts) -> Result<String> {
    let uname = rustix::system::uname();
    let emulator = std::process::Command::new(artifacts.emulator());
    let version = { emulator }.arg("--version").output().context("asking QEMU for its version")?;
    let version = String::from_utf8_lossy(&version.stdout);
    Ok(format!(
        "{} {} {}",
        uname.release().to_string_lossy(),
        uname.version().to_string_lossy(),
        version.lines().next().unwrap_or_default()
    ))
}

fn remembered(text: &str, host: &str) -> Option<Accel> {
    let mut lines = text.lines();
    if lines.next() != Some(host) {
        return None;
    }
    match lines.next() {
        Some("kvm") => Some(Accel::Kvm),
        Some("tcg") => Some(Accel::Tcg),
        _ => None,
    }
}

/// Boots the real kernel under KVM until it starts its first process.
fn probe(artifacts: &Artifacts) -> Result<bool> {
    let dir = tempfile::tempdir().context("making a directory for the KVM probe")?;
    let console = dir.path().join("console");
    let mut args: Vec<std::ffi::OsString> = Vec::new();
    for arg in ["-nodefaults", "-no-user-config", "-M", "q35", "-accel", "kvm", "-cpu", "host", "-smp", "2"] {
        args.push(arg.into());
    }
    for arg in
        ["-m", "512", "-display", "none", "-no-reboot", "-append", "console=ttyS0 loglevel=7", "-kernel"]
    {
        args.push(arg.into());
    }
    args.push(artifacts.kernel().into());
    args.push("-initrd".into());
    args.push(artifacts.initrd().into());
    args.push("-serial".into());
    args.push(format!("file:{}", console.display()).into());
    let mut process = Process::start(&artifacts.emulator(), &args, Vec::new(), &dir.path().join("qemu"))?;
    let deadline = Instant::now() + PROBE_LIMIT;
    while Instant::now() < deadline && process.ended()?.is_none() {
        std::thread::sleep(Duration::from_millis(100));
        let text = std::fs::read(&console).unwrap_or_default();
        if String::from_utf8_lossy(&text).contains("Run /init as init process") {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_for_another_host_is_forgotten() {
        assert_eq!(remembered("host a\nkvm\n", "host a"), Some(Accel::Kvm));
        assert_eq!(remembered("host a\ntcg\n", "host a"), Some(Accel::Tcg));
        assert_eq!(remembered("host a\nkvm\n", "host b"), None);
        assert_eq!(remembered("host a\nwhat\n", "host a"), None);
        assert_eq!(remembered("", "host a"), None);
    }
}
