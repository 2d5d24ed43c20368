//! Opens a state file, checks what it is, and finds single keys in it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::Detail;
use crate::format::compression::Compression;
use crate::format::state_file::{
    FOOTER_LEN, Fault, FileIdentity, Footer, HEADER_LEN, Index, StateRecord, check_header,
};
use crate::ids::StoreId;
use crate::incremental::error::IncrementalCheckpointError;
use crate::incremental::metadata::CheckpointFile;
use crate::incremental::reshard::KeyRange;
use crate::vfs::{Access, Vfs, VfsFile, read_exact_at};

use super::cursor::FileCursor;
use crate::progress::Watch;
use crate::sabotage::{Sabotage, sabotaged};

type Result<T> = std::result::Result<T, IncrementalCheckpointError>;

/// An open state file: header, footer and index are checked, blocks are checked as they are read.
#[derive(Debug)]
pub struct StateFileReader {
    file: Arc<dyn VfsFile>,
    path: PathBuf,
    identity: FileIdentity,
    meta: CheckpointFile,
    compression: Compression,
    index: Arc<Index>,
    /// Counts the blocks that are read.
    watch: Watch,
}

/// The last block that was read, so that keys looked up in order cost one read per block.
#[derive(Debug, Default)]
pub struct BlockCache {
    block: Option<usize>,
    bytes: BlockBytes,
}

/// Memory for one block.
#[derive(Debug, Default)]
pub(super) struct BlockBytes {
    /// Its records.
    pub(super) raw: Vec<u8>,
    /// As it is in the file, where the file's blocks are packed.
    stored: Vec<u8>,
}

impl StateFileReader {
    /// Opens the file that `meta` describes, in the directory `dir`.
    ///
    /// # Errors
    /// `Corruption`, `ChecksumMismatch` or `UnsupportedVersion`, naming the file, when it is missing
    /// or not exactly the file described; `Io`.
    pub fn open(vfs: &dyn Vfs, dir: &Path, meta: &CheckpointFile, store_id: StoreId) -> Result<Self> {
        let path = dir.join(&meta.name);
        let identity = meta.identity(store_id);
        let file = vfs.open(&path, Access::Read).map_err(|e| {
            if e.kind() == io::ErrorKind::NotFound {
                let what = "the manifest lists this file, but it is missing";
                return IncrementalCheckpointError::corruption(
                    Detail::new(what).at_path(&path).on_core(identity.core),
                );
            }
            IncrementalCheckpointError::io("could not open the state file", &path, e)
        })?;
        Self::from_file(file, path, identity, meta)
    }

    /// As [`Self::open`], for a file that is open already.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_file(
        file: Arc<dyn VfsFile>,
        path: PathBuf,
        identity: FileIdentity,
        meta: &CheckpointFile,
    ) -> Result<Self> {
        let (compression, index) = load_index(file.as_ref(), &path, &identity, meta)?;
        let index = Arc::new(index);
        Ok(Self { file, path, identity, meta: meta.clone(), compression, index, watch: Watch::default() })
    }

    /// Counts the blocks that are read from now on.
    #[must_use]
    pub(crate) fn watched(mut self, watch: &Watch) -> Self {
        self.watch = watch.clone();
        self
    }

    /// The same open file under the name it has in another directory; for messages only.
    #[must_use]
    pub(crate) fn renamed(&self, dir: &Path) -> Self {
        Self { path: dir.join(&self.meta.name), ..self.again() }
    }

    /// The same open file, unwatched.
    #[must_use]
    pub(crate) fn again(&self) -> Self {
        Self {
            file: Arc::clone(&self.file),
            path: self.path.clone(),
            identity: self.identity,
            meta: self.meta.clone(),
            compression: self.compression,
            index: Arc::clone(&self.index),
            watch: Watch::default(),
        }
    }

    /// What the manifest says about the file.
    #[must_use]
    pub fn meta(&self) -> &CheckpointFile {
        &self.meta
    }

    /// Where the file was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file is.
    #[must_use]
    pub fn identity(&self) -> &FileIdentity {
        &self.identity
    }

    /// The open file, for copying it byte by byte.
    pub(crate) fn file(&self) -> &dyn VfsFile {
        self.file.as_ref()
    }

    /// Bytes of all blocks.
    pub(crate) fn block_bytes(&self) -> u64 {
        let last = self.blocks().checked_sub(1).and_then(|last| self.index.entry(last));
        // They stand one behind the other between header and index, which was checked.
        last.map_or(0, |last| (last.offset + u64::from(last.len)).saturating_sub(HEADER_LEN as u64))
    }

    /// Number of blocks.
    pub(super) fn blocks(&self) -> usize {
        self.index.blocks()
    }

    /// What the file says of a key: `None` nothing, `Some(None)` deleted, `Some(Some(value))`.
    ///
    /// # Errors
    /// `Io`, `ChecksumMismatch`, `Corruption`.
    pub fn get<'c>(&self, key: &[u8], cache: &'c mut BlockCache) -> Result<Option<Option<&'c [u8]>>> {
        let Some(block) = self.index.find(key) else {
            return Ok(None);
        };
        if cache.block != Some(block) {
            cache.block = None;
            self.read_block(block, &mut cache.bytes)?;
            cache.block = Some(block);
        }
        let mut rest = cache.bytes.raw.as_slice();
        while !rest.is_empty() {
            let (record, after) = StateRecord::decode(rest).map_err(|f| self.fault(&f, block))?;
            if record.key >= key {
                return Ok((record.key == key).then_some(record.value));
            }
            rest = after;
        }
        Ok(None)
    }

    /// All records in key order.
    #[must_use]
    pub fn cursor(self: &Arc<Self>) -> FileCursor {
        FileCursor::new(Arc::clone(self))
    }

    /// The records of a range of keys, in key order.
    pub(in crate::incremental) fn cursor_within(self: &Arc<Self>, range: &KeyRange) -> FileCursor {
        let first = range.from.as_deref().and_then(|key| self.index.find(key)).unwrap_or(0);
        FileCursor::within(Arc::clone(self), first, range.clone())
    }

    /// The first key of every block.
    pub(in crate::incremental) fn first_keys(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.blocks()).filter_map(|block| self.promise(block)).map(|(_, key)| key)
    }

    /// Reads every block and checks everything there is to check.
    ///
    /// # Errors
    /// `Io`, `ChecksumMismatch`, `Corruption`.
    pub fn verify(self: &Arc<Self>) -> Result<()> {
        let mut cursor = self.cursor();
        while cursor.advance()? {}
        Ok(())
    }

    /// Reads one block into `bytes`, replacing them, checks its checksum, and unpacks it.
    pub(super) fn read_block(&self, block: usize, bytes: &mut BlockBytes) -> Result<()> {
        let BlockBytes { raw, stored } = bytes;
        let Some(entry) = self.index.entry(block) else {
            raw.clear();
            return Ok(());
        };
        // The index was checked against the length of the file, so this is never more than that. What was there is
        // written over, not cleared before: blocks are about as long as each other.
        raw.resize(entry.len as usize, 0);
        if let Err(e) = read_exact_at(self.file.as_ref(), raw, entry.offset) {
            raw.clear();
            return Err(read_error(e, &self.path, &self.identity, entry.offset));
        }
        self.watch.loaded(u64::from(entry.len));
        let computed = self.identity.block_crc(entry.offset, raw);
        if computed != entry.crc && !sabotaged(Sabotage::BlockUnchecked) {
            raw.clear();
            return Err(self.fault(&Fault::Checksum { what: "block", stored: entry.crc, computed }, block));
        }
        if self.compression != Compression::None {
            std::mem::swap(raw, stored);
            self.compression.unpack(stored, raw).map_err(|fault| self.fault(&fault, block))?;
        }
        Ok(())
    }

    /// Number of records and first key that the index promises for a block.
    pub(super) fn promise(&self, block: usize) -> Option<(u32, &[u8])> {
        self.index.entry(block).map(|entry| (entry.records, entry.first_key))
    }

    pub(super) fn fault(&self, fault: &Fault, block: usize) -> IncrementalCheckpointError {
        let offset = self.index.entry(block).map_or(0, |entry| entry.offset);
        IncrementalCheckpointError::from_fault(fault, place(&self.path, &self.identity, offset))
    }
}

fn place(path: &Path, identity: &FileIdentity, offset: u64) -> Detail {
    Detail::new("").at_path(path).on_core(identity.core).at_offset(offset)
}

/// A file that got shorter after it was opened is damage, everything else the system's error.
fn read_error(e: io::Error, path: &Path, identity: &FileIdentity, offset: u64) -> IncrementalCheckpointError {
    if e.kind() == io::ErrorKind::UnexpectedEof {
        let fault = Fault::Damaged("the file is cut short");
        return IncrementalCheckpointError::from_fault(&fault, place(path, identity, offset));
    }
    IncrementalCheckpointError::io("could not read the state file", path, e)
}

fn load_index(
    file: &dyn VfsFile,
    path: &Path,
    identity: &FileIdentity,
    meta: &CheckpointFile,
) -> Result<(Compression, Index)> {
    let fail = |fault: &Fault, at| IncrementalCheckpointError::from_fault(fault, place(path, identity, at));
    let len =
        file.size().map_err(|e| IncrementalCheckpointError::io("could not read the length of", path, e))?;
    if len != meta.len || len < (HEADER_LEN + FOOTER_LEN) as u64 {
        let what = format!("the file has {len} bytes, the manifest says {}", meta.len);
        return Err(IncrementalCheckpointError::corruption(
            Detail::new(what).at_path(path).on_core(identity.core),
        ));
    }
    let mut header = [0; HEADER_LEN];
    read_exact_at(file, &mut header, 0).map_err(|e| read_error(e, path, identity, 0))?;
    let compression = check_header(&header, identity).map_err(|fault| fail(&fault, 0))?;

    let footer_offset = len - FOOTER_LEN as u64;
    let mut footer = [0; FOOTER_LEN];
    read_exact_at(file, &mut footer, footer_offset)
        .map_err(|e| read_error(e, path, identity, footer_offset))?;
    let (footer, checksum) =
        Footer::decode(&footer, identity, len).map_err(|fault| fail(&fault, footer_offset))?;
    if checksum != meta.checksum || footer.records != meta.records || footer.tombstones != meta.tombstones {
        let what = "a healthy file of that name, but not the one the manifest describes";
        return Err(fail(&Fault::Damaged(what), footer_offset));
    }
    // `Footer::decode` has checked that the index lies inside the file.
    let index_len = usize::try_from(footer.index_len)
        .map_err(|_| fail(&Fault::Damaged("the index does not fit in memory"), footer.index_offset))?;
    let mut raw = vec![0; index_len];
    read_exact_at(file, &mut raw, footer.index_offset)
        .map_err(|e| read_error(e, path, identity, footer.index_offset))?;
    let index = Index::parse(raw, &footer, identity, compression)
        .map_err(|fault| fail(&fault, footer.index_offset))?;
    Ok((compression, index))
}
