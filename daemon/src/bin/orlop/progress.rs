//! A spinner or a bar for what takes longer than a second, where a person looks on.

use std::future::Future;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// When a person begins to wonder.
const PATIENCE: Duration = Duration::from_secs(1);

/// Runs `work`; shows a spinner on standard error if it takes long and that is a terminal.
pub async fn shown<T>(work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    if !std::io::stderr().is_terminal() {
        return work.await;
    }
    tokio::select! {
        done = work.as_mut() => return done,
        () = tokio::time::sleep(PATIENCE) => {}
    }
    let spinner = ProgressBar::new_spinner().with_message("waiting for the appliance");
    spinner.enable_steady_tick(Duration::from_millis(100));
    let done = work.await;
    spinner.finish_and_clear();
    done
}

/// A bar for what tells how far it is.
pub struct Bar(ProgressBar);

impl Bar {
    /// Shown on standard error, if that is a terminal.
    pub fn new() -> Self {
        let style = "{wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left {msg}";
        let bar = ProgressBar::new(0);
        // The literal is a template that indicatif knows; if it should not, its own is as good.
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        Self(bar)
    }

    /// How far it is, and what is in its way.
    pub fn show(&self, done: u64, total: u64, trouble: Option<&str>) {
        self.0.set_length(total);
        self.0.set_position(done);
        self.0.set_message(trouble.map(|t| format!("({t})")).unwrap_or_default());
    }

    /// Takes it away.
    pub fn finish(self) {
        self.0.finish_and_clear();
    }
}
