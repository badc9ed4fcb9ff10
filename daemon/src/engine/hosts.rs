//! Hosts: make, change, forget.

use std::sync::Arc;

use orlop_api::{EventKind, HostName, HostPut};
use tokio::time::Instant;

use super::action::Outcome;
use super::core::Core;
use super::error::{Error, Result};
use super::events::Subject;
use super::locks::{Key, Mode};
use crate::journal::{Batch, Table};
use crate::model::HostRecord;

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
        let record = HostRecord { nqn: ask.nqn };
        let mut batch = Batch::default();
        batch.put(Table::Hosts, name.as_str(), &record);
        self.journal.commit(batch).await?;
        let mut view = self.view.write();
        let made = view.host_record(&name).is_none();
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
        self.view.write().remove_host(&name);
        self.events.publish(EventKind::HostDeleted, about(&name));
        Ok(Outcome::Gone)
    }
}

fn shown(view: &super::View, name: &HostName, made: bool) -> Result<Outcome> {
    let host = view.host(name).ok_or_else(|| Error::NotFound(format!("host {name}")))?;
    Ok(Outcome::Host { host, made })
}

fn about(name: &HostName) -> Subject {
    Subject { host: Some(name.clone()), ..Subject::default() }
}
