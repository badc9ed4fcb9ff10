//! Which blocks of a snapshot have data, or are not as in an older one: what backup tools read. Each page of the appliance's is
//! a message of the stream.

use std::pin::Pin;

use futures_util::{Stream, stream};
use orlop_api::client::BlockFilter;
use orlop_api::{ByteSize, Problem, SnapshotBlocks, SnapshotRef};
use tonic::{Request, Response, Status};

use super::snapshots::find;
use super::{Controller, bytes};
use crate::appliances::Appliance;
use crate::csi::{
    BlockMetadata, BlockMetadataType, GetMetadataAllocatedRequest, GetMetadataAllocatedResponse,
    GetMetadataDeltaRequest, GetMetadataDeltaResponse, snapshot_metadata_server,
};
use crate::deadline::Deadline;
use crate::handle::SnapshotHandle;
use crate::status::{self, Answer, Result, invalid};

/// How many ranges a message has where the caller does not say, and at most.
const RANGES: u16 = 1000;
const MOST_RANGES: u16 = 10_000;

/// What is sent.
type Messages<T> = Pin<Box<dyn Stream<Item = Result<T>> + Send>>;

/// What is left to be asked for.
struct Reader {
    appliance: std::sync::Arc<Appliance>,
    snapshot: SnapshotRef,
    base: Option<SnapshotRef>,
    next: Option<u64>,
    limit: u16,
    /// The caller's. Who gives none waits for as long as pages come.
    deadline: Option<Deadline>,
}

impl Reader {
    async fn page(&mut self) -> Result<SnapshotBlocks> {
        let filter =
            &BlockFilter { base: self.base.clone(), from: self.next.map(ByteSize), limit: Some(self.limit) };
        let snapshot = &self.snapshot;
        let deadline = self.deadline.unwrap_or_default();
        let page = self
            .appliance
            .call(deadline, |client| async move { client.snapshot_blocks(snapshot, filter).await });
        let page = page.await.map_err(refused)?;
        self.next = page.next.map(ByteSize::bytes);
        Ok(page)
    }

    /// All messages, of which the first is there already. One that has nothing is not sent but for that: it tells the size.
    fn messages<T: Send + 'static>(
        self,
        first: SnapshotBlocks,
        message: fn(SnapshotBlocks) -> T,
    ) -> Messages<T> {
        Box::pin(stream::unfold((self, Some(first)), move |(mut reader, mut page)| async move {
            loop {
                if let Some(page) = page.take() {
                    return Some((Ok(message(page)), (reader, None)));
                }
                reader.next?;
                match reader.page().await {
                    Ok(found) if found.items.is_empty() => {}
                    Ok(found) => page = Some(found),
                    Err(status) => {
                        reader.next = None;
                        return Some((Err(status), (reader, None)));
                    }
                }
            }
        }))
    }
}

/// An offset behind the end has a code of its own.
fn refused(problem: Problem) -> Status {
    match problem.field.as_deref() {
        Some("from") => Status::out_of_range(format!("starting_offset: {}", problem.detail)),
        Some("base") => invalid(format!("base_snapshot_id: {}", problem.detail)),
        _ => status::of(problem),
    }
}

fn ranges(page: &SnapshotBlocks) -> Vec<BlockMetadata> {
    let range = |r: &orlop_api::BlockRange| BlockMetadata {
        byte_offset: bytes(r.offset.bytes()),
        size_bytes: bytes(r.length.bytes()),
    };
    page.items.iter().map(range).collect()
}

impl Controller {
    async fn reader(
        &self,
        (snapshot, field): (&str, &str),
        base: Option<&str>,
        (from, max): (i64, i32),
        deadline: Option<Deadline>,
    ) -> Result<(Reader, SnapshotBlocks)> {
        let handle: SnapshotHandle = self.handle_of(snapshot, field)?;
        let base =
            base.map(|base| self.handle_of::<orlop_api::SnapshotId>(base, "base_snapshot_id")).transpose()?;
        let from =
            u64::try_from(from).map_err(|_| Status::out_of_range("starting_offset: it is less than 0"))?;
        let limit = match max {
            0 => RANGES,
            1.. => u16::try_from(max).unwrap_or(MOST_RANGES).min(MOST_RANGES),
            _ => return Err(invalid("max_results: it is less than 0")),
        };
        if base.as_ref().is_some_and(|base| base.appliance != handle.appliance) {
            return Err(invalid("base_snapshot_id: it is of another volume"));
        }
        let appliance = self.appliance(&handle)?;
        for handle in [Some(&handle), base.as_ref()].into_iter().flatten() {
            find(appliance, handle, deadline.unwrap_or_default()).await?;
        }
        let mut reader = Reader {
            appliance: appliance.clone(),
            snapshot: SnapshotRef::Id(handle.id),
            base: base.map(|base| SnapshotRef::Id(base.id)),
            next: Some(from),
            limit,
            deadline,
        };
        let first = reader.page().await?;
        Ok((reader, first))
    }
}

#[tonic::async_trait]
impl snapshot_metadata_server::SnapshotMetadata for Controller {
    type GetMetadataAllocatedStream = Messages<GetMetadataAllocatedResponse>;
    type GetMetadataDeltaStream = Messages<GetMetadataDeltaResponse>;

    async fn get_metadata_allocated(
        &self,
        request: Request<GetMetadataAllocatedRequest>,
    ) -> Answer<Self::GetMetadataAllocatedStream> {
        let deadline = Deadline::stated(request.metadata());
        let ask = request.into_inner();
        let what = (ask.snapshot_id.as_str(), "snapshot_id");
        let (reader, first) =
            self.reader(what, None, (ask.starting_offset, ask.max_results), deadline).await?;
        Ok(Response::new(reader.messages(first, |page| GetMetadataAllocatedResponse {
            block_metadata_type: BlockMetadataType::VariableLength.into(),
            volume_capacity_bytes: bytes(page.size.bytes()),
            block_metadata: ranges(&page),
        })))
    }

    async fn get_metadata_delta(
        &self,
        request: Request<GetMetadataDeltaRequest>,
    ) -> Answer<Self::GetMetadataDeltaStream> {
        let deadline = Deadline::stated(request.metadata());
        let ask = request.into_inner();
        let (what, base) =
            ((ask.target_snapshot_id.as_str(), "target_snapshot_id"), ask.base_snapshot_id.as_str());
        let where_from = (ask.starting_offset, ask.max_results);
        let (reader, first) = self.reader(what, Some(base), where_from, deadline).await?;
        Ok(Response::new(reader.messages(first, |page| GetMetadataDeltaResponse {
            block_metadata_type: BlockMetadataType::VariableLength.into(),
            volume_capacity_bytes: bytes(page.size.bytes()),
            block_metadata: ranges(&page),
        })))
    }
}
