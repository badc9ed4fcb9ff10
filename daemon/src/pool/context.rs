//! How a pool makes its errors: each says which pool, and out-of-space is told apart from the rest by
//! the system's number for it.
//!
//! Called by every kind of pool.

use std::io;

use orlop_api::PoolName;
use rustix::io::Errno;

use super::{PoolError, Result};
use crate::kernel::exec::ExecError;
use crate::kernel::loopdev::LoopError;
use crate::kernel::{Deadline, Overrun};

/// The pool that errors are about.
#[derive(Debug, Clone)]
pub(super) struct Context {
    pub pool: PoolName,
}

impl Context {
    pub fn new(pool: &PoolName) -> Self {
        Self { pool: pool.clone() }
    }

    /// For `map_err`: a system call failed in the middle of `action`.
    pub fn io<A: Into<String>>(&self, action: A) -> impl FnOnce(io::Error) -> PoolError + use<A> {
        let (pool, action) = (self.pool.clone(), action.into());
        move |source| {
            let full = [Errno::NOSPC, Errno::DQUOT].map(Errno::raw_os_error);
            if source.raw_os_error().is_some_and(|e| full.contains(&e)) {
                PoolError::Exhausted { pool, detail: format!("{action}: {source}") }
            } else {
                PoolError::Io { pool, action, source }
            }
        }
    }

    /// For `map_err`: a command failed.
    pub fn exec(&self, error: ExecError) -> PoolError {
        let pool = self.pool.clone();
        match error {
            ExecError::Missing(_) => PoolError::Unsupported { pool, detail: error.to_string() },
            ExecError::Spawn { command, source } => {
                PoolError::Io { pool, action: format!("running {command}"), source }
            }
            ExecError::Overrun { command, source } => PoolError::Deadline { pool, action: command, source },
            ExecError::TooMuch(command) => {
                PoolError::Command { pool, command, detail: "it said too much".into() }
            }
            ExecError::Failed { command, status, detail } => {
                PoolError::Command { pool, command, detail: format!("{status}: {detail}") }
            }
            ExecError::Unparsed { command, detail } => PoolError::Command { pool, command, detail },
        }
    }

    /// For `map_err`: a loop device could not be had or let go.
    pub fn loop_device(&self, object: String) -> impl FnOnce(LoopError) -> PoolError + use<> {
        let pool = self.pool.clone();
        move |error| match error {
            LoopError::Io { action, source } => {
                PoolError::Io { pool, action: format!("{object}: {action}"), source }
            }
            LoopError::Foreign(_) => PoolError::Conflict { pool, object, detail: error.to_string() },
            LoopError::InUse(_) => PoolError::Precondition { pool, detail: format!("{object}: {error}") },
            LoopError::Deadline(action, source) => {
                PoolError::Deadline { pool, action: action.into(), source }
            }
        }
    }

    /// An error once the deadline has passed: asked between two changes.
    pub fn check(&self, deadline: &Deadline, action: &str) -> Result<()> {
        deadline.check().map_err(|source| self.late(action, source))
    }

    pub fn late(&self, action: &str, source: Overrun) -> PoolError {
        PoolError::Deadline { pool: self.pool.clone(), action: action.into(), source }
    }

    pub fn not_found(&self, object: impl Into<String>) -> PoolError {
        PoolError::NotFound { pool: self.pool.clone(), object: object.into() }
    }

    pub fn conflict(&self, object: impl Into<String>, detail: impl Into<String>) -> PoolError {
        PoolError::Conflict { pool: self.pool.clone(), object: object.into(), detail: detail.into() }
    }

    pub fn precondition(&self, detail: impl Into<String>) -> PoolError {
        PoolError::Precondition { pool: self.pool.clone(), detail: detail.into() }
    }

    pub fn failed(&self, detail: impl Into<String>) -> PoolError {
        PoolError::Failed { pool: self.pool.clone(), detail: detail.into() }
    }

    pub fn exhausted(&self, detail: impl Into<String>) -> PoolError {
        PoolError::Exhausted { pool: self.pool.clone(), detail: detail.into() }
    }

    pub fn unsupported(&self, detail: impl Into<String>) -> PoolError {
        PoolError::Unsupported { pool: self.pool.clone(), detail: detail.into() }
    }
}
