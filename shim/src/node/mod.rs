//! The node's part: volumes that are attached to this machine are connected, mounted where Kubernetes wants them, and let go
//! again. It knows no credential of any appliance: what it must know comes with each call. But for inline volumes, which no
//! controller is asked for: a pod that has one brings its own.
//!
//! What is connected, mounted or in use is asked of the kernel each time, never remembered.

mod attempts;
pub mod blank;
pub mod connect;
pub mod filesystem;
mod inline;
pub mod iscsi;
pub mod mounts;
pub mod nvme;
pub mod options;
mod service;
mod staging;
pub mod state;
pub mod tools;
mod unmount;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use orlop_api::{HostName, HostPut};

use crate::config::InlineConfig;
use crate::locks::Locks;
use crate::node_id::{LONGEST, NodeId};

use attempts::Attempts;
use connect::Connector;
use inline::Inline;
use nvme::{Sysfs, Times};
use state::State;
use tools::Tools;

/// What a node is told when it starts.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// The node's name in Kubernetes.
    pub name: HostName,
    /// The addresses that its NFS client calls from.
    pub addresses: Vec<IpAddr>,
    /// Where this node is: labels by which volumes are placed.
    pub segments: BTreeMap<String, String>,
    /// Where state is kept.
    pub state: PathBuf,
    /// On which appliances pods may have inline volumes.
    pub inline: InlineConfig,
    /// The host's root directory, as it is seen here.
    pub host_root: PathBuf,
}

/// The node's part. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Node {
    id: NodeId,
    segments: BTreeMap<String, String>,
    tools: Tools,
    state: State,
    inline: Inline,
    connector: Connector,
    locks: Locks,
    /// Places from which something is being taken away.
    unmounts: Attempts<PathBuf>,
    /// Places that a file system is being asked about.
    looks: Attempts<PathBuf>,
}

impl Node {
    /// Of this machine: its names are read from where nvme-cli and open-iscsi keep them.
    pub fn new(config: NodeConfig) -> Result<Self, String> {
        let read = |path: &str| std::fs::read_to_string(config.host_root.join(path)).ok();
        let nqn = read("etc/nvme/hostnqn").and_then(|text| text.trim().parse().ok());
        let iqn = read("etc/iscsi/initiatorname.iscsi").and_then(|text| {
            let line = text.lines().find_map(|line| line.trim().strip_prefix("InitiatorName="))?;
            line.trim().parse().ok()
        });
        let known_by = HostPut { nqn, iqn, addresses: config.addresses };
        if known_by == HostPut::default() {
            let text = "this node has no name by which an appliance could know it: /etc/nvme/hostnqn, \
                        /etc/iscsi/initiatorname.iscsi, or an address for NFS";
            return Err(text.into());
        }
        let host_id = read("etc/nvme/hostid").map(|text| text.trim().to_string()).filter(|id| !id.is_empty());
        let id = NodeId { name: config.name, known_by };
        let length = id.to_string().len();
        if length > LONGEST {
            return Err(format!(
                "what this node is known by has {length} characters, and Kubernetes takes {LONGEST}: {id}"
            ));
        }
        let tools = Tools::at(&config.host_root);
        let connector = Connector {
            tools: tools.clone(),
            sysfs: Sysfs::default(),
            times: Times::default(),
            // One that is the same for the same host.
            host_id: host_id.unwrap_or_else(|| {
                uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_DNS, id.to_string().as_bytes())
                    .hyphenated()
                    .to_string()
            }),
            attempts: Attempts::default(),
        };
        let (segments, inline) = (config.segments, Inline::at(&config.state, config.inline));
        let state = State::at(config.state);
        Ok(Self {
            id,
            segments,
            tools,
            state,
            inline,
            connector,
            locks: Locks::default(),
            unmounts: Attempts::default(),
            looks: Attempts::default(),
        })
    }

    /// What Kubernetes calls it.
    pub fn id(&self) -> &NodeId {
        &self.id
    }
}
