//! Targets without a kernel: nvmet and LIO over trees in memory, NFS over a server in memory, all of which behave like
//! the kernel's.
//!
//! A product feature (`orlopd --sim`) and the stand for the target's tests: the same observe, plan and
//! apply run here as on the kernel, so that ordering and fencing can be tried anywhere. Serves no data;
//! it knows who could connect and whose I/O would still get through.

mod faults;
pub mod lio;
pub mod nfs;
mod rules;
mod tree;

use std::sync::Arc;

pub use faults::Fault;
pub use tree::{ControllerHandle, SimKernel, SimTree};

use super::keys::HostKeys;
use super::lio::{Lio, LioConfig};
use super::nfs::{Nfs, NfsConfig};
use super::nvmet::tls::SimKeyring;
use super::nvmet::{Nvmet, NvmetConfig};
use nfs::SimNfs;

/// A target over a simulated kernel, and the kernel itself.
pub fn target(config: NvmetConfig, keys: HostKeys, kernel: SimKernel) -> (Nvmet, Arc<SimTree>) {
    let tree = Arc::new(SimTree::new(kernel));
    let tls = Arc::new(SimKeyring::default());
    let nvmet = Nvmet::over(config, tree.clone(), Some(Arc::new(tree.debug())), tls);
    (nvmet.with_keys(keys), tree)
}

/// The same by iSCSI.
pub fn lio_target(config: LioConfig, keys: HostKeys, kernel: lio::SimLioKernel) -> (Lio, Arc<lio::SimLio>) {
    let tree = Arc::new(lio::SimLio::new(kernel));
    let reservations = Arc::new(lio::SimReservations(tree.clone()));
    (Lio::over(config, tree.clone(), reservations).with_keys(keys), tree)
}

/// An NFS target over a simulated server, and the server itself. Any directory can be exported: simulated volumes are
/// not mounted.
pub fn nfs_target(config: NfsConfig) -> (Nfs, Arc<SimNfs>) {
    let server = Arc::new(SimNfs::loose());
    (Nfs::over(config, server.clone()), server)
}
