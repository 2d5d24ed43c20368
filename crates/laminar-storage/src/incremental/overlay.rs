//! Changes in memory that are in no state file yet.

use std::collections::BTreeMap;

use super::merge::Weight;
use crate::format::state_file::StateRecord;
use crate::ids::CoreId;

/// A key's new value, or `None` where it was deleted.
pub type Change = Option<Box<[u8]>>;

/// What a change costs in memory beside its key and value: map node, vector and box.
const ENTRY_OVERHEAD: usize = 64;

/// The changes of one core in key order.
#[derive(Debug, Default)]
pub struct CoreChanges {
    changes: BTreeMap<Vec<u8>, Change>,
    memory: usize,
    encoded: u64,
}

impl CoreChanges {
    fn put(&mut self, key: &[u8], change: Change) {
        let (memory, encoded) = cost(key, &change);
        // One walk down the tree is worth more than the allocation it costs for a known key.
        let old = self.changes.insert(key.to_vec(), change);
        self.memory += memory;
        self.encoded += encoded;
        if let Some(old) = old {
            let (memory, encoded) = cost(key, &old);
            self.memory -= memory;
            self.encoded -= encoded;
        }
    }

    /// The changes in key order.
    #[must_use]
    pub fn changes(&self) -> &BTreeMap<Vec<u8>, Change> {
        &self.changes
    }

    /// How much the changes weigh in a file.
    #[must_use]
    pub fn weight(&self) -> Weight {
        Weight { bytes: self.encoded, records: self.changes.len() as u64 }
    }
}

fn cost(key: &[u8], change: &Change) -> (usize, u64) {
    let memory = key.len() + change.as_ref().map_or(0, |value| value.len()) + ENTRY_OVERHEAD;
    (memory, StateRecord { key, value: change.as_deref() }.encoded_len() as u64)
}

/// The changes of all cores.
#[derive(Debug)]
pub struct Overlay {
    cores: Vec<CoreChanges>,
}

impl Overlay {
    /// No changes on that many cores.
    #[must_use]
    pub fn new(cores: usize) -> Self {
        Self { cores: (0..cores).map(|_| CoreChanges::default()).collect() }
    }

    /// Records a change; the core must be one of those there are.
    pub fn put(&mut self, core: CoreId, key: &[u8], value: Option<&[u8]>) {
        if let Some(changes) = self.cores.get_mut(core.index()) {
            changes.put(key, value.map(Into::into));
        }
    }

    /// What is known of a key on one core: `None` nothing, `Some(None)` deleted.
    #[must_use]
    pub fn get(&self, core: CoreId, key: &[u8]) -> Option<Option<&[u8]>> {
        self.cores.get(core.index())?.changes.get(key).map(Option::as_deref)
    }

    /// The changes per core.
    #[must_use]
    pub fn cores(&self) -> &[CoreChanges] {
        &self.cores
    }

    /// About how many bytes of memory the changes take.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.cores.iter().map(|core| core.memory).sum()
    }

    /// Whether nothing has changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cores.iter().all(|core| core.changes.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_exactly_for_what_is_there() {
        let mut overlay = Overlay::new(2);
        overlay.put(CoreId(0), b"key", Some(b"value"));
        overlay.put(CoreId(0), b"key", Some(b"v"));
        overlay.put(CoreId(1), b"key", None);
        overlay.put(CoreId(9), b"key", None);
        assert_eq!(overlay.memory(), 3 + 1 + 3 + 2 * ENTRY_OVERHEAD);
        assert_eq!(overlay.cores()[0].weight(), Weight { bytes: 11, records: 1 });
        assert_eq!(overlay.get(CoreId(0), b"key"), Some(Some(b"v".as_slice())));
        assert_eq!(overlay.get(CoreId(1), b"key"), Some(None));
        assert_eq!(overlay.get(CoreId(1), b"k"), None);
        assert!(!overlay.is_empty());
    }
}
