//! State files: the sorted, immutable files that a checkpoint is made of.
//!
//! ```text
//! 0        64                    index offset            file length - 64
//! ┌────────┬───────┬───────┬─────┬───────────────────────┬────────┐
//! │ header │ block │ block │  …  │ index: one entry each │ footer │
//! └────────┴───────┴───────┴─────┴───────────────────────┴────────┘
//! ```
//!
//! The checks form a tree: the manifest holds the footer's checksum, the footer the index's, the
//! index each block's. Every byte is covered by exactly one of them, and each is salted with the
//! identity of the file, so that bytes from another store, checkpoint, core or place do not pass.
//!
//! Nothing here opens a file. Every length is checked against the bytes that are really there
//! before anything is allocated for it.

use crate::format::checksum::Salt;
use crate::format::compression::Compression;
use crate::format::{FORMAT_VERSION, MAX_KEY_LEN, MAX_VALUE_LEN};
use crate::ids::{CheckpointId, CoreId, StoreId};

/// Bytes of the header.
pub const HEADER_LEN: usize = 64;
/// Bytes of the footer.
pub const FOOTER_LEN: usize = 64;
/// A block is closed once it has this many bytes. One record is never split, so a block can be
/// longer by one record.
pub const BLOCK_TARGET_LEN: usize = 32 << 10;
/// Bytes of a record before its key.
pub const RECORD_HEADER_LEN: usize = 7;
/// Longest possible block.
pub const MAX_BLOCK_LEN: usize = BLOCK_TARGET_LEN + RECORD_HEADER_LEN + MAX_KEY_LEN + MAX_VALUE_LEN;

const HEADER_MAGIC: [u8; 8] = *b"LMNRSST1";
const FOOTER_MAGIC: [u8; 8] = *b"1TSSRNML";
const OP_PUT: u8 = 1;
const OP_DELETE: u8 = 2;

/// What is wrong with bytes that should be a part of a state file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The bytes cannot be what they should be.
    Damaged(&'static str),
    /// A checksum does not match.
    Checksum {
        /// What is covered by the checksum.
        what: &'static str,
        /// The checksum on disk.
        stored: u32,
        /// The checksum of the bytes on disk.
        computed: u32,
    },
    /// Written by a newer version of the format.
    NewerVersion {
        /// The version on disk.
        found: u32,
    },
    /// A healthy file, but another one than was asked for.
    Foreign {
        /// What the file says it is.
        found: FileIdentity,
    },
}

/// Which file it is. Stands in the header and salts every checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    /// The checkpoint set it belongs to.
    pub store_id: StoreId,
    /// The checkpoint that wrote it.
    pub checkpoint: CheckpointId,
    /// The core whose records it holds.
    pub core: CoreId,
    /// Its number among the files that checkpoint wrote for that core: below 0x8000 it is a delta, from
    /// there on a range of the base.
    pub part: u16,
}

impl FileIdentity {
    fn salt(&self, place: u64) -> Salt {
        Salt::new(&[
            self.store_id.get(),
            self.checkpoint.get(),
            u64::from(self.core.get()) << 16 | u64::from(self.part),
            place,
        ])
    }

    /// Checksum of a block that starts at `offset`.
    #[must_use]
    pub fn block_crc(&self, offset: u64, block: &[u8]) -> u32 {
        self.salt(offset).crc(&[block])
    }

    /// Checksum of the index that starts at `offset`.
    #[must_use]
    pub fn index_crc(&self, offset: u64, index: &[u8]) -> u32 {
        self.salt(offset).crc(&[index])
    }
}

/// Takes fixed-width little-endian integers off the front of a slice.
struct Take<'a>(&'a [u8]);

impl<'a> Take<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }
}

/// Encodes the header.
///
/// | offset | bytes | field |
/// |---|---|---|
/// | 0 | 8 | magic `LMNRSST1` |
/// | 8 | 4 | format version |
/// | 12 | 4 | flags: 0, or 1 where the blocks are packed with LZ4 |
/// | 16 | 8 | store id |
/// | 24 | 8 | checkpoint id |
/// | 32 | 2 | core |
/// | 34 | 2 | part |
/// | 36 | 24 | 0 |
/// | 60 | 4 | CRC-32C of all of the above |
#[must_use]
pub fn encode_header(identity: &FileIdentity, compression: Compression) -> [u8; HEADER_LEN] {
    let mut bytes = Vec::with_capacity(HEADER_LEN);
    bytes.extend_from_slice(&HEADER_MAGIC);
    bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes.extend_from_slice(&compression.flags().to_le_bytes());
    bytes.extend_from_slice(&identity.store_id.get().to_le_bytes());
    bytes.extend_from_slice(&identity.checkpoint.get().to_le_bytes());
    bytes.extend_from_slice(&identity.core.get().to_le_bytes());
    bytes.extend_from_slice(&identity.part.to_le_bytes());
    bytes.resize(HEADER_LEN - 4, 0);
    let crc = Salt::new(&[]).crc(&[&bytes]);
    bytes.extend_from_slice(&crc.to_le_bytes());
    let mut header = [0; HEADER_LEN];
    header.copy_from_slice(&bytes);
    header
}

/// Checks a header, and that it is the one of the file that was asked for; returns how the file's blocks are
/// packed.
///
/// # Errors
/// Another magic, a newer version, a wrong checksum, or another identity.
pub fn check_header(bytes: &[u8; HEADER_LEN], expected: &FileIdentity) -> Result<Compression, Fault> {
    let damaged = Fault::Damaged("the header is too short");
    let mut take = Take(bytes);
    if take.array() != Some(HEADER_MAGIC) {
        return Err(Fault::Damaged("this is not a state file, its first bytes are wrong"));
    }
    let version = take.u32().ok_or_else(|| damaged.clone())?;
    let (covered, stored) = bytes.split_at(HEADER_LEN - 4);
    let stored = Take(stored).u32().ok_or_else(|| damaged.clone())?;
    let computed = Salt::new(&[]).crc(&[covered]);
    if stored != computed {
        return Err(Fault::Checksum { what: "header", stored, computed });
    }
    if version > FORMAT_VERSION {
        return Err(Fault::NewerVersion { found: version });
    }
    let mut identity = || {
        let flags = take.u32()?;
        let found = FileIdentity {
            store_id: take.u64()?.into(),
            checkpoint: take.u64()?.into(),
            core: take.u16()?.into(),
            part: take.u16()?,
        };
        let rest_is_zero = take.bytes(24)?.iter().all(|&b| b == 0);
        let sound = version == FORMAT_VERSION && rest_is_zero;
        Some((found, Compression::from_flags(flags).filter(|_| sound)))
    };
    match identity() {
        None => Err(damaged),
        Some((found, _)) if found != *expected => Err(Fault::Foreign { found }),
        Some((_, Some(compression))) => Ok(compression),
        Some((_, None)) => Err(Fault::Damaged("the header has values this version never writes")),
    }
}

/// The last 64 bytes of a state file: where the index is, and how much there is of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Where the index starts, in bytes.
    pub index_offset: u64,
    /// Bytes of the index.
    pub index_len: u64,
    /// Records, tombstones included.
    pub records: u64,
    /// Records that delete their key.
    pub tombstones: u64,
    /// Blocks, and so entries of the index.
    pub blocks: u64,
    /// Bytes of the whole file.
    pub file_len: u64,
    /// Checksum of the index.
    pub index_crc: u32,
}

impl Footer {
    /// Encodes the footer and returns its checksum, which the manifest keeps.
    ///
    /// | offset | bytes | field |
    /// |---|---|---|
    /// | 0 | 8 | index offset |
    /// | 8 | 8 | index length |
    /// | 16 | 8 | records |
    /// | 24 | 8 | tombstones |
    /// | 32 | 8 | blocks |
    /// | 40 | 8 | file length |
    /// | 48 | 4 | CRC-32C of the index, salted |
    /// | 52 | 4 | CRC-32C of the other 60 bytes, salted |
    /// | 56 | 8 | magic `1TSSRNML` |
    #[must_use]
    pub fn encode(&self, identity: &FileIdentity) -> ([u8; FOOTER_LEN], u32) {
        let mut bytes = Vec::with_capacity(FOOTER_LEN);
        for number in
            [self.index_offset, self.index_len, self.records, self.tombstones, self.blocks, self.file_len]
        {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.index_crc.to_le_bytes());
        let crc = identity.salt(0).crc(&[&bytes, &FOOTER_MAGIC]);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes.extend_from_slice(&FOOTER_MAGIC);
        let mut footer = [0; FOOTER_LEN];
        footer.copy_from_slice(&bytes);
        (footer, crc)
    }

    /// Decodes and checks a footer; returns it and its checksum.
    ///
    /// # Errors
    /// A wrong magic or checksum, or numbers that contradict each other or `file_len`, the length
    /// the file really has.
    pub fn decode(
        bytes: &[u8; FOOTER_LEN],
        identity: &FileIdentity,
        file_len: u64,
    ) -> Result<(Self, u32), Fault> {
        let damaged = || Fault::Damaged("the footer is too short");
        if !bytes.ends_with(&FOOTER_MAGIC) {
            return Err(Fault::Damaged("the file does not end with a footer"));
        }
        let mut take = Take(bytes);
        let mut number = || take.u64().ok_or_else(damaged);
        let mut footer = Self {
            index_offset: number()?,
            index_len: number()?,
            records: number()?,
            tombstones: number()?,
            blocks: number()?,
            file_len: number()?,
            index_crc: 0,
        };
        footer.index_crc = take.u32().ok_or_else(damaged)?;
        let stored = take.u32().ok_or_else(damaged)?;
        let covered = bytes.get(..52).ok_or_else(damaged)?;
        let computed = identity.salt(0).crc(&[covered, &FOOTER_MAGIC]);
        if stored != computed {
            return Err(Fault::Checksum { what: "footer", stored, computed });
        }
        if footer.file_len != file_len {
            return Err(Fault::Damaged("the file has another length than its footer says"));
        }
        let end = footer
            .index_offset
            .checked_add(footer.index_len)
            .and_then(|end| end.checked_add(FOOTER_LEN as u64));
        if footer.index_offset < HEADER_LEN as u64
            || end != Some(file_len)
            || footer.tombstones > footer.records
            || footer.blocks > footer.records
        {
            return Err(Fault::Damaged("the footer contradicts itself"));
        }
        Ok((footer, stored))
    }
}

/// Where one block is and what it must contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry<'a> {
    /// Where the block starts, in bytes.
    pub offset: u64,
    /// Bytes of the block in the file.
    pub len: u32,
    /// Records in the block.
    pub records: u32,
    /// Checksum of the block as it is in the file.
    pub crc: u32,
    /// The block's first key.
    pub first_key: &'a [u8],
}

impl<'a> IndexEntry<'a> {
    /// Appends `offset u64, len u32, records u32, crc u32, key_len u16, first_key`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.len.to_le_bytes());
        out.extend_from_slice(&self.records.to_le_bytes());
        out.extend_from_slice(&self.crc.to_le_bytes());
        out.extend_from_slice(&key_len(self.first_key).to_le_bytes());
        out.extend_from_slice(self.first_key);
    }

    fn decode(take: &mut Take<'a>) -> Option<Self> {
        let (offset, len, records, crc) = (take.u64()?, take.u32()?, take.u32()?, take.u32()?);
        let key_len = usize::from(take.u16()?);
        Some(Self { offset, len, records, crc, first_key: take.bytes(key_len)? })
    }
}

/// The checked index of a file, searchable by key.
#[derive(Debug)]
pub struct Index {
    raw: Vec<u8>,
    starts: Vec<usize>,
}

impl Index {
    /// Checks the index bytes against the footer: the checksum, that the blocks follow one another
    /// without a gap from the header to the index, and that the keys grow.
    ///
    /// # Errors
    /// A wrong checksum, or entries that contradict the footer or each other.
    pub fn parse(
        raw: Vec<u8>,
        footer: &Footer,
        identity: &FileIdentity,
        compression: Compression,
    ) -> Result<Self, Fault> {
        let computed = identity.index_crc(footer.index_offset, &raw);
        if computed != footer.index_crc {
            return Err(Fault::Checksum { what: "index", stored: footer.index_crc, computed });
        }
        let mut starts = Vec::new();
        let mut take = Take(&raw);
        let (mut offset, mut records) = (HEADER_LEN as u64, 0_u64);
        let mut previous: Option<&[u8]> = None;
        while !take.0.is_empty() {
            let start = raw.len() - take.0.len();
            let entry = IndexEntry::decode(&mut take)
                .ok_or(Fault::Damaged("the index ends in the middle of an entry"))?;
            let fits = entry.offset == offset
                && entry.records > 0
                && entry.len as usize <= compression.longest(MAX_BLOCK_LEN)
                && entry.len as usize >= least_len(entry.records, compression);
            if !fits || previous.is_some_and(|key| key >= entry.first_key) {
                return Err(Fault::Damaged("the index contradicts itself"));
            }
            offset = offset.saturating_add(u64::from(entry.len));
            records = records.saturating_add(u64::from(entry.records));
            previous = Some(entry.first_key);
            starts.push(start);
        }
        let all_there = offset == footer.index_offset
            && records == footer.records
            && starts.len() as u64 == footer.blocks;
        if all_there {
            Ok(Self { raw, starts })
        } else {
            Err(Fault::Damaged("the index does not describe all of the file"))
        }
    }

    /// Number of blocks.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.starts.len()
    }

    /// The entry of a block.
    #[must_use]
    pub fn entry(&self, block: usize) -> Option<IndexEntry<'_>> {
        let start = *self.starts.get(block)?;
        IndexEntry::decode(&mut Take(self.raw.get(start..)?))
    }

    /// The only block that can hold the key, `None` when the key is before the first.
    #[must_use]
    pub fn find(&self, key: &[u8]) -> Option<usize> {
        let after = self.starts.partition_point(|&start| {
            let raw = self.raw.get(start..).unwrap_or_default();
            IndexEntry::decode(&mut Take(raw)).is_some_and(|entry| entry.first_key <= key)
        });
        after.checked_sub(1)
    }
}

/// One change of one key: its new value, or `None` where it was deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateRecord<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
}

impl<'a> StateRecord<'a> {
    /// Appends `op u8, key_len u16, value_len u32, key, value`. The caller has checked the lengths
    /// against [`MAX_KEY_LEN`] and [`MAX_VALUE_LEN`].
    pub fn encode(&self, out: &mut Vec<u8>) {
        let value = self.value.unwrap_or_default();
        out.push(if self.value.is_some() { OP_PUT } else { OP_DELETE });
        out.extend_from_slice(&key_len(self.key).to_le_bytes());
        out.extend_from_slice(&u32::try_from(value.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(self.key);
        out.extend_from_slice(value);
    }

    /// Decodes the record at the front of `bytes` and returns what follows it.
    ///
    /// # Errors
    /// An unknown operation, or a record that reaches beyond the bytes.
    pub fn decode(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), Fault> {
        let short = || Fault::Damaged("a record reaches beyond its block");
        let mut take = Take(bytes);
        let [op] = take.array().ok_or_else(short)?;
        let key_len = usize::from(take.u16().ok_or_else(short)?);
        let value_len = take.u32().ok_or_else(short)? as usize;
        let key = take.bytes(key_len).ok_or_else(short)?;
        let value = take.bytes(value_len).ok_or_else(short)?;
        let value = match op {
            OP_PUT => Some(value),
            OP_DELETE if value_len == 0 => None,
            _ => return Err(Fault::Damaged("a record has an unknown operation")),
        };
        Ok((Self { key, value }, take.0))
    }

    /// Bytes the record takes in a block.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        RECORD_HEADER_LEN + self.key.len() + self.value.map_or(0, <[u8]>::len)
    }
}

/// The least that a block with so many records takes in a file. Packed, any number of them can take next to
/// nothing; reading the block then shows whether they are there.
fn least_len(records: u32, compression: Compression) -> usize {
    match compression {
        Compression::None => usize::try_from(records).unwrap_or(usize::MAX).saturating_mul(RECORD_HEADER_LEN),
        Compression::Lz4 => 1,
    }
}

/// Lengths are checked where keys enter; a longer one cannot get here.
fn key_len(key: &[u8]) -> u16 {
    debug_assert!(key.len() <= MAX_KEY_LEN);
    u16::try_from(key.len()).unwrap_or(u16::MAX)
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests;
