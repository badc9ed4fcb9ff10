//! The Orlop daemon as a library: everything but the command line.
//!
//! `main` starts what is here and turns errors into exit codes.

pub mod config;
pub mod engine;
pub mod failpoint;
pub mod fingerprint;
pub mod http;
pub mod journal;
pub mod kernel;
pub mod model;
pub mod pool;
pub mod running;
pub mod serving;
pub mod system;
pub mod target;
pub mod telemetry;
pub mod token;
