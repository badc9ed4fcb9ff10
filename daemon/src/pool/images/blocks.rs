//! Which blocks of a snapshot's image have data, and which it does not share with an older one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::Images;
use crate::kernel::Deadline;
use crate::kernel::fiemap::{Mapping, mappings};
use crate::model::{SnapshotKey, SnapshotLabel};
use crate::pool::Result;
use crate::pool::blocks::{Extents, More};
use crate::pool::copy::next_data;
use crate::pool::mapped::header;

/// How much of an image is looked at in one go: its mappings are in memory meanwhile.
const WINDOW: u64 = 256 << 20;

/// How often the places of a window are read again, because the file system moved some meanwhile.
const TRIES: usize = 3;

/// What is compared at once, where nothing tells of places.
const PIECE: usize = 64 << 10;

impl Images {
    /// See [`crate::pool::Pool::blocks`]. Two images that have a block at the same place share it.
    pub fn blocks(
        &self,
        key: SnapshotKey,
        base: Option<SnapshotKey>,
        found: &mut Extents,
        deadline: &Deadline,
    ) -> Result<()> {
        let (target, before) = self.snapshot_and_base(key, base)?;
        let label = self.whole::<SnapshotLabel>(&self.snapshots()?, key)?.0;
        let skip = header(label.encryption);
        while !found.is_enough() {
            self.ctx.check(deadline, "looking for blocks")?;
            let (from, to) = (found.at(), found.end().min(found.at().saturating_add(WINDOW)));
            let window = (from + skip, to + skip);
            let runs = match &before {
                None => mappings(&target, window.0, window.1).map(|m| runs(&m, &[], window)),
                Some(before) => differing(&target, before, window),
            };
            let runs = runs.map_err(self.ctx.io(format!("asking where the image of {key} is")))?;
            for (start, end) in runs {
                if found.add(start - skip, end - start) == More::Enough {
                    return Ok(());
                }
            }
            let _ = found.pass(to);
        }
        Ok(())
    }

    /// The same by comparing bytes, where images share nothing, or nobody tells.
    pub fn blocks_by_content(
        &self,
        key: SnapshotKey,
        base: Option<SnapshotKey>,
        found: &mut Extents,
        deadline: &Deadline,
    ) -> Result<()> {
        let (target, before) = self.snapshot_and_base(key, base)?;
        let mut pieces = [vec![0; PIECE], vec![0; PIECE]];
        while !found.is_enough() {
            self.ctx.check(deadline, "comparing blocks")?;
            let compared = compare(&target, before.as_ref(), found, &mut pieces);
            compared.map_err(self.ctx.io(format!("comparing the image of {key}")))?;
        }
        Ok(())
    }

    fn snapshot_and_base(&self, key: SnapshotKey, base: Option<SnapshotKey>) -> Result<(File, Option<File>)> {
        Ok((self.snapshot_file(key)?, base.map(|base| self.snapshot_file(base)).transpose()?))
    }
}

/// One piece, or what lies before the next one that has data.
fn compare(
    target: &File,
    base: Option<&File>,
    found: &mut Extents,
    pieces: &mut [Vec<u8>; 2],
) -> io::Result<()> {
    let at = found.at();
    let data = [Some(target), base].into_iter().flatten().map(|file| next_data(file, at));
    let data = data.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().min();
    let Some(data) = data.filter(|data| *data < found.end()) else {
        found.finish();
        return Ok(());
    };
    let start = at.max(data / PIECE as u64 * PIECE as u64);
    // Up to the grid, wherever it begins.
    let end = (start / PIECE as u64 + 1).saturating_mul(PIECE as u64).min(found.end());
    let length = usize::try_from(end - start).unwrap_or(PIECE);
    let [new, old] = pieces;
    read_or_zeros(target, &mut new[..length], start)?;
    match base {
        Some(base) => read_or_zeros(base, &mut old[..length], start)?,
        None => old[..length].fill(0),
    }
    let _ = match new[..length] == old[..length] {
        true => found.pass(start + length as u64),
        false => found.add(start, length as u64),
    };
    Ok(())
}

/// Behind the end of a file, which was smaller then, are zeros.
fn read_or_zeros(file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    let mut have = 0;
    while have < bytes.len() {
        match file.read_at(&mut bytes[have..], at + have as u64)? {
            0 => break,
            n => have += n,
        }
    }
    bytes[have..].fill(0);
    Ok(())
}

/// Where two files do not have the same bytes for sure. Neither is written to, but the file system may move what both
/// have (a balance of btrfs), and use its place for something else: the places of one are read before and after those of the
/// other.
fn differing(target: &File, base: &File, window: (u64, u64)) -> io::Result<Vec<(u64, u64)>> {
    let mut before = mappings(base, window.0, window.1)?;
    let mut have = Vec::new();
    for _ in 0..TRIES {
        have = mappings(target, window.0, window.1)?;
        let after = mappings(base, window.0, window.1)?;
        if after == before {
            return Ok(runs(&have, &before, window));
        }
        before = after;
    }
    // It goes on and on: all that either has.
    let mut all = runs(&have, &[], window);
    all.extend(runs(&before, &[], window));
    all.sort_unstable();
    Ok(all)
}

/// The runs of a window in which two lists of mappings do not say the same place.
fn runs(target: &[Mapping], base: &[Mapping], window: (u64, u64)) -> Vec<(u64, u64)> {
    let mut found: Vec<(u64, u64)> = Vec::new();
    let (mut target, mut base) = (target, base);
    let mut at = window.0;
    while at < window.1 {
        target = &target[target.iter().take_while(|m| m.end() <= at).count()..];
        base = &base[base.iter().take_while(|m| m.end() <= at).count()..];
        // Up to where one of them begins or ends.
        let edge = |m: &Mapping| if m.offset > at { m.offset } else { m.end() };
        let edges = [target.first(), base.first()].into_iter().flatten().map(edge);
        let end = edges.min().unwrap_or(window.1).min(window.1);
        let here = |list: &[Mapping]| list.first().filter(|m| m.offset <= at).map(|m| m.locate(at));
        let same = match (here(target), here(base)) {
            (None, None) => true,
            (Some(Some(a)), Some(Some(b))) => a == b,
            _ => false,
        };
        if !same {
            match found.last_mut() {
                Some(last) if last.1 == at => last.1 = end,
                _ => found.push((at, end)),
            }
        }
        at = end;
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;
    use crate::kernel::fiemap::mapping;

    #[test]
    fn what_is_at_another_place_is_told() {
        let base = [mapping(0, 100, 1000, 0), mapping(200, 100, 5000, 0)];
        // Its middle was written; the second one is the same in two pieces; something new lies behind.
        let target = [
            mapping(0, 40, 1000, 0),
            mapping(40, 20, 9000, 0),
            mapping(60, 40, 1060, 0),
            mapping(200, 50, 5000, 0),
            mapping(250, 50, 5050, 0),
            mapping(400, 10, 9100, 0),
        ];
        assert_eq!(runs(&target, &base, (0, 500)), [(40, 60), (400, 410)]);
        assert_eq!(runs(&target, &base, (50, 405)), [(50, 60), (400, 405)]);
        assert_eq!(runs(&target, &[], (0, 500)), [(0, 100), (200, 300), (400, 410)]);
        // What was there and is not any more reads as zeros now.
        assert_eq!(runs(&[], &base, (0, 250)), [(0, 100), (200, 250)]);
        assert_eq!(runs(&[], &[], (0, 500)), []);
    }

    #[test]
    fn a_place_that_is_not_sure_is_told() {
        for flags in [0x2, 0x4, 0x200] {
            let unsure = [mapping(0, 100, 1000, flags)];
            assert_eq!(runs(&unsure, &unsure, (0, 100)), [(0, 100)], "{flags:#x}");
        }
        // Compressed: the same piece is the same, another one of it may not be.
        let whole = [mapping(0, 100, 1000, 0x8)];
        assert_eq!(runs(&whole, &whole, (0, 100)), []);
        assert_eq!(runs(&[mapping(50, 50, 1000, 0x8)], &whole, (0, 100)), [(0, 100)]);
    }

    #[test]
    fn bytes_are_compared() {
        let file = |writes: &[(u64, &[u8])], size: u64| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(size).unwrap();
            writes.iter().for_each(|(at, bytes)| file.write_all_at(bytes, *at).unwrap());
            file
        };
        let mib = 1u64 << 20;
        let base = file(&[(0, &[1; 4096]), (5 * mib, &[2; 4096])], 8 * mib);
        let target = file(&[(0, &[1; 4096]), (9 * mib + 1, &[3])], 10 * mib);
        let all = |base: Option<&File>| {
            let mut found = Extents::new(0, 10 * mib, 100, Duration::from_secs(60));
            let mut pieces = [vec![0; PIECE], vec![0; PIECE]];
            while !found.is_enough() {
                compare(&target, base, &mut found, &mut pieces).unwrap();
            }
            let (found, next) = found.into_parts();
            assert_eq!(next, None);
            found.into_iter().map(|e| (e.offset, e.length)).collect::<Vec<_>>()
        };
        let piece = PIECE as u64;
        assert_eq!(all(Some(&base)), [(5 * mib, piece), (9 * mib, piece)]);
        assert_eq!(all(None), [(0, piece), (9 * mib, piece)]);
    }
}
