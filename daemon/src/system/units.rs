//! Starting and restarting units.
//!
//! A job that systemd has accepted goes on whether anybody waits for it or not: who comes back after a deadline
//! finds the unit in the state in which the job has left it.

use futures_util::StreamExt;
use zbus::zvariant::OwnedObjectPath;
use zbus::{Connection, Proxy};

use crate::kernel::{Deadline, Overrun};

/// Why a unit is not in the state in which it should be.
#[derive(Debug, thiserror::Error)]
pub enum UnitError {
    /// systemd could not be asked, or it refused.
    #[error("{unit}: systemd could not be asked")]
    Bus {
        /// Which unit.
        unit: String,
        /// The answer of the bus.
        #[source]
        source: Box<zbus::Error>,
    },
    /// The job did not end well.
    #[error("{unit} did not start: {result}")]
    Failed {
        /// Which unit.
        unit: String,
        /// systemd's word for it: `failed`, `dependency`, `timeout`.
        result: String,
    },
    /// Nobody waits any more.
    #[error("{unit} takes too long")]
    Overrun {
        /// Which unit.
        unit: String,
        /// The marker.
        #[source]
        source: Overrun,
    },
    /// Nothing to wait with.
    #[error("waiting for systemd")]
    Io(#[source] std::io::Error),
}

/// Starts a unit with all that it needs, and waits until it runs. One that runs is left as it is.
pub fn start(unit: &str, deadline: &Deadline) -> Result<(), UnitError> {
    job("StartUnit", unit, deadline)
}

/// Stops a unit if it runs, starts it, and waits until it runs.
pub fn restart(unit: &str, deadline: &Deadline) -> Result<(), UnitError> {
    job("RestartUnit", unit, deadline)
}

/// Stops a unit, and waits until it has ended.
pub fn stop(unit: &str, deadline: &Deadline) -> Result<(), UnitError> {
    job("StopUnit", unit, deadline)
}

/// Whether a unit runs.
pub fn is_active(unit: &str, deadline: &Deadline) -> Result<bool, UnitError> {
    wait(unit, deadline, state(unit)).map(|state| state == "active")
}

fn job(method: &str, unit: &str, deadline: &Deadline) -> Result<(), UnitError> {
    match wait(unit, deadline, run(method, unit))? {
        result if result == "done" => Ok(()),
        result => Err(UnitError::Failed { unit: unit.into(), result }),
    }
}

/// An answer of systemd's.
fn wait<T>(
    unit: &str,
    deadline: &Deadline,
    answer: impl Future<Output = zbus::Result<T>>,
) -> Result<T, UnitError> {
    // Called from a lane, which is a thread of its own outside any runtime. A few times in the life of a daemon:
    // no connection is kept.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(UnitError::Io)?;
    match runtime.block_on(async { tokio::time::timeout(deadline.remaining(), answer).await }) {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(UnitError::Bus { unit: unit.into(), source: Box::new(source) }),
        Err(_) => Err(UnitError::Overrun { unit: unit.into(), source: Overrun }),
    }
}

const SYSTEMD: &str = "org.freedesktop.systemd1";

async fn manager() -> zbus::Result<Proxy<'static>> {
    let bus = Connection::system().await?;
    Proxy::new(&bus, SYSTEMD, "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager").await
}

/// How a unit is, in systemd's word.
async fn state(unit: &str) -> zbus::Result<String> {
    let manager = manager().await?;
    let path: OwnedObjectPath = manager.call("LoadUnit", &(unit,)).await?;
    let unit = Proxy::new(manager.connection(), SYSTEMD, path, "org.freedesktop.systemd1.Unit").await?;
    unit.get_property("ActiveState").await
}

/// How the job ended, in systemd's word.
async fn run(method: &str, unit: &str) -> zbus::Result<String> {
    let manager = manager().await?;
    // Before the job is made: it may have ended before its number is known.
    let mut removed = manager.receive_signal("JobRemoved").await?;
    let () = manager.call("Subscribe", &()).await?;
    let job: OwnedObjectPath = manager.call(method, &(unit, "replace")).await?;
    while let Some(signal) = removed.next().await {
        let body = signal.body();
        let (_, path, _, result): (u32, OwnedObjectPath, String, String) = body.deserialize()?;
        if path == job {
            return Ok(result);
        }
    }
    Err(zbus::Error::Failure("the bus went away".into()))
}
