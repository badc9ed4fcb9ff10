//! Random histories of a `sim` pool beside a model of it, shortened where they fail.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use orlopd::kernel::Deadline;
use orlopd::model::{PoolMedium, PoolSpec};
use orlopd::pool::PoolEnv;
use orlopd::pool::contract::Subject;
use orlopd::pool::contract::history::{Step, replay};
use proptest::prelude::*;

fn step() -> impl Strategy<Value = Step> {
    let n = any::<u8>;
    prop_oneof![
        4 => (n(), any::<bool>()).prop_map(|(mib, thick)| Step::Create { mib, thick }),
        1 => n().prop_map(|volume| Step::CreateAgain { volume }),
        4 => (n(), n(), n()).prop_map(|(volume, piece, seed)| Step::Write { volume, piece, seed }),
        2 => (n(), n()).prop_map(|(volume, mib)| Step::Grow { volume, mib }),
        1 => n().prop_map(|volume| Step::Shrink { volume }),
        2 => (n(), n(), any::<bool>())
            .prop_map(|(volume, property, thick)| Step::Set { volume, property, thick }),
        1 => (n(), n()).prop_map(|(volume, hosts)| Step::Relabel { volume, hosts }),
        4 => (n(), any::<Option<u8>>()).prop_map(|(volume, and)| Step::Snapshot { volume, and }),
        3 => (n(), n()).prop_map(|(snapshot, mib)| Step::Clone { snapshot, mib }),
        2 => n().prop_map(|volume| Step::Destroy { volume }),
        2 => n().prop_map(|snapshot| Step::DestroySnapshot { snapshot }),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn histories_match_the_model(steps in prop::collection::vec(step(), 1..50)) {
        let dir = tempfile::tempdir().unwrap();
        let spec = PoolSpec {
            v: 1,
            name: "contract".parse().unwrap(),
            medium: PoolMedium::Sim { directory: dir.path().to_owned() },
        };
        let env = PoolEnv::default();
        orlopd::pool::create(&spec, &env, &Deadline::after(Duration::from_secs(60))).unwrap();
        replay(&Subject { spec, env }, &steps).map_err(TestCaseError::fail)?;
    }
}
