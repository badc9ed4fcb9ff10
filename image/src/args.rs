//! From the description of a machine to QEMU's arguments. Pure.

use crate::accel::Accel;
use crate::artifacts::Role;
use crate::link::LinkEnd;
use std::ffi::OsString;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

/// The serial numbers by which guests find their own disks.
pub(crate) const ROOT_SERIAL: &str = "orlop-root";
pub(crate) const STATE_SERIAL: &str = "orlop-state";
pub(crate) const PAYLOAD_SERIAL: &str = "payload";

/// What every boot of the product has on its command line, disk image included.
const CMDLINE: &str = include_str!("../cmdline.txt");

/// A disk that survives power cuts.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    pub serial: String,
    pub path: PathBuf,
    pub cache: Cache,
}

/// How the host caches a disk. Never `unsafe`: it would hide or invent losses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cache {
    /// What the guest flushed is on the host's disk.
    None,
    /// The same, for filesystems without direct I/O.
    Writethrough,
    /// For read-only disks alone: reads come from the host's page cache.
    ReadOnly,
}

/// A machine, complete.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub emulator: PathBuf,
    pub role: Role,
    pub accel: Accel,
    pub memory_mib: u32,
    pub cpus: u32,
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub disks: Vec<Disk>,
    /// Host port, guest port.
    pub forwards: Vec<(u16, u16)>,
    pub links: Vec<LinkEnd>,
    /// Files with one SMBIOS string each. Files, because arguments are visible
    /// to every user of the host, and credentials are secrets.
    pub smbios: Vec<PathBuf>,
    pub console_log: PathBuf,
    pub shell_socket: PathBuf,
    pub qmp_socket: PathBuf,
    pub kernel_args: Vec<String>,
}

/// A comma separates QEMU's options, and is written twice where it is meant.
fn escaped(path: &std::path::Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

impl Machine {
    /// The kernel command line.
    pub fn cmdline(&self) -> String {
        let mut line = vec![CMDLINE.trim().to_string(), format!("root=SERIAL={ROOT_SERIAL}")];
        line.push(match self.role {
            Role::Appliance => format!("orlop.state=SERIAL={STATE_SERIAL}"),
            Role::Initiator => "orlop.overlay".to_string(),
        });
        // The harness's shell. A dumb terminal of fixed size, because systemd
        // asks any other for its size and waits for the answer.
        line.push("systemd.debug_shell=hvc0".to_string());
        line.push(
            "systemd.tty.term.hvc0=dumb systemd.tty.rows.hvc0=25 systemd.tty.columns.hvc0=80".to_string(),
        );
        line.extend(self.accel.kernel_args().map(String::from));
        line.extend(self.kernel_args.iter().cloned());
        line.join(" ")
    }

    /// Everything after `qemu-system-x86_64`.
    pub fn args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = Vec::new();
        let mut add = |name: &str, value: String| {
            args.push(name.into());
            args.push(value.into());
        };
        // What nothing uses is left out: each device costs the guest a probe.
        add("-M", "q35,sata=off,smbus=off,usb=off,vmport=off".into());
        add("-accel", self.accel.qemu_accel().into());
        add("-cpu", self.accel.qemu_cpu().into());
        add("-smp", self.cpus.to_string());
        add("-m", format!("{}M", self.memory_mib));
        add("-display", "none".into());
        add("-kernel", self.kernel.to_string_lossy().into_owned());
        add("-initrd", self.initrd.to_string_lossy().into_owned());
        add("-append", self.cmdline());
        for disk in &self.disks {
            let cache = match disk.cache {
                Cache::None => "cache=none,discard=unmap",
                Cache::Writethrough => "cache=writethrough,discard=unmap",
                Cache::ReadOnly => "cache=writeback,readonly=on",
            };
            let Disk { serial, path, .. } = disk;
            add("-drive", format!("if=none,id={serial},format=raw,file={},{cache}", escaped(path)));
            add("-device", format!("virtio-blk-pci,drive={serial},serial={serial}"));
        }
        if !self.forwards.is_empty() {
            let forwards: String = self
                .forwards
                .iter()
                .map(|(host, guest)| format!(",hostfwd=tcp:127.0.0.1:{host}-:{guest}"))
                .collect();
            add("-netdev", format!("user,id=mgmt,ipv6=off{forwards}"));
            add("-device", "virtio-net-pci,netdev=mgmt,mac=52:54:00:77:00:01,romfile=".into());
        }
        for link in &self.links {
            let name = link.name();
            let socket = link.socket().as_raw_fd();
            add("-netdev", format!("dgram,id={name},local.type=fd,local.str={socket}"));
            add("-device", format!("virtio-net-pci,netdev={name},mac={},romfile=", link.mac()));
        }
        for file in &self.smbios {
            add("-smbios", format!("type=11,path={}", escaped(file)));
        }
        add("-device", "virtio-rng-pci".into());
        add("-chardev", format!("file,id=console,append=on,path={}", escaped(&self.console_log)));
        add("-serial", "chardev:console".into());
        add("-chardev", format!("socket,id=shell,server=on,wait=off,path={}", escaped(&self.shell_socket)));
        add("-device", "virtio-serial-pci".into());
        add("-device", "virtconsole,chardev=shell".into());
        add("-chardev", format!("socket,id=qmp,server=on,wait=off,path={}", escaped(&self.qmp_socket)));
        add("-mon", "chardev=qmp,mode=control".into());
        let mut all: Vec<OsString> = vec!["-nodefaults".into(), "-no-user-config".into()];
        all.append(&mut args);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::Link;

    fn machine() -> Machine {
        Machine {
            emulator: "qemu".into(),
            role: Role::Appliance,
            accel: Accel::Tcg,
            memory_mib: 2048,
            cpus: 2,
            kernel: "k".into(),
            initrd: "i".into(),
            disks: vec![],
            forwards: vec![],
            links: vec![],
            smbios: vec![],
            console_log: "c,d.log".into(),
            shell_socket: "s".into(),
            qmp_socket: "q".into(),
            kernel_args: vec!["extra=1".into()],
        }
    }

    fn text(machine: &Machine) -> String {
        let args = machine.args();
        args.iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn no_defaults_and_no_display() {
        let text = text(&machine());
        assert!(text.starts_with("-nodefaults -no-user-config "), "{text}");
        assert!(text.contains("-display none"), "{text}");
        assert!(text.contains("-accel tcg,thread=multi -cpu max"), "{text}");
        assert!(!text.contains("-netdev"), "{text}");
    }

    #[test]
    fn commas_in_paths_are_escaped() {
        assert!(text(&machine()).contains("path=c,,d.log"));
    }

    #[test]
    fn disks_are_never_cached_unsafely() {
        let mut machine = machine();
        for (serial, cache) in [("a", Cache::None), ("b", Cache::Writethrough), ("r", Cache::ReadOnly)] {
            machine.disks.push(Disk { serial: serial.into(), path: serial.into(), cache });
        }
        let text = text(&machine);
        assert!(text.contains("id=a,format=raw,file=a,cache=none,discard=unmap"), "{text}");
        assert!(text.contains("id=b,format=raw,file=b,cache=writethrough,discard=unmap"), "{text}");
        assert!(text.contains("id=r,format=raw,file=r,cache=writeback,readonly=on"), "{text}");
        assert!(text.contains("virtio-blk-pci,drive=a,serial=a"), "{text}");
        assert!(!text.contains("unsafe"), "{text}");
    }

    #[test]
    fn networks() {
        let mut machine = machine();
        let (end, _) = Link::pair(2).unwrap();
        let socket = end.socket().as_raw_fd();
        machine.links.push(end);
        machine.forwards.push((40000, 8443));
        let text = text(&machine);
        assert!(text.contains("hostfwd=tcp:127.0.0.1:40000-:8443"), "{text}");
        assert!(text.contains(&format!("dgram,id=storage2,local.type=fd,local.str={socket}")), "{text}");
    }

    #[test]
    fn the_command_line_follows_the_role() {
        let mut machine = machine();
        let line = machine.cmdline();
        assert!(line.contains("root=SERIAL=orlop-root orlop.state=SERIAL=orlop-state "), "{line}");
        assert!(line.ends_with(" extra=1"), "{line}");
        machine.role = Role::Initiator;
        assert!(machine.cmdline().contains(" orlop.overlay "));
        assert!(!machine.cmdline().contains("orlop.state"));
    }
}
