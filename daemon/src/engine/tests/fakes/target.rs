//! A target that behaves, and that fails when told to.

use std::collections::{BTreeMap, BTreeSet};

use orlop_api::{ByteSize, KeytabFile, Nqn, Portal, TargetKind, VolumeId};
use parking_lot::Mutex;

use crate::kernel::Deadline;
use crate::target::foreign::Others;
use crate::target::{Desired, Export, HostId, Report, Rights, Scope, Target, TargetError};

/// A kernel: survives a restart of the engine, not one of the machine.
#[derive(Default)]
pub struct FakeTarget {
    exports: Mutex<BTreeMap<VolumeId, Export>>,
    pub fail: Mutex<bool>,
    changes: Mutex<u64>,
    /// It lets everybody write.
    pub no_readers: Mutex<bool>,
    /// A portal that nobody reaches.
    pub unreached: Mutex<Option<String>>,
    pub keytab: Mutex<Option<KeytabFile>>,
    /// Counting sessions hangs for as long as this is locked.
    pub hang: Mutex<()>,
}

impl FakeTarget {
    /// How a volume is served now.
    pub fn export(&self, id: VolumeId) -> Option<Export> {
        self.exports.lock().get(&id).cloned()
    }

    pub fn hosts(&self, id: VolumeId) -> BTreeSet<Nqn> {
        self.exports
            .lock()
            .get(&id)
            .map(|e| e.nqns().map(|(nqn, _)| nqn.clone()).collect())
            .unwrap_or_default()
    }

    /// Who is let in to what, in words: `10.0.0.5 rw none`, and by which flavours if it is not `sys`.
    pub fn rights(&self, id: VolumeId) -> Vec<String> {
        let shown = |(host, r): (&HostId, &Rights)| {
            let plain = format!("{host} {} {}", if r.read_only { "ro" } else { "rw" }, r.squash.as_str());
            if r.security.is_sys() { plain } else { format!("{plain} {}", r.security) }
        };
        self.exports.lock().get(&id).map(|e| e.hosts.iter().map(shown).collect()).unwrap_or_default()
    }

    pub fn exports(&self) -> usize {
        self.exports.lock().len()
    }

    pub fn size(&self, id: VolumeId) -> Option<ByteSize> {
        self.exports.lock().get(&id).map(|e| e.size)
    }

    pub fn changes(&self) -> u64 {
        *self.changes.lock()
    }

    /// Somebody changed the kernel by hand, or a crash left it so.
    pub fn let_in(&self, id: VolumeId, host: &Nqn) {
        if let Some(e) = self.exports.lock().get_mut(&id) {
            e.hosts.insert(HostId::Nqn(host.clone()), Rights::default());
        }
    }

    /// Somebody took a volume's export away, or it is back from nowhere.
    pub fn take(&self, id: VolumeId) -> Option<Export> {
        self.exports.lock().remove(&id)
    }

    pub fn put(&self, id: VolumeId, export: Export) {
        self.exports.lock().insert(id, export);
    }

    pub fn power_cycle(&self) {
        self.exports.lock().clear();
    }
}

impl Target for FakeTarget {
    fn converge(
        &self,
        scope: Scope,
        desired: &Desired,
        _: &Deadline,
    ) -> std::result::Result<Report, TargetError> {
        if *self.fail.lock() {
            return Err(TargetError::Unsettled("as the test asked".into()));
        }
        let mut exports = self.exports.lock();
        let before = exports.clone();
        match scope {
            Scope::All => *exports = (**desired).clone(),
            Scope::Desired => exports.extend(desired.clone()),
            Scope::Volume(id) | Scope::Fence(id) => match desired.get(&id) {
                Some(e) => drop(exports.insert(id, e.clone())),
                None => drop(exports.remove(&id)),
            },
        }
        let changed = *exports != before;
        *self.changes.lock() += u64::from(changed);
        let unreached = self.unreached.lock().clone();
        let down = unreached.map(|name| (name, TargetError::Unsettled("its address is not there".into())));
        Ok(Report {
            portals_down: down.into_iter().collect(),
            steps: changed.then(|| "changed".to_string()).into_iter().collect(),
            ..Report::default()
        })
    }

    fn drifted(
        &self,
        desired: &Desired,
        _: &Deadline,
    ) -> std::result::Result<BTreeSet<VolumeId>, TargetError> {
        let exports = self.exports.lock();
        let all = exports.keys().chain(desired.keys()).copied();
        Ok(all.filter(|id| exports.get(id) != desired.get(id)).collect())
    }

    fn announce_size(&self, export: &Export, _: &Deadline) -> std::result::Result<(), TargetError> {
        for e in self.exports.lock().values_mut().filter(|e| e.identity == export.identity) {
            e.size = export.size;
        }
        Ok(())
    }

    fn prove(&self, host: &HostId, _: &Deadline) -> std::result::Result<(), TargetError> {
        match *self.fail.lock() {
            true => Err(TargetError::Unsupported(format!("a proof of {host}"))),
            false => Ok(()),
        }
    }

    fn has_readers(&self) -> bool {
        !*self.no_readers.lock()
    }

    fn can_kerberos(&self, _: &Deadline) -> std::result::Result<(), TargetError> {
        let none = || TargetError::NoKerberos("there is no keytab".into());
        self.keytab.lock().is_some().then_some(()).ok_or_else(none)
    }

    fn set_keytab(&self, keytab: Option<&KeytabFile>, _: &Deadline) -> std::result::Result<(), TargetError> {
        *self.keytab.lock() = keytab.cloned();
        Ok(())
    }

    fn served(&self, _: &Deadline) -> std::result::Result<BTreeSet<VolumeId>, TargetError> {
        Ok(self.exports.lock().keys().copied().collect())
    }

    fn kind(&self) -> TargetKind {
        TargetKind::Nvmet
    }

    fn sessions(&self, _: &Deadline) -> std::result::Result<Option<usize>, TargetError> {
        let _hangs = self.hang.lock();
        Ok(Some(self.exports()))
    }

    fn foreign(&self, _: &Deadline) -> std::result::Result<Others, TargetError> {
        match *self.fail.lock() {
            true => Err(TargetError::Unsettled("as the test asked".into())),
            false => Ok(Others::default()),
        }
    }

    fn listens(&self) -> Vec<(String, Portal)> {
        self.portals().into_iter().map(|p| (format!("{}:{}", p.address, p.port), p)).collect()
    }

    fn portals(&self) -> Vec<Portal> {
        vec![Portal::tcp("192.0.2.1", 4420), Portal { tls: true, ..Portal::tcp("192.0.2.1", 4421) }]
    }
}
