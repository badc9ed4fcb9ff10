//! What `zfs list` says, read: rows, volumes, space.
//!
//! Called by the pool. Asks in machine form (`-H -p`): fields separated by tabs, numbers in bytes. A
//! label holds no tab: JSON writes control characters escaped.

use orlop_api::{ByteSize, FilesystemKind, Properties, Property, Provisioning, VolumeId, VolumeKind};

use crate::kernel::Deadline;
use crate::kernel::exec::{Output, Tool};
use crate::kernel::lzc::{self, Dataset};
use crate::model::{Document, Label, SnapshotKey, SnapshotLabel};
use crate::pool::context::Context;
use crate::pool::rules::adoptable;
use crate::pool::{Capacity, Listing, Result, Stored, Stray};

/// The user property that holds a label.
pub(super) const LABEL: &str = "dev.orlop:label";

/// The user property that holds a snapshot's label. Another one than `LABEL`: a snapshot inherits what
/// is set on its volume.
pub(super) const SNAPSHOT: &str = "dev.orlop:snapshot";

/// What ZFS calls the blocks of a zvol, and those of files.
const VOLBLOCKSIZE: &str = "volblocksize";
const RECORDSIZE: &str = "recordsize";

/// What ZFS calls a property.
fn native(property: Property) -> &'static str {
    match property {
        Property::Compression => "compression",
        Property::Dedup => "dedup",
        Property::BlockSize => VOLBLOCKSIZE,
        Property::Checksum => "checksum",
        Property::Logbias => "logbias",
        Property::Sync => "sync",
    }
}

/// The native properties that are read of a volume: its reservation, then every property in order,
/// and whether it can be written to.
pub(super) fn natives() -> Vec<&'static str> {
    let properties = Property::ALL.iter().map(|p| native(*p));
    std::iter::once("refreservation").chain(properties).chain(["readonly"]).collect()
}

/// The word that a label has where each of these matters: what a label does not set is the pool's default, and is not
/// asked. Nothing for what always matters; that a volume can be written to, where it has no label.
pub(super) fn words() -> Vec<Option<&'static str>> {
    let properties = Property::ALL.iter().map(|p| Some(p.as_str()));
    std::iter::once(None).chain(properties).chain([Some("readonly")]).collect()
}

/// Those of a dataset that is a file system: it has records where a zvol has blocks.
pub(super) fn natives_of_filesystems() -> Vec<&'static str> {
    natives().into_iter().map(|n| if n == VOLBLOCKSIZE { RECORDSIZE } else { n }).collect()
}

/// What those say. A value that no property could be set to (by hand, then) is none.
pub(super) fn read_natives(values: &[Option<String>]) -> (Provisioning, Properties) {
    let mut values = values.iter().map(|v| v.as_deref().filter(|v| *v != "-"));
    let provisioning = match values.next().flatten() {
        None | Some("0") => Provisioning::Thin,
        Some(_) => Provisioning::Thick,
    };
    let mut properties = Properties::default();
    for (property, value) in Property::ALL.iter().zip(values) {
        if let Some(value) = value {
            let _ = properties.set(*property, value);
        }
    }
    (provisioning, properties)
}

/// Properties as zfs(8) is told to set them, later too: all but the block size.
pub(super) fn settings(properties: &Properties) -> impl Iterator<Item = String> + use<> {
    let later = properties.iter().filter(|(p, _)| *p != Property::BlockSize);
    later.map(|(property, value)| format!("{}={value}", native(property)))
}

/// The block size of a file system as zfs(8) is told to set it.
pub(super) fn record_size(properties: &Properties) -> Option<String> {
    properties.block_size.map(|b| format!("{RECORDSIZE}={}", b.bytes()))
}

/// What ZFS calls those properties that `was` sets and `is` does not.
pub(super) fn unset(was: &Properties, is: &Properties) -> Vec<&'static str> {
    was.iter().filter(|(p, _)| is.get(*p).is_none()).map(|(p, _)| native(p)).collect()
}

fn columns() -> String {
    format!("name,type,volsize,{LABEL},{SNAPSHOT},{},refquota,{RECORDSIZE},encryption", natives().join(","))
}

/// One dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub name: String,
    pub volume: bool,
    pub volsize: Option<u64>,
    /// What its files may take, if it is a file system and that is limited.
    pub refquota: Option<u64>,
    pub label: Option<String>,
    pub snapshot: Option<String>,
    /// As `natives` lists them.
    pub native: Vec<Option<String>>,
    /// Whether it is encrypted, as far as the command told.
    pub encrypted: bool,
}

impl Row {
    /// As the library reads it, with a volume's label or a snapshot's.
    pub fn read(name: &str, of_volume: bool, d: Dataset) -> Self {
        let (label, snapshot) = if of_volume { (d.text, None) } else { (None, d.text) };
        Self {
            name: name.into(),
            volume: d.volsize.is_some(),
            volsize: d.volsize,
            refquota: d.refquota.filter(|q| *q > 0),
            label,
            snapshot,
            native: d.native,
            // Of one that is ours its label says that.
            encrypted: false,
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split('\t');
        let (name, kind, size) = (fields.next()?, fields.next()?, fields.next()?);
        let mut text = || fields.next().map(|t| (t != "-").then(|| t.to_string()));
        let (label, snapshot) = (text()?, text()?);
        let mut native = natives().iter().map(|_| text()).collect::<Option<Vec<_>>>()?;
        let (refquota, record_size) = (text()?, text()?);
        let encrypted = text()?.is_some_and(|e| e != "off");
        if fields.next().is_some() {
            return None;
        }
        let number = |text: &str| match text {
            "-" | "none" => Some(None),
            n => n.parse().ok().map(Some),
        };
        let filesystem = kind == "filesystem";
        if filesystem {
            let blocks = natives().iter().position(|n| *n == VOLBLOCKSIZE);
            if let Some(value) = blocks.and_then(|at| native.get_mut(at)) {
                *value = record_size;
            }
        }
        let refquota = number(refquota.as_deref().filter(|_| filesystem).unwrap_or("-"))?;
        Some(Self {
            name: name.into(),
            volume: kind == "volume",
            volsize: number(size)?,
            refquota: refquota.filter(|q| *q > 0),
            label,
            snapshot,
            native,
            encrypted,
        })
    }

    /// A zvol of that size that nobody keeps from being written to, and how its space is reserved.
    pub fn adoptable(&self) -> std::result::Result<Provisioning, String> {
        let Some(size) = self.volsize.filter(|_| self.volume) else { return Err("it is not a zvol".into()) };
        if self.native.last().is_some_and(|r| r.as_deref() == Some("on")) {
            return Err("it is read-only".into());
        }
        if self.encrypted {
            return Err("it is encrypted, with a key that is not the daemon's".into());
        }
        adoptable(ByteSize(size), ByteSize(super::VOLBLOCKSIZE), read_natives(&self.native).0)
    }

    /// As one that is not a volume or a snapshot of ours.
    fn stray(self, what: String) -> Stray {
        let size = self.volsize.map(ByteSize);
        // A snapshot has its volume's label too: it inherits it.
        let labelled = if self.name.contains('@') { self.snapshot.is_some() } else { self.label.is_some() };
        if labelled {
            return Stray::labelled(self.name, what, size);
        }
        let can = self.adoptable();
        Stray::foreign(self.name, what, size, can)
    }

    /// The volume that it is, if it is the one of that id; otherwise why not.
    pub fn stored(&self, id: VolumeId) -> std::result::Result<Stored, String> {
        let (size, filesystem) = match (self.volsize.filter(|_| self.volume), self.refquota) {
            (Some(size), _) => (size, None),
            (None, Some(quota)) => (quota, Some(FilesystemKind::Zfs)),
            (None, None) => return Err("is neither a zvol nor a file system with a quota".into()),
        };
        let label = self.volume_label(id)?;
        let kind = if filesystem.is_some() { VolumeKind::Filesystem } else { VolumeKind::Block };
        if (label.kind, label.filesystem) != (kind, filesystem) {
            return Err(format!("is of kind {}, and its label says another", kind.as_str()));
        }
        let (provisioning, properties) = read_natives(&self.native);
        let properties = properties.only(label.properties);
        Ok(Stored { label, size: ByteSize(size), filesystem, provisioning, properties })
    }

    /// Its label, if it is the one of that volume; otherwise why not.
    pub fn volume_label(&self, id: VolumeId) -> std::result::Result<Label, String> {
        match self.label.as_deref().map(Label::from_json) {
            None => Err("has no label".into()),
            Some(Ok(label)) if label.id == id => Ok(label),
            Some(Ok(label)) => Err(format!("has the label of {}", label.id)),
            Some(Err(e)) => Err(format!("has a label that {e}")),
        }
    }
}

/// The label in a snapshot's user property, if it is the one of that snapshot; otherwise why not.
pub(super) fn snapshot_label(
    text: Option<&str>,
    key: SnapshotKey,
) -> std::result::Result<SnapshotLabel, String> {
    match text.map(SnapshotLabel::from_json) {
        None => Err("has no label".into()),
        Some(Ok(label)) if label.key == key => Ok(label),
        Some(Ok(label)) => Err(format!("has the label of {}", label.key)),
        Some(Err(e)) => Err(format!("has a label that {e}")),
    }
}

fn rows(output: &Output) -> std::result::Result<Vec<Row>, crate::kernel::exec::ExecError> {
    output
        .text()?
        .lines()
        .map(|l| Row::parse(l).ok_or_else(|| output.unparsed(&format!("line {l:?}"))))
        .collect()
}

/// One dataset. It and its parent are asked for together: the parent in the answer is proof that the
/// question was answered, so that a missing row means a missing dataset and not a failed command.
pub(super) fn one(
    ctx: &Context,
    zfs: &Tool,
    parent: &str,
    name: &str,
    deadline: &Deadline,
) -> Result<Option<Row>> {
    let columns = columns();
    let args =
        ["list", "-H", "-p", "-d", "0", "-t", "filesystem,volume,snapshot", "-o", &columns, parent, name];
    let output = zfs.run(&args, deadline).map_err(|e| ctx.exec(e))?;
    let rows = rows(&output).map_err(|e| ctx.exec(e))?;
    if !rows.iter().any(|r| r.name == parent) {
        return Err(ctx.exec(output.failure()));
    }
    Ok(rows.into_iter().find(|r| r.name == name))
}

/// All that is below the parent, in one command.
pub(super) fn list(ctx: &Context, zfs: &Tool, parent: &str, deadline: &Deadline) -> Result<Listing> {
    let output = zfs.run(&list_args(parent), deadline).and_then(Output::success).map_err(|e| ctx.exec(e))?;
    Ok(listing(rows(&output).map_err(|e| ctx.exec(e))?, parent))
}

/// That command's arguments.
pub(super) fn list_args(parent: &str) -> [String; 9] {
    let columns = columns();
    ["list", "-H", "-p", "-t", "filesystem,volume,snapshot", "-o", &columns, "-r", parent].map(String::from)
}

/// The zvols of the zpool that are not below the parent.
pub(super) fn elsewhere(ctx: &Context, zfs: &Tool, parent: &str, deadline: &Deadline) -> Result<Vec<Stray>> {
    let columns = columns();
    let args = ["list", "-H", "-p", "-t", "volume", "-o", &columns, "-r", ctx.pool.as_str()];
    let output = zfs.run(&args, deadline).and_then(Output::success).map_err(|e| ctx.exec(e))?;
    Ok(outside(rows(&output).map_err(|e| ctx.exec(e))?, parent))
}

fn outside(rows: Vec<Row>, parent: &str) -> Vec<Stray> {
    let ours = |name: &str| name.strip_prefix(parent).is_some_and(|n| n.is_empty() || n.starts_with('/'));
    let others = rows.into_iter().filter(|r| !ours(&r.name));
    let mut strays: Vec<_> = others.map(|r| r.stray("is outside our part of the zpool".into())).collect();
    strays.sort();
    strays
}

/// Whether a name is that of a snapshot of the parent itself: a whole machine's backup takes such.
fn is_of(name: &str, parent: &str) -> bool {
    name.strip_prefix(parent).is_some_and(|n| n.starts_with('@'))
}

fn listing(rows: Vec<Row>, parent: &str) -> Listing {
    let mut listing = Listing::default();
    for row in rows.into_iter().filter(|r| r.name != parent && !is_of(&r.name, parent)) {
        let below = row.name.strip_prefix(parent).and_then(|n| n.strip_prefix('/'));
        if let Some(snapshot) = below.filter(|n| n.contains('@')) {
            match snapshot.parse().map(|key| snapshot_label(row.snapshot.as_deref(), key)) {
                Ok(Ok(label)) => listing.snapshots.push(label),
                Ok(Err(what)) => listing.strays.push(row.stray(what)),
                Err(_) => listing.strays.push(row.stray("does not have the name of a snapshot".into())),
            }
            continue;
        }
        match below.and_then(|n| n.parse().ok()) {
            None => listing.strays.push(row.stray("does not have the name of a volume".into())),
            Some(id) => match row.stored(id) {
                Ok(stored) => listing.volumes.push(stored),
                Err(what) => listing.strays.push(row.stray(what)),
            },
        }
    }
    listing.volumes.sort_by_key(|s| s.label.id);
    listing.snapshots.sort_by_key(|s| s.key);
    listing.strays.sort();
    listing
}

/// Snapshots of a dataset and clones of those.
pub(super) fn dependants(ctx: &Context, zfs: &Tool, name: &str, deadline: &Deadline) -> Result<Vec<String>> {
    let args = ["list", "-H", "-p", "-t", "all", "-o", "name,clones", "-r", name];
    let output = zfs.run(&args, deadline).map_err(|e| ctx.exec(e))?;
    let text = output.text().map_err(|e| ctx.exec(e))?;
    let mut found = Vec::new();
    for line in text.lines() {
        let (dataset, clones) = line.split_once('\t').unwrap_or((line, "-"));
        if dataset != name {
            found.push(dataset.to_string());
        }
        found.extend(clones.split(',').filter(|c| *c != "-" && !c.is_empty()).map(str::to_string));
    }
    Ok(found)
}

/// Space, as datasets see it: parity and ZFS's own reserve are taken off.
pub(super) fn capacity(ctx: &Context, zfs: &Tool, deadline: &Deadline) -> Result<Capacity> {
    let (used, available) = match lzc::get().map(|lzc| lzc.space(ctx.pool.as_str())) {
        Some(Ok(space)) => space,
        // Where the library can't answer, the command still may.
        Some(Err(error)) => {
            tracing::debug!(%error, "asking libzfs_core for space failed");
            capacity_by_command(ctx, zfs, deadline)?
        }
        None => capacity_by_command(ctx, zfs, deadline)?,
    };
    Ok(Capacity {
        total: ByteSize(used.saturating_add(available)),
        used: ByteSize(used),
        available: ByteSize(available),
        metadata_percent: None,
    })
}

fn capacity_by_command(ctx: &Context, zfs: &Tool, deadline: &Deadline) -> Result<(u64, u64)> {
    let args = ["list", "-H", "-p", "-d", "0", "-o", "used,available", ctx.pool.as_str()];
    let output = zfs.run(&args, deadline).and_then(Output::success).map_err(|e| ctx.exec(e))?;
    let text = output.text().map_err(|e| ctx.exec(e))?;
    let numbers =
        text.trim_end().split_once('\t').and_then(|(u, a)| Some((u.parse().ok()?, a.parse().ok()?)));
    numbers.ok_or_else(|| ctx.exec(output.unparsed(&format!("{text:?}"))))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ID: &str = "0190c0de-1234-7abc-8def-0123456789ab";

    /// A volume's other columns; of other datasets they are not looked at.
    const NATIVE: &str = "\t0\ton\toff\t16384\ton\tlatency\talways\toff\t-\t-\toff";

    /// With that much reserved, read-only or not.
    fn native(reserved: &str, readonly: &str) -> String {
        format!("\t{reserved}\ton\toff\t16384\ton\tlatency\talways\t{readonly}\t-\t-\toff")
    }

    fn label(id: &str) -> String {
        format!(
            r#"{{"v":1,"id":"{id}","name":"data","tenant":"default","kind":"block","size":16384,"provisioning":"thin","protocol":"nvme","created":"2026-11-20T12:00:00Z"}}"#
        )
    }

    fn snapshot(volume: &str, id: &str) -> String {
        format!(
            r#"{{"v":1,"volume":"{volume}","id":"{id}","name":"s","tenant":"default","size":16384,"created":"2026-11-20T12:00:00Z"}}"#
        )
    }

    #[test]
    fn rows_are_volumes_or_are_left_alone() {
        let other = "0190c0de-1234-7abc-8def-000000000000";
        let lines = [
            format!("tank/orlop\tfilesystem\t-\t-\t-{NATIVE}"),
            format!("tank/orlop@backup\tsnapshot\t-\t-\t-{NATIVE}"),
            format!("tank/orlop/{ID}\tvolume\t16384\t{}\t-{NATIVE}", label(ID)),
            format!("tank/orlop/{other}\tvolume\t16384\t-\t-{}", native("32768", "off")),
            format!("tank/orlop/mine\tvolume\t16384\t-\t-{}", native("-", "on")),
            format!("tank/orlop/{ID}x\tfilesystem\t-\t-\t-{NATIVE}"),
            format!(
                "tank/orlop/{ID}@{other}\tsnapshot\t16384\t{}\t{}{NATIVE}",
                label(ID),
                snapshot(ID, other)
            ),
            format!("tank/orlop/{ID}@{ID}\tsnapshot\t16384\t{}\t{}{NATIVE}", label(ID), snapshot(ID, other)),
            format!("tank/orlop/{ID}@mine\tsnapshot\t16384\t{}\t-{NATIVE}", label(ID)),
        ];
        let rows = lines.iter().map(|l| Row::parse(l).unwrap()).collect();
        let l = listing(rows, "tank/orlop");
        assert_eq!(l.volumes.len(), 1);
        assert_eq!(l.volumes[0].size, ByteSize(16384));
        assert_eq!(l.snapshots.iter().map(|s| s.key.id.to_string()).collect::<Vec<_>>(), [other]);
        assert_eq!(l.strays.len(), 5);
        let of = |name: &str| l.strays.iter().find(|s| s.name.ends_with(name)).unwrap();
        assert_eq!(of(&format!("/{other}")).adoptable, Ok(Provisioning::Thick));
        assert_eq!(of("/mine").adoptable, Err("it is read-only".into()));
        assert!(of("x").adoptable.is_err() && of("@mine").adoptable.is_err());
        assert!(of(&format!("@{ID}")).labelled && !of("@mine").labelled);
        assert!(Row::parse(&format!("a\tvolume\tx\t-\t-{NATIVE}")).is_none());
        assert!(Row::parse("a\tvolume\t16384\t-\t-").is_none());
        assert!(Row::parse("a\tvolume").is_none());
    }

    /// What is set is read from ZFS and not from the label, in whatever words it has for it.
    #[test]
    fn a_volume_is_what_zfs_says() {
        let set = r#","properties":{"compression":"gzip-6","block_size":65536,"checksum":"sha256"}}"#;
        let label = label(ID).strip_suffix('}').unwrap().to_string() + set;
        let stored = |native: &str| {
            let row = Row::parse(&format!("tank/orlop/{ID}\tvolume\t65536\t{label}\t-\t{native}"));
            row.unwrap().stored(ID.parse().unwrap()).unwrap()
        };
        let s = stored("0\tgzip\toff\t65536\tsha256\tlatency\talways\toff\t-\t-\toff");
        assert_eq!(s.properties, s.label.properties);
        assert_eq!(s.provisioning, Provisioning::Thin);
        let s = stored("67108864\tlz4\toff\t16384\toff\tlatency\talways\toff\t-\t-\toff");
        assert_eq!(s.properties.to_string(), "compression=lz4 block_size=16K");
        assert_eq!(s.provisioning, Provisioning::Thick);
        assert!(!s.is_whole());
    }

    /// A dataset is a volume by its quota, and its records are its blocks.
    #[test]
    fn a_file_system_is_what_zfs_says() {
        let disk = label(ID);
        let set = r#""kind":"filesystem","filesystem":"zfs","properties":{"block_size":65536}"#;
        let label = disk.replace(r#""kind":"block""#, set);
        let row = |kind: &str, label: &str, quota: &str| {
            let native = "0\ton\toff\t-\ton\tlatency\talways\toff";
            let line = format!("tank/orlop/{ID}\t{kind}\t-\t{label}\t-\t{native}\t{quota}\t65536\toff");
            Row::parse(&line).unwrap()
        };
        let stored = row("filesystem", &label, "16384").stored(ID.parse().unwrap()).unwrap();
        assert!(stored.is_whole(), "{stored:?}");
        assert_eq!(stored.filesystem, Some(FilesystemKind::Zfs));
        assert!(!row("filesystem", &label, "32768").stored(ID.parse().unwrap()).unwrap().is_whole());
        for (kind, label, quota) in
            [("filesystem", &label, "0"), ("filesystem", &disk, "16384"), ("snapshot", &label, "16384")]
        {
            let refused = row(kind, label, quota).stored(ID.parse().unwrap());
            assert!(refused.is_err(), "{kind} {quota}");
        }
        assert!(row("filesystem", &label, "16384").adoptable().is_err());
    }

    #[test]
    fn zfs_is_told_in_its_words() {
        let p: Properties = serde_json::from_str(
            r#"{"compression":"zstd","block_size":65536,"dedup":"verify","sync":"always"}"#,
        )
        .unwrap();
        let told: Vec<String> = settings(&p).collect();
        assert_eq!(told, ["compression=zstd", "dedup=verify", "sync=always"]);
        let fewer = "dedup=off".parse().unwrap();
        assert_eq!(unset(&p, &fewer), ["compression", "volblocksize", "sync"]);
    }

    #[test]
    fn zvols_elsewhere_can_be_adopted_by_their_size() {
        let lines = [
            format!("tank/orlop/mine\tvolume\t16384\t-\t-{NATIVE}"),
            format!("tank/orlop2\tvolume\t16384\t-\t-{NATIVE}"),
            format!("tank/vm/odd\tvolume\t8192\t-\t-{NATIVE}"),
            format!("tank/vm/was\tvolume\t16384\t{}\t-{NATIVE}", label(ID)),
            format!(
                "tank/vm/closed\tvolume\t16384\t-\t-{}",
                NATIVE.replace("\t-\t-\toff", "\t-\t-\taes-256-gcm")
            ),
        ];
        let found = outside(lines.iter().map(|l| Row::parse(l).unwrap()).collect(), "tank/orlop");
        let names: Vec<_> =
            found.iter().map(|s| (s.name.as_str(), s.labelled, s.adoptable.is_ok())).collect();
        assert_eq!(
            names,
            [
                ("tank/orlop2", false, true),
                ("tank/vm/closed", false, false),
                ("tank/vm/odd", false, false),
                ("tank/vm/was", true, false)
            ]
        );
    }

    #[test]
    fn a_label_of_another_volume_is_not_taken() {
        let row = Row::parse(&format!("tank/orlop/x\tvolume\t16384\t{}\t-{NATIVE}", label(ID))).unwrap();
        assert!(row.stored(VolumeId::mint()).is_err());
        assert!(row.stored(ID.parse().unwrap()).is_ok());
    }
}
