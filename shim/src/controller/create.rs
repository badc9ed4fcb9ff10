//! Making a volume: where, how large, and that it is made once however often it is asked for.

use std::sync::Arc;

use futures_util::future::join_all;
use orlop_api::{
    ByteSize, ErrorKind, PoolName, Problem, Properties, Provisioning, SnapshotRef, Volume as ApiVolume,
    VolumeCreate, VolumeName, VolumeRef, VolumeSource, VolumeState,
};
use tonic::{Code, Status};

use super::snapshots::find;
use super::{Controller, bytes, capability, volume};
use crate::appliances::Appliance;
use crate::csi::volume_content_source::Type as Source;
use crate::csi::{
    CapacityRange, CreateVolumeRequest, CreateVolumeResponse, TopologyRequirement, Volume,
    VolumeContentSource,
};
use crate::deadline::Deadline;
use crate::handle::{LONGEST_NAME, SnapshotHandle, VolumeHandle, name_for};
use crate::parameters::{self, Parameters};
use crate::status::{self, Result, invalid, missing};

/// What a volume is unless a size is asked for.
const DEFAULT_SIZE: u64 = 1 << 30;

/// How large a volume may be: at least, and at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    least: u64,
    most: u64,
}

impl Range {
    /// Of a request. Without a size, `default`.
    pub fn of(range: Option<&CapacityRange>, default: u64) -> Result<Self> {
        let (required, limit) = range.map_or((0, 0), |r| (r.required_bytes, r.limit_bytes));
        let (Ok(required), Ok(limit)) = (u64::try_from(required), u64::try_from(limit)) else {
            return Err(Status::out_of_range("capacity_range: a size is not negative"));
        };
        if limit > 0 && required > limit {
            return Err(Status::out_of_range("capacity_range: more is required than its limit"));
        }
        let most = if limit == 0 { u64::MAX } else { limit };
        let least = if required == 0 { default.min(most) } else { required };
        Ok(Self { least, most })
    }

    /// The smallest size in it that a pool can have.
    pub fn size(self, granularity: ByteSize) -> Result<ByteSize> {
        let unit = granularity.bytes().max(1);
        let size = self.least.max(1).checked_next_multiple_of(unit).filter(|size| *size <= self.most);
        size.map(ByteSize).ok_or_else(|| {
            let limits = format!(
                "capacity_range: there is no multiple of {unit} from {} to {}",
                self.least, self.most
            );
            Status::out_of_range(limits)
        })
    }

    /// Whether a size is in it.
    pub fn has(self, size: ByteSize) -> bool {
        (self.least..=self.most).contains(&size.bytes())
    }
}

/// What an appliance must have room for.
#[derive(Debug, Clone, Copy)]
struct Room {
    provisioning: Provisioning,
    least: u64,
}

/// A new volume's content, found on the appliance that has it.
struct Content {
    source: VolumeSource,
    /// In which pool it is.
    pool: PoolName,
    size: u64,
}

impl Controller {
    pub(super) async fn create(
        &self,
        ask: CreateVolumeRequest,
        deadline: Deadline,
    ) -> Result<CreateVolumeResponse> {
        if ask.name.is_empty() {
            return Err(missing("name"));
        }
        if ask.name.len() > LONGEST_NAME {
            return Err(invalid(format!("name: it is longer than {LONGEST_NAME} bytes")));
        }
        let name: VolumeName =
            name_for(&ask.name).ok_or_else(|| invalid("name: no volume can be called so"))?;
        let parameters = Parameters::parse(&ask.parameters)?;
        let changes = parameters::mutable(&ask.mutable_parameters)?;
        let properties = parameters.properties.with(changes.properties);
        capability::check(&ask.volume_capabilities, parameters.protocol())?;
        // What is wrong with it whatever there is.
        let least = Range::of(ask.capacity_range.as_ref(), DEFAULT_SIZE)?.least;
        let room = Room { provisioning: changes.provisioning.unwrap_or(parameters.provisioning), least };
        let _lock = self.locks.take(format!("the volume {:?}", ask.name))?;

        let requirement = ask.accessibility_requirements.unwrap_or_default();
        let source = ask.volume_content_source.as_ref();
        let mut candidates = self.candidates(&parameters, &requirement, source)?;
        if let Some(name) = self.appliances.undecided(&ask.name) {
            candidates.retain(|a| *a.name() == name);
            if candidates.is_empty() {
                let text =
                    format!("it may have been made on appliance {name}, where it is not asked for any more");
                return Err(Status::unavailable(text));
            }
        }
        let place = match &candidates[..] {
            [only] => only.clone(),
            several => {
                let several = several.to_vec();
                match self.found(&name, &several, deadline).await? {
                    Some(appliance) => appliance,
                    None => self.best(&parameters, &requirement, several, room, deadline).await?,
                }
            }
        };
        let content = match source {
            None => None,
            Some(source) => match self.content(&place, source, &parameters, deadline).await {
                // Its source may have gone since it was made: it is the same volume still.
                Err(status) if status.code() == Code::NotFound => {
                    let range = Range::of(ask.capacity_range.as_ref(), 0)?;
                    let made = self.made_of(&place, &name, source, range, deadline).await?.ok_or(status)?;
                    return answer(&place, made, &parameters, ask.volume_content_source);
                }
                content => Some(content?),
            },
        };
        let pool = parameters.pool.clone().or_else(|| content.as_ref().map(|c| c.pool.clone()));
        let pool = pool.ok_or_else(|| missing("parameters: pool"))?;
        let range =
            Range::of(ask.capacity_range.as_ref(), content.as_ref().map_or(DEFAULT_SIZE, |c| c.size))?;
        if let Some(content) = content.as_ref().filter(|c| range.most < c.size) {
            return Err(Status::out_of_range(format!(
                "capacity_range: the source has {} bytes",
                content.size
            )));
        }
        let range = Range { least: range.least.max(content.as_ref().map_or(0, |c| c.size)), ..range };
        let granularity = place.granularity(&pool, deadline).await.map_err(|p| no_pool(p, &pool))?;
        let wanted = VolumeCreate {
            kind: Some(parameters.protocol().kind()),
            filesystem: parameters.filesystem,
            provisioning: room.provisioning,
            protocol: Some(parameters.protocol()),
            source: content.map(|c| c.source),
            properties,
            encryption: parameters.encryption(),
            ..VolumeCreate::new(name, pool, range.size(granularity)?)
        };
        self.appliances.decide(&ask.name, Some(place.name()));
        let made = make(&place, wanted, range, deadline).await;
        // Whether it was made is known then; of what took too long or was not answered it is not.
        let is_known =
            !made.as_ref().is_err_and(|s| matches!(s.code(), Code::Unavailable | Code::DeadlineExceeded));
        if is_known {
            self.appliances.decide(&ask.name, None);
        }
        answer(&place, made?, &parameters, ask.volume_content_source)
    }

    /// A volume of this name that was made of that source.
    async fn made_of(
        &self,
        place: &Appliance,
        name: &VolumeName,
        source: &VolumeContentSource,
        range: Range,
        deadline: Deadline,
    ) -> Result<Option<ApiVolume>> {
        let by = &VolumeRef::Name(name.clone());
        let found = place.call(deadline, |client| async move { client.volume(by).await });
        let found = match found.await {
            Err(p) if p.kind == ErrorKind::NotFound => return Ok(None),
            found => found.map_err(status::of)?,
        };
        let of = match (source.r#type.as_ref(), &found.source) {
            (Some(Source::Snapshot(s)), Some(origin)) => {
                SnapshotHandle::parse(&s.snapshot_id).is_some_and(|h| h.id == origin.snapshot)
            }
            (Some(Source::Volume(v)), Some(origin)) => {
                VolumeHandle::parse(&v.volume_id).is_some_and(|h| h.id == origin.volume)
            }
            _ => false,
        };
        Ok(Some(found).filter(|found| of && range.has(found.size)))
    }

    /// Where it may be made. Never empty.
    fn candidates(
        &self,
        parameters: &Parameters,
        requirement: &TopologyRequirement,
        source: Option<&VolumeContentSource>,
    ) -> Result<Vec<Arc<Appliance>>> {
        let mut found = self.appliances.reached_from(&requirement.requisite, &requirement.preferred);
        if let Some(name) = &parameters.appliance {
            if self.appliances.get(name).is_none() {
                return Err(invalid(format!("appliance: {name} is not in the configuration of this driver")));
            }
            found.retain(|a| a.name() == name);
        }
        if let Some(source) = source {
            let name = match source.r#type.as_ref().ok_or_else(|| missing("volume_content_source"))? {
                Source::Snapshot(s) => {
                    self.handle_of::<orlop_api::SnapshotId>(&s.snapshot_id, "snapshot_id")?.appliance
                }
                Source::Volume(v) => {
                    self.handle_of::<orlop_api::VolumeId>(&v.volume_id, "volume_id")?.appliance
                }
            };
            found.retain(|a| *a.name() == name);
        }
        if found.is_empty() {
            let text = "no appliance is reached from all the places where this volume must be";
            return Err(Status::resource_exhausted(text));
        }
        Ok(found)
    }

    /// The appliance that has a volume of this name. One that can't be asked keeps it open whether there is one.
    async fn found(
        &self,
        name: &VolumeName,
        on: &[Arc<Appliance>],
        deadline: Deadline,
    ) -> Result<Option<Arc<Appliance>>> {
        let by = &VolumeRef::Name(name.clone());
        let asked = join_all(on.iter().map(|appliance| async move {
            let found = appliance.call(deadline, |client| async move { client.volume(by).await });
            (appliance, found.await)
        }));
        let mut has = None;
        for (appliance, answer) in asked.await {
            match answer {
                Ok(_) => has = Some(appliance.clone()),
                Err(p) if p.kind == ErrorKind::NotFound => {}
                // It is asked again if it was asked for there; else it is none of this volume's.
                Err(problem) => tracing::warn!(%problem, "an appliance does not say what it has"),
            }
        }
        Ok(has)
    }

    /// The best of several: one that can make a volume of that size now, then preferred by where its nodes are, then with the
    /// most room.
    async fn best(
        &self,
        parameters: &Parameters,
        requirement: &TopologyRequirement,
        among: Vec<Arc<Appliance>>,
        room: Room,
        deadline: Deadline,
    ) -> Result<Arc<Appliance>> {
        let pool = parameters.pool.clone().ok_or_else(|| missing("parameters: pool"))?;
        let asked = join_all(among.into_iter().map(|appliance| {
            let pool = pool.clone();
            async move {
                let answer = appliance.pool(&pool, deadline).await;
                (appliance, answer)
            }
        }));
        let (mut best, mut why) = (None, None);
        for (appliance, answer) in asked.await {
            match answer {
                Ok(found) => {
                    let largest = match room.provisioning {
                        Provisioning::Thin => found.largest_thin,
                        Provisioning::Thick => found.largest_thick,
                    };
                    let is_full = largest.bytes() < room.least;
                    let rank = appliance.rank(&requirement.preferred);
                    let key = (is_full, rank, std::cmp::Reverse(found.available.bytes()));
                    if best.as_ref().is_none_or(|(than, _)| key < *than) {
                        best = Some((key, appliance));
                    }
                }
                Err(problem) if problem.kind == ErrorKind::NotFound && why.is_some() => {}
                Err(problem) => why = Some(problem),
            }
        }
        match (best, why) {
            (Some((_, appliance)), _) => Ok(appliance),
            (None, Some(problem)) => Err(no_pool(problem, &pool)),
            (None, None) => Err(Status::resource_exhausted("there is no appliance")),
        }
    }

    async fn content(
        &self,
        place: &Appliance,
        source: &VolumeContentSource,
        parameters: &Parameters,
        deadline: Deadline,
    ) -> Result<Content> {
        let mode = parameters.clone_mode;
        match source.r#type.as_ref().ok_or_else(|| missing("volume_content_source"))? {
            Source::Snapshot(of) => {
                let handle: SnapshotHandle = self.handle_of(&of.snapshot_id, "snapshot_id")?;
                let found = find(place, &handle, deadline).await?;
                let source = VolumeSource { snapshot: Some(SnapshotRef::Id(handle.id)), volume: None, mode };
                Ok(Content { source, pool: found.pool, size: found.size.bytes() })
            }
            Source::Volume(of) => {
                let handle: VolumeHandle = self.handle_of(&of.volume_id, "volume_id")?;
                let found = volume(place, handle.id, deadline).await?;
                let source = VolumeSource { snapshot: None, volume: Some(VolumeRef::Id(handle.id)), mode };
                Ok(Content { source, pool: found.pool, size: found.size.bytes() })
            }
        }
    }
}

fn answer(
    place: &Appliance,
    made: ApiVolume,
    parameters: &Parameters,
    content_source: Option<VolumeContentSource>,
) -> Result<CreateVolumeResponse> {
    if made.state == VolumeState::Copying {
        let done = made.progress.map_or(0, |p| p.done.bytes().saturating_mul(100) / p.total.bytes().max(1));
        return Err(Status::aborted(format!(
            "volume {}: its content is being copied, {done} % are done",
            made.id
        )));
    }
    let volume = Volume {
        capacity_bytes: bytes(made.size.bytes()),
        volume_id: VolumeHandle { appliance: place.name().clone(), id: made.id }.to_string(),
        volume_context: parameters.context(),
        content_source,
        accessible_topology: place.topology().into_iter().collect(),
    };
    Ok(CreateVolumeResponse { volume: Some(volume) })
}

/// A pool that is not there is a mistake in the class, and not in the claim.
fn no_pool(problem: Problem, pool: &PoolName) -> Status {
    match problem.kind {
        ErrorKind::NotFound => invalid(format!("pool: there is no {pool}: {}", problem.detail)),
        _ => status::of(problem),
    }
}

/// Makes it, or finds it as it is: one that is there already with a size in the range is it.
async fn make(
    place: &Appliance,
    wanted: VolumeCreate,
    range: Range,
    deadline: Deadline,
) -> Result<ApiVolume> {
    let create = async |wanted: &VolumeCreate| {
        place.call(deadline, |client| async move { client.create_volume(wanted).await }).await
    };
    let problem = match create(&wanted).await {
        Ok(made) => return Ok(made),
        Err(problem) => problem,
    };
    match problem.kind {
        ErrorKind::Conflict if problem.field.as_deref() == Some("size") => {
            let by = &VolumeRef::Name(wanted.name.clone());
            let found = place.call(deadline, |client| async move { client.volume(by).await });
            let found = found.await.map_err(status::of)?;
            if !range.has(found.size) {
                return Err(status::of(problem));
            }
            // The appliance itself says whether all else is as asked for.
            create(&VolumeCreate { size: found.size, ..wanted }).await.map_err(status::of)
        }
        ErrorKind::NotFound => Err(no_pool(problem, &wanted.pool)),
        _ => Err(status::of(problem)),
    }
}

/// What a class asks for that a volume must have.
pub(super) fn differs(volume: &ApiVolume, parameters: &Parameters, properties: Properties) -> Option<String> {
    let differs = |what: &str, is: String, want: String| Some(format!("{what}: it is {is}, and not {want}"));
    if volume.protocol != parameters.protocol() {
        return differs("protocol", volume.protocol.as_str().into(), parameters.protocol().as_str().into());
    }
    if let Some(pool) = parameters.pool.as_ref().filter(|pool| **pool != volume.pool) {
        return differs("pool", volume.pool.to_string(), pool.to_string());
    }
    let has = volume.properties.only(properties);
    (has != properties).then(|| format!("properties: it has {has}, and not {properties}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn range(required_bytes: i64, limit_bytes: i64) -> Result<Range> {
        Range::of(Some(&CapacityRange { required_bytes, limit_bytes }), DEFAULT_SIZE)
    }

    #[test]
    fn a_size_is_the_smallest_that_fits() {
        let unit = ByteSize::MIB;
        assert_eq!(Range::of(None, DEFAULT_SIZE).unwrap().size(unit).unwrap(), ByteSize(1 << 30));
        assert_eq!(range(1, 0).unwrap().size(unit).unwrap(), ByteSize::MIB);
        assert_eq!(range(0, 1 << 20).unwrap().size(unit).unwrap(), ByteSize::MIB);
        assert_eq!(range((1 << 20) + 1, 0).unwrap().size(unit).unwrap(), ByteSize(2 << 20));
        for (required, limit) in [(-1, 0), (0, -1), (2, 1), (i64::MIN, i64::MAX)] {
            assert_eq!(range(required, limit).unwrap_err().code(), Code::OutOfRange);
        }
        assert_eq!(range(1, 5).unwrap().size(unit).unwrap_err().code(), Code::OutOfRange);
        assert!(range(i64::MAX, 0).unwrap().size(ByteSize(1 << 62)).is_ok());
        assert!(range(5, 9).unwrap().has(ByteSize(9)) && !range(5, 9).unwrap().has(ByteSize(10)));
    }
}
