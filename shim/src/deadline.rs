//! Until when a call is waited for.

use std::time::{Duration, Instant};

use tonic::Request;
use tonic::metadata::MetadataMap;

/// What a caller that says nothing is given: as long as the sidecars of Kubernetes wait unless they are told otherwise is
/// 15 s to 60 s.
const DEFAULT: Duration = Duration::from_secs(60);
/// What is kept of it for our own answer to arrive.
const MARGIN: Duration = Duration::from_millis(200);

/// The instant at which the caller gives up.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

/// That of a caller that says nothing, from now on.
impl Default for Deadline {
    fn default() -> Self {
        Self::after(DEFAULT.saturating_sub(MARGIN))
    }
}

impl Deadline {
    /// The one that a request carries (`grpc-timeout`).
    pub fn of(metadata: &MetadataMap) -> Self {
        Self::stated(metadata).unwrap_or_default()
    }

    /// The same. `None`: it carries none.
    pub fn stated(metadata: &MetadataMap) -> Option<Self> {
        let text = metadata.get("grpc-timeout").and_then(|v| v.to_str().ok());
        text.and_then(parse).map(|time| Self::after(time.saturating_sub(MARGIN)))
    }

    /// One after this time.
    pub fn after(time: Duration) -> Self {
        let now = Instant::now();
        Self(now.checked_add(time).unwrap_or(now + DEFAULT))
    }

    /// What is left of it.
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}

/// What a call asks, and how long it may take.
pub fn open<T>(request: Request<T>) -> (T, Deadline) {
    let deadline = Deadline::of(request.metadata());
    (request.into_inner(), deadline)
}

/// 1 to 8 digits and a unit (gRPC over HTTP/2, "Timeout").
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_read_as_grpc_writes_it() {
        for (text, want) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("15S", Some(Duration::from_secs(15))),
            ("250m", Some(Duration::from_millis(250))),
            ("99999999u", Some(Duration::from_micros(99_999_999))),
            ("999999999S", None),
            ("S", None),
            ("", None),
            ("-1S", None),
            ("1é", None),
            ("15", None),
        ] {
            assert_eq!(parse(text), want, "{text}");
        }
    }

    #[test]
    fn one_that_is_over_has_nothing_left() {
        assert_eq!(Deadline::after(Duration::ZERO).left(), Duration::ZERO);
        assert!(Deadline::after(Duration::MAX).left() <= DEFAULT);
        assert!(Deadline::of(&MetadataMap::new()).left() > Duration::from_secs(50));
    }
}
