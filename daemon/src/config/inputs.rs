//! All fragments merged, later ones over earlier ones, key by key. Each value remembers its file and
//! line, so that a wrong one can be told where it stands.
//!
//! Called by [`super::load`]. Checks nothing.

use std::path::{Path, PathBuf};

use super::fragment::{Fragment, Given, NvmetPortal};
use super::line_of;

/// A value and where it came from.
#[derive(Debug, Clone)]
pub struct At<T> {
    /// What was given.
    pub value: T,
    /// In which file.
    pub file: PathBuf,
    /// On which line.
    pub line: usize,
}

/// See the module.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct Inputs {
    pub state_dir: Option<At<String>>,
    pub socket: Option<At<String>>,
    pub socket_group: Option<At<String>>,
    pub listen: Option<At<Vec<String>>>,
    pub token_console: Option<At<String>>,
    pub portals: Option<At<Vec<NvmetPortal>>>,
    pub referrals: Option<At<Vec<String>>>,
    pub io_queues: Option<At<u64>>,
    pub queue_size: Option<At<u64>>,
    pub nqn_prefix: Option<At<String>>,
    pub lio_portals: Option<At<Vec<String>>>,
    pub ctl_iscsi_portals: Option<At<Vec<String>>>,
    pub ctl_nvme_portals: Option<At<Vec<String>>>,
    pub ctl_nvme_access: Option<At<String>>,
    pub ctl_file: Option<At<String>>,
    pub ctl_pidfile: Option<At<String>>,
    pub nfs_listen: Option<At<Vec<String>>>,
    pub nfs_versions: Option<At<Vec<String>>>,
    pub nfs_threads: Option<At<u64>>,
    pub level: Option<At<String>>,
    pub format: Option<At<String>>,
    pub collector: Option<At<String>>,
    pub sample_percent: Option<At<u64>>,
    pub warn_percent: Option<At<u64>>,
    pub stop_percent: Option<At<u64>>,
    pub connections: Option<At<u64>>,
    pub connections_per_peer: Option<At<u64>>,
    pub changes_per_principal: Option<At<u64>>,
    pub requests_per_second: Option<At<u64>>,
    pub request_seconds: Option<At<u64>>,
    pub idle_seconds: Option<At<u64>>,
    pub drain_seconds: Option<At<u64>>,
    pub pool_threads: Option<At<u64>>,
}

impl Inputs {
    /// Takes what a later fragment gives.
    pub fn merge(&mut self, f: Fragment, file: &Path, text: &str) {
        fn take<T>(slot: &mut Option<At<T>>, given: Given<T>, file: &Path, text: &str) {
            if let Some(given) = given {
                let line = line_of(text, given.span().start);
                *slot = Some(At { value: given.into_inner(), file: file.to_path_buf(), line });
            }
        }
        take(&mut self.state_dir, f.state_dir, file, text);
        take(&mut self.socket, f.api.socket, file, text);
        take(&mut self.socket_group, f.api.socket_group, file, text);
        take(&mut self.listen, f.api.listen, file, text);
        take(&mut self.token_console, f.api.token_console, file, text);
        take(&mut self.portals, f.nvmet.portals, file, text);
        take(&mut self.referrals, f.nvmet.referrals, file, text);
        take(&mut self.io_queues, f.nvmet.io_queues, file, text);
        take(&mut self.queue_size, f.nvmet.queue_size, file, text);
        take(&mut self.nqn_prefix, f.nvmet.nqn_prefix, file, text);
        take(&mut self.lio_portals, f.lio.portals, file, text);
        take(&mut self.ctl_iscsi_portals, f.ctl.iscsi_portals, file, text);
        take(&mut self.ctl_nvme_portals, f.ctl.nvme_portals, file, text);
        take(&mut self.ctl_nvme_access, f.ctl.nvme_access, file, text);
        take(&mut self.ctl_file, f.ctl.file, file, text);
        take(&mut self.ctl_pidfile, f.ctl.pidfile, file, text);
        take(&mut self.nfs_listen, f.nfs.listen, file, text);
        take(&mut self.nfs_versions, f.nfs.versions, file, text);
        take(&mut self.nfs_threads, f.nfs.threads, file, text);
        take(&mut self.level, f.log.level, file, text);
        take(&mut self.format, f.log.format, file, text);
        take(&mut self.collector, f.traces.collector, file, text);
        take(&mut self.sample_percent, f.traces.sample_percent, file, text);
        take(&mut self.warn_percent, f.pools.warn_percent, file, text);
        take(&mut self.stop_percent, f.pools.stop_percent, file, text);
        take(&mut self.connections, f.limits.connections, file, text);
        take(&mut self.connections_per_peer, f.limits.connections_per_peer, file, text);
        take(&mut self.changes_per_principal, f.limits.changes_per_principal, file, text);
        take(&mut self.requests_per_second, f.limits.requests_per_second, file, text);
        take(&mut self.request_seconds, f.limits.request_seconds, file, text);
        take(&mut self.idle_seconds, f.limits.idle_seconds, file, text);
        take(&mut self.drain_seconds, f.limits.drain_seconds, file, text);
        take(&mut self.pool_threads, f.limits.pool_threads, file, text);
    }
}
