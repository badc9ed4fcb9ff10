//! The CSI driver of Orlop appliances. It forwards calls to `orlopd` and holds no state of its own.
//!
//! Two modes of one binary: the controller, which talks to the appliances and runs without any privilege, and the node's
//! part, which connects volumes to the machine it runs on and knows no credential of any appliance. Data never passes
//! through either.
//!
//! From a call to an answer: [`serve`] takes it from the unix socket; [`controller`] turns it into calls of the API, on the
//! appliance that its [`handle`] names; what the appliance says becomes a gRPC status in [`status`], and nowhere else.

pub mod appliances;
pub mod config;
pub mod controller;
pub mod deadline;
pub mod evictor;
pub mod handle;
pub mod identity;
pub mod locks;
pub mod node;
pub mod node_id;
pub mod parameters;
pub mod serve;
pub mod status;
pub mod telemetry;

/// The interface, as it is generated.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod csi {
    tonic::include_proto!("csi.v1");
}

/// The driver's name, in every object of Kubernetes that is about it.
pub const DRIVER: &str = "csi.orlop.dev";
