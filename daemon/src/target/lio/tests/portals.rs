//! Portals that come and go, and those at addresses of other machines.

use std::net::SocketAddr;

use super::*;

impl Stand {
    /// The daemon is started again with these portals.
    fn restarted(&mut self, portals: &[&str]) {
        let portal = |text: &&str| {
            let at: SocketAddr = text.parse().unwrap();
            PortalConfig { address: at.ip(), port: at.port() }
        };
        let config = LioConfig { portals: portals.iter().map(portal).collect(), ..config() };
        let files = Arc::new(SimReservations(self.tree.clone()));
        self.target = Lio::over(config, self.watched.clone(), files).with_keys(self.keys.clone());
    }

    fn has(&mut self, addresses: fn() -> io::Result<Vec<IpAddr>>) {
        self.target.addresses = addresses;
    }

    fn listens(&self) -> Vec<String> {
        self.tree.list(&format!("iscsi/{}/tpgt_1/np", iqn(0))).unwrap()
    }
}

#[test]
fn a_portal_that_goes_takes_with_it_who_came_by_it() {
    let mut s = Stand::new(SimLioKernel::default());
    let want = desired(&[(0, &[0, 1])]);
    s.converge(Scope::All, &want).unwrap();
    // The kernel does not tell by which portal.
    let session = s.login(0, 0).unwrap();
    s.restarted(&PORTALS[1..]);
    let steps = s.converge(Scope::All, &want).unwrap().steps;
    let (first, last) = (steps.first().unwrap(), steps.last().unwrap());
    assert!(first.starts_with("disable") && last.starts_with("enable") && steps.len() == 3, "{steps:?}");
    assert!(!s.tree.is_live(session), "a session by a portal that is gone");
    assert_eq!(s.listens(), &PORTALS[1..]);
    assert!(s.login(0, 0).is_ok(), "whoever comes by the other is not let in");
    assert_eq!(s.converge(Scope::All, &want).unwrap().steps, [""; 0]);
    // One more is no reason to disturb anybody.
    let session = s.login(0, 1).unwrap();
    s.restarted(&PORTALS);
    s.converge(Scope::All, &want).unwrap();
    assert!(s.tree.is_live(session) && s.listens() == PORTALS);
}

#[test]
fn a_portal_at_anothers_address_is_told_of_and_served() {
    let mut s = Stand::new(SimLioKernel::default());
    let want = desired(&[(0, &[0])]);
    s.restarted(&["10.0.0.1:3260", "10.9.9.9:3260", "0.0.0.0:3261", "127.0.0.1:3262"]);
    s.has(|| Ok(vec!["10.0.0.1".parse().unwrap()]));
    for _ in 0..2 {
        let report = s.converge(Scope::All, &want).unwrap();
        let down: Vec<_> = report.portals_down.values().map(ToString::to_string).collect();
        assert!(down.len() == 1 && down[0].contains("10.9.9.9:3260"), "{down:?}");
        assert!(report.failed.is_empty() && s.listens().len() == 4, "{report:?}");
    }
    // When the machine has it, nothing more is to be said.
    s.has(|| Ok(["10.0.0.1", "10.9.9.9"].map(|a| a.parse().unwrap()).into()));
    assert!(s.converge(Scope::All, &want).unwrap().is_complete());
    // One that has no other is served all the same: it may get the address any moment.
    s.restarted(&["10.9.9.9:3260"]);
    s.has(|| Ok(Vec::new()));
    let report = s.converge(Scope::All, &want).unwrap();
    assert!(report.failed.is_empty() && report.portals_down.len() == 1, "{report:?}");
}
