//! Answers as text: tables for people, the API's shapes as JSON for programs.
//!
//! Pure: returns what is to be printed. Text that came from elsewhere never reaches a terminal with
//! its control characters.

mod alarms;
mod targets;

use comfy_table::{ContentArrangement, Table, presets};
use orlop_api::{
    Access, Alarm, Attachment, Authentication, BlockRange, ByteSize, Chap, Disk, DiskHealthState, DiskUsage,
    Event, Flavour, Host, IscsiAccess, Keytab, MadeToken, Orphan, OrphanAction, OrphanKind, Orphans, Page,
    Pool, PoolFill, PoolHealth, PoolHealthState, PoolScanKind, PoolScanState, PoolState, Portal, Problem,
    Property, Provisioning, Reloaded, Restored, SettingChange, Snapshot, SnapshotBlocks, SnapshotState,
    SourceMode, System, SystemState, Target, Tls, Token, Verb, Volume, VolumeId, VolumeKey, VolumeState,
    Zone,
};
use serde::Serialize;

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// What came of a command.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum Answer {
    System(System),
    Alarms(Vec<Alarm>),
    Alarm(Alarm),
    Restored(Restored),
    Reloaded(Reloaded),
    Keytab(Keytab),
    Disks(Vec<Disk>),
    Targets(Vec<Target>),
    Pools(Vec<Pool>),
    Pool(Pool),
    Volumes(Vec<Volume>),
    Volume(Volume),
    Key(VolumeKey),
    Snapshots(Vec<Snapshot>),
    Snapshot(Snapshot),
    Blocks(SnapshotBlocks),
    Orphans(Orphans),
    Hosts(Vec<Host>),
    Host(Host),
    Zones(Vec<Zone>),
    Zone(Zone),
    Tokens(Vec<Token>),
    Token(MadeToken),
    Attachment(Attachment),
    /// Nothing but that it is done.
    Done(String),
}

/// The text of an answer.
pub fn answer(answer: &Answer, format: Format) -> String {
    match format {
        Format::Json => as_json(answer),
        Format::Table => as_table(answer),
    }
}

fn as_json(answer: &Answer) -> String {
    fn page<T: Serialize + Clone>(items: &[T]) -> String {
        json(&Page { items: items.to_vec(), next: None })
    }
    match answer {
        Answer::System(a) => json(a),
        Answer::Alarms(a) => page(a),
        Answer::Alarm(a) => json(a),
        Answer::Restored(a) => json(a),
        Answer::Reloaded(a) => json(a),
        Answer::Keytab(a) => json(a),
        Answer::Disks(a) => page(a),
        Answer::Targets(a) => page(a),
        Answer::Pools(a) => page(a),
        Answer::Pool(a) => json(a),
        Answer::Volumes(a) => page(a),
        Answer::Volume(a) => json(a),
        Answer::Key(a) => json(a),
        Answer::Snapshots(a) => page(a),
        Answer::Snapshot(a) => json(a),
        Answer::Blocks(a) => json(a),
        Answer::Orphans(a) => json(a),
        Answer::Hosts(a) => page(a),
        Answer::Host(a) => json(a),
        Answer::Zones(a) => page(a),
        Answer::Zone(a) => json(a),
        Answer::Tokens(a) => page(a),
        Answer::Token(a) => json(a),
        Answer::Attachment(a) => json(a),
        Answer::Done(_) => String::new(),
    }
}

fn json(value: &impl Serialize) -> String {
    // The shapes are structs of strings and numbers: writing them can't fail.
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

fn as_table(answer: &Answer) -> String {
    match answer {
        Answer::System(a) => system(a),
        Answer::Alarms(a) => alarms::all(a),
        Answer::Alarm(a) => alarms::all(std::slice::from_ref(a)),
        Answer::Restored(a) => restored(a),
        Answer::Reloaded(a) => reloaded(a),
        Answer::Keytab(a) => a.principals.iter().map(|p| field("key of", p)).collect(),
        Answer::Disks(a) => list(DISK, a.iter().map(disk)),
        Answer::Targets(a) => targets::all(a),
        Answer::Pools(a) => list(POOL, a.iter().map(pool)),
        Answer::Pool(a) => {
            one(POOL, pool(a)) + &largest(a) + &a.health.as_ref().map(health).unwrap_or_default()
        }
        Answer::Volumes(a) => list(VOLUME, a.iter().map(volume)),
        Answer::Volume(a) => {
            one(VOLUME, volume(a))
                + &a.nqn.as_ref().map(|n| field("NQN", n.as_str())).unwrap_or_default()
                + &a.iqn.as_ref().map(|n| field("IQN", n.as_str())).unwrap_or_default()
                + &origin(a)
                + &encryption(a)
                + &properties(a)
        }
        Answer::Key(a) => a.key.expose_text() + "\n",
        Answer::Snapshots(a) => list(SNAPSHOT, a.iter().map(snapshot)),
        Answer::Snapshot(a) => one(SNAPSHOT, snapshot(a)) + &dependants(a),
        Answer::Blocks(a) => {
            let in_all: u64 = a.items.iter().map(|r| r.length.bytes()).sum();
            let range = |r: &BlockRange| {
                [r.offset.bytes().to_string(), r.length.bytes().to_string(), r.length.to_string()]
            };
            list(BLOCK, a.items.iter().map(range))
                + &field("in all", &format!("{} of {}", ByteSize(in_all), a.size))
        }
        Answer::Orphans(a) => list(ORPHAN, a.items.iter().map(orphan)) + &unanswered(a),
        Answer::Hosts(a) => list(HOST, a.iter().map(host)),
        Answer::Host(a) => one(HOST, host(a)) + &known_by(a) + &volumes_of(&a.volumes),
        Answer::Zones(a) => list(ZONE, a.iter().map(zone)),
        Answer::Zone(a) => one(ZONE, zone(a)) + &volumes_of(&a.volumes),
        Answer::Tokens(a) => list(TOKEN, a.iter().map(token)),
        Answer::Token(a) => {
            let secret = a.secret.as_ref().map(|s| field("token", s.expose())).unwrap_or_default();
            one(TOKEN, token(&a.token)) + &secret
        }
        Answer::Attachment(a) => attachment(a),
        Answer::Done(text) => clean(text) + "\n",
    }
}

const DISK: [&str; 9] = ["NAME", "SIZE", "TYPE", "MODEL", "SERIAL", "HEALTH", "WEAR", "STATE", "BY ID"];
const POOL: [&str; 8] = ["NAME", "KIND", "STATE", "VOLUMES", "PROVISIONED", "USED", "AVAILABLE", "TOTAL"];
const POOL_DISK: [&str; 6] = ["DISK", "PART", "STATE", "READ", "WRITE", "CHECKSUM"];
const VOLUME: [&str; 9] = ["NAME", "ID", "POOL", "SIZE", "KIND", "SPACE", "STATE", "HOSTS", "CREATED"];

const SNAPSHOT: [&str; 8] = ["NAME", "ID", "VOLUME", "POOL", "SIZE", "STATE", "GROUP", "CREATED"];

const BLOCK: [&str; 3] = ["OFFSET", "BYTES", "LENGTH"];

const ORPHAN: [&str; 7] = ["ID", "POOL", "KIND", "NAME", "SIZE", "MAY", "WHAT IT IS"];

/// A list without lines, one row a line whatever the terminal's width: made to be cut by tools too.
fn list<const N: usize>(header: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    for row in rows {
        table.add_row(row.map(|cell| clean(&cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt() + "\n"
}

/// One object: a field a line.
fn one<const N: usize>(names: [&str; N], values: [String; N]) -> String {
    names.iter().zip(values).map(|(name, value)| field(name, &value)).collect()
}

fn field(name: &str, value: &str) -> String {
    format!("{:<13}{}\n", format!("{name}:").to_lowercase(), clean(value))
}

fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn or_dash(text: Option<&str>) -> String {
    text.filter(|t| !t.is_empty()).unwrap_or("-").to_owned()
}

fn state(name: &str, reason: Option<&str>) -> String {
    reason.map_or_else(|| name.to_owned(), |reason| format!("{name} ({reason})"))
}

fn restored(r: &Restored) -> String {
    fn names<T: ToString>(names: &[T]) -> String {
        or_dash(Some(&names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")))
    }
    let mut text = field("made", &r.made.to_string());
    for (name, these) in [
        ("pools", names(&r.pools)),
        ("hosts", names(&r.hosts)),
        ("keys", names(&r.keys)),
        ("tokens", names(&r.tokens)),
        ("attachments", r.attachments.to_string()),
    ] {
        text += &field(name, &these);
    }
    for what in &r.closed {
        text += &field("closed", what);
    }
    text
}

fn reloaded(r: &Reloaded) -> String {
    if r.applied.is_empty() && r.after_restart.is_empty() {
        return "nothing changed\n".into();
    }
    let rows = |all: &[SettingChange], when: &str| -> Vec<[String; 4]> {
        let value = |v: &Option<String>| or_dash(v.as_deref());
        all.iter().map(|c| [c.key.clone(), value(&c.from), value(&c.to), when.to_owned()]).collect()
    };
    let all = [rows(&r.applied, "now"), rows(&r.after_restart, "after a restart")];
    list(["KEY", "FROM", "TO", "APPLIES"], all.into_iter().flatten())
}

fn system(s: &System) -> String {
    let mut state = match s.state {
        SystemState::Starting => "starting",
        SystemState::Ready => "ready",
        SystemState::Draining => "stopping",
    }
    .to_owned();
    if s.sim {
        state += " (simulated)";
    }
    let mut text = field("hostname", &s.hostname) + &field("id", &s.id.to_string());
    text += &field("state", &state);
    text += &field("version", &s.version);
    text += &field("kernel", &s.kernel);
    text += &field("started", &s.started.to_string());
    for (name, n) in
        [("pools", s.pools), ("volumes", s.volumes), ("hosts", s.hosts), ("attachments", s.attachments)]
    {
        text += &field(name, &n.to_string());
    }
    if s.alarms.is_empty() {
        text += &field("alarms", "none");
    }
    for alarm in &s.alarms {
        text += &field("alarm", &alarms::short(alarm));
    }
    text
}

fn disk(d: &Disk) -> [String; 9] {
    let usage = match &d.usage {
        DiskUsage::Blank => "blank".to_owned(),
        DiskUsage::Used(by) => format!("used by {by}"),
        DiskUsage::Data(what) => format!("has data: {what}"),
        DiskUsage::Unreadable(why) => format!("unreadable: {why}"),
    };
    let kind = if d.rotational { "hdd" } else { "ssd" };
    let model = or_dash(d.model.as_deref());
    let h = &d.health;
    let mut health = match h.state {
        // Why nothing is known is for who asks for all of it: in a list of virtual disks it is noise.
        DiskHealthState::Unknown => "-".to_owned(),
        DiskHealthState::Passed => "passed".to_owned(),
        DiskHealthState::Failed => state("FAILING", h.reason.as_deref()),
    };
    if let Some(degrees) = h.temperature {
        health += &format!(", {degrees} C");
    }
    for (n, what) in [(h.media_errors, "media errors"), (h.reallocated_sectors, "sectors replaced")] {
        if let Some(n) = n.filter(|n| *n > 0) {
            health += &format!(", {n} {what}");
        }
    }
    let wear = h.used_percent.map_or_else(|| "-".to_owned(), |p| format!("{p}%"));
    let (serial, by_id) = (or_dash(d.serial.as_deref()), or_dash(d.by_id.as_deref()));
    [d.name.clone(), d.size.to_string(), kind.into(), model, serial, health, wear, usage, by_id]
}

fn pool(p: &Pool) -> [String; 8] {
    let health = p.health.as_ref();
    let name = match (p.state, health.map(|h| h.state)) {
        (PoolState::Missing, _) => "missing",
        (_, Some(PoolHealthState::Degraded)) => "degraded",
        (_, Some(PoolHealthState::Failed)) => "failed",
        _ => "online",
    };
    let reason = p.reason.as_deref().or_else(|| health?.reason.as_deref());
    [
        p.name.to_string(),
        p.kind.as_str().into(),
        state(name, reason),
        p.volumes.to_string(),
        p.provisioned.to_string(),
        used(p),
        p.available.to_string(),
        p.total.to_string(),
    ]
}

/// With what that is of the total, and a word where somebody should look.
fn used(p: &Pool) -> String {
    let percent = (u128::from(p.used.0) * 100).checked_div(u128::from(p.total.0));
    let mark = match p.fill {
        PoolFill::Ok => "",
        PoolFill::Warning => ", warning",
        PoolFill::Full => ", full",
    };
    percent.map_or_else(|| p.used.to_string(), |n| format!("{} ({n}%{mark})", p.used))
}

/// How its disks are, and how far a pass over them is.
fn health(h: &PoolHealth) -> String {
    let mut text = String::new();
    if let Some(scan) = &h.scan {
        let kind = match scan.kind {
            PoolScanKind::Scrub => "scrub",
            PoolScanKind::Rebuild => "rebuild",
        };
        let ended = scan.ended.map(|t| format!(" {t:.0}")).unwrap_or_default();
        let far = match scan.state {
            PoolScanState::Running => format!("{}% done", scan.percent.unwrap_or(0)),
            PoolScanState::Finished => format!("ended{ended}"),
            PoolScanState::Stopped => format!("stopped{ended}"),
        };
        text += &field(kind, &format!("{far}, {} errors", scan.errors));
    }
    let disks = h.disks.iter().map(|d| {
        let name = d.was.as_ref().map_or_else(|| d.name.clone(), |was| format!("{} (was {was})", d.name));
        let errors = [d.read_errors, d.write_errors, d.checksum_errors].map(|n| n.to_string());
        let [read, write, checksum] = errors;
        [name, or_dash(d.part.as_deref()), d.state.clone(), read, write, checksum]
    });
    text + "\n" + &list(POOL_DISK, disks)
}

fn largest(p: &Pool) -> String {
    let metadata = p.metadata_percent.map(|m| field("metadata", &format!("{m}% full"))).unwrap_or_default();
    metadata
        + &field("thin up to", &p.largest_thin.to_string())
        + &field("thick up to", &p.largest_thick.to_string())
}

fn volume(v: &Volume) -> [String; 9] {
    let name = match v.state {
        VolumeState::Ready => "ready",
        VolumeState::Stuck => "stuck",
        VolumeState::Missing => "missing",
        VolumeState::Copying => "copying",
        VolumeState::Locked => "locked",
        VolumeState::Deleting => "deleting",
    };
    let far = v.progress.map(|p| format!("{} of {}", p.done, p.total));
    let space = match v.provisioning {
        Provisioning::Thin => "thin",
        Provisioning::Thick => "thick",
    };
    let hosts: Vec<&str> = v.hosts.iter().map(|h| h.as_str()).collect();
    [
        v.name.to_string(),
        v.id.to_string(),
        v.pool.to_string(),
        v.size.to_string(),
        v.filesystem.map_or(v.kind.as_str(), |f| f.as_str()).into(),
        space.into(),
        state(name, v.reason.as_deref().or(far.as_deref())),
        or_dash(Some(&hosts.join(","))),
        format!("{:.0}", v.created),
    ]
}

fn origin(v: &Volume) -> String {
    let Some(o) = &v.source else { return String::new() };
    let how = match o.mode {
        SourceMode::Linked => "linked to",
        SourceMode::Copied => "copied from",
    };
    field("source", &format!("{how} snapshot {} of volume {}", o.snapshot, o.volume))
}

fn encryption(v: &Volume) -> String {
    let Some(e) = v.encryption else { return String::new() };
    let whose = if e.key_of == v.id { String::new() } else { format!(", key of volume {}", e.key_of) };
    field("encrypted", &format!("unlock {}{whose}", e.unlock.as_str()))
}

/// What was set, one a line; of the others, that they were not.
fn properties(v: &Volume) -> String {
    let (mut text, mut unset) = (String::new(), Vec::new());
    for property in Property::ALL {
        match v.properties.get(*property) {
            Some(value) => text += &field(property.as_str(), &value),
            None => unset.push(property.as_str()),
        }
    }
    if !unset.is_empty() {
        text += &field("default", &unset.join(", "));
    }
    text
}

fn snapshot(s: &Snapshot) -> [String; 8] {
    let name = match s.state {
        SnapshotState::Ready => "ready",
        SnapshotState::Stuck => "stuck",
        SnapshotState::Deleting => "deleting",
    };
    [
        s.name.to_string(),
        s.id.to_string(),
        s.volume.to_string(),
        s.pool.to_string(),
        s.size.to_string(),
        state(name, s.reason.as_deref()),
        or_dash(s.group.as_ref().map(|g| g.as_str())),
        format!("{:.0}", s.created),
    ]
}

fn orphan(o: &Orphan) -> [String; 7] {
    let kind = match o.kind {
        OrphanKind::Volume => "volume",
        OrphanKind::Record => "record",
        OrphanKind::Foreign => "foreign",
        OrphanKind::Leftover => "leftover",
    };
    let actions: Vec<&str> = o
        .actions
        .iter()
        .map(|a| match a {
            OrphanAction::Adopt => "adopt",
            OrphanAction::Remove => "remove",
            OrphanAction::Ignore => "ignore",
        })
        .collect();
    [
        o.id.to_string(),
        or_dash(o.pool.as_ref().map(|p| p.as_str())),
        kind.into(),
        o.name.clone(),
        or_dash(o.size.map(|s| s.to_string()).as_deref()),
        actions.join(","),
        o.reason.clone(),
    ]
}

/// Pools of which nothing is known: an empty list would say that there is nothing in them.
fn unanswered(o: &Orphans) -> String {
    o.unanswered.iter().map(|u| format!("pool {} did not answer: {}\n", u.pool, clean(&u.reason))).collect()
}

fn dependants(s: &Snapshot) -> String {
    let paused = s.paused_us.map(|us| field("writers", &format!("waited {:.1} ms", us as f64 / 1000.0)));
    let volumes = s.dependants.iter().map(|id| field("dependant", &id.to_string()));
    paused.into_iter().chain(volumes).collect()
}

const HOST: [&str; 5] = ["NAME", "TENANT", "KNOWN BY", "SECRET", "VOLUMES"];
const ZONE: [&str; 7] = ["NAME", "TENANT", "NETWORKS", "ACCESS", "SQUASH", "SECURITY", "VOLUMES"];

fn host(h: &Host) -> [String; 5] {
    // The whole names are too long for a line; they are shown with the one host.
    let by = [(h.nqn.is_some(), "nvme"), (h.iqn.is_some(), "iscsi"), (!h.addresses.is_empty(), "nfs")];
    let by: Vec<&str> = by.into_iter().filter(|(known, _)| *known).map(|(_, name)| name).collect();
    let nvme = h.authentication.map(|a| match a {
        Authentication::Required { mutual: false, .. } => "nvme",
        Authentication::Required { mutual: true, .. } => "nvme mutual",
        Authentication::Lost => "nvme lost",
    });
    let iscsi = h.chap.as_ref().map(|c| match c {
        Chap::Required { target_user: None, .. } => "iscsi",
        Chap::Required { target_user: Some(_), .. } => "iscsi mutual",
        Chap::Lost => "iscsi lost",
    });
    let tls = h.tls.map(|t| match t {
        Tls::Required { .. } => "tls",
        Tls::Lost => "tls lost",
    });
    let secrets: Vec<&str> = nvme.into_iter().chain(tls).chain(iscsi).collect();
    let secret = if secrets.is_empty() { "none".into() } else { secrets.join(", ") };
    [h.name.to_string(), h.tenant.to_string(), by.join(", "), secret, h.volumes.len().to_string()]
}

fn known_by(h: &Host) -> String {
    let nqn = h.nqn.iter().map(|n| field("NQN", n.as_str()));
    let iqn = h.iqn.iter().map(|n| field("IQN", n.as_str()));
    nqn.chain(iqn).chain(h.addresses.iter().map(|a| field("address", &a.to_string()))).collect()
}

fn zone(z: &Zone) -> [String; 7] {
    let networks: Vec<String> = z.networks.iter().map(ToString::to_string).collect();
    let access = if z.read_only { "read only" } else { "read, write" };
    let (squash, volumes) = (z.squash.as_str().into(), z.volumes.len().to_string());
    [
        z.name.to_string(),
        z.tenant.to_string(),
        networks.join(", "),
        access.into(),
        squash,
        z.security.to_string(),
        volumes,
    ]
}

const TOKEN: [&str; 6] = ["NAME", "TENANT", "POOLS", "MAY", "CREATED", "BY"];

fn token(t: &Token) -> [String; 6] {
    // Enough of it to tell it from others by eye.
    let by = t.fingerprint.as_ref().map(|f| format!("{}…", f.get(..23).unwrap_or(f)));
    let by = by.unwrap_or_else(|| "secret".into());
    let Some(scope) = &t.scope else {
        return [t.name.to_string(), "all".into(), "all".into(), "everything".into(), String::new(), by];
    };
    let pools: Vec<_> = scope.pools.iter().map(|p| p.as_str()).collect();
    let pools = if pools.is_empty() { "all".into() } else { pools.join(", ") };
    let has = |all: &[Verb]| all.len() == scope.verbs.len() && all.iter().all(|v| scope.verbs.contains(v));
    let may = match () {
        () if scope.verbs.is_empty() => "look".into(),
        () if has(Verb::CSI) => "csi".into(),
        () if has(Verb::ALL) => "all".into(),
        () => scope.verbs.iter().map(|v| v.as_str()).collect::<Vec<_>>().join(", "),
    };
    let created = t.created.map(|at| format!("{at:.0}")).unwrap_or_default();
    [t.name.to_string(), scope.tenant.to_string(), pools, may, created, by]
}

fn volumes_of(volumes: &[VolumeId]) -> String {
    volumes.iter().map(|id| field("volume", &id.to_string())).collect()
}

fn attachment(a: &Attachment) -> String {
    let mut text = field("volume", &a.volume.to_string()) + &field("host", a.host.as_str());
    let fields = match &a.access {
        Access::Nvme(n) => vec![
            ("nqn", n.nqn.to_string()),
            ("host nqn", n.host_nqn.to_string()),
            ("namespace", n.nsid.to_string()),
            ("uuid", n.uuid.to_string()),
        ],
        Access::Iscsi(i) => vec![
            ("iqn", i.iqn.to_string()),
            ("host iqn", i.host_iqn.to_string()),
            ("lun", i.lun.to_string()),
            ("wwn", i.wwn.clone()),
        ],
        Access::Nfs(n) => {
            let networks: Vec<String> = n.networks.iter().map(ToString::to_string).collect();
            let squash = n.squash.as_str().to_string();
            let security = n.security.to_string();
            vec![
                ("path", n.path.clone()),
                ("let in", networks.join(", ")),
                ("squash", squash),
                ("security", security),
            ]
        }
    };
    text.extend(fields.iter().map(|(name, value)| field(name, value)));
    if a.read_only {
        text += &field("access", "read only");
    }
    text += &field("size", &a.size.to_string());
    text.push_str("\nOn the host:\n");
    for command in connect_commands(a) {
        text += &format!("  {}\n", clean(&command));
    }
    text
}

/// The standard tools' commands for each portal, ready to be pasted.
fn connect_commands(a: &Attachment) -> Vec<String> {
    match &a.access {
        Access::Nvme(n) => {
            let secrets = match n.authentication {
                Some(Authentication::Required { mutual: true, .. }) => {
                    " --dhchap-secret=<the host's> --dhchap-ctrl-secret=<the appliance's>"
                }
                Some(Authentication::Required { mutual: false, .. }) => " --dhchap-secret=<the host's>",
                Some(Authentication::Lost) | None => "",
            };
            let connect = |p: &Portal| {
                let (by, address, port) = (p.transport.as_str(), &p.address, p.port);
                let tls = if p.tls { " --tls" } else { "" };
                format!(
                    "nvme connect -t {by} -a {address} -s {port} -n {} -q {}{secrets}{tls}",
                    n.nqn, n.host_nqn
                )
            };
            // Once a boot; with an identity of version 1 it is known however the host's tools derive it.
            let key = n.tls.map(|_| {
                let (subsystem, host) = (&n.nqn, &n.host_nqn);
                format!(
                    "nvme check-tls-key --subsysnqn={subsystem} --hostnqn={host} --identity=1 --insert \
                     --keydata=<the host's>"
                )
            });
            key.into_iter().chain(n.portals.iter().map(connect)).collect()
        }
        Access::Iscsi(i) => i.portals.iter().flat_map(|p| log_in_commands(i, p)).collect(),
        Access::Nfs(n) => {
            let mode = a.read_only.then(|| "ro".to_string());
            let security = n.security.flavours().next().filter(|f| *f != Flavour::Sys);
            let options: Vec<String> = mode.into_iter().chain(security.map(|f| format!("sec={f}"))).collect();
            let options =
                if options.is_empty() { String::new() } else { format!(" -o {}", options.join(",")) };
            let mount = |address: &str| format!("mount -t nfs4{options} {address}:{} /mnt", n.path);
            match security {
                // To Kerberos it has one name, wherever it is reached.
                Some(_) => vec![mount("<the name that is in the keytab>")],
                None => n.portals.iter().map(|p| mount(&bracketed(&p.address))).collect(),
            }
        }
    }
}

/// iscsiadm's for one portal: make the record, give it the secrets, log in.
fn log_in_commands(i: &IscsiAccess, p: &Portal) -> Vec<String> {
    let node = format!("iscsiadm -m node -T {} -p {}:{}", i.iqn, bracketed(&p.address), p.port);
    let mut commands = vec![format!("{node} -o new")];
    let mut set = |name: &str, value: &str| {
        commands.push(format!("{node} -o update -n node.session.auth.{name} -v {value}"));
    };
    if let Some(Chap::Required { user, target_user }) = &i.chap {
        set("authmethod", "CHAP");
        set("username", user.as_str());
        set("password", "<the host's>");
        if let Some(target) = target_user {
            set("username_in", target.as_str());
            set("password_in", "<the appliance's>");
        }
    }
    commands.push(format!("{node} -l"));
    commands
}

/// IPv6 addresses are bracketed where a colon follows.
fn bracketed(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_string() }
}

/// An event as a line.
pub fn event(e: &Event, format: Format) -> String {
    if format == Format::Json {
        return serde_json::to_string(e).unwrap_or_default() + "\n";
    }
    let mut line = format!("{:.3}  {:<16}", e.time, e.kind.as_str());
    for (name, value) in [
        ("pool", e.pool.as_ref().map(ToString::to_string)),
        ("volume", e.volume.as_ref().map(ToString::to_string)),
        ("snapshot", e.snapshot.as_ref().map(ToString::to_string)),
        ("host", e.host.as_ref().map(ToString::to_string)),
    ] {
        line += &value.map(|v| format!(" {name}={v}")).unwrap_or_default();
    }
    line += &e.detail.as_ref().map(|d| format!(" {}", clean(d))).unwrap_or_default();
    line.trim_end().to_owned() + "\n"
}

/// An error as lines on standard error.
pub fn problem(p: &Problem) -> String {
    let mut text = format!("orlop: {}\n", clean(&p.detail));
    for (name, value) in [("field", &p.field), ("have", &p.have), ("want", &p.want)] {
        if let Some(value) = value {
            text += &format!("  {name}: {}\n", clean(value));
        }
    }
    for dependant in &p.dependants {
        text += &format!("  dependant: {}\n", clean(dependant));
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use orlop_api::{ErrorKind, NvmeAccess};

    #[test]
    fn an_attachment_tells_how_to_connect() {
        let a = Attachment {
            volume: "0190c0de-1234-7abc-8def-0123456789ab".parse().unwrap(),
            host: "worker-1".parse().unwrap(),
            read_only: false,
            size: orlop_api::ByteSize(1 << 30),
            access: Access::Nvme(NvmeAccess {
                nqn: "nqn.2026-11.dev.orlop:x".parse().unwrap(),
                host_nqn: "nqn.2014-08.org.nvmexpress:uuid:y".parse().unwrap(),
                authentication: None,
                tls: None,
                portals: vec![Portal::tcp("192.0.2.1", 4420)],
                nsid: 1,
                uuid: uuid::Uuid::nil(),
                nguid: "0".repeat(32),
                serial: "s".into(),
            }),
        };
        let text = answer(&Answer::Attachment(a), Format::Table);
        assert!(text.ends_with(
            "On the host:\n  nvme connect -t tcp -a 192.0.2.1 -s 4420 -n nqn.2026-11.dev.orlop:x \
             -q nqn.2014-08.org.nvmexpress:uuid:y\n"
        ));
    }

    #[test]
    fn problems_have_their_lines_and_no_control_characters() {
        let mut p = Problem::new(ErrorKind::Conflict, "bad\u{1b}[2J");
        p.field = Some("size".into());
        p.have = Some("1".into());
        p.dependants = vec!["host/a".into()];
        assert_eq!(problem(&p), "orlop: bad\u{fffd}[2J\n  field: size\n  have: 1\n  dependant: host/a\n");
    }

    #[test]
    fn a_pool_tells_how_full_it_is() {
        let p = |used: u64, fill| {
            let pool = serde_json::json!({
                "name": "tank", "kind": "sim", "state": "online", "granularity": 4096, "total": 100u64 << 30,
                "used": used << 30, "available": (100 - used) << 30, "provisioned": 0, "fill": fill,
                "largest_thin": 100u64 << 30, "largest_thick": 15u64 << 30, "warn_percent": 80,
                "stop_percent": 95, "volumes": 0, "observed": "2026-11-20T12:00:00Z",
            });
            serde_json::from_value::<Pool>(pool).unwrap()
        };
        let list = answer(&Answer::Pools(vec![p(20, "ok"), p(80, "warning"), p(96, "full")]), Format::Table);
        for mark in ["20 GiB (20%) ", "80 GiB (80%, warning) ", "96 GiB (96%, full) "] {
            assert!(list.contains(mark), "{mark}: {list}");
        }
        let one = answer(&Answer::Pool(p(80, "warning")), Format::Table);
        assert!(one.ends_with("thin up to:  100 GiB\nthick up to: 15 GiB\n"), "{one}");
    }

    #[test]
    fn orphans_tell_what_may_be_done_and_who_did_not_answer() {
        let orphans = serde_json::json!({
            "items": [{
                "id": "0123456789abcdef.tank", "pool": "tank", "kind": "foreign", "name": "a\u{1b}b",
                "size": 1 << 30, "reason": "is not a file of a pool", "actions": ["adopt", "ignore"],
            }],
            "unanswered": [{"pool": "far", "reason": "it took too long"}],
        });
        let text = answer(&Answer::Orphans(serde_json::from_value(orphans).unwrap()), Format::Table);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("ID ") && lines[0].trim_end().ends_with("WHAT IT IS"), "{text}");
        for cell in
            ["0123456789abcdef.tank  tank  foreign  a\u{fffd}b ", "1 GiB  adopt,ignore  is not a file"]
        {
            assert!(lines[1].contains(cell), "{text}");
        }
        assert_eq!(lines[2], "pool far did not answer: it took too long");
    }

    #[test]
    fn an_empty_list_is_its_header() {
        assert_eq!(
            answer(&Answer::Hosts(vec![]), Format::Table).trim_end(),
            "NAME  TENANT  KNOWN BY  SECRET  VOLUMES"
        );
        assert_eq!(answer(&Answer::Hosts(vec![]), Format::Json), "{\n  \"items\": []\n}\n");
    }
}
