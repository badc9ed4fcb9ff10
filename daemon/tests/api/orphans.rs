//! What nobody claims: listed, adopted, removed.

use std::path::PathBuf;

use orlop_api::client::Client;
use orlop_api::{
    ByteSize, ErrorKind, Orphan, OrphanAction, OrphanAdopt, OrphanId, OrphanKind, Volume, VolumeId,
};
use serde_json::json;

use super::daemon::{Daemon, ask};
use super::raw;

const SIZE: u64 = 1 << 20;

/// Where the volumes of a pool are.
fn volumes(d: &Daemon, pool: &str) -> PathBuf {
    d.dir.path().join(format!("pool-{pool}")).join("volumes")
}

/// Somebody's image.
fn image(d: &Daemon, name: &str, size: u64) -> PathBuf {
    let path = volumes(d, "tank").join(name);
    let mut content = name.as_bytes().to_vec();
    content.resize(size as usize, 7);
    std::fs::write(&path, content).unwrap();
    path
}

async fn find(client: &Client, name: &str) -> Option<Orphan> {
    client.orphans().await.unwrap().items.into_iter().find(|o| o.name == name)
}

async fn one(client: &Client, name: &str) -> Orphan {
    find(client, name).await.unwrap_or_else(|| panic!("no orphan {name}"))
}

fn called(name: &str) -> OrphanAdopt {
    OrphanAdopt { name: name.parse().unwrap() }
}

fn content(d: &Daemon, volume: &Volume) -> Vec<u8> {
    std::fs::read(volumes(d, "tank").join(format!("{}.img", volume.id))).unwrap()
}

#[tokio::test]
async fn an_image_of_others_becomes_a_volume() {
    let mut d = Daemon::start();
    let pool = d.pool("tank").await;
    d.pool("other").await;
    d.volume(&pool, "taken").await;
    let client = d.client();
    assert_eq!(client.orphans().await.unwrap(), Default::default());
    let file = image(&d, "vm.raw", SIZE);
    let bytes = std::fs::read(&file).unwrap();
    image(&d, "odd.raw", SIZE + 1);

    let vm = one(&client, "vm.raw").await;
    assert_eq!(
        (vm.kind, vm.size, vm.pool.as_ref()),
        (OrphanKind::Foreign, Some(ByteSize(SIZE)), Some(&pool.name))
    );
    assert_eq!(vm.actions, [OrphanAction::Adopt, OrphanAction::Ignore]);
    d.kill();
    d.again();
    let client = d.client();
    assert_eq!(one(&client, "vm.raw").await, vm);

    // What is refused changes nothing.
    let refused = |id: &OrphanId, name: &str| {
        let (client, id, name) = (client.clone(), id.clone(), name.to_string());
        async move { client.adopt_orphan(&id, &called(&name)).await.unwrap_err() }
    };
    let taken = refused(&vm.id, "taken").await;
    assert_eq!((taken.kind, taken.field.as_deref()), (ErrorKind::Conflict, Some("name")), "{taken:?}");
    let odd = one(&client, "odd.raw").await;
    assert!(
        odd.reason.contains("not a whole number of 4 KiB") && odd.actions == [OrphanAction::Ignore],
        "{odd:?}"
    );
    assert_eq!(refused(&odd.id, "odd").await.kind, ErrorKind::Precondition);
    for pool in ["tank", "none"] {
        let none = OrphanId::new(1, Some(&pool.parse().unwrap()));
        assert_eq!(refused(&none, "x").await.kind, ErrorKind::NotFound);
    }
    for id in [&vm.id, &odd.id] {
        assert_eq!(client.remove_orphan(id).await.unwrap_err().kind, ErrorKind::Precondition);
    }
    {
        let mut user = std::process::Command::new("sleep")
            .arg("60")
            .stdin(std::fs::File::open(&file).unwrap())
            .spawn()
            .unwrap();
        let used = refused(&vm.id, "x").await;
        user.kill().unwrap();
        user.wait().unwrap();
        assert_eq!(used.kind, ErrorKind::Precondition);
        assert!(used.detail.contains("is in use: it is open in sleep"), "{used:?}");
    }
    assert_eq!((std::fs::read(&file).unwrap(), one(&client, "vm.raw").await), (bytes.clone(), vm.clone()));
    assert_eq!(std::fs::read_dir(volumes(&d, "tank")).unwrap().count(), 4, "two of taken's, and two strays");

    // Names that differ in case only are two names.
    let volume = client.adopt_orphan(&vm.id, &called("TAKEN")).await.unwrap();
    assert_eq!((volume.size, volume.hosts.len()), (ByteSize(SIZE), 0));
    assert_eq!(client.adopt_orphan(&vm.id, &called("TAKEN")).await.unwrap(), volume);
    assert_eq!(refused(&vm.id, "another").await.kind, ErrorKind::NotFound);
    assert_eq!((content(&d, &volume), file.exists()), (bytes.clone(), false));
    assert!(find(&client, "vm.raw").await.is_none());

    d.kill();
    d.again();
    let client = d.client();
    assert_eq!(client.volume(&volume.id.into()).await.unwrap(), volume);
    let host = d.host("h").await;
    client.attach(&volume.id.into(), &host.name).await.unwrap();
    client.detach(&volume.id.into(), &host.name).await.unwrap();
    assert_eq!(content(&d, &volume), bytes);
    client.delete_volume(&volume.id.into()).await.unwrap();
}

#[tokio::test]
async fn leftovers_and_records_are_removed() {
    let mut d = Daemon::start();
    let pool = d.pool("tank").await;
    let client = d.client();
    let left = VolumeId::mint();
    std::fs::write(volumes(&d, "tank").join(format!("{left}.json.tmp")), "{").unwrap();
    let leftover = one(&client, &left.to_string()).await;
    assert_eq!(leftover.kind, OrphanKind::Leftover);
    let refused = client.adopt_orphan(&leftover.id, &called("x")).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Precondition);
    client.remove_orphan(&leftover.id).await.unwrap();
    assert_eq!(client.remove_orphan(&leftover.id).await.unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(std::fs::read_dir(volumes(&d, "tank")).unwrap().count(), 0);

    // A volume whose label was damaged stays whatever is asked, and its attachment can go.
    let volume = d.volume(&pool, "data").await;
    let host = d.host("h").await;
    client.attach(&volume.id.into(), &host.name).await.unwrap();
    d.kill();
    let label = volumes(&d, "tank").join(format!("{}.json", volume.id));
    let good = std::fs::read(&label).unwrap();
    std::fs::write(&label, "{").unwrap();
    d.again();
    let client = d.client();
    let damaged = one(&client, &format!("{}.json", volume.id)).await;
    assert_eq!((damaged.kind, &damaged.actions[..]), (OrphanKind::Volume, &[OrphanAction::Ignore][..]));
    assert_eq!(client.remove_orphan(&damaged.id).await.unwrap_err().kind, ErrorKind::Precondition);
    let refused = client.adopt_orphan(&damaged.id, &called("x")).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Precondition);
    let record = client.orphans().await.unwrap().items.into_iter().find(|o| o.kind == OrphanKind::Record);
    let record = record.unwrap();
    assert!(record.pool.is_none() && record.name.contains(host.name.as_str()), "{record:?}");
    client.remove_orphan(&record.id).await.unwrap();
    client.delete_host(&host.name).await.unwrap();

    // Put right by a person, it is taken in without a restart, and under another name too.
    std::fs::write(&label, good).unwrap();
    let late = one(&client, &volume.id.to_string()).await;
    let back = client.adopt_orphan(&late.id, &called("back")).await.unwrap();
    assert_eq!((back.id, back.name.as_str()), (volume.id, "back"));
    assert_eq!(client.orphans().await.unwrap(), Default::default());
}

#[tokio::test]
async fn a_pool_that_is_gone_hides_nothing_and_is_forgotten() {
    let mut d = Daemon::start();
    d.pool("tank").await;
    d.pool("gone").await;
    image(&d, "vm.raw", SIZE);
    d.stop();
    std::fs::remove_dir_all(d.dir.path().join("pool-gone")).unwrap();
    d.again();
    let client = d.client();
    // Whether it had a volume of that name is known when it is forgotten.
    assert_eq!(client.volume(&"x".parse().unwrap()).await.unwrap_err().kind, ErrorKind::Unavailable);
    let all = client.orphans().await.unwrap();
    let kinds: Vec<_> = all.items.iter().map(|o| (o.pool.as_ref().unwrap().as_str(), o.kind)).collect();
    assert_eq!(kinds, [("gone", OrphanKind::Record), ("tank", OrphanKind::Foreign)], "{all:?}");
    assert!(all.unanswered.is_empty());
    client.remove_orphan(&all.items[0].id).await.unwrap();
    assert_eq!(client.pools().await.unwrap().len(), 1);
    assert_eq!(client.volume(&"x".parse().unwrap()).await.unwrap_err().kind, ErrorKind::NotFound);
    d.kill();
    d.again();
    assert_eq!(d.client().pools().await.unwrap().len(), 1);
    assert!(d.client().system().await.unwrap().alarms.iter().all(|a| a.subject != "pool/gone"));

    // A directory that can't be read is not one that is gone, and hides no other.
    d.pool("other").await;
    std::fs::write(volumes(&d, "other").join("x"), "x").unwrap();
    d.stop();
    let marker = d.dir.path().join("pool-tank/.orlop-pool.json");
    std::fs::write(marker, "{").unwrap();
    d.again();
    let all = d.client().orphans().await.unwrap();
    assert_eq!((all.items.len(), all.unanswered.len()), (1, 1), "{all:?}");
    assert_eq!(all.items[0].pool.as_ref().unwrap().as_str(), "other");
    assert!(all.unanswered[0].reason.contains("damaged"), "{all:?}");
}

#[tokio::test]
async fn two_backings_of_one_volume_are_told_and_left_alone() {
    let mut d = Daemon::start();
    let pool = d.pool("tank").await;
    d.pool("other").await;
    let volume = d.volume(&pool, "data").await;
    d.stop();
    for name in [format!("{}.img", volume.id), format!("{}.json", volume.id)] {
        std::fs::copy(volumes(&d, "tank").join(&name), volumes(&d, "other").join(&name)).unwrap();
    }
    d.again();
    let client = d.client();
    let all = client.orphans().await.unwrap().items;
    assert_eq!((all.len(), all[0].kind), (1, OrphanKind::Volume), "{all:?}");
    assert_eq!(all[0].actions, [OrphanAction::Ignore]);
    assert_ne!(all[0].pool, Some(client.volume(&volume.id.into()).await.unwrap().pool));
    assert_eq!(client.remove_orphan(&all[0].id).await.unwrap_err().kind, ErrorKind::Precondition);
    let refused = client.adopt_orphan(&all[0].id, &called("x")).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Precondition);
    for pool in ["tank", "other"] {
        assert_eq!(std::fs::read_dir(volumes(&d, pool)).unwrap().count(), 2);
    }
}

/// Killed at every stage of an adoption: it is whole or it never was, and asking again makes it so.
#[tokio::test]
async fn a_kill_in_an_adoption_is_settled() {
    if !cfg!(feature = "failpoints") {
        return;
    }
    let mut d = Daemon::start();
    d.pool("tank").await;
    for stage in ["intent", "acted", "committed"] {
        let name = format!("{stage}.raw");
        let bytes = std::fs::read(image(&d, &name, SIZE)).unwrap();
        d.stop();
        d.again_until(&format!("adopt_volume.{stage}"));
        let orphan = one(&d.client(), &name).await;
        d.client().adopt_orphan(&orphan.id, &called(stage)).await.unwrap_err();
        d.kill();
        d.again();
        let client = d.client();
        assert_eq!(find(&client, &name).await.is_some(), stage == "intent", "{stage}");
        let volume = client.adopt_orphan(&orphan.id, &called(stage)).await.unwrap();
        assert_eq!((content(&d, &volume), volume.name.as_str()), (bytes, stage));
        assert_eq!(client.orphans().await.unwrap(), Default::default(), "{stage}");
    }
    assert_eq!(std::fs::read_dir(volumes(&d, "tank")).unwrap().count(), 6);
}

#[tokio::test]
async fn wrong_requests_say_what_is_wrong() {
    let d = Daemon::start();
    let pool = d.pool("tank").await;
    d.client().create_volume(&ask(&pool, "data", 4)).await.unwrap();
    image(&d, "vm.raw", SIZE);
    let vm = one(&d.client(), "vm.raw").await;
    let path = format!("/v1/orphans/{}/adopt", vm.id);
    for (path, body, kind, field) in [
        (path.as_str(), json!({"name": "a/b"}), "invalid", "name"),
        (path.as_str(), json!({"name": ""}), "invalid", "name"),
        (path.as_str(), json!({}), "invalid", "name"),
        (path.as_str(), json!({"name": "x", "size": 1}), "invalid", "size"),
        ("/v1/orphans/x/adopt", json!({"name": "x"}), "invalid", "orphan"),
        ("/v1/orphans/0123456789ABCDEF/adopt", json!({"name": "x"}), "invalid", "orphan"),
    ] {
        let reply = raw::call(&d.socket(), "POST", path, body.to_string().as_bytes());
        assert_eq!(
            (reply.kind().as_str(), reply.json()["field"].as_str()),
            (kind, Some(field)),
            "{path} {body}"
        );
    }
    let call = |method, path: &str| raw::call(&d.socket(), method, path, b"");
    assert_eq!(call("DELETE", "/v1/orphans/..").kind(), "invalid");
    assert_eq!(call("DELETE", "/v1/orphans/0123456789abcdef").kind(), "not_found");
    assert_eq!(call("DELETE", &format!("/v1/orphans/{}", vm.id)).status, 412);
    assert_eq!(call("GET", "/v1/orphans?limit=1").kind(), "invalid");
    assert_eq!(one(&d.client(), "vm.raw").await, vm);
}
