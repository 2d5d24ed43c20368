//! How many threads make several files durable: what was fastest, measured on the batches themselves.
//!
//! Whether parallel flushes pay depends on the device, the file system, the processors and what else runs: on one machine
//! eight small files took a third of the time with a thread each, on another a thread that must first be woken costs more than
//! the flush. So nobody is asked to set it. The first batches of every kind, which is how many files they have and roughly how
//! many bytes, try one way after the other in turns; then the way with the best median is kept, and tried against the others
//! again after some thousand batches, as devices change. Bytes count: with many of them a device may be no faster with more
//! threads; with few, each flush costs the same, and several at once save most of it. A batch is durable in the same sense whichever way it went, so that
//! trying costs no safety, no bytes and no file of its own, and nothing need be kept on disk.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::pool::locked;

/// More flushes than this at once do not make a device faster.
pub(super) const THREADS_MAX: usize = 16;

/// Times that a way is tried. Odd, so that there is a median.
const TRIES: usize = 9;

/// Tries after which a way is given up that took longer than the best one by more than one part in `MUCH_SLOWER_BY`: with large
/// batches every try is long.
const FIRST_TRIES: usize = 3;
const MUCH_SLOWER_BY: u32 = 4;

/// Batches that go the best way before all are tried again: of a kind that was decided at most one batch in a hundred and fifty
/// is a try.
const REMEMBERED: usize = 4096;

/// Fewer threads are better when they are slower by at most one part in this many: they leave processors to the cores.
const SLOWER_BY: u32 = 20;

/// Threads beside the one that asks, of which each also takes files: none, one, and one for each file.
const WAYS: [usize; 3] = [0, 1, THREADS_MAX];

/// Bytes of a file, on average, up to which batches are of one kind; the last kind is of those that have more.
const BYTES_UP_TO: [u64; 3] = [16 << 10, 256 << 10, 4 << 20];

/// What is known about batches of one kind.
#[derive(Debug, Default)]
struct Kind {
    /// What tries took, by way.
    tries: [Vec<Duration>; WAYS.len()],
    /// Ways that are not tried any more.
    given_up: Vec<usize>,
    /// The best way and for how many more batches it is taken for that.
    best: Option<(usize, usize)>,
}

/// What is known about batches of one number of files, by how many bytes they have.
type Kinds = [Kind; BYTES_UP_TO.len() + 1];

/// What is known about batches of all kinds.
#[derive(Debug, Default)]
pub(super) struct Strategy {
    /// From two files on; the last ones are of all batches of more files.
    kinds: Mutex<[Kinds; THREADS_MAX]>,
    /// Batches at this moment. One beside another says nothing about its way.
    running: AtomicUsize,
}

/// A batch that is on its way.
#[derive(Debug)]
pub(super) struct Attempt<'a> {
    strategy: &'a Strategy,
    files: usize,
    bytes: u64,
    way: usize,
    began: Option<Instant>,
}

impl Strategy {
    /// Begins a batch of so many files, which are more than one, with so many bytes in all that are not synced.
    pub(super) fn begin(&self, files: usize, bytes: u64) -> Attempt<'_> {
        let alone = self.running.fetch_add(1, Ordering::Relaxed) == 0;
        let (way, is_try) = kind(&mut locked(&self.kinds), files, bytes)
            .map_or((WAYS.len() - 1, false), |kind| kind.next(files));
        Attempt { strategy: self, files, bytes, way, began: (alone && is_try).then(Instant::now) }
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
impl Strategy {
    /// How many batches of such a kind were tries, until one way is kept.
    pub(super) fn tries(&self, files: usize, bytes: u64) -> usize {
        let mut kinds = locked(&self.kinds);
        kind(&mut kinds, files, bytes).unwrap().tries.iter().map(Vec::len).sum()
    }
}

impl Attempt<'_> {
    /// Threads that are to help the one that asks.
    pub(super) fn helpers(&self) -> usize {
        WAYS.get(self.way).map_or(0, |helpers| *helpers).min(self.files.saturating_sub(1))
    }
}

/// What is known about such batches.
fn kind(kinds: &mut [Kinds; THREADS_MAX], files: usize, bytes: u64) -> Option<&mut Kind> {
    let of_a_file = bytes / files.max(1) as u64;
    let size = BYTES_UP_TO.iter().take_while(|up_to| of_a_file > **up_to).count();
    kinds.get_mut(files.saturating_sub(2).min(THREADS_MAX - 1))?.get_mut(size)
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let alone = self.strategy.running.fetch_sub(1, Ordering::Relaxed) == 1;
        let Some(took) = self.began.filter(|_| alone).map(|began| began.elapsed()) else { return };
        if let Some(kind) = kind(&mut locked(&self.strategy.kinds), self.files, self.bytes) {
            kind.took(self.files, self.bytes, self.way, took);
        }
    }
}

impl Kind {
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
        let least = self.ways(files).min_by_key(|(_, tries)| tries.len()).map(|(way, _)| way);
        (least.unwrap_or_default(), true)
    }

    /// The ways that are still tried, with what they took.
    fn ways(&self, files: usize) -> impl Iterator<Item = (usize, &Vec<Duration>)> {
        // Of two files, one thread beside this one takes one each.
        let ways = if files == 2 { 2 } else { WAYS.len() };
        self.tries.iter().enumerate().take(ways).filter(|(way, _)| !self.given_up.contains(way))
    }

    fn took(&mut self, files: usize, bytes: u64, way: usize, took: Duration) {
        if let Some(tries) = self.tries.get_mut(way) {
            tries.push(took);
        }
        let tried = self.ways(files).map(|(_, tries)| tries.len()).min().unwrap_or_default();
        if tried != FIRST_TRIES && tried < TRIES {
            return;
        }
        let medians: Vec<_> = self.ways(files).map(|(way, tries)| (way, median(tries))).collect();
        let Some(least) = medians.iter().map(|(_, median)| *median).min() else { return };
        if tried < TRIES {
            let much = least + least / MUCH_SLOWER_BY;
            self.given_up.extend(medians.iter().filter(|(_, median)| *median > much).map(|(way, _)| *way));
            if self.ways(files).count() > 1 {
                return;
            }
        }
        let enough = least + least / SLOWER_BY;
        let best = medians.iter().find(|(_, median)| *median <= enough);
        if let Some((best, _)) = best {
            tracing::debug!(
                files,
                bytes,
                helpers = WAYS.get(*best),
                ?medians,
                "the best way to sync several files"
            );
            *self = Self { best: Some((*best, REMEMBERED)), ..Self::default() };
        }
    }
}

fn median(tries: &[Duration]) -> Duration {
    let mut tries = tries.to_vec();
    tries.sort_unstable();
    tries.get(tries.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;

    /// What `next` says to as many batches as one is remembered, when each way takes so many microseconds.
    fn ways(kind: &mut Kind, files: usize, micros: [u64; 3]) -> Vec<usize> {
        let mut ways = Vec::new();
        for _ in 0..REMEMBERED {
            let (way, is_try) = kind.next(files);
            if is_try {
                kind.took(files, 0, way, Duration::from_micros(micros[way]));
            }
            ways.push(way);
        }
        ways
    }

    #[test]
    fn every_way_is_tried_in_turns_and_the_fastest_is_kept() {
        for (micros, best) in [([900, 600, 300], 2), ([300, 600, 900], 0), ([900, 300, 600], 1)] {
            let ways = ways(&mut Kind::default(), 8, micros);
            assert_eq!(ways[..9], [0, 1, 2, 0, 1, 2, 0, 1, 2]);
            assert!(ways[9..].iter().all(|way| *way == best), "{micros:?}");
        }
    }

    #[test]
    fn fewer_threads_are_kept_where_more_gain_next_to_nothing() {
        assert_eq!(ways(&mut Kind::default(), 4, [100, 97, 96]).last(), Some(&0));
        assert_eq!(ways(&mut Kind::default(), 4, [110, 100, 97]).last(), Some(&1));
    }

    #[test]
    fn two_files_know_two_ways() {
        let ways = ways(&mut Kind::default(), 2, [200, 100, 1]);
        assert!(ways.iter().all(|way| *way < 2));
        assert_eq!(ways.last(), Some(&1));
    }

    #[test]
    fn a_few_slow_tries_decide_nothing() {
        let mut kind = Kind::default();
        for round in 0..TRIES {
            kind.took(8, 0, 0, Duration::from_micros(100));
            kind.took(
                8,
                0,
                1,
                Duration::from_micros(if (FIRST_TRIES..7).contains(&round) { 5000 } else { 90 }),
            );
            if kind.given_up.is_empty() {
                kind.took(8, 0, 2, Duration::from_micros(200));
            }
        }
        assert!(kind.given_up.is_empty(), "decided");
        assert_eq!(kind.best, Some((1, REMEMBERED)));
    }

    /// Each try of a way that is much slower costs a batch of gigabytes seconds.
    #[test]
    fn a_way_that_is_much_slower_is_soon_given_up() {
        let ways = ways(&mut Kind::default(), 8, [300, 100, 103]);
        assert_eq!(ways.iter().filter(|way| **way == 0).count(), FIRST_TRIES);
        assert_eq!(ways.iter().filter(|way| **way == 2).count(), TRIES);
    }

    /// A device that was slow to parallel flushes and no longer is.
    #[test]
    fn what_was_best_is_tried_again() {
        let mut kind = Kind::default();
        assert_eq!(ways(&mut kind, 8, [100, 200, 300]).last(), Some(&0));
        let later = ways(&mut kind, 8, [300, 200, 100]);
        assert_eq!(later.last(), Some(&2));
        assert!(later.iter().filter(|way| **way != 2).count() < 100);
    }

    #[test]
    fn a_batch_beside_another_says_nothing() {
        let strategy = Strategy::default();
        for _ in 0..100 {
            let (first, second) = (strategy.begin(4, 0), strategy.begin(4, 0));
            drop(first);
            drop(second);
        }
        assert_eq!(strategy.tries(4, 0), 0);
        drop(strategy.begin(4, 0));
        assert_eq!(strategy.tries(4, 0), 1);
    }

    /// A store was filled in large batches, for which the device took the same time by any way; with the small ones that came
    /// then, one file was synced after the other for thousands of batches, which took half as long again.
    #[test]
    fn what_is_best_for_large_batches_is_not_believed_of_small_ones() {
        let strategy = Strategy::default();
        let large = 4 * (1 << 20);
        for _ in 0..TRIES {
            for (way, micros) in [1200, 1100, 1000].into_iter().enumerate() {
                let mut kinds = locked(&strategy.kinds);
                kind(&mut kinds, 4, large).unwrap().took(4, large, way, Duration::from_micros(micros));
            }
        }
        let way = |bytes| strategy.begin(4, bytes).way;
        assert_eq!((way(large), way(large + 400_000)), (2, 2), "decided");
        let small: Vec<_> = (0..WAYS.len()).map(|_| way(4 * 200)).collect();
        assert_eq!(small, [0, 1, 2], "to be tried");
    }

    #[test]
    fn batches_are_of_one_kind_up_to_a_bound_of_bytes_for_each_file() {
        let mut kinds = Default::default();
        for (at, up_to) in BYTES_UP_TO.into_iter().enumerate() {
            kind(&mut kinds, 4, 4 * up_to).unwrap().given_up = vec![at];
            let next = kind(&mut kinds, 4, 4 * (up_to + 1)).unwrap();
            assert!(next.given_up.is_empty(), "another kind behind {up_to}");
        }
        let of_four = &kinds[2];
        assert!(of_four[..3].iter().enumerate().all(|(at, kind)| kind.given_up == [at]));
    }
}
