//! Named places where a test can kill the daemon as a power cut would, without a farewell. Compiled in
//! with the feature `failpoints` only; a shipped binary has none.
//!
//! `ORLOP_FAILPOINT=create_volume.intent` kills at the first time the place is reached,
//! `ORLOP_FAILPOINT=create_volume.intent:3` at the third.

/// The stages of every operation: its intent is durable; its work is done and verified; it is committed
/// but not yet answered. A start (`recover`) has others: pools are `opened`, what was in flight is `settled`, volumes
/// are `served`.
pub const STAGES: [&str; 3] = ["intent", "acted", "committed"];

/// A place: the verb of an operation, or a part of one, and a stage.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn hit(_verb: &'static str, _stage: &'static str) {}

/// A place: the verb of an operation, or a part of one, and a stage.
#[cfg(feature = "failpoints")]
pub fn hit(verb: &'static str, stage: &'static str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    static WANTED: OnceLock<Option<(String, u32)>> = OnceLock::new();
    static HITS: AtomicU32 = AtomicU32::new(0);

    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("ORLOP_FAILPOINT").ok()?;
        match text.split_once(':') {
            Some((place, n)) => Some((place.to_string(), n.parse().unwrap_or(1))),
            None => Some((text, 1)),
        }
    });
    let Some((place, nth)) = wanted else { return };
    if *place == format!("{verb}.{stage}") && HITS.fetch_add(1, Ordering::SeqCst) + 1 == *nth {
        let me = rustix::process::getpid();
        let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
        // The signal arrives at once; should it not, nothing more may happen all the same.
        loop {
            std::thread::park();
        }
    }
}
