//! One configuration file as it was read: every key optional, every value with its place.
//!
//! Called by [`super::load`]. Checks syntax, key names and types, never values.

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use toml::Spanned;

use super::{ConfigError, line_of};

/// A value where a file gives one.
pub type Given<T> = Option<Spanned<T>>;

/// See the module. The keys are documented in [`super::Settings`].
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Fragment {
    pub state_dir: Given<String>,
    #[serde(default)]
    pub api: Api,
    #[serde(default)]
    pub nvmet: Nvmet,
    #[serde(default)]
    pub lio: Lio,
    #[serde(default)]
    pub ctl: Ctl,
    #[serde(default)]
    pub nfs: Nfs,
    #[serde(default)]
    pub log: Log,
    #[serde(default)]
    pub traces: Traces,
    #[serde(default)]
    pub pools: Pools,
    #[serde(default)]
    pub limits: Limits,
}

/// `[api]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Api {
    pub socket: Given<String>,
    pub socket_group: Given<String>,
    pub listen: Given<Vec<String>>,
    pub token_console: Given<String>,
}

/// `[nvmet]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Nvmet {
    pub portals: Given<Vec<NvmetPortal>>,
    pub referrals: Given<Vec<String>>,
    pub io_queues: Given<u64>,
    pub queue_size: Given<u64>,
    pub nqn_prefix: Given<String>,
}

/// A portal of NVMe: an address alone, or a table with more about it.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct NvmetPortal {
    pub listen: String,
    pub transport: Option<String>,
    pub tls: bool,
    pub ana: Option<String>,
}

impl<'de> Deserialize<'de> for NvmetPortal {
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            listen: String,
            transport: Option<String>,
            #[serde(default)]
            tls: bool,
            ana: Option<String>,
        }
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = NvmetPortal;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("ADDRESS:PORT, or a table with listen, transport, tls and ana")
            }
            fn visit_str<E>(self, listen: &str) -> Result<NvmetPortal, E> {
                Ok(NvmetPortal { listen: listen.into(), ..NvmetPortal::default() })
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<NvmetPortal, A::Error> {
                let Table { listen, transport, tls, ana } =
                    Table::deserialize(MapAccessDeserializer::new(map))?;
                Ok(NvmetPortal { listen, transport, tls, ana })
            }
        }
        input.deserialize_any(Either)
    }
}

/// `[lio]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Lio {
    pub portals: Given<Vec<String>>,
}

/// `[ctl]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Ctl {
    pub iscsi_portals: Given<Vec<String>>,
    pub nvme_portals: Given<Vec<String>>,
    pub nvme_access: Given<String>,
    pub file: Given<String>,
    pub pidfile: Given<String>,
}

/// `[nfs]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Nfs {
    pub listen: Given<Vec<String>>,
    pub versions: Given<Vec<String>>,
    pub threads: Given<u64>,
}

/// `[log]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Log {
    pub level: Given<String>,
    pub format: Given<String>,
}

/// `[traces]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Traces {
    pub collector: Given<String>,
    pub sample_percent: Given<u64>,
}

/// `[pools]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Pools {
    pub warn_percent: Given<u64>,
    pub stop_percent: Given<u64>,
}

/// `[limits]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Limits {
    pub connections: Given<u64>,
    pub connections_per_peer: Given<u64>,
    pub changes_per_principal: Given<u64>,
    pub requests_per_second: Given<u64>,
    pub request_seconds: Given<u64>,
    pub idle_seconds: Given<u64>,
    pub drain_seconds: Given<u64>,
    pub pool_threads: Given<u64>,
}

/// Parses one file.
pub fn parse(file: &Path, text: &str) -> Result<Fragment, ConfigError> {
    toml::from_str(text).map_err(|e| ConfigError::Wrong {
        file: file.to_path_buf(),
        line: e.span().map_or(1, |span| line_of(text, span.start)),
        rule: e.message().replace('\n', " "),
    })
}
