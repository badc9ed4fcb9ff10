//! Every change there is, who asks for it, and what comes of it.

use std::sync::Arc;

use orlop_api::{
    Alarm, AlarmSubject, Attachment, AuthenticationPut, ChapPut, Disk, DiskName, DiskWipe, EncryptionKey,
    Host, HostName, HostPut, Keytab, KeytabFile, MadeToken, OrphanAdopt, OrphanId, Pool, PoolName, Reloaded,
    Restored, Snapshot, SnapshotCreate, SnapshotGroup, SnapshotGroupCreate, SnapshotRef, Tenant, TlsPut,
    TokenName, TokenPut, Verb, Volume, VolumeCreate, VolumeKey, VolumeRef, VolumeUpdate, When, Zone, ZonePut,
};

use crate::journal::backup::Text;
use crate::model::{PoolChange, PoolSpec};

/// One change. HTTP, console and schedules submit the same ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Makes a pool. Legal when no pool has the name and the disks are blank (or the directory is
    /// empty or holds this pool already).
    CreatePool(PoolSpec),
    /// Takes in a pool that exists, with its volumes; the flag: even if its last machine did not let go of
    /// it. Legal when no pool has the name.
    ImportPool(PoolSpec, bool),
    /// Lets go of a pool with its volumes. Legal when no host is attached to any.
    ExportPool(PoolName),
    /// Deletes a pool. Legal when it has no volumes.
    DeletePool(PoolName),
    /// Changes a pool's disks, or starts or stops a pass over them. Legal while it is in use.
    ChangePool(PoolName, PoolChange),
    /// Makes a disk blank, whatever is on it. Legal when nobody uses it and it is the one that is meant.
    WipeDisk(DiskName, DiskWipe),
    /// Makes a volume; the same request again is unchanged.
    CreateVolume(VolumeCreate),
    /// Makes a volume larger, or gives it other properties, attached or not.
    UpdateVolume(VolumeRef, VolumeUpdate),
    /// Deletes a volume. Legal when no host is attached, and now or when nothing depends on it.
    DeleteVolume(VolumeRef, When),
    /// Brings the key of an encrypted volume, until the machine is started again.
    UnlockVolume(VolumeRef, EncryptionKey),
    /// Tells the key of an encrypted volume. It changes nothing, and is asked here to be audited.
    ShowKey(VolumeRef),
    /// Tells all that the journal knows, secrets too. It changes nothing, and is asked here to be audited.
    Backup,
    /// Fills in what the journal has not from a backup; the flag: also another appliance's.
    Restore(Text, bool),
    /// Reads the configuration anew, and applies what can be applied under a running daemon.
    Reload,
    /// Takes a snapshot of a volume; the same request again is unchanged.
    CreateSnapshot(SnapshotCreate),
    /// Takes snapshots of several volumes at one instant; the same request again is unchanged.
    CreateSnapshotGroup(SnapshotGroupCreate),
    /// Deletes a snapshot, now or when nothing depends on it.
    DeleteSnapshot(SnapshotRef, When),
    /// Makes an orphan a volume, with what is in it. Legal when nobody uses it.
    AdoptOrphan(OrphanId, OrphanAdopt),
    /// Removes an orphan. Legal when it is the daemon's own and nothing is lost with it.
    RemoveOrphan(OrphanId),
    /// Makes a host, or changes what it is known by. The latter is legal when it has no attachment by it.
    PutHost(HostName, HostPut),
    /// Has a host prove that it knows a secret when it connects by NVMe.
    AuthenticateHost(HostName, AuthenticationPut),
    /// Lets a host in by NVMe without a proof again.
    TrustHost(HostName),
    /// Has a host prove that it knows a secret when it logs in by iSCSI; without one it need not any more.
    ChapHost(HostName, Option<ChapPut>),
    /// Has what a host says by NVMe encrypted; without a key it is not any more. The one or the other is legal when it has
    /// no attachment by NVMe.
    TlsHost(HostName, Option<TlsPut>),
    /// Forgets a host. Legal when it has no attachment.
    DeleteHost(HostName),
    /// Makes a zone, or changes it, with what it is attached to.
    PutZone(HostName, ZonePut),
    /// Forgets a zone. Legal when it has no attachment.
    DeleteZone(HostName),
    /// Keeps the keys by which the appliance proves to NFS hosts who it is, in place of those before.
    PutKeytab(KeytabFile),
    /// Forgets them. Legal when no zone takes Kerberos.
    DeleteKeytab,
    /// Makes a token, or changes what it may do.
    PutToken(TokenName, TokenPut),
    /// Lets nobody in by a token any more.
    DeleteToken(TokenName),
    /// Lets a host or a zone use a volume.
    Attach(VolumeRef, HostName, Attach),
    /// Cuts a host off from a volume: done when it can't do I/O any more.
    Detach(VolumeRef, HostName),
    /// Says that somebody takes care of an alarm. Legal until it is cleared.
    AcknowledgeAlarm(AlarmSubject),
}

impl Action {
    /// Whether there is anything to keep of it.
    pub fn changes(&self) -> bool {
        !matches!(self, Self::ShowKey(_) | Self::Backup | Self::Reload | Self::AcknowledgeAlarm(..))
    }

    /// Its name in metrics, audit and logs.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::CreatePool(_) => "create_pool",
            Self::ImportPool(..) => "import_pool",
            Self::ExportPool(_) => "export_pool",
            Self::DeletePool(_) => "delete_pool",
            Self::ChangePool(..) => "change_pool",
            Self::WipeDisk(..) => "wipe_disk",
            Self::CreateVolume(_) => "create_volume",
            Self::UpdateVolume(..) => "update_volume",
            Self::DeleteVolume(..) => "delete_volume",
            Self::UnlockVolume(..) => "unlock_volume",
            Self::ShowKey(_) => "show_key",
            Self::Backup => "backup",
            Self::Restore(..) => "restore",
            Self::Reload => "reload",
            Self::CreateSnapshot(_) => "create_snapshot",
            Self::CreateSnapshotGroup(_) => "create_snapshot_group",
            Self::DeleteSnapshot(..) => "delete_snapshot",
            Self::AdoptOrphan(..) => "adopt_volume",
            Self::RemoveOrphan(_) => "remove_orphan",
            Self::PutHost(..) => "put_host",
            Self::AuthenticateHost(..) => "authenticate_host",
            Self::TrustHost(_) => "trust_host",
            Self::ChapHost(..) => "chap_host",
            Self::TlsHost(..) => "tls_host",
            Self::DeleteHost(_) => "delete_host",
            Self::PutZone(..) => "put_zone",
            Self::DeleteZone(_) => "delete_zone",
            Self::PutKeytab(_) => "put_keytab",
            Self::DeleteKeytab => "delete_keytab",
            Self::PutToken(..) => "put_token",
            Self::DeleteToken(_) => "delete_token",
            Self::Attach(..) => "attach",
            Self::Detach(..) => "detach",
            Self::AcknowledgeAlarm(_) => "acknowledge_alarm",
        }
    }

    /// What a token must be given to do it. `None`: it is the administrator's alone.
    pub fn given(&self) -> Option<Verb> {
        Some(match self {
            Self::CreateVolume(_) => Verb::CreateVolume,
            Self::UpdateVolume(..) => Verb::UpdateVolume,
            Self::DeleteVolume(..) => Verb::DeleteVolume,
            Self::UnlockVolume(..) => Verb::UnlockVolume,
            Self::ShowKey(_) => Verb::ShowKey,
            Self::CreateSnapshot(_) => Verb::CreateSnapshot,
            Self::CreateSnapshotGroup(_) => Verb::CreateSnapshotGroup,
            Self::DeleteSnapshot(..) => Verb::DeleteSnapshot,
            Self::PutHost(..) => Verb::PutHost,
            Self::AuthenticateHost(..) => Verb::AuthenticateHost,
            Self::TrustHost(_) => Verb::TrustHost,
            Self::ChapHost(..) => Verb::ChapHost,
            Self::TlsHost(..) => Verb::TlsHost,
            Self::DeleteHost(_) => Verb::DeleteHost,
            Self::Attach(..) => Verb::Attach,
            Self::Detach(..) => Verb::Detach,
            Self::CreatePool(_)
            | Self::ImportPool(..)
            | Self::ExportPool(_)
            | Self::DeletePool(_)
            | Self::ChangePool(..)
            | Self::WipeDisk(..)
            | Self::Backup
            | Self::Restore(..)
            | Self::Reload
            | Self::AdoptOrphan(..)
            | Self::RemoveOrphan(_)
            | Self::PutZone(..)
            | Self::DeleteZone(_)
            | Self::PutKeytab(_)
            | Self::DeleteKeytab
            | Self::PutToken(..)
            | Self::DeleteToken(_)
            | Self::AcknowledgeAlarm(_) => return None,
        })
    }

    /// What it is about, for audit and logs: `pool/tank`, `volume/data`, `volume/data host/worker-1`.
    pub fn subject(&self) -> String {
        match self {
            Self::CreatePool(spec) | Self::ImportPool(spec, _) => format!("pool/{}", spec.name),
            Self::ExportPool(name) | Self::DeletePool(name) => format!("pool/{name}"),
            Self::ChangePool(name, change) => format!("pool/{name} ({change})"),
            Self::WipeDisk(disk, _) => format!("disk/{disk}"),
            Self::CreateVolume(ask) => format!("volume/{}", ask.name),
            Self::UpdateVolume(volume, _)
            | Self::DeleteVolume(volume, _)
            | Self::UnlockVolume(volume, _)
            | Self::ShowKey(volume) => format!("volume/{volume}"),
            Self::Backup | Self::Restore(..) | Self::Reload | Self::PutKeytab(_) | Self::DeleteKeytab => {
                "system".into()
            }
            Self::CreateSnapshot(ask) => format!("snapshot/{} volume/{}", ask.name, ask.volume),
            Self::CreateSnapshotGroup(ask) => format!("snapshot-group/{}", ask.name),
            Self::DeleteSnapshot(snapshot, _) => format!("snapshot/{snapshot}"),
            Self::AdoptOrphan(orphan, ask) => format!("orphan/{orphan} volume/{}", ask.name),
            Self::RemoveOrphan(orphan) => format!("orphan/{orphan}"),
            Self::PutHost(host, _)
            | Self::AuthenticateHost(host, _)
            | Self::TrustHost(host)
            | Self::ChapHost(host, _)
            | Self::TlsHost(host, _)
            | Self::DeleteHost(host) => format!("host/{host}"),
            Self::PutZone(zone, _) | Self::DeleteZone(zone) => format!("zone/{zone}"),
            Self::PutToken(token, _) | Self::DeleteToken(token) => format!("token/{token}"),
            Self::Attach(volume, host, _) | Self::Detach(volume, host) => {
                format!("volume/{volume} host/{host}")
            }
            Self::AcknowledgeAlarm(subject) => format!("alarm/{subject}"),
        }
    }
}

/// How a host is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attach {
    /// All others are cut off first.
    pub alone: bool,
    /// It can't write.
    pub read_only: bool,
}

/// What came of an action. `changed` is false when everything was so already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The pool as it is now.
    Pool {
        /// The pool.
        pool: Pool,
        /// Whether anything was done.
        changed: bool,
    },
    /// The disk as it is now: blank.
    Disk(Disk),
    /// The volume as it is now.
    Volume {
        /// The volume.
        volume: Volume,
        /// Whether anything was done.
        changed: bool,
    },
    /// The key of a volume.
    Key(VolumeKey),
    /// A backup's text.
    Backup(Text),
    /// What a backup brought.
    Restored(Restored),
    /// What was applied of the configuration, and what waits.
    Reloaded(Reloaded),
    /// The host as it is now.
    Host {
        /// The host.
        host: Host,
        /// Whether it is new.
        made: bool,
    },
    /// The zone as it is now.
    Zone {
        /// The zone.
        zone: Zone,
        /// Whether it is new.
        made: bool,
    },
    /// The token as it is now, and itself if it was made.
    Token(MadeToken),
    /// Whose keys are kept now.
    Keytab(Keytab),
    /// What the initiator needs.
    Attachment {
        /// The attachment.
        attachment: Attachment,
        /// Whether anything was done.
        changed: bool,
    },
    /// The snapshot as it is now.
    Snapshot {
        /// The snapshot.
        snapshot: Snapshot,
        /// Whether anything was done.
        changed: bool,
    },
    /// The group as it is now.
    SnapshotGroup {
        /// The group.
        group: SnapshotGroup,
        /// Whether anything was done.
        changed: bool,
    },
    /// The alarm as it is now.
    Alarm(Alarm),
    /// The object is gone.
    Gone,
    /// The object goes when nothing depends on it any more.
    Doomed,
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Principal {
    /// For audit and logs: `uid:0`, `token:admin`, `daemon`.
    pub name: String,
    /// In which tenant it makes things, and finds them by name.
    pub tenant: Tenant,
    /// What it may do.
    pub role: Role,
}

/// What a principal may do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Role {
    /// Everything, in all tenants.
    Admin,
    /// This, and to know of nothing else.
    Scoped(Arc<TokenPut>),
}

impl Principal {
    /// An administrator.
    pub fn admin(name: impl Into<String>) -> Self {
        Self { name: name.into(), tenant: Tenant::default(), role: Role::Admin }
    }

    /// Whether nothing is kept from it.
    pub fn is_admin(&self) -> bool {
        self.role == Role::Admin
    }

    /// Whether it may know of what a tenant owns: of its hosts.
    pub fn knows(&self, tenant: &Tenant) -> bool {
        match &self.role {
            Role::Admin => true,
            Role::Scoped(scope) => scope.tenant == *tenant,
        }
    }

    /// Whether it may know of a pool.
    pub fn uses(&self, pool: &PoolName) -> bool {
        match &self.role {
            Role::Admin => true,
            Role::Scoped(scope) => scope.pools.is_empty() || scope.pools.contains(pool),
        }
    }

    /// Whether it may know of all pools, also of those that are not there.
    pub fn uses_all_pools(&self) -> bool {
        match &self.role {
            Role::Admin => true,
            Role::Scoped(scope) => scope.pools.is_empty(),
        }
    }

    /// Whether it may know of what a tenant owns in a pool: of its volumes and snapshots.
    pub fn sees(&self, tenant: &Tenant, pool: &PoolName) -> bool {
        self.knows(tenant) && self.uses(pool)
    }

    /// Whether it has been given this. Of what it is asked is another question: what it may not know of does not exist
    /// to it.
    pub fn may(&self, action: &Action) -> bool {
        match &self.role {
            Role::Admin => true,
            Role::Scoped(scope) => {
                let has = |verb| scope.verbs.contains(&verb);
                let makes_elsewhere = matches!(action, Action::CreateVolume(ask) if !self.uses(&ask.pool));
                // Who takes a volume for a host alone cuts off the others.
                let cuts_off = matches!(action, Action::Attach(_, _, how) if how.alone);
                action.given().is_some_and(has) && !makes_elsewhere && (!cuts_off || has(Verb::Detach))
            }
        }
    }

    /// The same where it makes something of what is another tenant's: that stays where it is.
    pub(super) fn within(&self, tenant: &Tenant) -> Self {
        Self { tenant: tenant.clone(), ..self.clone() }
    }
}
