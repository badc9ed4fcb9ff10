//! How many sessions there are, for metrics.

use super::*;
use crate::kernel::configfs::ConfigFs;

#[test]
fn sessions_of_ours_are_counted_where_the_kernel_counts_them() {
    let dir = tempfile::tempdir().unwrap();
    let reservations = Arc::new(SimReservations(Arc::new(SimLio::new(SimLioKernel::default()))));
    let target = Lio::over(config(), Arc::new(ConfigFs::at(dir.path())), reservations);
    let count = || Protocol::sessions(&target, &soon()).unwrap();
    assert_eq!(count(), None);
    for (name, sessions) in [(iqn(0), "2"), (iqn(1), "1"), ("iqn.2001-04.com.example:other".into(), "7")] {
        let at = dir.path().join("iscsi").join(name).join("fabric_statistics/iscsi_instance");
        std::fs::create_dir_all(&at).unwrap();
        std::fs::write(at.join("sessions"), format!("{sessions}\n")).unwrap();
    }
    assert_eq!(count(), Some(3));
}
