//! What is staged here, in a file a volume, so that a container that is started again finds it. Without the file all that is
//! needed is read from the kernel: it is a help, and no truth.

use std::io;
use std::path::{Path, PathBuf};

use orlop_api::{Access, Attachment, VolumeId};
use serde::{Deserialize, Serialize};

/// A staged volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staged {
    /// What it was attached as. It holds no secret.
    pub attachment: Attachment,
    /// Where.
    pub staging: PathBuf,
}

/// Where the files are.
#[derive(Debug, Clone)]
pub struct State(PathBuf);

impl State {
    /// In this directory.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self(dir.into())
    }

    fn file(&self, volume: VolumeId) -> PathBuf {
        self.0.join(format!("{volume}.json"))
    }

    /// Before anything is connected: what may be connected is known.
    pub fn put(&self, staged: &Staged) -> io::Result<()> {
        std::fs::create_dir_all(&self.0)?;
        let file = self.file(staged.attachment.volume);
        let partial = file.with_extension("partial");
        std::fs::write(&partial, serde_json::to_vec(staged)?)?;
        std::fs::rename(partial, file)
    }

    /// `None`: there is none, or none that is understood.
    pub fn get(&self, volume: VolumeId) -> Option<Staged> {
        let text = std::fs::read(self.file(volume)).ok()?;
        serde_json::from_slice(&text)
            .inspect_err(
                |error| tracing::warn!(%volume, %error, "what was kept of a staged volume is not understood"),
            )
            .ok()
    }

    /// Fine if it is not there.
    pub fn remove(&self, volume: VolumeId) -> io::Result<()> {
        match std::fs::remove_file(self.file(volume)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    /// Where they are.
    pub fn dir(&self) -> &Path {
        &self.0
    }
}

/// An attachment in JSON, as the controller passes it on.
pub fn attachment(text: &str) -> Result<Attachment, String> {
    serde_json::from_str(text).map_err(|e| format!("the attachment is not understood: {e}"))
}

/// Whether two are the same way to the same volume: paths may have come and gone.
pub fn is_same(a: &Attachment, b: &Attachment) -> bool {
    let way = match (&a.access, &b.access) {
        (Access::Nvme(a), Access::Nvme(b)) => {
            (&a.nqn, &a.host_nqn, &a.nguid) == (&b.nqn, &b.host_nqn, &b.nguid)
        }
        (Access::Iscsi(a), Access::Iscsi(b)) => (&a.iqn, &a.lun, &a.wwn) == (&b.iqn, &b.lun, &b.wwn),
        (Access::Nfs(a), Access::Nfs(b)) => a.path == b.path,
        _ => false,
    };
    way && (a.volume, &a.host, a.read_only) == (b.volume, &b.host, b.read_only)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_kept_is_found_and_what_is_broken_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::at(dir.path().join("state"));
        let attachment = attachment(
            r#"{"volume": "0190c0de-0000-7000-8000-000000000001", "host": "w", "size": 1, "protocol": "nfs",
                "portals": [], "path": "/volumes/x", "networks": [], "squash": "none"}"#,
        )
        .unwrap();
        let staged = Staged { attachment: attachment.clone(), staging: "/s".into() };
        assert_eq!(state.get(attachment.volume), None);
        state.put(&staged).unwrap();
        state.put(&staged).unwrap();
        assert_eq!(state.get(attachment.volume), Some(staged));
        assert!(is_same(&attachment, &attachment));
        std::fs::write(state.file(attachment.volume), "{").unwrap();
        assert_eq!(state.get(attachment.volume), None);
        state.remove(attachment.volume).unwrap();
        state.remove(attachment.volume).unwrap();
    }
}
