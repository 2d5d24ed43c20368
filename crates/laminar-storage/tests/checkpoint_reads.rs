//! What a checkpoint reads of the log: what was appended since the one before, once, and not the segments
//! around it. And that it still notices when the log was changed by somebody else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use laminar_storage::vfs::sim::SimDisk;
use laminar_storage::vfs::{Access, FileKind, Vfs, VfsFile};
use laminar_storage::{CoreStore, Opened, Settings, Store, StoreError};

const DIR: &str = "/store";

/// A disk that counts what is read of the log.
#[derive(Clone, Debug)]
struct Counting {
    disk: SimDisk,
    read: Arc<AtomicU64>,
}

#[derive(Debug)]
struct CountingFile {
    file: Arc<dyn VfsFile>,
    read: Arc<AtomicU64>,
}

impl Counting {
    fn new(seed: u64) -> Self {
        Self { disk: SimDisk::new(seed), read: Arc::default() }
    }

    /// Bytes read of the log since the last call.
    fn read(&self) -> u64 {
        self.read.swap(0, Ordering::Relaxed)
    }

    fn wrap(&self, path: &Path, file: Arc<dyn VfsFile>) -> Arc<dyn VfsFile> {
        if path.extension().is_some_and(|extension| extension == "log") {
            return Arc::new(CountingFile { file, read: Arc::clone(&self.read) });
        }
        file
    }
}

impl VfsFile for CountingFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let n = self.file.read_at(buf, offset)?;
        self.read.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
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
        self.file.sync_data()
    }
}

impl Vfs for Counting {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        Ok(self.wrap(path, self.disk.create_new(path)?))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn VfsFile>> {
        Ok(self.wrap(path, self.disk.open(path, access)?))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir(path)
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<(String, FileKind)>> {
        self.disk.read_dir(path)
    }

    fn kind(&self, path: &Path) -> io::Result<Option<FileKind>> {
        self.disk.kind(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_dir(path)
    }

    fn hard_link(&self, existing: &Path, new: &Path) -> io::Result<()> {
        self.disk.hard_link(existing, new)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.sync_dir(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn std::fmt::Debug + Send + Sync>> {
        self.disk.lock(path)
    }

    fn parallel(&self) -> bool {
        false
    }

    fn now_ns(&self) -> u64 {
        self.disk.now_ns()
    }

    fn random_u64(&self) -> u64 {
        self.disk.random_u64()
    }
}

fn open(disk: &Counting, cores: usize, segment_bytes: u64) -> Opened {
    let settings = Settings { segment_bytes, preallocate_bytes: 0, ..Settings::default() };
    Store::builder(DIR).cores(cores).settings(settings).vfs(Arc::new(disk.clone())).open().unwrap()
}

/// Puts `count` values of 1000 bytes on every core, and waits until they are durable.
fn put(store: &Store, cores: &mut [CoreStore], from: u32, count: u32) {
    for core in cores.iter_mut() {
        for key in from..from + count {
            core.put(&key.to_be_bytes(), &[0x5a; 1000]).unwrap();
        }
    }
    let epoch = cores.iter_mut().map(|core| core.seal_epoch().unwrap()).last().unwrap();
    store.wait_durable(epoch).unwrap();
}

#[test]
fn a_checkpoint_reads_what_changed_once_and_not_its_whole_segment() {
    for cores in [1, 2] {
        let disk = Counting::new(1);
        let Opened { store, cores: mut halves, .. } = open(&disk, cores, 64 << 20);
        put(&store, &mut halves, 0, 4000);
        disk.read();
        store.checkpoint().unwrap();
        let (all, log) = (disk.read(), store.stats().wal_bytes);
        assert!(log > 4_000_000 * cores as u64, "{log} bytes of log");
        assert!(all >= log && all < log + log / 8, "the first reads everything once: {all} of {log} bytes");
        for round in 0..5 {
            let before = store.stats().wal_bytes;
            put(&store, &mut halves, 4000 + round, 10);
            let grown = store.stats().wal_bytes - before;
            assert_eq!(store.checkpoint().unwrap().changes, 10 * cores as u64);
            let read = disk.read();
            assert!(read < grown + 4096 * cores as u64, "{read} bytes read, {grown} written");
            assert_eq!(store.stats().wal_bytes_behind, 0);
            put(&store, &mut halves, 0, 1);
            assert!(store.stats().wal_bytes_behind > 0);
            store.checkpoint().unwrap();
            disk.read();
        }
        store.close().unwrap();
    }
}

/// The place where it goes on is found again behind segments that were closed in between.
#[test]
fn a_checkpoint_reads_on_over_the_ends_of_segments() {
    let disk = Counting::new(1);
    let Opened { store, cores: mut halves, .. } = open(&disk, 2, 16 << 10);
    let mut keys = 0;
    for round in 0..12_u32 {
        let before = store.stats().wal_bytes;
        put(&store, &mut halves, keys, 5 + round * 7);
        keys += 5 + round * 7;
        disk.read();
        let receipt = store.checkpoint().unwrap();
        assert_eq!(receipt.changes, u64::from(2 * (5 + round * 7)));
        let (read, grown) = (disk.read(), store.stats().wal_bytes - before);
        // A header of 128 bytes or so for every segment, for reading on and for cutting the log.
        assert!(read < grown + grown / 8 + 4096, "{read} bytes read, {grown} written");
    }
    drop(halves);
    store.close().unwrap();
    let Opened { store, cores, report } = open(&disk, 2, 16 << 10);
    assert_eq!(cores.iter().map(CoreStore::len).sum::<usize>(), 2 * keys as usize);
    assert_eq!(report.cores.iter().map(|core| core.replayed).sum::<u64>(), 0);
    store.close().unwrap();
}

/// Recovery has surveyed what the first checkpoint needs: it reads it once, and from where the checkpoint
/// before ends.
#[test]
fn the_first_checkpoint_after_opening_reads_what_recovery_replayed_once() {
    let disk = Counting::new(1);
    let Opened { store, cores: mut halves, .. } = open(&disk, 1, 64 << 20);
    put(&store, &mut halves, 0, 4000);
    store.checkpoint().unwrap();
    put(&store, &mut halves, 0, 100);
    drop(halves);
    store.close().unwrap();
    let Opened { store, cores: mut halves, report } = open(&disk, 1, 64 << 20);
    assert_eq!(report.cores[0].replayed, 100);
    let replayed = report.cores[0].replayed_bytes;
    assert!(replayed > 100_000 && replayed < 110_000, "{replayed}");
    assert_eq!(store.stats().wal_bytes_behind, replayed);
    put(&store, &mut halves, 100, 10);
    disk.read();
    assert_eq!(store.checkpoint().unwrap().changes, 110);
    let read = disk.read();
    assert!(read < replayed + 20_000, "{read} bytes read, {replayed} of them from before");
    store.close().unwrap();
}

/// The segment in use: the newest one.
fn newest_segment(disk: &Counting) -> PathBuf {
    let wal = Path::new(DIR).join("wal");
    let names = disk.read_dir(&wal).unwrap().into_iter().map(|(name, _)| name);
    wal.join(names.filter(|name| name.ends_with(".log")).max().unwrap())
}

fn refused(store: &Store) -> String {
    let error = store.checkpoint().unwrap_err();
    assert!(matches!(error, StoreError::Corruption(_)), "{error}");
    assert!(!store.health().is_running());
    error.to_string()
}

#[test]
fn a_log_that_was_cut_off_is_noticed() {
    let disk = Counting::new(1);
    let Opened { store, cores: mut halves, .. } = open(&disk, 1, 64 << 20);
    put(&store, &mut halves, 0, 100);
    store.checkpoint().unwrap();
    let file = disk.open(&newest_segment(&disk), Access::ReadWrite).unwrap();
    let before = file.size().unwrap();
    put(&store, &mut halves, 0, 100);
    put(&store, &mut halves, 0, 100);
    let after = file.size().unwrap();
    for len in [after - 1, after - 4096, before] {
        file.set_len(len).unwrap();
        let error = refused(&store);
        assert!(error.contains("the log on disk ends with epoch"), "{len} of {after}: {error}");
    }
}

#[test]
fn a_changed_byte_behind_the_last_checkpoint_is_noticed_and_the_next_attempt_reads_again() {
    let disk = Counting::new(1);
    let Opened { store, cores: mut halves, .. } = open(&disk, 1, 64 << 20);
    put(&store, &mut halves, 0, 100);
    store.checkpoint().unwrap();
    let file = disk.open(&newest_segment(&disk), Access::ReadWrite).unwrap();
    let before = file.size().unwrap();
    put(&store, &mut halves, 100, 100);
    put(&store, &mut halves, 200, 100);
    let mut byte = [0];
    file.read_at(&mut byte, before + 5000).unwrap();
    file.write_at(&[byte[0] ^ 1], before + 5000).unwrap();
    let error = refused(&store);
    assert!(error.contains("case E") || error.contains("ends with epoch"), "{error}");
    file.write_at(&byte, before + 5000).unwrap();
    assert_eq!(store.checkpoint().unwrap().changes, 200);
    assert!(store.health().is_running());
    drop(halves);
    store.close().unwrap();
    let Opened { store, cores, .. } = open(&disk, 1, 64 << 20);
    assert_eq!(cores[0].len(), 300);
    store.close().unwrap();
}

#[test]
fn a_segment_that_is_gone_or_another_one_is_noticed() {
    let disk = Counting::new(1);
    let Opened { store, cores: mut halves, .. } = open(&disk, 1, 64 << 20);
    put(&store, &mut halves, 0, 100);
    store.checkpoint().unwrap();
    put(&store, &mut halves, 0, 100);
    let (path, aside) = (newest_segment(&disk), Path::new(DIR).join("aside"));
    disk.rename(&path, &aside).unwrap();
    refused(&store);
    // A segment of another store, under this one's name.
    let other = Counting::new(2);
    let opened = open(&other, 1, 64 << 20);
    drop(opened);
    let (from, to) =
        (other.open(&newest_segment(&other), Access::Read).unwrap(), disk.create_new(&path).unwrap());
    let mut bytes = vec![0; usize::try_from(from.size().unwrap()).unwrap()];
    from.read_at(&mut bytes, 0).unwrap();
    bytes.resize(usize::try_from(disk.open(&aside, Access::Read).unwrap().size().unwrap()).unwrap(), 0);
    to.write_at(&bytes, 0).unwrap();
    refused(&store);
    disk.remove_file(&path).unwrap();
    disk.rename(&aside, &path).unwrap();
    assert_eq!(store.checkpoint().unwrap().changes, 100);
}
