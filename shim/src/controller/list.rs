//! Lists, a page at a time, over all appliances; and how much room there is.

use std::collections::HashMap;

use futures_util::future::join_all;
use orlop_api::client::VolumeFilter;
use orlop_api::{ErrorKind, HostName, Page, Pool, Provisioning, VolumeState};
use tonic::Status;

use super::volumes::shown;
use super::{Controller, bytes, capability, condition};
use crate::appliances::Appliance;
use crate::csi::{
    GetCapacityRequest, GetCapacityResponse, ListVolumesRequest, ListVolumesResponse, list_volumes_response,
};
use crate::deadline::Deadline;
use crate::handle::ApplianceName;
use crate::node_id::NodeId;
use crate::parameters::Parameters;
use crate::status::{self, Result, invalid, missing};

/// Where a list goes on: on an appliance, after what it calls its cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub appliance: ApplianceName,
    pub cursor: Option<String>,
}

impl Place {
    fn parse(token: &str) -> Result<Self> {
        let parsed = token.split_once(':').and_then(|(appliance, cursor)| {
            let cursor = (!cursor.is_empty()).then(|| cursor.to_string());
            Some(Self { appliance: appliance.parse().ok()?, cursor })
        });
        parsed.ok_or_else(|| Status::aborted("starting_token: it is none of this driver's: begin again"))
    }

    fn token(&self) -> String {
        format!("{}:{}", self.appliance, self.cursor.as_deref().unwrap_or_default())
    }
}

/// How many entries a call asks for: as many as there are in a page of the API at most.
fn limit(max_entries: i32) -> Result<Option<usize>> {
    match usize::try_from(max_entries) {
        Ok(0) => Ok(None),
        Ok(n) => Ok(Some(n)),
        Err(_) => Err(invalid("max_entries: it is negative")),
    }
}

/// The most entries of a page of the API.
const PAGE: usize = 1000;

impl Controller {
    /// Goes through all appliances, from where it was left, until there is enough. One that can't be reached ends it: what
    /// is left out of a list is taken for gone.
    pub(super) async fn pages<'a, T, E, F, M>(
        &'a self,
        max_entries: i32,
        token: &str,
        page: impl Fn(&'a Appliance, Option<String>, u16) -> F,
        mut entry: impl FnMut(&'a Appliance, T) -> M,
    ) -> Result<(Vec<E>, String)>
    where
        F: Future<Output = Result<Page<T>>>,
        M: Future<Output = Result<E>>,
    {
        let limit = limit(max_entries)?;
        let begin = (!token.is_empty()).then(|| Place::parse(token)).transpose()?;
        if let Some(place) = begin.as_ref().filter(|p| self.appliances.get(&p.appliance).is_none()) {
            return Err(Status::aborted(format!(
                "starting_token: there is no appliance {}",
                place.appliance
            )));
        }
        let mut entries = Vec::new();
        for appliance in self.appliances.iter() {
            let begins_here = begin.as_ref().filter(|p| p.appliance == *appliance.name());
            if begin.as_ref().is_some_and(|p| *appliance.name() < p.appliance) {
                continue;
            }
            let mut cursor = begins_here.and_then(|p| p.cursor.clone());
            loop {
                let room = limit.map_or(PAGE, |limit| (limit - entries.len()).min(PAGE));
                if room == 0 {
                    let place = Place { appliance: appliance.name().clone(), cursor };
                    return Ok((entries, place.token()));
                }
                let found = page(appliance, cursor.take(), u16::try_from(room).unwrap_or(u16::MAX)).await?;
                for item in found.items {
                    entries.push(entry(appliance, item).await?);
                }
                cursor = found.next;
                if cursor.is_none() {
                    break;
                }
            }
        }
        Ok((entries, String::new()))
    }

    /// The nodes that an appliance knows, by their names there.
    pub(super) async fn node_ids(
        &self,
        appliance: &Appliance,
        deadline: Deadline,
    ) -> Result<HashMap<HostName, String>> {
        let hosts = appliance.call(deadline, |client| async move { client.all_hosts().await });
        let hosts = hosts.await.map_err(status::of)?;
        Ok(hosts.into_iter().map(|host| (host.name.clone(), NodeId::of(&host).to_string())).collect())
    }

    pub(super) async fn volumes(
        &self,
        ask: ListVolumesRequest,
        deadline: Deadline,
    ) -> Result<ListVolumesResponse> {
        let (max, token) = (ask.max_entries, &ask.starting_token);
        let (found, next_token) = self
            .pages(
                max,
                token,
                |appliance, cursor, limit| {
                    let filter = VolumeFilter { cursor, limit: Some(limit), ..VolumeFilter::default() };
                    async move {
                        let filter = &filter;
                        let listed =
                            appliance.call(deadline, |client| async move { client.volumes(filter).await });
                        listed.await.map_err(stale)
                    }
                },
                |appliance, volume| async move { Ok((appliance, volume)) },
            )
            .await?;
        let mut nodes: HashMap<&ApplianceName, HashMap<HostName, String>> = HashMap::new();
        let mut entries = Vec::with_capacity(found.len());
        for (appliance, volume) in found.iter().filter(|(_, volume)| volume.state != VolumeState::Deleting) {
            let volume: &orlop_api::Volume = volume;
            let appliance: &Appliance = appliance;
            if !volume.hosts.is_empty() && !nodes.contains_key(appliance.name()) {
                nodes.insert(appliance.name(), self.node_ids(appliance, deadline).await?);
            }
            let known = nodes.get(appliance.name());
            // A zone is no node.
            let published = volume.hosts.iter().filter_map(|host| known?.get(host).cloned()).collect();
            let status = list_volumes_response::VolumeStatus {
                published_node_ids: published,
                volume_condition: Some(condition(volume)),
            };
            entries.push(list_volumes_response::Entry {
                volume: Some(shown(appliance, volume)),
                status: Some(status),
            });
        }
        Ok(ListVolumesResponse { entries, next_token })
    }

    pub(super) async fn capacity(
        &self,
        ask: GetCapacityRequest,
        deadline: Deadline,
    ) -> Result<GetCapacityResponse> {
        let parameters = Parameters::parse(&ask.parameters)?;
        for capability in &ask.volume_capabilities {
            // There is no room for what can't be.
            if capability::objection(capability, parameters.protocol())?.is_some() {
                return Ok(GetCapacityResponse::default());
            }
        }
        let pool = parameters.pool.clone().ok_or_else(|| missing("parameters: pool"))?;
        let topology = ask.accessible_topology.filter(|t| !t.segments.is_empty());
        let mut among = self.appliances.reached_from(topology.as_slice(), &[]);
        among.retain(|a| parameters.appliance.as_ref().is_none_or(|name| a.name() == name));
        let asked = join_all(among.iter().map(|appliance| appliance.pool(&pool, deadline))).await;
        let (mut pools, mut why): (Vec<Pool>, Vec<_>) = (Vec::new(), Vec::new());
        for answer in asked {
            match answer {
                Ok(pool) => pools.push(pool),
                // There is no room in what is not there.
                Err(p) if p.kind == ErrorKind::NotFound => {}
                Err(p) => why.push(p),
            }
        }
        if let (true, Some(problem)) = (pools.is_empty(), why.pop()) {
            return Err(status::of(problem));
        }
        let largest = |pool: &Pool| match parameters.provisioning {
            Provisioning::Thin => pool.largest_thin.bytes(),
            Provisioning::Thick => pool.largest_thick.bytes(),
        };
        let most = |of: &dyn Fn(&Pool) -> u64| pools.iter().map(of).max().map(bytes);
        Ok(GetCapacityResponse {
            available_capacity: bytes(pools.iter().map(|p| p.available.bytes()).fold(0, u64::saturating_add)),
            maximum_volume_size: most(&largest),
            minimum_volume_size: most(&|p| p.granularity.bytes()),
        })
    }
}

/// A cursor that the appliance does not know any more: the list is begun again.
pub(super) fn stale(problem: orlop_api::Problem) -> Status {
    match (problem.kind, problem.field.as_deref()) {
        (ErrorKind::Invalid, Some("cursor")) => {
            Status::aborted(format!("starting_token: {}", problem.detail))
        }
        _ => status::of(problem),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_place_is_read_as_it_is_written() {
        for token in ["attic:", "attic:a:b", "b-2:0190c0de"] {
            assert_eq!(Place::parse(token).unwrap().token(), token);
        }
        for bad in ["", "attic", "Attic:x", ":x"] {
            assert_eq!(Place::parse(bad).unwrap_err().code(), tonic::Code::Aborted, "{bad}");
        }
        assert_eq!((limit(0).unwrap(), limit(7).unwrap()), (None, Some(7)));
        limit(-1).unwrap_err();
    }
}
