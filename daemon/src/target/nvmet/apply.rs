//! Making one change.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use orlop_api::Nqn;
use rustix::io::Errno;

use super::Nvmet;
use super::state::{Change, NSID, PortChange, Step};
use crate::kernel::Deadline;
use crate::model::Audience;
use crate::target::tree::{gone, in_words, is, there};
use crate::target::{Export, Result, TargetError};

/// How long dropped controllers may take. They wait for I/O in flight, so for the disk.
const DROP_LIMIT: Duration = Duration::from_secs(20);

/// How long a name may stay taken by a subsystem that was removed and still has controllers.
const NAME_LIMIT: Duration = Duration::from_secs(20);

impl Nvmet {
    pub(super) fn make(&self, step: &Step, deadline: &Deadline) -> Result<()> {
        let (path, result) = match step {
            Step::Volume { volume, nqn, change } => match change {
                Change::Refuse { object, detail } => {
                    return Err(TargetError::Foreign { object: object.clone(), detail: detail.clone() });
                }
                Change::NoPortal { tls } => {
                    return Err(TargetError::NoPortal { object: nqn.to_string(), tls: *tls });
                }
                Change::DropControllers { keep, qid_max } => {
                    let path = format!("subsystems/{nqn}/attr_qid_max");
                    match self.tree.write(&path, &qid_max.to_string()) {
                        Ok(()) => return self.wait_for_drop(step, nqn, keep, deadline),
                        Err(e) => (path, Err(e)),
                    }
                }
                Change::MakeSubsystem => return self.make_subsystem(step, nqn, deadline),
                Change::Authenticate { host } => return self.have_proved(host, deadline),
                Change::RemoveKey { identity } => return self.remove_key(*volume, identity),
                Change::PutKeys { host } => return self.put_keys(host, *volume, nqn),
                Change::RemoveReadOnly => return self.remove_read_only(step, *volume, deadline),
                Change::MakeReadOnly { on } => return self.make_read_only(step, *volume, Path::new(on)),
                Change::SetReadOnly => {
                    let path = format!("subsystems/{nqn}/namespaces/{NSID}/device_path");
                    let device = self.device_for_readers(step, *volume)?;
                    let result = self.tree.write(&path, &device);
                    (path, result)
                }
                Change::Allow { host } => return self.allow(step, nqn, host, deadline),
                Change::Link { port, portal } => {
                    let path = format!("ports/{port}/subsystems/{nqn}");
                    match self.tree.link(&format!("subsystems/{nqn}"), &path) {
                        Err(e) if opening_failed(&e) => {
                            return Err(TargetError::Portal { portal: portal.clone(), source: e });
                        }
                        result => (path, result),
                    }
                }
                change => self.change(nqn, change),
            },
            Step::Port { port, portal, change } => {
                let path = format!("ports/{port}");
                match change {
                    PortChange::Remove => {
                        let result = gone(self.tree.remove_dir(&path));
                        (path, result)
                    }
                    PortChange::Make => {
                        let result = there(self.tree.make_dir(&path));
                        (path, result)
                    }
                    PortChange::Set { attribute, value } => {
                        let path = format!("{path}/{attribute}");
                        let result = self.tree.write(&path, value);
                        if *attribute == "param_max_queue_size"
                            && (result.is_ok()
                                || result.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::NotFound))
                        {
                            // Its own limit is all that it has.
                            if result.is_err() {
                                tracing::warn!(portal, "this kernel has no limit for the length of queues");
                            }
                            return Ok(());
                        }
                        if result.as_ref().is_err_and(|e| lacks(e, attribute, value)) {
                            return Err(TargetError::Unsupported(format!(
                                "{attribute} {value} of ports, which portal {portal} needs"
                            )));
                        }
                        (path, result)
                    }
                    PortChange::Refer { name, to } => {
                        let path = format!("{path}/referrals/{name}");
                        let result = self.refer(&path, *to);
                        (path, result)
                    }
                    PortChange::Unrefer { name } => {
                        let path = format!("{path}/referrals/{name}");
                        let result = gone(self.tree.remove_dir(&path));
                        (path, result)
                    }
                }
            }
        };
        result.map_err(|e| failed(step, path, e))
    }

    fn change(&self, nqn: &Nqn, change: &Change) -> (String, io::Result<()>) {
        let tree = &*self.tree;
        let at = |what: &str| format!("subsystems/{nqn}/{what}");
        match change {
            Change::Close => {
                let path = at("attr_allow_any_host");
                let result = tree.write(&path, "0");
                (path, result)
            }
            Change::Unlink { port, entry } => {
                let path = format!("ports/{port}/subsystems/{entry}");
                let result = gone(tree.unlink(&path));
                (path, result)
            }
            Change::RemoveNamespace { nsid } => {
                let path = at(&format!("namespaces/{nsid}"));
                let result = gone(tree.remove_dir(&path));
                (path, result)
            }
            Change::Disallow { entry } => {
                let path = at(&format!("allowed_hosts/{entry}"));
                let result = gone(tree.unlink(&path));
                (path, result)
            }
            Change::RemoveHost { host } => {
                let path = format!("hosts/{host}");
                let result = self.remove_host(host, &path);
                (path, result)
            }
            Change::RemoveSubsystem => {
                let path = format!("subsystems/{nqn}");
                let result = gone(tree.remove_dir(&path));
                (path, result)
            }
            Change::Set { attribute, value } => {
                let path = at(attribute);
                let result = tree.write(&path, value);
                // A kernel without it shows its own model; the identity is in the namespace.
                let dispensable = ["attr_model", "attr_qid_max"].contains(attribute);
                (path, if dispensable { gone(result) } else { result })
            }
            Change::MakeNamespace => {
                let path = at(&format!("namespaces/{NSID}"));
                let result = tree.make_dir(&path);
                (path, result)
            }
            Change::SetNamespace { attribute, value } => {
                let path = at(&format!("namespaces/{NSID}/{attribute}"));
                let result = tree.write(&path, value);
                // A kernel before 6.13 has no reservations.
                (path, if *attribute == "resv_enable" { gone(result) } else { result })
            }
            Change::Enable => {
                let path = at(&format!("namespaces/{NSID}/enable"));
                let result = tree.write(&path, "1");
                (path, result)
            }
            Change::MakeHost { host } => {
                let path = format!("hosts/{host}");
                let result = there(tree.make_dir(&path));
                (path, result)
            }
            // Handled by the caller.
            Change::Refuse { .. }
            | Change::NoPortal { .. }
            | Change::RemoveKey { .. }
            | Change::PutKeys { .. }
            | Change::DropControllers { .. }
            | Change::RemoveReadOnly
            | Change::MakeReadOnly { .. }
            | Change::SetReadOnly
            | Change::MakeSubsystem
            | Change::Authenticate { .. }
            | Change::Allow { .. }
            | Change::Link { .. } => (String::new(), Ok(())),
        }
    }

    /// Host directories are shared by name with whoever else configures the target, and nothing tells
    /// who made one. So one is removed only right after a link of ours to it went, never because a
    /// scan found it idle (a foreign tool makes the directory first and the link later); the kernel
    /// itself refuses while any link is left; and one with a secret inside that is not ours is kept, because
    /// making it again would not bring that back.
    fn remove_host(&self, host: &str, path: &str) -> io::Result<()> {
        if self.has_foreign_secret(host) {
            return Ok(());
        }
        gone(self.tree.remove_dir(path)).or_else(|e| if is(&e, Errno::BUSY) { Ok(()) } else { Err(e) })
    }

    /// Has discovery at a port refer to another one.
    fn refer(&self, path: &str, to: SocketAddr) -> io::Result<()> {
        there(self.tree.make_dir(path))?;
        let family = if to.is_ipv4() { "ipv4" } else { "ipv6" };
        let (address, port) = (to.ip().to_string(), to.port().to_string());
        for (attribute, value) in [
            ("addr_trtype", "tcp"),
            ("addr_adrfam", family),
            ("addr_traddr", &address),
            ("addr_trsvcid", &port),
            ("enable", "1"),
        ] {
            self.tree.write(&format!("{path}/{attribute}"), value)?;
        }
        Ok(())
    }

    /// Lets a host in. What it must prove comes first, every time: another volume's step may have removed the
    /// directory since it was seen, and a new one asks nothing.
    fn allow(&self, step: &Step, nqn: &Nqn, host: &str, deadline: &Deadline) -> Result<()> {
        let (from, path) = (format!("hosts/{host}"), format!("subsystems/{nqn}/allowed_hosts/{host}"));
        there(self.tree.make_dir(&from)).map_err(|e| failed(step, from.clone(), e))?;
        self.ask_as_it_should(host, deadline)?;
        self.tree.link(&from, &path).map_err(|e| failed(step, path, e))
    }

    /// A subsystem that was removed lives on without a name in configfs until its last controller has
    /// gone, and where the kernel has debugfs its name there is taken until then.
    fn make_subsystem(&self, step: &Step, nqn: &Nqn, deadline: &Deadline) -> Result<()> {
        let path = format!("subsystems/{nqn}");
        let limit = deadline.at_most(NAME_LIMIT);
        loop {
            match self.tree.make_dir(&path) {
                Ok(()) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && self.tree.list(&path).is_err() => {
                    // Neither configfs nor debugfs can be watched.
                    limit.pause(self.poll).map_err(|o| TargetError::Deadline(step.to_string(), o))?;
                }
                Err(e) => return Err(failed(step, path, e)),
            }
        }
    }

    /// The kernel shuts the sockets down and answers; its queues wait for their I/O later. Neither
    /// configfs nor debugfs can be watched (no inotify or poll), so this looks again and again. Two
    /// empty looks in a row, because a host that was just connecting passes the check of its name a
    /// moment before its controller is listed.
    fn wait_for_drop(
        &self,
        step: &Step,
        nqn: &Nqn,
        keep: &std::collections::BTreeSet<String>,
        deadline: &Deadline,
    ) -> Result<()> {
        let limit = deadline.at_most(DROP_LIMIT);
        let mut empty = 0;
        while empty < 2 {
            // Neither configfs nor debugfs can be watched.
            limit.pause(self.poll).map_err(|o| TargetError::Deadline(step.to_string(), o))?;
            match self.controllers(nqn)? {
                Some(hosts) if hosts.iter().any(|h| !keep.contains(h)) => empty = 0,
                Some(_) => empty += 1,
                // The list went away (debugfs unmounted): the next observation plans without it.
                None => return Ok(()),
            }
        }
        Ok(())
    }

    pub(super) fn announce(&self, export: &Export) -> Result<()> {
        for audience in Audience::ALL.into_iter().filter(|of| export.audience(*of).next().is_some()) {
            let nqn = export.identity.nqn_for(audience);
            if let Some((volume, Audience::Readers)) = self.config.prefix.audience(nqn.as_str()) {
                self.readers.grow(volume).map_err(in_words("read-only devices"))?;
            }
            self.announce_to(nqn)?;
        }
        Ok(())
    }

    fn announce_to(&self, nqn: &Nqn) -> Result<()> {
        let path = format!("subsystems/{nqn}/namespaces/{NSID}/revalidate_size");
        self.tree.write(&path, "1").map_err(|source| {
            let namespace = format!("subsystems/{nqn}/namespaces/{NSID}");
            // Disabling and enabling would announce it as well, and fail the hosts' I/O meanwhile.
            if source.kind() == io::ErrorKind::NotFound && self.tree.list(&namespace).is_ok() {
                return TargetError::Unsupported(
                    "revalidate_size: hosts learn of a grow at reconnect".into(),
                );
            }
            TargetError::Kernel { step: format!("announce the size of {nqn}"), path: path.into(), source }
        })
    }
}

fn failed(step: &Step, path: String, source: io::Error) -> TargetError {
    TargetError::Kernel { step: step.to_string(), path: Path::new(&path).into(), source }
}

/// Whether a kernel can't do what an attribute of a port says: it has no such attribute, or no TLS.
fn lacks(e: &io::Error, attribute: &str, value: &str) -> bool {
    e.kind() == io::ErrorKind::NotFound || attribute == "addr_tsas" && value != "none" && is(e, Errno::INVAL)
}

/// The first link to a port opens it. EINVAL: there is no such transport. ENODEV: none of its devices has the address.
fn opening_failed(e: &io::Error) -> bool {
    [Errno::ADDRNOTAVAIL, Errno::ADDRINUSE, Errno::AFNOSUPPORT, Errno::ACCESS, Errno::NODEV, Errno::INVAL]
        .iter()
        .any(|errno| is(e, *errno))
}
