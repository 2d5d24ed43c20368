//! The rows of an epoch, by key.

use std::cmp::Ordering;

/// Keys in order, each with its values in the order they came in. Kept from epoch to epoch for its memory.
///
/// Sorting costs less than a hash table of rows would, hands out keys in the order they are given on, and lets the state be
/// read and written for many keys at once.
pub(super) struct Groups<K, V> {
    /// Every key once.
    pub(super) keys: Vec<K>,
    values: Vec<V>,
    /// Where the values of each key end.
    ends: Vec<usize>,
}

impl<K, V> Default for Groups<K, V> {
    fn default() -> Self {
        Self { keys: Vec::new(), values: Vec::new(), ends: Vec::new() }
    }
}

impl<K: Ord, V> Groups<K, V> {
    /// Takes the rows of an epoch; those before are gone.
    pub(super) fn fill(&mut self, rows: &mut Vec<(K, V)>) {
        self.keys.clear();
        self.values.clear();
        self.ends.clear();
        // Stable: what one worker sent stays in its order.
        rows.sort_by(|(one, _), (other, _)| one.cmp(other));
        for (key, value) in rows.drain(..) {
            // By the same order as above.
            if self.keys.last().is_none_or(|last| last.cmp(&key) != Ordering::Equal) {
                if !self.keys.is_empty() {
                    self.ends.push(self.values.len());
                }
                self.keys.push(key);
            }
            self.values.push(value);
        }
        if !self.keys.is_empty() {
            self.ends.push(self.values.len());
        }
    }

    /// Hands out every key with what is stored for it and with its values.
    pub(super) fn drain<S>(
        &mut self,
        stored: impl IntoIterator<Item = S>,
        mut each: impl FnMut(K, S, &mut dyn Iterator<Item = V>),
    ) {
        let (mut values, mut begin) = (self.values.drain(..), 0);
        for ((key, end), stored) in self.keys.drain(..).zip(&self.ends).zip(stored) {
            let mut own = values.by_ref().take(end - begin);
            each(key, stored, &mut own);
            own.for_each(drop);
            begin = *end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_by_key_and_in_their_order() {
        let mut groups = Groups::default();
        for _ in 0..2 {
            let mut rows = vec![(2, 'a'), (1, 'b'), (2, 'c'), (3, 'd'), (2, 'e'), (1, 'f')];
            groups.fill(&mut rows);
            assert!(rows.is_empty());
            assert_eq!(groups.keys, [1, 2, 3]);
            let mut seen = Vec::new();
            groups.drain(["x", "y", "z"], |key, stored, values| {
                seen.push((key, stored, values.collect::<String>()))
            });
            assert_eq!(seen, [(1, "x", "bf".into()), (2, "y", "ace".into()), (3, "z", "d".into())]);
        }
        // Whoever does not take all values of a key leaves none to the next one.
        groups.fill(&mut vec![(1, 'a'), (1, 'b'), (2, 'c')]);
        groups.drain([(), ()], |key, (), values| {
            assert_eq!(values.next(), Some(if key == 1 { 'a' } else { 'c' }))
        });
        groups.fill(&mut Vec::new());
        groups.drain([(); 0], |_, (), _| unreachable!("there is no key"));
    }
}
