//! Listeners: how sockets are made, and the loop that accepts on each. An accept that fails (out of
//! descriptors, say) is waited out; nothing but the daemon's stop ends the loop.
//!
//! Called by `main`. What happens on a connection is [`super::serve`]'s.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::auth::{Connection, Peer};
use super::gate::Gate;
use super::tls::Certificate;
use super::{HttpError, Server, serve, stopped};

/// How long an accept loop waits after an error.
const BACK_OFF: Duration = Duration::from_millis(100);

/// Connections that the kernel keeps for us until they are accepted.
const BACKLOG: i32 = 1024;

/// How long a peer may leave our data unacknowledged before its connection is given up.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// The unix socket to serve.
#[derive(Debug, Clone)]
pub struct UnixListen {
    /// Where.
    pub path: PathBuf,
    /// Who owns it, if the machine has such a group.
    pub group: String,
}

/// Bound sockets, not yet served.
pub struct Listeners {
    unix: Option<(UnixListener, PathBuf)>,
    tls: Vec<(TcpListener, TlsAcceptor)>,
}

impl std::fmt::Debug for Listeners {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tls: Vec<_> = self.tls.iter().map(|(l, _)| l).collect();
        f.debug_struct("Listeners").field("unix", &self.unix).field("tls", &tls).finish()
    }
}

impl Listeners {
    /// Binds all of them, or none.
    pub fn bind(
        unix: Option<&UnixListen>,
        tls: &[SocketAddr],
        certificate: Option<&Certificate>,
    ) -> Result<Self, HttpError> {
        let mut bound = Self { unix: None, tls: Vec::new() };
        if let Some(certificate) = certificate {
            let acceptor = TlsAcceptor::from(Arc::clone(&certificate.config));
            for address in tls {
                let listener =
                    bind_tcp(*address).map_err(|source| HttpError::Bind { address: *address, source })?;
                bound.tls.push((listener, acceptor.clone()));
            }
        }
        if let Some(unix) = unix {
            bound.unix = Some((bind_unix(unix)?, unix.path.clone()));
        }
        Ok(bound)
    }

    /// Serves until the server's stop; then waits for the requests under way, at most `grace`.
    pub async fn serve(self, server: Server, grace: Duration) {
        let mut loops = JoinSet::new();
        if let Some((listener, path)) = self.unix {
            let gate = Gate::new("unix", server.api.settings.clone(), Arc::clone(&server.api.metrics));
            loops.spawn(accept_unix(listener, path, gate, server.clone(), grace));
        }
        for (listener, acceptor) in self.tls {
            let gate = Gate::new("tls", server.api.settings.clone(), Arc::clone(&server.api.metrics));
            loops.spawn(accept_tls(listener, acceptor, gate, server.clone(), grace));
        }
        while loops.join_next().await.is_some() {}
    }
}

/// `[::]` takes IPv4 too; where the kernel has no IPv6, `0.0.0.0` stands in for it.
fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    match bind_exactly(address) {
        Err(_)
            if address.is_ipv6()
                && address.ip().is_unspecified()
                && !Path::new("/proc/net/if_inet6").exists() =>
        {
            bind_exactly(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port()))
        }
        other => other,
    }
}

fn bind_exactly(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Bound under another name, given its mode and group, and only then renamed into place: nobody can
/// connect before it is guarded, and a stale socket is replaced without a moment of none.
fn bind_unix(ask: &UnixListen) -> Result<UnixListener, HttpError> {
    let failed = |source| HttpError::Unix { path: ask.path.clone(), source };
    match std::fs::symlink_metadata(&ask.path) {
        Ok(there) if !there.file_type().is_socket() => {
            return Err(failed(io::Error::other("something that is not a socket is in its place")));
        }
        Ok(_) if std::os::unix::net::UnixStream::connect(&ask.path).is_ok() => {
            return Err(HttpError::InUse(ask.path.clone()));
        }
        _ => {}
    }
    let mut beside = ask.path.clone().into_os_string();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    match std::fs::remove_file(&beside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    let listener = UnixListener::bind(&beside).map_err(failed)?;
    if let Some(gid) = group_id(&ask.group) {
        // Not fatal: without privileges (a simulation) the socket stays with its owner.
        if let Err(e) = std::os::unix::fs::chown(&beside, None, Some(gid)) {
            tracing::debug!(error = %e, group = ask.group, "the socket stays with the daemon's own group");
        }
    }
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o660)).map_err(failed)?;
    std::fs::rename(&beside, &ask.path).map_err(failed)?;
    Ok(listener)
}

/// From /etc/group: the appliance has no other source of groups, and NSS would need `unsafe`.
fn group_id(name: &str) -> Option<u32> {
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    let mut lines = groups.lines().map(|l| l.split(':'));
    lines.find_map(|mut f| (f.next() == Some(name)).then(|| f.nth(1)?.parse().ok())?)
}

/// Accepts until the stop, then waits for the connections.
async fn accept_unix(
    listener: UnixListener,
    path: PathBuf,
    gate: Arc<Gate>,
    server: Server,
    grace: Duration,
) {
    let mut tasks = JoinSet::new();
    let mut stop = server.api.stop.clone();
    loop {
        tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            Some(_) = tasks.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => start_unix(&mut tasks, stream, &gate, &server),
                Err(e) => back_off("unix", &e).await,
            },
        }
    }
    drop(listener);
    // A socket that nobody listens on makes a caller believe in a daemon that hangs.
    let _ = std::fs::remove_file(&path);
    finish(tasks, grace).await;
}

async fn accept_tls(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    gate: Arc<Gate>,
    server: Server,
    grace: Duration,
) {
    let mut tasks = JoinSet::new();
    let mut stop = server.api.stop.clone();
    loop {
        tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            Some(_) = tasks.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => start_tls(&mut tasks, stream, from, &acceptor, &gate, &server),
                Err(e) => back_off("tls", &e).await,
            },
        }
    }
    drop(listener);
    finish(tasks, grace).await;
}

/// EMFILE and ENFILE leave the connection in the backlog, so going on at once would spin; errors of
/// the connection itself (ECONNABORTED) cost nothing by the same wait.
async fn back_off(listener: &'static str, error: &io::Error) {
    tracing::warn!(listener, %error, "cannot accept: trying again");
    tokio::time::sleep(BACK_OFF).await;
}

async fn finish(mut tasks: JoinSet<()>, grace: Duration) {
    let all = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(grace, all).await.is_err() {
        tracing::warn!("connections were cut off: their requests did not end in time");
    }
}

fn start_unix(tasks: &mut JoinSet<()>, stream: UnixStream, gate: &Arc<Gate>, server: &Server) {
    let Ok(credentials) = stream.peer_cred() else { return };
    let peer = Peer::Process { uid: credentials.uid() };
    let Some(ticket) = gate.admit(peer) else { return };
    let number = ticket.number();
    let connection = Connection { peer, certificate: None, ticket: Arc::new(ticket) };
    let task = tasks.spawn(serve::plain(stream, connection, server.clone()));
    gate.served_by(number, task);
}

fn start_tls(
    tasks: &mut JoinSet<()>,
    stream: TcpStream,
    from: SocketAddr,
    acceptor: &TlsAcceptor,
    gate: &Arc<Gate>,
    server: &Server,
) {
    let peer = Peer::Network(from.ip());
    let Some(ticket) = gate.admit(peer) else { return };
    if let Err(e) = tune(&stream) {
        tracing::debug!(error = %e, "a connection goes on without keep-alive");
    }
    let number = ticket.number();
    let connection = Connection { peer, certificate: None, ticket: Arc::new(ticket) };
    let task = tasks.spawn(serve::tls(stream, acceptor.clone(), connection, server.clone()));
    gate.served_by(number, task);
}

/// A peer that vanished without a word (power cut, network gone) must not hold its place for ever, not
/// even one that only listens to events.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(USER_TIMEOUT).with_interval(Duration::from_secs(10));
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}
