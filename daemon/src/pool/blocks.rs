//! Which blocks of a snapshot have data, and which are not as in an older one.
//!
//! Called by pools, each of which knows it from its own metadata. What is told may be too much, never too little: who
//! copies no more than that has all of it.

use std::time::{Duration, Instant};

/// A run of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Of the first.
    pub offset: u64,
    /// How many.
    pub length: u64,
}

impl Extent {
    /// Of the first that is not of it.
    pub fn end(self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

/// Whether a pool goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum More {
    /// There is room for what lies behind.
    Wanted,
    /// It is enough for now, or all.
    Enough,
}

/// What is found of a range, from its start on: until there are so many, or for so long.
#[derive(Debug)]
pub struct Extents {
    found: Vec<Extent>,
    from: u64,
    /// All before it is told.
    at: u64,
    end: u64,
    most: usize,
    until: Instant,
    enough: bool,
}

impl Extents {
    /// Of the bytes `from` to `end` of a snapshot, at most `most`.
    pub fn new(from: u64, end: u64, most: usize, within: Duration) -> Self {
        let until = Instant::now() + within;
        let from = from.min(end);
        Self { found: Vec::new(), from, at: from, end, most, until, enough: from >= end || most == 0 }
    }

    /// Where to look, or to look on.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Where nothing is looked for any more.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Whether there is no need to look on.
    pub fn is_enough(&self) -> bool {
        self.enough
    }

    /// Adds what lies behind all before, joined to it where they touch.
    pub fn add(&mut self, offset: u64, length: u64) -> More {
        let (start, end) = (offset.max(self.at), offset.saturating_add(length).min(self.end));
        if self.enough || start >= end {
            return self.pass(offset);
        }
        let full = self.found.len() == self.most;
        match self.found.last_mut() {
            Some(last) if last.end() == start => last.length += end - start,
            _ if full => {
                self.at = start;
                self.enough = true;
                return More::Enough;
            }
            _ => self.found.push(Extent { offset: start, length: end - start }),
        }
        self.pass(end)
    }

    /// There is nothing more before this.
    pub fn pass(&mut self, to: u64) -> More {
        if !self.enough {
            self.at = self.at.max(to.min(self.end));
            // However slow it is, something is told: who asks for what is behind it asks for something else.
            self.enough = self.at == self.end || self.at > self.from && Instant::now() >= self.until;
        }
        if self.enough { More::Enough } else { More::Wanted }
    }

    /// There is nothing more at all.
    pub fn finish(&mut self) {
        if !self.enough {
            (self.at, self.enough) = (self.end, true);
        }
    }

    /// What was found, and where to look on if that is not all.
    pub fn into_parts(self) -> (Vec<Extent>, Option<u64>) {
        (self.found, (self.at < self.end).then_some(self.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    fn pairs(extents: Extents) -> (Vec<(u64, u64)>, Option<u64>) {
        let (found, next) = extents.into_parts();
        (found.into_iter().map(|e| (e.offset, e.length)).collect(), next)
    }

    #[test]
    fn what_touches_is_joined_and_the_range_is_kept() {
        let mut e = Extents::new(10, 100, 8, LONG);
        assert_eq!(e.add(0, 10), More::Wanted, "before the range");
        assert_eq!(e.add(5, 15), More::Wanted);
        assert_eq!(e.add(20, 10), More::Wanted);
        assert_eq!(e.add(40, 10), More::Wanted);
        assert_eq!(e.add(45, 10), More::Wanted, "one that overlaps");
        assert_eq!(e.add(90, u64::MAX), More::Enough);
        assert_eq!(pairs(e), (vec![(10, 20), (40, 15), (90, 10)], None));
    }

    #[test]
    fn one_too_many_is_where_to_look_on() {
        let mut e = Extents::new(0, 100, 2, LONG);
        assert_eq!(e.add(0, 10), More::Wanted);
        assert_eq!(e.add(20, 10), More::Wanted);
        assert_eq!(e.add(30, 5), More::Wanted, "it touches the last one");
        assert_eq!(e.add(50, 10), More::Enough);
        assert_eq!(e.add(60, 10), More::Enough);
        e.finish();
        assert_eq!(pairs(e), (vec![(0, 10), (20, 15)], Some(50)));
    }

    #[test]
    fn time_is_kept_where_nothing_is_found_too() {
        let mut e = Extents::new(0, 100, 2, Duration::ZERO);
        assert_eq!(e.pass(30), More::Enough);
        assert_eq!(pairs(e), (vec![], Some(30)));
        let mut e = Extents::new(0, 100, 2, Duration::ZERO);
        assert_eq!(e.pass(0), More::Wanted, "nothing is told yet");
        assert_eq!(e.add(0, 10), More::Enough);
        assert_eq!(pairs(e), (vec![(0, 10)], Some(10)));
    }

    #[test]
    fn an_end_is_an_end() {
        let mut e = Extents::new(0, 100, 2, LONG);
        let _ = e.add(0, 10);
        e.finish();
        assert_eq!(pairs(e), (vec![(0, 10)], None));
        let e = Extents::new(100, 100, 2, LONG);
        assert!(e.is_enough());
        assert_eq!(pairs(e), (vec![], None));
    }
}
