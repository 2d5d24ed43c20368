//! Removing segments that checkpoints have made superfluous.
//!
//! Invariant I6: nothing is removed before the checkpoint that covers it is published, and the log is
//! kept back to the checkpoint before that one. The oldest segment goes first and the directory is
//! synced after each, so that a crash leaves a chain without gaps.

use std::path::Path;

use super::error::PerCoreWalError;
use super::manager::TruncationScope;
use super::reader::read_header;
use super::segment::{SegmentName, list_segments};
use crate::error::Detail;
use crate::ids::{CoreId, Sequence};
use crate::incremental::Published;
use crate::sabotage::{Sabotage, sabotaged};
use crate::vfs::FileKind;

/// A core always keeps this many segments: the one in use, and the one whose end says whether a
/// successor was completely created.
const KEPT: usize = 2;

/// What a truncation removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Truncation {
    /// Number of segments.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Removes the segments of a log that the checkpoint before `published` covers completely.
pub(crate) fn truncate_segments(
    scope: &TruncationScope,
    published: &Published,
) -> Result<Truncation, PerCoreWalError> {
    let dir = scope.policy.dir.as_path();
    let Some(floor) = published.wal_floor() else { return Ok(Truncation::default()) };
    if floor.store_id != scope.store_id {
        return Err(PerCoreWalError::corrupted(
            Detail::new("the checkpoint was made from another log")
                .at_path(dir)
                .remedy("Truncate a log only with checkpoints made from it; nothing was removed."),
        ));
    }
    let largest = floor.cuts.iter().max().copied().unwrap_or(Sequence::ZERO);
    let names = list_segments(scope.policy.vfs.as_ref(), dir)
        .map_err(|e| PerCoreWalError::io("could not list the log directory", dir, e))?;
    let mut truncation = Truncation::default();
    for core in names.chunk_by(|a, b| a.core == b.core) {
        let Some(id) = core.first().map(|name| name.core) else { continue };
        let obsolete = if id.0 >= scope.core_count {
            // A core of an earlier layout: all of it lies before this incarnation.
            if largest >= scope.start { core } else { &[] }
        } else {
            let cut = floor.cuts.get(id.index()).copied().unwrap_or(largest);
            covered(scope, core, cut)?
        };
        for name in obsolete {
            remove(scope, &dir.join(name.file_name()), &mut truncation)?;
        }
    }
    Ok(truncation)
}

/// The oldest segments of a core that hold only records up to `cut`.
fn covered<'a>(
    scope: &TruncationScope,
    names: &'a [SegmentName],
    cut: Sequence,
) -> Result<&'a [SegmentName], PerCoreWalError> {
    let mut count = 0;
    while count + KEPT < names.len() {
        let Some(successor) = names.get(count + 1) else { break };
        let path = scope.policy.dir.join(successor.file_name());
        // A header that cannot be read is recovery's business; here it only stops the removal.
        match read_header(scope.policy.vfs.as_ref(), &path)? {
            Ok(_) if sabotaged(Sabotage::LogCutEarly) => count += 1,
            Ok(header) if header.last_sequence <= cut && header.core == CoreId(successor.core.0) => {
                count += 1
            }
            _ => break,
        }
    }
    Ok(names.get(..count).unwrap_or_default())
}

fn remove(scope: &TruncationScope, path: &Path, truncation: &mut Truncation) -> Result<(), PerCoreWalError> {
    let vfs = scope.policy.vfs.as_ref();
    let io = |e| PerCoreWalError::io("could not remove an obsolete segment", path, e);
    if let Some(FileKind::File { len }) = vfs.kind(path).map_err(io)? {
        truncation.bytes += len;
    }
    vfs.remove_file(path).map_err(io)?;
    scope.policy.names.sync(vfs, &scope.policy.dir).map_err(io)?;
    truncation.segments += 1;
    Ok(())
}
