//! The manager: the state since the beginning, and its checkpoints.
//!
//! # Picture
//! ```text
//! put, delete ─▶ overlay (memory)          newest
//!                frozen overlay            while a checkpoint is being written
//!                chain: spilled parts      in the directory being written
//!                chain: state files        of the newest checkpoint
//! get ◀───────── first that knows the key  oldest
//! ```
//!
//! # Rules
//! 1. There is one way to a checkpoint: `write`, `sync`, `publish` (`publish.rs`).
//! 2. The first operation that fails to change the disk poisons the manager: nothing more is written,
//!    no sync is tried again, everything stays readable, and what was published before stays valid.
//! 3. A key is live on one core at most.
//! 4. Ids only grow; one that was ever used is not used again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::base::holders;
use super::config::CheckpointConfig;
use super::error::IncrementalCheckpointError;
use super::merge::{MergePolicy, Weight};
use super::metadata::{CoreDigest, CoreOffsets, IncrementalCheckpointMetadata, WalCut, flatten};
use super::overlay::Overlay;
use super::spill::Spill;
use super::state_file::{BlockCache, StateFileReader};
use super::validate::wal_size_in;
use crate::error::Detail;
use crate::format::{MAX_CORES, MAX_KEY_LEN, MAX_VALUE_LEN};
use crate::ids::{CheckpointId, CoreId, Epoch, Sequence, StoreId};
use crate::pace::Commits;
use crate::progress::Watch;
use crate::vfs::Vfs;

pub(super) type Result<T> = std::result::Result<T, IncrementalCheckpointError>;

/// What a manager does with memory and files; the defaults suit everything but tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagerOptions {
    /// Changes in memory beyond this many bytes are spilled to disk. Where that is done on threads of their
    /// own, it begins at half of it, because as much again comes in meanwhile. Default: 256 MiB.
    pub overlay_budget: usize,
    /// When files are merged.
    pub merge: MergePolicy,
}

impl Default for ManagerOptions {
    fn default() -> Self {
        Self { overlay_budget: 256 << 20, merge: MergePolicy::default() }
    }
}

/// A state file that a core's state is read from.
#[derive(Clone, Debug)]
pub(super) struct ChainFile {
    pub(super) reader: Arc<StateFileReader>,
    /// Whether it was spilled since the newest checkpoint. If not, it is in that one's directory.
    pub(super) spilled: bool,
}

impl ChainFile {
    pub(super) fn weight(&self) -> Weight {
        let meta = self.reader.meta();
        Weight { bytes: meta.len, records: meta.records }
    }
}

/// Holds the state of one store and makes checkpoints of it.
///
/// A manager opened on an existing directory has the state of its newest checkpoint. One manager at
/// a time can have a directory open.
#[derive(Debug)]
pub struct IncrementalCheckpointManager {
    pub(super) config: CheckpointConfig,
    pub(super) options: ManagerOptions,
    pub(super) vfs: Arc<dyn Vfs>,
    /// Those of the log beside which checkpoints are made.
    pub(super) commits: Arc<Commits>,
    /// Keeps everybody else out until it is dropped.
    pub(super) _lock: Arc<dyn Debug + Send + Sync>,
    pub(super) poison: OnceLock<Detail>,
    pub(super) store_id: StoreId,
    pub(super) bound: bool,
    pub(super) epoch: AtomicU64,
    /// The newest checkpoint that is known to be good.
    pub(super) latest: Option<IncrementalCheckpointMetadata>,
    /// Damaged checkpoints newer than the one this manager was told to start from.
    pub(super) skipped: BTreeSet<CheckpointId>,
    pub(super) highest_id: Option<CheckpointId>,
    /// Per core, oldest first.
    pub(super) chains: Vec<Vec<ChainFile>>,
    /// Whether the next checkpoint can link none of the older files.
    pub(super) rewrite_all: bool,
    /// Live keys in the chains; `None` when only reading them all would tell.
    pub(super) live_keys: Option<u64>,
    pub(super) overlay: Overlay,
    pub(super) frozen: Option<Overlay>,
    pub(super) spill: Option<Spill>,
    pub(super) in_flight: Option<CheckpointId>,
    pub(super) core_offsets: Vec<CoreOffsets>,
    pub(super) source_offsets: BTreeMap<String, u64>,
    pub(super) watermark: Option<i64>,
    pub(super) wal_cuts: Vec<WalCut>,
    pub(super) digests: Vec<CoreDigest>,
    /// When the interval began.
    pub(super) since_ns: u64,
}

/// A change as [`IncrementalCheckpointManager::apply_batch`] takes it: a key with its new value, or
/// with `None` to delete it; owned or borrowed.
pub trait StateChange {
    /// The key.
    fn key(&self) -> &[u8];
    /// The new value.
    fn value(&self) -> Option<&[u8]>;
}

impl<K: AsRef<[u8]>, V: AsRef<[u8]>> StateChange for (K, Option<V>) {
    fn key(&self) -> &[u8] {
        self.0.as_ref()
    }

    fn value(&self) -> Option<&[u8]> {
        self.1.as_ref().map(AsRef::as_ref)
    }
}

impl<C: StateChange> StateChange for &C {
    fn key(&self) -> &[u8] {
        (*self).key()
    }

    fn value(&self) -> Option<&[u8]> {
        (*self).value()
    }
}

/// Reading and changing the state.
impl IncrementalCheckpointManager {
    /// The settings.
    #[must_use]
    pub fn config(&self) -> &CheckpointConfig {
        &self.config
    }

    /// Gives a key a value. In the next checkpoint.
    ///
    /// # Errors
    /// `InvalidConfig` for a key or value that is too long, `Poisoned`, or what went wrong with
    /// spilling.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let core = self.owner(key)?;
        self.apply(core, key, Some(value))
    }

    /// Deletes a key; no error when there is none. In the next checkpoint.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub fn delete(&mut self, key: &[u8]) -> Result<()> {
        let core = self.owner(key)?;
        self.apply(core, key, None)
    }

    /// Applies changes in order, each as [`Self::put`] or [`Self::delete`] would.
    ///
    /// # Errors
    /// As [`Self::put`]; the changes before the failing one are applied.
    pub fn apply_batch<C: StateChange>(&mut self, changes: impl IntoIterator<Item = C>) -> Result<()> {
        for change in changes {
            let core = self.owner(change.key())?;
            self.apply(core, change.key(), change.value())?;
        }
        Ok(())
    }

    /// Applies a change of a key that always belonged to this core: the caller routes keys.
    ///
    /// # Errors
    /// As [`Self::put`]; `InvalidConfig` for a core there is not.
    pub fn apply(&mut self, core: CoreId, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        self.check_usable()?;
        if core.index() >= self.chains.len() {
            let what = format!("core {core} does not exist, there are {} cores", self.chains.len());
            return Err(IncrementalCheckpointError::invalid(
                Detail::new(what).remedy("Name one that there is (the first is 0), or reshard first."),
            ));
        }
        check_lengths(key, value)?;
        self.overlay.put(core, key, value);
        // The directory being written belongs to the checkpoint in flight; spilling can wait for it.
        if self.overlay.memory() > self.options.overlay_budget && self.in_flight.is_none() {
            self.spill_overlay()?;
        }
        Ok(())
    }

    /// As [`Self::apply`], for a key that another core may have written before. Costs a look-up on
    /// every other core.
    ///
    /// # Errors
    /// As [`Self::apply`], and what went wrong with reading.
    pub fn apply_unrouted(&mut self, core: CoreId, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        for other in self.cores().filter(|&other| other != core) {
            if self.is_live(other, key)? {
                self.apply(other, key, None)?;
            }
        }
        self.apply(core, key, value)
    }

    /// The value of a key.
    ///
    /// # Errors
    /// `Io`, `ChecksumMismatch`, `Corruption` of the state files. Works on a poisoned manager.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        for core in self.cores() {
            if let Some(value) = self.get_on(core, key)? {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// The value of a key that belongs to this core.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn get_on(&self, core: CoreId, key: &[u8]) -> Result<Option<Vec<u8>>> {
        if let Some(known) = self.get_in_memory(core, key) {
            return Ok(known.map(<[u8]>::to_vec));
        }
        let chain = self.chains.get(core.index()).map_or(&[][..], Vec::as_slice);
        for file in holders(chain, key).filter_map(|at| chain.get(at)) {
            if let Some(known) = file.reader.get(key, &mut BlockCache::default())? {
                return Ok(known.map(<[u8]>::to_vec));
            }
        }
        Ok(None)
    }

    fn get_in_memory(&self, core: CoreId, key: &[u8]) -> Option<Option<&[u8]>> {
        let frozen = || self.frozen.as_ref().and_then(|frozen| frozen.get(core, key));
        self.overlay.get(core, key).or_else(frozen)
    }

    fn is_live(&self, core: CoreId, key: &[u8]) -> Result<bool> {
        match self.get_in_memory(core, key) {
            Some(known) => Ok(known.is_some()),
            None => Ok(self.get_on(core, key)?.is_some()),
        }
    }

    /// The core that has the key, the first one when none has.
    fn owner(&self, key: &[u8]) -> Result<CoreId> {
        let other_cores = self.cores().skip(1);
        for core in other_cores {
            if self.is_live(core, key)? {
                return Ok(core);
            }
        }
        Ok(CoreId::ZERO)
    }

    /// Counts what is read of the files that it has now.
    pub(crate) fn watch(&mut self, watch: &Watch) {
        for file in self.chains.iter_mut().flatten() {
            file.reader = Arc::new(file.reader.again().watched(watch));
        }
    }

    /// The cores there are.
    pub(super) fn cores(&self) -> impl Iterator<Item = CoreId> + use<> {
        (0..=u16::MAX).take(self.chains.len()).map(CoreId)
    }
}

/// What goes into the next checkpoint beside the state.
impl IncrementalCheckpointManager {
    /// Sets the epoch that the next checkpoint will hold the end of.
    pub fn set_epoch(&self, epoch: u64) {
        self.epoch.store(epoch, Ordering::SeqCst);
    }

    /// The epoch that was set, or that of the checkpoint that was opened.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// Sets from where an input is to be read on, whichever core set it before.
    pub fn set_source_offset(&mut self, source: String, offset: u64) {
        for core in &mut self.core_offsets {
            core.offsets.remove(&source);
        }
        if let Some(first) = self.core_offsets.first_mut() {
            first.offsets.insert(source, offset);
        }
        self.flatten_offsets();
    }

    /// From where each input is to be read on, over all cores.
    #[must_use]
    pub fn source_offsets(&self) -> &BTreeMap<String, u64> {
        &self.source_offsets
    }

    /// Sets the watermark, whichever core set one before.
    pub fn set_watermark(&mut self, watermark: i64) {
        for core in &mut self.core_offsets {
            core.watermark = None;
        }
        if let Some(first) = self.core_offsets.first_mut() {
            first.watermark = Some(watermark);
        }
        self.flatten_offsets();
    }

    /// The smallest watermark of the cores that have one.
    #[must_use]
    pub fn watermark(&self) -> Option<i64> {
        self.watermark
    }

    /// Sets input positions and watermark of every core at once. The cores of the log can be more than
    /// those the state is laid out for.
    ///
    /// # Errors
    /// `InvalidConfig` for no cores or more than [`MAX_CORES`].
    pub fn set_core_offsets(&mut self, offsets: Vec<CoreOffsets>) -> Result<()> {
        check_count("core offsets", offsets.len())?;
        self.core_offsets = offsets;
        self.flatten_offsets();
        Ok(())
    }

    /// Input positions and watermark per core.
    #[must_use]
    pub fn core_offsets(&self) -> &[CoreOffsets] {
        &self.core_offsets
    }

    fn flatten_offsets(&mut self) {
        (self.source_offsets, self.watermark) = flatten(&self.core_offsets);
    }

    /// Binds the checkpoints to a write-ahead log: from now on each says up to where it has the log
    /// of each core ([`Self::set_wal_cuts`]), and carries the log's identity.
    ///
    /// # Errors
    /// `InvalidConfig` when the checkpoints here belong to another log.
    pub fn bind_wal(&mut self, store_id: StoreId) -> Result<()> {
        self.check_usable()?;
        if let Some(latest) = &self.latest
            && latest.bound_to_wal
            && latest.store_id != store_id.get()
        {
            let what = format!(
                "checkpoint {} belongs to the write-ahead log {:016x}, not to {:016x}",
                latest.id,
                latest.store_id,
                store_id.get()
            );
            let path = latest.checkpoint_path(&self.config.checkpoint_dir);
            return Err(IncrementalCheckpointError::invalid(
                Detail::new(what).at_path(path).remedy("Use the log and the checkpoints of one store."),
            ));
        }
        // The identity is in every state file, so files of another identity cannot be linked.
        self.rewrite_all |= self.store_id != store_id && self.chains.iter().any(|chain| !chain.is_empty());
        self.store_id = store_id;
        self.bound = true;
        Ok(())
    }

    /// The identity of this checkpoint set.
    #[must_use]
    pub fn store_id(&self) -> StoreId {
        self.store_id
    }

    /// Says, for the next checkpoint, per core of the log up to which record the state has it.
    ///
    /// # Errors
    /// `InvalidConfig` for no cores or more than [`MAX_CORES`].
    pub fn set_wal_cuts(&mut self, cuts: &[Sequence]) -> Result<()> {
        check_count("WAL cuts", cuts.len())?;
        self.wal_cuts = cuts.iter().map(|cut| WalCut { sequence: cut.get() }).collect();
        Ok(())
    }

    /// Gives the digests of the state for the next checkpoint, one per core of the state. Without
    /// them the manager counts the live keys itself, and the checkpoint has no digests.
    ///
    /// # Errors
    /// `InvalidConfig` unless there is one for each core.
    pub fn set_digests(&mut self, digests: Vec<CoreDigest>) -> Result<()> {
        if digests.len() != self.chains.len() {
            let what = format!("{} digests for {} cores", digests.len(), self.chains.len());
            return Err(IncrementalCheckpointError::invalid(
                Detail::new(what).remedy("Give one for each core of the state, or none."),
            ));
        }
        self.digests = digests;
        Ok(())
    }

    /// Number of cores the state is laid out for.
    #[must_use]
    pub fn core_count(&self) -> usize {
        self.chains.len()
    }

    /// Sets the number of cores of a state that is still empty.
    ///
    /// # Errors
    /// `InvalidConfig` for none or more than [`MAX_CORES`], or when there is state already:
    /// [`Self::reshard`] moves it.
    pub fn set_core_count(&mut self, cores: usize) -> Result<()> {
        self.check_usable()?;
        check_count("core_count", cores)?;
        if cores == self.chains.len() {
            return Ok(());
        }
        if !self.overlay.is_empty() || self.frozen.is_some() || self.chains.iter().any(|c| !c.is_empty()) {
            let what = format!("the state is laid out for {} cores, not {cores}", self.chains.len());
            return Err(IncrementalCheckpointError::invalid(
                Detail::new(what).remedy("Move the keys with reshard."),
            ));
        }
        self.lay_out(cores);
        Ok(())
    }

    /// Makes empty chains for that many cores. Input positions move to the first core; only those that a
    /// coordinator noted for a log of more cores than its checkpoints have, stay with the log's cores.
    pub(super) fn lay_out(&mut self, cores: usize) {
        let of_the_log = self.core_offsets.len() > self.chains.len() && self.core_offsets.len() <= cores;
        self.chains = (0..cores).map(|_| Vec::new()).collect();
        self.overlay = Overlay::new(cores);
        self.digests.clear();
        if of_the_log {
            self.core_offsets.resize_with(cores, CoreOffsets::default);
            return;
        }
        let mut offsets = vec![CoreOffsets::default(); cores];
        if let Some(first) = offsets.first_mut() {
            first.offsets = self.source_offsets.clone();
            first.watermark = self.watermark;
        }
        self.core_offsets = offsets;
    }

    /// Whether a checkpoint is due: the interval has passed since the last one (or since opening), or
    /// the log has reached the size that was set, or there is something to keep and no checkpoint
    /// has ever been made, so that all of it would be lost.
    #[must_use]
    pub fn should_checkpoint(&self) -> bool {
        if self.latest.is_none() && self.has_something_to_keep() {
            return true;
        }
        let passed = u128::from(self.vfs.now_ns().saturating_sub(self.since_ns));
        passed >= self.config.interval.as_nanos() || self.wal_is_large()
    }

    fn has_something_to_keep(&self) -> bool {
        !self.overlay.is_empty()
            || self.chains.iter().any(|chain| !chain.is_empty())
            || !self.source_offsets.is_empty()
            || self.watermark.is_some()
    }

    fn wal_is_large(&self) -> bool {
        let Some(path) = &self.config.wal_path else {
            return false;
        };
        match wal_size_in(self.vfs.as_ref(), path) {
            Ok(size) => size > 0 && size >= self.config.min_wal_size_for_checkpoint,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "could not read the size of the log");
                false
            }
        }
    }
}

/// Poison.
impl IncrementalCheckpointManager {
    /// The first failure that stopped this manager, if any.
    #[must_use]
    pub fn poisoned_by(&self) -> Option<&Detail> {
        self.poison.get()
    }

    pub(super) fn check_usable(&self) -> Result<()> {
        match self.poison.get() {
            None => Ok(()),
            Some(cause) => Err(poisoned(cause, &self.config.checkpoint_dir)),
        }
    }

    /// Passes a result on; an error stops the manager for good.
    pub(super) fn poison_on_error<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result
            && self.poison.set(error.detail().clone()).is_ok()
        {
            tracing::error!(%error, "checkpoints are stopped");
        }
        result
    }

    pub(super) fn current_epoch(&self) -> Epoch {
        Epoch(self.epoch())
    }

    pub(super) fn io(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(std::io::Error) -> IncrementalCheckpointError {
        let path: PathBuf = path.to_path_buf();
        move |e| IncrementalCheckpointError::io(action, &path, e)
    }
}

/// What every call returns after the first failure.
pub(super) fn poisoned(cause: &Detail, checkpoint_dir: &Path) -> IncrementalCheckpointError {
    let what = format!("stopped by an earlier failure: {cause}");
    let detail = Detail::new(what.trim_end_matches('.').to_string())
        .at_path(checkpoint_dir)
        .remedy("Open again: what was published is intact.");
    IncrementalCheckpointError::Poisoned(Box::new(detail))
}

#[inline]
pub(super) fn check_lengths(key: &[u8], value: Option<&[u8]>) -> Result<()> {
    let value_len = value.map_or(0, <[u8]>::len);
    if key.len() <= MAX_KEY_LEN && value_len <= MAX_VALUE_LEN {
        return Ok(());
    }
    check_length("a key", key.len(), MAX_KEY_LEN)?;
    check_length("a value", value_len, MAX_VALUE_LEN)
}

fn check_length(what: &str, len: usize, max: usize) -> Result<()> {
    if len <= max {
        return Ok(());
    }
    let what = format!("{what} has {len} bytes, at most {max} are possible");
    Err(IncrementalCheckpointError::invalid(
        Detail::new(what).remedy("Use a shorter one; this change was not applied."),
    ))
}

fn check_count(what: &str, count: usize) -> Result<()> {
    if (1..=MAX_CORES).contains(&count) {
        return Ok(());
    }
    let what = format!("{what}: {count} cores, it must be 1 to {MAX_CORES}");
    Err(IncrementalCheckpointError::invalid(
        Detail::new(what).remedy("Correct the number; nothing was changed."),
    ))
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
pub(super) mod tests;
