//! How much of the daemon one principal may take: changes under way at a time, and requests a second. Who asks for more hears
//! `unavailable` at once and may try again; nobody else waits for it.
//!
//! Called at the door for changes, and by HTTP for every request. Pure bookkeeping, no I/O. Connections and lanes have bounds of
//! their own; these are for one that is let in.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Mutex, RwLock};

use super::error::{Error, Result};

/// What one principal may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Changes that may be under way, or wait, at a time.
    pub changes: usize,
    /// Requests a second, on the average over a second. `None`: as many as it likes.
    pub requests_per_second: Option<u32>,
}

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Quotas(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limits: RwLock<Limits>,
    taken: Mutex<HashMap<String, Taken>>,
}

/// What a principal has taken.
#[derive(Debug)]
struct Taken {
    changes: usize,
    /// Requests that it may still make at once: a token bucket that a second fills.
    requests: f64,
    filled: Instant,
}

/// Held while a change is under way.
#[derive(Debug)]
pub struct Change {
    quotas: Quotas,
    principal: String,
}

/// Principals that are remembered before those with nothing under way are forgotten. Names are those of tokens and
/// uids of the socket's group, so there are few.
const REMEMBERED: usize = 1024;

impl Quotas {
    /// Everyone may take that much.
    pub fn new(limits: Limits) -> Self {
        Self(Arc::new(Inner { limits: RwLock::new(limits), taken: Mutex::default() }))
    }

    /// Everyone may take that much from now on. What is under way beyond it goes on.
    pub fn set(&self, limits: Limits) {
        *self.0.limits.write() = limits;
    }

    fn limits(&self) -> Limits {
        *self.0.limits.read()
    }

    /// Counts a request, or says that it is one too many.
    pub fn request(&self, principal: &str) -> Result<()> {
        let Some(rate) = self.limits().requests_per_second else { return Ok(()) };
        let mut all = self.0.taken.lock();
        let taken = entry(&mut all, principal, rate);
        let now = Instant::now();
        let rate = f64::from(rate);
        let since = now.saturating_duration_since(taken.filled).as_secs_f64();
        taken.requests = (taken.requests + since * rate).min(rate);
        taken.filled = now;
        if taken.requests < 1.0 {
            return Err(Error::Unavailable(format!(
                "{principal} asks more than {rate} times a second: try again later"
            )));
        }
        taken.requests -= 1.0;
        Ok(())
    }

    /// Counts a change until what is given back is dropped, or says that it is one too many.
    pub fn change(&self, principal: &str) -> Result<Change> {
        let Limits { changes: most, requests_per_second: rate } = self.limits();
        let mut all = self.0.taken.lock();
        let taken = entry(&mut all, principal, rate.unwrap_or_default());
        if taken.changes >= most {
            return Err(Error::Unavailable(format!(
                "{principal} has {most} changes under way: try again when some of them have ended"
            )));
        }
        taken.changes += 1;
        Ok(Change { quotas: self.clone(), principal: principal.to_owned() })
    }
}

fn entry<'a>(all: &'a mut HashMap<String, Taken>, principal: &str, rate: u32) -> &'a mut Taken {
    if all.len() >= REMEMBERED && !all.contains_key(principal) {
        // A bucket that is forgotten is full the next time.
        all.retain(|_, taken| taken.changes > 0);
    }
    let full = || Taken { changes: 0, requests: f64::from(rate), filled: Instant::now() };
    all.entry(principal.to_owned()).or_insert_with(full)
}

impl Drop for Change {
    fn drop(&mut self) {
        if let Some(taken) = self.quotas.0.taken.lock().get_mut(&self.principal) {
            taken.changes -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn changes_count_for_each_until_they_end() {
        let quotas = Quotas::new(Limits { changes: 2, requests_per_second: None });
        let held: Vec<_> = (0..2).map(|_| quotas.change("a").unwrap()).collect();
        assert!(quotas.change("a").is_err());
        let other = quotas.change("b").unwrap();
        drop(held);
        assert!(quotas.change("a").is_ok() && quotas.request("a").is_ok());
        drop(other);
        assert!(quotas.0.taken.lock().values().all(|t| t.changes == 0));
    }

    #[test]
    fn requests_come_back_with_time() {
        let quotas = Quotas::new(Limits { changes: 1, requests_per_second: Some(50) });
        assert_eq!((0..200).filter(|_| quotas.request("a").is_ok()).count() / 10, 5);
        assert!(quotas.request("b").is_ok());
        quotas.0.taken.lock().get_mut("a").unwrap().filled -= std::time::Duration::from_millis(100);
        assert!((4..=8).contains(&(0..200).filter(|_| quotas.request("a").is_ok()).count()));
    }

    #[test]
    fn other_limits_count_from_the_next_one_on() {
        let quotas = Quotas::new(Limits { changes: 2, requests_per_second: None });
        let held: Vec<_> = (0..2).map(|_| quotas.change("a").unwrap()).collect();
        quotas.set(Limits { changes: 1, requests_per_second: Some(1) });
        assert!(quotas.change("a").is_err() && quotas.change("b").is_ok());
        drop(held);
        assert!(quotas.change("a").is_ok());
        assert!(quotas.request("c").is_ok() && quotas.request("c").is_err());
        quotas.set(Limits { changes: 1, requests_per_second: None });
        assert!(quotas.request("c").is_ok());
    }

    #[test]
    fn who_has_gone_is_forgotten() {
        let quotas = Quotas::new(Limits { changes: 1, requests_per_second: Some(1) });
        let _held = quotas.change("stays").unwrap();
        for n in 0..3 * REMEMBERED {
            let _ = quotas.request(&format!("p{n}"));
        }
        let all = quotas.0.taken.lock();
        assert!(all.len() <= REMEMBERED && all.contains_key("stays"), "{}", all.len());
    }
}
