//! What is known of a host, or of a part of the network that is treated as one.

use std::net::IpAddr;

use orlop_api::{
    Authentication, AuthenticationPut, Chap, ChapPut, HostPut, Iqn, Network, Nqn, Protocol, Security, Squash,
    Tenant, Tls, TlsPut, ZonePut,
};
use serde::{Deserialize, Serialize};

/// See the module. Stored in the journal; what an older daemon wrote has an NQN and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HostRecord {
    /// What NVMe knows it by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nqn: Option<Nqn>,
    /// What iSCSI knows it by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iqn: Option<Iqn>,
    /// Where its NFS client, or its many, call from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<Network>,
    /// It is no host but a zone, and these are its rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<ZoneRules>,
    /// What it must prove to NVMe to know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets: Option<Secret<AuthenticationPut>>,
    /// What it must prove to iSCSI to know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chap: Option<Secret<ChapPut>>,
    /// By what its NVMe connections must be encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Secret<TlsPut>>,
    /// Whose it is. What an older daemon wrote says nothing of it, and means the administrator's.
    #[serde(default, skip_serializing_if = "is_default")]
    pub tenant: Tenant,
}

fn is_default(tenant: &Tenant) -> bool {
    *tenant == Tenant::default()
}

/// What all hosts of a zone have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct ZoneRules {
    /// They can't write.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Whose names their users go by.
    #[serde(default)]
    pub squash: Squash,
    /// By what they prove who they are. What an older daemon wrote says nothing of it, and means `sys`.
    #[serde(default, skip_serializing_if = "Security::is_sys")]
    pub security: Security,
}

/// What a host must prove to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Secret<T> {
    /// This.
    Known(T),
    /// A label says that there was some, and the journal that had it is lost. The host is not let in.
    Lost,
}

impl<T> Secret<T> {
    /// What must be proved, if that is known.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(secret) => Some(secret),
            Self::Lost => None,
        }
    }
}

/// How a host may use a volume that it is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Grant {
    /// It can't write.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

/// Which of its secrets a host had: what a label remembers of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Proven {
    /// NVMe's.
    pub nvme: bool,
    /// iSCSI's.
    pub iscsi: bool,
    /// That of TLS for NVMe.
    pub tls: bool,
}

impl HostRecord {
    /// What was asked for, without secrets.
    pub fn host(ask: HostPut) -> Self {
        let networks = ask.addresses.into_iter().map(Network::from).collect();
        Self { nqn: ask.nqn, iqn: ask.iqn, networks, ..Self::default() }
    }

    /// What was asked for.
    pub fn zone(ask: ZonePut) -> Self {
        let rules = ZoneRules { read_only: ask.read_only, squash: ask.squash, security: ask.security };
        Self { networks: ask.networks, zone: Some(rules), tenant: ask.tenant, ..Self::default() }
    }

    /// In the words of messages: host or zone.
    pub fn noun(&self) -> &'static str {
        if self.zone.is_some() { "zone" } else { "host" }
    }

    /// Whether it can be known by a protocol.
    pub fn is_known_by(&self, protocol: Protocol) -> bool {
        match protocol {
            Protocol::Nvme => self.nqn.is_some(),
            Protocol::Iscsi => self.iqn.is_some(),
            Protocol::Nfs => !self.networks.is_empty(),
        }
    }

    /// Whether it is known by a protocol by the same as another.
    pub fn is_same_to(&self, protocol: Protocol, other: &Self) -> bool {
        match protocol {
            Protocol::Nvme => self.nqn == other.nqn,
            Protocol::Iscsi => self.iqn == other.iqn,
            Protocol::Nfs => self.networks == other.networks && self.zone == other.zone,
        }
    }

    /// Whether a zone lets in less than another: fewer, or to do less.
    pub fn is_less_than(&self, other: &Self) -> bool {
        let covered = |n: &Network| self.networks.iter().any(|m| m.covers(n));
        let (mine, theirs) = (self.zone.unwrap_or_default(), other.zone.unwrap_or_default());
        !other.networks.iter().all(covered)
            || (mine.read_only && !theirs.read_only)
            || mine.squash > theirs.squash
            || !mine.security.covers(&theirs.security)
    }

    /// Whether it may be let in by a protocol: not where it must prove what nobody knows any more.
    pub fn is_admissible(&self, protocol: Protocol) -> bool {
        match protocol {
            Protocol::Nvme => self.secrets != Some(Secret::Lost) && self.tls != Some(Secret::Lost),
            Protocol::Iscsi => self.chap != Some(Secret::Lost),
            Protocol::Nfs => true,
        }
    }

    /// The same by any.
    pub fn has_lost_a_secret(&self) -> bool {
        Protocol::ALL.into_iter().any(|p| !self.is_admissible(p))
    }

    /// A host's addresses, each a network of its own.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.networks.iter().map(Network::address).collect()
    }

    /// Which of its secrets it has.
    pub fn proven(&self) -> Proven {
        Proven { nvme: self.secrets.is_some(), iscsi: self.chap.is_some(), tls: self.tls.is_some() }
    }

    /// How NVMe authenticates it, without the secrets.
    pub fn authentication(&self) -> Option<Authentication> {
        self.secrets.as_ref().map(|secrets| match secrets {
            Secret::Known(ask) => Authentication::Required {
                mutual: ask.controller_key.is_some(),
                hash: ask.hash,
                dh_group: ask.dh_group,
            },
            Secret::Lost => Authentication::Lost,
        })
    }

    /// How its NVMe connections are encrypted, without the key.
    pub fn tls(&self) -> Option<Tls> {
        self.tls.as_ref().map(|secret| match secret {
            Secret::Known(ask) => Tls::Required { compat: ask.compat },
            Secret::Lost => Tls::Lost,
        })
    }

    /// How iSCSI authenticates it, without the secrets.
    pub fn chap(&self) -> Option<Chap> {
        self.chap.as_ref().map(|secret| match secret {
            Secret::Known(ask) => Chap::Required {
                user: ask.host.user.clone(),
                target_user: ask.target.as_ref().map(|t| t.user.clone()),
            },
            Secret::Lost => Chap::Lost,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// As journals hold them that were written when there was NVMe alone.
    #[test]
    fn what_was_written_first_is_read() {
        let nqn = "nqn.2014-08.org.nvmexpress:uuid:a";
        let old: HostRecord =
            serde_json::from_str(&format!(r#"{{"nqn":"{nqn}","secrets":"lost"}}"#)).unwrap();
        assert_eq!((old.nqn.as_ref().map(Nqn::as_str), old.noun()), (Some(nqn), "host"));
        assert!(old.is_known_by(Protocol::Nvme) && !old.is_known_by(Protocol::Iscsi));
        assert!(!old.is_admissible(Protocol::Nvme) && old.is_admissible(Protocol::Iscsi));
        assert_eq!(serde_json::from_str::<Grant>("{}").unwrap(), Grant::default());
        assert_eq!(serde_json::to_string(&Grant::default()).unwrap(), "{}");
    }

    #[test]
    fn rules_of_before_there_were_flavours_mean_sys() {
        let old: ZoneRules = serde_json::from_str(r#"{"read_only":true,"squash":"none"}"#).unwrap();
        assert!(old.security.is_sys());
        assert_eq!(serde_json::to_string(&old).unwrap(), r#"{"read_only":true,"squash":"none"}"#);
        let new = ZoneRules { security: "krb5p:krb5i".parse().unwrap(), ..old };
        let text = serde_json::to_string(&new).unwrap();
        assert_eq!(text, r#"{"read_only":true,"squash":"none","security":["krb5p","krb5i"]}"#);
        assert_eq!(serde_json::from_str::<ZoneRules>(&text).unwrap(), new);
    }

    #[test]
    fn a_zone_that_lets_in_by_fewer_flavours_is_less() {
        let zone = |security: &str| HostRecord {
            networks: vec!["10.0.0.0/8".parse().unwrap()],
            zone: Some(ZoneRules { security: security.parse().unwrap(), ..ZoneRules::default() }),
            ..HostRecord::default()
        };
        for (new, old, less) in [
            ("krb5p", "sys", true),
            ("sys", "krb5p", true),
            ("krb5p", "sys:krb5p", true),
            ("krb5p:sys", "sys:krb5p", false),
            ("sys:krb5p", "sys", false),
        ] {
            assert_eq!(zone(new).is_less_than(&zone(old)), less, "{new} after {old}");
        }
    }
}
