//! The thread that writes logs, and the bounded queue in front of it.
//!
//! Called by [`super::init`]. Never blocks a caller that logs: a full queue drops the line and counts it.

use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use tracing_subscriber::fmt::MakeWriter;

use super::TelemetryError;

/// Lines that may wait. At some 300 bytes a line this is about a megabyte.
const QUEUED: usize = 4096;

/// The journal's native socket (systemd's `JOURNAL_NATIVE_PROTOCOL`).
const JOURNAL_SOCKET: &str = "/run/systemd/journal/socket";

/// How many lines were dropped.
#[derive(Debug, Clone, Default)]
pub struct Dropped(Arc<AtomicU64>);

impl Dropped {
    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The way into the queue. One `write` is one line or one journal entry.
#[derive(Debug, Clone)]
pub struct Queue {
    lines: Sender<Option<Vec<u8>>>,
    dropped: Dropped,
}

impl Queue {
    /// Adds a line, or drops it.
    pub fn push(&self, line: Vec<u8>) {
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.lines.try_send(Some(line)) {
            self.dropped.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.push(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Queue;

    fn make_writer(&'a self) -> Queue {
        self.clone()
    }
}

/// Keeps the thread; when dropped, what is queued is still written, for at most two seconds.
#[derive(Debug)]
pub struct Guard {
    lines: Sender<Option<Vec<u8>>>,
    /// Disconnected when the thread ends.
    ended: Receiver<()>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        // The subscriber is global and keeps its own sender for ever, hence an explicit end mark.
        if self.lines.send_timeout(None, Duration::from_secs(1)).is_err() {
            return;
        }
        // Not joined: a writer that hangs must not hold up the end of the process.
        let _ = self.ended.recv_timeout(Duration::from_secs(1));
    }
}

/// Lines to standard error.
pub fn stderr(dropped: &Dropped) -> Result<(Queue, Guard), TelemetryError> {
    start(dropped, |line| {
        // Nobody is left to tell when standard error fails.
        let _ = std::io::stderr().write_all(line);
    })
}

/// Entries to the journal.
pub fn journal(dropped: &Dropped) -> Result<(Queue, Guard), TelemetryError> {
    let socket = UnixDatagram::unbound().map_err(TelemetryError::Journal)?;
    socket.connect(JOURNAL_SOCKET).map_err(TelemetryError::Journal)?;
    let lost = dropped.clone();
    start(dropped, move |entry| {
        // Connected again when journald was restarted in between.
        let sent = socket.send(entry).or_else(|_| {
            socket.connect(JOURNAL_SOCKET)?;
            socket.send(entry)
        });
        if sent.is_err() {
            lost.0.fetch_add(1, Ordering::Relaxed);
        }
    })
}

fn start(
    dropped: &Dropped,
    write: impl FnMut(&[u8]) + Send + 'static,
) -> Result<(Queue, Guard), TelemetryError> {
    let (tx, rx) = bounded(QUEUED);
    let (ending, ended) = bounded(0);
    let work = move || {
        run(&rx, write);
        drop(ending);
    };
    std::thread::Builder::new().name("log".into()).spawn(work).map_err(TelemetryError::Thread)?;
    let guard = Guard { lines: tx.clone(), ended };
    Ok((Queue { lines: tx, dropped: dropped.clone() }, guard))
}

fn run(lines: &Receiver<Option<Vec<u8>>>, mut write: impl FnMut(&[u8])) {
    while let Ok(Some(line)) = lines.recv() {
        write(&line);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_writer_that_hangs_costs_lines_and_no_time() {
        let dropped = Dropped::default();
        let (release, hold) = bounded::<()>(0);
        let (queue, _guard) = start(&dropped, move |_| {
            let _ = hold.recv();
        })
        .unwrap();
        let started = std::time::Instant::now();
        for _ in 0..QUEUED + 100 {
            queue.push(b"line\n".to_vec());
        }
        assert!(started.elapsed() < Duration::from_secs(1));
        assert!(dropped.get() >= 99, "{}", dropped.get());
        drop(release);
    }
}
