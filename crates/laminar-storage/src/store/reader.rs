//! Looking at a store without opening it.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::error::StoreError;
use super::open::Layout;
use crate::error::Detail;
use crate::incremental::recovery::recover_state;
use crate::incremental::{RecoveredState, StateMap};
use crate::per_core_wal::recovery::plan::Wanted;
use crate::per_core_wal::recovery::survey::Survey;
use crate::per_core_wal::{SegmentStats, segment_stats};
use crate::progress::{Listener, RecoveryProgress, Watch};
use crate::report::RecoveryReport;
use crate::vfs::{OsVfs, Vfs, absolute};

/// How often the same error must come before it is believed, as the owner of the directory may have moved on
/// between two looks at it; the pause between two attempts, and how long there are any.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(10);

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

    /// Facts about every segment of the log of the store in `dir`, which may be in use: by core, oldest first.
    /// Reads and checks all of them.
    ///
    /// # Errors
    /// As [`Self::open`], without those of the checkpoints.
    pub fn log_segments(dir: impl AsRef<Path>) -> Result<Vec<SegmentStats>, StoreError> {
        let vfs: Arc<dyn Vfs> = Arc::new(OsVfs::new());
        let layout = existing(dir.as_ref(), &vfs)?;
        patiently(&layout, PATIENCE, || Ok(segment_stats(&Survey::whole(&vfs, &layout.wal, &[])?)))
    }

    fn open_watched(dir: &Path, vfs: &Arc<dyn Vfs>, watch: &Watch) -> Result<Self, StoreError> {
        let layout = existing(dir, vfs)?;
        let recover = || {
            recover_state(vfs, &layout.checkpoints, &layout.wal, Wanted::Acknowledged, watch)
                .map_err(StoreError::from)
        };
        let recovered = if vfs.parallel() { patiently(&layout, PATIENCE, recover) } else { recover() }?;
        watch.done(recovered.report.keys);
        Ok(Self { recovered })
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

/// Where the parts of the store in `dir` are, if there is one.
fn existing(dir: &Path, vfs: &Arc<dyn Vfs>) -> Result<Layout, StoreError> {
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
    Ok(layout)
}

/// Reads a directory that may be in use. Damage stays where it is, and so does its error; what only looks like damage,
/// because the owner has made or removed something meanwhile, is gone at the next look, or is another.
fn patiently<T>(
    layout: &Layout,
    patience: Duration,
    read: impl Fn() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let started = Instant::now();
    let (mut last, mut times) = (String::new(), 0);
    loop {
        let error = match read() {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let text = error.to_string();
        times = if text == last { times + 1 } else { 1 };
        if times >= ATTEMPTS {
            return Err(error);
        }
        if started.elapsed() >= patience {
            let what =
                format!("the store is changed faster than it can be read; the last try ended with: {text}");
            return Err(StoreError::Locked(Box::new(Detail::new(what).at_path(&layout.dir).remedy(
                "Try again, or read a savepoint of it. Only what is said of a store that nobody uses is damage.",
            ))));
        }
        last = text;
        std::thread::sleep(PAUSE);
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;
    use crate::per_core_wal::segment::list_segments;
    use crate::per_core_wal::{PerCoreWalConfig, PerCoreWalManager};
    use crate::vfs::sim::SimDisk;
    use crate::vfs::write_all_at;
    use crate::{Opened, Settings, Store};

    /// Of the segments that a checkpoint made superfluous, any may be there again after a power cut. A store opens all
    /// the same; `laminar verify` spoke of damage. Found by reading.
    #[test]
    fn gaps_in_what_is_obsolete_are_no_damage() {
        let disk = SimDisk::new(1);
        let settings = Settings { segment_bytes: 4096, preallocate_bytes: 0, ..Settings::default() };
        let builder = Store::builder("/store").settings(settings).vfs(Arc::new(disk.clone()));
        let Opened { store, mut cores, .. } = builder.clone().open().unwrap();
        let mut before = Vec::new();
        for _ in 0..4 {
            for key in 0..20_u8 {
                cores[0].put(&[key], &[7; 2000]).unwrap();
                let epoch = cores[0].seal_epoch().unwrap();
                store.wait_durable(epoch).unwrap();
            }
            let paths = list_segments(&disk, Path::new("/store/wal")).unwrap();
            let paths = paths.iter().map(|name| Path::new("/store/wal").join(name.file_name()));
            before = paths.map(|path| (disk.read_file(&path).unwrap(), path)).collect();
            store.checkpoint().unwrap();
        }
        drop((store, cores));
        let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
        let segments = || segment_stats(&Survey::whole(&vfs, Path::new("/store/wal"), &[]).unwrap());
        let whole = segments();
        let removed: Vec<_> = before.iter().filter(|(_, path)| disk.kind(path).unwrap().is_none()).collect();
        assert!(removed.len() > 2, "{}", removed.len());
        let (bytes, path) = removed[0];
        write_all_at(disk.create_new(path).unwrap().as_ref(), bytes, 0).unwrap();
        assert_eq!(segments(), whole);
        drop(builder.clone().open().unwrap());
        let config = PerCoreWalConfig::new(Path::new("/store/wal"), 1).with_vfs(Arc::clone(&vfs));
        let log = PerCoreWalManager::new(config).unwrap();
        assert!(!log.merge_segments().unwrap().is_empty());
        drop(log);
        drop(builder.open().unwrap());
    }

    /// Five attempts that each met another gap, left by the owner's checkpoints, were taken for damage.
    #[test]
    fn only_an_error_that_stays_is_believed() {
        let layout = Layout::of(Path::new("/store"));
        let moving = std::cell::Cell::new(0);
        let read = |seconds: u64, good: u32, error: fn(u32) -> String| {
            moving.set(0);
            let result = patiently(&layout, Duration::from_secs(seconds), || {
                moving.set(moving.get() + 1);
                let damage = || StoreError::corruption(Detail::new(error(moving.get())));
                if moving.get() < good { Err(damage()) } else { Ok(()) }
            });
            (result.map_err(|error| error.detail().what().to_owned()), moving.get())
        };
        assert_eq!(read(600, 20, |at| format!("segment {at}")), (Ok(()), 20));
        assert_eq!(read(600, 20, |_| "segment 7".into()), (Err("segment 7".into()), 5));
        assert_eq!(read(600, 20, |at| format!("segment {}", at.min(9))), (Err("segment 9".into()), 13));
        let (error, _) = read(1, u32::MAX, |at| format!("segment {at}"));
        assert!(error.unwrap_err().contains("faster than it can be read"));
    }
}
