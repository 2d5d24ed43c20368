//! Opening a directory of checkpoints.
//!
//! Order: the directory durably, the lock, a look at everything, and only when that is found good
//! the first change (sweeping what crashes left behind).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use super::checkpoint_reader::CheckpointReader;
use super::config::CheckpointConfig;
use super::error::IncrementalCheckpointError;
use super::layout::{EntryName, LOCK_NAME};
use super::manager::{ChainFile, IncrementalCheckpointManager, ManagerOptions, Result};
use super::metadata::CoreOffsets;
use super::overlay::Overlay;
use super::retention::{Listing, check_id, sweep};
use super::spill::offsets_for;
use crate::error::io_detail;
use crate::ids::{CheckpointId, StoreId};
use crate::vfs::{OsVfs, Vfs, create_dir_durably};

/// Which checkpoint a manager starts from.
enum Start<'a> {
    /// The newest, after reading all of it.
    Newest,
    /// This one, or none; the caller has looked at them.
    On(Option<&'a CheckpointReader>),
}

impl IncrementalCheckpointManager {
    /// Opens a directory of checkpoints, creating it when missing. The manager has the state, epoch,
    /// input positions and watermark of the newest checkpoint.
    ///
    /// # Errors
    /// `InvalidConfig`; `Io`, transient when somebody else has the directory open; `Corruption`,
    /// `ChecksumMismatch` or `UnsupportedVersion`, naming the file, when the newest checkpoint is
    /// not good: a manager never goes back to an older one by itself, as opening a [`crate::Store`] does.
    pub fn new(config: CheckpointConfig) -> Result<Self> {
        Self::with_vfs(config, Arc::new(OsVfs::new()))
    }

    /// As [`Self::new`], on any [`Vfs`].
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_vfs(config: CheckpointConfig, vfs: Arc<dyn Vfs>) -> Result<Self> {
        Self::with_options(config, vfs, ManagerOptions::default())
    }

    /// As [`Self::with_vfs`], with other options.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_options(
        config: CheckpointConfig,
        vfs: Arc<dyn Vfs>,
        options: ManagerOptions,
    ) -> Result<Self> {
        Self::open(config, vfs, options, &Start::Newest)
    }

    fn open(
        config: CheckpointConfig,
        vfs: Arc<dyn Vfs>,
        options: ManagerOptions,
        start: &Start<'_>,
    ) -> Result<Self> {
        config.validate()?;
        let lock = lock_checkpoints(vfs.as_ref(), &config.checkpoint_dir)?;
        Self::open_locked(config, vfs, options, start, lock)
    }

    /// Opens a directory on a checkpoint the caller chose and has open, or on an empty state; the caller took
    /// the directory's lock before it looked at it. Newer checkpoints are left in place, passed over, and their
    /// ids not used again. Nothing of the checkpoint is read here: recovery, which chooses, has read it; a block
    /// is checked whenever it is read anyway.
    pub(crate) fn open_on(
        config: CheckpointConfig,
        vfs: Arc<dyn Vfs>,
        options: ManagerOptions,
        base: Option<&CheckpointReader>,
        lock: Arc<dyn Debug + Send + Sync>,
    ) -> Result<Self> {
        config.validate()?;
        Self::open_locked(config, vfs, options, &Start::On(base), lock)
    }

    fn open_locked(
        config: CheckpointConfig,
        vfs: Arc<dyn Vfs>,
        options: ManagerOptions,
        start: &Start<'_>,
        lock: Arc<dyn Debug + Send + Sync>,
    ) -> Result<Self> {
        let dir = config.checkpoint_dir.clone();
        let listing = Listing::read(vfs.as_ref(), &dir)?;
        let newest = match start {
            Start::Newest => {
                let newest = listing.checkpoints.last();
                newest.map(|id| open_newest(vfs.as_ref(), &config, *id)).transpose()?
            }
            Start::On(_) => None,
        };
        let reader = match start {
            Start::Newest => newest.as_ref(),
            Start::On(base) => *base,
        };
        let base = reader.map(|reader| CheckpointId(reader.metadata().id));
        // A crash between the rename and the sync of a publication leaves a name that could still
        // vanish: what is built upon is made durable first.
        vfs.sync_dir(&dir).map_err(Self::io("could not sync the directory of checkpoints", &dir))?;
        let stay = sweep(vfs.as_ref(), &dir, &listing.leftovers)?;
        let mut manager = Self::empty(config, vfs, options, lock);
        manager.highest_id = highest_used(&listing, &stay);
        let newer = |id: &CheckpointId| base.is_none_or(|base| *id > base);
        manager.skipped = listing.checkpoints.into_iter().filter(newer).collect();
        if let Some(reader) = reader {
            manager.adopt(reader);
        }
        Ok(manager)
    }

    /// A manager of one core and no state.
    fn empty(
        config: CheckpointConfig,
        vfs: Arc<dyn Vfs>,
        options: ManagerOptions,
        lock: Arc<dyn Debug + Send + Sync>,
    ) -> Self {
        Self {
            store_id: StoreId(vfs.random_u64()),
            since_ns: vfs.now_ns(),
            config,
            options,
            vfs,
            commits: Arc::default(),
            _lock: lock,
            poison: OnceLock::new(),
            bound: false,
            epoch: AtomicU64::new(0),
            latest: None,
            skipped: BTreeSet::new(),
            highest_id: None,
            chains: vec![Vec::new()],
            rewrite_all: false,
            live_keys: Some(0),
            overlay: Overlay::new(1),
            frozen: None,
            spill: None,
            in_flight: None,
            core_offsets: vec![CoreOffsets::default()],
            source_offsets: BTreeMap::new(),
            watermark: None,
            wal_cuts: Vec::new(),
            digests: Vec::new(),
        }
    }

    /// Takes over the state of a checkpoint.
    fn adopt(&mut self, reader: &CheckpointReader) {
        let metadata = reader.metadata();
        let cores = usize::from(metadata.core_count);
        let chain_of = |core| {
            let files = reader.files(core).iter();
            files.map(|file| ChainFile { reader: Arc::new(file.again()), spilled: false }).collect()
        };
        self.chains = reader.cores().map(chain_of).collect();
        self.overlay = Overlay::new(cores);
        self.store_id = StoreId(metadata.store_id);
        self.epoch = AtomicU64::new(metadata.epoch);
        self.live_keys = Some(metadata.key_count);
        self.source_offsets = metadata.source_offsets.clone();
        self.watermark = metadata.watermark;
        let flat = CoreOffsets { offsets: metadata.source_offsets.clone(), watermark: metadata.watermark };
        self.core_offsets = offsets_for(cores, &metadata.core_offsets, flat);
        self.latest = Some(metadata.clone());
    }
}

/// Creates the directory when it is missing, and takes its lock.
pub(crate) fn lock_checkpoints(vfs: &dyn Vfs, dir: &Path) -> Result<Arc<dyn Debug + Send + Sync>> {
    create_dir_durably(vfs, dir).map_err(|e| {
        IncrementalCheckpointError::io("could not create the directory of checkpoints", dir, e)
    })?;
    let path = dir.join(LOCK_NAME);
    vfs.lock(&path).map(Into::into).map_err(|e| {
        if e.kind() != io::ErrorKind::WouldBlock {
            return IncrementalCheckpointError::io("could not lock", &path, e);
        }
        let detail = io_detail("somebody else has these checkpoints open", &path, e);
        IncrementalCheckpointError::Io(Box::new(detail.remedy("Close the other one first.")))
    })
}

/// The largest id that must not be used again: published ones, deleted ones, and what is in the way.
/// A checkpoint that was never finished has not used its id.
fn highest_used(listing: &Listing, stay: &[EntryName]) -> Option<CheckpointId> {
    let trash = listing.leftovers.iter().filter(|entry| matches!(entry, EntryName::Trash(_)));
    let others = trash.chain(stay).map(|entry| entry.id());
    listing.checkpoints.iter().copied().chain(others).max()
}

fn open_newest(vfs: &dyn Vfs, config: &CheckpointConfig, id: CheckpointId) -> Result<CheckpointReader> {
    let dir = EntryName::Checkpoint(id).path(&config.checkpoint_dir);
    let opened = || {
        let reader = CheckpointReader::open(vfs, &dir)?;
        check_id(&dir, id, reader.metadata())?;
        reader.verify()?;
        Ok(reader)
    };
    opened().map_err(|error| match error {
        // The directory is there, so a manifest that is not is damage.
        IncrementalCheckpointError::NotFound(detail) => IncrementalCheckpointError::Corruption(detail),
        other => other,
    })
}
