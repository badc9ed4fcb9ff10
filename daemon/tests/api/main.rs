//! The API suite: a real `orlopd --sim`, asked over its unix socket and over TLS, raw and by the typed
//! client and by the command line.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// A test starts the daemon itself and has nothing but time to wait on it.
#![allow(clippy::disallowed_methods)]

mod alarms;
mod backup;
mod bounds;
mod cli;
mod daemon;
mod disks;
mod events;
mod filesystems;
mod hosts;
mod inputs;
mod lifecycle;
mod network;
mod orphans;
mod prometheus;
mod properties;
mod raw;
mod reload;
mod snapshots;
mod space;
mod state;
mod targets;
mod tokens;
#[cfg(feature = "otlp")]
mod traces;
