//! Files among the images that are not ours: told of, adopted, put back.
//!
//! Called by the pools through [`Images`].

use std::io;

use orlop_api::{ByteSize, Provisioning, VolumeId};

use super::{Found, GRANULARITY, Images, SNAPSHOTS, VOLUMES, image_name, key_of, label_name};
use crate::kernel::fs::{Dir, Entry};
use crate::kernel::{Deadline, holders};
use crate::model::Label;
use crate::pool::rules::{adoptable, check_same, check_size, check_stray_size};
use crate::pool::{Change, Result, Stray};

/// What a file is that has no name of ours.
pub(super) const NOT_OURS: &str = "is not a file of a pool";

impl Images {
    /// See [`crate::pool::Pool::adopt`]. The label comes first here too: a crash before the image has its name
    /// leaves a label without an image, which goes like any other, and the stray as it was.
    pub fn adopt_stray(&self, from: &str, label: &Label, deadline: &Deadline) -> Result<Change> {
        check_size(&self.ctx, label, GRANULARITY)?;
        let dir = self.volumes()?;
        match self.look::<Label>(&dir, label.id)? {
            Found::Whole(have, entry) => {
                check_same(&self.ctx, &have, label)?;
                check_stray_size(&self.ctx, from, ByteSize(entry.size), label)?;
                self.sync(&dir)?;
                return Ok(Change::Unchanged);
            }
            Found::Damaged(stray) => return Err(self.damaged(stray)),
            Found::Nothing | Found::Partial => {}
        }
        let found = self.find_stray(&dir, from)?.ok_or_else(|| self.ctx.not_found(from))?;
        let size = found.size.unwrap_or_default();
        if let Err(why) = found.adoptable {
            return Err(self.ctx.precondition(format!("{from} can't become a volume: {why}")));
        }
        check_stray_size(&self.ctx, from, size, label)?;
        let file = dir.file(from, true).map_err(|e| match e.kind() {
            // Swap, or a program that runs.
            io::ErrorKind::ExecutableFileBusy => {
                self.ctx.precondition(format!("{from} is in use by the kernel"))
            }
            _ => self.io("opening", from)(e),
        })?;
        if let Some(who) = holders::holder(&file).map_err(self.io("asking who uses", from))? {
            return Err(self.ctx.precondition(format!("{from} is in use: {who}")));
        }
        if self.durable {
            // Whoever wrote it need not have done so.
            file.sync_all().map_err(self.io("syncing", from))?;
        }
        let image = image_name(label.id);
        let mut renamed = false;
        let adopted = self
            .write_label(&dir, label)
            .and_then(|()| self.ctx.check(deadline, "adopting an image"))
            .and_then(|()| dir.rename(from, &image).map_err(self.io("renaming", from)))
            .and_then(|()| {
                renamed = true;
                self.sync(&dir)
            });
        if let Err(error) = adopted {
            if !deadline.remaining().is_zero() && (!renamed || dir.rename(&image, from).is_ok()) {
                let _ = dir.remove(&label_name(label.id));
                let _ = self.sync(&dir);
            }
            return Err(error);
        }
        Ok(Change::Done)
    }

    /// See [`crate::pool::Pool::release`]. The other way round: the image gets its old name, then its label goes.
    pub fn release(&self, to: &str, id: VolumeId, deadline: &Deadline) -> Result<Change> {
        let dir = self.volumes()?;
        if let Found::Whole(..) = self.look::<Label>(&dir, id)? {
            let image = image_name(id);
            dir.rename(&image, to).map_err(self.io("renaming", &image))?;
        }
        self.erase::<Label>(&dir, id, deadline)
    }

    /// A stray among the volumes, as `list` would tell of it now.
    fn find_stray(&self, dir: &Dir, name: &str) -> Result<Option<Stray>> {
        if name.is_empty() || name.contains('/') {
            return Ok(None);
        }
        match key_of::<VolumeId>(name) {
            Some(id) => Ok(match self.look::<Label>(dir, id)? {
                Found::Damaged(stray) if stray.name == name => Some(stray),
                _ => None,
            }),
            None => {
                let entry = dir.entry(name).map_err(self.io("looking at", name))?;
                Ok(entry.map(|e| stray(dir, name.into(), NOT_OURS, Some(e))))
            }
        }
    }
}

/// What has no label of ours. Names differ from place to place: a file in the place of snapshots is told
/// with it.
pub(super) fn stray(dir: &Dir, name: String, what: &str, entry: Option<Entry>) -> Stray {
    let size = entry.filter(|e| e.regular).map(|e| ByteSize(e.size));
    let can = match (entry, size) {
        _ if !dir.path().ends_with(VOLUMES) => Err("it is not where volumes are".into()),
        (Some(e), Some(_)) if e.links > 1 => {
            Err("it has another name too, by which it can be changed".into())
        }
        // What is written to an image takes space when it is, whatever its blocks are like now.
        (_, Some(size)) => adoptable(size, GRANULARITY, Provisioning::Thin),
        _ => Err("it is not a regular file".into()),
    };
    let name = if dir.path().ends_with(VOLUMES) { name } else { format!("{SNAPSHOTS}/{name}") };
    Stray::foreign(name, what, size, can)
}
