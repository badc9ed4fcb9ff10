//! CTL as the settings choose it: iSCSI by it, from a request to the file of a ctld that behaves.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::*;
use crate::config;
use crate::serving;
use crate::target::ctl::fake::Fake;
use crate::target::ctl::{CtlConfig, CtlFile};

const HOSTS: [&str; 2] = ["iqn.1993-08.org.debian:01:a", "iqn.1993-08.org.debian:01:b"];

/// A machine whose settings choose CTL for iSCSI.
struct Freebsd {
    rig: Rig,
    /// Where the file of ctld is.
    dir: tempfile::TempDir,
}

impl Freebsd {
    async fn new(open: impl Fn(CtlConfig) -> CtlFile + Send + Sync + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("orlopd.toml");
        let ctl = dir.path().join("ctl.conf");
        let text = format!("[ctl]\niscsi_portals = [\"192.0.2.9:3260\"]\nfile = {:?}\n", ctl.display());
        std::fs::write(&file, text).unwrap();
        let settings = config::load(&file, None).unwrap();
        let rig = Rig::with(move |targets, keys| {
            serving::take_over(targets, &settings, |config| open(config).with_keys(keys.clone()));
        });
        let machine = Self { rig: rig.await, dir };
        for (name, iqn) in ["one", "two"].into_iter().zip(HOSTS) {
            let put = HostPut { iqn: Some(iqn.parse().unwrap()), ..HostPut::default() };
            machine.rig.ok(Action::PutHost(name.parse().unwrap(), put)).await;
        }
        machine
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("ctl.conf")
    }

    /// The file, which nobody but its owner may look into.
    fn conf(&self) -> Value {
        assert_eq!(std::fs::metadata(self.file()).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(self.dir.path()).unwrap().count(), 2, "something is left beside it");
        serde_json::from_slice(&std::fs::read(self.file()).unwrap()).unwrap()
    }

    async fn create(&self) -> VolumeId {
        let ask = VolumeCreate { protocol: Some(Protocol::Iscsi), ..ask("disk") };
        match self.rig.ok(Action::CreateVolume(ask)).await {
            Outcome::Volume { volume, .. } => volume.id,
            other => panic!("{other:?}"),
        }
    }
}

fn chap(user: &str, secret: &str) -> ChapPut {
    serde_json::from_value(json!({"host": {"user": user, "secret": secret}})).unwrap()
}

#[tokio::test]
async fn a_volume_is_served_by_the_file_of_ctld() {
    let ctld: Arc<std::sync::OnceLock<Arc<Fake>>> = Arc::default();
    let shared = ctld.clone();
    let mut machine = Freebsd::new(move |config| {
        // It goes on while the daemon is started again.
        let fake = shared.get_or_init(|| Arc::new(Fake::new(&config.file))).clone();
        CtlFile::over(config, fake).with_poll(Duration::from_millis(1), Duration::from_secs(5))
    })
    .await;
    let ctld = ctld.get().unwrap().clone();
    let id = machine.create().await;
    assert!(!machine.file().exists(), "what nobody is attached to is not served");

    let Outcome::Attachment { attachment, .. } = machine.rig.ok(attach(id, "one")).await else { panic!() };
    let Access::Iscsi(access) = attachment.access else { panic!("{:?}", attachment.access) };
    let iqn = access.iqn.to_string();
    assert_eq!(access.portals, [Portal::tcp("192.0.2.9", 3260)]);
    assert!(ctld.log_in(&iqn, HOSTS[0], HOSTS[0], None).is_some());
    assert!(ctld.log_in(&iqn, HOSTS[1], HOSTS[1], None).is_none());

    machine.rig.ok(Action::ChapHost("one".parse().unwrap(), Some(chap("a", "a-secret-2345")))).await;
    assert!(!ctld.may(&iqn, HOSTS[0], None));
    assert!(ctld.may(&iqn, HOSTS[0], Some(("a".into(), "a-secret-2345".into()))));
    let group = format!("orlop-iscsi-{id}");
    let conf = machine.conf();
    let wanted = json!({
        "auth-type": "chap",
        "chap": [{"user": "a", "secret": "a-secret-2345"}],
        "initiator-name": [HOSTS[0]],
    });
    assert_eq!(conf["auth-group"][&group], wanted);
    assert_eq!(conf["portal-group"]["orlop"]["listen"], json!(["192.0.2.9:3260"]));
    let target = &conf["target"][&iqn];
    assert_eq!((&target["auth-group"], &target["portal-group"]), (&json!(group), &json!("orlop")));
    let lun = &target["lun"]["0"];
    assert_eq!((&lun["path"], &lun["size"]), (&json!(format!("/dev/fake/{id}")), &json!(1 << 20)));
    assert!(conf.get("controller").is_none());

    // A start finds all as it should be, and disturbs nobody.
    let (before, reloads) = (std::fs::read(machine.file()).unwrap(), ctld.reloads());
    machine.rig.restart().await;
    assert_eq!(std::fs::read(machine.file()).unwrap(), before);
    assert_eq!((ctld.reloads(), ctld.sessions().len()), (reloads, 1));

    let p = machine.rig.fails(attach(id, "two")).await;
    assert_eq!(p.kind, ErrorKind::Unsupported, "one proves itself, and the other does not: {p:?}");
    machine.rig.settled().await;
    // What was begun for the other one is taken back by a fence, after which hosts log in again.
    let user = || Some(("a".into(), "a-secret-2345".into()));
    assert!(ctld.log_in(&iqn, HOSTS[0], HOSTS[0], user()).is_some());
    assert!(!ctld.may(&iqn, HOSTS[1], None) && !ctld.may(&iqn, HOSTS[1], user()));
    machine.rig.ok(detach(id, "one")).await;
    assert!(ctld.sessions().is_empty() && ctld.targets().is_empty() && ctld.luns().is_empty());
    let conf = machine.conf();
    assert!(conf.get("target").is_none() && conf.get("auth-group").is_none(), "{conf}");
    machine.rig.ok(delete(id)).await;
}

#[tokio::test]
async fn a_machine_without_ctld_starts_and_says_what_it_lacks() {
    let mut machine = Freebsd::new(CtlFile::system).await;
    let id = machine.create().await;
    let p = machine.rig.fails(attach(id, "one")).await;
    assert_eq!(p.kind, ErrorKind::Unsupported);
    assert!(p.detail.contains("CTL: ctladm is not installed"), "{p:?}");
    assert!(!machine.file().exists());
    // All else goes on, after a restart too.
    let disk = machine.rig.create("data").await;
    machine.rig.host("three").await;
    machine.rig.ok(attach(disk, "three")).await;
    machine.rig.restart().await;
    assert_eq!(machine.rig.target.exports(), 1);
    machine.rig.ok(delete(id)).await;
}
