//! A `ctld`, a `ctladm` and a kernel that behave like FreeBSD's, as far as their sources were understood: they read the
//! file with a parser of their own, apply differences, judge logins, and keep sessions until somebody ends them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub(crate) mod ucl;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde_json::Value;

use super::{Ctld, List};
use crate::kernel::exec::ExecError;
use crate::kernel::{Deadline, Overrun};

type R<T> = std::result::Result<T, ExecError>;

/// What can be wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// `ctld` does not run.
    Dead,
    /// It takes the signal and does nothing.
    Deaf,
    /// It finds every file bad.
    Picky,
    /// Commands hang until the deadline.
    Hang,
    /// Lists are not what they should be.
    Garbage,
    /// Sessions are not ended.
    Sticky,
}

#[derive(Debug, Clone, PartialEq)]
struct FakeLun {
    /// `None`: made by `ctladm create`.
    name: Option<String>,
    path: String,
    size: u64,
    serial: String,
    /// Decided when it is made, and not again.
    read_only: bool,
    options: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq)]
struct FakePort {
    nvme: bool,
    target: String,
    group: String,
    /// By number there.
    luns: BTreeMap<u64, u64>,
}

/// A session or association.
#[derive(Debug, Clone, PartialEq)]
pub struct FakeSession {
    /// Its number.
    pub id: u64,
    /// What it calls itself.
    pub claims: String,
    /// Who it is.
    pub truly: String,
    /// Where.
    pub target: String,
    /// What its owner may put into lists.
    pub alias: String,
}

/// A process of `ctld` that is busy with a login.
#[derive(Debug, Clone)]
struct Login {
    pid: u32,
    conf: Value,
    claims: String,
    truly: String,
    target: String,
    user: Option<(String, String)>,
}

#[derive(Default)]
struct World {
    file: PathBuf,
    /// What `ctld` has read.
    conf: Value,
    luns: BTreeMap<u64, FakeLun>,
    ports: Vec<FakePort>,
    sessions: Vec<FakeSession>,
    logins: Vec<Login>,
    faults: Vec<Fault>,
    broken: BTreeSet<String>,
    /// How many more changes work before all commands fail.
    budget: Option<usize>,
    next: u64,
    reloads: usize,
    /// A login goes on for that many more looks at it.
    looks: usize,
}

/// See the module.
#[derive(Default)]
pub struct Fake(Mutex<World>);

fn objects<'a>(conf: &'a Value, section: &str) -> Vec<(&'a String, &'a Value)> {
    conf.get(section).and_then(Value::as_object).into_iter().flatten().collect()
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key)?.as_str()
}

fn need(condition: bool, what: &str) -> Result<(), String> {
    if condition { Ok(()) } else { Err(what.to_string()) }
}

fn check_group(group: &Value) -> Result<(), String> {
    let kind = text(group, "auth-type");
    need(kind.is_none_or(|k| ["none", "deny", "chap", "chap-mutual"].contains(&k)), "auth-type")?;
    for key in ["chap", "chap-mutual"] {
        let Some(list) = group.get(key) else { continue };
        need(kind.is_none_or(|k| k == key), "mixed types")?;
        let mut users = BTreeSet::new();
        for one in list.as_array().ok_or("no list")? {
            let wanted: &[&str] = if key == "chap" {
                &["user", "secret"]
            } else {
                &["user", "secret", "mutual-user", "mutual-secret"]
            };
            for field in wanted {
                need(text(one, field).is_some_and(|t| !t.is_empty()), field)?;
            }
            need(users.insert(text(one, "user").unwrap()), "duplicate user")?;
        }
    }
    need(group.get("chap").is_none() || group.get("chap-mutual").is_none(), "mixed types")
}

fn check_lun(lun: &Value) -> Result<(), String> {
    need(text(lun, "path").is_some(), "path")?;
    let block = lun.get("blocksize").map_or(Some(512), Value::as_u64).ok_or("blocksize")?;
    let size = lun.get("size").map_or(Some(0), Value::as_u64).ok_or("size")?;
    need(block > 0 && size % block == 0, "size must be multiple of blocksize")
}

/// What `ctld -t` finds out.
fn check(conf: &Value) -> Result<(), String> {
    for key in ["auth-group", "portal-group", "transport-group", "target", "controller", "lun"] {
        need(conf.get(key).is_none_or(Value::is_object), key)?;
    }
    need(conf.get("timeout").is_none_or(Value::is_u64), "timeout")?;
    for (_, group) in objects(conf, "auth-group") {
        check_group(group)?;
    }
    for (targets, groups, luns) in
        [("target", "portal-group", "lun"), ("controller", "transport-group", "namespace")]
    {
        for (name, target) in objects(conf, targets) {
            need(!name.is_empty(), "name")?;
            if let Some(group) = text(target, "auth-group") {
                let known = group == "no-authentication" || group == "no-access";
                need(known || conf["auth-group"].get(group).is_some(), "unknown auth-group")?;
            }
            if let Some(group) = text(target, groups) {
                need(conf.get(groups).is_some_and(|g| g.get(group).is_some()), "unknown portal-group")?;
            }
            for (number, lun) in objects(target, luns) {
                need(number.parse::<u64>().is_ok_and(|n| targets == "target" || n > 0), "number")?;
                check_lun(lun)?;
            }
        }
    }
    Ok(())
}

/// The LUNs of a configuration: by name, with the port and number.
fn luns_of(conf: &Value) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    for (targets, luns, word) in [("target", "lun", "lun"), ("controller", "namespace", "nsid")] {
        for (name, target) in objects(conf, targets) {
            for (number, lun) in objects(target, luns) {
                all.insert(format!("{name},{word},{number}"), lun.clone());
            }
        }
    }
    all
}

impl World {
    /// The group that judges who may use a target.
    fn judges<'a>(conf: &'a Value, target: &str) -> Option<&'a Value> {
        let group = text(conf.get("target")?.get(target)?, "auth-group")?;
        conf.get("auth-group")?.get(group)
    }

    fn reload(&mut self) {
        self.reloads += 1;
        if self.faults.contains(&Fault::Deaf) {
            return;
        }
        let Ok(bytes) = std::fs::read(&self.file) else { return };
        let Ok(new) = ucl::parse(&String::from_utf8(bytes).unwrap()) else { return };
        if check(&new).is_err() {
            return;
        }
        self.apply(&new);
        self.conf = new;
    }

    fn apply(&mut self, new: &Value) {
        let mut wanted: Vec<FakePort> = Vec::new();
        for (targets, groups, nvme) in
            [("target", "portal-group", false), ("controller", "transport-group", true)]
        {
            for (name, target) in objects(new, targets) {
                let group = text(target, groups).unwrap_or("default").to_string();
                wanted.push(FakePort { nvme, target: name.clone(), group, luns: BTreeMap::new() });
            }
        }
        // Ports that go take their sessions with them, whoever made them but for those of ctladm.
        let same = |a: &FakePort, b: &FakePort| a.target == b.target && a.group == b.group;
        let gone: Vec<String> = self
            .ports
            .iter()
            .filter(|p| p.group != "ioctl" && !wanted.iter().any(|w| same(p, w)))
            .map(|p| p.target.clone())
            .collect();
        self.ports.retain(|p| !gone.contains(&p.target));
        self.sessions.retain(|s| !gone.contains(&s.target));
        let luns = luns_of(new);
        self.luns.retain(|_, l| {
            let Some(name) = &l.name else { return true };
            luns.get(name).is_some_and(|n| {
                text(n, "path") == Some(&l.path) && text(n, "serial").unwrap_or_default() == l.serial
            })
        });
        for (name, lun) in &luns {
            let options: BTreeMap<String, String> = objects(lun, "options")
                .into_iter()
                .map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_string()))
                .collect();
            let size = lun.get("size").and_then(Value::as_u64).unwrap_or(1 << 20);
            if let Some(old) = self.luns.values_mut().find(|l| l.name.as_ref() == Some(name)) {
                (old.size, old.options) = (size, options);
                continue;
            }
            let path = text(lun, "path").unwrap().to_string();
            if self.broken.contains(&path) {
                continue;
            }
            self.next += 1;
            let read_only = options.get("readonly").is_some_and(|v| v == "on");
            let serial = text(lun, "serial").unwrap_or_default().to_string();
            self.luns.insert(
                self.next,
                FakeLun { name: Some(name.clone()), path, size, serial, read_only, options },
            );
        }
        for mut port in wanted {
            for (id, lun) in &self.luns {
                let mine =
                    lun.name.as_ref().and_then(|n| n.split_once(',')).filter(|(t, _)| *t == port.target);
                if let Some((_, number)) = mine {
                    port.luns.insert(number.split_once(',').unwrap().1.parse().unwrap(), *id);
                }
            }
            match self.ports.iter_mut().find(|p| same(p, &port)) {
                Some(old) => *old = port,
                None => self.ports.push(port),
            }
        }
    }

    /// Judges a login by a configuration.
    fn permits(conf: &Value, target: &str, claims: &str, user: Option<&(String, String)>) -> bool {
        let named = text(&conf["target"][target], "auth-group") == Some("no-authentication");
        let Some(group) = Self::judges(conf, target) else { return named };
        let names = group.get("initiator-name").and_then(Value::as_array);
        if names.is_some_and(|n| !n.is_empty() && !n.iter().any(|v| v == claims)) {
            return false;
        }
        match text(group, "auth-type") {
            Some("none") => true,
            Some(kind @ ("chap" | "chap-mutual")) => {
                let all = group[kind].as_array().cloned().unwrap_or_default();
                let fits = |e: &Value| {
                    user.is_some_and(|(u, s)| text(e, "user") == Some(u) && text(e, "secret") == Some(s))
                };
                all.iter().any(fits)
            }
            _ => false,
        }
    }

    fn enter(&mut self, login: &Login) -> Option<u64> {
        let port = self.ports.iter().any(|p| p.target == login.target && !p.nvme);
        if !port || !Self::permits(&login.conf, &login.target, &login.claims, login.user.as_ref()) {
            return None;
        }
        Some(self.session(&login.claims, &login.truly, &login.target))
    }

    fn session(&mut self, claims: &str, truly: &str, target: &str) -> u64 {
        self.next += 1;
        let alias = String::new();
        self.sessions.push(FakeSession {
            id: self.next,
            claims: claims.into(),
            truly: truly.into(),
            target: target.into(),
            alias,
        });
        self.next
    }
}

impl Fake {
    /// One whose `ctld` was started with a file.
    pub fn new(file: &Path) -> Self {
        let world = World { file: file.into(), conf: Value::Null, ..World::default() };
        Self(Mutex::new(world))
    }

    fn spend(&self, deadline: &Deadline, change: bool) -> R<()> {
        let mut w = self.0.lock();
        let command = "ctladm".to_string();
        if w.faults.contains(&Fault::Hang) {
            return Err(ExecError::Overrun { command, source: Overrun });
        }
        deadline.check().map_err(|source| ExecError::Overrun { command: command.clone(), source })?;
        if let Some(budget) = w.budget.as_mut().filter(|_| change) {
            match budget.checked_sub(1) {
                Some(left) => *budget = left,
                None => {
                    let detail = "device not configured".into();
                    return Err(ExecError::Failed { command, status: "status 1".into(), detail });
                }
            }
        }
        Ok(())
    }

    /// Something is wrong from now on.
    pub fn fault(&self, fault: Fault) {
        self.0.lock().faults.push(fault);
    }

    /// All is well again.
    pub fn heal(&self) {
        let mut w = self.0.lock();
        (w.faults, w.budget) = (Vec::new(), None);
        w.broken.clear();
    }

    /// Commands that would change something fail after so many.
    pub fn fault_after(&self, changes: usize) {
        self.0.lock().budget = Some(changes);
    }

    /// A device that can't be opened.
    pub fn break_device(&self, path: &str) {
        self.0.lock().broken.insert(path.into());
    }

    /// How often `ctld` was told to read its file.
    pub fn reloads(&self) -> usize {
        self.0.lock().reloads
    }

    /// Whether a host may use a target now, by what `ctld` has read.
    pub fn may(&self, target: &str, claims: &str, user: Option<(String, String)>) -> bool {
        let w = self.0.lock();
        w.ports.iter().any(|p| p.target == target && p.nvme)
            || w.ports.iter().any(|p| p.target == target)
                && World::permits(&w.conf, target, claims, user.as_ref())
    }

    /// A host logs in.
    pub fn log_in(
        &self,
        target: &str,
        claims: &str,
        truly: &str,
        user: Option<(String, String)>,
    ) -> Option<u64> {
        let mut w = self.0.lock();
        if w.ports.iter().any(|p| p.target == target && p.nvme) {
            return Some(w.session(claims, truly, target));
        }
        let login = Login {
            pid: 0,
            conf: w.conf.clone(),
            claims: claims.into(),
            truly: truly.into(),
            target: target.into(),
            user,
        };
        w.enter(&login)
    }

    /// A host begins to log in, and gets on after so many looks at it.
    pub fn begin(&self, target: &str, host: &str, user: Option<(String, String)>, looks: usize) {
        let mut w = self.0.lock();
        w.looks = looks;
        let (pid, conf) = (4000, w.conf.clone());
        let (claims, truly) = (host.to_string(), host.to_string());
        w.logins.push(Login { pid, conf, claims, truly, target: target.into(), user });
    }

    /// Who is connected.
    pub fn sessions(&self) -> Vec<FakeSession> {
        self.0.lock().sessions.clone()
    }

    /// A session's owner chooses what lists show of it.
    pub fn set_alias(&self, session: u64, alias: &str) {
        let mut w = self.0.lock();
        w.sessions.iter_mut().find(|s| s.id == session).unwrap().alias = alias.into();
    }

    /// `ctladm create`.
    pub fn create(&self, path: &str) {
        let mut w = self.0.lock();
        w.next += 1;
        let id = w.next;
        let (name, serial) = (None, "MYSERIAL".into());
        w.luns.insert(
            id,
            FakeLun {
                name,
                path: path.into(),
                size: 512,
                serial,
                read_only: false,
                options: BTreeMap::new(),
            },
        );
    }

    /// `ctladm remove`.
    pub fn remove(&self, name: &str) {
        self.0.lock().luns.retain(|_, l| l.name.as_deref() != Some(name));
    }

    /// The paths of LUNs, with whether nobody may write and the size.
    pub fn luns(&self) -> BTreeMap<String, (bool, u64)> {
        self.0.lock().luns.values().map(|l| (l.path.clone(), (l.read_only, l.size))).collect()
    }

    /// The targets and controllers.
    pub fn targets(&self) -> BTreeSet<String> {
        self.0.lock().ports.iter().map(|p| p.target.clone()).collect()
    }
}

impl Ctld for Fake {
    fn accepts(&self, file: &Path, deadline: &Deadline) -> R<bool> {
        self.spend(deadline, true)?;
        let text = std::fs::read_to_string(file).unwrap();
        let good = ucl::parse(&text).and_then(|c| check(&c)).is_ok();
        Ok(good && !self.0.lock().faults.contains(&Fault::Picky))
    }

    fn reload(&self, pidfile: &Path, deadline: &Deadline) -> R<bool> {
        self.spend(deadline, true)?;
        assert_eq!(pidfile, Path::new("/var/run/ctld.pid"));
        let mut w = self.0.lock();
        if w.faults.contains(&Fault::Dead) {
            return Ok(false);
        }
        w.reload();
        Ok(true)
    }

    fn logins(&self, _pidfile: &Path, deadline: &Deadline) -> R<BTreeSet<u32>> {
        self.spend(deadline, false)?;
        let mut w = self.0.lock();
        let found = w.logins.iter().map(|l| l.pid).collect();
        match w.looks.checked_sub(1) {
            Some(left) => w.looks = left,
            None => {
                for login in std::mem::take(&mut w.logins) {
                    w.enter(&login);
                }
            }
        }
        Ok(found)
    }

    fn list(&self, what: List, deadline: &Deadline) -> R<String> {
        self.spend(deadline, false)?;
        let w = self.0.lock();
        if w.faults.contains(&Fault::Garbage) {
            return Ok("<ctl?\n".into());
        }
        let mut out = String::new();
        match what {
            List::Luns => {
                out.push_str("<ctllunlist>\n");
                for (id, l) in &w.luns {
                    let (size, path, serial) = (l.size / 512, &l.path, &l.serial);
                    write!(
                        out,
                        "<lun id=\"{id}\">\n\t<backend_type>block</backend_type>\n\t<lun_type>0</lun_type>\n\t\
                         <size>{size}</size>\n\t<blocksize>512</blocksize>\n\t<serial_number>{serial}</serial_number>\
                         \n\t<device_id>x</device_id>\n\t<num_threads>14</num_threads>\n\t<file>{path}</file>\n"
                    )
                    .unwrap();
                    if let Some(name) = &l.name {
                        writeln!(out, "\t<ctld_name>{name}</ctld_name>").unwrap();
                    }
                    for (key, value) in l.options.iter().filter(|(k, _)| *k != "readonly") {
                        writeln!(out, "\t<{key}>{value}</{key}>").unwrap();
                    }
                    if l.read_only {
                        out.push_str("\t<readonly>on</readonly>\n");
                    }
                    out.push_str("</lun>\n");
                }
                out.push_str("</ctllunlist>\n");
            }
            List::Ports => {
                out.push_str(
                    "<ctlportlist>\n<targ_port id=\"0\">\n\t<frontend_type>ioctl</frontend_type>\n\
                              \t<online>YES</online>\n</targ_port>\n",
                );
                for (n, p) in w.ports.iter().enumerate() {
                    let (kind, target, group) = if p.nvme {
                        ("nvmf", "subnqn", "ctld_transport_group_name")
                    } else {
                        ("iscsi", "cfiscsi_target", "ctld_portal_group_name")
                    };
                    write!(
                        out,
                        "<targ_port id=\"{}\">\n\t<frontend_type>{kind}</frontend_type>\n\t<online>YES</online>\n\t\
                         <{target}>{}</{target}>\n\t<{group}>{}</{group}>\n\t<lun_map>on</lun_map>\n",
                        n + 3,
                        p.target,
                        p.group
                    )
                    .unwrap();
                    for (number, lun) in &p.luns {
                        writeln!(out, "\t<lun id=\"{number}\">{lun}</lun>").unwrap();
                    }
                    out.push_str("</targ_port>\n");
                }
                out.push_str("</ctlportlist>\n");
            }
            List::IscsiSessions | List::NvmeSessions => {
                let nvme = what == List::NvmeSessions;
                let list = if nvme { "ctlnvmflist" } else { "ctlislist" };
                writeln!(out, "<{list}>").unwrap();
                for s in &w.sessions {
                    let there = w.ports.iter().any(|p| p.target == s.target && p.nvme == nvme);
                    if there && nvme {
                        writeln!(
                            out,
                            "<connection id=\"{}\"><hostnqn>{}</hostnqn><subnqn>{}</subnqn><trtype>3</trtype>\
                             </connection>",
                            s.id, s.claims, s.target
                        )
                        .unwrap();
                    } else if there {
                        writeln!(
                            out,
                            "<connection id=\"{}\"><initiator>{}</initiator><initiator_addr>10.0.0.9\
                             </initiator_addr><initiator_alias>{}</initiator_alias><target>{}</target>\
                             <target_alias></target_alias><header_digest>None</header_digest><data_digest>None\
                             </data_digest><immediate_data>1</immediate_data><iser>0</iser><offload>None</offload>\
                             </connection>",
                            s.id, s.claims, s.alias, s.target
                        )
                        .unwrap();
                    }
                }
                writeln!(out, "</{list}>").unwrap();
            }
        }
        Ok(out)
    }

    fn terminate(&self, session: u64, deadline: &Deadline) -> R<()> {
        self.spend(deadline, true)?;
        let mut w = self.0.lock();
        if !w.faults.contains(&Fault::Sticky) {
            w.sessions.retain(|s| s.id != session);
        }
        Ok(())
    }
}
