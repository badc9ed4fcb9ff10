//! What whole-system tests, the demo and the benchmark share: an appliance and an initiator in QEMU, joined
//! by storage networks of their own, and the appliance's API through the typed client.
//!
//! Called by `tests/system.rs` and the binaries here. It goes in by the front door: what a user can't do it
//! does not do, save for looking into the guests with their root shells.

#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "the rules are for the daemon; a test may sleep and start cargo"
)]

pub mod cluster;
pub mod conformance;
pub mod csi;
pub mod documented;
mod initiator;
mod lab;
pub mod realm;
pub mod torture;

pub use initiator::{Initiator, Path, nvme};
pub use lab::{Lab, LabOptions, instrumented, wait_for};
