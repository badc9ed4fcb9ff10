//! A thin pool's own metadata, as the kernel holds it for somebody to read (drivers/md/dm-thin-metadata.c and
//! drivers/md/persistent-data/dm-btree.c): a tree from each thin device to its own tree, and there from each block of the
//! device to a block of data. Trees share what is the same in both, so that comparing two costs what differs.
//!
//! Called by `blocks`. What is read here is never written again while it is held.

use std::io;

/// A block of metadata.
pub(super) const BLOCK: usize = 4096;
/// `THIN_SUPERBLOCK_MAGIC`, and the versions of what follows it that are known.
const MAGIC: u64 = 27_022_010;
const VERSIONS: std::ops::RangeInclusive<u32> = 1..=2;
/// Where in the superblock is what: `struct thin_disk_superblock`.
const MAGIC_AT: usize = 32;
const VERSION_AT: usize = 40;
const ROOT_AT: usize = 320;
const DATA_BLOCK_AT: usize = 336;
/// `struct node_header`, which the keys follow, and their values.
const NODE: usize = 32;
const INTERNAL: u32 = 1;
const LEAF: u32 = 2;
/// No tree is higher.
const HIGHEST: usize = 16;
/// What the checksum of each kind of block is mixed with (`SUPERBLOCK_CSUM_XOR`, `BTREE_CSUM_XOR`).
const OF_SUPERBLOCK: u32 = 160_774;
const OF_NODE: u32 = 121_107;

/// Reads a block of metadata by its number.
pub(super) trait Blocks {
    fn block(&self, number: u64) -> io::Result<Vec<u8>>;
}

fn bad(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

fn word(block: &[u8], at: usize) -> u32 {
    block.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn long(block: &[u8], at: usize) -> u64 {
    block.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// The checksum of a block, which is in its first word (`dm_bm_checksum`).
fn checksum(block: &[u8], of: u32) -> u32 {
    !crc32c::crc32c(&block[4..]) ^ of
}

/// The kernel refuses a block whose checksum is wrong: one that is believed here could leave out what has changed.
fn check(block: &[u8], of: u32, number: u64) -> io::Result<()> {
    match block.len() == BLOCK && word(block, 0) == checksum(block, of) {
        true => Ok(()),
        false => Err(bad(format!("block {number} of its metadata is damaged"))),
    }
}

/// Metadata that is held.
pub(super) struct Held<'b, B> {
    blocks: &'b B,
    devices: u64,
    /// Bytes of a block of data.
    pub data_block: u64,
}

/// The tree of a thin device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tree(u64);

/// A node of a tree: what its keys lead to.
struct Node {
    leaf: bool,
    entries: Vec<(u64, u64)>,
}

impl<'b, B: Blocks> Held<'b, B> {
    /// What begins with that block.
    pub fn at(blocks: &'b B, superblock: u64) -> io::Result<Self> {
        let block = blocks.block(superblock)?;
        if long(&block, MAGIC_AT) != MAGIC || !VERSIONS.contains(&word(&block, VERSION_AT)) {
            return Err(bad("it is no metadata of a thin pool that is known"));
        }
        check(&block, OF_SUPERBLOCK, superblock)?;
        let data_block = u64::from(word(&block, DATA_BLOCK_AT)) * 512;
        if data_block == 0 {
            return Err(bad("its blocks have no size"));
        }
        Ok(Self { blocks, devices: long(&block, ROOT_AT), data_block })
    }

    /// The tree of a device by its number. `None`: there is no such device.
    pub fn tree(&self, device: u64) -> io::Result<Option<Tree>> {
        let mut at = self.devices;
        for _ in 0..HIGHEST {
            let node = self.node(at)?;
            // The last one that begins no later.
            let index = node.entries.partition_point(|(key, _)| *key <= device);
            let Some((key, value)) = index.checked_sub(1).map(|i| node.entries[i]) else { return Ok(None) };
            match node.leaf {
                true => return Ok((key == device).then_some(Tree(value))),
                false => at = value,
            }
        }
        Err(bad("its tree of devices does not end"))
    }

    fn node(&self, number: u64) -> io::Result<Node> {
        let block = self.blocks.block(number)?;
        check(&block, OF_NODE, number)?;
        let flags = word(&block, 4);
        let (entries, room) = (word(&block, 16) as usize, word(&block, 20) as usize);
        let fits = NODE + 16 * room <= BLOCK && entries <= room && word(&block, 24) == 8;
        if long(&block, 8) != number || !fits || (flags != INTERNAL && flags != LEAF) {
            return Err(bad(format!("block {number} of its metadata is no node of a tree")));
        }
        let entry = |i: usize| (long(&block, NODE + 8 * i), long(&block, NODE + 8 * (room + i)));
        let entries: Vec<_> = (0..entries).map(entry).collect();
        if !entries.is_sorted_by(|a, b| a.0 < b.0) {
            return Err(bad(format!("block {number} of its metadata is not in order")));
        }
        Ok(Node { leaf: flags == LEAF, entries })
    }

    /// Tells which blocks of `tree` from `from` on are other ones than in `base`, or are there at all without it, until
    /// `tell` says that it is enough.
    pub fn differing(
        &self,
        tree: Tree,
        base: Option<Tree>,
        from: u64,
        mut tell: impl FnMut(u64) -> bool,
    ) -> io::Result<()> {
        let mut new = Walk::new(self, Some(tree), from);
        let mut old = Walk::new(self, base, from);
        let mut last = None;
        loop {
            match (new.next(), old.next()) {
                (None, None) => return Ok(()),
                // The same below, whatever it is.
                (Some(Step::Below(a)), Some(Step::Below(b))) if a == b => {
                    new.pass();
                    old.pass();
                }
                // The one that begins earlier is looked into; of two, both.
                (Some(Step::Below(a)), Some(Step::Below(b))) => {
                    if a.first <= b.first {
                        new.descend()?;
                    }
                    if b.first <= a.first {
                        old.descend()?;
                    }
                }
                (Some(Step::Below(a)), other) if other.is_none_or(|b| a.first <= b.first()) => {
                    new.descend()?
                }
                (other, Some(Step::Below(b))) if other.is_none_or(|a| b.first <= a.first()) => {
                    old.descend()?
                }
                (a, b) => {
                    let (first, second) = (a.map(Step::first), b.map(Step::first));
                    let at = match (first, second) {
                        (Some(a), Some(b)) => a.min(b),
                        (Some(one), None) | (None, Some(one)) => one,
                        (None, None) => return Ok(()),
                    };
                    // What lies before the last one would be taken for told.
                    if last.replace(at).is_some_and(|last| at <= last) {
                        return Err(bad("its blocks are not in order"));
                    }
                    let same = first == second && a == b;
                    if first == Some(at) {
                        new.pass();
                    }
                    if second == Some(at) {
                        old.pass();
                    }
                    if !same && tell(at) {
                        return Ok(());
                    }
                }
            }
        }
    }
}

/// What lies below a key: another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Below {
    first: u64,
    node: u64,
}

/// What comes next in a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Below(Below),
    /// A block of the device, and its block of data.
    Block(u64, u64),
}

impl Step {
    fn first(self) -> u64 {
        match self {
            Self::Below(below) => below.first,
            Self::Block(key, _) => key,
        }
    }
}

/// A tree from its start to its end, looked into where that is asked for.
struct Walk<'h, 'b, B> {
    held: &'h Held<'b, B>,
    from: u64,
    /// What comes, the next one last; with how deep it is.
    steps: Vec<(Step, usize)>,
}

impl<'h, 'b, B: Blocks> Walk<'h, 'b, B> {
    fn new(held: &'h Held<'b, B>, tree: Option<Tree>, from: u64) -> Self {
        let root = tree.map(|Tree(node)| (Step::Below(Below { first: 0, node }), 0));
        Self { held, from, steps: root.into_iter().collect() }
    }

    fn next(&self) -> Option<Step> {
        self.steps.last().map(|(step, _)| *step)
    }

    fn pass(&mut self) {
        self.steps.pop();
    }

    /// Puts what lies below the next step in its place.
    fn descend(&mut self) -> io::Result<()> {
        let Some((Step::Below(below), depth)) = self.steps.pop() else { return Ok(()) };
        if depth >= HIGHEST {
            return Err(bad("its tree of blocks does not end"));
        }
        let node = self.held.node(below.node)?;
        // Up to the last child that can have what is looked for; of blocks, those that are.
        let (from, entries) = (self.from, &node.entries);
        let skip = entries.partition_point(|(key, _)| if node.leaf { *key < from } else { *key <= from });
        let skip = if node.leaf { skip } else { skip.saturating_sub(1) };
        for (key, value) in entries[skip..].iter().rev() {
            let step = match node.leaf {
                // The rest of a value is when the block was given to the device.
                true => Step::Block(*key, value >> 24),
                false => Step::Below(Below { first: *key, node: *value }),
            };
            self.steps.push((step, depth + 1));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::cell::Cell;
    use std::collections::BTreeMap;

    use proptest::collection::{btree_map, vec};
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    /// Metadata in memory, which counts what is read of it.
    #[derive(Default)]
    struct Fake {
        blocks: BTreeMap<u64, Vec<u8>>,
        read: Cell<usize>,
    }

    impl Blocks for Fake {
        fn block(&self, number: u64) -> io::Result<Vec<u8>> {
            self.read.set(self.read.get() + 1);
            self.blocks.get(&number).cloned().ok_or_else(|| bad("no such block"))
        }
    }

    fn seal(block: &mut [u8], of: u32) {
        let sum = checksum(block, of);
        block[..4].copy_from_slice(&sum.to_le_bytes());
    }

    /// How many entries a node has here, so that trees are high.
    const ROOM: usize = 4;

    impl Fake {
        fn put(&mut self, flags: u32, entries: &[(u64, u64)]) -> u64 {
            let number = self.blocks.len() as u64 + 1;
            let mut block = vec![0; BLOCK];
            block[4..8].copy_from_slice(&flags.to_le_bytes());
            block[8..16].copy_from_slice(&number.to_le_bytes());
            block[16..20].copy_from_slice(&(entries.len() as u32).to_le_bytes());
            block[20..24].copy_from_slice(&(ROOM as u32).to_le_bytes());
            block[24..28].copy_from_slice(&8u32.to_le_bytes());
            for (i, (key, value)) in entries.iter().enumerate() {
                block[NODE + 8 * i..NODE + 8 * i + 8].copy_from_slice(&key.to_le_bytes());
                let at = NODE + 8 * (ROOM + i);
                block[at..at + 8].copy_from_slice(&value.to_le_bytes());
            }
            // The same node is the same block, as after a snapshot.
            let same = self.blocks.iter().find(|(_, b)| b[4..8] == block[4..8] && b[16..] == block[16..]);
            if let Some((same, _)) = same {
                return *same;
            }
            seal(&mut block, OF_NODE);
            self.blocks.insert(number, block);
            number
        }

        /// A tree of blocks with these blocks of data.
        fn tree(&mut self, map: &BTreeMap<u64, u64>) -> Tree {
            let leaves: Vec<_> = map.iter().map(|(k, v)| (*k, v << 24 | 7)).collect();
            let mut level: Vec<(u64, u64)> =
                leaves.chunks(ROOM).map(|c| (c[0].0, self.put(LEAF, c))).collect();
            if level.is_empty() {
                return Tree(self.put(LEAF, &[]));
            }
            while level.len() > 1 {
                level = level.chunks(ROOM).map(|c| (c[0].0, self.put(INTERNAL, c))).collect();
            }
            Tree(level[0].1)
        }

        fn held(&self) -> Held<'_, Self> {
            Held { blocks: self, devices: 0, data_block: 65536 }
        }

        fn told(&self, tree: Tree, base: Option<Tree>, from: u64) -> Vec<u64> {
            let mut told = Vec::new();
            self.held()
                .differing(tree, base, from, |at| {
                    told.push(at);
                    false
                })
                .unwrap();
            told
        }
    }

    fn expected(new: &BTreeMap<u64, u64>, old: &BTreeMap<u64, u64>, from: u64) -> Vec<u64> {
        let keys: std::collections::BTreeSet<u64> = new.keys().chain(old.keys()).copied().collect();
        keys.into_iter().filter(|k| *k >= from && new.get(k) != old.get(k)).collect()
    }

    proptest! {
        #[test]
        fn what_differs_is_told_whatever_the_trees_look_like(
            old in btree_map(0u64..300, 0u64..1000, 0..200),
            changes in vec((0u64..300, option::of(1000u64..2000)), 0..20),
            from in 0u64..300,
        ) {
            let mut new = old.clone();
            for (key, value) in changes {
                match value {
                    Some(value) => drop(new.insert(key, value)),
                    None => drop(new.remove(&key)),
                }
            }
            let mut fake = Fake::default();
            let (a, b) = (fake.tree(&new), fake.tree(&old));
            prop_assert_eq!(fake.told(a, Some(b), from), expected(&new, &old, from));
            prop_assert_eq!(fake.told(a, None, from), expected(&new, &BTreeMap::new(), from));
        }
    }

    #[test]
    fn comparing_costs_what_differs() {
        let mut fake = Fake::default();
        let old: BTreeMap<u64, u64> = (0..4096).map(|k| (k, k)).collect();
        let mut new = old.clone();
        new.insert(2000, 9999);
        let (a, b) = (fake.tree(&new), fake.tree(&old));
        fake.read.set(0);
        assert_eq!(fake.told(a, Some(b), 0), [2000]);
        assert!(fake.read.get() <= 12, "{} nodes were read", fake.read.get());
        fake.read.set(0);
        assert_eq!(fake.told(a, None, 4095), [4095]);
        assert!(fake.read.get() <= 6, "{} nodes were read", fake.read.get());
    }

    #[test]
    fn it_ends_when_it_is_enough() {
        let mut fake = Fake::default();
        let map: BTreeMap<u64, u64> = (0..100).map(|k| (k, k)).collect();
        let tree = fake.tree(&map);
        let mut told = 0;
        fake.held()
            .differing(tree, None, 10, |_| {
                told += 1;
                told == 3
            })
            .unwrap();
        assert_eq!(told, 3);
    }

    #[test]
    fn a_device_is_found_by_its_number() {
        let mut fake = Fake::default();
        let leaves = [fake.put(LEAF, &[(1, 100), (2, 200)]), fake.put(LEAF, &[(7, 700)])];
        let root = fake.put(INTERNAL, &[(1, leaves[0]), (7, leaves[1])]);
        let held = Held { devices: root, ..fake.held() };
        assert_eq!(held.tree(2).unwrap(), Some(Tree(200)));
        assert_eq!(held.tree(7).unwrap(), Some(Tree(700)));
        for none in [0, 3, 8] {
            assert_eq!(held.tree(none).unwrap(), None);
        }
    }

    #[test]
    fn what_is_no_metadata_is_refused() {
        let mut fake = Fake::default();
        let mut superblock = vec![0; BLOCK];
        superblock[MAGIC_AT..MAGIC_AT + 8].copy_from_slice(&MAGIC.to_le_bytes());
        superblock[VERSION_AT] = 2;
        superblock[DATA_BLOCK_AT..DATA_BLOCK_AT + 4].copy_from_slice(&128u32.to_le_bytes());
        fake.blocks.insert(899, superblock.clone());
        assert!(Held::at(&fake, 899).is_err(), "its checksum is wrong");
        seal(&mut superblock, OF_SUPERBLOCK);
        fake.blocks.insert(900, superblock.clone());
        assert_eq!(Held::at(&fake, 900).unwrap().data_block, 65536);
        superblock[VERSION_AT] = 3;
        seal(&mut superblock, OF_SUPERBLOCK);
        fake.blocks.insert(901, superblock);
        assert!(Held::at(&fake, 901).is_err());
        // A node that says that it is another, one with too many entries, one that is out of order.
        let good = fake.put(LEAF, &[(1, 1), (2, 2)]);
        let spoil = |at: usize, byte: u8, sealed: bool| {
            let mut block = fake.blocks[&good].clone();
            block[at] = byte;
            if sealed {
                seal(&mut block, OF_NODE);
            }
            Fake { blocks: [(good, block)].into(), ..Fake::default() }
        };
        // And one bit of a value, which its checksum alone tells.
        let bit = (NODE + 8 * ROOM, 0, false);
        for (at, byte, sealed) in
            [(8, 99, true), (16, 99, true), (4, 3, true), (24, 4, true), (NODE, 9, true), bit]
        {
            let spoiled = spoil(at, byte, sealed);
            let told = spoiled.held().differing(Tree(good), None, 0, |_| false);
            assert_eq!(told.unwrap_err().kind(), io::ErrorKind::InvalidData, "{at}");
        }
        // Children that do not follow each other.
        let (a, b) = (fake.put(LEAF, &[(1, 1), (9, 2)]), fake.put(LEAF, &[(5, 3)]));
        let root = fake.put(INTERNAL, &[(1, a), (5, b)]);
        assert!(fake.held().differing(Tree(root), None, 0, |_| false).is_err());
        // One that leads to itself.
        let mut round = fake.blocks[&good].clone();
        round[4] = INTERNAL as u8;
        round[NODE + 8 * ROOM..NODE + 8 * ROOM + 8].copy_from_slice(&good.to_le_bytes());
        seal(&mut round, OF_NODE);
        let round = Fake { blocks: [(good, round)].into(), ..Fake::default() };
        assert!(round.held().differing(Tree(good), None, 0, |_| false).is_err());
    }
}
