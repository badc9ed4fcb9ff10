//! A tree that remembers what was changed in it, so that the same can be done again by system calls alone.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use orlopd::kernel::configfs::ConfigFs;
use orlopd::target::ConfigTree;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// One change that the kernel accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A directory was made.
    Dir(String),
    /// An attribute was written.
    Write(String, String),
    /// The second was made a link to the first.
    Link(String, String),
}

/// What a call is and the last part of its path, how often it was made, and how long all of them took.
type Calls = BTreeMap<(&'static str, String), (usize, Duration)>;

/// See the module. Over the kernel's own tree.
pub struct Recorder {
    tree: ConfigFs,
    changes: Mutex<Vec<Change>>,
    calls: Option<Mutex<Calls>>,
}

impl Recorder {
    /// Over the tree at `root`. `timed`: it keeps the time of each kind of call, which costs some.
    pub fn at(root: &str, timed: bool) -> Arc<Self> {
        let calls = timed.then(Mutex::default);
        Arc::new(Self { tree: ConfigFs::at(root), changes: Mutex::default(), calls })
    }

    fn call<T>(&self, what: &'static str, path: &str, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let Some(calls) = &self.calls else { return call() };
        let begin = Instant::now();
        let result = call();
        let took = begin.elapsed();
        // Names that are a volume's or a host's are one kind.
        let leaf = path.rsplit('/').next().unwrap_or_default();
        let leaf = if leaf.contains('-') || leaf.contains(':') { "*" } else { leaf };
        let mut calls = calls.lock();
        let (count, all) = calls.entry((what, leaf.into())).or_default();
        *count += 1;
        *all += took;
        result
    }

    /// Kinds of calls, those that took longest first, a line each.
    pub fn calls(&self) -> String {
        let Some(calls) = &self.calls else { return String::new() };
        let calls = calls.lock();
        let mut kinds: Vec<_> = calls.iter().collect();
        kinds.sort_by_key(|(_, (_, all))| std::cmp::Reverse(*all));
        let line = |((what, leaf), (count, all)): (&(&str, String), &(usize, Duration))| {
            format!("{:9.1} ms {count:6} {what} {leaf}\n", all.as_secs_f64() * 1e3)
        };
        kinds.into_iter().map(line).collect()
    }

    /// All that was changed, in order.
    pub fn changes(&self) -> Vec<Change> {
        std::mem::take(&mut *self.changes.lock())
    }
}

/// Makes changes again below `root`, each by as few system calls as there are for it.
pub fn replay(root: &str, changes: &[Change]) -> io::Result<()> {
    let root = Path::new(root);
    for change in changes {
        match change {
            Change::Dir(path) => std::fs::create_dir(root.join(path))?,
            Change::Write(path, value) => {
                use std::io::Write as _;
                let mut file = std::fs::OpenOptions::new().write(true).open(root.join(path))?;
                file.write_all(value.as_bytes())?;
            }
            Change::Link(target, path) => std::os::unix::fs::symlink(root.join(target), root.join(path))?,
        }
    }
    Ok(())
}

impl ConfigTree for Recorder {
    fn make_dir(&self, path: &str) -> io::Result<()> {
        self.call("make", path, || self.tree.make_dir(path))?;
        self.changes.lock().push(Change::Dir(path.into()));
        Ok(())
    }
    fn remove_dir(&self, path: &str) -> io::Result<()> {
        self.call("remove", path, || self.tree.remove_dir(path))
    }
    fn read(&self, path: &str) -> io::Result<String> {
        self.call("read", path, || self.tree.read(path))
    }
    fn write(&self, path: &str, value: &str) -> io::Result<()> {
        self.call("write", path, || self.tree.write(path, value))?;
        self.changes.lock().push(Change::Write(path.into(), value.into()));
        Ok(())
    }
    fn restrict(&self, path: &str) -> io::Result<()> {
        self.tree.restrict(path)
    }
    fn link(&self, target: &str, path: &str) -> io::Result<()> {
        self.call("link", path, || self.tree.link(target, path))?;
        self.changes.lock().push(Change::Link(target.into(), path.into()));
        Ok(())
    }
    fn unlink(&self, path: &str) -> io::Result<()> {
        self.call("unlink", path, || self.tree.unlink(path))
    }
    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        self.call("list", path, || self.tree.list(path))
    }
    fn read_link(&self, path: &str) -> io::Result<String> {
        self.call("read link", path, || self.tree.read_link(path))
    }
}
