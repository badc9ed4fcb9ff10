//! A configuration that is changed under a running engine.

use parking_lot::Mutex;

use super::*;
use crate::engine::quotas::Limits;
use crate::engine::{Configuration, FillLimits, Reread};

/// What the next reload finds. `Err`: what is wrong.
pub struct Written(pub Mutex<std::result::Result<(FillLimits, Limits, Reloaded), Vec<String>>>);

impl Default for Written {
    fn default() -> Self {
        Self(Mutex::new(Err(vec!["nothing was written".into()])))
    }
}

impl Configuration for Written {
    fn read(&self) -> std::result::Result<Reread, Vec<String>> {
        let (fill, quotas, done) = self.0.lock().clone()?;
        Ok(Reread { fill, quotas, apply: Box::new(move || Ok(done)) })
    }
}

fn change(key: &str) -> SettingChange {
    SettingChange { key: key.into(), from: None, to: None }
}

fn write(rig: &Rig, percent: u8, changes: usize, applied: &[&str], after_restart: &[&str]) {
    let of = |keys: &[&str]| keys.iter().map(|k| change(k)).collect();
    let done = Reloaded { applied: of(applied), after_restart: of(after_restart) };
    let fill = FillLimits { warn_percent: percent, stop_percent: percent };
    *rig.configuration.0.lock() = Ok((fill, Limits { changes, requests_per_second: None }, done));
}

fn last_event(rig: &Rig) -> (EventKind, String) {
    let events = rig.engine().events();
    let last = events.after(events.newest() - 1, 1).remove(0);
    (last.kind, last.detail.unwrap())
}

#[tokio::test]
async fn what_is_wrong_is_an_alarm_until_it_is_right() {
    let rig = Rig::new().await;
    *rig.configuration.0.lock() = Err(vec!["o.toml:1: a".into(), "o.toml:2: b".into()]);
    let problem = rig.fails(Action::Reload).await;
    assert_eq!(problem.kind, ErrorKind::Precondition);
    assert!(problem.detail.ends_with("nothing was changed: o.toml:1: a; o.toml:2: b"), "{problem:?}");
    let alarms = rig.engine().system().alarms;
    assert_eq!((alarms[0].subject.as_str(), alarms[0].severity), ("configuration", AlarmSeverity::Warning));
    assert!(alarms[0].detail.contains("o.toml:1: a; o.toml:2: b"), "{alarms:?}");

    write(&rig, 80, 1024, &["log.level"], &["nvmet.portals", "lio.portals"]);
    let Outcome::Reloaded(done) = rig.ok(Action::Reload).await else { panic!() };
    assert_eq!((done.applied.len(), done.after_restart.len()), (1, 2));
    assert!(rig.engine().system().alarms.is_empty());
    let told = "applied: log.level; after a restart: nvmet.portals, lio.portals";
    assert_eq!(last_event(&rig), (EventKind::ConfigurationReloaded, told.into()));
    write(&rig, 80, 1024, &[], &["lio.portals"]);
    rig.ok(Action::Reload).await;
    assert_eq!(last_event(&rig).1, "nothing was applied; after a restart: lio.portals");
    write(&rig, 80, 1024, &[], &[]);
    rig.ok(Action::Reload).await;
    assert_eq!(last_event(&rig).1, "nothing changed");
}

#[tokio::test]
async fn other_limits_count_for_pools_and_principals_at_once() {
    let rig = Rig::new().await;
    rig.create("data").await;
    rig.fills_to(70, PoolFill::Ok).await;
    let fill_is = |percent: u8, fill: PoolFill| {
        let shown = rig.engine().view().pools(&who()).remove(0);
        assert_eq!((shown.warn_percent, shown.stop_percent, shown.fill), (percent, percent, fill));
        let alarms = rig.engine().system().alarms;
        assert_eq!(alarms.iter().any(|a| a.subject == "pool/tank/space"), fill != PoolFill::Ok);
    };
    write(&rig, 70, 1, &[], &[]);
    rig.ok(Action::Reload).await;
    fill_is(70, PoolFill::Full);
    let problem = rig.fails(Action::CreateVolume(ask("more"))).await;
    assert_eq!(problem.kind, ErrorKind::Exhausted, "{problem:?}");
    // 70% was full by the limit before, and is not held on to.
    write(&rig, 71, 0, &[], &[]);
    rig.ok(Action::Reload).await;
    fill_is(71, PoolFill::Ok);
    let problem = rig.fails(Action::CreateVolume(ask("more"))).await;
    assert_eq!(problem.kind, ErrorKind::Unavailable, "{problem:?}");
}
