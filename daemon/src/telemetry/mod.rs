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

use std::io::IsTerminal;
use std::os::fd::AsFd;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};

pub use metrics::{Metrics, Recovered};
pub use scraped::Scraped;
pub use sink::{Dropped, Guard};

use crate::config::{LogFormat, LogSettings};

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
    /// Something in this process logs already.
    #[error("logging was started before")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// Starts logging. Lines are written by one thread of their own, because both the journal's socket and
/// standard error can block; when it can't keep up, lines are dropped and counted in `dropped`.
/// What is queued when the guard is dropped is still written.
pub fn init(settings: &LogSettings, dropped: &Dropped) -> Result<Guard, TelemetryError> {
    let level: Targets = settings.level.parse()?;
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
    tracing_subscriber::registry().with(layer.with_filter(level)).try_init()?;
    Ok(guard)
}

/// systemd.exec(5): `$JOURNAL_STREAM` holds device and inode of the stream that standard error was
/// connected to. Comparing them tells a daemon under systemd from one started in a shell below it.
fn stderr_is_the_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(stat) = rustix::fs::fstat(std::io::stderr().as_fd()) else { return false };
    stream == format!("{}:{}", stat.st_dev, stat.st_ino)
}
