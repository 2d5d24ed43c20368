//! How a store is opened.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::error::StoreError;
use super::open::Layout;
use super::router::Router;
use super::settings::Settings;
use super::{Opened, open};
#[cfg(feature = "object-store")]
use crate::backup::{BackupOptions, BackupTarget, worker::BackupPlan};
use crate::error::Detail;
use crate::format::MAX_CORES;
use crate::ids::Epoch;
use crate::incremental::savepoint::resolved;
use crate::incremental::{CheckpointConfig, ManagerOptions};
use crate::per_core_wal::PerCoreWalConfig;
use crate::progress::{Listener, RecoveryProgress, Watch};
use crate::vfs::{OsVfs, Vfs, absolute};

/// Collects what a store is opened with; made by [`crate::Store::builder`].
#[derive(Clone, Debug)]
pub struct StoreBuilder {
    path: PathBuf,
    cores: usize,
    settings: Settings,
    router: Router,
    vfs: Arc<dyn Vfs>,
    savepoint: Option<PathBuf>,
    listener: Option<Heard>,
    manager: ManagerOptions,
    #[cfg(feature = "object-store")]
    backups: Option<BackupPlan>,
}

/// Who hears of the progress of opening.
#[derive(Clone)]
struct Heard(Arc<Mutex<Listener>>);

impl fmt::Debug for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Heard")
    }
}

impl StoreBuilder {
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            // Made absolute once: segments are still to be created here after a change of directory.
            path: absolute(path),
            cores: 1,
            settings: Settings::default(),
            router: Router::default(),
            vfs: Arc::new(OsVfs::new()),
            savepoint: None,
            listener: None,
            manager: ManagerOptions::default(),
            #[cfg(feature = "object-store")]
            backups: None,
        }
    }

    /// Number of cores, 1 to 1024; default 1. An existing store with another number is re-sharded.
    #[must_use]
    pub fn cores(mut self, cores: usize) -> Self {
        self.cores = cores;
        self
    }

    /// Replaces the default settings.
    #[must_use]
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// The function that routes the program's keys to cores; used when the number of cores changes, and for
    /// what the low-level functions wrote.
    /// Default: [`Router::default`].
    #[must_use]
    pub fn router(mut self, router: Router) -> Self {
        self.router = router;
        self
    }

    /// Uses another outside world than the operating system, a simulated disk for example. When that
    /// one is not [`Vfs::parallel`], the store starts no threads and does its work within
    /// `wait_durable`, `checkpoint` and `close`, deterministically.
    #[must_use]
    pub fn vfs(mut self, vfs: Arc<dyn Vfs>) -> Self {
        self.vfs = vfs;
        self
    }

    /// What making checkpoints takes of memory, and when it merges files. The defaults suit everything but tests, in which
    /// small states are to be spilled and merged as large ones are.
    #[must_use]
    pub fn manager_options(mut self, options: ManagerOptions) -> Self {
        self.manager = options;
        self
    }

    /// Begins a new store with the state of a savepoint: a fork, which goes on by itself from the
    /// savepoint's epoch, source offsets and watermark, with any number of cores. `dir` is what
    /// [`crate::Store::savepoint`] made, or a copy of it, or any checkpoint's directory; it stays as it is
    /// and is not needed afterwards. State files are shared with it by hard link where the file system
    /// allows that, otherwise copied; the first checkpoint that has something new writes its own.
    ///
    /// Opening is refused when there is a state in the store's directory already, except that it may be
    /// tried again, after a crash or an error, until something was changed in the new store.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let temporary = tempfile::tempdir()?;
    /// # let [state, saved, fork] = ["state", "saved", "fork"].map(|name| temporary.path().join(name));
    /// use laminar_storage::Store;
    /// let opened = Store::builder(&state).open()?;
    /// let (store, mut core) = (opened.store, opened.cores.into_iter().next().unwrap());
    /// core.put(b"key", b"value")?;
    /// let epoch = core.seal_epoch()?;
    /// store.wait_durable(epoch)?;
    /// store.savepoint(&saved)?;
    ///
    /// let forked = Store::builder(&fork).cores(4).from_savepoint(&saved).open()?;
    /// assert_eq!(forked.report.recovery_point, epoch);
    /// assert_eq!(forked.report.keys, 1);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn from_savepoint(mut self, dir: impl AsRef<Path>) -> Self {
        self.savepoint = Some(absolute(dir.as_ref()));
        self
    }

    /// Sets the longest time that opening should take after a crash, to the millisecond:
    /// [`Settings::recovery_objective_ms`]. The checkpoint thread makes checkpoints early enough for that.
    ///
    /// ```
    /// # fn main() -> Result<(), laminar_storage::StoreError> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path();
    /// use std::time::Duration;
    /// let opened = laminar_storage::Store::builder(path).with_recovery_objective(Duration::from_secs(2)).open()?;
    /// assert!(opened.store.stats().estimated_recovery < Duration::from_secs(2));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn with_recovery_objective(mut self, objective: Duration) -> Self {
        // An objective below a millisecond is not none.
        let millis = objective.as_nanos().div_ceil(1_000_000);
        self.settings.recovery_objective_ms = u64::try_from(millis).unwrap_or(u64::MAX);
        self
    }

    /// Tells `listener` how far opening has come: about every 50 ms while there is anything to load, and
    /// once at the end. It is called on the threads that load, one call at a time, and holds one of
    /// them up while it runs.
    ///
    /// ```
    /// # fn main() -> Result<(), laminar_storage::StoreError> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path();
    /// use laminar_storage::{RecoveryPhase, Store};
    /// let opened = Store::builder(path)
    ///     .on_progress(|progress| {
    ///         if let Some(total) = progress.bytes_total {
    ///             eprintln!("{:?}: {} of {total} bytes", progress.phase, progress.bytes_done);
    ///         }
    ///         assert!(progress.phase != RecoveryPhase::Done || progress.remaining.is_some());
    ///     })
    ///     .open()?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn on_progress(mut self, listener: impl FnMut(RecoveryProgress) + Send + 'static) -> Self {
        self.listener = Some(Heard(Arc::new(Mutex::new(listener))));
        self
    }

    /// Copies every checkpoint to an object store, on a thread of its own. What a checkpoint shares with one that is there
    /// is not sent again; checkpoints that come while one is copied are passed over, but for the newest. A failure harms
    /// nothing: it is tried again, and shown by [`crate::Store::backup_status`]. Closing the store gives up a copy that is
    /// under way; [`crate::Store::wait_backed_up`] waits for it.
    ///
    /// `own_files` are small files of the program's own, name and content of each, that go with every backup.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let temporary = tempfile::tempdir()?;
    /// # let [state, elsewhere, restored] = ["state", "elsewhere", "restored"].map(|name| temporary.path().join(name));
    /// use laminar_storage::Store;
    /// use laminar_storage::backup::{BackupOptions, BackupTarget, restore};
    /// use std::time::Duration;
    ///
    /// // s3://BUCKET/PREFIX, gs://…, az://…, or a directory.
    /// let target = BackupTarget::create(elsewhere.to_str().ok_or("not text")?)?;
    /// let options = BackupOptions::new();
    /// let opened = Store::builder(&state).backup_to(&target, &options, &[("config", b"of the program")]).open()?;
    /// let (store, mut core) = (opened.store, opened.cores.into_iter().next().unwrap());
    /// core.put(b"key", b"value")?;
    /// let epoch = core.seal_epoch()?;
    /// store.wait_durable(epoch)?;
    /// store.checkpoint()?;
    /// assert!(store.wait_backed_up(Duration::from_secs(60))?);
    /// # drop(core);
    /// store.close()?;
    ///
    /// // On another machine.
    /// restore(&target, None, &restored, &options, |_| {})?;
    /// let again = Store::builder(temporary.path().join("again")).from_savepoint(&restored).open()?;
    /// assert_eq!((again.report.keys, again.report.recovery_point), (1, epoch));
    /// # Ok(()) }
    /// ```
    #[cfg(feature = "object-store")]
    #[must_use]
    pub fn backup_to(
        self,
        target: &BackupTarget,
        options: &BackupOptions,
        own_files: &[(&str, &[u8])],
    ) -> Self {
        let own_files: Vec<_> =
            own_files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
        self.backup_to_with(target, options, move || Ok(own_files.clone()))
    }

    /// As [`Self::backup_to`], for files that change while the store is open: `own_files` says for each backup what they
    /// are. It is called on the thread of backups after the checkpoint was made that the backup will hold, so that what was written
    /// before changes that depend on it goes with them. When it fails, so does that backup, which is tried again.
    #[cfg(feature = "object-store")]
    #[must_use]
    pub fn backup_to_with(
        mut self,
        target: &BackupTarget,
        options: &BackupOptions,
        own_files: impl Fn() -> std::io::Result<Vec<(String, Vec<u8>)>> + Send + Sync + 'static,
    ) -> Self {
        let own_files = Arc::new(own_files);
        self.backups = Some(BackupPlan { target: target.clone(), options: options.clone(), own_files });
        self
    }

    /// Opens the store, creating the directory when it is missing, and recovers its state.
    ///
    /// On a full disk an existing store opens to be read: [`crate::Health::Poisoned`] is its health, with that cause, and
    /// every change is refused with it. Free space and open it again to go on.
    ///
    /// # Errors
    /// `InvalidInput` for a setting out of bounds, `Locked` when the store is open elsewhere,
    /// `Corruption` or `NewerFormat` when what is there (or the savepoint) cannot be recovered exactly, `Io`,
    /// and `StateFull` when the state does not fit. Nothing acknowledged is lost then; apart from a
    /// re-sharding that was already published, nothing was changed.
    pub fn open(self) -> Result<Opened, StoreError> {
        open::open(&self, None)
    }

    /// Opens a store that is one part of a larger whole, several processes for example, which recovers as one: to an
    /// epoch that all parts have.
    ///
    /// `agree` is told the epoch that this part recovers to by itself, before anything is loaded or changed, and says which
    /// one all of them land on, at most this one. What is later is discarded, for good and durably, before the store is
    /// handed out. `agree` is called once, while the directory is locked; an error of it ends the opening.
    ///
    /// So that this is possible, the store only takes as acknowledged, and only puts into checkpoints, epochs that
    /// [`crate::Store::settle`] named: those that are durable on all parts. Its own durable epoch,
    /// [`crate::Store::durable_epoch`], may be discarded by the next opening as long as it is not settled. A part is always
    /// opened this way: [`Self::open`] would take everything that is durable here for acknowledged.
    ///
    /// No part may seal before all parts have been opened: the smallest epoch of a later agreement could otherwise be one
    /// that this part has from before and another one from after, and the states of two lives would be mixed without an
    /// error. `laminar-timely` has a barrier there. [`crate::StateReader`] knows nothing of the others: it shows what is durable here.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path();
    /// use laminar_storage::{Epoch, Store};
    /// let opened = Store::builder(path).open_as_part(|found| Ok(found))?;
    /// let (store, mut core) = (opened.store, opened.cores.into_iter().next().unwrap());
    /// core.put(b"key", b"first")?;
    /// let first = core.seal_epoch()?;
    /// core.put(b"key", b"second")?;
    /// let second = core.seal_epoch()?;
    /// store.wait_durable(second)?;
    /// store.settle(first)?;                // all parts have this one
    /// drop((store, core));
    ///
    /// // Another part has only the first epoch.
    /// let others_have = first;
    /// let opened = Store::builder(path).open_as_part(|found| Ok(found.min(others_have)))?;
    /// assert_eq!(opened.report.recovery_point, first);
    /// assert_eq!(opened.cores[0].get(b"key"), Some(b"first".as_slice()));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Self::open`], and what `agree` returns. `InvalidInput` when the number of cores is another one than before and
    /// something is to be discarded: that takes two openings, the first with as many cores as before. Also when the epoch agreed on is later than this part has,
    /// or earlier than a checkpoint of it; `Corruption` when it is earlier than one that was settled, as far as this part's
    /// log testifies to that: another part has lost something then.
    pub fn open_as_part(
        self,
        mut agree: impl FnMut(Epoch) -> Result<Epoch, StoreError>,
    ) -> Result<Opened, StoreError> {
        open::open(&self, Some(&mut agree))
    }

    pub(crate) fn validate(&self) -> Result<(), StoreError> {
        if self.cores == 0 || self.cores > MAX_CORES {
            return Err(StoreError::invalid(
                Detail::new(format!("cores is {}, must be 1..={MAX_CORES}", self.cores))
                    .at_path(&self.path)
                    .remedy("Use one core per thread that owns state."),
            ));
        }
        if let Some(savepoint) =
            self.savepoint().filter(|dir| resolved(&self.path).starts_with(resolved(dir)))
        {
            return Err(StoreError::invalid(
                Detail::new("a store cannot begin inside the savepoint that it begins with")
                    .at_path(savepoint)
                    .remedy("Name a new directory outside of the savepoint."),
            ));
        }
        #[cfg(feature = "object-store")]
        if let Some(plan) = &self.backups {
            let invalid = |error: crate::backup::BackupError| StoreError::invalid(error.detail().clone());
            plan.options.validate().map_err(invalid)?;
        }
        #[cfg(feature = "object-store")]
        if self.backups.is_some() && !self.vfs.parallel() {
            let what = "backups need a thread, and this outside world allows none";
            return Err(StoreError::invalid(
                Detail::new(what).at_path(&self.path).remedy("Make them with a BackupWriter instead."),
            ));
        }
        self.settings.validate()
    }

    #[cfg(feature = "object-store")]
    pub(crate) fn backups(&self) -> Option<&BackupPlan> {
        self.backups.as_ref()
    }

    pub(crate) fn savepoint(&self) -> Option<&Path> {
        self.savepoint.as_deref()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn core_count(&self) -> u16 {
        u16::try_from(self.cores).unwrap_or(u16::MAX)
    }

    pub(crate) fn settings_ref(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn router_ref(&self) -> &Router {
        &self.router
    }

    /// Counts for the listener, from now on.
    pub(crate) fn watch(&self) -> Watch {
        Watch::new(self.listener.as_ref().map(|heard| &heard.0))
    }

    pub(crate) fn manager_options_ref(&self) -> &ManagerOptions {
        &self.manager
    }

    pub(crate) fn vfs_ref(&self) -> &Arc<dyn Vfs> {
        &self.vfs
    }

    pub(crate) fn wal_config(&self, layout: &Layout) -> PerCoreWalConfig {
        PerCoreWalConfig::new(&layout.wal, self.cores)
            .with_segment_size(self.settings.segment_bytes)
            .with_preallocation(self.settings.preallocate_bytes)
            .with_vfs(Arc::clone(&self.vfs))
    }

    pub(crate) fn checkpoint_config(&self, layout: &Layout) -> CheckpointConfig {
        // When a checkpoint is due is decided by the store's own threads.
        CheckpointConfig::new(&layout.checkpoints)
            .with_wal_path(&layout.wal)
            .with_max_retained(self.settings.max_retained)
            .with_compression(self.settings.compression)
    }
}
