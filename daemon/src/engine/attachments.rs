//! Attachments: letting a host in, and cutting it off.

use std::sync::Arc;

use orlop_api::{Attachment, EventKind, HostName, VolumeId, VolumeKind, VolumeRef};
use tokio::time::Instant;

use super::action::{Outcome, Principal};
use super::core::Core;
use super::error::{Error, Result};
use super::events::Subject;
use super::intent::Intent;
use super::locks::{Guards, Key, Mode};
use super::volumes::not_found;
use crate::journal::{Batch, Table};

impl Core {
    pub(super) async fn attach(
        self: &Arc<Self>,
        who: &Principal,
        volume: VolumeRef,
        host: HostName,
        alone: bool,
        until: Instant,
    ) -> Result<Outcome> {
        let id = self.find(who, &volume)?;
        self.check_settled(|intent| intent.touches_access(id))?;
        let (mut guards, others) = self.lock_access(id, &host, alone, until).await?;
        self.check_settled(|intent| intent.touches_access(id))?;
        self.check_usable(id)?;
        let (pool, size, already) = {
            let view = self.view.read();
            let entry = view.entry(id).ok_or_else(|| not_found(&volume))?;
            let record = view.host_record(&host).ok_or_else(|| Error::NotFound(format!("host {host}")))?;
            if !record.is_admissible() {
                return Err(Error::Precondition {
                    object: format!("host {host}"),
                    reason: "must prove a secret that is lost: give it again first".into(),
                    dependants: Vec::new(),
                });
            }
            // Exports are what lets hosts in to these, and there are none yet. An attachment gives a disk.
            if entry.label.kind == VolumeKind::Filesystem {
                return Err(Error::Unsupported(format!(
                    "volume {volume} is a file system: a host can be attached to a disk only"
                )));
            }
            (entry.pool.clone(), entry.label.size, view.is_attached(id, &host))
        };
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
            if opened.size != size {
                let found = format!("a device of {} bytes instead of {}", opened.size.0, size.0);
                return Err(Error::Unverified { object: format!("volume {id}"), found }.into());
            }
            self.converge_volume(id, Some(&host), false).await?;
            let mut batch = Batch::default();
            batch.put(Table::Attachments, &attachment_key(id, &host), &serde_json::json!({}));
            Ok(((), batch))
        };
        let intent = Intent::Attach { volume: id, host: host.clone() };
        let ((), _guards) = self.carry_out_with(intent, Batch::default(), guards, act).await?;
        self.view.write().attach(id, &host);
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
        let id = self.find_attached(who, &volume)?;
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
        self.events.publish(EventKind::Detached, about(id, host));
        Ok(guards)
    }

    /// As `find`, but also a volume whose backing is gone and whose attachments are still there: they can
    /// be taken away by id.
    fn find_attached(&self, who: &Principal, volume: &VolumeRef) -> Result<VolumeId> {
        match (self.find(who, volume), volume) {
            (Ok(id), _) => Ok(id),
            (Err(_), VolumeRef::Id(id)) if self.view.read().is_orphaned(*id) => Ok(*id),
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
        let portals = self.settings.target.portals();
        let view = self.view.read();
        let entry = view.entry(id)?;
        if !view.is_attached(id, host) {
            return None;
        }
        Some(Attachment {
            volume: id,
            host: host.clone(),
            protocol: entry.label.protocol,
            nqn: identity.nqn.clone(),
            host_nqn: view.host_record(host)?.nqn.clone(),
            authentication: view.host_record(host)?.authentication(),
            portals,
            nsid: 1,
            uuid: identity.uuid,
            nguid: identity.uuid.simple().to_string(),
            serial: identity.serial,
            size: entry.label.size,
        })
    }
}

/// The key of an attachment's record. A volume id has no slash.
pub(super) fn attachment_key(id: VolumeId, host: &HostName) -> String {
    format!("{id}/{host}")
}

fn about(id: VolumeId, host: &HostName) -> Subject {
    Subject { volume: Some(id), host: Some(host.clone()), ..Subject::default() }
}
