//! The engine: the only one that changes anything. One door, [`Engine::submit`], behind which every
//! change is authorized, validated, locked, recorded, done, verified, committed, published, audited and
//! measured, in this order.
//!
//! ```text
//! request -> Action -> submit: lock -> journal intent -> lane -> pool or target -> read back
//!                                   -> journal commit -> view -> event -> Outcome
//! ```
//!
//! Called by HTTP, console and schedules. Reads never come here: they look at [`Engine::view`]. It makes
//! no system call and waits for none: blocking work is done in [`lane`]s.

mod absence;
mod action;
mod alarms;
mod attachments;
mod blocks;
mod copies;
mod core;
mod disks;
mod drift;
mod encryption;
pub mod error;
mod events;
mod gate;
mod health;
mod hosts;
mod intent;
mod keeping;
mod kerberos;
mod labels;
pub mod lane;
mod limits;
mod locks;
mod meter;
mod orphans;
mod pools;
pub mod quotas;
mod rebuild;
mod recovery;
mod reload;
mod restore;
mod scrape;
mod shown_targets;
mod snapshots;
mod space;
mod targets;
mod tokens;
mod update;
mod view;
mod volumes;

#[cfg(test)]
mod tests;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use futures_util::FutureExt;
use jiff::Timestamp;
use orlop_api::{
    Attachment, Disk, EventKind, HostName, Orphans, SnapshotBlocks, System, SystemState, Target, Token,
    VolumeId,
};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use secrecy::SecretString;
use tokio::time::Instant;
use tracing::field::Empty;
use tracing::{Instrument, Span};

pub use self::core::{EngineSettings, Pools};
pub use action::{Action, Attach, Outcome, Principal, Role};
pub use blocks::BlocksOf;
pub use error::{Error, Result};
pub use events::Events;
pub use reload::{Configuration, Reread};
pub use space::FillLimits;
pub use targets::{Offer, Targets};
pub use tokens::{FIRST, new_token};
pub use view::View;

use self::core::Core;
use self::lane::Lane;
use self::recovery::Recorded;
use crate::fingerprint::Fingerprint;
use crate::journal::Journal;
use crate::kernel::uevent::DiskEvent;
use crate::telemetry::spans;

/// Threads for making and opening whole pools, and for looking at disks.
const SETUP_THREADS: usize = 4;

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    core: Arc<Core>,
    recorded: Arc<Mutex<Option<Recorded>>>,
}

/// What is noted of each change: a line for people (`audit`), a count, and how the trace ended.
struct Note {
    core: Arc<Core>,
    started: Instant,
    verb: &'static str,
    subject: String,
    principal: String,
    span: Span,
}

impl Note {
    fn that(self, result: std::result::Result<(), &Error>) {
        let Self { core, started, verb, subject, principal, span } = self;
        let took = started.elapsed();
        let outcome = match result {
            Ok(()) => "ok",
            Err(e) => e.kind().as_str(),
        };
        span.record("outcome", outcome);
        let ms = took.as_millis() as u64;
        match result {
            Ok(()) => tracing::info!(target: "audit", principal, verb, subject, outcome, ms),
            Err(e) => {
                let error = e.chain();
                tracing::info!(target: "audit", principal, verb, subject, outcome, error, ms);
            }
        }
        core.settings.metrics.action(verb, outcome, took);
    }
}

impl Engine {
    /// Opens the journal and starts the lanes. Changes nothing else: that is [`Engine::recover`].
    pub async fn open(settings: EngineSettings) -> Result<Self> {
        let dir = settings.state_dir.join("journal");
        let opened = tokio::task::spawn_blocking(move || Journal::open(&dir, Recorded::read));
        let (journal, mut recorded) = opened.await.map_err(|_| Error::Died)??;
        let (tokens, keys) = (recorded.take_tokens(), recorded.take_keys());
        let lane = |name: &str, threads, slow| {
            Lane::start(name, threads, settings.lane_depth, slow)
                .map_err(|e| Error::Unavailable(format!("no threads for lane {name}: {e}")))
        };
        let events = Events::new(journal.generation());
        let core = Arc::new(Core {
            id: journal.id(),
            started: Timestamp::now(),
            view: RwLock::new(View::new(settings.prefix.clone(), settings.fill, events.clone())),
            events,
            journal,
            locks: Default::default(),
            gate: gate::Gate::new(),
            quotas: quotas::Quotas::new(settings.quotas),
            state: RwLock::new(SystemState::Starting),
            pools: Default::default(),
            opened: Default::default(),
            targets: targets::start(&settings.targets, settings.lane_depth)?,
            setup_lane: lane("setup", SETUP_THREADS, None)?,
            disk_lane: lane("smart", disks::ASKED_AT_ONCE, None)?,
            count_lane: lane("counters", 1, None)?,
            block_readers: tokio::sync::Semaphore::new(blocks::READERS),
            disk_readings: Default::default(),
            tokens: Default::default(),
            unsettled: Default::default(),
            next_op: AtomicU64::new(recorded.next_op()),
            dirty: Default::default(),
            retried: Default::default(),
            copies: Default::default(),
            spent_bell: Default::default(),
            disks_bell: Default::default(),
            stale: Default::default(),
            stale_bell: Default::default(),
            reading: Default::default(),
            looking: Default::default(),
            reloading: Default::default(),
            unread: Default::default(),
            anew: Default::default(),
            tasks: Default::default(),
            settings,
        });
        core.load_tokens(tokens);
        core.load_keys(keys);
        Ok(Self { core, recorded: Arc::new(Mutex::new(Some(recorded))) })
    }

    /// Restores everything; then changes are taken. Called once.
    pub async fn recover(&self) -> Result<()> {
        let Some(recorded) = self.recorded.lock().take() else { return Ok(()) };
        self.core.background(self.core.clone().read_capacities());
        self.core.recover(recorded).await?;
        self.core.background(self.core.clone().write_labels_behind());
        self.core.background(self.core.clone().remove_spent());
        self.core.background(self.core.clone().look_at_pools());
        self.core.background(self.core.clone().look_at_disks());
        self.core.background(self.core.clone().look_for_drift());
        self.core.background(self.core.clone().mind_journal());
        Ok(())
    }

    /// The one door. Waits for the outcome `within` that time; an action that has begun goes on to its
    /// end or is undone, whether or not somebody still waits.
    pub async fn submit(&self, who: Principal, action: Action, within: Duration) -> Result<Outcome> {
        let started = Instant::now();
        let verb = action.verb();
        let subject = action.subject();
        let principal = who.name.clone();
        let span = tracing::info_span!(target: spans::TARGET, "action", verb, subject, outcome = Empty);
        let note = Note { core: self.core.clone(), started, verb, subject, principal, span: span.clone() };
        let pass = match self.admit(&who, &action) {
            Err(e) => {
                note.that(Err(&e));
                return Err(e);
            }
            Ok(pass) => pass,
        };
        let core = self.core.clone();
        let until = started + within;
        // A task of its own: a client that hangs up does not leave a change half done, nor one that nobody has noted.
        let task = async move {
            let _pass = pass;
            let done = AssertUnwindSafe(perform(&core, &who, action, until)).catch_unwind().await;
            let done = done.unwrap_or(Err(Error::Died));
            note.that(done.as_ref().map(|_| ()));
            done
        };
        let task = tokio::spawn(task.instrument(span));
        tokio::select! {
            done = task => done.unwrap_or(Err(Error::Died)),
            // It is noted when it ends.
            () = self.core.waits_for_journal(until) => Err(Error::Deadline("writing it to the journal".into())),
        }
    }

    fn admit(&self, who: &Principal, action: &Action) -> Result<(gate::Pass, quotas::Change)> {
        if !who.may(action) {
            return Err(Error::Forbidden { principal: who.name.clone(), verb: action.verb() });
        }
        match self.state() {
            SystemState::Ready => {}
            SystemState::Starting => {
                return Err(Error::Unavailable("the daemon is starting: changes are not taken yet".into()));
            }
            SystemState::Draining => {
                return Err(Error::Unavailable(
                    "the daemon is stopping: changes are not taken any more".into(),
                ));
            }
        }
        self.core.check_kept(action)?;
        let change = self.core.quotas.change(&who.name)?;
        let pass =
            self.core.gate.enter().ok_or_else(|| Error::Unavailable("the daemon is stopping".into()))?;
        Ok((pass, change))
    }

    /// How much each principal may take of it.
    pub fn quotas(&self) -> &quotas::Quotas {
        &self.core.quotas
    }

    /// The in-memory image that reads are answered from. Never hold it across an await.
    pub fn view(&self) -> RwLockReadGuard<'_, View> {
        self.core.view.read()
    }

    /// What happened.
    pub fn events(&self) -> &Events {
        &self.core.events
    }

    /// How the daemon is.
    pub fn state(&self) -> SystemState {
        *self.core.state.read()
    }

    /// The appliance as it is shown.
    pub fn system(&self) -> System {
        let view = self.view();
        let (pools, volumes, hosts, attachments) = view.counts();
        let uname = rustix::system::uname();
        System {
            id: self.core.id,
            hostname: uname.nodename().to_string_lossy().into_owned(),
            version: env!("CARGO_PKG_VERSION").into(),
            kernel: uname.release().to_string_lossy().into_owned(),
            state: self.state(),
            sim: self.core.settings.sim,
            started: self.core.started,
            pools,
            volumes,
            hosts,
            attachments,
            alarms: view.alarms(),
        }
    }

    /// The machine's disks. Looks at them, so it can take a moment; what they say of themselves was read
    /// before.
    pub async fn disks(&self, within: Duration) -> Result<Vec<Disk>> {
        let until = Instant::now() + within;
        let pools = self.core.settings.pools.clone();
        let found = core::run(&self.core.setup_lane, until, move |d| pools.disks(d)).await;
        Ok(self.core.with_health(found.map_err(|f| f.error)?))
    }

    /// Disks came or went: pools that have lost some, or that are missing, are looked at now.
    pub fn disks_changed(&self, events: &[DiskEvent]) {
        for event in events {
            tracing::info!(disk = event.name, added = event.added, "a disk came or went");
            let kind = if event.added { EventKind::DiskAdded } else { EventKind::DiskRemoved };
            let about = events::Subject { detail: Some(event.name.clone()), ..Default::default() };
            self.core.events.publish(kind, about);
        }
        self.core.disks_bell.notify_waiters();
        self.core.disks_came_or_went(events);
        self.core.look_once();
    }

    /// What nobody claims. Asks every pool, so it takes a moment.
    pub async fn orphans(&self, within: Duration) -> Result<Orphans> {
        if self.state() == SystemState::Starting {
            // Half of what there is would look like one, and pools must not be opened twice at once.
            return Err(Error::Unavailable(
                "the daemon is starting: what is an orphan is not known yet".into(),
            ));
        }
        Ok(self.core.orphans(Instant::now() + within).await)
    }

    /// Which blocks of a snapshot have data, or are not as in an older one. Reads what the pool knows of that, so it takes a
    /// moment, or some seconds for a large one: then it says where to go on.
    pub async fn blocks(&self, who: &Principal, ask: BlocksOf, within: Duration) -> Result<SnapshotBlocks> {
        self.core.blocks(who, ask, Instant::now() + within).await
    }

    /// The kernel's targets, and what is in them of others. Asks each of them, so it takes a moment.
    pub async fn targets(&self, within: Duration) -> Vec<Target> {
        self.core.shown_targets(Instant::now() + within).await
    }

    /// All that an initiator needs, if it is attached.
    pub fn attachment(&self, volume: VolumeId, host: &HostName) -> Option<Attachment> {
        self.core.attachment(volume, host)
    }

    /// Has the capacity of pools read again, if it is older than `age`. Does not wait for it.
    pub fn refresh_capacities(&self, age: Duration) {
        let now = Timestamp::now();
        let old = |at: Timestamp| now.duration_since(at).unsigned_abs() > age;
        let names: Vec<_> =
            self.view().pool_entries().filter(|p| old(p.observed)).map(|p| p.spec.name.clone()).collect();
        for name in names {
            self.core.capacity_changed(&name);
        }
    }

    /// Who a client's certificate belongs to.
    pub fn authenticate_certificate(&self, certificate: Fingerprint) -> Option<Principal> {
        self.core.authenticate_certificate(certificate)
    }

    /// Who a token belongs to.
    pub fn authenticate(&self, token: &str) -> Option<Principal> {
        self.core.authenticate(token)
    }

    /// Whether a token of that name exists.
    pub fn has_token(&self, name: &str) -> bool {
        self.core.has_token(name)
    }

    /// All tokens, by name.
    pub fn tokens(&self) -> Vec<Token> {
        self.core.shown_tokens()
    }

    /// Why no change is taken, if none is: the journal can't be written.
    pub fn refusal(&self) -> Option<String> {
        self.core.journal.refusal().map(|refusal| refusal.why)
    }

    /// Returns when the daemon should be started anew, to read its journal again.
    pub async fn anew(&self) {
        self.core.anew.notified().await;
    }

    /// Believes a token until the daemon ends: it is brought at every start.
    pub fn trust_token(&self, name: &str, token: &SecretString) -> Result<()> {
        self.core.trust_token(name, token)
    }

    /// Makes or replaces a token.
    pub async fn put_token(&self, name: &str, token: &SecretString) -> Result<()> {
        self.core.put_token(name, token).await
    }

    /// Refuses new changes, waits for those that run, writes what is written behind. Targets go on
    /// serving. How many actions were still running in the end: their intents settle them at the next
    /// start.
    pub async fn drain(&self, within: Duration) -> usize {
        *self.core.state.write() = SystemState::Draining;
        let until = Instant::now() + within;
        let left = self.core.gate.close(within).await;
        let _ = tokio::time::timeout_at(until, self.core.write_labels()).await;
        let _ = tokio::time::timeout_at(until, self.core.stop_copies()).await;
        self.core.tasks.lock().abort_all();
        left
    }

    /// For the watchdog: the threads that changes need are alive.
    pub fn alive(&self) -> bool {
        self.core.targets.values().all(targets::Server::is_alive) && self.core.setup_lane.is_alive()
    }
}

/// What is behind the door for each action.
async fn perform(core: &Arc<Core>, who: &Principal, action: Action, until: Instant) -> Result<Outcome> {
    match action {
        Action::CreatePool(spec) => core.create_pool(spec, until).await,
        Action::ImportPool(spec, force) => core.import_pool(spec, force, until).await,
        Action::ExportPool(name) => core.export_pool(name, until).await,
        Action::DeletePool(name) => core.delete_pool(name, until).await,
        Action::ChangePool(name, change) => core.change_pool(name, change, until).await,
        Action::WipeDisk(disk, ask) => core.wipe_disk(disk, ask, until).await,
        Action::CreateVolume(ask) => core.create_volume(who, ask, until).await,
        Action::UpdateVolume(volume, ask) => core.update_volume(who, volume, ask, until).await,
        Action::DeleteVolume(volume, when) => core.delete_volume(who, volume, when, until).await,
        Action::UnlockVolume(volume, key) => core.unlock_volume(who, volume, key, until).await,
        Action::Backup => core.backup().await,
        Action::Reload => core.reload(until).await.map(Outcome::Reloaded),
        Action::Restore(text, force) => core.restore(&text.0, force, until).await,
        Action::ShowKey(volume) => core.show_key(who, &volume),
        Action::CreateSnapshot(ask) => core.create_snapshot(who, ask, until).await,
        Action::CreateSnapshotGroup(ask) => core.create_snapshot_group(who, ask, until).await,
        Action::DeleteSnapshot(snapshot, when) => core.delete_snapshot(who, snapshot, when, until).await,
        Action::AdoptOrphan(orphan, ask) => core.adopt_orphan(who, orphan, ask, until).await,
        Action::RemoveOrphan(orphan) => core.remove_orphan(who, orphan, until).await,
        Action::PutHost(name, ask) => core.put_host(who, name, ask, until).await,
        Action::AuthenticateHost(name, ask) => core.set_dhchap(who, name, Some(ask), until).await,
        Action::TrustHost(name) => core.set_dhchap(who, name, None, until).await,
        Action::ChapHost(name, ask) => core.set_chap(who, name, ask, until).await,
        Action::TlsHost(name, ask) => core.set_tls(who, name, ask, until).await,
        Action::DeleteHost(name) => core.forget(who, name, "host", until).await,
        Action::PutZone(name, ask) => core.put_zone(who, name, ask, until).await,
        Action::DeleteZone(name) => core.forget(who, name, "zone", until).await,
        Action::PutToken(name, scope) => core.put_scoped_token(name, scope, until).await,
        Action::DeleteToken(name) => core.delete_token(&name, until).await,
        Action::PutKeytab(keytab) => core.put_keytab(keytab, until).await,
        Action::DeleteKeytab => core.delete_keytab(until).await,
        Action::Attach(volume, host, how) => core.attach(who, volume, host, how, until).await,
        Action::Detach(volume, host) => core.detach(who, volume, host, until).await,
        Action::AcknowledgeAlarm(subject) => core.acknowledge_alarm(who, &subject),
    }
}
