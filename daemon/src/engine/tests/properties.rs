//! Properties and provisioning: when a volume is made, later, and after a crash in between.

use super::snapshots::from;
use super::*;
use crate::engine::intent::Intent;
use crate::engine::locks::Guards;
use crate::journal::Batch;
use crate::model::Label;

fn properties(text: &str) -> Properties {
    text.split_whitespace().fold(Properties::default(), |all, one| all.with(one.parse().unwrap()))
}

fn with(name: &str, text: &str) -> VolumeCreate {
    VolumeCreate { properties: properties(text), ..ask(name) }
}

fn set(id: VolumeId, text: &str) -> Action {
    Action::UpdateVolume(by(id), VolumeUpdate { properties: properties(text), ..VolumeUpdate::default() })
}

fn provision(id: VolumeId, provisioning: Provisioning) -> Action {
    let ask = VolumeUpdate { provisioning: Some(provisioning), ..VolumeUpdate::default() };
    Action::UpdateVolume(by(id), ask)
}

impl Rig {
    fn properties(&self, id: VolumeId) -> String {
        let shown = self.volume(id).unwrap().properties;
        let label = self.platter.labels().into_iter().find(|l| l.id == id).unwrap();
        assert_eq!(label.properties, shown, "the label says something else");
        shown.to_string()
    }

    /// What a crash leaves that comes after the intent and before anything was done.
    async fn interrupt(&self, intent: Intent) {
        self.engine().core.begin(intent, Guards::default(), Batch::default()).await.unwrap();
    }

    fn label(&self, id: VolumeId) -> Label {
        self.engine().view().entry(id).unwrap().label.clone()
    }
}

#[tokio::test]
async fn the_same_properties_again_are_the_same_volume() {
    let rig = Rig::new().await;
    let id = rig.make(with("data", "compression=zstd block_size=64K")).await;
    assert_eq!(rig.properties(id), "compression=zstd block_size=64K");
    let same = rig.ok(Action::CreateVolume(with("data", "compression=zstd block_size=64K"))).await;
    assert!(matches!(same, Outcome::Volume { changed: false, .. }));
    for (text, field, have, want) in [
        ("compression=lz4 block_size=64K", "properties.compression", "zstd", "lz4"),
        ("compression=zstd", "properties.block_size", "64K", "the pool's default"),
        ("compression=zstd block_size=64K dedup=off", "properties.dedup", "the pool's default", "off"),
    ] {
        let p = rig.fails(Action::CreateVolume(with("data", text))).await;
        assert_eq!((p.kind, p.field.as_deref()), (ErrorKind::Conflict, Some(field)), "{text}");
        assert_eq!((p.have.as_deref(), p.want.as_deref()), (Some(have), Some(want)), "{text}");
    }
    assert_eq!(rig.platter.backings(), 1);
}

#[tokio::test]
async fn what_is_given_is_changed_and_told() {
    let mut rig = Rig::new().await;
    let id = rig.make(with("data", "compression=lz4")).await;
    rig.host("one").await;
    rig.ok(attach(id, "one")).await;
    rig.engine().core.write_labels().await;
    let start = rig.engine().events().newest();
    rig.ok(set(id, "logbias=throughput")).await;
    assert_eq!(rig.properties(id), "compression=lz4 logbias=throughput");
    rig.ok(set(id, "compression=zstd-3 sync=always")).await;
    assert_eq!(rig.properties(id), "compression=zstd-3 logbias=throughput sync=always");
    let again = rig.ok(set(id, "compression=zstd-3")).await;
    assert!(matches!(again, Outcome::Volume { changed: false, .. }));
    // Together with a size.
    let ask = VolumeUpdate { properties: properties("dedup=on"), ..VolumeUpdate::to_size(ByteSize(2 << 20)) };
    rig.ok(Action::UpdateVolume(by(id), ask)).await;
    assert_eq!(rig.target.size(id), Some(ByteSize(2 << 20)));
    let told: Vec<EventKind> = rig.engine().events().after(start, 100).iter().map(|e| e.kind).collect();
    use EventKind::{VolumeChanged, VolumeResized};
    let told: Vec<_> = told.into_iter().filter(|k| [VolumeChanged, VolumeResized].contains(k)).collect();
    assert_eq!(told, [VolumeChanged, VolumeChanged, VolumeResized, VolumeChanged]);
    assert_eq!(rig.label(id).hosts.len(), 1, "the hosts are on the label still");
    let shown = rig.volume(id);
    rig.restart().await;
    assert_eq!(rig.volume(id), shown);
    let nothing = rig.fails(Action::UpdateVolume(by(id), VolumeUpdate::default())).await;
    assert_eq!(nothing.kind, ErrorKind::Invalid);
}

#[tokio::test]
async fn what_the_pool_cannot_do_is_refused_by_its_field() {
    let rig = Rig::new().await;
    let id = rig.make(with("data", "block_size=64K")).await;
    let p = rig.fails(set(id, "block_size=16K")).await;
    assert_eq!((p.kind, p.field.as_deref()), (ErrorKind::Unsupported, Some("properties.block_size")));
    rig.platter.faults(|f| f.plain = true);
    let bare = rig.create("bare").await;
    let changes = [
        (Action::CreateVolume(with("other", "dedup=on")), "properties.dedup"),
        (set(bare, "logbias=latency"), "properties.logbias"),
        (provision(bare, Provisioning::Thick), "provisioning"),
    ];
    for (action, field) in changes {
        let p = rig.fails(action).await;
        assert_eq!((p.kind, p.field.as_deref()), (ErrorKind::Unsupported, Some(field)));
        assert!(p.detail.contains(field), "{}", p.detail);
    }
    assert_eq!((rig.platter.backings(), rig.properties(bare).as_str()), (2, ""));
    assert!(rig.engine().view().alarms().is_empty());
}

#[tokio::test]
async fn sizes_are_whole_numbers_of_blocks() {
    let rig = Rig::new().await;
    let odd = ByteSize((1 << 20) + 4096);
    let field = |p: Problem| (p.kind, p.field.unwrap());
    let p = rig.fails(Action::CreateVolume(VolumeCreate { size: odd, ..with("x", "block_size=8K") })).await;
    assert_eq!(field(p), (ErrorKind::Invalid, "size".into()));
    let id = rig.make(with("data", "block_size=8K")).await;
    let p = rig.fails(Action::UpdateVolume(by(id), VolumeUpdate::to_size(odd))).await;
    assert_eq!(field(p), (ErrorKind::Invalid, "size".into()));
    // A linked clone has the blocks of its source, and may not ask for any.
    let clone = |name: &str| from(name, None, Some(id), SourceMode::Linked);
    let p = rig.fails(Action::CreateVolume(VolumeCreate { size: odd, ..clone("c") })).await;
    assert_eq!(field(p), (ErrorKind::Invalid, "size".into()));
    let asking = VolumeCreate { properties: properties("block_size=8K"), ..clone("c") };
    let p = rig.fails(Action::CreateVolume(asking)).await;
    assert_eq!(field(p), (ErrorKind::Invalid, "properties.block_size".into()));
    let with_others = || VolumeCreate { properties: properties("compression=lz4"), ..clone("c") };
    let c = rig.make(with_others()).await;
    assert_eq!(rig.properties(c), "compression=lz4 block_size=8K");
    let again = rig.ok(Action::CreateVolume(with_others())).await;
    assert!(matches!(again, Outcome::Volume { changed: false, .. }));
    // A copy shares none.
    let copy = VolumeCreate {
        properties: properties("block_size=4K"),
        ..from("d", None, Some(id), SourceMode::Copied)
    };
    let d = rig.make(copy).await;
    rig.until("the copy is whole", |rig| rig.volume(d).unwrap().state == VolumeState::Ready).await;
    assert_eq!(rig.properties(d), "block_size=4K");
}

#[tokio::test]
async fn thin_and_thick_are_changed_where_there_is_room() {
    let rig = Rig::new().await;
    let small = rig.create("small").await;
    let large = rig.make(VolumeCreate { size: ByteSize(60 << 30), ..ask("large") }).await;
    rig.fills_to(50, PoolFill::Ok).await;
    let of = |id| rig.volume(id).unwrap().provisioning;
    rig.ok(provision(small, Provisioning::Thick)).await;
    assert_eq!(of(small), Provisioning::Thick);
    assert_eq!(rig.fails(provision(large, Provisioning::Thick)).await.kind, ErrorKind::Exhausted);
    assert_eq!(of(large), Provisioning::Thin);
    let clone = rig.make(from("clone", None, Some(small), SourceMode::Linked)).await;
    let p = rig.fails(provision(clone, Provisioning::Thick)).await;
    assert_eq!((p.kind, p.field.as_deref()), (ErrorKind::Invalid, Some("provisioning")));
    // What needs no room is done in a full pool, too.
    rig.fills_to(99, PoolFill::Full).await;
    rig.ok(set(large, "compression=zstd")).await;
    rig.ok(provision(small, Provisioning::Thin)).await;
    assert_eq!(of(small), Provisioning::Thin);
}

#[tokio::test]
async fn what_is_not_so_when_it_is_read_back_is_not_said() {
    let rig = Rig::new().await;
    let id = rig.make(with("data", "compression=lz4")).await;
    rig.platter.faults(|f| f.deaf = true);
    let p = rig.fails(set(id, "compression=zstd")).await;
    assert!(p.kind == ErrorKind::Internal && p.detail.contains("reading it back"), "{p:?}");
    assert_eq!(rig.properties(id), "compression=lz4");
    assert_eq!(rig.volume(id).unwrap().state, VolumeState::Ready);
    rig.platter.faults(|f| f.deaf = false);
    rig.ok(set(id, "compression=zstd")).await;
    assert_eq!(rig.properties(id), "compression=zstd");
}

#[tokio::test]
async fn a_set_that_fails_half_way_leaves_a_label_that_is_true() {
    let rig = Rig::new().await;
    let id = rig.make(with("data", "compression=lz4")).await;
    rig.platter.faults(|f| f.fail_set = true);
    let ask = VolumeUpdate {
        properties: properties("compression=zstd"),
        ..VolumeUpdate::to_size(ByteSize(2 << 20))
    };
    assert_eq!(rig.fails(Action::UpdateVolume(by(id), ask)).await.kind, ErrorKind::Internal);
    let volume = rig.volume(id).unwrap();
    assert_eq!((rig.properties(id).as_str(), volume.size), ("compression=zstd", ByteSize::MIB));
    assert_eq!(volume.state, VolumeState::Ready);
}

#[tokio::test]
async fn a_crash_in_a_set_ends_in_what_was_asked() {
    let mut rig = Rig::new().await;
    let id = rig.make(with("data", "compression=lz4")).await;
    let pool: PoolName = "tank".parse().unwrap();
    let label = Label {
        properties: properties("compression=zstd logbias=throughput"),
        provisioning: Provisioning::Thick,
        size: ByteSize(2 << 20),
        ..rig.label(id)
    };
    // Twice: before anything was done, and after all of it was.
    for _ in 0..2 {
        rig.interrupt(Intent::SetVolume { pool: pool.clone(), label: label.clone() }).await;
        rig.restart().await;
        let volume = rig.volume(id).unwrap();
        assert_eq!(rig.properties(id), "compression=zstd logbias=throughput");
        assert_eq!((volume.provisioning, volume.size), (Provisioning::Thick, ByteSize(2 << 20)));
        assert!(rig.engine().core.unsettled.lock().is_empty());
    }
    // And where the volume has gone since, in nothing.
    rig.interrupt(Intent::SetVolume { pool, label: Label { id: VolumeId::mint(), ..label } }).await;
    rig.restart().await;
    assert_eq!(rig.engine().view().counts().1, 1);
    assert!(rig.engine().core.unsettled.lock().is_empty());
}
