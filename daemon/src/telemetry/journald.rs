//! `tracing` events as entries of systemd's journal, each field its own (`journalctl ORLOP_VOLUME=...`).
//!
//! Our own encoder instead of `tracing-journald`, because that one sends from the thread that logs, and
//! the journal's socket blocks when journald is slow. Called by [`super::init`].

use std::fmt::Write as _;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::sink::Queue;

/// See the module. Spans are not looked at: our events carry their own fields.
pub struct JournalLayer {
    queue: Queue,
}

impl JournalLayer {
    /// Sends into `queue`.
    pub fn new(queue: Queue) -> Self {
        Self { queue }
    }
}

impl<S: Subscriber> Layer<S> for JournalLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut entry = Entry::default();
        event.record(&mut entry);
        let meta = event.metadata();
        let priority = match *meta.level() {
            Level::ERROR => "3",
            Level::WARN => "4",
            Level::INFO => "6",
            Level::DEBUG | Level::TRACE => "7",
        };
        self.queue.push(entry.finish(priority, meta.target()));
    }
}

/// An entry while its fields are collected.
#[derive(Default)]
struct Entry {
    message: String,
    /// ` name=value` for people: journalctl shows the message alone.
    shown: String,
    fields: Vec<u8>,
}

impl Entry {
    fn finish(self, priority: &str, target: &str) -> Vec<u8> {
        let mut out = self.fields;
        put(&mut out, "PRIORITY", priority);
        put(&mut out, "SYSLOG_IDENTIFIER", "orlopd");
        put(&mut out, "TARGET", target);
        put(&mut out, "MESSAGE", &(self.message + &self.shown));
        out
    }

    fn add(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
            return;
        }
        // Field names of the journal: upper case letters, digits and underscores, at most 64 bytes.
        let mut name = String::from("ORLOP_");
        name.extend(field.name().chars().take(50).map(|c| match c.to_ascii_uppercase() {
            c if c.is_ascii_alphanumeric() => c,
            _ => '_',
        }));
        put(&mut self.fields, &name, value);
        let _ = write!(self.shown, " {}={value}", field.name());
    }
}

/// A value with a line break is sent with its length, any other one as a line.
fn put(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        out.push(b'\n');
        out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        out.push(b'=');
    }
    out.extend_from_slice(value.as_bytes());
    out.push(b'\n');
}

impl Visit for Entry {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.add(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_break_in_a_value_adds_no_field() {
        let mut out = Vec::new();
        put(&mut out, "A", "plain");
        put(&mut out, "B", "x\nPRIORITY=0");
        assert_eq!(out, b"A=plain\nB\n\x0c\0\0\0\0\0\0\0x\nPRIORITY=0\n");
    }
}
