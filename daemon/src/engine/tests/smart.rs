//! What disks say of themselves: who is told, and how often they are asked.

use super::*;
use crate::model::PoolChange;

fn says(state: DiskHealthState, reason: Option<&str>) -> Option<DiskHealth> {
    let temperature = (state != DiskHealthState::Unknown).then_some(30);
    Some(DiskHealth { state, reason: reason.map(str::to_string), temperature, ..DiskHealth::default() })
}

fn well() -> Option<DiskHealth> {
    says(DiskHealthState::Passed, None)
}

fn failing() -> Option<DiskHealth> {
    says(DiskHealthState::Failed, Some("worn out"))
}

impl Rig {
    async fn look_again(&self) {
        self.engine().core.read_disks().await.unwrap();
    }

    async fn disk(&self, name: &str) -> Option<DiskHealth> {
        let all = self.engine().disks(LONG).await.unwrap();
        all.into_iter().find(|d| d.name == name).map(|d| d.health)
    }

    fn disk_alarm(&self, name: &str) -> Option<String> {
        let subject = format!("disk/{name}/health");
        let alarms = self.engine().view().alarms();
        alarms.into_iter().find(|a| a.subject == subject).map(|a| a.detail)
    }

    fn told_of_disks(&self, after: u64) -> Vec<String> {
        let told = self.engine().events().after(after, 100).into_iter();
        told.filter(|e| e.kind == EventKind::DiskHealth).filter_map(|e| e.detail).collect()
    }
}

#[tokio::test]
async fn a_failing_disk_is_an_alarm_until_it_is_gone() {
    let rig = Rig::new().await;
    let start = rig.engine().events().newest();
    rig.platter.set_disk("sda", "A1", well());
    rig.platter.set_disk("sdb", "B1", failing());
    rig.look_again().await;
    let sda = rig.disk("sda").await.unwrap();
    assert_eq!((sda.state, sda.temperature), (DiskHealthState::Passed, Some(30)));
    assert!(sda.observed.is_some());
    assert_eq!(rig.disk("sdb").await.unwrap().state, DiskHealthState::Failed);
    let text = "sdb (Model, serial number B1) says that it is failing: worn out; replace it";
    assert_eq!((rig.disk_alarm("sda"), rig.disk_alarm("sdb").as_deref()), (None, Some(text)));
    assert_eq!(rig.told_of_disks(start), [text]);

    // It went; another one has its name.
    rig.platter.pull_disk("sdb");
    rig.engine().core.read_disks().await.unwrap();
    assert_eq!(rig.disk_alarm("sdb"), None);
    rig.platter.set_disk("sdb", "B2", well());
    assert_eq!(rig.disk("sdb").await.unwrap().state, DiskHealthState::Unknown, "that was another disk");
    rig.engine().core.read_disks().await.unwrap();
    assert_eq!(rig.disk("sdb").await.unwrap().state, DiskHealthState::Passed);
    assert_eq!(rig.told_of_disks(start).len(), 1);
}

#[tokio::test]
async fn one_that_comes_is_asked_at_once() {
    let rig = Rig::new().await;
    rig.platter.set_disk("sda", "A1", failing());
    rig.engine().disks_changed(&[DiskEvent { name: "sda".into(), added: true }]);
    rig.until("an alarm", |rig| rig.disk_alarm("sda").is_some()).await;
    rig.platter.pull_disk("sda");
    rig.engine().disks_changed(&[DiskEvent { name: "sda".into(), added: false }]);
    assert_eq!(rig.disk_alarm("sda"), None);
}

#[tokio::test]
async fn a_reading_stands_and_a_sleeping_disk_keeps_its_own() {
    let rig = Rig::new().await;
    rig.platter.set_disk("sda", "A1", well());
    rig.platter.set_disk("sdb", "B1", None);
    rig.look_again().await;
    rig.platter.asked();
    // However often somebody looks.
    for _ in 0..20 {
        rig.engine().core.read_disks().await.unwrap();
        rig.disk("sda").await.unwrap();
    }
    assert_eq!(rig.platter.asked(), Vec::<String>::new());
    let asleep = rig.disk("sdb").await.unwrap();
    assert_eq!((asleep.state, asleep.observed), (DiskHealthState::Unknown, None));
    assert!(asleep.reason.unwrap().contains("sleeps"));
    assert!(rig.engine().view().alarms().is_empty());
}

#[tokio::test]
async fn one_that_says_nothing_any_more_is_still_failing() {
    let rig = Rig::new().await;
    let start = rig.engine().events().newest();
    rig.platter.set_disk("sda", "A1", failing());
    rig.engine().core.read_disks().await.unwrap();
    rig.platter.set_disk("sda", "A1", says(DiskHealthState::Unknown, Some("no answer")));
    rig.engine().core.disk_readings.make_old("sda");
    rig.engine().core.read_disks().await.unwrap();
    assert_eq!(rig.disk("sda").await.unwrap().state, DiskHealthState::Unknown);
    assert!(rig.disk_alarm("sda").is_some());
    rig.platter.set_disk("sda", "A1", well());
    rig.engine().core.disk_readings.make_old("sda");
    rig.engine().core.read_disks().await.unwrap();
    assert_eq!(rig.disk_alarm("sda"), None);
    let told = rig.told_of_disks(start);
    assert_eq!(told.len(), 2);
    assert!(told[1].ends_with("says that it is well"), "{told:?}");
}

#[tokio::test]
async fn one_that_hangs_delays_no_other_and_no_reader() {
    let rig = Rig::new().await;
    for n in 0..8 {
        rig.platter.set_disk(&format!("sd{n}"), "S", well());
    }
    rig.platter.faults(|f| f.hang.extend(["sd3".to_string()]));
    let core = rig.engine().core.clone();
    let reading = tokio::spawn(async move { core.read_disks().await });
    rig.until("the others to be read", |rig| {
        let known = rig.engine().core.disk_readings.passed();
        known == 7
    })
    .await;
    assert_eq!(rig.disk("sd3").await.unwrap().reason.as_deref(), Some("it has not been asked yet"));
    // It is not asked twice while it hangs.
    rig.engine().core.read_disks().await.unwrap();
    assert_eq!(rig.platter.asked().iter().filter(|n| *n == "sd3").count(), 1);
    rig.platter.faults(|f| f.hang.clear());
    reading.await.unwrap().unwrap();
    assert_eq!(rig.disk("sd3").await.unwrap().state, DiskHealthState::Passed);
}

fn wipe(name: &str, serial: &str) -> Action {
    Action::WipeDisk(name.parse().unwrap(), DiskWipe { serial: Some(serial.into()), ..DiskWipe::default() })
}

#[tokio::test]
async fn a_disk_is_wiped_by_one_door_and_told() {
    let rig = Rig::new().await;
    rig.platter.set_disk("sda", "A1", well());
    let start = rig.engine().events().newest();
    let Outcome::Disk(disk) = rig.ok(wipe("sda", "A1")).await else { panic!() };
    assert_eq!((disk.name.as_str(), disk.usage), ("sda", DiskUsage::Blank));
    assert_eq!(rig.platter.wiped().len(), 1);
    let told = rig.engine().events().after(start, 10);
    let told: Vec<_> = told.into_iter().filter(|e| e.kind == EventKind::DiskWiped).collect();
    assert_eq!(told[0].detail.as_deref(), Some("sda, serial number A1"));
    assert_eq!(rig.fails(wipe("sdz", "A1")).await.kind, ErrorKind::NotFound);

    // What a pool stands on is told with the question, and refused.
    rig.on_disks(&["sda", "sdb"]).await;
    assert_eq!(rig.fails(wipe("sda", "A1")).await.kind, ErrorKind::Precondition);
    assert_eq!(rig.platter.wiped().len(), 2, "only the two that were let through");
    assert_eq!(rig.engine().core.locks.len(), 0);
}

#[tokio::test]
async fn no_disk_is_taken_while_one_is_wiped() {
    let rig = Rig::new().await;
    rig.platter.set_disk("sda", "A1", well());
    rig.on_disks(&["x"]).await;
    rig.platter.faults(|f| f.hang.extend(["sda".to_string()]));
    let engine = rig.engine().clone();
    let wiping = tokio::spawn(async move { engine.submit(who(), wipe("sda", "A1"), LONG).await });
    rig.until("the wipe to begin", |rig| rig.engine().core.locks.len() == 1).await;
    assert_eq!(rig.fails(wipe("sda", "A1")).await.kind, ErrorKind::Busy);
    let expand = PoolChange::Expand { disks: vec!["sda".into()] };
    let taken = rig.submit(Action::ChangePool("tank".parse().unwrap(), expand), SHORT).await;
    assert_eq!(taken.unwrap_err().kind(), ErrorKind::Busy);
    // What takes no disk goes on.
    rig.ok(Action::ChangePool("tank".parse().unwrap(), PoolChange::Scrub)).await;
    rig.create("data").await;
    rig.platter.faults(|f| f.hang.clear());
    wiping.await.unwrap().unwrap();
}
