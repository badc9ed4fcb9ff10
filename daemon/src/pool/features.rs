//! What each kind of pool can do.

use orlop_api::{FilesystemKind, PoolKind, Property};

/// What a kind of pool can do, as it says itself. The table in docs/pools.md is made from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// A linked clone lives on the snapshot that it was made from, which can't go before it. Where it
    /// does not, both only share blocks that the pool counts.
    pub clones_depend: bool,
    /// Snapshots of several volumes are of one instant, whatever is written meanwhile: the pool takes them so, or
    /// their writers are held. Where neither can be, they are taken one after another, again and again until
    /// nothing was written between the first and the last.
    pub groups_under_writes: bool,
    /// It can have redundancy, and then knows its disks: health, spares, scrub, replacing them.
    pub minds_disks: bool,
    /// It can be given more disks.
    pub expands: bool,
    /// Whether a snapshot of a thick volume leaves its reservation whole: every block of the volume
    /// can still be overwritten, however full the pool is.
    pub thick_with_snapshots: bool,
    /// Whether a thin volume can be made thick, and a thick one thin.
    pub reprovision: bool,
    /// The properties that volumes can have.
    pub properties: &'static [Property],
    /// The file systems that volumes can be, the one first that is made where none is named.
    pub filesystems: &'static [FilesystemKind],
    /// Whether volumes can be encrypted at rest.
    pub encryption: bool,
    /// Whether new ones that are read as zeros. Where their encryption lies above the pool's blocks, a block that was
    /// never written reads as zeros deciphered: as anything.
    pub encrypted_zeros: bool,
}

/// What each kind of pool can do: pools answer with it, and docs/pools.md is held to it by a test.
pub const fn features(kind: PoolKind) -> Features {
    match kind {
        // A reservation grows by what a snapshot holds, or the snapshot is refused.
        PoolKind::Zfs => Features {
            clones_depend: true,
            groups_under_writes: true,
            minds_disks: true,
            expands: true,
            thick_with_snapshots: true,
            reprovision: true,
            properties: Property::ALL,
            filesystems: &[FilesystemKind::Zfs],
            encryption: true,
            encrypted_zeros: true,
        },
        // What shares blocks knows nothing of each other: dm-thin or the file system counts who uses one.
        PoolKind::Lvm | PoolKind::File => Features {
            clones_depend: false,
            groups_under_writes: true,
            minds_disks: true,
            expands: matches!(kind, PoolKind::Lvm),
            thick_with_snapshots: false,
            reprovision: false,
            properties: &[],
            filesystems: &[FilesystemKind::Ext4, FilesystemKind::Xfs],
            encryption: true,
            encrypted_zeros: false,
        },
        // Properties are kept and shown, and nothing comes of them: without ZFS nobody could try that part
        // of the API otherwise, nor put a client to the test.
        PoolKind::Sim => Features {
            clones_depend: false,
            groups_under_writes: false,
            minds_disks: false,
            expands: false,
            thick_with_snapshots: false,
            reprovision: true,
            properties: Property::ALL,
            filesystems: &[FilesystemKind::Ext4, FilesystemKind::Xfs, FilesystemKind::Zfs],
            encryption: false,
            encrypted_zeros: false,
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const KINDS: [PoolKind; 4] = [PoolKind::Zfs, PoolKind::Lvm, PoolKind::File, PoolKind::Sim];

    /// docs/pools.md says what the pools say: a row for each capability, a column for each kind.
    #[test]
    fn the_document_says_what_the_pools_say() {
        let all = KINDS.map(features);
        let mut rows = vec![
            ("a linked clone lives on its snapshot", all.map(|f| f.clones_depend)),
            ("a group is of one instant whatever is written", all.map(|f| f.groups_under_writes)),
            ("redundancy, health, spares, scrub, replacing disks", all.map(|f| f.minds_disks)),
            ("adding disks", all.map(|f| f.expands)),
            ("a thick volume stays thick with snapshots", all.map(|f| f.thick_with_snapshots)),
            ("thin is made thick later, and thick thin", all.map(|f| f.reprovision)),
            ("encryption at rest", all.map(|f| f.encryption)),
        ];
        let systems = FilesystemKind::ALL.map(|f| (format!("file system `{}`", f.as_str()), f));
        rows.extend(systems.iter().map(|(n, k)| (n.as_str(), all.map(|f| f.filesystems.contains(k)))));
        let names: Vec<_> = Property::ALL.iter().map(|p| (format!("property `{p}`"), *p)).collect();
        rows.extend(names.iter().map(|(n, p)| (n.as_str(), all.map(|f| f.properties.contains(p)))));
        let document =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/pools.md")).unwrap();
        for (name, says) in rows {
            let cells = says.map(|yes| if yes { "yes" } else { "no" });
            let row = format!("| {name} | {} |", cells.join(" | "));
            assert!(document.lines().any(|l| l == row), "docs/pools.md lacks: {row}");
        }
    }
}
