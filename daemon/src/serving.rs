//! Which target serves which protocol, from the settings.
//!
//! Called by `main`, once. One target a protocol: the settings have no two of them for one.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use orlop_api::Protocol;

use crate::config::Settings;
use crate::engine::{Offer, Targets};
use crate::target::ctl::{Ctl, CtlConfig, CtlFile, Kind};
use crate::target::keys::HostKeys;
use crate::target::lio::{Lio, LioConfig};
use crate::target::nfs::{Nfs, NfsConfig};
use crate::target::nvmet::{Nvmet, NvmetConfig};
use crate::target::{PortalConfig, Target, sim};

/// The targets that the settings ask for: the kernel's, or such over a simulated kernel, which knows no CTL.
pub fn targets(simulated: bool, settings: &Settings, keys: &HostKeys) -> Targets {
    let mut targets = linux(simulated, settings, keys);
    if !simulated {
        take_over(&mut targets, settings, |config| CtlFile::system(config).with_keys(keys.clone()));
    }
    targets
}

/// Whether CTL serves anything.
pub fn by_ctl(settings: &Settings) -> bool {
    !settings.ctl.iscsi_portals.is_empty() || !settings.ctl.nvme_portals.is_empty()
}

fn portals(list: &[SocketAddr]) -> Vec<PortalConfig> {
    list.iter().map(|p| PortalConfig { address: p.ip(), port: p.port() }).collect()
}

fn linux(simulated: bool, settings: &Settings, keys: &HostKeys) -> Targets {
    let prefix = || settings.nvmet.nqn_prefix.clone();
    let nvmet = NvmetConfig {
        prefix: prefix(),
        portals: settings.nvmet.portals.clone(),
        referrals: settings.nvmet.referrals.clone(),
        io_queues: settings.nvmet.io_queues,
        queue_size: settings.nvmet.queue_size,
    };
    let lio = LioConfig { prefix: prefix(), portals: portals(&settings.lio.portals) };
    let any = settings.nfs.listen.iter().all(IpAddr::is_unspecified) && settings.nfs.listen.len() == 2;
    let nfs = NfsConfig {
        addresses: if any { Vec::new() } else { settings.nfs.listen.clone() },
        versions: settings.nfs.versions.iter().copied().collect(),
        threads: settings.nfs.threads,
        ..NfsConfig::default()
    };
    let (with_lio, with_nfs) = (!settings.lio.portals.is_empty(), !settings.nfs.listen.is_empty());
    let mut targets = Targets::new();
    let mut serve = |protocol, offered: bool, target: Arc<dyn Target>| {
        targets.insert(protocol, Offer { target, offered });
    };
    if simulated {
        serve(Protocol::Nvme, true, Arc::new(sim::target(nvmet, keys.clone(), Default::default()).0));
        serve(Protocol::Iscsi, with_lio, Arc::new(sim::lio_target(lio, keys.clone(), Default::default()).0));
        serve(Protocol::Nfs, with_nfs, Arc::new(sim::nfs_target(nfs).0));
    } else {
        serve(Protocol::Nvme, true, Arc::new(Nvmet::kernel(nvmet).with_keys(keys.clone())));
        serve(Protocol::Iscsi, with_lio, Arc::new(Lio::kernel(lio).with_keys(keys.clone())));
        serve(Protocol::Nfs, with_nfs, Arc::new(Nfs::kernel(nfs)));
    }
    targets
}

/// Puts CTL in the place of what would serve its protocols.
pub(crate) fn take_over(targets: &mut Targets, settings: &Settings, open: impl FnOnce(CtlConfig) -> CtlFile) {
    if !by_ctl(settings) {
        return;
    }
    let ctl = &settings.ctl;
    let config = CtlConfig {
        prefix: settings.nvmet.nqn_prefix.clone(),
        file: ctl.file.clone(),
        pidfile: ctl.pidfile.clone(),
        iscsi: portals(&ctl.iscsi_portals),
        nvme: portals(&ctl.nvme_portals),
        nvme_access: ctl.nvme_access,
    };
    let served = [
        (Protocol::Iscsi, Kind::Iscsi, !config.iscsi.is_empty()),
        (Protocol::Nvme, Kind::Nvme, !config.nvme.is_empty()),
    ];
    // One file, whichever protocols are in it.
    let file = Arc::new(open(config));
    for (protocol, kind, _) in served.into_iter().filter(|(_, _, by_ctl)| *by_ctl) {
        let target = Arc::new(Ctl::of(file.clone(), kind));
        targets.insert(protocol, Offer { target, offered: true });
    }
}
