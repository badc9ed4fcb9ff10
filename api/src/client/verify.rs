//! Which certificate the client believes.
//!
//! Called by [`super::Client`]. Never accepts a certificate without checking that its key signed the
//! handshake.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WantsClientCert, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::Result;
use crate::{ErrorKind, Problem};

/// A client's certificate and its key, both in PEM.
#[derive(Clone, Copy)]
pub struct Identity<'p> {
    /// The certificate.
    pub certificate: &'p [u8],
    /// Its key.
    pub key: &'p [u8],
}

/// TLS that believes the certificates in `pem`, or none at all, and shows a certificate of its own if there is one.
pub fn config(pem: Option<&[u8]>, own: Option<Identity<'_>>) -> Result<rustls::ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let wrong = |detail: String| Problem::new(ErrorKind::Invalid, detail);
    let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| wrong(format!("TLS: {e}")))?;
    let Some(pem) = pem else {
        return shows(builder.with_root_certificates(RootCertStore::empty()), own);
    };
    let pinned: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem)
        .collect::<std::result::Result<_, _>>()
        .map_err(|e| wrong(format!("the certificate is not PEM: {e}")))?;
    let mut roots = RootCertStore::empty();
    for certificate in &pinned {
        roots.add(certificate.clone()).map_err(|e| wrong(format!("the certificate cannot be used: {e}")))?;
    }
    let authority = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|e| wrong(format!("the file has no certificate that can be used: {e}")))?;
    let verifier = Arc::new(Pinned { pinned, authority, provider });
    shows(builder.dangerous().with_custom_certificate_verifier(verifier), own)
}

fn shows(
    builder: rustls::ConfigBuilder<rustls::ClientConfig, WantsClientCert>,
    own: Option<Identity<'_>>,
) -> Result<rustls::ClientConfig> {
    let Some(own) = own else { return Ok(builder.with_no_client_auth()) };
    let wrong = |detail: String| Problem::new(ErrorKind::Invalid, detail);
    // What is wrong with a key is not told in its own words.
    let bad = |what: &str| wrong(format!("the client's {what} is not PEM with what it should hold"));
    let chain = CertificateDer::pem_slice_iter(own.certificate).collect::<std::result::Result<Vec<_>, _>>();
    let chain = chain.ok().filter(|chain| !chain.is_empty()).ok_or_else(|| bad("certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(own.key).map_err(|_| bad("key"))?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|e| wrong(format!("the client's certificate and key: {e}")))
}

/// Believes a certificate that is one of the pinned ones byte by byte, whatever name the daemon is
/// reached by: an appliance makes its certificate at its first start, when it may not yet have the
/// address that it will have. Any other certificate must be issued by a pinned one, for the right name.
#[derive(Debug)]
struct Pinned {
    pinned: Vec<CertificateDer<'static>>,
    authority: Arc<WebPkiServerVerifier>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        if self.pinned.iter().any(|p| p == end_entity) {
            return Ok(ServerCertVerified::assertion());
        }
        self.authority.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
