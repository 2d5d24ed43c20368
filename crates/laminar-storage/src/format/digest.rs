//! Order-independent digest of a live state.
//!
//! The digest of a core is the wrapping sum of [`record_digest`] over its live keys, so that a change
//! adds the new record's digest and subtracts the old one's, and digests of several cores add up.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Digest of a core's live state and how many keys it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateDigest {
    /// Wrapping sum of [`record_digest`] over the live keys.
    pub digest: u64,
    /// Number of live keys.
    pub live_keys: u64,
}

impl StateDigest {
    /// The digest of a state that has only this key, or nothing when the key has no value.
    #[must_use]
    pub fn of(key: &[u8], value: Option<&[u8]>) -> Self {
        value.map_or_else(Self::default, |value| Self { digest: record_digest(key, value), live_keys: 1 })
    }

    /// The digest of two states without a key in common, taken together. One of them may be a difference.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            digest: self.digest.wrapping_add(other.digest),
            live_keys: self.live_keys.wrapping_add(other.live_keys),
        }
    }

    /// What must be added to `other` to make it this one.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            digest: self.digest.wrapping_sub(other.digest),
            live_keys: self.live_keys.wrapping_sub(other.live_keys),
        }
    }
}

/// Records up to this many bytes are hashed from the stack in one go.
const ON_STACK: usize = 240;

/// Digest of one live record.
#[must_use]
pub fn record_digest(key: &[u8], value: &[u8]) -> u64 {
    // The key's length is the seed, so that moving a byte from key to value changes the digest.
    let seed = key.len() as u64;
    let mut both = [0_u8; ON_STACK];
    if let Some(room) = both.get_mut(..key.len() + value.len()) {
        let (k, v) = room.split_at_mut(key.len());
        k.copy_from_slice(key);
        v.copy_from_slice(value);
        return xxh3_64_with_seed(room, seed);
    }
    let mut hasher = Xxh3::with_seed(seed);
    hasher.update(key);
    hasher.update(value);
    hasher.digest()
}

/// As [`record_digest`], of a record whose value stands behind its key, which has `key_len` bytes.
#[must_use]
#[inline]
pub fn joined_digest(both: &[u8], key_len: usize) -> u64 {
    xxh3_64_with_seed(both, key_len as u64)
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn all_ways_agree_and_the_border_between_key_and_value_counts() {
        for len in [0, 1, 100, 238, 239, 240, 241, 1000] {
            let value = vec![7_u8; len];
            let mut streamed = Xxh3::with_seed(1);
            streamed.update(b"k");
            streamed.update(&value);
            assert_eq!(record_digest(b"k", &value), streamed.digest());
            assert_eq!(joined_digest(&[b"k", value.as_slice()].concat(), 1), streamed.digest());
        }
        assert_ne!(record_digest(b"ab", b"c"), record_digest(b"a", b"bc"));
    }
}
