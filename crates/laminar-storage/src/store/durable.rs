//! The durable epoch: published by Ring 1, waited for by everybody else.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::error::StoreError;
use crate::error::Detail;
use crate::ids::Epoch;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex, OnceLock, lock};

type Callback = Arc<dyn Fn(Epoch) + Send + Sync>;

/// The durable epoch and the first failure, for all threads.
#[derive(Default)]
pub(crate) struct Durable {
    epoch: AtomicU64,
    poisoned: AtomicBool,
    cause: OnceLock<StoreError>,
    /// Guards nothing but the order of "look, then wait".
    gate: Mutex<()>,
    changed: Condvar,
    callbacks: Mutex<Arc<Vec<Callback>>>,
}

impl Durable {
    pub(crate) fn starting_at(epoch: Epoch) -> Self {
        Self { epoch: AtomicU64::new(epoch.0), ..Self::default() }
    }

    pub(crate) fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::Acquire))
    }

    /// Says that everything up to `epoch` survives any crash from now on.
    pub(crate) fn publish(&self, epoch: Epoch) {
        {
            let _gate = lock(&self.gate);
            self.epoch.fetch_max(epoch.0, Ordering::AcqRel);
        }
        self.changed.notify_all();
        // No lock is held while they run: what they call may come back here.
        let callbacks = Arc::clone(&lock(&self.callbacks));
        for callback in callbacks.iter() {
            let called = catch_unwind(AssertUnwindSafe(|| callback(epoch)));
            if let Err(panic) = called {
                let what = "a callback that was given to on_durable panicked";
                self.poison(&StoreError::closed(
                    Detail::new(what)
                        .in_epoch(epoch)
                        .remedy("Correct it; what is durable stays so. Open the store again to go on."),
                ));
                resume_unwind(panic);
            }
        }
    }

    /// Takes note of the first failure; nothing is acknowledged after it.
    pub(crate) fn poison(&self, error: &StoreError) {
        let _ = self.cause.set(error.poison());
        self.poisoned.store(true, Ordering::Release);
        drop(lock(&self.gate));
        self.changed.notify_all();
    }

    /// The first failure, if there was one.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        // Acquire: whoever sees that there was a failure sees which.
        if self.poisoned.load(Ordering::Acquire) {
            return Err(self.cause());
        }
        Ok(())
    }

    #[cold]
    fn cause(&self) -> StoreError {
        self.cause.get().cloned().unwrap_or_else(|| {
            StoreError::closed(crate::error::Detail::new("the store failed").remedy("Open it again."))
        })
    }

    pub(crate) fn on_durable(&self, callback: Callback) {
        Arc::make_mut(&mut lock(&self.callbacks)).push(callback);
    }

    /// Wakes everybody who waits, to look again.
    pub(crate) fn wake_all(&self) {
        drop(lock(&self.gate));
        self.changed.notify_all();
    }

    /// Waits until `epoch` is durable, the store fails, `hopeless` holds, or `at_most` is over; true when it is
    /// durable. Whoever makes `hopeless` true calls [`Self::wake_all`] afterwards.
    pub(crate) fn wait(
        &self,
        epoch: Epoch,
        at_most: Duration,
        hopeless: impl Fn() -> bool,
    ) -> Result<bool, StoreError> {
        let gate = lock(&self.gate);
        let waiting =
            |_: &mut ()| self.epoch() < epoch && !self.poisoned.load(Ordering::Acquire) && !hopeless();
        let result = self.changed.wait_timeout_while(gate, at_most, waiting);
        drop(result.unwrap_or_else(PoisonError::into_inner));
        if self.epoch() >= epoch {
            return Ok(true);
        }
        self.check()?;
        Ok(false)
    }
}

impl fmt::Debug for Durable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Durable({}, {:?})", self.epoch(), self.cause.get())
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
