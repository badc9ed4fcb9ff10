//! Things that go wrong on request.

use std::io;

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;

/// What happens to a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is refused and nothing happens.
    Fail(Errno),
    /// It does not return until [`super::SimTree::release`], and then is refused.
    Hang,
}

#[derive(Debug, Default)]
struct State {
    /// The fault, and after how many more changes it comes.
    next: Option<(usize, Fault)>,
    released: bool,
    hanging: usize,
}

/// The fault that is due, if any.
#[derive(Debug, Default)]
pub(super) struct Faults {
    state: Mutex<State>,
    changed: Condvar,
}

impl Faults {
    pub(super) fn after(&self, changes: usize, fault: Fault) {
        *self.state.lock() = State { next: Some((changes, fault)), ..State::default() };
    }

    pub(super) fn release(&self) {
        self.state.lock().released = true;
        self.changed.notify_all();
    }

    pub(super) fn hanging(&self) -> usize {
        self.state.lock().hanging
    }

    /// Called before each change, without any lock of the tree.
    pub(super) fn check(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        match &mut state.next {
            Some((0, fault)) => {
                let fault = *fault;
                state.next = None;
                let errno = match fault {
                    Fault::Fail(errno) => errno,
                    Fault::Hang => {
                        state.hanging += 1;
                        while !state.released {
                            self.changed.wait(&mut state);
                        }
                        state.hanging -= 1;
                        Errno::INTR
                    }
                };
                Err(errno.into())
            }
            Some((n, _)) => {
                *n -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}
