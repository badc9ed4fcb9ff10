//! `orlop-csi`: the CSI driver of Orlop appliances.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use orlop_api::HostName;
use orlop_csi::appliances::Appliances;
use orlop_csi::config::{Config, InlineConfig};
use orlop_csi::controller::Controller;
use orlop_csi::evictor::Evictor;
use orlop_csi::identity::Identity;
use orlop_csi::node::{Node, NodeConfig};
use orlop_csi::serve;
use orlop_csi::telemetry::Telemetry;
use tokio::signal::unix::{SignalKind, signal};

/// What runs here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// The controller: one in a cluster
    Controller,
    /// A node's part: one on each node
    Node,
    /// Both, for a cluster of one node
    All,
    /// Deletes claims of evicted pods that are annotated so: one in a cluster, if it is wanted
    Evictor,
}

/// The CSI driver of Orlop appliances.
#[derive(Debug, Parser)]
#[command(name = "orlop-csi", version, about)]
struct Cli {
    /// What runs here
    #[arg(long, value_enum)]
    mode: Mode,
    /// The socket on which the sidecars call
    #[arg(long, env = "CSI_ENDPOINT", value_name = "SOCKET", default_value = "unix:///csi/csi.sock")]
    endpoint: String,
    /// Where metrics and health are served by HTTP, ADDRESS:PORT: nowhere unless given
    #[arg(long, env = "ORLOP_CSI_METRICS", value_name = "ADDRESS")]
    metrics: Option<SocketAddr>,
    /// Which appliances there are
    #[arg(long, env = "ORLOP_CSI_CONFIG", value_name = "FILE", default_value = "/etc/orlop-csi/config.toml")]
    config: PathBuf,
    /// Node: its name in Kubernetes
    #[arg(long, env = "ORLOP_CSI_NODE", value_name = "NAME")]
    node: Option<HostName>,
    /// Node: an address that its NFS client calls from; may be given several times
    #[arg(long, env = "ORLOP_CSI_ADDRESSES", value_name = "ADDRESS", value_delimiter = ',')]
    address: Vec<IpAddr>,
    /// Node: a label that says where it is, KEY=VALUE; may be given several times
    #[arg(long, env = "ORLOP_CSI_SEGMENTS", value_name = "KEY=VALUE", value_delimiter = ',', value_parser = segment)]
    segment: Vec<(String, String)>,
    /// Node: where it keeps what is staged
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet/plugins/csi.orlop.dev/staged")]
    state: PathBuf,
    /// Node: on which appliances pods may have ephemeral inline volumes; on none unless given
    #[arg(long, value_name = "FILE")]
    inline: Option<PathBuf>,
    /// Node: the host's root directory, as it is seen here
    #[arg(long, value_name = "DIR", default_value = "/host")]
    host_root: PathBuf,
}

fn segment(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("it must be KEY=VALUE")?;
    Ok((key.into(), value.into()))
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Unless they are named, the libraries below say nothing of each frame, whatever is asked of the driver.
    let asked = std::env::var("ORLOP_CSI_LOG").unwrap_or_else(|_| "info".into());
    let filter =
        match tracing_subscriber::EnvFilter::try_new(format!("h2=info,hyper=info,tower=info,{asked}")) {
            Ok(filter) => filter,
            Err(error) => {
                eprintln!("orlop-csi: ORLOP_CSI_LOG={asked:?}: {error}");
                return ExitCode::FAILURE;
            }
        };
    tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let done = runtime.context("starting threads").and_then(|runtime| runtime.block_on(run(cli)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "stopped");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<()> {
    if cli.mode == Mode::Evictor {
        return evict(cli.metrics).await;
    }
    let path = serve::path_of(&cli.endpoint)?;
    let (mut topology, mut controller, mut node) = (!cli.segment.is_empty(), None, None);
    if cli.mode != Mode::Node {
        let config = Config::load(&cli.config).map_err(anyhow::Error::msg)?;
        let appliances = Arc::new(Appliances::new(config));
        topology |= appliances.have_topology();
        controller = Some(Controller::new(appliances));
    }
    if cli.mode != Mode::Controller {
        let config = NodeConfig {
            name: cli.node.context("--node is missing: the node's name in Kubernetes")?,
            addresses: cli.address,
            // A node that has no such label says so by an empty value.
            segments: cli.segment.into_iter().filter(|(_, value)| !value.is_empty()).collect(),
            state: cli.state,
            inline: match &cli.inline {
                Some(file) => InlineConfig::load(file).map_err(anyhow::Error::msg)?,
                None => InlineConfig::default(),
            },
            host_root: cli.host_root,
        };
        let this = Node::new(config).map_err(anyhow::Error::msg)?;
        tracing::info!(id = %this.id(), "this node");
        tokio::spawn(this.clone().delete_later());
        node = Some(this);
    }
    let identity = Identity { controller: controller.is_some(), topology };
    let stop = stop()?;
    let telemetry = Telemetry::default();
    let calls = serve::serve(&path, identity, controller, node, telemetry.clone(), stop);
    let Some(at) = cli.metrics else { return calls.await };
    tokio::select! {
        done = calls => done,
        // It ends by an error alone, and without its health the driver would be ended from outside.
        done = telemetry.serve(at) => done,
    }
}

/// Ends when this is told to stop.
fn stop() -> Result<impl Future<Output = ()>> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        tracing::info!("stopping");
    })
}

async fn evict(metrics: Option<SocketAddr>) -> Result<()> {
    let stop = stop()?;
    let evictor = Evictor::of_cluster().await.context("finding the cluster")?;
    let health = async {
        match metrics {
            Some(at) => Telemetry::default().serve(at).await,
            None => std::future::pending().await,
        }
    };
    tracing::info!("watching for evicted pods");
    tokio::select! {
        done = evictor.run() => done.context("watching pods"),
        done = health => done,
        () = stop => Ok(()),
    }
}
