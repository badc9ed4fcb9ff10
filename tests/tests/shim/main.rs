//! The shim's controller over real gRPC, against `orlopd --sim`: what the sidecars of Kubernetes do, what they do again, and
//! what they must not do.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod backup;
mod create;
mod groups;
mod lists;
mod metadata;
mod properties;
mod publish;
mod rig;
mod several;
mod snapshots;
mod volumes;
