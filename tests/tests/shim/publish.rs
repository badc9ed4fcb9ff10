//! Nodes that may use a volume, and those that may not any more.

use orlop_csi::csi::volume_capability::access_mode::Mode;
use orlop_csi::csi::*;
use tonic::Code;

use crate::rig::*;

#[tokio::test]
async fn a_node_gets_all_that_it_needs_and_is_cut_off_again() {
    let mut rig = Rig::new().await;
    let id = rig.volume("v").await;
    let attached = rig.publish(&id, &node(1)).await.unwrap();
    let nvme = attached.nvme().unwrap();
    assert_eq!(
        nvme.host_nqn.as_str(),
        "nqn.2014-08.org.nvmexpress:uuid:0190c0de-0000-7000-8000-000000000001"
    );
    assert_eq!((attached.volume.to_string(), attached.size.0), (id[2..].to_string(), 1 << 30));
    assert_eq!(rig.publish(&id, &node(1)).await.unwrap(), attached);
    let host = rig.api().host(&"worker-1".parse().unwrap()).await.unwrap();
    assert!(host.iqn.is_some() && host.volumes.len() == 1, "{host:?}");

    // It moves: the first must go before the second comes.
    let message = refused(rig.publish(&id, &node(2)).await, Code::FailedPrecondition);
    assert!(message.contains("worker-1"), "{message}");
    refused(rig.delete(&id).await, Code::FailedPrecondition);
    rig.unpublish(&id, &node(1)).await.unwrap();
    rig.unpublish(&id, &node(1)).await.unwrap();
    rig.publish(&id, &node(2)).await.unwrap();
    // From everybody.
    rig.unpublish(&id, "").await.unwrap();
    rig.delete(&id).await.unwrap();
    rig.unpublish(&id, &node(2)).await.unwrap();
    rig.unpublish(&id, "").await.unwrap();
}

#[tokio::test]
async fn several_nodes_share_what_may_be_shared() {
    let mut rig = Rig::new().await;
    let ask = CreateVolumeRequest {
        volume_capabilities: vec![block(Mode::MultiNodeMultiWriter)],
        ..claim("shared")
    };
    let id = rig.create(ask).await.unwrap().volume_id;
    for n in 1..4 {
        let ask = ControllerPublishVolumeRequest {
            volume_capability: Some(block(Mode::MultiNodeMultiWriter)),
            ..publication(&id, &node(n))
        };
        assert!(!rig.publish_as(ask).await.unwrap().read_only);
    }
    // One of them may only read.
    let reads = ControllerPublishVolumeRequest {
        volume_capability: Some(block(Mode::MultiNodeMultiWriter)),
        readonly: true,
        ..publication(&id, &node(4))
    };
    let attached = rig.publish_as(reads.clone()).await.unwrap();
    assert!(attached.read_only && attached.nvme().unwrap().nqn.as_str().ends_with(":ro"));
    let writes = ControllerPublishVolumeRequest { readonly: false, ..reads };
    refused(rig.publish_as(writes).await, Code::AlreadyExists);
}

#[tokio::test]
async fn what_says_too_little_or_is_not_there_is_refused() {
    let mut rig = Rig::new().await;
    let id = rig.volume("v").await;
    let good = publication(&id, &node(1));
    let elsewhere = "b/0190c0de-0000-7000-8000-000000000001";
    for (ask, code) in [
        (ControllerPublishVolumeRequest { volume_id: String::new(), ..good.clone() }, Code::InvalidArgument),
        (ControllerPublishVolumeRequest { node_id: String::new(), ..good.clone() }, Code::InvalidArgument),
        (ControllerPublishVolumeRequest { volume_capability: None, ..good.clone() }, Code::InvalidArgument),
        (ControllerPublishVolumeRequest { volume_id: UNKNOWN.into(), ..good.clone() }, Code::NotFound),
        (ControllerPublishVolumeRequest { volume_id: "x".into(), ..good.clone() }, Code::NotFound),
        (ControllerPublishVolumeRequest { volume_id: elsewhere.into(), ..good.clone() }, Code::Unavailable),
        (
            ControllerPublishVolumeRequest { node_id: "worker-1 nothing".into(), ..good.clone() },
            Code::NotFound,
        ),
        // Known by nothing that NVMe knows.
        (
            ControllerPublishVolumeRequest { node_id: "worker-1 10.0.0.1".into(), ..good.clone() },
            Code::FailedPrecondition,
        ),
        (
            ControllerPublishVolumeRequest {
                volume_capability: Some(mount("ext4", Mode::MultiNodeMultiWriter)),
                ..good.clone()
            },
            Code::InvalidArgument,
        ),
    ] {
        let text = format!("{ask:?}");
        let status = rig.publish_as(ask).await.expect_err(&text);
        assert_eq!(status.code(), code, "{text}: {}", status.message());
    }
    assert_eq!(rig.api().volume(&id[2..].parse().unwrap()).await.unwrap().hosts, []);
    refused(rig.unpublish("", &node(1)).await, Code::InvalidArgument);
    refused(rig.unpublish(elsewhere, &node(1)).await, Code::Unavailable);
    rig.unpublish("x", &node(1)).await.unwrap();
    rig.unpublish(UNKNOWN, &node(1)).await.unwrap();
    rig.unpublish(&id, "nobody").await.unwrap();
}

#[tokio::test]
async fn a_node_that_must_prove_a_secret_has_one_first() {
    let mut rig = Rig::new().await;
    let ask = CreateVolumeRequest {
        parameters: map(&[("pool", POOL), ("authentication", "required")]),
        ..claim("v")
    };
    let made = rig.create(ask).await.unwrap();
    let publish = ControllerPublishVolumeRequest {
        volume_context: made.volume_context.clone(),
        ..publication(&made.volume_id, &node(1))
    };
    let message = refused(rig.publish_as(publish.clone()).await, Code::FailedPrecondition);
    assert!(message.contains("worker-1") && message.contains("secret"), "{message}");
    let ask: orlop_api::AuthenticationPut = serde_json::from_value(
        serde_json::json!({"key": "DHHC-1:00:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:"}),
    )
    .unwrap_or_else(|e| panic!("{e}"));
    rig.api().authenticate_host(&"worker-1".parse().unwrap(), &ask).await.unwrap();
    assert!(rig.publish_as(publish).await.unwrap().nvme().unwrap().authentication.is_some());
}

#[tokio::test]
async fn a_node_that_somebody_deleted_is_made_known_again() {
    let mut rig = Rig::new().await;
    let id = rig.volume("v").await;
    rig.publish(&id, &node(1)).await.unwrap();
    rig.unpublish(&id, &node(1)).await.unwrap();
    rig.api().delete_host(&"worker-1".parse().unwrap()).await.unwrap();
    rig.publish(&id, &node(1)).await.unwrap();
}
