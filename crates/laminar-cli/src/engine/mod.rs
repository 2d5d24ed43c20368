//! The state store as the command sees it: the few calls it makes, and nothing about how they work.
//!
//! The job (`pipeline`) and the tools (`query`, `export`) are written against these traits, so that
//! tests can run them over a store that lives in memory and can be "crashed" at any epoch
//! (`fake`). The real one is `laminar_storage::Store`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::error::Result;
use crate::opening::Watched;

pub mod advice;
#[cfg(test)]
pub mod fake;
pub mod store;

/// Which core owns a key. The store's own function, so that what is routed here is what the store
/// re-shards by when the number of cores changes.
#[derive(Clone)]
pub struct Router {
    cores: usize,
    route: Arc<Route>,
}

type Route = dyn Fn(&[u8]) -> usize + Send + Sync;

impl Router {
    /// A router over `cores` cores.
    pub fn new(cores: usize, route: impl Fn(&[u8]) -> usize + Send + Sync + 'static) -> Self {
        Self { cores, route: Arc::new(route) }
    }

    /// Number of cores.
    pub fn cores(&self) -> usize {
        self.cores
    }

    /// The core that owns the key, `0..cores`.
    pub fn core_of(&self, key: &[u8]) -> usize {
        if self.cores == 1 { 0 } else { (self.route)(key) }
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router").field("cores", &self.cores).finish_non_exhaustive()
    }
}

/// What a job asks of the store.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// The store's directory; made if it does not exist.
    pub dir: PathBuf,
    /// Number of cores; may differ from last time.
    pub cores: usize,
    /// Longest time between two automatic checkpoints; `None` is the store's default.
    pub checkpoint_interval: Option<Duration>,
    /// Longest time that the next opening should take; `None` for no such objective.
    pub recovery_objective: Option<Duration>,
    /// Is a bar to be seen while it is opened?
    pub opening: Watched,
    /// Where every checkpoint is copied to, if anywhere.
    #[cfg(feature = "object-store")]
    pub backups: Option<crate::backup::running::Running>,
}

/// What recovery found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The epoch that the state is at; 0 for a new store.
    pub epoch: u64,
    /// Source offsets of that epoch.
    pub source_offsets: BTreeMap<String, u64>,
    /// The checkpoint that was loaded.
    pub checkpoint: Option<u64>,
    /// Newer checkpoints that are damaged and were passed over; the log still covered them.
    pub checkpoints_skipped: Vec<u64>,
    /// WAL records replayed on top of it.
    pub replayed: u64,
    /// What was cut from the log and why, one sentence per core concerned.
    pub cuts: Vec<String>,
    /// How long it took.
    pub took: Duration,
    /// Keys in the recovered state.
    pub keys: u64,
}

impl Report {
    /// One line about damaged checkpoints, if there are any.
    pub fn warning(&self) -> Option<String> {
        let ids: Vec<String> = self.checkpoints_skipped.iter().map(u64::to_string).collect();
        (!ids.is_empty()).then(|| {
            format!(
                "laminar: warning: damaged checkpoint {} passed over; the log still covered it and nothing is \
                 lost, but check the disk (`laminar verify`).",
                ids.join(", ")
            )
        })
    }
}

/// A finished checkpoint.
#[derive(Clone, Copy, Debug, Default)]
pub struct Checkpoint {
    /// Its id.
    pub id: u64,
    /// The epoch it holds.
    pub epoch: u64,
    /// Bytes written for it; shared files are not counted.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
}

/// Counters of an open store.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Checkpoints made since it was opened.
    pub checkpoints: u64,
    /// Bytes written to the log since it was opened.
    pub wal_bytes: u64,
    /// How long opening would take if the process died now, as the store estimates it.
    pub estimated_recovery: Duration,
    /// Checkpoints that no backup holds yet, where they are backed up.
    #[cfg(feature = "object-store")]
    pub backup_checkpoints_behind: u64,
}

/// An open store.
pub struct Opened<E: Engine> {
    pub engine: E,
    /// One per core, in order.
    pub cores: Vec<E::Core>,
    pub report: Report,
    pub router: Router,
}

/// The store: what concerns all cores.
pub trait Engine: Sized + Send + Sync {
    /// One core's state.
    type Core: CoreEngine;

    /// What opening the store would recover, without changing anything; none if it cannot be told.
    fn look(dir: &Path) -> Option<Report>;
    /// Opens or makes the store and recovers it.
    fn open(options: &OpenOptions) -> Result<Opened<Self>>;
    /// The last epoch that is durable on all cores.
    fn durable_epoch(&self) -> u64;
    /// Waits until the epoch is durable on all cores.
    fn wait_durable(&self, epoch: u64) -> Result<()>;
    /// Makes a checkpoint now.
    fn checkpoint(&self) -> Result<Checkpoint>;
    /// Waits until the newest checkpoint is backed up or that has failed, and says which; none where that is not asked for.
    #[cfg(feature = "object-store")]
    fn backed_up(&self) -> Option<crate::backup::running::BackedUp>;
    /// Counters.
    fn stats(&self) -> Stats;
    /// Closes the store; everything sealed is durable afterwards.
    fn close(self) -> Result<()>;
}

/// One core's state. Moved to the thread that owns the core's keys.
pub trait CoreEngine: Send {
    /// Replaces the value of a key by what `change` makes of the old one; `None` deletes the key.
    fn update<'v, F>(&mut self, key: &[u8], change: F) -> Result<()>
    where
        F: FnOnce(Option<&[u8]>) -> Option<&'v [u8]>;
    /// Calls `visit` with the values of many keys, in their order; memory is fetched ahead.
    fn visit(&self, keys: &[&[u8]], visit: &mut dyn FnMut(Option<&[u8]>));
    /// Sets a source offset; durable with the epoch that is sealed next.
    fn set_source_offset(&mut self, name: &str, offset: u64);
    /// Closes the core's epoch and gives its number. All cores count the same.
    fn seal_epoch(&mut self) -> Result<u64>;
    /// Number of keys.
    fn len(&self) -> u64;
}

/// A store's newest recoverable state, read without changing anything.
pub trait StateView: Sized {
    /// Reads the state of a directory.
    fn open(dir: &Path) -> Result<Self>;
    /// As [`Self::open`], with a bar to be seen meanwhile.
    fn open_watched(dir: &Path, _: Watched) -> Result<Self> {
        Self::open(dir)
    }
    /// Calls `visit` for every key and value, in any order.
    fn for_each<'s>(&'s self, visit: &mut dyn FnMut(&'s [u8], &'s [u8]));
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Option<&[u8]>;
    /// What recovery would find.
    fn report(&self) -> &Report;
}
