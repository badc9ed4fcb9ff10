//! What lives how long: paging, dependants, restarts, stops.

use std::time::Duration;

use orlop_api::client::VolumeFilter;
use orlop_api::{ByteSize, ErrorKind, VolumeRef, VolumeUpdate};

use super::daemon::{Daemon, ask};
use super::raw;

#[tokio::test]
async fn pages_have_everything_once() {
    let d = Daemon::start();
    let (pool, other) = (d.pool("tank").await, d.pool("other").await);
    let client = d.client();
    let mut made = Vec::new();
    for n in 0..250 {
        let pool = if n % 10 == 0 { &other } else { &pool };
        made.push(client.create_volume(&ask(pool, &format!("v{n}"), 1)).await.unwrap().id);
    }
    let mut seen = Vec::new();
    let mut filter = VolumeFilter { limit: Some(60), ..VolumeFilter::default() };
    let mut pages = 0;
    loop {
        let page = client.volumes(&filter).await.unwrap();
        pages += 1;
        assert!(page.items.len() <= 60);
        seen.extend(page.items.iter().map(|v| v.id));
        // A volume that goes between two pages takes no other one with it.
        if pages == 2 {
            client.delete_volume(&seen[100].into()).await.unwrap();
        }
        match page.next {
            Some(next) => filter.cursor = Some(next),
            None => break,
        }
    }
    assert_eq!(pages, 5);
    made.sort();
    assert_eq!(seen, made);

    let first = client.volumes(&VolumeFilter::default()).await.unwrap();
    assert_eq!(first.items.len(), 100, "the default");
    let exact = VolumeFilter { limit: Some(249), ..VolumeFilter::default() };
    assert!(client.volumes(&exact).await.unwrap().next.is_none(), "no empty last page");
    let of_pool = VolumeFilter { pool: Some(other.name.clone()), limit: Some(7), ..VolumeFilter::default() };
    let in_other = client.all_volumes(of_pool).await.unwrap();
    assert!((24..=25).contains(&in_other.len()) && in_other.iter().all(|v| v.pool == other.name));
    let named = VolumeFilter { name: Some("v7".parse().unwrap()), ..VolumeFilter::default() };
    assert_eq!(client.volumes(&named).await.unwrap().items.len(), 1);
    let nobody = VolumeFilter { name: Some("none".parse().unwrap()), ..VolumeFilter::default() };
    assert!(client.volumes(&nobody).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn what_is_used_is_not_deleted() {
    let d = Daemon::start();
    let pool = d.pool("tank").await;
    let volume = d.volume(&pool, "data").await;
    let host = d.host("h").await;
    let client = d.client();
    let by_name: VolumeRef = volume.name.clone().into();
    let attachment = client.attach(&by_name, &host.name).await.unwrap();
    assert_eq!(attachment.volume, volume.id);
    let nvme = attachment.nvme().unwrap();
    assert_eq!(Some(&nvme.host_nqn), host.nqn.as_ref());
    assert_eq!(Some(&nvme.nqn), volume.nqn.as_ref());
    assert!(!nvme.portals.is_empty());

    let refused = client.delete_volume(&by_name).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Precondition);
    assert!(refused.dependants.iter().any(|d| d.contains('h')), "{refused:?}");
    let refused = client.delete_pool(&pool.name).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Precondition);
    assert!(!refused.dependants.is_empty());
    let refused = client.delete_host(&host.name).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Precondition);
    assert!(!refused.dependants.is_empty());

    let larger = VolumeUpdate::to_size(ByteSize(volume.size.0 * 2));
    assert_eq!(Some(client.update_volume(&by_name, &larger).await.unwrap().size), larger.size);
    assert_eq!(Some(client.attachment(&by_name, &host.name).await.unwrap().size), larger.size);
    assert_eq!(client.attachments(&by_name).await.unwrap().len(), 1);
    assert_eq!(client.volume(&by_name).await.unwrap().hosts, std::slice::from_ref(&host.name));
    assert_eq!(client.host(&host.name).await.unwrap().volumes, [volume.id]);

    client.detach(&by_name, &host.name).await.unwrap();
    client.delete_host(&host.name).await.unwrap();
    client.delete_volume(&volume.id.into()).await.unwrap();
    client.delete_pool(&pool.name).await.unwrap();
    let system = client.system().await.unwrap();
    assert_eq!((system.pools, system.volumes, system.hosts, system.attachments), (0, 0, 0, 0));
}

#[tokio::test]
async fn a_restart_keeps_everything() {
    let mut d = Daemon::start_tls();
    let pool = d.pool("tank").await;
    let volume = d.volume(&pool, "data").await;
    let host = d.host("h").await;
    let before = d.client().attach(&volume.id.into(), &host.name).await.unwrap();
    let (token, ca, id) = (d.token(), d.ca(), d.client().system().await.unwrap().id);

    let stopped = d.stop();
    assert!(stopped.success(), "{stopped}");
    assert!(!d.socket().exists(), "a stopped daemon leaves no socket");
    d.again();
    let check = async |d: &Daemon| {
        let client = d.tls_client();
        assert_eq!(client.volume(&volume.id.into()).await.unwrap().hosts, std::slice::from_ref(&host.name));
        assert_eq!(client.attachment(&volume.id.into(), &host.name).await.unwrap(), before);
        assert_eq!(client.host(&host.name).await.unwrap().nqn, host.nqn);
        assert_eq!(client.pool(&pool.name).await.unwrap().volumes, 1);
        assert_eq!(client.system().await.unwrap().id, id);
    };
    check(&d).await;
    d.kill();
    assert!(d.socket().exists(), "a killed one does");
    d.again();
    check(&d).await;
    assert_eq!((token, ca), (d.token(), d.ca()));
}

#[tokio::test]
async fn one_daemon_a_socket() {
    let d = Daemon::start();
    let second = std::process::Command::new(env!("CARGO_BIN_EXE_orlopd"))
        .args(["--sim", "--listen", "none", "--state"])
        .arg(d.dir.path().join("other"))
        .arg("--socket")
        .arg(d.socket())
        .output()
        .unwrap();
    assert!(!second.status.success());
    let text = String::from_utf8_lossy(&second.stderr);
    assert!(text.contains("another daemon"), "{text}");
    assert!(d.client().system().await.is_ok());

    // Something that is not a socket is left alone.
    let file = d.dir.path().join("precious");
    std::fs::write(&file, "data").unwrap();
    let third = std::process::Command::new(env!("CARGO_BIN_EXE_orlopd"))
        .args(["--sim", "--listen", "none", "--state"])
        .arg(d.dir.path().join("third"))
        .arg("--socket")
        .arg(&file)
        .output()
        .unwrap();
    assert!(!third.status.success());
    assert_eq!(std::fs::read(&file).unwrap(), b"data");
}

#[tokio::test]
async fn a_stop_ends_event_streams_and_idle_connections() {
    let mut d = Daemon::start();
    let socket = d.socket();
    let reader = std::thread::spawn(move || raw::get(&socket, "/v1/events"));
    let idle = std::os::unix::net::UnixStream::connect(d.socket()).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let started = std::time::Instant::now();
    assert!(d.stop().success());
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(reader.join().unwrap().unwrap().status, 200);
    drop(idle);
}

#[tokio::test]
async fn the_document_answers_for_every_route() {
    let d = Daemon::start();
    let document = d.client().openapi().await.unwrap();
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() >= 14, "{}", paths.len());
    for (path, item) in paths {
        let real = path.replace("{volume}", "none").replace("{host}", "none").replace("{pool}", "none");
        for method in item.as_object().unwrap().keys() {
            if path == "/v1/events" {
                continue;
            }
            let reply = raw::call(&d.socket(), &method.to_uppercase(), &real, b"");
            assert_ne!(reply.status, 405, "{method} {path}");
            if reply.status == 404 {
                let detail = reply.json()["detail"].as_str().unwrap().to_owned();
                assert!(!detail.contains("no such route"), "{method} {path}: {detail}");
            }
        }
    }
    let metrics = d.client().metrics().await.unwrap();
    for name in ["orlop_build_info", "orlop_state", "orlop_volumes", "orlop_http_requests_total"] {
        assert!(metrics.contains(name), "{name}");
    }
}

#[tokio::test]
async fn the_configuration_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("orlopd.toml");
    let check = || {
        std::process::Command::new(env!("CARGO_BIN_EXE_orlopd"))
            .args(["--check-config", "--config"])
            .arg(&file)
            .env_remove("CREDENTIALS_DIRECTORY")
            .output()
            .unwrap()
    };
    std::fs::write(&file, "[limits]\ndrain_seconds = 7\n").unwrap();
    let good = check();
    assert!(good.status.success());
    assert!(String::from_utf8_lossy(&good.stdout).contains("drain_seconds = 7"));
    std::fs::write(&file, "[limits]\ndrain = 7\n[api]\nlisten = [\"x\"]\n").unwrap();
    let bad = check();
    assert_eq!(bad.status.code(), Some(1));
    let text = String::from_utf8_lossy(&bad.stderr).into_owned();
    assert!(text.contains("orlopd.toml:2: unknown field `drain`"), "{text}");
    let both = "[ctl]\niscsi_portals = [\"10.0.0.1:3260\"]\n[lio]\nportals = [\"10.0.0.2:3260\"]\n";
    std::fs::write(&file, both).unwrap();
    let text = String::from_utf8_lossy(&check().stderr).into_owned();
    assert!(
        text.contains("orlopd.toml:4: lio.portals and ctl.iscsi_portals would both serve iSCSI"),
        "{text}"
    );
    std::fs::write(&file, "[ctl]\niscsi_portals = [\"10.0.0.1:3260\"]\n").unwrap();
    assert!(check().status.success());
    let simulated = std::process::Command::new(env!("CARGO_BIN_EXE_orlopd"))
        .args(["--sim", "--listen", "none", "--state"])
        .arg(dir.path().join("state"))
        .arg("--config")
        .arg(&file)
        .env_remove("CREDENTIALS_DIRECTORY")
        .output()
        .unwrap();
    assert_eq!(simulated.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&simulated.stderr).contains("CTL is not simulated"));
    // Portals: none twice, each with its port, no more than there are ports for.
    let many: Vec<_> = (0..65).map(|n| format!("\"10.0.0.{n}:4420\"")).collect();
    let many = many.join(", ");
    for (bad, told) in [
        (format!("[nvmet]\nportals = [{many}]\n"), "nvmet.portals must name at most 64"),
        ("[nvmet]\nportals = []\n".into(), "nvmet.portals must name at least one address"),
        ("[nvmet]\nportals = [\"10.0.0.1\"]\n".into(), "nvmet.portals must be ADDRESS:PORT"),
        ("[nvmet]\nportals = [\"host:4420\"]\n".into(), "nvmet.portals must be ADDRESS:PORT"),
        ("[lio]\nportals = [\"10.0.0.1:0\"]\n".into(), "lio.portals must have a port other than 0"),
        ("[lio]\nportals = [\"10.0.0.1:65536\"]\n".into(), "lio.portals must be ADDRESS:PORT"),
        ("[lio]\nportals = [\"[::]:3260\", \"[::]:3260\"]\n".into(), "lio.portals has [::]:3260 twice"),
        ("[nfs]\nlisten = [\"10.0.0.1:2049\"]\n".into(), "nfs.listen must be numeric addresses"),
    ] {
        std::fs::write(&file, &bad).unwrap();
        let answer = check();
        let text = String::from_utf8_lossy(&answer.stderr).into_owned();
        assert!(answer.status.code() == Some(1) && text.contains(told), "{bad}: {text}");
    }
}
