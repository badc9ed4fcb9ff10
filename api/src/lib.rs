//! What `orlopd`, `orlop` and `orlop-csi` agree on: names and sizes that are parsed once, the shapes
//! that travel, the kinds of error, and (feature `client`) the typed client.
//!
//! Called by all three programs. Does no I/O beyond the client.

pub mod authentication;
pub mod chap;
pub mod encryption;
pub mod error;
pub mod name;
pub mod network;
pub mod properties;
mod secret;
pub mod security;
pub mod size;
pub mod tls;
pub mod token;
pub mod types;

#[cfg(feature = "client")]
pub mod client;

pub use authentication::{Authentication, AuthenticationPut, DhGroup, DhchapHash, DhchapKey};
pub use chap::{Chap, ChapCredentials, ChapPut, ChapSecret, ChapUser};
pub use encryption::{Encryption, EncryptionCreate, EncryptionKey, Unlock, VolumeKey};
pub use error::{ErrorKind, Problem};
pub use name::{
    AlarmSubject, DiskName, HostName, Iqn, Nqn, OrphanId, ParseError, PoolName, SnapshotId, SnapshotName,
    SnapshotRef, Tenant, VolumeId, VolumeName, VolumeRef,
};
pub use network::Network;
pub use properties::{BlockSize, Checksum, Compression, Dedup, Logbias, Properties, Property, SyncWrites};
pub use security::{Flavour, Keytab, KeytabFile, KeytabPut, Security};
pub use size::ByteSize;
pub use tls::{Tls, TlsKey, TlsPut};
pub use token::{ClientCertificate, MadeToken, Token, TokenName, TokenPut, TokenSecret, Verb};
pub use types::*;
