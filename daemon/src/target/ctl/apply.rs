//! Making one change.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};
use std::time::{Duration, Instant, SystemTime};

use orlop_api::VolumeId;

use super::conf::{Conf, Draft};
use super::observe::{Found, State, failed};
use super::state::{Refusal, Seen, Step};
use super::{Ctl, CtlFile};
use crate::kernel::Deadline;
use crate::target::{Export, HostId, Result, Rights, TargetError};

/// How long logins may go on after the time that `ctld` gives them: it looks once a second.
const LOGINS: Duration = Duration::from_secs(13);

/// What follows the name of the file while `ctld` judges it.
const STAGED: &str = ".new";

/// What a change of the file starts from.
struct Base {
    /// What is in it, but of volumes what was written.
    conf: Conf,
    /// What is in it.
    found: Conf,
    /// Nobody else has written it, and nothing is put back: what `ctld` read under its number is what is in it.
    in_force: bool,
}

impl CtlFile {
    /// The file, if it is ours.
    fn ours(&self) -> Result<(Conf, State)> {
        match self.read()? {
            Found::Ours(conf, state) => Ok((conf, state)),
            Found::Foreign(detail) => {
                Err(TargetError::Foreign { object: self.config.file.display().to_string(), detail })
            }
        }
    }

    fn conf(&self) -> Result<Conf> {
        self.ours().map(|(conf, _)| conf)
    }

    fn base(&self) -> Result<Base> {
        let (found, state) = self.ours()?;
        let mut conf = found.clone();
        match &*self.written.lock() {
            Some(written) => conf.restore(&self.config, written),
            None => conf.shut(&self.config),
        }
        let in_force = state.untouched && conf == found;
        Ok(Base { conf, found, in_force })
    }

    /// Changes the file. What `ctld` does not accept does not take the place of what it had.
    fn store(&self, step: &str, conf: &Conf, deadline: &Deadline) -> Result<()> {
        let trouble = self.trouble(step);
        let text = conf.text();
        let (dir, name) = self.place().map_err(&trouble)?;
        let staged = format!("{name}{STAGED}");
        dir.replace(&staged, text.as_bytes(), true).map_err(&trouble)?;
        let path = dir.path().join(&staged);
        let accepted = self.ctld.accepts(&path, deadline).map_err(|e| failed(step, e));
        let placed = accepted.and_then(|accepted| {
            if !accepted {
                let why = "ctld does not accept the configuration (`ctld -u -t -f` does not either)";
                return Err(trouble(io::Error::new(io::ErrorKind::InvalidData, why)));
            }
            deadline.check().map_err(|o| TargetError::Deadline(step.into(), o))?;
            let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
            let time = SystemTime::UNIX_EPOCH + Duration::new(now, conf.mark());
            let fill =
                |mut file: &File| file.write_all(text.as_bytes()).and_then(|()| file.set_modified(time));
            dir.replace_by(&name, true, fill).and_then(|()| dir.sync()).map_err(&trouble)?;
            *self.written.lock() = Some(conf.clone());
            Ok(())
        });
        // It holds secrets, and nobody needs it any more.
        dir.remove(&staged).map_err(&trouble)?;
        placed
    }

    /// Has `ctld` read the file.
    fn reload(&self, step: &str, deadline: &Deadline) -> Result<()> {
        match self.ctld.reload(&self.config.pidfile, deadline) {
            Ok(true) => Ok(()),
            Ok(false) => Err(TargetError::Unsupported(format!(
                "a running ctld with the pidfile {}: is ctld_enable set, and ctld_flags=\"-u -f {}\"?",
                self.config.pidfile.display(),
                self.config.file.display()
            ))),
            Err(e) => Err(failed(step, e)),
        }
    }

    /// Gives the changed file its number, writes it and has it read.
    fn publish(&self, step: &str, mut conf: Conf, deadline: &Deadline) -> Result<()> {
        let shown = self.kernel(deadline)?.luns.into_values().filter_map(|l| l.generation).max();
        // Above what the kernel shows, too: the file may have been lost.
        let generation = conf.generation().max(shown.unwrap_or(0)) + 1;
        conf.frame(&self.config);
        conf.set_generation(&self.config, generation);
        self.store(step, &conf, deadline)?;
        self.reload(step, deadline)?;
        *self.told.lock() = Some((generation, Instant::now()));
        Ok(())
    }
}

impl Ctl {
    pub(super) fn make(&self, step: &Step, deadline: &Deadline) -> Result<()> {
        let words = step.to_string();
        match step {
            Step::Write { set, fresh, drop, .. } => self.write(&words, set, fresh, drop, deadline),
            Step::Load { volume, export, .. } => self.load(&words, *volume, export.as_deref(), deadline),
            Step::End { volume, keep, .. } => self.end(&words, *volume, keep.as_ref(), deadline),
            Step::Settle { volume, .. } => {
                let _writing = self.lock(&words, deadline)?;
                let Base { mut conf, in_force, .. } = self.file.base()?;
                conf.set_unsettled(*volume, false);
                if in_force {
                    // The same number: nothing changes that `ctld` would read.
                    self.file.store(&words, &conf, deadline)
                } else {
                    self.file.publish(&words, conf, deadline)
                }
            }
            Step::Refuse { refusal: Refusal::Unsupported(what), .. } => {
                Err(TargetError::Unsupported(what.clone()))
            }
            Step::Refuse { refusal: Refusal::Foreign { object, detail }, .. } => {
                Err(TargetError::Foreign { object: object.clone(), detail: detail.clone() })
            }
        }
    }

    fn lock(&self, step: &str, deadline: &Deadline) -> Result<parking_lot::MutexGuard<'_, ()>> {
        self.file
            .writing
            .try_lock_for(deadline.remaining())
            .ok_or_else(|| TargetError::Deadline(step.into(), crate::kernel::Overrun))
    }

    fn write(
        &self,
        step: &str,
        set: &BTreeMap<VolumeId, Export>,
        fresh: &BTreeSet<VolumeId>,
        drop: &BTreeMap<VolumeId, String>,
        deadline: &Deadline,
    ) -> Result<()> {
        let _writing = self.lock(step, deadline)?;
        let config = &self.file.config;
        let Base { mut conf, found, .. } = self.file.base()?;
        for volume in drop.keys() {
            conf.drop(config, self.kind, *volume);
        }
        let kernel = self.file.kernel(deadline)?;
        for (volume, export) in set {
            let seen = self.seen(&conf, &kernel, &[], *volume, Some(export));
            if fresh.contains(volume) && (seen.lun.is_some() || !seen.ports.is_empty()) {
                continue;
            }
            let draft = Draft::of(config, self.kind, export, &self.file.keys);
            conf.set(config, self.kind, *volume, export, &draft);
            let before = found.entry(config, self.kind, *volume);
            if before.is_some_and(|e| e.lets_in_others(&draft.admission.hosts)) {
                conf.set_unsettled(*volume, true);
            }
        }
        self.file.publish(step, conf, deadline)
    }

    fn now(&self, volume: VolumeId, export: Option<&Export>, deadline: &Deadline) -> Result<(Seen, u64)> {
        let conf = self.file.conf()?;
        let kernel = self.file.kernel(deadline)?;
        let connected = if export.is_none() { self.sessions(&kernel, deadline)? } else { Vec::new() };
        Ok((self.seen(&conf, &kernel, &connected, volume, export), conf.generation()))
    }

    /// Has `ctld` read the file again; of other volumes as they were written.
    fn refresh(&self, step: &str, deadline: &Deadline) -> Result<()> {
        let _writing = self.lock(step, deadline)?;
        let Base { conf, in_force, .. } = self.file.base()?;
        if in_force { self.file.reload(step, deadline) } else { self.file.publish(step, conf, deadline) }
    }

    /// Waits until the kernel has of a volume what it should, and has `ctld` read the file again if it was not told yet.
    fn load(&self, step: &str, volume: VolumeId, export: Option<&Export>, deadline: &Deadline) -> Result<()> {
        if export.is_none() {
            // It is to be gone: nothing that is written meanwhile brings it back.
            if let Some(written) = &mut *self.file.written.lock() {
                written.drop(&self.file.config, self.kind, volume);
            }
        }
        let mut limit = deadline.at_most(self.file.patience);
        let half = deadline.at_most(self.file.patience / 2);
        let mut told = false;
        loop {
            let (seen, generation) = self.now(volume, export, deadline)?;
            if !seen.right {
                return Err(self.file.trouble(step)(io::Error::other("the file does not say so")));
            }
            if seen.loaded && (export.is_some() || seen.sessions.is_empty()) {
                return Ok(());
            }
            // It may be at it: of many LUNs, each takes its time.
            let lately = self
                .file
                .told
                .lock()
                .is_some_and(|(g, t)| g == generation && t.elapsed() < self.file.patience);
            if !told && (!lately || half.check().is_err()) {
                told = true;
                self.refresh(step, deadline)?;
                limit = deadline.at_most(self.file.patience);
            }
            // Neither ctld nor the kernel can be waited on.
            if limit.pause(self.file.poll).is_err() {
                deadline.check().map_err(|o| TargetError::Deadline(step.into(), o))?;
                return Err(self.file.trouble(step)(io::Error::other(
                    "ctld did not do it; its log may say why",
                )));
            }
        }
    }

    /// Ends sessions. Those that are not listed any more have no I/O in flight: the kernel takes one off its list when its
    /// commands have ended.
    fn end(
        &self,
        step: &str,
        volume: VolumeId,
        keep: Option<&BTreeSet<String>>,
        deadline: &Deadline,
    ) -> Result<()> {
        let ctld = &self.file.ctld;
        let late = |o| TargetError::Deadline(step.to_string(), o);
        let logins = || ctld.logins(&self.file.config.pidfile, deadline).map_err(|e| failed(step, e));
        let first = logins()?;
        let limit = deadline.at_most(LOGINS);
        while logins()?.intersection(&first).next().is_some() {
            // Processes of others can't be waited on.
            limit.pause(self.file.poll).map_err(late)?;
        }
        let name = self.file.config.name(self.kind, volume);
        let listed = || -> Result<BTreeSet<u64>> {
            let kernel = self.file.kernel(deadline)?;
            let all = self.sessions(&kernel, deadline)?.into_iter().filter(|s| s.target == name);
            Ok(all.filter(|s| keep.is_none_or(|k| !k.contains(&s.host))).map(|s| s.id).collect())
        };
        let doomed = listed()?;
        for session in &doomed {
            ctld.terminate(*session, deadline).map_err(|e| failed(step, e))?;
        }
        let limit = deadline.at_most(self.file.patience);
        while listed()?.intersection(&doomed).next().is_some() {
            // The kernel's list can't be waited on.
            limit.pause(self.file.poll).map_err(late)?;
        }
        Ok(())
    }

    pub(super) fn announce(&self, export: &Export, deadline: &Deadline) -> Result<()> {
        let step = format!("announce the size of {}", export.identity.uuid);
        let volume: VolumeId = export
            .identity
            .uuid
            .hyphenated()
            .to_string()
            .parse()
            .map_err(|_| self.file.trouble(&step)(io::ErrorKind::InvalidInput.into()))?;
        if self.file.conf()?.entry(&self.file.config, self.kind, volume).is_none() {
            return Err(self.file.trouble(&step)(io::ErrorKind::NotFound.into()));
        }
        let set = [(volume, export.clone())].into();
        self.write(&step, &set, &BTreeSet::new(), &BTreeMap::new(), deadline)?;
        self.load(&step, volume, Some(export), deadline)
    }

    /// Writes the authentication groups of the targets that let a host in anew. Whoever can't be let in as he should be is
    /// in them no more. Sessions stay.
    pub(super) fn have_proved(&self, host: &HostId, deadline: &Deadline) -> Result<()> {
        let step = format!("have {host} prove what it should");
        let config = &self.file.config;
        let _writing = self.lock(&step, deadline)?;
        let Base { conf: before, in_force, .. } = self.file.base()?;
        let mut conf = before.clone();
        let (mut left_out, mut touched) = (BTreeMap::new(), Vec::new());
        for volume in before.volumes(config, self.kind) {
            let Some(entry) = before.entry(config, self.kind, volume) else { continue };
            let Some(hosts) = entry.hosts.filter(|h| h.contains(&host.to_string())) else { continue };
            let rights = Rights { read_only: entry.read_only, ..Rights::default() };
            let hosts = hosts.into_iter().map(|h| (h, rights)).collect();
            let draft = Draft::among(config, self.kind, &hosts, &self.file.keys);
            conf.set_group(config, self.kind, volume, &draft);
            left_out.extend(draft.admission.left_out);
            touched.push(volume);
        }
        // That the file says so already does not mean that `ctld` has read it.
        if conf != before || !(touched.is_empty() || in_force && self.is_read(&touched, deadline)?) {
            self.file.publish(&step, conf, deadline)?;
            self.wait_until_read(&step, &touched, deadline)?;
        }
        if left_out.is_empty() {
            return Ok(());
        }
        let all = left_out.iter().map(|(host, why)| format!("{host} {why}"));
        Err(TargetError::Unsupported(format!("this for each host: {}", all.collect::<Vec<_>>().join("; "))))
    }

    /// Whether `ctld` has read the file, as far as volumes can show it.
    fn is_read(&self, volumes: &[VolumeId], deadline: &Deadline) -> Result<bool> {
        let (conf, kernel) = (self.file.conf()?, self.file.kernel(deadline)?);
        Ok(volumes.iter().all(|v| self.seen(&conf, &kernel, &[], *v, None).loaded))
    }

    /// Waits until it has.
    fn wait_until_read(&self, step: &str, volumes: &[VolumeId], deadline: &Deadline) -> Result<()> {
        let limit = deadline.at_most(self.file.patience);
        while !self.is_read(volumes, deadline)? {
            // Neither ctld nor the kernel can be waited on.
            limit.pause(self.file.poll).map_err(|o| TargetError::Deadline(step.into(), o))?;
        }
        Ok(())
    }
}
