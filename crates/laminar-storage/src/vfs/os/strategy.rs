//! How many threads make several files durable: what was fastest, measured on the batches themselves.
//!
//! Whether parallel flushes pay depends on the device, the file system, the processors and what else runs: on one machine
//! eight small files took a third of the time with a thread each, on another a thread that must first be woken costs more than
//! the flush. So nobody is asked to set it. The first batches of every size try one way after the other in turns; then
//! the way with the best median is kept, and tried against the others again after some thousand batches, as
//! devices change. A batch is durable in the same sense whichever way it went, so that trying costs no safety, no
//! bytes and no file of its own, and nothing need be kept on disk.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::pool::locked;

/// More flushes than this at once do not make a device faster.
pub(super) const THREADS_MAX: usize = 16;

/// Times that a way is tried. Odd, so that there is a median.
const TRIES: usize = 9;

/// Batches that go the best way before all are tried again: at most one batch in a hundred and fifty is a try.
const REMEMBERED: usize = 4096;

/// Fewer threads are better when they are slower by at most one part in this many: they leave processors to the cores.
const SLOWER_BY: u32 = 20;

/// Threads beside the one that asks, of which each also takes files: none, one, and one for each file.
const WAYS: [usize; 3] = [0, 1, THREADS_MAX];

/// What is known about batches of one size.
#[derive(Debug, Default)]
struct Size {
    /// What tries took, by way.
    tries: [Vec<Duration>; WAYS.len()],
    /// The best way and for how many more batches it is taken for that.
    best: Option<(usize, usize)>,
}

/// What is known about batches of all sizes.
#[derive(Debug, Default)]
pub(super) struct Strategy {
    /// The sizes from two files on; the last one is of all larger batches.
    sizes: Mutex<[Size; THREADS_MAX]>,
    /// Batches at this moment. One beside another says nothing about its way.
    running: AtomicUsize,
}

/// A batch that is on its way.
#[derive(Debug)]
pub(super) struct Attempt<'a> {
    strategy: &'a Strategy,
    size: usize,
    way: usize,
    began: Option<Instant>,
}

impl Strategy {
    /// Begins a batch of so many files, which are more than one.
    pub(super) fn begin(&self, files: usize) -> Attempt<'_> {
        let size = files.saturating_sub(2).min(THREADS_MAX - 1);
        let alone = self.running.fetch_add(1, Ordering::Relaxed) == 0;
        let (way, is_try) =
            locked(&self.sizes).get_mut(size).map_or((WAYS.len() - 1, false), |size| size.next(files));
        Attempt { strategy: self, size, way, began: (alone && is_try).then(Instant::now) }
    }
}

impl Attempt<'_> {
    /// Threads that are to help the one that asks.
    pub(super) fn helpers(&self, files: usize) -> usize {
        WAYS.get(self.way).map_or(0, |helpers| *helpers).min(files.saturating_sub(1))
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let alone = self.strategy.running.fetch_sub(1, Ordering::Relaxed) == 1;
        let Some(took) = self.began.filter(|_| alone).map(|began| began.elapsed()) else { return };
        if let Some(size) = locked(&self.strategy.sizes).get_mut(self.size) {
            size.took(self.way, took);
        }
    }
}

impl Size {
    /// The way of the next batch, and whether it is a try.
    fn next(&mut self, files: usize) -> (usize, bool) {
        if let Some((best, left)) = &mut self.best {
            *left = left.saturating_sub(1);
            let best = *best;
            if *left == 0 {
                *self = Self::default();
            }
            return (best, false);
        }
        // One thread for each of two files is one thread beside this one.
        let ways = if files == 2 { 2 } else { WAYS.len() };
        let least = (0..ways).min_by_key(|way| self.tries.get(*way).map_or(0, Vec::len)).unwrap_or_default();
        (least, true)
    }

    fn took(&mut self, way: usize, took: Duration) {
        if let Some(tries) = self.tries.get_mut(way) {
            tries.push(took);
        }
        let tried = || self.tries.iter().filter(|tries| !tries.is_empty());
        if tried().count() < 2 || tried().any(|tries| tries.len() < TRIES) {
            return;
        }
        let medians: Vec<_> = self.tries.iter_mut().map(|tries| median(tries)).collect();
        let Some(least) = medians.iter().flatten().min() else { return };
        let enough = *least + *least / SLOWER_BY;
        let best = medians.iter().position(|median| median.is_some_and(|median| median <= enough));
        if let Some(best) = best {
            tracing::debug!(helpers = WAYS.get(best), ?medians, "the best way to sync several files");
            *self = Self { best: Some((best, REMEMBERED)), ..Self::default() };
        }
    }
}

fn median(tries: &mut [Duration]) -> Option<Duration> {
    tries.sort_unstable();
    tries.get(tries.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `next` says to as many batches as one is remembered, when each way takes so many microseconds.
    fn ways(size: &mut Size, files: usize, micros: [u64; 3]) -> Vec<usize> {
        let mut ways = Vec::new();
        for _ in 0..REMEMBERED {
            let (way, is_try) = size.next(files);
            if is_try {
                size.took(way, Duration::from_micros(micros[way]));
            }
            ways.push(way);
        }
        ways
    }

    #[test]
    fn every_way_is_tried_in_turns_and_the_fastest_is_kept() {
        for (micros, best) in [([900, 600, 300], 2), ([300, 600, 900], 0), ([900, 300, 600], 1)] {
            let ways = ways(&mut Size::default(), 8, micros);
            assert_eq!(ways[..6], [0, 1, 2, 0, 1, 2]);
            assert!(ways[3 * TRIES..].iter().all(|way| *way == best), "{micros:?}");
        }
    }

    #[test]
    fn fewer_threads_are_kept_where_more_gain_next_to_nothing() {
        assert_eq!(ways(&mut Size::default(), 4, [100, 97, 96]).last(), Some(&0));
        assert_eq!(ways(&mut Size::default(), 4, [110, 100, 97]).last(), Some(&1));
    }

    #[test]
    fn two_files_know_two_ways() {
        let ways = ways(&mut Size::default(), 2, [200, 100, 1]);
        assert!(ways.iter().all(|way| *way < 2));
        assert_eq!(ways.last(), Some(&1));
    }

    #[test]
    fn a_few_slow_tries_decide_nothing() {
        let mut size = Size::default();
        for round in 0..TRIES {
            size.took(0, Duration::from_micros(100));
            size.took(1, Duration::from_micros(if round < TRIES / 2 { 5000 } else { 50 }));
            size.took(2, Duration::from_micros(200));
        }
        assert_eq!(size.best, Some((1, REMEMBERED)));
    }

    /// A device that was slow to parallel flushes and no longer is.
    #[test]
    fn what_was_best_is_tried_again() {
        let mut size = Size::default();
        assert_eq!(ways(&mut size, 8, [100, 200, 300]).last(), Some(&0));
        let later = ways(&mut size, 8, [300, 200, 100]);
        assert_eq!(later.last(), Some(&2));
        assert!(later.iter().filter(|way| **way != 2).count() < 100);
    }

    #[test]
    fn a_batch_beside_another_says_nothing() {
        let strategy = Strategy::default();
        for _ in 0..100 {
            let (first, second) = (strategy.begin(4), strategy.begin(4));
            drop(first);
            drop(second);
        }
        let tries: usize = locked(&strategy.sizes)[2].tries.iter().map(Vec::len).sum();
        assert_eq!(tries, 0);
        drop(strategy.begin(4));
        let tries: usize = locked(&strategy.sizes)[2].tries.iter().map(Vec::len).sum();
        assert_eq!(tries, 1);
    }
}
