//! What Kubernetes calls a node: all that an appliance must know of it, so that the controller asks nobody and the node
//! needs no credential. `<name> <NQN> <iSCSI name> <address>,<address>`, what it does not have left out.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use orlop_api::{Host, HostName, HostPut, Iqn, Nqn, Protocol};
use tonic::Status;

use crate::handle::ApplianceName;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeId {
    /// What appliances call it: the name of the node in Kubernetes.
    pub name: HostName,
    /// What it is known by.
    pub known_by: HostPut,
}

/// The most that Kubernetes takes (`CSINode.spec.drivers.nodeID`); CSI itself would take 256.
pub const LONGEST: usize = 192;

/// What most NQNs of hosts begin with (NVMe base specification, 4.7), and what stands for it here.
const UUID_NQN: &str = "nqn.2014-08.org.nvmexpress:uuid:";
const UUID: &str = "uuid:";

impl NodeId {
    /// Of a host as an appliance has it.
    pub fn of(host: &Host) -> Self {
        let known_by =
            HostPut { nqn: host.nqn.clone(), iqn: host.iqn.clone(), addresses: host.addresses.clone() };
        Self { name: host.name.clone(), known_by }
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        if let Some(nqn) = &self.known_by.nqn {
            match nqn.as_str().strip_prefix(UUID_NQN) {
                Some(uuid) => write!(f, " {UUID}{uuid}")?,
                None => write!(f, " {nqn}")?,
            }
        }
        if let Some(iqn) = &self.known_by.iqn {
            write!(f, " {iqn}")?;
        }
        // In one order, whoever has read them where.
        let mut addresses = self.known_by.addresses.clone();
        addresses.sort_unstable();
        for (n, address) in addresses.iter().enumerate() {
            write!(f, "{}{address}", if n == 0 { ' ' } else { ',' })?;
        }
        Ok(())
    }
}

impl FromStr for NodeId {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let mut words = s.split(' ');
        let name = words.next().unwrap_or_default().parse().map_err(|e| format!("{e}"))?;
        let mut known_by = HostPut::default();
        for word in words {
            let nqn = match word.strip_prefix(UUID) {
                Some(uuid) => Some(format!("{UUID_NQN}{uuid}")),
                None => word.starts_with("nqn.").then(|| word.to_string()),
            };
            if let (Some(nqn), None) = (&nqn, &known_by.nqn) {
                known_by.nqn = Some(nqn.parse::<Nqn>().map_err(|e| format!("{e}"))?);
            } else if let (Ok(iqn), None) = (word.parse::<Iqn>(), &known_by.iqn) {
                known_by.iqn = Some(iqn);
            } else if known_by.addresses.is_empty() {
                let parsed: Result<Vec<IpAddr>, _> = word.split(',').map(str::parse).collect();
                known_by.addresses =
                    parsed.map_err(|_| format!("{word:?} is nothing that a node is known by"))?;
            } else {
                return Err(format!("{word:?} is one too many"));
            }
        }
        Ok(Self { name, known_by })
    }
}

/// Whether an appliance has a secret that a node must prove where it comes by this protocol.
pub(crate) fn has_secret(host: &Host, protocol: Protocol, on: &ApplianceName) -> Result<(), Status> {
    let proves = match protocol {
        Protocol::Nvme => host.authentication.is_some(),
        Protocol::Iscsi => host.chap.is_some(),
        Protocol::Nfs => true,
    };
    match proves {
        true => Ok(()),
        false => Err(Status::failed_precondition(format!(
            "node {} has no secret on appliance {on}, and its volume's class asks for one",
            host.name
        ))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_id_is_read_as_it_is_written() {
        for text in [
            "worker-1",
            "worker-1 uuid:0190c0de-0000-7000-8000-000000000001",
            "worker-1 nqn.2020-01.com.example:x iqn.1993-08.org.debian:01:abc 10.0.0.1,fd00::1",
            "w.example.com iqn.1993-08.org.debian:01:abc",
            "w 10.0.0.1",
        ] {
            assert_eq!(text.parse::<NodeId>().unwrap().to_string(), text);
        }
        // Addresses have one order, and what stands for an NQN is one.
        let id: NodeId =
            "w uuid:0190c0de-0000-7000-8000-000000000001 fd00::1,10.0.0.2,10.0.0.1".parse().unwrap();
        assert_eq!(id.to_string(), "w uuid:0190c0de-0000-7000-8000-000000000001 10.0.0.1,10.0.0.2,fd00::1");
        assert_eq!(
            id.known_by.nqn.unwrap().as_str(),
            "nqn.2014-08.org.nvmexpress:uuid:0190c0de-0000-7000-8000-000000000001"
        );
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for bad in
            ["", " ", "ü", "w nothing", "w 10.0.0.1 10.0.0.2", "w nqn.x nqn.y", "w  ", "w 10.0.0.1,", "a/b"]
        {
            assert!(bad.parse::<NodeId>().is_err(), "{bad:?}");
        }
    }
}
