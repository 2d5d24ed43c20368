//! Puts whose index entry is still on its way from memory.
//!
//! A random read from memory takes longer than everything else a put does. So a put only asks for its
//! bucket, writes its record and waits here, while the next puts do the same; it is finished when
//! sixteen more have come, or when anything needs it finished. A long key is compared in the record it replaces,
//! which is asked for when half of them have come. Several reads are then in flight at any
//! time, without the caller having to batch. Readers look here before they look into the index.

use super::segment::Needle;

/// Puts that can wait. Enough to cover a read from memory; few enough to search at each `get`.
pub(super) const WAITING_MOST: usize = 16;

/// A put that is written and not in the index yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) needle: Needle,
    /// Its record. Held by Ring 0 alone, like a slot that is being filled (R0-4).
    pub(super) at: u64,
    pub(super) value_len: u32,
}

/// The waiting puts, oldest first.
#[derive(Debug)]
pub(super) struct Pending {
    /// The low bits of each hash, so that a search for a key that does not wait is two vector compares.
    tags: [u16; WAITING_MOST],
    puts: [Waiting; WAITING_MOST],
    /// Puts ever added; the newest is at this minus one, modulo the capacity.
    added: usize,
    /// Puts ever finished; `added - WAITING_MOST ..= added`.
    finished: usize,
}

impl Pending {
    pub(super) fn new() -> Self {
        let none = Waiting { needle: Needle::new(0, &[]), at: 0, value_len: 0 };
        Self { tags: [0; WAITING_MOST], puts: [none; WAITING_MOST], added: 0, finished: 0 }
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.added.wrapping_sub(self.finished)
    }

    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.len() == WAITING_MOST
    }

    /// Adds a put; there must be room.
    #[inline]
    pub(super) fn add(&mut self, put: Waiting) {
        debug_assert!(!self.is_full());
        self.tags[self.added % WAITING_MOST] = tag(put.needle.hash);
        self.puts[self.added % WAITING_MOST] = put;
        self.added = self.added.wrapping_add(1);
    }

    #[inline]
    pub(super) fn oldest(&self) -> Option<Waiting> {
        (self.len() > 0).then(|| self.puts[self.finished % WAITING_MOST])
    }

    /// The put that has waited for half of its time.
    #[inline]
    pub(super) fn midway(&self) -> Option<&Waiting> {
        self.is_full().then(|| &self.puts[self.finished.wrapping_add(WAITING_MOST / 2) % WAITING_MOST])
    }

    /// The oldest is in the index now.
    #[inline]
    pub(super) fn finish_oldest(&mut self) {
        self.finished = self.finished.wrapping_add(1);
    }

    #[inline]
    fn may_have(&self, hash: u64) -> bool {
        let tag = tag(hash);
        // Without an early end, which would keep it from being done as vectors.
        self.len() > 0 && self.tags.iter().fold(false, |any, other| any | (*other == tag))
    }

    /// The record of the newest put of a key; `same` compares the key with that of a record.
    #[inline]
    pub(super) fn find(&self, hash: u64, same: impl Fn(u64) -> bool) -> Option<u64> {
        if !self.may_have(hash) {
            return None;
        }
        let newest_first =
            (0..self.len()).map(|back| &self.puts[self.added.wrapping_sub(back + 1) % WAITING_MOST]);
        newest_first.filter(|put| put.needle.hash == hash).map(|put| put.at).find(|at| same(*at))
    }

    /// All, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Waiting> {
        (0..self.len()).map(|nth| &self.puts[self.finished.wrapping_add(nth) % WAITING_MOST])
    }
}

#[inline]
fn tag(hash: u64) -> u16 {
    let [a, b, ..] = hash.to_le_bytes();
    u16::from_le_bytes([a, b])
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;

    fn put(hash: u64, at: u64) -> Waiting {
        Waiting { needle: Needle::new(hash, &[]), at, value_len: 0 }
    }

    #[test]
    fn nothing_waits_at_first() {
        let pending = Pending::new();
        assert!(pending.oldest().is_none() && pending.iter().next().is_none());
        assert_eq!((pending.len(), pending.find(0, |_| true)), (0, None));
    }

    /// Sixteen puts of one key: its tag is everywhere.
    #[test]
    fn the_newest_put_of_a_key_is_found_among_puts_of_the_same_hash() {
        let mut pending = Pending::new();
        for round in 0..3 {
            for at in 1..=WAITING_MOST as u64 {
                pending.add(put(7, at));
                assert_eq!(pending.find(7, |_| true), Some(at), "round {round}");
            }
            assert!(pending.is_full());
            assert_eq!(pending.midway().map(|put| put.at), Some(1 + WAITING_MOST as u64 / 2));
            assert_eq!((pending.find(7, |at| at == 1), pending.find(7, |_| false)), (Some(1), None));
            assert_eq!(pending.find(8, |_| true), None);
            for at in 1..=WAITING_MOST as u64 {
                assert_eq!(pending.oldest().map(|put| put.at), Some(at));
                pending.finish_oldest();
                assert!(pending.midway().is_none(), "the others have more time");
                assert_eq!(pending.find(7, |other| other == at), None, "it is in the index");
            }
            assert!(pending.oldest().is_none());
        }
    }
}
