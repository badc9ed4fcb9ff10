//! iSCSI by a simulated LIO: what hosts have reserved stays as long as anybody is attached.

use std::path::PathBuf;

use parking_lot::Mutex;
use serde_json::json;

use super::*;
use crate::model::{Identity, NqnPrefix};
use crate::target::lio::{ADAPTER, Lio, LioConfig};
use crate::target::sim::lio::{SimLio, SimLioKernel, SimReservations};

const HOST: &str = "iqn.1993-08.org.debian:01:a";

/// What the kernel writes of a host that reserved a unit and wants that to outlive a restart.
const WRITTEN: &str = "PR_REG_START: 0
initiator_fabric=iSCSI
initiator_node=iqn.1993-08.org.debian:01:a
sa_res_key=7
res_holder=1
PR_REG_END: 0
";

/// A machine with a kernel that can be another one after a power cut.
struct Machine {
    rig: Rig,
    kernel: Arc<Mutex<Arc<SimLio>>>,
    id: VolumeId,
}

impl Machine {
    /// With one volume, attached to one host, which has reserved it.
    async fn new() -> Self {
        let kernel = Arc::new(Mutex::new(Arc::new(SimLio::new(SimLioKernel::default()))));
        let shared = kernel.clone();
        let rig = Rig::with(move |targets, keys| {
            let tree = shared.lock().clone();
            let files = Arc::new(SimReservations(tree.clone()));
            let target = Arc::new(Lio::over(LioConfig::default(), tree, files).with_keys(keys.clone()));
            targets.insert(Protocol::Iscsi, Offer { target, offered: true });
        })
        .await;
        let put = HostPut { iqn: Some(HOST.parse().unwrap()), ..HostPut::default() };
        rig.ok(Action::PutHost("one".parse().unwrap(), put)).await;
        let ask = VolumeCreate { protocol: Some(Protocol::Iscsi), ..ask("disk") };
        let Outcome::Volume { volume, .. } = rig.ok(Action::CreateVolume(ask)).await else { panic!() };
        let machine = Self { rig, kernel, id: volume.id };
        machine.rig.ok(attach(volume.id, "one")).await;
        machine.kernel.lock().put_file(&machine.file(), Some(WRITTEN));
        machine
    }

    fn file(&self) -> PathBuf {
        let serial = Identity::of(self.id, &NqnPrefix::default()).scsi_serial;
        format!("/var/target/pr/aptpl_{serial}").into()
    }

    fn remembers(&self) -> bool {
        self.kernel.lock().has_file(&self.file())
    }

    /// What was given back to the kernel.
    fn restored(&self) -> usize {
        self.kernel.lock().restored(&format!("core/{ADAPTER}/{}", self.id)).len()
    }

    /// The kernel is another one; what is on disk is still there.
    fn cut_power(&mut self) {
        let written = self.remembers().then_some(WRITTEN);
        *self.kernel.lock() = Arc::new(SimLio::new(SimLioKernel::default()));
        self.kernel.lock().put_file(&self.file(), written);
        self.rig.platter.power_cycle();
    }
}

#[tokio::test]
async fn reservations_outlive_a_backing_that_is_not_there() {
    let mut machine = Machine::new().await;
    machine.cut_power();
    machine.rig.platter.set_away(true);
    machine.rig.restart().await;
    assert!(machine.remembers());
    machine.rig.engine().core.look_for_drift_once().await;
    assert!(machine.remembers());
    machine.rig.platter.set_away(false);
    machine.rig.until("it to be served", |_| machine.restored() == 1).await;
    assert!(machine.remembers());
    machine.rig.settled().await;

    // With the last host they go, also where nothing of the volume can be reached.
    machine.cut_power();
    machine.rig.platter.set_away(true);
    machine.rig.restart().await;
    machine.rig.ok(detach(machine.id, "one")).await;
    assert!(!machine.remembers());
}

#[tokio::test]
async fn reservations_outlive_a_secret_that_is_lost() {
    let mut machine = Machine::new().await;
    let chap = json!({"host": {"user": "a", "secret": "a-secret-2345"}});
    let chap = || Some(serde_json::from_value(chap.clone()).unwrap());
    machine.rig.ok(Action::ChapHost("one".parse().unwrap(), chap())).await;
    machine.rig.engine().core.write_labels().await;
    machine.rig.engine().core.tasks.lock().abort_all();
    machine.rig.engine = None;
    // The old journal is closed a moment later; then it is lost.
    tokio::time::sleep(Duration::from_millis(300)).await;
    std::fs::remove_dir_all(machine.rig.dir.path().join("journal")).unwrap();
    machine.rig.start().await;
    let served = |m: &Machine| m.kernel.lock().dump().keys().any(|k| k.starts_with("iscsi/iqn.2026"));
    assert!(!served(&machine), "it is let in without its secret");
    assert!(machine.remembers());
    machine.rig.restart().await;
    machine.rig.engine().core.look_for_drift_once().await;
    assert!(machine.remembers() && !served(&machine));

    machine.rig.ok(Action::ChapHost("one".parse().unwrap(), chap())).await;
    machine.rig.until("it to be served", |_| served(&machine)).await;
    assert_eq!(machine.restored(), 1);
    machine.rig.ok(detach(machine.id, "one")).await;
    assert!(!machine.remembers() && !served(&machine));
}
