//! Reading the server. What vanishes while it is read counts as not there: the next round sees.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use orlop_api::VolumeId;

use super::entries;
use super::plan::shown;
use super::state::{Backing, Observed};
use super::{Nfs, failed};
use crate::kernel::Deadline;
use crate::kernel::mount::Mount;
use crate::target::{Desired, Result, Scope};

/// What is mounted at each of the points that matter, the last one of each.
type Mounts<'a> = BTreeMap<&'a Path, &'a Mount>;

impl Nfs {
    pub(super) fn look(&self, scope: Scope, desired: &Desired, deadline: &Deadline) -> Result<Observed> {
        let server = &*self.server;
        let words = |what: &'static str| move |e: io::Error| failed("read", what, e);
        let running = server.threads().map_err(words("/proc/fs/nfsd"))? > 0;
        let written =
            server.settings().map_err(words("nfs.conf"))?.as_deref() == Some(&self.config.settings());
        let as_set = !running || self.config.is_served(&server.versions().map_err(words("/proc/fs/nfsd"))?);

        let mounts = server.mounts().map_err(words("what is mounted"))?;
        let mounts: Mounts<'_> = mounts.iter().map(|m| (m.point.as_path(), m)).collect();
        let of_one = scope.volume();
        let in_scope = |v: &VolumeId| of_one.is_none_or(|only| only == *v);
        let kerberos = desired.iter().any(|(v, export)| in_scope(v) && entries::is_kerberos(export));
        let checks_tickets =
            !kerberos || server.checks_tickets(deadline).map_err(words("rpc-svcgssd.service"))?;
        let mut seen = Observed { running, as_set, written, checks_tickets, ..Observed::default() };
        for (point, mount) in &mounts {
            if let Some(volume) = self.config.volume(point).filter(in_scope) {
                seen.volumes.entry(volume).or_default().bound = Some(mount.device);
            }
        }
        let files = match of_one {
            Some(volume) => {
                let file = server.file(&volume.to_string());
                file.map(|f| f.into_iter().map(|text| (volume.to_string(), text)).collect())
            }
            None => server.files(),
        };
        for (name, text) in files.map_err(words("exports.d"))? {
            if let Some(volume) = ours(&name) {
                seen.volumes.entry(volume).or_default().file = Some(text);
            }
        }
        // The table of a server that does not run says what it served last, and it does not start with that.
        let table = if running { server.table().map_err(words("etab"))? } else { String::new() };
        for (path, client, options) in entries::table(&table) {
            if let Some(volume) = self.config.volume(Path::new(path)).filter(in_scope) {
                let table = &mut seen.volumes.entry(volume).or_default().table;
                table.insert(client.to_owned(), options.to_owned());
            }
        }
        for (volume, export) in desired.iter().filter(|(v, _)| in_scope(v)) {
            let backing = self.backing(&export.backing, &mounts)?;
            seen.backings.insert(*volume, backing);
        }
        Ok(seen)
    }

    fn backing(&self, path: &Path, mounts: &Mounts<'_>) -> Result<Backing> {
        // What is mounted is asked first: a file system that hangs must not hang this.
        if let Some(mount) = mounts.get(path) {
            return Ok(Backing::Mounted(mount.device));
        }
        self.server.look_at(path).map_err(|e| failed("read", shown(path), e))
    }

    /// The volumes that there is something of.
    pub(super) fn ours(&self, deadline: &Deadline) -> Result<BTreeSet<VolumeId>> {
        Ok(self.look(Scope::All, &Desired::new(), deadline)?.volumes.into_keys().collect())
    }
}

/// The volume whose file has that name. Only our own spelling.
fn ours(name: &str) -> Option<VolumeId> {
    name.parse().ok().filter(|v: &VolumeId| v.to_string() == name)
}
