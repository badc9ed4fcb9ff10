//! Alarms: one a line, the words last, because they are long.

use orlop_api::{Alarm, AlarmState};

use super::list;

const ALARM: [&str; 6] = ["SUBJECT", "SEVERITY", "STATE", "SINCE", "BY", "WHAT IS WRONG"];

/// All of them.
pub fn all(alarms: &[Alarm]) -> String {
    if alarms.is_empty() {
        return "no alarms\n".into();
    }
    list(ALARM, alarms.iter().map(row))
}

fn row(a: &Alarm) -> [String; 6] {
    let state = match (a.state, &a.cleared) {
        (AlarmState::Cleared, Some(at)) => format!("cleared {}", seconds(*at)),
        (state, _) => state.as_str().to_owned(),
    };
    let by = a.acknowledged.as_ref().map_or("-", |who| who.by.as_str());
    [a.subject.clone(), a.severity.as_str().into(), state, seconds(a.since), by.into(), a.detail.clone()]
}

fn seconds(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The same in one line of the appliance's.
pub fn short(a: &Alarm) -> String {
    let by = a.acknowledged.as_ref().map(|who| format!(", acknowledged by {}", who.by)).unwrap_or_default();
    format!("{}: {} ({}, since {}{by})", a.subject, a.detail, a.severity.as_str(), a.since)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use orlop_api::{AlarmAcknowledged, AlarmSeverity};

    #[test]
    fn a_line_says_who_and_since_when_and_the_words_last() {
        let at = |text: &str| text.parse::<jiff::Timestamp>().unwrap();
        let alarm = Alarm {
            subject: "pool/tank/health".into(),
            severity: AlarmSeverity::Warning,
            state: AlarmState::Acknowledged,
            detail: "it is degraded\u{1b}[31m".into(),
            since: at("2026-11-01T10:00:00.123Z"),
            acknowledged: Some(AlarmAcknowledged { by: "uid:0".into(), at: at("2026-11-01T10:05:00Z") }),
            cleared: None,
        };
        let cleared = Alarm {
            state: AlarmState::Cleared,
            cleared: Some(at("2026-11-01T11:00:00Z")),
            acknowledged: None,
            ..alarm.clone()
        };
        let text = all(&[alarm.clone(), cleared]);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[1].starts_with("pool/tank/health  warning   acknowledged "), "{text}");
        assert!(lines[1].contains("2026-11-01T10:00:00Z  uid:0  it is degraded\u{fffd}"), "{text}");
        assert!(lines[2].contains("cleared 2026-11-01T11:00:00Z") && lines[2].contains("  -  "), "{text}");
        assert!(short(&alarm).ends_with("(warning, since 2026-11-01T10:00:00.123Z, acknowledged by uid:0)"));
        assert_eq!(all(&[]), "no alarms\n");
    }
}
