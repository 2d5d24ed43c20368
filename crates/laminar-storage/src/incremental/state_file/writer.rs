//! Writes a state file from start to end.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::Detail;
use crate::format::compression::Compression;
use crate::format::state_file::{
    BLOCK_TARGET_LEN, FOOTER_LEN, FileIdentity, Footer, IndexEntry, StateRecord, encode_header,
};
use crate::format::{MAX_KEY_LEN, MAX_VALUE_LEN};
use crate::incremental::error::IncrementalCheckpointError;
use crate::incremental::metadata::CheckpointFile;
use crate::pace::{Pace, give_way};
use crate::vfs::{Vfs, VfsFile, write_all_at};

type Result<T> = std::result::Result<T, IncrementalCheckpointError>;

/// Blocks are gathered to writes of about this many bytes.
const WRITE_LEN: usize = 256 << 10;

/// A state file that is being written. Records come in strictly growing key order.
///
/// A long file is synced as it grows: what the system still has to write is what a sync of the log can have to wait for.
#[derive(Debug)]
pub struct StateFileWriter {
    file: Arc<dyn VfsFile>,
    path: PathBuf,
    identity: FileIdentity,
    compression: Compression,
    /// That of the checkpoint it belongs to.
    pace: Pace,
    /// Closed blocks that are not written yet; they start at `written` in the file.
    out: Vec<u8>,
    written: u64,
    synced: u64,
    /// The open block, its first key, and its number of records.
    block: Vec<u8>,
    /// Memory for packing it.
    packed: Vec<u8>,
    first_key: Vec<u8>,
    block_records: u32,
    last_key: Vec<u8>,
    index: Vec<u8>,
    records: u64,
    tombstones: u64,
    blocks: u64,
}

/// A state file whose bytes are all written, but not all synced.
#[derive(Debug)]
pub struct FinishedFile {
    /// The file, to be synced.
    pub file: Arc<dyn VfsFile>,
    /// What the manifest says about it.
    pub meta: CheckpointFile,
}

impl StateFileWriter {
    /// Creates the file, which must not exist.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn create(
        vfs: &dyn Vfs,
        path: &Path,
        identity: FileIdentity,
        compression: Compression,
        pace: Pace,
    ) -> Result<Self> {
        let file = vfs
            .create_new(path)
            .map_err(|e| IncrementalCheckpointError::io("could not create the state file", path, e))?;
        Ok(Self {
            file,
            path: path.to_path_buf(),
            identity,
            compression,
            pace,
            out: encode_header(&identity, compression).to_vec(),
            written: 0,
            synced: 0,
            block: Vec::with_capacity(BLOCK_TARGET_LEN + (BLOCK_TARGET_LEN >> 2)),
            packed: Vec::new(),
            first_key: Vec::new(),
            block_records: 0,
            last_key: Vec::new(),
            index: Vec::new(),
            records: 0,
            tombstones: 0,
            blocks: 0,
        })
    }

    /// Appends a record.
    ///
    /// # Errors
    /// `Io`; `InvalidConfig` when a key or value is too long or the key is not larger than the last.
    pub fn push(&mut self, record: StateRecord<'_>) -> Result<()> {
        if record.key.len() > MAX_KEY_LEN || record.value.is_some_and(|v| v.len() > MAX_VALUE_LEN) {
            return Err(self.misuse("a key or value is too long"));
        }
        if self.records > 0 && record.key <= self.last_key.as_slice() {
            return Err(self.misuse("the keys are not in order"));
        }
        if self.block_records == 0 {
            self.first_key.clear();
            self.first_key.extend_from_slice(record.key);
        }
        record.encode(&mut self.block);
        self.block_records += 1;
        self.records += 1;
        self.tombstones += u64::from(record.value.is_none());
        self.last_key.clear();
        self.last_key.extend_from_slice(record.key);
        if self.block.len() >= BLOCK_TARGET_LEN {
            self.close_block()?;
        }
        Ok(())
    }

    /// Bytes of all records so far, about as they will be in the file.
    #[must_use]
    pub fn record_bytes(&self) -> u64 {
        self.written + (self.out.len() + self.block.len()) as u64
    }

    /// Writes the rest: the open block, the index, the footer. The end is not synced: of a long file only what was
    /// written some time before.
    ///
    /// # Errors
    /// `Io`.
    pub fn finish(mut self) -> Result<FinishedFile> {
        if self.block_records > 0 {
            self.close_block()?;
        }
        self.flush()?;
        let index_offset = self.written;
        let index_len = self.index.len() as u64;
        let footer = Footer {
            index_offset,
            index_len,
            records: self.records,
            tombstones: self.tombstones,
            blocks: self.blocks,
            file_len: index_offset + index_len + FOOTER_LEN as u64,
            index_crc: self.identity.index_crc(index_offset, &self.index),
        };
        let (footer_bytes, checksum) = footer.encode(&self.identity);
        self.out.append(&mut self.index);
        self.out.extend_from_slice(&footer_bytes);
        self.flush()?;
        let mut meta = CheckpointFile::of(&self.identity);
        meta.len = footer.file_len;
        meta.checksum = checksum;
        meta.records = self.records;
        meta.tombstones = self.tombstones;
        Ok(FinishedFile { file: self.file, meta })
    }

    fn close_block(&mut self) -> Result<()> {
        let offset = self.written + self.out.len() as u64;
        let stored = self.compression.pack(&self.block, &mut self.packed);
        let len = u32::try_from(stored.len()).unwrap_or(u32::MAX);
        IndexEntry {
            offset,
            len,
            records: self.block_records,
            crc: self.identity.block_crc(offset, stored),
            first_key: &self.first_key,
        }
        .encode(&mut self.index);
        self.out.extend_from_slice(stored);
        self.block.clear();
        self.block_records = 0;
        self.blocks += 1;
        if self.out.len() >= WRITE_LEN {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        give_way();
        write_all_at(self.file.as_ref(), &self.out, self.written)
            .map_err(|e| IncrementalCheckpointError::io("could not write the state file", &self.path, e))?;
        self.written += self.out.len() as u64;
        self.out.clear();
        if self.pace.asks_for_sync(self.synced, self.written - self.synced) {
            self.pace.step(self.written - self.synced, || self.file.sync_data()).map_err(|e| {
                IncrementalCheckpointError::io("could not sync a part of the state file", &self.path, e)
            })?;
            self.synced = self.written;
        }
        Ok(())
    }

    fn misuse(&self, what: &'static str) -> IncrementalCheckpointError {
        let detail = Detail::new(what).at_path(&self.path);
        IncrementalCheckpointError::invalid(
            detail.remedy("Give keys in growing order, up to 65,535 bytes each, and values up to 16 MiB."),
        )
    }
}
