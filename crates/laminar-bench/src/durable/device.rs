//! Devices that there are not: the files are the system's, but what the log is written to takes everything at once and keeps
//! nothing, or answers no faster than it was told.

use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use laminar_storage::vfs::{Access, FileKind, OsVfs, Vfs, VfsFile};

/// What the files of a log become.
pub trait Device: Debug + Send + Sync {
    fn file(self: &Arc<Self>, file: Arc<dyn VfsFile>) -> Arc<dyn VfsFile>;
}

/// The system, with a device of its own for the log.
#[derive(Debug)]
pub struct Files<D> {
    system: OsVfs,
    log: Arc<D>,
}

impl<D: Device> Files<D> {
    pub fn new(log: Arc<D>) -> Self {
        Self { system: OsVfs::new(), log }
    }

    /// Segments, and the note of how far they are synced, are the log. What else is in its directory is read when a store
    /// is opened.
    fn wrapped(&self, path: &Path, file: Arc<dyn VfsFile>) -> Arc<dyn VfsFile> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.ends_with(".log") || name.starts_with("SYNCED") { self.log.file(file) } else { file }
    }
}

impl<D: Device> Vfs for Files<D> {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        Ok(self.wrapped(path, self.system.create_new(path)?))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn VfsFile>> {
        Ok(self.wrapped(path, self.system.open(path, access)?))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.system.create_dir(path)
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<(String, FileKind)>> {
        self.system.read_dir(path)
    }

    fn kind(&self, path: &Path) -> io::Result<Option<FileKind>> {
        self.system.kind(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.system.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.system.remove_file(path)
    }

    fn remove_file_lazily(&self, path: &Path) -> io::Result<()> {
        self.system.remove_file_lazily(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.system.remove_dir(path)
    }

    fn hard_link(&self, existing: &Path, new: &Path) -> io::Result<()> {
        self.system.hard_link(existing, new)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.system.sync_dir(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Debug + Send + Sync>> {
        self.system.lock(path)
    }

    fn sync_many(&self, files: &[Arc<dyn VfsFile>]) -> Vec<io::Result<()>> {
        self.system.sync_many(files)
    }

    fn parallel(&self) -> bool {
        self.system.parallel()
    }

    fn now_ns(&self) -> u64 {
        self.system.now_ns()
    }

    fn random_u64(&self) -> u64 {
        self.system.random_u64()
    }
}

/// Takes every write at once, and keeps nothing but how long a file would be. Syncs are answered when they are asked to be;
/// writes wait while the way to it is shut.
#[derive(Debug, Default)]
pub struct Nothing {
    answered_after: Duration,
    way: Mutex<Way>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Way {
    shut: bool,
    /// Writes that wait.
    waiting: usize,
}

impl Nothing {
    /// One that takes its time for each sync, however many bytes it is of.
    pub fn answering_after(time: Duration) -> Self {
        Self { answered_after: time, ..Self::default() }
    }

    fn way(&self) -> MutexGuard<'_, Way> {
        self.way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has writes wait from here on.
    pub fn shut(&self) {
        self.way().shut = true;
    }

    /// Returns when a write waits.
    pub fn wait_for_a_write(&self) {
        let way = self.changed.wait_while(self.way(), |way| way.waiting == 0);
        drop(way.unwrap_or_else(PoisonError::into_inner));
    }

    /// Lets all writes go on.
    pub fn open(&self) {
        self.way().shut = false;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut way = self.way();
        if way.shut {
            way.waiting += 1;
            self.changed.notify_all();
            way = self.changed.wait_while(way, |way| way.shut).unwrap_or_else(PoisonError::into_inner);
            way.waiting -= 1;
        }
    }
}

impl Device for Nothing {
    fn file(self: &Arc<Self>, _: Arc<dyn VfsFile>) -> Arc<dyn VfsFile> {
        Arc::new(Discarded { len: AtomicU64::new(0), device: Arc::clone(self) })
    }
}

#[derive(Debug)]
struct Discarded {
    len: AtomicU64,
    device: Arc<Nothing>,
}

impl VfsFile for Discarded {
    /// Zeros would be taken for a log in which nothing is.
    fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "what was written here was not kept"))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        self.device.pass();
        self.len.fetch_max(offset.saturating_add(buf.len() as u64), Ordering::Relaxed);
        Ok(buf.len())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.len.load(Ordering::Relaxed))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.len.store(len, Ordering::Relaxed);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        if !self.device.answered_after.is_zero() {
            std::thread::sleep(self.device.answered_after);
        }
        Ok(())
    }
}

/// What a slow device does at best.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From when it has the bytes of a sync until it says so.
    pub delay: Duration,
    pub bytes_per_second: f64,
}

/// A device that takes the bytes of one sync after the other, and answers each of them late. As fast as the real one until
/// it has limits.
#[derive(Debug, Default)]
pub struct Slow(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    limits: Option<Limits>,
    /// From then on it takes the bytes of the next sync.
    free: Option<Instant>,
    /// Until then there is a sync that it has not answered.
    busy: Option<Instant>,
    idle: Duration,
}

impl Slow {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets limits that begin now.
    pub fn set(&self, limits: Limits) {
        let now = Some(Instant::now());
        *self.queue() = Queue { limits: Some(limits), free: now, busy: now, idle: Duration::ZERO };
    }

    /// How long it had nothing to do, since its limits were set.
    pub fn idle(&self) -> Duration {
        self.queue().idle
    }

    /// When a sync of so many bytes is done that begins now.
    fn done(&self, bytes: u64) -> Option<Instant> {
        let mut queue = self.queue();
        let Limits { delay, bytes_per_second } = queue.limits?;
        let now = Instant::now();
        let idle = queue.busy.map_or(Duration::ZERO, |busy| now.saturating_duration_since(busy));
        queue.idle += idle;
        let taken =
            queue.free.unwrap_or(now).max(now) + Duration::from_secs_f64(bytes as f64 / bytes_per_second);
        let done = taken + delay;
        (queue.free, queue.busy) = (Some(taken), queue.busy.max(Some(done)));
        Some(done)
    }
}

impl Device for Slow {
    fn file(self: &Arc<Self>, file: Arc<dyn VfsFile>) -> Arc<dyn VfsFile> {
        Arc::new(Slowed { file, device: Arc::clone(self) })
    }
}

#[derive(Debug)]
struct Slowed {
    file: Arc<dyn VfsFile>,
    device: Arc<Slow>,
}

impl VfsFile for Slowed {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        self.file.write_at(buf, offset)
    }

    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    /// What the real device takes is part of the time.
    fn sync_data(&self) -> io::Result<()> {
        let done = self.device.done(self.file.unsynced_bytes());
        self.file.sync_data()?;
        if let Some(done) = done {
            std::thread::sleep(done.saturating_duration_since(Instant::now()));
        }
        Ok(())
    }

    fn unsynced_bytes(&self) -> u64 {
        self.file.unsynced_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use laminar_storage::{Opened, Store};

    fn put_one(log: Arc<impl Device + 'static>) {
        let dir = tempfile::tempdir().unwrap();
        let builder = Store::builder(dir.path()).cores(2).vfs(Arc::new(Files::new(log)));
        let Opened { store, mut cores, .. } = builder.open().unwrap();
        cores[0].put(b"key", b"value").unwrap();
        let epochs: Vec<_> = cores.iter_mut().map(|core| core.seal_epoch().unwrap()).collect();
        store.wait_durable(epochs[0]).unwrap();
        let written = std::fs::read_dir(dir.path().join("wal")).unwrap().map(|entry| entry.unwrap());
        let segments = written.filter(|entry| entry.path().extension().is_some_and(|name| name == "log"));
        assert_eq!(segments.count(), 2);
        drop(cores);
        store.close().unwrap();
    }

    #[test]
    fn a_store_works_on_every_device() {
        put_one(Arc::new(Nothing::default()));
        put_one(Arc::new(Nothing::answering_after(Duration::from_millis(1))));
        put_one(Arc::new(Slow::default()));
    }

    #[test]
    fn what_is_written_while_the_way_is_shut_waits() {
        let log = Arc::new(Nothing::default());
        let file = log.file(Arc::new(Discarded { len: AtomicU64::new(0), device: Arc::default() }));
        log.shut();
        std::thread::scope(|scope| {
            let write = scope.spawn(|| file.write_at(b"waits", 0));
            log.wait_for_a_write();
            assert_eq!(file.size().unwrap(), 0);
            log.open();
            assert_eq!(write.join().unwrap().unwrap(), 5);
        });
        assert_eq!(file.size().unwrap(), 5);
    }

    #[test]
    fn a_slow_device_takes_one_after_the_other_and_answers_late() {
        let (device, delay) = (Slow::default(), Duration::from_millis(5));
        assert_eq!(device.done(1000), None);
        let began = Instant::now();
        device.set(Limits { delay, bytes_per_second: 1000.0 });
        let [first, second] = [1000, 2000].map(|bytes| device.done(bytes).unwrap());
        assert!(first >= began + delay + Duration::from_secs(1));
        assert_eq!(second - first, Duration::from_secs(2));
    }
}
