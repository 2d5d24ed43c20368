//! Closes what is held open of removed files, on a thread of its own that is there while there is something
//! to close. Nothing depends on when that is: when the process dies, the system does it.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

/// What is to be closed.
#[derive(Debug, Default)]
pub(super) struct Closer {
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    held: Vec<OwnedFd>,
    /// A thread is at it, and looks again before it ends.
    running: bool,
}

impl Closer {
    /// Closes it soon; at once where there is no thread to be had.
    pub(super) fn close_later(self: &Arc<Self>, held: OwnedFd) {
        let start = self.locked(|waiting| {
            waiting.held.push(held);
            !std::mem::replace(&mut waiting.running, true)
        });
        if start {
            let closer = Arc::clone(self);
            let thread = std::thread::Builder::new().name("laminar-close".into());
            if thread.spawn(move || closer.close_all()).is_err() {
                self.close_all();
            }
        }
    }

    fn close_all(&self) {
        loop {
            let held = self.locked(|waiting| {
                waiting.running = !waiting.held.is_empty();
                std::mem::take(&mut waiting.held)
            });
            if held.is_empty() {
                return;
            }
            drop(held);
        }
    }

    fn locked<R>(&self, change: impl FnOnce(&mut Waiting) -> R) -> R {
        change(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
