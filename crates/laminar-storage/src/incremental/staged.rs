//! Changes that are gathered for a moment, so that memory is asked for what all of them need at once.
//!
//! A change to a large state is found through a table, an entry and the bytes of its key, each somewhere else in memory and
//! each known only from the one before. One change after the other waits for memory three times; many side by
//! side wait about as long as one.

use super::overlay::CoreChanges;

/// Changes that are made together.
pub(super) const TOGETHER: usize = 64;

/// Bytes of keys and values beyond which no more are ever waited for: they are to stay in the processor's cache.
const BYTES: usize = 64 << 10;

/// A few changes in a row, not made yet.
#[derive(Debug)]
pub(super) struct Staged {
    /// Bytes of keys and values beyond which no more are waited for.
    at_most: usize,
    /// Key, value, key, value, …
    bytes: Vec<u8>,
    /// The lengths of each key and, unless it is deleted, its value.
    lens: Vec<(usize, Option<usize>)>,
}

impl Staged {
    /// None yet. `budget` is what they may take of memory: changes that wait are seen by nobody who counts it.
    pub(super) fn within(budget: usize) -> Self {
        Self { at_most: budget.min(BYTES), bytes: Vec::new(), lens: Vec::new() }
    }

    /// Adds a change. Says whether it is time to make them.
    pub(super) fn push(&mut self, key: &[u8], value: Option<&[u8]>) -> bool {
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value.unwrap_or_default());
        self.lens.push((key.len(), value.map(<[u8]>::len)));
        self.lens.len() >= TOGETHER || self.bytes.len() >= self.at_most
    }

    /// Makes the changes, in their order, and is empty afterwards.
    pub(super) fn make(&mut self, changes: &mut CoreChanges) {
        let mut block: [(&[u8], Option<&[u8]>); TOGETHER] = [(&[], None); TOGETHER];
        let mut rest = self.bytes.as_slice();
        let mut take = |len: usize| {
            let (taken, others) = rest.split_at_checked(len).unwrap_or((rest, &[]));
            rest = others;
            taken
        };
        for (change, (key_len, value_len)) in block.iter_mut().zip(&self.lens) {
            let key = take(*key_len);
            *change = (key, value_len.map(&mut take));
        }
        changes.put_all(block.get(..self.lens.len()).unwrap_or_default());
        self.bytes.clear();
        self.lens.clear();
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Also where a key comes several times within those that are made together.
        #[test]
        fn changes_made_together_are_those_made_one_by_one(
            changes in prop::collection::vec((
                prop::collection::vec(0_u8..3, 0..6),
                prop::option::of(prop_oneof![
                    9 => prop::collection::vec(any::<u8>(), 0..20),
                    1 => prop::collection::vec(any::<u8>(), BYTES..BYTES + 2),
                ]),
            ), 0..200),
            budget in prop_oneof![Just(usize::MAX), 0_usize..100],
        ) {
            let (mut single, mut together, mut staged) =
                (CoreChanges::default(), CoreChanges::default(), Staged::within(budget));
            let (mut waiting, mut waiting_bytes) = (0, 0);
            for (key, value) in &changes {
                single.put(key, value.as_deref());
                waiting += 1;
                waiting_bytes += key.len() + value.as_ref().map_or(0, Vec::len);
                let is_time = staged.push(key, value.as_deref());
                prop_assert_eq!(is_time, waiting == TOGETHER || waiting_bytes >= budget.min(BYTES));
                if is_time {
                    staged.make(&mut together);
                    (waiting, waiting_bytes) = (0, 0);
                }
            }
            staged.make(&mut together);
            prop_assert!(single.iter().eq(together.iter()));
            prop_assert_eq!((single.weight(), single.memory()), (together.weight(), together.memory()));
        }
    }
}
