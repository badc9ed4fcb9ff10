//! How the kernel answers: what each directory, attribute and link accepts, and what follows from it.
//! Written after drivers/nvme/target/configfs.c and fs/configfs/dir.c of Linux 6.12.

use std::collections::BTreeMap;

use rustix::io::Errno;

use super::tree::{Attributes, Controller, Namespace, Port, SimKernel, State, Subsystem};

type Answer<T> = Result<T, Errno>;

fn attributes(all: &[(&str, &str)]) -> Attributes {
    all.iter().map(|(k, v)| ((*k).to_string(), (*v).to_string())).collect()
}

fn boolean(value: &str) -> Answer<bool> {
    match value.trim_end() {
        "1" | "y" | "Y" | "on" => Ok(true),
        "0" | "n" | "N" | "off" => Ok(false),
        _ => Err(Errno::INVAL),
    }
}

fn one_of(value: &str, allowed: &[&str]) -> Answer<()> {
    if allowed.contains(&value) { Ok(()) } else { Err(Errno::INVAL) }
}

fn number(value: &str, range: std::ops::RangeInclusive<u64>) -> Answer<()> {
    value.parse().ok().filter(|n| range.contains(n)).map(drop).ok_or(Errno::INVAL)
}

fn printable(value: &str, max: usize) -> Answer<()> {
    let fine = !value.is_empty() && value.len() <= max && value.bytes().all(|b| (0x20..0x7f).contains(&b));
    if fine { Ok(()) } else { Err(Errno::INVAL) }
}

fn parts(path: &str) -> Vec<&str> {
    path.split('/').collect()
}

impl State {
    pub fn make_dir(&mut self, path: &str, kernel: SimKernel) -> Answer<()> {
        match *parts(path) {
            ["subsystems", name] => {
                if self.subsystems.contains_key(name) {
                    return Err(Errno::EXIST);
                }
                // The name in debugfs is taken until the last controller of the old one has gone.
                if kernel.debugfs && self.controllers.values().any(|c| c.subsystem == name) {
                    self.age(name);
                    return Err(Errno::EXIST);
                }
                let generation = self.next();
                let serial = format!("{generation:020x}");
                let mut all = attributes(&[
                    ("attr_allow_any_host", "0"),
                    ("attr_serial", &serial),
                    ("attr_version", "1.3"),
                    ("attr_cntlid_min", "1"),
                    ("attr_cntlid_max", "65519"),
                    ("attr_pi_enable", "0"),
                    ("attr_firmware", "6.12"),
                    ("attr_ieee_oui", "0x000000"),
                ]);
                if kernel.model {
                    all.insert("attr_model".into(), "Linux".into());
                }
                if kernel.qid_max {
                    all.insert("attr_qid_max".into(), "128".into());
                }
                let subsystem = Subsystem { generation, attributes: all, ..Default::default() };
                self.subsystems.insert(name.into(), subsystem);
            }
            ["subsystems", name, "namespaces", id] => {
                number(id, 1..=0xffff_fffe)?;
                let random = format!("00000000-0000-4000-8000-{:012x}", self.next());
                let subsystem = self.subsystems.get_mut(name).ok_or(Errno::NOENT)?;
                if subsystem.namespaces.contains_key(id) {
                    return Err(Errno::EXIST);
                }
                let mut all = attributes(&[
                    ("device_path", "(null)"),
                    ("device_uuid", &random),
                    ("device_nguid", "00000000-0000-0000-0000-000000000000"),
                    ("enable", "0"),
                    ("ana_grpid", "1"),
                    ("buffered_io", "0"),
                ]);
                if kernel.reservations {
                    all.insert("resv_enable".into(), "0".into());
                }
                if kernel.revalidate {
                    all.insert("revalidate_size".into(), String::new());
                }
                subsystem.namespaces.insert(id.into(), Namespace { attributes: all });
            }
            ["hosts", name] => {
                if self.hosts.contains_key(name) {
                    return Err(Errno::EXIST);
                }
                let all = [
                    ("dhchap_key", ""),
                    ("dhchap_ctrl_key", ""),
                    ("dhchap_hash", "hmac(sha256)"),
                    ("dhchap_dhgroup", "null"),
                ];
                let all = if kernel.authentication { attributes(&all) } else { Attributes::new() };
                self.hosts.insert(name.into(), all);
            }
            ["ports", id] => {
                number(id, 0..=65535)?;
                if self.ports.contains_key(id) {
                    return Err(Errno::EXIST);
                }
                let all = [
                    ("addr_trtype", ""),
                    ("addr_adrfam", ""),
                    ("addr_traddr", ""),
                    ("addr_trsvcid", ""),
                    ("addr_treq", "not specified"),
                    ("addr_tsas", ""),
                    ("param_inline_data_size", "-1"),
                    ("param_max_queue_size", "-1"),
                ];
                let ana = attributes(&[("ana_state", "optimized")]);
                let mut port = Port { attributes: attributes(&all), ana, ..Default::default() };
                if !kernel.tls {
                    port.attributes.remove("addr_tsas");
                }
                self.ports.insert(id.into(), port);
            }
            ["ports", id, "referrals", name] => {
                let port = self.ports.get_mut(id).ok_or(Errno::NOENT)?;
                if port.referrals.contains_key(name) {
                    return Err(Errno::EXIST);
                }
                let all = [
                    ("addr_trtype", ""),
                    ("addr_adrfam", ""),
                    ("addr_traddr", ""),
                    ("addr_trsvcid", ""),
                    ("addr_treq", "not specified"),
                    ("addr_portid", "0"),
                    ("enable", "0"),
                ];
                port.referrals.insert(name.into(), attributes(&all));
            }
            _ => return Err(Errno::PERM),
        }
        Ok(())
    }

    pub fn remove_dir(&mut self, path: &str) -> Answer<()> {
        match *parts(path) {
            ["subsystems", name] => {
                let subsystem = self.subsystems.get(name).ok_or(Errno::NOENT)?;
                if self.ports.values().any(|p| p.links.values().any(|s| s == name)) {
                    return Err(Errno::BUSY);
                }
                if !subsystem.namespaces.is_empty() || !subsystem.hosts.is_empty() {
                    return Err(Errno::NOTEMPTY);
                }
                self.drop_controllers(|c| c.subsystem == name);
                self.subsystems.remove(name);
            }
            // Disables it first.
            ["subsystems", name, "namespaces", id] => {
                let subsystem = self.subsystems.get_mut(name).ok_or(Errno::NOENT)?;
                subsystem.namespaces.remove(id).ok_or(Errno::NOENT)?;
            }
            ["hosts", name] => {
                self.hosts.get(name).ok_or(Errno::NOENT)?;
                if self.subsystems.values().any(|s| s.hosts.values().any(|h| h == name)) {
                    return Err(Errno::BUSY);
                }
                self.hosts.remove(name);
            }
            ["ports", id] => {
                let port = self.ports.get(id).ok_or(Errno::NOENT)?;
                if !port.links.is_empty() || !port.referrals.is_empty() {
                    return Err(Errno::NOTEMPTY);
                }
                self.ports.remove(id);
            }
            ["ports", id, "referrals", name] => {
                let port = self.ports.get_mut(id).ok_or(Errno::NOENT)?;
                port.referrals.remove(name).ok_or(Errno::NOENT)?;
            }
            _ => return Err(Errno::PERM),
        }
        Ok(())
    }

    /// The attributes of the directory that a path's last part is in.
    fn attributes_of(&self, directory: &[&str]) -> Option<&Attributes> {
        match *directory {
            ["subsystems", name] => self.subsystems.get(name).map(|s| &s.attributes),
            ["subsystems", name, "namespaces", id] => {
                self.subsystems.get(name)?.namespaces.get(id).map(|n| &n.attributes)
            }
            ["hosts", name] => self.hosts.get(name),
            ["ports", id] => self.ports.get(id).map(|p| &p.attributes),
            ["ports", id, "ana_groups", "1"] => self.ports.get(id).map(|p| &p.ana),
            ["ports", id, "referrals", name] => self.ports.get(id)?.referrals.get(name),
            _ => None,
        }
    }

    pub fn read(&self, path: &str) -> Answer<String> {
        let parts = parts(path);
        let (name, directory) = parts.split_last().ok_or(Errno::NOENT)?;
        let value = self.attributes_of(directory).and_then(|a| a.get(*name)).ok_or(Errno::NOENT)?;
        if *name == "revalidate_size" { Err(Errno::ACCESS) } else { Ok(value.clone()) }
    }

    pub fn write(&mut self, path: &str, value: &str, kernel: SimKernel) -> Answer<()> {
        let all = parts(path);
        let (name, directory) = all.split_last().ok_or(Errno::NOENT)?;
        let old = self.attributes_of(directory).and_then(|a| a.get(*name)).ok_or(Errno::NOENT)?.clone();
        match *directory {
            ["subsystems", nqn] => self.write_subsystem(nqn, name, value, &old),
            ["subsystems", nqn, "namespaces", id] => self.write_namespace(nqn, id, name, value, kernel),
            ["ports", id] => self.write_port(id, name, value),
            ["ports", id, "ana_groups", "1"] => {
                let states = ["optimized", "non-optimized", "inaccessible", "persistent-loss", "change"];
                one_of(value, &states)?;
                let port = self.ports.get_mut(id).ok_or(Errno::NOENT)?;
                port.ana.insert((*name).into(), value.into());
                Ok(())
            }
            ["ports", id, "referrals", of] => {
                let port = self.ports.get_mut(id).ok_or(Errno::NOENT)?;
                let referral = port.referrals.get_mut(of).ok_or(Errno::NOENT)?;
                let enabled = referral.get("enable").is_some_and(|v| v == "1");
                match *name {
                    "enable" => drop(boolean(value)?),
                    _ if enabled => return Err(Errno::ACCESS),
                    _ => {}
                }
                referral.insert((*name).into(), value.into());
                Ok(())
            }
            ["hosts", host] => {
                // A zero ends the text, so one alone is the empty text.
                let value = value.split('\0').next().unwrap_or_default();
                match *name {
                    "dhchap_hash" => one_of(value, &["hmac(sha256)", "hmac(sha384)", "hmac(sha512)"])?,
                    "dhchap_dhgroup" => {
                        let groups =
                            ["null", "ffdhe2048", "ffdhe3072", "ffdhe4096", "ffdhe6144", "ffdhe8192"];
                        one_of(value, &groups)?;
                    }
                    _ if value.is_empty() || value.starts_with("DHHC-1:0") => {}
                    _ => return Err(Errno::INVAL),
                }
                self.hosts.get_mut(host).ok_or(Errno::NOENT)?.insert((*name).into(), value.into());
                Ok(())
            }
            _ => Err(Errno::NOENT),
        }
    }

    fn write_subsystem(&mut self, nqn: &str, name: &str, value: &str, old: &str) -> Answer<()> {
        let subsystem = self.subsystems.get_mut(nqn).ok_or(Errno::NOENT)?;
        match name {
            "attr_allow_any_host" if boolean(value)? && !subsystem.hosts.is_empty() => {
                return Err(Errno::INVAL);
            }
            "attr_allow_any_host" => {}
            "attr_serial" | "attr_model" if subsystem.discovered => return Err(Errno::INVAL),
            "attr_serial" => printable(value, 20)?,
            "attr_model" => printable(value, 40)?,
            "attr_qid_max" => number(value, 1..=128)?,
            _ => return Err(Errno::INVAL),
        }
        subsystem.attributes.insert(name.into(), value.into());
        // Linux 6.12 does so for the same value too; 5.18 did not: the stricter of the two.
        if name == "attr_qid_max" && value != old {
            let generation = subsystem.generation;
            self.drop_controllers(|c| c.subsystem == nqn && c.generation == generation);
        }
        Ok(())
    }

    fn write_namespace(
        &mut self,
        nqn: &str,
        id: &str,
        name: &str,
        value: &str,
        kernel: SimKernel,
    ) -> Answer<()> {
        let subsystem = self.subsystems.get_mut(nqn).ok_or(Errno::NOENT)?;
        let namespace = subsystem.namespaces.get_mut(id).ok_or(Errno::NOENT)?;
        let enabled = namespace.enabled();
        let mut value = value.to_string();
        match name {
            "resv_enable" if enabled => return Err(Errno::BUSY),
            "resv_enable" => drop(boolean(&value)?),
            "device_path" | "device_uuid" | "device_nguid" if enabled => return Err(Errno::BUSY),
            "device_path" if value.is_empty() => return Err(Errno::INVAL),
            "device_path" => {}
            "device_uuid" | "device_nguid" => {
                let parsed = uuid::Uuid::try_parse(&value).map_err(|_| Errno::INVAL)?;
                value = parsed.hyphenated().to_string();
            }
            "enable" => {
                let on = boolean(&value)?;
                let device = namespace.attributes.get("device_path").cloned().unwrap_or_default();
                let exists = !kernel.devices || std::path::Path::new(&device).exists();
                if on && (device == "(null)" || !exists) {
                    return Err(if device == "(null)" { Errno::INVAL } else { Errno::NOENT });
                }
                value = u8::from(on).to_string();
            }
            "revalidate_size" => {
                if !boolean(&value)? || !enabled {
                    return Err(Errno::INVAL);
                }
                *self.revalidated.entry(nqn.into()).or_default() += 1;
                return Ok(());
            }
            _ => return Err(Errno::INVAL),
        }
        namespace.attributes.insert(name.into(), value);
        Ok(())
    }

    fn write_port(&mut self, id: &str, name: &str, value: &str) -> Answer<()> {
        let port = self.ports.get_mut(id).ok_or(Errno::NOENT)?;
        if !port.links.is_empty() {
            return Err(Errno::ACCESS);
        }
        match name {
            "addr_trtype" => {
                one_of(value, &["tcp", "rdma", "loop", "fc"])?;
                let security = if value == "tcp" { "none" } else { "connected" };
                if let Some(tsas) = port.attributes.get_mut("addr_tsas") {
                    *tsas = security.into();
                }
            }
            "addr_tsas" => {
                one_of(value, &["none", "tls1.3"])?;
                let required = if value == "tls1.3" { "required" } else { "not specified" };
                port.attributes.insert("addr_treq".into(), required.into());
            }
            "addr_treq" => one_of(value, &["not specified", "required", "not required"])?,
            "param_max_queue_size" => number(value, 0..=65535)?,
            "addr_adrfam" => one_of(value, &["ipv4", "ipv6", "ib", "fc", "loop"])?,
            "addr_traddr" => printable(value, 256)?,
            "addr_trsvcid" => printable(value, 32)?,
            _ => {}
        }
        port.attributes.insert(name.into(), value.into());
        Ok(())
    }

    pub fn link(&mut self, target: &str, path: &str) -> Answer<()> {
        match (&*parts(target), &*parts(path)) {
            (["hosts", host], ["subsystems", nqn, "allowed_hosts", entry]) => {
                self.hosts.get(*host).ok_or(Errno::NOENT)?;
                let subsystem = self.subsystems.get_mut(*nqn).ok_or(Errno::NOENT)?;
                if subsystem.any_host() {
                    return Err(Errno::INVAL);
                }
                if subsystem.hosts.contains_key(*entry) || subsystem.hosts.values().any(|h| h == host) {
                    return Err(Errno::EXIST);
                }
                subsystem.hosts.insert((*entry).into(), (*host).into());
            }
            (["subsystems", nqn], ["ports", id, "subsystems", entry]) => {
                self.subsystems.get(*nqn).ok_or(Errno::NOENT)?;
                let port = self.ports.get(*id).ok_or(Errno::NOENT)?;
                if port.links.contains_key(*entry) || port.links.values().any(|s| s == nqn) {
                    return Err(Errno::EXIST);
                }
                if port.links.is_empty() {
                    self.open(port)?;
                }
                let port = self.ports.get_mut(*id).ok_or(Errno::NOENT)?;
                port.links.insert((*entry).into(), (*nqn).into());
            }
            _ => return Err(Errno::INVAL),
        }
        Ok(())
    }

    /// The first link to a port makes it listen.
    fn open(&self, port: &Port) -> Answer<()> {
        let address = |p: &Port| {
            let get = |n| p.attributes.get(n).cloned().unwrap_or_default();
            (get("addr_traddr"), get("addr_trsvcid"))
        };
        let mine = address(port);
        if port.attributes.get("addr_trtype").is_none_or(|t| t != "tcp") {
            return Err(Errno::INVAL);
        }
        if let Some(errno) = self.refused_portals.get(&mine.0) {
            return Err(*errno);
        }
        let taken = self.ports.values().any(|p| !p.links.is_empty() && address(p) == mine);
        if taken { Err(Errno::ADDRINUSE) } else { Ok(()) }
    }

    pub fn unlink(&mut self, path: &str) -> Answer<()> {
        match *parts(path) {
            // Leaves the controllers alone.
            ["subsystems", nqn, "allowed_hosts", entry] => {
                let subsystem = self.subsystems.get_mut(nqn).ok_or(Errno::NOENT)?;
                subsystem.hosts.remove(entry).ok_or(Errno::NOENT)?;
            }
            ["ports", id, "subsystems", entry] => {
                let port = self.ports.get_mut(id).ok_or(Errno::NOENT)?;
                let nqn = port.links.remove(entry).ok_or(Errno::NOENT)?;
                self.drop_controllers(|c| c.subsystem == nqn && c.port == id);
            }
            _ => return Err(Errno::PERM),
        }
        Ok(())
    }

    pub fn list(&self, path: &str) -> Answer<Vec<String>> {
        fn names<V>(map: &BTreeMap<String, V>) -> Vec<String> {
            map.keys().cloned().collect()
        }
        Ok(match *parts(path) {
            ["subsystems"] => names(&self.subsystems),
            ["hosts"] => names(&self.hosts),
            ["ports"] => names(&self.ports),
            ["subsystems", nqn, "namespaces"] => {
                names(&self.subsystems.get(nqn).ok_or(Errno::NOENT)?.namespaces)
            }
            ["subsystems", nqn, "allowed_hosts"] => {
                names(&self.subsystems.get(nqn).ok_or(Errno::NOENT)?.hosts)
            }
            ["ports", id, "subsystems"] => names(&self.ports.get(id).ok_or(Errno::NOENT)?.links),
            ["ports", id, "referrals"] => names(&self.ports.get(id).ok_or(Errno::NOENT)?.referrals),
            ref directory => names(self.attributes_of(directory).ok_or(Errno::NOENT)?),
        })
    }

    pub fn read_link(&self, path: &str) -> Answer<String> {
        let found = match *parts(path) {
            ["subsystems", nqn, "allowed_hosts", entry] => {
                self.subsystems.get(nqn).and_then(|s| s.hosts.get(entry))
            }
            ["ports", id, "subsystems", entry] => self.ports.get(id).and_then(|p| p.links.get(entry)),
            _ => None,
        };
        found.cloned().ok_or(Errno::NOENT)
    }

    /// Controllers of a subsystem that were told to go come closer to having gone.
    pub fn age(&mut self, subsystem: &str) {
        let mine = |c: &Controller| c.subsystem == subsystem;
        for c in self.controllers.values_mut().filter(|c| mine(c)) {
            c.dying = c.dying.map(|n| n.saturating_sub(1));
        }
        self.controllers.retain(|_, c| !mine(c) || c.dying != Some(0));
    }
}
