//! The whole state of a checkpoint in memory.

use std::collections::BTreeMap;
use std::collections::btree_map;

/// Live keys and their values, in key order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateMap(BTreeMap<Vec<u8>, Vec<u8>>);

impl StateMap {
    /// An empty state.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.0.get(key).map(Vec::as_slice)
    }

    /// Whether the key is live.
    #[must_use]
    pub fn contains_key(&self, key: &[u8]) -> bool {
        self.0.contains_key(key)
    }

    /// Number of live keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no live keys.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All live keys with their values, in key order.
    pub fn iter(&self) -> Iter<'_> {
        Iter(self.0.iter())
    }

    /// Applies a change: a new value, or `None` to delete.
    pub fn apply(&mut self, key: &[u8], value: Option<&[u8]>) {
        match value {
            Some(value) => drop(self.0.insert(key.to_vec(), value.to_vec())),
            None => drop(self.0.remove(key)),
        }
    }

    /// As [`Self::apply`], without copying.
    pub(crate) fn apply_owned(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        match value {
            Some(value) => drop(self.0.insert(key, value)),
            None => drop(self.0.remove(&key)),
        }
    }
}

/// Iterator over a [`StateMap`].
#[derive(Clone, Debug)]
pub struct Iter<'a>(btree_map::Iter<'a, Vec<u8>, Vec<u8>>);

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|(key, value)| (key.as_slice(), value.as_slice()))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
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

impl IntoIterator for StateMap {
    type Item = (Vec<u8>, Vec<u8>);
    type IntoIter = btree_map::IntoIter<Vec<u8>, Vec<u8>>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl FromIterator<(Vec<u8>, Vec<u8>)> for StateMap {
    fn from_iter<I: IntoIterator<Item = (Vec<u8>, Vec<u8>)>>(records: I) -> Self {
        Self(records.into_iter().collect())
    }
}
