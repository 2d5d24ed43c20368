//! Ring 1's sleep, and how it is woken.

use std::time::Duration;

use crate::sync::atomic::{AtomicBool, Ordering, fence};
use crate::sync::{OnceLock, thread};

/// A thread that sleeps when there is nothing to do. To wake it costs a look at a flag while it is awake.
#[derive(Debug, Default)]
pub(crate) struct Sleeper {
    thread: OnceLock<thread::Thread>,
    asleep: AtomicBool,
}

impl Sleeper {
    /// Says which thread it is, before anybody wakes it.
    pub(crate) fn is(&self, thread: thread::Thread) {
        let _ = self.thread.set(thread);
    }

    /// Whether that thread is the caller.
    pub(crate) fn is_me(&self) -> bool {
        self.thread.get().is_some_and(|thread| thread.id() == thread::current().id())
    }

    /// Wakes it if it sleeps. What the caller gave it to do before is seen by it: the flag is up before it looks
    /// for work once more, and the flag is looked at here after the work is there, so that one of the two sees
    /// the other.
    #[inline]
    pub(crate) fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) && self.asleep.swap(false, Ordering::SeqCst) {
            self.rouse();
        }
    }

    /// Wakes it, or keeps it from falling asleep the next time.
    pub(crate) fn rouse(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// On the thread itself: sleeps until it is woken, but not longer than `at_most`, and not at all when there is
    /// something to do.
    pub(crate) fn nap(&self, at_most: Duration, has_work: impl FnOnce() -> bool) {
        self.asleep.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if !has_work() {
            thread::park_timeout(at_most);
        }
        self.asleep.store(false, Ordering::SeqCst);
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
