//! A device that does not answer any more: what is put meanwhile waits for as long as it was told to, and not for ever.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};

use laminar_storage::vfs::{Access, FileKind, OsVfs, Vfs, VfsFile};
use laminar_storage::{CoreStore, Opened, Settings, Store, StoreError};

/// Syncs of the log wait while it is shut.
#[derive(Debug, Default)]
struct Gate {
    shut: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn set(&self, shut: bool) {
        *self.shut.lock().unwrap() = shut;
        self.opened.notify_all();
    }

    fn pass(&self) {
        drop(self.opened.wait_while(self.shut.lock().unwrap(), |shut| *shut).unwrap());
    }
}

struct OpenedAtTheEnd<'a>(&'a Gate);

impl Drop for OpenedAtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

#[derive(Debug)]
struct Device {
    files: OsVfs,
    gate: Arc<Gate>,
}

#[derive(Debug)]
struct File {
    file: Arc<dyn VfsFile>,
    gate: Arc<Gate>,
}

impl Device {
    fn wrap(&self, path: &Path, file: Arc<dyn VfsFile>) -> Arc<dyn VfsFile> {
        if path.extension().is_some_and(|extension| extension == "log") {
            return Arc::new(File { file, gate: Arc::clone(&self.gate) });
        }
        file
    }
}

impl VfsFile for File {
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
    fn sync_data(&self) -> io::Result<()> {
        self.gate.pass();
        self.file.sync_data()
    }
}

impl Vfs for Device {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        Ok(self.wrap(path, self.files.create_new(path)?))
    }
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn VfsFile>> {
        Ok(self.wrap(path, self.files.open(path, access)?))
    }
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.files.create_dir(path)
    }
    fn read_dir(&self, path: &Path) -> io::Result<Vec<(String, FileKind)>> {
        self.files.read_dir(path)
    }
    fn kind(&self, path: &Path) -> io::Result<Option<FileKind>> {
        self.files.kind(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.files.rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.files.remove_file(path)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.files.remove_dir(path)
    }
    fn hard_link(&self, existing: &Path, new: &Path) -> io::Result<()> {
        self.files.hard_link(existing, new)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.files.sync_dir(path)
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Debug + Send + Sync>> {
        self.files.lock(path)
    }
    fn parallel(&self) -> bool {
        self.files.parallel()
    }
    fn now_ns(&self) -> u64 {
        self.files.now_ns()
    }
    fn random_u64(&self) -> u64 {
        self.files.random_u64()
    }
}

/// `put_batch` looked for room in the ring, where there was some, in place of room in the state, where there was none
/// before the device went on; so it began anew each time, with a new timeout. Found by reading.
#[test]
fn putting_into_a_full_state_beside_a_hung_device_ends() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Arc::<Gate>::default();
    let settings = Settings { state_limit_bytes: 4 << 20, put_timeout_ms: 20, ..Settings::default() };
    let device = Device { files: OsVfs::new(), gate: Arc::clone(&gate) };
    let builder = Store::builder(dir.path()).settings(settings).vfs(Arc::new(device));
    let Opened { store, mut cores, .. } = builder.open().unwrap();
    let core = &mut cores[0];
    let value = vec![1; 20_000];
    for key in 0..16_u8 {
        core.put(&[key], &value).unwrap();
    }
    let epoch = core.seal_epoch().unwrap();
    store.wait_durable(epoch).unwrap();

    gate.set(true);
    // Were an assertion to fail, the store could not be closed before the device goes on.
    let _opened = OpenedAtTheEnd(&gate);
    core.seal_epoch().unwrap();
    // What is replaced is given back once it is in the log, which nothing gets into any more as soon as Ring 1 syncs: it takes
    // what comes meanwhile first, up to a bound, which 2,000 puts were not always beyond.
    let put =
        |core: &mut CoreStore| (0..1_000_000).find_map(|n: u32| core.put(&[(n % 16) as u8], &value).err());
    assert!(matches!(put(core), Some(StoreError::StateFull(_) | StoreError::Backpressure(_))));
    let pairs: Vec<_> = (0..16_u8).map(|key| ([key], &value)).collect();
    let batch = |core: &mut CoreStore| (0..200).find_map(|_| core.put_batch(&pairs).err());
    assert!(matches!(batch(core), Some(StoreError::StateFull(_) | StoreError::Backpressure(_))));

    gate.set(false);
    let epoch = core.seal_epoch().unwrap();
    store.wait_durable(epoch).unwrap();
    core.put_batch(&pairs).unwrap();
    drop(cores);
    store.close().unwrap();
}

/// There were 32 epochs at most to a sync, however many waited: with small epochs a device that takes long for a sync was used
/// for a small part of what it can do.
#[test]
fn all_epochs_that_waited_for_the_device_share_its_next_sync() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Arc::<Gate>::default();
    let device = Device { files: OsVfs::new(), gate: Arc::clone(&gate) };
    let Opened { store, mut cores, .. } = Store::builder(dir.path()).vfs(Arc::new(device)).open().unwrap();
    let core = &mut cores[0];
    let before = store.stats().syncs;
    let opened_at_the_end = OpenedAtTheEnd(&gate);
    gate.set(true);
    let mut last = store.durable_epoch();
    for key in 0..1000_u32 {
        core.put(&key.to_le_bytes(), b"a value").unwrap();
        last = core.seal_epoch().unwrap();
    }
    drop(opened_at_the_end);
    store.wait_durable(last).unwrap();
    // That which waited, unless Ring 1 had not begun yet, and that of all the others.
    assert!((1..=2).contains(&(store.stats().syncs - before)), "{:?}", store.stats());
    drop(cores);
    store.close().unwrap();
}
