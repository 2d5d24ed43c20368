//! The whole state of a checkpoint in memory.

use std::fmt;
use std::slice;
use std::sync::OnceLock;

use super::overlay::CoreChanges;
use crate::format::digest::StateDigest;
use crate::format::state_file::StateRecord;

/// What replaced values and deleted keys may take beside as much as the live ones do.
const WASTE: u64 = 1 << 20;

/// Live keys and their values. Found by hash; brought into key order the first time that somebody asks for it
/// after a change, which takes as much memory as 4 to 24 bytes for each key.
#[derive(Clone, Default)]
pub struct StateMap {
    /// Everything that was applied; deleted keys are still in it.
    changes: CoreChanges,
    live: usize,
    order: OnceLock<Vec<u32>>,
}

impl StateMap {
    /// An empty state.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.changes.get(key).flatten()
    }

    /// Whether the key is live.
    #[must_use]
    pub fn contains_key(&self, key: &[u8]) -> bool {
        self.get(key).is_some()
    }

    /// Number of live keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.live
    }

    /// Whether there are no live keys.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// All live keys with their values, in key order.
    pub fn iter(&self) -> Iter<'_> {
        let order = self.order.get_or_init(|| self.changes.live_in_order());
        Iter { changes: &self.changes, order: order.iter() }
    }

    /// Applies a change: a new value, or `None` to delete.
    pub fn apply(&mut self, key: &[u8], value: Option<&[u8]>) {
        self.replace(key, value, |_| ());
    }

    /// As [`Self::apply`]; returns by how much that changes the digest of the state.
    pub(crate) fn apply_digested(&mut self, key: &[u8], value: Option<&[u8]>) -> StateDigest {
        let before = self.replace(key, value, |old| StateDigest::of(key, old));
        StateDigest::of(key, value).minus(before)
    }

    /// Applies a change. Returns what `look` makes of the value that the key had.
    fn replace<T>(&mut self, key: &[u8], value: Option<&[u8]>, look: impl FnOnce(Option<&[u8]>) -> T) -> T {
        self.order.take();
        if value.is_none() && !self.contains_key(key) {
            return look(None);
        }
        let (had_value, looked) = self.changes.replace(key, value, |old| (old.is_some(), look(old)));
        self.live += usize::from(value.is_some());
        self.live -= usize::from(had_value);
        self.drop_waste();
        looked
    }

    /// Builds it anew once most of it is replaced or deleted.
    fn drop_waste(&mut self) {
        let newest = self.changes.weight();
        let enough = newest.bytes.saturating_mul(2).saturating_add(WASTE);
        if self.changes.buffer_len() as u64 <= enough && newest.records <= 2 * self.live as u64 + 1024 {
            return;
        }
        let mut kept = CoreChanges::default();
        for record in self.changes.iter().filter(|record| record.value.is_some()) {
            kept.put(record.key, record.value);
        }
        self.changes = kept;
    }

    /// What a key adds to the digest of the state.
    pub(crate) fn digest_of(&self, key: &[u8]) -> StateDigest {
        StateDigest::of(key, self.get(key))
    }
}

impl PartialEq for StateMap {
    fn eq(&self, other: &Self) -> bool {
        let same = |(key, value)| other.get(key) == Some(value);
        self.len() == other.len() && self.iter().all(same)
    }
}

impl Eq for StateMap {}

impl fmt::Debug for StateMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// Iterator over a [`StateMap`], in key order.
#[derive(Clone, Debug)]
pub struct Iter<'a> {
    changes: &'a CoreChanges,
    order: slice::Iter<'a, u32>,
}

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let StateRecord { key, value } = self.changes.at(*self.order.next()?)?;
        Some((key, value?))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.order.size_hint()
    }
}

impl ExactSizeIterator for Iter<'_> {}

impl<'a> IntoIterator for &'a StateMap {
    type Item = (&'a [u8], &'a [u8]);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

/// Iterator over copies of the keys and values of a [`StateMap`], in key order.
#[derive(Clone, Debug)]
pub struct IntoIter {
    changes: CoreChanges,
    order: std::vec::IntoIter<u32>,
}

impl Iterator for IntoIter {
    type Item = (Vec<u8>, Vec<u8>);

    fn next(&mut self) -> Option<Self::Item> {
        let StateRecord { key, value } = self.changes.at(self.order.next()?)?;
        Some((key.to_vec(), value?.to_vec()))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.order.size_hint()
    }
}

impl ExactSizeIterator for IntoIter {}

impl IntoIterator for StateMap {
    type Item = (Vec<u8>, Vec<u8>);
    type IntoIter = IntoIter;

    fn into_iter(self) -> IntoIter {
        let order = self.order.into_inner().unwrap_or_else(|| self.changes.live_in_order());
        IntoIter { changes: self.changes, order: order.into_iter() }
    }
}

impl FromIterator<(Vec<u8>, Vec<u8>)> for StateMap {
    fn from_iter<I: IntoIterator<Item = (Vec<u8>, Vec<u8>)>>(records: I) -> Self {
        let mut state = Self::new();
        records.into_iter().for_each(|(key, value)| state.apply(&key, Some(&value)));
        state
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn assert_same(state: &StateMap, model: &BTreeMap<Vec<u8>, Vec<u8>>) {
        assert_eq!((state.len(), state.is_empty()), (model.len(), model.is_empty()));
        let expected = model.iter().map(|(key, value)| (key.as_slice(), value.as_slice()));
        assert!(state.iter().eq(expected.clone()));
        assert_eq!(state.iter().len(), model.len());
        assert!(expected.clone().all(|(key, value)| state.get(key) == Some(value)));
        assert!(state.clone().into_iter().eq(model.clone()));
        assert_eq!(*state, model.clone().into_iter().collect::<StateMap>());
    }

    proptest! {
        /// Whatever is applied, and whenever it is looked at, it is a sorted map.
        #[test]
        fn is_a_sorted_map(
            changes in prop::collection::vec((
                prop::collection::vec(0_u8..3, 0..11),
                prop::option::of(prop::collection::vec(any::<u8>(), 0..20)),
                prop::bool::weighted(0.1),
            ), 0..60)
        ) {
            let (mut state, mut model) = (StateMap::new(), BTreeMap::new());
            let mut digest = StateDigest::default();
            for (key, value, look) in changes {
                digest = digest.plus(state.apply_digested(&key, value.as_deref()));
                match value {
                    Some(value) => model.insert(key, value),
                    None => model.remove(&key),
                };
                if look {
                    assert_same(&state, &model);
                }
            }
            assert_same(&state, &model);
            let one = |(key, value): (&Vec<u8>, &Vec<u8>)| StateDigest::of(key, Some(value));
            assert_eq!(digest, model.iter().map(one).fold(StateDigest::default(), StateDigest::plus));
        }
    }

    #[test]
    fn states_differ_by_a_key_or_a_value() {
        let state = |pairs: &[(&str, &str)]| -> StateMap {
            pairs.iter().map(|(key, value)| (key.as_bytes().to_vec(), value.as_bytes().to_vec())).collect()
        };
        assert_eq!(state(&[("a", "1"), ("b", "2")]), state(&[("b", "2"), ("a", "1")]));
        for other in [&[("a", "1")][..], &[("a", "1"), ("b", "3")], &[("a", "1"), ("c", "2")], &[]] {
            assert_ne!(state(&[("a", "1"), ("b", "2")]), state(other));
        }
        assert_eq!(format!("{:?}", state(&[("a", "1")])), "{[97]: [49]}");
    }

    /// What was replaced and deleted does not pile up.
    #[test]
    fn waste_is_dropped() {
        let mut state = StateMap::new();
        for round in 0..4000_usize {
            // Each time a little longer, so that it never fits where the last one was.
            state.apply(b"key", Some(&vec![1; 1000 + round]));
            state.apply(&round.to_le_bytes(), Some(b"passing"));
            state.apply(&round.to_le_bytes(), None);
            let buffer = state.changes.buffer_len();
            assert!((buffer as u64) < 2 * WASTE, "{buffer} bytes in round {round}");
            assert!(state.changes.iter().count() <= 1024 + 4);
        }
        assert_eq!((state.len(), state.get(b"key").map(<[u8]>::len)), (1, Some(4999)));
        assert_eq!(state.get(&7_usize.to_le_bytes()), None);
    }
}
