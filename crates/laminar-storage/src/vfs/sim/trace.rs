//! What a disk was asked to do, one line per operation, the same on every run.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// One operation as it was asked for and answered. Its `Display` is one normalised line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// Its number; 0 for an operation that is not numbered (see [`super::SimDisk::number_reads`]).
    pub number: u64,
    /// The system call it stands for: `create`, `open`, `pread`, `pwrite`, `ftruncate`,
    /// `fdatasync`, `mkdir`, `rename`, `unlink`, `rmdir`, `link`, `fsync`, `flock`, `readdir`, `stat`.
    pub call: &'static str,
    /// The path, for an operation on an open file the one it was opened by.
    pub path: Arc<str>,
    /// The second path of `rename` and `link`.
    pub to: Option<Arc<str>>,
    /// Offset of a `pread` or `pwrite`.
    pub offset: u64,
    /// Bytes asked for, or the new length for `ftruncate`.
    pub len: u64,
    /// Bytes read or written, entries found; or what kind of error came back.
    pub outcome: Result<u64, io::ErrorKind>,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.number, self.call, self.path)?;
        if let Some(to) = &self.to {
            write!(f, " -> {to}")?;
        }
        match self.call {
            "pread" | "pwrite" => write!(f, " {}+{}", self.offset, self.len)?,
            "ftruncate" => write!(f, " {}", self.len)?,
            _ => {}
        }
        match self.outcome {
            Ok(n) => write!(f, " = {n}"),
            Err(kind) => write!(f, " ! {kind}"),
        }
    }
}

/// What an operation is asked to do, before it has an answer.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub call: &'static str,
    pub path: &'a Path,
    pub to: Option<&'a Path>,
    pub offset: u64,
    pub len: u64,
}

impl<'a> Call<'a> {
    pub(super) fn new(call: &'static str, path: &'a Path) -> Self {
        Self { call, path, to: None, offset: 0, len: 0 }
    }

    pub(super) fn to(self, to: &'a Path) -> Self {
        Self { to: Some(to), ..self }
    }

    pub(super) fn range(self, offset: u64, len: u64) -> Self {
        Self { offset, len, ..self }
    }

    pub(super) fn answered(&self, number: u64, outcome: Result<u64, io::ErrorKind>) -> Op {
        let text = |path: &Path| Arc::from(path.to_string_lossy().as_ref());
        Op {
            number,
            call: self.call,
            path: text(self.path),
            to: self.to.map(text),
            offset: self.offset,
            len: self.len,
            outcome,
        }
    }
}

/// A number that two runs share exactly when they did the same operations with the same answers.
pub(super) fn hash(ops: &[Op]) -> u64 {
    ops.iter().fold(0, |seed, op| xxh3_64_with_seed(op.to_string().as_bytes(), seed))
}

/// How much was asked of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Successful or not, every `read_at`.
    pub reads: u64,
    /// Bytes that reads returned.
    pub bytes_read: u64,
    /// Successful or not, every `write_at`.
    pub writes: u64,
    /// Bytes that writes took.
    pub bytes_written: u64,
    /// Calls of `sync_data`, those through `sync_many` included.
    pub sync_data: u64,
    /// Calls of `sync_dir`.
    pub sync_dir: u64,
    /// Files and directories that were created.
    pub created: u64,
    /// Operations that could have changed something, syncs included, successful or not.
    pub changes: u64,
}
