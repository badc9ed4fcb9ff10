//! What is read when somebody scrapes, also while the kernel hangs.

use super::*;
use crate::telemetry::Metrics;

impl Rig {
    async fn scraped(&self) -> String {
        Metrics::new(Default::default()).render(self.engine().scrape().await).unwrap()
    }
}

fn has(text: &str, line: &str) -> bool {
    text.lines().any(|l| l == line)
}

// The lock is what hangs, and nobody else in this test wants it.
#[allow(clippy::await_holding_lock)]
#[tokio::test]
async fn a_kernel_that_hangs_costs_its_own_series_and_one_thread() {
    let rig = Rig::new().await;
    let text = rig.scraped().await;
    assert!(has(&text, "orlop_kernel_read 1") && text.contains("orlop_target_sessions{"), "{text}");
    let target = rig.target.clone();
    let hangs = target.hang.lock();
    for _ in 0..3 {
        let began = std::time::Instant::now();
        let text = rig.scraped().await;
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
        assert!(has(&text, "orlop_kernel_read 0") && !text.contains("orlop_target_sessions{"), "{text}");
        assert!(has(&text, "orlop_lane_hung_threads{lane=\"counters\"} 1"), "{text}");
        assert!(has(&text, "orlop_pool_online{pool=\"tank\"} 1"), "{text}");
    }
    drop(hangs);
    for _ in 0..500 {
        if has(&rig.scraped().await, "orlop_kernel_read 1") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it is not read again");
}

#[tokio::test]
async fn what_a_start_did_is_told() {
    let mut rig = Rig::new().await;
    let id = rig.create("data").await;
    rig.host("one").await;
    rig.ok(attach(id, "one")).await;
    rig.restart().await;
    let metrics = rig.engine().core.settings.metrics.clone();
    let text = metrics.render(rig.engine().scrape().await).unwrap();
    for line in [
        "orlop_recovery_volumes{outcome=\"restored\"} 1",
        "orlop_recovery_volumes{outcome=\"retried\"} 0",
        "orlop_recovery_intents 0",
        "orlop_volume_states{state=\"ready\"} 1",
        "orlop_journal_open 1",
        "orlop_target_attached_volumes{protocol=\"nvme\"} 1",
    ] {
        assert!(has(&text, line), "{line} is not in:\n{text}");
    }
    // Somebody takes its export away by hand.
    rig.target.take(id).unwrap();
    rig.engine().core.look_for_drift_once().await;
    let text = metrics.render(rig.engine().scrape().await).unwrap();
    assert!(has(&text, "orlop_drift_total{outcome=\"put_back\"} 1"), "{text}");
    assert!(has(&text, "orlop_target_converges_total{protocol=\"nvme\",outcome=\"failed\"} 0"), "{text}");
}
