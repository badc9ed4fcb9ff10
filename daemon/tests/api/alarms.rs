//! Alarms from their begin to their end, over the API and the command line.

use std::process::Command;

use orlop_api::{AlarmSeverity, AlarmState, EventKind};
use serde_json::json;

use super::daemon::Daemon;
use super::raw;

const SUBJECT: &str = "pool/lost";

/// A daemon that misses a pool.
async fn without_a_pool() -> Daemon {
    let mut d = Daemon::start();
    d.pool("lost").await;
    assert!(d.stop().success());
    std::fs::rename(d.dir.path().join("pool-lost"), d.dir.path().join("elsewhere")).unwrap();
    d.again();
    d
}

fn orlop(d: &Daemon, args: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orlop"));
    let out = command.args(args).env("ORLOP_SOCKET", d.socket()).env_remove("ORLOP_URL").output().unwrap();
    let text = if out.status.success() { out.stdout } else { out.stderr };
    (out.status.code().unwrap(), String::from_utf8(text).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_is_acknowledged_and_clears_itself() {
    let d = without_a_pool().await;
    let client = d.client();
    let raised = client.alarms().await.unwrap();
    assert_eq!((raised.len(), raised[0].subject.as_str()), (1, SUBJECT), "{raised:?}");
    assert_eq!((raised[0].severity, raised[0].state), (AlarmSeverity::Critical, AlarmState::Raised));

    let (code, text) = orlop(&d, &["alarm", "acknowledge", SUBJECT]);
    assert!(code == 0 && text.contains("acknowledged") && text.contains("uid:"), "{text}");
    let shown = client.system().await.unwrap().alarms;
    let by = shown[0].acknowledged.as_ref().unwrap();
    assert!(shown[0].state == AlarmState::Acknowledged && by.by.starts_with("uid:"), "{shown:?}");
    assert!(orlop(&d, &["system"]).1.contains("acknowledged by uid:"));
    // The pool is tried again and again meanwhile, and says the same: the acknowledgement stays.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert_eq!(client.alarms().await.unwrap()[0].state, AlarmState::Acknowledged);

    std::fs::rename(d.dir.path().join("elsewhere"), d.dir.path().join("pool-lost")).unwrap();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !client.system().await.unwrap().alarms.is_empty() {
        assert!(std::time::Instant::now() < end, "it is not cleared after 30 s");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let cleared = client.alarms().await.unwrap();
    assert_eq!((cleared.len(), cleared[0].state), (1, AlarmState::Cleared));
    assert!(cleared[0].cleared.unwrap() > cleared[0].since);
    assert_eq!(orlop(&d, &["alarm", "list"]).1, "no alarms\n");
    assert!(orlop(&d, &["alarm", "list", "--all"]).1.contains("cleared 20"));
    // What is over can't be acknowledged.
    let (code, text) = orlop(&d, &["alarm", "acknowledge", SUBJECT]);
    assert!(code != 0 && text.contains("alarm pool/lost does not exist"), "{text}");

    let events = raw::get(&d.socket(), "/metrics").unwrap();
    let text = String::from_utf8_lossy(&events.body).into_owned();
    for line in [
        "orlop_alarms{severity=\"critical\",state=\"raised\"} 0",
        "orlop_alarms_raised_total{severity=\"critical\"} 1",
        "orlop_actions_total{verb=\"acknowledge_alarm\",outcome=\"ok\"} 1",
        "orlop_actions_total{verb=\"acknowledge_alarm\",outcome=\"not_found\"} 1",
        "orlop_pool_online{pool=\"lost\"} 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
    }
    let mut told = Vec::new();
    let mut stream = std::pin::pin!(client.events(Some(0)));
    while told.last() != Some(&EventKind::AlarmCleared) {
        let event = futures_util::StreamExt::next(&mut stream).await.unwrap().unwrap();
        if event.kind.as_str().starts_with("alarm_") {
            assert_eq!(event.pool.as_ref().unwrap().as_str(), "lost");
            told.push(event.kind);
        }
    }
    assert_eq!(told, [EventKind::AlarmRaised, EventKind::AlarmAcknowledged, EventKind::AlarmCleared]);
}

#[tokio::test]
async fn what_can_not_be_acknowledged() {
    let d = Daemon::start();
    let post = |body: String| raw::call(&d.socket(), "POST", "/v1/alarms/acknowledge", body.as_bytes());
    assert_eq!(post(json!({"subject": "pool/none"}).to_string()).kind(), "not_found");
    for bad in [
        json!({}),
        json!({"subject": ""}),
        json!({"subject": "a b"}),
        json!({"subject": "x\ny"}),
        json!({"subject": "x".repeat(256)}),
        json!({"subject": 7}),
        json!({"subject": "pool/none", "by": "me"}),
        json!([]),
    ] {
        let reply = post(bad.to_string());
        assert_eq!(reply.kind(), "invalid", "{bad}: {reply:?}");
    }
    assert_eq!(orlop(&d, &["alarm", "acknowledge", "no such"]).0, 2);
    assert_eq!(raw::get(&d.socket(), "/v1/alarms").unwrap().json()["items"], json!([]));
}
