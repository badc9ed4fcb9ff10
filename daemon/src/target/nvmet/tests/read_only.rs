//! Hosts that may only read.

use super::*;

const READERS: Audience = Audience::Readers;

fn read_only() -> Desired {
    desired(&[(0, &[0, READS + 1])])
}

fn namespace(s: &Stand) -> String {
    s.tree.read(&format!("subsystems/{}/namespaces/1/device_path", nqn_for(0, READERS))).unwrap()
}

#[test]
fn a_reader_has_a_subsystem_and_a_device_of_its_own() {
    for (kernel, scope) in [SimKernel::default(), BLIND]
        .into_iter()
        .flat_map(|k| [Scope::All, Scope::Volume(volume(0))].map(|s| (k, s)))
    {
        let mut s = Stand::new(kernel);
        let want = read_only();
        s.converge(scope, &want).unwrap();
        let device = s.readers.get(volume(0)).unwrap().unwrap();
        assert_eq!((&*namespace(&s), device.on), (device.device.to_str().unwrap(), Some("/dev/d0".into())));
        assert!(s.connect(0, 1, FIRST_PORT).is_err(), "the reader is let in where it can write");
        assert!(s.connect_to(0, READERS, 0, FIRST_PORT).is_err());
        s.connect(0, 0, FIRST_PORT).unwrap();
        s.connect_to(0, READERS, 1, FIRST_PORT).unwrap();
        for scope in [Scope::All, Scope::Volume(volume(0))] {
            assert_eq!(s.converge(scope, &want).unwrap().steps, [""; 0]);
        }
        // It is the same disk to both.
        for what in ["device_uuid", "device_nguid"] {
            let of = |a| s.tree.read(&format!("subsystems/{}/namespaces/1/{what}", nqn_for(0, a))).unwrap();
            assert_eq!(of(Audience::Writers), of(READERS));
        }
        Target::announce_size(&s.target, &want[&volume(0)], &soon()).unwrap();
        assert_eq!(Audience::ALL.map(|a| s.tree.announced(&nqn_for(0, a))), [1, 1]);

        // The writer goes, and the reader does not notice.
        let reader = s.connections[1].2;
        s.converge(Scope::Fence(volume(0)), &desired(&[(0, &[READS + 1])])).unwrap();
        if kernel.debugfs {
            assert!(s.tree.is_live(reader));
        }
        assert!(s.tree.list(&format!("subsystems/{}", nqn(0))).is_err());
        s.converge(Scope::Fence(volume(0)), &Desired::new()).unwrap();
        assert_eq!(s.complaints(&Desired::new()), [""; 0]);
        assert_eq!(s.readers.volumes().unwrap(), BTreeSet::new());
        assert!(s.tree.dump().keys().all(|k| k.starts_with("ports/")), "{:?}", s.tree.dump());
    }
}

#[test]
fn a_writer_that_may_only_read_from_now_on_is_cut_off() {
    for kernel in [SimKernel::default(), BLIND] {
        let mut s = Stand::new(kernel);
        s.converge(Scope::All, &desired(&[(0, &[0, 1])])).unwrap();
        s.connect_all();
        let want = read_only();
        s.converge(Scope::All, &want).unwrap();
        assert_eq!(s.complaints(&want), [""; 0]);
        s.connect_to(0, READERS, 1, FIRST_PORT).unwrap();
    }
}

#[test]
fn a_device_that_is_on_another_or_of_nobody_goes() {
    let s = Stand::new(SimKernel::default());
    let want = read_only();
    s.readers.make(volume(0), "/dev/other".as_ref()).unwrap();
    s.readers.make(volume(1), "/dev/d1".as_ref()).unwrap();
    assert_eq!(Target::served(&s.target, &soon()).unwrap().len(), 2);
    s.converge(Scope::All, &want).unwrap();
    assert_eq!(s.readers.volumes().unwrap(), [volume(0)].into());
    assert_eq!(s.readers.get(volume(0)).unwrap().unwrap().on, Some("/dev/d0".into()));
    // Somebody gave the readers the device that can be written.
    let path = format!("subsystems/{}/namespaces/1", nqn_for(0, READERS));
    s.tree.write(&format!("{path}/enable"), "0").unwrap();
    s.tree.write(&format!("{path}/device_path"), "/dev/d0").unwrap();
    s.tree.write(&format!("{path}/enable"), "1").unwrap();
    assert_eq!(s.target.drifted(&want, &soon()).unwrap(), [volume(0)].into());
    s.converge(Scope::Volume(volume(0)), &want).unwrap();
    assert_eq!(namespace(&s), s.readers.get(volume(0)).unwrap().unwrap().device.to_str().unwrap());
    // The backing has another device after a boot.
    let mut moved = want.clone();
    moved.get_mut(&volume(0)).unwrap().backing = "/dev/d7".into();
    s.converge(Scope::Volume(volume(0)), &moved).unwrap();
    assert_eq!(s.readers.get(volume(0)).unwrap().unwrap().on, Some("/dev/d7".into()));
}

#[test]
fn a_kernel_without_such_devices_serves_writers_and_no_reader() {
    let s = Stand::new(SimKernel::default());
    let target = Nvmet::over(config(), s.watched.clone(), Some(Arc::new(s.tree.debug())), s.ring.clone())
        .with_readers(Arc::new(SimReadOnlyDevices::lacking()))
        .with_poll(Duration::ZERO);
    let report = target.converge(Scope::All, &desired(&[(0, &[READS + 1]), (1, &[0])]), &soon()).unwrap();
    assert!(matches!(report.failed[&volume(0)], TargetError::Unsupported(_)), "{report:?}");
    assert!(s.tree.may_connect(&nqn_for(0, READERS), &HOSTS).is_empty());
    assert!(s.tree.connect(HOSTS[0], &nqn(1), FIRST_PORT).is_ok(), "another volume");
}

#[test]
fn a_reader_comes_by_tls_with_a_key_for_its_own_subsystem() {
    let mut s = Stand::new(SimKernel::default());
    let want = desired(&[(0, &[READS + SECURE])]);
    s.converge(Scope::All, &want).unwrap();
    s.connect_to(0, READERS, SECURE, SECURE_PORT).unwrap();
    let identities = s.ring.identities().unwrap();
    assert!(identities.iter().all(|i| i.contains(&nqn_for(0, READERS))), "{identities:?}");
    s.keys.put_tls(&HOSTS[SECURE].parse().unwrap(), Some(tls_key(2)));
    Target::prove(&s.target, &host(SECURE), &soon()).unwrap();
    s.connect_to(0, READERS, SECURE, SECURE_PORT).unwrap();
    assert_eq!(s.converge(Scope::All, &want).unwrap().steps, [""; 0]);
    s.converge(Scope::Fence(volume(0)), &Desired::new()).unwrap();
    assert_eq!(s.ring.identities().unwrap(), [""; 0]);
    assert_eq!(s.complaints(&Desired::new()), [""; 0]);
}
