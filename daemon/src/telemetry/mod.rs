//! What the daemon tells of itself: logs and metrics.
//!
//! Called by `main` (once, to start) and, for metrics, by the engine and by HTTP. Knows neither of them:
//! numbers that are read from the engine are handed in at scrape time. Never logs a secret.

pub mod catalogue;
mod journald;
mod metrics;
mod process;
mod scraped;
mod sink;
pub mod spans;

use std::io::IsTerminal;
use std::os::fd::AsFd;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

pub use metrics::{Metrics, Recovered};
pub use scraped::Scraped;
pub use sink::{Dropped, Guard};

use crate::config::{LogFormat, LogSettings, TracesSettings};

/// Why logging did not start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The journal was asked for, and its socket is not there.
    #[error("the journal's socket cannot be reached")]
    Journal(#[source] std::io::Error),
    /// The thread that writes logs did not start.
    #[error("the log thread did not start")]
    Thread(#[source] std::io::Error),
    /// The level is not one.
    #[error("the log level is not one")]
    Level(#[from] tracing_subscriber::filter::ParseError),
    /// The level could not be set. A defect.
    #[error("the log level cannot be set")]
    Unset(#[from] reload::Error),
    /// What sends spans could not be made.
    #[error("traces cannot be sent: {0}")]
    Traces(String),
    /// Something in this process logs already.
    #[error("logging was started before")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// What is still to be sent and written when it is dropped, in that order.
#[derive(Debug)]
pub struct Guards {
    #[cfg(feature = "otlp")]
    _exporter: Option<spans::Exporter>,
    #[cfg(not(feature = "otlp"))]
    _exporter: (),
    _log: Guard,
}

/// The log level of a running daemon.
#[derive(Debug, Clone)]
pub struct Level(reload::Handle<Targets, Registry>);

impl Level {
    /// With the filter that it sets.
    pub fn new(settings: &LogSettings) -> Result<(reload::Layer<Targets, Registry>, Self), TelemetryError> {
        let (filter, handle) = reload::Layer::new(targets(settings)?);
        Ok((filter, Self(handle)))
    }

    /// Another level from now on.
    pub fn set(&self, settings: &LogSettings) -> Result<(), TelemetryError> {
        Ok(self.0.reload(targets(settings)?)?)
    }
}

/// Spans are for traces alone.
fn targets(settings: &LogSettings) -> Result<Targets, TelemetryError> {
    Ok(settings.level.parse::<Targets>()?.with_target(spans::TARGET, LevelFilter::OFF))
}

/// Starts logging. Lines are written by one thread of their own, because both the journal's socket and
/// standard error can block; when it can't keep up, lines are dropped and counted in `dropped`.
/// What is queued when the guards are dropped is still written. Traces are sent from here on, too.
pub fn init(
    settings: &LogSettings,
    traces: &TracesSettings,
    dropped: &Dropped,
) -> Result<(Guards, Level), TelemetryError> {
    let (filter, level) = Level::new(settings)?;
    let format = match settings.format {
        LogFormat::Auto if stderr_is_the_journal() => LogFormat::Journald,
        LogFormat::Auto => LogFormat::Text,
        given => given,
    };
    let (queue, guard) = match format {
        LogFormat::Journald => sink::journal(dropped)?,
        _ => sink::stderr(dropped)?,
    };
    let layer: Box<dyn Layer<Registry> + Send + Sync> = match format {
        LogFormat::Journald => journald::JournalLayer::new(queue).boxed(),
        LogFormat::Json => {
            tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(queue).boxed()
        }
        LogFormat::Text | LogFormat::Auto => {
            let ansi = std::io::stderr().is_terminal();
            tracing_subscriber::fmt::layer().with_ansi(ansi).with_writer(queue).boxed()
        }
    };
    let registry = tracing_subscriber::registry().with(layer.with_filter(filter));
    #[cfg(feature = "otlp")]
    let exporter = spans::Exporter::new(traces)?;
    #[cfg(feature = "otlp")]
    let registry = registry.with(exporter.as_ref().map(spans::Exporter::layer));
    // The configuration has refused what this build can't do.
    #[cfg(not(feature = "otlp"))]
    let (exporter, _) = ((), traces);
    registry.try_init()?;
    Ok((Guards { _exporter: exporter, _log: guard }, level))
}

/// systemd.exec(5): `$JOURNAL_STREAM` holds device and inode of the stream that standard error was
/// connected to. Comparing them tells a daemon under systemd from one started in a shell below it.
fn stderr_is_the_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(stat) = rustix::fs::fstat(std::io::stderr().as_fd()) else { return false };
    stream == format!("{}:{}", stat.st_dev, stat.st_ino)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn another_level_counts_at_once() {
        let settings = |level: &str| LogSettings { level: level.into(), format: LogFormat::Text };
        let (filter, level) = Level::new(&settings("warn")).unwrap();
        let layer = tracing_subscriber::fmt::layer().with_writer(std::io::sink).with_filter(filter);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let enabled =
                || (tracing::enabled!(tracing::Level::INFO), tracing::enabled!(tracing::Level::DEBUG));
            assert_eq!(enabled(), (false, false));
            level.set(&settings("info,orlopd=debug")).unwrap();
            assert_eq!(enabled(), (true, true));
            level.set(&settings("error")).unwrap();
            assert_eq!(enabled(), (false, false));
        });
    }
}
