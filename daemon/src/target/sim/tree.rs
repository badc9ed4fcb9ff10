//! The simulated kernel's objects, who is connected to them, and the way in and out.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::faults::{Fault, Faults};
use crate::target::ConfigTree;

/// What the simulated kernel was built with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimKernel {
    /// It lists controllers.
    pub debugfs: bool,
    /// `attr_qid_max` is there.
    pub qid_max: bool,
    /// `attr_model` is there.
    pub model: bool,
    /// `revalidate_size` is there.
    pub revalidate: bool,
    /// Hosts can be authenticated.
    pub authentication: bool,
    /// Ports can begin with TLS.
    pub tls: bool,
    /// Namespaces have reservations.
    pub reservations: bool,
    /// Enabling a namespace needs its device to exist.
    pub devices: bool,
}

impl Default for SimKernel {
    /// All but looking at devices.
    fn default() -> Self {
        Self {
            debugfs: true,
            qid_max: true,
            model: true,
            revalidate: true,
            authentication: true,
            tls: true,
            reservations: true,
            devices: false,
        }
    }
}

pub(super) type Attributes = BTreeMap<String, String>;

#[derive(Debug, Clone, Default)]
pub(super) struct Namespace {
    pub attributes: Attributes,
}

impl Namespace {
    pub fn enabled(&self) -> bool {
        self.attributes.get("enable").is_some_and(|v| v == "1")
    }
}

#[derive(Debug, Clone, Default)]
pub(super) struct Subsystem {
    /// Tells apart one subsystem from a later one of the same name.
    pub generation: u64,
    pub attributes: Attributes,
    pub namespaces: BTreeMap<String, Namespace>,
    /// Link name to host.
    pub hosts: BTreeMap<String, String>,
    /// A host has read the identity, which is fixed from then on.
    pub discovered: bool,
}

impl Subsystem {
    pub fn any_host(&self) -> bool {
        self.attributes.get("attr_allow_any_host").is_some_and(|v| v == "1")
    }
}

#[derive(Debug, Clone, Default)]
pub(super) struct Port {
    pub attributes: Attributes,
    /// What hosts are told of the first group's paths.
    pub ana: Attributes,
    pub referrals: BTreeMap<String, Attributes>,
    /// Link name to subsystem.
    pub links: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
pub(super) struct Controller {
    pub host: String,
    pub subsystem: String,
    pub generation: u64,
    pub port: String,
    /// Told to go: it still executes what had arrived. Looks at debugfs until it has gone.
    pub dying: Option<u8>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub subsystems: BTreeMap<String, Subsystem>,
    pub hosts: BTreeMap<String, Attributes>,
    pub ports: BTreeMap<String, Port>,
    pub controllers: BTreeMap<u64, Controller>,
    pub counter: u64,
    pub refused_portals: BTreeMap<String, Errno>,
    pub revalidated: BTreeMap<String, usize>,
}

impl State {
    /// A number that was not given before; also what stands for the kernel's randomness.
    pub fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    /// Tells controllers to go. As in the kernel, they are gone later.
    pub fn drop_controllers(&mut self, which: impl Fn(&Controller) -> bool) {
        for c in self.controllers.values_mut().filter(|c| which(c)) {
            c.dying.get_or_insert(2);
        }
    }

    pub fn allows(&self, subsystem: &Subsystem, host: &str) -> bool {
        subsystem.any_host() || subsystem.hosts.values().any(|h| h == host)
    }

    /// Whether a connection to a port begins with TLS.
    pub fn is_secure(port: &Port) -> bool {
        port.attributes.get("addr_tsas").is_some_and(|v| v == "tls1.3")
    }

    /// Whether a host that knows that secret, or none, has proved what it must. Of nobody is anything asked where all
    /// are let in.
    pub fn is_proved(&self, subsystem: &Subsystem, host: &str, secret: &str) -> bool {
        let asked = self.hosts.get(host).and_then(|h| h.get("dhchap_key"));
        subsystem.any_host() || asked.is_none_or(|asked| asked.is_empty() || asked == secret)
    }
}

/// A connection of a host to a subsystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ControllerHandle(u64);

/// The simulated kernel.
///
/// The methods here are what hosts and tests do; what the target does goes through [`ConfigTree`].
pub struct SimTree {
    pub(super) kernel: SimKernel,
    pub(super) state: std::sync::Arc<Mutex<State>>,
    faults: Faults,
}

impl SimTree {
    /// An empty target.
    pub fn new(kernel: SimKernel) -> Self {
        Self { kernel, state: std::sync::Arc::default(), faults: Faults::default() }
    }

    /// What the kernel would show in debugfs.
    pub fn debug(&self) -> SimDebug {
        SimDebug { visible: self.kernel.debugfs, state: self.state.clone() }
    }

    /// A host connects by a port, and has no secret.
    pub fn connect(&self, host: &str, subsystem: &str, port: u16) -> io::Result<ControllerHandle> {
        self.connect_with(host, subsystem, port, "")
    }

    /// A host connects by a port, and knows a secret.
    pub fn connect_with(
        &self,
        host: &str,
        subsystem: &str,
        port: u16,
        secret: &str,
    ) -> io::Result<ControllerHandle> {
        let mut state = self.state.lock();
        let port = port.to_string();
        let linked = state.ports.get(&port).is_some_and(|p| p.links.values().any(|s| s == subsystem));
        let Some(found) = state.subsystems.get(subsystem).filter(|_| linked) else {
            return Err(Errno::CONNREFUSED.into());
        };
        if !state.allows(found, host) || !state.is_proved(found, host, secret) {
            return Err(Errno::ACCESS.into());
        }
        let generation = found.generation;
        if let Some(s) = state.subsystems.get_mut(subsystem) {
            s.discovered = true;
        }
        let id = state.next();
        let (host, subsystem) = (host.to_string(), subsystem.to_string());
        state.controllers.insert(id, Controller { host, subsystem, generation, port, dying: None });
        Ok(ControllerHandle(id))
    }

    /// A write by a host. Succeeds if it would reach the disk, be it as the last breath of a controller
    /// that was told to go.
    pub fn io(&self, handle: ControllerHandle) -> io::Result<()> {
        let state = self.state.lock();
        let controller = state.controllers.get(&handle.0).ok_or(Errno::NOTCONN)?;
        let subsystem = state.subsystems.get(&controller.subsystem).ok_or(Errno::IO)?;
        let enabled = subsystem.namespaces.values().any(Namespace::enabled);
        if subsystem.generation == controller.generation && enabled { Ok(()) } else { Err(Errno::IO.into()) }
    }

    /// Whether a controller has not been told to go.
    pub fn is_live(&self, handle: ControllerHandle) -> bool {
        self.state.lock().controllers.get(&handle.0).is_some_and(|c| c.dying.is_none())
    }

    /// Lets all controllers that were told to go, go.
    pub fn settle(&self) {
        self.state.lock().controllers.retain(|_, c| c.dying.is_none());
    }

    /// Of these hosts, those that could connect to a subsystem now, by any port.
    pub fn may_connect<'a>(&self, subsystem: &str, hosts: &[&'a str]) -> BTreeSet<&'a str> {
        let state = self.state.lock();
        let linked = state.ports.values().any(|p| p.links.values().any(|s| s == subsystem));
        let Some(found) = state.subsystems.get(subsystem).filter(|_| linked) else {
            return BTreeSet::new();
        };
        hosts.iter().copied().filter(|h| state.allows(found, h)).collect()
    }

    /// Of these hosts, those that could connect to a subsystem now by a port that does not begin with TLS.
    pub fn may_connect_in_clear<'a>(&self, subsystem: &str, hosts: &[&'a str]) -> BTreeSet<&'a str> {
        let all = self.may_connect(subsystem, hosts);
        let state = self.state.lock();
        let clear = |p: &Port| !State::is_secure(p) && p.links.values().any(|s| s == subsystem);
        if state.ports.values().any(clear) { all } else { BTreeSet::new() }
    }

    /// Of these hosts, those that could connect to a subsystem now without any secret.
    pub fn may_connect_unproved<'a>(&self, subsystem: &str, hosts: &[&'a str]) -> BTreeSet<&'a str> {
        let mut all = self.may_connect(subsystem, hosts);
        let state = self.state.lock();
        let found = state.subsystems.get(subsystem);
        all.retain(|h| found.is_some_and(|s| state.is_proved(s, h, "")));
        all
    }

    /// Every path with its value: directories empty, links with their target.
    pub fn dump(&self) -> BTreeMap<String, String> {
        let state = self.state.lock();
        let mut all = BTreeMap::new();
        let mut put = |at: String, attributes: &Attributes| {
            all.insert(at.clone(), String::new());
            all.extend(attributes.iter().map(|(k, v)| (format!("{at}/{k}"), v.clone())));
        };
        for (n, s) in &state.subsystems {
            put(format!("subsystems/{n}"), &s.attributes);
            for (id, ns) in &s.namespaces {
                put(format!("subsystems/{n}/namespaces/{id}"), &ns.attributes);
            }
            put(format!("subsystems/{n}/allowed_hosts"), &s.hosts);
        }
        for (n, host) in &state.hosts {
            put(format!("hosts/{n}"), host);
        }
        for (n, port) in &state.ports {
            put(format!("ports/{n}"), &port.attributes);
            put(format!("ports/{n}/ana_groups/1"), &port.ana);
            for (name, referral) in &port.referrals {
                put(format!("ports/{n}/referrals/{name}"), referral);
            }
            put(format!("ports/{n}/subsystems"), &port.links);
        }
        all
    }

    /// How often a namespace's size was announced.
    pub fn announced(&self, subsystem: &str) -> usize {
        self.state.lock().revalidated.get(subsystem).copied().unwrap_or_default()
    }

    /// The address can't be listened at (`None`: it can again).
    pub fn refuse_portal(&self, address: &str, errno: Option<Errno>) {
        let mut state = self.state.lock();
        match errno {
            Some(errno) => drop(state.refused_portals.insert(address.into(), errno)),
            None => drop(state.refused_portals.remove(address)),
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

impl ConfigTree for SimTree {
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

/// The part of debugfs that lists controllers. Each look at a subsystem brings controllers that were
/// told to go closer to having gone.
pub struct SimDebug {
    visible: bool,
    state: std::sync::Arc<Mutex<State>>,
}

impl ConfigTree for SimDebug {
    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let mut state = self.state.lock();
        if self.visible && path.is_empty() {
            return Ok(state.subsystems.keys().cloned().collect());
        }
        if !self.visible || !state.subsystems.contains_key(path) {
            return Err(Errno::NOENT.into());
        }
        let generation = state.subsystems.get(path).map(|s| s.generation);
        let mine = |c: &Controller| c.subsystem == path && Some(c.generation) == generation;
        let names = state.controllers.iter().filter(|(_, c)| mine(c)).map(|(id, _)| format!("ctrl{id}"));
        let names = names.collect();
        state.age(path);
        Ok(names)
    }

    fn read(&self, path: &str) -> io::Result<String> {
        let state = self.state.lock();
        let id = path.split('/').nth(1).and_then(|c| c.strip_prefix("ctrl")?.parse().ok());
        let found = id.and_then(|id: u64| state.controllers.get(&id)).map(|c| c.host.clone());
        found.ok_or_else(|| Errno::NOENT.into())
    }

    fn make_dir(&self, _: &str) -> io::Result<()> {
        Err(Errno::ROFS.into())
    }
    fn remove_dir(&self, _: &str) -> io::Result<()> {
        Err(Errno::ROFS.into())
    }
    fn write(&self, _: &str, _: &str) -> io::Result<()> {
        Err(Errno::ROFS.into())
    }
    fn restrict(&self, _: &str) -> io::Result<()> {
        Err(Errno::ROFS.into())
    }
    fn link(&self, _: &str, _: &str) -> io::Result<()> {
        Err(Errno::ROFS.into())
    }
    fn unlink(&self, _: &str) -> io::Result<()> {
        Err(Errno::ROFS.into())
    }
    fn read_link(&self, _: &str) -> io::Result<String> {
        Err(Errno::INVAL.into())
    }
}
