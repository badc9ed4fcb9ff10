//! The content of file systems as a stream, which ZFS writes and reads itself (zfs-send(8), zfs-receive(8)).
//!
//! Called by the pool, from the threads of a copy.

use std::fs::File;
use std::os::fd::AsFd;

use orlop_api::{VolumeId, VolumeKind};

use super::dataset::SNAPSHOT;
use super::{BUSY, ZfsPool};
use crate::kernel::{Deadline, lzc};
use crate::model::SnapshotKey;
use crate::pool::Result;

/// The snapshot that a stream makes of what it brings, for a moment.
const RECEIVED: &str = "received";

/// What is missing where file systems can't be copied.
const STREAMS: &str = "copying a ZFS file system needs libzfs_core";

impl ZfsPool {
    pub(super) fn send_stream(&self, key: SnapshotKey, into: &File, deadline: &Deadline) -> Result<()> {
        if self.look_snapshot(key, deadline)?.is_none() {
            return Err(self.ctx.not_found(format!("snapshot {key}")));
        }
        self.ensure_unlocked(&self.existing(key.volume, deadline)?.label, deadline)?;
        let name = self.dataset(key);
        let lzc = lzc::get().ok_or_else(|| self.ctx.unsupported(STREAMS))?;
        lzc.send(&name, into.as_fd()).map_err(self.ctx.io(format!("sending {name}")))
    }

    pub(super) fn receive_stream(&self, id: VolumeId, from: &File, deadline: &Deadline) -> Result<()> {
        let label = self.existing(id, deadline)?.label;
        if label.kind != VolumeKind::Filesystem || label.copied.is_none() {
            return Err(self.ctx.precondition(format!("volume {id} is not being copied into")));
        }
        let lzc = lzc::get().ok_or_else(|| self.ctx.unsupported(STREAMS))?;
        self.mounts.unmount(id, deadline)?;
        // ZFS swaps the dataset's content at the end, and names what was received.
        let received = format!("{}@{RECEIVED}", self.dataset(id));
        // One that was stopped right after that.
        if self.row_of(received.clone(), SNAPSHOT, deadline)?.is_some() {
            self.remove_patiently(&received, SNAPSHOT, deadline)?;
        }
        let done = lzc.receive(&received, from.as_fd());
        done.map_err(self.ctx.io(format!("receiving {received}")))?;
        // That may have taken hours.
        self.remove_patiently(&received, SNAPSHOT, &Deadline::after(BUSY))
    }
}
