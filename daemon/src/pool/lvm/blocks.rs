//! Which blocks of a snapshot have data, and which are not as in an older one: the thin pool's metadata says so. The kernel
//! holds it as it was at one instant while it is read, for one reader at a time.
//!
//! Called by the pool.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::thin::{self, BLOCK, Held};
use super::{LvmPool, Named};
use crate::kernel::{Deadline, fs};
use crate::model::{SnapshotKey, SnapshotLabel};
use crate::pool::Result;
use crate::pool::blocks::{Extents, More};
use crate::pool::mapped::header;

/// The device with a thin pool's metadata, read around the page cache: the kernel writes it by itself.
struct Device(File);

impl thin::Blocks for Device {
    fn block(&self, number: u64) -> io::Result<Vec<u8>> {
        let mut room = vec![0u8; 2 * BLOCK];
        let skip = room.as_ptr().align_offset(BLOCK);
        self.0.read_exact_at(&mut room[skip..skip + BLOCK], number.saturating_mul(BLOCK as u64))?;
        room.drain(..skip);
        room.truncate(BLOCK);
        Ok(room)
    }
}

impl LvmPool {
    pub(super) fn blocks_of(
        &self,
        key: SnapshotKey,
        base: Option<SnapshotKey>,
        found: &mut Extents,
        deadline: &Deadline,
    ) -> Result<()> {
        let (label, ..) = self.existing::<SnapshotLabel>(key, deadline)?;
        let number = |key: SnapshotKey| self.group.thin_number(&key.lv(), deadline);
        let ((device, is_external), base) = (number(key)?, base.map(number).transpose()?);
        if found.is_enough() {
            return Ok(());
        }
        if is_external && base.is_none_or(|(_, of)| of != is_external) {
            // What the thin pool does not have may be in the other one.
            let _ = found.add(0, label.size.bytes());
            return Ok(());
        }
        let base = base.map(|(base, _)| base);
        let held = self.group.hold_metadata(deadline)?;
        let action =
            || self.ctx.io(format!("reading the thin pool's metadata at {}", held.device().display()));
        let file = File::open(held.device()).and_then(|f| fs::set_direct(&f).map(|()| f)).map_err(action())?;
        let blocks = Device(file);
        let metadata = Held::at(&blocks, held.root()).map_err(action())?;
        let tree = |number: u64| {
            let missing = || io::Error::new(io::ErrorKind::NotFound, format!("it has no device {number}"));
            metadata.tree(number)?.ok_or_else(missing)
        };
        let (tree, base) = (tree(device).map_err(action())?, base.map(tree).transpose().map_err(action())?);
        let (unit, skip) = (metadata.data_block, header(label.encryption));
        let mut late = false;
        let told = metadata.differing(tree, base, (found.at() + skip) / unit, |block| {
            late = deadline.check().is_err();
            let start = block.saturating_mul(unit);
            let end = start.saturating_add(unit).saturating_sub(skip);
            let start = start.saturating_sub(skip);
            // What lies in the header alone is not the volume's.
            late || (end > start && found.add(start, end - start) == More::Enough)
        });
        told.map_err(action())?;
        self.ctx.check(deadline, "telling blocks")?;
        if !late {
            found.finish();
        }
        held.release()
    }
}
