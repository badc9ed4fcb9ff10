//! `orlopd`: reads the configuration, starts engine and API, tells systemd, and stops when it is told.
//!
//! Called by systemd, or by a person with `--sim`. Does nothing itself but put the parts together and
//! turn errors into messages and exit codes: 0 for a stop that was asked for, 1 for a failure, 2 for a
//! wrong command line.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use orlopd::config::{self, Settings};
use orlopd::engine::{Action, Engine, EngineSettings, Principal};
use orlopd::http::{Certificate, Listeners, Server, UnixListen};
use orlopd::kernel::exec;
use orlopd::kernel::uevent::DiskWatch;
use orlopd::pool::{KeyRing, PoolEnv};
use orlopd::running::{self, Running};
use orlopd::serving;
use orlopd::target::keys::HostKeys;
use orlopd::telemetry::{self, Dropped, Level, Metrics};
use orlopd::token;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// The Orlop storage daemon.
#[derive(Debug, Parser)]
#[command(name = "orlopd", version, about)]
struct Args {
    /// Configuration file; drop-ins are looked for beside it, in FILE.d
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the effective settings, or what is wrong with them, and exit
    #[arg(long)]
    check_config: bool,
    /// Simulate pools and targets: no privileges needed, nothing of the machine is touched
    #[arg(long)]
    sim: bool,
    /// With --sim: where to keep everything [default: $XDG_STATE_HOME/orlop-sim]
    #[arg(long, value_name = "DIR", requires = "sim")]
    state: Option<PathBuf>,
    /// With --sim: the unix socket [default: orlopd.sock in the state directory]
    #[arg(long, value_name = "PATH", requires = "sim")]
    socket: Option<PathBuf>,
    /// With --sim: address for TLS, or "none"; may be given more than once [default: 127.0.0.1:8443]
    #[arg(long, value_name = "ADDR", requires = "sim")]
    listen: Vec<String>,
}

/// How much more time systemd is asked for while recovery goes on.
const EXTEND: Duration = Duration::from_secs(60);
/// How long reading the configuration anew may take.
const RELOAD: Duration = Duration::from_secs(30);
/// How long connections may take to end after everything else has.
const GOODBYE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let args = Args::parse();
    let settings = match settings(&args) {
        Ok(settings) => settings,
        Err(e) => return failed(&e),
    };
    if args.check_config {
        print!("{settings}");
        return ExitCode::SUCCESS;
    }
    match start(args, &settings) {
        Ok(End::Stopped) => ExitCode::SUCCESS,
        Ok(End::Anew) => failed(&anyhow::Error::from(exec::anew()).context("cannot start anew")),
        Err(e) => failed(&e),
    }
}

/// Why the daemon ended.
enum End {
    /// Somebody asked for it.
    Stopped,
    /// It is to be started again: its journal must be read from the start.
    Anew,
}

/// Two listeners with their caps, the journal and open volumes need more descriptors than the 1,024 that
/// a process is commonly given; what it may take at most is the administrator's to say.
fn more_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

fn failed(e: &anyhow::Error) -> ExitCode {
    for wrong in each(e) {
        eprintln!("orlopd: {wrong}");
    }
    ExitCode::FAILURE
}

/// What is wrong: everything, where that is the configuration.
fn each(e: &anyhow::Error) -> Vec<String> {
    match e.downcast_ref::<config::ConfigErrors>() {
        Some(wrong) => wrong.0.iter().map(|e| orlopd::engine::error::chain(e)).collect(),
        None => vec![format!("{e:#}")],
    }
}

/// The configuration; in a simulation defaults that need no privileges, and the command line's.
fn settings(args: &Args) -> anyhow::Result<Settings> {
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let mut settings = match (&args.config, args.sim) {
        (Some(file), _) => {
            if !file.exists() {
                bail!("{}: does not exist", file.display());
            }
            config::load(file, credentials.as_deref())?
        }
        (None, false) => config::load(Path::new(config::DEFAULT_PATH), credentials.as_deref())?,
        (None, true) => Settings::default(),
    };
    if args.sim {
        simulate(args, &mut settings)?;
    }
    Ok(settings)
}

fn simulate(args: &Args, settings: &mut Settings) -> anyhow::Result<()> {
    if serving::by_ctl(settings) {
        bail!(
            "CTL is not simulated: leave iscsi_portals and nvme_portals of [ctl] out, or start without --sim"
        );
    }
    let state = match &args.state {
        Some(dir) => std::path::absolute(dir)?,
        None => {
            let home = std::env::var_os("XDG_STATE_HOME")
                .map(PathBuf::from)
                .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")));
            home.context("neither XDG_STATE_HOME nor HOME is set: give --state")?.join("orlop-sim")
        }
    };
    settings.api.socket = match &args.socket {
        Some(path) => std::path::absolute(path)?,
        None => state.join("orlopd.sock"),
    };
    settings.api.token_console = None;
    settings.state_dir = state;
    let listen = match args.listen.as_slice() {
        [] => vec!["127.0.0.1:8443".to_owned()],
        [none] if none == "none" => Vec::new(),
        list => list.to_vec(),
    };
    settings.api.listen = listen
        .iter()
        .map(|a| {
            a.parse::<SocketAddr>().with_context(|| format!("--listen {a}: must be ADDRESS:PORT or none"))
        })
        .collect::<Result<_, _>>()?;
    Ok(())
}

fn start(args: Args, settings: &Settings) -> anyhow::Result<End> {
    let dropped = Dropped::default();
    // Dropped last, so that the reasons of a failure are written.
    let (_log, level) = telemetry::init(&settings.log, &settings.traces, &dropped)?;
    std::panic::set_hook(Box::new(|panic| {
        let at = panic.location().map(ToString::to_string).unwrap_or_default();
        let payload = panic.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let what = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("?");
        tracing::error!(at, what, "panic");
    }));
    more_descriptors();
    let workers = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 4);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .thread_name("api")
        .enable_all()
        .build()
        .context("the runtime did not start")?;
    let ended = runtime.block_on(Box::pin(run(args, settings, level, dropped)));
    // A lane's job that hangs in the kernel must not keep the process: its intent is in the journal.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

async fn run(args: Args, settings: &Settings, level: Level, dropped: Dropped) -> anyhow::Result<End> {
    let sim = args.sim;
    // Before anything else, so that no signal finds the default action.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;

    let metrics = Arc::new(Metrics::new(dropped));
    let state_dir = &settings.state_dir;
    if let Err(e) = make_dir(state_dir, 0o700) {
        // What follows does without what can't be kept.
        tracing::error!(error = format!("{e:#}"), "no state directory");
    }
    let source = Box::new(move || self::settings(&args).map_err(|e| each(&e)));
    let running = Running::new(settings, level, source);
    let engine =
        Engine::open(engine_settings(sim, settings, &running, &metrics)).await.context("cannot start")?;
    let made = token::ensure_first(&engine, state_dir, credential().as_deref()).await?;

    let (stop, stopped) = watch::channel(false);
    let server = Server::new(engine.clone(), metrics, running.http(), stopped)?;
    let listeners = bind(settings, engine.refusal().is_some())?;
    let serving = tokio::spawn(listeners.serve(server, GOODBYE));
    if let (Some(token), Some(console)) = (&made, &settings.api.token_console) {
        token::show(token, console, state_dir);
    }

    let told = engine.clone();
    let _disks = (!sim).then(|| DiskWatch::start(move |events| told.disks_changed(events))).transpose()?;

    notify(&[NotifyState::Status("starting: importing pools and restoring exports")]);
    let watchdog = tokio::spawn(watchdog(engine.clone()));
    let (reason, end) = {
        let recovery = engine.recover();
        tokio::pin!(recovery);
        let mut ready = false;
        let mut still = tokio::time::interval(EXTEND / 2);
        loop {
            tokio::select! {
                // Every wait in recovery has a deadline of its own, so it goes on as long as this is said.
                _ = still.tick(), if !ready => {
                    notify(&[NotifyState::ExtendTimeoutUsec(EXTEND.as_micros() as u32)]);
                }
                done = recovery.as_mut(), if !ready => {
                    done.context("recovery failed")?;
                    ready = true;
                    tracing::info!(version = env!("CARGO_PKG_VERSION"), sim, "ready");
                    notify(&[NotifyState::Ready, NotifyState::Status("ready")]);
                }
                _ = terminate.recv() => break ("SIGTERM", End::Stopped),
                _ = interrupt.recv() => break ("SIGINT", End::Stopped),
                () = engine.anew() => break ("the journal can be written again", End::Anew),
                // One that comes earlier is kept by the stream until then.
                _ = hangup.recv(), if ready => drop(tokio::spawn(reload(engine.clone()))),
            }
        }
    };

    tracing::info!(reason, "stopping: no new changes, targets go on serving");
    if matches!(end, End::Stopped) {
        notify(&[NotifyState::Stopping, NotifyState::Status("stopping: finishing changes under way")]);
    }
    let left = engine.drain(running.drain()).await;
    if left > 0 {
        tracing::warn!(left, "changes are still under way: they are settled at the next start");
    }
    stop.send_replace(true);
    if serving.await.is_err() {
        tracing::error!("the API ended by a panic");
    }
    watchdog.abort();
    tracing::info!("stopped");
    Ok(end)
}

/// SIGHUP: the same as `orlop system reload`. What comes of it is in the log, an event, and an alarm if it is wrong.
async fn reload(engine: Engine) {
    let who = Principal::admin("signal:hup");
    // The door has logged how it ended.
    let _ = engine.submit(who, Action::Reload, RELOAD).await;
}

/// How long the kernel target may take for one volume.
const TARGET_DEADLINE: Duration = Duration::from_secs(15);
/// How long putting one object right may take, after a failure or at start.
const SETTLE_DEADLINE: Duration = Duration::from_secs(60);
/// Jobs that may wait in one lane.
const LANE_DEPTH: usize = 1024;

fn engine_settings(
    sim: bool,
    settings: &Settings,
    running: &Running,
    metrics: &Arc<Metrics>,
) -> EngineSettings {
    let host_keys = HostKeys::default();
    let targets = serving::targets(sim, settings, &host_keys);
    let keys = KeyRing::default();
    EngineSettings {
        state_dir: settings.state_dir.clone(),
        keys: keys.clone(),
        host_keys,
        sim,
        prefix: settings.nvmet.nqn_prefix.clone(),
        targets,
        pools: Arc::new(PoolEnv {
            mounts: settings.state_dir.join("pools"),
            simulated: sim,
            volumes: settings.state_dir.join("volumes"),
            keys,
            ..PoolEnv::default()
        }),
        pool_threads: settings.limits.pool_threads,
        fill: running::fill(settings),
        lane_depth: LANE_DEPTH,
        target_deadline: TARGET_DEADLINE,
        settle_deadline: SETTLE_DEADLINE,
        quotas: running::quotas(settings),
        configuration: Arc::new(running.clone()),
        metrics: Arc::clone(metrics),
    }
}

/// `unwritten`: nothing can be written to the state directory.
fn bind(settings: &Settings, unwritten: bool) -> anyhow::Result<Listeners> {
    let api = &settings.api;
    let certificate = match api.listen.as_slice() {
        [] => None,
        addresses => {
            let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            match Certificate::ensure(&settings.state_dir.join("tls"), hostname.trim()) {
                Ok(certificate) => {
                    tracing::info!(sha256 = certificate.fingerprint, ?addresses, "serving TLS");
                    Some(certificate)
                }
                Err(e) if unwritten => {
                    let error = orlopd::engine::error::chain(&e);
                    tracing::error!(
                        error,
                        "there is no certificate and none can be kept: nothing is served by TLS"
                    );
                    None
                }
                Err(e) => return Err(e.into()),
            }
        }
    };
    if let Some(dir) = api.socket.parent() {
        make_dir(dir, 0o755)?;
    }
    let unix = UnixListen { path: api.socket.clone(), group: api.socket_group.clone() };
    let addresses = if certificate.is_some() { api.listen.as_slice() } else { &[] };
    let listeners = Listeners::bind(Some(&unix), addresses, certificate.as_ref())?;
    tracing::info!(socket = %api.socket.display(), "serving the unix socket");
    Ok(listeners)
}

/// Makes a directory and its parents; one that is there keeps its mode.
fn make_dir(dir: &Path, mode: u32) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(mode);
    builder.create(dir).with_context(|| format!("{}: cannot be made", dir.display()))
}

/// The first token as systemd hands it over.
fn credential() -> Option<PathBuf> {
    let dir = std::env::var_os("CREDENTIALS_DIRECTORY")?;
    Some(PathBuf::from(dir).join("orlop.token"))
}

/// Tells systemd that the daemon lives, as long as its lanes and its committer do. This task also proves
/// that the runtime runs.
async fn watchdog(engine: Engine) {
    let Some(interval) = sd_notify::watchdog_enabled() else { return };
    let mut tick = tokio::time::interval(interval / 2);
    loop {
        tick.tick().await;
        if engine.alive() {
            notify(&[NotifyState::Watchdog]);
        } else {
            tracing::error!("a thread of the engine is dead: leaving the restart to the watchdog");
        }
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd cannot be told");
    }
}
