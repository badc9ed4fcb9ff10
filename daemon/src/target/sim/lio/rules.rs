//! How the kernel answers: what each directory, attribute and link accepts, and what follows from it. Written after
//! what Linux 6.12 does, and drivers/target and fs/configfs/dir.c of it.

use std::ops::Bound;

use rustix::io::Errno;

use super::{Known, Node, Session, SimLioKernel, State};

type Answer<T> = Result<T, Errno>;

/// What begins a serial number when it is read.
const SERIAL: &str = "T10 VPD Unit Serial Number: ";

fn parts(path: &str) -> Vec<&str> {
    path.split('/').collect()
}

fn boolean(value: &str) -> Answer<()> {
    if matches!(value, "0" | "1") { Ok(()) } else { Err(Errno::INVAL) }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// `iscsi/<target>/<portal group>` of a path inside.
fn group_of(path: &str) -> String {
    path.split('/').take(3).collect::<Vec<_>>().join("/")
}

impl State {
    /// A number that was not given before.
    pub fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    fn below(&self, path: &str) -> impl Iterator<Item = (&String, &Node)> {
        let prefix = format!("{path}/");
        let from = (Bound::Excluded(prefix.clone()), Bound::Unbounded);
        self.nodes.range(from).take_while(move |(p, _)| p.starts_with(&prefix))
    }

    /// The names in a directory.
    pub fn children(&self, path: &str) -> Vec<String> {
        let depth = path.len() + 1;
        let direct = self.below(path).filter(|(p, _)| !p[depth..].contains('/'));
        direct.map(|(p, _)| p[depth..].to_string()).collect()
    }

    fn attribute(&self, path: &str) -> &str {
        match self.nodes.get(path) {
            Some(Node::Attribute(value)) => value,
            _ => "",
        }
    }

    fn is_link_target(&self, path: &str) -> bool {
        self.nodes.values().any(|n| matches!(n, Node::Link(target) if target == path))
    }

    fn links_in(&self, path: &str) -> Vec<&str> {
        let direct = self.below(path).filter(|(p, _)| parent(p) == path);
        direct.filter_map(|(_, n)| if let Node::Link(to) = n { Some(to.as_str()) } else { None }).collect()
    }

    fn put(&mut self, at: &str, node: Node, attributes: &[(&str, &str)], groups: &[&str]) {
        self.nodes.insert(at.into(), node);
        for group in groups {
            self.nodes.insert(format!("{at}/{group}"), Node::Group);
        }
        for (name, value) in attributes {
            self.nodes.insert(format!("{at}/{name}"), Node::Attribute((*value).into()));
        }
    }

    pub fn make_dir(&mut self, path: &str, kernel: SimLioKernel) -> Answer<()> {
        if self.nodes.contains_key(path) {
            return Err(Errno::EXIST);
        }
        let all = parts(path);
        if all.len() > 1 && !self.nodes.contains_key(parent(path)) {
            return Err(Errno::NOENT);
        }
        match *all {
            ["iscsi"] => self.put(path, Node::Item, &[("lio_version", "v4.1.0")], &["discovery_auth"]),
            ["core", adapter] if adapter.starts_with("iblock_") => self.put(path, Node::Item, &[], &[]),
            ["core", _, _] => {
                let attributes = [
                    ("control", ""),
                    ("enable", "0"),
                    ("udev_path", ""),
                    ("info", "Status: DEACTIVATED\n          readonly: 0"),
                    ("wwn/vpd_unit_serial", SERIAL),
                    ("wwn/vendor_id", "LIO-ORG"),
                    ("attrib/emulate_tpu", "0"),
                    ("attrib/emulate_tpws", "0"),
                    ("attrib/max_unmap_block_desc_count", "0"),
                    ("alua/default_tg_pt_gp/alua_access_state", "0"),
                    ("alua/default_tg_pt_gp/alua_access_type", "Implicit and Explicit"),
                    ("alua/default_tg_pt_gp/alua_support_active_optimized", "1"),
                    ("pr/res_aptpl_metadata", ""),
                ];
                let groups = ["alua", "alua/default_tg_pt_gp", "attrib", "pr", "wwn"];
                self.put(path, Node::Item, &attributes, &groups);
                if kernel.product {
                    let product = Node::Attribute("IBLOCK".into());
                    self.nodes.insert(format!("{path}/wwn/product_id"), product);
                }
            }
            ["iscsi", _] => self.put(path, Node::Item, &[], &["fabric_statistics"]),
            ["iscsi", _, group] if group.starts_with("tpgt_") => {
                let attributes = [
                    ("enable", "0"),
                    ("dynamic_sessions", ""),
                    ("attrib/authentication", "1"),
                    ("attrib/cache_dynamic_acls", "0"),
                    ("attrib/demo_mode_discovery", "1"),
                    ("attrib/demo_mode_write_protect", "1"),
                    ("attrib/generate_node_acls", "0"),
                    ("attrib/prod_mode_write_protect", "0"),
                ];
                let groups = ["acls", "attrib", "auth", "lun", "np", "param"];
                self.put(path, Node::Item, &attributes, &groups);
            }
            ["iscsi", _, _, "lun", lun] if lun.starts_with("lun_") => {
                self.put(path, Node::Item, &[("alua_tg_pt_gp", "")], &["statistics"]);
            }
            ["iscsi", _, _, "np", portal] => {
                if portal.parse::<std::net::SocketAddr>().is_err() {
                    return Err(Errno::INVAL);
                }
                if let Some(errno) = self.refused_portals.get(portal) {
                    return Err(*errno);
                }
                self.put(path, Node::Item, &[("iser", "0")], &[]);
            }
            ["iscsi", _, _, "acls", host] => {
                let attributes = [
                    ("info", "No active iSCSI Session"),
                    ("auth/authenticate_target", "0"),
                    ("auth/userid", ""),
                    ("auth/password", ""),
                    ("auth/userid_mutual", ""),
                    ("auth/password_mutual", ""),
                    ("attrib/nopin_timeout", "15"),
                ];
                self.put(path, Node::Item, &attributes, &["attrib", "auth", "param"]);
                if kernel.own_authentication {
                    let inherited = Node::Attribute("-1".into());
                    self.nodes.insert(format!("{path}/attrib/authentication"), inherited);
                }
                // It takes over one that had no directory, with its sessions.
                let group = group_of(path);
                self.cached.remove(&(group.clone(), host.to_string()));
                for s in self.sessions.values_mut().filter(|s| s.group == group && s.host == host) {
                    s.dynamic = false;
                }
            }
            ["iscsi", _, _, "acls", _, lun] if lun.starts_with("lun_") => {
                self.put(path, Node::Item, &[("write_protect", "")], &["statistics"]);
            }
            _ => return Err(Errno::PERM),
        }
        Ok(())
    }

    pub fn remove_dir(&mut self, path: &str) -> Answer<()> {
        match self.nodes.get(path) {
            None => return Err(Errno::NOENT),
            Some(Node::Item) => {}
            Some(Node::Group) => return Err(Errno::PERM),
            Some(_) => return Err(Errno::NOTDIR),
        }
        if self.below(path).any(|(_, n)| matches!(n, Node::Item | Node::Link(_))) {
            return Err(Errno::NOTEMPTY);
        }
        if self.is_link_target(path) {
            return Err(Errno::BUSY);
        }
        let inside: Vec<String> = self.below(path).map(|(p, _)| p.clone()).collect();
        for path in inside {
            self.nodes.remove(&path);
        }
        self.nodes.remove(path);
        match *parts(path) {
            // Ends its sessions and waits for them.
            ["iscsi", _, _, "acls", host] => {
                let group = group_of(path);
                self.sessions.retain(|_, s| !(s.group == group && s.host == host));
            }
            ["iscsi", _, _] => {
                self.sessions.retain(|_, s| s.group != path);
                self.cached.retain(|(group, _)| group != path);
            }
            ["core", _, _] => drop(self.restored.remove(path)),
            _ => {}
        }
        Ok(())
    }

    pub fn read(&self, path: &str) -> Answer<String> {
        match (self.nodes.get(path), &*parts(path)) {
            (Some(Node::Attribute(_)), ["core", _, _, "control"]) => Err(Errno::ACCESS),
            (Some(Node::Attribute(_)), ["iscsi", _, _, "dynamic_sessions"]) => {
                let group = group_of(path);
                let dynamic = self.sessions.values().filter(|s| s.dynamic && s.group == group);
                let text: String = dynamic.map(|s| format!("{}\n\0", s.host)).collect();
                Ok(text)
            }
            (Some(Node::Attribute(value)), _) => Ok(value.trim_end().to_string()),
            (Some(Node::Item | Node::Group), _) => Err(Errno::ISDIR),
            _ => Err(Errno::NOENT),
        }
    }

    pub fn write(&mut self, path: &str, value: &str, kernel: SimLioKernel) -> Answer<()> {
        match self.nodes.get(path) {
            Some(Node::Attribute(_)) => {}
            Some(_) => return Err(Errno::ISDIR),
            None => return Err(Errno::NOENT),
        }
        let mut value = value.to_string();
        match *parts(path) {
            ["core", _, _, "control"] => return self.point(parent(path), &value),
            ["core", _, _, "enable"] => return self.enable_backstore(parent(path), &value, kernel),
            ["core", _, _, "wwn", attribute] => {
                let backstore = parent(parent(path));
                if self.is_link_target(backstore) {
                    return Err(Errno::INVAL);
                }
                if attribute == "vpd_unit_serial" {
                    value = format!("{SERIAL}{value}");
                }
            }
            ["core", _, _, "attrib", "emulate_tpu" | "emulate_tpws"] => {
                boolean(&value)?;
                let backstore = parent(parent(path));
                if self.attribute(&format!("{backstore}/enable")) != "1" {
                    return Err(Errno::NODEV);
                }
                if !kernel.discard && value == "1" {
                    return Err(Errno::NOSYS);
                }
            }
            ["core", _, _, "alua", _, attribute] => value = self.alua(parent(path), attribute, &value)?,
            ["core", _, _, "pr", "res_aptpl_metadata"] => {
                let backstore = parent(parent(path)).to_string();
                if self.is_link_target(&backstore) || !value.contains("initiator_node=") {
                    return Err(Errno::INVAL);
                }
                self.restored.entry(backstore).or_default().push(value);
                return Ok(());
            }
            ["core", _, _, "udev_path"] => {}
            ["iscsi", _, _, "enable"] => {
                boolean(&value)?;
                if self.attribute(path) == value {
                    return Err(Errno::INVAL);
                }
                if value == "0" {
                    let group = group_of(path);
                    self.end_sessions(|_, s| s.group == group);
                }
            }
            ["iscsi", _, _, "attrib", attribute] => {
                boolean(&value)?;
                // The kernel does so by itself, and does not take it back.
                if attribute == "generate_node_acls" && value == "1" {
                    let cache = format!("{}/cache_dynamic_acls", parent(path));
                    self.nodes.insert(cache, Node::Attribute("1".into()));
                }
            }
            ["iscsi", _, _, "acls", _, "attrib", "authentication"] => {
                if value != "-1" {
                    boolean(&value)?;
                }
            }
            ["iscsi", _, _, "acls", _, "auth", "authenticate_target"] => return Err(Errno::ACCESS),
            // A write of nothing is none.
            ["iscsi", _, _, "acls", _, "auth", _] if value.is_empty() => return Ok(()),
            ["iscsi", _, _, "acls", _, "auth", _] => {}
            ["iscsi", _, _, "acls", _, _, "write_protect"] => {
                boolean(&value)?;
                // Without a link it is taken and forgotten.
                if self.links_in(parent(path)).is_empty() {
                    return Ok(());
                }
            }
            _ => return Err(Errno::ACCESS),
        }
        self.nodes.insert(path.into(), Node::Attribute(value));
        Ok(())
    }

    /// How an attribute of a group of target ports reads when that was written.
    fn alua(&self, group: &str, attribute: &str, value: &str) -> Answer<String> {
        let number: u32 = value.parse().map_err(|_| Errno::INVAL)?;
        let is = |attribute: &str| self.attribute(&format!("{group}/{attribute}"));
        match attribute {
            "alua_support_active_optimized" => Ok(u8::from(number != 0).to_string()),
            "alua_access_type" => {
                let all = ["None", "Implicit", "Explicit", "Implicit and Explicit"];
                let found = usize::try_from(number).ok().and_then(|n| all.get(n));
                found.map(|text| (*text).to_string()).ok_or(Errno::INVAL)
            }
            "alua_access_state" => {
                if self.attribute(&format!("{}/enable", parent(parent(group)))) != "1" {
                    return Err(Errno::NODEV);
                }
                let implicit = is("alua_access_type").starts_with("Implicit");
                let supported = match number {
                    0 => is("alua_support_active_optimized") == "1",
                    // Dependent on the address, which explicit ALUA excludes.
                    4 => is("alua_access_type") == "Implicit",
                    n => n < 4,
                };
                if implicit && supported { Ok(number.to_string()) } else { Err(Errno::INVAL) }
            }
            _ => Err(Errno::ACCESS),
        }
    }

    fn point(&mut self, backstore: &str, value: &str) -> Answer<()> {
        if self.attribute(&format!("{backstore}/enable")) == "1" {
            return Err(Errno::EXIST);
        }
        let device = value.strip_prefix("udev_path=").ok_or(Errno::INVAL)?;
        let info = format!("Status: DEACTIVATED\n          UDEV PATH: {device}  readonly: 0\n");
        self.nodes.insert(format!("{backstore}/info"), Node::Attribute(info));
        Ok(())
    }

    fn device(&self, backstore: &str) -> Option<&str> {
        let device = self.attribute(&format!("{backstore}/info")).split_once("UDEV PATH: ")?.1;
        device.split_once("  readonly").map(|(device, _)| device)
    }

    /// Opens the device for itself alone.
    fn enable_backstore(&mut self, backstore: &str, value: &str, kernel: SimLioKernel) -> Answer<()> {
        let path = format!("{backstore}/enable");
        if value != "1" || self.attribute(&path) == "1" {
            return Err(if value == "1" { Errno::EXIST } else { Errno::INVAL });
        }
        let device = self.device(backstore).ok_or(Errno::INVAL)?;
        if kernel.devices && !std::path::Path::new(device).exists() {
            return Err(Errno::NOENT);
        }
        let others = self.nodes.iter().filter(|(p, n)| {
            matches!(*parts(p), ["core", _, _, "enable"]) && **n == Node::Attribute("1".into())
        });
        if others.map(|(p, _)| parent(p)).any(|other| self.device(other) == Some(device)) {
            return Err(Errno::BUSY);
        }
        self.nodes.insert(path, Node::Attribute("1".into()));
        let count = if kernel.discard { "1" } else { "0" };
        let path = format!("{backstore}/attrib/max_unmap_block_desc_count");
        self.nodes.insert(path, Node::Attribute(count.into()));
        Ok(())
    }

    pub fn link(&mut self, target: &str, path: &str) -> Answer<()> {
        if !self.nodes.contains_key(target) || !self.nodes.contains_key(parent(path)) {
            return Err(Errno::NOENT);
        }
        if self.nodes.contains_key(path) {
            return Err(Errno::EXIST);
        }
        match (&*parts(target), &*parts(path)) {
            (["core", _, _], ["iscsi", _, _, "lun", _, _]) => {
                if self.attribute(&format!("{target}/enable")) != "1" {
                    return Err(Errno::NODEV);
                }
                if !self.links_in(parent(path)).is_empty() {
                    return Err(Errno::EXIST);
                }
            }
            (["iscsi", _, _, "lun", _], ["iscsi", _, _, "acls", _, _, _]) => {
                if group_of(target) != group_of(path) || self.links_in(target).is_empty() {
                    return Err(Errno::INVAL);
                }
                if !self.links_in(parent(path)).is_empty() {
                    return Err(Errno::EXIST);
                }
                let at_first = format!("{}/attrib/prod_mode_write_protect", group_of(path));
                let at_first = self.attribute(&at_first).to_string();
                self.nodes.insert(format!("{}/write_protect", parent(path)), Node::Attribute(at_first));
            }
            _ => return Err(Errno::PERM),
        }
        self.nodes.insert(path.into(), Node::Link(target.into()));
        Ok(())
    }

    pub fn unlink(&mut self, path: &str) -> Answer<()> {
        match self.nodes.get(path) {
            Some(Node::Link(_)) => {}
            Some(_) => return Err(Errno::PERM),
            None => return Err(Errno::NOENT),
        }
        self.nodes.remove(path);
        if matches!(*parts(path), ["iscsi", _, _, "acls", ..]) {
            let path = format!("{}/write_protect", parent(path));
            self.nodes.insert(path, Node::Attribute(String::new()));
        }
        Ok(())
    }

    pub fn list(&self, path: &str) -> Answer<Vec<String>> {
        if path.is_empty() {
            return Ok(self.nodes.keys().filter(|p| !p.contains('/')).cloned().collect());
        }
        match self.nodes.get(path) {
            Some(Node::Item | Node::Group) => Ok(self.children(path)),
            Some(_) => Err(Errno::NOTDIR),
            None => Err(Errno::NOENT),
        }
    }

    pub fn read_link(&self, path: &str) -> Answer<String> {
        match self.nodes.get(path) {
            Some(Node::Link(target)) => Ok(name(target).to_string()),
            Some(_) => Err(Errno::INVAL),
            None => Err(Errno::NOENT),
        }
    }

    /// Ends sessions. A node ACL without a directory stays if the portal group says so.
    pub(super) fn end_sessions(&mut self, which: impl Fn(u64, &Session) -> bool) {
        let ended: Vec<u64> =
            self.sessions.iter().filter(|(id, s)| which(**id, s)).map(|(id, _)| *id).collect();
        for id in ended {
            let Some(session) = self.sessions.remove(&id) else { continue };
            let cache = format!("{}/attrib/cache_dynamic_acls", session.group);
            if session.dynamic && self.attribute(&cache) == "1" {
                self.cached.insert((session.group, session.host));
            }
        }
    }

    /// Whether a host may log in: to which portal group, and whether without a directory.
    pub fn admits(&self, host: &str, target: &str, known: Known<'_>) -> Answer<(String, bool)> {
        let mut answer = Err(Errno::CONNREFUSED);
        for group in self.children(&format!("iscsi/{target}")) {
            let group = format!("iscsi/{target}/{group}");
            let open = self.attribute(&format!("{group}/enable")) == "1";
            if !open || self.children(&format!("{group}/np")).is_empty() {
                continue;
            }
            let acl = format!("{group}/acls/{host}");
            let all = self.attribute(&format!("{group}/attrib/authentication"));
            let (asked, dynamic) = if self.nodes.contains_key(&acl) {
                let own = self.attribute(&format!("{acl}/attrib/authentication"));
                (if own.is_empty() || own == "-1" { all } else { own }, false)
            } else {
                let cached = self.cached.contains(&(group.clone(), host.to_string()))
                    || self.sessions.values().any(|s| s.dynamic && s.group == group && s.host == host);
                let named = self.attribute(&format!("{group}/attrib/generate_node_acls")) != "1";
                if named && !cached {
                    answer = Err(Errno::ACCESS);
                    continue;
                }
                (all, true)
            };
            // Without a directory there is no secret that would pass.
            let proved = !dynamic
                && known.is_some()
                && self.credentials_at(&acl).as_ref().map(|(u, s)| (&**u, &**s)) == known;
            if asked == "0" || proved {
                return Ok((group, dynamic));
            }
            answer = Err(Errno::ACCESS);
        }
        answer
    }

    fn credentials_at(&self, acl: &str) -> Option<(String, String)> {
        let of = |what: &str| self.attribute(&format!("{acl}/auth/{what}"));
        let set = |value: &str| !value.is_empty() && !value.starts_with("NULL");
        let (user, secret) = (of("userid"), of("password"));
        (set(user) && set(secret)).then(|| (user.to_string(), secret.to_string()))
    }

    pub fn credentials(&self, target: &str, host: &str) -> Option<(String, String)> {
        let groups = self.children(&format!("iscsi/{target}"));
        groups.iter().find_map(|g| self.credentials_at(&format!("iscsi/{target}/{g}/acls/{host}")))
    }

    fn serves(&self, lun: &str) -> bool {
        let enabled = |b: &&str| self.attribute(&format!("{b}/enable")) == "1";
        self.links_in(lun).iter().any(enabled)
    }

    /// Whether a node ACL reaches a disk, and may write.
    pub fn mapped(&self, group: &str, host: &str) -> Option<bool> {
        let acl = format!("{group}/acls/{host}");
        let mut best = None;
        for lun in self.children(&acl).iter().filter(|n| n.starts_with("lun_")) {
            let at = format!("{acl}/{lun}");
            if self.links_in(&at).iter().any(|lun| self.serves(lun)) {
                let writes = self.attribute(&format!("{at}/write_protect")) != "1";
                best = Some(best.unwrap_or_default() || writes);
            }
        }
        best
    }

    /// Whether a session reaches a disk, and may write.
    pub fn reach(&self, session: u64) -> Answer<bool> {
        let session = self.sessions.get(&session).ok_or(Errno::NOTCONN)?;
        if !session.dynamic {
            return self.mapped(&session.group, &session.host).ok_or(Errno::NXIO);
        }
        let luns = format!("{}/lun", session.group);
        let served = self.children(&luns).iter().any(|lun| self.serves(&format!("{luns}/{lun}")));
        let protect = format!("{}/attrib/demo_mode_write_protect", session.group);
        if served { Ok(self.attribute(&protect) != "1") } else { Err(Errno::NXIO) }
    }
}
