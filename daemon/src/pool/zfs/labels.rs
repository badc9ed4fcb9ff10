//! When the disks of a zpool were written last, by their labels, and whether that is how the zpool left them.
//!
//! Called by `status` before a zpool that could do nothing gets its disks back. ZFS knows them by their numbers alone
//! then, and what has waited would be written over whatever another machine, or a restored copy, has put there since.
//! The labels are read here and not by `zdb`, whose words are for people. Their form is ZFS's on-disk format
//! (vdev_impl.h, uberblock_impl.h and nvpair.c of OpenZFS), which is the same for good.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::kernel::block;

/// Two labels of this size are at the start of a disk and two at its end.
const LABEL: u64 = 256 << 10;
/// In a label: where the configuration is, an nvlist in XDR, and where the ring of uberblocks.
const CONFIGURATION: std::ops::Range<usize> = (16 << 10)..(128 << 10);
const RING: usize = 128 << 10;
/// Uberblocks are at multiples of their size, which is this or a larger power of two.
const UBERBLOCK: usize = 1 << 10;
/// `UBERBLOCK_MAGIC`, in the writer's byte order.
const MAGIC: u64 = 0x00ba_b10c;
/// `DATA_TYPE_UINT64`.
const NUMBER: u32 = 8;

/// What the labels of one disk say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Written {
    /// The zpool's number.
    pub zpool: u64,
    /// The transaction group in which its configuration was written last.
    pub configuration: u64,
    /// The newest transaction group.
    pub group: u64,
}

/// Reads a disk's labels. `None`: it has none.
pub(super) fn read(disk: &Path) -> io::Result<Option<Written>> {
    let file = File::open(disk)?;
    // What the disk has, not what this machine remembers of it: ZFS writes past that.
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    let size = block::size(&file)? / LABEL * LABEL;
    if size < 4 * LABEL {
        return Ok(None);
    }
    let mut newest: Option<Written> = None;
    let mut label = vec![0; LABEL as usize];
    for at in [0, LABEL, size - 2 * LABEL, size - LABEL] {
        file.read_exact_at(&mut label, at)?;
        let Some(found) = parse(&label) else { continue };
        newest = Some(match newest {
            // Labels of two zpools on one disk: it is nobody's.
            Some(other) if other.zpool != found.zpool => return Ok(None),
            Some(other) => Written {
                zpool: found.zpool,
                configuration: found.configuration.max(other.configuration),
                group: found.group.max(other.group),
            },
            None => found,
        });
    }
    Ok(newest)
}

fn parse(label: &[u8]) -> Option<Written> {
    let nvlist = label.get(CONFIGURATION)?;
    let group = label.get(RING..)?.chunks(UBERBLOCK).filter_map(uberblock).max()?;
    Some(Written { zpool: number(nvlist, "pool_guid")?, configuration: number(nvlist, "txg")?, group })
}

/// Its transaction group, the third of its numbers.
fn uberblock(bytes: &[u8]) -> Option<u64> {
    let word = |n: usize| bytes.get(n * 8..n * 8 + 8)?.try_into().ok().map(u64::from_le_bytes);
    match word(0)? {
        MAGIC => word(2),
        other if other.swap_bytes() == MAGIC => word(2).map(u64::swap_bytes),
        _ => None,
    }
}

/// A number of the outermost list.
fn number(nvlist: &[u8], name: &str) -> Option<u64> {
    let word = |at: usize| nvlist.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes);
    // Encoding (1: XDR), byte order and two bytes more; version and flags. Each pair: its size here and in memory; the
    // name's length and the name, filled up to four bytes; type; how many; the value.
    if nvlist.first() != Some(&1) {
        return None;
    }
    let mut at = 12;
    loop {
        let size = word(at)? as usize;
        let length = word(at + 8)? as usize;
        // The last one has size 0. None is smaller than its fixed parts.
        if size < 20 || length > size {
            return None;
        }
        let value = at + 12 + length.next_multiple_of(4);
        if nvlist.get(at + 12..at + 12 + length)? == name.as_bytes() && word(value)? == NUMBER {
            return nvlist.get(value + 8..value + 16)?.try_into().ok().map(u64::from_be_bytes);
        }
        at += size;
    }
}

/// How a zpool left its disks, as the module tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Left {
    pub zpool: u64,
    /// The transaction group in which its configuration was written last.
    pub configuration: u64,
    /// The last that changed data and was ended, if one did lately: it is on the disks.
    pub changed: Option<u64>,
    /// The last that wrote anything, or the oldest that is known: none that was ended is on the disks after it.
    pub written: u64,
    /// The one that was begun and could not be ended, if there was one: it may be on the disks, in whole or in part.
    pub under_way: Option<u64>,
}

impl Left {
    /// By `txgs`, in which the module keeps its last transaction groups. `None`: it keeps none. One that is not suspended
    /// had nothing to write.
    pub fn new(zpool: u64, configuration: u64, txgs: &str, is_suspended: bool) -> Option<Self> {
        // Number, time of birth, state (C: committed), bytes that were to be written, bytes read, bytes written; then
        // what does not matter here.
        let groups = txgs.lines().filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let number = |n: usize| words.get(n)?.parse::<u64>().ok();
            (words.get(2) == Some(&"C")).then_some((number(0)?, number(3)? > 0, number(5)? > 0))
        });
        let groups: Vec<_> = groups.collect();
        let last =
            |of: &dyn Fn(&(u64, bool, bool)) -> bool| groups.iter().filter(|g| of(g)).map(|g| g.0).max();
        let ended = last(&|_| true)?;
        Some(Self {
            zpool,
            configuration,
            changed: last(&|(_, changed, _)| *changed),
            written: last(&|(.., written)| *written).or(groups.iter().map(|g| g.0).min())?,
            under_way: is_suspended.then_some(ended + 1),
        })
    }

    /// Whether the disks are as they were left; if not, why. Those that are not this zpool's are left out: ZFS does not
    /// take them.
    ///
    /// Not each group is written to each disk, so the newest of all counts. Whoever imports a zpool writes its
    /// configuration anew, with the number of that group.
    pub fn check(&self, disks: &[Written]) -> Result<(), &'static str> {
        let ours = || disks.iter().filter(|d| d.zpool == self.zpool);
        let Some(newest) = ours().map(|d| d.group).max() else {
            return Err("they are none of this zpool's");
        };
        let configuration = ours().map(|d| d.configuration).max().unwrap_or_default();
        let under_way = |group: u64| self.under_way == Some(group);
        if (configuration != self.configuration && !under_way(configuration))
            || (newest > self.written && !under_way(newest))
        {
            return Err("they were written to elsewhere since");
        }
        if self.changed.is_some_and(|changed| newest < changed) {
            return Err("they were put back to an earlier state");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn pair(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
        let mut body = (name.len() as u32).to_be_bytes().to_vec();
        body.extend(name.as_bytes());
        body.resize(body.len().next_multiple_of(4), 0);
        body.extend(kind.to_be_bytes());
        body.extend(1u32.to_be_bytes());
        body.extend(value);
        let mut pair = (body.len() as u32 + 8).to_be_bytes().to_vec();
        pair.extend(24u32.to_be_bytes());
        pair.extend(body);
        pair
    }

    fn label(zpool: u64, configuration: u64, groups: &[(u64, bool)]) -> Vec<u8> {
        let mut label = vec![0; LABEL as usize];
        let mut nvlist = vec![1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        nvlist.extend(pair("version", NUMBER, &5000u64.to_be_bytes()));
        // A list inside, which has a number of that name too, and a text: type 9.
        let inner = [vec![0; 8], pair("txg", NUMBER, &999u64.to_be_bytes()), vec![0; 8]].concat();
        nvlist.extend(pair("vdev_tree", 19, &inner));
        nvlist.extend(pair("name", 9, b"\0\0\0\x04tank"));
        nvlist.extend(pair("txg", NUMBER, &configuration.to_be_bytes()));
        nvlist.extend(pair("pool_guid", NUMBER, &zpool.to_be_bytes()));
        nvlist.extend([0; 8]);
        label[CONFIGURATION.start..CONFIGURATION.start + nvlist.len()].copy_from_slice(&nvlist);
        for (n, (group, swapped)) in groups.iter().enumerate() {
            let at = RING + n * 4 * UBERBLOCK;
            for (i, word) in [MAGIC, 5000, *group].into_iter().enumerate() {
                let word = if *swapped { word.swap_bytes() } else { word };
                label[at + i * 8..at + i * 8 + 8].copy_from_slice(&word.to_le_bytes());
            }
        }
        label
    }

    #[test]
    fn a_label_is_read() {
        let written = Written { zpool: 7, configuration: 4, group: 21 };
        assert_eq!(parse(&label(7, 4, &[(20, false), (21, true), (3, false)])), Some(written));
        assert_eq!(parse(&label(7, 4, &[])), None, "no uberblock");
        assert_eq!(parse(&vec![0; LABEL as usize]), None);
        assert_eq!(parse(&vec![0xff; LABEL as usize]), None);
        // Whatever is cut off or damaged is an answer, and not a panic.
        let whole = label(7, 4, &[(20, false)]);
        for at in 0..400 {
            let mut bad = whole.clone();
            bad[CONFIGURATION.start + at] ^= 0xff;
            let _ = parse(&bad);
            let _ = number(&whole[CONFIGURATION.start..CONFIGURATION.start + at], "pool_guid");
        }
    }

    #[test]
    fn what_the_module_tells_of_its_groups() {
        let head = "txg      birth            state ndirty       nread        nwritten     reads    writes\n";
        let group = |n: u64, state: &str, dirty: u64, written: u64| {
            format!(
                "{n:<8} 76118190180      {state}     {dirty:<12} 0            {written:<12} 0        29 1 2 3 4\n"
            )
        };
        let txgs = [
            head.to_string(),
            group(16, "C", 0, 0),
            group(17, "C", 4096, 90112),
            group(18, "C", 0, 299_008),
            group(19, "C", 0, 0),
            group(20, "S", 8192, 0),
            group(21, "W", 0, 0),
        ];
        let left = Left { zpool: 7, configuration: 4, changed: Some(17), written: 18, under_way: Some(20) };
        assert_eq!(Left::new(7, 4, &txgs.concat(), true), Some(left));
        let idle = Left { under_way: None, ..left };
        assert_eq!(Left::new(7, 4, &txgs.concat(), false), Some(idle));
        // Nothing was written for as long as it remembers.
        let idle =
            [head.to_string(), group(16, "C", 0, 0), group(17, "C", 0, 0), group(18, "O", 0, 0)].concat();
        let left = Left { zpool: 7, configuration: 4, changed: None, written: 16, under_way: None };
        assert_eq!(Left::new(7, 4, &idle, false), Some(left));
        assert_eq!(Left::new(7, 4, head, false), None);
        assert_eq!(Left::new(7, 4, "", true), None);
    }

    #[test]
    fn only_what_is_as_it_was_left_is_written_on() {
        let left = Left { zpool: 7, configuration: 4, changed: Some(17), written: 18, under_way: Some(20) };
        let disk = |configuration, group| Written { zpool: 7, configuration, group };
        let strange = Written { zpool: 8, ..disk(4, 30) };
        // The one that was under way is there or not.
        for good in [
            &[disk(4, 17)][..],
            &[disk(4, 18)],
            &[disk(4, 20)],
            &[disk(20, 20)],
            &[disk(4, 18), disk(2, 11)],
            &[disk(4, 18), strange],
        ] {
            assert_eq!(left.check(good), Ok(()), "{good:?}");
        }
        // Imported, which writes its configuration: also where its groups are older than ours.
        let elsewhere = Err("they were written to elsewhere since");
        for bad in [
            &[disk(4, 19)][..],
            &[disk(4, 21)],
            &[disk(18, 18)],
            &[disk(23, 23)],
            &[disk(4, 18), disk(19, 17)],
        ] {
            assert_eq!(left.check(bad), elsewhere, "{bad:?}");
        }
        // Nothing was under way in one that had nothing to write.
        let idle = Left { under_way: None, ..left };
        assert_eq!(idle.check(&[disk(20, 20)]), elsewhere);
        assert_eq!(idle.check(&[disk(4, 20)]), elsewhere);
        assert_eq!(idle.check(&[disk(4, 18)]), Ok(()));
        let earlier = Err("they were put back to an earlier state");
        assert_eq!(left.check(&[disk(4, 16)]), earlier);
        for none in [&[][..], &[strange]] {
            assert_eq!(left.check(none), Err("they are none of this zpool's"));
        }
        // Nothing was changed for as long as the module remembers: its configuration alone tells.
        let quiet = Left { changed: None, written: 16, ..left };
        assert_eq!(quiet.check(&[disk(4, 5)]), Ok(()));
        assert_eq!(quiet.check(&[disk(9, 9)]), elsewhere);
    }
}
