//! The bytes of a disk: in blocks, of which only those exist that are not zero or were written.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Bytes in a block.
pub const BLOCK: usize = 4096;

type Block = [u8; BLOCK];

/// Cheap to clone: blocks are shared until one side writes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    len: u64,
    blocks: BTreeMap<u64, Arc<Block>>,
}

/// The parts of a range, each within one block: block, place in it, length.
fn parts(mut offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let mut left = len;
    std::iter::from_fn(move || {
        let at = usize::try_from(offset % BLOCK as u64).ok()?;
        let (block, now) = (offset / BLOCK as u64, left.min(BLOCK - at));
        (offset, left) = (offset + now as u64, left - now);
        (now > 0).then_some((block, at, now))
    })
}

impl Disk {
    /// An empty disk of that many bytes.
    #[must_use]
    pub fn new(len: u64) -> Self {
        Self { len, blocks: BTreeMap::new() }
    }

    /// What a file holds.
    ///
    /// # Errors
    /// Reading it.
    pub fn load(file: &mut File) -> io::Result<Self> {
        let mut disk = Self::new(file.metadata()?.len());
        let (mut at, mut bytes) = (0, Vec::new());
        loop {
            bytes.clear();
            file.by_ref().take(1 << 20).read_to_end(&mut bytes)?;
            if bytes.is_empty() {
                return Ok(disk);
            }
            for block in bytes.chunks(BLOCK) {
                if block.iter().any(|byte| *byte != 0) {
                    disk.write(at, block);
                }
                at += block.len() as u64;
            }
        }
    }

    /// Bytes on it.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no room for anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes from `offset` on, fewer at the end of the disk.
    #[must_use]
    pub fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let len = usize::try_from(self.len.saturating_sub(offset)).map_or(len, |left| left.min(len));
        let mut out = Vec::with_capacity(len);
        for (block, at, now) in parts(offset, len) {
            let bytes = self.blocks.get(&block).and_then(|block| block.get(at..at + now));
            match bytes {
                Some(bytes) => out.extend_from_slice(bytes),
                None => out.resize(out.len() + now, 0),
            }
        }
        out
    }

    /// Writes; what is beyond the end of the disk has no place.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let room = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut rest = bytes.get(..room).unwrap_or(bytes);
        for (block, at, now) in parts(offset, rest.len()) {
            let (bytes, after) = rest.split_at(now);
            let block = Arc::make_mut(self.blocks.entry(block).or_insert_with(|| Arc::new([0; BLOCK])));
            if let Some(place) = block.get_mut(at..at + now) {
                place.copy_from_slice(bytes);
            }
            rest = after;
        }
    }

    /// Blocks that exist, in order, each with its offset.
    pub fn blocks(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.blocks.iter().map(|(block, bytes)| (block * BLOCK as u64, bytes.as_slice()))
    }

    /// Puts it into an empty file.
    ///
    /// # Errors
    /// Writing it.
    pub fn store(&self, file: &File) -> io::Result<()> {
        file.set_len(self.len)?;
        let (mut run, mut begin): (Vec<u8>, u64) = (Vec::new(), 0);
        for (offset, bytes) in self.blocks() {
            if begin + run.len() as u64 != offset {
                file.write_all_at(&run, begin)?;
                run.clear();
                begin = offset;
            }
            run.extend_from_slice(bytes);
        }
        // A last block that is shorter than the others ends with the disk.
        let room = usize::try_from(self.len.saturating_sub(begin)).unwrap_or(usize::MAX);
        file.write_all_at(run.get(..room).unwrap_or(&run), begin)
    }

    /// A number for its content.
    #[must_use]
    pub fn hash(&self) -> u128 {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        for (offset, bytes) in self.blocks().filter(|(_, bytes)| bytes.iter().any(|byte| *byte != 0)) {
            hash.update(&offset.to_le_bytes());
            hash.update(bytes);
        }
        hash.digest128()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests say so by failing")]
    use super::*;

    #[test]
    fn what_is_written_is_read_and_the_rest_is_zero() {
        let mut disk = Disk::new(3 * BLOCK as u64 + 100);
        let mut plain = vec![0u8; 3 * BLOCK + 100];
        for (n, (offset, len)) in
            [(0, 1), (4090, 20), (8000, 4000), (12_288, 100), (5, 12_000)].iter().enumerate()
        {
            let bytes: Vec<u8> = (0..*len).map(|i| (i * 7 + n + 1) as u8).collect();
            disk.write(*offset as u64, &bytes);
            plain[*offset..offset + len].copy_from_slice(&bytes);
            assert_eq!(disk.read(0, plain.len()), plain);
        }
        assert_eq!(disk.read(4000, 200), plain[4000..4200]);
        assert_eq!(disk.read(12_300, 500), plain[12_300..], "a read ends with the disk");
        disk.write(12_380, &[9; 100]);
        assert_eq!(disk.read(12_380, 100), [9; 8], "so does a write");
    }

    #[test]
    fn a_copy_does_not_see_later_writes() {
        let mut disk = Disk::new(8192);
        disk.write(100, b"before");
        let copy = disk.clone();
        disk.write(100, b"after!");
        assert_eq!((copy.read(100, 6), disk.read(100, 6)), (b"before".to_vec(), b"after!".to_vec()));
        assert_ne!(copy.hash(), disk.hash());
    }

    #[test]
    fn a_file_takes_it_and_gives_it_back() {
        let mut disk = Disk::new(5 * BLOCK as u64 + 512);
        disk.write(BLOCK as u64 - 3, b"over an edge");
        disk.write(5 * BLOCK as u64, &[7; 512]);
        let mut file = tempfile::tempfile().unwrap();
        disk.store(&file).unwrap();
        assert_eq!(file.metadata().unwrap().len(), disk.len());
        std::io::Seek::rewind(&mut file).unwrap();
        let loaded = Disk::load(&mut file).unwrap();
        assert_eq!(loaded, disk);
        disk.write(2 * BLOCK as u64, &[0; 10]);
        assert_eq!(loaded.hash(), disk.hash(), "zeros that were written are zeros");
    }
}
