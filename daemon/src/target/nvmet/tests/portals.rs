//! Portals that come and go while hosts are connected by others.

use super::*;

impl Stand {
    /// The daemon is started again with these portals.
    fn restarted(&mut self, addresses: &[&str], want: &Desired) -> Vec<String> {
        let portal = |a: &&str| NvmetPortal::tcp(PortalConfig { address: a.parse().unwrap(), port: 4420 });
        let config = NvmetConfig { portals: addresses.iter().map(portal).collect(), ..config() };
        let debug: Option<Arc<dyn ConfigTree>> = Some(Arc::new(self.tree.debug()));
        let target = Nvmet::over(config, self.watched.clone(), debug, self.ring.clone());
        self.target = target.with_keys(self.keys.clone()).with_poll(Duration::ZERO);
        let report = self.converge(Scope::All, want).unwrap();
        assert!(report.is_complete(), "{report:?}");
        assert_eq!(self.converge(Scope::All, want).unwrap().steps, [""; 0]);
        report.steps
    }
}

#[test]
fn whoever_is_connected_by_a_portal_that_stays_does_not_notice() {
    for kernel in [SimKernel::default(), BLIND] {
        let mut s = Stand::new(kernel);
        let want = desired(&[(0, &[0, 1])]);
        s.converge(Scope::All, &want).unwrap();
        s.connect(0, 0, FIRST_PORT).unwrap();
        s.connect(0, 1, FIRST_PORT + 1).unwrap();
        let (goes, stays) = (s.connections[0].2, s.connections[1].2);
        // The first is taken away: the second does not become the first.
        s.restarted(&["fd00::1"], &want);
        assert!(!s.tree.is_live(goes), "who came by a portal that is gone is connected");
        assert!(s.tree.is_live(stays) && s.tree.io(stays).is_ok());
        assert_eq!(s.tree.list("ports").unwrap(), [(FIRST_PORT + 1).to_string()]);
        // One comes before it, in the place of the one that went.
        s.restarted(&["10.0.0.9", "fd00::1"], &want);
        assert!(s.tree.is_live(stays) && s.tree.io(stays).is_ok());
        s.connect(0, 0, FIRST_PORT).unwrap();
        // One volume's steps know where it is, too.
        s.target.converge(Scope::Volume(volume(0)), &want, &soon()).unwrap();
        assert!(s.tree.is_live(stays));
        // The same in another order is the same.
        assert_eq!(s.restarted(&["fd00::1", "10.0.0.9"], &want), [""; 0]);
        assert!(s.tree.is_live(stays) && s.tree.is_live(s.connections[2].2));
    }
}
