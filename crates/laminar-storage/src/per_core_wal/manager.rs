//! All cores' logs in one directory.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::config::PerCoreWalConfig;
use super::entry::PerCoreWalEntry;
use super::error::PerCoreWalError;
use super::incarnation::{Beginning, begin, make_durable, refuse_last_ids};
use super::merge::MergedEntries;
use super::recovery::cursor::CoreCursor;
use super::recovery::plan::Span;
use super::recovery::survey::{LogEnd, Survey};
use super::segment::SegmentPolicy;
use super::spares::{Spares, remove_spares};
use super::sync::sync_writers;
use super::truncate::{Truncation, truncate_segments};
use super::writer::CoreWalWriter;
use crate::error::Detail;
use crate::format::current::Current;
use crate::format::segment_header::{SegmentHeader, WalMode};
use crate::ids::{CoreId, Epoch, Sequence, StoreId};
use crate::incremental::Published;
use crate::vfs::create_dir_durably;

/// All cores' logs in one directory: opens them, hands out their writers, merges them, cuts them.
///
/// A manager holds the directory's lock; a second one on the same directory is refused. Opening an
/// existing directory starts a new incarnation: nothing is appended to old segments, epochs and
/// sequences go on above everything ever used, and every valid record stays readable.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use laminar_storage::per_core_wal::{PerCoreWalConfig, PerCoreWalManager};
/// # let dir = tempfile::tempdir()?;
/// let config = PerCoreWalConfig::new(dir.path(), 2);
/// let mut manager = PerCoreWalManager::new(config)?;
/// manager.writer(0).append_put(b"key1", b"value1")?;
/// manager.writer(1).append_put(b"key2", b"value2")?;
/// manager.sync_all()?;
/// assert_eq!(manager.merge_segments()?.len(), 2);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct PerCoreWalManager {
    config: PerCoreWalConfig,
    policy: SegmentPolicy,
    writers: Vec<CoreWalWriter>,
    epoch: Epoch,
    start: Sequence,
    lock: Arc<dyn Debug + Send + Sync>,
}

/// What a survey found, made durable. Only [`PerCoreWalManager::secure`] makes one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Secured<'a>(&'a Survey);

/// The name of the lock file of a log directory.
pub(crate) const LOCK: &str = "LOCK";

impl PerCoreWalManager {
    /// Opens the log, creating it when there is none. An existing one is continued: scanned, a torn
    /// tail cut, a new incarnation begun.
    ///
    /// # Errors
    /// `InvalidInput` for a setting out of bounds, `Locked` when the directory is in use,
    /// `InvalidCore` when the log has another number of cores, `Corrupted`, `SegmentNotFound` or
    /// `NewerFormat` when what is there cannot be continued, `Io` when the disk fails. Nothing was
    /// changed then.
    pub fn new(config: PerCoreWalConfig) -> Result<Self, PerCoreWalError> {
        let (lock, survey) = Self::examine(&config)?;
        let (last_epoch, last_sequence, _) = survey.high_water();
        // Above what a fork was begun on as well, which its log has nothing of: recovery takes everything below that epoch to
        // be in the checkpoint.
        let used = last_epoch.max(survey.opened_at());
        let unused = last_sequence == Sequence::ZERO && used == Epoch::ZERO;
        let epoch = if unused { Epoch::ZERO } else { used.next() };
        let core_count = core_count(&config);
        let beginning = Beginning {
            core_count,
            mode: WalMode::Plain,
            epoch,
            after: Sequence::ZERO,
            void_above: Epoch::MAX,
            reset: false,
        };
        let secured = Self::secure(&config, &survey)?;
        Self::begin(config, lock, secured, beginning)
    }

    /// Opens a log that must exist with segments of every core.
    ///
    /// # Errors
    /// `SegmentNotFound` when a core has none, otherwise as [`Self::new`].
    pub fn open(config: PerCoreWalConfig) -> Result<Self, PerCoreWalError> {
        config.validate()?;
        let survey = Survey::whole(config.vfs(), &config.base_dir, &[])?;
        for core in 0..config.num_cores {
            if survey.cores.iter().all(|log| log.core.index() != core) {
                return Err(PerCoreWalError::SegmentNotFound(Box::new(
                    Detail::new(format!("core {core} has no segment here"))
                        .at_path(&config.base_dir)
                        .remedy("Check the path, or create the log with PerCoreWalManager::new."),
                )));
            }
        }
        Self::new(config)
    }

    /// Locks and surveys a log that will be continued.
    pub(crate) fn examine(
        config: &PerCoreWalConfig,
    ) -> Result<(Arc<dyn Debug + Send + Sync>, Survey), PerCoreWalError> {
        config.validate()?;
        let lock = lock_directory(config)?;
        let survey = Survey::whole(config.vfs(), &config.base_dir, &[])?;
        let found = survey.core_count();
        if found != 0 && usize::from(found) != config.num_cores {
            return Err(wrong_cores(config, found));
        }
        Ok((lock, survey))
    }

    /// Makes durable what a survey found, so that a new incarnation may begin on it, now or another time. Where files are
    /// written in place it takes no space.
    pub(crate) fn secure<'a>(
        config: &PerCoreWalConfig,
        survey: &'a Survey,
    ) -> Result<Secured<'a>, PerCoreWalError> {
        refuse_last_ids(config.vfs().as_ref(), &config.base_dir, survey)?;
        make_durable(config.vfs(), &config.base_dir, survey)?;
        Ok(Secured(survey))
    }

    /// Begins a new incarnation on a log.
    pub(crate) fn begin(
        config: PerCoreWalConfig,
        lock: Arc<dyn Debug + Send + Sync>,
        Secured(survey): Secured<'_>,
        beginning: Beginning,
    ) -> Result<Self, PerCoreWalError> {
        let policy = SegmentPolicy {
            vfs: Arc::clone(config.vfs()),
            dir: config.base_dir.clone(),
            segment_size: config.segment_size,
            preallocation: config.preallocation,
            names: Arc::default(),
            spares: Arc::new(Spares::new(config.vfs())),
            evidence: None,
        };
        let writers = begin(&policy, survey, beginning)?;
        let start = survey.high_water().1.max(beginning.after);
        Ok(Self { config, policy, writers, epoch: beginning.epoch, start, lock })
    }

    /// Number of cores.
    #[must_use]
    pub fn num_cores(&self) -> usize {
        self.config.num_cores
    }

    /// The epoch that new records belong to, unless a writer was moved on its own.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch.0
    }

    /// Moves all writers to the next epoch; returns it.
    ///
    /// # Errors
    /// `EpochMismatch` when a writer has been moved further on its own, `InvalidInput` after
    /// [`Epoch::LAST`].
    pub fn advance_epoch(&mut self) -> Result<u64, PerCoreWalError> {
        self.set_epoch_all(self.epoch.next().0)?;
        Ok(self.epoch.0)
    }

    /// Moves all writers to an epoch, which must not be before any writer's current one.
    ///
    /// # Errors
    /// `EpochMismatch` when it is, `InvalidInput` for one above [`Epoch::LAST`]; no writer was moved then.
    pub fn set_epoch_all(&mut self, epoch: u64) -> Result<(), PerCoreWalError> {
        if let Some(ahead) = self.writers.iter_mut().find(|writer| writer.epoch() > epoch) {
            return ahead.set_epoch(epoch);
        }
        for writer in &mut self.writers {
            writer.set_epoch(epoch)?;
        }
        self.epoch = Epoch(epoch);
        Ok(())
    }

    /// The writer of a core.
    ///
    /// # Panics
    /// When there is no such core; [`Self::writer_checked`] returns an error instead.
    #[expect(
        clippy::panic,
        reason = "indexing by a core that does not exist is a programming error, as with a slice"
    )]
    pub fn writer(&mut self, core: usize) -> &mut CoreWalWriter {
        let cores = self.writers.len();
        match self.writers.get_mut(core) {
            Some(writer) => writer,
            None => panic!("core {core} of a log with {cores} cores"),
        }
    }

    /// The writer of a core.
    ///
    /// # Errors
    /// `InvalidCore` when there is no such core.
    pub fn writer_checked(&mut self, core: usize) -> Result<&mut CoreWalWriter, PerCoreWalError> {
        let cores = self.writers.len();
        self.writers.get_mut(core).ok_or_else(|| {
            PerCoreWalError::InvalidCore(Box::new(
                Detail::new(format!("there is no core {core} in a log of {cores} cores"))
                    .at_path(&self.config.base_dir)
                    .remedy("Cores are numbered from 0."),
            ))
        })
    }

    /// Gives the writers away, one per core in order, each to be moved to its own thread. The
    /// directory stays locked as long as one of them lives.
    #[must_use]
    pub fn into_writers(self) -> Vec<CoreWalWriter> {
        let mut writers = self.writers;
        for writer in &mut writers {
            writer.hold(Arc::clone(&self.lock));
        }
        writers
    }

    /// Writes and syncs all cores, the syncs in parallel. Returns once everything appended before is
    /// durable on every core.
    ///
    /// # Errors
    /// The first failure; that core's writer is poisoned, and of the other cores everything that could
    /// be synced is.
    pub fn sync_all(&mut self) -> Result<(), PerCoreWalError> {
        sync_writers(&mut self.writers)
    }

    /// Every core's position after the last record appended, in bytes of its log.
    #[must_use]
    pub fn positions(&self) -> Vec<u64> {
        self.writers.iter().map(CoreWalWriter::position).collect()
    }

    /// Every core's position up to which everything is durable.
    #[must_use]
    pub fn synced_positions(&self) -> Vec<u64> {
        self.writers.iter().map(CoreWalWriter::synced_position).collect()
    }

    /// Appends the barrier of the current epoch to all cores. Durable after [`Self::sync_all`].
    ///
    /// # Errors
    /// The first failing append.
    pub fn write_epoch_barrier_all(&mut self) -> Result<(), PerCoreWalError> {
        self.writers.iter_mut().try_for_each(|writer| writer.append_epoch_barrier().map(drop))
    }

    /// Every synced record of all segments, in order
    /// `(epoch, timestamp_ns, core_id, sequence)`. Records not synced yet are left out.
    ///
    /// # Errors
    /// When a segment is damaged or cannot be read.
    pub fn merge_segments(&self) -> Result<Vec<PerCoreWalEntry>, PerCoreWalError> {
        self.merged()?.collect()
    }

    /// As [`Self::merge_segments`], but only epochs up to and including `epoch`.
    ///
    /// # Errors
    /// When a segment is damaged or cannot be read.
    pub fn merge_segments_up_to_epoch(&self, epoch: u64) -> Result<Vec<PerCoreWalEntry>, PerCoreWalError> {
        self.merged_span(|_| Span { after: Sequence::ZERO, from_epoch: Epoch::ZERO, up_to: Epoch(epoch) })?
            .collect()
    }

    /// As [`Self::merge_segments`], one record at a time with bounded memory.
    ///
    /// # Errors
    /// When a segment is damaged or cannot be read; reading errors may also come later.
    pub fn merged(&self) -> Result<MergedEntries, PerCoreWalError> {
        self.merged_span(|_| Span { after: Sequence::ZERO, from_epoch: Epoch::ZERO, up_to: Epoch::MAX })
    }

    /// Merges what `span` lets through of each core.
    pub(crate) fn merged_span(
        &self,
        span: impl Fn(CoreId) -> Span + Sync,
    ) -> Result<MergedEntries, PerCoreWalError> {
        let vfs = self.config.vfs();
        let survey = Survey::whole(vfs, &self.config.base_dir, &self.ends())?;
        let cores = survey.cores.iter().map(|log| CoreCursor::new(vfs, &survey, log.core, span(log.core)));
        Ok(MergedEntries::new(cores.collect()))
    }

    /// Cuts the log by the segments that a published checkpoint makes superfluous, whose files are removed or become later segments: those that lie completely
    /// before the checkpoint *before* it, so that one rotten checkpoint costs nothing.
    ///
    /// # Errors
    /// When a file cannot be removed; the log stays consistent, and the next call goes on. After a failed sync of
    /// the log's directory nothing more is removed until the log is opened again.
    pub fn truncate_before(&self, published: &Published) -> Result<Truncation, PerCoreWalError> {
        truncate_segments(&self.truncation_scope(), published)
    }

    pub(crate) fn truncation_scope(&self) -> TruncationScope {
        TruncationScope {
            policy: self.policy.clone(),
            core_count: u16::try_from(self.writers.len()).unwrap_or(u16::MAX),
            header: self.writers.first().map(|writer| *writer.header()),
            store_id: self.store_id(),
            start: self.start,
        }
    }

    /// Forgets everything in the log: a new incarnation begins, older segments are removed. Epochs and
    /// sequences are not used again. What no checkpoint contains is lost.
    ///
    /// # Errors
    /// `Io` when the disk fails.
    pub fn reset_all(&mut self) -> Result<(), PerCoreWalError> {
        self.sync_all()?;
        let survey = Survey::whole(self.config.vfs(), &self.config.base_dir, &[])?;
        let beginning = Beginning {
            core_count: core_count(&self.config),
            mode: WalMode::Plain,
            epoch: self.epoch.max(survey.high_water().0),
            after: Sequence::ZERO,
            void_above: Epoch::ZERO,
            reset: true,
        };
        // Now, because afterwards their files are gone.
        self.writers.iter_mut().for_each(|writer| drop(writer.confirm()));
        // They are of the incarnation that ends here.
        self.policy.spares.clear();
        // Writers that cannot go on stay, so that whoever uses them learns why (I11).
        self.writers = begin(&self.policy, &survey, beginning).inspect_err(|error| {
            self.writers.iter_mut().for_each(|writer| writer.give_up(error));
        })?;
        self.start = survey.high_water().1;
        Ok(())
    }

    /// Bytes of all segments on disk, without files that are kept to become later ones.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn total_size(&self) -> Result<u64, PerCoreWalError> {
        super::stats::total_size(self.config.vfs().as_ref(), &self.config.base_dir)
    }

    /// Directory of the segments.
    #[must_use]
    pub fn base_dir(&self) -> &Path {
        &self.config.base_dir
    }

    /// Identity of the log.
    #[must_use]
    pub fn store_id(&self) -> StoreId {
        self.writers.first().map_or(StoreId::ZERO, |writer| writer.header().store_id)
    }

    /// Where every core's log ends for readers beside the writers.
    pub(crate) fn ends(&self) -> Vec<LogEnd> {
        self.writers.iter().map(|writer| (writer.header().number, writer.synced_len())).collect()
    }

    /// Header of the segment in use of every core.
    pub(crate) fn headers(&self) -> Vec<SegmentHeader> {
        self.writers.iter().map(|writer| *writer.header()).collect()
    }

    pub(crate) fn config(&self) -> &PerCoreWalConfig {
        &self.config
    }
}

/// What truncation needs to know of a log, without holding its writers.
#[derive(Clone, Debug)]
pub(crate) struct TruncationScope {
    pub(crate) policy: SegmentPolicy,
    pub(crate) core_count: u16,
    /// Of any segment of this opening.
    pub(crate) header: Option<SegmentHeader>,
    pub(crate) store_id: StoreId,
    /// Every record of earlier incarnations has a sequence up to this.
    pub(crate) start: Sequence,
}

impl TruncationScope {
    /// Refuses what was found where this log was, when somebody has renamed the directory and another log has its
    /// name by now: neither is it to be read into a checkpoint, nor to be cut.
    pub(crate) fn check_is_ours(&self, survey: &Survey) -> Result<(), PerCoreWalError> {
        let opened_later = |current: Current| self.header.is_some_and(|header| !current.is_of(&header));
        if survey.store_id == Some(self.store_id) && !survey.current.is_some_and(opened_later) {
            return Ok(());
        }
        Err(PerCoreWalError::corrupted(
            Detail::new("this log is no longer there; the directory was renamed, removed or replaced")
                .at_path(&self.policy.dir)
                .remedy("Put the directory back in its place, then open again."),
        ))
    }
}

fn core_count(config: &PerCoreWalConfig) -> u16 {
    u16::try_from(config.num_cores).unwrap_or(u16::MAX)
}

/// Locks a log, and frees the room of what an earlier opening kept for itself: everything after this may need it.
pub(crate) fn lock_directory(
    config: &PerCoreWalConfig,
) -> Result<Arc<dyn Debug + Send + Sync>, PerCoreWalError> {
    let dir = &config.base_dir;
    let vfs = config.vfs().as_ref();
    create_dir_durably(vfs, dir)
        .map_err(|e| PerCoreWalError::io("could not create the log directory", dir, e))?;
    let path: PathBuf = dir.join(LOCK);
    match vfs.lock(&path) {
        Ok(lock) => {
            remove_spares(vfs, dir);
            Ok(lock.into())
        }
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Err(PerCoreWalError::Locked(Box::new(
            Detail::new("the log is in use by this or another process")
                .at_path(&path)
                .remedy("Close the other one first."),
        ))),
        Err(e) => Err(PerCoreWalError::io("could not lock the log directory", &path, e)),
    }
}

fn wrong_cores(config: &PerCoreWalConfig, found: u16) -> PerCoreWalError {
    PerCoreWalError::InvalidCore(Box::new(
        Detail::new(format!("this log has {found} cores and was opened for {}", config.num_cores))
            .at_path(&config.base_dir)
            .remedy("Open it with its own number of cores; Store::builder().cores(n) can change it."),
    ))
}
