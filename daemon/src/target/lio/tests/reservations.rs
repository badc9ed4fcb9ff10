//! What hosts have reserved: given back, kept, forgotten.

use super::*;

const FILE: &str = "PR_REG_START: 0
initiator_fabric=iSCSI
initiator_node=iqn.1993-08.org.debian:01:a
sa_res_key=7
res_holder=1
PR_REG_END: 0
PR_REG_START: 1
initiator_fabric=iSCSI
initiator_node=iqn.1993-08.org.debian:01:d
sa_res_key=8
PR_REG_END: 1
";

#[test]
fn reservations_are_given_back_before_anybody_is_served_and_go_with_the_volume() {
    let s = Stand::new(SimLioKernel::default());
    let want = desired(&[(0, &[0, 1])]);
    let serial = &want[&volume(0)].identity.scsi_serial;
    let file = format!("/var/target/pr/aptpl_{serial}");
    s.tree.put_file(Path::new(&file), Some(FILE));
    for after in 0..40 {
        s.tree.fault_after(after, Fault::Fail(Errno::IO));
        let _ = s.converge(Scope::All, &want);
        s.tree.fault_after(usize::MAX, Fault::Fail(Errno::IO));
        s.converge(Scope::All, &want).unwrap();
        let restored = s.tree.restored(&store(0));
        assert_eq!(restored.len(), 1, "stopped after {after}: {restored:?}");
        assert!(restored[0].contains("sa_res_key=7,res_holder=1"), "{restored:?}");
        // Without its LUN it is made anew.
        s.tree.unlink(&format!("{}/lun/lun_0/{}", group(0), volume(0))).unwrap();
    }
    s.converge(Scope::All, &Desired::new()).unwrap();
    assert!(!s.tree.has_file(Path::new(&file)));
}

/// The file goes with the last attachment, and not because nobody can be let in.
#[test]
fn reservations_stay_while_a_host_is_kept_out() {
    let s = Stand::new(SimLioKernel::default());
    let want = desired(&[(0, &[0, 1])]);
    let file = format!("/var/target/pr/aptpl_{}", want[&volume(0)].identity.scsi_serial);
    let file = Path::new(&file);
    s.converge(Scope::All, &want).unwrap();
    s.tree.put_file(file, Some(FILE));
    // Nobody can be let in: it is taken down, in any scope, and nothing is forgotten.
    for scope in [Scope::Volume(volume(0)), Scope::All, Scope::Fence(volume(0)), Scope::Desired] {
        s.converge(scope, &want.clone().kept_out()).unwrap();
        assert!(s.tree.has_file(file), "{scope:?}");
    }
    assert!(s.tree.list(&store(0)).is_err());
    // One is let in, and the other one's are given back all the same: they come into force with its node ACL.
    let mut part = desired(&[(0, &[1])]);
    part.wait(volume(0), [host(0), host(2)]);
    s.converge(Scope::Volume(volume(0)), &part).unwrap();
    assert_eq!(s.tree.restored(&store(0)).len(), 1);
    assert_eq!(s.complaints(&part), [""; 0], "who waits is not let in");
    // Of somebody without a name it is known that he is attached.
    let mut nameless = Desired::new();
    nameless.wait(volume(0), []);
    s.converge(Scope::Volume(volume(0)), &nameless).unwrap();
    assert!(s.tree.has_file(file));
    // Now nobody is attached, and of the volume there is nothing else any more.
    s.converge(Scope::Fence(volume(0)), &Desired::new()).unwrap();
    assert!(!s.tree.has_file(file));
    assert_eq!(s.converge(Scope::Volume(volume(0)), &Desired::new()).unwrap().steps, [""; 0]);
}

/// Somebody may write another unit's serial number to our backstore: that unit's registrations are not ours to forget.
#[test]
fn another_unit_is_not_forgotten() {
    let s = Stand::new(SimLioKernel::default());
    s.tree.make_dir(&format!("core/{ADAPTER}")).unwrap();
    s.tree.make_dir(&store(0)).unwrap();
    s.tree.write(&format!("{}/wwn/vpd_unit_serial", store(0)), "theirs").unwrap();
    let theirs = Path::new("/var/target/pr/aptpl_theirs");
    s.tree.put_file(theirs, Some(FILE));
    s.converge(Scope::All, &Desired::new()).unwrap();
    assert!(s.tree.has_file(theirs) && s.tree.list(&store(0)).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is wanted in between, and wherever it stops: what nobody is attached to is forgotten, and nothing else.
    #[test]
    fn what_is_somebodys_is_kept(
        turns in proptest::collection::vec(
            (any_desired(), any::<[bool; 2]>(), proptest::option::of(0usize..60)),
            1..5,
        ),
    ) {
        let s = stand(SimLioKernel::default(), None, &[]);
        let file = |n| {
            let serial = Identity::of(volume(n), &NqnPrefix::default()).scsi_serial;
            std::path::PathBuf::from(format!("/var/target/pr/aptpl_{serial}"))
        };
        (0..2).for_each(|n| s.tree.put_file(&file(n), Some(FILE)));
        let mut kept = [true; 2];
        for (mut want, out, stop) in turns {
            for n in (0..2).filter(|n| out[*n]) {
                if let Some(export) = want.remove(&volume(n)) {
                    want.wait(volume(n), export.hosts.into_keys());
                }
            }
            s.tree.fault_after(stop.unwrap_or(usize::MAX), Fault::Fail(Errno::IO));
            let _ = s.converge(Scope::All, &want);
            s.tree.fault_after(usize::MAX, Fault::Fail(Errno::IO));
            for (n, kept) in kept.iter_mut().enumerate() {
                if want.is_attached(volume(n)) {
                    prop_assert_eq!(s.tree.has_file(&file(n)), *kept, "{}", n);
                    continue;
                }
                // As the last host is detached.
                prop_assert!(s.converge(Scope::Fence(volume(n)), &want).is_ok());
                *kept = false;
                prop_assert!(!s.tree.has_file(&file(n)), "{}", n);
            }
            prop_assert_eq!(s.complaints(&want), Vec::<String>::new());
        }
    }
}
