//! One connection from handshake to end: TLS with its deadline, HTTP/1.1 by hyper, the deadline by which
//! a connection must have authenticated, and the stop.
//!
//! Called by [`super::listen`], one task a connection.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsAcceptor;
use tower::Service;

use super::auth::Connection;
use super::{Server, stopped};
use crate::fingerprint::Fingerprint;

/// From the accept to the end of the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// From there to the end of the first authenticated request's head. Later heads have the idle timeout:
/// who has proved to be an administrator need not be defended against.
const FIRST_HEAD: Duration = Duration::from_secs(10);

/// The largest request head: hyper's buffer of one connection.
const LARGEST_HEAD: usize = 32 << 10;

/// A connection of the unix socket.
pub async fn plain(stream: UnixStream, connection: Connection, server: Server) {
    http(stream, connection, server).await;
}

/// A connection of a network.
pub async fn tls(stream: TcpStream, acceptor: TlsAcceptor, mut connection: Connection, server: Server) {
    let mut stop = server.api.stop.clone();
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)) => shaken,
        () = stopped(&mut stop) => return,
    };
    match shaken {
        Ok(Ok(stream)) => {
            let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            connection.certificate = shown.map(Fingerprint::of);
            http(stream, connection, server).await;
        }
        Ok(Err(e)) => tracing::debug!(peer = ?connection.peer, error = %e, "TLS handshake failed"),
        Err(_) => tracing::debug!(peer = ?connection.peer, "TLS handshake took too long"),
    }
}

async fn http(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    connection: Connection,
    server: Server,
) {
    let mut stop = server.api.stop.clone();
    let ticket = std::sync::Arc::clone(&connection.ticket);
    let service = hyper::service::service_fn(|request| answer(&server, &connection, request));
    let idle = server.api.settings.borrow().idle;
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_buf_size(LARGEST_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    let first_head = tokio::time::sleep(FIRST_HEAD);
    tokio::pin!(first_head);
    let (mut watched, mut stopping) = (true, false);
    loop {
        tokio::select! {
            ended = serving.as_mut() => {
                if let Err(e) = ended {
                    tracing::debug!(peer = ?connection.peer, error = %e, "connection ended");
                }
                return;
            }
            () = first_head.as_mut(), if watched => {
                watched = false;
                if !ticket.is_proven() {
                    tracing::debug!(peer = ?connection.peer, "closed: not authenticated in time");
                    return;
                }
            }
            () = stopped(&mut stop), if !stopping => {
                stopping = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}

fn answer(
    server: &Server,
    connection: &Connection,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<Body>, Infallible>> + use<> {
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(connection.clone());
    // The router is ready at all times: it holds no backpressure of its own.
    server.router.clone().call(request)
}
