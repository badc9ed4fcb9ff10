//! The configuration changed under a running daemon.

use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use orlop_api::{ErrorKind, EventKind, Reloaded, SettingChange};

use super::daemon::Daemon;
use super::raw;

/// A daemon that was started with a configuration.
fn configured(text: &str) -> Daemon {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("orlopd.toml"), text).unwrap();
    Daemon::start_in(dir)
}

fn keys(all: &[SettingChange]) -> Vec<&str> {
    all.iter().map(|c| c.key.as_str()).collect()
}

#[tokio::test]
async fn what_can_be_applied_is_and_what_can_not_waits_until_a_restart() {
    let mut d = configured("[pools]\nwarn_percent = 80\n");
    let pool = d.pool("tank").await;
    assert_eq!(d.client().reload().await.unwrap(), Reloaded { applied: vec![], after_restart: vec![] });

    // From the first that there is on: none is missed, whenever it connects.
    let mut events = pin!(d.client().events(Some(0)));
    d.configure(
        "[pools]\nwarn_percent = 70\n[limits]\npool_threads = 3\n[nvmet]\nportals = [\"127.0.0.1:4421\"]\n",
    );
    let drop_ins = d.dir.path().join("orlopd.toml.d");
    std::fs::create_dir(&drop_ins).unwrap();
    std::fs::write(drop_ins.join("10-more.toml"), "[limits]\nidle_seconds = 5\n").unwrap();
    let done = d.client().reload().await.unwrap();
    assert_eq!(keys(&done.applied), ["pools.warn_percent", "limits.idle_seconds"]);
    assert_eq!(keys(&done.after_restart), ["nvmet.portals", "limits.pool_threads"]);
    assert_eq!((done.applied[0].from.as_deref(), done.applied[0].to.as_deref()), (Some("80"), Some("70")));
    assert_eq!(d.client().pool(&pool.name).await.unwrap().warn_percent, 70);
    let told = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            let event = events.next().await.unwrap().unwrap();
            if event.kind == EventKind::ConfigurationReloaded
                && event.detail.as_deref() != Some("nothing changed")
            {
                return event.detail.unwrap();
            }
        }
    });
    let want = "applied: pools.warn_percent, limits.idle_seconds; after a restart: nvmet.portals, limits.pool_threads";
    assert_eq!(told.await.unwrap(), want);

    // Again: nothing is applied, and what waits still does, with the value that runs.
    let again = d.client().reload().await.unwrap();
    assert_eq!((&again.applied, &again.after_restart), (&vec![], &done.after_restart));
    assert!(d.stop().success());
    d.again();
    assert_eq!(d.client().reload().await.unwrap(), Reloaded { applied: vec![], after_restart: vec![] });
    assert_eq!(d.client().pool(&pool.name).await.unwrap().warn_percent, 70);
}

#[tokio::test]
async fn a_wrong_configuration_changes_nothing_and_every_mistake_is_told() {
    let d = configured("[pools]\nwarn_percent = 80\n");
    let pool = d.pool("tank").await;
    d.configure(
        "[pools]\nwarn_percent = 70\n[limits]\nconnections = 0\nidle_seconds = 0\n[log]\nlevel = \"loud\"\n",
    );
    std::fs::create_dir(d.dir.path().join("orlopd.toml.d")).unwrap();
    let drop_in = d.dir.path().join("orlopd.toml.d/10.toml");
    std::fs::write(&drop_in, "[nope]\n").unwrap();
    let wrong = d.client().reload().await.unwrap_err();
    assert_eq!((wrong.kind, wrong.retryable), (ErrorKind::Precondition, false));
    for mistake in [
        "orlopd.toml:4: limits.connections must be",
        "orlopd.toml:5: limits.idle_seconds must be",
        "orlopd.toml:7: log.level must be",
        "orlopd.toml.d/10.toml:1: unknown field `nope`",
    ] {
        assert!(wrong.detail.contains(mistake), "{mistake}: {wrong:?}");
    }
    assert_eq!(d.client().pool(&pool.name).await.unwrap().warn_percent, 80);
    let alarms = d.client().system().await.unwrap().alarms;
    assert!(alarms.len() == 1 && alarms[0].subject == "configuration", "{alarms:?}");

    for text in ["[[[", "\u{0}", "x = ", "state_dir = 7\n"] {
        std::fs::write(&drop_in, text).unwrap();
        assert_eq!(d.client().reload().await.unwrap_err().kind, ErrorKind::Precondition, "{text:?}");
    }
    std::fs::write(&drop_in, [0xff, 0xfe]).unwrap();
    assert!(d.client().reload().await.unwrap_err().detail.contains("10.toml: cannot be read"));
    std::fs::remove_file(&drop_in).unwrap();
    // One that the daemon was told of and that is not there is not "all defaults".
    std::fs::remove_file(d.dir.path().join("orlopd.toml")).unwrap();
    assert!(d.client().reload().await.unwrap_err().detail.contains("does not exist"));

    d.configure("");
    assert!(d.client().reload().await.unwrap().applied.is_empty());
    assert!(d.client().system().await.unwrap().alarms.is_empty());
    assert_eq!(raw::call(&d.socket(), "POST", "/v1/system/reload?force=true", b"").status, 400);
    assert_eq!(raw::get(&d.socket(), "/v1/system/reload").unwrap().status, 405);
}

/// A limit that would keep an administrator out is lifted by the signal, which needs no request.
#[tokio::test]
async fn a_signal_reloads_and_limits_count_at_once() {
    let d = configured("");
    let refused = || {
        let all = (0..10).map(|_| raw::get(&d.socket(), "/v1/system").unwrap().status);
        all.filter(|status| *status == 503).count()
    };
    assert_eq!(refused(), 0);
    let until = |what: &str, done: &dyn Fn() -> bool| {
        let end = Instant::now() + Duration::from_secs(20);
        while !done() {
            assert!(Instant::now() < end, "{what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    d.configure("[limits]\nrequests_per_second = 1\n");
    d.hang_up();
    until("the limit does not count", &|| refused() > 5);
    d.configure("[limits]\nconnections = 0\n");
    d.hang_up();
    let alarms = || {
        let reply = raw::get(&d.socket(), "/v1/alarms").unwrap();
        (reply.status == 200).then(|| reply.json()["items"][0]["subject"].clone())
    };
    until("no alarm", &|| alarms().is_some_and(|subject| subject == "configuration"));
    assert!(refused() > 5, "what ran goes on");
    d.configure("");
    d.hang_up();
    until("the limit still counts", &|| refused() == 0);
}

/// Many at a time, with the file changing under them: each is one or the other, and the last one counts.
#[tokio::test(flavor = "multi_thread")]
async fn reloads_at_the_same_time_do_not_mix() {
    let d = configured("");
    let pool = d.pool("tank").await;
    let mut all = Vec::new();
    for n in 0..40 {
        let (warn, stop) = if n % 2 == 0 { (10, 20) } else { (30, 40) };
        let new = d.dir.path().join("new");
        std::fs::write(&new, format!("[pools]\nwarn_percent = {warn}\nstop_percent = {stop}\n")).unwrap();
        std::fs::rename(&new, d.dir.path().join("orlopd.toml")).unwrap();
        let client = d.client();
        all.push(tokio::spawn(async move { client.reload().await.unwrap() }));
        let shown = d.client().pool(&pool.name).await.unwrap();
        let limits = (shown.warn_percent, shown.stop_percent);
        assert!([(80, 95), (10, 20), (30, 40)].contains(&limits), "{limits:?}");
    }
    for one in all {
        let done = one.await.unwrap();
        assert!([0, 2].contains(&done.applied.len()), "{done:?}");
    }
    d.client().reload().await.unwrap();
    assert_eq!(d.client().pool(&pool.name).await.unwrap().stop_percent, 40);
}
