//! The one convergence loop of all targets: observe, plan, apply, until there is nothing left to do.
//!
//! Called through [`Target`], by the engine, on the target's lane. Knows no protocol.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use orlop_api::{KeytabFile, Portal, TargetKind, VolumeId};

use super::foreign::Others;
use super::{Desired, Export, HostId, Protocol, Report, Result, Scope, Target, TargetError};
use crate::kernel::{Deadline, Overrun};
use crate::telemetry::spans;

/// Rounds after which a plan that is still not empty is an error. One builds, one verifies; two more
/// are for what the kernel completes a moment after it has answered.
const ROUNDS: usize = 4;

/// One call of `converge`.
struct Run<'a, P> {
    protocol: &'a P,
    scope: Scope,
    desired: &'a Desired,
    deadline: &'a Deadline,
    report: Report,
    /// Portals that could not be opened in this run.
    down: BTreeMap<String, TargetError>,
}

impl<P: Protocol> Run<'_, P> {
    /// Whether a step is still worth trying.
    fn open(&self, step: &P::Step) -> bool {
        let failed = self.protocol.subject(step).is_some_and(|v| self.report.failed.contains_key(&v));
        let down = self.protocol.portal(step).is_some_and(|p| self.down.contains_key(&p));
        !failed && !down
    }

    /// Books an error where it belongs: to the portal if that is what can't be had, else to the volume.
    fn book(&mut self, step: &P::Step, error: TargetError) {
        let portal = self.protocol.portal(step);
        match (self.protocol.subject(step), portal) {
            (Some(volume), None) => drop(self.report.failed.insert(volume, error)),
            (Some(_), Some(portal)) if matches!(error, TargetError::Portal { .. }) => {
                self.down.insert(portal, error);
            }
            (Some(volume), Some(_)) => drop(self.report.failed.insert(volume, error)),
            (None, portal) => drop(self.down.insert(portal.unwrap_or_default(), error)),
        }
    }

    /// Applies what is open of a plan. An overrun ends it: by then another thread may be at work.
    fn apply(&mut self, steps: &[P::Step]) -> std::result::Result<(), Overrun> {
        for step in steps {
            if !self.open(step) {
                continue;
            }
            self.deadline.check()?;
            let span = tracing::info_span!(target: spans::TARGET, "step", step = %step);
            match span.in_scope(|| self.protocol.apply(step, self.deadline)) {
                Ok(()) => self.report.steps.push(step.to_string()),
                Err(error) => self.book(step, error),
            }
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        let mut left = Vec::new();
        for _ in 0..ROUNDS {
            let observed = self.protocol.observe(self.scope, self.desired, self.deadline)?;
            left = self.protocol.plan(self.scope, self.desired, &observed);
            left.retain(|s| self.open(s));
            if left.is_empty() {
                return Ok(());
            }
            if let Err(overrun) = self.apply(&left) {
                for step in left.iter().filter(|s| self.protocol.subject(s).is_some()) {
                    if self.open(step) {
                        self.book(step, TargetError::Deadline(step.to_string(), overrun));
                    }
                }
                return Err(TargetError::Deadline("convergence".into(), overrun));
            }
        }
        left.retain(|s| self.open(s));
        let mut words: BTreeMap<(Option<VolumeId>, String), Vec<String>> = BTreeMap::new();
        for step in &left {
            let subject = self.protocol.subject(step);
            // What is about no volume is about a portal, and there may be no other.
            let portal = subject.map_or_else(|| self.protocol.portal(step), |_| None).unwrap_or_default();
            words.entry((subject, portal)).or_default().push(step.to_string());
        }
        for ((subject, portal), words) in words {
            let error = TargetError::Unsettled(words.join(", "));
            match subject {
                Some(volume) => drop(self.report.failed.insert(volume, error)),
                None => drop(self.down.insert(portal, error)),
            }
        }
        Ok(())
    }

    /// With no portal at all, what should be served is not.
    fn judge_portals(&mut self) {
        let only = self.scope.volume();
        for (volume, export) in self.desired.iter().filter(|(v, _)| only.is_none_or(|o| o == **v)) {
            let names = self.protocol.portal_names(export);
            if names.iter().all(|n| self.down.contains_key(n)) {
                let error = self.why_down(&names);
                self.report.failed.entry(*volume).or_insert(error);
            }
        }
        self.report.portals_down = std::mem::take(&mut self.down);
        self.report.portals_down.extend(self.protocol.portals_without_address());
    }

    /// The same error for each volume: `io::Error` can't be cloned, its number can.
    fn why_down(&self, names: &[String]) -> TargetError {
        let down = || names.iter().filter_map(|n| self.down.get(n));
        let lacks = down()
            .find_map(|e| if let TargetError::Unsupported(what) = e { Some(what.clone()) } else { None });
        if let Some(what) = lacks {
            return TargetError::Unsupported(what);
        }
        let number = down().find_map(|e| match e {
            TargetError::Portal { source, .. } | TargetError::Kernel { source, .. } => source.raw_os_error(),
            _ => None,
        });
        let source = number.map_or_else(|| io::ErrorKind::NotConnected.into(), io::Error::from_raw_os_error);
        TargetError::Portal { portal: names.join(", "), source }
    }

    fn finish(mut self, settled: Result<()>) -> Result<Report> {
        // What went wrong with the one volume says more than that there was no time for the rest.
        if let Some(error) = self.scope.volume().and_then(|v| self.report.failed.remove(&v)) {
            return Err(error);
        }
        settled?;
        self.judge_portals();
        match self.scope.volume().and_then(|v| self.report.failed.remove(&v)) {
            Some(error) => Err(error),
            None => Ok(self.report),
        }
    }
}

impl<P: Protocol> Target for P {
    fn converge(&self, scope: Scope, desired: &Desired, deadline: &Deadline) -> Result<Report> {
        let fence = matches!(scope, Scope::Fence(_));
        let scope = scope.volume().map_or(scope, Scope::Volume);
        let (report, down) = Default::default();
        let mut run = Run { protocol: self, scope, desired, deadline, report, down };
        if let (true, Some(volume)) = (fence, scope.volume()) {
            let observed = self.observe(scope, desired, deadline)?;
            let steps = self.sever(volume, desired, &observed);
            run.apply(&steps).map_err(|o| TargetError::Deadline(format!("fence of {volume}"), o))?;
            if !run.report.failed.is_empty() {
                return run.finish(Ok(()));
            }
        }
        let settled = run.settle();
        run.finish(settled)
    }

    fn drifted(&self, desired: &Desired, deadline: &Deadline) -> Result<BTreeSet<VolumeId>> {
        let observed = self.observe(Scope::All, desired, deadline)?;
        let plan = self.plan(Scope::All, desired, &observed);
        Ok(plan.iter().filter_map(|step| self.subject(step)).collect())
    }

    fn announce_size(&self, export: &Export, deadline: &Deadline) -> Result<()> {
        Protocol::announce_size(self, export, deadline)
    }

    fn prove(&self, host: &HostId, deadline: &Deadline) -> Result<()> {
        Protocol::prove(self, host, deadline)
    }

    fn has_readers(&self) -> bool {
        Protocol::has_readers(self)
    }

    fn can_kerberos(&self, deadline: &Deadline) -> Result<()> {
        Protocol::can_kerberos(self, deadline)
    }

    fn set_keytab(&self, keytab: Option<&KeytabFile>, deadline: &Deadline) -> Result<()> {
        Protocol::set_keytab(self, keytab, deadline)
    }

    fn served(&self, deadline: &Deadline) -> Result<BTreeSet<VolumeId>> {
        Protocol::served(self, deadline)
    }

    fn kind(&self) -> TargetKind {
        Protocol::kind(self)
    }

    fn sessions(&self, deadline: &Deadline) -> Result<Option<usize>> {
        Protocol::sessions(self, deadline)
    }

    fn foreign(&self, deadline: &Deadline) -> Result<Others> {
        Protocol::foreign(self, deadline)
    }

    fn listens(&self) -> Vec<(String, Portal)> {
        Protocol::listens(self)
    }

    fn portals(&self) -> Vec<Portal> {
        Protocol::portals(self)
    }
}
