//! Hosts and zones: make, change, forget; and what hosts must prove.

use std::collections::BTreeSet;
use std::sync::Arc;

use orlop_api::{
    AuthenticationPut, ChapPut, EventKind, HostName, HostPut, Network, Protocol, Tenant, TlsPut, VolumeId,
    ZonePut,
};
use tokio::time::Instant;

use super::action::{Outcome, Principal};
use super::core::Core;
use super::error::{Error, Result};
use super::events::Subject;
use super::locks::{Key, Mode};
use crate::journal::{Batch, Table};
use crate::model::{Document, HostRecord, LabelHost, Secret};
use crate::target::HostId;
use crate::target::keys::Proof;

/// The most addresses of a host.
const MOST_ADDRESSES: usize = 16;

/// What a ZFS property holds, less what a host that is given a secret later adds.
const LONGEST_LABEL: usize = 8_000;

/// The most networks of a zone.
const MOST_NETWORKS: usize = 64;

impl Core {
    pub(super) async fn put_host(
        self: &Arc<Self>,
        who: &Principal,
        name: HostName,
        ask: HostPut,
        until: Instant,
    ) -> Result<Outcome> {
        check_host(&ask)?;
        let mut record = HostRecord { tenant: self.owner(who, &name)?, ..HostRecord::host(ask) };
        // The same again changes nothing, and need not wait for one of its attachments whose disk does not answer.
        let same = |old: &HostRecord| {
            let (secrets, chap, tls) = (old.secrets.clone(), old.chap.clone(), old.tls.clone());
            *old == HostRecord { secrets, chap, tls, ..record.clone() }
        };
        if self.view.read().host_record(&name).is_some_and(same) {
            return self.shown_host(who, &name, false);
        }
        // What it is known by too: two hosts that ask for one NQN at the same time must not both get it.
        let ids = ids_of(&record);
        let wants = ids.iter().map(|(_, id)| (Key::HostId(id.clone()), Mode::Exclusive));
        let wants = wants.chain([(Key::Host(name.clone()), Mode::Exclusive)]).collect();
        let _guards = self.locks.acquire(wants, until).await?;
        record.tenant = self.owner(who, &name)?;
        self.check_all_theirs(who, &name)?;
        let old = self.check_noun(&name, &record)?;
        let volumes = {
            let view = self.view.read();
            for (other, theirs) in
                view.host_records().filter(|(other, r)| **other != name && r.zone.is_none())
            {
                let theirs: Vec<_> = ids_of(theirs).into_iter().map(|(_, id)| id).collect();
                if let Some((field, id)) = ids.iter().find(|(_, id)| theirs.contains(id)) {
                    let known = view.knows_host(who, other);
                    return Err(Error::Conflict {
                        object: if known {
                            format!("host {other}")
                        } else {
                            "a host of another tenant".into()
                        },
                        field,
                        have: format!("{id} already"),
                        want: format!("it for host {name} too"),
                    });
                }
            }
            if let Some(old) = &old {
                // Its secrets are the host's, whatever it is called.
                (record.secrets, record.chap) = (old.secrets.clone(), old.chap.clone());
                record.tls.clone_from(&old.tls);
                let known = |id: &VolumeId| view.entry(*id).map(|v| v.label.protocol());
                let changed = |p: Protocol| !record.is_same_to(p, old);
                // One that is in no pool now is served again when its pool is back.
                let by = |id: &VolumeId| known(id).map_or(record != *old, changed);
                let volumes: Vec<_> = view.volumes_of(&name).filter(by).map(|id| id.to_string()).collect();
                if !volumes.is_empty() {
                    return Err(Error::Precondition {
                        object: format!("host {name}"),
                        reason: "is attached by what it was known by: detach it from these volumes first"
                            .into(),
                        dependants: volumes,
                    });
                }
            }
            view.volumes_of(&name).collect::<Vec<_>>()
        };
        self.check_labels(&volumes, &name, &record)?;
        if old.as_ref() == Some(&record) {
            return self.shown_host(who, &name, false);
        }
        let mut batch = Batch::default();
        batch.put(Table::Hosts, name.as_str(), &record);
        self.journal.commit(batch).await?;
        self.ask_for(&record);
        // Not for a moment without what stays.
        for (_, id) in old.iter().flat_map(ids_of).filter(|(_, id)| ids.iter().all(|(_, stays)| stays != id))
        {
            self.settings.host_keys.remove(&id);
        }
        self.view.write().put_host(name.clone(), record);
        volumes.into_iter().for_each(|id| self.dirty.mark(id));
        self.events.publish(EventKind::HostPut, about(&name));
        self.shown_host(who, &name, old.is_none())
    }

    /// Whose a host is that is put: as before, or the principal's if it is new. Names of hosts are everybody's.
    fn owner(&self, who: &Principal, name: &HostName) -> Result<Tenant> {
        match self.view.read().host_record(name) {
            None => Ok(who.tenant.clone()),
            Some(record) if who.knows(&record.tenant) => Ok(record.tenant.clone()),
            Some(_) => Err(Error::Conflict {
                object: format!("host {name}"),
                field: "tenant",
                have: "another".into(),
                want: format!("{}: choose another name", who.tenant),
            }),
        }
    }

    /// Refuses to change who is let in to volumes that the principal may not know of.
    fn check_all_theirs(&self, who: &Principal, name: &HostName) -> Result<()> {
        let view = self.view.read();
        if view.volumes_of(name).all(|id| view.is_theirs(who, id)) {
            return Ok(());
        }
        Err(Error::Precondition {
            object: format!("host {name}"),
            reason: format!(
                "uses volumes that are none of {}'s: who is let in to them would change too",
                who.name
            ),
            dependants: Vec::new(),
        })
    }

    /// A host or a zone that a principal may know of.
    fn known(&self, who: &Principal, name: &HostName, noun: &str) -> Result<HostRecord> {
        let view = self.view.read();
        let known = view.host_record(name).filter(|r| r.noun() == noun && who.knows(&r.tenant));
        known.cloned().ok_or_else(|| Error::NotFound(format!("{noun} {name}")))
    }

    /// Gives hosts back to the tenant that the labels of all their volumes say: an older daemon, which knows of none, leaves it
    /// out of what it writes. Without that somebody else's token could change who is let in to these volumes.
    pub(super) async fn settle_tenants(&self) -> Result<()> {
        let moved: Vec<_> = {
            let view = self.view.read();
            let moved = view.host_records().filter_map(|(name, record)| {
                let mut tenants =
                    view.volumes_of(name).filter_map(|id| view.entry(id)).map(|v| &v.label.tenant);
                let first = tenants.next()?;
                if *first == record.tenant {
                    return None;
                }
                if !tenants.all(|tenant| tenant == first) {
                    tracing::error!(host = %name, "is attached to volumes of several tenants");
                    return None;
                }
                Some((name.clone(), HostRecord { tenant: first.clone(), ..record.clone() }))
            });
            moved.collect()
        };
        if moved.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::default();
        for (name, record) in &moved {
            tracing::warn!(host = %name, tenant = %record.tenant, "is this tenant's, as the labels of its volumes say");
            batch.put(Table::Hosts, name.as_str(), record);
        }
        self.journal.commit(batch).await?;
        let mut view = self.view.write();
        for (name, record) in moved {
            view.put_host(name, record);
        }
        Ok(())
    }

    /// Makes a zone or changes it. Where it is attached the targets follow before the answer.
    pub(super) async fn put_zone(
        self: &Arc<Self>,
        who: &Principal,
        name: HostName,
        ask: ZonePut,
        until: Instant,
    ) -> Result<Outcome> {
        check_zone(&ask)?;
        let flavours = ask.security;
        let record = HostRecord::zone(ask);
        // It is attached and detached by nobody meanwhile. Its volumes are not locked yet: one that hangs would hold up
        // all of them.
        let _guards = self.locks.acquire(vec![(Key::Host(name.clone()), Mode::Exclusive)], until).await?;
        let old = self.check_noun(&name, &record)?;
        if let Some(old) = old.as_ref().filter(|old| old.tenant != record.tenant) {
            return Err(Error::Conflict {
                object: format!("zone {name}"),
                field: "tenant",
                have: old.tenant.to_string(),
                want: record.tenant.to_string(),
            });
        }
        // One that takes them already can be changed whatever is missing now: it lets nobody in by it.
        let had = old.as_ref().and_then(|old| old.zone).map(|zone| zone.security);
        if flavours.is_kerberos() && had != Some(flavours) {
            self.check_kerberos(until).await?;
        }
        let volumes: Vec<_> = self.view.read().volumes_of(&name).collect();
        self.check_labels(&volumes, &name, &record)?;
        if old.as_ref() != Some(&record) {
            // The journal first: once it is durable who is in it no crash brings back who is not.
            let mut batch = Batch::default();
            batch.put(Table::Hosts, name.as_str(), &record);
            self.journal.commit(batch).await?;
            self.view.write().put_host(name.clone(), record.clone());
            self.events.publish(EventKind::HostPut, about(&name));
        }
        // The same request again too: the one before may have failed here.
        let narrower = old.as_ref().is_some_and(|old| record.is_less_than(old));
        let each = volumes.iter().map(|id| self.follow(*id, narrower, until));
        let failed = futures_util::future::join_all(each).await.into_iter().find_map(Result::err);
        if let Some(error) = failed {
            return Err(error);
        }
        if narrower {
            // Without the journal a label is believed: one that is older than this would let in who was just cut off.
            self.write_labels_among(Some(&volumes.iter().copied().collect())).await;
        }
        self.shown_host(who, &name, old.is_none())
    }

    /// Serves a volume as its zone, which was changed, says.
    async fn follow(self: &Arc<Self>, id: VolumeId, narrower: bool, until: Instant) -> Result<()> {
        self.dirty.mark(id);
        let guards = self.locks.acquire(vec![(Key::Volume(id), Mode::Exclusive)], until).await?;
        // What is in flight there ends with what the view says now.
        self.check_settled(|intent| intent.touches_access(id))?;
        if !self.opened.lock().contains_key(&id) && !narrower {
            // Its pool is away, or its key: it is served as it should be when it can be opened.
            return Ok(());
        }
        // One that can't be opened may be served still, from before the daemon was started. Who is no longer in the zone
        // must not stay in; without its backing the others can't be told apart from them.
        let Err(failure) = self.converge_volume(id, None, true).await else { return Ok(()) };
        let (core, reason) = (self.clone(), failure.error.chain());
        self.background(async move {
            // Nobody else changes it before what is under way has ended.
            if let Some(late) = failure.late {
                let _ = late.await;
            }
            drop(guards);
            core.retry_export(id, reason);
        });
        Err(failure.error)
    }

    /// Refuses what would not fit on the labels of volumes: what is not on them does not survive the loss of the journal.
    pub(super) fn check_labels(
        &self,
        volumes: &[VolumeId],
        name: &HostName,
        record: &HostRecord,
    ) -> Result<()> {
        let view = self.view.read();
        for id in volumes {
            let Some(entry) = view.entry(*id) else { continue };
            let (mut label, protocol) = (entry.label.clone(), entry.label.protocol());
            label.hosts = view.label_hosts(*id);
            label.hosts.retain(|h| h.name != *name);
            let grant = view.grant_of(*id, name).unwrap_or_default();
            label.hosts.push(LabelHost::of(name, record, grant, protocol));
            let length = label.to_json().len();
            if length > LONGEST_LABEL {
                return Err(Error::Exhausted {
                    object: format!("the label of volume {id}"),
                    detail: format!(
                        "with {} {name} it has {length} bytes of {LONGEST_LABEL}: attach fewer hosts, or a zone of \
                         fewer networks in their place",
                        record.noun()
                    ),
                });
            }
        }
        Ok(())
    }

    /// What a name stands for now; refuses to make a zone of a host, or a host of a zone.
    fn check_noun(&self, name: &HostName, wanted: &HostRecord) -> Result<Option<HostRecord>> {
        let old = self.view.read().host_record(name).cloned();
        match old {
            Some(old) if old.zone.is_some() != wanted.zone.is_some() => Err(Error::Conflict {
                object: name.to_string(),
                field: "name",
                have: format!("a {}", old.noun()),
                want: format!("a {}", wanted.noun()),
            }),
            old => Ok(old),
        }
    }

    /// Forgets a host or a zone.
    pub(super) async fn forget(
        self: &Arc<Self>,
        who: &Principal,
        name: HostName,
        noun: &'static str,
        until: Instant,
    ) -> Result<Outcome> {
        // Before its lock too: who may not know of it is not to hold it up.
        self.known(who, &name, noun)?;
        let _guards = self.locks.acquire(vec![(Key::Host(name.clone()), Mode::Exclusive)], until).await?;
        let old = self.known(who, &name, noun)?;
        self.check_all_theirs(who, &name)?;
        let dependants: Vec<_> = self.view.read().volumes_of(&name).map(|id| id.to_string()).collect();
        if !dependants.is_empty() {
            return Err(Error::Precondition {
                object: format!("{noun} {name}"),
                reason: "is attached: detach it from these volumes first".into(),
                dependants,
            });
        }
        let mut batch = Batch::default();
        batch.remove(Table::Hosts, name.as_str());
        self.journal.commit(batch).await?;
        self.forget_proofs(Some(&old));
        {
            let mut view = self.view.write();
            view.clear(&alarm_of(&name));
            view.clear(&format!("host/{name}"));
            view.remove_host(&name);
        }
        self.events.publish(EventKind::HostDeleted, about(&name));
        Ok(Outcome::Gone)
    }

    /// The host or zone as it is now.
    fn shown_host(&self, who: &Principal, name: &HostName, made: bool) -> Result<Outcome> {
        let view = self.view.read();
        let zone = view.zone(who, name).map(|zone| Outcome::Zone { zone, made });
        let host = || view.host(who, name).map(|host| Outcome::Host { host, made });
        zone.or_else(host).ok_or_else(|| Error::NotFound(format!("host {name}")))
    }
}

impl Core {
    /// Has a host prove a secret to NVMe from its next connection on, or nothing any more.
    pub(super) async fn set_dhchap(
        self: &Arc<Self>,
        who: &Principal,
        name: HostName,
        secrets: Option<AuthenticationPut>,
        until: Instant,
    ) -> Result<Outcome> {
        if secrets.as_ref().is_some_and(|s| s.controller_key.as_ref() == Some(&s.key)) {
            return Err(same_secret("controller_key"));
        }
        let set = |record: &mut HostRecord| record.secrets = secrets.map(Secret::Known);
        self.set_secret(who, name, Protocol::Nvme, true, set, until).await
    }

    /// The same to iSCSI.
    pub(super) async fn set_chap(
        self: &Arc<Self>,
        who: &Principal,
        name: HostName,
        secrets: Option<ChapPut>,
        until: Instant,
    ) -> Result<Outcome> {
        let same = |s: &ChapPut| s.target.as_ref().is_some_and(|t| t.secret == s.host.secret);
        if secrets.as_ref().is_some_and(same) {
            return Err(same_secret("target.secret"));
        }
        let set = |record: &mut HostRecord| record.chap = secrets.map(Secret::Known);
        self.set_secret(who, name, Protocol::Iscsi, true, set, until).await
    }

    /// Has what a host says by NVMe encrypted from its next connection on. That it comes by TLS, or no longer, can't be
    /// changed while it is attached: its volumes are served at other portals then.
    pub(super) async fn set_tls(
        self: &Arc<Self>,
        who: &Principal,
        name: HostName,
        key: Option<TlsPut>,
        until: Instant,
    ) -> Result<Outcome> {
        let set = |record: &mut HostRecord| record.tls = key.map(Secret::Known);
        self.set_secret(who, name, Protocol::Nvme, false, set, until).await
    }

    /// Connections that a host has stay. `proof`: it is what the host must prove.
    async fn set_secret(
        self: &Arc<Self>,
        who: &Principal,
        name: HostName,
        protocol: Protocol,
        proof: bool,
        set: impl FnOnce(&mut HostRecord),
        until: Instant,
    ) -> Result<Outcome> {
        // No host is attached or detached meanwhile.
        self.known(who, &name, "host")?;
        let guards = self.locks.acquire(vec![(Key::Host(name.clone()), Mode::Exclusive)], until).await?;
        let old = self.known(who, &name, "host")?;
        self.check_all_theirs(who, &name)?;
        let volumes: Vec<_> = self.view.read().volumes_of(&name).collect();
        let id = ids_of(&old).into_iter().map(|(_, id)| id).find(|id| id.protocol() == protocol);
        let id = id.ok_or_else(|| Error::Precondition {
            object: format!("host {name}"),
            reason: format!("is not known by {}: give it what it is known by first", protocol.as_str()),
            dependants: Vec::new(),
        })?;
        let mut record = old.clone();
        set(&mut record);
        if record.tls.is_some() != old.tls.is_some() {
            let view = self.view.read();
            let by_nvme = |id: &VolumeId| view.entry(*id).is_none_or(|v| v.label.protocol() == protocol);
            let dependants: Vec<_> =
                volumes.iter().filter(|id| by_nvme(id)).map(ToString::to_string).collect();
            if !dependants.is_empty() {
                let reason = "is attached, and with TLS its volumes are served at other portals: detach it from these \
                              first";
                let object = format!("host {name}");
                return Err(Error::Precondition { object, reason: reason.into(), dependants });
            }
        }
        // The journal first: once it is durable what the host must prove, no crash lets it in without.
        let mut batch = Batch::default();
        batch.put(Table::Hosts, name.as_str(), &record);
        self.journal.commit(batch).await?;
        if proof && proofs_of(&record).into_iter().all(|(of, _)| of != id) {
            // It had to before, as far as is known; what the kernel may still ask is taken back.
            self.settings.host_keys.put(&id, Proof::Nothing);
        }
        self.ask_for(&record);
        let changed = record != old;
        {
            let mut view = self.view.write();
            if !record.has_lost_a_secret() {
                view.clear(&alarm_of(&name));
                view.clear(&format!("host/{name}"));
            }
            view.put_host(name.clone(), record);
        }
        for id in volumes {
            self.dirty.mark(id);
            // It was kept out while its secret was lost.
            if !old.is_admissible(protocol) {
                let core = self.clone();
                self.background(async move { core.serve_again(id).await });
            }
        }
        // The kernel may keep what it asks of a host in one place for all volumes, whether they can be opened now or not.
        if let Err(failure) = self.prove(protocol, id).await {
            if let Some(late) = failure.late {
                // Nothing else is asked of it before that has ended.
                self.background(async move {
                    let _ = late.await;
                    drop(guards);
                });
            }
            return Err(failure.error);
        }
        if changed {
            self.events.publish(EventKind::HostPut, about(&name));
        }
        self.shown_host(who, &name, false)
    }

    /// Has the targets ask a host for its secrets, those that are known.
    pub(super) fn ask_for(&self, record: &HostRecord) {
        for (id, proof) in proofs_of(record) {
            self.settings.host_keys.put(&id, proof);
        }
        if let Some(nqn) = &record.nqn {
            self.settings.host_keys.put_tls(nqn, record.tls.as_ref().and_then(Secret::known).cloned());
        }
    }

    fn forget_proofs(&self, record: Option<&HostRecord>) {
        for (_, id) in record.into_iter().flat_map(ids_of) {
            self.settings.host_keys.remove(&id);
        }
    }
}

/// What a host is known by, each with the field that says so. Not a zone: networks may be in many.
pub(super) fn ids_of(record: &HostRecord) -> Vec<(&'static str, HostId)> {
    let nqn = record.nqn.iter().map(|n| ("nqn", HostId::Nqn(n.clone())));
    let iqn = record.iqn.iter().map(|n| ("iqn", HostId::Iqn(n.clone())));
    let networks = record.networks.iter().filter(|_| record.zone.is_none());
    nqn.chain(iqn).chain(networks.map(|n| ("addresses", HostId::Network(*n)))).collect()
}

/// The secrets that are known.
fn proofs_of(record: &HostRecord) -> Vec<(HostId, Proof)> {
    let nvme = record.secrets.as_ref().and_then(Secret::known).cloned().map(Box::new).map(Proof::Secret);
    let iscsi = record.chap.as_ref().and_then(Secret::known).cloned().map(Box::new).map(Proof::Chap);
    let nvme = record.nqn.clone().map(HostId::Nqn).zip(nvme);
    nvme.into_iter().chain(record.iqn.clone().map(HostId::Iqn).zip(iscsi)).collect()
}

fn check_host(ask: &HostPut) -> Result<()> {
    let invalid = |field, reason: String| Err(Error::Invalid { field, reason });
    if ask.nqn.is_none() && ask.iqn.is_none() && ask.addresses.is_empty() {
        return invalid("nqn", "or iqn or addresses must be given: by something a host must be known".into());
    }
    if ask.addresses.len() > MOST_ADDRESSES {
        return invalid("addresses", format!("are more than {MOST_ADDRESSES}"));
    }
    for (n, address) in ask.addresses.iter().enumerate() {
        // What no network may be no host may be either.
        if let Err(e) = address.to_string().parse::<Network>() {
            return invalid("addresses", e.to_string());
        }
        if ask.addresses[..n].contains(address) {
            return invalid("addresses", format!("have {address} twice"));
        }
        if address.is_loopback() {
            return invalid("addresses", format!("have {address}, which is everybody's own"));
        }
    }
    Ok(())
}

fn check_zone(ask: &ZonePut) -> Result<()> {
    let invalid = |reason: String| Err(Error::Invalid { field: "networks", reason });
    if ask.versions.is_some() {
        let why = "versions: the kernel's server has them for all of its hosts, and by one version a host could use what it \
                   got by another; [nfs] versions in the configuration says which there are";
        return Err(Error::Unsupported(why.into()));
    }
    if ask.networks.is_empty() || ask.networks.len() > MOST_NETWORKS {
        return invalid(format!("must be 1 to {MOST_NETWORKS}"));
    }
    let mut seen = BTreeSet::new();
    for network in &ask.networks {
        if let Some(other) = seen.iter().find(|other| network.overlaps(other)) {
            return invalid(format!("{network} and {other} have addresses in common"));
        }
        seen.insert(*network);
    }
    Ok(())
}

fn same_secret(field: &'static str) -> Error {
    Error::Invalid { field, reason: "is the host's: who knows one must not know the other".into() }
}

/// The alarm about a host whose secret is lost.
pub(super) fn alarm_of(name: &HostName) -> String {
    format!("host/{name}/secret")
}

fn about(name: &HostName) -> Subject {
    Subject { host: Some(name.clone()), ..Subject::default() }
}
