//! Packing the blocks of a state file.
//!
//! ```text
//! 0            4
//! ┌────────────┬─────────────────────────────┐
//! │ raw length │ LZ4 block, or the raw bytes │
//! └────────────┴─────────────────────────────┘
//! ```
//!
//! Whether the blocks of a file are packed stands in its header. A block that does not get smaller is
//! stored as it is: then as many bytes follow as the raw length says. A packed block is always shorter,
//! so the two cannot be confused. Checksums cover what is on disk, so nothing damaged is ever unpacked;
//! the raw length is checked all the same before memory is taken for it.

use serde::{Deserialize, Serialize};

use super::state_file::{Fault, MAX_BLOCK_LEN};

/// Bytes before the packed bytes.
const PREFIX_LEN: usize = 4;

/// How the blocks of the state files of new checkpoints are compressed. Files of every kind are read,
/// whatever is set, and one checkpoint may have files of several kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Compression {
    /// Not at all: the fastest to write and to open.
    #[default]
    None,
    /// LZ4: smaller files for a little time of the background thread, where values repeat themselves.
    Lz4,
}

impl Compression {
    /// The flags of a state file's header.
    pub(super) fn flags(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Lz4 => 1,
        }
    }

    /// What the flags say; `None` for flags that this version never writes.
    pub(super) fn from_flags(flags: u32) -> Option<Self> {
        [Self::None, Self::Lz4].into_iter().find(|kind| kind.flags() == flags)
    }

    /// The most bytes on disk that a block of `raw` bytes may take: one that does not get smaller has its length
    /// before it all the same.
    pub(super) fn longest(self, raw: usize) -> usize {
        match self {
            Self::None => raw,
            Self::Lz4 => PREFIX_LEN + raw,
        }
    }

    /// The bytes that go to disk for a block; `packed` is memory for them.
    pub fn pack<'a>(self, raw: &'a [u8], packed: &'a mut Vec<u8>) -> &'a [u8] {
        if self == Self::None {
            return raw;
        }
        packed.clear();
        packed.resize(PREFIX_LEN + lz4_flex::block::get_maximum_output_size(raw.len()), 0);
        let (prefix, space) = packed.split_at_mut(PREFIX_LEN);
        // Blocks have at most MAX_BLOCK_LEN bytes.
        prefix.copy_from_slice(&u32::try_from(raw.len()).unwrap_or(u32::MAX).to_le_bytes());
        let len = match lz4_flex::block::compress_into(raw, space) {
            Ok(len) if len < raw.len() => len,
            _ => {
                packed.truncate(PREFIX_LEN);
                packed.extend_from_slice(raw);
                raw.len()
            }
        };
        packed.truncate(PREFIX_LEN + len);
        packed
    }

    /// The block that `stored` was made of, into `raw`.
    ///
    /// # Errors
    /// Bytes that [`Self::pack`] never makes.
    pub fn unpack(self, stored: &[u8], raw: &mut Vec<u8>) -> Result<(), Fault> {
        raw.clear();
        if self == Self::None {
            raw.extend_from_slice(stored);
            return Ok(());
        }
        let damaged = Fault::Damaged("a block cannot be unpacked");
        let Some((prefix, bytes)) = stored.split_first_chunk::<PREFIX_LEN>() else { return Err(damaged) };
        let len = u32::from_le_bytes(*prefix) as usize;
        if len > MAX_BLOCK_LEN || len < bytes.len() {
            return Err(damaged);
        }
        if len == bytes.len() {
            raw.extend_from_slice(bytes);
            return Ok(());
        }
        raw.resize(len, 0);
        match lz4_flex::block::decompress_into(bytes, raw) {
            Ok(unpacked) if unpacked == len => Ok(()),
            _ => {
                raw.clear();
                Err(damaged)
            }
        }
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;

    fn round_trip(kind: Compression, block: &[u8]) -> usize {
        let (mut packed, mut raw) = (vec![9; 3], vec![9; 5]);
        let stored = kind.pack(block, &mut packed).to_vec();
        kind.unpack(&stored, &mut raw).unwrap();
        assert_eq!(raw, block);
        stored.len()
    }

    #[test]
    fn blocks_come_back_and_get_smaller_where_they_can() {
        let repeating = b"user-0000000042,".repeat(2000);
        let noise: Vec<u8> =
            (0..5000_u32).map(|n| n.wrapping_mul(0x9E37_79B9).rotate_left(7).to_be_bytes()[0]).collect();
        assert_eq!(round_trip(Compression::None, &repeating), repeating.len());
        assert!(round_trip(Compression::Lz4, &repeating) < repeating.len() / 10);
        for block in [&noise[..], &[], &[1]] {
            assert!(round_trip(Compression::Lz4, block) <= block.len() + PREFIX_LEN);
        }
    }

    /// One that packs to as many bytes as it has is told from a packed one by that number alone.
    #[test]
    fn a_block_that_gets_no_smaller_is_stored_as_it_is() {
        let mut random = 1_u64;
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random.to_le_bytes()[3]
        };
        let noise: Vec<u8> = (0..4000).map(|_| next()).collect();
        let mut equal = 0;
        for repeated in 0..100 {
            let block = [&noise[..], &noise[..repeated]].concat();
            equal += usize::from(lz4_flex::block::compress(&block).len() == block.len());
            assert!(round_trip(Compression::Lz4, &block) <= block.len() + PREFIX_LEN, "{repeated}");
        }
        assert!(equal > 0);
    }

    #[test]
    fn the_longest_block_comes_back() {
        let longest = vec![7; MAX_BLOCK_LEN];
        assert!(round_trip(Compression::Lz4, &longest) < MAX_BLOCK_LEN / 100);
    }

    /// Nothing of it can come from a block whose checksum is right; were it to, it is an error that
    /// takes no memory.
    #[test]
    fn what_was_never_packed_is_refused() {
        let mut packed = Vec::new();
        let good = Compression::Lz4.pack(&[7; 1000], &mut packed).to_vec();
        let mut raw = Vec::new();
        let refused = |stored: &[u8], raw: &mut Vec<u8>| {
            let refused = Compression::Lz4.unpack(stored, raw).is_err();
            assert!(!refused || raw.is_empty());
            refused
        };
        for len in 0..good.len() {
            assert!(refused(&good[..len], &mut raw), "{len} bytes");
        }
        let longer = [&good[..], &[0]].concat();
        assert!(refused(&longer, &mut raw));
        for claimed in [0, 999, 1001, u32::MAX] {
            let mut other = good.clone();
            other[..4].copy_from_slice(&u32::to_le_bytes(claimed));
            assert!(refused(&other, &mut raw), "{claimed} bytes claimed");
        }
        assert!(raw.capacity() < 1 << 20);
        assert!(Compression::from_flags(2).is_none());
    }
}
