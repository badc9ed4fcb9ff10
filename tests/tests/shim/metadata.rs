//! Blocks of snapshots: what backup tools read.

use std::os::unix::fs::FileExt;

use orlop_csi::csi::*;
use orlop_csi::handle::VolumeHandle;
use tonic::{Code, Status};

use crate::rig::*;

const MIB: i64 = 1 << 20;

impl Rig {
    /// Writes into the simulated volume's file, as an initiator would.
    fn write(&self, volume: &str, offset: i64, bytes: &[u8]) {
        let id = VolumeHandle::parse(volume).unwrap().id;
        let image = self.appliances[0].dir.path().join(format!("pool/volumes/{id}.img"));
        let file = std::fs::File::options().write(true).open(image).unwrap();
        file.write_all_at(bytes, offset as u64).unwrap();
    }

    async fn allocated(&mut self, ask: GetMetadataAllocatedRequest) -> Result<Vec<Vec<(i64, i64)>>, Status> {
        let mut stream = self.metadata.get_metadata_allocated(ask).await?.into_inner();
        let mut messages = Vec::new();
        while let Some(m) = stream.message().await? {
            assert_eq!(m.block_metadata_type(), BlockMetadataType::VariableLength);
            assert_eq!(m.volume_capacity_bytes, GIB);
            messages.push(m.block_metadata.iter().map(|b| (b.byte_offset, b.size_bytes)).collect());
        }
        Ok(messages)
    }

    async fn delta(&mut self, ask: GetMetadataDeltaRequest) -> Result<Vec<Vec<(i64, i64)>>, Status> {
        let mut stream = self.metadata.get_metadata_delta(ask).await?.into_inner();
        let mut messages = Vec::new();
        while let Some(m) = stream.message().await? {
            assert_eq!(m.block_metadata_type(), BlockMetadataType::VariableLength);
            assert_eq!(m.volume_capacity_bytes, GIB);
            messages.push(m.block_metadata.iter().map(|b| (b.byte_offset, b.size_bytes)).collect());
        }
        Ok(messages)
    }
}

fn allocated(snapshot: &Snapshot, from: i64, max: i32) -> GetMetadataAllocatedRequest {
    GetMetadataAllocatedRequest {
        snapshot_id: snapshot.snapshot_id.clone(),
        starting_offset: from,
        max_results: max,
        ..Default::default()
    }
}

fn delta(base: &Snapshot, target: &Snapshot, from: i64, max: i32) -> GetMetadataDeltaRequest {
    GetMetadataDeltaRequest {
        base_snapshot_id: base.snapshot_id.clone(),
        target_snapshot_id: target.snapshot_id.clone(),
        starting_offset: from,
        max_results: max,
        ..Default::default()
    }
}

#[tokio::test]
async fn blocks_are_told_in_messages() {
    let mut rig = Rig::new().await;
    let v = rig.volume("v").await;
    let empty = rig.snap(&v, "empty").await.unwrap();
    for n in 0..5 {
        rig.write(&v, 10 * n * MIB, &[1; 65536]);
    }
    let first = rig.snap(&v, "first").await.unwrap();
    rig.write(&v, 20 * MIB, &[2; 4096]);
    rig.write(&v, GIB - 65536, &[2; 65536]);
    let second = rig.snap(&v, "second").await.unwrap();

    let piece = |n: i64| (10 * n * MIB, 65536);
    let all: Vec<_> = (0..5).map(piece).collect();
    // The size is told where there is nothing else to tell.
    assert_eq!(rig.allocated(allocated(&empty, 0, 0)).await.unwrap(), [vec![]]);
    assert_eq!(rig.allocated(allocated(&first, 0, 0)).await.unwrap(), std::slice::from_ref(&all));
    let two = rig.allocated(allocated(&first, 0, 2)).await.unwrap();
    assert_eq!(two, [&all[..2], &all[2..4], &all[4..]]);
    let changed = vec![piece(2), (GIB - 65536, 65536)];
    assert_eq!(rig.delta(delta(&first, &second, 0, 0)).await.unwrap(), std::slice::from_ref(&changed));
    assert_eq!(rig.delta(delta(&empty, &first, 0, 0)).await.unwrap(), [all]);
    // On from where an earlier call has ended.
    let rest = rig.delta(delta(&first, &second, 20 * MIB + 65536, 0)).await.unwrap();
    assert_eq!(rest.concat(), changed[1..]);
    let inside = rig.delta(delta(&first, &second, GIB - 10, 0)).await.unwrap().concat();
    assert_eq!(inside.iter().map(|(at, n)| at + n).collect::<Vec<_>>(), [GIB]);
    assert!(rig.delta(delta(&first, &second, GIB, 0)).await.unwrap().concat().is_empty());
}

#[tokio::test]
async fn what_can_not_be_told_is_refused() {
    let mut rig = Rig::new().await;
    let (v, other) = (rig.volume("v").await, rig.volume("other").await);
    let (first, second) = (rig.snap(&v, "first").await.unwrap(), rig.snap(&v, "second").await.unwrap());
    let foreign = rig.snap(&other, "foreign").await.unwrap();
    let none = |id: &str| Snapshot { snapshot_id: id.into(), ..Default::default() };
    let unknown = none("a/0190c0de-0000-7000-8000-ffffffffffff");

    for (ask, code) in [
        (allocated(&none(""), 0, 0), Code::InvalidArgument),
        (allocated(&none("nonsense"), 0, 0), Code::NotFound),
        (allocated(&unknown, 0, 0), Code::NotFound),
        (allocated(&none("b/0190c0de-0000-7000-8000-ffffffffffff"), 0, 0), Code::Unavailable),
        (allocated(&first, -1, 0), Code::OutOfRange),
        (allocated(&first, GIB + 1, 0), Code::OutOfRange),
        (allocated(&first, 0, -1), Code::InvalidArgument),
    ] {
        refused(rig.allocated(ask).await, code);
    }
    for (ask, code) in [
        (delta(&none(""), &second, 0, 0), Code::InvalidArgument),
        (delta(&first, &none(""), 0, 0), Code::InvalidArgument),
        (delta(&unknown, &second, 0, 0), Code::NotFound),
        (delta(&first, &unknown, 0, 0), Code::NotFound),
        (delta(&second, &first, 0, 0), Code::InvalidArgument),
        (delta(&first, &first, 0, 0), Code::InvalidArgument),
        (delta(&foreign, &second, 0, 0), Code::InvalidArgument),
        (delta(&none("b/0190c0de-0000-7000-8000-ffffffffffff"), &second, 0, 0), Code::InvalidArgument),
        (delta(&first, &second, GIB + 1, 0), Code::OutOfRange),
    ] {
        refused(rig.delta(ask).await, code);
    }
    rig.drop_snapshot(&first.snapshot_id).await.unwrap();
    refused(rig.delta(delta(&first, &second, 0, 0)).await, Code::NotFound);
    assert_eq!(rig.allocated(allocated(&second, 0, 0)).await.unwrap(), [vec![]]);
}
