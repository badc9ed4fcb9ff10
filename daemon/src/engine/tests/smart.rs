//! What disks say of themselves: who is told, and how often they are asked.

use super::*;

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
        let event = |name: &str| DiskEvent { name: name.into(), added: true };
        self.engine().core.disks_came_or_went(&[event("sda"), event("sdb")]);
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
