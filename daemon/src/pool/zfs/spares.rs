//! When a spare takes the place of a lost disk, and when it steps back.
//!
//! Called by [`super::status`], with what the zpool says. Pure: what is to be done follows from that and from how
//! long a disk has been lost. ZFS leaves both to a daemon of its own (zed), which does not run here: there is one
//! that decides. What follows an operator's `replace` ZFS does itself: the spare steps back when the new disk is
//! rebuilt.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::status::{Vdev, Zpool};

/// How long a disk must have been lost: one that comes back at once, as after a bump or a reset of its bus, must
/// not cost a rebuild. And how long one that is back must have been well, with nothing being rebuilt: that it has
/// to catch up shows some transaction groups after it was brought online, and until it has caught up its spare is
/// the only whole copy.
const GRACE: Duration = Duration::from_secs(30);

/// How long until a spare that ZFS did not take (too small, of another draid) is tried there again.
const AGAIN: Duration = Duration::from_secs(600);

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// A spare takes the place of a lost disk.
    TakePlace {
        /// The disk's number.
        lost: u64,
        /// Where it was.
        was: String,
        /// The spare's path, or of one that is spread over all disks its name.
        spare: String,
    },
    /// The disk is back and has all that it should: its spare is free again.
    StepBack {
        /// The spare's number.
        spare: u64,
        /// Its path.
        path: String,
    },
}

/// What is remembered from look to look.
#[derive(Debug, Default)]
pub(super) struct Watch {
    lost: HashMap<u64, Instant>,
    /// Spares in the place of a disk that is well, and since when nothing has been rebuilt beside that.
    idle: HashMap<u64, Instant>,
    refused: HashMap<(u64, String), Instant>,
}

impl Watch {
    /// What is to be done now: at most one thing, and the next when that shows.
    pub fn next(&mut self, zpool: &Zpool, now: Instant) -> Option<Step> {
        let lost = lost(zpool);
        self.lost.retain(|guid, _| lost.iter().any(|v| v.guid == *guid));
        for v in &lost {
            self.lost.entry(v.guid).or_insert(now);
        }
        // While anything is rebuilt nothing is taken away: what is rebuilt may need it.
        let idle = if zpool.is_rebuilding() { Vec::new() } else { idle(zpool) };
        self.idle.retain(|guid, _| idle.iter().any(|v| v.guid == *guid));
        for v in &idle {
            self.idle.entry(v.guid).or_insert(now);
        }
        let since = |at: &Instant| now.saturating_duration_since(*at);
        self.refused.retain(|_, at| since(at) < AGAIN);
        let for_long = |v: &&&Vdev| self.lost.get(&v.guid).is_some_and(|at| since(at) >= GRACE);
        let refused =
            |lost: &Vdev, spare: &Vdev| self.refused.contains_key(&(lost.guid, spare.place().to_string()));
        let long_idle = |v: &&Vdev| self.idle.get(&v.guid).is_some_and(|at| since(at) >= GRACE);
        let back = idle.into_iter().filter(long_idle).find(|v| !refused(v, v));
        decide(zpool, lost.iter().filter(for_long).copied(), refused, back)
    }

    /// ZFS did not do it.
    pub fn refused(&mut self, step: Step, now: Instant) {
        let key = match step {
            Step::TakePlace { lost, spare, .. } => (lost, spare),
            Step::StepBack { spare, path } => (spare, path),
        };
        self.refused.insert(key, now);
    }
}

fn decide<'a>(
    zpool: &Zpool,
    mut lost: impl Iterator<Item = &'a Vdev>,
    refused: impl Fn(&Vdev, &Vdev) -> bool,
    back: Option<&Vdev>,
) -> Option<Step> {
    // A pool that takes no writes takes no spare either.
    if !["ONLINE", "DEGRADED"].contains(&zpool.state.as_str()) {
        return None;
    }
    let spares = zpool.spares();
    let free = |v: &&&Vdev| v.state == "AVAIL";
    let take = lost.find_map(|v| {
        let spare = spares.iter().filter(free).find(|s| !refused(v, s))?;
        let (was, spare) = (v.place().to_string(), spare.place().to_string());
        Some(Step::TakePlace { lost: v.guid, was, spare })
    });
    take.or_else(|| back.map(|v| Step::StepBack { spare: v.guid, path: v.place().to_string() }))
}

/// Spares that are in the place of a disk which looks as if it needed them no more.
fn idle(zpool: &Zpool) -> Vec<&Vdev> {
    // One that is being replaced by its operator has parts of its own: ZFS ends that.
    let well = |v: &Vdev| v.vdevs.is_empty() && v.state == "ONLINE" && v.errors() == 0;
    let idle = |disk: &Vdev, spare: &Vdev| well(disk) && spare.state == "ONLINE" && spare.guid != 0;
    stand_ins(zpool).into_iter().filter(|(disk, spare)| idle(disk, spare)).map(|(_, spare)| spare).collect()
}

/// Disks with the spares that are in their place.
pub(super) fn stand_ins(zpool: &Zpool) -> Vec<(&Vdev, &Vdev)> {
    let spares = zpool.spares();
    let is_spare = |v: &Vdev| {
        spares.iter().any(|s| (s.guid != 0 && s.guid == v.guid) || (s.guid == 0 && s.place() == v.place()))
    };
    let mut found = Vec::new();
    each(zpool, &mut |v, _| {
        if v.vdev_type == "spare" {
            let children = v.children();
            let disk = children.iter().find(|c| !is_spare(c));
            let spare = children.iter().find(|c| is_spare(c));
            if let (Some(disk), Some(spare)) = (disk, spare) {
                found.push((*disk, *spare));
            }
        }
    });
    found
}

/// Disks that are lost, and that nothing takes the place of yet. A pool that has no redundancy has nothing to
/// rebuild from.
fn lost(zpool: &Zpool) -> Vec<&Vdev> {
    let mut found = Vec::new();
    each(zpool, &mut |v, parent| {
        let redundant = ["mirror", "raidz", "draid"].contains(&parent);
        let gone = ["UNAVAIL", "REMOVED", "FAULTED"].contains(&v.state.as_str());
        if v.vdevs.is_empty() && redundant && gone && v.guid != 0 {
            found.push(v);
        }
    });
    found
}

/// All parts, each with the kind of the one above it, in an order that does not change.
fn each<'a>(zpool: &'a Zpool, f: &mut impl FnMut(&'a Vdev, &'a str)) {
    fn walk<'a>(v: &'a Vdev, parent: &'a str, f: &mut impl FnMut(&'a Vdev, &'a str)) {
        f(v, parent);
        for child in v.children() {
            walk(child, &v.vdev_type, f);
        }
    }
    for v in zpool.parts() {
        walk(v, "", f);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::status::tests::zpool;
    use super::*;

    const HEALTHY: &str = include_str!("status-spare.json");
    const IN_USE: &str = include_str!("status-spare-inuse.json");

    fn after(watch: &mut Watch, zpool: &Zpool, seconds: u64, start: Instant) -> Option<Step> {
        watch.next(zpool, start + Duration::from_secs(seconds))
    }

    fn lose(text: &str, guid: u64, state: &str) -> String {
        let old = format!(r#""guid":{guid},"state":"ONLINE""#);
        assert!(text.contains(&old), "{text}");
        text.replace(&old, &format!(r#""guid":{guid},"state":"{state}""#)).replacen(
            r#""name":"safe","state":"ONLINE""#,
            r#""name":"safe","state":"DEGRADED""#,
            1,
        )
    }

    #[test]
    fn a_lost_disk_gets_a_spare_after_a_while_and_once() {
        let start = Instant::now();
        for state in ["UNAVAIL", "CANT_OPEN", "REMOVED", "FAULTED"] {
            let mut watch = Watch::default();
            let (well, bad) = (zpool(HEALTHY), zpool(&lose(HEALTHY, 12, state)));
            assert_eq!(after(&mut watch, &well, 0, start), None);
            assert_eq!(after(&mut watch, &bad, 1, start), None);
            assert_eq!(after(&mut watch, &bad, 30, start), None);
            // Back for a moment: it counts from the start.
            assert_eq!(after(&mut watch, &well, 31, start), None);
            assert_eq!(after(&mut watch, &bad, 32, start), None);
            assert_eq!(after(&mut watch, &bad, 61, start), None);
            let step = after(&mut watch, &bad, 62, start).unwrap();
            let (was, spare) = ("/dev/vdc1".to_string(), "/dev/vde1".to_string());
            assert_eq!(step, Step::TakePlace { lost: 12, was, spare }, "{state}");
            // It has its place: nothing more, however long.
            let taken = zpool(IN_USE);
            assert_eq!(after(&mut watch, &taken, 63, start), None);
            assert_eq!(after(&mut watch, &taken, 6300, start), None);
        }
        // What its operator took out is not lost.
        let mut watch = Watch::default();
        let offline = zpool(&lose(HEALTHY, 12, "OFFLINE"));
        assert_eq!(after(&mut watch, &offline, 0, start), None);
        assert_eq!(after(&mut watch, &offline, 99, start), None);
    }

    #[test]
    fn a_spare_that_is_refused_is_not_tried_again_and_again() {
        let start = Instant::now();
        let mut watch = Watch::default();
        let bad = zpool(&lose(HEALTHY, 12, "REMOVED"));
        after(&mut watch, &bad, 0, start);
        let Some(Step::TakePlace { spare, .. }) = after(&mut watch, &bad, 40, start) else { panic!() };
        let take = |spare: &str| Step::TakePlace { lost: 12, was: String::new(), spare: spare.into() };
        watch.refused(take(&spare), start + Duration::from_secs(40));
        let Some(Step::TakePlace { spare: other, .. }) = after(&mut watch, &bad, 41, start) else { panic!() };
        assert_eq!((spare.as_str(), other.as_str()), ("/dev/vde1", "/dev/vdf1"));
        watch.refused(take(&other), start + Duration::from_secs(41));
        assert_eq!(after(&mut watch, &bad, 639, start), None);
        assert!(after(&mut watch, &bad, 640, start).is_some());
    }

    #[test]
    fn nothing_is_done_where_nothing_can_be() {
        let start = Instant::now();
        let bad = lose(HEALTHY, 12, "REMOVED");
        let no_spare = bad.replace(r#""state":"AVAIL""#, r#""state":"UNAVAIL""#);
        let suspended = bad.replacen(r#""state":"DEGRADED""#, r#""state":"SUSPENDED""#, 1);
        let stripe = bad.replace(r#""vdev_type":"raidz""#, r#""vdev_type":"root""#);
        let replaced = bad.replace(r#""vdev_type":"raidz""#, r#""vdev_type":"replacing""#);
        for text in [no_spare, suspended, stripe, replaced] {
            let mut watch = Watch::default();
            after(&mut watch, &zpool(&text), 0, start);
            assert_eq!(after(&mut watch, &zpool(&text), 99, start), None, "{text}");
        }
    }

    #[test]
    fn a_spare_steps_back_when_its_disk_is_well_again() {
        let start = Instant::now();
        let next = |text: &str| {
            let mut watch = Watch::default();
            assert_eq!(after(&mut watch, &zpool(text), 0, start), None, "at once");
            after(&mut watch, &zpool(text), 30, start)
        };
        assert_eq!(next(IN_USE), None, "the disk is still lost");
        let back = IN_USE.replace(r#""guid":12,"state":"REMOVED""#, r#""guid":12,"state":"ONLINE""#);
        assert_ne!(back, IN_USE);
        let step = Step::StepBack { spare: 21, path: "/dev/vde1".into() };
        assert_eq!(next(&back), Some(step.clone()));
        // Not while it catches up, has errors, or is being replaced.
        let scan = r#""scan_stats":{"function":"RESILVER","state":"SCANNING"},"vdevs""#;
        let catches_up = back.replacen(r#""vdevs""#, scan, 1);
        assert_eq!(next(&catches_up), None);
        // That it has to catch up shows a moment after it is online, and then it counts from the end of that.
        let mut watch = Watch::default();
        let seen = [(&back, 0), (&catches_up, 5), (&catches_up, 300), (&back, 310), (&back, 339)];
        for (text, at) in seen {
            assert_eq!(after(&mut watch, &zpool(text), at, start), None, "after {at} s");
        }
        assert_eq!(after(&mut watch, &zpool(&back), 340, start), Some(step.clone()));
        watch.refused(step, start + Duration::from_secs(340));
        assert_eq!(after(&mut watch, &zpool(&back), 370, start), None, "ZFS did not let it go");
        let errors = r#""guid":12,"state":"ONLINE","read_errors":0,"write_errors":0,"checksum_errors":4"#;
        let none = r#""guid":12,"state":"ONLINE","read_errors":0,"write_errors":0,"checksum_errors":0"#;
        assert!(back.contains(none));
        assert_eq!(next(&back.replace(none, errors)), None);
        assert_eq!(
            next(&back.replace(r#""guid":12,"state":"ONLINE""#, r#""guid":12,"state":"OFFLINE""#)),
            None
        );
    }

    #[test]
    fn health_says_who_stands_in() {
        let health = zpool(IN_USE).health(&[]);
        let reason = health.reason.unwrap();
        assert!(reason.contains("the place of disk /dev/vdc1 is taken by spare /dev/vde1"), "{reason}");
        assert_eq!(health.state, orlop_api::PoolHealthState::Degraded);
    }
}
