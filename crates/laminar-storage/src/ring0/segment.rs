//! A fixed-size hash table: the piece the index grows by.
//!
//! ```text
//!   segment: [ header | bucket | bucket | ... 255 of 128 bytes, two cache lines each ]
//!   bucket:  [ 5 metas | went_on | key 0 ][ key 1 | key 2 | key 3 | key 4 ]
//! ```
//!
//! A middle part of the hash chooses a bucket. All five metas are compared at once: which place a key
//! has costs no mispredicted branch, so that a processor can have several searches in flight, and
//! both lines are fetched at the same time. A bucket counts the keys that wanted it and went on to the
//! next one because it was full; a removal takes that back, so that there are no tombstones to slow
//! searches down or to fill the table. All safe code.

use super::hash::KeyHasher;

/// Buckets in a segment, so that it is 32 KiB with its header.
const BUCKETS: usize = 255;
/// Entries in a bucket.
const LANES: usize = 5;
/// A segment with this many entries, 85 % of its places, is full: beyond, too many keys go on.
pub(super) const FULL: u16 = 1084;
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

    /// The key is not in the entry, but in the record only: comparing takes another read from memory.
    #[inline]
    pub(super) fn is_long(&self) -> bool {
        is_long(self.low)
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
pub(super) struct Entry {
    /// Bits 0..16 tag (low bits of the hash), 16..24 length of an inline key or [`LONG`], 24..64
    /// arena offset in units of 16 bytes. 0 is a free place.
    meta: u64,
    /// The key, zero-padded, or the full hash and the length of a long one.
    words: [u64; 2],
}

impl Entry {
    #[inline]
    pub(super) fn new(needle: &Needle, at: u64) -> Self {
        debug_assert!(at.is_multiple_of(16) && at < 1 << 44 && at > 0);
        Self { meta: at << 20 | needle.low, words: needle.words }
    }

    /// The hash, from the entry alone.
    fn hash(&self, hasher: KeyHasher) -> u64 {
        if is_long(self.meta) {
            return self.words[0];
        }
        let mut key = [0; INLINE];
        key[..8].copy_from_slice(&self.words[0].to_le_bytes());
        key[8..].copy_from_slice(&self.words[1].to_le_bytes());
        let len = usize::from(self.meta.to_le_bytes()[2]);
        hasher.hash(&key[..len])
    }
}

#[inline]
fn is_long(meta: u64) -> bool {
    meta >> 16 & 0xff == LONG
}

/// Where the record of an entry is.
#[inline]
fn record_of(meta: u64) -> u64 {
    (meta >> 24) << 4
}

/// The bucket where a search begins. The tag has other bits, so that it tells keys of a bucket apart.
#[inline]
fn home(hash: u64) -> usize {
    let [_, _, a, b, ..] = hash.to_le_bytes();
    (usize::from(u16::from_le_bytes([a, b])) * BUCKETS) >> 16
}

#[inline]
fn after(bucket: usize) -> usize {
    if bucket + 1 == BUCKETS { 0 } else { bucket + 1 }
}

/// Five entries, the part that is searched first.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(128))]
struct Bucket {
    /// [`Entry::meta`] of each.
    metas: [u64; LANES],
    /// Keys that wanted this bucket or one before it and are in a later one.
    went_on: u64,
    /// [`Entry::words`] of each.
    words: [[u64; 2]; LANES],
}

impl Bucket {
    const EMPTY: Self = Self { metas: [0; LANES], went_on: 0, words: [[0; 2]; LANES] };

    /// The places whose tag and length are `low`, one bit each.
    #[inline]
    fn matches(&self, low: u64) -> u32 {
        let equal = |lane: usize| u32::from(self.metas[lane] & 0xff_ffff == low) << lane;
        equal(0) | equal(1) | equal(2) | equal(3) | equal(4)
    }

    /// The free places, one bit each.
    #[inline]
    fn free(&self) -> u32 {
        let free = |lane: usize| u32::from(self.metas[lane] == 0) << lane;
        free(0) | free(1) | free(2) | free(3) | free(4)
    }
}

/// A place in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At {
    bucket: usize,
    lane: usize,
}

/// 32 KiB of index.
#[derive(Debug)]
#[repr(C, align(128))]
pub(super) struct Segment {
    /// Occupied entries, `0..=FULL`.
    pub(super) count: u16,
    /// How many leading bits of the hash all keys in here share.
    pub(super) depth: u8,
    _pad: u8,
    /// In the index: block of the segment this one overflows into, 0 for none. Among free blocks: the next one.
    pub(super) next: u32,
    buckets: [Bucket; BUCKETS],
}

/// Bytes of a segment.
pub(super) const SEGMENT: usize = size_of::<Segment>();
const _: () = assert!(SEGMENT == 32 << 10 && size_of::<Bucket>() == 128);

impl Segment {
    #[cfg(test)]
    pub(super) fn empty() -> Self {
        Self { count: 0, depth: 0, _pad: 0, next: 0, buckets: [Bucket::EMPTY; BUCKETS] }
    }

    /// The record that an occupied place points to.
    #[inline]
    pub(super) fn record(&self, at: At) -> u64 {
        record_of(self.buckets[at.bucket].metas[at.lane])
    }

    /// The first record from the `nth` place on, and the number of the place after it.
    pub(super) fn first_from(&self, nth: usize) -> Option<(usize, u64)> {
        let mut skip = nth % LANES;
        for (number, bucket) in self.buckets.iter().enumerate().skip(nth / LANES) {
            // Most buckets of a small state are empty, and one test passes over all five places.
            if bucket.metas.iter().fold(0, |all, meta| all | meta) != 0 {
                let lane = (skip..LANES).find(|lane| bucket.metas[*lane] != 0);
                if let Some(lane) = lane {
                    return Some((number * LANES + lane + 1, record_of(bucket.metas[lane])));
                }
            }
            skip = 0;
        }
        None
    }

    /// Looks for a key; `same` compares a long key with the one of the record at an offset.
    // Always, here and in what calls it: left to the compiler, one caller more made a single `get` take a fifth longer.
    #[inline(always)]
    pub(super) fn find(&self, needle: &Needle, same: impl Fn(u64) -> bool) -> Option<At> {
        let mut index = home(needle.hash);
        for _ in 0..BUCKETS {
            let bucket = &self.buckets[index];
            let mut matches = bucket.matches(needle.low);
            while matches != 0 {
                let lane = matches.trailing_zeros() as usize;
                let (words, meta) = (bucket.words[lane], bucket.metas[lane]);
                // A free place matches the empty key with tag 0, hence the last condition. One
                // condition for both words: the processor need not guess which of them differs.
                if (words[0] ^ needle.words[0]) | (words[1] ^ needle.words[1]) == 0
                    && (!is_long(meta) || same(record_of(meta)))
                    && meta != 0
                {
                    return Some(At { bucket: index, lane });
                }
                matches &= matches - 1;
            }
            if bucket.went_on == 0 {
                return None;
            }
            index = after(index);
        }
        None
    }

    /// A free place for a key that is not here. There is one unless the segment is full.
    #[inline]
    pub(super) fn room(&self, hash: u64) -> At {
        let mut bucket = home(hash);
        loop {
            let free = self.buckets[bucket].free();
            if free != 0 {
                return At { bucket, lane: free.trailing_zeros() as usize };
            }
            bucket = after(bucket);
        }
    }

    /// Fills the free place that [`Self::room`] gave for the key's hash.
    #[inline]
    pub(super) fn insert(&mut self, at: At, hash: u64, entry: Entry) {
        let mut passed = home(hash);
        while passed != at.bucket {
            self.buckets[passed].went_on += 1;
            passed = after(passed);
        }
        let bucket = &mut self.buckets[at.bucket];
        bucket.metas[at.lane] = entry.meta;
        bucket.words[at.lane] = entry.words;
        self.count += 1;
    }

    /// Points an occupied place at another record of the same key.
    #[inline]
    pub(super) fn swing(&mut self, at: At, needle: &Needle, record: u64) {
        self.buckets[at.bucket].metas[at.lane] = record << 20 | needle.low;
    }

    /// Frees the place that the key with this hash occupies.
    pub(super) fn remove(&mut self, at: At, hash: u64) {
        let mut passed = home(hash);
        while passed != at.bucket {
            self.buckets[passed].went_on -= 1;
            passed = after(passed);
        }
        let bucket = &mut self.buckets[at.bucket];
        bucket.metas[at.lane] = 0;
        bucket.words[at.lane] = [0; 2];
        self.count -= 1;
    }

    /// Moves its entries into two empty segments, by the bit of their hash that `depth` adds.
    pub(super) fn split_into(&self, halves: [&mut Self; 2], depth: u8, hasher: KeyHasher) {
        let bit = 64 - u32::from(depth);
        let [zero, one] = halves;
        zero.depth = depth;
        one.depth = depth;
        for bucket in &self.buckets {
            for (meta, words) in bucket.metas.iter().zip(bucket.words).filter(|(meta, _)| **meta != 0) {
                let entry = Entry { meta: *meta, words };
                let hash = entry.hash(hasher);
                // Which half it is cannot be guessed: choose an address instead of a branch.
                let half = std::hint::select_unpredictable(hash >> bit & 1 == 1, &mut *one, &mut *zero);
                half.insert(half.room(hash), hash, entry);
            }
        }
    }

    /// Empties it.
    pub(super) fn clear(&mut self) {
        self.count = 0;
        self.depth = 0;
        self.next = 0;
        self.buckets.fill(Bucket::EMPTY);
    }

    /// Becomes what `other` is.
    pub(super) fn copy_from(&mut self, other: &Self) {
        self.count = other.count;
        self.depth = other.depth;
        self.next = other.next;
        self.buckets.copy_from_slice(&other.buckets);
    }

    /// Where the two lines lie that a search for `hash` looks at first.
    #[inline]
    pub(super) fn home_address(&self, hash: u64) -> *const u8 {
        (&raw const self.buckets[home(hash)]).cast()
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
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
            assert!(!is_long(entry.meta));
            assert_eq!((entry.hash(hasher), record_of(entry.meta)), (hasher.hash(key), 64));
            words.push((needle.low & 0xff_0000, needle.words));
        }
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), INLINE + 1);
        let long = Needle::new(hasher.hash(&bytes), &bytes);
        let entry = Entry::new(&long, 16);
        assert!(is_long(entry.meta));
        assert_eq!(entry.hash(hasher), hasher.hash(&bytes));
    }

    #[test]
    fn removal_leaves_every_other_key_reachable_and_takes_the_overflow_back() {
        let mut segment = Segment::empty();
        // All keys want one of the last two buckets, so that they go on around the end.
        let needles: Vec<Needle> = (0..200_u64)
            .map(|n| {
                let key = n.to_le_bytes();
                Needle::new(((0xffff - (n % 2) * 300) << 16) | (n % 3), &key)
            })
            .collect();
        for (needle, n) in needles.iter().zip(1..) {
            assert!(segment.find(needle, |_| unreachable!()).is_none());
            segment.insert(segment.room(needle.hash), needle.hash, Entry::new(needle, n * 16));
        }
        for needle in needles.iter().step_by(2) {
            let at = segment.find(needle, |_| unreachable!()).unwrap();
            segment.remove(at, needle.hash);
            assert!(segment.find(needle, |_| unreachable!()).is_none());
        }
        for (needle, n) in needles.iter().zip(1..).skip(1).step_by(2) {
            let at = segment.find(needle, |_| unreachable!()).unwrap();
            assert_eq!(segment.record(at), n * 16);
            segment.remove(at, needle.hash);
        }
        assert_eq!(segment.count, 0);
        assert!(segment.buckets.iter().all(|bucket| bucket.went_on == 0 && bucket.metas == [0; LANES]));
    }
}
