//! The commands: `ctld`, `ctladm`, `pgrep`, `pkill`.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::Path;

use super::{Ctld, List};
use crate::kernel::Deadline;
use crate::kernel::exec::{ExecError, Tool};

/// The most that a list may have: 50,000 sessions.
const MAX_LIST: usize = 64 << 20;

/// The installed commands. Each is looked for when it is needed: a machine without them serves nothing by CTL, and the
/// daemon starts all the same.
#[derive(Debug, Clone, Copy, Default)]
pub struct CtlTools;

impl CtlTools {
    fn ctladm() -> Result<Tool, ExecError> {
        Ok(Tool::locate("ctladm")?.at_most(MAX_LIST))
    }

    /// Process numbers that `pgrep` finds: 1 is its status for none.
    fn find(&self, args: &[&OsStr], deadline: &Deadline) -> Result<BTreeSet<u32>, ExecError> {
        let output = Tool::locate("pgrep")?.run(args, deadline)?;
        match output.code {
            Some(0) => output
                .text()?
                .split_ascii_whitespace()
                .map(|n| n.parse().map_err(|e| output.unparsed(&e)))
                .collect(),
            Some(1) => Ok(BTreeSet::new()),
            _ => Err(output.failure()),
        }
    }
}

impl Ctld for CtlTools {
    fn accepts(&self, file: &Path, deadline: &Deadline) -> Result<bool, ExecError> {
        let args = [OsStr::new("-u"), OsStr::new("-t"), OsStr::new("-f"), file.as_os_str()];
        Ok(Tool::locate("ctld")?.run(&args, deadline)?.code == Some(0))
    }

    // -L: the file must be locked, which the daemon does as long as it lives. A number that another process has by now
    // is not signalled.
    fn reload(&self, pidfile: &Path, deadline: &Deadline) -> Result<bool, ExecError> {
        let args = ["-HUP", "-L", "-x", "-F"].map(OsStr::new);
        let args = [args[0], args[1], args[2], args[3], pidfile.as_os_str(), OsStr::new("ctld")];
        let output = Tool::locate("pkill")?.run(&args, deadline)?;
        match output.code {
            Some(0) => Ok(true),
            // 1: none matched; 3: no such file, or it is not locked.
            Some(1 | 3) => Ok(false),
            _ => Err(output.failure()),
        }
    }

    fn logins(&self, pidfile: &Path, deadline: &Deadline) -> Result<BTreeSet<u32>, ExecError> {
        let word = OsStr::new;
        let args = [word("-L"), word("-x"), word("-F"), pidfile.as_os_str(), word("ctld")];
        let daemon = match self.find(&args, deadline) {
            // No daemon: nobody logs in.
            Err(ExecError::Failed { status, .. }) if status == "status 3" => return Ok(BTreeSet::new()),
            found => found?,
        };
        let mut found = BTreeSet::new();
        for pid in daemon {
            let pid = pid.to_string();
            found.extend(self.find(&[word("-P"), word(&pid), word("-x"), word("ctld")], deadline)?);
        }
        Ok(found)
    }

    fn list(&self, what: List, deadline: &Deadline) -> Result<String, ExecError> {
        let verb = match what {
            List::Luns => "devlist",
            List::Ports => "portlist",
            List::IscsiSessions => "islist",
            List::NvmeSessions => "nvlist",
        };
        let output = Self::ctladm()?.run(&[verb, "-x"], deadline)?.success()?;
        Ok(output.text()?.to_string())
    }

    fn terminate(&self, session: u64, deadline: &Deadline) -> Result<(), ExecError> {
        // Its status says as well that there is no such session. What counts is the list afterwards.
        Self::ctladm()?.run(&["isterminate", "-c", &session.to_string()], deadline).map(|_| ())
    }
}
