//! What a backup does, again and again: a snapshot, a volume of it, a node that reads it, and nothing left.

use std::time::{Duration, Instant};

use orlop_api::client::{SnapshotFilter, VolumeFilter};
use orlop_csi::csi::volume_content_source::{SnapshotSource, Type};
use orlop_csi::csi::*;

use crate::rig::*;

const TIMES: usize = 500;

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_backups_leave_nothing_behind() {
    let mut rig = Rig::new().await;
    let source = rig.volume("data").await;
    rig.publish(&source, &node(1)).await.unwrap();
    let mut fifths = Vec::new();
    let mut begin = Instant::now();
    for n in 0..TIMES {
        let snapshot = rig.snap(&source, &format!("backup-{n}")).await.unwrap();
        let content = Type::Snapshot(SnapshotSource { snapshot_id: snapshot.snapshot_id.clone() });
        let ask = CreateVolumeRequest {
            volume_content_source: Some(VolumeContentSource { r#type: Some(content) }),
            ..claim(&format!("backup-{n}"))
        };
        let copy = rig.create(ask).await.unwrap().volume_id;
        rig.publish(&copy, &node(2)).await.unwrap();
        rig.unpublish(&copy, &node(2)).await.unwrap();
        rig.delete(&copy).await.unwrap();
        rig.drop_snapshot(&snapshot.snapshot_id).await.unwrap();
        if (n + 1) % (TIMES / 5) == 0 {
            fifths.push(begin.elapsed());
            begin = Instant::now();
        }
    }
    println!("     {TIMES} backups, by fifths: {fifths:.1?}");
    let api = rig.api();
    let volumes = api.volumes(&VolumeFilter::default()).await.unwrap().items;
    assert_eq!(volumes.len(), 1, "{volumes:?}");
    let snapshots = api.snapshots(&SnapshotFilter::default()).await.unwrap().items;
    assert!(snapshots.is_empty(), "{snapshots:?}");
    let reader = api.host(&"worker-2".parse().unwrap()).await.unwrap();
    assert!(reader.volumes.is_empty(), "{reader:?}");
    // A disk that was slow for a moment is told of for a while.
    let until = Instant::now() + Duration::from_secs(120);
    loop {
        let alarms = api.alarms().await.unwrap();
        if alarms.is_empty() {
            break;
        }
        assert!(Instant::now() < until, "{alarms:?}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
