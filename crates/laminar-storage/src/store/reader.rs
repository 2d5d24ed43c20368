//! Looking at a store without opening it.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::error::StoreError;
use super::open::Layout;
use crate::error::Detail;
use crate::incremental::recovery::locate::Failure;
use crate::incremental::recovery::recover_acknowledged;
use crate::incremental::{RecoveredState, StateMap};
use crate::progress::{Listener, RecoveryProgress, Watch};
use crate::report::RecoveryReport;
use crate::vfs::{OsVfs, Vfs, absolute};

/// Attempts at a directory that somebody is writing to, and the pause between them.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(20);

/// A view of the newest recoverable state of a store: what opening it would recover. Never writes,
/// takes no lock, and holds the whole state in memory.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let opened = laminar_storage::Store::builder(dir.path()).open()?;
/// # let (store, mut core) = (opened.store, opened.cores.into_iter().next().unwrap());
/// # core.put(b"key", b"value")?;
/// # let epoch = core.seal_epoch()?;
/// # store.wait_durable(epoch)?;
/// # drop(core); store.close()?;
/// let reader = laminar_storage::StateReader::open(dir.path())?;
/// assert_eq!(reader.get(b"key"), Some(b"value".as_slice()));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct StateReader {
    recovered: RecoveredState,
}

impl StateReader {
    /// Reads the newest recoverable state of the store in `dir`, which may be in use.
    ///
    /// # Errors
    /// `InvalidInput` when there is no store; otherwise what opening it would return.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::open_with(dir, Arc::new(OsVfs::new()))
    }

    /// As [`Self::open`], telling `listener` how far it has come, as [`crate::StoreBuilder::on_progress`]
    /// does.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with_progress(
        dir: impl AsRef<Path>,
        listener: impl FnMut(RecoveryProgress) + Send + 'static,
    ) -> Result<Self, StoreError> {
        let listener: Arc<Mutex<Listener>> = Arc::new(Mutex::new(listener));
        Self::open_watched(
            dir.as_ref(),
            &(Arc::new(OsVfs::new()) as Arc<dyn Vfs>),
            &Watch::new(Some(&listener)),
        )
    }

    /// As [`Self::open`], on another outside world.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(dir: impl AsRef<Path>, vfs: Arc<dyn Vfs>) -> Result<Self, StoreError> {
        Self::open_watched(dir.as_ref(), &vfs, &Watch::default())
    }

    fn open_watched(dir: &Path, vfs: &Arc<dyn Vfs>, watch: &Watch) -> Result<Self, StoreError> {
        let layout = Layout::of(&absolute(dir));
        let kind = |path: &Path| {
            vfs.kind(path)
                .map_err(|e| StoreError::Io(Box::new(crate::error::io_detail("could not look at", path, e))))
        };
        if kind(&layout.wal)?.is_none() && kind(&layout.checkpoints)?.is_none() {
            return Err(StoreError::invalid(
                Detail::new("there is no store here").at_path(&layout.dir).remedy("Check the path."),
            ));
        }
        layout.refuse_links(vfs.as_ref())?;
        let mut attempt = 1;
        loop {
            match recover_acknowledged(vfs, &layout.checkpoints, &layout.wal, watch) {
                Ok(recovered) => {
                    watch.done(recovered.report.keys);
                    return Ok(Self { recovered });
                }
                // The owner may have moved on between two looks at the directory.
                Err(_) if attempt < ATTEMPTS && vfs.parallel() => {
                    attempt += 1;
                    std::thread::sleep(PAUSE);
                }
                Err(Failure::Checkpoint(error)) => return Err(error.into()),
                Err(Failure::Log(error)) => return Err(error.into()),
            }
        }
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.recovered.get(key)
    }

    /// Number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.recovered.len()
    }

    /// Are there no keys?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.recovered.is_empty()
    }

    /// Keys and values, in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.recovered.iter()
    }

    /// The whole state.
    #[must_use]
    pub fn state(&self) -> &StateMap {
        &self.recovered.state
    }

    /// What recovery would do.
    #[must_use]
    pub fn report(&self) -> &RecoveryReport {
        &self.recovered.report
    }
}
