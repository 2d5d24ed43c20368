//! Slots that Ring 0 no longer needs and Ring 1 may still read, in the order of the changelog: a record is not
//! touched before it is released (invariant I12).
//!
//! There is one word per changelog entry, at the entry's number modulo the capacity: what becomes
//! free once Ring 1 has *released* that entry. So the stamp of a retired slot needs no memory, and
//! the queue can never be fuller than the entries that are not yet released.

use std::sync::Arc;

use super::record::index;
use crate::sabotage::{Sabotage, sabotaged};
use crate::sync::atomic::{AtomicU64, Ordering};

/// How many entries Ring 1 has released; on its own pair of cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Released(AtomicU64);

impl Released {
    /// Ring 1: nothing of the first `entries` entries will be looked at again.
    pub(super) fn publish(&self, entries: u64) {
        self.0.store(entries, Ordering::Release);
    }
}

/// What one changelog entry retired: nothing, the record it replaced, or its own record together
/// with the one that replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Retired(u64);

impl Retired {
    pub(super) const NOTHING: Self = Self(0);

    /// The replaced record at `at`; nothing when that is 0.
    #[inline]
    pub(super) fn record(at: u64) -> Self {
        Self(at)
    }

    /// The record at `at`, which only Ring 1 reads, and the one it replaced.
    pub(super) fn with_its_prev(at: u64) -> Self {
        Self(at | 1)
    }

    #[inline]
    pub(super) fn at(self) -> u64 {
        self.0 & !1
    }

    #[inline]
    pub(super) fn with_prev(self) -> bool {
        self.0 & 1 != 0
    }
}

/// The queue. Ring 0's alone, but for [`Released`].
#[derive(Debug)]
pub(super) struct RetireQueue {
    words: Box<[Retired]>,
    /// Entries pushed so far: number of the next one.
    pushed: u64,
    /// Entries whose retired slots have been taken back; at most `released`.
    reclaimed: u64,
    /// Entries released, when last looked; may lag Ring 1.
    released: u64,
    shared: Arc<Released>,
}

impl RetireQueue {
    /// A queue for `capacity` unreleased entries, a power of two.
    pub(super) fn new(capacity: usize, shared: Arc<Released>) -> Self {
        let words = vec![Retired::NOTHING; capacity.next_power_of_two()].into_boxed_slice();
        Self { words, pushed: 0, reclaimed: 0, released: 0, shared }
    }

    #[inline]
    fn word(&self, entry: u64) -> usize {
        index(entry) & (self.words.len() - 1)
    }

    /// Whether the next `entries` entries have a place.
    #[inline]
    pub(super) fn has_room_for(&self, entries: usize) -> bool {
        self.pushed - self.reclaimed + entries as u64 <= self.words.len() as u64
    }

    /// Whether more than half of the places are taken.
    #[inline]
    pub(super) fn is_half_full(&self) -> bool {
        self.pushed - self.reclaimed > self.words.len() as u64 / 2
    }

    /// Notes what the next entry retires.
    #[inline]
    pub(super) fn push(&mut self, retired: Retired) {
        debug_assert!(self.has_room_for(1));
        let word = self.word(self.pushed);
        self.words[word] = retired;
        self.pushed += 1;
    }

    /// What the oldest released entry retired; `None` when Ring 1 has released no more.
    #[inline]
    pub(super) fn take(&mut self) -> Option<Retired> {
        if self.reclaimed == self.released {
            self.released = self.shared.0.load(Ordering::Acquire);
            if sabotaged(Sabotage::SlotsReusedEarly) {
                self.released = self.pushed;
            }
            if self.reclaimed == self.released {
                return None;
            }
        }
        let retired = self.words[self.word(self.reclaimed)];
        self.reclaimed += 1;
        Some(retired)
    }

    /// What [`Self::take`] will give `ahead` calls from now, if that is known.
    #[inline]
    pub(super) fn upcoming(&self, ahead: u64) -> Retired {
        if self.reclaimed + ahead < self.released {
            self.words[self.word(self.reclaimed + ahead)]
        } else {
            Retired::NOTHING
        }
    }

    /// Whether Ring 1 has released everything that was ever pushed.
    pub(super) fn is_quiet(&self) -> bool {
        self.shared.0.load(Ordering::Acquire) == self.pushed
    }
}

#[cfg(all(test, loom))]
mod loom_tests;

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;

    /// A queue of eight places of which so many are taken; entry `n` retired the record at `16 * (n + 1)`.
    fn queue(taken: u64) -> (RetireQueue, Arc<Released>) {
        let released = Arc::new(Released::default());
        let mut queue = RetireQueue::new(8, Arc::clone(&released));
        (1..=taken).for_each(|n| queue.push(Retired::record(16 * n)));
        (queue, released)
    }

    #[test]
    fn half_full_is_more_than_half_of_the_places() {
        let (mut queue, released) = queue(4);
        assert!(!queue.is_half_full());
        queue.push(Retired::record(80));
        assert!(queue.is_half_full());
        released.publish(1);
        assert_eq!(queue.take(), Some(Retired::record(16)));
        assert!(!queue.is_half_full());
    }

    #[test]
    fn what_comes_next_is_what_was_released() {
        let (mut queue, released) = queue(5);
        assert_eq!(queue.upcoming(0), Retired::NOTHING, "nothing is released");
        released.publish(4);
        assert_eq!(queue.take(), Some(Retired::record(16)));
        let next = [0, 1, 2, 3].map(|ahead| queue.upcoming(ahead));
        let known = [32, 48, 64].map(Retired::record);
        assert_eq!(next, [known[0], known[1], known[2], Retired::NOTHING]);
        assert_eq!([(); 4].map(|()| queue.take()), [Some(known[0]), Some(known[1]), Some(known[2]), None]);
    }
}
