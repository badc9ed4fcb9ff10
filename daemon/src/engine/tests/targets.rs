//! The targets as they are shown.

use rustix::io::Errno;

use super::*;
use crate::kernel::configfs::ConfigFs;
use crate::target::ConfigTree as _;
use crate::target::PortalConfig;
use crate::target::lio::{Lio, LioConfig, ReservationsOnDisk};
use crate::target::nvmet::Nvmet;
use crate::target::nvmet::tls::SimKeyring;
use crate::target::sim::lio::{SimLio, SimLioKernel, SimReservations};

#[tokio::test]
async fn what_is_down_and_what_is_foreign_is_shown() {
    let tree = Arc::new(SimLio::new(SimLioKernel::default()));
    let shared = tree.clone();
    let rig = Rig::with(move |targets, keys| {
        let portal = |a: &str| PortalConfig { address: a.parse().unwrap(), port: 3260 };
        let portals = vec![portal("10.0.0.1"), portal("fd00::1")];
        let files = Arc::new(SimReservations(shared.clone()));
        let lio = Lio::over(LioConfig { portals, ..LioConfig::default() }, shared.clone(), files);
        let target = Arc::new(lio.with_keys(keys.clone()));
        targets.insert(Protocol::Iscsi, Offer { target, offered: true });
    })
    .await;
    for dir in ["core/iblock_0", "core/iblock_0/theirs"] {
        tree.make_dir(dir).unwrap();
    }
    tree.write("core/iblock_0/theirs/control", "udev_path=/dev/theirs").unwrap();
    tree.refuse_portal("[fd00::1]:3260", Some(Errno::ADDRINUSE));
    let put = HostPut { iqn: Some("iqn.1993-08.org.debian:01:a".parse().unwrap()), ..HostPut::default() };
    rig.ok(Action::PutHost("one".parse().unwrap(), put)).await;
    let ask = VolumeCreate { protocol: Some(Protocol::Iscsi), ..ask("disk") };
    let Outcome::Volume { volume, .. } = rig.ok(Action::CreateVolume(ask)).await else { panic!() };
    rig.ok(attach(volume.id, "one")).await;

    let show = || async {
        let all = rig.engine().targets(LONG).await;
        all.into_iter().map(|t| (t.protocol, t)).collect::<std::collections::BTreeMap<_, _>>()
    };
    let all = show().await;
    let iscsi = &all[&Protocol::Iscsi];
    assert_eq!((iscsi.kind, iscsi.state, iscsi.volumes), (TargetKind::Lio, TargetState::Available, 1));
    let down: Vec<_> = iscsi.portals.iter().map(|p| (&*p.at.address, p.at.port, p.down.is_some())).collect();
    assert_eq!(down, [("10.0.0.1", 3260, false), ("fd00::1", 3260, true)]);
    let foreign: Vec<_> = iscsi.foreign.iter().map(|f| (f.kind, &*f.name, f.devices.join(" "))).collect();
    assert_eq!(foreign, [(ForeignKind::Backstore, "iblock_0/theirs", "/dev/theirs".to_string())]);

    // One that can't be read hides no other, and a portal that is back is shown so.
    *rig.target.fail.lock() = true;
    tree.refuse_portal("[fd00::1]:3260", None);
    rig.engine().core.look_for_drift_once().await;
    let all = show().await;
    let nvme = &all[&Protocol::Nvme];
    assert_eq!(nvme.state, TargetState::Unreadable);
    assert!(nvme.reason.as_ref().is_some_and(|r| r.contains("as the test asked")), "{nvme:?}");
    assert!(all[&Protocol::Iscsi].portals.iter().all(|p| p.down.is_none()));
    assert_eq!(all.len(), 3);
}

#[tokio::test]
async fn what_the_kernel_lacks_and_what_is_left_out_is_said() {
    let nothing = tempfile::tempdir().unwrap();
    let tree = Arc::new(ConfigFs::at(nothing.path()));
    let rig = Rig::with(move |targets, _| {
        let nvmet = Nvmet::over(Default::default(), tree.clone(), None, Arc::new(SimKeyring::default()));
        targets.insert(Protocol::Nvme, Offer { target: Arc::new(nvmet), offered: true });
        let lio = Lio::over(LioConfig::default(), tree.clone(), Arc::new(ReservationsOnDisk));
        targets.insert(Protocol::Iscsi, Offer { target: Arc::new(lio), offered: false });
    })
    .await;
    let all = rig.engine().targets(LONG).await;
    let states: Vec<_> = all.iter().map(|t| (t.protocol, t.state)).collect();
    let wanted = [
        (Protocol::Nvme, TargetState::Absent),
        (Protocol::Iscsi, TargetState::LeftOut),
        (Protocol::Nfs, TargetState::Available),
    ];
    assert_eq!(states, wanted);
    assert!(all[0].reason.as_ref().is_some_and(|r| r.contains("nvmet: is the module loaded?")), "{all:?}");
}
