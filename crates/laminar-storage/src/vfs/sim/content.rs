//! The bytes of one file: sparse blocks shared between all copies until one of them writes.
//!
//! A block that is absent reads as zeros. Every block remembers its hash, so hashing an image costs
//! only what changed since the last one.

use std::sync::{Arc, OnceLock};

use xxhash_rust::xxh3::xxh3_64;

const BLOCK: usize = 1024;
const BLOCK_U64: u64 = 1024;

#[derive(Clone)]
struct Block {
    bytes: [u8; BLOCK],
    hash: OnceLock<u64>,
}

impl Block {
    fn hash(&self) -> u64 {
        *self.hash.get_or_init(|| xxh3_64(&self.bytes))
    }
}

/// Bytes and length. Except while an image is being put together, nothing stands beyond `len`.
#[derive(Clone, Default)]
pub(super) struct Content {
    len: u64,
    /// Ordered by block number.
    blocks: Vec<(u64, Arc<Block>)>,
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Content({} bytes)", self.len)
    }
}

/// A length in memory; saturates where memory could not hold it anyway.
pub(super) fn in_memory(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// Splits a range at multiples of a block: (block number, offset in block, offset in range, length).
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done >= len {
            return None;
        }
        let at = offset.saturating_add(done as u64);
        let within = in_memory(at % BLOCK_U64);
        let n = (BLOCK - within).min(len - done);
        let piece = (at / BLOCK_U64, within, done, n);
        done += n;
        Some(piece)
    })
}

impl Content {
    pub(super) const EMPTY: Self = Self { len: 0, blocks: Vec::new() };

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    fn block(&self, number: u64) -> Option<&Block> {
        let i = self.blocks.binary_search_by_key(&number, |b| b.0).ok()?;
        Some(&self.blocks[i].1)
    }

    /// Copies what lies at `offset`, up to the end of the file; returns how much that was.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        let n = in_memory(self.len.saturating_sub(offset)).min(buf.len());
        self.read_raw(&mut buf[..n], offset);
        n
    }

    /// Copies what lies at `offset`, zeros where nothing does, whatever the length is.
    pub(super) fn read_raw(&self, buf: &mut [u8], offset: u64) {
        for (number, within, at, n) in pieces(offset, buf.len()) {
            match self.block(number) {
                Some(block) => {
                    buf[at..at + n].copy_from_slice(&block.bytes[within..within + n]);
                }
                None => buf[at..at + n].fill(0),
            }
        }
    }

    /// Stores bytes without changing the length.
    pub(super) fn put(&mut self, offset: u64, bytes: &[u8]) {
        for (number, within, at, n) in pieces(offset, bytes.len()) {
            let new = &bytes[at..at + n];
            let i = match self.blocks.binary_search_by_key(&number, |b| b.0) {
                Ok(i) => i,
                Err(_) if new.iter().all(|b| *b == 0) => continue,
                Err(i) => {
                    let block = Block { bytes: [0; BLOCK], hash: OnceLock::new() };
                    self.blocks.insert(i, (number, Arc::new(block)));
                    i
                }
            };
            let block = Arc::make_mut(&mut self.blocks[i].1);
            block.bytes[within..within + n].copy_from_slice(new);
            block.hash = OnceLock::new();
        }
    }

    /// Stores bytes and grows the file when they reach beyond its end.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.put(offset, bytes);
        self.len = self.len.max(offset.saturating_add(bytes.len() as u64));
    }

    /// Cuts, or extends with zeros.
    pub(super) fn set_len(&mut self, len: u64) {
        self.discard_from(len);
        self.len = len;
    }

    /// Zeroes everything from `from` on without changing the length.
    pub(super) fn discard_from(&mut self, from: u64) {
        let first_gone = from.div_ceil(BLOCK_U64);
        let keep = self.blocks.partition_point(|b| b.0 < first_gone);
        self.blocks.truncate(keep);
        let within = in_memory(from % BLOCK_U64);
        if within > 0
            && let Some(last) = self.blocks.last_mut()
            && last.0 == from / BLOCK_U64
        {
            let block = Arc::make_mut(&mut last.1);
            block.bytes[within..].fill(0);
            block.hash = OnceLock::new();
        }
    }

    /// Whether this range holds exactly these bytes, zeros beyond the end included.
    pub(super) fn holds(&self, offset: u64, bytes: &[u8]) -> bool {
        pieces(offset, bytes.len()).all(|(number, within, at, n)| {
            let there = &bytes[at..at + n];
            match self.block(number) {
                Some(block) => block.bytes[within..within + n] == *there,
                None => there.iter().all(|b| *b == 0),
            }
        })
    }

    /// Equal for equal length and bytes, however they came about.
    pub(super) fn hash(&self, scratch: &mut Vec<u8>) -> u64 {
        static ZEROS: OnceLock<u64> = OnceLock::new();
        let zeros = *ZEROS.get_or_init(|| xxh3_64(&[0; BLOCK]));
        scratch.clear();
        scratch.extend_from_slice(&self.len.to_le_bytes());
        for (number, block) in &self.blocks {
            let hash = block.hash();
            if hash != zeros {
                scratch.extend_from_slice(&number.to_le_bytes());
                scratch.extend_from_slice(&hash.to_le_bytes());
            }
        }
        xxh3_64(scratch)
    }

    /// The whole file.
    pub(super) fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; in_memory(self.len)];
        self.read_raw(&mut bytes, 0);
        bytes
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn sparse_blocks_behave_like_one_buffer() {
        let mut content = Content::default();
        let mut plain: Vec<u8> = Vec::new();
        let mut seed = 7_u64;
        let mut random = move |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % below
        };
        for round in 0..500_u32 {
            let offset = random(20_000);
            if random(4) == 0 {
                content.set_len(offset);
                plain.resize(in_memory(offset), 0);
            } else {
                let bytes = vec![round.to_le_bytes()[0] % 3; in_memory(random(9000))];
                content.write(offset, &bytes);
                let end = in_memory(offset) + bytes.len();
                plain.resize(plain.len().max(end), 0);
                plain[in_memory(offset)..end].copy_from_slice(&bytes);
            }
            assert_eq!(content.to_vec(), plain);
            let mut fresh = Content::default();
            fresh.write(0, &plain);
            let mut scratch = Vec::new();
            assert_eq!(content.hash(&mut scratch), fresh.hash(&mut scratch));
        }
    }

    #[test]
    fn huge_offsets_cost_nothing() {
        let mut content = Content::default();
        content.write(1 << 34, b"far");
        assert_eq!(content.len(), (1 << 34) + 3);
        let mut bytes = [1; 5];
        assert_eq!(content.read(&mut bytes, (1 << 34) - 2), 5);
        assert_eq!(&bytes, b"\0\0far");
    }
}
