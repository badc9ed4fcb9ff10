//! Making one change.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::plan::shown;
use super::state::{Change, Step};
use super::{Nfs, failed, no_kerberos};
use crate::kernel::Deadline;
use crate::target::{Result, TargetError};

/// How long calls in work may take to end. They wait for the disk.
const END_LIMIT: Duration = Duration::from_secs(20);

/// Between two restarts.
const BETWEEN_RESTARTS: Duration = Duration::from_secs(60);

/// Whom a settlement is about: see [`Change::Settle`].
#[derive(Clone, Copy)]
struct Who<'a> {
    keep: &'a BTreeSet<IpNet>,
    lowered: &'a BTreeSet<IpNet>,
    turned_away: &'a BTreeSet<IpNet>,
    all: bool,
}

impl Nfs {
    pub(super) fn make(&self, step: &Step, deadline: &Deadline) -> Result<()> {
        let server = &*self.server;
        let words = |e: io::Error| failed(step.to_string(), "nfs-server.service", e);
        match step {
            Step::Volume { volume, path, change } => {
                let name = volume.to_string();
                let at = shown(path);
                let result = match change {
                    Change::Write { text } => server.write(&name, text),
                    Change::Remove => server.remove(&name),
                    Change::Withdraw { clients } => server.withdraw(&at, clients, deadline),
                    Change::Export { clients, options } => server.export(&at, clients, options, deadline),
                    Change::Bind { backing, device } => self.bind(backing, path, *device),
                    Change::Release => return self.release(step, path, deadline),
                    Change::Settle { keep, lowered, turned_away, all, device } => {
                        let who = Who { keep, lowered, turned_away, all: *all };
                        return self.settle(step, path, who, *device, deadline);
                    }
                    Change::CheckTickets => return server.check_tickets(deadline).map_err(no_kerberos),
                    Change::Refuse { backing, detail } => {
                        let object = shown(backing);
                        return Err(TargetError::Unfit { object, detail: (*detail).into() });
                    }
                };
                result.map_err(|e| failed(step.to_string(), &at, e))
            }
            Step::Configure => server.configure(&self.config.settings()).map_err(words),
            Step::Start => server.start(deadline).map_err(|e| self.not_started(step, e)),
            Step::Restart => {
                let mut last = self.restarted.lock();
                if last.is_some_and(|at| at.elapsed() < BETWEEN_RESTARTS) {
                    // Each takes locks away until their owners reclaim them, and it did not help.
                    let why =
                        "the NFS server was restarted and does not serve as it is set; again in a minute";
                    return Err(TargetError::Unsettled(why.into()));
                }
                *last = Some(Instant::now());
                drop(last);
                server.restart(deadline).map_err(|e| self.not_started(step, e))
            }
        }
    }

    /// Shows a backing in its place. What was mounted there when it was looked at may be gone: then this would show a
    /// directory of the appliance's own.
    fn bind(&self, backing: &Path, place: &Path, device: (u32, u32)) -> io::Result<()> {
        let server = &*self.server;
        server.make_root(&self.config.root)?;
        server.bind(backing, place)?;
        let shown = server.mounts()?.iter().rev().find(|m| m.point == place).map(|m| m.device);
        if shown == Some(device) {
            return Ok(());
        }
        server.unbind(place)?;
        Err(io::Error::other("it was unmounted meanwhile"))
    }

    fn not_started(&self, step: &Step, e: io::Error) -> TargetError {
        match failed(step.to_string(), "nfs-server.service", e) {
            TargetError::Kernel { source, .. } => {
                TargetError::Portal { portal: self.config.portal_name(), source }
            }
            other => other,
        }
    }

    /// Nobody is let in any more. What is left of them is taken, and that the volume can be unmounted proves that
    /// nothing is: every file that the server has open, and every call in work, holds this mount.
    fn release(&self, step: &Step, path: &Path, deadline: &Deadline) -> Result<()> {
        let server = &*self.server;
        let words = |e: io::Error| failed(step.to_string(), path, e);
        let limit = deadline.at_most(END_LIMIT);
        loop {
            // Each time: a call that was in work may have opened another file. That the kernel does not know hosts any
            // more was seen to when their entries were withdrawn; here only what it still holds matters.
            server.clear().map_err(words)?;
            server.revoke(path).map_err(words)?;
            match server.unbind(path) {
                Ok(()) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {}
                Err(e) => return Err(words(e)),
            }
            // Nothing tells when a mount is no longer busy.
            limit.pause(self.poll).map_err(|o| TargetError::Deadline(step.to_string(), o))?;
        }
    }

    fn settle(
        &self,
        step: &Step,
        path: &Path,
        who: Who<'_>,
        device: (u32, u32),
        deadline: &Deadline,
    ) -> Result<()> {
        let server = &*self.server;
        let words = |e: io::Error| failed(step.to_string(), path, e);
        let among = |ranges: &BTreeSet<IpNet>, address: &IpAddr| ranges.iter().any(|r| r.contains(address));
        let kept = |address: &IpAddr| among(who.keep, address) && !among(who.turned_away, address);
        let less = |address: &IpAddr| among(who.lowered, address);
        let limit = deadline.at_most(END_LIMIT);
        // From here on nobody finds an export that was withdrawn. A call that began before may have found it.
        server.flush().map_err(words)?;
        let calls = || {
            server.calls().map_err(words)?.ok_or_else(|| {
                TargetError::Unsupported("the list of NFS calls in work: Linux 6.7 has it".into())
            })
        };
        let mut left = calls()?;
        left.retain(|c| less(&c.peer) || (who.all && !kept(&c.peer)));
        while !left.is_empty() {
            // The list can't be watched.
            limit.pause(self.poll).map_err(|o| TargetError::Deadline(step.to_string(), o))?;
            let now = calls()?;
            left.retain(|c| now.contains(c));
        }
        // And only now: one of these calls may have opened a file.
        for client in server.clients().map_err(words)? {
            if !kept(&client.address) && server.holds(&client, device).map_err(words)? {
                limit.check().map_err(|o| TargetError::Deadline(step.to_string(), o))?;
                tracing::warn!(client = %client.address, path = %path.display(), "a client that is not let in is expired");
                server.expire(&client).map_err(words)?;
            }
        }
        for host in server.lockers(device).map_err(words)? {
            if !kept(&host) {
                tracing::warn!(%host, path = %path.display(), "the locks of a host that is not let in are freed");
                server.free_locks(host).map_err(words)?;
            }
        }
        Ok(())
    }
}
