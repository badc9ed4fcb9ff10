//! The unix socket on which the sidecars call.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::controller::Controller;
use crate::csi::controller_server::ControllerServer;
use crate::csi::group_controller_server::GroupControllerServer;
use crate::csi::identity_server::IdentityServer;
use crate::csi::node_server::NodeServer;
use crate::csi::snapshot_metadata_server::SnapshotMetadataServer;
use crate::identity::Identity;
use crate::node::Node;
use crate::telemetry::Telemetry;

/// How long calls that are under way may take once it is to stop.
const GRACE: Duration = Duration::from_secs(25);

/// The path of an endpoint as Kubernetes writes it: `unix:///csi/csi.sock`, or the path itself.
pub fn path_of(endpoint: &str) -> Result<PathBuf> {
    let path =
        endpoint.strip_prefix("unix://").or_else(|| endpoint.strip_prefix("unix:")).unwrap_or(endpoint);
    if !path.starts_with('/') {
        bail!("{endpoint:?} is no unix socket: unix:///csi/csi.sock");
    }
    Ok(path.into())
}

fn listen(path: &Path) -> Result<UnixListener> {
    // One that a process of before has left. What is something else stays.
    match std::fs::symlink_metadata(path) {
        Ok(m) if m.file_type().is_socket() => {
            std::fs::remove_file(path).context("removing the old socket")?
        }
        Ok(_) => bail!("{} is there, and no socket", path.display()),
        Err(_) => {}
    }
    UnixListener::bind(path).with_context(|| format!("listening at {}", path.display()))
}

/// Serves until `stop` ends, and then what is under way.
pub async fn serve(
    path: &Path,
    identity: Identity,
    controller: Option<Controller>,
    node: Option<Node>,
    telemetry: Telemetry,
    stop: impl Future<Output = ()>,
) -> Result<()> {
    let incoming = UnixListenerStream::new(listen(path)?);
    let groups = controller.clone().map(GroupControllerServer::new);
    let metadata = controller.clone().map(SnapshotMetadataServer::new);
    let router = Server::builder()
        .layer(telemetry)
        .add_service(IdentityServer::new(identity))
        .add_optional_service(controller.map(ControllerServer::new))
        .add_optional_service(groups)
        .add_optional_service(metadata)
        .add_optional_service(node.map(NodeServer::new));
    tracing::info!(socket = %path.display(), "serving");
    let (stopping, stopped) = tokio::sync::oneshot::channel::<()>();
    let signal = async move {
        stop.await;
        let _ = stopping.send(());
    };
    let served = router.serve_with_incoming_shutdown(incoming, signal);
    let too_long = async move {
        // Never told to: then it is served for ever.
        if stopped.await.is_err() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        served = served => served.context("serving")?,
        () = too_long => tracing::warn!("calls that are under way are not waited for any longer"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn endpoints_are_paths() {
        for endpoint in ["unix:///csi/csi.sock", "unix:/csi/csi.sock", "/csi/csi.sock"] {
            assert_eq!(path_of(endpoint).unwrap(), Path::new("/csi/csi.sock"));
        }
        for bad in ["", "csi.sock", "tcp://127.0.0.1:1", "unix://csi.sock"] {
            path_of(bad).unwrap_err();
        }
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("csi.sock");
        std::fs::write(&path, "x").unwrap();
        listen(&path).unwrap_err();
        assert_eq!(std::fs::read(&path).unwrap(), b"x");
        std::fs::remove_file(&path).unwrap();
        drop(listen(&path).unwrap());
        listen(&path).unwrap();
    }
}
