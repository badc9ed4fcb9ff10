//! Snapshots, clones and copies, as clients see them.

use std::collections::BTreeSet;

use orlop_api::client::SnapshotFilter;
use orlop_api::{
    ErrorKind, SnapshotCreate, SnapshotGroupCreate, SnapshotState, SourceMode, VolumeCreate, VolumeSource,
    VolumeState, When,
};

use super::daemon::{Daemon, ask};
use super::raw;

fn linked(create: VolumeCreate, volume: &str) -> VolumeCreate {
    let volume = Some(volume.parse().unwrap());
    VolumeCreate { source: Some(VolumeSource { snapshot: None, volume, mode: SourceMode::Linked }), ..create }
}

fn shot(name: &str, volume: &str) -> SnapshotCreate {
    SnapshotCreate { name: name.parse().unwrap(), volume: volume.parse().unwrap() }
}

#[tokio::test]
async fn a_snapshot_from_taking_to_deleting() {
    let mut d = Daemon::start();
    let pool = d.pool("tank").await;
    let (a, b) = (d.volume(&pool, "a").await, d.volume(&pool, "b").await);
    let client = d.client();
    let made = client.create_snapshot(&shot("s", "a")).await.unwrap();
    assert_eq!((made.volume, made.size, made.state, made.ready), (a.id, a.size, SnapshotState::Ready, true));
    assert_eq!(client.create_snapshot(&shot("s", "a")).await.unwrap(), made);
    let conflict = client.create_snapshot(&shot("s", "b")).await.unwrap_err();
    assert_eq!((conflict.kind, conflict.field.as_deref()), (ErrorKind::Conflict, Some("volume")));
    assert_eq!(client.create_snapshot(&shot("t", "none")).await.unwrap_err().kind, ErrorKind::NotFound);

    // Names that differ in case only are two names.
    client.create_snapshot(&shot("S", "a")).await.unwrap();
    d.kill();
    d.again();
    let client = d.client();
    let after = client.snapshot(&made.id.into()).await.unwrap();
    assert_eq!((after.id, after.created, after.size), (made.id, made.created, made.size));
    let of = |volume: &str| SnapshotFilter { volume: Some(volume.parse().unwrap()), ..Default::default() };
    assert_eq!(client.all_snapshots(of("a")).await.unwrap().len(), 2);
    assert!(client.all_snapshots(of("b")).await.unwrap().is_empty());
    assert_eq!(client.all_snapshots(of("none")).await.unwrap_err().kind, ErrorKind::NotFound);
    let named = SnapshotFilter { name: Some("s".parse().unwrap()), ..Default::default() };
    assert_eq!(client.all_snapshots(named).await.unwrap()[0].id, made.id);

    let refused = client.delete_volume(&a.id.into()).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Precondition);
    assert_eq!(
        BTreeSet::from_iter(refused.dependants),
        ["snapshot S", "snapshot s"].map(String::from).into()
    );
    for name in ["s", "S"] {
        assert!(client.delete_snapshot(&name.parse().unwrap(), When::Now).await.unwrap());
    }
    client.delete_volume(&a.id.into()).await.unwrap();
    client.delete_volume(&b.id.into()).await.unwrap();
    client.delete_pool(&pool.name).await.unwrap();
}

#[tokio::test]
async fn pages_of_snapshots_have_everything_once() {
    let d = Daemon::start();
    let pool = d.pool("tank").await;
    for name in ["a", "b"] {
        d.volume(&pool, name).await;
    }
    let client = d.client();
    let mut made = Vec::new();
    for n in 0..130 {
        let volume = if n % 2 == 0 { "a" } else { "b" };
        made.push(client.create_snapshot(&shot(&format!("s{n}"), volume)).await.unwrap().id);
    }
    for volume in [None, Some("a"), Some("b")] {
        let mut filter = SnapshotFilter {
            limit: Some(20),
            volume: volume.map(|v| v.parse().unwrap()),
            ..Default::default()
        };
        let mut seen = Vec::new();
        loop {
            let page = client.snapshots(&filter).await.unwrap();
            assert!(page.items.len() <= 20);
            seen.extend(page.items.iter().map(|s| s.id));
            match page.next {
                Some(next) => filter.cursor = Some(next),
                None => break,
            }
        }
        let odd = |n: &usize| volume.is_none_or(|v| (v == "b") == (n % 2 == 1));
        let wanted: Vec<_> = (0..130).filter(odd).map(|n| made[n]).collect();
        assert_eq!(seen, wanted, "{volume:?}");
    }
}

#[tokio::test]
async fn a_clone_and_a_copy_hold_what_their_source_held() {
    let d = Daemon::start();
    let pool = d.pool("tank").await;
    let other = d.pool("other").await;
    let a = d.volume(&pool, "a").await;
    let client = d.client();
    // A simulated pool's images are plain files.
    let image = |pool: &str, id| d.dir.path().join(format!("pool-{pool}/volumes/{id}.img"));
    std::fs::write(image("tank", a.id), vec![7u8; usize::try_from(a.size.0).unwrap()]).unwrap();
    let clone = client.create_volume(&linked(ask(&pool, "c", 8), "a")).await.unwrap();
    assert_eq!(clone.state, VolumeState::Ready);
    assert_eq!(clone.source.as_ref().unwrap().volume, a.id);
    let mut wanted = vec![7u8; usize::try_from(a.size.0).unwrap()];
    wanted.resize(usize::try_from(clone.size.0).unwrap(), 0);
    assert!(std::fs::read(image("tank", clone.id)).unwrap() == wanted);

    let elsewhere = client.create_volume(&linked(ask(&other, "x", 8), "a")).await.unwrap_err();
    assert_eq!((elsewhere.kind, elsewhere.field.as_deref()), (ErrorKind::Invalid, Some("source")));
    let mut create = linked(ask(&other, "x", 8), "a");
    create.source.as_mut().unwrap().mode = SourceMode::Copied;
    let mut copy = client.create_volume(&create).await.unwrap();
    for _ in 0..500 {
        if copy.state == VolumeState::Ready {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        copy = client.volume(&copy.id.into()).await.unwrap();
    }
    assert_eq!((copy.state, copy.progress), (VolumeState::Ready, None));
    assert!(std::fs::read(image("other", copy.id)).unwrap() == wanted);
    assert_eq!(client.create_volume(&create).await.unwrap().id, copy.id);
    // Neither depends on it here: images that share blocks know nothing of each other.
    client.delete_volume(&a.id.into()).await.unwrap();
    assert_eq!(client.create_volume(&create).await.unwrap().id, copy.id, "with its source gone");
    assert!(std::fs::read(image("tank", clone.id)).unwrap() == wanted);
}

#[tokio::test]
async fn what_is_deleted_when_unused_goes_then() {
    let d = Daemon::start();
    let pool = d.pool("tank").await;
    let a = d.volume(&pool, "a").await;
    let client = d.client();
    let s = client.create_snapshot(&shot("s", "a")).await.unwrap();
    assert!(!client.delete_volume_when(&a.id.into(), When::Unused).await.unwrap());
    assert_eq!(client.volume(&a.id.into()).await.unwrap().state, VolumeState::Deleting);
    assert_eq!(client.volume(&"a".parse().unwrap()).await.unwrap_err().kind, ErrorKind::NotFound);
    assert!(!client.delete_volume_when(&a.id.into(), When::Unused).await.unwrap(), "again");
    assert!(client.delete_snapshot(&s.id.into(), When::Unused).await.unwrap(), "nothing depended on it");
    for _ in 0..500 {
        if client.volume(&a.id.into()).await.is_err() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("it is still there");
}

#[tokio::test]
async fn groups_and_bad_input() {
    let d = Daemon::start();
    let (pool, other) = (d.pool("tank").await, d.pool("other").await);
    for (pool, name) in [(&pool, "a"), (&pool, "b"), (&other, "o")] {
        d.volume(pool, name).await;
    }
    let client = d.client();
    let ask = |name: &str, volumes: &[&str]| SnapshotGroupCreate {
        name: name.parse().unwrap(),
        volumes: volumes.iter().map(|v| v.parse().unwrap()).collect(),
    };
    let group = client.create_snapshot_group(&ask("g", &["a", "b"])).await.unwrap();
    assert_eq!(group.snapshots.len(), 2);
    assert!(group.snapshots.iter().all(|s| s.group.as_ref().is_some_and(|g| g.as_str() == "g")));
    assert_eq!(client.snapshot_group(&group.name).await.unwrap(), group);
    for (bad, kind) in [
        (ask("h", &["a", "o"]), ErrorKind::Invalid),
        (ask("h", &[]), ErrorKind::Invalid),
        (ask("h", &["a", "a"]), ErrorKind::Invalid),
        (ask("h", &["a", "none"]), ErrorKind::NotFound),
        (ask("g", &["a"]), ErrorKind::Conflict),
        (ask(&"x".repeat(127), &["a"]), ErrorKind::Invalid),
    ] {
        assert_eq!(client.create_snapshot_group(&bad).await.unwrap_err().kind, kind, "{bad:?}");
    }
    for (path, body) in [
        ("/v1/snapshots", r#"{"name":"x","volume":"a/b"}"#),
        ("/v1/snapshots", r#"{"name":"x"}"#),
        ("/v1/snapshots", r#"{"name":"..","volume":"a"}"#),
        ("/v1/volumes", r#"{"name":"x","pool":"tank","size":4096,"source":{"mode":"linked"}}"#),
        (
            "/v1/volumes",
            r#"{"name":"x","pool":"tank","size":4096,"source":{"volume":"a","mode":"borrowed"}}"#,
        ),
        ("/v1/volumes", r#"{"name":"x","pool":"tank","size":4096,"source":{"volume":"a","x":1}}"#),
    ] {
        assert_eq!(raw::call(&d.socket(), "POST", path, body.as_bytes()).status, 400, "{path} {body}");
    }
    for path in ["/v1/volumes/a?when=later", "/v1/volumes/a?when=now&x=1", "/v1/pools/tank?when=unused"] {
        assert_eq!(raw::call(&d.socket(), "DELETE", path, b"").status, 400, "{path}");
    }
    assert_eq!(client.all_snapshots(Default::default()).await.unwrap().len(), 2);
    assert_eq!(client.all_volumes(Default::default()).await.unwrap().len(), 3);
}
