//! Is this still the file that was read before?
//!
//! At its first reading a file's start is hashed. On every later start the same bytes must hash to
//! the same value and the file must not have become shorter than what was read. A file that only
//! grew is the same file. When a job ends before the end of a file, only what it has consumed of
//! the file stays in the hash: the rest may still be repaired.

use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::error::{CliError, Result};

/// How much of the start of a file is hashed, at most.
const HEAD_LEN_MAX: u64 = 64 << 10;

/// What is remembered of an input file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    /// As given on the command line, or as the pattern expanded.
    pub path: String,
    /// Length when first opened, in bytes.
    pub len_first: u64,
    /// How many bytes of its start are hashed.
    pub head_len: u64,
    /// Their xxh3, in hexadecimal.
    pub head_xxh3: String,
}

/// Opens an input file.
pub fn open(path: &Path) -> Result<File> {
    let failed = |e| CliError::io("open the input file", path, &e);
    // Looked at before, too: to open a named pipe is to wait for whoever writes to it.
    refuse_irregular(path, &path.metadata().map_err(failed)?)?;
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(|e| CliError::io("read the length of", path, &e))?;
    refuse_irregular(path, &metadata)?;
    Ok(file)
}

fn refuse_irregular(path: &Path, metadata: &Metadata) -> Result<()> {
    if metadata.is_dir() {
        return Err(CliError::usage(format!("{} is a directory", path.display()))
            .remedy(format!("Name files, or a pattern in quotes: '{}/*'.", path.display())));
    }
    if !metadata.is_file() {
        return Err(CliError::usage(format!("{} is not a regular file", path.display())).remedy(
            "A job must be able to read its input again from any position; write it to a file first.",
        ));
    }
    Ok(())
}

/// Length of an open file.
pub fn len(file: &File, path: &Path) -> Result<u64> {
    Ok(file.metadata().map_err(|e| CliError::io("read the length of", path, &e))?.len())
}

/// Whether the path still leads to this open file; not after it was renamed, removed or replaced.
pub fn is_at(file: &File, path: &Path) -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let failed = |e| CliError::io("look at", path, &e);
    let ours = file.metadata().map_err(failed)?;
    match path.metadata() {
        Ok(theirs) => Ok((ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(failed(e)),
    }
}

fn head_hash(file: &File, path: &Path, len: u64) -> Result<String> {
    let mut head = Vec::new();
    let mut start = file.try_clone().map_err(|e| CliError::io("read", path, &e))?;
    std::io::Seek::rewind(&mut start).map_err(|e| CliError::io("read", path, &e))?;
    start.take(len).read_to_end(&mut head).map_err(|e| CliError::io("read", path, &e))?;
    Ok(format!("{:016x}", xxh3_64(&head)))
}

impl FileIdentity {
    /// Takes the identity of a file as it is now. Also its length.
    pub fn take(path: &str) -> Result<(Self, u64)> {
        let file = open(Path::new(path))?;
        let len = len(&file, Path::new(path))?;
        let head_len = len.min(HEAD_LEN_MAX);
        let head_xxh3 = head_hash(&file, Path::new(path), head_len)?;
        Ok((Self { path: path.to_owned(), len_first: len, head_len, head_xxh3 }, len))
    }

    /// Checks that the file still is the one remembered, with at least `read` bytes; gives its
    /// length. A file that was shorter than the hashed part, and has grown, is remembered anew.
    pub fn check(&mut self, read: u64) -> Result<u64> {
        let path = self.path.clone();
        let path = Path::new(&path);
        let file = open(path)?;
        let len = len(&file, path)?;
        if len < read.max(self.head_len) {
            let expected = read.max(self.head_len);
            return Err(CliError::failure(format!(
                "{} has been truncated: {expected} bytes of it were read before, now it has {len}",
                path.display()
            ))
            .remedy("Restore the file, or start over with a new --state directory."));
        }
        let found = head_hash(&file, path, self.head_len)?;
        if found != self.head_xxh3 {
            return Err(CliError::failure(format!(
                "{} has been changed since it was first read: its first {} bytes had xxh3 {}, now {found}",
                path.display(),
                self.head_len,
                self.head_xxh3
            ))
            .remedy("Restore the file, or start over with a new --state directory."));
        }
        self.remember(&file, len)?;
        Ok(len)
    }

    /// Whether the start of the open file still is the one remembered.
    pub fn is_same(&self, file: &File) -> Result<bool> {
        Ok(head_hash(file, Path::new(&self.path), self.head_len)? == self.head_xxh3)
    }

    /// Lets the hash cover more of a file that was shorter than the hashed part and of which
    /// `consumed` bytes are read by now. Returns whether it does.
    pub fn remember(&mut self, file: &File, consumed: u64) -> Result<bool> {
        let head_len = consumed.min(HEAD_LEN_MAX);
        if head_len <= self.head_len {
            return Ok(false);
        }
        self.head_xxh3 = head_hash(file, Path::new(&self.path), head_len)?;
        self.head_len = head_len;
        Ok(true)
    }

    /// Lets the hash cover no more than the `consumed` bytes. Changes nothing unless the file still
    /// is the one remembered, so that a change made meanwhile is not taken for the original.
    pub fn forget_after(&mut self, consumed: u64) {
        if consumed >= self.head_len {
            return;
        }
        let path = Path::new(&self.path);
        let Ok(file) = open(path) else { return };
        if head_hash(&file, path, self.head_len).is_ok_and(|found| found == self.head_xxh3)
            && let Ok(hash) = head_hash(&file, path, consumed)
        {
            self.head_len = consumed;
            self.head_xxh3 = hash;
        }
    }
}

/// Newlines in the first `len` bytes.
pub fn count_lines(path: &Path, len: u64) -> Result<u64> {
    let mut file = open(path)?.take(len);
    let mut buffer = vec![0; 1 << 20];
    let mut lines = 0u64;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(lines),
            Ok(read) => lines += memchr::memchr_iter(b'\n', &buffer[..read]).count() as u64,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(CliError::io("read", path, &e)),
        }
    }
}

/// Up to `len` bytes at `offset`; fewer at the end of the file.
pub fn bytes_at(path: &Path, offset: u64, len: usize) -> Result<Vec<u8>> {
    let file = open(path)?;
    let mut bytes = vec![0; len];
    let mut have = 0;
    while have < len {
        match file.read_at(&mut bytes[have..], offset + have as u64) {
            Ok(0) => break,
            Ok(read) => have += read,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(CliError::io("read", path, &e)),
        }
    }
    bytes.truncate(have);
    Ok(bytes)
}
