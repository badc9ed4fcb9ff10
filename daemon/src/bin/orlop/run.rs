//! A command is one call of the client and one answer.

#![allow(clippy::result_large_err)] // Once a process.

use std::io::{Read, Write};
use std::path::Path;
use std::pin::pin;

use futures_util::StreamExt;
use orlop_api::client::{AttachAs, BlockFilter, Client, Result, SnapshotFilter, VolumeFilter};
use orlop_api::{
    AlarmState, AuthenticationPut, ChapCredentials, ChapPut, ChapUser, ClientCertificate, DiskWipe,
    EncryptionCreate, ErrorKind, HostPut, KeytabFile, KeytabPut, MadeToken, OrphanAdopt, ParseError,
    PoolCreate, PoolExpand, PoolReplace, Problem, Provisioning, SnapshotCreate, SnapshotGroupCreate, TlsPut,
    TokenPut, Unlock, Volume, VolumeCreate, VolumeKey, VolumeRef, VolumeUpdate, ZonePut,
};

use crate::grammar::{
    AlarmCommand, Command, DiskCommand, HostCommand, OrphanCommand, PoolCommand, SnapshotCommand,
    SystemCommand, TargetCommand, TokenCommand, VolumeCommand, VolumeSpec, ZoneCommand, together, when,
};
use crate::render::{self, Answer, Format};

/// Does it.
pub async fn call(client: &Client, command: Command) -> Result<Answer> {
    Ok(match command {
        Command::System { command: None } => Answer::System(client.system().await?),
        Command::System { command: Some(SystemCommand::Backup { file }) } => {
            keep(&file, &client.backup().await?)?;
            Answer::Done(format!("{} has secrets in it: keep it as a key", file.display()))
        }
        Command::System { command: Some(SystemCommand::Restore { file, force }) } => {
            let text = std::fs::read(&file).map_err(|e| unreadable(&file, &e))?;
            Answer::Restored(client.restore(text, force).await?)
        }
        Command::System { command: Some(SystemCommand::Reload) } => Answer::Reloaded(client.reload().await?),
        Command::System { command: Some(SystemCommand::Keytab { file: Some(file), .. }) } => {
            let bytes = std::fs::read(&file).map_err(|e| unreadable(&file, &e))?;
            let keytab = KeytabFile::new(bytes)
                .map_err(|e| Problem::new(ErrorKind::Invalid, format!("{}: {e}", file.display())))?;
            Answer::Keytab(client.put_keytab(&KeytabPut { keytab }).await?)
        }
        Command::System { command: Some(SystemCommand::Keytab { file: None, .. }) } => {
            client.delete_keytab().await?;
            Answer::Done("the appliance has no keytab".into())
        }
        Command::Alarm(AlarmCommand::List { all }) => {
            let mut alarms = client.alarms().await?;
            alarms.retain(|a| all || a.state != AlarmState::Cleared);
            Answer::Alarms(alarms)
        }
        Command::Alarm(AlarmCommand::Acknowledge { subject }) => {
            Answer::Alarm(client.acknowledge_alarm(&subject).await?)
        }
        Command::Disk(DiskCommand::List) => Answer::Disks(client.disks().await?),
        Command::Disk(DiskCommand::Wipe {
            disk,
            yes_destroy_serial: serial,
            yes_destroy_by_id: by_id,
            yes_destroy_size: size,
            pool,
        }) => {
            let blank = client.wipe_disk(&disk, &DiskWipe { serial, by_id, size, pool }).await?;
            Answer::Disks(vec![blank])
        }
        Command::Pool(command) => pool(client, command).await?,
        Command::Volume(command) => volume(client, command).await?,
        Command::Snapshot(command) => snapshot(client, command).await?,
        Command::Target(TargetCommand::List) => Answer::Targets(client.targets().await?),
        Command::Orphan(command) => orphan(client, command).await?,
        Command::Host(command) => host(client, command).await?,
        Command::Zone(command) => zone(client, command).await?,
        Command::Token(command) => token(client, command).await?,
        Command::Attach { volume, host, exclusive, read_only } => {
            Answer::Attachment(client.attach_as(&volume, &host, &AttachAs { exclusive, read_only }).await?)
        }
        Command::Detach { volume, host } => {
            client.detach(&volume, &host).await?;
            Answer::Done(format!("host {host} is cut off from volume {volume}"))
        }
        // Both are taken care of before a call is made.
        Command::Watch { .. } | Command::Completions { .. } => Answer::Done(String::new()),
    })
}

/// Writes a file that nobody else may read, whole and on the disk, or none.
fn keep(path: &Path, text: &[u8]) -> Result<()> {
    Held::new(path)?.keep(text)
}

/// A file for a secret that is not there yet: what can't be written is found out before there is a secret. It goes again
/// unless something is kept in it.
struct Held<'a> {
    path: &'a Path,
    file: std::fs::File,
    kept: bool,
}

impl<'a> Held<'a> {
    fn new(path: &'a Path) -> Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        Ok(Self { path, file: file.map_err(|e| unreadable(path, &e))?, kept: false })
    }

    fn keep(mut self, text: &[u8]) -> Result<()> {
        let whole = self.file.write_all(text).and_then(|()| self.file.sync_all());
        self.kept = whole.is_ok();
        whole.map_err(|e| unreadable(self.path, &e))
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if !self.kept {
            let _ = std::fs::remove_file(self.path);
        }
    }
}

fn unreadable(path: &Path, e: &std::io::Error) -> Problem {
    Problem::new(ErrorKind::Invalid, format!("{}: {e}", path.display()))
}

async fn pool(client: &Client, command: PoolCommand) -> Result<Answer> {
    Ok(match command {
        PoolCommand::List => Answer::Pools(client.pools().await?),
        PoolCommand::Create(spec) => Answer::Pool(client.create_pool(&spec.ask()).await?),
        PoolCommand::Get { pool } => Answer::Pool(client.pool(&pool).await?),
        PoolCommand::Import { name, kind, disks, directory, force, guid } => {
            let plain = PoolCreate::new(name, kind);
            let ask = PoolCreate { disks, directory, import: true, force, guid, ..plain };
            Answer::Pool(client.create_pool(&ask).await?)
        }
        PoolCommand::Export { pool } => {
            client.export_pool(&pool).await?;
            Answer::Done(format!("pool {pool} is exported"))
        }
        PoolCommand::Expand { pool, disks } => {
            Answer::Pool(client.expand_pool(&pool, &PoolExpand { disks }).await?)
        }
        PoolCommand::Replace { pool, disk, with } => {
            Answer::Pool(client.replace_disk(&pool, &PoolReplace { disk, with }).await?)
        }
        PoolCommand::Scrub { pool, stop: false } => Answer::Pool(client.scrub_pool(&pool).await?),
        PoolCommand::Scrub { pool, stop: true } => {
            client.stop_scrub(&pool).await?;
            Answer::Done(format!("no scrub of pool {pool} is under way"))
        }
        PoolCommand::Delete { pool } => {
            client.delete_pool(&pool).await?;
            Answer::Done(format!("pool {pool} is deleted"))
        }
    })
}

async fn volume(client: &Client, command: VolumeCommand) -> Result<Answer> {
    Ok(match command {
        VolumeCommand::List { pool } => {
            let filter = VolumeFilter { pool, ..VolumeFilter::default() };
            Answer::Volumes(client.all_volumes(filter).await?)
        }
        VolumeCommand::Create(spec) => Answer::Volume(create_volume(client, spec).await?),
        VolumeCommand::Get { volume } => Answer::Volume(client.volume(&volume).await?),
        VolumeCommand::Grow { volume, size } => {
            Answer::Volume(client.update_volume(&volume, &VolumeUpdate::to_size(size)).await?)
        }
        VolumeCommand::Set(change) => {
            Answer::Volume(client.update_volume(&change.volume, &change.ask()).await?)
        }
        VolumeCommand::Unlock { volume, key_file } => {
            Answer::Volume(client.unlock_volume(&volume, &VolumeKey { key: read_key(&key_file)? }).await?)
        }
        VolumeCommand::Key { volume } => Answer::Key(client.volume_key(&volume).await?),
        VolumeCommand::Delete { volume, when_unused } => {
            let gone = client.delete_volume_when(&volume, when(when_unused)).await?;
            Answer::Done(deleted("volume", &volume, gone))
        }
    })
}

fn deleted(kind: &str, name: &dyn std::fmt::Display, gone: bool) -> String {
    let how = if gone { "is deleted" } else { "goes when nothing depends on it any more" };
    format!("{kind} {name} {how}")
}

/// Makes a volume, with the pool and the size of its source where none are given, and waits for a copy.
async fn create_volume(client: &Client, spec: VolumeSpec) -> Result<Volume> {
    let (mut pool, mut size) = (spec.pool.clone(), spec.size);
    if pool.is_none() || size.is_none() {
        let (of_source, its_size) = match (&spec.from_snapshot, &spec.from_volume) {
            (Some(snapshot), _) => {
                let s = client.snapshot(snapshot).await?;
                (s.pool, s.size)
            }
            (None, Some(volume)) => {
                let v = client.volume(volume).await?;
                (v.pool, v.size)
            }
            // The grammar asks for both where there is no source.
            (None, None) => return Err(Problem::new(ErrorKind::Invalid, "pool and size must be given")),
        };
        pool.get_or_insert(of_source);
        size.get_or_insert(its_size);
    }
    let (Some(pool), Some(size)) = (pool, size) else {
        return Err(Problem::new(ErrorKind::Invalid, "pool and size must be given"));
    };
    let ask = VolumeCreate {
        name: spec.name.clone(),
        pool,
        size,
        provisioning: if spec.thick { Provisioning::Thick } else { Provisioning::Thin },
        kind: spec.kind(),
        filesystem: spec.filesystem.flatten(),
        protocol: spec.protocol,
        source: spec.source(),
        properties: together(&spec.properties),
        encryption: encryption(&spec)?,
    };
    let volume = client.create_volume(&ask).await?;
    if spec.no_wait { Ok(volume) } else { wait_for_copy(client, volume).await }
}

fn encryption(spec: &VolumeSpec) -> Result<Option<EncryptionCreate>> {
    if !spec.encrypt {
        return Ok(None);
    }
    let unlock = if spec.manual_unlock { Unlock::Manual } else { Unlock::Automatic };
    Ok(Some(EncryptionCreate { unlock, key: spec.key_file.as_deref().map(read_key).transpose()? }))
}

/// A key or a secret from a file of its own.
fn read_key<K: std::str::FromStr<Err = ParseError>>(file: &Path) -> Result<K> {
    let wrong = |e: &dyn std::fmt::Display| {
        Problem::new(ErrorKind::Invalid, format!("the key in {}: {e}", file.display()))
    };
    // Not more than a key and what may end its line.
    let mut text = String::new();
    let read = match file.to_str() {
        Some("-") => std::io::stdin().take(128).read_to_string(&mut text),
        _ => std::fs::File::open(file).and_then(|f| f.take(128).read_to_string(&mut text)),
    };
    read.map_err(|e| wrong(&e))?;
    text.trim().parse().map_err(|e: ParseError| wrong(&e))
}

/// Waits until a volume is no longer being copied, and shows how far it is. A copy that is stuck goes on
/// by itself when it can, so that is waited for too.
async fn wait_for_copy(client: &Client, mut volume: Volume) -> Result<Volume> {
    let copying = |v: &Volume| v.progress.is_some();
    if !copying(&volume) {
        return Ok(volume);
    }
    let mut events = pin!(client.events(None));
    let bar = crate::progress::Bar::new();
    let id = volume.id;
    while copying(&volume) {
        if let Some(p) = volume.progress {
            bar.show(p.done.0, p.total.0, volume.reason.as_deref());
        }
        // Its events, or a look from time to time: the first of them may have been before the stream.
        let end = tokio::time::sleep(std::time::Duration::from_secs(2));
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => break,
                event = events.next() => match event.transpose()? {
                    Some(event) if event.volume != Some(id) => {}
                    Some(_) => break,
                    // The stream has ended for good; the timer goes on.
                    None => { end.as_mut().await; break }
                },
            }
        }
        volume = client.volume(&VolumeRef::Id(id)).await?;
    }
    bar.finish();
    Ok(volume)
}

async fn snapshot(client: &Client, command: SnapshotCommand) -> Result<Answer> {
    Ok(match command {
        SnapshotCommand::List { volume } => {
            let filter = SnapshotFilter { volume, ..SnapshotFilter::default() };
            Answer::Snapshots(client.all_snapshots(filter).await?)
        }
        SnapshotCommand::Create { name, mut volumes } => match (volumes.pop(), volumes.is_empty()) {
            (Some(volume), true) => {
                Answer::Snapshot(client.create_snapshot(&SnapshotCreate { name, volume }).await?)
            }
            (last, _) => {
                volumes.extend(last);
                let group = client.create_snapshot_group(&SnapshotGroupCreate { name, volumes }).await?;
                Answer::Snapshots(group.snapshots)
            }
        },
        SnapshotCommand::Get { snapshot } => Answer::Snapshot(client.snapshot(&snapshot).await?),
        SnapshotCommand::Blocks { snapshot, base, from } => {
            let mut filter = BlockFilter { base, from: Some(from), limit: Some(10_000) };
            let mut all = client.snapshot_blocks(&snapshot, &filter).await?;
            while let Some(next) = all.next {
                filter.from = Some(next);
                let page = client.snapshot_blocks(&snapshot, &filter).await?;
                all.items.extend(page.items);
                all.next = page.next;
            }
            Answer::Blocks(all)
        }
        SnapshotCommand::Delete { snapshot, when_unused } => {
            let gone = client.delete_snapshot(&snapshot, when(when_unused)).await?;
            Answer::Done(deleted("snapshot", &snapshot, gone))
        }
    })
}

async fn orphan(client: &Client, command: OrphanCommand) -> Result<Answer> {
    Ok(match command {
        OrphanCommand::List => Answer::Orphans(client.orphans().await?),
        OrphanCommand::Adopt { orphan, name } => {
            Answer::Volume(client.adopt_orphan(&orphan, &OrphanAdopt { name }).await?)
        }
        OrphanCommand::Remove { orphan } => {
            client.remove_orphan(&orphan).await?;
            Answer::Done(format!("orphan {orphan} is removed"))
        }
    })
}

async fn host(client: &Client, command: HostCommand) -> Result<Answer> {
    Ok(match command {
        HostCommand::List => Answer::Hosts(client.all_hosts().await?),
        HostCommand::Put { host, nqn, iqn, address: addresses } => {
            Answer::Host(client.put_host(&host, &HostPut { nqn, iqn, addresses }).await?)
        }
        HostCommand::Get { host } => Answer::Host(client.host(&host).await?),
        HostCommand::Authenticate { host, none: true, .. } => {
            client.trust_host(&host).await?;
            Answer::Done(format!("host {host} is let in without a secret"))
        }
        HostCommand::Authenticate { host, key_file, controller_key_file, hash, dh_group, none: false } => {
            let key = key_file.as_deref().map(read_key).transpose()?;
            let key = key.ok_or_else(|| Problem::new(ErrorKind::Invalid, "the host's secret is missing"))?;
            let controller_key = controller_key_file.as_deref().map(read_key).transpose()?;
            let ask = AuthenticationPut { key, controller_key, hash, dh_group };
            Answer::Host(client.authenticate_host(&host, &ask).await?)
        }
        HostCommand::Chap { host, none: true, .. } => {
            client.no_chap_host(&host).await?;
            Answer::Done(format!("host {host} is let in without a secret"))
        }
        HostCommand::Chap { host, user, secret_file, target_user, target_secret_file, none: false } => {
            let theirs = credentials(user, secret_file.as_deref())?;
            let theirs =
                theirs.ok_or_else(|| Problem::new(ErrorKind::Invalid, "the host's secret is missing"))?;
            let target = credentials(target_user, target_secret_file.as_deref())?;
            Answer::Host(client.chap_host(&host, &ChapPut { host: theirs, target }).await?)
        }
        HostCommand::Tls { host, none: true, .. } => {
            client.no_tls_host(&host).await?;
            Answer::Done(format!("host {host} is served without TLS"))
        }
        HostCommand::Tls { host, key_file, compat, none: false } => {
            let key = key_file.as_deref().map(read_key).transpose()?;
            let key = key.ok_or_else(|| Problem::new(ErrorKind::Invalid, "the host's key is missing"))?;
            Answer::Host(client.tls_host(&host, &TlsPut { key, compat }).await?)
        }
        HostCommand::Delete { host } => {
            client.delete_host(&host).await?;
            Answer::Done(format!("host {host} is forgotten"))
        }
    })
}

fn credentials(user: Option<ChapUser>, file: Option<&Path>) -> Result<Option<ChapCredentials>> {
    let secret = file.map(read_key).transpose()?;
    Ok(user.zip(secret).map(|(user, secret)| ChapCredentials { user, secret }))
}

async fn zone(client: &Client, command: ZoneCommand) -> Result<Answer> {
    Ok(match command {
        ZoneCommand::List => Answer::Zones(client.all_zones().await?),
        ZoneCommand::Put { zone, network: networks, read_only, squash, security, tenant } => {
            let ask = ZonePut { networks, read_only, squash, security, versions: None, tenant };
            Answer::Zone(client.put_zone(&zone, &ask).await?)
        }
        ZoneCommand::Get { zone } => Answer::Zone(client.zone(&zone).await?),
        ZoneCommand::Delete { zone } => {
            client.delete_zone(&zone).await?;
            Answer::Done(format!("zone {zone} is forgotten"))
        }
    })
}

async fn token(client: &Client, command: TokenCommand) -> Result<Answer> {
    Ok(match command {
        TokenCommand::List => Answer::Tokens(client.tokens().await?),
        TokenCommand::Put { token, tenant, pool: pools, may, file, certificate } => {
            let verbs = may.iter().flat_map(|verbs| verbs.0).copied().collect();
            let certificate = certificate.as_deref().map(certificate_of).transpose()?;
            // Before anything is changed by it.
            if file.is_some() && client.tokens().await?.iter().any(|t| t.name == token) {
                let why =
                    format!("token {token} is there, and a token is shown once: delete it to have another");
                return Err(Problem::new(ErrorKind::Conflict, why));
            }
            let held = file.as_deref().map(Held::new).transpose()?;
            let made = client.put_token(&token, &TokenPut { tenant, pools, verbs, certificate }).await?;
            match (made.secret, held) {
                (Some(secret), Some(held)) => {
                    held.keep(format!("{}\n", secret.expose()).as_bytes())?;
                    Answer::Token(MadeToken { token: made.token, secret: None })
                }
                (secret, _) => Answer::Token(MadeToken { token: made.token, secret }),
            }
        }
        TokenCommand::Delete { token } => {
            client.delete_token(&token).await?;
            Answer::Done(format!("nobody comes in by token {token} any more"))
        }
    })
}

/// The certificate in a file.
#[allow(clippy::result_large_err)]
fn certificate_of(file: &std::path::Path) -> Result<ClientCertificate> {
    let wrong =
        |e: &dyn std::fmt::Display| Problem::new(ErrorKind::Invalid, format!("{}: {e}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|e| wrong(&e))?;
    text.parse().map_err(|e| wrong(&e))
}

/// Prints events until the daemon says that it makes no sense to go on, or nobody reads.
pub async fn watch(client: &Client, after: Option<u64>, format: Format) -> Result<()> {
    use std::io::Write;
    let mut events = pin!(client.events(after));
    while let Some(event) = events.next().await {
        let line = render::event(&event?, format);
        let mut out = std::io::stdout().lock();
        if out.write_all(line.as_bytes()).and_then(|()| out.flush()).is_err() {
            return Ok(());
        }
    }
    Ok(())
}
