//! How many different images a whole run has seen, over all scenarios and seeds.

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use xxhash_rust::xxh3::Xxh3DefaultBuilder;

/// Sets of image hashes. An image counts once, by its names and contents, whatever was known when it was
/// recovered and however many crashes came before. About 20 bytes per image, twice that while a set grows;
/// two images with the same hash count as one, so that it never counts too many.
#[derive(Debug)]
pub struct Distinct {
    shards: Vec<Mutex<HashSet<u64, Xxh3DefaultBuilder>>>,
    all: AtomicU64,
    inside: AtomicU64,
}

impl Default for Distinct {
    fn default() -> Self {
        let shards = (0..256).map(|_| Mutex::default()).collect();
        Self { shards, all: AtomicU64::new(0), inside: AtomicU64::new(0) }
    }
}

impl Distinct {
    /// Counts an image that is recovered after so many crashes before.
    pub fn add(&self, image: u64, crashes_before: usize) {
        let shard = &self.shards[usize::from(image.to_le_bytes()[7])];
        if shard.lock().unwrap_or_else(PoisonError::into_inner).insert(image) {
            self.all.fetch_add(1, Ordering::Relaxed);
            self.inside.fetch_add(u64::from(crashes_before > 0), Ordering::Relaxed);
        }
    }

    /// How many there were.
    #[must_use]
    pub fn all(&self) -> u64 {
        self.all.load(Ordering::Relaxed)
    }

    /// How many of them were seen for the first time after a crash inside a recovery.
    #[must_use]
    pub fn inside(&self) -> u64 {
        self.inside.load(Ordering::Relaxed)
    }
}

impl fmt::Display for Distinct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} distinct images, {} of them inside recoveries", self.all(), self.inside())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_counts_once_and_where_it_was_seen_first() {
        let distinct = Distinct::default();
        for (image, before) in [(1, 0), (2, 1), (1, 2), (2, 0), (u64::MAX, 3)] {
            distinct.add(image, before);
        }
        assert_eq!((distinct.all(), distinct.inside()), (3, 2));
    }
}
