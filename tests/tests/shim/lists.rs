//! Lists of volumes, and how much room there is.

use orlop_csi::csi::volume_capability::access_mode::Mode;
use orlop_csi::csi::*;
use tonic::Code;

use crate::rig::*;

fn list(max_entries: i32, token: &str) -> ListVolumesRequest {
    ListVolumesRequest { max_entries, starting_token: token.into() }
}

#[tokio::test]
async fn volumes_are_listed_a_page_at_a_time_over_all_appliances() {
    let mut rig = Rig::with(&[("a", Some("1")), ("b", Some("2"))]).await;
    let mut made = std::collections::BTreeSet::new();
    for n in 0..7 {
        let on = if n % 2 == 0 { "a" } else { "b" };
        let parameters = map(&[("pool", POOL), ("appliance", on)]);
        let ask = CreateVolumeRequest { parameters, ..claim(&format!("v{n}")) };
        made.insert(rig.create(ask).await.unwrap().volume_id);
    }
    let first = made.iter().next().unwrap().clone();
    rig.publish(&first, &node(1)).await.unwrap();
    for size in [1, 2, 3, 7, 100, 0] {
        let (mut token, mut found) = (String::new(), Vec::new());
        loop {
            let page = rig.controller.list_volumes(list(size, &token)).await.unwrap().into_inner();
            assert!(size == 0 || page.entries.len() <= size as usize);
            found.extend(page.entries);
            token = page.next_token;
            if token.is_empty() {
                break;
            }
        }
        let ids: std::collections::BTreeSet<_> =
            found.iter().map(|e| e.volume.as_ref().unwrap().volume_id.clone()).collect();
        assert_eq!((ids.len(), found.len()), (7, 7), "pages of {size}");
        assert_eq!(ids, made);
        for entry in found {
            let (volume, status) = (entry.volume.unwrap(), entry.status.unwrap());
            let nodes = if volume.volume_id == first { vec![node(1)] } else { Vec::new() };
            assert_eq!(status.published_node_ids, nodes);
            assert_eq!(volume.accessible_topology.len(), 1);
        }
    }
    refused(rig.controller.list_volumes(list(-1, "")).await, Code::InvalidArgument);
    for token in ["x", "c:", "Ä:1"] {
        refused(rig.controller.list_volumes(list(1, token)).await, Code::Aborted);
    }
    // What is left out of a list is taken for gone.
    rig.appliances[1].kill();
    refused(rig.controller.list_volumes(list(0, "")).await, Code::Unavailable);
}

#[tokio::test]
async fn room_is_told_by_pool_and_place() {
    let mut rig = Rig::with(&[("a", Some("1")), ("b", Some("2"))]).await;
    let ask = |parameters: &[(&str, &str)], zone: Option<&str>| GetCapacityRequest {
        parameters: map(parameters),
        accessible_topology: zone.map(|z| Topology { segments: map(&[("zone", z)]) }),
        ..Default::default()
    };
    let both = rig.controller.get_capacity(ask(&[("pool", POOL)], None)).await.unwrap().into_inner();
    let one = rig.controller.get_capacity(ask(&[("pool", POOL)], Some("1"))).await.unwrap().into_inner();
    assert!(one.available_capacity > 0 && both.available_capacity > one.available_capacity);
    assert!(one.maximum_volume_size.unwrap() > 0 && one.minimum_volume_size.unwrap() > 0);
    for nothing in [ask(&[("pool", POOL)], Some("3")), ask(&[("pool", "nowhere")], None)] {
        let answer = rig.controller.get_capacity(nothing).await.unwrap().into_inner();
        assert_eq!(answer.available_capacity, 0);
    }
    let unfit = GetCapacityRequest {
        volume_capabilities: vec![mount("ext4", Mode::MultiNodeMultiWriter)],
        ..ask(&[("pool", POOL)], None)
    };
    assert_eq!(rig.controller.get_capacity(unfit).await.unwrap().into_inner().available_capacity, 0);
    refused(rig.controller.get_capacity(ask(&[], None)).await, Code::InvalidArgument);
    refused(rig.controller.get_capacity(ask(&[("colour", "x")], None)).await, Code::InvalidArgument);
    // One that is away has no room, and does not stop the other.
    rig.appliances[1].kill();
    let left = rig.controller.get_capacity(ask(&[("pool", POOL)], None)).await.unwrap().into_inner();
    assert!(left.available_capacity > 0 && left.available_capacity < both.available_capacity);
}
