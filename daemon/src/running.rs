//! The configuration that the daemon runs with: what of it goes where, and how it is read anew.
//!
//! Made by `main`, once, and asked by the engine when somebody wants a reload. Everything is compared with what runs, not with what
//! was read last: a setting that waits for a restart is told again until it is there, or is what runs again.

use std::sync::Arc;
use std::time::Duration;

use orlop_api::Reloaded;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::config::Settings;
use crate::engine::error::chain;
use crate::engine::{Configuration, FillLimits, Reread, quotas};
use crate::http::HttpSettings;
use crate::telemetry::Level;

/// Reads the settings as at start, the command line included, or tells all that is wrong with them.
pub type Source = Box<dyn Fn() -> Result<Settings, Vec<String>> + Send + Sync>;

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Running(Arc<Inner>);

struct Inner {
    source: Source,
    settings: Mutex<Settings>,
    level: Level,
    http: watch::Sender<HttpSettings>,
}

impl Running {
    /// What was read at start.
    pub fn new(settings: &Settings, level: Level, source: Source) -> Self {
        let http = watch::Sender::new(http(settings));
        Self(Arc::new(Inner { source, settings: Mutex::new(settings.clone()), level, http }))
    }

    /// How HTTP behaves, now and from now on.
    pub fn http(&self) -> watch::Receiver<HttpSettings> {
        self.0.http.subscribe()
    }

    /// How long a stop waits for changes under way.
    pub fn drain(&self) -> Duration {
        self.0.settings.lock().limits.drain
    }
}

impl Configuration for Running {
    fn read(&self) -> Result<Reread, Vec<String>> {
        let read = (self.0.source)()?;
        let inner = self.0.clone();
        Ok(Reread { fill: fill(&read), quotas: quotas(&read), apply: Box::new(move || inner.apply(&read)) })
    }
}

impl Inner {
    fn apply(&self, read: &Settings) -> Result<Reloaded, Vec<String>> {
        let mut running = self.settings.lock();
        let next = running.reloaded(read);
        // First, because it alone can fail.
        if next.log.level != running.log.level {
            self.level.set(&next.log).map_err(|e| vec![chain(&e)])?;
        }
        self.http.send_replace(http(&next));
        let done = Reloaded { applied: running.changes(&next), after_restart: next.changes(read) };
        *running = next;
        Ok(done)
    }
}

fn http(settings: &Settings) -> HttpSettings {
    HttpSettings {
        connections: settings.limits.connections,
        connections_per_peer: settings.limits.connections_per_peer,
        request: settings.limits.request,
        idle: settings.limits.idle,
    }
}

/// How full pools may be.
pub fn fill(settings: &Settings) -> FillLimits {
    FillLimits { warn_percent: settings.pools.warn_percent, stop_percent: settings.pools.stop_percent }
}

/// What one principal may take.
pub fn quotas(settings: &Settings) -> quotas::Limits {
    quotas::Limits {
        changes: settings.limits.changes_per_principal,
        requests_per_second: settings.limits.requests_per_second,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config;

    #[test]
    fn what_is_wrong_changes_nothing_and_what_is_right_is_applied_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("o.toml");
        let source = file.clone();
        let (_filter, level) = Level::new(&Settings::default().log).unwrap();
        let running = Running::new(
            &Settings::default(),
            level,
            Box::new(move || config::load(&source, None).map_err(|e| e.0.iter().map(|e| chain(e)).collect())),
        );
        let http = running.http();
        let reload = |text: &str| {
            std::fs::write(&file, text).unwrap();
            (running.read()?.apply)()
        };
        let wrong = reload("[limits]\nrequest_seconds = 9\nidle_seconds = 0\n[log]\nlevel = \"loud\"\n");
        let wrong = wrong.unwrap_err();
        assert!(
            wrong.len() == 2 && wrong.iter().any(|w| w.contains("o.toml:3: limits.idle_seconds")),
            "{wrong:?}"
        );
        assert_eq!((http.borrow().request.as_secs(), running.drain().as_secs()), (60, 30));

        let right =
            "[limits]\nrequest_seconds = 9\ndrain_seconds = 3\npool_threads = 2\n[log]\nlevel = \"warn\"\n";
        let done = reload(right).unwrap();
        let keys: Vec<_> = done.applied.iter().map(|c| c.key.as_str()).collect();
        assert_eq!(keys, ["log.level", "limits.request_seconds", "limits.drain_seconds"]);
        assert_eq!(done.after_restart[0].key, "limits.pool_threads");
        assert_eq!((http.borrow().request.as_secs(), running.drain().as_secs()), (9, 3));
        let again = reload(right).unwrap();
        assert!(again.applied.is_empty() && again.after_restart == done.after_restart, "{again:?}");
    }

    #[test]
    fn a_level_that_can_not_be_set_changes_nothing() {
        let (filter, level) = Level::new(&Settings::default().log).unwrap();
        drop(filter);
        let mut other = Settings::default();
        other.log.level = "debug".into();
        other.limits.drain = Duration::from_secs(1);
        let running = Running::new(&Settings::default(), level, Box::new(move || Ok(other.clone())));
        for _ in 0..2 {
            assert!((running.read().unwrap().apply)().is_err());
            assert_eq!(running.drain().as_secs(), 30);
        }
    }
}
