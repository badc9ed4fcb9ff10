//! Hosts that must prove a secret: given, changed, taken back, lost.

use std::collections::BTreeSet;

use orlop_api::{Authentication, AuthenticationPut, Tls, TlsPut};

use super::*;
use crate::target::keys::Proof;

const KEY: &str = "DHHC-1:01:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:";
const OTHER: &str = "DHHC-1:01:AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyAl7OaH:";

fn secret(key: &str, controller: Option<&str>) -> AuthenticationPut {
    AuthenticationPut {
        key: key.parse().unwrap(),
        controller_key: controller.map(|k| k.parse().unwrap()),
        hash: Default::default(),
        dh_group: Default::default(),
    }
}

impl Rig {
    fn authentication(&self, host: &str) -> Option<Authentication> {
        self.engine().view().host(&who(), &host.parse().unwrap()).unwrap().authentication
    }

    fn asked(&self, host: &Nqn) -> Option<Proof> {
        self.engine().core.settings.host_keys.get(host.as_str())
    }

    async fn authenticate(&self, host: &str, ask: AuthenticationPut) {
        self.ok(Action::AuthenticateHost(host.parse().unwrap(), ask)).await;
    }

    fn is_alarmed(&self) -> bool {
        self.engine().view().alarms().iter().any(|a| a.subject == "host/one/secret")
    }

    async fn let_in(&self, id: VolumeId, hosts: &[&Nqn]) {
        let wanted: BTreeSet<Nqn> = hosts.iter().map(|h| (*h).clone()).collect();
        self.until("only those to be let in", |r| r.target.hosts(id) == wanted).await;
    }
}

#[tokio::test]
async fn a_secret_is_asked_for_over_restarts_and_until_it_is_taken_back() {
    let mut rig = Rig::new().await;
    let one = rig.host("one").await;
    assert_eq!(rig.authentication("one"), None);
    rig.authenticate("one", secret(KEY, Some(OTHER))).await;
    let Some(Authentication::Required { mutual: true, .. }) = rig.authentication("one") else { panic!() };
    let id = rig.create("data").await;
    rig.ok(attach(id, "one")).await;
    assert!(matches!(rig.asked(&one), Some(Proof::Secret(s)) if s.key.expose() == KEY));
    rig.restart().await;
    assert!(matches!(rig.asked(&one), Some(Proof::Secret(s)) if s.key.expose() == KEY));
    assert_eq!(rig.target.hosts(id).len(), 1);

    rig.authenticate("one", secret(OTHER, None)).await;
    assert!(matches!(rig.asked(&one), Some(Proof::Secret(s)) if s.key.expose() == OTHER));
    let Some(Authentication::Required { mutual: false, .. }) = rig.authentication("one") else { panic!() };
    // What makes it a host does not make it one without a secret.
    rig.host("one").await;
    assert!(rig.authentication("one").is_some());

    for _ in 0..2 {
        rig.ok(Action::TrustHost("one".parse().unwrap())).await;
        assert_eq!(rig.asked(&one), Some(Proof::Nothing));
        assert_eq!(rig.authentication("one"), None);
    }
    rig.restart().await;
    assert_eq!(rig.asked(&one), None);
}

#[tokio::test]
async fn what_is_no_proof_is_refused() {
    let rig = Rig::new().await;
    let missing = rig.fails(Action::AuthenticateHost("one".parse().unwrap(), secret(KEY, None))).await;
    assert_eq!(missing.kind, ErrorKind::NotFound);
    let one = rig.host("one").await;
    let same = rig.fails(Action::AuthenticateHost("one".parse().unwrap(), secret(KEY, Some(KEY)))).await;
    assert_eq!((same.kind, same.field.as_deref()), (ErrorKind::Invalid, Some("controller_key")));
    assert!(!format!("{same:?}").contains("DHHC"));
    assert_eq!((rig.authentication("one"), rig.asked(&one)), (None, None));
}

/// The labels say that there was a secret, and nothing says which: who has only the name stays out.
#[tokio::test]
async fn a_lost_secret_keeps_its_host_out_until_it_is_given_again() {
    let mut rig = Rig::new().await;
    let (one, two) = (rig.host("one").await, rig.host("two").await);
    rig.authenticate("one", secret(KEY, None)).await;
    let ids = [rig.create("data").await, rig.create("log").await];
    for id in ids {
        rig.ok(attach(id, "one")).await;
    }
    rig.ok(attach(ids[0], "two")).await;
    rig.engine().core.write_labels().await;
    rig.engine().core.tasks.lock().abort_all();
    rig.engine = None;
    // Wait until the old journal is closed, then lose it.
    tokio::time::sleep(Duration::from_millis(300)).await;
    std::fs::remove_dir_all(rig.dir.path().join("journal")).unwrap();
    rig.target.power_cycle();
    rig.start().await;
    assert_eq!(rig.authentication("one"), Some(Authentication::Lost));
    assert!(rig.is_alarmed());
    rig.let_in(ids[0], &[&two]).await;
    rig.let_in(ids[1], &[]).await;
    let refused = rig.fails(attach(ids[1], "one")).await;
    assert_eq!(refused.kind, ErrorKind::Precondition);
    // That lasts, also when the labels are written anew.
    rig.restart().await;
    assert_eq!(rig.authentication("one"), Some(Authentication::Lost));
    assert!(rig.is_alarmed());

    rig.authenticate("one", secret(OTHER, None)).await;
    assert!(!rig.is_alarmed());
    rig.let_in(ids[1], &[&one]).await;
    rig.let_in(ids[0], &[&one, &two]).await;
    assert!(matches!(rig.asked(&one), Some(Proof::Secret(s)) if s.key.expose() == OTHER));
}

const TLS: &str = "NVMeTLSkey-1:01:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:";
const TLS_TOO: &str = "NVMeTLSkey-1:01:AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyAl7OaH:";

fn tls(key: &str) -> Option<TlsPut> {
    Some(TlsPut { key: key.parse().unwrap(), compat: false })
}

impl Rig {
    fn encrypted(&self, host: &str) -> Option<Tls> {
        self.engine().view().host(&who(), &host.parse().unwrap()).unwrap().tls
    }

    fn tls_key(&self, host: &Nqn) -> Option<String> {
        self.engine().core.settings.host_keys.tls(host.as_str()).map(|put| put.key.expose().to_string())
    }
}

#[tokio::test]
async fn a_host_comes_by_tls_or_not_and_changes_that_when_it_is_detached() {
    let mut rig = Rig::new().await;
    let one = rig.host("one").await;
    rig.host("two").await;
    let set = |key| Action::TlsHost("one".parse().unwrap(), key);
    let (id, plain) = (rig.create("data").await, rig.create("log").await);
    rig.ok(attach(plain, "one")).await;
    let refused = rig.fails(set(tls(TLS))).await;
    assert_eq!((refused.kind, refused.dependants), (ErrorKind::Precondition, vec![plain.to_string()]));
    assert_eq!((rig.encrypted("one"), rig.tls_key(&one)), (None, None));
    rig.ok(Action::Detach(VolumeRef::Id(plain), "one".parse().unwrap())).await;

    rig.ok(set(tls(TLS))).await;
    rig.ok(attach(id, "one")).await;
    assert_eq!(rig.encrypted("one"), Some(Tls::Required { compat: false }));
    assert!(rig.target.export(id).unwrap().tls());
    // Nobody comes to the same volume without, and it comes to no volume that is served without.
    let beside = rig.fails(attach(id, "two")).await;
    assert_eq!((beside.kind, beside.dependants), (ErrorKind::Precondition, vec!["one".to_string()]));
    rig.ok(attach(plain, "two")).await;
    assert!(!rig.target.export(plain).unwrap().tls());
    assert_eq!(rig.fails(attach(plain, "one")).await.kind, ErrorKind::Precondition);
    // But in the other's place it does.
    rig.ok(Action::Attach(
        VolumeRef::Id(plain),
        "one".parse().unwrap(),
        Attach { alone: true, ..Attach::default() },
    ))
    .await;
    assert!(rig.target.export(plain).unwrap().tls());

    // Another key is known to the target at once, over restarts too, and whatever makes it a host.
    rig.ok(set(tls(TLS_TOO))).await;
    assert_eq!(rig.tls_key(&one).as_deref(), Some(TLS_TOO));
    rig.restart().await;
    rig.host("one").await;
    assert_eq!(rig.tls_key(&one).as_deref(), Some(TLS_TOO));
    assert!(rig.target.export(id).unwrap().tls());
    assert_eq!(rig.fails(set(None)).await.kind, ErrorKind::Precondition);
    for volume in [id, plain] {
        rig.ok(Action::Detach(VolumeRef::Id(volume), "one".parse().unwrap())).await;
    }
    for _ in 0..2 {
        rig.ok(set(None)).await;
        assert_eq!((rig.encrypted("one"), rig.tls_key(&one)), (None, None));
    }
}

#[tokio::test]
async fn a_lost_key_keeps_its_host_out_until_it_is_given_again() {
    let mut rig = Rig::new().await;
    let one = rig.host("one").await;
    rig.ok(Action::TlsHost("one".parse().unwrap(), tls(TLS))).await;
    let id = rig.create("data").await;
    rig.ok(attach(id, "one")).await;
    rig.engine().core.write_labels().await;
    rig.engine().core.tasks.lock().abort_all();
    rig.engine = None;
    // Wait until the old journal is closed, then lose it.
    tokio::time::sleep(Duration::from_millis(300)).await;
    std::fs::remove_dir_all(rig.dir.path().join("journal")).unwrap();
    rig.target.power_cycle();
    rig.start().await;
    assert_eq!(rig.encrypted("one"), Some(Tls::Lost));
    assert!(rig.is_alarmed());
    rig.let_in(id, &[]).await;
    // It may not be let in without TLS instead.
    assert_eq!(rig.fails(Action::TlsHost("one".parse().unwrap(), None)).await.kind, ErrorKind::Precondition);
    rig.ok(Action::TlsHost("one".parse().unwrap(), tls(TLS))).await;
    assert!(!rig.is_alarmed());
    rig.let_in(id, &[&one]).await;
    assert!(rig.target.export(id).unwrap().tls());
}
