//! What is under way: a second call about the same object is told so, and does not wait.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;
use tonic::Status;

use crate::status::Result;

/// See the module. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Locks(Arc<Mutex<HashSet<String>>>);

/// Held while a call is under way.
#[derive(Debug)]
pub struct Lock {
    all: Locks,
    object: String,
}

impl Locks {
    /// For a call about this object; `ABORTED` if there is one already.
    pub fn take(&self, object: impl Into<String>) -> Result<Lock> {
        let object = object.into();
        if self.0.lock().insert(object.clone()) {
            return Ok(Lock { all: self.clone(), object });
        }
        Err(Status::aborted(format!("another call about {object} is under way")))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.all.0.lock().remove(&self.object);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_call_at_a_time_is_about_an_object() {
        let locks = Locks::default();
        let first = locks.take("a").unwrap();
        assert_eq!(locks.take("a").unwrap_err().code(), tonic::Code::Aborted);
        locks.take("b").unwrap();
        drop(first);
        locks.take("a").unwrap();
    }
}
