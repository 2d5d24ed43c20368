//! The locks, atomics and threads of code that several threads of a store run at once.
//!
//! They are those of the standard library. When the tests are built with `--cfg loom` or `--cfg shuttle`, they are
//! those of these two checkers instead, which then decide which thread goes on at every operation:
//! `tools/concurrency` has the commands. The ring itself (`rtrb`), memory that is filled ahead and the threads of
//! `OsVfs` use the standard library in any case; `tools/ring` shows the ring to loom with atomics put in from outside.
//!
//! Builds for them leave out all tests but those that they run, and so are ready sooner: `cargo test` waits for them.
//!
//! In both checkers no time passes: what waits for at most a second waits for ever, so that whoever forgets to
//! wake somebody is found out.

#[cfg(not(all(test, any(loom, shuttle))))]
mod imp {
    pub(crate) use std::sync::atomic;
    pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, OnceLock};
    pub(crate) use std::thread;
}

#[cfg(all(test, shuttle))]
mod imp {
    pub(crate) use std::sync::OnceLock;

    pub(crate) use shuttle::sync::atomic;
    pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard};

    /// Threads; who sleeps gives way, so that whoever waits in a loop does not keep all others from going on.
    pub(crate) mod thread {
        pub(crate) use shuttle::thread::{Builder, JoinHandle, Thread, current, park_timeout, yield_now};

        pub(crate) fn sleep(_: std::time::Duration) {
            yield_now();
        }
    }
}

#[cfg(all(test, loom))]
mod imp {
    use std::sync::LockResult;
    use std::time::Duration;

    pub(crate) use loom::sync::atomic;
    pub(crate) use loom::sync::{Mutex, MutexGuard};

    /// Threads; what loom lacks is made of what it has.
    pub(crate) mod thread {
        pub(crate) use loom::thread::{Builder, JoinHandle, Thread, current, yield_now};

        pub(crate) fn park_timeout(_: std::time::Duration) {
            loom::thread::park();
        }

        pub(crate) fn sleep(_: std::time::Duration) {
            yield_now();
        }
    }

    #[derive(Debug, Default)]
    pub(crate) struct Condvar(loom::sync::Condvar);

    impl Condvar {
        fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
            self.0.wait(guard).unwrap_or_else(std::sync::PoisonError::into_inner)
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }

        pub(crate) fn wait_timeout<'a, T>(
            &self,
            guard: MutexGuard<'a, T>,
            _: Duration,
        ) -> LockResult<(MutexGuard<'a, T>, ())> {
            Ok((self.wait(guard), ()))
        }

        pub(crate) fn wait_timeout_while<'a, T>(
            &self,
            mut guard: MutexGuard<'a, T>,
            _: Duration,
            mut condition: impl FnMut(&mut T) -> bool,
        ) -> LockResult<(MutexGuard<'a, T>, ())> {
            while condition(&mut guard) {
                guard = self.wait(guard);
            }
            Ok((guard, ()))
        }
    }

    /// A `std::sync::OnceLock` that is seen no earlier than the memory model promises.
    #[derive(Debug)]
    pub(crate) struct OnceLock<T> {
        value: std::sync::OnceLock<T>,
        ready: atomic::AtomicBool,
    }

    impl<T> Default for OnceLock<T> {
        fn default() -> Self {
            Self { value: std::sync::OnceLock::new(), ready: atomic::AtomicBool::new(false) }
        }
    }

    impl<T> OnceLock<T> {
        pub(crate) fn new() -> Self {
            Self::default()
        }

        pub(crate) fn set(&self, value: T) -> Result<(), T> {
            let set = self.value.set(value);
            if set.is_ok() {
                self.ready.store(true, atomic::Ordering::Release);
            }
            // As with the original, the value is there when this returns, whoever set it.
            while !self.ready.load(atomic::Ordering::Acquire) {
                thread::yield_now();
            }
            set
        }

        pub(crate) fn get(&self) -> Option<&T> {
            self.ready.load(atomic::Ordering::Acquire).then(|| self.value.get()).flatten()
        }
    }
}

use std::sync::PoisonError;

pub(crate) use imp::{Condvar, Mutex, MutexGuard, OnceLock, atomic, thread};

/// Locks a mutex whose holders leave it consistent even when they panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
