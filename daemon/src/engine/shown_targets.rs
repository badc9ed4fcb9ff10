//! The targets as they are shown: how each is, what it serves, and what is in it of others.
//!
//! The kernel is read when somebody asks, on each target's lane and within a deadline: one that does not answer is shown as
//! such, and hides no other.

use orlop_api::{Protocol, Target, TargetPortal, TargetState};
use tokio::time::Instant;

use super::core::{Core, run};
use super::targets::Server;
use crate::kernel::Deadline;
use crate::target::TargetError;
use crate::target::foreign::Others;

/// What was read of a target.
enum Read {
    There(usize, Others),
    /// The kernel lacks it.
    Absent(String),
}

impl Core {
    /// All of them, by protocol.
    pub(super) async fn shown_targets(&self, until: Instant) -> Vec<Target> {
        let until = until.min(Instant::now() + self.settings.target_deadline);
        let shown = self.targets.iter().map(|(protocol, server)| shown(*protocol, server, until));
        futures_util::future::join_all(shown).await
    }
}

async fn shown(protocol: Protocol, server: &Server, until: Instant) -> Target {
    let target = server.target.clone();
    let read = move |deadline: &Deadline| {
        let read = target.served(deadline).and_then(|own| Ok((own.len(), target.foreign(deadline)?)));
        match read {
            Ok((own, others)) => Ok(Read::There(own, others)),
            Err(lacks @ (TargetError::Absent(_) | TargetError::Unsupported(_))) => {
                Ok(Read::Absent(lacks.to_string()))
            }
            Err(error) => Err(error),
        }
    };
    let (mut state, mut reason, mut own, mut others) = (TargetState::Available, None, 0, Others::default());
    match run(&server.lane, until, read).await {
        Ok(Read::There(volumes, found)) => (own, others) = (volumes, found),
        Ok(Read::Absent(why)) => (state, reason) = (TargetState::Absent, Some(why)),
        Err(failure) => (state, reason) = (TargetState::Unreadable, Some(failure.error.chain())),
    }
    // Whatever else is true of it.
    if !server.offered {
        (state, reason) = (TargetState::LeftOut, Some("the configuration leaves it out".into()));
    }
    Target {
        protocol,
        kind: server.target.kind(),
        state,
        reason,
        portals: portals(server),
        volumes: u64::try_from(own).unwrap_or(u64::MAX),
        foreign: others.listed,
        more_foreign: others.more,
    }
}

/// Where it should listen, and what was wrong with that when it last converged. What several addresses share by one name is
/// down at all of them.
fn portals(server: &Server) -> Vec<TargetPortal> {
    let down = server.down.lock();
    let listens = server.target.listens().into_iter();
    listens.map(|(name, at)| TargetPortal { at, down: down.get(&name).cloned() }).collect()
}
