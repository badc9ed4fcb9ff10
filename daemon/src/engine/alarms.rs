//! Alarms: what a person should look at, from the moment it is found until it is over.
//!
//! Owned by the view, and changed through it by the engine's parts, which know what is wrong. An alarm is known by its
//! subject. It is *raised*, may be *acknowledged* by somebody who takes care of it, and is *cleared* by what raised it:
//! no person can clear one. All of it is in memory: after a start what is wrong is found again, and raised again, because
//! who acknowledged it did so before the restart.
//!
//! ```text
//!            acknowledge            clear
//!   raised -------------> acknowledged ----> cleared (kept for a day)
//!     ^  \_____________________|________________^
//!     |________________________|
//!        worse, or something else is wrong
//! ```

use std::collections::{BTreeMap, VecDeque};

use jiff::{SignedDuration, Timestamp};
use orlop_api::{Alarm, AlarmAcknowledged, AlarmSeverity, AlarmState, AlarmSubject, EventKind};

use super::action::{Outcome, Principal};
use super::core::Core;
use super::error::{Error, Result};
use super::events::{Events, Subject};
use super::view::View;

/// How many cleared alarms are kept, and for how long.
const CLEARED: usize = 128;
const CLEARED_FOR: SignedDuration = SignedDuration::from_hours(24);

/// See the module.
#[derive(Debug)]
pub(super) struct Alarms {
    active: BTreeMap<String, Alarm>,
    /// The newest last; one a subject.
    cleared: VecDeque<Alarm>,
    raised: BTreeMap<AlarmSeverity, u64>,
    events: Events,
}

impl Default for Alarms {
    fn default() -> Self {
        Self::new(Events::new(0))
    }
}

/// How bad it is, by what it is about; where that is not all, who raises it says.
fn severity_of(subject: &str) -> AlarmSeverity {
    match subject.split('/').next().unwrap_or_default() {
        // Fewer paths; a disk that says that it will fail; what is tried again; what is in the way of nobody; what counts at
        // the next start alone, or if the journal is lost as well; what is not reached yet.
        "portals" | "disk" | "operation" | "leftover" | "configuration" | "labels" | "limit" => {
            AlarmSeverity::Warning
        }
        // A pool, a volume, a host or a target that is not there, a key or a journal that is lost.
        _ => AlarmSeverity::Critical,
    }
}

impl Alarms {
    /// Tells `events`.
    pub(super) fn new(events: Events) -> Self {
        let raised = AlarmSeverity::ALL.map(|s| (s, 0)).into();
        Self { active: BTreeMap::new(), cleared: VecDeque::new(), raised, events }
    }

    /// Raises an alarm, or brings up to date what one says.
    pub(super) fn raise(&mut self, severity: Option<AlarmSeverity>, subject: String, detail: String) {
        let severity = severity.unwrap_or_else(|| severity_of(&subject));
        let news = match self.active.get_mut(&subject) {
            None => true,
            Some(old) => {
                let worse = severity > old.severity;
                let other = essence(&old.detail).ne(essence(&detail));
                let acknowledged = old.state == AlarmState::Acknowledged;
                if acknowledged && (worse || other) {
                    (old.state, old.acknowledged) = (AlarmState::Raised, None);
                }
                // It is as old as it was, whatever it says now.
                (old.severity, old.detail) = (severity, detail.clone());
                // Who has not looked yet finds the newest words; only that it got worse is news to him.
                worse || (acknowledged && other)
            }
        };
        if !news {
            return;
        }
        *self.raised.entry(severity).or_default() += 1;
        let words = format!("{}: {detail}", severity.as_str());
        self.active.entry(subject.clone()).or_insert_with(|| Alarm {
            subject: subject.clone(),
            severity,
            state: AlarmState::Raised,
            detail,
            since: Timestamp::now(),
            acknowledged: None,
            cleared: None,
        });
        self.tell(EventKind::AlarmRaised, &subject, &words);
    }

    /// It is over.
    pub(super) fn clear(&mut self, subject: &str) {
        let Some(alarm) = self.active.remove(subject) else { return };
        self.cleared.retain(|a| a.subject != subject);
        if self.cleared.len() == CLEARED {
            self.cleared.pop_front();
        }
        let now = Timestamp::now();
        self.cleared.push_back(Alarm { state: AlarmState::Cleared, cleared: Some(now), ..alarm });
        self.tell(EventKind::AlarmCleared, subject, "it is over");
    }

    /// Somebody takes care of it; who did so first is kept. `None`: there is no such alarm.
    pub(super) fn acknowledge(&mut self, subject: &str, by: &str) -> Option<Alarm> {
        let alarm = self.active.get_mut(subject)?;
        if alarm.state == AlarmState::Acknowledged {
            return Some(alarm.clone());
        }
        alarm.state = AlarmState::Acknowledged;
        alarm.acknowledged = Some(AlarmAcknowledged { by: by.to_owned(), at: Timestamp::now() });
        let shown = alarm.clone();
        self.tell(EventKind::AlarmAcknowledged, subject, &format!("by {by}"));
        Some(shown)
    }

    /// How bad it is, if it is not cleared.
    pub(super) fn severity(&self, subject: &str) -> Option<AlarmSeverity> {
        self.active.get(subject).map(|a| a.severity)
    }

    /// Those that are not cleared, by subject.
    pub(super) fn active(&self) -> impl Iterator<Item = &Alarm> {
        self.active.values()
    }

    /// All of them: first what is raised, then what is acknowledged, the worst and oldest first; then what is cleared, the
    /// newest first.
    pub(super) fn all(&self) -> Vec<Alarm> {
        let mut all: Vec<Alarm> = self.active.values().cloned().collect();
        all.sort_by(|a, b| {
            (a.state, b.severity, a.since, &a.subject).cmp(&(b.state, a.severity, b.since, &b.subject))
        });
        let now = Timestamp::now();
        let kept = |a: &&Alarm| a.cleared.is_some_and(|at| now.duration_since(at) < CLEARED_FOR);
        all.extend(self.cleared.iter().rev().filter(kept).cloned());
        all
    }

    /// How many were raised since the start, by how bad they were.
    pub(super) fn raised(&self) -> impl Iterator<Item = (AlarmSeverity, u64)> {
        self.raised.iter().map(|(s, n)| (*s, *n))
    }

    fn tell(&self, kind: EventKind, subject: &str, words: &str) {
        let mut parts = subject.split('/');
        let (of, name) = (parts.next(), parts.next());
        let mut about = Subject { detail: Some(format!("{subject}: {words}")), ..Subject::default() };
        match (of, name) {
            (Some("pool"), Some(name)) => about.pool = name.parse().ok(),
            (Some("volume"), Some(id)) => about.volume = id.parse().ok(),
            (Some("host"), Some(name)) => about.host = name.parse().ok(),
            _ => {}
        }
        self.events.publish(kind, about);
    }
}

impl View {
    /// What a person should look at: the alarms that are not cleared.
    pub fn alarms(&self) -> Vec<Alarm> {
        self.alarms.active().cloned().collect()
    }

    /// The same first to last, and those that were cleared lately.
    pub fn all_alarms(&self) -> Vec<Alarm> {
        self.alarms.all()
    }

    /// How many alarms were raised since the start.
    pub fn alarms_raised(&self) -> Vec<(AlarmSeverity, u64)> {
        self.alarms.raised().collect()
    }

    /// Raises an alarm that is as bad as its kind is.
    pub(super) fn raise(&mut self, subject: String, detail: String) {
        self.alarms.raise(None, subject, detail);
    }

    /// Raises an alarm that is as bad as is said.
    pub(super) fn raise_as(&mut self, severity: AlarmSeverity, subject: String, detail: String) {
        self.alarms.raise(Some(severity), subject, detail);
    }

    pub(super) fn clear(&mut self, subject: &str) {
        self.alarms.clear(subject);
    }

    pub(super) fn acknowledge(&mut self, subject: &str, by: &str) -> Option<Alarm> {
        self.alarms.acknowledge(subject, by)
    }
}

impl Core {
    /// Somebody takes care of an alarm.
    pub(super) fn acknowledge_alarm(&self, who: &Principal, subject: &AlarmSubject) -> Result<Outcome> {
        let known = self.view.write().acknowledge(subject.as_str(), &who.name);
        known.map(Outcome::Alarm).ok_or_else(|| Error::NotFound(format!("alarm {subject}")))
    }
}

/// Words without numbers and sizes: by these alone it is no other alarm.
fn essence(detail: &str) -> impl Iterator<Item = &str> {
    detail
        .split_whitespace()
        .map(|w| w.trim_matches([',', ';', ':', '.', '(', ')']))
        .filter(|w| !is_amount(w))
}

/// `7`, `85%`, `1.5GiB`, `GiB`.
fn is_amount(word: &str) -> bool {
    let unit = word.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    match unit {
        "" | "%" | "ms" | "s" => unit.len() < word.len(),
        "B" | "KiB" | "MiB" | "GiB" | "TiB" | "PiB" | "EiB" => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn alarms() -> (Alarms, Events, u64) {
        let events = Events::new(1);
        let newest = events.newest();
        (Alarms::new(events.clone()), events, newest)
    }

    fn told(events: &Events, since: u64) -> Vec<EventKind> {
        events.after(since, 100).into_iter().map(|e| e.kind).collect()
    }

    #[test]
    fn an_alarm_goes_from_raised_to_cleared_and_each_step_is_told_once() {
        let (mut alarms, events, start) = alarms();
        for percent in [85, 86] {
            alarms.raise(
                Some(AlarmSeverity::Warning),
                "pool/tank/space".into(),
                format!("{percent}% full; 1.5GiB left"),
            );
        }
        let since = alarms.active().next().unwrap().since;
        assert_eq!(alarms.active().next().unwrap().detail, "86% full; 1.5GiB left");
        assert!(alarms.acknowledge("pool/tank", "uid:0").is_none());
        let shown = alarms.acknowledge("pool/tank/space", "uid:0").unwrap();
        assert_eq!((shown.state, shown.acknowledged.unwrap().by), (AlarmState::Acknowledged, "uid:0".into()));
        // The second who does it changes nothing.
        assert_eq!(alarms.acknowledge("pool/tank/space", "uid:7").unwrap().acknowledged.unwrap().by, "uid:0");
        // Other numbers are no other alarm.
        alarms.raise(
            Some(AlarmSeverity::Warning),
            "pool/tank/space".into(),
            "87% full; 900 MiB left".replace(" M", "M"),
        );
        assert_eq!(alarms.active().next().unwrap().state, AlarmState::Acknowledged);
        alarms.clear("pool/tank/space");
        alarms.clear("pool/tank/space");
        assert_eq!(alarms.active().count(), 0);
        let kept = alarms.all();
        assert!(kept.len() == 1 && kept[0].state == AlarmState::Cleared && kept[0].cleared.unwrap() >= since);
        use EventKind::{AlarmAcknowledged, AlarmCleared, AlarmRaised};
        assert_eq!(told(&events, start), [AlarmRaised, AlarmAcknowledged, AlarmCleared]);
        assert_eq!(events.after(start, 1)[0].pool.as_ref().unwrap().as_str(), "tank");
    }

    #[test]
    fn what_gets_worse_or_is_something_else_is_raised_anew() {
        let (mut alarms, events, start) = alarms();
        let state = |alarms: &Alarms| alarms.active().next().unwrap().state;
        let raise = |alarms: &mut Alarms, severity, words: &str| {
            alarms.raise(Some(severity), "pool/tank/health".into(), words.into());
        };
        raise(&mut alarms, AlarmSeverity::Warning, "vdb is lost");
        let since = alarms.active().next().unwrap().since;
        // One that nobody has looked at just says what is.
        raise(&mut alarms, AlarmSeverity::Warning, "vdc is lost");
        alarms.acknowledge("pool/tank/health", "token:admin").unwrap();
        raise(&mut alarms, AlarmSeverity::Warning, "vdb and vdc are lost");
        assert_eq!(state(&alarms), AlarmState::Raised);
        alarms.acknowledge("pool/tank/health", "token:admin").unwrap();
        raise(&mut alarms, AlarmSeverity::Critical, "vdb and vdc are lost");
        assert_eq!(state(&alarms), AlarmState::Raised);
        assert_eq!(alarms.active().next().unwrap().since, since);
        // Better is no news.
        alarms.acknowledge("pool/tank/health", "token:admin").unwrap();
        raise(&mut alarms, AlarmSeverity::Warning, "vdb and vdc are lost");
        assert_eq!(state(&alarms), AlarmState::Acknowledged);
        alarms.clear("pool/tank/health");
        raise(&mut alarms, AlarmSeverity::Warning, "vdb and vdc are lost");
        assert_eq!(state(&alarms), AlarmState::Raised);
        let raised = told(&events, start).into_iter().filter(|k| *k == EventKind::AlarmRaised).count();
        assert_eq!(raised, 4);
        assert_eq!(
            alarms.raised().collect::<Vec<_>>(),
            [(AlarmSeverity::Warning, 3), (AlarmSeverity::Critical, 1)]
        );
    }

    #[test]
    fn cleared_ones_are_bounded_and_the_worst_comes_first() {
        let (mut alarms, ..) = alarms();
        for n in 0..CLEARED + 5 {
            alarms.raise(None, format!("disk/sd{n}/health"), "it says that it is failing".into());
            alarms.clear(&format!("disk/sd{n}/health"));
        }
        for subject in ["disk/sda/health", "volume/x", "journal"] {
            alarms.raise(None, subject.into(), "bad".into());
        }
        alarms.acknowledge("journal", "uid:0").unwrap();
        let all = alarms.all();
        assert_eq!(all.len(), 3 + CLEARED);
        let first: Vec<_> = all.iter().take(4).map(|a| a.subject.clone()).collect();
        assert_eq!(
            first,
            ["volume/x", "disk/sda/health", "journal", &format!("disk/sd{}/health", CLEARED + 4)]
        );
    }

    #[test]
    fn amounts_are_not_names() {
        for amount in ["7", "85%", "1.5GiB", "900", "MiB", "12.5", "30s"] {
            assert!(is_amount(amount), "{amount}");
        }
        for name in ["vdb", "nvme0n1", "%", "s", "sd1", "0x1f", "a7", "018f0000-0000"] {
            assert!(!is_amount(name), "{name}");
        }
    }
}
