//! The programs of the host that this needs: those that make, check and grow file systems, and open-iscsi's. The image has
//! none of its own: what reads a disk's file system should be what the host has for it.
#![allow(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::process::Command;

/// Where programs are, in the order in which they are looked for.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Why a program did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// The host has no such program.
    #[error("{0} is not on this node: install it")]
    Missing(String),
    /// It could not be started or waited for.
    #[error("{0}: {1}")]
    Io(String, #[source] std::io::Error),
    /// It took too long and was ended.
    #[error("{0} took longer than {1:?}")]
    Late(String, Duration),
    /// It failed.
    #[error("{program} ended with {status}: {says}")]
    Failed {
        /// Which.
        program: String,
        /// Its exit status, or the signal.
        status: String,
        /// The end of what it complained.
        says: String,
    },
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Tools {
    /// The host's root directory, as it is seen here.
    root: PathBuf,
}

impl Tools {
    /// Those below a root: `/` where this runs on the host itself.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// A file of the host's, by its path from the root on.
    pub fn on_host(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    fn find(&self, program: &str) -> Result<PathBuf, ToolError> {
        let places = DIRECTORIES.iter().map(|dir| Path::new(dir).join(program));
        let there = |path: &PathBuf| self.on_host(path.strip_prefix("/").unwrap_or(path)).is_file();
        places.into_iter().find(there).ok_or_else(|| ToolError::Missing(program.into()))
    }

    /// Runs one, and returns how it ended, whatever that is.
    pub async fn run(&self, program: &str, args: &[&str], limit: Duration) -> Result<Output, ToolError> {
        let path = self.find(program)?;
        let mut command = Command::new(path);
        command
            .args(args)
            .env_clear()
            .envs([("PATH", DIRECTORIES.join(":").as_str()), ("LC_ALL", "C")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if self.root != Path::new("/") {
            let root = self.root.clone();
            // SAFETY: between fork and exec two system calls are made, and nothing is allocated: rustix puts paths of this
            // length on the stack.
            unsafe {
                command.pre_exec(move || {
                    rustix::process::chroot(&root)?;
                    rustix::process::chdir("/")?;
                    Ok(())
                });
            }
        }
        let running = command.output();
        match tokio::time::timeout(limit, running).await {
            Ok(output) => output.map_err(|e| ToolError::Io(program.into(), e)),
            Err(_) => Err(ToolError::Late(program.into(), limit)),
        }
    }

    /// Runs one that must succeed, and returns what it printed.
    pub async fn must(&self, program: &str, args: &[&str], limit: Duration) -> Result<String, ToolError> {
        let output = self.run(program, args, limit).await?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(failed(program, &output))
    }
}

/// How one failed, in words.
pub fn failed(program: &str, output: &Output) -> ToolError {
    let complaint = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
    let text = String::from_utf8_lossy(complaint);
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let says = lines[lines.len().saturating_sub(3)..].join("; ");
    ToolError::Failed { program: program.into(), status: output.status.to_string(), says }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_program_ends_as_it_ends() {
        let tools = Tools::at("/");
        assert_eq!(tools.must("echo", &["a", "b"], SOON).await.unwrap(), "a b\n");
        assert!(matches!(tools.must("no-such-program", &[], SOON).await, Err(ToolError::Missing(_))));
        let error = tools.must("ls", &["/nonexistent"], SOON).await.unwrap_err().to_string();
        assert!(error.starts_with("ls ended with") && error.contains("/nonexistent"), "{error}");
        let late = tools.must("sleep", &["30"], Duration::from_millis(50)).await;
        assert!(matches!(late, Err(ToolError::Late(..))));
    }
}
