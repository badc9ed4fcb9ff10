//! How many connections a listener holds, and who has to go when there is no room.
//!
//! A connection is *unproven* until its first authenticated request. When a cap is reached, the oldest
//! unproven connection (of that peer, for the cap per peer) is cut off to make room; if all are proven,
//! the newcomer is refused. So silent connections, however many, can only push out each other: a client
//! that speaks proves itself within milliseconds and can't be pushed out any more.
//!
//! Called by [`super::listen`] and, for the proof, by [`super::door`]. Pure bookkeeping, no I/O.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::HttpSettings;
use super::auth::Peer;
use crate::telemetry::Metrics;

/// See the module.
#[derive(Debug)]
pub struct Gate {
    listener: &'static str,
    /// With the caps, which may change; connections beyond lower ones stay.
    settings: watch::Receiver<HttpSettings>,
    metrics: Arc<Metrics>,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    next: u64,
    /// All that count, by number.
    open: HashMap<u64, IpKey>,
    per_peer: HashMap<IpKey, usize>,
    /// Those that have not authenticated yet, oldest first.
    unproven: BTreeMap<u64, (IpKey, Option<AbortHandle>)>,
}

/// What a cap per peer counts by: an IPv4 address, the /64 of an IPv6 address (one machine commonly
/// has all of it), or nothing for the unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum IpKey {
    Local,
    V4([u8; 4]),
    V6([u16; 4]),
}

impl IpKey {
    fn of(peer: Peer) -> Self {
        let Peer::Network(ip) = peer else { return Self::Local };
        match ip.to_canonical() {
            IpAddr::V4(v4) => Self::V4(v4.octets()),
            IpAddr::V6(v6) => {
                let [a, b, c, d, ..] = v6.segments();
                Self::V6([a, b, c, d])
            }
        }
    }
}

/// A connection's place; given back when dropped.
#[derive(Debug)]
pub struct Ticket {
    gate: Arc<Gate>,
    number: u64,
    /// Set once: a proven connection is never cut off, so later requests need not ask the gate.
    proven: AtomicBool,
}

impl Gate {
    /// A gate with its caps. The cap per peer does not apply to the unix socket.
    pub fn new(
        listener: &'static str,
        settings: watch::Receiver<HttpSettings>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self { listener, settings, metrics, held: Mutex::default() })
    }

    /// Takes a place for a newcomer, cutting off an unproven connection if it must; `None` if there is
    /// none to cut off.
    pub fn admit(self: &Arc<Self>, peer: Peer) -> Option<Ticket> {
        let key = IpKey::of(peer);
        let HttpSettings { connections, connections_per_peer, .. } = *self.settings.borrow();
        let mut held = self.held.lock();
        let of_peer = held.per_peer.get(&key).copied().unwrap_or(0);
        if key != IpKey::Local && of_peer >= connections_per_peer {
            self.metrics.refusal(self.listener, "per_peer");
            held.cut_oldest(Some(key))?;
        } else if held.open.len() >= connections {
            self.metrics.refusal(self.listener, "full");
            held.cut_oldest(None)?;
        }
        let number = held.next;
        held.next += 1;
        held.open.insert(number, key);
        *held.per_peer.entry(key).or_default() += 1;
        held.unproven.insert(number, (key, None));
        self.metrics.connections(self.listener, held.open.len());
        Some(Ticket { gate: Arc::clone(self), number, proven: AtomicBool::new(false) })
    }

    /// How to cut off the connection with this number.
    pub fn served_by(&self, number: u64, task: AbortHandle) {
        if let Some((_, slot)) = self.held.lock().unproven.get_mut(&number) {
            *slot = Some(task);
        }
    }
}

impl Held {
    fn cut_oldest(&mut self, of: Option<IpKey>) -> Option<()> {
        let mut candidates = self.unproven.iter().filter(|(_, (key, _))| of.is_none_or(|of| of == *key));
        let number = *candidates.next()?.0;
        if let Some((_, Some(task))) = self.unproven.remove(&number) {
            task.abort();
        }
        self.forget(number);
        Some(())
    }

    fn forget(&mut self, number: u64) {
        self.unproven.remove(&number);
        let Some(key) = self.open.remove(&number) else { return };
        if let Some(n) = self.per_peer.get_mut(&key) {
            *n -= 1;
            if *n == 0 {
                self.per_peer.remove(&key);
            }
        }
    }
}

impl Ticket {
    /// Its number in the gate.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The connection authenticated. False if it was cut off just before.
    pub fn prove(&self) -> bool {
        if self.is_proven() {
            return true;
        }
        let mut held = self.gate.held.lock();
        held.unproven.remove(&self.number);
        let proven = held.open.contains_key(&self.number);
        self.proven.store(proven, Ordering::Relaxed);
        proven
    }

    /// Whether it has authenticated.
    pub fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Relaxed)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut held = self.gate.held.lock();
        held.forget(self.number);
        self.gate.metrics.connections(self.gate.listener, held.open.len());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::telemetry::Dropped;
    use std::time::Duration;

    fn caps(connections: usize, connections_per_peer: usize) -> HttpSettings {
        HttpSettings { connections, connections_per_peer, request: Duration::MAX, idle: Duration::MAX }
    }

    fn gate(most: usize, per_peer: usize) -> Arc<Gate> {
        let (_, settings) = watch::channel(caps(most, per_peer));
        Gate::new("test", settings, Arc::new(Metrics::new(Dropped::default())))
    }

    fn net(text: &str) -> Peer {
        Peer::Network(text.parse().unwrap())
    }

    #[test]
    fn the_silent_push_out_the_silent() {
        let gate = gate(3, 100);
        let speaker = gate.admit(net("10.0.0.1")).unwrap();
        assert!(speaker.prove());
        let silent: Vec<_> = (0..50).map(|_| gate.admit(net("10.0.0.2")).unwrap()).collect();
        assert!(speaker.prove() && speaker.is_proven());
        assert_eq!(gate.held.lock().open.len(), 3);
        assert!(!silent[0].prove(), "was cut off");
        assert!(silent[49].prove() && silent[48].prove());
        assert!(gate.admit(net("10.0.0.3")).is_none(), "all are proven");
        drop(silent);
        assert!(gate.admit(net("10.0.0.3")).is_some());
    }

    #[test]
    fn lower_caps_cut_off_nobody_who_has_proved() {
        let (caps_of, settings) = watch::channel(caps(3, 3));
        let gate = Gate::new("test", settings, Arc::new(Metrics::new(Dropped::default())));
        let held: Vec<_> = (0..3).map(|_| gate.admit(net("10.0.0.1")).unwrap()).collect();
        assert!(held.iter().all(Ticket::prove));
        caps_of.send_replace(caps(1, 1));
        assert!(held.iter().all(Ticket::prove));
        assert!(gate.admit(net("10.0.0.2")).is_none());
        caps_of.send_replace(caps(4, 1));
        assert!(gate.admit(net("10.0.0.2")).is_some() && gate.admit(net("10.0.0.1")).is_none());
    }

    #[test]
    fn one_peer_does_not_take_the_place_of_another() {
        let gate = gate(100, 2);
        let other = gate.admit(net("10.0.0.1")).unwrap();
        let many: Vec<_> = (0..50).map(|_| gate.admit(net("::ffff:10.0.0.2")).unwrap()).collect();
        assert!(other.prove());
        assert_eq!(gate.held.lock().open.len(), 3);
        let same_64 = [gate.admit(net("2001:db8::1")), gate.admit(net("2001:db8::2"))];
        assert!(same_64.iter().flatten().all(Ticket::prove));
        assert!(gate.admit(net("2001:db8::3")).is_none());
        drop((many, other, same_64));
        let held = gate.held.lock();
        assert!(held.open.is_empty() && held.per_peer.is_empty() && held.unproven.is_empty());
    }
}
