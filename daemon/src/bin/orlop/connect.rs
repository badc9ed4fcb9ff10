//! Which daemon to talk to, and with what credential.
//!
//! A token comes from a file alone: an argument or an environment variable is seen by other processes.

use std::path::PathBuf;

use clap::Args;
use orlop_api::client::{Client, Result};
use orlop_api::{ErrorKind, Problem};

/// Where the daemon is.
#[derive(Debug, Args)]
pub struct Options {
    /// The daemon's unix socket
    #[arg(
        long,
        global = true,
        env = "ORLOP_SOCKET",
        value_name = "PATH",
        default_value = "/run/orlop/orlopd.sock"
    )]
    socket: PathBuf,
    /// An appliance over the network, https://HOST:8443; goes before --socket
    #[arg(long, global = true, env = "ORLOP_URL", value_name = "URL")]
    url: Option<String>,
    /// With --url: the file that holds the token
    #[arg(long, global = true, env = "ORLOP_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// With --url: the client certificate that is a token. It counts before --token-file
    #[arg(long, global = true, env = "ORLOP_CERT", value_name = "FILE")]
    cert: Option<PathBuf>,
    /// With --cert: the file that holds its key
    #[arg(long, global = true, env = "ORLOP_KEY", value_name = "FILE")]
    key: Option<PathBuf>,
    /// With --url: the appliance's certificate (tls/cert.pem of its state directory) or an authority's
    #[arg(long, global = true, env = "ORLOP_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
}

/// The client for it. Nothing is sent yet.
#[allow(clippy::result_large_err)]
pub fn client(options: &Options) -> Result<Client> {
    let Some(url) = &options.url else { return Client::unix(&options.socket) };
    let read = |file: &PathBuf| {
        let unread = |e| Problem::new(ErrorKind::Invalid, format!("{}: {e}", file.display()));
        std::fs::read(file).map_err(unread)
    };
    let ca = options.ca.as_ref().map(read).transpose()?;
    match (&options.cert, &options.key) {
        (Some(cert), Some(key)) => {
            return Client::mutual_tls(url, &read(cert)?, &read(key)?, ca.as_deref());
        }
        (None, None) => {}
        _ => {
            return Err(Problem::new(ErrorKind::Invalid, "--cert and --key belong together: one is missing"));
        }
    }
    let Some(file) = &options.token_file else {
        return Err(Problem::new(
            ErrorKind::Unauthenticated,
            "--url needs --token-file, or --cert and --key",
        ));
    };
    let token = String::from_utf8_lossy(&read(file)?).into_owned();
    Client::tls(url, token.trim().into(), ca.as_deref())
}
