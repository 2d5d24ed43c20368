//! Checks that change nothing, for programs that are not managers.

use std::io;
use std::path::Path;

use super::checkpoint_reader::CheckpointReader;
use super::error::IncrementalCheckpointError;
use super::metadata::IncrementalCheckpointMetadata;
use crate::vfs::{FileKind, OsVfs, Vfs, dir_kind};

/// Reads and checks everything the checkpoint in `dir` needs: manifest, files, every block, counts
/// and digests. Changes nothing. Files the manifest does not list are ignored.
///
/// # Errors
/// `NotFound`, `Corruption`, `ChecksumMismatch`, `UnsupportedVersion`, `Io`; each names the file.
pub fn validate_checkpoint(dir: &Path) -> Result<IncrementalCheckpointMetadata, IncrementalCheckpointError> {
    validate_checkpoint_in(&OsVfs::new(), dir)
}

/// As [`validate_checkpoint`], on any [`Vfs`].
///
/// # Errors
/// As [`validate_checkpoint`].
pub fn validate_checkpoint_in(
    vfs: &dyn Vfs,
    dir: &Path,
) -> Result<IncrementalCheckpointMetadata, IncrementalCheckpointError> {
    let reader = CheckpointReader::open(vfs, dir)?;
    reader.verify()?;
    Ok(reader.metadata().clone())
}

/// Bytes of write-ahead log under a path: of a file its length, of a directory the lengths of the
/// `wal*.log` files in it. 0 where there is nothing, or nothing that can be read.
#[must_use]
pub fn wal_size(path: &Path) -> u64 {
    wal_size_in(&OsVfs::new(), path).unwrap_or(0)
}

/// As [`wal_size`], on any [`Vfs`].
///
/// # Errors
/// What the operating system says, except that a missing path has 0 bytes.
pub fn wal_size_in(vfs: &dyn Vfs, path: &Path) -> io::Result<u64> {
    match dir_kind(vfs, path)? {
        Some(FileKind::File { len }) => Ok(len),
        Some(FileKind::Dir) => {
            let mut total = 0_u64;
            for (name, kind) in vfs.read_dir(path)? {
                if let FileKind::File { len } = kind
                    && name.starts_with("wal")
                    && name.ends_with(".log")
                {
                    total = total.saturating_add(len);
                }
            }
            Ok(total)
        }
        Some(FileKind::Other) | None => Ok(0),
    }
}
