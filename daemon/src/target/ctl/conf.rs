//! The configuration as a value: what of it is ours, and how a volume looks in it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use orlop_api::{ChapPut, VolumeId};
use serde_json::{Map, Value, json};

use super::kernel::GENERATION;
use super::state::{Admission, Entry};
use super::{CtlConfig, Kind, NvmeAccess};
use crate::target::keys::{HostKeys, Proof};
use crate::target::{Export, HostId, Rights};

/// What initiators read as the model of every volume.
const PRODUCT: &str = "Orlop";

/// In bytes. What hosts see; the backing may have larger ones.
pub(super) const BLOCK_SIZE: u64 = 512;

/// The name of our groups of portals.
pub(super) const GROUP: &str = "orlop";

/// Where NVMe hosts ask for controllers.
const DISCOVERY_PORT: u16 = 8009;

/// How long a login may take, in seconds. `ctld` ends the process that has not finished by then and a second later, and
/// a fence waits for those that began before it.
const LOGIN_TIMEOUT: u64 = 10;

/// The sections of the file by protocol: volumes, LUNs within, their number, and groups of portals.
struct Words {
    targets: &'static str,
    luns: &'static str,
    lun: &'static str,
    portals: &'static str,
    hosts: &'static str,
}

const fn words(kind: Kind) -> Words {
    match kind {
        Kind::Iscsi => Words {
            targets: "target",
            luns: "lun",
            lun: "0",
            portals: "portal-group",
            hosts: "initiator-name",
        },
        Kind::Nvme => Words {
            targets: "controller",
            luns: "namespace",
            lun: "1",
            portals: "transport-group",
            hosts: "host-nqn",
        },
    }
}

/// What `ctld` calls the LUN of a target.
pub(super) fn lun_name(kind: Kind, target: &str) -> String {
    match kind {
        Kind::Iscsi => format!("{target},lun,0"),
        Kind::Nvme => format!("{target},nsid,1"),
    }
}

fn group_name(kind: Kind, volume: VolumeId) -> String {
    match kind {
        Kind::Iscsi => format!("orlop-iscsi-{volume}"),
        Kind::Nvme => format!("orlop-nvme-{volume}"),
    }
}

/// The size that hosts see: `ctld` takes no part of a block, and not the whole file if one has it.
pub(super) fn visible(export: &Export) -> u64 {
    export.size.0 - export.size.0 % BLOCK_SIZE
}

/// How the hosts of a target prove who they are. `ctld` has one manner for all.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Manner {
    Not,
    Chap,
    Mutual,
}

/// Who is let in, and with what.
pub(super) struct Draft {
    pub admission: Admission,
    manner: Manner,
    chap: BTreeMap<String, ChapPut>,
}

fn manner_of(proof: Option<&Proof>) -> Option<Manner> {
    match proof {
        None | Some(Proof::Nothing) => Some(Manner::Not),
        Some(Proof::Chap(put)) if put.target.is_some() => Some(Manner::Mutual),
        Some(Proof::Chap(_)) => Some(Manner::Chap),
        Some(Proof::Secret(_)) => None,
    }
}

/// The hosts that a protocol knows.
fn hosts_of(kind: Kind, hosts: &BTreeMap<HostId, Rights>) -> BTreeMap<String, Rights> {
    let known = |h: &HostId| match kind {
        Kind::Iscsi => matches!(h, HostId::Iqn(_)),
        Kind::Nvme => matches!(h, HostId::Nqn(_)),
    };
    hosts.iter().filter(|(h, _)| known(h)).map(|(h, r)| (h.to_string(), *r)).collect()
}

impl Draft {
    /// Decides who is let in. Who can't be let in as he should be is left out: never let in with more than he should
    /// have, or without a proof that he should give.
    pub(super) fn of(config: &CtlConfig, kind: Kind, export: &Export, keys: &HostKeys) -> Self {
        Self::among(config, kind, &hosts_of(kind, &export.hosts), keys)
    }

    pub(super) fn among(
        config: &CtlConfig,
        kind: Kind,
        hosts: &BTreeMap<String, Rights>,
        keys: &HostKeys,
    ) -> Self {
        match kind {
            Kind::Iscsi => Self::iscsi(hosts, keys),
            Kind::Nvme => Self::nvme(config.nvme_access, hosts, keys),
        }
    }

    fn iscsi(all: &BTreeMap<String, Rights>, keys: &HostKeys) -> Self {
        let mut left_out = BTreeMap::new();
        let read_only = all.values().all(|r| r.read_only);
        let mut proofs = BTreeMap::new();
        for (host, rights) in all {
            let proof = keys.get(host);
            if rights.read_only && !read_only {
                left_out
                    .insert(host.clone(), "reads only, and others write: a LUN of CTL has one right for all");
            } else if let Some(manner) = manner_of(proof.as_ref()) {
                proofs.insert(host.clone(), (manner, proof));
            } else {
                left_out.insert(host.clone(), "must prove itself by what iSCSI has not");
            }
        }
        let manner = proofs.values().map(|(m, _)| m.clone()).max().unwrap_or(Manner::Not);
        let mut users: BTreeMap<String, ChapPut> = BTreeMap::new();
        let (mut hosts, mut chap) = (BTreeSet::new(), BTreeMap::new());
        for (host, (own, proof)) in proofs {
            if own != manner {
                left_out.insert(
                    host,
                    "proves itself in another way than others: a target of ctld has one way for all",
                );
                continue;
            }
            if let Some(Proof::Chap(put)) = proof {
                let user = put.host.user.to_string();
                if users.get(&user).is_some_and(|other| *other != *put) {
                    left_out.insert(host, "has the CHAP user of another host, with another secret");
                    continue;
                }
                users.insert(user, (*put).clone());
                chap.insert(host.clone(), *put);
            }
            hosts.insert(host);
        }
        Self { admission: Admission { hosts, left_out, read_only }, manner, chap }
    }

    /// Nobody checks who connects: so either all hosts are as they may be in fact, or none is let in.
    fn nvme(access: NvmeAccess, all: &BTreeMap<String, Rights>, keys: &HostKeys) -> Self {
        let read_only = all.values().all(|r| r.read_only);
        let proves = |h: &String| !matches!(keys.get(h), None | Some(Proof::Nothing));
        let why = if access == NvmeAccess::Refused {
            Some("would be let in like anybody else: ctld does not check NVMe hosts")
        } else if all.keys().any(proves) {
            Some("must prove a secret, or would be let in beside one that must: ctld asks nobody for one")
        } else if !read_only && all.values().any(|r| r.read_only) {
            Some("reads only while others write, or is one of the others: a namespace has one right for all")
        } else {
            None
        };
        let admission = match why {
            Some(why) => Admission {
                hosts: BTreeSet::new(),
                left_out: all.keys().map(|h| (h.clone(), why)).collect(),
                read_only,
            },
            None => Admission { hosts: all.keys().cloned().collect(), left_out: BTreeMap::new(), read_only },
        };
        Self { admission, manner: Manner::Not, chap: BTreeMap::new() }
    }

    /// The authentication group. Only for a draft that lets somebody in: without names it would let in everybody.
    fn group(&self, kind: Kind) -> Value {
        let names: Vec<&String> = self.admission.hosts.iter().collect();
        // Each user once: two hosts may share one.
        let users: BTreeMap<String, &ChapPut> =
            self.chap.values().map(|c| (c.host.user.to_string(), c)).collect();
        let users = users.values().map(|put| {
            let mut one = json!({"user": put.host.user.as_str(), "secret": put.host.secret.expose()});
            if let Some(target) = &put.target {
                one["mutual-user"] = target.user.as_str().into();
                one["mutual-secret"] = target.secret.expose().into();
            }
            one
        });
        let users: Vec<Value> = users.collect();
        let mut group = match self.manner {
            Manner::Not => json!({"auth-type": "none"}),
            Manner::Chap => json!({"auth-type": "chap", "chap": users}),
            Manner::Mutual => json!({"auth-type": "chap-mutual", "chap-mutual": users}),
        };
        group[words(kind).hosts] = json!(names);
        group
    }
}

fn lun(kind: Kind, export: &Export, read_only: bool, generation: u64) -> Value {
    let identity = &export.identity;
    let mut options = json!({
        GENERATION: generation.to_string(),
        "product": PRODUCT,
        // A write that was acknowledged is durable.
        "writecache": "off",
    });
    if read_only {
        options["readonly"] = "on".into();
    }
    match kind {
        Kind::Iscsi => options["naa"] = format!("0x{}", identity.wwn()).into(),
        Kind::Nvme => {
            options["uuid"] = identity.uuid.hyphenated().to_string().into();
            options["eui"] = format!("0x{}", identity.nguid_hyphenated().replace('-', "")).into();
        }
    }
    // CTL keeps 16 characters of a serial number.
    let serial = identity.scsi_serial.get(..16).unwrap_or(&identity.scsi_serial);
    json!({
        "backend": "block",
        "blocksize": BLOCK_SIZE,
        "device-id": identity.scsi_serial,
        "options": options,
        "path": export.backing.to_string_lossy(),
        "serial": serial,
        "size": visible(export),
    })
}

/// What the file should have of a volume: its authentication group, and its target. `None`: nobody is let in.
fn rendered(
    kind: Kind,
    volume: VolumeId,
    export: &Export,
    draft: &Draft,
    generation: u64,
) -> Option<(Value, Value)> {
    if draft.admission.hosts.is_empty() {
        return None;
    }
    let words = words(kind);
    let lun = lun(kind, export, draft.admission.read_only, generation);
    let target = json!({
        "auth-group": group_name(kind, volume),
        words.luns: {words.lun: lun},
        words.portals: GROUP,
    });
    Some((draft.group(kind), target))
}

/// The configuration. Its Debug would show secrets, so it has none.
#[derive(Clone, Default, PartialEq)]
pub(super) struct Conf(Map<String, Value>);

/// A section of named objects.
fn section<'a>(map: &'a Map<String, Value>, name: &str) -> Option<&'a Map<String, Value>> {
    map.get(name)?.as_object()
}

impl Conf {
    /// From the file. An error says why it is not ours, and nothing of what is in it.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let value: Value =
            serde_json::from_slice(bytes).map_err(|e| format!("is not JSON at line {}", e.line()))?;
        let Value::Object(map) = value else { return Err("is not an object".into()) };
        for kind in [Kind::Iscsi, Kind::Nvme] {
            for name in [words(kind).targets, words(kind).portals, "auth-group", "orlop"] {
                if map.get(name).is_some_and(|v| !v.is_object()) {
                    return Err(format!("has a {name} that is not an object"));
                }
            }
        }
        Ok(Self(map))
    }

    /// As text.
    pub(super) fn text(&self) -> String {
        super::ucl::render(&Value::Object(self.0.clone()))
    }

    /// Changes a section, which is made if it is not there. `parse` has seen that it is an object.
    fn insert(&mut self, name: &str, key: &str, value: Value) {
        if let Value::Object(map) = self.0.entry(name).or_insert_with(|| json!({})) {
            map.insert(key.into(), value);
        }
    }

    fn close(&mut self, name: &str, key: &str) {
        if let Some(Value::Object(map)) = self.0.get_mut(name) {
            map.remove(key);
            if map.is_empty() {
                self.0.remove(name);
            }
        }
    }

    /// The number of the file.
    pub(super) fn generation(&self) -> u64 {
        section(&self.0, "orlop").and_then(|o| o.get("generation")?.as_u64()).unwrap_or(0)
    }

    /// Gives the file another number, and each LUN of ours with it.
    pub(super) fn set_generation(&mut self, config: &CtlConfig, generation: u64) {
        self.insert("orlop", "generation", generation.into());
        for kind in [Kind::Iscsi, Kind::Nvme] {
            let words = words(kind);
            let Some(Value::Object(targets)) = self.0.get_mut(words.targets) else { continue };
            for (_, target) in targets.iter_mut().filter(|(n, _)| config.volume(kind, n).is_some()) {
                if let Some(options) = target
                    .get_mut(words.luns)
                    .and_then(|l| l.get_mut(words.lun))
                    .and_then(|l| l.get_mut("options"))
                    .and_then(Value::as_object_mut)
                {
                    options.insert(GENERATION.into(), generation.to_string().into());
                }
            }
        }
    }

    /// The part of a second in the time of its file, in nanoseconds: so whoever writes the file otherwise takes the number
    /// from it, even if he leaves it in. Whole microseconds, which file systems keep, and never zero.
    pub(super) fn mark(&self) -> u32 {
        let micros = self.generation() % 999_999 + 1;
        u32::try_from(micros * 1000).unwrap_or_default()
    }

    /// The volumes of which there is something.
    pub(super) fn volumes(&self, config: &CtlConfig, kind: Kind) -> BTreeSet<VolumeId> {
        let names = section(&self.0, words(kind).targets).into_iter().flat_map(Map::keys);
        names.filter_map(|n| config.volume(kind, n)).collect()
    }

    /// The volumes that a host left, and whose sessions were not ended since.
    pub(super) fn unsettled(&self) -> BTreeSet<String> {
        let list = section(&self.0, "orlop").and_then(|o| o.get("unsettled")?.as_array());
        list.into_iter().flatten().filter_map(|v| v.as_str().map(str::to_string)).collect()
    }

    /// Notes or forgets that sessions of a volume are to be ended.
    pub(super) fn set_unsettled(&mut self, volume: VolumeId, unsettled: bool) {
        let mut list = self.unsettled();
        if unsettled {
            list.insert(volume.to_string());
        } else {
            list.remove(&volume.to_string());
        }
        self.close("orlop", "unsettled");
        if !list.is_empty() {
            self.insert("orlop", "unsettled", json!(list));
        }
    }

    /// What it has of a volume.
    pub(super) fn entry(&self, config: &CtlConfig, kind: Kind, volume: VolumeId) -> Option<Entry> {
        let words = words(kind);
        let target = section(&self.0, words.targets)?.get(&config.name(kind, volume))?;
        let lun = target.get(words.luns).and_then(|l| l.get(words.lun));
        let path = lun.and_then(|l| l.get("path")?.as_str()).unwrap_or_default().to_string();
        let read_only = lun.and_then(|l| l.get("options")?.get("readonly")?.as_str()) == Some("on");
        let ours = target.get("auth-group").and_then(Value::as_str) == Some(&group_name(kind, volume));
        let names = section(&self.0, "auth-group")
            .filter(|_| ours)
            .and_then(|g| g.get(&group_name(kind, volume))?.get(words.hosts)?.as_array());
        let names: Option<BTreeSet<String>> =
            names.map(|n| n.iter().filter_map(|v| v.as_str().map(str::to_string)).collect());
        Some(Entry { hosts: names.filter(|n| !n.is_empty()), read_only, path })
    }

    /// Whether it has of a volume what it should.
    pub(super) fn is_right(
        &self,
        config: &CtlConfig,
        kind: Kind,
        volume: VolumeId,
        export: &Export,
        draft: &Draft,
    ) -> bool {
        let target = section(&self.0, words(kind).targets).and_then(|t| t.get(&config.name(kind, volume)));
        let group = section(&self.0, "auth-group").and_then(|g| g.get(&group_name(kind, volume)));
        match rendered(kind, volume, export, draft, self.generation()) {
            None => target.is_none() && group.is_none(),
            Some((g, t)) => group == Some(&g) && target == Some(&t),
        }
    }

    /// Puts a volume in, or takes it out if nobody is to be let in. A host that is let in no more is noted.
    pub(super) fn set(
        &mut self,
        config: &CtlConfig,
        kind: Kind,
        volume: VolumeId,
        export: &Export,
        draft: &Draft,
    ) {
        let Some((group, target)) = rendered(kind, volume, export, draft, self.generation()) else {
            return self.drop(config, kind, volume);
        };
        self.note_leaving(config, kind, volume, &draft.admission);
        self.insert("auth-group", &group_name(kind, volume), group);
        self.insert(words(kind).targets, &config.name(kind, volume), target);
    }

    /// The same of its authentication group alone.
    pub(super) fn set_group(&mut self, config: &CtlConfig, kind: Kind, volume: VolumeId, draft: &Draft) {
        if draft.admission.hosts.is_empty() {
            return self.drop(config, kind, volume);
        }
        self.note_leaving(config, kind, volume, &draft.admission);
        self.insert("auth-group", &group_name(kind, volume), draft.group(kind));
    }

    fn note_leaving(&mut self, config: &CtlConfig, kind: Kind, volume: VolumeId, next: &Admission) {
        let left = self
            .entry(config, kind, volume)
            .is_some_and(|e| e.hosts.is_none_or(|h| !h.is_subset(&next.hosts)));
        if left {
            self.set_unsettled(volume, true);
        }
    }

    /// Puts the volumes back as they were written, where somebody else has changed them since: what is not looked at now
    /// must not be read by `ctld` as somebody left it. Who was let in by that meanwhile is noted.
    pub(super) fn restore(&mut self, config: &CtlConfig, written: &Self) {
        for kind in [Kind::Iscsi, Kind::Nvme] {
            for volume in self.volumes(config, kind) {
                let (name, group) = (config.name(kind, volume), group_name(kind, volume));
                let own = written.entry(config, kind, volume).and_then(|e| e.hosts).unwrap_or_default();
                // What is gone is not brought back, and who lets in fewer may.
                if !self.entry(config, kind, volume).is_some_and(|e| e.lets_in_others(&own)) {
                    continue;
                }
                for (section_name, key) in [(words(kind).targets, &name), ("auth-group", &group)] {
                    match section(&written.0, section_name).and_then(|s| s.get(key)) {
                        Some(value) => self.insert(section_name, key, value.clone()),
                        None => self.close(section_name, key),
                    }
                }
                self.set_unsettled(volume, true);
            }
        }
        for volume in written.unsettled() {
            if let Ok(volume) = volume.parse() {
                self.set_unsettled(volume, true);
            }
        }
        let generation = self.generation().max(written.generation());
        self.set_generation(config, generation);
    }

    /// Whether somebody whose sessions are to be ended is let in, or was, by what was written or by what somebody else has
    /// made of it since, when these are to stay: what a change would note.
    pub(super) fn is_left(
        &self,
        config: &CtlConfig,
        kind: Kind,
        volume: VolumeId,
        written: &Self,
        stay: &BTreeSet<String>,
    ) -> bool {
        let own = written.entry(config, kind, volume);
        let left = self.entry(config, kind, volume).is_some_and(|found| {
            own.as_ref().is_some_and(|o| o.lets_in_others(stay))
                || found.lets_in_others(&own.and_then(|o| o.hosts).unwrap_or_default())
        });
        left || written.unsettled().contains(&volume.to_string())
    }

    /// Where it is not known what was written: takes out what lets in everybody.
    pub(super) fn shut(&mut self, config: &CtlConfig) {
        for kind in [Kind::Iscsi, Kind::Nvme] {
            for volume in self.volumes(config, kind) {
                if self.entry(config, kind, volume).is_some_and(|e| e.hosts.is_none()) {
                    self.drop(config, kind, volume);
                }
            }
        }
    }

    /// Takes a volume out. Its port goes, and the kernel ends what is connected there.
    pub(super) fn drop(&mut self, config: &CtlConfig, kind: Kind, volume: VolumeId) {
        self.close(words(kind).targets, &config.name(kind, volume));
        self.close("auth-group", &group_name(kind, volume));
        self.set_unsettled(volume, false);
    }

    /// Makes what belongs to no volume as it should be.
    pub(super) fn frame(&mut self, config: &CtlConfig) {
        self.0.insert("pidfile".into(), config.pidfile.to_string_lossy().into());
        self.0.insert("timeout".into(), LOGIN_TIMEOUT.into());
        let listen = |kind| config.portals(kind).iter().map(ToString::to_string).collect::<Vec<_>>();
        // Everybody may ask, and hears of those targets alone that name him.
        let iscsi = json!({
            "discovery-auth-group": "no-authentication",
            "discovery-filter": "portal-name",
            "listen": listen(Kind::Iscsi),
        });
        let mut discovery: Vec<String> = Vec::new();
        for portal in &config.nvme {
            let at = super::PortalConfig { port: DISCOVERY_PORT, ..*portal }.to_string();
            if !discovery.contains(&at) {
                discovery.push(at);
            }
        }
        let nvme = json!({
            "discovery-filter": "address-name",
            "listen": {"discovery-tcp": discovery, "tcp": listen(Kind::Nvme)},
        });
        for (kind, group) in [(Kind::Iscsi, iscsi), (Kind::Nvme, nvme)] {
            let used = !self.volumes(config, kind).is_empty();
            if used {
                self.insert(words(kind).portals, GROUP, group);
            } else {
                self.close(words(kind).portals, GROUP);
            }
        }
    }

    /// Whether it is as it should be.
    pub(super) fn frame_right(&self, config: &CtlConfig) -> bool {
        let mut should = self.clone();
        should.frame(config);
        *self == should
    }

    /// The targets or controllers that are not ours, with the devices of their LUNs. A LUN may be one that is named
    /// elsewhere in the file.
    pub(super) fn foreign_targets(
        &self,
        config: &CtlConfig,
        kind: Kind,
    ) -> BTreeMap<String, BTreeSet<String>> {
        let words = words(kind);
        let path = |lun: &Value| -> Option<String> {
            let lun = lun.as_str().and_then(|name| section(&self.0, "lun")?.get(name)).unwrap_or(lun);
            Some(lun.get("path")?.as_str()?.to_string())
        };
        let all = section(&self.0, words.targets).into_iter().flatten();
        let foreign = all.filter(|(name, _)| config.volume(kind, name).is_none());
        let devices = |target: &Value| match target.get(words.luns) {
            Some(Value::Object(luns)) => luns.values().filter_map(path).collect(),
            Some(Value::Array(luns)) => luns.iter().filter_map(path).collect(),
            _ => BTreeSet::new(),
        };
        foreign.map(|(name, target)| (name.clone(), devices(target))).collect()
    }

    /// Devices in what is not ours, and whose they are.
    pub(super) fn foreign_devices(&self, config: &CtlConfig) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        let mut add = |lun: &Value, who: &str| {
            if let Some(path) = lun.get("path").and_then(Value::as_str) {
                found.insert(path.to_string(), who.to_string());
            }
        };
        for (name, lun) in section(&self.0, "lun").into_iter().flatten() {
            add(lun, name);
        }
        for kind in [Kind::Iscsi, Kind::Nvme] {
            let words = words(kind);
            for (name, target) in section(&self.0, words.targets).into_iter().flatten() {
                if config.volume(kind, name).is_none() {
                    match target.get(words.luns) {
                        Some(Value::Object(luns)) => luns.values().for_each(|l| add(l, name)),
                        Some(Value::Array(luns)) => luns.iter().for_each(|l| add(l, name)),
                        _ => {}
                    }
                }
            }
        }
        found
    }
}
