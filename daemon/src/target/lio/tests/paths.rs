//! What hosts are told of the paths to a volume.

use super::*;

#[test]
fn paths_are_equal_and_no_host_changes_that() {
    let s = Stand::new(SimLioKernel::default());
    let want = desired(&[(0, &[0])]);
    s.converge(Scope::All, &want).unwrap();
    assert_eq!(s.paths(0), BEST);
    let group = format!("{}/alua/default_tg_pt_gp", store(0));
    for deeds in [
        &[("alua_access_type", "3")][..],
        &[("alua_access_state", "2"), ("alua_access_type", "0")],
        &[("alua_access_state", "1"), ("alua_support_active_optimized", "0"), ("alua_access_type", "2")],
    ] {
        for (name, value) in deeds {
            s.tree.write(&format!("{group}/{name}"), value).unwrap();
        }
        let report = s.converge(Scope::Volume(volume(0)), &want).unwrap();
        assert_eq!(report.steps.len(), deeds.len(), "{:?}", report.steps);
        assert_eq!(s.paths(0), BEST);
    }
}
