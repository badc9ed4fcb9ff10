//! The in-memory image of everything: what reads are answered from. It costs no disk or kernel access.
//! The engine changes it when, and only when, a change is durable.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use orlop_api::{
    ByteSize, Encryption, Host, HostName, Page, Pool, PoolFill, PoolHealth, PoolName, PoolState, Progress,
    Protocol, Snapshot, SnapshotGroup, SnapshotId, SnapshotName, SnapshotRef, SnapshotState, SourceMode,
    Tenant, Volume, VolumeId, VolumeName, VolumeOrigin, VolumeRef, VolumeSource, VolumeState, Zone,
};

use super::action::Principal;
use super::alarms::Alarms;
use super::events::Events;
use super::space::FillLimits;
use crate::model::{
    Grant, HostRecord, Identity, Label, LabelHost, NqnPrefix, PoolSpec, SnapshotKey, SnapshotLabel, ZoneRules,
};
use crate::pool::{Capacity, Features};

/// A volume as the view holds it.
#[derive(Debug, Clone)]
pub struct VolumeEntry {
    /// What is written on the backing, save for the hosts, which are written behind.
    pub label: Label,
    /// Where it is.
    pub pool: PoolName,
    /// How it is.
    pub state: VolumeState,
    /// Why it isn't ready.
    pub reason: Option<String>,
}

/// A snapshot as the view holds it.
#[derive(Debug, Clone)]
pub struct SnapshotEntry {
    /// What is written on it.
    pub label: SnapshotLabel,
    /// Where it is.
    pub pool: PoolName,
    /// Why it isn't ready.
    pub stuck: Option<String>,
    /// How long writers had to wait for it.
    pub paused: Option<std::time::Duration>,
}

/// A pool as the view holds it.
#[derive(Debug, Clone)]
pub struct PoolEntry {
    /// What it stands on.
    pub spec: PoolSpec,
    /// Whether it can be used.
    pub state: PoolState,
    /// Why it can't.
    pub reason: Option<String>,
    /// Sizes are whole numbers of this.
    pub granularity: ByteSize,
    /// What it can do, once it was opened.
    pub features: Option<Features>,
    /// As it was last read.
    pub capacity: Capacity,
    /// How full that is.
    pub fill: PoolFill,
    /// When that was.
    pub observed: Timestamp,
    /// How its disks were, where that was read.
    pub health: Option<PoolHealth>,
    /// The sum of its volumes' sizes.
    provisioned: u64,
    /// How many volumes.
    pub(super) volumes: u64,
}

impl PoolEntry {
    /// A pool of which nothing is known yet.
    pub fn new(spec: PoolSpec, state: PoolState, reason: Option<String>, granularity: ByteSize) -> Self {
        Self {
            spec,
            state,
            reason,
            granularity,
            features: None,
            capacity: Capacity::default(),
            fill: PoolFill::Ok,
            observed: Timestamp::now(),
            health: None,
            provisioned: 0,
            volumes: 0,
        }
    }

    /// Whether there is any volume in it.
    pub fn has_volumes(&self) -> bool {
        self.volumes > 0
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct View {
    prefix: NqnPrefix,
    limits: FillLimits,
    volumes: BTreeMap<VolumeId, VolumeEntry>,
    by_name: BTreeMap<(Tenant, VolumeName), VolumeId>,
    /// How far copies are, beyond what their labels say.
    progress: BTreeMap<VolumeId, u64>,
    snapshots: BTreeMap<SnapshotId, SnapshotEntry>,
    snapshots_by_name: BTreeMap<(Tenant, SnapshotName), SnapshotId>,
    snapshots_by_volume: BTreeMap<VolumeId, BTreeSet<SnapshotId>>,
    groups: BTreeMap<(Tenant, SnapshotName), BTreeSet<SnapshotId>>,
    /// Volumes that live on a snapshot, or are being copied from it.
    dependants: BTreeMap<SnapshotId, BTreeSet<VolumeId>>,
    /// What was deleted while something depended on it.
    doomed_volumes: BTreeSet<VolumeId>,
    doomed_snapshots: BTreeSet<SnapshotId>,
    pools: BTreeMap<PoolName, PoolEntry>,
    /// The journal has no list of pools, and its copy could not be read: which there were is not known.
    pub(super) pools_unknown: bool,
    hosts: BTreeMap<HostName, HostRecord>,
    attached: BTreeMap<VolumeId, BTreeMap<HostName, Grant>>,
    attached_by_host: BTreeMap<HostName, BTreeSet<VolumeId>>,
    attachments: u64,
    pub(super) alarms: Alarms,
    /// Volumes with a key of their own that has not been brought since the machine started.
    locked: BTreeSet<VolumeId>,
}

/// Why a volume is `locked`.
const LOCKED: &str = "its key has not been brought since the appliance was started";

impl View {
    /// An empty one.
    pub fn new(prefix: NqnPrefix, limits: FillLimits, events: Events) -> Self {
        Self { prefix, limits, alarms: Alarms::new(events), ..Self::default() }
    }

    // ---- reads

    /// The id behind a reference, as the principal may know of it.
    pub fn resolve(&self, who: &Principal, volume: &VolumeRef) -> Option<VolumeId> {
        let id = match volume {
            VolumeRef::Id(id) => *id,
            VolumeRef::Name(name) => self.named(&who.tenant, name)?,
        };
        self.volumes.get(&id).filter(|v| who.sees(&v.label.tenant, &v.pool)).map(|_| id)
    }

    /// Who has a name, whoever may know of it.
    pub(super) fn named(&self, tenant: &Tenant, name: &VolumeName) -> Option<VolumeId> {
        self.by_name.get(&(tenant.clone(), name.clone())).copied()
    }

    /// A volume as the engine needs it.
    pub fn entry(&self, id: VolumeId) -> Option<&VolumeEntry> {
        self.volumes.get(&id)
    }

    /// A volume as it is shown.
    pub fn volume(&self, id: VolumeId) -> Option<Volume> {
        self.volumes.get(&id).map(|v| self.show(id, v))
    }

    fn show(&self, id: VolumeId, v: &VolumeEntry) -> Volume {
        Volume {
            id,
            name: v.label.name.clone(),
            tenant: v.label.tenant.clone(),
            pool: v.pool.clone(),
            size: v.label.size,
            kind: v.label.kind,
            filesystem: v.label.filesystem,
            provisioning: v.label.provisioning,
            protocol: v.label.protocol(),
            nqn: (v.label.protocol() == Protocol::Nvme).then(|| self.prefix.subsystem(id)),
            iqn: (v.label.protocol() == Protocol::Iscsi).then(|| self.prefix.target(id)),
            state: self.state_of(v),
            reason: match self.state_of(v) {
                VolumeState::Locked => Some(LOCKED.into()),
                _ => v.reason.clone(),
            },
            hosts: self.hosts_of(id).cloned().collect(),
            source: v.label.source.map(|s| VolumeOrigin {
                volume: s.snapshot.volume,
                snapshot: s.snapshot.id,
                mode: s.mode,
            }),
            progress: self.progress_of(v),
            properties: v.label.properties,
            encryption: v.label.encryption,
            created: v.label.created,
        }
    }

    /// Its state as it is shown: what its label says comes first.
    pub fn state_of(&self, v: &VolumeEntry) -> VolumeState {
        match v.state {
            _ if v.label.deleted => VolumeState::Deleting,
            VolumeState::Ready if self.is_locked(v) => VolumeState::Locked,
            VolumeState::Ready if v.label.copied.is_some() => VolumeState::Copying,
            state => state,
        }
    }

    /// Whether it takes a key that is not here.
    pub fn is_locked(&self, v: &VolumeEntry) -> bool {
        self.is_locked_key(v.label.encryption)
    }

    /// Whether what is encrypted so takes a key that is not here.
    pub fn is_locked_key(&self, encryption: Option<Encryption>) -> bool {
        encryption.is_some_and(|e| self.locked.contains(&e.key_of))
    }

    /// The volumes that have a key, their own or that of the one that they descend from.
    pub fn with_key(&self, key_of: VolumeId) -> Vec<VolumeId> {
        let has = |v: &&VolumeEntry| v.label.encryption.is_some_and(|e| e.key_of == key_of);
        self.volumes.values().filter(has).map(|v| v.label.id).collect()
    }

    fn progress_of(&self, v: &VolumeEntry) -> Option<Progress> {
        let durable = v.label.copied?.bytes();
        let done = self.progress.get(&v.label.id).copied().unwrap_or(0).max(durable);
        let source = v.label.source.and_then(|s| self.snapshots.get(&s.snapshot.id));
        Some(Progress { done: ByteSize(done), total: source.map_or(v.label.size, |s| s.label.size) })
    }

    // ---- reads of snapshots

    /// The id behind a reference, as the principal may know of it.
    pub fn resolve_snapshot(&self, who: &Principal, snapshot: &SnapshotRef) -> Option<SnapshotId> {
        let id = match snapshot {
            SnapshotRef::Id(id) => *id,
            SnapshotRef::Name(name) => self.named_snapshot(&who.tenant, name)?,
        };
        self.snapshots.get(&id).filter(|s| who.sees(&s.label.tenant, &s.pool)).map(|_| id)
    }

    /// Which snapshot has a name, whoever may know of it.
    pub(super) fn named_snapshot(&self, tenant: &Tenant, name: &SnapshotName) -> Option<SnapshotId> {
        self.snapshots_by_name.get(&(tenant.clone(), name.clone())).copied()
    }

    /// A snapshot as the engine needs it.
    pub fn snapshot_entry(&self, id: SnapshotId) -> Option<&SnapshotEntry> {
        self.snapshots.get(&id)
    }

    /// A snapshot as it is shown.
    pub fn snapshot(&self, id: SnapshotId) -> Option<Snapshot> {
        self.snapshots.get(&id).map(|s| self.show_snapshot(s))
    }

    fn show_snapshot(&self, s: &SnapshotEntry) -> Snapshot {
        let state = match (&s.stuck, s.label.deleted) {
            (_, true) => SnapshotState::Deleting,
            (Some(_), false) => SnapshotState::Stuck,
            (None, false) => SnapshotState::Ready,
        };
        Snapshot {
            id: s.label.key.id,
            name: s.label.name.clone(),
            tenant: s.label.tenant.clone(),
            volume: s.label.key.volume,
            pool: s.pool.clone(),
            size: s.label.size,
            group: s.label.group.clone(),
            ready: state == SnapshotState::Ready,
            state,
            reason: s.stuck.clone(),
            dependants: self.dependants_of(s.label.key.id).collect(),
            paused_us: s.paused.map(|d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX)),
            created: s.label.created,
        }
    }

    /// A page of the snapshots that a principal may know of after `cursor`, oldest first; of one volume if given.
    pub fn snapshots_page(
        &self,
        who: &Principal,
        volume: Option<VolumeId>,
        cursor: Option<SnapshotId>,
        limit: usize,
    ) -> Page<Snapshot> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = (cursor.map_or(Unbounded, Excluded), Unbounded);
        let key = |s: &Snapshot| s.id.to_string();
        let mine = |s: &&SnapshotEntry| who.sees(&s.label.tenant, &s.pool);
        match volume {
            Some(volume) => {
                let ids = self.snapshots_by_volume.get(&volume).into_iter().flat_map(|ids| ids.range(from));
                let entries = ids.filter_map(|id| self.snapshots.get(id)).filter(mine);
                page(entries.map(|s| self.show_snapshot(s)), limit, key)
            }
            None => {
                let entries = self.snapshots.range(from).map(|(_, s)| s).filter(mine);
                page(entries.map(|s| self.show_snapshot(s)), limit, key)
            }
        }
    }

    /// A group as it is shown: the snapshots of it that are there. All of them are of one pool.
    pub fn group(&self, who: &Principal, name: &SnapshotName) -> Option<SnapshotGroup> {
        let ids = self.groups.get(&(who.tenant.clone(), name.clone()))?;
        let seen = ids.iter().filter_map(|id| self.snapshots.get(id));
        let seen = seen.filter(|s| who.sees(&s.label.tenant, &s.pool)).map(|s| self.show_snapshot(s));
        let snapshots: Vec<_> = seen.collect();
        (!snapshots.is_empty()).then(|| SnapshotGroup { name: name.clone(), snapshots })
    }

    /// How many snapshots a group has, whoever may know of them.
    pub(super) fn members(&self, tenant: &Tenant, group: &SnapshotName) -> usize {
        self.groups.get(&(tenant.clone(), group.clone())).map_or(0, BTreeSet::len)
    }

    /// The snapshots of a volume.
    pub fn snapshots_of(&self, id: VolumeId) -> impl Iterator<Item = &SnapshotEntry> {
        let ids = self.snapshots_by_volume.get(&id).into_iter().flatten();
        ids.filter_map(|id| self.snapshots.get(id))
    }

    /// The volumes that a snapshot can't go before.
    pub fn dependants_of(&self, id: SnapshotId) -> impl Iterator<Item = VolumeId> {
        self.dependants.get(&id).into_iter().flatten().copied()
    }

    /// What keeps a volume from being destroyed, in words: its snapshots, save for those that are
    /// deleted and that nothing depends on; of the other deleted ones, what depends on them.
    pub fn dependants_of_volume(&self, id: VolumeId) -> Vec<String> {
        let mut found = Vec::new();
        for s in self.snapshots_of(id) {
            if s.label.deleted {
                let names = self.dependants_of(s.label.key.id).filter_map(|d| self.volumes.get(&d));
                found.extend(names.map(|v| format!("volume {}", v.label.name)));
            } else {
                found.push(format!("snapshot {}", s.label.name));
            }
        }
        found
    }

    /// Deleted snapshots of a volume that nothing depends on any more.
    pub(super) fn spent_snapshots_of(&self, id: VolumeId) -> Vec<SnapshotKey> {
        let spent =
            |s: &&SnapshotEntry| s.label.deleted && self.dependants_of(s.label.key.id).next().is_none();
        self.snapshots_of(id).filter(spent).map(|s| s.label.key).collect()
    }

    /// Deleted objects that nothing depends on any more.
    pub(super) fn spent(&self) -> (Vec<SnapshotId>, Vec<VolumeId>) {
        let unused = |id: &&SnapshotId| self.dependants_of(**id).next().is_none();
        let snapshots = self.doomed_snapshots.iter().filter(unused).copied().collect();
        let bare = |id: &&VolumeId| self.dependants_of_volume(**id).is_empty();
        (snapshots, self.doomed_volumes.iter().filter(bare).copied().collect())
    }

    /// A requested source in the words of the origin that it would become, to be compared with the one
    /// that is there. Where a volume was asked for, any snapshot of it will do; a source that has gone
    /// since is believed to be the one, if it was asked for by name.
    pub(super) fn shown_source(
        &self,
        who: &Principal,
        ask: Option<&VolumeSource>,
        have: Option<&VolumeOrigin>,
    ) -> String {
        let origin = ask.map(|ask| {
            let gone = SnapshotKey { volume: VolumeId::mint(), id: SnapshotId::mint() };
            let have_key = have.map_or(gone, |h| SnapshotKey { volume: h.volume, id: h.snapshot });
            let key = match (&ask.snapshot, &ask.volume) {
                (Some(SnapshotRef::Id(id)), _) => SnapshotKey { id: *id, ..have_key },
                (Some(by_name), _) => match self.resolve_snapshot(who, by_name) {
                    Some(id) => SnapshotKey { id, ..have_key },
                    None => have_key,
                },
                (None, Some(VolumeRef::Id(volume))) => SnapshotKey { volume: *volume, ..have_key },
                (None, Some(by_name)) => match self.resolve(who, by_name) {
                    Some(volume) => SnapshotKey { volume, ..have_key },
                    None => have_key,
                },
                (None, None) => gone,
            };
            VolumeOrigin { volume: key.volume, snapshot: key.id, mode: ask.mode }
        });
        super::volumes::shown_origin(origin.as_ref())
    }

    /// Volumes whose content is not whole yet.
    pub(super) fn copying(&self) -> Vec<VolumeId> {
        let wanted = |v: &&VolumeEntry| v.label.copied.is_some() && !v.label.deleted;
        self.volumes.values().filter(wanted).map(|v| v.label.id).collect()
    }

    /// A page of the volumes that a principal may know of after `cursor`, in the order of their ids, which is that of
    /// their creation; of one pool if given.
    pub fn volumes_page(
        &self,
        who: &Principal,
        pool: Option<&PoolName>,
        cursor: Option<VolumeId>,
        limit: usize,
    ) -> Page<Volume> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = cursor.map_or(Unbounded, Excluded);
        let mine = self
            .volumes
            .range((from, Unbounded))
            .filter(|(_, v)| who.sees(&v.label.tenant, &v.pool) && pool.is_none_or(|p| v.pool == *p));
        page(mine.map(|(id, v)| self.show(*id, v)), limit, |v| v.id.to_string())
    }

    /// A page of the hosts that a principal may know of after `cursor`, in the order of their names.
    pub fn hosts_page(&self, who: &Principal, cursor: Option<&HostName>, limit: usize) -> Page<Host> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = cursor.map_or(Unbounded, Excluded);
        let hosts = self.hosts.range::<HostName, _>((from, Unbounded));
        let hosts = hosts.filter(|(_, h)| h.zone.is_none() && who.knows(&h.tenant));
        page(hosts.map(|(name, h)| self.show_host(who, name, h)), limit, |h| h.name.to_string())
    }

    /// A host as it is shown, if the principal may know of it.
    pub fn host(&self, who: &Principal, name: &HostName) -> Option<Host> {
        let host = self.hosts.get(name).filter(|h| h.zone.is_none() && who.knows(&h.tenant));
        host.map(|h| self.show_host(who, name, h))
    }

    /// Whether a principal may know of a volume by its id. Of one whose backing is gone it is not known any more where it was.
    pub fn is_theirs(&self, who: &Principal, id: VolumeId) -> bool {
        match self.volumes.get(&id) {
            Some(v) => who.sees(&v.label.tenant, &v.pool),
            None => who.uses_all_pools(),
        }
    }

    /// Whether a principal may know of a host or a zone. Of one that is not there it may.
    pub fn knows_host(&self, who: &Principal, name: &HostName) -> bool {
        self.hosts.get(name).is_none_or(|h| who.knows(&h.tenant))
    }

    /// A page of the zones that a principal may know of after `cursor`, in the order of their names.
    pub fn zones_page(&self, who: &Principal, cursor: Option<&HostName>, limit: usize) -> Page<Zone> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = cursor.map_or(Unbounded, Excluded);
        let zones = self.hosts.range::<HostName, _>((from, Unbounded)).filter(|(_, z)| who.knows(&z.tenant));
        page(zones.filter_map(|(name, z)| self.show_zone(who, name, z)), limit, |z| z.name.to_string())
    }

    /// A zone as it is shown, if the principal may know of it.
    pub fn zone(&self, who: &Principal, name: &HostName) -> Option<Zone> {
        let zone = self.hosts.get(name).filter(|z| who.knows(&z.tenant));
        zone.and_then(|z| self.show_zone(who, name, z))
    }

    fn show_zone(&self, who: &Principal, name: &HostName, zone: &HostRecord) -> Option<Zone> {
        let ZoneRules { read_only, squash, security } = zone.zone?;
        let (networks, tenant) = (zone.networks.clone(), zone.tenant.clone());
        let volumes = self.shown_volumes_of(who, name);
        Some(Zone { name: name.clone(), networks, read_only, squash, security, volumes, tenant })
    }

    fn shown_volumes_of(&self, who: &Principal, name: &HostName) -> Vec<VolumeId> {
        self.volumes_of(name).filter(|id| self.is_theirs(who, *id)).collect()
    }

    fn show_host(&self, who: &Principal, name: &HostName, host: &HostRecord) -> Host {
        Host {
            name: name.clone(),
            nqn: host.nqn.clone(),
            iqn: host.iqn.clone(),
            addresses: host.addresses(),
            authentication: host.authentication(),
            chap: host.chap(),
            tls: host.tls(),
            volumes: self.shown_volumes_of(who, name),
            tenant: host.tenant.clone(),
        }
    }

    /// A host as the engine needs it.
    pub fn host_record(&self, name: &HostName) -> Option<&HostRecord> {
        self.hosts.get(name)
    }

    /// All hosts and zones as the engine needs them.
    pub fn host_records(&self) -> impl Iterator<Item = (&HostName, &HostRecord)> {
        self.hosts.iter()
    }

    /// All pools that a principal may use.
    pub fn pools(&self, who: &Principal) -> Vec<Pool> {
        self.pools.values().filter(|p| who.uses(&p.spec.name)).map(|p| self.shown_pool(who, p)).collect()
    }

    /// A pool as it is shown, if the principal may use it.
    pub fn pool(&self, who: &Principal, name: &PoolName) -> Option<Pool> {
        self.pools.get(name).filter(|p| who.uses(&p.spec.name)).map(|p| self.shown_pool(who, p))
    }

    /// Its disks are the administrator's, and what is in it of others is theirs.
    fn shown_pool(&self, who: &Principal, p: &PoolEntry) -> Pool {
        let all = self.show_pool(p);
        if who.is_admin() {
            return all;
        }
        let seen =
            self.volumes.values().filter(|v| v.pool == p.spec.name && who.sees(&v.label.tenant, &v.pool));
        let (volumes, provisioned) =
            seen.fold((0, 0u64), |(n, bytes), v| (n + 1, bytes.saturating_add(v.label.size.0)));
        let reason = all.reason.as_ref().map(|_| "the administrator is told why".to_string());
        Pool { reason, health: None, volumes, provisioned: ByteSize(provisioned), ..all }
    }

    fn show_pool(&self, p: &PoolEntry) -> Pool {
        let (largest_thin, largest_thick) = self.limits.largest(p.fill, p.capacity, p.granularity);
        Pool {
            name: p.spec.name.clone(),
            kind: p.spec.kind(),
            state: p.state,
            reason: p.reason.clone(),
            granularity: p.granularity,
            total: p.capacity.total,
            used: p.capacity.used,
            available: p.capacity.available,
            metadata_percent: p.capacity.metadata_percent,
            provisioned: ByteSize(p.provisioned),
            largest_thin,
            largest_thick,
            fill: p.fill,
            warn_percent: self.limits.warn_percent,
            stop_percent: self.limits.stop_percent,
            volumes: p.volumes,
            health: p.health.clone(),
            observed: p.observed,
        }
    }

    /// A pool as the engine needs it.
    pub fn pool_entry(&self, name: &PoolName) -> Option<&PoolEntry> {
        self.pools.get(name)
    }

    /// Every pool as the engine needs it.
    pub fn pool_entries(&self) -> impl Iterator<Item = &PoolEntry> {
        self.pools.values()
    }

    /// The volumes of a pool, at most `limit`.
    pub fn volumes_in(&self, pool: &PoolName, limit: usize) -> Vec<&Label> {
        self.volumes.values().filter(|v| v.pool == *pool).map(|v| &v.label).take(limit).collect()
    }

    /// Volumes of a pool that keep it from being let go of: hosts are attached to them, or a copy from or
    /// into it is under way. At most `limit`.
    pub fn busy_volumes_in(&self, pool: &PoolName, limit: usize) -> Vec<String> {
        let source = |v: &VolumeEntry| v.label.source.and_then(|s| self.snapshots.get(&s.snapshot.id));
        let copied = |v: &VolumeEntry| {
            v.label.copied.is_some() && (v.pool == *pool || source(v).is_some_and(|s| s.pool == *pool))
        };
        let attached = |v: &VolumeEntry| v.pool == *pool && self.hosts_of(v.label.id).next().is_some();
        let busy = self.volumes.values().filter(|v| attached(v) || copied(v));
        busy.map(|v| v.label.name.to_string()).take(limit).collect()
    }

    /// The hosts and zones attached to a volume.
    pub fn hosts_of(&self, id: VolumeId) -> impl Iterator<Item = &HostName> {
        self.attached.get(&id).into_iter().flat_map(BTreeMap::keys)
    }

    /// The volumes attached to a host.
    pub fn volumes_of(&self, host: &HostName) -> impl Iterator<Item = VolumeId> {
        self.attached_by_host.get(host).into_iter().flatten().copied()
    }

    /// Whether a host is attached to a volume.
    pub fn is_attached(&self, id: VolumeId, host: &HostName) -> bool {
        self.grant_of(id, host).is_some()
    }

    /// How a host may use a volume, if it is attached.
    pub fn grant_of(&self, id: VolumeId, host: &HostName) -> Option<Grant> {
        self.attached.get(&id)?.get(host).copied()
    }

    /// Every volume that some host is attached to.
    pub fn attached_volumes(&self) -> Vec<VolumeId> {
        self.attached.keys().copied().collect()
    }

    /// A volume's hosts as its label remembers them.
    pub fn label_hosts(&self, id: VolumeId) -> Vec<LabelHost> {
        let Some(protocol) = self.volumes.get(&id).map(|v| v.label.protocol()) else { return Vec::new() };
        let attached = self.attached.get(&id).into_iter().flatten();
        let label = |(name, grant): (&HostName, &Grant)| {
            Some(LabelHost::of(name, self.hosts.get(name)?, *grant, protocol))
        };
        attached.filter_map(label).collect()
    }

    /// What initiators know a volume by.
    pub fn identity(&self, id: VolumeId) -> Identity {
        Identity::of(id, &self.prefix)
    }

    /// Every label.
    pub fn labels(&self) -> impl Iterator<Item = &Label> {
        self.volumes.values().map(|v| &v.label)
    }

    /// Whether some host is attached to a volume that no pool has.
    pub fn is_orphaned(&self, id: VolumeId) -> bool {
        self.attached.contains_key(&id) && !self.volumes.contains_key(&id)
    }

    /// How many pools, volumes, hosts and attachments.
    pub fn counts(&self) -> (u64, u64, u64, u64) {
        let n = |n: usize| n as u64;
        (n(self.pools.len()), n(self.volumes.len()), n(self.hosts.len()), self.attachments)
    }

    /// The same of what a principal may know of.
    pub fn counts_of(&self, who: &Principal) -> (u64, u64, u64, u64) {
        if who.is_admin() {
            return self.counts();
        }
        let n = |n: usize| n as u64;
        let seen = || self.volumes.values().filter(|v| who.sees(&v.label.tenant, &v.pool));
        let attached = seen().filter_map(|v| self.attached.get(&v.label.id)).map(BTreeMap::len).sum();
        let hosts = self.hosts.values().filter(|h| who.knows(&h.tenant)).count();
        let pools = self.pools.keys().filter(|p| who.uses(p)).count();
        (n(pools), n(seen().count()), n(hosts), n(attached))
    }

    /// The state of each volume, as it is shown.
    pub fn volume_states(&self) -> Vec<VolumeState> {
        self.volumes.values().map(|v| self.state_of(v)).collect()
    }

    // ---- changes, by the engine alone

    pub(super) fn put_volume(&mut self, entry: VolumeEntry) {
        let id = entry.label.id;
        self.take_out(id);
        if let Some(pool) = self.pools.get_mut(&entry.pool) {
            pool.provisioned += entry.label.size.0;
            pool.volumes += 1;
        }
        // Two volumes of one name can only come from pools that were made apart: the first keeps the
        // name, the other is reached by its id.
        if entry.label.deleted {
            self.doomed_volumes.insert(id);
        } else {
            self.by_name.entry((entry.label.tenant.clone(), entry.label.name.clone())).or_insert(id);
        }
        if let Some(snapshot) = self.lives_on(&entry) {
            self.dependants.entry(snapshot).or_default().insert(id);
        }
        self.volumes.insert(id, entry);
    }

    /// The snapshot that can't go before a volume.
    fn lives_on(&self, v: &VolumeEntry) -> Option<SnapshotId> {
        let source = v.label.source?;
        let features = self.pools.get(&v.pool).and_then(|p| p.features);
        let depends = match source.mode {
            SourceMode::Linked => features.is_none_or(|f| f.clones_depend),
            SourceMode::Copied => v.label.copied.is_some(),
        };
        depends.then_some(source.snapshot.id)
    }

    pub(super) fn put_snapshot(&mut self, entry: SnapshotEntry) {
        let SnapshotKey { volume, id } = entry.label.key;
        self.remove_snapshot(id);
        if entry.label.deleted {
            self.doomed_snapshots.insert(id);
        } else {
            let tenant = &entry.label.tenant;
            self.snapshots_by_name.entry((tenant.clone(), entry.label.name.clone())).or_insert(id);
            if let Some(group) = &entry.label.group {
                self.groups.entry((tenant.clone(), group.clone())).or_default().insert(id);
            }
        }
        self.snapshots_by_volume.entry(volume).or_default().insert(id);
        self.snapshots.insert(id, entry);
    }

    pub(super) fn remove_snapshot(&mut self, id: SnapshotId) {
        let Some(old) = self.snapshots.remove(&id) else { return };
        self.doomed_snapshots.remove(&id);
        let key = (old.label.tenant.clone(), old.label.name);
        if self.snapshots_by_name.get(&key) == Some(&id) {
            self.snapshots_by_name.remove(&key);
        }
        if let Some(group) = old.label.group {
            remove_from(&mut self.groups, &(old.label.tenant, group), &id);
        }
        remove_from(&mut self.snapshots_by_volume, &old.label.key.volume, &id);
    }

    pub(super) fn set_snapshot_stuck(&mut self, id: SnapshotId, reason: Option<String>) -> bool {
        let Some(s) = self.snapshots.get_mut(&id) else { return false };
        let changed = s.stuck != reason;
        s.stuck = reason;
        changed
    }

    pub(super) fn set_progress(&mut self, id: VolumeId, done: u64) {
        if self.volumes.get(&id).is_some_and(|v| v.label.copied.is_some()) {
            self.progress.insert(id, done);
        }
    }

    pub(super) fn remove_volume(&mut self, id: VolumeId) {
        self.take_out(id);
        self.clear(&super::attachments::closed_alarm(id));
    }

    fn take_out(&mut self, id: VolumeId) {
        let Some(old) = self.volumes.remove(&id) else { return };
        if let Some(pool) = self.pools.get_mut(&old.pool) {
            pool.provisioned -= old.label.size.0;
            pool.volumes -= 1;
        }
        self.doomed_volumes.remove(&id);
        self.progress.remove(&id);
        if let Some(source) = old.label.source {
            remove_from(&mut self.dependants, &source.snapshot.id, &id);
        }
        let key = (old.label.tenant, old.label.name);
        if self.by_name.get(&key) == Some(&id) {
            self.by_name.remove(&key);
        }
    }

    pub(super) fn set_volume_state(
        &mut self,
        id: VolumeId,
        state: VolumeState,
        reason: Option<String>,
    ) -> bool {
        let Some(v) = self.volumes.get_mut(&id) else { return false };
        let changed = v.state != state || v.reason != reason;
        v.state = state;
        v.reason = reason;
        changed
    }

    /// A key is missing, or is there again. Whether that is news.
    pub(super) fn set_locked(&mut self, key_of: VolumeId, locked: bool) -> bool {
        if locked { self.locked.insert(key_of) } else { self.locked.remove(&key_of) }
    }

    pub(super) fn set_label_hosts(&mut self, id: VolumeId, hosts: Vec<LabelHost>) {
        if let Some(v) = self.volumes.get_mut(&id) {
            v.label.hosts = hosts;
        }
    }

    /// Volumes whose label does not say who may use them.
    pub(super) fn outdated_labels(&self) -> Vec<VolumeId> {
        let outdated = |(id, v): (&VolumeId, &VolumeEntry)| {
            // Most volumes are attached to nobody and say so: no need to build two lists for them.
            let bare = v.label.hosts.is_empty() && !self.attached.contains_key(id);
            (!bare && v.label.hosts != self.label_hosts(*id)).then_some(*id)
        };
        self.volumes.iter().filter_map(outdated).collect()
    }

    pub(super) fn put_pool(&mut self, entry: PoolEntry) {
        self.pools.insert(entry.spec.name.clone(), entry);
    }

    /// With all that is in it.
    pub(super) fn remove_pool(&mut self, name: &PoolName) {
        let volumes = self.volumes.iter().filter(|(_, v)| v.pool == *name).map(|(id, _)| *id);
        for id in volumes.collect::<Vec<_>>() {
            self.remove_volume(id);
        }
        let snapshots = self.snapshots.iter().filter(|(_, s)| s.pool == *name).map(|(id, _)| *id);
        for id in snapshots.collect::<Vec<_>>() {
            self.remove_snapshot(id);
        }
        self.pools.remove(name);
    }

    /// How full the pool was, and is.
    pub(super) fn set_capacity(
        &mut self,
        name: &PoolName,
        capacity: Capacity,
    ) -> Option<(PoolFill, PoolFill)> {
        let pool = self.pools.get_mut(name)?;
        let was = pool.fill;
        pool.capacity = capacity;
        pool.fill = self.limits.level(was, capacity);
        pool.observed = Timestamp::now();
        Some((was, pool.fill))
    }

    /// How full pools may be.
    pub(super) fn limits(&self) -> FillLimits {
        self.limits
    }

    /// Other limits for all pools: each with how full it was and is, by what was read of it last.
    pub(super) fn set_limits(&mut self, limits: FillLimits) -> Vec<(PoolName, PoolFill, PoolFill)> {
        self.limits = limits;
        let levelled = self.pools.iter_mut().map(|(name, pool)| {
            // A level that another limit gave is not held on to.
            let now = limits.level(PoolFill::Ok, pool.capacity);
            (name.clone(), std::mem::replace(&mut pool.fill, now), now)
        });
        levelled.collect()
    }

    /// Notes how a pool's disks are; gives back how they were. `None`: there is no such pool.
    pub(super) fn set_health(&mut self, name: &PoolName, health: PoolHealth) -> Option<Option<PoolHealth>> {
        Some(self.pools.get_mut(name)?.health.replace(health))
    }

    /// A pool stands on other disks now.
    pub(super) fn set_spec(&mut self, spec: PoolSpec) {
        if let Some(pool) = self.pools.get_mut(&spec.name) {
            pool.spec = spec;
        }
    }

    pub(super) fn put_host(&mut self, name: HostName, host: HostRecord) {
        self.hosts.insert(name, host);
    }

    pub(super) fn remove_host(&mut self, name: &HostName) {
        self.hosts.remove(name);
    }

    pub(super) fn attach(&mut self, id: VolumeId, host: &HostName, grant: Grant) {
        if self.attached.entry(id).or_default().insert(host.clone(), grant).is_none() {
            self.attachments += 1;
        }
        self.attached_by_host.entry(host.clone()).or_default().insert(id);
    }

    pub(super) fn detach(&mut self, id: VolumeId, host: &HostName) {
        if let Some(hosts) = self.attached.get_mut(&id) {
            if hosts.remove(host).is_some() {
                self.attachments -= 1;
            }
            if hosts.is_empty() {
                self.attached.remove(&id);
            }
        }
        remove_from(&mut self.attached_by_host, host, &id);
    }
}

/// Takes a value out of the set under a key, and the set with the last one.
fn remove_from<K: Ord, V: Ord>(map: &mut BTreeMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(set) = map.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            map.remove(key);
        }
    }
}

/// The first `limit` of `items`, and where the next page starts if there are more.
fn page<T>(mut items: impl Iterator<Item = T>, limit: usize, key: impl Fn(&T) -> String) -> Page<T> {
    let taken: Vec<T> = items.by_ref().take(limit).collect();
    let next = items.next().and_then(|_| taken.last().map(&key));
    Page { items: taken, next }
}
