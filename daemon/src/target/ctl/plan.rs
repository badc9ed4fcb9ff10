//! From what should be and what is to the changes in between. Pure.
//!
//! The file is written once for all volumes, and `ctld` takes away before it adds. Then each volume is verified by
//! itself: so the failure of one is its own. Two orders carry the security:
//!
//! - *A host leaves*: the file is written without it, and notes that its sessions are still to be ended; `ctld` reads it;
//!   the logins that began before have ended; all sessions of the target are ended; and only then is the note removed.
//!   Whoever is stopped in between finds the note.
//! - *Something is made anew* (a LUN's right to be written to is set for good when it is made, and NVMe associations
//!   can't be ended one by one): it is taken out of the file, the kernel has nothing of it any more, which waits for
//!   sessions and their I/O, and only then is it put in again.

use std::collections::{BTreeMap, BTreeSet};

use orlop_api::VolumeId;

use super::Kind;
use super::state::{Observed, Refusal, Seen, Step};
use crate::target::{Desired, Export, Scope};

/// Devices that more than one volume is to be made of.
fn shared_devices(desired: &Desired) -> BTreeSet<String> {
    let mut users: BTreeMap<String, usize> = BTreeMap::new();
    for export in desired.values() {
        *users.entry(device(export)).or_default() += 1;
    }
    users.into_iter().filter(|(_, n)| *n > 1).map(|(d, _)| d).collect()
}

fn device(export: &Export) -> String {
    export.backing.to_string_lossy().into_owned()
}

fn in_the_way(export: &Export, double: &BTreeSet<String>, seen: &Observed) -> Option<Refusal> {
    let object = device(export);
    let detail = match seen.foreign_devices.get(&object) {
        Some(who) => format!("{who} serves it as well"),
        None if double.contains(&object) => "it is the backing of more than one volume".into(),
        None => return None,
    };
    Some(Refusal::Foreign { object, detail })
}

/// Whom the rules of `ctld` leave out.
fn left_out(seen: &Seen) -> Option<Refusal> {
    if seen.admission.left_out.is_empty() {
        return None;
    }
    let all = seen.admission.left_out.iter().map(|(host, why)| format!("{host} {why}"));
    Some(Refusal::Unsupported(format!("this for each host: {}", all.collect::<Vec<_>>().join("; "))))
}

#[derive(Default)]
struct Plan {
    withdraw: BTreeMap<VolumeId, String>,
    gone_first: Vec<Step>,
    set: BTreeMap<VolumeId, Export>,
    fresh: BTreeSet<VolumeId>,
    drop: BTreeMap<VolumeId, String>,
    later: Vec<Step>,
    refused: Vec<Step>,
}

impl Plan {
    fn unwanted(&mut self, volume: VolumeId, seen: &Seen) {
        let name = seen.name.clone();
        if seen.entry.is_some() {
            self.drop.insert(volume, name.clone());
        }
        if seen.entry.is_some() || !seen.loaded || !seen.sessions.is_empty() {
            self.later.push(Step::Load { volume, name, export: None });
        }
    }

    fn wanted(&mut self, kind: Kind, volume: VolumeId, seen: &Seen, export: &Export, rewritten: bool) {
        let name = || seen.name.clone();
        let stays = &seen.admission.hosts;
        let others = seen.entry.as_ref().is_some_and(|e| e.lets_in_others(stays)) || seen.unsettled;
        let strangers = seen.sessions.iter().any(|s| !stays.contains(&s.host));
        let anew = seen.entry.as_ref().is_some_and(|e| {
            e.read_only != seen.admission.read_only || kind == Kind::Nvme && (others || strangers)
        });
        let stale = seen.entry.is_none() && (seen.lun.is_some() || !seen.ports.is_empty());
        if anew {
            self.withdraw.insert(volume, name());
        }
        if anew || stale {
            self.gone_first.push(Step::Load { volume, name: name(), export: None });
            self.fresh.insert(volume);
        }
        // What is not set is put back as it was written last.
        if rewritten || anew || !seen.right {
            self.set.insert(volume, export.clone());
        }
        if rewritten || anew || !seen.right || !seen.loaded {
            self.later.push(Step::Load { volume, name: name(), export: Some(Box::new(export.clone())) });
        }
        if kind == Kind::Nvme {
            return;
        }
        if others {
            self.later.push(Step::End { volume, name: name(), keep: None });
            self.later.push(Step::Settle { volume, name: name() });
        } else if strangers {
            self.later.push(Step::End { volume, name: name(), keep: Some(stays.clone()) });
        }
    }
}

/// See the module.
pub(super) fn plan(kind: Kind, scope: Scope, desired: &Desired, seen: &Observed) -> Vec<Step> {
    let refuse = |volume: VolumeId, s: &Seen, refusal| Step::Refuse { volume, name: s.name.clone(), refusal };
    if let Some(why) = &seen.foreign_file {
        let refusal = Refusal::Foreign { object: "the configuration of ctld".into(), detail: why.clone() };
        let concerned = seen.volumes.iter().filter(|(v, s)| desired.contains_key(*v) || !s.loaded);
        return concerned.map(|(v, s)| refuse(*v, s, refusal.clone())).collect();
    }
    let double = shared_devices(desired);
    let mut plan = Plan::default();
    let mut kept = BTreeMap::new();
    for (volume, s) in &seen.volumes {
        let asked = desired.get(volume);
        let conflict = asked.and_then(|e| in_the_way(e, &double, seen));
        let served = asked.is_some_and(|e| s.entry.as_ref().is_some_and(|x| x.path == device(e)));
        // What is served already is served on.
        let want = asked.filter(|_| conflict.is_none() || served);
        match want.filter(|_| !s.admission.hosts.is_empty()) {
            Some(export) => drop(kept.insert(*volume, export)),
            None => plan.unwanted(*volume, s),
        }
        if let Some(refusal) = conflict.or_else(|| asked.and_then(|_| left_out(s))) {
            plan.refused.push(refuse(*volume, s, refusal));
        }
    }
    for (volume, export) in kept {
        if let Some(s) = seen.volumes.get(&volume) {
            plan.wanted(kind, volume, s, export, !seen.frame_right);
        }
    }
    let Plan { withdraw, gone_first, set, fresh, drop, later, refused } = plan;
    let subject = scope.volume();
    let mut steps = Vec::new();
    if !withdraw.is_empty() {
        steps.push(Step::Write { subject, set: BTreeMap::new(), fresh: BTreeSet::new(), drop: withdraw });
    }
    steps.extend(gone_first);
    if !set.is_empty() || !drop.is_empty() || !seen.frame_right {
        steps.push(Step::Write { subject, set, fresh, drop });
    }
    // What goes comes first.
    let (gone, rest): (Vec<_>, Vec<_>) =
        later.into_iter().partition(|s| matches!(s, Step::Load { export: None, .. }));
    steps.extend(gone);
    steps.extend(rest);
    steps.extend(refused);
    steps
}

/// Steps that end accesses that the plan would not: of somebody who calls himself like a host that stays, and of a login
/// that is not a session yet.
pub(super) fn sever(kind: Kind, volume: VolumeId, seen: &Observed) -> Vec<Step> {
    let Some(s) = seen.volumes.get(&volume).filter(|_| seen.foreign_file.is_none()) else {
        return Vec::new();
    };
    let name = s.name.clone();
    let planned = s.admission.hosts.is_empty()
        || s.unsettled
        || s.entry.as_ref().is_none_or(|e| e.lets_in_others(&s.admission.hosts));
    match kind {
        // The plan ends all of them, or takes the whole target away.
        _ if planned => Vec::new(),
        Kind::Iscsi => vec![Step::End { volume, name, keep: None }],
        Kind::Nvme => vec![
            Step::Write {
                subject: Some(volume),
                set: BTreeMap::new(),
                fresh: BTreeSet::new(),
                drop: [(volume, name.clone())].into(),
            },
            Step::Load { volume, name, export: None },
        ],
    }
}
