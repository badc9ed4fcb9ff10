//! Who asks. Over the unix socket: the peer's uid as the kernel tells it, and whoever the socket's mode
//! let in is an administrator. Over TLS: the bearer token of the `Authorization` header, or where there is none the
//! certificate of which the client has shown that it has the key. A token in a URL would end up in logs and histories, so it
//! isn't looked for there.
//!
//! Called by [`super::door`].

use std::net::IpAddr;
use std::sync::Arc;

use axum::http::{HeaderMap, header};
use orlop_api::ErrorKind;

use super::Api;
use super::error::{ApiError, ApiResult};
use super::gate::Ticket;
use crate::engine::Principal;
use crate::fingerprint::Fingerprint;

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// A process of this machine.
    Process {
        /// Its uid when it connected.
        uid: u32,
    },
    /// An address, over TLS.
    Network(IpAddr),
}

/// What a request knows of its connection: an extension of every request.
#[derive(Debug, Clone)]
pub struct Connection {
    /// Who is at the other end.
    pub peer: Peer,
    /// The certificate that it has shown.
    pub certificate: Option<Fingerprint>,
    /// Its place in the gate.
    pub ticket: Arc<Ticket>,
}

/// Who asks, or 401.
pub fn principal(api: &Api, connection: &Connection, headers: &HeaderMap) -> ApiResult<Principal> {
    match connection.peer {
        Peer::Process { uid } => Ok(Principal::admin(format!("uid:{uid}"))),
        Peer::Network(_) => {
            // Who says that he comes by a token does not come by anything else.
            let known = match headers.contains_key(header::AUTHORIZATION) {
                true => bearer(headers).and_then(|token| api.engine.authenticate(token)),
                false => connection.certificate.and_then(|c| api.engine.authenticate_certificate(c)),
            };
            known.ok_or_else(|| {
                let text = "a valid bearer token is needed, or a client certificate that is known here";
                ApiError::new(ErrorKind::Unauthenticated, text)
            })
        }
    }
}

/// The token of the one `Authorization: Bearer` header. Two headers are none: proxies disagree about
/// which one counts.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(one), None) = (all.next(), all.next()) else { return None };
    let (scheme, token) = one.to_str().ok()?.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_bearer_header_counts() {
        let headers = |values: &[&str]| {
            let mut h = HeaderMap::new();
            for v in values {
                h.append(header::AUTHORIZATION, v.parse().unwrap());
            }
            h
        };
        assert_eq!(bearer(&headers(&["Bearer abc"])), Some("abc"));
        assert_eq!(bearer(&headers(&["bearer abc"])), Some("abc"));
        for bad in [&[][..], &["abc"], &["Basic abc"], &["Bearer "], &["Bearer a", "Bearer b"]] {
            assert_eq!(bearer(&headers(bad)), None, "{bad:?}");
        }
    }
}
