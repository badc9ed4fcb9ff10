//! Exports of others.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use orlop_api::ForeignKind;

use super::{Nfs, entries, failed};
use crate::kernel::Deadline;
use crate::target::Result;
use crate::target::foreign::Others;

impl Nfs {
    /// What a server that does not run has in its table was served once, and is not.
    pub(super) fn others(&self, deadline: &Deadline) -> Result<Others> {
        let words = |what: &'static str| move |e: io::Error| failed("read", what, e);
        if self.server.threads().map_err(words("/proc/fs/nfsd"))? == 0 {
            return Ok(Others::default());
        }
        let table = self.server.table().map_err(words("etab"))?;
        let foreign = entries::table(&table).map(|(path, _, _)| path);
        let foreign = foreign.filter(|path| self.config.volume(Path::new(path)).is_none());
        let names: BTreeSet<_> = foreign.map(|path| (ForeignKind::Export, path.to_string())).collect();
        if names.is_empty() {
            return Ok(Others::default());
        }
        let mounts = self.server.mounts().map_err(words("what is mounted"))?;
        Others::list(names, deadline, |_, path| {
            // What is mounted there, not what it is in: a directory may be one of many.
            let mount = mounts.iter().rfind(|m| m.point == Path::new(path));
            Ok(mount.map(|m| m.source.to_string_lossy().into_owned()).into_iter().collect())
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;
    use crate::target::Target as _;
    use crate::target::nfs::NfsServer;
    use crate::target::sim;

    #[test]
    fn exports_of_others_are_listed_and_left() {
        let (target, server) = sim::nfs_target(Default::default());
        let soon = Deadline::after(Duration::from_secs(20));
        server.put_entry("/srv/theirs", "10.0.0.0/8", "rw,sync");
        server.put_entry("/srv/theirs", "192.0.2.1", "ro,sync");
        // Nothing is served by a server that does not run.
        assert_eq!(target.foreign(&soon).unwrap(), Others::default());
        NfsServer::start(&*server, &soon).unwrap();
        server.mount("/srv/theirs");
        server.put_entry("/srv/theirs", "10.0.0.0/8", "rw,sync");
        server.put_entry("/srv/theirs", "192.0.2.1", "ro,sync");
        server.put_entry("/volumes/0190c0de-0000-7000-8000-000000000000", "192.0.2.1", "ro,sync");
        let others = target.foreign(&soon).unwrap();
        let found: Vec<_> = others.listed.iter().map(|f| (f.kind, &*f.name, f.devices.len())).collect();
        assert_eq!(found, [(ForeignKind::Export, "/srv/theirs", 1)]);
    }
}
