//! What the target needs of an NFS server, and the one real implementor: the kernel's, with nfs-utils around it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_api::KeytabFile;

use super::state::Backing;
use crate::kernel::exec::{ExecError, Tool};
use crate::kernel::fs::{Dir, make_dirs};
use crate::kernel::mount::{self, Mount};
use crate::kernel::nfsd::{self, Call, Client};
use crate::kernel::{Deadline, nlm};
use crate::system::units::{self, UnitError};

/// The largest of our files. 10,000 clients fit.
const MAX_FILE: u64 = 4 << 20;

/// What checks tickets of Kerberos for the kernel. It is started with the server if there are keys.
const CHECKER: &str = "rpc-svcgssd.service";

/// The kernel's part of Kerberos.
const MODULE: &str = "rpcsec_gss_krb5";

/// How long `modprobe` may take.
const MODPROBE: Duration = Duration::from_secs(20);

/// How long `exportfs` may take. It asks nobody: our clients are numbers.
const EXPORTFS: Duration = Duration::from_secs(20);

/// What the files of ours begin and end with.
pub(super) const PREFIX: &str = "orlop-";
pub(super) const SUFFIX: &str = ".exports";

/// A server, and the little of the machine around it. Errors by their kinds: `Unsupported`: something is not installed; `TimedOut`: nobody waits any more.
pub trait NfsServer: Send + Sync {
    /// All that is mounted.
    fn mounts(&self) -> io::Result<Vec<Mount>>;
    /// What is at a path where nothing is mounted.
    fn look_at(&self, path: &Path) -> io::Result<Backing>;
    /// Makes the directory of all places, if it is not there, and in memory.
    fn make_root(&self, root: &Path) -> io::Result<()>;
    /// Makes a place and shows a directory in it.
    fn bind(&self, backing: &Path, place: &Path) -> io::Result<()>;
    /// Takes what is in a place out of it, and the place away. `ResourceBusy`: somebody uses it.
    fn unbind(&self, place: &Path) -> io::Result<()>;

    /// The files of ours by the middle of their names, with what they say.
    fn files(&self) -> io::Result<BTreeMap<String, String>>;
    /// The file with that middle of its name.
    fn file(&self, name: &str) -> io::Result<Option<String>>;
    /// Puts one in place whole.
    fn write(&self, name: &str, text: &str) -> io::Result<()>;
    /// Removes one.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// The server's table of exports, as `/var/lib/nfs/etab` has it.
    fn table(&self) -> io::Result<String>;
    /// Adds entries to the table, over those of the same clients, and has the kernel ask again. All or none.
    fn export(&self, path: &str, clients: &BTreeSet<String>, options: &str, d: &Deadline) -> io::Result<()>;
    /// Removes entries from the table, and has the kernel ask again. Those that are not there are gone.
    fn withdraw(&self, path: &str, clients: &BTreeSet<String>, d: &Deadline) -> io::Result<()>;

    /// How many threads serve. 0: it does not run.
    fn threads(&self) -> io::Result<u32>;
    /// The versions that it serves, as the kernel writes them.
    fn versions(&self) -> io::Result<String>;
    /// The settings that it has been given, or will be when it starts.
    fn settings(&self) -> io::Result<Option<String>>;
    /// Writes them.
    fn configure(&self, settings: &str) -> io::Result<()>;
    /// Starts it with what the files say.
    fn start(&self, d: &Deadline) -> io::Result<()>;
    /// The same, if it runs too.
    fn restart(&self, d: &Deadline) -> io::Result<()>;

    /// Whether hosts can be made to prove by Kerberos who they are. `Unsupported`: what is missing, and what to do.
    fn can_kerberos(&self, d: &Deadline) -> io::Result<()>;
    /// Keeps the keys by which Kerberos knows the server, or forgets them, durably.
    fn set_keytab(&self, keytab: Option<&KeytabFile>, d: &Deadline) -> io::Result<()>;
    /// Whether somebody checks tickets, with the keys that there are.
    fn checks_tickets(&self, d: &Deadline) -> io::Result<bool>;
    /// Has them checked with the keys that there are.
    fn check_tickets(&self, d: &Deadline) -> io::Result<()>;

    /// Has the kernel ask again for every host and export.
    fn flush(&self) -> io::Result<()>;
    /// Frees what it has been told before, if that can be done now: it holds what was exported.
    fn clear(&self) -> io::Result<()>;
    /// The calls in work. `None`: the kernel does not tell.
    fn calls(&self) -> io::Result<Option<BTreeSet<Call>>>;
    /// The clients of NFSv4.
    fn clients(&self) -> io::Result<Vec<Client>>;
    /// Whether one has anything open or locked on a file system.
    fn holds(&self, client: &Client, device: (u32, u32)) -> io::Result<bool>;
    /// Takes all from one, and waits until its calls have ended.
    fn expire(&self, client: &Client) -> io::Result<()>;
    /// The hosts of NFSv3 that may hold locks, if any of them does on a file system.
    fn lockers(&self, device: (u32, u32)) -> io::Result<BTreeSet<IpAddr>>;
    /// Frees all locks of NFSv3 of one host.
    fn free_locks(&self, host: IpAddr) -> io::Result<()>;
    /// Takes what all hosts have open and locked on the file system in a place.
    fn revoke(&self, place: &Path) -> io::Result<()>;
}

/// The kernel's server.
#[derive(Debug)]
pub struct Knfsd {
    exports: PathBuf,
    settings: PathBuf,
    table: PathBuf,
    keytab: PathBuf,
    names: PathBuf,
}

impl Default for Knfsd {
    /// Where Debian and everybody else have its files.
    fn default() -> Self {
        Self {
            exports: "/etc/exports.d".into(),
            settings: "/etc/nfs.conf.d/orlop.conf".into(),
            table: "/var/lib/nfs/etab".into(),
            keytab: "/etc/krb5.keytab".into(),
            names: "/etc/idmapd.conf.d/orlop.conf".into(),
        }
    }
}

/// Where a path leads, if it is a link to something that may not be there yet: on the appliance, /etc can't be written
/// to, and what would be in it is in memory.
fn led(path: &Path) -> PathBuf {
    match (std::fs::read_link(path), path.parent()) {
        (Ok(target), Some(parent)) => parent.join(target),
        _ => path.into(),
    }
}

/// Puts a file of settings in place whole.
fn put(path: &Path, text: &str) -> io::Result<()> {
    let path = led(path);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str())) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    make_dirs(parent)?;
    Dir::open(parent)?.replace(name, text.as_bytes(), false)
}

impl Knfsd {
    fn dir(&self) -> io::Result<Dir> {
        let path = led(&self.exports);
        make_dirs(&path)?;
        Dir::open(&path)
    }

    /// The same to look into: looking makes nothing.
    fn dir_if_there(&self) -> io::Result<Option<Dir>> {
        match Dir::open(&led(&self.exports)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            dir => dir.map(Some),
        }
    }

    /// The keys, if there are any.
    fn keys(&self) -> io::Result<Option<KeytabFile>> {
        match std::fs::read(&self.keytab) {
            Ok(bytes) => KeytabFile::new(bytes).map(Some).map_err(|e| {
                io::Error::new(io::ErrorKind::Unsupported, format!("{}: {e}", self.keytab.display()))
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// What libnfsidmap must know: the principals of which realms are names of users here. `root` is the one that there is;
    /// all others are nobody.
    fn names(keytab: &KeytabFile) -> String {
        let realms: BTreeSet<&str> = keytab.realms().collect();
        let realms: Vec<&str> = realms.into_iter().collect();
        format!("# Written by orlopd.\n[General]\nLocal-Realms = {}\n", realms.join(","))
    }

    /// That it complains is for people: it also does of entries of others. What came of it is read back.
    fn exportfs(&self, args: &[String], d: &Deadline) -> io::Result<()> {
        let tool = Tool::locate("exportfs").map_err(from_exec)?;
        let output = tool.run(args, &d.at_most(EXPORTFS)).map_err(from_exec)?;
        if output.code != Some(0) {
            tracing::warn!(error = %output.failure(), "exportfs complains");
        }
        Ok(())
    }
}

fn from_exec(e: ExecError) -> io::Error {
    let kind = match e {
        ExecError::Missing(_) => io::ErrorKind::Unsupported,
        ExecError::Overrun { .. } => io::ErrorKind::TimedOut,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, e)
}

fn from_units(e: UnitError) -> io::Error {
    let kind = match e {
        UnitError::Overrun { .. } => io::ErrorKind::TimedOut,
        _ => io::ErrorKind::NotConnected,
    };
    io::Error::new(kind, e)
}

fn file_name(name: &str) -> String {
    format!("{PREFIX}{name}{SUFFIX}")
}

fn text(bytes: Option<Vec<u8>>) -> Option<String> {
    bytes.map(|b| String::from_utf8_lossy(&b).into_owned())
}

impl NfsServer for Knfsd {
    fn mounts(&self) -> io::Result<Vec<Mount>> {
        mount::mounts()
    }

    fn look_at(&self, path: &Path) -> io::Result<Backing> {
        match std::fs::symlink_metadata(path) {
            Ok(m) if m.is_dir() => Ok(Backing::NotMounted),
            Ok(_) => Ok(Backing::NotDirectory),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Backing::Missing),
            Err(e) => Err(e),
        }
    }

    fn make_root(&self, root: &Path) -> io::Result<()> {
        if mount::at(root)?.is_some() {
            return Ok(());
        }
        make_dirs(root).map_err(|e| {
            let hint = format!("a directory {}: make one to mount at ({e})", root.display());
            io::Error::new(io::ErrorKind::Unsupported, hint)
        })?;
        // In memory: nothing is left of it after a reboot, and it is there where the root can't be written to.
        mount::mount(Path::new("orlop"), root, "tmpfs", "mode=0755,size=4m")
    }

    fn bind(&self, backing: &Path, place: &Path) -> io::Result<()> {
        if let Err(e) = std::fs::create_dir(place)
            && e.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(e);
        }
        mount::bind(backing, place)
    }

    fn unbind(&self, place: &Path) -> io::Result<()> {
        while mount::at(place)?.is_some() {
            mount::unmount(place)?;
        }
        // Only an empty directory goes.
        let _ = std::fs::remove_dir(place);
        Ok(())
    }

    fn files(&self) -> io::Result<BTreeMap<String, String>> {
        let dir = self.dir_if_there()?;
        let mut all = BTreeMap::new();
        let Some(dir) = dir else { return Ok(all) };
        for name in dir.names()? {
            let middle = name.to_str().and_then(|n| n.strip_prefix(PREFIX)?.strip_suffix(SUFFIX));
            let Some(middle) = middle else { continue };
            if let Some(text) = self.file(middle)? {
                all.insert(middle.to_owned(), text);
            }
        }
        Ok(all)
    }

    fn file(&self, name: &str) -> io::Result<Option<String>> {
        let Some(dir) = self.dir_if_there()? else { return Ok(None) };
        Ok(text(dir.read(&file_name(name), MAX_FILE)?))
    }

    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        self.dir()?.replace(&file_name(name), text.as_bytes(), false)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let Some(dir) = self.dir_if_there()? else { return Ok(()) };
        dir.remove(&file_name(name)).map(drop)
    }

    fn table(&self) -> io::Result<String> {
        match std::fs::read_to_string(&self.table) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            r => r,
        }
    }

    fn export(&self, path: &str, clients: &BTreeSet<String>, options: &str, d: &Deadline) -> io::Result<()> {
        // -i: what the files have of the same client would be mixed in.
        let mut args: Vec<String> = vec!["-i".into(), "-o".into(), options.into()];
        args.extend(clients.iter().map(|c| super::entries::argument(c, path)));
        self.exportfs(&args, d)
    }

    fn withdraw(&self, path: &str, clients: &BTreeSet<String>, d: &Deadline) -> io::Result<()> {
        let mut args: Vec<String> = vec!["-u".into()];
        args.extend(clients.iter().map(|c| super::entries::argument(c, path)));
        self.exportfs(&args, d)
    }

    fn threads(&self) -> io::Result<u32> {
        nfsd::threads()
    }

    fn versions(&self) -> io::Result<String> {
        nfsd::versions()
    }

    fn settings(&self) -> io::Result<Option<String>> {
        match std::fs::read_to_string(&self.settings) {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn configure(&self, settings: &str) -> io::Result<()> {
        put(&self.settings, settings)
    }

    fn start(&self, d: &Deadline) -> io::Result<()> {
        Tool::locate("exportfs").map_err(from_exec)?;
        units::start("nfs-server.service", d).map_err(from_units)?;
        // A unit that has run once counts as running whatever became of the threads.
        if nfsd::threads()? == 0 { self.restart(d) } else { Ok(()) }
    }

    fn restart(&self, d: &Deadline) -> io::Result<()> {
        units::restart("nfs-server.service", d).map_err(from_units)
    }

    fn can_kerberos(&self, d: &Deadline) -> io::Result<()> {
        let lacks = |what: String| Err(io::Error::new(io::ErrorKind::Unsupported, what));
        if self.keys()?.is_none() {
            let why = "there is no keytab: bring one that has a key for nfs/NAME@REALM with 'orlop system keytab --file'";
            return lacks(why.into());
        }
        Tool::locate("rpc.svcgssd").map_err(from_exec)?;
        let loaded = Tool::locate("modprobe").and_then(|t| t.run(&["-q", MODULE], &d.at_most(MODPROBE)));
        match loaded.map_err(from_exec)?.code {
            Some(0) => Ok(()),
            _ => lacks(format!("this kernel has no module {MODULE}")),
        }
    }

    fn set_keytab(&self, keytab: Option<&KeytabFile>, d: &Deadline) -> io::Result<()> {
        // A file there that is no link is the machine's own, with keys for others than the server.
        let to = std::fs::read_link(&self.keytab).ok().and(Some(led(&self.keytab)));
        let parts = to.as_deref().and_then(|to| Some((to.parent()?, to.file_name()?.to_str()?)));
        let Some((parent, name)) = parts else {
            let why =
                format!("{} is the machine's own: put the keys there with ktutil", self.keytab.display());
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        };
        make_dirs(parent)?;
        let dir = Dir::open(parent)?;
        match keytab {
            Some(keytab) => dir.replace(name, keytab.expose(), true)?,
            None => drop(dir.remove(name)?),
        }
        dir.sync()?;
        match keytab {
            None => units::stop(CHECKER, d).map_err(from_units),
            // One that is not started yet begins with what there is then.
            Some(_) if nfsd::threads()? == 0 => Ok(()),
            Some(_) => self.check_tickets(d),
        }
    }

    fn checks_tickets(&self, d: &Deadline) -> io::Result<bool> {
        // Keys that can't be read are those that nobody can check with.
        let Ok(Some(keytab)) = self.keys() else { return Ok(false) };
        let named = std::fs::read_to_string(&self.names).is_ok_and(|text| text == Self::names(&keytab));
        Ok(named && units::is_active(CHECKER, d).map_err(from_units)?)
    }

    fn check_tickets(&self, d: &Deadline) -> io::Result<()> {
        self.can_kerberos(d)?;
        if let Some(keytab) = self.keys()? {
            put(&self.names, &Self::names(&keytab))?;
        }
        // Anew: it has read the names and perhaps older keys.
        units::restart(CHECKER, d).map_err(from_units)
    }

    fn flush(&self) -> io::Result<()> {
        nfsd::flush()
    }

    fn clear(&self) -> io::Result<()> {
        nfsd::clear()
    }

    fn calls(&self) -> io::Result<Option<BTreeSet<Call>>> {
        // The list changed under our eyes: once more.
        for _ in 0..100 {
            match nfsd::calls() {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                r => return r,
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    fn clients(&self) -> io::Result<Vec<Client>> {
        nfsd::clients()
    }

    fn holds(&self, client: &Client, device: (u32, u32)) -> io::Result<bool> {
        nfsd::holds(client, device)
    }

    fn expire(&self, client: &Client) -> io::Result<()> {
        nfsd::expire(client)
    }

    fn lockers(&self, device: (u32, u32)) -> io::Result<BTreeSet<IpAddr>> {
        if !nfsd::lockd_holds(device)? {
            return Ok(BTreeSet::new());
        }
        Ok(nlm::monitored()?.into_iter().map(|m| m.address).collect())
    }

    fn free_locks(&self, host: IpAddr) -> io::Result<()> {
        nlm::monitored()?.iter().filter(|m| m.address == host).try_for_each(nlm::forget)
    }

    fn revoke(&self, place: &Path) -> io::Result<()> {
        nfsd::revoke(place)
    }
}
