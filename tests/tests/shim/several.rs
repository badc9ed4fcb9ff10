//! Several appliances behind one driver, some of which are away.

use std::time::Duration;

use orlop_api::{TokenPut, Verb};
use orlop_csi::config::{ApplianceConfig, Config};
use orlop_csi::csi::*;
use orlop_tests::csi::Driver;
use tonic::{Code, Request};

use crate::rig::*;

fn within(zones: &[&str], preferred: &[&str]) -> Option<TopologyRequirement> {
    let all = |zones: &[&str]| zones.iter().map(|z| Topology { segments: map(&[("zone", z)]) }).collect();
    Some(TopologyRequirement { requisite: all(zones), preferred: all(preferred) })
}

#[tokio::test]
async fn a_volume_is_where_its_nodes_are() {
    let mut rig = Rig::with(&[("a", Some("1")), ("b", Some("2"))]).await;
    for (n, (zones, preferred, on)) in [
        (&["1"][..], &[][..], "a"),
        (&["2"], &[], "b"),
        (&["1", "2"], &["2"], "b"),
        (&["1", "2"], &["1", "2"], "a"),
    ]
    .into_iter()
    .enumerate()
    {
        let ask = CreateVolumeRequest {
            accessibility_requirements: within(zones, preferred),
            ..claim(&format!("v{n}"))
        };
        let made = rig.create(ask.clone()).await.unwrap();
        assert_eq!(&made.volume_id[..1], on, "{zones:?} {preferred:?}");
        let zone = if on == "a" { "1" } else { "2" };
        assert_eq!(made.accessible_topology[0].segments, map(&[("zone", zone)]));
        assert_eq!(rig.create(ask).await.unwrap(), made);
    }
    let nowhere = CreateVolumeRequest { accessibility_requirements: within(&["3"], &[]), ..claim("nowhere") };
    refused(rig.create(nowhere).await, Code::ResourceExhausted);
    // It is found again wherever it is, also if another place would be preferred by now.
    let first = CreateVolumeRequest { accessibility_requirements: within(&["1", "2"], &["1"]), ..claim("w") };
    let made = rig.create(first).await.unwrap();
    let then = CreateVolumeRequest { accessibility_requirements: within(&["1", "2"], &["2"]), ..claim("w") };
    assert_eq!(rig.create(then).await.unwrap().volume_id, made.volume_id);
    // What is made of a snapshot is where that is, or nowhere.
    let s = rig.snap(&made.volume_id, "s").await.unwrap().snapshot_id;
    let of = |name: &str, zones: &[&str]| {
        let source = volume_content_source::SnapshotSource { snapshot_id: s.clone() };
        CreateVolumeRequest {
            accessibility_requirements: within(zones, &[]),
            volume_content_source: Some(VolumeContentSource {
                r#type: Some(volume_content_source::Type::Snapshot(source)),
            }),
            ..claim(name)
        }
    };
    assert!(rig.create(of("r", &["1", "2"])).await.unwrap().volume_id.starts_with("a/"));
    refused(rig.create(of("q", &["2"])).await, Code::ResourceExhausted);
    let plugin = rig.identity.get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await.unwrap();
    assert_eq!(plugin.into_inner().capabilities.len(), 5, "with topology");
}

#[tokio::test]
async fn one_that_is_away_stops_only_what_is_on_it() {
    let mut rig = Rig::with(&[("a", None), ("b", None)]).await;
    let on = |name: &str, appliance: &str| CreateVolumeRequest {
        parameters: map(&[("pool", POOL), ("appliance", appliance)]),
        ..claim(name)
    };
    let here = rig.create(on("here", "a")).await.unwrap().volume_id;
    let away = rig.create(on("away", "b")).await.unwrap().volume_id;
    rig.appliances[1].kill();
    let message = refused(rig.delete(&away).await, Code::Unavailable);
    assert!(message.contains("appliance b"), "{message}");
    refused(rig.publish(&away, &node(1)).await, Code::Unavailable);
    rig.publish(&here, &node(1)).await.unwrap();
    assert!(rig.create(claim("new")).await.unwrap().volume_id.starts_with("a/"));
    // One that was asked for there, and of which nobody knows whether it was made, is made there and nowhere else.
    refused(rig.create(on("unsure", "b")).await, Code::Unavailable);
    refused(rig.create(claim("unsure")).await, Code::Unavailable);
    rig.appliances[1].again().await;
    assert!(rig.create(claim("unsure")).await.unwrap().volume_id.starts_with("b/"));
    rig.delete(&away).await.unwrap();
}

#[tokio::test]
async fn a_call_ends_when_its_caller_gives_up() {
    let mut rig = Rig::new().await;
    let id = rig.volume("v").await;
    rig.appliances[0].kill();
    let mut ask = Request::new(DeleteVolumeRequest { volume_id: id, ..Default::default() });
    ask.set_timeout(Duration::from_millis(700));
    let before = std::time::Instant::now();
    let status = rig.controller.delete_volume(ask).await.unwrap_err();
    assert!(
        matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled),
        "{status}"
    );
    assert!(before.elapsed() < Duration::from_secs(2), "{:?}", before.elapsed());
}

#[tokio::test]
async fn two_calls_about_one_volume_are_one_after_the_other() {
    let rig = Rig::new().await;
    let calls = (0..16).map(|_| {
        let mut controller = rig.controller.clone();
        async move { controller.create_volume(claim("same")).await }
    });
    let answers = futures_util::future::join_all(calls).await;
    let mut ids = std::collections::BTreeSet::new();
    for answer in answers {
        match answer {
            Ok(made) => drop(ids.insert(made.into_inner().volume.unwrap().volume_id)),
            Err(status) => assert_eq!(status.code(), Code::Aborted, "{status}"),
        }
    }
    assert_eq!(ids.len(), 1);
    assert_eq!(rig.api().all_volumes(Default::default()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn another_token_counts_without_a_restart() {
    let mut rig = Rig::new().await;
    let token = rig.appliances[0].token();
    let good = std::fs::read(&token).unwrap();
    std::fs::write(&token, "no-such-token-at-all").unwrap();
    // A credential that is not taken is no fault of the call.
    refused(rig.create(claim("v")).await, Code::Unavailable);
    std::fs::write(&token, good).unwrap();
    rig.create(claim("v")).await.unwrap();
}

#[tokio::test]
async fn a_volume_goes_where_it_can_be_made_and_where_most_room_is() {
    // Two file systems, so that what is free in them differs. Which of them has more is the machine's affair, so both orders of
    // names are tried: it must not be the first.
    for swapped in [false, true] {
        let mut appliances = Vec::new();
        for parent in [std::env::temp_dir(), "/dev/shm".into()] {
            appliances.push(Appliance::start_in(&parent).await);
        }
        if swapped {
            appliances.reverse();
        }
        let mut rig = Rig::of(appliances, &[("a", Some("1")), ("b", Some("2"))]).await;
        let mut pools = Vec::new();
        for appliance in &rig.appliances {
            pools.push(appliance.api().pool(&POOL.parse().unwrap()).await.unwrap());
        }
        let [room, thin] = [
            [pools[0].available.bytes(), pools[1].available.bytes()],
            [pools[0].largest_thin.bytes(), pools[1].largest_thin.bytes()],
        ];
        let two = 2 * GIB.unsigned_abs();
        if room[0].abs_diff(room[1]) < two || thin[0].abs_diff(thin[1]) < two {
            eprintln!("not tested: the file systems of this machine are too much alike: {room:?}, {thin:?}");
            return;
        }
        let larger = if room[0] > room[1] { "a/" } else { "b/" };
        for n in 0..3 {
            let id = rig.volume(&format!("v{n}")).await;
            assert!(id.starts_with(larger), "{id} where {larger} has most: {room:?}");
        }
        // Where it is preferred, if it can be made there.
        let (small, large) = if thin[0] < thin[1] { ("1", "b/") } else { ("2", "a/") };
        let prefers_small = |name: &str, bytes: u64| CreateVolumeRequest {
            capacity_range: sized(bytes.try_into().unwrap(), 0),
            accessibility_requirements: within(&["1", "2"], &[small]),
            ..claim(name)
        };
        let id = rig.create(prefers_small("fits", GIB.unsigned_abs())).await.unwrap().volume_id;
        assert!(!id.starts_with(large), "{id}");
        let too_large = thin[0].min(thin[1]) + GIB.unsigned_abs();
        let id = rig.create(prefers_small("is-too-large", too_large)).await.unwrap().volume_id;
        assert!(id.starts_with(large), "{id}, with {too_large} of {thin:?}");
    }
}

#[tokio::test]
async fn a_certificate_takes_the_place_of_a_token() {
    let rig = Rig::new().await;
    let appliance = &rig.appliances[0];
    let pair = rcgen::KeyPair::generate().unwrap();
    let made = rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&pair).unwrap();
    let (cert, key) = (appliance.dir.path().join("csi.crt"), appliance.dir.path().join("csi.key"));
    std::fs::write(&cert, made.pem()).unwrap();
    std::fs::write(&key, pair.serialize_pem()).unwrap();
    let config = ApplianceConfig {
        token_file: None,
        certificate_file: Some(cert.clone()),
        key_file: Some(key.clone()),
        ..appliance.config("a", None)
    };
    let mut driver = Driver::start(Config { appliances: vec![config] }).await.unwrap();
    // A credential that is not taken is no fault of the call.
    refused(driver.controller.create_volume(claim("v")).await, Code::Unavailable);
    let scope = TokenPut {
        tenant: "kubernetes".parse().unwrap(),
        pools: Vec::new(),
        verbs: Verb::CSI.to_vec(),
        certificate: made.pem().parse().ok(),
    };
    let name = "certificate".parse().unwrap();
    appliance.api().put_token(&name, &scope).await.unwrap();
    driver.controller.create_volume(claim("v")).await.unwrap();
    // Another one, file by file: until its key is there too it is none, and that is no fault of the call either.
    let pair = rcgen::KeyPair::generate().unwrap();
    let made = rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&pair).unwrap();
    appliance
        .api()
        .put_token(&name, &TokenPut { certificate: made.pem().parse().ok(), ..scope })
        .await
        .unwrap();
    std::fs::write(&cert, made.pem()).unwrap();
    refused(driver.controller.create_volume(claim("w")).await, Code::Unavailable);
    std::fs::write(&key, pair.serialize_pem()).unwrap();
    driver.controller.create_volume(claim("w")).await.unwrap();
}
