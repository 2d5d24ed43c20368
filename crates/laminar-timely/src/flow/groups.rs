//! The rows of an epoch, by key.

use std::hash::{BuildHasher, Hash, RandomState};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use rapidhash::fast::SeedableState;

/// A table that has room for so many times the rows of an epoch is given up: to empty it takes as long as it is large.
const ROOM_MOST: usize = 16;
/// No table is that small.
const ROOM_LEAST: usize = 1024;

/// The keys of an epoch in order, and its rows as they came, each with the place of its key among them. Kept from epoch to
/// epoch for its memory.
///
/// Keys in order are handed out in the order they are given on, and let the state be read and written for many at once. Only
/// keys are sorted, each once: an epoch may have many more rows.
pub(super) struct Groups<K, V> {
    /// Every key once, in order.
    pub(super) keys: Vec<K>,
    /// The rows: which key, and the value.
    rows: Vec<(usize, V)>,
    /// Finds a key in `found` by its hash.
    table: HashTable<usize>,
    /// Seeded anew, so that nobody can prepare keys that collide.
    hasher: SeedableState<'static>,
    /// Every key with its hash and its number, as they came; then in order.
    found: Vec<(K, u64, usize)>,
    /// By number: the place in `keys`.
    places: Vec<usize>,
}

impl<K, V> Default for Groups<K, V> {
    fn default() -> Self {
        Self {
            keys: Vec::new(),
            rows: Vec::new(),
            table: HashTable::new(),
            hasher: SeedableState::new(RandomState::new().hash_one(std::process::id())),
            found: Vec::new(),
            places: Vec::new(),
        }
    }
}

impl<K: Ord + Hash, V> Groups<K, V> {
    /// Takes the rows of an epoch; those before are gone.
    pub(super) fn fill(&mut self, rows: &mut Vec<(K, V)>) {
        if self.table.capacity() / ROOM_MOST > rows.len().max(ROOM_LEAST) {
            self.table = HashTable::new();
        }
        self.table.clear();
        self.found.clear();
        self.rows.clear();
        self.rows.reserve(rows.len());
        for (key, value) in rows.drain(..) {
            let number = self.number_of(key);
            self.rows.push((number, value));
        }
        self.found.sort_unstable_by(|(one, ..), (other, ..)| one.cmp(other));
        self.places.resize(self.found.len(), 0);
        self.keys.clear();
        for (place, (key, _, number)) in self.found.drain(..).enumerate() {
            self.places[number] = place;
            self.keys.push(key);
        }
    }

    fn number_of(&mut self, key: K) -> usize {
        let (found, hash) = (&mut self.found, self.hasher.hash_one(&key));
        let same = |number: &usize| found[*number].0 == key;
        match self.table.entry(hash, same, |number| found[*number].1) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(vacant) => {
                let number = found.len();
                vacant.insert(number);
                found.push((key, hash, number));
                number
            }
        }
    }

    /// Hands out all rows in the order they came: the place of the key in `keys`, and the value.
    pub(super) fn rows(&mut self) -> impl Iterator<Item = (usize, V)> {
        let places = &self.places;
        self.rows.drain(..).map(|(number, value)| (places[number], value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_in_their_order_with_keys_in_theirs() {
        let mut groups = Groups::default();
        for _ in 0..2 {
            let mut rows = vec![(2, 'a'), (1, 'b'), (2, 'c'), (3, 'd'), (2, 'e'), (1, 'f')];
            groups.fill(&mut rows);
            assert!(rows.is_empty());
            assert_eq!(groups.keys, [1, 2, 3]);
            let seen: Vec<_> = groups.rows().collect();
            assert_eq!(seen, [(1, 'a'), (0, 'b'), (1, 'c'), (2, 'd'), (1, 'e'), (0, 'f')]);
        }
        groups.fill(&mut vec![(7, 'a')]);
        // Whoever does not take all rows leaves none to the next epoch.
        groups.fill(&mut vec![(5, 'b'), (4, 'c')]);
        assert_eq!(groups.keys, [4, 5]);
        assert_eq!(groups.rows().collect::<Vec<_>>(), [(1, 'b'), (0, 'c')]);
        groups.fill(&mut Vec::new());
        assert!(groups.keys.is_empty() && groups.rows().next().is_none());
    }

    #[test]
    fn many_keys_are_all_in_order() {
        let mut groups = Groups::default();
        let mut rows: Vec<_> = (0..10_000_u64).map(|n| (n * 7_919 % 5_003, n)).collect();
        let sent = rows.clone();
        groups.fill(&mut rows);
        assert_eq!(groups.keys, (0..5_003).collect::<Vec<_>>());
        assert!(groups.rows().map(|(place, n)| (place as u64, n)).eq(sent));
    }

    #[test]
    fn a_table_that_one_large_epoch_left_is_given_up() {
        let mut groups = Groups::default();
        groups.fill(&mut (0..100_000_u32).map(|n| (n, ())).collect());
        assert!(groups.table.capacity() >= 100_000);
        groups.fill(&mut vec![(1, ())]);
        assert!(groups.table.capacity() <= ROOM_LEAST && groups.keys == [1]);
    }
}
