//! The daemon's configuration: `orlopd.toml`, its drop-ins and the systemd credential `orlop.config`.
//! Three types, in this order: a [`Fragment`](fragment::Fragment) is one file as it was read, the
//! [`Inputs`](inputs::Inputs) are all fragments merged (each value remembers where it stood), and
//! [`Settings`] are what was validated.
//!
//! Called by `main`, at start and when it is to be read anew. Never reads a secret, and never writes.

mod fragment;
mod inputs;
mod keys;
mod settings;

use std::path::{Path, PathBuf};

pub use settings::{
    ApiSettings, CtlSettings, Limits, LogFormat, LogSettings, NvmetSettings, PoolsSettings, Settings,
    TracesSettings,
};

use inputs::Inputs;

/// Where the configuration is looked for unless `--config` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/orlop/orlopd.toml";

/// The name of the credential that is read as the last fragment.
const CREDENTIAL: &str = "orlop.config";

/// One thing that is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file is there and can't be read.
    #[error("{}: cannot be read", file.display())]
    Read {
        /// Which.
        file: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A key is unknown, or a value breaks a rule.
    #[error("{}:{line}: {rule}", file.display())]
    Wrong {
        /// Which file.
        file: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// The key and the rule that it breaks.
        rule: String,
    },
}

/// Everything that is wrong with the configuration; never empty.
#[derive(Debug, thiserror::Error)]
#[error("the configuration has {} error(s)", .0.len())]
pub struct ConfigErrors(pub Vec<ConfigError>);

/// Reads, merges and validates. `main` may be absent (defaults); a file that is there must be right.
/// `credentials` is systemd's `$CREDENTIALS_DIRECTORY`.
pub fn load(main: &Path, credentials: Option<&Path>) -> Result<Settings, ConfigErrors> {
    let one = |e| ConfigErrors(vec![e]);
    let mut files = vec![main.to_path_buf()];
    files.extend(drop_ins(main).map_err(one)?);
    files.extend(credentials.map(|dir| dir.join(CREDENTIAL)));

    let mut inputs = Inputs::default();
    let mut errors = Vec::new();
    for file in files {
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(source) => {
                errors.push(ConfigError::Read { file, source });
                continue;
            }
        };
        match fragment::parse(&file, &text) {
            Ok(f) => inputs.merge(f, &file, &text),
            Err(e) => errors.push(e),
        }
    }
    match settings::validate(inputs) {
        Ok(settings) if errors.is_empty() => Ok(settings),
        Ok(_) => Err(ConfigErrors(errors)),
        Err(wrong) => {
            errors.extend(wrong);
            Err(ConfigErrors(errors))
        }
    }
}

/// `<main>.d/*.toml`, in lexical order.
fn drop_ins(main: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let mut dir = main.as_os_str().to_os_string();
    dir.push(".d");
    let dir = PathBuf::from(dir);
    let read = |source| ConfigError::Read { file: dir.clone(), source };
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(read(e)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(read)?.path();
        let hidden = path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|x| x == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The line (from 1) of a byte offset.
fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    before.iter().filter(|b| **b == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]
    use super::*;

    fn write(dir: &Path, name: &str, text: &str) {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn errors(text: &str) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "o.toml", text);
        let e = load(&dir.path().join("o.toml"), None).unwrap_err();
        let prefix = format!("{}/", dir.path().display());
        e.0.iter().map(|e| e.to_string().replace(&prefix, "")).collect()
    }

    #[test]
    fn nothing_there_means_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let s = load(&dir.path().join("o.toml"), Some(dir.path())).unwrap();
        assert_eq!(s, Settings::default());
        assert_eq!(s.state_dir, Path::new("/var/lib/orlop"));
    }

    #[test]
    fn the_packaged_file_states_the_defaults() {
        let packaged = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/etc/orlop/orlopd.toml");
        assert!(packaged.exists());
        let dir = tempfile::tempdir().unwrap();
        let text = std::fs::read_to_string(&packaged).unwrap();
        // Every key is there as a comment; uncommented, it is the default.
        let bare: String = text.lines().map(|l| format!("{}\n", l.strip_prefix("#:").unwrap_or(l))).collect();
        write(dir.path(), "o.toml", &bare);
        assert_eq!(load(&dir.path().join("o.toml"), None).unwrap(), Settings::default());
        assert_eq!(load(&packaged, None).unwrap(), Settings::default());
    }

    #[test]
    fn later_fragments_win_key_by_key() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "o.toml", "[limits]\nconnections = 10\ndrain_seconds = 5\n");
        write(dir.path(), "o.toml.d/20-b.toml", "[limits]\nconnections = 30\n");
        write(dir.path(), "o.toml.d/10-a.toml", "[limits]\nconnections = 20\npool_threads = 2\n");
        write(dir.path(), "o.toml.d/ignored.txt", "nonsense");
        write(dir.path(), "cred/orlop.config", "[limits]\npool_threads = 3\n");
        let s = load(&dir.path().join("o.toml"), Some(&dir.path().join("cred"))).unwrap();
        assert_eq!((s.limits.connections, s.limits.drain.as_secs(), s.limits.pool_threads), (30, 5, 3));
    }

    #[test]
    fn unknown_keys_are_refused_with_their_line() {
        let got = errors("state_dir = \"/x\"\n\n[api]\nsockt = \"/y\"\n");
        assert_eq!(got.len(), 1);
        assert!(got[0].starts_with("o.toml:4: unknown field `sockt`"), "{got:?}");
        assert!(errors("[nope]\n")[0].starts_with("o.toml:1: unknown field `nope`"));
    }

    #[test]
    fn all_wrong_values_are_told_at_once_with_the_rule() {
        let got = errors(
            "state_dir = \"rel\"\n[api]\nlisten = [\"[::]:8443\", \"nope\"]\n[nvmet]\nportals = []\n\
             nqn_prefix = \"x\"\n[log]\nlevel = \"loud=\"\nformat = \"xml\"\n[limits]\nconnections = 0\n",
        );
        let starts = ["o.toml:1: state_dir", "o.toml:3: api.listen", "o.toml:5: nvmet.portals"];
        for s in starts {
            assert!(got.iter().any(|g| g.starts_with(s)), "{s}: {got:?}");
        }
        assert!(got.iter().any(|g| g.starts_with("o.toml:6: nvmet.nqn_prefix")), "{got:?}");
        assert!(got.iter().any(|g| g.starts_with("o.toml:8: log.level")), "{got:?}");
        assert!(got.iter().any(|g| g.starts_with("o.toml:9: log.format")), "{got:?}");
        assert!(got.iter().any(|g| g.starts_with("o.toml:11: limits.connections")), "{got:?}");
    }

    #[test]
    fn portals_of_nvme_have_rules() {
        for (text, want) in [
            ("portals = [\"10.0.0.1\"]", "o.toml:2: nvmet.portals must be ADDRESS:PORT"),
            ("portals = [\"10.0.0.1:0\"]", "o.toml:2: nvmet.portals must have a port"),
            ("portals = [{ tls = true }]", "o.toml:2: missing field `listen`"),
            ("portals = [{ listen = \"10.0.0.1:1\", tsl = true }]", "o.toml:2: unknown field `tsl`"),
            ("portals = [{ listen = \"10.0.0.1:1\", tls = 1 }]", "o.toml:2: invalid type"),
            ("portals = [1]", "o.toml:2: invalid type: integer `1`, expected ADDRESS:PORT, or a table"),
            (
                "portals = [\"10.0.0.1:1\", { listen = \"10.0.0.1:1\", tls = true }]",
                "o.toml:2: nvmet.portals has",
            ),
            (
                "portals = [{ listen = \"10.0.0.1:1\", transport = \"fc\" }]",
                "o.toml:2: nvmet.portals must have tcp or",
            ),
            (
                "portals = [{ listen = \"10.0.0.1:1\", transport = \"rdma\", tls = true }]",
                "o.toml:2: nvmet.portals can have TLS with tcp alone",
            ),
            (
                "portals = [{ listen = \"10.0.0.1:1\", ana = \"change\" }]",
                "o.toml:2: nvmet.portals must have optimized",
            ),
            ("io_queues = 0", "o.toml:2: nvmet.io_queues must be 1 to 128"),
            ("io_queues = 129", "o.toml:2: nvmet.io_queues must be 1 to 128"),
            ("queue_size = 15", "o.toml:2: nvmet.queue_size must be 16 to 1024"),
            ("queue_size = 1025", "o.toml:2: nvmet.queue_size must be 16 to 1024"),
            ("referrals = [\"host:1\"]", "o.toml:2: nvmet.referrals must be ADDRESS:PORT"),
        ] {
            let got = errors(&format!("[nvmet]\n{text}\n"));
            assert!(got.len() == 1 && got[0].starts_with(want), "{text}: {got:?}");
        }
        let many: Vec<String> = (1..=65).map(|n| format!("\"10.0.0.{n}:1\"")).collect();
        let got = errors(&format!("[nvmet]\nportals = [{}]\n", many.join(", ")));
        assert!(got[0].contains("at most 64"), "{got:?}");

        // What is shown reads back.
        let dir = tempfile::tempdir().unwrap();
        let text = "[nvmet]\nportals = [\"[::1]:4420\", { listen = \"10.0.0.1:4421\", tls = true }, { listen = \
                    \"10.0.0.1:4422\", transport = \"rdma\", ana = \"inaccessible\" }]\nreferrals = [\"10.0.0.2:4420\"]\n\
                    io_queues = 4\nqueue_size = 64\n";
        write(dir.path(), "o.toml", text);
        let first = load(&dir.path().join("o.toml"), None).unwrap();
        assert!(first.nvmet.portals[1].tls && !first.nvmet.portals[0].tls, "{first}");
        write(dir.path(), "p.toml", &first.to_string());
        assert_eq!(load(&dir.path().join("p.toml"), None).unwrap(), first);
    }

    #[test]
    fn thresholds_of_pools_have_rules() {
        for (text, want) in [
            ("warn_percent = 0", "o.toml:2: pools.warn_percent must be 1 to 100, not 0"),
            ("stop_percent = 101", "o.toml:2: pools.stop_percent must be 1 to 100, not 101"),
            ("warn_percent = 96", "o.toml:2: pools.warn_percent must not be above pools.stop_percent"),
            ("stop_percent = 79", "o.toml:2: pools.warn_percent must not be above pools.stop_percent"),
            ("stop_percent = 50\nwarn_percent = 51", "o.toml:3: pools.warn_percent must not be above"),
            ("warn_percent = -1", "o.toml:2: "),
            ("full_percent = 90", "o.toml:2: unknown field `full_percent`"),
        ] {
            let got = errors(&format!("[pools]\n{text}\n"));
            assert!(got.len() == 1 && got[0].starts_with(want), "{text}: {got:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "o.toml", "[pools]\nwarn_percent = 1\nstop_percent = 1\n");
        let s = load(&dir.path().join("o.toml"), None).unwrap();
        assert_eq!(s.pools, PoolsSettings { warn_percent: 1, stop_percent: 1 });
    }

    #[test]
    fn a_wrong_type_has_its_line() {
        let got = errors("[limits]\nconnections = \"many\"\n");
        assert!(got[0].starts_with("o.toml:2: "), "{got:?}");
        let got = errors("a = = 1\n");
        assert!(got[0].starts_with("o.toml:1: "), "{got:?}");
    }

    #[test]
    fn a_protocol_is_served_by_one_target() {
        let dir = tempfile::tempdir().unwrap();
        let read = |text: &str| {
            write(dir.path(), "o.toml", text);
            load(&dir.path().join("o.toml"), None).unwrap()
        };
        let s = read("[ctl]\niscsi_portals = [\"10.0.0.1:3260\"]\n");
        assert!(s.lio.portals.is_empty() && s.nvmet == Settings::default().nvmet);
        assert_eq!(read(&s.to_string()), s);
        let s = read("[ctl]\nnvme_portals = [\"[::]:4420\"]\nnvme_access = \"by-network\"\n");
        assert!(s.nvmet.portals.is_empty() && s.lio == Settings::default().lio);
        assert_eq!(s.ctl.nvme_access, crate::target::ctl::NvmeAccess::ByNetwork);
        assert_eq!(read(&s.to_string()), s);
        // A section without portals chooses nothing.
        let s = read("[ctl]\nfile = \"/etc/orlop-ctl.conf\"\n[lio]\nportals = [\"10.0.0.1:3260\"]\n");
        assert_eq!(s.lio.portals.len(), 1);

        let both = "[ctl]\niscsi_portals = [\"10.0.0.1:3260\"]\nnvme_portals = [\"10.0.0.1:4420\"]\n\
                    [lio]\nportals = [\"10.0.0.2:3260\"]\n[nvmet]\nportals = [\"10.0.0.2:4420\"]\n";
        let got = errors(both);
        assert!(got.len() == 2, "{got:?}");
        assert!(
            got[0].starts_with("o.toml:5: lio.portals and ctl.iscsi_portals would both serve"),
            "{got:?}"
        );
        assert!(
            got[1].starts_with("o.toml:7: nvmet.portals and ctl.nvme_portals would both serve"),
            "{got:?}"
        );
        assert!(
            got[0].contains("[lio]") && got[0].contains("[ctl]") && got[1].contains("[nvmet]"),
            "{got:?}"
        );
        for (text, want) in [
            ("nvme_access = \"everybody\"", "o.toml:2: ctl.nvme_access must be refused or by-network"),
            ("file = \"ctl.conf\"", "o.toml:2: ctl.file must be an absolute path"),
            ("iscsi_portals = [\"here\"]", "o.toml:2: ctl.iscsi_portals must be ADDRESS:PORT"),
        ] {
            let got = errors(&format!("[ctl]\n{text}\n"));
            assert!(got.len() == 1 && got[0].starts_with(want), "{text}: {got:?}");
        }
    }

    #[test]
    fn what_is_shown_can_be_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let shown = Settings::default().to_string();
        write(dir.path(), "o.toml", &shown);
        assert_eq!(load(&dir.path().join("o.toml"), None).unwrap(), Settings::default(), "{shown}");
    }
}
