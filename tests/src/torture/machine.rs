//! What is tortured: an appliance, or a simulated daemon. The same clients, faults and checks for both.

use std::collections::BTreeSet;

use anyhow::Result;
use orlop_api::client::Client;
use orlop_api::{HostPut, PoolName};

use super::check::Shown;
use super::plan::Fault;
use super::record::Kind;

/// See the module.
pub trait Machine {
    /// What can happen to it. What is there more often happens more often.
    fn faults(&self) -> Vec<Fault>;

    /// Its pools, and of what kind they are.
    fn pools(&self) -> Vec<(PoolName, Kind)>;

    /// What a host is known by.
    fn host(&self, number: u8) -> Result<HostPut>;

    /// Its API, over a wire that can be cut, and past it.
    fn api(&self) -> Client;
    /// See there.
    fn api_past_the_wire(&self) -> Client;

    /// Before the clients begin: what has to be prepared for a fault.
    fn prepare(&mut self, fault: Fault) -> Result<()>;

    /// While they are at work.
    fn strike(&mut self, fault: Fault) -> Result<()>;

    /// After they have ended: puts it right, and waits until the API takes changes. Whether it happened at all: nothing may have
    /// come to a failpoint.
    fn mend(&mut self, fault: Fault) -> Result<bool>;

    /// Volumes that are the machine's own, for what only it can check.
    fn own_volumes(&self) -> BTreeSet<String>;

    /// Looks below the API: what is there and served must be what the API shows, and no byte may be lost. `deep`: what takes
    /// longer, too. What is wrong, in words.
    fn look(&mut self, shown: &Shown, deep: bool) -> Result<Vec<String>>;

    /// As it was before anything was done to it.
    fn renew(&mut self) -> Result<()>;

    /// How many writes its disks have lost at power cuts, because nobody had flushed them.
    fn lost_writes(&self) -> u64 {
        0
    }

    /// What a person would read after a failure: the end of the log.
    fn log(&mut self) -> String;
}
