//! Targets: one a line, then what is wrong with portals, then what is in them of others.

use orlop_api::{ForeignKind, Target, TargetKind, TargetPortal, TargetState, Transport};

use super::{clean, list, or_dash};

const TARGET: [&str; 7] = ["PROTOCOL", "TARGET", "STATE", "PORTALS", "VOLUMES", "FOREIGN", "WHY"];
const FOREIGN: [&str; 4] = ["PROTOCOL", "FOREIGN", "NAME", "DEVICES"];

/// All of them.
pub fn all(targets: &[Target]) -> String {
    let mut text = list(TARGET, targets.iter().map(row));
    for target in targets {
        for portal in &target.portals {
            if let Some(why) = &portal.down {
                text += &format!("portal {} is down: {}\n", plain(portal), clean(why));
            }
        }
    }
    let foreign: Vec<[String; 4]> = targets.iter().flat_map(foreign).collect();
    if !foreign.is_empty() {
        text += "\n";
        text += &list(FOREIGN, foreign.into_iter());
    }
    for target in targets.iter().filter(|t| t.more_foreign > 0) {
        let (more, protocol) = (target.more_foreign, target.protocol.as_str());
        text += &format!("{protocol}: {more} more are not listed\n");
    }
    text
}

fn row(t: &Target) -> [String; 7] {
    let kind = match t.kind {
        TargetKind::Nvmet => "nvmet",
        TargetKind::Lio => "lio",
        TargetKind::Knfsd => "knfsd",
        TargetKind::Ctl => "ctl",
    };
    let state = match t.state {
        TargetState::Available => "available",
        TargetState::LeftOut => "left out",
        TargetState::Absent => "absent",
        TargetState::Unreadable => "unreadable",
    };
    let up: Vec<String> = t.portals.iter().map(at).collect();
    // Nothing is not none where it could not be read.
    let known = !matches!(t.state, TargetState::Unreadable);
    let count = |n: u64| if known { n.to_string() } else { "?".into() };
    [
        t.protocol.as_str().into(),
        kind.into(),
        state.into(),
        or_dash((!up.is_empty()).then(|| up.join(" ")).as_deref()),
        count(t.volumes),
        count(u64::try_from(t.foreign.len()).unwrap_or(u64::MAX).saturating_add(t.more_foreign)),
        or_dash(t.reason.as_deref()),
    ]
}

/// Marked, if it is down.
fn at(portal: &TargetPortal) -> String {
    let down = if portal.down.is_some() { "!" } else { "" };
    plain(portal) + down
}

fn plain(TargetPortal { at, .. }: &TargetPortal) -> String {
    let (address, port) = (&at.address, at.port);
    let shown =
        if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") };
    let transport = if at.transport == Transport::Rdma { "/rdma" } else { "" };
    shown + transport + if at.tls { "/tls" } else { "" }
}

fn foreign(t: &Target) -> impl Iterator<Item = [String; 4]> {
    t.foreign.iter().map(|f| {
        let kind = match f.kind {
            ForeignKind::Subsystem => "subsystem",
            ForeignKind::Port => "port",
            ForeignKind::Target => "target",
            ForeignKind::Backstore => "backstore",
            ForeignKind::Export => "export",
        };
        let mut devices = f.devices.join(" ");
        if f.more_devices > 0 {
            devices += &format!(" and {} more", f.more_devices);
        }
        let devices = or_dash((!devices.is_empty()).then_some(&*devices));
        [t.protocol.as_str().into(), kind.into(), f.name.clone(), devices]
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::render::{Answer, Format, answer};

    #[test]
    fn targets_tell_what_is_down_and_what_is_foreign() {
        let targets = serde_json::json!([
            {
                "protocol": "nvme", "kind": "nvmet", "state": "available", "volumes": 2, "more_foreign": 3,
                "portals": [{"address": "10.0.0.1", "port": 4420}, {"address": "fd00::1", "port": 4420, "tls": true, "down": "in use"}],
                "foreign": [{"kind": "subsystem", "name": "nqn.th\u{1b}eirs", "devices": ["/dev/a"], "more_devices": 4}],
            },
            {
                "protocol": "iscsi", "kind": "lio", "state": "unreadable", "reason": "it took too long", "volumes": 0,
                "portals": [], "foreign": [],
            },
        ]);
        let targets: Vec<Target> = serde_json::from_value(targets).unwrap();
        let text = answer(&Answer::Targets(targets.clone()), Format::Table);
        let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(
            lines[1],
            ["nvme", "nvmet", "available", "10.0.0.1:4420", "[fd00::1]:4420/tls!", "2", "4", "-"]
        );
        assert_eq!(lines[2][..6], ["iscsi", "lio", "unreadable", "-", "?", "?"]);
        assert!(text.contains("portal [fd00::1]:4420/tls is down: in use"), "{text}");
        let foreign = ["nvme", "subsystem", "nqn.th\u{fffd}eirs", "/dev/a", "and", "4", "more"];
        assert!(lines.iter().any(|l| *l == foreign), "{text}");
        assert!(text.ends_with("nvme: 3 more are not listed\n"), "{text}");
        // Programs are told the same.
        let json = answer(&Answer::Targets(targets), Format::Json);
        assert!(json.contains("\"more_foreign\": 3") && json.contains("\"down\": \"in use\""), "{json}");
    }
}
