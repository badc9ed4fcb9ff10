//! The simulated LIO: its tree, who is logged in, and the way in and out.

mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::faults::{Fault, Faults};
use crate::target::ConfigTree;
use crate::target::lio::Reservations;

/// What the simulated kernel was built with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimLioKernel {
    /// A node ACL can ask for a proof, or for none, by itself (from Linux 6.2).
    pub own_authentication: bool,
    /// `wwn/product_id` is there.
    pub product: bool,
    /// Devices can free blocks.
    pub discard: bool,
    /// Enabling a backstore needs its device to exist.
    pub devices: bool,
}

impl Default for SimLioKernel {
    /// All but looking at devices.
    fn default() -> Self {
        Self { own_authentication: true, product: true, discard: true, devices: false }
    }
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    /// A directory that a user made.
    Item,
    /// One that the kernel put there.
    Group,
    Attribute(String),
    /// To a directory, by its path.
    Link(String),
}

/// A session of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Session {
    host: String,
    /// `iscsi/<target>/<portal group>`.
    group: String,
    /// Its node ACL has no directory.
    dynamic: bool,
}

#[derive(Debug, Default)]
pub(super) struct State {
    nodes: BTreeMap<String, Node>,
    sessions: BTreeMap<u64, Session>,
    /// Node ACLs without a directory and without a session: portal group and host.
    cached: BTreeSet<(String, String)>,
    /// What was given back of reservations, by backstore.
    restored: BTreeMap<String, Vec<String>>,
    files: BTreeMap<PathBuf, String>,
    refused_portals: BTreeMap<String, Errno>,
    counter: u64,
}

/// A session of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionHandle(u64);

/// What a host proves, if it does: a name and a secret.
pub type Known<'a> = Option<(&'a str, &'a str)>;

/// The simulated kernel.
///
/// The methods here are what hosts and tests do; what the target does goes through [`ConfigTree`].
pub struct SimLio {
    kernel: SimLioKernel,
    state: Mutex<State>,
    faults: Faults,
}

impl SimLio {
    /// Nothing but the kernel's own.
    pub fn new(kernel: SimLioKernel) -> Self {
        let mut state = State::default();
        state.nodes.insert("core".into(), Node::Group);
        state.nodes.insert("dbroot".into(), Node::Attribute("/var/target".into()));
        Self { kernel, state: Mutex::new(state), faults: Faults::default() }
    }

    /// A host logs in.
    pub fn login(&self, host: &str, target: &str, known: Known<'_>) -> io::Result<SessionHandle> {
        let mut state = self.state.lock();
        let (group, dynamic) = state.admits(host, target, known)?;
        let id = state.next();
        if dynamic {
            state.cached.remove(&(group.clone(), host.to_string()));
        }
        state.sessions.insert(id, Session { host: host.into(), group, dynamic });
        Ok(SessionHandle(id))
    }

    /// A host logs out.
    pub fn logout(&self, handle: SessionHandle) {
        self.state.lock().end_sessions(|id, _| id == handle.0);
    }

    /// Whether a session is there.
    pub fn is_live(&self, handle: SessionHandle) -> bool {
        self.state.lock().sessions.contains_key(&handle.0)
    }

    /// A read by a host: succeeds if it would reach the disk.
    pub fn read_disk(&self, handle: SessionHandle) -> io::Result<()> {
        self.state.lock().reach(handle.0).map(drop).map_err(Into::into)
    }

    /// A write by a host: succeeds if it would reach the disk.
    pub fn write_disk(&self, handle: SessionHandle) -> io::Result<()> {
        if self.state.lock().reach(handle.0)? { Ok(()) } else { Err(Errno::ROFS.into()) }
    }

    /// Of these hosts, those that could log in to a target now, knowing whatever is asked.
    pub fn may_login<'a>(&self, target: &str, hosts: &[&'a str]) -> BTreeSet<&'a str> {
        let state = self.state.lock();
        let able = |host: &&str| {
            let known = state.credentials(target, host);
            let known = known.as_ref().map(|(user, secret)| (user.as_str(), secret.as_str()));
            state.admits(host, target, None).is_ok() || state.admits(host, target, known).is_ok()
        };
        hosts.iter().copied().filter(able).collect()
    }

    /// Of these hosts, those that could log in to a target now without any secret.
    pub fn may_login_unproved<'a>(&self, target: &str, hosts: &[&'a str]) -> BTreeSet<&'a str> {
        let state = self.state.lock();
        hosts.iter().copied().filter(|h| state.admits(h, target, None).is_ok()).collect()
    }

    /// Of these hosts, those that could write if they were logged in by their node ACLs.
    pub fn may_write<'a>(&self, target: &str, hosts: &[&'a str]) -> BTreeSet<&'a str> {
        let state = self.state.lock();
        let writes = |host: &&str| {
            let groups = state.children(&format!("iscsi/{target}"));
            groups.iter().any(|g| state.mapped(&format!("iscsi/{target}/{g}"), host) == Some(true))
        };
        hosts.iter().copied().filter(writes).collect()
    }

    /// What must be proved at a node ACL.
    pub fn credentials(&self, target: &str, host: &str) -> Option<(String, String)> {
        self.state.lock().credentials(target, host)
    }

    /// Every path with its value: directories empty, links with their target.
    pub fn dump(&self) -> BTreeMap<String, String> {
        let text = |node: &Node| match node {
            Node::Item | Node::Group => String::new(),
            Node::Attribute(value) => value.clone(),
            Node::Link(target) => format!("-> {target}"),
        };
        self.state.lock().nodes.iter().map(|(path, node)| (path.clone(), text(node))).collect()
    }

    /// What was given back of a backstore's reservations since it was made.
    pub fn restored(&self, backstore: &str) -> Vec<String> {
        self.state.lock().restored.get(backstore).cloned().unwrap_or_default()
    }

    /// The kernel writes a file of reservations (`None`: somebody removes it).
    pub fn put_file(&self, path: &Path, text: Option<&str>) {
        let files = &mut self.state.lock().files;
        match text {
            Some(text) => drop(files.insert(path.into(), text.into())),
            None => drop(files.remove(path)),
        }
    }

    /// Whether there is such a file.
    pub fn has_file(&self, path: &Path) -> bool {
        self.state.lock().files.contains_key(path)
    }

    /// A portal can't be listened at (`None`: it can again).
    pub fn refuse_portal(&self, portal: &str, errno: Option<Errno>) {
        let refused = &mut self.state.lock().refused_portals;
        match errno {
            Some(errno) => drop(refused.insert(portal.into(), errno)),
            None => drop(refused.remove(portal)),
        }
    }

    /// After so many more changes, one goes wrong.
    pub fn fault_after(&self, changes: usize, fault: Fault) {
        self.faults.after(changes, fault);
    }

    /// Ends a hang.
    pub fn release(&self) {
        self.faults.release();
    }

    /// How many changes hang now.
    pub fn hanging(&self) -> usize {
        self.faults.hanging()
    }

    fn change<T>(&self, f: impl FnOnce(&mut State) -> Result<T, Errno>) -> io::Result<T> {
        self.faults.check()?;
        f(&mut self.state.lock()).map_err(Into::into)
    }
}

impl ConfigTree for SimLio {
    fn make_dir(&self, path: &str) -> io::Result<()> {
        self.change(|s| s.make_dir(path, self.kernel))
    }
    fn remove_dir(&self, path: &str) -> io::Result<()> {
        self.change(|s| s.remove_dir(path))
    }
    fn read(&self, path: &str) -> io::Result<String> {
        self.state.lock().read(path).map_err(Into::into)
    }
    fn write(&self, path: &str, value: &str) -> io::Result<()> {
        self.change(|s| s.write(path, value, self.kernel))
    }
    fn restrict(&self, path: &str) -> io::Result<()> {
        self.state.lock().list(path).map(drop).map_err(Into::into)
    }
    fn link(&self, target: &str, path: &str) -> io::Result<()> {
        self.change(|s| s.link(target, path))
    }
    fn unlink(&self, path: &str) -> io::Result<()> {
        self.change(|s| s.unlink(path))
    }
    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        self.state.lock().list(path).map_err(Into::into)
    }
    fn read_link(&self, path: &str) -> io::Result<String> {
        self.state.lock().read_link(path).map_err(Into::into)
    }
}

/// The simulated kernel's files of reservations.
pub struct SimReservations(pub Arc<SimLio>);

impl Reservations for SimReservations {
    fn prepare(&self, _directory: &Path) -> io::Result<()> {
        Ok(())
    }
    fn read(&self, file: &Path) -> io::Result<String> {
        self.0.state.lock().files.get(file).cloned().ok_or_else(|| Errno::NOENT.into())
    }
    fn exists(&self, file: &Path) -> io::Result<bool> {
        Ok(self.0.has_file(file))
    }
    fn remove(&self, file: &Path) -> io::Result<()> {
        self.0.state.lock().files.remove(file).map(drop).ok_or_else(|| Errno::NOENT.into())
    }
}
