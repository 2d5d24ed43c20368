//! Reads a checkpoint's directory, whoever wrote it and wherever it was copied to.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::base::sources;
use super::error::IncrementalCheckpointError;
use super::layout::MANIFEST_NAME;
use super::merge::Merge;
use super::metadata::IncrementalCheckpointMetadata;
use super::state_file::StateFileReader;
use super::state_map::StateMap;
use crate::error::Detail;
use crate::format::digest::{StateDigest, record_digest};
use crate::format::manifest::MAX_MANIFEST_LEN;
use crate::format::state_file::StateRecord;
use crate::ids::{CoreId, Epoch, StoreId};
use crate::parallel::in_parallel;
use crate::progress::Watch;
use crate::vfs::{Vfs, read_small_file};

/// Keys after which a listener hears of them.
const KEYS_AT_A_TIME: usize = 4096;

type Result<T> = std::result::Result<T, IncrementalCheckpointError>;

/// A checkpoint that is open for reading: its manifest is checked, and of every file that it is the
/// one the manifest means. Blocks are checked as they are read.
///
/// All methods take `&self`, so that several threads can each read another core.
#[derive(Debug)]
pub struct CheckpointReader {
    dir: PathBuf,
    metadata: IncrementalCheckpointMetadata,
    cores: Vec<Vec<Arc<StateFileReader>>>,
}

/// Reads and checks only the manifest of a checkpoint's directory.
///
/// # Errors
/// `NotFound` when there is no manifest, `Corruption`, `ChecksumMismatch`, `UnsupportedVersion`, `Io`.
pub fn read_manifest(vfs: &dyn Vfs, dir: &Path) -> Result<IncrementalCheckpointMetadata> {
    let path = dir.join(MANIFEST_NAME);
    let bytes = read_small_file(vfs, &path, MAX_MANIFEST_LEN).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            let detail = Detail::new("the checkpoint has no manifest").at_path(&path);
            IncrementalCheckpointError::NotFound(Box::new(
                detail.remedy("Check the path, or restore the directory of the checkpoint from a copy."),
            ))
        }
        std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof => {
            IncrementalCheckpointError::corruption(
                Detail::new("the manifest cannot be read").at_path(&path).caused_by(e),
            )
        }
        _ => IncrementalCheckpointError::io("could not read the manifest", &path, e),
    })?;
    let text = std::str::from_utf8(&bytes).map_err(|_| {
        IncrementalCheckpointError::corruption(Detail::new("the manifest is not text").at_path(&path))
    })?;
    IncrementalCheckpointMetadata::decode(text, &Detail::new("").at_path(&path))
}

impl CheckpointReader {
    /// Opens the checkpoint in `dir`, which need not have the name it was published under.
    ///
    /// # Errors
    /// As [`read_manifest`]; `Corruption` and `ChecksumMismatch`, naming the file, when one of the
    /// files is missing or not exactly the one the manifest lists.
    pub fn open(vfs: &dyn Vfs, dir: &Path) -> Result<Self> {
        Self::open_watched(vfs, dir, &Watch::default())
    }

    /// As [`Self::open`], counting the blocks that are read later.
    pub(crate) fn open_watched(vfs: &dyn Vfs, dir: &Path, watch: &Watch) -> Result<Self> {
        let metadata = read_manifest(vfs, dir)?;
        let mut cores: Vec<Vec<_>> = (0..metadata.core_count).map(|_| Vec::new()).collect();
        for file in &metadata.files {
            let reader = StateFileReader::open(vfs, dir, file, StoreId(metadata.store_id))?.watched(watch);
            // The manifest was checked: no file belongs to a core that there is not.
            if let Some(chain) = cores.get_mut(usize::from(file.core)) {
                chain.push(Arc::new(reader));
            }
        }
        Ok(Self { dir: dir.to_path_buf(), metadata, cores })
    }

    /// What the checkpoint says about itself.
    #[must_use]
    pub fn metadata(&self) -> &IncrementalCheckpointMetadata {
        &self.metadata
    }

    /// The directory it was opened from.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The cores the files are laid out for.
    pub fn cores(&self) -> impl Iterator<Item = CoreId> + use<> {
        (0..self.metadata.core_count).map(CoreId)
    }

    /// The files of one core, oldest first; none for a core there is not.
    #[must_use]
    pub fn files(&self, core: CoreId) -> &[Arc<StateFileReader>] {
        self.cores.get(core.index()).map_or(&[], Vec::as_slice)
    }

    /// Bytes of the blocks of all files.
    pub(crate) fn block_bytes(&self) -> u64 {
        self.cores.iter().flatten().map(|file| file.block_bytes()).sum()
    }

    /// Every record of one core, file by file from the oldest to the newest, and in key order within
    /// a file. Applying them in this order, deletions too, gives the state. Holds one block in memory.
    ///
    /// # Errors
    /// The first error of `apply`; `Io`, `ChecksumMismatch`, `Corruption` of what is read.
    pub fn for_each_record<E, F>(&self, core: CoreId, mut apply: F) -> std::result::Result<(), E>
    where
        E: From<IncrementalCheckpointError>,
        F: FnMut(StateRecord<'_>) -> std::result::Result<(), E>,
    {
        for file in self.files(core) {
            let mut cursor = file.cursor();
            while cursor.advance()? {
                if let Some(record) = cursor.current() {
                    apply(record)?;
                }
            }
        }
        Ok(())
    }

    /// Every live key of one core with its value, in key order. Holds one block of each file.
    ///
    /// # Errors
    /// As [`Self::for_each_record`].
    pub fn for_each_live<E, F>(&self, core: CoreId, mut apply: F) -> std::result::Result<(), E>
    where
        E: From<IncrementalCheckpointError>,
        F: FnMut(&[u8], &[u8]) -> std::result::Result<(), E>,
    {
        let mut merge = Merge::new(sources(self.files(core).iter(), StateFileReader::cursor))?;
        while let Some(record) = merge.next_record()? {
            if let Some(value) = record.value {
                apply(record.key, value)?;
            }
        }
        Ok(())
    }

    /// The whole state in memory.
    ///
    /// # Errors
    /// As [`Self::for_each_record`].
    pub fn load(&self) -> Result<StateMap> {
        self.load_with(&Watch::default(), |state, _, key, value| state.apply(key, value))
    }

    /// As [`Self::load`], telling now and then how many keys there are; `put` applies each record of a core.
    pub(crate) fn load_with(
        &self,
        watch: &Watch,
        mut put: impl FnMut(&mut StateMap, CoreId, &[u8], Option<&[u8]>),
    ) -> Result<StateMap> {
        let (mut state, mut keys) = (StateMap::new(), 0);
        for core in self.cores() {
            let mut apply = |key: &[u8], value: Option<&[u8]>| {
                put(&mut state, core, key, value);
                if state.len().is_multiple_of(KEYS_AT_A_TIME) {
                    watch.keys(&mut keys, state.len() as u64);
                }
                Ok::<_, IncrementalCheckpointError>(())
            };
            if self.metadata.core_count == 1 {
                self.for_each_record(core, |StateRecord { key, value }| apply(key, value))?;
            } else {
                // A key that moved has a tombstone on the core where it was, which says nothing of where it is.
                self.for_each_live(core, |key, value| apply(key, Some(value)))?;
            }
            watch.keys(&mut keys, state.len() as u64);
        }
        Ok(state)
    }

    /// Reads every byte and checks it, the number of live keys, and the digests if there are any.
    ///
    /// # Errors
    /// `Io`, `ChecksumMismatch`, `Corruption`.
    pub fn verify(&self) -> Result<()> {
        let live = self.cores().map(|core| self.verify_core(core)).sum::<Result<u64>>()?;
        self.check_key_count(live)
    }

    /// As [`Self::verify`], on several threads where the outside world `vfs` allows that.
    ///
    /// # Errors
    /// As [`Self::verify`].
    pub(crate) fn verify_in_parallel(&self, vfs: &dyn Vfs) -> Result<()> {
        let live = in_parallel(vfs, self.cores(), |core| self.verify_core(core))?;
        self.check_key_count(live.into_iter().sum())
    }

    /// Checks one core; returns the number of its live keys.
    fn verify_core(&self, core: CoreId) -> Result<u64> {
        let (mut digest, mut live) = (0_u64, 0_u64);
        self.for_each_live(core, |key, value| {
            digest = digest.wrapping_add(record_digest(key, value));
            live += 1;
            Ok::<_, IncrementalCheckpointError>(())
        })?;
        let found = StateDigest { digest, live_keys: live };
        let expected = self.metadata.digests.get(core.index()).map(StateDigest::from);
        match expected.filter(|expected| *expected != found) {
            Some(expected) => Err(self.wrong_digest(core, found, expected)),
            None => Ok(live),
        }
    }

    fn wrong_digest(
        &self,
        core: CoreId,
        found: StateDigest,
        expected: StateDigest,
    ) -> IncrementalCheckpointError {
        let what = format!(
            "{} live keys with digest {:016x}, the manifest says {} with {:016x}",
            found.live_keys, found.digest, expected.live_keys, expected.digest
        );
        IncrementalCheckpointError::corruption(self.contradiction(what).on_core(core))
    }

    fn check_key_count(&self, live: u64) -> Result<()> {
        let said = self.metadata.key_count;
        if live == said {
            return Ok(());
        }
        let what = format!("{live} live keys, the manifest says {said}");
        Err(IncrementalCheckpointError::corruption(self.contradiction(what)))
    }

    /// Every checksum is right, and the manifest is not that of the files.
    fn contradiction(&self, what: String) -> Detail {
        Detail::new(what)
            .at_path(self.dir.join(MANIFEST_NAME))
            .in_epoch(Epoch(self.metadata.epoch))
            .remedy("Keep a copy of the directory and report this; nothing was changed.")
    }
}
