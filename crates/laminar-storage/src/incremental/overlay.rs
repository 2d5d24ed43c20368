//! Changes in memory that are in no state file yet.
//!
//! Keys and values stand one after the other in a byte buffer, found through a hash table; they are
//! brought into key order once, when they are written. A change costs one hash and one append, which
//! makes applying a log to the next checkpoint a matter of memory speed.

use std::sync::Arc;

use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64;

use super::merge::Weight;
use super::reshard::KeyRange;
use super::staged::TOGETHER;
use crate::format::state_file::StateRecord;
use crate::ids::CoreId;
use crate::ring0::prefetch;

/// The value length of a deleted key.
const DELETED: u32 = u32::MAX;

/// What a change costs in memory beside its key and value: its entry, and its share of the hash table.
const ENTRY_OVERHEAD: usize = size_of::<Entry>() + 16;

/// How many changes ahead, in key order, the bytes of one are asked for, and how many further its entry.
const BYTES_AHEAD: usize = 8;
const ENTRY_AHEAD: usize = 16;

/// Where a key and its newest value are in the buffer.
#[derive(Clone, Copy, Debug)]
struct Entry {
    key_at: usize,
    value_at: usize,
    key_len: u32,
    value_len: u32,
}

impl Entry {
    fn key<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        bytes.get(self.key_at..self.key_at + self.key_len as usize).unwrap_or_default()
    }

    fn value<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let end = self.value_at + self.value_len as usize;
        (self.value_len != DELETED).then(|| bytes.get(self.value_at..end).unwrap_or_default())
    }
}

/// The changes of one core.
#[derive(Clone, Debug, Default)]
pub struct CoreChanges {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    by_key: HashTable<Slot>,
    encoded: u64,
}

/// Where the table says that an entry is. With half of the key's hash, so that neither growing nor looking for a key
/// that is not there has to look at keys, each of which is somewhere else in memory.
#[derive(Clone, Copy, Debug)]
struct Slot {
    hash: u32,
    index: u32,
}

impl Slot {
    /// The half of a key's hash that is kept.
    fn hash_of(key: &[u8]) -> u32 {
        u32::try_from(xxh3_64(key) >> 32).unwrap_or_default()
    }

    /// Spread over all bits, of which the table uses the lowest and the highest.
    fn spread(hash: u32) -> u64 {
        u64::from(hash).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }
}

impl CoreChanges {
    /// Records a change. Returns whether the key had a value.
    pub(super) fn put(&mut self, key: &[u8], value: Option<&[u8]>) -> bool {
        self.replace(key, value, |old| old.is_some())
    }

    /// Records changes one after the other, as [`Self::put`] does; what they need of memory is asked for beforehand, at most
    /// `TOGETHER` of them.
    pub(super) fn put_all(&mut self, changes: &[(&[u8], Option<&[u8]>)]) {
        let mut hashes = [0; TOGETHER];
        let mut indices = [None; TOGETHER];
        for (hash, (key, _)) in hashes.iter_mut().zip(changes) {
            *hash = Slot::hash_of(key);
        }
        // Equal hashes are not equal keys: these are only guesses.
        for (index, hash) in indices.iter_mut().zip(hashes).take(changes.len()) {
            let found = self.by_key.find(Slot::spread(hash), |slot| slot.hash == hash);
            *index = found.map(|slot| slot.index as usize);
        }
        let entries = || indices.iter().flatten().filter_map(|index| self.entries.get(*index));
        for entry in entries() {
            prefetch::range(std::ptr::from_ref(entry).cast(), size_of::<Entry>());
        }
        for entry in entries() {
            let len = entry.key_len as usize + entry.value(&self.bytes).map_or(0, <[u8]>::len);
            prefetch::range(self.bytes.as_ptr().wrapping_add(entry.key_at), len);
        }
        for ((key, value), hash) in changes.iter().zip(hashes) {
            self.replace_hashed(hash, key, *value, |_| ());
        }
    }

    /// Records a change. Returns what `look` makes of the value that the key had.
    #[inline]
    pub(super) fn replace<T>(
        &mut self,
        key: &[u8],
        value: Option<&[u8]>,
        look: impl FnOnce(Option<&[u8]>) -> T,
    ) -> T {
        self.replace_hashed(Slot::hash_of(key), key, value, look)
    }

    #[inline]
    fn replace_hashed<T>(
        &mut self,
        hash: u32,
        key: &[u8],
        value: Option<&[u8]>,
        look: impl FnOnce(Option<&[u8]>) -> T,
    ) -> T {
        let index = self.find_or_add(hash, key);
        let Self { bytes, entries, encoded, .. } = self;
        let Some(entry) = entries.get_mut(index as usize) else { return look(None) };
        let looked = look(entry.value(bytes));
        let had_value = entry.value_len != DELETED;
        let record_len = |value| StateRecord { key, value }.encoded_len() as u64;
        *encoded -= record_len(entry.value(bytes));
        *encoded += record_len(value);
        let Some(value) = value else {
            entry.value_len = DELETED;
            return looked;
        };
        let old_len = if had_value { entry.value_len as usize } else { 0 };
        let in_place = bytes.get_mut(entry.value_at..entry.value_at + value.len());
        match in_place.filter(|_| value.len() <= old_len) {
            Some(room) => room.copy_from_slice(value),
            None => {
                entry.value_at = bytes.len();
                bytes.extend_from_slice(value);
            }
        }
        // The callers check lengths against the format's limits, which are far below.
        entry.value_len = u32::try_from(value.len()).unwrap_or(DELETED);
        looked
    }

    /// The index of a key's entry; a new one is a deletion until it gets a value.
    fn find_or_add(&mut self, hash: u32, key: &[u8]) -> u32 {
        let Self { bytes, entries, by_key, encoded } = self;
        let entry_key = |slot: &Slot| entries.get(slot.index as usize).map_or(&[][..], |e| e.key(bytes));
        let same = |slot: &Slot| slot.hash == hash && entry_key(slot) == key;
        if let Some(known) = by_key.find(Slot::spread(hash), same) {
            return known.index;
        }
        let index = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        by_key.insert_unique(Slot::spread(hash), Slot { hash, index }, |slot| Slot::spread(slot.hash));
        let key_len = u32::try_from(key.len()).unwrap_or(u32::MAX);
        entries.push(Entry { key_at: bytes.len(), value_at: 0, key_len, value_len: DELETED });
        bytes.extend_from_slice(key);
        *encoded += StateRecord { key, value: None }.encoded_len() as u64;
        index
    }

    /// What is known of a key: `None` nothing, `Some(None)` deleted.
    pub(super) fn get(&self, key: &[u8]) -> Option<Option<&[u8]>> {
        let hash = Slot::hash_of(key);
        let entry = |slot: &Slot| self.entries.get(slot.index as usize);
        let has_key = |slot: &Slot| entry(slot).is_some_and(|entry| entry.key(&self.bytes) == key);
        let same = |slot: &Slot| slot.hash == hash && has_key(slot);
        let found = self.by_key.find(Slot::spread(hash), same)?;
        entry(found).map(|entry| entry.value(&self.bytes))
    }

    /// Has nothing changed?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The changes, in the order in which their keys first came.
    pub fn iter(&self) -> impl Iterator<Item = StateRecord<'_>> {
        self.entries
            .iter()
            .map(|entry| StateRecord { key: entry.key(&self.bytes), value: entry.value(&self.bytes) })
    }

    /// The change of the key that came as number `index`, counted from 0.
    pub(super) fn at(&self, index: u32) -> Option<StateRecord<'_>> {
        let entry = self.entries.get(index as usize)?;
        Some(StateRecord { key: entry.key(&self.bytes), value: entry.value(&self.bytes) })
    }

    /// The numbers of the keys that have a value, in key order.
    pub(super) fn live_in_order(&self) -> Vec<u32> {
        let live = (0..).zip(&self.entries).filter(|(_, entry)| entry.value_len != DELETED);
        let mut order: Vec<(u64, u32)> = live.map(|(n, entry)| (prefix(entry.key(&self.bytes)), n)).collect();
        let key = |n: u32| self.entries.get(n as usize).map(|entry| entry.key(&self.bytes));
        // Stable, because that sort knows what is in order already, as what was read from files is.
        order.sort_by(|(a_prefix, a), (b_prefix, b)| {
            a_prefix.cmp(b_prefix).then_with(|| key(*a).cmp(&key(*b)))
        });
        order.into_iter().map(|(_, n)| n).collect()
    }

    /// The changes in key order.
    #[must_use]
    pub fn sorted(&self) -> SortedChanges<'_> {
        let mut order: Vec<(u64, &Entry)> =
            self.entries.iter().map(|entry| (prefix(entry.key(&self.bytes)), entry)).collect();
        order.sort_unstable_by(|(a_prefix, a), (b_prefix, b)| {
            a_prefix.cmp(b_prefix).then_with(|| a.key(&self.bytes).cmp(b.key(&self.bytes)))
        });
        let end = order.len();
        SortedChanges { bytes: &self.bytes, order: Arc::new(order), at: 0, end }
    }

    /// About how many bytes of memory the changes take, replaced values included.
    #[must_use]
    pub(super) fn memory(&self) -> usize {
        self.bytes.len() + self.entries.len() * ENTRY_OVERHEAD
    }

    /// Bytes of all keys and values, replaced values included.
    #[must_use]
    pub(super) fn buffer_len(&self) -> usize {
        self.bytes.len()
    }

    /// How much the changes weigh in a file.
    #[must_use]
    pub fn weight(&self) -> Weight {
        Weight { bytes: self.encoded, records: self.entries.len() as u64 }
    }
}

/// The first bytes of a key as a number in the same order; shorter keys are filled with zeros, and the
/// whole keys decide between equal prefixes.
fn prefix(key: &[u8]) -> u64 {
    let mut first = [0; 8];
    for (to, from) in first.iter_mut().zip(key) {
        *to = *from;
    }
    first.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Changes in key order, from [`CoreChanges::sorted`]. Stands on the first one.
#[derive(Debug)]
pub struct SortedChanges<'a> {
    bytes: &'a [u8],
    order: Arc<Vec<(u64, &'a Entry)>>,
    at: usize,
    end: usize,
}

impl<'a> SortedChanges<'a> {
    /// The keys from here on.
    pub(super) fn keys(&self) -> impl Iterator<Item = &'a [u8]> {
        let bytes = self.bytes;
        self.order.get(self.at..self.end).unwrap_or_default().iter().map(|(_, entry)| entry.key(bytes))
    }

    /// The changes of a range of keys, sharing the order.
    pub(super) fn within(&self, range: &KeyRange) -> Self {
        let border =
            |key: &Vec<u8>| self.order.partition_point(|(_, entry)| entry.key(self.bytes) < key.as_slice());
        let at = range.from.as_ref().map_or(self.at, border);
        let end = range.to.as_ref().map_or(self.end, border);
        Self { bytes: self.bytes, order: Arc::clone(&self.order), at, end }
    }

    /// The change it stands on; `None` behind the last one.
    #[must_use]
    pub fn current(&self) -> Option<StateRecord<'_>> {
        let (_, entry) = self.order.get(self.at).filter(|_| self.at < self.end)?;
        Some(StateRecord { key: entry.key(self.bytes), value: entry.value(self.bytes) })
    }

    /// Goes to the next change. In key order, each is somewhere else in memory: those to come are asked for ahead.
    pub fn advance(&mut self) {
        self.at += 1;
        let entry = |ahead: usize| self.order.get(self.at + ahead).map(|(_, entry)| *entry);
        if let Some(entry) = entry(BYTES_AHEAD + ENTRY_AHEAD) {
            prefetch::range(std::ptr::from_ref(entry).cast(), size_of::<Entry>());
        }
        if let Some(entry) = entry(BYTES_AHEAD) {
            // Key and value stand one behind the other, but for values that outgrew their room.
            let len = entry.key_len as usize + entry.value(self.bytes).map_or(0, <[u8]>::len);
            prefetch::range(self.bytes.as_ptr().wrapping_add(entry.key_at), len);
        }
    }
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
            changes.put(key, value);
        }
    }

    /// What is known of a key on one core: `None` nothing, `Some(None)` deleted.
    #[must_use]
    pub fn get(&self, core: CoreId, key: &[u8]) -> Option<Option<&[u8]>> {
        self.cores.get(core.index())?.get(key)
    }

    /// The changes per core.
    #[must_use]
    pub fn cores(&self) -> &[CoreChanges] {
        &self.cores
    }

    /// The changes per core, to add to.
    pub(super) fn cores_mut(&mut self) -> &mut [CoreChanges] {
        &mut self.cores
    }

    /// About how many bytes of memory the changes take, replaced values included.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.cores.iter().map(CoreChanges::memory).sum()
    }

    /// Whether nothing has changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cores.iter().all(CoreChanges::is_empty)
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn accounts_for_what_is_there() {
        let mut overlay = Overlay::new(2);
        overlay.put(CoreId(0), b"key", Some(b"value"));
        overlay.put(CoreId(0), b"key", Some(b"v"));
        overlay.put(CoreId(1), b"key", None);
        overlay.put(CoreId(9), b"key", None);
        assert_eq!(overlay.memory(), 3 + 5 + 3 + 2 * ENTRY_OVERHEAD);
        assert_eq!(overlay.cores()[0].weight(), Weight { bytes: 11, records: 1 });
        assert_eq!(overlay.get(CoreId(0), b"key"), Some(Some(b"v".as_slice())));
        assert_eq!(overlay.get(CoreId(1), b"key"), Some(None));
        assert_eq!(overlay.get(CoreId(1), b"k"), None);
        assert!(!overlay.is_empty());
    }

    proptest! {
        #[test]
        fn is_a_sorted_map(
            changes in prop::collection::vec((
                prop::collection::vec(0_u8..3, 0..11),
                prop::option::of(prop::collection::vec(any::<u8>(), 0..20)),
            ), 0..60)
        ) {
            let mut overlay = Overlay::new(1);
            let mut model = BTreeMap::new();
            for (key, value) in &changes {
                overlay.put(CoreId(0), key, value.as_deref());
                model.insert(key.clone(), value.clone());
            }
            let core = &overlay.cores()[0];
            let mut sorted = core.sorted();
            let mut encoded = 0;
            for (key, value) in &model {
                let record = sorted.current().unwrap();
                prop_assert_eq!((record.key, record.value), (key.as_slice(), value.as_deref()));
                encoded += record.encoded_len() as u64;
                sorted.advance();
                prop_assert_eq!(overlay.get(CoreId(0), key), Some(value.as_deref()));
            }
            prop_assert!(sorted.current().is_none());
            prop_assert_eq!(core.weight(), Weight { bytes: encoded, records: model.len() as u64 });
            prop_assert_eq!(core.iter().count(), model.len());
        }
    }
}
