//! The targets as they are shown.

use orlop_api::{Protocol, TargetKind, TargetState, VolumeRef};

use super::daemon::Daemon;
use super::raw;

#[tokio::test]
async fn targets_are_listed_with_what_they_serve() {
    let mut d = Daemon::start();
    let pool = d.pool("tank").await;
    let volume = d.volume(&pool, "data").await;
    let client = d.client();
    let all = client.targets().await.unwrap();
    let found: Vec<_> = all.iter().map(|t| (t.protocol, t.kind, t.state, t.volumes)).collect();
    let wanted = [
        (Protocol::Nvme, TargetKind::Nvmet, TargetState::Available, 0),
        (Protocol::Iscsi, TargetKind::Lio, TargetState::Available, 0),
        (Protocol::Nfs, TargetKind::Knfsd, TargetState::Available, 0),
    ];
    assert_eq!(found, wanted);
    let portals: Vec<_> =
        all.iter().flat_map(|t| &t.portals).map(|p| (&*p.at.address, p.at.port, p.down.is_some())).collect();
    let wanted =
        [("0.0.0.0", 4420, false), ("0.0.0.0", 3260, false), ("0.0.0.0", 2049, false), ("::", 2049, false)];
    assert_eq!(portals, wanted);
    assert!(all.iter().all(|t| t.foreign.is_empty() && t.more_foreign == 0 && t.reason.is_none()));

    d.host("one").await;
    client.attach(&VolumeRef::Id(volume.id), &"one".parse().unwrap()).await.unwrap();
    let volumes = |all: &[orlop_api::Target]| all.iter().map(|t| t.volumes).collect::<Vec<_>>();
    assert_eq!(volumes(&client.targets().await.unwrap()), [1, 0, 0]);

    // Takes no parameters, and is for those alone who may ask.
    let got = raw::get(&d.socket(), "/v1/targets?limit=1").unwrap();
    assert_eq!(got.status, 400);

    d.stop();
    d.configure("[lio]\nportals = []\n");
    d.again();
    let all = d.client().targets().await.unwrap();
    assert_eq!((all[1].state, all[1].portals.len()), (TargetState::LeftOut, 0));
    assert!(all[1].reason.as_ref().is_some_and(|r| r.contains("configuration")));
}
