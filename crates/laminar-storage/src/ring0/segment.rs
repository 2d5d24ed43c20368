//! A fixed-size open-addressing table: the piece the index grows by.
//!
//! Linear probing from the slot that the low bits of the hash choose; removal shifts back, so that
//! there are no tombstones to slow down or to fill the table. All safe code.

use super::hash::KeyHasher;

/// Entries in a segment, so that it is 32 KiB with its header.
pub(super) const SLOTS: usize = 1365;
/// A segment with this many entries is full: beyond it, probing gets long.
pub(super) const FULL: u16 = 1228;
/// Keys up to this many bytes lie in the entry itself.
pub(super) const INLINE: usize = 16;
/// In place of the length, for keys that do not.
const LONG: u64 = 0xff;

/// The key that is looked for, brought into the form that entries have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Needle {
    pub(super) hash: u64,
    /// Tag and length, as in [`Entry::meta`].
    low: u64,
    words: [u64; 2],
}

impl Needle {
    #[inline]
    pub(super) fn new(hash: u64, key: &[u8]) -> Self {
        let tag = hash & 0xffff;
        match inline_words(key) {
            Some(words) => Self { hash, low: tag | (key.len() as u64) << 16, words },
            None => Self { hash, low: tag | LONG << 16, words: [hash, key.len() as u64] },
        }
    }
}

/// The bytes of a short key as two little-endian words, zero-padded.
#[inline]
fn inline_words(key: &[u8]) -> Option<[u64; 2]> {
    if let Ok(whole) = <[u8; INLINE]>::try_from(key) {
        let [a, b, c, d, e, f, g, h, rest @ ..] = whole;
        return Some([u64::from_le_bytes([a, b, c, d, e, f, g, h]), u64::from_le_bytes(rest)]);
    }
    if let Some((first, rest)) = key.split_first_chunk::<8>() {
        if rest.len() > 8 {
            return None;
        }
        return Some([u64::from_le_bytes(*first), little_word(rest)]);
    }
    Some([little_word(key), 0])
}

#[inline]
fn little_word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// 24 bytes: where the record is, and enough of the key to know it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct Entry {
    /// Bits 0..16 tag (low bits of the hash), 16..24 length of an inline key or [`LONG`], 24..64
    /// arena offset in units of 16 bytes. 0 is a free place.
    meta: u64,
    /// The key, zero-padded, or the full hash and the length of a long one.
    words: [u64; 2],
}

const _: () = assert!(size_of::<Entry>() == 24);

impl Entry {
    #[inline]
    pub(super) fn new(needle: &Needle, at: u64) -> Self {
        debug_assert!(at.is_multiple_of(16) && at < 1 << 44 && at > 0);
        Self { meta: at << 20 | needle.low, words: needle.words }
    }

    /// Where the record is.
    #[inline]
    pub(super) fn at(&self) -> u64 {
        (self.meta >> 24) << 4
    }

    #[inline]
    pub(super) fn is_free(&self) -> bool {
        self.meta == 0
    }

    #[inline]
    fn looks_like(&self, needle: &Needle) -> bool {
        // One condition, not three branches: the processor need not guess which part differs.
        (self.meta & 0xff_ffff ^ needle.low)
            | (self.words[0] ^ needle.words[0])
            | (self.words[1] ^ needle.words[1])
            == 0
    }

    fn is_long(&self) -> bool {
        self.meta >> 16 & 0xff == LONG
    }

    #[inline]
    fn home(&self) -> usize {
        home(self.meta)
    }

    /// The hash, from the entry alone.
    fn hash(&self, hasher: KeyHasher) -> u64 {
        if self.is_long() {
            return self.words[0];
        }
        let mut key = [0; INLINE];
        key[..8].copy_from_slice(&self.words[0].to_le_bytes());
        key[8..].copy_from_slice(&self.words[1].to_le_bytes());
        let len = usize::from(self.meta.to_le_bytes()[2]);
        hasher.hash(&key[..len])
    }
}

/// The slot where probing begins.
#[inline]
pub(super) fn home(hash: u64) -> usize {
    (usize::from(low_16(hash)) * SLOTS) >> 16
}

#[inline]
fn low_16(word: u64) -> u16 {
    let [a, b, ..] = word.to_le_bytes();
    u16::from_le_bytes([a, b])
}

#[inline]
fn after(slot: usize) -> usize {
    if slot + 1 == SLOTS { 0 } else { slot + 1 }
}

/// 32 KiB of index.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Segment {
    /// Occupied entries, `0..=FULL`.
    pub(super) count: u16,
    /// How many leading bits of the hash all keys in here share.
    pub(super) depth: u8,
    _pad: u8,
    /// In the index: block of the segment this one overflows into, 0 for none. Among free blocks: the next one.
    pub(super) next: u32,
    entries: [Entry; SLOTS],
}

/// Bytes of a segment.
pub(super) const SEGMENT: usize = size_of::<Segment>();
const _: () = assert!(SEGMENT == 32 << 10);

/// What a search came to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Probe {
    /// The key's entry is in this slot.
    Hit(usize),
    /// The key is not here; this slot would be its place.
    Miss(usize),
}

impl Segment {
    pub(super) fn empty() -> Self {
        Self { count: 0, depth: 0, _pad: 0, next: 0, entries: [Entry::default(); SLOTS] }
    }

    #[inline]
    pub(super) fn entry(&self, slot: usize) -> &Entry {
        &self.entries[slot]
    }

    /// The entries in use, with their slots.
    pub(super) fn first_from(&self, slot: usize) -> Option<(usize, &Entry)> {
        let rest = self.entries.get(slot..)?;
        rest.iter().enumerate().find(|(_, entry)| !entry.is_free()).map(|(skip, entry)| (slot + skip, entry))
    }

    /// Looks for a key; `same` compares a long key with the one of the record at an offset.
    #[inline]
    pub(super) fn find(&self, needle: &Needle, same: impl Fn(u64) -> bool) -> Probe {
        let mut slot = home(needle.hash);
        loop {
            let entry = &self.entries[slot];
            if entry.looks_like(needle) && !entry.is_free() && (!entry.is_long() || same(entry.at())) {
                return Probe::Hit(slot);
            }
            if entry.is_free() {
                return Probe::Miss(slot);
            }
            slot = after(slot);
        }
    }

    /// Points an occupied slot somewhere else, or fills the free slot that a search ended on.
    #[inline]
    pub(super) fn set(&mut self, slot: usize, entry: Entry) {
        self.count += u16::from(self.entries[slot].is_free());
        self.entries[slot] = entry;
    }

    /// Points an occupied slot at another record of the same key.
    #[inline]
    pub(super) fn swing(&mut self, slot: usize, needle: &Needle, at: u64) {
        self.entries[slot].meta = at << 20 | needle.low;
    }

    /// Frees a slot and moves back what had to probe past it.
    pub(super) fn remove(&mut self, slot: usize) {
        let mut hole = slot;
        let mut slot = after(slot);
        while !self.entries[slot].is_free() {
            let home = self.entries[slot].home();
            // It may move into the hole unless its home lies cyclically after the hole.
            let stays = if hole < slot { hole < home && home <= slot } else { hole < home || home <= slot };
            if !stays {
                self.entries[hole] = self.entries[slot];
                hole = slot;
            }
            slot = after(slot);
        }
        self.entries[hole] = Entry::default();
        self.count -= 1;
    }

    /// Appends an entry whose key is known not to be here.
    fn add(&mut self, entry: Entry) {
        let mut slot = entry.home();
        while !self.entries[slot].is_free() {
            slot = after(slot);
        }
        self.entries[slot] = entry;
        self.count += 1;
    }

    /// Takes the place of `old` with those of its keys whose hash has `bit` as `one` says.
    pub(super) fn fill_half(&mut self, old: &Self, depth: u8, hasher: KeyHasher, one: bool) {
        let bit = 64 - u32::from(depth);
        for entry in old.entries.iter().filter(|entry| !entry.is_free()) {
            if (entry.hash(hasher) >> bit & 1 == 1) == one {
                self.add(*entry);
            }
        }
        self.depth = depth;
    }

    /// Empties it.
    pub(super) fn clear(&mut self) {
        self.count = 0;
        self.depth = 0;
        self.next = 0;
        self.entries.fill(Entry::default());
    }

    /// Becomes what `other` is.
    pub(super) fn copy_from(&mut self, other: &Self) {
        self.count = other.count;
        self.depth = other.depth;
        self.next = other.next;
        self.entries.copy_from_slice(&other.entries);
    }

    /// Where the entry that probing for `hash` looks at first lies.
    #[inline]
    pub(super) fn home_address(&self, hash: u64) -> *const u8 {
        (&raw const self.entries[home(hash)]).cast()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_keys_of_all_lengths_are_told_apart_and_give_their_hash_back() {
        let hasher = KeyHasher::of_process();
        let bytes: Vec<u8> = (0..=INLINE).map(|n| if n % 2 == 0 { 0 } else { 0xa5 }).collect();
        let mut words = Vec::new();
        for len in 0..=INLINE {
            let key = &bytes[..len];
            let needle = Needle::new(hasher.hash(key), key);
            let entry = Entry::new(&needle, 64);
            assert!(!entry.is_long() && entry.looks_like(&needle));
            assert_eq!((entry.hash(hasher), entry.at()), (hasher.hash(key), 64));
            words.push((needle.low & 0xff_0000, needle.words));
        }
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), INLINE + 1);
        let long = Needle::new(hasher.hash(&bytes), &bytes);
        let entry = Entry::new(&long, 16);
        assert!(entry.is_long());
        assert_eq!(entry.hash(hasher), hasher.hash(&bytes));
    }

    #[test]
    fn removal_leaves_every_other_key_reachable_around_the_end() {
        let mut segment = Segment::empty();
        // All keys want the last few slots, so that the run wraps around.
        let needles: Vec<Needle> = (0..200_u64)
            .map(|n| {
                let key = n.to_le_bytes();
                Needle::new(0xffff - (n % 3) * 60, &key)
            })
            .collect();
        for (needle, n) in needles.iter().zip(1..) {
            let Probe::Miss(slot) = segment.find(needle, |_| unreachable!()) else { panic!("found") };
            segment.set(slot, Entry::new(needle, n * 16));
        }
        for (removed, needle) in needles.iter().enumerate().step_by(2) {
            let Probe::Hit(slot) = segment.find(needle, |_| unreachable!()) else { panic!("lost {removed}") };
            segment.remove(slot);
            assert!(matches!(segment.find(needle, |_| unreachable!()), Probe::Miss(_)));
        }
        for (needle, n) in needles.iter().zip(1..).skip(1).step_by(2) {
            let Probe::Hit(slot) = segment.find(needle, |_| unreachable!()) else { panic!("lost {n}") };
            assert_eq!(segment.entry(slot).at(), n * 16);
        }
        assert_eq!(segment.count, 100);
    }
}
