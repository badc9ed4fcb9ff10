//! Tokens that may do less: what they may do, and what of others they come to know.

use super::*;
use crate::engine::action::{Principal, Role};
use crate::fingerprint::Fingerprint;
use crate::model::HostRecord;

impl Rig {
    /// A principal as it comes by a token that is made for it.
    async fn token(&self, name: &str, tenant: &str, pools: &[&str], verbs: &[Verb]) -> Principal {
        let scope = TokenPut {
            tenant: tenant.parse().unwrap(),
            pools: pools.iter().map(|p| p.parse().unwrap()).collect(),
            verbs: verbs.to_vec(),
            certificate: None,
        };
        let Outcome::Token(made) = self.ok(Action::PutToken(name.parse().unwrap(), scope)).await else {
            panic!()
        };
        self.engine().authenticate(made.secret.unwrap().expose()).unwrap()
    }

    async fn by(&self, who: &Principal, action: Action) -> Result<Outcome> {
        self.engine().submit(who.clone(), action, LONG).await
    }

    async fn made_by(&self, who: &Principal, name: &str) -> VolumeId {
        match self.by(who, Action::CreateVolume(ask(name))).await.unwrap() {
            Outcome::Volume { volume, .. } => volume.id,
            other => panic!("{other:?}"),
        }
    }
}

fn kind(result: Result<Outcome>) -> ErrorKind {
    result.unwrap_err().kind()
}

fn nqn(name: &str) -> HostPut {
    HostPut::nvme(format!("nqn.2014-08.org.nvmexpress:{name}").parse().unwrap())
}

fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

/// One of each change that there is.
fn each(volume: VolumeId, snapshot: SnapshotId) -> Vec<Action> {
    let name = |n: &str| n.parse().unwrap();
    let spec = crate::model::PoolSpec::try_from(PoolCreate {
        directory: Some("/other".into()),
        ..PoolCreate::new("other".parse().unwrap(), PoolKind::Sim)
    });
    let orphan = || OrphanId::new(7, None);
    vec![
        Action::CreatePool(spec.unwrap()),
        Action::ExportPool("tank".parse().unwrap()),
        Action::DeletePool("tank".parse().unwrap()),
        Action::ChangePool("tank".parse().unwrap(), crate::model::PoolChange::Scrub),
        Action::WipeDisk("sda".parse().unwrap(), DiskWipe::default()),
        Action::CreateVolume(ask("new")),
        Action::UpdateVolume(by(volume), VolumeUpdate::to_size(ByteSize(2 << 20))),
        Action::UnlockVolume(by(volume), KEY.parse().unwrap()),
        Action::ShowKey(by(volume)),
        Action::Backup,
        Action::Restore(crate::journal::backup::Text(Vec::new()), false),
        Action::Reload,
        Action::CreateSnapshot(SnapshotCreate { name: name("s"), volume: by(volume) }),
        Action::CreateSnapshotGroup(SnapshotGroupCreate { name: name("g"), volumes: vec![by(volume)] }),
        Action::DeleteSnapshot(SnapshotRef::Id(snapshot), When::Now),
        Action::RemoveOrphan(orphan()),
        Action::PutHost(host("h"), nqn("h")),
        Action::TrustHost(host("h")),
        Action::ChapHost(host("h"), None),
        Action::TlsHost(host("h"), None),
        Action::PutZone(host("z"), ZonePut::default()),
        Action::DeleteZone(host("z")),
        Action::DeleteKeytab,
        Action::PutToken("t".parse().unwrap(), scope_of("default", &[], &[])),
        Action::DeleteToken("t".parse().unwrap()),
        attach(volume, "h"),
        detach(volume, "h"),
        Action::DeleteHost(host("h")),
        Action::DeleteVolume(by(volume), When::Now),
        Action::AuthenticateHost(host("h"), dhchap()),
        Action::AcknowledgeAlarm("pool/tank".parse().unwrap()),
    ]
}

const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

fn dhchap() -> AuthenticationPut {
    let key = "DHHC-1:00:ia6zGodOr4SEG0Zzaw398rpY0wqipUWj4jWjUh4HWUz6aQ2n:";
    let (hash, dh_group) = Default::default();
    AuthenticationPut { key: key.parse().unwrap(), controller_key: None, hash, dh_group }
}

fn scope_of(tenant: &str, pools: &[&str], verbs: &[Verb]) -> TokenPut {
    TokenPut {
        tenant: tenant.parse().unwrap(),
        pools: pools.iter().map(|p| p.parse().unwrap()).collect(),
        verbs: verbs.to_vec(),
        certificate: None,
    }
}

#[tokio::test]
async fn a_token_does_what_it_was_given_and_nothing_else() {
    let rig = Rig::new().await;
    let volume = rig.create("data").await;
    let ask = SnapshotCreate { name: "before".parse().unwrap(), volume: by(volume) };
    let Outcome::Snapshot { snapshot, .. } = rig.ok(Action::CreateSnapshot(ask)).await else { panic!() };
    let looks = rig.token("looks", "default", &[], &[]).await;
    let all = rig.token("all", "default", &[], Verb::ALL).await;
    let mut given = std::collections::BTreeSet::new();
    for action in each(volume, snapshot.id) {
        let verb = action.verb();
        assert_eq!(kind(rig.by(&looks, action.clone()).await), ErrorKind::Forbidden, "{verb}");
        match action.given() {
            // The administrator's alone.
            None => assert_eq!(kind(rig.by(&all, action).await), ErrorKind::Forbidden, "{verb}"),
            Some(one) => {
                assert_eq!(one.as_str(), verb);
                given.insert(one);
                let rest: Vec<_> = Verb::ALL.iter().copied().filter(|v| *v != one).collect();
                let rest = rig.token(&format!("not-{verb}"), "default", &[], &rest).await;
                assert_eq!(kind(rig.by(&rest, action.clone()).await), ErrorKind::Forbidden, "{verb}");
                let only = rig.token(&format!("only-{verb}"), "default", &[], &[one]).await;
                let done = rig.by(&only, action).await;
                assert!(!matches!(done, Err(Error::Forbidden { .. })), "{verb}");
            }
        }
    }
    assert_eq!(given.into_iter().collect::<Vec<_>>(), Verb::ALL);
}

#[tokio::test]
async fn what_is_another_tenants_does_not_exist() {
    let rig = Rig::new().await;
    let red = rig.token("red", "red", &[], Verb::ALL).await;
    let blue = rig.token("blue", "blue", &[], Verb::ALL).await;
    let (theirs, ours) = (rig.made_by(&red, "data").await, rig.made_by(&blue, "data").await);
    assert_ne!(theirs, ours, "a name is unique in a tenant");
    rig.by(&red, Action::PutHost(host("red-1"), nqn("red-1"))).await.unwrap();
    rig.by(&blue, Action::PutHost(host("blue-1"), nqn("blue-1"))).await.unwrap();
    rig.by(&red, attach(theirs, "red-1")).await.unwrap();
    let take = SnapshotCreate { name: "s".parse().unwrap(), volume: by(theirs) };
    let taken = rig.by(&red, Action::CreateSnapshot(take.clone())).await.unwrap();
    let Outcome::Snapshot { snapshot, .. } = taken else { panic!() };

    // Seen by nobody else, by id as by name.
    {
        let view = rig.engine().view();
        assert_eq!(view.resolve(&blue, &"data".parse().unwrap()), Some(ours));
        assert_eq!(view.resolve(&blue, &by(theirs)), None);
        assert_eq!(view.resolve_snapshot(&blue, &SnapshotRef::Id(snapshot.id)), None);
        assert_eq!(view.volumes_page(&blue, None, None, 10).items.len(), 1);
        assert!(view.snapshots_page(&blue, None, None, 10).items.is_empty());
        assert!(view.snapshots_page(&blue, Some(theirs), None, 10).items.is_empty());
        let hosts = view.hosts_page(&blue, None, 10).items;
        assert_eq!(hosts.iter().map(|h| h.name.as_str()).collect::<Vec<_>>(), ["blue-1"]);
        assert_eq!(view.counts_of(&blue), (1, 1, 1, 0));
        // The administrator sees all of it.
        assert_eq!(view.volumes_page(&who(), None, None, 10).items.len(), 2);
        assert_eq!(view.resolve(&who(), &by(theirs)), Some(theirs));
        assert_eq!(view.resolve(&who(), &"data".parse().unwrap()), None, "its own tenant has no such name");
    }
    for action in [
        Action::UpdateVolume(by(theirs), VolumeUpdate::to_size(ByteSize(2 << 20))),
        Action::DeleteVolume(by(theirs), When::Now),
        Action::ShowKey(by(theirs)),
        Action::CreateSnapshot(SnapshotCreate { name: "x".parse().unwrap(), volume: by(theirs) }),
        Action::DeleteSnapshot(SnapshotRef::Id(snapshot.id), When::Now),
        Action::CreateVolume(VolumeCreate {
            source: Some(VolumeSource {
                snapshot: Some(SnapshotRef::Id(snapshot.id)),
                volume: None,
                mode: SourceMode::Linked,
            }),
            ..ask("clone")
        }),
        Action::CreateSnapshotGroup(SnapshotGroupCreate {
            name: "g".parse().unwrap(),
            volumes: vec![by(theirs)],
        }),
        Action::UnlockVolume(by(theirs), KEY.parse().unwrap()),
        attach(theirs, "blue-1"),
        detach(theirs, "red-1"),
    ] {
        // Not "not found": who deletes by id would take that for done.
        let verb = action.verb();
        assert_eq!(kind(rig.by(&blue, action).await), ErrorKind::Forbidden, "{verb}");
    }
    for action in [
        attach(ours, "red-1"),
        Action::AuthenticateHost(host("red-1"), dhchap()),
        Action::TrustHost(host("red-1")),
        Action::ChapHost(host("red-1"), None),
        Action::TlsHost(host("red-1"), None),
        Action::DeleteHost(host("red-1")),
        Action::DeleteVolume("nosuch".parse().unwrap(), When::Now),
    ] {
        let verb = action.verb();
        assert_eq!(kind(rig.by(&blue, action).await), ErrorKind::NotFound, "{verb}");
    }
    // To be let in where red's host is: by its name, and by what it is known by.
    let p = rig.by(&blue, Action::PutHost(host("red-1"), nqn("evil"))).await.unwrap_err().to_problem();
    assert_eq!((p.kind, p.field.as_deref()), (ErrorKind::Conflict, Some("tenant")));
    let p = rig.by(&blue, Action::PutHost(host("blue-2"), nqn("red-1"))).await.unwrap_err().to_problem();
    assert!(p.kind == ErrorKind::Conflict && !p.detail.contains("red-1 exists"), "{p:?}");
    // Nor does the administrator mix them.
    for (volume, at) in [(theirs, "blue-1"), (ours, "red-1")] {
        assert_eq!(rig.fails(attach(volume, at)).await.kind, ErrorKind::Precondition);
    }
    assert_eq!(rig.engine().view().hosts_of(theirs).count(), 1);
    // What it takes of another tenant's stays that tenant's.
    let Outcome::Snapshot { snapshot, .. } = rig
        .ok(Action::CreateSnapshot(SnapshotCreate { name: "by-admin".parse().unwrap(), volume: by(theirs) }))
        .await
    else {
        panic!()
    };
    assert_eq!(snapshot.tenant.as_str(), "red");
    let source =
        VolumeSource { snapshot: Some(SnapshotRef::Id(snapshot.id)), volume: None, mode: SourceMode::Linked };
    let Outcome::Volume { volume: clone, .. } =
        rig.ok(Action::CreateVolume(VolumeCreate { source: Some(source), ..ask("clone") })).await
    else {
        panic!()
    };
    assert_eq!(clone.tenant.as_str(), "red");
}

#[tokio::test]
async fn a_token_for_one_pool_uses_no_other() {
    let rig = Rig::new().await;
    let other = PoolCreate {
        directory: Some("/other".into()),
        ..PoolCreate::new("other".parse().unwrap(), PoolKind::Sim)
    };
    rig.ok(Action::CreatePool(other.try_into().unwrap())).await;
    let one = rig.token("one", "default", &["other"], Verb::ALL).await;
    let in_tank = rig.create("data").await;
    assert_eq!(kind(rig.by(&one, Action::CreateVolume(ask("new"))).await), ErrorKind::Forbidden);
    let in_other = |name: &str| VolumeCreate { pool: "other".parse().unwrap(), ..ask(name) };
    rig.by(&one, Action::CreateVolume(in_other("mine"))).await.unwrap();
    assert_eq!(kind(rig.by(&one, Action::DeleteVolume(by(in_tank), When::Now)).await), ErrorKind::Forbidden);
    // A name is one volume's, also where it can't be seen.
    let p = rig.by(&one, Action::CreateVolume(in_other("data"))).await.unwrap_err().to_problem();
    assert_eq!((p.kind, p.field.as_deref()), (ErrorKind::Conflict, Some("pool")));
    assert_eq!(rig.engine().view().volumes_page(&one, None, None, 10).items.len(), 1);
    let copy = VolumeCreate {
        source: Some(VolumeSource { snapshot: None, volume: Some(by(in_tank)), mode: SourceMode::Copied }),
        ..in_other("copy")
    };
    assert_eq!(kind(rig.by(&one, Action::CreateVolume(copy)).await), ErrorKind::Forbidden);
    // Of a host that is let in to what it may not know of it changes nothing: neither by what that is known, nor what it proves.
    rig.ok(Action::PutHost(host("both"), nqn("both"))).await;
    rig.ok(attach(in_tank, "both")).await;
    rig.by(&one, Action::PutHost(host("both"), nqn("both"))).await.unwrap();
    for action in [
        Action::PutHost(
            host("both"),
            HostPut { iqn: "iqn.2026-01.com.example:x".parse().ok(), ..nqn("both") },
        ),
        Action::AuthenticateHost(host("both"), dhchap()),
        Action::TrustHost(host("both")),
        Action::ChapHost(host("both"), None),
        Action::TlsHost(host("both"), None),
        Action::DeleteHost(host("both")),
    ] {
        let verb = action.verb();
        assert_eq!(kind(rig.by(&one, action).await), ErrorKind::Precondition, "{verb}");
    }
    {
        let view = rig.engine().view();
        assert!(view.host(&one, &host("both")).unwrap().volumes.is_empty());
        assert_eq!(view.pools(&one).len(), 1);
        let pool = view.pool(&one, &"other".parse().unwrap()).unwrap();
        assert_eq!((pool.volumes, pool.health), (1, None));
        assert!(view.pool(&one, &"tank".parse().unwrap()).is_none());
    }
    // Who may let in and not cut off takes no volume for a host alone.
    let lets_in = rig.token("lets-in", "default", &[], &[Verb::Attach]).await;
    let alone = |action| match action {
        Action::Attach(volume, host, how) => Action::Attach(volume, host, Attach { alone: true, ..how }),
        other => other,
    };
    assert_eq!(kind(rig.by(&lets_in, alone(attach(in_tank, "both"))).await), ErrorKind::Forbidden);
    rig.by(&lets_in, attach(in_tank, "both")).await.unwrap();
    let scope = scope_of("default", &["nosuch"], &[]);
    assert_eq!(rig.fails(Action::PutToken("x".parse().unwrap(), scope)).await.kind, ErrorKind::NotFound);
}

#[tokio::test]
async fn tokens_are_kept_changed_and_revoked() {
    let mut rig = Rig::new().await;
    let name = || "k8s".parse::<TokenName>().unwrap();
    let put = |scope: TokenPut| Action::PutToken(name(), scope);
    let Outcome::Token(made) = rig.ok(put(scope_of("red", &["tank"], Verb::CSI))).await else { panic!() };
    let secret = made.secret.unwrap();
    let scope_now = |rig: &Rig| match rig.engine().authenticate(secret.expose()).map(|p| p.role) {
        Some(Role::Scoped(scope)) => Some(TokenPut::clone(&scope)),
        Some(Role::Admin) => panic!("it may do everything"),
        None => None,
    };
    assert_eq!(scope_now(&rig), Some(scope_of("red", &["tank"], Verb::CSI)));
    // The same again: the same token, which is not shown again.
    let again = put(scope_of("red", &["tank", "tank"], &[Verb::CSI, Verb::CSI].concat()));
    let Outcome::Token(same) = rig.ok(again).await else { panic!() };
    assert_eq!((same.token, same.secret), (made.token, None));
    rig.ok(put(scope_of("red", &[], &[Verb::Attach]))).await;
    assert_eq!(scope_now(&rig), Some(scope_of("red", &[], &[Verb::Attach])));
    assert_eq!(rig.fails(put(scope_of("blue", &[], &[]))).await.field.as_deref(), Some("tenant"));
    rig.restart().await;
    assert_eq!(scope_now(&rig), Some(scope_of("red", &[], &[Verb::Attach])));
    assert_eq!(rig.engine().tokens().len(), 1);

    // A backup from before does not bring back what was revoked.
    let Outcome::Backup(backup) = rig.ok(Action::Backup).await else { panic!() };
    rig.ok(Action::DeleteToken(name())).await;
    assert_eq!(scope_now(&rig), None);
    assert_eq!(rig.fails(Action::DeleteToken(name())).await.kind, ErrorKind::NotFound);
    rig.ok(Action::Restore(backup, false)).await;
    assert_eq!((scope_now(&rig), rig.engine().tokens().len()), (None, 0));
    rig.restart().await;
    assert_eq!(scope_now(&rig), None);
    // Its name can be another's.
    let Outcome::Token(made) = rig.ok(put(scope_of("blue", &[], &[]))).await else { panic!() };
    assert!(made.secret.is_some_and(|new| new != secret));
    assert_eq!(scope_now(&rig), None);
    for action in [
        Action::PutToken("admin".parse().unwrap(), scope_of("default", &[], &[])),
        Action::DeleteToken("admin".parse().unwrap()),
    ] {
        assert_eq!(rig.fails(action).await.kind, ErrorKind::Invalid);
    }
}

/// An older daemon reads the table too. It knows of administrators' tokens alone.
#[test]
fn an_older_daemon_lets_nobody_in_by_a_token_that_may_do_less() {
    let record = crate::engine::tokens::tests_record();
    let json = serde_json::to_value(record).unwrap();
    // As an older one declares it.
    #[derive(serde::Deserialize)]
    struct Old {
        v: u32,
        sha256: [u8; 32],
    }
    let old: Old = serde_json::from_value(json).unwrap();
    assert_eq!((old.v, old.sha256), (2, [0; 32]));
}

/// What comes of an older daemon that has written a host anew.
#[tokio::test]
async fn a_host_that_lost_its_tenant_gets_it_back_from_labels() {
    let mut rig = Rig::new().await;
    let red = rig.token("red", "red", &[], Verb::ALL).await;
    let id = rig.made_by(&red, "data").await;
    rig.by(&red, Action::PutHost(host("red-1"), nqn("red-1"))).await.unwrap();
    rig.by(&red, attach(id, "red-1")).await.unwrap();
    let record = rig.engine().view().host_record(&host("red-1")).cloned().unwrap();
    let mut batch = crate::journal::Batch::default();
    batch.put(crate::journal::Table::Hosts, "red-1", &HostRecord { tenant: Default::default(), ..record });
    rig.engine().core.journal.commit(batch).await.unwrap();
    rig.restart().await;
    assert_eq!(rig.engine().view().host_record(&host("red-1")).unwrap().tenant.as_str(), "red");
    let default = rig.token("default", "default", &[], Verb::ALL).await;
    assert_eq!(kind(rig.by(&default, Action::TrustHost(host("red-1"))).await), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_zone_is_a_tenants() {
    let rig = Rig::new().await;
    let red = rig.token("red", "red", &[], Verb::ALL).await;
    let zone = |tenant: &str| ZonePut {
        networks: vec!["10.1.0.0/16".parse().unwrap()],
        tenant: tenant.parse().unwrap(),
        ..ZonePut::default()
    };
    rig.ok(Action::PutZone(host("lan"), zone("red"))).await;
    rig.ok(Action::PutZone(host("other"), zone("default"))).await;
    assert_eq!(rig.fails(Action::PutZone(host("lan"), zone("blue"))).await.field.as_deref(), Some("tenant"));
    let view = rig.engine().view();
    let seen: Vec<_> =
        view.zones_page(&red, None, 10).items.into_iter().map(|z| z.name.to_string()).collect();
    assert_eq!(seen, ["lan"]);
    assert!(view.zone(&red, &host("other")).is_none());
}

#[tokio::test]
async fn whose_hosts_are_is_known_again_without_the_journal() {
    let mut rig = Rig::new().await;
    let red = rig.token("red", "red", &[], Verb::ALL).await;
    let id = rig.made_by(&red, "data").await;
    rig.by(&red, Action::PutHost(host("red-1"), nqn("red-1"))).await.unwrap();
    rig.by(&red, attach(id, "red-1")).await.unwrap();
    rig.lose_journal(|_| {}).await;
    let record = rig.engine().view().host_record(&host("red-1")).cloned().unwrap();
    assert_eq!(record.tenant.as_str(), "red");
    assert_eq!(rig.engine().view().hosts_of(id).count(), 1);
    // Tokens are lost with it.
    assert!(rig.engine().tokens().is_empty());
}

/// A certificate, and what tells it from others.
fn certificate() -> (String, Fingerprint) {
    let pair = rcgen::KeyPair::generate().unwrap();
    let made = rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&pair).unwrap();
    (made.pem(), Fingerprint::of(made.der()))
}

fn by_certificate(pem: &str, tenant: &str) -> TokenPut {
    TokenPut { certificate: Some(pem.parse().unwrap()), ..scope_of(tenant, &[], &[]) }
}

#[tokio::test]
async fn a_certificate_lets_in_over_restarts_until_it_is_taken_back() {
    let mut rig = Rig::new().await;
    let ((pem, fingerprint), (other, _)) = (certificate(), certificate());
    let who = |rig: &Rig| rig.engine().authenticate_certificate(fingerprint).map(|who| who.name);
    rig.ok(Action::PutToken("red".parse().unwrap(), by_certificate(&pem, "red"))).await;
    assert_eq!(who(&rig).as_deref(), Some("token:red"));
    rig.restart().await;
    assert_eq!(who(&rig).as_deref(), Some("token:red"));
    rig.ok(Action::PutToken("red".parse().unwrap(), by_certificate(&other, "red"))).await;
    assert_eq!(who(&rig), None);
    rig.restart().await;
    assert_eq!(who(&rig), None);
    // It is free for another one now.
    rig.ok(Action::PutToken("blue".parse().unwrap(), by_certificate(&pem, "blue"))).await;
    assert_eq!(who(&rig).as_deref(), Some("token:blue"));
    rig.ok(Action::DeleteToken("blue".parse().unwrap())).await;
    rig.restart().await;
    assert_eq!(who(&rig), None);
}

#[tokio::test]
async fn one_certificate_is_one_tokens() {
    let rig = Rig::new().await;
    let (pem, fingerprint) = certificate();
    let put = |name: &str| Action::PutToken(name.parse().unwrap(), by_certificate(&pem, name));
    let names = ["a", "b", "c", "d"];
    let all = names.map(|name| rig.engine().submit(Principal::admin("test"), put(name), LONG));
    let all = futures_util::future::join_all(all).await;
    let made: Vec<_> = names.iter().zip(&all).filter(|(_, r)| r.is_ok()).map(|(name, _)| *name).collect();
    assert_eq!(made.len(), 1, "{all:?}");
    assert!(all.into_iter().filter_map(|r| r.err()).all(|e| e.kind() == ErrorKind::Conflict));

    // A restore brings it back under another name: nobody knows whose it is, so it is nobody's.
    let Outcome::Backup(backup) = rig.ok(Action::Backup).await else { panic!() };
    rig.ok(Action::DeleteToken(made[0].parse().unwrap())).await;
    let mut fresh = Rig::new().await;
    fresh.ok(Action::PutToken("mine".parse().unwrap(), by_certificate(&pem, "narrow"))).await;
    let who = |fresh: &Rig| fresh.engine().authenticate_certificate(fingerprint).map(|who| who.name);
    let Outcome::Restored(restored) = fresh.ok(Action::Restore(backup, true)).await else { panic!() };
    assert!(restored.closed.iter().any(|text| text.contains("the same certificate")), "{restored:?}");
    assert_eq!(who(&fresh), None);
    fresh.restart().await;
    assert_eq!(who(&fresh), None);
    fresh.ok(Action::DeleteToken(made[0].parse().unwrap())).await;
    assert_eq!(who(&fresh).as_deref(), Some("token:mine"));
}
