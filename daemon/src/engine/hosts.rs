//! Hosts: make, change, forget.

use std::sync::Arc;

use orlop_api::{AuthenticationPut, EventKind, HostName, HostPut};
use tokio::time::Instant;

use super::action::Outcome;
use super::core::{Core, run};
use super::error::{Error, Result};
use super::events::Subject;
use super::locks::{Key, Mode};
use crate::journal::{Batch, Table};
use crate::model::{HostRecord, HostSecrets};
use crate::target::HostId;
use crate::target::keys::Proof;

impl Core {
    pub(super) async fn put_host(
        self: &Arc<Self>,
        name: HostName,
        ask: HostPut,
        until: Instant,
    ) -> Result<Outcome> {
        // The NQN too: two hosts that ask for one NQN at the same time must not both get it.
        let wants =
            vec![(Key::Host(name.clone()), Mode::Exclusive), (Key::Nqn(ask.nqn.clone()), Mode::Exclusive)];
        let _guards = self.locks.acquire(wants, until).await?;
        {
            let view = self.view.read();
            if let Some(other) = view.host_by_nqn(&ask.nqn) {
                if *other == name {
                    return shown(&view, &name, false);
                }
                return Err(Error::Conflict {
                    object: format!("host {other}"),
                    field: "nqn",
                    have: format!("{} already", ask.nqn),
                    want: format!("it for host {name} too"),
                });
            }
            let volumes: Vec<_> = view.volumes_of(&name).map(|id| id.to_string()).collect();
            if !volumes.is_empty() {
                return Err(Error::Precondition {
                    object: format!("host {name}"),
                    reason: "is attached under another NQN: detach it from these volumes first".into(),
                    dependants: volumes,
                });
            }
        }
        let old = self.view.read().host_record(&name).cloned();
        // Its secrets are the host's, whatever it is called.
        let record = HostRecord { nqn: ask.nqn, secrets: old.as_ref().and_then(|old| old.secrets.clone()) };
        let mut batch = Batch::default();
        batch.put(Table::Hosts, name.as_str(), &record);
        self.journal.commit(batch).await?;
        if let Some(old) = &old {
            self.settings.host_keys.remove(&HostId::Nqn(old.nqn.clone()));
        }
        self.ask_for(&record);
        let mut view = self.view.write();
        let made = old.is_none();
        view.put_host(name.clone(), record);
        self.events.publish(EventKind::HostPut, about(&name));
        shown(&view, &name, made)
    }

    pub(super) async fn delete_host(self: &Arc<Self>, name: HostName, until: Instant) -> Result<Outcome> {
        let _guards = self.locks.acquire(vec![(Key::Host(name.clone()), Mode::Exclusive)], until).await?;
        {
            let view = self.view.read();
            if view.host_record(&name).is_none() {
                return Err(Error::NotFound(format!("host {name}")));
            }
            let volumes: Vec<_> = view.volumes_of(&name).map(|id| id.to_string()).collect();
            if !volumes.is_empty() {
                return Err(Error::Precondition {
                    object: format!("host {name}"),
                    reason: "is attached: detach it from these volumes first".into(),
                    dependants: volumes,
                });
            }
        }
        let mut batch = Batch::default();
        batch.remove(Table::Hosts, name.as_str());
        self.journal.commit(batch).await?;
        let mut view = self.view.write();
        if let Some(record) = view.host_record(&name) {
            self.settings.host_keys.remove(&HostId::Nqn(record.nqn.clone()));
        }
        view.clear(&alarm_of(&name));
        view.remove_host(&name);
        drop(view);
        self.events.publish(EventKind::HostDeleted, about(&name));
        Ok(Outcome::Gone)
    }
}

impl Core {
    /// Has a host prove a secret from its next connection on, or nothing any more. Connections that it has stay.
    pub(super) async fn set_secrets(
        self: &Arc<Self>,
        name: HostName,
        secrets: Option<AuthenticationPut>,
        until: Instant,
    ) -> Result<Outcome> {
        if secrets.as_ref().is_some_and(|s| s.controller_key.as_ref() == Some(&s.key)) {
            let reason = "is the host's: who knows one must not know the other".into();
            return Err(Error::Invalid { field: "controller_key", reason });
        }
        // No host is attached or detached meanwhile.
        let guards = self.locks.acquire(vec![(Key::Host(name.clone()), Mode::Exclusive)], until).await?;
        let missing = || Error::NotFound(format!("host {name}"));
        let (old, volumes) = {
            let view = self.view.read();
            let old = view.host_record(&name).cloned().ok_or_else(missing)?;
            (old, view.volumes_of(&name).collect::<Vec<_>>())
        };
        let record = HostRecord { secrets: secrets.map(HostSecrets::Known), ..old.clone() };
        // The journal first: once it is durable what the host must prove, no crash lets it in without.
        let mut batch = Batch::default();
        batch.put(Table::Hosts, name.as_str(), &record);
        self.journal.commit(batch).await?;
        if !self.ask_for(&record) {
            // It had to before, as far as is known; what the kernel may still ask is taken back.
            self.settings.host_keys.put(&HostId::Nqn(record.nqn.clone()), Proof::Nothing);
        }
        let (changed, nqn) = (record != old, HostId::Nqn(record.nqn.clone()));
        {
            let mut view = self.view.write();
            view.put_host(name.clone(), record);
            view.clear(&alarm_of(&name));
        }
        for id in volumes {
            self.dirty.mark(id);
            // It was kept out while its secret was lost.
            if !old.is_admissible() {
                let core = self.clone();
                self.background(async move { core.serve_again(id).await });
            }
        }
        // The kernel keeps what it asks of a host in one place for all volumes, whether they can be opened now or not.
        let target = self.settings.target.clone();
        let until = Instant::now() + self.settings.target_deadline;
        let proved = run(&self.target_lane, until, move |deadline| target.prove(&nqn, deadline)).await;
        if let Err(failure) = proved {
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
        shown(&self.view.read(), &name, false)
    }

    /// Has the target ask a host for its secret, if it is known to have one. Whether it is.
    pub(super) fn ask_for(&self, record: &HostRecord) -> bool {
        let Some(HostSecrets::Known(secrets)) = &record.secrets else { return false };
        let host = HostId::Nqn(record.nqn.clone());
        self.settings.host_keys.put(&host, Proof::Secret(Box::new(secrets.clone())));
        true
    }
}

/// The alarm about a host whose secret is lost.
pub(super) fn alarm_of(name: &HostName) -> String {
    format!("host/{name}/secret")
}

fn shown(view: &super::View, name: &HostName, made: bool) -> Result<Outcome> {
    let host = view.host(name).ok_or_else(|| Error::NotFound(format!("host {name}")))?;
    Ok(Outcome::Host { host, made })
}

fn about(name: &HostName) -> Subject {
    Subject { host: Some(name.clone()), ..Subject::default() }
}
