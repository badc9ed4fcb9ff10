//! Every system call, ioctl, process and kernel file, and all of the `unsafe` there is.
//!
//! Called by pools, targets, journal and `main`; blocking, so only from lanes and start-up.
//! Knows nothing of volumes: it takes paths, names and sizes.

pub mod block;
pub mod configfs;
pub mod deadline;
pub mod disks;
pub mod dm;
pub mod exec;
pub mod fiemap;
pub mod filesystem;
pub mod fs;
pub mod holders;
pub mod keyring;
pub mod loopdev;
pub mod luks;
pub mod lzc;
pub mod md;
pub mod mount;
pub mod net;
pub mod nfsd;
pub mod nlm;
pub mod smart;
pub mod stats;
pub mod uevent;

pub use deadline::{Deadline, Overrun};

/// Fills a secret with bytes that nobody can guess.
pub fn random(bytes: &mut [u8]) -> std::io::Result<()> {
    use std::io::Read;
    std::fs::File::open("/dev/urandom")?.read_exact(bytes)
}
