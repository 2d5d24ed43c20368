//! What people use: a store, its cores, its settings and its reports.
//!
//! A [`Store`] is built from [`crate::incremental`] and [`crate::per_core_wal`] and adds what makes
//! them one thing: Ring 0 with a [`CoreStore`] per thread, the Ring 1 thread, automatic checkpoints
//! and recovery. It is not a SQL engine, not a multi-writer transaction store, not a network server.

#[cfg(feature = "object-store")]
mod backups;
mod builder;
mod checkpointer;
mod core_store;
mod drain;
mod durable;
mod error;
mod fork;
mod objective;
mod open;
mod reader;
mod rebuild;
mod router;
mod settings;
mod settled;
mod shared;
mod sleeper;
mod stats;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use builder::StoreBuilder;
pub use checkpointer::CheckpointReceipt;
pub use core_store::{CoreStore, Pairs, Values};
pub use error::StoreError;
pub use reader::StateReader;
pub use router::Router;
pub use settings::Settings;
pub use stats::{Health, Stats};

use self::open::Locks;
use self::shared::Shared;
use crate::ids::Epoch;
use crate::incremental::SavepointReceipt;
use crate::report::RecoveryReport;
use crate::sync::thread::JoinHandle;

/// What [`StoreBuilder::open`] returns.
#[derive(Debug)]
pub struct Opened {
    /// The handle for durability, checkpoints and health; may be shared between threads.
    pub store: Store,
    /// One per core, in order, each to be moved to its own thread.
    pub cores: Vec<CoreStore>,
    /// What recovery did.
    pub report: RecoveryReport,
}

/// A store: says what is durable, makes checkpoints, and ends in order.
///
/// Its cores ([`CoreStore`]) change the state; one background thread writes and syncs the logs of all
/// of them, another makes checkpoints. Dropping it drains and syncs what was sealed, as
/// [`Self::close`] does, but cannot say whether that succeeded.
pub struct Store {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    dir: PathBuf,
    /// Released last, after the threads have ended.
    _locks: Locks,
}

/// What it is, not what it holds.
impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("dir", &self.dir)
            .field("durable_epoch", &self.durable_epoch())
            .field("health", &self.health())
            .finish_non_exhaustive()
    }
}

/// What [`Store::close`] returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CloseReceipt {
    /// Everything up to this epoch is durable. Changes that no seal followed are not.
    pub durable_epoch: Epoch,
}

impl Store {
    /// Starts opening the store in the directory `path`, which is created when missing.
    ///
    /// ```
    /// # fn main() -> Result<(), laminar_storage::StoreError> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path();
    /// use laminar_storage::{Opened, Store};
    /// let Opened { store, mut cores, report } = Store::builder(path).cores(1).open()?;
    /// assert_eq!(report.recovery_point.get(), 0);
    /// cores[0].put(b"key", b"value")?;
    /// let epoch = cores[0].seal_epoch()?;
    /// store.wait_durable(epoch)?;
    /// # Ok(()) }
    /// ```
    pub fn builder(path: impl AsRef<Path>) -> StoreBuilder {
        StoreBuilder::new(path.as_ref())
    }

    pub(crate) fn new(shared: Arc<Shared>, threads: Vec<JoinHandle<()>>, locks: Locks, dir: PathBuf) -> Self {
        Self { shared, threads, dir, _locks: locks }
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Everything up to this epoch, on all cores, survives any crash.
    #[must_use]
    pub fn durable_epoch(&self) -> Epoch {
        self.shared.durable.epoch()
    }

    /// Waits until `epoch` is durable. That needs every core to seal it: the caller must not hold back
    /// a core that has not.
    ///
    /// # Errors
    /// `Poisoned` when a write or sync failed; `Closed` when a core was dropped without sealing it, or
    /// the store was closed; `InvalidInput` in a callback of [`Self::on_durable`].
    pub fn wait_durable(&self, epoch: Epoch) -> Result<(), StoreError> {
        self.shared.wait_durable(epoch, None).map(drop)
    }

    /// As [`Self::wait_durable`], but for at most `at_most`; false when the time is over first.
    ///
    /// # Errors
    /// As [`Self::wait_durable`].
    pub fn wait_durable_for(&self, epoch: Epoch, at_most: Duration) -> Result<bool, StoreError> {
        self.shared.wait_durable(epoch, Some(at_most))
    }

    /// Calls `callback` whenever a later epoch has become durable, with that epoch, on the thread that
    /// synced it. Epochs between two calls became durable together. It must be quick: nothing becomes durable
    /// meanwhile, so that it cannot wait for a later epoch. When it panics, the store stops as after a failed write.
    pub fn on_durable(&self, callback: impl Fn(Epoch) + Send + Sync + 'static) {
        self.shared.durable.on_durable(Arc::new(callback));
    }

    /// Makes a checkpoint of the durable epoch (in a part of a whole, of the newest settled one) now, on the calling thread, and cuts the log as far as
    /// the checkpoint before allows. The cores are not held up. When nothing became durable since the
    /// newest checkpoint, returns that one.
    ///
    /// # Errors
    /// `Io` when it cannot be written, `Corruption` when the log cannot be read back. The log goes on and
    /// what is durable stays durable. After a failed read the next call tries again; after a failed
    /// write or sync of a checkpoint every further one fails until the store is reopened. When only cutting the log
    /// failed, the error says so and the checkpoint is there all the same.
    pub fn checkpoint(&self) -> Result<CheckpointReceipt, StoreError> {
        self.shared.checkpoint()
    }

    /// Keeps the end of `epoch`, one that is still to come, for a checkpoint: none holds more than that until
    /// [`Self::checkpoint_at`] has made one of exactly this epoch. So the parts of a whole ([`StoreBuilder::open_as_part`]) can
    /// all have a checkpoint of the same epoch, which together are a state of the whole. The log is not cut any further
    /// meanwhile.
    ///
    /// # Errors
    /// `InvalidInput` when a checkpoint may hold more already, or another epoch is reserved.
    pub fn reserve_checkpoint(&self, epoch: Epoch) -> Result<(), StoreError> {
        self.shared.reserve_checkpoint(epoch)
    }

    /// As [`Self::checkpoint`], of exactly this epoch, whatever came after it; see [`Self::reserve_checkpoint`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path();
    /// use laminar_storage::Store;
    /// let opened = Store::builder(path).open()?;
    /// let (store, mut core) = (opened.store, opened.cores.into_iter().next().unwrap());
    /// let epoch = core.epoch();
    /// store.reserve_checkpoint(epoch)?;
    /// core.put(b"key", b"then")?;
    /// core.seal_epoch()?;
    /// core.put(b"key", b"later")?;
    /// store.wait_durable(core.seal_epoch()?)?;
    /// let receipt = store.checkpoint_at(epoch)?;
    /// assert_eq!((receipt.epoch, receipt.changes), (epoch, 1));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Self::checkpoint`]; `InvalidInput` when the epoch is not durable, in a part of a whole not settled, or earlier than
    /// the newest checkpoint.
    pub fn checkpoint_at(&self, epoch: Epoch) -> Result<CheckpointReceipt, StoreError> {
        self.shared.checkpoint_at(epoch)
    }

    /// Makes a savepoint of the durable epoch in the new directory `dir`: a checkpoint that stands on its
    /// own and that the store never removes. State files are shared with it by hard link where the file
    /// system allows that, so that it costs no room until the store has changed; otherwise they are copied.
    /// The cores are not held up. It can be moved, copied and deleted like any directory, be read with
    /// [`crate::incremental::CheckpointReader`], compared with [`crate::incremental::diff`], and a new store
    /// can begin with it ([`StoreBuilder::from_savepoint`]).
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let temporary = tempfile::tempdir()?;
    /// # let (state, saved) = (temporary.path().join("state"), temporary.path().join("before-upgrade"));
    /// # use laminar_storage::Store;
    /// # let opened = Store::builder(&state).open()?;
    /// # let (store, mut core) = (opened.store, opened.cores.into_iter().next().unwrap());
    /// core.put(b"key", b"value")?;
    /// let epoch = core.seal_epoch()?;
    /// store.wait_durable(epoch)?;
    /// let receipt = store.savepoint(&saved)?;
    /// assert_eq!((receipt.epoch, receipt.keys), (epoch, 1));
    /// laminar_storage::incremental::validate_checkpoint(&saved)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// `InvalidInput` when `dir` exists, its parent does not, or it is among the files of the store; and
    /// as [`Self::checkpoint`]. When only the savepoint fails (`Io`: a full disk, for example), nothing is
    /// left at `dir`, the store goes on as if nothing had been asked, and the call may be made again.
    pub fn savepoint(&self, dir: impl AsRef<Path>) -> Result<SavepointReceipt, StoreError> {
        self.shared.savepoint(dir.as_ref(), &[])
    }

    /// As [`Self::savepoint`], with small files of the program's own in the same directory, name and
    /// content of each: what it needs to go on from there, such as its configuration. They are there,
    /// durable and complete, whenever the savepoint is.
    ///
    /// # Errors
    /// As [`Self::savepoint`]; `InvalidInput` for a name that is no file name, or one of the library's own.
    pub fn savepoint_with(
        &self,
        dir: impl AsRef<Path>,
        own_files: &[(&str, &[u8])],
    ) -> Result<SavepointReceipt, StoreError> {
        self.shared.savepoint(dir.as_ref(), own_files)
    }

    /// In a store that is a part of a whole ([`StoreBuilder::open_as_part`]): says that everything up to `epoch` is durable on
    /// all parts. From now on it may be put into checkpoints, and no opening discards it; the log testifies to that from
    /// the next durable epoch on. Earlier epochs than before change nothing.
    ///
    /// # Errors
    /// `InvalidInput` when the store is no part, or `epoch` is not durable here.
    pub fn settle(&self, epoch: Epoch) -> Result<(), StoreError> {
        self.shared.settle(epoch)
    }

    /// Is the store in order?
    #[must_use]
    pub fn health(&self) -> Health {
        match (self.shared.durable.check(), self.shared.checkpoint_failure()) {
            (Err(cause), _) => Health::Poisoned(cause),
            (Ok(()), Some(error)) => Health::CheckpointsFailing(error),
            (Ok(()), None) => Health::Running,
        }
    }

    /// Figures since the store was opened.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// How far the backups have come; none unless [`StoreBuilder::backup_to`] asked for them.
    #[cfg(feature = "object-store")]
    #[must_use]
    pub fn backup_status(&self) -> Option<crate::backup::BackupStatus> {
        self.shared.backups.get().map(|backups| backups.status())
    }

    /// Makes a checkpoint of the durable epoch and backs it up, on the calling thread; `own_files` go with it. For a place of
    /// its own: it takes a place over, also from [`StoreBuilder::backup_to`] of this store.
    ///
    /// # Errors
    /// `Local` with what [`Self::checkpoint`] or reading it back says; otherwise as [`crate::backup::BackupWriter`].
    #[cfg(feature = "object-store")]
    pub fn back_up(
        &self,
        target: &crate::backup::BackupTarget,
        options: &crate::backup::BackupOptions,
        own_files: &[(&str, &[u8])],
    ) -> Result<crate::backup::BackupReceipt, crate::backup::BackupError> {
        let local = |error: StoreError| crate::backup::BackupError::Local(Box::new(error.detail().clone()));
        let (reader, opening) = self.shared.checkpoint_to_read().map_err(local)?;
        crate::backup::BackupWriter::open_for(target, options, &opening)?.back_up(&reader, own_files)
    }

    /// Makes a checkpoint of exactly this epoch, as [`Self::checkpoint_at`] does, and opens it for [`crate::backup::PartWriter`], which
    /// can read it from then on whether or not it is still there.
    ///
    /// # Errors
    /// As [`Self::checkpoint_at`].
    #[cfg(feature = "object-store")]
    pub fn part_checkpoint(&self, epoch: Epoch) -> Result<crate::backup::PartCheckpoint, StoreError> {
        let (reader, opening) = self.shared.checkpoint_at_to_read(epoch)?;
        Ok(crate::backup::PartCheckpoint { reader, opening })
    }

    /// Waits until a backup holds the newest checkpoint, for at most `at_most`; false when the time is over first. At once
    /// true without [`StoreBuilder::backup_to`]. What no checkpoint has yet is not waited for: see [`Self::checkpoint`].
    ///
    /// # Errors
    /// The last error when no further backup will be tried: `Fenced`, `Foreign`, `InvalidInput`.
    #[cfg(feature = "object-store")]
    pub fn wait_backed_up(&self, at_most: Duration) -> Result<bool, crate::backup::BackupError> {
        self.shared.backups.get().map_or(Ok(true), |backups| backups.wait(at_most))
    }

    /// Drains and syncs everything that was sealed, and ends the background threads. Cores that are
    /// still in use get [`StoreError::Closed`] from then on.
    ///
    /// # Errors
    /// `Poisoned` or `Io` when something that was sealed could not be made durable.
    pub fn close(mut self) -> Result<CloseReceipt, StoreError> {
        self.shared.close(&mut self.threads)?;
        Ok(CloseReceipt { durable_epoch: self.durable_epoch() })
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Whoever wants to know calls close.
        let _ = self.shared.close(&mut self.threads);
    }
}

#[cfg(all(test, shuttle))]
mod shuttle_tests;
