//! The outside world: every file operation, the clock and randomness go through [`Vfs`].
//!
//! Two implementations exist. [`OsVfs`] is the operating system. [`sim::SimDisk`] is a disk in
//! memory that forgets, tears and reorders whatever was not synced, exactly as POSIX permits; the
//! crash tests run the production code on it. Because there is no other way to the disk, what those
//! tests prove holds for the code that ships.
//!
//! It is not a general file-system layer: it has the operations the engine needs and no others.
//!
//! # Rules for implementations
//! 1. `write_at` and `read_at` may be short, and may fail with `Interrupted`; the helpers
//!    [`write_all_at`] and [`read_exact_at`] deal with both.
//! 2. `sync_data` makes the file's bytes and size durable, not its directory entry; [`Vfs::sync_dir`]
//!    makes the entries of one directory durable.
//! 3. After a failed sync nothing may be assumed about the bytes written before it; callers poison
//!    themselves and never sync again.

use crate::sabotage::{Sabotage, sabotaged};
use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod os;
pub mod sim;

pub use os::OsVfs;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading only; works on a read-only file system.
    Read,
    /// Reading and writing of an existing file.
    ReadWrite,
}

/// What a directory entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file of that many bytes.
    File {
        /// Length in bytes.
        len: u64,
    },
    /// A directory.
    Dir,
    /// Anything else: a symbolic link, a socket, … The engine never follows or opens these.
    Other,
}

/// An open file. Dropping it closes it.
pub trait VfsFile: Debug + Send + Sync {
    /// Reads at an offset; returns how many bytes, 0 at the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes at an offset, extending the file when needed; returns how many bytes were taken.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize>;
    /// Current length in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Cuts or extends (with zeros) to a length.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes bytes and size durable.
    fn sync_data(&self) -> io::Result<()>;
    /// Bytes written through this handle since its last sync began, failed or not; 0 where nobody counts. No more than a hint for
    /// [`Vfs::sync_many`]: a file that wraps another should forward it.
    fn unsynced_bytes(&self) -> u64 {
        0
    }
}

/// The outside world as the engine sees it.
pub trait Vfs: Debug + Send + Sync {
    /// Creates a file that must not exist, for reading and writing, private to the user.
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>>;
    /// Opens an existing regular file; a symbolic link is an error.
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn VfsFile>>;
    /// Creates one directory, private to the user; its parent must exist.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Names and kinds of a directory's entries, sorted by name. Names that are not Unicode are
    /// left out: the engine never wrote them.
    fn read_dir(&self, path: &Path) -> io::Result<Vec<(String, FileKind)>>;
    /// What stands at a path, `None` when nothing does.
    fn kind(&self, path: &Path) -> io::Result<Option<FileKind>>;
    /// Renames atomically, replacing a file (or an empty directory) at the target.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// As [`Self::remove_file`], where nobody waits for the room: it may be free only a little later.
    fn remove_file_lazily(&self, path: &Path) -> io::Result<()> {
        self.remove_file(path)
    }
    /// Removes an empty directory.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes a second name for an existing file.
    fn hard_link(&self, existing: &Path, new: &Path) -> io::Result<()>;
    /// Makes the entries of one directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Takes the exclusive lock that a lock file stands for, creating the file when missing. Fails
    /// with `WouldBlock` when somebody holds it. Dropping the guard, or dying, releases it; the
    /// file itself is never removed.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Debug + Send + Sync>>;
    /// Syncs several files, in parallel where that pays; one result per file, in order.
    fn sync_many(&self, files: &[Arc<dyn VfsFile>]) -> Vec<io::Result<()>> {
        files.iter().map(|file| file.sync_data()).collect()
    }
    /// May several threads use it at once? A simulation says no, to stay deterministic.
    fn parallel(&self) -> bool {
        true
    }
    /// Wall clock, nanoseconds since the Unix epoch. Never used to order or to decide, only to label.
    fn now_ns(&self) -> u64;
    /// A random number, for identities.
    fn random_u64(&self) -> u64;
}

/// Writes all of `buf` at `offset`, whatever short writes and interruptions come.
///
/// # Errors
/// The first error other than `Interrupted`; `WriteZero` when the file takes nothing any more.
pub fn write_all_at(file: &dyn VfsFile, mut buf: &[u8], mut offset: u64) -> io::Result<()> {
    while !buf.is_empty() {
        match file.write_at(buf, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(_) if sabotaged(Sabotage::ShortWriteIsWhole) => return Ok(()),
            Ok(n) => {
                buf = buf.get(n..).unwrap_or_default();
                offset = offset.saturating_add(n as u64);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Fills `buf` from `offset` as far as the file reaches; returns how many bytes were read.
///
/// # Errors
/// The first error other than `Interrupted`.
pub fn read_up_to_at(file: &dyn VfsFile, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buf.get_mut(filled..) {
        if rest.is_empty() {
            break;
        }
        match file.read_at(rest, offset.saturating_add(filled as u64)) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// Fills all of `buf` from `offset`.
///
/// # Errors
/// `UnexpectedEof` when the file ends before `buf` is full; otherwise as [`read_up_to_at`].
pub fn read_exact_at(file: &dyn VfsFile, buf: &mut [u8], offset: u64) -> io::Result<()> {
    if read_up_to_at(file, buf, offset)? == buf.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

/// Reads a whole small file.
///
/// # Errors
/// `InvalidData` when it is longer than `max` bytes, so that a hostile file cannot make us allocate (I10).
pub fn read_small_file(vfs: &dyn Vfs, path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let file = vfs.open(path, Access::Read)?;
    let len = file.size()?;
    if len > max {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{len} bytes long, at most {max} expected"),
        ));
    }
    let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    read_exact_at(file.as_ref(), &mut bytes, 0)?;
    Ok(bytes)
}

/// What stands at the path of a directory that the user named: a symbolic link there is followed, as any
/// in the path before it is. Names inside the engine's directories are looked at with [`Vfs::kind`], which
/// follows none.
///
/// # Errors
/// As [`Vfs::kind`].
pub fn dir_kind(vfs: &dyn Vfs, path: &Path) -> io::Result<Option<FileKind>> {
    let kind = vfs.kind(path)?;
    if kind != Some(FileKind::Other) {
        return Ok(kind);
    }
    // The directory that the link leads to has itself as an entry of this name.
    match vfs.kind(&path.join(".")) {
        Ok(Some(FileKind::Dir)) => Ok(Some(FileKind::Dir)),
        _ => Ok(kind),
    }
}

/// Makes the entry of an existing directory durable; behind a symbolic link, that of both.
fn sync_entry(vfs: &dyn Vfs, path: &Path) -> io::Result<()> {
    if vfs.kind(path)? == Some(FileKind::Other) {
        vfs.sync_dir(&path.join(".."))?;
    }
    vfs.sync_dir(parent_of(path))
}

/// Creates a directory and its missing parents, and makes every entry durable. The entry of a
/// directory that is already there is synced too: whoever made it may have died before that. A symbolic
/// link to a directory counts as one.
///
/// # Errors
/// The first failing operation, or `NotADirectory` when something else stands in the way.
pub fn create_dir_durably(vfs: &dyn Vfs, path: &Path) -> io::Result<()> {
    match dir_kind(vfs, path)? {
        Some(FileKind::Dir) => return sync_entry(vfs, path),
        Some(_) => return Err(io::ErrorKind::NotADirectory.into()),
        None => {}
    }
    let parent = parent_of(path);
    create_dir_durably(vfs, parent)?;
    match vfs.create_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        other => other?,
    }
    if sabotaged(Sabotage::ParentNotSynced) {
        return Ok(());
    }
    vfs.sync_dir(parent)
}

/// Puts `bytes` at `dir/name`, all or nothing, durably: temporary file, sync, rename, sync of the
/// directory. A crash leaves either the old content or the new.
///
/// # Errors
/// The first failing operation; the old content is then still there.
pub fn replace_file_durably(vfs: &dyn Vfs, dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let (staged, _) = stage_file(vfs, dir, name, bytes)?;
    vfs.rename(&staged, &dir.join(name))?;
    vfs.sync_dir(dir)
}

/// Writes what is to become the file `name` in `dir` beside it, and syncs it; returns its path, to be renamed, and the
/// file. What needs space is done then.
///
/// # Errors
/// Any failure; `name` is what it was.
pub(crate) fn stage_file(
    vfs: &dyn Vfs,
    dir: &Path,
    name: &str,
    bytes: &[u8],
) -> io::Result<(PathBuf, Arc<dyn VfsFile>)> {
    let temporary = dir.join(format!("{name}.tmp"));
    if vfs.kind(&temporary)?.is_some() {
        vfs.remove_file(&temporary)?;
    }
    let file = vfs.create_new(&temporary)?;
    let skip = sabotaged(Sabotage::RenamedUnsynced);
    let sync = || if skip { Ok(()) } else { file.sync_data() };
    match write_all_at(file.as_ref(), bytes, 0).and_then(|()| sync()) {
        Ok(()) => Ok((temporary, file)),
        Err(error) => {
            // On a full disk it only takes up room. The next one removes it, if this does not.
            let _ = vfs.remove_file(&temporary);
            Err(error)
        }
    }
}

/// The path made absolute, once, where a directory is named: files are still to be found in it after the
/// program has changed its working directory.
#[must_use]
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

/// The parent directory, `.` for a bare name or none, and `/` for the root.
#[must_use]
pub fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None if path.as_os_str().is_empty() => Path::new("."),
        None => path,
    }
}
