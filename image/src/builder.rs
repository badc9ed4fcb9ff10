//! The description of a guest, and what has to exist before it starts.

use crate::accel::Accel;
use crate::args::{Cache, Disk, Machine, PAYLOAD_SERIAL, ROOT_SERIAL, STATE_SERIAL};
use crate::artifacts::{Artifacts, Role};
use crate::guest::Guest;
use crate::link::LinkEnd;
use crate::volatile::VolatileDisk;
use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use std::collections::BTreeMap;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

const STATE_SIZE: u64 = 1 << 30;

/// Describes a guest. Everything it keeps is under `dir`: disks, console log.
#[derive(Debug)]
pub struct GuestBuilder {
    role: Role,
    name: String,
    dir: PathBuf,
    memory_mib: u32,
    cpus: u32,
    disks: Vec<(String, u64)>,
    images: Vec<(String, PathBuf)>,
    payload: Option<PathBuf>,
    forwards: Vec<(Option<u16>, u16)>,
    links: Vec<LinkEnd>,
    credentials: BTreeMap<String, Vec<u8>>,
    kernel_args: Vec<String>,
    volatile: Option<u64>,
}

impl GuestBuilder {
    /// A guest with 2 GiB (appliance) or 1 GiB (initiator), 2 processors and no
    /// data disks. Its files are `dir/NAME-*`, made if missing and kept.
    pub fn new(role: Role, name: &str, dir: &Path) -> Self {
        let memory_mib = if role == Role::Appliance { 2048 } else { 1024 };
        GuestBuilder {
            role,
            name: name.to_string(),
            dir: dir.to_path_buf(),
            memory_mib,
            cpus: 2,
            disks: Vec::new(),
            images: Vec::new(),
            payload: None,
            forwards: Vec::new(),
            links: Vec::new(),
            credentials: BTreeMap::new(),
            kernel_args: Vec::new(),
            volatile: None,
        }
    }

    /// Memory in MiB.
    pub fn memory(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// Virtual processors.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// A sparse disk of `bytes`, in the guest `/dev/disk/by-id/virtio-SERIAL`.
    /// A serial has at most 20 characters.
    pub fn data_disk(mut self, serial: &str, bytes: u64) -> Self {
        self.disks.push((serial.to_string(), bytes));
        self
    }

    /// All disks that it can write have volatile write caches: what was not flushed is lost at a power cut, or not, as chance
    /// has it from this seed on. Without it what QEMU has written stays.
    pub fn volatile_disks(mut self, seed: u64) -> Self {
        self.volatile = Some(seed);
        self
    }

    /// An image that is there already, as a disk that the guest can't write.
    pub fn read_only_disk(mut self, serial: &str, image: &Path) -> Self {
        self.images.push((serial.to_string(), image.to_path_buf()));
        self
    }

    /// A directory whose content the guest can read; see [`Guest::mount_payload`].
    pub fn payload(mut self, dir: &Path) -> Self {
        self.payload = Some(dir.to_path_buf());
        self
    }

    /// Makes a TCP port of the guest reachable on a free port of 127.0.0.1;
    /// [`Guest::port`] tells which. The guest gets a management network with
    /// DHCP by this.
    pub fn forward(mut self, guest_port: u16) -> Self {
        self.forwards.push((None, guest_port));
        self
    }

    /// Like [`forward`](Self::forward), on a port of the host that is chosen.
    pub fn forward_on(mut self, host_port: u16, guest_port: u16) -> Self {
        self.forwards.push((Some(host_port), guest_port));
        self
    }

    /// Plugs in one end of a storage link.
    pub fn link(mut self, end: LinkEnd) -> Self {
        self.links.push(end);
        self
    }

    /// A systemd credential, which units get by `ImportCredential=`.
    pub fn credential(mut self, name: &str, value: &[u8]) -> Self {
        self.credentials.insert(name.to_string(), value.to_vec());
        self
    }

    /// More words for the kernel command line.
    pub fn kernel_arg(mut self, arg: &str) -> Self {
        self.kernel_args.push(arg.to_string());
        self
    }

    /// Makes what is missing and powers the guest on.
    pub fn start(self, artifacts: &Artifacts) -> Result<Guest> {
        let name = self.name.clone();
        self.start_inner(artifacts).with_context(|| format!("starting guest {name}"))
    }

    fn start_inner(self, artifacts: &Artifacts) -> Result<Guest> {
        std::fs::create_dir_all(&self.dir).with_context(|| format!("making {}", self.dir.display()))?;
        // Sockets need short paths, and secrets a directory nobody else can read.
        let run = tempfile::Builder::new().prefix("orlop-guest-").tempdir()?;
        let mut disks = vec![Disk {
            serial: ROOT_SERIAL.into(),
            path: artifacts.root(self.role),
            cache: Cache::ReadOnly,
        }];
        if self.role == Role::Appliance {
            disks.push(sparse_disk(&self.file("state.img"), STATE_SERIAL, STATE_SIZE)?);
        }
        for (serial, size) in &self.disks {
            ensure!(
                !serial.is_empty() && serial.len() <= 20,
                "serial {serial:?} must have 1 to 20 characters"
            );
            disks.push(sparse_disk(&self.file(&format!("{serial}.img")), serial, *size)?);
        }
        let mut volatile = Vec::new();
        let written = disks.iter_mut().filter(|d| d.cache != Cache::ReadOnly);
        for (disk, seed) in written.zip(self.volatile.into_iter().flat_map(|seed| seed..)) {
            let served =
                VolatileDisk::serve(&disk.path, &run.path().join(format!("disk-{}", disk.serial)), seed)?;
            *disk = Disk { path: served.url(), cache: Cache::None, ..disk.clone() };
            volatile.push(served);
        }
        for (serial, path) in &self.images {
            disks.push(Disk { serial: serial.clone(), path: path.clone(), cache: Cache::ReadOnly });
        }
        if let Some(dir) = &self.payload {
            let image = run.path().join("payload.erofs");
            pack(dir, &image)?;
            disks.push(Disk { serial: PAYLOAD_SERIAL.into(), path: image, cache: Cache::ReadOnly });
        }
        let mut credentials = self.credentials.clone();
        credentials.extend(self.links.iter().map(LinkEnd::credential));
        let mut smbios = Vec::new();
        for (name, value) in &credentials {
            smbios.push(write_credential(run.path(), name, value)?);
        }
        let mut forwards = Vec::new();
        for (host, guest) in &self.forwards {
            forwards.push((host.map_or_else(free_port, Ok)?, *guest));
        }
        let machine = Machine {
            emulator: artifacts.emulator(),
            role: self.role,
            accel: Accel::detect(artifacts)?,
            memory_mib: self.memory_mib,
            cpus: self.cpus,
            kernel: artifacts.kernel(),
            initrd: artifacts.initrd(),
            disks,
            forwards,
            links: self.links.clone(),
            smbios,
            console_log: self.file("console.log"),
            shell_socket: run.path().join("shell"),
            qmp_socket: run.path().join("qmp"),
            kernel_args: self.kernel_args.clone(),
        };
        let mut guest = Guest::off(self.name.clone(), machine, self.file("qemu.log"), volatile, run);
        guest.power_on()?;
        Ok(guest)
    }

    fn file(&self, what: &str) -> PathBuf {
        self.dir.join(format!("{}-{what}", self.name))
    }
}

/// Makes a disk image if there is none, and finds out how to open it.
fn sparse_disk(path: &Path, serial: &str, size: u64) -> Result<Disk> {
    let what = || format!("disk image {}", path.display());
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(what)?;
    let have = file.metadata().with_context(what)?.len();
    if have == 0 {
        file.set_len(size).with_context(what)?;
    } else {
        ensure!(have == size, "{} has {have} bytes, not {size}; remove it or ask for its size", what());
    }
    let direct =
        std::fs::File::options().read(true).custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32).open(path);
    let cache = if direct.is_ok() { Cache::None } else { Cache::Writethrough };
    Ok(Disk { serial: serial.to_string(), path: path.to_path_buf(), cache })
}

/// A port that is free now. Somebody else may take it before QEMU does; then
/// QEMU says so and ends.
fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).context("looking for a free port")?;
    Ok(listener.local_addr()?.port())
}

/// One SMBIOS string, as systemd reads it.
fn write_credential(dir: &Path, name: &str, value: &[u8]) -> Result<PathBuf> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '@');
    ensure!(!name.is_empty() && name.chars().all(good), "a credential can't be called {name:?}");
    let path = dir.join(format!("credential-{name}"));
    let value = base64::engine::general_purpose::STANDARD.encode(value);
    std::fs::write(&path, format!("io.systemd.credential.binary:{name}={value}"))
        .with_context(|| format!("writing credential {name}"))?;
    Ok(path)
}

/// Packs a directory into an EROFS image.
fn pack(dir: &Path, image: &Path) -> Result<()> {
    let output = std::process::Command::new("mkfs.erofs")
        .arg("--quiet")
        .args([image, dir])
        .output()
        .context("running mkfs.erofs")?;
    ensure!(
        output.status.success(),
        "packing {}: {}",
        dir.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.img");
        sparse_disk(&path, "d", 1 << 20).unwrap();
        std::fs::write(&path, vec![7u8; 1 << 20]).unwrap();
        sparse_disk(&path, "d", 1 << 20).unwrap();
        assert_eq!(std::fs::read(&path).unwrap()[5], 7);
        let error = sparse_disk(&path, "d", 2 << 20).unwrap_err().to_string();
        assert!(error.contains("has 1048576 bytes, not 2097152"), "{error}");
    }

    #[test]
    fn credentials_are_encoded_and_their_names_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = write_credential(dir.path(), "orlop.token", b"a,b=c\n").unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(text, "io.systemd.credential.binary:orlop.token=YSxiPWMK");
        assert!(write_credential(dir.path(), "a/b", b"").is_err());
        assert!(write_credential(dir.path(), "", b"").is_err());
    }

    #[test]
    fn payloads_are_packed() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::create_dir(&from).unwrap();
        std::fs::write(from.join("x"), "y").unwrap();
        pack(&from, &to).unwrap();
        assert!(std::fs::metadata(&to).unwrap().len() > 0);
        assert!(pack(&dir.path().join("none"), &to).is_err());
    }
}
