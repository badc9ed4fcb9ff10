#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod access;
mod authentication;
mod ctl;
mod disks;
mod encryption;
mod fakes;
mod filesystems;
mod iscsi;
mod keeping;
mod orphans;
mod properties;
mod reload;
mod scrape;
mod smart;
mod snapshots;
mod space;
mod targets;
mod tokens;
mod zones;

use std::sync::Arc;
use std::time::Duration;

use orlop_api::*;

use super::*;
use crate::target::keys::HostKeys;
use fakes::{FakePools, FakeTarget, Platter};

const LONG: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(100);

type More = Box<dyn Fn(&mut Targets, &HostKeys) + Send + Sync>;

/// A machine: what survives a restart of the daemon.
struct Rig {
    dir: tempfile::TempDir,
    platter: Arc<Platter>,
    target: Arc<FakeTarget>,
    nfs: Arc<FakeTarget>,
    /// Puts other targets beside these or in their place.
    more: More,
    configuration: Arc<reload::Written>,
    engine: Option<Engine>,
}

impl Rig {
    async fn new() -> Self {
        Self::with(|_, _| {}).await
    }

    async fn with(more: impl Fn(&mut Targets, &HostKeys) + Send + Sync + 'static) -> Self {
        let mut rig = Self {
            more: Box::new(more),
            dir: tempfile::tempdir().unwrap(),
            platter: Arc::default(),
            target: Arc::default(),
            nfs: Arc::default(),
            configuration: Arc::default(),
            engine: None,
        };
        rig.start().await;
        rig.ok(Action::CreatePool(
            PoolCreate {
                directory: Some("/fake".into()),
                ..PoolCreate::new("tank".parse().unwrap(), PoolKind::Sim)
            }
            .try_into()
            .unwrap(),
        ))
        .await;
        rig
    }

    async fn start(&mut self) {
        let host_keys = HostKeys::default();
        let mut targets = Targets::from(
            [(Protocol::Nvme, &self.target), (Protocol::Nfs, &self.nfs)]
                .map(|(p, t)| (p, Offer { target: t.clone() as _, offered: true })),
        );
        (self.more)(&mut targets, &host_keys);
        let settings = || EngineSettings {
            state_dir: self.dir.path().to_path_buf(),
            sim: true,
            prefix: Default::default(),
            targets: targets.clone(),
            pools: Arc::new(FakePools(self.platter.clone())),
            keys: self.platter.new_ring(),
            host_keys: host_keys.clone(),
            pool_threads: 2,
            fill: Default::default(),
            lane_depth: 64,
            target_deadline: LONG,
            settle_deadline: LONG,
            quotas: crate::engine::quotas::Limits { changes: 1024, requests_per_second: None },
            configuration: self.configuration.clone(),
            metrics: Arc::new(crate::telemetry::Metrics::new(Default::default())),
        };
        // The last engine's committer closes the journal a moment after its handle has gone.
        for _ in 0..500 {
            match Engine::open(settings()).await {
                Ok(engine) => {
                    engine.recover().await.unwrap();
                    self.engine = Some(engine);
                    return;
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
        panic!("the engine did not open");
    }

    /// The daemon goes without a farewell, as at SIGKILL: its background tasks end where they are.
    async fn restart(&mut self) {
        self.engine().core.tasks.lock().abort_all();
        self.engine = None;
        self.start().await;
    }

    /// As `restart`, and the journal is gone. `meanwhile` is done to the machine before the start.
    async fn lose_journal(&mut self, meanwhile: impl FnOnce(&mut Self)) {
        self.engine().core.write_labels().await;
        self.engine().core.tasks.lock().abort_all();
        self.engine = None;
        // The old engine's committer closes it a moment after its handle has gone.
        tokio::time::sleep(Duration::from_millis(300)).await;
        std::fs::remove_dir_all(self.dir.path().join("journal")).unwrap();
        meanwhile(self);
        self.start().await;
    }

    fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    async fn submit(&self, action: Action, within: Duration) -> Result<Outcome> {
        self.engine().submit(who(), action, within).await
    }

    async fn ok(&self, action: Action) -> Outcome {
        self.submit(action, LONG).await.unwrap()
    }

    async fn fails(&self, action: Action) -> Problem {
        self.submit(action, LONG).await.unwrap_err().to_problem()
    }

    async fn create(&self, name: &str) -> VolumeId {
        match self.ok(Action::CreateVolume(ask(name))).await {
            Outcome::Volume { volume, .. } => volume.id,
            other => panic!("{other:?}"),
        }
    }

    async fn host(&self, name: &str) -> Nqn {
        let nqn: Nqn = format!("nqn.2014-08.org.nvmexpress:{name}").parse().unwrap();
        self.ok(Action::PutHost(name.parse().unwrap(), HostPut::nvme(nqn.clone()))).await;
        nqn
    }

    /// Waits for what goes on behind the answers. The limit is for a machine that is busy with other things.
    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !holds(self) {
            assert!(started.elapsed() < Duration::from_secs(60), "not so in a minute: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn settled(&self) {
        self.until("all to be settled", |r| r.engine().core.unsettled.lock().is_empty()).await;
    }
}

fn who() -> Principal {
    Principal::admin("test")
}

fn ask(name: &str) -> VolumeCreate {
    VolumeCreate::new(name.parse().unwrap(), "tank".parse().unwrap(), ByteSize::MIB)
}

fn by(id: VolumeId) -> VolumeRef {
    VolumeRef::Id(id)
}

fn delete(id: VolumeId) -> Action {
    Action::DeleteVolume(by(id), When::Now)
}

fn attach_as(id: VolumeId, host: &str, how: Attach) -> Action {
    Action::Attach(by(id), host.parse().unwrap(), how)
}

fn attach(id: VolumeId, host: &str) -> Action {
    attach_as(id, host, Attach::default())
}

fn detach(id: VolumeId, host: &str) -> Action {
    Action::Detach(by(id), host.parse().unwrap())
}

#[tokio::test]
async fn the_same_create_again_gives_the_same_volume() {
    let rig = Rig::new().await;
    let id = rig.create("data").await;
    assert_eq!(rig.create("data").await, id);
    let other = VolumeCreate { size: ByteSize(2 << 20), ..ask("data") };
    let p = rig.fails(Action::CreateVolume(other)).await;
    assert_eq!((p.kind, p.field.as_deref()), (ErrorKind::Conflict, Some("size")));
    assert_eq!((p.have.as_deref(), p.want.as_deref()), (Some("1048576"), Some("2097152")));
}

#[tokio::test]
async fn parallel_creates_of_one_name_make_one_volume() {
    let rig = Rig::new().await;
    let engine = rig.engine().clone();
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let engine = engine.clone();
            tokio::spawn(async move { engine.submit(who(), Action::CreateVolume(ask("one")), LONG).await })
        })
        .collect();
    let mut changed = 0;
    for t in tasks {
        let Outcome::Volume { changed: c, .. } = t.await.unwrap().unwrap() else { panic!() };
        changed += u32::from(c);
    }
    assert_eq!((changed, rig.platter.backings()), (1, 1));
}

#[tokio::test]
async fn sizes_have_rules() {
    let rig = Rig::new().await;
    for size in [0, 1, 4095, 4097] {
        let p = rig.fails(Action::CreateVolume(VolumeCreate { size: ByteSize(size), ..ask("x") })).await;
        assert_eq!((p.kind, p.field.as_deref()), (ErrorKind::Invalid, Some("size")), "{size}");
    }
    let id = rig.create("y").await;
    let p = rig.fails(Action::UpdateVolume(by(id), VolumeUpdate::to_size(ByteSize(4096)))).await;
    assert_eq!(p.kind, ErrorKind::Invalid);
    assert_eq!(rig.platter.backings(), 1);
}

#[tokio::test]
async fn a_create_that_fails_half_way_leaves_nothing() {
    let mut rig = Rig::new().await;
    rig.platter.faults(|f| f.fail_create = true);
    assert_eq!(rig.fails(Action::CreateVolume(ask("data"))).await.kind, ErrorKind::Internal);
    assert_eq!(rig.platter.backings(), 0);
    rig.platter.faults(|f| f.fail_create = false);
    rig.platter.faults(|f| f.short = true);
    let p = rig.fails(Action::CreateVolume(ask("data"))).await;
    assert!(p.detail.contains("reading it back"), "{}", p.detail);
    assert_eq!(rig.platter.backings(), 0);
    rig.platter.faults(|f| f.short = false);
    rig.restart().await;
    assert_eq!(rig.engine().view().counts().1, 0);
    rig.create("data").await;
}

#[tokio::test]
async fn a_failed_rollback_is_stuck_and_tried_again() {
    let rig = Rig::new().await;
    rig.platter.faults(|f| (f.fail_create, f.fail_destroy) = (true, true));
    rig.fails(Action::CreateVolume(ask("data"))).await;
    assert_eq!(rig.fails(Action::CreateVolume(ask("data"))).await.kind, ErrorKind::Busy);
    assert!(!rig.engine().view().alarms().is_empty());
    rig.platter.faults(|f| (f.fail_create, f.fail_destroy) = (false, false));
    rig.settled().await;
    assert!(rig.engine().view().alarms().is_empty());
    assert_eq!(rig.platter.backings(), 0);
    rig.create("data").await;
}

#[tokio::test]
async fn a_hung_create_delays_nothing_else_and_is_settled_when_it_ends() {
    let rig = Rig::new().await;
    let id = rig.create("data").await;
    rig.host("worker-1").await;
    // As many as the pool has threads, and more.
    rig.platter.faults(|f| f.hang.extend(["a".to_string(), "b".into(), "c".into()]));
    let engine = rig.engine().clone();
    let hung: Vec<_> = ["a", "b", "c"]
        .map(|n| {
            let engine = engine.clone();
            tokio::spawn(async move { engine.submit(who(), Action::CreateVolume(ask(n)), SHORT).await })
        })
        .into();
    let before = std::time::Instant::now();
    rig.ok(attach(id, "worker-1")).await;
    assert!(before.elapsed() < SHORT, "an attach waited {:?} behind a hung create", before.elapsed());
    let mut kinds: Vec<_> = Vec::new();
    for t in hung {
        kinds.push(t.await.unwrap().unwrap_err().kind());
    }
    assert!(kinds.contains(&ErrorKind::Deadline), "{kinds:?}");
    // The threads were replaced: other creates go on.
    rig.create("d").await;
    rig.platter.faults(|f| f.hang.clear());
    rig.settled().await;
    // What was whole in the end stays: its caller was told that it may still be under way.
    let names: Vec<_> = rig.platter.labels().iter().map(|l| l.name.to_string()).collect();
    assert_eq!(rig.engine().view().counts().1 as usize, names.len());
    assert_eq!(rig.create("a").await, rig.create("a").await);
}

#[tokio::test]
async fn only_attached_hosts_are_let_in_and_only_attached_volumes_are_open() {
    let rig = Rig::new().await;
    let id = rig.create("data").await;
    let one = rig.host("one").await;
    let two = rig.host("two").await;
    assert_eq!(rig.target.exports(), 0);
    rig.ok(attach(id, "one")).await;
    rig.ok(attach(id, "two")).await;
    assert_eq!(rig.target.hosts(id), [one.clone(), two.clone()].into());
    let Outcome::Attachment { attachment, changed } = rig.ok(attach(id, "two")).await else { panic!() };
    assert!(!changed);
    let nvme = attachment.nvme().unwrap();
    assert_eq!((nvme.uuid, &nvme.host_nqn), (id.uuid(), &two));
    rig.ok(detach(id, "one")).await;
    assert_eq!(rig.target.hosts(id), [two].into());
    assert_eq!(rig.platter.open_backings(), 1);
    rig.ok(detach(id, "two")).await;
    assert_eq!((rig.target.exports(), rig.platter.open_backings()), (0, 0));
    assert_eq!(rig.fails(detach(id, "two")).await.kind, ErrorKind::NotFound);
}

#[tokio::test]
async fn what_depends_on_an_object_keeps_it() {
    let rig = Rig::new().await;
    let id = rig.create("data").await;
    rig.host("one").await;
    rig.ok(attach(id, "one")).await;
    let p = rig.fails(delete(id)).await;
    assert_eq!((p.kind, p.dependants), (ErrorKind::Precondition, vec!["one".to_string()]));
    let p = rig.fails(Action::DeleteHost("one".parse().unwrap())).await;
    assert_eq!((p.kind, p.dependants), (ErrorKind::Precondition, vec![id.to_string()]));
    let p = rig.fails(Action::DeletePool("tank".parse().unwrap())).await;
    assert_eq!((p.kind, p.dependants), (ErrorKind::Precondition, vec!["data".to_string()]));
    rig.ok(detach(id, "one")).await;
    rig.ok(delete(id)).await;
    rig.ok(Action::DeleteHost("one".parse().unwrap())).await;
    rig.ok(Action::DeletePool("tank".parse().unwrap())).await;
    assert_eq!(rig.engine().view().counts(), (0, 0, 0, 0));
    assert_eq!(rig.engine().core.locks.len(), 0);
}

#[tokio::test]
async fn two_hosts_never_share_an_nqn() {
    let rig = Rig::new().await;
    let nqn = rig.host("one").await;
    let again = Action::PutHost("two".parse().unwrap(), HostPut::nvme(nqn));
    assert_eq!(rig.fails(again).await.kind, ErrorKind::Conflict);
    assert_eq!(rig.engine().view().counts().2, 1);
}

#[tokio::test]
async fn an_attach_that_fails_lets_nobody_in() {
    let rig = Rig::new().await;
    let id = rig.create("data").await;
    rig.host("one").await;
    *rig.target.fail.lock() = true;
    assert_eq!(rig.fails(attach(id, "one")).await.kind, ErrorKind::Internal);
    assert!(!rig.engine().view().is_attached(id, &"one".parse().unwrap()));
    *rig.target.fail.lock() = false;
    rig.settled().await;
    assert_eq!((rig.target.exports(), rig.platter.open_backings()), (0, 0));
    rig.ok(attach(id, "one")).await;
}

#[tokio::test]
async fn a_detach_that_fails_is_carried_out_later() {
    let mut rig = Rig::new().await;
    let id = rig.create("data").await;
    rig.host("one").await;
    rig.ok(attach(id, "one")).await;
    *rig.target.fail.lock() = true;
    assert_eq!(rig.fails(detach(id, "one")).await.kind, ErrorKind::Internal);
    assert_eq!(rig.engine().view().volume(id).unwrap().state, VolumeState::Stuck);
    // A restart in between forgets nothing.
    *rig.target.fail.lock() = false;
    rig.restart().await;
    assert_eq!((rig.target.exports(), rig.platter.open_backings()), (0, 0));
    rig.settled().await;
    assert_eq!(rig.engine().view().volume(id).unwrap().state, VolumeState::Ready);
}

#[tokio::test]
async fn a_restart_changes_nothing_and_a_power_cut_restores_everything() {
    let mut rig = Rig::new().await;
    let id = rig.create("data").await;
    let bystander = rig.create("other").await;
    let one = rig.host("one").await;
    let stranger = rig.host("stranger").await;
    rig.ok(attach(id, "one")).await;
    rig.ok(Action::UpdateVolume(by(id), VolumeUpdate::to_size(ByteSize(3 << 20)))).await;
    assert_eq!(rig.target.size(id), Some(ByteSize(3 << 20)));
    let changes = rig.target.changes();
    rig.restart().await;
    assert_eq!(rig.target.changes(), changes, "a restart disturbed the target");
    let before = rig.engine().view().volume(id).unwrap();

    rig.target.let_in(id, &stranger);
    rig.restart().await;
    assert_eq!(rig.target.hosts(id), [one.clone()].into(), "drift was not put back");

    rig.platter.power_cycle();
    rig.target.power_cycle();
    rig.restart().await;
    assert_eq!(rig.target.hosts(id), [one].into());
    assert_eq!(rig.target.exports(), 1, "a volume that nobody attached is exported");
    assert_eq!(rig.engine().view().volume(id).unwrap(), before);
    assert!(rig.engine().view().volume(bystander).is_some());
}

#[tokio::test]
async fn a_lost_journal_is_rebuilt_from_labels() {
    let mut rig = Rig::new().await;
    let id = rig.create("data").await;
    let one = rig.host("one").await;
    rig.ok(attach(id, "one")).await;
    rig.engine().core.write_labels().await;
    rig.lose_journal(|r| r.target.power_cycle()).await;
    assert_eq!(rig.engine().view().counts(), (1, 1, 1, 1));
    assert_eq!(rig.engine().view().volume(id).unwrap().name.as_str(), "data");
    assert_eq!(rig.target.hosts(id), [one].into());
    assert!(rig.engine().view().alarms().iter().any(|a| a.subject == "journal"));
    // What was restored is in the new journal: the next start needs no labels.
    rig.restart().await;
    assert_eq!(rig.engine().view().counts(), (1, 1, 1, 1));
}

/// The journal is lost while the pool is away: its labels are looked at when it is back, however many starts later, and are not
/// taken for out of date before.
#[tokio::test]
async fn labels_of_a_pool_that_was_missing_count_when_it_is_back() {
    for starts in 0..2 {
        let mut rig = Rig::new().await;
        let id = rig.create("data").await;
        let one = rig.host("one").await;
        rig.ok(attach(id, "one")).await;
        rig.engine().core.write_labels().await;
        rig.lose_journal(|r| r.platter.set_away(true)).await;
        assert_eq!(rig.engine().view().counts(), (1, 0, 0, 0));
        // Nobody has said that it is to be cut off.
        assert_eq!(rig.target.hosts(id), [one.clone()].into());
        for _ in 0..starts {
            rig.restart().await;
        }
        rig.target.power_cycle();
        rig.platter.set_away(false);
        rig.until("it to be served", |r| !r.target.hosts(id).is_empty()).await;
        assert_eq!(rig.target.hosts(id), [one].into());
        assert_eq!(rig.engine().view().counts(), (1, 1, 1, 1));
        rig.restart().await;
        assert_eq!(rig.engine().view().counts(), (1, 1, 1, 1));
    }
}

/// Who was cut off from a volume that was away is not on its label for long once it is back.
#[tokio::test]
async fn a_label_that_is_out_of_date_when_its_pool_comes_back_is_written() {
    let mut rig = Rig::new().await;
    let id = rig.create("data").await;
    rig.host("one").await;
    rig.ok(attach(id, "one")).await;
    rig.engine().core.write_labels().await;
    rig.platter.set_away(true);
    rig.restart().await;
    rig.ok(Action::Detach(VolumeRef::Id(id), "one".parse().unwrap())).await;
    rig.engine().core.write_labels().await;
    rig.platter.set_away(false);
    rig.until("the pool", |r| r.engine().view().pools(&who())[0].state == PoolState::Online).await;
    rig.until("the label", |r| r.engine().view().entry(id).is_some_and(|v| v.label.hosts.is_empty())).await;
}

fn alarm(rig: &Rig, subject: &str) -> Option<String> {
    rig.engine().view().alarms().into_iter().find(|a| a.subject == subject).map(|a| a.detail)
}

/// A detach is acknowledged while the label can't be written; then the journal is lost. The label says that the host belongs
/// there, and it is not let in, whenever the pool comes back.
#[tokio::test]
async fn a_label_that_is_behind_lets_nobody_in() {
    for starts in 0..2 {
        let mut rig = Rig::new().await;
        let (id, other) = (rig.create("data").await, rig.create("other").await);
        rig.host("gone").await;
        let stays = rig.host("stays").await;
        rig.ok(attach(id, "gone")).await;
        rig.ok(attach(other, "stays")).await;
        rig.engine().core.write_labels().await;
        assert_eq!(alarm(&rig, "labels"), None);
        rig.platter.set_away(true);
        rig.restart().await;
        rig.ok(detach(id, "gone")).await;
        rig.until("the alarm", |r| alarm(r, "labels").is_some()).await;
        rig.target.power_cycle();
        rig.lose_journal(|_| ()).await;
        for _ in 0..starts {
            rig.restart().await;
        }
        rig.platter.set_away(false);
        rig.until("it to be served", |r| !r.target.hosts(other).is_empty()).await;
        assert_eq!((rig.target.hosts(id), rig.target.hosts(other)), ([].into(), [stays].into()));
        assert!(!rig.engine().view().is_attached(id, &"gone".parse().unwrap()));
        let closed = format!("volume/{id}/access");
        assert!(alarm(&rig, &closed).unwrap().contains("attach it"), "{:?}", alarm(&rig, &closed));
        // Its label says so soon, and then it is as good as any.
        rig.until("the label", |r| alarm(r, "labels").is_none()).await;
        assert!(rig.platter.labels().iter().find(|l| l.id == id).unwrap().hosts.is_empty());
        assert!(!rig.dir.path().join("labels.behind").exists());
        let name = if rig.engine().view().counts().2 == 2 { "gone" } else { "stays" };
        rig.ok(attach(id, name)).await;
        assert_eq!(alarm(&rig, &closed), None);
    }
}

/// A label that fails is tried again, and is no alarm any more when it is written.
#[tokio::test]
async fn a_label_that_fails_is_behind_until_it_is_written() {
    let mut rig = Rig::new().await;
    let id = rig.create("data").await;
    rig.host("one").await;
    rig.ok(attach(id, "one")).await;
    rig.engine().core.write_labels().await;
    rig.platter.faults(|f| f.fail_relabel = true);
    rig.ok(detach(id, "one")).await;
    rig.engine().core.write_labels().await;
    let words = alarm(&rig, "labels").unwrap();
    assert!(words.contains(&id.to_string()) && words.contains("let in again"), "{words}");
    let kept = std::fs::read_to_string(rig.dir.path().join("labels.behind")).unwrap();
    assert_eq!(kept, format!("{id}\nend\n"));
    // A start finds out by itself.
    rig.platter.faults(|f| f.fail_relabel = false);
    rig.restart().await;
    rig.until("the label", |r| r.platter.labels()[0].hosts.is_empty()).await;
    rig.until("the alarm to go", |r| alarm(r, "labels").is_none()).await;
    // One that can't be read: nobody is let in by labels when the journal is lost.
    rig.ok(attach(id, "one")).await;
    rig.engine().core.write_labels().await;
    rig.lose_journal(|r| std::fs::write(r.dir.path().join("labels.behind"), "damaged").unwrap()).await;
    assert!(rig.target.hosts(id).is_empty());
    assert!(alarm(&rig, &format!("volume/{id}/access")).is_some());
}

#[tokio::test]
async fn what_a_crash_left_half_made_goes_at_start() {
    let mut rig = Rig::new().await;
    rig.platter.leave_partial(VolumeId::mint());
    rig.restart().await;
    assert_eq!(rig.platter.backings(), 0);
}

#[tokio::test]
async fn a_missing_pool_is_an_alarm_and_comes_back() {
    let mut rig = Rig::new().await;
    let id = rig.create("data").await;
    rig.host("one").await;
    rig.ok(attach(id, "one")).await;
    rig.platter.set_away(true);
    rig.target.power_cycle();
    rig.restart().await;
    assert_eq!(rig.engine().view().pools(&who())[0].state, PoolState::Missing);
    assert!(rig.engine().view().alarms().iter().any(|a| a.subject == "pool/tank"));
    assert_eq!(rig.fails(Action::CreateVolume(ask("x"))).await.kind, ErrorKind::Unavailable);
    assert_eq!(rig.target.exports(), 0);
    // Whether there is such a volume or snapshot is not known: who heard that there is none would take it for deleted.
    for unknown in
        [VolumeRef::Id(id), VolumeRef::Id(VolumeId::mint()), VolumeRef::Name("data".parse().unwrap())]
    {
        let attach = Action::Attach(unknown.clone(), "one".parse().unwrap(), Attach::default());
        for action in [Action::DeleteVolume(unknown, When::Now), attach] {
            let refused = rig.fails(action).await;
            assert_eq!(refused.kind, ErrorKind::Unavailable, "{}", refused.detail);
            assert!(refused.detail.contains("tank"), "{}", refused.detail);
        }
    }
    let snapshot = SnapshotRef::Name("s".parse().unwrap());
    assert_eq!(
        rig.fails(Action::DeleteSnapshot(snapshot.clone(), When::Now)).await.kind,
        ErrorKind::Unavailable
    );
    rig.platter.set_away(false);
    rig.until("it to be served", |r| r.target.exports() == 1 && r.engine().view().alarms().is_empty()).await;
    assert_eq!(rig.target.exports(), 1);
    assert_eq!(rig.engine().view().pools(&who())[0].state, PoolState::Online);
    assert!(rig.engine().view().alarms().is_empty(), "{:?}", rig.engine().view().alarms());
    assert_eq!(rig.fails(Action::DeleteSnapshot(snapshot, When::Now)).await.kind, ErrorKind::NotFound);
    let none = Action::DeleteVolume(VolumeRef::Id(VolumeId::mint()), When::Now);
    assert_eq!(rig.fails(none).await.kind, ErrorKind::NotFound);
}

#[tokio::test]
async fn a_restart_without_the_pool_leaves_connected_hosts_alone() {
    let mut rig = Rig::new().await;
    let id = rig.create("data").await;
    let one = rig.host("one").await;
    rig.ok(attach(id, "one")).await;
    rig.platter.set_away(true);
    let changes = rig.target.changes();
    rig.restart().await;
    assert_eq!(rig.target.hosts(id), [one.clone()].into(), "the export was taken down");
    rig.platter.set_away(false);
    rig.until("the pool", |r| r.engine().view().pools(&who())[0].state == PoolState::Online).await;
    assert_eq!((rig.target.hosts(id), rig.target.changes()), ([one].into(), changes));
}

#[tokio::test]
async fn a_drain_refuses_new_changes_and_finishes_old_ones() {
    let rig = Rig::new().await;
    rig.platter.faults(|f| f.hang.extend(["slow".to_string()]));
    let engine = rig.engine().clone();
    let slow =
        tokio::spawn(async move { engine.submit(who(), Action::CreateVolume(ask("slow")), LONG).await });
    tokio::time::sleep(SHORT).await;
    let engine = rig.engine().clone();
    let drain = tokio::spawn(async move { engine.drain(LONG).await });
    tokio::time::sleep(SHORT).await;
    assert_eq!(rig.fails(Action::CreateVolume(ask("late"))).await.kind, ErrorKind::Unavailable);
    rig.platter.faults(|f| f.hang.clear());
    assert!(slow.await.unwrap().is_ok());
    assert_eq!(drain.await.unwrap(), 0);
}

/// A stop waits for labels that are being written, not only for those that are due.
#[tokio::test]
async fn a_drain_waits_for_labels_that_are_being_written() {
    let rig = Rig::new().await;
    let id = rig.create("data").await;
    rig.host("one").await;
    rig.platter.faults(|f| f.hang.extend(["data".to_string()]));
    rig.ok(attach(id, "one")).await;
    rig.until("the label to be on its way", |r| r.engine().core.dirty.len() == 0).await;
    let engine = rig.engine().clone();
    let drain = tokio::spawn(async move { engine.drain(LONG).await });
    tokio::time::sleep(SHORT).await;
    assert!(!drain.is_finished());
    rig.platter.faults(|f| f.hang.clear());
    assert_eq!(drain.await.unwrap(), 0);
    assert_eq!(rig.platter.labels()[0].hosts.len(), 1);
}

/// A label that hangs keeps no other from being written, nor from being known to be behind: who is detached meanwhile must not be let
/// in by it if the journal is lost.
#[tokio::test]
async fn a_label_that_hangs_is_nobody_elses_trouble() {
    let rig = Rig::new().await;
    let (hangs, other, late) =
        (rig.create("hangs").await, rig.create("other").await, rig.create("late").await);
    rig.host("one").await;
    rig.ok(attach(late, "one")).await;
    rig.engine().core.write_labels().await;
    rig.platter.faults(|f| f.hang.extend(["hangs".to_string()]));
    rig.ok(attach(hangs, "one")).await;
    rig.until("the label to be on its way", |r| r.engine().core.dirty.len() == 0).await;
    rig.ok(attach(other, "one")).await;
    let hosts_of = |r: &Rig, id| r.platter.labels().iter().find(|l| l.id == id).map(|l| l.hosts.len());
    rig.until("the other label", |r| hosts_of(r, other) == Some(1)).await;
    rig.platter.faults(|f| f.hang.extend(["late".to_string()]));
    rig.ok(detach(late, "one")).await;
    let kept = rig.dir.path().join("labels.behind");
    rig.until("both to be kept as behind", |_| {
        let kept = std::fs::read_to_string(&kept).unwrap_or_default();
        kept.contains(&hangs.to_string()) && kept.contains(&late.to_string())
    })
    .await;
    // Marked while it is on its way: written once more after that.
    rig.ok(detach(hangs, "one")).await;
    rig.platter.faults(|f| f.hang.clear());
    rig.until("all to be as they should", |r| {
        [hangs, late].iter().all(|id| hosts_of(r, *id) == Some(0)) && !kept.exists()
    })
    .await;
}

/// What can't be closed is not forgotten, and the detach that wanted it is told of when it is done.
#[tokio::test]
async fn a_backing_that_can_not_be_closed_is_closed_later() {
    let rig = Rig::new().await;
    let id = rig.create("data").await;
    rig.host("one").await;
    rig.ok(attach(id, "one")).await;
    rig.platter.faults(|f| f.fail_close = true);
    let start = rig.engine().events().newest();
    rig.fails(detach(id, "one")).await;
    // Nobody is let in, and it is open.
    assert_eq!((rig.target.exports(), rig.platter.open_backings()), (0, 1));
    assert_eq!(rig.fails(delete(id)).await.kind, ErrorKind::Busy);
    rig.platter.faults(|f| f.fail_close = false);
    rig.settled().await;
    assert_eq!(rig.platter.open_backings(), 0);
    let told = rig.engine().events().after(start, 100);
    assert_eq!(told.iter().filter(|e| e.kind == EventKind::Detached).count(), 1, "{told:?}");
    rig.ok(delete(id)).await;
}

/// A change is counted, and has its line, also where nobody waits for it any more.
#[tokio::test]
async fn a_change_that_nobody_waits_for_is_noted() {
    let rig = Rig::new().await;
    rig.platter.faults(|f| f.hang.extend(["data".to_string()]));
    let gone = tokio::time::timeout(SHORT, rig.submit(Action::CreateVolume(ask("data")), LONG)).await;
    assert!(gone.is_err());
    rig.platter.faults(|f| f.hang.clear());
    let noted = async |rig: &Rig| {
        let metrics = rig.engine().core.settings.metrics.clone();
        let text = metrics.render(rig.engine().scrape().await).unwrap();
        text.lines().any(|l| {
            l.contains("create_volume")
                && l.contains("outcome=\"ok\"")
                && l.contains("_count")
                && l.ends_with(" 1")
        })
    };
    let started = Instant::now();
    while !noted(&rig).await {
        assert!(started.elapsed() < Duration::from_secs(60), "it is not noted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn labels_follow_attachments() {
    let rig = Rig::new().await;
    let id = rig.create("data").await;
    let nqn = rig.host("one").await;
    rig.ok(attach(id, "one")).await;
    rig.engine().core.write_labels().await;
    assert_eq!(rig.platter.labels()[0].hosts[0].nqn, Some(nqn));
    rig.ok(Action::UpdateVolume(by(id), VolumeUpdate::to_size(ByteSize(2 << 20)))).await;
    assert_eq!(rig.platter.labels()[0].hosts.len(), 1);
    rig.ok(detach(id, "one")).await;
    rig.engine().core.write_labels().await;
    assert!(rig.platter.labels()[0].hosts.is_empty());
}
