//! The operating system: files, directories, locks, clock and randomness.
//!
//! Files are created with mode 0600 and directories with 0700, are closed on `exec`, and a symbolic
//! link is never followed to a file, nor is anything but a regular file ever opened. Several files
//! are made durable at the same time by a few threads that wait for work, where that is faster than one after
//! another, which is found out on the way.

use std::fmt::Debug;
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags};

use super::{Access, FileKind, Vfs, VfsFile};
use crate::sabotage::{Sabotage, sabotaged};

mod closer;
mod pool;
mod strategy;
#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests;

/// The operating system's files and clock. Clones share one set of sync threads, which end with
/// the last clone.
#[derive(Clone, Debug, Default)]
pub struct OsVfs {
    pool: Arc<pool::SyncPool>,
    closer: Arc<closer::Closer>,
}

impl OsVfs {
    /// The operating system. Starts no thread: those come with the first [`Vfs::sync_many`] of
    /// more than one file.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

/// An open file of the operating system.
#[derive(Debug)]
struct OsFile {
    file: File,
    unsynced: AtomicU64,
}

impl OsFile {
    fn of(file: File) -> Arc<dyn VfsFile> {
        Arc::new(Self { file, unsynced: AtomicU64::new(0) })
    }
}

impl VfsFile for OsFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        let taken = self.file.write_at(buf, offset)?;
        self.unsynced.fetch_add(taken as u64, Ordering::Relaxed);
        Ok(taken)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        // Before it: what is written meanwhile may be left.
        self.unsynced.store(0, Ordering::Relaxed);
        self.file.sync_data()
    }

    fn unsynced_bytes(&self) -> u64 {
        self.unsynced.load(Ordering::Relaxed)
    }
}

/// Opens without following a symbolic link in the last component, and only a regular file.
fn open_regular(path: &Path, flags: OFlags) -> io::Result<File> {
    // NONBLOCK so that a FIFO put in our way cannot hang the open; it means nothing to regular files.
    let mut flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    if sabotaged(Sabotage::SymlinkFollowed) {
        flags.remove(OFlags::NOFOLLOW);
    }
    let file = File::from(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?);
    let kind = file.metadata()?.file_type();
    if kind.is_file() {
        Ok(file)
    } else if kind.is_dir() {
        Err(io::ErrorKind::IsADirectory.into())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
    }
}

fn kind_of(metadata: &std::fs::Metadata) -> FileKind {
    let kind = metadata.file_type();
    if kind.is_file() {
        FileKind::File { len: metadata.len() }
    } else if kind.is_dir() {
        FileKind::Dir
    } else {
        FileKind::Other
    }
}

impl Vfs for OsVfs {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        Ok(OsFile::of(open_regular(path, flags)?))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn VfsFile>> {
        let flags = match access {
            Access::Read => OFlags::RDONLY,
            Access::ReadWrite => OFlags::RDWR,
        };
        Ok(OsFile::of(open_regular(path, flags)?))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::DirBuilder::new().mode(0o700).create(path)
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<(String, FileKind)>> {
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            match entry.metadata() {
                Ok(metadata) => entries.push((name, kind_of(&metadata))),
                // Removed between the listing and the look at it: it is not there.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        entries.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Ok(entries)
    }

    fn kind(&self, path: &Path) -> io::Result<Option<FileKind>> {
        match std::fs::symlink_metadata(path) {
            Ok(metadata) => Ok(Some(kind_of(&metadata))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    /// A file's blocks and its pages in memory are given back when nothing has it open any more, which takes
    /// tens of milliseconds for a large one. So it is held open while its name goes.
    fn remove_file_lazily(&self, path: &Path) -> io::Result<()> {
        let held = rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
        std::fs::remove_file(path)?;
        if let Ok(held) = held {
            self.closer.close_later(held);
        }
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir(path)
    }

    fn hard_link(&self, existing: &Path, new: &Path) -> io::Result<()> {
        std::fs::hard_link(existing, new)
    }

    /// A symbolic link to a directory is followed here: a store may well live below one, and what
    /// is synced is the directory that the entries really are in.
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        File::from(rustix::fs::open(path, flags, Mode::empty())?).sync_all()
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Debug + Send + Sync>> {
        let file = match open_regular(path, OFlags::RDWR | OFlags::CREATE) {
            // Where nothing can be written, a lock file that is there will do: opening fails later, and says why.
            Err(e) if e.kind() == io::ErrorKind::ReadOnlyFilesystem => open_regular(path, OFlags::RDONLY)?,
            other => other?,
        };
        match file.try_lock() {
            Ok(()) => Ok(Box::new(file)),
            Err(TryLockError::WouldBlock) if sabotaged(Sabotage::LockIgnored) => Ok(Box::new(file)),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }

    fn sync_many(&self, files: &[Arc<dyn VfsFile>]) -> Vec<io::Result<()>> {
        self.pool.sync(files)
    }

    fn now_ns(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    fn random_u64(&self) -> u64 {
        use rustix::rand::{GetRandomFlags, getrandom};
        let mut bytes = [0_u8; 8];
        match getrandom(&mut bytes, GetRandomFlags::empty()) {
            Ok(8) => u64::from_le_bytes(bytes),
            // A kernel that refuses: the standard library's hasher keys are random as well.
            _ => {
                use std::hash::{BuildHasher, RandomState};
                RandomState::new().hash_one(self.now_ns())
            }
        }
    }
}
