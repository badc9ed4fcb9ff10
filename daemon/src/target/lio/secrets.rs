//! The secrets that hosts must prove to know (CHAP), in their node ACLs.
//!
//! The kernel reads them when a host logs in: who is logged in stays so when they change. It shows them to the superuser
//! alone.

use std::path::Path;

use orlop_api::{ChapCredentials, Iqn};

use super::Lio;
use super::state::GROUP;
use crate::kernel::Deadline;
use crate::target::keys::Proof;
use crate::target::tree::{attribute, gone, list};
use crate::target::{Result, TargetError};

/// The attributes of a node ACL's `auth`, in the order in which they are written: the secret that the host must know
/// comes last.
const ATTRIBUTES: [&str; 4] = ["userid_mutual", "password_mutual", "userid", "password"];

/// What takes a name or a secret away. It still reads so afterwards. No name and no secret of a host begins so.
const NONE: &str = "NULL";

/// What a host is asked for, and by what.
struct Asked {
    /// By the node ACL itself, where the kernel can.
    own: Option<String>,
    /// By the portal group, for all that don't say otherwise.
    all: Option<String>,
    /// [`ATTRIBUTES`]; empty where there is nothing.
    values: [String; 4],
}

impl Asked {
    /// Whether a proof is needed to log in.
    fn needed(&self) -> bool {
        let of = |value: &Option<String>| value.as_deref().filter(|v| *v != "-1").map(|v| v != "0");
        of(&self.own).or(of(&self.all)).unwrap_or(true)
    }
}

/// What each of [`ATTRIBUTES`] should be.
fn wanted(proof: Option<&Proof>) -> [String; 4] {
    let pair = |c: &ChapCredentials| [c.user.to_string(), c.secret.expose().to_string()];
    match proof {
        Some(Proof::Chap(ask)) => {
            let [user, secret] = pair(&ask.host);
            let [mutual_user, mutual_secret] = ask.target.as_ref().map(pair).unwrap_or_default();
            [mutual_user, mutual_secret, user, secret]
        }
        _ => Default::default(),
    }
}

/// Whether a host must prove anything that is a matter of iSCSI.
fn must_prove(proof: Option<&Proof>) -> bool {
    matches!(proof, Some(Proof::Chap(_)))
}

impl Lio {
    fn asked(&self, iqn: &Iqn, group: &str, host: &str) -> Result<Asked> {
        let tree = &*self.tree;
        let at = format!("iscsi/{iqn}/{group}");
        let own = attribute(tree, &format!("{at}/acls/{host}/attrib/authentication"))?;
        let all = attribute(tree, &format!("{at}/attrib/authentication"))?;
        let mut values: [String; 4] = Default::default();
        for (name, value) in ATTRIBUTES.iter().zip(&mut values) {
            let read = attribute(tree, &format!("{at}/acls/{host}/auth/{name}"))?.unwrap_or_default();
            // The kernel takes all that begins so for nothing.
            *value = if read.starts_with(NONE) { String::new() } else { read };
        }
        Ok(Asked { own, all, values })
    }

    /// Whether the kernel asks of a host, whose node ACL is there, what it should.
    pub(super) fn asks_as_it_should(&self, iqn: &Iqn, group: &str, host: &str) -> Result<bool> {
        let proof = self.keys.get(host);
        let asked = self.asked(iqn, group, host)?;
        if proof.is_none() && asked.values.iter().any(|v| !v.is_empty()) {
            // Somebody else has put them there.
            return Ok(true);
        }
        Ok(asked.needed() == must_prove(proof.as_ref()) && asked.values == wanted(proof.as_ref()))
    }

    /// Has the kernel ask of a host what it should, as far as that is ours to say. The door is closed first and opened
    /// last.
    pub(super) fn ask_as_it_should(
        &self,
        iqn: &Iqn,
        group: &str,
        host: &str,
        deadline: &Deadline,
    ) -> Result<()> {
        if self.asks_as_it_should(iqn, group, host)? {
            return Ok(());
        }
        let proof = self.keys.get(host);
        let must = must_prove(proof.as_ref());
        let wanted = wanted(proof.as_ref());
        let acl = format!("iscsi/{iqn}/{group}/acls/{host}");
        let asked = self.asked(iqn, group, host)?;
        let own = asked.own.is_some();
        if must && !asked.needed() {
            let path = if own {
                format!("{acl}/attrib/authentication")
            } else {
                format!("iscsi/{iqn}/{group}/attrib/authentication")
            };
            self.put(host, &path, "1")?;
        }
        if asked.values != wanted {
            let path = format!("{acl}/auth");
            self.tree.restrict(&path).map_err(|source| not_asked(host, &path, source))?;
        }
        for ((name, is), wanted) in ATTRIBUTES.iter().zip(&asked.values).zip(&wanted) {
            if is != wanted {
                deadline
                    .check()
                    .map_err(|o| TargetError::Deadline(format!("having {host} authenticated"), o))?;
                self.put(host, &format!("{acl}/auth/{name}"), if wanted.is_empty() { NONE } else { wanted })?;
            }
        }
        match own {
            true if must => Ok(()),
            true => self.put(host, &format!("{acl}/attrib/authentication"), "0"),
            false => self.ask_all_or_none(iqn, group),
        }
    }

    /// Before Linux 6.2 all hosts of a target are asked, or none. Where some must prove something and some have nothing
    /// to prove, the latter stay out.
    fn ask_all_or_none(&self, iqn: &Iqn, group: &str) -> Result<()> {
        let hosts = list(&*self.tree, &format!("iscsi/{iqn}/{group}/acls"))?;
        let (must, free): (Vec<_>, Vec<_>) =
            hosts.iter().partition(|host| must_prove(self.keys.get(host).as_ref()));
        let path = format!("iscsi/{iqn}/{group}/attrib/authentication");
        if let Some(host) = hosts.first() {
            self.put(host, &path, if must.is_empty() { "0" } else { "1" })?;
        }
        if must.is_empty() || free.is_empty() {
            return Ok(());
        }
        let words = "authentication of one host and not of another (from Linux 6.2): hosts without a secret are not \
                     let in beside hosts with one";
        Err(TargetError::Unsupported(words.into()))
    }

    /// Has a host, where it is let in already, asked for what it should. Where that can't be had, it is let in no more.
    pub(super) fn have_proved(&self, host: &str, deadline: &Deadline) -> Result<()> {
        let mut result = Ok(());
        for volume in self.ours()? {
            let iqn = self.config.prefix.target(volume);
            if self.tree.list(&format!("iscsi/{iqn}/{GROUP}/acls/{host}")).is_err() {
                continue;
            }
            if let Err(error) = self.ask_as_it_should(&iqn, GROUP, host, deadline) {
                tracing::warn!(%iqn, host, error = %error, "a host can't be authenticated and is let in no more");
                result = Err(error);
                // Whatever becomes of it here, it is not let in at the other volumes.
                if let Err(error) = self.cut_off(&iqn, host) {
                    tracing::error!(%iqn, host, error = %error, "a target has hosts that can't be told apart");
                    result = Err(error);
                }
            }
        }
        result
    }

    /// Removes a host, which ends its sessions.
    fn cut_off(&self, iqn: &Iqn, host: &str) -> Result<()> {
        let acl = format!("iscsi/{iqn}/{GROUP}/acls/{host}");
        for lun in list(&*self.tree, &acl)?.iter().filter(|n| n.starts_with("lun_")) {
            let lun = format!("{acl}/{lun}");
            for entry in list(&*self.tree, &lun)? {
                if self.tree.read_link(&format!("{lun}/{entry}")).is_ok() {
                    let path = format!("{lun}/{entry}");
                    gone(self.tree.unlink(&path)).map_err(|e| not_asked(host, &path, e))?;
                }
            }
            gone(self.tree.remove_dir(&lun)).map_err(|e| not_asked(host, &lun, e))?;
        }
        gone(self.tree.remove_dir(&acl)).map_err(|e| not_asked(host, &acl, e))?;
        // Those that are left may be right again.
        let left = list(&*self.tree, &format!("iscsi/{iqn}/{GROUP}/acls"))?;
        let Some(other) = left.first() else { return Ok(()) };
        match self.asked(iqn, GROUP, other)?.own {
            Some(_) => Ok(()),
            None => self.ask_all_or_none(iqn, GROUP),
        }
    }

    fn put(&self, host: &str, path: &str, value: &str) -> Result<()> {
        self.tree.write(path, value).map_err(|source| not_asked(host, path, source))
    }
}

fn not_asked(host: &str, path: &str, source: std::io::Error) -> TargetError {
    TargetError::Kernel { step: format!("have {host} authenticated"), path: Path::new(path).into(), source }
}
