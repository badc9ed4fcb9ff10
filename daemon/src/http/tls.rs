//! The certificate that the daemon makes for itself at its first start, and what TLS is served with.
//!
//! Called by `main` through [`Certificate::ensure`]. A certificate that is there is never replaced, so
//! that an owner's own one can be put in its place.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName as DistinguishedNameDer, SignatureScheme};

use crate::fingerprint::Fingerprint;

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read or written.
    #[error("{}: cannot be read or written", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is not PEM, or holds no certificate or key.
    #[error("{}: not a PEM file with what it should hold", path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// The certificate could not be made.
    #[error("the certificate cannot be made")]
    Make(#[from] rcgen::Error),
    /// Certificate and key can't be used together.
    #[error("certificate and key cannot be used")]
    Use(#[from] rustls::Error),
}

/// What TLS is served with.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// For the acceptor.
    pub config: Arc<rustls::ServerConfig>,
    /// SHA-256 of the certificate: `AB:CD:...`.
    pub fingerprint: String,
}

impl Certificate {
    /// Reads `dir/cert.pem` and `dir/key.pem`; makes them for `hostname` and all addresses of the
    /// machine if neither is there.
    pub fn ensure(dir: &Path, hostname: &str) -> Result<Self, TlsError> {
        let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
        // The key is written first: with a certificate there is always a key.
        if !cert.exists() {
            make(dir, &cert, &key, hostname)?;
        }
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&cert)
            .and_then(|certs| certs.collect())
            .map_err(|source| TlsError::Pem { path: cert.clone(), source })?;
        let key = PrivateKeyDer::from_pem_file(&key).map_err(|source| TlsError::Pem { path: key, source })?;
        let Some(own) = chain.first() else {
            return Err(TlsError::Pem { path: cert, source: rustls::pki_types::pem::Error::NoItemsFound });
        };
        let fingerprint = Fingerprint::of(own).to_string();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(Arc::new(AnyClient(provider)))
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { config: Arc::new(config), fingerprint })
    }
}

/// How many bytes of certificates a client may show.
const LONGEST: usize = 16 << 10;

/// Takes whatever certificate a client shows, if it shows one, and sees to it that the client has its key. Whose it is, is asked
/// with each request: one that nobody knows is nobody's.
#[derive(Debug)]
struct AnyClient(Arc<CryptoProvider>);

impl ClientCertVerifier for AnyClient {
    fn root_hint_subjects(&self) -> &[DistinguishedNameDer] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        // All of it is kept with the connection, and nobody has proved anything yet.
        let length = certificate.len() + intermediates.iter().map(|c| c.len()).sum::<usize>();
        match length <= LONGEST {
            true => Ok(ClientCertVerified::assertion()),
            false => Err(rustls::Error::InvalidCertificate(rustls::CertificateError::BadEncoding)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn make(dir: &Path, cert: &Path, key: &Path, hostname: &str) -> Result<(), TlsError> {
    let mut names = BTreeSet::from(["localhost".to_string()]);
    if rustls::pki_types::DnsName::try_from(hostname).is_ok() {
        names.insert(hostname.to_string());
    }
    names.extend(addresses().iter().map(IpAddr::to_string));
    let mut params = CertificateParams::new(names.into_iter().collect::<Vec<_>>())?;
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, format!("orlop {hostname}"));
    params.distinguished_name = subject;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    // Clients pin it, so its end is of no use to anyone; the machine's clock may also be wrong at its
    // first start.
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2125, 1, 1);
    let pair = KeyPair::generate()?;
    let made = params.self_signed(&pair)?;

    let file = |path: &Path| {
        let path = path.to_path_buf();
        move |source| TlsError::File { path, source }
    };
    std::fs::create_dir_all(dir).map_err(file(dir))?;
    write(key, &pair.serialize_pem(), 0o600).map_err(file(key))?;
    write(cert, &made.pem(), 0o644).map_err(file(cert))
}

/// Whole or not at all: written beside, synced and renamed.
fn write(path: &Path, text: &str, mode: u32) -> std::io::Result<()> {
    let beside = path.with_extension("new");
    match std::fs::remove_file(&beside) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    match path.parent() {
        Some(dir) => std::fs::File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

/// The machine's addresses as /proc tells them, loopback included, link-local IPv6 left out.
fn addresses() -> BTreeSet<IpAddr> {
    let mut found = BTreeSet::from([IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]);
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    found.extend(local_v4(&read("/proc/net/fib_trie")).into_iter().map(IpAddr::V4));
    found.extend(local_v6(&read("/proc/net/if_inet6")).into_iter().map(IpAddr::V6));
    found
}

/// In fib_trie an own address is a leaf `|-- 192.0.2.1` followed by `/32 host LOCAL`.
fn local_v4(fib_trie: &str) -> BTreeSet<Ipv4Addr> {
    let mut leaf: Option<Ipv4Addr> = None;
    let mut found = BTreeSet::new();
    for line in fib_trie.lines().map(str::trim) {
        match line.strip_prefix("|-- ") {
            Some(address) => leaf = address.parse().ok(),
            None if line == "/32 host LOCAL" => found.extend(leaf),
            None => {}
        }
    }
    found
}

/// if_inet6: 32 hexadecimal digits, then interface, prefix length, scope (hexadecimal), flags, name.
fn local_v6(if_inet6: &str) -> BTreeSet<Ipv6Addr> {
    const LINK_LOCAL: &str = "20";
    let address = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let bits = u128::from_str_radix(fields.first()?, 16).ok()?;
        (*fields.get(3)? != LINK_LOCAL).then(|| Ipv6Addr::from_bits(bits))
    };
    if_inet6.lines().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let tls = dir.path().join("tls");
        let first = Certificate::ensure(&tls, "box-1").unwrap();
        let again = Certificate::ensure(&tls, "renamed").unwrap();
        assert_eq!(first.fingerprint, again.fingerprint);
        assert_eq!(first.fingerprint.len(), 32 * 3 - 1);
        let mode = std::fs::metadata(tls.join("key.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn odd_host_names_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        Certificate::ensure(dir.path(), "bad name\n").unwrap();
    }

    #[test]
    fn own_addresses_are_read_from_proc() {
        let fib = "Local:\n  +-- 10.0.0.0/24 2 0 2\n     |-- 10.0.2.0\n        /24 link UNICAST\n     \
                   |-- 10.0.2.15\n        /32 host LOCAL\n     |-- 10.0.2.255\n        /32 link BROADCAST\n";
        assert_eq!(local_v4(fib), BTreeSet::from([Ipv4Addr::new(10, 0, 2, 15)]));
        let v6 = "20010db8000000000000000000000001 02 40 00 80 eth0\n\
                  fe800000000000000000000000000001 02 40 20 80 eth0\n";
        assert_eq!(local_v6(v6), BTreeSet::from(["2001:db8::1".parse().unwrap()]));
    }
}
