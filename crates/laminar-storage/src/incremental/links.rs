//! A second name for a state file in another directory, or a copy where the file system refuses one.
//!
//! Only files that are sealed and synced are named here: they never change again, so it does not matter
//! how many directories share one.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::error::IncrementalCheckpointError;
use super::manager::{IncrementalCheckpointManager, Result};
use super::metadata::CheckpointFile;
use super::state_file::StateFileReader;
use crate::error::Detail;
use crate::vfs::{FileKind, Vfs, VfsFile, read_up_to_at, write_all_at};

/// Bytes copied at a time where links are refused.
const COPY_LEN: usize = 1 << 20;

/// Gives `file`, which stands at `source`, the name `target` too. Returns the copy, which must be synced,
/// where the file system has no links, no room for another, or is another one.
pub(super) fn link_or_copy(
    vfs: &dyn Vfs,
    file: &StateFileReader,
    source: &Path,
    target: &Path,
) -> Result<Option<Arc<dyn VfsFile>>> {
    match vfs.hard_link(source, target) {
        Ok(()) => Ok(None),
        Err(e) if links_are_refused(&e) => copy_file(vfs, file, target).map(Some),
        Err(e) => Err(IncrementalCheckpointError::io("could not link the state file", source, e)),
    }
}

fn links_are_refused(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::CrossesDevices
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::Unsupported
            | io::ErrorKind::TooManyLinks
    )
}

/// Copies an open state file; the copy must be synced.
fn copy_file(vfs: &dyn Vfs, reader: &StateFileReader, target: &Path) -> Result<Arc<dyn VfsFile>> {
    let copied = || -> io::Result<Arc<dyn VfsFile>> {
        let copy = vfs.create_new(target)?;
        let mut buf = vec![0; COPY_LEN];
        let mut at = 0;
        loop {
            let n = read_up_to_at(reader.file(), &mut buf, at)?;
            if n == 0 {
                return Ok(copy);
            }
            write_all_at(copy.as_ref(), buf.get(..n).unwrap_or_default(), at)?;
            at += n as u64;
        }
    };
    copied().map_err(IncrementalCheckpointManager::io("could not copy the state file to", target))
}

/// Checks that a file that was linked is there, as long as it must be.
pub(super) fn check_linked(vfs: &dyn Vfs, dir: &Path, meta: &CheckpointFile) -> Result<()> {
    let path = dir.join(&meta.name);
    let kind = vfs.kind(&path).map_err(IncrementalCheckpointManager::io("could not look at", &path))?;
    if kind == Some(FileKind::File { len: meta.len }) {
        return Ok(());
    }
    let what = format!("a linked file of {} bytes reads back as {kind:?}", meta.len);
    Err(IncrementalCheckpointError::corruption(Detail::new(what).at_path(path)))
}
