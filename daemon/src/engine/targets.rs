//! The kernel's targets, each with its lane, and how volumes are served by them: the desired state is made here, and
//! nowhere else is a target told to converge.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use orlop_api::{HostName, Portal, Protocol, Squash, VolumeId, VolumeKind};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::core::{Core, Outcome, SLOW, answer, run};
use super::error::{Error, Result};
use super::lane::Lane;
use crate::kernel::Deadline;
use crate::model::{Grant, HostRecord, ZoneRules};
use crate::pool::Place;
use crate::target::{Desired, Export, HostId, Report, Rights, Scope, Target, TargetError};

/// The kernel's targets, or simulated ones, by the protocol that they serve.
pub type Targets = BTreeMap<Protocol, Offer>;

/// A target, and whether anything is to be served by it. One by which nothing is converges all the same: what was served by
/// it before goes.
#[derive(Clone)]
pub struct Offer {
    /// The target.
    pub target: Arc<dyn Target>,
    /// Whether the configuration wants it.
    pub offered: bool,
}

/// A target with its lane: one thread, so one writer, and what one protocol waits for is no other's trouble.
pub(super) struct Server {
    pub(super) target: Arc<dyn Target>,
    pub(super) offered: bool,
    pub(super) lane: Lane,
    /// Portals that could not be opened when it last converged, and why.
    pub(super) down: Mutex<BTreeMap<String, String>>,
}

/// Gives the targets their lanes.
pub(super) fn start(targets: &Targets, depth: usize) -> Result<BTreeMap<Protocol, Server>> {
    let mut servers = BTreeMap::new();
    for (protocol, Offer { target, offered }) in targets {
        let name = format!("target {}", protocol.as_str());
        let lane = Lane::start(&name, 1, depth, Some(SLOW));
        let lane = lane.map_err(|e| Error::Unavailable(format!("no threads for lane {name}: {e}")))?;
        let (target, offered, down) = (target.clone(), *offered, Mutex::default());
        servers.insert(*protocol, Server { target, offered, lane, down });
    }
    Ok(servers)
}

impl Server {
    /// For the watchdog.
    pub(super) fn is_alive(&self) -> bool {
        self.lane.is_alive()
    }
}

/// What a host is to a protocol, and what it may do with a volume.
fn hosts_of(record: &HostRecord, grant: Grant, protocol: Protocol) -> Vec<(HostId, Rights)> {
    // Who is attached as a host is trusted with its users' names, root's too; a zone has rules.
    let zone = record.zone.unwrap_or(ZoneRules { squash: Squash::None, ..ZoneRules::default() });
    let tls = protocol == Protocol::Nvme && record.tls.is_some();
    let read_only = grant.read_only || zone.read_only;
    let rights = Rights { read_only, squash: zone.squash, security: zone.security, tls };
    let ids: Vec<HostId> = match protocol {
        // Whatever else is written of it.
        Protocol::Nvme | Protocol::Iscsi if record.zone.is_some() => Vec::new(),
        Protocol::Nvme => record.nqn.clone().map(HostId::Nqn).into_iter().collect(),
        Protocol::Iscsi => record.iqn.clone().map(HostId::Iqn).into_iter().collect(),
        Protocol::Nfs => record.networks.iter().copied().map(HostId::Network).collect(),
    };
    ids.into_iter().map(|id| (id, rights)).collect()
}

impl Core {
    pub(super) fn server(&self, protocol: Protocol) -> Result<&Server> {
        self.targets.get(&protocol).ok_or_else(|| not_served(protocol))
    }

    /// Refuses what nothing here serves.
    pub(super) fn check_served(&self, protocol: Protocol) -> Result<()> {
        if self.server(protocol)?.offered { Ok(()) } else { Err(not_served(protocol)) }
    }

    /// Refuses an NVMe host for which no portal is configured: with TLS, or without.
    pub(super) fn check_portal(&self, host: &HostName, record: &HostRecord) -> Result<()> {
        let tls = record.tls.is_some();
        if self.server(Protocol::Nvme)?.target.listens().iter().any(|(_, at)| at.tls == tls) {
            return Ok(());
        }
        let which = if tls { "with TLS, for which it has a key" } else { "without TLS, and it has no key" };
        Err(Error::Unsupported(format!("host {host}: the configuration has no portal {which}")))
    }

    /// Where hosts reach what is served by a protocol.
    pub(super) fn portals(&self, protocol: Protocol) -> Vec<Portal> {
        self.targets.get(&protocol).map(|s| s.target.portals()).unwrap_or_default()
    }

    /// The protocols by which a volume may be served: one, and all of one that is not there any more.
    fn protocols_of(&self, id: VolumeId) -> Vec<Protocol> {
        match self.view.read().entry(id) {
            Some(entry) => vec![entry.label.protocol()],
            None => self.targets.keys().copied().collect(),
        }
    }

    /// Until when a target may be at work for one volume. The first that is served by NFS starts services, which on a busy
    /// machine takes its time; nothing but NFS waits for it.
    fn target_until(&self, protocol: Protocol) -> Instant {
        let services = if protocol == Protocol::Nfs { 3 } else { 1 };
        Instant::now() + self.settings.target_deadline * services
    }

    /// Brings a kernel target to `desired` within `scope`, and verifies it.
    async fn converge(
        &self,
        protocol: Protocol,
        scope: Scope,
        desired: Desired,
        until: Instant,
    ) -> Outcome<Report> {
        let server = self.server(protocol)?;
        let target = server.target.clone();
        let nothing = desired.is_empty();
        let converge = move |deadline: &Deadline| match target.converge(scope, &desired, deadline) {
            // A kernel without it serves nothing by it.
            Err(TargetError::Absent(_)) if nothing => Ok(Report::default()),
            converged => converged,
        };
        let began = Instant::now();
        let within = until.saturating_duration_since(began);
        // All volumes take as long as they take, and nothing is changed beside that.
        let converged = answer(match scope.volume() {
            Some(_) => server.lane.run(within, converge).await,
            None => server.lane.run_long(within, converge).await,
        });
        let ok = converged.as_ref().is_ok_and(|report| report.failed.is_empty());
        self.settings.metrics.converged(protocol.as_str(), ok, began.elapsed());
        let report = converged?;
        self.note_portals(protocol, &report);
        Ok(report)
    }

    /// Brings one volume's export to what the view says, plus or minus nothing, cutting off everybody
    /// else; then closes the backing if nobody is left.
    pub(super) async fn converge_volume(
        &self,
        id: VolumeId,
        extra: Option<(&HostName, Grant)>,
        fence: bool,
    ) -> Outcome<Vec<String>> {
        let (steps, is_served) = self.converge_open(id, extra, fence).await?;
        if !is_served {
            self.close_backing(id).await?;
        }
        Ok(steps)
    }

    /// The same, and leaves the backing open. The steps that were made, and whether anybody is served.
    pub(super) async fn converge_open(
        &self,
        id: VolumeId,
        extra: Option<(&HostName, Grant)>,
        fence: bool,
    ) -> Outcome<(Vec<String>, bool)> {
        let scope = if fence { Scope::Fence(id) } else { Scope::Volume(id) };
        let desired = self.desired_of(id, extra);
        let (serve, mut steps) = (!desired.is_empty(), Vec::new());
        for protocol in self.protocols_of(id) {
            let desired = desired.clone();
            let until = self.target_until(protocol);
            steps.extend(self.converge(protocol, scope, desired, until).await?.steps);
        }
        if !steps.is_empty() {
            tracing::info!(volume = %id, steps = steps.join("; "), "the target was changed");
        }
        Ok((steps, serve))
    }

    /// Takes away what one protocol serves of a volume that is another's, or nobody's.
    pub(super) async fn converge_away(&self, protocol: Protocol, id: VolumeId) -> Outcome<Vec<String>> {
        if self.protocols_of(id) == [protocol] {
            return Ok(Vec::new());
        }
        let until = self.target_until(protocol);
        // Who is attached has nothing by this one; where that can't be told, he waits.
        let desired = self.desired_of(id, None).kept_out();
        Ok(self.converge(protocol, Scope::Volume(id), desired, until).await?.steps)
    }

    /// How everything should be served, by each protocol.
    fn desired_of_all(&self) -> BTreeMap<Protocol, Desired> {
        let mut ids: BTreeSet<_> = self.opened.lock().keys().copied().collect();
        // Those that can't be served now as well: somebody waits for them.
        ids.extend(self.view.read().attached_volumes());
        let mut desired: BTreeMap<Protocol, Desired> = BTreeMap::new();
        for id in ids {
            let one = self.desired_of(id, None);
            for protocol in self.protocols_of(id) {
                desired.entry(protocol).or_default().absorb(one.clone());
            }
        }
        desired
    }

    /// Volumes that are not served as they should be, as far as can be told beside changes that go on, and by which protocol.
    /// One that can't be read keeps nobody from looking at the others.
    pub(super) async fn drifted(&self) -> BTreeSet<(Protocol, VolumeId)> {
        let until = Instant::now() + self.settings.settle_deadline;
        let mut desired = self.desired_of_all();
        let mut all = BTreeSet::new();
        for (protocol, server) in &self.targets {
            let (target, desired) = (server.target.clone(), desired.remove(protocol).unwrap_or_default());
            let nothing = desired.is_empty();
            let drifted = move |deadline: &Deadline| match target.drifted(&desired, deadline) {
                Err(TargetError::Absent(_)) if nothing => Ok(BTreeSet::new()),
                drifted => drifted,
            };
            // Not on the target's own lane: reading all of it takes its time, and nobody's attach waits for that.
            match run(&self.count_lane, until, drifted).await {
                Ok(ids) => all.extend(ids.into_iter().map(|id| (*protocol, id))),
                Err(f) => {
                    let (protocol, error) = (protocol.as_str(), f.error.chain());
                    tracing::warn!(protocol, error, "what the kernel serves can't be read");
                }
            }
        }
        all
    }

    /// Converges everything that is open, by each protocol. What could not be served, and why; an error is the target's
    /// as a whole.
    pub(super) async fn converge_all(&self, scope: Scope) -> Vec<(Protocol, Outcome<Report>)> {
        let mut desired = self.desired_of_all();
        let each = self.targets.keys().map(|protocol| {
            let desired = desired.remove(protocol).unwrap_or_default();
            self.note_left_out(*protocol);
            async move {
                let many = u32::try_from(desired.len()).unwrap_or(u32::MAX);
                let until = self.target_until(*protocol) + PER_VOLUME * many;
                (*protocol, self.converge(*protocol, scope, desired, until).await)
            }
        });
        futures_util::future::join_all(each.collect::<Vec<_>>()).await
    }

    /// Raises an alarm about volumes that are attached by a protocol that the configuration leaves out.
    fn note_left_out(&self, protocol: Protocol) {
        let mut view = self.view.write();
        let subject = format!("target/{}", protocol.as_str());
        let by = |id: &VolumeId| view.entry(*id).is_some_and(|v| v.label.protocol() == protocol);
        let attached = view.attached_volumes().iter().filter(|id| by(id)).count();
        if self.check_served(protocol).is_err() && attached > 0 {
            let text = format!(
                "{attached} volumes are attached by it, and the configuration leaves it out: they are not served"
            );
            view.raise(subject, text);
        } else {
            view.clear(&subject);
        }
    }

    /// Tells connected hosts that a volume has grown.
    pub(super) async fn announce_size(&self, id: VolumeId, until: Instant) -> Outcome<()> {
        let Some(export) = self.desired_of(id, None).remove(&id) else { return Ok(()) };
        let until = until.min(Instant::now() + self.settings.target_deadline);
        for protocol in self.protocols_of(id) {
            let (server, export) = (self.server(protocol)?, export.clone());
            let target = server.target.clone();
            run(&server.lane, until, move |deadline| target.announce_size(&export, deadline)).await?;
        }
        Ok(())
    }

    /// Has a host prove what it should from its next connection on.
    pub(super) async fn prove(&self, protocol: Protocol, host: HostId) -> Outcome<()> {
        let Some(server) = self.targets.get(&protocol) else { return Ok(()) };
        let target = server.target.clone();
        let until = Instant::now() + self.settings.target_deadline;
        run(&server.lane, until, move |deadline| target.prove(&host, deadline)).await
    }

    /// How a volume should be served: to the hosts in the view and `extra`. Empty if to nobody. Who is attached and can't be
    /// let in (its backing is not open, nothing serves it, a secret is lost) waits.
    fn desired_of(&self, id: VolumeId, extra: Option<(&HostName, Grant)>) -> Desired {
        let mut desired = Desired::new();
        let opened = self.opened.lock().get(&id).cloned();
        let view = self.view.read();
        let attached = view.hosts_of(id).filter_map(|name| Some((name, view.grant_of(id, name)?)));
        let attached: Vec<(&HostName, Grant)> = attached.chain(extra).collect();
        if attached.is_empty() {
            return desired;
        }
        // Of one that no pool has now it is not known by what it was served.
        let own = view.entry(id).map(|entry| entry.label.protocol());
        let opened =
            opened.filter(|opened| own.is_some_and(|protocol| self.can_serve(&opened.place, protocol)));
        let mut hosts: BTreeMap<HostId, Rights> = BTreeMap::new();
        let mut waiting = BTreeSet::new();
        for protocol in Protocol::ALL.into_iter().filter(|p| own.is_none_or(|own| own == *p)) {
            for (name, grant) in &attached {
                let Some(record) = view.host_record(name) else { continue };
                let admissible = opened.is_some() && record.is_admissible(protocol);
                for (host, rights) in hosts_of(record, *grant, protocol) {
                    if !admissible {
                        waiting.insert(host);
                        continue;
                    }
                    // Two zones of one network: it may do what both let it do.
                    let known = hosts.entry(host).or_insert(rights);
                    known.read_only |= rights.read_only;
                    known.squash = known.squash.max(rights.squash);
                    known.security = known.security.and(&rights.security);
                }
            }
        }
        if hosts.is_empty() || !waiting.is_empty() {
            desired.wait(id, waiting);
        }
        if let Some(opened) = opened.filter(|_| !hosts.is_empty()) {
            let (identity, backing) = (self.identity(id), opened.path().to_owned());
            desired.insert(id, Export { identity, backing, size: opened.size, hosts });
        }
        desired
    }

    /// Whether what a pool has opened can be served by a protocol.
    fn can_serve(&self, place: &Place, protocol: Protocol) -> bool {
        let fits = match place {
            Place::Device(_) => protocol.kind() == VolumeKind::Block,
            Place::Directory(_) => protocol.kind() == VolumeKind::Filesystem,
        };
        fits && self.check_served(protocol).is_ok()
    }

    /// Raises or clears the alarm about portals that could not be opened.
    fn note_portals(&self, protocol: Protocol, report: &Report) {
        let subject = format!("portals/{}", protocol.as_str());
        let down: BTreeMap<String, String> =
            report.portals_down.iter().map(|(name, e)| (name.clone(), super::error::chain(e))).collect();
        let words = down.values().cloned().collect::<Vec<_>>().join("; ");
        let mut view = self.view.write();
        if down.is_empty() {
            view.clear(&subject);
        } else {
            view.raise(subject, format!("not all portals are served: {words}"));
        }
        drop(view);
        if let Some(server) = self.targets.get(&protocol) {
            *server.down.lock() = down;
        }
    }
}

fn not_served(protocol: Protocol) -> Error {
    Error::Unsupported(format!("{}: this appliance does not serve it", protocol.as_str()))
}

/// How much longer converging everything may take for each volume.
const PER_VOLUME: std::time::Duration = std::time::Duration::from_millis(500);
