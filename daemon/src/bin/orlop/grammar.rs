//! The grammar: what can be said. No I/O and no rendering, so that a console can speak it too.
//!
//! Names and sizes are parsed here, into types; a wrong one is a usage error.

use std::ffi::OsStr;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use clap::{Arg, ArgGroup, Args, Subcommand};
use orlop_api::{
    AlarmSubject, ByteSize, ChapUser, DhGroup, DhchapHash, DiskName, Filesystem, FilesystemKind, HostName,
    Iqn, Network, Nqn, OrphanId, PoolCreate, PoolKind, PoolLayout, PoolName, Properties, Property, Protocol,
    Provisioning, Security, SnapshotName, SnapshotRef, SourceMode, Squash, Tenant, TokenName, Verb,
    VolumeKind, VolumeName, VolumeRef, VolumeSource, VolumeUpdate, When,
};

/// One command.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// How the appliance is; its backup, its configuration
    System {
        /// What else
        #[command(subcommand)]
        command: Option<SystemCommand>,
    },
    /// What a person should look at
    #[command(subcommand)]
    Alarm(AlarmCommand),
    /// The machine's disks
    #[command(subcommand)]
    Disk(DiskCommand),
    /// The kernel's targets, by which volumes are served
    #[command(subcommand)]
    Target(TargetCommand),
    /// Pools, where volumes are made
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Volumes
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Snapshots of volumes
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// What nobody claims: things of others in pools, leftovers, records without a backing
    #[command(subcommand)]
    Orphan(OrphanCommand),
    /// Hosts, which use volumes
    #[command(subcommand)]
    Host(HostCommand),
    /// Zones: parts of the network, whose hosts use file systems
    #[command(subcommand)]
    Zone(ZoneCommand),
    /// Tokens: who may call over the network, and what it may do
    #[command(subcommand)]
    Token(TokenCommand),
    /// Let a host use a volume, and say how it connects
    Attach {
        /// The volume's name or id
        volume: VolumeRef,
        /// The host or zone
        host: HostName,
        /// It can't write
        #[arg(long)]
        read_only: bool,
        /// Cut off all other hosts and zones of the volume first
        #[arg(long)]
        exclusive: bool,
    },
    /// Cut a host off from a volume
    Detach {
        /// The volume's name or id
        volume: VolumeRef,
        /// The host or zone
        host: HostName,
    },
    /// Print what happens, as it happens
    Watch {
        /// Begin after this event instead of now
        #[arg(long, value_name = "SEQ")]
        after: Option<u64>,
    },
    /// Print a script that completes commands
    Completions {
        /// For which shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

/// `orlop alarm`
#[derive(Debug, Clone, Subcommand)]
pub enum AlarmCommand {
    /// List alarms: what is wrong, since when, and who takes care of it
    List {
        /// With those that were cleared in the last day
        #[arg(long)]
        all: bool,
    },
    /// Say that you take care of an alarm; it is cleared by itself when what is wrong is over
    Acknowledge {
        /// What it is about, as listed
        subject: AlarmSubject,
    },
}

/// `orlop system`
#[derive(Debug, Clone, Subcommand)]
pub enum SystemCommand {
    /// Write what the journal alone knows to a file: hosts with their SECRETS, keys of volumes, tokens, pools
    Backup {
        /// The file, which must not be there yet
        file: PathBuf,
    },
    /// Fill in what is missing here from a backup; what is here stays as it is
    Restore {
        /// The file
        file: PathBuf,
        /// Also another appliance's
        #[arg(long)]
        force: bool,
    },
    /// Read the configuration anew: apply what can be applied now, and say what waits for a restart
    Reload,
    /// Keep the keys by which the appliance proves to NFS hosts who it is, for zones with Kerberos
    Keytab {
        /// The keytab, with a key for nfs/NAME@REALM; it takes the place of the one before
        #[arg(long, value_name = "FILE", required_unless_present = "none")]
        file: Option<PathBuf>,
        /// No keys any more
        #[arg(long, conflicts_with = "file")]
        none: bool,
    },
}

/// `orlop disk`
#[derive(Debug, Clone, Subcommand)]
pub enum DiskCommand {
    /// List disks, how each is, and whether a pool can be made on it
    List,
    /// Make a disk blank that nobody uses. EVERYTHING on it is lost
    #[command(group = ArgGroup::new("which").required(true).multiple(true)
        .args(["yes_destroy_serial", "yes_destroy_by_id", "yes_destroy_size"]))]
    Wipe {
        /// Its name, as listed
        disk: DiskName,
        /// Its serial number, as listed: names change hands when disks come and go, serial numbers do not
        #[arg(long, value_name = "SERIAL")]
        yes_destroy_serial: Option<String>,
        /// Its name below /dev/disk/by-id instead
        #[arg(long, value_name = "BY-ID")]
        yes_destroy_by_id: Option<String>,
        /// Its size; the only thing to say of a disk that has neither
        #[arg(long, value_name = "SIZE")]
        yes_destroy_size: Option<ByteSize>,
        /// The pool, volume group or array that it says it belongs to, which is lost
        #[arg(long, value_name = "NAME")]
        pool: Option<String>,
    },
}

/// `orlop pool`
#[derive(Debug, Clone, Subcommand)]
pub enum PoolCommand {
    /// List pools
    List,
    /// Make a pool
    Create(PoolSpec),
    /// Show a pool
    Get {
        /// Its name
        pool: PoolName,
    },
    /// Take in a pool that exists, with the volumes in it
    Import {
        /// Its name
        name: PoolName,
        /// zfs, lvm, file or sim
        #[arg(long, value_parser = parse_kind)]
        kind: PoolKind,
        /// The disk of a file pool; others are found by their name
        #[arg(long = "disk", value_name = "DISK", conflicts_with = "directory")]
        disks: Vec<String>,
        /// The directory of a file or sim pool
        #[arg(long, value_name = "DIR")]
        directory: Option<String>,
        /// Even if the machine that had it did not let go of it. It must be off for sure
        #[arg(long)]
        force: bool,
        /// Which zpool, by its number, if there are disks of several that have this name
        #[arg(long, value_name = "NUMBER")]
        guid: Option<String>,
    },
    /// Let go of a pool with the volumes in it, for another appliance to import
    Export {
        /// Its name
        pool: PoolName,
    },
    /// Give a pool more disks, in its layout
    Expand {
        /// Its name
        pool: PoolName,
        /// A blank disk; as many as its layout takes
        #[arg(long = "disk", value_name = "DISK", required = true)]
        disks: Vec<String>,
    },
    /// Have another disk take the place of one, while the pool is in use
    Replace {
        /// Its name
        pool: PoolName,
        /// The disk that goes, as `pool get` shows it
        disk: String,
        /// A blank disk
        with: String,
    },
    /// Read everything in a pool and compare it with its checksums
    Scrub {
        /// Its name
        pool: PoolName,
        /// Stop it
        #[arg(long)]
        stop: bool,
    },
    /// Delete a pool that has no volumes
    Delete {
        /// Its name
        pool: PoolName,
    },
}

/// What a pool is to be made of.
#[derive(Debug, Clone, Args)]
pub struct PoolSpec {
    /// Its name
    name: PoolName,
    /// zfs, lvm, file or sim
    #[arg(long, value_parser = parse_kind)]
    kind: PoolKind,
    /// A blank disk, like vdb or /dev/disk/by-id/...; may be given more than once
    #[arg(long = "disk", value_name = "DISK", conflicts_with = "directory")]
    disks: Vec<String>,
    /// An existing directory instead of disks
    #[arg(long, value_name = "DIR")]
    directory: Option<String>,
    /// What a file pool formats its disk with: xfs or btrfs
    #[arg(long, value_parser = parse_filesystem)]
    filesystem: Option<Filesystem>,
    /// How large an lvm pool's thin pool is made; nearly all of its disks unless given
    #[arg(long, value_name = "SIZE")]
    thin_size: Option<ByteSize>,
    /// How large its metadata are made
    #[arg(long, value_name = "SIZE")]
    thin_metadata_size: Option<ByteSize>,
    /// How a zfs pool is laid out: stripe, mirror, raidz1 to raidz3, draid1 to draid3
    #[arg(long, value_parser = parse_layout)]
    layout: Option<PoolLayout>,
    /// A blank disk kept for the place of one that fails; may be given more than once
    #[arg(long = "spare", value_name = "DISK")]
    spares: Vec<String>,
}

/// `orlop volume`
#[derive(Debug, Clone, Subcommand)]
pub enum VolumeCommand {
    /// List volumes
    List {
        /// Those of this pool
        #[arg(long)]
        pool: Option<PoolName>,
    },
    /// Make a volume; the same command again changes nothing
    Create(VolumeSpec),
    /// Show a volume
    Get {
        /// Its name or id
        volume: VolumeRef,
    },
    /// Make a volume larger, in use or not
    Grow {
        /// Its name or id
        volume: VolumeRef,
        /// Its new size, like 20G
        #[arg(long)]
        size: ByteSize,
    },
    /// Change a volume's properties or how its space is reserved, in use or not
    Set(VolumeChange),
    /// Bring the key of an encrypted volume that is locked
    Unlock {
        /// Its name or id
        volume: VolumeRef,
        /// The file with the key, 64 hexadecimal digits; - reads it from here
        #[arg(long, value_name = "FILE")]
        key_file: PathBuf,
    },
    /// Print the key of an encrypted volume, to be kept in a safe place elsewhere
    Key {
        /// Its name or id
        volume: VolumeRef,
    },
    /// Delete a volume that no host is attached to
    Delete {
        /// Its name or id
        volume: VolumeRef,
        /// If something depends on it, delete it as soon as nothing does
        #[arg(long)]
        when_unused: bool,
    },
}

/// What a volume is to be.
#[derive(Debug, Clone, Args)]
pub struct VolumeSpec {
    /// Its name
    pub name: VolumeName,
    /// The pool to make it in; that of its source unless given
    #[arg(long, required_unless_present_any = ["from_volume", "from_snapshot"])]
    pub pool: Option<PoolName>,
    /// Its size, like 10G; that of its source unless given
    #[arg(long, required_unless_present_any = ["from_volume", "from_snapshot"])]
    pub size: Option<ByteSize>,
    /// Reserve all of its space now
    #[arg(long)]
    pub thick: bool,
    /// A file system instead of a disk: ext4, xfs or zfs; the pool's own unless one is named
    #[arg(long, value_name = "KIND", num_args = 0..=1, value_parser = parse_filesystem_kind)]
    pub filesystem: Option<Option<FilesystemKind>>,
    /// How it is reached: nvme, iscsi or nfs. Unless given a disk by NVMe over TCP, a file system by NFS
    #[arg(long, value_name = "PROTOCOL", value_parser = one_of(Protocol::ALL, Protocol::as_str))]
    pub protocol: Option<Protocol>,
    /// A property, like compression=zstd or block_size=16K; may be given more than once. Those that are
    /// not given are as the pool's default has them
    #[arg(long = "property", value_name = "NAME=VALUE", value_parser = OneProperty, hide_possible_values = true)]
    pub properties: Vec<Properties>,
    /// Encrypt it at rest. The appliance makes and keeps the key unless the other options say otherwise
    #[arg(long)]
    pub encrypt: bool,
    /// The file with its key, 64 hexadecimal digits; - reads it from here
    #[arg(long, value_name = "FILE", requires = "encrypt")]
    pub key_file: Option<PathBuf>,
    /// Do not keep the key: the volume is locked after each start until somebody brings it
    #[arg(long, requires = "key_file")]
    pub manual_unlock: bool,
    /// Begin with what this volume holds now
    #[arg(long, value_name = "VOLUME", conflicts_with = "from_snapshot")]
    pub from_volume: Option<VolumeRef>,
    /// Begin with what this snapshot holds
    #[arg(long, value_name = "SNAPSHOT")]
    pub from_snapshot: Option<SnapshotRef>,
    /// Copy the content instead of sharing it
    #[arg(long)]
    pub copy: bool,
    /// Do not wait for the copy
    #[arg(long, requires = "copy")]
    pub no_wait: bool,
}

impl VolumeSpec {
    /// What it is to be, if that was said.
    pub fn kind(&self) -> Option<VolumeKind> {
        self.filesystem.map(|_| VolumeKind::Filesystem)
    }

    /// What it begins with.
    pub fn source(&self) -> Option<VolumeSource> {
        let mode = if self.copy { SourceMode::Copied } else { SourceMode::Linked };
        let (snapshot, volume) = (self.from_snapshot.clone(), self.from_volume.clone());
        (snapshot.is_some() || volume.is_some()).then_some(VolumeSource { snapshot, volume, mode })
    }
}

/// What of a volume is to be another.
#[derive(Debug, Clone, Args)]
#[command(group = ArgGroup::new("what").required(true).multiple(true).args(["properties", "thick", "thin"]))]
pub struct VolumeChange {
    /// Its name or id
    pub volume: VolumeRef,
    /// A property's new value, like logbias=throughput; may be given more than once. It counts for what is
    /// written from now on
    #[arg(long = "property", value_name = "NAME=VALUE", value_parser = OneProperty, hide_possible_values = true)]
    properties: Vec<Properties>,
    /// Reserve all of its space
    #[arg(long, conflicts_with = "thin")]
    thick: bool,
    /// Reserve no space for it
    #[arg(long)]
    thin: bool,
}

impl VolumeChange {
    /// As it travels.
    pub fn ask(&self) -> VolumeUpdate {
        let provisioning = match (self.thick, self.thin) {
            (true, _) => Some(Provisioning::Thick),
            (_, true) => Some(Provisioning::Thin),
            _ => None,
        };
        VolumeUpdate { size: None, provisioning, properties: together(&self.properties) }
    }
}

/// Properties that were given one by one. Of one that was given twice the later counts.
pub fn together(properties: &[Properties]) -> Properties {
    properties.iter().fold(Properties::default(), |all, one| all.with(*one))
}

/// Parses `NAME=VALUE`, and tells completions what there is.
#[derive(Clone)]
struct OneProperty;

impl TypedValueParser for OneProperty {
    type Value = Properties;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> Result<Properties, clap::Error> {
        StringValueParser::new().try_map(|text| text.parse()).parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let all = Property::ALL.iter().flat_map(|p| p.settings());
        Some(Box::new(all.map(|text| PossibleValue::new(*text))))
    }
}

/// `orlop snapshot`
#[derive(Debug, Clone, Subcommand)]
pub enum SnapshotCommand {
    /// List snapshots
    List {
        /// Those of this volume
        #[arg(long)]
        volume: Option<VolumeRef>,
    },
    /// Take a snapshot; of several volumes, all at one instant, with --volume more than once
    Create {
        /// Its name; with several volumes the group's, whose snapshots are NAME-1, NAME-2 and so on
        name: SnapshotName,
        /// The volume's name or id
        #[arg(long = "volume", value_name = "VOLUME", required = true)]
        volumes: Vec<VolumeRef>,
    },
    /// Show a snapshot
    Get {
        /// Its name or id
        snapshot: SnapshotRef,
    },
    /// List where a snapshot has data, or where it is not as an older one: what a backup has to read
    Blocks {
        /// Its name or id
        snapshot: SnapshotRef,
        /// An older snapshot of the same volume: list what is not as in it
        #[arg(long, value_name = "SNAPSHOT")]
        base: Option<SnapshotRef>,
        /// From this byte on
        #[arg(long, value_name = "OFFSET", default_value = "0")]
        from: ByteSize,
    },
    /// Delete a snapshot
    Delete {
        /// Its name or id
        snapshot: SnapshotRef,
        /// If a volume lives on it, delete it as soon as none does
        #[arg(long)]
        when_unused: bool,
    },
}

/// `orlop target`
#[derive(Debug, Clone, Subcommand)]
pub enum TargetCommand {
    /// List targets: how each is, where it listens, and what is in it of others; asks every target
    List,
}

/// `orlop orphan`
#[derive(Debug, Clone, Subcommand)]
pub enum OrphanCommand {
    /// List orphans, and what may be done with each; asks every pool
    List,
    /// Make an orphan a volume, with what is in it; nothing is copied
    Adopt {
        /// Its id, as listed
        orphan: OrphanId,
        /// What the volume is to be called
        #[arg(long, value_name = "VOLUME")]
        name: VolumeName,
    },
    /// Remove a leftover, or a record without a backing
    Remove {
        /// Its id, as listed
        orphan: OrphanId,
    },
}

/// `--when-unused` as it travels.
pub fn when(unused: bool) -> When {
    if unused { When::Unused } else { When::Now }
}

/// A parser of one of these, by its name.
fn one_of<T: Copy + Send + Sync + 'static, const N: usize>(
    all: [T; N],
    name: fn(T) -> &'static str,
) -> impl Fn(&str) -> Result<T, String> + Clone {
    move |text| {
        let names = || all.map(name).join(", ");
        all.into_iter().find(|t| name(*t) == text).ok_or_else(|| format!("must be one of {}", names()))
    }
}

/// `orlop host`
#[derive(Debug, Clone, Subcommand)]
pub enum HostCommand {
    /// List hosts
    List,
    /// Make a host, or change what it is known by: all of it has to be said
    #[command(group(ArgGroup::new("known").required(true).multiple(true).args(["nqn", "iqn", "address"])))]
    Put {
        /// Its name
        host: HostName,
        /// For NVMe: what its /etc/nvme/hostnqn says
        #[arg(long)]
        nqn: Option<Nqn>,
        /// For iSCSI: what its /etc/iscsi/initiatorname.iscsi says
        #[arg(long)]
        iqn: Option<Iqn>,
        /// For NFS: an address that it calls from; can be given several times
        #[arg(long)]
        address: Vec<IpAddr>,
    },
    /// Show a host
    Get {
        /// Its name
        host: HostName,
    },
    /// Have a host prove that it knows a secret (DH-HMAC-CHAP) whenever it connects
    ///
    /// Secrets are made with `nvme gen-dhchap-key --hmac=1`. What is connected stays so.
    Authenticate {
        /// Its name
        host: HostName,
        /// The file with the host's secret; `-` is standard input
        #[arg(long, value_name = "FILE", required_unless_present = "none")]
        key_file: Option<PathBuf>,
        /// The file with the appliance's secret, for a host that wants that proved too
        #[arg(long, value_name = "FILE", requires = "key_file")]
        controller_key_file: Option<PathBuf>,
        /// The hash: sha256, sha384 or sha512
        #[arg(long, value_name = "HASH", default_value = "sha256", value_parser = one_of(DhchapHash::ALL, DhchapHash::as_str))]
        hash: DhchapHash,
        /// The group: null, ffdhe2048, ffdhe3072, ffdhe4096, ffdhe6144 or ffdhe8192
        #[arg(long, value_name = "GROUP", default_value = "ffdhe2048", value_parser = one_of(DhGroup::ALL, DhGroup::as_str))]
        dh_group: DhGroup,
        /// No secret any more: whoever has the host's NQN is let in
        #[arg(long, conflicts_with = "key_file")]
        none: bool,
    },
    /// Have a host prove that it knows a secret (CHAP) whenever it logs in by iSCSI
    ///
    /// Secrets have 12 to 16 characters. What is logged in stays so.
    Chap {
        /// Its name
        host: HostName,
        /// The name that the host goes by
        #[arg(long, required_unless_present = "none")]
        user: Option<ChapUser>,
        /// The file with the host's secret; `-` is standard input
        #[arg(long, value_name = "FILE", required_unless_present = "none")]
        secret_file: Option<PathBuf>,
        /// The name that the appliance goes by, for a host that wants that proved too
        #[arg(long, requires = "target_secret_file")]
        target_user: Option<ChapUser>,
        /// The file with the appliance's secret
        #[arg(long, value_name = "FILE", requires = "target_user")]
        target_secret_file: Option<PathBuf>,
        /// No secret any more: whoever has the host's iSCSI name is let in
        #[arg(long, conflicts_with_all = ["user", "secret_file", "target_user"])]
        none: bool,
    },
    /// Have what a host says by NVMe encrypted: it is served at portals with TLS alone
    ///
    /// Keys are made with `nvme gen-tls-key`. While the host is attached it can be given another, but not the first, and
    /// none can be taken away.
    Tls {
        /// Its name
        host: HostName,
        /// The file with the key; `-` is standard input
        #[arg(long, value_name = "FILE", required_unless_present = "none")]
        key_file: Option<PathBuf>,
        /// The host's tools are older than libnvme 1.16, and its identity has version 0 or its key begins NVMeTLSkey-1:00
        #[arg(long, requires = "key_file")]
        compat: bool,
        /// No TLS any more
        #[arg(long, conflicts_with_all = ["key_file", "compat"])]
        none: bool,
    },
    /// Forget a host that has no attachment
    Delete {
        /// Its name
        host: HostName,
    },
}

/// `orlop zone`
#[derive(Debug, Clone, Subcommand)]
pub enum ZoneCommand {
    /// List zones
    List,
    /// Make a zone, or change it: all of it has to be said
    Put {
        /// Its name
        zone: HostName,
        /// A network that its hosts call from, ADDRESS/PREFIX or an address; can be given several times
        #[arg(long, required = true)]
        network: Vec<Network>,
        /// Its hosts can't write
        #[arg(long)]
        read_only: bool,
        /// Whose users are nobody: none, root or all
        #[arg(long, value_name = "WHOSE", default_value = "root", value_parser = one_of(Squash::ALL, Squash::as_str))]
        squash: Squash,
        /// By what its hosts must prove who they are: sys, krb5, krb5i, krb5p, or several with : between them, the best
        /// first
        #[arg(long, value_name = "FLAVOURS", default_value_t)]
        security: Security,
        /// Whose it is, for good: it uses volumes of this tenant alone
        #[arg(long, default_value_t)]
        tenant: Tenant,
    },
    /// Show a zone
    Get {
        /// Its name
        zone: HostName,
    },
    /// Forget a zone that has no attachment
    Delete {
        /// Its name
        zone: HostName,
    },
}

/// `orlop token`
#[derive(Debug, Clone, Subcommand)]
pub enum TokenCommand {
    /// List tokens and what they may do; themselves they are shown once, when they are made
    List,
    /// Make a token, or change what one may do: all of it has to be said. One that is there stays the same token
    Put {
        /// Its name
        token: TokenName,
        /// Whose volumes, snapshots and hosts it sees and makes
        #[arg(long, default_value_t)]
        tenant: Tenant,
        /// A pool that it may use, can be given several times; all of them unless given
        #[arg(long)]
        pool: Vec<PoolName>,
        /// What it may do beside looking: verbs as the audit log has them, with commas between them; `csi` is what the
        /// driver of Kubernetes needs, `all` is all that can be given
        #[arg(long, value_name = "VERBS", value_delimiter = ',', value_parser = verbs)]
        may: Vec<Verbs>,
        /// Write it to this file, which must not be there yet, instead of showing it
        #[arg(long, conflicts_with = "certificate")]
        file: Option<PathBuf>,
        /// No secret: who has the key of the certificate in this file comes in by it
        #[arg(long, value_name = "FILE")]
        certificate: Option<PathBuf>,
    },
    /// Let nobody in by a token any more
    Delete {
        /// Its name
        token: TokenName,
    },
}

/// Some verbs by one word.
#[derive(Debug, Clone, Copy)]
pub struct Verbs(pub &'static [Verb]);

fn verbs(text: &str) -> Result<Verbs, String> {
    if let Some((_, verbs)) = [("csi", Verb::CSI), ("all", Verb::ALL)].iter().find(|(word, _)| *word == text)
    {
        return Ok(Verbs(verbs));
    }
    let found = Verb::ALL.iter().position(|verb| verb.as_str() == text);
    found.map(|n| Verbs(&Verb::ALL[n..=n])).ok_or_else(|| {
        let all: Vec<_> = Verb::ALL.iter().map(|verb| verb.as_str()).collect();
        format!("is none of csi, all, {}", all.join(", "))
    })
}

impl PoolSpec {
    /// As it travels.
    pub fn ask(self) -> PoolCreate {
        PoolCreate {
            name: self.name,
            kind: self.kind,
            disks: self.disks,
            directory: self.directory,
            filesystem: self.filesystem,
            thin_size: self.thin_size,
            thin_metadata_size: self.thin_metadata_size,
            layout: self.layout,
            spares: self.spares,
            import: false,
            force: false,
            guid: None,
        }
    }
}

fn parse_layout(text: &str) -> Result<PoolLayout, &'static str> {
    let found = PoolLayout::ALL.into_iter().find(|l| l.as_str() == text);
    found.ok_or("must be stripe, mirror, raidz1 to raidz3 or draid1 to draid3")
}

fn parse_kind(text: &str) -> Result<PoolKind, &'static str> {
    match text {
        "zfs" => Ok(PoolKind::Zfs),
        "lvm" => Ok(PoolKind::Lvm),
        "file" => Ok(PoolKind::File),
        "sim" => Ok(PoolKind::Sim),
        _ => Err("must be zfs, lvm, file or sim"),
    }
}

fn parse_filesystem_kind(text: &str) -> Result<FilesystemKind, &'static str> {
    let all = FilesystemKind::ALL.into_iter();
    all.into_iter().find(|k| k.as_str() == text).ok_or("must be ext4, xfs or zfs")
}

fn parse_filesystem(text: &str) -> Result<Filesystem, &'static str> {
    match text {
        "xfs" => Ok(Filesystem::Xfs),
        "btrfs" => Ok(Filesystem::Btrfs),
        _ => Err("must be xfs or btrfs"),
    }
}
