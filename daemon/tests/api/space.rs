//! A pool that is full.

use std::time::{Duration, Instant};

use orlop_api::{ByteSize, ErrorKind, EventKind, PoolFill, VolumeUpdate};

use super::daemon::{Daemon, ask};
use super::raw;

#[tokio::test]
async fn a_full_pool_refuses_what_needs_space() {
    let mut d = Daemon::start();
    let pool = d.pool("tank").await;
    let volume = d.volume(&pool, "data").await;
    let host = d.host("h").await;
    assert!(pool.fill != PoolFill::Full && (pool.warn_percent, pool.stop_percent) == (80, 95), "{pool:?}");
    assert!(pool.largest_thin <= pool.total && pool.largest_thick <= pool.available, "{pool:?}");
    assert!(pool.largest_thick.is_multiple_of(pool.granularity), "{pool:?}");
    if pool.used.0 * 100 < pool.total.0 * 2 {
        eprintln!("the file system under this test is too empty to be called full");
        return;
    }

    assert!(d.stop().success());
    d.configure("[pools]\nwarn_percent = 1\nstop_percent = 1\n");
    d.again();
    let client = d.client();
    let refused = client.create_volume(&ask(&pool, "more", 4)).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Exhausted, "{refused:?}");
    assert!(refused.detail.starts_with("pool tank has no room: it is "), "{refused:?}");
    let update = VolumeUpdate::to_size(ByteSize(volume.size.0 * 2));
    let refused = client.update_volume(&volume.id.into(), &update).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Exhausted, "{refused:?}");
    let body = serde_json::json!({"name": "s", "volume": "data"}).to_string();
    assert_eq!(raw::call(&d.socket(), "POST", "/v1/snapshots", body.as_bytes()).status, 507);

    let end = Instant::now() + Duration::from_secs(10);
    while client.system().await.unwrap().alarms.iter().all(|a| a.subject != "pool/tank/space") {
        assert!(Instant::now() < end, "no alarm");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let shown = client.pool(&pool.name).await.unwrap();
    assert_eq!(
        (shown.fill, shown.largest_thin, shown.largest_thick),
        (PoolFill::Full, ByteSize(0), ByteSize(0))
    );
    let reply = raw::get(&d.socket(), "/v1/pools/tank").unwrap();
    assert_eq!(reply.json()["fill"], "full");
    let metrics = raw::get(&d.socket(), "/metrics").unwrap();
    assert!(String::from_utf8_lossy(&metrics.body).contains("orlop_pool_fill_ratio{pool=\"tank\"} 0."));
    assert_eq!(EventKind::PoolSpace.as_str(), "pool_space");

    client.attach(&volume.id.into(), &host.name).await.unwrap();
    client.detach(&volume.id.into(), &host.name).await.unwrap();
    client.delete_volume(&volume.id.into()).await.unwrap();
    client.delete_pool(&pool.name).await.unwrap();
    assert!(client.system().await.unwrap().alarms.is_empty());
}
