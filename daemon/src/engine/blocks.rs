//! Which blocks of a snapshot have data, or are not as in an older one.
//!
//! Called by the interface. Nothing is changed by it, so it is no action; the snapshots stay for as long as it takes.

use std::sync::Arc;
use std::time::Duration;

use orlop_api::{BlockRange, ByteSize, SnapshotBlocks, SnapshotRef};
use tokio::time::{Instant, timeout_at};

use super::View;
use super::action::Principal;
use super::core::{Core, On};
use super::error::{Error, Result};
use super::locks::{Key, Mode};
use super::view::SnapshotEntry;
use crate::pool::Extents;

/// How many are told at once: each takes a thread of its pool's, and of a ZFS pool's disks as much as they give.
pub(super) const READERS: usize = 2;

/// For how long is looked for the blocks of one page.
const PAGE: Duration = Duration::from_secs(2);

/// What is asked for.
#[derive(Debug, Clone)]
pub struct BlocksOf {
    /// Of what.
    pub snapshot: SnapshotRef,
    /// An older one of the same volume: only what is not as in it.
    pub base: Option<SnapshotRef>,
    /// From this byte on.
    pub from: ByteSize,
    /// How many ranges at most.
    pub most: usize,
}

impl Core {
    pub(super) async fn blocks(
        self: &Arc<Self>,
        who: &Principal,
        ask: BlocksOf,
        until: Instant,
    ) -> Result<SnapshotBlocks> {
        let (entry, base) = check(&self.view.read(), who, &ask)?;
        let turn = timeout_at(until, self.block_readers.acquire()).await;
        let _turn = turn.ok().and_then(std::result::Result::ok).ok_or_else(|| {
            Error::Unavailable("blocks of other snapshots are being looked for: try again later".into())
        })?;
        let keys = [Some(&entry), base.as_ref()].into_iter().flatten().map(|s| s.label.key.id);
        let mut wants: Vec<_> = keys.map(|id| (Key::Snapshot(id), Mode::Shared)).collect();
        // An export of it would find it busy, or leave behind what is held.
        wants.push((Key::Pool(entry.pool.clone()), Mode::Shared));
        let _guards = self.locks.acquire(wants, until).await?;
        // One may have gone meanwhile.
        let (entry, base) = check(&self.view.read(), who, &ask)?;
        let (key, base) = (entry.label.key, base.map(|base| base.label.key));
        let (from, size, most) = (ask.from.bytes(), entry.label.size, ask.most);
        let open = self.open_pool(&entry.pool)?;
        let look = self.on_pool(&open, On::Make, until, move |p, d| {
            let mut found = Extents::new(from, size.bytes(), most, PAGE);
            p.blocks(key, base, &mut found, d).map(|()| found.into_parts())
        });
        let (found, next) = look.await.map_err(|f| f.error)?;
        let range =
            |e: crate::pool::Extent| BlockRange { offset: ByteSize(e.offset), length: ByteSize(e.length) };
        Ok(SnapshotBlocks { size, items: found.into_iter().map(range).collect(), next: next.map(ByteSize) })
    }
}

/// Both snapshots, if they are what can be asked for.
fn check(view: &View, who: &Principal, ask: &BlocksOf) -> Result<(SnapshotEntry, Option<SnapshotEntry>)> {
    let find = |snapshot: &SnapshotRef| {
        let id = view.resolve_snapshot(who, snapshot);
        id.and_then(|id| view.snapshot_entry(id)).cloned().ok_or_else(|| view.no_snapshot(who, snapshot))
    };
    let entry = find(&ask.snapshot)?;
    let base = ask.base.as_ref().map(find).transpose()?;
    if let Some(base) = &base {
        let wrong = |reason: String| Error::Invalid { field: "base", reason };
        if base.label.key.volume != entry.label.key.volume {
            return Err(wrong("is of another volume".into()));
        }
        // Ids are minted in the order of time.
        if base.label.key.id >= entry.label.key.id {
            return Err(wrong(format!("is not older than snapshot {}", ask.snapshot)));
        }
    }
    if ask.from > entry.label.size {
        let reason = format!("is behind the end: the snapshot has {} bytes", entry.label.size.bytes());
        return Err(Error::Invalid { field: "from", reason });
    }
    Ok((entry, base))
}
