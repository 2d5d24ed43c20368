//! How many different images a whole run has seen, over all scenarios and seeds, and runs before it.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;
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

    /// Adds what [`Self::save`] wrote, so that a run can go on counting where another stopped.
    ///
    /// # Errors
    /// When the file cannot be read, or is none of these.
    pub fn load(&self, path: &Path) -> io::Result<()> {
        let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
        let mut word = [0; 8];
        let mut next = || file.read_exact(&mut word).map(|()| u64::from_le_bytes(word));
        let (all, inside) = (next()?, next()?);
        for _ in 0..all {
            self.add(next()?, 0);
        }
        if next().is_ok() || inside > all || self.all() < all {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a file of --seen"));
        }
        self.inside.fetch_add(inside, Ordering::Relaxed);
        Ok(())
    }

    /// Writes the hashes to a file: two numbers, all and those inside recoveries, then all of them.
    ///
    /// # Errors
    /// When the file cannot be written; one that was there before is then as it was.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let new = path.with_extension("new");
        let mut file = BufWriter::with_capacity(1 << 20, File::create(&new)?);
        let shards: Vec<_> =
            self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner)).collect();
        let all: u64 = shards.iter().map(|shard| shard.len() as u64).sum();
        let words = [all, self.inside()].into_iter();
        for word in words.chain(shards.iter().flat_map(|shard| shard.iter().copied())) {
            file.write_all(&word.to_le_bytes())?;
        }
        file.into_inner()?.sync_all()?;
        std::fs::rename(&new, path)
    }

    /// How many there were.
    #[must_use]
    pub fn all(&self) -> u64 {
        self.all.load(Ordering::Relaxed)
    }

    /// How many of them were seen for the first time after a crash inside a recovery, or in what was done after it.
    #[must_use]
    pub fn inside(&self) -> u64 {
        self.inside.load(Ordering::Relaxed)
    }
}

impl fmt::Display for Distinct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} distinct images, {} of them in recoveries and what followed them",
            self.all(),
            self.inside()
        )
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

    #[test]
    fn another_run_goes_on_counting() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seen");
        let first = Distinct::default();
        (0..1000_u64).for_each(|n| first.add(n << 50, usize::from(n < 300)));
        first.save(&path).unwrap();
        let second = Distinct::default();
        second.load(&path).unwrap();
        assert_eq!((second.all(), second.inside()), (1000, 300));
        (500..1500_u64).for_each(|n| second.add(n << 50, 1));
        assert_eq!((second.all(), second.inside()), (1500, 800));
        second.save(&path).unwrap();
        let third = Distinct::default();
        third.load(&path).unwrap();
        assert_eq!((third.all(), third.inside()), (1500, 800));
        let bytes = std::fs::read(&path).unwrap();
        for len in [0, 8, 100, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..len]).unwrap();
            Distinct::default().load(&path).unwrap_err();
        }
    }
}
