//! Attachments: letting a host in, and cutting it off.

use std::sync::Arc;

use orlop_api::{
    Access, Attachment, EventKind, HostName, IscsiAccess, NfsAccess, NvmeAccess, Protocol, Squash, VolumeId,
    VolumeRef,
};
use tokio::time::Instant;

use super::action::{Attach, Outcome, Principal};
use super::core::Core;
use super::error::{Error, Result};
use super::events::Subject;
use super::intent::Intent;
use super::locks::{Guards, Key, Mode};
use super::view::View;
use crate::journal::{Batch, Table};
use crate::model::{Audience, Grant, HostRecord, ZoneRules};

impl Core {
    pub(super) async fn attach(
        self: &Arc<Self>,
        who: &Principal,
        volume: VolumeRef,
        host: HostName,
        how: Attach,
        until: Instant,
    ) -> Result<Outcome> {
        let grant = Grant { read_only: how.read_only };
        let id = self.find(who, &volume)?;
        self.check_settled(|intent| intent.touches_access(id))?;
        let (mut guards, others) = self.lock_access(id, &host, how.alone, until).await?;
        self.check_settled(|intent| intent.touches_access(id))?;
        self.check_usable(id)?;
        let (pool, size, already, protocol, record) = {
            let view = self.view.read();
            let entry = view.entry(id).ok_or_else(|| view.no_volume(who, &volume))?;
            let record = view.host_record(&host).filter(|r| who.knows(&r.tenant));
            let record = record.ok_or_else(|| Error::NotFound(format!("host {host}")))?;
            if record.tenant != entry.label.tenant {
                let (theirs, whose) = (&record.tenant, &entry.label.tenant);
                return Err(Error::Precondition {
                    object: format!("{} {host}", record.noun()),
                    reason: format!("is tenant {theirs}'s, and volume {volume} tenant {whose}'s"),
                    dependants: Vec::new(),
                });
            }
            let protocol = entry.label.protocol();
            self.check_served(protocol)?;
            check_may_use(&host, record, protocol)?;
            if grant.read_only && !self.server(protocol)?.target.has_readers() {
                let why = "read_only: this target lets every host write that it lets in";
                return Err(Error::Unsupported(why.into()));
            }
            if protocol == Protocol::Nvme {
                self.check_portal(&host, record)?;
                if !how.alone {
                    check_company(&view, id, &host, record)?;
                }
            }
            let record = record.clone();
            let had = view.grant_of(id, &host);
            if let Some(had) = had.filter(|had| *had != grant) {
                return Err(Error::Conflict {
                    object: format!("attachment of volume {volume} to {} {host}", record.noun()),
                    field: "read_only",
                    have: had.read_only.to_string(),
                    want: format!("{}: detach it first", grant.read_only),
                });
            }
            (entry.pool.clone(), entry.label.size, had.is_some(), protocol, record)
        };
        if !already {
            self.check_room_of(&host, protocol)?;
        }
        self.check_labels(&[id], &host, &record)?;
        let open = self.open_pool(&pool)?;

        if !others.is_empty() {
            // All that could refuse this is asked before anybody is cut off, and it stays open for who comes: a key that
            // is brought by hand may be gone when it is closed.
            self.open_backing(&open, id, until).await.map_err(|f| f.error)?;
        }
        for other in others {
            guards = self.cut_off(id, &other, true, guards).await?;
        }
        // An attachment that exists is verified all the same: "attached" means that the kernel says so.
        if already {
            self.open_backing(&open, id, until).await.map_err(|f| f.error)?;
            self.converge_volume(id, None, false).await.map_err(|f| f.error)?;
            return self.attached(id, &host, false);
        }
        let act = async {
            let opened = self.open_backing(&open, id, until).await?;
            // A file system may be a little smaller until it is next mounted (a grow that was stopped half way).
            if opened.size != size && opened.device().is_some() {
                let found = format!("a device of {} bytes instead of {}", opened.size.0, size.0);
                return Err(Error::Unverified { object: format!("volume {id}"), found }.into());
            }
            self.converge_volume(id, Some((&host, grant)), false).await?;
            let mut batch = Batch::default();
            batch.put(Table::Attachments, &attachment_key(id, &host), &grant);
            Ok(((), batch))
        };
        let intent = Intent::Attach { volume: id, host: host.clone() };
        let ((), _guards) = self.carry_out_with(intent, Batch::default(), guards, act).await?;
        {
            let mut view = self.view.write();
            view.attach(id, &host, grant);
            view.clear(&closed_alarm(id));
        }
        self.note_limits_of(&host);
        self.dirty.mark(id);
        self.events.publish(EventKind::Attached, about(id, &host));
        self.attached(id, &host, true)
    }

    pub(super) async fn detach(
        self: &Arc<Self>,
        who: &Principal,
        volume: VolumeRef,
        host: HostName,
        until: Instant,
    ) -> Result<Outcome> {
        let id = self.find_attached(who, &volume, &host)?;
        self.check_settled(|intent| intent.touches_access(id))?;
        let wants = vec![(Key::Host(host.clone()), Mode::Shared), (Key::Volume(id), Mode::Exclusive)];
        let guards = self.locks.acquire(wants, until).await?;
        self.check_settled(|intent| intent.touches_access(id))?;
        if !self.view.read().is_attached(id, &host) {
            return Err(Error::NotFound(format!("attachment of volume {volume} to host {host}")));
        }

        let _guards = self.cut_off(id, &host, false, guards).await?;
        Ok(Outcome::Gone)
    }

    /// Locks a volume's access for letting a host in, and says who else is attached if they are to go.
    async fn lock_access(
        &self,
        id: VolumeId,
        host: &HostName,
        alone: bool,
        until: Instant,
    ) -> Result<(Guards, Vec<HostName>)> {
        let others = || -> Vec<HostName> {
            let view = self.view.read();
            view.hosts_of(id).filter(|other| alone && *other != host).cloned().collect()
        };
        loop {
            let known = others();
            let hosts = known.iter().chain([host]).map(|h| (Key::Host(h.clone()), Mode::Shared));
            let wants = hosts.chain([(Key::Volume(id), Mode::Exclusive)]).collect();
            let guards = self.locks.acquire(wants, until).await?;
            if others() == known {
                return Ok((guards, known));
            }
            // Somebody came or went while the locks were waited for.
        }
    }

    /// Cuts an attached host off, under the locks that are held. `stays_open`: the backing is needed afterwards.
    async fn cut_off(
        self: &Arc<Self>,
        id: VolumeId,
        host: &HostName,
        stays_open: bool,
        guards: Guards,
    ) -> Result<Guards> {
        // The journal first: once it is durable that the host has no access, no crash brings it back.
        let mut batch = Batch::default();
        batch.remove(Table::Attachments, &attachment_key(id, host));
        let act = async {
            self.view.write().detach(id, host);
            self.dirty.mark(id);
            if stays_open {
                self.converge_open(id, None, true).await?;
            } else {
                self.converge_volume(id, None, true).await?;
            }
            Ok(((), Batch::default()))
        };
        let intent = Intent::Detach { volume: id, host: host.clone() };
        let ((), guards) = self.carry_out_with(intent, batch, guards, act).await?;
        self.note_limits_of(host);
        self.events.publish(EventKind::Detached, about(id, host));
        Ok(guards)
    }

    /// As `find`, but also a volume whose backing is gone and whose attachments are still there: they can
    /// be taken away by id.
    fn find_attached(&self, who: &Principal, volume: &VolumeRef, host: &HostName) -> Result<VolumeId> {
        match (self.find(who, volume), volume) {
            (Ok(id), _) => Ok(id),
            (Err(e), VolumeRef::Id(id)) => {
                let view = self.view.read();
                // Whose the volume was is not known any more, nor where it was. It was of its host's tenant.
                let may = who.uses_all_pools() && view.knows_host(who, host);
                if may && view.is_orphaned(*id) { Ok(*id) } else { Err(e) }
            }
            (Err(e), _) => Err(e),
        }
    }

    fn attached(&self, id: VolumeId, host: &HostName, changed: bool) -> Result<Outcome> {
        let attachment = self.attachment(id, host);
        attachment
            .map(|attachment| Outcome::Attachment { attachment, changed })
            .ok_or_else(|| Error::NotFound(format!("attachment of volume {id} to host {host}")))
    }

    /// All that an initiator needs, if it is attached.
    pub(super) fn attachment(&self, id: VolumeId, host: &HostName) -> Option<Attachment> {
        let identity = self.identity(id);
        let protocol = self.view.read().entry(id)?.label.protocol();
        let mut portals = self.portals(protocol);
        let view = self.view.read();
        let (entry, record) = (view.entry(id)?, view.host_record(host)?);
        portals.retain(|p| p.tls == (record.tls.is_some() && protocol == Protocol::Nvme));
        let grant = view.grant_of(id, host)?;
        let zone = record.zone.unwrap_or(ZoneRules { squash: Squash::None, ..ZoneRules::default() });
        let read_only = grant.read_only || zone.read_only;
        let access = match protocol {
            Protocol::Nvme => Access::Nvme(NvmeAccess {
                nqn: identity.nqn_for(Audience::of(read_only)).clone(),
                host_nqn: record.nqn.clone()?,
                authentication: record.authentication(),
                tls: record.tls(),
                portals,
                nsid: 1,
                uuid: identity.uuid,
                nguid: identity.uuid.simple().to_string(),
                serial: identity.serial,
            }),
            Protocol::Iscsi => Access::Iscsi(IscsiAccess {
                wwn: identity.wwn(),
                iqn: identity.iqn,
                host_iqn: record.iqn.clone()?,
                chap: record.chap(),
                portals,
                lun: 0,
                serial: identity.scsi_serial,
            }),
            Protocol::Nfs => Access::Nfs(NfsAccess {
                portals,
                path: identity.export_path(),
                networks: record.networks.clone(),
                squash: zone.squash,
                security: zone.security,
            }),
        };
        Some(Attachment { volume: id, host: host.clone(), read_only, size: entry.label.size, access })
    }
}

/// The alarm about a volume to which nobody is let in because its label was not to be believed.
pub(super) fn closed_alarm(id: VolumeId) -> String {
    format!("volume/{id}/access")
}

/// Refuses what a host can't have by a protocol.
fn check_may_use(host: &HostName, record: &HostRecord, protocol: Protocol) -> Result<()> {
    let object = || format!("{} {host}", record.noun());
    if record.zone.is_some() && protocol != Protocol::Nfs {
        return Err(Error::Unsupported(format!("{}: a disk is attached to hosts, and to no zone", object())));
    }
    if !record.is_known_by(protocol) {
        let what = match protocol {
            Protocol::Nvme => "an NQN",
            Protocol::Iscsi => "an iSCSI name",
            Protocol::Nfs => "an address",
        };
        let reason = format!("has not {what}, by which {} knows it: give it one first", protocol.as_str());
        return Err(Error::Precondition { object: object(), reason, dependants: Vec::new() });
    }
    if !record.is_admissible(protocol) {
        let reason = "must prove a secret that is lost: give it again first".into();
        return Err(Error::Precondition { object: object(), reason, dependants: Vec::new() });
    }
    Ok(())
}

/// Refuses a host without TLS where there is one with, and the other way round: a volume is served at portals with TLS or
/// without, and at those without a host is believed its name.
fn check_company(view: &View, id: VolumeId, host: &HostName, record: &HostRecord) -> Result<()> {
    let tls = record.tls.is_some();
    let other = |name: &&HostName| view.host_record(name).is_some_and(|r| r.tls.is_some() != tls);
    let others: Vec<_> =
        view.hosts_of(id).filter(|name| *name != host).filter(other).map(ToString::to_string).collect();
    if others.is_empty() {
        return Ok(());
    }
    let reason = match tls {
        true => {
            "comes by TLS, and a volume is served with it or without: give these hosts a key, or detach them"
        }
        false => {
            "has no TLS key, and a volume is served with TLS or without: give it one, or detach these hosts"
        }
    };
    Err(Error::Precondition { object: format!("host {host}"), reason: reason.into(), dependants: others })
}

/// The key of an attachment's record. A volume id has no slash.
pub(super) fn attachment_key(id: VolumeId, host: &HostName) -> String {
    format!("{id}/{host}")
}

pub(super) fn about(id: VolumeId, host: &HostName) -> Subject {
    Subject { volume: Some(id), host: Some(host.clone()), ..Subject::default() }
}
