//! Figures of a running job, shared between its threads and whoever shows them.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::error::CliError;

/// Counters written by the job's threads. Each may lag its siblings by a batch.
#[derive(Debug, Default)]
pub struct Live {
    /// Records of this run handed to the cores.
    pub records: AtomicU64,
    /// Input bytes of this run handed to the cores.
    pub bytes: AtomicU64,
    /// Records of this run that were skipped.
    pub skipped: AtomicU64,
    /// Epochs sealed by core 0 that are not known to be durable, and when they were sealed.
    waiting: Mutex<VecDeque<(u64, Instant)>>,
    failure: Mutex<Option<CliError>>,
    /// Set with the first failure; every thread ends soon after.
    pub failed: AtomicBool,
}

impl Live {
    /// Notes a failure; the first one is what the user sees.
    pub fn fail(&self, error: CliError) {
        lock(&self.failure).get_or_insert(error);
        self.failed.store(true, Ordering::Release);
    }

    /// The first failure.
    pub fn take_failure(&self) -> Option<CliError> {
        lock(&self.failure).take()
    }

    /// Notes that an epoch was sealed.
    pub fn sealed(&self, epoch: u64) {
        lock(&self.waiting).push_back((epoch, Instant::now()));
    }

    /// Epochs sealed but not durable, and the age of the oldest.
    pub fn lag(&self, durable: u64) -> (usize, Duration) {
        let mut waiting = lock(&self.waiting);
        while waiting.front().is_some_and(|(epoch, _)| *epoch <= durable) {
            waiting.pop_front();
        }
        (waiting.len(), waiting.front().map_or(Duration::ZERO, |(_, at)| at.elapsed()))
    }
}

/// Locks; a panic in another thread is reported when that thread is joined, not here.
pub fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// What goes round in a [`Pool`].
pub trait Reused: Default {
    /// Bytes of memory that it holds.
    fn capacity(&self) -> usize;
}

impl Reused for Vec<u8> {
    fn capacity(&self) -> usize {
        Self::capacity(self)
    }
}

/// Used buffers, to be used again.
#[derive(Debug)]
pub struct Pool<T>(Mutex<Vec<T>>);

/// More than this is given back to the system.
const POOL_LEN_MAX: usize = 64;
/// Larger ones too: they were made for records of unusual length.
const POOLED_CAPACITY_MAX: usize = 1 << 20;

impl<T: Reused> Pool<T> {
    /// An empty pool.
    pub fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// A used buffer, or a new one.
    pub fn take(&self) -> T {
        lock(&self.0).pop().unwrap_or_default()
    }

    /// Returns a buffer.
    pub fn give(&self, buffer: T) {
        if buffer.capacity() > POOLED_CAPACITY_MAX {
            return;
        }
        let mut buffers = lock(&self.0);
        if buffers.len() < POOL_LEN_MAX {
            buffers.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_keeps_no_large_buffers() {
        let pool = Pool::new();
        pool.give(Vec::<u8>::with_capacity(POOLED_CAPACITY_MAX * 2));
        assert_eq!(pool.take().capacity(), 0);
        pool.give(Vec::<u8>::with_capacity(100));
        assert!(pool.take().capacity() >= 100);
    }
}
