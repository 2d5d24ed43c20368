//! How many bytes of input may be between the reader and the cores.
//!
//! Channels bound how many batches wait, but a batch is as long as its longest record: with records of
//! 16 MiB the channels alone would hold gigabytes. So every batch carries a [`Ticket`] for its bytes
//! until the last of its records is applied, and the reader waits for room.
//!
//! It cannot wait for ever: the batches in flight are applied in their order, the oldest never waits for
//! a newer one, and whoever drops a batch drops its ticket. A batch that is alone always has room.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::live::lock;

/// How often somebody who waits looks whether the job is over.
const LOOK: Duration = Duration::from_millis(20);

/// A bound for the bytes in flight.
#[derive(Debug)]
pub struct Budget {
    most: usize,
    used: Mutex<usize>,
    freed: Condvar,
}

/// Bytes in flight; given back when it is dropped.
#[derive(Debug)]
pub struct Ticket {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    /// A budget of `most` bytes.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, used: Mutex::new(0), freed: Condvar::new() })
    }

    /// Waits for room for `bytes`; none if `over` says meanwhile that nobody needs them any more.
    pub fn take(self: &Arc<Self>, bytes: usize, over: impl Fn() -> bool) -> Option<Ticket> {
        let mut used = lock(&self.used);
        while *used > 0 && used.saturating_add(bytes) > self.most {
            if over() {
                return None;
            }
            used = match self.freed.wait_timeout(used, LOOK) {
                Ok((used, _)) => used,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        *used = used.saturating_add(bytes);
        Some(Ticket { budget: Arc::clone(self), bytes })
    }

    /// Bytes in flight now.
    #[cfg(test)]
    pub fn used(&self) -> usize {
        *lock(&self.used)
    }
}

impl Ticket {
    /// Adds what the batch has grown by, without waiting: it exists already. The reader waits instead.
    pub fn grow(&mut self, bytes: usize) {
        let mut used = lock(&self.budget.used);
        *used = used.saturating_add(bytes);
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut used = lock(&self.budget.used);
        *used = used.saturating_sub(self.bytes);
        drop(used);
        self.budget.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_batch_waits_until_there_is_room_and_is_let_through_alone() {
        let budget = Budget::new(100);
        let mut first = budget.take(60, || false).unwrap();
        let second = budget.take(40, || false).unwrap();
        assert!(budget.take(1, || true).is_none(), "full, and the job is over");
        first.grow(1_000);
        drop(second);
        assert!(budget.take(1, || true).is_none(), "what a batch grows by counts");
        drop(first);
        assert_eq!(budget.used(), 0);
        let large = budget.take(1_000_000, || true).expect("a batch larger than the budget goes alone");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| budget.take(100, || false).map(|ticket| ticket.bytes));
            drop(large);
            assert_eq!(waiting.join().unwrap(), Some(100));
        });
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn waiting_ends_when_the_job_does() {
        let budget = Budget::new(10);
        let held = budget.take(10, || false).unwrap();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| budget.take(1, || over.load(Ordering::Acquire)).is_none());
            over.store(true, Ordering::Release);
            assert!(waiting.join().unwrap());
        });
        drop(held);
    }
}
