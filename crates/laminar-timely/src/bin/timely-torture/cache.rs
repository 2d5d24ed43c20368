//! A file system that keeps what was written and not synced in the memory of the process, so that killing the process loses
//! exactly that, as cutting the power would, and takes note of names that are not durable, for the same; whose syncs take a while;
//! and that may fail.

use std::collections::HashMap;
use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use laminar_storage::vfs::{Access, FileKind, OsVfs, Vfs, VfsFile, write_all_at};

use crate::failing::{Operation, Trouble};
use crate::model::mix;
use crate::names::Names;
use crate::phases::Phase;

/// Writes of one file that are not on the disk, in order.
type Pending = Arc<Mutex<Vec<(u64, Vec<u8>)>>>;

#[derive(Debug)]
pub struct Cache {
    disk: OsVfs,
    names: Names,
    /// By path: several handles of one file see the same.
    pending: Mutex<HashMap<PathBuf, Pending>>,
    seed: u64,
    syncs: AtomicU64,
    longest_us: u64,
    opening: Duration,
    trouble: Arc<Trouble>,
    /// The state was looked at, which is what a process does first when it is connected.
    looked: AtomicBool,
}

#[derive(Debug)]
struct CachedFile {
    disk: Arc<dyn VfsFile>,
    /// Where to write through, when `disk` is only for reading.
    path: PathBuf,
    access: Access,
    pending: Pending,
    delay: Duration,
    trouble: Arc<Trouble>,
}

impl Cache {
    /// A sync takes up to `longest_us` microseconds longer, and opening a store so much.
    pub fn new(names: Names, seed: u64, longest_us: u64, opening: Duration) -> Self {
        let syncs = AtomicU64::new(0);
        let (pending, trouble) = (Mutex::default(), Arc::default());
        let looked = AtomicBool::new(false);
        Self { disk: OsVfs::new(), names, pending, seed, syncs, longest_us, opening, trouble, looked }
    }

    /// Its logs fail when this says so.
    pub fn with(mut self, trouble: &Arc<Trouble>) -> Self {
        self.trouble = Arc::clone(trouble);
        self
    }

    fn file(&self, path: &Path, access: Access, disk: Arc<dyn VfsFile>) -> Arc<dyn VfsFile> {
        let pending = Arc::clone(lock(&self.pending).entry(path.to_path_buf()).or_default());
        let (delay, trouble) = (self.delay(), Arc::clone(&self.trouble));
        Arc::new(CachedFile { disk, path: path.to_path_buf(), access, pending, delay, trouble })
    }

    /// How much longer the next sync takes.
    fn delay(&self) -> Duration {
        let number = self.syncs.fetch_add(1, Ordering::Relaxed);
        Duration::from_micros(mix(self.seed ^ number) % self.longest_us.max(1))
    }

    /// What is about to get a second name is written, though not synced.
    fn settle(&self, path: &Path) -> io::Result<()> {
        let pending = lock(&self.pending).get(path).cloned();
        pending.map_or(Ok(()), |pending| write_through(&pending, path))
    }
}

/// Writes what is pending of the file at `path`.
fn write_through(pending: &Pending, path: &Path) -> io::Result<()> {
    let mut pending = lock(pending);
    if pending.is_empty() {
        return Ok(());
    }
    let file = OsVfs::new().open(path, Access::ReadWrite)?;
    pending.drain(..).try_for_each(|(offset, bytes)| write_all_at(file.as_ref(), &bytes, offset))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl CachedFile {
    fn write_out(&self) -> io::Result<()> {
        if self.access == Access::Read {
            return write_through(&self.pending, &self.path);
        }
        let mut pending = lock(&self.pending);
        pending.drain(..).try_for_each(|(offset, bytes)| write_all_at(self.disk.as_ref(), &bytes, offset))
    }
}

impl VfsFile for CachedFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        // Whoever reads sees what was written; from then on it is on its way to the disk.
        self.write_out()?;
        self.disk.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        self.trouble.strikes(Operation::Write, &self.path)?;
        lock(&self.pending).push((offset, buf.to_vec()));
        Ok(buf.len())
    }

    fn size(&self) -> io::Result<u64> {
        let written = lock(&self.pending).iter().map(|(offset, bytes)| offset + bytes.len() as u64).max();
        Ok(self.disk.size()?.max(written.unwrap_or(0)))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.write_out()?;
        self.disk.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        thread::sleep(self.delay);
        if let Err(error) = self.trouble.strikes(Operation::Sync, &self.path) {
            // What was not written is gone, and a second sync would know nothing of it, as with Linux.
            lock(&self.pending).clear();
            return Err(error);
        }
        self.write_out()?;
        self.disk.sync_data()
    }
}

impl Vfs for Cache {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        lock(&self.pending).remove(path);
        let disk = self.names.create(path, || self.disk.create_new(path))?;
        self.trouble.may_die(path);
        Ok(self.file(path, Access::ReadWrite, disk))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn VfsFile>> {
        Ok(self.file(path, access, self.disk.open(path, access)?))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("generation-") && name != "generation-00000001" {
            Phase::Distributing.begins();
        }
        self.names.create(path, || self.disk.create_dir(path))?;
        self.trouble.may_die(path);
        Ok(())
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<(String, FileKind)>> {
        if path.ends_with("state") && !self.looked.swap(true, Ordering::Relaxed) {
            Phase::Recovering.begins();
        }
        self.disk.read_dir(path)
    }

    fn kind(&self, path: &Path) -> io::Result<Option<FileKind>> {
        self.disk.kind(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.names.rename(from, to, || self.disk.rename(from, to))?;
        let mut pending = lock(&self.pending);
        let moved = pending.remove(from).unwrap_or_default();
        pending.insert(to.to_path_buf(), moved);
        self.trouble.may_die(to);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        lock(&self.pending).remove(path);
        self.names.remove_file(path, || self.disk.remove_file(path))?;
        self.trouble.may_die(path);
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.names.remove_dir(path, || self.disk.remove_dir(path))?;
        self.trouble.may_die(path);
        Ok(())
    }

    fn hard_link(&self, existing: &Path, new: &Path) -> io::Result<()> {
        self.settle(existing)?;
        self.names.create(new, || self.disk.hard_link(existing, new))?;
        self.trouble.may_die(new);
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        thread::sleep(self.delay());
        self.names.sync(path, || self.disk.sync_dir(path))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Debug + Send + Sync>> {
        if path.ends_with("wal/LOCK") {
            thread::sleep(self.opening);
        }
        self.disk.lock(path)
    }

    fn now_ns(&self) -> u64 {
        self.disk.now_ns()
    }

    fn random_u64(&self) -> u64 {
        self.disk.random_u64()
    }
}
