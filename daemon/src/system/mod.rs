//! The system around the daemon, over D-Bus: systemd's units.
//!
//! Called by targets whose kernel side is a service. Starts what it is told to start and says how that ended;
//! never decides.

pub mod units;
