//! The secrets that hosts must prove to know (DH-HMAC-CHAP), in the directories of hosts.
//!
//! The kernel reads them when a host connects: who is connected stays so when they change. It serves everybody's
//! subsystems from one directory a host, and shows what is in it to all who may look there, so they may not.

use std::io;

use super::Nvmet;
use crate::kernel::Deadline;
use crate::target::keys::Proof;
use crate::target::tree::{self, optional};
use crate::target::{Result, TargetError};

/// The attributes of a host's directory, in the order in which they are written: the secret that it must know comes
/// last.
const ATTRIBUTES: [&str; 4] = ["dhchap_hash", "dhchap_dhgroup", "dhchap_ctrl_key", KEY];
const KEY: &str = "dhchap_key";

/// What takes a secret away: an empty text, which only a zero can be in a write of some length.
const NONE: &str = "\0";

/// What each attribute should be. Without a secret the others say nothing.
fn wanted(proof: &Proof) -> Vec<(&'static str, String)> {
    let values = match proof {
        Proof::Secret(ask) => vec![
            format!("hmac({})", ask.hash.as_str()),
            ask.dh_group.as_str().to_string(),
            ask.controller_key.as_ref().map(|k| k.expose().to_string()).unwrap_or_default(),
            ask.key.expose().to_string(),
        ],
        // Of a host by its IQN; none of NVMe's.
        Proof::Chap(_) => return Vec::new(),
        Proof::Nothing => return vec![("dhchap_ctrl_key", String::new()), (KEY, String::new())],
    };
    ATTRIBUTES.into_iter().zip(values).collect()
}

impl Nvmet {
    /// Whether the kernel asks of a host, whose directory is there, what it should.
    pub(super) fn asks_as_it_should(&self, host: &str) -> Result<bool> {
        let Some(proof) = self.keys.get(host) else { return Ok(true) };
        for (attribute, wanted) in wanted(&proof) {
            let path = format!("hosts/{host}/{attribute}");
            let value = tree::attribute(&*self.tree, &path)?;
            if value.unwrap_or_default() != wanted {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The same of a host that is let in already, perhaps: where the kernel can't ask it, it is let in no more. What it
    /// has connected stays.
    pub(super) fn have_proved(&self, host: &str, deadline: &Deadline) -> Result<()> {
        if self.tree.list(&format!("hosts/{host}")).is_err() {
            return Ok(());
        }
        let Err(error) = self.ask_as_it_should(host, deadline) else { return Ok(()) };
        for nqn in self.our_subsystems()?.keys() {
            match self.tree.unlink(&format!("subsystems/{nqn}/allowed_hosts/{host}")) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    tracing::error!(nqn, host, error = %e, "a host that can't be authenticated is still let in");
                }
                _ => {}
            }
        }
        Err(error)
    }

    /// Has the kernel ask of a host what it should, as far as that is ours to say.
    pub(super) fn ask_as_it_should(&self, host: &str, deadline: &Deadline) -> Result<()> {
        if self.asks_as_it_should(host)? {
            return Ok(());
        }
        let failed = |path: String| {
            move |source: io::Error| match source.kind() {
                io::ErrorKind::NotFound => TargetError::Unsupported(
                    "authentication of NVMe hosts (CONFIG_NVME_TARGET_AUTH): nobody is let in without it"
                        .into(),
                ),
                _ => TargetError::Kernel {
                    step: format!("have {host} authenticated"),
                    path: path.into(),
                    source,
                },
            }
        };
        self.tree.restrict("hosts").map_err(failed("hosts".into()))?;
        for (attribute, wanted) in self.keys.get(host).iter().flat_map(wanted) {
            let path = format!("hosts/{host}/{attribute}");
            if optional(self.tree.read(&path)).map_err(failed(path.clone()))?.as_deref() == Some(&wanted) {
                continue;
            }
            deadline.check().map_err(|o| TargetError::Deadline(format!("having {host} authenticated"), o))?;
            let text = if wanted.is_empty() { NONE } else { &wanted };
            self.tree.write(&path, text).map_err(failed(path))?;
        }
        Ok(())
    }

    /// Whether somebody has put a secret into a host's directory of which we know nothing.
    pub(super) fn has_foreign_secret(&self, host: &str) -> bool {
        let filled = |a: &str| self.tree.read(&format!("hosts/{host}/{a}")).is_ok_and(|key| !key.is_empty());
        self.keys.get(host).is_none() && (filled(KEY) || filled("dhchap_ctrl_key"))
    }
}
